//! The family `graph`: a Vamana graph over codes that fit two cache lines, walked from near to nearer.
//!
//! Built by leaves of near vertices (`leaves.rs`), pruned and refined (`link.rs`), every vertex within reach (`reach.rs`). Vectors are
//! turned into a space where all metrics are Euclidean (`space.rs`) and written in few bits (`kernels::CodeLayout`). What effort
//! reaches which recall is measured at the end of the build (`calibrate.rs`), for queries unlike the rows too (`far.rs`), and kept in
//! the head (`format.rs`). Rows far from all others are no vertices but candidates of every search (`outliers.rs`).
//!
//! Floats that hold whole numbers of one byte are kept without loss beside the codes: candidates are compared by them, and their exact
//! distances told (`exact.rs`).
//!
//! Not here: the exact comparison of all other candidates, which is the caller's.

mod build;
mod calibrate;
mod encode;
mod exact;
mod far;
mod format;
mod leaves;
mod linear;
mod link;
mod outliers;
mod points;
mod random;
mod reach;
mod search;
mod source;
mod space;
mod walk;

#[cfg(test)]
mod tests;

pub use build::{GraphOptions, build};
pub use search::{GraphIndex, open};

/// Vertices where walks begin: the middle one, some far apart, some at random.
const ENTRIES: usize = 32;
/// Most elements of a vector.
const MAX_DIM: usize = 32_768;
/// Most neighbors of a vertex.
const MAX_DEGREE: usize = 256;
