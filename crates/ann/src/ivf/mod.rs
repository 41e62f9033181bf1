//! The family of lists: vectors by their nearest centroid, the lists near a query read, codes for what is in them.
//!
//! Trained once ([`train`]) and built ([`build_with`]) for each segment, so that segments are merged without encoding ([`merge`]).
//! It takes the least memory per row, is built fastest, bears filters of any selectivity, and reads little of a remote file.

mod build;
mod calibration;
mod cluster;
mod format;
mod merge;
mod routing;
mod search;
mod train;

pub use build::{build, build_with};
pub use merge::{MergeError, Part, merge};
pub use routing::Routing;
pub use train::train;

pub use crate::codes::Code;
use crate::head::damaged;
use crate::index::Index;
use crate::payload::{FormatError, Sections};

/// Lists at most.
pub(crate) const LISTS_MAX: usize = 1 << 20;

/// How an index of lists is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IvfOptions {
    /// Lists. If absent, as many as keep the hot bytes of a row within `d / 8 + 16` with RaBitQ: of 200 rows up to 384 dimensions, of
    /// more beyond.
    pub lists: Option<usize>,
    /// How the vectors are stored.
    pub code: Code,
    /// Bytes that training may take beside the index itself, which is in memory while it is built.
    pub memory_bytes: usize,
}

impl Default for IvfOptions {
    fn default() -> Self {
        IvfOptions { lists: None, code: Code::Rabitq { bits: 5 }, memory_bytes: 1 << 30 }
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
    Routing::of_segment(format::Ivf::read(head)?.routing, codes)
}

#[cfg(test)]
mod tests;
