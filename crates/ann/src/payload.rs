//! The bytes of an index: made by a build, read by a search.

use std::fmt;
use std::ops::Range;

/// How much a search needs of a section at once, and so what a cache keeps first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Whole and always: heads, centroids, the codes of a graph.
    Pinned,
    /// In ranges, by nearly every search: the coarse codes of lists.
    Hot,
    /// In ranges, for few rows of a search: finer codes.
    Warm,
}

/// One part of an index.
#[derive(Clone, Debug)]
pub struct Section {
    /// What a cache keeps first.
    pub tier: Tier,
    /// Its bytes, opaque to all but the family. In a file and in memory they begin at a multiple of 64.
    pub bytes: Vec<u8>,
}

/// An index as bytes. Section 0 is its head, small, with all that opening it needs.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The sections, in the order that the family's `format.rs` gives.
    pub sections: Vec<Section>,
}

/// The bytes of an index, as far as they are at hand.
pub trait Sections: Sync {
    /// Bytes of a section; 0 for one that does not exist.
    fn len(&self, section: usize) -> usize;

    /// A range of a section, or `None` if it is not at hand or lies beyond the end.
    fn get(&self, section: usize, range: Range<usize>) -> Option<&[u8]>;

    /// A whole section.
    fn whole(&self, section: usize) -> Option<&[u8]> {
        self.get(section, 0..self.len(section))
    }
}

/// Sections that are all at hand: in memory, or in a mapped file.
#[derive(Clone, Debug)]
pub struct Resident<T>(pub Vec<T>);

impl<T: AsRef<[u8]> + Sync> Sections for Resident<T> {
    fn len(&self, section: usize) -> usize {
        self.0.get(section).map_or(0, |bytes| bytes.as_ref().len())
    }

    fn get(&self, section: usize, range: Range<usize>) -> Option<&[u8]> {
        self.0.get(section)?.as_ref().get(range)
    }
}

/// Ranges that a search found missing.
#[derive(Debug, Default)]
pub(crate) struct Wants(Vec<(usize, Range<usize>)>);

/// Ranges that are wanted and lie closer than this become one.
const GAP_BYTES: usize = 4_096;

impl Wants {
    pub(crate) fn add(&mut self, section: usize, range: Range<usize>) {
        self.0.push((section, range));
    }

    /// How many were added.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The ranges in order, those that touch or nearly touch made one; `None` if there is none.
    pub(crate) fn merged(mut self) -> Option<Vec<(usize, Range<usize>)>> {
        self.0.sort_unstable_by_key(|(section, range)| (*section, range.start, range.end));
        let mut merged: Vec<(usize, Range<usize>)> = vec![];
        for (section, range) in self.0 {
            match merged.last_mut() {
                Some((last, before)) if *last == section && range.start <= before.end.saturating_add(GAP_BYTES) => {
                    before.end = before.end.max(range.end);
                }
                _ => merged.push((section, range)),
            }
        }
        if merged.is_empty() { None } else { Some(merged) }
    }
}

/// Bytes that are no index, or not one that this program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// A later program wrote it.
    Version {
        /// The version found.
        found: u32,
        /// The latest one that is read.
        latest: u32,
    },
    /// It contradicts itself: what does not fit.
    Damaged(String),
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { found, latest } => {
                write!(
                    f,
                    "the index has format version {found}, this program reads up to {latest}: use a later program or REINDEX"
                )
            }
            Self::Damaged(what) => write!(f, "the index is damaged: {what}; REINDEX makes it anew"),
        }
    }
}

impl std::error::Error for FormatError {}
