//! Whether a store keeps what Sagitta builds on: two writers must never both succeed in making one file, and what was
//! written must be there at once. Some S3-compatible servers accept the condition of a write and ignore it; a database
//! there would lose commits in silence. So each store is asked once per process, when a database on it is opened.
//!
//! Cost: 5 requests on S3, once per process and database: 2 PUT, of which the second must fail, then 1 GET and 1 LIST
//! at the same time, then 1 DELETE. Nothing on local disk and in memory, whose behaviour is known and tested. Nothing
//! is left behind, unless the process dies in between: then one file of 16 bytes under `_probe/`.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use uuid::Uuid;

use crate::error::{Result, StorageError};
use crate::location::Location;
use crate::store::Root;

/// Folder of the files that are written for a try, in the database.
pub(crate) const FOLDER: &str = "_probe";

/// The databases whose stores were found good, by what reaches them.
static GOOD: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// Makes sure that the store of a database can be written to by several processes. `endpoint` tells servers apart.
///
/// A store that does not let us write at all is not refused: the database can be read, and writing says why it cannot.
///
/// # Errors
/// [`StorageError::Unsupported`] with the check that failed; [`StorageError::Unavailable`] if the store does not
/// answer.
pub(crate) async fn once(root: &Root, endpoint: &str) -> Result<()> {
    if !matches!(root.location(), Location::S3 { .. }) {
        return Ok(());
    }
    let key = format!("{endpoint} {}", root.location().shown());
    if GOOD.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|good| good.contains(&key)) {
        return Ok(());
    }
    check(root.store(), &root.path(FOLDER), &root.location().shown()).await?;
    GOOD.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(key);
    Ok(())
}

/// As [`once`], always, in a folder of the store.
pub(crate) async fn check(store: &dyn ObjectStore, folder: &Path, shown: &str) -> Result<()> {
    // A name of our own: two probers at once do not meet.
    let folder = folder.clone().join(Uuid::new_v4().simple().to_string());
    let path = folder.clone().join("try");
    let outcome = try_out(store, &folder, &path, shown).await;
    match store.delete(&path).await {
        Ok(()) | Err(Error::NotFound { .. }) => {}
        Err(error) => tracing::warn!(%path, %error, "the file of the start-up check is left and wastes space"),
    }
    outcome
}

async fn try_out(store: &dyn ObjectStore, folder: &Path, path: &Path, shown: &str) -> Result<()> {
    let what = || format!("cannot check the store of {shown}");
    let (first, second) = (Bytes::from_static(b"sagitta probe  1"), Bytes::from_static(b"sagitta probe  2"));
    match create(store, path, &first).await {
        Ok(()) => {}
        Err(Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => {
            tracing::info!(location = shown, "the store cannot be written to, only read");
            return Ok(());
        }
        Err(error @ (Error::NotSupported { .. } | Error::NotImplemented { .. })) => {
            return Err(
                refused(shown, "a file is made only if it is not there", "refused the condition").with_source(error)
            );
        }
        // Our own write whose first answer was lost, or a write that met another: what is there decides.
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
        Err(error) => return Err(StorageError::from_store(what(), error)),
    }
    match create(store, path, &second).await {
        Ok(()) => {
            return Err(refused(
                shown,
                "a file is made only if it is not there",
                "made it twice: two writers would overwrite each other's commits",
            ));
        }
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
        Err(error) => return Err(StorageError::from_store(what(), error)),
    }
    let read = async { store.get(path).await?.bytes().await };
    let listed = store.list(Some(folder)).try_collect::<Vec<_>>();
    let (read, listed) = futures::join!(read, listed);
    match read {
        Ok(bytes) if bytes == first => {}
        Ok(bytes) if bytes == second => {
            return Err(refused(shown, "a write that is refused changes nothing", "refused it and kept its content"));
        }
        Ok(_) => return Err(refused(shown, "what was written is read", "gave other bytes")),
        Err(Error::NotFound { .. }) => {
            return Err(refused(shown, "what was written is there at once", "did not find it"));
        }
        Err(error) => return Err(StorageError::from_store(what(), error)),
    }
    let listed = listed.map_err(|error| StorageError::from_store(what(), error))?;
    if listed.iter().any(|meta| meta.location == *path) {
        Ok(())
    } else {
        Err(refused(shown, "what was written is listed at once", "did not list it"))
    }
}

async fn create(store: &dyn ObjectStore, path: &Path, content: &Bytes) -> object_store::Result<()> {
    let options = PutOptions { mode: PutMode::Create, ..Default::default() };
    store.put_opts(path, PutPayload::from(content.clone()), options).await.map(|_| ())
}

fn refused(shown: &str, promise: &str, but: &str) -> StorageError {
    StorageError::unsupported(format!(
        "the store of {shown} cannot hold a database: it must keep that {promise}, but it {but}; use a store with \
         conditional writes (If-None-Match) and strong consistency, or a newer version of this one"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::fixtures::faulty::{Fault, Faulty, Operation, Rule};
    use crate::store::DurableLocal;

    async fn probed(store: &dyn ObjectStore, folder: &Path) -> Result<()> {
        let outcome = check(store, folder, "s3://b").await;
        let left: Vec<_> = store.list(Some(folder)).try_collect().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
        outcome
    }

    #[tokio::test]
    async fn a_store_that_keeps_its_promises_passes_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let local = Path::from_absolute_path(folder.path()).unwrap();
        probed(&DurableLocal::new(), &local).await.unwrap();
        probed(&InMemory::new(), &Path::from(FOLDER)).await.unwrap();
    }

    #[tokio::test]
    async fn a_store_that_breaks_a_promise_is_refused_with_the_promise() {
        let cases = [
            (Operation::Put, Fault::IgnoreCondition, "two writers"),
            (Operation::Put, Fault::KeepLoser, "kept its content"),
            (Operation::Get, Fault::Missing, "did not find it"),
            (Operation::Get, Fault::FlipBit, "gave other bytes"),
            (Operation::List, Fault::StaleList, "did not list it"),
        ];
        for (operation, fault, expected) in cases {
            let store = Faulty::new(Arc::new(InMemory::new()), 1);
            store.add(Rule { fault, ..Rule::always(operation, FOLDER) });
            let error = check(store.as_ref(), &Path::from(FOLDER), "s3://b").await.unwrap_err();
            assert!(matches!(error, StorageError::Unsupported(_)), "{error:?}");
            assert!(error.to_string().contains(expected), "{error}");
            store.clear();
            let left: Vec<_> = store.list(None).try_collect().await.unwrap();
            assert!(left.is_empty(), "{fault:?} {left:?}");
        }
    }

    #[tokio::test]
    async fn lost_answers_and_read_only_stores_are_no_reason_to_refuse() {
        for fault in [Fault::SaysExists, Fault::Denied] {
            let store = Faulty::new(Arc::new(InMemory::new()), 1);
            store.add(Rule { fault, times: 1, ..Rule::always(Operation::Put, FOLDER) });
            probed(store.as_ref(), &Path::from(FOLDER)).await.unwrap();
        }
        let store = Faulty::new(Arc::new(InMemory::new()), 1);
        store.add(Rule { fault: Fault::ErrorBefore, ..Rule::always(Operation::Put, FOLDER) });
        let error = probed(store.as_ref(), &Path::from(FOLDER)).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable(_)), "{error}");
    }
}
