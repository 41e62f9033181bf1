//! Inner products of many vectors of f32 with many: the tile of a matrix product, and the nearest of a set of centroids.
//!
//! Working arithmetic for clustering and assigning, in f32. Distances that anyone sees are in f64, in `scan.rs`.
//! **The order of summation**: each product sum is one chain of fused multiply-adds in ascending order of the elements, so
//! it has the same bits on every instruction set and in every shape of tile.

use crate::isa::{Isa, Present};

/// Vectors whose products are computed side by side.
pub const PANEL: usize = 16;

/// A set of vectors, laid out for products with many others.
///
/// Panels of 16 vectors: all their first elements, then all their second ones. Past the last vector stand zeros.
#[derive(Clone, Debug)]
pub struct Panels {
    dim: usize,
    len: usize,
    values: Vec<f32>,
}

impl Panels {
    /// `vectors`: row-major, whole vectors of `dim` elements; what is left over is not seen.
    pub fn new(dim: usize, vectors: &[f32]) -> Panels {
        let len = vectors.len() / dim.max(1);
        let mut values = vec![0.0; len.next_multiple_of(PANEL) * dim];
        for (index, vector) in vectors.chunks_exact(dim.max(1)).enumerate() {
            let panel = &mut values[index / PANEL * PANEL * dim..];
            for (place, value) in panel.iter_mut().skip(index % PANEL).step_by(PANEL).zip(vector) {
                *place = *value;
            }
        }
        Panels { dim, len, values }
    }

    /// Elements of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Places that [`Panels::products`] writes for one vector: [`Panels::len`], rounded up to a multiple of 16.
    pub fn stride(&self) -> usize {
        self.len.next_multiple_of(PANEL)
    }

    /// Inner products of every vector of `left` (row-major) with every vector here: `out[l · stride + i]`.
    ///
    /// Past the last vector of a panel stand zeros. Cost: `left · stride · dim` fused multiply-adds.
    ///
    /// # Panics
    /// If `left` is not made of whole vectors, or `out` has another length than `stride` per vector.
    pub fn products(&self, left: &[f32], out: &mut [f32]) {
        self.products_on(Present::chosen(), left, out);
    }

    fn products_on(&self, isa: Present, left: &[f32], out: &mut [f32]) {
        if self.dim == 0 || self.len == 0 {
            return;
        }
        assert!(left.len().is_multiple_of(self.dim), "whole vectors");
        assert_eq!(out.len(), left.len() / self.dim * self.stride(), "a place per product");
        match isa.isa() {
            // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine; lengths are checked above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { crate::x86::gemm::products_avx2(self, left, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { crate::x86::gemm::products_avx512(self, left, out) },
            // SAFETY: plain arrays need no instruction set; lengths are checked above.
            _ => unsafe { products::<[f32; PANEL], 4>(self, left, out) },
        }
    }

    /// For every vector of `left`, the vector `i` here with the smallest `bias[i] - product`, the first of equals, and that
    /// value. With half the squared lengths as `bias` it is the nearest one by L2.
    ///
    /// `bias`: one per vector here. `out`: one per vector of `left`. Where no value compares (NaN), vector 0 and infinity.
    ///
    /// # Panics
    /// As [`Panels::products`], or if there is no vector here.
    pub fn nearest(&self, bias: &[f32], left: &[f32], out: &mut [(u32, f32)]) {
        assert!(!self.is_empty() && bias.len() == self.len, "a bias per vector");
        let isa = Present::chosen();
        let stride = self.stride();
        let mut padded = vec![f32::INFINITY; stride];
        padded[..self.len].copy_from_slice(bias);
        let mut products = vec![0.0; LEFT_AT_ONCE * stride];
        for (left, out) in left.chunks(LEFT_AT_ONCE * self.dim).zip(out.chunks_mut(LEFT_AT_ONCE)) {
            let products = &mut products[..out.len() * stride];
            self.products_on(isa, left, products);
            for (products, out) in products.chunks_exact(stride).zip(out) {
                *out = smallest_difference(isa, &padded, products);
            }
        }
    }
}

/// Vectors whose products with all others are held at a time.
const LEFT_AT_ONCE: usize = 48;

crate::compiled::compiled_for_each! {
    fn smallest_difference(bias: &[f32], products: &[f32]) -> (u32, f32) = smallest_difference_plain
}

#[inline(always)]
fn smallest_difference_plain(bias: &[f32], products: &[f32]) -> (u32, f32) {
    let (mut best, mut best_block) = ([f32::INFINITY; PANEL], [0_u32; PANEL]);
    let (bias, products) = (bias.as_chunks::<PANEL>().0, products.as_chunks::<PANEL>().0);
    for ((block, bias), products) in (0_u32..).zip(bias).zip(products) {
        for lane in 0..PANEL {
            let value = bias[lane] - products[lane];
            let nearer = value < best[lane];
            best[lane] = if nearer { value } else { best[lane] };
            best_block[lane] = if nearer { block } else { best_block[lane] };
        }
    }
    let mut nearest = (0, f32::INFINITY);
    for (lane, (value, block)) in (0_u32..).zip(best.into_iter().zip(best_block)) {
        let index = block * PANEL as u32 + lane;
        if value < nearest.1 || value == nearest.1 && value.is_finite() && index < nearest.0 {
            nearest = (index, value);
        }
    }
    nearest
}

/// Sixteen f32 side by side.
pub(crate) trait Columns: Copy {
    /// Zeros.
    ///
    /// # Safety
    /// The processor has the instruction set, here and below; pointers hold sixteen values.
    unsafe fn zero() -> Self;
    /// # Safety
    /// As [`Columns::zero`].
    unsafe fn load(values: *const f32) -> Self;
    /// # Safety
    /// As [`Columns::zero`].
    unsafe fn store(self, values: *mut f32);
    /// `self + a · b`, fused.
    ///
    /// # Safety
    /// As [`Columns::zero`].
    unsafe fn plus_product(self, a: f32, b: Self) -> Self;
}

impl Columns for [f32; PANEL] {
    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; PANEL]
    }

    #[inline(always)]
    unsafe fn load(values: *const f32) -> Self {
        // SAFETY: the contract of `Columns`; an array of f32 needs the alignment of f32 only.
        unsafe { values.cast::<[f32; PANEL]>().read() }
    }

    #[inline(always)]
    unsafe fn store(self, values: *mut f32) {
        // SAFETY: as `load`.
        unsafe { values.cast::<[f32; PANEL]>().write(self) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: f32, b: Self) -> Self {
        std::array::from_fn(|i| a.mul_add(b[i], self[i]))
    }
}

/// Every product, in tiles of `R` vectors of `left` by one panel.
///
/// # Safety
/// The processor has the instruction set of `C`. `left` holds whole vectors, `out` `stride` places for each.
#[inline(always)]
pub(crate) unsafe fn products<C: Columns, const R: usize>(panels: &Panels, left: &[f32], out: &mut [f32]) {
    let (dim, stride) = (panels.dim, panels.stride());
    let whole = left.len() / dim / R * R;
    let (left_tiles, left_rest) = left.split_at(whole * dim);
    let (out_tiles, out_rest) = out.split_at_mut(whole * stride);
    for (left, out) in left_tiles.chunks_exact(R * dim).zip(out_tiles.chunks_exact_mut(R * stride)) {
        // SAFETY: `R` vectors, and their places.
        unsafe { row_of_tiles::<C, R>(panels, left, out) };
    }
    for (left, out) in left_rest.chunks_exact(dim).zip(out_rest.chunks_exact_mut(stride)) {
        // SAFETY: one vector, and its places.
        unsafe { row_of_tiles::<C, 1>(panels, left, out) };
    }
}

/// # Safety
/// As [`products`], with exactly `R` vectors in `left`.
#[inline(always)]
unsafe fn row_of_tiles<C: Columns, const R: usize>(panels: &Panels, left: &[f32], out: &mut [f32]) {
    let (dim, stride) = (panels.dim, panels.stride());
    debug_assert!(left.len() == R * dim && out.len() == R * stride);
    for (index, panel) in panels.values.chunks_exact(PANEL * dim).enumerate() {
        // SAFETY: the caller vouches for the instruction set. `panel` holds 16 values per element, `left` `dim` elements for each
        // of `R` vectors, and `out` `stride` places for each of them, of which panel `index` has the 16 at `index · 16`.
        unsafe {
            let mut sums = [C::zero(); R];
            for element in 0..dim {
                let columns = C::load(panel.as_ptr().add(element * PANEL));
                for (row, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.plus_product(*left.get_unchecked(row * dim + element), columns);
                }
            }
            for (row, sum) in sums.into_iter().enumerate() {
                sum.store(out.as_mut_ptr().add(row * stride + index * PANEL));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn every_instruction_set_gives_the_chain_of_multiply_adds() {
        let mut random = Random::new(3);
        for dim in 1..=65 {
            let (rows, left_rows) = (1 + dim % 37, 1 + dim * 7 % 29);
            let rows: Vec<f32> = (0..rows * dim).map(|_| random.float()).collect();
            let left: Vec<f32> = (0..left_rows * dim).map(|_| random.float()).collect();
            let panels = Panels::new(dim, &rows);
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; left_rows * panels.stride()];
                panels.products_on(isa.present().unwrap(), &left, &mut out);
                for (l, left) in left.chunks(dim).enumerate() {
                    for (r, row) in rows.chunks(dim).enumerate() {
                        let sum = left.iter().zip(row).fold(0.0_f32, |sum, (a, b)| a.mul_add(*b, sum));
                        assert_eq!(out[l * panels.stride() + r].to_bits(), sum.to_bits(), "{isa} {dim}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_nearest_is_the_first_of_the_smallest() {
        let rows = [0.0_f32, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 2.0];
        let panels = Panels::new(2, &rows);
        let bias: Vec<f32> = rows.chunks(2).map(|v| (v[0] * v[0] + v[1] * v[1]) / 2.0).collect();
        let mut out = vec![(9, 0.0); 4];
        panels.nearest(&bias, &[0.9, 0.1, 0.1, 0.1, 0.0, 1.9, f32::NAN, 0.0], &mut out);
        assert_eq!(out.iter().map(|o| o.0).collect::<Vec<_>>(), [1, 0, 3, 0]);
    }
}
