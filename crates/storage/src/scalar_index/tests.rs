//! Indexes on columns without vectors beside writers: what is written while one is built is found, what is deleted is not.

use std::collections::BTreeSet;
use std::time::Duration;

use datafusion::logical_expr::{Expr, col, ident, lit};

use super::ScalarIndex;
use super::build::Built;
use crate::fixtures::{collect, entry, foreign, ids, memory, name, newest, request, rows, stream, table};
use crate::{
    AsOf, Change, Database, FindingStatus, NewScalarIndex, OpenOptions, ScanRequest, Snapshot, StorageError, TableEntry,
};

fn new(index: &str, column: &str, method: &str) -> NewScalarIndex {
    NewScalarIndex { name: index.to_owned(), column: column.to_owned(), method: method.to_owned(), parameters: None }
}

async fn create(database: &Database, index: &str, column: &str, method: &str) -> crate::Result<()> {
    let t = entry(database, &name("t")).await;
    database.create_scalar_index(&name("t"), &t, new(index, column, method)).await
}

async fn append(database: &Database, ids: std::ops::Range<i32>) {
    let t = entry(database, &name("t")).await;
    database.append(&name("t"), &t, stream(vec![rows(ids)]), None).await.unwrap();
}

async fn delete(database: &Database, gone: &[i32]) {
    let t = entry(database, &name("t")).await;
    let turn = database.turn(&name("t"), &t).await.unwrap();
    let there = ids(turn.snapshot()).await;
    let deleted = there.into_iter().filter(|(id, _)| gone.contains(id)).map(|(_, address)| address).collect();
    let change = Change { operation: "DELETE", deleted, inserted: None, copied: None, progress: None, once: None };
    turn.commit(change).await.unwrap();
}

async fn described(database: &Database, index: &str) -> ScalarIndex {
    newest(database, &name("t")).await.scalar_index(index).await.unwrap().unwrap()
}

/// The ids of the rows for which a filter is true, and whether an index was asked.
async fn found(snapshot: &Snapshot, filter: Expr) -> (BTreeSet<i32>, bool) {
    use arrow::array::AsArray;
    use arrow::datatypes::Int32Type;
    let asked = !snapshot.indexes_for(&filter).await.unwrap().is_empty();
    let rows = collect(snapshot, ScanRequest { filter: Some(filter), ..request(&["id"]) }).await;
    (rows.column(0).as_primitive::<Int32Type>().values().iter().copied().collect(), asked)
}

/// Builds an index on a version, without a commit.
async fn built(database: &Database, t: &TableEntry, index: &NewScalarIndex) -> Built {
    Built::of(database.root(), t, &newest(database, &name("t")).await, index).await.unwrap()
}

#[tokio::test]
async fn what_is_written_during_a_build_is_found_and_what_is_deleted_is_not() {
    let database = memory().await;
    table(&database, &[0..50, 50..100]).await;
    let t = entry(&database, &name("t")).await;
    let ready = built(&database, &t, &new("i", "id", "btree")).await;
    append(&database, 100..120).await;
    delete(&database, &[3, 60]).await;
    database.publish_scalar(&name("t"), &t, &[ready], "CREATE INDEX").await.unwrap();
    let after = newest(&database, &name("t")).await;
    let expected: BTreeSet<i32> = (0..120).filter(|id| ![3, 60].contains(id)).collect();
    assert_eq!(found(&after, col("id").gt_eq(lit(0))).await, (expected, true));
    let index = described(&database, "i").await;
    assert_eq!((index.rows_covered, index.rows_uncovered, index.segments), (98, 20, 1));
    assert!(index.bytes > 0 && index.created_at_us.is_some());
}

#[tokio::test]
async fn a_build_over_rewritten_fragments_covers_those_that_are_left() {
    let database = memory().await;
    table(&database, &[0..50, 50..100]).await;
    let t = entry(&database, &name("t")).await;
    let ready = built(&database, &t, &new("i", "id", "btree")).await;
    database.optimize(&name("t"), &t, false).await.unwrap();
    database.publish_scalar(&name("t"), &t, &[ready], "CREATE INDEX").await.unwrap();
    let index = described(&database, "i").await;
    assert_eq!((index.rows_covered, index.rows_uncovered), (0, 100));
    assert_eq!(database.update_scalar_indexes(&name("t"), &t, 1).await.unwrap(), 1);
    let index = described(&database, "i").await;
    assert_eq!((index.rows_covered, index.rows_uncovered, index.segments), (100, 0, 1));
    let after = newest(&database, &name("t")).await;
    assert_eq!(found(&after, col("id").between(lit(48), lit(51))).await, ((48..52).collect(), true));
}

#[tokio::test]
async fn an_index_whose_column_or_name_went_meanwhile_is_not_made_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().display().to_string(), OpenOptions::default()).await.unwrap();
    table(&database, &[0..50]).await;
    let t = entry(&database, &name("t")).await;
    let (on_price, on_id) = (new("i", "price", "btree"), new("i", "id", "bitmap"));
    let (first, second) = (built(&database, &t, &on_price).await, built(&database, &t, &on_id).await);
    database.drop_column(&name("t"), &t, "price").await.unwrap();
    let publish =
        async |built: Built| database.publish_scalar(&name("t"), &t, &[built], "CREATE INDEX").await.map(|_| ());
    assert!(matches!(publish(first).await, Err(StorageError::Conflict(_))));
    create(&database, "i", "name", "btree").await.unwrap();
    assert!(matches!(publish(second).await, Err(StorageError::AlreadyExists(_))));
    let indices = folder.path().join(&t.location).join("_indices");
    let sums = folder.path().join(&t.location).join("_crc/_indices");
    for _ in 0..200 {
        if std::fs::read_dir(&indices).unwrap().count() == 1 && std::fs::read_dir(&sums).unwrap().count() == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("files of indexes that were not made are left");
}

#[tokio::test]
async fn segments_are_merged_as_they_come_to_be_as_large() {
    let database = memory().await;
    table(&database, &[0..100]).await;
    let t = entry(&database, &name("t")).await;
    for (index, column, method) in [
        ("a", "id", "btree"),
        ("b", "name", "bitmap"),
        ("c", "price", "zonemap"),
        ("d", "Big", "bloom_filter"),
        ("e", "name", "ngram"),
    ] {
        create(&database, index, column, method).await.unwrap();
    }
    let mut segments_max = 0;
    for start in (100..600).step_by(20) {
        append(&database, start..start + 20).await;
        assert_eq!(database.update_scalar_indexes(&name("t"), &t, 21).await.unwrap(), 0);
        let version = newest(&database, &name("t")).await.version();
        assert_eq!(database.update_scalar_indexes(&name("t"), &t, 20).await.unwrap(), 5, "{start}");
        assert_eq!(newest(&database, &name("t")).await.version(), version + 1);
        for index in ["a", "b", "c", "d", "e"] {
            let known = described(&database, index).await;
            assert_eq!(known.rows_uncovered, 0, "{index} {start}");
            segments_max = segments_max.max(known.segments);
        }
        let newest = newest(&database, &name("t")).await;
        assert_eq!(found(&newest, col("id").gt(lit(90))).await, ((91..start + 20).collect(), true));
        let named = (0..start + 20).filter(|id| id % 5 != 0 && id % 17 == 3).collect();
        assert_eq!(found(&newest, col("name").eq(lit("name 3"))).await, (named, true));
        let priced = (0..start + 20).filter(|id| id % 7 != 0 && *id >= 80 * 4).collect();
        assert_eq!(found(&newest, col("price").gt_eq(lit(80.0))).await, (priced, true));
        let big = BTreeSet::from([100]);
        assert_eq!(found(&newest, ident("Big").eq(lit(100 * 1_000_000_007_i64))).await.0, big);
    }
    assert!((2..=6).contains(&segments_max), "{segments_max} segments");
}

#[tokio::test]
async fn the_past_has_the_indexes_it_had_and_restore_brings_them_back() {
    let database = memory().await;
    table(&database, &[0..100]).await;
    let t = entry(&database, &name("t")).await;
    create(&database, "i", "id", "btree").await.unwrap();
    let with = newest(&database, &name("t")).await.version();
    assert!(database.drop_scalar_index(&name("t"), &t, "i").await.unwrap());
    assert!(!database.drop_scalar_index(&name("t"), &t, "i").await.unwrap());
    append(&database, 100..150).await;
    let now = newest(&database, &name("t")).await;
    assert_eq!(found(&now, col("id").gt(lit(90))).await, ((91..150).collect(), false));
    let then = database.at(&now, &AsOf::Version(with), i64::MAX).await.unwrap();
    assert_eq!(found(&then, col("id").gt(lit(90))).await, ((91..100).collect(), true));
    database.restore(&name("t"), &t, &AsOf::Version(with), i64::MAX).await.unwrap();
    // Numbers of fragments come again, with other rows.
    append(&database, 500..520).await;
    let restored = newest(&database, &name("t")).await;
    assert_eq!(found(&restored, col("id").gt(lit(90))).await, ((91..100).chain(500..520).collect(), true));
    assert_eq!(database.update_scalar_indexes(&name("t"), &t, 1).await.unwrap(), 1);
    let updated = newest(&database, &name("t")).await;
    assert_eq!(found(&updated, col("id").gt(lit(90))).await, ((91..100).chain(500..520).collect(), true));
}

#[tokio::test]
async fn an_optimize_merges_fragments_whatever_indexes_cover_and_updates_these() {
    let database = memory().await;
    table(&database, &[0..100, 100..150]).await;
    let t = entry(&database, &name("t")).await;
    create(&database, "i", "id", "btree").await.unwrap();
    append(&database, 150..160).await;
    assert_eq!(database.update_scalar_indexes(&name("t"), &t, 1).await.unwrap(), 1);
    append(&database, 160..170).await;
    delete(&database, &[5, 155, 165]).await;
    assert_eq!(described(&database, "i").await.segments, 2);
    let done = database.optimize(&name("t"), &t, false).await.unwrap();
    assert_eq!((done.fragments_before, done.fragments_after), (4, 1));
    assert_eq!(described(&database, "i").await.rows_uncovered, 0);
    let after = newest(&database, &name("t")).await;
    let expected: BTreeSet<i32> = (4..170).filter(|id| ![5, 155, 165].contains(id)).collect();
    assert_eq!(found(&after, col("id").gt(lit(3))).await, (expected, true));
}

#[tokio::test]
async fn a_damaged_or_missing_index_changes_no_answer_and_is_reported_and_repaired() {
    for is_removed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().display().to_string();
        let database = Database::open(&location, OpenOptions::default()).await.unwrap();
        table(&database, &[0..2000]).await;
        let t = entry(&database, &name("t")).await;
        create(&database, "i", "id", "btree").await.unwrap();
        drop(database);
        let indices = folder.path().join(&t.location).join("_indices");
        let segment = std::fs::read_dir(&indices).unwrap().next().unwrap().unwrap().path();
        for file in std::fs::read_dir(&segment).unwrap() {
            let file = file.unwrap().path();
            match is_removed {
                true => std::fs::remove_file(&file).unwrap(),
                false => {
                    let mut bytes = std::fs::read(&file).unwrap();
                    bytes.iter_mut().for_each(|byte| *byte = !*byte);
                    std::fs::write(&file, bytes).unwrap();
                }
            }
        }
        let database = Database::open(&location, OpenOptions::default()).await.unwrap();
        let snapshot = newest(&database, &name("t")).await;
        assert_eq!(found(&snapshot, col("id").lt(lit(5))).await.0, (0..5).collect());
        let report = database.check(&t).await.unwrap();
        let expected = if is_removed { FindingStatus::Missing } else { FindingStatus::Damaged };
        assert!(!report.findings.is_empty());
        for finding in &report.findings {
            assert!(finding.status == expected && finding.file.starts_with("_indices/"), "{finding:?}");
        }
        database.rebuild_scalar_index(&name("t"), &t, "i").await.unwrap();
        let repaired = newest(&database, &name("t")).await;
        assert_eq!(found(&repaired, col("id").lt(lit(5))).await, ((0..5).collect(), true));
    }
}

#[tokio::test]
async fn vacuum_removes_the_files_of_indexes_that_no_version_names() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().display().to_string(), OpenOptions::default()).await.unwrap();
    table(&database, &[0..100]).await;
    let t = entry(&database, &name("t")).await;
    create(&database, "i", "id", "btree").await.unwrap();
    database.rebuild_scalar_index(&name("t"), &t, "i").await.unwrap();
    let count = |folder_of: &str| {
        std::fs::read_dir(folder.path().join(&t.location).join(folder_of)).map_or(0, |files| files.count())
    };
    assert_eq!((count("_indices"), count("_crc/_indices")), (2, 2));
    database.vacuum(&t, i64::MAX, false).await.unwrap();
    let left = newest(&database, &name("t")).await;
    assert_eq!(found(&left, col("id").lt(lit(5))).await, ((0..5).collect(), true));
    assert_eq!(count("_indices"), 1);
    let report = database.check(&t).await.unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[tokio::test]
async fn columns_that_no_predicate_could_ask_about_have_no_index() {
    let database = memory().await;
    table(&database, &[0..10]).await;
    for (column, method) in [("emb", "btree"), ("name", "label_list"), ("id", "ngram"), ("id", "inverted")] {
        let error = create(&database, "i", column, method).await.unwrap_err();
        assert!(matches!(error, StorageError::Invalid(_)), "{column} {method}: {error}");
    }
    assert!(matches!(create(&database, "i", "nope", "btree").await, Err(StorageError::NotFound(_))));
    assert!(create(&database, "i", "id", "heap").await.is_err());
    // What another program made is listed, and its name is taken.
    use lance::index::DatasetIndexExt;
    let mut dataset = foreign(&database).await;
    let parameters = lance_index::scalar::ScalarIndexParams::default();
    let made = dataset.create_index(&["id"], lance_index::IndexType::BTree, Some("f".to_owned()), &parameters, false);
    made.await.unwrap();
    assert_eq!(described(&database, "f").await.method, "btree");
    assert!(matches!(create(&database, "f", "name", "btree").await, Err(StorageError::AlreadyExists(_))));
}

#[tokio::test]
async fn a_text_search_by_a_damaged_index_says_how_it_is_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().display().to_string();
    let database = Database::open(&location, OpenOptions::default()).await.unwrap();
    table(&database, &[0..200]).await;
    let t = entry(&database, &name("t")).await;
    create(&database, "i", "name", "inverted").await.unwrap();
    let fitting = async |database: &Database| {
        let snapshot = newest(database, &name("t")).await;
        snapshot.text_search("name", "3".to_owned(), 100, None).await.map(|fits| fits.len())
    };
    let expected = (0..200).filter(|id| id % 5 != 0 && id % 17 == 3).count();
    assert_eq!(fitting(&database).await.unwrap(), expected);
    drop(database);
    let indices = folder.path().join(&t.location).join("_indices");
    let segment = std::fs::read_dir(&indices).unwrap().next().unwrap().unwrap().path();
    for file in std::fs::read_dir(&segment).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let database = Database::open(&location, OpenOptions::default()).await.unwrap();
    let error = fitting(&database).await.unwrap_err();
    assert!(error.to_string().contains("REINDEX INDEX i"), "{error}");
    database.rebuild_scalar_index(&name("t"), &t, "i").await.unwrap();
    assert_eq!(fitting(&database).await.unwrap(), expected);
}
