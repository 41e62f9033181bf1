//! How near is a query to vectors written in 2, 4 or 8 bits per element, or to bit vectors, at scattered places?
//!
//! A *record* is a whole number of cache lines: the codes of one vector, its step and its squared norm, so that a
//! visit of a vertex costs these lines and no other. Scans of many codes in a row are not here.

mod bits;
mod scalar;

pub use bits::BitQuery;
pub use scalar::{CodeLayout, CodeQuery};

use crate::isa::Present;

/// Why records could not be compared with a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeError {
    /// A record is asked for that is not there.
    RecordOutOfRange {
        /// The record asked for.
        record: u32,
        /// Records that are there.
        records: usize,
    },
    /// There are not as many places for distances as records asked for.
    PlaceCount {
        /// Places given.
        places: usize,
        /// Records asked for.
        records: usize,
    },
}

impl std::fmt::Display for CodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RecordOutOfRange { record, records } => {
                write!(f, "record {record} is asked for and there are {records}; ask for one of them")
            }
            Self::PlaceCount { places, records } => {
                write!(f, "{places} places are given for the distances of {records} records; give one for each")
            }
        }
    }
}

impl std::error::Error for CodeError {}

/// Makes sure that every record asked for is there, and has its place. What the kernels' safety rests on.
fn check(codes: &[u8], record_bytes: usize, records: &[u32], places: usize) -> Result<(), CodeError> {
    if records.len() != places {
        return Err(CodeError::PlaceCount { places, records: records.len() });
    }
    let present = codes.len() / record_bytes.max(1);
    match largest(Present::chosen(), records) {
        record if record as usize >= present && !records.is_empty() => {
            Err(CodeError::RecordOutOfRange { record, records: present })
        }
        _ => Ok(()),
    }
}

crate::compiled::compiled_for_each! {
    fn largest(records: &[u32]) -> u32 = largest_plain
}

#[inline(always)]
fn largest_plain(records: &[u32]) -> u32 {
    records.iter().fold(0, |largest, record| largest.max(*record))
}
