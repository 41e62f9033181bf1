//! An open database: its storage, its memory, and the sessions on it.

use std::sync::Arc;

use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use futures::FutureExt;
use operators::cooperate::YieldInJoins;
use operators::physical::SagittaPlanner;
use planner::settings::Settings;
use storage::{Database, OpenOptions};

use crate::{Error, Result, Session};

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
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { storage_options: vec![], memory_limit_bytes: None, threads: None, create: true }
    }
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
}

impl Engine {
    /// Opens the database at a folder, at `s3://bucket/prefix`, or in memory (`memory:`).
    ///
    /// # Errors
    /// A folder that holds something else, a newer format, a store that does not answer, a memory limit that is too
    /// small. Nothing is created then.
    pub async fn open(location: &str, options: EngineOptions) -> Result<Self> {
        kernels::isa_from_env().map_err(|error| Error::invalid(error.to_string()))?;
        let limit = options.memory_limit_bytes.unwrap_or_else(memory_limit_default);
        if limit < MEMORY_LIMIT_BYTES_MIN {
            return Err(Error::invalid(format!(
                "a memory limit of {limit} bytes is too small; give at least {MEMORY_LIMIT_BYTES_MIN}"
            )));
        }
        let vector_cache_bytes = limit / VECTOR_CACHE_SHARE;
        let open = OpenOptions { storage_options: options.storage_options, vector_cache_bytes, create: options.create };
        let database = Database::open(location, open).boxed().await?;
        let pool = TrackConsumersPool::new(FairSpillPool::new(limit - vector_cache_bytes), CONSUMERS_NAMED);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_object_store_registry(database.object_store_registry())
            .build_arc()?;
        let threads =
            options.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1).max(1);
        Ok(Self { inner: Arc::new(Inner { database, runtime, threads }) })
    }

    /// Where the database is, as users write it.
    pub fn location(&self) -> &str {
        self.inner.database.location()
    }

    /// A new session with default settings.
    pub fn session(&self) -> Session {
        Session::new(self.clone(), self.state())
    }

    pub(crate) fn database(&self) -> &Database {
        &self.inner.database
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
