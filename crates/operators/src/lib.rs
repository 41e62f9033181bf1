//! How is it run? One file per physical operator, and the table provider over a storage snapshot.
//! Nothing here parses SQL.

pub mod bind;
pub mod buffers;
pub mod change;
pub mod changes;
pub mod cooperate;
pub mod fetch_rows;
pub mod index_build;
mod index_cost;
pub mod index_merge;
mod index_search;
pub mod insert;
pub mod physical;
mod row_buffer;
pub mod scan;
pub mod table;
pub mod text_search;
pub mod vector_search;

use datafusion::error::DataFusionError;
use storage::StorageError;

/// A storage error on its way through DataFusion; the errors of our own plans come back as they were.
fn external(error: StorageError) -> DataFusionError {
    match error {
        StorageError::Input(inner) => *inner,
        error => DataFusionError::External(Box::new(error)),
    }
}
