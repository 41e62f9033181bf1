//! What an effort is worth: recall measured at the build.
//!
//! Rows of the segment are the queries, half of them moved by about the length of their residual, so that queries that are no rows are
//! among them; the worse of the two halves counts. A row does not count as its own neighbor. Recall is that of the candidates, since they are compared exactly.

use rayon::prelude::*;

use super::format::Ivf;
use crate::build::{BuildError, Control};
use crate::index::{Effort, Index, Request, Step};
use crate::payload::Resident;
use crate::truth::Sample;

/// The numbers of neighbors that are measured.
pub(crate) const MEASURED_K: [usize; 3] = [1, 10, 100];

/// Recall that a measured effort must have above what is asked, as a part of what is missing to 1: the queries of a user are harder.
const MARGIN: f64 = 0.15;

/// How fast probes grow with `k` when nothing was measured.
const GROWTH: f32 = 0.4;

/// One measured effort.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) k: u32,
    pub(crate) probes: u32,
    pub(crate) rerank: u32,
    pub(crate) recall: f32,
}

/// All measured efforts, for each `k` in the order of their cost.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Calibration {
    /// Probes for the same recall grow as `k` to this power: a filter that leaves a part `s` asks for what `k / s` would.
    pub(crate) growth: f32,
    pub(crate) points: Vec<Point>,
}

impl Default for Calibration {
    fn default() -> Self {
        Calibration { growth: GROWTH, points: vec![] }
    }
}

impl Calibration {
    /// The cheapest measured effort for a recall: (probes, rerank). `lists`: how many there are.
    pub(crate) fn effort(&self, recall: f64, k: usize, lists: usize) -> (usize, usize) {
        let measured = MEASURED_K.into_iter().find(|measured| *measured >= k).unwrap_or(100);
        let wanted = recall + (1.0 - recall) * MARGIN;
        let points = self.points.iter().filter(|point| point.k as usize == measured);
        let found = points.filter(|point| f64::from(point.recall) >= wanted).min_by_key(|point| point.cost());
        let (probes, rerank) = match found {
            Some(point) => (point.probes as usize, point.rerank as usize),
            None => (lists, 10 * k.max(10)),
        };
        if k <= measured {
            return (probes, rerank.max(k));
        }
        let times = k as f64 / measured as f64;
        let probes = (probes as f64 * times.powf(f64::from(self.growth))).ceil() as usize;
        (probes.min(lists), (rerank as f64 * times).ceil() as usize)
    }

    /// The worse of two: of segments that are merged.
    pub(crate) fn worse(&self, other: &Calibration) -> Calibration {
        let growth = self.growth.max(other.growth);
        let same = |point: &Point| {
            let key = (point.k, point.probes, point.rerank);
            other.points.iter().find(|other| (other.k, other.probes, other.rerank) == key)
        };
        let points = self
            .points
            .iter()
            .filter_map(|point| same(point).map(|other| Point { recall: point.recall.min(other.recall), ..*point }));
        Calibration { growth, points: points.collect() }
    }
}

impl Point {
    /// In the cost of a candidate: a list costs about as much as a dozen of them.
    fn cost(&self) -> u64 {
        12 * u64::from(self.probes) + u64::from(self.rerank)
    }
}

/// Measures efforts over the samples and keeps those that are worth it.
pub(crate) fn calibrate(
    ivf: &Ivf,
    sections: &Resident<&[u8]>,
    samples: &[Sample],
    control: &Control,
) -> Result<Calibration, BuildError> {
    let truths: Vec<Vec<u32>> = samples.iter().map(Sample::neighbors).collect();
    let mut points = vec![];
    let mut at_95 = vec![];
    for k in MEASURED_K {
        let mut last = 0.0;
        for probes in ladder(ivf.lists()) {
            control.advance(0)?;
            let measured = measure(ivf, sections, samples, &truths, (k, probes));
            let best = measured.iter().fold(0.0_f32, |best, point| best.max(point.recall));
            points.extend(measured);
            if best >= 0.95 && last < 0.95 {
                at_95.push((k as f32, probes as f32));
            }
            last = best;
            if best >= 0.999 {
                break;
            }
        }
    }
    Ok(Calibration { growth: growth(&at_95), points })
}

/// How probes grew from the smallest `k` to the largest.
fn growth(at_95: &[(f32, f32)]) -> f32 {
    match at_95 {
        [.., (k, probes), (later_k, later_probes)] => {
            ((later_probes / probes).ln() / (later_k / k).ln()).clamp(0.25, 1.0)
        }
        _ => GROWTH,
    }
}

/// 1, 2, 3, 4, 6, 8, 12, and so on, up to all.
fn ladder(lists: usize) -> impl Iterator<Item = usize> {
    let steps = (0..).flat_map(|power| [2_usize << power, 3 << power]);
    std::iter::once(1).chain(steps).take_while(move |step| *step < lists).chain(std::iter::once(lists))
}

/// Recall of one number of probes, with several numbers of candidates.
fn measure(
    ivf: &Ivf,
    sections: &Resident<&[u8]>,
    samples: &[Sample],
    truths: &[Vec<u32>],
    (k, probes): (usize, usize),
) -> Vec<Point> {
    let reranks = [8, 10, 12, 15, 20, 30, 50, 100].map(|tenths| (k * tenths / 8).max(k));
    let most = reranks.iter().copied().max().unwrap_or(k) + 1;
    let found: Vec<(usize, bool, Vec<usize>)> = samples
        .par_iter()
        .zip(truths)
        .map(|(sample, truth)| {
            // One place more, for the row itself.
            let k_own = k + usize::from(sample.own.is_some());
            let effort = Effort::Ivf { probes, rerank: most };
            let request = Request { query: sample.query.vectors(), k: k_own, matching: None, effort };
            let truth = &truth[..k.min(truth.len())];
            let is_row = sample.own.is_some();
            let Ok(Step::Found(found)) = ivf.search(&request, sections) else { return (truth.len(), is_row, vec![]) };
            let rows = found.candidates.iter().map(|candidate| candidate.row).filter(|row| Some(*row) != sample.own);
            let ranks = rows.enumerate().filter(|(_, row)| truth.contains(row)).map(|(rank, _)| rank);
            (truth.len(), is_row, ranks.collect())
        })
        .collect();
    let recall = |rows: bool, rerank: usize| {
        let group = found.iter().filter(|(_, is_row, _)| *is_row == rows);
        let (mut right, mut wanted) = (0, 0);
        for (truth, _, ranks) in group {
            right += ranks.iter().filter(|rank| **rank < rerank).count();
            wanted += truth;
        }
        if wanted == 0 { 1.0 } else { right as f32 / wanted as f32 }
    };
    let point = |rerank: usize| Point {
        k: k as u32,
        probes: probes as u32,
        rerank: rerank as u32,
        recall: recall(true, rerank).min(recall(false, rerank)),
    };
    reranks.into_iter().map(point).collect()
}
