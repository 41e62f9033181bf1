//! A database: opening or initialising its root, changing its catalog, and the tables in it. How the catalog is stored
//! is in `catalog/`, how rows are read and written in `scan.rs` and `write.rs`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::object_store::ObjectStoreRegistry;
use datafusion::physical_plan::EmptyRecordBatchStream;
use futures::StreamExt;
use lance::Dataset;
use lance_io::object_store::WrappingObjectStore;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::log::{CatalogLog, Change, CommitError, FOLDER};
use crate::catalog::{
    Catalog, CreateMode, DropSchema, ExternalTable, Relation, TableDefinition, TableEntry, TableName, ViewEntry,
};
use crate::checksums::ChecksumFigures;
use crate::columns::Columns;
use crate::commit::Committer;
use crate::error::{Result, StorageError};
use crate::index::disk_cache::DiskCache;
use crate::index::{Indexes, SegmentCacheFigures, TableIndexes};
use crate::keys::{KeyCache, with_primary_key};
use crate::location::Location;
use crate::registry::Registry;
use crate::s3::S3Settings;
use crate::selection::Selections;
use crate::snapshot::{Shared, Snapshot, shown};
use crate::store::Root;
use crate::time::Past;
use crate::turn::Sequencers;
use crate::vectors::{CacheFigures, VectorCache};
use crate::write::{Progress, Rows, create_dataset, storable_schema};

/// The file that makes a folder a database.
const MARK: &str = "sagitta.json";

/// What the mark says it is.
const MAGIC: &str = "sagitta database";

/// The version of the layout that this program writes and the newest it reads.
const LAYOUT: u32 = 1;

/// How long opening may take before the store counts as unreachable.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Open tables that are remembered, so that reopening them costs one request.
const OPEN_TABLES_MAX: usize = 256;

/// Places of foreign datasets whose connections and caches are kept.
const FOREIGN_ROOTS_MAX: usize = 64;

/// The part of the database's own caches that each place of foreign datasets has: one in this many.
const FOREIGN_CACHE_SHARE: usize = 16;

/// Bytes of decoded vectors that are kept if nothing else is said.
const VECTOR_CACHE_BYTES: usize = 1 << 30;

/// Bytes that the other caches hold together if nothing else is said.
const OTHER_CACHES_BYTES: usize = 800 << 20;

/// Bytes that OPTIMIZE holds if nothing else is said.
const REWRITE_BYTES: usize = 768 << 20;

/// How to reach a database and what it may use.
#[derive(Clone)]
pub struct OpenOptions {
    /// Names as in object stores (`endpoint`, `region`, …); they win over the AWS variables of the environment.
    pub storage_options: Vec<(String, String)>,
    /// Bytes of decoded vectors that may be kept.
    pub vector_cache_bytes: usize,
    /// Bytes that the other caches may hold together: indexes and metadata of Lance, keys, columns and selections, checksums.
    pub other_caches_bytes: usize,
    /// Bytes that OPTIMIZE may hold while it rewrites files.
    pub rewrite_bytes: usize,
    /// Whether an empty or missing location becomes a new database.
    pub create: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        let (vector_cache_bytes, other_caches_bytes) = (VECTOR_CACHE_BYTES, OTHER_CACHES_BYTES);
        let (storage_options, rewrite_bytes) = (Vec::new(), REWRITE_BYTES);
        Self { storage_options, vector_cache_bytes, other_caches_bytes, rewrite_bytes, create: true }
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.storage_options.iter().map(|(name, _)| name).collect();
        formatter
            .debug_struct("OpenOptions")
            .field("storage_options", &names)
            .field("vector_cache_bytes", &self.vector_cache_bytes)
            .field("other_caches_bytes", &self.other_caches_bytes)
            .field("rewrite_bytes", &self.rewrite_bytes)
            .field("create", &self.create)
            .finish()
    }
}

/// An open database. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

/// A location as shown, and the options it is reached with.
type Place = (String, Vec<(String, String)>);

struct Inner {
    root: Root,
    shown: String,
    s3: S3Settings,
    log: CatalogLog,
    cache: Arc<VectorCache>,
    selections: Arc<Selections>,
    columns: Arc<Columns>,
    indexes: Indexes,
    registry: Arc<Registry>,
    /// Names this handle among the writers of a table.
    writer: String,
    sequencers: Sequencers,
    keys: KeyCache,
    past: Past,
    /// The last snapshot of each table, by location.
    open_tables: Mutex<HashMap<String, Snapshot>>,
    /// Where foreign datasets were opened, by location and options. Not the datasets: somebody may delete one and make
    /// another in its place, with the same version numbers.
    foreign: Mutex<HashMap<Place, Root>>,
    /// Bytes that Lance keeps of the indexes, and as many of the metadata, of each of these places.
    foreign_cache_bytes: usize,
    rewrite_bytes: usize,
}

impl fmt::Debug for Database {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Database").field("location", &self.inner.shown).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Mark {
    magic: String,
    layout: u32,
}

impl Database {
    /// Opens the database at `location` (a path, `file://…`, `s3://bucket/prefix`, or `memory:` for a fresh one in
    /// memory), or makes it if nothing is there and `options.create`.
    ///
    /// # Errors
    /// [`StorageError::NotADatabase`] if something else is there, [`StorageError::NotFound`] if nothing is there and
    /// `create` is off, [`StorageError::Unavailable`] (within seconds) if the store cannot be used,
    /// [`StorageError::Unsupported`] for a database of a newer version.
    pub async fn open(location: &str, options: OpenOptions) -> Result<Database> {
        Self::open_wrapped(location, options, None).await
    }

    /// As [`Database::open`], with a wrapper around the object store.
    pub(crate) async fn open_wrapped(
        location: &str,
        options: OpenOptions,
        wrapper: Option<Arc<dyn WrappingObjectStore>>,
    ) -> Result<Database> {
        let location = Location::parse(location)?;
        let shown = location.shown();
        let s3 = S3Settings::new(&options.storage_options)?;
        // Indexes, metadata and keys have about a quarter each, columns and selections the rest; the checksums' own bound is small.
        let part = options.other_caches_bytes / 25;
        let cache_bytes = 6 * part;
        let opened = async {
            let root = match wrapper {
                Some(wrapper) => Root::with_wrapper(location, &s3, Some(wrapper), cache_bytes).await?,
                None => Root::new(location, &s3, cache_bytes).await?,
            };
            check_or_initialise(&root, options.create).await?;
            let log = CatalogLog::new(root.clone(), FOLDER);
            let endpoint = s3.endpoint().map(String::as_str).unwrap_or_default();
            futures::try_join!(log.newest(), crate::probe::once(&root, endpoint))?;
            Ok::<_, StorageError>((root, log))
        };
        let (root, log) = tokio::time::timeout(OPEN_TIMEOUT, opened).await.map_err(|_| {
            StorageError::unavailable(format!(
                "{shown} did not answer within {} s; check the endpoint, the network and the credentials",
                OPEN_TIMEOUT.as_secs()
            ))
        })??;
        let inner = Inner {
            root,
            shown,
            log,
            cache: Arc::new(VectorCache::new(options.vector_cache_bytes)),
            selections: Arc::new(Selections::new(part as u64)),
            columns: Arc::new(Columns::new(5 * part as u64)),
            indexes: Indexes::default(),
            registry: Arc::new(Registry::new(s3.clone())),
            s3,
            writer: Uuid::new_v4().to_string(),
            sequencers: Sequencers::default(),
            keys: KeyCache::new(cache_bytes),
            foreign_cache_bytes: cache_bytes / FOREIGN_CACHE_SHARE,
            rewrite_bytes: options.rewrite_bytes,
            past: Past::default(),
            open_tables: Mutex::new(HashMap::new()),
            foreign: Mutex::new(HashMap::new()),
        };
        Ok(Database { inner: Arc::new(inner) })
    }

    /// Where the database is, as shown to users.
    pub fn location(&self) -> &str {
        &self.inner.shown
    }

    /// The newest catalog. Cost: one request if nothing changed.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if a catalog file is damaged, [`StorageError::Unavailable`] if the store is silent.
    pub async fn catalog(&self) -> Result<Arc<Catalog>> {
        self.inner.log.newest().await
    }

    /// The newest catalog that this process has seen; `None` before the first. No request is made.
    pub fn known_catalog(&self) -> Option<Arc<Catalog>> {
        self.inner.log.known()
    }

    /// Makes a schema. `false`: it was there and `if_not_exists`.
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`].
    pub async fn create_schema(&self, name: &str, if_not_exists: bool) -> Result<bool> {
        check_name("schema", name)?;
        let change = |catalog: &Catalog| {
            Ok(match catalog.with_schema(name, if_not_exists)? {
                Some(next) => Change::Write(next, true),
                None => Change::Nothing(false),
            })
        };
        Ok(self.inner.log.commit(change).await?)
    }

    /// Drops a schema, with what it holds if `options.cascade`. `false`: it was not there and `options.if_exists`.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Conflict`] if it is not empty.
    pub async fn drop_schema(&self, name: &str, options: DropSchema) -> Result<bool> {
        let change = |catalog: &Catalog| {
            Ok(match catalog.without_schema(name, options)? {
                Some((next, held)) => Change::Write(next, Some(held)),
                None => Change::Nothing(None),
            })
        };
        let Some(held) = self.inner.log.commit(change).await? else { return Ok(false) };
        for relation in held.relations.values() {
            self.discard(relation).await;
        }
        Ok(true)
    }

    /// Makes an empty table. `false`: it was there and the mode is [`CreateMode::IfNotExists`].
    ///
    /// # Errors
    /// As [`Database::create_table_from`].
    pub async fn create_table(&self, name: &TableName, definition: TableDefinition, mode: CreateMode) -> Result<bool> {
        let schema = with_primary_key(storable_schema(&definition.schema)?.as_ref(), &definition.primary_key)?;
        let schema = Arc::new(schema);
        let rows: SendableRecordBatchStream = Box::pin(EmptyRecordBatchStream::new(schema));
        let written = self.create_table_from(name, definition, mode, rows, None).await?;
        Ok(written.is_some())
    }

    /// Makes a table and fills it: other sessions see all of the rows or none. Returns the number of rows; `None` if
    /// the table was there and the mode is [`CreateMode::IfNotExists`] (`rows` is not read then). When it fails, or is
    /// cancelled before the last step, the files are removed.
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`], [`StorageError::Invalid`] for rows or columns that a table cannot hold,
    /// [`StorageError::Full`], [`StorageError::Input`] if `rows` fails.
    pub async fn create_table_from(
        &self,
        name: &TableName,
        definition: TableDefinition,
        mode: CreateMode,
        rows: SendableRecordBatchStream,
        progress: Option<Progress>,
    ) -> Result<Option<u64>> {
        check_name("table", &name.table)?;
        let schema = with_primary_key(storable_schema(&definition.schema)?.as_ref(), &definition.primary_key)?;
        let rows = Rows::new(rows, Arc::new(schema))?;
        if !self.catalog().await?.may_create(name, "table", mode)? {
            return Ok(None);
        }
        let id = Uuid::new_v4();
        let location = folder_of(name, id);
        let entry = TableEntry {
            id: id.to_string(),
            location: location.clone(),
            created_at_us: definition.now_us,
            defaults: definition.defaults,
            retention: definition.retention,
        };
        let leftovers = Leftovers::new(self.inner.root.clone(), location.clone());
        let committer = Arc::new(Committer::first(&self.inner.writer, "CREATE TABLE"));
        let (dataset, count) = match create_dataset(&self.inner.root, &location, rows, committer, progress).await {
            Ok(written) => written,
            Err(error) => {
                leftovers.remove().await;
                return Err(error);
            }
        };
        let change = |catalog: &Catalog| {
            Ok(match catalog.with_relation(name, Relation::Table(entry.clone()), mode)? {
                Some((next, before)) => Change::Write(next, (true, before)),
                None => Change::Nothing((false, None)),
            })
        };
        // From here on the entry may be in the catalog whatever becomes of us, so nothing is removed on cancellation.
        let leftovers = leftovers.keep_unless_told();
        match self.inner.log.commit(change).await {
            Ok((true, before)) => {
                let opened = self.wrap(dataset, &location).await?;
                self.remember(&location, opened);
                if let Some(before) = before {
                    self.discard(&before).await;
                }
                tracing::info!(table = %name, rows = count, "table created");
                Ok(Some(count))
            }
            Ok((false, _)) => {
                leftovers.remove().await;
                Ok(None)
            }
            Err(CommitError { error, outcome_unknown }) => {
                if !outcome_unknown {
                    leftovers.remove().await;
                }
                Err(error)
            }
        }
    }

    /// Drops a table (its entry first, then its files) or an external table (its entry only). `false`: it was not there
    /// and `if_exists`.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Invalid`] for a view.
    pub async fn drop_table(&self, name: &TableName, if_exists: bool) -> Result<bool> {
        self.drop_relation(name, &["table", "external table"], if_exists).await
    }

    /// Stores a query under a name. `false`: the name was taken and the mode is [`CreateMode::IfNotExists`].
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`].
    pub async fn create_view(&self, name: &TableName, view: ViewEntry, mode: CreateMode) -> Result<bool> {
        self.create_relation(name, Relation::View(view), mode).await
    }

    /// Drops a view. `false`: it was not there and `if_exists`.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Invalid`] for a table.
    pub async fn drop_view(&self, name: &TableName, if_exists: bool) -> Result<bool> {
        self.drop_relation(name, &["view"], if_exists).await
    }

    /// Gives foreign files a name. `false`: the name was taken and the mode is [`CreateMode::IfNotExists`].
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`].
    pub async fn create_external(&self, name: &TableName, table: ExternalTable, mode: CreateMode) -> Result<bool> {
        self.create_relation(name, Relation::External(table), mode).await
    }

    /// The newest version of a table of this database. Cost: one request if the table is as it was.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] if the table was dropped meanwhile, [`StorageError::Corrupt`] for damaged files.
    pub async fn snapshot(&self, entry: &TableEntry) -> Result<Snapshot> {
        let known = self.open_tables().get(&entry.location).cloned();
        let opened = match known {
            Some(known) if known.is_newest().await? => return Ok(known),
            Some(known) => known.newest().await?,
            None => Snapshot::open(&self.inner.root, &entry.location, self.shared(&entry.location)).await?,
        };
        self.remember(&entry.location, opened.clone());
        Ok(opened)
    }

    /// The newest version of a Lance dataset that is not of this database: a path, `file://…` or `s3://…`.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] if there is no dataset.
    pub async fn open_lance(&self, location: &str, options: &[(String, String)]) -> Result<Snapshot> {
        let location = Location::parse(location)?;
        if matches!(location, Location::Memory(_)) {
            return Err(StorageError::invalid("a foreign dataset cannot live in memory; give a path or s3://…"));
        }
        let shown = location.shown();
        let opened = async {
            let root = self.foreign_root(location, options).await?;
            Snapshot::open(&root, "", self.shared_with(None)).await
        };
        tokio::time::timeout(OPEN_TIMEOUT, opened).await.map_err(|_| {
            StorageError::unavailable(format!("{shown} did not answer within {} s", OPEN_TIMEOUT.as_secs()))
        })?
    }

    /// What was verified of the bytes that were read.
    pub fn checksums(&self) -> ChecksumFigures {
        self.inner.root.checksum_figures()
    }

    /// The stores for DataFusion's readers and writers, reached with the same credentials.
    pub fn object_store_registry(&self) -> Arc<dyn ObjectStoreRegistry> {
        self.inner.registry.clone()
    }

    /// What the cache of decoded vectors did and holds.
    pub fn vector_cache(&self) -> CacheFigures {
        self.inner.cache.figures()
    }

    /// What the caches of decoded columns and of the rows that filters select did and hold, in this order.
    pub fn row_caches(&self) -> (CacheFigures, CacheFigures) {
        (self.inner.columns.figures(), self.inner.selections.figures())
    }

    /// Sets the bound of the cache of decoded vectors and frees what is above it.
    pub fn set_vector_cache_bytes(&self, bytes: usize) {
        self.inner.cache.set_bytes_max(bytes);
    }

    /// What the cache of open segments did and holds.
    pub fn segment_cache(&self) -> SegmentCacheFigures {
        self.inner.indexes.segments().figures()
    }

    /// Sets how many bytes of segments may be in memory, and frees what is above. Mapped segments do not count.
    pub fn set_segment_cache_bytes(&self, bytes: usize) {
        self.inner.indexes.segments().set_bytes_max(bytes as u64);
    }

    /// Keeps segments of an object store in a folder on local disk, from which they are mapped. Other processes may have the
    /// same one. `None`: they are read into memory.
    pub fn set_segment_folder(&self, folder: Option<std::path::PathBuf>, bytes_max: u64) {
        let disk = folder.map(|folder| DiskCache::new(folder, bytes_max));
        self.inner.indexes.segments().set_disk(disk);
    }

    /// Whether segments on local disk are read into memory, in large pages, as far as there is room: searches go through them
    /// faster than through mapped files. They are mapped until they are read.
    pub fn set_segments_in_memory(&self, in_memory: bool) {
        self.inner.indexes.segments().set_in_memory(in_memory);
    }

    /// Bytes that OPTIMIZE may hold while it rewrites files.
    pub fn rewrite_bytes(&self) -> usize {
        self.inner.rewrite_bytes
    }

    async fn foreign_root(&self, location: Location, options: &[(String, String)]) -> Result<Root> {
        let key = (location.shown(), options.to_vec());
        let lock = || self.inner.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = lock().get(&key) {
            return Ok(root.clone());
        }
        let s3 = self.inner.s3.clone().with(options)?;
        let root = Root::foreign(location, &s3, self.inner.foreign_cache_bytes).await?;
        let mut known = lock();
        if known.len() >= FOREIGN_ROOTS_MAX {
            known.clear();
        }
        known.insert(key, root.clone());
        Ok(root)
    }

    async fn create_relation(&self, name: &TableName, relation: Relation, mode: CreateMode) -> Result<bool> {
        check_name(relation.kind(), &name.table)?;
        let change = |catalog: &Catalog| {
            Ok(match catalog.with_relation(name, relation.clone(), mode)? {
                Some((next, _)) => Change::Write(next, true),
                None => Change::Nothing(false),
            })
        };
        Ok(self.inner.log.commit(change).await?)
    }

    async fn drop_relation(&self, name: &TableName, kinds: &[&str], if_exists: bool) -> Result<bool> {
        let change = |catalog: &Catalog| {
            Ok(match catalog.without_relation(name, kinds, if_exists)? {
                Some((next, removed)) => Change::Write(next, Some(removed)),
                None => Change::Nothing(None),
            })
        };
        match self.inner.log.commit(change).await? {
            Some(removed) => {
                self.discard(&removed).await;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Removes the files of a relation that is no longer in the catalog. Files that cannot be removed only waste space.
    async fn discard(&self, relation: &Relation) {
        if let Relation::Table(entry) = relation {
            self.remove_files(&entry.location).await;
        }
    }

    pub(crate) async fn remove_files(&self, location: &str) {
        self.open_tables().remove(location);
        self.inner.cache.forget(&self.shown(location));
        self.inner.selections.forget(&self.shown(location));
        self.inner.columns.forget(&self.shown(location));
        self.inner.indexes.forget(location);
        remove_quietly(&self.inner.root, location).await;
    }

    pub(crate) fn remember(&self, location: &str, snapshot: Snapshot) {
        let mut open = self.open_tables();
        if open.len() >= OPEN_TABLES_MAX {
            open.clear();
        }
        open.insert(location.to_owned(), snapshot);
    }

    pub(crate) async fn wrap(&self, dataset: Dataset, location: &str) -> Result<Snapshot> {
        Snapshot::of(Arc::new(dataset), self.shown(location), self.shared(location)).await
    }

    /// What the versions of the table in `location` share.
    fn shared(&self, location: &str) -> Shared {
        self.shared_with(Some(self.table_indexes(location)))
    }

    fn shared_with(&self, indexes: Option<Arc<TableIndexes>>) -> Shared {
        let inner = &self.inner;
        Shared {
            cache: Arc::clone(&inner.cache),
            selections: Arc::clone(&inner.selections),
            columns: Arc::clone(&inner.columns),
            indexes,
        }
    }

    /// The index files of the table in `location`.
    pub(crate) fn table_indexes(&self, location: &str) -> Arc<TableIndexes> {
        self.inner.indexes.of(&self.inner.root, location)
    }

    pub(crate) fn catalog_log(&self) -> &CatalogLog {
        &self.inner.log
    }

    pub(crate) fn past(&self) -> &Past {
        &self.inner.past
    }

    pub(crate) fn root(&self) -> &Root {
        &self.inner.root
    }

    pub(crate) fn writer(&self) -> &str {
        &self.inner.writer
    }

    pub(crate) fn sequencers(&self) -> &Sequencers {
        &self.inner.sequencers
    }

    pub(crate) fn key_cache(&self) -> &KeyCache {
        &self.inner.keys
    }

    fn shown(&self, location: &str) -> String {
        shown(&self.inner.root, location)
    }

    fn open_tables(&self) -> MutexGuard<'_, HashMap<String, Snapshot>> {
        self.inner.open_tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn remove_quietly(root: &Root, location: &str) {
    if let Err(error) = root.remove_folder(location).await {
        tracing::warn!(location, %error, "files of a table that is gone could not be removed; they only waste space");
    }
}

/// Removes the folder of a table that never became one, also when the statement is cancelled.
struct Leftovers {
    root: Root,
    location: String,
    armed: bool,
}

impl Leftovers {
    fn new(root: Root, location: String) -> Self {
        Self { root, location, armed: true }
    }

    async fn remove(mut self) {
        self.armed = false;
        remove_quietly(&self.root, &self.location).await;
    }

    fn keep_unless_told(mut self) -> Self {
        self.armed = false;
        self
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if self.armed
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (root, location) = (self.root.clone(), std::mem::take(&mut self.location));
            runtime.spawn(async move { remove_quietly(&root, &location).await });
        }
    }
}

/// Names are free but for what no tool could show.
pub(crate) fn check_name(kind: &str, name: &str) -> Result<()> {
    const NAME_BYTES_MAX: usize = 255;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(StorageError::invalid(format!(
            "{kind} name {name:?} is empty, longer than {NAME_BYTES_MAX} bytes or holds control characters"
        )));
    }
    Ok(())
}

/// The folder of a new table. It carries a part of the table's id: a name that is used again meets no old files.
fn folder_of(name: &TableName, id: Uuid) -> String {
    let short = &id.simple().to_string()[..8];
    format!("{}/{}-{short}.lance", plain(&name.schema), plain(&name.table))
}

/// A name with nothing in it that a file system or a URL could take amiss. Not unique, and need not be.
fn plain(name: &str) -> String {
    const LENGTH_MAX: usize = 48;
    let kept: String = name
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() || character == '_' { character } else { '-' })
        .take(LENGTH_MAX)
        .collect();
    // Folders that begin with an underscore are the database's own.
    let kept = kept.trim_start_matches(['_', '-']);
    if kept.is_empty() { "x".to_owned() } else { kept.to_owned() }
}

/// Makes sure that `root` is a database, or makes it one.
async fn check_or_initialise(root: &Root, create: bool) -> Result<()> {
    let shown = root.location().shown();
    if let Some(folder) = root.folder()
        && folder.is_file()
    {
        return Err(StorageError::not_a_database(format!("{shown} is a file; give a folder for the database")));
    }
    if let Some(bytes) = read_mark(root).await? {
        return check_mark(&shown, &bytes);
    }
    let found = first_entries(root).await?;
    if !found.is_empty() {
        // Another process may have made the database between our two looks.
        if let Some(bytes) = read_mark(root).await? {
            return check_mark(&shown, &bytes);
        }
        return Err(StorageError::not_a_database(format!(
            "{shown} is not empty and holds no database (it has {}); give an empty or new folder, or \
             that of a database",
            found.join(", ")
        )));
    }
    if !create {
        return Err(StorageError::not_found(format!("there is no database at {shown}")));
    }
    let mark = Mark { magic: MAGIC.to_owned(), layout: LAYOUT };
    let text = serde_json::to_vec(&mark)
        .map_err(|error| StorageError::internal("the mark of a database cannot be written").with_source(error))?;
    let options = PutOptions { mode: PutMode::Create, ..Default::default() };
    let put = root.store().put_opts(&root.path(MARK), PutPayload::from(text), options).await;
    match put.map_err(|error| StorageError::from_store(format!("cannot make a database at {shown}"), error)) {
        Ok(_) => {
            tracing::info!(location = shown, "database created");
            Ok(())
        }
        // Another process was faster, or our own answer was lost: what is there decides.
        Err(error) => match read_mark(root).await {
            Ok(Some(bytes)) => check_mark(&shown, &bytes),
            Ok(None) | Err(_) => Err(error),
        },
    }
}

async fn read_mark(root: &Root) -> Result<Option<bytes::Bytes>> {
    let path = root.path(MARK);
    let read = async { root.store().get(&path).await?.bytes().await }.await;
    match read.map_err(|error| StorageError::from_store(format!("cannot open {}", root.location().shown()), error)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn check_mark(shown: &str, bytes: &[u8]) -> Result<()> {
    let mark: Mark = serde_json::from_slice(bytes).map_err(|error| {
        StorageError::corrupt(format!("{shown}/{MARK} cannot be read ({error}); restore it from a copy"))
    })?;
    if mark.magic != MAGIC {
        return Err(StorageError::not_a_database(format!(
            "{shown}/{MARK} was not written by sagitta; give another folder"
        )));
    }
    if mark.layout > LAYOUT {
        return Err(StorageError::unsupported(format!(
            "{shown} was made by a newer sagitta ({MARK} says layout {}, this program reads up to {LAYOUT}); use a newer \
             sagitta",
            mark.layout
        )));
    }
    Ok(())
}

/// A few names of what is there. What a fresh file system brings along does not count, nor does a mark that another
/// process is writing at this moment.
async fn first_entries(root: &Root) -> Result<Vec<String>> {
    const SHOWN_MAX: usize = 3;
    let what = || format!("cannot look into {}", root.location().shown());
    if let Some(folder) = root.folder() {
        let mut entries = match tokio::fs::read_dir(folder).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StorageError::from_io(what(), error)),
        };
        let mut found = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(|error| StorageError::from_io(what(), error))? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_mark = name.strip_prefix(MARK).is_some_and(|rest| rest.starts_with('#'));
            if name != "lost+found" && !is_mark && found.len() < SHOWN_MAX {
                found.push(name);
            }
        }
        return Ok(found);
    }
    let base = root.path("");
    let mut listed = root.store().list(Some(&base)).take(SHOWN_MAX);
    let mut found = Vec::new();
    while let Some(meta) = listed.next().await {
        match meta.map_err(|error| StorageError::from_store(what(), error)) {
            Ok(meta) => found.push(meta.location.to_string()),
            Err(error) if error.is_not_found() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The catalog's own folder must never be the folder of a schema.
const _: () = assert!(FOLDER.as_bytes()[0] == b'_');

#[cfg(test)]
mod tests;
