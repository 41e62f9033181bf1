//! Tests of what must hold on a store that fails and of files that rot: no acknowledged row is lost, doubled or risen
//! again; a statement that failed has changed nothing, or wholly, and if it says that it changed nothing that is so; no
//! answer is silently wrong.
//!
//! How many trials and which: `FAULT_SEEDS` and `FAULT_SEED` (the first) for the runs of random statements,
//! `FAULT_FLIPS` and `FAULT_FLIP_SEED` for flipped bits. Whatever fails prints the numbers that make it fail again.

use std::sync::Arc;

use futures::StreamExt;
use object_store::memory::InMemory;

use crate::fixtures::faulty::{Fault, Faulty, Operation, Rule};
use crate::fixtures::{entry, ids, keyed, name, newest, open, rows, stream, table};
use crate::{AsOf, StorageError};

mod flips;
mod workload;
mod world;

/// Runs of random statements.
const SEEDS: u64 = 24;

/// Runs at the same time: they mostly wait for the next try.
const RUNS_AT_ONCE: usize = 8;

/// A number from the environment.
fn number(variable: &str, otherwise: u64) -> u64 {
    let text = std::env::var(variable).unwrap_or_default();
    if text.is_empty() { otherwise } else { text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_row_is_lost_doubled_or_risen_on_a_store_that_fails() {
    let (first, count) = (number("FAULT_SEED", 1), number("FAULT_SEEDS", SEEDS));
    println!("FAULT_SEED={first} FAULT_SEEDS={count}");
    let runs = (first..first + count).map(|seed| async move { (seed, tokio::spawn(workload::run(seed)).await) });
    let mut runs = futures::stream::iter(runs).buffer_unordered(RUNS_AT_ONCE);
    let mut faults = 0;
    while let Some((seed, ended)) = runs.next().await {
        faults += ended.unwrap_or_else(|error| panic!("FAULT_SEED={seed} FAULT_SEEDS=1: {error}"));
    }
    println!("{faults} faults in {count} runs");
    assert!(faults >= count * 10, "{faults} faults in {count} runs: the store hardly failed");
}

#[tokio::test]
async fn an_append_is_not_made_twice_when_nobody_can_see_whether_it_was_made() {
    let store = Faulty::new(Arc::new(InMemory::new()), 1);
    let database = open(&store).await.unwrap();
    let before = table(&database, &[0..5]).await;
    let t = entry(&database, &name("t")).await;
    let manifest = format!(".lance/_versions/{:020}", u64::MAX - (before.version() + 1));
    // The version is made, the store says that it was there, and for a while it cannot be looked at.
    store.add(Rule::once(Operation::Put, &manifest, Fault::SaysExists));
    store.add(Rule { times: 3, ..Rule::once(Operation::Head, &manifest, Fault::ErrorBefore) });
    let appended = database.append(&name("t"), &t, stream(vec![rows(5..9)]), None).await;
    assert!(matches!(appended, Err(StorageError::Unavailable(_))), "{appended:?}");
    store.clear();
    assert_eq!(newest(&open(&store).await.unwrap(), &name("t")).await.row_count(), 9);
    assert_eq!(newest(&database, &name("t")).await.row_count(), 9);
}

#[tokio::test]
async fn a_change_that_was_made_is_not_said_to_have_failed_because_the_catalog_is_silent() {
    for after in 0..8 {
        let store = Faulty::new(Arc::new(InMemory::new()), 1);
        let database = open(&store).await.unwrap();
        table(&database, &[0..5]).await;
        let t = entry(&database, &name("t")).await;
        store.add(Rule { after, ..Rule::once(Operation::Get, "_catalog", Fault::ErrorBefore) });
        let appended = database.append(&name("t"), &t, stream(vec![rows(5..9)]), None).await;
        store.clear();
        let count = newest(&open(&store).await.unwrap(), &name("t")).await.row_count();
        assert_eq!(count, if appended.is_ok() { 9 } else { 5 }, "request {after}: {appended:?}");
    }
}

#[tokio::test]
async fn a_tag_whose_answer_got_lost_is_created_and_one_that_met_another_write_is_not() {
    for fault in [Fault::ErrorAfter, Fault::SaysExists, Fault::Conflict, Fault::ErrorBefore] {
        let store = Faulty::new(Arc::new(InMemory::new()), 1);
        let database = open(&store).await.unwrap();
        let version = table(&database, &[0..5]).await.version();
        let t = entry(&database, &name("t")).await;
        store.add(Rule::once(Operation::Put, ".lance/_refs/tags", fault));
        let created = database.create_tag(&t, "a", None, i64::MAX).await;
        store.clear();
        let found = database.snapshot_at(&t, &AsOf::Tag("a".into()), i64::MAX).await;
        match fault {
            Fault::ErrorAfter | Fault::SaysExists => assert_eq!(created.unwrap(), version, "{fault:?}"),
            Fault::Conflict => assert!(matches!(created, Err(StorageError::Conflict(_))), "{created:?}"),
            _ => assert!(matches!(created, Err(StorageError::Unavailable(_))), "{created:?}"),
        }
        assert_eq!(found.is_ok(), matches!(fault, Fault::ErrorAfter | Fault::SaysExists), "{fault:?}");
    }
}

#[tokio::test]
async fn a_catalog_whose_answers_get_lost_and_damaged_is_changed_once() {
    for read in [Fault::FlipBit, Fault::TornBody, Fault::ErrorBefore] {
        for after in 0..4 {
            let store = Faulty::new(Arc::new(InMemory::new()), u64::from(after) + 1);
            let database = open(&store).await.unwrap();
            store.add(Rule::once(Operation::Put, "_catalog", Fault::ErrorAfter));
            store.add(Rule { after, times: 2, ..Rule::once(Operation::Get, "_catalog", read) });
            let made = database.create_schema("s", false).await;
            store.clear();
            let there = open(&store).await.unwrap().catalog().await.unwrap();
            let shown = format!("{read:?} {after}: {made:?}, number {}", there.number);
            assert_eq!(there.schemas.len() as u64, 1 + there.number, "{shown}");
            match &made {
                Ok(is_new) => assert!(*is_new && there.number == 1, "{shown}"),
                Err(error) => assert!(matches!(error, StorageError::Unavailable(_)) && there.number <= 1, "{shown}"),
            }
        }
    }
}

#[tokio::test]
async fn a_version_of_which_a_broken_vacuum_left_the_name_is_not_restored() {
    let store = Faulty::new(Arc::new(InMemory::new()), 1);
    let database = open(&store).await.unwrap();
    let old = keyed(&database, 0..5).await.version();
    let t = entry(&database, &name("t")).await;
    database.truncate(&name("t"), &t).await.unwrap();
    database.append(&name("t"), &t, stream(vec![rows(5..9)]), None).await.unwrap();
    let since = newest(&database, &name("t")).await.committed_at_us();
    store.add(Rule::always(Operation::Delete, ".lance/_versions"));
    let vacuumed = database.vacuum(&t, since, false).await;
    store.clear();
    let restored = open(&store).await.unwrap().restore(&name("t"), &t, &AsOf::Version(old), i64::MAX).await;
    assert!(matches!(restored, Err(StorageError::NotFound(_))), "{restored:?} {vacuumed:?}");
    let found = ids(&newest(&open(&store).await.unwrap(), &name("t")).await).await;
    assert_eq!(found.into_iter().map(|(id, _)| id).collect::<Vec<i32>>(), [5, 6, 7, 8]);
}
