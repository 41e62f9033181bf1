//! Decoded columns of fragments from which rows are fetched again and again, and the bounded cache that keeps them.
//!
//! To fetch ten rows from a file is a plan, requests and decoders for each column; from a decoded column it is ten copies. A column of a
//! fragment is decoded once so many fetches have read from it that they took about as long as decoding it takes. Data files never
//! change and have unique names: a column is known by its file and its number, whatever version asks for it.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef};
use arrow::compute::{concat, interleave};
use arrow::datatypes::{DataType, Field};
use futures::{StreamExt, TryStreamExt};
use lance::dataset::fragment::FragReadConfig;
use lance_table::format::Fragment;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::error::{Result, StorageError};
use crate::snapshot::{Snapshot, guard};
use crate::vectors::CacheFigures;

/// Fetches from a column of a fragment before it is decoded: so many, and one for each so many rows.
const FETCHES_MIN: u64 = 16;
const ROWS_PER_FETCH: u64 = 4_096;

/// Rows that are fetched at once by somebody who reads a few; more are read better from the file.
const FEW_ROWS: usize = 1_024;

/// The part of the cache that one column may take: one in so many.
const COLUMN_SHARE: u64 = 4;

/// Rows that are decoded in one step, and steps under way at once.
const STEP_ROWS: u32 = 8_192;
const STEPS_AHEAD: usize = 2;

/// Columns whose fetches are counted.
const COUNTED_MAX: usize = 4_096;

/// The cache works best if it knows about how many columns it will hold.
const COLUMN_BYTES_EXPECTED: u64 = 256 << 10;

/// A column in a data file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    table: Arc<str>,
    file: String,
    field_id: i32,
}

/// The decoded columns of all tables of a database.
pub(crate) struct Columns {
    kept: Cache<Key, ArrayRef, Bytes>,
    asked: Asked,
    fetches: Mutex<HashMap<Key, Fetches>>,
}

#[derive(Clone, Copy)]
enum Fetches {
    /// So many since it was last decoded.
    Counted(u64),
    /// It is being decoded, or is too large to be kept.
    Enough,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Key, ArrayRef> for Bytes {
    fn weight(&self, _: &Key, column: &ArrayRef) -> u64 {
        column.get_array_memory_size() as u64
    }
}

impl fmt::Debug for Columns {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Columns").field("bytes", &self.kept.weight()).finish_non_exhaustive()
    }
}

impl Columns {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let kept = cache(bytes_max, COLUMN_BYTES_EXPECTED, Bytes);
        Self { kept, asked: Asked::default(), fetches: Mutex::default() }
    }

    /// Frees what a table that is gone has left.
    pub(crate) fn forget(&self, table: &str) {
        self.kept.retain(|key, _| key.table.as_ref() != table);
        self.lock().retain(|key, _| key.table.as_ref() != table);
    }

    pub(crate) fn figures(&self) -> CacheFigures {
        self.asked.figures(&self.kept)
    }

    /// Bytes that one column may take.
    fn column_bytes_max(&self) -> u64 {
        self.kept.capacity() / COLUMN_SHARE
    }

    /// Counts a fetch from a column of so many rows. True if it is time to decode it: said once.
    fn is_due(&self, key: &Key, rows: u64) -> bool {
        let mut fetches = self.lock();
        if fetches.len() >= COUNTED_MAX {
            fetches.clear();
        }
        let count = fetches.entry(key.clone()).or_insert(Fetches::Counted(0));
        let Fetches::Counted(number) = count else { return false };
        *number += 1;
        let is_due = *number >= FETCHES_MIN + rows / ROWS_PER_FETCH;
        if is_due {
            *count = Fetches::Enough;
        }
        is_due
    }

    /// What became of a column that was due. One that was not kept for want of room is not tried again before long.
    fn settle(&self, key: &Key, column: Option<ArrayRef>) {
        if let Some(column) = column.filter(|column| column.get_array_memory_size() as u64 <= self.column_bytes_max()) {
            self.kept.insert(key.clone(), column);
            self.lock().remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Fetches>> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often a cache was asked for something.
#[derive(Default)]
pub(crate) struct Asked {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Asked {
    /// Counts what was found, or was not.
    pub(crate) fn noted<T>(&self, found: Option<T>) -> Option<T> {
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    pub(crate) fn figures<K: Eq + Hash, V: Clone, W: Weighter<K, V> + Clone>(
        &self,
        kept: &Cache<K, V, W>,
    ) -> CacheFigures {
        CacheFigures {
            bytes: kept.weight(),
            bytes_max: kept.capacity(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }
}

/// A cache of so many bytes, for entries of about so many. One part: an entry may take a good share of it.
pub(crate) fn cache<K: Eq + Hash, V: Clone, W: Weighter<K, V> + Clone>(
    bytes_max: u64,
    entry_bytes: u64,
    weighter: W,
) -> Cache<K, V, W> {
    let entries = usize::try_from(bytes_max / entry_bytes).unwrap_or(usize::MAX).max(16);
    let options = OptionsBuilder::new().shards(1).weight_capacity(bytes_max).estimated_items_capacity(entries).build();
    match options {
        Ok(options) => Cache::with_options(options, weighter, Default::default(), DefaultLifecycle::default()),
        Err(_) => Cache::with_weighter(entries, bytes_max, weighter),
    }
}

impl Snapshot {
    /// The values of a column at some addresses, ascending, from decoded columns; `None` if not all of them are there. Live or not, the
    /// rows must be of this version.
    pub(crate) fn kept_values(&self, column: &str, addresses: &[u64]) -> Result<Option<ArrayRef>> {
        let field = self.field(column)?;
        if addresses.is_empty() || addresses.len() > FEW_ROWS || !can_be_kept(field.data_type()) {
            return Ok(None);
        }
        let field_id = self.field_id(column)?;
        let (mut arrays, mut places) = (vec![], Vec::with_capacity(addresses.len()));
        let mut is_complete = true;
        for of_fragment in addresses.chunk_by(|one, other| one >> 32 == other >> 32) {
            let Some(found) = self.kept_column(field_id, field, of_fragment[0] >> 32) else {
                is_complete = false;
                continue;
            };
            let offset = |address: &u64| usize::try_from(address & u64::from(u32::MAX)).unwrap_or(usize::MAX);
            if of_fragment.last().is_some_and(|last| offset(last) >= found.len()) {
                return Ok(None);
            }
            places.extend(of_fragment.iter().map(|address| (arrays.len(), offset(address))));
            arrays.push(found);
        }
        if !is_complete {
            return Ok(None);
        }
        let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
        let failed =
            |error| StorageError::internal(format!("cannot gather values of column {column}")).with_source(error);
        interleave(&arrays, &places).map(Some).map_err(failed)
    }

    /// The decoded column of a fragment; if it is not there, the fetch counts, and may be the one that has it decoded.
    fn kept_column(&self, field_id: i32, field: &Field, fragment: u64) -> Option<ArrayRef> {
        let at = self.fragments().binary_search_by_key(&fragment, |fragment| u64::from(fragment.id)).ok()?;
        let shape = self.fragments().get(at)?;
        let key = self.key_of_column(&shape.metadata, field_id)?;
        let columns = self.columns();
        if let Some(found) = columns.asked.noted(columns.kept.get(&key)) {
            return Some(found);
        }
        let least = shape.rows.saturating_mul(field.data_type().primitive_width().unwrap_or(8) as u64);
        if least <= columns.column_bytes_max() && columns.is_due(&key, shape.rows) {
            let (snapshot, field) = (self.clone(), field.clone());
            tokio::spawn(async move {
                let decoded = snapshot.decoded_column(&field, fragment).await;
                let decoded = decoded.inspect_err(|error| tracing::debug!(%error, "a column was not decoded")).ok();
                snapshot.columns().settle(&key, decoded.flatten());
            });
        }
        None
    }

    /// What the cache knows a column of a fragment by; `None` if an overlay may change it under the same name, or no file has it.
    fn key_of_column(&self, fragment: &Fragment, field_id: i32) -> Option<Key> {
        let file = fragment.files.iter().find(|file| file.fields.contains(&field_id));
        let file = file.filter(|_| fragment.overlays.is_empty())?;
        let file = format!("{}:{}", file.base_id.map_or(-1, i64::from), file.path);
        Some(Key { table: self.location().into(), file, field_id })
    }

    /// All values of a column in a fragment, those of deleted rows too; `None` if they are more than may be kept.
    async fn decoded_column(&self, field: &Field, fragment: u64) -> Result<Option<ArrayRef>> {
        let what = format!("cannot read column {} of {}", field.name(), self.location());
        let found = usize::try_from(fragment).ok().and_then(|number| self.dataset().get_fragment(number));
        let Some(fragment) = found else { return Ok(None) };
        let rows = guard(&what, fragment.physical_rows()).await?;
        let projection = self.lance_projection(&[field.name()])?;
        let config = FragReadConfig::default().with_ignore_deletions(true);
        let reader = guard(&what, fragment.open(&projection, config)).await.map_err(StorageError::while_pinned)?;
        let range = 0..u32::try_from(rows).unwrap_or(u32::MAX);
        let batches = guard(&what, reader.take_range(range, STEP_ROWS)).await.map_err(StorageError::while_pinned)?;
        let mut batches = batches.buffered(STEPS_AHEAD);
        let (mut parts, mut bytes): (Vec<ArrayRef>, u64) = (vec![], 0);
        while let Some(batch) = guard(&what, batches.try_next()).await.map_err(StorageError::while_pinned)? {
            let Some(column) = batch.columns().first() else { return Ok(None) };
            if column.data_type() != field.data_type() {
                return Ok(None);
            }
            bytes += column.to_data().get_slice_memory_size().unwrap_or(usize::MAX) as u64;
            if bytes > self.columns().column_bytes_max() {
                return Ok(None);
            }
            parts.push(Arc::clone(column));
        }
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        if parts.iter().map(|part| part.len()).sum::<usize>() != rows || rows == 0 {
            return Ok(None);
        }
        let failed = |error| StorageError::internal(what.clone()).with_source(error);
        // Also what is one part is copied: its buffers may be those of a whole page.
        concat(&parts).map(Some).map_err(failed)
    }
}

/// Values that are one buffer or two: what else there is may have its parts in several files.
fn can_be_kept(data_type: &DataType) -> bool {
    data_type.is_primitive()
        || matches!(
            data_type,
            DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary
        )
}

#[cfg(test)]
mod tests;
