//! Decoded vectors in address order, and the bounded cache that keeps them. What a distance is, nobody knows here.
//!
//! A chunk is a run of rows of one fragment with the vectors of one column, dead rows included, so that a row's place
//! follows from its address. Data files never change and have unique names: the cache is keyed by file, and what is
//! deleted in which version is added when a chunk is handed out.

pub(crate) mod pages;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayData, FixedSizeListArray, RecordBatch, make_array};
use arrow::datatypes::{DataType, FieldRef};
use futures::{StreamExt, TryStreamExt};
use lance::dataset::fragment::{FileFragment, FragReadConfig};
use lance_core::utils::deletion::DeletionVector;
use lance_table::format::Fragment;
use roaring::RoaringBitmap;
use tokio::sync::OnceCell;

use crate::error::{Result, StorageError};
use crate::snapshot::{Snapshot, guard};
use pages::Pages;

/// Bytes of vectors in one chunk, at most (a chunk of one row may be larger), where memory is plenty.
const CHUNK_BYTES_MAX: u64 = 64 << 20;

/// The least of that bound, where memory is scarce.
const CHUNK_BYTES_MIN: u64 = 1 << 20;

/// Chunks that the cache has room for at least, if they are not of the smallest kind.
const CACHED_CHUNKS_MIN: u64 = 16;

/// Bytes of vectors that are decoded in one step.
const DECODE_BYTES: u64 = 8 << 20;

/// Decoding steps under way at once.
const DECODE_AHEAD: usize = 2;

/// A chunk that competes for room counts as wanted at most this often.
const WANTED_MAX: u8 = 3;

/// The vectors of a run of rows of one fragment: a name, no bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VectorChunkRef {
    /// Address of the first row.
    pub first_address: u64,
    /// Physical rows: the deleted ones count.
    pub rows: u64,
    column: Arc<str>,
}

/// The vectors of a run of rows.
#[derive(Clone, Debug)]
pub struct VectorChunk {
    /// Address of the first row; row `i` has address `first_address + i`.
    pub first_address: u64,
    /// One entry per physical row, values contiguous from offset 0, no validity: see `live`.
    pub vectors: FixedSizeListArray,
    /// Offsets of the rows that are neither deleted nor NULL; `None` if that is all of them.
    pub live: Option<RoaringBitmap>,
    /// Whether the values came from the cache.
    pub from_cache: bool,
    /// Bytes of vectors that were read and decoded for this call; 0 if `from_cache`.
    pub bytes_read: u64,
}

/// What a cache did and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// Bytes held.
    pub bytes: u64,
    /// Bytes that may be held.
    pub bytes_max: u64,
    /// Entries that were found.
    pub hits: u64,
    /// Entries that had to be made.
    pub misses: u64,
}

impl Snapshot {
    /// The chunks of a vector column, in address order. Cost: no I/O.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column, [`StorageError::Invalid`] for one that holds no vectors.
    pub fn vector_chunks(&self, column: &str) -> Result<Vec<VectorChunkRef>> {
        let shape = Shape::of(self.field(column)?.data_type(), column)?;
        let rows_max = (self.cache().chunk_bytes_max() / shape.row_bytes).max(1);
        let name: Arc<str> = column.into();
        let mut chunks = Vec::new();
        for fragment in self.fragments() {
            if fragment.rows == 0 {
                continue;
            }
            let rows =
                if self.can_cut() { fragment.rows.div_ceil(fragment.rows.div_ceil(rows_max)) } else { fragment.rows };
            let mut start = 0;
            while start < fragment.rows {
                let rows = rows.min(fragment.rows - start);
                let first_address = (u64::from(fragment.id) << 32) + start;
                chunks.push(VectorChunkRef { first_address, rows, column: name.clone() });
                start += rows;
            }
        }
        Ok(chunks)
    }

    /// Bytes that are in memory while the chunk is decoded: as much again is being read, and some steps are under way.
    /// 0 if the cache holds it.
    ///
    /// # Errors
    /// As [`Snapshot::vector_chunks`].
    pub fn decoding_bytes(&self, chunk: &VectorChunkRef) -> Result<u64> {
        let shape = Shape::of(self.field(&chunk.column)?.data_type(), &chunk.column)?;
        let field_id = self.lance_projection(&[&chunk.column])?.fields.first().map_or(-1, |field| field.id);
        let number = chunk.first_address >> 32;
        let at = self.fragments().binary_search_by_key(&number, |fragment| u64::from(fragment.id));
        let fragment = at.ok().and_then(|at| self.fragments().get(at));
        let key = fragment.and_then(|fragment| self.key_of(&fragment.metadata, field_id, chunk));
        if key.is_some_and(|key| self.cache().holds(&key)) {
            return Ok(0);
        }
        let bytes = chunk.rows * shape.row_bytes;
        Ok(2 * bytes + (1 + DECODE_AHEAD as u64) * bytes.min(DECODE_BYTES))
    }

    /// Whether the cache can hold all vectors of a column.
    ///
    /// # Errors
    /// As [`Snapshot::vector_chunks`].
    pub fn can_keep_vectors(&self, column: &str) -> Result<bool> {
        let shape = Shape::of(self.field(column)?.data_type(), column)?;
        let rows: u64 = self.fragments().iter().map(|fragment| fragment.rows).sum();
        Ok(rows.saturating_mul(shape.row_bytes) <= self.cache().figures().bytes_max)
    }

    /// What the cache knows a chunk by.
    fn key_of(&self, fragment: &Fragment, field_id: i32, chunk: &VectorChunkRef) -> Option<Key> {
        let file = fragment.files.iter().find(|file| file.fields.contains(&field_id));
        // An overlay changes values under an unchanged file name: such a fragment has no identity to cache by.
        file.filter(|_| fragment.overlays.is_empty()).map(|file| Key {
            table: self.location().into(),
            file: format!("{}:{}", file.base_id.map_or(-1, i64::from), file.path),
            field_id,
            start: chunk.first_address & u64::from(u32::MAX),
            rows: chunk.rows,
        })
    }

    /// The vectors of a chunk, from the cache if it holds them. Calls for the same chunk at once decode it once.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] or [`StorageError::Unavailable`] if the file cannot be read.
    pub async fn load_vectors(&self, chunk: &VectorChunkRef) -> Result<Arc<VectorChunk>> {
        let number = chunk.first_address >> 32;
        let start = chunk.first_address & u64::from(u32::MAX);
        let what = format!("cannot read the vectors of column {} of {}", chunk.column, self.location());
        let fragment = usize::try_from(number).ok().and_then(|number| self.dataset().get_fragment(number));
        let fragment = fragment.ok_or_else(|| {
            StorageError::internal(format!("{what}: version {} has no fragment {number}", self.version()))
        })?;
        let shape = Shape::of(self.field(&chunk.column)?.data_type(), &chunk.column)?;
        let projection = self.lance_projection(&[&chunk.column])?;
        let field_id = projection.fields.first().map_or(-1, |field| field.id);
        let decode = || async {
            let bytes = Decode { fragment: &fragment, start, rows: chunk.rows, shape: &shape, what: &what };
            bytes.run(&projection).await.map(Arc::new)
        };
        let (decoded, from_cache) = match self.key_of(fragment.metadata(), field_id, chunk) {
            Some(key) => self.cache().get_or_decode(key, decode).await?,
            None => (decode().await?, false),
        };
        let deleted = guard(&what, fragment.get_deletion_vector()).await.map_err(StorageError::while_pinned)?;
        let live = match deleted {
            Some(deleted) if !deleted.is_empty() => {
                let dead = dead_offsets(&deleted, start, chunk.rows);
                if dead.is_empty() { decoded.valid.clone() } else { Some(decoded.all_valid() - dead) }
            }
            _ => decoded.valid.clone(),
        };
        Ok(Arc::new(VectorChunk {
            first_address: chunk.first_address,
            vectors: decoded.vectors.clone(),
            live,
            from_cache,
            bytes_read: if from_cache { 0 } else { decoded.bytes },
        }))
    }
}

/// Deleted rows of a fragment that lie in a chunk, as offsets in the chunk.
fn dead_offsets(deleted: &DeletionVector, start: u64, rows: u64) -> RoaringBitmap {
    let within =
        |at: u32| u64::from(at).checked_sub(start).filter(|at| *at < rows).and_then(|at| u32::try_from(at).ok());
    match deleted {
        DeletionVector::Bitmap(bitmap) if start == 0 => bitmap.clone(),
        other => other.iter().filter_map(within).collect(),
    }
}

/// How the values of a vector column lie in memory.
struct Shape {
    item: FieldRef,
    dimensions: i32,
    item_bytes: usize,
    row_bytes: u64,
}

impl Shape {
    fn of(data_type: &DataType, column: &str) -> Result<Self> {
        let refused = || {
            StorageError::invalid(format!(
                "column {column} has type {data_type}; only vectors (fixed-size lists of numbers) can be searched"
            ))
        };
        let DataType::FixedSizeList(item, dimensions) = data_type else { return Err(refused()) };
        let item_bytes = match item.data_type() {
            DataType::Float16 => 2,
            DataType::Float32 => 4,
            DataType::Float64 => 8,
            DataType::Int8 | DataType::UInt8 => 1,
            _ => return Err(refused()),
        };
        let width = usize::try_from(*dimensions).ok().filter(|dimensions| *dimensions > 0).ok_or_else(refused)?;
        Ok(Self { item: item.clone(), dimensions: *dimensions, item_bytes, row_bytes: (width * item_bytes) as u64 })
    }
}

/// The values of a chunk, as they are in the file.
struct Decoded {
    vectors: FixedSizeListArray,
    /// Offsets of the rows that are not NULL; `None` if no row is.
    valid: Option<RoaringBitmap>,
    bytes: u64,
}

impl Decoded {
    fn all_valid(&self) -> RoaringBitmap {
        self.valid.clone().unwrap_or_else(|| {
            let mut all = RoaringBitmap::new();
            all.insert_range(0..u32::try_from(self.vectors.len()).unwrap_or(u32::MAX));
            all
        })
    }
}

/// Reads the rows of one chunk from the files of a fragment.
struct Decode<'a> {
    fragment: &'a FileFragment,
    start: u64,
    rows: u64,
    shape: &'a Shape,
    what: &'a str,
}

impl Decode<'_> {
    async fn run(&self, projection: &lance_core::datatypes::Schema) -> Result<Decoded> {
        let too_large = || StorageError::internal(format!("{}: the chunk is too large", self.what));
        let bytes = usize::try_from(self.rows * self.shape.row_bytes).map_err(|_| too_large())?;
        let range = self.start..self.start + self.rows;
        let range =
            u32::try_from(range.start).map_err(|_| too_large())?..u32::try_from(range.end).map_err(|_| too_large())?;
        let mut filling = Filling { values: Pages::new(bytes), nulls: RoaringBitmap::new(), rows: 0 };
        let stored = projection
            .fields
            .first()
            .is_some_and(|field| self.fragment.metadata().files.iter().any(|file| file.fields.contains(&field.id)));
        if stored {
            // Rows that a deletion file names must keep their place, so the file is left out of the reading.
            let config = FragReadConfig::default().with_ignore_deletions(true);
            let reader =
                guard(self.what, self.fragment.open(projection, config)).await.map_err(StorageError::while_pinned)?;
            let step = u32::try_from((DECODE_BYTES / self.shape.row_bytes).clamp(1, 1 << 20)).unwrap_or(1024);
            let batches = guard(self.what, reader.take_range(range, step)).await.map_err(StorageError::while_pinned)?;
            let mut batches = batches.buffered(DECODE_AHEAD);
            while let Some(batch) = guard(self.what, batches.try_next()).await.map_err(StorageError::while_pinned)? {
                filling.add(&batch, self.shape, self.what)?;
            }
        } else {
            // The column was added after this fragment was written: all NULL.
            filling.values.extend_zeros(bytes);
            filling.nulls.insert_range(0..range.end - range.start);
            filling.rows = self.rows;
        }
        if filling.rows != self.rows || filling.values.filled() != bytes {
            return Err(StorageError::corrupt(format!(
                "{}: {} rows were expected and {} are there; restore the file from a copy",
                self.what, self.rows, filling.rows
            )));
        }
        filling.finish(self.shape, self.what)
    }
}

/// A chunk being filled, batch by batch.
struct Filling {
    values: Pages,
    nulls: RoaringBitmap,
    rows: u64,
}

impl Filling {
    fn add(&mut self, batch: &RecordBatch, shape: &Shape, what: &str) -> Result<()> {
        let column = batch.columns().first().map(|column| column.as_any().downcast_ref::<FixedSizeListArray>());
        let Some(Some(vectors)) = column else {
            return Err(StorageError::corrupt(format!("{what}: the file holds something that is no vector")));
        };
        if vectors.value_length() != shape.dimensions || vectors.value_type() != *shape.item.data_type() {
            return Err(StorageError::corrupt(format!(
                "{what}: the file holds {} instead of {} × {}",
                vectors.data_type(),
                shape.dimensions,
                shape.item.data_type()
            )));
        }
        let width = usize::try_from(shape.dimensions).unwrap_or(1);
        let values = vectors.values().to_data();
        // `values` of a slice are sliced with it, so its first vector is at the start of them.
        let from = values.offset() * shape.item_bytes;
        let bytes = vectors.len() * width * shape.item_bytes;
        let slice = values.buffers().first().and_then(|buffer| buffer.as_slice().get(from..from + bytes));
        let slice = slice.ok_or_else(|| StorageError::corrupt(format!("{what}: values are missing")))?;
        self.values.extend(slice);
        for row in 0..vectors.len() {
            if vectors.is_null(row) {
                self.mark_null(row);
            }
        }
        if vectors.values().null_count() > 0 {
            // A vector with a NULL among its elements has no distance to anything.
            for row in 0..vectors.len() {
                if vectors.value(row).null_count() > 0 {
                    self.mark_null(row);
                }
            }
        }
        self.rows += vectors.len() as u64;
        Ok(())
    }

    fn mark_null(&mut self, row: usize) {
        if let Ok(at) = u32::try_from(self.rows + row as u64) {
            self.nulls.insert(at);
        }
    }

    fn finish(self, shape: &Shape, what: &str) -> Result<Decoded> {
        let damaged = |error| StorageError::corrupt(format!("{what}: values are damaged")).with_source(error);
        let bytes = self.values.filled() as u64;
        let length = self.values.filled() / shape.item_bytes;
        let data = ArrayData::builder(shape.item.data_type().clone())
            .len(length)
            .add_buffer(self.values.into_buffer())
            .build()
            .map_err(damaged)?;
        let vectors = FixedSizeListArray::try_new(shape.item.clone(), shape.dimensions, make_array(data), None)
            .map_err(damaged)?;
        let valid = if self.nulls.is_empty() {
            None
        } else {
            let mut all = RoaringBitmap::new();
            all.insert_range(0..u32::try_from(self.rows).unwrap_or(u32::MAX));
            Some(all - self.nulls)
        };
        Ok(Decoded { vectors, valid, bytes })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    table: Arc<str>,
    file: String,
    field_id: i32,
    start: u64,
    rows: u64,
}

/// A bounded cache of decoded chunks. The least recently used one makes room, but only for a chunk that is wanted
/// more often: a table larger than the cache would otherwise push out each chunk just before its turn comes again.
pub(crate) struct VectorCache {
    chunk_bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// Who is decoding what. Weak in effect: an entry goes when its last waiter goes.
    under_way: HashMap<Key, Arc<OnceCell<Arc<Decoded>>>>,
    /// How often chunks were asked for lately, kept and unkept ones.
    wanted: HashMap<Key, u8>,
    asked: u64,
    clock: u64,
    figures: CacheFigures,
}

struct Entry {
    decoded: Arc<Decoded>,
    used: u64,
}

impl fmt::Debug for VectorCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("VectorCache").field(&self.figures()).finish()
    }
}

impl VectorCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let figures = CacheFigures { bytes_max: bytes_max as u64, ..Default::default() };
        let chunk_bytes_max = (bytes_max as u64 / CACHED_CHUNKS_MIN).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
        Self { chunk_bytes_max, state: Mutex::new(State { figures, ..Default::default() }) }
    }

    /// Bytes of one chunk, at most. It stays when the bound of the cache is changed: chunks are known by where they begin.
    fn chunk_bytes_max(&self) -> u64 {
        self.chunk_bytes_max
    }

    /// Whether the chunk is here. It does not count as asked for.
    fn holds(&self, key: &Key) -> bool {
        self.lock().entries.contains_key(key)
    }

    pub(crate) fn figures(&self) -> CacheFigures {
        self.lock().figures
    }

    /// Sets the bound and frees what is above it.
    pub(crate) fn set_bytes_max(&self, bytes_max: usize) {
        let mut state = self.lock();
        state.figures.bytes_max = bytes_max as u64;
        while state.figures.bytes > state.figures.bytes_max && state.evict_oldest() {}
    }

    /// Frees what a table that is gone has left.
    pub(crate) fn forget(&self, table: &str) {
        let mut state = self.lock();
        state.entries.retain(|key, _| key.table.as_ref() != table);
        state.wanted.retain(|key, _| key.table.as_ref() != table);
        state.figures.bytes = state.entries.values().map(|entry| entry.decoded.bytes).sum();
    }

    /// The chunk of `key`, and whether it was here already.
    async fn get_or_decode<F>(&self, key: Key, decode: impl Fn() -> F) -> Result<(Arc<Decoded>, bool)>
    where
        F: Future<Output = Result<Arc<Decoded>>>,
    {
        let cell = {
            let mut state = self.lock();
            if let Some(found) = state.find(&key) {
                return Ok((found, true));
            }
            state.figures.misses += 1;
            state.under_way.entry(key.clone()).or_default().clone()
        };
        let waiting = Waiting { cache: self, key: &key, cell };
        let decoded = waiting.cell.get_or_try_init(&decode).await?.clone();
        self.lock().keep(&key, &decoded);
        Ok((decoded, false))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a chunk off the list of those being decoded when its last waiter is done, fails or is cancelled.
struct Waiting<'a> {
    cache: &'a VectorCache,
    key: &'a Key,
    cell: Arc<OnceCell<Arc<Decoded>>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        // Two are left: ours and the one in the list. Both are only cloned under the lock.
        if Arc::strong_count(&self.cell) <= 2
            && state.under_way.get(self.key).is_some_and(|cell| Arc::ptr_eq(cell, &self.cell))
        {
            state.under_way.remove(self.key);
        }
    }
}

impl State {
    fn find(&mut self, key: &Key) -> Option<Arc<Decoded>> {
        self.note(key);
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        self.figures.hits += 1;
        Some(entry.decoded.clone())
    }

    /// Counts a wish for `key`; now and then all counts are halved, so that old favourites can lose their place.
    fn note(&mut self, key: &Key) {
        let count = self.wanted.entry(key.clone()).or_insert(0);
        *count = (*count + 1).min(WANTED_MAX);
        self.asked += 1;
        if self.asked > 10 * self.wanted.len() as u64 + 100 {
            self.asked = 0;
            self.wanted.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
        }
    }

    /// Keeps a chunk if it fits, or if what it would push out is wanted less.
    fn keep(&mut self, key: &Key, decoded: &Arc<Decoded>) {
        let bytes = decoded.bytes;
        if bytes > self.figures.bytes_max || self.entries.contains_key(key) {
            return;
        }
        let count = |state: &Self, key: &Key| state.wanted.get(key).copied().unwrap_or(0);
        let mine = count(self, key);
        let mut by_age: Vec<(u64, Key)> = Vec::new();
        let mut free = self.figures.bytes_max.saturating_sub(self.figures.bytes);
        if free < bytes {
            by_age = self.entries.iter().map(|(key, entry)| (entry.used, key.clone())).collect();
            by_age.sort_unstable_by_key(|(used, _)| *used);
        }
        let mut victims = Vec::new();
        for (_, victim) in by_age {
            if free >= bytes {
                break;
            }
            if count(self, &victim) >= mine {
                return;
            }
            free += self.entries.get(&victim).map_or(0, |entry| entry.decoded.bytes);
            victims.push(victim);
        }
        for victim in victims {
            self.remove(&victim);
        }
        self.figures.bytes += bytes;
        self.clock += 1;
        self.entries.insert(key.clone(), Entry { decoded: decoded.clone(), used: self.clock });
    }

    fn evict_oldest(&mut self) -> bool {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
        oldest.is_some_and(|key| self.remove(&key))
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        self.figures.bytes -= entry.decoded.bytes;
        true
    }
}

#[cfg(test)]
mod tests;
