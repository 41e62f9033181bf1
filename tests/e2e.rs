//! The engine as a library: what SQL text alone cannot reach.
//!
//! Prepared statements with typed parameters, streams that are dropped, several engines on one root, the shape of
//! errors, progress, writers that race. SQL behaviour is in `sql/*.slt`; the binary, S3 and foreign programs are in `e2e/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "e2e/rights.rs"]
mod rights;
#[path = "e2e/writers.rs"]
mod writers;

use std::path::Path;
use std::sync::Arc;

use engine::arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float64Array, RecordBatch};
use engine::arrow::datatypes::{Field, Float64Type, Int64Type};
use engine::{
    Answer, Engine, EngineOptions, ErrorKind, ImportMode, ImportOptions, Progress, ScalarValue, Session, vector,
};
use futures::StreamExt;

async fn memory() -> Session {
    Engine::open("memory:", EngineOptions::default()).await.unwrap().session()
}

async fn folder(path: &Path) -> Engine {
    Engine::open(path.to_str().unwrap(), EngineOptions::default()).await.unwrap()
}

async fn run(session: &Session, sql: &str) {
    if let Err(error) = session.execute(sql).await {
        panic!("{sql}: {error}");
    }
}

async fn rows(answer: Answer) -> Vec<RecordBatch> {
    match answer {
        Answer::Rows(rows) => rows.collect().await.unwrap(),
        Answer::Done(done) => panic!("{} gives no rows", done.tag),
    }
}

async fn query(session: &Session, sql: &str) -> Vec<RecordBatch> {
    rows(session.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))).await
}

fn integers(batches: &[RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

fn list(values: ArrayRef) -> ScalarValue {
    let item = Arc::new(Field::new("item", values.data_type().clone(), true));
    let length = i32::try_from(values.len()).unwrap();
    ScalarValue::FixedSizeList(Arc::new(FixedSizeListArray::try_new(item, length, values, None).unwrap()))
}

/// A table of points on a line: row i at [i, 0].
async fn line(session: &Session, count: usize) {
    run(session, "CREATE TABLE line (id BIGINT, emb VECTOR(2))").await;
    run(session, &format!("INSERT INTO line SELECT value, ARRAY[value, 0] FROM generate_series(0, {})", count - 1))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_search_takes_its_vector_in_any_float_type() {
    let session = memory().await;
    line(&session, 100).await;
    let nearest = session.prepare("SELECT id FROM line ORDER BY emb <-> $1 LIMIT 2").await.unwrap();
    let parameters = [
        vector([40.1, 0.0]),
        list(Arc::new(Float64Array::from(vec![40.1, 0.0]))),
        ScalarValue::Utf8(Some("[40.1, 0]".to_owned())),
    ];
    for parameter in parameters {
        let found = integers(&rows(nearest.run(&[parameter]).await.unwrap()).await);
        assert_eq!(found, [40, 41]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_search_sees_rows_that_came_after_it_was_prepared() {
    let session = memory().await;
    line(&session, 10).await;
    let nearest = session.prepare("SELECT id FROM line ORDER BY emb <-> $1 LIMIT $2").await.unwrap();
    let at = |x: f32| vector([x, 0.0]);
    let first = integers(&rows(nearest.run(&[at(50.0), ScalarValue::Int64(Some(1))]).await.unwrap()).await);
    assert_eq!(first, [9]);
    run(&session, "INSERT INTO line VALUES (50, '[50, 0]')").await;
    let then = integers(&rows(nearest.run(&[at(50.0), ScalarValue::Int64(Some(2))]).await.unwrap()).await);
    assert_eq!(then, [50, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_do_not_fit_are_errors() {
    let session = memory().await;
    line(&session, 10).await;
    let nearest = session.prepare("SELECT id FROM line ORDER BY emb <-> $1 LIMIT 2").await.unwrap();
    for wrong in [
        vec![vector([1.0, 2.0, 3.0])],
        vec![],
        vec![ScalarValue::Int64(Some(1))],
        vec![ScalarValue::Utf8(Some("no".into()))],
    ] {
        let error = match nearest.run(&wrong).await {
            Err(error) => error,
            Ok(answer) => match answer {
                Answer::Rows(rows) => rows.collect().await.expect_err("wrong parameters give no rows"),
                Answer::Done(_) => panic!("a search is a query"),
            },
        };
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn distances_are_the_same_bits_in_a_search_and_in_a_select() {
    let session = memory().await;
    run(&session, "CREATE TABLE v (id BIGINT, emb VECTOR(3))").await;
    run(
        &session,
        "INSERT INTO v SELECT value, ARRAY[sin(value), cos(value * 0.7), sqrt(value)] FROM generate_series(1, 500)",
    )
    .await;
    for operator in ["<->", "<=>", "<#>", "<+>"] {
        let searched =
            query(&session, &format!("SELECT emb {operator} '[0.1, 0.2, 0.3]' AS d, id FROM v ORDER BY d LIMIT 500"))
                .await;
        let computed = query(&session, &format!("SELECT emb {operator} '[0.1, 0.2, 0.3]' AS d, id FROM v")).await;
        let pairs = |batches: &[RecordBatch]| {
            let mut pairs: Vec<(i64, u64)> = batches
                .iter()
                .flat_map(|batch| {
                    let ids = batch.column(1).as_primitive::<Int64Type>().values().to_vec();
                    let bits = batch
                        .column(0)
                        .as_primitive::<Float64Type>()
                        .values()
                        .iter()
                        .map(|d| d.to_bits())
                        .collect::<Vec<_>>();
                    ids.into_iter().zip(bits)
                })
                .collect();
            pairs.sort_unstable();
            pairs
        };
        assert_eq!(pairs(&searched), pairs(&computed), "{operator}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_rows_of_a_long_statement_ends_it() {
    let session = memory().await;
    let endless = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b";
    let Answer::Rows(mut stream) = session.execute(endless).await.unwrap() else { panic!("a query gives rows") };
    let waited = tokio::time::timeout(std::time::Duration::from_millis(200), stream.next()).await;
    assert!(waited.is_err(), "10^12 rows are not counted in 200 ms");
    drop(stream);
    // Statements of a session run one at a time: this one gets its turn only if the first is over.
    let next = tokio::time::timeout(std::time::Duration::from_secs(20), query(&session, "SELECT 1")).await;
    assert_eq!(integers(&next.expect("the session is free again")), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_on_one_folder_see_each_other() {
    let folder_of_test = tempfile::tempdir().unwrap();
    let path = folder_of_test.path().join("data");
    let (one, two) = (folder(&path).await.session(), folder(&path).await.session());
    run(&one, "CREATE TABLE t (id BIGINT)").await;
    run(&two, "INSERT INTO t VALUES (1)").await;
    run(&one, "INSERT INTO t VALUES (2)").await;
    assert_eq!(integers(&query(&two, "SELECT id FROM t ORDER BY id").await), [1, 2]);
    run(&two, "DROP TABLE t").await;
    let error = one.execute("SELECT * FROM t").await.expect_err("the table is gone");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_reads_one_version_of_a_table() {
    let engine = Engine::open("memory:", EngineOptions::default()).await.unwrap();
    let (reader, writer) = (engine.session(), engine.session());
    line(&writer, 10).await;
    let Answer::Rows(stream) = reader.execute("SELECT a.id FROM line a JOIN line b ON a.id = b.id").await.unwrap()
    else {
        panic!("a query gives rows")
    };
    run(&writer, "INSERT INTO line VALUES (10, '[10, 0]')").await;
    let seen: usize = stream.collect().await.unwrap().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(seen, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_has_a_kind_a_place_and_a_hint() {
    let session = memory().await;
    line(&session, 1).await;
    let sql = "SELECT id, ebm FROM line";
    let error = session.execute(sql).await.err().unwrap();
    assert!(matches!(error.kind, ErrorKind::Invalid | ErrorKind::NotFound), "{error}");
    assert_eq!(&sql[error.place.clone().expect("a place")], "ebm");
    assert!(error.hint.as_deref().unwrap_or_default().contains("emb"), "{:?}", error.hint);
    let kind = async |sql: &str| match session.execute(sql).await {
        Ok(answer) => answer.collect().await.err().map(|error| error.kind),
        Err(error) => Some(error.kind),
    };
    assert_eq!(kind("SELECT * FROM nowhere").await, Some(ErrorKind::NotFound));
    assert_eq!(kind("CREATE TABLE line (id INT)").await, Some(ErrorKind::AlreadyExists));
    assert_eq!(kind("DELETE FROM line LIMIT 1").await, Some(ErrorKind::Unsupported));
    assert_eq!(kind("SELECT '[1]'::VECTOR(2)").await, Some(ErrorKind::Invalid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_of_several_statements_is_split_with_their_places() {
    let session = memory().await;
    let text = "SELECT 1; -- one; not two\nSELECT ';' AS semicolon;\n";
    let statements = session.parse(text).unwrap();
    assert_eq!(statements.len(), 2);
    for statement in &statements {
        assert_eq!(
            rows(session.run(statement).await.unwrap()).await.iter().map(RecordBatch::num_rows).sum::<usize>(),
            1
        );
    }
    assert!(session.execute(text).await.is_err(), "execute takes one statement");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_reports_its_progress() {
    let session = memory().await;
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fruits.parquet");
    let progress = Progress::new();
    let options = ImportOptions {
        sources: vec![fixture.to_str().unwrap().to_owned()],
        table: "fruits".to_owned(),
        format: None,
        mode: ImportMode::Create,
    };
    assert_eq!(session.import(options, Arc::clone(&progress)).await.unwrap(), 4);
    assert_eq!(progress.rows_done(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_knows_tables_columns_functions_and_settings() {
    let session = memory().await;
    line(&session, 1).await;
    let vocabulary = session.vocabulary().await.unwrap();
    let words = vocabulary.tables.iter().find(|words| words.table == "line").expect("the table is known");
    assert_eq!((words.schema.as_str(), words.columns.as_slice()), ("public", &["id".to_owned(), "emb".to_owned()][..]));
    for function in ["l2_distance", "cosine_distance", "vector_search", "count"] {
        assert!(vocabulary.functions.iter().any(|name| name == function), "{function}");
    }
    assert!(vocabulary.settings.iter().any(|name| name == "statement_timeout"));
}
