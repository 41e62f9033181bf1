//! ALTER TABLE and TRUNCATE. What a column's files become is storage's work.

use arrow::datatypes::Schema;
use datafusion::sql::sqlparser::ast::{
    AlterColumnOperation, AlterTable, AlterTableOperation, CascadeOption, ColumnDef, ColumnOption, DropBehavior,
    ObjectName, RenameTableNameKind, Truncate,
};
use planner::Planner;
use planner::resolve::RelationName;
use planner::sql_text::sql_text;
use planner::sql_type::sql_type_name;
use storage::{NewDefault, Role, TableEntry, TableName};

use crate::change::{folded, retried};
use crate::definition::{default_of, own_name};
use crate::insert::no_column;
use crate::resolver::StatementTables;
use crate::{Answer, Error, ErrorKind, Result, Session};

const USAGE: &str = "ALTER TABLE t ADD COLUMN c type, DROP COLUMN c, RENAME COLUMN a TO b, RENAME TO u, \
                     ALTER COLUMN c SET|DROP DEFAULT|NOT NULL, or SET (retention = '7 days')";

/// A table that is altered, as it is now.
struct Altered {
    name: TableName,
    entry: TableEntry,
    relation: RelationName,
    schema: arrow::datatypes::SchemaRef,
    rows: u64,
    key: Vec<String>,
}

impl Altered {
    fn has(&self, column: &str) -> bool {
        self.schema.field_with_name(column).is_ok()
    }

    fn no_column(&self, column: &str) -> Error {
        no_column(&self.relation, column, self.schema.fields())
    }
}

impl Session {
    pub(crate) async fn truncate(&self, truncate: &Truncate) -> Result<Answer> {
        let Truncate { table_names, partitions, table: _, if_exists, identity, cascade, on_cluster } = truncate;
        let refused = [
            (table_names.len() != 1, "TRUNCATE of several tables"),
            (table_names.iter().any(|target| target.only), "ONLY"),
            (table_names.iter().any(|target| target.has_asterisk), "* behind the table of TRUNCATE"),
            (partitions.is_some(), "PARTITION of TRUNCATE"),
            (identity.is_some(), "RESTART and CONTINUE IDENTITY"),
            (matches!(cascade, Some(CascadeOption::Cascade)), "CASCADE of TRUNCATE"),
            (on_cluster.is_some(), "ON CLUSTER"),
        ];
        if let Some((_, clause)) = refused.iter().find(|(given, _)| *given) {
            return Err(Error::unsupported(format!("{clause} is not supported; write TRUNCATE TABLE t")));
        }
        let Some(target) = table_names.first() else {
            return Err(Error::invalid("TRUNCATE names a table: TRUNCATE TABLE t"));
        };
        let relation = RelationName::of_sql(&target.name)?;
        let shown = relation.to_string();
        let rows = retried(&shown, || async {
            let tables = StatementTables::new(self.clone(), self.state());
            if *if_exists && tables.is_missing(&relation).await? {
                return Ok(0);
            }
            let (name, entry) = tables.entry(&relation, Role::Write).await?;
            Ok(self.engine().database().truncate(&name, &entry).await?)
        });
        Ok(Answer::wrote("TRUNCATE", rows.await?))
    }

    pub(crate) async fn alter_table(&self, alter: &AlterTable) -> Result<Answer> {
        let AlterTable { name, if_exists, only, operations, location, on_cluster, table_type, end_token: _ } = alter;
        if *only || location.is_some() || on_cluster.is_some() || table_type.is_some() {
            return Err(Error::unsupported(format!(
                "ONLY, SET LOCATION and ON CLUSTER of ALTER TABLE are not supported; write {USAGE}"
            )));
        }
        let [operation] = operations.as_slice() else {
            return Err(Error::unsupported(format!(
                "ALTER TABLE makes one change at a time: each statement is its own transaction; write {USAGE}"
            )));
        };
        let relation = RelationName::of_sql(name)?;
        retried(&relation.to_string(), || async {
            let tables = StatementTables::new(self.clone(), self.state());
            if *if_exists && tables.is_missing(&relation).await? {
                return Ok(());
            }
            let (name, entry) = tables.entry(&relation, Role::Admin).await?;
            let snapshot = self.engine().database().snapshot(&entry).await?;
            let (schema, rows, key) = (snapshot.schema(), snapshot.row_count(), snapshot.primary_key());
            self.alter(&Altered { name, entry, relation: relation.clone(), schema, rows, key }, operation).await
        })
        .await?;
        Ok(Answer::done("ALTER TABLE"))
    }

    async fn alter(&self, table: &Altered, operation: &AlterTableOperation) -> Result<()> {
        match operation {
            AlterTableOperation::AddColumn { column_keyword: _, if_not_exists, column_def, column_position: None } => {
                self.add_column(table, column_def, *if_not_exists).await
            }
            AlterTableOperation::DropColumn { has_column_keyword: _, column_names, if_exists, drop_behavior } => {
                let [column] = column_names.as_slice() else {
                    return Err(Error::unsupported(
                        "DROP COLUMN takes one column; drop each with a statement of its own",
                    ));
                };
                if matches!(drop_behavior, Some(DropBehavior::Cascade)) {
                    return Err(Error::unsupported(
                        "CASCADE of DROP COLUMN is not supported; drop the views that read the column by their names",
                    ));
                }
                self.drop_column(table, &folded(column), *if_exists).await
            }
            AlterTableOperation::RenameColumn { old_column_name, new_column_name } => {
                self.rename_column(table, &folded(old_column_name), &folded(new_column_name)).await
            }
            AlterTableOperation::SetOptionsParens { options } => {
                let retention = self.retention(options)?;
                Ok(self.engine().database().set_retention(&table.name, &table.entry, retention).await?)
            }
            AlterTableOperation::RenameTable { table_name: RenameTableNameKind::To(to) } => {
                self.rename_table(table, to).await
            }
            AlterTableOperation::AlterColumn { column_name, op } => {
                self.alter_column(table, &folded(column_name), op).await
            }
            other => Err(Error::unsupported(format!("ALTER TABLE … {other} is not supported; write {USAGE}"))),
        }
    }

    async fn rename_table(&self, table: &Altered, to: &ObjectName) -> Result<()> {
        let Altered { name, entry, .. } = table;
        let to = match to.0.as_slice() {
            [only] if only.as_ident().is_some() => TableName::new(&name.schema, RelationName::of_sql(to)?.table),
            _ => own_name(to)?,
        };
        if to.schema != name.schema {
            return Err(Error::unsupported(format!(
                "RENAME TO does not take a table to another schema; write ALTER TABLE {name} RENAME TO {}",
                to.table
            )));
        }
        Ok(self.engine().database().rename_table(name, entry, &to).await?)
    }

    async fn alter_column(&self, table: &Altered, column: &str, operation: &AlterColumnOperation) -> Result<()> {
        let Altered { name, entry, .. } = table;
        let Ok(field) = table.schema.field_with_name(column) else { return Err(table.no_column(column)) };
        let database = self.engine().database();
        match operation {
            AlterColumnOperation::SetNotNull => database.set_not_null(name, entry, column).await?,
            AlterColumnOperation::DropNotNull => database.drop_not_null(name, entry, column).await?,
            AlterColumnOperation::SetDefault { value } => {
                self.default_value(value, &sql_type_name(field), field)?;
                database.set_column_default(name, entry, column, Some(sql_text(value))).await?;
            }
            AlterColumnOperation::DropDefault => database.set_column_default(name, entry, column, None).await?,
            other => {
                return Err(Error::unsupported(format!(
                    "ALTER COLUMN … {other} is not supported; add a column of the other type, fill it with UPDATE, drop the old one"
                )));
            }
        }
        Ok(())
    }

    async fn add_column(&self, table: &Altered, column: &ColumnDef, if_not_exists: bool) -> Result<()> {
        for option in &column.options {
            let is_known =
                matches!(option.option, ColumnOption::Null | ColumnOption::NotNull | ColumnOption::Default(_));
            if !is_known || option.name.is_some() {
                return Err(Error::unsupported(format!(
                    "{option} on a new column is not supported; a new column has NOT NULL and DEFAULT"
                )));
            }
        }
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let planner = Planner { state: &state, resolver: &tables };
        let schema = storage::storable_schema(&planner.columns(std::slice::from_ref(column))?)?;
        let field = schema.field(0);
        if table.has(field.name()) {
            return match if_not_exists {
                true => Ok(()),
                false => Err(taken(table, field.name())),
            };
        }
        let default = match default_of(column) {
            Some(expr) => {
                if planner.expression(expr.clone())?.is_volatile() {
                    return Err(Error::unsupported(format!(
                        "the default {expr} differs from row to row, and the rows that are there would all get the same; add the column without it and fill it with UPDATE"
                    )));
                }
                Some(NewDefault {
                    sql: sql_text(expr),
                    value: self.default_value(expr, &column.data_type.to_string(), field)?,
                })
            }
            None => None,
        };
        let fills = default.as_ref().is_some_and(|default| !default.value.is_null());
        if !field.is_nullable() && !fills && table.rows > 0 {
            return Err(Error::invalid(format!(
                "column {} is NOT NULL, and the {} rows of table \"{}\" would have no value for it; give it a DEFAULT",
                field.name(),
                table.rows,
                table.relation
            )));
        }
        Ok(self.engine().database().add_column(&table.name, &table.entry, field, default).await?)
    }

    async fn drop_column(&self, table: &Altered, column: &str, if_exists: bool) -> Result<()> {
        if !table.has(column) {
            return if if_exists { Ok(()) } else { Err(table.no_column(column)) };
        }
        if table.key.iter().any(|key| key == column) {
            return Err(Error::invalid(format!(
                "column \"{column}\" is in the primary key of table \"{}\" and cannot be dropped",
                table.relation
            )));
        }
        if table.schema.fields().len() == 1 {
            return Err(Error::invalid(format!(
                "column \"{column}\" is the only one of table \"{}\"; drop the table instead",
                table.relation
            )));
        }
        Ok(self.engine().database().drop_column(&table.name, &table.entry, column).await?)
    }

    async fn rename_column(&self, table: &Altered, from: &str, to: &str) -> Result<()> {
        let Ok(field) = table.schema.field_with_name(from) else { return Err(table.no_column(from)) };
        if table.has(to) {
            return Err(taken(table, to));
        }
        // The new name has to be one that a table can hold.
        storage::storable_schema(&Schema::new(vec![field.clone().with_name(to)]))?;
        Ok(self.engine().database().rename_column(&table.name, &table.entry, from, to).await?)
    }
}

fn taken(table: &Altered, column: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("column \"{column}\" already exists in table \"{}\"", table.relation))
}
