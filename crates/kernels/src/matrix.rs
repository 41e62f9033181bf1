//! Blocks against blocks: every query with every row, or row by row.
//!
//! The distances have the bits of [`Query::distances`]; only the order of the work differs.

use crate::error::DistanceError;
use crate::isa::Present;
use crate::metric::Metric;
use crate::query::Query;
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
    let mut query = Query::empty(metric, dim, queries.element_type(), isa)?;
    let (query_count, row_count) = (queries.row_count(dim)?, query.checked(rows)?.len());
    if query_count.checked_mul(row_count) != Some(out.len()) {
        return Err(DistanceError::OutputLength {
            places: out.len(),
            distances: query_count.saturating_mul(row_count),
        });
    }
    for index in 0..query_count {
        if let Some(vector) = queries.rows(dim, index, 1) {
            query.set(vector)?;
            query.distances(rows, &mut out[index * row_count..][..row_count])?;
        }
    }
    Ok(())
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
            query.measure(&rows.range(index, 1), std::slice::from_mut(out));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
