//! Building a graph: survey, codes, near neighbors, links, calibration.

use kernels::{CodeLayout, ElementType, Metric, advise_large_pages};

use super::calibrate;
use super::encode::{self, Encoded};
use super::format::{Coding, Head, Whole};
use super::leaves::Lists;
use super::link::{Adjacency, Linking, Walked};
use super::points::{Points, Scorer};
use super::random::draw;
use super::source::{Survey, each_vector};
use super::space::{self, Map, Space};
use super::{ENTRIES, MAX_DEGREE, MAX_DIM};
use crate::{BuildError, Control, Payload, Rows, Section, Tier};

/// Rows that the space is fitted to, at most.
const SAMPLE_ROWS: usize = 16_384;
/// Values of a sample, at most: 256 MiB.
const SAMPLE_VALUES: usize = 1 << 26;
/// Share of the variance that codes must hold: below, the missing part decides between neighbors.
const VARIANCE_KEPT: f64 = 0.94;
/// Elements that are written in 8 bits where there are no more of them: 128 bytes hold them.
const EIGHT_BITS_DIM: usize = 120;
/// Longest vectors of whole bytes that are kept as they are, in three cache lines.
const WHOLE_DIM: usize = 184;

/// How a graph is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GraphOptions {
    /// Neighbors of a vertex at most; rounded up to a multiple of 16, within 16 to 256. More reach a high
    /// recall with fewer hops, and take 4 bytes each.
    pub m: usize,
    /// Vertices kept by the walks that find neighbors.
    pub ef_construction: usize,
    /// Bits of an element of a code: 2, 4 or 8. If absent, chosen by the data: 8 up to 120 dimensions, and 4 beyond.
    pub bits: Option<u32>,
    /// Bytes of a code at most, rounded down to a multiple of 64, at least 64. Dimensions that do not fit are
    /// left out, those of the least variance.
    pub code_bytes_max: usize,
}

impl Default for GraphOptions {
    fn default() -> Self {
        Self { m: 64, ef_construction: 64, bits: None, code_bytes_max: 512 }
    }
}

/// Builds a graph over the rows that have a vector (under cosine: one that is not zero).
///
/// Deterministic for the control's seed. In parallel on the rayon pool that it is called in. Memory: codes and
/// neighbors as in the payload, and while
/// it runs, per vertex, one byte per element of a code, about `8·m` bytes of candidates, and a sample of at most 256
/// MiB. The rows are read three times.
///
/// # Errors
/// [`BuildError::Unsupported`] for L1, for metrics of bits over numbers and the other way round, for more than
/// 32,768 dimensions or 2^31 - 1 rows, for
/// bits other than 2, 4, 8; otherwise what the rows' reading returned, or that the build was cancelled.
pub fn build(
    rows: &dyn Rows,
    metric: Metric,
    options: &GraphOptions,
    control: &Control,
) -> Result<Payload, BuildError> {
    check(rows, metric, options)?;
    control.expect(PASSES * rows.len() as u64);
    let survey = Survey::new(rows, metric, control)?;
    let coding = choose_coding(rows, metric, options, control, &survey)?;
    let whole = choose_whole(rows, metric, &coding, &survey);
    let Encoded { codes, whole: wholes, points, beside, code_dim, unit } =
        encode::encode(rows, &coding, whole, &survey, control)?;
    let entries = choose_entries(&points, control.seed);
    let degree = options.m.clamp(16, MAX_DEGREE).next_multiple_of(16);
    let graph = if points.len() == 0 {
        Adjacency { degree, neighbors: Vec::new() }
    } else {
        let lists = Lists::find(&points, degree, control)?;
        let linking = Linking { degree, beam: options.ef_construction.clamp(degree / 2, 4096), entries };
        linking.link(&points, Walked::new(&coding, &codes, unit), lists, control)?
    };
    // Codes that lose nothing are the records of the build.
    let codes = match points {
        Points::Scalar { codes: whole, .. } if codes.is_empty() => whole,
        Points::Bits { codes, .. } => codes,
        Points::Scalar { .. } => codes,
    };
    let has_row_map = survey.vertices.len() != rows.len();
    let mut head = Head {
        metric,
        element: rows.element(),
        dim: rows.dim(),
        rows: rows.len(),
        vertices: survey.vertices.len(),
        degree,
        code_dim,
        has_row_map,
        entries,
        beside,
        coding,
        whole,
        efforts: Default::default(),
        outliers: survey.outliers.clone(),
        far: vec![],
    };
    let row_map = if has_row_map { to_bytes(&survey.vertices) } else { Vec::new() };
    let mut sections = vec![head.write(), codes, to_bytes(&graph.neighbors), row_map, wholes];
    drop(graph);
    (head.efforts, head.far) = calibrate::calibrate(rows, &head, &sections, &survey.vertices, control)?;
    sections[0] = head.write();
    control.advance(rows.len() as u64)?;
    Ok(Payload { sections: sections.into_iter().map(|bytes| Section { tier: Tier::Pinned, bytes }).collect() })
}

/// Survey, codes, leaves (4), links (5), calibration (2).
const PASSES: u64 = 13;

fn check(rows: &dyn Rows, metric: Metric, options: &GraphOptions) -> Result<(), BuildError> {
    let unsupported = |what: String| Err(BuildError::Unsupported(what));
    let (element, dim) = (rows.element(), rows.dim());
    if metric == Metric::L1 {
        return unsupported("a graph has no l1 distance; use flat, or l2".into());
    }
    if metric.is_for_bits() != (element == ElementType::Bits) {
        let names = if metric.is_for_bits() { "l2, cosine or inner_product" } else { "hamming or jaccard" };
        return unsupported(format!(
            "a graph over {} vectors has no {} distance; use {names}",
            element.name(),
            metric.name()
        ));
    }
    if dim == 0 || dim > MAX_DIM {
        return unsupported(format!(
            "a graph takes vectors of 1 to {MAX_DIM} dimensions and these have {dim}; use flat"
        ));
    }
    if rows.len() > i32::MAX as usize {
        return unsupported(format!("a graph takes {} rows and these are {}; split them", i32::MAX, rows.len()));
    }
    if options.bits.is_some_and(|bits| !matches!(bits, 2 | 4 | 8)) {
        return unsupported(
            "the codes of a graph have 2, 4 or 8 bits; use one of them, or leave the choice open".into(),
        );
    }
    Ok(())
}

/// How the vectors are written: whole bytes as they are where that is short, or else the fewest cache lines that keep the variance.
fn choose_coding(
    rows: &dyn Rows,
    metric: Metric,
    options: &GraphOptions,
    control: &Control,
    survey: &Survey,
) -> Result<Coding, BuildError> {
    if rows.element() == ElementType::Bits {
        return Ok(Coding::Bits(metric));
    }
    let dim = rows.dim();
    let length = if metric == Metric::InnerProduct { survey.square_max.sqrt() as f32 } else { 0.0 };
    let mut space = Space { metric, dim, length, map: Map::Shift(survey.range.0 + 128.0) };
    let whole = CodeLayout::whole(dim).filter(|layout| dim <= WHOLE_DIM && layout.bytes() <= options.code_bytes_max);
    if let (Some(layout), true, true, None) = (whole, survey.whole, metric == Metric::L2, options.bits)
        && survey.range.1 - survey.range.0 <= 255.0
    {
        return Ok(Coding::Scalar(layout, space));
    }
    let samples = sample(rows, &space, survey, control)?;
    let lifted = space.lifted_dim();
    let bits = options.bits.unwrap_or(if lifted <= EIGHT_BITS_DIM { 8 } else { 4 });
    let lines_max = (options.code_bytes_max / 64).clamp(1, 16);
    // The shortest for all dimensions, or else the usual two lines and more.
    let room = |lines: usize| (lines * 64 - 8) * (8 / bits as usize);
    let all = (1..=lines_max).find(|lines| room(*lines) >= lifted).unwrap_or(lines_max);
    let mut covariance = None;
    for lines in (2.min(all)..=all).filter(|lines| *lines <= 4 || lines % 2 == 0 || *lines == all) {
        control.advance(0)?;
        let count = room(lines).min(lifted);
        let (affine, kept) = space::fit(&samples, lifted, count, control.seed, &mut covariance);
        if kept >= VARIANCE_KEPT || lines == all {
            space.map = Map::Affine(Box::new(affine));
            let layout = CodeLayout::new(bits, count);
            let layout = layout
                .ok_or_else(|| BuildError::Unsupported(format!("no code has {count} elements of {bits} bits")))?;
            return Ok(Coding::Scalar(layout, space));
        }
    }
    Err(BuildError::Unsupported("no code fits into the bytes given; give at least 64".into()))
}

/// Whether whole vectors are kept beside the codes: where floats hold whole numbers of one byte, so that candidates are compared without
/// loss in a quarter or half of the bytes that the caller would read, and only the nearest are given out.
fn choose_whole(rows: &dyn Rows, metric: Metric, coding: &Coding, survey: &Survey) -> Option<Whole> {
    let is_wide = matches!(rows.element(), ElementType::F32 | ElementType::F16);
    let is_short = matches!(coding, Coding::Scalar(layout, _) if !layout.is_whole());
    let layout = CodeLayout::whole(rows.dim())?;
    let fits = survey.whole && survey.range.1 - survey.range.0 <= 255.0 && !survey.vertices.is_empty();
    (is_wide && is_short && fits && metric == Metric::L2).then_some(Whole { layout, shift: survey.range.0 + 128.0 })
}

/// Vectors of vertices drawn at random, lifted, one after the other.
fn sample(rows: &dyn Rows, space: &Space, survey: &Survey, control: &Control) -> Result<Vec<f32>, BuildError> {
    let count = survey.vertices.len().min(SAMPLE_ROWS).min(SAMPLE_VALUES / space.lifted_dim().max(1));
    let mut drawn = draw(control.seed, survey.vertices.len(), count);
    drawn.sort_unstable();
    let (mut samples, mut lifted) = (Vec::with_capacity(count * space.lifted_dim()), Vec::new());
    for vertex in drawn {
        let row = survey.vertices[vertex] as usize;
        control.advance(0)?;
        each_vector(rows, row..row + 1, &mut |_, vector| {
            space.lift_row(vector, &mut lifted);
            samples.extend_from_slice(&lifted);
        })?;
    }
    Ok(samples)
}

/// The middle vertex of a sample, then in turn the one farthest from all chosen, and one at random.
fn choose_entries(points: &Points, seed: u64) -> [u32; ENTRIES] {
    const SAMPLE: usize = 512;
    let mut entries = [0; ENTRIES];
    if points.len() == 0 {
        return entries;
    }
    let sample = draw(seed ^ 0x656e_7472, points.len(), SAMPLE);
    let sample: Vec<u32> = sample.into_iter().map(|vertex| vertex as u32).collect();
    let (mut asker, mut distances) = (points.scorer(), Vec::new());
    let mut from = |vertex: u32, asker: &mut Scorer| {
        let norm = points.ask(vertex, asker);
        asker.scores(points.codes(), &sample, &mut distances);
        distances.iter().map(|score| score + norm).collect::<Vec<f32>>()
    };
    let middle = sample.iter().take(SAMPLE / 4).map(|vertex| (from(*vertex, &mut asker).iter().sum::<f32>(), *vertex));
    entries[0] = middle.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0, |(_, vertex)| vertex);
    let mut nearest = from(entries[0], &mut asker);
    for (place, entry) in entries.iter_mut().enumerate().skip(1) {
        let farthest = nearest.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at);
        let at = if place % 2 == 1 { farthest } else { place % sample.len() };
        *entry = sample[at];
        let distances = from(*entry, &mut asker);
        nearest.iter_mut().zip(distances).for_each(|(nearest, distance)| *nearest = nearest.min(distance));
    }
    entries
}

fn to_bytes(values: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * 4];
    advise_large_pages(&mut bytes);
    bytes.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(four, value)| *four = value.to_le_bytes());
    bytes
}
