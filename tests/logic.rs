//! Runs every file of `sql/` through the engine, once in memory and once on local disk.
//!
//! A file is a list of records in the sqllogictest form: a statement or a query, and what it must give. The files
//! are the manual of the engine, so the expected values are computed by hand or by another program, never copied
//! from the engine unread. `cargo test --release -p tests --test logic -- search` runs the files whose name holds
//! `search`; `-- --complete` writes the engine's present answers into the files, to be read as a diff.
//! What SQL cannot reach is tested in `e2e.rs`, what needs the binary in `e2e/`.
//!
//! In the SQL, `$__TEST_DIR__` is an empty directory of this run and `$__FIXTURES__` is `tests/fixtures`.
//! Types of columns: `I` integer, `R` float, `N` decimal, `T` text, `B` boolean, `D` date, time or interval,
//! `V` vector (a list of fixed length), `L` list, `?` anything else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use async_trait::async_trait;
use engine::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use engine::arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Float64Type, Schema, UInt8Type};
use engine::arrow::util::display::{ArrayFormatter, FormatOptions};
use engine::{Answer, Engine, EngineOptions, Session};
use sqllogictest::{
    AsyncDB, ColumnType, DBOutput, Record, Runner, default_normalizer, default_validator, parse_file,
    strict_column_validator,
};

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
        let places: &[Place] = if complete { &[Place::Memory] } else { &[Place::Memory, Place::Disk] };
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
        Place::Memory => "memory:".to_owned(),
        Place::Disk => scratch.path().join("database").to_string_lossy().into_owned(),
    };
    let engine = Engine::open(&location, EngineOptions::default()).await.expect("an empty database opens");
    let test_dir = scratch.path().join("files");
    std::fs::create_dir(&test_dir).expect("an empty directory");
    let names = vec![
        ("$__TEST_DIR__".to_owned(), test_dir.to_string_lossy().into_owned()),
        ("$__FIXTURES__".to_owned(), root().join("tests/fixtures").to_string_lossy().into_owned()),
    ];
    let mut runner = Runner::new(|| {
        let connection = Connection { session: engine.session(), names: names.clone() };
        async move { Ok(connection) }
    });
    runner.add_label(match place {
        Place::Memory => "memory",
        Place::Disk => "disk",
    });
    runner.with_column_validator(strict_column_validator);
    let name = file.file_name().expect("a file").to_string_lossy().into_owned();
    if complete {
        runner
            .update_test_file(file, " ", default_validator, default_normalizer, strict_column_validator)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let records = parse_file::<Kind>(file).unwrap_or_else(|error| panic!("{error}"));
    let (mut count, mut failed) = (0, 0);
    for record in records {
        if matches!(record, Record::Halt { .. }) {
            break;
        }
        count += usize::from(matches!(record, Record::Statement { .. } | Record::Query { .. }));
        if let Err(error) = runner.run_async(record).await {
            failed += 1;
            println!("--- {name}, {place:?}\n{}\n", error.display(false));
            figures.failures.push(format!("{place:?}: {}", error.location()));
        }
    }
    figures.files += 1;
    figures.records += count;
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "{verdict:6} {name:28} {place:6?} {count:4} records, {failed} failed, {:.1} s",
        began.elapsed().as_secs_f32()
    );
}

struct Connection {
    session: Session,
    names: Vec<(String, String)>,
}

/// What an error shows: its text, and the hint that a shell prints below it.
#[derive(Debug)]
struct Shown(String);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Shown {}

impl From<engine::Error> for Shown {
    fn from(error: engine::Error) -> Self {
        Shown(match &error.hint {
            Some(hint) => format!("{error} (hint: {hint})"),
            None => error.to_string(),
        })
    }
}

#[async_trait]
impl AsyncDB for Connection {
    type Error = Shown;
    type ColumnType = Kind;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Kind>, Shown> {
        let mut sql = sql.to_owned();
        for (name, value) in &self.names {
            sql = sql.replace(name, value);
        }
        match self.session.execute(&sql).await? {
            Answer::Done(done) => Ok(DBOutput::StatementComplete(done.rows.unwrap_or(0))),
            Answer::Rows(rows) => {
                let schema = rows.schema();
                let batches = rows.collect().await?;
                Ok(DBOutput::Rows { types: kinds(&schema), rows: batches.iter().flat_map(cells).collect() })
            }
        }
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "sagitta"
    }
}

/// The type of a column, as one letter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind(char);

impl ColumnType for Kind {
    fn from_char(letter: char) -> Option<Self> {
        "IRNTBDVL?".contains(letter).then_some(Kind(letter))
    }

    fn to_char(&self) -> char {
        self.0
    }
}

fn kinds(schema: &Schema) -> Vec<Kind> {
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
    schema.fields().iter().map(|field| Kind(letter(field))).collect()
}

/// The rows of a batch as text. A cell of several lines (a plan) becomes a row per line.
fn cells(batch: &RecordBatch) -> Vec<Vec<String>> {
    let schema = batch.schema();
    let mut rows = vec![];
    for row in 0..batch.num_rows() {
        let texts: Vec<String> =
            (0..batch.num_columns()).map(|column| cell(batch.column(column), schema.field(column), row)).collect();
        let joined = texts.join(" ");
        if joined.contains('\n') {
            rows.extend(joined.lines().map(|line| vec![line.to_owned()]));
        } else {
            rows.push(texts);
        }
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
