//! The nearest vertices that a walk over a graph has met, sorted, with those marked that it has visited.
//!
//! Sorted arrays in blocks of sixteen: one insertion is a few instructions per block, and the nearest vertex not yet
//! visited is found without a heap. Made for up to some thousand places.

use crate::isa::{Isa, Present};

/// Places of a block.
const BLOCK: usize = 16;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Distances([f32; BLOCK]);

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Vertices([u32; BLOCK]);

/// At most `capacity` vertices, nearest first; of equally near ones, the one inserted first.
///
/// Cost of an insertion: `capacity/16` steps at most, no allocation.
#[derive(Clone, Debug)]
pub struct Beam {
    distances: Vec<Distances>,
    vertices: Vec<Vertices>,
    /// Of each block the places, as bits, whose vertex is not yet visited. Those from `len` on say nothing.
    unvisited: Vec<u16>,
    capacity: usize,
    len: usize,
    /// No block before this one has an unvisited vertex.
    cursor: usize,
    isa: Present,
}

impl Default for Beam {
    fn default() -> Self {
        let (distances, vertices, unvisited) = (Vec::new(), Vec::new(), Vec::new());
        Self { distances, vertices, unvisited, capacity: 0, len: 0, cursor: 0, isa: Present::chosen() }
    }
}

impl Beam {
    /// Without a place, on the instruction set that [`crate::isa()`] chose.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties it, and gives it `capacity` places, at least one.
    pub fn reset(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
        // One place more than there are, so that the block behind the last is never asked for.
        let blocks = self.capacity / BLOCK + 1;
        self.distances.clear();
        self.distances.resize(blocks, Distances([f32::INFINITY; BLOCK]));
        self.vertices.clear();
        self.vertices.resize(blocks, Vertices([0; BLOCK]));
        self.unvisited.clear();
        self.unvisited.resize(blocks, 0);
        (self.len, self.cursor) = (0, 0);
    }

    /// Vertices held.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The distance of the vertex at a place, counted from 0 for the nearest; infinity where there is none.
    #[inline]
    pub fn distance(&self, place: usize) -> f32 {
        if place < self.len { self.distances[place / BLOCK].0[place % BLOCK] } else { f32::INFINITY }
    }

    /// The vertex at a place, if there is one.
    #[inline]
    pub fn vertex(&self, place: usize) -> Option<u32> {
        (place < self.len).then(|| self.vertices[place / BLOCK].0[place % BLOCK])
    }

    /// What is held, nearest first: (distance, vertex).
    pub fn iter(&self) -> impl Iterator<Item = (f32, u32)> + '_ {
        (0..self.len).map(|place| {
            let (block, lane) = (place / BLOCK, place % BLOCK);
            (self.distances[block].0[lane], self.vertices[block].0[lane])
        })
    }

    /// A vertex at this distance or beyond cannot enter.
    #[inline]
    pub fn threshold(&self) -> f32 {
        if self.len < self.capacity { f32::INFINITY } else { self.distance(self.capacity - 1) }
    }

    /// The nearest vertex not yet visited, and its distance.
    #[inline]
    pub fn nearest_unvisited(&mut self) -> Option<(f32, u32)> {
        let place = self.unvisited_place()?;
        Some((self.distances[place / BLOCK].0[place % BLOCK], self.vertices[place / BLOCK].0[place % BLOCK]))
    }

    /// The nearest `N` vertices not yet visited, as far as there are so many.
    #[inline]
    pub fn unvisited<const N: usize>(&mut self) -> [Option<u32>; N] {
        let mut found = [None; N];
        let Some(first) = self.unvisited_place() else { return found };
        let (mut block, mut count) = (first / BLOCK, 0);
        let mut marks = self.marks(block);
        while count < N {
            if marks == 0 {
                block += 1;
                if block * BLOCK >= self.len {
                    break;
                }
                marks = self.marks(block);
                continue;
            }
            found[count] = Some(self.vertices[block].0[marks.trailing_zeros() as usize]);
            marks &= marks - 1;
            count += 1;
        }
        found
    }

    /// Marks the vertex that [`nearest_unvisited`](Self::nearest_unvisited) returned.
    #[inline]
    pub fn visit_nearest(&mut self) {
        if let Some(place) = self.unvisited_place() {
            self.unvisited[place / BLOCK] &= !(1 << (place % BLOCK));
        }
    }

    #[inline]
    fn unvisited_place(&mut self) -> Option<usize> {
        while self.cursor * BLOCK < self.len {
            let unvisited = self.marks(self.cursor);
            if unvisited != 0 {
                return Some(self.cursor * BLOCK + unvisited.trailing_zeros() as usize);
            }
            self.cursor += 1;
        }
        None
    }

    /// The places of a block, which must begin before `len`, whose vertices are not visited.
    #[inline(always)]
    fn marks(&self, block: usize) -> u16 {
        let held = self.len - block * BLOCK;
        self.unvisited[block] & if held < BLOCK { (1 << held) - 1 } else { u16::MAX }
    }

    /// Inserts each of `vertices` whose distance is below `limit` and below that of the last place. NaN is not below anything.
    pub fn insert_all(&mut self, distances: &[f32], vertices: &[u32], limit: f32) {
        match self.isa.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine.
            Isa::Avx512 => unsafe { self.insert_all_avx512(distances, vertices, limit) },
            _ => self.insert_all_portable(distances, vertices, limit),
        }
    }

    /// The twin of the vector kernel.
    fn insert_all_portable(&mut self, distances: &[f32], vertices: &[u32], limit: f32) {
        let mut limit = limit.min(self.threshold());
        for (distance, vertex) in distances.iter().zip(vertices) {
            if *distance < limit {
                self.insert_portable(*distance, *vertex);
                limit = limit.min(self.threshold());
            }
        }
    }

    /// Moves places one on, from the back, until the place of `distance` is free.
    fn insert_portable(&mut self, distance: f32, vertex: u32) {
        self.len = self.capacity.min(self.len + 1);
        let mut place = self.len - 1;
        while place > 0 {
            let (from, lane) = ((place - 1) / BLOCK, (place - 1) % BLOCK);
            if self.distances[from].0[lane] <= distance {
                break;
            }
            self.distances[place / BLOCK].0[place % BLOCK] = self.distances[from].0[lane];
            self.vertices[place / BLOCK].0[place % BLOCK] = self.vertices[from].0[lane];
            place -= 1;
        }
        self.distances[place / BLOCK].0[place % BLOCK] = distance;
        self.vertices[place / BLOCK].0[place % BLOCK] = vertex;
        self.open(place);
    }

    /// Moves the marks from `place` on one on, and marks it as unvisited.
    #[inline(always)]
    fn open(&mut self, place: usize) {
        let block = place / BLOCK;
        self.cursor = self.cursor.min(block);
        let mut before = (1_u16 << (place % BLOCK)) - 1;
        let mut carried = 1 << (place % BLOCK);
        for marks in &mut self.unvisited[block..=(self.len - 1) / BLOCK] {
            let moved = *marks & !before;
            *marks = *marks & before | moved << 1 | carried;
            (before, carried) = (0, moved >> (BLOCK - 1));
        }
    }

    /// Compares sixteen distances at a time with the limit; few pass.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    fn insert_all_avx512(&mut self, distances: &[f32], vertices: &[u32], limit: f32) {
        use std::arch::x86_64::*;
        let mut limit = limit.min(self.threshold());
        for (distances, vertices) in distances.chunks(BLOCK).zip(vertices.chunks(BLOCK)) {
            let count = distances.len().min(vertices.len());
            let present = u16::MAX >> (BLOCK - count);
            // SAFETY: only the lanes that are there are read.
            let lanes = unsafe { _mm512_maskz_loadu_ps(present, distances.as_ptr()) };
            let mut below = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(present, lanes, _mm512_set1_ps(limit));
            while below != 0 {
                let lane = below.trailing_zeros() as usize;
                below &= below - 1;
                if distances[lane] < limit {
                    self.insert_avx512(distances[lane], vertices[lane]);
                    limit = limit.min(self.threshold());
                }
            }
        }
    }

    /// Finds the block by comparing sixteen places at once, and shifts whole registers from there on.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    #[inline]
    fn insert_avx512(&mut self, distance: f32, vertex: u32) {
        use std::arch::x86_64::*;
        self.len = self.capacity.min(self.len + 1);
        let last = (self.len - 1) / BLOCK;
        let new = _mm512_set1_ps(distance);
        let mut block = 0;
        // SAFETY: here and below a block has 64 bytes and is aligned to them.
        let load = |values: &Distances| unsafe { _mm512_load_ps(values.0.as_ptr()) };
        let mut farther = 0;
        while block <= last {
            farther = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(load(&self.distances[block]), new);
            if farther != 0 {
                break;
            }
            block += 1;
        }
        if farther == 0 {
            // Only infinity is as far as the free places: nothing to sort by.
            return self.insert_portable(distance, vertex);
        }
        let lane = farther.trailing_zeros() as usize;
        let place = block * BLOCK + lane;
        self.open(place);
        let (mut carried_distance, mut carried_vertex) = (distance, vertex);
        let mut from = 1_u16 << lane;
        for block in block..=last {
            let (distances, vertices) = (&mut self.distances[block], &mut self.vertices[block]);
            let (last_distance, last_vertex) = (distances.0[BLOCK - 1], vertices.0[BLOCK - 1]);
            // Lanes from `from` on move one on; lanes before stay; lane `from` takes what is carried.
            let moved = !(from - 1);
            // SAFETY: as above.
            unsafe {
                let d = _mm512_load_si512(distances.0.as_ptr().cast());
                let v = _mm512_load_si512(vertices.0.as_ptr().cast());
                let d = _mm512_mask_alignr_epi32::<15>(d, moved, d, d);
                let v = _mm512_mask_alignr_epi32::<15>(v, moved, v, v);
                let d = _mm512_mask_set1_epi32(d, from, carried_distance.to_bits() as i32);
                let v = _mm512_mask_set1_epi32(v, from, carried_vertex as i32);
                _mm512_store_si512(distances.0.as_mut_ptr().cast(), d);
                _mm512_store_si512(vertices.0.as_mut_ptr().cast(), v);
            }
            (carried_distance, carried_vertex) = (last_distance, last_vertex);
            from = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Against a plain sorted list, with visits in between.
    fn check(isa: Present, capacity: usize, rounds: usize) {
        let mut random = Random::new(capacity as u64);
        let mut beam = Beam { isa, ..Beam::new() };
        beam.reset(capacity);
        let mut expected: Vec<(f32, u32, bool)> = Vec::new();
        for round in 0..rounds {
            let count = random.below(40);
            let distances: Vec<f32> =
                (0..count).map(|_| [random.below(50) as f32, random.float(), f32::NAN][random.below(3)]).collect();
            let vertices: Vec<u32> = (0..count).map(|i| (round * 64 + i) as u32).collect();
            let limit = if round % 3 == 0 { 20.0 } else { f32::INFINITY };
            for (distance, vertex) in distances.iter().zip(&vertices) {
                let full = expected.len() == capacity;
                if *distance < limit && !(full && *distance >= expected[capacity - 1].0) {
                    let place = expected.partition_point(|(held, ..)| held <= distance);
                    expected.insert(place, (*distance, *vertex, false));
                    expected.truncate(capacity);
                }
            }
            beam.insert_all(&distances, &vertices, limit);
            let nearest = expected.iter_mut().find(|(.., visited)| !visited);
            assert_eq!(beam.nearest_unvisited(), nearest.as_ref().map(|(distance, vertex, _)| (*distance, *vertex)));
            let unvisited: Vec<u32> =
                expected.iter().filter(|(.., visited)| !visited).map(|(_, vertex, _)| *vertex).collect();
            let found: Vec<u32> = beam.unvisited::<20>().into_iter().flatten().collect();
            assert_eq!(found, unvisited[..unvisited.len().min(20)]);
            let nearest = expected.iter_mut().find(|(.., visited)| !visited);
            if let Some((.., visited)) = nearest {
                *visited = true;
                beam.visit_nearest();
            }
            let held: Vec<_> = expected.iter().map(|(distance, vertex, _)| (*distance, *vertex)).collect();
            assert_eq!(beam.iter().collect::<Vec<_>>(), held, "{isa:?} capacity {capacity}");
            assert_eq!(beam.vertex(expected.len()), None);
        }
    }

    #[test]
    fn every_instruction_set_keeps_the_nearest_in_order() {
        for isa in Isa::available().into_iter().filter_map(Isa::present) {
            (1..=257).for_each(|capacity| check(isa, capacity, 20));
        }
    }
}
