//! Who may commit, and at which time a version is said to be made: our commit handler under Lance's transactions.
//!
//! Lance rebases a transaction over whatever was committed since it was planned. Ours must not be: keys were checked
//! and rows were found in one version. So a commit is valid on the version it was planned on and on no other; the
//! manifest is put if absent, and a request that arrives late finds its place taken. Each manifest says in its
//! configuration which writer made it and in which epoch; the epoch grows when another writer takes over.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use lance_io::object_store::ObjectStore;
use lance_table::feature_flags::FLAG_NON_REUSABLE_FIELD_IDS;
use lance_table::format::{IndexMetadata, Manifest, Transaction};
use lance_table::io::commit::{
    CommitError, CommitHandler, ConditionalPutCommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter,
};
use object_store::path::Path;

use crate::error::{Result, StorageError};
use crate::idempotency::Applied;

/// The version of what we write into a table beside Lance's own format, and the newest that is read.
const FORMAT: u32 = 1;

const FORMAT_KEY: &str = "sagitta.format";
const EPOCH_KEY: &str = "sagitta.epoch";
const WRITER_KEY: &str = "sagitta.writer";
const VERSION_KEY: &str = "sagitta.version";
const OPERATION_KEY: &str = "sagitta.operation";
const APPLIED_KEY: &str = "sagitta.applied";

/// Nanoseconds in the microseconds that timestamps of SQL count.
const MICROSECOND: u128 = 1_000;

/// What a commit builds on.
#[derive(Clone, Debug, Default)]
struct Predecessor {
    version: u64,
    timestamp_ns: u128,
    epoch: u64,
    writer: String,
}

/// Commits the versions of one turn: each exactly after the one before.
pub(crate) struct Committer {
    writer: String,
    operation: &'static str,
    /// The statement with an idempotency key that the commit applies.
    applied: Option<Applied>,
    last: Mutex<Predecessor>,
    stale: AtomicBool,
}

impl Committer {
    /// For a table that does not exist yet.
    pub(crate) fn first(writer: &str, operation: &'static str) -> Self {
        Self {
            writer: writer.to_owned(),
            operation,
            applied: None,
            last: Mutex::default(),
            stale: AtomicBool::new(false),
        }
    }

    /// For changes that are planned on `manifest`.
    pub(crate) fn after(manifest: &Manifest, writer: &str, operation: &'static str) -> Self {
        let last = Predecessor {
            version: manifest.version,
            timestamp_ns: manifest.timestamp_nanos,
            epoch: manifest.config.get(EPOCH_KEY).and_then(|epoch| epoch.parse().ok()).unwrap_or(0),
            writer: manifest.config.get(WRITER_KEY).cloned().unwrap_or_default(),
        };
        Self { last: Mutex::new(last), ..Self::first(writer, operation) }
    }

    /// The same for a commit that applies a statement with an idempotency key.
    pub(crate) fn applying(self, applied: Option<Applied>) -> Self {
        Self { applied, ..self }
    }

    /// True if a commit was refused because another writer was faster: what was planned must be planned again.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    fn last(&self) -> Predecessor {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts time, epoch and operation into a manifest that follows `last`.
    fn stamp(&self, manifest: &mut Manifest, last: &Predecessor) -> Predecessor {
        // Lance has set its own clock's time. Whole microseconds, so that SQL can name the moment exactly.
        let now = manifest.timestamp_nanos / MICROSECOND * MICROSECOND;
        let after = (last.timestamp_ns / MICROSECOND + 1) * MICROSECOND;
        let timestamp_ns = if last.version == 0 { now } else { now.max(after) };
        let epoch = if last.writer == self.writer { last.epoch } else { last.epoch + 1 };
        manifest.timestamp_nanos = timestamp_ns;
        for (key, value) in [
            (FORMAT_KEY, FORMAT.to_string()),
            (EPOCH_KEY, epoch.to_string()),
            (WRITER_KEY, self.writer.clone()),
            (VERSION_KEY, manifest.version.to_string()),
            (OPERATION_KEY, self.operation.to_owned()),
        ] {
            manifest.config.insert(key.to_owned(), value);
        }
        manifest.config.remove(APPLIED_KEY);
        if let Some(applied) = &self.applied
            && let Ok(applied) = serde_json::to_string(applied)
        {
            manifest.config.insert(APPLIED_KEY.to_owned(), applied);
        }
        Predecessor { version: manifest.version, timestamp_ns, epoch, writer: self.writer.clone() }
    }
}

impl fmt::Debug for Committer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Committer({} after version {})", self.operation, self.last().version)
    }
}

#[async_trait]
impl CommitHandler for Committer {
    fn is_version_not_found_definitive(&self) -> bool {
        true
    }

    fn propagate_commit_error_after_success(&self) -> bool {
        false
    }

    async fn commit(
        &self,
        manifest: &mut Manifest,
        indices: Option<Vec<IndexMetadata>>,
        base_path: &Path,
        object_store: &ObjectStore,
        manifest_writer: ManifestWriter,
        naming_scheme: ManifestNamingScheme,
        transaction: Option<Transaction>,
    ) -> std::result::Result<ManifestLocation, CommitError> {
        let last = self.last();
        if manifest.version != last.version + 1 {
            self.stale.store(true, Ordering::Release);
            let message = format!("planned on version {} but version {} exists", last.version, manifest.version - 1);
            return Err(CommitError::OtherError(lance::Error::invalid_input(message)));
        }
        if last.version == 0 {
            // A field number that was used once must never mean another column: files outlive the columns in them.
            manifest.activate_non_reusable_field_ids();
            manifest.writer_feature_flags |= FLAG_NON_REUSABLE_FIELD_IDS;
        }
        let next = self.stamp(manifest, &last);
        let committed = ConditionalPutCommitHandler
            .commit(manifest, indices, base_path, object_store, manifest_writer, naming_scheme, transaction)
            .await;
        match &committed {
            Ok(_) => {
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = next;
                // What was refused before was tried again and is there now.
                self.stale.store(false, Ordering::Release);
            }
            // Lance reads back whose it is; if it is ours after all, its call succeeds and nobody asks us.
            Err(CommitError::CommitConflict) => self.stale.store(true, Ordering::Release),
            Err(CommitError::OtherError(_)) => {}
        }
        committed
    }
}

/// What our stamp in a manifest says; `None` for a version that a foreign writer committed.
pub(crate) fn operation_of(manifest: &Manifest) -> Option<&str> {
    let stamped = manifest.config.get(VERSION_KEY)?;
    if *stamped == manifest.version.to_string() { manifest.config.get(OPERATION_KEY).map(String::as_str) } else { None }
}

/// The statement with an idempotency key that a version applied.
pub(crate) fn applied_in(manifest: &Manifest) -> Option<Applied> {
    operation_of(manifest)?;
    serde_json::from_str(manifest.config.get(APPLIED_KEY)?).ok()
}

/// Microseconds since the epoch at which a version was committed.
pub(crate) fn committed_at_us(manifest: &Manifest) -> i64 {
    i64::try_from(manifest.timestamp_nanos / MICROSECOND).unwrap_or(i64::MAX)
}

/// Refuses a table that a newer program has written.
///
/// # Errors
/// [`StorageError::Unsupported`].
pub(crate) fn check_format(config: &HashMap<String, String>, location: &str) -> Result<()> {
    match config.get(FORMAT_KEY).map(|format| format.parse::<u32>()) {
        None | Some(Ok(..=FORMAT)) => Ok(()),
        Some(_) => Err(StorageError::unsupported(format!(
            "table {location} has format {} and this program reads up to {FORMAT}; use a newer sagitta",
            config.get(FORMAT_KEY).map_or("", String::as_str)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Committer, Predecessor};

    #[test]
    fn time_goes_forward_when_the_clock_goes_back() {
        let last = Predecessor { version: 7, timestamp_ns: 5_000_000_500, epoch: 3, writer: "other".to_owned() };
        let committer = Committer::first("me", "INSERT");
        let stamped = |timestamp_ns: u128, last: &Predecessor| {
            let fields = lance_core::datatypes::Schema::default();
            let mut manifest =
                lance_table::format::Manifest::new(fields, Default::default(), Default::default(), Default::default());
            manifest.version = last.version + 1;
            manifest.timestamp_nanos = timestamp_ns;
            committer.stamp(&mut manifest, last)
        };
        let next = stamped(1_000, &last);
        assert_eq!((next.timestamp_ns, next.epoch), (5_000_001_000, 4));
        let later = stamped(9_000_000_777, &next);
        assert_eq!((later.timestamp_ns, later.epoch), (9_000_000_000, 4));
    }
}
