//! Vectors of f32 as codes of a few bits, and the plain sums around it.
//!
//! **The order of summation** of every sum here: element `i` goes to lane `i mod 16` by a fused multiply-add, in ascending order;
//! then halves are added, 8 + 8 first. So codes have the same bits on every instruction set.

use crate::compiled::compiled_for_each;
use crate::isa::Present;

const LANES: usize = 16;

/// Scales that are tried for the codes of a vector, as parts of the one that clips nothing: 8/16 to 16/16.
const SCALES: std::ops::RangeInclusive<u32> = 8..=16;

/// What a vector shares with the values that its code stands for, `v_i = code_i - (2^bits - 1) / 2`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CodeSums {
    /// `Σ vector_i · v_i`.
    pub product: f32,
    /// `Σ v_i²`.
    pub square: f32,
}

/// Writes `vector` as codes of `bits` bits (1 to 9), the grid point with (nearly) the smallest angle to it.
///
/// The top bit of a code is 1 for elements that are not negative. `codes`: one place per element. Cost: 9 passes for more than
/// one bit. A vector of zeros or with elements that are not finite gets codes without meaning, and sums that are zeros or NaN.
/// Source: Gao et al., "Practical and Asymptotically Optimal Quantization of High-Dimensional Vectors" (SIGMOD 2025). We
/// differ: they search the best scale exactly, we try nine.
///
/// # Panics
/// If `codes` has another length than `vector`, or `bits` is not 1 to 9.
pub fn quantize(vector: &[f32], bits: u32, codes: &mut [u16]) -> CodeSums {
    quantize_on(Present::chosen(), vector, bits, codes)
}

fn quantize_on(isa: Present, vector: &[f32], bits: u32, codes: &mut [u16]) -> CodeSums {
    assert!(vector.len() == codes.len() && (1..=9).contains(&bits), "a code of 1 to 9 bits per element");
    write_codes(isa, vector, bits, codes)
}

/// `Σ left · right` in f32. What the longer one has beyond the shorter is not seen.
pub fn dot_f32(left: &[f32], right: &[f32]) -> f32 {
    dot(Present::chosen(), left, right)
}

compiled_for_each! {
    fn write_codes(vector: &[f32], bits: u32, codes: &mut [u16]) -> CodeSums = write_codes_plain
}

compiled_for_each! {
    fn dot(left: &[f32], right: &[f32]) -> f32 = dot_plain
}

#[inline(always)]
fn dot_plain(left: &[f32], right: &[f32]) -> f32 {
    let len = left.len().min(right.len());
    let ((left, left_tail), (right, right_tail)) =
        (left[..len].as_chunks::<LANES>(), right[..len].as_chunks::<LANES>());
    let mut lanes = [0.0_f32; LANES];
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            lanes[lane] = left[lane].mul_add(right[lane], lanes[lane]);
        }
    }
    for ((lane, left), right) in lanes.iter_mut().zip(left_tail).zip(right_tail) {
        *lane = left.mul_add(*right, *lane);
    }
    total(lanes)
}

#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

#[inline(always)]
fn write_codes_plain(vector: &[f32], bits: u32, codes: &mut [u16]) -> CodeSums {
    let half = 1_u16 << (bits - 1);
    let largest = largest_magnitude(vector);
    let levels = f32::from(half);
    let (mut best, mut best_scale, mut best_sums) = (-1.0_f32, 0.0, CodeSums::default());
    let scales = if bits == 1 { 16..=16 } else { SCALES };
    for part in scales {
        let scale = levels / (largest * part as f32 / 16.0);
        let scale = if scale.is_finite() { scale } else { 0.0 };
        let sums = sums_at(vector, scale, levels - 1.0);
        let cosine = sums.product * sums.product / sums.square;
        if cosine > best {
            (best, best_scale, best_sums) = (cosine, scale, sums);
        }
    }
    for (value, code) in vector.iter().zip(codes) {
        let level = (value.abs() * best_scale).min(levels - 1.0) as i32 as u16;
        *code = if *value >= 0.0 { half + level } else { half - 1 - level };
    }
    best_sums
}

#[inline(always)]
fn largest_magnitude(vector: &[f32]) -> f32 {
    let (blocks, tail) = vector.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for block in blocks {
        for lane in 0..LANES {
            let value = block[lane].abs();
            lanes[lane] = if value > lanes[lane] { value } else { lanes[lane] };
        }
    }
    lanes.iter().copied().chain(tail.iter().map(|value| value.abs())).fold(0.0, f32::max)
}

/// The sums if elements are multiplied by `scale`, rounded down, and cut off at `last`.
#[inline(always)]
fn sums_at(vector: &[f32], scale: f32, last: f32) -> CodeSums {
    let (blocks, tail) = vector.as_chunks::<LANES>();
    let (mut product, mut square) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    for block in blocks {
        for lane in 0..LANES {
            let value = block[lane].abs();
            let level = level_of(value * scale, last);
            product[lane] = value.mul_add(level, product[lane]);
            square[lane] = level.mul_add(level, square[lane]);
        }
    }
    for (lane, value) in tail.iter().enumerate() {
        let level = level_of(value.abs() * scale, last);
        product[lane] = value.abs().mul_add(level, product[lane]);
        square[lane] = level.mul_add(level, square[lane]);
    }
    CodeSums { product: total(product), square: total(square) }
}

/// The middle of the level.
#[inline(always)]
fn level_of(scaled: f32, last: f32) -> f32 {
    (scaled.min(last) as i32) as f32 + 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::testing::Random;

    #[test]
    fn codes_and_sums_have_the_same_bits_everywhere() {
        let mut random = Random::new(9);
        for dim in (0..=257).chain([784]) {
            let vector: Vec<f32> = (0..dim).map(|_| random.float()).collect();
            for bits in [1, 2, 4, 5, 8, 9] {
                let mut expected = vec![0; dim];
                let sums = quantize_on(Isa::Scalar.present().unwrap(), &vector, bits, &mut expected);
                let middle = ((1 << bits) - 1) as f32 / 2.0;
                let exact: f32 = expected.iter().zip(&vector).map(|(c, v)| v * (f32::from(*c) - middle)).sum();
                assert!((exact - sums.product).abs() <= 1e-4 * exact.abs() + 1e-4, "{exact} {sums:?}");
                for isa in Isa::available() {
                    let mut codes = vec![0; dim];
                    let present = isa.present().unwrap();
                    assert_eq!(quantize_on(present, &vector, bits, &mut codes), sums, "{isa} {dim} {bits}");
                    assert_eq!(codes, expected, "{isa} {dim} {bits}");
                    assert_eq!(dot(present, &vector, &vector), dot(Isa::Scalar.present().unwrap(), &vector, &vector));
                }
            }
        }
    }

    #[test]
    fn more_bits_are_nearer() {
        let mut random = Random::new(10);
        let vector: Vec<f32> = (0..384).map(|_| (0..6).map(|_| random.float()).sum()).collect();
        let mut last = 0.0;
        for (bits, least) in [(1, 0.75), (2, 0.93), (3, 0.98), (4, 0.994), (5, 0.998), (8, 0.9999)] {
            let mut codes = vec![0; 384];
            let sums = quantize(&vector, bits, &mut codes);
            let cosine = sums.product / (sums.square * dot_f32(&vector, &vector)).sqrt();
            assert!(cosine > last && cosine > least, "{bits} {cosine}");
            last = cosine;
        }
    }

    #[test]
    fn hard_vectors_give_codes_in_range() {
        for vector in [[0.0; 16], [f32::NAN; 16], [f32::INFINITY; 16], [f32::MAX; 16], [1e-45; 16]] {
            for bits in 1..=9 {
                let mut codes = [u16::MAX; 16];
                quantize(&vector, bits, &mut codes);
                assert!(codes.iter().all(|code| *code < 1 << bits), "{vector:?} {bits}");
            }
        }
    }
}
