//! Files mapped into memory: the one place of this crate with `unsafe`. What is in a file nobody knows here.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// The bytes of a file of ours, as they are on disk. Pages come when they are touched, and are shared by all processes.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps all of the file. Only for files that nobody changes under their name: those that were written aside and renamed.
    ///
    /// # Errors
    /// Those of the system. An empty file cannot be mapped.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        #[expect(unsafe_code, reason = "a file that others change would change under our eyes")]
        // SAFETY: the caller maps segments only, in `_ann/` or in the folder of copies: they are written under another name, renamed
        // once complete, and never written again, only unlinked, which leaves a map whole. Whoever cuts such a file off by hand stops the process
        // with SIGBUS; no memory but the file's is read.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { map })
    }

    /// All bytes. They begin on a page.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_stays_whole_when_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let content: Vec<u8> = (0..100_000).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(mapped.bytes(), content);
        assert!(mapped.bytes().as_ptr().addr().is_multiple_of(4096));
        assert_eq!(MappedFile::open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
