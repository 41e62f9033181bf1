//! AVX2 with FMA, F16C and POPCNT: four registers of four f64 are the sixteen virtual lanes.
//!
//! Only loads and arithmetic live here; the loops are in `scan.rs`.

use std::arch::x86_64::*;

use half::f16;

use crate::lanes::{Arithmetic, BitLanes, ByteLanes, Feed, Lanes, Load, LoadBytes, Register};
use crate::metric::SumKind;
use crate::rows::{BYTES, FloatBlock, IntegerBlock, LANES, RowBlock, Sums};
use crate::scan;
use crate::tile;
use crate::vectors::{ByteElement, Element};

/// `scan::float_sums` with AVX2.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) fn float_sums<T: Element>(kind: SumKind, query: &[FloatBlock], rows: &RowBlock<'_, T>, sums: &mut Sums<'_>)
where
    Avx2Floats: Load<T>,
{
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::float_sums::<Avx2Floats, T>(kind, query, rows, sums) }
}

/// `scan::byte_sums` with AVX2.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) fn byte_sums<T: ByteElement>(
    kind: SumKind,
    query: &[IntegerBlock],
    rows: &RowBlock<'_, T>,
    sums: &mut Sums<'_>,
) where
    Avx2Bytes: LoadBytes<T>,
{
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::byte_sums::<Avx2Bytes, T>(kind, query, rows, sums) }
}

/// `scan::bit_sums` with POPCNT.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) fn bit_sums(kind: SumKind, query: &[u8], rows: &RowBlock<'_, u8>, sums: &mut Sums<'_>) {
    // Common lengths get loops without a counter; `Words<0>` is for all others.
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe {
        match query.len() {
            48 => scan::bit_sums::<Words<6>>(kind, query, rows, sums),
            64 => scan::bit_sums::<Words<8>>(kind, query, rows, sums),
            96 => scan::bit_sums::<Words<12>>(kind, query, rows, sums),
            128 => scan::bit_sums::<Words<16>>(kind, query, rows, sums),
            192 => scan::bit_sums::<Words<24>>(kind, query, rows, sums),
            _ => scan::bit_sums::<Words<0>>(kind, query, rows, sums),
        }
    }
}

/// `scan::widen` with AVX2.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) fn widen<T: Element>(vector: &[T], blocks: &mut [FloatBlock])
where
    Avx2Floats: Load<T>,
{
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::widen::<Avx2Floats, T>(vector, blocks) }
}

/// `tile::tile_sums` with AVX2.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) fn tile_sums(
    kind: SumKind,
    queries: [&[FloatBlock]; tile::QUERIES],
    rows: [&[FloatBlock]; tile::ROWS],
) -> [[f64; tile::ROWS]; tile::QUERIES] {
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { tile::tile_sums::<Avx2Floats>(kind, queries, rows) }
}

/// Four registers of four.
pub(crate) type Avx2Floats = Lanes<__m256d, 4>;

impl Feed for __m256d {
    const IN_ORDER: bool = false;
}

// Every method below relies on the contract of its trait: the caller vouches for AVX2, FMA and F16C, and for pointers.
impl Arithmetic for __m256d {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm256_setzero_pd() }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm256_add_pd(self, other) }
    }

    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm256_sub_pd(self, other) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm256_fmadd_pd(a, b, self) }
    }

    #[inline(always)]
    unsafe fn absolute(self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm256_andnot_pd(_mm256_set1_pd(-0.0), self) }
    }
}

impl Register for __m256d {
    const WIDTH: usize = 4;

    #[inline(always)]
    unsafe fn load(values: *const f64) -> Self {
        // SAFETY: the contract of `Register`.
        unsafe { _mm256_loadu_pd(values) }
    }

    #[inline(always)]
    unsafe fn store(self, values: *mut f64) {
        // SAFETY: the contract of `Register`.
        unsafe { _mm256_storeu_pd(values, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f64 {
        // SAFETY: the contract of `Register`.
        unsafe {
            let two = _mm_add_pd(_mm256_castpd256_pd128(self), _mm256_extractf128_pd::<1>(self));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
    }
}

// Four elements at a time: a conversion that loads from memory runs twice per cycle on Zen 3, one that must first move
// half of a register across its lanes runs once.
impl Load<f32> for Avx2Floats {
    #[inline(always)]
    unsafe fn load(block: &[f32; LANES]) -> Self {
        let values = block.as_ptr();
        // SAFETY: the contract of `Arithmetic`; 4 · 4 values are read from an array of 16.
        unsafe {
            Lanes([
                _mm256_cvtps_pd(_mm_loadu_ps(values)),
                _mm256_cvtps_pd(_mm_loadu_ps(values.add(4))),
                _mm256_cvtps_pd(_mm_loadu_ps(values.add(8))),
                _mm256_cvtps_pd(_mm_loadu_ps(values.add(12))),
            ])
        }
    }
}

impl Load<f16> for Avx2Floats {
    #[inline(always)]
    unsafe fn load(block: &[f16; LANES]) -> Self {
        let values = block.as_ptr();
        // SAFETY: the contract of `Arithmetic`; 4 · 8 bytes are read from an array of 32 bytes.
        unsafe {
            Lanes([
                _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(values.cast()))),
                _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(values.add(4).cast()))),
                _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(values.add(8).cast()))),
                _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(values.add(12).cast()))),
            ])
        }
    }
}

impl Load<i8> for Avx2Floats {
    #[inline(always)]
    unsafe fn load(block: &[i8; LANES]) -> Self {
        let values = block.as_ptr();
        // SAFETY: the contract of `Arithmetic`; 4 · 4 bytes are read from an array of 16 bytes.
        unsafe {
            Lanes([
                _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_loadu_si32(values.cast()))),
                _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_loadu_si32(values.add(4).cast()))),
                _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_loadu_si32(values.add(8).cast()))),
                _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_loadu_si32(values.add(12).cast()))),
            ])
        }
    }
}

impl Load<u8> for Avx2Floats {
    #[inline(always)]
    unsafe fn load(block: &[u8; LANES]) -> Self {
        let values = block.as_ptr();
        // SAFETY: the contract of `Arithmetic`; 4 · 4 bytes are read from an array of 16 bytes.
        unsafe {
            Lanes([
                _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_loadu_si32(values.cast()))),
                _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_loadu_si32(values.add(4).cast()))),
                _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_loadu_si32(values.add(8).cast()))),
                _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_loadu_si32(values.add(12).cast()))),
            ])
        }
    }
}

/// Two accumulators of eight i32, so that a block's four additions make two short chains.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Bytes([__m256i; 2]);

impl Feed for Avx2Bytes {
    const IN_ORDER: bool = false;
}

// As above: the caller vouches for AVX2, pointers come from arrays of the length that is read.
impl ByteLanes for Avx2Bytes {
    type Wide = [__m256i; 4];

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `ByteLanes`.
        unsafe { Avx2Bytes([_mm256_setzero_si256(); 2]) }
    }

    #[inline(always)]
    unsafe fn load_query(block: &[i16; BYTES]) -> Self::Wide {
        let values = block.as_ptr().cast::<__m256i>();
        // SAFETY: the contract of `ByteLanes`; 4 · 32 bytes are read from an array of 128 bytes.
        unsafe {
            [
                _mm256_loadu_si256(values),
                _mm256_loadu_si256(values.add(1)),
                _mm256_loadu_si256(values.add(2)),
                _mm256_loadu_si256(values.add(3)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn minus(a: Self::Wide, b: Self::Wide) -> Self::Wide {
        // SAFETY: the contract of `ByteLanes`.
        unsafe {
            [
                _mm256_sub_epi16(a[0], b[0]),
                _mm256_sub_epi16(a[1], b[1]),
                _mm256_sub_epi16(a[2], b[2]),
                _mm256_sub_epi16(a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn absolute(a: Self::Wide) -> Self::Wide {
        // SAFETY: the contract of `ByteLanes`.
        unsafe { [_mm256_abs_epi16(a[0]), _mm256_abs_epi16(a[1]), _mm256_abs_epi16(a[2]), _mm256_abs_epi16(a[3])] }
    }

    #[inline(always)]
    unsafe fn plus_products(self, a: Self::Wide, b: Self::Wide) -> Self {
        let [even, odd] = self.0;
        // SAFETY: the contract of `ByteLanes`.
        unsafe {
            let even = _mm256_add_epi32(even, _mm256_madd_epi16(a[0], b[0]));
            let odd = _mm256_add_epi32(odd, _mm256_madd_epi16(a[1], b[1]));
            let even = _mm256_add_epi32(even, _mm256_madd_epi16(a[2], b[2]));
            let odd = _mm256_add_epi32(odd, _mm256_madd_epi16(a[3], b[3]));
            Avx2Bytes([even, odd])
        }
    }

    #[inline(always)]
    unsafe fn plus_elements(self, a: Self::Wide) -> Self {
        // SAFETY: the contract of `ByteLanes`.
        unsafe { self.plus_products(a, [_mm256_set1_epi16(1); 4]) }
    }

    #[inline(always)]
    unsafe fn total(self) -> i32 {
        let [even, odd] = self.0;
        // SAFETY: the contract of `ByteLanes`.
        unsafe {
            let eight = _mm256_add_epi32(even, odd);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }
}

impl LoadBytes<i8> for Avx2Bytes {
    #[inline(always)]
    unsafe fn load_row(block: &[i8; BYTES]) -> Self::Wide {
        let values = block.as_ptr().cast::<__m128i>();
        // SAFETY: the contract of `ByteLanes`; 4 · 16 bytes are read from an array of 64 bytes.
        unsafe {
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(values)),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(values.add(1))),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(values.add(2))),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(values.add(3))),
            ]
        }
    }
}

impl LoadBytes<u8> for Avx2Bytes {
    #[inline(always)]
    unsafe fn load_row(block: &[u8; BYTES]) -> Self::Wide {
        let values = block.as_ptr().cast::<__m128i>();
        // SAFETY: the contract of `ByteLanes`; 4 · 16 bytes are read from an array of 64 bytes.
        unsafe {
            [
                _mm256_cvtepu8_epi16(_mm_loadu_si128(values)),
                _mm256_cvtepu8_epi16(_mm_loadu_si128(values.add(1))),
                _mm256_cvtepu8_epi16(_mm_loadu_si128(values.add(2))),
                _mm256_cvtepu8_epi16(_mm_loadu_si128(values.add(3))),
            ]
        }
    }
}

/// Rows of `N` words of eight bytes, or of any length if `N` is 0. One POPCNT per word: three run per cycle on Zen 3, and
/// short rows pay for no reduction of registers.
pub(crate) struct Words<const N: usize>;

impl<const N: usize> Feed for Words<N> {
    const IN_ORDER: bool = false;
}

impl<const N: usize> BitLanes for Words<N> {
    #[inline(always)]
    unsafe fn different(a: &[u8], b: &[u8]) -> i64 {
        let (a, b) = (words::<N>(a), words::<N>(b));
        let mut ones = 0_i64;
        for (a, b) in a.0.iter().zip(b.0) {
            ones = ones.wrapping_add(i64::from((u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b)).count_ones()));
        }
        for (a, b) in a.1.iter().zip(b.1) {
            ones = ones.wrapping_add(i64::from((a ^ b).count_ones()));
        }
        ones
    }

    #[inline(always)]
    unsafe fn common_and_right(a: &[u8], b: &[u8]) -> (i64, i64) {
        let (a, b) = (words::<N>(a), words::<N>(b));
        let (mut common, mut right) = (0_i64, 0_i64);
        for (a, b) in a.0.iter().zip(b.0) {
            let (a, b) = (u64::from_le_bytes(*a), u64::from_le_bytes(*b));
            common = common.wrapping_add(i64::from((a & b).count_ones()));
            right = right.wrapping_add(i64::from(b.count_ones()));
        }
        for (a, b) in a.1.iter().zip(b.1) {
            common = common.wrapping_add(i64::from((a & b).count_ones()));
            right = right.wrapping_add(i64::from(b.count_ones()));
        }
        (common, right)
    }
}

/// A row in words, and what is left of it. If the row has `N` words, the compiler knows it from here on.
#[inline(always)]
fn words<const N: usize>(row: &[u8]) -> (&[[u8; 8]], &[u8]) {
    let (words, rest) = row.as_chunks::<8>();
    match words.first_chunk::<N>() {
        Some(words) if N > 0 => (words, &[]),
        _ => (words, rest),
    }
}
