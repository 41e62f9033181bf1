//! The k nearest of a stream of (distance, row), in bounded memory.
//!
//! Knows nothing of vectors: `query.rs` feeds it.

use std::cmp::Ordering;

/// Places that are reserved at once; a larger k grows as it fills, so that a huge LIMIT costs nothing up front.
const RESERVED_MAX: usize = 1024;

/// A row and how far away it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    /// The distance; smaller is closer.
    pub distance: f64,
    /// The row, numbered as the caller of the scan said.
    pub row: u64,
}

/// Collects the `k` nearest neighbors: by distance, then by row number.
///
/// The answer does not depend on the order of pushes, nor on how they were split over several `TopK`s that are merged.
/// Cost of a push: one comparison if the neighbor is too far, O(log k) if not. Memory: at most `k` neighbors.
#[derive(Clone, Debug)]
pub struct TopK {
    k: usize,
    /// In any order while there are fewer than `k`; from then on a heap with the worst neighbor at index 0.
    neighbors: Vec<Neighbor>,
}

impl TopK {
    /// An empty collection of at most `k` neighbors. `k` = 0 collects nothing.
    pub fn new(k: usize) -> TopK {
        TopK { k, neighbors: Vec::with_capacity(k.min(RESERVED_MAX)) }
    }

    /// The largest number of neighbors that it will hold.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Neighbors held now, at most `k`.
    pub fn len(&self) -> usize {
        self.neighbors.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.neighbors.is_empty()
    }

    /// A distance above this can no longer enter: that of the k-th neighbor, infinity while there are fewer than `k`.
    /// At exactly this distance a smaller row number still enters.
    pub fn threshold(&self) -> f64 {
        if self.neighbors.len() < self.k {
            f64::INFINITY
        } else {
            self.neighbors.first().map_or(f64::NEG_INFINITY, |worst| worst.distance)
        }
    }

    /// Offers a neighbor. A NaN distance (undefined, as the cosine of a zero vector) is passed over.
    pub fn push(&mut self, distance: f64, row: u64) {
        if distance.is_nan() || self.k == 0 {
            return;
        }
        let neighbor = Neighbor { distance, row };
        if self.neighbors.len() < self.k {
            self.neighbors.push(neighbor);
            if self.neighbors.len() == self.k {
                self.build_heap();
            }
        } else if is_nearer(&neighbor, &self.neighbors[0]) {
            self.neighbors[0] = neighbor;
            self.sift_down(0);
        }
    }

    /// Takes over what `other` holds. Rows must not be held by both.
    pub fn merge(&mut self, other: TopK) {
        for neighbor in other.neighbors {
            self.push(neighbor.distance, neighbor.row);
        }
    }

    /// The neighbors, nearest first, equal distances in row order.
    pub fn into_sorted(self) -> Vec<Neighbor> {
        let mut neighbors = self.neighbors;
        neighbors.sort_unstable_by(by_distance_then_row);
        neighbors
    }

    fn build_heap(&mut self) {
        for index in (0..self.neighbors.len() / 2).rev() {
            self.sift_down(index);
        }
    }

    /// Moves the neighbor at `index` down until both of its children are nearer than itself.
    fn sift_down(&mut self, mut index: usize) {
        let heap = &mut self.neighbors;
        loop {
            let left = 2 * index + 1;
            if left >= heap.len() {
                return;
            }
            let right = left + 1;
            let worse = if right < heap.len() && is_nearer(&heap[left], &heap[right]) { right } else { left };
            if !is_nearer(&heap[index], &heap[worse]) {
                return;
            }
            heap.swap(index, worse);
            index = worse;
        }
    }
}

fn is_nearer(a: &Neighbor, b: &Neighbor) -> bool {
    by_distance_then_row(a, b) == Ordering::Less
}

/// No distance in a `TopK` is NaN, and -0 counts as 0, so this is a total order.
fn by_distance_then_row(a: &Neighbor, b: &Neighbor) -> Ordering {
    a.distance.partial_cmp(&b.distance).unwrap_or(Ordering::Equal).then(a.row.cmp(&b.row))
}

#[cfg(test)]
mod tests;
