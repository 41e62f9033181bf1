//! What a statement holds beside the memory that its operators ask the pool for: what its scans have read ahead, the
//! chunks that its searches decode, the pages that its writer fills, the batches on their way to whoever asked.
//!
//! None of it asks a pool, so it is claimed before the statement runs: [`Needs`] says how much, [`Buffers`] how large each
//! part may be. Where memory is scarce the parts are smaller, not fewer: operators such as merges read all their inputs at once.

use std::any::Any;
use std::sync::Arc;

use datafusion::common::stats::Precision;
use datafusion::datasource::sink::DataSinkExec;
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::SessionConfig;
use storage::{SCAN_BUFFER_BYTES, SCAN_BUFFER_BYTES_MIN, Snapshot, scan_batch_bytes};

use crate::change::ChangeExec;
use crate::changes::ChangesExec;
use crate::fetch_rows::FetchRowsExec;
use crate::scan::TableScanExec;
use crate::text_search::TextSearchExec;
use crate::vector_search::VectorSearchExec;

/// Batches of the answer that are there at once: made ahead, taken, and being encoded for a client.
const BATCHES_SENT: usize = 4;
/// How often the buffers of a statement with many parts are halved at most.
const HALVINGS_MAX: u32 = 7;
/// The least that is promised to an operator that spills, and to a writer.
const PROMISE_BYTES_MIN: usize = 256 << 10;
/// Rows that are fetched at once at least, however wide they are.
const FETCH_ROWS_MIN: usize = 16;

/// How large the parts of a statement's memory may be, in bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// One partition of a scan.
    pub scan: usize,
    /// The chunks that a search decodes at once; one chunk is always decoded.
    pub search: usize,
    /// The writer of a table.
    pub write: usize,
    /// What one partition of an operator that spills can count on.
    pub spill: usize,
    /// What a sort takes for its merge before it begins, from what it can count on.
    pub merge: usize,
}

impl Default for Buffers {
    /// Where memory is plenty.
    fn default() -> Self {
        Self { scan: SCAN_BUFFER_BYTES, search: 768 << 20, write: 96 << 20, spill: 40 << 20, merge: 10 << 20 }
    }
}

impl Buffers {
    /// The buffers of an engine that has so many bytes for statements.
    pub fn of_pool(pool_bytes: usize) -> Self {
        let most = Self::default();
        let merge = (pool_bytes / 64).clamp(1 << 20, most.merge);
        Self {
            scan: (pool_bytes / 32).clamp(SCAN_BUFFER_BYTES_MIN, most.scan),
            search: (pool_bytes / 16).clamp(SCAN_BUFFER_BYTES_MIN, most.search),
            write: (pool_bytes / 8).clamp(8 << 20, most.write),
            spill: 4 * merge,
            merge,
        }
    }

    /// Those that the statement was given.
    pub fn of(config: &SessionConfig) -> Self {
        config.get_extension::<Self>().map_or_else(Self::default, |buffers| *buffers)
    }

    /// Rows of so many bytes that are fetched at once.
    pub(crate) fn fetch_rows(&self, row_bytes: u64, rows_max: usize) -> usize {
        let rows = scan_batch_bytes(self.scan) as u64 / row_bytes.max(1);
        usize::try_from(rows).unwrap_or(rows_max).max(FETCH_ROWS_MIN).min(rows_max)
    }

    fn halved(&self, times: u32) -> Self {
        Self {
            scan: (self.scan >> times).max(SCAN_BUFFER_BYTES_MIN.min(self.scan)),
            search: self.search >> times,
            write: (self.write >> times).max(PROMISE_BYTES_MIN),
            // A sort that cannot take what its merge needs fails.
            spill: (self.spill >> times).max(self.merge + PROMISE_BYTES_MIN),
            merge: self.merge,
        }
    }
}

/// A part of a statement's memory: its kind, and the bytes that it can fill at most, whatever its buffer.
#[derive(Debug, Clone, Copy)]
struct Part {
    kind: Kind,
    most: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Scan,
    /// With the bytes of its largest chunk.
    Search(usize),
    Write,
    Spill,
    Sent,
}

impl Part {
    fn bytes(self, buffers: &Buffers) -> usize {
        let buffer = match self.kind {
            Kind::Scan => buffers.scan,
            Kind::Search(chunk) => buffers.search.max(chunk),
            Kind::Write => buffers.write,
            Kind::Spill => buffers.spill,
            Kind::Sent => BATCHES_SENT * scan_batch_bytes(buffers.scan),
        };
        buffer.min(self.most)
    }
}

/// What a statement needs to run, apart from what its operators ask for as they go.
#[derive(Debug, Default)]
pub struct Needs {
    parts: Vec<Part>,
}

impl Needs {
    /// The needs of a plan.
    ///
    /// # Errors
    /// A column that a snapshot does not have.
    pub fn of(plan: &Arc<dyn ExecutionPlan>) -> Result<Self> {
        let mut needs = Self::default();
        let most = needs.visit(plan)?;
        needs.parts.push(Part { kind: Kind::Sent, most });
        Ok(needs)
    }

    /// The needs of one part of a plan whose parts do not exchange rows.
    ///
    /// # Errors
    /// As [`Needs::of`].
    pub fn of_part(plan: &Arc<dyn ExecutionPlan>, part: usize) -> Result<Self> {
        let mut needs = Self::of(plan)?;
        let sent = needs.parts.pop();
        // Such a plan is a scan with operators above it that hold nothing.
        needs.parts = needs.parts.get(part).copied().into_iter().chain(sent).collect();
        Ok(needs)
    }

    /// The needs of a plan whose rows go into a table by themselves.
    ///
    /// # Errors
    /// As [`Needs::of`].
    pub fn of_written(plan: &Arc<dyn ExecutionPlan>) -> Result<Self> {
        let mut needs = Self::default();
        let most = needs.visit(plan)?;
        needs.push_write(most);
        Ok(needs)
    }

    /// So many bytes, whatever the buffers are.
    pub fn of_bytes(bytes: usize) -> Self {
        Self { parts: vec![Part { kind: Kind::Search(bytes), most: bytes }] }
    }

    /// So many bytes at most for operators that spill.
    pub fn of_promise(bytes: usize) -> Self {
        Self { parts: vec![Part { kind: Kind::Spill, most: bytes }] }
    }

    /// How many parts there are.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Bytes of all parts with such buffers.
    pub fn bytes(&self, buffers: &Buffers) -> usize {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes(buffers)))
    }

    /// Bytes that operators can count on of these.
    pub fn promised(&self, buffers: &Buffers) -> usize {
        let promised = self.parts.iter().filter(|part| matches!(part.kind, Kind::Spill));
        promised.fold(0, |sum, part| sum.saturating_add(part.bytes(buffers)))
    }

    /// The largest buffers, these or smaller ones, with which all parts fit into so many bytes; `None` if none do.
    pub fn fitted(&self, buffers: &Buffers, bytes_max: usize) -> Option<Buffers> {
        (0..=HALVINGS_MAX).map(|times| buffers.halved(times)).find(|buffers| self.bytes(buffers) <= bytes_max)
    }

    /// Adds the parts of a plan; the bytes that its leaves hold at most.
    fn visit(&mut self, plan: &Arc<dyn ExecutionPlan>) -> Result<usize> {
        let any: &dyn Any = plan.as_ref();
        let mut most: usize = 0;
        for child in plan.children() {
            most = most.saturating_add(self.visit(child)?);
        }
        let partitions = plan.output_partitioning().partition_count();
        if let Some(scan) = any.downcast_ref::<TableScanExec>() {
            for bytes in scan.bytes_max()? {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                self.parts.push(Part { kind: Kind::Scan, most: bytes });
                most = most.saturating_add(bytes);
            }
        } else if let Some(search) = any.downcast_ref::<VectorSearchExec>() {
            let (chunk, decoded, fetched) = search.bytes_max()?;
            self.parts.push(Part { kind: Kind::Search(chunk), most: decoded });
            self.parts.push(Part { kind: Kind::Scan, most: fetched });
            most = most.saturating_add(fetched);
        } else if let Some(search) = any.downcast_ref::<TextSearchExec>() {
            let fetched = search.bytes_max()?;
            self.parts.push(Part { kind: Kind::Scan, most: fetched });
            most = most.saturating_add(fetched);
        } else if let Some(fetch) = any.downcast_ref::<FetchRowsExec>() {
            let bytes = fetch.bytes_max()?;
            self.parts.extend(std::iter::repeat_n(Part { kind: Kind::Scan, most: bytes }, partitions));
            most = most.saturating_add(bytes.saturating_mul(partitions));
        } else if any.is::<ChangesExec>() {
            self.parts.push(Part { kind: Kind::Scan, most: usize::MAX });
            most = usize::MAX;
        } else if any.is::<DataSourceExec>() {
            let bytes = known_bytes(plan);
            if bytes.is_none() {
                self.parts.extend(std::iter::repeat_n(Part { kind: Kind::Scan, most: usize::MAX }, partitions));
            }
            most = bytes.unwrap_or(usize::MAX);
        } else if plan.children().is_empty() {
            most = known_bytes(plan).unwrap_or(usize::MAX);
        } else if any.downcast_ref::<SortExec>().is_some_and(|sort| sort.fetch().is_none())
            || any.downcast_ref::<AggregateExec>().is_some_and(|aggregate| !aggregate.group_expr().is_empty())
        {
            let each = most.saturating_mul(2).max(PROMISE_BYTES_MIN);
            self.parts.extend(std::iter::repeat_n(Part { kind: Kind::Spill, most: each }, partitions));
        } else if any.is::<ChangeExec>() || any.is::<DataSinkExec>() {
            self.push_write(most);
        }
        Ok(most)
    }

    fn push_write(&mut self, most: usize) {
        self.parts.push(Part { kind: Kind::Write, most: most.saturating_mul(3).max(PROMISE_BYTES_MIN) });
    }
}

/// Bytes of a leaf that holds its rows in memory.
fn known_bytes(leaf: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    match leaf.partition_statistics(None).ok()?.total_byte_size {
        Precision::Exact(bytes) => Some(bytes),
        _ => None,
    }
}

/// Bytes of the rows of a snapshot that are fetched at once, at most `rows` of them: read, decoded, put in order.
pub(crate) fn fetch_bytes(snapshot: &Snapshot, columns: &[String], rows: usize) -> Result<usize> {
    if columns.is_empty() {
        return Ok(0);
    }
    let row_bytes = snapshot.row_bytes(columns).map_err(crate::external)?;
    Ok(usize::try_from(row_bytes).unwrap_or(usize::MAX).saturating_mul(rows).saturating_mul(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(parts: &[(Kind, usize)]) -> Needs {
        Needs { parts: parts.iter().map(|(kind, most)| Part { kind: *kind, most: *most }).collect() }
    }

    #[test]
    fn a_small_table_needs_little_and_a_large_one_its_buffer() {
        let buffers = Buffers::of_pool(1 << 30);
        assert_eq!(needs(&[(Kind::Scan, 1000)]).bytes(&buffers), 1000);
        assert_eq!(needs(&[(Kind::Scan, usize::MAX)]).bytes(&buffers), buffers.scan);
        assert_eq!(needs(&[(Kind::Search(1 << 40), usize::MAX)]).bytes(&buffers), 1 << 40);
        assert_eq!(needs(&[(Kind::Spill, usize::MAX); 3]).bytes(&buffers), 3 * buffers.spill);
    }

    #[test]
    fn many_parts_have_smaller_buffers_until_they_fit_or_cannot() {
        let buffers = Buffers::of_pool(1 << 30);
        let scans = |count: usize| needs(&vec![(Kind::Scan, usize::MAX); count]);
        assert_eq!(scans(4).fitted(&buffers, 1 << 30), Some(buffers));
        let fitted = scans(128).fitted(&buffers, 1 << 30).unwrap();
        assert!(fitted.scan < buffers.scan && scans(128).bytes(&fitted) <= 1 << 30, "{fitted:?}");
        assert_eq!(scans(2000).fitted(&buffers, 1 << 30), None);
        assert_eq!(fitted.merge, buffers.merge, "a sort needs it whatever its buffer");
    }

    #[test]
    fn no_buffer_of_a_small_engine_is_larger_than_a_part_of_its_memory() {
        for megabytes in [48, 96, 192, 1024, 8192] {
            let pool = megabytes << 20;
            let buffers = Buffers::of_pool(pool);
            assert!(buffers.scan <= pool / 16 && buffers.write <= pool / 4, "{megabytes}: {buffers:?}");
            assert!(buffers.search <= pool / 8 && buffers.spill <= pool / 8, "{megabytes}: {buffers:?}");
        }
    }
}
