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

/// Places of a block that are read in turn where the core is not fed in order ([`Feed`](crate::lanes::Feed)). Each stream of reads is fetched
/// ahead by the core itself, but only so far: several together reach more of the bandwidth than one, too many lose it
/// again. Cosine of f32, one thread, GB/s: Zen 3 (AVX2) 22 with four streams, 15 with one. Zen 4 (AVX-512), of 30 that
/// memory gives: 27 in order, 22 with three streams, 17 with four.
const STREAMS: usize = 4;

/// Blocks below this are read in sequence: places so near to each other would share the pages that a core looks ahead in.
const STREAMED_BYTES_MIN: usize = 32 * 1024;

/// How many bytes of rows are asked for before they are read: enough to cover the latency of memory.
const BYTES_AHEAD: usize = 3072;

/// The same where the core itself fetches ahead: it must only not pause between rows. Zen 4, one thread, cosine of f32:
/// 27 GB/s of 30 into the second-level cache, 24 without, 19 into the first-level cache; 2 KiB ahead is slower again.
const BYTES_AHEAD_IN_ORDER: usize = 512;

/// Visits every row once, in the way that feeds the core best.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
unsafe fn each_row<K: RowSum<T>, T>(kernel: &K, rows: &RowBlock<'_, T>, sums: &mut Sums<'_>) {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        if rows.is_selected() {
            each_selected(kernel, rows, sums);
        } else if K::IN_ORDER {
            for (index, row) in rows.values().chunks_exact(rows.values_per_row()).enumerate() {
                let ahead = row.as_ptr().cast::<u8>().wrapping_add(BYTES_AHEAD_IN_ORDER);
                (sums.first[index], sums.second[index]) = kernel.sums(row, ToSecondLevel(ahead));
            }
        } else {
            each_in_streams(kernel, rows, sums);
        }
    }
}

/// The rows of each stream.
fn rows_per_stream<T>(rows: &RowBlock<'_, T>) -> usize {
    if size_of_val(rows.values()) >= STREAMED_BYTES_MIN { rows.len() / STREAMS } else { 0 }
}

/// Visits the rows at chosen offsets, which no core foresees: a later one is asked for while one is read.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
unsafe fn each_selected<K: RowSum<T>, T>(kernel: &K, rows: &RowBlock<'_, T>, sums: &mut Sums<'_>) {
    let visits_ahead = BYTES_AHEAD / (rows.values_per_row() * size_of::<T>()).max(1) + 1;
    let part = if K::IN_ORDER { 0 } else { rows_per_stream(rows) };
    let index_of = |visit| if visit < part * STREAMS { visit % STREAMS * part + visit / STREAMS } else { visit };
    for visit in 0..rows.len() {
        let (index, later) = (index_of(visit), index_of((visit + visits_ahead).min(rows.len() - 1)));
        // SAFETY: the caller vouches for the instruction set.
        (sums.first[index], sums.second[index]) =
            unsafe { kernel.sums(rows.row(index), ToFirstLevel(rows.row(later).as_ptr().cast())) };
    }
}

/// Visits every row from [`STREAMS`] places in turn, and asks for a later row while it reads one.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
unsafe fn each_in_streams<K: RowSum<T>, T>(kernel: &K, rows: &RowBlock<'_, T>, sums: &mut Sums<'_>) {
    let (values, width) = (rows.values(), rows.values_per_row());
    let visits_ahead = BYTES_AHEAD / (width * size_of::<T>()).max(1) + 1;
    let part = rows_per_stream(rows);
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
                (sums.first[index], sums.second[index]) = unsafe { kernel.sums(row, ToFirstLevel(ahead)) };
            }
        }
    }
    for (index, row) in (part * STREAMS..).zip(rest.chunks_exact(width)) {
        // SAFETY: the caller vouches for the instruction set.
        (sums.first[index], sums.second[index]) =
            unsafe { kernel.sums(row, ToFirstLevel(row.as_ptr().cast::<u8>().wrapping_add(BYTES_AHEAD))) };
    }
}

/// What is fetched into a cache while a row is read: the lines from a pointer on, which may point anywhere.
trait LookAhead {
    /// Asks for the next line, and passes over `bytes`.
    fn ask(&mut self, bytes: usize);
}

/// Into the first-level cache.
struct ToFirstLevel(*const u8);

/// Into the second-level cache.
struct ToSecondLevel(*const u8);

impl LookAhead for ToFirstLevel {
    #[inline(always)]
    fn ask(&mut self, bytes: usize) {
        prefetch_to_first_level(self.0);
        self.0 = self.0.wrapping_add(bytes);
    }
}

impl LookAhead for ToSecondLevel {
    #[inline(always)]
    fn ask(&mut self, bytes: usize) {
        prefetch_to_second_level(self.0);
        self.0 = self.0.wrapping_add(bytes);
    }
}

/// What a query makes of one row.
trait RowSum<T> {
    /// As [`Feed::IN_ORDER`](crate::lanes::Feed::IN_ORDER) of the instruction set.
    const IN_ORDER: bool;

    /// The sums for `first` and `second`. Meanwhile, what `ahead` says is fetched into the cache.
    ///
    /// # Safety
    /// As [`float_sums`].
    unsafe fn sums(&self, row: &[T], ahead: impl LookAhead) -> (f64, f64);
}

/// The sum of a term over a query of floats, in lanes `L`.
struct Floats<'a, P, L>(&'a [FloatBlock], PhantomData<(P, L)>);

impl<P: Term, L: Load<T>, T: Element> RowSum<T> for Floats<'_, P, L> {
    const IN_ORDER: bool = L::IN_ORDER;

    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: impl LookAhead) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<LANES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let mut sum = L::zero();
            for (row, query) in row.iter().zip(self.0) {
                ahead.ask(size_of_val(row));
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
    const IN_ORDER: bool = L::IN_ORDER;

    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: impl LookAhead) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<LANES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut dot, mut square) = (L::zero(), L::zero());
            for (row, query) in row.iter().zip(self.0) {
                ahead.ask(size_of_val(row));
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
    const IN_ORDER: bool = L::IN_ORDER;

    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: impl LookAhead) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<BYTES>();
        let mut total = 0_i64;
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut sum, mut blocks) = (L::zero(), 0);
            for (row, query) in row.iter().zip(self.0) {
                ahead.ask(BYTES);
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
    const IN_ORDER: bool = L::IN_ORDER;

    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: impl LookAhead) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<BYTES>();
        let mut totals = (0_i64, 0_i64);
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut dot, mut square, mut blocks) = (L::zero(), L::zero(), 0);
            for (row, query) in row.iter().zip(self.0) {
                ahead.ask(BYTES);
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
    const IN_ORDER: bool = L::IN_ORDER;

    #[inline(always)]
    unsafe fn sums(&self, row: &[u8], mut ahead: impl LookAhead) -> (f64, f64) {
        ahead.ask(size_of_val(row));
        // SAFETY: the caller vouches for the instruction set.
        (unsafe { L::different(self.0, row) } as f64, 0.0)
    }
}

/// The bits that a row has in common with a query, and the row's own.
struct CommonBits<'a, L>(&'a [u8], PhantomData<L>);

impl<L: BitLanes> RowSum<u8> for CommonBits<'_, L> {
    const IN_ORDER: bool = L::IN_ORDER;

    #[inline(always)]
    unsafe fn sums(&self, row: &[u8], mut ahead: impl LookAhead) -> (f64, f64) {
        ahead.ask(size_of_val(row));
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
fn prefetch_to_first_level(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch reads nothing and never faults, wherever the pointer points.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

/// Asks for a line of memory that will be read a little later.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch_to_second_level(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a prefetch reads nothing and never faults, wherever the pointer points.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
}

/// Stable Rust has no prefetch for other architectures.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn prefetch_to_first_level(_line: *const u8) {}

/// Stable Rust has no prefetch for other architectures.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn prefetch_to_second_level(_line: *const u8) {}
