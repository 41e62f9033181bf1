//! The walk: from the entry points to the vertices nearest to a query, one vertex at a time, nearest first.
//!
//! Greedy beam search over a Vamana graph (Subramanya et al., "DiskANN", NeurIPS 2019), that ends by distance as well as by the
//! beam (Al-Jazzazi et al., "Distance Adaptive Beam Search", arXiv:2505.15636). Builds and searches walk alike.

use kernels::{Beam, Visited, prefetch};

use super::points::Scorer;

/// Neighbors that are scored before the beam is looked at again.
const SCORED: usize = 16;

/// Vertices that are visited together: more codes are on their way from memory while some are scored.
const TOGETHER: usize = 1;

/// What is walked over. Nothing of it is trusted: a neighbor that is no vertex is passed over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Graph<'a> {
    /// The records of all vertices.
    pub codes: &'a [u8],
    /// The neighbors of all vertices: `degree` little-endian u32 each.
    pub adjacency: &'a [u8],
    /// Neighbors of a vertex; free places hold the vertex itself.
    pub degree: usize,
    /// Number of vertices. Both slices have room for all of them.
    pub vertices: usize,
}

impl<'a> Graph<'a> {
    /// The neighbors of a vertex, as stored.
    #[inline]
    pub(super) fn neighbors(&self, vertex: u32) -> &'a [u8] {
        let bytes = self.degree * 4;
        let start = vertex as usize * bytes;
        self.adjacency.get(start..start + bytes).unwrap_or_default()
    }
}

/// How far a walk goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// Vertices kept.
    pub beam: usize,
    /// It ends at a vertex whose distance is above this times that of the `k`-th nearest result.
    pub stop: f32,
    /// See `stop`.
    pub k: usize,
    /// What scores lack for distances, for `stop`.
    pub shift: f32,
    /// Results kept where only some vertices may be results.
    pub results: usize,
}

impl Reach {
    /// The score beyond which nothing is looked at, with the `k`-th nearest result at `kth`. A distance that
    /// rounding made negative is 0.
    #[inline]
    fn horizon(&self, kth: f32) -> f32 {
        let reached = self.stop * (kth + self.shift).max(0.0);
        if self.stop == f32::INFINITY { f32::INFINITY } else { reached - self.shift }
    }
}

/// The buffers of a walk, kept by a thread from one to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    pub visited: Visited,
    pub beam: Beam,
    /// Those in `beam` and beyond that may be results, if not all may.
    pub results: Beam,
    pub scores: Vec<f32>,
    /// The vertices whose neighbors were read, with their scores.
    pub path: Vec<(f32, u32)>,
    /// A vertex that is passed by.
    pub hidden: Option<u32>,
    matching: (Vec<f32>, Vec<u32>),
}

impl Scratch {
    /// Walks until the nearest vertices are found, and leaves them in `beam`, or, of those that `filter` lets
    /// pass, in `results`. Returns the number of
    /// vertices whose neighbors were read.
    pub(super) fn walk(
        &mut self,
        graph: &Graph<'_>,
        scorer: &Scorer,
        entries: &[u8],
        reach: &Reach,
        filter: Option<&dyn Fn(u32) -> bool>,
    ) -> u64 {
        self.visited.reset(graph.vertices);
        self.beam.reset(reach.beam);
        if filter.is_some() {
            self.results.reset(reach.results);
        }
        if let Some(hidden) = self.hidden {
            self.visited.mark(&hidden.to_le_bytes(), &[], 0);
        }
        self.path.clear();
        let seen = self.visited.count();
        self.visited.mark(entries, graph.codes, scorer.bytes());
        self.keep(seen, graph, scorer, reach, filter);
        loop {
            let (horizon, seen) = (reach.horizon(self.kth(reach, filter.is_some())), self.visited.count());
            let visited = self.path.len();
            while let (Some((distance, vertex)), true) =
                (self.beam.nearest_unvisited(), self.path.len() - visited < TOGETHER)
            {
                if distance > horizon {
                    break;
                }
                self.beam.visit_nearest();
                self.path.push((distance, vertex));
                self.visited.mark(graph.neighbors(vertex), graph.codes, scorer.bytes());
            }
            if self.path.len() == visited {
                return self.path.len() as u64;
            }
            self.keep(seen, graph, scorer, reach, filter);
        }
    }

    /// Whether the walk looked at least as far as the `k`-th result is: a beam that is full of vertices nearer than that, all
    /// visited, may have kept it from others.
    pub(super) fn covers(&mut self, k: usize, filtered: bool) -> bool {
        !filtered || self.beam.nearest_unvisited().is_some() || self.beam.threshold() >= self.results.distance(k - 1)
    }

    /// Distance of the result that decides when to stop.
    #[inline]
    fn kth(&self, reach: &Reach, filtered: bool) -> f32 {
        if filtered { self.results.distance(reach.k - 1) } else { self.beam.distance(reach.k - 1) }
    }

    /// Scores what was marked as seen from place `seen` on, and keeps the near ones.
    #[inline]
    fn keep(
        &mut self,
        seen: usize,
        graph: &Graph<'_>,
        scorer: &Scorer,
        reach: &Reach,
        filter: Option<&dyn Fn(u32) -> bool>,
    ) {
        let mut next = self.beam.unvisited::<TOGETHER>();
        next.into_iter().flatten().for_each(|vertex| prefetch(graph.neighbors(vertex)));
        let unseen = &self.visited.seen()[seen..];
        for unseen in unseen.chunks(SCORED) {
            scorer.scores(graph.codes, unseen, &mut self.scores);
            if let Some(filter) = filter {
                let (scores, vertices) = &mut self.matching;
                scores.clear();
                vertices.clear();
                for (score, vertex) in self.scores.iter().zip(unseen).filter(|(_, vertex)| filter(**vertex)) {
                    scores.push(*score);
                    vertices.push(*vertex);
                }
                self.results.insert_all(scores, vertices, f32::INFINITY);
            }
            let kth =
                if filter.is_some() { self.results.distance(reach.k - 1) } else { self.beam.distance(reach.k - 1) };
            self.beam.insert_all(&self.scores, unseen, reach.horizon(kth));
            let nearest = self.beam.unvisited::<TOGETHER>();
            for vertex in nearest.into_iter().flatten().filter(|vertex| !next.contains(&Some(*vertex))) {
                prefetch(graph.neighbors(vertex));
            }
            next = nearest;
        }
    }
}
