//! The exact search: nearest 10 of many vectors, in the library and through SQL, beside the machine's read bandwidth
//! and FAISS's flat index on the same vectors in the same run.
//!
//! `cargo bench -p benches --bench exact_search -- FILE.parquet [COLUMN]`
//!
//! A scan reads `rows × dim × 4` bytes and does two operations per element: it cannot be faster than memory.
//! FAISS is measured where `python3` can import `faiss`: each round times our scan, then FAISS's, on one thread;
//! medians and the median of the ratios are printed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use benches::{Failure, gigabytes_per_second, in_folder, median, open, timed};
use engine::arrow::array::{Array, AsArray};
use engine::arrow::buffer::{Buffer, ScalarBuffer};
use engine::arrow::datatypes::{Float32Type, Int64Type};
use engine::{ImportMode, ImportOptions, Progress, Session, Started};
use kernels::{Metric, Query, TopK, Vectors};

const K: usize = 10;
const ROUNDS: usize = 15;
const STATEMENTS: usize = 500;

fn main() -> Result<(), Failure> {
    let arguments = benches::arguments();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/packages.parquet").to_owned();
    let file = arguments.first().cloned().unwrap_or(shipped);
    let column = arguments.get(1).cloned().unwrap_or_else(|| "embedding".to_owned());
    in_folder(None, "search", |folder| measure(folder, file, column))
}

async fn measure(folder: PathBuf, file: String, column: String) -> Result<(), Failure> {
    let session = load(&folder, &file, &column).await?;
    let (vectors, dim) = vectors(&session).await?;
    let vectors = in_large_pages(&vectors)?;
    let rows = vectors.len() / dim;
    println!(
        "data: {file}, column {column}: {rows} × {dim} f32 = {} MB; k = {K}, cosine",
        vectors.len() * 4 / 1_000_000
    );
    for threads in [1, 2] {
        library(&vectors, dim, threads)?;
    }
    beside_faiss(&vectors, dim, &folder)?;
    drop(vectors);
    sql(&folder, &session, dim).await
}

/// The values in large pages, as the engine's cache of decoded vectors holds them.
fn in_large_pages(values: &[f32]) -> Result<ScalarBuffer<f32>, Failure> {
    const PAGE_BYTES: usize = 2 << 20;
    let bytes = size_of_val(values);
    let mut mapping = memmap2::MmapMut::map_anon(bytes + PAGE_BYTES)?;
    mapping.advise(memmap2::Advice::HugePage)?;
    let start = mapping.as_ptr().align_offset(PAGE_BYTES);
    for (place, value) in mapping[start..start + bytes].chunks_exact_mut(4).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    let buffer = Buffer::from(bytes::Bytes::from_owner(mapping)).slice_with_length(start, bytes);
    Ok(ScalarBuffer::new(buffer, 0, values.len()))
}

/// A table with the column as `f32`, so that every contender has the same bytes.
async fn load(folder: &Path, file: &str, column: &str) -> Result<Session, Failure> {
    let session = open(folder).await?;
    let options = ImportOptions {
        sources: vec![file.to_owned()],
        table: "source".into(),
        format: None,
        mode: ImportMode::Create,
    };
    session.import(options, Progress::new()).await?;
    let described =
        session.execute(&format!("SELECT vector_dims({column}) FROM source LIMIT 1")).await?.collect().await?;
    let dim = described[0].column(0).as_primitive::<Int64Type>().value(0);
    session
        .execute(&format!(
            "CREATE TABLE docs AS SELECT row_number() OVER () AS id, {column}::vector({dim}) AS emb FROM source"
        ))
        .await?;
    Ok(session)
}

async fn vectors(session: &Session) -> Result<(Vec<f32>, usize), Failure> {
    let batches = session.execute("SELECT emb FROM docs").await?.collect().await?;
    let (mut values, mut dim) = (vec![], 0);
    for batch in &batches {
        let list = batch.column(0).as_fixed_size_list();
        dim = list.value_length() as usize;
        values.extend_from_slice(
            list.values().slice(list.offset() * dim, list.len() * dim).as_primitive::<Float32Type>().values(),
        );
    }
    Ok((values, dim))
}

/// The kernel alone: rows are split among threads, each with its own heap.
fn top_k(query: &Query, vectors: &[f32], dim: usize, threads: usize) -> Result<Vec<kernels::Neighbor>, Failure> {
    let rows = vectors.len() / dim;
    let part = rows.div_ceil(threads);
    let mut all = TopK::new(K);
    let parts: Vec<Result<TopK, kernels::DistanceError>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let range = (thread * part).min(rows)..((thread + 1) * part).min(rows);
                scope.spawn(move || {
                    let mut top = TopK::new(K);
                    query.top_k(
                        Vectors::F32(&vectors[range.start * dim..range.end * dim]),
                        range.start as u64,
                        &mut top,
                    )?;
                    Ok(top)
                })
            })
            .collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    });
    for part in parts {
        all.merge(part?);
    }
    Ok(all.into_sorted())
}

/// An unrolled read of all values: as fast as this machine's memory gives them to so many threads.
fn read_all(vectors: &[f32], threads: usize) -> f64 {
    let part = vectors.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let workers: Vec<_> = vectors.chunks(part).map(|chunk| scope.spawn(move || sum(chunk))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).sum()
    })
}

fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0f32; 64];
    for chunk in values.chunks_exact(64) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value);
    }
    lanes.iter().map(|lane| f64::from(*lane)).sum()
}

fn query_at(vectors: &[f32], dim: usize, at: usize) -> Result<Query, Failure> {
    let row = at * 7919 % (vectors.len() / dim);
    Ok(Query::new(Metric::Cosine, dim, Vectors::F32(&vectors[row * dim..(row + 1) * dim]))?)
}

fn library(vectors: &[f32], dim: usize, threads: usize) -> Result<(), Failure> {
    let bytes = size_of_val(vectors);
    let (mut scans, mut reads) = (vec![], vec![]);
    for round in 0..ROUNDS {
        let query = query_at(vectors, dim, round)?;
        let (found, time) = timed(|| top_k(&query, vectors, dim, threads));
        assert_eq!(found?.len(), K.min(vectors.len() / dim));
        scans.push(time);
        let (total, time) = timed(|| read_all(vectors, threads));
        assert!(total.is_finite());
        reads.push(time);
    }
    let (scan, read) = (gigabytes_per_second(bytes, median(scans)), gigabytes_per_second(bytes, median(reads)));
    println!(
        "library, {threads} thread(s): {scan:.1} GB/s of {read:.1} GB/s that an unrolled read reaches: {:.0}%",
        scan / read * 100.0
    );
    Ok(())
}

/// A FAISS process that answers one query per line of its input with the time it took.
struct Faiss {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

const FAISS: &str = r#"
import sys, time, numpy as np, faiss
faiss.omp_set_num_threads(1)
base = np.fromfile(sys.argv[1], dtype=np.float32).reshape(-1, int(sys.argv[2]))
index = faiss.IndexFlatIP(base.shape[1]); index.add(base)
print(faiss.__version__, flush=True)
for line in sys.stdin:
    query = base[int(line)][None]
    start = time.perf_counter(); index.search(query, 10); print(time.perf_counter() - start, flush=True)
"#;

impl Faiss {
    fn start(path: &Path, dim: usize) -> Option<(Self, String)> {
        let mut child = Command::new("python3")
            .args(["-c", FAISS])
            .arg(path)
            .arg(dim.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let (input, output) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        let mut faiss = Self { child, input, output };
        let version = faiss.line()?;
        Some((faiss, version))
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        Some(line.trim().to_owned())
    }

    fn search(&mut self, row: usize) -> Option<Duration> {
        writeln!(self.input, "{row}").ok()?;
        self.line()?.parse().ok().map(Duration::from_secs_f64)
    }
}

fn beside_faiss(vectors: &[f32], dim: usize, folder: &Path) -> Result<(), Failure> {
    let path = folder.join("vectors.f32");
    let bytes: Vec<u8> = vectors.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(&path, bytes)?;
    let Some((mut faiss, version)) = Faiss::start(&path, dim) else {
        println!("FAISS: python3 cannot import faiss here; pip install faiss-cpu to compare");
        return Ok(());
    };
    let (mut ours, mut theirs, mut ratios) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        let query = query_at(vectors, dim, round)?;
        let (found, mine) = timed(|| top_k(&query, vectors, dim, 1));
        found?;
        let row = round * 7919 % (vectors.len() / dim);
        let Some(time) = faiss.search(row) else { return Err("FAISS stopped".into()) };
        ratios.push(time.as_secs_f64() / mine.as_secs_f64());
        ours.push(mine);
        theirs.push(time);
    }
    faiss.child.kill()?;
    ratios.sort_by(f64::total_cmp);
    println!(
        "one thread, one query at a time: ours {:.2} ms, FAISS {version} IndexFlatIP {:.2} ms, FAISS / ours {:.2} (median of {ROUNDS} pairs)",
        median(ours).as_secs_f64() * 1e3,
        median(theirs).as_secs_f64() * 1e3,
        ratios[ratios.len() / 2]
    );
    Ok(())
}

/// The same search through SQL: cold, warm, and what SQL adds to the kernel (measured on one row).
async fn sql(folder: &Path, session: &Session, dim: usize) -> Result<(), Failure> {
    let search = "SELECT id, emb <=> $1 AS d FROM docs ORDER BY d LIMIT 10";
    let query = || engine::vector((0..dim).map(|at| (at as f32 * 0.37).sin()));
    let cold = open(folder).await?;
    let start = Instant::now();
    cold.prepare(search).await?.run(&[query()]).await?.collect().await?;
    println!(
        "SQL, cold (a new engine, through Lance; the files may be in the system's cache): {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    session.execute("CREATE TABLE one AS SELECT * FROM docs LIMIT 1").await?;
    for (name, table) in [("all rows, warm", "docs"), ("one row", "one")] {
        let sql = search.replace("docs", table);
        let prepared = session.prepare(&sql).await?;
        let (mut anew, mut bound) = (vec![], vec![]);
        for _ in 0..STATEMENTS {
            let start = Instant::now();
            let statement = session.parse(&sql)?.pop().ok_or("a statement")?;
            let Started::Query(plan) = session.start(&statement, &[query()]).await? else {
                return Err("a search is a query".into());
            };
            plan.run()?.collect().await?;
            anew.push(start.elapsed());
            let start = Instant::now();
            prepared.run(&[query()]).await?.collect().await?;
            bound.push(start.elapsed());
        }
        print_percentiles(&format!("SQL, {name}, parsed and planned each time"), anew);
        print_percentiles(&format!("SQL, {name}, prepared once"), bound);
    }
    Ok(())
}

fn print_percentiles(title: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e3;
    println!("{title}: p50 {:.2} ms, p99 {:.2} ms", at(50), at(99));
}
