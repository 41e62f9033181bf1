//! The object stores under a database: one of the version Lance uses, shared by Lance and the catalog. On local disk
//! every write and every deletion is synced before it is acknowledged, and what a process finds is made durable before
//! it is shown or built on: what a statement acknowledged survives a power loss, also if an earlier process was killed
//! (`durable.rs`). Checksums are put around all stores, in `checksums.rs`. The stores of DataFusion's own readers are in
//! `registry.rs`.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use lance::session::Session;
use lance_io::object_store::{
    ObjectStore as LanceStore, ObjectStoreParams, ObjectStoreRegistry, StorageOptionsAccessor, WrappingObjectStore,
};
use object_store::list::PaginatedListStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
};

use crate::checksums::layout::FOLDER as CHECKSUMS_FOLDER;
use crate::checksums::{ChecksumFigures, Checksums, Summed};
use crate::durable::{Folders, sync_folder};
use crate::error::{Result, StorageError};
use crate::location::Location;
use crate::s3::S3Settings;

/// The folder of a database or of a foreign table, reachable. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Root {
    location: Location,
    session: Arc<Session>,
    params: ObjectStoreParams,
    store: Arc<LanceStore>,
    base: Path,
    /// Of the tables of a database; foreign tables are read as they are.
    checksums: Option<Arc<Checksums>>,
}

impl fmt::Debug for Root {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Root").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Root {
    /// Builds the stores of a database at `location`. No request is made, except that the region of an AWS bucket may
    /// be looked up. Lance may keep `cache_bytes` of index pages, and as many of metadata of files and fragments.
    pub(crate) async fn new(location: Location, s3: &S3Settings, cache_bytes: usize) -> Result<Self> {
        let wrapper = substitute(&location);
        Self::with_wrapper(location, s3, wrapper, cache_bytes).await
    }

    /// As [`Root::new`], with a given wrapper around (or in place of) the store. Tests inject faults with it.
    pub(crate) async fn with_wrapper(
        location: Location,
        s3: &S3Settings,
        wrapper: Option<Arc<dyn WrappingObjectStore>>,
        cache_bytes: usize,
    ) -> Result<Self> {
        let registry = Arc::new(ObjectStoreRegistry::default());
        let base = LanceStore::extract_path_from_uri(registry.clone(), &location.lance_uri("")?)
            .map_err(|error| StorageError::from_lance(format!("cannot use {}", location.shown()), error))?;
        let checksums = Arc::new(Checksums::new(&base, wrapper));
        let mut root = Self::build(location, s3, registry, Some(checksums.clone()), cache_bytes).await?;
        root.checksums = Some(checksums);
        Ok(root)
    }

    /// Builds the stores of a table of others at `location`: nothing is verified there.
    pub(crate) async fn foreign(location: Location, s3: &S3Settings, cache_bytes: usize) -> Result<Self> {
        let wrapper = substitute(&location);
        Self::build(location, s3, Arc::new(ObjectStoreRegistry::default()), wrapper, cache_bytes).await
    }

    async fn build(
        location: Location,
        s3: &S3Settings,
        registry: Arc<ObjectStoreRegistry>,
        wrapper: Option<Arc<dyn WrappingObjectStore>>,
        cache_bytes: usize,
    ) -> Result<Self> {
        let options: HashMap<String, String> = match &location {
            Location::S3 { bucket, .. } => s3.complete(bucket).await?.to_map(),
            Location::Local(_) | Location::Memory(_) => HashMap::new(),
        };
        let params = ObjectStoreParams {
            object_store_wrapper: wrapper,
            storage_options_accessor: (!options.is_empty())
                .then(|| Arc::new(StorageOptionsAccessor::with_static_options(options))),
            ..Default::default()
        };
        let session = Arc::new(Session::new(cache_bytes, cache_bytes, registry.clone()));
        let uri = location.lance_uri("")?;
        let (store, base) = LanceStore::from_uri_and_params(registry, &uri, &params)
            .await
            .map_err(|error| StorageError::from_lance(format!("cannot reach {}", location.shown()), error))?;
        Ok(Self { location, session, params, store, base, checksums: None })
    }

    /// Where this is.
    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// Lance's caches and store registry.
    pub(crate) fn session(&self) -> Arc<Session> {
        self.session.clone()
    }

    /// What Lance must be given so that it uses the same store as the catalog.
    pub(crate) fn params(&self) -> ObjectStoreParams {
        self.params.clone()
    }

    /// The store itself.
    pub(crate) fn store(&self) -> &dyn ObjectStore {
        self.store.inner.as_ref()
    }

    /// The store as Lance uses it.
    pub(crate) fn lance_store(&self) -> &LanceStore {
        &self.store
    }

    /// The store with checksums, unless this is a table of others.
    pub(crate) fn summed(&self) -> Option<&Summed> {
        self.checksums.as_ref().and_then(|checksums| checksums.store())
    }

    /// What was verified since the root was opened.
    pub(crate) fn checksum_figures(&self) -> ChecksumFigures {
        self.checksums.as_ref().map(|checksums| checksums.figures()).unwrap_or_default()
    }

    /// The path of `relative` (parts joined by `/`) in [`Root::store`].
    pub(crate) fn path(&self, relative: &str) -> Path {
        relative.split('/').filter(|part| !part.is_empty()).fold(self.base.clone(), Path::join)
    }

    /// Whether there is a file at `path`. Cost: one request.
    pub(crate) async fn exists(&self, path: &Path) -> Result<bool> {
        match self.store().head(path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(StorageError::from_store(format!("cannot look for {path}"), error)),
        }
    }

    /// The URI of `relative` for Lance.
    pub(crate) fn lance_uri(&self, relative: &str) -> Result<String> {
        self.location.lance_uri(relative)
    }

    /// The folder on this machine, if this is local disk.
    pub(crate) fn folder(&self) -> Option<&PathBuf> {
        match &self.location {
            Location::Local(path) => Some(path),
            Location::S3 { .. } | Location::Memory(_) => None,
        }
    }

    /// Removes everything below `relative`. A folder that is not there is fine. Cost: two LISTs and the deletions.
    pub(crate) async fn remove_folder(&self, relative: &str) -> Result<()> {
        let what = || format!("cannot remove the files in {}/{relative}", self.location.shown());
        if let Some(root) = self.folder() {
            let folder = root.join(relative);
            let removed = tokio::task::spawn_blocking(move || remove_folder_durably(&folder)).await;
            return match removed {
                Ok(done) => done.map_err(|error| StorageError::from_io(what(), error)),
                Err(error) => Err(StorageError::internal(what()).with_source(error)),
            };
        }
        // Listings do not show checksums, and those whose file is gone already would stay.
        for folder in [self.path(relative), self.path(relative).join(CHECKSUMS_FOLDER)] {
            let objects = self.store().list(Some(&folder));
            let paths = objects.map(|object| object.map(|meta| meta.location)).boxed();
            let mut deleted = self.store.inner.delete_stream(paths);
            while let Some(one) = deleted.next().await {
                match one {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(StorageError::from_store(what(), error)),
                }
            }
        }
        Ok(())
    }
}

/// Our own store where Lance's would not do.
fn substitute(location: &Location) -> Option<Arc<dyn WrappingObjectStore>> {
    let store: Arc<dyn ObjectStore> = match location {
        Location::Local(root) => Arc::new(DurableLocal::at(root.clone())),
        Location::Memory(_) => Arc::new(InMemory::new()),
        Location::S3 { .. } => return None,
    };
    Some(Arc::new(Substitute { store }))
}

fn remove_folder_durably(folder: &std::path::Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Ok(()) => match folder.parent() {
            Some(parent) => sync_folder(parent),
            None => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Puts our own store where Lance's provider built one: the paths and the commit handler of the scheme stay.
#[derive(Debug)]
struct Substitute {
    store: Arc<dyn ObjectStore>,
}

impl WrappingObjectStore for Substitute {
    fn wrap(&self, _store_prefix: &str, _original: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    fn wrap_paginated(
        &self,
        _store_prefix: &str,
        _original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        // A lister of the original store would look past ours.
        None
    }
}

/// The local file system, with every write, rename and deletion synced to the disk before it returns, into folders that
/// are durable themselves; and with every file that others may have left unsynced made durable before it is read.
#[derive(Debug)]
pub(crate) struct DurableLocal {
    inner: LocalFileSystem,
    folders: Arc<Folders>,
}

impl DurableLocal {
    /// For the database or the foreign table in the folder `root`. Paths are absolute, from the root of the file system:
    /// what the `file-object-store` scheme produces.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { inner: LocalFileSystem::new().with_fsync(true), folders: Arc::new(Folders::new(root)) }
    }

    /// For tests of the store alone.
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self::at(PathBuf::from("/"))
    }

    /// Makes the folder of a file that is to be written durable. `with_fsync` does so only for folders that its own
    /// process made, and only while no other session relies on them already.
    async fn prepare(&self, location: &Path) -> object_store::Result<()> {
        let file = self.inner.path_to_filesystem(location)?;
        let Some(folder) = file.parent().map(std::path::Path::to_path_buf) else { return Ok(()) };
        if self.folders.is_durable(&folder) {
            return Ok(());
        }
        let folders = Arc::clone(&self.folders);
        let ensured = tokio::task::spawn_blocking(move || folders.ensure(&folder)).await?;
        ensured.map(|_| ()).map_err(failed)
    }

    /// Makes a file durable that was found, if its writer may not have come to that.
    async fn settle(&self, location: &Path) -> object_store::Result<()> {
        let file = self.inner.path_to_filesystem(location)?;
        match self.folders.unsettled(&file) {
            Some(folder) => self.settle_folder(folder.to_path_buf()).await,
            None => Ok(()),
        }
    }

    async fn settle_folder(&self, folder: PathBuf) -> object_store::Result<()> {
        let folders = Arc::clone(&self.folders);
        let settled = tokio::task::spawn_blocking(move || folders.settle(&folder)).await?;
        settled.map(|_| ()).map_err(failed)
    }
}

fn failed(error: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "DurableLocal", source: Box::new(error) }
}

impl fmt::Display for DurableLocal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Durable({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.prepare(location).await?;
        let put = self.inner.put_opts(location, payload, options).await;
        if let Err(object_store::Error::AlreadyExists { .. }) = &put
            && let Some(folder) = self.inner.path_to_filesystem(location)?.parent()
        {
            // Whoever is told so may take what is there for its own.
            self.settle_folder(folder.to_path_buf()).await?;
        }
        put
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.prepare(location).await?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if options.head {
            // Each statement looks for a newer catalog and newer versions, which mostly are not there. Asking the system
            // takes less time than the way to another thread and back.
            let file = self.inner.path_to_filesystem(location)?;
            if let Err(error) = std::fs::symlink_metadata(file)
                && error.kind() == std::io::ErrorKind::NotFound
            {
                return Err(object_store::Error::NotFound { path: location.to_string(), source: Box::new(error) });
            }
            return self.inner.get_opts(location, options).await;
        }
        let found = self.inner.get_opts(location, options).await?;
        self.settle(location).await?;
        Ok(found)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        let found = self.inner.get_ranges(location, ranges).await?;
        self.settle(location).await?;
        Ok(found)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        // `with_fsync` covers writes only; the entry that a deletion removed must be made durable here.
        let inner = self.inner.clone();
        self.inner
            .delete_stream(locations)
            .then(move |deleted| {
                let inner = inner.clone();
                async move {
                    let location = deleted?;
                    let file = inner.path_to_filesystem(&location)?;
                    let synced = tokio::task::spawn_blocking(move || match file.parent() {
                        Some(parent) => sync_folder(parent),
                        None => Ok(()),
                    })
                    .await?;
                    synced.map_err(failed)?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.prepare(to).await?;
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> object_store::Result<()> {
        self.prepare(to).await?;
        self.inner.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{name, newest, table};
    use crate::{Database, OpenOptions};

    #[tokio::test]
    async fn the_first_write_into_a_folder_that_was_there_makes_it_durable() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().canonicalize().unwrap().join("db/public/t.lance/data");
        std::fs::create_dir_all(&folder).unwrap();
        let store = DurableLocal::at(place.path().canonicalize().unwrap().join("db"));
        let path = |file: &str| Path::from_absolute_path(folder.join(file)).unwrap();
        assert!(!store.folders.is_durable(&folder));
        store.put(&path("a"), "1".into()).await.unwrap();
        assert!(store.folders.is_durable(&folder));
        assert_eq!(store.folders.ensure(&folder).unwrap(), 0, "a second write costs nothing");
        store.put(&path("b"), "2".into()).await.unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(!store.folders.is_durable(&folder));
        store.put(&path("c"), "3".into()).await.unwrap();
        assert!(store.folders.is_durable(&folder));
    }

    #[tokio::test]
    async fn what_another_process_left_is_settled_before_it_is_shown() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        let store = DurableLocal::at(root.clone());
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        for (file, expected) in [("_catalog/1.json", true), ("p/t.lance/data/x.lance", false)] {
            let file = root.join(file);
            let folder = file.parent().unwrap();
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(&file, "1").unwrap();
            std::fs::File::open(folder).unwrap().set_modified(long_ago).unwrap();
            let path = Path::from_absolute_path(&file).unwrap();
            store.get(&path).await.unwrap();
            assert_eq!(!store.folders.settle(folder).unwrap(), expected, "{path}");
        }
    }

    #[tokio::test]
    async fn lance_writes_local_tables_through_the_store_that_syncs() {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().display().to_string();
        let database = Database::open(&location, OpenOptions::default()).await.unwrap();
        table(&database, &[0..3]).await;
        let snapshot = newest(&database, &name("t")).await;
        assert!(snapshot.dataset().uri().starts_with("file-object-store:///"), "{}", snapshot.dataset().uri());
        let store = snapshot.dataset().object_store(None).await.unwrap();
        let shown = format!("{:?}", store.inner);
        assert!(shown.contains("DurableLocal") && shown.contains("fsync: true"), "{shown}");
    }
}
