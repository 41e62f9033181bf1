//! The series of numbered catalog files of a database: reading the newest, and adding one more. Files are made by
//! put-if-absent and never deleted, and the newest is never changed, so two processes can never overwrite each other: the
//! highest number is the truth. What is in a file is `format.rs`; what older ones lose is `history.rs`.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{Catalog, format};
use crate::error::{Result, StorageError};
use crate::store::Root;

/// Folder of the catalog files in a database.
pub(crate) const FOLDER: &str = "_catalog";

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

/// The catalog files of one database, with the newest one known.
pub(crate) struct CatalogLog {
    root: Root,
    /// The newest catalog known.
    known: std::sync::Mutex<Option<Arc<Catalog>>>,
    /// Held while changes are written or fetched, so that the sessions of one process queue here and not at the store.
    /// Sessions that only find that nothing changed do not queue.
    turn: Mutex<()>,
}

/// Why a change is not in the catalog, or not certainly.
#[derive(Debug)]
pub(crate) struct CommitError {
    pub(crate) error: StorageError,
    /// The change may still be in the catalog: nothing it names may be removed.
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
pub(crate) enum Change<T> {
    /// Nothing is to be written.
    Nothing(T),
    /// This is to be the next catalog.
    Write(Catalog, T),
}

enum Put {
    Done,
    Taken,
}

impl CatalogLog {
    pub(crate) fn new(root: Root) -> Self {
        Self { root, known: std::sync::Mutex::new(None), turn: Mutex::new(()) }
    }

    /// The newest catalog. Cost: one HEAD that finds nothing when nothing changed, else a GET per change more.
    pub(crate) async fn newest(&self) -> Result<Arc<Catalog>> {
        if let Some(known) = self.known()
            && !self.root.exists(&self.path(known.number + 1)).await?
        {
            return Ok(known);
        }
        let _turn = self.turn.lock().await;
        self.refresh().await
    }

    /// Applies `change` to the newest catalog and writes the result, again and again until no other writer was faster.
    ///
    /// # Errors
    /// Those of `change`; [`StorageError::Conflict`] after too many attempts; [`StorageError::Unavailable`] if the
    /// store does not answer.
    pub(crate) async fn commit<T>(
        &self,
        mut change: impl FnMut(&Catalog) -> Result<Change<T>>,
    ) -> Result<T, CommitError> {
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
            next.number = current.number + 1;
            match self.put(&next).await? {
                Put::Done => {
                    tracing::info!(number = next.number, attempt, "catalog changed");
                    self.remember(Arc::new(next));
                    return Ok(result);
                }
                Put::Taken => tracing::debug!(number = next.number, attempt, "another writer was faster"),
            }
        }
        Err(StorageError::conflict(format!(
            "the catalog was changed by others {ATTEMPTS_MAX} times in a row; run the statement again"
        ))
        .into())
    }

    async fn refresh(&self) -> Result<Arc<Catalog>> {
        let mut current = match self.known() {
            Some(catalog) => catalog,
            None => match self.last_listed().await? {
                0 => Arc::new(Catalog::default()),
                last => self.read_existing(last).await?,
            },
        };
        let mut probes = 0;
        while let Some(there) = self.read(current.number + 1).await? {
            current = Arc::new(there.catalog);
            probes += 1;
            if probes >= PROBES_MAX {
                probes = 0;
                let last = self.last_listed().await?;
                if last > current.number {
                    current = self.read_existing(last).await?;
                }
            }
        }
        self.remember(current.clone());
        Ok(current)
    }

    /// The store that the files are in.
    pub(super) fn store(&self) -> &dyn object_store::ObjectStore {
        self.root.store()
    }

    /// The newest catalog that this process has seen. No request is made.
    pub(crate) fn known(&self) -> Option<Arc<Catalog>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, catalog: Arc<Catalog>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(catalog);
    }

    async fn read_existing(&self, number: u64) -> Result<Arc<Catalog>> {
        let there = self.read(number).await?.ok_or_else(|| {
            StorageError::corrupt(format!(
                "catalog file {} was listed but is not there; restore it from a copy",
                self.shown(number)
            ))
        })?;
        Ok(Arc::new(there.catalog))
    }

    /// The highest number of a file in the folder; 0 if there is none.
    async fn last_listed(&self) -> Result<u64> {
        let folder = self.root.path(FOLDER);
        let what = || format!("cannot list the catalog of {}", self.root.location().shown());
        let mut listed = self.root.store().list(Some(&folder));
        let mut last = 0;
        while let Some(meta) = listed.try_next().await.map_err(|error| StorageError::from_store(what(), error))? {
            let number = meta
                .location
                .filename()
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|stem| (stem.len() == 20).then(|| stem.parse::<u64>().ok()).flatten());
            last = last.max(number.unwrap_or(0));
        }
        Ok(last)
    }

    /// The file of this number, if it is there.
    pub(super) async fn read(&self, number: u64) -> Result<Option<format::Decoded>> {
        let mut reads = 0;
        loop {
            let Some(bytes) = self.get(number).await? else { return Ok(None) };
            reads += 1;
            match format::decode(&bytes, number, &self.shown(number)) {
                Err(error) if reads < READS_MAX => tracing::warn!(number, %error, "reading a catalog file again"),
                decoded => return decoded.map(Some),
            }
        }
    }

    async fn get(&self, number: u64) -> Result<Option<bytes::Bytes>> {
        let what = || format!("cannot read the catalog file {}", self.shown(number));
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
    async fn put(&self, next: &Catalog) -> Result<Put, CommitError> {
        let nonce = format::nonce(Uuid::new_v4());
        let payload = PutPayload::from(format::encode(next, &nonce)?);
        let path = self.path(next.number);
        let what = || format!("cannot write the catalog file {}", self.shown(next.number));
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
            match self.read(next.number).await {
                Ok(Some(there)) if there.nonce != nonce => return Ok(Put::Taken),
                Ok(Some(_)) if said_no => return Err(CommitError::unknown(&what(), error)),
                Ok(Some(_)) => return Ok(Put::Done),
                Ok(None) if said_no && !unclear => return Err(error.into()),
                // A request of ours that is still under way can only make this very file: trying again is safe.
                Ok(None) if retry + 1 < RETRIES_MAX => {
                    tracing::warn!(number = next.number, retry, %error, "catalog write unclear, trying again");
                }
                Ok(None) | Err(_) if retry + 1 >= RETRIES_MAX => return Err(CommitError::unknown(&what(), error)),
                Ok(None) => {}
                // What is there and cannot be read may be ours.
                Err(read @ StorageError::Corrupt(_)) => return Err(CommitError::unknown(&what(), read)),
                Err(read) => tracing::warn!(number = next.number, retry, %read, "catalog cannot be read back"),
            }
        }
        Err(CommitError::unknown(&what(), StorageError::unavailable("the store does not answer")))
    }

    pub(super) fn path(&self, number: u64) -> Path {
        self.root.path(FOLDER).join(file_name(number))
    }

    pub(super) fn shown(&self, number: u64) -> String {
        format!("{}/{FOLDER}/{}", self.root.location().shown(), file_name(number))
    }
}

fn file_name(number: u64) -> String {
    format!("{number:020}.json")
}
