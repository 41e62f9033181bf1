//! From vectors of any element type and metric to the space of the codes, where near means near in Euclidean distance.
//!
//! Cosine: vectors of length one. Inner product: one coordinate more that makes all rows equally long (Bachrach et
//! al., "Speeding up the Xbox recommender system", RecSys 2014), 0 for a query. Then about the mean, along the principal axes,
//! turned at random, so that a few bits per element serve all of them alike.

use kernels::{BytePanels, Centered, Metric, Vectors, dot_f32 as dot, square_f64};

use super::linear;
use super::source::widen;

/// A vector in the space of the codes.
#[derive(Clone, Debug, Default)]
pub(super) struct Projected {
    /// As many elements as the codes have.
    pub vector: Vec<f32>,
    /// Squared length of what the codes leave out.
    pub beside: f32,
    lifted: Vec<f32>,
    rounded: Vec<i8>,
    sums: Vec<i32>,
}

/// How a vector gets into the space of the codes.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub metric: Metric,
    /// Elements of a vector.
    pub dim: usize,
    /// Length of all rows, with the coordinate more, under the inner product; else 0.
    pub length: f32,
    pub map: Map,
}

/// The last step into the space.
#[derive(Clone, Debug)]
pub(super) enum Map {
    /// Whole numbers, with this subtracted.
    Shift(f32),
    /// An affine map, in 8-bit numbers.
    Affine(Box<Affine>),
}

/// `y = rows · ((x - mean) · inverse_scale)`, where a row of 8-bit numbers stands for `number · row_scale`.
#[derive(Clone, Debug, Default)]
pub(super) struct Affine {
    pub mean: Vec<f32>,
    pub inverse_scale: Vec<f32>,
    pub row_scale: Vec<f32>,
    /// Row-major, 128 too high.
    pub rows: Vec<u8>,
    pub panels: BytePanels,
}

impl Affine {
    /// Rounds a basis, rows of `mean.len()`, to 8 bits. `deviation`: of each dimension. A dimension that varies more than the
    /// average one is scaled down first, so that one outlier among them does not take the bits of all others.
    pub(super) fn new(basis: &[f32], mean: Vec<f32>, deviation: &[f32]) -> Self {
        let dim = mean.len();
        let average = (deviation.iter().map(|d| d * d).sum::<f32>() / dim.max(1) as f32).sqrt();
        let scale: Vec<f32> = deviation.iter().map(|d| d.max(average)).map(|d| if d > 0.0 { d } else { 1.0 }).collect();
        let (mut row_scale, mut rows) = (Vec::new(), Vec::new());
        for row in basis.chunks_exact(dim) {
            let scaled: Vec<f32> = row.iter().zip(&scale).map(|(value, scale)| value * scale).collect();
            let largest = scaled.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let unit = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            rows.extend(scaled.iter().map(|value| (value / unit).round() as i8 as u8 ^ 0x80));
            row_scale.push(unit);
        }
        let inverse_scale = scale.iter().map(|scale| 1.0 / scale).collect();
        Self { mean, inverse_scale, row_scale, rows, ..Self::default() }.packed()
    }

    /// Puts the rows in the order of the kernel. Lengths must agree: `rows` is `row_scale × mean`.
    pub(super) fn packed(mut self) -> Self {
        let (dim, rows) = (self.mean.len(), &self.rows);
        self.panels.pack(dim, self.row_scale.len(), |row, place| place.copy_from_slice(&rows[row * dim..][..dim]));
        self
    }

    /// Cost: `dim · rows` integer products and `dim` divisions' worth of floats.
    fn apply(&self, projected: &mut Projected) {
        let Projected { vector, beside, lifted, rounded, sums } = projected;
        let Centered { square: length, largest } = kernels::center(lifted, &self.mean, &self.inverse_scale);
        let (unit, inverse) = if largest > 0.0 { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) };
        rounded.resize(self.panels.row_stride(), 0);
        let excess = kernels::round_to_bytes(lifted, inverse, rounded);
        sums.resize(self.panels.stride(), 0);
        self.panels.dots(rounded, sums);
        vector.clear();
        vector
            .extend(sums.iter().zip(&self.row_scale).map(|(sum, scale)| (sum - 128 * excess) as f32 * (unit * scale)));
        *beside = (length - dot(vector, vector)).max(0.0);
    }
}

impl Space {
    /// Elements of a vector before the map: one more than the vectors have under the inner product.
    pub(super) fn lifted_dim(&self) -> usize {
        self.dim + usize::from(self.metric == Metric::InnerProduct)
    }

    /// A row, widened to f32. Its distances must be defined.
    pub(super) fn project_row(&self, row: &[f32], projected: &mut Projected) {
        self.lift_row(row, &mut projected.lifted);
        self.map_lifted(projected);
    }

    /// A row as it is before the map.
    pub(super) fn lift_row(&self, row: &[f32], lifted: &mut Vec<f32>) {
        lifted.clear();
        lifted.extend_from_slice(row);
        match self.metric {
            Metric::Cosine => {
                let inverse = (1.0 / square_f64(row).sqrt()) as f32;
                lifted.iter_mut().for_each(|value| *value *= inverse);
            }
            Metric::InnerProduct => {
                let rest = f64::from(self.length) * f64::from(self.length) - square_f64(row);
                lifted.push(rest.max(0.0).sqrt() as f32);
            }
            _ => {}
        }
    }

    /// A query of any element type but bits: the [`Measure`] of its distances, or `None` if all of them are undefined.
    pub(super) fn project_query(&self, query: Vectors<'_>, projected: &mut Projected) -> Option<Measure> {
        projected.lifted.clear();
        projected.lifted.resize(self.dim, 0.0);
        widen(query, &mut projected.lifted);
        let square = square_f64(&projected.lifted);
        if !square.is_finite() || (self.metric == Metric::Cosine && square == 0.0) {
            return None;
        }
        let mut measure = Measure { metric: self.metric, shift: 0.0, squares: self.length * self.length, scale: 1.0 };
        if matches!(self.metric, Metric::Cosine | Metric::InnerProduct) && square > 0.0 {
            // Its length does not change which rows are near: it is made that of the rows.
            let length = if self.metric == Metric::Cosine || self.length == 0.0 { 1.0 } else { self.length };
            let scale = f64::from(length) / square.sqrt();
            projected.lifted.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
            measure.scale = scale as f32;
            measure.squares += length * length;
        }
        if self.metric == Metric::InnerProduct {
            projected.lifted.push(0.0);
        }
        self.map_lifted(projected);
        measure.shift = dot(&projected.vector, &projected.vector) + projected.beside;
        Some(measure)
    }

    fn map_lifted(&self, projected: &mut Projected) {
        match &self.map {
            Map::Shift(shift) => {
                projected.vector.clear();
                projected.vector.extend(projected.lifted.iter().map(|value| value - shift));
                projected.beside = 0.0;
            }
            Map::Affine(affine) => affine.apply(projected),
        }
    }
}

/// From scores of codes to estimates in the metric's own terms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    metric: Metric,
    /// Squared length of the query about the mean: a score with it added is a squared distance.
    pub shift: f32,
    /// Squared lengths of a row and of the query, under the inner product.
    squares: f32,
    /// What the query was multiplied by.
    scale: f32,
}

impl Measure {
    /// For scores that are distances already.
    pub(super) fn of_bits(metric: Metric) -> Self {
        Self { metric, shift: 0.0, squares: 0.0, scale: 1.0 }
    }

    /// The distance that a score stands for.
    pub(super) fn estimate(self, score: f32) -> f32 {
        let squared = (score + self.shift).max(0.0);
        match self.metric {
            Metric::L2 => squared.sqrt(),
            Metric::Cosine => (squared / 2.0).min(2.0),
            // |q - x|² = |q|² + |x|² - 2·q·x, of a query that was scaled.
            Metric::InnerProduct => (squared - self.squares) / 2.0 / self.scale,
            _ => score,
        }
    }
}

/// An affine map that keeps nearly all of the variance of `samples` in `count` elements, turned at random; and the share it keeps.
pub(super) fn fit(
    samples: &[f32],
    dim: usize,
    count: usize,
    seed: u64,
    covariance: &mut Option<Vec<f32>>,
) -> (Affine, f64) {
    let (mean, deviation) = moments(samples, dim);
    if count >= dim {
        return (Affine::new(&linear::rotation(dim, seed), mean, &deviation), 1.0);
    }
    let covariance = covariance.get_or_insert_with(|| linear::covariance(samples, dim, &mean));
    let (basis, kept) = linear::principal_subspace(covariance, dim, count, seed);
    let turned = linear::times(&linear::rotation(count, seed ^ 1), &basis, count, dim);
    (Affine::new(&turned, mean, &deviation), kept)
}

/// Mean and standard deviation of each dimension.
fn moments(samples: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let count = (samples.len() / dim.max(1)).max(1) as f64;
    let (mut sums, mut squares) = (vec![0.0_f64; dim], vec![0.0_f64; dim]);
    for sample in samples.chunks_exact(dim.max(1)) {
        for (j, value) in sample.iter().enumerate() {
            sums[j] += f64::from(*value);
            squares[j] += f64::from(*value) * f64::from(*value);
        }
    }
    let mean: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
    let deviation =
        squares.iter().zip(&mean).map(|(square, mean)| (square / count - mean * mean).max(0.0).sqrt() as f32);
    (mean.iter().map(|mean| *mean as f32).collect(), deviation.collect())
}
