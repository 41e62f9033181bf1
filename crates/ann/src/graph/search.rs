//! Searching a graph: the query into the space of the codes, then a walk, or a scan where that is less.

use std::cell::Cell;

use kernels::{BitQuery, CodeQuery, ElementType, Metric, Vectors, dot_f32, prefetch};

use super::exact;
use super::format::{ADJACENCY, CALIBRATED, CODES, Coding, EffortStep, Far, Head, ROWS, WHOLE, damaged};
use super::points::Scorer;
use super::source::widen;
use super::space::{Measure, Projected};
use super::walk::{Graph, Reach, Scratch};
use crate::{Candidate, Effort, FormatError, Found, Index, Request, RowSet, Sections, Step, Work};

/// Widest beam: beyond, inserting costs more than scanning.
const BEAM_MAX: usize = 1 << 14;
/// Results that a sorted beam is used for; more are collected and sorted.
const SORTED_MAX: usize = 1 << 12;
/// Vertices that a scan scores at a time.
const SCANNED: usize = 64;
/// What a code costs in a scan, against one of a walk: they come in order.
const SCAN_COST: f64 = 0.5;
/// Bytes of whole vectors that are asked for ahead: what the first-level cache has room for beside the rest.
const REFINED_AHEAD: usize = 4096;
/// Share of the missing recall by which a calibrated effort is to be better than what was asked for.
const MARGIN: f64 = 0.15;

/// An opened graph.
#[derive(Debug)]
pub struct GraphIndex {
    head: Head,
}

/// Opens a graph from its head, section 0. Cost: reading the head once.
///
/// # Errors
/// [`FormatError`] if the bytes are no head of a graph, a later version's, or damaged.
pub fn open(head: &[u8]) -> Result<Box<dyn Index>, FormatError> {
    Ok(Box::new(GraphIndex::open(head)?))
}

/// What a thread keeps from one search to the next.
#[derive(Debug, Default)]
struct Buffers {
    walk: Scratch,
    projected: Projected,
    scorer: Option<Scorer>,
    scanned: [Vec<u32>; 2],
    refined: Refined,
}

/// Candidates compared without loss, where whole vectors are kept.
#[derive(Debug, Default)]
struct Refined {
    query: Option<CodeQuery>,
    floats: Vec<f32>,
    vertices: Vec<u32>,
    scores: Vec<f32>,
}

thread_local! {
    static BUFFERS: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

/// What a search does.
#[derive(Clone, Copy, Debug)]
struct Plan {
    beam: usize,
    /// Of squared distances.
    stop: f32,
    rerank: usize,
    /// Rows that may be candidates.
    matching: usize,
    /// Codes that a walk compares, by estimate.
    codes: f64,
}

impl Plan {
    /// Whether comparing all that match costs less than walking.
    fn scans(&self) -> bool {
        self.matching as f64 * SCAN_COST <= self.codes || self.rerank > BEAM_MAX
    }
}

/// The bytes of a search.
#[derive(Clone, Copy)]
struct View<'a> {
    graph: Graph<'a>,
    /// Little-endian u32, one per vertex; absent where vertices are rows.
    rows: Option<&'a [u8]>,
    /// The records of whole vectors, or nothing.
    whole: &'a [u8],
}

impl View<'_> {
    #[inline]
    fn row(&self, vertex: u32) -> u32 {
        let row =
            |rows: &[u8]| rows.as_chunks::<4>().0.get(vertex as usize).map_or(u32::MAX, |row| u32::from_le_bytes(*row));
        self.rows.map_or(vertex, row)
    }
}

impl Index for GraphIndex {
    fn metric(&self) -> Metric {
        self.head.metric
    }

    fn dim(&self) -> usize {
        self.head.dim
    }

    fn element(&self) -> ElementType {
        self.head.element
    }

    fn rows(&self) -> usize {
        self.head.rows
    }

    fn effort(&self, recall: f64, k: usize) -> Effort {
        let (steps, scale) = self.steps(k);
        let enough = recall + (1.0 - recall) * MARGIN;
        let step = EffortStep::reaching(steps, enough.min(0.999) as f32);
        // None was measured to reach it: twice the most that was.
        let (step, more) = match (step, steps.last()) {
            (Some(step), _) => (step, 1.0),
            (None, Some(last)) => (*last, 2.0),
            (None, None) => (EffortStep { recall: 0.0, stop: f32::INFINITY, beam: 64, rerank: 32, codes: 0 }, 1.0),
        };
        let scaled = |count: u32| (f64::from(count) * scale * more).ceil() as usize;
        let rerank = scaled(step.rerank).max(k);
        Effort::Graph { beam: scaled(step.beam).max(rerank), stop: step.stop, rerank }
    }

    fn estimate(&self, request: &Request<'_>) -> Work {
        let plan = self.plan(request, &[]);
        let walked = plan.codes.min(self.head.vertices as f64) as u64;
        let codes = if plan.scans() { plan.matching as u64 } else { walked };
        let hops = if plan.scans() { 0 } else { codes.div_ceil(self.head.degree as u64 / 2).max(1) };
        let given = if self.head.whole.is_some() { request.k } else { plan.rerank };
        let reranked = (given.min(plan.matching) + self.head.outliers.len()) as u64;
        Work { lists: 0, hops, codes, reranked, bytes: self.bytes(codes, hops) }
    }

    fn exact_distances(&self, query: Vectors<'_>, rows: &[u32], sections: &dyn Sections) -> Option<Vec<f64>> {
        exact::distances(&self.head, query, rows, sections)
    }

    fn search(&self, request: &Request<'_>, sections: &dyn Sections) -> Result<Step, FormatError> {
        self.search_as(request, sections, Manner { hidden: None, refines: true })
    }
}

/// How a search differs from a usual one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// A vertex that is as if it were not there: how a calibration takes a row for a query that is none of the rows.
    pub hidden: Option<u32>,
    /// Whether candidates are compared by whole vectors, if there are any, and only the nearest given out.
    pub refines: bool,
}

impl GraphIndex {
    pub(super) fn search_as(
        &self,
        request: &Request<'_>,
        sections: &dyn Sections,
        manner: Manner,
    ) -> Result<Step, FormatError> {
        let view = match self.view(sections)? {
            Ok(view) => view,
            Err(missing) => return Ok(Step::Wants(missing)),
        };
        if request.k == 0 || request.matching.is_some_and(RowSet::is_empty) {
            return Ok(Step::Found(Found::default()));
        }
        let mut buffers = BUFFERS.take().unwrap_or_default();
        buffers.walk.hidden = manner.hidden;
        let found = self.search_in(request, &view, manner.refines, &mut buffers);
        BUFFERS.set(Some(buffers));
        let mut found = found?;
        let outliers = self.head.outliers.iter().copied();
        let outliers = outliers.filter(|row| request.matching.is_none_or(|matching| matching.contains(*row)));
        // Nothing is known of their distances.
        let candidate = |row| Candidate { row, estimate: f32::INFINITY, bound: f32::NEG_INFINITY };
        found.candidates.extend(outliers.map(candidate));
        found.work.reranked = found.candidates.len() as u64;
        Ok(Step::Found(found))
    }

    pub(super) fn open(head: &[u8]) -> Result<Self, FormatError> {
        Ok(Self { head: Head::read(head)? })
    }

    /// The sections, or those that are not at hand.
    fn view<'a>(&self, sections: &'a dyn Sections) -> Result<Result<View<'a>, Wanted>, FormatError> {
        let head = &self.head;
        let row_map = if head.has_row_map { head.vertices * 4 } else { 0 };
        let whole = head.whole.map_or(0, |whole| head.vertices * whole.layout.bytes());
        let lengths = [
            (CODES, head.vertices * head.record_bytes()),
            (ADJACENCY, head.vertices * head.degree * 4),
            (ROWS, row_map),
            (WHOLE, whole),
        ];
        let mut parts: [&[u8]; 4] = [&[]; 4];
        let mut missing = Vec::new();
        for ((section, length), part) in lengths.into_iter().zip(&mut parts) {
            if sections.len(section) != length {
                return Err(damaged("a section is not as long as its head says"));
            }
            match sections.get(section, 0..length) {
                Some(bytes) => *part = bytes,
                None if length == 0 => {}
                None => missing.push((section, 0..length)),
            }
        }
        let [codes, adjacency, rows, whole] = parts;
        let graph = Graph { codes, adjacency, degree: head.degree, vertices: head.vertices };
        Ok(if missing.is_empty() {
            Ok(View { graph, rows: head.has_row_map.then_some(rows), whole })
        } else {
            Err(missing)
        })
    }

    /// The calibration that `k` is nearest to, and how many times as many neighbors are wanted.
    fn steps(&self, k: usize) -> (&[EffortStep], f64) {
        let at = if k <= 3 { 0 } else { 1 + usize::from(k > 30) };
        (&self.head.efforts[at], (k as f64 / CALIBRATED[at] as f64).max(1.0))
    }

    /// `far`: the kinds that the query may be of, if it is unlike the rows.
    fn plan(&self, request: &Request<'_>, far: &[Far]) -> Plan {
        let vertices = self.head.vertices.max(1);
        let matching = request.matching.map_or(vertices, |matching| matching.len().min(vertices));
        let (mut beam, mut stop, mut rerank) = match request.effort {
            Effort::Graph { beam, stop, rerank } => (beam, stop, rerank),
            Effort::Flat { rerank } | Effort::Ivf { rerank, .. } => (2 * rerank, f32::INFINITY, rerank),
        };
        let (steps, scale) = self.steps(request.k);
        // What was measured with this effort.
        let measured = EffortStep::stopping(steps, stop).filter(|step| step.beam as usize * 2 >= beam.max(rerank));
        let mut codes = measured.map(|step| f64::from(step.codes) * scale);
        if let Some(usual) = measured {
            // What was not measured is the caller's own wish.
            let scale = (request.k as f64 / CALIBRATED[1] as f64).max(1.0);
            let scaled = |count: u32| (f64::from(count) * scale).ceil() as usize;
            for step in far.iter().map(|kind| kind.like(&usual)) {
                (beam, rerank) = (beam.max(scaled(step.beam)), rerank.max(scaled(step.rerank)));
                stop = stop.max(step.stop);
                codes = codes.map(|codes| codes.max(f64::from(step.codes) * scale));
            }
        }
        let rerank = rerank.max(request.k).min(matching);
        let beam = beam.max(rerank).max(1);
        // Or else half of the neighbors of as many vertices as are kept.
        let codes = codes.unwrap_or((beam * self.head.degree) as f64 / 2.0);
        let rarity = vertices as f64 / matching.max(1) as f64;
        let beam = ((beam as f64 * rarity) as usize).min(BEAM_MAX).min(vertices).max(1);
        let stop = if stop.is_nan() { f32::INFINITY } else { stop * stop };
        Plan { beam, stop, rerank, matching, codes: codes * rarity }
    }

    fn bytes(&self, codes: u64, hops: u64) -> u64 {
        codes * self.head.record_bytes() as u64 + hops * self.head.degree as u64 * 4
    }

    fn search_in(
        &self,
        request: &Request<'_>,
        view: &View<'_>,
        refines: bool,
        buffers: &mut Buffers,
    ) -> Result<Found, FormatError> {
        let refines = refines && self.prepare_refined(request.query, &mut buffers.refined);
        let Some(measure) = self.prepare(request.query, buffers)? else { return Ok(Found::default()) };
        let Some(scorer) = buffers.scorer.take().filter(|_| self.head.vertices > 0) else {
            return Ok(Found::default());
        };
        let plan = self.plan(request, self.head.far(buffers.projected.beside));
        let k = request.k.min(plan.matching);
        let mut work = Work::default();
        let mut nearest = Vec::with_capacity(plan.rerank.min(SORTED_MAX));
        let walked = !plan.scans() && {
            let reach = Reach { beam: plan.beam, stop: plan.stop, k, shift: measure.shift, results: plan.rerank };
            let filter = request.matching.map(|set| move |vertex: u32| set.contains(view.row(vertex)));
            let filter = filter.as_ref().map(|filter| filter as &dyn Fn(u32) -> bool);
            let entries: &[u8] = bytemuck::cast_slice(&self.head.entries);
            work.hops = buffers.walk.walk(&view.graph, &scorer, entries, &reach, filter);
            work.codes = buffers.walk.visited.count() as u64;
            let results = if filter.is_some() { &buffers.walk.results } else { &buffers.walk.beam };
            nearest
                .extend(results.iter().take(plan.rerank).map(|(score, vertex)| self.candidate(measure, score, vertex)));
            results.len() >= k && buffers.walk.covers(k, filter.is_some())
        };
        if !walked {
            // Few match, or they are not where the query is.
            nearest.clear();
            work.codes += plan.matching as u64;
            self.scan(request.matching, view, &scorer, plan.rerank, buffers, &mut |score, vertex| {
                nearest.push(self.candidate(measure, score, vertex));
            });
        }
        buffers.scorer = Some(scorer);
        if refines {
            work.bytes += self.refine(view, k, &mut buffers.refined, &mut nearest);
        }
        for candidate in &mut nearest {
            candidate.row = view.row(candidate.row);
        }
        if nearest.iter().any(|candidate| candidate.row as usize >= self.head.rows) {
            return Err(damaged("a vertex is of a row that does not exist"));
        }
        work.reranked = nearest.len() as u64;
        work.bytes += self.bytes(work.codes, work.hops);
        Ok(Found { candidates: nearest, work })
    }

    /// A candidate that has the vertex for its row.
    fn candidate(&self, measure: Measure, score: f32, vertex: u32) -> Candidate {
        let estimate = measure.estimate(score);
        let exact = matches!(self.head.coding, Coding::Bits(_));
        Candidate { row: vertex, estimate, bound: if exact { estimate } else { f32::NEG_INFINITY } }
    }

    /// Whether candidates can be compared without loss: there are whole vectors, and the query is one.
    fn prepare_refined(&self, query: Vectors<'_>, refined: &mut Refined) -> bool {
        let Some(whole) = self.head.whole.filter(|_| query.len() == self.head.dim) else { return false };
        refined.floats.clear();
        refined.floats.resize(self.head.dim, 0.0);
        widen(query, &mut refined.floats);
        refined.floats.iter_mut().for_each(|value| *value -= whole.shift);
        let mut codes = match refined.query.take() {
            Some(codes) if *codes.layout() == whole.layout => codes,
            _ => CodeQuery::new(whole.layout),
        };
        codes.set(&refined.floats);
        refined.query.insert(codes).is_exact()
    }

    /// Keeps the `k` nearest by whole vectors, nearest first. Returns the bytes read.
    fn refine(&self, view: &View<'_>, k: usize, refined: &mut Refined, nearest: &mut Vec<Candidate>) -> u64 {
        let Refined { query: Some(query), floats, vertices, scores } = refined else { return 0 };
        let bytes = query.layout().bytes();
        let record = |vertex: u32| view.whole.get(vertex as usize * bytes..).unwrap_or_default();
        vertices.clear();
        vertices.extend(nearest.iter().map(|candidate| candidate.row));
        scores.resize(vertices.len(), 0.0);
        let ahead = (REFINED_AHEAD / bytes).max(1);
        vertices.iter().take(ahead).for_each(|vertex| prefetch(record(*vertex)));
        for (at, (some, scores)) in vertices.chunks(ahead).zip(scores.chunks_mut(ahead)).enumerate() {
            vertices.iter().skip((at + 1) * ahead).take(ahead).for_each(|vertex| prefetch(record(*vertex)));
            if query.scores(view.whole, some, scores).is_err() {
                debug_assert!(false, "the walk found vertices that do not exist");
                return 0;
            }
        }
        let square = dot_f32(floats, floats);
        for (candidate, score) in nearest.iter_mut().zip(&*scores) {
            candidate.estimate = (score + square).max(0.0).sqrt();
        }
        nearest.sort_by(|a, b| a.estimate.total_cmp(&b.estimate));
        nearest.truncate(k);
        (vertices.len() * bytes) as u64
    }

    /// Puts the query into the scorer. `None` if its distances are undefined.
    fn prepare(&self, query: Vectors<'_>, buffers: &mut Buffers) -> Result<Option<Measure>, FormatError> {
        let bits = query.element_type() == ElementType::Bits;
        let length = if bits { self.head.dim.div_ceil(8) } else { self.head.dim };
        if bits != (self.head.element == ElementType::Bits) || query.len() != length {
            let (element, dim) = (query.element_type().name(), self.head.dim);
            return Err(damaged(&format!(
                "it has {dim} dimensions, and the query is {} values of {element}",
                query.len()
            )));
        }
        Ok(match (&self.head.coding, query) {
            (Coding::Bits(metric), Vectors::Bits(values)) => {
                let mut query = BitQuery::new(self.head.dim, *metric == Metric::Jaccard);
                query.set(values);
                buffers.scorer = Some(Scorer::Bits(query));
                Some(Measure::of_bits(*metric))
            }
            (Coding::Scalar(layout, space), query) => {
                let measure = space.project_query(query, &mut buffers.projected);
                let mut codes = match buffers.scorer.take() {
                    Some(Scorer::Codes(codes)) if codes.layout() == layout => codes,
                    _ => CodeQuery::new(*layout),
                };
                codes.set(&buffers.projected.vector);
                buffers.scorer = Some(Scorer::Codes(codes));
                measure
            }
            _ => None,
        })
    }

    /// Compares all vertices that match, and shows the `count` nearest, nearest first.
    fn scan(
        &self,
        matching: Option<RowSet<'_>>,
        view: &View<'_>,
        scorer: &Scorer,
        count: usize,
        buffers: &mut Buffers,
        show: &mut dyn FnMut(f32, u32),
    ) {
        let bytes = scorer.bytes();
        let Buffers { walk, scanned: [ahead, now], .. } = buffers;
        let Scratch { results, scores, .. } = walk;
        let mut all = Vec::new();
        results.reset(if count > SORTED_MAX { 1 } else { count });
        ahead.clear();
        now.clear();
        let mut score = |vertices: &[u32]| {
            scorer.scores(view.graph.codes, vertices, scores);
            if count > SORTED_MAX {
                all.extend(scores.iter().copied().zip(vertices.iter().copied()).filter(|(score, _)| !score.is_nan()));
            } else {
                results.insert_all(scores, vertices, f32::INFINITY);
            }
        };
        each_matching(matching, view, |vertex| {
            prefetch(&view.graph.codes[vertex as usize * bytes..][..bytes]);
            ahead.push(vertex);
            if ahead.len() == SCANNED {
                score(now);
                std::mem::swap(ahead, now);
                ahead.clear();
            }
        });
        score(now);
        score(ahead);
        if count > SORTED_MAX {
            all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            all.iter().take(count).for_each(|(score, vertex)| show(*score, *vertex));
        } else {
            results.iter().for_each(|(score, vertex)| show(score, vertex));
        }
    }
}

impl EffortStep {
    /// The least effort that reaches `recall`, by the steps that were measured, cheapest first, and by what lies between two of them.
    /// More effort gains less and less, so that a mean of two efforts reaches at least the mean of their recalls.
    pub(super) fn reaching(steps: &[Self], recall: f32) -> Option<Self> {
        Self::between(steps, recall, |step| step.recall)
    }

    /// The effort that ends at `stop`, as above.
    fn stopping(steps: &[Self], stop: f32) -> Option<Self> {
        Self::between(steps, stop - 1e-5, |step| step.stop)
    }

    /// Where `what`, which must ascend, is first at least `wanted`.
    fn between(steps: &[Self], wanted: f32, what: impl Fn(&Self) -> f32) -> Option<Self> {
        let at = steps.iter().position(|step| what(step) >= wanted)?;
        let upper = steps[at];
        let Some(lower) = at.checked_sub(1).map(|at| steps[at]) else { return Some(upper) };
        let share = (wanted - what(&lower)) / (what(&upper) - what(&lower));
        if !(share > 0.0 && upper.stop.is_finite()) {
            return Some(upper);
        }
        let mean = |lower: f32, upper: f32| lower + share * (upper - lower);
        let count = |lower: u32, upper: u32| mean(lower as f32, upper as f32).ceil() as u32;
        Some(Self {
            recall: mean(lower.recall, upper.recall),
            stop: mean(lower.stop, upper.stop),
            beam: count(lower.beam, upper.beam),
            rerank: count(lower.rerank, upper.rerank),
            codes: count(lower.codes, upper.codes),
        })
    }
}

/// Parts of sections that are not at hand.
type Wanted = Vec<(usize, std::ops::Range<usize>)>;

/// Every vertex that may be a candidate.
fn each_matching(matching: Option<RowSet<'_>>, view: &View<'_>, mut visit: impl FnMut(u32)) {
    let vertices = 0..view.graph.vertices as u32;
    match (matching, view.rows) {
        (None, _) => vertices.for_each(visit),
        (Some(set), None) => set.rows().take_while(|row| (*row as usize) < view.graph.vertices).for_each(visit),
        (Some(set), Some(_)) => vertices.filter(|vertex| set.contains(view.row(*vertex))).for_each(&mut visit),
    }
}
