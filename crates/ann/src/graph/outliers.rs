//! Rows so far from all others that they would take the precision of these: codes share a center and a scale. They are no vertices but
//! candidates of every search.

use kernels::{ElementType, Metric, square_f64};

use super::random::draw;
use super::source::each_vector;
use crate::{BuildError, Rows};

/// Rows that tell where rows are.
const SAMPLE_ROWS: usize = 1024;
/// A row is an outlier if its squared distance from the middle is above this times that of the median row.
const FAR: f64 = 1e4;
/// If more than one row in so many is that far, rows are of different scales, and none of them is an outlier.
const OUTLIERS_SHARE: usize = 64;
/// How often the middle is found anew without the rows that were too far from it.
const ROUNDS: usize = 16;
/// Squared lengths above this are not encoded: squares of distances and sums of them would leave f32.
const SQUARE_MAX: f64 = 1e36;

/// Where the rows are.
#[derive(Debug)]
pub(super) struct Bounds {
    center: Vec<f64>,
    /// The largest squared distance from the center.
    reach: f64,
}

impl Bounds {
    /// Of a sample of the rows. Under cosine lengths do not matter, and bits have none.
    pub(super) fn of(rows: &dyn Rows, metric: Metric, seed: u64) -> Result<Self, BuildError> {
        let dim = rows.dim();
        let unbounded = Self { center: vec![0.0; dim], reach: f64::INFINITY };
        if rows.element() == ElementType::Bits || metric == Metric::Cosine {
            return Ok(unbounded);
        }
        let (mut sample, mut count): (Vec<f32>, usize) = (vec![], 0);
        for row in draw(seed ^ 0x6f75_746c, rows.len(), SAMPLE_ROWS).into_iter().filter(|row| rows.has(*row)) {
            each_vector(rows, row..row + 1, &mut |_, vector| {
                if square_f64(vector) <= SQUARE_MAX {
                    sample.extend_from_slice(vector);
                    count += 1;
                }
            })?;
        }
        let mut near: Vec<&[f32]> = sample.chunks_exact(dim.max(1)).collect();
        for _ in 0..ROUNDS {
            let bounds = Self::around(&near, dim);
            let kept: Vec<&[f32]> = near.iter().copied().filter(|vector| bounds.hold(vector)).collect();
            if kept.len() == near.len() {
                return Ok(bounds);
            }
            near = kept;
            if near.len() + count / OUTLIERS_SHARE < count {
                break;
            }
        }
        Ok(unbounded)
    }

    /// About the mean of some vectors.
    fn around(vectors: &[&[f32]], dim: usize) -> Self {
        let mut center = vec![0.0; dim];
        for vector in vectors {
            center.iter_mut().zip(*vector).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        center.iter_mut().for_each(|sum| *sum /= vectors.len().max(1) as f64);
        let mut bounds = Self { center, reach: f64::INFINITY };
        let mut squares: Vec<f64> = vectors.iter().map(|vector| bounds.square(vector)).collect();
        let middle = squares.len() / 2;
        if !squares.is_empty() {
            let (_, median, _) = squares.select_nth_unstable_by(middle, f64::total_cmp);
            // Most rows may be one and the same.
            bounds.reach = if *median > 0.0 { FAR * *median } else { f64::INFINITY };
        }
        bounds
    }

    fn square(&self, vector: &[f32]) -> f64 {
        self.center.iter().zip(vector).map(|(center, value)| (f64::from(*value) - center).powi(2)).sum()
    }

    /// Whether a vector is among the others, and its distances can be told in f32.
    pub(super) fn hold(&self, vector: &[f32]) -> bool {
        square_f64(vector) <= SQUARE_MAX && (self.reach == f64::INFINITY || self.square(vector) <= self.reach)
    }
}
