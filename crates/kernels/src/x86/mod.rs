//! The instruction sets of x86-64. What they must add up, and in which order, is said in `scan.rs`.

pub(crate) mod avx2;
pub(crate) mod avx512;
pub(crate) mod fastscan;
pub(crate) mod gemm;
pub(crate) mod list_codes;
