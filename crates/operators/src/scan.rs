//! The scan of a snapshot: projection, filter and limit are Lance's work, partitions are row ranges.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::common::{ScalarValue, Statistics, internal_err};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::StreamExt;
use storage::{ROW_ADDRESS, ScanPartition, ScanRequest, Selection, SelectionRequest, Snapshot};

use crate::bind::with_values;
use crate::buffers::Buffers;
use crate::external;

/// Reads live rows of one snapshot in row order within each partition.
#[derive(Clone)]
pub struct TableScanExec {
    name: String,
    snapshot: Snapshot,
    columns: Vec<String>,
    filters: Vec<Expr>,
    limit: Option<usize>,
    /// The indexes that its filter asks, as EXPLAIN shows them.
    indexes: Vec<String>,
    partitions: Vec<Option<ScanPartition>>,
    partitions_max: usize,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl TableScanExec {
    /// The snapshot that is read.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The scan in `plan` that emits nothing but the addresses of rows that filters select; `None` if there is more to it.
    pub(crate) fn of_selection(plan: &Arc<dyn ExecutionPlan>) -> Option<&Self> {
        let any: &dyn Any = plan.as_ref();
        if any.is::<CoalescePartitionsExec>() || any.is::<CooperativeExec>() {
            return Self::of_selection(plan.children().first()?);
        }
        let scan = any.downcast_ref::<Self>()?;
        let selects = scan.limit.is_none() && !scan.filters.is_empty() && scan.columns == [ROW_ADDRESS];
        selects.then_some(scan)
    }

    /// The rows that the filters select, from memory as far as they were asked for lately.
    ///
    /// # Errors
    /// As the scan.
    pub(crate) async fn selection(&self, context: &TaskContext) -> Result<Arc<Selection>> {
        let config = context.session_config();
        let Some(filter) = conjunction(self.filters.clone()) else { return internal_err!("a scan without a filter") };
        let request = SelectionRequest {
            filter,
            partitions_max: config.target_partitions(),
            batch_rows: config.batch_size(),
            buffer_bytes: Buffers::of(config).scan,
        };
        let metrics = BaselineMetrics::new(&self.metrics, 0);
        let known = MetricBuilder::new(&self.metrics).counter("rows_known", 0);
        let selected = self.snapshot.selection(&request).await.map_err(external)?;
        metrics.record_output(selected.selection.count());
        known.add(usize::try_from(selected.rows_known).unwrap_or(usize::MAX));
        Ok(selected.selection)
    }

    /// Bytes that each partition can fill at most.
    pub(crate) fn bytes_max(&self) -> Result<Vec<u64>> {
        let mut columns = self.columns.clone();
        for filter in &self.filters {
            columns.extend(filter.column_refs().into_iter().map(|column| column.name.clone()));
        }
        columns.sort_unstable();
        columns.dedup();
        let bytes = |part: &Option<ScanPartition>| self.snapshot.scan_bytes_max(&columns, part.as_ref());
        self.partitions.iter().map(bytes).collect::<std::result::Result<_, _>>().map_err(external)
    }

    /// The same scan of another snapshot of the table, its parameters replaced by `values`; `None` if it would have
    /// another number of partitions, which the operators above rely on.
    ///
    /// # Errors
    /// A parameter without a value.
    pub(crate) fn bound(&self, snapshot: Snapshot, values: &[ScalarValue]) -> Result<Option<Self>> {
        let filters = self.filters.iter().map(|filter| with_values(filter.clone(), values)).collect::<Result<_>>()?;
        let (name, columns, indexes) = (self.name.clone(), self.columns.clone(), self.indexes.clone());
        let bound = Self::try_new(name, snapshot, columns, filters, self.limit, indexes, self.partitions_max)?;
        Ok((bound.partitions.len() == self.partitions.len()).then_some(bound))
    }

    /// A scan of `columns`, cut into at most `partitions` parts. A limit is kept in one part: each part would
    /// otherwise read up to the limit. So are `indexes`, those that the filters ask: each part would ask anew.
    ///
    /// # Errors
    /// A column that the snapshot does not have.
    pub fn try_new(
        name: String,
        snapshot: Snapshot,
        columns: Vec<String>,
        filters: Vec<Expr>,
        limit: Option<usize>,
        indexes: Vec<String>,
        partitions: usize,
    ) -> Result<Self> {
        let schema = if columns.is_empty() {
            Arc::new(Schema::empty())
        } else {
            snapshot.scan_schema(&columns).map_err(external)?
        };
        let mut parts: Vec<Option<ScanPartition>> = match limit {
            Some(_) => vec![],
            None if !indexes.is_empty() => vec![],
            None => snapshot.partitions(partitions.max(1)).into_iter().map(Some).collect(),
        };
        if parts.is_empty() {
            parts.push(None);
        }
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(parts.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Ok(Self {
            name,
            snapshot,
            columns,
            filters,
            limit,
            indexes,
            partitions: parts,
            partitions_max: partitions,
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }
}

impl fmt::Debug for TableScanExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableScanExec({} version {})", self.name, self.snapshot.version())
    }
}

impl DisplayAs for TableScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.snapshot.version();
        write!(f, "TableScanExec: table={} version={version}, columns=[{}]", self.name, self.columns.join(", "))?;
        if let Some(filter) = conjunction(self.filters.clone()) {
            write!(f, ", filter by Lance: {filter}")?;
        }
        if !self.indexes.is_empty() {
            write!(f, ", index={}", self.indexes.join(" and "))?;
        }
        if let Some(limit) = self.limit {
            write!(f, ", limit={limit}")?;
        }
        write!(f, ", partitions={}", self.partitions.len())
    }
}

impl ExecutionPlan for TableScanExec {
    fn name(&self) -> &'static str {
        "TableScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("a scan has no inputs") }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let counts_only = self.columns.is_empty();
        let request = ScanRequest {
            columns: if counts_only { vec![ROW_ADDRESS.to_owned()] } else { self.columns.clone() },
            filter: conjunction(self.filters.clone()),
            asks_indexes: !self.indexes.is_empty(),
            limit: self.limit,
            partition: self.partitions[partition].clone(),
            batch_rows: context.session_config().batch_size(),
            buffer_bytes: Buffers::of(context.session_config()).scan,
        };
        let rows = self.snapshot.scan(request).map_err(external)?;
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let schema = self.schema();
        let tagged = Arc::clone(&schema);
        let rows = rows.map(move |batch| {
            let batch = retag(batch?, &tagged)?;
            metrics.record_output(batch.num_rows());
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        let rows = usize::try_from(self.snapshot.row_count()).unwrap_or(usize::MAX);
        let rows = match partition {
            Some(_) => rows / self.partitions.len(),
            None => rows,
        };
        let rows = self.limit.map_or(rows, |limit| rows.min(limit));
        let is_exact = self.filters.is_empty() && partition.is_none();
        statistics.num_rows = if is_exact { Precision::Exact(rows) } else { Precision::Inexact(rows) };
        Ok(Arc::new(statistics))
    }
}

/// The batch under the scan's schema; only the number of rows is kept of a batch without columns.
fn retag(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let columns = if schema.fields().is_empty() { vec![] } else { batch.columns().to_vec() };
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}
