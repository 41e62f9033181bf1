//! Which index files are garbage: segments and row maps that no version needs any more, files that no list names, lists that
//! were followed by others long ago. Part of VACUUM, after versions were removed.
//!
//! A segment is needed while a version that is kept names a unit of it, or a file that a map leads from there; a map while a
//! version names one of its targets. Versions are those of the table and of all its branches; tags name versions of theirs.
//! Files that are younger than a week and were never listed belong to builds and changes that may be under way.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use lance_table::io::commit::ManifestNamingScheme;
use lance_table::io::manifest::read_manifest;
use object_store::ObjectMeta;

use super::manifest::{IndexManifest, RemovedFile, RowMapEntry};
use super::{FOLDER, TableIndexes, now_us};
use crate::catalog::TableEntry;
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::numbered::{Change, Numbered};
use crate::snapshot::guard;

/// How old a file must be before it counts as left behind: as VACUUM does with data files.
const UNLISTED_KEPT_US: i64 = 7 * 24 * 3600 * 1_000_000;

/// Lists before the newest that are kept, whatever their age.
const LISTS_KEPT: u64 = 16;

/// Versions whose files are read at once.
const READ_AT_ONCE: usize = 8;

/// What was removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Collected {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Database {
    /// Removes index files that are garbage. A dry run counts them.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub(crate) async fn collect_indexes(&self, entry: &TableEntry, dry_run: bool) -> Result<Collected> {
        let indexes = self.table_indexes(&entry.location);
        let listed = indexes.listed().await?;
        let mut collected = Collected::default();
        if listed.is_empty() {
            return Ok(collected);
        }
        let manifest = match indexes.newest().await {
            Ok(manifest) => manifest,
            // Nobody knows what is garbage.
            Err(error @ (StorageError::Corrupt(_) | StorageError::Unsupported(_))) => {
                tracing::warn!(table = entry.location, %error, "index files are left as they are");
                return Ok(collected);
            }
            Err(error) => return Err(error),
        };
        let garbage = self.garbage(entry, &manifest).await?;
        if !garbage.is_empty() && !dry_run {
            let change = |current: &IndexManifest| Ok(Change::Write(without(current, &garbage), ()));
            indexes.change(change).await?;
        }
        let old = indexes.unlisted(&listed, &manifest, &garbage);
        for meta in &old {
            collected.files += 1;
            collected.bytes += meta.size;
        }
        if !dry_run {
            let names = old.iter().filter_map(|meta| meta.location.filename().map(str::to_owned));
            indexes.delete(&names.collect::<Vec<_>>()).await;
            indexes.sweep().await;
        }
        Ok(collected)
    }

    /// Names of files that the list names and no version needs.
    async fn garbage(&self, entry: &TableEntry, manifest: &IndexManifest) -> Result<HashSet<String>> {
        let young = now_us() - UNLISTED_KEPT_US;
        let mut wanted: HashSet<&str> = HashSet::new();
        for unit in manifest.segments.iter().flat_map(|segment| &segment.units) {
            wanted.insert(&unit.file);
        }
        wanted.extend(manifest.row_maps.iter().flat_map(|map| &map.targets).map(String::as_str));
        let named = self.named_files(entry, &wanted).await?;
        // A change that is under way may be about to name the targets of a young map.
        let mut needed: HashSet<&str> = named.iter().map(String::as_str).collect();
        let is_needed = |map: &RowMapEntry, needed: &HashSet<&str>| {
            map.written_at_us > young || map.targets.iter().any(|target| needed.contains(target.as_str()))
        };
        let mut kept: HashSet<&str> = HashSet::new();
        loop {
            let more: Vec<&RowMapEntry> = manifest
                .row_maps
                .iter()
                .filter(|map| !kept.contains(map.id.as_str()) && is_needed(map, &needed))
                .collect();
            if more.is_empty() {
                break;
            }
            for map in more {
                kept.insert(&map.id);
                needed.extend(map.sources.iter().map(String::as_str));
            }
        }
        let segments = manifest.segments.iter();
        let segments = segments.filter(|segment| !segment.units.iter().any(|unit| needed.contains(unit.file.as_str())));
        let maps = manifest.row_maps.iter().filter(|map| !kept.contains(map.id.as_str()));
        Ok(segments.map(super::SegmentEntry::file).chain(maps.map(RowMapEntry::file)).collect())
    }

    /// Those of `wanted` that a version of the table or of a branch names. Cost: a LIST, and a read of versions, from the newest
    /// on, until nothing is wanted any more.
    async fn named_files(&self, entry: &TableEntry, wanted: &HashSet<&str>) -> Result<HashSet<String>> {
        let what = format!("cannot see which index files are needed in {}", entry.location);
        let folder = self.root().path(&entry.location);
        let failed = |error| StorageError::from_store(&what, error);
        let listed: Vec<ObjectMeta> = self.root().store().list(Some(&folder)).try_collect().await.map_err(failed)?;
        let mut versions: Vec<ObjectMeta> = listed
            .into_iter()
            .filter(|meta| {
                let mut parts = meta.location.as_ref().rsplit('/');
                let file = parts.next().unwrap_or_default();
                parts.next() == Some("_versions") && ManifestNamingScheme::detect_scheme(file).is_some()
            })
            .collect();
        versions.sort_by_key(|meta| std::cmp::Reverse(meta.last_modified));
        let mut left: HashSet<&str> = wanted.clone();
        let mut named = HashSet::new();
        let mut read =
            futures::stream::iter(versions)
                .map(|meta| {
                    let what = what.clone();
                    async move {
                        guard(&what, read_manifest(self.root().lance_store(), &meta.location, Some(meta.size))).await
                    }
                })
                .buffered(READ_AT_ONCE);
        while !left.is_empty()
            && let Some(version) = read.next().await
        {
            let version = match version {
                Ok(version) => version,
                // Removed since it was listed.
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            for file in version.fragments.iter().flat_map(|fragment| &fragment.files) {
                if left.remove(file.path.as_str()) {
                    named.insert(file.path.clone());
                }
            }
        }
        Ok(named)
    }
}

fn without(current: &IndexManifest, garbage: &HashSet<String>) -> IndexManifest {
    let mut next = current.clone();
    let removed_at_us = now_us();
    let gone = current.files().filter(|file| garbage.contains(file));
    next.removed.extend(gone.map(|file| RemovedFile { file, removed_at_us }));
    next.segments.retain(|segment| !garbage.contains(&segment.file()));
    next.row_maps.retain(|map| !garbage.contains(&map.file()));
    next
}

impl TableIndexes {
    /// The files of the folder.
    async fn listed(&self) -> Result<Vec<ObjectMeta>> {
        let folder = self.root.path(&format!("{}/{FOLDER}", self.location));
        let listed = self.root.store().list(Some(&folder)).try_collect().await;
        match listed.map_err(|error| StorageError::from_store("cannot list index files", error)) {
            Err(error) if error.is_not_found() => Ok(vec![]),
            listed => listed,
        }
    }

    /// Files that can go: garbage, what no list names, lists of long ago.
    fn unlisted<'a>(
        &self,
        listed: &'a [ObjectMeta],
        manifest: &IndexManifest,
        garbage: &HashSet<String>,
    ) -> Vec<&'a ObjectMeta> {
        let named: HashSet<String> = manifest.files().collect();
        let removed: HashSet<&str> = manifest.removed.iter().map(|removed| removed.file.as_str()).collect();
        let young = now_us() - UNLISTED_KEPT_US;
        let goes = |meta: &&ObjectMeta| {
            let Some(name) = meta.location.filename() else { return false };
            let is_old = meta.last_modified.timestamp_micros() < young;
            match IndexManifest::number_in(name) {
                Some(number) => is_old && number + LISTS_KEPT < manifest.number,
                // The versions that needed it are gone, and so is whoever read them.
                None if garbage.contains(name) => true,
                None => is_old && !named.contains(name) && !removed.contains(name),
            }
        };
        listed.iter().filter(goes).collect()
    }
}
