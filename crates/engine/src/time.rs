//! Versions of tables: the statements about them, the tables that list them, and the guard that keeps a session in
//! the past from writing.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::sqlparser::ast::{self, SetExpr};
use operators::buffers::Needs;
use operators::changes::ChangesTable;
use planner::Planner;
use planner::as_of::{AsOf, Moment};
use planner::resolve::RelationName;
use planner::settings::QUERY_TIME_MAX;
use planner::statement::StatementKind;
use planner::time_statement::{TimeStatement, Upkeep};
use storage::{Catalog, Database, Relation, Retention, Role, TableEntry, TableName, VersionInfo};

use crate::change::retried;
use crate::definition::now_us;
use crate::resolver::StatementTables;
use crate::{Answer, Error, Progress, Result, Rows, ScalarValue, Session};

/// The moment as storage knows it.
pub(crate) fn stored(at: &AsOf) -> storage::AsOf {
    match at {
        AsOf::Version(version) => storage::AsOf::Version(*version),
        AsOf::Tag(tag) => storage::AsOf::Tag(tag.clone()),
        AsOf::Timestamp(micros) => storage::AsOf::Timestamp(*micros),
    }
}

impl Session {
    /// Tags, RESTORE, OPTIMIZE and VACUUM.
    pub(crate) async fn time(&self, statement: &TimeStatement, parameters: &[ScalarValue]) -> Result<Answer> {
        match statement {
            TimeStatement::CreateTag { tag, table, at } => {
                let (_, entry) = self.versioned(table, Role::Write).await?;
                let at = at.as_ref().map(|at| self.moment(at, parameters)).transpose()?;
                self.engine().database().create_tag(&entry, tag, at.as_ref(), now_us()).await?;
                Ok(Answer::done("CREATE TAG"))
            }
            TimeStatement::DropTag { tag, table, if_exists } => {
                let (_, entry) = self.versioned(table, Role::Write).await?;
                self.engine().database().drop_tag(&entry, tag, *if_exists).await?;
                Ok(Answer::done("DROP TAG"))
            }
            TimeStatement::Restore { table, to } => {
                let (name, entry) = self.versioned(table, Role::Write).await?;
                let to = self.moment(to, parameters)?;
                retried(&name.to_string(), async || {
                    Ok(self.engine().database().restore(&name, &entry, &to, now_us()).await?)
                })
                .await?;
                Ok(Answer::done("RESTORE"))
            }
            TimeStatement::Optimize(upkeep) => self.optimize(upkeep).await,
            TimeStatement::Vacuum(upkeep) => self.vacuum(upkeep).await,
        }
    }

    /// A table of this database, by its name in a statement about its versions.
    async fn versioned(&self, table: &ast::ObjectName, role: Role) -> Result<(TableName, TableEntry)> {
        StatementTables::new(self.clone(), self.state()).versioned(&RelationName::of_sql(table)?, role).await
    }

    fn moment(&self, moment: &Moment, parameters: &[ScalarValue]) -> Result<storage::AsOf> {
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let at = Planner { state: &state, resolver: &tables }.moment(moment, parameters)?;
        Ok(stored(&at))
    }

    async fn optimize(&self, upkeep: &Upkeep) -> Result<Answer> {
        let (name, entry) = self.versioned(&upkeep.table, Role::Write).await?;
        let database = self.engine().database();
        let bytes = if upkeep.is_dry_run { 0 } else { database.rewrite_bytes() };
        let _claim = crate::run::claim(&self.state(), &Needs::of_bytes(bytes)).await?;
        let report = database.optimize(&name, &entry, upkeep.is_dry_run).await?;
        figures(vec![
            ("fragments_before", Some(report.fragments_before)),
            ("fragments_after", Some(report.fragments_after)),
            ("version", report.version),
        ])
    }

    async fn vacuum(&self, upkeep: &Upkeep) -> Result<Answer> {
        let (_, entry) = self.versioned(&upkeep.table, Role::Admin).await?;
        let keep_since_us = entry.retention.unwrap_or(Retention::DEFAULT).keep_since_us(now_us(), QUERY_TIME_MAX);
        let report = self.engine().database().vacuum(&entry, keep_since_us, upkeep.is_dry_run).await?;
        figures(vec![
            ("versions_removed", Some(report.versions_removed)),
            ("files_removed", Some(report.files_removed)),
            ("bytes_removed", Some(report.bytes_removed)),
            ("oldest_kept", Some(report.oldest_kept)),
        ])
    }

    /// # Errors
    /// A statement that changes something while the session reads the past.
    pub(crate) fn refuse_in_past(&self, kind: &StatementKind) -> Result<()> {
        if is_reading(kind) { Ok(()) } else { self.refuse_writing_in_past() }
    }

    /// # Errors
    /// The session reads the past.
    pub(crate) fn refuse_writing_in_past(&self) -> Result<()> {
        let settings = self.settings();
        if settings.moment().is_none() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "nothing is written while as_of is '{}': the session reads the past; RESET as_of first",
            settings.as_of
        )))
    }
}

/// True if the statement changes nothing that is stored.
pub(crate) fn is_reading(kind: &StatementKind) -> bool {
    use ast::Statement as Sql;
    match kind {
        StatementKind::Sql(sql) => match sql.as_ref() {
            Sql::Query(query) => !writes(&query.body),
            // What is prepared is looked at when it is executed.
            Sql::Set(_)
            | Sql::ShowVariable { .. }
            | Sql::ShowTables { .. }
            | Sql::ShowColumns { .. }
            | Sql::ShowSchemas { .. }
            | Sql::ExplainTable { .. }
            | Sql::Prepare { .. }
            | Sql::Execute { .. }
            | Sql::Deallocate { .. } => true,
            _ => false,
        },
        StatementKind::Explain(explain) => is_reading(&explain.statement),
        StatementKind::CopyTo(_) | StatementKind::Reset(_) | StatementKind::Check(_) | StatementKind::Kill(_) => true,
        StatementKind::Time(time) => match time.as_ref() {
            TimeStatement::Optimize(upkeep) | TimeStatement::Vacuum(upkeep) => upkeep.is_dry_run,
            _ => false,
        },
        StatementKind::Substrait(_) => true,
        StatementKind::CreateExternal(_)
        | StatementKind::CopyFrom(_)
        | StatementKind::Index(_)
        | StatementKind::User(_) => false,
    }
}

/// `WITH … INSERT` and its like are queries to the parser.
fn writes(body: &SetExpr) -> bool {
    match body {
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => true,
        SetExpr::Query(query) => writes(&query.body),
        SetExpr::SetOperation { left, right, .. } => writes(left) || writes(right),
        _ => false,
    }
}

/// One row of counts.
fn figures(columns: Vec<(&str, Option<u64>)>) -> Result<Answer> {
    let arrays = columns.into_iter().map(|(name, count)| (name, counts([count]))).collect();
    let batch = batch(arrays)?;
    let stream = RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)]));
    Ok(Answer::Rows(Rows::new(Box::pin(stream), Progress::new(), None, None)))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(DataFusionError::from)?)
}

fn counts(values: impl IntoIterator<Item = Option<u64>>) -> ArrayRef {
    let values = values.into_iter().map(|value| value.and_then(|value| i64::try_from(value).ok()));
    Arc::new(Int64Array::from_iter(values))
}

impl StatementTables {
    /// The versions of a table, oldest first.
    pub(crate) async fn history_table(&self, name: &RelationName) -> Result<Arc<dyn TableProvider>> {
        self.note_local();
        let (_, entry) = self.versioned(name, Role::Read).await?;
        let versions = self.database().history(&entry).await?;
        let batch = batch(version_columns(&versions))?;
        Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
    }

    /// The rows that differ between two moments; the newest where one is absent.
    pub(crate) async fn changes_table(
        &self,
        name: &RelationName,
        from: Option<&AsOf>,
        to: Option<&AsOf>,
    ) -> Result<Arc<dyn TableProvider>> {
        self.note_local();
        let (_, entry) = self.versioned(name, Role::Read).await?;
        let (from, to) = (self.version_at(&entry, from).await?, self.version_at(&entry, to).await?);
        if from > to {
            return Err(Error::invalid(format!(
                "table_changes('{name}', {from}, {to}) would go back in time; name the older version first"
            )));
        }
        let changes = self.database().changes(&entry, from, to).await?;
        let key = changes.new.primary_key();
        let label = format!("table_changes('{name}', {from}, {to})");
        Ok(Arc::new(ChangesTable::try_new(label, changes, key)?))
    }

    async fn version_at(&self, entry: &TableEntry, at: Option<&AsOf>) -> Result<u64> {
        match at {
            // Whether it exists is seen when the changes are looked up.
            Some(AsOf::Version(version)) => Ok(*version),
            Some(at) => Ok(self.database().snapshot_at(entry, &stored(at), now_us()).await?.version()),
            None => Ok(self.database().snapshot(entry).await?.version()),
        }
    }

    /// `system.versions`: the versions of all tables.
    pub(crate) async fn versions_table(&self) -> Result<Arc<dyn TableProvider>> {
        let (database, catalog) = (self.database().clone(), self.catalog().await?);
        Ok(Arc::new(VersionsTable { database, catalog }))
    }
}

/// `system.versions`. The histories are read when rows are asked for, not where only the columns are.
struct VersionsTable {
    database: Database,
    catalog: Arc<Catalog>,
}

impl VersionsTable {
    async fn rows(&self) -> Result<RecordBatch> {
        let (mut schemas, mut tables, mut versions) = (vec![], vec![], vec![]);
        for (schema, relations) in &self.catalog.schemas {
            for (table, relation) in &relations.relations {
                let Relation::Table(entry) = relation else { continue };
                let history = self.database.history(entry).await?;
                schemas.extend(std::iter::repeat_n(schema.as_str(), history.len()));
                tables.extend(std::iter::repeat_n(table.as_str(), history.len()));
                versions.extend(history);
            }
        }
        all_versions(schemas, tables, &versions)
    }
}

fn all_versions(schemas: Vec<&str>, tables: Vec<&str>, versions: &[VersionInfo]) -> Result<RecordBatch> {
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("table_schema", Arc::new(StringArray::from(schemas)) as ArrayRef),
        ("table_name", Arc::new(StringArray::from(tables))),
    ];
    columns.extend(version_columns(versions));
    batch(columns)
}

impl fmt::Debug for VersionsTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("system.versions")
    }
}

#[async_trait]
impl TableProvider for VersionsTable {
    fn schema(&self) -> SchemaRef {
        // Arrays of their types always make a batch.
        all_versions(vec![], vec![], &[]).map_or_else(|_| Arc::new(Schema::empty()), |batch| batch.schema())
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn datafusion::catalog::Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        let rows = self.rows().await.map_err(|error| DataFusionError::External(Box::new(error)))?;
        MemTable::try_new(rows.schema(), vec![vec![rows]])?.scan(state, projection, filters, limit).await
    }
}

fn version_columns(versions: &[VersionInfo]) -> Vec<(&'static str, ArrayRef)> {
    let mut tags = ListBuilder::new(StringBuilder::new());
    for version in versions {
        for tag in &version.tags {
            tags.values().append_value(tag);
        }
        tags.append(true);
    }
    let committed = versions.iter().map(|version| version.committed_at_us);
    let operations = versions.iter().map(|version| version.operation.as_str());
    vec![
        ("version", counts(versions.iter().map(|version| Some(version.version)))),
        ("committed_at", Arc::new(TimestampMicrosecondArray::from_iter_values(committed))),
        ("operation", Arc::new(StringArray::from_iter_values(operations))),
        ("rows", counts(versions.iter().map(|version| Some(version.rows)))),
        ("tags", Arc::new(tags.finish())),
    ]
}
