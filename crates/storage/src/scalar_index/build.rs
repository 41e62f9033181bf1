//! How indexes on columns without vectors come, keep up and go. A segment is built of the rows of one version while others
//! write on; a turn is taken for the commit alone, which is one version like any other. What was built is right as long as
//! its fragments have the same values in the column: rows that were deleted or came meanwhile do not matter.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use arrow::datatypes::DataType;
use futures::FutureExt;
use lance::dataset::transaction::Operation;
use lance::index::DatasetIndexExt;
use lance::index::optimize::plan_optimize_indices;
use lance_core::utils::tokio::get_num_compute_intensive_cpus;
use lance_index::IndexType;
use lance_index::optimize::OptimizeOptions;
use lance_index::scalar::ScalarIndexParams;
use lance_index::scalar::inverted::builder::is_staged_path;
use lance_table::format::IndexMetadata;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{METHODS, ScalarIndex, can_fall_behind, have_same_values, is_scalar};
use crate::catalog::{TableEntry, TableName};
use crate::checksums::layout::FOLDER as CHECKSUMS_FOLDER;
use crate::database::{Database, check_name};
use crate::error::{Result, StorageError};
use crate::filter::{is_scalar as is_scalar_type, is_unambiguous};
use crate::snapshot::{Snapshot, guard};
use crate::store::Root;
use crate::turn::Turn;

/// How often a commit is tried while writers of other processes are faster.
const ATTEMPTS_MAX: u32 = 100;

/// The wait before the second attempt; it grows with each further one, up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(2);

/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// An older segment is merged with newer ones when it has at most this many times their rows: so there are about
/// log₂(rows) segments, and each row is written about as many times.
const MERGE_RATIO: u64 = 2;

/// Bytes that Lance's sort of the values takes for each core before it writes them to temporary files.
const SORT_BYTES_PER_CORE: u64 = 150 << 20;

/// Bytes that a sort holds of each row beside its value.
const SORT_ROW_BYTES: u64 = 24;

/// An index that is to be.
#[derive(Clone, Debug)]
pub struct NewScalarIndex {
    /// Unique in its table.
    pub name: String,
    /// A column without vectors.
    pub column: String,
    /// As [`ScalarIndex::method`](super::ScalarIndex::method).
    pub method: String,
    /// What Lance takes for the method, in JSON; `None`: its defaults.
    pub parameters: Option<String>,
}

/// What a new segment takes the place of.
enum Replaces {
    /// The index is new.
    Nothing,
    /// All segments of the index.
    All,
    /// These, which must be there.
    Some(Vec<Uuid>),
}

impl Database {
    /// Makes an index on a column that holds no vectors, of all rows there are, as one version. Others write meanwhile;
    /// their rows are read until the index is brought up to date. Dropped before its end it leaves nothing. Cost: a read of
    /// the column, a sort, the index's files.
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`]; [`StorageError::NotFound`] for an unknown column; [`StorageError::Invalid`] for one
    /// whose predicates no such index serves; [`StorageError::Conflict`] if table or column were dropped meanwhile.
    pub async fn create_scalar_index(&self, name: &TableName, entry: &TableEntry, new: NewScalarIndex) -> Result<()> {
        check_name("index", &new.name)?;
        self.check_holds(name, entry).await?;
        let snapshot = self.snapshot(entry).await?;
        self.check_free(entry, &snapshot, &new.name).await?;
        let made = async {
            let built = Built::of(self.root(), entry, &snapshot, &new).await?;
            self.publish_scalar(name, entry, &[built], "CREATE INDEX").await
        };
        match made.boxed().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.gone_or(name, entry, error).await),
        }
    }

    /// Builds an index anew. Searches use what it was until then.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; otherwise as [`Database::create_scalar_index`].
    pub async fn rebuild_scalar_index(&self, name: &TableName, entry: &TableEntry, index: &str) -> Result<()> {
        let snapshot = self.snapshot(entry).await?;
        let known = self.require_scalar(entry, &snapshot, index).await?;
        let listed = snapshot.lance_indexes().await?;
        let newest = listed.iter().rfind(|segment| segment.name == index && is_scalar(segment));
        let parameters = match newest {
            Some(segment) => parameters_of(&snapshot, &known.column, segment).await,
            None => None,
        };
        let new = NewScalarIndex { name: known.name, column: known.column, method: known.method, parameters };
        let made = async {
            let built = Built { replaces: Replaces::All, ..Built::of(self.root(), entry, &snapshot, &new).await? };
            self.publish_scalar(name, entry, &[built], "REINDEX").await
        };
        match made.boxed().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.gone_or(name, entry, error).await),
        }
    }

    /// Takes an index away, as one version; its files stay for those that name it. `false`: it was not there.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the table was dropped meanwhile.
    pub async fn drop_scalar_index(&self, name: &TableName, entry: &TableEntry, index: &str) -> Result<bool> {
        for attempt in 1..=ATTEMPTS_MAX {
            let turn = self.turn(name, entry).await?;
            let listed = turn.snapshot().lance_indexes().await?;
            let named = listed.iter().filter(|segment| segment.name == index && is_scalar(segment));
            let removed_indices: Vec<IndexMetadata> = named.cloned().collect();
            if removed_indices.is_empty() {
                return Ok(false);
            }
            let operation = Operation::CreateIndex { new_indices: vec![], removed_indices };
            match turn.finish(operation, "DROP INDEX", None).await {
                Ok(_) => return Ok(true),
                Err(StorageError::Stale(_)) => wait(attempt).await,
                Err(error) => return Err(error),
            }
        }
        Err(outrun(name))
    }

    /// Has those indexes of a table cover all rows that lack at least `rows_min`: each by one more segment, with which its
    /// newest ones are merged, all in one version. Returns how many were updated. What fails for one is logged. Cost: the
    /// columns of these rows, and what is merged.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the table was dropped, or all of these indexes were changed meanwhile.
    pub async fn update_scalar_indexes(&self, name: &TableName, entry: &TableEntry, rows_min: u64) -> Result<usize> {
        let snapshot = self.snapshot(entry).await?;
        let mut built = vec![];
        for index in snapshot.scalar_indexes().await? {
            let is_ours = METHODS.iter().any(|(method, ..)| *method == index.method);
            if !is_ours || index.rows_uncovered < rows_min.max(1) {
                continue;
            }
            match Built::more_of(self.root(), entry, &snapshot, &index).boxed().await {
                Ok(more) => built.extend(more),
                Err(error) => tracing::warn!(table = %name, index = index.name, %error, "an index is not up to date"),
            }
        }
        if built.is_empty() {
            return Ok(0);
        }
        match self.publish_scalar(name, entry, &built, "UPDATE INDEX").boxed().await {
            Ok(_) => Ok(built.len()),
            Err(error) => Err(self.gone_or(name, entry, error).await),
        }
    }

    /// Puts segments into the newest version, whatever was written since they were built. One that an index no longer has a
    /// place for is left out, unless it is the only one.
    pub(super) async fn publish_scalar(
        &self,
        name: &TableName,
        entry: &TableEntry,
        built: &[Built],
        verb: &'static str,
    ) -> Result<Snapshot> {
        for attempt in 1..=ATTEMPTS_MAX {
            let turn = self.turn(name, entry).await?;
            let (mut new_indices, mut removed_indices, mut conflict) = (vec![], vec![], None);
            for built in built {
                match self.placed(&turn, built).await {
                    Ok((new, removed)) => {
                        new_indices.push(new);
                        removed_indices.extend(removed);
                        // From here on a version may name the files, whatever becomes of us.
                        built.files.keep();
                    }
                    Err(error @ StorageError::Conflict(_)) => conflict = Some(error),
                    Err(error) => return Err(error),
                }
            }
            if let Some(conflict) = conflict.filter(|_| new_indices.is_empty()) {
                return Err(conflict);
            }
            match turn.finish(Operation::CreateIndex { new_indices, removed_indices }, verb, None).await {
                Err(StorageError::Stale(_)) => wait(attempt).await,
                other => return other,
            }
        }
        Err(outrun(name))
    }

    /// A segment as it is right in the version of a turn, and those that go when it comes.
    async fn placed(&self, turn: &Turn, built: &Built) -> Result<(IndexMetadata, Vec<IndexMetadata>)> {
        let (head, name) = (turn.snapshot(), &built.segment.name);
        let listed = head.lance_indexes().await?;
        let there = listed.iter().filter(|segment| segment.name == *name && is_scalar(segment));
        let there: Vec<IndexMetadata> = there.cloned().collect();
        let (is_there, going) = match &built.replaces {
            Replaces::Nothing => {
                self.check_free(&turn.entry, head, name).await?;
                (true, vec![])
            }
            Replaces::All => (!there.is_empty(), there),
            Replaces::Some(ids) => {
                let is_named = !there.is_empty();
                let going: Vec<IndexMetadata> =
                    there.into_iter().filter(|segment| ids.contains(&segment.uuid)).collect();
                (is_named && going.len() == ids.len(), going)
            }
        };
        match is_there {
            true => Ok((built.fitted(head)?, going)),
            false => Err(StorageError::conflict(format!(
                "index {name} was dropped or built anew by another statement meanwhile; see system.indexes"
            ))),
        }
    }

    /// # Errors
    /// [`StorageError::AlreadyExists`] if an index of the table has this name, whatever it is on.
    pub(crate) async fn check_free(&self, entry: &TableEntry, snapshot: &Snapshot, name: &str) -> Result<()> {
        let is_taken = snapshot.lance_indexes().await?.iter().any(|segment| segment.name == name)
            || self.indexes(entry).await?.index(name).is_some();
        match is_taken {
            true => Err(StorageError::already_exists(format!(
                "index {name} is on table {} already; DROP INDEX it first",
                snapshot.location()
            ))),
            false => Ok(()),
        }
    }

    async fn require_scalar(&self, entry: &TableEntry, snapshot: &Snapshot, name: &str) -> Result<ScalarIndex> {
        snapshot.scalar_index(name).await?.ok_or_else(|| {
            StorageError::not_found(format!(
                "there is no index {name} on {}",
                crate::snapshot::shown(self.root(), &entry.location)
            ))
        })
    }
}

async fn wait(attempt: u32) {
    tokio::time::sleep((BACKOFF * attempt).min(BACKOFF_MAX)).await;
}

fn outrun(name: &TableName) -> StorageError {
    StorageError::conflict(format!(
        "other processes changed table {name} each of the {ATTEMPTS_MAX} times that its indexes were to be; run the \
         statement again"
    ))
}

impl Snapshot {
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column; [`StorageError::Invalid`] for one that an index of this method
    /// cannot have, or whose predicates no index would serve.
    fn check_indexable(&self, column: &str, method: &str) -> Result<()> {
        let data_type = self.field(column)?.data_type();
        let takes = match (method, data_type) {
            ("label_list", DataType::List(item)) => is_scalar_type(item.data_type()),
            ("ngram" | "inverted", other) => matches!(other, DataType::Utf8 | DataType::LargeUtf8),
            ("bloom_filter", DataType::Boolean | DataType::Decimal128(..)) => false,
            ("btree" | "bitmap" | "zonemap" | "bloom_filter", other) => is_scalar_type(other),
            _ => false,
        };
        if !takes {
            return Err(StorageError::invalid(format!(
                "column {column} is {data_type}, of which an index of the method {method} cannot be made; btree, bitmap and \
                 zonemap take numbers, texts, booleans, dates and times, bloom_filter the same without booleans and \
                 decimals, ngram and inverted take texts, label_list takes lists"
            )));
        }
        if !is_unambiguous(column, &self.schema()) {
            return Err(StorageError::invalid(format!(
                "column \"{column}\" would have an index that no predicate asks: its name holds other signs than letters, \
                 digits and _, or differs from another one in capitals alone; ALTER TABLE … RENAME COLUMN it first"
            )));
        }
        Ok(())
    }

    /// Bytes that the build of an index of this column holds at most, by estimate.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column.
    pub fn index_build_bytes(&self, column: &str) -> Result<u64> {
        let row_bytes = self.row_bytes(&[column.to_owned()])?.saturating_add(SORT_ROW_BYTES);
        Ok(self.row_count().saturating_mul(row_bytes).saturating_mul(2).min(sort_bytes()))
    }

    /// How many of the newest segments a segment of the uncovered rows is merged with.
    async fn segments_to_merge(&self, index: &ScalarIndex) -> Result<usize> {
        let listed = self.lance_indexes().await?;
        let segments: Vec<&IndexMetadata> = listed.iter().filter(|segment| segment.name == index.name).collect();
        let (mut merged, mut rows) = (0, index.rows_uncovered);
        for segment in segments.iter().rev() {
            let own = self.live_rows_in(&self.covered_by(std::iter::once(*segment)));
            if own > rows.saturating_mul(MERGE_RATIO) {
                break;
            }
            merged += 1;
            rows += own;
        }
        Ok(merged)
    }

    /// True if Lance's bookkeeping lists nothing but indexes that may fall behind a rewrite of fragments.
    pub(crate) async fn has_only_plain_indexes(&self) -> Result<bool> {
        Ok(self.lance_indexes().await?.iter().all(can_fall_behind))
    }
}

/// What an index was built with, as far as it can be read.
async fn parameters_of(snapshot: &Snapshot, column: &str, segment: &IndexMetadata) -> Option<String> {
    use lance::index::DatasetIndexInternalExt;
    use lance_index::metrics::NoOpMetricsCollector;
    let opened = snapshot.dataset().open_scalar_index(column, &segment.uuid, &NoOpMetricsCollector);
    let opened = guard("cannot open an index", opened).boxed().await;
    let parameters = opened.and_then(|index| {
        let derived = index.derive_index_params();
        derived.map_err(|error| StorageError::from_lance("cannot read the parameters of an index", error))
    });
    match parameters {
        Ok(parameters) => parameters.params,
        Err(error) => {
            tracing::warn!(index = segment.name, %error, "an index is built anew with the defaults of its method");
            None
        }
    }
}

/// A segment that no version names yet. Unless told to [`keep`](Self::keep) them, it takes its files along.
pub(super) struct Built {
    segment: IndexMetadata,
    replaces: Replaces,
    /// The version that it was built on.
    snapshot: Snapshot,
    files: Files,
}

impl Built {
    /// Reads the column and writes the segment.
    pub(super) async fn of(root: &Root, entry: &TableEntry, snapshot: &Snapshot, new: &NewScalarIndex) -> Result<Self> {
        snapshot.check_indexable(&new.column, &new.method)?;
        let Some((_, lance, index_type)) = METHODS.iter().find(|(name, ..)| *name == new.method) else {
            return Err(StorageError::unsupported(format!("there is no index method {}", new.method)));
        };
        let uuid = Uuid::new_v4();
        let files = Files::new(root, entry, uuid);
        let parameters = match index_type {
            IndexType::Inverted => Some(with_memory_limit(new.parameters.as_deref())?),
            _ => new.parameters.clone(),
        };
        let parameters = ScalarIndexParams { index_type: (*lance).to_owned(), params: parameters };
        let mut dataset = snapshot.dataset().as_ref().clone();
        let columns = [new.column.as_str()];
        let mut builder = dataset
            .create_index_builder(&columns, *index_type, &parameters)
            .name(new.name.clone())
            // What is there of this name is replaced by whoever commits.
            .replace(true)
            .index_uuid(uuid);
        let what = format!("cannot build index {} of {}", new.name, snapshot.location());
        let mut segment = guard(&what, builder.execute_uncommitted()).boxed().await?;
        if *index_type == IndexType::Inverted {
            drop_staged(&mut segment);
        }
        Ok(Self { segment, replaces: Replaces::Nothing, snapshot: snapshot.clone(), files })
    }

    /// Reads the column of the rows that an index lacks and writes a segment of them, merged with the newest ones there are.
    async fn more_of(root: &Root, entry: &TableEntry, snapshot: &Snapshot, index: &ScalarIndex) -> Result<Vec<Self>> {
        let what = format!("cannot bring index {} of {} up to date", index.name, snapshot.location());
        let merged = snapshot.segments_to_merge(index).await?;
        let options = OptimizeOptions::merge(merged).index_names(vec![index.name.clone()]);
        let dataset = snapshot.dataset();
        let plan = guard(&what, plan_optimize_indices(dataset, &options)).boxed().await?;
        let mut parts = vec![];
        for task in &plan.tasks {
            parts.extend(guard(&what, task.execute(dataset)).boxed().await?);
        }
        let mut built = vec![];
        for merge in &plan.merges {
            let Some(mut made) = guard(&what, merge.execute(dataset, &parts)).boxed().await? else { continue };
            let files = Files::new(root, entry, made.segment.uuid);
            drop_staged(&mut made.segment);
            let replaces = Replaces::Some(made.replaces);
            built.push(Self { segment: made.segment, replaces, snapshot: snapshot.clone(), files });
        }
        Ok(built)
    }

    /// The segment as it is right in `head`: with the fragments that have the values it was built of.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if its column is gone.
    fn fitted(&self, head: &Snapshot) -> Result<IndexMetadata> {
        let field = self.segment.keyed_field().filter(|field| head.column_of(*field).is_some()).ok_or_else(|| {
            StorageError::conflict(format!(
                "the column of index {} was dropped while the index was built",
                self.segment.name
            ))
        })?;
        let is_right = |fragment: u32| {
            let find = |snapshot: &Snapshot| {
                let at = snapshot.fragments().binary_search_by_key(&fragment, |fragment| fragment.id).ok()?;
                Some(snapshot.fragments().get(at)?.metadata.clone())
            };
            match (find(&self.snapshot), find(head)) {
                (Some(before), Some(now)) => have_same_values(&before, &now, field),
                _ => false,
            }
        };
        let covered = self.segment.fragment_bitmap.iter().flatten().filter(|fragment| is_right(*fragment)).collect();
        Ok(IndexMetadata { fragment_bitmap: Some(covered), ..self.segment.clone() })
    }
}

/// The parameters of an inverted index, with the bytes that its build may hold: else Lance takes gigabytes.
fn with_memory_limit(parameters: Option<&str>) -> Result<String> {
    let unread = |error| StorageError::invalid("the parameters of an inverted index cannot be read").with_source(error);
    let mut parameters: Map<String, Value> = serde_json::from_str(parameters.unwrap_or("{}")).map_err(unread)?;
    parameters.insert("memory_limit".to_owned(), Value::from(sort_bytes() >> 20));
    Ok(Value::Object(parameters).to_string())
}

/// Bytes that a build takes before it writes to temporary files.
fn sort_bytes() -> u64 {
    get_num_compute_intensive_cpus() as u64 * SORT_BYTES_PER_CORE
}

/// Files that a build has left behind on its way and that nobody reads.
fn drop_staged(segment: &mut IndexMetadata) {
    if let Some(files) = &mut segment.files {
        files.retain(|file| !is_staged_path(&file.path));
    }
}

/// The folders of a segment that no version names: its files, and their checksums.
struct Files {
    root: Root,
    folders: Mutex<Vec<String>>,
}

impl Files {
    fn new(root: &Root, entry: &TableEntry, uuid: Uuid) -> Self {
        let folder = format!("_indices/{uuid}");
        let folders = [folder.clone(), format!("{CHECKSUMS_FOLDER}/{folder}")];
        let folders = folders.map(|folder| format!("{}/{folder}", entry.location));
        Self { root: root.clone(), folders: Mutex::new(folders.into()) }
    }

    fn keep(&self) {
        drop(self.take());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.folders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let folders = self.take();
        if folders.is_empty() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let root = self.root.clone();
        runtime.spawn(async move {
            for folder in folders {
                if let Err(error) = root.remove_folder(&folder).await {
                    tracing::warn!(folder, %error, "files of an index that was not made are left and waste space");
                }
            }
        });
    }
}
