//! Questions about one vector, or about each element: norm, unit vector, signs as bits, the first value not finite.
//!
//! These run once per row that is written or selected, not over whole columns per query, and are plain Rust.

use half::f16;

use crate::dispatch::{self, FloatKernel};
use crate::isa::Present;
use crate::query::square_sum;
use crate::rows::FloatBlock;
use crate::vectors::Vectors;

/// The Euclidean length of one vector, in the order of summation of the distances. For bits, the square root of the
/// number of ones.
pub fn norm(vector: Vectors<'_>) -> f64 {
    let mut blocks = Vec::new();
    match vector {
        Vectors::F32(values) => norm_of(values, &mut blocks),
        Vectors::F16(values) => norm_of(values, &mut blocks),
        Vectors::I8(values) => norm_of(values, &mut blocks),
        Vectors::U8(values) => norm_of(values, &mut blocks),
        Vectors::Bits(values) => values.iter().map(|byte| f64::from(byte.count_ones())).sum::<f64>().sqrt(),
    }
}

fn norm_of<T: FloatKernel>(values: &[T], blocks: &mut Vec<FloatBlock>) -> f64 {
    dispatch::widen(Present::chosen(), values, blocks);
    square_sum(blocks).sqrt()
}

/// The vector divided by its length, in f64, rounded to f32 once. A zero vector stays what it is.
pub fn normalize_f32(vector: &[f32]) -> Vec<f32> {
    let length = norm(Vectors::F32(vector));
    if length == 0.0 {
        return vector.to_vec();
    }
    vector.iter().map(|value| (f64::from(*value) / length) as f32).collect()
}

/// As [`normalize_f32`], rounded to f16 once.
pub fn normalize_f16(vector: &[f16]) -> Vec<f16> {
    let length = norm(Vectors::F16(vector));
    if length == 0.0 {
        return vector.to_vec();
    }
    vector.iter().map(|value| f16::from_f64(value.to_f64() / length)).collect()
}

/// One bit per element of one vector: 1 where the element is above zero.
///
/// Element 0 is the most significant bit of byte 0, as bit strings are written and as pgvector has it. The last byte is
/// filled up with zeros. A vector of bits is returned as it is; NaN gives 0.
pub fn binary_quantize(vector: Vectors<'_>) -> Vec<u8> {
    match vector {
        Vectors::F32(values) => signs(values, |value| value > 0.0),
        Vectors::F16(values) => signs(values, |value| value > f16::ZERO),
        Vectors::I8(values) => signs(values, |value| value > 0),
        Vectors::U8(values) => signs(values, |value| value > 0),
        Vectors::Bits(bytes) => bytes.to_vec(),
    }
}

fn signs<T: Copy>(values: &[T], is_positive: impl Fn(T) -> bool) -> Vec<u8> {
    let byte = |chunk: &[T]| {
        chunk.iter().enumerate().fold(0_u8, |byte, (i, value)| byte | u8::from(is_positive(*value)) << (7 - i))
    };
    values.chunks(8).map(byte).collect()
}

/// The index of the first element that is NaN or infinite, counted over all rows; `None` if there is none. Integers
/// and bits are always finite. Reads at about the speed of memory.
pub fn first_non_finite(vectors: Vectors<'_>) -> Option<usize> {
    match vectors {
        Vectors::F32(values) => first_with(values, |value| value.to_bits() & 0x7f80_0000 == 0x7f80_0000),
        Vectors::F16(values) => first_with(values, |value| value.to_bits() & 0x7c00 == 0x7c00),
        Vectors::I8(_) | Vectors::U8(_) | Vectors::Bits(_) => None,
    }
}

/// The first value that passes the test. Blocks are tested as a whole, without a branch, so that the compiler can use
/// vector instructions; only a block with a hit is searched.
fn first_with<T: Copy>(values: &[T], test: impl Fn(T) -> bool) -> Option<usize> {
    const BLOCK: usize = 256;
    let mut start = 0;
    for block in values.chunks(BLOCK) {
        if block.iter().fold(false, |any, value| any | test(*value)) {
            return block.iter().position(|value| test(*value)).map(|index| start + index);
        }
        start += block.len();
    }
    None
}

#[cfg(test)]
mod tests;
