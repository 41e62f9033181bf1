//! What the tests of this crate share: seeded random vectors of every type, hard values, and a naive oracle.

use half::f16;

use crate::metric::Metric;
use crate::vectors::{Element, ElementType, Vectors};

/// A small seeded generator (splitmix64): tests draw the same numbers on every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// In -1..1, with all bits of an f32 in use.
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `elements` random elements of a type.
    pub(crate) fn vectors(&mut self, element: ElementType, elements: usize) -> Stored {
        match element {
            ElementType::F32 => Stored::F32((0..elements).map(|_| self.float()).collect()),
            ElementType::F16 => Stored::F16((0..elements).map(|_| f16::from_f32(self.float())).collect()),
            ElementType::I8 => Stored::I8((0..elements).map(|_| self.next() as i8).collect()),
            ElementType::U8 => Stored::U8((0..elements).map(|_| self.next() as u8).collect()),
            ElementType::Bits => Stored::Bits((0..elements / 8).map(|_| self.next() as u8).collect()),
        }
    }

    /// `elements` elements of a type, drawn from its extremes: zeros of both signs, the largest, the smallest,
    /// subnormals, and now and then an ordinary one.
    pub(crate) fn hard_vectors(&mut self, element: ElementType, elements: usize) -> Stored {
        const F32: [f32; 9] = [0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, -1e-45, 1.0, -3.5e-39];
        const F16: [u16; 9] = [0, 0x8000, 0x7bff, 0xfbff, 0x0400, 0x0001, 0x8001, 0x3c00, 0x83ff];
        const I8: [i8; 5] = [-128, 127, 0, -1, 1];
        const U8: [u8; 5] = [255, 0, 1, 128, 127];
        match element {
            ElementType::F32 => Stored::F32((0..elements).map(|_| F32[self.below(9)]).collect()),
            ElementType::F16 => Stored::F16((0..elements).map(|_| f16::from_bits(F16[self.below(9)])).collect()),
            ElementType::I8 => Stored::I8((0..elements).map(|_| I8[self.below(5)]).collect()),
            ElementType::U8 => Stored::U8((0..elements).map(|_| U8[self.below(5)]).collect()),
            ElementType::Bits => Stored::Bits((0..elements / 8).map(|_| U8[self.below(5)]).collect()),
        }
    }
}

/// Vectors that own their elements.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    Bits(Vec<u8>),
}

impl Stored {
    pub(crate) fn vectors(&self) -> Vectors<'_> {
        match self {
            Stored::F32(values) => Vectors::F32(values),
            Stored::F16(values) => Vectors::F16(values),
            Stored::I8(values) => Vectors::I8(values),
            Stored::U8(values) => Vectors::U8(values),
            Stored::Bits(values) => Vectors::Bits(values),
        }
    }

    /// The elements as f64; one per bit for bits.
    pub(crate) fn wide(&self) -> Vec<f64> {
        match self {
            Stored::F32(values) => values.iter().map(|value| value.widen()).collect(),
            Stored::F16(values) => values.iter().map(|value| value.widen()).collect(),
            Stored::I8(values) => values.iter().map(|value| value.widen()).collect(),
            Stored::U8(values) => values.iter().map(|value| value.widen()).collect(),
            Stored::Bits(bytes) => {
                bytes.iter().flat_map(|byte| (0..8).map(move |bit| f64::from(byte >> bit & 1))).collect()
            }
        }
    }
}

impl<'a> Vectors<'a> {
    /// Without the first `count` stored values.
    pub(crate) fn skipped(&self, count: usize) -> Vectors<'a> {
        match self {
            Vectors::F32(values) => Vectors::F32(&values[count..]),
            Vectors::F16(values) => Vectors::F16(&values[count..]),
            Vectors::I8(values) => Vectors::I8(&values[count..]),
            Vectors::U8(values) => Vectors::U8(&values[count..]),
            Vectors::Bits(values) => Vectors::Bits(&values[count..]),
        }
    }

    pub(crate) fn to_stored(self) -> Stored {
        match self {
            Vectors::F32(values) => Stored::F32(values.to_vec()),
            Vectors::F16(values) => Stored::F16(values.to_vec()),
            Vectors::I8(values) => Stored::I8(values.to_vec()),
            Vectors::U8(values) => Stored::U8(values.to_vec()),
            Vectors::Bits(values) => Stored::Bits(values.to_vec()),
        }
    }
}

/// A distance by its definition: a plain loop in f64, in the order of the elements. Shares nothing with the kernels.
pub(crate) fn oracle(metric: Metric, q: &[f64], r: &[f64]) -> f64 {
    let sum = |term: &dyn Fn(f64, f64) -> f64| q.iter().zip(r).map(|(q, r)| term(*q, *r)).sum::<f64>();
    match metric {
        Metric::L2 => sum(&|q, r| (q - r).powi(2)).sqrt(),
        Metric::Cosine => 1.0 - sum(&|q, r| q * r) / (sum(&|q, _| q * q).sqrt() * sum(&|_, r| r * r).sqrt()),
        Metric::InnerProduct => -sum(&|q, r| q * r),
        Metric::L1 => sum(&|q, r| (q - r).abs()),
        Metric::Hamming => sum(&|q, r| f64::from(q != r)),
        Metric::Jaccard => {
            let (common, either) = (sum(&|q, r| q * r), sum(&|q, r| q.max(r)));
            if common == 0.0 { 1.0 } else { 1.0 - common / either }
        }
    }
}
