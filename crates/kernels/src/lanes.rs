//! What an instruction set must supply: loads and arithmetic, no loops and no decisions.
//!
//! The loops over rows are in `scan.rs` and `tile.rs`; the registers themselves in `x86/` and `neon.rs`.
//!
//! Everything here is `#[inline(always)]`: it must end up inside a function that has the target features on, or the
//! vector instructions would become calls.

use crate::rows::{BYTES, LANES};

/// How the processors that have an instruction set are fed from memory.
pub(crate) trait Feed {
    /// Whether the cores fetch ahead of plain reads by themselves as far as memory allows. They are fed in order; the
    /// others from several places in turn.
    const IN_ORDER: bool;
}

/// Lane-wise arithmetic on f64: one register, or all sixteen virtual lanes.
///
/// # Safety
/// Every method may be called only where the processor has the instruction set of the implementation.
pub(crate) trait Arithmetic: Copy {
    /// All lanes +0.
    unsafe fn zero() -> Self;
    /// `self + other`.
    unsafe fn plus(self, other: Self) -> Self;
    /// `self - other`.
    unsafe fn minus(self, other: Self) -> Self;
    /// `self + a·b`, rounded once.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// `|self|`.
    unsafe fn absolute(self) -> Self;
}

/// One register of f64.
///
/// # Safety
/// As for [`Arithmetic`]; pointers must be valid for [`Register::WIDTH`] values.
pub(crate) trait Register: Arithmetic + Feed {
    /// Lanes of the register, a power of two up to 16.
    const WIDTH: usize;
    /// Reads the lanes from memory, aligned or not.
    unsafe fn load(values: *const f64) -> Self;
    /// Writes the lanes to memory, aligned or not.
    unsafe fn store(self, values: *mut f64);
    /// The sum of the lanes: halves added to each other, the widest first.
    unsafe fn sum(self) -> f64;
}

/// The sixteen virtual lanes in `N` registers: lane `WIDTH·j + i` is element `i` of register `j`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes<R, const N: usize>(pub(crate) [R; N]);

impl<R: Register, const N: usize> Arithmetic for Lanes<R, N> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `Arithmetic`.
        Lanes(unsafe { [R::zero(); N] })
    }

    #[inline(always)]
    unsafe fn plus(mut self, other: Self) -> Self {
        for i in 0..N {
            // SAFETY: the contract of `Arithmetic`.
            self.0[i] = unsafe { self.0[i].plus(other.0[i]) };
        }
        self
    }

    #[inline(always)]
    unsafe fn minus(mut self, other: Self) -> Self {
        for i in 0..N {
            // SAFETY: the contract of `Arithmetic`.
            self.0[i] = unsafe { self.0[i].minus(other.0[i]) };
        }
        self
    }

    #[inline(always)]
    unsafe fn plus_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..N {
            // SAFETY: the contract of `Arithmetic`.
            self.0[i] = unsafe { self.0[i].plus_product(a.0[i], b.0[i]) };
        }
        self
    }

    #[inline(always)]
    unsafe fn absolute(mut self) -> Self {
        for i in 0..N {
            // SAFETY: the contract of `Arithmetic`.
            self.0[i] = unsafe { self.0[i].absolute() };
        }
        self
    }
}

/// The sixteen virtual lanes of one instruction set.
///
/// # Safety
/// As for [`Arithmetic`].
pub(crate) trait FloatLanes: Arithmetic + Feed {
    /// What the lanes are held in.
    type Register: Register;
    /// Sixteen values as they are.
    unsafe fn load_f64(block: &[f64; LANES]) -> Self;
    /// Writes the lanes out.
    unsafe fn store_f64(self, block: &mut [f64; LANES]);
    /// The sum of all lanes: halves added to each other, 8 + 8 first.
    unsafe fn total(self) -> f64;
}

impl<R: Feed, const N: usize> Feed for Lanes<R, N> {
    const IN_ORDER: bool = R::IN_ORDER;
}

impl<R: Register, const N: usize> FloatLanes for Lanes<R, N> {
    type Register = R;

    #[inline(always)]
    unsafe fn load_f64(block: &[f64; LANES]) -> Self {
        const { assert!(N * R::WIDTH == LANES, "the registers hold the sixteen lanes") };
        // SAFETY: the contract of `Arithmetic`; N registers read the 16 values of the array.
        unsafe {
            let mut lanes = Self::zero();
            for i in 0..N {
                lanes.0[i] = R::load(block.as_ptr().add(i * R::WIDTH));
            }
            lanes
        }
    }

    #[inline(always)]
    unsafe fn store_f64(self, block: &mut [f64; LANES]) {
        const { assert!(N * R::WIDTH == LANES, "the registers hold the sixteen lanes") };
        for i in 0..N {
            // SAFETY: the contract of `Arithmetic`; N registers write the 16 values of the array.
            unsafe { self.0[i].store(block.as_mut_ptr().add(i * R::WIDTH)) };
        }
    }

    #[inline(always)]
    unsafe fn total(mut self) -> f64 {
        let mut half = N / 2;
        // SAFETY: the contract of `Arithmetic`.
        unsafe {
            while half > 0 {
                for i in 0..half {
                    self.0[i] = self.0[i].plus(self.0[i + half]);
                }
                half /= 2;
            }
            self.0[0].sum()
        }
    }
}

/// Loads sixteen elements of a type, widened to f64.
///
/// # Safety
/// As for [`Arithmetic`].
pub(crate) trait Load<T>: FloatLanes {
    /// The sixteen elements as f64.
    unsafe fn load(block: &[T; LANES]) -> Self;
}

/// Accumulators of i32 for products of byte elements, at most [`BLOCKS_PER_TOTAL`] blocks of them.
///
/// # Safety
/// As for [`Arithmetic`].
pub(crate) trait ByteLanes: Copy + Feed {
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

/// Blocks of 64 products that are added up as i32 before they become an i64. The largest product is the square of the
/// largest difference, 255 - (-128) = 383, and even one i32 would hold them all: 128 · 64 · 383² = 1,201,676,288 < 2^31.
pub(crate) const BLOCKS_PER_TOTAL: usize = 128;

/// Loads 64 byte elements of a type, widened to i16.
///
/// # Safety
/// As for [`Arithmetic`].
pub(crate) trait LoadBytes<T>: ByteLanes {
    /// The 64 elements as i16.
    unsafe fn load_row(block: &[T; BYTES]) -> Self::Wide;
}

/// Counts of bits over two rows of equal length, signed because that is the integer that converts to f64 at once.
///
/// # Safety
/// As for [`Arithmetic`].
pub(crate) trait BitLanes: Feed {
    /// Bits of `a xor b`.
    unsafe fn different(a: &[u8], b: &[u8]) -> i64;
    /// Bits of `a and b`, and bits of `b`.
    unsafe fn common_and_right(a: &[u8], b: &[u8]) -> (i64, i64);
}

/// What is added to a sum for a pair of elements.
pub(crate) trait Term {
    /// `sum` with the contributions of `q` and `r` added, lane by lane.
    ///
    /// # Safety
    /// As for [`Arithmetic`].
    unsafe fn add<V: Arithmetic>(sum: V, q: V, r: V) -> V;
    /// The same for byte elements.
    ///
    /// # Safety
    /// As for [`ByteLanes`].
    unsafe fn add_bytes<L: ByteLanes>(sum: L, q: L::Wide, r: L::Wide) -> L;
}

/// `(q - r)²`
pub(crate) struct SquaredDifference;
/// `q·r`
pub(crate) struct Product;
/// `|q - r|`
pub(crate) struct AbsoluteDifference;

impl Term for SquaredDifference {
    #[inline(always)]
    unsafe fn add<V: Arithmetic>(sum: V, q: V, r: V) -> V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let difference = q.minus(r);
            sum.plus_product(difference, difference)
        }
    }

    #[inline(always)]
    unsafe fn add_bytes<L: ByteLanes>(sum: L, q: L::Wide, r: L::Wide) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let difference = L::minus(q, r);
            sum.plus_products(difference, difference)
        }
    }
}

impl Term for Product {
    #[inline(always)]
    unsafe fn add<V: Arithmetic>(sum: V, q: V, r: V) -> V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { sum.plus_product(q, r) }
    }

    #[inline(always)]
    unsafe fn add_bytes<L: ByteLanes>(sum: L, q: L::Wide, r: L::Wide) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { sum.plus_products(q, r) }
    }
}

impl Term for AbsoluteDifference {
    #[inline(always)]
    unsafe fn add<V: Arithmetic>(sum: V, q: V, r: V) -> V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { sum.plus(q.minus(r).absolute()) }
    }

    #[inline(always)]
    unsafe fn add_bytes<L: ByteLanes>(sum: L, q: L::Wide, r: L::Wide) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { sum.plus_elements(L::absolute(L::minus(q, r))) }
    }
}
