//! A random rotation that costs `d log d`: Hadamard transforms between random flips of signs.

use crate::compiled::compiled_for_each;
use crate::isa::Present;

/// Rounds of flips and transforms. Two make a rotation that is random enough for dimensions that are powers of two, four
/// for those that are covered by two overlapping transforms.
const ROUNDS: usize = 4;

/// Elements of a block inside of which the transform goes by permutations of a register.
const BLOCK: usize = 16;

/// The dimension of a rotation is a multiple of this.
pub const ROTATED_MULTIPLE: usize = BLOCK;

/// An orthogonal transform of `dim` elements, `dim` a multiple of [`ROTATED_MULTIPLE`].
///
/// Each round flips the signs of random elements, transforms the first (in odd rounds the last) `2^i` elements by Walsh and
/// Hadamard, and, where that is not all of them, takes sums and differences of the two halves (a step of Kac's walk). The
/// result has the same bits on every instruction set. Cost: `4 d log2 d` additions.
/// Source: RaBitQ-Library's `FhtKacRotator`; Gao & Long, "RaBitQ", SIGMOD 2024, for what it is used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    dim: usize,
    /// `ROUNDS` times `dim` masks: the sign bit where an element is flipped.
    flips: Vec<u32>,
}

impl Rotation {
    /// Bytes of the signs of a rotation of `dim` elements.
    pub fn sign_bytes(dim: usize) -> usize {
        ROUNDS * dim.div_ceil(8)
    }

    /// `signs`: random bits, [`Rotation::sign_bytes`] of them. `None` if `dim` is 0 or not a multiple of
    /// [`ROTATED_MULTIPLE`], or the number of bytes is wrong.
    pub fn new(dim: usize, signs: &[u8]) -> Option<Rotation> {
        if dim == 0 || !dim.is_multiple_of(ROTATED_MULTIPLE) || signs.len() != Rotation::sign_bytes(dim) {
            return None;
        }
        let flips = (0..ROUNDS * dim).map(|i| u32::from(signs[i / 8] >> (i % 8) & 1) << 31).collect();
        Some(Rotation { dim, flips })
    }

    /// The number of elements.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rotates every vector of `vectors`, which holds whole vectors of `dim` elements; what is left over stays as it is.
    pub fn apply(&self, vectors: &mut [f32]) {
        self.apply_on(Present::chosen(), vectors);
    }

    fn apply_on(&self, isa: Present, vectors: &mut [f32]) {
        for vector in vectors.chunks_exact_mut(self.dim) {
            rotate(isa, &self.flips, vector);
        }
    }
}

compiled_for_each! {
    fn rotate(flips: &[u32], vector: &mut [f32]) = rotate_plain
}

#[inline(always)]
fn rotate_plain(flips: &[u32], vector: &mut [f32]) {
    let dim = vector.len();
    let span = 1_usize << dim.ilog2();
    let scale = 1.0 / (span as f32).sqrt();
    for (round, flips) in flips.chunks_exact(dim).enumerate() {
        for (value, flip) in vector.iter_mut().zip(flips) {
            *value = f32::from_bits(value.to_bits() ^ flip);
        }
        let start = if round % 2 == 0 { 0 } else { dim - span };
        hadamard(&mut vector[start..start + span], scale);
        if span != dim {
            let (left, right) = vector.split_at_mut(dim / 2);
            sums_and_differences(left, right, std::f32::consts::FRAC_1_SQRT_2);
        }
    }
}

/// The Walsh-Hadamard transform in place, times `scale`.
#[inline(always)]
fn hadamard(vector: &mut [f32], scale: f32) {
    let (blocks, _) = vector.as_chunks_mut::<BLOCK>();
    for block in blocks {
        block.iter_mut().for_each(|value| *value *= scale);
        within_block::<1>(block);
        within_block::<2>(block);
        within_block::<4>(block);
        within_block::<8>(block);
    }
    let mut half = BLOCK;
    while half < vector.len() {
        for pair in vector.chunks_exact_mut(2 * half) {
            let (left, right) = pair.split_at_mut(half);
            sums_and_differences(left, right, 1.0);
        }
        half *= 2;
    }
}

/// One step of the transform between elements that are `HALF` apart, as one permutation and one addition.
#[inline(always)]
fn within_block<const HALF: usize>(block: &mut [f32; BLOCK]) {
    let old = *block;
    for (i, value) in block.iter_mut().enumerate() {
        let own = if i & HALF == 0 { old[i] } else { -old[i] };
        *value = old[i ^ HALF] + own;
    }
}

#[inline(always)]
fn sums_and_differences(left: &mut [f32], right: &mut [f32], scale: f32) {
    for (left, right) in left.iter_mut().zip(right) {
        let (a, b) = (*left, *right);
        (*left, *right) = ((a + b) * scale, (a - b) * scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::testing::Random;

    fn rotation(dim: usize, random: &mut Random) -> Rotation {
        let signs: Vec<u8> = (0..Rotation::sign_bytes(dim)).map(|_| random.next() as u8).collect();
        Rotation::new(dim, &signs).unwrap()
    }

    #[test]
    fn lengths_and_angles_stay_and_every_instruction_set_agrees() {
        let mut random = Random::new(1);
        for dim in (16..=272).step_by(16).chain([384, 784, 1024, 1536]) {
            let rotation = rotation(dim, &mut random);
            let vectors: Vec<f32> = (0..2 * dim).map(|_| random.float()).collect();
            let dot = |v: &[f32]| v[..dim].iter().zip(&v[dim..]).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let length = |v: &[f32]| v[..dim].iter().map(|a| f64::from(a * a)).sum::<f64>();
            let mut rotated = vectors.clone();
            rotation.apply_on(Isa::Scalar.present().unwrap(), &mut rotated);
            assert!((dot(&vectors) - dot(&rotated)).abs() < 1e-3 * dim as f64);
            assert!((length(&vectors) / length(&rotated) - 1.0).abs() < 1e-4);
            for isa in Isa::available() {
                let mut other = vectors.clone();
                rotation.apply_on(isa.present().unwrap(), &mut other);
                assert_eq!(rotated, other, "{isa} {dim}");
            }
        }
    }

    #[test]
    fn one_element_is_spread_over_all() {
        let dim = 784;
        let rotation = rotation(dim, &mut Random::new(2));
        for at in [0, 300, 783] {
            let mut vector = vec![0.0; dim];
            vector[at] = 1.0;
            rotation.apply(&mut vector);
            let largest = vector.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            assert!(largest < 8.0 / (dim as f32).sqrt(), "{largest}");
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        assert!(Rotation::new(0, &[]).is_none());
        assert!(Rotation::new(24, &[0; 12]).is_none());
        assert!(Rotation::new(16, &[0; 7]).is_none());
    }
}
