//! Just enough linear algebra for a basis: covariance, its principal subspace, a random rotation.
//!
//! Matrices are row-major `Vec<f32>`. Deterministic, whatever the number of threads: every output value is summed by one thread.

use kernels::{BytePanels, Panels, dot_f32 as dot};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Rounds of the orthogonal iteration. The subspace is wanted, not its axes, and a direction that is not separated from
/// one outside carries as much variance as that one.
const ITERATIONS: usize = 6;

/// The covariance of `samples` (rows of `dim`) about `mean`: `dim × dim`.
///
/// Elements are rounded to 8 bits of each dimension's own range: an error far below that of a sample.
/// Cost: `dim²·n` integer products.
pub(super) fn covariance(samples: &[f32], dim: usize, mean: &[f32]) -> Vec<f32> {
    // Depths beyond would leave i32.
    let count = (samples.len() / dim.max(1)).min(1 << 16);
    let mut range = vec![0.0_f32; dim];
    for sample in samples.chunks_exact(dim).take(count) {
        range.iter_mut().zip(sample.iter().zip(mean)).for_each(|(range, (x, m))| *range = range.max((x - m).abs()));
    }
    let scale: Vec<f32> = range.iter().map(|range| range / 127.0).collect();
    let stride = count.div_ceil(4) * 4;
    let mut columns = vec![0_i8; dim * stride];
    for (at, sample) in samples.chunks_exact(dim).take(count).enumerate() {
        for (j, (x, m)) in sample.iter().zip(mean).enumerate() {
            let value = if scale[j] > 0.0 { (x - m) / scale[j] } else { 0.0 };
            columns[j * stride + at] = (value + f32::copysign(0.5, value)) as i8;
        }
    }
    let mut panels = BytePanels::new();
    panels.pack(count, dim, |j, place| {
        place.iter_mut().zip(&columns[j * stride..]).for_each(|(place, value)| *place = *value as u8 ^ 0x80);
    });
    let mut covariance = vec![0.0; dim * dim];
    const ROWS: usize = 12;
    covariance.par_chunks_mut(ROWS * dim).zip(columns.par_chunks(ROWS * stride)).enumerate().for_each(
        |(at, (out, rows))| {
            let mut sums = vec![0; rows.len() / stride * panels.stride()];
            panels.dots(rows, &mut sums);
            let rows = rows.chunks_exact(stride).zip(sums.chunks_exact(panels.stride()));
            for (i, (out, (row, sums))) in (at * ROWS..).zip(out.chunks_exact_mut(dim).zip(rows)) {
                // Columns are stored 128 too high.
                let excess = 128 * row.iter().map(|value| i64::from(*value)).sum::<i64>();
                for (out, (sum, scale_j)) in out.iter_mut().zip(sums.iter().zip(&scale)) {
                    *out = (i64::from(*sum) - excess) as f32 * scale[i] * scale_j / count as f32;
                }
            }
        },
    );
    covariance
}

/// An orthonormal basis of nearly the principal subspace: `count` rows of `dim`, and the share of the variance in it.
///
/// Orthogonal iteration from a random start. Cost: `6·count·dim·(dim + count)` products.
pub(super) fn principal_subspace(covariance: &[f32], dim: usize, count: usize, seed: u64) -> (Vec<f32>, f64) {
    let mut basis = gaussian(count * dim, seed);
    orthonormalize(&mut basis, dim);
    for _ in 0..ITERATIONS {
        basis = times(&basis, covariance, dim, dim);
        orthonormalize(&mut basis, dim);
    }
    let moved = times(&basis, covariance, dim, dim);
    let kept: f64 = basis.iter().zip(&moved).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let all: f64 = (0..dim).map(|i| f64::from(covariance[i * dim + i])).sum();
    (basis, if all > 0.0 { kept / all } else { 1.0 })
}

/// A random rotation: `dim × dim`, orthonormal.
pub(super) fn rotation(dim: usize, seed: u64) -> Vec<f32> {
    let mut rotation = gaussian(dim * dim, seed);
    orthonormalize(&mut rotation, dim);
    rotation
}

/// `left · right`: rows of `inner`, times `inner` rows of `columns`.
pub(super) fn times(left: &[f32], right: &[f32], inner: usize, columns: usize) -> Vec<f32> {
    const ROWS: usize = 16;
    let transposed: Vec<f32> =
        (0..columns).flat_map(|column| right.iter().skip(column).step_by(columns.max(1)).copied()).collect();
    let panels = Panels::new(inner, &transposed);
    let stride = panels.stride();
    let mut product = vec![0.0; left.len() / inner.max(1) * columns];
    product.par_chunks_mut(ROWS * columns).zip(left.par_chunks(ROWS * inner)).for_each(|(out, left)| {
        let mut sums = vec![0.0; out.len() / columns * stride];
        panels.products(left, &mut sums);
        out.chunks_exact_mut(columns).zip(sums.chunks_exact(stride)).for_each(|(out, sums)| {
            out.copy_from_slice(&sums[..columns]);
        });
    });
    product
}

/// Modified Gram-Schmidt on rows of `dim`. A row that depends on those before it becomes zero.
fn orthonormalize(rows: &mut [f32], dim: usize) {
    let mut rest = rows;
    while rest.len() >= dim && dim > 0 {
        let (row, later) = rest.split_at_mut(dim);
        let length = dot(row, row).sqrt();
        let inverse = if length > 1e-12 { 1.0 / length } else { 0.0 };
        row.iter_mut().for_each(|value| *value *= inverse);
        let row = &*row;
        later.par_chunks_mut(dim).with_min_len(16).for_each(|later| {
            let along = dot(row, later);
            later.iter_mut().zip(row).for_each(|(later, row)| *later -= along * row);
        });
        rest = later;
    }
}

/// Nearly normal values: sums of uniform ones, which need no function that differs between machines.
pub(super) fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| (0..4).map(|_| random.random::<f32>() - 0.5).sum::<f32>() * 1.732).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_rows_with_columns() {
        let (rows, inner, columns) = (19, 7, 21);
        let (left, right) = (gaussian(rows * inner, 1), gaussian(inner * columns, 2));
        let product = times(&left, &right, inner, columns);
        assert_eq!(product.len(), rows * columns);
        for (row, product) in product.chunks_exact(columns).enumerate() {
            for (column, value) in product.iter().enumerate() {
                let expected: f32 = (0..inner).map(|k| left[row * inner + k] * right[k * columns + column]).sum();
                assert!((value - expected).abs() < 1e-5, "{value} {expected}");
            }
        }
    }

    #[test]
    fn the_principal_subspace_holds_the_variance_that_was_put_there() {
        let (dim, mut samples) = (40, gaussian(2000 * 40, 1));
        samples.chunks_exact_mut(dim).for_each(|sample| sample[..8].iter_mut().for_each(|value| *value *= 10.0));
        let covariance = covariance(&samples, dim, &vec![0.0; dim]);
        assert!((covariance[0] - 100.0).abs() < 8.0, "{}", covariance[0]);
        let (basis, kept) = principal_subspace(&covariance, dim, 8, 2);
        assert!(kept > 0.94, "{kept}");
        assert!((dot(&basis[..dim], &basis[..dim]) - 1.0).abs() < 1e-4);
        assert!(dot(&basis[..dim], &basis[dim..2 * dim]).abs() < 1e-4);
    }
}
