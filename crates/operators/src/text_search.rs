//! The operator of a text search: candidates first, then the rows that fit best by the inverted index, then the columns of these.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, RecordBatchOptions};
use arrow::compute::SortOptions;
use arrow::datatypes::{Schema, SchemaRef, UInt64Type};
use datafusion::common::stats::Precision;
use datafusion::common::{ScalarValue, Statistics, internal_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt};
use planner::text_search::TextSearch;
use storage::{Fit, Snapshot};

use crate::buffers::{Buffers, fetch_bytes};
use crate::external;

/// Rows whose columns are fetched at once.
const FETCH_ROWS_MAX: usize = 8_192;

/// Finds the rows of one snapshot whose text fits a query best.
#[derive(Debug)]
pub struct TextSearchExec {
    snapshot: Snapshot,
    table: String,
    column: String,
    query: Arc<dyn PhysicalExpr>,
    k: usize,
    /// The index that is asked.
    index: String,
    candidates: Option<Arc<dyn ExecutionPlan>>,
    columns: Vec<String>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl TextSearchExec {
    /// The operator of a search. `query`: evaluated once, without a row. `candidates`: emits row addresses. `schema`: the
    /// fetched columns, then the score. Cost: a look at the list of indexes.
    ///
    /// # Errors
    /// A column without an inverted index.
    pub async fn try_new(
        search: &TextSearch,
        snapshot: Snapshot,
        query: Arc<dyn PhysicalExpr>,
        candidates: Option<Arc<dyn ExecutionPlan>>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let index = snapshot.text_index(&search.column).await.map_err(external)?;
        let schema = Arc::new(Schema::new(schema.fields().clone()));
        let mut equivalences = EquivalenceProperties::new(Arc::clone(&schema));
        let at = schema.fields().len() - 1;
        let options = SortOptions { descending: true, nulls_first: false };
        let score = PhysicalSortExpr::new(Arc::new(Column::new(schema.field(at).name(), at)), options);
        equivalences.add_orderings(LexOrdering::new([score]));
        let properties = Arc::new(PlanProperties::new(
            equivalences,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        Ok(Self {
            snapshot,
            table: search.table_name.to_string(),
            column: search.column.clone(),
            query,
            k: search.k,
            index,
            candidates,
            columns: search.column_names(),
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// Bytes of the rows that are fetched at once.
    pub(crate) fn bytes_max(&self) -> Result<usize> {
        fetch_bytes(&self.snapshot, &self.columns, self.k.min(FETCH_ROWS_MAX))
    }

    /// The words; `None` for NULL, which no text fits.
    fn words(&self) -> Result<Option<String>> {
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)?;
        let value = self.query.evaluate(&row)?.into_array(1)?;
        match ScalarValue::try_from_array(&value, 0)? {
            ScalarValue::Utf8(words) | ScalarValue::LargeUtf8(words) | ScalarValue::Utf8View(words) => Ok(words),
            other => internal_err!("a text search has a text for its query, not {other}"),
        }
    }
}

impl DisplayAs for TextSearchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.snapshot.version();
        let candidates = if self.candidates.is_some() { "filter first" } else { "all rows" };
        write!(
            f,
            "TextSearchExec: table={} version={version}, column={}, index={} (inverted), k={}, \
             candidates={candidates}, query={}, fetch after=[{}]",
            self.table,
            self.column,
            self.index,
            self.k,
            self.query,
            self.columns.join(", ")
        )
    }
}

impl ExecutionPlan for TextSearchExec {
    fn name(&self) -> &'static str {
        "TextSearchExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.candidates.iter().collect()
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        self.candidates.iter().map(|_| Distribution::SinglePartition).collect()
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        self.candidates.iter().map(|_| false).collect()
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != usize::from(self.candidates.is_some()) {
            return internal_err!("a search has at most one input, not {}", children.len());
        }
        Ok(Arc::new(Self {
            snapshot: self.snapshot.clone(),
            table: self.table.clone(),
            column: self.column.clone(),
            query: Arc::clone(&self.query),
            k: self.k,
            index: self.index.clone(),
            candidates: children.pop(),
            columns: self.columns.clone(),
            properties: Arc::clone(&self.properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("a search has one partition, not {partition}");
        }
        let metrics = BaselineMetrics::new(&self.metrics, 0);
        let counted = MetricBuilder::new(&self.metrics).counter("candidates", 0);
        let candidates = match &self.candidates {
            Some(plan) => Some(plan.execute(0, Arc::clone(&context))?),
            None => None,
        };
        let (words, snapshot, column, k) = (self.words()?, self.snapshot.clone(), self.column.clone(), self.k);
        let (columns, schema) = (self.columns.clone(), self.schema());
        let row_bytes = snapshot.row_bytes(&columns).map_err(external)?;
        let batch_rows = context.session_config().batch_size().clamp(1, FETCH_ROWS_MAX);
        let batch_rows = Buffers::of(context.session_config()).fetch_rows(row_bytes, batch_rows);
        let fetch_schema = Arc::clone(&schema);
        let batches = futures::stream::once(async move {
            let reservation = MemoryConsumer::new("TextSearchExec").register(context.memory_pool());
            let mut among: Option<Vec<u64>> = None;
            if let Some(mut stream) = candidates {
                let addresses = among.insert(vec![]);
                while let Some(batch) = stream.next().await {
                    addresses.extend_from_slice(batch?.column(0).as_primitive::<UInt64Type>().values());
                    reservation.try_resize(addresses.capacity() * size_of::<u64>())?;
                }
                counted.add(addresses.len());
            }
            let found = match words {
                Some(words) => snapshot.text_search(&column, words, k, among).await.map_err(external)?,
                None => vec![],
            };
            Ok::<_, DataFusionError>(fetched(snapshot, found, columns, fetch_schema, batch_rows))
        })
        .try_flatten()
        .inspect_ok(move |batch| metrics.record_output(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, _: Option<usize>) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        let rows = usize::try_from(self.snapshot.row_count()).unwrap_or(usize::MAX);
        statistics.num_rows = Precision::Inexact(rows.min(self.k));
        Ok(Arc::new(statistics))
    }
}

/// The rows found, in batches, with their columns fetched.
fn fetched(
    snapshot: Snapshot,
    found: Vec<Fit>,
    columns: Vec<String>,
    schema: SchemaRef,
    batch_rows: usize,
) -> impl futures::Stream<Item = Result<RecordBatch>> {
    let starts: Vec<usize> = (0..found.len()).step_by(batch_rows).collect();
    let found = Arc::new(found);
    futures::stream::iter(starts).then(move |start| {
        let (snapshot, found, columns, schema) =
            (snapshot.clone(), Arc::clone(&found), columns.clone(), Arc::clone(&schema));
        async move {
            let found = &found[start..(start + batch_rows).min(found.len())];
            let mut arrays: Vec<ArrayRef> = vec![];
            if !columns.is_empty() {
                let addresses: Vec<u64> = found.iter().map(|fit| fit.address).collect();
                arrays.extend(snapshot.take(&addresses, &columns).await.map_err(external)?.columns().iter().cloned());
            }
            arrays.push(Arc::new(Float64Array::from_iter_values(found.iter().map(|fit| f64::from(fit.score)))));
            let options = RecordBatchOptions::new().with_row_count(Some(found.len()));
            Ok(RecordBatch::try_new_with_options(schema, arrays, &options)?)
        }
    })
}
