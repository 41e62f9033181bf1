//! One change of a table as one version: rows that go and rows that come, together or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use lance::Dataset;
use lance::dataset::CommitBuilder;
use lance::dataset::transaction::{Operation, Transaction, UpdateMode};
use lance_core::utils::deletion::DeletionVector;
use lance_table::format::Fragment;
use lance_table::io::deletion::write_deletion_file;
use roaring::RoaringBitmap;

use crate::commit::Committer;
use crate::error::{Result, StorageError};
use crate::idempotency::{Applied, IdempotencyKey, Once};
use crate::index::moved::Copies;
use crate::keys::check_keys;
use crate::snapshot::{Snapshot, guard};
use crate::turn::{Turn, gone};
use crate::write::{Progress, Rows, write_files};

/// What a statement does to a table.
pub struct Change {
    /// The statement's verb, as the history shows it: `UPDATE`, `DELETE`, `MERGE`, ….
    pub operation: &'static str,
    /// Addresses of rows that go, in the turn's snapshot; any order, none twice.
    pub deleted: Vec<u64>,
    /// Rows that come, in the columns of the table.
    pub inserted: Option<SendableRecordBatchStream>,
    /// Which of the new rows are copies of rows that were there; `None` if nobody knows. Indexes cover copies.
    pub copied: Option<Copied>,
    /// Told how far the writing is.
    pub progress: Option<Progress>,
    /// Under its key the statement is applied once. Ask [`Turn::applied`] first.
    pub once: Option<Once>,
}

/// New rows that have some values of rows that were there.
#[derive(Clone, Debug, Default)]
pub struct Copied {
    /// For each new row, in order, where the row stood that it was made from in the turn's snapshot; `None` if it is new.
    pub origins: Vec<Option<u64>>,
    /// The columns whose values are the same in all of those that are copies. Only columns of vectors matter.
    pub columns: Vec<String>,
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The version it made, or the newest one if there was nothing to do.
    pub version: u64,
    /// Rows that came.
    pub inserted: u64,
    /// Rows that went.
    pub deleted: u64,
}

impl Turn {
    /// Makes the change one version; a change of nothing makes none, unless it has to be remembered under a key. When it
    /// fails, or is dropped before the last step, nothing has changed. Cost: the new rows, a read of the key columns where a key must be checked, one
    /// deletion file per fragment that loses rows, two small files for the commit.
    ///
    /// # Errors
    /// [`StorageError::Stale`] if a writer of another process was faster: plan the statement again on a new turn.
    /// [`StorageError::Duplicate`] if a primary key would be there twice, [`StorageError::Invalid`] for rows that do
    /// not fit, [`StorageError::Full`], [`StorageError::Input`] if the rows fail.
    pub async fn commit(self, change: Change) -> Result<Committed> {
        let snapshot = self.snapshot.clone();
        let deletions = Deletions::mark(&snapshot, &change.deleted).await?;
        let mut inserted = 0;
        let mut fragments = vec![];
        let mut pending = None;
        let copied = change.copied.as_ref().filter(|copied| !copied.columns.is_empty());
        if let Some(rows) = change.inserted {
            let rows = Rows::new(rows, snapshot.schema())?.with_keys(&snapshot)?;
            let root = self.database.root();
            let written =
                write_files(root, &self.entry.location, snapshot.dataset().clone(), rows, change.progress).await?;
            if let Some(keys) = &written.keys {
                check_keys(self.database.key_cache(), &snapshot, keys, &deletions.rows).await?;
            }
            if written.rows > 0 {
                inserted = written.rows;
                fragments = written.fragments.clone();
                pending = Some(written);
            }
        }
        let deleted = change.deleted.len() as u64;
        if deleted == 0 && inserted == 0 && change.once.is_none() {
            return Ok(Committed { version: snapshot.version(), inserted, deleted });
        }
        let operation = operation(deletions, fragments, change.operation);
        if let Some(pending) = &pending {
            // From here on a version may name the files, whatever becomes of us.
            pending.keep();
        }
        if let (Some(copied), Some(pending)) = (copied, &pending) {
            self.follow(copied, &pending.fragments).await;
        }
        if let Some(once) = &change.once {
            self.database.note_attempt(&self.entry, &once.key, snapshot.version() + 1).await?;
        }
        let applied = change.once.as_ref().map(Applied::new);
        let version = self.finish(operation, change.operation, applied).await?.version();
        Ok(Committed { version, inserted, deleted })
    }

    /// Has indexes cover the copies, once they are committed.
    async fn follow(&self, copied: &Copied, fragments: &[Fragment]) {
        let Some(indexes) = self.snapshot.table_indexes() else { return };
        match Copies::of_rows(&self.snapshot, &copied.origins, fragments) {
            Some(copies) => indexes.follow(&self.snapshot, &[copies], Some(&copied.columns)).await,
            None => {
                tracing::error!(table = %self.name, "the origins of copied rows are not those of the rows that came")
            }
        }
    }

    /// The count that the statement of this key was answered with, if it was applied before.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the key was used for another statement.
    pub async fn applied(&self, key: &IdempotencyKey) -> Result<Option<u64>> {
        self.database.applied(&self.entry, &self.snapshot, key).await
    }

    /// Commits an operation of Lance and makes its version the newest one known. It is carried to its end also when
    /// the caller stops waiting.
    pub(crate) async fn finish(
        self,
        operation: Operation,
        verb: &'static str,
        applied: Option<Applied>,
    ) -> Result<Snapshot> {
        let committed = tokio::spawn(self.finish_here(operation, verb, applied)).await;
        committed.unwrap_or_else(|error| Err(StorageError::internal("a commit was broken off").with_source(error)))
    }

    async fn finish_here(self, operation: Operation, verb: &'static str, applied: Option<Applied>) -> Result<Snapshot> {
        self.database.check_holds(&self.name, &self.entry).await?;
        let dataset = self.snapshot.dataset();
        let committer = Committer::after(dataset.manifest(), self.database.writer(), verb).applying(applied);
        let committer = Arc::new(committer);
        let transaction = Transaction::new(dataset.version_id(), operation, None);
        let what = format!("cannot commit to {}", self.snapshot.location());
        let builder = CommitBuilder::new(dataset.clone())
            .with_commit_handler(committer.clone())
            .with_max_retries(1)
            .with_skip_auto_cleanup(true);
        let committed = guard(&what, builder.execute(transaction)).await;
        self.adopt(stale_if(committed, &committer)?).await
    }

    /// Makes `dataset` the newest version known, unless the table is gone: then its files go too. One that got another
    /// name in between is not gone.
    pub(crate) async fn adopt(self, dataset: Dataset) -> Result<Snapshot> {
        // A drop between the check and the commit has removed the folder, and our commit made it anew.
        match self.database.catalog().await {
            Ok(catalog) if !catalog.has_table(&self.entry.id) => {
                self.database.remove_files(&self.entry.location).await;
                return Err(gone(&self.name));
            }
            Ok(_) => {}
            // The version is there: to say that the change failed would be wrong.
            Err(error) => {
                tracing::warn!(table = %self.name, %error, "cannot see whether the table was dropped meanwhile")
            }
        }
        let opened = self.database.wrap(dataset, &self.entry.location).await?;
        tracing::info!(table = %self.name, version = opened.version(), "table changed");
        self.database.remember(&self.entry.location, opened.clone());
        Ok(opened)
    }
}

/// The outcome of a commit; a refusal because somebody was faster becomes [`StorageError::Stale`].
pub(crate) fn stale_if<T>(outcome: Result<T>, committer: &Committer) -> Result<T> {
    match outcome {
        Err(StorageError::Conflict(failure)) => Err(StorageError::Stale(failure)),
        Err(error) if committer.is_stale() && !matches!(error, StorageError::Unavailable(_)) => {
            Err(StorageError::stale("another writer committed first; run the statement again").with_source(error))
        }
        outcome => outcome,
    }
}

fn operation(deletions: Deletions, new_fragments: Vec<Fragment>, verb: &str) -> Operation {
    let Deletions { updated, removed, .. } = deletions;
    let deletes = !updated.is_empty() || !removed.is_empty();
    match (deletes, new_fragments.is_empty()) {
        // Without new rows either, it is the version that says that a statement found nothing to do.
        (false, _) => Operation::Append { fragments: new_fragments },
        (true, true) => Operation::Delete {
            updated_fragments: updated,
            deleted_fragment_ids: removed,
            predicate: format!("rows of a {verb}"),
        },
        (true, false) => Operation::Update {
            removed_fragment_ids: removed,
            updated_fragments: updated,
            new_fragments,
            fields_modified: vec![],
            compacted_sstables: vec![],
            fields_for_preserving_frag_bitmap: vec![],
            update_mode: Some(UpdateMode::RewriteRows),
            inserted_rows_filter: None,
            updated_fragment_offsets: None,
        },
    }
}

/// Rows of a snapshot that are marked as deleted, by fragment.
#[derive(Default)]
pub(crate) struct Deletions {
    updated: Vec<Fragment>,
    removed: Vec<u64>,
    /// Offsets that go now, by number of the fragment.
    pub(crate) rows: BTreeMap<u32, RoaringBitmap>,
}

impl Deletions {
    /// Writes the deletion files; no version names them yet.
    async fn mark(snapshot: &Snapshot, addresses: &[u64]) -> Result<Self> {
        let mut deletions = Self::default();
        for address in addresses {
            let fragment = u32::try_from(address >> 32).unwrap_or(u32::MAX);
            let offset = u32::try_from(address & u64::from(u32::MAX)).unwrap_or(u32::MAX);
            if !deletions.rows.entry(fragment).or_default().insert(offset) {
                return Err(StorageError::internal(format!("row {address} was to be deleted twice")));
            }
        }
        for (fragment, rows) in std::mem::take(&mut deletions.rows) {
            deletions.mark_fragment(snapshot, fragment, &rows).await?;
            deletions.rows.insert(fragment, rows);
        }
        Ok(deletions)
    }

    async fn mark_fragment(&mut self, snapshot: &Snapshot, number: u32, rows: &RoaringBitmap) -> Result<()> {
        let what = format!("cannot mark deleted rows in {}", snapshot.location());
        let dataset = snapshot.dataset();
        let no_row = || StorageError::internal(format!("{what}: version {} has no such row", snapshot.version()));
        let at = snapshot.fragments().binary_search_by_key(&number, |fragment| fragment.id).map_err(|_| no_row())?;
        let shape = snapshot.fragments().get(at).ok_or_else(no_row)?;
        let before = snapshot.deleted_rows(number).await?;
        let all = &before | rows;
        let is_live = all.len() == before.len() + rows.len();
        if !is_live || all.max().is_some_and(|last| u64::from(last) >= shape.rows) {
            return Err(no_row());
        }
        if all.len() == shape.rows {
            self.removed.push(u64::from(number));
            return Ok(());
        }
        let base = dataset.branch_location().path;
        let store = guard(&what, dataset.object_store(None)).await?;
        let vector: DeletionVector = all.iter().collect();
        let written = write_deletion_file(&base, u64::from(number), dataset.version_id(), &vector, &store);
        let file = guard(&what, written).await?;
        self.updated.push(Fragment { deletion_file: file, ..shape.metadata.clone() });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
