//! Checksums for every file of a table: a store around the store that writes a sidecar with the sums of each block
//! before (or, where nobody can look yet, beside) each file, and verifies what it reads before handing it out. Lance
//! itself has no checksums: a flipped bit in a data file is a wrong answer.
//!
//! The rule: a file one of whose sidecars matches is sound; one that has sidecars of which none matches is damaged, and
//! reading it is an error; one without any was written by another program and is read unverified. Two writers that
//! race for a name (a manifest) both leave a sidecar; the loser's does no harm.
//!
//! What is where: names in `layout.rs`, bytes in `format.rs`, requests for sidecars in `sidecars.rs`, verified reads in
//! `read.rs`, the one file that is replaced in place in `hint.rs`, `CHECK TABLE` in `../check.rs`.
//!
//! Cost of a write: one PUT more for each file, at the same time as the file's own unless the file is visible at once
//! (manifests, tags): then before it. Sidecars hold 28 bytes and 4 for each 64 KiB, 1/16384 of the data. A commit of
//! one data file makes three PUTs more, one of them in the critical path.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lance_io::object_store::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, UploadPart,
};

pub(crate) mod format;
mod hint;
pub(crate) mod layout;
pub(crate) mod read;
pub(crate) mod sidecars;

use format::{Summer, Sums};
use layout::{Layout, TableFile};
use sidecars::{Cache, Sidecars};

/// The name of this store in errors of `object_store`.
const STORE: &str = "checksums";

/// How the text of every error about a damaged file begins.
pub(crate) const DAMAGE: &str = "damaged file";

/// The largest file of another program whose sums are taken when it won a race against ours.
const ADOPT_BYTES_MAX: u64 = 64 << 20;

/// Files of one batch of deletions whose sidecars go together.
const DELETED_BATCH: usize = 1000;

/// What was verified, since the database was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChecksumFigures {
    /// Bytes that were read and matched their sums.
    pub bytes_verified: u64,
    /// Bytes that were read from files without checksums.
    pub bytes_unverified: u64,
    /// Reads that did not match, those included that did when they were made again.
    pub damages: u64,
}

#[derive(Debug, Default)]
struct Counters {
    bytes_verified: AtomicU64,
    bytes_unverified: AtomicU64,
    damages: AtomicU64,
}

/// Puts [`Summed`] around the stores that Lance makes for one database.
pub(crate) struct Checksums {
    below: Option<Arc<dyn WrappingObjectStore>>,
    layout: Arc<Layout>,
    cache: Arc<Cache>,
    counters: Arc<Counters>,
    made: OnceLock<Summed>,
}

impl fmt::Debug for Checksums {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Checksums").field("below", &self.below).finish_non_exhaustive()
    }
}

impl Checksums {
    /// For the tables of the database at `base`; `below` wraps or replaces the store first.
    pub(crate) fn new(base: &Path, below: Option<Arc<dyn WrappingObjectStore>>) -> Self {
        let layout = Arc::new(Layout::new(base));
        Self { below, layout, cache: Arc::default(), counters: Arc::default(), made: OnceLock::new() }
    }

    /// The store that was made, once there is one.
    pub(crate) fn store(&self) -> Option<&Summed> {
        self.made.get()
    }

    /// What was verified so far.
    pub(crate) fn figures(&self) -> ChecksumFigures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ChecksumFigures {
            bytes_verified: get(&self.counters.bytes_verified),
            bytes_unverified: get(&self.counters.bytes_unverified),
            damages: get(&self.counters.damages),
        }
    }
}

impl WrappingObjectStore for Checksums {
    fn wrap(&self, prefix: &str, original: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        let inner = match &self.below {
            Some(below) => below.wrap(prefix, original),
            None => original,
        };
        let summed = Summed {
            sidecars: Sidecars::new(inner.clone(), self.cache.clone()),
            inner,
            layout: self.layout.clone(),
            counters: self.counters.clone(),
        };
        let _ = self.made.set(summed.clone());
        Arc::new(summed)
    }

    fn wrap_paginated(
        &self,
        _prefix: &str,
        _original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        // A lister of the original store would look past this one.
        None
    }
}

/// A store with checksums. Cheap to clone; clones share what they know.
#[derive(Clone, Debug)]
pub(crate) struct Summed {
    inner: Arc<dyn ObjectStore>,
    sidecars: Sidecars,
    layout: Arc<Layout>,
    counters: Arc<Counters>,
}

impl Summed {
    /// The store below, which shows sidecars and verifies nothing.
    pub(crate) fn raw(&self) -> &Arc<dyn ObjectStore> {
        &self.inner
    }

    /// The sidecars.
    pub(crate) fn sidecars(&self) -> &Sidecars {
        &self.sidecars
    }

    /// Which paths are files of tables.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Puts a file of a table. Files that nobody can look for yet are written at the same time as their sidecars.
    async fn put_summed(
        &self,
        location: &Path,
        file: &TableFile<'_>,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let sums = Sums::of(&payload);
        let put = self.inner.put_opts(location, payload, options);
        let put = if file.is_unique() {
            let (written, put) = futures::join!(self.sidecars.write(file, &sums), put);
            put.and_then(|done| written.map(|()| done))
        } else {
            self.sidecars.write(file, &sums).await?;
            put.await
        };
        match &put {
            Ok(_) => self.sidecars.remember(location, Arc::new(sums)),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => self.lost(location, file, &sums).await,
            // The file may be there or not: whoever reads it finds out.
            Err(_) => self.sidecars.forget(location),
        }
        put
    }

    /// After somebody else was faster: if that was a program that writes no sidecars, ours would make its file look
    /// damaged, so its sums are taken from what is there. Cost: one GET of the winner; if it is not our own file (whose
    /// answer was lost), also a look at all sidecars of the name.
    async fn lost(&self, location: &Path, file: &TableFile<'_>, ours: &Sums) {
        self.sidecars.forget(location);
        let adopted = async {
            let winner = self.inner.get(location).await?;
            if winner.meta.size > ADOPT_BYTES_MAX {
                tracing::warn!(%location, "a file of another program is too large to take its sums");
                return Ok(());
            }
            let winner = Sums { is_adopted: true, ..Sums::of(&winner.bytes().await?.into()) };
            if winner.is_same_content(ours) {
                return Ok(());
            }
            let all = self.sidecars.all(file).await?;
            // A sidecar of somebody else: one of ours won, and its own sums decide whether it is sound.
            if !all.unusable.is_empty() || all.sums.iter().any(|sums| !sums.is_same_content(ours)) {
                return Ok(());
            }
            tracing::info!(%location, "another program was faster, its file is summed as it is");
            self.sidecars.write_other(file, &winner).await
        };
        if let Err(error) = adopted.await {
            tracing::warn!(%location, %error, "the file that was there first could not be summed");
        }
    }

    /// Gives `to` the sidecars that `from` has, before `from` is copied or renamed.
    async fn carry(&self, from: &Path, to: &Path) -> object_store::Result<()> {
        let Some(target) = self.layout.file(to) else { return Ok(()) };
        let mut carried = 0;
        if let Some(source) = self.layout.file(from) {
            let size = self.inner.head(from).await?.size;
            let all = self.sidecars.all(&source).await?;
            if let Some(reason) = all.unusable.first() {
                return Err(refused(format!("{from} cannot be copied: {reason}")));
            }
            for sums in all.sums.iter().filter(|sums| sums.bytes == size) {
                self.sidecars.write(&target, sums).await?;
                carried += 1;
            }
            if carried == 0 && !all.is_empty() {
                return Err(refused(format!(
                    "{from} cannot be copied: it has {size} bytes, more or less were written"
                )));
            }
        }
        if carried == 0 && !self.sidecars.all(&target).await?.is_empty() {
            return Err(refused(format!(
                "{from} has no checksums and cannot take the place of {to}, which has; copy it to a new name"
            )));
        }
        self.sidecars.forget(to);
        Ok(())
    }

    /// The hint is tiny and proves itself.
    async fn get_hint(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let found = self.inner.get_opts(location, options).await?;
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        let bytes = found.bytes().await?;
        if range == (0..meta.size) && !hint::is_sound(&bytes) {
            self.counters.damages.fetch_add(1, Ordering::Relaxed);
            let text = format!("{DAMAGE} {location}: its checksum does not match; the versions are listed instead");
            let error = std::io::Error::new(std::io::ErrorKind::InvalidData, text);
            return Err(Error::Generic { store: STORE, source: Box::new(error) });
        }
        let payload = GetResultPayload::Stream(futures::stream::once(async move { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    /// True for what Lance must not see: sidecars, unless they are asked for by name.
    fn hides(&self, prefix: Option<&Path>) -> impl Fn(&Path) -> bool + Send + Sync + use<> {
        let is_asked = prefix.is_some_and(|prefix| self.layout.is_sidecar(prefix));
        let layout = self.layout.clone();
        move |path| !is_asked && layout.is_sidecar(path)
    }
}

fn refused(text: String) -> Error {
    Error::NotSupported { source: text.into() }
}

impl fmt::Display for Summed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Summed({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Summed {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        match self.layout.file(location) {
            None => self.inner.put_opts(location, payload, options).await,
            Some(file) if file.is_hint() => self.inner.put_opts(location, hint::sign(payload), options).await,
            Some(file) => self.put_summed(location, &file, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, options).await?;
        if self.layout.file(location).is_none() {
            return Ok(inner);
        }
        let (store, location) = (self.clone(), location.clone());
        Ok(Box::new(SummedUpload { inner, store, location, summer: Summer::default() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        match self.layout.file(location) {
            Some(file) if file.is_hint() && !options.head => self.get_hint(location, options).await,
            Some(file) if !options.head => read::get(self, location, &file, options).await,
            _ => self.inner.get_opts(location, options).await,
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        if self.layout.file(location).is_none() {
            return self.inner.get_ranges(location, ranges).await;
        }
        let gap = object_store::OBJECT_STORE_COALESCE_DEFAULT;
        object_store::coalesce_ranges(ranges, |range| self.get_range(location, range), gap).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (sidecars, layout) = (self.sidecars.clone(), self.layout.clone());
        self.inner
            .delete_stream(locations)
            .ready_chunks(DELETED_BATCH)
            .then(move |batch| {
                let (sidecars, layout) = (sidecars.clone(), layout.clone());
                async move {
                    let gone: Vec<Path> = batch.iter().filter_map(|one| one.as_ref().ok().cloned()).collect();
                    gone.iter().for_each(|location| sidecars.forget(location));
                    sidecars.remove(&layout, &gone).await;
                    futures::stream::iter(batch)
                }
            })
            .flatten()
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let hides = self.hides(prefix);
        self.inner.list(prefix).try_filter(move |meta| futures::future::ready(!hides(&meta.location))).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let hides = self.hides(prefix);
        let listed = self.inner.list_with_offset(prefix, offset);
        listed.try_filter(move |meta| futures::future::ready(!hides(&meta.location))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        let hides = self.hides(prefix);
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        listed.common_prefixes.retain(|path| !hides(path));
        listed.objects.retain(|meta| !hides(&meta.location));
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.carry(from, to).await?;
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> object_store::Result<()> {
        self.carry(from, to).await?;
        self.inner.rename_opts(from, to, options).await?;
        self.sidecars.forget(from);
        self.sidecars.remove(&self.layout, std::slice::from_ref(from)).await;
        Ok(())
    }
}

/// An upload in parts that sums them as they go by. The sidecar is written before the file becomes visible.
struct SummedUpload {
    inner: Box<dyn MultipartUpload>,
    store: Summed,
    location: Path,
    summer: Summer,
}

impl fmt::Debug for SummedUpload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SummedUpload").field("location", &self.location).finish_non_exhaustive()
    }
}

#[async_trait]
impl MultipartUpload for SummedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        // The order of the calls is the order of the parts, whatever order they arrive in.
        data.iter().for_each(|bytes| self.summer.update(bytes));
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let sums = self.summer.clone().finish();
        if let Some(file) = self.store.layout.file(&self.location) {
            self.store.sidecars.write(&file, &sums).await?;
        }
        let done = self.inner.complete().await;
        match &done {
            Ok(_) => self.store.sidecars.remember(&self.location, Arc::new(sums)),
            Err(_) => self.store.sidecars.forget(&self.location),
        }
        done
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests;
