//! Which rows may be nearest?
//!
//! The families of indexes for approximate nearest neighbors behind one trait, [`Index`]: built over the vectors of a
//! segment ([`Rows`]) into sections of bytes ([`Payload`]), searched over those bytes ([`Sections`]) for candidates, which the
//! caller compares exactly. A search that lacks bytes says which ones it wants.
//!
//! No Arrow, no file, no clock, no tokio: storage brings the bytes, the operators bring queries and filters.
//! Builds are deterministic for a seed, whatever the number of threads; they report progress and can be cancelled.

mod bitmap;
mod build;
mod codes;
pub mod flat;
pub mod graph;
mod head;
mod index;
pub mod ivf;
mod payload;
mod sample;
mod space;
#[cfg(test)]
mod testing;
mod truth;

pub use bitmap::RowSet;
pub use build::{BuildError, Control, InMemory, Rows};
pub use index::{Candidate, Effort, Found, Index, Request, Step, Work};
pub use payload::{FormatError, Payload, Resident, Section, Sections, Tier};
