//! Older versions: by time, by tag, restored, compared, removed.

use futures::TryStreamExt;

use super::AsOf;
use crate::fixtures::{entry, ids, keyed, memory, name, newest, request, rows, stream};
use crate::{Change, Database, StorageError, TableEntry};

const NOW: i64 = i64::MAX;

async fn append(database: &Database, entry: &TableEntry, ids: std::ops::Range<i32>) -> u64 {
    database.append(&name("t"), entry, stream(vec![rows(ids)]), None).await.unwrap();
    newest(database, &name("t")).await.version()
}

async fn delete(database: &Database, entry: &TableEntry, gone: std::ops::Range<i32>) -> u64 {
    let turn = database.turn(&name("t"), entry).await.unwrap();
    let rows = ids(turn.snapshot()).await;
    let deleted = rows.into_iter().filter(|(id, _)| gone.contains(id)).map(|(_, address)| address).collect();
    turn.commit(Change { operation: "DELETE", deleted, inserted: None, copied: None, progress: None, once: None })
        .await
        .unwrap()
        .version
}

async fn found(database: &Database, entry: &TableEntry, at: AsOf) -> Vec<i32> {
    let snapshot = database.snapshot_at(entry, &at, NOW).await.unwrap();
    let mut ids: Vec<i32> = ids(&snapshot).await.into_iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn every_moment_means_the_last_version_before_it() {
    let database = memory().await;
    keyed(&database, 0..3).await;
    let entry = entry(&database, &name("t")).await;
    for step in 1..20 {
        append(&database, &entry, step * 10..step * 10 + 1).await;
    }
    let history = database.history(&entry).await.unwrap();
    assert!(history.windows(2).all(|pair| pair[0].committed_at_us < pair[1].committed_at_us));
    assert_eq!(history.last().unwrap().operation, "INSERT");
    assert_eq!(history[0].operation, "CREATE TABLE");
    for (at, info) in history.iter().enumerate() {
        for time in
            [info.committed_at_us, history.get(at + 1).map_or(info.committed_at_us + 1, |n| n.committed_at_us - 1)]
        {
            let snapshot = database.snapshot_at(&entry, &AsOf::Timestamp(time), NOW).await.unwrap();
            assert_eq!((snapshot.version(), snapshot.row_count()), (info.version, info.rows), "{time}");
        }
    }
    let check = async |at: AsOf, now: i64, words: &str| {
        let error = database.snapshot_at(&entry, &at, now).await.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("versions 1 "), "{error}");
    };
    check(AsOf::Timestamp(history[0].committed_at_us - 1), NOW, "before the first version").await;
    let last = history.last().unwrap().committed_at_us;
    check(AsOf::Timestamp(last + 5), last + 1, "in the future").await;
    check(AsOf::Version(1000), NOW, "no version 1000").await;
    check(AsOf::Version(0), NOW, "no version 0").await;
}

#[tokio::test]
async fn a_tag_keeps_its_version() {
    let database = memory().await;
    let first = keyed(&database, 0..3).await.version();
    let entry = entry(&database, &name("t")).await;
    append(&database, &entry, 3..5).await;
    assert_eq!(database.create_tag(&entry, "small", Some(&AsOf::Version(first)), NOW).await.unwrap(), first);
    let again = database.create_tag(&entry, "small", None, NOW).await;
    assert!(matches!(again, Err(StorageError::AlreadyExists(_))), "{again:?}");
    assert!(matches!(database.create_tag(&entry, "a/b", None, NOW).await, Err(StorageError::Invalid(_))));
    assert_eq!(found(&database, &entry, AsOf::Tag("small".into())).await, [0, 1, 2]);
    append(&database, &entry, 5..6).await;
    let newest = newest(&database, &name("t")).await;
    let report = database.vacuum(&entry, newest.committed_at_us(), true).await.unwrap();
    assert!(report.versions_removed > 0, "{report:?}");
    assert_eq!(database.history(&entry).await.unwrap().len() as u64, newest.version());
    let removed = database.vacuum(&entry, newest.committed_at_us(), false).await.unwrap();
    assert_eq!(removed.versions_removed, report.versions_removed);
    let left: Vec<u64> = database.history(&entry).await.unwrap().iter().map(|info| info.version).collect();
    assert_eq!(left, [first, newest.version()]);
    assert_eq!(found(&database, &entry, AsOf::Tag("small".into())).await, [0, 1, 2]);
    let error = database.snapshot_at(&entry, &AsOf::Timestamp(newest.committed_at_us() - 1), NOW).await.unwrap_err();
    assert!(error.to_string().contains("beyond the retention"), "{error}");
    assert!(database.drop_tag(&entry, "small", false).await.unwrap());
    assert!(!database.drop_tag(&entry, "small", true).await.unwrap());
    assert!(matches!(database.drop_tag(&entry, "small", false).await, Err(StorageError::NotFound(_))));
}

#[tokio::test]
async fn restore_brings_rows_back_as_a_new_version() {
    let database = memory().await;
    let first = keyed(&database, 0..5).await;
    let t = name("t");
    let entry = entry(&database, &t).await;
    delete(&database, &entry, 0..4).await;
    let before = append(&database, &entry, 9..10).await;
    let restored = database.restore(&t, &entry, &AsOf::Version(first.version()), NOW).await.unwrap();
    assert_eq!(restored, before + 1);
    assert_eq!(found(&database, &entry, AsOf::Version(restored)).await, [0, 1, 2, 3, 4]);
    assert_eq!(found(&database, &entry, AsOf::Version(before)).await, [4, 9]);
    let history = database.history(&entry).await.unwrap();
    assert_eq!(history.last().unwrap().operation, "RESTORE");
    assert!(history.windows(2).all(|pair| pair[0].committed_at_us < pair[1].committed_at_us));
    append(&database, &entry, 9..12).await;
    assert_eq!(found(&database, &entry, AsOf::Version(restored + 1)).await, [0, 1, 2, 3, 4, 9, 10, 11]);
}

#[tokio::test]
async fn changes_are_the_rows_that_came_and_went_and_not_those_that_moved() {
    let database = memory().await;
    let first = keyed(&database, 0..10).await.version();
    let t = name("t");
    let entry = entry(&database, &t).await;
    for at in 1..6 {
        append(&database, &entry, at * 10..at * 10 + 10).await;
    }
    let middle = delete(&database, &entry, 5..25).await;
    let report = database.optimize(&t, &entry, false).await.unwrap();
    assert_eq!((report.fragments_before, report.fragments_after), (5, 1));
    let last = append(&database, &entry, 70..72).await;
    delete(&database, &entry, 0..2).await;
    let check = async |from: u64, to: u64, removed: Vec<i32>, added: Vec<i32>| {
        let changes = database.changes(&entry, from, to).await.unwrap();
        let all = |rows: Vec<(i32, u64)>, wanted: &[u64]| -> Vec<i32> {
            rows.into_iter().filter(|(_, address)| wanted.contains(address)).map(|(id, _)| id).collect()
        };
        assert_eq!(all(ids(&changes.old).await, &changes.removed), removed, "removed from {from} to {to}");
        assert_eq!(all(ids(&changes.new).await, &changes.added), added, "added from {from} to {to}");
    };
    check(first, middle, (5..10).collect(), (25..60).collect()).await;
    check(middle, last, vec![], vec![70, 71]).await;
    check(first, last + 1, vec![0, 1, 5, 6, 7, 8, 9], (25..60).chain(70..72).collect()).await;
    check(last, last, vec![], vec![]).await;
    // What RESTORE brings back was not there before, also once it was moved.
    let shrunk = delete(&database, &entry, 70..71).await;
    let back = database.restore(&t, &entry, &AsOf::Version(last), NOW).await.unwrap();
    check(shrunk, back, vec![], vec![0, 1, 70]).await;
    append(&database, &entry, 80..81).await;
    let moved = database.optimize(&t, &entry, false).await.unwrap().version.unwrap();
    check(shrunk, moved, vec![], vec![0, 1, 70, 80]).await;
    assert!(matches!(database.changes(&entry, last, first).await, Err(StorageError::Invalid(_))));
    assert!(matches!(database.changes(&entry, first, 999).await, Err(StorageError::NotFound(_))));
}

#[tokio::test]
async fn a_reader_whose_version_was_removed_fails_and_gives_no_short_answer() {
    let database = memory().await;
    let t = name("t");
    let pinned = keyed(&database, 0..3).await;
    let entry = entry(&database, &t).await;
    database.truncate(&t, &entry).await.unwrap();
    append(&database, &entry, 3..5).await;
    let newest = newest(&database, &t).await;
    // Replaced, but no longer ago than is asked for: nothing is removed, and the pinned version can be read.
    let spared = database.vacuum(&entry, pinned.committed_at_us(), false).await.unwrap();
    assert_eq!(spared.oldest_kept, pinned.version());
    assert_eq!(ids(&pinned).await.len(), 3);
    let kept = database.vacuum(&entry, i64::MIN, false).await.unwrap();
    assert_eq!((kept.versions_removed, kept.oldest_kept), (0, 0), "forever");
    let planned = database.vacuum(&entry, newest.committed_at_us(), true).await.unwrap();
    let done = database.vacuum(&entry, newest.committed_at_us(), false).await.unwrap();
    assert_eq!(planned, done);
    assert!(done.files_removed > done.versions_removed, "{done:?}");
    let read: Result<Vec<arrow::array::RecordBatch>, _> =
        pinned.scan(request(&["id"])).unwrap().try_collect::<Vec<_>>().await;
    let error = read.unwrap_err().to_string();
    assert!(error.contains("is gone") && error.contains("VACUUM"), "{error}");
    let error = database.snapshot_at(&entry, &AsOf::Version(pinned.version()), NOW).await.unwrap_err().to_string();
    let range = format!("there are versions {} ", newest.version());
    assert!(error.contains("has no version") && error.contains(&range), "{error}");
    let before = AsOf::Timestamp(newest.committed_at_us() - 1);
    let error = database.snapshot_at(&entry, &before, NOW).await.unwrap_err().to_string();
    assert!(error.contains("beyond the retention") && error.contains(&range), "{error}");
}
