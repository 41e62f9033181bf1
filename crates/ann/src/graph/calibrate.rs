//! Which effort reaches which recall: measured, on rows held as queries, on mixtures of rows, which lie where rows are rare, and on
//! queries unlike the rows (`far.rs`).

use std::sync::{Mutex, PoisonError};

use kernels::{BytePanels, ElementType, Metric, Query, Vectors, dot_f32 as dot, largest_magnitude};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::far::{self, FAR_ASKED};
use super::format::{CALIBRATED, Coding, EffortStep, Far, Head};
use super::points::{key, vertex};
use super::random::draw;
use super::search::{GraphIndex, Manner};
use super::source::{block_ranges, each_vector};
use super::space::{Map, Space};
use crate::{BuildError, Control, Effort, Request, Resident, Rows, Step};

/// Rows held as queries; every fourth becomes a mixture of two.
const ASKED: usize = 256;
/// Neighbors that a recall is measured by, if there are as many.
const NEIGHBORS: usize = 6400;
/// Rows that are compared exactly for the truth, by rounded distances: the nearest 100 and those that rounding could hide.
const SHORTLIST: usize = 160;
/// Share of a mixture that is of its first row.
const SHARE: f32 = 0.7;
/// The stops that are tried, and the vertices that are kept beside `k`: the widest useful beam.
const LADDER: [(f32, usize); 13] = [
    (1.0, 24),
    (1.01, 48),
    (1.02, 72),
    (1.03, 96),
    (1.045, 120),
    (1.06, 144),
    (1.08, 168),
    (1.11, 192),
    (1.15, 216),
    (1.2, 240),
    (1.3, 300),
    (1.4, 420),
    (1.5, 600),
];
/// A recall beyond which nothing is tried, for queries like the rows and for others.
const ENOUGH: [f32; 2] = [0.9985, 0.992];
/// Recall that a smaller rerank may cost, of what a step reaches.
const RERANK_LOSS: f64 = 0.0015;

/// A query of the calibration, and its true neighbors.
pub(super) struct Asked {
    pub vector: Vec<f32>,
    pub bits: Vec<u8>,
    /// The row that it is, which does not count.
    pub own: Option<u32>,
    /// The same as a vertex.
    pub vertex: Option<u32>,
    /// Exact distances, nearest first.
    pub truth: Vec<(f64, u32)>,
}

impl Asked {
    fn vectors(&self) -> Vectors<'_> {
        if self.bits.is_empty() { Vectors::F32(&self.vector) } else { Vectors::Bits(&self.bits) }
    }
}

/// Measures efforts for each calibrated k, and for far queries. Deterministic; reads the rows twice.
pub(super) fn calibrate(
    rows: &dyn Rows,
    head: &Head,
    sections: &[Vec<u8>],
    vertices: &[u32],
    control: &Control,
) -> Result<([Vec<EffortStep>; 3], Vec<Far>), BuildError> {
    if vertices.len() < 2 {
        return Ok(Default::default());
    }
    let mut asked = draw_queries(rows, vertices, control.seed)?;
    let usual = asked.len();
    asked.extend(far::draw_queries(head, &asked, control.seed));
    let shortlists = shortlist(rows, head, vertices, &asked, control)?;
    compare(rows, head.metric, &mut asked, shortlists, control)?;
    let (usual, unlike) = asked.split_at(usual);
    let measured = CALIBRATED.map(|k| {
        let k = k.min(vertices.len() - 1);
        // The mixtures are every fourth, so that fewer queries are a like choice of them.
        measure(head, sections, &usual[..usual.len().min(NEIGHBORS.div_ceil(k))], k, &ladder(k), ENOUGH[0], control)
    });
    let [one, ten, hundred] = measured;
    let k = CALIBRATED[1].min(vertices.len() - 1);
    let mut kinds: Vec<Far> = vec![];
    for asked in unlike.chunks(FAR_ASKED) {
        let efforts = measure(head, sections, asked, k, &far::LADDER, ENOUGH[1], control)?;
        kinds.push(Far { beside: far::beside(head, asked), efforts });
    }
    kinds.sort_by(|one, other| one.beside.total_cmp(&other.beside));
    Ok(([one?, ten?, hundred?], kinds))
}

/// Stops and beams.
fn ladder(k: usize) -> Vec<(f32, usize)> {
    let rungs = LADDER.into_iter().enumerate();
    rungs.map(|(at, (stop, more))| (stop, (k + more).max(k * (at + 3) / 2).min(1 << 14))).collect()
}

/// Draws the queries.
fn draw_queries(rows: &dyn Rows, vertices: &[u32], seed: u64) -> Result<Vec<Asked>, BuildError> {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x6361_6c69);
    let mut held = Vec::new();
    for at in draw(seed ^ 0x6865_6c64, vertices.len(), ASKED) {
        let row = vertices[at];
        let (mut vector, mut bits) = (Vec::new(), Vec::new());
        let range = row as usize..row as usize + 1;
        if rows.element() == ElementType::Bits {
            rows.read(range, &mut |_, vectors| {
                if let Vectors::Bits(values) = vectors {
                    bits.extend_from_slice(values);
                }
            })?;
        } else {
            each_vector(rows, range, &mut |_, values| vector.extend_from_slice(values))?;
        }
        held.push(Asked { vector, bits, own: Some(row), vertex: Some(at as u32), truth: Vec::new() });
    }
    // Every fourth becomes a mixture with the one before.
    for at in (3..held.len()).step_by(4) {
        let (others, rest) = held.split_at_mut(at);
        let (mixed, other) = (&mut rest[0], &others[at - 1]);
        (mixed.own, mixed.vertex) = (None, None);
        let pairs = mixed.vector.iter_mut().zip(&other.vector);
        pairs.for_each(|(value, other)| *value = SHARE * *value + (1.0 - SHARE) * other);
        for (byte, other) in mixed.bits.iter_mut().zip(&other.bits) {
            let taken = (0..8).fold(0_u8, |taken, bit| taken | u8::from(random.random::<f32>() > SHARE) << bit);
            *byte = *byte & !taken | other & taken;
        }
    }
    Ok(held)
}

/// For each query the rows nearest by distances in 8-bit numbers of all dimensions: a blocked product of all rows with all queries.
fn shortlist(
    rows: &dyn Rows,
    head: &Head,
    vertices: &[u32],
    asked: &[Asked],
    control: &Control,
) -> Result<Vec<Vec<u64>>, BuildError> {
    let eight = EightBits::new(head, asked);
    let lists: Vec<Mutex<Vec<u64>>> = asked.iter().map(|_| Mutex::new(Vec::new())).collect();
    block_ranges(rows.len()).into_par_iter().try_for_each_init(
        || (Vec::new(), vec![Vec::new(); asked.len()]),
        |(row_buffer, found): &mut (Vec<i8>, Vec<Vec<u64>>), range| {
            control.advance(range.len() as u64)?;
            let worst: Vec<u64> =
                lists.iter().map(|list| worst(&list.lock().unwrap_or_else(PoisonError::into_inner))).collect();
            let mut sums = vec![0; eight.panels.stride()];
            let mut distances = vec![0.0; asked.len()];
            eight.each_row(rows, range, &mut |row, lifted| {
                if vertices.binary_search(&row).is_err() {
                    return;
                }
                eight.distances(lifted, row_buffer, &mut sums, &mut distances);
                for ((distance, found), worst) in distances.iter().zip(found.iter_mut()).zip(&worst) {
                    let key = key(*distance, row);
                    if key < *worst {
                        found.push(key);
                    }
                }
            })?;
            for ((list, found), asked) in lists.iter().zip(found).zip(asked) {
                found.retain(|key| Some(vertex(*key)) != asked.own);
                let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                list.append(found);
                if list.len() > SHORTLIST {
                    list.select_nth_unstable(SHORTLIST);
                    list.truncate(SHORTLIST);
                }
            }
            Ok(())
        },
    )?;
    Ok(lists.into_iter().map(|list| list.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
}

/// What a key must be below to enter a list.
fn worst(list: &[u64]) -> u64 {
    if list.len() < SHORTLIST { u64::MAX } else { list.iter().copied().max().unwrap_or(u64::MAX) }
}

/// Queries in 8-bit numbers, about the mean.
struct EightBits<'a> {
    space: Option<&'a Space>,
    jaccard: bool,
    panels: BytePanels,
    /// Per query: what one of its numbers stands for, and its squared length (bits: its ones).
    factors: Vec<(f32, f32)>,
}

impl<'a> EightBits<'a> {
    fn new(head: &'a Head, asked: &[Asked]) -> Self {
        let (space, jaccard) = match &head.coding {
            Coding::Bits(metric) => (None, *metric == Metric::Jaccard),
            Coding::Scalar(_, space) => (Some(space), false),
        };
        let (mut panels, mut factors, mut lifted) = (BytePanels::new(), Vec::new(), Vec::new());
        let mut rounded: Vec<i8> = Vec::new();
        let depth = space.map_or(head.dim, Space::lifted_dim);
        panels.pack(depth, asked.len(), |at, column| match space {
            None => {
                each_bit(&asked[at].bits, |i, bit| column[i] = bit);
                factors.push((1.0, column.iter().map(|bit| f32::from(*bit)).sum()));
            }
            Some(space) => {
                lift_query(space, &asked[at].vector, &mut lifted);
                let unit = largest_magnitude(&lifted).max(f32::MIN_POSITIVE) / 127.0;
                rounded.resize(depth, 0);
                kernels::round_to_bytes(&lifted, 1.0 / unit, &mut rounded);
                column.iter_mut().zip(&rounded).for_each(|(code, value)| *code = *value as u8 ^ 0x80);
                factors.push((unit, dot(&lifted, &lifted)));
            }
        });
        Self { space, jaccard, panels, factors }
    }

    /// Shows the rows of a block, lifted and about the mean, or as bits of 0 and 1.
    fn each_row(
        &self,
        rows: &dyn Rows,
        range: std::ops::Range<usize>,
        visit: &mut dyn FnMut(u32, &mut Vec<f32>),
    ) -> Result<(), BuildError> {
        let mut lifted = Vec::new();
        let Some(space) = self.space else {
            let bytes = rows.dim().div_ceil(8);
            return rows.read(range, &mut |first, vectors| {
                let Vectors::Bits(values) = vectors else { return };
                for (offset, bits) in values.chunks_exact(bytes).enumerate() {
                    lifted.clear();
                    lifted.resize(rows.dim(), 0.0);
                    each_bit(bits, |i, bit| lifted[i] = f32::from(bit));
                    visit((first + offset) as u32, &mut lifted);
                }
            });
        };
        each_vector(rows, range, &mut |row, vector| {
            space.lift_row(vector, &mut lifted);
            center(space, &mut lifted);
            visit(row as u32, &mut lifted);
        })
    }

    /// Distances of one row to all queries.
    fn distances(&self, lifted: &[f32], row: &mut Vec<i8>, sums: &mut [i32], out: &mut [f32]) {
        let unit = if self.space.is_none() { 1.0 } else { largest_magnitude(lifted).max(f32::MIN_POSITIVE) / 127.0 };
        row.resize(self.panels.row_stride(), 0);
        let sum = kernels::round_to_bytes(lifted, 1.0 / unit, row);
        let excess = if self.space.is_none() { 0 } else { 128 * sum };
        self.panels.dots(row, sums);
        let square = dot(lifted, lifted);
        for ((out, sum), (factor, other)) in out.iter_mut().zip(&*sums).zip(&self.factors) {
            let product = (sum - excess) as f32 * (unit * factor);
            *out = if self.jaccard {
                if product == 0.0 { 1.0 } else { 1.0 - product / (square + other - product) }
            } else {
                square + other - 2.0 * product
            };
        }
    }
}

/// A query before the map, as long as the rows under the metrics to which its length is nothing, about the mean.
fn lift_query(space: &Space, query: &[f32], lifted: &mut Vec<f32>) {
    match space.metric {
        Metric::InnerProduct => {
            lifted.clear();
            lifted.extend_from_slice(query);
            lifted.push(0.0);
        }
        _ => space.lift_row(query, lifted),
    }
    center(space, lifted);
}

fn center(space: &Space, lifted: &mut [f32]) {
    match &space.map {
        Map::Shift(shift) => lifted.iter_mut().for_each(|value| *value -= shift),
        Map::Affine(affine) => lifted.iter_mut().zip(&affine.mean).for_each(|(value, mean)| *value -= mean),
    }
}

fn each_bit(bytes: &[u8], mut visit: impl FnMut(usize, u8)) {
    bytes.iter().enumerate().for_each(|(at, byte)| (0..8).for_each(|bit| visit(at * 8 + bit, byte >> bit & 1)));
}

/// Compares the shortlists exactly, in a second pass over the rows.
fn compare(
    rows: &dyn Rows,
    metric: Metric,
    asked: &mut [Asked],
    shortlists: Vec<Vec<u64>>,
    control: &Control,
) -> Result<(), BuildError> {
    let unsupported = |error: kernels::DistanceError| BuildError::Unsupported(error.to_string());
    let queries: Vec<Query> = asked
        .iter()
        .map(|asked| Query::new(metric, rows.dim(), asked.vectors()).map_err(unsupported))
        .collect::<Result<_, _>>()?;
    let mut wanted: Vec<(u32, usize)> = Vec::new();
    for (query, list) in shortlists.iter().enumerate() {
        wanted.extend(list.iter().map(|key| (vertex(*key), query)));
    }
    wanted.sort_unstable();
    let blocks: Vec<&[(u32, usize)]> = wanted.chunk_by(|a, b| a.0 == b.0).collect();
    let exact: Vec<Vec<(usize, f64, u32)>> = blocks
        .par_iter()
        .map(|block| {
            control.advance(0)?;
            let mut exact = Vec::with_capacity(block.len());
            let row = block[0].0;
            let mut failed = None;
            rows.read(row as usize..row as usize + 1, &mut |_, vectors| {
                // A run may be of no row.
                for (_, query) in block.iter().filter(|_| !vectors.is_empty()) {
                    let mut distance = [0.0];
                    match queries[*query].distances(vectors, &mut distance) {
                        Ok(()) => exact.push((*query, distance[0], row)),
                        Err(error) => failed = Some(error),
                    }
                }
            })?;
            failed.map_or(Ok(exact), |error| Err(unsupported(error)))
        })
        .collect::<Result<_, BuildError>>()?;
    for (query, distance, row) in exact.into_iter().flatten() {
        asked[query].truth.push((distance, row));
    }
    asked.iter_mut().for_each(|asked| asked.truth.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))));
    Ok(())
}

/// Walks with every stop and beam of a ladder, and keeps the steps that reach more than cheaper ones.
fn measure(
    head: &Head,
    sections: &[Vec<u8>],
    asked: &[Asked],
    k: usize,
    ladder: &[(f32, usize)],
    enough: f32,
    control: &Control,
) -> Result<Vec<EffortStep>, BuildError> {
    let mut head = head.clone();
    (head.efforts, head.far) = Default::default();
    let index = GraphIndex::open(&head.write()).map_err(|error| BuildError::Unsupported(error.to_string()))?;
    let sections = Resident(sections.iter().map(Vec::as_slice).collect());
    let mut steps: Vec<EffortStep> = Vec::new();
    for (stop, beam) in ladder.iter().copied() {
        let effort = Effort::Graph { beam, stop, rerank: beam };
        let outcomes: Vec<(Vec<usize>, u64)> = asked
            .par_iter()
            .map(|asked| {
                control.advance(0)?;
                let request = Request { query: asked.vectors(), k, matching: None, effort };
                match index.search_as(&request, &sections, Manner { hidden: asked.vertex, refines: false }) {
                    Ok(Step::Found(found)) => Ok((asked.hits(&found.candidates, k), found.work.codes)),
                    _ => Ok((Vec::new(), 0)),
                }
            })
            .collect::<Result<_, BuildError>>()?;
        let step = EffortStep { stop, beam: beam as u32, ..summary(&outcomes, k) };
        if steps.last().is_none_or(|last| step.recall > last.recall) {
            steps.push(step);
        }
        // Enough, or all were compared: no stop changes that.
        if step.recall > enough || step.codes as usize >= head.vertices {
            break;
        }
    }
    Ok(steps)
}

impl Asked {
    /// The places, ascending, at which candidates are among the true `k` nearest or as near; own row left out.
    fn hits(&self, candidates: &[crate::Candidate], k: usize) -> Vec<usize> {
        let Some((farthest, _)) = self.truth.get(k.min(self.truth.len()).saturating_sub(1)) else { return Vec::new() };
        let mut near: Vec<u32> = self.truth.iter().take_while(|(d, _)| d <= farthest).map(|(_, row)| *row).collect();
        near.sort_unstable();
        let others = candidates.iter().filter(|candidate| Some(candidate.row) != self.own);
        let hits = others.enumerate().filter(|(_, candidate)| near.binary_search(&candidate.row).is_ok());
        hits.map(|(place, _)| place + 1).take(k).collect()
    }
}

/// Recall over all queries, the fewest candidates that nearly reach it, and the mean work.
fn summary(outcomes: &[(Vec<usize>, u64)], k: usize) -> EffortStep {
    let wanted = (outcomes.len() * k).max(1) as f64;
    let mut places: Vec<usize> = outcomes.iter().flat_map(|(hits, _)| hits.iter().copied()).collect();
    places.sort_unstable();
    let kept = (places.len() as f64 - RERANK_LOSS * wanted).max(1.0) as usize;
    let rerank = places.get(kept.saturating_sub(1)).copied().unwrap_or(k) + 1;
    let codes = outcomes.iter().map(|(_, codes)| codes).sum::<u64>() / outcomes.len().max(1) as u64;
    let recall = (kept.min(places.len()) as f64 / wanted) as f32;
    EffortStep { recall, stop: 0.0, beam: 0, rerank: rerank as u32, codes: codes as u32 }
}
