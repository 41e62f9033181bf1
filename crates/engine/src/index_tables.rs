//! `system.indexes` and `system.segments`: which indexes there are, what they cover at the newest version, what they take.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use planner::index_spec::IndexSpec;
use storage::{Coverage, Relation, ScalarIndex};

use crate::catalog_tables::{batch, texts};
use crate::resolver::StatementTables;
use crate::{Result, Session};

/// An index of vectors, and what it covers.
struct IndexRow {
    schema: String,
    table: String,
    coverage: Arc<Coverage>,
    /// Bytes of the files of all its segments, and how many those are.
    bytes: u64,
    segments: usize,
}

async fn rows(session: &Session, tables: &StatementTables) -> Result<Vec<IndexRow>> {
    let database = session.engine().database();
    let mut rows = vec![];
    for (schema, entry) in &tables.catalog().await?.schemas {
        for (table, relation) in &entry.relations {
            let Relation::Table(entry) = relation else { continue };
            let snapshot = database.snapshot(entry).await?;
            let known = snapshot.indexes().await;
            for index in &known.indexes {
                // An index on a column that is gone has no coverage, and is of no use.
                let Ok(coverage) = snapshot.index_coverage(&index.name).await else { continue };
                let segments: Vec<_> = known.segments_of(index).collect();
                rows.push(IndexRow {
                    schema: schema.clone(),
                    table: table.clone(),
                    coverage,
                    bytes: segments.iter().map(|segment| segment.bytes).sum(),
                    segments: segments.len(),
                });
            }
        }
    }
    Ok(rows)
}

fn numbers(values: impl IntoIterator<Item = u64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter(values.into_iter().map(|value| i64::try_from(value).ok())))
}

/// One row of `system.indexes`.
struct Listed {
    schema: String,
    table: String,
    name: String,
    column: String,
    method: Option<String>,
    metric: Option<String>,
    options: Option<String>,
    /// How much of a build is done.
    progress: Option<f64>,
    rows_covered: u64,
    rows_uncovered: u64,
    segments: u64,
    bytes: u64,
    created_at_us: Option<i64>,
    problems: Option<String>,
}

impl Listed {
    fn of_vectors(row: IndexRow, progress: Option<f64>) -> Self {
        let spec = IndexSpec::of_text(&row.coverage.index.options);
        Self {
            schema: row.schema,
            table: row.table,
            name: row.coverage.index.name.clone(),
            column: row.coverage.column.clone(),
            method: spec.as_ref().map(|spec| spec.method.clone()),
            metric: spec.as_ref().map(|spec| spec.metric.name().to_owned()),
            options: Some(row.coverage.index.options.clone()),
            progress,
            rows_covered: row.coverage.segments.iter().map(|segment| segment.live_rows() as u64).sum(),
            rows_uncovered: row.coverage.uncovered_rows,
            segments: row.segments as u64,
            bytes: row.bytes,
            created_at_us: Some(row.coverage.index.created_at_us),
            problems: Some(row.coverage.problems.join("; ")).filter(|text| !text.is_empty()),
        }
    }

    fn of_scalar(schema: &str, table: &str, index: ScalarIndex) -> Self {
        Self {
            schema: schema.to_owned(),
            table: table.to_owned(),
            name: index.name,
            column: index.column,
            method: Some(index.method),
            metric: None,
            options: None,
            progress: None,
            rows_covered: index.rows_covered,
            rows_uncovered: index.rows_uncovered,
            segments: index.segments as u64,
            bytes: index.bytes,
            created_at_us: index.created_at_us,
            problems: None,
        }
    }

    fn state(&self) -> &'static str {
        match self.progress {
            Some(_) => "building",
            None if self.rows_uncovered > 0 => "behind",
            None => "ready",
        }
    }
}

/// Those on columns that hold no vectors.
async fn scalar_rows(session: &Session, tables: &StatementTables) -> Result<Vec<Listed>> {
    let mut rows = vec![];
    for (schema, entry) in &tables.catalog().await?.schemas {
        for (table, relation) in &entry.relations {
            let Relation::Table(entry) = relation else { continue };
            let snapshot = session.engine().database().snapshot(entry).await?;
            let indexes = snapshot.scalar_indexes().await?;
            rows.extend(indexes.into_iter().map(|index| Listed::of_scalar(schema, table, index)));
        }
    }
    Ok(rows)
}

/// One row for each index.
pub(crate) async fn indexes(session: &Session, tables: &StatementTables) -> Result<RecordBatch> {
    let progress = |row: &IndexRow| session.engine().builds().progress(&row.coverage.index.id);
    let of_vectors = rows(session, tables).await?.into_iter().map(|row| {
        let progress = progress(&row);
        Listed::of_vectors(row, progress)
    });
    let mut all: Vec<Listed> = of_vectors.collect();
    all.extend(scalar_rows(session, tables).await?);
    all.sort_by(|one, other| (&one.schema, &one.table).cmp(&(&other.schema, &other.table)));
    batch(vec![
        ("table_schema", texts(all.iter().map(|row| row.schema.clone()))),
        ("table_name", texts(all.iter().map(|row| row.table.clone()))),
        ("index_name", texts(all.iter().map(|row| row.name.clone()))),
        ("column_name", texts(all.iter().map(|row| row.column.clone()))),
        ("method", texts(all.iter().map(|row| row.method.clone()))),
        ("metric", texts(all.iter().map(|row| row.metric.clone()))),
        ("options", texts(all.iter().map(|row| row.options.clone()))),
        ("state", texts(all.iter().map(|row| row.state().to_owned()))),
        ("progress", Arc::new(Float64Array::from_iter(all.iter().map(|row| row.progress)))),
        ("rows_covered", numbers(all.iter().map(|row| row.rows_covered))),
        ("rows_uncovered", numbers(all.iter().map(|row| row.rows_uncovered))),
        ("segments", numbers(all.iter().map(|row| row.segments))),
        ("bytes", numbers(all.iter().map(|row| row.bytes))),
        ("created", Arc::new(TimestampMicrosecondArray::from_iter(all.iter().map(|row| row.created_at_us)))),
        ("problems", texts(all.iter().map(|row| row.problems.clone()))),
    ])
}

/// One row for each segment that has a live row.
pub(crate) async fn segments(session: &Session, tables: &StatementTables) -> Result<RecordBatch> {
    let rows = rows(session, tables).await?;
    let all: Vec<_> =
        rows.iter().flat_map(|row| row.coverage.segments.iter().map(move |segment| (row, segment))).collect();
    batch(vec![
        ("table_schema", texts(all.iter().map(|(row, _)| row.schema.clone()))),
        ("table_name", texts(all.iter().map(|(row, _)| row.table.clone()))),
        ("index_name", texts(all.iter().map(|(row, _)| row.coverage.index.name.clone()))),
        ("segment_id", texts(all.iter().map(|(_, segment)| segment.entry.id.clone()))),
        ("family", texts(all.iter().map(|(_, segment)| segment.entry.family.clone()))),
        ("files", numbers(all.iter().map(|(_, segment)| segment.entry.units.len() as u64))),
        ("rows", numbers(all.iter().map(|(_, segment)| segment.entry.rows))),
        ("rows_live", numbers(all.iter().map(|(_, segment)| segment.live_rows() as u64))),
        ("bytes", numbers(all.iter().map(|(_, segment)| segment.entry.bytes))),
        (
            "built",
            Arc::new(TimestampMicrosecondArray::from_iter_values(
                all.iter().map(|(_, segment)| segment.entry.built_at_us),
            )),
        ),
    ])
}
