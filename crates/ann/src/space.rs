//! The space in which codes and centroids live: vectors of every element type as f32, moved, scaled and rotated.
//!
//! Under L2 and cosine the squared distance of two projected vectors is what is ranked by, under the inner product its negative.

use half::f16;
use kernels::{ElementType, Metric, ROTATED_MULTIPLE, Rotation, Vectors, dot_f32};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::build::BuildError;
use crate::head::{HeadReader, HeadWriter, damaged};
use crate::payload::FormatError;

/// Elements of a vector at most: sums of codes fit 32 bits.
pub(crate) const DIM_MAX: usize = 32_768;

/// Squared lengths above this are not encoded: sums and squares of them would leave f32.
const SQUARE_MAX: f32 = 1e18;

/// What is ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Geometry {
    /// Squared distance.
    Euclidean,
    /// Negative inner product.
    InnerProduct,
}

/// How a vector takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It was projected.
    Projected,
    /// Its distance to everything is undefined: never a candidate.
    Undefined,
    /// It is too long for f32: a candidate always, without an estimate.
    Outlier,
}

/// The projection of vectors of one column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Space {
    pub(crate) metric: Metric,
    pub(crate) element: ElementType,
    pub(crate) dim: usize,
    scale: f32,
    origin: Vec<f32>,
    signs: Vec<u8>,
    rotation: Rotation,
}

impl Space {
    /// Whether there is an index for vectors like these.
    pub(crate) fn check(metric: Metric, element: ElementType, dim: usize) -> Result<(), BuildError> {
        if metric == Metric::L1 {
            return Err(BuildError::Unsupported(
                "no index of lists answers l1 distances; compare exactly, or index for l2".into(),
            ));
        }
        if metric.is_for_bits() != (element == ElementType::Bits) {
            let (metric, element) = (metric.name(), element.name());
            return Err(BuildError::Unsupported(format!("{metric} distance does not go with {element} vectors")));
        }
        if dim == 0 || dim > DIM_MAX || element == ElementType::Bits && !dim.is_multiple_of(8) {
            return Err(BuildError::Unsupported(format!(
                "an index of lists takes 1 to {DIM_MAX} dimensions (whole bytes of bits), not {dim}"
            )));
        }
        Ok(())
    }

    /// A space whose rotation is drawn from `seed`, its origin and scale those of a sample: `sum`, the sum of `count` vectors
    /// (normalised ones under cosine), and the sum of their squared lengths.
    pub(crate) fn new(metric: Metric, element: ElementType, dim: usize, sample: Moments, seed: u64) -> Option<Space> {
        let sample = sample.finished();
        let padded = padded(dim);
        let mut signs = vec![0; Rotation::sign_bytes(padded)];
        ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut signs);
        let count = sample.count.max(1) as f64;
        let mean: Vec<f64> = sample.sum.iter().map(|sum| sum / count).collect();
        let mean_square: f64 = mean.iter().map(|value| value * value).sum();
        let (origin, spread) = if metric == Metric::InnerProduct {
            (vec![0.0; dim], sample.square / count)
        } else {
            (mean.iter().map(|value| *value as f32).collect(), sample.square / count - mean_square)
        };
        let scale = if metric == Metric::Cosine { 1.0 } else { (1.0 / spread.max(0.0).sqrt()) as f32 };
        let scale = if scale.is_normal() { scale } else { 1.0 };
        let rotation = Rotation::new(padded, &signs)?;
        Some(Space { metric, element, dim, scale, origin, signs, rotation })
    }

    /// Where a vector of zeros would be.
    pub(crate) fn projected_zero(&self) -> Vec<f32> {
        let mut zero: Vec<f32> = self.origin.iter().map(|value| -value * self.scale).collect();
        zero.resize(self.padded(), 0.0);
        self.rotation.apply(&mut zero);
        zero
    }

    pub(crate) fn geometry(&self) -> Geometry {
        if self.metric == Metric::InnerProduct { Geometry::InnerProduct } else { Geometry::Euclidean }
    }

    /// Elements of a projected vector.
    pub(crate) fn padded(&self) -> usize {
        self.rotation.dim()
    }

    /// Projects whole vectors of `dim` elements: `out` gets `padded` elements for each, `standings` one; those of vectors that
    /// are not projected are zeros.
    pub(crate) fn project(&self, vectors: Vectors<'_>, out: &mut Vec<f32>, standings: &mut Vec<Standing>) {
        let padded = self.padded();
        let count = vectors.len() / self.dim.max(1);
        out.clear();
        out.resize(count * padded, 0.0);
        standings.clear();
        for (index, place) in out.chunks_exact_mut(padded).enumerate() {
            let Some(vector) = vectors.rows(self.dim, index, 1) else { break };
            let standing = self.move_and_scale(vector, &mut place[..self.dim]);
            if standing == Standing::Projected {
                self.rotation.apply(place);
            } else {
                place.fill(0.0);
            }
            standings.push(standing);
        }
    }

    fn move_and_scale(&self, vector: Vectors<'_>, place: &mut [f32]) -> Standing {
        widen(vector, place);
        if place.iter().any(|value| value.is_nan()) {
            return Standing::Undefined;
        }
        if self.metric == Metric::Cosine {
            let length = length(place);
            if length == 0.0 || !length.is_finite() {
                return Standing::Undefined;
            }
            place.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
        }
        for (value, origin) in place.iter_mut().zip(&self.origin) {
            *value = (*value - origin) * self.scale;
        }
        if dot_f32(place, place) <= SQUARE_MAX { Standing::Projected } else { Standing::Outlier }
    }

    /// A distance of the metric from what is ranked by.
    pub(crate) fn distance(&self, ranked: f32) -> f32 {
        match self.metric {
            Metric::Cosine => ranked.max(0.0) * 0.5,
            Metric::InnerProduct => ranked / self.scale / self.scale,
            _ => ranked.max(0.0).sqrt() / self.scale,
        }
    }

    /// A length of this space in units of the vectors (normalised ones under cosine).
    pub(crate) fn distance_of_length(&self, length: f32) -> f32 {
        length / self.scale
    }

    /// One vector as f32, normalised under cosine.
    pub(crate) fn floats(&self, vector: Vectors<'_>) -> Vec<f32> {
        let mut place = vec![0.0; self.dim];
        widen(vector, &mut place);
        if self.metric == Metric::Cosine {
            let length = length(&place);
            place.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
        }
        place
    }

    pub(crate) fn write(&self, head: &mut HeadWriter) {
        write_shape(self.metric, self.element, self.dim, head);
        head.f32(self.scale);
        head.f32s(&self.origin);
        head.bytes(&self.signs);
    }

    /// Reads what follows the shape.
    pub(crate) fn read(
        (metric, element, dim): (Metric, ElementType, usize),
        head: &mut HeadReader<'_>,
    ) -> Result<Space, FormatError> {
        let scale = head.f32()?;
        if scale <= 0.0 {
            return Err(damaged("a scale that is not positive"));
        }
        let origin = head.f32s(dim)?;
        let signs = head.bytes(Rotation::sign_bytes(padded(dim)))?.to_vec();
        let rotation = Rotation::new(padded(dim), &signs).ok_or_else(|| damaged("the rotation has no dimensions"))?;
        Ok(Space { metric, element, dim, scale, origin, signs, rotation })
    }
}

/// Elements of a projected vector of `dim` elements.
fn padded(dim: usize) -> usize {
    dim.next_multiple_of(ROTATED_MULTIPLE)
}

/// Writes a metric, an element type and a dimension.
pub(crate) fn write_shape(metric: Metric, element: ElementType, dim: usize, head: &mut HeadWriter) {
    head.u8(Metric::ALL.iter().position(|other| *other == metric).map_or(u8::MAX, |at| at as u8));
    head.u8(ElementType::ALL.iter().position(|other| *other == element).map_or(u8::MAX, |at| at as u8));
    head.u32(dim as u32);
}

/// Reads them back, if there can be an index for them.
pub(crate) fn read_shape(head: &mut HeadReader<'_>) -> Result<(Metric, ElementType, usize), FormatError> {
    let metric = Metric::ALL.get(usize::from(head.u8()?)).copied().ok_or_else(|| damaged("an unknown metric"))?;
    let element =
        ElementType::ALL.get(usize::from(head.u8()?)).copied().ok_or_else(|| damaged("an unknown element type"))?;
    let dim = head.count()?;
    Space::check(metric, element, dim).map_err(|error| damaged(&error.to_string()))?;
    Ok((metric, element, dim))
}

/// Sums over a sample, in the order in which it was added.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    sum: Vec<f64>,
    square: f64,
    count: usize,
    place: Vec<f32>,
    normalised: bool,
    /// The first vectors, until they are enough to tell how long a vector is.
    first: Vec<f32>,
    lengths: Vec<f64>,
    /// Longer ones do not count.
    length_max: f64,
}

/// Vectors that tell how long a vector is.
const FIRST: usize = 512;

/// A vector that is so many times longer than the median one would move the origin, and take the scale, of all others.
const LONG: f64 = 100.0;

impl Moments {
    pub(crate) fn new(metric: Metric, dim: usize) -> Moments {
        let normalised = metric == Metric::Cosine;
        let (sum, place) = (vec![0.0; dim], vec![0.0; dim]);
        let (first, lengths, length_max) = (vec![], vec![], f64::INFINITY);
        Moments { sum, square: 0.0, count: 0, place, normalised, first, lengths, length_max }
    }

    /// Adds one vector, unless it has no length that is finite, or is much longer than others.
    pub(crate) fn add(&mut self, vector: Vectors<'_>) {
        widen(vector, &mut self.place);
        let length = length(&self.place);
        if !length.is_finite() || self.normalised && length == 0.0 {
            return;
        }
        if self.lengths.len() < FIRST {
            self.first.extend_from_slice(&self.place);
            self.lengths.push(length);
            if self.lengths.len() == FIRST {
                self.count_first();
            }
        } else {
            let place = std::mem::take(&mut self.place);
            self.count(&place, length);
            self.place = place;
        }
    }

    fn count_first(&mut self) {
        let mut lengths = self.lengths.clone();
        let middle = lengths.len() / 2;
        if !self.normalised && !lengths.is_empty() {
            let (_, median, _) = lengths.select_nth_unstable_by(middle, f64::total_cmp);
            self.length_max = if *median > 0.0 { LONG * *median } else { f64::INFINITY };
        }
        let (first, dim) = (std::mem::take(&mut self.first), self.sum.len());
        for (vector, at) in first.chunks_exact(dim.max(1)).zip(0..) {
            self.count(vector, self.lengths[at]);
        }
    }

    fn count(&mut self, vector: &[f32], length: f64) {
        if length > self.length_max {
            return;
        }
        let scale = if self.normalised { 1.0 / length } else { 1.0 };
        for (sum, value) in self.sum.iter_mut().zip(vector) {
            *sum += f64::from(*value) * scale;
        }
        self.square += (length * scale) * (length * scale);
        self.count += 1;
    }

    /// All of them, when they have been added.
    fn finished(mut self) -> Self {
        if self.lengths.len() < FIRST {
            self.count_first();
        }
        self
    }
}

fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
}

/// The elements of one vector as f32; of bits there are none.
fn widen(vector: Vectors<'_>, place: &mut [f32]) {
    match vector {
        Vectors::F32(values) => place.iter_mut().zip(values).for_each(|(place, value)| *place = *value),
        Vectors::F16(values) => place.iter_mut().zip(values).for_each(|(place, value)| *place = f16::to_f32(*value)),
        Vectors::I8(values) => place.iter_mut().zip(values).for_each(|(place, value)| *place = f32::from(*value)),
        Vectors::U8(values) => place.iter_mut().zip(values).for_each(|(place, value)| *place = f32::from(*value)),
        Vectors::Bits(_) => {}
    }
}
