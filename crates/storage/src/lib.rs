//! Which bytes are in which version: a database root on local disk, on an S3-compatible store or in memory, its
//! catalog, and its tables as Lance datasets behind our own types.
//!
//! No other crate names Lance or an object store. What a distance is, nobody knows here; SQL neither.

#![cfg_attr(
    test,
    allow(clippy::single_range_in_vec_init, reason = "a table of one fragment is made from one range of ids")
)]

mod append;
mod catalog;
mod change;
mod check;
mod checksums;
mod columns;
mod commit;
mod database;
mod durable;
mod error;
#[cfg(test)]
mod faults;
mod filter;
#[cfg(test)]
mod fixtures;
mod idempotency;
mod index;
mod keys;
mod location;
mod maintain;
mod map;
mod numbered;
mod optimize;
mod probe;
mod registry;
mod retention;
mod s3;
mod sample;
mod scalar_index;
mod scan;
mod schema_change;
mod secret;
mod selection;
mod snapshot;
mod store;
mod text_search;
mod time;
mod turn;
mod users;
mod vectors;
mod write;

pub use catalog::{
    Catalog, CreateMode, DEFAULT_SCHEMA, DropSchema, ExternalTable, Relation, SchemaEntry, TableDefinition, TableEntry,
    TableName, ViewEntry,
};
pub use change::{Change, Committed, Copied};
pub use check::{CheckReport, Finding, FindingStatus};
pub use checksums::ChecksumFigures;
pub use database::{Database, OpenOptions};
pub use error::{Failure, Result, Source, StorageError};
pub use idempotency::{IdempotencyKey, Once};
pub use index::{
    Coverage, CoveredSegment, IndexDefinition, IndexManifest, LocalRows, NewIndex, NewSegment, NewUnit, OpenIndex,
    Section, Segment, SegmentCacheFigures, SegmentEntry, Tier, UncoveredChunk, UncoveredUnit, Unit, UnitsWithout,
};
pub use keys::can_be_key;
pub use maintain::VacuumReport;
pub use optimize::OptimizeReport;
pub use retention::Retention;
pub use roaring::RoaringBitmap;
pub use scalar_index::{NewScalarIndex, ScalarIndex};
pub use scan::{ROW_ADDRESS, SCAN_BUFFER_BYTES, SCAN_BUFFER_BYTES_MIN, ScanPartition, ScanRequest, scan_batch_bytes};
pub use schema_change::NewDefault;
pub use secret::Secret;
pub use selection::{Selected, Selection, SelectionRequest};
pub use snapshot::Snapshot;
pub use text_search::Fit;
pub use time::{AsOf, TableChanges, VersionInfo};
pub use turn::Turn;
pub use users::{Role, UserChange, UserEntry};
pub use vectors::{CacheFigures, VectorChunk, VectorChunkRef};
pub use write::{Progress, WriteProgress, storable_schema};
