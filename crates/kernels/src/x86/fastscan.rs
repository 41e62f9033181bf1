//! FastScan with byte shuffles (`vpshufb`). What it computes is said in `fastscan.rs`.

use std::arch::x86_64::*;

use crate::fastscan::{BLOCK_ROWS, DIMS_PER_SUM, Lut, ScanBound, Survivors, block_bytes, push_survivors};

/// `fastscan::scan_blocks` with AVX2.
///
/// # Safety
/// The processor has AVX2 and FMA; `blocks` holds a block per mask.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) unsafe fn scan_avx2(blocks: &[u8], masks: &[u32], lut: &Lut, bound: &ScanBound, out: &mut Survivors) {
    let bytes = block_bytes(lut.dim());
    for (index, (block, mask)) in (0_u32..).zip(blocks.chunks_exact(bytes.max(1)).zip(masks)) {
        if *mask == 0 {
            continue;
        }
        let (codes, factors) = block.split_at(4 * lut.dim());
        let mut sums = [0_u32; BLOCK_ROWS];
        let chunks = codes.chunks(4 * DIMS_PER_SUM).zip(lut.entries().chunks(4 * DIMS_PER_SUM));
        for (codes, entries) in chunks {
            add_sums_avx2(codes, entries, &mut sums);
        }
        push_survivors(index, *mask, &sums, factors, bound, out);
    }
}

/// Adds the sums of at most [`DIMS_PER_SUM`] dimensions.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn add_sums_avx2(codes: &[u8], entries: &[u8], sums: &mut [u32; BLOCK_ROWS]) {
    let low_half = _mm256_set1_epi8(15);
    // Sums of even rows (with those of odd rows in the high byte), of odd rows; of rows 0 to 15, of rows 16 to 31.
    let mut parts = [_mm256_setzero_si256(); 4];
    for (codes, entries) in codes.as_chunks::<32>().0.iter().zip(entries.as_chunks::<32>().0) {
        // SAFETY: both are arrays of 32 bytes.
        let (codes, table) =
            unsafe { (_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(entries.as_ptr().cast())) };
        let low = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low_half));
        let high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low_half));
        parts[0] = _mm256_add_epi16(parts[0], low);
        parts[1] = _mm256_add_epi16(parts[1], _mm256_srli_epi16::<8>(low));
        parts[2] = _mm256_add_epi16(parts[2], high);
        parts[3] = _mm256_add_epi16(parts[3], _mm256_srli_epi16::<8>(high));
    }
    parts[0] = _mm256_sub_epi16(parts[0], _mm256_slli_epi16::<8>(parts[1]));
    parts[2] = _mm256_sub_epi16(parts[2], _mm256_slli_epi16::<8>(parts[3]));
    let lanes = parts.map(|part| _mm_add_epi16(_mm256_castsi256_si128(part), _mm256_extracti128_si256::<1>(part)));
    let rows = [
        _mm_unpacklo_epi16(lanes[0], lanes[1]),
        _mm_unpackhi_epi16(lanes[0], lanes[1]),
        _mm_unpacklo_epi16(lanes[2], lanes[3]),
        _mm_unpackhi_epi16(lanes[2], lanes[3]),
    ];
    for (rows, sums) in rows.into_iter().zip(sums.as_chunks_mut::<8>().0) {
        // SAFETY: an array of 32 bytes.
        unsafe {
            let sum = _mm256_add_epi32(_mm256_loadu_si256(sums.as_ptr().cast()), _mm256_cvtepu16_epi32(rows));
            _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum);
        }
    }
}

/// `fastscan::scan_blocks` with AVX-512.
///
/// # Safety
/// The processor has the features; `blocks` holds a block per mask.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) unsafe fn scan_avx512(blocks: &[u8], masks: &[u32], lut: &Lut, bound: &ScanBound, out: &mut Survivors) {
    let bytes = block_bytes(lut.dim());
    // All lists have room for every row, and for the whole register that the last ones are stored from.
    let room = (masks.len() + 1) * BLOCK_ROWS;
    out.rows.reserve(room);
    out.sums.reserve(room);
    out.bounds.reserve(room);
    out.estimates.reserve(room);
    let (step, base) = (_mm512_set1_ps(bound.step), _mm512_set1_ps(bound.base));
    let error = _mm512_set1_ps(bound.error);
    let (query_add, threshold) = (_mm512_set1_ps(bound.query_add), _mm512_set1_ps(bound.threshold));
    let estimate_max = _mm512_set1_ps(bound.estimate_max);
    let within = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (index, (block, mask)) in (0_u32..).zip(blocks.chunks_exact(bytes.max(1)).zip(masks)) {
        if *mask == 0 {
            continue;
        }
        let (codes, factors) = block.split_at(4 * lut.dim());
        let mut sums = [_mm512_setzero_si512(); 2];
        let chunks = codes.chunks(4 * DIMS_PER_SUM).zip(lut.entries().chunks(4 * DIMS_PER_SUM));
        for (codes, entries) in chunks {
            let part = sums_avx512(codes, entries);
            sums = [_mm512_add_epi32(sums[0], part[0]), _mm512_add_epi32(sums[1], part[1])];
        }
        let (adds, rescales) = factors.split_at(4 * BLOCK_ROWS);
        for (half, sums) in sums.into_iter().enumerate() {
            // SAFETY: `adds` and `rescales` hold 32 f32 each, of which the 16 of this half are read.
            let (add, rescale) = unsafe {
                (
                    _mm512_loadu_ps(adds.as_ptr().add(64 * half).cast()),
                    _mm512_loadu_ps(rescales.as_ptr().add(64 * half).cast()),
                )
            };
            let product = _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(sums), base);
            let add = _mm512_add_ps(add, query_add);
            let low = _mm512_fmadd_ps(rescale, _mm512_add_ps(product, error), add);
            let estimate = _mm512_fmadd_ps(rescale, product, add);
            let near = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(low, threshold);
            let kept =
                _mm512_mask_cmp_ps_mask::<_CMP_LE_OQ>(near, estimate, estimate_max) & (mask >> (16 * half)) as u16;
            if kept != 0 {
                let first = (index as usize * BLOCK_ROWS + 16 * half) as i32;
                let rows = _mm512_add_epi32(within, _mm512_set1_epi32(first));
                // SAFETY: room for every row of every block and one register more was reserved above.
                unsafe { append(kept, rows, sums, [low, estimate], out) };
            }
        }
    }
}

/// Appends the lanes in `kept`. Compressing in a register and storing all of it is many times faster on Zen 4 than a
/// compressing store.
///
/// # Safety
/// The lists have one length, and room for sixteen more.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
#[inline]
unsafe fn append(kept: u16, rows: __m512i, sums: __m512i, [low, estimate]: [__m512; 2], out: &mut Survivors) {
    let len = out.rows.len();
    let end = len + kept.count_ones() as usize;
    // SAFETY: the caller vouches for the room behind the end of the lists, which have one length; the lanes up to the new end are
    // written before it is set.
    unsafe {
        _mm512_storeu_si512(out.rows.as_mut_ptr().add(len).cast(), _mm512_maskz_compress_epi32(kept, rows));
        _mm512_storeu_si512(out.sums.as_mut_ptr().add(len).cast(), _mm512_maskz_compress_epi32(kept, sums));
        _mm512_storeu_ps(out.bounds.as_mut_ptr().add(len), _mm512_maskz_compress_ps(kept, low));
        _mm512_storeu_ps(out.estimates.as_mut_ptr().add(len), _mm512_maskz_compress_ps(kept, estimate));
        out.rows.set_len(end);
        out.sums.set_len(end);
        out.bounds.set_len(end);
        out.estimates.set_len(end);
    }
}

/// Bytes between the codes that are read and those that are asked for: lists are short, and the processor's own prefetching
/// begins anew at each page.
const AHEAD: usize = 3_072;

#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
#[inline]
fn prefetch_ahead(codes: *const u8) {
    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD).cast());
}

/// The sums of at most [`DIMS_PER_SUM`] dimensions: rows 0 to 15, rows 16 to 31.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
#[inline]
fn sums_avx512(codes: &[u8], entries: &[u8]) -> [__m512i; 2] {
    let low_half = _mm512_set1_epi8(15);
    // As in `add_sums_avx2`.
    let mut parts = [_mm512_setzero_si512(); 4];
    for (codes, entries) in codes.as_chunks::<64>().0.iter().zip(entries.as_chunks::<64>().0) {
        prefetch_ahead(codes.as_ptr());
        // SAFETY: both are arrays of 64 bytes.
        let (codes, table) =
            unsafe { (_mm512_loadu_si512(codes.as_ptr().cast()), _mm512_loadu_si512(entries.as_ptr().cast())) };
        let low = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low_half));
        let high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low_half));
        parts[0] = _mm512_add_epi16(parts[0], low);
        parts[1] = _mm512_add_epi16(parts[1], _mm512_srli_epi16::<8>(low));
        parts[2] = _mm512_add_epi16(parts[2], high);
        parts[3] = _mm512_add_epi16(parts[3], _mm512_srli_epi16::<8>(high));
    }
    parts[0] = _mm512_sub_epi16(parts[0], _mm512_slli_epi16::<8>(parts[1]));
    parts[2] = _mm512_sub_epi16(parts[2], _mm512_slli_epi16::<8>(parts[3]));
    let lanes = parts.map(|part| {
        let halves = _mm256_add_epi16(_mm512_castsi512_si256(part), _mm512_extracti64x4_epi64::<1>(part));
        _mm_add_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves))
    });
    let rows = |even: __m128i, odd: __m128i| {
        let rows = _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd));
        _mm512_cvtepu16_epi32(rows)
    };
    [rows(lanes[0], lanes[1]), rows(lanes[2], lanes[3])]
}
