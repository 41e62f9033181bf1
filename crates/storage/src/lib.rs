//! Which bytes are in which version: a database root on local disk, on an S3-compatible store or in memory, its
//! catalog, and its tables as Lance datasets behind our own types.
//!
//! No other crate names Lance or an object store. What a distance is, nobody knows here; SQL neither.

#![cfg_attr(
    test,
    allow(clippy::single_range_in_vec_init, reason = "a table of one fragment is made from one range of ids")
)]

mod catalog;
mod database;
mod error;
mod filter;
#[cfg(test)]
mod fixtures;
mod location;
mod registry;
mod s3;
mod scan;
mod snapshot;
mod store;
mod vectors;
mod write;

pub use catalog::{
    Catalog, CreateMode, DEFAULT_SCHEMA, DropSchema, ExternalTable, Relation, SchemaEntry, TableDefinition, TableEntry,
    TableName, ViewEntry,
};
pub use database::{Database, OpenOptions};
pub use error::{Failure, Result, Source, StorageError};
pub use scan::{ROW_ADDRESS, ScanPartition, ScanRequest};
pub use snapshot::Snapshot;
pub use vectors::{VectorCacheFigures, VectorChunk, VectorChunkRef};
pub use write::{Progress, WriteProgress, storable_schema};
