//! Many queries against many rows: small tiles whose sums stay in registers.
//!
//! A tile takes [`QUERIES`] queries and [`ROWS`] rows, both as f64, and the registers of the sixteen virtual lanes one
//! after the other, so that a load serves several pairs. What is added to which lane in which order is what `scan.rs`
//! says; only the order between pairs and between lanes differs, and no bit depends on it.

use crate::lanes::{AbsoluteDifference, FloatLanes, Product, Register, SquaredDifference, Term};
use crate::metric::SumKind;
use crate::rows::{FloatBlock, LANES};

/// Queries of a tile. Four times two sums and what they are made of fit the sixteen registers of AVX2.
pub(crate) const QUERIES: usize = 4;

/// Rows of a tile.
pub(crate) const ROWS: usize = 2;

/// Blocks of 16 elements that are gone through for all lanes before the next ones: (4 + 2) · 32 blocks of 128 bytes are
/// 24 KiB, which stay in the first-level cache while they are read once per register.
const BLOCKS_PER_PASS: usize = 32;

/// Sums of every pair of a tile: `sums[q][r]` of `queries[q]` and `rows[r]`, which all have the same number of blocks.
///
/// # Safety
/// The processor has the instruction set of `L`, and the function is inlined where its target features are on.
#[inline(always)]
pub(crate) unsafe fn tile_sums<L: FloatLanes>(
    kind: SumKind,
    queries: [&[FloatBlock]; QUERIES],
    rows: [&[FloatBlock]; ROWS],
) -> [[f64; ROWS]; QUERIES] {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match kind {
            SumKind::SquaredDifference => term_sums::<SquaredDifference, L>(queries, rows),
            SumKind::AbsoluteDifference => term_sums::<AbsoluteDifference, L>(queries, rows),
            // The squares of the cosine are computed once per row, not once per pair.
            SumKind::Dot | SumKind::DotAndSquare => term_sums::<Product, L>(queries, rows),
            // Bit vectors have no float sums; `matrix.rs` sends them elsewhere.
            SumKind::DifferentBits | SumKind::CommonBits => [[f64::NAN; ROWS]; QUERIES],
        }
    }
}

/// # Safety
/// As [`tile_sums`].
#[inline(always)]
unsafe fn term_sums<P: Term, L: FloatLanes>(
    queries: [&[FloatBlock]; QUERIES],
    rows: [&[FloatBlock]; ROWS],
) -> [[f64; ROWS]; QUERIES] {
    let blocks = rows[0].len();
    assert!(queries.iter().chain(&rows).all(|vector| vector.len() == blocks), "vectors of a tile have one length");
    let mut lanes = [[[0.0_f64; LANES]; ROWS]; QUERIES];
    for start in (0..blocks).step_by(BLOCKS_PER_PASS) {
        let pass = BLOCKS_PER_PASS.min(blocks - start);
        for lane in (0..LANES).step_by(L::Register::WIDTH) {
            let queries = queries.map(|query| query[start..].as_ptr().cast::<f64>().wrapping_add(lane));
            let rows = rows.map(|row| row[start..].as_ptr().cast::<f64>().wrapping_add(lane));
            // SAFETY: the caller vouches for the instruction set. The pointers start at a lane that begins a register,
            // of the first of `pass` blocks that every vector has.
            unsafe { register_sums::<P, L::Register>(queries, rows, pass, lane, &mut lanes) };
        }
    }
    let mut sums = [[0.0; ROWS]; QUERIES];
    for (sums, lanes) in sums.iter_mut().zip(&lanes) {
        for (sum, lanes) in sums.iter_mut().zip(lanes) {
            // SAFETY: the caller vouches for the instruction set.
            *sum = unsafe { L::load_f64(lanes).total() };
        }
    }
    sums
}

/// Adds what one register of lanes gets from `pass` blocks, for every pair of the tile.
///
/// # Safety
/// As [`tile_sums`]; every pointer is valid for a register of values at each of `pass` blocks from there on.
#[inline(always)]
unsafe fn register_sums<P: Term, R: Register>(
    mut queries: [*const f64; QUERIES],
    mut rows: [*const f64; ROWS],
    pass: usize,
    lane: usize,
    lanes: &mut [[[f64; LANES]; ROWS]; QUERIES],
) {
    // SAFETY: the caller vouches for the instruction set and for the pointers; a register of lanes from `lane` on
    // lies inside of the sixteen. The pointers are moved past the last block but not read there.
    unsafe {
        let mut sums = [[R::zero(); ROWS]; QUERIES];
        for q in 0..QUERIES {
            for r in 0..ROWS {
                sums[q][r] = R::load(lanes[q][r].as_ptr().add(lane));
            }
        }
        for _ in 0..pass {
            let row = [R::load(rows[0]), R::load(rows[1])];
            for q in 0..QUERIES {
                let query = R::load(queries[q]);
                for r in 0..ROWS {
                    sums[q][r] = P::add(sums[q][r], query, row[r]);
                }
                queries[q] = queries[q].wrapping_add(LANES);
            }
            rows = rows.map(|row| row.wrapping_add(LANES));
        }
        for q in 0..QUERIES {
            for r in 0..ROWS {
                sums[q][r].store(lanes[q][r].as_mut_ptr().add(lane));
            }
        }
    }
}
