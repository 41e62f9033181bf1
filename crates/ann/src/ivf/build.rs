//! Builds: one pass over the rows that assigns and encodes them, then lists made of what it left.
//!
//! The pass runs over chunks in parallel; what it makes of a row depends on the row and the routing alone, and the lists hold their rows
//! in order, so the bytes do not depend on the number of threads.

use std::sync::Arc;

use kernels::{Metric, Query, Vectors};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use super::IvfOptions;
use super::assign::Assigner;
use super::calibration::calibrate;
use super::cluster::{assign_bits, members_of};
use super::format::{Ivf, element_of, layout_of};
use super::routing::{Ground, Routing};
use super::train::train;
use crate::build::{BuildError, Control, Rows};
use crate::codes::{Code, CodeLayout, Codebook, Encoder, Spreads};
use crate::payload::{Payload, Resident, Section, Tier};
use crate::sample::spread_sample;
use crate::space::{Space, Standing};
use crate::truth::{Sample, SampleQuery, Truth};

/// Rows that are read, assigned and encoded at a time.
const CHUNK: usize = 1_024;

/// Queries that efforts are measured with: rows, and as many rows moved.
const SAMPLED_ROWS: usize = 96;

/// How far a sampled row is moved, in lengths of its residual.
const MOVED: f32 = 0.5;

/// Trains and builds.
///
/// # Errors
/// [`BuildError`]: the vectors do not go with the metric or the code, they cannot be read, or it was cancelled.
pub fn build(rows: &dyn Rows, metric: Metric, options: &IvfOptions, control: &Control) -> Result<Payload, BuildError> {
    options.check(rows.element())?;
    control.expect(rows.len() as u64);
    let routing = train(rows, metric, options, control)?;
    build_with(rows, &routing, options, control)
}

/// Builds with a routing that was trained before, maybe on other rows.
///
/// # Errors
/// As [`build`]; and the routing was trained for other vectors, or without the codebook of the code.
pub fn build_with(
    rows: &dyn Rows,
    routing: &Routing,
    options: &IvfOptions,
    control: &Control,
) -> Result<Payload, BuildError> {
    control.expect(rows.len() as u64);
    options.check(rows.element())?;
    let trained_dim = match &routing.head.ground {
        Ground::Projected(space) => space.dim,
        Ground::Bits { dim, .. } => *dim,
    };
    if element_of(&routing.head) != rows.element() || trained_dim != rows.dim() {
        return Err(BuildError::Unsupported(format!(
            "the routing was trained for vectors of {trained_dim} {}, the rows have {} {}; train one for them",
            element_of(&routing.head).name(),
            rows.dim(),
            rows.element().name()
        )));
    }
    if rows.len() > u32::MAX as usize {
        return Err(BuildError::Unsupported("a segment has at most 2^32 - 1 rows; make several".into()));
    }
    let codebook = codebook_for(routing, options.code)?;
    let assigner = Assigner::new(routing);
    let samples = samples(rows, routing, &assigner, control)?;
    let pass = Pass {
        rows,
        routing,
        layout: layout_of(&routing.head, options.code, codebook),
        spill: options.spill,
        assigner,
        truth: truth(routing, &samples),
    };
    let chunks = (0..rows.len().div_ceil(CHUNK))
        .into_par_iter()
        .map(|index| pass.chunk(index * CHUNK..rows.len().min((index + 1) * CHUNK), &samples, control))
        .collect::<Result<Vec<_>, _>>()?;
    let (mut ivf, coarse, row_bytes, extra) = lists(&pass, chunks);
    let calibration = {
        let sections: Resident<&[u8]> = Resident(vec![&[], &routing.codes, &coarse, &row_bytes, &extra]);
        calibrate(&ivf, &sections, &samples, control)?
    };
    ivf.calibration = calibration;
    Ok(payload(&ivf, routing.codes.clone(), coarse, row_bytes, extra))
}

/// The codebook of a routing, if the code needs one.
fn codebook_for(routing: &Routing, code: Code) -> Result<Option<Arc<Codebook>>, BuildError> {
    let Code::Pq { bits, dims } = code else { return Ok(None) };
    match &routing.codebook {
        Some(codebook) if codebook.code() == code => Ok(Some(codebook.clone())),
        _ => Err(BuildError::Unsupported(format!(
            "the routing was trained without a codebook of {bits} bits over {dims} dimensions; train it with this code"
        ))),
    }
}

/// The sections in their order.
pub(crate) fn payload(ivf: &Ivf, centroids: Vec<u8>, coarse: Vec<u8>, rows: Vec<u8>, extra: Vec<u8>) -> Payload {
    let section = |tier, bytes| Section { tier, bytes };
    Payload {
        sections: vec![
            section(Tier::Pinned, ivf.to_head()),
            section(Tier::Pinned, centroids),
            section(Tier::Hot, coarse),
            section(Tier::Warm, rows),
            section(Tier::Warm, extra),
        ],
    }
}

/// The pass over the rows.
struct Pass<'a> {
    rows: &'a dyn Rows,
    routing: &'a Routing,
    layout: CodeLayout,
    spill: bool,
    assigner: Assigner,
    truth: Option<Truth>,
}

/// What the pass made of a chunk of rows: for each stored one, in each of its lists, its row, list and record.
#[derive(Default)]
struct Chunk {
    rows: Vec<u32>,
    lists: Vec<u32>,
    records: Vec<u8>,
    spreads: Vec<Spreads>,
    outliers: Vec<u32>,
}

impl Pass<'_> {
    fn chunk(&self, range: std::ops::Range<usize>, samples: &[Sample], control: &Control) -> Result<Chunk, BuildError> {
        control.advance(range.len() as u64)?;
        let mut chunk = Chunk::default();
        self.rows.read(range, &mut |first, vectors| match &self.routing.head.ground {
            Ground::Projected(space) => self.projected(space, first, vectors, samples, &mut chunk),
            Ground::Bits { metric, dim } => self.bits(*metric, *dim, first, vectors, samples, &mut chunk),
        })?;
        Ok(chunk)
    }

    fn projected(&self, space: &Space, first: usize, vectors: Vectors<'_>, samples: &[Sample], chunk: &mut Chunk) {
        let (mut projected, mut standings, mut assigned) = (vec![], vec![], vec![]);
        space.project(vectors, &mut projected, &mut standings);
        let padded = space.padded();
        self.assigner.assign(&projected, &mut assigned);
        let second = if self.spill { self.assigner.second(&projected, &assigned) } else { vec![] };
        let stored = |index: usize| standings[index] == Standing::Projected && self.rows.has(first + index);
        if let Some(truth) = &self.truth {
            truth.offer(&projected, first, samples, &stored);
        }
        let (mut encoder, mut record) = (Encoder::default(), vec![0; self.layout.record_bytes()]);
        for (index, vector) in projected.chunks_exact(padded).enumerate() {
            let row = (first + index) as u32;
            if standings[index] == Standing::Outlier && self.rows.has(first + index) {
                chunk.outliers.push(row);
            }
            if !stored(index) {
                continue;
            }
            for list in std::iter::once(assigned[index].0).chain(second.get(index).copied().flatten()) {
                let spreads = match self.layout.code {
                    Code::Raw => {
                        raw_record(vectors, space.dim, index, &mut record);
                        [0.0; 2]
                    }
                    _ => self.layout.encode(&mut encoder, vector, self.assigner.centroid(list), &mut record),
                };
                chunk.push(row, list, &record, spreads);
            }
        }
    }

    fn bits(
        &self,
        metric: Metric,
        dim: usize,
        first: usize,
        vectors: Vectors<'_>,
        samples: &[Sample],
        chunk: &mut Chunk,
    ) {
        let Vectors::Bits(bytes) = vectors else { return };
        let assigned = assign_bits(bytes, dim / 8, &self.routing.codes);
        for (index, (vector, list)) in bytes.chunks_exact(dim / 8).zip(assigned).enumerate() {
            if self.rows.has(first + index) {
                chunk.push((first + index) as u32, list, vector, [0.0; 2]);
            }
        }
        let mut distances = vec![0.0; bytes.len() / (dim / 8)];
        for sample in samples {
            let query = Query::new(metric, dim, sample.query.vectors());
            if query.and_then(|query| query.distances(vectors, &mut distances)).is_ok() {
                let stored = distances.iter().enumerate().filter(|(index, _)| self.rows.has(first + index));
                sample.offer(stored.map(|(index, distance)| (*distance, (first + index) as u32)));
            }
        }
    }
}

impl Chunk {
    fn push(&mut self, row: u32, list: u32, record: &[u8], spreads: Spreads) {
        self.rows.push(row);
        self.lists.push(list);
        self.records.extend_from_slice(record);
        self.spreads.push(spreads);
    }
}

/// The bytes of a vector as it is.
fn raw_record(vectors: Vectors<'_>, dim: usize, index: usize, record: &mut [u8]) {
    match vectors.rows(dim, index, 1) {
        Some(Vectors::F32(values)) => record.copy_from_slice(bytemuck::cast_slice(values)),
        Some(Vectors::F16(values)) => {
            for (place, value) in record.chunks_exact_mut(2).zip(values) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
        Some(Vectors::I8(values)) => record.copy_from_slice(bytemuck::cast_slice(values)),
        Some(Vectors::U8(values) | Vectors::Bits(values)) => record.copy_from_slice(values),
        None => {}
    }
}

/// The true neighbors of projected samples.
fn truth(routing: &Routing, samples: &[Sample]) -> Option<Truth> {
    match &routing.head.ground {
        Ground::Projected(space) => Some(Truth::new(space, samples)),
        Ground::Bits { .. } => None,
    }
}

/// Rows to measure efforts with, and as many moved ones.
fn samples(
    rows: &dyn Rows,
    routing: &Routing,
    assigner: &Assigner,
    control: &Control,
) -> Result<Vec<Sample>, BuildError> {
    let mut random = ChaCha8Rng::seed_from_u64(control.seed ^ 0xca11);
    let mut chosen = spread_sample(rows.len(), SAMPLED_ROWS, &mut random);
    chosen.retain(|row| rows.has(*row));
    let mut samples = vec![];
    for row in chosen {
        rows.read(row..row + 1, &mut |_, vectors| match &routing.head.ground {
            Ground::Projected(space) => {
                let Some((vector, moved)) = sample_and_moved(space, assigner, vectors, &mut random) else {
                    return;
                };
                samples.push(Sample::new(SampleQuery::Floats(vector), Some(row as u32)));
                samples.push(Sample::new(SampleQuery::Floats(moved), None));
            }
            Ground::Bits { .. } => {
                let Vectors::Bits(bytes) = vectors else { return };
                let moved = bytes.iter().map(|byte| byte ^ (1_u8 << random.random_range(0..8)));
                samples.push(Sample::new(SampleQuery::Bits(moved.collect()), None));
                samples.push(Sample::new(SampleQuery::Bits(bytes.to_vec()), Some(row as u32)));
            }
        })?;
    }
    Ok(samples)
}

/// A vector as f32, and moved; `None` if it is not projected.
fn sample_and_moved(
    space: &Space,
    assigner: &Assigner,
    vectors: Vectors<'_>,
    random: &mut ChaCha8Rng,
) -> Option<(Vec<f32>, Vec<f32>)> {
    let (mut projected, mut standings, mut assigned) = (vec![], vec![], vec![]);
    space.project(vectors, &mut projected, &mut standings);
    if standings.first() != Some(&Standing::Projected) {
        return None;
    }
    assigner.assign(&projected, &mut assigned);
    let square = kernels::dot_f32(&projected, &projected);
    let residual = (square + 2.0 * assigned.first()?.1).max(0.0).sqrt();
    let vector = space.floats(vectors);
    // Uniform in -1..1 has a variance of a third.
    let reach = MOVED * space.distance_of_length(residual) * (3.0 / space.dim as f32).sqrt();
    let moved = vector.iter().map(|value| value + reach * random.random_range(-1.0_f32..1.0)).collect();
    Some((vector, moved))
}

/// The lists from the chunks, which are in the order of their rows.
fn lists(pass: &Pass<'_>, chunks: Vec<Chunk>) -> (Ivf, Vec<u8>, Vec<u8>, Vec<u8>) {
    let (layout, head) = (&pass.layout, &pass.routing.head);
    let record_bytes = layout.record_bytes();
    let mut all = Chunk::default();
    for chunk in chunks {
        all.rows.extend(chunk.rows);
        all.lists.extend(chunk.lists);
        all.records.extend(chunk.records);
        all.spreads.extend(chunk.spreads);
        all.outliers.extend(chunk.outliers);
    }
    let members = members_of(&all.lists, head.lists);
    let (mut coarse, mut row_bytes, mut extra, mut spreads) = (vec![], vec![], vec![], vec![]);
    for members in &members {
        let records = members.iter().map(|at| &all.records[*at as usize * record_bytes..][..record_bytes]);
        layout.append_list(records, &mut coarse, &mut extra);
        row_bytes.extend(members.iter().flat_map(|at| all.rows[*at as usize].to_le_bytes()));
        let widest = |widest: Spreads, at: &u32| {
            let own = all.spreads[*at as usize];
            [widest[0].max(own[0]), widest[1].max(own[1])]
        };
        spreads.push(members.iter().fold([0.0; 2], widest));
    }
    let list_rows: Vec<u32> = members.iter().map(|members| members.len() as u32).collect();
    let kind = (layout.clone(), pass.spill);
    let ivf = Ivf::new(head.clone(), kind, pass.rows.len(), &list_rows, spreads, all.outliers);
    (ivf, coarse, row_bytes, extra)
}
