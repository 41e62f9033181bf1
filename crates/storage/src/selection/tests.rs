//! Tests of selections: they are what scans find, and are told alike however they are kept.

use arrow::array::AsArray;
use datafusion::logical_expr::{col, lit};

use super::*;
use crate::fixtures::{collect, foreign, memory, name, newest, request, table};

#[test]
fn few_rows_and_many_are_told_alike() {
    let rows = |step: usize| -> RoaringBitmap { (0..10_000).step_by(step).collect() };
    for step in [1, 3, 64, 65, 900] {
        let (first, second) = (rows(step), rows(step));
        let parts = [(2, &first), (7, &second)];
        let addresses: Vec<u64> = parts
            .iter()
            .flat_map(|(fragment, rows)| rows.iter().map(move |row| (*fragment as u64) << 32 | u64::from(row)))
            .collect();
        let few = Selection::of_addresses(addresses.clone());
        for selection in
            [Selection::of_fragments(parts.into_iter(), 20_000), Selection::of_fragments(parts.into_iter(), 1), few]
        {
            assert_eq!(selection.count(), addresses.len());
            for (fragment, start, length) in
                [(2, 0, 10_000), (2, 100, 1), (2, 127, 1_000), (7, 9_990, 500), (3, 0, 100)]
            {
                let first = (fragment << 32) + start;
                let within = |address: &&u64| (first..first + length).contains(*address);
                let expected: Vec<u32> =
                    addresses.iter().filter(within).map(|address| (address - first) as u32).collect();
                assert_eq!(selection.offsets(first, length), expected, "{step} {fragment} {start} {length}");
            }
        }
    }
}

fn selecting(filter: Expr) -> SelectionRequest {
    SelectionRequest { filter, partitions_max: 3, batch_rows: 16, buffer_bytes: 1 << 20 }
}

/// The addresses that a selection has of a snapshot, one fragment after the other.
fn selected(snapshot: &Snapshot, selection: &Selection) -> Vec<u64> {
    let of_fragment = |fragment: &crate::snapshot::FragmentShape| {
        let first = u64::from(fragment.id) << 32;
        selection.offsets(first, fragment.rows).into_iter().map(move |offset| first + u64::from(offset))
    };
    snapshot.fragments().iter().flat_map(of_fragment).collect()
}

async fn scanned(snapshot: &Snapshot, filter: &Expr) -> Vec<u64> {
    let request = ScanRequest { filter: Some(filter.clone()), ..request(&["_rowaddr"]) };
    let batch = collect(snapshot, request).await;
    batch.column(0).as_primitive::<UInt64Type>().values().to_vec()
}

#[tokio::test]
async fn a_selection_is_what_a_scan_finds_at_every_version() {
    let database = memory().await;
    let first = table(&database, &[0..100, 100..150, 150..400]).await;
    let filters = [col("id").lt(lit(120_i32)), col("id").gt(lit(1_000_i32)), col("id").not_eq(lit(7_i32))];
    let mut snapshots = vec![first];
    for predicate in ["id = 3", "id >= 100 AND id < 150", "id = 399", "id = 4"] {
        let mut dataset = foreign(&database).await;
        dataset.delete(predicate).await.unwrap();
        snapshots.push(newest(&database, &name("t")).await);
    }
    // Forth, back, and each once more: what is known of a fragment is taken from whichever version asked last.
    for snapshot in snapshots.iter().chain(snapshots.iter().rev()).flat_map(|snapshot| [snapshot, snapshot]) {
        for filter in &filters {
            let found = snapshot.selection(&selecting(filter.clone())).await.unwrap();
            let expected = scanned(snapshot, filter).await;
            assert_eq!(selected(snapshot, &found.selection), expected, "{filter} at {}", snapshot.version());
            assert_eq!(found.selection.count(), expected.len());
        }
    }
    let last = snapshots.last().unwrap();
    let again = last.selection(&selecting(filters[0].clone())).await.unwrap();
    let before = snapshots[3].selection(&selecting(filters[0].clone())).await.unwrap();
    let all: u64 = last.fragments().iter().map(|fragment| fragment.rows).sum();
    assert!(again.rows_known < all, "asked of the first version before");
    assert!(before.rows_known > 0 && before.rows_known < all, "the last fragment is the same, the first is not");
    assert!(last.selections().figures().hits > 0);
}
