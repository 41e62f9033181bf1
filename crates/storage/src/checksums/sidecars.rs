//! Writing, finding, remembering and removing sidecars, with as few requests as can be.
//!
//! | what | requests |
//! |---|---|
//! | write the sidecar of a file | 1 PUT; if the name was taken: + 1 GET, and + 1 PUT if by another content |
//! | find the sidecar of a file that this process wrote or read before | 0 |
//! | find it for the first time | 1 GET, at the same time as the file's own |
//! | bytes do not match the sidecar found | + 1 GET, 1 LIST and 1 GET for each other sidecar |
//! | remove the sidecars of a batch of files | 1 DELETE each (1 for 1000 on S3), 1 LIST for each table in the batch |

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::OnceCell;

use super::format::Sums;
use super::layout::{Layout, TableFile};

/// Bytes of sums that are remembered: those of half a terabyte of files.
const CACHE_BYTES: usize = 32 << 20;

/// What one entry of the cache costs beside its sums.
const ENTRY_BYTES: usize = 320;

/// How often a sidecar is written when the store's answers are lost.
const ATTEMPTS_MAX: u32 = 3;

/// The wait before the second attempt; it grows with each further one.
const BACKOFF: Duration = Duration::from_millis(20);

/// Other sidecars of one file that are looked at: as many contents raced for one name.
const OTHERS_MAX: usize = 64;

/// What is known about a file's sums.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// A sidecar was read, or the file was written by this process.
    Sums(Arc<Sums>),
    /// There was none when it was looked for, but the file may have been written since.
    Absent,
    /// There is none: another program wrote the file.
    Foreign,
    /// There is one that cannot be used, for this reason.
    Unusable(Arc<str>),
}

/// All sidecars of a file.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    /// Those that can be read.
    pub(crate) sums: Vec<Arc<Sums>>,
    /// Those that cannot, and why.
    pub(crate) unusable: Vec<String>,
}

impl Candidates {
    /// True if the file has no sidecar at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.sums.is_empty() && self.unusable.is_empty()
    }
}

/// The sidecars in one store.
#[derive(Clone, Debug)]
pub(crate) struct Sidecars {
    store: Arc<dyn ObjectStore>,
    cache: Arc<Cache>,
}

impl Sidecars {
    pub(super) fn new(store: Arc<dyn ObjectStore>, cache: Arc<Cache>) -> Self {
        Self { store, cache }
    }

    /// Makes the sums of a content of `file` durable. Contents that raced for the name stay side by side.
    pub(super) async fn write(&self, file: &TableFile<'_>, sums: &Sums) -> object_store::Result<()> {
        let (path, payload) = (file.sidecar()?, PutPayload::from(sums.encode()));
        let mut attempt = 0;
        loop {
            attempt += 1;
            let options = PutOptions { mode: PutMode::Create, ..Default::default() };
            let error = match self.store.put_opts(&path, payload.clone(), options).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. }) {
                match self.store.get(&path).await {
                    // Ours, whose answer was lost, or that of the same content.
                    Ok(found) => match Sums::decode(&found.bytes().await?) {
                        Ok(there) if there.is_same_content(sums) => return Ok(()),
                        _ => return self.write_other(file, sums).await,
                    },
                    // Some stores say so when two writers met and neither won.
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            if attempt >= ATTEMPTS_MAX || !is_worth_retrying(&error) {
                return Err(error);
            }
            tracing::warn!(%path, attempt, %error, "sidecar write unclear, trying again");
            tokio::time::sleep(BACKOFF * attempt).await;
        }
    }

    /// Writes a sidecar whose name carries the sums: whoever else writes it writes the same bytes.
    pub(super) async fn write_other(&self, file: &TableFile<'_>, sums: &Sums) -> object_store::Result<()> {
        let path = file.other(&sums.name())?;
        self.store.put(&path, sums.encode().into()).await.map(|_| ())
    }

    /// What is known about the sums of the file at `location`, after one GET at most. Calls at once share it.
    pub(super) async fn find(&self, location: &Path, file: &TableFile<'_>) -> object_store::Result<Found> {
        let cell = self.cache.cell(location);
        let found = cell.get_or_try_init(|| async {
            let found = match self.read(&file.sidecar()?).await? {
                None => Found::Absent,
                Some(sidecar) => found_in(sidecar),
            };
            self.cache.charge(&found);
            Ok::<_, Error>(found)
        });
        found.await.cloned()
    }

    /// As [`Sidecars::find`] when the file is known to be there: its sidecar was written before it. Cost: one more GET
    /// for the first read of a file that has none.
    pub(super) async fn confirm(&self, location: &Path, file: &TableFile<'_>) -> object_store::Result<Found> {
        let found = match self.find(location, file).await? {
            Found::Absent => self.read(&file.sidecar()?).await?.map_or(Found::Foreign, found_in),
            found => return Ok(found),
        };
        self.cache.set(location, found.clone());
        Ok(found)
    }

    /// The sidecar of the content that was first, from the store, if it can be used.
    pub(crate) async fn first(&self, file: &TableFile<'_>) -> object_store::Result<Option<Arc<Sums>>> {
        Ok(self.read(&file.sidecar()?).await?.and_then(Result::ok))
    }

    /// All sidecars of a file, from the store.
    pub(crate) async fn all(&self, file: &TableFile<'_>) -> object_store::Result<Candidates> {
        let mut paths = vec![file.sidecar()?];
        let mut listed = self.store.list(Some(&file.others()?));
        while let Some(meta) = listed.try_next().await? {
            if paths.len() > OTHERS_MAX {
                tracing::warn!(file = file.shown(), "a file has too many sidecars, some are not looked at");
                break;
            }
            paths.push(meta.location);
        }
        let mut all = Candidates::default();
        for path in paths {
            match self.read(&path).await? {
                None => {}
                Some(Ok(sums)) => all.sums.push(sums),
                Some(Err(reason)) => all.unusable.push(reason),
            }
        }
        Ok(all)
    }

    /// Remembers the sums of a file.
    pub(super) fn remember(&self, location: &Path, sums: Arc<Sums>) {
        self.cache.set(location, Found::Sums(sums));
    }

    /// Forgets what is known about a file.
    pub(super) fn forget(&self, location: &Path) {
        self.cache.forget(location);
    }

    /// Removes the sidecars of files that are gone. What cannot be removed only wastes space.
    pub(super) async fn remove(&self, layout: &Layout, gone: &[Path]) {
        let files: Vec<TableFile<'_>> = gone.iter().filter_map(|path| layout.file(path)).collect();
        let mut folders = HashSet::new();
        let mut tables = HashSet::new();
        let mut sidecars: Vec<Path> = Vec::with_capacity(files.len());
        for file in files.iter().filter(|file| !file.is_hint()) {
            sidecars.extend(file.sidecar());
            folders.extend(file.others().map(String::from));
            tables.extend(file.others_of_table());
        }
        for table in tables {
            let mut listed = self.store.list(Some(&table));
            while let Some(Ok(meta)) = listed.next().await {
                let folder = meta.location.as_ref().rsplit_once('/').map(|(folder, _)| folder);
                if folder.is_some_and(|folder| folders.contains(folder)) {
                    sidecars.push(meta.location);
                }
            }
        }
        let paths = futures::stream::iter(sidecars.into_iter().map(Ok)).boxed();
        let mut removed = self.store.delete_stream(paths);
        while let Some(one) = removed.next().await {
            match one {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => tracing::warn!(%error, "a sidecar could not be removed; it only wastes space"),
            }
        }
    }

    async fn read(&self, path: &Path) -> object_store::Result<Option<Result<Arc<Sums>, String>>> {
        let bytes = match self.store.get(path).await {
            Ok(found) => found.bytes().await?,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let sums = Sums::decode(&bytes).map(Arc::new);
        Ok(Some(sums.map_err(|reason| format!("its checksum file {path} cannot be used: {reason}"))))
    }
}

fn found_in(sidecar: Result<Arc<Sums>, String>) -> Found {
    match sidecar {
        Ok(sums) => Found::Sums(sums),
        Err(reason) => Found::Unusable(reason.into()),
    }
}

fn is_worth_retrying(error: &Error) -> bool {
    !matches!(error, Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::InvalidPath { .. })
        && !matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
        && !error.to_string().contains("No space left on device")
}

/// What is known about files, up to [`CACHE_BYTES`]: two generations, of which the older is dropped when the younger
/// has grown to half of that.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Path, Arc<OnceCell<Found>>>,
    old: HashMap<Path, Arc<OnceCell<Found>>>,
    young_bytes: usize,
}

impl Cache {
    /// The place of a file; calls at once get the same one.
    fn cell(&self, location: &Path) -> Arc<OnceCell<Found>> {
        let mut generations = self.lock();
        if let Some(cell) = generations.young.get(location) {
            return cell.clone();
        }
        let cell = generations.old.remove(location).unwrap_or_default();
        let bytes = ENTRY_BYTES + cell.get().map_or(0, memory_bytes);
        generations.insert(location, cell.clone(), bytes);
        cell
    }

    fn set(&self, location: &Path, found: Found) {
        let bytes = ENTRY_BYTES + memory_bytes(&found);
        let mut generations = self.lock();
        generations.old.remove(location);
        generations.insert(location, Arc::new(OnceCell::new_with(Some(found))), bytes);
    }

    fn charge(&self, found: &Found) {
        let mut generations = self.lock();
        generations.young_bytes += memory_bytes(found);
        generations.age();
    }

    fn forget(&self, location: &Path) {
        let mut generations = self.lock();
        generations.young.remove(location);
        generations.old.remove(location);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn insert(&mut self, location: &Path, cell: Arc<OnceCell<Found>>, bytes: usize) {
        self.young.insert(location.clone(), cell);
        self.young_bytes += bytes;
        self.age();
    }

    fn age(&mut self) {
        if self.young_bytes > CACHE_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

fn memory_bytes(found: &Found) -> usize {
    match found {
        Found::Sums(sums) => sums.memory_bytes(),
        Found::Absent | Found::Foreign => 0,
        Found::Unusable(reason) => reason.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_cache_stays_within_its_bound_and_keeps_what_is_used() {
        let cache = Cache::default();
        let sums = Arc::new(Sums { bytes: 1 << 34, blocks: vec![0; 1 << 18].into(), is_adopted: false });
        let path = |number: usize| Path::parse(format!("f{number}")).unwrap();
        for number in 0..200 {
            cache.set(&path(number), Found::Sums(sums.clone()));
            assert!(cache.cell(&path(0)).get().is_some(), "{number}");
            let generations = cache.lock();
            let held: usize = generations
                .young
                .values()
                .chain(generations.old.values())
                .filter_map(|cell| cell.get())
                .map(memory_bytes)
                .sum();
            assert!(held <= CACHE_BYTES + sums.memory_bytes(), "{held}");
        }
    }
}
