//! From rows to codes, and to the 8-bit vertices of the build.

use kernels::{CodeLayout, Metric, Vectors, advise_large_pages};
use rayon::prelude::*;

use super::format::{Coding, Whole};
use super::points::Points;
use super::random::draw;
use super::source::{Survey, block_ranges, each_vector};
use super::space::{Map, Projected, Space};
use crate::{BuildError, Control, Rows};

/// Rows that the unit of the build's numbers is taken from.
const SAMPLE_ROWS: usize = 1024;

/// All vertices, written.
pub(super) struct Encoded {
    /// The records; empty where those of `points` are the same.
    pub codes: Vec<u8>,
    /// The records of whole vectors; empty if none are kept.
    pub whole: Vec<u8>,
    pub points: Points,
    /// Mean squared length of what the codes leave out.
    pub beside: f32,
    /// Elements of a code.
    pub code_dim: usize,
    /// What one of the numbers of `points` stands for.
    pub unit: f32,
}

/// Writes all vertices in one pass over the rows.
pub(super) fn encode(
    rows: &dyn Rows,
    coding: &Coding,
    whole: Option<Whole>,
    survey: &Survey,
    control: &Control,
) -> Result<Encoded, BuildError> {
    match coding {
        Coding::Bits(metric) => encode_bits(rows, *metric == Metric::Jaccard, survey, control),
        Coding::Scalar(layout, space) => {
            let mut projected = Projected::default();
            let unit = unit(rows, space, survey, control, &mut projected)?;
            let code_dim = match &space.map {
                Map::Shift(_) => space.dim,
                Map::Affine(affine) => affine.row_scale.len(),
            };
            let built =
                CodeLayout::whole(code_dim).ok_or_else(|| BuildError::Unsupported("codes are too long".into()))?;
            encode_scalar(rows, layout, space, whole, survey, control, (built, code_dim, unit))
        }
    }
}

/// What one of the build's whole numbers stands for: the largest element of a sample is 120 of them. Larger ones are cut off at 127.
fn unit(
    rows: &dyn Rows,
    space: &Space,
    survey: &Survey,
    control: &Control,
    projected: &mut Projected,
) -> Result<f32, BuildError> {
    if matches!(space.map, Map::Shift(_)) {
        return Ok(1.0);
    }
    let drawn = draw(control.seed ^ 0x756e_6974, survey.vertices.len(), SAMPLE_ROWS);
    let mut top = 0.0_f32;
    for vertex in drawn {
        let row = survey.vertices[vertex] as usize;
        each_vector(rows, row..row + 1, &mut |_, vector| {
            space.project_row(vector, projected);
            top = top.max(kernels::largest_magnitude(&projected.vector));
        })?;
    }
    Ok(if top > 0.0 { top / 120.0 } else { 1.0 })
}

fn encode_scalar(
    rows: &dyn Rows,
    layout: &CodeLayout,
    space: &Space,
    whole: Option<Whole>,
    survey: &Survey,
    control: &Control,
    (build_layout, code_dim, unit): (CodeLayout, usize, f32),
) -> Result<Encoded, BuildError> {
    let count = survey.vertices.len();
    let code_bytes = if layout.is_whole() { 0 } else { layout.bytes() };
    let whole_bytes = whole.map_or(0, |whole| whole.layout.bytes());
    let [mut codes, mut built, mut wholes] =
        [code_bytes, build_layout.bytes(), whole_bytes].map(|bytes| vec![0_u8; count * bytes]);
    [&mut codes, &mut built, &mut wholes].into_iter().for_each(|records| advise_large_pages(records));
    let blocks = split(rows.len(), survey, &mut built, build_layout.bytes());
    let coded = split(rows.len(), survey, &mut codes, code_bytes);
    let kept = split(rows.len(), survey, &mut wholes, whole_bytes);
    let jobs: Vec<_> = blocks.into_iter().zip(coded).zip(kept).collect();
    let beside: Vec<f64> = jobs
        .into_par_iter()
        .map_init(
            || (Projected::default(), Vec::new()),
            |(projected, scaled), (((range, vertices, built), (.., coded)), (.., kept))| {
                control.advance(range.len() as u64)?;
                let mut beside = 0.0;
                let mut built = built.chunks_exact_mut(build_layout.bytes());
                let mut coded = coded.chunks_exact_mut(layout.bytes());
                let mut kept = kept.chunks_exact_mut(whole_bytes.max(1));
                let mut vertices = vertices.iter().copied().peekable();
                each_vector(rows, range, &mut |row, vector| {
                    if vertices.next_if_eq(&(row as u32)).is_none() {
                        return;
                    }
                    space.project_row(vector, projected);
                    beside += f64::from(projected.beside);
                    scaled.clear();
                    scaled.extend(projected.vector.iter().map(|value| value / unit));
                    if let Some(record) = built.next() {
                        build_layout.encode(scaled, 0.0, record);
                    }
                    if let Some(record) = coded.next() {
                        layout.encode(&projected.vector, projected.beside, record);
                    }
                    if let (Some(whole), Some(record)) = (whole, kept.next()) {
                        scaled.clear();
                        scaled.extend(vector.iter().map(|value| value - whole.shift));
                        whole.layout.encode(scaled, 0.0, record);
                    }
                })?;
                Ok(beside)
            },
        )
        .collect::<Result<_, BuildError>>()?;
    let beside = (beside.iter().sum::<f64>() / count.max(1) as f64) as f32;
    let points = Points::Scalar { layout: build_layout, dim: code_dim, codes: built };
    Ok(Encoded { codes, whole: wholes, points, beside, code_dim, unit })
}

fn encode_bits(rows: &dyn Rows, jaccard: bool, survey: &Survey, control: &Control) -> Result<Encoded, BuildError> {
    let (dim, bytes) = (rows.dim(), rows.dim().div_ceil(64) * 8);
    let mut codes = vec![0_u8; survey.vertices.len() * bytes];
    advise_large_pages(&mut codes);
    split(rows.len(), survey, &mut codes, bytes).into_par_iter().try_for_each(|(range, vertices, codes)| {
        control.advance(range.len() as u64)?;
        let mut records = codes.chunks_exact_mut(bytes);
        let mut vertices = vertices.iter().copied().peekable();
        rows.read(range, &mut |first, vectors| {
            let Vectors::Bits(values) = vectors else { return };
            for (offset, vector) in values.chunks_exact(dim.div_ceil(8)).enumerate() {
                if vertices.next_if_eq(&((first + offset) as u32)).is_some()
                    && let Some(record) = records.next()
                {
                    record[..vector.len()].copy_from_slice(vector);
                }
            }
        })
    })?;
    Ok(Encoded {
        codes: Vec::new(),
        whole: Vec::new(),
        points: Points::Bits { dim, jaccard, codes },
        beside: 0.0,
        code_dim: dim,
        unit: 1.0,
    })
}

/// A block of rows, its vertices, and the records of those.
type Job<'a> = (std::ops::Range<usize>, &'a [u32], &'a mut [u8]);

/// The records, split by the blocks of rows that their vectors are read in.
fn split<'a>(rows: usize, survey: &'a Survey, mut records: &'a mut [u8], bytes: usize) -> Vec<Job<'a>> {
    let mut vertices = survey.vertices.as_slice();
    block_ranges(rows)
        .into_iter()
        .map(|range| {
            let (own, later) = vertices.split_at(vertices.partition_point(|row| (*row as usize) < range.end));
            vertices = later;
            let (own_records, later) = std::mem::take(&mut records).split_at_mut(own.len() * bytes);
            records = later;
            (range, own, own_records)
        })
        .collect()
}
