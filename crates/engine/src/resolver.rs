//! The tables of one statement: each name is looked up once, and each table is one snapshot in it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use futures::FutureExt;
use operators::table::{SnapshotTable, WriteTarget};
use planner::as_of::AsOf;
use planner::resolve::{RelationName, Resolved, TableResolver};
use planner::settings::Settings;
use planner::{Planner, statement::StatementKind};
use storage::{Catalog, Database, Relation, Role, Snapshot, TableEntry, TableName};
use tokio::sync::{Mutex, OnceCell};

use crate::pins::{PinnedRelation, Reads};
use crate::session::TableWords;
use crate::{Error, ErrorKind, Session, catalog_tables, files, pins};

/// Finds the tables of one statement.
pub(crate) struct StatementTables {
    session: Session,
    state: Arc<SessionState>,
    catalog: OnceCell<Arc<Catalog>>,
    /// By name and the moment that the statement names.
    pinned: Mutex<HashMap<(RelationName, Option<AsOf>), Resolved>>,
    reads: Reads,
}

impl StatementTables {
    pub(crate) fn new(session: Session, state: Arc<SessionState>) -> Self {
        Self { session, state, catalog: OnceCell::new(), pinned: Mutex::default(), reads: Reads::default() }
    }

    /// What the statement reads, if that can be told.
    pub(crate) fn reads(&self) -> Option<Vec<PinnedRelation>> {
        self.reads.told()
    }

    /// The statement reads what only this server can tell.
    pub(crate) fn note_local(&self) {
        self.reads.note_local();
    }

    /// The catalog as the statement and its user see it.
    pub(crate) async fn catalog(&self) -> crate::Result<Arc<Catalog>> {
        let catalog = self.catalog.get_or_try_init(|| self.session.catalog()).await?;
        Ok(Arc::clone(catalog))
    }

    /// A table of the database, to be written to or altered.
    pub(crate) async fn entry(&self, name: &RelationName, role: Role) -> crate::Result<(TableName, TableEntry)> {
        let table = TableName::new(&name.schema, &name.table);
        let catalog = self.catalog().await?;
        match catalog.relation(&table) {
            Some(Relation::Table(entry)) => {
                self.session.require(&catalog, &name.schema, role)?;
                Ok((table, entry.clone()))
            }
            Some(other) => Err(Error::unsupported(format!(
                "\"{name}\" is {} and cannot be written to; load it with CREATE TABLE … AS SELECT",
                with_article(other.kind())
            ))),
            None => Err(self.no_table(name).await),
        }
    }

    /// A table of the database whose versions are asked for or changed.
    pub(crate) async fn versioned(&self, name: &RelationName, role: Role) -> crate::Result<(TableName, TableEntry)> {
        let table = TableName::new(&name.schema, &name.table);
        let catalog = self.catalog().await?;
        match catalog.relation(&table) {
            Some(Relation::Table(entry)) => {
                self.session.require(&catalog, &name.schema, role)?;
                Ok((table, entry.clone()))
            }
            Some(other) => Err(Error::unsupported(format!(
                "\"{name}\" is {} and has no versions of its own here; name a table of this database",
                with_article(other.kind())
            ))),
            None if catalog_tables::names().any(|own| own == *name) => Err(Error::unsupported(format!(
                "\"{name}\" is a system table and has no versions; name a table of this database"
            ))),
            None => Err(self.no_table(name).await),
        }
    }

    /// True if nothing of the catalog is hidden from the statement's user.
    pub(crate) async fn sees_all(&self) -> crate::Result<bool> {
        Ok(self.session.sees_all(self.catalog().await?.as_ref()))
    }

    pub(crate) fn database(&self) -> &Database {
        self.session.engine().database()
    }

    /// # Errors
    /// A name that stands for nothing.
    pub(crate) async fn check_exists(&self, name: &RelationName) -> crate::Result<()> {
        match self.resolve(name, None).await? {
            Some(_) => Ok(()),
            None => Err(self.no_table(name).await),
        }
    }

    /// True if the name stands for nothing.
    pub(crate) async fn is_missing(&self, name: &RelationName) -> crate::Result<bool> {
        Ok(self.catalog().await?.relation(&TableName::new(&name.schema, &name.table)).is_none())
    }

    async fn no_table(&self, name: &RelationName) -> Error {
        let names: Vec<String> = self.names().await.unwrap_or_default().iter().map(ToString::to_string).collect();
        let meant = planner::resolve::nearest(&name.to_string(), names.iter().map(String::as_str));
        let hint = meant.map(|meant| format!("did you mean \"{meant}\"?"));
        Error { hint, ..Error::new(ErrorKind::NotFound, format!("there is no table \"{name}\"")) }
    }

    async fn look_up(&self, name: &RelationName, at: Option<&AsOf>) -> Result<Option<Resolved>> {
        self.found(name, at).await.map_err(boxed)
    }

    async fn found(&self, name: &RelationName, at: Option<&AsOf>) -> crate::Result<Option<Resolved>> {
        if catalog_tables::may_be_own(name)
            && let Some(table) = self.catalog_table(name).await?
        {
            return match at {
                None => Ok(Some(Resolved::Table(table))),
                Some(at) => Err(Error::unsupported(format!(
                    "\"{name}\" is a system table and cannot be read as of {at}; it shows what is now"
                ))),
            };
        }
        // What the session says reaches the tables below; a name in a statement goes before it.
        let moment = match at {
            Some(at) => Some(at.clone()),
            None => Settings::of(self.state.config_options()).moment().map(AsOf::Timestamp),
        };
        let catalog = self.catalog().await?;
        let note = |id: String, version| {
            let (schema, name) = (name.schema.clone(), name.table.clone());
            self.reads.note(PinnedRelation { schema, name, at: pins::told(at), id, version });
        };
        let replay = self.session.replay_of();
        let resolved = match catalog.relation(&TableName::new(&name.schema, &name.table)) {
            Some(Relation::Table(entry)) => {
                let version = match replay {
                    Some(replay) => replay.pinned(name, at, &entry.id)?.version.map(AsOf::Version),
                    None => None,
                };
                let table = self.table(name, entry, version.as_ref().or(moment.as_ref())).await?;
                note(entry.id.clone(), Some(table.snapshot.version()));
                Resolved::Table(table.into_provider())
            }
            Some(Relation::External(external)) => {
                let id = external.created_at_us.to_string();
                if let Some(replay) = replay {
                    replay.pinned(name, at, &id)?;
                }
                note(id, None);
                let place = files::Place { session: &self.session, state: &self.state, at: moment.as_ref() };
                Resolved::Table(files::external_table(place, &name.to_string(), external).await?)
            }
            Some(Relation::View(view)) => {
                let id = view.created_at_us.to_string();
                if let Some(replay) = replay {
                    replay.pinned(name, at, &id)?;
                }
                note(id, None);
                Resolved::View(view.sql.clone())
            }
            None if name.schema == planner::resolve::SCHEMA && files::is_file_name(&name.table) => {
                let place = files::Place { session: &self.session, state: &self.state, at: moment.as_ref() };
                Resolved::Table(files::file_table(place, &name.table).await?)
            }
            None => return Ok(None),
        };
        Ok(Some(resolved))
    }

    /// `system` tells of this server. `information_schema` looks at everything there is, as it is now: none of that is what
    /// the statement reads.
    async fn catalog_table(&self, name: &RelationName) -> crate::Result<Option<Arc<dyn TableProvider>>> {
        if catalog_tables::is_of_server(name) {
            self.note_local();
            return catalog_tables::table(&self.session, self, name).await;
        }
        let now = Self::new(self.session.without_replay(), Arc::clone(&self.state));
        catalog_tables::table(&now.session, &now, name).boxed().await
    }

    async fn table(&self, name: &RelationName, entry: &TableEntry, at: Option<&AsOf>) -> crate::Result<SnapshotTable> {
        let database = self.database();
        let snapshot = match at {
            Some(at) => database.snapshot_at(entry, &crate::time::stored(at), crate::definition::now_us()).await?,
            None => database.snapshot(entry).await?,
        };
        // The past is not written to.
        self.table_of(name, entry, snapshot, at.is_none())
    }

    /// A table of the database at a snapshot.
    pub(crate) fn table_of(
        &self,
        name: &RelationName,
        entry: &TableEntry,
        snapshot: Snapshot,
        is_newest: bool,
    ) -> crate::Result<SnapshotTable> {
        let database = self.database().clone();
        let mut defaults = HashMap::new();
        for (column, text) in &entry.defaults {
            defaults.insert(column.clone(), self.default(text)?);
        }
        let target = WriteTarget { database, name: TableName::new(&name.schema, &name.table), entry: entry.clone() };
        let target = is_newest.then_some(target);
        Ok(SnapshotTable::new(name.to_string(), snapshot, defaults, target))
    }

    /// Decides what a name stands for in this statement, before the statement is planned.
    pub(crate) async fn pin(&self, name: RelationName, table: Arc<dyn TableProvider>) {
        self.pinned.lock().await.insert((name, None), Resolved::Table(table));
    }

    /// The expression of a column's DEFAULT from its text in the catalog.
    pub(crate) fn default(&self, text: &str) -> crate::Result<Expr> {
        let expr = default_ast(text)?;
        Ok(Planner { state: &self.state, resolver: self }.expression(expr)?)
    }

    /// All relations with their columns.
    pub(crate) async fn words(&self) -> crate::Result<Vec<TableWords>> {
        let mut words = vec![];
        for name in self.names().await? {
            // A table that cannot be opened has no columns to offer; the statement that uses it will say why.
            let fields = match self.fields(&name).await {
                Ok(Some(fields)) => fields,
                _ => vec![],
            };
            words.push(TableWords {
                schema: name.schema.clone(),
                table: name.table.clone(),
                columns: fields.iter().map(|field| field.name().clone()).collect(),
            });
        }
        Ok(words)
    }

    /// The columns of a table or view, `None` if there is none of this name.
    pub(crate) async fn fields(&self, name: &RelationName) -> crate::Result<Option<Vec<arrow::datatypes::FieldRef>>> {
        match self.resolve(name, None).await? {
            Some(Resolved::Table(table)) => Ok(Some(table.schema().fields().to_vec())),
            Some(Resolved::View(sql)) => {
                let mut statements = planner::statement::parse(&sql)?;
                let Some(StatementKind::Sql(statement)) = statements.pop().map(|statement| statement.kind) else {
                    return Ok(None);
                };
                let datafusion::sql::sqlparser::ast::Statement::Query(query) = *statement else { return Ok(None) };
                let plan = Planner { state: &self.state, resolver: self }.query(*query, &[]).await?;
                Ok(Some(plan.schema().fields().to_vec()))
            }
            None => Ok(None),
        }
    }
}

/// The parsed text of a DEFAULT.
pub(crate) fn default_ast(text: &str) -> crate::Result<datafusion::sql::sqlparser::ast::Expr> {
    let mut parser = datafusion::sql::sqlparser::parser::Parser::new(&planner::dialect::SagittaDialect)
        .try_with_sql(text)
        .map_err(DataFusionError::from)?;
    Ok(parser.parse_expr().map_err(DataFusionError::from)?)
}

fn with_article(kind: &str) -> String {
    if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { format!("an {kind}") } else { format!("a {kind}") }
}

fn boxed(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl fmt::Debug for StatementTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatementTables")
    }
}

#[async_trait]
impl TableResolver for StatementTables {
    async fn resolve(&self, name: &RelationName, at: Option<&AsOf>) -> Result<Option<Resolved>> {
        let key = (name.clone(), at.cloned());
        if let Some(resolved) = self.pinned.lock().await.get(&key) {
            return Ok(Some(resolved.clone()));
        }
        // Not under the lock: a view's columns resolve further names.
        let Some(resolved) = self.look_up(name, at).await? else { return Ok(None) };
        Ok(Some(self.pinned.lock().await.entry(key).or_insert(resolved).clone()))
    }

    async fn history(&self, name: &RelationName) -> Result<Option<Arc<dyn TableProvider>>> {
        self.history_table(name).await.map(Some).map_err(boxed)
    }

    async fn changes(
        &self,
        name: &RelationName,
        from: Option<&AsOf>,
        to: Option<&AsOf>,
    ) -> Result<Option<Arc<dyn TableProvider>>> {
        self.changes_table(name, from, to).await.map(Some).map_err(boxed)
    }

    async fn names(&self) -> Result<Vec<RelationName>> {
        let catalog = self.catalog().await.map_err(boxed)?;
        let mut names = vec![];
        for (schema, entry) in &catalog.schemas {
            names.extend(
                entry.relations.keys().map(|table| RelationName { schema: schema.clone(), table: table.clone() }),
            );
        }
        names.extend(catalog_tables::names());
        Ok(names)
    }

    fn error_in_view(&self, view: &RelationName, error: DataFusionError) -> DataFusionError {
        // A user who sees the view may see less than the one who wrote it: what it names stays untold.
        let Some(user) = self.catalog.get().filter(|catalog| !self.session.sees_all(catalog)).and(self.session.user())
        else {
            return error;
        };
        match Error::from(error) {
            error if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Forbidden) => boxed(Error::new(
                ErrorKind::Forbidden,
                format!(
                    "view \"{view}\" reads something that does not exist or that user {user} has no right to read; a view \
                     has no rights of its own, ask for READ on the schemas of what it reads"
                ),
            )),
            error => boxed(error),
        }
    }
}
