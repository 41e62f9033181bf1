//! The rows of a build as f32 in blocks, and what a first look at all of them tells.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use kernels::{ElementType, Metric, Vectors, square_f64};
use rayon::prelude::*;

use super::outliers::Bounds;
use crate::{BuildError, Control, Rows};

/// Rows that are read and worked on at a time, by one thread.
pub(super) const BLOCK_ROWS: usize = 1024;

/// What a first look at all rows tells.
#[derive(Debug)]
pub(super) struct Survey {
    /// The rows that can be neighbors, ascending: the vertex `v` is the row `vertices[v]`.
    pub vertices: Vec<u32>,
    /// The rows that are candidates of every search, ascending (`outliers.rs`).
    pub outliers: Vec<u32>,
    /// The largest squared length.
    pub square_max: f64,
    /// The smallest and the largest element.
    pub range: (f32, f32),
    /// Whether all elements are whole numbers.
    pub whole: bool,
}

impl Survey {
    /// Reads all rows once.
    pub(super) fn new(rows: &dyn Rows, metric: Metric, control: &Control) -> Result<Self, BuildError> {
        let empty =
            || Self { vertices: Vec::new(), outliers: Vec::new(), square_max: 0.0, range: (0.0, 0.0), whole: true };
        let bounds = Bounds::of(rows, metric, control.seed)?;
        let blocks: Vec<Self> = block_ranges(rows.len())
            .into_par_iter()
            .map(|range| {
                let mut survey = empty();
                control.advance(range.len() as u64)?;
                if rows.element() == ElementType::Bits {
                    survey.vertices.extend(range.filter(|row| rows.has(*row)).map(|row| row as u32));
                    return Ok(survey);
                }
                each_vector(rows, range, &mut |row, vector| {
                    if rows.has(row) {
                        survey.see(row, vector, metric, &bounds);
                    }
                })?;
                Ok(survey)
            })
            .collect::<Result<_, BuildError>>()?;
        Ok(blocks.into_iter().fold(empty(), |mut all, block| {
            if all.vertices.is_empty() {
                all.range = block.range;
            } else if !block.vertices.is_empty() {
                all.range = (all.range.0.min(block.range.0), all.range.1.max(block.range.1));
            }
            all.vertices.extend(block.vertices);
            all.outliers.extend(block.outliers);
            all.square_max = all.square_max.max(block.square_max);
            all.whole &= block.whole;
            all
        }))
    }

    /// A row whose distances are undefined is no vertex.
    fn see(&mut self, row: usize, vector: &[f32], metric: Metric, bounds: &Bounds) {
        let square = square_f64(vector);
        if !square.is_finite() || (metric == Metric::Cosine && square == 0.0) {
            return;
        }
        if metric != Metric::Cosine && !bounds.hold(vector) {
            self.outliers.push(row as u32);
            return;
        }
        let (mut low, mut high, mut whole) = (f32::INFINITY, f32::NEG_INFINITY, true);
        for value in vector {
            (low, high) = (if *value < low { *value } else { low }, if *value > high { *value } else { high });
            whole &= (*value as i32) as f32 == *value;
        }
        self.range =
            if self.vertices.is_empty() { (low, high) } else { (self.range.0.min(low), self.range.1.max(high)) };
        self.whole &= whole;
        self.square_max = self.square_max.max(square);
        self.vertices.push(row as u32);
    }
}

/// Blocks of row numbers.
pub(super) fn block_ranges(rows: usize) -> Vec<Range<usize>> {
    (0..rows.div_ceil(BLOCK_ROWS)).map(|block| block * BLOCK_ROWS..((block + 1) * BLOCK_ROWS).min(rows)).collect()
}

/// Shows each vector of `range` as f32. What stands in the place of a missing one has no meaning.
pub(super) fn each_vector(
    rows: &dyn Rows,
    range: Range<usize>,
    visit: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), BuildError> {
    let (dim, mut floats) = (rows.dim(), Vec::new());
    rows.read(range, &mut |first, vectors| {
        let values = match vectors {
            Vectors::F32(values) => values,
            other => {
                floats.resize(other.len(), 0.0);
                widen(other, &mut floats);
                floats.as_slice()
            }
        };
        values.chunks_exact(dim.max(1)).enumerate().for_each(|(offset, vector)| visit(first + offset, vector));
    })
}

/// Writes elements as f32, as many as both have. Bits are not elements.
pub(super) fn widen(vectors: Vectors<'_>, floats: &mut [f32]) {
    match vectors {
        Vectors::F32(values) => floats.iter_mut().zip(values).for_each(|(float, value)| *float = *value),
        Vectors::F16(values) => {
            let count = values.len().min(floats.len());
            values[..count].convert_to_f32_slice(&mut floats[..count]);
        }
        Vectors::I8(values) => floats.iter_mut().zip(values).for_each(|(float, value)| *float = f32::from(*value)),
        Vectors::U8(values) => floats.iter_mut().zip(values).for_each(|(float, value)| *float = f32::from(*value)),
        Vectors::Bits(_) => {}
    }
}
