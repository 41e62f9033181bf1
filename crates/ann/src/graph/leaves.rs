//! Near neighbors of every vertex, by overlapping leaves: PiPNN's partition ("PiPNN: Ultra-Scalable Graph-Based Nearest
//! Neighbor Indexing", arXiv:2602.21247).
//!
//! Vertices go to the nearest few of many random leaders, groups that are too large are carved again, and within a leaf all pairs
//! are compared by one blocked matrix product. We differ: what a vertex found in its leaves is kept as a sorted
//! list of its nearest rather than by
//! hashed directions, since robust pruning follows.

use std::sync::{Mutex, PoisonError};

use kernels::BytePanels;
use rayon::prelude::*;

use super::points::{self, Points, key};
use super::random::draw;
use crate::{BuildError, Control};

/// Vertices of a leaf at most.
pub(super) const LEAF_MAX: usize = 1024;
/// Leaders that a group is split over at most: a panel of them stays in the second-level cache.
const LEADERS_MAX: usize = 1024;
/// Groups that a vertex goes to, at each level of carving.
const FANOUT: [usize; 3] = [4, 2, 1];
/// Neighbors that are collected before the nearest of them are selected, per neighbor wanted.
const KEYS_PER_NEIGHBOR: usize = 4;
/// Rows that one matrix product takes.
const ROWS: usize = 48;
/// Vertices that share a lock.
const STRIPE: usize = 64;

/// The nearest neighbors found so far of every vertex.
#[derive(Debug)]
pub(super) struct Lists {
    stripes: Vec<Mutex<Vec<Vec<u64>>>>,
    k: usize,
}

impl Lists {
    /// Finds up to `k` near neighbors of each vertex. Announces nothing to `control`, but advances it by 4 for each vertex.
    pub(super) fn find(points: &Points, k: usize, control: &Control) -> Result<Self, BuildError> {
        let stripes = (0..points.len().div_ceil(STRIPE)).map(|_| Mutex::new(vec![Vec::new(); STRIPE])).collect();
        let lists = Self { stripes, k };
        let all: Vec<u32> = (0..points.len() as u32).collect();
        let carver = Carver { points, control, lists: &lists };
        carver.carve(all, 0, control.seed)?;
        control.advance(4 * points.len() as u64)?;
        Ok(lists)
    }

    /// The list of a vertex, nearest first, as keys.
    pub(super) fn copy(&self, vertex: u32, out: &mut Vec<u64>) {
        out.clear();
        let stripe = self.stripes[vertex as usize / STRIPE].lock().unwrap_or_else(PoisonError::into_inner);
        out.extend_from_slice(&stripe[vertex as usize % STRIPE]);
    }

    /// How far the last of a full list is: what is farther away cannot enter it any more.
    fn farthest(&self, vertex: u32) -> f32 {
        let stripe = self.stripes[vertex as usize / STRIPE].lock().unwrap_or_else(PoisonError::into_inner);
        let list = &stripe[vertex as usize % STRIPE];
        list.get(self.k - 1).map_or(f32::INFINITY, |key| points::distance(*key))
    }

    /// Merges sorted keys into the list of a vertex. What is kept does not depend on the order of merges: the `k` least of all.
    fn merge(&self, vertex: u32, found: &[u64], merged: &mut Vec<u64>) {
        let mut stripe = self.stripes[vertex as usize / STRIPE].lock().unwrap_or_else(PoisonError::into_inner);
        let list = &mut stripe[vertex as usize % STRIPE];
        merged.clear();
        let (mut a, mut b) = (list.as_slice(), found);
        while merged.len() < self.k {
            let key = match (a.first(), b.first()) {
                (Some(x), Some(y)) => *x.min(y),
                (Some(x), None) | (None, Some(x)) => *x,
                (None, None) => break,
            };
            a = &a[usize::from(a.first() == Some(&key))..];
            b = &b[usize::from(b.first() == Some(&key))..];
            merged.push(key);
        }
        list.clear();
        list.extend_from_slice(merged);
    }
}

struct Carver<'a> {
    points: &'a Points,
    control: &'a Control,
    lists: &'a Lists,
}

impl Carver<'_> {
    /// Splits a group until its parts are leaves, and compares those.
    fn carve(&self, group: Vec<u32>, level: usize, seed: u64) -> Result<(), BuildError> {
        self.control.advance(0)?;
        if group.len() <= LEAF_MAX {
            self.compare_all(&group);
            return Ok(());
        }
        let fanout = FANOUT.get(level).copied().unwrap_or(1);
        let count = (group.len() * fanout * 2).div_ceil(LEAF_MAX).clamp(2, LEADERS_MAX);
        let mut leaders: Vec<u32> = draw(seed, group.len(), count).into_iter().map(|at| group[at]).collect();
        leaders.sort_unstable();
        let groups = self.assign(&group, &leaders, fanout)?;
        let parent = group.len();
        drop(group);
        groups.into_par_iter().enumerate().try_for_each(|(at, group)| {
            // A group that stays whole is of vertices that are all alike: any cut is as good.
            if group.len() > LEAF_MAX && group.len() * 10 > parent * 9 {
                return group.chunks(LEAF_MAX).try_for_each(|part| {
                    self.compare_all(part);
                    self.control.advance(0)
                });
            }
            self.carve(group, level + 1, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(at as u64 + 1))
        })
    }

    /// The members of each leader's group, ascending: every vertex goes to its `fanout` nearest leaders.
    fn assign(&self, group: &[u32], leaders: &[u32], fanout: usize) -> Result<Vec<Vec<u32>>, BuildError> {
        let (mut panels, norms) = (BytePanels::new(), self.norms(leaders));
        panels.pack(self.points.depth(), leaders.len(), |at, column| self.points.column(leaders[at], column));
        let nearest: Vec<Vec<u32>> = group
            .par_chunks(ROWS * 8)
            .map(|chunk| {
                self.control.advance(0)?;
                let mut nearest = Vec::with_capacity(chunk.len() * fanout);
                let mut best: Vec<(f32, u32)> = Vec::new();
                self.products(chunk, &panels, &norms, &mut Buffers::default(), &mut |_, distances| {
                    best.clear();
                    for (distance, leader) in distances.iter().zip(0_u32..) {
                        if best.len() == fanout && best.last().is_some_and(|(worst, _)| *worst <= *distance) {
                            continue;
                        }
                        let place = best.partition_point(|(held, _)| held <= distance);
                        best.insert(place, (*distance, leader));
                        best.truncate(fanout);
                    }
                    nearest.extend(best.iter().map(|(_, leader)| *leader));
                });
                Ok(nearest)
            })
            .collect::<Result<_, BuildError>>()?;
        let mut groups = vec![Vec::new(); leaders.len()];
        for (member, leaders) in group.iter().zip(nearest.iter().flat_map(|nearest| nearest.chunks(fanout))) {
            leaders.iter().for_each(|leader| groups[*leader as usize].push(*member));
        }
        Ok(groups)
    }

    /// Compares all pairs of a leaf.
    fn compare_all(&self, leaf: &[u32]) {
        let (mut panels, norms) = (BytePanels::new(), self.norms(leaf));
        panels.pack(self.points.depth(), leaf.len(), |at, column| self.points.column(leaf[at], column));
        let k = self.lists.k;
        let (mut keys, mut merged) = (Vec::with_capacity(KEYS_PER_NEIGHBOR * k), Vec::with_capacity(k));
        self.products(leaf, &panels, &norms, &mut Buffers::default(), &mut |at, distances| {
            keys.clear();
            let mut limit = self.lists.farthest(leaf[at]);
            kernels::each_at_most(distances, limit, |other, distance| {
                if other != at && distance <= limit {
                    keys.push(key(distance, leaf[other]));
                    if keys.len() == KEYS_PER_NEIGHBOR * k {
                        keys.select_nth_unstable(k - 1);
                        keys.truncate(k);
                        limit = points::distance(keys[k - 1]);
                    }
                }
                limit
            });
            if keys.len() > k {
                keys.select_nth_unstable(k - 1);
                keys.truncate(k);
            }
            keys.sort_unstable();
            self.lists.merge(leaf[at], &keys, &mut merged);
        });
    }

    fn norms(&self, vertices: &[u32]) -> Vec<f32> {
        vertices.iter().map(|vertex| self.points.norm(*vertex)).collect()
    }

    /// Shows to `visit`, for each of `rows` by its place, the distances to all columns of `panels`.
    fn products(
        &self,
        rows: &[u32],
        panels: &BytePanels,
        norms: &[f32],
        buffers: &mut Buffers,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) {
        let (row_stride, stride) = (panels.row_stride(), panels.stride());
        buffers.distances.resize(norms.len(), 0.0);
        for (chunk, vertices) in rows.chunks(ROWS).enumerate() {
            buffers.rows.clear();
            buffers.rows.resize(vertices.len() * row_stride, 0);
            buffers.excess.clear();
            for (row, vertex) in buffers.rows.chunks_exact_mut(row_stride).zip(vertices) {
                buffers.excess.push(self.points.row(*vertex, row));
            }
            buffers.sums.resize(vertices.len() * stride, 0);
            panels.dots(&buffers.rows, &mut buffers.sums);
            for (at, vertex) in vertices.iter().enumerate() {
                let sums = &buffers.sums[at * stride..][..norms.len()];
                let norm = self.points.norm(*vertex);
                self.points.distances(norm, buffers.excess[at], sums, norms, &mut buffers.distances);
                visit(chunk * ROWS + at, &buffers.distances);
            }
        }
    }
}

#[derive(Default)]
struct Buffers {
    rows: Vec<i8>,
    excess: Vec<i32>,
    sums: Vec<i32>,
    distances: Vec<f32>,
}
