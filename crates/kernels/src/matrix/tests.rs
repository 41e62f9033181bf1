//! Blocks against blocks have the bits of one query at a time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::isa::Isa;
use crate::testing::Random;
use crate::vectors::ElementType;

/// Distances one query at a time.
fn one_by_one(isa: Isa, metric: Metric, dim: usize, queries: Vectors<'_>, rows: Vectors<'_>) -> Vec<f64> {
    let row_count = rows.row_count(dim).unwrap();
    let mut out = vec![f64::NAN; queries.row_count(dim).unwrap() * row_count];
    for (index, out) in out.chunks_mut(row_count.max(1)).enumerate() {
        let query = Query::new_on(isa, metric, dim, queries.rows(dim, index, 1).unwrap()).unwrap();
        query.distances(rows, out).unwrap();
    }
    out
}

fn bits(distances: &[f64]) -> Vec<u64> {
    distances.iter().map(|distance| distance.to_bits()).collect()
}

#[test]
fn a_matrix_has_the_bits_of_its_queries_one_by_one() {
    let mut random = Random::new(1);
    for metric in Metric::ALL {
        let elements: Vec<_> =
            ElementType::ALL.into_iter().filter(|e| (*e == ElementType::Bits) == metric.is_for_bits()).collect();
        for query_type in &elements {
            for row_type in &elements {
                for dim in [8, 16, 24, 40, 384, 520, 1032] {
                    for (query_count, row_count) in [(1, 1), (3, 2), (4, 4), (5, 9), (13, 7), (2, 70)] {
                        let queries = random.vectors(*query_type, query_count * dim);
                        let rows = random.vectors(*row_type, row_count * dim);
                        let (queries, rows) = (queries.vectors(), rows.vectors());
                        let expected = one_by_one(Isa::Scalar, metric, dim, queries, rows);
                        for isa in Isa::available() {
                            let mut out = vec![f64::NAN; query_count * row_count];
                            matrix_on(isa.present().unwrap(), metric, dim, queries, rows, &mut out).unwrap();
                            assert_eq!(
                                bits(&out),
                                bits(&expected),
                                "{isa} {metric:?} {query_type:?} x {row_type:?} d={dim} {query_count} x {row_count}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn pairs_have_the_bits_of_the_diagonal_of_the_matrix() {
    let mut random = Random::new(2);
    let (dim, count) = (56, 5);
    for metric in Metric::ALL {
        let elements: Vec<_> =
            ElementType::ALL.into_iter().filter(|e| (*e == ElementType::Bits) == metric.is_for_bits()).collect();
        for left_type in &elements {
            for right_type in &elements {
                let left = random.vectors(*left_type, count * dim);
                let right = random.vectors(*right_type, count * dim);
                let (mut matrix, mut pairs) = (vec![f64::NAN; count * count], vec![f64::NAN; count]);
                distance_matrix(metric, dim, left.vectors(), right.vectors(), &mut matrix).unwrap();
                pair_distances(metric, dim, left.vectors(), right.vectors(), &mut pairs).unwrap();
                let diagonal: Vec<f64> = (0..count).map(|i| matrix[i * count + i]).collect();
                assert_eq!(bits(&pairs), bits(&diagonal), "{metric:?} {left_type:?} {right_type:?}");
            }
        }
    }
}

#[test]
fn values_that_are_not_finite_have_the_same_bits_in_a_matrix() {
    let queries = [f32::NAN, 1.0, f32::INFINITY, 0.0, 0.0, 0.0, 1.0, f32::MAX, -f32::MAX];
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct, Metric::L1] {
        let vectors = Vectors::F32(&queries);
        let mut out = [0.0; 9];
        distance_matrix(metric, 3, vectors, vectors, &mut out).unwrap();
        assert_eq!(bits(&out), bits(&one_by_one(Isa::Scalar, metric, 3, vectors, vectors)), "{metric:?}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let floats = [0.0_f32; 12];
    let mut out = [7.0; 6];
    let rows = Vectors::F32(&floats);
    assert_eq!(
        distance_matrix(Metric::L2, 4, rows, rows, &mut out),
        Err(DistanceError::OutputLength { places: 6, distances: 9 })
    );
    assert_eq!(
        distance_matrix(Metric::L2, 5, rows, rows, &mut out),
        Err(DistanceError::RowsLength { values: 12, values_per_row: 5 })
    );
    assert_eq!(
        pair_distances(Metric::L2, 4, rows, Vectors::F32(&floats[..8]), &mut out),
        Err(DistanceError::PairCount { left: 3, right: 2 })
    );
    assert_eq!(
        pair_distances(Metric::L2, 2, rows, Vectors::Bits(&[0; 6]), &mut out),
        Err(DistanceError::ElementMismatch { query: ElementType::F32, rows: ElementType::Bits })
    );
    assert_eq!(
        pair_distances(Metric::L2, 4, rows, rows, &mut out),
        Err(DistanceError::OutputLength { places: 6, distances: 3 })
    );
    assert_eq!(out, [7.0; 6], "an error writes nothing");
    // Nothing against something is nothing.
    assert_eq!(distance_matrix(Metric::L2, 4, rows, Vectors::F32(&[]), &mut []), Ok(()));
    assert_eq!(distance_matrix(Metric::L2, 4, Vectors::F32(&[]), rows, &mut []), Ok(()));
}
