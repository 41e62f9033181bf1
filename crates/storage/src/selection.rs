//! Which rows a filter selects, and a bounded cache of that: data files never change, so what a filter said of a fragment holds for
//! every version in which its files and its deletions are the same. After a change only the new fragments are read.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use datafusion::common::runtime::SpawnedTask;
use datafusion::logical_expr::Expr;
use futures::StreamExt;
use lance_table::format::Fragment;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use roaring::RoaringBitmap;

use crate::columns::{Asked, cache};
use crate::error::{Result, StorageError};
use crate::index::{CoveredSegment, LocalRows};
use crate::sample::{self, Sample};
use crate::scan::{ROW_ADDRESS, ScanPartition, ScanRequest};
use crate::snapshot::Snapshot;
use crate::vectors::CacheFigures;

/// Bits of a word.
const WORD: usize = 64;

/// Rows are listed by their addresses if there are fewer than one in so many: a word for each is no more than a bit for all.
const FEW: u64 = 64;

/// What is told of a fragment beside the rows: names of files, mostly.
const FRAGMENT_BYTES: usize = 512;

/// The cache works best if it knows about how many selections it will hold.
const SELECTION_BYTES_EXPECTED: u64 = 64 << 10;
const SAMPLE_BYTES_EXPECTED: u64 = 32 << 10;

/// The part of the cache that holds samples: one in so many.
const SAMPLES_SHARE: u64 = 8;

/// Some rows of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    form: Form,
    count: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// Addresses, ascending.
    Few(Vec<u64>),
    /// For each fragment that has some, ascending: bit `o % 64` of word `o / 64` for the row at offset `o`.
    Many(Vec<(u32, Vec<u64>)>),
}

impl Selection {
    /// The rows at these addresses, which ascend, each once.
    pub fn of_addresses(addresses: Vec<u64>) -> Self {
        Self { count: addresses.len(), form: Form::Few(addresses) }
    }

    /// The rows at these offsets of fragments, which ascend; `rows`: how many rows there are to select from.
    fn of_fragments<'a>(parts: impl Iterator<Item = (u32, &'a RoaringBitmap)> + Clone, rows: u64) -> Self {
        let count: u64 = parts.clone().map(|(_, selected)| selected.len()).sum();
        let form = if count < rows / FEW {
            let addresses = |(fragment, selected): (u32, &'a RoaringBitmap)| {
                selected.iter().map(move |offset| u64::from(fragment) << 32 | u64::from(offset))
            };
            Form::Few(parts.flat_map(addresses).collect())
        } else {
            let words = |(fragment, selected): (u32, &RoaringBitmap)| Some((fragment, words_of(selected)?));
            Form::Many(parts.filter_map(words).collect())
        };
        Self { form, count: usize::try_from(count).unwrap_or(usize::MAX) }
    }

    /// How many rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let words = match &self.form {
            Form::Few(addresses) => addresses.capacity(),
            Form::Many(parts) => parts.iter().map(|(_, words)| words.capacity() + 4).sum(),
        };
        words * size_of::<u64>()
    }

    /// The selected ones of `rows` rows from an address on, as offsets from it.
    pub fn offsets(&self, first_address: u64, rows: u64) -> Vec<u32> {
        match &self.form {
            Form::Few(addresses) => {
                let start = addresses.partition_point(|address| *address < first_address);
                let stop = addresses.partition_point(|address| *address < first_address + rows);
                let offset = |address: &u64| u32::try_from(address - first_address).unwrap_or(u32::MAX);
                addresses[start..stop].iter().map(offset).collect()
            }
            Form::Many(_) => {
                let fragment = u32::try_from(first_address >> 32).unwrap_or(u32::MAX);
                let offset = |at: u64| usize::try_from(at & u64::from(u32::MAX)).unwrap_or(usize::MAX);
                let start = offset(first_address);
                let length = usize::try_from(rows).unwrap_or(usize::MAX);
                set_bits(self.words(fragment).unwrap_or_default(), start..start.saturating_add(length))
            }
        }
    }

    /// The selected ones among the live rows of a segment. Cost: a pass over the segment's bits and runs, or for few rows a binary
    /// search for each.
    pub fn within(&self, segment: &CoveredSegment) -> LocalRows {
        match &self.form {
            Form::Few(addresses) => segment.matching(addresses),
            Form::Many(_) => segment.matching_words(|fragment| self.words(fragment)),
        }
    }

    fn words(&self, fragment: u32) -> Option<&[u64]> {
        let Form::Many(parts) = &self.form else { return None };
        let at = parts.binary_search_by_key(&fragment, |(fragment, _)| *fragment).ok()?;
        parts.get(at).map(|(_, words)| words.as_slice())
    }
}

/// The bits as words up to the last one that is set; `None` if none is.
fn words_of(rows: &RoaringBitmap) -> Option<Vec<u64>> {
    let mut words = vec![0; rows.max()? as usize / WORD + 1];
    rows.iter().for_each(|row| words[row as usize / WORD] |= 1 << (row as usize % WORD));
    Some(words)
}

/// The places of set bits in `range`, from its start on.
fn set_bits(words: &[u64], range: Range<usize>) -> Vec<u32> {
    let mut found = vec![];
    let end = range.end.min(words.len() * WORD);
    let mut at = range.start;
    while at < end {
        let mut word = words[at / WORD] >> (at % WORD);
        while word != 0 {
            let place = at + word.trailing_zeros() as usize;
            if place >= end {
                break;
            }
            found.extend(u32::try_from(place - range.start).ok());
            word &= word - 1;
        }
        at = (at / WORD + 1) * WORD;
    }
    found
}

/// What to select.
#[derive(Clone, Debug)]
pub struct SelectionRequest {
    /// Rows for which this is true. Ask [`Snapshot::can_filter`] first; no parameters, no functions of time.
    pub filter: Expr,
    /// Parts that are read at once.
    pub partitions_max: usize,
    /// Rows of a batch, at most.
    pub batch_rows: usize,
    /// About so many bytes of each part are in memory while it is read.
    pub buffer_bytes: usize,
}

/// The rows that a filter selected, and what it took.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The rows.
    pub selection: Arc<Selection>,
    /// Physical rows of which it was known already.
    pub rows_known: u64,
}

impl Snapshot {
    /// The live rows for which a filter is true. Cost: nothing but a comparison of fragments if it was asked lately, else a scan of the
    /// filter's columns in those that it was not asked of.
    ///
    /// # Errors
    /// As [`Snapshot::scan`].
    pub async fn selection(&self, request: &SelectionRequest) -> Result<Selected> {
        let key = self.key_of_filter(&request.filter)?;
        let selections = self.selections();
        let known = selections.asked.noted(selections.kept.get(&key));
        if let Some(known) = &known
            && self.is_of(known)
        {
            let rows_known = self.fragments().iter().map(|fragment| fragment.rows).sum();
            return Ok(Selected { selection: Arc::clone(&known.selection), rows_known });
        }
        let mut before: HashMap<u64, &Part> = HashMap::new();
        before.extend(known.iter().flat_map(|known| &known.parts).map(|part| (part.fragment.id, part)));
        let mut parts: Vec<Part> = vec![];
        let mut unknown: Vec<u32> = vec![];
        for fragment in self.fragments() {
            let same = before.get(&u64::from(fragment.id)).filter(|part| part.is_of(&fragment.metadata));
            if same.is_none() && fragment.rows > 0 {
                unknown.push(fragment.id);
            }
            let rows = same.map_or_else(RoaringBitmap::new, |part| part.rows.clone());
            parts.push(Part { fragment: fragment.metadata.clone(), rows });
        }
        let mut rows_known: u64 = self.fragments().iter().map(|fragment| fragment.rows).sum();
        let all = rows_known;
        for (fragment, rows) in self.select(request, &unknown).await? {
            if let Ok(at) = self.fragments().binary_search_by_key(&fragment, |fragment| fragment.id) {
                parts[at].rows |= rows;
            }
        }
        for fragment in self.fragments().iter().filter(|fragment| unknown.binary_search(&fragment.id).is_ok()) {
            rows_known -= fragment.rows;
        }
        let bitmaps = parts.iter().filter_map(|part| Some((u32::try_from(part.fragment.id).ok()?, &part.rows)));
        let selection = Arc::new(Selection::of_fragments(bitmaps, all));
        selections.kept.insert(key, Arc::new(Kept::new(parts, Arc::clone(&selection))));
        Ok(Selected { selection, rows_known })
    }

    /// Bytes that it takes at most to tell which rows a filter selects.
    pub fn selection_bytes_max(&self) -> u64 {
        // A bitmap while it is read, and the one that is handed out.
        self.fragments().iter().map(|fragment| fragment.rows).sum::<u64>() / 4
    }

    /// The rows of some fragments that a filter selects. An index is asked where it is about all of them and they are few.
    async fn select(&self, request: &SelectionRequest, fragments: &[u32]) -> Result<Vec<(u32, RoaringBitmap)>> {
        let filled = self.fragments().iter().filter(|fragment| fragment.rows > 0).count();
        let asks_indexes = filled == fragments.len()
            && !self.indexes_for(&request.filter).await?.is_empty()
            && self.is_selective(&request.filter).await;
        let parts: Vec<Option<ScanPartition>> = match asks_indexes {
            true => vec![None],
            false => {
                let is_wanted = |fragment| fragments.binary_search(&fragment).is_ok();
                self.partitions_among(request.partitions_max, is_wanted).into_iter().map(Some).collect()
            }
        };
        let under_way = parts.into_iter().map(|part| {
            let (snapshot, request) = (self.clone(), request.clone());
            SpawnedTask::spawn(async move { snapshot.select_part(&request, part).await })
        });
        let under_way: Vec<_> = under_way.collect();
        let mut found = vec![];
        for part in under_way {
            let part =
                part.await.map_err(|error| StorageError::internal("a scan was broken off").with_source(error))?;
            found.extend(part?);
        }
        Ok(found)
    }

    async fn select_part(
        &self,
        request: &SelectionRequest,
        partition: Option<ScanPartition>,
    ) -> Result<Vec<(u32, RoaringBitmap)>> {
        let scan = ScanRequest {
            columns: vec![ROW_ADDRESS.to_owned()],
            filter: Some(request.filter.clone()),
            asks_indexes: partition.is_none(),
            limit: None,
            partition,
            batch_rows: request.batch_rows,
            buffer_bytes: request.buffer_bytes,
        };
        let mut batches = self.scan(scan)?;
        let mut found: Vec<(u32, RoaringBitmap)> = vec![];
        while let Some(batch) = batches.next().await.transpose().map_err(StorageError::from_scan)? {
            for address in batch.column(0).as_primitive::<UInt64Type>().values() {
                let (fragment, offset) = ((address >> 32) as u32, *address as u32);
                match found.last_mut() {
                    Some((last, rows)) if *last == fragment => {
                        rows.insert(offset);
                    }
                    _ => found.push((fragment, RoaringBitmap::from_iter([offset]))),
                }
            }
        }
        Ok(found)
    }

    fn key_of_filter(&self, filter: &Expr) -> Result<Key> {
        let mut columns: Vec<&str> = filter.column_refs().into_iter().map(|column| column.name.as_str()).collect();
        columns.sort_unstable();
        let fields = columns.into_iter().map(|column| self.field_id(column)).collect::<Result<_>>()?;
        Ok(Key { table: self.location().into(), filter: filter.clone(), fields })
    }

    /// Whether a selection holds for this version.
    fn is_of(&self, known: &Kept) -> bool {
        let fragments = self.fragments();
        fragments.len() == known.parts.len()
            && known.parts.iter().zip(fragments).all(|(part, fragment)| part.is_of(&fragment.metadata))
    }
}

/// A filter on a table. A column that is dropped and made anew has another number.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    table: Arc<str>,
    filter: Expr,
    fields: Vec<i32>,
}

/// What a filter said of a fragment.
struct Part {
    fragment: Fragment,
    rows: RoaringBitmap,
}

impl Part {
    /// An overlay changes values under unchanged names, so nothing is known of a fragment that has one.
    fn is_of(&self, fragment: &Fragment) -> bool {
        fragment.overlays.is_empty() && self.fragment == *fragment
    }
}

/// What a filter said of all fragments of a version.
struct Kept {
    parts: Vec<Part>,
    selection: Arc<Selection>,
    bytes: u64,
}

impl Kept {
    fn new(parts: Vec<Part>, selection: Arc<Selection>) -> Self {
        let bytes = parts.iter().map(|part| part.rows.serialized_size() + FRAGMENT_BYTES).sum::<usize>();
        let bytes = (bytes + selection.bytes()) as u64;
        Self { parts, selection, bytes }
    }
}

/// The selections of all tables of a database.
pub(crate) struct Selections {
    kept: Cache<Key, Arc<Kept>, Bytes>,
    asked: Asked,
    /// Rows that tell how many a filter selects.
    pub(crate) samples: Cache<sample::Key, Arc<Sample>, sample::Bytes>,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Arc<Kept>> for Bytes {
    fn weight(&self, _: &Key, kept: &Arc<Kept>) -> u64 {
        kept.bytes
    }
}

impl fmt::Debug for Selections {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Selections").field("bytes", &self.kept.weight()).finish_non_exhaustive()
    }
}

impl Selections {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let samples_bytes = bytes_max / SAMPLES_SHARE;
        Self {
            kept: cache(bytes_max - samples_bytes, SELECTION_BYTES_EXPECTED, Bytes),
            asked: Asked::default(),
            samples: cache(samples_bytes, SAMPLE_BYTES_EXPECTED, sample::Bytes),
        }
    }

    pub(crate) fn figures(&self) -> CacheFigures {
        self.asked.figures(&self.kept)
    }

    /// Frees what a table that is gone has left.
    pub(crate) fn forget(&self, table: &str) {
        self.kept.retain(|key, _| key.table.as_ref() != table);
        self.samples.retain(|key, _| key.table() != table);
    }
}

#[cfg(test)]
mod tests;
