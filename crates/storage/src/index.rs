//! The indexes of tables, as far as files go: which there are, what each of their segments covers at a version, and their bytes.
//! What an index holds and how it is searched, nobody knows here.
//!
//! A segment covers *units*: the vectors of one column in one data file. Data files never change and have unique names, so a
//! segment serves every version that names its files, and none of a row that is dead there: that follows from the deletion files
//! of the version (`coverage.rs`). Rows that are copied with their vectors are followed through row maps.
//!
//! All files are in `<table>.lance/_ann/`, which Lance leaves alone:
//!
//! ```text
//! manifest-00000000000000000007   the list of indexes, segments and maps; the highest counts      manifest.rs
//! <uuid>.seg                      a segment                                                       format.rs, segment.rs
//! <uuid>.map                      where rows came from                                            row_map.rs, moved.rs
//! ```
//!
//! How indexes and segments come and go is in `publish.rs`, what is garbage in `collect.rs`.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use object_store::ObjectStoreExt;
use tokio::time::Instant;

use crate::error::{Result, StorageError};
use crate::numbered::NumberedFiles;
use crate::snapshot::shown;
use crate::store::Root;

pub(crate) mod collect;
mod coverage;
mod covered_segment;
mod deal;
pub(crate) mod disk_cache;
mod format;
pub(crate) mod manifest;
pub(crate) mod moved;
mod publish;
mod row_map;
mod segment;

pub use coverage::{Coverage, OpenIndex, UncoveredChunk, UncoveredUnit, UnitsWithout};
pub use covered_segment::{CoveredSegment, LocalRows};
pub use format::{Section, Tier};
pub use manifest::{IndexDefinition, IndexManifest, SegmentEntry, Unit};
pub use publish::{NewIndex, NewSegment, NewUnit};
pub use segment::{Segment, SegmentCacheFigures};

use manifest::RowMapEntry;
use row_map::RowMap;
use segment::SegmentCache;

/// The folder of our files in a table's folder.
pub(crate) const FOLDER: &str = "_ann";

/// How long what is known of the list of indexes is believed without a look.
const BELIEVED: Duration = Duration::from_secs(1);

/// How long it is used while a look is under way, where a look takes a request.
const USED: Duration = Duration::from_secs(10);

/// How long the numbers known so far suffice to find a newer one: far less than files are kept that were followed by others.
const FOLLOWED: Duration = Duration::from_secs(60);

/// Row maps of a table that are kept in memory.
const MAPS_MAX: usize = 256;

/// The index files of all tables of a database.
#[derive(Default)]
pub(crate) struct Indexes {
    tables: Mutex<HashMap<String, Arc<TableIndexes>>>,
    segments: Arc<SegmentCache>,
}

/// Tables whose lists of indexes are remembered.
const TABLES_MAX: usize = 1024;

impl Indexes {
    /// Those of the table in `location`.
    pub(crate) fn of(&self, root: &Root, location: &str) -> Arc<TableIndexes> {
        let mut tables = self.lock();
        if tables.len() >= TABLES_MAX {
            tables.retain(|_, table| Arc::strong_count(table) > 1);
        }
        let made = || Arc::new(TableIndexes::new(root.clone(), location, Arc::clone(&self.segments)));
        Arc::clone(tables.entry(location.to_owned()).or_insert_with(made))
    }

    /// Frees what a table that is gone has left.
    pub(crate) fn forget(&self, location: &str) {
        self.lock().remove(location);
        self.segments.forget(location, None);
    }

    pub(crate) fn segments(&self) -> &SegmentCache {
        &self.segments
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<TableIndexes>>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The index files of one table.
pub(crate) struct TableIndexes {
    root: Root,
    location: String,
    log: NumberedFiles<IndexManifest>,
    segments: Arc<SegmentCache>,
    state: Mutex<State>,
    /// Whether somebody looks for a newer list.
    looking: AtomicBool,
}

#[derive(Default)]
struct State {
    looked_at: Option<Instant>,
    /// Why the newest list cannot be used.
    problem: Option<Arc<str>>,
    /// Segments that cannot be used, and why.
    refused: HashMap<String, Arc<str>>,
    /// Grows with `refused`.
    refusals: u64,
    maps: HashMap<String, Arc<RowMap>>,
    /// What each index covers at the newest version that was asked for, by the `id` of the index.
    latest: HashMap<String, Arc<Coverage>>,
}

/// What is known of the indexes of a table at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) manifest: Arc<IndexManifest>,
    /// Changes when segments are found damaged.
    pub(crate) refusals: u64,
    /// Why there may be more, or less, than is known.
    pub(crate) problem: Option<Arc<str>>,
}

impl fmt::Debug for TableIndexes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TableIndexes").field("location", &self.location).finish_non_exhaustive()
    }
}

impl TableIndexes {
    fn new(root: Root, location: &str, segments: Arc<SegmentCache>) -> Self {
        let log = NumberedFiles::new(root.clone(), format!("{location}/{FOLDER}"));
        Self {
            root,
            location: location.to_owned(),
            log,
            segments,
            state: Mutex::default(),
            looking: AtomicBool::new(false),
        }
    }

    /// The list for searches: perhaps a second old, and where it cannot be read, none. Cost: nothing within a second of the
    /// last look, then one request that finds nothing; on object stores while the one known is used.
    pub(crate) async fn known(self: &Arc<Self>) -> Known {
        let (age, is_known) = {
            let state = self.lock();
            (state.looked_at.map(|at| at.elapsed()), self.log.known().is_some() || state.problem.is_some())
        };
        match age.filter(|_| is_known) {
            Some(age) if age < BELIEVED => {}
            Some(age) if age < USED && self.root.folder().is_none() => {
                if !self.looking.swap(true, Ordering::AcqRel) {
                    let this = Arc::clone(self);
                    tokio::spawn(async move {
                        this.look(Some(age)).await;
                        this.looking.store(false, Ordering::Release);
                    });
                }
            }
            age => self.look(age).await,
        }
        let manifest = self.log.known().unwrap_or_default();
        let state = self.lock();
        Known { manifest, refusals: state.refusals, problem: state.problem.clone() }
    }

    /// Looks for a newer list.
    async fn look(&self, age: Option<Duration>) {
        let found = match age {
            Some(age) if age < FOLLOWED => self.log.newest().await,
            _ => self.log.looked_for().await,
        };
        let problem = match found {
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(table = self.location, %error, "the list of indexes cannot be read");
                Some(error.to_string().into())
            }
        };
        let mut state = self.lock();
        state.looked_at = Some(Instant::now());
        state.problem = problem;
    }

    /// The newest list there is, for whoever changes it.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`], [`StorageError::Unsupported`], [`StorageError::Unavailable`].
    pub(crate) async fn newest(&self) -> Result<Arc<IndexManifest>> {
        self.log.looked_for().await
    }

    /// After a change of our own: what is known is the newest.
    fn changed(&self) {
        let mut state = self.lock();
        state.looked_at = Some(Instant::now());
        state.problem = None;
    }

    /// The open segment of an entry.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], [`StorageError::Corrupt`], [`StorageError::Unsupported`]: then it is not used any more.
    /// [`StorageError::Unavailable`].
    pub(crate) async fn open(self: &Arc<Self>, entry: &SegmentEntry) -> Result<Arc<Segment>> {
        match self.segments.get_or_open(&self.root, &self.location, entry).await {
            Ok((segment, is_first)) => {
                if is_first {
                    self.settle_later(entry, &segment);
                }
                Ok(segment)
            }
            Err(error) => {
                use StorageError::{Corrupt, NotFound, Unsupported};
                if matches!(error, Corrupt(_) | NotFound(_) | Unsupported(_)) {
                    self.refuse(&entry.id, &error);
                }
                Err(error)
            }
        }
    }

    /// Verifies a mapped segment in the background, or reads it into memory, which verifies it as well.
    fn settle_later(self: &Arc<Self>, entry: &SegmentEntry, segment: &Arc<Segment>) {
        if segment.is_in_memory() {
            return;
        }
        let (this, entry, segment) = (Arc::downgrade(self), entry.clone(), Arc::clone(segment));
        tokio::spawn(async move {
            let settled = match this.upgrade() {
                Some(this) => this.segments.promote(&this.root, &this.location, &entry).await,
                None => return,
            };
            let verified = match settled {
                Ok(true) => return,
                Err(error @ StorageError::Corrupt(_)) => Err(error),
                Ok(false) | Err(_) => segment.verify().await,
            };
            if let Err(error) = verified
                && let Some(this) = this.upgrade()
            {
                this.refuse(segment.id(), &error);
            }
        });
    }

    /// No search uses the segment any more; its rows are compared exactly.
    pub(crate) fn refuse(&self, id: &str, why: &StorageError) {
        tracing::error!(table = self.location, segment = id, error = %why, "a segment of an index cannot be used");
        self.segments.forget(&self.location, Some(id));
        let mut state = self.lock();
        if state.refused.insert(id.to_owned(), why.to_string().into()).is_none() {
            state.refusals += 1;
        }
    }

    /// What an index covers at the newest version that was asked for.
    fn latest(&self, index: &str) -> Option<Arc<Coverage>> {
        self.lock().latest.get(index).cloned()
    }

    /// Keeps what an index covers for the versions to come.
    fn note(&self, coverage: &Arc<Coverage>) {
        let manifest = self.log.known().unwrap_or_default();
        let mut state = self.lock();
        state.latest.retain(|id, known| {
            let is_there = manifest.indexes.iter().any(|index| index.id == *id);
            is_there && (*id != coverage.index.id || known.is_newer_than(coverage))
        });
        state.latest.entry(coverage.index.id.clone()).or_insert_with(|| Arc::clone(coverage));
    }

    /// Why a segment is not used.
    pub(crate) fn refusal(&self, id: &str) -> Option<Arc<str>> {
        self.lock().refused.get(id).cloned()
    }

    /// A row map.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], [`StorageError::Corrupt`], [`StorageError::Unavailable`].
    pub(crate) async fn row_map(&self, entry: &RowMapEntry) -> Result<Arc<RowMap>> {
        if let Some(known) = self.lock().maps.get(&entry.id) {
            return Ok(Arc::clone(known));
        }
        let relative = self.relative(&entry.file());
        let shown = shown(&self.root, &relative);
        let failed = |error| StorageError::from_store(format!("cannot read the row map {shown}"), error);
        let read = async { self.root.store().get(&self.root.path(&relative)).await?.bytes().await };
        let bytes = read.await.map_err(failed)?;
        let map = RowMap::decode(&bytes)
            .map_err(|why| StorageError::corrupt(format!("the row map {shown} cannot be used: {why}")))?;
        self.remember_map(&entry.id, Arc::new(map.clone()));
        Ok(Arc::new(map))
    }

    fn remember_map(&self, id: &str, map: Arc<RowMap>) {
        let mut state = self.lock();
        if state.maps.len() >= MAPS_MAX {
            state.maps.clear();
        }
        state.maps.insert(id.to_owned(), map);
    }

    /// A file of the folder, below the root.
    fn relative(&self, file: &str) -> String {
        format!("{}/{FOLDER}/{file}", self.location)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Microseconds since the epoch, to tell how old files are.
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
