//! Series of numbered files, of which the highest is the truth: reading the newest, and adding one more. Files are made by
//! put-if-absent, and the newest is never changed nor deleted, so two processes can never overwrite each other. The catalog
//! is such a series (`catalog/log.rs`), and so is the list of the indexes of a table (`index/manifest.rs`).

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::error::{Result, StorageError};
use crate::snapshot::shown;
use crate::store::Root;

/// How often a change is applied again because somebody else's came first.
const ATTEMPTS_MAX: u32 = 200;

/// How often one number is tried when the store's answers are lost.
const RETRIES_MAX: u32 = 5;

/// The wait before the second attempt; it grows with each further one, up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(2);

/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// How often a file that cannot be read is read: bits also flip on the way.
const READS_MAX: u32 = 2;

/// Successors that are looked for one by one before the folder is listed instead.
const PROBES_MAX: u32 = 16;

/// Letters of a nonce without its checksum.
const NONCE_DIGITS: usize = 32;

/// What such a series holds.
pub(crate) trait Numbered: Default + Send + Sync + 'static {
    /// What it is called in messages.
    const NAME: &'static str;

    /// Whether files that were followed by others long ago are deleted. Then a number that is free does not prove that
    /// the one before it is the newest, and the folder is listed before anything is built on it.
    const IS_PRUNED: bool;

    /// The number of the file that it was read from; 0 if there is none.
    fn number(&self) -> u64;

    /// Gives it another number.
    fn set_number(&mut self, number: u64);

    /// The name of the file of this number.
    fn file_name(number: u64) -> String;

    /// The number in the name of a file, if it is one of the series.
    fn number_in(file_name: &str) -> Option<u64>;

    /// The bytes of the file.
    ///
    /// # Errors
    /// [`StorageError::Internal`].
    fn encode(&self, nonce: &str) -> Result<Vec<u8>>;

    /// What a file of this number holds, and its nonce. `file` names it in messages.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`], [`StorageError::Unsupported`] for a newer version.
    fn decode(bytes: &[u8], number: u64, file: &str) -> Result<(Self, String)>;
}

/// A new nonce: by it a writer knows its own file again. It proves itself, as nothing else in the file covers it: a writer
/// that did not know its own file again would make its change twice.
pub(crate) fn nonce(id: Uuid) -> String {
    let digits = id.simple().to_string();
    format!("{digits}-{:08x}", crc32fast::hash(digits.as_bytes()))
}

/// Whether a nonce is not what was written.
pub(crate) fn is_damaged_nonce(nonce: &str) -> bool {
    match nonce.split_once('-') {
        Some((digits, sum)) => format!("{:08x}", crc32fast::hash(digits.as_bytes())) != sum,
        // Older files of the catalog have the digits alone.
        None => nonce.len() > NONCE_DIGITS,
    }
}

/// The files of one series, with the newest one known.
pub(crate) struct NumberedFiles<V> {
    root: Root,
    /// Below the root.
    folder: String,
    /// The newest one known.
    known: std::sync::Mutex<Option<Arc<V>>>,
    /// Held while changes are written or fetched, so that the sessions of one process queue here and not at the store.
    /// Sessions that only find that nothing changed do not queue.
    turn: Mutex<()>,
}

/// Why a change is not made, or not certainly.
#[derive(Debug)]
pub(crate) struct CommitError {
    pub(crate) error: StorageError,
    /// The change may still be made: nothing it names may be removed.
    pub(crate) outcome_unknown: bool,
}

impl CommitError {
    /// `error` is what was heard last: whatever it says of itself, the file may be there.
    fn unknown(what: &str, error: StorageError) -> Self {
        let error = match error {
            StorageError::Unavailable(_) => error,
            other => StorageError::unavailable(format!(
                "{what}: the store did not say whether the change was made; look whether it is there before you run \
                 the statement again"
            ))
            .with_source(other),
        };
        Self { error, outcome_unknown: true }
    }
}

impl From<StorageError> for CommitError {
    fn from(error: StorageError) -> Self {
        Self { error, outcome_unknown: false }
    }
}

impl From<CommitError> for StorageError {
    fn from(error: CommitError) -> Self {
        error.error
    }
}

/// What a change wants.
pub(crate) enum Change<V, T> {
    /// Nothing is to be written.
    Nothing(T),
    /// This is to be the next file.
    Write(V, T),
}

enum Put {
    Done,
    Taken,
}

impl<V: Numbered> NumberedFiles<V> {
    /// The series in `folder` below `root`.
    pub(crate) fn new(root: Root, folder: impl Into<String>) -> Self {
        Self { root, folder: folder.into(), known: std::sync::Mutex::new(None), turn: Mutex::new(()) }
    }

    /// The newest. Cost: one HEAD that finds nothing when nothing changed, else a GET per change more.
    pub(crate) async fn newest(&self) -> Result<Arc<V>> {
        if let Some(known) = self.known()
            && !self.root.exists(&self.path(known.number() + 1)).await?
        {
            return Ok(known);
        }
        let _turn = self.turn.lock().await;
        self.refresh().await
    }

    /// Applies `change` to the newest and writes the result, again and again until no other writer was faster.
    ///
    /// # Errors
    /// Those of `change`; [`StorageError::Conflict`] after too many attempts; [`StorageError::Unavailable`] if the
    /// store does not answer.
    pub(crate) async fn commit<T>(&self, mut change: impl FnMut(&V) -> Result<Change<V, T>>) -> Result<T, CommitError> {
        let _turn = self.turn.lock().await;
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                tokio::time::sleep((BACKOFF * attempt).min(BACKOFF_MAX)).await;
            }
            let current = self.refresh().await?;
            let (mut next, result) = match change(&current)? {
                Change::Nothing(result) => return Ok(result),
                Change::Write(next, result) => (next, result),
            };
            next.set_number(current.number() + 1);
            match self.put(&next).await? {
                Put::Done => {
                    tracing::info!(number = next.number(), attempt, "{} changed", V::NAME);
                    self.remember(Arc::new(next));
                    return Ok(result);
                }
                Put::Taken => tracing::debug!(number = next.number(), attempt, "another writer was faster"),
            }
        }
        Err(StorageError::conflict(format!(
            "the {} was changed by others {ATTEMPTS_MAX} times in a row; run the statement again",
            V::NAME
        ))
        .into())
    }

    /// The newest, looked for anew. Cost: for a series that is pruned a LIST, and a GET that finds nothing.
    pub(crate) async fn looked_for(&self) -> Result<Arc<V>> {
        let _turn = self.turn.lock().await;
        self.refresh().await
    }

    async fn refresh(&self) -> Result<Arc<V>> {
        let mut current = match self.known() {
            Some(known) if V::IS_PRUNED => match self.last_listed().await? {
                last if last > known.number() => self.read_existing(last).await?,
                _ => known,
            },
            Some(known) => known,
            None => match self.last_listed().await? {
                0 => Arc::new(V::default()),
                last => self.read_existing(last).await?,
            },
        };
        let mut probes = 0;
        while let Some(there) = self.read(current.number() + 1).await? {
            current = Arc::new(there.0);
            probes += 1;
            if probes >= PROBES_MAX {
                probes = 0;
                let last = self.last_listed().await?;
                if last > current.number() {
                    current = self.read_existing(last).await?;
                }
            }
        }
        self.remember(current.clone());
        Ok(current)
    }

    /// The store that the files are in.
    pub(crate) fn store(&self) -> &dyn object_store::ObjectStore {
        self.root.store()
    }

    /// The newest that this process has seen. No request is made.
    pub(crate) fn known(&self) -> Option<Arc<V>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, newest: Arc<V>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(newest);
    }

    async fn read_existing(&self, number: u64) -> Result<Arc<V>> {
        let there = self.read(number).await?.ok_or_else(|| {
            StorageError::corrupt(format!(
                "{} file {} was listed but is not there; restore it from a copy",
                V::NAME,
                self.shown(number)
            ))
        })?;
        Ok(Arc::new(there.0))
    }

    /// Adds a file whose number is set already: one after a file that cannot be read.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if another writer was faster, and those of the store.
    pub(crate) async fn add(&self, next: V) -> Result<()> {
        let _turn = self.turn.lock().await;
        match self.put(&next).await? {
            Put::Done => {
                self.remember(Arc::new(next));
                Ok(())
            }
            Put::Taken => Err(StorageError::conflict(format!("another writer changed the {} first", V::NAME))),
        }
    }

    /// The highest number of a file in the folder; 0 if there is none.
    pub(crate) async fn last_listed(&self) -> Result<u64> {
        let folder = self.root.path(&self.folder);
        let what = || format!("cannot list the {} files in {}", V::NAME, shown(&self.root, &self.folder));
        let mut listed = self.root.store().list(Some(&folder));
        let mut last = 0;
        while let Some(meta) = listed.try_next().await.map_err(|error| StorageError::from_store(what(), error))? {
            let number = meta.location.filename().and_then(V::number_in);
            last = last.max(number.unwrap_or(0));
        }
        Ok(last)
    }

    /// The file of this number, if it is there.
    pub(crate) async fn read(&self, number: u64) -> Result<Option<(V, String)>> {
        let mut reads = 0;
        loop {
            let Some(bytes) = self.get(number).await? else { return Ok(None) };
            reads += 1;
            match V::decode(&bytes, number, &self.shown(number)) {
                Err(error) if reads < READS_MAX => tracing::warn!(number, %error, "reading a {} file again", V::NAME),
                decoded => return decoded.map(Some),
            }
        }
    }

    async fn get(&self, number: u64) -> Result<Option<bytes::Bytes>> {
        let what = || format!("cannot read the {} file {}", V::NAME, self.shown(number));
        let found = async { self.root.store().get(&self.path(number)).await?.bytes().await }.await;
        match found {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => match StorageError::from_store(what(), error) {
                error if error.is_not_found() => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Writes the file of `next` if its number is free. Our own success is recognised even if its answer was lost.
    async fn put(&self, next: &V) -> Result<Put, CommitError> {
        let nonce = nonce(Uuid::new_v4());
        let payload = PutPayload::from(next.encode(&nonce)?);
        let number = next.number();
        let path = self.path(number);
        let what = || format!("cannot write the {} file {}", V::NAME, self.shown(number));
        let mut unclear = false;
        for retry in 0..RETRIES_MAX {
            if retry > 0 {
                tokio::time::sleep(BACKOFF_MAX * retry).await;
            }
            let options = PutOptions { mode: PutMode::Create, ..Default::default() };
            let error = match self.root.store().put_opts(&path, payload.clone(), options).await {
                Ok(_) => return Ok(Put::Done),
                Err(error) => StorageError::from_store(what(), error),
            };
            let taken = matches!(error, StorageError::AlreadyExists(_));
            let said_no =
                matches!(error, StorageError::Full(_) | StorageError::Unsupported(_) | StorageError::Invalid(_));
            // Any other answer leaves open whether the file was made: only reading it tells. Even a full disk can let
            // the file appear and fail only when its folder is synced.
            unclear |= !taken && !said_no;
            match self.read(number).await {
                Ok(Some((_, theirs))) if theirs != nonce => return Ok(Put::Taken),
                Ok(Some(_)) if said_no => return Err(CommitError::unknown(&what(), error)),
                Ok(Some(_)) => return Ok(Put::Done),
                Ok(None) if said_no && !unclear => return Err(error.into()),
                // A request of ours that is still under way can only make this very file: trying again is safe.
                Ok(None) if retry + 1 < RETRIES_MAX => {
                    tracing::warn!(number, retry, %error, "{} write unclear, trying again", V::NAME);
                }
                Ok(None) | Err(_) if retry + 1 >= RETRIES_MAX => return Err(CommitError::unknown(&what(), error)),
                Ok(None) => {}
                // What is there and cannot be read may be ours.
                Err(read @ StorageError::Corrupt(_)) => return Err(CommitError::unknown(&what(), read)),
                Err(read) => tracing::warn!(number, retry, %read, "{} cannot be read back", V::NAME),
            }
        }
        Err(CommitError::unknown(&what(), StorageError::unavailable("the store does not answer")))
    }

    pub(crate) fn path(&self, number: u64) -> Path {
        self.root.path(&self.folder).join(V::file_name(number))
    }

    pub(crate) fn shown(&self, number: u64) -> String {
        format!("{}/{}", shown(&self.root, &self.folder), V::file_name(number))
    }
}
