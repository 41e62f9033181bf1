//! The vertices of a build, in 8 bits per element or as they are if they are bits: every distance between two of them.
//!
//! Distances are squared Euclidean ones of the codes (Hamming and Jaccard for bits): whole numbers, the same on every machine.

use kernels::{BitQuery, CodeLayout, CodeQuery};

/// One vertex, compared with others by number. What walks score with.
#[derive(Clone, Debug)]
pub(super) enum Scorer {
    /// Against scalar codes.
    Codes(CodeQuery),
    /// Against bits.
    Bits(BitQuery),
}

impl Scorer {
    /// Bytes of a record.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Codes(query) => query.layout().bytes(),
            Self::Bits(query) => query.bytes(),
        }
    }

    /// Scores of `records`, smaller is closer. All of them must be in `codes`; if not, all are infinitely far.
    #[inline]
    pub(super) fn scores(&self, codes: &[u8], records: &[u32], out: &mut Vec<f32>) {
        out.resize(records.len(), 0.0);
        let done = match self {
            Self::Codes(query) => query.scores(codes, records, out),
            Self::Bits(query) => query.distances(codes, records, out),
        };
        if done.is_err() {
            debug_assert!(false, "records outside of the codes are asked for");
            out.fill(f32::INFINITY);
        }
    }
}

/// The vertices of a build.
#[derive(Debug)]
pub(super) enum Points {
    /// Of whole 8-bit numbers, as records of `layout`.
    Scalar {
        /// The layout of `codes`.
        layout: CodeLayout,
        /// Elements of a vector.
        dim: usize,
        /// The records.
        codes: Vec<u8>,
    },
    /// Of bits.
    Bits {
        /// Bits of a vector.
        dim: usize,
        /// By Jaccard rather than Hamming.
        jaccard: bool,
        /// The records, of whole words.
        codes: Vec<u8>,
    },
}

impl Points {
    /// The records.
    pub(super) fn codes(&self) -> &[u8] {
        match self {
            Self::Scalar { codes, .. } | Self::Bits { codes, .. } => codes,
        }
    }

    /// Number of vertices.
    pub(super) fn len(&self) -> usize {
        self.codes().len() / self.bytes()
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Scalar { layout, .. } => layout.bytes(),
            Self::Bits { dim, .. } => dim.div_ceil(64) * 8,
        }
    }

    /// The record of a vertex.
    pub(super) fn record(&self, vertex: u32) -> &[u8] {
        &self.codes()[vertex as usize * self.bytes()..][..self.bytes()]
    }

    /// A scorer, to be [`ask`](Self::ask)ed with.
    pub(super) fn scorer(&self) -> Scorer {
        match self {
            Self::Scalar { layout, .. } => Scorer::Codes(CodeQuery::new(*layout)),
            Self::Bits { dim, jaccard, .. } => Scorer::Bits(BitQuery::new(*dim, *jaccard)),
        }
    }

    /// Makes a vertex the query of a scorer. Returns what its scores lack for distances.
    pub(super) fn ask(&self, vertex: u32, scorer: &mut Scorer) -> f32 {
        match scorer {
            Scorer::Codes(query) => {
                query.set_record(self.record(vertex));
                self.norm(vertex)
            }
            Scorer::Bits(query) => {
                query.set(self.record(vertex));
                0.0
            }
        }
    }

    /// The elements of a vertex; none if they are bits.
    pub(super) fn decode(&self, vertex: u32, vector: &mut Vec<f32>) {
        vector.clear();
        if let Self::Scalar { layout, dim, .. } = self {
            vector.resize(*dim, 0.0);
            layout.decode(self.record(vertex), vector);
        }
    }

    /// The squared length of a vertex, or the number of its ones.
    pub(super) fn norm(&self, vertex: u32) -> f32 {
        let record = self.record(vertex);
        match self {
            Self::Scalar { .. } => record.last_chunk::<4>().map_or(0.0, |bytes| f32::from_le_bytes(*bytes)),
            Self::Bits { .. } => record.iter().map(|byte| byte.count_ones()).sum::<u32>() as f32,
        }
    }

    /// Elements of [`column`](Self::column) and [`row`](Self::row).
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::Scalar { dim, .. } | Self::Bits { dim, .. } => *dim,
        }
    }

    /// Writes a vertex as a column of `BytePanels`.
    pub(super) fn column(&self, vertex: u32, column: &mut [u8]) {
        let record = self.record(vertex);
        match self {
            Self::Scalar { dim, .. } => column.copy_from_slice(&record[..*dim]),
            Self::Bits { .. } => {
                for (byte, bits) in record.iter().zip(column.chunks_mut(8)) {
                    bits.iter_mut().enumerate().for_each(|(i, bit)| *bit = byte >> i & 1);
                }
            }
        }
    }

    /// Writes a vertex as a row to multiply with `BytePanels`, and returns what is to be taken from the products.
    pub(super) fn row(&self, vertex: u32, row: &mut [i8]) -> i32 {
        let record = self.record(vertex);
        match self {
            Self::Scalar { dim, .. } => {
                row.iter_mut().zip(&record[..*dim]).for_each(|(value, code)| *value = (*code ^ 0x80) as i8);
                128 * row[..*dim].iter().map(|value| i32::from(*value)).sum::<i32>()
            }
            Self::Bits { .. } => {
                for (byte, bits) in record.iter().zip(row.chunks_mut(8)) {
                    bits.iter_mut().enumerate().for_each(|(i, bit)| *bit = (byte >> i & 1) as i8);
                }
                0
            }
        }
    }

    /// Distances from a vertex with `norm`, by its products with others and their norms.
    pub(super) fn distances(&self, norm: f32, excess: i32, products: &[i32], norms: &[f32], out: &mut [f32]) {
        match self {
            Self::Bits { jaccard: true, .. } => {
                for ((product, other), out) in products.iter().zip(norms).zip(out) {
                    let common = *product as f32;
                    *out = if common == 0.0 {
                        1.0
                    } else {
                        (1.0 - f64::from(common) / f64::from(norm + other - common)) as f32
                    };
                }
            }
            _ => kernels::squared_distances(norm, norms, products, excess, out),
        }
    }
}

/// A neighbor and how far it is, in the order of the distances: of equal ones, the lower number first.
pub(super) fn key(distance: f32, vertex: u32) -> u64 {
    u64::from(distance.max(0.0).to_bits()) << 32 | u64::from(vertex)
}

/// The neighbor of a [`key`].
pub(super) fn vertex(key: u64) -> u32 {
    key as u32
}

/// The distance of a [`key`].
pub(super) fn distance(key: u64) -> f32 {
    f32::from_bits((key >> 32) as u32)
}
