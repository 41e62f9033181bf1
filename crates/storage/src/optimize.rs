//! OPTIMIZE: small fragments, and those of which a tenth is deleted, are written anew while others write on; a turn is
//! taken for the commit alone.
//!
//! What was written in place of some fragments is right as long as these very fragments are there, with the same data
//! files and the same deletion file; rows that others append do not matter. What is no longer right at the commit is
//! left to VACUUM and rewritten in the next round, at last under the turn, so that the statement ends.
//!
//! The order of rows follows the numbers of the fragments, and new fragments get the highest: rows that were rewritten
//! stand behind those that were not.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::optimize::{
    CompactionOptions, CompactionTask, IndexRemapMode, TaskData, compact_files, plan_compaction,
};
use lance::dataset::transaction::{Operation, RewriteGroup};
use lance_core::utils::tokio::get_num_compute_intensive_cpus;
use lance_table::format::{DataFile, Fragment};
use tokio::sync::OwnedMutexGuard;

use crate::catalog::{TableEntry, TableName};
use crate::change::stale_if;
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::index::moved::Copies;
use crate::scan::{SCAN_BUFFER_BYTES, SCAN_BUFFER_BYTES_MIN, scan_batch_bytes};
use crate::snapshot::{FragmentShape, Snapshot, guard};
use crate::turn::{Turn, gone};

mod bins;

use bins::{Worth, bins};

/// Rounds of one statement, at most; each rewrites what was changed during the one before.
const ROUNDS_MAX: u32 = 32;

/// Rounds during which the writers of this process go on. Those after them hold the turn from plan to commit, so that
/// other processes alone can get in the way.
const ROUNDS_BESIDE_WRITERS: u32 = 3;

/// Tasks that read and write at once, at most: each holds the batches that are under way in memory.
const TASKS_AT_ONCE_MAX: usize = 4;

/// Bytes that a task is given where there are more than one: half of them for reading, half for writing.
const TASK_BYTES: usize = 128 << 20;

/// Rows that a task reads at once: the least and the most.
const BATCH_ROWS: (usize, usize) = (16, 8_192);

/// How often a commit is tried while writers of other processes are faster.
const ATTEMPTS_MAX: u32 = 100;

/// The wait before the second attempt; it grows with each further one, up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(2);

/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// What OPTIMIZE did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptimizeReport {
    /// Fragments of the table before.
    pub fragments_before: u64,
    /// Fragments of the table afterwards; in a dry run those that are worth rewriting count as one per task.
    pub fragments_after: u64,
    /// The last version that was made; `None` in a dry run and if there was nothing to do.
    pub version: Option<u64>,
}

impl Database {
    /// Merges small fragments and rewrites those of which a tenth is deleted. Older versions stay readable. Others
    /// write meanwhile; they wait for the commits, and for the rewriting only if rows of the same
    /// fragments are changed again and again (and where another program has put an index of vectors of Lance on the table).
    /// Rows that are appended meanwhile are not merged. Indexes on columns without vectors are brought up to date. Dropped before its end it leaves files that VACUUM removes.
    ///
    /// Cost: the rows of these fragments are read and written, a few tasks of about a million rows at once; under the
    /// turn the manifest alone, which is also all that a dry run reads.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the table was dropped meanwhile, or if other processes changed rows of the same
    /// fragments in every round: nothing changed. [`StorageError::Full`], [`StorageError::Unavailable`].
    pub async fn optimize(&self, name: &TableName, entry: &TableEntry, dry_run: bool) -> Result<OptimizeReport> {
        self.check_holds(name, entry).await?;
        let snapshot = self.snapshot(entry).await?;
        let fragments_before = snapshot.fragments().len() as u64;
        let plan = Plan::on(snapshot, &HashSet::new(), self.rewrite_bytes()).await?;
        if dry_run || plan.tasks.is_empty() {
            return Ok(OptimizeReport { fragments_before, fragments_after: plan.fragments_after(), version: None });
        }
        let made = if plan.is_plain {
            self.optimize_in_rounds(name, entry, plan).boxed().await
        } else {
            self.optimize_in_turn(name, entry).boxed().await
        };
        let made = match made {
            Ok(made) => made,
            Err(error) => return Err(self.gone_or(name, entry, error).await),
        };
        let version = made.as_ref().map(Snapshot::version);
        if version.is_some() {
            self.catch_up_after(name, entry).await;
        }
        let newest = match made {
            Some(made) => made,
            None => self.snapshot(entry).await?,
        };
        Ok(OptimizeReport { fragments_before, fragments_after: newest.fragments().len() as u64, version })
    }

    /// Has indexes cover the rows where they stand now. What fails is tried again after the next change.
    async fn catch_up_after(&self, name: &TableName, entry: &TableEntry) {
        if let Err(error) = self.update_scalar_indexes(name, entry, 1).await {
            tracing::warn!(table = %name, %error, "the indexes of a table do not cover the rewritten rows yet");
        }
    }

    /// Rewrites and commits until nothing is left to do. Returns the last version made.
    async fn optimize_in_rounds(&self, name: &TableName, entry: &TableEntry, plan: Plan) -> Result<Option<Snapshot>> {
        let mut newest = None;
        let mut written = HashSet::new();
        let mut first = Some(plan);
        for round in 1..=ROUNDS_MAX {
            let permit = match round {
                ..=ROUNDS_BESIDE_WRITERS => None,
                _ => Some(Arc::new(self.sequencers().of(&entry.location).wait().await)),
            };
            let plan = match first.take() {
                Some(plan) => plan,
                None => Plan::on(self.snapshot(entry).await?, &written, self.rewrite_bytes()).await?,
            };
            if plan.tasks.is_empty() {
                return Ok(newest);
            }
            let rewritten = plan.rewrite().await?;
            rewritten.follow().await;
            let landed = self.commit_rewritten(name, entry, &rewritten, permit.as_ref()).await?;
            let is_all = landed.as_ref().is_some_and(|landed| landed.parts == rewritten.parts.len());
            if let Some(landed) = landed {
                newest = Some(landed.snapshot);
                written.extend(landed.files);
            }
            if is_all {
                return Ok(newest);
            }
            tracing::debug!(table = %name, round, "rows were changed while they were rewritten");
        }
        if newest.is_some() { Ok(newest) } else { Err(outrun(name)) }
    }

    /// Commits what is still right, on whatever version is the newest. `None`: nothing is.
    async fn commit_rewritten(
        &self,
        name: &TableName,
        entry: &TableEntry,
        rewritten: &Rewritten,
        permit: Option<&Arc<OwnedMutexGuard<()>>>,
    ) -> Result<Option<Landed>> {
        for attempt in 1..=ATTEMPTS_MAX {
            let turn = match permit {
                Some(permit) => self.turn_with(name, entry, Arc::clone(permit)).await?,
                None => self.turn(name, entry).await?,
            };
            match rewritten.commit(turn).await {
                // The files are there still, and may be right on the version that was faster.
                Err(StorageError::Stale(_)) => tokio::time::sleep((BACKOFF * attempt).min(BACKOFF_MAX)).await,
                other => return other,
            }
        }
        Err(outrun(name))
    }

    /// Lance's own compaction, which takes care of its indexes: all of it under one turn.
    async fn optimize_in_turn(&self, name: &TableName, entry: &TableEntry) -> Result<Option<Snapshot>> {
        for _ in 0..ROUNDS_MAX {
            let turn = self.turn(name, entry).await?;
            let what = format!("cannot optimize {}", turn.snapshot().location());
            let (mut dataset, committer) = self.open_to_change(turn.snapshot(), entry, "OPTIMIZE").await?;
            let compacted = guard(
                &what,
                compact_files(&mut dataset, options(turn.snapshot(), self.rewrite_bytes(), vec![])?, None),
            )
            .await;
            match stale_if(compacted, &committer) {
                Ok(metrics) if metrics.fragments_removed == 0 => return Ok(None),
                Ok(_) => return Ok(Some(turn.adopt(dataset).await?)),
                Err(StorageError::Stale(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(outrun(name))
    }

    /// The error, or that the table is gone: then what was written into its folder goes too.
    pub(crate) async fn gone_or(&self, name: &TableName, entry: &TableEntry, error: StorageError) -> StorageError {
        match self.catalog().await {
            Ok(catalog) if !catalog.has_table(&entry.id) => {
                self.remove_files(&entry.location).await;
                gone(name)
            }
            _ => error,
        }
    }
}

fn outrun(name: &TableName) -> StorageError {
    StorageError::conflict(format!(
        "table {name} was changed by other processes each of the {ROUNDS_MAX} times that it was rewritten; its rows are \
         as they are, run OPTIMIZE again when fewer of them are changed"
    ))
}

/// How files are rewritten with so many bytes of memory: as many tasks as they suffice for, each with a part of them.
fn options(snapshot: &Snapshot, bytes: usize, excluded_fragment_ids: Vec<u32>) -> Result<CompactionOptions> {
    let tasks = tasks_at_once(bytes);
    let buffer = (bytes / tasks / 2).clamp(SCAN_BUFFER_BYTES_MIN, SCAN_BUFFER_BYTES);
    let columns: Vec<String> = snapshot.schema().fields().iter().map(|field| field.name().clone()).collect();
    let row_bytes = usize::try_from(snapshot.row_bytes(&columns)?).unwrap_or(usize::MAX);
    Ok(CompactionOptions {
        index_remap_mode: IndexRemapMode::Compact,
        num_threads: Some(tasks),
        io_buffer_size: Some(buffer as u64 / 2),
        batch_size: Some((scan_batch_bytes(buffer) / row_bytes).clamp(BATCH_ROWS.0, BATCH_ROWS.1)),
        excluded_fragment_ids,
        ..Default::default()
    })
}

fn tasks_at_once(bytes: usize) -> usize {
    (bytes / TASK_BYTES).min(get_num_compute_intensive_cpus()).clamp(1, TASKS_AT_ONCE_MAX)
}

/// True for a table as we make them. Indexes of vectors of Lance, stable row ids and overlays are the work of other
/// programs, and rewriting must keep up with them.
async fn is_plain(snapshot: &Snapshot) -> Result<bool> {
    Ok(!snapshot.dataset().manifest().uses_stable_row_ids()
        && snapshot.fragments().iter().all(|fragment| fragment.metadata.overlays.is_empty())
        && snapshot.has_only_plain_indexes().await?)
}

/// What is worth rewriting in one version.
struct Plan {
    snapshot: Snapshot,
    tasks: Vec<CompactionTask>,
    /// Whether it is a table as we make them.
    is_plain: bool,
    /// Tasks that run at once.
    at_once: usize,
}

impl Plan {
    /// `written`: data files of this very statement, whose fragments are left as they are.
    async fn on(snapshot: Snapshot, written: &HashSet<String>, bytes: usize) -> Result<Self> {
        let is_ours =
            |fragment: &&FragmentShape| fragment.metadata.files.iter().any(|file| written.contains(&file.path));
        let excluded = snapshot.fragments().iter().filter(is_ours).map(|fragment| fragment.id).collect();
        let what = format!("cannot optimize {}", snapshot.location());
        let options = options(&snapshot, bytes, excluded)?;
        let is_plain = is_plain(&snapshot).await?;
        let tasks = match is_plain {
            true => tasks_of(&snapshot, &options),
            false => guard(&what, plan_compaction(snapshot.dataset(), &options)).await?.compaction_tasks().collect(),
        };
        Ok(Self { snapshot, tasks, is_plain, at_once: tasks_at_once(bytes) })
    }

    /// Fragments of the table if each task makes one.
    fn fragments_after(&self) -> u64 {
        let rewritten: usize = self.tasks.iter().map(|task| task.task.fragments.len()).sum();
        (self.snapshot.fragments().len() - rewritten + self.tasks.len()) as u64
    }

    /// Writes the new fragments; no version names them yet.
    async fn rewrite(self) -> Result<Rewritten> {
        let Self { snapshot, tasks, at_once, .. } = self;
        let what = format!("cannot optimize {}", snapshot.location());
        let dataset = snapshot.dataset();
        let parts: Vec<Part> = futures::stream::iter(tasks)
            .map(|task| rewrite_part(dataset, task, &what))
            .buffer_unordered(at_once)
            .try_collect()
            .await?;
        Ok(Rewritten { snapshot: snapshot.clone(), parts })
    }
}

fn tasks_of(snapshot: &Snapshot, options: &CompactionOptions) -> Vec<CompactionTask> {
    let worth =
        Worth { rows: options.target_rows_per_fragment as u64, deleted: options.materialize_deletions_threshold };
    let bins = bins(snapshot.fragments(), worth, |fragment| options.excluded_fragment_ids.contains(&fragment.id));
    let task = |fragments| CompactionTask {
        task: TaskData { fragments },
        read_version: snapshot.version(),
        options: options.clone(),
    };
    bins.into_iter().map(task).collect()
}

async fn rewrite_part(dataset: &Dataset, task: CompactionTask, what: &str) -> Result<Part> {
    let written = guard(what, task.execute(dataset)).await?;
    let part = Part { before: task.task.fragments, after: written.new_fragments };
    let rows = |fragments: &[Fragment]| fragments.iter().map(Fragment::num_rows).sum::<Option<usize>>();
    match (rows(&part.before), rows(&part.after)) {
        (Some(before), after) if after != Some(before) => {
            let after = after.unwrap_or_default();
            Err(StorageError::internal(format!("{what}: {after} rows were written for {before}")))
        }
        _ => Ok(part),
    }
}

/// Fragments that stood side by side in one version, and what was written in their place.
struct Part {
    before: Vec<Fragment>,
    after: Vec<Fragment>,
}

impl Part {
    /// Where the fragments are; `None` if one of them has changed or gone, or another one stands between them.
    fn place_in(&self, fragments: &[FragmentShape]) -> Option<Range<usize>> {
        let first = self.before.first()?.id;
        let start = fragments.binary_search_by_key(&first, |fragment| u64::from(fragment.id)).ok()?;
        let place = start..start + self.before.len();
        let there = fragments.get(place.clone())?;
        let is_same = there.iter().zip(&self.before).all(|(there, before)| holds_same_rows(&there.metadata, before));
        is_same.then_some(place)
    }
}

/// Files never change and have unique names, so their names say what is in them.
fn holds_same_rows(one: &Fragment, other: &Fragment) -> bool {
    let is_same_file = |(one, other): (&DataFile, &DataFile)| {
        one.path == other.path && one.base_id == other.base_id && one.fields == other.fields
    };
    let deletions =
        |fragment: &Fragment| fragment.deletion_file.as_ref().map(|file| (file.read_version, file.id, file.base_id));
    one.id == other.id
        && one.files.len() == other.files.len()
        && one.files.iter().zip(&other.files).all(is_same_file)
        && deletions(one) == deletions(other)
}

/// A part and the places of its fragments in a version.
type Placed<'a> = (Range<usize>, &'a Part);

/// New fragments that no version names yet.
struct Rewritten {
    /// What was rewritten.
    snapshot: Snapshot,
    parts: Vec<Part>,
}

/// What a commit made.
struct Landed {
    snapshot: Snapshot,
    /// How many parts are in it.
    parts: usize,
    /// Their data files.
    files: Vec<String>,
}

impl Rewritten {
    /// Has indexes cover the rows where they stand now. Whatever fails is logged.
    async fn follow(&self) {
        let Some(indexes) = self.snapshot.table_indexes() else { return };
        let mut copies = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let dead = part.before.iter().map(|fragment| async {
                let number = u32::try_from(fragment.id).unwrap_or(u32::MAX);
                self.snapshot.deleted_rows(number).await
            });
            match futures::future::try_join_all(dead).await {
                Ok(dead) => copies.extend(Copies::of_rewrite(&part.before, &dead, &part.after)),
                Err(error) => tracing::warn!(%error, "rows that were rewritten are not followed"),
            }
        }
        indexes.follow(&self.snapshot, &copies, None).await;
    }

    /// Commits the parts that are right in the version of the turn. `None`: none is.
    async fn commit(&self, turn: Turn) -> Result<Option<Landed>> {
        let head = turn.snapshot().clone();
        let right = self.right_in(&head).await?;
        if right.is_empty() {
            return Ok(None);
        }
        let groups = groups(&head, &right);
        let operation = Operation::Rewrite { groups, rewritten_indices: vec![], frag_reuse_index: None };
        let parts = right.len();
        let fragments = right.iter().flat_map(|(_, part)| &part.after);
        let files = fragments.flat_map(|fragment| &fragment.files).map(|file| file.path.clone()).collect();
        let finished = turn.finish(operation, "OPTIMIZE", None).await;
        // Lance puts the change on the newest version, where fragments of others may have our numbers.
        if matches!(finished, Err(StorageError::Invalid(_))) && !head.is_newest().await? {
            return Err(StorageError::stale("another writer committed first; run the statement again"));
        }
        let snapshot = finished?;
        Ok(Some(Landed { snapshot, parts, files }))
    }

    /// The parts that may take their places in `head`, in the order of rows.
    async fn right_in(&self, head: &Snapshot) -> Result<Vec<Placed<'_>>> {
        // Columns that came or went need no new files, so the fragments would not tell.
        if !is_plain(head).await? || self.snapshot.dataset().schema() != head.dataset().schema() {
            return Ok(vec![]);
        }
        let placed = self.parts.iter().filter_map(|part| Some((part.place_in(head.fragments())?, part)));
        let mut placed: Vec<Placed<'_>> = placed.collect();
        placed.sort_by_key(|(place, _)| place.start);
        Ok(placed)
    }
}

/// What takes whose place; new fragments get the next free numbers.
fn groups(head: &Snapshot, right: &[Placed<'_>]) -> Vec<RewriteGroup> {
    let mut number = head.dataset().manifest().max_fragment_id().map_or(0, |last| last + 1);
    let group = |(place, part): &Placed<'_>| {
        let old_fragments = head.fragments()[place.clone()].iter().map(with_rows).collect();
        let new_fragments: Vec<Fragment> =
            part.after.iter().zip(number..).map(|(new, id)| Fragment { id, ..new.clone() }).collect();
        number += new_fragments.len() as u64;
        RewriteGroup { old_fragments, new_fragments }
    };
    right.iter().map(group).collect()
}

/// The fragment with its number of rows, which files of very old writers do not say.
fn with_rows(fragment: &FragmentShape) -> Fragment {
    Fragment { physical_rows: usize::try_from(fragment.rows).ok(), ..fragment.metadata.clone() }
}

#[cfg(test)]
mod tests;
