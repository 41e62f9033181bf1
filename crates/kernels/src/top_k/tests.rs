//! The k nearest, against sorting.

use super::*;
use crate::testing::Random;

fn sorted(top: TopK) -> Vec<(f64, u64)> {
    top.into_sorted().iter().map(|neighbor| (neighbor.distance, neighbor.row)).collect()
}

#[test]
fn keeps_what_sorting_would_keep_in_any_order_of_pushes_and_merges() {
    let mut random = Random::new(1);
    for round in 0..200 {
        let count = random.below(60);
        // Few distances, so that many are equal.
        let mut all: Vec<(f64, u64)> = (0..count as u64).map(|row| (random.below(8) as f64 - 3.0, row)).collect();
        for index in (1..all.len()).rev() {
            all.swap(index, random.below(index + 1));
        }
        for k in [0, 1, 2, 5, 59, 60, 1000] {
            let mut parts = [TopK::new(k), TopK::new(k), TopK::new(k)];
            for (distance, row) in &all {
                parts[random.below(3)].push(*distance, *row);
            }
            let [mut top, second, third] = parts;
            top.merge(second);
            top.merge(third);
            let mut expected = all.clone();
            expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            expected.truncate(k);
            assert_eq!(top.len(), expected.len());
            assert_eq!(sorted(top), expected, "round {round}, k = {k}");
        }
    }
}

#[test]
fn nan_is_passed_over_and_infinities_are_distances() {
    let mut top = TopK::new(3);
    for (row, distance) in [f64::NAN, f64::INFINITY, 1.0, f64::NAN, f64::NEG_INFINITY].into_iter().enumerate() {
        top.push(distance, row as u64);
    }
    assert_eq!(sorted(top), [(f64::NEG_INFINITY, 4), (1.0, 2), (f64::INFINITY, 1)]);
}

#[test]
fn zeros_of_both_signs_are_one_distance_in_row_order() {
    let mut top = TopK::new(2);
    for (row, distance) in [(7, 0.0), (5, -0.0), (3, 0.0), (9, -0.0)] {
        top.push(distance, row);
    }
    let rows: Vec<u64> = top.into_sorted().iter().map(|neighbor| neighbor.row).collect();
    assert_eq!(rows, [3, 5]);
}

#[test]
fn threshold_is_infinite_until_full_and_then_the_worst_distance_kept() {
    let mut top = TopK::new(2);
    assert_eq!(top.threshold(), f64::INFINITY);
    top.push(5.0, 0);
    assert_eq!(top.threshold(), f64::INFINITY);
    top.push(7.0, 1);
    assert_eq!(top.threshold(), 7.0);
    top.push(6.0, 2);
    assert_eq!(top.threshold(), 6.0);
    // Nothing can enter a collection of none.
    assert_eq!(TopK::new(0).threshold(), f64::NEG_INFINITY);
}

#[test]
fn a_huge_k_reserves_nothing_up_front() {
    let mut top = TopK::new(usize::MAX);
    top.push(1.0, 1);
    assert_eq!(sorted(top), [(1.0, 1)]);
}
