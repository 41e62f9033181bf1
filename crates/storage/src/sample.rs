//! A sample of a table's rows, of which it is asked how many a filter selects: an index is worth asking if they are few.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::physical_expr::create_physical_expr;
use lance::dataset::{ProjectionRequest, TakeBuilder};
use lance_table::format::Fragment;
use quick_cache::Weighter;

use crate::error::Result;
use crate::scalar_index::have_same_values;
use crate::snapshot::{Snapshot, guard};

/// Runs of rows that are read, evenly spread, and rows of a run: neighbours cost little more than one, and tell little more
/// where rows that came together are alike.
const RUNS: u64 = 64;
const RUN_ROWS: u64 = 16;

/// A sample stands for a version as long as so large a share of the rows of both is the same.
const SAME_SHARE: f64 = 0.8;

/// Above this share of the rows a scan is faster than an index that says which they are; so few rows take no time either way.
const SELECTIVE_SHARE: f64 = 0.05;
const FEW_ROWS: f64 = 1024.0;

/// The columns of a table that are sampled together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    table: Arc<str>,
    fields: Vec<i32>,
}

impl Key {
    pub(crate) fn table(&self) -> &str {
        &self.table
    }
}

/// Some rows, and the fragments of the version that they were taken from.
pub(crate) struct Sample {
    rows: RecordBatch,
    fragments: Vec<Fragment>,
}

#[derive(Clone)]
pub(crate) struct Bytes;

impl Weighter<Key, Arc<Sample>> for Bytes {
    fn weight(&self, _: &Key, sample: &Arc<Sample>) -> u64 {
        (sample.rows.get_array_memory_size() + sample.fragments.len() * size_of::<Fragment>()) as u64
    }
}

impl Snapshot {
    /// Whether a filter selects so few rows that it is worth asking an index which. True where that cannot be told. Cost: a
    /// thousand comparisons; at first, and when many rows are others, as many reads as there are runs in a sample.
    pub async fn is_selective(&self, filter: &Expr) -> bool {
        let share = self.share_of(filter).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "no sample was read");
            None
        });
        share.is_none_or(|share| share <= SELECTIVE_SHARE || share * self.row_count() as f64 <= FEW_ROWS)
    }

    /// The share of the rows that a filter selects, by a sample; `None` if it cannot be evaluated here.
    async fn share_of(&self, filter: &Expr) -> Result<Option<f64>> {
        let columns: BTreeSet<String> = filter.column_refs().into_iter().map(|column| column.name.clone()).collect();
        if columns.is_empty() {
            return Ok(None);
        }
        let sample = self.sample(&columns).await?;
        let rows = sample.rows.num_rows();
        let selected = selected(filter, &sample.rows);
        Ok(selected.filter(|_| rows > 0).map(|selected| selected as f64 / rows as f64))
    }

    async fn sample(&self, columns: &BTreeSet<String>) -> Result<Arc<Sample>> {
        let fields = columns.iter().map(|column| self.field_id(column)).collect::<Result<Vec<i32>>>()?;
        let key = Key { table: self.location().into(), fields };
        let samples = &self.selections().samples;
        if let Some(known) = samples.get(&key)
            && self.is_like(&known, &key.fields)
        {
            return Ok(known);
        }
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        let what = format!("cannot read some rows of {}", self.location());
        let projection = ProjectionRequest::from_schema(self.lance_projection(&names)?);
        let taken = async {
            let plan = projection.into_projection_plan(self.dataset().clone())?;
            let addresses = self.spread_addresses();
            TakeBuilder::try_new_from_addresses(self.dataset().clone(), addresses, Arc::new(plan))?.execute().await
        };
        // Of the addresses of deleted rows nothing comes.
        let rows = guard(&what, taken).await.map_err(|error| error.while_pinned())?;
        let fragments = self.fragments().iter().map(|fragment| fragment.metadata.clone()).collect();
        let sample = Arc::new(Sample { rows, fragments });
        samples.insert(key, Arc::clone(&sample));
        Ok(sample)
    }

    /// Addresses of rows in runs that lie evenly among all.
    fn spread_addresses(&self) -> Vec<u64> {
        let all: u64 = self.fragments().iter().map(|fragment| fragment.rows).sum();
        let run_rows = if all <= RUNS * RUN_ROWS { all.div_ceil(RUNS) } else { RUN_ROWS };
        let mut fragments = self.fragments().iter();
        let (mut addresses, mut fragment, mut before) = (vec![], fragments.next(), 0);
        for row in (0..RUNS).flat_map(|run| (run * all / RUNS..all).take(usize::try_from(run_rows).unwrap_or_default()))
        {
            while let Some(passed) = fragment.filter(|fragment| row >= before + fragment.rows) {
                before += passed.rows;
                fragment = fragments.next();
            }
            let Some(fragment) = fragment else { break };
            addresses.push(u64::from(fragment.id) << 32 | (row - before));
        }
        addresses.dedup();
        addresses
    }

    /// Whether most rows of this version are those that a sample was taken from.
    fn is_like(&self, sample: &Sample, fields: &[i32]) -> bool {
        let rows = |fragment: &Fragment| fragment.physical_rows.unwrap_or(0);
        let same = self.fragments().iter().map(|fragment| &fragment.metadata).filter(|fragment| {
            let at = sample.fragments.binary_search_by_key(&fragment.id, |other| other.id).ok();
            let other = at.and_then(|at| sample.fragments.get(at));
            other.is_some_and(|other| fields.iter().all(|field| have_same_values(fragment, other, *field)))
        });
        let same: usize = same.map(rows).sum();
        let now: usize = self.fragments().iter().map(|fragment| rows(&fragment.metadata)).sum();
        let then: usize = sample.fragments.iter().map(rows).sum();
        same as f64 >= SAME_SHARE * now.max(then) as f64
    }
}

/// How many rows a filter selects; `None` if it cannot be evaluated.
fn selected(filter: &Expr, rows: &RecordBatch) -> Option<usize> {
    let unqualified = filter.clone().transform(|expr| match expr {
        Expr::Column(column) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))),
        other => Ok(Transformed::no(other)),
    });
    let schema = DFSchema::try_from(rows.schema()).ok()?;
    let predicate = create_physical_expr(&unqualified.data().ok()?, &schema, &ExecutionProps::new()).ok()?;
    let value = predicate.evaluate(rows).ok()?.into_array(rows.num_rows()).ok()?;
    Some(value.as_boolean_opt()?.iter().filter(|selected| *selected == Some(true)).count())
}

#[cfg(test)]
mod tests;
