//! Every kernel against its scalar twin, bit for bit, and against a naive oracle.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use half::f16;

use super::*;
use crate::testing::{Random, Stored, oracle};

/// Rows per block in the length tests: odd, so that kernels that take two rows at once have one left.
const ROWS: usize = 5;

/// Distances on an instruction set.
fn distances(
    isa: Isa,
    metric: Metric,
    dim: usize,
    query: Vectors<'_>,
    rows: Vectors<'_>,
) -> Vec<f64> {
    let query = Query::new_on(isa, metric, dim, query).unwrap();
    let mut out = vec![f64::NAN; rows.row_count(dim).unwrap()];
    query.distances(rows, &mut out).unwrap();
    out
}

fn bits(distances: &[f64]) -> Vec<u64> {
    distances
        .iter()
        .map(|distance| distance.to_bits())
        .collect()
}

/// The pairs of element types of a query and its rows that a metric takes.
fn element_pairs(metric: Metric) -> Vec<(ElementType, ElementType)> {
    let fits = |element: &ElementType| (*element == ElementType::Bits) == metric.is_for_bits();
    let elements: Vec<_> = ElementType::ALL.into_iter().filter(fits).collect();
    elements
        .iter()
        .flat_map(|query| elements.iter().map(|rows| (*query, *rows)))
        .collect()
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
            let step = if query_type == ElementType::Bits {
                8
            } else {
                1
            };
            // 257 and a little more, so that bits reach it too.
            for dim in (step..=264).step_by(step) {
                let query = random.vectors(query_type, dim);
                let rows = random.vectors(row_type, ROWS * dim);
                check_same_bits(metric, dim, &query, &rows);
            }
        }
    }
}
