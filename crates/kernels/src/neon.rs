//! AArch64 with NEON: eight registers of two f64 are the sixteen virtual lanes.
//!
//! Only loads and arithmetic live here; the loops are in `scan.rs`.

use std::arch::aarch64::*;

use half::f16;

use crate::lanes::{Arithmetic, BitLanes, ByteLanes, Feed, Lanes, Load, LoadBytes, Register};
use crate::metric::SumKind;
use crate::rows::{BYTES, FloatBlock, IntegerBlock, LANES, RowBlock, Sums};
use crate::scan;
use crate::tile;
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

/// `scan::widen` with NEON.
#[target_feature(enable = "neon")]
pub(crate) fn widen<T: Element>(vector: &[T], blocks: &mut [FloatBlock])
where
    NeonFloats: Load<T>,
{
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::widen::<NeonFloats, T>(vector, blocks) }
}

/// `tile::tile_sums` with NEON.
#[target_feature(enable = "neon")]
pub(crate) fn tile_sums(
    kind: SumKind,
    queries: [&[FloatBlock]; tile::QUERIES],
    rows: [&[FloatBlock]; tile::ROWS],
) -> [[f64; tile::ROWS]; tile::QUERIES] {
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { tile::tile_sums::<NeonFloats>(kind, queries, rows) }
}

/// Eight registers of two.
pub(crate) type NeonFloats = Lanes<float64x2_t, 8>;

impl Feed for float64x2_t {
    const IN_ORDER: bool = false;
}

// Every method below relies on the contract of its trait: the caller vouches for NEON, and for pointers.
impl Arithmetic for float64x2_t {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { vdupq_n_f64(0.0) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { vaddq_f64(self, other) }
    }

    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { vsubq_f64(self, other) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { vfmaq_f64(self, a, b) }
    }

    #[inline(always)]
    unsafe fn absolute(self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { vabsq_f64(self) }
    }
}

impl Register for float64x2_t {
    const WIDTH: usize = 2;

    #[inline(always)]
    unsafe fn load(values: *const f64) -> Self {
        // SAFETY: the contract of `Register`.
        unsafe { vld1q_f64(values) }
    }

    #[inline(always)]
    unsafe fn store(self, values: *mut f64) {
        // SAFETY: the contract of `Register`.
        unsafe { vst1q_f64(values, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f64 {
        // SAFETY: the contract of `Register`.
        unsafe { vaddvq_f64(self) }
    }
}

impl Load<f32> for NeonFloats {
    #[inline(always)]
    unsafe fn load(block: &[f32; LANES]) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        let mut lanes = unsafe { NeonFloats::zero() };
        for (pair, four) in lanes.0.as_chunks_mut::<2>().0.iter_mut().zip(block.as_chunks::<4>().0) {
            // SAFETY: the contract of `Arithmetic`; 4 values are read from an array of 4.
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
        // SAFETY: the contract of `Arithmetic`.
        unsafe { <NeonFloats as Load<f32>>::load(&wide) }
    }
}

impl Load<i8> for NeonFloats {
    #[inline(always)]
    unsafe fn load(block: &[i8; LANES]) -> Self {
        let wide = block.map(f32::from);
        // SAFETY: the contract of `Arithmetic`.
        unsafe { <NeonFloats as Load<f32>>::load(&wide) }
    }
}

impl Load<u8> for NeonFloats {
    #[inline(always)]
    unsafe fn load(block: &[u8; LANES]) -> Self {
        let wide = block.map(f32::from);
        // SAFETY: the contract of `Arithmetic`.
        unsafe { <NeonFloats as Load<f32>>::load(&wide) }
    }
}

/// Four accumulators of four i32.
#[derive(Clone, Copy)]
pub(crate) struct NeonBytes([int32x4_t; 4]);

impl Feed for NeonBytes {
    const IN_ORDER: bool = false;
}

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

impl Feed for NeonBits {
    const IN_ORDER: bool = false;
}

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
