//! The family without structure: the codes of all rows, in their order, all compared with every query.
//!
//! For segments too small for lists, and where every neighbor must have been looked at: what is missed is missed by a bound.

mod build;
mod format;
mod search;

pub use build::build;

pub use crate::codes::Code;
use crate::index::Index;
use crate::payload::FormatError;

/// How a flat index is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlatOptions {
    /// How the vectors are stored; anything but raw, which is the column itself.
    pub code: Code,
}

impl Default for FlatOptions {
    fn default() -> Self {
        FlatOptions { code: Code::Rabitq { bits: 5 } }
    }
}

/// Opens an index by its head.
///
/// # Errors
/// The head is no head of this family, or one of a later version.
pub fn open(head: &[u8]) -> Result<Box<dyn Index>, FormatError> {
    Ok(Box::new(format::Flat::read(head)?))
}

#[cfg(test)]
mod tests;
