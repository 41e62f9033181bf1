//! Reading rows: partitions of a snapshot, streams of live rows with projection, filter and limit pushed down into
//! Lance, and rows by address. Vectors for search are read in `vectors.rs`.

use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array};
use arrow::compute::{cast, take as take_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use lance::dataset::scanner::{FragmentSlice, Scanner};
use lance::dataset::{ProjectionRequest, TakeBuilder};

use crate::error::{Result, StorageError};
use crate::snapshot::{FragmentShape, Snapshot};

/// The column that holds the address of a row: fragment number in the upper, offset in the lower 32 bits.
pub const ROW_ADDRESS: &str = "_rowaddr";

/// Bytes that a scan may hold where memory is plenty.
pub const SCAN_BUFFER_BYTES: usize = 128 << 20;

/// Bytes that a scan holds at least.
pub const SCAN_BUFFER_BYTES_MIN: usize = 1 << 20;

/// The part of a scan's buffer that one batch may fill with values of fixed width: one in this many.
const BATCH_SHARE: usize = 8;

/// Bytes that are held of each column whose values have no fixed width are taken for this many times those in the file.
const UNPACKED: u64 = 4;

/// Batches that Lance may decode at once for one scan.
const BATCH_READ_AHEAD: usize = 2;

/// The same for a scan that asks an index: it is not cut into partitions, each of which would ask anew.
const BATCH_READ_AHEAD_INDEXED: usize = 4;

/// Partitions are not cut smaller than this many rows.
const PARTITION_ROWS_MIN: u64 = 16 * 1024;

/// Cuts fall on multiples of this many rows of a fragment.
const PARTITION_ALIGNMENT: u64 = 1024;

/// What to read of a snapshot.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    /// By name, in the order wanted; [`ROW_ADDRESS`] may be among them. Empty: batches that only count rows.
    pub columns: Vec<String>,
    /// Rows for which this is true, and only those. Ask [`Snapshot::can_filter`] first.
    pub filter: Option<Expr>,
    /// Whether indexes are asked which rows these are. Each partition would ask anew.
    pub asks_indexes: bool,
    /// At most this many rows (after the filter).
    pub limit: Option<usize>,
    /// Only this part of the rows.
    pub partition: Option<ScanPartition>,
    /// At most this many rows per batch; wide rows come in smaller batches.
    pub batch_rows: usize,
    /// About so many bytes are in memory at once: half of it what is read ahead, the rest the batches that are being
    /// decoded. Batches that were handed out are not counted.
    pub buffer_bytes: usize,
}

impl ScanRequest {
    /// The addresses of all rows for which a filter is true.
    pub(crate) fn of_addresses(filter: &Expr) -> Self {
        Self {
            columns: vec![ROW_ADDRESS.to_owned()],
            filter: Some(filter.clone()),
            asks_indexes: true,
            limit: None,
            partition: None,
            batch_rows: 8192,
            buffer_bytes: SCAN_BUFFER_BYTES_MIN,
        }
    }
}

/// Bytes of one batch of a scan with such a buffer, at most.
pub fn scan_batch_bytes(buffer_bytes: usize) -> usize {
    buffer_bytes / BATCH_SHARE
}

/// A part of the rows of a snapshot: whole fragments or runs of rows within one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPartition {
    slices: Vec<Slice>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slice {
    fragment: u32,
    rows: Range<u64>,
    whole: bool,
}

impl ScanPartition {
    /// All rows of one fragment.
    pub(crate) fn of_fragment(fragment: &FragmentShape) -> Self {
        Self { slices: vec![Slice { fragment: fragment.id, rows: 0..fragment.rows, whole: true }] }
    }

    /// Physical rows: the deleted ones count.
    pub fn rows(&self) -> u64 {
        self.slices.iter().map(|slice| slice.rows.end - slice.rows.start).sum()
    }
}

impl Snapshot {
    /// Cuts the rows into at most `target` parts of about equal size, in address order. An empty table has none.
    pub fn partitions(&self, target: usize) -> Vec<ScanPartition> {
        self.partitions_among(target, |_| true)
    }

    /// The same for the fragments that are `wanted`.
    pub(crate) fn partitions_among(&self, target: usize, wanted: impl Fn(u32) -> bool) -> Vec<ScanPartition> {
        let is_wanted = |fragment: &&FragmentShape| fragment.rows > 0 && wanted(fragment.id);
        let fragments = self.fragments().iter().filter(is_wanted);
        let total: u64 = fragments.clone().map(|fragment| fragment.rows).sum();
        if total == 0 {
            return Vec::new();
        }
        let target = u64::try_from(target.max(1)).unwrap_or(u64::MAX);
        let wanted = total.div_ceil(target).max(PARTITION_ROWS_MIN).next_multiple_of(PARTITION_ALIGNMENT);
        let mut partitions = Vec::new();
        let mut slices: Vec<Slice> = Vec::new();
        let mut held = 0;
        for fragment in fragments {
            let mut start = 0;
            while start < fragment.rows {
                let room = wanted - held;
                let end = if self.can_cut() { (start + room).min(fragment.rows) } else { fragment.rows };
                slices.push(Slice {
                    fragment: fragment.id,
                    rows: start..end,
                    whole: start == 0 && end == fragment.rows,
                });
                held += end - start;
                start = end;
                if held >= wanted {
                    partitions.push(ScanPartition { slices: std::mem::take(&mut slices) });
                    held = 0;
                }
            }
        }
        if !slices.is_empty() {
            partitions.push(ScanPartition { slices });
        }
        partitions
    }

    /// The schema of what [`Snapshot::scan`] and [`Snapshot::take`] return for `columns`.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column.
    pub fn scan_schema(&self, columns: &[String]) -> Result<SchemaRef> {
        let mut fields = Vec::with_capacity(columns.len());
        for column in columns {
            if column == ROW_ADDRESS {
                fields.push(Arc::new(Field::new(ROW_ADDRESS, DataType::UInt64, false)));
            } else {
                fields.push(Arc::new(self.field(column)?.clone()));
            }
        }
        Ok(Arc::new(Schema::new(fields)))
    }

    /// Streams rows in address order. Nothing is read before the stream is polled. The stream's errors are
    /// [`DataFusionError::External`] with a [`StorageError`] inside.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column, [`StorageError::Invalid`] for a filter that Lance cannot run.
    pub fn scan(&self, request: ScanRequest) -> Result<SendableRecordBatchStream> {
        let schema = self.scan_schema(&request.columns)?;
        if let Some(filter) = &request.filter
            && !self.can_filter(filter)
        {
            return Err(StorageError::invalid(format!("the filter {filter} cannot be evaluated while reading")));
        }
        let snapshot = self.clone();
        let adapter = Retag::new(schema.clone());
        let what: Arc<str> = format!("cannot read {}", self.location()).into();
        let opened = {
            let what = what.clone();
            async move { snapshot.opened(&request, &what).await }
        };
        let rows = futures::stream::once(opened.map(|opened| opened.map_err(DataFusionError::from)))
            .map_ok({
                let what = what.clone();
                move |stream| {
                    let what = what.clone();
                    stream.map_err(move |error| {
                        DataFusionError::from(StorageError::from_lance(&what, error).while_pinned())
                    })
                }
            })
            .try_flatten();
        let guarded = AssertUnwindSafe(rows).catch_unwind().map(move |caught| match caught {
            Ok(Ok(batch)) => adapter.batch(&batch).map_err(DataFusionError::from),
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(panicked(&what, panic.as_ref()).into()),
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, guarded)))
    }

    /// The rows as Lance reads them. Where an index fails, they are read without it.
    async fn opened(
        &self,
        request: &ScanRequest,
        what: &str,
    ) -> Result<BoxStream<'static, lance::Result<RecordBatch>>> {
        let failed = |error| StorageError::from_lance(what, error).while_pinned();
        let mut scanner = self.scanner(request).await?;
        let opened = scanner.try_into_stream().await.map_err(failed);
        if request.filter.is_none() || !request.asks_indexes || self.dataset().manifest().index_section.is_none() {
            return Ok(opened?.boxed());
        }
        let first = async {
            let mut stream = opened?;
            let first = stream.next().await.transpose().map_err(failed)?;
            Ok(futures::stream::iter(first.map(Ok)).chain(stream).boxed())
        };
        let first = AssertUnwindSafe(first).catch_unwind().await;
        match first.unwrap_or_else(|panic| Err(panicked(what, panic.as_ref()))) {
            Err(StorageError::Unavailable(failure)) => Err(StorageError::Unavailable(failure)),
            Err(error) => {
                tracing::error!(%error, "rows are read again, without indexes; CHECK TABLE finds damage, REINDEX repairs it");
                Ok(scanner.use_scalar_index(false).try_into_stream().await.map_err(failed)?.boxed())
            }
            Ok(stream) => Ok(stream),
        }
    }

    /// The rows with these addresses, in this order, repeated where an address is. Cost: random reads, one per row and
    /// column at worst.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column, [`StorageError::Invalid`] for an address without a live row.
    pub async fn take(&self, addresses: &[u64], columns: &[String]) -> Result<RecordBatch> {
        let schema = self.scan_schema(columns)?;
        let mut unique = addresses.to_vec();
        unique.sort_unstable();
        unique.dedup();
        let found = self.take_sorted(&unique, columns).await?;
        let order: Vec<u64> =
            addresses.iter().map(|address| unique.binary_search(address).map_or(u64::MAX, |at| at as u64)).collect();
        let order = UInt64Array::from(order);
        let mut arrays = Vec::with_capacity(columns.len());
        for (field, array) in schema.fields().iter().zip(found) {
            let array = take_array(&array, &order, None).map_err(|error| {
                StorageError::internal(format!("cannot reorder column {}", field.name())).with_source(error)
            })?;
            arrays.push(array);
        }
        rebuild(&schema, arrays, addresses.len())
    }

    /// One array per column, rows in the order of `unique` (ascending, no repetitions): from decoded columns where they are kept, the
    /// others from the files.
    async fn take_sorted(&self, unique: &[u64], columns: &[String]) -> Result<Vec<ArrayRef>> {
        let mut values: HashMap<&str, ArrayRef> = HashMap::new();
        let stored = columns.iter().map(String::as_str).filter(|column| *column != ROW_ADDRESS);
        let mut wanted: Vec<&str> = vec![];
        for column in stored {
            match self.kept_values(column, unique)? {
                Some(kept) => drop(values.insert(column, kept)),
                None => wanted.push(column),
            }
        }
        if !values.is_empty() && wanted.is_empty() {
            self.check_live(unique).await?;
        }
        if !wanted.is_empty() && !unique.is_empty() {
            let batch = self.take_stored(unique, &wanted).await?;
            for column in &wanted {
                values.insert(column, column_of(&batch, column)?.clone());
            }
        }
        let of_column = |column: &String| match values.get(column.as_str()) {
            Some(values) => Ok(Arc::clone(values)),
            None if column == ROW_ADDRESS => Ok(Arc::new(UInt64Array::from(unique.to_vec())) as ArrayRef),
            None => Ok(arrow::array::new_empty_array(self.field(column)?.data_type())),
        };
        columns.iter().map(of_column).collect()
    }

    /// # Errors
    /// An address without a live row.
    async fn check_live(&self, addresses: &[u64]) -> Result<()> {
        for of_fragment in addresses.chunk_by(|one, other| one >> 32 == other >> 32) {
            let fragment = u32::try_from(of_fragment[0] >> 32).unwrap_or(u32::MAX);
            let at = self.fragments().binary_search_by_key(&fragment, |fragment| fragment.id);
            let shape = at.ok().and_then(|at| self.fragments().get(at));
            let Some(shape) = shape else { return Err(self.not_live(addresses.len(), 0)) };
            if shape.metadata.deletion_file.is_some() {
                let deleted = self.deleted_rows(fragment).await?;
                if of_fragment.iter().any(|address| deleted.contains(*address as u32)) {
                    return Err(self.not_live(addresses.len(), addresses.len() - 1));
                }
            }
        }
        Ok(())
    }

    fn not_live(&self, wanted: usize, live: usize) -> StorageError {
        StorageError::invalid(format!(
            "cannot fetch {wanted} rows of {}: only {live} of them are live in version {}",
            self.location(),
            self.version()
        ))
    }

    /// These columns of the rows, from the files.
    async fn take_stored(&self, unique: &[u64], columns: &[&str]) -> Result<RecordBatch> {
        let what = format!("cannot fetch {} rows of {}", unique.len(), self.location());
        let request = ProjectionRequest::from_schema(self.lance_projection(columns)?);
        let plan = request
            .into_projection_plan(self.dataset().clone())
            .map_err(|error| StorageError::from_lance(&what, error))?;
        let builder = TakeBuilder::try_new_from_addresses(self.dataset().clone(), unique.to_vec(), Arc::new(plan))
            .map_err(|error| StorageError::from_lance(&what, error))?;
        let taken = AssertUnwindSafe(builder.execute()).catch_unwind().await;
        let batch = match taken {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => return Err(StorageError::from_lance(&what, error).while_pinned()),
            Err(panic) => return Err(panicked(&what, panic.as_ref())),
        };
        if batch.num_rows() != unique.len() {
            return Err(self.not_live(unique.len(), batch.num_rows()));
        }
        Ok(batch)
    }

    /// Lance's scanner for `request`.
    pub(crate) async fn scanner(&self, request: &ScanRequest) -> Result<Scanner> {
        let failed = |error| StorageError::from_lance(format!("cannot plan a scan of {}", self.location()), error);
        let mut scanner = Scanner::new(self.dataset().clone());
        let stored: Vec<&str> =
            request.columns.iter().map(String::as_str).filter(|column| *column != ROW_ADDRESS).collect();
        if stored.is_empty() {
            scanner.empty_project().map_err(failed)?;
            scanner.with_row_address();
        } else {
            scanner.project_with_schema(&self.lance_projection(&stored)?).map_err(failed)?;
            if stored.len() < request.columns.len() {
                scanner.with_row_address();
            }
        }
        if let Some(filter) = &request.filter {
            scanner.filter_expr(filter.clone());
        }
        if let Some(limit) = request.limit {
            scanner.limit(Some(i64::try_from(limit).unwrap_or(i64::MAX)), None).map_err(failed)?;
        }
        let asks_indexes =
            request.asks_indexes && request.filter.is_some() && self.dataset().manifest().index_section.is_some();
        scanner
            .scan_in_order(true)
            .io_buffer_size(request.buffer_bytes as u64 / 2)
            .use_scalar_index(asks_indexes)
            .batch_readahead(if asks_indexes { BATCH_READ_AHEAD_INDEXED } else { BATCH_READ_AHEAD })
            .batch_size(self.batch_rows(&stored, request)?);
        if let Some(partition) = &request.partition {
            self.restrict(&mut scanner, partition).await?;
        }
        Ok(scanner)
    }

    async fn restrict(&self, scanner: &mut Scanner, partition: &ScanPartition) -> Result<()> {
        let mut fragments = Vec::with_capacity(partition.slices.len());
        for slice in &partition.slices {
            let at = self.fragments().binary_search_by_key(&slice.fragment, |fragment| fragment.id);
            let fragment = at.ok().and_then(|at| self.fragments().get(at)).ok_or_else(|| {
                StorageError::internal(format!(
                    "a partition names fragment {}, which version {} of {} does not have",
                    slice.fragment,
                    self.version(),
                    self.location()
                ))
            })?;
            fragments.push(fragment.metadata.clone());
        }
        scanner.with_fragments(fragments);
        if partition.slices.iter().all(|slice| slice.whole) {
            return Ok(());
        }
        let slices: Vec<FragmentSlice> = partition
            .slices
            .iter()
            .map(|slice| FragmentSlice {
                fragment_id: slice.fragment,
                row_offset: slice.rows.start,
                row_count: slice.rows.end - slice.rows.start,
            })
            .collect();
        scanner
            .with_fragment_slices(&slices)
            .await
            .map_err(|error| StorageError::from_lance(format!("cannot plan a scan of {}", self.location()), error))?;
        Ok(())
    }

    /// Rows per batch such that vectors and other fixed-width columns stay within [`scan_batch_bytes`].
    fn batch_rows(&self, columns: &[&str], request: &ScanRequest) -> Result<usize> {
        let mut row_bytes = 8;
        for column in columns {
            row_bytes += width(self.field(column)?.data_type());
        }
        Ok(request.batch_rows.clamp(1, (scan_batch_bytes(request.buffer_bytes) / row_bytes).max(16)))
    }

    /// Bytes of these columns in one row. An estimate where values have no fixed width.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column.
    pub fn row_bytes(&self, columns: &[String]) -> Result<u64> {
        let mut row_bytes: u64 = 8;
        for column in columns.iter().filter(|column| *column != ROW_ADDRESS) {
            let of_column = match self.field(column)?.data_type() {
                data_type if is_of_fixed_width(data_type) => width(data_type) as u64,
                // The bytes of all columns: nobody knows which of them are this one's.
                _ => self.bytes().unwrap_or(u64::MAX).saturating_mul(UNPACKED) / self.row_count().max(1),
            };
            row_bytes = row_bytes.saturating_add(of_column);
        }
        Ok(row_bytes)
    }

    /// Bytes that a scan of these columns can fill at most, whatever its buffer: a small table fills none.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column.
    pub fn scan_bytes_max(&self, columns: &[String], partition: Option<&ScanPartition>) -> Result<u64> {
        let rows = partition.map_or_else(|| self.row_count(), ScanPartition::rows);
        // What is read, what is decoded, and what is handed over.
        Ok(rows.saturating_mul(self.row_bytes(columns)?).saturating_mul(3))
    }
}

fn is_of_fixed_width(data_type: &DataType) -> bool {
    match data_type {
        DataType::FixedSizeList(item, _) => is_of_fixed_width(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_of_fixed_width(field.data_type())),
        DataType::FixedSizeBinary(_) | DataType::Boolean | DataType::Null => true,
        other => other.primitive_width().is_some(),
    }
}

/// Bytes of one value; what has no fixed width counts as little.
fn width(data_type: &DataType) -> usize {
    match data_type {
        DataType::FixedSizeList(item, length) => {
            width(item.data_type()).saturating_mul(usize::try_from(*length).unwrap_or(0))
        }
        DataType::FixedSizeBinary(length) => usize::try_from(*length).unwrap_or(0),
        DataType::Struct(fields) => fields.iter().map(|field| width(field.data_type())).sum(),
        other => other.primitive_width().unwrap_or(16),
    }
}

fn column_of<'a>(batch: &'a RecordBatch, column: &str) -> Result<&'a ArrayRef> {
    let at = batch.schema_ref().fields().iter().position(|field| field.name() == column);
    at.map(|at| batch.column(at)).ok_or_else(|| {
        StorageError::internal(format!("column {column} was asked for and is missing from what was read"))
    })
}

/// Gives batches of Lance exactly the schema we promised: its order, its nullability, none of Lance's metadata.
struct Retag {
    schema: SchemaRef,
}

impl Retag {
    fn new(schema: SchemaRef) -> Self {
        Self { schema }
    }

    fn batch(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = self.schema.fields().iter().map(|field| column_of(batch, field.name()).cloned());
        rebuild(&self.schema, columns.collect::<Result<_>>()?, batch.num_rows())
    }
}

fn rebuild(schema: &SchemaRef, mut columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    for (field, column) in schema.fields().iter().zip(columns.iter_mut()) {
        if column.data_type() != field.data_type() {
            *column = cast(column, field.data_type()).map_err(|error| {
                StorageError::corrupt(format!(
                    "column {} is stored as {} but declared as {}; the file does not belong to this table",
                    field.name(),
                    column.data_type(),
                    field.data_type()
                ))
                .with_source(error)
            })?;
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(|error| {
        StorageError::corrupt(format!("what was read does not fit the columns of the table: {error}"))
            .with_source(error)
    })
}

fn panicked(what: &str, panic: &(dyn Any + Send)) -> StorageError {
    tracing::error!(what, "Lance panicked");
    StorageError::from_panic(what, panic)
}

#[cfg(test)]
mod tests;
