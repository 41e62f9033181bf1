//! Builds of indexes, which go on by themselves.
//!
//! Builds run one at a time, apart from the statement that asked for them: one that is cancelled or whose process ends has lost nothing
//! but time, and is begun again by whoever next looks.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use operators::buffers::Needs;
use operators::index_build::{BuildControl, SegmentBuild};
use planner::index_spec::IndexSpec;
use storage::{IndexDefinition, Relation, Snapshot, StorageError, TableEntry, TableName};

use crate::definition::now_us;
use crate::{Engine, Error, Result};

/// Rows without a segment from which on one is built for them: fewer are compared in a fraction of a millisecond.
const UNCOVERED_ROWS_MIN: u64 = 4_096;
/// How long after a change a table is looked at: changes come in groups.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How often tables with indexes are looked for among all.
const LOOK_AROUND_AFTER: Duration = Duration::from_secs(60);
/// How long after the start tables with indexes are looked for: a statement that is all a process does is not held up.
const FIND_AFTER: Duration = Duration::from_secs(3);
/// How often a build starts anew because its files were replaced meanwhile.
const CONFLICTS_MAX: usize = 5;

/// The builds of an engine.
#[derive(Default)]
pub(crate) struct Builds {
    /// One at a time: each takes all threads.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the identity of the index.
    running: HashMap<String, Arc<BuildControl>>,
    /// Tables that have an index, as far as this process has seen.
    tables: HashSet<TableName>,
    /// Whether somebody looks, or is about to.
    is_looking: bool,
    /// Whether something was changed since somebody looked.
    is_behind: bool,
    /// When tables with indexes were looked for.
    looked_at: Option<Instant>,
}

impl fmt::Debug for Builds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builds").finish_non_exhaustive()
    }
}

impl Builds {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of a build is done, from 0 to 1; `None` if none runs here.
    pub(crate) fn progress(&self, index: &str) -> Option<f64> {
        self.lock().running.get(index).map(|control| control.progress())
    }

    /// Remembers that a table has an index.
    pub(crate) fn note(&self, table: &TableName) {
        self.lock().tables.insert(table.clone());
    }

    /// Ends a build of an index, if one runs here.
    pub(crate) fn cancel(&self, index: &str) {
        if let Some(control) = self.lock().running.get(index) {
            control.cancel();
        }
    }

    /// The turn to build or merge.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// A build of an index begins, and has ended when the second of these is dropped. The first tells how far it is, and cancels it.
    pub(crate) fn begin<'a>(&'a self, index: &'a str) -> (Arc<BuildControl>, Ended<'a>) {
        let control = Arc::new(BuildControl::new(0));
        self.lock().running.insert(index.to_owned(), Arc::clone(&control));
        (control, Ended { builds: self, index })
    }
}

impl Engine {
    /// Looks before long whether an index has fallen behind, and builds what is missing. Cheap.
    pub(crate) fn look_after_indexes(&self) {
        {
            let mut state = self.builds().lock();
            state.is_behind = true;
            if std::mem::replace(&mut state.is_looking, true) {
                return;
            }
        }
        let engine = self.downgrade();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_AFTER).await;
                // Whoever closes the database ends this.
                let Some(engine) = engine.upgrade() else { return };
                {
                    let mut state = engine.builds().lock();
                    if !std::mem::take(&mut state.is_behind) {
                        state.is_looking = false;
                        return;
                    }
                }
                engine.catch_up_all().await;
            }
        });
    }

    /// Brings the indexes of all tables up to date that are known to have one.
    async fn catch_up_all(&self) {
        let is_due = {
            let mut state = self.builds().lock();
            let is_due = state.looked_at.is_none_or(|at| at.elapsed() > LOOK_AROUND_AFTER);
            if is_due {
                state.looked_at = Some(Instant::now());
            }
            is_due
        };
        // Other processes make indexes too, and tables change their names.
        if is_due && let Err(error) = self.note_indexed_tables().await {
            tracing::warn!(%error, "indexes were not looked for");
        }
        let tables: Vec<TableName> = self.builds().lock().tables.iter().cloned().collect();
        for table in tables {
            if let Err(error) = self.catch_up(&table).await {
                tracing::warn!(%table, %error, "the indexes of a table were not brought up to date; that is tried after the next change");
            }
        }
    }

    /// Looks for indexes that are behind, a while after the start: builds that an earlier process did not end are gone on with.
    pub(crate) fn find_indexes(&self) {
        let engine = self.downgrade();
        tokio::spawn(async move {
            tokio::time::sleep(FIND_AFTER).await;
            if let Some(engine) = engine.upgrade() {
                engine.look_after_indexes();
            }
        });
    }

    async fn note_indexed_tables(&self) -> Result<()> {
        let catalog = self.database().catalog().await?;
        for (schema, entry) in &catalog.schemas {
            for (table, relation) in &entry.relations {
                let Relation::Table(entry) = relation else { continue };
                // A table that cannot be read keeps no other one from its index.
                let Ok(snapshot) = self.database().snapshot(entry).await else { continue };
                if !snapshot.indexes().await.indexes.is_empty() || !snapshot.scalar_indexes().await?.is_empty() {
                    self.builds().note(&TableName::new(schema, table));
                }
            }
        }
        Ok(())
    }

    /// Builds what the indexes of a table lack, if it is worth it.
    async fn catch_up(&self, table: &TableName) -> Result<()> {
        let catalog = self.database().catalog().await?;
        let Some(Relation::Table(entry)) = catalog.relation(table) else {
            self.builds().lock().tables.remove(table);
            return Ok(());
        };
        let snapshot = self.database().snapshot(entry).await?;
        for index in &snapshot.indexes().await.indexes {
            // The column of an index may be gone, or another program may have made it: the others are built all the same.
            if let Err(error) = self.catch_up_index(table, entry, &snapshot, index).await {
                tracing::warn!(%table, index = index.name, %error, "an index was not brought up to date");
            }
        }
        self.catch_up_scalar(table, entry, &snapshot).await
    }

    async fn catch_up_index(
        &self,
        table: &TableName,
        entry: &TableEntry,
        snapshot: &Snapshot,
        index: &IndexDefinition,
    ) -> Result<()> {
        let coverage = snapshot.index_coverage(&index.name).await?;
        if coverage.uncovered_rows >= UNCOVERED_ROWS_MIN {
            self.build_index(table, entry, index, Asked::InBackground).await?;
        }
        self.merge_segments(table, entry, index, &spec_of(index)?).await
    }

    /// Builds segments until an index covers the rows: one, or as many as memory takes. It goes on while enough are for a segment: others
    /// may write all the time.
    ///
    /// # Errors
    /// The index is gone, its build was cancelled, its files cannot be read or written, or one data file alone takes more memory than
    /// there is.
    pub(crate) async fn build_index(
        &self,
        table: &TableName,
        entry: &TableEntry,
        index: &IndexDefinition,
        asked: Asked,
    ) -> Result<()> {
        let spec = spec_of(index)?;
        let _turn = self.builds().turn().await;
        let mut conflicts = 0;
        let mut rows_min = if asked == Asked::ByStatement { 1 } else { UNCOVERED_ROWS_MIN };
        while let Some(build) = self.next_build(entry, index, &spec, rows_min).await? {
            rows_min = UNCOVERED_ROWS_MIN;
            let needs = Needs::of_bytes(build.bytes());
            let state = self.session().state();
            let _claim = match asked {
                Asked::ByStatement => crate::run::claim(&state, &needs).await?,
                // Whoever searches or writes comes first.
                Asked::InBackground => match crate::run::claim_at_once(&state, &needs)? {
                    Some(claim) => claim,
                    None => {
                        self.look_after_indexes();
                        return Ok(());
                    }
                },
            };
            let (control, _ended) = self.builds().begin(&index.id);
            let segment = build.run(control).await?;
            match self.database().publish_segment(entry, index, segment).await {
                Ok(_) => tracing::info!(%table, index = index.name, "a segment was built"),
                // Somebody else was first, or the files are gone: what is missing now is another question.
                Err(StorageError::Conflict(_)) if conflicts < CONFLICTS_MAX => conflicts += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What is to be built next: data files that the index does not cover, as many as half of the memory takes; `None` if there is none.
    async fn next_build(
        &self,
        entry: &TableEntry,
        index: &IndexDefinition,
        spec: &IndexSpec,
        rows_min: u64,
    ) -> Result<Option<SegmentBuild>> {
        let snapshot = self.database().snapshot(entry).await?;
        let open = snapshot.open_index(&index.name).await?;
        let coverage = open.coverage;
        // Another index of its name may have taken its place.
        if coverage.index.id != index.id || coverage.uncovered_rows < rows_min {
            return Ok(None);
        }
        let mut build = SegmentBuild {
            column: coverage.column.clone(),
            snapshot,
            spec: spec.clone(),
            units: vec![],
            // The routing of the largest one was learned from the most rows.
            like: open.segments.into_iter().max_by_key(|segment| segment.rows()),
            threads: self.threads(),
            now_us: now_us(),
        };
        for unit in &coverage.units {
            build.units.push(unit.clone());
            if build.units.len() > 1 && build.bytes() > self.memory_bytes() / 2 {
                build.units.pop();
                break;
            }
        }
        Ok((!build.units.is_empty()).then_some(build))
    }
}

/// Who wants a build.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Somebody waits for it.
    ByStatement,
    /// Nobody does.
    InBackground,
}

/// # Errors
/// Options that this program does not know.
pub(crate) fn spec_of(index: &IndexDefinition) -> Result<IndexSpec> {
    IndexSpec::of_text(&index.options).ok_or_else(|| {
        let name = &index.name;
        Error::unsupported(format!("another program made the index {name}; drop it, or use that program"))
    })
}

/// A build that has ended, however it did.
pub(crate) struct Ended<'a> {
    builds: &'a Builds,
    index: &'a str,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Some(control) = self.builds.lock().running.remove(self.index) {
            control.cancel();
        }
    }
}
