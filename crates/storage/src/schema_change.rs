//! Columns that come, go and get other names: each change is one version, data files that are there stay as they are. A
//! table's own name and the defaults of its columns are in the catalog alone: they make no version.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema};
use datafusion::common::ScalarValue;
use lance::dataset::transaction::Operation;
use lance::dataset::{BatchUDF, ColumnAlteration, NewColumnTransform};

use crate::catalog::log::Change as CatalogChange;
use crate::catalog::{TableEntry, TableName};
use crate::change::stale_if;
use crate::database::{Database, check_name};
use crate::error::{Result, StorageError};
use crate::snapshot::guard;
use crate::turn::{Turn, gone};
use crate::write::storable_schema;

/// The DEFAULT of a new column.
#[derive(Clone, Debug)]
pub struct NewDefault {
    /// Its SQL text, for rows to come.
    pub sql: String,
    /// Its value, for the rows there are.
    pub value: ScalarValue,
}

impl Database {
    /// Adds a column behind the others. The rows there are get the default, or NULL without one. Cost: without a
    /// default the manifest alone, else one value per row.
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`]; [`StorageError::Invalid`] for NOT NULL without a default on a table with rows;
    /// [`StorageError::Stale`].
    pub async fn add_column(
        &self,
        name: &TableName,
        entry: &TableEntry,
        field: &Field,
        default: Option<NewDefault>,
    ) -> Result<()> {
        let turn = self.turn(name, entry).await?;
        let columns = turn.snapshot().schema();
        if columns.fields().iter().any(|other| other.name() == field.name()) {
            return Err(StorageError::already_exists(format!("column {} is in table {name} already", field.name())));
        }
        if !field.is_nullable() && default.is_none() && turn.snapshot().row_count() > 0 {
            return Err(StorageError::invalid(format!(
                "column {} is NOT NULL and the rows of table {name} have no value for it; give it a DEFAULT",
                field.name()
            )));
        }
        let added = storable_schema(&Schema::new(vec![field.clone()]))?;
        let transform = match &default {
            Some(default) => constant(Arc::clone(&added), default.value.clone()),
            None if field.is_nullable() => NewColumnTransform::AllNulls(Arc::clone(&added)),
            None => constant(Arc::clone(&added), null_of(field)?),
        };
        self.set_default(name, entry, field.name(), default.map(|default| default.sql)).await?;
        let first = columns.field(0).name().clone();
        let (mut dataset, committer) = self.open_to_change(turn.snapshot(), entry, "ALTER TABLE").await?;
        let what = format!("cannot add column {} to table {name}", field.name());
        let changed = guard(&what, dataset.add_columns(transform, Some(vec![first]), None)).await;
        stale_if(changed, &committer)?;
        turn.adopt(dataset).await?;
        Ok(())
    }

    /// Takes a column away. Older versions still have it. Cost: the manifest.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Invalid`] for the last column or one of the primary key;
    /// [`StorageError::Stale`].
    pub async fn drop_column(&self, name: &TableName, entry: &TableEntry, column: &str) -> Result<()> {
        let turn = self.turn(name, entry).await?;
        turn.snapshot().field(column)?;
        if turn.snapshot().schema().fields().len() == 1 {
            return Err(StorageError::invalid(format!(
                "column {column} is the only one of table {name}; DROP TABLE drops the table"
            )));
        }
        if turn.snapshot().primary_key().iter().any(|key| key == column) {
            return Err(StorageError::invalid(format!(
                "column {column} is part of the primary key of table {name} and cannot be dropped"
            )));
        }
        let (mut dataset, committer) = self.open_to_change(turn.snapshot(), entry, "ALTER TABLE").await?;
        let what = format!("cannot drop column {column} of table {name}");
        let changed = guard(&what, dataset.drop_columns(&[column])).await;
        stale_if(changed, &committer)?;
        turn.adopt(dataset).await?;
        Ok(())
    }

    /// Gives a column another name. Cost: the manifest.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], [`StorageError::AlreadyExists`], [`StorageError::Invalid`] for a name that no
    /// column can have, [`StorageError::Stale`].
    pub async fn rename_column(&self, name: &TableName, entry: &TableEntry, from: &str, to: &str) -> Result<()> {
        let turn = self.turn(name, entry).await?;
        let field = turn.snapshot().field(from)?.clone();
        if turn.snapshot().schema().fields().iter().any(|other| other.name() == to) {
            return Err(StorageError::already_exists(format!("column {to} is in table {name} already")));
        }
        storable_schema(&Schema::new(vec![field.with_name(to)]))?;
        // The default first, under both names: one that names no column does no harm, a lost one would.
        self.set_default(name, entry, to, entry.defaults.get(from).cloned()).await?;
        let alteration = ColumnAlteration::new(from.to_owned()).rename(to.to_owned());
        self.commit_alteration(turn, alteration, format!("cannot rename column {from} of table {name}")).await
    }

    /// Refuses NULL in a column from now on. Cost: a read of the column.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Invalid`] if there are rows without a value; [`StorageError::Stale`].
    pub async fn set_not_null(&self, name: &TableName, entry: &TableEntry, column: &str) -> Result<()> {
        let alteration = ColumnAlteration::new(column.to_owned()).set_nullable(false);
        self.alter_column(name, entry, column, alteration).await
    }

    /// Lets a column hold NULL from now on. Cost: the manifest.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Invalid`] for a column of the primary key; [`StorageError::Stale`].
    pub async fn drop_not_null(&self, name: &TableName, entry: &TableEntry, column: &str) -> Result<()> {
        let alteration = ColumnAlteration::new(column.to_owned()).set_nullable(true);
        self.alter_column(name, entry, column, alteration).await
    }

    async fn alter_column(
        &self,
        name: &TableName,
        entry: &TableEntry,
        column: &str,
        alteration: ColumnAlteration,
    ) -> Result<()> {
        let turn = self.turn(name, entry).await?;
        let is_nullable = turn.snapshot().field(column)?.is_nullable();
        if alteration.nullable == Some(is_nullable) {
            return Ok(());
        }
        if turn.snapshot().primary_key().iter().any(|key| key == column) {
            return Err(StorageError::invalid(format!(
                "column {column} is part of the primary key of table {name} and stays NOT NULL"
            )));
        }
        self.commit_alteration(turn, alteration, format!("cannot alter column {column} of table {name}")).await
    }

    async fn commit_alteration(&self, turn: Turn, alteration: ColumnAlteration, what: String) -> Result<()> {
        let (mut dataset, committer) = self.open_to_change(turn.snapshot(), &turn.entry, "ALTER TABLE").await?;
        let changed = guard(&what, dataset.alter_columns(&[alteration])).await;
        stale_if(changed, &committer)?;
        turn.adopt(dataset).await?;
        Ok(())
    }

    /// Gives a column another DEFAULT, or none, for rows to come. Cost: the catalog.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Conflict`] if the table was dropped meanwhile.
    pub async fn set_column_default(
        &self,
        name: &TableName,
        entry: &TableEntry,
        column: &str,
        default: Option<String>,
    ) -> Result<()> {
        let turn = self.turn(name, entry).await?;
        turn.snapshot().field(column)?;
        self.set_default(name, entry, column, default).await
    }

    /// Gives a table another name. Its files, versions and tags stay where and as they are. Cost: the catalog.
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`]; [`StorageError::NotFound`] for a schema that is not there;
    /// [`StorageError::Invalid`] for a name that no table can have; [`StorageError::Conflict`] if the table was dropped
    /// meanwhile.
    pub async fn rename_table(&self, name: &TableName, entry: &TableEntry, to: &TableName) -> Result<()> {
        check_name("table", &to.table)?;
        // Statements of this process that were planned under the old name are through first.
        let _turn = self.turn(name, entry).await?;
        let change = |catalog: &crate::catalog::Catalog| match catalog.renamed(name, &entry.id, to)? {
            Some(next) => Ok(CatalogChange::Write(next, ())),
            None => Err(gone(name)),
        };
        self.catalog_log().commit(change).await?;
        tracing::info!(table = %name, to = %to, "table renamed");
        Ok(())
    }

    /// Removes all rows, as one version. Returns their number.
    ///
    /// # Errors
    /// [`StorageError::Stale`].
    pub async fn truncate(&self, name: &TableName, entry: &TableEntry) -> Result<u64> {
        let turn: Turn = self.turn(name, entry).await?;
        let rows = turn.snapshot().row_count();
        if rows == 0 {
            return Ok(0);
        }
        let removed = turn.snapshot().fragments().iter().map(|fragment| u64::from(fragment.id)).collect();
        let operation = Operation::Delete {
            updated_fragments: vec![],
            deleted_fragment_ids: removed,
            predicate: "all rows".to_owned(),
        };
        turn.finish(operation, "TRUNCATE", None).await?;
        Ok(rows)
    }

    async fn set_default(
        &self,
        name: &TableName,
        entry: &TableEntry,
        column: &str,
        default: Option<String>,
    ) -> Result<()> {
        if entry.defaults.get(column) == default.as_ref() {
            return Ok(());
        }
        let change = |catalog: &crate::catalog::Catalog| {
            Ok(match catalog.with_default(name, &entry.id, column, default.as_deref()) {
                Some(next) => CatalogChange::Write(next, ()),
                None => CatalogChange::Nothing(()),
            })
        };
        Ok(self.catalog_log().commit(change).await?)
    }
}

/// A value that no row will ever get: the table is empty.
fn null_of(field: &Field) -> Result<ScalarValue> {
    ScalarValue::new_default(field.data_type()).map_err(|error| {
        StorageError::unsupported(format!("column {} cannot be added", field.name())).with_source(error)
    })
}

/// The same value for every row.
fn constant(schema: arrow::datatypes::SchemaRef, value: ScalarValue) -> NewColumnTransform {
    let output = Arc::clone(&schema);
    let mapper = move |batch: &RecordBatch| {
        let column = value
            .to_array_of_size(batch.num_rows())
            .and_then(|column| Ok(arrow::compute::cast(&column, output.field(0).data_type())?))
            .map_err(|error| lance::Error::invalid_input(error.to_string()))?;
        Ok(RecordBatch::try_new(Arc::clone(&output), vec![column])?)
    };
    NewColumnTransform::BatchUDF(BatchUDF { mapper: Box::new(mapper), output_schema: schema, result_checkpoint: None })
}
