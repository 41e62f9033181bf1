//! `CHECK TABLE`: reads every file of a table as it is stored, compares it with its sidecars, and makes sure that what
//! the versions and the list of indexes name is there. It does not open the table, so it also works on one that cannot be
//! opened.
//!
//! Cost: one LIST, then for each file one GET of the whole file and one of its sidecar, [`FILES_AT_ONCE`] at once, in
//! steps of 4 MiB; then each manifest once more, as Lance reads it. Writers and cleanup may run meanwhile: a file that
//! is missing is looked for again, together with the version that names it, before it is reported.

use std::collections::{BTreeMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use lance_table::format::{Fragment, IndexMetadata, Manifest};
use lance_table::io::commit::{ManifestLocation, ManifestNamingScheme};
use lance_table::io::deletion::relative_deletion_file_path;
use lance_table::io::manifest::{read_manifest, read_manifest_indexes};
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStoreExt};

use crate::catalog::TableEntry;
use crate::checksums::Summed;
use crate::checksums::format::{Summer, Sums};
use crate::checksums::read::{STEP_BYTES, describe, pieces};
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::index::{FOLDER as INDEX_FOLDER, IndexManifest};
use crate::numbered::{Numbered, NumberedFiles};
use crate::snapshot::{guard, shown};
use crate::store::Root;

/// Files that are read at once.
const FILES_AT_ONCE: usize = 4;

/// Findings that are kept; further ones are only counted.
const FINDINGS_MAX: usize = 10_000;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Files that are what was written.
    pub files_verified: u64,
    /// Files that another program wrote, of which nobody can tell.
    pub files_unverified: u64,
    /// Files that are not what was written, or cannot be read.
    pub files_damaged: u64,
    /// Files that a version names and that are not there.
    pub files_missing: u64,
    /// Versions whose references were followed.
    pub versions: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Each file that is not verified, worst first, then by name: at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
}

/// A file that is not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its path in the table's folder.
    pub file: String,
    /// Its size, 0 if it is missing.
    pub bytes: u64,
    /// What is the matter.
    pub status: FindingStatus,
    /// What exactly, and where.
    pub detail: String,
}

/// What is the matter with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingStatus {
    /// A version names it, and it is not there.
    Missing,
    /// It is not what was written.
    Damaged,
    /// Another program wrote it, without checksums.
    Unverified,
}

impl FindingStatus {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Damaged => "damaged",
            Self::Unverified => "unverified",
        }
    }
}

impl CheckReport {
    fn add(&mut self, finding: Finding) {
        match finding.status {
            FindingStatus::Missing => self.files_missing += 1,
            FindingStatus::Damaged => self.files_damaged += 1,
            FindingStatus::Unverified => self.files_unverified += 1,
        }
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

impl Database {
    /// Reads and verifies every file of a table, whichever version names it.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`] if the store does not answer. Damage is no error: it is in the report.
    pub async fn check(&self, entry: &TableEntry) -> Result<CheckReport> {
        check(self.root(), &entry.location).await
    }
}

pub(crate) async fn check(root: &Root, location: &str) -> Result<CheckReport> {
    let what = format!("cannot check the files in {}", shown(root, location));
    let store = root
        .summed()
        .ok_or_else(|| StorageError::unsupported(format!("{what}: a table of others has no checksums")))?;
    let folder = root.path(location);
    let failed = |error| StorageError::from_store(&what, error);
    let listed: Vec<ObjectMeta> = store.raw().list(Some(&folder)).try_collect().await.map_err(failed)?;
    let files: Vec<ObjectMeta> =
        listed.into_iter().filter(|meta| store.layout().file(&meta.location).is_some()).collect();
    let mut report = CheckReport::default();
    let mut outcomes = futures::stream::iter(files.clone())
        .map(|meta| verify(store.clone(), folder.clone(), meta))
        .buffer_unordered(FILES_AT_ONCE);
    while let Some(outcome) = outcomes.next().await {
        match outcome.map_err(failed)? {
            Outcome::Gone => {}
            Outcome::Verified(bytes) => {
                report.bytes += bytes;
                report.files_verified += 1;
            }
            Outcome::Found(finding) => {
                report.bytes += finding.bytes;
                report.add(finding);
            }
        }
    }
    drop(outcomes);
    let references = References { root, store, folder: &folder, what: &what };
    references.follow(&files, &mut report).await?;
    references.follow_indexes(location, &files, &mut report).await?;
    report.findings.sort_by(|a, b| (a.status, &a.file).cmp(&(b.status, &b.file)));
    Ok(report)
}

enum Outcome {
    /// Removed since it was listed.
    Gone,
    Verified(u64),
    Found(Finding),
}

/// Reads one file and its sidecars.
async fn verify(store: Summed, folder: Path, meta: ObjectMeta) -> object_store::Result<Outcome> {
    let found = |bytes: u64, status: FindingStatus, detail: String| {
        Outcome::Found(Finding { file: relative(&folder, &meta.location), bytes, status, detail })
    };
    let Some(file) = store.layout().file(&meta.location) else { return Ok(Outcome::Gone) };
    let sums = match sum(&store, &meta.location).await {
        Ok(sums) => sums,
        Err(Error::NotFound { .. }) => return Ok(Outcome::Gone),
        // The medium may refuse to read one file while the others are well; a store that is down refuses all.
        Err(error) => {
            store.raw().head(&meta.location).await?;
            return Ok(found(meta.size, FindingStatus::Damaged, format!("it cannot be read: {error}")));
        }
    };
    if file.is_hint() {
        // It proves itself when it is read.
        return Ok(match store.get(&meta.location).await {
            Ok(_) | Err(Error::NotFound { .. }) => Outcome::Verified(sums.bytes),
            Err(error) => found(sums.bytes, FindingStatus::Damaged, error.to_string()),
        });
    }
    if store.sidecars().first(&file).await?.is_some_and(|first| first.is_same_content(&sums)) {
        return Ok(Outcome::Verified(sums.bytes));
    }
    let candidates = store.sidecars().all(&file).await?;
    if candidates.sums.iter().any(|candidate| candidate.is_same_content(&sums)) {
        return Ok(Outcome::Verified(sums.bytes));
    }
    if candidates.is_empty() {
        let detail = "another program wrote it, without checksums".to_owned();
        return Ok(found(sums.bytes, FindingStatus::Unverified, detail));
    }
    let differs = |candidate: &Sums| {
        let blocks = candidate.blocks.iter().zip(&sums.blocks);
        blocks.enumerate().find_map(|(number, (written, read))| (written != read).then_some(number as u64))
    };
    Ok(found(sums.bytes, FindingStatus::Damaged, describe(&candidates, sums.bytes, differs)))
}

/// The sums of a file as it is stored.
async fn sum(store: &Summed, location: &Path) -> object_store::Result<Sums> {
    let found = store.raw().get(location).await?;
    let range = found.range.clone();
    let mut bytes = pieces(found.payload, range, STEP_BYTES);
    let mut summer = Summer::default();
    while let Some(piece) = bytes.try_next().await? {
        summer.update(&piece);
    }
    Ok(summer.finish())
}

fn relative(folder: &Path, location: &Path) -> String {
    let rest = location.as_ref().strip_prefix(folder.as_ref()).unwrap_or(location.as_ref());
    rest.trim_start_matches('/').to_owned()
}

/// Follows what the versions name.
struct References<'a> {
    root: &'a Root,
    store: &'a Summed,
    folder: &'a Path,
    what: &'a str,
}

impl References<'_> {
    async fn follow(&self, files: &[ObjectMeta], report: &mut CheckReport) -> Result<()> {
        let there: HashSet<String> = files.iter().map(|meta| relative(self.folder, &meta.location)).collect();
        let index_folders: HashSet<&str> =
            there.iter().filter_map(|file| file.strip_prefix("_indices/")?.split('/').next()).collect();
        let damaged = report.findings.iter().filter(|finding| finding.status == FindingStatus::Damaged);
        let damaged: HashSet<String> = damaged.map(|finding| finding.file.clone()).collect();
        // What is missing, and the newest version that names it.
        let mut missing: BTreeMap<String, (u64, Path)> = BTreeMap::new();
        let mut newest = 0;
        let mut newest_whole = None;
        for meta in files {
            let name = relative(self.folder, &meta.location);
            let Some(file) = name.strip_prefix("_versions/") else { continue };
            let Some(scheme) = ManifestNamingScheme::detect_scheme(file) else { continue };
            if damaged.contains(&name) {
                continue;
            }
            match self.named_by(meta, scheme).await {
                Ok((version, names, indices)) => {
                    report.versions += 1;
                    newest = newest.max(version);
                    let files = names.into_iter().filter(|name| !there.contains(name));
                    let folders = indices.into_iter().filter(|id| !index_folders.contains(id.as_str()));
                    let mut is_whole = true;
                    for name in files.chain(folders.map(|id| format!("_indices/{id}"))) {
                        is_whole = false;
                        let named = missing.entry(name).or_insert_with(|| (version, meta.location.clone()));
                        if named.0 < version {
                            *named = (version, meta.location.clone());
                        }
                    }
                    newest_whole = newest_whole.max(is_whole.then_some(version));
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => report.add(Finding {
                    file: name,
                    bytes: meta.size,
                    status: FindingStatus::Damaged,
                    detail: error.to_string(),
                }),
            }
        }
        for (name, (version, manifest)) in missing {
            if self.is_there(&manifest).await? && !self.is_there_or_folder(&name).await? {
                let older = newest_whole.map_or_else(String::new, |whole| {
                    format!(", or RESTORE TABLE … TO VERSION {whole}, the newest that has all its files")
                });
                let vacuum = if version < newest {
                    "; if a VACUUM was broken off, the next VACUUM removes this version"
                } else {
                    ""
                };
                let detail = format!("version {version} names it; restore it from a copy{older}{vacuum}");
                report.add(Finding { file: name, bytes: 0, status: FindingStatus::Missing, detail });
            }
        }
        Ok(())
    }

    /// Looks for the files that the newest list of indexes names.
    async fn follow_indexes(&self, location: &str, files: &[ObjectMeta], report: &mut CheckReport) -> Result<()> {
        let there: HashSet<String> = files.iter().map(|meta| relative(self.folder, &meta.location)).collect();
        let list_of = |name: &str| IndexManifest::number_in(name.strip_prefix(INDEX_FOLDER)?.strip_prefix('/')?);
        let Some((number, name)) = there.iter().filter_map(|name| Some((list_of(name)?, name))).max() else {
            return Ok(());
        };
        let lists: NumberedFiles<IndexManifest> =
            NumberedFiles::new(self.root.clone(), format!("{location}/{INDEX_FOLDER}"));
        let list = match lists.read(number).await {
            Ok(Some((list, _))) => list,
            Ok(None) => return Ok(()),
            Err(error @ (StorageError::Corrupt(_) | StorageError::Unsupported(_))) => {
                let finding =
                    Finding { file: name.clone(), bytes: 0, status: FindingStatus::Damaged, detail: error.to_string() };
                if report.findings.iter().all(|other| other.file != *name) {
                    report.add(finding);
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let missing = list.files().map(|file| format!("{INDEX_FOLDER}/{file}")).filter(|file| !there.contains(file));
        let missing: Vec<String> = missing.collect();
        // One that was made or dropped since the files were listed is in another list.
        if missing.is_empty() || self.is_there(&lists.path(number + 1)).await? {
            return Ok(());
        }
        for file in missing {
            let location = file.split('/').fold(self.folder.clone(), Path::join);
            if !self.is_there(&location).await? {
                let detail = format!(
                    "the list of indexes {number} names it; its rows are compared exactly meanwhile, REINDEX makes it anew"
                );
                report.add(Finding { file, bytes: 0, status: FindingStatus::Missing, detail });
            }
        }
        Ok(())
    }

    /// The number of a version, the files it names in the table's folder, and its indices whose files it does not name.
    async fn named_by(
        &self,
        meta: &ObjectMeta,
        naming_scheme: ManifestNamingScheme,
    ) -> Result<(u64, Vec<String>, Vec<String>)> {
        let store = self.root.lance_store();
        let what = format!("{}: version file {}", self.what, relative(self.folder, &meta.location));
        let manifest = guard(&what, read_manifest(store, &meta.location, Some(meta.size))).await?;
        let location = ManifestLocation {
            version: manifest.version,
            path: meta.location.clone(),
            size: Some(meta.size),
            naming_scheme,
            e_tag: meta.e_tag.clone(),
            identity: None,
        };
        let indices = guard(&what, read_manifest_indexes(store, &location, &manifest)).await?;
        // Lance's own bookkeeping is listed among the indices and has no files.
        let own = indices.iter().filter(|index| index.base_id.is_none() && !index.name.starts_with("__lance"));
        let (listed, unlisted): (Vec<_>, Vec<_>) = own.partition(|index| index.files.is_some());
        let file_names = |index: &&IndexMetadata| {
            let folder = format!("_indices/{}", index.uuid);
            index.files.iter().flatten().map(|file| format!("{folder}/{}", file.path)).collect::<Vec<_>>()
        };
        let mut named = names(&manifest);
        named.extend(listed.iter().flat_map(file_names));
        Ok((manifest.version, named, unlisted.iter().map(|index| index.uuid.to_string()).collect()))
    }

    async fn is_there(&self, location: &Path) -> Result<bool> {
        match self.store.raw().head(location).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(StorageError::from_store(self.what, error)),
        }
    }

    async fn is_there_or_folder(&self, name: &str) -> Result<bool> {
        let location = name.split('/').fold(self.folder.clone(), Path::join);
        if self.is_there(&location).await? {
            return Ok(true);
        }
        let first = self.store.raw().list(Some(&location)).next().await;
        Ok(first.transpose().map_err(|error| StorageError::from_store(self.what, error))?.is_some())
    }
}

/// The data and deletion files that a version names in the table's own folder.
fn names(manifest: &Manifest) -> Vec<String> {
    manifest.fragments.iter().flat_map(file_names).collect()
}

/// The data and deletion files of a fragment in the table's own folder.
pub(crate) fn file_names(fragment: &Fragment) -> Vec<String> {
    let files = fragment.files.iter().filter(|file| file.base_id.is_none());
    let mut names: Vec<String> = files.map(|file| format!("data/{}", file.path)).collect();
    if let Some(deletions) = fragment.deletion_file.as_ref().filter(|file| file.base_id.is_none()) {
        names.push(relative_deletion_file_path(fragment.id, deletions));
    }
    names
}

#[cfg(test)]
mod tests;
