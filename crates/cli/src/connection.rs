//! Where statements run: in a database of this process, or on a server. The rest of the shell does not see a difference.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::arrow::array::RecordBatch;
use engine::{
    Answer, Engine, EngineOptions, Error, ImportMode, ImportOptions, IngestTarget, Progress, Session, Statement,
    Vocabulary,
};
use futures::FutureExt;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use server::{Client, ConnectOptions};

/// A session, here or on a server. Cheap to clone; clones share it.
#[derive(Clone)]
pub enum Connection {
    /// A database that this process has open.
    Local(Session),
    /// A server.
    Remote(Remote),
}

/// A session on a server.
#[derive(Clone)]
pub struct Remote {
    client: Client,
    /// A session of an empty database: it parses statements, knows the words of the language and reads files.
    language: Session,
}

impl Connection {
    /// Connects to a server. `here`: how files of this machine, or of an object store, are read.
    ///
    /// # Errors
    /// A server that does not answer, or that refuses.
    pub async fn connect(options: &ConnectOptions, here: EngineOptions) -> Result<Self, Error> {
        let client = Client::connect(options).await?;
        let language = Engine::open("memory:", here).await?.session();
        Ok(Self::Remote(Remote { client, language }))
    }

    /// Splits a text into statements and parses them.
    ///
    /// # Errors
    /// The first mistake of syntax.
    pub fn parse(&self, sql: &str) -> Result<Vec<Statement>, Error> {
        match self {
            Self::Local(session) => session.parse(sql),
            Self::Remote(remote) => remote.language.parse(sql),
        }
    }

    /// Runs a parsed statement.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub async fn run(&self, statement: &Statement) -> Result<Answer, Error> {
        match self {
            Self::Local(session) => session.run(statement).await,
            // The server sees the statement alone: places in it are moved to where it stands in the text.
            Self::Remote(remote) => remote.client.execute(statement.written()).await.map_err(|error| {
                let start = statement.range().start;
                let place = error.place.clone().map(|place| place.start + start..place.end + start);
                Error { place, ..error }
            }),
        }
    }

    /// Runs the one statement of a text.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub async fn execute(&self, sql: &str) -> Result<Answer, Error> {
        match self {
            Self::Local(session) => session.execute(sql).await,
            Self::Remote(remote) => remote.client.execute(sql).await,
        }
    }

    /// The words for completion.
    ///
    /// # Errors
    /// A catalog that cannot be read.
    pub async fn vocabulary(&self) -> Result<Vocabulary, Error> {
        match self {
            Self::Local(session) => session.vocabulary().await,
            Self::Remote(remote) => {
                let tables = remote.client.tables().await?;
                Ok(Vocabulary { tables, ..remote.language.vocabulary().await? })
            }
        }
    }

    /// Loads files of this machine into a table.
    ///
    /// # Errors
    /// Files that cannot be read, a table that is there or is not, rows that do not fit.
    pub async fn import(&self, options: ImportOptions, progress: Arc<Progress>) -> Result<u64, Error> {
        match self {
            Self::Local(session) => session.import(options, progress).await,
            Self::Remote(remote) => remote.import(options, &progress).await,
        }
    }
}

impl Remote {
    /// Reads files here and sends their rows: they are in the server's table once all have arrived, in one version.
    async fn import(&self, options: ImportOptions, progress: &Arc<Progress>) -> Result<u64, Error> {
        let target = IngestTarget::of_sql(&options.table, options.mode)?;
        // A table that is there knows its vectors; in a new one, they must be told from lists.
        let is_new = match options.mode {
            ImportMode::Create | ImportMode::Replace => true,
            ImportMode::Append => false,
            ImportMode::CreateOrAppend => {
                let tables = self.client.tables().await?;
                !tables.iter().any(|words| words.schema == target.schema && words.table == target.table)
            }
        };
        let target = &target;
        let send = |schema, rows: BoxStream<'static, Result<RecordBatch, Error>>| {
            let (progress, sent) = (Arc::clone(progress), AtomicU64::new(0));
            let rows = rows.inspect_ok(move |batch| {
                let count = batch.num_rows() as u64;
                progress.report(sent.fetch_add(count, Ordering::Relaxed) + count, 0);
            });
            async move { self.client.ingest(target, schema, rows.boxed()).await }.boxed()
        };
        self.language.read_files(&options.sources, options.format, is_new, send).await
    }
}
