//! Dot products of many i8 rows with many u8 columns, blocked: projections, covariances, all pairs of a leaf.
//!
//! One vector against scattered codes is in `codes/`. Sums are whole numbers, so every instruction set gives the same.

use crate::isa::{Isa, Present};

/// Columns of a panel: the sums of one row with them are four AVX-512 registers.
const PANEL: usize = 64;
/// Elements that one step of the inner loop multiplies, per column.
const GROUP: usize = 4;
/// Columns of a line.
const LINE: usize = 16;
/// Rows that share the loads of a panel.
const TILE: usize = 6;
/// Longest vectors: beyond, a sum of 255 · 128 each could leave i32.
const DEPTH_MAX: usize = 1 << 16;

/// Four elements of sixteen columns.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Columns of u8 in the order in which the kernels read them: by 64 columns, then by 4 elements.
///
/// Takes `64·ceil(columns/64) · 4·ceil(depth/4)` bytes; packing again reuses them.
#[derive(Clone, Debug)]
pub struct BytePanels {
    lines: Vec<Line>,
    depth: usize,
    columns: usize,
    isa: Present,
}

impl Default for BytePanels {
    fn default() -> Self {
        Self { lines: Vec::new(), depth: 0, columns: 0, isa: Present::chosen() }
    }
}

impl BytePanels {
    /// No column yet, on the instruction set that [`crate::isa()`] chose.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the columns: `columns` of them, each of `depth` elements, of which `fill` writes those of one column.
    ///
    /// `depth`: at most 65,536; what is beyond is left out.
    pub fn pack(&mut self, depth: usize, columns: usize, mut fill: impl FnMut(usize, &mut [u8])) {
        let depth = depth.min(DEPTH_MAX);
        let groups = depth.div_ceil(GROUP);
        self.lines.clear();
        self.lines.resize(columns.div_ceil(PANEL) * groups * (PANEL / LINE), Line([0; 64]));
        (self.depth, self.columns) = (depth, columns);
        let mut column = vec![0_u8; groups * GROUP];
        for index in 0..columns {
            fill(index, &mut column[..depth]);
            let first = index / PANEL * groups * (PANEL / LINE) + index % PANEL / LINE;
            let at = index % LINE * GROUP;
            let lines = self.lines[first..].iter_mut().step_by(PANEL / LINE);
            for (group, line) in column.chunks_exact(GROUP).zip(lines) {
                line.0[at..at + GROUP].copy_from_slice(group);
            }
        }
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Elements of a column.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Places of `sums` that one row takes: the columns, filled up to a whole panel.
    pub fn stride(&self) -> usize {
        self.columns.div_ceil(PANEL) * PANEL
    }

    /// Places of `rows` that one row takes: the depth, filled up to whole groups. What fills it up must be zero.
    pub fn row_stride(&self) -> usize {
        self.depth.div_ceil(GROUP) * GROUP
    }

    /// Writes the dot products of every row with every column.
    ///
    /// `rows`: rows of [`row_stride`](Self::row_stride) values. `sums`: [`stride`](Self::stride) places per row, of
    /// which those beyond the columns become 0; whole rows only, as many as both have. Cost: `rows · columns
    /// · depth` multiplications, 64 per cycle with VNNI.
    pub fn dots(&self, rows: &[i8], sums: &mut [i32]) {
        let (row_stride, stride) = (self.row_stride(), self.stride());
        if row_stride == 0 || stride == 0 {
            sums.fill(0);
            return;
        }
        let count = (rows.len() / row_stride).min(sums.len() / stride);
        let (rows, sums) = (&rows[..count * row_stride], &mut sums[..count * stride]);
        match self.isa.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine.
            Isa::Avx512 => unsafe { x86::dots_avx512(self, rows, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { x86::dots_avx2(self, rows, sums) },
            _ => dots_portable(self, rows, sums),
        }
    }

    fn groups(&self) -> usize {
        self.depth.div_ceil(GROUP)
    }

    /// The lines of a panel, four per group.
    fn panel(&self, index: usize) -> &[Line] {
        let lines = self.groups() * (PANEL / LINE);
        &self.lines[index * lines..][..lines]
    }
}

/// The twin of the vector kernels, for every machine.
fn dots_portable(panels: &BytePanels, rows: &[i8], sums: &mut [i32]) {
    let (row_stride, stride) = (panels.row_stride(), panels.stride());
    for panel in 0..stride / PANEL {
        let lines = panels.panel(panel);
        for (row, sums) in rows.chunks_exact(row_stride).zip(sums.chunks_exact_mut(stride)) {
            let mut totals = [0_i32; PANEL];
            for (group, lines) in row.chunks_exact(GROUP).zip(lines.chunks_exact(PANEL / LINE)) {
                for (line, totals) in lines.iter().zip(totals.chunks_exact_mut(LINE)) {
                    for (column, total) in line.0.chunks_exact(GROUP).zip(totals) {
                        let product = |i: usize| i32::from(column[i]) * i32::from(group[i]);
                        *total += product(0) + product(1) + product(2) + product(3);
                    }
                }
            }
            sums[panel * PANEL..][..PANEL].copy_from_slice(&totals);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BytePanels, GROUP, LINE, Line, PANEL, TILE};

    /// VNNI: one instruction adds four products to each of sixteen sums.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn dots_avx512(panels: &BytePanels, rows: &[i8], sums: &mut [i32]) {
        let (row_stride, stride) = (panels.row_stride(), panels.stride());
        for panel in 0..stride / PANEL {
            let lines = panels.panel(panel);
            let mut rest = (rows, &mut *sums);
            while rest.0.len() >= TILE * row_stride {
                let (rows, sums) = rest;
                tile_avx512::<TILE>(lines, &rows[..TILE * row_stride], row_stride, &mut sums[panel * PANEL..], stride);
                rest = (&rows[TILE * row_stride..], &mut sums[TILE * stride..]);
            }
            for (row, sums) in rest.0.chunks_exact(row_stride).zip(rest.1.chunks_exact_mut(stride)) {
                tile_avx512::<1>(lines, row, row_stride, &mut sums[panel * PANEL..], stride);
            }
        }
    }

    /// The sums of `T` rows with one panel, at the beginning of each stride of `sums`.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    fn tile_avx512<const T: usize>(lines: &[Line], rows: &[i8], row_stride: usize, sums: &mut [i32], stride: usize) {
        let mut totals = [[_mm512_setzero_si512(); PANEL / LINE]; T];
        assert!(rows.len() >= T * row_stride && row_stride / GROUP * (PANEL / LINE) <= lines.len());
        for group in 0..row_stride / GROUP {
            // SAFETY: the assertion above: group · 4 + 3 is a line.
            let columns: [__m512i; PANEL / LINE] = std::array::from_fn(|i| unsafe {
                _mm512_load_si512(lines.as_ptr().add(group * (PANEL / LINE) + i).cast())
            });
            for (row, totals) in totals.iter_mut().enumerate() {
                // SAFETY: the assertion above: four values of this row, group · 4 + 3 < row_stride.
                let four =
                    unsafe { rows.as_ptr().add(row * row_stride + group * GROUP).cast::<i32>().read_unaligned() };
                let four = _mm512_set1_epi32(four);
                for (total, columns) in totals.iter_mut().zip(columns) {
                    *total = _mm512_dpbusd_epi32(*total, columns, four);
                }
            }
        }
        for (totals, sums) in totals.iter().zip(sums.chunks_mut(stride)) {
            for (total, sums) in totals.iter().zip(sums[..PANEL].chunks_exact_mut(LINE)) {
                // SAFETY: a chunk has sixteen places.
                unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), *total) };
            }
        }
    }

    /// Bytes widened to i16, even and odd ones apart, since `vpmaddubsw` would saturate.
    #[target_feature(enable = "avx2")]
    pub(super) fn dots_avx2(panels: &BytePanels, rows: &[i8], sums: &mut [i32]) {
        let (row_stride, stride) = (panels.row_stride(), panels.stride());
        for panel in 0..stride / PANEL {
            let lines = panels.panel(panel);
            for (row, sums) in rows.chunks_exact(row_stride).zip(sums.chunks_exact_mut(stride)) {
                row_avx2(lines, row, &mut sums[panel * PANEL..][..PANEL]);
            }
        }
    }

    /// The sums of one row with one panel.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn row_avx2(lines: &[Line], row: &[i8], sums: &mut [i32]) {
        let mut totals = [_mm256_setzero_si256(); PANEL / 8];
        let low = _mm256_set1_epi16(255);
        for (group, lines) in row.chunks_exact(GROUP).zip(lines.chunks_exact(PANEL / LINE)) {
            let four =
                _mm256_set1_epi32(i32::from_le_bytes([group[0] as u8, group[1] as u8, group[2] as u8, group[3] as u8]));
            let (even, odd) = (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(four)), _mm256_srai_epi16::<8>(four));
            for (half, total) in totals.iter_mut().enumerate() {
                // SAFETY: half a line of 64 bytes; there are four lines and eight halves.
                let columns = unsafe { _mm256_load_si256(lines[half / 2].0.as_ptr().add(half % 2 * 32).cast()) };
                let evens = _mm256_madd_epi16(_mm256_and_si256(columns, low), even);
                let odds = _mm256_madd_epi16(_mm256_srli_epi16::<8>(columns), odd);
                *total = _mm256_add_epi32(*total, _mm256_add_epi32(evens, odds));
            }
        }
        for (total, sums) in totals.iter().zip(sums.chunks_exact_mut(8)) {
            // SAFETY: a chunk has eight places.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), *total) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Every product by its definition.
    fn check(isa: Present, depth: usize, rows: usize, columns: usize) {
        let mut random = Random::new((depth * 1000 + columns) as u64);
        let matrix: Vec<u8> = (0..depth * columns).map(|_| [0, 255, random.next() as u8][random.below(3)]).collect();
        let mut panels = BytePanels { isa, ..BytePanels::new() };
        panels.pack(depth, columns, |column, place| place.copy_from_slice(&matrix[column * depth..][..depth]));
        let mut asked = vec![0_i8; rows * panels.row_stride()];
        for row in asked.chunks_exact_mut(panels.row_stride()) {
            row[..depth].fill_with(|| [-128, 127, random.next() as i8][random.below(3)]);
        }
        let mut sums = vec![-1; rows * panels.stride()];
        panels.dots(&asked, &mut sums);
        for (row, sums) in asked.chunks_exact(panels.row_stride()).zip(sums.chunks_exact(panels.stride())) {
            for (column, sum) in sums.iter().enumerate() {
                let column = matrix.get(column * depth..(column + 1) * depth).unwrap_or_default();
                let expected: i32 = row.iter().zip(column).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                assert_eq!(*sum, expected, "{isa:?} depth {depth} rows {rows} columns {columns}");
            }
        }
    }

    #[test]
    fn every_instruction_set_multiplies_every_shape() {
        for isa in Isa::available().into_iter().filter_map(Isa::present) {
            (1..=257).for_each(|depth| check(isa, depth, 1 + depth % 3, 17));
            (1..=130).for_each(|columns| check(isa, 12, 13, columns));
        }
    }

    #[test]
    fn nothing_times_nothing_is_nothing() {
        let mut panels = BytePanels::new();
        panels.pack(0, 3, |_, _| ());
        let mut sums = [7; 4];
        panels.dots(&[], &mut sums);
        assert_eq!(sums, [0; 4]);
    }
}
