//! Queries unlike the rows: of another language, of another model, noise.
//!
//! The codes keep the directions in which the rows vary. A query of another kind has more of its length outside of them, where nothing is
//! known of its distances, and its distances to all rows are more alike: more candidates must be compared, at other stops. How many is
//! measured at build on queries that are made unlike the rows by noise; a search takes the measurement whose queries have about as
//! much outside of the codes as its own.

use kernels::{Vectors, dot_f32 as dot};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::calibrate::Asked;
use super::format::{Coding, EffortStep, Far, Head};
use super::space::{Map, Projected};

/// Queries of each kind.
pub(super) const FAR_ASKED: usize = 32;

/// The kinds: whether noise is added to a row or is all there is, and its length, in lengths of the row about the mean (by cosine and
/// inner product: about the origin).
const KINDS: [(bool, f32); 4] = [(true, 0.5), (true, 1.0), (false, 1.0), (false, 4.0)];
/// Kinds where the length of a query does not matter. By L2 it does: from far away rows are near by their direction alone.
const KINDS_OF_DIRECTIONS: usize = 3;

/// Logarithm of how much the kinds may differ in what is beside their codes that a query may be of one or the other.
const ALIKE: f32 = 0.1;

/// Stops and beams that are tried.
pub(super) const LADDER: [(f32, usize); 10] = [
    (1.005, 48),
    (1.01, 72),
    (1.02, 108),
    (1.03, 160),
    (1.045, 240),
    (1.06, 360),
    (1.08, 540),
    (1.11, 800),
    (1.15, 1200),
    (1.2, 1800),
];

/// [`FAR_ASKED`] queries of each kind, made of others that are rows; none where the codes lose nothing, and where they would be too long
/// for a float to hold.
pub(super) fn draw_queries(head: &Head, asked: &[Asked], seed: u64) -> Vec<Asked> {
    let Coding::Scalar(_, space) = &head.coding else { return vec![] };
    let Map::Affine(affine) = &space.map else { return vec![] };
    let rows: Vec<&Asked> = asked.iter().filter(|asked| asked.own.is_some()).take(FAR_ASKED).collect();
    if head.beside <= 0.0 || rows.len() < FAR_ASKED {
        return vec![];
    }
    let is_about_mean = head.metric == kernels::Metric::L2;
    let center: Vec<f32> = if is_about_mean { affine.mean.clone() } else { vec![0.0; head.dim] };
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x6661_7220);
    let mut made = vec![];
    let kinds = if is_about_mean { &KINDS[..] } else { &KINDS[..KINDS_OF_DIRECTIONS] };
    for (keeps_row, length) in kinds {
        for row in &rows {
            let offset: Vec<f32> = row.vector.iter().zip(&center).map(|(value, center)| value - center).collect();
            let deviation = length * (dot(&offset, &offset) / head.dim as f32).sqrt();
            let kept = if *keeps_row { 1.0 } else { 0.0 };
            let values = offset.iter().zip(&center);
            let vector =
                values.map(|(value, center)| center + kept * value + deviation * normal(&mut random)).collect();
            // What is a row and noise has that row near, as no query from outside has.
            let (own, vertex) = if *keeps_row { (row.own, row.vertex) } else { (None, None) };
            made.push(Asked { vector, bits: vec![], own, vertex, truth: vec![] });
        }
    }
    let is_in_range = made.iter().all(|asked| dot(&asked.vector, &asked.vector).is_finite());
    if is_in_range { made } else { vec![] }
}

/// A sum of twelve uniform numbers less six: as good as normal for noise of many dimensions.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0
}

/// Mean squared length outside of the codes.
pub(super) fn beside(head: &Head, asked: &[Asked]) -> f32 {
    let Coding::Scalar(_, space) = &head.coding else { return 0.0 };
    let mut projected = Projected::default();
    let beside = asked.iter().map(|asked| {
        let is_defined = space.project_query(Vectors::F32(&asked.vector), &mut projected).is_some();
        if is_defined { projected.beside } else { 0.0 }
    });
    beside.sum::<f32>() / asked.len().max(1) as f32
}

impl Head {
    /// The kinds of queries that one with so much beside its code may be of; none if it is like the rows.
    pub(super) fn far(&self, beside: f32) -> &[Far] {
        let unlikeness = |kind: f32| (beside.max(f32::MIN_POSITIVE) / kind.max(f32::MIN_POSITIVE)).ln().abs();
        let least = self.far.iter().map(|far| unlikeness(far.beside)).fold(f32::INFINITY, f32::min);
        if least >= unlikeness(self.beside) {
            return &[];
        }
        let is_near = |far: &Far| unlikeness(far.beside) <= least + ALIKE;
        let first = self.far.iter().position(is_near).unwrap_or(0);
        let count = self.far.iter().skip(first).take_while(|far| is_near(far)).count();
        self.far.get(first..first + count).unwrap_or_default()
    }
}

impl Far {
    /// The effort that finds as many of the nearest as `usual` does for queries like the rows, or else the most that was measured.
    pub(super) fn like(&self, usual: &EffortStep) -> EffortStep {
        EffortStep::reaching(&self.efforts, usual.recall).or(self.efforts.last().copied()).unwrap_or(*usual)
    }
}
