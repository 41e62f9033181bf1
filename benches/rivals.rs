//! The client of `rivals.py`: measures one server, and prints a line for each figure.
//!
//! `rivals KIND PLACE FOLDER SECONDS`. `FOLDER` holds `base.arrow` (`id`, `embedding`) and `queries.arrow` (`embedding`, and
//! `nearest`, the ids of the nearest rows by cosine). `KIND` is `sagitta`, `roapi`, `plain` (`PLACE` is the server's
//! address as a URL), `pgvector` (the same), or `plain-server`, which is that server: it ends with its standard input. `pgvector-ann`
//! is called by `rivals_ann.py`: `base.arrow` has a column `u` more, and `queries.arrow` the nearest rows with `u` below 100, 1,000 and
//! 5,000 of 10,000.
//!
//! All get the same rows and the same questions: all rows once over the wire, the ten nearest rows with their distances from
//! 1, 8 and 64 connections for `SECONDS` each, and rows sent in, where the server takes any.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::Ticket;
use benches::flight_client::{self, Prepared, Text};
use benches::postgres::{Postgres, Search};
use benches::rates::{self, K, Queries, Searcher};
use benches::{Failure, median, plain};
use engine::arrow::array::{AsArray, RecordBatch};
use engine::arrow::datatypes::{Float32Type, Int32Type, Int64Type};
use engine::arrow::ipc::reader::FileReader;
use engine::{ImportMode, IngestTarget};
use futures::stream::StreamExt;
use server::{Client, ConnectOptions};

const CLIENTS: [usize; 3] = [1, 8, 64];
const ROUNDS: usize = 3;
const STREAMS: usize = 5;
const INGESTS: usize = 3;
const ALL: &str = "SELECT id, embedding FROM docs";
const SEARCH: &str = "SELECT id, embedding <=> $1 AS distance FROM docs ORDER BY distance LIMIT 10";
/// The one distance that roapi's DataFusion has. It ranks vectors of length 1 as the cosine does.
const SEARCH_TEXT: &str = "SELECT id, array_distance(embedding, $1) AS distance FROM docs ORDER BY distance LIMIT 10";

fn main() -> Result<(), Failure> {
    let arguments = benches::arguments();
    let [kind, place, folder, seconds] = arguments.as_slice() else {
        return Err("usage: rivals KIND PLACE FOLDER SECONDS; rivals.py calls it".into());
    };
    let round = Duration::from_secs_f64(seconds.parse::<f64>()? / ROUNDS as f64);
    let base = read(&Path::new(folder).join("base.arrow"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if kind == "plain-server" {
            println!("{}", plain::serve(base).await?);
            tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut vec![])).await??;
            return Ok(());
        }
        let asked = read(&Path::new(folder).join("queries.arrow"))?;
        let queries = Arc::new(queries(&asked, "nearest", usize::MAX)?);
        match kind.as_str() {
            "sagitta" => {
                ingest(place, &base).await?;
                streams(place, Some(ALL), true).await?;
                searches(&queries, round, || Prepared::new(place, SEARCH)).await
            }
            "roapi" => {
                streams(place, Some(ALL), false).await?;
                searches(&queries, round, || Text::new(place, SEARCH_TEXT)).await
            }
            "plain" => streams(place, None, false).await,
            "pgvector" => pgvector(place, &base, &queries, round).await,
            "pgvector-ann" => pgvector_ann(place, (&base, &asked), &queries, round).await,
            other => Err(format!("there is no kind {other}").into()),
        }
    })
}

fn read(file: &Path) -> Result<Vec<RecordBatch>, Failure> {
    Ok(FileReader::try_new(File::open(file)?, None)?.collect::<Result<_, _>>()?)
}

/// At most so many queries, their nearest rows as a column tells.
fn queries(batches: &[RecordBatch], column: &str, count_max: usize) -> Result<Queries, Failure> {
    let (mut vectors, mut nearest) = (vec![], vec![]);
    for batch in batches {
        let ids = batch.column_by_name(column).ok_or_else(|| format!("queries.arrow has no column {column}"))?;
        let (embeddings, ids) = (batch.column(0).as_fixed_size_list(), ids.as_fixed_size_list());
        let dim = usize::try_from(embeddings.value_length())?;
        vectors.extend(embeddings.values().as_primitive::<Float32Type>().values().chunks(dim).map(<[f32]>::to_vec));
        nearest.extend(ids.values().as_primitive::<Int64Type>().values().chunks(K).map(<[i64]>::to_vec));
    }
    vectors.truncate(count_max);
    nearest.truncate(count_max);
    Ok(Queries { vectors, nearest })
}

fn told_stream(mut times: Vec<Duration>, bytes: usize) {
    // The first one warms up.
    times.remove(0);
    println!("stream mb_per_s={:.0}", bytes as f64 / median(times).as_secs_f64() / 1e6);
}

fn told_ingest(times: Vec<Duration>, rows: usize) {
    println!("ingest rows_per_s={:.0}", rows as f64 / median(times).as_secs_f64());
}

/// All rows, from the question to the last of them.
async fn streams(uri: &str, sql: Option<&str>, has_sessions: bool) -> Result<(), Failure> {
    let mut client = flight_client::connect(uri, has_sessions).await?;
    let (mut times, mut bytes) = (vec![], 0);
    for _ in 0..=STREAMS {
        let start = Instant::now();
        let ticket = match sql {
            Some(sql) => flight_client::ticket(&mut client, sql).await?,
            None => Ticket::new("all"),
        };
        bytes = flight_client::receive(&mut client, ticket).await?.bytes;
        times.push(start.elapsed());
    }
    told_stream(times, bytes);
    Ok(())
}

async fn ingest(uri: &str, base: &[RecordBatch]) -> Result<(), Failure> {
    let options = ConnectOptions { uri: uri.replace("http", "grpc"), ..ConnectOptions::default() };
    let client = Client::connect(&options).await?;
    let target = IngestTarget { schema: "public".into(), table: "docs".into(), mode: ImportMode::Replace };
    let (mut times, mut rows) = (vec![], 0);
    for _ in 0..INGESTS {
        let batches = futures::stream::iter(base.to_vec().into_iter().map(Ok)).boxed();
        let start = Instant::now();
        rows = client.ingest(&target, base[0].schema(), batches).await?;
        times.push(start.elapsed());
    }
    told_ingest(times, usize::try_from(rows)?);
    Ok(())
}

async fn searches<S: Searcher>(
    queries: &Arc<Queries>,
    round: Duration,
    connect: impl AsyncFn() -> Result<S, Failure>,
) -> Result<(), Failure> {
    for clients in CLIENTS {
        let mut connections = vec![];
        for _ in 0..clients {
            connections.push(connect().await?);
        }
        let reached = rates::search(connections, queries, round, ROUNDS).await?;
        println!(
            "search clients={clients} qps={:.1} p50={:.2} p99={:.2} recall={:.3}",
            reached.qps,
            reached.p50.as_secs_f64() * 1e3,
            reached.p99.as_secs_f64() * 1e3,
            reached.recall
        );
    }
    Ok(())
}

/// As the others, over PostgreSQL's own protocol; then the same searches through an index, which are approximate.
async fn pgvector(address: &str, base: &[RecordBatch], queries: &Arc<Queries>, round: Duration) -> Result<(), Failure> {
    let mut connection = Postgres::connect(address).await?;
    connection.run("CREATE EXTENSION vector").await?;
    let dim = base[0].column(1).as_fixed_size_list().value_length();
    let mut times = vec![];
    for _ in 0..INGESTS {
        connection.run("DROP TABLE IF EXISTS docs").await?;
        connection.run(&format!("CREATE TABLE docs (id bigint, embedding vector({dim}))")).await?;
        let start = Instant::now();
        connection.copy_in("docs", base).await?;
        times.push(start.elapsed());
    }
    told_ingest(times, base.iter().map(RecordBatch::num_rows).sum());
    connection.run("VACUUM ANALYZE docs").await?;
    let (mut times, mut bytes) = (vec![], 0);
    for _ in 0..=STREAMS {
        let start = Instant::now();
        bytes = connection.copy_out(ALL).await?;
        times.push(start.elapsed());
    }
    told_stream(times, bytes);
    searches(queries, round, || Search::new(address, SEARCH)).await?;
    let start = Instant::now();
    connection.run("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops)").await?;
    println!("index seconds={:.0}", start.elapsed().as_secs_f64());
    searches(queries, round, || Search::new(address, SEARCH)).await
}

/// What `hnsw.ef_search` is, from the cheapest on.
const EFFORTS: [u32; 9] = [16, 24, 32, 48, 64, 96, 128, 192, 256];
/// The first of these with such a recall is the one whose rates count.
const RECALL: f64 = 0.95;
/// After one with such a recall none is measured.
const RECALL_LAST: f64 = 0.99;
/// Rows with `u` below, of 10,000.
const BOUNDS: [u32; 3] = [100, 1_000, 5_000];
const FILTERED_QUERIES_MAX: usize = 200;
const ANN_CLIENTS: [usize; 2] = [1, 8];

/// Searches through pgvector's HNSW with three columns fetched beside the id: at the cheapest setting that finds enough, filtered too.
async fn pgvector_ann(
    address: &str,
    (base, asked): (&[RecordBatch], &[RecordBatch]),
    queries: &Arc<Queries>,
    round: Duration,
) -> Result<(), Failure> {
    let mut connection = Postgres::connect(address).await?;
    load_ann(&mut connection, base).await?;
    let start = Instant::now();
    // A wider construction than pgvector's own (64) makes a better index.
    let create = "CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops) WITH (m = 16, ef_construction = 128)";
    connection.run(create).await?;
    println!("index seconds={:.2}", start.elapsed().as_secs_f64());
    let sql = ann_search("");
    let mut chosen = None;
    for effort in EFFORTS {
        let found = ann_rates(address, ("search", &sql, effort), queries, (1, round)).await?;
        if found >= RECALL {
            chosen = chosen.or(Some(effort));
        }
        if found >= RECALL_LAST {
            break;
        }
    }
    let chosen = chosen.unwrap_or(EFFORTS[EFFORTS.len() - 1]);
    for clients in ANN_CLIENTS.into_iter().filter(|clients| *clients > 1) {
        ann_rates(address, ("search", &sql, chosen), queries, (clients, round)).await?;
    }
    for bound in BOUNDS {
        let queries = Arc::new(self::queries(asked, &format!("nearest_{bound}"), FILTERED_QUERIES_MAX)?);
        let sql = ann_search(&format!("WHERE u < {bound}"));
        for effort in EFFORTS {
            let what = format!("filter bound={bound}");
            if ann_rates(address, (&what, &sql, effort), &queries, (1, round)).await? >= RECALL {
                break;
            }
        }
    }
    Ok(())
}

fn ann_search(predicate: &str) -> String {
    format!("SELECT id, name, u, released FROM docs {predicate} ORDER BY embedding <=> $1 LIMIT {K}")
}

/// The rows with the columns that are fetched, and an index for the predicates.
async fn load_ann(connection: &mut Postgres, base: &[RecordBatch]) -> Result<(), Failure> {
    connection.run("CREATE EXTENSION vector").await?;
    let dim = base[0].column(1).as_fixed_size_list().value_length();
    connection.run(&format!("CREATE TABLE raw (id bigint, embedding vector({dim}))")).await?;
    connection.copy_in("raw", base).await?;
    let mut u = vec![];
    for batch in base {
        let column = batch.column_by_name("u").ok_or("base.arrow has no column u")?;
        u.extend(column.as_primitive::<Int32Type>().values().iter().map(i32::to_string));
    }
    let create = format!(
        "CREATE TABLE docs AS SELECT raw.id, 'package ' || raw.id AS name, given.u, 1500000000 + raw.id AS released, raw.embedding \
         FROM raw JOIN unnest('{{{}}}'::int[]) WITH ORDINALITY AS given (u, place) ON given.place = raw.id + 1 ORDER BY raw.id",
        u.join(",")
    );
    connection.run(&create).await?;
    connection.run("DROP TABLE raw").await?;
    connection.run("CREATE INDEX ON docs (u)").await?;
    connection.run("VACUUM ANALYZE docs").await
}

/// Prints rates, after `what` they are of, and the recall over all queries once, which it returns.
async fn ann_rates(
    address: &str,
    (what, sql, effort): (&str, &str, u32),
    queries: &Arc<Queries>,
    (clients, round): (usize, Duration),
) -> Result<f64, Failure> {
    let mut connections = vec![];
    for _ in 0..clients {
        let mut connection = Postgres::connect(address).await?;
        // It matters where a predicate leaves too few of those that were found: more are looked for.
        connection.run("SET hnsw.iterative_scan = strict_order").await?;
        connection.run(&format!("SET hnsw.ef_search = {effort}")).await?;
        connections.push(Search::on(connection, sql).await?);
    }
    let recall = rates::recall(&mut connections[0], queries).await?;
    let reached = rates::search(connections, queries, round, ROUNDS).await?;
    println!(
        "{what} clients={clients} ef={effort} qps={:.1} p50={:.4} p99={:.4} recall={recall:.4}",
        reached.qps,
        reached.p50.as_secs_f64() * 1e3,
        reached.p99.as_secs_f64() * 1e3
    );
    Ok(recall)
}
