//! AArch64 with NEON: eight registers of two f64 are the sixteen virtual lanes.
//!
//! Only loads and arithmetic live here; the loops are in `scan.rs`.

use std::arch::aarch64::*;

use half::f16;

use crate::metric::SumKind;
use crate::rows::{BYTES, FloatBlock, IntegerBlock, LANES, RowBlock, Sums};
use crate::scan::{self, BitLanes, ByteLanes, FloatLanes, Load, LoadBytes};
use crate::vectors::{ByteElement, Element};

/// `scan::float_sums` with NEON.
#[target_feature(enable = "neon")]
pub(crate) fn float_sums<T: Element>(kind: SumKind, query: &[FloatBlock], rows: &RowBlock<'_, T>, sums: &mut Sums<'_>)
where
    NeonFloats: Load<T>,
{
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::float_sums::<NeonFloats, T>(kind, query, rows, sums) }
}

/// `scan::byte_sums` with NEON.
#[target_feature(enable = "neon")]
pub(crate) fn byte_sums<T: ByteElement>(
    kind: SumKind,
    query: &[IntegerBlock],
    rows: &RowBlock<'_, T>,
    sums: &mut Sums<'_>,
) where
    NeonBytes: LoadBytes<T>,
{
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::byte_sums::<NeonBytes, T>(kind, query, rows, sums) }
}

/// `scan::bit_sums` with NEON.
#[target_feature(enable = "neon")]
pub(crate) fn bit_sums(kind: SumKind, query: &[u8], rows: &RowBlock<'_, u8>, sums: &mut Sums<'_>) {
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::bit_sums::<NeonBits>(kind, query, rows, sums) }
}

/// Lane `2·j + i` is element `i` of register `j`.
#[derive(Clone, Copy)]
pub(crate) struct NeonFloats([float64x2_t; 8]);

// Every method below relies on the contract of its trait: the caller vouches for NEON. Pointers come from arrays of the
// length that is read.
impl FloatLanes for NeonFloats {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `FloatLanes`.
        unsafe { NeonFloats([vdupq_n_f64(0.0); 8]) }
    }

    #[inline(always)]
    unsafe fn load_f64(block: &[f64; LANES]) -> Self {
        let mut lanes = NeonFloats::default();
        for (lane, pair) in lanes.0.iter_mut().zip(block.as_chunks::<2>().0) {
            // SAFETY: the contract of `FloatLanes`; 2 values are read from an array of 2.
            *lane = unsafe { vld1q_f64(pair.as_ptr()) };
        }
        lanes
    }

    #[inline(always)]
    unsafe fn minus(mut self, other: Self) -> Self {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            // SAFETY: the contract of `FloatLanes`.
            *lane = unsafe { vsubq_f64(*lane, other) };
        }
        self
    }

    #[inline(always)]
    unsafe fn plus_product(mut self, a: Self, b: Self) -> Self {
        for (lane, (a, b)) in self.0.iter_mut().zip(a.0.into_iter().zip(b.0)) {
            // SAFETY: the contract of `FloatLanes`.
            *lane = unsafe { vfmaq_f64(*lane, a, b) };
        }
        self
    }

    #[inline(always)]
    unsafe fn plus_absolute(mut self, a: Self) -> Self {
        for (lane, a) in self.0.iter_mut().zip(a.0) {
            // SAFETY: the contract of `FloatLanes`.
            *lane = unsafe { vaddq_f64(*lane, vabsq_f64(a)) };
        }
        self
    }

    #[inline(always)]
    unsafe fn total(self) -> f64 {
        let [a, b, c, d, e, f, g, h] = self.0;
        // SAFETY: the contract of `FloatLanes`.
        unsafe {
            let (a, b) = (vaddq_f64(a, e), vaddq_f64(b, f));
            let (c, d) = (vaddq_f64(c, g), vaddq_f64(d, h));
            vaddvq_f64(vaddq_f64(vaddq_f64(a, c), vaddq_f64(b, d)))
        }
    }
}

impl Default for NeonFloats {
    #[inline(always)]
    fn default() -> Self {
        // SAFETY: NEON is part of every AArch64 target that Rust has a standard library for.
        unsafe { NeonFloats::zero() }
    }
}

impl Load<f32> for NeonFloats {
    #[inline(always)]
    unsafe fn load(block: &[f32; LANES]) -> Self {
        let mut lanes = NeonFloats::default();
        for (pair, four) in lanes.0.as_chunks_mut::<2>().0.iter_mut().zip(block.as_chunks::<4>().0) {
            // SAFETY: the contract of `FloatLanes`; 4 values are read from an array of 4.
            unsafe {
                let four = vld1q_f32(four.as_ptr());
                *pair = [vcvt_f64_f32(vget_low_f32(four)), vcvt_high_f64_f32(four)];
            }
        }
        lanes
    }
}

impl Load<f16> for NeonFloats {
    /// By way of `half`, which uses the processor's own conversion; stable Rust has no f16 vectors here.
    #[inline(always)]
    unsafe fn load(block: &[f16; LANES]) -> Self {
        let wide = block.map(f32::from);
        // SAFETY: the contract of `FloatLanes`.
        unsafe { <NeonFloats as Load<f32>>::load(&wide) }
    }
}

impl Load<i8> for NeonFloats {
    #[inline(always)]
    unsafe fn load(block: &[i8; LANES]) -> Self {
        let wide = block.map(f32::from);
        // SAFETY: the contract of `FloatLanes`.
        unsafe { <NeonFloats as Load<f32>>::load(&wide) }
    }
}

impl Load<u8> for NeonFloats {
    #[inline(always)]
    unsafe fn load(block: &[u8; LANES]) -> Self {
        let wide = block.map(f32::from);
        // SAFETY: the contract of `FloatLanes`.
        unsafe { <NeonFloats as Load<f32>>::load(&wide) }
    }
}

/// Four accumulators of four i32.
#[derive(Clone, Copy)]
pub(crate) struct NeonBytes([int32x4_t; 4]);

// As above: the caller vouches for NEON, pointers come from arrays of the length that is read.
impl ByteLanes for NeonBytes {
    type Wide = [int16x8_t; 8];

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `ByteLanes`.
        unsafe { NeonBytes([vdupq_n_s32(0); 4]) }
    }

    #[inline(always)]
    unsafe fn load_query(block: &[i16; BYTES]) -> Self::Wide {
        // SAFETY: the contract of `ByteLanes`.
        let mut wide = unsafe { [vdupq_n_s16(0); 8] };
        for (wide, eight) in wide.iter_mut().zip(block.as_chunks::<8>().0) {
            // SAFETY: the contract of `ByteLanes`; 8 values are read from an array of 8.
            *wide = unsafe { vld1q_s16(eight.as_ptr()) };
        }
        wide
    }

    #[inline(always)]
    unsafe fn minus(mut a: Self::Wide, b: Self::Wide) -> Self::Wide {
        for (a, b) in a.iter_mut().zip(b) {
            // SAFETY: the contract of `ByteLanes`.
            *a = unsafe { vsubq_s16(*a, b) };
        }
        a
    }

    #[inline(always)]
    unsafe fn absolute(mut a: Self::Wide) -> Self::Wide {
        for a in &mut a {
            // SAFETY: the contract of `ByteLanes`.
            *a = unsafe { vabsq_s16(*a) };
        }
        a
    }

    #[inline(always)]
    unsafe fn plus_products(mut self, a: Self::Wide, b: Self::Wide) -> Self {
        for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
            let sum = &mut self.0[i % 4];
            // SAFETY: the contract of `ByteLanes`.
            *sum = unsafe { vmlal_high_s16(vmlal_s16(*sum, vget_low_s16(a), vget_low_s16(b)), a, b) };
        }
        self
    }

    #[inline(always)]
    unsafe fn plus_elements(mut self, a: Self::Wide) -> Self {
        for (i, a) in a.into_iter().enumerate() {
            let sum = &mut self.0[i % 4];
            // SAFETY: the contract of `ByteLanes`.
            *sum = unsafe { vpadalq_s16(*sum, a) };
        }
        self
    }

    #[inline(always)]
    unsafe fn total(self) -> i32 {
        let [a, b, c, d] = self.0;
        // SAFETY: the contract of `ByteLanes`.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d))) }
    }
}

impl LoadBytes<i8> for NeonBytes {
    #[inline(always)]
    unsafe fn load_row(block: &[i8; BYTES]) -> Self::Wide {
        // SAFETY: the contract of `ByteLanes`.
        let mut wide = unsafe { [vdupq_n_s16(0); 8] };
        for (pair, sixteen) in wide.as_chunks_mut::<2>().0.iter_mut().zip(block.as_chunks::<16>().0) {
            // SAFETY: the contract of `ByteLanes`; 16 bytes are read from an array of 16.
            unsafe {
                let sixteen = vld1q_s8(sixteen.as_ptr());
                *pair = [vmovl_s8(vget_low_s8(sixteen)), vmovl_high_s8(sixteen)];
            }
        }
        wide
    }
}

impl LoadBytes<u8> for NeonBytes {
    #[inline(always)]
    unsafe fn load_row(block: &[u8; BYTES]) -> Self::Wide {
        // SAFETY: the contract of `ByteLanes`.
        let mut wide = unsafe { [vdupq_n_s16(0); 8] };
        for (pair, sixteen) in wide.as_chunks_mut::<2>().0.iter_mut().zip(block.as_chunks::<16>().0) {
            // SAFETY: the contract of `ByteLanes`; 16 bytes are read from an array of 16.
            unsafe {
                let sixteen = vld1q_u8(sixteen.as_ptr());
                let (low, high) = (vmovl_u8(vget_low_u8(sixteen)), vmovl_high_u8(sixteen));
                *pair = [vreinterpretq_s16_u16(low), vreinterpretq_s16_u16(high)];
            }
        }
        wide
    }
}

/// Sixteen counts of bytes per CNT, added pairwise into wider lanes.
pub(crate) struct NeonBits;

impl BitLanes for NeonBits {
    #[inline(always)]
    unsafe fn different(a: &[u8], b: &[u8]) -> i64 {
        let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
        let tail: u32 = a_tail.iter().zip(b_tail).map(|(a, b)| (a ^ b).count_ones()).sum();
        // SAFETY: the contract of `BitLanes`; 16 bytes are read from arrays of 16.
        let ones = unsafe {
            let mut ones = vdupq_n_u64(0);
            for (a, b) in a.iter().zip(b) {
                ones = plus_ones(ones, veorq_u8(vld1q_u8(a.as_ptr()), vld1q_u8(b.as_ptr())));
            }
            vaddvq_u64(ones)
        };
        ones as i64 + i64::from(tail)
    }

    #[inline(always)]
    unsafe fn common_and_right(a: &[u8], b: &[u8]) -> (i64, i64) {
        let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
        let common_tail: u32 = a_tail.iter().zip(b_tail).map(|(a, b)| (a & b).count_ones()).sum();
        let right_tail: u32 = b_tail.iter().map(|b| b.count_ones()).sum();
        // SAFETY: the contract of `BitLanes`; 16 bytes are read from arrays of 16.
        let (common, right) = unsafe {
            let (mut common, mut right) = (vdupq_n_u64(0), vdupq_n_u64(0));
            for (a, b) in a.iter().zip(b) {
                let (a, b) = (vld1q_u8(a.as_ptr()), vld1q_u8(b.as_ptr()));
                common = plus_ones(common, vandq_u8(a, b));
                right = plus_ones(right, b);
            }
            (vaddvq_u64(common), vaddvq_u64(right))
        };
        (common as i64 + i64::from(common_tail), right as i64 + i64::from(right_tail))
    }
}

/// # Safety
/// The contract of `BitLanes`.
#[inline(always)]
unsafe fn plus_ones(ones: uint64x2_t, bytes: uint8x16_t) -> uint64x2_t {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { vpadalq_u32(ones, vpaddlq_u16(vpaddlq_u8(vcntq_u8(bytes)))) }
}
