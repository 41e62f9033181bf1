//! Which files of a database carry checksums and where their sidecars are. Names only: nothing is read or written here.
//!
//! ```text
//! <root>/<schema>/<table>.lance/data/x.lance                         a file of a table
//! <root>/<schema>/<table>.lance/_crc/data/x.lance.crc                its sidecar
//! <root>/<schema>/<table>.lance/_crc/_other/data/x.lance.crc/<sums>.crc  of further contents that raced for the name
//! ```
//!
//! Every file in a table's folder is a file of the table, whoever put it there, but for those under `_crc/`.

use object_store::path::Path;

use super::hint;

/// The folder of the sidecars in a table's folder.
pub(crate) const FOLDER: &str = "_crc";

/// The folder, in [`FOLDER`], of the sidecars of contents that were second.
const OTHER: &str = "_other";

/// How a sidecar's name ends.
const ENDING: &str = "crc";

/// Folders whose files have names that are never used twice, and that nobody reads before a manifest names them.
const UNIQUE: [&str; 5] = ["data", "_deletions", "_transactions", "_indices", "_keys"];

/// Where the tables are.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The database's root, ending in a slash unless it is the root of the store.
    base: String,
}

/// A file of a table, by its path in the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableFile<'a> {
    /// The folder of the table.
    table: &'a str,
    /// The rest of the path.
    relative: &'a str,
    /// Bytes of the path before the schema.
    base_bytes: usize,
}

impl Layout {
    /// `base` is the database's root in the store.
    pub(crate) fn new(base: &Path) -> Self {
        let base = base.as_ref();
        Self { base: if base.is_empty() { String::new() } else { format!("{base}/") } }
    }

    /// The file of a table at `path`, if it is one.
    pub(crate) fn file<'a>(&self, path: &'a Path) -> Option<TableFile<'a>> {
        let (table, relative) = self.split(path)?;
        let is_ours = relative.split('/').next() == Some(FOLDER);
        let base_bytes = self.base.len();
        (!relative.is_empty() && !is_ours).then_some(TableFile { table, relative, base_bytes })
    }

    /// True for sidecars and their folders.
    pub(crate) fn is_sidecar(&self, path: &Path) -> bool {
        self.split(path).is_some_and(|(_, relative)| relative.split('/').next() == Some(FOLDER))
    }

    /// The table's folder and what follows it.
    fn split<'a>(&self, path: &'a Path) -> Option<(&'a str, &'a str)> {
        let path = path.as_ref();
        let below = path.strip_prefix(self.base.as_str())?;
        let (schema, rest) = below.split_once('/')?;
        let name = rest.split('/').next()?;
        let is_table = name.ends_with(".lance") && !schema.starts_with('_');
        let end = path.len() - rest.len() + name.len();
        is_table.then(|| (&path[..end], path[end..].trim_start_matches('/')))
    }
}

impl TableFile<'_> {
    /// Schema, table and file, for people.
    pub(crate) fn shown(&self) -> String {
        let table = self.table.get(self.base_bytes..).unwrap_or(self.table);
        format!("{table}/{}", self.relative)
    }

    /// True if no reader can know the name before a manifest holds it, and no two writers can choose the same.
    pub(crate) fn is_unique(&self) -> bool {
        let below = match self.relative.strip_prefix("tree/") {
            // A branch has the same folders below its own.
            Some(branch) => branch.split_once('/').map_or("", |(_, below)| below),
            None => self.relative,
        };
        below.split_once('/').is_some_and(|(folder, _)| UNIQUE.contains(&folder))
    }

    /// True for the file that is replaced with each commit: see `hint.rs`.
    pub(crate) fn is_hint(&self) -> bool {
        self.relative.rsplit('/').next() == Some(hint::NAME)
    }

    /// True for files that other programs may replace in place (tags): no sidecar can tell that from damage.
    pub(crate) fn is_replaceable(&self) -> bool {
        self.relative.split('/').any(|folder| folder == "_refs")
    }

    /// The sidecar of the content that was first.
    pub(crate) fn sidecar(&self) -> object_store::Result<Path> {
        parse(format!("{}/{FOLDER}/{}.{ENDING}", self.table, self.relative))
    }

    /// The folder of the other sidecars.
    pub(crate) fn others(&self) -> object_store::Result<Path> {
        parse(format!("{}/{FOLDER}/{OTHER}/{}.{ENDING}", self.table, self.relative))
    }

    /// The folder of the other sidecars of all files of the table.
    pub(crate) fn others_of_table(&self) -> object_store::Result<Path> {
        parse(format!("{}/{FOLDER}/{OTHER}", self.table))
    }

    /// The sidecar of another content.
    pub(crate) fn other(&self, name: &str) -> object_store::Result<Path> {
        parse(format!("{}/{FOLDER}/{OTHER}/{}.{ENDING}/{name}.{ENDING}", self.table, self.relative))
    }
}

fn parse(path: String) -> object_store::Result<Path> {
    Path::parse(path).map_err(object_store::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_tables_are_told_from_all_others() {
        let check = |base: &str, path: &str, expected: Option<&str>| {
            let path = Path::parse(path).unwrap();
            let found = Layout::new(&Path::parse(base).unwrap())
                .file(&path)
                .map(|file| format!("{} {}", file.sidecar().unwrap(), file.others().unwrap()));
            assert_eq!(found.as_deref(), expected, "{path}");
        };
        let sidecars = Some("p/t.lance/_crc/data/x.lance.crc p/t.lance/_crc/_other/data/x.lance.crc");
        check("", "p/t.lance/data/x.lance", sidecars);
        let sidecars =
            Some("a/b.lance/p/t.lance/_crc/data/x.lance.crc a/b.lance/p/t.lance/_crc/_other/data/x.lance.crc");
        check("a/b.lance", "a/b.lance/p/t.lance/data/x.lance", sidecars);
        for other in ["_catalog/1.json", "sagitta.json", "_probe/x.lance/y", "p/t.lance", "p/t/data/x.lance"] {
            check("", other, None);
        }
        check("", "p/t.lance/_crc/data/x.lance.crc", None);
        check("ab", "a/p/t.lance/data/x.lance", None);
    }

    #[test]
    fn only_names_that_nobody_can_know_count_as_unique() {
        let layout = Layout::new(&Path::default());
        let check = |relative: &str, expected: bool| {
            let path = Path::parse(format!("p/t.lance/{relative}")).unwrap();
            assert_eq!(layout.file(&path).map(|file| file.is_unique()), Some(expected), "{relative}");
        };
        check("data/x.lance", true);
        check("_deletions/1-2-3.arrow", true);
        check("_transactions/1.txn", true);
        check("_indices/u/index.idx", true);
        check("_keys/01234567-3/00000000000000000002-u", true);
        check("tree/b/data/x.lance", true);
        for contested in ["_versions/1.manifest", "_refs/tags/a.json", "_ann/1.json", "tree/b/_versions/1.manifest"] {
            check(contested, false);
        }
    }
}
