//! The part of a search that an index answers: candidates from its segments, compared exactly; what it does not cover, and what is
//! compared sooner than looked up, is left for the exact search.

use std::sync::Arc;

use ann::{Effort, Found, Index, Request, RowSet, Step, Work};
use arrow::array::ArrayRef;
use datafusion::common::exec_datafusion_err;
use datafusion::error::Result;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder};
use kernels::{ElementType, Metric, Query, TopK};
use planner::index_spec::IndexSpec;
use planner::settings::Settings;
use planner::vector_type::{Element, VectorType};
use planner::vectors::VectorArray;
use storage::{
    CoveredSegment, IndexDefinition, LocalRows, OpenIndex, Segment, Selection, Snapshot, StorageError, VectorChunkRef,
};

use crate::external;
use crate::index_build::opened;
use crate::index_cost::Costs;
use crate::index_merge::SegmentBytes;
use crate::vector_search::within_chunk;

/// How much more a search spends that found too few rows, before all are compared.
const HARDER: usize = 8;

/// The index that serves a search in this column by this metric: the newest one that has a segment, or else the newest one.
///
/// # Errors
/// A column that the snapshot does not have.
pub(crate) async fn serving(
    snapshot: &Snapshot,
    column: &str,
    metric: Metric,
) -> Result<Option<(IndexDefinition, IndexSpec)>> {
    let known = snapshot.indexes().await;
    if known.indexes.is_empty() {
        return Ok(None);
    }
    let indexes = snapshot.indexes_of(column).await.map_err(external)?;
    let with_spec = |index: IndexDefinition| IndexSpec::of_text(&index.options).map(|spec| (index, spec));
    let of_metric = indexes.into_iter().filter_map(with_spec).filter(|(_, spec)| spec.metric == metric);
    // One that is being built has nothing to say yet.
    Ok(of_metric.max_by_key(|(index, _)| (known.segments_of(index).next().is_some(), index.created_at_us)))
}

/// The error of a search that no index serves though one is required. `instead`: why none can.
pub(crate) fn not_served(column: &str, metric: Metric, instead: Option<&str>) -> String {
    let next = match instead {
        Some(why) => why.to_owned(),
        None if metric == Metric::L1 => "there are no indexes for l1 distances".to_owned(),
        None => format!("CREATE INDEX … USING auto (… {}) makes one", metric.name()),
    };
    format!(
        "require_index is on, and no index serves a search in {column} by {}: {next}; or SET require_index = off",
        metric.name()
    )
}

/// What a search by an index counts.
#[derive(Debug, Clone)]
pub(crate) struct IndexCounts {
    /// Segments that were searched by their index.
    segments: Count,
    /// Segments whose matching rows were all compared, since that was estimated to be cheaper.
    segments_compared: Count,
    /// Rows that no segment covers.
    uncovered: Count,
    lists: Count,
    hops: Count,
    codes: Count,
    reranked: Count,
    bytes: Count,
    /// The estimates that decided, in microseconds: of the index and of comparing all.
    cost_index: Count,
    cost_exact: Count,
}

impl IndexCounts {
    pub(crate) fn new(metrics: &ExecutionPlanMetricsSet) -> Self {
        let counter = |name: &'static str| MetricBuilder::new(metrics).counter(name, 0);
        Self {
            segments: counter("index_segments"),
            segments_compared: counter("index_segments_compared"),
            uncovered: counter("index_rows_uncovered"),
            lists: counter("index_lists"),
            hops: counter("index_hops"),
            codes: counter("index_codes"),
            reranked: counter("index_reranked"),
            bytes: counter("index_bytes"),
            cost_index: counter("index_cost_us"),
            cost_exact: counter("index_compared_cost_us"),
        }
    }

    fn add(&self, work: Work) {
        let add = |count: &Count, value: u64| count.add(usize::try_from(value).unwrap_or(usize::MAX));
        self.segments.add(1);
        add(&self.lists, work.lists);
        add(&self.hops, work.hops);
        add(&self.codes, work.codes);
        add(&self.reranked, work.reranked);
        add(&self.bytes, work.bytes);
    }
}

/// One search, of one query vector.
pub(crate) struct IndexSearch<'a> {
    pub(crate) snapshot: &'a Snapshot,
    /// The column of vectors.
    pub(crate) column: &'a str,
    pub(crate) vector_type: VectorType,
    pub(crate) k: usize,
    pub(crate) query: &'a Query,
    pub(crate) vector: &'a VectorArray,
    pub(crate) settings: &'a Settings,
    pub(crate) counts: &'a IndexCounts,
}

/// What the index found, and what is left to be compared.
pub(crate) struct Answered {
    pub(crate) found: TopK,
    pub(crate) rest: Vec<(VectorChunkRef, Option<Vec<u32>>)>,
}

/// How a segment is searched.
enum Way {
    /// Its candidates are in.
    Found(Found),
    /// All of its matching rows are compared.
    Compare,
}

impl IndexSearch<'_> {
    /// Asks the index. `selected`: the candidates; all rows if absent. `None` if the index was dropped
    /// meanwhile, perhaps for another one of its name.
    ///
    /// # Errors
    /// Files that cannot be read. A damaged index is no error: its rows are compared.
    pub(crate) async fn run(
        &self,
        index: &IndexDefinition,
        spec: &IndexSpec,
        selected: Option<&Selection>,
    ) -> Result<Option<Answered>> {
        let open: OpenIndex = match self.snapshot.open_index(&index.name).await {
            Ok(open) if open.coverage.index.id == index.id => open,
            Ok(_) | Err(StorageError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(external(error)),
        };
        let mut answered = Answered { found: TopK::new(self.k), rest: vec![] };
        self.counts.uncovered.add(usize::try_from(open.coverage.uncovered_rows).unwrap_or(usize::MAX));
        for uncovered in &open.coverage.uncovered {
            let Some((chunk, mut offsets)) = within_chunk(uncovered.chunk.clone(), selected) else { continue };
            if let Some(rows) = &uncovered.rows {
                match &mut offsets {
                    Some(offsets) => offsets.retain(|offset| rows.contains(*offset)),
                    None => offsets = Some(rows.iter().collect()),
                }
            }
            answered.rest.push((chunk, offsets));
        }
        let mut addresses = vec![];
        for (covered, segment) in open.coverage.segments.iter().zip(&open.segments) {
            let selected = selected.map(|selected| selected.within(covered));
            let matching = selected.as_ref().or_else(|| covered.live());
            if matching.is_some_and(|matching| matching.count == 0) {
                continue;
            }
            match self.search_segment(covered, segment, spec, matching) {
                Way::Found(found) => {
                    self.counts.add(found.work);
                    let rows: Vec<u32> = found.candidates.iter().map(|candidate| candidate.row).collect();
                    match self.held_distances(segment, &rows) {
                        // The index holds the vectors without loss: nobody has to read them.
                        Some(distances) => {
                            let found = rows.iter().zip(distances);
                            found
                                .filter_map(|(row, distance)| Some((covered.address(*row)?, distance)))
                                .for_each(|(address, distance)| answered.found.push(distance, address));
                        }
                        None => addresses.extend(rows.iter().filter_map(|row| covered.address(*row))),
                    }
                }
                Way::Compare => {
                    self.counts.segments_compared.add(1);
                    self.compare_later(covered, matching, &mut answered)?;
                }
            }
            tokio::task::yield_now().await;
        }
        addresses.sort_unstable();
        addresses.dedup();
        self.rerank(&Selection::of_addresses(addresses), &mut answered.found).await?;
        Ok(Some(answered))
    }

    /// Searches a segment in the way that is estimated to be cheaper, and compares all where an index says too little.
    fn search_segment(
        &self,
        covered: &CoveredSegment,
        segment: &Segment,
        spec: &IndexSpec,
        matching: Option<&LocalRows>,
    ) -> Way {
        let refuse = |why: &str| {
            self.snapshot.refuse_segment(segment, why);
            Way::Compare
        };
        let index = match opened(segment) {
            Ok(index) => index,
            Err(why) => return refuse(&why),
        };
        let is_of_column = index.dim() == self.vector_type.dim && index.element() == element_type(self.vector_type);
        if !is_of_column || index.metric() != spec.metric || index.rows() as u64 != segment.rows() {
            return refuse("it was built of other vectors, or for another metric");
        }
        let rows = matching.map_or_else(|| covered.live_rows(), |matching| matching.count);
        // A LIMIT may be any number.
        let k = self.k.min(rows);
        let mut request = Request {
            query: self.vector.vector(0),
            k,
            matching: matching.map(|matching| RowSet::new(&matching.words, matching.count)),
            effort: self.effort(index.as_ref().as_ref(), spec, k),
        };
        let row_bytes = element_type(self.vector_type).bytes_per_row(self.vector_type.dim);
        let costs = Costs::of_machine();
        let by_index = costs.of_index(index.estimate(&request), row_bytes);
        let by_comparing = costs.of_comparing(rows, row_bytes);
        self.counts.cost_index.add(by_index as usize / 1_000);
        self.counts.cost_exact.add(by_comparing as usize / 1_000);
        if by_comparing <= by_index {
            return Way::Compare;
        }
        for _ in 0..2 {
            match index.search(&request, &SegmentBytes(segment)) {
                Ok(Step::Found(found)) if found.candidates.len() >= k => return Way::Found(found),
                Ok(Step::Found(_)) => request.effort = harder(request.effort, k),
                // All bytes are at hand.
                Ok(Step::Wants(ranges)) => return refuse(&format!("it wants bytes that it does not have: {ranges:?}")),
                Err(error) => return refuse(&error.to_string()),
            }
        }
        Way::Compare
    }

    /// The exact distances of rows out of the index itself, where it can tell them.
    fn held_distances(&self, segment: &Segment, rows: &[u32]) -> Option<Vec<f64>> {
        opened(segment).ok()?.exact_distances(self.vector.vector(0), rows, &SegmentBytes(segment))
    }

    /// What the index was measured to need for the recall that is wanted, and in its place what the session asks for.
    fn effort(&self, index: &dyn Index, spec: &IndexSpec, k: usize) -> Effort {
        let wished = |setting: usize| (setting > 0).then_some(setting);
        let compared = |measured: usize| wished(self.settings.rerank).map_or(measured, |rerank| rerank.max(k));
        match index.effort(self.settings.recall_target, k) {
            Effort::Graph { beam, stop, rerank } => match wished(self.settings.ef_search).or(spec.effort) {
                // Whoever says how many are kept wants them all looked at.
                Some(beam) => Effort::Graph { beam: beam.max(k), stop: f32::INFINITY, rerank: compared(beam.max(k)) },
                None => Effort::Graph { beam, stop, rerank: compared(rerank) },
            },
            Effort::Ivf { probes, rerank } => {
                let probes = wished(self.settings.nprobe).or(spec.effort).unwrap_or(probes);
                Effort::Ivf { probes, rerank: compared(rerank) }
            }
            Effort::Flat { rerank } => Effort::Flat { rerank: compared(rerank) },
        }
    }

    /// Leaves the matching rows of a segment to the exact search.
    fn compare_later(
        &self,
        covered: &CoveredSegment,
        matching: Option<&LocalRows>,
        answered: &mut Answered,
    ) -> Result<()> {
        let all = LocalRows { words: vec![u64::MAX; (covered.entry.rows as usize).div_ceil(64)], count: 0 };
        let words = matching.map_or(all.words.as_slice(), |matching| matching.words.as_slice());
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        let mut addresses: Vec<u64> = RowSet::new(words, count).rows().filter_map(|row| covered.address(row)).collect();
        addresses.sort_unstable();
        let rows = Selection::of_addresses(addresses);
        let chunks = self.snapshot.vector_chunks(self.column).map_err(external)?;
        answered.rest.extend(chunks.into_iter().filter_map(|chunk| within_chunk(chunk, Some(&rows))));
        Ok(())
    }

    /// Compares these rows exactly.
    async fn rerank(&self, rows: &Selection, found: &mut TopK) -> Result<()> {
        let failed = |error: kernels::DistanceError| exec_datafusion_err!("{error}");
        let keeps = self.snapshot.can_keep_vectors(self.column).map_err(external)?;
        let mut taken: Vec<u64> = vec![];
        for chunk in self.snapshot.vector_chunks(self.column).map_err(external)? {
            let Some((chunk, Some(offsets))) = within_chunk(chunk, Some(rows)) else { continue };
            // To decode a chunk for a few rows pays only if it stays.
            if !keeps && self.snapshot.decoding_bytes(&chunk).map_err(external)? > 0 {
                taken.extend(offsets.iter().map(|offset| chunk.first_address + u64::from(*offset)));
                continue;
            }
            let loaded = self.snapshot.load_vectors(&chunk).await.map_err(external)?;
            let array: ArrayRef = Arc::new(loaded.vectors.clone());
            let vectors = VectorArray::read(&array, &self.vector_type.field("", true), None)?;
            self.query.top_k_selected(vectors.vectors(), chunk.first_address, &offsets, found).map_err(failed)?;
        }
        if taken.is_empty() {
            return Ok(());
        }
        let columns = [self.column.to_owned()];
        let batch = self.snapshot.take(&taken, &columns).await.map_err(external)?;
        let vectors = VectorArray::read(batch.column(0), batch.schema().field(0), None)?;
        let mut distances = vec![0.0; taken.len()];
        self.query.distances(vectors.vectors(), &mut distances).map_err(failed)?;
        for (at, (address, distance)) in taken.iter().zip(distances).enumerate() {
            if vectors.is_valid(at) {
                found.push(distance, *address);
            }
        }
        Ok(())
    }
}

fn harder(effort: Effort, k: usize) -> Effort {
    let more = |effort: usize, k: usize| effort.max(k).saturating_mul(HARDER);
    match effort {
        Effort::Flat { rerank } => Effort::Flat { rerank: more(rerank, k) },
        Effort::Ivf { rerank, .. } => Effort::Ivf { probes: usize::MAX, rerank: more(rerank, k) },
        Effort::Graph { beam, rerank, .. } => {
            Effort::Graph { beam: more(beam, k), stop: f32::INFINITY, rerank: more(rerank, k) }
        }
    }
}

/// The elements as kernels call them.
pub(crate) fn element_type(vector_type: VectorType) -> ElementType {
    match vector_type.element {
        Element::Float32 => ElementType::F32,
        Element::Float16 => ElementType::F16,
        Element::Int8 => ElementType::I8,
        Element::UInt8 => ElementType::U8,
        Element::Bit => ElementType::Bits,
    }
}
