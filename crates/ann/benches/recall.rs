//! Recall and speed of an index over real vectors, exact comparison of the candidates included, as the engine does it.
//!
//! `cargo bench -p ann --bench recall -- FOLDER METRIC [m] [only-calibrated]`. The folder holds `base.npy` and
//! `query.npy` (f32) and `gt.npy` (i32: the
//! true nearest rows of each query, nearest first). METRIC as in SQL. Prints the time of the build, bytes per
//! vector, and for a ladder of efforts and the calibrated ones
//! recall@10, QPS on one thread and on two, and the median and 99th percentile of one query at a time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench stops where it fails")]

use std::path::Path;
use std::time::Instant;

use ann::graph::{self, GraphOptions};
use ann::{Control, Effort, InMemory, Index, Request, Resident, Sections, Step, Work};
use kernels::{Metric, Query, TopK, Vectors, advise_large_pages};

const K: usize = 10;
/// Queries that are asked at most, as many as the rivals' scripts ask: what is asked again finds more in the caches.
const QUERIES_MAX: usize = 1000;
/// How often all settings are gone through, and the fastest pass of each told: what disturbs a machine comes and goes.
const ROUNDS: usize = 9;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [folder, metric, rest @ ..] = arguments.as_slice() else {
        println!("give a folder with base.npy, query.npy and gt.npy, and a metric; nothing is measured without");
        return;
    };
    let metric = Metric::parse(metric).expect("a metric: l2, cosine, inner_product");
    let m = rest.first().map_or(GraphOptions::default().m, |m| m.parse().expect("m is a number"));
    let data = Set::read(Path::new(folder));
    let rows = data.base.len() / data.dim;
    println!("{folder}: {rows} x {}, {} queries, {}, {}", data.dim, data.queries(), metric.name(), kernels::isa());

    let control = Control::new(1);
    let base = InMemory::new(Vectors::F32(&data.base), data.dim);
    let started = Instant::now();
    let payload = graph::build(&base, metric, &GraphOptions { m, ..GraphOptions::default() }, &control).unwrap();
    println!(
        "build: {:.2} s on {} threads, {:.2} s of processors, m = {m}",
        started.elapsed().as_secs_f64(),
        rayon::current_num_threads(),
        processor_seconds("/proc/self/stat"),
    );
    if rest.len() > 2 {
        return;
    }
    let index_bytes: usize = payload.sections.iter().map(|section| section.bytes.len()).sum();
    let raw = data.dim * 4;
    println!("bytes per vector: {} of the index, {} with the vectors", index_bytes / rows, index_bytes / rows + raw);
    let index = graph::open(&payload.sections[0].bytes).unwrap();
    let sections = Resident(payload.sections.iter().map(|section| section.bytes.as_slice()).collect::<Vec<_>>());

    let bench = Bench { index: index.as_ref(), sections: &sections, data: &data, metric };
    let calibrated = [0.95, 0.99].map(|recall| (format!("calibrated {recall}"), index.effort(recall, K)));
    let ladder = LADDER
        .iter()
        .filter(|_| rest.len() < 2)
        .map(|(beam, stop, rerank)| (String::new(), Effort::Graph { beam: *beam, stop: *stop, rerank: *rerank }));
    bench.measure(calibrated.into_iter().chain(ladder).collect());
}

const LADDER: [(usize, f32, usize); 24] = [
    (11, f32::INFINITY, 11),
    (12, f32::INFINITY, 12),
    (13, f32::INFINITY, 13),
    (14, f32::INFINITY, 14),
    (16, f32::INFINITY, 16),
    (20, f32::INFINITY, 18),
    (24, f32::INFINITY, 20),
    (32, f32::INFINITY, 22),
    (40, f32::INFINITY, 24),
    (64, f32::INFINITY, 28),
    (96, f32::INFINITY, 32),
    (64, 1.005, 14),
    (64, 1.01, 16),
    (64, 1.015, 16),
    (64, 1.02, 16),
    (64, 1.025, 18),
    (64, 1.03, 20),
    (96, 1.04, 20),
    (128, 1.05, 22),
    (128, 1.06, 22),
    (160, 1.07, 24),
    (160, 1.08, 26),
    (200, 1.09, 30),
    (256, 1.1, 40),
];

struct Bench<'a> {
    index: &'a dyn Index,
    sections: &'a dyn Sections,
    data: &'a Set,
    metric: Metric,
}

/// What was seen of a setting.
#[derive(Clone, Default)]
struct Seen {
    hits: usize,
    work: Work,
    /// Of the fastest pass on one thread and on two, and the least processor time of a pass.
    seconds: [f64; 2],
    processor_seconds: f64,
    /// The least of each query, in seconds.
    latencies: Vec<f64>,
}

impl Bench<'_> {
    /// All settings in turn, several times.
    fn measure(&self, settings: Vec<(String, Effort)>) {
        let queries = self.data.queries();
        let new = Seen {
            seconds: [f64::MAX; 2],
            processor_seconds: f64::MAX,
            latencies: vec![f64::MAX; queries],
            ..Seen::default()
        };
        let mut seen = vec![new; settings.len()];
        for round in 0..ROUNDS {
            for ((_, effort), seen) in settings.iter().zip(&mut seen) {
                let (started, spent) = (Instant::now(), thread_seconds());
                for query in 0..queries {
                    let started = Instant::now();
                    let (top, work) = self.search(query, *effort);
                    seen.latencies[query] = seen.latencies[query].min(started.elapsed().as_secs_f64());
                    if round == 0 {
                        seen.hits += self.data.hits(query, top);
                        seen.work = seen.work.plus(work);
                    }
                }
                if round > 0 {
                    seen.seconds[0] = seen.seconds[0].min(started.elapsed().as_secs_f64());
                    seen.processor_seconds = seen.processor_seconds.min(thread_seconds() - spent);
                    seen.seconds[1] = seen.seconds[1].min(self.on_two_threads(*effort));
                }
            }
        }
        println!(
            "{:<46} {:>7} {:>8} {:>8} {:>7} {:>7} {:>7} {:>6} {:>7} {:>5}",
            "effort", "recall", "QPS 1", "QPS 2", "CPU us", "p50 us", "p99 us", "hops", "codes", "given"
        );
        for ((name, effort), mut seen) in settings.into_iter().zip(seen) {
            let (count, Effort::Graph { beam, stop, rerank }) = (queries as f64, effort) else { continue };
            seen.latencies.sort_unstable_by(f64::total_cmp);
            let percentile = |share: f64| seen.latencies[(count * share) as usize] * 1e6;
            println!(
                "{:<46} {:>7.4} {:>8.0} {:>8.0} {:>7.1} {:>7.1} {:>7.1} {:>6.0} {:>7.0} {:>5.1}",
                format!("{name} beam {beam} stop {stop:.4} rerank {rerank}"),
                seen.hits as f64 / (count * K as f64),
                count / seen.seconds[0],
                2.0 * count / seen.seconds[1],
                seen.processor_seconds / count * 1e6,
                percentile(0.5),
                percentile(0.99),
                seen.work.hops as f64 / count,
                seen.work.codes as f64 / count,
                seen.work.reranked as f64 / count,
            );
        }
    }

    /// Seconds that two threads take for all queries each, the second one beginning in the middle.
    fn on_two_threads(&self, effort: Effort) -> f64 {
        let (started, queries) = (Instant::now(), self.data.queries());
        std::thread::scope(|scope| {
            for first in [0, queries / 2] {
                scope.spawn(move || {
                    (first..first + queries).for_each(|query| {
                        std::hint::black_box(self.search(query % queries, effort));
                    });
                });
            }
        });
        started.elapsed().as_secs_f64()
    }

    fn search(&self, query: usize, effort: Effort) -> (TopK, Work) {
        let vector = Vectors::F32(&self.data.query[query * self.data.dim..][..self.data.dim]);
        let request = Request { query: vector, k: K, matching: None, effort };
        let Ok(Step::Found(found)) = self.index.search(&request, self.sections) else {
            panic!("all bytes are at hand")
        };
        let mut rows: Vec<u32> = found.candidates.iter().map(|candidate| candidate.row).collect();
        rows.sort_unstable();
        let mut top = TopK::new(K);
        match self.index.exact_distances(vector, &rows, self.sections) {
            Some(distances) => {
                rows.iter().zip(distances).for_each(|(row, distance)| top.push(distance, u64::from(*row)));
            }
            None => {
                let exact = Query::new(self.metric, self.data.dim, vector).unwrap();
                exact.top_k_selected(Vectors::F32(&self.data.base), 0, &rows, &mut top).unwrap();
            }
        }
        (top, found.work)
    }
}

/// Vectors, queries, and the truth.
struct Set {
    dim: usize,
    base: Vec<f32>,
    query: Vec<f32>,
    truth: Vec<i32>,
    truths_per_query: usize,
}

impl Set {
    fn read(folder: &Path) -> Self {
        let (base, dim) = npy(&folder.join("base.npy"), "<f4");
        let (query, _) = npy(&folder.join("query.npy"), "<f4");
        let (truth, truths_per_query) = npy(&folder.join("gt.npy"), "<i4");
        let floats = |words: Vec<u32>| {
            // In large pages, as numpy has its arrays and the rivals their copies.
            let mut floats = vec![0.0_f32; words.len()];
            advise_large_pages(bytemuck::cast_slice_mut(&mut floats));
            floats.iter_mut().zip(words).for_each(|(float, word)| *float = f32::from_bits(word));
            floats
        };
        let truth = truth.into_iter().map(|word| word as i32).collect();
        Self { dim, base: floats(base), query: floats(query), truth, truths_per_query }
    }

    fn queries(&self) -> usize {
        (self.query.len() / self.dim).min(self.truth.len() / self.truths_per_query).min(QUERIES_MAX)
    }

    fn hits(&self, query: usize, top: TopK) -> usize {
        let truth = &self.truth[query * self.truths_per_query..][..K];
        top.into_sorted().iter().filter(|neighbor| truth.contains(&(neighbor.row as i32))).count()
    }
}

/// The 4-byte values of a little-endian C-ordered array of two dimensions, and the length of its rows.
fn npy(path: &Path, kind: &str) -> (Vec<u32>, usize) {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(bytes.starts_with(b"\x93NUMPY"), "{} is no npy file", path.display());
    let (length, start) = match bytes[6] {
        1 => (usize::from(u16::from_le_bytes([bytes[8], bytes[9]])), 10),
        _ => (u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize, 12),
    };
    let head = std::str::from_utf8(&bytes[start..start + length]).unwrap();
    assert!(head.contains(kind) && head.contains("False"), "{} holds {head}, not {kind} in C order", path.display());
    let shape = head.split("'shape': (").nth(1).and_then(|rest| rest.split(')').next()).unwrap();
    let width = shape.split(',').nth(1).and_then(|width| width.trim().parse().ok()).unwrap_or(1);
    let values = bytes[start + length..].as_chunks::<4>().0;
    (values.iter().map(|value| u32::from_le_bytes(*value)).collect(), width)
}

/// Processor time of this thread, where Linux tells it: what a busy machine changes least.
fn thread_seconds() -> f64 {
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    spent.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns / 1e9)
}

/// Processor time of this process, in hundredths of a second.
fn processor_seconds(stat: &str) -> f64 {
    let stat = std::fs::read_to_string(stat).unwrap_or_default();
    let ticks = stat.rsplit(')').next().unwrap_or_default().split(' ').skip(12).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
