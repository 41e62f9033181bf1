//! The search operator: candidates first, then distances over decoded vectors, then the other columns of the rows
//! that were found.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema, SchemaRef, UInt64Type};
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, ScalarValue, Statistics, exec_err, internal_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::physical_expr::{
    EquivalenceProperties, LexOrdering, PhysicalExpr, PhysicalSortExpr, create_physical_expr,
};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt};
use kernels::{Metric, Neighbor, Query, TopK};
use planner::functions::distance::check_metric;
use planner::settings::Settings;
use planner::vector_search::{Reach, VectorSearch};
use planner::vector_type::VectorType;
use planner::vectors::VectorArray;
use storage::{Selection, Snapshot, VectorChunk, VectorChunkRef};

use crate::bind::with_values;
use crate::buffers::{Buffers, fetch_bytes};
use crate::external;
use crate::index_search::{IndexCounts, IndexSearch, not_served, serving};
use crate::scan::TableScanExec;

/// Rows that one worker compares before it looks for cancellation and takes the next: some 300 µs of work.
const SLICE_ROWS: usize = 4_096;
/// Chunks that are in memory at once for a search that the cache cannot hold.
const WAVE_CHUNKS: usize = 4;
/// Rows whose columns are fetched at once.
const FETCH_ROWS_MAX: usize = 8_192;

/// Searches one snapshot with one query vector: by an index where one serves it, else by comparing every candidate.
#[derive(Debug)]
pub struct VectorSearchExec {
    snapshot: Snapshot,
    table: String,
    vector: String,
    vector_type: VectorType,
    metric: Metric,
    reach: Reach,
    query: QueryVector,
    candidates: Option<Arc<dyn ExecutionPlan>>,
    columns: Vec<String>,
    /// The index that serves it, as EXPLAIN shows it.
    index: Option<String>,
    /// In the place of the session's `recall_target`.
    recall: Option<f64>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// The query vector of a search.
#[derive(Debug, Clone)]
pub enum QueryVector {
    /// An expression without columns, evaluated once when the search runs.
    Ready(Arc<dyn PhysicalExpr>),
    /// It has parameters without values: the search is part of a template and is bound before it runs.
    Open(Expr),
}

impl fmt::Display for QueryVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(expr) => write!(f, "{expr}"),
            Self::Open(expr) => write!(f, "{expr}"),
        }
    }
}

impl VectorSearchExec {
    /// The operator of a search. `query`: evaluated once, without a row. `candidates`: emits row addresses.
    /// `schema`: the fetched columns, then the distance.
    ///
    /// # Errors
    /// A column that holds no vectors, or vectors that the metric does not compare.
    pub fn try_new(
        search: &VectorSearch,
        snapshot: Snapshot,
        query: QueryVector,
        candidates: Option<Arc<dyn ExecutionPlan>>,
        index: Option<String>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let table_schema = snapshot.schema();
        let Some(vector_type) = table_schema.field_with_name(&search.vector).ok().and_then(VectorType::of_field) else {
            return plan_err!("{}.{} holds no vectors", search.table_name, search.vector);
        };
        check_metric(search.metric.name(), search.metric, Some(vector_type), None)?;
        let schema = Arc::new(Schema::new(schema.fields().clone()));
        let properties = Arc::new(PlanProperties::new(
            equivalences(&schema, search.reach)?,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        Ok(Self {
            snapshot,
            table: search.table_name.to_string(),
            vector: search.vector.clone(),
            vector_type,
            metric: search.metric,
            reach: search.reach,
            query,
            candidates,
            columns: search.column_names(),
            index,
            recall: search.table.recall(),
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// The snapshot that is searched.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Bytes of the largest chunk that would be decoded, of all such chunks, and of the rows that are fetched.
    pub(crate) fn bytes_max(&self) -> Result<(usize, usize, usize)> {
        let (mut largest, mut all) = (0, 0_u64);
        for chunk in self.snapshot.vector_chunks(&self.vector).map_err(external)? {
            let bytes = self.snapshot.decoding_bytes(&chunk).map_err(external)?;
            largest = largest.max(bytes);
            all += bytes;
        }
        let rows = match self.reach {
            Reach::Nearest { k } => k.min(FETCH_ROWS_MAX),
            Reach::Within { .. } => FETCH_ROWS_MAX,
        };
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok((bytes(largest), bytes(all), fetch_bytes(&self.snapshot, &self.columns, rows)?))
    }

    /// The same search of another snapshot of the table, its parameters replaced by `values`.
    ///
    /// # Errors
    /// A parameter without a value.
    pub(crate) fn bound(&self, snapshot: Snapshot, values: &[ScalarValue]) -> Result<Self> {
        let query = match &self.query {
            QueryVector::Ready(expr) => QueryVector::Ready(Arc::clone(expr)),
            QueryVector::Open(expr) => {
                let expr = with_values(expr.clone(), values)?;
                QueryVector::Ready(create_physical_expr(&expr, &DFSchema::empty(), &ExecutionProps::new())?)
            }
        };
        Ok(Self { snapshot, query, ..self.anew(self.candidates.clone()) })
    }

    /// The same search with these candidates, nothing measured yet.
    fn anew(&self, candidates: Option<Arc<dyn ExecutionPlan>>) -> Self {
        Self {
            snapshot: self.snapshot.clone(),
            table: self.table.clone(),
            vector: self.vector.clone(),
            vector_type: self.vector_type,
            metric: self.metric,
            reach: self.reach,
            query: self.query.clone(),
            candidates,
            columns: self.columns.clone(),
            index: self.index.clone(),
            recall: self.recall,
            properties: Arc::clone(&self.properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    fn candidates_of(&self, plan: &Arc<dyn ExecutionPlan>, context: &Arc<TaskContext>) -> Result<Candidates> {
        let scan = TableScanExec::of_selection(plan).filter(|scan| {
            let (of_scan, own) = (scan.snapshot(), &self.snapshot);
            of_scan.location() == own.location() && of_scan.version() == own.version()
        });
        Ok(match scan {
            Some(scan) => Candidates::Selected(Box::new(scan.clone())),
            None => Candidates::Addresses(plan.execute(0, Arc::clone(context))?),
        })
    }

    fn run(&self, context: &TaskContext) -> Run {
        let counter = |name: &'static str| MetricBuilder::new(&self.metrics).counter(name, 0);
        let mut settings = Settings::of(context.session_config().options());
        settings.recall_target = self.recall.unwrap_or(settings.recall_target);
        Run {
            snapshot: self.snapshot.clone(),
            column: format!("{}.{}", self.table, self.vector),
            vector: self.vector.clone(),
            vector_type: self.vector_type,
            metric: self.metric,
            reach: self.reach,
            workers: context.session_config().target_partitions().max(1),
            decoded_bytes_max: Buffers::of(context.session_config()).search as u64,
            settings,
            index: IndexCounts::new(&self.metrics),
            candidates: counter("candidates"),
            compared: counter("vectors_compared"),
            from_cache: counter("vectors_from_cache"),
            bytes_read: counter("vector_bytes_read"),
        }
    }
}

/// A nearest search is ordered by its distance, the last column.
fn equivalences(schema: &SchemaRef, reach: Reach) -> Result<EquivalenceProperties> {
    let mut equivalences = EquivalenceProperties::new(Arc::clone(schema));
    if matches!(reach, Reach::Nearest { .. }) {
        let at = schema.fields().len() - 1;
        let column = datafusion::physical_expr::expressions::Column::new(schema.field(at).name(), at);
        let options = arrow::compute::SortOptions { descending: false, nulls_first: false };
        let Some(ordering) = LexOrdering::new([PhysicalSortExpr::new(Arc::new(column), options)]) else {
            return internal_err!("a search has an order");
        };
        equivalences.add_ordering(ordering);
    }
    Ok(equivalences)
}

impl DisplayAs for VectorSearchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.snapshot.version();
        write!(
            f,
            "VectorSearchExec: table={} version={version}, column={}, metric={}",
            self.table,
            self.vector,
            self.metric.name()
        )?;
        match self.reach {
            Reach::Nearest { k } => write!(f, ", k={k}, ties in row order")?,
            Reach::Within { distance, inclusive } => {
                write!(f, ", distance {} {distance}", if inclusive { "<=" } else { "<" })?
            }
        }
        if let Some(recall) = self.recall {
            write!(f, ", recall={recall}")?;
        }
        let candidates = if self.candidates.is_some() { "predicates first" } else { "all rows" };
        match &self.index {
            Some(index) => write!(f, ", way=index {index}")?,
            None => write!(f, ", way=exact")?,
        }
        write!(f, ", candidates={candidates}, query={}", shown(&self.query.to_string()))?;
        write!(f, ", distance IS NOT NULL, fetch after=[{}]", self.columns.join(", "))
    }
}

/// A long query vector is shown by its beginning.
fn shown(text: &str) -> String {
    const SHOWN_CHARS: usize = 48;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl ExecutionPlan for VectorSearchExec {
    fn name(&self) -> &'static str {
        "VectorSearchExec"
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
        Ok(Arc::new(self.anew(children.pop())))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("a search has one partition, not {partition}");
        }
        let metrics = BaselineMetrics::new(&self.metrics, 0);
        let run = self.run(&context);
        let candidates = match &self.candidates {
            Some(plan) => Some(self.candidates_of(plan, &context)?),
            None => None,
        };
        let QueryVector::Ready(query) = &self.query else {
            return internal_err!("a search runs with a query vector, not with the parameter {}", self.query);
        };
        let (query, columns, schema) = (Arc::clone(query), self.columns.clone(), self.schema());
        let batch_rows = context.session_config().batch_size().clamp(1, FETCH_ROWS_MAX);
        let row_bytes = self.snapshot.row_bytes(&columns).map_err(external)?;
        let batch_rows = Buffers::of(context.session_config()).fetch_rows(row_bytes, batch_rows);
        let fetch_schema = Arc::clone(&schema);
        let batches = futures::stream::once(async move {
            let snapshot = run.snapshot.clone();
            let (hits, held) = run.hits(query, candidates, &context).await?;
            let rows = fetched(snapshot, hits, columns, fetch_schema, batch_rows);
            // What was found is in memory until it is fetched.
            Ok::<_, DataFusionError>(rows.inspect(move |_| {
                let _held = &held;
            }))
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
        statistics.num_rows = Precision::Inexact(match self.reach {
            Reach::Nearest { k } => rows.min(k),
            Reach::Within { .. } => rows,
        });
        Ok(Arc::new(statistics))
    }
}

/// The rows found, in batches, with their columns fetched.
fn fetched(
    snapshot: Snapshot,
    hits: Vec<Neighbor>,
    columns: Vec<String>,
    schema: SchemaRef,
    batch_rows: usize,
) -> impl futures::Stream<Item = Result<RecordBatch>> {
    let starts: Vec<usize> = (0..hits.len()).step_by(batch_rows).collect();
    let hits = Arc::new(hits);
    futures::stream::iter(starts).then(move |start| {
        let (snapshot, hits, columns, schema) =
            (snapshot.clone(), Arc::clone(&hits), columns.clone(), Arc::clone(&schema));
        async move {
            let hits = &hits[start..(start + batch_rows).min(hits.len())];
            let mut arrays: Vec<ArrayRef> = vec![];
            if !columns.is_empty() {
                let addresses: Vec<u64> = hits.iter().map(|hit| hit.row).collect();
                arrays.extend(snapshot.take(&addresses, &columns).await.map_err(external)?.columns().iter().cloned());
            }
            arrays.push(Arc::new(Float64Array::from_iter_values(hits.iter().map(|hit| hit.distance))));
            let options = RecordBatchOptions::new().with_row_count(Some(hits.len()));
            Ok(RecordBatch::try_new_with_options(schema, arrays, &options)?)
        }
    })
}

/// Where the candidates of a search come from.
enum Candidates {
    /// All that filters select.
    Selected(Box<TableScanExec>),
    /// Rows that a plan emits, in any order.
    Addresses(SendableRecordBatchStream),
}

/// One execution: what it searches, and what it counts.
struct Run {
    snapshot: Snapshot,
    /// `table.column`, for messages.
    column: String,
    vector: String,
    vector_type: VectorType,
    metric: Metric,
    reach: Reach,
    workers: usize,
    /// Bytes of the chunks that are decoded at once, unless one alone has more.
    decoded_bytes_max: u64,
    settings: Settings,
    index: IndexCounts,
    candidates: Count,
    compared: Count,
    from_cache: Count,
    bytes_read: Count,
}

impl Run {
    /// The rows found (address and distance), ordered as the reach says, and their memory.
    async fn hits(
        self,
        query: Arc<dyn PhysicalExpr>,
        candidates: Option<Candidates>,
        context: &TaskContext,
    ) -> Result<(Vec<Neighbor>, MemoryReservation)> {
        let reservation = MemoryConsumer::new("VectorSearchExec").register(context.memory_pool());
        let Some((query, vector)) = self.query(query.as_ref())? else { return Ok((vec![], reservation)) };
        let selected = match candidates {
            Some(candidates) => Some(self.selected(candidates, context, &reservation).await?),
            None => None,
        };
        let (mut found, chunks) = match self.by_index(&query, &vector, selected.as_deref()).await? {
            Some(answered) => answered,
            None => {
                let chunks = self.snapshot.vector_chunks(&self.vector).map_err(external)?;
                let chunks = chunks.into_iter().filter_map(|chunk| within_chunk(chunk, selected.as_deref()));
                (Found::new(self.reach), chunks.collect())
            }
        };
        // The offsets of the candidates take four bytes each.
        let offsets = selected.as_ref().map_or(0, |selected| selected.count() * size_of::<u32>());
        reservation.try_resize(offsets + selected.as_ref().map_or(0, |selected| selected.bytes()))?;
        drop(selected);
        let (run, query) = (Arc::new(self), Arc::new(query));
        let mut rest = chunks.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut wave, mut bytes) = (vec![], 0);
            while let Some((chunk, _)) = rest.peek() {
                bytes += run.snapshot.decoding_bytes(chunk).map_err(external)?;
                if wave.len() == WAVE_CHUNKS || (bytes > run.decoded_bytes_max && !wave.is_empty()) {
                    break;
                }
                wave.extend(rest.next());
            }
            found.merge(run.search_wave(wave, &query).await?);
            reservation.try_resize(offsets + found.bytes())?;
        }
        reservation.try_resize(found.bytes())?;
        Ok((found.into_hits(), reservation))
    }

    /// What an index finds, and what it leaves to be compared; `None` if none serves the search.
    async fn by_index(
        &self,
        query: &Query,
        vector: &VectorArray,
        selected: Option<&Selection>,
    ) -> Result<Option<(Found, Vec<(VectorChunkRef, Option<Vec<u32>>)>)>> {
        let Reach::Nearest { k } = self.reach else { return Ok(None) };
        if self.settings.exact || self.settings.recall_target >= 1.0 {
            return Ok(None);
        }
        let Some((index, spec)) = serving(&self.snapshot, &self.vector, self.metric).await? else {
            // It was there when a prepared statement was planned.
            return match self.settings.require_index {
                true => plan_err!("{}", not_served(&self.column, self.metric, None)),
                false => Ok(None),
            };
        };
        let search = IndexSearch {
            snapshot: &self.snapshot,
            column: &self.vector,
            vector_type: self.vector_type,
            k,
            query,
            vector,
            settings: &self.settings,
            counts: &self.index,
        };
        let answered = search.run(&index, &spec, selected).await?;
        Ok(answered.map(|answered| (Found::Nearest(answered.found), answered.rest)))
    }

    /// Evaluates the query vector; `None` for NULL, which is near to nothing.
    fn query(&self, expr: &dyn PhysicalExpr) -> Result<Option<(Query, VectorArray)>> {
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)?;
        let value = expr.evaluate(&row)?.into_array(1)?;
        if value.is_null(0) || value.data_type().is_null() {
            return Ok(None);
        }
        let field: Arc<Field> = expr.return_field(&Schema::empty())?;
        let own = VectorType::of_field(&field);
        let dim = self.vector_type.dim;
        let vector =
            VectorArray::read(&value, &field, Some(self.vector_type)).map_err(|error| self.query_error(&error))?;
        if vector.dim != dim {
            return exec_err!(
                "the query has {} dimensions but column {} has {dim}; embed the query with the same model",
                vector.dim,
                self.column
            );
        }
        if !vector.is_valid(0) {
            return exec_err!(
                "the query for column {} has an element that is NULL; give every element a value",
                self.column
            );
        }
        check_metric(self.metric.name(), self.metric, Some(self.vector_type), own.and(Some(vector.vector_type())))?;
        let query = Query::new(self.metric, dim, vector.vector(0))
            .map_err(|error| DataFusionError::Execution(error.to_string()))?;
        Ok(Some((query, vector)))
    }

    fn query_error(&self, error: &DataFusionError) -> DataFusionError {
        let message = error.message();
        DataFusionError::Execution(format!("the query for column {}, a {}: {message}", self.column, self.vector_type))
    }

    async fn selected(
        &self,
        candidates: Candidates,
        context: &TaskContext,
        reservation: &MemoryReservation,
    ) -> Result<Arc<Selection>> {
        let selected = match candidates {
            Candidates::Selected(scan) => {
                let most = self.snapshot.selection_bytes_max();
                reservation.try_resize(usize::try_from(most).unwrap_or(usize::MAX))?;
                scan.selection(context).await?
            }
            Candidates::Addresses(stream) => {
                let addresses = addresses(stream, reservation).await?;
                Arc::new(Selection::of_addresses(addresses))
            }
        };
        self.candidates.add(selected.count());
        reservation.try_resize(selected.bytes())?;
        Ok(selected)
    }

    /// Loads a few chunks and compares their rows on all workers.
    async fn search_wave(
        self: &Arc<Self>,
        wave: Vec<(VectorChunkRef, Option<Vec<u32>>)>,
        query: &Arc<Query>,
    ) -> Result<Found> {
        let load = |(chunk, selected): (VectorChunkRef, Option<Vec<u32>>)| async move {
            let loaded = self.snapshot.load_vectors(&chunk).await.map_err(external)?;
            Ok::<_, DataFusionError>((loaded, selected))
        };
        let loaded: Vec<(Arc<VectorChunk>, Option<Vec<u32>>)> =
            futures::stream::iter(wave).map(load).buffered(WAVE_CHUNKS).try_collect().await?;
        for (chunk, _) in &loaded {
            self.bytes_read.add(usize::try_from(chunk.bytes_read).unwrap_or(usize::MAX));
            self.from_cache.add(if chunk.from_cache { chunk.vectors.len() } else { 0 });
        }
        let slices: Arc<Vec<Slice>> =
            Arc::new(loaded.into_iter().flat_map(|(chunk, selected)| Slice::cut(&chunk, selected)).collect());
        let next = Arc::new(AtomicUsize::new(0));
        let workers = self.workers.min(slices.len());
        let work = |_| {
            let (run, query, slices, next) =
                (Arc::clone(self), Arc::clone(query), Arc::clone(&slices), Arc::clone(&next));
            async move { run.compare(&query, &slices, &next).await }
        };
        // The last share is done here: one worker alone, the usual case of a small search, costs no hop.
        let others: Vec<_> = (1..workers).map(|at| SpawnedTask::spawn(work(at))).collect();
        let mut found = work(0).await?;
        for other in others {
            found.merge(other.join_unwind().await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??);
        }
        Ok(found)
    }

    /// Takes slices until none is left.
    async fn compare(&self, query: &Query, slices: &[Slice], next: &AtomicUsize) -> Result<Found> {
        let mut found = Found::new(self.reach);
        while let Some(slice) = slices.get(next.fetch_add(1, Ordering::Relaxed)) {
            self.compared.add(slice.row_count());
            found.add(query, slice, self.vector_type)?;
            tokio::task::yield_now().await;
        }
        Ok(found)
    }
}

/// The addresses that a plan emits, ascending, each once.
async fn addresses(mut stream: SendableRecordBatchStream, reservation: &MemoryReservation) -> Result<Vec<u64>> {
    let mut addresses: Vec<u64> = vec![];
    while let Some(batch) = stream.next().await {
        addresses.extend_from_slice(batch?.column(0).as_primitive::<UInt64Type>().values());
        reservation.try_resize(addresses.capacity() * size_of::<u64>())?;
    }
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The offsets in a chunk that are candidates: `None` inside for all, nothing at all if there are none.
pub(crate) fn within_chunk(
    chunk: VectorChunkRef,
    selected: Option<&Selection>,
) -> Option<(VectorChunkRef, Option<Vec<u32>>)> {
    let Some(selected) = selected else { return Some((chunk, None)) };
    let offsets = selected.offsets(chunk.first_address, chunk.rows);
    (!offsets.is_empty()).then_some((chunk, Some(offsets)))
}

/// A run of rows of one chunk, or some of its rows.
struct Slice {
    chunk: Arc<VectorChunk>,
    rows: Range<usize>,
    /// Offsets from the start of `rows`, ascending; all rows if absent.
    selected: Option<Vec<u32>>,
}

impl Slice {
    fn cut(chunk: &Arc<VectorChunk>, selected: Option<Vec<u32>>) -> Vec<Self> {
        let selected = match (selected, &chunk.live) {
            (None, None) => None,
            (None, Some(live)) => Some(live.iter().collect()),
            (Some(selected), None) => Some(selected),
            (Some(mut selected), Some(live)) => {
                selected.retain(|offset| live.contains(*offset));
                Some(selected)
            }
        };
        let length = chunk.vectors.len();
        let ranges = (0..length).step_by(SLICE_ROWS).map(|start| start..(start + SLICE_ROWS).min(length));
        let slice = |rows: Range<usize>| {
            let selected = selected.as_ref().map(|selected| {
                let start = selected.partition_point(|offset| (*offset as usize) < rows.start);
                let stop = selected.partition_point(|offset| (*offset as usize) < rows.end);
                selected[start..stop].iter().map(|offset| offset - rows.start as u32).collect::<Vec<u32>>()
            });
            Self { chunk: Arc::clone(chunk), rows, selected }
        };
        ranges.map(slice).filter(|slice| slice.row_count() > 0).collect()
    }

    fn row_count(&self) -> usize {
        self.selected.as_ref().map_or(self.rows.len(), Vec::len)
    }

    fn first_address(&self) -> u64 {
        self.chunk.first_address + self.rows.start as u64
    }
}

/// What was found so far.
enum Found {
    Nearest(TopK),
    Within { distance: f64, inclusive: bool, hits: Vec<Neighbor> },
}

impl Found {
    fn new(reach: Reach) -> Self {
        match reach {
            Reach::Nearest { k } => Self::Nearest(TopK::new(k)),
            Reach::Within { distance, inclusive } => Self::Within { distance, inclusive, hits: vec![] },
        }
    }

    fn add(&mut self, query: &Query, slice: &Slice, vector_type: VectorType) -> Result<()> {
        let array: ArrayRef = Arc::new(slice.chunk.vectors.slice(slice.rows.start, slice.rows.len()));
        let vectors = VectorArray::read(&array, &vector_type.field("", true), None)?;
        let failed = |error: kernels::DistanceError| DataFusionError::Execution(error.to_string());
        let first = slice.first_address();
        match (self, &slice.selected) {
            (Self::Nearest(top), None) => query.top_k(vectors.vectors(), first, top).map_err(failed),
            (Self::Nearest(top), Some(selected)) => {
                query.top_k_selected(vectors.vectors(), first, selected, top).map_err(failed)
            }
            (Self::Within { distance, inclusive, hits }, selected) => {
                let mut distances = vec![0.0; slice.rows.len()];
                query.distances(vectors.vectors(), &mut distances).map_err(failed)?;
                let near = |at: &usize| distances[*at] < *distance || (*inclusive && distances[*at] == *distance);
                let hit = |at: usize| Neighbor { distance: distances[at], row: first + at as u64 };
                match selected {
                    Some(selected) => hits.extend(selected.iter().map(|at| *at as usize).filter(near).map(hit)),
                    None => hits.extend((0..slice.rows.len()).filter(near).map(hit)),
                }
                Ok(())
            }
        }
    }

    fn merge(&mut self, other: Self) {
        match (self, other) {
            (Self::Nearest(top), Self::Nearest(other)) => top.merge(other),
            (Self::Within { hits, .. }, Self::Within { hits: other, .. }) => hits.extend(other),
            _ => {}
        }
    }

    /// Bytes of what was found; those of the nearest alone are few.
    fn bytes(&self) -> usize {
        match self {
            Self::Nearest(_) => 0,
            Self::Within { hits, .. } => hits.capacity() * size_of::<Neighbor>(),
        }
    }

    fn into_hits(self) -> Vec<Neighbor> {
        match self {
            Self::Nearest(top) => top.into_sorted(),
            Self::Within { mut hits, .. } => {
                hits.sort_unstable_by_key(|hit| hit.row);
                hits
            }
        }
    }
}
