//! Runs every file of `sql/` through the engine, once in memory, once on local disk, and once over Flight SQL: a server
//! and a client of ours, for each connection a session of its own.
//!
//! A file is a list of records in the sqllogictest form: a statement or a query, and what it must give. The files
//! are the manual of the engine, so the expected values are computed by hand or by another program, never copied
//! from the engine unread. `cargo test --release --test logic -- search` runs the files whose name holds
//! `search`; `-- --complete` writes the engine's present answers into the files, to be read as a diff.
//! What SQL cannot reach is tested in `e2e.rs`, what needs the binary in `e2e/`.
//!
//! In the SQL, `$__TEST_DIR__` is an empty directory of this run and `$__FIXTURES__` is `tests/fixtures`.
//! Types of columns: `I` integer, `R` float, `N` decimal, `T` text, `B` boolean, `D` date, time or interval,
//! `V` vector (a list of fixed length), `L` list, `?` anything else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "logic/records.rs"]
mod records;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use engine::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use engine::arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Float64Type, Schema, UInt8Type};
use engine::arrow::util::display::{ArrayFormatter, FormatOptions};
use engine::{Answer, Engine, EngineOptions, Session};
use records::{Expected, Record};
use server::{Client, ConnectOptions, ServerOptions};

fn main() -> ExitCode {
    let mut complete = false;
    let mut wanted = vec![];
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--complete" => complete = true,
            other if other.starts_with("--") => {} // `cargo test` hands its own options to every binary
            other => wanted.push(other.to_owned()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(16 << 20)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut figures = Figures::default();
    for file in files(&wanted) {
        let places: &[Place] = if complete { &[Place::Memory] } else { &[Place::Memory, Place::Disk, Place::Flight] };
        for place in places {
            runtime.block_on(run_file(&file, *place, complete, &mut figures));
        }
    }
    let Figures { files, records, failures } = figures;
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    println!("\nlogic result: {verdict}. {files} runs of files, {records} records, {} failed", failures.len());
    for failure in &failures {
        println!("  {failure}");
    }
    if failures.is_empty() && records > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Figures {
    files: usize,
    records: usize,
    failures: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Memory,
    Disk,
    Flight,
}

/// A session, here or on a server.
enum Connected {
    Local(Session),
    Remote(Client),
}

impl Connected {
    async fn execute(&self, sql: &str) -> Result<Answer, engine::Error> {
        match self {
            Self::Local(session) => session.execute(sql).await,
            Self::Remote(client) => client.execute(sql).await,
        }
    }
}

/// A server on a port of its own; it ends with the runtime.
async fn serve(engine: &Engine) -> String {
    let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), http: None, ..ServerOptions::default() };
    let listener = server::bind(&options).await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(server::serve_on(listener, engine.clone(), options, std::future::pending()));
    format!("grpc://{address}")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// The `.slt` files of `sql/` whose name holds one of `wanted`, or all, in order of name.
fn files(wanted: &[String]) -> Vec<PathBuf> {
    let folder = root().join("sql");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry of sql/").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "slt"))
        .filter(|path| wanted.is_empty() || wanted.iter().any(|part| path.to_string_lossy().contains(part.as_str())))
        .collect();
    files.sort();
    files
}

async fn run_file(file: &Path, place: Place, complete: bool, figures: &mut Figures) {
    let began = Instant::now();
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let location = match place {
        Place::Memory | Place::Flight => "memory:".to_owned(),
        Place::Disk => scratch.path().join("database").to_string_lossy().into_owned(),
    };
    let engine = Engine::open(&location, EngineOptions::default()).await.expect("an empty database opens");
    let test_dir = scratch.path().join("files");
    std::fs::create_dir(&test_dir).expect("an empty directory");
    let uri = if matches!(place, Place::Flight) { Some(serve(&engine).await) } else { None };
    let mut sessions: HashMap<String, Connected> = HashMap::new();
    let name = file.file_name().expect("a file").to_string_lossy().into_owned();
    let records = records::read(file).unwrap_or_else(|error| panic!("{error}"));
    let (mut failed, mut answers) = (0, vec![]);
    for record in &records {
        if !sessions.contains_key(&record.connection) {
            let connected = match &uri {
                // Who a client is, the server is not asked here: users have sessions of the engine.
                Some(uri) if !record.connection.starts_with("user:") => {
                    let options = ConnectOptions { uri: uri.clone(), ..ConnectOptions::default() };
                    Connected::Remote(Client::connect(&options).await.expect("the server answers"))
                }
                _ => Connected::Local(session_of(&engine, record).await),
            };
            sessions.insert(record.connection.clone(), connected);
        }
        let session = &sessions[&record.connection];
        let sql = record.sql.replace("$__TEST_DIR__", &test_dir.to_string_lossy());
        let sql = sql.replace("$__FIXTURES__", &root().join("tests/fixtures").to_string_lossy());
        let outcome = run(session, &sql).await;
        if let Err(difference) = check(record, &outcome) {
            failed += 1;
            println!("--- {}, {place:?}\n{}\n{difference}\n", record.place, record.sql);
            figures.failures.push(format!("{place:?}: {}", record.place));
            if let (Some(at), Outcome::Rows { rows, .. }) = (&record.rows_at, outcome) {
                answers.push((at.clone(), rows));
            }
        }
    }
    if complete {
        write_answers(file, answers);
    }
    figures.files += 1;
    figures.records += records.len();
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "{verdict:6} {name:28} {place:6?} {:4} records, {failed} failed, {:.1} s",
        records.len(),
        began.elapsed().as_secs_f32()
    );
}

/// The session of a connection that is named for the first time: `user:anna` is one of the user anna.
async fn session_of(engine: &Engine, record: &Record) -> Session {
    match record.connection.strip_prefix("user:") {
        None => engine.session(),
        Some(user) => match engine.session_as(user).await {
            Ok(session) => session,
            Err(error) => panic!("{}: {error}", record.place),
        },
    }
}

/// What a statement gave.
enum Outcome {
    Done(u64),
    Rows {
        types: String,
        rows: Vec<String>,
    },
    /// The error's text, and the hint that a shell prints below it.
    Failed(String),
}

async fn run(session: &Connected, sql: &str) -> Outcome {
    let shown = |error: engine::Error| match &error.hint {
        Some(hint) => Outcome::Failed(format!("{error} (hint: {hint})")),
        None => Outcome::Failed(error.to_string()),
    };
    let rows = match session.execute(sql).await {
        Err(error) => return shown(error),
        Ok(Answer::Done(done)) => return Outcome::Done(done.rows.unwrap_or(0)),
        Ok(Answer::Rows(rows)) => rows,
    };
    let types = kinds(&rows.schema());
    match rows.collect().await {
        Err(error) => shown(error),
        Ok(batches) => Outcome::Rows { types, rows: batches.iter().flat_map(lines).collect() },
    }
}

/// # Errors
/// What was expected and what came.
fn check(record: &Record, outcome: &Outcome) -> Result<(), String> {
    match (&record.expected, outcome) {
        (Expected::Ok, Outcome::Done(_) | Outcome::Rows { .. }) => Ok(()),
        (Expected::Count(expected), Outcome::Done(count)) if expected == count => Ok(()),
        (Expected::Error(pattern), Outcome::Failed(text)) if pattern.is_match(text) => Ok(()),
        (Expected::Error(pattern), Outcome::Failed(text)) => {
            Err(format!("expected an error with {pattern}, got: {text}"))
        }
        (Expected::Error(pattern), _) => Err(format!("expected an error with {pattern}, got none")),
        (_, Outcome::Failed(text)) => Err(format!("failed: {text}")),
        (Expected::Count(expected), Outcome::Done(count)) => Err(format!("expected {expected} rows, got {count}")),
        (Expected::Count(_), Outcome::Rows { rows, .. }) => {
            Err(format!("expected a count, got rows:\n{}", rows.join("\n")))
        }
        (Expected::Rows { .. }, Outcome::Done(count)) => Err(format!("expected rows, got a count of {count}")),
        (Expected::Rows { types: expected, .. }, Outcome::Rows { types, rows }) if expected != types => {
            Err(format!("expected columns {expected}, got {types}:\n{}", rows.join("\n")))
        }
        (Expected::Rows { rows: expected, is_sorted, .. }, Outcome::Rows { rows, .. }) => {
            let (mut expected, mut found) = (expected.clone(), rows.clone());
            if *is_sorted {
                expected.sort();
                found.sort();
            }
            if records::matches(&expected, &found) {
                return Ok(());
            }
            Err(format!("expected:\n{}\ngot:\n{}", expected.join("\n"), found.join("\n")))
        }
    }
}

/// Puts the answers, each for its range of lines, into the file.
fn write_answers(file: &Path, answers: Vec<(std::ops::Range<usize>, Vec<String>)>) {
    let text = std::fs::read_to_string(file).expect("the file was read before");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (at, rows) in answers.into_iter().rev() {
        lines.splice(at, rows);
    }
    std::fs::write(file, lines.join("\n") + "\n").expect("the file is writable");
}

/// A letter for the type of each column.
fn kinds(schema: &Schema) -> String {
    let letter = |field: &Field| match field.data_type() {
        kind if kind.is_integer() => 'I',
        kind if kind.is_floating() => 'R',
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => 'N',
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => 'T',
        DataType::Boolean => 'B',
        kind if kind.is_temporal() => 'D',
        DataType::FixedSizeList(..) => 'V',
        DataType::List(..) | DataType::LargeList(..) => 'L',
        _ => '?',
    };
    schema.fields().iter().map(|field| letter(field)).collect()
}

/// The rows of a batch as text. A cell of several lines (a plan) becomes a row per line.
fn lines(batch: &RecordBatch) -> Vec<String> {
    let schema = batch.schema();
    let mut rows = vec![];
    for row in 0..batch.num_rows() {
        let texts: Vec<String> =
            (0..batch.num_columns()).map(|column| cell(batch.column(column), schema.field(column), row)).collect();
        rows.extend(texts.join(" ").lines().map(str::to_owned));
    }
    rows
}

/// One value: floats by their shortest text, vectors as `[1,2,3]`, bits as `0110`, no text at all as `(empty)`.
fn cell(array: &ArrayRef, field: &Field, row: usize) -> String {
    if array.is_null(row) {
        return "NULL".to_owned();
    }
    let is_bits = field.metadata().get("sagitta:type").is_some_and(|kind| kind == "bit");
    match array.data_type() {
        DataType::Float16 => float(f64::from(array.as_primitive::<Float16Type>().value(row).to_f32())),
        DataType::Float32 => {
            let value = array.as_primitive::<Float32Type>().value(row);
            if value == 0.0 || (1e-5..1e16).contains(&value.abs()) { format!("{value}") } else { format!("{value:e}") }
        }
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::FixedSizeList(..) if is_bits => {
            let bytes = array.as_fixed_size_list().value(row);
            bytes.as_primitive::<UInt8Type>().values().iter().map(|byte| format!("{byte:08b}")).collect()
        }
        DataType::FixedSizeList(child, _) => list(&array.as_fixed_size_list().value(row), child),
        DataType::List(child) => list(&array.as_list::<i32>().value(row), child),
        DataType::LargeList(child) => list(&array.as_list::<i64>().value(row), child),
        _ => {
            let formatter = ArrayFormatter::try_new(array.as_ref(), &FormatOptions::default()).expect("a formatter");
            let text = formatter.value(row).to_string();
            if text.is_empty() { "(empty)".to_owned() } else { text }
        }
    }
}

fn list(values: &ArrayRef, field: &Field) -> String {
    let texts: Vec<String> = (0..values.len()).map(|row| cell(values, field, row)).collect();
    format!("[{}]", texts.join(","))
}

fn float(value: f64) -> String {
    if value == 0.0 || !value.is_finite() || (1e-5..1e16).contains(&value.abs()) {
        format!("{value}")
    } else {
        format!("{value:e}")
    }
}
