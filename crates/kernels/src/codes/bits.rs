//! Hamming and Jaccard distances to bit vectors at scattered places. The record of a vector is its bits, filled up to
//! whole words of 64.

use super::CodeError;
use crate::isa::{Isa, Present};

/// Words of a bit vector, to be compared with records.
#[derive(Clone, Debug)]
pub struct BitQuery {
    words: Vec<u64>,
    ones: u32,
    jaccard: bool,
    isa: Present,
}

impl BitQuery {
    /// For vectors of `dim` bits; `jaccard`: by [`crate::Metric::Jaccard`], or else by [`crate::Metric::Hamming`].
    pub fn new(dim: usize, jaccard: bool) -> Self {
        Self { words: vec![0; dim.div_ceil(64)], ones: 0, jaccard, isa: Present::chosen() }
    }

    /// Bytes of a record.
    pub fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    /// Replaces the vector: its bytes, zeros beyond their end.
    pub fn set(&mut self, bits: &[u8]) {
        self.words.fill(0);
        for (word, bytes) in self.words.iter_mut().zip(bits.chunks(8)) {
            let mut filled = [0; 8];
            filled[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(filled);
        }
        self.ones = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// Writes the distances to `records`, numbers of records of `codes`, into `out`, one place each.
    ///
    /// Exact up to 2^24 bits: counts are whole numbers, and the fraction of Jaccard is rounded to f32 once.
    ///
    /// # Errors
    /// [`CodeError`] if a record is not in `codes`, or `out` has another number of places. Nothing was written.
    pub fn distances(&self, codes: &[u8], records: &[u32], out: &mut [f32]) -> Result<(), CodeError> {
        super::check(codes, self.bytes(), records, out.len())?;
        match self.isa.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine.
            Isa::Avx512 => unsafe { distances_avx512(self, codes, records, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { distances_avx2(self, codes, records, out) },
            _ => distances(self, codes, records, out),
        }
        Ok(())
    }
}

/// The compiler makes vector instructions of the loop where the instruction set counts bits.
#[inline(always)]
fn distances(query: &BitQuery, codes: &[u8], records: &[u32], out: &mut [f32]) {
    let bytes = query.bytes();
    for (record, out) in records.iter().zip(out) {
        let words = codes[*record as usize * bytes..][..bytes].as_chunks::<8>().0;
        let pairs = query.words.iter().zip(words).map(|(query, word)| (*query, u64::from_le_bytes(*word)));
        *out = if query.jaccard {
            let (mut common, mut either) = (0_u64, 0_u64);
            for (query, word) in pairs {
                common = common.wrapping_add(u64::from((query & word).count_ones()));
                either = either.wrapping_add(u64::from((query | word).count_ones()));
            }
            if common == 0 { 1.0 } else { (1.0 - common as f64 / either as f64) as f32 }
        } else {
            pairs.fold(0_u64, |sum, (query, word)| sum.wrapping_add(u64::from((query ^ word).count_ones()))) as f32
        };
    }
}

/// [`distances`] with VPOPCNTQ.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt,avx512f,avx512bw,avx512vl,avx512vpopcntdq")]
fn distances_avx512(query: &BitQuery, codes: &[u8], records: &[u32], out: &mut [f32]) {
    distances(query, codes, records, out);
}

/// [`distances`] with POPCNT.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn distances_avx2(query: &BitQuery, codes: &[u8], records: &[u32], out: &mut [f32]) {
    distances(query, codes, records, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, oracle};
    use crate::{ElementType, Metric, Vectors};

    #[test]
    fn every_instruction_set_counts_every_length() {
        for (isa, bytes) in
            Isa::available().into_iter().filter_map(Isa::present).flat_map(|isa| (0..=64).map(move |b| (isa, b)))
        {
            let mut random = Random::new(bytes as u64);
            let stored = random.hard_vectors(ElementType::Bits, 5 * bytes * 8);
            let Vectors::Bits(vectors) = stored.vectors() else { panic!("bits were asked for") };
            let vector = |i: usize| &vectors[i * bytes..(i + 1) * bytes];
            let widened = |bits: &[u8]| Vectors::Bits(bits).to_stored().wide();
            for metric in [Metric::Hamming, Metric::Jaccard] {
                let mut query = BitQuery { isa, ..BitQuery::new(bytes * 8, metric == Metric::Jaccard) };
                let mut codes = vec![0; 4 * query.bytes()];
                (0..4).for_each(|i| codes[i * query.bytes()..][..bytes].copy_from_slice(vector(i)));
                query.set(vector(4));
                let mut out = [0.0; 5];
                query
                    .distances(&codes, &[3, 0, 1, 2, 3], &mut out)
                    .unwrap_or_else(|error| assert_eq!(bytes, 0, "{error}"));
                for (record, found) in [3, 0, 1, 2, 3].into_iter().zip(out).take(if bytes == 0 { 0 } else { 5 }) {
                    let expected = oracle(metric, &widened(vector(4)), &widened(vector(record))) as f32;
                    assert_eq!(found, expected, "{isa:?} {metric:?} {bytes} bytes");
                }
            }
        }
    }

    #[test]
    fn a_record_that_is_not_there_is_refused() {
        let query = BitQuery::new(64, false);
        let error = query.distances(&[0; 16], &[1, 2], &mut [0.0; 2]);
        assert_eq!(error, Err(CodeError::RecordOutOfRange { record: 2, records: 2 }));
        assert_eq!(query.distances(&[0; 16], &[1], &mut []), Err(CodeError::PlaceCount { places: 0, records: 1 }));
    }
}
