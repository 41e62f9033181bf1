//! `information_schema` and `system`: the catalog as tables.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::error::DataFusionError;
use planner::resolve::{CATALOG, RelationName};
use planner::sql_type::sql_type_name;
use storage::{Relation, Retention, Role, TableName};

use crate::keys::key_name;
use crate::resolver::StatementTables;
use crate::{QueryReport, Result, Session, session_settings};

const INFORMATION: &str = "information_schema";
const SYSTEM: &str = "system";
const INFORMATION_TABLES: &[&str] =
    &["schemata", "tables", "columns", "views", "table_constraints", "key_column_usage"];
const SYSTEM_TABLES: &[&str] =
    &["caches", "indexes", "queries", "segments", "settings", "slow_queries", "tables", "users", "versions"];

/// The names of all tables here.
pub(crate) fn names() -> impl Iterator<Item = RelationName> {
    let name = |schema: &str, table: &str| RelationName { schema: schema.to_owned(), table: table.to_owned() };
    let information = INFORMATION_TABLES.iter().map(move |table| name(INFORMATION, table));
    information.chain(SYSTEM_TABLES.iter().map(move |table| name(SYSTEM, table)))
}

/// Whether the name is in a schema of these tables.
pub(crate) fn may_be_own(name: &RelationName) -> bool {
    matches!(name.schema.as_str(), INFORMATION | SYSTEM)
}

/// Whether the table tells of the server that is asked rather than of the database.
pub(crate) fn is_of_server(name: &RelationName) -> bool {
    name.schema == SYSTEM
}

/// The table of a name, `None` if it is none of these.
pub(crate) async fn table(
    session: &Session,
    tables: &StatementTables,
    name: &RelationName,
) -> Result<Option<Arc<dyn TableProvider>>> {
    let batch = match (name.schema.as_str(), name.table.as_str()) {
        (INFORMATION, "schemata") => schemata(tables).await?,
        (INFORMATION, "tables") => information_tables(tables).await?,
        (INFORMATION, "columns") => columns(tables).await?,
        (INFORMATION, "views") => views(tables).await?,
        (INFORMATION, "table_constraints") => table_constraints(tables).await?,
        (INFORMATION, "key_column_usage") => key_column_usage(tables).await?,
        (SYSTEM, "caches") => caches(session)?,
        (SYSTEM, "indexes") => crate::index_tables::indexes(session, tables).await?,
        (SYSTEM, "segments") => crate::index_tables::segments(session, tables).await?,
        (SYSTEM, "queries") => queries(session, tables, session.engine().queries().running()).await?,
        (SYSTEM, "settings") => settings(session)?,
        (SYSTEM, "slow_queries") => queries(session, tables, session.engine().queries().slow()).await?,
        (SYSTEM, "tables") => system_tables(session, tables).await?,
        (SYSTEM, "users") => users(tables).await?,
        (SYSTEM, "versions") => return Ok(Some(tables.versions_table().await?)),
        _ => return Ok(None),
    };
    let table = MemTable::try_new(batch.schema(), vec![vec![batch]])?;
    Ok(Some(Arc::new(table)))
}

pub(crate) fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(DataFusionError::from)?)
}

pub(crate) fn texts<T: Into<Option<String>>>(values: impl IntoIterator<Item = T>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values.into_iter().map(Into::into)))
}

pub(crate) fn numbers(values: impl IntoIterator<Item = u64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter(values.into_iter().map(|value| i64::try_from(value).ok())))
}

fn constant(value: &str, rows: usize) -> ArrayRef {
    texts(std::iter::repeat_n(value.to_owned(), rows))
}

async fn schemata(tables: &StatementTables) -> Result<RecordBatch> {
    let mut names: Vec<String> = tables.catalog().await?.schemas.keys().cloned().collect();
    names.extend([INFORMATION.to_owned(), SYSTEM.to_owned()]);
    names.sort();
    batch(vec![("catalog_name", constant(CATALOG, names.len())), ("schema_name", texts(names))])
}

/// Every relation with its kind in the words of the SQL standard.
async fn relations(tables: &StatementTables) -> Result<Vec<(RelationName, &'static str)>> {
    let mut all = vec![];
    for (schema, entry) in &tables.catalog().await?.schemas {
        for (table, relation) in &entry.relations {
            let kind = match relation {
                Relation::Table(_) => "BASE TABLE",
                Relation::External(_) => "FOREIGN",
                Relation::View(_) => "VIEW",
            };
            all.push((RelationName { schema: schema.clone(), table: table.clone() }, kind));
        }
    }
    all.extend(names().map(|name| (name, "SYSTEM VIEW")));
    all.sort();
    Ok(all)
}

async fn information_tables(tables: &StatementTables) -> Result<RecordBatch> {
    let all = relations(tables).await?;
    batch(vec![
        ("table_catalog", constant(CATALOG, all.len())),
        ("table_schema", texts(all.iter().map(|(name, _)| name.schema.clone()))),
        ("table_name", texts(all.iter().map(|(name, _)| name.table.clone()))),
        ("table_type", texts(all.iter().map(|(_, kind)| (*kind).to_owned()))),
    ])
}

async fn views(tables: &StatementTables) -> Result<RecordBatch> {
    let (catalog, sees_all) = (tables.catalog().await?, tables.sees_all().await?);
    let mut all = vec![];
    for (schema, entry) in &catalog.schemas {
        for (table, relation) in &entry.relations {
            let Relation::View(view) = relation else { continue };
            // Who cannot read the view is not told the names in it.
            let name = RelationName { schema: schema.clone(), table: table.clone() };
            let is_told = sees_all || Box::pin(tables.fields(&name)).await.is_ok();
            all.push((name.schema, name.table, is_told.then(|| view.sql.clone())));
        }
    }
    batch(vec![
        ("table_catalog", constant(CATALOG, all.len())),
        ("table_schema", texts(all.iter().map(|row| row.0.clone()))),
        ("table_name", texts(all.iter().map(|row| row.1.clone()))),
        ("view_definition", texts(all.iter().map(|row| row.2.clone()))),
    ])
}

/// The tables that have a primary key, with its columns.
async fn keys(tables: &StatementTables) -> Result<Vec<(RelationName, Vec<String>)>> {
    let catalog = tables.catalog().await?;
    let mut keys = vec![];
    for (schema, entry) in &catalog.schemas {
        for (table, relation) in &entry.relations {
            let Relation::Table(entry) = relation else { continue };
            let key = tables.database().snapshot(entry).await?.primary_key();
            if !key.is_empty() {
                keys.push((RelationName { schema: schema.clone(), table: table.clone() }, key));
            }
        }
    }
    Ok(keys)
}

async fn table_constraints(tables: &StatementTables) -> Result<RecordBatch> {
    let keys = keys(tables).await?;
    batch(vec![
        ("constraint_catalog", constant(CATALOG, keys.len())),
        ("constraint_schema", texts(keys.iter().map(|(name, _)| name.schema.clone()))),
        ("constraint_name", texts(keys.iter().map(|(name, _)| key_name(&name.table)))),
        ("table_catalog", constant(CATALOG, keys.len())),
        ("table_schema", texts(keys.iter().map(|(name, _)| name.schema.clone()))),
        ("table_name", texts(keys.iter().map(|(name, _)| name.table.clone()))),
        ("constraint_type", constant("PRIMARY KEY", keys.len())),
        ("enforced", constant("YES", keys.len())),
    ])
}

async fn key_column_usage(tables: &StatementTables) -> Result<RecordBatch> {
    let keys = keys(tables).await?;
    let rows: Vec<(&RelationName, &String, i64)> = keys
        .iter()
        .flat_map(|(name, columns)| columns.iter().zip(1..).map(move |(column, position)| (name, column, position)))
        .collect();
    batch(vec![
        ("constraint_catalog", constant(CATALOG, rows.len())),
        ("constraint_schema", texts(rows.iter().map(|row| row.0.schema.clone()))),
        ("constraint_name", texts(rows.iter().map(|row| key_name(&row.0.table)))),
        ("table_catalog", constant(CATALOG, rows.len())),
        ("table_schema", texts(rows.iter().map(|row| row.0.schema.clone()))),
        ("table_name", texts(rows.iter().map(|row| row.0.table.clone()))),
        ("column_name", texts(rows.iter().map(|row| row.1.clone()))),
        ("ordinal_position", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2)))),
    ])
}

/// One column of one table.
struct ColumnRow {
    relation: RelationName,
    position: i64,
    name: String,
    data_type: String,
    is_nullable: bool,
    default: Option<String>,
}

async fn columns(tables: &StatementTables) -> Result<RecordBatch> {
    let catalog = tables.catalog().await?;
    let mut rows: Vec<ColumnRow> = vec![];
    for (relation, kind) in relations(tables).await? {
        if kind == "SYSTEM VIEW" {
            continue;
        }
        // A file that is gone takes its table's columns with it, not everybody's.
        let Ok(Some(fields)) = Box::pin(tables.fields(&relation)).await else { continue };
        let defaults = match catalog.relation(&TableName::new(&relation.schema, &relation.table)) {
            Some(Relation::Table(entry)) => entry.defaults.clone(),
            _ => Default::default(),
        };
        rows.extend(fields.iter().zip(1..).map(|(field, position)| ColumnRow {
            relation: relation.clone(),
            position,
            name: field.name().clone(),
            data_type: sql_type_name(field),
            is_nullable: field.is_nullable(),
            default: defaults.get(field.name()).cloned(),
        }));
    }
    batch(vec![
        ("table_catalog", constant(CATALOG, rows.len())),
        ("table_schema", texts(rows.iter().map(|row| row.relation.schema.clone()))),
        ("table_name", texts(rows.iter().map(|row| row.relation.table.clone()))),
        ("column_name", texts(rows.iter().map(|row| row.name.clone()))),
        ("ordinal_position", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.position)))),
        ("column_default", texts(rows.iter().map(|row| row.default.clone()))),
        ("is_nullable", texts(rows.iter().map(|row| if row.is_nullable { "YES" } else { "NO" }.to_owned()))),
        ("data_type", texts(rows.iter().map(|row| row.data_type.clone()))),
    ])
}

/// Admins see the statements of all, others their own.
async fn queries(session: &Session, tables: &StatementTables, mut reports: Vec<QueryReport>) -> Result<RecordBatch> {
    if !tables.sees_all().await? {
        reports.retain(|report| report.user.as_deref() == session.user());
    }
    let numbers = |of: &dyn Fn(&QueryReport) -> Option<u64>| -> ArrayRef {
        Arc::new(Int64Array::from_iter(reports.iter().map(|report| of(report).and_then(|n| i64::try_from(n).ok()))))
    };
    batch(vec![
        ("query_id", texts(reports.iter().map(|report| report.id.clone()))),
        ("user_name", texts(reports.iter().map(|report| report.user.clone()))),
        ("state", texts(reports.iter().map(|report| report.state.to_owned()))),
        (
            "started",
            Arc::new(TimestampMicrosecondArray::from_iter_values(reports.iter().map(|report| report.started_us))),
        ),
        ("elapsed_ms", numbers(&|report| u64::try_from(report.elapsed.as_millis()).ok())),
        ("rows_read", numbers(&|report| Some(report.rows_done))),
        ("rows_total", numbers(&|report| report.rows_total)),
        ("query", texts(reports.iter().map(|report| report.text.clone()))),
    ])
}

/// What is kept in memory of data and indexes, and how often it was there.
fn caches(session: &Session) -> Result<RecordBatch> {
    let database = session.engine().database();
    let (vectors, segments, (columns, selections)) =
        (database.vector_cache(), database.segment_cache(), database.row_caches());
    let rows = [
        ("columns", columns.bytes, columns.bytes_max, columns.hits, columns.misses),
        ("segments", segments.bytes, segments.bytes_max, segments.hits, segments.misses),
        ("selections", selections.bytes, selections.bytes_max, selections.hits, selections.misses),
        ("vectors", vectors.bytes, vectors.bytes_max, vectors.hits, vectors.misses),
    ];
    batch(vec![
        ("cache", texts(rows.iter().map(|row| row.0.to_owned()))),
        ("bytes", numbers(rows.iter().map(|row| row.1))),
        ("bytes_max", numbers(rows.iter().map(|row| row.2))),
        ("hits", numbers(rows.iter().map(|row| row.3))),
        ("misses", numbers(rows.iter().map(|row| row.4))),
    ])
}

fn settings(session: &Session) -> Result<RecordBatch> {
    let rows = session_settings::described(&session.settings())?;
    batch(vec![
        ("name", texts(rows.iter().map(|row| row.0.clone()))),
        ("value", texts(rows.iter().map(|row| row.1.clone()))),
        ("description", texts(rows.iter().map(|row| row.2.to_owned()))),
    ])
}

/// One row for each role of a user, and one for a user without any. What a session may not see is not in its catalog.
async fn users(tables: &StatementTables) -> Result<RecordBatch> {
    let catalog = tables.catalog().await?;
    let mut rows: Vec<(&String, bool, Option<&String>, Option<Role>)> = vec![];
    for (name, user) in &catalog.users {
        rows.extend(user.grants.iter().map(|(schema, role)| (name, user.is_admin, Some(schema), Some(*role))));
        if user.grants.is_empty() {
            rows.push((name, user.is_admin, None, None));
        }
    }
    batch(vec![
        ("name", texts(rows.iter().map(|row| row.0.clone()))),
        ("is_admin", Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.1))))),
        ("schema", texts(rows.iter().map(|row| row.2.cloned()))),
        ("role", texts(rows.iter().map(|row| row.3.map(|role| role.name().to_owned())))),
    ])
}

async fn system_tables(session: &Session, tables: &StatementTables) -> Result<RecordBatch> {
    let database = session.engine().database();
    let catalog = tables.catalog().await?;
    let (mut names, mut versions, mut rows, mut bytes, mut locations, mut created, mut retentions) =
        (vec![], vec![], vec![], vec![], vec![], vec![], vec![]);
    for (schema, entry) in &catalog.schemas {
        for (table, relation) in &entry.relations {
            let Relation::Table(entry) = relation else { continue };
            let snapshot = database.snapshot(entry).await?;
            names.push((schema.clone(), table.clone()));
            versions.push(i64::try_from(snapshot.version()).ok());
            rows.push(i64::try_from(snapshot.row_count()).ok());
            bytes.push(snapshot.bytes().and_then(|bytes| i64::try_from(bytes).ok()));
            locations.push(snapshot.location().to_owned());
            created.push(Some(entry.created_at_us));
            retentions.push(entry.retention.unwrap_or(Retention::DEFAULT).to_string());
        }
    }
    batch(vec![
        ("table_schema", texts(names.iter().map(|name| name.0.clone()))),
        ("table_name", texts(names.iter().map(|name| name.1.clone()))),
        ("version", Arc::new(Int64Array::from(versions))),
        ("rows", Arc::new(Int64Array::from(rows))),
        ("bytes", Arc::new(Int64Array::from(bytes))),
        ("created", Arc::new(TimestampMicrosecondArray::from(created))),
        ("location", texts(locations)),
        ("retention", texts(retentions)),
    ])
}
