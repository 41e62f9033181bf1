//! AVX-512 F, BW, VL, VNNI and VPOPCNTDQ: two registers of eight f64 are the sixteen virtual lanes.
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

/// `scan::float_sums` with AVX-512.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) fn float_sums<T: Element>(kind: SumKind, query: &[FloatBlock], rows: &RowBlock<'_, T>, sums: &mut Sums<'_>)
where
    Avx512Floats: Load<T>,
{
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::float_sums::<Avx512Floats, T>(kind, query, rows, sums) }
}

/// `scan::byte_sums` with AVX-512.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) fn byte_sums<T: ByteElement>(
    kind: SumKind,
    query: &[IntegerBlock],
    rows: &RowBlock<'_, T>,
    sums: &mut Sums<'_>,
) where
    Avx512Bytes: LoadBytes<T>,
{
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::byte_sums::<Avx512Bytes, T>(kind, query, rows, sums) }
}

/// `scan::bit_sums` with VPOPCNTDQ.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) fn bit_sums(kind: SumKind, query: &[u8], rows: &RowBlock<'_, u8>, sums: &mut Sums<'_>) {
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::bit_sums::<Avx512Bits>(kind, query, rows, sums) }
}

/// `scan::widen` with AVX-512.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) fn widen<T: Element>(vector: &[T], blocks: &mut [FloatBlock])
where
    Avx512Floats: Load<T>,
{
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { scan::widen::<Avx512Floats, T>(vector, blocks) }
}

/// `tile::tile_sums` with AVX-512.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) fn tile_sums(
    kind: SumKind,
    queries: [&[FloatBlock]; tile::QUERIES],
    rows: [&[FloatBlock]; tile::ROWS],
) -> [[f64; tile::ROWS]; tile::QUERIES] {
    // SAFETY: this function has the target features, and whoever calls it has seen that the processor has them.
    unsafe { tile::tile_sums::<Avx512Floats>(kind, queries, rows) }
}

/// Two registers of eight.
pub(crate) type Avx512Floats = Lanes<__m512d, 2>;

impl Feed for __m512d {
    const IN_ORDER: bool = true;
}

// Every method below relies on the contract of its trait: the caller vouches for AVX-512, and for pointers.
impl Arithmetic for __m512d {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm512_setzero_pd() }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm512_add_pd(self, other) }
    }

    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm512_sub_pd(self, other) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm512_fmadd_pd(a, b, self) }
    }

    #[inline(always)]
    unsafe fn absolute(self) -> Self {
        // SAFETY: the contract of `Arithmetic`.
        unsafe { _mm512_abs_pd(self) }
    }
}

impl Register for __m512d {
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn load(values: *const f64) -> Self {
        // SAFETY: the contract of `Register`.
        unsafe { _mm512_loadu_pd(values) }
    }

    #[inline(always)]
    unsafe fn store(self, values: *mut f64) {
        // SAFETY: the contract of `Register`.
        unsafe { _mm512_storeu_pd(values, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f64 {
        // SAFETY: the contract of `Register`.
        unsafe { _mm256_add_pd(_mm512_castpd512_pd256(self), _mm512_extractf64x4_pd::<1>(self)).sum() }
    }
}

impl Load<f32> for Avx512Floats {
    #[inline(always)]
    unsafe fn load(block: &[f32; LANES]) -> Self {
        let values = block.as_ptr();
        // SAFETY: the contract of `Arithmetic`; 2 · 8 values are read from an array of 16.
        unsafe { Lanes([_mm512_cvtps_pd(_mm256_loadu_ps(values)), _mm512_cvtps_pd(_mm256_loadu_ps(values.add(8)))]) }
    }
}

impl Load<f16> for Avx512Floats {
    #[inline(always)]
    unsafe fn load(block: &[f16; LANES]) -> Self {
        let values = block.as_ptr();
        // SAFETY: the contract of `Arithmetic`; 2 · 16 bytes are read from an array of 32 bytes.
        unsafe {
            Lanes([
                _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(values.cast()))),
                _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(values.add(8).cast()))),
            ])
        }
    }
}

impl Load<i8> for Avx512Floats {
    #[inline(always)]
    unsafe fn load(block: &[i8; LANES]) -> Self {
        let values = block.as_ptr();
        // SAFETY: the contract of `Arithmetic`; 2 · 8 bytes are read from an array of 16 bytes.
        unsafe {
            Lanes([
                _mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(_mm_loadl_epi64(values.cast()))),
                _mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(_mm_loadl_epi64(values.add(8).cast()))),
            ])
        }
    }
}

impl Load<u8> for Avx512Floats {
    #[inline(always)]
    unsafe fn load(block: &[u8; LANES]) -> Self {
        let values = block.as_ptr();
        // SAFETY: the contract of `Arithmetic`; 2 · 8 bytes are read from an array of 16 bytes.
        unsafe {
            Lanes([
                _mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_loadl_epi64(values.cast()))),
                _mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_loadl_epi64(values.add(8).cast()))),
            ])
        }
    }
}

/// Two accumulators of sixteen i32. VNNI multiplies pairs of i16 and adds them in one instruction; its form for bytes
/// would save the widening, but wants one side signed and the other unsigned, and memory is the limit either way.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bytes([__m512i; 2]);

impl Feed for Avx512Bytes {
    const IN_ORDER: bool = true;
}

// As above: the caller vouches for AVX-512, pointers come from arrays of the length that is read.
impl ByteLanes for Avx512Bytes {
    type Wide = [__m512i; 2];

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `ByteLanes`.
        unsafe { Avx512Bytes([_mm512_setzero_si512(); 2]) }
    }

    #[inline(always)]
    unsafe fn load_query(block: &[i16; BYTES]) -> Self::Wide {
        let values = block.as_ptr();
        // SAFETY: the contract of `ByteLanes`; 2 · 64 bytes are read from an array of 128 bytes.
        unsafe { [_mm512_loadu_si512(values.cast()), _mm512_loadu_si512(values.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn minus(a: Self::Wide, b: Self::Wide) -> Self::Wide {
        // SAFETY: the contract of `ByteLanes`.
        unsafe { [_mm512_sub_epi16(a[0], b[0]), _mm512_sub_epi16(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn absolute(a: Self::Wide) -> Self::Wide {
        // SAFETY: the contract of `ByteLanes`.
        unsafe { [_mm512_abs_epi16(a[0]), _mm512_abs_epi16(a[1])] }
    }

    #[inline(always)]
    unsafe fn plus_products(self, a: Self::Wide, b: Self::Wide) -> Self {
        let [even, odd] = self.0;
        // SAFETY: the contract of `ByteLanes`.
        unsafe { Avx512Bytes([_mm512_dpwssd_epi32(even, a[0], b[0]), _mm512_dpwssd_epi32(odd, a[1], b[1])]) }
    }

    #[inline(always)]
    unsafe fn plus_elements(self, a: Self::Wide) -> Self {
        // SAFETY: the contract of `ByteLanes`.
        unsafe { self.plus_products(a, [_mm512_set1_epi16(1); 2]) }
    }

    #[inline(always)]
    unsafe fn total(self) -> i32 {
        let [even, odd] = self.0;
        // SAFETY: the contract of `ByteLanes`.
        unsafe { _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd)) }
    }
}

impl LoadBytes<i8> for Avx512Bytes {
    #[inline(always)]
    unsafe fn load_row(block: &[i8; BYTES]) -> Self::Wide {
        let values = block.as_ptr();
        // SAFETY: the contract of `ByteLanes`; 2 · 32 bytes are read from an array of 64 bytes.
        unsafe {
            [
                _mm512_cvtepi8_epi16(_mm256_loadu_si256(values.cast())),
                _mm512_cvtepi8_epi16(_mm256_loadu_si256(values.add(32).cast())),
            ]
        }
    }
}

impl LoadBytes<u8> for Avx512Bytes {
    #[inline(always)]
    unsafe fn load_row(block: &[u8; BYTES]) -> Self::Wide {
        let values = block.as_ptr();
        // SAFETY: the contract of `ByteLanes`; 2 · 32 bytes are read from an array of 64 bytes.
        unsafe {
            [
                _mm512_cvtepu8_epi16(_mm256_loadu_si256(values.cast())),
                _mm512_cvtepu8_epi16(_mm256_loadu_si256(values.add(32).cast())),
            ]
        }
    }
}

/// Eight counts per VPOPCNTQ; the bytes past the end of a row are masked out and never read.
pub(crate) struct Avx512Bits;

impl Feed for Avx512Bits {
    const IN_ORDER: bool = true;
}

impl BitLanes for Avx512Bits {
    #[inline(always)]
    unsafe fn different(a: &[u8], b: &[u8]) -> i64 {
        let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<BYTES>(), b.as_chunks::<BYTES>());
        // SAFETY: the contract of `BitLanes`; 64 bytes are read from arrays of 64 bytes.
        unsafe {
            let mut ones = _mm512_setzero_si512();
            for (a, b) in a.iter().zip(b) {
                let (a, b) = (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast()));
                ones = _mm512_add_epi64(ones, _mm512_popcnt_epi64(_mm512_xor_si512(a, b)));
            }
            let (a, b) = (load_tail(a_tail), load_tail(b_tail));
            _mm512_reduce_add_epi64(_mm512_add_epi64(ones, _mm512_popcnt_epi64(_mm512_xor_si512(a, b))))
        }
    }

    #[inline(always)]
    unsafe fn common_and_right(a: &[u8], b: &[u8]) -> (i64, i64) {
        let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<BYTES>(), b.as_chunks::<BYTES>());
        // SAFETY: the contract of `BitLanes`; 64 bytes are read from arrays of 64 bytes.
        unsafe {
            let (mut common, mut right) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for (a, b) in a.iter().zip(b) {
                let (a, b) = (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast()));
                common = _mm512_add_epi64(common, _mm512_popcnt_epi64(_mm512_and_si512(a, b)));
                right = _mm512_add_epi64(right, _mm512_popcnt_epi64(b));
            }
            let (a, b) = (load_tail(a_tail), load_tail(b_tail));
            common = _mm512_add_epi64(common, _mm512_popcnt_epi64(_mm512_and_si512(a, b)));
            right = _mm512_add_epi64(right, _mm512_popcnt_epi64(b));
            (_mm512_reduce_add_epi64(common), _mm512_reduce_add_epi64(right))
        }
    }
}

/// Fewer than 64 bytes, filled up with zeros.
///
/// # Safety
/// The contract of `BitLanes`.
#[inline(always)]
unsafe fn load_tail(tail: &[u8]) -> __m512i {
    let mask = !(u64::MAX << (tail.len() % BYTES));
    // SAFETY: the caller vouches for the instruction set; only the bytes of `tail` are in the mask, and a masked load
    // touches no other.
    unsafe { _mm512_maskz_loadu_epi8(mask, tail.as_ptr().cast()) }
}
