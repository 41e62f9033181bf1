//! FastScan over 1-bit codes: distances of 32 rows at a time from tables that fit a register, and the rows that survive a bound.
//!
//! Source: André, Kermarrec & Le Scouarnec, "Cache locality is not enough" (PVLDB 2015), for tables in registers; RaBitQ
//! (SIGMOD 2024) for the codes. The estimate of a row is `add + rescale · Σ ±q_i`; here it is bounded from below, compared, and
//! only survivors leave the loop, since what follows the sums costs more than the sums once they are fast.
//!
//! Any code of 4 bits per group is scanned the same way, whatever its 16 entries are: [`Lut::from_tables`] makes the tables of product
//! quantization, whose codes take the place of four signs.
//!
//! **A block** holds 32 rows of `dim` signs, `dim` a multiple of 16: for each group of 4 dimensions 16 bytes, byte `j` with the
//! signs of row `j` in its low and those of row `j + 16` in its high half, bit `t` for dimension `4 · group + t`, 1 for plus.
//! Then 32 f32 `add` and 32 f32 `rescale`, little endian.

use crate::isa::{Isa, Present};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 32;

/// Signs come in multiples of this.
pub const SCAN_DIM_MULTIPLE: usize = 16;

/// Dimensions whose sum of table entries fits 16 bits: 256 groups of at most 255.
pub(crate) const DIMS_PER_SUM: usize = 1024;

/// Bytes of a block of `dim` signs.
pub const fn block_bytes(dim: usize) -> usize {
    BLOCK_ROWS * (dim / 8 + 8)
}

/// What a query looks up: for each group of 4 dimensions the 16 sums `±q0 ±q1 ±q2 ±q3`, or whatever else 4 bits stand for, as bytes.
///
/// A sum of looked-up values is `≈ base + step · Σ entries`; each entry is at most `step / 2` off.
#[derive(Clone, Debug, Default)]
pub struct Lut {
    entries: Vec<u8>,
    /// What an entry counts for.
    pub step: f32,
    /// The sum of what all entries are above of.
    pub base: f32,
}

impl Lut {
    /// The table of `query`; what is left over past a multiple of 16 dimensions is not seen.
    pub fn new(query: &[f32]) -> Lut {
        let dim = query.len() / SCAN_DIM_MULTIPLE * SCAN_DIM_MULTIPLE;
        let mut lut = Lut { entries: vec![0; 4 * dim], step: 0.0, base: 0.0 };
        fill(Present::chosen(), &query[..dim], &mut lut);
        lut
    }

    /// The table of 4-bit codes: `tables` holds the 16 values of each group; what is left over past a multiple of 4 groups is not
    /// seen. A group of codes counts as 4 dimensions.
    pub fn from_tables(tables: &[f32]) -> Lut {
        let values = tables.len() / (4 * SCAN_DIM_MULTIPLE) * (4 * SCAN_DIM_MULTIPLE);
        let mut lut = Lut { entries: vec![0; values], step: 0.0, base: 0.0 };
        fill_from(Present::chosen(), &tables[..values], &mut lut);
        lut
    }

    /// Dimensions: 4 for each group.
    pub fn dim(&self) -> usize {
        self.entries.len() / 4
    }

    pub(crate) fn entries(&self) -> &[u8] {
        &self.entries
    }
}

crate::compiled::compiled_for_each! {
    fn fill(query: &[f32], lut: &mut Lut) = fill_plain
}

crate::compiled::compiled_for_each! {
    fn fill_from(tables: &[f32], lut: &mut Lut) = fill_from_plain
}

/// Below 2^23 a float plus this has the nearest whole number in its low bits.
const ROUNDING: f32 = 8_388_608.0;

#[inline(always)]
fn fill_plain(query: &[f32], lut: &mut Lut) {
    let groups = query.as_chunks::<4>().0;
    let (mut largest, mut base) = (0.0_f32, 0.0_f32);
    for group in groups {
        let reach = (group[0].abs() + group[1].abs()) + (group[2].abs() + group[3].abs());
        largest = largest.max(reach);
        base -= reach;
    }
    lut.base = base;
    lut.step = 2.0 * largest / 255.0;
    let per_step = if lut.step > 0.0 { 1.0 / lut.step } else { 0.0 };
    for (group, entries) in groups.iter().zip(lut.entries.as_chunks_mut::<16>().0) {
        let reach = (group[0].abs() + group[1].abs()) + (group[2].abs() + group[3].abs());
        for (code, entry) in entries.iter_mut().enumerate() {
            let signed = |bit: usize| if code >> bit & 1 == 1 { group[bit] } else { -group[bit] };
            let sum = (signed(0) + signed(1)) + (signed(2) + signed(3));
            *entry = (((sum + reach) * per_step).min(255.0) + ROUNDING).to_bits() as u8;
        }
    }
}

#[inline(always)]
fn fill_from_plain(tables: &[f32], lut: &mut Lut) {
    let tables = tables.as_chunks::<16>().0;
    let (mut widest, mut base) = (0.0_f32, 0.0_f32);
    for table in tables {
        let least = least_of(table);
        let range = -least_of(&table.map(|value| -value)) - least;
        widest = if range > widest { range } else { widest };
        base += least;
    }
    lut.base = base;
    lut.step = widest / 255.0;
    let per_step = if lut.step > 0.0 { 1.0 / lut.step } else { 0.0 };
    for (table, entries) in tables.iter().zip(lut.entries.as_chunks_mut::<16>().0) {
        let least = least_of(table);
        for (value, entry) in table.iter().zip(entries) {
            *entry = (((value - least) * per_step).min(255.0) + ROUNDING).to_bits() as u8;
        }
    }
}

/// The least of sixteen; halves are compared, so that it goes by registers.
#[inline(always)]
fn least_of(values: &[f32; 16]) -> f32 {
    let mut least = *values;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            least[i] = if least[i + half] < least[i] { least[i + half] } else { least[i] };
        }
    }
    least[0]
}

/// How a sum of entries becomes a bound and an estimate, and what these must not exceed:
/// `(add + query_add) + rescale · (base + error + step · sum) <= threshold`, and without `error` `<= estimate_max`.
#[derive(Clone, Copy, Debug)]
pub struct ScanBound {
    /// [`Lut::step`].
    pub step: f32,
    /// [`Lut::base`].
    pub base: f32,
    /// What a sum may be off by: the bound is so much below the estimate, as `rescale` is not positive.
    pub error: f32,
    /// What the query and the list contribute.
    pub query_add: f32,
    /// Rows whose bound is above it are dropped, as are rows whose bound is NaN.
    pub threshold: f32,
    /// Rows whose estimate is above it are dropped.
    pub estimate_max: f32,
}

/// Rows that a scan left: parallel lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survivors {
    /// Row numbers, from the first row of the first block.
    pub rows: Vec<u32>,
    /// Their sums of entries.
    pub sums: Vec<u32>,
    /// Their bounds.
    pub bounds: Vec<f32>,
    /// Their estimates: `(add + query_add) + rescale · (base + step · sum)`.
    pub estimates: Vec<f32>,
}

impl Survivors {
    /// Forgets them.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.sums.clear();
        self.bounds.clear();
        self.estimates.clear();
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether none survived.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Scans whole blocks: appends the rows that are in `masks` and whose bound does not exceed the threshold, ascending.
///
/// `blocks`: as many blocks as there are `masks`, one mask of 32 rows each (bit `r` for row `r`). A block with an empty mask is
/// not read. Cost: about 4 cycles per row of 384 dimensions with AVX-512.
///
/// # Panics
/// If `blocks` is not [`block_bytes`] for every mask, or the lists of `out` differ in length.
pub fn scan_blocks(blocks: &[u8], masks: &[u32], lut: &Lut, bound: &ScanBound, out: &mut Survivors) {
    scan_on(Present::chosen(), blocks, masks, lut, bound, out);
}

pub(crate) fn scan_on(isa: Present, blocks: &[u8], masks: &[u32], lut: &Lut, bound: &ScanBound, out: &mut Survivors) {
    assert_eq!(blocks.len(), masks.len() * block_bytes(lut.dim()), "a block per mask");
    let lens = [out.sums.len(), out.bounds.len(), out.estimates.len()];
    assert!(lens.iter().all(|len| *len == out.rows.len()), "a sum, bound and estimate per row");
    match isa.isa() {
        // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine; lengths are checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { crate::x86::fastscan::scan_avx2(blocks, masks, lut, bound, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { crate::x86::fastscan::scan_avx512(blocks, masks, lut, bound, out) },
        _ => scan_reference(blocks, masks, lut, bound, out),
    }
}

/// The scalar twin.
fn scan_reference(blocks: &[u8], masks: &[u32], lut: &Lut, bound: &ScanBound, out: &mut Survivors) {
    let bytes = block_bytes(lut.dim());
    for (index, (block, mask)) in (0_u32..).zip(blocks.chunks_exact(bytes.max(1)).zip(masks)) {
        if *mask == 0 {
            continue;
        }
        let (codes, factors) = block.split_at(4 * lut.dim());
        let mut sums = [0_u32; BLOCK_ROWS];
        for (codes, entries) in codes.chunks_exact(16).zip(lut.entries().chunks_exact(16)) {
            for (row, code) in codes.iter().enumerate() {
                sums[row] += u32::from(entries[usize::from(code & 15)]);
                sums[row + 16] += u32::from(entries[usize::from(code >> 4)]);
            }
        }
        push_survivors(index, *mask, &sums, factors, bound, out);
    }
}

/// Appends the rows of one block that hold, in plain Rust. `factors`: the 64 f32 behind the codes.
#[inline(always)]
pub(crate) fn push_survivors(
    block: u32,
    mask: u32,
    sums: &[u32; BLOCK_ROWS],
    factors: &[u8],
    bound: &ScanBound,
    out: &mut Survivors,
) {
    let (adds, rescales) = factors.as_chunks::<4>().0.split_at(BLOCK_ROWS);
    for row in 0..BLOCK_ROWS {
        let (add, rescale) = (f32::from_le_bytes(adds[row]), f32::from_le_bytes(rescales[row]));
        let product = bound.step.mul_add(sums[row] as f32, bound.base);
        let low = rescale.mul_add(product + bound.error, add + bound.query_add);
        let estimate = rescale.mul_add(product, add + bound.query_add);
        if mask >> row & 1 == 1 && low <= bound.threshold && estimate <= bound.estimate_max {
            out.rows.push(block * BLOCK_ROWS as u32 + row as u32);
            out.sums.push(sums[row]);
            out.bounds.push(low);
            out.estimates.push(estimate);
        }
    }
}

/// Writes the signs and factors of up to 32 rows as a block; the places of missing rows are zeros.
///
/// `signs`: per row `dim / 8` bytes, dimension `i` in bit `i % 8` of byte `i / 8`. `block`: [`block_bytes`].
///
/// # Panics
/// If `block` or a row has another length, or there are more than 32 rows.
pub fn pack_block<'a>(dim: usize, rows: impl Iterator<Item = (&'a [u8], f32, f32)>, block: &mut [u8]) {
    assert_eq!(block.len(), block_bytes(dim), "the bytes of a block");
    block.fill(0);
    let (codes, factors) = block.split_at_mut(4 * dim);
    for (row, (signs, add, rescale)) in rows.enumerate() {
        assert!(row < BLOCK_ROWS && signs.len() == dim / 8, "32 rows of dim signs");
        let shift = row / 16 * 4;
        for (pair, byte) in codes.chunks_exact_mut(32).zip(signs) {
            pair[row % 16] |= (byte & 15) << shift;
            pair[16 + row % 16] |= (byte >> 4) << shift;
        }
        factors[4 * row..][..4].copy_from_slice(&add.to_le_bytes());
        factors[4 * (BLOCK_ROWS + row)..][..4].copy_from_slice(&rescale.to_le_bytes());
    }
}

/// Reads one row back from a block: its signs into `signs` (`dim / 8` bytes), and its `(add, rescale)`.
///
/// # Panics
/// If `block` is not [`block_bytes`] long, `signs` has another length, or `row` is not below 32.
pub fn unpack_row(dim: usize, block: &[u8], row: usize, signs: &mut [u8]) -> (f32, f32) {
    assert!(block.len() == block_bytes(dim) && signs.len() == dim / 8 && row < BLOCK_ROWS, "a row of a block");
    let (codes, factors) = block.split_at(4 * dim);
    let shift = row / 16 * 4;
    for (pair, byte) in codes.chunks_exact(32).zip(signs) {
        *byte = pair[row % 16] >> shift & 15 | (pair[16 + row % 16] >> shift & 15) << 4;
    }
    factors_of(factors, row)
}

/// `(add, rescale)` of one row of a block.
///
/// # Panics
/// If `block` is not [`block_bytes`] long, or `row` is not below 32.
#[inline]
pub fn unpack_factors(dim: usize, block: &[u8], row: usize) -> (f32, f32) {
    assert!(block.len() == block_bytes(dim) && row < BLOCK_ROWS, "a row of a block");
    factors_of(&block[4 * dim..], row)
}

#[inline]
fn factors_of(factors: &[u8], row: usize) -> (f32, f32) {
    let factors = factors.as_chunks::<4>().0;
    (f32::from_le_bytes(factors[row]), f32::from_le_bytes(factors[BLOCK_ROWS + row]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn blocks(dim: usize, count: usize, random: &mut Random) -> Vec<u8> {
        let mut bytes = vec![0; count * block_bytes(dim)];
        for block in bytes.chunks_exact_mut(block_bytes(dim)) {
            let signs: Vec<u8> = (0..BLOCK_ROWS * dim / 8).map(|_| random.next() as u8).collect();
            let factors: Vec<f32> = (0..2 * BLOCK_ROWS).map(|_| random.float()).collect();
            let rows = signs.chunks_exact(dim / 8).zip(factors.chunks(2)).map(|(s, f)| (s, f[0], -f[1].abs()));
            pack_block(dim, rows, block);
            let mut read = vec![0; dim / 8];
            assert_eq!(unpack_row(dim, block, 31, &mut read), (factors[62], -factors[63].abs()));
            assert_eq!(read, signs[31 * dim / 8..]);
        }
        bytes
    }

    fn every_row(lut: &Lut) -> ScanBound {
        let (threshold, estimate_max) = (f32::INFINITY, f32::INFINITY);
        ScanBound { step: lut.step, base: lut.base, error: 0.5, query_add: 0.0, threshold, estimate_max }
    }

    #[test]
    fn every_instruction_set_leaves_the_same_rows() {
        let mut random = Random::new(4);
        for dim in (16..=272).step_by(16).chain([384, 784, 1008, 1024, 1040, 2064, 4096]) {
            let blocks = blocks(dim, 3, &mut random);
            let query: Vec<f32> = (0..dim).map(|_| random.float()).collect();
            let lut = Lut::new(&query);
            for (masks, threshold, estimate_max) in [
                ([u32::MAX; 3], f32::INFINITY, f32::INFINITY),
                ([u32::MAX, 0, 0x8001_0001], f32::INFINITY, f32::INFINITY),
                ([u32::MAX; 3], 0.0, f32::INFINITY),
                ([u32::MAX; 3], f32::NEG_INFINITY, f32::INFINITY),
                ([u32::MAX; 3], f32::INFINITY, 0.1),
            ] {
                let (step, base) = (lut.step, lut.base);
                let bound = ScanBound { step, base, error: 0.5, query_add: 0.25, threshold, estimate_max };
                let mut expected = Survivors::default();
                scan_reference(&blocks, &masks, &lut, &bound, &mut expected);
                for isa in Isa::available() {
                    let mut found = Survivors::default();
                    scan_on(isa.present().unwrap(), &blocks, &masks, &lut, &bound, &mut found);
                    assert_eq!(found, expected, "{isa} {dim}");
                }
                if threshold == f32::INFINITY && estimate_max == f32::INFINITY {
                    assert_eq!(expected.rows.len(), masks.iter().map(|m| m.count_ones() as usize).sum::<usize>());
                }
            }
        }
    }

    #[test]
    fn a_sum_of_entries_is_the_signed_sum_of_the_query() {
        let mut random = Random::new(5);
        let dim = 384;
        let blocks = blocks(dim, 1, &mut random);
        let query: Vec<f32> = (0..dim).map(|_| random.float()).collect();
        let lut = Lut::new(&query);
        let bound = every_row(&lut);
        let mut found = Survivors::default();
        scan_blocks(&blocks, &[u32::MAX], &lut, &bound, &mut found);
        for (row, sum) in found.rows.iter().zip(&found.sums) {
            let mut signs = vec![0; dim / 8];
            unpack_row(dim, &blocks, *row as usize, &mut signs);
            let exact: f32 =
                query.iter().enumerate().map(|(i, q)| if signs[i / 8] >> (i % 8) & 1 == 1 { *q } else { -q }).sum();
            let estimate = lut.base + lut.step * *sum as f32;
            assert!((exact - estimate).abs() < lut.step * (dim as f32 / 4.0).sqrt() * 1.5, "{exact} {estimate}");
        }
    }

    #[test]
    fn a_sum_of_entries_is_the_sum_of_the_tables() {
        let mut random = Random::new(8);
        for groups in (4..=64).step_by(4).chain([192, 392, 1024]) {
            let dim = 4 * groups;
            let blocks = blocks(dim, 2, &mut random);
            let tables: Vec<f32> = (0..16 * groups).map(|_| random.float()).collect();
            let lut = Lut::from_tables(&tables);
            for isa in Isa::available() {
                let mut other = Lut { entries: vec![0; 16 * groups], ..Lut::default() };
                fill_from(isa.present().unwrap(), &tables, &mut other);
                assert!(
                    other.entries == lut.entries && (other.step, other.base) == (lut.step, lut.base),
                    "{isa} {groups}"
                );
            }
            let bound = every_row(&lut);
            let mut expected = Survivors::default();
            scan_reference(&blocks, &[u32::MAX; 2], &lut, &bound, &mut expected);
            for isa in Isa::available() {
                let mut found = Survivors::default();
                scan_on(isa.present().unwrap(), &blocks, &[u32::MAX; 2], &lut, &bound, &mut found);
                assert_eq!(found, expected, "{isa} {groups}");
            }
            for (row, sum) in expected.rows.iter().zip(&expected.sums) {
                let mut codes = vec![0; groups / 2];
                let block = &blocks[*row as usize / BLOCK_ROWS * block_bytes(dim)..][..block_bytes(dim)];
                unpack_row(dim, block, *row as usize % BLOCK_ROWS, &mut codes);
                let code = |group: usize| usize::from(codes[group / 2] >> (4 * (group % 2)) & 15);
                let exact: f32 = (0..groups).map(|group| tables[16 * group + code(group)]).sum();
                let estimate = lut.base + lut.step * *sum as f32;
                assert!((exact - estimate).abs() < lut.step * (groups as f32).sqrt() * 1.5, "{exact} {estimate}");
            }
        }
    }

    #[test]
    fn factors_that_are_no_numbers_are_dropped() {
        let mut block = vec![0; block_bytes(16)];
        pack_block(16, [(&[0_u8; 2][..], f32::NAN, -1.0), (&[0; 2], 0.0, -1.0)].into_iter(), &mut block);
        let lut = Lut::new(&[1.0; 16]);
        let bound = every_row(&lut);
        for isa in Isa::available() {
            let mut found = Survivors::default();
            scan_on(isa.present().unwrap(), &block, &[3], &lut, &bound, &mut found);
            assert_eq!(found.rows, [1], "{isa}");
        }
    }
}
