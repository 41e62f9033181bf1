//! Writing rows: what a table can hold, the check of the rows on their way in, and the two ways of writing them, into
//! a fresh dataset and as one more version of an existing one. Catalog entries are made in `database.rs`.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::error::DataFusionError;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use futures::Stream;
use lance::Dataset;
use lance::dataset::progress::WriteFragmentProgress;
use lance::dataset::transaction::Operation;
use lance::dataset::{InsertBuilder, WriteMode, WriteParams};
use lance_core::datatypes::Schema as LanceSchema;
use lance_table::format::Fragment;
use object_store::ObjectStoreExt;

use crate::commit::Committer;
use crate::error::{Result, StorageError};
use crate::keys::{NewKeys, without_key_mark};
use crate::snapshot::{Snapshot, guard};
use crate::store::Root;

/// Rows in one data file, at most.
const FILE_ROWS_MAX: usize = 1 << 20;

/// Bytes in one data file, about: larger ones would make deletes and compaction expensive.
const FILE_BYTES_MAX: usize = 4 << 30;

/// How far a write has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteProgress {
    /// Rows written so far.
    pub rows: u64,
    /// Bytes written so far, after encoding.
    pub bytes: u64,
}

/// Called after each batch, with totals. It must be cheap and must not block.
pub type Progress = Arc<dyn Fn(WriteProgress) + Send + Sync>;

/// The schema that a table made from `schema` has: texts and bytes in their plain layouts, no metadata of the schema.
///
/// # Errors
/// [`StorageError::Invalid`] for names that Lance refuses (with a dot or a backtick, reserved, twice),
/// [`StorageError::Unsupported`] for types that it cannot store.
pub fn storable_schema(schema: &Schema) -> Result<SchemaRef> {
    let mut names = std::collections::HashSet::new();
    let mut fields: Vec<FieldRef> = Vec::with_capacity(schema.fields().len());
    if schema.fields().is_empty() {
        return Err(StorageError::invalid("a table needs at least one column"));
    }
    for field in schema.fields() {
        let name = field.name();
        if name.is_empty() || name.contains(['.', '`']) {
            return Err(StorageError::invalid(format!(
                "column name \"{name}\" is empty or holds a dot or a backtick, which table files do not \
                 allow; give it another name with AS"
            )));
        }
        if lance_core::is_system_column(name) {
            return Err(StorageError::invalid(format!(
                "column name {name} is reserved; give the column another name with AS"
            )));
        }
        if !names.insert(name) {
            return Err(StorageError::invalid(format!("column name {name} appears twice; rename one with AS")));
        }
        fields.push(Arc::new(storable_field(field)));
    }
    let storable = Schema::new(fields);
    let lance = LanceSchema::try_from(&storable).and_then(|lance| lance.validate().map(|()| lance));
    lance.map_err(|error| match StorageError::from_lance("a table cannot have these columns", error) {
        StorageError::Internal(failure) => StorageError::Unsupported(failure),
        other => other,
    })?;
    Ok(Arc::new(storable))
}

fn storable_field(field: &Field) -> Field {
    let nested = |inner: &FieldRef| Arc::new(storable_field(inner));
    let data_type = match field.data_type() {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::List(item) | DataType::ListView(item) => DataType::List(nested(item)),
        DataType::LargeList(item) | DataType::LargeListView(item) => DataType::LargeList(nested(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(nested(item), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(nested).collect()),
        other => other.clone(),
    };
    without_key_mark(&field.clone().with_data_type(data_type))
}

/// Writes all rows into a dataset that does not exist yet. Returns the dataset and the number of rows.
pub(crate) async fn create_dataset(
    root: &Root,
    relative: &str,
    rows: Rows,
    committer: Arc<Committer>,
    progress: Option<Progress>,
) -> Result<(Dataset, u64)> {
    let what = format!("cannot write table files {}", crate::snapshot::shown(root, relative));
    let uri = root.lance_uri(relative)?;
    let params = WriteParams {
        mode: WriteMode::Create,
        store_params: Some(root.params()),
        session: Some(root.session()),
        commit_handler: Some(committer),
        ..write_params()
    };
    let (stream, witness) = rows.watched();
    let mut builder = InsertBuilder::new(uri.as_str()).with_params(&params);
    if let Some(progress) = progress {
        builder = builder.progress(move |stats| {
            progress(WriteProgress { rows: stats.rows_written, bytes: stats.bytes_written });
        });
    }
    let written = guard(&what, builder.execute_stream(stream)).await.map_err(|error| match error {
        // Nobody else knows the folder's name: the store had another write under way (S3's 409), or says so.
        StorageError::AlreadyExists(_) => {
            StorageError::conflict(format!("{what}: another write was under way; run the statement again"))
                .with_source(error)
        }
        error => error,
    });
    Ok((witness.explain(written)?, witness.rows()))
}

/// Rows written beside a dataset, not yet part of it. When it is dropped before [`Pending::keep`], the files are removed.
pub(crate) struct Pending {
    pub(crate) fragments: Vec<Fragment>,
    /// The keys of the rows, checked against each other; `None` for a table without a primary key.
    pub(crate) keys: Option<NewKeys>,
    /// Rows written.
    pub(crate) rows: u64,
    files: Uncommitted,
    schema: LanceSchema,
    what: String,
}

/// Writes rows as new data files of `dataset`, which is in `relative` below `root`, without committing them. When the
/// future or its result is dropped, the files are removed.
///
/// # Errors
/// [`StorageError::Duplicate`] if two rows have the same key.
pub(crate) async fn write_files(
    root: &Root,
    relative: &str,
    dataset: Arc<Dataset>,
    rows: Rows,
    progress: Option<Progress>,
) -> Result<Pending> {
    let what = format!("cannot write to {}", crate::snapshot::shown(root, relative));
    let files = Uncommitted { root: root.clone(), folder: format!("{relative}/data"), written: Arc::default() };
    let written = Arc::new(Written { files: files.written.clone() });
    let params = WriteParams { mode: WriteMode::Append, progress: written, ..write_params() };
    let schema = dataset.schema().clone();
    let keys = rows.keys.clone();
    let (stream, witness) = rows.watched();
    let mut builder = InsertBuilder::new(dataset).with_params(&params);
    if let Some(progress) = progress {
        builder = builder.progress(move |stats| {
            progress(WriteProgress { rows: stats.rows_written, bytes: stats.bytes_written });
        });
    }
    let written = guard(&what, builder.execute_uncommitted_stream(stream)).await;
    let transaction = witness.explain(written)?;
    let Operation::Append { fragments } = transaction.operation else {
        return Err(StorageError::internal(format!("{what}: writing rows was not an append")));
    };
    files.add(&fragments);
    let mut keys = keys.and_then(|keys| keys.lock().unwrap_or_else(PoisonError::into_inner).take());
    if let Some(keys) = &mut keys {
        keys.sort()?;
    }
    Ok(Pending { fragments, keys, rows: witness.rows(), files, schema, what })
}

impl Pending {
    /// Leaves the files where they are, come what may: a version may name them.
    pub(crate) fn keep(&self) {
        self.files.keep();
    }

    /// # Errors
    /// [`StorageError::Conflict`] if the columns are no longer those that the rows were written for.
    pub(crate) fn check_fits(&self, snapshot: &Snapshot) -> Result<()> {
        if self.schema == *snapshot.dataset().schema() {
            return Ok(());
        }
        Err(StorageError::conflict(format!(
            "{}: its columns were altered while rows were written; run the statement again",
            self.what
        )))
    }
}

/// Data files that no version names yet; they are removed when this is dropped.
struct Uncommitted {
    root: Root,
    folder: String,
    written: Arc<Mutex<Vec<String>>>,
}

impl Uncommitted {
    fn add(&self, fragments: &[Fragment]) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = fragments.iter().flat_map(|fragment| &fragment.files).map(|file| file.path.clone());
        written.extend(paths);
    }

    fn keep(&self) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Uncommitted {
    fn drop(&mut self) {
        let files = std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner));
        if files.is_empty() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (root, folder) = (self.root.clone(), std::mem::take(&mut self.folder));
        runtime.spawn(async move {
            for file in files {
                match root.store().delete(&root.path(&format!("{folder}/{file}"))).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => {
                        tracing::warn!(file, %error, "a file of a cancelled write is left and wastes space");
                    }
                }
            }
        });
    }
}

/// Hears from Lance which data files are complete.
#[derive(Debug)]
struct Written {
    files: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl WriteFragmentProgress for Written {
    async fn begin(&self, _fragment: &Fragment) -> lance::Result<()> {
        Ok(())
    }

    async fn complete(&self, fragment: &Fragment) -> lance::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.extend(fragment.files.iter().map(|file| file.path.clone()));
        Ok(())
    }
}

fn write_params() -> WriteParams {
    WriteParams {
        max_rows_per_file: FILE_ROWS_MAX,
        max_bytes_per_file: FILE_BYTES_MAX,
        enable_stable_row_ids: false,
        enable_v2_manifest_paths: true,
        auto_cleanup: None,
        skip_auto_cleanup: true,
        ..Default::default()
    }
}

/// Rows on their way into a table: checked and brought into the table's own types, batch by batch.
pub(crate) struct Rows {
    input: SendableRecordBatchStream,
    schema: SchemaRef,
    count: Arc<AtomicU64>,
    failure: Arc<Mutex<Option<StorageError>>>,
    keys: Option<Arc<Mutex<Option<NewKeys>>>>,
}

impl Rows {
    /// `schema` is that of the table. Columns are matched by place; names and types must agree.
    ///
    /// # Errors
    /// [`StorageError::Invalid`] if they do not.
    pub(crate) fn new(input: SendableRecordBatchStream, schema: SchemaRef) -> Result<Self> {
        let given = input.schema();
        let names = |schema: &Schema| {
            let names: Vec<String> =
                schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
            names.join(", ")
        };
        let agree = given.fields().len() == schema.fields().len()
            && given.fields().iter().zip(schema.fields()).all(|(given, wanted)| {
                given.name() == wanted.name() && storable_field(given).data_type().equals_datatype(wanted.data_type())
            });
        if !agree {
            return Err(StorageError::invalid(format!(
                "the rows have the columns ({}) but the table has ({})",
                names(&given),
                names(&schema)
            )));
        }
        Ok(Self { input, schema, count: Arc::default(), failure: Arc::default(), keys: None })
    }

    /// The same rows; their keys are kept on the way if the table has a primary key.
    pub(crate) fn with_keys(mut self, snapshot: &Snapshot) -> Result<Self> {
        self.keys = NewKeys::of(snapshot)?.map(|keys| Arc::new(Mutex::new(Some(keys))));
        Ok(self)
    }

    /// The stream for Lance, and what keeps an eye on it.
    fn watched(self) -> (SendableRecordBatchStream, Witness) {
        let witness = Witness { count: self.count.clone(), failure: self.failure.clone() };
        (Box::pin(self), witness)
    }

    fn convert(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns());
        for (field, column) in self.schema.fields().iter().zip(batch.columns()) {
            if !field.is_nullable() && column.logical_null_count() > 0 {
                return Err(StorageError::invalid(format!(
                    "column {} is NOT NULL, but a row has no value for it",
                    field.name()
                )));
            }
            if column.data_type() == field.data_type() {
                columns.push(column.clone());
            } else {
                columns.push(cast(column, field.data_type()).map_err(|error| {
                    StorageError::invalid(format!("column {} cannot be stored: {error}", field.name()))
                })?);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .map_err(|error| StorageError::invalid(format!("the rows do not fit the columns of the table: {error}")))
    }

    fn note_keys(&self, batch: &RecordBatch) -> Result<()> {
        let Some(keys) = &self.keys else { return Ok(()) };
        match keys.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(keys) => keys.push(batch),
            None => Ok(()),
        }
    }

    fn fail(&self, error: StorageError) -> DataFusionError {
        let text = error.to_string();
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        DataFusionError::Execution(text)
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(next) = ready!(self.input.as_mut().poll_next(context)) else { return Poll::Ready(None) };
        let item = match next {
            Ok(batch) => match self.convert(&batch).and_then(|batch| self.note_keys(&batch).map(|()| batch)) {
                Ok(batch) => {
                    self.count.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                    Ok(batch)
                }
                Err(error) => Err(self.fail(error)),
            },
            Err(error) => Err(self.fail(StorageError::Input(Box::new(error)))),
        };
        Poll::Ready(Some(item))
    }
}

impl RecordBatchStream for Rows {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

/// Remembers how many rows went by and why they stopped, which Lance does not tell.
struct Witness {
    count: Arc<AtomicU64>,
    failure: Arc<Mutex<Option<StorageError>>>,
}

impl Witness {
    fn rows(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// An error of Lance that only repeats an error of the rows becomes that error again.
    fn explain<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|error| self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(error))
    }
}
