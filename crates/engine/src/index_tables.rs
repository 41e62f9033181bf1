//! `system.indexes` and `system.segments`: which indexes there are, what they cover at the newest version, what they take.

use std::sync::Arc;

use arrow::array::{Float64Array, RecordBatch, TimestampMicrosecondArray};
use planner::index_spec::IndexSpec;
use storage::{Coverage, CoveredSegment, IndexDefinition, Relation};

use crate::catalog_tables::{batch, numbers, texts};
use crate::resolver::StatementTables;
use crate::{Result, Session};

/// An index of a table, and what it covers.
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

/// One row for each index.
pub(crate) async fn indexes(session: &Session, tables: &StatementTables) -> Result<RecordBatch> {
    let rows = rows(session, tables).await?;
    let specs: Vec<Option<IndexSpec>> = rows.iter().map(|row| IndexSpec::of_text(&row.index.options)).collect();
    let progress = |row: &IndexRow| session.engine().builds().progress(&row.index.id);
    let state = |row: &IndexRow| match (progress(row), &row.coverage) {
        (Some(_), _) => "building",
        (None, None) => "unusable",
        (None, Some(coverage)) if coverage.uncovered_rows > 0 => "behind",
        (None, Some(_)) => "ready",
    };
    let problems = |row: &IndexRow| match &row.coverage {
        Some(coverage) => Some(coverage.problems.join("; ")).filter(|text| !text.is_empty()),
        None => {
            Some(format!("it cannot be used at this version, its column may be gone; DROP INDEX {}", row.index.name))
        }
    };
    let column = |row: &IndexRow| row.coverage.as_ref().map(|coverage| coverage.column.clone());
    let uncovered = |row: &IndexRow| row.coverage.as_ref().map_or(0, |coverage| coverage.uncovered_rows);
    batch(vec![
        ("table_schema", texts(rows.iter().map(|row| row.schema.clone()))),
        ("table_name", texts(rows.iter().map(|row| row.table.clone()))),
        ("index_name", texts(rows.iter().map(|row| row.index.name.clone()))),
        ("column_name", texts(rows.iter().map(column))),
        ("method", texts(specs.iter().map(|spec| spec.as_ref().map(|spec| spec.method.clone())))),
        ("metric", texts(specs.iter().map(|spec| spec.as_ref().map(|spec| spec.metric.name().to_owned())))),
        ("options", texts(rows.iter().map(|row| row.index.options.clone()))),
        ("state", texts(rows.iter().map(|row| state(row).to_owned()))),
        ("progress", Arc::new(Float64Array::from_iter(rows.iter().map(progress)))),
        ("rows_covered", numbers(rows.iter().map(IndexRow::rows_covered))),
        ("rows_uncovered", numbers(rows.iter().map(uncovered))),
        ("segments", numbers(rows.iter().map(|row| row.segments as u64))),
        ("bytes", numbers(rows.iter().map(|row| row.bytes))),
        (
            "created",
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.index.created_at_us))),
        ),
        ("problems", texts(rows.iter().map(problems))),
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
