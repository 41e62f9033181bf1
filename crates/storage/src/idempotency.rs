//! Statements that carry a key are applied once, however often they are sent.
//!
//! The commit of such a statement says so in the manifest (`commit.rs`): the two cannot part. Which version to look at
//! is told by a small file, written before the commit: `<table>/_keys/<checksum and length of the key>/<version>-<nonce>`.
//! A file whose version does not name the key belongs to a commit that never was.
//!
//! A statement that changes no row makes a version too if it carries a key: that it found nothing is its answer, and
//! sent again it must not find what came since.
//!
//! What a crash leaves, by the last step that was done:
//! 1. Nothing, or rows in files that no version names: the statement was not applied, and sent again it runs.
//! 2. The file here: its version does not exist, or another writer made it, without this key. The statement runs again.
//! 3. The commit: the version names the key, whether or not anybody heard of it. Sent again, the statement is answered.
//!
//! Two that send the same key at once plan on the same version, and one of them commits; the other one's commit is
//! refused, it takes a new turn and finds the key. A key is remembered as long as its version is kept: `VACUUM` forgets
//! both, and `RESTORE` neither.

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::TableEntry;
use crate::commit::applied_in;
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::snapshot::Snapshot;
use crate::time::checkout;

/// A name for one statement, chosen by whoever sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The name.
    pub key: String,
    /// The statement's text, or what stands for it: the same key with another one is a mistake.
    pub statement: String,
}

/// A statement that is to be applied once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// The statement.
    pub key: IdempotencyKey,
    /// The count that it is answered with.
    pub count: u64,
}

/// What a version's manifest says of a statement that it applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Applied {
    key: String,
    /// CRC-32 and length of the statement's text.
    statement: String,
    count: u64,
}

impl Applied {
    pub(crate) fn new(Once { key, count }: &Once) -> Self {
        Self { key: key.key.clone(), statement: fingerprint(&key.statement), count: *count }
    }
}

fn fingerprint(text: &str) -> String {
    format!("{:08x}-{}", crc32fast::hash(text.as_bytes()), text.len())
}

impl Database {
    /// The count that the statement of this key was answered with, if it was applied. To be asked within a turn. Cost: one LIST, and two
    /// small reads per attempt that was made.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the key was used for another statement.
    pub(crate) async fn applied(
        &self,
        entry: &TableEntry,
        newest: &Snapshot,
        key: &IdempotencyKey,
    ) -> Result<Option<u64>> {
        let what = || format!("cannot look for the idempotency key in {}", newest.location());
        let folder = self.root().path(&folder(entry, key));
        let files = self.root().store().list(Some(&folder)).try_collect::<Vec<_>>().await;
        let files = match files {
            Ok(files) => files,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(StorageError::from_store(what(), error)),
        };
        for file in files {
            let version = file.location.filename().and_then(|name| name.split('-').next()?.parse().ok());
            let Some(version) = version else { continue };
            let Some(dataset) = checkout(newest, version).await? else { continue };
            let Some(applied) = applied_in(dataset.manifest()).filter(|applied| applied.key == key.key) else {
                continue;
            };
            if applied.statement != fingerprint(&key.statement) {
                return Err(StorageError::conflict(format!(
                    "the idempotency key {:?} was used for another statement, in version {version}; take a new one",
                    key.key
                )));
            }
            return Ok(Some(applied.count));
        }
        Ok(None)
    }

    /// Says where to look for the key, before the commit that is to be `version`.
    pub(crate) async fn note_attempt(&self, entry: &TableEntry, key: &IdempotencyKey, version: u64) -> Result<()> {
        let name = format!("{}/{version:020}-{}", folder(entry, key), Uuid::new_v4().simple());
        let (path, text) = (self.root().path(&name), PutPayload::from(key.key.clone().into_bytes()));
        let put = self.root().store().put(&path, text).await;
        put.map(|_| ()).map_err(|error| StorageError::from_store("cannot note the idempotency key", error))
    }
}

fn folder(entry: &TableEntry, key: &IdempotencyKey) -> String {
    format!("{}/_keys/{}", entry.location, fingerprint(&key.key))
}
