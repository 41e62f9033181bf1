//! Builds: the space of a sample, then one pass over the rows.

use kernels::{Metric, Vectors};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use super::FlatOptions;
use super::format::{CHUNK, Flat, Point, layout_of};
use crate::build::{BuildError, Control, Rows};
use crate::codes::{Code, Encoder, Spreads};
use crate::index::{Effort, Index, Request, Step};
use crate::payload::{Payload, Resident, Section, Tier};
use crate::sample::spread_sample;
use crate::space::{Moments, Space, Standing};
use crate::truth::{Sample, SampleQuery, Truth};

/// Rows that the origin and the scale are taken from.
const SAMPLE: usize = 4_096;

/// Rows that are queries when efforts are measured.
const SAMPLED_QUERIES: usize = 64;

/// Builds a flat index.
///
/// # Errors
/// [`BuildError`]: the vectors do not go with the metric or the code, they cannot be read, or it was cancelled.
pub fn build(rows: &dyn Rows, metric: Metric, options: &FlatOptions, control: &Control) -> Result<Payload, BuildError> {
    options.code.check(rows.element())?;
    Space::check(metric, rows.element(), rows.dim())?;
    if options.code == Code::Raw {
        return Err(BuildError::Unsupported("a flat index of raw vectors is the column itself; scan it".into()));
    }
    if let Code::Pq { .. } = options.code {
        return Err(BuildError::Unsupported(
            "product codes are learned from the residuals of lists; make an index of lists, or a flat one of rabitq"
                .into(),
        ));
    }
    if rows.len() > u32::MAX as usize {
        return Err(BuildError::Unsupported("a segment has at most 2^32 - 1 rows; make several".into()));
    }
    control.expect(rows.len() as u64);
    let space = space(rows, metric, control)?;
    let samples = samples(rows, &space, control)?;
    let truth = Truth::new(&space, &samples);
    let chunks = (0..rows.len().div_ceil(CHUNK))
        .into_par_iter()
        .map(|index| {
            let range = index * CHUNK..rows.len().min((index + 1) * CHUNK);
            chunk(rows, range, &space, options.code, (&truth, &samples), control)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (mut coarse, mut extra, mut spreads, mut outliers) = (vec![], vec![], vec![], vec![]);
    for chunk in chunks {
        coarse.extend(chunk.coarse);
        extra.extend(chunk.extra);
        spreads.push(chunk.spreads);
        outliers.extend(chunk.outliers);
    }
    let mut flat = Flat::new(space, options.code, rows.len(), spreads, outliers);
    flat.points = calibrate(&flat, &Resident(vec![&[][..], &coarse, &extra]), &samples, control)?;
    let section = |tier, bytes| Section { tier, bytes };
    let sections = vec![section(Tier::Pinned, flat.to_head()), section(Tier::Hot, coarse), section(Tier::Warm, extra)];
    Ok(Payload { sections })
}

/// The space of a sample.
fn space(rows: &dyn Rows, metric: Metric, control: &Control) -> Result<Space, BuildError> {
    let mut moments = Moments::new(metric, rows.dim());
    let mut random = ChaCha8Rng::seed_from_u64(control.seed ^ 0xf1a7);
    for row in spread_sample(rows.len(), SAMPLE, &mut random) {
        if rows.has(row) {
            rows.read(row..row + 1, &mut |_, vector| moments.add(vector))?;
        }
    }
    let space = Space::new(metric, rows.element(), rows.dim(), moments, control.seed);
    space.ok_or_else(|| BuildError::Unsupported("a vector of no dimension".into()))
}

fn samples(rows: &dyn Rows, space: &Space, control: &Control) -> Result<Vec<Sample>, BuildError> {
    let mut random = ChaCha8Rng::seed_from_u64(control.seed ^ 0xca11);
    let (mut samples, mut projected, mut standings) = (vec![], vec![], vec![]);
    for row in spread_sample(rows.len(), SAMPLED_QUERIES, &mut random) {
        if rows.has(row) {
            rows.read(row..row + 1, &mut |_, vector| {
                space.project(vector, &mut projected, &mut standings);
                if standings.first() == Some(&Standing::Projected) {
                    samples.push(Sample::new(SampleQuery::Floats(space.floats(vector)), Some(row as u32)));
                }
            })?;
        }
    }
    Ok(samples)
}

/// What the pass makes of a chunk.
#[derive(Default)]
struct Chunk {
    coarse: Vec<u8>,
    extra: Vec<u8>,
    spreads: Spreads,
    outliers: Vec<u32>,
}

fn chunk(
    rows: &dyn Rows,
    range: std::ops::Range<usize>,
    space: &Space,
    code: Code,
    (truth, samples): (&Truth, &[Sample]),
    control: &Control,
) -> Result<Chunk, BuildError> {
    control.advance(range.len() as u64)?;
    let layout = layout_of(space, code);
    let padded = space.padded();
    let record_bytes = layout.record_bytes();
    let (mut chunk, mut records) = (Chunk::default(), vec![]);
    let origin = vec![0.0; padded];
    let mut encoder = Encoder::default();
    rows.read(range, &mut |first, vectors: Vectors<'_>| {
        let (mut projected, mut standings) = (vec![], vec![]);
        space.project(vectors, &mut projected, &mut standings);
        let stored = |index: usize| standings[index] == Standing::Projected && rows.has(first + index);
        truth.offer(&projected, first, samples, &stored);
        for (index, vector) in projected.chunks_exact(padded).enumerate() {
            let start = records.len();
            records.resize(start + record_bytes, 0);
            let record = &mut records[start..];
            if stored(index) {
                let spreads = layout.encode(&mut encoder, vector, &origin, record);
                chunk.spreads = [chunk.spreads[0].max(spreads[0]), chunk.spreads[1].max(spreads[1])];
                continue;
            }
            layout.exclude(record);
            if standings[index] == Standing::Outlier && rows.has(first + index) {
                chunk.outliers.push((first + index) as u32);
            }
        }
    })?;
    layout.append_list(records.chunks_exact(record_bytes), &mut chunk.coarse, &mut chunk.extra);
    Ok(chunk)
}

/// Measures the recall of some numbers of candidates.
fn calibrate(
    flat: &Flat,
    sections: &Resident<&[u8]>,
    samples: &[Sample],
    control: &Control,
) -> Result<Vec<Point>, BuildError> {
    let mut points = vec![];
    for k in [1, 10, 100] {
        control.advance(0)?;
        let reranks = [8, 10, 12, 15, 20, 30, 50, 100, 200].map(|eighths| (k * eighths / 8).max(k));
        let ranks: Vec<(usize, Vec<usize>)> =
            samples.par_iter().map(|sample| ranks(flat, sections, sample, k)).collect();
        let wanted: usize = ranks.iter().map(|(wanted, _)| wanted).sum();
        for rerank in reranks {
            let found: usize = ranks.iter().map(|(_, ranks)| ranks.iter().filter(|rank| **rank < rerank).count()).sum();
            let recall = found as f32 / wanted.max(1) as f32;
            points.push(Point { k: k as u32, rerank: rerank as u32, recall });
        }
    }
    Ok(points)
}

/// How many true neighbors there are, and the ranks at which they are candidates.
fn ranks(flat: &Flat, sections: &Resident<&[u8]>, sample: &Sample, k: usize) -> (usize, Vec<usize>) {
    let truth = sample.neighbors();
    let truth = &truth[..k.min(truth.len())];
    let effort = Effort::Flat { rerank: 32 * k };
    let request = Request { query: sample.query.vectors(), k: k + 1, matching: None, effort };
    let Ok(Step::Found(found)) = flat.search(&request, sections) else { return (truth.len(), vec![]) };
    let rows = found.candidates.iter().map(|candidate| candidate.row).filter(|row| Some(*row) != sample.own);
    let ranks = rows.enumerate().filter(|(_, row)| truth.contains(row)).map(|(rank, _)| rank);
    (truth.len(), ranks.collect())
}
