//! Inner products of codes of up to 8 bits with a query of whole numbers.
//!
//! All sums are of integers, exact, and so equal on every instruction set.

use crate::isa::{Isa, Present};

/// Elements that a bit plane covers with one word.
const WORD: usize = 64;

/// A query as whole numbers of 15 bits, in two parts of a byte: `value ≈ step · (128 · high + low)`.
///
/// Codes that need no more precision use `high` alone. The elements are padded with zeros to a multiple of 64.
#[derive(Clone, Debug, Default)]
pub struct ByteQuery {
    high: Vec<i8>,
    low: Vec<i8>,
    /// The value of one.
    pub step: f32,
    /// The sum of the high parts.
    pub high_sum: i64,
    /// The sum of `128 · high + low`.
    pub sum: i64,
}

impl ByteQuery {
    /// Quantizes `values`; each is at most `step / 2` off, or `64 · step` with the high parts alone. Values that are not finite
    /// count as zeros.
    pub fn new(values: &[f32]) -> ByteQuery {
        /// 127 · 128.
        const LARGEST: f32 = 16_256.0;
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let step = if largest.is_finite() { largest / LARGEST } else { 0.0 };
        let per_step = if step > 0.0 { 1.0 / step } else { 0.0 };
        let padded = values.len().next_multiple_of(WORD);
        let mut query = ByteQuery { high: vec![0; padded], low: vec![0; padded], step, high_sum: 0, sum: 0 };
        split(Present::chosen(), values, per_step, &mut query.high, &mut query.low);
        let sums = query
            .high
            .iter()
            .zip(&query.low)
            .fold((0_i64, 0_i64), |sums, (high, low)| (sums.0 + i64::from(*high), sums.1 + i64::from(*low)));
        (query.high_sum, query.sum) = (sums.0, 128 * sums.0 + sums.1);
        query
    }

    /// Elements, padding included.
    pub fn padded_dim(&self) -> usize {
        self.high.len()
    }
}

crate::compiled::compiled_for_each! {
    fn split(values: &[f32], per_step: f32, high: &mut [i8], low: &mut [i8]) = split_plain
}

#[inline(always)]
fn split_plain(values: &[f32], per_step: f32, high: &mut [i8], low: &mut [i8]) {
    for ((value, high), low) in values.iter().zip(high).zip(low) {
        // The clamp holds off rounding at the ends; the cast makes NaN zero.
        let whole = (value * per_step).round_ties_even().clamp(-16_256.0, 16_256.0) as i32;
        let part = (whole + 64) >> 7;
        *high = part as i8;
        *low = (whole - 128 * part) as i8;
    }
}

/// For each row of bytes: `Σ code · (128 · high + low)`, rounded once to f32.
///
/// `rows`: as many rows of `dim` bytes as `out` has places. `dim`: at most the query's.
///
/// # Panics
/// If the shapes do not fit.
pub fn byte_products(rows: &[u8], dim: usize, query: &ByteQuery, out: &mut [f32]) {
    byte_products_on(Present::chosen(), rows, dim, query, out);
}

fn byte_products_on(isa: Present, rows: &[u8], dim: usize, query: &ByteQuery, out: &mut [f32]) {
    assert!(dim > 0 && dim <= query.high.len() && rows.len() == dim * out.len(), "a row of dim bytes per place");
    match isa.isa() {
        // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine; the query is padded to whole words
        // and not shorter than a row.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { crate::x86::list_codes::byte_products_avx2(rows, dim, &query.high, &query.low, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { crate::x86::list_codes::byte_products_avx512(rows, dim, &query.high, &query.low, out) },
        _ => {
            for (row, out) in rows.chunks_exact(dim).zip(out) {
                *out = joined(byte_sums_reference(row, &query.high, &query.low));
            }
        }
    }
}

/// The sums of both parts as one, rounded once.
#[inline(always)]
pub(crate) fn joined((high, low): (i32, i32)) -> f32 {
    (128 * i64::from(high) + i64::from(low)) as f32
}

/// The scalar twin. A sum of 65,536 products of a byte and a signed byte fits 32 bits; the callers' dimensions are below that.
pub(crate) fn byte_sums_reference(row: &[u8], high: &[i8], low: &[i8]) -> (i32, i32) {
    row.iter().zip(high.iter().zip(low)).fold((0_i32, 0_i32), |sums, (code, (high, low))| {
        let code = i32::from(*code);
        (sums.0.wrapping_add(code * i32::from(*high)), sums.1.wrapping_add(code * i32::from(*low)))
    })
}

/// Bytes of a row of codes of `bits` bits (1 to 8) as bit planes: per 64 elements one little-endian word for each bit, the lowest
/// bit first.
pub const fn plane_stride(dim: usize, bits: usize) -> usize {
    dim.div_ceil(WORD) * bits * 8
}

/// Writes the low `bits` bits of codes as bit planes.
///
/// # Panics
/// If `planes` is not [`plane_stride`] long.
pub fn pack_planes(codes: &[u8], bits: usize, planes: &mut [u8]) {
    assert_eq!(planes.len(), plane_stride(codes.len(), bits), "the bytes of the planes");
    for (codes, words) in codes.chunks(WORD).zip(planes.chunks_exact_mut((8 * bits).max(1))) {
        for (bit, word) in words.chunks_exact_mut(8).enumerate() {
            let gathered =
                codes.iter().enumerate().fold(0_u64, |word, (i, code)| word | u64::from(code >> bit & 1) << i);
            word.copy_from_slice(&gathered.to_le_bytes());
        }
    }
}

/// `Σ code · high` of one row of codes as bit planes.
///
/// # Panics
/// If `bits` is not 1 to 8, or `planes` is not as long as the query's dimension and `bits` say.
pub fn plane_product(planes: &[u8], bits: usize, query: &ByteQuery) -> i32 {
    plane_product_on(Present::chosen(), planes, bits, query)
}

#[inline]
fn plane_product_on(isa: Present, planes: &[u8], bits: usize, query: &ByteQuery) -> i32 {
    assert!((1..=8).contains(&bits) && planes.len() == query.high.len() / 8 * bits, "a word per bit and 64 elements");
    match isa.isa() {
        // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine; lengths are checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { crate::x86::list_codes::plane_sum_avx2(planes, bits, &query.high) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { crate::x86::list_codes::plane_sum_avx512(planes, bits, &query.high) },
        _ => plane_sum_reference(planes, bits, &query.high),
    }
}

/// The scalar twin.
fn plane_sum_reference(planes: &[u8], bits: usize, high: &[i8]) -> i32 {
    let mut sum = 0_i32;
    for (words, high) in planes.chunks_exact(8 * bits).zip(high.chunks_exact(WORD)) {
        for (bit, word) in words.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            let set = high.iter().enumerate().filter(|(i, _)| word >> i & 1 == 1);
            sum = sum.wrapping_add(set.map(|(_, high)| i32::from(*high)).sum::<i32>() << bit);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn codes(len: usize, random: &mut Random) -> Vec<u8> {
        (0..len).map(|_| if random.below(4) == 0 { 255 } else { random.next() as u8 }).collect()
    }

    #[test]
    fn products_of_bytes_are_exact_everywhere() {
        let mut random = Random::new(6);
        for dim in (1..=257).chain([784, 1024, 4097]) {
            let values: Vec<f32> = (0..dim).map(|_| random.float()).collect();
            let query = ByteQuery::new(&values);
            let rows = codes(3 * dim, &mut random);
            for isa in Isa::available() {
                let mut out = [f32::NAN; 3];
                byte_products_on(isa.present().unwrap(), &rows, dim, &query, &mut out);
                for (row, out) in rows.chunks(dim).zip(out) {
                    let exact: i64 = row
                        .iter()
                        .zip(query.high.iter().zip(&query.low))
                        .map(|(c, (h, l))| i64::from(*c) * (128 * i64::from(*h) + i64::from(*l)))
                        .sum();
                    assert_eq!(out, exact as f32, "{isa} {dim}");
                }
            }
        }
    }

    #[test]
    fn products_of_planes_are_exact_everywhere() {
        let mut random = Random::new(7);
        for dim in (1..=257).chain([784, 1024]) {
            let values: Vec<f32> = (0..dim).map(|_| random.float()).collect();
            let query = ByteQuery::new(&values);
            for bits in 1..=8 {
                let codes = codes(dim, &mut random);
                let mut planes = vec![0; plane_stride(dim, bits)];
                pack_planes(&codes, bits, &mut planes);
                let low_bits = (1_u32 << bits) - 1;
                let exact: i32 =
                    codes.iter().zip(&query.high).map(|(c, h)| (u32::from(*c) & low_bits) as i32 * i32::from(*h)).sum();
                for isa in Isa::available() {
                    assert_eq!(
                        plane_product_on(isa.present().unwrap(), &planes, bits, &query),
                        exact,
                        "{isa} {dim} {bits}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_quantized_query_is_near_the_query() {
        let mut random = Random::new(8);
        let values: Vec<f32> = (0..100).map(|_| random.float()).collect();
        let query = ByteQuery::new(&values);
        for (value, (high, low)) in values.iter().zip(query.high.iter().zip(&query.low)) {
            let whole = query.step * (128 * i32::from(*high) + i32::from(*low)) as f32;
            assert!((value - whole).abs() <= query.step * 0.51, "{value} {whole}");
        }
        assert_eq!(ByteQuery::new(&[f32::NAN, f32::INFINITY]).sum, 0);
        assert_eq!(ByteQuery::new(&[]).padded_dim(), 0);
    }
}
