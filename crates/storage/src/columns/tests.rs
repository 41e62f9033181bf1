//! Tests of decoded columns: what is fetched from them is what is fetched from the files, at every version.

use std::time::Duration;

use arrow::array::RecordBatch;

use super::*;
use crate::Database;
use crate::fixtures::{foreign, memory, name, newest, table};

const COLUMNS: [&str; 4] = ["Big", "id", "_rowaddr", "name"];

async fn fetched(snapshot: &Snapshot, addresses: &[u64]) -> Result<RecordBatch> {
    snapshot.take(addresses, &COLUMNS.map(str::to_owned)).await
}

/// Fetches until the columns are there.
async fn fetched_often(snapshot: &Snapshot, addresses: &[u64], kept: usize) {
    for _ in 0..1_000 {
        if snapshot.columns().kept.len() >= kept {
            return;
        }
        fetched(snapshot, addresses).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{} columns are kept", snapshot.columns().kept.len());
}

async fn changed(database: &Database, predicate: &str) -> Snapshot {
    let mut dataset = foreign(database).await;
    dataset.delete(predicate).await.unwrap();
    newest(database, &name("t")).await
}

#[tokio::test]
async fn rows_come_from_decoded_columns_as_from_files() {
    let database = memory().await;
    let first = table(&database, &[0..100, 100..150]).await;
    let addresses = [(1 << 32) + 7, 3, 99, 3, 1 << 32];
    let expected = fetched(&first, &addresses).await.unwrap();
    // Three columns of two fragments.
    fetched_often(&first, &addresses, 6).await;
    let hits = first.columns().figures().hits;
    assert_eq!(fetched(&first, &addresses).await.unwrap(), expected);
    assert!(first.columns().figures().hits > hits && first.columns().figures().bytes > 0);
    for missing in [100, 2 << 32, (1 << 32) + 50] {
        assert!(fetched(&first, &[3, missing]).await.is_err(), "{missing}");
    }
    // The same columns serve a version with deletions, and none of its dead rows.
    let second = changed(&database, "id = 3").await;
    let error = fetched(&second, &addresses).await.unwrap_err();
    assert!(matches!(error, StorageError::Invalid(_)), "{error}");
    assert_eq!(fetched(&second, &[99, 1 << 32]).await.unwrap(), fetched(&first, &[99, 1 << 32]).await.unwrap());
    assert_eq!(fetched(&first, &addresses).await.unwrap(), expected);
    assert_eq!(second.columns().kept.len(), 6);
}

#[tokio::test]
async fn a_column_that_is_too_large_is_tried_once() {
    let columns = Columns::new(1_000);
    let key = Key { table: "t".into(), file: "f".to_owned(), field_id: 1 };
    let due = (0..1_000).filter(|_| columns.is_due(&key, 8_192)).count();
    assert_eq!(due, 1);
    let large: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![1; 1_000]));
    columns.settle(&key, Some(large));
    assert!(columns.kept.is_empty() && !columns.is_due(&key, 8_192));
    columns.forget("t");
    assert!((0..1_000).any(|_| columns.is_due(&key, 8_192)));
}
