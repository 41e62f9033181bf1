//! Segments of object stores, kept on local disk: read from the store once, mapped from then on, by all processes that are
//! given the same folder. The least recently used ones make room. What is in the folder is verified like any segment: a file
//! that a crash left half written is read anew.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::error::{Result, StorageError};
use crate::store::Root;

/// How the names of whole files end.
const ENDING: &str = "seg";

/// How the names of files that are being written end.
const PART_ENDING: &str = "part";

/// How old a part must be before it counts as left behind.
const PART_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A folder for segments.
#[derive(Clone, Debug)]
pub(crate) struct DiskCache {
    folder: PathBuf,
    bytes_max: u64,
}

impl DiskCache {
    pub(crate) fn new(folder: PathBuf, bytes_max: u64) -> Self {
        Self { folder, bytes_max }
    }

    /// Where the segment is, if it is here. It counts as used now.
    pub(crate) fn find(&self, id: &str) -> Option<PathBuf> {
        let path = self.path(id);
        let file = File::options().append(true).open(&path).ok()?;
        // Where that is not allowed, another one goes first.
        let _ = file.set_modified(SystemTime::now());
        Some(path)
    }

    /// Takes a segment out that is not what was written.
    pub(crate) fn forget(&self, id: &str) {
        let _ = std::fs::remove_file(self.path(id));
    }

    /// Copies a segment of `bytes` from the store. `None` if it is larger than the cache, or the disk does not take it.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn fetch(&self, root: &Root, relative: &str, id: &str, bytes: u64) -> Result<Option<PathBuf>> {
        if bytes > self.bytes_max {
            return Ok(None);
        }
        let room = self.clone();
        let made = tokio::task::spawn_blocking(move || room.make_room(bytes)).await;
        if let Err(error) = made.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(folder = %self.folder.display(), %error, "segments cannot be kept on local disk");
            return Ok(None);
        }
        let part = self.folder.join(format!("{id}.{}.{PART_ENDING}", Uuid::new_v4().simple()));
        let copied = self.copy(root, relative, &part).await;
        let placed = match copied {
            Ok(Ok(())) => tokio::fs::rename(&part, self.path(id)).await,
            Ok(Err(error)) => Err(error),
            Err(error) => {
                let _ = tokio::fs::remove_file(&part).await;
                return Err(error);
            }
        };
        match placed {
            Ok(()) => Ok(Some(self.path(id))),
            Err(error) => {
                let _ = tokio::fs::remove_file(&part).await;
                tracing::warn!(folder = %self.folder.display(), %error, "a segment cannot be kept on local disk");
                Ok(None)
            }
        }
    }

    /// The outer error is the store's, the inner one the disk's.
    async fn copy(&self, root: &Root, relative: &str, part: &Path) -> Result<io::Result<()>> {
        let failed = |error| StorageError::from_store(format!("cannot read segment {relative}"), error);
        let mut bytes = root.store().get(&root.path(relative)).await.map_err(failed)?.into_stream();
        let mut file = match tokio::fs::File::create(part).await {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        while let Some(piece) = bytes.try_next().await.map_err(failed)? {
            if let Err(error) = file.write_all(&piece).await {
                return Ok(Err(error));
            }
        }
        Ok(file.flush().await)
    }

    fn make_room(&self, bytes: u64) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut there = vec![];
        let now = SystemTime::now();
        for file in std::fs::read_dir(&self.folder)? {
            let file = file?;
            // Another process may have removed it since.
            let Ok(found) = file.metadata() else { continue };
            let used = found.modified()?;
            let path = file.path();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(ENDING) => there.push((used, found.len(), path)),
                Some(PART_ENDING) if now.duration_since(used).is_ok_and(|age| age > PART_KEPT) => {
                    std::fs::remove_file(path)?;
                }
                _ => {}
            }
        }
        there.sort();
        let mut total: u64 = there.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, length, path) in there {
            if total + bytes <= self.bytes_max {
                break;
            }
            // Whoever has it mapped goes on with it.
            std::fs::remove_file(path)?;
            total -= length;
        }
        Ok(())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.{ENDING}"))
    }
}
