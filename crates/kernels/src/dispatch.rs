//! From an instruction set that is present to its kernels: one branch per block of rows, none per row.

use half::f16;

use crate::isa::{Isa, Present};
use crate::metric::SumKind;
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::reference;
use crate::rows::{FloatBlock, IntegerBlock, LANES, RowBlock, Rows, Sums};
use crate::tile;
use crate::vectors::{ByteElement, Element};
#[cfg(target_arch = "x86_64")]
use crate::x86::{avx2, avx512};

/// Calls the kernel of a name in the module of the instruction set.
///
/// On a machine of another architecture the modules of this one do not exist, and a `Present` of their instruction
/// sets cannot either; what remains is the scalar code.
macro_rules! call {
    ($isa:expr, $kernel:ident($($argument:expr),*)) => {
        match $isa.isa() {
            // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::$kernel($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::$kernel($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { neon::$kernel($($argument),*) },
            _ => reference::$kernel($($argument),*),
        }
    };
}

/// Float sums of `query` against every row, whatever the type of its elements.
///
/// `query`: as many blocks as a row needs. `sums`: one place per row. Bit rows have no float sums and are left out.
pub(crate) fn float_sums(isa: Present, kind: SumKind, query: &[FloatBlock], rows: &Rows<'_>, sums: &mut Sums<'_>) {
    match rows {
        Rows::F32(rows) => FloatKernel::run(isa, kind, query, rows, sums),
        Rows::F16(rows) => FloatKernel::run(isa, kind, query, rows, sums),
        Rows::I8(rows) => FloatKernel::run(isa, kind, query, rows, sums),
        Rows::U8(rows) => FloatKernel::run(isa, kind, query, rows, sums),
        Rows::Bits(_) => debug_assert!(false, "bit rows have no float sums"),
    }
}

/// Integer sums of `query` against every row of bytes. Same shapes as [`float_sums`].
pub(crate) fn byte_sums<T: ByteKernel>(
    isa: Present,
    kind: SumKind,
    query: &[IntegerBlock],
    rows: &RowBlock<'_, T>,
    sums: &mut Sums<'_>,
) {
    T::run_bytes(isa, kind, query, rows, sums);
}

/// Counts of bits of `query` against every row. `query`: the bytes of one row.
pub(crate) fn bit_sums(isa: Present, kind: SumKind, query: &[u8], rows: &RowBlock<'_, u8>, sums: &mut Sums<'_>) {
    call!(isa, bit_sums(kind, query, rows, sums));
}

/// Writes one vector as f64, padded with zeros to whole blocks. `blocks` gets as many as the vector needs.
pub(crate) fn widen<T: FloatKernel>(isa: Present, vector: &[T], blocks: &mut Vec<FloatBlock>) {
    blocks.clear();
    blocks.resize(vector.len().div_ceil(LANES), FloatBlock([0.0; LANES]));
    T::run_widen(isa, vector, blocks);
}

/// Sums of every pair of a tile; see `tile.rs`. All vectors have the same number of blocks.
pub(crate) fn tile_sums(
    isa: Present,
    kind: SumKind,
    queries: [&[FloatBlock]; tile::QUERIES],
    rows: [&[FloatBlock]; tile::ROWS],
) -> [[f64; tile::ROWS]; tile::QUERIES] {
    call!(isa, tile_sums(kind, queries, rows))
}

/// Elements that every instruction set can load as f64.
pub(crate) trait FloatKernel: Element {
    /// Calls the float kernel of the instruction set.
    fn run(isa: Present, kind: SumKind, query: &[FloatBlock], rows: &RowBlock<'_, Self>, sums: &mut Sums<'_>);
    /// Calls the widening of the instruction set.
    fn run_widen(isa: Present, vector: &[Self], blocks: &mut [FloatBlock]);
}

/// Elements that every instruction set can load as i16.
pub(crate) trait ByteKernel: ByteElement {
    /// Calls the integer kernel of the instruction set.
    fn run_bytes(isa: Present, kind: SumKind, query: &[IntegerBlock], rows: &RowBlock<'_, Self>, sums: &mut Sums<'_>);
}

/// A bound "for every instruction set of this architecture" cannot be written once for all architectures, so the
/// call is repeated per element type.
macro_rules! float_kernel {
    ($element:ty) => {
        impl FloatKernel for $element {
            fn run(isa: Present, kind: SumKind, query: &[FloatBlock], rows: &RowBlock<'_, Self>, sums: &mut Sums<'_>) {
                call!(isa, float_sums(kind, query, rows, sums));
            }

            fn run_widen(isa: Present, vector: &[Self], blocks: &mut [FloatBlock]) {
                call!(isa, widen(vector, blocks));
            }
        }
    };
}

macro_rules! byte_kernel {
    ($element:ty) => {
        impl ByteKernel for $element {
            fn run_bytes(
                isa: Present,
                kind: SumKind,
                query: &[IntegerBlock],
                rows: &RowBlock<'_, Self>,
                sums: &mut Sums<'_>,
            ) {
                call!(isa, byte_sums(kind, query, rows, sums));
            }
        }
    };
}

float_kernel!(f32);
float_kernel!(f16);
float_kernel!(i8);
float_kernel!(u8);
byte_kernel!(i8);
byte_kernel!(u8);
