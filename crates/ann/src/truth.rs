//! Queries to measure efforts with, and their true neighbors, gathered as the rows of a build go by.

use std::sync::{Mutex, PoisonError};

use kernels::{Panels, TopK, Vectors};

use crate::sample::half_squares;
use crate::space::{Geometry, Space};

/// A query of the calibration: itself, the row that it is or comes from, and its true neighbors.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) query: SampleQuery,
    /// The row that does not count.
    pub(crate) own: Option<u32>,
    pub(crate) truth: Mutex<TopK>,
}

/// A query in the form that the index is searched in.
#[derive(Debug)]
pub(crate) enum SampleQuery {
    /// Floats, not projected.
    Floats(Vec<f32>),
    /// Bits.
    Bits(Vec<u8>),
}

/// Neighbors that are kept for each sample.
const TRUTH: usize = 100;

impl SampleQuery {
    pub(crate) fn vectors(&self) -> Vectors<'_> {
        match self {
            SampleQuery::Floats(values) => Vectors::F32(values),
            SampleQuery::Bits(bytes) => Vectors::Bits(bytes),
        }
    }
}

impl Sample {
    /// A query whose neighbors are not known yet.
    pub(crate) fn new(query: SampleQuery, own: Option<u32>) -> Sample {
        Sample { query, own, truth: Mutex::new(TopK::new(TRUTH)) }
    }

    /// Keeps the nearest of some rows.
    pub(crate) fn offer(&self, rows: impl Iterator<Item = (f64, u32)>) {
        let mut truth = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
        for (distance, row) in rows.filter(|(_, row)| Some(*row) != self.own) {
            truth.push(distance, u64::from(row));
        }
    }

    /// The nearest rows that were offered.
    pub(crate) fn neighbors(&self) -> Vec<u32> {
        let truth = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
        truth.clone().into_sorted().into_iter().map(|neighbor| neighbor.row as u32).collect()
    }
}

/// Projected samples, side by side.
pub(crate) struct Truth {
    geometry: Geometry,
    panels: Panels,
}

impl Truth {
    pub(crate) fn new(space: &Space, samples: &[Sample]) -> Truth {
        let (mut all, mut projected, mut standings) = (vec![], vec![], vec![]);
        for sample in samples {
            space.project(sample.query.vectors(), &mut projected, &mut standings);
            all.extend_from_slice(&projected);
        }
        Truth { geometry: space.geometry(), panels: Panels::new(space.padded(), &all) }
    }

    /// Offers projected rows, the first of them row `first`, to every sample: those that are `stored`, by their place here.
    pub(crate) fn offer(&self, projected: &[f32], first: usize, samples: &[Sample], stored: &dyn Fn(usize) -> bool) {
        if samples.is_empty() {
            return;
        }
        let stride = self.panels.stride();
        let squares = half_squares(projected, self.panels.dim());
        let mut products = vec![0.0; squares.len() * stride];
        self.panels.products(projected, &mut products);
        for (column, sample) in samples.iter().enumerate() {
            let ranked = products.chunks_exact(stride).zip(&squares).enumerate();
            let ranked = ranked.filter(|(index, _)| stored(*index)).map(|(index, (products, half_square))| {
                let add = if self.geometry == Geometry::Euclidean { *half_square } else { 0.0 };
                (f64::from(add - products[column]), (first + index) as u32)
            });
            sample.offer(ranked);
        }
    }
}
