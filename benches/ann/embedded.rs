//! The engine in this process: tables, indexes, and searches in sessions.

use std::sync::Arc;
use std::time::Duration;

use benches::Failure;
use benches::rates::{self, Queries, SearchRates, Searcher};
use engine::arrow::array::AsArray;
use engine::arrow::datatypes::Int64Type;
use engine::{Engine, ImportMode, IngestTarget, Prepared, ScalarValue, Session};
use futures::stream::StreamExt;

use crate::Method;
use crate::dataset::{Metric, Rows};
use crate::results::{Meter, Subject, Usage, decimal, resident_mb};

/// A rate is the median of so many windows.
const WINDOWS: usize = 3;
/// How long a window is.
pub const WINDOW: Duration = Duration::from_millis(500);
/// How often searches that are compared are measured in turn.
const ROUNDS: usize = 5;

/// Makes a table of these rows, in one version.
///
/// # Errors
/// A table of this name; rows that cannot be had.
pub async fn load(engine: &Engine, table: &str, mut rows: Rows) -> Result<(), Failure> {
    let session = engine.session();
    let (count, dim) = (rows.count, rows.dim);
    session
        .execute(&format!(
            "CREATE TABLE {table} (id BIGINT, name TEXT, u INT, part DOUBLE, side DOUBLE, released BIGINT, emb VECTOR({dim}))"
        ))
        .await?;
    let schema = rows.batch(0)?.schema();
    let target = IngestTarget { schema: "public".into(), table: table.into(), mode: ImportMode::Append };
    let written = session.ingest(&target, schema, futures::stream::iter(rows).boxed()).await?;
    if written != count as u64 {
        return Err(format!("{written} of {count} rows were written").into());
    }
    Ok(())
}

/// What an index took.
pub struct Built {
    usage: Usage,
    /// The index's files.
    pub segment_bytes: usize,
    /// These and the vectors: candidates are compared exactly.
    pub index_bytes: usize,
    rows: usize,
    /// What the process grew by.
    resident_mb: f64,
}

impl Built {
    /// How long it took.
    pub fn seconds(&self) -> f64 {
        self.usage.seconds
    }

    /// For a row of the kind `build`.
    ///
    /// # Errors
    /// A system that does not tell its cores.
    pub fn fields(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        Ok(vec![
            ("build_s", decimal(self.usage.seconds, 2)),
            ("build_threads", std::thread::available_parallelism()?.to_string()),
            ("build_cpu_s", decimal(self.usage.own_seconds, 2)),
            ("index_bytes", self.index_bytes.to_string()),
            ("segment_bytes", self.segment_bytes.to_string()),
            ("bytes_per_vec", decimal(self.index_bytes as f64 / self.rows as f64, 1)),
            ("rss_mb", decimal(self.resident_mb, 1)),
            ("other_cpu", decimal(self.usage.other_cores(), 2)),
        ])
    }
}

/// Makes the index `TABLE_emb`, and waits for it.
///
/// # Errors
/// An index that does not cover all rows.
pub async fn build(
    engine: &Engine,
    table: &str,
    method: &Method,
    metric: &Metric,
    subject: &Subject<'_>,
) -> Result<Built, Failure> {
    let session = engine.session();
    let create = format!("CREATE INDEX {table}_emb ON {table} USING {} (emb {})", method.name, metric.operator_class);
    let resident = resident_mb();
    let meter = Meter::start();
    session.execute(&create).await?;
    let usage = meter.usage();
    let resident_mb = resident_mb() - resident;
    let told = format!("SELECT bytes, rows_uncovered FROM system.indexes WHERE table_name = '{table}'");
    let told = numbers(&session, &told).await?;
    let [segment_bytes, uncovered] = told.as_slice() else {
        return Err(format!("there is not one index on {table}, but {}", told.len() / 2).into());
    };
    if *segment_bytes == 0 || *uncovered != 0 {
        return Err(format!("the index has {segment_bytes} bytes and lacks {uncovered} rows").into());
    }
    let segment_bytes = usize::try_from(*segment_bytes)?;
    let index_bytes = segment_bytes + subject.rows * subject.dim * 4;
    Ok(Built { usage, segment_bytes, index_bytes, rows: subject.rows, resident_mb })
}

/// The numbers of an answer whose columns are all BIGINT, row by row of each batch.
///
/// # Errors
/// What the engine says.
pub async fn numbers(session: &Session, sql: &str) -> Result<Vec<i64>, Failure> {
    let mut numbers = vec![];
    for batch in session.execute(sql).await?.collect().await? {
        for row in 0..batch.num_rows() {
            numbers.extend(batch.columns().iter().map(|column| column.as_primitive::<Int64Type>().value(row)));
        }
    }
    Ok(numbers)
}

/// A search, and how hard it looks.
pub struct Search<'a> {
    pub sql: &'a str,
    /// As after SET.
    pub setting: &'a str,
    /// What `$2` is, if there is one.
    pub bound: Option<Bound>,
}

/// The value of a parameter: more by `step` at each question.
#[derive(Clone, Copy)]
pub struct Bound {
    pub value: f64,
    pub step: f64,
}

/// A search of a session of its own, in the same process.
pub struct Embedded {
    search: Prepared,
    bound: Option<Bound>,
}

impl Searcher for Embedded {
    async fn nearest(&mut self, query: &[f32]) -> Result<Vec<i64>, String> {
        let mut parameters = vec![engine::vector(query.iter().copied())];
        if let Some(bound) = &mut self.bound {
            parameters.push(ScalarValue::Float64(Some(bound.value)));
            bound.value += bound.step;
        }
        let answer = self.search.run(&parameters).await.map_err(|error| error.to_string())?;
        let batches = answer.collect().await.map_err(|error| error.to_string())?;
        Ok(batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().iter().copied())
            .collect())
    }
}

/// Sessions in which a search without an index is an error.
///
/// # Errors
/// What the engine says.
pub async fn searchers(engine: &Engine, count: usize, search: &Search<'_>) -> Result<Vec<Embedded>, Failure> {
    let mut searchers = vec![];
    for _ in 0..count {
        let session = engine.session();
        session.execute("SET require_index = on").await?;
        session.execute(&format!("SET {}", search.setting)).await?;
        searchers.push(Embedded { search: session.prepare(search.sql).await?, bound: search.bound });
    }
    Ok(searchers)
}

/// The nearest rows of each vector, all candidates compared.
///
/// # Errors
/// What the engine says.
pub async fn exact(
    engine: &Engine,
    sql: &str,
    bound: Option<Bound>,
    vectors: Vec<Vec<f32>>,
) -> Result<Arc<Queries>, Failure> {
    let session = engine.session();
    session.execute("SET exact = on").await?;
    let mut searcher = Embedded { search: session.prepare(sql).await?, bound };
    let nearest = rates::found(&mut searcher, &vectors).await?;
    Ok(Arc::new(Queries { vectors, nearest }))
}

/// Rates, and what the machine did meanwhile.
///
/// # Errors
/// What the server says.
pub async fn timed<S: Searcher>(connections: Vec<S>, queries: &Arc<Queries>) -> Result<(SearchRates, Usage), Failure> {
    let meter = Meter::start();
    let reached = rates::search(connections, queries, WINDOW, WINDOWS).await?;
    Ok((reached, meter.usage()))
}

/// Rates of several searches, one session at a time, all of them in turn, again and again: figures of one round are compared.
/// Returns the rounds of each search, and what the machine did meanwhile.
///
/// # Errors
/// What the engine says.
pub async fn in_turn(
    engine: &Engine,
    searches: &[(Search<'_>, Arc<Queries>)],
) -> Result<(Vec<Vec<SearchRates>>, Usage), Failure> {
    let meter = Meter::start();
    let mut rounds: Vec<Vec<SearchRates>> = searches.iter().map(|_| vec![]).collect();
    for _ in 0..ROUNDS {
        for ((search, queries), rounds) in searches.iter().zip(&mut rounds) {
            let one = searchers(engine, 1, search).await?;
            rounds.push(rates::search(one, queries, WINDOW, 1).await?);
        }
    }
    Ok((rounds, meter.usage()))
}
