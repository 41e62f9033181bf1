//! The distances by name, and how one is made from the sums that a kernel returns.
//!
//! The sums themselves live in `scan.rs` and in the files of the instruction sets.

/// A distance. Smaller is closer for every one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Euclidean distance (with the square root), in the units of the elements.
    L2,
    /// `1 - cosine`, in `0.0..=2.0`; NaN when either vector has length zero.
    Cosine,
    /// The negative inner product, so that smaller is closer.
    InnerProduct,
    /// Sum of absolute differences.
    L1,
    /// Number of bits that differ. Bit vectors only.
    Hamming,
    /// `1 - common bits / bits in either`, in `0.0..=1.0`. Bit vectors only.
    /// 1 when no bit is common, two empty sets included: pgvector's meaning.
    Jaccard,
}

impl Metric {
    /// Every metric, in the order in which the manual names them.
    pub const ALL: [Metric; 6] =
        [Metric::L2, Metric::Cosine, Metric::InnerProduct, Metric::L1, Metric::Hamming, Metric::Jaccard];

    /// The name in SQL and in plans.
    pub fn name(self) -> &'static str {
        match self {
            Metric::L2 => "l2",
            Metric::Cosine => "cosine",
            Metric::InnerProduct => "inner_product",
            Metric::L1 => "l1",
            Metric::Hamming => "hamming",
            Metric::Jaccard => "jaccard",
        }
    }

    /// Reads a name, upper or lower case; `euclidean`, `ip`, `dot` and `manhattan` are understood too.
    pub fn parse(name: &str) -> Option<Metric> {
        match name.to_ascii_lowercase().as_str() {
            "l2" | "euclidean" => Some(Metric::L2),
            "cosine" => Some(Metric::Cosine),
            "inner_product" | "ip" | "dot" => Some(Metric::InnerProduct),
            "l1" | "manhattan" => Some(Metric::L1),
            "hamming" => Some(Metric::Hamming),
            "jaccard" => Some(Metric::Jaccard),
            _ => None,
        }
    }

    /// Whether the metric compares bit vectors, and nothing else.
    pub fn is_for_bits(self) -> bool {
        matches!(self, Metric::Hamming | Metric::Jaccard)
    }

    /// What a kernel must add up for this metric.
    pub(crate) fn sum_kind(self) -> SumKind {
        match self {
            Metric::L2 => SumKind::SquaredDifference,
            Metric::Cosine => SumKind::DotAndSquare,
            Metric::InnerProduct => SumKind::Dot,
            Metric::L1 => SumKind::AbsoluteDifference,
            Metric::Hamming => SumKind::DifferentBits,
            Metric::Jaccard => SumKind::CommonBits,
        }
    }

    /// Turns the sums of some rows into distances, in place in `first`.
    ///
    /// `first` and `second`: what [`SumKind`] says, one per row. `query_square`: sum of squares of the query
    /// (number of its bits for bit vectors). Every instruction set comes through here, so a distance has the same
    /// bits on each of them; a NaN is made the one canonical NaN for the same reason.
    pub(crate) fn finish(self, query_square: f64, first: &mut [f64], second: &[f64]) {
        match self {
            Metric::L2 => first.iter_mut().for_each(|sum| *sum = canonical(sum.sqrt())),
            Metric::L1 => first.iter_mut().for_each(|sum| *sum = canonical(*sum)),
            // `0 - x` and not `-x`: an inner product of zero is the distance +0, never -0.
            Metric::InnerProduct => first.iter_mut().for_each(|sum| *sum = canonical(0.0 - *sum)),
            Metric::Cosine => {
                for (sum, row_square) in first.iter_mut().zip(second) {
                    *sum = cosine_distance(*sum, query_square, *row_square);
                }
            }
            Metric::Hamming => {}
            Metric::Jaccard => {
                for (common, row_bits) in first.iter_mut().zip(second) {
                    let either = query_square + *row_bits - *common;
                    *common = if *common == 0.0 { 1.0 } else { 1.0 - *common / either };
                }
            }
        }
    }
}

/// What a kernel adds up, and where it puts the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SumKind {
    /// `first` = sum of `(q - r)²`.
    SquaredDifference,
    /// `first` = sum of `q·r`.
    Dot,
    /// `first` = sum of `q·r`, `second` = sum of `r²`, in one pass over the row.
    DotAndSquare,
    /// `first` = sum of `|q - r|`.
    AbsoluteDifference,
    /// `first` = bits of `q xor r`.
    DifferentBits,
    /// `first` = bits of `q and r`, `second` = bits of `r`.
    CommonBits,
}

/// `1 - dot / sqrt(query_square · row_square)`, clamped to `0..=2`; NaN when a vector has length zero.
///
/// Equal vectors give exactly 0: their dot product and squares are one and the same number `s` (same elements, same
/// order of summation), and `sqrt(s·s)` is `s` in IEEE arithmetic. The clamp takes care of the last bit elsewhere.
/// Squares of f32 elements are at most 1.2e77, so the product overflows only for infinite elements.
fn cosine_distance(dot: f64, query_square: f64, row_square: f64) -> f64 {
    let lengths = (query_square * row_square).sqrt();
    if lengths > 0.0 { canonical((1.0 - dot / lengths).clamp(0.0, 2.0)) } else { f64::NAN }
}

/// The same value, with every NaN replaced by the one NaN of `f64::NAN`.
///
/// On bits, because which NaN a floating-point expression yields is left to the compiler: it turned the plain
/// `if value.is_nan() { f64::NAN } else { value }` into nothing in one place and not in another.
fn canonical(value: f64) -> f64 {
    const INFINITY: u64 = f64::INFINITY.to_bits();
    let bits = value.to_bits();
    let is_nan = bits & !(1 << 63) > INFINITY;
    f64::from_bits(if is_nan { f64::NAN.to_bits() } else { bits })
}
