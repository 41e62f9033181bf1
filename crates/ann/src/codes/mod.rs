//! Vectors of a list as codes: which there are, what they take, how a vector becomes one.
//!
//! Every code but the raw one stands for the residual `r` of a projected vector to its centroid as `r ≈ a · v`, `v` the values of
//! whole numbers, `a` such that `⟨a · v, r⟩ = ‖r‖²`. Then `⟨a · v, q⟩` estimates `⟨r, q⟩` without bias under a random rotation, and
//! is off by `‖a · v - r‖ · ‖q‖ / √(d - 1)` at one standard deviation. That makes what is ranked by `add + query_add + rescale · ⟨v, q⟩`.
//! Source: Gao & Long, "RaBitQ" (SIGMOD 2024); Gao et al., SIGMOD 2025, for more bits. The values `v` of product codes are codewords
//! (`product.rs`), those of all others points of a grid.

mod product;
mod search;

pub(crate) use product::{Codebook, Costs};
pub(crate) use search::{Hit, Nearest, QueryCodes, Scan};

use std::sync::Arc;

use kernels::{
    BLOCK_ROWS, CodeSums, ElementType, block_bytes, dot_f32, pack_block, pack_planes, plane_stride, quantize,
    unpack_row,
};

use crate::build::BuildError;
use crate::head::{HeadReader, HeadWriter, damaged};
use crate::payload::FormatError;
use crate::space::Geometry;

/// How the vectors of lists are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// As they are: candidates are exact. The one code of bit vectors.
    Raw,
    /// 8 bits per element, all read in every scan.
    Scalar8,
    /// 4 bits per element, all read in every scan.
    Scalar4,
    /// RaBitQ: 1 bit per element for the scan, `bits - 1` (0 to 8) more for the rows that survive it.
    Rabitq {
        /// 1 to 9.
        bits: u8,
    },
    /// Product quantization: each code stands for a few elements at once, by codewords learned from the vectors. All codes are read in
    /// every scan: `bits / dims` bits per element.
    Pq {
        /// 4, looked up in registers (FastScan), or 8, looked up in memory.
        bits: u8,
        /// Elements of a code: 1, 2 or 4 for 4 bits, 2, 4 or 8 for 8 bits.
        dims: u8,
    },
}

impl Code {
    /// Product quantization by codes of 4 or 8 bits, of 2 bits per element.
    pub const fn pq(bits: u8) -> Code {
        Code::Pq { bits, dims: bits / 2 }
    }

    /// Whether such vectors can be stored so.
    pub(crate) fn check(self, element: ElementType) -> Result<(), BuildError> {
        match self {
            Code::Rabitq { bits } if !(1..=9).contains(&bits) => {
                Err(BuildError::Unsupported(format!("RaBitQ takes 1 to 9 bits, not {bits}")))
            }
            Code::Pq { bits, dims } if !matches!((bits, dims), (4, 1 | 2 | 4) | (8, 2 | 4 | 8)) => {
                Err(BuildError::Unsupported(format!(
                    "product codes have 4 bits over 1, 2 or 4 dimensions, or 8 bits over 2, 4 or 8, not {bits} over {dims}"
                )))
            }
            Code::Raw => Ok(()),
            _ if element == ElementType::Bits => {
                Err(BuildError::Unsupported("bit vectors are their own codes; use raw".into()))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn write(self, head: &mut HeadWriter) {
        let (kind, bits) = match self {
            Code::Raw => (0, 0),
            Code::Scalar8 => (1, 8),
            Code::Scalar4 => (2, 4),
            Code::Rabitq { bits } => (3, bits),
            Code::Pq { bits, .. } => (4, bits),
        };
        head.u8(kind);
        head.u8(bits);
        if let Code::Pq { dims, .. } = self {
            head.u8(dims);
        }
    }

    pub(crate) fn read(head: &mut HeadReader<'_>, element: ElementType) -> Result<Code, FormatError> {
        let code = match (head.u8()?, head.u8()?) {
            (0, 0) => Code::Raw,
            (1, 8) => Code::Scalar8,
            (2, 4) => Code::Scalar4,
            (3, bits) => Code::Rabitq { bits },
            (4, bits) => Code::Pq { bits, dims: head.u8()? },
            _ => return Err(damaged("an unknown code")),
        };
        code.check(element).map_err(|error| damaged(&error.to_string()))?;
        Ok(code)
    }
}

/// Where what stands in the bytes of lists of one code.
///
/// The coarse part of a list is read whole: blocks of 32 rows for RaBitQ and product codes of 4 bits (`kernels::pack_block`), rows of
/// `add f32, rescale f32, codes` for scalar codes and product codes of 8 bits, elements for raw ones. The extra part has a row of
/// `add f32, rescale f32, bit planes` for each row of a RaBitQ list with more than one bit.
#[derive(Clone, Debug)]
pub(crate) struct CodeLayout {
    pub(crate) code: Code,
    /// What product codes stand for; of other codes there is none.
    pub(crate) codebook: Option<Arc<Codebook>>,
    pub(crate) geometry: Geometry,
    /// Elements of a projected vector.
    pub(crate) padded: usize,
    /// Bytes of a vector as it is.
    pub(crate) raw_bytes: usize,
}

/// Bytes of `add` and `rescale`.
const FACTOR_BYTES: usize = 8;

/// The largest error at one standard deviation of any row of a list, by `rescale` and the query's length: of the coarse codes, and of
/// the whole ones.
pub(crate) type Spreads = [f32; 2];

impl CodeLayout {
    /// Bits of a row in a block, where the coarse part has blocks and not rows.
    pub(crate) fn block_dim(&self) -> Option<usize> {
        match self.code {
            Code::Rabitq { .. } => Some(self.padded),
            Code::Pq { bits: 4, dims } => Some(4 * (self.padded / usize::from(dims))),
            _ => None,
        }
    }

    /// Bytes of the coarse part of a list.
    pub(crate) fn coarse_bytes(&self, rows: usize) -> usize {
        match self.block_dim() {
            Some(dim) => rows.div_ceil(BLOCK_ROWS) * block_bytes(dim),
            None => rows * self.coarse_row_bytes(),
        }
    }

    /// Bytes of a row of the coarse part, where it has rows and not blocks.
    pub(crate) fn coarse_row_bytes(&self) -> usize {
        match self.code {
            Code::Raw => self.raw_bytes,
            Code::Scalar8 => FACTOR_BYTES + self.padded,
            Code::Scalar4 => FACTOR_BYTES + plane_stride(self.padded, 4),
            Code::Rabitq { .. } => FACTOR_BYTES + self.padded / 8,
            Code::Pq { bits, dims } => FACTOR_BYTES + self.padded / usize::from(dims) * usize::from(bits) / 8,
        }
    }

    /// Bits of a RaBitQ code beyond the first.
    pub(crate) fn extra_bits(&self) -> usize {
        match self.code {
            Code::Rabitq { bits } => usize::from(bits).saturating_sub(1),
            _ => 0,
        }
    }

    /// Bytes of a row of the extra part; 0 if there is none.
    pub(crate) fn extra_row_bytes(&self) -> usize {
        match self.extra_bits() {
            0 => 0,
            bits => FACTOR_BYTES + plane_stride(self.padded, bits),
        }
    }

    /// Bytes of a row by itself: its coarse row (where there are blocks `add`, `rescale`, codes), then its extra row.
    pub(crate) fn record_bytes(&self) -> usize {
        self.coarse_row_bytes() + self.extra_row_bytes()
    }

    /// Writes the record of a row that is not raw.
    pub(crate) fn encode(&self, encoder: &mut Encoder, vector: &[f32], centroid: &[f32], record: &mut [u8]) -> Spreads {
        let residual = &mut encoder.residual;
        residual.clear();
        residual.extend(vector.iter().zip(centroid).map(|(value, centroid)| value - centroid));
        let square = dot_f32(residual, residual);
        let (coarse, extra) = record.split_at_mut(self.coarse_row_bytes());
        match self.code {
            Code::Raw => [0.0; 2],
            Code::Pq { .. } => match &self.codebook {
                Some(codebook) => {
                    [encoder.write_product(codebook, self.geometry, square, (vector, centroid), coarse); 2]
                }
                None => [0.0; 2],
            },
            Code::Scalar8 | Code::Scalar4 => {
                let bits = if self.code == Code::Scalar8 { 8 } else { 4 };
                let spread = encoder.write(self.geometry, bits, square, centroid, coarse);
                let bytes: Vec<u8> = encoder.codes.iter().map(|code| *code as u8).collect();
                match self.code {
                    Code::Scalar8 => coarse[FACTOR_BYTES..].copy_from_slice(&bytes),
                    _ => pack_planes(&bytes, 4, &mut coarse[FACTOR_BYTES..]),
                }
                [spread; 2]
            }
            Code::Rabitq { bits } => {
                let coarse_spread = encoder.write(self.geometry, 1, square, centroid, coarse);
                pack_planes_of_signs(&encoder.codes, &mut coarse[FACTOR_BYTES..]);
                if bits < 2 {
                    return [coarse_spread; 2];
                }
                let spread = encoder.write(self.geometry, u32::from(bits), square, centroid, extra);
                let bytes: Vec<u8> = encoder.codes.iter().map(|code| *code as u8).collect();
                pack_planes(&bytes, usize::from(bits) - 1, &mut extra[FACTOR_BYTES..]);
                [coarse_spread, spread]
            }
        }
    }

    /// Makes a record that no search finds.
    pub(crate) fn exclude(&self, record: &mut [u8]) {
        record.fill(0);
        if let Some(add) = record.get_mut(..4) {
            add.copy_from_slice(&f32::NAN.to_le_bytes());
        }
    }

    /// Appends the parts of a list from the records of its rows.
    pub(crate) fn append_list<'a>(
        &self,
        records: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
        coarse: &mut Vec<u8>,
        extra: &mut Vec<u8>,
    ) {
        let row_bytes = self.coarse_row_bytes();
        let start = coarse.len();
        if let Some(dim) = self.block_dim() {
            coarse.resize(start + self.coarse_bytes(records.len()), 0);
            let mut rows = records.clone().map(|record| {
                let (add, rescale) = factors(record);
                (&record[FACTOR_BYTES..row_bytes], add, rescale)
            });
            for block in coarse[start..].chunks_exact_mut(block_bytes(dim)) {
                pack_block(dim, rows.by_ref().take(BLOCK_ROWS), block);
            }
        } else {
            records.clone().for_each(|record| coarse.extend_from_slice(&record[..row_bytes]));
        }
        records.for_each(|record| extra.extend_from_slice(&record[row_bytes..]));
    }

    /// Reads the record of one row back from the parts of a list, which are as long as this layout says.
    pub(crate) fn read_record(&self, coarse: &[u8], extra: &[u8], row: usize, record: &mut [u8]) {
        let (row_bytes, extra_bytes) = (self.coarse_row_bytes(), self.extra_row_bytes());
        let (coarse_record, extra_record) = record.split_at_mut(row_bytes);
        if let Some(dim) = self.block_dim() {
            let block = &coarse[row / BLOCK_ROWS * block_bytes(dim)..][..block_bytes(dim)];
            let (head, codes) = coarse_record.split_at_mut(FACTOR_BYTES);
            let (add, rescale) = unpack_row(dim, block, row % BLOCK_ROWS, codes);
            head[..4].copy_from_slice(&add.to_le_bytes());
            head[4..].copy_from_slice(&rescale.to_le_bytes());
        } else {
            coarse_record.copy_from_slice(&coarse[row * row_bytes..][..row_bytes]);
        }
        extra_record.copy_from_slice(&extra[row * extra_bytes..][..extra_bytes]);
    }
}

/// Signs as bits: 1 for codes that are not 0.
fn pack_planes_of_signs(codes: &[u16], signs: &mut [u8]) {
    for (codes, byte) in codes.chunks(8).zip(signs) {
        *byte = codes.iter().enumerate().fold(0, |byte, (bit, code)| byte | (*code as u8 & 1) << bit);
    }
}

/// `add` and `rescale` at the start of a row.
pub(crate) fn factors(row: &[u8]) -> (f32, f32) {
    match row.as_chunks::<4>().0 {
        [add, rescale, ..] => (f32::from_le_bytes(*add), f32::from_le_bytes(*rescale)),
        _ => (f32::NAN, f32::NAN),
    }
}

/// What encoding a row needs for a while.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    residual: Vec<f32>,
    codes: Vec<u16>,
    values: Vec<f32>,
    product: Product,
}

/// What encoding by a codebook needs beside.
#[derive(Debug, Default)]
struct Product {
    /// The residual at the length that codebooks are for.
    scaled: Vec<f32>,
    toward: Vec<f32>,
    costs: Costs,
    codes: Vec<u8>,
}

impl Encoder {
    /// Quantizes the residual into `codes`, writes its factors, and returns its spread.
    fn write(&mut self, geometry: Geometry, bits: u32, square: f32, centroid: &[f32], row: &mut [u8]) -> f32 {
        self.codes.resize(self.residual.len(), 0);
        let mut sums = quantize(&self.residual, bits, &mut self.codes);
        // One bit counts as plus or minus one in a scan, not as a half.
        let unit = if bits == 1 { 2.0 } else { 1.0 };
        sums = CodeSums { product: sums.product * unit, square: sums.square * unit * unit };
        let middle = ((1_u32 << bits) - 1) as f32 / 2.0;
        self.values.clear();
        self.values.extend(self.codes.iter().map(|code| (f32::from(*code) - middle) * unit));
        self.write_factors(geometry, sums, (square, unbiased(sums, square)), centroid, row)
    }

    /// Writes the product codes of the residual and their factors, and returns its spread.
    fn write_product(
        &mut self,
        codebook: &Codebook,
        geometry: Geometry,
        square: f32,
        (vector, centroid): (&[f32], &[f32]),
        row: &mut [u8],
    ) -> f32 {
        let Product { scaled, toward, costs, codes } = &mut self.product;
        let lean = codebook.lean();
        scale_to(&self.residual, self.residual.len() as f32, square, scaled);
        // Among the nearest by the inner product are queries that point where the vector does; among those by distance are queries
        // that lie where the residual points, seen from the centroid.
        let leans_to_vector = geometry == Geometry::InnerProduct && lean > 0.0;
        if leans_to_vector {
            scale_to(vector, 1.0, dot_f32(vector, vector), toward);
        }
        codebook.choose(scaled, leans_to_vector.then_some(&**toward), costs, codes);
        codebook.pack(codes, &mut row[FACTOR_BYTES..]);
        self.values.resize(self.residual.len(), 0.0);
        codebook.words().decode(codes, &mut self.values);
        let (values, residual) = (&self.values, &self.residual);
        let sums = CodeSums { product: dot_f32(values, residual), square: dot_f32(values, values) };
        let mut rescale = unbiased(sums, square);
        if leans_to_vector {
            let (along, values_along) = (dot_f32(residual, toward), dot_f32(values, toward));
            let best =
                (sums.product + lean * along * values_along) / (sums.square + lean * values_along * values_along);
            rescale = if best > 0.0 { best } else { rescale };
        }
        self.write_factors(geometry, sums, (square, rescale), centroid, row)
    }

    /// Writes the factors of a residual of squared length `square` that is `rescale · values`, and returns its spread.
    fn write_factors(
        &self,
        geometry: Geometry,
        sums: CodeSums,
        (square, rescale): (f32, f32),
        centroid: &[f32],
        row: &mut [u8],
    ) -> f32 {
        let with_centroid = dot_f32(&self.values, centroid);
        let (add, factor) = match geometry {
            Geometry::Euclidean => (square + 2.0 * rescale * with_centroid, -2.0 * rescale),
            Geometry::InnerProduct => (0.0, -rescale),
        };
        row[..4].copy_from_slice(&add.to_le_bytes());
        row[4..8].copy_from_slice(&factor.to_le_bytes());
        let own = if rescale > 0.0 { (2.0 * sums.product - square / rescale) / rescale } else { sums.square };
        ((sums.square - own).max(0.0) / (self.residual.len().max(2) - 1) as f32).sqrt()
    }
}

/// The factor by which inner products are estimated without bias: `⟨factor · values, residual⟩` is the residual's squared length.
fn unbiased(sums: CodeSums, square: f32) -> f32 {
    if sums.product > 0.0 { square / sums.product } else { 0.0 }
}

/// `vector`, of squared length `square`, scaled to the squared length `goal`; zeros stay zeros.
pub(crate) fn scale_to(vector: &[f32], goal: f32, square: f32, out: &mut Vec<f32>) {
    let scale = if square > 0.0 { (goal / square).sqrt() } else { 0.0 };
    out.clear();
    out.extend(vector.iter().map(|value| value * scale));
}
