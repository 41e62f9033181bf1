//! What the tests of this crate share: tables of known rows, streams of them, and stores that fail on demand.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::array::{
    ArrayRef, AsArray, FixedSizeListArray, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, UInt64Type};
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use lance_io::object_store::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

pub(crate) mod faulty;

use faulty::Faulty;

use crate::{
    CreateMode, Database, OpenOptions, Relation, ScanRequest, Snapshot, TableDefinition, TableEntry, TableName,
};

/// Elements of a vector of [`rows`].
pub(crate) const DIMENSIONS: i32 = 8;

/// The bytes of a fixture of a released version of a format. With `REGENERATE_FIXTURES` in the environment, `written` becomes
/// the fixture: only for a version that was never released.
pub(crate) fn golden(file: &str, written: &[u8]) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(file);
    if std::env::var_os("REGENERATE_FIXTURES").is_some() {
        std::fs::write(&path, written).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn name(table: &str) -> TableName {
    TableName::new("public", table)
}

pub(crate) async fn memory() -> Database {
    Database::open("memory:", OpenOptions::default()).await.unwrap()
}

/// A database over a store, as another process would open it: it remembers nothing.
pub(crate) async fn open(store: &Arc<Faulty>) -> crate::Result<Database> {
    let wrapper: Arc<dyn WrappingObjectStore> = Arc::new(Instead(store.clone()));
    Database::open_wrapped("memory:", OpenOptions::default(), Some(wrapper)).await
}

/// id (not null), name, price, big, emb; some values of each column are NULL.
pub(crate) fn schema() -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int32, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("price", DataType::Float64, true),
        Field::new("Big", DataType::Int64, true),
        Field::new("emb", DataType::FixedSizeList(item, DIMENSIONS), true),
    ]))
}

/// The elements of the vector of row `id`.
pub(crate) fn vector(id: i32) -> Vec<f32> {
    (0..DIMENSIONS).map(|at| (id * 31 + at * 7) as f32 * 0.25).collect()
}

/// The rows `ids`. Vectors of ids divisible by 11 are NULL.
pub(crate) fn rows(ids: std::ops::Range<i32>) -> RecordBatch {
    let all: Vec<i32> = ids.collect();
    let names = all.iter().map(|id| (id % 5 != 0).then(|| format!("name {}", id % 17)));
    let prices = all.iter().map(|id| (id % 7 != 0).then(|| f64::from(*id) / 4.0));
    let big = all.iter().map(|id| (id % 3 != 0).then(|| i64::from(*id) * 1_000_000_007));
    let values: Vec<f32> = all.iter().flat_map(|id| vector(*id)).collect();
    let valid: Vec<bool> = all.iter().map(|id| id % 11 != 0).collect();
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let vectors =
        FixedSizeListArray::new(item, DIMENSIONS, Arc::new(Float32Array::from(values)), Some(NullBuffer::from(valid)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(all.clone())),
        Arc::new(names.collect::<StringArray>()),
        Arc::new(prices.collect::<Float64Array>()),
        Arc::new(big.collect::<Int64Array>()),
        Arc::new(vectors),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

pub(crate) fn stream(batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    let schema = batches.first().map_or_else(schema, RecordBatch::schema);
    Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches.into_iter().map(Ok))))
}

pub(crate) fn definition(schema: SchemaRef) -> TableDefinition {
    TableDefinition { schema, defaults: BTreeMap::new(), primary_key: vec![], retention: None, now_us: 1 }
}

/// A table `t` with the primary key `id` and one row per id.
pub(crate) async fn keyed(database: &Database, ids: std::ops::Range<i32>) -> Snapshot {
    let table = name("t");
    let definition = TableDefinition { primary_key: vec!["id".to_owned()], ..definition(schema()) };
    database.create_table(&table, definition, CreateMode::ErrorIfExists).await.unwrap();
    if !ids.is_empty() {
        database.append(&table, &entry(database, &table).await, stream(vec![rows(ids)]), None).await.unwrap();
    }
    newest(database, &table).await
}

/// The table `t` as a foreign writer opens it, with Lance alone.
pub(crate) async fn foreign(database: &Database) -> lance::Dataset {
    let entry = entry(database, &name("t")).await;
    let root = database.root();
    lance::dataset::builder::DatasetBuilder::from_uri(root.lance_uri(&entry.location).unwrap())
        .with_session(root.session())
        .with_store_params(root.params())
        .load()
        .await
        .unwrap()
}

/// The ids of a snapshot in row order, with their addresses.
pub(crate) async fn ids(snapshot: &Snapshot) -> Vec<(i32, u64)> {
    let batch = collect(snapshot, request(&["id", crate::ROW_ADDRESS])).await;
    let ids = batch.column(0).as_primitive::<Int32Type>().values().to_vec();
    ids.into_iter().zip(batch.column(1).as_primitive::<UInt64Type>().values().to_vec()).collect()
}

pub(crate) async fn entry(database: &Database, table: &TableName) -> TableEntry {
    match database.catalog().await.unwrap().relation(table) {
        Some(Relation::Table(entry)) => entry.clone(),
        other => panic!("{table} is {other:?}"),
    }
}

pub(crate) async fn newest(database: &Database, table: &TableName) -> Snapshot {
    database.snapshot(&entry(database, table).await).await.unwrap()
}

/// A table `t` whose fragments hold the given rows.
pub(crate) async fn table(database: &Database, fragments: &[std::ops::Range<i32>]) -> Snapshot {
    let table = name("t");
    database.create_table(&table, definition(schema()), CreateMode::ErrorIfExists).await.unwrap();
    for ids in fragments {
        let entry = entry(database, &table).await;
        database.append(&table, &entry, stream(vec![rows(ids.clone())]), None).await.unwrap();
    }
    newest(database, &table).await
}

pub(crate) fn request(columns: &[&str]) -> ScanRequest {
    ScanRequest {
        columns: columns.iter().map(|column| (*column).to_owned()).collect(),
        filter: None,
        limit: None,
        asks_indexes: true,
        partition: None,
        batch_rows: 8192,
        buffer_bytes: crate::SCAN_BUFFER_BYTES,
    }
}

/// All rows of a scan in one batch.
pub(crate) async fn collect(snapshot: &Snapshot, request: ScanRequest) -> RecordBatch {
    let stream = snapshot.scan(request).unwrap();
    let schema = stream.schema();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

/// A store whose answers to put-if-absent get lost in a chosen way.
#[derive(Debug)]
pub(crate) struct LosesAnswers {
    inner: Arc<dyn ObjectStore>,
    /// How many more puts lose their answer.
    pub(crate) left: AtomicU32,
    pub(crate) how: Loss,
}

/// What the caller of a put sees.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// The file was made, but the answer says that it was there.
    SaysExists,
    /// The file was made, but the connection broke.
    BreaksAfter,
    /// The connection broke before anything was made.
    BreaksBefore,
}

impl LosesAnswers {
    pub(crate) fn new(how: Loss) -> Self {
        Self { inner: Arc::new(object_store::memory::InMemory::new()), left: AtomicU32::new(0), how }
    }

    fn broken() -> object_store::Error {
        object_store::Error::Generic { store: "test", source: "the connection broke".into() }
    }
}

/// Puts a store of the tests where the real one would be.
#[derive(Debug)]
pub(crate) struct Instead<T>(pub(crate) Arc<T>);

impl<T: ObjectStore> WrappingObjectStore for Instead<T> {
    fn wrap(&self, _prefix: &str, _original: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        self.0.clone()
    }

    fn wrap_paginated(
        &self,
        _prefix: &str,
        _original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        None
    }
}

impl fmt::Display for LosesAnswers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("LosesAnswers")
    }
}

#[async_trait]
impl ObjectStore for LosesAnswers {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        let ours = matches!(options.mode, PutMode::Create) && at.as_ref().contains("_catalog");
        let lose =
            ours && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if lose && matches!(self.how, Loss::BreaksBefore) {
            return Err(Self::broken());
        }
        let result = self.inner.put_opts(at, payload, options).await;
        match (lose, self.how) {
            (true, Loss::SaysExists) => {
                Err(object_store::Error::AlreadyExists { path: at.to_string(), source: "412".into() })
            }
            (true, _) => Err(Self::broken()),
            (false, _) => result,
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
