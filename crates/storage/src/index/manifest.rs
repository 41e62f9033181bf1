//! What indexes a table has: their definitions, the segments they are made of, and the row maps that keep segments right when
//! rows move. One immutable value in a numbered file; the changes that lead from one value to the next are in `publish.rs`,
//! `row_map.rs` and `collect.rs`.
//!
//! A file is `<table>.lance/_ann/manifest-<20 digits>`, two lines of JSON, each ending in a line feed:
//!
//! ```text
//! {"sagitta_index":1,"number":7,"nonce":"…","bytes":123,"crc32":"89abcdef"}
//! {"indexes":[…],"segments":[…],"row_maps":[…],"removed":[…]}
//! ```
//!
//! The first line is that of a catalog file (`catalog/format.rs`), with another magic. A reader refuses a newer version and
//! ignores unknown fields.
//!
//! Whoever searches may hold any of these files: what a segment covers at a version follows from the names of data files,
//! which never change, so an older manifest leaves more rows to be compared exactly, and nothing else.

use serde::{Deserialize, Serialize};

use crate::error::{Result, StorageError};
use crate::numbered::{Numbered, is_damaged_nonce};

/// The version that this program writes, and the newest that it reads.
const VERSION: u32 = 1;

/// What the names of the files begin with.
pub(crate) const PREFIX: &str = "manifest-";

/// Digits of the number in a name.
const DIGITS: usize = 20;

/// All that is known of the indexes of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexManifest {
    /// The number of the file that this was read from; 0 for a table that never had an index.
    #[serde(skip)]
    pub number: u64,
    /// In the order of their making.
    pub indexes: Vec<IndexDefinition>,
    /// Of all indexes. Where two cover the same row, the first one counts.
    pub segments: Vec<SegmentEntry>,
    /// Where rows came from that were copied with their vectors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub row_maps: Vec<RowMapEntry>,
    /// Files that nothing names any more and that somebody may still be about to open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedFile>,
}

/// An index, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexDefinition {
    /// A UUID: an index of the same name that is made later is another one.
    pub id: String,
    /// Unique in its table.
    pub name: String,
    /// The column, by the number that is never given to another one.
    pub field_id: i32,
    /// Method, metric and parameters, in the words of whoever builds and searches.
    pub options: String,
    /// Microseconds since the epoch.
    pub created_at_us: i64,
}

/// A segment: a file that never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEntry {
    /// A UUID; the file is `<id>.seg`.
    pub id: String,
    /// The `id` of its index.
    pub index: String,
    /// Which family of indexes reads it.
    pub family: String,
    /// What it covers, in the order of local rows.
    pub units: Vec<Unit>,
    /// Local rows.
    pub rows: u64,
    /// Of the file.
    pub bytes: u64,
    /// Microseconds since the epoch.
    pub built_at_us: i64,
    /// What was measured at the build, in the words of whoever searches.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub calibration: String,
}

/// The vectors of one column in one data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The data file's name.
    pub file: String,
    /// The local row of its first row; those that follow have the numbers that follow.
    pub start: u64,
    /// Rows of the file, deleted ones included.
    pub rows: u64,
    /// Rows among them that have a vector and are not in the segment. Which ones, is in its file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absent: u64,
}

/// A file that says where the rows of some data files came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowMapEntry {
    /// A UUID; the file is `<id>.map`.
    pub id: String,
    /// The column whose vectors were copied.
    pub field_id: i32,
    /// Data files that hold the copies. Perhaps no version names them: the change may have failed.
    pub targets: Vec<String>,
    /// Data files that hold what was copied.
    pub sources: Vec<String>,
    /// Of the file.
    pub bytes: u64,
    /// Microseconds since the epoch.
    pub written_at_us: i64,
}

/// A file of ours that nothing names any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedFile {
    /// Its name in the folder.
    pub file: String,
    /// Microseconds since the epoch.
    pub removed_at_us: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl IndexManifest {
    /// The index of this name.
    pub fn index(&self, name: &str) -> Option<&IndexDefinition> {
        self.indexes.iter().find(|index| index.name == name)
    }

    /// The segments of an index, in the order that counts.
    pub fn segments_of(&self, index: &IndexDefinition) -> impl Iterator<Item = &SegmentEntry> {
        self.segments.iter().filter(move |segment| segment.index == index.id)
    }

    /// # Errors
    /// [`StorageError::NotFound`] with the indexes that there are.
    pub(crate) fn require(&self, name: &str, table: &str) -> Result<&IndexDefinition> {
        self.index(name).ok_or_else(|| {
            let names: Vec<&str> = self.indexes.iter().map(|index| index.name.as_str()).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            StorageError::not_found(format!("there is no index {name} on {table}; it has {there}"))
        })
    }

    /// The names of the files in the folder that this names.
    pub(crate) fn files(&self) -> impl Iterator<Item = String> {
        let segments = self.segments.iter().map(SegmentEntry::file);
        segments.chain(self.row_maps.iter().map(RowMapEntry::file))
    }
}

impl SegmentEntry {
    /// The name of its file in the folder.
    pub fn file(&self) -> String {
        format!("{}.seg", self.id)
    }
}

impl RowMapEntry {
    /// The name of its file in the folder.
    pub(crate) fn file(&self) -> String {
        format!("{}.map", self.id)
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    sagitta_index: u32,
    number: u64,
    nonce: String,
    bytes: usize,
    crc32: String,
}

impl Numbered for IndexManifest {
    const NAME: &'static str = "list of indexes";
    const IS_PRUNED: bool = true;

    fn number(&self) -> u64 {
        self.number
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    fn file_name(number: u64) -> String {
        format!("{PREFIX}{number:020}")
    }

    fn number_in(file_name: &str) -> Option<u64> {
        let digits = file_name.strip_prefix(PREFIX)?;
        (digits.len() == DIGITS).then(|| digits.parse().ok()).flatten()
    }

    fn encode(&self, nonce: &str) -> Result<Vec<u8>> {
        let failed = |error| StorageError::internal("a list of indexes cannot be written as JSON").with_source(error);
        let body = serde_json::to_string(self).map_err(failed)?;
        let header = Header {
            sagitta_index: VERSION,
            number: self.number,
            nonce: nonce.to_owned(),
            bytes: body.len(),
            crc32: format!("{:08x}", crc32fast::hash(body.as_bytes())),
        };
        let header = serde_json::to_string(&header).map_err(failed)?;
        Ok(format!("{header}\n{body}\n").into_bytes())
    }

    fn decode(bytes: &[u8], number: u64, file: &str) -> Result<(Self, String)> {
        let corrupt = |why: String| {
            StorageError::corrupt(format!(
                "the list of indexes {file} is damaged ({why}); searches are exact meanwhile, REINDEX TABLE makes the indexes anew"
            ))
        };
        let text = std::str::from_utf8(bytes).map_err(|_| corrupt("it is not text".to_owned()))?;
        let (header, rest) = text.split_once('\n').ok_or_else(|| corrupt("it has no header line".to_owned()))?;
        let header: Header =
            serde_json::from_str(header).map_err(|error| corrupt(format!("its header cannot be read: {error}")))?;
        if header.sagitta_index > VERSION {
            return Err(StorageError::unsupported(format!(
                "the list of indexes {file} has format {} and this program reads up to {VERSION}; use a newer sagitta",
                header.sagitta_index
            )));
        }
        let body = rest.strip_suffix('\n').ok_or_else(|| corrupt("its end is missing".to_owned()))?;
        if body.len() != header.bytes {
            return Err(corrupt(format!("it holds {} bytes instead of {}", body.len(), header.bytes)));
        }
        let crc32 = format!("{:08x}", crc32fast::hash(body.as_bytes()));
        if crc32 != header.crc32 {
            return Err(corrupt(format!("its checksum is {crc32} instead of {}", header.crc32)));
        }
        if is_damaged_nonce(&header.nonce) {
            return Err(corrupt("its nonce is not what was written".to_owned()));
        }
        if header.number != number {
            return Err(corrupt(format!("it says it is number {}", header.number)));
        }
        let mut manifest: Self =
            serde_json::from_str(body).map_err(|error| corrupt(format!("its body cannot be read: {error}")))?;
        manifest.number = number;
        Ok((manifest, header.nonce))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::fixtures::golden;
    use crate::numbered::nonce;

    fn sample() -> IndexManifest {
        let unit = |file: &str, start, absent| Unit { file: file.to_owned(), start, rows: 5, absent };
        IndexManifest {
            number: 7,
            indexes: vec![IndexDefinition {
                id: "i".to_owned(),
                name: "by \"emb\"\n".to_owned(),
                field_id: 4,
                options: "{\"method\":\"ivf\"}".to_owned(),
                created_at_us: 1,
            }],
            segments: vec![SegmentEntry {
                id: "s".to_owned(),
                index: "i".to_owned(),
                family: "ivf".to_owned(),
                units: vec![unit("a.lance", 0, 0), unit("b.lance", 5, 2)],
                rows: 10,
                bytes: 4096,
                built_at_us: 2,
                calibration: "{}".to_owned(),
            }],
            row_maps: vec![RowMapEntry {
                id: "m".to_owned(),
                field_id: 4,
                targets: vec!["c.lance".to_owned()],
                sources: vec!["a.lance".to_owned()],
                bytes: 100,
                written_at_us: 3,
            }],
            removed: vec![RemovedFile { file: "x.seg".to_owned(), removed_at_us: 4 }],
        }
    }

    #[test]
    fn a_manifest_reads_as_it_was_written_and_any_flipped_bit_or_cut_is_seen() {
        let (manifest, nonce) = (sample(), nonce(Uuid::from_u128(77)));
        let bytes = manifest.encode(&nonce).unwrap();
        assert_eq!(IndexManifest::decode(&bytes, 7, "f").unwrap(), (manifest.clone(), nonce.clone()));
        for at in 0..bytes.len() {
            assert!(IndexManifest::decode(&bytes[..at], 7, "f").is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                // A version of the past is no damage.
                let read = IndexManifest::decode(&flipped, 7, "f");
                assert!(read.is_err() || read.is_ok_and(|(read, _)| read == manifest), "bit {bit} of byte {at}");
            }
        }
        assert!(matches!(IndexManifest::decode(&bytes, 8, "f"), Err(StorageError::Corrupt(_))));
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let written = sample().encode(&nonce(Uuid::from_u128(77))).unwrap();
        let golden = golden("index-manifest-1.json", &written);
        assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(&golden));
        assert_eq!(IndexManifest::decode(&golden, 7, "f").unwrap().0, sample());
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let text = String::from_utf8(sample().encode("n").unwrap()).unwrap();
        let newer = text.replacen("\"sagitta_index\":1", "\"sagitta_index\":2", 1);
        assert!(matches!(IndexManifest::decode(newer.as_bytes(), 7, "f"), Err(StorageError::Unsupported(_))));
    }
}
