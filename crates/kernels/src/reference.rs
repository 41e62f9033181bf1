//! The scalar twins: the same sums in plain Rust, written to be read and not to be fast.
//!
//! They define what every other instruction set must return, bit for bit, and run where there is none
//! ([`crate::Isa::Scalar`]). They share no loop with `scan.rs`.

use crate::metric::SumKind;
use crate::rows::{FloatBlock, IntegerBlock, LANES, RowBlock, Sums};
use crate::tile;
use crate::vectors::{ByteElement, Element};

/// Float sums of a query against each row, in the order of summation that `scan.rs` lays down.
///
/// `query`: as f64, padded with zeros to whole blocks of 16. `sums`: one place per row.
pub(crate) fn float_sums<T: Element>(kind: SumKind, query: &[FloatBlock], rows: &RowBlock<'_, T>, sums: &mut Sums<'_>) {
    for index in 0..rows.len() {
        let row = rows.row(index);
        let (mut first, mut second) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        for i in 0..query.len() * LANES {
            let lane = i % LANES;
            let q = query[i / LANES].0[lane];
            let r = row.get(i).map_or(0.0, |value| value.widen());
            match kind {
                SumKind::SquaredDifference => first[lane] = (q - r).mul_add(q - r, first[lane]),
                SumKind::Dot => first[lane] = q.mul_add(r, first[lane]),
                SumKind::DotAndSquare => {
                    first[lane] = q.mul_add(r, first[lane]);
                    second[lane] = r.mul_add(r, second[lane]);
                }
                SumKind::AbsoluteDifference => first[lane] += (q - r).abs(),
                SumKind::DifferentBits | SumKind::CommonBits => {}
            }
        }
        sums.first[index] = total(first);
        if kind == SumKind::DotAndSquare {
            sums.second[index] = total(second);
        }
    }
}

/// The sum of sixteen lanes: halves added to each other, 8 + 8 first.
pub(crate) fn total(mut lanes: [f64; LANES]) -> f64 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// Integer sums of a query of bytes against each row of bytes, exact.
pub(crate) fn byte_sums<T: ByteElement>(
    kind: SumKind,
    query: &[IntegerBlock],
    rows: &RowBlock<'_, T>,
    sums: &mut Sums<'_>,
) {
    for index in 0..rows.len() {
        let (mut first, mut second) = (0_i64, 0_i64);
        let query = query.iter().flat_map(|block| block.0);
        for (q, r) in query.zip(rows.row(index)) {
            let (q, r) = (i64::from(q), i64::from(r.widen_to_i16()));
            match kind {
                SumKind::SquaredDifference => first += (q - r) * (q - r),
                SumKind::Dot => first += q * r,
                SumKind::DotAndSquare => {
                    first += q * r;
                    second += r * r;
                }
                SumKind::AbsoluteDifference => first += (q - r).abs(),
                SumKind::DifferentBits | SumKind::CommonBits => {}
            }
        }
        sums.first[index] = first as f64;
        if kind == SumKind::DotAndSquare {
            sums.second[index] = second as f64;
        }
    }
}

/// Counts of bits of a query against each row.
pub(crate) fn bit_sums(kind: SumKind, query: &[u8], rows: &RowBlock<'_, u8>, sums: &mut Sums<'_>) {
    for index in 0..rows.len() {
        let (mut first, mut second) = (0_u32, 0_u32);
        for (q, r) in query.iter().zip(rows.row(index)) {
            if kind == SumKind::CommonBits {
                first += (q & r).count_ones();
                second += r.count_ones();
            } else {
                first += (q ^ r).count_ones();
            }
        }
        sums.first[index] = f64::from(first);
        if kind == SumKind::CommonBits {
            sums.second[index] = f64::from(second);
        }
    }
}

/// A vector as f64, padded with zeros to whole blocks. `blocks`: as many as the vector needs.
pub(crate) fn widen<T: Element>(vector: &[T], blocks: &mut [FloatBlock]) {
    for (i, block) in blocks.iter_mut().enumerate() {
        for (lane, place) in block.0.iter_mut().enumerate() {
            *place = vector.get(i * LANES + lane).map_or(0.0, |value| value.widen());
        }
    }
}

/// Sums of every pair of a tile, one pair after the other, in the same order of summation as [`float_sums`].
pub(crate) fn tile_sums(
    kind: SumKind,
    queries: [&[FloatBlock]; tile::QUERIES],
    rows: [&[FloatBlock]; tile::ROWS],
) -> [[f64; tile::ROWS]; tile::QUERIES] {
    queries.map(|query| rows.map(|row| pair_sum(kind, query, row)))
}

fn pair_sum(kind: SumKind, query: &[FloatBlock], row: &[FloatBlock]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    for (query, row) in query.iter().zip(row) {
        for (lane, (q, r)) in lanes.iter_mut().zip(query.0.iter().zip(row.0)) {
            *lane = match kind {
                SumKind::SquaredDifference => (q - r).mul_add(q - r, *lane),
                SumKind::AbsoluteDifference => *lane + (q - r).abs(),
                _ => q.mul_add(r, *lane),
            };
        }
    }
    total(lanes)
}
