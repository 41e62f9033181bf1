//! How far apart are these vectors, and which `k` are nearest?
//!
//! Distances between vectors of f32, f16, i8, u8 and bits: one query against a block of rows ([`Query`]), a block
//! against a block ([`distance_matrix`]), row against row ([`pair_distances`]), and the `k` nearest ([`TopK`]).
//! Everything runs on AVX2, AVX-512 or NEON, chosen once at run time ([`isa()`]), or in plain Rust.
//!
//! Three promises:
//! - **One result.** The order of summation is fixed, so a distance has the same bits on every machine, in every block
//!   shape, and for either order of its arguments. Elements are widened to f64 and added up there, so a distance is
//!   as good as exact: this is what the engine's final distances are.
//! - **Smaller is closer**, for every [`Metric`].
//! - **No surprise.** Shapes that do not fit are a [`DistanceError`]; an undefined distance is NaN and never a neighbor.
//!
//! No Arrow, no files, no threads, no clock: the caller splits rows over threads and merges the [`TopK`]s.
//!
//! This is the one crate of the workspace with `unsafe` code: vector instructions need it.

mod beam;
mod codes;
mod compiled;
mod dispatch;
mod error;
mod fastscan;
mod gemm;
mod integer_gemm;
mod isa;
mod lanes;
mod list_codes;
mod matrix;
mod memory;
mod metric;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pairs;
mod prefetch;
mod product;
mod quantize;
mod query;
mod reference;
mod rotation;
mod rounding;
mod rows;
mod scan;
mod single;
#[cfg(test)]
mod testing;
mod tile;
mod top_k;
mod vectors;
mod visited;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use beam::Beam;
pub use codes::{BitQuery, CodeError, CodeLayout, CodeQuery};
pub use error::DistanceError;
pub use fastscan::{
    BLOCK_ROWS, Lut, SCAN_DIM_MULTIPLE, ScanBound, Survivors, block_bytes, pack_block, scan_blocks, unpack_factors,
    unpack_row,
};
pub use gemm::{PANEL, Panels};
pub use integer_gemm::BytePanels;
pub use isa::{ISA_VARIABLE, Isa, isa, isa_from_env};
pub use list_codes::{ByteQuery, byte_products, pack_planes, plane_product, plane_stride};
pub use matrix::{distance_matrix, pair_distances};
pub use memory::advise_large_pages;
pub use metric::Metric;
pub use pairs::{each_at_most, squared_distances};
pub use prefetch::prefetch;
pub use product::{Codewords, Lean, choose_codes, table_sum};
pub use quantize::{CodeSums, dot_f32, quantize};
pub use query::Query;
pub use rotation::{ROTATED_MULTIPLE, Rotation};
pub use rounding::{Centered, center, largest_magnitude, round_to_bytes, square_f64};
pub use single::{binary_quantize, first_non_finite, norm, normalize_f16, normalize_f32};
pub use top_k::{Neighbor, TopK};
pub use vectors::{ElementType, Vectors};
pub use visited::Visited;
