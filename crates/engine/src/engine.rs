//! An open database: its storage, its memory, and the sessions on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use futures::FutureExt;
use operators::cooperate::YieldInJoins;
use operators::physical::SagittaPlanner;
use planner::settings::Settings;
use storage::{Database, OpenOptions};

use crate::index_builds::Builds;
use crate::memory::{Held, Memory};
use crate::password::Passwords;
use crate::queries::Queries;
use crate::rights::Principal;
use crate::roots::AllowedRoots;
use crate::run::MemoryOf;
use crate::{Error, ErrorKind, QueryReport, Result, Secret, Session, UserIdentity};

/// The part of the memory limit that caches decoded vectors and segments of indexes: one in this many.
const VECTOR_CACHE_SHARE: usize = 4;
/// The part of that which caches segments: one in this many. Those that do not fit are mapped files.
const SEGMENT_CACHE_SHARE: usize = 4;
/// The part of it that is for the other caches: one in this many.
const OTHER_CACHES_SHARE: usize = 16;
/// The most that those caches have.
const OTHER_CACHES_BYTES_MAX: usize = 800 << 20;
/// The part of it that is left to the process itself, its code, threads and plans: one in this many.
const PROCESS_SHARE: usize = 2;
/// The most that is left to it.
const PROCESS_BYTES_MAX: usize = 160 << 20;
/// Bytes of a batch of eight columns of numbers, and as many small batches as large ones: rows of one batch by the memory.
const BATCH_ROWS_SHARE: usize = 128 << 10;
/// Rows of one batch.
const BATCH_ROWS: std::ops::RangeInclusive<usize> = 1_024..=8_192;
/// Below this part of the limit, what the process holds is as it should be. Far below it: what many threads have freed goes
/// back to the system slowly.
const CALM_SHARE: (usize, usize) = (3, 4);
/// Above this part of the limit, memory is scarce enough for the process to give back at once what it frees.
const SCARCE_SHARE: (usize, usize) = (1, 2);
/// The smallest memory limit: below it, not even a scan has its buffers.
const MEMORY_LIMIT_BYTES_MIN: usize = 64 << 20;
/// The memory that is assumed where the system does not tell.
const MEMORY_BYTES_ASSUMED: usize = 4 << 30;

/// How to open a database.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Options of the object store, such as `aws_endpoint`; the AWS variables of the environment come first.
    pub storage_options: Vec<(String, String)>,
    /// What statements and caches may hold together; seven tenths of the machine's memory if absent.
    pub memory_limit_bytes: Option<usize>,
    /// How many threads a statement may use; all cores if absent.
    pub threads: Option<usize>,
    /// Make the database if there is none.
    pub create: bool,
    /// The folders and URLs under which statements may read and write files, the database's own folder apart; everything
    /// if absent.
    pub allowed_roots: Option<Vec<String>>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { storage_options: vec![], memory_limit_bytes: None, threads: None, create: true, allowed_roots: None }
    }
}

/// What an engine holds at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineFigures {
    /// What running statements have reserved, and what is kept for sessions.
    pub memory_reserved_bytes: u64,
    /// What statements may reserve together; the caches and the process itself have their own parts of the memory.
    pub memory_limit_bytes: u64,
    /// Statements that wait for memory.
    pub memory_waiting: u64,
    /// What the cache of decoded vectors holds.
    pub vector_cache_bytes: u64,
    /// What it may hold.
    pub vector_cache_bytes_max: u64,
    /// Reads that it answered since the database was opened.
    pub vector_cache_hits: u64,
    /// Reads that it did not answer.
    pub vector_cache_misses: u64,
}

/// An open database. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// An engine that may be closed meanwhile.
pub(crate) struct WeakEngine(Weak<Inner>);

impl WeakEngine {
    pub(crate) fn upgrade(&self) -> Option<Engine> {
        self.0.upgrade().map(|inner| Engine { inner })
    }
}

struct Inner {
    database: Database,
    runtime: Arc<RuntimeEnv>,
    threads: usize,
    memory: Arc<Memory>,
    /// What the process may hold.
    limit_bytes: usize,
    memory_is_scarce: AtomicBool,
    builds: Builds,
    queries: Arc<Queries>,
    roots: Option<AllowedRoots>,
    passwords: Passwords,
}

impl Engine {
    /// Opens the database at a folder, at `s3://bucket/prefix`, or in memory (`memory:`).
    ///
    /// # Errors
    /// A folder that holds something else, a newer format, a store that does not answer, a memory limit that is too
    /// small, an allowed root that is no folder or URL. Nothing is created then.
    pub async fn open(location: &str, options: EngineOptions) -> Result<Self> {
        kernels::isa_from_env().map_err(|error| Error::invalid(error.to_string()))?;
        let limit = options.memory_limit_bytes.unwrap_or_else(memory_limit_default);
        if limit < MEMORY_LIMIT_BYTES_MIN {
            return Err(Error::invalid(format!(
                "a memory limit of {limit} bytes is too small; give at least {MEMORY_LIMIT_BYTES_MIN}"
            )));
        }
        let roots = options.allowed_roots.as_deref().map(AllowedRoots::new).transpose()?;
        let cache_bytes = limit / VECTOR_CACHE_SHARE;
        let segment_cache_bytes = cache_bytes / SEGMENT_CACHE_SHARE;
        let vector_cache_bytes = cache_bytes - segment_cache_bytes;
        let other_caches_bytes = (limit / OTHER_CACHES_SHARE).min(OTHER_CACHES_BYTES_MAX);
        let process_bytes = (limit / PROCESS_SHARE).min(PROCESS_BYTES_MAX);
        let memory = Memory::new(limit - cache_bytes - other_caches_bytes - process_bytes);
        let rewrite_bytes = memory.rewrite_bytes();
        let (storage_options, create) = (options.storage_options, options.create);
        let open = OpenOptions { storage_options, vector_cache_bytes, other_caches_bytes, rewrite_bytes, create };
        let database = Database::open(location, open).boxed().await?;
        database.set_segment_cache_bytes(segment_cache_bytes);
        database.set_segments_in_memory(true);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(memory.pool())
            .with_object_store_registry(database.object_store_registry())
            .build_arc()?;
        let threads =
            options.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1).max(1);
        let roots = roots.map(|roots| roots.without(database.location())).transpose()?;
        let passwords = Passwords::new(threads);
        let queries = Arc::default();
        let inner = Inner {
            database,
            runtime,
            threads,
            memory,
            limit_bytes: limit,
            memory_is_scarce: AtomicBool::new(false),
            builds: Builds::default(),
            queries,
            roots,
            passwords,
        };
        let engine = Self { inner: Arc::new(inner) };
        engine.find_indexes();
        Ok(engine)
    }

    /// Where the database is, as users write it.
    pub fn location(&self) -> &str {
        self.inner.database.location()
    }

    /// A new session with default settings, which may do everything: that of the program that opened the database.
    pub fn session(&self) -> Session {
        Session::new(self.clone(), self.state(None), Principal::Owner)
    }

    /// A new session with default settings and the rights of a user. They are looked up at each statement: what is
    /// granted or revoked holds from the next one on. Who the user is must be known: see [`Engine::verify_password`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such user.
    pub async fn session_as(&self, user: &str) -> Result<Session> {
        let catalog = self.database().catalog().await?;
        let Some(entry) = catalog.users.get(user) else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no user {user}")));
        };
        let identity = UserIdentity { name: user.into(), id: entry.id.as_str().into() };
        Ok(Session::new(self.clone(), self.state(Some(user)), Principal::User(identity)))
    }

    /// Whether the user has been dropped, as far as this process has seen: each statement that it runs looks, and so does
    /// [`Engine::has_users`]. No request is made.
    pub fn was_dropped(&self, user: &UserIdentity) -> bool {
        let catalog = self.database().known_catalog();
        catalog.is_some_and(|catalog| catalog.users.get(user.name.as_ref()).is_none_or(|entry| entry.id != *user.id))
    }

    /// The secret that all servers of the database share, to sign what they give out; it is made if there is none.
    ///
    /// # Errors
    /// A store that can neither be read nor written, a damaged file.
    pub async fn shared_secret(&self) -> Result<Secret> {
        Ok(self.database().shared_secret().await?)
    }

    /// Whether the user exists and has this password. The answer takes the same time if not; a few are looked for at
    /// once, each for some tens of milliseconds of a core.
    ///
    /// # Errors
    /// A catalog that cannot be read, a hash that is damaged.
    pub async fn verify_password(&self, user: &str, password: &str) -> Result<bool> {
        let catalog = self.database().catalog().await?;
        let hash = catalog.users.get(user).and_then(|entry| entry.password_hash.clone());
        self.passwords().verify(hash, password).await
    }

    /// Whether the database has users: without any, nobody can log in.
    ///
    /// # Errors
    /// A catalog that cannot be read.
    pub async fn has_users(&self) -> Result<bool> {
        Ok(!self.database().catalog().await?.users.is_empty())
    }

    /// What the engine holds now. Cheap.
    pub fn figures(&self) -> EngineFigures {
        let cache = self.inner.database.vector_cache();
        let (taken, bytes_max, waiting) = self.inner.memory.figures();
        EngineFigures {
            memory_reserved_bytes: taken as u64,
            memory_limit_bytes: bytes_max as u64,
            memory_waiting: waiting as u64,
            vector_cache_bytes: cache.bytes,
            vector_cache_bytes_max: cache.bytes_max,
            vector_cache_hits: cache.hits,
            vector_cache_misses: cache.misses,
        }
    }

    /// How much the statements of each user, and what is kept for the user, may take together; as much as there is if
    /// absent. The program that opened the database is no user.
    pub fn set_memory_per_user_max(&self, bytes: Option<usize>) {
        self.inner.memory.set_per_user_max(bytes);
    }

    /// How long a statement waits for the memory that it needs, before it is refused.
    pub fn set_memory_wait(&self, wait: Duration) {
        self.inner.memory.set_wait(wait);
    }

    /// Takes memory for something that is kept for a user. `what` names it in the error.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] if there is none left, or if the user has as much as one may.
    pub fn hold(&self, user: Option<&str>, bytes: usize, what: &str) -> Result<Held> {
        self.inner.memory.hold(user, bytes, what)
    }

    /// Counts memory that something takes already, whether there is room for it or not: others get so much less.
    pub fn hold_anyway(&self, user: Option<&str>, bytes: usize) -> Held {
        self.inner.memory.hold_anyway(user, bytes)
    }

    /// Compares what the process holds with what it may: as it comes close to that, so much less is given out. Called
    /// several times a second, it keeps the process within its limit also where a library takes more than was claimed for
    /// it. Cheap.
    pub fn watch_memory(&self) {
        let Some(resident) = resident_bytes() else { return };
        let share = |(part, whole): (usize, usize)| self.inner.limit_bytes / whole * part;
        self.inner.memory.set_unforeseen(resident.saturating_sub(share(CALM_SHARE)));
        self.inner.memory_is_scarce.store(resident > share(SCARCE_SHARE), Ordering::Relaxed);
    }

    /// Whether the process held so much at the last [look](Self::watch_memory) that its allocator should give what is freed back to
    /// the system at once.
    pub fn memory_is_scarce(&self) -> bool {
        self.inner.memory_is_scarce.load(Ordering::Relaxed)
    }

    /// Statements that run at least this long are logged, and listed in `system.slow_queries`.
    pub fn set_slow_query(&self, duration: Duration) {
        self.inner.queries.set_slow_from(duration);
    }

    /// The statements that run, of all sessions.
    pub fn running(&self) -> Vec<QueryReport> {
        self.inner.queries.running()
    }

    pub(crate) fn queries(&self) -> &Arc<Queries> {
        &self.inner.queries
    }

    /// A handle that does not keep the database open.
    pub(crate) fn downgrade(&self) -> WeakEngine {
        WeakEngine(Arc::downgrade(&self.inner))
    }

    /// Bytes that statements may claim together.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.inner.memory.figures().1
    }

    /// Threads of a statement.
    pub(crate) fn threads(&self) -> usize {
        self.inner.threads
    }

    pub(crate) fn builds(&self) -> &Builds {
        &self.inner.builds
    }

    pub(crate) fn database(&self) -> &Database {
        &self.inner.database
    }

    pub(crate) fn passwords(&self) -> &Passwords {
        &self.inner.passwords
    }

    /// Where statements may read and write files; `None`: everywhere.
    pub(crate) fn roots(&self) -> Option<&AllowedRoots> {
        self.inner.roots.as_ref()
    }

    /// The state of a new session.
    fn state(&self, user: Option<&str>) -> SessionState {
        let memory = Arc::clone(&self.inner.memory);
        let batch_rows = (self.inner.memory.figures().1 / BATCH_ROWS_SHARE).next_power_of_two();
        let mut config = SessionConfig::new()
            .with_target_partitions(self.inner.threads)
            .with_batch_size(batch_rows.clamp(*BATCH_ROWS.start(), *BATCH_ROWS.end()))
            .with_sort_spill_reservation_bytes(memory.buffers().merge)
            .with_option_extension(Settings::default());
        config.set_extension(Arc::new(MemoryOf { memory, user: user.map(Into::into) }));
        let options = config.options_mut();
        // It strips the ORDER BY of a derived table whose LIMIT is outside: a search would lose its order.
        options.sql_parser.enable_subquery_sort_elimination = false;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.execution.parquet.schema_force_view_types = false;
        options.execution.listing_table_ignore_subdirectory = false;
        options.execution.time_zone = Some(planner::sql_type::ZONE.to_owned());
        let builder = SessionStateBuilder::new().with_config(config).with_runtime_env(Arc::clone(&self.inner.runtime));
        planner::install(builder)
            .with_query_planner(Arc::new(SagittaPlanner))
            .with_physical_optimizer_rule(Arc::new(YieldInJoins))
            .build()
    }
}

fn memory_limit_default() -> usize {
    system_bytes("/proc/meminfo", "MemTotal:").unwrap_or(MEMORY_BYTES_ASSUMED) / 10 * 7
}

/// Memory of this process that is in RAM, where the system tells.
fn resident_bytes() -> Option<usize> {
    system_bytes("/proc/self/status", "VmRSS:")
}

/// A figure of the system that is given in kilobytes.
fn system_bytes(file: &str, name: &str) -> Option<usize> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kilobytes| kilobytes * 1024)
}
