//! Searches by an index as a user meets them, through SQL and over Flight: builds, recall and speed.
//!
//! `cargo bench --workspace --bench ann -- --dataset minilm|fashion|large [--only CONFIG]`
//!
//! `CONFIG` is a part of `sql graph`, `flight graph` or `sql ivf`. `$ANNBENCH` (`annbench` in the workspace's folder if unset) holds
//! `data/NAME/{base,query,gt,u,gt_u100,gt_u1000,gt_u5000}.npy` (benches/README.md). A line of JSON for each figure is printed and
//! appended to `results/sagitta.jsonl` there.
//!
//! Everything is in one process: engine, server and clients share its cores. `qps_1t` is one session that asks one question at
//! a time, `qps_2t` are two such sessions; `cpu_1t` and `cpu_2t` are the cores that this process kept busy meanwhile, `other_*`
//! those that others did. Recall is over all queries once; rates are medians of windows after one that warms up.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use benches::Failure;
use benches::flight_client::{self, vectors_of};
use benches::rates::{self, K, Queries, SearchRates, Searcher};
use engine::arrow::array::{ArrayRef, AsArray, Float32Array, Int32Array, Int64Array, RecordBatch, StringArray};
use engine::arrow::datatypes::Int64Type;
use engine::{Engine, EngineOptions, Error, ErrorKind, ImportMode, IngestTarget, Prepared};
use futures::stream::StreamExt;
use server::ServerOptions;

const USAGE: &str = "give --dataset minilm, fashion or large, and --only with a part of a configuration's name if not all are to be measured";
/// A rate is the median of so many windows.
const WINDOWS: usize = 3;
const WINDOW: Duration = Duration::from_millis(500);
/// As many queries as the rivals get.
const QUERIES_MAX: usize = 1_000;
const FILTERED_QUERIES_MAX: usize = 200;
/// Rows with `u` below are candidates; `u` is from 0 to 9,999.
const BOUNDS: [u32; 3] = [100, 1_000, 5_000];
const U_VALUES: f64 = 10_000.0;
const FILTERED_SETTING: &str = "recall_target = 0.95";
const CLIENTS: [usize; 2] = [1, 8];
const BATCH_ROWS: usize = 8_192;
const FLOATS: &str = "<f4";
const INTEGERS: &str = "<i4";

/// A kind of index and what is measured of it.
struct Method {
    name: &'static str,
    configs: &'static [&'static str],
    settings: &'static [&'static str],
}

const METHODS: [Method; 2] = [
    Method {
        name: "graph",
        configs: &["sql graph", "flight graph"],
        settings: &[
            "recall_target = 0.9",
            "recall_target = 0.95",
            "recall_target = 0.99",
            "ef_search = 32",
            "ef_search = 64",
            "ef_search = 128",
            "ef_search = 256",
        ],
    },
    Method {
        name: "ivf",
        configs: &["sql ivf"],
        settings: &[
            "recall_target = 0.9",
            "recall_target = 0.95",
            "recall_target = 0.99",
            "nprobe = 16",
            "nprobe = 32",
            "nprobe = 64",
            "nprobe = 128",
        ],
    },
];

fn main() -> Result<(), Failure> {
    let (mut name, mut only) = (None, String::new());
    let mut words = benches::arguments().into_iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} has no value; {USAGE}"))?;
        match word.as_str() {
            "--dataset" => name = Some(value),
            "--only" => only = value,
            _ => return Err(format!("there is no option {word}; {USAGE}").into()),
        }
    }
    let Some(name) = name else {
        println!("{USAGE}; nothing is measured without");
        return Ok(());
    };
    let dataset = Dataset::open(&name)?;
    println!("machine: {}", benches::machine());
    println!("data: {name}, {} × {} float32, {}", dataset.rows, dataset.dim, dataset.metric.name);
    let mut results = Results::open(&dataset)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build()?;
    runtime.block_on(async {
        for method in &METHODS {
            measure(method, &only, &dataset, &mut results).await?;
        }
        Ok(())
    })
}

/// Builds the index in an engine of its own and measures what is wanted of it.
async fn measure(method: &Method, only: &str, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    let wanted: Vec<&str> = method.configs.iter().copied().filter(|config| config.contains(only)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let engine = loaded(dataset).await?;
    let built = build(&engine, method, dataset).await?;
    for config in wanted {
        results.emit(&Title { kind: "build", config }, &built)?;
        if config.starts_with("flight") {
            over_flight(&engine, config, dataset, results).await?;
        } else {
            search(&engine, method, config, dataset, results).await?;
            filter(&engine, config, dataset, results).await?;
        }
    }
    Ok(())
}

/// A new engine with the rows in memory, in one version.
async fn loaded(dataset: &Dataset) -> Result<Engine, Failure> {
    let engine = Engine::open("memory:", EngineOptions::default()).await?;
    let session = engine.session();
    let (count, dim) = (dataset.rows, dataset.dim);
    let create = format!("CREATE TABLE docs (id BIGINT, name TEXT, u INT, released BIGINT, emb VECTOR({dim}))");
    session.execute(&create).await?;
    let rows = Rows::read(dataset)?;
    let schema = rows.batch(0..0)?.schema();
    let batches = (0..count).step_by(BATCH_ROWS).map(move |start| {
        let batch = rows.batch(start..count.min(start + BATCH_ROWS));
        batch.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
    });
    let target = IngestTarget { schema: "public".into(), table: "docs".into(), mode: ImportMode::Append };
    let written = session.ingest(&target, schema, futures::stream::iter(batches).boxed()).await?;
    if written != count as u64 {
        return Err(format!("{written} of {count} rows were written").into());
    }
    Ok(engine)
}

/// The fields of a build. The bytes are those of the index's files and, since its candidates are compared exactly, of the vectors.
async fn build(engine: &Engine, method: &Method, dataset: &Dataset) -> Result<Vec<(&'static str, String)>, Failure> {
    let session = engine.session();
    let create = format!("CREATE INDEX docs_emb ON docs USING {} (emb {})", method.name, dataset.metric.operator_class);
    let resident = resident_mb();
    let meter = Meter::start();
    session.execute(&create).await?;
    let usage = meter.usage();
    let grown = resident_mb() - resident;
    let told = session.execute("SELECT bytes, rows_uncovered FROM system.indexes").await?.collect().await?;
    let sum = |column: usize| {
        let values = told.iter().flat_map(|batch| batch.column(column).as_primitive::<Int64Type>().values().iter());
        values.copied().sum::<i64>()
    };
    let (segment_bytes, uncovered) = (sum(0), sum(1));
    if segment_bytes == 0 || uncovered != 0 {
        return Err(format!("the index has {segment_bytes} bytes and lacks {uncovered} rows").into());
    }
    let index_bytes = usize::try_from(segment_bytes)? + dataset.rows * dataset.dim * 4;
    Ok(vec![
        ("build_s", decimal(usage.seconds, 2)),
        ("build_threads", std::thread::available_parallelism()?.to_string()),
        ("build_cpu_s", decimal(usage.own_seconds, 2)),
        ("index_bytes", index_bytes.to_string()),
        ("segment_bytes", segment_bytes.to_string()),
        ("bytes_per_vec", decimal(index_bytes as f64 / dataset.rows as f64, 1)),
        ("rss_mb", decimal(grown, 1)),
        ("other_cpu", decimal(usage.other_cores(), 2)),
    ])
}

/// Prepared searches of one session and of two, at each setting.
async fn search(
    engine: &Engine,
    method: &Method,
    config: &str,
    dataset: &Dataset,
    results: &mut Results,
) -> Result<(), Failure> {
    let sql = dataset.sql("");
    for setting in method.settings.iter().copied() {
        let at_setting = Search { sql: &sql, setting };
        let mut one = searchers(engine, 1, &at_setting).await?;
        let recall = recall(&mut one[0], &dataset.queries).await?;
        let (alone, alone_usage) = timed(one, &dataset.queries).await?;
        let two = searchers(engine, 2, &at_setting).await?;
        let (both, both_usage) = timed(two, &dataset.queries).await?;
        results.emit(
            &Title { kind: "search", config },
            &[
                ("setting", quoted(setting)),
                ("recall10", decimal(recall, 4)),
                ("qps_1t", decimal(alone.qps, 1)),
                ("other_1t", decimal(alone_usage.other_cores(), 2)),
                ("cpu_1t", decimal(alone_usage.own_cores(), 2)),
                ("qps_2t", decimal(both.qps, 1)),
                ("other_2t", decimal(both_usage.other_cores(), 2)),
                ("cpu_2t", decimal(both_usage.own_cores(), 2)),
                ("p50", milliseconds(alone.p50)),
                ("p99", milliseconds(alone.p99)),
                ("qps_one", decimal(alone.qps, 1)),
                ("lat_other", decimal(alone_usage.other_cores(), 2)),
            ],
        )?;
    }
    Ok(())
}

/// The same among the rows that a predicate keeps.
async fn filter(engine: &Engine, config: &str, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    for (bound, queries) in &dataset.filtered {
        let sql = dataset.sql(&format!("WHERE u < {bound}"));
        let mut one = searchers(engine, 1, &Search { sql: &sql, setting: FILTERED_SETTING }).await?;
        let recall = recall(&mut one[0], queries).await?;
        let (reached, usage) = timed(one, queries).await?;
        results.emit(
            &Title { kind: "filter", config },
            &[
                ("setting", quoted(FILTERED_SETTING)),
                ("selectivity", (f64::from(*bound) / U_VALUES).to_string()),
                ("recall10", decimal(recall, 4)),
                ("qps", decimal(reached.qps, 1)),
                ("other_cpu", decimal(usage.other_cores(), 2)),
                ("note", quoted("no index on u")),
            ],
        )?;
    }
    Ok(())
}

/// Prepared searches of several clients over loopback, in sessions as the server gives them out.
async fn over_flight(engine: &Engine, config: &str, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    let settings = engine.session().all_settings()?;
    let target = settings.iter().find(|(name, ..)| name == "recall_target").ok_or("there is no recall_target")?;
    let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), http: None, ..ServerOptions::default() };
    let listener = server::bind(&options).await?;
    let uri = format!("http://{}", listener.local_addr()?);
    let serving = tokio::spawn(server::serve_on(listener, engine.clone(), options, std::future::pending()));
    let sql = dataset.sql("");
    for clients in CLIENTS {
        let mut connections = vec![];
        for _ in 0..clients {
            connections.push(flight_client::Prepared::new(&uri, &sql).await?);
        }
        let recall = recall(&mut connections[0], &dataset.queries).await?;
        let (reached, usage) = timed(connections, &dataset.queries).await?;
        let mut fields = vec![
            ("setting", quoted(&format!("recall_target = {}, clients = {clients}", target.1))),
            ("clients", clients.to_string()),
            ("recall10", decimal(recall, 4)),
            ("qps", decimal(reached.qps, 1)),
            ("p50", milliseconds(reached.p50)),
            ("p99", milliseconds(reached.p99)),
            ("lat_other", decimal(usage.other_cores(), 2)),
        ];
        if clients == 1 {
            fields.extend([
                ("qps_1t", decimal(reached.qps, 1)),
                ("other_1t", decimal(usage.other_cores(), 2)),
                ("cpu_1t", decimal(usage.own_cores(), 2)),
                ("qps_one", decimal(reached.qps, 1)),
            ]);
        }
        results.emit(&Title { kind: "search", config }, &fields)?;
    }
    serving.abort();
    Ok(())
}

/// A search, and how hard it looks.
struct Search<'a> {
    sql: &'a str,
    /// As after SET.
    setting: &'a str,
}

/// A search of a session of its own, in the same process.
struct Embedded(Prepared);

impl Searcher for Embedded {
    async fn nearest(&mut self, query: &[f32]) -> Result<Vec<i64>, String> {
        let parameters = [engine::vector(query.iter().copied())];
        let answer = self.0.run(&parameters).await.map_err(|error| error.to_string())?;
        let batches = answer.collect().await.map_err(|error| error.to_string())?;
        Ok(batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().iter().copied())
            .collect())
    }
}

/// Sessions in which a search without an index is an error.
async fn searchers(engine: &Engine, count: usize, search: &Search<'_>) -> Result<Vec<Embedded>, Failure> {
    let mut searchers = vec![];
    for _ in 0..count {
        let session = engine.session();
        session.execute("SET require_index = on").await?;
        session.execute(&format!("SET {}", search.setting)).await?;
        searchers.push(Embedded(session.prepare(search.sql).await?));
    }
    Ok(searchers)
}

/// The share of the true neighbors that are found, over all queries once.
async fn recall<S: Searcher>(searcher: &mut S, queries: &Queries) -> Result<f64, Failure> {
    let mut hits = 0;
    for (vector, nearest) in queries.vectors.iter().zip(&queries.nearest) {
        let found = searcher.nearest(vector).await?;
        hits += nearest.iter().filter(|id| found.contains(id)).count();
    }
    Ok(hits as f64 / (queries.vectors.len() * K) as f64)
}

async fn timed<S: Searcher>(connections: Vec<S>, queries: &Arc<Queries>) -> Result<(SearchRates, Usage), Failure> {
    let meter = Meter::start();
    let reached = rates::search(connections, queries, WINDOW, WINDOWS).await?;
    Ok((reached, meter.usage()))
}

/// How a data set's neighbors are told, in the words of SQL.
struct Metric {
    name: &'static str,
    operator: &'static str,
    operator_class: &'static str,
}

const L2: Metric = Metric { name: "l2", operator: "<->", operator_class: "vector_l2_ops" };
const COSINE: Metric = Metric { name: "cosine", operator: "<=>", operator_class: "vector_cosine_ops" };

/// What is asked, the true answers, and where the rows are.
struct Dataset {
    name: String,
    folder: PathBuf,
    metric: Metric,
    rows: usize,
    dim: usize,
    queries: Arc<Queries>,
    /// By the bound of `u`.
    filtered: Vec<(u32, Arc<Queries>)>,
}

impl Dataset {
    fn open(name: &str) -> Result<Self, Failure> {
        let metric = match name {
            "minilm" | "large" => COSINE,
            "fashion" => L2,
            _ => return Err(format!("there is no data set {name}; {USAGE}").into()),
        };
        let folder = root().join("data").join(name);
        let base = Npy::open(&folder.join("base.npy"), FLOATS)?;
        let (rows, dim) = (base.rows, base.width);
        let query = Npy::open(&folder.join("query.npy"), FLOATS)?;
        if query.width != dim {
            return Err(
                format!("queries have {} dimensions and rows {dim}; make both anew with prep.py", query.width).into()
            );
        }
        let vectors = query.values(f32::from_le_bytes)?;
        let queries = |file: &str, count_max: usize| -> Result<Arc<Queries>, Failure> {
            let truth = Npy::open(&folder.join(file), INTEGERS)?;
            let (count, width) = (truth.rows.min(count_max), truth.width);
            if width < K {
                return Err(format!("{file} names {width} neighbors of a query, fewer than {K}").into());
            }
            let truth = truth.values(i32::from_le_bytes)?;
            let nearest = truth.chunks(width).map(|ids| ids[..K].iter().copied().map(i64::from).collect::<Vec<_>>());
            let vectors = vectors.chunks(dim).take(count).map(<[f32]>::to_vec).collect::<Vec<_>>();
            let nearest = nearest.take(vectors.len()).collect();
            Ok(Arc::new(Queries { vectors, nearest }))
        };
        let mut filtered = vec![];
        for bound in BOUNDS {
            filtered.push((bound, queries(&format!("gt_u{bound}.npy"), FILTERED_QUERIES_MAX)?));
        }
        let queries = queries("gt.npy", QUERIES_MAX)?;
        Ok(Self { name: name.to_owned(), folder, metric, rows, dim, queries, filtered })
    }

    /// The search, among the rows that the predicate keeps.
    fn sql(&self, predicate: &str) -> String {
        format!("SELECT id, name, u, released FROM docs {predicate} ORDER BY emb {} $1 LIMIT {K}", self.metric.operator)
    }
}

/// The folder of data and results.
fn root() -> PathBuf {
    let root = std::env::var_os("ANNBENCH").unwrap_or_else(|| "annbench".into());
    // Cargo runs a bench in the folder of its package, wherever it was called itself.
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(root)
}

/// The rows of a data set; a row's id is its place.
struct Rows {
    dim: usize,
    base: Vec<f32>,
    u: Vec<i32>,
}

impl Rows {
    fn read(dataset: &Dataset) -> Result<Self, Failure> {
        let base = Npy::open(&dataset.folder.join("base.npy"), FLOATS)?.values(f32::from_le_bytes)?;
        let u = Npy::open(&dataset.folder.join("u.npy"), INTEGERS)?.values(i32::from_le_bytes)?;
        if u.len() != dataset.rows {
            return Err(format!("u.npy has {} rows and base.npy {}", u.len(), dataset.rows).into());
        }
        Ok(Self { dim: dataset.dim, base, u })
    }

    /// Some of the rows, copied: a slice of all would count as large as all.
    fn batch(&self, rows: Range<usize>) -> Result<RecordBatch, Failure> {
        let ids = i64::try_from(rows.start)?..i64::try_from(rows.end)?;
        let values = self.base[rows.start * self.dim..rows.end * self.dim].to_vec();
        let columns: [(&str, ArrayRef); 5] = [
            ("id", Arc::new(Int64Array::from_iter_values(ids.clone()))),
            ("name", Arc::new(StringArray::from_iter_values(ids.clone().map(|id| format!("package {id}"))))),
            ("u", Arc::new(Int32Array::from(self.u[rows].to_vec()))),
            ("released", Arc::new(Int64Array::from_iter_values(ids.map(|id| 1_500_000_000 + id)))),
            ("emb", Arc::new(vectors_of(Float32Array::from(values), self.dim)?)),
        ];
        Ok(RecordBatch::try_from_iter(columns)?)
    }
}

/// An array of one or two dimensions in a file of NumPy's, its elements 4 bytes each, in C order.
struct Npy {
    file: BufReader<File>,
    rows: usize,
    width: usize,
}

impl Npy {
    fn open(path: &Path, element: &str) -> Result<Self, Failure> {
        const BUFFER_BYTES: usize = 1 << 20;
        let place = path.display();
        let file = File::open(path)
            .map_err(|error| format!("{place}: {error}; benches/README.md says what is in the folder"))?;
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut start = [0_u8; 8];
        file.read_exact(&mut start)?;
        if !start.starts_with(b"\x93NUMPY") {
            return Err(format!("{place} is no npy file").into());
        }
        // The length of the head has two bytes in version 1 and four in later ones.
        let mut length = [0_u8; 4];
        file.read_exact(&mut length[..if start[6] == 1 { 2 } else { 4 }])?;
        let mut head = vec![0_u8; u32::from_le_bytes(length) as usize];
        file.read_exact(&mut head)?;
        let head = String::from_utf8(head)?;
        let shape = head.split("'shape': (").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
        let lengths = shape.split(',').map(str::trim).filter(|length| !length.is_empty()).map(str::parse::<usize>);
        let is_plain = head.contains(element) && head.contains("'fortran_order': False");
        match lengths.collect::<Result<Vec<_>, _>>()?.as_slice() {
            [rows] if is_plain => Ok(Self { file, rows: *rows, width: 1 }),
            [rows, width] if is_plain => Ok(Self { file, rows: *rows, width: *width }),
            _ => Err(format!("{place} holds {head}, not {element} in C order").into()),
        }
    }

    /// All elements; `of` makes one of its bytes.
    fn values<T>(mut self, of: impl Fn([u8; 4]) -> T) -> Result<Vec<T>, Failure> {
        let mut values = Vec::with_capacity(self.rows * self.width);
        let mut row = vec![0_u8; self.width * 4];
        for _ in 0..self.rows {
            self.file.read_exact(&mut row)?;
            values.extend(row.as_chunks::<4>().0.iter().map(|bytes| of(*bytes)));
        }
        Ok(values)
    }
}

/// What a row is of.
struct Title<'a> {
    kind: &'a str,
    config: &'a str,
}

/// The file of our rows, and what is the same in each of them.
struct Results {
    file: File,
    head: String,
}

impl Results {
    fn open(dataset: &Dataset) -> Result<Self, Failure> {
        let folder = root().join("results");
        std::fs::create_dir_all(&folder)?;
        let file = OpenOptions::new().create(true).append(true).open(folder.join("sagitta.jsonl"))?;
        let (version, Dataset { name, rows, dim, .. }) = (env!("CARGO_PKG_VERSION"), dataset);
        let head =
            format!(r#""peer": "sagitta", "version": "{version}", "dataset": "{name}", "n": {rows}, "dim": {dim}"#);
        Ok(Self { file, head })
    }

    /// Prints and appends a row. The values of `fields` are JSON.
    fn emit(&mut self, title: &Title, fields: &[(&str, String)]) -> Result<(), Failure> {
        let Title { kind, config } = title;
        let ts = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let fields: String = fields.iter().map(|(name, value)| format!(r#", "{name}": {value}"#)).collect();
        let row = format!(r#"{{{}, "ts": {ts}, "kind": "{kind}", "config": "{config}"{fields}}}"#, self.head);
        println!("{row}");
        Ok(writeln!(self.file, "{row}")?)
    }
}

/// A text of ours as JSON: none holds what must be escaped.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn decimal(value: f64, places: usize) -> String {
    format!("{value:.places$}")
}

fn milliseconds(time: Duration) -> String {
    decimal(time.as_secs_f64() * 1e3, 4)
}

/// Processor time from now on.
struct Meter {
    start: Instant,
    own_seconds: f64,
    busy_seconds: f64,
}

/// What a piece of work took.
struct Usage {
    seconds: f64,
    /// Processor time of this process.
    own_seconds: f64,
    /// Processor time of all others.
    other_seconds: f64,
}

impl Meter {
    fn start() -> Self {
        Self { own_seconds: own_seconds(), busy_seconds: busy_seconds(), start: Instant::now() }
    }

    fn usage(&self) -> Usage {
        let seconds = self.start.elapsed().as_secs_f64();
        let own_seconds = own_seconds() - self.own_seconds;
        let other_seconds = (busy_seconds() - self.busy_seconds - own_seconds).max(0.0);
        Usage { seconds, own_seconds, other_seconds }
    }
}

impl Usage {
    fn own_cores(&self) -> f64 {
        self.own_seconds / self.seconds
    }

    fn other_cores(&self) -> f64 {
        self.other_seconds / self.seconds
    }
}

/// Processor time of this process, where Linux tells it.
fn own_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ticks(stat.rsplit(')').next().unwrap_or_default(), 11..13) / TICKS_PER_SECOND
}

/// Processor time of all processes: user, nice and system, interrupts, and what the host took.
fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    (ticks(line, 1..4) + ticks(line, 6..9)) / TICKS_PER_SECOND
}

/// What Linux calls USER_HZ, the same on all machines that we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// The sum of some of the words of a line.
fn ticks(line: &str, words: Range<usize>) -> f64 {
    line.split_whitespace().skip(words.start).take(words.len()).filter_map(|word| word.parse::<f64>().ok()).sum()
}

/// Memory of this process that is in RAM, where Linux tells it.
fn resident_mb() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    ticks(&statm, 1..2) * 4_096.0 / f64::from(1 << 20)
}
