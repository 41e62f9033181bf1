//! Tests of reading: each row exactly once, filters as DataFusion would have them, rows by address.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, BooleanArray, Int32Array, StringArray, StructArray};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Int32Type, UInt64Type};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::Operator;
use datafusion::logical_expr::{Cast, binary_expr, col, ident, lit};
use datafusion::prelude::SessionContext;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;

use super::*;
use crate::fixtures::{
    collect, definition, entry, foreign, memory, name, newest, request, rows, schema, stream, table,
};
use crate::{CreateMode, Database};

const ALL: [&str; 5] = ["id", "name", "price", "Big", "emb"];

/// Deletes rows as a foreign writer would, with Lance alone.
async fn delete(database: &Database, predicate: &str) -> Snapshot {
    let mut dataset = foreign(database).await;
    dataset.delete(predicate).await.unwrap();
    newest(database, &name("t")).await
}

fn ids(batch: &RecordBatch) -> Vec<i32> {
    let at = batch.schema_ref().index_of("id").unwrap();
    batch.column(at).as_primitive::<Int32Type>().values().to_vec()
}

#[tokio::test]
async fn columns_come_in_the_order_asked_for_with_exactly_the_promised_schema() {
    let database = memory().await;
    let snapshot = table(&database, &[0..100, 100..150]).await;
    assert_eq!(snapshot.schema(), schema());
    assert_eq!(snapshot.row_count(), 150);
    assert!(snapshot.bytes().unwrap() > 0);
    for columns in [
        &ALL[..],
        &["emb", "id"],
        &["price"],
        &["_rowaddr", "name", "id"],
        &["id", "_rowaddr"],
        &["id", "id"],
        &["_rowaddr"],
    ] {
        let request = request(columns);
        let promised = snapshot.scan_schema(&request.columns).unwrap();
        let stream = snapshot.scan(request).unwrap();
        assert_eq!(stream.schema(), promised);
        let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        assert!(batches.iter().all(|batch| batch.schema() == promised));
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 150, "{columns:?}");
    }
    let expected = concat_batches(&schema(), &[rows(0..100), rows(100..150)]).unwrap();
    assert_eq!(collect(&snapshot, request(&ALL)).await, expected);
    let counted: Vec<RecordBatch> = snapshot.scan(request(&[])).unwrap().try_collect().await.unwrap();
    assert_eq!(counted.iter().map(RecordBatch::num_rows).sum::<usize>(), 150);
    assert!(matches!(snapshot.scan(request(&["nope"])), Err(StorageError::NotFound(_))));
}

#[tokio::test]
async fn addresses_hold_fragment_and_offset_and_dead_rows_leave_gaps() {
    let database = memory().await;
    table(&database, &[0..50, 50..80]).await;
    let snapshot = delete(&database, "id >= 10 AND id < 20").await;
    assert_eq!(snapshot.row_count(), 70);
    let batch = collect(&snapshot, request(&["_rowaddr", "id"])).await;
    let addresses = batch.column(0).as_primitive::<UInt64Type>().values();
    let fragments: Vec<u64> = snapshot.fragments().iter().map(|fragment| u64::from(fragment.id) << 32).collect();
    for (address, id) in addresses.iter().zip(ids(&batch)) {
        let id = u64::try_from(id).unwrap();
        assert_eq!(*address, if id < 50 { fragments[0] + id } else { fragments[1] + id - 50 });
    }
    assert!(addresses.windows(2).all(|pair| pair[0] < pair[1]));
}

#[tokio::test]
async fn partitions_hold_each_live_row_exactly_once_in_order() {
    let database = memory().await;
    table(&database, &[0..60_000, 60_000..60_010, 60_010..110_000]).await;
    let snapshot = delete(&database, "id % 7 = 3 OR (id > 20000 AND id < 50000)").await;
    let expected = ids(&collect(&snapshot, request(&["id"])).await);
    assert_eq!(expected.len() as u64, snapshot.row_count());
    for target in [1, 2, 3, 5, 64] {
        let partitions = snapshot.partitions(target);
        assert!(partitions.len() <= target);
        assert_eq!(partitions.iter().map(ScanPartition::rows).sum::<u64>(), 110_000);
        let mut found = Vec::new();
        let mut filtered = 0;
        for partition in partitions {
            let mut request = request(&["id"]);
            request.partition = Some(partition);
            found.extend(ids(&collect(&snapshot, request.clone()).await));
            request.filter = Some(col("id").lt(lit(1000)));
            filtered += collect(&snapshot, request).await.num_rows();
        }
        assert_eq!(found, expected, "{target} partitions");
        assert_eq!(filtered, expected.iter().filter(|id| **id < 1000).count());
    }
    assert!(snapshot.partitions(4).len() == 4, "a large fragment is cut");
    assert!(table_without_rows().await.partitions(4).is_empty());
}

async fn table_without_rows() -> Snapshot {
    let database = memory().await;
    let snapshot = table(&database, &[]).await;
    assert_eq!(collect(&snapshot, request(&ALL)).await.num_rows(), 0);
    snapshot
}

#[tokio::test]
async fn a_limit_holds_with_and_without_a_filter() {
    let database = memory().await;
    let snapshot = table(&database, &[0..500, 500..1000]).await;
    for (limit, filter, expected) in [
        (0, None, 0),
        (10, None, 10),
        (700, None, 700),
        (5000, None, 1000),
        (3, Some(col("id").gt_eq(lit(990))), 3),
        (20, Some(col("id").gt_eq(lit(990))), 10),
        (1, Some(col("id").gt_eq(lit(5000))), 0),
    ] {
        let mut request = request(&["id"]);
        request.limit = Some(limit);
        request.filter = filter.clone();
        assert_eq!(collect(&snapshot, request).await.num_rows(), expected, "{limit} {filter:?}");
    }
}

fn cast_to(column: &str, to: DataType) -> Expr {
    Expr::Cast(Cast::new(Box::new(ident(column)), to))
}

/// Filters that are handed down; [`every_filter_that_is_taken_over_keeps_the_rows_that_datafusion_keeps`] compares.
fn filters() -> Vec<Expr> {
    let nan = lit(f64::NAN);
    vec![
        col("id").eq(lit(5)),
        col("id").not_eq(lit(5)),
        lit(5).lt(col("id")),
        col("price").gt(lit(12.5)),
        col("price").lt_eq(lit(12.5)),
        col("price").gt(nan.clone()),
        col("price").lt(nan),
        col("price").is_null(),
        col("price").is_not_null(),
        col("name").eq(lit("name 3")),
        col("name").gt_eq(lit("name 15")),
        col("name").like(lit("name 1%")),
        col("name").not_like(lit("name _")),
        ident("Big").gt(lit(30_000_000_210_i64)),
        ident("Big").is_null(),
        col("id").in_list(vec![lit(3), lit(33), lit(4000)], false),
        col("name").in_list(vec![lit("name 3"), lit("name 4")], true),
        col("id").between(lit(10), lit(20)),
        col("id").not_between(lit(10), lit(190)),
        cast_to("id", DataType::Int64).gt(lit(150_i64)),
        cast_to("id", DataType::Int64).in_list(vec![lit(150_i64)], false),
        cast_to("id", DataType::Float64).lt(col("price")),
        binary_expr(col("price").is_null(), Operator::Or, col("id").lt(lit(7))),
        Expr::Not(Box::new(col("price").gt(lit(12.5)).and(col("name").eq(lit("name 3"))))),
        Expr::Not(Box::new(col("name").like(lit("name 1%")).or(ident("Big").lt(lit(1_i64))))),
        col("id").gt(lit(3)).and(col("price").lt(lit(20.0))).and(col("name").is_not_null()),
        lit(true),
        lit(false),
        lit(ScalarValue::Boolean(None)),
        col("id").gt(lit(3)).and(lit(true)),
        col("id").gt(lit(3)).and(lit(ScalarValue::Boolean(None))),
        col("id").gt(lit(3)).or(lit(false)),
        Expr::Not(Box::new(lit(false))),
    ]
}

/// The rows that DataFusion keeps of all rows are the rows that a scan with the filter returns.
async fn check_filters(snapshot: &Snapshot) {
    let all = collect(snapshot, request(&ALL)).await;
    let context = SessionContext::new();
    let planned = DFSchema::try_from(schema()).unwrap();
    for filter in filters() {
        assert!(snapshot.can_filter(&filter), "{filter}");
        let evaluated = context.create_physical_expr(filter.clone(), &planned).unwrap();
        let mask = evaluated.evaluate(&all).unwrap().into_array(all.num_rows()).unwrap();
        let mask: BooleanArray = mask.as_boolean().clone();
        let expected = filter_record_batch(&all, &mask).unwrap();
        let mut request = request(&ALL);
        request.filter = Some(filter.clone());
        assert_eq!(collect(snapshot, request).await, expected, "{filter}");
    }
}

#[tokio::test]
async fn every_filter_that_is_taken_over_keeps_the_rows_that_datafusion_keeps() {
    let database = memory().await;
    let snapshot = table(&database, &[0..120, 120..200]).await;
    check_filters(&snapshot).await;
    let filter = col("price").gt(lit(1.0)).and(col("id").lt(lit(9)));
    assert!(snapshot.indexes_for(&filter).await.unwrap().is_empty());
}

#[tokio::test]
async fn scalar_indexes_are_used_and_change_no_answer() {
    let database = memory().await;
    table(&database, &[0..120, 120..160]).await;
    let mut dataset = foreign(&database).await;
    for column in ["id", "name", "price", "Big"] {
        let parameters = ScalarIndexParams::default();
        dataset.create_index(&[column], IndexType::BTree, None, &parameters, false).await.unwrap();
    }
    let t = name("t");
    let covered = newest(&database, &t).await;
    check_filters(&covered).await;
    let filter = col("id").eq(lit(5)).and(col("name").eq(lit("n")));
    assert_eq!(covered.indexes_for(&filter).await.unwrap(), ["id_idx (btree)", "name_idx (btree)"]);
    let entry = entry(&database, &t).await;
    database.append(&t, &entry, stream(vec![rows(160..200)]), None).await.unwrap();
    check_filters(&newest(&database, &t).await).await;
    check_filters(&delete(&database, "id % 4 = 1").await).await;
}

#[tokio::test]
async fn what_is_not_proven_is_not_taken_over() {
    let database = memory().await;
    let snapshot = table(&database, &[0..10]).await;
    let refused = [
        col("name").like(lit("%\\_%")),
        col("id").eq(lit(5_i64)),
        col("id").eq(lit(ScalarValue::Int32(None))),
        lit(1).eq(lit(1)),
        col("nope").eq(lit(1)),
        ident("big").is_null(),
        col("emb").is_null(),
        binary_expr(col("id"), Operator::Plus, lit(1)).eq(lit(3)),
        cast_to("price", DataType::Int32).eq(lit(3)),
        cast_to("name", DataType::Int32).eq(lit(3)),
        col("name").ilike(lit("x")),
        binary_expr(col("name"), Operator::RegexMatch, lit("x")),
        binary_expr(col("id"), Operator::IsDistinctFrom, lit(1)),
        col("id").in_list(vec![], false),
        col("id").in_list(vec![lit(ScalarValue::Int32(None))], false),
        datafusion::functions::expr_fn::lower(col("name")).eq(lit("x")),
        col("id").eq(lit(1)).and(datafusion::functions::expr_fn::random().gt(lit(0.5))),
    ];
    for filter in refused {
        assert!(!snapshot.can_filter(&filter), "{filter}");
        let mut request = request(&["id"]);
        request.filter = Some(filter);
        assert!(matches!(snapshot.scan(request), Err(StorageError::Invalid(_))));
    }
}

#[tokio::test]
async fn odd_column_names_and_types_are_read_and_filtered_only_where_that_is_safe() {
    let names = ["UPPER", "with space", "quo\"te", "ünï", "1st", "select", "a,b", "x'y", "same", "SAME"];
    let mut fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Int32, true)).collect();
    let numbers = |at: i32| Arc::new(Int32Array::from(vec![at, at + 1, at + 2])) as ArrayRef;
    let mut columns: Vec<ArrayRef> = (0..).take(names.len()).map(numbers).collect();
    let texts = StringArray::from(vec!["a", "b", "a"]);
    for kind in [
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        DataType::Utf8View,
        DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
    ] {
        fields.push(Field::new(format!("c{}", fields.len()), kind.clone(), true));
        columns.push(cast(&texts, &kind).unwrap());
    }
    let inner = Arc::new(Field::new("in.ner", DataType::Int32, true));
    fields.push(Field::new("struct", DataType::Struct(vec![inner.clone()].into()), true));
    columns.push(Arc::new(StructArray::from(vec![(inner, numbers(1))])));
    let marked = BTreeMap::from([("sagitta:type".to_owned(), "bit".to_owned())]);
    fields.push(Field::new("marked", DataType::Int32, true).with_metadata(marked.into_iter().collect()));
    columns.push(numbers(5));
    let given = Arc::new(Schema::new(fields).with_metadata([("k".to_owned(), "v".to_owned())].into()));
    let batch = RecordBatch::try_new(given.clone(), columns).unwrap();
    let database = memory().await;
    let t = name("t");
    database
        .create_table_from(&t, definition(given.clone()), CreateMode::ErrorIfExists, stream(vec![batch.clone()]), None)
        .await
        .unwrap();
    let snapshot = newest(&database, &t).await;
    let stored = crate::storable_schema(&given).unwrap();
    assert_eq!(snapshot.schema(), stored);
    assert_eq!(snapshot.field("marked").unwrap().metadata().len(), 1);
    for (at, field) in stored.fields().iter().enumerate() {
        let column = collect(&snapshot, request(&[field.name()])).await;
        let expected = cast(batch.column(at), field.data_type()).unwrap();
        assert_eq!(column.column(0).as_ref(), expected.as_ref(), "{}", field.name());
        let taken = snapshot.take(&[2, 0], &[field.name().clone()]).await.unwrap();
        assert_eq!(taken.column(0).len(), 2);
        let is_safe =
            ["UPPER", "select", "marked"].contains(&field.name().as_str()) || field.data_type() == &DataType::Utf8;
        let filter = ident(field.name()).is_not_null();
        assert_eq!(snapshot.can_filter(&filter), is_safe, "{}", field.name());
        if is_safe {
            let mut request = request(&[field.name()]);
            request.filter = Some(filter);
            assert_eq!(collect(&snapshot, request).await.num_rows(), 3);
        }
    }
}

#[test]
fn columns_that_a_table_cannot_have_are_refused_by_name() {
    let field = |name: &str| Field::new(name, DataType::Int32, true);
    for (fields, part) in [
        (vec![field("a.b")], "a.b"),
        (vec![field("a`b")], "a`b"),
        (vec![field("_rowid")], "_rowid"),
        (vec![field("_rowaddr")], "_rowaddr"),
        (vec![field("a"), field("a")], "twice"),
        (vec![field("")], "empty"),
        (vec![], "at least one"),
        (vec![Field::new_fixed_size_list("v", Field::new("item", DataType::Float32, true), 0, true)], "v"),
    ] {
        let error = crate::storable_schema(&Schema::new(fields)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn take_keeps_the_order_given_and_repeats_what_is_repeated() {
    let database = memory().await;
    table(&database, &[0..50, 50..80]).await;
    let snapshot = delete(&database, "id = 20").await;
    let live = collect(&snapshot, request(&["_rowaddr", "id"])).await;
    let address: BTreeMap<i32, u64> =
        ids(&live).into_iter().zip(live.column(0).as_primitive::<UInt64Type>().values().iter().copied()).collect();
    for wanted in [vec![], vec![7], vec![3, 4, 5], vec![79, 0, 51, 0, 79, 33], vec![19, 21, 22], vec![5, 5, 5]] {
        let addresses: Vec<u64> = wanted.iter().map(|id| address[id]).collect();
        let columns: Vec<String> = ["emb", "_rowaddr", "name", "id"].map(str::to_owned).to_vec();
        let batch = snapshot.take(&addresses, &columns).await.unwrap();
        assert_eq!(batch.schema(), snapshot.scan_schema(&columns).unwrap());
        assert_eq!(ids(&batch), wanted);
        assert_eq!(batch.column(1).as_primitive::<UInt64Type>().values().as_ref(), addresses.as_slice());
        for (at, id) in wanted.iter().enumerate() {
            assert_eq!(batch.column(0).slice(at, 1).as_ref(), rows(*id..id + 1).column(4).as_ref());
        }
        let counted = snapshot.take(&addresses, &[]).await.unwrap();
        assert_eq!(counted.num_rows(), wanted.len());
    }
    let dead = address[&19] + 1;
    assert!(matches!(snapshot.take(&[dead], &["id".to_owned()]).await, Err(StorageError::Invalid(_))));
    assert!(snapshot.take(&[address[&5], dead], &["id".to_owned()]).await.is_err());
    assert!(snapshot.take(&[99 << 32], &["id".to_owned()]).await.is_err());
}

#[tokio::test]
async fn a_damaged_data_file_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().display().to_string();
    let database = Database::open(&location, crate::OpenOptions::default()).await.unwrap();
    table(&database, &[0..2000]).await;
    let entry = entry(&database, &name("t")).await;
    let data = folder.path().join(&entry.location).join("data");
    let file = std::fs::read_dir(data).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(&file).unwrap();
    for cut in [0, 10, good.len() / 2, good.len() - 1] {
        std::fs::write(&file, &good[..cut]).unwrap();
        let database = Database::open(&location, crate::OpenOptions::default()).await.unwrap();
        let snapshot = newest(&database, &name("t")).await;
        let read: Result<Vec<RecordBatch>, _> = snapshot.scan(request(&ALL)).unwrap().try_collect().await;
        assert!(read.is_err(), "cut at {cut}");
        assert!(snapshot.load_vectors(&snapshot.vector_chunks("emb").unwrap()[0]).await.is_err());
    }
}
