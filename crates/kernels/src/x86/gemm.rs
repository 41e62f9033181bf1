//! Sixteen f32 in registers, for the matrix product in `gemm.rs`.

use std::arch::x86_64::*;

use crate::gemm::{Columns, Panels, products};

/// Two registers of eight.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Columns(__m256, __m256);

// Every method relies on the contract of the trait: the caller vouches for the instruction set, and for pointers.
impl Columns for Avx2Columns {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `Columns`.
        unsafe { Avx2Columns(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn load(values: *const f32) -> Self {
        // SAFETY: the contract of `Columns`: sixteen values.
        unsafe { Avx2Columns(_mm256_loadu_ps(values), _mm256_loadu_ps(values.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, values: *mut f32) {
        // SAFETY: the contract of `Columns`: sixteen values.
        unsafe {
            _mm256_storeu_ps(values, self.0);
            _mm256_storeu_ps(values.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: f32, b: Self) -> Self {
        // SAFETY: the contract of `Columns`.
        unsafe {
            let a = _mm256_set1_ps(a);
            Avx2Columns(_mm256_fmadd_ps(a, b.0, self.0), _mm256_fmadd_ps(a, b.1, self.1))
        }
    }
}

/// One register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Columns(__m512);

impl Columns for Avx512Columns {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the contract of `Columns`.
        unsafe { Avx512Columns(_mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn load(values: *const f32) -> Self {
        // SAFETY: the contract of `Columns`: sixteen values.
        unsafe { Avx512Columns(_mm512_loadu_ps(values)) }
    }

    #[inline(always)]
    unsafe fn store(self, values: *mut f32) {
        // SAFETY: the contract of `Columns`: sixteen values.
        unsafe { _mm512_storeu_ps(values, self.0) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: f32, b: Self) -> Self {
        // SAFETY: the contract of `Columns`.
        unsafe { Avx512Columns(_mm512_fmadd_ps(_mm512_set1_ps(a), b.0, self.0)) }
    }
}

/// `gemm::products` with AVX2: twelve sums, one panel and one element fill the sixteen registers.
///
/// # Safety
/// As [`products`].
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) unsafe fn products_avx2(panels: &Panels, left: &[f32], out: &mut [f32]) {
    // SAFETY: this function has the target features; the caller vouches for the rest.
    unsafe { products::<Avx2Columns, 6>(panels, left, out) }
}

/// `gemm::products` with AVX-512.
///
/// # Safety
/// As [`products`].
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) unsafe fn products_avx512(panels: &Panels, left: &[f32], out: &mut [f32]) {
    // SAFETY: this function has the target features; the caller vouches for the rest.
    unsafe { products::<Avx512Columns, 16>(panels, left, out) }
}
