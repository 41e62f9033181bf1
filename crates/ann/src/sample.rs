//! Random rows, and what vectors of f32 are compared by.

use kernels::dot_f32;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// `count` numbers below `end`, or all of them if there are fewer: ascending, one at a random place of each equal part.
pub(crate) fn spread_sample(end: usize, count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let count = count.min(end);
    let part = |index: usize| (end as u128 * index as u128 / count as u128) as usize;
    (0..count).map(|index| random.random_range(part(index)..part(index + 1))).collect()
}

/// Half of the squared length of each vector: the bias that makes the largest product the smallest distance.
pub(crate) fn half_squares(vectors: &[f32], dim: usize) -> Vec<f32> {
    vectors.chunks_exact(dim).map(|vector| dot_f32(vector, vector) / 2.0).collect()
}
