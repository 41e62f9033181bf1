//! A query vector, prepared once, against blocks of rows.
//!
//! Blocks against blocks are in `matrix.rs`; what is added up, in which order, is in `scan.rs`.

use crate::dispatch;
use crate::error::DistanceError;
use crate::isa::{Isa, Present};
use crate::metric::Metric;
use crate::rows::{self, FloatBlock, IntegerBlock, Rows, Sums};
use crate::top_k::TopK;
use crate::vectors::{ElementType, Vectors};

/// Rows whose sums are computed before they are turned into distances: the sums stay in the first-level cache.
pub(crate) const ROWS_PER_STEP: usize = 256;

/// A query vector prepared for one metric.
///
/// Rows may have another element type than the query (an f32 query on i8 rows and so on), except that bits go with
/// bits only. A distance has the same bits on every instruction set, however the rows are split into blocks, and
/// whichever of two vectors is the query.
///
/// ```
/// use kernels::{Metric, Query, TopK, Vectors};
///
/// let query = Query::new(Metric::L2, 2, Vectors::F32(&[0.0, 0.0]))?;
/// let mut top = TopK::new(1);
/// query.top_k(Vectors::F32(&[3.0, 4.0, 0.0, 2.0]), 100, &mut top)?;
/// let nearest = top.into_sorted();
/// assert_eq!((nearest[0].distance, nearest[0].row), (2.0, 101));
/// # Ok::<(), kernels::DistanceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Query {
    metric: Metric,
    dim: usize,
    isa: Present,
    element: ElementType,
    /// As f64, padded; empty for bits.
    floats: Vec<FloatBlock>,
    /// As i16, padded; empty unless the elements are bytes.
    integers: Vec<IntegerBlock>,
    /// The bytes of a bit vector.
    bits: Vec<u8>,
    /// Sum of squares; number of ones for bits.
    square: f64,
}

impl Query {
    /// Prepares `vector`, which has `dim` elements, on the instruction set that [`crate::isa`] chose.
    ///
    /// # Errors
    /// [`DistanceError`] if `dim` is 0 (or not a multiple of 8 for bits), the vector has another length, or the
    /// metric is not one for its element type.
    pub fn new(metric: Metric, dim: usize, vector: Vectors<'_>) -> Result<Query, DistanceError> {
        Query::prepare(metric, dim, vector, Present::chosen())
    }

    /// As [`Query::new`], on a given instruction set: for tests and benches.
    ///
    /// # Errors
    /// As [`Query::new`], and [`DistanceError::IsaUnavailable`].
    pub fn new_on(isa: Isa, metric: Metric, dim: usize, vector: Vectors<'_>) -> Result<Query, DistanceError> {
        let present = isa.present().ok_or(DistanceError::IsaUnavailable { isa })?;
        Query::prepare(metric, dim, vector, present)
    }

    fn prepare(metric: Metric, dim: usize, vector: Vectors<'_>, isa: Present) -> Result<Query, DistanceError> {
        let mut query = Query::empty(metric, dim, vector.element_type(), isa)?;
        query.set(vector)?;
        Ok(query)
    }

    /// A query without its vector, which [`Query::set`] must give it.
    pub(crate) fn empty(
        metric: Metric,
        dim: usize,
        element: ElementType,
        isa: Present,
    ) -> Result<Query, DistanceError> {
        check_shape(metric, dim, element)?;
        let (floats, integers, bits) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Query { metric, dim, isa, element, floats, integers, bits, square: 0.0 })
    }

    /// Replaces the vector by another one of the same element type and dimension.
    pub(crate) fn set(&mut self, vector: Vectors<'_>) -> Result<(), DistanceError> {
        let values_per_row = self.element.values_per_row(self.dim);
        if vector.len() != values_per_row {
            return Err(DistanceError::QueryLength { values: vector.len(), values_per_row });
        }
        match vector {
            Vectors::F32(values) => dispatch::widen(self.isa, values, &mut self.floats),
            Vectors::F16(values) => dispatch::widen(self.isa, values, &mut self.floats),
            Vectors::I8(values) => {
                dispatch::widen(self.isa, values, &mut self.floats);
                rows::integer_blocks(values, &mut self.integers);
            }
            Vectors::U8(values) => {
                dispatch::widen(self.isa, values, &mut self.floats);
                rows::integer_blocks(values, &mut self.integers);
            }
            Vectors::Bits(values) => {
                self.bits.clear();
                self.bits.extend_from_slice(values);
            }
        }
        self.square = match vector {
            Vectors::Bits(values) => values.iter().map(|byte| f64::from(byte.count_ones())).sum(),
            _ => square_sum(&self.floats),
        };
        Ok(())
    }

    /// The metric.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The number of elements.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The instruction set that it runs on.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// Writes the distance of every row to `out`, one place per row; NaN where it is undefined (the cosine of a zero
    /// vector, or elements that are not finite).
    ///
    /// # Errors
    /// [`DistanceError`] if the rows are not whole vectors of this dimension, have elements that cannot be compared
    /// with the query's, or are not as many as the places of `out`.
    pub fn distances(&self, rows: Vectors<'_>, out: &mut [f64]) -> Result<(), DistanceError> {
        let rows = self.checked(rows)?;
        if out.len() != rows.len() {
            return Err(DistanceError::OutputLength { places: out.len(), distances: rows.len() });
        }
        let mut scratch = [0.0; ROWS_PER_STEP];
        let mut start = 0;
        for out in out.chunks_mut(ROWS_PER_STEP) {
            self.measure(&rows.range(start, out.len()), out, &mut scratch);
            start += out.len();
        }
        Ok(())
    }

    /// Offers every row of a block to `top`, as row `first_row` plus its offset. Undefined distances are passed over.
    ///
    /// # Errors
    /// As [`Query::distances`].
    pub fn top_k(&self, rows: Vectors<'_>, first_row: u64, top: &mut TopK) -> Result<(), DistanceError> {
        let rows = self.checked(rows)?;
        let (mut distances, mut scratch) = ([0.0; ROWS_PER_STEP], [0.0; ROWS_PER_STEP]);
        for start in (0..rows.len()).step_by(ROWS_PER_STEP) {
            let count = ROWS_PER_STEP.min(rows.len() - start);
            let distances = &mut distances[..count];
            self.measure(&rows.range(start, count), distances, &mut scratch);
            let row = first_row + start as u64;
            offer(distances, top, |offset| row + offset as u64);
        }
        Ok(())
    }

    /// Offers only the rows at the offsets `selected` of a block to `top`, as row `first_row` plus the offset.
    ///
    /// Ascending offsets are fetched fastest; each must occur once.
    ///
    /// # Errors
    /// As [`Query::distances`], and [`DistanceError::RowOutOfBlock`].
    pub fn top_k_selected(
        &self,
        rows: Vectors<'_>,
        first_row: u64,
        selected: &[u32],
        top: &mut TopK,
    ) -> Result<(), DistanceError> {
        let rows = self.checked(rows)?;
        rows.select(selected)?;
        let (mut distances, mut scratch) = ([0.0; ROWS_PER_STEP], [0.0; ROWS_PER_STEP]);
        for selected in selected.chunks(ROWS_PER_STEP) {
            let distances = &mut distances[..selected.len()];
            self.measure(&rows.select(selected)?, distances, &mut scratch);
            offer(distances, top, |index| first_row + u64::from(selected[index]));
        }
        Ok(())
    }

    /// The rows as a block, if they go with this query.
    pub(crate) fn checked<'a>(&self, rows: Vectors<'a>) -> Result<Rows<'a>, DistanceError> {
        let element = rows.element_type();
        if (element == ElementType::Bits) != (self.element == ElementType::Bits) {
            return Err(DistanceError::ElementMismatch { query: self.element, rows: element });
        }
        Rows::all(rows, self.dim)
    }

    /// Distances of checked rows, one place of `out` per row. `scratch`: at least as many places, to be overwritten.
    pub(crate) fn measure(&self, rows: &Rows<'_>, out: &mut [f64], scratch: &mut [f64]) {
        let second = &mut scratch[..out.len()];
        let mut sums = Sums { first: out, second };
        let kind = self.metric.sum_kind();
        match rows {
            Rows::Bits(rows) => dispatch::bit_sums(self.isa, kind, &self.bits, rows, &mut sums),
            Rows::I8(rows) if !self.integers.is_empty() => {
                dispatch::byte_sums(self.isa, kind, &self.integers, rows, &mut sums);
            }
            Rows::U8(rows) if !self.integers.is_empty() => {
                dispatch::byte_sums(self.isa, kind, &self.integers, rows, &mut sums);
            }
            _ => dispatch::float_sums(self.isa, kind, &self.floats, rows, &mut sums),
        }
        self.metric.finish(self.square, sums.first, sums.second);
    }
}

/// Offers distances to `top`, the one at index `i` as row `row(i)`.
///
/// Nearly all of them are too far once a few rows have been seen, so eight are compared at a time, without a branch for
/// each, and the heap is touched only by what can enter it. NaN fails the comparison.
fn offer(distances: &[f64], top: &mut TopK, row: impl Fn(usize) -> u64) {
    let mut threshold = top.threshold();
    for (index, eight) in distances.chunks(8).enumerate() {
        if !eight.iter().fold(false, |any, distance| any | (*distance <= threshold)) {
            continue;
        }
        for (offset, &distance) in eight.iter().enumerate() {
            if distance <= threshold {
                top.push(distance, row(8 * index + offset));
                threshold = top.threshold();
            }
        }
    }
}

/// Whether vectors of `dim` elements of this type have this distance.
pub(crate) fn check_shape(metric: Metric, dim: usize, element: ElementType) -> Result<(), DistanceError> {
    if dim == 0 {
        return Err(DistanceError::NoDimensions);
    }
    if element == ElementType::Bits && !dim.is_multiple_of(8) {
        return Err(DistanceError::PartialByte { dim });
    }
    if metric.is_for_bits() != (element == ElementType::Bits) {
        return Err(DistanceError::MetricMismatch { metric, element });
    }
    Ok(())
}

/// The sum of squares of a padded vector, in the order of summation of `scan.rs`, so that it has the bits that a
/// kernel finds for a row of the same values.
pub(crate) fn square_sum(blocks: &[FloatBlock]) -> f64 {
    square_sum_on(Present::chosen(), blocks)
}

crate::compiled::compiled_for_each! {
    fn square_sum_on(blocks: &[FloatBlock]) -> f64 = square_sum_plain
}

#[inline(always)]
fn square_sum_plain(blocks: &[FloatBlock]) -> f64 {
    let mut lanes = [0.0_f64; rows::LANES];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block.0) {
            // A product of two f32 values is exact in f64, so this is the fused multiply-add of the kernels.
            *lane += value * value;
        }
    }
    crate::reference::total(lanes)
}

#[cfg(test)]
mod tests;
