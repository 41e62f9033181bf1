//! The family of lists: vectors by their nearest centroid, the lists near a query read, codes for what is in them.
//!
//! Trained once ([`train`]) and built ([`build_with`]) for each segment, so that segments are merged without encoding ([`merge`]).
//! It takes the least memory per row, is built fastest, bears filters of any selectivity, and reads little of a remote file.

mod assign;
mod build;
mod calibration;
mod cluster;
mod codebook;
mod format;
mod like;
mod merge;
mod routing;
mod search;
mod train;

pub use build::{build, build_with};
pub use like::build_like;
pub use merge::{MergeError, Part, merge};
pub use routing::Routing;
pub use train::train;

use kernels::ElementType;

use crate::build::BuildError;
pub use crate::codes::Code;
use crate::head::damaged;
use crate::index::Index;
use crate::payload::{FormatError, Sections};

/// Lists at most.
pub(crate) const LISTS_MAX: usize = 1 << 20;

/// The [`IvfOptions::score_threshold`] that was published with the score-aware loss (ScaNN).
pub const SCORE_THRESHOLD: f32 = 0.2;

/// How an index of lists is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IvfOptions {
    /// Lists. If absent, as many as keep the hot bytes of a row within `d / 8 + 16` with RaBitQ: of 200 rows up to 384 dimensions, of
    /// more beyond.
    pub lists: Option<usize>,
    /// How the vectors are stored.
    pub code: Code,
    /// Whether each row stands in a second list, chosen so that a query misses both rarely (SOAR): twice the bytes of codes, and fewer
    /// lists to read for the same recall.
    pub spill: bool,
    /// For product codes under cosine and inner product: the similarity of neighbors, as a cosine (0 to 1, exclusively), from which on
    /// errors of the codes count ([`SCORE_THRESHOLD`] as published). With 0 all errors count alike, as they do under L2. Read by the
    /// training alone. It is for codes without a factor per row: ours keep one, which takes the error along the residual away
    /// by itself, and on sentence embeddings the loss then finds a little less at every threshold (benches/lists.rs, `+t=`).
    pub score_threshold: f32,
    /// Bytes that training may take beside the index itself, which is in memory while it is built.
    pub memory_bytes: usize,
}

impl Default for IvfOptions {
    fn default() -> Self {
        IvfOptions {
            lists: None,
            code: Code::Rabitq { bits: 5 },
            spill: false,
            score_threshold: 0.0,
            memory_bytes: 1 << 30,
        }
    }
}

impl IvfOptions {
    /// Whether they go together, and with vectors of such elements.
    fn check(&self, element: ElementType) -> Result<(), BuildError> {
        self.code.check(element)?;
        if self.spill && element == ElementType::Bits {
            return Err(BuildError::Unsupported("bit vectors stand in one list each; leave spill off".into()));
        }
        if !(0.0..1.0).contains(&self.score_threshold) {
            let threshold = self.score_threshold;
            return Err(BuildError::Unsupported(format!(
                "the score threshold is a cosine from 0 to below 1, not {threshold}"
            )));
        }
        Ok(())
    }
}

/// Opens an index by its head.
///
/// # Errors
/// The head is no head of this family, or one of a later version.
pub fn open(head: &[u8]) -> Result<Box<dyn Index>, FormatError> {
    Ok(Box::new(format::Ivf::read(head)?))
}

/// The routing that a segment was built with, for others to be like it and merged with it.
///
/// # Errors
/// The head is no head of this family, or centroids are missing.
pub fn routing_of(sections: &dyn Sections) -> Result<Routing, FormatError> {
    let head = sections.whole(0).ok_or_else(|| damaged("no head"))?;
    let codes = sections.whole(format::CENTROIDS).ok_or_else(|| damaged("no centroids"))?;
    let ivf = format::Ivf::read(head)?;
    Routing::of_segment(ivf.routing, codes, ivf.layout.codebook)
}

#[cfg(test)]
mod tests;
