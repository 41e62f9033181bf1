//! OPTIMIZE beside writers: what they do between its plan and its commit is neither lost nor undone.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field, Float32Type};
use futures::FutureExt;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;

use super::{Plan, Rewritten};
use crate::fixtures::{
    collect, entry, foreign, ids, keyed, memory, name, newest, request, rows, stream, table, vector,
};
use crate::{AsOf, Change, Database, OpenOptions, Snapshot, StorageError, TableEntry};

/// What a rewrite may hold.
fn bytes() -> usize {
    OpenOptions::default().rewrite_bytes
}

async fn append(database: &Database, entry: &TableEntry, ids: std::ops::Range<i32>) {
    database.append(&name("t"), entry, stream(vec![rows(ids)]), None).await.unwrap();
}

async fn change(database: &Database, entry: &TableEntry, gone: &[i32], come: Option<std::ops::Range<i32>>) {
    let turn = database.turn(&name("t"), entry).await.unwrap();
    let there = ids(turn.snapshot()).await;
    let deleted = there.into_iter().filter(|(id, _)| gone.contains(id)).map(|(_, address)| address).collect();
    let inserted = come.map(|ids| stream(vec![rows(ids)]));
    turn.commit(Change { operation: "UPDATE", deleted, inserted, copied: None, progress: None, once: None })
        .await
        .unwrap();
}

/// Rewrites the newest version, but for the fragments in these places, and commits nothing.
async fn rewritten(database: &Database, without: &[usize]) -> Rewritten {
    let snapshot = newest(database, &name("t")).await;
    let spared = without.iter().map(|at| snapshot.fragments()[*at].metadata.files[0].path.clone());
    let spared: HashSet<String> = spared.collect();
    Plan::on(snapshot, &spared, bytes()).await.unwrap().rewrite().await.unwrap()
}

/// How many parts were committed.
async fn commit(database: &Database, entry: &TableEntry, rewritten: &Rewritten) -> usize {
    let landed = database.commit_rewritten(&name("t"), entry, rewritten, None).await.unwrap();
    landed.map_or(0, |landed| landed.parts)
}

/// The ids, sorted, after a look at the values beside them, by scan and by the cache of vectors.
async fn contents(snapshot: &Snapshot) -> Vec<i32> {
    let there = ids(snapshot).await;
    let found = collect(snapshot, request(&["name", "price", "Big"])).await;
    for (at, (id, _)) in there.iter().enumerate() {
        let expected = rows(*id..*id + 1);
        for column in ["name", "price", "Big"] {
            let value = found.column_by_name(column).unwrap().slice(at, 1);
            assert_eq!(&value, expected.column_by_name(column).unwrap(), "{column} of {id}");
        }
    }
    let mut left: BTreeSet<u64> = there.iter().filter(|(id, _)| id % 11 != 0).map(|(_, address)| *address).collect();
    for chunk in snapshot.vector_chunks("emb").unwrap() {
        let chunk = snapshot.load_vectors(&chunk).await.unwrap();
        for at in 0..u32::try_from(chunk.vectors.len()).unwrap() {
            let address = chunk.first_address + u64::from(at);
            let is_live = chunk.live.as_ref().is_none_or(|live| live.contains(at));
            assert_eq!(is_live, left.remove(&address), "{address:x}");
            if is_live {
                let (id, _) = there.iter().find(|(_, other)| *other == address).unwrap();
                let value = chunk.vectors.value(at as usize);
                assert_eq!(value.as_primitive::<Float32Type>().values().to_vec(), vector(*id), "vector of {id}");
            }
        }
    }
    assert!(left.is_empty(), "vectors of {left:?}");
    sorted(there.into_iter().map(|(id, _)| id))
}

fn sorted(ids: impl IntoIterator<Item = i32>) -> Vec<i32> {
    let mut ids: Vec<i32> = ids.into_iter().collect();
    ids.sort_unstable();
    ids
}

async fn live(database: &Database) -> Vec<i32> {
    contents(&newest(database, &name("t")).await).await
}

#[tokio::test]
async fn rows_that_are_appended_meanwhile_are_kept() {
    let database = memory().await;
    keyed(&database, 0..5).await;
    let t = entry(&database, &name("t")).await;
    append(&database, &t, 5..9).await;
    append(&database, &t, 9..14).await;
    let before = newest(&database, &name("t")).await;
    contents(&before).await;
    let rewritten = rewritten(&database, &[]).await;
    append(&database, &t, 20..25).await;
    change(&database, &t, &[21], None).await;
    assert_eq!(commit(&database, &t, &rewritten).await, 1);
    let expected: Vec<i32> = (0..14).chain([20, 22, 23, 24]).collect();
    let after = newest(&database, &name("t")).await;
    assert_eq!(contents(&after).await, expected);
    assert_eq!(after.fragments().len(), 2);
    assert_eq!(database.history(&t).await.unwrap().last().unwrap().operation, "OPTIMIZE");
    // What is known of keys and of older versions is right where the files went.
    for taken in [3, 13, 22] {
        let refused = database.append(&name("t"), &t, stream(vec![rows(taken..taken + 1)]), None).await;
        assert!(matches!(refused, Err(StorageError::Duplicate(_))), "{taken}: {refused:?}");
    }
    append(&database, &t, 21..22).await;
    let changes = database.changes(&t, before.version(), after.version()).await.unwrap();
    assert_eq!((changes.removed.len(), changes.added.len()), (0, 4));
    let changes = database.changes(&t, after.version() - 1, after.version()).await.unwrap();
    assert_eq!((changes.removed.len(), changes.added.len()), (0, 0));
    assert_eq!(contents(&changes.old).await, expected);
}

#[tokio::test]
async fn a_part_of_which_a_row_was_deleted_is_not_committed_and_the_others_are() {
    let database = memory().await;
    table(&database, &[0..5, 5..9, 9..14, 14..20, 20..30]).await;
    let t = entry(&database, &name("t")).await;
    let parts = rewritten(&database, &[2]).await;
    assert_eq!(parts.parts.len(), 2);
    change(&database, &t, &[15, 10], None).await;
    assert_eq!(commit(&database, &t, &parts).await, 1);
    let expected: Vec<i32> = (0..30).filter(|id| ![10, 15].contains(id)).collect();
    assert_eq!(live(&database).await, expected);
    assert_eq!(newest(&database, &name("t")).await.fragments().len(), 4);
    assert_eq!(commit(&database, &t, &parts).await, 0, "what was committed or has changed is not committed again");
    let parts = rewritten(&database, &[]).await;
    change(&database, &t, &[16], Some(40..42)).await;
    assert_eq!(commit(&database, &t, &parts).await, 0);
    let expected: Vec<i32> = (0..30).filter(|id| ![10, 15, 16].contains(id)).chain(40..42).collect();
    assert_eq!(live(&database).await, expected);
}

#[tokio::test]
async fn what_was_planned_on_rows_that_changed_is_planned_again() {
    let database = memory().await;
    let old = table(&database, &[0..5, 5..9, 9..14]).await;
    let t = entry(&database, &name("t")).await;
    let plan = Plan::on(old, &HashSet::new(), bytes()).await.unwrap();
    change(&database, &t, &[7], Some(7..8)).await;
    let made = database.optimize_in_rounds(&name("t"), &t, plan).await.unwrap().unwrap();
    assert_eq!(made.fragments().len(), 1);
    assert_eq!(contents(&made).await, (0..14).collect::<Vec<i32>>());
    assert_eq!(live(&database).await, (0..14).collect::<Vec<i32>>());
}

#[tokio::test]
async fn another_process_may_write_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().display().to_string();
    let one = Database::open(&location, OpenOptions::default()).await.unwrap();
    table(&one, &[0..5, 5..9]).await;
    let t = entry(&one, &name("t")).await;
    let other = Database::open(&location, OpenOptions::default()).await.unwrap();
    let parts = rewritten(&one, &[]).await;
    append(&other, &t, 9..12).await;
    let late = one.turn(&name("t"), &t).await.unwrap();
    append(&other, &t, 12..14).await;
    let refused = parts.commit(late).await;
    assert!(matches!(refused, Err(StorageError::Stale(_))), "{:?}", refused.map(|landed| landed.map(|l| l.parts)));
    assert_eq!(commit(&one, &t, &parts).await, 1, "the files are right on the newest version");
    assert_eq!(live(&other).await, (0..14).collect::<Vec<i32>>());
    let parts = rewritten(&one, &[]).await;
    assert!(other.optimize(&name("t"), &t, false).await.unwrap().version.is_some());
    assert_eq!(commit(&one, &t, &parts).await, 0, "the other one rewrote them first");
    assert_eq!(live(&one).await, (0..14).collect::<Vec<i32>>());
}

#[tokio::test]
async fn fragments_that_a_restore_or_a_truncate_took_away_do_not_come_back() {
    let database = memory().await;
    let first = table(&database, &[0..5, 5..9]).await;
    let (t, n) = (entry(&database, &name("t")).await, name("t"));
    append(&database, &t, 9..14).await;
    let plan = async || Plan::on(newest(&database, &n).await, &HashSet::new(), bytes()).await.unwrap();
    let old = plan().await;
    database.restore(&n, &t, &AsOf::Version(first.version()), i64::MAX).await.unwrap();
    let made = database.optimize_in_rounds(&n, &t, old).await.unwrap().unwrap();
    assert_eq!(made.fragments().len(), 1);
    assert_eq!(contents(&made).await, (0..9).collect::<Vec<i32>>());
    append(&database, &t, 9..14).await;
    let old = plan().await;
    database.truncate(&n, &t).await.unwrap();
    assert!(database.optimize_in_rounds(&n, &t, old).await.unwrap().is_none());
    assert_eq!(live(&database).await, Vec::<i32>::new());
}

#[tokio::test]
async fn columns_that_come_and_go_meanwhile_come_and_go() {
    let database = memory().await;
    table(&database, &[0..5, 5..9]).await;
    let (t, n) = (entry(&database, &name("t")).await, name("t"));
    let parts = rewritten(&database, &[]).await;
    database.add_column(&n, &t, &Field::new("more", DataType::Int64, true), None).await.unwrap();
    assert_eq!(commit(&database, &t, &parts).await, 0);
    let plan = Plan::on(newest(&database, &n).await, &HashSet::new(), bytes()).await.unwrap();
    database.drop_column(&n, &t, "more").await.unwrap();
    let made = database.optimize_in_rounds(&n, &t, plan).await.unwrap().unwrap();
    assert_eq!((made.schema().fields().len(), made.fragments().len()), (5, 1));
    assert_eq!(contents(&made).await, (0..9).collect::<Vec<i32>>());
}

#[tokio::test]
async fn a_table_that_is_dropped_meanwhile_stays_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().display().to_string(), OpenOptions::default()).await.unwrap();
    table(&database, &[0..5, 5..9]).await;
    let (t, n) = (entry(&database, &name("t")).await, name("t"));
    let parts = rewritten(&database, &[]).await;
    database.drop_table(&n, false).await.unwrap();
    let Err(error) = database.commit_rewritten(&n, &t, &parts, None).await else { panic!("it was committed") };
    assert!(matches!(database.gone_or(&n, &t, error).await, StorageError::Conflict(_)));
    assert!(!folder.path().join(&t.location).exists());
    assert!(matches!(database.optimize(&n, &t, false).await, Err(StorageError::Conflict(_))));
}

#[tokio::test]
async fn a_dry_run_tells_and_changes_nothing() {
    let database = memory().await;
    let before = table(&database, &[0..5, 5..9, 9..14]).await;
    let (t, n) = (entry(&database, &name("t")).await, name("t"));
    let turn = database.turn(&n, &t).await.unwrap();
    let dry = database.optimize(&n, &t, true).await.unwrap();
    drop(turn);
    assert_eq!((dry.fragments_before, dry.fragments_after, dry.version), (3, 1, None));
    assert_eq!(newest(&database, &n).await.version(), before.version());
    let done = database.optimize(&n, &t, false).await.unwrap();
    assert_eq!((done.fragments_before, done.fragments_after, done.version), (3, 1, Some(before.version() + 1)));
    let again = database.optimize(&n, &t, false).await.unwrap();
    assert_eq!((again.fragments_before, again.fragments_after, again.version), (1, 1, None));
}

#[tokio::test]
async fn indexes_of_other_programs_are_kept_up() {
    let database = memory().await;
    table(&database, &[0..50, 50..90]).await;
    let (t, n) = (entry(&database, &name("t")).await, name("t"));
    let mut dataset = foreign(&database).await;
    dataset.create_index(&["id"], IndexType::BTree, None, &ScalarIndexParams::default(), false).await.unwrap();
    assert!(database.optimize(&n, &t, false).await.unwrap().version.is_some());
    let after = newest(&database, &n).await;
    assert_eq!(after.fragments().len(), 1);
    let filter = datafusion::prelude::col("id").eq(datafusion::prelude::lit(70));
    let found = collect(&after, crate::ScanRequest { filter: Some(filter), ..request(&["id"]) }).await;
    assert_eq!(found.num_rows(), 1);
    assert_eq!(live(&database).await, (0..90).collect::<Vec<i32>>());
}

#[tokio::test]
async fn an_optimize_that_is_dropped_midway_holds_nobody_up() {
    for polls in 1..12 {
        let database = memory().await;
        table(&database, &[0..5, 5..9]).await;
        let (t, n) = (entry(&database, &name("t")).await, name("t"));
        let mut optimize = database.optimize(&n, &t, false).boxed();
        for _ in 0..polls {
            if (&mut optimize).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(optimize);
        append(&database, &t, 9..12).await;
        assert_eq!(live(&database).await, (0..12).collect::<Vec<i32>>(), "{polls}");
    }
}

/// A small generator of numbers, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// Appends, deletes and updates at random; `model` is what the table holds.
async fn write(database: &Database, entry: &TableEntry, seed: u64, model: &mut Vec<i32>) {
    let mut numbers = Numbers(seed);
    let mut next = 1000;
    for _ in 0..30 {
        let kind = numbers.below(4);
        let count = i32::try_from(1 + numbers.below(6)).unwrap();
        let gone: Vec<i32> = (0..count).filter_map(|_| model.get(numbers.below(model.len().max(1))).copied()).collect();
        let come = next..next + count;
        next += count;
        match kind {
            0 => change(database, entry, &gone, None).await,
            1 => change(database, entry, &gone, Some(come.clone())).await,
            _ => append(database, entry, come.clone()).await,
        }
        if kind < 2 {
            model.retain(|id| !gone.contains(id));
        }
        if kind > 0 {
            model.extend(come);
        }
    }
}

#[tokio::test]
async fn whatever_is_written_meanwhile_the_rows_are_those_of_a_table_that_nobody_optimized() {
    for seed in 1..6 {
        let database = memory().await;
        let first = table(&database, &[0..40, 40..45, 45..50, 50..90]).await;
        let (t, n) = (entry(&database, &name("t")).await, name("t"));
        let mut model: Vec<i32> = (0..90).collect();
        let is_over = AtomicBool::new(false);
        let writing = async {
            write(&database, &t, seed, &mut model).await;
            is_over.store(true, Ordering::Relaxed);
        };
        let optimizing = async {
            while !is_over.load(Ordering::Relaxed) {
                database.optimize(&n, &t, false).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(writing, optimizing);
        assert_eq!(live(&database).await, sorted(model.iter().copied()), "seed {seed}");
        let history = database.history(&t).await.unwrap();
        assert!(history.iter().any(|version| version.operation == "OPTIMIZE"), "seed {seed}: nothing was optimized");
        let changes = database.changes(&t, first.version(), history.last().unwrap().version).await.unwrap();
        let kept = model.iter().filter(|id| **id < 1000).count();
        assert_eq!((changes.removed.len(), changes.added.len()), (90 - kept, model.len() - kept), "seed {seed}");
        database.optimize(&n, &t, false).await.unwrap();
        assert_eq!(live(&database).await, sorted(model.iter().copied()), "seed {seed}");
        assert_eq!(contents(&first).await, (0..90).collect::<Vec<i32>>(), "the first version of seed {seed}");
    }
}
