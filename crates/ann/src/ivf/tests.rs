//! Tests of the family of lists.

use kernels::{ElementType, Metric, Query, Vectors};

use super::*;
use crate::build::{BuildError, Control, InMemory, Rows};
use crate::index::{Effort, Request, Step};
use crate::payload::{Payload, Resident, Sections};
use crate::testing::*;

const CODES: [Code; 8] = [
    Code::Raw,
    Code::Scalar8,
    Code::Scalar4,
    Code::Rabitq { bits: 1 },
    Code::Rabitq { bits: 5 },
    Code::Rabitq { bits: 9 },
    Code::pq(4),
    Code::pq(8),
];

const FLOAT_METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::InnerProduct];

fn built(stored: &Stored, dim: usize, metric: Metric, code: Code) -> (Box<dyn Index>, Resident<Vec<u8>>) {
    let rows = InMemory::new(stored.vectors(), dim);
    let options = IvfOptions { lists: Some(24), code, ..IvfOptions::default() };
    opened(build(&rows, metric, &options, &Control::new(3)).unwrap())
}

/// As [`built`], each row in two lists.
fn spilled(stored: &Stored, dim: usize, metric: Metric, code: Code) -> (Box<dyn Index>, Resident<Vec<u8>>) {
    let rows = InMemory::new(stored.vectors(), dim);
    let options = IvfOptions { lists: Some(24), code, spill: true, ..IvfOptions::default() };
    opened(build(&rows, metric, &options, &Control::new(3)).unwrap())
}

fn opened(payload: Payload) -> (Box<dyn Index>, Resident<Vec<u8>>) {
    let sections = resident(payload);
    (open(&sections.0[0]).unwrap(), sections)
}

const ALL: Effort = Effort::Ivf { probes: usize::MAX, rerank: 100 };

#[test]
fn every_metric_element_and_code_finds_the_neighbors() {
    let dim = 72;
    for element in [ElementType::F32, ElementType::F16, ElementType::I8, ElementType::U8] {
        let (base, queries) = (clustered(element, 1_500, dim, 1), clustered(element, 12, dim, 1));
        for metric in FLOAT_METRICS {
            for code in CODES {
                let (index, sections) = built(&base, dim, metric, code);
                let (base, queries) = (base.vectors(), queries.vectors());
                let all = recall(&*index, &sections, base, queries, (10, ALL), None);
                assert!(all >= 0.97, "{element:?} {metric:?} {code:?}: {all} over all lists");
                let effort = index.effort(0.95, 10);
                let asked = recall(&*index, &sections, base, queries, (10, effort), None);
                assert!(asked >= 0.85, "{element:?} {metric:?} {code:?}: {asked} with {effort:?}");
            }
        }
    }
}

#[test]
fn a_row_far_from_all_others_takes_nothing_from_them() {
    let dim = 40;
    for far in [1e4, 1e6, 1e9, 1e15, 2e19] {
        let Stored::F32(mut values) = clustered(ElementType::F32, 3_000, dim, 1) else { panic!("floats were made") };
        values[7 * dim] = far;
        let (base, queries) = (Stored::F32(values), clustered(ElementType::F32, 12, dim, 1));
        for (metric, code) in FLOAT_METRICS.into_iter().flat_map(|metric| CODES.map(|code| (metric, code))) {
            let (index, sections) = built(&base, dim, metric, code);
            let (base, queries) = (base.vectors(), queries.vectors());
            let found = recall(&*index, &sections, base, queries, (10, index.effort(0.95, 10)), None);
            assert!(found >= 0.85, "{metric:?} {code:?} {far}: {found}");
            let request =
                Request { query: base.rows(dim, 7, 1).unwrap(), k: 1, matching: None, effort: index.effort(0.95, 1) };
            let found = candidates(&*index, &sections, &request);
            // Where there is no candidate, all rows are compared.
            let is_found = found.is_empty() || found.iter().any(|candidate| candidate.row == 7);
            assert!(is_found, "{metric:?} {code:?} {far}");
        }
    }
}

#[test]
fn bits_are_found_by_hamming_and_jaccard() {
    let dim = 128;
    let (base, queries) = (clustered(ElementType::Bits, 2_000, dim, 2), clustered(ElementType::Bits, 12, dim, 2));
    for metric in [Metric::Hamming, Metric::Jaccard] {
        let (index, sections) = built(&base, dim, metric, Code::Raw);
        assert!(recall(&*index, &sections, base.vectors(), queries.vectors(), (10, ALL), None) > 0.999);
        let effort = index.effort(0.9, 10);
        let few = recall(&*index, &sections, base.vectors(), queries.vectors(), (10, effort), None);
        assert!(few > 0.7, "{metric:?} {few} {effort:?}");
    }
}

#[test]
fn distances_are_above_their_bounds_as_often_as_stated() {
    let dim = 96;
    let (base, queries) = (clustered(ElementType::F32, 2_000, dim, 3), clustered(ElementType::F32, 10, dim, 4));
    for metric in FLOAT_METRICS {
        for code in CODES {
            let (index, sections) = built(&base, dim, metric, code);
            let (mut below, mut count, mut off, mut all) = (0, 0, 0.0, 0.0);
            for query in (0..10).filter_map(|at| queries.vectors().rows(dim, at, 1)) {
                let request = Request { query, k: 2_000, matching: None, effort: ALL };
                let exact = Query::new(metric, dim, query).unwrap();
                let mut distances = vec![0.0; 2_000];
                exact.distances(base.vectors(), &mut distances).unwrap();
                let found = candidates(&*index, &sections, &request);
                assert_eq!(found.len(), 2_000);
                for candidate in found {
                    let distance = distances[candidate.row as usize];
                    below += usize::from(distance < f64::from(candidate.bound) - 1e-6);
                    off += (distance - f64::from(candidate.estimate)).abs();
                    all += distance.abs();
                    count += 1;
                }
            }
            assert!(below * 100 <= count * 4, "{metric:?} {code:?}: {below} of {count}");
            assert!(off < all * 0.6, "{metric:?} {code:?}: {off} of {all}");
        }
    }
}

#[test]
fn filters_of_any_selectivity_leave_k_rows() {
    let dim = 64;
    let (base, queries) = (clustered(ElementType::F32, 4_000, dim, 5), clustered(ElementType::F32, 10, dim, 5));
    for (code, build) in [
        (Code::Raw, built as fn(&Stored, usize, Metric, Code) -> _),
        (Code::Rabitq { bits: 5 }, built),
        (Code::Scalar4, built),
        (Code::pq(4), built),
        (Code::pq(8), spilled),
        (Code::pq(4), spilled),
        (Code::Raw, spilled),
    ] {
        let (index, sections) = build(&base, dim, Metric::L2, code);
        let effort = index.effort(0.95, 10);
        for modulus in [2, 10, 100, 1_000, 3_999] {
            let keep = |row: u32| row % modulus == 1;
            let found = recall(&*index, &sections, base.vectors(), queries.vectors(), (10, effort), Some(&keep));
            assert!(found >= 0.9, "{code:?} one in {modulus}: {found}");
        }
    }
}

#[test]
fn a_filter_that_keeps_the_far_rows_only_finds_them() {
    let dim = 64;
    let (base, queries) = (clustered(ElementType::F32, 4_000, dim, 6), clustered(ElementType::F32, 6, dim, 6));
    let (index, sections) = built(&base, dim, Metric::L2, Code::Rabitq { bits: 5 });
    let (effort, mut sum) = (index.effort(0.95, 10), 0.0);
    for at in 0..6 {
        let query = queries.vectors().rows(dim, at, 1).unwrap();
        let far: std::collections::BTreeSet<u64> = {
            let near = exact(Metric::L2, dim, base.vectors(), query, 2_000, &|_| true);
            (0..4_000).filter(|row| !near.contains(row)).collect()
        };
        let keep = |row: u32| far.contains(&u64::from(row));
        // The nearest of the far rows lie in no list in particular: k are found always, the right ones with the effort.
        recall(&*index, &sections, base.vectors(), query, (10, effort), Some(&keep));
        let found = recall(&*index, &sections, base.vectors(), query, (10, ALL), Some(&keep));
        sum += found;
    }
    assert!(sum / 6.0 >= 0.9, "{sum}");
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let base = clustered(ElementType::F32, 3_000, 48, 7);
    let rows = InMemory::new(base.vectors(), 48);
    for (metric, code, spill) in [
        (Metric::Cosine, Code::Rabitq { bits: 5 }, false),
        (Metric::Cosine, Code::pq(4), true),
        (Metric::InnerProduct, Code::pq(8), false),
    ] {
        let score_threshold = SCORE_THRESHOLD;
        let options = IvfOptions { lists: Some(30), code, spill, score_threshold, ..IvfOptions::default() };
        let build_on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let payload = pool.install(|| build(&rows, metric, &options, &Control::new(11))).unwrap();
            resident(payload).0
        };
        let one = build_on(1);
        assert!(one == build_on(3), "{code:?}");
        let other = resident(build(&rows, metric, &options, &Control::new(12)).unwrap()).0;
        assert!(one != other, "{code:?}");
    }
}

#[test]
fn a_cancelled_build_ends() {
    let base = clustered(ElementType::F32, 2_000, 32, 8);
    let control = Control::new(0);
    control.cancel();
    let rows = InMemory::new(base.vectors(), 32);
    let outcome = build(&rows, Metric::L2, &IvfOptions::default(), &control);
    assert_eq!(outcome.unwrap_err(), BuildError::Cancelled);
}

#[test]
fn rows_without_a_vector_are_never_candidates_and_hard_ones_are_passed_over() {
    let dim = 20;
    let Stored::F32(mut values) = clustered(ElementType::F32, 700, dim, 9) else { panic!() };
    values[..dim].fill(f32::NAN);
    values[dim..2 * dim].fill(0.0);
    values[2 * dim..3 * dim].fill(1e30);
    let rows = Holey { all: InMemory::new(Vectors::F32(&values), dim), has: |row| row % 7 != 3 };
    for metric in FLOAT_METRICS {
        for (code, spill) in [
            (Code::Raw, false),
            (Code::Scalar8, false),
            (Code::Rabitq { bits: 4 }, false),
            (Code::pq(4), false),
            (Code::pq(8), true),
        ] {
            let options = IvfOptions { lists: Some(5), code, spill, ..IvfOptions::default() };
            let (index, sections) = opened(build(&rows, metric, &options, &Control::new(1)).unwrap());
            let request =
                Request { query: Vectors::F32(&values[40 * dim..41 * dim]), k: 700, matching: None, effort: ALL };
            let found = candidates(&*index, &sections, &request);
            let mut found: Vec<u32> = found.iter().map(|candidate| candidate.row).collect();
            found.sort_unstable();
            let is_candidate = |row: &u32| row % 7 != 3 && *row != 0 && !(*row == 1 && metric == Metric::Cosine);
            assert_eq!(found, (0..700).filter(is_candidate).collect::<Vec<_>>(), "{metric:?} {code:?}");
            let zero = [0.0; 20];
            let request = Request { query: Vectors::F32(&zero), ..request };
            let found = candidates(&*index, &sections, &request);
            assert_eq!(found.is_empty(), metric == Metric::Cosine);
            let nan = [f32::NAN; 20];
            assert!(candidates(&*index, &sections, &Request { query: Vectors::F32(&nan), ..request }).is_empty());
        }
    }
}

#[test]
fn equal_vectors_and_few_rows_are_no_trouble() {
    for rows in [0, 1, 2, 3, 100] {
        for (metric, code) in FLOAT_METRICS.into_iter().flat_map(|metric| CODES.map(|code| (metric, code))) {
            let base = Stored::F32([1.0_f32, -2.0, 0.5, 3.0].repeat(rows));
            let all = InMemory::new(base.vectors(), 4);
            let (index, sections) =
                opened(build(&all, metric, &IvfOptions { code, ..IvfOptions::default() }, &Control::new(1)).unwrap());
            assert_eq!(index.rows(), rows);
            let request = Request {
                query: Vectors::F32(&[1.0, -2.0, 0.5, 3.1]),
                k: 5,
                matching: None,
                effort: index.effort(0.95, 5),
            };
            let found = candidates(&*index, &sections, &request);
            assert!(found.len() >= rows.min(5), "{rows} {metric:?} {code:?}");
        }
    }
    let (index, sections) = built(&Stored::Bits(vec![7; 32]), 16, Metric::Hamming, Code::Raw);
    let request = Request { query: Vectors::Bits(&[7, 7]), k: 30, matching: None, effort: ALL };
    assert_eq!(candidates(&*index, &sections, &request).len(), 16);
}

#[test]
fn merged_segments_are_what_one_build_would_have_made() {
    let dim = 40;
    let base = clustered(ElementType::F32, 1_300, dim, 10);
    let whole = InMemory::new(base.vectors(), dim);
    for (code, spill) in [
        (Code::Raw, false),
        (Code::Raw, true),
        (Code::Scalar4, false),
        (Code::Rabitq { bits: 1 }, false),
        (Code::Rabitq { bits: 5 }, true),
        (Code::pq(4), false),
        (Code::pq(4), true),
        (Code::pq(8), false),
    ] {
        let options = IvfOptions { lists: Some(13), code, spill, ..IvfOptions::default() };
        let control = Control::new(5);
        let routing = train(&whole, Metric::L2, &options, &control).unwrap();
        let routing = Routing::from_bytes(&routing.to_bytes()).unwrap();
        let one = resident(build_with(&whole, &routing, &options, &control).unwrap());
        let parts = [(0, 700), (700, 600)].map(|(start, rows)| {
            let part = InMemory::new(base.vectors().rows(dim, start, rows).unwrap(), dim);
            resident(build_with(&part, &routing, &options, &control).unwrap())
        });
        let rows: [Vec<Option<u32>>; 2] = [(0..700).map(Some).collect(), (700..1_300).map(Some).collect()];
        let joined = [0, 1].map(|at| Part { sections: &parts[at], rows: &rows[at] });
        let merged = resident(merge(&joined, 1_300, &control).unwrap());
        for section in 1..5 {
            assert!(merged.0[section] == one.0[section], "{code:?} section {section}");
        }
        let index = open(&merged.0[0]).unwrap();
        let queries = base.vectors().rows(dim, 600, 20).unwrap();
        assert!(recall(&*index, &merged, base.vectors(), queries, (10, ALL), None) > 0.95);
        // Rows that are left out are gone.
        let half: Vec<Option<u32>> = (0..700).map(|row| (row % 2 == 0).then_some(row / 2)).collect();
        let merged = resident(merge(&[Part { sections: &parts[0], rows: &half }], 350, &control).unwrap());
        let index = open(&merged.0[0]).unwrap();
        let request = Request { query: queries.rows(dim, 0, 1).unwrap(), k: 400, matching: None, effort: ALL };
        assert_eq!(candidates(&*index, &merged, &request).len(), 350);
    }
}

#[test]
fn rows_like_those_of_a_routing_use_it_and_others_their_own() {
    let dim = 32;
    let base = clustered(ElementType::F32, 2_000, dim, 10);
    let options = IvfOptions { lists: Some(16), ..IvfOptions::default() };
    let control = Control::new(5);
    for metric in FLOAT_METRICS {
        let routing = train(&InMemory::new(base.vectors(), dim), metric, &options, &control).unwrap();
        let Vectors::F32(values) = base.vectors() else { panic!("floats") };
        // As a whole moved by many times their distances, each coordinate by another amount.
        let moved: Vec<f32> =
            values.iter().zip(0..).map(|(value, at)| value + 40.0 * ((at % dim) as f32).cos()).collect();
        for (vectors, suits) in [(values, true), (moved.as_slice(), false)] {
            let rows = InMemory::new(Vectors::F32(vectors), dim);
            let sections = resident(build_like(&rows, &routing, &options, &control).unwrap());
            assert_eq!(routing_of(&sections).unwrap() == routing, suits, "{metric:?}");
            let index = open(&sections.0[0]).unwrap();
            let queries = Vectors::F32(&vectors[..20 * dim]);
            let effort = index.effort(0.95, 10);
            let found = recall(&*index, &sections, Vectors::F32(vectors), queries, (10, effort), None);
            assert!(found >= 0.9, "{metric:?} {suits}: {found}");
        }
    }
}

#[test]
fn segments_that_do_not_fit_are_not_merged() {
    let base = clustered(ElementType::F32, 300, 16, 11);
    let rows = InMemory::new(base.vectors(), 16);
    let build_with_seed =
        |seed| resident(build(&rows, Metric::L2, &IvfOptions::default(), &Control::new(seed)).unwrap());
    let (one, other) = (build_with_seed(1), build_with_seed(2));
    let map: Vec<Option<u32>> = (0..300).map(Some).collect();
    let part = |sections| Part { sections, rows: &map };
    let control = Control::new(0);
    assert_eq!(merge(&[part(&one), part(&other)], 300, &control).unwrap_err(), MergeError::Different(1));
    assert_eq!(merge(&[part(&one)], 200, &control).unwrap_err(), MergeError::Rows(0));
    let options = IvfOptions { spill: true, ..IvfOptions::default() };
    let spilled = resident(build(&rows, Metric::L2, &options, &Control::new(1)).unwrap());
    assert_eq!(merge(&[part(&one), part(&spilled)], 300, &control).unwrap_err(), MergeError::Different(1));
    let short = Part { sections: &one, rows: &map[1..] };
    assert_eq!(merge(&[short], 300, &control).unwrap_err(), MergeError::Rows(0));
}

#[test]
fn a_search_asks_for_the_bytes_of_its_lists_alone() {
    let dim = 64;
    let (base, queries) = (clustered(ElementType::F32, 4_000, dim, 12), clustered(ElementType::F32, 5, dim, 12));
    for code in CODES {
        let (index, sections) = built(&base, dim, Metric::L2, code);
        let words = words(4_000, &|row| row % 5 == 0);
        let set = crate::RowSet::new(&words, 800);
        for (at, matching) in (0..5).zip([None, Some(set), None, Some(set), None]) {
            let query = queries.vectors().rows(dim, at, 1).unwrap();
            let request = Request { query, k: 10, matching, effort: Effort::Ivf { probes: 4, rerank: 20 } };
            let lacking = Lacking::new(&sections);
            let (found, rounds) = search_lacking(&*index, &lacking, &request);
            assert!(rounds <= if matching.is_some() { 8 } else { 4 }, "{rounds} round trips");
            let resident = candidates(&*index, &sections, &request);
            let rows = |found: &[crate::Candidate]| found.iter().map(|candidate| candidate.row).collect::<Vec<_>>();
            assert_eq!(rows(&found), rows(&resident), "{code:?}");
            let part = lacking.bytes(2) as f64 / sections.len(2) as f64;
            assert!(matching.is_some() || part < 0.35, "{code:?} read {part}");
        }
    }
}

#[test]
fn a_batch_finds_what_single_searches_find() {
    let dim = 64;
    let (base, queries) = (clustered(ElementType::F32, 3_000, dim, 13), clustered(ElementType::F32, 40, dim, 13));
    let (index, sections) = built(&base, dim, Metric::Cosine, Code::Rabitq { bits: 5 });
    let effort = Effort::Ivf { probes: 8, rerank: 30 };
    let queries: Vec<_> = (0..40).map(|at| queries.vectors().rows(dim, at, 1).unwrap()).collect();
    let requests: Vec<_> =
        queries.iter().map(|query| Request { query: *query, k: 10, matching: None, effort }).collect();
    let batch = index.search_batch(&requests, &sections).unwrap();
    let (mut right, mut wanted) = (0, 0);
    for (step, request) in batch.into_iter().zip(&requests) {
        let Step::Found(found) = step else { panic!() };
        let own = candidates(&*index, &sections, request);
        let answer = |found: &[crate::Candidate]| reranked(Metric::Cosine, dim, base.vectors(), found, request);
        let (batch, own) = (answer(&found.candidates), answer(&own));
        right += own.iter().filter(|row| batch.contains(row)).count();
        wanted += own.len();
    }
    assert!(right * 100 >= wanted * 99, "{right} of {wanted}");
}

#[test]
fn two_levels_find_about_what_one_does() {
    let dim = 16;
    let base = clustered(ElementType::F32, 9_000, dim, 14);
    let rows = InMemory::new(base.vectors(), dim);
    let options = IvfOptions { lists: Some(2_100), code: Code::Rabitq { bits: 5 }, ..IvfOptions::default() };
    let (index, sections) = opened(build(&rows, Metric::L2, &options, &Control::new(1)).unwrap());
    let queries = base.vectors().rows(dim, 50, 40).unwrap();
    let effort = Effort::Ivf { probes: 64, rerank: 50 };
    let found = recall(&*index, &sections, base.vectors(), queries, (10, effort), None);
    assert!(found > 0.9, "{found}");
    // More rows are asked for than the compared lists hold.
    let request = Request { query: queries.rows(dim, 0, 1).unwrap(), k: 9_000, matching: None, effort };
    assert_eq!(candidates(&*index, &sections, &request).len(), rows.len());
}

#[test]
fn damaged_bytes_are_an_error_or_a_wrong_answer_but_never_a_panic() {
    let dim = 24;
    let (base, queries) = (clustered(ElementType::F32, 400, dim, 15), clustered(ElementType::F32, 2, 4 * dim, 15));
    for code in [Code::Raw, Code::Scalar8, Code::Rabitq { bits: 3 }, Code::pq(4)] {
        let (_, sections) = built(&base, dim, Metric::L2, code);
        survive_damage(&sections, queries.vectors(), open);
    }
    for code in [Code::pq(4), Code::pq(8)] {
        let (_, sections) = spilled(&base, dim, Metric::InnerProduct, code);
        survive_damage(&sections, queries.vectors(), open);
    }
    let bits = clustered(ElementType::Bits, 400, 64, 15);
    let (_, sections) = built(&bits, 64, Metric::Jaccard, Code::Raw);
    survive_damage(&sections, bits.vectors(), open);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let base = clustered(ElementType::F32, 10, 16, 16);
    let bits = clustered(ElementType::Bits, 10, 16, 16);
    let (rows, bits) = (InMemory::new(base.vectors(), 16), InMemory::new(bits.vectors(), 16));
    let control = Control::new(0);
    let code = |code| IvfOptions { code, ..IvfOptions::default() };
    for (rows, metric, options) in [
        (&rows, Metric::L1, code(Code::Raw)),
        (&rows, Metric::Hamming, code(Code::Raw)),
        (&bits, Metric::L2, code(Code::Raw)),
        (&bits, Metric::Hamming, code(Code::Scalar8)),
        (&rows, Metric::L2, code(Code::Rabitq { bits: 0 })),
        (&rows, Metric::L2, code(Code::Rabitq { bits: 10 })),
        (&bits, Metric::Hamming, code(Code::pq(4))),
        (&bits, Metric::Hamming, IvfOptions { spill: true, ..code(Code::Raw) }),
        (&rows, Metric::L2, code(Code::pq(6))),
        (&rows, Metric::L2, code(Code::Pq { bits: 4, dims: 8 })),
        (&rows, Metric::L2, IvfOptions { score_threshold: 1.0, ..code(Code::pq(4)) }),
        (&rows, Metric::L2, IvfOptions { score_threshold: f32::NAN, ..code(Code::pq(4)) }),
    ] {
        assert!(matches!(build(rows, metric, &options, &control), Err(BuildError::Unsupported(_))), "{metric:?}");
    }
}

#[test]
fn product_codes_of_every_kind_find_the_neighbors() {
    let dim = 100;
    let (base, queries) = (clustered(ElementType::F32, 1_500, dim, 1), clustered(ElementType::F32, 12, dim, 1));
    let rows = InMemory::new(base.vectors(), dim);
    for (bits, dims) in [(4, 1), (4, 2), (4, 4), (8, 2), (8, 4), (8, 8)] {
        for (metric, score_threshold) in [(Metric::L2, 0.0), (Metric::Cosine, 0.2), (Metric::InnerProduct, 0.2)] {
            let code = Code::Pq { bits, dims };
            let options = IvfOptions { lists: Some(24), code, score_threshold, ..IvfOptions::default() };
            let (index, sections) = opened(build(&rows, metric, &options, &Control::new(3)).unwrap());
            let found = recall(&*index, &sections, base.vectors(), queries.vectors(), (10, ALL), None);
            assert!(found >= 0.97, "{metric:?} {code:?}: {found}");
            let bytes = sections.len(2) / 1_500;
            // 112 elements with their padding; factors, and empty places of the last block of each list.
            assert!(bytes <= 112 * usize::from(bits) / usize::from(8 * dims) * 3 / 2 + 12, "{code:?}: {bytes}");
        }
    }
}

#[test]
fn a_routing_serves_product_codes_only_with_their_codebook() {
    let base = clustered(ElementType::F32, 500, 32, 17);
    let (rows, control) = (InMemory::new(base.vectors(), 32), Control::new(1));
    let score_threshold = SCORE_THRESHOLD;
    let options = |code| IvfOptions { lists: Some(6), code, score_threshold, ..IvfOptions::default() };
    let routing = train(&rows, Metric::Cosine, &options(Code::pq(4)), &control).unwrap();
    assert_eq!(Routing::from_bytes(&routing.to_bytes()).unwrap(), routing);
    for code in [Code::pq(8), Code::Pq { bits: 4, dims: 4 }] {
        let refused = build_with(&rows, &routing, &options(code), &control);
        assert!(matches!(refused, Err(BuildError::Unsupported(_))), "{code:?}");
    }
    // Other codes need none, and say nothing of it.
    let (index, sections) = opened(build_with(&rows, &routing, &options(Code::Scalar8), &control).unwrap());
    let queries = base.vectors().rows(32, 0, 10).unwrap();
    assert!(recall(&*index, &sections, base.vectors(), queries, (10, ALL), None) > 0.95);
    let without = train(&rows, Metric::Cosine, &options(Code::Raw), &control).unwrap();
    assert!(build_with(&rows, &without, &options(Code::pq(4)), &control).is_err());
}

#[test]
fn what_version_1_can_say_is_written_as_version_1() {
    let base = clustered(ElementType::F32, 300, 16, 18);
    let version = |code, spill| {
        let options = IvfOptions { lists: Some(4), code, spill, ..IvfOptions::default() };
        let rows = InMemory::new(base.vectors(), 16);
        let payload = build(&rows, Metric::L2, &options, &Control::new(1)).unwrap();
        payload.sections[0].bytes[4]
    };
    for (code, spill, expected) in [
        (Code::Rabitq { bits: 5 }, false, 1),
        (Code::Raw, false, 1),
        (Code::Rabitq { bits: 5 }, true, 2),
        (Code::pq(4), false, 2),
    ] {
        assert_eq!(version(code, spill), expected, "{code:?} {spill}");
    }
}

#[test]
fn rows_in_two_lists_are_found_with_fewer_lists_and_once() {
    let dim = 48;
    let base = clustered(ElementType::F32, 3_000, dim, 19);
    let queries = clustered(ElementType::F32, 40, dim, 20);
    for (metric, code) in [(Metric::L2, Code::Raw), (Metric::Cosine, Code::pq(4)), (Metric::InnerProduct, Code::pq(8))]
    {
        let ((one, one_sections), (two, two_sections)) =
            (built(&base, dim, metric, code), spilled(&base, dim, metric, code));
        assert_eq!(two_sections.len(3), 2 * one_sections.len(3), "each row twice");
        let effort = Effort::Ivf { probes: 2, rerank: 40 };
        let found_in_one = recall(&*one, &one_sections, base.vectors(), queries.vectors(), (10, effort), None);
        let found_in_two = recall(&*two, &two_sections, base.vectors(), queries.vectors(), (10, effort), None);
        assert!(found_in_two > found_in_one, "{metric:?} {code:?}: {found_in_two} after {found_in_one}");
        // All rows, each once, though they are seen twice.
        let query = queries.vectors().rows(dim, 0, 1).unwrap();
        let request = Request { query, k: 3_000, matching: None, effort: ALL };
        let Ok(Step::Found(found)) = two.search(&request, &two_sections) else { panic!() };
        let mut rows: Vec<u32> = found.candidates.iter().map(|candidate| candidate.row).collect();
        rows.sort_unstable();
        assert_eq!(rows, (0..3_000).collect::<Vec<_>>());
        assert_eq!(found.work.codes, 6_000, "codes are counted as they are compared");
        assert_eq!(two.estimate(&request).codes, 6_000);
    }
}

#[test]
fn two_levels_spill_as_well() {
    let dim = 16;
    let base = clustered(ElementType::F32, 9_000, dim, 14);
    let rows = InMemory::new(base.vectors(), dim);
    let options = IvfOptions { lists: Some(2_100), code: Code::pq(4), spill: true, ..IvfOptions::default() };
    let (index, sections) = opened(build(&rows, Metric::L2, &options, &Control::new(1)).unwrap());
    let queries = base.vectors().rows(dim, 50, 40).unwrap();
    let effort = Effort::Ivf { probes: 48, rerank: 60 };
    let found = recall(&*index, &sections, base.vectors(), queries, (10, effort), None);
    assert!(found > 0.9, "{found}");
    assert_eq!(sections.len(3), 2 * 4 * rows.len());
}
