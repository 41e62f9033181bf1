//! Products of codes with bytes: VNNI, or pairs of 16 bits on AVX2. What they are is said in `codes.rs`.

use std::arch::x86_64::*;

use crate::list_codes::{byte_sums_reference, joined};

/// `codes::byte_products` with AVX2.
///
/// # Safety
/// The processor has AVX2; `high` and `low` are as long as each other and not shorter than a row.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) unsafe fn byte_products_avx2(rows: &[u8], dim: usize, high: &[i8], low: &[i8], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(dim).zip(out) {
        *out = joined(byte_sums_avx2(row, high, low));
    }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn byte_sums_avx2(row: &[u8], high: &[i8], low: &[i8]) -> (i32, i32) {
    let (blocks, tail) = row.as_chunks::<16>();
    let mut sums = [_mm256_setzero_si256(); 2];
    for ((block, high), low) in blocks.iter().zip(high.as_chunks::<16>().0).zip(low.as_chunks::<16>().0) {
        // SAFETY: all three are arrays of 16 bytes.
        let (block, high, low) = unsafe {
            (
                _mm_loadu_si128(block.as_ptr().cast()),
                _mm_loadu_si128(high.as_ptr().cast()),
                _mm_loadu_si128(low.as_ptr().cast()),
            )
        };
        let block = _mm256_cvtepu8_epi16(block);
        sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(block, _mm256_cvtepi8_epi16(high)));
        sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(block, _mm256_cvtepi8_epi16(low)));
    }
    let done = row.len() - tail.len();
    let rest = byte_sums_reference(tail, &high[done..], &low[done..]);
    (total(sums[0]).wrapping_add(rest.0), total(sums[1]).wrapping_add(rest.1))
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn total(sums: __m256i) -> i32 {
    let halves = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    let pairs = _mm_add_epi32(halves, _mm_shuffle_epi32::<0b01_00_11_10>(halves));
    _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32::<0b10_11_00_01>(pairs)))
}

/// `codes::byte_products` with AVX-512.
///
/// # Safety
/// The processor has the features; `high` and `low` are whole words of 64 and not shorter than a row.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) unsafe fn byte_products_avx512(rows: &[u8], dim: usize, high: &[i8], low: &[i8], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(dim).zip(out) {
        *out = joined(byte_sums_avx512(row, high, low));
    }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
#[inline]
fn byte_sums_avx512(row: &[u8], high: &[i8], low: &[i8]) -> (i32, i32) {
    let (blocks, tail) = row.as_chunks::<64>();
    let (high, low) = (high.as_chunks::<64>().0, low.as_chunks::<64>().0);
    let mut sums = [_mm512_setzero_si512(); 2];
    // SAFETY: every load is of an array of 64 bytes, or of the bytes of `tail` alone, which the mask says.
    unsafe {
        for ((block, high), low) in blocks.iter().zip(high).zip(low) {
            let block = _mm512_loadu_si512(block.as_ptr().cast());
            sums[0] = _mm512_dpbusd_epi32(sums[0], block, _mm512_loadu_si512(high.as_ptr().cast()));
            sums[1] = _mm512_dpbusd_epi32(sums[1], block, _mm512_loadu_si512(low.as_ptr().cast()));
        }
        if let (false, Some(high), Some(low)) = (tail.is_empty(), high.get(blocks.len()), low.get(blocks.len())) {
            let block = _mm512_maskz_loadu_epi8((1_u64 << tail.len()) - 1, tail.as_ptr().cast());
            sums[0] = _mm512_dpbusd_epi32(sums[0], block, _mm512_loadu_si512(high.as_ptr().cast()));
            sums[1] = _mm512_dpbusd_epi32(sums[1], block, _mm512_loadu_si512(low.as_ptr().cast()));
        }
    }
    (_mm512_reduce_add_epi32(sums[0]), _mm512_reduce_add_epi32(sums[1]))
}

/// # Safety
/// The processor has AVX2; `planes` holds `bits` words for every 64 elements of `high`.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) unsafe fn plane_sum_avx2(planes: &[u8], bits: usize, high: &[i8]) -> i32 {
    let mut sum = _mm256_setzero_si256();
    for (words, high) in planes.chunks_exact(8 * bits).zip(high.as_chunks::<64>().0) {
        let mut codes = [_mm256_setzero_si256(); 2];
        for (bit, word) in words.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            let place = _mm256_set1_epi8((1_u8 << bit) as i8);
            for (half, codes) in codes.iter_mut().enumerate() {
                let set = bits_to_bytes((word >> (32 * half)) as u32);
                *codes = _mm256_or_si256(*codes, _mm256_and_si256(set, place));
            }
        }
        for (codes, high) in codes.into_iter().zip(high.as_chunks::<32>().0) {
            // SAFETY: an array of 32 bytes.
            let high = unsafe { _mm256_loadu_si256(high.as_ptr().cast()) };
            let low_half = _mm256_madd_epi16(
                _mm256_cvtepu8_epi16(_mm256_castsi256_si128(codes)),
                _mm256_cvtepi8_epi16(_mm256_castsi256_si128(high)),
            );
            let high_half = _mm256_madd_epi16(
                _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(codes)),
                _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(high)),
            );
            sum = _mm256_add_epi32(sum, _mm256_add_epi32(low_half, high_half));
        }
    }
    total(sum)
}

/// A byte of ones for every bit that is set.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn bits_to_bytes(bits: u32) -> __m256i {
    let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), spread);
    _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own), own)
}

/// # Safety
/// The processor has the features; `planes` holds `bits` words for every 64 elements of `high`, and `bits` is 1 to 8.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) unsafe fn plane_sum_avx512(planes: &[u8], bits: usize, high: &[i8]) -> i32 {
    match bits {
        1 => plane_sum_of::<1>(planes, high),
        2 => plane_sum_of::<2>(planes, high),
        3 => plane_sum_of::<3>(planes, high),
        4 => plane_sum_of::<4>(planes, high),
        5 => plane_sum_of::<5>(planes, high),
        6 => plane_sum_of::<6>(planes, high),
        7 => plane_sum_of::<7>(planes, high),
        _ => plane_sum_of::<8>(planes, high),
    }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
#[inline]
fn plane_sum_of<const BITS: usize>(planes: &[u8], high: &[i8]) -> i32 {
    let mut sum = _mm512_setzero_si512();
    let words = planes.as_chunks::<8>().0.as_chunks::<BITS>().0;
    for (words, high) in words.iter().zip(high.as_chunks::<64>().0) {
        let mut codes = _mm512_setzero_si512();
        for (bit, word) in words.iter().enumerate() {
            let place = _mm512_set1_epi8((1_u8 << bit) as i8);
            codes = _mm512_mask_add_epi8(codes, u64::from_le_bytes(*word), codes, place);
        }
        // SAFETY: an array of 64 bytes.
        let high = unsafe { _mm512_loadu_si512(high.as_ptr().cast()) };
        sum = _mm512_dpbusd_epi32(sum, codes, high);
    }
    _mm512_reduce_add_epi32(sum)
}
