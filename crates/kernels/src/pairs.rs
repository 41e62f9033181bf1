//! From products of many vectors to their squared distances, and to the few of them that are small enough.
//!
//! The products themselves are in `integer_gemm.rs`. Plain loops, compiled for each instruction set.

use crate::compiled::compiled_for_each;
use crate::isa::Present;

/// Values that are looked at together.
const BLOCK: usize = 16;

/// Writes `norm + norms[i] - 2·(products[i] - excess)` for each product: squared distances of vectors of whole numbers.
///
/// `products` and `norms`: at least as many as `out` has places; more are not seen.
pub fn squared_distances(norm: f32, norms: &[f32], products: &[i32], excess: i32, out: &mut [f32]) {
    distances(Present::chosen(), norm, norms, products, excess, out);
}

/// Shows the places of `values` that are not above `limit`, ascending, with these values. `visit` returns the limit from then on, no
/// greater than the last; as yet it may be shown some that are above it.
pub fn each_at_most(values: &[f32], mut limit: f32, mut visit: impl FnMut(usize, f32) -> f32) {
    let isa = Present::chosen();
    let mut places = [0_u32; BLOCK * BLOCK];
    for (block, values) in values.chunks(BLOCK * BLOCK).enumerate() {
        let count = at_most(isa, values, limit, &mut places);
        for place in &places[..count] {
            limit = visit(block * BLOCK * BLOCK + *place as usize, values[*place as usize]);
        }
    }
}

compiled_for_each! {
    fn distances(norm: f32, norms: &[f32], products: &[i32], excess: i32, out: &mut [f32]) = distances_plain
}

compiled_for_each! {
    fn at_most(values: &[f32], limit: f32, places: &mut [u32; BLOCK * BLOCK]) -> usize = at_most_plain
}

#[inline(always)]
fn distances_plain(norm: f32, norms: &[f32], products: &[i32], excess: i32, out: &mut [f32]) {
    for ((out, other), product) in out.iter_mut().zip(norms).zip(products) {
        *out = norm + other - 2.0 * product.wrapping_sub(excess) as f32;
    }
}

/// Most blocks have no such value, and are passed over together.
#[inline(always)]
fn at_most_plain(values: &[f32], limit: f32, places: &mut [u32; BLOCK * BLOCK]) -> usize {
    let mut count = 0;
    for (block, values) in values.chunks(BLOCK).take(BLOCK).enumerate() {
        if !values.iter().fold(false, |any, value| any | (*value <= limit)) {
            continue;
        }
        for (lane, value) in values.iter().enumerate() {
            // Never more than there are values before this one.
            places[count.min(BLOCK * BLOCK - 1)] = (block * BLOCK + lane) as u32;
            count += usize::from(*value <= limit);
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::testing::Random;

    #[test]
    fn every_instruction_set_turns_every_number_of_products_into_distances() {
        let mut random = Random::new(8);
        for count in 0..=257 {
            let products: Vec<i32> = (0..count).map(|_| random.below(1 << 24) as i32 - (1 << 23)).collect();
            let norms: Vec<f32> = (0..count).map(|_| random.below(1 << 20) as f32).collect();
            for isa in Isa::available().into_iter().filter_map(Isa::present) {
                let mut out = vec![f32::NAN; count];
                distances(isa, 77.0, &norms, &products, 5, &mut out);
                for ((out, norm), product) in out.iter().zip(&norms).zip(&products) {
                    assert_eq!(*out, 77.0 + norm - 2.0 * (product - 5) as f32, "{isa:?} {count}");
                }
            }
        }
    }

    #[test]
    fn exactly_the_values_up_to_the_limit_are_shown() {
        let mut random = Random::new(9);
        for count in (0..=300).chain([1024]) {
            let values: Vec<f32> =
                (0..count).map(|_| [random.float(), f32::NAN][usize::from(random.below(9) == 0)]).collect();
            for limit in [f32::INFINITY, 0.0, -0.9, f32::NEG_INFINITY] {
                let expected: Vec<usize> = (0..count).filter(|at| values[*at] <= limit).collect();
                let mut shown = vec![];
                each_at_most(&values, limit, |at, value| {
                    assert_eq!(value, values[at]);
                    shown.push(at);
                    limit
                });
                assert_eq!(shown, expected);
                for isa in Isa::available().into_iter().filter_map(Isa::present) {
                    let (some, mut places) = (&values[..count.min(256)], [0; 256]);
                    let found = at_most(isa, some, limit, &mut places);
                    let first: Vec<usize> = expected.iter().copied().filter(|at| *at < 256).collect();
                    assert_eq!(places[..found].iter().map(|at| *at as usize).collect::<Vec<_>>(), first, "{isa:?}");
                }
            }
        }
    }
}
