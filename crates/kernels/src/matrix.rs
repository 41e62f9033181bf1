//! Blocks against blocks: every query with every row, or row by row.
//!
//! The distances have the bits of [`Query::distances`]; only the order of the work differs.

use crate::dispatch;
use crate::error::DistanceError;
use crate::isa::Present;
use crate::metric::Metric;
use crate::query::{Query, ROWS_PER_STEP, square_sum};
use crate::rows::{FloatBlock, Rows};
use crate::tile;
use crate::vectors::Vectors;

/// Distances of every query to every row: `out[q · n + r]` for query `q` and row `r` of `n` rows.
///
/// `queries` and `rows` hold vectors of `dim` elements, of any element types that [`Query`] can compare.
///
/// # Errors
/// [`DistanceError`] as for [`Query::new`] and [`Query::distances`].
pub fn distance_matrix(
    metric: Metric,
    dim: usize,
    queries: Vectors<'_>,
    rows: Vectors<'_>,
    out: &mut [f64],
) -> Result<(), DistanceError> {
    matrix_on(Present::chosen(), metric, dim, queries, rows, out)
}

/// [`distance_matrix`] on a given instruction set.
fn matrix_on(
    isa: Present,
    metric: Metric,
    dim: usize,
    queries: Vectors<'_>,
    rows: Vectors<'_>,
    out: &mut [f64],
) -> Result<(), DistanceError> {
    let checker = Query::empty(metric, dim, queries.element_type(), isa)?;
    let (query_count, checked) = (queries.row_count(dim)?, checker.checked(rows)?);
    if query_count.checked_mul(checked.len()) != Some(out.len()) {
        let distances = query_count.saturating_mul(checked.len());
        return Err(DistanceError::OutputLength { places: out.len(), distances });
    }
    if out.is_empty() {
        return Ok(());
    }
    let group = (GROUP_BYTES / (dim * size_of::<f64>())).max(1).next_multiple_of(tile::QUERIES);
    let widened = !(is_of_bytes(queries) && is_of_bytes(rows) || metric.is_for_bits()) && query_count >= tile::QUERIES;
    for (group_index, out) in out.chunks_mut(group * checked.len()).enumerate() {
        let start = group_index * group;
        let Some(queries) = queries.rows(dim, start, group.min(query_count - start)) else { break };
        if widened {
            tiled_group(isa, metric, dim, queries, rows, out)?;
        } else {
            blocked_group(isa, metric, dim, queries, &checked, out)?;
        }
    }
    Ok(())
}

/// Bytes of queries, as f64, that are compared with all rows before the next ones: half of a second-level cache.
const GROUP_BYTES: usize = 256 * 1024;

/// Bytes of rows that every query of a group meets before the next ones: they stay in the second-level cache.
const BLOCK_BYTES: usize = 128 * 1024;

/// Rows that are widened to f64 at a time, for all tiles of a group.
const ROWS_WIDENED: usize = 16;

fn is_of_bytes(vectors: Vectors<'_>) -> bool {
    matches!(vectors, Vectors::I8(_) | Vectors::U8(_))
}

/// A group of queries against all rows, in blocks of rows, each query by itself: for bytes and bits, whose kernels do
/// not convert, and for a few queries, which would leave a tile half empty.
fn blocked_group(
    isa: Present,
    metric: Metric,
    dim: usize,
    queries: Vectors<'_>,
    rows: &Rows<'_>,
    out: &mut [f64],
) -> Result<(), DistanceError> {
    let count = queries.row_count(dim)?;
    let mut prepared = Vec::with_capacity(count);
    for vector in (0..count).filter_map(|index| queries.rows(dim, index, 1)) {
        let mut query = Query::empty(metric, dim, queries.element_type(), isa)?;
        query.set(vector)?;
        prepared.push(query);
    }
    let mut scratch = [0.0; ROWS_PER_STEP];
    let block = (BLOCK_BYTES / dim).clamp(1, ROWS_PER_STEP);
    for start in (0..rows.len()).step_by(block) {
        let block = rows.range(start, block.min(rows.len() - start));
        for (query, out) in prepared.iter().zip(out.chunks_mut(rows.len())) {
            query.measure(&block, &mut out[start..][..block.len()], &mut scratch);
        }
    }
    Ok(())
}

/// A group of queries against all rows, in tiles: every vector is widened to f64 once per group.
fn tiled_group(
    isa: Present,
    metric: Metric,
    dim: usize,
    queries: Vectors<'_>,
    rows: Vectors<'_>,
    out: &mut [f64],
) -> Result<(), DistanceError> {
    let (query_count, row_count) = (queries.row_count(dim)?, rows.row_count(dim)?);
    let kind = metric.sum_kind();
    let mut queries_wide = vec![Vec::new(); query_count];
    for (index, wide) in queries_wide.iter_mut().enumerate() {
        widen(isa, dim, queries, index, wide);
    }
    let mut rows_wide: [Vec<FloatBlock>; ROWS_WIDENED] = std::array::from_fn(|_| Vec::new());
    let mut row_squares = vec![0.0; if metric == Metric::Cosine { row_count } else { 0 }];
    for start in (0..row_count).step_by(ROWS_WIDENED) {
        let count = ROWS_WIDENED.min(row_count - start);
        for (index, wide) in (start..start + count).zip(&mut rows_wide) {
            widen(isa, dim, rows, index, wide);
            if let Some(square) = row_squares.get_mut(index) {
                *square = square_sum(wide);
            }
        }
        for query in (0..query_count).step_by(tile::QUERIES) {
            // Past the last query or row, the last one stands in; its sums are not written.
            let query_tile = std::array::from_fn(|i| queries_wide[(query + i).min(query_count - 1)].as_slice());
            for row in (0..count).step_by(tile::ROWS) {
                let row_tile = std::array::from_fn(|i| rows_wide[(row + i).min(count - 1)].as_slice());
                let sums = dispatch::tile_sums(isa, kind, query_tile, row_tile);
                for (out, sums) in out.chunks_mut(row_count).skip(query).zip(sums) {
                    out[start + row..start + count].iter_mut().zip(sums).for_each(|(place, sum)| *place = sum);
                }
            }
        }
    }
    for (wide, out) in queries_wide.iter().zip(out.chunks_mut(row_count)) {
        metric.finish(square_sum(wide), out, &row_squares);
    }
    Ok(())
}

/// Writes row `index` of vectors as f64. Bits are not widened.
fn widen(isa: Present, dim: usize, vectors: Vectors<'_>, index: usize, wide: &mut Vec<FloatBlock>) {
    match vectors.rows(dim, index, 1) {
        Some(Vectors::F32(values)) => dispatch::widen(isa, values, wide),
        Some(Vectors::F16(values)) => dispatch::widen(isa, values, wide),
        Some(Vectors::I8(values)) => dispatch::widen(isa, values, wide),
        Some(Vectors::U8(values)) => dispatch::widen(isa, values, wide),
        Some(Vectors::Bits(_)) | None => debug_assert!(false, "a row of floats or bytes"),
    }
}

/// Distances of row `i` of `left` to row `i` of `right`, one place of `out` per pair.
///
/// # Errors
/// [`DistanceError`] as for [`Query::new`] and [`Query::distances`], and [`DistanceError::PairCount`] if the sides have
/// different numbers of rows.
pub fn pair_distances(
    metric: Metric,
    dim: usize,
    left: Vectors<'_>,
    right: Vectors<'_>,
    out: &mut [f64],
) -> Result<(), DistanceError> {
    let mut query = Query::empty(metric, dim, left.element_type(), Present::chosen())?;
    let (left_rows, rows) = (left.row_count(dim)?, query.checked(right)?);
    if left_rows != rows.len() {
        return Err(DistanceError::PairCount { left: left_rows, right: rows.len() });
    }
    if out.len() != left_rows {
        return Err(DistanceError::OutputLength { places: out.len(), distances: left_rows });
    }
    for (index, out) in out.iter_mut().enumerate() {
        if let Some(vector) = left.rows(dim, index, 1) {
            query.set(vector)?;
            query.measure(&rows.range(index, 1), std::slice::from_mut(out), &mut [0.0]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
