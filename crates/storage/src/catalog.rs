//! The catalog: which schemas, tables, external tables, views and users a database has, as one immutable value, and
//! the changes that lead from one value to the next; those of users are in `users.rs`. How it is stored is in
//! `catalog/format.rs` and `catalog/log.rs`, what is taken out of older files in `catalog/history.rs`.

use std::collections::BTreeMap;
use std::fmt;

use arrow::datatypes::SchemaRef;

use crate::error::{Result, StorageError};
use crate::retention::Retention;
use crate::users::UserEntry;

pub(crate) mod format;
mod history;
pub(crate) mod log;

/// The schema that every database has from the start. It cannot be dropped.
pub const DEFAULT_SCHEMA: &str = "public";

/// The name of a table, view or external table, as stored (folding is the parser's business).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema it is in.
    pub schema: String,
    /// Its name in the schema.
    pub table: String,
}

impl TableName {
    /// The table `table` of schema `schema`.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self { schema: schema.into(), table: table.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.schema == DEFAULT_SCHEMA {
            formatter.write_str(&self.table)
        } else {
            write!(formatter, "{}.{}", self.schema, self.table)
        }
    }
}

/// Everything a database holds, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalog {
    /// Number of the catalog file this was read from; 0 for a database in which nothing was ever created.
    pub number: u64,
    /// By name.
    pub schemas: BTreeMap<String, SchemaEntry>,
    /// By name; empty in a database without users.
    pub users: BTreeMap<String, UserEntry>,
}

impl Default for Catalog {
    fn default() -> Self {
        let schemas = BTreeMap::from([(DEFAULT_SCHEMA.to_owned(), SchemaEntry::default())]);
        Self { number: 0, schemas, users: BTreeMap::new() }
    }
}

/// What a schema holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SchemaEntry {
    /// By name: tables, external tables and views share one space of names.
    pub relations: BTreeMap<String, Relation>,
}

/// Anything that can stand in FROM.
#[derive(Clone, Debug, PartialEq)]
pub enum Relation {
    /// A Lance dataset that this database owns.
    Table(TableEntry),
    /// Files that somebody else owns.
    External(ExternalTable),
    /// A stored query.
    View(ViewEntry),
}

impl Relation {
    /// What this is, for messages: "table", "external table" or "view".
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Table(_) => "table",
            Self::External(_) => "external table",
            Self::View(_) => "view",
        }
    }
}

/// A table of this database. Its columns are in the Lance dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct TableEntry {
    /// A UUID; a table that is dropped and made again gets another one.
    pub id: String,
    /// Folder of the dataset, relative to the database's root, parts joined by `/`.
    pub location: String,
    /// Microseconds since the epoch.
    pub created_at_us: i64,
    /// SQL text of the DEFAULT of each column that has one.
    pub defaults: BTreeMap<String, String>,
    /// How long versions that were replaced are kept; [`Retention::DEFAULT`] if absent.
    pub retention: Option<Retention>,
}

/// A table over foreign files.
#[derive(Clone, Debug, PartialEq)]
pub struct ExternalTable {
    /// As in STORED AS, upper case.
    pub format: String,
    /// As given by the user.
    pub location: String,
    /// As in OPTIONS (…), in order.
    pub options: Vec<(String, String)>,
    /// The declared columns; `None` if they come from the files.
    pub schema: Option<SchemaRef>,
    /// Microseconds since the epoch.
    pub created_at_us: i64,
}

/// A stored query.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewEntry {
    /// The text of the query.
    pub sql: String,
    /// Microseconds since the epoch.
    pub created_at_us: i64,
}

/// What a new table looks like.
#[derive(Clone, Debug)]
pub struct TableDefinition {
    /// Columns in order; see [`storable_schema`](crate::storable_schema) for what becomes of them.
    pub schema: SchemaRef,
    /// SQL text of the DEFAULT of each column that has one.
    pub defaults: BTreeMap<String, String>,
    /// The columns of the primary key in order; empty for a table without one. They become NOT NULL.
    pub primary_key: Vec<String>,
    /// How long versions that were replaced are kept; [`Retention::DEFAULT`] if absent.
    pub retention: Option<Retention>,
    /// The time of the statement, microseconds since the epoch.
    pub now_us: i64,
}

/// What CREATE does when the name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateMode {
    /// It fails.
    ErrorIfExists,
    /// It does nothing.
    IfNotExists,
    /// It replaces what is there, if that is of the same kind.
    OrReplace,
}

/// What DROP SCHEMA may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropSchema {
    /// A schema that is not there is fine.
    pub if_exists: bool,
    /// Everything in the schema is dropped with it.
    pub cascade: bool,
}

impl Catalog {
    /// The relation of this name.
    pub fn relation(&self, name: &TableName) -> Option<&Relation> {
        self.schemas.get(&name.schema)?.relations.get(&name.table)
    }

    /// True if the table with this id still has this name.
    pub(crate) fn holds(&self, name: &TableName, id: &str) -> bool {
        matches!(self.relation(name), Some(Relation::Table(entry)) if entry.id == id)
    }

    /// True if the table with this id is there, under whatever name.
    pub(crate) fn has_table(&self, id: &str) -> bool {
        let mut relations = self.schemas.values().flat_map(|schema| schema.relations.values());
        relations.any(|relation| matches!(relation, Relation::Table(entry) if entry.id == id))
    }

    pub(crate) fn schema(&self, name: &str) -> Result<&SchemaEntry> {
        self.schemas.get(name).ok_or_else(|| {
            StorageError::not_found(format!("schema {name} does not exist; create it with CREATE SCHEMA {name}"))
        })
    }

    /// Whether a relation may be made under `name`: `true` to go ahead, `false` if IF NOT EXISTS applies.
    pub(crate) fn may_create(&self, name: &TableName, kind: &str, mode: CreateMode) -> Result<bool> {
        let Some(there) = self.schema(&name.schema)?.relations.get(&name.table) else { return Ok(true) };
        match mode {
            CreateMode::IfNotExists => Ok(false),
            CreateMode::OrReplace if there.kind() == kind => Ok(true),
            CreateMode::OrReplace => Err(StorageError::already_exists(format!(
                "{name} is a {} and cannot be replaced by a {kind}; drop it first",
                there.kind()
            ))),
            CreateMode::ErrorIfExists => Err(StorageError::already_exists(format!(
                "{} {name} already exists; drop it first or use another name",
                there.kind()
            ))),
        }
    }

    /// This catalog with `relation` under `name`, and what was there before. `None` if IF NOT EXISTS applies.
    pub(crate) fn with_relation(
        &self,
        name: &TableName,
        relation: Relation,
        mode: CreateMode,
    ) -> Result<Option<(Catalog, Option<Relation>)>> {
        if !self.may_create(name, relation.kind(), mode)? {
            return Ok(None);
        }
        let mut next = self.clone();
        let schema = next.schemas.entry(name.schema.clone()).or_default();
        let before = schema.relations.insert(name.table.clone(), relation);
        Ok(Some((next, before)))
    }

    /// This catalog with another DEFAULT of a column, or none. `None` if the table of this id is not under the name.
    pub(crate) fn with_default(
        &self,
        name: &TableName,
        id: &str,
        column: &str,
        default: Option<&str>,
    ) -> Option<Catalog> {
        self.with_entry(name, id, |entry| {
            match default {
                Some(sql) => entry.defaults.insert(column.to_owned(), sql.to_owned()),
                None => entry.defaults.remove(column),
            };
        })
    }

    /// This catalog with another retention of a table. `None` if the table of this id is not under the name.
    pub(crate) fn with_retention(&self, name: &TableName, id: &str, retention: Option<Retention>) -> Option<Catalog> {
        self.with_entry(name, id, |entry| entry.retention = retention)
    }

    fn with_entry(&self, name: &TableName, id: &str, change: impl FnOnce(&mut TableEntry)) -> Option<Catalog> {
        let mut next = self.clone();
        let relation = next.schemas.get_mut(&name.schema)?.relations.get_mut(&name.table)?;
        let Relation::Table(entry) = relation else { return None };
        if entry.id != id {
            return None;
        }
        change(entry);
        Some(next)
    }

    /// This catalog with the table of this id under another name. `None` if it is not under `name`.
    pub(crate) fn renamed(&self, name: &TableName, id: &str, to: &TableName) -> Result<Option<Catalog>> {
        if !self.holds(name, id) {
            return Ok(None);
        }
        self.may_create(to, "table", CreateMode::ErrorIfExists)?;
        let mut next = self.clone();
        let moved = next.schemas.get_mut(&name.schema).and_then(|schema| schema.relations.remove(&name.table));
        if let (Some(moved), Some(schema)) = (moved, next.schemas.get_mut(&to.schema)) {
            schema.relations.insert(to.table.clone(), moved);
        }
        Ok(Some(next))
    }

    /// This catalog without `name`, and what was there. `None` if it was not there and `if_exists`.
    pub(crate) fn without_relation(
        &self,
        name: &TableName,
        allowed: &[&str],
        if_exists: bool,
    ) -> Result<Option<(Catalog, Relation)>> {
        let Some(there) = self.relation(name) else {
            return if if_exists {
                Ok(None)
            } else {
                Err(StorageError::not_found(format!(
                    "{} {name} does not exist; SHOW TABLES lists what there is",
                    allowed.first().copied().unwrap_or("table")
                )))
            };
        };
        if !allowed.contains(&there.kind()) {
            let word = if there.kind() == "view" { "VIEW" } else { "TABLE" };
            return Err(StorageError::invalid(format!("{name} is a {}; use DROP {word} {name}", there.kind())));
        }
        let mut next = self.clone();
        match next.schemas.get_mut(&name.schema).and_then(|schema| schema.relations.remove(&name.table)) {
            Some(removed) => Ok(Some((next, removed))),
            None => Ok(None),
        }
    }

    /// This catalog with one more schema. `None` if it is there and `if_not_exists`.
    pub(crate) fn with_schema(&self, name: &str, if_not_exists: bool) -> Result<Option<Catalog>> {
        if self.schemas.contains_key(name) {
            return if if_not_exists {
                Ok(None)
            } else {
                Err(StorageError::already_exists(format!(
                    "schema {name} already exists; use IF NOT EXISTS if that is fine"
                )))
            };
        }
        let mut next = self.clone();
        next.schemas.insert(name.to_owned(), SchemaEntry::default());
        Ok(Some(next))
    }

    /// This catalog without a schema and the roles in it, and what the schema held. `None` if it was not there and `if_exists`.
    pub(crate) fn without_schema(&self, name: &str, options: DropSchema) -> Result<Option<(Catalog, SchemaEntry)>> {
        let Some(there) = self.schemas.get(name) else {
            return if options.if_exists {
                Ok(None)
            } else {
                Err(StorageError::not_found(format!("schema {name} does not exist")))
            };
        };
        if name == DEFAULT_SCHEMA {
            return Err(StorageError::invalid(format!(
                "schema {DEFAULT_SCHEMA} cannot be dropped; drop the tables in it instead"
            )));
        }
        if !there.relations.is_empty() && !options.cascade {
            let some: Vec<&str> = there.relations.keys().take(3).map(String::as_str).collect();
            return Err(StorageError::conflict(format!(
                "schema {name} holds {} relations ({}…); drop them first or use DROP SCHEMA {name} CASCADE",
                there.relations.len(),
                some.join(", ")
            )));
        }
        let mut next = self.clone();
        for user in next.users.values_mut() {
            user.grants.remove(name);
        }
        match next.schemas.remove(name) {
            Some(removed) => Ok(Some((next, removed))),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(sql: &str) -> Relation {
        Relation::View(ViewEntry { sql: sql.into(), created_at_us: 0 })
    }

    fn table() -> Relation {
        Relation::Table(TableEntry {
            id: "i".into(),
            location: "l".into(),
            created_at_us: 0,
            defaults: BTreeMap::new(),
            retention: None,
        })
    }

    #[test]
    fn a_taken_name_is_handled_as_the_mode_says() {
        let name = TableName::new(DEFAULT_SCHEMA, "v");
        let (with, _) = Catalog::default().with_relation(&name, view("a"), CreateMode::ErrorIfExists).unwrap().unwrap();
        let again = |relation, mode| with.with_relation(&name, relation, mode);
        assert!(matches!(again(view("b"), CreateMode::ErrorIfExists), Err(StorageError::AlreadyExists(_))));
        assert!(again(view("b"), CreateMode::IfNotExists).unwrap().is_none());
        let (replaced, before) = again(view("b"), CreateMode::OrReplace).unwrap().unwrap();
        assert_eq!(before, Some(view("a")));
        assert_eq!(replaced.relation(&name), Some(&view("b")));
        assert!(matches!(again(table(), CreateMode::OrReplace), Err(StorageError::AlreadyExists(_))));
    }

    #[test]
    fn a_renamed_table_is_the_same_table_under_a_free_name() {
        let named = |table: &str| TableName::new(DEFAULT_SCHEMA, table);
        let make = |catalog: &Catalog, name: &str, relation| {
            catalog.with_relation(&named(name), relation, CreateMode::ErrorIfExists).unwrap().unwrap().0
        };
        let catalog = make(&make(&Catalog::default(), "t", table()), "v", view("a"));
        let renamed = catalog.renamed(&named("t"), "i", &named("u")).unwrap().unwrap();
        assert_eq!(renamed.relation(&named("u")), Some(&table()));
        assert!(renamed.relation(&named("t")).is_none() && renamed.has_table("i") && !renamed.has_table("j"));
        assert!(catalog.renamed(&named("t"), "j", &named("u")).unwrap().is_none());
        for taken in ["t", "v"] {
            let error = catalog.renamed(&named("t"), "i", &named(taken));
            assert!(matches!(error, Err(StorageError::AlreadyExists(_))), "{error:?}");
        }
    }

    #[test]
    fn drop_asks_for_the_right_kind() {
        let name = TableName::new(DEFAULT_SCHEMA, "v");
        let (with, _) = Catalog::default().with_relation(&name, view("a"), CreateMode::ErrorIfExists).unwrap().unwrap();
        let error = with.without_relation(&name, &["table"], false).unwrap_err().to_string();
        assert!(error.contains("DROP VIEW v"), "{error}");
        assert!(with.without_relation(&name, &["view"], false).unwrap().is_some());
        let other = TableName::new(DEFAULT_SCHEMA, "w");
        assert!(with.without_relation(&other, &["view"], true).unwrap().is_none());
        assert!(matches!(with.without_relation(&other, &["view"], false), Err(StorageError::NotFound(_))));
    }

    #[test]
    fn schemas_are_dropped_only_when_empty_or_with_cascade() {
        let catalog = Catalog::default().with_schema("s", false).unwrap().unwrap();
        assert!(catalog.with_schema("s", true).unwrap().is_none());
        assert!(catalog.with_schema("s", false).is_err());
        let name = TableName::new("s", "v");
        let (full, _) = catalog.with_relation(&name, view("a"), CreateMode::ErrorIfExists).unwrap().unwrap();
        assert!(matches!(full.without_schema("s", DropSchema::default()), Err(StorageError::Conflict(_))));
        let (left, held) = full.without_schema("s", DropSchema { if_exists: false, cascade: true }).unwrap().unwrap();
        assert!(left.relation(&name).is_none());
        assert_eq!(held.relations.len(), 1);
        assert!(full.without_schema(DEFAULT_SCHEMA, DropSchema::default()).is_err());
        let missing = TableName::new("nowhere", "v");
        assert!(catalog.with_relation(&missing, view("a"), CreateMode::ErrorIfExists).is_err());
    }
}
