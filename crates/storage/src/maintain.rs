//! Maintenance: removing versions that nobody keeps. How small fragments are written anew is in `optimize.rs`.

use std::sync::Arc;

use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::cleanup::{CleanupPolicy, RemovalStats};

use crate::catalog::TableEntry;
use crate::commit::Committer;
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::snapshot::{Snapshot, guard};
use crate::time::AsOf;

/// Versions that VACUUM looks at one by one in a dry run's listing, at most.
const CANDIDATES_MAX: usize = 1;

/// What VACUUM removed, or would remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VacuumReport {
    /// Versions that can no longer be read.
    pub versions_removed: u64,
    /// Files: data, deletions, indexes, transactions, manifests.
    pub files_removed: u64,
    /// Their bytes.
    pub bytes_removed: u64,
    /// The oldest version that is kept, tagged ones aside.
    pub oldest_kept: u64,
}

impl Database {
    /// Removes versions that were replaced before `keep_since_us` (see
    /// [`Retention::keep_since_us`](crate::Retention::keep_since_us)) and the files that only they name. Tagged versions
    /// stay, and files of writes that may still be under way (younger than 7 days). A dry run counts what a run would
    /// remove.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`](crate::StorageError::Unavailable).
    pub async fn vacuum(&self, entry: &TableEntry, keep_since_us: i64, dry_run: bool) -> Result<VacuumReport> {
        let newest = self.snapshot(entry).await?;
        // Another process may have removed what is remembered here.
        self.past().clear();
        let oldest_kept = match self.at(&newest, &AsOf::Timestamp(keep_since_us), i64::MAX).await {
            Ok(at) => at.version(),
            // Nothing that is kept is older.
            Err(StorageError::Invalid(_) | StorageError::NotFound(_)) => 0,
            Err(error) => return Err(error),
        };
        let policy = CleanupPolicy {
            before_timestamp: None,
            before_version: Some(oldest_kept),
            versions: None,
            delete_unverified: false,
            error_if_tagged_old_versions: false,
            clean_referenced_branches: false,
            delete_rate_limit: None,
        };
        let what = format!("cannot vacuum {}", newest.location());
        let operation = newest.dataset().cleanup(policy);
        let stats = if dry_run {
            guard(&what, operation.with_max_candidate_files(CANDIDATES_MAX).explain()).await?.stats
        } else {
            let removed = guard(&what, operation.execute()).await;
            // What others looked up meanwhile may be gone, also when the work ended in the middle.
            self.past().clear();
            removed?
        };
        // The versions first: what they named is garbage now.
        let collected = self.collect_indexes(entry, dry_run).await?;
        let mut report = report(&stats, oldest_kept);
        report.files_removed += collected.files;
        report.bytes_removed += collected.bytes;
        Ok(report)
    }

    /// The dataset of a snapshot, with commits that follow it and no other.
    pub(crate) async fn open_to_change(
        &self,
        snapshot: &Snapshot,
        entry: &TableEntry,
        verb: &'static str,
    ) -> Result<(Dataset, Arc<Committer>)> {
        let committer = Arc::new(Committer::after(snapshot.dataset().manifest(), self.writer(), verb));
        let builder = DatasetBuilder::from_uri(self.root().lance_uri(&entry.location)?)
            .with_session(self.root().session())
            .with_store_params(self.root().params())
            .with_version(snapshot.version())
            .with_commit_handler(committer.clone());
        let what = format!("cannot open {}", snapshot.location());
        Ok((guard(&what, builder.load()).await?, committer))
    }
}

fn report(stats: &RemovalStats, oldest_kept: u64) -> VacuumReport {
    let files = stats.data_files_removed
        + stats.transaction_files_removed
        + stats.index_files_removed
        + stats.deletion_files_removed
        + stats.old_versions;
    VacuumReport {
        versions_removed: stats.old_versions,
        files_removed: files,
        bytes_removed: stats.bytes_removed,
        oldest_kept,
    }
}
