//! Which vertices of a graph a walk has seen: a bitmap, and the list of those marked in it.
//!
//! The walk itself is in the crate `ann`.

use crate::isa::{Isa, Present};
use crate::prefetch::prefetch_line;

/// The vertices seen by one walk, in the order in which they were seen.
///
/// Takes `n/8` bytes and 4 bytes per vertex seen. Emptied in time in proportion to what was seen.
#[derive(Clone, Debug)]
pub struct Visited {
    /// Bit `v % 32` of word `v / 32`.
    words: Vec<u32>,
    /// The first `count` are vertices seen; the rest is room for the next neighbors.
    seen: Vec<u32>,
    count: usize,
    vertices: usize,
    isa: Present,
}

impl Default for Visited {
    fn default() -> Self {
        Self { words: Vec::new(), seen: Vec::new(), count: 0, vertices: 0, isa: Present::chosen() }
    }
}

impl Visited {
    /// Over no vertices, on the instruction set that [`crate::isa()`] chose.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what was seen, for a walk over `vertices` vertices, numbered from 0.
    pub fn reset(&mut self, vertices: usize) {
        let words = vertices.div_ceil(32);
        if words != self.words.len() || self.count > words / 4 {
            self.words.clear();
            self.words.resize(words, 0);
        } else {
            for vertex in &self.seen[..self.count] {
                self.words[*vertex as usize / 32] = 0;
            }
        }
        (self.count, self.vertices) = (0, vertices);
    }

    /// How many vertices were seen.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The vertices seen, in order.
    pub fn seen(&self) -> &[u32] {
        &self.seen[..self.count]
    }

    /// Marks those of `neighbors` that are vertices and were not yet seen, and returns them, each once, in order.
    ///
    /// `neighbors`: little-endian u32, as stored; a part of one at the end is left out. `records`: what will be read of
    /// the vertices, `record_bytes` of each: it is prefetched.
    pub fn mark<'a>(&'a mut self, neighbors: &[u8], records: &[u8], record_bytes: usize) -> &'a [u32] {
        let start = self.count;
        let room = start + neighbors.len() / 4 + 16;
        if self.seen.len() < room {
            self.seen.resize(room.next_multiple_of(1024), 0);
        }
        let fetch = Fetch { records: records.as_ptr(), bytes: record_bytes };
        match self.isa.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine.
            Isa::Avx512 => unsafe { self.mark_avx512(neighbors, fetch) },
            _ => self.mark_portable(neighbors, fetch),
        }
        &self.seen[start..self.count]
    }

    /// The twin of the vector kernel, and its end where fewer than sixteen neighbors remain.
    fn mark_portable(&mut self, neighbors: &[u8], fetch: Fetch) {
        for vertex in neighbors.as_chunks::<4>().0 {
            self.mark_one(u32::from_le_bytes(*vertex), fetch);
        }
    }

    #[inline(always)]
    fn mark_one(&mut self, vertex: u32, fetch: Fetch) {
        let bit = 1 << (vertex % 32);
        if let (true, Some(word)) = ((vertex as usize) < self.vertices, self.words.get_mut(vertex as usize / 32)) {
            let is_new = *word & bit == 0;
            *word |= bit;
            // There is always room for one more: `mark` made it.
            self.seen[self.count] = vertex;
            self.count += usize::from(is_new);
            if is_new {
                fetch.ask(vertex);
            }
        }
    }

    /// Sixteen neighbors at a time: those whose bit is set, most of them, are passed over together.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    fn mark_avx512(&mut self, neighbors: &[u8], fetch: Fetch) {
        use std::arch::x86_64::*;
        let (blocks, rest) = neighbors.as_chunks::<64>();
        let end = _mm512_set1_epi32(self.vertices.min(i32::MAX as usize) as i32);
        for block in blocks {
            // SAFETY: a block has 64 bytes.
            let vertices = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
            let exist = _mm512_cmplt_epu32_mask(vertices, end);
            // SAFETY: only lanes of existing vertices are read, and those have a bit in `words` (`reset`).
            let words = unsafe {
                let index = _mm512_srli_epi32::<5>(vertices);
                _mm512_mask_i32gather_epi32::<4>(_mm512_setzero_si512(), exist, index, self.words.as_ptr().cast())
            };
            let bits = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_and_si512(vertices, _mm512_set1_epi32(31)));
            let unseen = _mm512_mask_testn_epi32_mask(exist, words, bits);
            let mut found = [0_u32; 16];
            // SAFETY: sixteen places.
            unsafe { _mm512_storeu_si512(found.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(unseen, vertices)) };
            for vertex in &found[..unseen.count_ones() as usize] {
                self.mark_one(*vertex, fetch);
            }
        }
        self.mark_portable(rest, fetch);
    }
}

/// What is prefetched of a vertex.
#[derive(Clone, Copy)]
struct Fetch {
    records: *const u8,
    bytes: usize,
}

impl Fetch {
    #[inline(always)]
    fn ask(self, vertex: u32) {
        let record = self.records.wrapping_add((vertex as usize).wrapping_mul(self.bytes));
        for line in (0..self.bytes).step_by(64).take(16) {
            prefetch_line(record.wrapping_add(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::testing::Random;

    #[test]
    fn every_instruction_set_marks_each_vertex_once_and_none_that_does_not_exist() {
        for isa in Isa::available().into_iter().filter_map(Isa::present) {
            let mut visited = Visited { isa, ..Visited::new() };
            for length in 0..=257 {
                let mut random = Random::new(length);
                let vertices = 1 + random.below(300);
                visited.reset(vertices);
                let mut expected = HashSet::new();
                for _ in 0..4 {
                    let row: Vec<u32> = (0..length)
                        .map(|_| [random.below(vertices) as u32, random.below(400) as u32, u32::MAX][random.below(3)])
                        .collect();
                    let bytes: Vec<u8> = row.iter().flat_map(|vertex| vertex.to_le_bytes()).collect();
                    let new: Vec<u32> =
                        row.into_iter().filter(|v| (*v as usize) < vertices && expected.insert(*v)).collect();
                    assert_eq!(visited.mark(&bytes, &[], 64), new, "{isa:?} length {length}");
                }
                assert_eq!(visited.count(), expected.len());
            }
        }
    }
}
