//! Exact top-10 over rows that do not fit a cache, for every metric and element type, beside the speed at which the
//! same machine merely reads the same bytes: once from front to back (`read`, which `share` refers to), and once from
//! four places in turn (`read x4`), which gets more out of some cores; the kernels read from several places too.
//!
//! `cargo bench -p kernels` prints a table; `-- --mib 150 --dim 384 --rounds 7 --threads 1,2` are the defaults, and
//! `--only f32` keeps the lines whose name contains the word. Reading and searching take turns, so that a change in
//! what the machine has to spare hits both; the figure of each is its fastest round. Making the vectors stays
//! outside the timed part.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench stops where it fails")]

use std::hint::black_box;
use std::time::Instant;

use half::f16;
use kernels::{ElementType, Isa, Metric, Query, TopK, Vectors, distance_matrix};

const K: usize = 10;

struct Options {
    mib: usize,
    dim: usize,
    rounds: usize,
    threads: Vec<usize>,
    only: String,
}

fn main() {
    let options = options();
    let available = Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
    println!("machine: {}; {} threads", processor(), std::thread::available_parallelism().map_or(1, usize::from));
    println!("instruction set: {} (of {available})", kernels::isa());
    println!(
        "top-{K}, d = {}, {} MiB of rows per case, fastest of {} rounds",
        options.dim, options.mib, options.rounds
    );
    println!();
    println!(
        "{:<26} {:>7} {:>8} {:>9} {:>9} {:>9} {:>7} {:>9} {:>8}",
        "case", "threads", "B/row", "read GB/s", "read x4", "GB/s", "share", "Mrows/s", "ops/row"
    );
    for element in ElementType::ALL {
        let bytes_per_row = element.bytes_per_row(options.dim);
        let rows = (options.mib << 20) / bytes_per_row;
        let values = Values::random(element, rows * options.dim);
        for metric in Metric::ALL.into_iter().filter(|metric| metric.is_for_bits() == (element == ElementType::Bits)) {
            let name = format!("{} {}", metric.name(), element.name());
            if name.contains(&options.only) {
                for threads in &options.threads {
                    scan_case(&name, metric, &options, *threads, values.vectors());
                }
            }
        }
        if "l2 f32 query, other rows".contains(&options.only) && element != ElementType::Bits {
            mixed_case(element, &options, values.vectors());
        }
    }
    println!();
    if "selected".contains(&options.only) {
        selected_cases(&options);
    }
    if "matrix".contains(&options.only) {
        matrix_cases(&options);
    }
}

/// Seconds of each of these: the fastest of rounds in which they take turns.
fn fastest<const N: usize>(rounds: usize, mut runs: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut seconds = [f64::INFINITY; N];
    // One round warms up.
    for round in 0..=rounds {
        for (run, seconds) in runs.iter_mut().zip(&mut seconds) {
            let started = Instant::now();
            run();
            if round > 0 {
                *seconds = seconds.min(started.elapsed().as_secs_f64());
            }
        }
    }
    seconds
}

fn scan_case(name: &str, metric: Metric, options: &Options, threads: usize, rows: Vectors<'_>) {
    let element = rows.element_type();
    let query = Values::random(element, options.dim);
    let query = Query::new(metric, options.dim, query.vectors()).unwrap();
    report(name, metric, options, threads, &query, rows);
}

/// An f32 query on rows of another type.
fn mixed_case(element: ElementType, options: &Options, rows: Vectors<'_>) {
    if element == ElementType::F32 {
        return;
    }
    let query = Values::random(ElementType::F32, options.dim);
    let query = Query::new(Metric::Cosine, options.dim, query.vectors()).unwrap();
    report(&format!("cosine {}, f32 query", element.name()), Metric::Cosine, options, 1, &query, rows);
}

fn report(name: &str, metric: Metric, options: &Options, threads: usize, query: &Query, rows: Vectors<'_>) {
    let bytes_per_row = rows.element_type().bytes_per_row(options.dim);
    let count = bytes(rows).len() / bytes_per_row;
    let [read, read_streams, search] = fastest(
        options.rounds,
        [&mut || read_threads(bytes(rows), threads, 1), &mut || read_threads(bytes(rows), threads, 4), &mut || {
            black_box(search_threads(query, rows, count, threads));
        }],
    );
    let total = (count * bytes_per_row) as f64;
    println!(
        "{name:<26} {threads:>7} {bytes_per_row:>8} {:>9.2} {:>9.2} {:>9.2} {:>6.0}% {:>9.2} {:>8}",
        total / read / 1e9,
        total / read_streams / 1e9,
        total / search / 1e9,
        read / search * 100.0,
        count as f64 / search / 1e6,
        operations(metric, options.dim),
    );
}

/// Arithmetic per row: multiplications, additions and subtractions of elements (words of 64 bits for bits).
fn operations(metric: Metric, dim: usize) -> usize {
    match metric {
        Metric::L2 => 3 * dim,
        Metric::Cosine => 4 * dim,
        Metric::InnerProduct => 2 * dim,
        Metric::L1 => 3 * dim,
        Metric::Hamming => 3 * dim.div_ceil(64),
        Metric::Jaccard => 5 * dim.div_ceil(64),
    }
}

/// The search as the engine runs it: rows split over threads, one `TopK` each, merged.
fn search_threads(query: &Query, rows: Vectors<'_>, count: usize, threads: usize) -> TopK {
    let share = count.div_ceil(threads);
    let part = |thread: usize| {
        let start = (thread * share).min(count);
        let part = rows.rows(query.dim(), start, share.min(count - start)).unwrap();
        let mut top = TopK::new(K);
        query.top_k(part, start as u64, &mut top).unwrap();
        top
    };
    if threads == 1 {
        return part(0);
    }
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        let mut top = TopK::new(K);
        running.into_iter().for_each(|part| top.merge(part.join().unwrap()));
        top
    })
}

/// Rows picked at random offsets, ascending, as a filter leaves them.
fn selected_cases(options: &Options) {
    println!("{:<26} {:>10} {:>12} {:>9} {:>12}", "l2 f32, selected", "of rows", "rows", "GB/s", "ns per row");
    let count = (options.mib << 20) / (options.dim * 4);
    let values = Values::random(ElementType::F32, count * options.dim);
    let query = Values::random(ElementType::F32, options.dim);
    let query = Query::new(Metric::L2, options.dim, query.vectors()).unwrap();
    for one_in in [1, 2, 10, 100] {
        let mut state = 7;
        let selected: Vec<u32> = (0..count as u32).filter(|_| next(&mut state).is_multiple_of(one_in)).collect();
        let [seconds] = fastest(
            options.rounds,
            [&mut || {
                let mut top = TopK::new(K);
                query.top_k_selected(values.vectors(), 0, &selected, &mut top).unwrap();
                black_box(top);
            }],
        );
        println!(
            "{:<26} {:>9.1}% {:>12} {:>9.2} {:>12.1}",
            "",
            100.0 / one_in as f64,
            selected.len(),
            (selected.len() * options.dim * 4) as f64 / seconds / 1e9,
            seconds / selected.len() as f64 * 1e9,
        );
    }
    println!();
}

/// Many queries against many rows, on one thread.
fn matrix_cases(options: &Options) {
    const QUERIES: usize = 64;
    const ROWS: usize = 4096;
    println!("{:<26} {:>10} {:>12} {:>12} {:>9}", "matrix 64 x 4096", "ms", "Mpairs/s", "one by one", "faster");
    for element in ElementType::ALL {
        let queries = Values::random(element, QUERIES * options.dim);
        let rows = Values::random(element, ROWS * options.dim);
        let mut out = vec![0.0; QUERIES * ROWS];
        let mut again = out.clone();
        for metric in Metric::ALL.into_iter().filter(|metric| metric.is_for_bits() == (element == ElementType::Bits)) {
            let [alone, matrix] = fastest(
                options.rounds.min(5),
                [
                    &mut || {
                        for (query, again) in again.chunks_mut(ROWS).enumerate() {
                            let vector = queries.vectors().rows(options.dim, query, 1).unwrap();
                            let query = Query::new(metric, options.dim, vector).unwrap();
                            query.distances(rows.vectors(), again).unwrap();
                        }
                    },
                    &mut || distance_matrix(metric, options.dim, queries.vectors(), rows.vectors(), &mut out).unwrap(),
                ],
            );
            assert!(out.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()), "matrix and query differ");
            println!(
                "{:<26} {:>10.2} {:>12.2} {:>12.2} {:>8.2}x",
                format!("{} {}", metric.name(), element.name()),
                matrix * 1e3,
                (QUERIES * ROWS) as f64 / matrix / 1e6,
                (QUERIES * ROWS) as f64 / alone / 1e6,
                alone / matrix,
            );
        }
    }
}

fn read_threads(bytes: &[u8], threads: usize, streams: usize) {
    let part = |bytes: &[u8]| {
        if streams == 1 {
            black_box(read(bytes));
            return;
        }
        // Windows of a size that the kernels have too, a kilobyte from each place in turn.
        for window in bytes.chunks(256 << 10) {
            let stream = (window.len() / streams).next_multiple_of(1024);
            for offset in (0..stream).step_by(1024) {
                for place in window.chunks(stream) {
                    black_box(read(&place[offset.min(place.len())..(offset + 1024).min(place.len())]));
                }
            }
        }
    };
    if threads == 1 {
        part(bytes);
        return;
    }
    std::thread::scope(|scope| {
        for bytes in bytes.chunks(bytes.len().div_ceil(threads).next_multiple_of(256)) {
            scope.spawn(move || part(bytes));
        }
    });
}

/// Reads every byte with the widest loads there are, eight at a time, and keeps what the optimizer must not drop.
#[cfg(target_arch = "x86_64")]
fn read(bytes: &[u8]) -> u64 {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512F was just detected.
        unsafe { read_avx512(bytes) }
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was just detected.
        unsafe { read_avx2(bytes) }
    } else {
        read_words(bytes)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn read(bytes: &[u8]) -> u64 {
    read_words(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_avx2(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let mut any = [_mm256_setzero_si256(); 8];
    let (chunks, tail) = bytes.as_chunks::<256>();
    for chunk in chunks {
        for (i, any) in any.iter_mut().enumerate() {
            // SAFETY: 8 · 32 bytes are read from an array of 256 bytes.
            *any = _mm256_or_si256(*any, unsafe { _mm256_loadu_si256(chunk.as_ptr().add(32 * i).cast()) });
        }
    }
    let all = any.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_or_si256(a, b));
    _mm256_extract_epi64::<0>(all) as u64 | read_words(tail)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_avx512(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let mut any = [_mm512_setzero_si512(); 8];
    let (chunks, tail) = bytes.as_chunks::<512>();
    for chunk in chunks {
        for (i, any) in any.iter_mut().enumerate() {
            // SAFETY: 8 · 64 bytes are read from an array of 512 bytes.
            *any = _mm512_or_si512(*any, unsafe { _mm512_loadu_si512(chunk.as_ptr().add(64 * i).cast()) });
        }
    }
    let all = any.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_or_si512(a, b));
    _mm512_reduce_or_epi64(all) as u64 | read_words(tail)
}

fn read_words(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    let any = words.iter().fold(0, |any, word| any | u64::from_le_bytes(*word));
    tail.iter().fold(any, |any, byte| any | u64::from(*byte))
}

/// Owned vectors of one type.
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    Bits(Vec<u8>),
}

impl Values {
    fn random(element: ElementType, elements: usize) -> Values {
        let mut state = 42;
        let mut float = move || (next(&mut state) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let mut state = 43;
        let mut byte = move || next(&mut state) as u8;
        match element {
            ElementType::F32 => Values::F32((0..elements).map(|_| float()).collect()),
            ElementType::F16 => Values::F16((0..elements).map(|_| f16::from_f32(float())).collect()),
            ElementType::I8 => Values::I8((0..elements).map(|_| byte() as i8).collect()),
            ElementType::U8 => Values::U8((0..elements).map(|_| byte()).collect()),
            ElementType::Bits => Values::Bits((0..elements / 8).map(|_| byte()).collect()),
        }
    }

    fn vectors(&self) -> Vectors<'_> {
        match self {
            Values::F32(values) => Vectors::F32(values),
            Values::F16(values) => Vectors::F16(values),
            Values::I8(values) => Vectors::I8(values),
            Values::U8(values) => Vectors::U8(values),
            Values::Bits(values) => Vectors::Bits(values),
        }
    }
}

/// The bytes of vectors, for the plain read.
fn bytes(vectors: Vectors<'_>) -> &[u8] {
    let (start, count) = match vectors {
        Vectors::F32(values) => (values.as_ptr().cast::<u8>(), size_of_val(values)),
        Vectors::F16(values) => (values.as_ptr().cast::<u8>(), size_of_val(values)),
        Vectors::I8(values) => (values.as_ptr().cast::<u8>(), size_of_val(values)),
        Vectors::U8(values) | Vectors::Bits(values) => (values.as_ptr(), size_of_val(values)),
    };
    // SAFETY: the pointer and the number of bytes are those of a live slice, and any byte of it is initialised.
    unsafe { std::slice::from_raw_parts(start, count) }
}

/// A seeded generator (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The processor's own name, where the system tells it.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

fn options() -> Options {
    let mut options = Options { mib: 150, dim: 384, rounds: 7, threads: vec![1, 2], only: String::new() };
    // Cargo passes `--bench` to every bench.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let number = || value.parse().unwrap_or_else(|_| panic!("{name} needs a number, not '{value}'"));
        match name.as_str() {
            "--mib" => options.mib = number(),
            "--dim" => options.dim = number(),
            "--rounds" => options.rounds = number(),
            "--threads" => options.threads = value.split(',').map(|part| part.parse().expect("a number")).collect(),
            "--only" => options.only = value,
            _ => panic!("unknown option {name}; use --mib, --dim, --rounds, --threads or --only"),
        }
    }
    options
}
