//! Folders on local disk that a power loss must not take away. What a statement acknowledged survives it, also if an
//! earlier process was killed, or another one is, between making an entry and syncing it:
//!
//! * Before the first write into a folder, the folder is made and synced into all folders above it, whoever made it
//!   ([`Folders::ensure`]). So whatever is found in a folder, the folder itself is there to stay.
//! * A file that nothing written later vouches for (the mark, a catalog file, a manifest, a tag, a list of indexes) may
//!   have been found before its own writer could sync its entry. The folder is synced before anybody is shown the file, and
//!   so before anything builds on it ([`Folders::settle`]). All other files were synced by their writers before a manifest named
//!   them. The bytes of a file are synced before it gets its name.
//!
//! Cost: a few syncs per folder and process; a reader pays one when the folder changed since it last looked.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::catalog::log::FOLDER as CATALOG_FOLDER;
use crate::index::{FOLDER as INDEX_FOLDER, IndexManifest};
use crate::numbered::Numbered;

/// Folders that are remembered.
const FOLDERS_MAX: usize = 1 << 16;

/// How long a folder must have been quiet before its time tells whether it changed: the clocks of file systems are
/// coarse, up to two seconds.
const QUIET: Duration = Duration::from_secs(3);

/// What is known to be durable. Its calls block.
#[derive(Debug)]
pub(crate) struct Folders {
    /// The database's folder.
    root: PathBuf,
    /// Folders that are entered durably in all folders above them.
    known: Mutex<HashSet<PathBuf>>,
    /// When the folders whose entries are durable were last changed.
    settled: Mutex<HashMap<PathBuf, SystemTime>>,
}

impl Folders {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, known: Mutex::default(), settled: Mutex::default() }
    }

    /// Whether a folder is there to stay. One that was removed is not, whoever removed it. Cost: asks the system once,
    /// which takes a microsecond.
    pub(crate) fn is_durable(&self, folder: &Path) -> bool {
        lock(&self.known).contains(folder) && folder.is_dir()
    }

    /// Makes a folder and syncs it into the folders above it, up to the first that is durable. Returns how many were
    /// synced.
    ///
    /// # Errors
    /// Those of the system. Not that a folder above the root cannot be synced for want of permission: a service is often
    /// given its folder by somebody else, in one that it may not read.
    pub(crate) fn ensure(&self, folder: &Path) -> Result<usize> {
        // Asked before any is made: a folder that was removed and is made again is a new one.
        let durable = folder.ancestors().find(|ancestor| self.is_durable(ancestor));
        if durable == Some(folder) {
            return Ok(0);
        }
        std::fs::create_dir_all(folder).map_err(|error| {
            Error::new(error.kind(), format!("the folder {} cannot be made: {error}", folder.display()))
        })?;
        let mut synced = 0;
        for ancestor in folder.ancestors().skip(1) {
            match sync_folder(ancestor) {
                Ok(()) => synced += 1,
                Err(error) if is_out_of_reach(&error) && !ancestor.starts_with(&self.root) => {}
                Err(error) => return Err(error),
            }
            if durable == Some(ancestor) {
                break;
            }
        }
        let new = folder.ancestors().take_while(|ancestor| durable != Some(*ancestor));
        let mut known = lock(&self.known);
        if known.len() >= FOLDERS_MAX {
            known.clear();
        }
        known.extend(new.map(Path::to_path_buf));
        Ok(synced)
    }

    /// The folder to settle before anybody is shown this file.
    pub(crate) fn unsettled<'a>(&self, file: &'a Path) -> Option<&'a Path> {
        let folder = file.parent()?;
        // The hint beside the manifests vouches for nothing.
        let is_manifest = folder.ends_with("_versions") && file.extension().is_some_and(|ending| ending == "manifest");
        let is_tag = folder.parent().is_some_and(|above| above.ends_with("_refs"));
        let is_index_list = folder.ends_with(INDEX_FOLDER)
            && file.file_name().and_then(OsStr::to_str).is_some_and(|name| IndexManifest::number_in(name).is_some());
        let is_found = is_manifest || is_tag || is_index_list;
        (folder == self.root || folder.ends_with(CATALOG_FOLDER) || is_found).then_some(folder)
    }

    /// Makes durable what was found in a folder, unless nothing changed there since the last time. Returns whether it
    /// was synced.
    ///
    /// # Errors
    /// Those of the medium. Not that the folder may not be read or the medium is read-only: whoever only reads must not
    /// fail for want of a sync, and what this process writes there is synced, or fails, with the write.
    pub(crate) fn settle(&self, folder: &Path) -> Result<bool> {
        let now = SystemTime::now();
        let changed = match std::fs::metadata(folder).and_then(|found| found.modified()) {
            Ok(changed) => changed,
            Err(error) if error.kind() == ErrorKind::NotFound || is_out_of_reach(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        if lock(&self.settled).get(folder) == Some(&changed) {
            return Ok(false);
        }
        match sync_folder(folder) {
            Err(error) if !is_out_of_reach(&error) => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // One more entry within the same tick of the file system's clock would not be seen.
        if now.duration_since(changed).is_ok_and(|age| age >= QUIET) {
            let mut settled = lock(&self.settled);
            if settled.len() >= FOLDERS_MAX {
                settled.clear();
            }
            settled.insert(folder.to_path_buf(), changed);
        }
        Ok(true)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// True if a folder is not ours to sync, or its file system has no such thing. A medium that fails is another matter.
fn is_out_of_reach(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::InvalidInput | ErrorKind::Unsupported
    )
}

/// Makes the entries of a folder durable. Without it a new file may be gone after a power loss, and a deleted one back.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        match std::fs::File::open(folder) {
            Ok(file) => file.sync_all(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_another_process_made_is_synced_once_into_all_above_it() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("db");
        let data = root.join("public/t.lance/data");
        std::fs::create_dir_all(&data).unwrap();
        let folders = Folders::new(root.clone());
        assert!(!folders.is_durable(&data));
        let above = data.ancestors().count() - 1;
        assert!((4..=above).contains(&folders.ensure(&data).unwrap()));
        assert!([&data, &root].iter().all(|folder| folders.is_durable(folder)));
        assert_eq!(folders.ensure(&data).unwrap(), 0);
        // A new one beside it goes into one folder only.
        assert_eq!(folders.ensure(&root.join("public/t.lance/_deletions")).unwrap(), 1);
    }

    #[test]
    fn a_folder_that_was_removed_is_new_when_it_is_made_again() {
        let place = tempfile::tempdir().unwrap();
        let folders = Folders::new(place.path().to_owned());
        let data = place.path().join("public/t.lance/data");
        folders.ensure(&data).unwrap();
        std::fs::remove_dir_all(place.path().join("public/t.lance")).unwrap();
        assert!(!folders.is_durable(&data));
        assert_eq!(folders.ensure(&data).unwrap(), 2, "data in the table's folder, and that in the schema's");
        assert!(folders.is_durable(&data));
    }

    #[test]
    fn a_folder_is_settled_again_only_after_a_change() {
        let place = tempfile::tempdir().unwrap();
        let folders = Folders::new(place.path().to_owned());
        let age = |seconds: u64| {
            let time = SystemTime::now() - Duration::from_secs(seconds);
            std::fs::File::open(place.path()).unwrap().set_modified(time).unwrap();
        };
        assert!(folders.settle(place.path()).unwrap());
        assert!(folders.settle(place.path()).unwrap(), "it changed a moment ago");
        age(60);
        assert!(folders.settle(place.path()).unwrap());
        assert!(!folders.settle(place.path()).unwrap());
        age(30);
        assert!(folders.settle(place.path()).unwrap());
        assert!(!folders.settle(&place.path().join("gone")).unwrap());
    }

    #[test]
    fn files_that_nothing_vouches_for_are_told_by_their_folders() {
        let folders = Folders::new(PathBuf::from("/a/db"));
        let check = |file: &str, expected: bool| {
            assert_eq!(folders.unsettled(&Path::new("/a/db").join(file)).is_some(), expected, "{file}");
        };
        check("sagitta.json", true);
        check("_catalog/00000000000000000001.json", true);
        check("public/t.lance/_versions/1.manifest", true);
        check("public/t.lance/_refs/tags/a.json", true);
        check("public/t.lance/_versions/latest_version_hint.json", false);
        check("public/t.lance/_crc/_versions/1.manifest.crc", false);
        check("public/t.lance/data/x.lance", false);
        check("public/t.lance/_ann/manifest-00000000000000000001", true);
        check("public/t.lance/_ann/0f.seg", false);
        check("public/t.lance/_crc/_ann/manifest-00000000000000000001.crc", false);
    }
}
