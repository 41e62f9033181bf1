//! Time: which version a moment means, the history of a table, its tags, and going back. What differs between two
//! versions is in `time/changes.rs`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::transaction::Operation;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::catalog::{TableEntry, TableName};
use crate::check::file_names;
use crate::commit::{committed_at_us, operation_of};
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::snapshot::{Snapshot, guard};

mod changes;

pub use changes::TableChanges;

/// Manifests that are read at once for a history.
const READ_AT_ONCE: usize = 16;

/// Versions whose commit times are remembered.
const TIMES_MAX: usize = 1 << 16;

/// Older snapshots that stay open.
const OPEN_MAX: usize = 64;

/// A moment of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AsOf {
    /// The version of this number.
    Version(u64),
    /// The version that a tag names.
    Tag(String),
    /// The last version committed at or before this moment: microseconds since the epoch, UTC.
    Timestamp(i64),
}

impl fmt::Display for AsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version}"),
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Timestamp(at_us) => write!(f, "{}", shown_time(*at_us)),
        }
    }
}

/// One version in the history of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// Its number.
    pub version: u64,
    /// Microseconds since the epoch; grows with each version.
    pub committed_at_us: i64,
    /// The statement's verb, or for a foreign writer Lance's name of what it did.
    pub operation: String,
    /// Live rows.
    pub rows: u64,
    /// The tags that name it, sorted.
    pub tags: Vec<String>,
}

/// What was found out about older versions, which never change.
#[derive(Default)]
pub(crate) struct Past {
    times: Mutex<HashMap<(String, u64), i64>>,
    open: Mutex<HashMap<(String, u64), Snapshot>>,
}

impl Past {
    fn time(&self, key: &(String, u64)) -> Option<i64> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    fn note_time(&self, key: (String, u64), at_us: i64) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() >= TIMES_MAX {
            times.clear();
        }
        times.insert(key, at_us);
    }

    fn snapshot(&self, key: &(String, u64)) -> Option<Snapshot> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn note_snapshot(&self, key: (String, u64), snapshot: Snapshot) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(key, snapshot);
    }

    /// Forgets all, when versions were removed.
    pub(crate) fn clear(&self) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Database {
    /// A table of this database at a moment. `now_us`: the time of the statement. Cost: for a timestamp about
    /// 2·log₂(versions) small requests when nothing is cached; nothing is listed.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown version or tag, [`StorageError::Invalid`] for a time before the first
    /// version that is kept or in the future; the text says which range there is.
    pub async fn snapshot_at(&self, entry: &TableEntry, at: &AsOf, now_us: i64) -> Result<Snapshot> {
        let newest = self.snapshot(entry).await?;
        self.at(&newest, at, now_us).await
    }

    /// The same table or foreign dataset as `newest` at a moment.
    ///
    /// # Errors
    /// As [`Database::snapshot_at`].
    pub async fn at(&self, newest: &Snapshot, at: &AsOf, now_us: i64) -> Result<Snapshot> {
        let version = match at {
            AsOf::Version(version) => *version,
            AsOf::Tag(tag) => tagged(newest, tag).await?,
            AsOf::Timestamp(at_us) => self.version_at(newest, *at_us, now_us).await?,
        };
        if version == newest.version() {
            return Ok(newest.clone());
        }
        let key = (newest.location().to_owned(), version);
        if let Some(known) = self.past().snapshot(&key) {
            return Ok(known);
        }
        match checkout(newest, version).await? {
            Some(dataset) => {
                let snapshot = newest.sibling(dataset).await?;
                self.past().note_snapshot(key, snapshot.clone());
                Ok(snapshot)
            }
            None => Err(StorageError::not_found(format!(
                "{} has no version {version}; {}",
                newest.location(),
                self.range(newest).await
            ))),
        }
    }

    /// The last version committed at or before a moment.
    async fn version_at(&self, newest: &Snapshot, at_us: i64, now_us: i64) -> Result<u64> {
        let refuse = async |why: &str| {
            let range = self.range(newest).await;
            Err(StorageError::invalid(format!("{} is {why} of {}; {range}", shown_time(at_us), newest.location())))
        };
        if at_us >= newest.committed_at_us() {
            if at_us > now_us.max(newest.committed_at_us()) {
                return refuse("in the future").await;
            }
            return Ok(newest.version());
        }
        // Times grow with versions. What was cleaned up lies before everything that is kept, save tagged versions.
        let (mut low, mut high) = (0, newest.version());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.time_of(newest, middle).await? {
                Some(time) if time > at_us => high = middle,
                Some(_) | None => low = middle,
            }
        }
        if low == 0 {
            return refuse("before the first version").await;
        }
        match self.time_of(newest, low).await? {
            Some(_) => Ok(low),
            None => refuse("beyond the retention").await,
        }
    }

    async fn time_of(&self, newest: &Snapshot, version: u64) -> Result<Option<i64>> {
        let key = (newest.location().to_owned(), version);
        if let Some(known) = self.past().time(&key) {
            return Ok(Some(known));
        }
        let Some(dataset) = checkout(newest, version).await? else { return Ok(None) };
        let at_us = committed_at_us(dataset.manifest());
        self.past().note_time(key, at_us);
        Ok(Some(at_us))
    }

    /// Which versions and times there are, in words; empty if that cannot be found out.
    async fn range(&self, newest: &Snapshot) -> String {
        let Ok(versions) = versions(newest).await else { return String::new() };
        let Some(first) = versions.first() else { return String::new() };
        let first_at = match self.time_of(newest, *first).await {
            Ok(Some(at_us)) => shown_time(at_us),
            _ => String::new(),
        };
        format!(
            "there are versions {first} ({first_at}) to {} ({})",
            newest.version(),
            shown_time(newest.committed_at_us())
        )
    }

    /// All versions that are kept, oldest first. Cost: one LIST and a small read per version.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`], [`StorageError::Corrupt`].
    pub async fn history(&self, entry: &TableEntry) -> Result<Vec<VersionInfo>> {
        let newest = self.snapshot(entry).await?;
        let what = format!("cannot read the tags of {}", newest.location());
        let mut tags: HashMap<u64, Vec<String>> = HashMap::new();
        for (tag, contents) in guard(&what, newest.dataset().tags().list()).await? {
            tags.entry(contents.version).or_default().push(tag);
        }
        tags.values_mut().for_each(|names| names.sort());
        let found: Vec<Option<VersionInfo>> = futures::stream::iter(versions(&newest).await?)
            .map(|version| version_info(&newest, version))
            .buffered(READ_AT_ONCE)
            .try_collect()
            .await?;
        let tagged = |mut info: VersionInfo| {
            info.tags = tags.get(&info.version).cloned().unwrap_or_default();
            info
        };
        Ok(found.into_iter().flatten().map(tagged).collect())
    }

    /// Names a version, so that it is kept. Returns the version.
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`], [`StorageError::Invalid`] for a name that no tag can have.
    pub async fn create_tag(&self, entry: &TableEntry, tag: &str, at: Option<&AsOf>, now_us: i64) -> Result<u64> {
        check_tag(tag)?;
        let newest = self.snapshot(entry).await?;
        let version = match at {
            Some(at) => self.at(&newest, at, now_us).await?.version(),
            None => newest.version(),
        };
        let taken = |there: u64| {
            StorageError::already_exists(format!(
                "tag {tag} names version {there} already; DROP TAG it first or use another name"
            ))
        };
        // Only a look before tells a tag of ours whose answer got lost from one that was there.
        match tagged(&newest, tag).await {
            Ok(there) => return Err(taken(there)),
            Err(StorageError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let created = guard("cannot create the tag", newest.dataset().tags().create(tag, version)).await;
        let Err(error) = created else { return Ok(version) };
        match tagged(&newest, tag).await {
            Ok(there) if there == version => Ok(version),
            Ok(there) => Err(taken(there)),
            // The store said that the tag was there, and it is not: another write was under way.
            Err(StorageError::NotFound(_)) if matches!(error, StorageError::Internal(_)) => {
                Err(StorageError::conflict(format!("tag {tag} was not created; run the statement again"))
                    .with_source(error))
            }
            Err(StorageError::NotFound(_)) => Err(error),
            Err(_) => Err(StorageError::unavailable(format!(
                "the store did not say whether tag {tag} was created; look whether it is there before you run the \
                 statement again"
            ))
            .with_source(error)),
        }
    }

    /// Takes a tag away. `false`: it was not there and `if_exists`.
    ///
    /// # Errors
    /// [`StorageError::NotFound`].
    pub async fn drop_tag(&self, entry: &TableEntry, tag: &str, if_exists: bool) -> Result<bool> {
        let newest = self.snapshot(entry).await?;
        match tagged(&newest, tag).await {
            Ok(_) => {}
            Err(StorageError::NotFound(_)) if if_exists => return Ok(false),
            Err(error) => return Err(error),
        }
        guard("cannot drop the tag", newest.dataset().tags().delete(tag)).await?;
        Ok(true)
    }

    /// Makes the rows and columns of an older version the newest ones, as one more version. Returns its number. Cost:
    /// one request for each file of the older version, and the commit.
    ///
    /// # Errors
    /// As [`Database::snapshot_at`]; [`StorageError::NotFound`] if a file of the older version is gone;
    /// [`StorageError::Stale`] if a writer of another process was faster.
    pub async fn restore(&self, name: &TableName, entry: &TableEntry, at: &AsOf, now_us: i64) -> Result<u64> {
        let turn = self.turn(name, entry).await?;
        let older = self.at(turn.snapshot(), at, now_us).await?;
        self.check_whole(entry, &older).await?;
        let version = older.version();
        Ok(turn.finish(Operation::Restore { version }, "RESTORE", None).await?.version())
    }

    /// A VACUUM that was broken off leaves versions of which some files are gone.
    async fn check_whole(&self, entry: &TableEntry, older: &Snapshot) -> Result<()> {
        let folder = self.root().path(&entry.location);
        let names = older.fragments().iter().flat_map(|fragment| file_names(&fragment.metadata));
        let files: Vec<Path> = names.map(|name| name.split('/').fold(folder.clone(), Path::join)).collect();
        let heads = futures::stream::iter(files)
            .map(|file| async move { self.root().store().head(&file).await.map(|_| ()) })
            .buffer_unordered(READ_AT_ONCE)
            .try_collect::<()>();
        heads.await.map_err(|error| {
            let what = format!("version {} of {} cannot be read any more", older.version(), older.location());
            StorageError::from_store(what, error)
        })
    }
}

/// The version that a tag names.
async fn tagged(newest: &Snapshot, tag: &str) -> Result<u64> {
    check_tag(tag)?;
    let what = format!("cannot read the tags of {}", newest.location());
    let tags = guard(&what, newest.dataset().tags().list()).await?;
    match tags.get(tag) {
        Some(contents) => Ok(contents.version),
        None if tags.is_empty() => Err(StorageError::not_found(format!(
            "there is no tag {tag}: {} has none; CREATE TAG makes one",
            newest.location()
        ))),
        None => {
            let mut names: Vec<&String> = tags.keys().collect();
            names.sort();
            let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
            Err(StorageError::not_found(format!("there is no tag {tag}; there are {}", names.join(", "))))
        }
    }
}

fn check_tag(tag: &str) -> Result<()> {
    lance::dataset::refs::check_valid_tag(tag).map_err(|_| {
        StorageError::invalid(format!(
            "{tag:?} cannot be the name of a tag; use letters, digits and . - _, beginning with a letter or a digit"
        ))
    })
}

/// The dataset at a version; `None` if the version is not there.
pub(crate) async fn checkout(newest: &Snapshot, version: u64) -> Result<Option<Dataset>> {
    if version == 0 || version > newest.version() {
        return Ok(None);
    }
    let what = format!("cannot open version {version} of {}", newest.location());
    match guard(&what, newest.dataset().checkout_version(version)).await {
        Ok(dataset) => Ok(Some(dataset)),
        Err(StorageError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The numbers of the versions that are kept, oldest first.
async fn versions(newest: &Snapshot) -> Result<Vec<u64>> {
    let what = format!("cannot list the versions of {}", newest.location());
    let found = guard(&what, newest.dataset().version_refs()).await?;
    let mut versions: Vec<u64> = found.into_iter().map(|found| found.version).collect();
    versions.retain(|version| *version <= newest.version());
    versions.sort_unstable();
    Ok(versions)
}

async fn version_info(newest: &Snapshot, version: u64) -> Result<Option<VersionInfo>> {
    let Some(dataset) = checkout(newest, version).await? else { return Ok(None) };
    let manifest = dataset.manifest();
    let operation = match operation_of(manifest) {
        Some(operation) => operation.to_owned(),
        None => {
            let what = format!("cannot read what made version {version} of {}", newest.location());
            let transaction = guard(&what, dataset.read_transaction()).await?;
            transaction.map_or_else(|| "unknown".to_owned(), |transaction| transaction.operation.name().to_owned())
        }
    };
    let rows = manifest.fragments.iter().map(|fragment| fragment.num_rows().unwrap_or(0) as u64).sum();
    Ok(Some(VersionInfo { version, committed_at_us: committed_at_us(manifest), operation, rows, tags: vec![] }))
}

/// A time as SQL writes it, in UTC.
fn shown_time(at_us: i64) -> String {
    let shown = arrow::temporal_conversions::timestamp_us_to_datetime(at_us);
    shown.map_or_else(|| format!("{at_us} µs"), |time| format!("{time}"))
}

#[cfg(test)]
mod tests;
