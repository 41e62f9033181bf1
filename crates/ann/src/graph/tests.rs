//! Graphs against exact search, over every metric and element type, and over bytes that are damaged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use kernels::{ElementType, Metric, Query, TopK, Vectors};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::linear::gaussian;
use super::{GraphOptions, build, open};
use crate::{
    BuildError, Control, Effort, FormatError, Found, InMemory, Index, Payload, Request, Resident, RowSet, Rows, Step,
};

/// Vectors around centers that are near each other, held as one element type.
#[derive(Clone)]
enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    Bits(Vec<u8>),
}

impl Data {
    fn new(element: ElementType, rows: usize, dim: usize, seed: u64) -> Self {
        // The same centers for base and queries.
        let centers = gaussian(40 * dim, 77);
        let noise = gaussian(rows * dim, seed);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut values = Vec::with_capacity(rows * dim);
        for noise in noise.chunks_exact(dim) {
            let center = &centers[random.random_range(0..40) * dim..][..dim];
            values.extend(center.iter().zip(noise).map(|(center, noise)| 0.6 * center + 0.5 * noise));
        }
        match element {
            ElementType::F32 => Self::F32(values),
            ElementType::F16 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
            ElementType::I8 => Self::I8(values.into_iter().map(|value| (value * 40.0) as i8).collect()),
            ElementType::U8 => Self::U8(values.into_iter().map(|value| (value * 30.0 + 128.0) as u8).collect()),
            ElementType::Bits => Self::Bits(
                values
                    .chunks(8)
                    .map(|eight| eight.iter().fold(0, |byte, value| byte << 1 | u8::from(*value > 0.0)))
                    .collect(),
            ),
        }
    }

    fn vectors(&self) -> Vectors<'_> {
        match self {
            Self::F32(values) => Vectors::F32(values),
            Self::F16(values) => Vectors::F16(values),
            Self::I8(values) => Vectors::I8(values),
            Self::U8(values) => Vectors::U8(values),
            Self::Bits(values) => Vectors::Bits(values),
        }
    }

    fn row(&self, dim: usize, row: usize) -> Vectors<'_> {
        self.vectors().rows(dim, row, 1).unwrap()
    }
}

/// An index that is opened, with its bytes.
struct Opened {
    index: Box<dyn Index>,
    sections: Resident<Vec<u8>>,
}

impl Opened {
    fn new(rows: &dyn Rows, metric: Metric, options: &GraphOptions) -> Self {
        Self::of(build(rows, metric, options, &Control::new(5)).unwrap())
    }

    fn of(payload: Payload) -> Self {
        let index = open(&payload.sections[0].bytes).unwrap();
        Self { index, sections: Resident(payload.sections.into_iter().map(|section| section.bytes).collect()) }
    }

    fn found(&self, query: Vectors<'_>, k: usize, matching: Option<RowSet<'_>>, effort: Effort) -> Found {
        match self.index.search(&Request { query, k, matching, effort }, &self.sections).unwrap() {
            Step::Found(found) => found,
            Step::Wants(wanted) => panic!("all bytes are at hand, and it wants {wanted:?}"),
        }
    }
}

fn bits(rows: usize, keep: impl Fn(usize) -> bool) -> Vec<u64> {
    let mut words = vec![0_u64; rows.div_ceil(64)];
    (0..rows).filter(|row| keep(*row)).for_each(|row| words[row / 64] |= 1 << (row % 64));
    words
}

fn set(words: &[u64]) -> RowSet<'_> {
    RowSet::new(words, words.iter().map(|word| word.count_ones() as usize).sum())
}

/// Under a filter, how much farther than the true neighbors, in parts, is as good: behind a wall of rows that do
/// not match, many lie closer to each
/// other than any code tells.
const SLACK: f64 = 0.003;

/// Recall of `k` neighbors, where as near is as good; checks what must hold of every answer.
fn recall(
    opened: &Opened,
    base: &Data,
    queries: &Data,
    dim: usize,
    k: usize,
    matching: Option<&[u64]>,
    effort: Effort,
) -> f64 {
    let metric = opened.index.metric();
    let (rows, count) =
        (opened.index.rows(), queries.vectors().len() * if matches!(queries, Data::Bits(_)) { 8 } else { 1 } / dim);
    let selected: Vec<u32> = matching.map_or((0..rows as u32).collect(), |words| set(words).rows().collect());
    let (mut hits, mut wanted) = (0, 0);
    for at in 0..count {
        let vector = queries.row(dim, at);
        let query = Query::new(metric, dim, vector).unwrap();
        let mut top = TopK::new(k);
        query.top_k_selected(base.vectors(), 0, &selected, &mut top).unwrap();
        let found = opened.found(vector, k, matching.map(set), effort);
        assert!(found.candidates.len() >= k.min(selected.len()), "{} candidates for k {k}", found.candidates.len());
        assert!(found.candidates.is_sorted_by(|a, b| a.estimate <= b.estimate));
        assert_eq!(found.work.reranked, found.candidates.len() as u64);
        let mut candidates: Vec<u32> = found.candidates.iter().map(|candidate| candidate.row).collect();
        candidates.sort_unstable();
        assert!(candidates.windows(2).all(|pair| pair[0] < pair[1]), "each row once");
        assert!(candidates.iter().all(|row| selected.binary_search(row).is_ok()), "only rows that match");
        let mut exact = TopK::new(k);
        query.top_k_selected(base.vectors(), 0, &candidates, &mut exact).unwrap();
        let truth = top.into_sorted();
        let farthest = truth.last().map_or(0.0, |neighbor| neighbor.distance);
        let slack = if matching.is_some() { farthest.abs() * SLACK } else { 0.0 };
        hits += exact.into_sorted().iter().filter(|neighbor| neighbor.distance <= farthest + slack).count();
        wanted += truth.len();
    }
    hits as f64 / wanted as f64
}

const ROWS: usize = 5000;
const CASES: [(Metric, ElementType, usize); 16] = [
    (Metric::L2, ElementType::F32, 96),
    (Metric::L2, ElementType::F32, 300),
    (Metric::L2, ElementType::F16, 40),
    (Metric::L2, ElementType::I8, 200),
    (Metric::L2, ElementType::U8, 128),
    (Metric::L2, ElementType::I8, 7),
    (Metric::Cosine, ElementType::F32, 260),
    (Metric::Cosine, ElementType::F16, 130),
    (Metric::Cosine, ElementType::I8, 64),
    (Metric::Cosine, ElementType::U8, 64),
    (Metric::InnerProduct, ElementType::F32, 260),
    (Metric::InnerProduct, ElementType::F16, 96),
    (Metric::InnerProduct, ElementType::I8, 64),
    (Metric::InnerProduct, ElementType::U8, 150),
    (Metric::Hamming, ElementType::Bits, 256),
    (Metric::Jaccard, ElementType::Bits, 328),
];

#[test]
fn the_calibrated_effort_reaches_its_recall_for_every_metric_and_element() {
    for (metric, element, dim) in CASES {
        let (base, queries) = (Data::new(element, ROWS, dim, 1), Data::new(element, 60, dim, 2));
        let opened =
            Opened::new(&InMemory::new(base.vectors(), dim), metric, &GraphOptions { m: 32, ..Default::default() });
        for (k, target, less) in [(1, 0.9, 0.05), (10, 0.95, 0.02), (100, 0.95, 0.02)] {
            let reached = recall(&opened, &base, &queries, dim, k, None, opened.index.effort(target, k));
            assert!(reached >= target - less, "{metric:?} {element:?} {dim}: recall@{k} {reached}, wanted {target}");
        }
    }
}

#[test]
fn a_walk_is_shorter_than_a_scan_and_finds_nearly_as_much() {
    for (metric, element, dim) in [(Metric::L2, ElementType::F32, 96), (Metric::Hamming, ElementType::Bits, 256)] {
        let (base, queries) = (Data::new(element, 20_000, dim, 1), Data::new(element, 50, dim, 2));
        let opened = Opened::new(&InMemory::new(base.vectors(), dim), metric, &GraphOptions::default());
        let effort = Effort::Graph { beam: 100, stop: f32::INFINITY, rerank: 60 };
        let found = opened.found(queries.row(dim, 0), 10, None, effort);
        assert!(found.work.hops >= 100 && found.work.codes < 10_000, "{:?}", found.work);
        let reached = recall(&opened, &base, &queries, dim, 10, None, effort);
        assert!(reached > 0.95, "{metric:?}: {reached}");
    }
}

#[test]
fn filtered_search_returns_the_nearest_that_match_however_few_and_wherever() {
    let (dim, rows) = (64, 20_000);
    let (base, queries) = (Data::new(ElementType::F32, rows, dim, 1), Data::new(ElementType::F32, 30, dim, 2));
    let opened =
        Opened::new(&InMemory::new(base.vectors(), dim), Metric::L2, &GraphOptions { m: 32, ..Default::default() });
    let effort = opened.index.effort(0.95, 10);
    for step in [1, 2, 3, 7, 50, 1000, 15_000] {
        let words = bits(rows, |row| row.is_multiple_of(step));
        let reached = recall(&opened, &base, &queries, dim, 10, Some(&words), effort);
        assert!(reached >= 0.93, "one in {step}: {reached}");
    }
    // Anti-correlated: only the farther half, or the farthest tenth, of what the query is near to.
    let asked = queries.row(dim, 0);
    let mut distances = vec![0.0; rows];
    Query::new(Metric::L2, dim, asked).unwrap().distances(base.vectors(), &mut distances).unwrap();
    let mut sorted = distances.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let Data::F32(values) = &queries else { panic!("f32 were made") };
    let one = Data::F32(values[..dim].to_vec());
    for share in [2, 4, 10, 100] {
        let least = sorted[rows - rows / share];
        let words = bits(rows, |row| distances[row] >= least);
        let reached = recall(&opened, &base, &one, dim, 10, Some(&words), effort);
        assert!(reached >= 0.9, "the farthest of {share} parts: {reached}");
    }
    let none = bits(rows, |_| false);
    assert!(opened.found(asked, 10, Some(set(&none)), effort).candidates.is_empty());
}

#[test]
fn queries_of_another_kind_keep_the_recall() {
    // Rows in a subspace, queries with as much outside of it.
    let (dim, rows) = (300, 10_000);
    let mut values = Vec::new();
    for (at, noise) in gaussian(rows * dim, 3).chunks_exact(dim).enumerate() {
        values.extend(
            noise
                .iter()
                .enumerate()
                .map(|(j, value)| value * if j < 60 { 1.0 } else { 0.15 } + ((at + j) % 5) as f32 * 0.2),
        );
    }
    let (base, queries) = (Data::F32(values), Data::F32(gaussian(40 * dim, 4)));
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
        let opened =
            Opened::new(&InMemory::new(base.vectors(), dim), metric, &GraphOptions { m: 32, ..Default::default() });
        let reached = recall(&opened, &base, &queries, dim, 10, None, opened.index.effort(0.95, 10));
        assert!(reached >= 0.93, "{metric:?}: {reached}");
    }
}

#[test]
fn rows_of_any_length_can_be_built() {
    let (dim, rows) = (140, 1500);
    for length in [1e-18, 1.0, 1e17, 1e18] {
        let values: Vec<f32> = gaussian(rows * dim, 3).into_iter().map(|value| value * length).collect();
        let (base, queries) = (Data::F32(values.clone()), Data::F32(values[..20 * dim].to_vec()));
        for metric in [Metric::L2, Metric::Cosine] {
            let opened = Opened::new(&InMemory::new(base.vectors(), dim), metric, &GraphOptions::default());
            let reached = recall(&opened, &base, &queries, dim, 10, None, opened.index.effort(0.95, 10));
            assert!(reached >= 0.93, "{metric:?} {length}: {reached}");
        }
    }
}

#[test]
fn rows_far_from_all_others_take_nothing_from_them_and_are_found() {
    let (dim, rows) = (40, 6000);
    for far in [1e4, 1e6, 1e15, 2e19] {
        let mut values = gaussian(rows * dim, 3);
        values[7 * dim] = far;
        let queries = Data::F32(gaussian(40 * dim, 4));
        let of_row = values[7 * dim..8 * dim].to_vec();
        let base = Data::F32(values);
        for metric in [Metric::L2, Metric::InnerProduct] {
            let opened = Opened::new(&InMemory::new(base.vectors(), dim), metric, &GraphOptions::default());
            let reached = recall(&opened, &base, &queries, dim, 10, None, opened.index.effort(0.95, 10));
            assert!(reached >= 0.93, "{metric:?} {far}: {reached}");
            let found = opened.found(Vectors::F32(&of_row), 1, None, opened.index.effort(0.95, 1));
            assert!(found.candidates.iter().any(|candidate| candidate.row == 7), "{metric:?} {far}");
            let others = bits(rows, |row| row != 7);
            let found = opened.found(Vectors::F32(&of_row), 5, Some(set(&others)), opened.index.effort(0.95, 5));
            assert!(found.candidates.len() >= 5 && found.candidates.iter().all(|candidate| candidate.row != 7));
        }
    }
    // All rows may be that long.
    let values: Vec<f32> = gaussian(300 * dim, 3).into_iter().map(|value| value * 2e19).collect();
    let base = Data::F32(values);
    let opened = Opened::new(&InMemory::new(base.vectors(), dim), Metric::L2, &GraphOptions::default());
    assert_eq!(opened.found(base.row(dim, 3), 10, None, opened.index.effort(0.95, 10)).candidates.len(), 300);
}

#[test]
fn every_width_of_codes_can_be_chosen() {
    let dim = 128;
    let (base, queries) = (Data::new(ElementType::F32, ROWS, dim, 1), Data::new(ElementType::F32, 40, dim, 2));
    for (bits, code_bytes_max) in [(2, 512), (4, 64), (4, 512), (8, 512)] {
        let options = GraphOptions { m: 32, bits: Some(bits), code_bytes_max, ..Default::default() };
        let opened = Opened::new(&InMemory::new(base.vectors(), dim), Metric::Cosine, &options);
        assert!(opened.sections.0[1].len() <= ROWS * code_bytes_max);
        let reached = recall(&opened, &base, &queries, dim, 10, None, opened.index.effort(0.9, 10));
        assert!(reached >= 0.88, "{bits} bits: {reached}");
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    for (metric, element, dim) in [(Metric::Cosine, ElementType::F32, 130), (Metric::Jaccard, ElementType::Bits, 128)] {
        let base = Data::new(element, 6000, dim, 1);
        let bytes = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let rows = InMemory::new(base.vectors(), dim);
            let payload = pool.install(|| build(&rows, metric, &GraphOptions::default(), &Control::new(9))).unwrap();
            payload.sections.into_iter().map(|section| section.bytes).collect::<Vec<_>>()
        };
        let one = bytes(1);
        assert!(one == bytes(2) && one == bytes(5), "{metric:?}");
    }
}

/// Rows of which some have no vector, and whose reading may cancel the build.
struct Gaps<'a> {
    inner: InMemory<'a>,
    cancel: Option<(Arc<Control>, AtomicUsize)>,
}

impl Rows for Gaps<'_> {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn element(&self) -> ElementType {
        self.inner.element()
    }

    fn has(&self, row: usize) -> bool {
        !row.is_multiple_of(3)
    }

    fn read(&self, rows: std::ops::Range<usize>, visit: &mut dyn FnMut(usize, Vectors<'_>)) -> Result<(), BuildError> {
        if let Some((control, reads)) = &self.cancel
            && reads.fetch_sub(1, Ordering::Relaxed) == 1
        {
            control.cancel();
        }
        // In two runs, as a source may.
        let middle = rows.start + rows.len() / 2;
        self.inner.read(rows.start..middle, visit)?;
        self.inner.read(middle..rows.end, visit)
    }
}

#[test]
fn rows_without_a_vector_are_never_candidates() {
    for (metric, element, dim) in [(Metric::L2, ElementType::F32, 40), (Metric::Hamming, ElementType::Bits, 64)] {
        let base = Data::new(element, 3000, dim, 1);
        let rows = Gaps { inner: InMemory::new(base.vectors(), dim), cancel: None };
        let opened = Opened::new(&rows, metric, &GraphOptions::default());
        let effort = opened.index.effort(0.9, 10);
        for (k, row) in [(10, 3), (10, 2999), (5000, 1)] {
            let found = opened.found(base.row(dim, row), k, None, effort);
            assert!(found.candidates.iter().all(|candidate| candidate.row % 3 != 0));
            assert!(found.candidates.len() >= k.min(2000));
            let words = bits(3000, |row| row < 1500);
            let found = opened.found(base.row(dim, row), k, Some(set(&words)), effort);
            assert!(found.candidates.iter().all(|candidate| candidate.row % 3 != 0 && candidate.row < 1500));
            assert!(found.candidates.len() >= k.min(1000));
        }
    }
}

#[test]
fn vectors_without_a_direction_are_no_candidates_under_cosine() {
    let mut values = gaussian(500 * 16, 1);
    values[..160].fill(0.0);
    values[160] = f32::NAN;
    let opened = Opened::new(&InMemory::new(Vectors::F32(&values), 16), Metric::Cosine, &GraphOptions::default());
    let effort = opened.index.effort(0.99, 10);
    let found = opened.found(Vectors::F32(&values[320..336]), 1000, None, effort);
    assert_eq!(found.candidates.len(), 489);
    assert!(found.candidates.iter().all(|candidate| candidate.row > 10));
    assert!(opened.found(Vectors::F32(&[0.0; 16]), 10, None, effort).candidates.is_empty());
}

#[test]
fn a_cancelled_build_ends_wherever_it_is() {
    let base = Data::new(ElementType::F32, 4000, 32, 1);
    for reads in [1, 3, 5, 9, 100, 1000, 2000] {
        let control = Arc::new(Control::new(1));
        let rows = Gaps {
            inner: InMemory::new(base.vectors(), 32),
            cancel: Some((Arc::clone(&control), AtomicUsize::new(reads))),
        };
        let outcome = build(&rows, Metric::L2, &GraphOptions::default(), &control).map(|_| ());
        assert_eq!(outcome, Err(BuildError::Cancelled), "after {reads} reads");
    }
    let control = Control::new(1);
    build(&InMemory::new(base.vectors(), 32), Metric::L2, &GraphOptions::default(), &control).unwrap();
    assert!((control.progress() - 1.0).abs() < 1e-9, "{}", control.progress());
}

#[test]
fn few_rows_and_many_neighbors_are_all_found() {
    for rows in [0, 1, 2, 3, 17, 200] {
        for (metric, element) in [
            (Metric::L2, ElementType::F32),
            (Metric::InnerProduct, ElementType::I8),
            (Metric::Hamming, ElementType::Bits),
        ] {
            let base = Data::new(element, rows, 24, 1);
            let opened = Opened::new(&InMemory::new(base.vectors(), 24), metric, &GraphOptions::default());
            let asked = Data::new(element, 1, 24, 2);
            for k in [1, 10, 100_000] {
                let found = opened.found(asked.row(24, 0), k, None, opened.index.effort(0.95, k));
                assert!(found.candidates.len() >= k.min(rows), "{rows} rows, k {k}: {}", found.candidates.len());
            }
        }
    }
}

#[test]
fn rows_that_are_all_alike_are_all_found() {
    let mut values = vec![0.5_f32; 3000 * 20];
    values[2990 * 20..].iter_mut().enumerate().for_each(|(at, value)| *value += at as f32);
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
        let opened = Opened::new(&InMemory::new(Vectors::F32(&values), 20), metric, &GraphOptions::default());
        for k in [10, 500, 3000] {
            let found = opened.found(Vectors::F32(&values[..20]), k, None, opened.index.effort(0.95, k));
            assert!(found.candidates.len() >= k);
        }
    }
}

#[test]
fn estimates_are_in_the_terms_of_the_metric() {
    for (metric, element, dim) in CASES {
        let (base, queries) = (Data::new(element, 1500, dim, 1), Data::new(element, 5, dim, 2));
        let opened = Opened::new(&InMemory::new(base.vectors(), dim), metric, &GraphOptions::default());
        let Effort::Graph { beam, stop, .. } = opened.index.effort(0.9, 10) else { panic!("the effort of a graph") };
        for at in 0..5 {
            let query = Query::new(metric, dim, queries.row(dim, at)).unwrap();
            let mut exact = vec![0.0; 1500];
            query.distances(base.vectors(), &mut exact).unwrap();
            let spread =
                exact.iter().copied().fold(f64::MIN, f64::max) - exact.iter().copied().fold(f64::MAX, f64::min);
            for candidate in
                opened.found(queries.row(dim, at), 10, None, Effort::Graph { beam, stop, rerank: 50 }).candidates
            {
                let error = (f64::from(candidate.estimate) - exact[candidate.row as usize]).abs();
                assert!(error < 0.12 * spread, "{metric:?} {element:?} {dim}: {error} of {spread}");
                assert!(f64::from(candidate.bound) <= exact[candidate.row as usize] + 1e-4);
            }
        }
    }
}

#[test]
fn damaged_bytes_are_errors_or_other_answers_but_never_a_panic() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for (metric, element, dim) in [
        (Metric::L2, ElementType::F32, 20),
        (Metric::Jaccard, ElementType::Bits, 64),
        (Metric::L2, ElementType::U8, 20),
        (Metric::L2, ElementType::F32, 300),
    ] {
        let base = if dim == 300 { whole(700, dim, 1) } else { Data::new(element, 700, dim, 1) };
        let rows = Gaps { inner: InMemory::new(base.vectors(), dim), cancel: None };
        let payload = build(&rows, metric, &GraphOptions { m: 16, ..Default::default() }, &Control::new(1)).unwrap();
        let intact: Vec<Vec<u8>> = payload.sections.into_iter().map(|section| section.bytes).collect();
        for round in 0..400 {
            let mut bytes = intact.clone();
            let sections = if bytes[4].is_empty() { 4 } else { 5 };
            let section = &mut bytes[round % sections];
            match round % 3 {
                0 => section.truncate(random.random_range(0..section.len())),
                1 => section.extend([1, 2, 3]),
                _ => (0..8).for_each(|_| {
                    let at = random.random_range(0..section.len());
                    section[at] ^= 1 << random.random_range(0..8);
                }),
            }
            if round % 12 == 8 {
                // A head whose checksum was made to fit, so that its counts are met too.
                let body = super::format::crc32c(&bytes[0][16..]);
                bytes[0][12..16].copy_from_slice(&body.to_le_bytes());
            }
            let Ok(index) = open(&bytes[0]) else { continue };
            let sections = Resident(bytes);
            for effort in [index.effort(0.9, 10), Effort::Graph { beam: 40, stop: f32::INFINITY, rerank: 10 }] {
                for matching in [None, Some(bits(700, |row| row % 2 == 0))] {
                    let matching = matching.as_deref().map(set);
                    let request = Request { query: base.row(dim, 1), k: 10, matching, effort };
                    index.estimate(&request);
                    if let Ok(Step::Found(found)) = index.search(&request, &sections) {
                        assert!(found.candidates.iter().all(|candidate| candidate.row < 700));
                    }
                }
            }
        }
        let mut later = intact[0].clone();
        later[8] = 9;
        assert_eq!(open(&later).map(|_| ()), Err(FormatError::Version { found: 9, latest: 3 }));
    }
}

/// Vectors of whole numbers from 0 to 255, held as floats.
fn whole(rows: usize, dim: usize, seed: u64) -> Data {
    let Data::U8(values) = Data::new(ElementType::U8, rows, dim, seed) else { panic!("bytes were asked for") };
    Data::F32(values.into_iter().map(f32::from).collect())
}

#[test]
fn floats_that_hold_bytes_are_compared_without_loss_and_only_the_nearest_given_out() {
    let (dim, k) = (300, 10);
    let (base, queries) = (whole(ROWS, dim, 1), whole(40, dim, 2));
    let opened = Opened::new(&InMemory::new(base.vectors(), dim), Metric::L2, &GraphOptions::default());
    assert_eq!(opened.sections.0[4].len(), ROWS * 320);
    let effort = Effort::Graph { beam: 200, stop: f32::INFINITY, rerank: 100 };
    for at in 0..40 {
        let query = Query::new(Metric::L2, dim, queries.row(dim, at)).unwrap();
        let (mut exact, mut top) = (vec![0.0; ROWS], TopK::new(k));
        query.distances(base.vectors(), &mut exact).unwrap();
        query.top_k(base.vectors(), 0, &mut top).unwrap();
        let found = opened.found(queries.row(dim, at), k, None, effort);
        let nearest: Vec<u32> = top.into_sorted().iter().map(|neighbor| neighbor.row as u32).collect();
        assert_eq!(found.candidates.iter().map(|candidate| candidate.row).collect::<Vec<_>>(), nearest);
        for candidate in &found.candidates {
            let distance = exact[candidate.row as usize];
            assert!((f64::from(candidate.estimate) - distance).abs() < 1e-5 * distance);
        }
        let words = bits(ROWS, |row| row % 3 == 0);
        let found = opened.found(queries.row(dim, at), k, Some(set(&words)), effort);
        assert!(found.candidates.len() == k && found.candidates.iter().all(|candidate| candidate.row % 3 == 0));
    }
    assert!(recall(&opened, &base, &queries, dim, k, None, opened.index.effort(0.99, k)) > 0.97);
    // A query that is none of whole numbers: as many candidates as elsewhere, for the caller to compare.
    let Data::F32(values) = &queries else { panic!("floats were made") };
    let between: Vec<f32> = values[..dim].iter().map(|value| value + 0.3).collect();
    assert_eq!(opened.found(Vectors::F32(&between), k, None, effort).candidates.len(), 100);
}

#[test]
fn an_index_that_holds_the_vectors_tells_the_distances_that_they_have() {
    for (metric, base, dim, told) in [
        (Metric::L2, whole(600, 300, 1), 300, true),
        (Metric::L2, whole(600, 100, 1), 100, true),
        (Metric::L2, Data::new(ElementType::I8, 600, 100, 1), 100, true),
        (Metric::Hamming, Data::new(ElementType::Bits, 600, 72, 1), 72, true),
        (Metric::Jaccard, Data::new(ElementType::Bits, 600, 72, 1), 72, true),
        (Metric::Cosine, whole(600, 300, 1), 300, false),
        (Metric::L2, Data::new(ElementType::F32, 600, 100, 1), 100, false),
    ] {
        for gaps in [false, true] {
            let inner = InMemory::new(base.vectors(), dim);
            let options = GraphOptions { m: 16, ..Default::default() };
            let opened = if gaps {
                Opened::new(&Gaps { inner, cancel: None }, metric, &options)
            } else {
                Opened::new(&inner, metric, &options)
            };
            let rows = [7, 1, 598, 400];
            let distances = opened.index.exact_distances(base.row(dim, 5), &rows, &opened.sections);
            assert_eq!(distances.is_some(), told, "{metric:?} {dim}");
            let query = Query::new(metric, dim, base.row(dim, 5)).unwrap();
            for (row, distance) in rows.iter().zip(distances.unwrap_or_default()) {
                let mut exact = [0.0];
                query.distances(base.row(dim, *row as usize), &mut exact).unwrap();
                assert_eq!(distance.to_bits(), exact[0].to_bits(), "{metric:?} {dim}");
            }
            // Rows that have no vector, or do not exist, and queries that are no such numbers.
            let asks = |query, rows: &[u32]| opened.index.exact_distances(query, rows, &opened.sections);
            assert!(asks(base.row(dim, 5), &[1, 600]).is_none());
            assert!(!gaps || asks(base.row(dim, 5), &[3]).is_none());
            let (fractions, too_long) = (vec![0.5; dim], vec![1.0; dim + 1]);
            assert!(asks(Vectors::F32(&fractions), &[1]).is_none());
            assert!(asks(Vectors::F32(&too_long), &[1]).is_none());
        }
    }
}

#[test]
fn whole_vectors_are_kept_only_where_they_save_reading() {
    let dim = 300;
    let (f32s, u8s) = (whole(500, dim, 1), Data::new(ElementType::U8, 500, dim, 1));
    let Data::F32(values) = &f32s else { panic!("floats were made") };
    let mut beyond = values.clone();
    beyond[7] = 300.0;
    let (mut fraction, short) = (values.clone(), whole(500, 100, 1));
    fraction[7] = 0.5;
    let f16s = Data::F16(values.iter().map(|value| f16::from_f32(*value)).collect());
    for (vectors, dim, metric, kept) in [
        (f32s.vectors(), dim, Metric::L2, true),
        (f16s.vectors(), dim, Metric::L2, true),
        (f32s.vectors(), dim, Metric::Cosine, false),
        (u8s.vectors(), dim, Metric::L2, false),
        (Vectors::F32(&beyond), dim, Metric::L2, false),
        (Vectors::F32(&fraction), dim, Metric::L2, false),
        // All of its codes are whole already.
        (short.vectors(), 100, Metric::L2, false),
    ] {
        let opened = Opened::new(&InMemory::new(vectors, dim), metric, &GraphOptions::default());
        assert_eq!(!opened.sections.0[4].is_empty(), kept, "{} {metric:?}", vectors.element_type().name());
    }
}

#[test]
fn files_of_earlier_versions_are_read() {
    let base = Data::new(ElementType::F32, 700, 40, 1);
    let mut opened = Opened::new(&InMemory::new(base.vectors(), 40), Metric::L2, &GraphOptions::default());
    let effort = opened.index.effort(0.95, 10);
    let now = opened.found(base.row(40, 3), 10, None, effort).candidates;
    // What version 2 had no name for, outliers and far queries, is the end of the head; what version 1 had none for is not in this one.
    let head = &mut opened.sections.0[0];
    let kinds = super::format::Head::read(head).unwrap().far;
    let bytes: usize = kinds.iter().map(|far| 8 + 20 * far.efforts.len()).sum();
    head.truncate(head.len() - bytes - 8);
    head[8] = 2;
    let checksum = super::format::crc32c(&head[16..]);
    head[12..16].copy_from_slice(&checksum.to_le_bytes());
    opened.index = open(&opened.sections.0[0]).unwrap();
    assert_eq!(opened.found(base.row(40, 3), 10, None, effort).candidates, now);
    opened.sections.0[0][8] = 1;
    opened.sections.0.pop();
    opened.index = open(&opened.sections.0[0]).unwrap();
    assert_eq!(opened.found(base.row(40, 3), 10, None, effort).candidates, now);
    let whole = whole(300, 300, 1);
    let payload =
        build(&InMemory::new(whole.vectors(), 300), Metric::L2, &GraphOptions::default(), &Control::new(1)).unwrap();
    let mut head = payload.sections[0].bytes.clone();
    head[8] = 1;
    assert!(matches!(open(&head), Err(FormatError::Damaged(_))));
}

#[test]
fn efforts_between_the_measured_ones_are_in_between() {
    let dim = 96;
    let base = Data::new(ElementType::F32, 20_000, dim, 1);
    let opened = Opened::new(&InMemory::new(base.vectors(), dim), Metric::L2, &GraphOptions::default());
    let mut last = (0.0, 0, 0);
    for percent in 500..1000 {
        let Effort::Graph { beam, stop, rerank } = opened.index.effort(f64::from(percent) / 1000.0, 10) else {
            panic!("the effort of a graph")
        };
        assert!(stop >= last.0 && beam >= last.1 && beam >= rerank, "{percent}");
        last = (stop, beam, rerank);
        let request =
            Request { query: base.row(dim, 0), k: 10, matching: None, effort: Effort::Graph { beam, stop, rerank } };
        assert!(opened.index.estimate(&request).codes > 0);
    }
}

#[test]
fn a_search_says_which_bytes_it_lacks_and_refuses_what_does_not_fit() {
    let base = Data::new(ElementType::F32, 300, 20, 1);
    let payload =
        build(&InMemory::new(base.vectors(), 20), Metric::L2, &GraphOptions::default(), &Control::new(1)).unwrap();
    struct Away(Vec<usize>);
    impl crate::Sections for Away {
        fn len(&self, section: usize) -> usize {
            self.0.get(section).copied().unwrap_or(0)
        }

        fn get(&self, _: usize, _: std::ops::Range<usize>) -> Option<&[u8]> {
            None
        }
    }
    let opened = Opened::of(payload.clone());
    let lengths: Vec<usize> = payload.sections.iter().map(|section| section.bytes.len()).collect();
    let effort = opened.index.effort(0.95, 10);
    let request = Request { query: base.row(20, 0), k: 10, matching: None, effort };
    let Step::Wants(wanted) = opened.index.search(&request, &Away(lengths.clone())).unwrap() else {
        panic!("no byte is at hand")
    };
    assert_eq!(wanted, [(1, 0..lengths[1]), (2, 0..lengths[2])]);
    for query in [Vectors::F32(&[0.0; 19]), Vectors::Bits(&[0; 3])] {
        assert!(opened.index.search(&Request { query, ..request }, &opened.sections).is_err());
    }
    let rows = InMemory::new(base.vectors(), 20);
    for metric in [Metric::L1, Metric::Hamming] {
        let refused = build(&rows, metric, &GraphOptions::default(), &Control::new(1));
        assert!(matches!(refused, Err(BuildError::Unsupported(_))));
    }
}
