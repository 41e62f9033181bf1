//! `system.indexes` and `system.segments`: which indexes there are, what they cover at the newest version, what they take.

use std::sync::Arc;

use arrow::array::{Float64Array, RecordBatch, TimestampMicrosecondArray};
use planner::index_spec::IndexSpec;
use storage::{Coverage, CoveredSegment, IndexDefinition, Relation, ScalarIndex};

use crate::catalog_tables::{batch, numbers, texts};
use crate::resolver::StatementTables;
use crate::{Result, Session};

/// An index of vectors, and what it covers.
struct IndexRow {
    schema: String,
    table: String,
    index: IndexDefinition,
    /// Nothing if its column is gone.
    coverage: Option<Arc<Coverage>>,
    /// Bytes of the files of all its segments, and how many those are.
    bytes: u64,
    segments: usize,
}

impl IndexRow {
    /// Segments that have a live row.
    fn segments_live(&self) -> impl Iterator<Item = &CoveredSegment> {
        self.coverage.iter().flat_map(|coverage| &coverage.segments).map(AsRef::as_ref)
    }

    fn rows_covered(&self) -> u64 {
        self.segments_live().map(|segment| segment.live_rows() as u64).sum()
    }
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
                let coverage = snapshot.index_coverage(&index.name).await.ok();
                let segments: Vec<_> = known.segments_of(index).collect();
                rows.push(IndexRow {
                    schema: schema.clone(),
                    table: table.clone(),
                    index: index.clone(),
                    coverage,
                    bytes: segments.iter().map(|segment| segment.bytes).sum(),
                    segments: segments.len(),
                });
            }
        }
    }
    Ok(rows)
}

/// One row of `system.indexes`.
struct Listed {
    schema: String,
    table: String,
    name: String,
    /// None if it is gone.
    column: Option<String>,
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
        let spec = IndexSpec::of_text(&row.index.options);
        let problems = match &row.coverage {
            Some(coverage) => Some(coverage.problems.join("; ")).filter(|text| !text.is_empty()),
            None => Some(format!(
                "it cannot be used at this version, its column may be gone; DROP INDEX {}",
                row.index.name
            )),
        };
        Self {
            rows_covered: row.rows_covered(),
            rows_uncovered: row.coverage.as_ref().map_or(0, |coverage| coverage.uncovered_rows),
            schema: row.schema,
            table: row.table,
            name: row.index.name,
            column: row.coverage.map(|coverage| coverage.column.clone()),
            method: spec.as_ref().map(|spec| spec.method.clone()),
            metric: spec.as_ref().map(|spec| spec.metric.name().to_owned()),
            options: Some(row.index.options),
            progress,
            segments: row.segments as u64,
            bytes: row.bytes,
            created_at_us: Some(row.index.created_at_us),
            problems,
        }
    }

    fn of_scalar(schema: &str, table: &str, index: ScalarIndex) -> Self {
        Self {
            schema: schema.to_owned(),
            table: table.to_owned(),
            name: index.name,
            column: Some(index.column),
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
            None if self.column.is_none() => "unusable",
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
    let progress = |row: &IndexRow| session.engine().builds().progress(&row.index.id);
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
    let all: Vec<_> = rows.iter().flat_map(|row| row.segments_live().map(move |segment| (row, segment))).collect();
    batch(vec![
        ("table_schema", texts(all.iter().map(|(row, _)| row.schema.clone()))),
        ("table_name", texts(all.iter().map(|(row, _)| row.table.clone()))),
        ("index_name", texts(all.iter().map(|(row, _)| row.index.name.clone()))),
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
