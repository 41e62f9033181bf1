//! Vectors of f32 about a mean, and as bytes: what a query goes through before it meets codes.
//!
//! Plain loops, compiled for each instruction set: a search spends as much on them as on some hundred codes if they are not vectorised.
//! **The order of summation**: element `i` goes to lane `i mod 16`, in ascending order; then halves are added, 8 + 8 first.

use crate::compiled::compiled_for_each;
use crate::isa::Present;

const LANES: usize = 16;
/// Added to a value of less than 2^22, it leaves the nearest whole number in the low bits, of two equally near ones the even one.
const TO_WHOLE: f32 = 1.5 * (1 << 23) as f32;

/// What [`center`] measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Centered {
    /// The squared length about the mean.
    pub square: f32,
    /// The largest magnitude of an element, times its factor.
    pub largest: f32,
}

/// Subtracts `mean` from `vector`, then multiplies by `factors`, element by element.
///
/// All three of one length; what one has beyond another stays as it is. Elements that are NaN count for nothing in `largest`.
pub fn center(vector: &mut [f32], mean: &[f32], factors: &[f32]) -> Centered {
    center_on(Present::chosen(), vector, mean, factors)
}

/// Writes `vector · factor`, rounded to the nearest whole number from -128 to 127 (half to even), and returns the sum of what it wrote.
///
/// NaN becomes 0. `bytes`: a place per element; what one has beyond the other is left as it is.
pub fn round_to_bytes(vector: &[f32], factor: f32, bytes: &mut [i8]) -> i32 {
    round_on(Present::chosen(), vector, factor, bytes)
}

/// The largest magnitude of an element; NaN counts for nothing.
pub fn largest_magnitude(vector: &[f32]) -> f32 {
    largest_on(Present::chosen(), vector)
}

/// The squared length, of f64 products in sixteen lanes of f64.
pub fn square_f64(vector: &[f32]) -> f64 {
    square_on(Present::chosen(), vector)
}

compiled_for_each! {
    fn square_on(vector: &[f32]) -> f64 = square_plain
}

compiled_for_each! {
    fn center_on(vector: &mut [f32], mean: &[f32], factors: &[f32]) -> Centered = center_plain
}

compiled_for_each! {
    pub(crate) fn round_on(vector: &[f32], factor: f32, bytes: &mut [i8]) -> i32 = round_plain
}

compiled_for_each! {
    /// Whether all elements are whole numbers from -128 to 127.
    pub(crate) fn are_bytes_on(vector: &[f32]) -> bool = are_bytes_plain
}

compiled_for_each! {
    pub(crate) fn largest_on(vector: &[f32]) -> f32 = largest_plain
}

#[inline(always)]
fn larger(largest: f32, value: f32) -> f32 {
    let value = value.abs();
    if value > largest { value } else { largest }
}

#[inline(always)]
fn center_plain(vector: &mut [f32], mean: &[f32], factors: &[f32]) -> Centered {
    let len = vector.len().min(mean.len()).min(factors.len());
    let (vector, vector_tail) = vector[..len].as_chunks_mut::<LANES>();
    let ((mean, mean_tail), (factors, factor_tail)) =
        (mean[..len].as_chunks::<LANES>(), factors[..len].as_chunks::<LANES>());
    let (mut squares, mut largest) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let mut step = |lane: usize, value: &mut f32, mean: f32, factor: f32| {
        let centered = *value - mean;
        squares[lane] += centered * centered;
        *value = centered * factor;
        largest[lane] = larger(largest[lane], *value);
    };
    for ((vector, mean), factors) in vector.iter_mut().zip(mean).zip(factors) {
        for lane in 0..LANES {
            step(lane, &mut vector[lane], mean[lane], factors[lane]);
        }
    }
    for (lane, ((value, mean), factor)) in vector_tail.iter_mut().zip(mean_tail).zip(factor_tail).enumerate() {
        step(lane, value, *mean, *factor);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            squares[lane] += squares[lane + half];
            largest[lane] = larger(largest[lane], largest[lane + half]);
        }
    }
    Centered { square: squares[0], largest: largest[0] }
}

#[inline(always)]
fn square_plain(vector: &[f32]) -> f64 {
    let (blocks, tail) = vector.as_chunks::<LANES>();
    let mut lanes = [0.0_f64; LANES];
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] += f64::from(block[lane]) * f64::from(block[lane]);
        }
    }
    lanes.iter_mut().zip(tail).for_each(|(lane, value)| *lane += f64::from(*value) * f64::from(*value));
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

#[inline(always)]
fn round_plain(vector: &[f32], factor: f32, bytes: &mut [i8]) -> i32 {
    let mut sum = 0_i32;
    for (value, byte) in vector.iter().zip(bytes) {
        let scaled = *value * factor;
        let scaled = if scaled > 127.0 { 127.0 } else { scaled };
        let scaled = if scaled < -128.0 { -128.0 } else { scaled };
        // The low bits of a NaN are 0: it is the only one whose comparisons are false.
        let scaled = if scaled.is_nan() { 0.0 } else { scaled };
        *byte = (scaled + TO_WHOLE).to_bits() as i8;
        sum = sum.wrapping_add(i32::from(*byte));
    }
    sum
}

#[inline(always)]
fn are_bytes_plain(vector: &[f32]) -> bool {
    let is_byte = |value: f32| (-128.0..=127.0).contains(&value) & ((value + TO_WHOLE) - TO_WHOLE == value);
    let (blocks, tail) = vector.as_chunks::<LANES>();
    blocks.iter().all(|block| block.iter().fold(true, |all, value| all & is_byte(*value)))
        && tail.iter().all(|value| is_byte(*value))
}

#[inline(always)]
fn largest_plain(vector: &[f32]) -> f32 {
    let (blocks, tail) = vector.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], block[lane]);
        }
    }
    lanes.iter().chain(tail).fold(0.0, |largest, value| larger(largest, *value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::testing::Random;

    #[test]
    fn every_instruction_set_centers_and_rounds_every_length_alike() {
        let mut random = Random::new(5);
        for dim in (0..=257).chain([784]) {
            let mut floats = || (0..dim).map(|_| random.float() * 3.0).collect::<Vec<f32>>();
            let (vector, mean, factors) = (floats(), floats(), floats());
            let mut first = None;
            for isa in Isa::available().into_iter().filter_map(Isa::present) {
                let (mut centered, mut bytes) = (vector.clone(), vec![7_i8; dim]);
                let measured = center_on(isa, &mut centered, &mean, &factors);
                let sum = round_on(isa, &centered, 50.0, &mut bytes);
                let outcome = (measured, sum, centered, bytes, largest_on(isa, &vector), square_on(isa, &vector));
                assert_eq!(&outcome, first.get_or_insert(outcome.clone()), "{isa:?} {dim}");
            }
            let (measured, sum, centered, bytes, largest, length) = first.unwrap();
            let square: f32 = vector.iter().zip(&mean).map(|(a, b)| (a - b) * (a - b)).sum();
            assert!((measured.square - square).abs() <= 1e-4 * square);
            let exact: f64 = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
            assert!((length - exact).abs() <= 1e-12 * exact);
            assert_eq!(measured.largest, centered.iter().fold(0.0, |a: f32, b| a.max(b.abs())));
            assert_eq!(largest, vector.iter().fold(0.0, |a: f32, b| a.max(b.abs())));
            let expected: Vec<i8> = centered.iter().map(|value| (value * 50.0).round_ties_even() as i8).collect();
            assert_eq!((sum, bytes), (expected.iter().map(|byte| i32::from(*byte)).sum(), expected));
        }
    }

    #[test]
    fn what_is_out_of_range_or_no_number_is_rounded_to_something() {
        for isa in Isa::available().into_iter().filter_map(Isa::present) {
            let mut bytes = [1; 9];
            let hard = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, -0.5, 1.5, -128.4];
            round_on(isa, &hard, 1.0, &mut bytes);
            assert_eq!(bytes, [0, 127, -128, 127, -128, 0, 0, 2, -128]);
        }
    }

    #[test]
    fn bytes_are_whole_numbers_of_a_byte() {
        for isa in Isa::available().into_iter().filter_map(Isa::present) {
            for length in 1..=257 {
                let mut vector: Vec<f32> = (0..length).map(|at| (at % 256) as f32 - 128.0).collect();
                assert!(are_bytes_on(isa, &vector));
                for value in [0.5, 128.0, -129.0, 1e-9, f32::NAN, f32::INFINITY] {
                    let kept = std::mem::replace(&mut vector[length * 7 / 11], value);
                    assert!(!are_bytes_on(isa, &vector), "{value} of {length}");
                    vector[length * 7 / 11] = kept;
                }
            }
        }
    }
}
