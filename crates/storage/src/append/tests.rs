//! Appends at the same time: none is lost, keys stay unique.

use std::sync::Arc;

use crate::fixtures::{entry, ids, keyed, memory, name, newest, rows, stream};
use crate::{Database, OpenOptions, StorageError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_at_the_same_time_share_commits_and_lose_no_row() {
    const WRITERS: i32 = 8;
    const EACH: i32 = 20;
    let database = Arc::new(memory().await);
    let before = keyed(&database, 0..0).await.version();
    let t = name("t");
    let entry = entry(&database, &t).await;
    let writers = (0..WRITERS).map(|writer| {
        let (database, t, entry) = (Arc::clone(&database), t.clone(), entry.clone());
        tokio::spawn(async move {
            for at in 0..EACH {
                let id = writer * EACH + at;
                database.append(&t, &entry, stream(vec![rows(id..id + 1)]), None).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let after = newest(&database, &t).await;
    let mut found: Vec<i32> = ids(&after).await.into_iter().map(|(id, _)| id).collect();
    found.sort_unstable();
    assert_eq!(found, (0..WRITERS * EACH).collect::<Vec<i32>>());
    assert!(after.version() - before <= u64::try_from(WRITERS * EACH).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_who_insert_one_key_at_the_same_time_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().display().to_string();
    let one = Database::open(&location, OpenOptions::default()).await.unwrap();
    keyed(&one, 0..3).await;
    let t = name("t");
    let entry = entry(&one, &t).await;
    let two = Database::open(&location, OpenOptions::default()).await.unwrap();
    for round in 0..5 {
        let id = 100 + round;
        let writers = (0..6).map(|writer| {
            let database = if writer % 2 == 0 { one.clone() } else { two.clone() };
            let (t, entry) = (t.clone(), entry.clone());
            tokio::spawn(async move { database.append(&t, &entry, stream(vec![rows(id..id + 1)]), None).await })
        });
        let mut won = 0;
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                Ok(rows) => won += rows,
                Err(error) => assert!(matches!(error, StorageError::Duplicate(_)), "{error}"),
            }
        }
        assert_eq!(won, 1);
    }
    let found: Vec<i32> = ids(&newest(&two, &t).await).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(found, [0, 1, 2, 100, 101, 102, 103, 104]);
}
