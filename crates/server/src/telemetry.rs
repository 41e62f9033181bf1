//! The log and the traces of a process: where they go and in which form. What is logged is in the modules that do the
//! work.
//!
//! A span that is to be seen in the log must pass its filter: the spans of statements are on level `info`.
//! Headers, and with them passwords and tokens, are what libraries below us log of the wire on `debug` and `trace`.
//! These never come out, whatever the filter says.

use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use serde::Serializer;
use serde::ser::SerializeMap;
use tracing::dispatcher::WeakDispatch;
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber, span};
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// What the log shows if nothing else is said. Lance tells of every file on `info`.
pub const FILTER_DEFAULT: &str = "info,lance=warn";
/// How the server names itself in traces, if nothing else is said.
pub const SERVICE_NAME_DEFAULT: &str = "sagitta";

/// How long one batch of spans may take to be sent.
const EXPORT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the last spans may take to be sent at the end.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// Our crates: their spans are traced down to `debug`, those of others to `info`.
const OURS: [&str; 6] = ["sagitta", "server", "engine", "operators", "planner", "storage"];
/// Crates that log what goes over the wire, headers included, by the start of their names. `log` stands for every
/// crate that uses the older facade: it hides which.
const WIRE: [&str; 13] = [
    "h2",
    "http",
    "hyper",
    "tonic",
    "tower",
    "axum",
    "reqwest",
    "rustls",
    "aws_",
    "opendal",
    "object_store",
    "opentelemetry",
    "log",
];

/// What is logged, and where traces go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Levels by module, as `tracing` writes them: `info,storage=debug`.
    pub filter: String,
    pub format: LogFormat,
    /// Where an OpenTelemetry collector takes traces over gRPC, such as `http://localhost:4317`; nowhere if absent.
    pub otlp_endpoint: Option<String>,
    /// How the server names itself in traces.
    pub service_name: String,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line: `timestamp`, `level`, `target`, `message`, the fields of the event and of all spans
    /// around it, `span` (the name of the innermost) and `trace_id`.
    Json,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            filter: FILTER_DEFAULT.to_owned(),
            format: LogFormat::Text,
            otlp_endpoint: None,
            service_name: SERVICE_NAME_DEFAULT.to_owned(),
        }
    }
}

/// Keeps traces going; sends the last of them when it is dropped, for two seconds at most.
#[derive(Debug)]
#[must_use = "dropping it ends the traces"]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

impl TelemetryGuard {
    /// Ends at once: what was not sent is lost.
    pub fn abandon(mut self) {
        // Dropping the last provider would send, too.
        std::mem::forget(self.provider.take());
    }
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_TIME_MAX)
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Sends the log of this process to standard error, and its traces to a collector if there is one.
///
/// Call it once, within a tokio runtime of several threads that lives longer than the guard. A collector that does not
/// answer costs nothing but its spans: they wait in a bounded queue and are dropped when it is full.
///
/// # Errors
/// A filter or an endpoint that cannot be read; a log that was started before.
pub fn start(options: &LogOptions) -> Result<TelemetryGuard, String> {
    let provider = options.otlp_endpoint.as_deref().map(|endpoint| provider(endpoint, options)).transpose()?;
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    subscriber(options, std::io::stderr, color, provider.as_ref())?
        .try_init()
        .map_err(|error| format!("cannot start the log: {error}"))?;
    Ok(TelemetryGuard { provider })
}

fn provider(endpoint: &str, options: &LogOptions) -> Result<SdkTracerProvider, String> {
    if !endpoint.starts_with("http://") {
        return Err(format!(
            "cannot send traces to {endpoint:?}: expected http://HOST:PORT of a collector, such as http://localhost:4317; encrypted ones are not supported, run a collector on this machine"
        ));
    }
    if tokio::runtime::Handle::try_current().is_err() {
        return Err("traces can be sent only from within a runtime".to_owned());
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIME_MAX)
        .build()
        .map_err(|error| format!("cannot send traces to {endpoint:?}: {error}"))?;
    let resource = Resource::builder().with_service_name(options.service_name.clone());
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(ToldExporter { exporter, fails: AtomicBool::new(false) })
        .with_resource(resource.with_attribute(version).build())
        .build())
}

/// An exporter whose failures are in the log: once when they begin, once when they end.
#[derive(Debug)]
struct ToldExporter {
    exporter: opentelemetry_otlp::SpanExporter,
    fails: AtomicBool,
}

impl SpanExporter for ToldExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let failed_before = self.fails.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !failed_before => {
                tracing::warn!(%error, "traces cannot be sent and are dropped; check log.otlp_endpoint and its collector");
            }
            Ok(()) if failed_before => tracing::info!("traces are sent again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Everything that listens to spans and events, with the log going to `writer`.
fn subscriber<W>(
    options: &LogOptions,
    writer: W,
    color: bool,
    provider: Option<&SdkTracerProvider>,
) -> Result<impl Subscriber + Send + Sync + use<W>, String>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&options.filter).map_err(|error| {
        format!(
            "the filter of the log {:?} cannot be read: {error}; write info, debug or info,storage=debug",
            options.filter
        )
    })?;
    // The filters are outside, also around a layer that is not there: a layer without one would have the fields of every
    // hidden event made.
    let (is_on, level_max) = if provider.is_some() { (true, LevelFilter::DEBUG) } else { (false, LevelFilter::OFF) };
    let traces = provider
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer("sagitta")))
        .with_filter(filter_fn(move |metadata| is_on && is_traced(metadata)).with_max_level_hint(level_max));
    let trace_ids = TraceIds::default();
    let log = match options.format {
        LogFormat::Text => tracing_subscriber::fmt::layer().with_ansi(color).with_writer(writer).boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines { trace_ids: trace_ids.clone() })
            .with_writer(writer)
            .boxed(),
    };
    let log = log.with_filter(filter.and(filter_fn(is_no_secret)));
    let trace_ids = trace_ids.with_filter(LevelFilter::OFF);
    Ok(tracing_subscriber::registry().with(log).with(trace_ids).with(traces))
}

/// Whether it can be logged: nothing of the wire below `info`.
fn is_no_secret(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || !is_of_wire(metadata.target())
}

fn is_traced(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let is_ours = OURS.contains(&target.split("::").next().unwrap_or_default());
    // The exporter's own calls would be traced, sent, and traced again.
    !is_of_wire(target) && *metadata.level() <= if is_ours { Level::DEBUG } else { Level::INFO }
}

fn is_of_wire(target: &str) -> bool {
    WIRE.iter().any(|start| target.starts_with(start))
}

/// Knows the trace of a span: it keeps the subscriber of which it is a part, which alone can be asked.
#[derive(Debug, Clone, Default)]
struct TraceIds(Arc<OnceLock<WeakDispatch>>);

impl<S: Subscriber> Layer<S> for TraceIds {
    fn on_register_dispatch(&self, subscriber: &Dispatch) {
        // Registered once: a layer is part of one subscriber.
        let _ = self.0.set(subscriber.downgrade());
    }
}

impl TraceIds {
    /// The trace of a span, in hexadecimal; nothing if traces go nowhere.
    fn of(&self, span: &span::Id) -> Option<String> {
        let context = tracing_opentelemetry::get_otel_context(span, &self.0.get()?.upgrade()?)?;
        let span_context = context.span().span_context().clone();
        span_context.is_valid().then(|| span_context.trace_id().to_string())
    }
}

/// Writes [`LogFormat::Json`].
struct JsonLines {
    trace_ids: TraceIds,
}

impl<S> FormatEvent<S, JsonFields> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        let span = event.parent().and_then(|id| context.span(id)).or_else(|| context.lookup_current());
        // Before the extensions of any span are read: it needs them for itself.
        let trace_id = span.as_ref().and_then(|span| self.trace_ids.of(&span.id()));
        for span in span.iter().flat_map(|span| span.scope().from_root()) {
            if let Some(formatted) = span.extensions().get::<FormattedFields<JsonFields>>() {
                fields.add_json(&formatted.fields);
            }
        }
        event.record(&mut fields);
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let line = Line {
            timestamp,
            level: event.metadata().level().as_str(),
            target: fields.take_text("log.target").unwrap_or_else(|| event.metadata().target().to_owned()),
            message: fields.take_text("message").unwrap_or_default(),
            span: span.as_ref().map(|span| span.name()),
            trace_id,
        };
        writeln!(writer, "{}", line.to_json(&fields).map_err(|_| fmt::Error)?)
    }
}

/// The parts that every line has, in their order.
struct Line {
    timestamp: String,
    level: &'static str,
    target: String,
    message: String,
    span: Option<&'static str>,
    trace_id: Option<String>,
}

impl Line {
    fn to_json(&self, fields: &Fields) -> Result<String, serde_json::Error> {
        let mut bytes = vec![];
        let mut serializer = serde_json::Serializer::new(&mut bytes);
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry("timestamp", &self.timestamp)?;
        line.serialize_entry("level", self.level)?;
        line.serialize_entry("target", &self.target)?;
        line.serialize_entry("message", &self.message)?;
        for (name, value) in &fields.0 {
            let is_ours = matches!(name.as_str(), "timestamp" | "level" | "target" | "span" | "trace_id");
            match name.as_str() {
                name if is_ours => line.serialize_entry(&format!("field.{name}"), value)?,
                name if name.starts_with("log.") => {}
                name => line.serialize_entry(name, value)?,
            }
        }
        if let Some(span) = self.span {
            line.serialize_entry("span", span)?;
        }
        if let Some(trace_id) = &self.trace_id {
            line.serialize_entry("trace_id", trace_id)?;
        }
        line.end()?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The fields of an event and of the spans around it; the innermost wins.
#[derive(Default)]
struct Fields(std::collections::BTreeMap<String, serde_json::Value>);

impl Fields {
    /// Adds the members of a JSON object, as `JsonFields` writes them for a span.
    fn add_json(&mut self, text: &str) {
        if let Ok(serde_json::Value::Object(members)) = serde_json::from_str(text) {
            self.0.extend(members);
        }
    }

    fn take_text(&mut self, name: &str) -> Option<String> {
        match self.0.remove(name)? {
            serde_json::Value::String(text) => Some(text),
            other => Some(other.to_string()),
        }
    }

    fn put(&mut self, field: &Field, value: impl Into<serde_json::Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Mutex, PoisonError};
    use std::time::Instant;

    use super::*;

    /// A log that is kept.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `work` logs. One at a time: what a place in the code is asked for is known for the whole process.
    fn logged(options: &LogOptions, provider: Option<&SdkTracerProvider>, work: impl FnOnce()) -> String {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = subscriber(options, move || writer.clone(), false, provider).unwrap();
        tracing::subscriber::with_default(subscriber, work);
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    fn options(filter: &str, format: LogFormat) -> LogOptions {
        LogOptions { filter: filter.to_owned(), format, ..LogOptions::default() }
    }

    fn json_lines(log: &str) -> Vec<serde_json::Value> {
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_of_json_has_the_fields_of_the_event_and_of_its_spans() {
        let log = logged(&options("info", LogFormat::Json), None, || {
            let session = tracing::info_span!("session", user = "ada", rows = 1);
            let _inside = session.enter();
            let statement = tracing::info_span!("statement", query_id = tracing::field::Empty);
            statement.record("query_id", "q-7");
            let _inside = statement.enter();
            tracing::info!(rows = 3, level = "odd", ratio = 0.5, warm = true, "the \"end\"\nof it");
        });
        let line = &json_lines(&log)[0];
        for (name, value) in [
            ("level", serde_json::json!("INFO")),
            ("message", serde_json::json!("the \"end\"\nof it")),
            ("user", serde_json::json!("ada")),
            ("query_id", serde_json::json!("q-7")),
            ("rows", serde_json::json!(3)),
            ("ratio", serde_json::json!(0.5)),
            ("warm", serde_json::json!(true)),
            ("field.level", serde_json::json!("odd")),
            ("span", serde_json::json!("statement")),
            ("trace_id", serde_json::Value::Null),
        ] {
            assert_eq!(line[name], value, "{name} in {log}");
        }
        assert!(log.starts_with("{\"timestamp\":\"20"), "{log}");
        assert!(line["target"].as_str().unwrap().starts_with("server::"), "{log}");
    }

    #[test]
    fn lines_of_one_trace_have_its_id() {
        let provider = SdkTracerProvider::builder().build();
        let log = logged(&options("info", LogFormat::Json), Some(&provider), || {
            tracing::info!("outside");
            let _inside = tracing::info_span!("statement").entered();
            tracing::info!("one");
            let _deeper = tracing::info_span!("stage").entered();
            tracing::info!("two");
        });
        let lines = json_lines(&log);
        assert_eq!(lines[0]["trace_id"], serde_json::Value::Null);
        assert_eq!(lines[1]["trace_id"].as_str().map(str::len), Some(32), "{log}");
        assert_eq!(lines[1]["trace_id"], lines[2]["trace_id"]);
    }

    #[test]
    fn headers_are_not_logged_whatever_the_filter_says() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let log = logged(&options("trace", format), None, || {
                tracing::debug!(target: "h2::codec::framed_write", headers = "authorization: Bearer secret", "send");
                tracing::trace!(target: "hyper_util::client", "secret");
                tracing::debug!(target: "aws_sigv4::http_request", "secret");
                tracing::debug!(target: "log", "secret");
                tracing::warn!(target: "h2::proto", "connection lost");
                tracing::trace!(target: "storage::scan", "a batch");
            });
            assert!(!log.contains("secret"), "{log}");
            assert!(log.contains("connection lost") && log.contains("a batch"), "{log}");
        }
    }

    #[test]
    fn what_the_filter_hides_is_not_made() {
        let made = std::cell::Cell::new(0);
        let make = |rows: u64| made.replace(made.get() + 1) + rows;
        let log = logged(&options("warn,storage=debug", LogFormat::Text), None, || {
            tracing::info!(target: "engine", rows = make(1), "hidden");
            tracing::trace!(target: "storage::scan", rows = make(1), "hidden");
            tracing::debug!(target: "storage::scan", rows = make(1), "shown");
        });
        assert!(!log.contains("hidden") && log.contains("shown"), "{log}");
        assert_eq!(made.get(), 1);
    }

    #[test]
    fn wrong_options_say_what_to_write() {
        let message = subscriber(&options("info,storage=loud", LogFormat::Text), io::sink, false, None).err().unwrap();
        assert!(message.contains("storage=loud") && message.contains("storage=debug"), "{message}");
        let to = |endpoint: &str| LogOptions { otlp_endpoint: Some(endpoint.to_owned()), ..LogOptions::default() };
        for endpoint in ["localhost:4317", "https://collector:4317", ""] {
            let message = start(&to(endpoint)).unwrap_err();
            assert!(message.contains("http://localhost:4317"), "{message}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_collector_that_does_not_answer_blocks_nothing() {
        // It is connected to, and says nothing.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let options = options("off", LogFormat::Json);
        let guard = TelemetryGuard { provider: Some(provider(&endpoint, &options).unwrap()) };
        let began = Instant::now();
        logged(&options, guard.provider.as_ref(), || {
            for query in 0..20_000 {
                let _inside = tracing::info_span!("statement", query).entered();
            }
        });
        assert!(began.elapsed() < Duration::from_secs(10), "{:?} for spans that go nowhere", began.elapsed());
        let began = Instant::now();
        tokio::task::spawn_blocking(move || drop(guard)).await.unwrap();
        assert!(began.elapsed() < FLUSH_TIME_MAX * 4, "{:?} for the last spans", began.elapsed());
    }
}
