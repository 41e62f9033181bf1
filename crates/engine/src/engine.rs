//! An open database: its storage, its memory, and the sessions on it.

use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use futures::FutureExt;
use operators::cooperate::YieldInJoins;
use operators::physical::SagittaPlanner;
use planner::settings::Settings;
use storage::{Database, OpenOptions};

use crate::password::Passwords;
use crate::queries::Queries;
use crate::rights::Principal;
use crate::roots::AllowedRoots;
use crate::{Error, ErrorKind, QueryReport, Result, Secret, Session, UserIdentity};

/// The part of the memory limit that caches decoded vectors: one in this many.
const VECTOR_CACHE_SHARE: usize = 4;
/// The smallest memory limit: below it, not even a scan has its buffers.
const MEMORY_LIMIT_BYTES_MIN: usize = 64 << 20;
/// The memory that is assumed where the system does not tell.
const MEMORY_BYTES_ASSUMED: usize = 4 << 30;
/// How many consumers an error about memory names.
const CONSUMERS_NAMED: std::num::NonZeroUsize = std::num::NonZeroUsize::new(3).unwrap();

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
    /// What running statements have reserved.
    pub memory_reserved_bytes: u64,
    /// What statements may reserve together; the cache of vectors has its own part of the memory.
    pub memory_limit_bytes: u64,
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

struct Inner {
    database: Database,
    runtime: Arc<RuntimeEnv>,
    threads: usize,
    pool_bytes: usize,
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
        let vector_cache_bytes = limit / VECTOR_CACHE_SHARE;
        let open = OpenOptions { storage_options: options.storage_options, vector_cache_bytes, create: options.create };
        let database = Database::open(location, open).boxed().await?;
        let pool_bytes = limit - vector_cache_bytes;
        let pool = TrackConsumersPool::new(FairSpillPool::new(pool_bytes), CONSUMERS_NAMED);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_object_store_registry(database.object_store_registry())
            .build_arc()?;
        let threads =
            options.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1).max(1);
        let roots = roots.map(|roots| roots.without(database.location())).transpose()?;
        let passwords = Passwords::new(threads);
        let inner = Inner { database, runtime, threads, pool_bytes, queries: Arc::default(), roots, passwords };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where the database is, as users write it.
    pub fn location(&self) -> &str {
        self.inner.database.location()
    }

    /// A new session with default settings, which may do everything: that of the program that opened the database.
    pub fn session(&self) -> Session {
        Session::new(self.clone(), self.state(), Principal::Owner)
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
        Ok(Session::new(self.clone(), self.state(), Principal::User(identity)))
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
        EngineFigures {
            memory_reserved_bytes: self.inner.runtime.memory_pool.reserved() as u64,
            memory_limit_bytes: self.inner.pool_bytes as u64,
            vector_cache_bytes: cache.bytes,
            vector_cache_bytes_max: cache.bytes_max,
            vector_cache_hits: cache.hits,
            vector_cache_misses: cache.misses,
        }
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
    fn state(&self) -> SessionState {
        let mut config =
            SessionConfig::new().with_target_partitions(self.inner.threads).with_option_extension(Settings::default());
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
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("MemTotal:"));
    let kilobytes: Option<usize> =
        line.and_then(|line| line.split_whitespace().nth(1)).and_then(|number| number.parse().ok());
    kilobytes.map_or(MEMORY_BYTES_ASSUMED, |kilobytes| kilobytes * 1024) / 10 * 7
}
