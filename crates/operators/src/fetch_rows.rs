//! The operator that reads further columns of a snapshot for the rows whose addresses its input holds.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{FieldRef, Schema, SchemaRef, UInt64Type};
use datafusion::common::internal_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt};
use storage::Snapshot;

use crate::buffers::{Buffers, fetch_bytes};
use crate::external;

/// Rows that are fetched at once: a join that finds few rows makes many small batches, and each fetch reads anew.
const FETCH_ROWS: usize = 4_096;

/// Adds columns of the row at an address to each row of its input; NULLs where the address is NULL.
#[derive(Debug)]
pub struct FetchRowsExec {
    snapshot: Snapshot,
    table: String,
    address: Arc<dyn PhysicalExpr>,
    fields: Vec<FieldRef>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl FetchRowsExec {
    /// The operator over `input`. `address`: UInt64, of the input's columns. `fields`: the columns of the snapshot to add,
    /// nullable if an address may be NULL.
    pub fn new(
        snapshot: Snapshot,
        table: String,
        address: Arc<dyn PhysicalExpr>,
        fields: Vec<FieldRef>,
        input: Arc<dyn ExecutionPlan>,
    ) -> Self {
        let all: Vec<FieldRef> = input.schema().fields().iter().chain(&fields).cloned().collect();
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::new(Schema::new(all))),
            // The input's columns keep their places: what it is partitioned by still holds.
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        ));
        Self { snapshot, table, address, fields, input, properties, metrics: ExecutionPlanMetricsSet::new() }
    }

    /// The snapshot that rows are fetched from.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Bytes that one partition can fill at most.
    pub(crate) fn bytes_max(&self) -> Result<usize> {
        fetch_bytes(&self.snapshot, &self.names(), FETCH_ROWS)
    }

    /// The same operator on another snapshot of the table.
    pub(crate) fn bound(&self, snapshot: Snapshot) -> Self {
        let (address, input) = (Arc::clone(&self.address), Arc::clone(&self.input));
        Self::new(snapshot, self.table.clone(), address, self.fields.clone(), input)
    }

    fn names(&self) -> Vec<String> {
        self.fields.iter().map(|field| field.name().clone()).collect()
    }
}

impl DisplayAs for FetchRowsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.snapshot.version();
        write!(f, "FetchRowsExec: table={} version={version}, columns=[{}]", self.table, self.names().join(", "))
    }
}

impl ExecutionPlan for FetchRowsExec {
    fn name(&self) -> &'static str {
        "FetchRowsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(
                self.snapshot.clone(),
                self.table.clone(),
                Arc::clone(&self.address),
                self.fields.clone(),
                input,
            ))),
            _ => internal_err!("rows are fetched for one input"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let row_bytes = self.snapshot.row_bytes(&self.names()).map_err(external)?;
        let fetch = Fetch {
            rows: Buffers::of(context.session_config()).fetch_rows(row_bytes, FETCH_ROWS),
            snapshot: self.snapshot.clone(),
            address: Arc::clone(&self.address),
            columns: self.names(),
            schema: Arc::clone(&schema),
            fetched: MetricBuilder::new(&self.metrics).counter("rows_fetched", partition),
        };
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let input = self.input.execute(partition, context)?;
        let batches = futures::stream::try_unfold((input, fetch), |(mut input, fetch)| async move {
            let Some(batch) = gathered(&mut input, fetch.rows).await? else { return Ok(None) };
            let batch = fetch.batch(batch).await?;
            Ok::<_, DataFusionError>(Some((batch, (input, fetch))))
        });
        let batches = batches.inspect_ok(move |batch: &RecordBatch| metrics.record_output(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// The next batches of the input as one of at least `wanted` rows, one batch too many at most; `None` at its end.
async fn gathered(input: &mut SendableRecordBatchStream, wanted: usize) -> Result<Option<RecordBatch>> {
    let (mut batches, mut rows) = (vec![], 0);
    while rows < wanted {
        let Some(batch) = input.next().await else { break };
        let batch = batch?;
        rows += batch.num_rows();
        if batch.num_rows() > 0 {
            batches.push(batch);
        }
    }
    match batches.as_slice() {
        [] => Ok(None),
        [_] => Ok(batches.pop()),
        [first, ..] => Ok(Some(concat_batches(&first.schema(), &batches)?)),
    }
}

/// What one partition fetches.
struct Fetch {
    /// About so many at once.
    rows: usize,
    snapshot: Snapshot,
    address: Arc<dyn PhysicalExpr>,
    columns: Vec<String>,
    schema: SchemaRef,
    fetched: Count,
}

impl Fetch {
    async fn batch(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let addresses = self.address.evaluate(&batch)?.into_array(rows)?;
        let Some(addresses) = addresses.as_primitive_opt::<UInt64Type>() else {
            return internal_err!("row addresses are numbers, not {}", addresses.data_type());
        };
        let wanted: Vec<u64> = addresses.iter().flatten().collect();
        self.fetched.add(wanted.len());
        let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
        if wanted.is_empty() {
            let fields = &self.schema.fields()[columns.len()..];
            columns.extend(fields.iter().map(|field| new_null_array(field.data_type(), rows)));
        } else {
            let taken = self.snapshot.take(&wanted, &self.columns).await.map_err(external)?;
            if addresses.null_count() == 0 {
                columns.extend(taken.columns().iter().cloned());
            } else {
                let mut next = 0_u32..;
                let places: UInt32Array = addresses.iter().map(|address| address.and_then(|_| next.next())).collect();
                for column in taken.columns() {
                    columns.push(take(column, &places, None)?);
                }
            }
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}
