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

/// Accumulators of i32 for products of byte elements. Between two calls of `total`, at most
/// [`BLOCKS_PER_TOTAL`] blocks may be added; the implementation must have enough lanes not to overflow by then.
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
    unsafe fn total(self) -> i64;
}

/// Loads 64 byte elements of a type, widened to i16.
///
/// # Safety
/// As for [`FloatLanes`].
pub(crate) trait LoadBytes<T>: ByteLanes {
    /// The 64 elements as i16.
    unsafe fn load_row(block: &[T; BYTES]) -> Self::Wide;
}

/// Counts of bits over two rows of equal length.
///
/// # Safety
/// As for [`FloatLanes`].
pub(crate) trait BitLanes {
    /// Bits of `a xor b`.
    unsafe fn different(a: &[u8], b: &[u8]) -> u64;
    /// Bits of `a and b`, and bits of `b`.
    unsafe fn common_and_right(a: &[u8], b: &[u8]) -> (u64, u64);
}

/// Blocks of 64 products of at most 255·255 that i32 lanes take before they are added up as i64. With 8 lanes or more,
/// a lane gets at most 8 products per block: 8 · 65,025 · 4,096 = 2,130,739,200 < 2^31.
pub(crate) const BLOCKS_PER_TOTAL: usize = 4096;

/// How many rows ahead selected rows are fetched into the cache. A row is hundreds of bytes: two cover the latency of
/// memory, more only crowd the line fill buffers (measured: `benches/distances.rs`, selected rows).
const PREFETCH_ROWS: usize = 2;

/// What is added to a lane for a pair of elements.
trait Step {
    /// `sum` with the contributions of `q` and `r` added.
    ///
    /// # Safety
    /// As for [`FloatLanes`].
    unsafe fn step<L: FloatLanes>(sum: L, q: L, r: L) -> L;
    /// As `step`, for byte elements.
    ///
    /// # Safety
    /// As for [`ByteLanes`].
    unsafe fn step_bytes<L: ByteLanes>(sum: L, q: L::Wide, r: L::Wide) -> L;
}

struct SquaredDifference;
struct Product;
struct AbsoluteDifference;

impl Step for SquaredDifference {
    #[inline(always)]
    unsafe fn step<L: FloatLanes>(sum: L, q: L, r: L) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let difference = q.minus(r);
            sum.plus_product(difference, difference)
        }
    }

    #[inline(always)]
    unsafe fn step_bytes<L: ByteLanes>(sum: L, q: L::Wide, r: L::Wide) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let difference = L::minus(q, r);
            sum.plus_products(difference, difference)
        }
    }
}

impl Step for Product {
    #[inline(always)]
    unsafe fn step<L: FloatLanes>(sum: L, q: L, r: L) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { sum.plus_product(q, r) }
    }

    #[inline(always)]
    unsafe fn step_bytes<L: ByteLanes>(sum: L, q: L::Wide, r: L::Wide) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { sum.plus_products(q, r) }
    }
}

impl Step for AbsoluteDifference {
    #[inline(always)]
    unsafe fn step<L: FloatLanes>(sum: L, q: L, r: L) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { sum.plus_absolute(q.minus(r)) }
    }

    #[inline(always)]
    unsafe fn step_bytes<L: ByteLanes>(sum: L, q: L::Wide, r: L::Wide) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { sum.plus_elements(L::absolute(L::minus(q, r))) }
    }
}

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
            SumKind::SquaredDifference => {
                single_sums::<L, T, SquaredDifference>(query, rows, sums.first)
            }
            SumKind::Dot => single_sums::<L, T, Product>(query, rows, sums.first),
            SumKind::AbsoluteDifference => {
                single_sums::<L, T, AbsoluteDifference>(query, rows, sums.first)
            }
            SumKind::DotAndSquare => double_sums::<L, T>(query, rows, sums),
            // Bit vectors have no float sums; `query.rs` refuses them before a kernel is called.
            SumKind::DifferentBits | SumKind::CommonBits => {}
        }
    }
}

/// One sum per row, two rows at a time: they share the loads of the query, and eight chains of additions instead of
/// four hide the latency of the multiply-add on AVX2.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
unsafe fn single_sums<L: Load<T>, T: Element, S: Step>(
    query: &[FloatBlock],
    rows: &RowBlock<'_, T>,
    out: &mut [f64],
) {
    let (pairs, last) = out.as_chunks_mut::<2>();
    for (index, pair) in pairs.iter_mut().enumerate() {
        prefetch(rows, 2 * index + 2);
        prefetch(rows, 2 * index + 3);
        let (left, left_tail) = rows.row(2 * index).as_chunks::<LANES>();
        let (right, right_tail) = rows.row(2 * index + 1).as_chunks::<LANES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut left_sum, mut right_sum) = (L::zero(), L::zero());
            for ((left, right), query) in left.iter().zip(right).zip(query) {
                let query = L::load_f64(&query.0);
                left_sum = S::step(left_sum, query, L::load(left));
                right_sum = S::step(right_sum, query, L::load(right));
            }
            if let (Some(query), false) = (query.get(left.len()), left_tail.is_empty()) {
                let query = L::load_f64(&query.0);
                left_sum = S::step(left_sum, query, L::load(&padded(left_tail)));
                right_sum = S::step(right_sum, query, L::load(&padded(right_tail)));
            }
            *pair = [left_sum.total(), right_sum.total()];
        }
    }
    if let [last] = last {
        let (row, tail) = rows.row(2 * pairs.len()).as_chunks::<LANES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let mut sum = L::zero();
            for (row, query) in row.iter().zip(query) {
                sum = S::step(sum, L::load_f64(&query.0), L::load(row));
            }
            if let (Some(query), false) = (query.get(row.len()), tail.is_empty()) {
                sum = S::step(sum, L::load_f64(&query.0), L::load(&padded(tail)));
            }
            *last = sum.total();
        }
    }
}

/// Dot product and sum of squares of each row in one pass; one row at a time fills the registers of AVX2.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
unsafe fn double_sums<L: Load<T>, T: Element>(
    query: &[FloatBlock],
    rows: &RowBlock<'_, T>,
    sums: &mut Sums<'_>,
) {
    for (index, (first, second)) in sums
        .first
        .iter_mut()
        .zip(sums.second.iter_mut())
        .enumerate()
    {
        prefetch(rows, index + PREFETCH_ROWS);
        let (row, tail) = rows.row(index).as_chunks::<LANES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut dot, mut square) = (L::zero(), L::zero());
            for (row, query) in row.iter().zip(query) {
                let values = L::load(row);
                dot = dot.plus_product(L::load_f64(&query.0), values);
                square = square.plus_product(values, values);
            }
            if let (Some(query), false) = (query.get(row.len()), tail.is_empty()) {
                let values = L::load(&padded(tail));
                dot = dot.plus_product(L::load_f64(&query.0), values);
                square = square.plus_product(values, values);
            }
            *first = dot.total();
            *second = square.total();
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
            SumKind::SquaredDifference => {
                single_byte_sums::<L, T, SquaredDifference>(query, rows, sums.first)
            }
            SumKind::Dot => single_byte_sums::<L, T, Product>(query, rows, sums.first),
            SumKind::AbsoluteDifference => {
                single_byte_sums::<L, T, AbsoluteDifference>(query, rows, sums.first)
            }
            SumKind::DotAndSquare => double_byte_sums::<L, T>(query, rows, sums),
            // Bit vectors have sums of their own; `query.rs` refuses them before a kernel is called.
            SumKind::DifferentBits | SumKind::CommonBits => {}
        }
    }
}

/// # Safety
/// As [`float_sums`].
#[inline(always)]
unsafe fn single_byte_sums<L: LoadBytes<T>, T: ByteElement, S: Step>(
    query: &[IntegerBlock],
    rows: &RowBlock<'_, T>,
    out: &mut [f64],
) {
    for (index, out) in out.iter_mut().enumerate() {
        prefetch(rows, index + PREFETCH_ROWS);
        let (row, tail) = rows.row(index).as_chunks::<BYTES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let mut total = 0_i64;
            for (row, query) in row
                .chunks(BLOCKS_PER_TOTAL)
                .zip(query.chunks(BLOCKS_PER_TOTAL))
            {
                let mut sum = L::zero();
                for (row, query) in row.iter().zip(query) {
                    sum = S::step_bytes(sum, L::load_query(&query.0), L::load_row(row));
                }
                total += sum.total();
            }
            if let (Some(query), false) = (query.get(row.len()), tail.is_empty()) {
                total += S::step_bytes(
                    L::zero(),
                    L::load_query(&query.0),
                    L::load_row(&padded(tail)),
                )
                .total();
            }
            *out = total as f64;
        }
    }
}

/// # Safety
/// As [`float_sums`].
#[inline(always)]
unsafe fn double_byte_sums<L: LoadBytes<T>, T: ByteElement>(
    query: &[IntegerBlock],
    rows: &RowBlock<'_, T>,
    sums: &mut Sums<'_>,
) {
    for (index, (first, second)) in sums
        .first
        .iter_mut()
        .zip(sums.second.iter_mut())
        .enumerate()
    {
        prefetch(rows, index + PREFETCH_ROWS);
        let (row, tail) = rows.row(index).as_chunks::<BYTES>();
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (mut dot_total, mut square_total) = (0_i64, 0_i64);
            for (row, query) in row
                .chunks(BLOCKS_PER_TOTAL)
                .zip(query.chunks(BLOCKS_PER_TOTAL))
            {
                let (mut dot, mut square) = (L::zero(), L::zero());
                for (row, query) in row.iter().zip(query) {
                    let values = L::load_row(row);
                    dot = dot.plus_products(L::load_query(&query.0), values);
                    square = square.plus_products(values, values);
                }
                dot_total += dot.total();
                square_total += square.total();
            }
            if let (Some(query), false) = (query.get(row.len()), tail.is_empty()) {
                let values = L::load_row(&padded(tail));
                dot_total += L::zero()
                    .plus_products(L::load_query(&query.0), values)
                    .total();
                square_total += L::zero().plus_products(values, values).total();
            }
            *first = dot_total as f64;
            *second = square_total as f64;
        }
    }
}

/// Counts of bits of a query against each row.
///
/// # Safety
/// As [`float_sums`].
#[inline(always)]
pub(crate) unsafe fn bit_sums<L: BitLanes>(
    kind: SumKind,
    query: &[u8],
    rows: &RowBlock<'_, u8>,
    sums: &mut Sums<'_>,
) {
    for (index, (first, second)) in sums
        .first
        .iter_mut()
        .zip(sums.second.iter_mut())
        .enumerate()
    {
        prefetch(rows, index + PREFETCH_ROWS);
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            if kind == SumKind::CommonBits {
                let (common, right) = L::common_and_right(query, rows.row(index));
                *first = common as f64;
                *second = right as f64;
            } else {
                *first = L::different(query, rows.row(index)) as f64;
            }
        }
    }
}

/// The tail of a row, filled up with zeros.
#[inline(always)]
fn padded<T: Copy + Default, const N: usize>(tail: &[T]) -> [T; N] {
    let mut block = [T::default(); N];
    block
        .iter_mut()
        .zip(tail)
        .for_each(|(place, value)| *place = *value);
    block
}

/// Fetches a row into the cache, if rows are selected: contiguous ones the processor fetches by itself.
#[inline(always)]
fn prefetch<T>(rows: &RowBlock<'_, T>, index: usize) {
    if rows.is_selected() && index < rows.len() {
        prefetch_slice(rows.row(index));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch_slice<T>(row: &[T]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let start = row.as_ptr().cast::<i8>();
    for offset in (0..size_of_val(row)).step_by(64) {
        // SAFETY: a prefetch is a hint that reads nothing, and `offset` is inside `row`.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(offset)) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn prefetch_slice<T>(_row: &[T]) {}
