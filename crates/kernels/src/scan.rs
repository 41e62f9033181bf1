//! One query against a block: the loops over rows, written once for every instruction set, and the order of summation
//! that all of them share.
//!
//! An instruction set supplies what `lanes.rs` asks for; how elements become sums is decided here. The scalar twin of
//! these loops is `reference.rs`, written independently of this file; many queries at once are in `tile.rs`.
//!
//! **The order of summation.** Elements become f64, exactly. Element `i` is added to virtual lane `i mod 16` by a fused
//! multiply-add (by an addition for absolute differences), in ascending order of `i`; elements past the end count as
//! zeros up to the next multiple of 16. Then lanes are added in halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1. Nothing in this
//! depends on the width of a register, so results are equal bit for bit. Sums of byte elements are whole numbers
//! below 2^53, exact in any order, which is why the integer loops may do as they like and still agree with it.

use std::marker::PhantomData;

use crate::lanes::{AbsoluteDifference, BLOCKS_PER_TOTAL, BitLanes, Load, LoadBytes, Product, SquaredDifference, Term};
use crate::metric::SumKind;
use crate::rows::{BYTES, FloatBlock, IntegerBlock, LANES, RowBlock, Sums};
use crate::vectors::{ByteElement, Element};

/// Float sums of a query against each row.
///
/// `query`: padded to whole blocks, as many as a row needs. `sums`: one place per row.
///
/// # Safety
/// The processor has the instruction set of `L`, and the function is inlined where its target features are on.
#[inline(always)]
pub(crate) unsafe fn float_sums<L: Load<T>, T: Element>(
    kind: SumKind,
    query: &[FloatBlock],
    rows: &RowBlock<'_, T>,
    sums: &mut Sums<'_>,
) {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match kind {
            SumKind::SquaredDifference => each_row(&Floats::<SquaredDifference, L>(query, PhantomData), rows, sums),
            SumKind::Dot => each_row(&Floats::<Product, L>(query, PhantomData), rows, sums),
            SumKind::AbsoluteDifference => each_row(&Floats::<AbsoluteDifference, L>(query, PhantomData), rows, sums),
            SumKind::DotAndSquare => each_row(&FloatsAndSquares::<L>(query, PhantomData), rows, sums),
            // Bit vectors have no float sums; `query.rs` refuses them before a kernel is called.
            SumKind::DifferentBits | SumKind::CommonBits => {}
        }
    }
}

/// Integer sums of a query of bytes against each row of bytes: exact, whatever the length of the rows.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
pub(crate) unsafe fn byte_sums<L: LoadBytes<T>, T: ByteElement>(
    kind: SumKind,
    query: &[IntegerBlock],
    rows: &RowBlock<'_, T>,
    sums: &mut Sums<'_>,
) {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match kind {
            SumKind::SquaredDifference => each_row(&Bytes::<SquaredDifference, L>(query, PhantomData), rows, sums),
            SumKind::Dot => each_row(&Bytes::<Product, L>(query, PhantomData), rows, sums),
            SumKind::AbsoluteDifference => each_row(&Bytes::<AbsoluteDifference, L>(query, PhantomData), rows, sums),
            SumKind::DotAndSquare => each_row(&BytesAndSquares::<L>(query, PhantomData), rows, sums),
            // Bit vectors have sums of their own; `query.rs` refuses them before a kernel is called.
            SumKind::DifferentBits | SumKind::CommonBits => {}
        }
    }
}

/// Counts of bits of a query against each row.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
pub(crate) unsafe fn bit_sums<L: BitLanes>(kind: SumKind, query: &[u8], rows: &RowBlock<'_, u8>, sums: &mut Sums<'_>) {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        if kind == SumKind::CommonBits {
            each_row(&CommonBits::<L>(query, PhantomData), rows, sums);
        } else {
            each_row(&DifferentBits::<L>(query, PhantomData), rows, sums);
        }
    }
}

/// Writes a vector as f64, padded with zeros to whole blocks. `blocks`: as many as the vector needs.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
pub(crate) unsafe fn widen<L: Load<T>, T: Element>(vector: &[T], blocks: &mut [FloatBlock]) {
    let (values, tail) = vector.as_chunks::<LANES>();
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        for (values, block) in values.iter().zip(blocks.iter_mut()) {
            L::load(values).store_f64(&mut block.0);
        }
        if let (Some(block), false) = (blocks.get_mut(values.len()), tail.is_empty()) {
            L::load(&padded(tail)).store_f64(&mut block.0);
        }
    }
}

/// Places of a block that are read in turn. A core fetches from memory ahead of each stream of reads by itself, but
/// only so far: several streams together reach more of the bandwidth than one, too many lose it again. Cosine of f32,
/// one thread: Zen 3 reached 22 GB/s with four and 15 with one; Zen 4 reaches 22 with three, 17 with four, 16 with one.
const STREAMS: usize = 3;

/// Blocks below this are read in sequence: places so near to each other would share the pages that a core looks ahead in.
const STREAMED_BYTES_MIN: usize = 32 * 1024;

/// How many bytes of rows are asked for before they are read: enough to cover the latency of memory.
const BYTES_AHEAD: usize = 3072;

/// Visits every row once, from [`STREAMS`] places in turn, and asks for a later row while it reads one.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
unsafe fn each_row<K: RowSum<T>, T>(kernel: &K, rows: &RowBlock<'_, T>, sums: &mut Sums<'_>) {
    let (values, width) = (rows.values(), rows.values_per_row());
    let visits_ahead = BYTES_AHEAD / (width * size_of::<T>()).max(1) + 1;
    let is_wide = size_of_val(values) >= STREAMED_BYTES_MIN;
    let part = if is_wide { sums.first.len() / STREAMS } else { 0 };
    if rows.is_selected() {
        let index_of = |visit| if visit < part * STREAMS { visit % STREAMS * part + visit / STREAMS } else { visit };
        for visit in 0..rows.len() {
            let (index, later) = (index_of(visit), index_of((visit + visits_ahead).min(rows.len() - 1)));
            // SAFETY: the caller vouches for the instruction set.
            (sums.first[index], sums.second[index]) =
                unsafe { kernel.sums(rows.row(index), rows.row(later).as_ptr().cast()) };
        }
        return;
    }
    let (streamed, rest) = values.split_at(part * STREAMS * width);
    let mut streams: [_; STREAMS] =
        std::array::from_fn(|stream| streamed[stream * part * width..][..part * width].chunks_exact(width));
    // From the row at the same step of the first stream to the row that is asked for.
    let ahead: [_; STREAMS] = std::array::from_fn(|stream| {
        let later = stream + visits_ahead;
        (later % STREAMS * part + later / STREAMS) * width
    });
    for step in 0..part {
        for (stream, (rows, ahead)) in streams.iter_mut().zip(ahead).enumerate() {
            let ahead = values.as_ptr().wrapping_add(step * width + ahead).cast();
            if let Some(row) = rows.next() {
                let index = stream * part + step;
                // SAFETY: the caller vouches for the instruction set.
                (sums.first[index], sums.second[index]) = unsafe { kernel.sums(row, ahead) };
            }
        }
    }
    for (index, row) in (part * STREAMS..).zip(rest.chunks_exact(width)) {
        // SAFETY: the caller vouches for the instruction set.
        (sums.first[index], sums.second[index]) =
            unsafe { kernel.sums(row, row.as_ptr().cast::<u8>().wrapping_add(BYTES_AHEAD)) };
    }
}

/// What a query makes of one row.
trait RowSum<T> {
    /// The sums for `first` and `second`. Meanwhile, the row at `ahead` is fetched into the cache; the pointer may
    /// point anywhere.
    ///
    /// # Safety
    /// As [`float_sums`].
    unsafe fn sums(&self, row: &[T], ahead: *const u8) -> (f64, f64);
}

/// The sum of a term over a query of floats, in lanes `L`.
struct Floats<'a, P, L>(&'a [FloatBlock], PhantomData<(P, L)>);

impl<P: Term, L: Load<T>, T: Element> RowSum<T> for Floats<'_, P, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: *const u8) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<LANES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let mut sum = L::zero();
            for (row, query) in row.iter().zip(self.0) {
                prefetch(ahead);
                ahead = ahead.wrapping_add(size_of_val(row));
                sum = P::add(sum, L::load_f64(&query.0), L::load(row));
            }
            if let (Some(query), false) = (self.0.get(row.len()), tail.is_empty()) {
                sum = P::add(sum, L::load_f64(&query.0), L::load(&padded(tail)));
            }
            (sum.total(), 0.0)
        }
    }
}

/// The products with a query of floats, and the squares of the row, in one pass.
struct FloatsAndSquares<'a, L>(&'a [FloatBlock], PhantomData<L>);

impl<L: Load<T>, T: Element> RowSum<T> for FloatsAndSquares<'_, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: *const u8) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<LANES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut dot, mut square) = (L::zero(), L::zero());
            for (row, query) in row.iter().zip(self.0) {
                prefetch(ahead);
                ahead = ahead.wrapping_add(size_of_val(row));
                let row = L::load(row);
                dot = dot.plus_product(L::load_f64(&query.0), row);
                square = square.plus_product(row, row);
            }
            if let (Some(query), false) = (self.0.get(row.len()), tail.is_empty()) {
                let row = L::load(&padded(tail));
                dot = dot.plus_product(L::load_f64(&query.0), row);
                square = square.plus_product(row, row);
            }
            (dot.total(), square.total())
        }
    }
}

/// The sum of a term over a query of bytes, in lanes `L`.
struct Bytes<'a, P, L>(&'a [IntegerBlock], PhantomData<(P, L)>);

impl<P: Term, L: LoadBytes<T>, T: ByteElement> RowSum<T> for Bytes<'_, P, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: *const u8) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<BYTES>();
        let mut total = 0_i64;
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut sum, mut blocks) = (L::zero(), 0);
            for (row, query) in row.iter().zip(self.0) {
                prefetch(ahead);
                ahead = ahead.wrapping_add(BYTES);
                sum = P::add_bytes(sum, L::load_query(&query.0), L::load_row(row));
                blocks += 1;
                if blocks == BLOCKS_PER_TOTAL {
                    total += i64::from(sum.total());
                    (sum, blocks) = (L::zero(), 0);
                }
            }
            total += i64::from(sum.total());
            if let (Some(query), false) = (self.0.get(row.len()), tail.is_empty()) {
                let sum = P::add_bytes(L::zero(), L::load_query(&query.0), L::load_row(&padded(tail)));
                total += i64::from(sum.total());
            }
        }
        (total as f64, 0.0)
    }
}

/// The products with a query of bytes, and the squares of the row, in one pass.
struct BytesAndSquares<'a, L>(&'a [IntegerBlock], PhantomData<L>);

impl<L: LoadBytes<T>, T: ByteElement> RowSum<T> for BytesAndSquares<'_, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: *const u8) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<BYTES>();
        let mut totals = (0_i64, 0_i64);
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut dot, mut square, mut blocks) = (L::zero(), L::zero(), 0);
            for (row, query) in row.iter().zip(self.0) {
                prefetch(ahead);
                ahead = ahead.wrapping_add(BYTES);
                let row = L::load_row(row);
                dot = dot.plus_products(L::load_query(&query.0), row);
                square = square.plus_products(row, row);
                blocks += 1;
                if blocks == BLOCKS_PER_TOTAL {
                    totals.0 += i64::from(dot.total());
                    totals.1 += i64::from(square.total());
                    (dot, square, blocks) = (L::zero(), L::zero(), 0);
                }
            }
            totals.0 += i64::from(dot.total());
            totals.1 += i64::from(square.total());
            if let (Some(query), false) = (self.0.get(row.len()), tail.is_empty()) {
                let row = L::load_row(&padded(tail));
                totals.0 += i64::from(L::zero().plus_products(L::load_query(&query.0), row).total());
                totals.1 += i64::from(L::zero().plus_products(row, row).total());
            }
        }
        (totals.0 as f64, totals.1 as f64)
    }
}

/// The bits in which a row differs from a query.
struct DifferentBits<'a, L>(&'a [u8], PhantomData<L>);

impl<L: BitLanes> RowSum<u8> for DifferentBits<'_, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[u8], ahead: *const u8) -> (f64, f64) {
        prefetch(ahead);
        // SAFETY: the caller vouches for the instruction set.
        (unsafe { L::different(self.0, row) } as f64, 0.0)
    }
}

/// The bits that a row has in common with a query, and the row's own.
struct CommonBits<'a, L>(&'a [u8], PhantomData<L>);

impl<L: BitLanes> RowSum<u8> for CommonBits<'_, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[u8], ahead: *const u8) -> (f64, f64) {
        prefetch(ahead);
        // SAFETY: the caller vouches for the instruction set.
        let (common, right) = unsafe { L::common_and_right(self.0, row) };
        (common as f64, right as f64)
    }
}

/// The tail of a row, filled up with zeros.
#[inline(always)]
fn padded<T: Copy + Default, const N: usize>(tail: &[T]) -> [T; N] {
    let mut block = [T::default(); N];
    block.iter_mut().zip(tail).for_each(|(place, value)| *place = *value);
    block
}

/// Asks for a line of memory that will be read soon.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch reads nothing and never faults, wherever the pointer points.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

/// Stable Rust has no prefetch for other architectures.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn prefetch(_line: *const u8) {}
