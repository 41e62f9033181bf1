//! Why distances could not be computed: shapes and types that do not go together.

use std::fmt;

use crate::isa::Isa;
use crate::metric::Metric;
use crate::vectors::ElementType;

/// Why a distance could not be computed. Nothing was written to the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DistanceError {
    /// A vector needs at least one dimension.
    NoDimensions,
    /// Bit vectors come in whole bytes.
    PartialByte {
        /// The number of bits asked for.
        dim: usize,
    },
    /// The query has another number of stored values than its dimension says.
    QueryLength {
        /// Stored values given (bytes for bits).
        values: usize,
        /// Stored values of one vector.
        values_per_row: usize,
    },
    /// The rows do not divide into whole vectors.
    RowsLength {
        /// Stored values given (bytes for bits).
        values: usize,
        /// Stored values of one vector.
        values_per_row: usize,
    },
    /// The output has another number of places than there are distances.
    OutputLength {
        /// Places given.
        places: usize,
        /// Distances to write.
        distances: usize,
    },
    /// Two sides that go row by row have different numbers of rows.
    PairCount {
        /// Rows of the left side.
        left: usize,
        /// Rows of the right side.
        right: usize,
    },
    /// The metric does not exist for this element type.
    MetricMismatch {
        /// The metric asked for.
        metric: Metric,
        /// The element type given.
        element: ElementType,
    },
    /// Bit vectors can be compared with bit vectors only.
    ElementMismatch {
        /// Element type of the query.
        query: ElementType,
        /// Element type of the rows.
        rows: ElementType,
    },
    /// A selected row lies outside of the block.
    RowOutOfBlock {
        /// The row offset asked for.
        selected: u32,
        /// Rows in the block.
        rows: usize,
    },
    /// This machine does not have the instruction set.
    IsaUnavailable {
        /// The instruction set asked for.
        isa: Isa,
    },
}

impl fmt::Display for DistanceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            DistanceError::NoDimensions => {
                write!(f, "a vector has 0 dimensions; give it at least 1")
            }
            DistanceError::PartialByte { dim } => {
                write!(f, "a bit vector has {dim} dimensions; use a multiple of 8, bits are stored in whole bytes")
            }
            DistanceError::QueryLength { values, values_per_row } => write!(
                f,
                "the query has {values} stored values but one vector has {values_per_row}; embed the query with the model of the column"
            ),
            DistanceError::RowsLength { values, values_per_row } => {
                write!(f, "{values} stored values do not divide into vectors of {values_per_row}; pass whole rows")
            }
            DistanceError::OutputLength { places, distances } => {
                write!(f, "the output has {places} places for {distances} distances; give it one per distance")
            }
            DistanceError::PairCount { left, right } => {
                write!(f, "{left} vectors on the left and {right} on the right; pairs need as many on both sides")
            }
            DistanceError::MetricMismatch { metric, element } => {
                let names = if metric.is_for_bits() { "l2, cosine, inner_product or l1" } else { "hamming or jaccard" };
                write!(f, "{} distance is not defined for {} vectors; use {names}", metric.name(), element.name())
            }
            DistanceError::ElementMismatch { query, rows } => write!(
                f,
                "a query of {} cannot be compared with rows of {}; bit vectors go with bit vectors only",
                query.name(),
                rows.name()
            ),
            DistanceError::RowOutOfBlock { selected, rows } => {
                write!(f, "row {selected} is selected from a block of {rows} rows; select offsets inside the block")
            }
            DistanceError::IsaUnavailable { isa } => write!(
                f,
                "this machine has no {}; use one of: {}",
                isa.name(),
                Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
            ),
        }
    }
}

impl std::error::Error for DistanceError {}
