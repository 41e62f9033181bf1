//! Maintenance: writing small and half-dead fragments anew, and removing versions that nobody keeps.

use std::sync::Arc;

use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::cleanup::{CleanupPolicy, RemovalStats};
use lance::dataset::optimize::{CompactionOptions, IndexRemapMode, compact_files, plan_compaction};

use crate::catalog::{TableEntry, TableName};
use crate::change::stale_if;
use crate::commit::Committer;
use crate::database::Database;
use crate::error::Result;
use crate::snapshot::{Snapshot, guard};
use crate::time::AsOf;

/// Versions that VACUUM looks at one by one in a dry run's listing, at most.
const CANDIDATES_MAX: usize = 1;

/// What OPTIMIZE did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptimizeReport {
    /// Fragments of the table before.
    pub fragments_before: u64,
    /// Fragments of the table afterwards; in a dry run those that are worth rewriting count as one per task.
    pub fragments_after: u64,
    /// The version that was made; `None` in a dry run and if there was nothing to do.
    pub version: Option<u64>,
}

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
    /// Merges small fragments and rewrites those of which a tenth is deleted. Rows keep their order. Older versions
    /// stay readable. Writers of this process wait meanwhile.
    ///
    /// # Errors
    /// [`StorageError::Stale`](crate::StorageError::Stale) if a writer of another process was faster: nothing changed.
    pub async fn optimize(&self, name: &TableName, entry: &TableEntry, dry_run: bool) -> Result<OptimizeReport> {
        let turn = self.turn(name, entry).await?;
        let fragments_before = turn.snapshot().fragments().len() as u64;
        let options = CompactionOptions { index_remap_mode: IndexRemapMode::Compact, ..Default::default() };
        let what = format!("cannot optimize {}", turn.snapshot().location());
        let plan = guard(&what, plan_compaction(turn.snapshot().dataset(), &options)).await?;
        let rewritten: usize = plan.tasks.iter().map(|task| task.fragments.len()).sum();
        if dry_run || plan.tasks.is_empty() {
            let fragments_after = fragments_before - rewritten as u64 + plan.tasks.len() as u64;
            return Ok(OptimizeReport { fragments_before, fragments_after, version: None });
        }
        let (mut dataset, committer) = self.open_to_change(turn.snapshot(), entry, "OPTIMIZE").await?;
        let compacted = guard(&what, compact_files(&mut dataset, options, None)).await;
        stale_if(compacted, &committer)?;
        let optimized = turn.adopt(dataset).await?;
        let fragments_after = optimized.fragments().len() as u64;
        Ok(OptimizeReport { fragments_before, fragments_after, version: Some(optimized.version()) })
    }

    /// Removes versions that were replaced before `keep_since_us` and the files that only they name. Tagged versions
    /// stay, and files of writes that may still be under way (younger than 7 days).
    ///
    /// # Errors
    /// [`StorageError::Unavailable`](crate::StorageError::Unavailable).
    pub async fn vacuum(&self, entry: &TableEntry, keep_since_us: i64, dry_run: bool) -> Result<VacuumReport> {
        let newest = self.snapshot(entry).await?;
        let oldest_kept = match self.at(&newest, &AsOf::Timestamp(keep_since_us), i64::MAX).await {
            Ok(at) => at.version(),
            // Nothing that is kept is older.
            Err(_) => 0,
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
            self.past().clear();
            guard(&what, operation.execute()).await?
        };
        Ok(report(&stats, oldest_kept))
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
