//! Tests of decoded vectors: the values of a scan at the places that addresses say, and a cache that keeps its bound.

use arrow::array::ArrayRef;
use arrow::array::{AsArray, Float16Array, Float32Array, Float64Array, Int8Array, RecordBatch, UInt8Array};
use arrow::datatypes::{Field, Float32Type, Int32Type, Schema, UInt64Type};

use super::*;
use crate::fixtures::{DIMENSIONS, collect, definition, foreign, memory, name, newest, request, stream, table, vector};
use crate::{CreateMode, Database};

async fn load(snapshot: &Snapshot) -> Vec<Arc<VectorChunk>> {
    let mut chunks = Vec::new();
    for chunk in snapshot.vector_chunks("emb").unwrap() {
        chunks.push(snapshot.load_vectors(&chunk).await.unwrap());
    }
    chunks
}

/// Chunks say the same as a scan: which rows live, where they are, and what their vectors are.
async fn check(snapshot: &Snapshot) -> Vec<Arc<VectorChunk>> {
    let scanned = collect(snapshot, request(&["_rowaddr", "id", "emb"])).await;
    let addresses = scanned.column(0).as_primitive::<UInt64Type>().values();
    let ids = scanned.column(1).as_primitive::<Int32Type>().values();
    let emb = scanned.column(2).as_fixed_size_list();
    let expected: Vec<(u64, Vec<f32>)> = (0..scanned.num_rows())
        .filter(|row| emb.is_valid(*row))
        .map(|row| (addresses[row], vector(ids[row])))
        .collect();
    let chunks = load(snapshot).await;
    let mut found = Vec::new();
    for chunk in &chunks {
        let values = chunk.vectors.values().as_primitive::<Float32Type>().values();
        let width = usize::try_from(DIMENSIONS).unwrap();
        assert_eq!((chunk.vectors.null_count(), values.len()), (0, chunk.vectors.len() * width));
        for row in 0..chunk.vectors.len() {
            let at = u32::try_from(row).unwrap();
            if chunk.live.as_ref().is_none_or(|live| live.contains(at)) {
                found.push((chunk.first_address + row as u64, values[row * width..(row + 1) * width].to_vec()));
            }
        }
    }
    assert_eq!(found, expected);
    chunks
}

async fn delete(database: &Database, predicate: &str) -> Snapshot {
    let mut dataset = foreign(database).await;
    dataset.delete(predicate).await.unwrap();
    newest(database, &name("t")).await
}

#[tokio::test]
async fn chunks_equal_a_scan_also_after_deletes_and_with_nulls() {
    let database = memory().await;
    let whole = table(&database, &[1..5, 12..20, 100..400]).await;
    let chunks = check(&whole).await;
    assert_eq!(chunks.len(), 3);
    assert!(chunks[0].live.is_none() && chunks[1].live.is_none(), "nothing is dead or NULL there");
    assert_eq!(chunks[2].live.as_ref().unwrap().len(), 300 - 27);
    check(&delete(&database, "id = 3 OR id = 111 OR id = 110 OR id > 350").await).await;
    let fewer = delete(&database, "id >= 12 AND id < 20").await;
    assert_eq!(check(&fewer).await.len(), 2, "a fragment without live rows is gone");
    check(&whole).await;
}

#[tokio::test]
async fn the_values_outlive_deletes_and_appends_in_the_cache() {
    let database = memory().await;
    let first = table(&database, &[0..100]).await;
    assert!(!load(&first).await[0].from_cache);
    assert!(load(&first).await[0].from_cache);
    let after = delete(&database, "id < 50").await;
    let chunks = check(&after).await;
    assert!(chunks[0].from_cache && chunks[0].bytes_read == 0, "a delete does not touch the file");
    let figures = database.vector_cache();
    assert_eq!((figures.hits, figures.misses), (2, 1));
    assert_eq!(figures.bytes, 100 * 8 * 4);
    database.drop_table(&name("t"), false).await.unwrap();
    assert_eq!(database.vector_cache().bytes, 0, "a dropped table frees its place");
}

#[tokio::test]
async fn the_cache_keeps_its_bound_and_still_hits_when_the_table_is_larger() {
    let database = memory().await;
    let fragments: Vec<_> = (0..10).map(|number| number * 100..number * 100 + 100).collect();
    let snapshot = table(&database, &fragments).await;
    let chunk_bytes = 100 * 8 * 4;
    database.set_vector_cache_bytes(4 * chunk_bytes + 1);
    for _ in 0..5 {
        check(&snapshot).await;
        assert!(database.vector_cache().bytes <= database.vector_cache().bytes_max);
    }
    let figures = database.vector_cache();
    assert_eq!(figures.bytes, 4 * chunk_bytes as u64);
    assert!(figures.hits >= 4 * 4, "{figures:?}");
    database.set_vector_cache_bytes(chunk_bytes);
    assert_eq!(database.vector_cache().bytes, chunk_bytes as u64);
    database.set_vector_cache_bytes(chunk_bytes - 1);
    assert_eq!(database.vector_cache().bytes, 0);
    let chunks = check(&snapshot).await;
    assert!(chunks.iter().all(|chunk| !chunk.from_cache && chunk.bytes_read == chunk_bytes as u64));
}

#[tokio::test]
async fn a_new_favourite_displaces_an_old_one() {
    let database = memory().await;
    let snapshot = table(&database, &[0..100, 100..200]).await;
    let chunks = snapshot.vector_chunks("emb").unwrap();
    database.set_vector_cache_bytes(100 * 8 * 4);
    for _ in 0..20 {
        snapshot.load_vectors(&chunks[0]).await.unwrap();
    }
    let mut found = false;
    for _ in 0..500 {
        found |= snapshot.load_vectors(&chunks[1]).await.unwrap().from_cache;
    }
    assert!(found, "what is asked for all the time gets in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_the_same_chunk_decode_it_once() {
    let cache = Arc::new(VectorCache::new(1 << 20));
    let key = Key { table: "t".into(), file: "f".to_owned(), field_id: 0, start: 0, rows: 1 };
    let begun = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let gate = Arc::new(tokio::sync::Notify::new());
    let call = |fail: bool| {
        let (cache, key, begun, gate) = (cache.clone(), key.clone(), begun.clone(), gate.clone());
        tokio::spawn(async move {
            let decode = || async {
                begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                gate.notified().await;
                if fail { Err(StorageError::internal("no")) } else { Ok(Arc::new(decoded())) }
            };
            cache.get_or_decode(key, decode).await.map(|(_, from_cache)| from_cache)
        })
    };
    let calls: Vec<_> = (0..4).map(|_| call(false)).collect();
    while begun.load(std::sync::atomic::Ordering::SeqCst) == 0 || cache.figures().misses < 4 {
        tokio::task::yield_now().await;
    }
    gate.notify_one();
    for call in calls {
        assert!(!call.await.unwrap().unwrap());
    }
    assert_eq!(begun.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(call(true).await.unwrap().unwrap(), "the fifth call finds it");
    cache.forget("t");
    let cancelled = call(false);
    while begun.load(std::sync::atomic::Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    cancelled.abort();
    assert!(cancelled.await.is_err());
    assert!(cache.lock().under_way.is_empty(), "a cancelled call leaves nothing behind");
    gate.notify_one();
    assert!(call(true).await.unwrap().is_err());
    assert!(cache.lock().under_way.is_empty() && cache.figures().bytes == 0);
}

fn decoded() -> Decoded {
    let values = Arc::new(Float32Array::from(vec![1.0, 2.0]));
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    Decoded { vectors: FixedSizeListArray::new(item, 2, values, None), valid: None, bytes: 8 }
}

#[tokio::test]
async fn every_element_type_is_read_and_others_are_refused() {
    let numbers = || (0..12).map(|number| number as f32);
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(Float16Array::from_iter_values(numbers().map(Half::from_f32))),
        Arc::new(Float32Array::from_iter_values(numbers())),
        Arc::new(Float64Array::from_iter_values(numbers().map(f64::from))),
        Arc::new(Int8Array::from_iter_values(numbers().map(|number| number as i8 - 5))),
        Arc::new(UInt8Array::from_iter_values(numbers().map(|number| number as u8))),
    ];
    let mut fields = vec![Field::new("text", DataType::Utf8, true)];
    let mut columns: Vec<ArrayRef> = vec![Arc::new(arrow::array::StringArray::from(vec!["a", "b", "c"]))];
    for (at, array) in arrays.iter().enumerate() {
        let item = Arc::new(Field::new("item", array.data_type().clone(), true));
        fields.push(Field::new(format!("v{at}"), DataType::FixedSizeList(item.clone(), 4), true));
        columns.push(Arc::new(FixedSizeListArray::new(item, 4, array.clone(), None)));
    }
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
    let database = memory().await;
    let t = name("t");
    let made = database.create_table_from(&t, definition(schema), CreateMode::ErrorIfExists, stream(vec![batch]), None);
    assert_eq!(made.await.unwrap(), Some(3));
    let snapshot = newest(&database, &t).await;
    for (at, array) in arrays.iter().enumerate() {
        let chunks = snapshot.vector_chunks(&format!("v{at}")).unwrap();
        let chunk = snapshot.load_vectors(&chunks[0]).await.unwrap();
        assert_eq!(chunk.vectors.values().as_ref(), array.as_ref());
        assert!(chunk.live.is_none());
    }
    assert!(matches!(snapshot.vector_chunks("text"), Err(StorageError::Invalid(_))));
    assert!(matches!(snapshot.vector_chunks("nope"), Err(StorageError::NotFound(_))));
}

type Half = <arrow::datatypes::Float16Type as arrow::datatypes::ArrowPrimitiveType>::Native;

#[tokio::test]
async fn a_large_fragment_is_cut_into_chunks_that_cover_it() {
    // 5,000 dimensions: 20 kB per row, so that 64 MiB hold 3,355 rows.
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let (rows, width) = (3_500_usize, 5_000_usize);
    let values = Float32Array::from_iter_values((0..rows * width).map(|at| (at / width) as f32));
    let emb = FixedSizeListArray::new(item, i32::try_from(width).unwrap(), Arc::new(values), None);
    let schema = Arc::new(Schema::new(vec![Field::new("emb", emb.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(emb)]).unwrap();
    let database = memory().await;
    let t = name("t");
    let made = database.create_table_from(&t, definition(schema), CreateMode::ErrorIfExists, stream(vec![batch]), None);
    assert_eq!(made.await.unwrap(), Some(rows as u64));
    let chunks = load(&newest(&database, &t).await).await;
    assert_eq!(chunks.len(), 2);
    let mut next = chunks[0].first_address;
    for chunk in &chunks {
        assert_eq!(chunk.first_address, next);
        let values = chunk.vectors.values().as_primitive::<Float32Type>().values();
        for row in 0..chunk.vectors.len() {
            let expected = (chunk.first_address & 0xffff_ffff) as f32 + row as f32;
            assert!(values[row * width] == expected && values[(row + 1) * width - 1] == expected);
        }
        next += chunk.vectors.len() as u64;
    }
    assert_eq!(next - chunks[0].first_address, rows as u64);
}
