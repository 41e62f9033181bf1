//! Indexes on columns that hold no vectors: their statements, and how they keep up with what is written. They are Lance's and a
//! part of their table's versions, so each change of one is a version (`storage`: scalar_index.rs); indexes of vectors are in
//! `indexes.rs`.

use operators::buffers::Needs;
use planner::index_statement::CreateIndex;
use planner::scalar_index::ScalarSpec;
use storage::{NewScalarIndex, ScalarIndex, Snapshot, StorageError, TableEntry, TableName};

use crate::{Answer, Engine, Result, Session};

/// Rows without an index from which on it is brought up to date: fewer are read in a few milliseconds.
const UNCOVERED_ROWS_MIN: u64 = 16_384;

/// The share of a table's rows, one in this many, that must lack besides: each time makes a version, and so a table that only
/// grows has few of them.
const UNCOVERED_SHARE: u64 = 32;

/// The part of the memory of statements that the build of one index takes at most: one in this many.
const MEMORY_SHARE: usize = 2;

impl Engine {
    /// Brings those indexes of a table up to date that lack many rows. What fails is tried again after the next change.
    ///
    /// # Errors
    /// Indexes that cannot be listed.
    pub(crate) async fn catch_up_scalar(
        &self,
        table: &TableName,
        entry: &TableEntry,
        snapshot: &Snapshot,
    ) -> Result<()> {
        let rows_min = UNCOVERED_ROWS_MIN.max(snapshot.row_count() / UNCOVERED_SHARE);
        let mut behind = snapshot.scalar_indexes().await?;
        behind.retain(|index| index.rows_uncovered >= rows_min);
        // They are built one after the other.
        let bytes = |index: &ScalarIndex| snapshot.index_build_bytes(&index.column).unwrap_or(0);
        let Some(largest) = behind.iter().max_by_key(|index| bytes(index)) else { return Ok(()) };
        let session = self.session();
        let _claim = session.claim_index_build(snapshot, &largest.column).await?;
        match self.database().update_scalar_indexes(table, entry, rows_min).await {
            Ok(0) => {}
            Ok(indexes) => tracing::info!(%table, indexes, "indexes were brought up to date"),
            // Somebody else has changed them, or the table is gone.
            Err(StorageError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Session {
    /// Makes the index and waits until all rows are covered. Given up before, there is none.
    pub(crate) async fn create_scalar_index(
        &self,
        create: &CreateIndex,
        table: &TableName,
        entry: &TableEntry,
        spec: ScalarSpec,
    ) -> Result<Answer> {
        let database = self.engine().database();
        let name = create.name.clone().unwrap_or_else(|| format!("{}_{}_idx", table.table, create.column));
        let (column, method) = (create.column.clone(), spec.method.to_owned());
        let new = NewScalarIndex { name, column, method, parameters: spec.parameters };
        let _claim = self.claim_index_build(&database.snapshot(entry).await?, &create.column).await?;
        match database.create_scalar_index(table, entry, new).await {
            Ok(()) => self.engine().builds().note(table),
            Err(StorageError::AlreadyExists(_)) if create.if_not_exists => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Answer::done("CREATE INDEX"))
    }

    /// Builds an index anew, with what it was made with.
    pub(crate) async fn rebuild_scalar_index(
        &self,
        table: &TableName,
        entry: &TableEntry,
        name: &str,
        column: &str,
    ) -> Result<()> {
        let database = self.engine().database();
        let _claim = self.claim_index_build(&database.snapshot(entry).await?, column).await?;
        Ok(database.rebuild_scalar_index(table, entry, name).await?)
    }

    /// Waits for the memory of a build.
    async fn claim_index_build(&self, snapshot: &Snapshot, column: &str) -> Result<crate::memory::Claim> {
        let bytes = usize::try_from(snapshot.index_build_bytes(column)?).unwrap_or(usize::MAX);
        let needs = Needs::of_bytes(bytes.min(self.engine().memory_bytes() / MEMORY_SHARE));
        crate::run::claim(&self.state(), &needs).await
    }
}
