//! The catalog for programs: schemas, relations, their columns and keys. No data is read.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use planner::resolve::RelationName;
use storage::{Relation, TableName};

use crate::resolver::StatementTables;
use crate::{Result, Session, catalog_tables};

/// What a name in FROM stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RelationKind {
    /// A table of the database.
    Table,
    /// A stored query.
    View,
    /// Foreign files.
    External,
    /// A table of `information_schema` or `system`.
    System,
}

/// One table or view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationInfo {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
}

/// The catalog as one statement would see it.
pub struct Objects {
    tables: StatementTables,
}

impl Session {
    /// The catalog of this moment.
    pub fn objects(&self) -> Objects {
        Objects { tables: StatementTables::new(self.clone(), self.state()) }
    }
}

impl Objects {
    /// The names of all schemas, in order.
    ///
    /// # Errors
    /// A catalog that cannot be read.
    pub async fn schemas(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.tables.catalog().await?.schemas.keys().cloned().collect();
        names.extend(catalog_tables::names().map(|name| name.schema));
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// All relations, by schema and name.
    ///
    /// # Errors
    /// A catalog that cannot be read.
    pub async fn relations(&self) -> Result<Vec<RelationInfo>> {
        let catalog = self.tables.catalog().await?;
        let mut all: Vec<RelationInfo> = catalog_tables::names()
            .map(|name| RelationInfo { schema: name.schema, name: name.table, kind: RelationKind::System })
            .collect();
        for (schema, entry) in &catalog.schemas {
            all.extend(entry.relations.iter().map(|(name, relation)| RelationInfo {
                schema: schema.clone(),
                name: name.clone(),
                kind: match relation {
                    Relation::Table(_) => RelationKind::Table,
                    Relation::External(_) => RelationKind::External,
                    Relation::View(_) => RelationKind::View,
                },
            }));
        }
        all.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
        Ok(all)
    }

    /// The columns of a relation; `None` if there is none of this name.
    ///
    /// # Errors
    /// A table that cannot be opened, a view that cannot be planned.
    pub async fn columns(&self, schema: &str, name: &str) -> Result<Option<SchemaRef>> {
        let name = RelationName { schema: schema.to_owned(), table: name.to_owned() };
        let fields = Box::pin(self.tables.fields(&name)).await?;
        Ok(fields.map(|fields| Arc::new(Schema::new(fields))))
    }

    /// The columns of a table's primary key in order; none for a table without one, and for what is no table.
    ///
    /// # Errors
    /// A table that cannot be opened.
    pub async fn primary_key(&self, schema: &str, name: &str) -> Result<Vec<String>> {
        match self.tables.catalog().await?.relation(&TableName::new(schema, name)) {
            Some(Relation::Table(entry)) => Ok(self.tables.database().snapshot(entry).await?.primary_key()),
            _ => Ok(vec![]),
        }
    }

    /// The name of a table's primary key.
    pub fn primary_key_name(table: &str) -> String {
        crate::keys::key_name(table)
    }
}

/// The SQL name of a column's type, such as `BIGINT` or `VECTOR(384)`.
pub fn sql_type_name(field: &arrow::datatypes::Field) -> String {
    planner::sql_type::sql_type_name(field)
}

/// The catalog that every table is in.
pub const CATALOG: &str = planner::resolve::CATALOG;
/// The schema of names that name none.
pub const DEFAULT_SCHEMA: &str = planner::resolve::SCHEMA;
