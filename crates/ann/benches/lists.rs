//! Lists on real vectors: build time, bytes, and the curve of recall and queries per second, exact re-ranking included.
//!
//! `cargo bench -p ann --bench lists -- FOLDER [cosine|l2|inner_product] [code] [lists] [all | PROBES]`, with code one of `raw`,
//! `sq8`, `sq4`, `rq1` to `rq9`, `pq4`, `pq8` (`pq4x4` and so on for other dimensions of a code), and behind it `+spill` for second
//! lists (SOAR), `+t=0.2` for the score-aware loss of product codes from a similarity of 0.2 on, `+spill,t=0.2` for both.
//! FOLDER holds `base.npy`, `query.npy` (f32, rows by dimensions) and `gt.npy` (i32, true neighbors by row), and, for filters
//! `u < s`, `u.npy` (i32, below 10,000) with `gt_u100.npy`, `gt_u1000.npy`, `gt_u5000.npy` for s = 100, 1,000, 5,000.
//! Two threads run queries on halves of the list of queries. Times are wall clock; what else runs on the machine is for the reader to say.

use std::path::Path;
use std::time::Instant;

use ann::ivf::{self, Code, IvfOptions};
use ann::{
    Candidate, Control, Effort, InMemory, Index, Payload, Request, Resident, RowSet, Sections, Step, Tier, Work,
};
use kernels::{Metric, Query, TopK, Vectors};

/// Neighbors.
const K: usize = 10;

/// Queries of a batch.
const BATCH: usize = 100;

/// Queries at most.
const QUERIES: usize = 1_000;

/// Rounds of which the median counts.
const ROUNDS: usize = 5;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Some(folder) = arguments.first() else {
        println!("no folder of vectors was named; nothing is measured");
        return Ok(());
    };
    let metric = arguments.get(1).and_then(|name| Metric::parse(name)).unwrap_or(Metric::L2);
    let named = arguments.get(2).map_or("rq5", String::as_str);
    let (code, manner) = named.split_once('+').unwrap_or((named, ""));
    let code = parse_code(code).ok_or("no such code")?;
    let lists = arguments.get(3).and_then(|lists| lists.parse().ok());
    let all = arguments.get(4).is_some_and(|word| word == "all");
    let data = Data::read(Path::new(folder), metric)?;
    let mut options = IvfOptions { lists, code, spill: manner.contains("spill"), ..IvfOptions::default() };
    if let Some((_, threshold)) = manner.split_once("t=") {
        options.score_threshold = threshold.parse()?;
    }
    let rows = InMemory::new(Vectors::F32(&data.base.values), data.base.columns);
    let started = Instant::now();
    let control = Control::new(1);
    let routing = ivf::train(&rows, metric, &options, &control)?;
    let trained = started.elapsed();
    let payload = ivf::build_with(&rows, &routing, &options, &control)?;
    println!(
        "{folder}: {} x {}, {}, {named}, {} lists; built in {:.2} s ({:.2} s of it training), {} threads",
        data.base.rows,
        data.base.columns,
        metric.name(),
        routing.lists(),
        started.elapsed().as_secs_f64(),
        trained.as_secs_f64(),
        std::thread::available_parallelism()?
    );
    print_bytes(&payload, data.base.rows);
    let index = ivf::open(&payload.sections[0].bytes)?;
    let sections = Resident(payload.sections.into_iter().map(|section| section.bytes).collect::<Vec<_>>());
    for target in [0.9, 0.95, 0.99] {
        let effort = index.effort(target, K);
        print!("calibrated for {target}: ");
        measure(&data, &*index, &sections, effort, None)?;
    }
    if let Some(probes) = arguments.get(4).and_then(|probes| probes.parse().ok()) {
        let effort = Effort::Ivf { probes, rerank: 20 };
        for _ in 0..3 {
            measure(&data, &*index, &sections, effort, None)?;
            println!("in batches of {BATCH}: {:.0} QPS on 1 thread", batched(&data, &*index, &sections, effort)?);
        }
        return Ok(());
    }
    for probes in [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192] {
        for rerank in if all { vec![10, 12, 15, 20, 30, 50, 100] } else { vec![20] } {
            measure(&data, &*index, &sections, Effort::Ivf { probes, rerank }, None)?;
        }
    }
    filtered(&data, &*index, &sections, Path::new(folder))
}

fn parse_code(name: &str) -> Option<Code> {
    match name {
        "raw" => Some(Code::Raw),
        "sq8" => Some(Code::Scalar8),
        "sq4" => Some(Code::Scalar4),
        "pq4" => Some(Code::pq(4)),
        "pq8" => Some(Code::pq(8)),
        _ if name.starts_with("pq") => {
            let (bits, dims) = name[2..].split_once('x')?;
            Some(Code::Pq { bits: bits.parse().ok()?, dims: dims.parse().ok()? })
        }
        _ => name.strip_prefix("rq")?.parse().ok().map(|bits| Code::Rabitq { bits }),
    }
}

fn print_bytes(payload: &Payload, rows: usize) {
    let bytes = |tier| {
        let sections = payload.sections.iter().filter(|section| section.tier == tier);
        sections.map(|section| section.bytes.len()).sum::<usize>() as f64 / rows as f64
    };
    let (pinned, hot, warm) = (bytes(Tier::Pinned), bytes(Tier::Hot), bytes(Tier::Warm));
    println!("bytes per vector: {:.1} hot ({pinned:.1} of it pinned), {warm:.1} warm", pinned + hot);
}

struct Data {
    metric: Metric,
    base: Matrix<f32>,
    query: Matrix<f32>,
    truth: Matrix<i32>,
}

impl Data {
    fn read(folder: &Path, metric: Metric) -> Result<Data, Failure> {
        let mut query = read_npy(&folder.join("query.npy"), f32::from_le_bytes)?;
        query.rows = query.rows.min(QUERIES);
        Ok(Data {
            metric,
            base: read_npy(&folder.join("base.npy"), f32::from_le_bytes)?,
            query,
            truth: read_npy(&folder.join("gt.npy"), i32::from_le_bytes)?,
        })
    }

    fn vector(&self, query: usize) -> Vectors<'_> {
        Vectors::F32(&self.query.values[query * self.query.columns..][..self.query.columns])
    }
}

/// One query to its end: candidates, and their exact distances.
fn answer(
    data: &Data,
    index: &dyn Index,
    sections: &dyn Sections,
    query: usize,
    effort: Effort,
    matching: Option<RowSet<'_>>,
) -> Result<(Vec<u64>, Work), Failure> {
    let request = Request { query: data.vector(query), k: K, matching, effort };
    let Step::Found(found) = index.search(&request, sections)? else { return Err("bytes are missing".into()) };
    Ok((rerank(data, query, &found.candidates)?, found.work))
}

/// The nearest of the candidates, exactly.
fn rerank(data: &Data, query: usize, candidates: &[Candidate]) -> Result<Vec<u64>, Failure> {
    let mut rows: Vec<u32> = candidates.iter().map(|candidate| candidate.row).collect();
    rows.sort_unstable();
    let mut top = TopK::new(K);
    let query = Query::new(data.metric, data.base.columns, data.vector(query))?;
    query.top_k_selected(Vectors::F32(&data.base.values), 0, &rows, &mut top)?;
    Ok(top.into_sorted().into_iter().map(|neighbor| neighbor.row).collect())
}

fn measure(
    data: &Data,
    index: &dyn Index,
    sections: &dyn Sections,
    effort: Effort,
    filter: Option<(RowSet<'_>, &Matrix<i32>)>,
) -> Result<(), Failure> {
    let matching = filter.map(|(set, _)| set);
    let truth = filter.map_or(&data.truth, |(_, truth)| truth);
    let (mut right, mut wanted, mut work) = (0, 0, Work::default());
    let mut latencies = vec![];
    let spent = thread_seconds();
    let queries = data.query.rows.min(truth.rows);
    for query in 0..queries {
        let started = Instant::now();
        let (rows, own) = answer(data, index, sections, query, effort, matching)?;
        latencies.push(started.elapsed().as_secs_f64() * 1e6);
        let truth = &truth.values[query * truth.columns..][..K.min(truth.columns)];
        right += truth.iter().filter(|row| rows.contains(&(**row as u64))).count();
        wanted += truth.len();
        work = work.plus(own);
    }
    let spent = (thread_seconds() - spent) / queries as f64 * 1e6;
    latencies.sort_by(f64::total_cmp);
    let one = throughput(data, index, sections, effort, matching, 1)?;
    let two = throughput(data, index, sections, effort, matching, 2)?;
    let per_query = queries as u64;
    println!(
        "{effort:?}: recall@{K} {:.4}, {one:.0} QPS on 1 thread, {two:.0} on 2, p50 {:.1} us, p99 {:.1} us; per query {spent:.1} us of a processor, {} lists, {} codes, {} reranked, {} bytes",
        right as f64 / wanted as f64,
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
        work.lists / per_query,
        work.codes / per_query,
        work.reranked / per_query,
        work.bytes / per_query,
    );
    Ok(())
}

/// Processor time of this thread, where Linux tells it: what a busy machine changes least.
fn thread_seconds() -> f64 {
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    spent.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns / 1e9)
}

/// Queries per second of batches on one thread, the median of some rounds.
fn batched(data: &Data, index: &dyn Index, sections: &dyn Sections, effort: Effort) -> Result<f64, Failure> {
    let mut rates = vec![];
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for start in (0..data.query.rows).step_by(BATCH) {
            let queries = start..data.query.rows.min(start + BATCH);
            let requests: Vec<_> = queries
                .clone()
                .map(|query| Request { query: data.vector(query), k: K, matching: None, effort })
                .collect();
            for (query, step) in queries.zip(index.search_batch(&requests, sections)?) {
                let Step::Found(found) = step else { return Err("bytes are missing".into()) };
                rerank(data, query, &found.candidates)?;
            }
        }
        rates.push(data.query.rows as f64 / started.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[ROUNDS / 2])
}

/// Queries per second, the median of some rounds over all queries.
fn throughput(
    data: &Data,
    index: &dyn Index,
    sections: &dyn Sections,
    effort: Effort,
    matching: Option<RowSet<'_>>,
    threads: usize,
) -> Result<f64, Failure> {
    let mut rates = vec![];
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let part = data.query.rows.div_ceil(threads);
        let outcomes: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let run = |thread: usize| {
                move || {
                    for query in thread * part..data.query.rows.min((thread + 1) * part) {
                        answer(data, index, sections, query, effort, matching).map_err(|error| error.to_string())?;
                    }
                    Ok(())
                }
            };
            let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
            let failed = |_| Err("a thread panicked".to_owned());
            handles.into_iter().map(|handle| handle.join().unwrap_or_else(failed)).collect()
        });
        outcomes.into_iter().collect::<Result<(), _>>()?;
        rates.push(data.query.rows as f64 / started.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[ROUNDS / 2])
}

fn filtered(data: &Data, index: &dyn Index, sections: &dyn Sections, folder: &Path) -> Result<(), Failure> {
    if !folder.join("u.npy").exists() {
        return Ok(());
    }
    let values = read_npy(&folder.join("u.npy"), i32::from_le_bytes)?.values;
    for (name, part) in [("gt_u100.npy", 100), ("gt_u1000.npy", 1_000), ("gt_u5000.npy", 5_000)] {
        let truth = read_npy(&folder.join(name), i32::from_le_bytes)?;
        let mut words = vec![0_u64; values.len().div_ceil(64)];
        for (row, value) in values.iter().enumerate() {
            words[row / 64] |= u64::from(*value < part) << (row % 64);
        }
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        let set = RowSet::new(&words, count);
        println!("u < {part}: {count} rows");
        for target in [0.95, 0.99] {
            print!("calibrated for {target}: ");
            measure(data, index, sections, index.effort(target, K), Some((set, &truth)))?;
        }
    }
    Ok(())
}

struct Matrix<T> {
    rows: usize,
    columns: usize,
    values: Vec<T>,
}

/// Reads an array of 4-byte values of one or two dimensions, in the format of NumPy, version 1 or 2.
fn read_npy<T>(path: &Path, value: fn([u8; 4]) -> T) -> Result<Matrix<T>, Failure> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let wrong = || format!("{} is no array of 4-byte values in the order of C", path.display());
    if bytes.get(..6) != Some(b"\x93NUMPY") {
        return Err(wrong().into());
    }
    let (start, len) = match bytes.get(6..12) {
        Some([1, _, low, high, ..]) => (10, usize::from(u16::from_le_bytes([*low, *high]))),
        Some([_, _, a, b, c, d]) => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        _ => return Err(wrong().into()),
    };
    let header = String::from_utf8_lossy(bytes.get(start..start + len).ok_or_else(wrong)?).into_owned();
    if !(header.contains("<f4") || header.contains("<i4")) || header.contains("'fortran_order': True") {
        return Err(wrong().into());
    }
    let shape = header.split('(').nth(1).and_then(|rest| rest.split(')').next()).ok_or_else(wrong)?;
    let sides: Vec<usize> = shape.split(',').filter_map(|side| side.trim().parse().ok()).collect();
    let (rows, columns) = match sides[..] {
        [rows] => (rows, 1),
        [rows, columns] => (rows, columns),
        _ => return Err(wrong().into()),
    };
    let values: Vec<T> = bytes[start + len..].as_chunks::<4>().0.iter().map(|bytes| value(*bytes)).collect();
    if values.len() != rows * columns {
        return Err(wrong().into());
    }
    Ok(Matrix { rows, columns, values })
}
