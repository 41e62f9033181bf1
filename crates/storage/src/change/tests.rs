//! Changes of rows and columns, keys, writers of several processes.

use std::sync::Arc;

use super::Change;
use crate::fixtures::{entry, ids, keyed, memory, name, newest, rows, stream, table};
use crate::{AsOf, Database, IdempotencyKey, Once, OpenOptions, StorageError};

fn change(deleted: Vec<u64>, inserted: Option<std::ops::Range<i32>>) -> Change {
    let inserted = inserted.map(|ids| stream(vec![rows(ids)]));
    Change { operation: "UPDATE", deleted, inserted, copied: None, progress: None, once: None }
}

/// Addresses of the rows with these ids.
async fn addresses(snapshot: &crate::Snapshot, wanted: &[i32]) -> Vec<u64> {
    ids(snapshot).await.into_iter().filter(|(id, _)| wanted.contains(id)).map(|(_, address)| address).collect()
}

async fn live(database: &Database) -> Vec<i32> {
    let mut live: Vec<i32> = ids(&newest(database, &name("t")).await).await.into_iter().map(|(id, _)| id).collect();
    live.sort_unstable();
    live
}

#[tokio::test]
async fn a_change_is_one_version_and_older_versions_keep_their_rows() {
    let database = memory().await;
    let before = table(&database, &[0..10, 10..20]).await;
    let t = name("t");
    let entry = entry(&database, &t).await;
    let turn = database.turn(&t, &entry).await.unwrap();
    let gone = addresses(turn.snapshot(), &[3, 4, 15]).await;
    let done = turn.commit(change(gone, Some(100..102))).await.unwrap();
    assert_eq!((done.version, done.deleted, done.inserted), (before.version() + 1, 3, 2));
    let expected: Vec<i32> = (0..20).filter(|id| ![3, 4, 15].contains(id)).chain(100..102).collect();
    assert_eq!(live(&database).await, expected);
    let old = database.snapshot_at(&entry, &AsOf::Version(before.version()), i64::MAX).await.unwrap();
    assert_eq!(ids(&old).await.len(), 20);
}

#[tokio::test]
async fn a_fragment_whose_rows_are_all_gone_goes_too() {
    let database = memory().await;
    let before = table(&database, &[0..5, 5..9]).await;
    let t = name("t");
    let entry = entry(&database, &t).await;
    let gone = addresses(&before, &[0, 1, 2, 3, 4]).await;
    let turn = database.turn(&t, &entry).await.unwrap();
    turn.commit(change(gone, None)).await.unwrap();
    assert_eq!(live(&database).await, [5, 6, 7, 8]);
    assert_eq!(newest(&database, &t).await.fragments().len(), 1);
}

#[tokio::test]
async fn a_change_of_nothing_makes_no_version() {
    let database = memory().await;
    let before = table(&database, &[0..5]).await;
    let t = name("t");
    let turn = database.turn(&t, &entry(&database, &t).await).await.unwrap();
    let done = turn.commit(change(vec![], Some(0..0))).await.unwrap();
    assert_eq!(done.version, before.version());
    assert_eq!(newest(&database, &t).await.version(), before.version());
}

#[tokio::test]
async fn a_row_that_is_gone_already_is_no_row_to_delete() {
    let database = memory().await;
    let before = table(&database, &[0..5]).await;
    let t = name("t");
    let entry = entry(&database, &t).await;
    let gone = addresses(&before, &[2]).await;
    database.turn(&t, &entry).await.unwrap().commit(change(gone.clone(), None)).await.unwrap();
    let again = database.turn(&t, &entry).await.unwrap().commit(change(gone, None)).await;
    assert!(matches!(again, Err(StorageError::Internal(_))), "{again:?}");
    assert_eq!(live(&database).await, [0, 1, 3, 4]);
}

#[tokio::test]
async fn a_key_is_there_once() {
    let database = memory().await;
    let before = keyed(&database, 0..100).await;
    assert_eq!(before.primary_key(), ["id"]);
    let t = name("t");
    let entry = entry(&database, &t).await;
    let append = async |ids| database.append(&t, &entry, stream(vec![rows(ids)]), None).await;
    let taken = append(95..105).await.unwrap_err();
    assert!(matches!(taken, StorageError::Duplicate(_)) && taken.to_string().contains("(id) = (95)"), "{taken}");
    let twice = database.append(&t, &entry, stream(vec![rows(200..203), rows(201..202)]), None).await.unwrap_err();
    assert!(twice.to_string().contains("(id) = (201) twice"), "{twice}");
    assert_eq!(newest(&database, &t).await.version(), before.version());
    // A row that goes in the same change leaves its key to another one.
    let turn = database.turn(&t, &entry).await.unwrap();
    let gone = addresses(turn.snapshot(), &[50, 51]).await;
    turn.commit(change(gone, Some(50..51))).await.unwrap();
    append(51..52).await.unwrap();
    let taken = append(51..52).await.unwrap_err();
    assert!(matches!(taken, StorageError::Duplicate(_)), "{taken}");
    assert_eq!(live(&database).await, (0..100).collect::<Vec<i32>>());
}

#[tokio::test]
async fn a_restored_row_has_its_key_back() {
    let database = memory().await;
    let before = keyed(&database, 0..10).await;
    let t = name("t");
    let entry = entry(&database, &t).await;
    let turn = database.turn(&t, &entry).await.unwrap();
    let gone = addresses(turn.snapshot(), &[7]).await;
    turn.commit(change(gone, None)).await.unwrap();
    database.append(&t, &entry, stream(vec![rows(20..21)]), None).await.unwrap();
    database.restore(&t, &entry, &AsOf::Version(before.version()), i64::MAX).await.unwrap();
    let taken = database.append(&t, &entry, stream(vec![rows(7..8)]), None).await;
    assert!(matches!(taken, Err(StorageError::Duplicate(_))), "{taken:?}");
    assert_eq!(live(&database).await, (0..10).collect::<Vec<i32>>());
}

#[tokio::test]
async fn a_writer_that_planned_on_an_older_version_cannot_commit() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().display().to_string();
    let one = Database::open(&location, OpenOptions::default()).await.unwrap();
    keyed(&one, 0..10).await;
    let other = Database::open(&location, OpenOptions::default()).await.unwrap();
    let t = name("t");
    let entry = entry(&one, &t).await;
    let late = one.turn(&t, &entry).await.unwrap();
    let gone = addresses(late.snapshot(), &[1]).await;
    other.append(&t, &entry, stream(vec![rows(10..11)]), None).await.unwrap();
    let refused = late.commit(change(gone, Some(30..31))).await;
    assert!(matches!(refused, Err(StorageError::Stale(_))), "{refused:?}");
    assert_eq!(live(&one).await, (0..11).collect::<Vec<i32>>());
    // An append is planned again by itself, its keys are checked against the newest rows.
    other.append(&t, &entry, stream(vec![rows(11..12)]), None).await.unwrap();
    let taken = one.append(&t, &entry, stream(vec![rows(11..12)]), None).await;
    assert!(matches!(taken, Err(StorageError::Duplicate(_))), "{taken:?}");
    one.append(&t, &entry, stream(vec![rows(12..13)]), None).await.unwrap();
    assert_eq!(live(&other).await, (0..13).collect::<Vec<i32>>());
}

#[tokio::test]
async fn columns_come_and_go_in_versions_of_their_own() {
    let database = Arc::new(memory().await);
    let before = table(&database, &[0..5, 5..9]).await;
    let t = name("t");
    let entry = entry(&database, &t).await;
    let field = |name: &str| arrow::datatypes::Field::new(name, arrow::datatypes::DataType::Int64, true);
    database.add_column(&t, &entry, &field("more"), None).await.unwrap();
    let default = crate::NewDefault { sql: "7".into(), value: datafusion::common::ScalarValue::Int64(Some(7)) };
    database.add_column(&t, &entry, &field("seven"), Some(default)).await.unwrap();
    database.rename_column(&t, &entry, "name", "title").await.unwrap();
    database.drop_column(&t, &entry, "price").await.unwrap();
    let names = |snapshot: &crate::Snapshot| {
        snapshot.schema().fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>()
    };
    let after = newest(&database, &t).await;
    assert_eq!(names(&after), ["id", "title", "Big", "emb", "more", "seven"]);
    let batch = crate::fixtures::collect(&after, crate::fixtures::request(&["seven", "more"])).await;
    assert_eq!((batch.num_rows(), batch.column(1).null_count()), (9, 9));
    assert_eq!(batch.column(0).null_count(), 0);
    let old = database.snapshot_at(&entry, &AsOf::Version(before.version()), i64::MAX).await.unwrap();
    assert_eq!(names(&old), ["id", "name", "price", "Big", "emb"]);
    for error in [
        database.add_column(&t, &entry, &field("seven"), None).await,
        database.add_column(&t, &entry, &field("none").with_nullable(false), None).await,
        database.rename_column(&t, &entry, "title", "id").await,
        database.drop_column(&t, &entry, "price").await,
    ] {
        assert!(error.is_err());
    }
    assert_eq!(database.truncate(&t, &entry).await.unwrap(), 9);
    assert_eq!(newest(&database, &t).await.row_count(), 0);
}

#[tokio::test]
async fn a_table_that_is_renamed_while_a_change_is_committed_keeps_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().display().to_string();
    let one = Database::open(&location, OpenOptions::default()).await.unwrap();
    table(&one, &[0..5]).await;
    let other = Database::open(&location, OpenOptions::default()).await.unwrap();
    let (t, u) = (name("t"), name("u"));
    let entry = entry(&one, &t).await;
    let turn = one.turn(&t, &entry).await.unwrap();
    let dataset = turn.snapshot().dataset().as_ref().clone();
    other.rename_table(&t, &entry, &u).await.unwrap();
    // The last step of a commit whose check came before the new name.
    turn.adopt(dataset).await.unwrap();
    assert_eq!(newest(&one, &u).await.row_count(), 5);
    let late = one.append(&t, &entry, stream(vec![rows(5..6)]), None).await;
    assert!(matches!(late, Err(StorageError::Conflict(_))), "{late:?}");
    one.append(&u, &entry, stream(vec![rows(5..6)]), None).await.unwrap();
    assert!(other.rename_table(&t, &entry, &name("w")).await.is_err());
}

#[tokio::test]
async fn a_column_is_not_null_once_no_row_lacks_it() {
    let database = memory().await;
    let before = keyed(&database, 0..5).await;
    let t = name("t");
    let entry = entry(&database, &t).await;
    let field = arrow::datatypes::Field::new("more", arrow::datatypes::DataType::Int64, true);
    database.add_column(&t, &entry, &field, None).await.unwrap();
    let refused = database.set_not_null(&t, &entry, "more").await;
    assert!(matches!(refused, Err(StorageError::Invalid(_))), "{refused:?}");
    assert!(matches!(database.drop_not_null(&t, &entry, "id").await, Err(StorageError::Invalid(_))));
    database.truncate(&t, &entry).await.unwrap();
    let is_nullable =
        async || newest(&database, &name("t")).await.schema().field_with_name("more").unwrap().is_nullable();
    database.set_not_null(&t, &entry, "more").await.unwrap();
    assert!(!is_nullable().await);
    database.drop_not_null(&t, &entry, "more").await.unwrap();
    assert!(is_nullable().await);
    assert_eq!(newest(&database, &t).await.version(), before.version() + 4);
}

#[tokio::test]
async fn a_statement_with_a_key_is_applied_once() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().display().to_string();
    let database = Database::open(&location, OpenOptions::default()).await.unwrap();
    table(&database, &[0..10]).await;
    let t = name("t");
    let entry = entry(&database, &t).await;
    let key = |key: &str, statement: &str| IdempotencyKey { key: key.into(), statement: statement.into() };
    let turn = database.turn(&t, &entry).await.unwrap();
    assert_eq!(turn.applied(&key("k", "a")).await.unwrap(), None);
    let gone = addresses(turn.snapshot(), &[1]).await;
    let once = Some(Once { key: key("k", "a"), count: 42 });
    turn.commit(Change { once, ..change(gone, Some(20..23)) }).await.unwrap();
    // An attempt that was noted and never committed does not count.
    database.note_attempt(&entry, &key("other", "a"), 1000).await.unwrap();
    let reopened = Database::open(&location, OpenOptions::default()).await.unwrap();
    let turn = reopened.turn(&t, &entry).await.unwrap();
    assert_eq!(turn.applied(&key("k", "a")).await.unwrap(), Some(42));
    assert_eq!(turn.applied(&key("other", "a")).await.unwrap(), None);
    let misused = turn.applied(&key("k", "b")).await;
    assert!(matches!(misused, Err(StorageError::Conflict(_))), "{misused:?}");
}

#[tokio::test]
async fn a_statement_with_a_key_that_changes_nothing_is_remembered() {
    let database = memory().await;
    let before = table(&database, &[0..10]).await;
    let t = name("t");
    let entry = entry(&database, &t).await;
    let key = |key: &str| IdempotencyKey { key: key.into(), statement: "a".into() };
    for (at, inserted) in [(1, None), (2, Some(0..0))] {
        let name = format!("nothing-{at}");
        let once = Some(Once { key: key(&name), count: 0 });
        let turn = database.turn(&t, &entry).await.unwrap();
        let done = turn.commit(Change { once, ..change(vec![], inserted) }).await.unwrap();
        assert_eq!(done.version, before.version() + at);
        let turn = database.turn(&t, &entry).await.unwrap();
        assert_eq!(turn.applied(&key(&name)).await.unwrap(), Some(0));
    }
    assert_eq!(live(&database).await, (0..10).collect::<Vec<i32>>());
    let changes = database.changes(&entry, before.version(), before.version() + 2).await.unwrap();
    assert!(changes.added.is_empty() && changes.removed.is_empty());
}
