//! Rates over loopback, from memory and from disk: streaming beside a plain arrow-flight server that sends the same batches,
//! prepared searches of several clients at once, ingest.
//!
//! `cargo bench --workspace --bench flight -- [ROWS] [DIM] [FOLDER]`
//!
//! Clients and servers share this process and its cores. The plain server has the batches in memory: what it reaches bounds
//! what any server of its kind can. `rivals.py` measures servers that are processes of their own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::Ticket;
use benches::flight_client::{self, Prepared, vectors_of};
use benches::rates::{self, K, Queries};
use benches::{Failure, median, plain};
use engine::arrow::array::{
    ArrayRef, AsArray, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use engine::arrow::datatypes::Float32Type;
use engine::{Engine, EngineOptions, ImportMode, IngestTarget};
use futures::stream::StreamExt;
use server::{Client, ConnectOptions, ServerOptions};

const ROWS: usize = 500_000;
const DIM: usize = 64;
/// Rows without vectors are narrow: so many times more of them make a stream of about the same length.
const MIXED_TIMES: usize = 6;
const BATCH_ROWS: usize = 8_192;
const ROUNDS: usize = 9;
/// How long searches are counted, several times over.
const ROUND: Duration = Duration::from_secs(2);
/// Few enough for the way through the server to matter, beside the search.
const SEARCHED: usize = 10_000;
const SEARCH: &str = "SELECT id, emb <-> $1 AS distance FROM vectors WHERE id < 10000 ORDER BY distance LIMIT 10";

fn main() -> Result<(), Failure> {
    let arguments = benches::arguments();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (rows, dim) = (number(0, ROWS)?, number(1, DIM)?);
    benches::in_folder(arguments.get(2), "flight", |folder| async move {
        let tables = [("vectors", vectors(rows, dim)?), ("mixed", mixed(rows * MIXED_TIMES)?)];
        for place in [Path::new("memory:"), &folder] {
            let at = if place == folder { "local disk" } else { "memory" };
            let (engine, uri) = serve(place).await?;
            for (table, batches) in &tables {
                ingest(&uri, table, batches, at).await?;
                stream(&engine, &uri, table, at).await?;
            }
            if place != folder {
                search(&tables[0].1, &uri, dim).await?;
            }
        }
        Ok(())
    })
}

async fn serve(place: &Path) -> Result<(Engine, String), Failure> {
    let engine = Engine::open(&place.to_string_lossy(), EngineOptions::default()).await?;
    let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), http: None, ..ServerOptions::default() };
    let listener = server::bind(&options).await?;
    let uri = format!("http://{}", listener.local_addr()?);
    tokio::spawn(server::serve_on(listener, engine.clone(), options, std::future::pending()));
    Ok((engine, uri))
}

/// A number for each row that looks like chance.
fn scattered(row: usize) -> u64 {
    (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11
}

fn in_batches(
    rows: usize,
    batch: impl Fn(usize, usize) -> Result<RecordBatch, Failure>,
) -> Result<Vec<RecordBatch>, Failure> {
    (0..rows).step_by(BATCH_ROWS).map(|start| batch(start, rows.min(start + BATCH_ROWS))).collect()
}

fn vectors(rows: usize, dim: usize) -> Result<Vec<RecordBatch>, Failure> {
    in_batches(rows, |start, end| {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values((start..end).map(|id| id as i64)));
        let values = (start * dim..end * dim).map(|at| ((at * 7919) % 10_007) as f32 / 10_007.0 - 0.5);
        let emb: ArrayRef = Arc::new(vectors_of(Float32Array::from_iter_values(values), dim)?);
        Ok(RecordBatch::try_from_iter([("id", ids), ("emb", emb)])?)
    })
}

/// Integers, doubles, short texts, some NULLs.
fn mixed(rows: usize) -> Result<Vec<RecordBatch>, Failure> {
    in_batches(rows, |start, end| {
        let column = |at: usize| (start..end).map(move |row| scattered(row * 8 + at));
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values((start..end).map(|id| id as i64)));
        let counts: ArrayRef = Arc::new(Int32Array::from_iter_values(column(1).map(|value| (value % 100_000) as i32)));
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(column(2).map(|value| value as i64)));
        let prices: ArrayRef = Arc::new(Float64Array::from_iter_values(column(3).map(|value| value as f64 / 1e9)));
        let ratios: Float64Array = column(4).map(|value| (value % 10 > 0).then_some(1.0 / value as f64)).collect();
        let words: StringArray =
            column(5).map(|value| (value % 20 > 0).then(|| format!("word {}", value % 9_999))).collect();
        let columns: [(&str, ArrayRef); 6] = [
            ("id", ids),
            ("count", counts),
            ("key", keys),
            ("price", prices),
            ("ratio", Arc::new(ratios)),
            ("word", Arc::new(words)),
        ];
        Ok(RecordBatch::try_from_iter(columns)?)
    })
}

async fn ingest(uri: &str, table: &str, batches: &[RecordBatch], at: &str) -> Result<(), Failure> {
    let options = ConnectOptions { uri: uri.replace("http", "grpc"), ..ConnectOptions::default() };
    let client = Client::connect(&options).await?;
    let target = IngestTarget { schema: "public".into(), table: table.into(), mode: ImportMode::Replace };
    let mut times = vec![];
    let mut written = 0;
    for _ in 0..3 {
        let rows = futures::stream::iter(batches.to_vec().into_iter().map(Ok)).boxed();
        let start = Instant::now();
        written = client.ingest(&target, batches[0].schema(), rows).await?;
        times.push(start.elapsed());
    }
    let rate = written as f64 / median(times).as_secs_f64() / 1e6;
    println!("ingest of {table} into {at}: {rate:.2} million rows/s ({written} rows, median of 3)");
    Ok(())
}

async fn stream(engine: &Engine, uri: &str, table: &str, at: &str) -> Result<(), Failure> {
    let sql = format!("SELECT * FROM {table}");
    let same = engine.session().execute(&sql).await?.collect().await?;
    let mut ours = flight_client::connect(uri, true).await?;
    let mut plain = flight_client::connect(&plain::serve(same).await?, false).await?;
    let (mut our_times, mut plain_times, mut ratios, mut bytes) = (vec![], vec![], vec![], 0);
    for round in 0..=ROUNDS {
        let ticket = flight_client::ticket(&mut ours, &sql).await?;
        let our = flight_client::receive(&mut ours, ticket).await?;
        let other = flight_client::receive(&mut plain, Ticket::new("all")).await?;
        assert_eq!((our.rows, our.bytes), (other.rows, other.bytes), "both send the same");
        bytes = our.bytes;
        if round > 0 {
            ratios.push(other.time.as_secs_f64() / our.time.as_secs_f64());
            our_times.push(our.time);
            plain_times.push(other.time);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let rate = |times| bytes as f64 / median(times).as_secs_f64() / 1e6;
    println!(
        "stream of {table}, {} MB, scanned anew each time from {at}: {:.0} MB/s; a plain server with the batches in memory: {:.0} MB/s; {:.0}% (median of {ROUNDS} pairs, {:.0}% to {:.0}%)",
        bytes / 1_000_000,
        rate(our_times),
        rate(plain_times),
        ratios[ratios.len() / 2] * 100.0,
        ratios[0] * 100.0,
        ratios[ratios.len() - 1] * 100.0,
    );
    Ok(())
}

/// Exact searches among the first rows, each with a vector of its own: bind, information, rows.
async fn search(first: &[RecordBatch], uri: &str, dim: usize) -> Result<(), Failure> {
    let queries = Arc::new(queries(first, dim)?);
    for clients in [1, 8, 64] {
        let mut connections = vec![];
        for _ in 0..clients {
            connections.push(Prepared::new(uri, SEARCH).await?);
        }
        let reached = rates::search(connections, &queries, ROUND, 3).await?;
        println!(
            "prepared search among {SEARCHED} rows, k = {K}, exact, {clients} clients: {:.0} queries/s, p50 {:.2} ms, p99 {:.2} ms, recall {:.3}",
            reached.qps,
            reached.p50.as_secs_f64() * 1e3,
            reached.p99.as_secs_f64() * 1e3,
            reached.recall
        );
    }
    Ok(())
}

fn queries(batches: &[RecordBatch], dim: usize) -> Result<Queries, Failure> {
    let vectors: Vec<Vec<f32>> =
        (0..64).map(|query| (0..dim).map(|at| ((query * 31 + at) as f32).sin() / 2.0).collect()).collect();
    let mut rows: Vec<&[f32]> = vec![];
    for batch in batches {
        rows.extend(batch.column(1).as_fixed_size_list().values().as_primitive::<Float32Type>().values().chunks(dim));
    }
    rows.truncate(SEARCHED);
    let nearest = |query: &Vec<f32>| {
        let mut distances: Vec<(f64, i64)> = rows
            .iter()
            .zip(0..)
            .map(|(row, id)| (row.iter().zip(query).map(|(a, b)| f64::from(a - b).powi(2)).sum(), id))
            .collect();
        distances.sort_by(|a, b| a.0.total_cmp(&b.0));
        distances.into_iter().take(K).map(|(_, id)| id).collect()
    };
    let nearest = vectors.iter().map(nearest).collect();
    Ok(Queries { vectors, nearest })
}
