//! Seeded draws.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `count` different numbers below `end` (all of them if there are fewer), in random order.
pub(super) fn draw(seed: u64, end: usize, count: usize) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut numbers: Vec<u32> = (0..end as u32).collect();
    let count = count.min(end);
    for at in 0..count {
        let other = random.random_range(at..end);
        numbers.swap(at, other);
    }
    numbers[..count].iter().map(|number| *number as usize).collect()
}
