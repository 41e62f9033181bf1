//! The figures of a server, each declared once with its unit and its help text, in the text form of OpenMetrics.
//! Here they are counted and written; who counts what is in the modules that do the work.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use engine::EngineFigures;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// The type of [`Metrics::encode`] for an HTTP header.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the histogram of statements, in seconds: from a warm search to a long report.
const STATEMENT_SECONDS: [f64; 18] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

/// What a statement is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatementKind {
    /// It gives rows.
    Query,
    /// It changes rows or the catalog.
    Update,
    /// Rows are sent to be stored.
    Ingest,
    /// A client asks for tables, types or keys.
    Metadata,
}

/// How a statement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatementOutcome {
    Ok,
    Error,
    /// The client, `KILL` or a deadline ended it, or its client went away.
    Cancelled,
    /// It never ran: a limit was reached, or the server drains.
    Refused,
}

impl StatementKind {
    /// Every kind.
    pub const ALL: [StatementKind; 4] =
        [StatementKind::Query, StatementKind::Update, StatementKind::Ingest, StatementKind::Metadata];

    /// The value of the label `kind`.
    pub fn name(self) -> &'static str {
        match self {
            StatementKind::Query => "query",
            StatementKind::Update => "update",
            StatementKind::Ingest => "ingest",
            StatementKind::Metadata => "metadata",
        }
    }
}

impl StatementOutcome {
    /// The outcome of a statement that ended with this code.
    pub fn of_code(code: tonic::Code) -> Self {
        match code {
            tonic::Code::Ok => Self::Ok,
            tonic::Code::Cancelled | tonic::Code::DeadlineExceeded => Self::Cancelled,
            _ => Self::Error,
        }
    }

    /// Every outcome.
    pub const ALL: [StatementOutcome; 4] =
        [StatementOutcome::Ok, StatementOutcome::Error, StatementOutcome::Cancelled, StatementOutcome::Refused];

    /// The value of the label `outcome`.
    pub fn name(self) -> &'static str {
        match self {
            StatementOutcome::Ok => "ok",
            StatementOutcome::Error => "error",
            StatementOutcome::Cancelled => "cancelled",
            StatementOutcome::Refused => "refused",
        }
    }
}

impl EncodeLabelValue for StatementKind {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

impl EncodeLabelValue for StatementOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

/// The figures of one server. Cheap to clone: every clone counts into the same figures.
#[derive(Debug, Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    statements: Family<StatementLabels, Counter>,
    statement_seconds: Family<KindLabels, Histogram, fn() -> Histogram>,
    statements_running: Gauge,
    statements_queued: Gauge,
    sessions: Gauge,
    handles: Gauge,
    rows_sent: Counter,
    bytes_sent: Counter,
    rows_ingested: Counter,
    errors: Family<ErrorLabels, Counter>,
    engine: EngineSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatementLabels {
    kind: StatementKind,
    outcome: StatementOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: StatementKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    code: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Figures that all stand at zero. Made when the process starts: its start time is now.
    pub fn new() -> Self {
        let mut inner = Inner {
            registry: Registry::default(),
            statements: Family::default(),
            statement_seconds: Family::new_with_constructor(statement_seconds as fn() -> Histogram),
            statements_running: Gauge::default(),
            statements_queued: Gauge::default(),
            sessions: Gauge::default(),
            handles: Gauge::default(),
            rows_sent: Counter::default(),
            bytes_sent: Counter::default(),
            rows_ingested: Counter::default(),
            errors: Family::default(),
            engine: EngineSource::default(),
        };
        inner.declare();
        inner.start_at_zero();
        Self { inner: Arc::new(inner) }
    }

    /// Names who tells what the engine holds; it is asked on each scrape, so it must be quick. The first one stays.
    pub fn observe_engine(&self, figures: impl Fn() -> EngineFigures + Send + Sync + 'static) {
        // A second source of the same figures would be a mistake of ours, and harmless.
        let _ = self.inner.engine.0.set(Box::new(figures));
    }

    /// A statement starts to run; it is counted when it ends. One whose value is dropped counts as cancelled.
    pub fn statement(&self, kind: StatementKind) -> RunningStatement {
        RunningStatement {
            _running: Held::of(&self.inner.statements_running),
            metrics: self.clone(),
            kind,
            outcome: StatementOutcome::Cancelled,
            started: Instant::now(),
            is_counted: true,
        }
    }

    /// A statement was refused before it ran.
    pub fn statement_refused(&self, kind: StatementKind) {
        self.count_statement(kind, StatementOutcome::Refused);
    }

    /// A statement waits for its turn for as long as the value lives.
    pub fn queued(&self) -> Held {
        Held::of(&self.inner.statements_queued)
    }

    /// A session is open for as long as the value lives.
    pub fn session(&self) -> Held {
        Held::of(&self.inner.sessions)
    }

    /// A handle (prepared statement, result) is kept for as long as the value lives.
    pub fn handle(&self) -> Held {
        Held::of(&self.inner.handles)
    }

    /// Rows, and bytes of their encoded messages, went to a client.
    pub fn sent(&self, rows: u64, bytes: u64) {
        self.inner.rows_sent.inc_by(rows);
        self.inner.bytes_sent.inc_by(bytes);
    }

    /// Rows that a client sent were stored.
    pub fn ingested(&self, rows: u64) {
        self.inner.rows_ingested.inc_by(rows);
    }

    /// A call was answered with an error.
    pub fn error(&self, code: tonic::Code) {
        self.inner.errors.get_or_create(&ErrorLabels { code: code_name(code) }).inc();
    }

    /// Everything, in the text form of OpenMetrics ([`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail, and neither do our own collectors.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.inner.registry);
        text
    }

    fn count_statement(&self, kind: StatementKind, outcome: StatementOutcome) {
        self.inner.statements.get_or_create(&StatementLabels { kind, outcome }).inc();
    }
}

impl Inner {
    /// Names, units and help texts. Counters get `_total` behind their name, others their unit.
    fn declare(&mut self) {
        let registry = &mut self.registry;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("sagitta_build", "The version of the server", version);
        registry.register("sagitta_statements", "Statements that ended, by kind and outcome", self.statements.clone());
        registry.register_with_unit(
            "sagitta_statement",
            "How long statements ran, the sending of their rows included and the wait for their turn not, by kind",
            Unit::Seconds,
            self.statement_seconds.clone(),
        );
        registry.register("sagitta_statements_running", "Statements that run now", self.statements_running.clone());
        registry.register(
            "sagitta_statements_queued",
            "Statements that wait for their turn now",
            self.statements_queued.clone(),
        );
        registry.register("sagitta_sessions", "Sessions that are open now", self.sessions.clone());
        registry.register(
            "sagitta_handles",
            "Prepared statements and results that are kept for clients now",
            self.handles.clone(),
        );
        registry.register("sagitta_rows_sent", "Rows sent to clients", self.rows_sent.clone());
        registry.register(
            "sagitta_bytes_sent",
            "Bytes of encoded record batches sent to clients",
            self.bytes_sent.clone(),
        );
        registry.register(
            "sagitta_rows_ingested",
            "Rows that clients sent and that were stored",
            self.rows_ingested.clone(),
        );
        registry.register("sagitta_errors", "Calls answered with an error, by gRPC status code", self.errors.clone());
        registry.register_collector(Box::new(self.engine.clone()));
        registry.register_collector(Box::new(Process { started: SystemTime::now() }));
    }

    /// Makes every series of a known label: a rate needs the zero before the first event.
    fn start_at_zero(&self) {
        for kind in StatementKind::ALL {
            for outcome in StatementOutcome::ALL {
                drop(self.statements.get_or_create(&StatementLabels { kind, outcome }));
            }
            drop(self.statement_seconds.get_or_create(&KindLabels { kind }));
        }
    }
}

fn statement_seconds() -> Histogram {
    Histogram::new(STATEMENT_SECONDS)
}

/// A statement that runs; see [`Metrics::statement`].
#[derive(Debug)]
#[must_use = "dropping it counts the statement as cancelled"]
pub struct RunningStatement {
    metrics: Metrics,
    kind: StatementKind,
    outcome: StatementOutcome,
    started: Instant,
    is_counted: bool,
    _running: Held,
}

impl RunningStatement {
    /// The statement ended.
    pub fn end(mut self, outcome: StatementOutcome) {
        self.outcome = outcome;
    }

    /// It was planned alone, and is counted when its rows are fetched.
    pub fn is_yet_to_run(mut self) {
        self.is_counted = false;
    }

    /// What kind it turned out to be, if that was not known when it started.
    pub fn turned_out(&mut self, kind: StatementKind) {
        self.kind = kind;
    }
}

impl Drop for RunningStatement {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        self.metrics.count_statement(self.kind, self.outcome);
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics.inner.statement_seconds.get_or_create(&KindLabels { kind: self.kind }).observe(seconds);
    }
}

/// One more in a gauge for as long as it lives.
#[derive(Debug)]
#[must_use = "it counts for as long as it is held"]
pub struct Held {
    gauge: Gauge,
}

impl Held {
    fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self { gauge: gauge.clone() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

type ReadEngine = Box<dyn Fn() -> EngineFigures + Send + Sync>;

/// Who tells what the engine holds.
#[derive(Clone, Default)]
struct EngineSource(Arc<OnceLock<ReadEngine>>);

impl fmt::Debug for EngineSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EngineSource").field(&self.0.get().is_some()).finish()
    }
}

impl Collector for EngineSource {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(read) = self.0.get() else { return Ok(()) };
        let figures = read();
        let bytes = Some(Unit::Bytes);
        for (name, help, value) in [
            ("sagitta_memory_reserved", "Memory that running statements have reserved.", figures.memory_reserved_bytes),
            ("sagitta_memory_limit", "Memory that statements may reserve together.", figures.memory_limit_bytes),
            ("sagitta_vector_cache", "What the cache of decoded vectors holds.", figures.vector_cache_bytes),
            ("sagitta_vector_cache_max", "What the cache of decoded vectors may hold.", figures.vector_cache_bytes_max),
        ] {
            encode_one(&mut encoder, name, help, bytes.as_ref(), &ConstGauge::new(value))?;
        }
        let (name, help) = ("sagitta_memory_waiting", "Statements that wait for memory.");
        encode_one(&mut encoder, name, help, None, &ConstGauge::new(figures.memory_waiting))?;
        for (name, help, value) in [
            ("sagitta_vector_cache_hits", "Reads of vectors that the cache answered.", figures.vector_cache_hits),
            (
                "sagitta_vector_cache_misses",
                "Reads of vectors that the cache did not answer.",
                figures.vector_cache_misses,
            ),
        ] {
            encode_one(&mut encoder, name, help, None, &ConstCounter::new(value))?;
        }
        Ok(())
    }
}

/// What the operating system says about this process. A figure that it does not tell is left out.
#[derive(Debug)]
struct Process {
    started: SystemTime,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let (bytes, seconds) = (Some(Unit::Bytes), Some(Unit::Seconds));
        if let Some(resident) = resident_bytes() {
            let help = "Memory of the process that is in RAM.";
            encode_one(&mut encoder, "process_resident_memory", help, bytes.as_ref(), &ConstGauge::new(resident))?;
        }
        if let Some(open) = open_files() {
            let help = "Files and sockets that the process has open.";
            encode_one(&mut encoder, "process_open_fds", help, None, &ConstGauge::new(open))?;
        }
        let started = self.started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let help = "When the process started, since 1970 in UTC.";
        encode_one(&mut encoder, "process_start_time", help, seconds.as_ref(), &ConstGauge::new(started))
    }
}

fn encode_one(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn open_files() -> Option<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the folder that is being read.
    u64::try_from(entries.saturating_sub(1)).ok()
}

/// The name of a gRPC status code as its specification writes it.
fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of the sample whose name and labels are `series`.
    fn sample(metrics: &Metrics, series: &str) -> Option<f64> {
        let text = metrics.encode();
        let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == series))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    fn statements(metrics: &Metrics, kind: &str, outcome: &str) -> Option<f64> {
        sample(metrics, &format!("sagitta_statements_total{{kind=\"{kind}\",outcome=\"{outcome}\"}}"))
    }

    #[test]
    fn a_statement_counts_as_running_and_then_by_its_outcome() {
        let metrics = Metrics::new();
        let (query, update) = (metrics.statement(StatementKind::Query), metrics.statement(StatementKind::Query));
        assert_eq!(sample(&metrics, "sagitta_statements_running"), Some(2.0));
        query.end(StatementOutcome::Ok);
        let mut update = update;
        update.turned_out(StatementKind::Update);
        update.end(StatementOutcome::Error);
        drop(metrics.clone().statement(StatementKind::Ingest));
        metrics.statement_refused(StatementKind::Metadata);
        for (kind, outcome, count) in [
            ("query", "ok", 1.0),
            ("query", "error", 0.0),
            ("update", "error", 1.0),
            ("ingest", "cancelled", 1.0),
            ("metadata", "refused", 1.0),
        ] {
            assert_eq!(statements(&metrics, kind, outcome), Some(count), "{kind} {outcome}");
        }
        assert_eq!(sample(&metrics, "sagitta_statements_running"), Some(0.0));
        assert_eq!(sample(&metrics, "sagitta_statement_seconds_count{kind=\"query\"}"), Some(1.0));
        assert_eq!(sample(&metrics, "sagitta_statement_seconds_count{kind=\"metadata\"}"), Some(0.0));
        assert_eq!(sample(&metrics, "sagitta_statement_seconds_bucket{le=\"+Inf\",kind=\"query\"}"), Some(1.0));
    }

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        let metrics = Metrics::new();
        let held = (metrics.queued(), metrics.session(), metrics.session(), metrics.handle());
        let all =
            || ["statements_queued", "sessions", "handles"].map(|name| sample(&metrics, &format!("sagitta_{name}")));
        assert_eq!(all(), [Some(1.0), Some(2.0), Some(1.0)]);
        drop(held);
        assert_eq!(all(), [Some(0.0); 3]);
    }

    #[test]
    fn rows_bytes_and_errors_add_up() {
        let metrics = Metrics::new();
        metrics.sent(3, 400);
        metrics.sent(2, 50);
        metrics.ingested(7);
        metrics.error(tonic::Code::InvalidArgument);
        for (series, value) in [
            ("sagitta_rows_sent_total", 5.0),
            ("sagitta_bytes_sent_total", 450.0),
            ("sagitta_rows_ingested_total", 7.0),
            ("sagitta_errors_total{code=\"INVALID_ARGUMENT\"}", 1.0),
            (concat!("sagitta_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
        ] {
            assert_eq!(sample(&metrics, series), Some(value), "{series}");
        }
    }

    #[test]
    fn the_engine_is_read_on_each_scrape() {
        let metrics = Metrics::new();
        assert_eq!(sample(&metrics, "sagitta_memory_reserved_bytes"), None, "nobody tells it yet");
        let scrapes = std::sync::atomic::AtomicU64::new(0);
        metrics.observe_engine(move || EngineFigures {
            memory_reserved_bytes: 10,
            memory_limit_bytes: 20,
            memory_waiting: 3,
            vector_cache_bytes: 30,
            vector_cache_bytes_max: 40,
            vector_cache_hits: scrapes.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            vector_cache_misses: 60,
        });
        for (series, value) in [
            ("sagitta_vector_cache_hits_total", 0.0),
            ("sagitta_memory_reserved_bytes", 10.0),
            ("sagitta_memory_limit_bytes", 20.0),
            ("sagitta_memory_waiting", 3.0),
            ("sagitta_vector_cache_bytes", 30.0),
            ("sagitta_vector_cache_max_bytes", 40.0),
            ("sagitta_vector_cache_misses_total", 60.0),
            ("sagitta_vector_cache_hits_total", 7.0),
        ] {
            assert_eq!(sample(&metrics, series), Some(value), "{series}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_process_is_described() {
        let metrics = Metrics::new();
        let least = [
            ("process_resident_memory_bytes", 100_000.0),
            ("process_open_fds", 3.0),
            ("process_start_time_seconds", 1_700_000_000.0),
        ];
        for (series, least) in least {
            assert!(sample(&metrics, series).is_some_and(|value| value >= least), "{series}");
        }
    }

    #[test]
    fn every_sample_is_declared_with_help_type_and_unit() {
        let metrics = Metrics::new();
        metrics.observe_engine(EngineFigures::default);
        metrics.error(tonic::Code::Internal);
        let text = metrics.encode();
        assert!(text.ends_with("# EOF\n"), "{text}");
        let (mut name, mut kind, mut help) = (String::new(), String::new(), String::new());
        let mut declared = std::collections::BTreeSet::new();
        for line in text.lines().take_while(|line| *line != "# EOF") {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some("HELP"), Some(named), Some(text)) => {
                    assert!(declared.insert(named.to_owned()), "{named} is declared twice");
                    (name, help) = (named.to_owned(), text.to_owned());
                }
                (Some("#"), Some("TYPE"), Some(named), Some(of)) => {
                    assert_eq!(named, name);
                    kind = of.to_owned();
                }
                (Some("#"), Some("UNIT"), Some(named), Some(unit)) => {
                    assert_eq!(named, name);
                    assert!(name.ends_with(unit), "{line}");
                }
                _ => {
                    let sample = line.split(['{', ' ']).next().unwrap();
                    assert!(sample.starts_with(&name), "{line} is not declared");
                    assert!(help.len() > 10 && help.ends_with('.') && !help.ends_with(".."), "{name}: {help}");
                    assert_eq!(kind == "counter", sample.ends_with("_total"), "{line}");
                    assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}");
                }
            }
        }
        assert!(declared.len() >= 20, "{declared:?}");
    }
}
