//! Product codes of residuals: the codebook that a table shares, and the codes that a residual gets by it.
//!
//! Residuals are coded at one length: each row keeps the factor that brings its code back to its own length, so a codebook learns
//! directions alone. Codes are the nearest ones, or those of the score-aware loss, which weighs an error along the direction that
//! decides about the nearest neighbors more than one across it. Source: Guo et al., "Accelerating Large-Scale Inference with Anisotropic
//! Vector Quantization" (ICML 2020). We differ: they have no factor per row.

use kernels::{Codewords, Lean, choose_codes};

use super::Code;
use crate::head::{HeadReader, HeadWriter, damaged};
use crate::payload::FormatError;

/// Codewords of every subspace, and how their codes are chosen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Codebook {
    words: Codewords,
    squares: Vec<f32>,
    /// What a squared error along the direction that matters costs, beyond what one across it does.
    lean: f32,
}

/// What choosing codes needs for a while.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    costs: Vec<f32>,
    shares: Vec<f32>,
}

impl Codebook {
    pub(crate) fn new(words: Codewords, lean: f32) -> Codebook {
        Codebook { squares: words.squares(), words, lean }
    }

    /// The code that it is for.
    pub(crate) fn code(&self) -> Code {
        Code::Pq { bits: self.words.entries().ilog2() as u8, dims: self.words.dims() as u8 }
    }

    pub(crate) fn words(&self) -> &Codewords {
        &self.words
    }

    pub(crate) fn into_words(self) -> Codewords {
        self.words
    }

    pub(crate) fn lean(&self) -> f32 {
        self.lean
    }

    /// Chooses the codes of a residual of squared length `d`. `toward`: the direction along which errors count more, of length 1;
    /// that of the residual if absent.
    pub(crate) fn choose(&self, residual: &[f32], toward: Option<&[f32]>, place: &mut Costs, codes: &mut Vec<u8>) {
        codes.resize(self.words.subspaces(), 0);
        let Costs { costs, shares } = place;
        self.words.products(residual, costs);
        if self.lean > 0.0 {
            let length = (residual.len() as f32).sqrt();
            match toward {
                Some(toward) => self.words.products(toward, shares),
                None => {
                    shares.clear();
                    shares.extend(costs.iter().map(|product| product / length));
                }
            }
            let goal = toward.map_or(length, |toward| kernels::dot_f32(residual, toward));
            costs.iter_mut().zip(&self.squares).for_each(|(cost, square)| *cost = square - 2.0 * *cost);
            let lean = Lean { shares, goal, weight: self.lean };
            choose_codes(self.words.entries(), costs, Some(lean), codes);
        } else {
            costs.iter_mut().zip(&self.squares).for_each(|(cost, square)| *cost = square - 2.0 * *cost);
            choose_codes(self.words.entries(), costs, None, codes);
        }
    }

    /// Bytes of the codes of a row.
    pub(crate) fn pack(&self, codes: &[u8], bytes: &mut [u8]) {
        if self.words.entries() == 256 {
            bytes.copy_from_slice(codes);
        } else {
            bytes.iter_mut().zip(codes.as_chunks::<2>().0).for_each(|(byte, [low, high])| *byte = low | high << 4);
        }
    }

    pub(crate) fn write(&self, head: &mut HeadWriter) {
        head.f32(self.lean);
        head.f32s(self.words.values());
    }

    /// Reads a codebook for vectors of `padded` elements: `bits` of each code, `dims` elements that it stands for.
    pub(crate) fn read(
        head: &mut HeadReader<'_>,
        (bits, dims): (u8, u8),
        padded: usize,
    ) -> Result<Codebook, FormatError> {
        let lean = head.f32()?;
        let entries = 1_usize << bits;
        let words = Codewords::new(entries, dims.into(), head.f32s(entries * padded)?);
        match words {
            Some(words) if lean >= 0.0 => Ok(Codebook::new(words, lean)),
            _ => Err(damaged("a codebook that does not fit its code")),
        }
    }
}
