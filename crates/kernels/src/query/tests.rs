//! Every kernel against its scalar twin, bit for bit, and against a naive oracle.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use half::f16;

use super::*;
use crate::isa::isa;
use crate::testing::{Random, Stored, oracle};

/// Rows per block in the length tests: odd, so that kernels that take two rows at once have one left.
const ROWS: usize = 5;

/// Distances on an instruction set.
fn distances(isa: Isa, metric: Metric, dim: usize, query: Vectors<'_>, rows: Vectors<'_>) -> Vec<f64> {
    let query = Query::new_on(isa, metric, dim, query).unwrap();
    let mut out = vec![f64::NAN; rows.row_count(dim).unwrap()];
    query.distances(rows, &mut out).unwrap();
    out
}

fn bits(distances: &[f64]) -> Vec<u64> {
    distances.iter().map(|distance| distance.to_bits()).collect()
}

/// The pairs of element types of a query and its rows that a metric takes.
fn element_pairs(metric: Metric) -> Vec<(ElementType, ElementType)> {
    let fits = |element: &ElementType| (*element == ElementType::Bits) == metric.is_for_bits();
    let elements: Vec<_> = ElementType::ALL.into_iter().filter(fits).collect();
    elements.iter().flat_map(|query| elements.iter().map(|rows| (*query, *rows))).collect()
}

/// Compares every instruction set present with the scalar one on these vectors, bit for bit.
fn check_same_bits(metric: Metric, dim: usize, query: &Stored, rows: &Stored) {
    let expected = distances(Isa::Scalar, metric, dim, query.vectors(), rows.vectors());
    for isa in Isa::available() {
        let found = distances(isa, metric, dim, query.vectors(), rows.vectors());
        assert_eq!(
            bits(&found),
            bits(&expected),
            "{isa} {} d={dim} query {} rows {}: {found:?} is not {expected:?}",
            metric.name(),
            query.vectors().element_type().name(),
            rows.vectors().element_type().name(),
        );
    }
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_scalar_twin_at_every_length() {
    let mut random = Random::new(1);
    for metric in Metric::ALL {
        for (query_type, row_type) in element_pairs(metric) {
            let step = if query_type == ElementType::Bits { 8 } else { 1 };
            // 257 and a little more, so that bits reach it too.
            for dim in (step..=264).step_by(step) {
                let query = random.vectors(query_type, dim);
                let rows = random.vectors(row_type, ROWS * dim);
                check_same_bits(metric, dim, &query, &rows);
            }
        }
    }
}

#[test]
fn hard_values_have_the_same_bits_on_every_instruction_set() {
    let mut random = Random::new(2);
    for metric in Metric::ALL {
        for (query_type, row_type) in element_pairs(metric) {
            for dim in [8, 16, 24, 64, 72, 128, 136, 384, 1000, 1536] {
                let query = random.hard_vectors(query_type, dim);
                let rows = random.hard_vectors(row_type, ROWS * dim);
                check_same_bits(metric, dim, &query, &rows);
            }
        }
    }
}

#[test]
fn vectors_that_are_not_finite_have_the_same_bits_on_every_instruction_set() {
    let mut random = Random::new(3);
    for metric in Metric::ALL.into_iter().filter(|metric| !metric.is_for_bits()) {
        for dim in [3, 16, 40] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut rows: Vec<f32> = (0..ROWS * dim).map(|_| random.float()).collect();
                rows[dim] = value;
                rows[2 * dim + dim - 1] = value;
                let halves = Stored::F16(rows.iter().map(|value| f16::from_f32(*value)).collect());
                let query = random.vectors(ElementType::F32, dim);
                check_same_bits(metric, dim, &query, &halves);
                check_same_bits(metric, dim, &query, &Stored::F32(rows));
            }
        }
    }
}

#[test]
fn many_rows_have_the_same_bits_as_one_at_a_time() {
    let mut random = Random::new(4);
    let dim = 48;
    for metric in Metric::ALL {
        for (query_type, row_type) in element_pairs(metric) {
            // Around the number of streams, and across the steps of `ROWS_PER_STEP`.
            for count in [1, 2, 3, 4, 5, 7, 8, 9, 255, 256, 257, 515] {
                let query = random.vectors(query_type, dim);
                let rows = random.vectors(row_type, count * dim);
                check_same_bits(metric, dim, &query, &rows);
                let all = distances(isa(), metric, dim, query.vectors(), rows.vectors());
                for (index, all) in all.iter().enumerate() {
                    let row = rows.vectors().rows(dim, index, 1).unwrap();
                    let alone = distances(isa(), metric, dim, query.vectors(), row);
                    assert_eq!(alone[0].to_bits(), all.to_bits(), "{metric:?} row {index} of {count}");
                }
            }
        }
    }
}

#[test]
fn blocks_that_are_read_from_several_places_have_the_same_bits() {
    let mut random = Random::new(11);
    // Large enough for every element type, bits included, to be read in streams.
    let (dim, count) = (1024, 263);
    for metric in Metric::ALL {
        for (query_type, row_type) in element_pairs(metric) {
            let query = random.vectors(query_type, dim);
            let rows = random.vectors(row_type, count * dim);
            check_same_bits(metric, dim, &query, &rows);
        }
    }
}

#[test]
fn slices_that_start_anywhere_are_read_right() {
    let mut random = Random::new(5);
    let dim = 72;
    for metric in Metric::ALL {
        for (query_type, row_type) in element_pairs(metric) {
            for offset in 0..9 {
                let unit = if row_type == ElementType::Bits { 8 } else { 1 };
                let query = random.vectors(query_type, dim);
                let stored = random.vectors(row_type, offset * unit + ROWS * dim);
                let rows = stored.vectors().skipped(offset);
                let expected = distances(Isa::Scalar, metric, dim, query.vectors(), rows);
                for isa in Isa::available() {
                    let found = distances(isa, metric, dim, query.vectors(), rows);
                    assert_eq!(bits(&found), bits(&expected), "{isa} {metric:?} offset {offset}");
                }
            }
        }
    }
}

#[test]
fn distances_agree_with_their_definition() {
    let mut random = Random::new(6);
    for metric in Metric::ALL {
        for (query_type, row_type) in element_pairs(metric) {
            for dim in [8, 16, 64, 104, 384, 1032] {
                let query = random.vectors(query_type, dim);
                let rows = random.vectors(row_type, ROWS * dim);
                let (wide_query, wide_rows) = (query.wide(), rows.wide());
                let found = distances(isa(), metric, dim, query.vectors(), rows.vectors());
                for (found, row) in found.iter().zip(wide_rows.chunks(dim)) {
                    let expected = oracle(metric, &wide_query, row);
                    // The oracle adds in another order: d roundings, relative to the sum of magnitudes.
                    let magnitude: f64 = wide_query.iter().zip(row).map(|(q, r)| q * q + r * r).sum();
                    let scale = if metric == Metric::Cosine { 1.0 } else { magnitude.max(1.0) };
                    assert!((found - expected).abs() <= 1e-13 * scale, "{metric:?} d={dim}: {found} is not {expected}");
                }
            }
        }
    }
}

#[test]
fn distance_is_symmetric_and_repeatable_bit_for_bit() {
    let mut random = Random::new(7);
    for metric in Metric::ALL {
        for (left_type, right_type) in element_pairs(metric) {
            for dim in [8, 40, 200, 384] {
                let (left, right) = (random.vectors(left_type, dim), random.vectors(right_type, dim));
                let there = distances(isa(), metric, dim, left.vectors(), right.vectors());
                let back = distances(isa(), metric, dim, right.vectors(), left.vectors());
                let again = distances(isa(), metric, dim, left.vectors(), right.vectors());
                assert_eq!(bits(&there), bits(&back), "{metric:?} {left_type:?} {right_type:?} d={dim}");
                assert_eq!(bits(&there), bits(&again), "{metric:?} {left_type:?} {right_type:?} d={dim}");
            }
        }
    }
}

#[test]
fn types_that_hold_the_same_numbers_give_the_same_bits() {
    let mut random = Random::new(8);
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct, Metric::L1] {
        for dim in [1, 5, 64, 65, 384, 700] {
            let numbers: Vec<u8> = (0..(ROWS + 1) * dim).map(|_| (random.next() % 128) as u8).collect();
            let all = [
                Stored::F32(numbers.iter().map(|n| f32::from(*n)).collect()),
                Stored::F16(numbers.iter().map(|n| f16::from(*n)).collect()),
                Stored::I8(numbers.iter().map(|n| *n as i8).collect()),
                Stored::U8(numbers),
            ];
            let split = |stored: &Stored| {
                let vectors = stored.vectors();
                (vectors.rows(dim, 0, 1).unwrap().to_stored(), vectors.rows(dim, 1, ROWS).unwrap().to_stored())
            };
            let (query, rows) = split(&all[0]);
            let expected = distances(Isa::Scalar, metric, dim, query.vectors(), rows.vectors());
            for isa in Isa::available() {
                for query in &all {
                    for rows in &all {
                        let found = distances(isa, metric, dim, split(query).0.vectors(), split(rows).1.vectors());
                        assert_eq!(bits(&found), bits(&expected), "{isa} {metric:?} d={dim} {query:?} {rows:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn integer_sums_do_not_overflow_at_65536_dimensions() {
    let dim = 65_536;
    // Past the blocks that an i32 holds, and a tail.
    for dim in [dim, 3 * dim + 17] {
        let (low, high) = (vec![-128_i8; dim], vec![127_i8; dim]);
        let (zero, full) = (vec![0_u8; dim], vec![255_u8; dim]);
        let n = dim as f64;
        for isa in Isa::available() {
            let check = |metric, query, rows, expected: f64| {
                assert_eq!(distances(isa, metric, dim, query, rows), [expected], "{isa} {metric:?} d={dim}");
            };
            check(Metric::L2, Vectors::I8(&low), Vectors::I8(&high), (255.0 * 255.0 * n).sqrt());
            check(Metric::L2, Vectors::U8(&zero), Vectors::U8(&full), (255.0 * 255.0 * n).sqrt());
            check(Metric::L2, Vectors::I8(&low), Vectors::U8(&full), (383.0 * 383.0 * n).sqrt());
            check(Metric::L1, Vectors::I8(&low), Vectors::I8(&high), 255.0 * n);
            check(Metric::L1, Vectors::I8(&low), Vectors::U8(&full), 383.0 * n);
            check(Metric::InnerProduct, Vectors::I8(&low), Vectors::I8(&low), -16_384.0 * n);
            check(Metric::InnerProduct, Vectors::U8(&full), Vectors::U8(&full), -65_025.0 * n);
            check(Metric::InnerProduct, Vectors::I8(&low), Vectors::U8(&full), 32_640.0 * n);
            check(Metric::Cosine, Vectors::U8(&full), Vectors::U8(&full), 0.0);
            check(Metric::Cosine, Vectors::I8(&low), Vectors::I8(&high), 2.0);
        }
    }
}

#[test]
fn equal_vectors_have_distance_zero_and_never_less() {
    let mut random = Random::new(9);
    for element in [ElementType::F32, ElementType::F16, ElementType::I8, ElementType::U8] {
        for dim in [1, 3, 100, 384, 768] {
            let vector = random.vectors(element, dim);
            for metric in [Metric::L2, Metric::Cosine, Metric::L1] {
                let found = distances(isa(), metric, dim, vector.vectors(), vector.vectors());
                assert_eq!(found[0].to_bits(), 0.0_f64.to_bits(), "{metric:?} {element:?} d={dim}: {}", found[0]);
            }
        }
    }
    // Parallel and opposite vectors, where rounding could step outside of 0..=2.
    for _ in 0..2_000 {
        let row: Vec<f32> = (0..7).map(|_| random.float()).collect();
        let scaled = |by: f32| -> Vec<f32> { row.iter().map(|value| value * by).collect() };
        for other in [scaled(0.3), scaled(7.7), scaled(-1.1)] {
            let found = distances(isa(), Metric::Cosine, 7, Vectors::F32(&row), Vectors::F32(&other))[0];
            assert!((0.0..=2.0).contains(&found), "{found}");
        }
    }
}

#[test]
fn undefined_distances_are_nan_and_no_neighbor() {
    let rows = [0.0, 0.0, 3.0, 4.0, f32::NAN, 1.0, 0.0, 2.0];
    for isa in Isa::available() {
        let query = Query::new_on(isa, Metric::Cosine, 2, Vectors::F32(&[0.0, 1.0])).unwrap();
        let mut out = [0.0; 4];
        query.distances(Vectors::F32(&rows), &mut out).unwrap();
        assert!(out[0].is_nan() && out[2].is_nan(), "{isa}: {out:?}");
        let mut top = TopK::new(10);
        query.top_k(Vectors::F32(&rows), 0, &mut top).unwrap();
        let rows: Vec<u64> = top.into_sorted().iter().map(|neighbor| neighbor.row).collect();
        assert_eq!(rows, [3, 1], "{isa}");
    }
    // An inner product of zero is +0, so that the order of 0 and -0 is never asked for.
    let zero = distances(isa(), Metric::InnerProduct, 1, Vectors::F32(&[0.0]), Vectors::F32(&[-1.0, 1.0]));
    assert_eq!(bits(&zero), [0, 0]);
}

#[test]
fn jaccard_distance_of_sets_without_a_common_element_is_one() {
    let check = |query: &[u8], row: &[u8], expected: f64| {
        for isa in Isa::available() {
            let dim = 8 * query.len();
            let found = distances(isa, Metric::Jaccard, dim, Vectors::Bits(query), Vectors::Bits(row));
            assert_eq!(found, [expected], "{isa} {query:?} {row:?}");
        }
    };
    check(&[0, 0], &[0, 0], 1.0);
    check(&[0xf0, 0], &[0x0f, 1], 1.0);
    check(&[0xff, 0], &[0xff, 0], 0.0);
    check(&[0b111, 0], &[0b110, 1], 0.5);
}

#[test]
fn top_k_is_what_sorting_all_distances_gives() {
    let mut random = Random::new(10);
    for metric in Metric::ALL {
        let element = if metric.is_for_bits() { ElementType::Bits } else { ElementType::I8 };
        // Few values, so that many distances are equal; some rows are zero, so that some cosines are undefined.
        let (dim, count) = (8, 700);
        let few = |random: &mut Random, elements: usize| match element {
            ElementType::Bits => Stored::Bits((0..elements / 8).map(|_| random.below(8) as u8).collect()),
            _ => Stored::I8((0..elements).map(|_| [0, 0, 0, 0, 1, -1][random.below(6)]).collect()),
        };
        let (query, rows) = (few(&mut random, dim), few(&mut random, count * dim));
        let selected: Vec<u32> = (0..count as u32).filter(|_| random.below(3) == 0).collect();
        let all = distances(isa(), metric, dim, query.vectors(), rows.vectors());
        for k in [0, 1, 2, 10, 300, 699, 700, 5_000] {
            let query = Query::new(metric, dim, query.vectors()).unwrap();
            let expected = |rows: &mut dyn Iterator<Item = usize>| {
                let mut expected: Vec<_> = rows.map(|row| (all[row], row as u64 + 50)).collect();
                expected.retain(|(distance, _)| !distance.is_nan());
                expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
                expected.truncate(k);
                expected
            };
            let mut top = TopK::new(k);
            query.top_k(rows.vectors(), 50, &mut top).unwrap();
            assert_eq!(pairs(top), expected(&mut (0..count)), "{metric:?} k={k}");
            let mut top = TopK::new(k);
            query.top_k_selected(rows.vectors(), 50, &selected, &mut top).unwrap();
            assert_eq!(pairs(top), expected(&mut selected.iter().map(|row| *row as usize)), "{metric:?} k={k}");
        }
    }
}

fn pairs(top: TopK) -> Vec<(f64, u64)> {
    top.into_sorted().iter().map(|neighbor| (neighbor.distance, neighbor.row)).collect()
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let floats = [0.0_f32; 8];
    let new = |metric, dim, vector| Query::new(metric, dim, vector).map(|_| ()).unwrap_err();
    assert_eq!(new(Metric::L2, 0, Vectors::F32(&[])), DistanceError::NoDimensions);
    assert_eq!(new(Metric::L2, 3, Vectors::F32(&floats)), DistanceError::QueryLength { values: 8, values_per_row: 3 });
    assert_eq!(new(Metric::Hamming, 12, Vectors::Bits(&[0, 0])), DistanceError::PartialByte { dim: 12 });
    assert_eq!(
        new(Metric::Hamming, 8, Vectors::F32(&floats)),
        DistanceError::MetricMismatch { metric: Metric::Hamming, element: ElementType::F32 }
    );
    assert_eq!(
        new(Metric::L2, 8, Vectors::Bits(&[0])),
        DistanceError::MetricMismatch { metric: Metric::L2, element: ElementType::Bits }
    );
    let query = Query::new(Metric::L2, 4, Vectors::F32(&floats[..4])).unwrap();
    let mut out = [7.0; 2];
    let wrong = query.distances(Vectors::F32(&floats[..7]), &mut out).unwrap_err();
    assert_eq!(wrong, DistanceError::RowsLength { values: 7, values_per_row: 4 });
    let wrong = query.distances(Vectors::F32(&floats[..4]), &mut out).unwrap_err();
    assert_eq!(wrong, DistanceError::OutputLength { places: 2, distances: 1 });
    let wrong = query.distances(Vectors::Bits(&[0; 2]), &mut out).unwrap_err();
    assert_eq!(wrong, DistanceError::ElementMismatch { query: ElementType::F32, rows: ElementType::Bits });
    let wrong = query.top_k_selected(Vectors::F32(&floats), 0, &[1, 2], &mut TopK::new(1)).unwrap_err();
    assert_eq!(wrong, DistanceError::RowOutOfBlock { selected: 2, rows: 2 });
    assert_eq!(out, [7.0; 2], "an error writes nothing");
}

#[test]
fn an_instruction_set_that_is_not_here_is_refused() {
    let missing: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| !isa.is_available()).collect();
    assert!(!missing.is_empty(), "no machine has the instruction sets of two architectures");
    for isa in missing {
        let wrong = Query::new_on(isa, Metric::L2, 1, Vectors::F32(&[0.0])).map(|_| ()).unwrap_err();
        assert_eq!(wrong, DistanceError::IsaUnavailable { isa });
    }
}
