//! Hashes of passwords that hold no more, taken out of the older catalog files: whoever reads one of them later learns
//! nothing that could be guessed at.
//!
//! It is safe because such a file has a successor: readers go on to the newest, and a writer finds that the number is taken.
//! The file is replaced in one step by one with the same nonce and the same content but for the hashes. What keeps older
//! objects by itself (a bucket with versions, a backup) keeps the hashes.

use futures::StreamExt;
use object_store::{ObjectStoreExt, PutPayload};

use super::log::CatalogLog;
use super::{Catalog, format};
use crate::error::{Result, StorageError};

/// How many files are looked through: older hashes were taken out by earlier changes, unless there are more files than this
/// between two of them.
const FILES_MAX: u64 = 4_096;

/// How many files are read and written at once.
const FILES_AT_ONCE: usize = 16;

impl CatalogLog {
    /// Takes every hash that the newest catalog does not hold out of the [`FILES_MAX`] files before it. Cost: a read for each,
    /// and a write for each that held one. What fails is logged, and tried again with the next change.
    pub(crate) async fn forget_hashes(&self) {
        let Ok(newest) = self.newest().await else { return };
        let numbers = newest.number.saturating_sub(FILES_MAX).max(1)..newest.number;
        let (mut changed, mut failed) = (0, 0);
        let mut files = futures::stream::iter(numbers)
            .map(|number| self.forget_in(number, &newest))
            .buffer_unordered(FILES_AT_ONCE);
        while let Some(one) = files.next().await {
            match one {
                Ok(is_changed) => changed += u64::from(is_changed),
                Err(error) => {
                    failed += 1;
                    tracing::debug!(%error, "a catalog file keeps the hash of an old password");
                }
            }
        }
        if failed > 0 {
            tracing::warn!(files = failed, "older catalog files could not be cleaned of the hashes of old passwords");
        }
        if changed > 0 {
            tracing::info!(files = changed, "hashes of old passwords removed from older catalog files");
        }
    }

    /// Whether the file held one.
    async fn forget_in(&self, number: u64, newest: &Catalog) -> Result<bool> {
        let Some(there) = self.read(number).await? else { return Ok(false) };
        let (mut catalog, nonce) = there;
        let mut is_changed = false;
        for (name, user) in &mut catalog.users {
            let holds = newest.users.get(name).and_then(|user| user.password_hash.as_ref());
            if user.password_hash.is_some() && user.password_hash.as_ref() != holds {
                user.password_hash = None;
                is_changed = true;
            }
        }
        if is_changed {
            let what = || format!("cannot write the catalog file {}", self.shown(number));
            let payload = PutPayload::from(format::encode(&catalog, &nonce)?);
            let written = self.store().put(&self.path(number), payload).await;
            written.map_err(|error| StorageError::from_store(what(), error))?;
        }
        Ok(is_changed)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Database, OpenOptions, UserChange, UserEntry};

    /// The texts of all catalog files.
    fn files(folder: &std::path::Path) -> Vec<String> {
        let listed = std::fs::read_dir(folder.join("_catalog")).unwrap();
        let mut paths: Vec<_> = listed.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }

    fn user(hash: &str, is_admin: bool) -> UserEntry {
        UserEntry { password_hash: Some(hash.into()), is_admin, ..UserEntry::default() }
    }

    #[tokio::test]
    async fn no_file_holds_the_hash_of_a_password_that_is_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let database = Database::open(&path, OpenOptions::default()).await.unwrap();
        database.create_user("root", user("hash-of-root", true), false).await.unwrap();
        database.create_user("a", user("first-of-a", false), false).await.unwrap();
        database.create_schema("s", false).await.unwrap();
        database.alter_user("a", UserChange::PasswordHash("second-of-a".into())).await.unwrap();
        let held = |hash: &str| files(folder.path()).iter().filter(|text| text.contains(hash)).count();
        assert_eq!((held("first-of-a"), held("second-of-a"), held("hash-of-root")), (0, 1, 4));
        database.create_schema("t", false).await.unwrap();
        database.drop_user("a", false).await.unwrap();
        assert_eq!((held("second-of-a"), held("hash-of-root")), (0, 6));
        // Another process starts from an older file, and one from none.
        let again = Database::open(&path, OpenOptions::default()).await.unwrap();
        let catalog = again.catalog().await.unwrap();
        assert_eq!((catalog.number, catalog.users.len(), catalog.schemas.len()), (6, 1, 3));
        again.create_schema("u", false).await.unwrap();
        assert!(database.catalog().await.unwrap().schemas.contains_key("u"));
    }
}
