//! The loops over rows, written once for every instruction set, and the order of summation that all of them share.
//!
//! An instruction set supplies [`FloatLanes`], [`ByteLanes`] and [`BitLanes`]; how elements become sums is decided here.
//! The scalar twin of these loops is `reference.rs`, written independently of this file.
//!
//! **The order of summation.** Elements become f64, exactly. Element `i` is added to virtual lane `i mod 16` by a fused
//! multiply-add (by an addition for absolute differences), in ascending order of `i`; elements past the end count as
//! zeros up to the next multiple of 16. Then lanes are added in halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1. Nothing in this
//! depends on the width of a register, so results are equal bit for bit. Sums of byte elements are whole numbers
//! below 2^53, exact in any order, which is why the integer loops may do as they like and still agree with it.
//!
//! Everything here is `#[inline(always)]`: it must end up inside a function that has the target features on, or the
//! vector instructions would become calls.

use std::marker::PhantomData;

use crate::metric::SumKind;
use crate::rows::{BYTES, FloatBlock, IntegerBlock, LANES, RowBlock, Sums};
use crate::vectors::{ByteElement, Element};

/// The sixteen virtual lanes in the registers of one instruction set.
///
/// # Safety
/// Every method may be called only where the processor has the instruction set of the implementation.
pub(crate) trait FloatLanes: Copy {
    /// All lanes +0.
    unsafe fn zero() -> Self;
    /// Sixteen values as they are.
    unsafe fn load_f64(block: &[f64; LANES]) -> Self;
    /// Lane-wise `self - other`.
    unsafe fn minus(self, other: Self) -> Self;
    /// Lane-wise `self + a·b`, rounded once.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// Lane-wise `self + |a|`.
    unsafe fn plus_absolute(self, a: Self) -> Self;
    /// The sum of all lanes: halves added to each other, 8 + 8 first.
    unsafe fn total(self) -> f64;
}

/// Loads sixteen elements of a type, widened to f64.
///
/// # Safety
/// As for [`FloatLanes`].
pub(crate) trait Load<T>: FloatLanes {
    /// The sixteen elements as f64.
    unsafe fn load(block: &[T; LANES]) -> Self;
}

/// Accumulators of i32 for products of byte elements, at most [`BLOCKS_PER_TOTAL`] blocks of them.
///
/// # Safety
/// As for [`FloatLanes`].
pub(crate) trait ByteLanes: Copy {
    /// 64 elements widened to i16.
    type Wide: Copy;
    /// Nothing added yet.
    unsafe fn zero() -> Self;
    /// The block of a query.
    unsafe fn load_query(block: &[i16; BYTES]) -> Self::Wide;
    /// Lane-wise `a - b`.
    unsafe fn minus(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// Lane-wise `|a|`.
    unsafe fn absolute(a: Self::Wide) -> Self::Wide;
    /// Adds the products of `a` and `b`, in any order.
    unsafe fn plus_products(self, a: Self::Wide, b: Self::Wide) -> Self;
    /// Adds the elements of `a`, in any order.
    unsafe fn plus_elements(self, a: Self::Wide) -> Self;
    /// Everything added so far.
    unsafe fn total(self) -> i32;
}

/// Loads 64 byte elements of a type, widened to i16.
///
/// # Safety
/// As for [`FloatLanes`].
pub(crate) trait LoadBytes<T>: ByteLanes {
    /// The 64 elements as i16.
    unsafe fn load_row(block: &[T; BYTES]) -> Self::Wide;
}

/// Counts of bits over two rows of equal length, signed because that is the integer that converts to f64 at once.
///
/// # Safety
/// As for [`FloatLanes`].
pub(crate) trait BitLanes {
    /// Bits of `a xor b`.
    unsafe fn different(a: &[u8], b: &[u8]) -> i64;
    /// Bits of `a and b`, and bits of `b`.
    unsafe fn common_and_right(a: &[u8], b: &[u8]) -> (i64, i64);
}

/// Blocks of 64 products that are added up as i32 before they become an i64. The largest product is the square of the
/// largest difference, 255 - (-128) = 383, and even one i32 would hold them all: 128 · 64 · 383² = 1,201,676,288 < 2^31.
pub(crate) const BLOCKS_PER_TOTAL: usize = 128;

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
            SumKind::SquaredDifference => each_row(&Floats::<SquaredDifference<L>, L>::new(query), rows, sums),
            SumKind::Dot => each_row(&Floats::<Dot<L>, L>::new(query), rows, sums),
            SumKind::DotAndSquare => each_row(&Floats::<DotAndSquare<L>, L>::new(query), rows, sums),
            SumKind::AbsoluteDifference => each_row(&Floats::<AbsoluteDifference<L>, L>::new(query), rows, sums),
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
            SumKind::SquaredDifference => each_row(&Bytes::<SquaredDifference<L>, L>::new(query), rows, sums),
            SumKind::Dot => each_row(&Bytes::<Dot<L>, L>::new(query), rows, sums),
            SumKind::DotAndSquare => each_row(&Bytes::<DotAndSquare<L>, L>::new(query), rows, sums),
            SumKind::AbsoluteDifference => each_row(&Bytes::<AbsoluteDifference<L>, L>::new(query), rows, sums),
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

/// Places of a block that are read in turn. A core fetches from memory ahead of each stream of reads by itself, but
/// only so far: four streams together reach more of the bandwidth than one (Zen 3: 22 instead of 15 GB/s).
const STREAMS: usize = 4;

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
    if let Some(selected) = rows.selected() {
        for (visit, (first, second)) in sums.first.iter_mut().zip(sums.second.iter_mut()).enumerate() {
            let ahead = rows.row((visit + visits_ahead).min(selected.len() - 1)).as_ptr();
            // SAFETY: the caller vouches for the instruction set.
            (*first, *second) = unsafe { kernel.sums(rows.row(visit), ahead.cast()) };
        }
        return;
    }
    let part = sums.first.len() / STREAMS;
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
        (sums.first[index], sums.second[index]) = unsafe { kernel.sums(row, row.as_ptr().cast()) };
    }
}

/// What a query makes of one row.
trait RowSum<T> {
    /// The sums for `first` and `second`. Meanwhile, the row at `ahead` is fetched into the cache; the pointer may
    /// point anywhere.
    ///
    /// # Safety
    /// As for [`FloatLanes`].
    unsafe fn sums(&self, row: &[T], ahead: *const u8) -> (f64, f64);
}

/// Float sums `A` of a query, in lanes `L`.
struct Floats<'a, A, L>(&'a [FloatBlock], PhantomData<(A, L)>);

impl<'a, A, L> Floats<'a, A, L> {
    fn new(query: &'a [FloatBlock]) -> Self {
        Floats(query, PhantomData)
    }
}

impl<A: FloatSum<L>, L: Load<T>, T: Element> RowSum<T> for Floats<'_, A, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: *const u8) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<LANES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let mut sum = A::zero();
            for (row, query) in row.iter().zip(self.0) {
                prefetch(ahead);
                ahead = ahead.wrapping_add(size_of_val(row));
                sum = sum.plus(L::load_f64(&query.0), L::load(row));
            }
            if let (Some(query), false) = (self.0.get(row.len()), tail.is_empty()) {
                sum = sum.plus(L::load_f64(&query.0), L::load(&padded(tail)));
            }
            sum.totals()
        }
    }
}

/// Integer sums `A` of a query, in lanes `L`.
struct Bytes<'a, A, L>(&'a [IntegerBlock], PhantomData<(A, L)>);

impl<'a, A, L> Bytes<'a, A, L> {
    fn new(query: &'a [IntegerBlock]) -> Self {
        Bytes(query, PhantomData)
    }
}

impl<A: ByteSum<L>, L: LoadBytes<T>, T: ByteElement> RowSum<T> for Bytes<'_, A, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[T], mut ahead: *const u8) -> (f64, f64) {
        let (row, tail) = row.as_chunks::<BYTES>();
        let mut totals = (0_i64, 0_i64);
        let mut add = |(first, second): (i32, i32)| {
            totals.0 += i64::from(first);
            totals.1 += i64::from(second);
        };
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut sum, mut blocks) = (A::zero(), 0);
            for (row, query) in row.iter().zip(self.0) {
                prefetch(ahead);
                ahead = ahead.wrapping_add(BYTES);
                sum = sum.plus(L::load_query(&query.0), L::load_row(row));
                blocks += 1;
                if blocks == BLOCKS_PER_TOTAL {
                    add(sum.totals());
                    (sum, blocks) = (A::zero(), 0);
                }
            }
            add(sum.totals());
            if let (Some(query), false) = (self.0.get(row.len()), tail.is_empty()) {
                add(A::zero().plus(L::load_query(&query.0), L::load_row(&padded(tail))).totals());
            }
        }
        (totals.0 as f64, totals.1 as f64)
    }
}

struct DifferentBits<'a, L>(&'a [u8], PhantomData<L>);
struct CommonBits<'a, L>(&'a [u8], PhantomData<L>);

impl<L: BitLanes> RowSum<u8> for DifferentBits<'_, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[u8], ahead: *const u8) -> (f64, f64) {
        prefetch(ahead);
        // SAFETY: the caller vouches for the instruction set.
        (unsafe { L::different(self.0, row) } as f64, 0.0)
    }
}

impl<L: BitLanes> RowSum<u8> for CommonBits<'_, L> {
    #[inline(always)]
    unsafe fn sums(&self, row: &[u8], ahead: *const u8) -> (f64, f64) {
        prefetch(ahead);
        // SAFETY: the caller vouches for the instruction set.
        let (common, right) = unsafe { L::common_and_right(self.0, row) };
        (common as f64, right as f64)
    }
}

/// A sum over the pairs of elements of two vectors, or two sums.
trait FloatSum<L: FloatLanes>: Copy {
    /// Nothing added yet.
    ///
    /// # Safety
    /// As for [`FloatLanes`], here and below.
    unsafe fn zero() -> Self;
    /// With sixteen pairs of elements added.
    unsafe fn plus(self, q: L, r: L) -> Self;
    /// The sums for `first` and `second`.
    unsafe fn totals(self) -> (f64, f64);
}

#[derive(Clone, Copy)]
struct SquaredDifference<L>(L);
#[derive(Clone, Copy)]
struct Dot<L>(L);
#[derive(Clone, Copy)]
struct DotAndSquare<L>(L, L);
#[derive(Clone, Copy)]
struct AbsoluteDifference<L>(L);

impl<L: FloatLanes> FloatSum<L> for SquaredDifference<L> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        SquaredDifference(unsafe { L::zero() })
    }

    #[inline(always)]
    unsafe fn plus(self, q: L, r: L) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let difference = q.minus(r);
            SquaredDifference(self.0.plus_product(difference, difference))
        }
    }

    #[inline(always)]
    unsafe fn totals(self) -> (f64, f64) {
        // SAFETY: the caller vouches for the instruction set.
        (unsafe { self.0.total() }, 0.0)
    }
}

impl<L: FloatLanes> FloatSum<L> for Dot<L> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        Dot(unsafe { L::zero() })
    }

    #[inline(always)]
    unsafe fn plus(self, q: L, r: L) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        Dot(unsafe { self.0.plus_product(q, r) })
    }

    #[inline(always)]
    unsafe fn totals(self) -> (f64, f64) {
        // SAFETY: the caller vouches for the instruction set.
        (unsafe { self.0.total() }, 0.0)
    }
}

impl<L: FloatLanes> FloatSum<L> for DotAndSquare<L> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { DotAndSquare(L::zero(), L::zero()) }
    }

    #[inline(always)]
    unsafe fn plus(self, q: L, r: L) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { DotAndSquare(self.0.plus_product(q, r), self.1.plus_product(r, r)) }
    }

    #[inline(always)]
    unsafe fn totals(self) -> (f64, f64) {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { (self.0.total(), self.1.total()) }
    }
}

impl<L: FloatLanes> FloatSum<L> for AbsoluteDifference<L> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        AbsoluteDifference(unsafe { L::zero() })
    }

    #[inline(always)]
    unsafe fn plus(self, q: L, r: L) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        AbsoluteDifference(unsafe { self.0.plus_absolute(q.minus(r)) })
    }

    #[inline(always)]
    unsafe fn totals(self) -> (f64, f64) {
        // SAFETY: the caller vouches for the instruction set.
        (unsafe { self.0.total() }, 0.0)
    }
}

/// As [`FloatSum`], for byte elements: at most [`BLOCKS_PER_TOTAL`] blocks.
trait ByteSum<L: ByteLanes>: Copy {
    /// Nothing added yet.
    ///
    /// # Safety
    /// As for [`ByteLanes`], here and below.
    unsafe fn zero() -> Self;
    /// With 64 pairs of elements added.
    unsafe fn plus(self, q: L::Wide, r: L::Wide) -> Self;
    /// The sums for `first` and `second`.
    unsafe fn totals(self) -> (i32, i32);
}

impl<L: ByteLanes> ByteSum<L> for SquaredDifference<L> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        SquaredDifference(unsafe { L::zero() })
    }

    #[inline(always)]
    unsafe fn plus(self, q: L::Wide, r: L::Wide) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let difference = L::minus(q, r);
            SquaredDifference(self.0.plus_products(difference, difference))
        }
    }

    #[inline(always)]
    unsafe fn totals(self) -> (i32, i32) {
        // SAFETY: the caller vouches for the instruction set.
        (unsafe { self.0.total() }, 0)
    }
}

impl<L: ByteLanes> ByteSum<L> for Dot<L> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        Dot(unsafe { L::zero() })
    }

    #[inline(always)]
    unsafe fn plus(self, q: L::Wide, r: L::Wide) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        Dot(unsafe { self.0.plus_products(q, r) })
    }

    #[inline(always)]
    unsafe fn totals(self) -> (i32, i32) {
        // SAFETY: the caller vouches for the instruction set.
        (unsafe { self.0.total() }, 0)
    }
}

impl<L: ByteLanes> ByteSum<L> for DotAndSquare<L> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { DotAndSquare(L::zero(), L::zero()) }
    }

    #[inline(always)]
    unsafe fn plus(self, q: L::Wide, r: L::Wide) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { DotAndSquare(self.0.plus_products(q, r), self.1.plus_products(r, r)) }
    }

    #[inline(always)]
    unsafe fn totals(self) -> (i32, i32) {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { (self.0.total(), self.1.total()) }
    }
}

impl<L: ByteLanes> ByteSum<L> for AbsoluteDifference<L> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        AbsoluteDifference(unsafe { L::zero() })
    }

    #[inline(always)]
    unsafe fn plus(self, q: L::Wide, r: L::Wide) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        AbsoluteDifference(unsafe { self.0.plus_elements(L::absolute(L::minus(q, r))) })
    }

    #[inline(always)]
    unsafe fn totals(self) -> (i32, i32) {
        // SAFETY: the caller vouches for the instruction set.
        (unsafe { self.0.total() }, 0)
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
