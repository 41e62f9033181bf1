//! Tests of samples: the share that a filter selects is told about right, of the rows of now.

use datafusion::logical_expr::{col, lit};

use super::*;
use crate::fixtures::{foreign, memory, name, newest, table};

/// A sample has some thousand rows in 64 runs: neighbours may all be selected or none.
const ERROR_MAX: f64 = 0.05;

async fn share(snapshot: &Snapshot, filter: &Expr) -> f64 {
    snapshot.share_of(filter).await.unwrap().unwrap()
}

#[tokio::test]
async fn the_share_of_a_filter_is_told_about_right() {
    let database = memory().await;
    let snapshot = table(&database, &[0..7_000, 7_000..7_001, 7_001..20_000]).await;
    let filters = [
        (col("id").lt(lit(2_000_i32)), 0.1),
        (col("id").gt_eq(lit(2_000_i32)).and(col("id").lt(lit(12_000_i32))), 0.5),
        (col("name").is_null(), 0.2),
        (col("name").eq(lit("name 3")).or(col("id").lt(lit(10_000_i32))), 0.523),
        (col("id").gt(lit(30_000_i32)), 0.0),
        (col("id").is_not_null(), 1.0),
    ];
    for (filter, expected) in filters {
        let told = share(&snapshot, &filter).await;
        assert!((told - expected).abs() <= ERROR_MAX, "{filter}: {told}, not {expected}");
    }
    assert!(!snapshot.is_selective(&col("id").gt(lit(5_000_i32))).await);
    assert!(snapshot.is_selective(&col("id").lt(lit(300_i32))).await);
    // Nothing is known of a condition without columns, and of one that cannot be evaluated.
    assert_eq!(snapshot.share_of(&lit(true)).await.unwrap(), None);
    assert_eq!(snapshot.share_of(&col("id").eq(lit("text"))).await.unwrap(), None);
}

#[tokio::test]
async fn all_rows_of_a_small_table_are_its_sample_and_an_empty_one_has_none() {
    let database = memory().await;
    let empty = table(&database, &[]).await;
    assert_eq!(empty.share_of(&col("id").lt(lit(3_i32))).await.unwrap(), None);
    let database = memory().await;
    let mut snapshot = table(&database, &[0..3, 3..10]).await;
    assert_eq!(share(&snapshot, &col("id").lt(lit(3_i32))).await, 0.3);
    foreign(&database).await.delete("id < 2").await.unwrap();
    snapshot = newest(&database, &name("t")).await;
    // What is deleted says nothing; the sample of the other version stood for this one.
    assert_eq!(share(&snapshot, &col("id").lt(lit(3_i32))).await, 0.3);
    foreign(&database).await.delete("id > 4").await.unwrap();
    foreign(&database).await.delete("id < 9 AND id > 3").await.unwrap();
    snapshot.selections().samples.clear();
    snapshot = newest(&database, &name("t")).await;
    assert_eq!(share(&snapshot, &col("id").lt(lit(3_i32))).await, 0.5);
}

#[tokio::test]
async fn a_sample_is_taken_anew_when_many_rows_are_others() {
    let database = memory().await;
    let first = table(&database, &[0..1_000]).await;
    let filter = col("id").lt(lit(500_i32));
    assert!((share(&first, &filter).await - 0.5).abs() <= ERROR_MAX);
    let t = crate::fixtures::entry(&database, &name("t")).await;
    let rows = crate::fixtures::rows(1_000..5_000);
    database.append(&name("t"), &t, crate::fixtures::stream(vec![rows]), None).await.unwrap();
    let second = newest(&database, &name("t")).await;
    assert!((share(&second, &filter).await - 0.1).abs() <= ERROR_MAX);
    assert!((share(&first, &filter).await - 0.5).abs() <= ERROR_MAX);
}
