//! Tests of the database: opening, catalog races, lost answers, tables coming and going, appends.

use std::path::Path as FsPath;
use std::sync::atomic::Ordering;

use arrow::array::{AsArray, Int32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

use super::*;
use crate::fixtures::{
    Instead, LosesAnswers, Loss, collect, definition, entry, memory, name, newest, request, rows, schema, stream, table,
};

async fn open(path: &FsPath) -> Result<Database> {
    Database::open(&path.display().to_string(), OpenOptions::default()).await
}

fn options(create: bool) -> OpenOptions {
    OpenOptions { create, ..OpenOptions::default() }
}

fn view(sql: &str) -> ViewEntry {
    ViewEntry { sql: sql.to_owned(), created_at_us: 0 }
}

/// Names of everything below a folder, but for folders.
fn files(path: &FsPath) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

#[tokio::test]
async fn a_new_or_empty_folder_becomes_a_database_and_opens_again() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("not yet/there ä")] {
        if path == folder.path() {
            std::fs::create_dir(path.join("lost+found")).unwrap();
            // What another process is about to publish, or left when it was killed.
            std::fs::write(path.join("sagitta.json#1"), "{").unwrap();
        }
        let database = open(&path).await.unwrap();
        database.create_schema("s", false).await.unwrap();
        let again = open(&path).await.unwrap();
        assert!(again.catalog().await.unwrap().schemas.contains_key("s"));
        std::fs::remove_dir_all(path.join("_catalog")).unwrap();
        std::fs::remove_file(path.join("sagitta.json")).unwrap();
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "hello").unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::NotADatabase(_)) && error.to_string().contains("notes.txt"), "{error}");
    assert!(matches!(open(&file).await, Err(StorageError::NotADatabase(_))));
    assert_eq!(files(folder.path()).len(), 1);
    let missing = folder.path().join("missing").display().to_string();
    assert!(matches!(Database::open(&missing, options(false)).await, Err(StorageError::NotFound(_))));
    assert!(!FsPath::new(&missing).exists());
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join(MARK);
    std::fs::write(&mark, format!("{{\"magic\":\"{MAGIC}\",\"layout\":2}}")).unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::Unsupported(_)) && error.to_string().contains("newer sagitta"), "{error}");
    std::fs::write(&mark, "{").unwrap();
    assert!(matches!(open(folder.path()).await, Err(StorageError::Corrupt(_))));
    std::fs::write(&mark, "{\"magic\":\"other\",\"layout\":1}").unwrap();
    assert!(matches!(open(folder.path()).await, Err(StorageError::NotADatabase(_))));
}

#[tokio::test]
async fn a_damaged_catalog_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path()).await.unwrap();
    database.create_schema("s", false).await.unwrap();
    let file = folder.path().join("_catalog/00000000000000000001.json");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 10;
    bytes[at] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("00000000000000000001.json"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_handles_that_change_the_catalog_at_once_both_succeed() {
    const TASKS: usize = 8;
    const EACH: usize = 4;
    let folder = tempfile::tempdir().unwrap();
    let handles = [open(folder.path()).await.unwrap(), open(folder.path()).await.unwrap()];
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let database = handles[task % 2].clone();
        tasks.push(tokio::spawn(async move {
            for number in 0..EACH {
                let schema_name = format!("s{task}_{number}");
                assert!(database.create_schema(&schema_name, false).await.unwrap());
                let table = TableName::new(schema_name, "t");
                assert!(database.create_table(&table, definition(schema()), CreateMode::ErrorIfExists).await.unwrap());
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    for database in [&handles[0], &handles[1], &open(folder.path()).await.unwrap()] {
        let catalog = database.catalog().await.unwrap();
        assert_eq!(catalog.schemas.len(), 1 + TASKS * EACH);
        let tables: usize = catalog.schemas.values().map(|schema| schema.relations.len()).sum();
        assert_eq!(tables, TASKS * EACH);
        assert_eq!(catalog.number, 2 * (TASKS * EACH) as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_open_a_new_folder_at_once_all_get_the_same_database() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let mut tasks = Vec::new();
        for task in 0..8 {
            let path = folder.path().join("new");
            tasks.push(tokio::spawn(async move {
                let database = open(&path).await.unwrap();
                database.create_schema(&format!("s{task}"), false).await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let catalog = open(&folder.path().join("new")).await.unwrap().catalog().await.unwrap();
        assert_eq!(catalog.schemas.len(), 9);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_create_the_same_table_exactly_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let handles = [open(folder.path()).await.unwrap(), open(folder.path()).await.unwrap()];
    let mut tasks = Vec::new();
    for task in 0..8_i32 {
        let database = handles[usize::try_from(task).unwrap() % 2].clone();
        tasks.push(tokio::spawn(async move {
            let rows = stream(vec![rows(task..task + 1)]);
            database.create_table_from(&name("t"), definition(schema()), CreateMode::ErrorIfExists, rows, None).await
        }));
    }
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(Some(1)) => won += 1,
            Err(StorageError::AlreadyExists(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(won, 1);
    let left: Vec<_> = std::fs::read_dir(folder.path().join("public")).unwrap().collect();
    assert_eq!(left.len(), 1, "the folders of those that lost are removed: {left:?}");
    assert_eq!(newest(&handles[1], &name("t")).await.row_count(), 1);
}

#[tokio::test]
async fn an_answer_that_got_lost_is_no_failure_and_no_second_change() {
    for how in [Loss::SaysExists, Loss::BreaksAfter, Loss::BreaksBefore] {
        let store = Arc::new(LosesAnswers::new(how));
        let wrapper = || Some(Arc::new(Instead(store.clone())) as Arc<dyn WrappingObjectStore>);
        let database = Database::open_wrapped("memory:", OpenOptions::default(), wrapper()).await.unwrap();
        store.left.store(1, Ordering::SeqCst);
        assert!(database.create_schema("s", false).await.unwrap(), "{how:?}");
        store.left.store(1, Ordering::SeqCst);
        let made = database.create_view(&name("v"), view("SELECT 1"), CreateMode::ErrorIfExists).await;
        assert!(made.unwrap(), "{how:?}");
        let catalog = database.catalog().await.unwrap();
        assert_eq!(catalog.number, 2, "{how:?}");
        assert!(catalog.relation(&name("v")).is_some());
    }
}

#[tokio::test]
async fn a_change_by_another_process_is_seen_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(folder.path()).await.unwrap(), open(folder.path()).await.unwrap());
    for number in 0..40 {
        one.create_schema(&format!("s{number}"), false).await.unwrap();
    }
    assert_eq!(two.catalog().await.unwrap().schemas.len(), 41);
    let t = name("t");
    let first = rows(0..10);
    one.create_table_from(&t, definition(schema()), CreateMode::ErrorIfExists, stream(vec![first]), None)
        .await
        .unwrap();
    let before = newest(&two, &t).await;
    one.append(&t, &entry(&one, &t).await, stream(vec![rows(10..15)]), None).await.unwrap();
    assert_eq!(newest(&two, &t).await.row_count(), 15);
    assert_eq!(before.row_count(), 10);
    assert_eq!(collect(&before, request(&["id"])).await.num_rows(), 10, "a snapshot is pinned");
}

#[tokio::test]
async fn databases_in_memory_know_nothing_of_each_other() {
    let (one, two) = (memory().await, memory().await);
    table(&one, &[0..5]).await;
    assert!(two.catalog().await.unwrap().relation(&name("t")).is_none());
    assert_eq!(table(&two, &[0..7]).await.row_count(), 7);
    assert_eq!(newest(&one, &name("t")).await.row_count(), 5);
}

#[tokio::test]
async fn a_table_that_is_dropped_and_made_again_starts_empty() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path()).await.unwrap();
    let t = name("t");
    table(&database, &[0..20]).await;
    assert!(database.drop_table(&t, false).await.unwrap());
    assert!(!database.drop_table(&t, true).await.unwrap());
    assert!(matches!(database.drop_table(&t, false).await, Err(StorageError::NotFound(_))));
    let kept = files(folder.path()).into_iter().filter(|file| file.contains(".lance")).count();
    assert_eq!(kept, 0, "the files go with the table");
    assert_eq!(table(&database, &[5..8]).await.row_count(), 3);
}

#[tokio::test]
async fn or_replace_swaps_rows_and_columns_at_once_and_removes_the_old_files() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path()).await.unwrap();
    let t = name("t");
    table(&database, &[0..20]).await;
    let columns = Arc::new(Schema::new(vec![Field::new("x", DataType::Int32, true)]));
    let batch = RecordBatch::try_new(columns.clone(), vec![Arc::new(Int32Array::from(vec![1, 2]))]).unwrap();
    let make =
        |mode| database.create_table_from(&t, definition(columns.clone()), mode, stream(vec![batch.clone()]), None);
    assert_eq!(make(CreateMode::IfNotExists).await.unwrap(), None);
    assert!(matches!(make(CreateMode::ErrorIfExists).await, Err(StorageError::AlreadyExists(_))));
    assert_eq!(make(CreateMode::OrReplace).await.unwrap(), Some(2));
    assert_eq!(newest(&database, &t).await.schema(), columns);
    assert_eq!(std::fs::read_dir(folder.path().join("public")).unwrap().count(), 1);
}

#[tokio::test]
async fn names_of_any_kind_are_kept_and_make_plain_folders() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path()).await.unwrap();
    for odd in ["a/../b", "Ünïcode 表", "_catalog", "x\"y'z", "%2e%2e", "."] {
        let schema_name = format!("{odd}!");
        database.create_schema(&schema_name, false).await.unwrap();
        let t = TableName::new(schema_name, odd);
        database.create_table(&t, definition(schema()), CreateMode::ErrorIfExists).await.unwrap();
        database.append(&t, &entry(&database, &t).await, stream(vec![rows(0..3)]), None).await.unwrap();
        assert_eq!(newest(&open(folder.path()).await.unwrap(), &t).await.row_count(), 3, "{odd}");
    }
    for bad in ["", "a\nb", &"x".repeat(300)] {
        let made = database.create_table(&name(bad), definition(schema()), CreateMode::ErrorIfExists).await;
        assert!(matches!(made, Err(StorageError::Invalid(_))), "{bad:?}");
    }
}

#[tokio::test]
async fn views_and_external_tables_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path()).await.unwrap();
    let external = ExternalTable {
        format: "PARQUET".to_owned(),
        location: "/data/x.parquet".to_owned(),
        options: vec![("a".to_owned(), "b".to_owned())],
        schema: Some(schema()),
        created_at_us: 3,
    };
    database.create_view(&name("v"), view("SELECT 1"), CreateMode::ErrorIfExists).await.unwrap();
    database.create_external(&name("e"), external.clone(), CreateMode::ErrorIfExists).await.unwrap();
    let again = open(folder.path()).await.unwrap();
    let catalog = again.catalog().await.unwrap();
    assert_eq!(catalog.relation(&name("v")), Some(&Relation::View(view("SELECT 1"))));
    assert_eq!(catalog.relation(&name("e")), Some(&Relation::External(external)));
    assert!(matches!(again.drop_table(&name("v"), false).await, Err(StorageError::Invalid(_))));
    assert!(again.drop_view(&name("v"), false).await.unwrap());
    assert!(again.drop_table(&name("e"), false).await.unwrap());
}

#[tokio::test]
async fn rows_that_do_not_fit_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path()).await.unwrap();
    let t = name("t");
    let before = table(&database, &[0..5]).await;
    let kept = files(folder.path());
    let append = async |batches: Vec<RecordBatch>| {
        let entry = entry(&database, &t).await;
        database.append(&t, &entry, stream(batches), None).await
    };
    let other = Arc::new(Schema::new(vec![Field::new("id", DataType::Int32, true)]));
    let narrow = RecordBatch::try_new(other, vec![Arc::new(Int32Array::from(vec![1]))]).unwrap();
    let error = append(vec![narrow]).await.unwrap_err();
    assert!(matches!(error, StorageError::Invalid(_)) && error.to_string().contains("emb"), "{error}");
    let nullable: Vec<Field> =
        schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let mut columns = rows(0..2).columns().to_vec();
    columns[0] = Arc::new(Int32Array::from(vec![Some(1), None]));
    let with_null = RecordBatch::try_new(Arc::new(Schema::new(nullable.clone())), columns).unwrap();
    let good = RecordBatch::try_new(Arc::new(Schema::new(nullable)), rows(7..9).columns().to_vec()).unwrap();
    let error = append(vec![good.clone(), with_null]).await.unwrap_err();
    assert!(
        matches!(error, StorageError::Invalid(_)) && error.to_string().contains("column id is NOT NULL"),
        "{error}"
    );
    let after = newest(&database, &t).await;
    assert_eq!((after.version(), after.row_count()), (before.version(), 5));
    assert_eq!(files(folder.path()), kept, "no file is left behind");
    assert_eq!(append(vec![good]).await.unwrap(), 2);
}

#[tokio::test]
async fn an_error_of_the_rows_comes_back_unchanged_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path()).await.unwrap();
    let broken = || {
        let failed = DataFusionError::ResourcesExhausted("no memory for you".to_owned());
        let items = vec![Ok(rows(0..3)), Err(failed)];
        Box::pin(RecordBatchStreamAdapter::new(schema(), futures::stream::iter(items))) as SendableRecordBatchStream
    };
    let made =
        database.create_table_from(&name("t"), definition(schema()), CreateMode::ErrorIfExists, broken(), None).await;
    let Err(StorageError::Input(inner)) = made else { panic!("{made:?}") };
    assert!(matches!(*inner, DataFusionError::ResourcesExhausted(_)), "{inner}");
    assert!(database.catalog().await.unwrap().relation(&name("t")).is_none());
    assert!(files(folder.path()).iter().all(|file| !file.contains(".lance")));
}

/// A stream that gives `count` batches, says so, and never ends.
fn endless(
    schema: SchemaRef,
    count: i32,
    batch: impl Fn(i32) -> RecordBatch + Send + 'static,
) -> (SendableRecordBatchStream, Arc<tokio::sync::Notify>) {
    let reached = Arc::new(tokio::sync::Notify::new());
    let signal = reached.clone();
    let batches = futures::stream::iter(0..count).map(move |number| Ok(batch(number)));
    let end = futures::stream::once(async move {
        signal.notify_one();
        std::future::pending().await
    });
    (Box::pin(RecordBatchStreamAdapter::new(schema, batches.chain(end))), reached)
}

#[tokio::test]
async fn a_cancelled_append_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path()).await.unwrap();
    let t = name("t");
    let columns = Arc::new(Schema::new(vec![Field::new("x", DataType::Int32, false)]));
    database.create_table(&t, definition(columns.clone()), CreateMode::ErrorIfExists).await.unwrap();
    let before = files(folder.path());
    // More rows than one file holds, so that a whole file is there when the statement is cancelled.
    let schema = columns.clone();
    let (rows, reached) = endless(columns, 12, move |number| {
        let numbers = Int32Array::from_iter_values(number * 100_000..(number + 1) * 100_000);
        RecordBatch::try_new(schema.clone(), vec![Arc::new(numbers)]).unwrap()
    });
    let entry = entry(&database, &t).await;
    tokio::select! {
        done = database.append(&t, &entry, rows, None) => panic!("{done:?}"),
        () = reached.notified() => {}
    }
    let written = files(folder.path()).len();
    assert!(written > before.len(), "a file was complete when the statement was cancelled");
    let begun = std::time::Instant::now();
    while files(folder.path()) != before {
        assert!(begun.elapsed() < Duration::from_secs(20), "files are left: {:?}", files(folder.path()));
        tokio::task::yield_now().await;
    }
    assert_eq!(newest(&database, &t).await.row_count(), 0);
}

#[tokio::test]
async fn a_cancelled_creation_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path()).await.unwrap();
    let (rows, reached) = endless(schema(), 200, |number| rows(number..number + 1));
    let t = name("t");
    tokio::select! {
        made = database.create_table_from(&t, definition(schema()), CreateMode::ErrorIfExists, rows, None) => {
            panic!("{made:?}")
        }
        () = reached.notified() => {}
    }
    let begun = std::time::Instant::now();
    while files(folder.path()).iter().any(|file| file.contains(".lance")) {
        assert!(begun.elapsed() < Duration::from_secs(20), "files are left: {:?}", files(folder.path()));
        tokio::task::yield_now().await;
    }
    assert!(database.catalog().await.unwrap().relation(&t).is_none());
}

#[tokio::test]
async fn an_append_to_a_table_that_is_gone_is_a_conflict() {
    let database = memory().await;
    table(&database, &[0..5]).await;
    let old = entry(&database, &name("t")).await;
    database.drop_table(&name("t"), false).await.unwrap();
    table(&database, &[0..2]).await;
    let late = database.append(&name("t"), &old, stream(vec![rows(0..5)]), None).await;
    assert!(matches!(late, Err(StorageError::Conflict(_))), "{late:?}");
    assert_eq!(newest(&database, &name("t")).await.row_count(), 2);
}

#[tokio::test]
async fn no_rows_make_no_version_and_progress_ends_at_the_total() {
    let database = memory().await;
    let before = table(&database, &[0..5]).await;
    let t = name("t");
    let old = entry(&database, &t).await;
    assert_eq!(database.append(&t, &old, stream(vec![rows(0..0)]), None).await.unwrap(), 0);
    assert_eq!(newest(&database, &t).await.version(), before.version());
    let last = Arc::new(Mutex::new(0));
    let progress: Progress = {
        let last = last.clone();
        Arc::new(move |progress| *last.lock().unwrap() = progress.rows)
    };
    let batches = (0..10).map(|number| rows(number * 100..number * 100 + 100)).collect();
    assert_eq!(database.append(&t, &old, stream(batches), Some(progress)).await.unwrap(), 1000);
    assert_eq!(*last.lock().unwrap(), 1000);
}

#[tokio::test]
async fn a_foreign_dataset_is_opened_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("foreign data.lance");
    let batch = rows(0..30);
    let reader = arrow::array::RecordBatchIterator::new([Ok(batch.clone())], batch.schema());
    lance::Dataset::write(reader, path.to_str().unwrap(), None).await.unwrap();
    let database = memory().await;
    let snapshot = database.open_lance(path.to_str().unwrap(), &[]).await.unwrap();
    let ids = collect(&snapshot, request(&["id"])).await;
    assert_eq!(
        ids.column(0).as_primitive::<Int32Type>().values(),
        batch.column(0).as_primitive::<Int32Type>().values()
    );
    // Another dataset in the same place, with the same version number.
    std::fs::remove_dir_all(&path).unwrap();
    let other = rows(100..103);
    let reader = arrow::array::RecordBatchIterator::new([Ok(other.clone())], other.schema());
    lance::Dataset::write(reader, path.to_str().unwrap(), None).await.unwrap();
    let again = database.open_lance(path.to_str().unwrap(), &[]).await.unwrap();
    assert_eq!((again.version(), snapshot.version()), (1, 1));
    assert_eq!(collect(&again, request(&["id", "emb"])).await, other.project(&[0, 4]).unwrap());
    let missing = database.open_lance(folder.path().join("nothing").to_str().unwrap(), &[]).await;
    assert!(matches!(missing, Err(StorageError::NotFound(_))), "{missing:?}");
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_reported_quickly() {
    let pairs = [("endpoint", "http://127.0.0.1:9"), ("access_key_id", "a"), ("secret_access_key", "b")];
    let storage_options = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let opened = Database::open("s3://bucket/x", OpenOptions { storage_options, ..OpenOptions::default() }).await;
    assert!(matches!(opened, Err(StorageError::Unavailable(_))), "{opened:?}");
}

#[tokio::test]
async fn a_shallow_clone_says_that_its_files_lie_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let batch = rows(0..3);
    let reader = arrow::array::RecordBatchIterator::new([Ok(batch.clone())], batch.schema());
    let mut whole = lance::Dataset::write(reader, &path("whole.lance"), None).await.unwrap();
    whole.shallow_clone(&path("clone.lance"), 1_u64, None).await.unwrap();
    let database = memory().await;
    for (name, expected) in [("whole.lance", false), ("clone.lance", true)] {
        let snapshot = database.open_lance(&path(name), &[]).await.unwrap();
        assert_eq!(snapshot.reads_elsewhere(), expected, "{name}");
    }
}
