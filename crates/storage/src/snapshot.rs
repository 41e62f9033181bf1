//! One version of one table, pinned: its columns, its size and its fragments. Reading rows is in `scan.rs`, which
//! filters can be pushed down in `filter.rs`, vectors in `vectors.rs`, what indexes cover in `index/coverage.rs`.

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::{Field, Schema, SchemaRef};
use futures::FutureExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance_core::datatypes::Schema as LanceSchema;
use lance_file::version::ConcreteFileVersion;
use lance_table::format::{Fragment, IndexMetadata};
use roaring::RoaringBitmap;
use tokio::sync::OnceCell;

use crate::columns::Columns;
use crate::commit::{check_format, committed_at_us};
use crate::error::{Result, StorageError};
use crate::index::{Coverage, TableIndexes};
use crate::keys::without_key_mark;
use crate::selection::Selections;
use crate::store::Root;
use crate::vectors::VectorCache;

/// A pinned version of a table. Cheap to clone; it never changes, whatever others write.
#[derive(Clone)]
pub struct Snapshot {
    inner: Arc<Inner>,
}

struct Inner {
    dataset: Arc<Dataset>,
    schema: SchemaRef,
    location: String,
    rows: u64,
    bytes: Option<u64>,
    fragments: Vec<FragmentShape>,
    can_cut: bool,
    shared: Shared,
    /// What indexes cover, by the `id` of the index: what it was worked out for, and the outcome.
    coverages: Mutex<HashMap<String, (Stamp, CoverageCell)>>,
    /// The indexes that the manifest lists, once they were read.
    lance_indexes: OnceCell<Arc<Vec<IndexMetadata>>>,
}

/// The number of a list of indexes, and how many segments had been found damaged.
type Stamp = (u64, u64);

type CoverageCell = Arc<OnceCell<Arc<Coverage>>>;

/// What the versions of a table share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) cache: Arc<VectorCache>,
    pub(crate) selections: Arc<Selections>,
    pub(crate) columns: Arc<Columns>,
    /// `None` for a table of others.
    pub(crate) indexes: Option<Arc<TableIndexes>>,
}

/// A fragment and its number of physical rows.
#[derive(Clone, Debug)]
pub(crate) struct FragmentShape {
    pub(crate) id: u32,
    /// Physical rows, the deleted ones included.
    pub(crate) rows: u64,
    pub(crate) metadata: Fragment,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Snapshot")
            .field("location", &self.inner.location)
            .field("version", &self.version())
            .field("rows", &self.inner.rows)
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Opens the newest version of the dataset in `relative` below `root`.
    pub(crate) async fn open(root: &Root, relative: &str, shared: Shared) -> Result<Self> {
        let location = shown(root, relative);
        let builder = DatasetBuilder::from_uri(root.lance_uri(relative)?)
            .with_session(root.session())
            .with_store_params(root.params());
        let what = format!("cannot open table files {location}");
        let loaded = guard(&what, builder.load()).await?;
        Self::of(Arc::new(loaded), location, shared).await
    }

    /// Wraps an open dataset. Cost: no I/O, except for datasets of very old writers.
    pub(crate) async fn of(dataset: Arc<Dataset>, location: String, shared: Shared) -> Result<Self> {
        let what = format!("cannot open table files {location}");
        check_format(&dataset.manifest().config, &location)?;
        let mut fragments = Vec::with_capacity(dataset.count_fragments());
        let mut rows = 0_u64;
        let mut known = true;
        for fragment in dataset.get_fragments() {
            let metadata = fragment.metadata().clone();
            let id = u32::try_from(metadata.id).map_err(|_| {
                StorageError::unsupported(format!("{what}: fragment number {} is too large", metadata.id))
            })?;
            known &= metadata.physical_rows.is_some();
            let physical = match metadata.physical_rows {
                Some(physical) => physical,
                None => guard(&what, fragment.physical_rows()).await?,
            };
            let live = match metadata.num_rows() {
                Some(live) => live,
                None => guard(&what, fragment.count_rows(None)).await?,
            };
            rows += live as u64;
            fragments.push(FragmentShape { id, rows: physical as u64, metadata });
        }
        fragments.sort_by_key(|fragment| fragment.id);
        let files = fragments.iter().flat_map(|fragment| &fragment.metadata.files);
        let bytes = files.map(|file| file.file_size_bytes.get().map(std::num::NonZero::get)).sum::<Option<u64>>();
        let schema = Schema::from(dataset.schema());
        let fields: Vec<Field> = schema.fields().iter().map(|field| without_key_mark(field)).collect();
        let schema = Arc::new(Schema::new(fields));
        let format = dataset.manifest().data_storage_format.lance_file_format();
        let can_cut = known && format != ConcreteFileVersion::V1;
        let (coverages, lance_indexes) = (Mutex::default(), OnceCell::new());
        let inner =
            Inner { dataset, schema, location, rows, bytes, fragments, can_cut, shared, coverages, lance_indexes };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// True if no newer version exists. Cost: one request.
    pub(crate) async fn is_newest(&self) -> Result<bool> {
        let what = format!("cannot open table files {}", self.location());
        Ok(guard(&what, self.inner.dataset.latest_version_id()).await? == self.version())
    }

    /// The newest version of the same dataset.
    pub(crate) async fn newest(&self) -> Result<Self> {
        let what = format!("cannot open table files {}", self.location());
        let mut dataset = self.inner.dataset.as_ref().clone();
        guard(&what, dataset.checkout_latest()).await?;
        Self::of(Arc::new(dataset), self.inner.location.clone(), self.inner.shared.clone()).await
    }

    /// Another version of the same dataset.
    pub(crate) async fn sibling(&self, dataset: Dataset) -> Result<Self> {
        Self::of(Arc::new(dataset), self.inner.location.clone(), self.inner.shared.clone()).await
    }

    /// The columns. Metadata of fields is kept, that of the schema is not.
    pub fn schema(&self) -> SchemaRef {
        self.inner.schema.clone()
    }

    /// The version of the Lance dataset.
    pub fn version(&self) -> u64 {
        self.inner.dataset.version_id()
    }

    /// True if the manifest names other places that files of this version lie in, as that of a shallow clone does.
    pub fn reads_elsewhere(&self) -> bool {
        !self.inner.dataset.manifest().base_paths.is_empty()
    }

    /// When this version was committed, in microseconds since the epoch. Grows with each version.
    pub fn committed_at_us(&self) -> i64 {
        committed_at_us(self.inner.dataset.manifest())
    }

    /// The columns of the primary key in order; empty if there is none.
    pub fn primary_key(&self) -> Vec<String> {
        let key = self.inner.dataset.schema().unenforced_primary_key();
        key.into_iter().map(|field| field.name.clone()).collect()
    }

    /// Offsets of the rows of a fragment that are deleted in this version. Cost: a small read that Lance caches.
    pub(crate) async fn deleted_rows(&self, fragment: u32) -> Result<RoaringBitmap> {
        let what = format!("cannot read which rows of {} are deleted", self.location());
        let found = usize::try_from(fragment).ok().and_then(|number| self.inner.dataset.get_fragment(number));
        let Some(fragment) = found else {
            return Err(StorageError::internal(format!("{what}: version {} lacks a fragment", self.version())));
        };
        let deleted = guard(&what, fragment.get_deletion_vector()).await.map_err(StorageError::while_pinned)?;
        Ok(deleted.map(|rows| rows.iter().collect()).unwrap_or_default())
    }

    /// Live rows.
    pub fn row_count(&self) -> u64 {
        self.inner.rows
    }

    /// Bytes of the data files, if the dataset says so.
    pub fn bytes(&self) -> Option<u64> {
        self.inner.bytes
    }

    /// Where the dataset is, as shown to users.
    pub fn location(&self) -> &str {
        &self.inner.location
    }

    pub(crate) fn dataset(&self) -> &Arc<Dataset> {
        &self.inner.dataset
    }

    /// In the order of their numbers.
    pub(crate) fn fragments(&self) -> &[FragmentShape] {
        &self.inner.fragments
    }

    /// Whether parts of a fragment can be read by row range.
    pub(crate) fn can_cut(&self) -> bool {
        self.inner.can_cut
    }

    pub(crate) fn cache(&self) -> &Arc<VectorCache> {
        &self.inner.shared.cache
    }

    pub(crate) fn columns(&self) -> &Columns {
        &self.inner.shared.columns
    }

    pub(crate) fn selections(&self) -> &Selections {
        &self.inner.shared.selections
    }

    /// The index files of the table; `None` for a table of others.
    pub(crate) fn table_indexes(&self) -> Option<&Arc<TableIndexes>> {
        self.inner.shared.indexes.as_ref()
    }

    /// Where it is kept what an index covers.
    pub(crate) fn coverage_cell(&self, index: &str, stamp: Stamp) -> CoverageCell {
        let mut coverages = self.inner.coverages.lock().unwrap_or_else(PoisonError::into_inner);
        match coverages.get(index) {
            Some((known, cell)) if *known == stamp => Arc::clone(cell),
            _ => {
                let cell = CoverageCell::default();
                coverages.insert(index.to_owned(), (stamp, Arc::clone(&cell)));
                cell
            }
        }
    }

    /// Where the indexes are kept that the manifest lists (`scalar_index.rs`).
    pub(crate) fn lance_index_cell(&self) -> &OnceCell<Arc<Vec<IndexMetadata>>> {
        &self.inner.lance_indexes
    }

    /// The number of a column, which no other column ever has.
    pub(crate) fn field_id(&self, column: &str) -> Result<i32> {
        Ok(self.lance_projection(&[column])?.fields.first().map_or(-1, |field| field.id))
    }

    /// The column of this number, if there is one in this version.
    pub(crate) fn column_of(&self, field_id: i32) -> Option<String> {
        let fields = &self.inner.dataset.schema().fields;
        fields.iter().find(|field| field.id == field_id).map(|field| field.name.clone())
    }

    /// The column of this name.
    pub(crate) fn field(&self, column: &str) -> Result<&Field> {
        let found = self.inner.schema.fields().iter().find(|field| field.name() == column);
        found.map(AsRef::as_ref).ok_or_else(|| {
            let names: Vec<&str> = self.inner.schema.fields().iter().map(|field| field.name().as_str()).collect();
            StorageError::not_found(format!(
                "column {column} does not exist in {}; it has {}",
                self.location(),
                names.join(", ")
            ))
        })
    }

    /// Lance's own schema of these columns, in the table's numbering. Names are taken as they are: no paths.
    pub(crate) fn lance_projection(&self, columns: &[&str]) -> Result<LanceSchema> {
        let all = self.inner.dataset.schema();
        let mut fields = Vec::with_capacity(columns.len());
        for column in columns {
            let field = all.fields.iter().find(|field| field.name == *column);
            let field = field.ok_or_else(|| {
                StorageError::not_found(format!("column {column} does not exist in {}", self.location()))
            })?;
            if !fields.contains(field) {
                fields.push(field.clone());
            }
        }
        Ok(LanceSchema { fields, metadata: HashMap::default() })
    }
}

/// `root/relative` as shown to users.
pub(crate) fn shown(root: &Root, relative: &str) -> String {
    let base = root.location().shown();
    if relative.is_empty() { base } else { format!("{}/{relative}", base.trim_end_matches('/')) }
}

/// Awaits a call of Lance and turns both its errors and its panics into ours.
pub(crate) async fn guard<T>(what: &str, call: impl Future<Output = lance::Result<T>>) -> Result<T> {
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StorageError::from_lance(what, error)),
        Err(panic) => {
            tracing::error!(what, "Lance panicked");
            Err(StorageError::from_panic(what, panic.as_ref()))
        }
    }
}
