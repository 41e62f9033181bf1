//! Primary keys: which columns they are, the keys of new rows, and whether one of them is in a table already.
//!
//! A key is found by its 64-bit hash in a sorted list per data file. Data files never change, so the lists of a file
//! serve every version that has the file; they are kept in a bounded cache. A hash that is found is checked against the
//! key itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::row::{RowConverter, Rows as KeyRows, SortField};
use arrow::util::display::array_value_to_string;
use futures::TryStreamExt;
use lance_core::datatypes::{LANCE_UNENFORCED_PRIMARY_KEY, LANCE_UNENFORCED_PRIMARY_KEY_POSITION};
use roaring::RoaringBitmap;

use crate::error::{Result, StorageError};
use crate::scan::{ROW_ADDRESS, ScanPartition, ScanRequest};
use crate::snapshot::{FragmentShape, Snapshot};

/// Bytes that are in memory while key columns are read.
const KEY_BUFFER_BYTES: usize = 8 << 20;

/// Rows per batch while key columns are read.
const BATCH_ROWS: usize = 8192;

/// Hashes that are found in the table and checked against the keys at once.
const CHECKED_AT_ONCE: usize = 1024;

/// The schema with `columns` as its primary key, in this order; they become NOT NULL.
///
/// # Errors
/// [`StorageError::Invalid`] for a column that is not there, is named twice or has a type that no key can have.
pub(crate) fn with_primary_key(schema: &Schema, columns: &[String]) -> Result<Schema> {
    let mut fields: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    for (at, column) in columns.iter().enumerate() {
        let Some(field) = fields.iter_mut().find(|field| field.name() == column) else {
            return Err(StorageError::invalid(format!("PRIMARY KEY names the column {column}, which is not there")));
        };
        if columns[..at].contains(column) {
            return Err(StorageError::invalid(format!("PRIMARY KEY names the column {column} twice")));
        }
        if !can_be_key(field.data_type()) {
            return Err(StorageError::unsupported(format!(
                "column {column} of type {} cannot be part of a PRIMARY KEY; use whole numbers, texts, bytes, dates, \
                 times or booleans",
                field.data_type()
            )));
        }
        let mut metadata = field.metadata().clone();
        metadata.insert(LANCE_UNENFORCED_PRIMARY_KEY_POSITION.to_owned(), (at + 1).to_string());
        *field = field.clone().with_nullable(false).with_metadata(metadata);
    }
    Ok(Schema::new(fields))
}

/// The field without what Lance says in its metadata of keys: a column that is selected from a table brings no key
/// along.
pub(crate) fn without_key_mark(field: &Field) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.remove(LANCE_UNENFORCED_PRIMARY_KEY_POSITION);
    metadata.remove(LANCE_UNENFORCED_PRIMARY_KEY);
    field.clone().with_metadata(metadata)
}

/// True for types of which two values are equal or not for sure: whole numbers, decimals, texts, bytes, dates, times
/// and booleans.
pub fn can_be_key(data_type: &DataType) -> bool {
    data_type.is_integer()
        || data_type.is_temporal()
        || matches!(
            data_type,
            DataType::Boolean
                | DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Binary
                | DataType::LargeBinary
                | DataType::FixedSizeBinary(_)
                | DataType::Decimal128(..)
                | DataType::Decimal256(..)
        )
}

/// Turns the key columns of batches into bytes that compare as the keys do.
#[derive(Clone)]
pub(crate) struct KeyColumns {
    names: Vec<String>,
    converter: Arc<RowConverter>,
}

impl KeyColumns {
    /// `None` for a table without a primary key.
    fn of(snapshot: &Snapshot) -> Result<Option<Self>> {
        let names = snapshot.primary_key();
        if names.is_empty() {
            return Ok(None);
        }
        let types = names.iter().map(|name| Ok(SortField::new(snapshot.field(name)?.data_type().clone())));
        let converter = RowConverter::new(types.collect::<Result<_>>()?).map_err(cannot_encode)?;
        Ok(Some(Self { names, converter: Arc::new(converter) }))
    }

    fn columns(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let column = |name: &String| {
            batch.column_by_name(name).cloned().ok_or_else(|| {
                StorageError::internal(format!("the key column {name} is missing from the rows to be checked"))
            })
        };
        self.names.iter().map(column).collect()
    }

    fn encode(&self, batch: &RecordBatch) -> Result<KeyRows> {
        self.converter.convert_columns(&self.columns(batch)?).map_err(cannot_encode)
    }

    /// A key in words: `(id) = (7)`.
    fn shown(&self, rows: &KeyRows, at: usize) -> String {
        let values = self.converter.convert_rows([rows.row(at)]).unwrap_or_default();
        let values = values.iter().map(|column| array_value_to_string(column, 0).unwrap_or_default());
        format!("({}) = ({})", self.names.join(", "), values.collect::<Vec<_>>().join(", "))
    }
}

fn cannot_encode(error: arrow::error::ArrowError) -> StorageError {
    StorageError::internal("the keys of the rows cannot be compared").with_source(error)
}

fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    hasher.finish()
}

/// The keys of rows that are being written, in the order of the rows.
pub(crate) struct NewKeys {
    columns: KeyColumns,
    rows: KeyRows,
    /// Hash and place of each key, by hash once [`NewKeys::sort`] has run.
    hashes: Vec<(u64, u32)>,
}

impl NewKeys {
    /// `None` for a table without a primary key.
    pub(crate) fn of(snapshot: &Snapshot) -> Result<Option<Self>> {
        let Some(columns) = KeyColumns::of(snapshot)? else { return Ok(None) };
        let rows = columns.converter.empty_rows(0, 0);
        Ok(Some(Self { columns, rows, hashes: Vec::new() }))
    }

    /// Takes the keys of one more batch.
    pub(crate) fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let columns = self.columns.columns(batch)?;
        let start = self.rows.num_rows();
        self.columns.converter.append(&mut self.rows, &columns).map_err(cannot_encode)?;
        for at in start..self.rows.num_rows() {
            let place = u32::try_from(at).map_err(|_| {
                StorageError::unsupported(format!("more than {} rows with keys in one statement", u32::MAX))
            })?;
            self.hashes.push((hash(self.rows.row(at).data()), place));
        }
        Ok(())
    }

    /// Sorts the keys and checks them against each other.
    ///
    /// # Errors
    /// [`StorageError::Duplicate`] if two rows have the same key.
    pub(crate) fn sort(&mut self) -> Result<()> {
        self.hashes.sort_unstable();
        for run in self.hashes.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
            for (at, (_, row)) in run.iter().enumerate() {
                let same = run[..at].iter().any(|(_, other)| self.key(*other) == self.key(*row));
                if same {
                    return Err(StorageError::duplicate(format!(
                        "the rows have the key {} twice; nothing was written",
                        self.shown(*row)
                    )));
                }
            }
        }
        Ok(())
    }

    /// Checks the keys against those of another statement that will be committed before.
    pub(crate) fn check_against(&self, earlier: &HashMap<u64, Vec<Box<[u8]>>>) -> Result<()> {
        for (hash, row) in &self.hashes {
            let same = earlier.get(hash).is_some_and(|keys| keys.iter().any(|key| key.as_ref() == self.key(*row)));
            if same {
                return Err(self.there(*row));
            }
        }
        Ok(())
    }

    /// Adds the keys to those that later statements are checked against.
    pub(crate) fn add_to(&self, earlier: &mut HashMap<u64, Vec<Box<[u8]>>>) {
        for (hash, row) in &self.hashes {
            earlier.entry(*hash).or_default().push(self.key(*row).into());
        }
    }

    fn key(&self, row: u32) -> &[u8] {
        self.rows.row(row as usize).data()
    }

    fn shown(&self, row: u32) -> String {
        self.columns.shown(&self.rows, row as usize)
    }

    fn there(&self, row: u32) -> StorageError {
        StorageError::duplicate(format!(
            "the key {} is in the table already; nothing was written (INSERT … ON CONFLICT says what to do then)",
            self.shown(row)
        ))
    }
}

/// Checks sorted new keys against the rows of a snapshot, but for those in `deleted`. Cost: the key columns of the
/// files whose keys are not in the cache, then a binary search per key and file.
///
/// # Errors
/// [`StorageError::Duplicate`] with the key if one is there.
pub(crate) async fn check_keys(
    cache: &KeyCache,
    snapshot: &Snapshot,
    new: &NewKeys,
    deleted: &BTreeMap<u32, RoaringBitmap>,
) -> Result<()> {
    if new.hashes.is_empty() {
        return Ok(());
    }
    for fragment in snapshot.fragments() {
        let known = cache.keys_of(snapshot, fragment, &new.columns).await?;
        let mut found = known.find(&new.hashes);
        if found.is_empty() {
            continue;
        }
        let dead = snapshot.deleted_rows(fragment.id).await?;
        let going = deleted.get(&fragment.id);
        found.retain(|(offset, _)| !dead.contains(*offset) && !going.is_some_and(|rows| rows.contains(*offset)));
        for some in found.chunks(CHECKED_AT_ONCE) {
            verify(snapshot, fragment, new, some).await?;
        }
    }
    Ok(())
}

/// `found`: offset in the fragment and place among the new keys, of the same hash.
async fn verify(snapshot: &Snapshot, fragment: &FragmentShape, new: &NewKeys, found: &[(u32, u32)]) -> Result<()> {
    let address = |(offset, _): &(u32, u32)| (u64::from(fragment.id) << 32) | u64::from(*offset);
    let addresses: Vec<u64> = found.iter().map(address).collect();
    let batch = snapshot.take(&addresses, &new.columns.names).await?;
    let there = new.columns.encode(&batch)?;
    match found.iter().enumerate().find(|(at, (_, row))| there.row(*at).data() == new.key(*row)) {
        Some((_, (_, row))) => Err(new.there(*row)),
        None => Ok(()),
    }
}

/// The hashes of the keys in one data file, sorted, with the rows they belong to.
struct FileKeys {
    hashes: Vec<u64>,
    offsets: Vec<u32>,
    /// Rows that were deleted when the file was read: they are not in the lists.
    without: RoaringBitmap,
}

impl FileKeys {
    /// Offsets and places of the new keys whose hashes are here. `new` is sorted.
    fn find(&self, new: &[(u64, u32)]) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        let mut from = 0;
        for (hash, place) in new {
            from += self.hashes[from..].partition_point(|known| known < hash);
            let same = self.hashes[from..].iter().take_while(|known| *known == hash).count();
            found.extend(self.offsets[from..from + same].iter().map(|offset| (*offset, *place)));
        }
        found
    }

    fn bytes(&self) -> usize {
        self.hashes.len() * 12
    }
}

/// The lists of the files that were asked last.
pub(crate) struct KeyCache {
    /// Bytes of the lists that are kept: 12 per row.
    bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    files: HashMap<String, Arc<FileKeys>>,
    order: VecDeque<String>,
    bytes: usize,
}

impl KeyCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, held: Mutex::default() }
    }

    async fn keys_of(
        &self,
        snapshot: &Snapshot,
        fragment: &FragmentShape,
        columns: &KeyColumns,
    ) -> Result<Arc<FileKeys>> {
        let first = snapshot.lance_projection(&[columns.names[0].as_str()])?;
        let field = first.fields.first().map_or(-1, |field| field.id);
        let file = fragment.metadata.files.iter().find(|file| file.fields.contains(&field));
        let name = file.map(|file| format!("{}/{}", snapshot.location(), file.path));
        if let Some(name) = &name
            && let Some(known) = self.get(name)
            && (known.without.is_empty() || known.without.is_subset(&snapshot.deleted_rows(fragment.id).await?))
        {
            return Ok(known);
        }
        let read = Arc::new(read_keys(snapshot, fragment, columns).await?);
        if let Some(name) = name {
            self.put(name, Arc::clone(&read));
        }
        Ok(read)
    }

    fn get(&self, name: &str) -> Option<Arc<FileKeys>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).files.get(name).cloned()
    }

    fn put(&self, name: String, keys: Arc<FileKeys>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.bytes += keys.bytes();
        if let Some(before) = held.files.insert(name.clone(), keys) {
            held.bytes -= before.bytes();
        } else {
            held.order.push_back(name);
        }
        while held.bytes > self.bytes_max {
            let Some(oldest) = held.order.pop_front() else { break };
            if let Some(gone) = held.files.remove(&oldest) {
                held.bytes -= gone.bytes();
            }
        }
    }
}

async fn read_keys(snapshot: &Snapshot, fragment: &FragmentShape, columns: &KeyColumns) -> Result<FileKeys> {
    let mut wanted = columns.names.clone();
    wanted.push(ROW_ADDRESS.to_owned());
    let request = ScanRequest {
        columns: wanted,
        filter: None,
        asks_indexes: false,
        limit: None,
        partition: Some(ScanPartition::of_fragment(fragment)),
        batch_rows: BATCH_ROWS,
        buffer_bytes: KEY_BUFFER_BYTES,
    };
    let mut batches = snapshot.scan(request)?;
    let mut entries: Vec<(u64, u32)> = Vec::new();
    while let Some(batch) = batches.try_next().await.map_err(StorageError::from_scan)? {
        let keys = columns.encode(&batch)?;
        let addresses =
            batch.column_by_name(ROW_ADDRESS).and_then(|column| column.as_any().downcast_ref::<UInt64Array>());
        let Some(addresses) = addresses else {
            return Err(StorageError::internal("a scan for keys has no row addresses"));
        };
        for (key, address) in keys.iter().zip(addresses.values()) {
            entries.push((hash(key.data()), u32::try_from(address & u64::from(u32::MAX)).unwrap_or(u32::MAX)));
        }
    }
    entries.sort_unstable();
    let (hashes, offsets) = entries.into_iter().unzip();
    Ok(FileKeys { hashes, offsets, without: snapshot.deleted_rows(fragment.id).await? })
}
