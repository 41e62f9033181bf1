//! Tests of the flat family.

use kernels::{ElementType, Metric, Query, Vectors};

use super::*;
use crate::build::{BuildError, Control, InMemory};
use crate::index::{Effort, Request};
use crate::payload::Resident;
use crate::testing::*;

const CODES: [Code; 5] =
    [Code::Scalar8, Code::Scalar4, Code::Rabitq { bits: 1 }, Code::Rabitq { bits: 4 }, Code::Rabitq { bits: 9 }];

const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::InnerProduct];

fn built(stored: &Stored, dim: usize, metric: Metric, code: Code) -> (Box<dyn Index>, Resident<Vec<u8>>) {
    let rows = InMemory::new(stored.vectors(), dim);
    let sections = resident(build(&rows, metric, &FlatOptions { code }, &Control::new(3)).unwrap());
    (open(&sections.0[0]).unwrap(), sections)
}

#[test]
fn every_metric_element_and_code_finds_the_neighbors() {
    let dim = 72;
    for element in [ElementType::F32, ElementType::F16, ElementType::I8, ElementType::U8] {
        let (base, queries) = (clustered(element, 5_000, dim, 1), clustered(element, 12, dim, 1));
        for metric in METRICS {
            for code in CODES {
                let (index, sections) = built(&base, dim, metric, code);
                let effort = index.effort(0.95, 10);
                let found = recall(&*index, &sections, base.vectors(), queries.vectors(), (10, effort), None);
                assert!(found >= 0.9, "{element:?} {metric:?} {code:?}: {found} with {effort:?}");
                let keep = |row: u32| row % 100 == 7;
                let found = recall(&*index, &sections, base.vectors(), queries.vectors(), (10, effort), Some(&keep));
                assert!(found >= 0.9, "{element:?} {metric:?} {code:?}: {found} filtered");
            }
        }
    }
}

#[test]
fn distances_are_above_their_bounds_as_often_as_stated() {
    let dim = 96;
    let (base, queries) = (clustered(ElementType::F32, 2_000, dim, 3), clustered(ElementType::F32, 10, dim, 4));
    for metric in METRICS {
        for code in CODES {
            let (index, sections) = built(&base, dim, metric, code);
            let (mut below, mut count) = (0, 0);
            for query in (0..10).filter_map(|at| queries.vectors().rows(dim, at, 1)) {
                let request = Request { query, k: 2_000, matching: None, effort: Effort::Flat { rerank: 2_000 } };
                let mut distances = vec![0.0; 2_000];
                Query::new(metric, dim, query).unwrap().distances(base.vectors(), &mut distances).unwrap();
                for candidate in candidates(&*index, &sections, &request) {
                    below += usize::from(distances[candidate.row as usize] < f64::from(candidate.bound) - 1e-6);
                    count += 1;
                }
            }
            assert_eq!(count, 20_000);
            assert!(below * 100 <= count * 4, "{metric:?} {code:?}: {below} of {count}");
        }
    }
}

#[test]
fn rows_without_a_vector_are_never_candidates_and_hard_ones_are_passed_over() {
    let dim = 20;
    let Stored::F32(mut values) = clustered(ElementType::F32, 5_000, dim, 9) else { panic!() };
    values[..dim].fill(f32::NAN);
    values[dim..2 * dim].fill(0.0);
    values[2 * dim..3 * dim].fill(1e30);
    let rows = Holey { all: InMemory::new(Vectors::F32(&values), dim), has: |row| row % 7 != 3 };
    for metric in METRICS {
        for code in CODES {
            let sections = resident(build(&rows, metric, &FlatOptions { code }, &Control::new(1)).unwrap());
            let index = open(&sections.0[0]).unwrap();
            let query = Vectors::F32(&values[40 * dim..41 * dim]);
            let request = Request { query, k: 6_000, matching: None, effort: Effort::Flat { rerank: 1 } };
            let mut found: Vec<u32> =
                candidates(&*index, &sections, &request).iter().map(|candidate| candidate.row).collect();
            found.sort_unstable();
            let is_candidate = |row: &u32| row % 7 != 3 && *row != 0 && !(*row == 1 && metric == Metric::Cosine);
            assert_eq!(found, (0..5_000).filter(is_candidate).collect::<Vec<_>>(), "{metric:?} {code:?}");
        }
    }
}

#[test]
fn few_rows_are_no_trouble() {
    for rows in [0, 1, 2, 33] {
        for (metric, code) in METRICS.into_iter().flat_map(|metric| CODES.map(|code| (metric, code))) {
            let base = Stored::F32([1.0_f32, -2.0, 0.5, 3.0].repeat(rows));
            let (index, sections) = built(&base, 4, metric, code);
            let query = Vectors::F32(&[1.0, -2.0, 0.5, 3.1]);
            let request = Request { query, k: 5, matching: None, effort: index.effort(0.95, 5) };
            assert!(candidates(&*index, &sections, &request).len() >= rows.min(5), "{rows} {metric:?} {code:?}");
        }
    }
}

#[test]
fn a_search_asks_for_what_it_lacks() {
    let dim = 64;
    let base = clustered(ElementType::F32, 9_000, dim, 12);
    for code in CODES {
        let (index, sections) = built(&base, dim, Metric::L2, code);
        let words = words(9_000, &|row| row < 4_000 && row % 3 == 0);
        let set = crate::RowSet::new(&words, 1_334);
        for matching in [None, Some(set)] {
            let query = base.vectors().rows(dim, 77, 1).unwrap();
            let request = Request { query, k: 10, matching, effort: Effort::Flat { rerank: 20 } };
            let lacking = Lacking::new(&sections);
            let (found, rounds) = search_lacking(&*index, &lacking, &request);
            let rows = |found: &[crate::Candidate]| found.iter().map(|candidate| candidate.row).collect::<Vec<_>>();
            assert_eq!(rows(&found), rows(&candidates(&*index, &sections, &request)), "{code:?}");
            assert!(rounds <= 4);
            // Chunks without a matching row are not read.
            assert!(matching.is_none() || lacking.bytes(1) <= sections.0[1].len() / 2);
        }
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads_and_a_cancelled_build_ends() {
    let base = clustered(ElementType::F32, 9_000, 48, 7);
    let rows = InMemory::new(base.vectors(), 48);
    let build_on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let control = Control::new(11);
        resident(pool.install(|| build(&rows, Metric::L2, &FlatOptions::default(), &control)).unwrap()).0
    };
    assert_eq!(build_on(1), build_on(3));
    let control = Control::new(0);
    control.cancel();
    let outcome = build(&rows, Metric::L2, &FlatOptions::default(), &control);
    assert_eq!(outcome.unwrap_err(), BuildError::Cancelled);
}

#[test]
fn damaged_bytes_are_an_error_or_a_wrong_answer_but_never_a_panic() {
    let dim = 24;
    let base = clustered(ElementType::F32, 400, dim, 15);
    for code in CODES {
        let (_, sections) = built(&base, dim, Metric::L2, code);
        survive_damage(&sections, base.vectors(), open);
    }
}

#[test]
fn codes_that_need_lists_or_add_nothing_are_refused() {
    let base = clustered(ElementType::F32, 100, 16, 16);
    let rows = InMemory::new(base.vectors(), 16);
    for code in [Code::Raw, Code::pq(4), Code::pq(8)] {
        let refused = build(&rows, Metric::L2, &FlatOptions { code }, &Control::new(0));
        assert!(matches!(refused, Err(BuildError::Unsupported(_))), "{code:?}");
    }
}
