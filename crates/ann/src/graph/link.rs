//! From near neighbors to a graph that greedy walks find their way in: robust pruning, edges both ways, one refinement by
//! walks, and a path to every vertex.
//!
//! Every step computes each vertex's neighbors from the step before, so the graph does not depend on the number of threads.

use kernels::{CodeLayout, CodeQuery, advise_large_pages, prefetch};
use rayon::prelude::*;

use super::format::Coding;
use super::leaves::Lists;
use super::points::{Points, Scorer, distance, key, vertex};
use super::source::BLOCK_ROWS;
use super::walk::{Graph, Reach, Scratch};
use crate::{BuildError, Control};

/// A neighbor is left out if another one is nearer to it by this factor, in squared distance.
const ALPHA: f32 = 1.2;
/// Candidates that are asked for before it is their turn.
const AHEAD: usize = 4;
/// Of those taken, how many are compared with a candidate at once.
const COMPARED: usize = 8;
/// Candidates that are pruned at a time, per neighbor wanted.
const CANDIDATES_PER_NEIGHBOR: usize = 4;

/// The neighbors of every vertex: `degree` places each, free ones hold the vertex itself.
#[derive(Clone, Debug)]
pub(super) struct Adjacency {
    pub degree: usize,
    pub neighbors: Vec<u32>,
}

impl Adjacency {
    /// The neighbors of a vertex.
    pub(super) fn of(&self, vertex: u32) -> impl Iterator<Item = u32> + '_ {
        let row = &self.neighbors[vertex as usize * self.degree..][..self.degree];
        row.iter().copied().filter(move |neighbor| *neighbor != vertex)
    }

    /// A graph of what `choose` says for each vertex, in parallel.
    fn of_each<S: Send>(
        vertices: usize,
        degree: usize,
        scratch: impl Fn() -> S + Sync + Send,
        choose: impl Fn(u32, &mut S, &mut Vec<u32>) -> Result<(), BuildError> + Sync,
    ) -> Result<Self, BuildError> {
        let mut neighbors = vec![0_u32; vertices * degree];
        advise_large_pages(bytemuck::cast_slice_mut(&mut neighbors));
        let rows = neighbors.par_chunks_mut(BLOCK_ROWS * degree).enumerate();
        rows.try_for_each_init(
            || (scratch(), Vec::new()),
            |(scratch, chosen), (block, rows)| {
                for (at, row) in rows.chunks_exact_mut(degree).enumerate() {
                    let vertex = (block * BLOCK_ROWS + at) as u32;
                    choose(vertex, scratch, chosen)?;
                    row.fill(vertex);
                    row.iter_mut().zip(chosen.iter()).for_each(|(place, neighbor)| *place = *neighbor);
                }
                Ok(())
            },
        )?;
        Ok(Self { degree, neighbors })
    }
}

/// The shorter codes of the searches, if there are any, which the walks of the refinement use as well: half as many lines to fetch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walked<'a>(Option<(CodeLayout, &'a [u8], f32)>);

impl<'a> Walked<'a> {
    /// `unit`: what one of the build's numbers stands for in `codes`.
    pub(super) fn new(coding: &Coding, codes: &'a [u8], unit: f32) -> Self {
        match coding {
            Coding::Scalar(layout, _) if !codes.is_empty() => Self(Some((*layout, codes, unit))),
            _ => Self(None),
        }
    }

    fn codes(self, points: &'a Points) -> &'a [u8] {
        self.0.map_or(points.codes(), |(_, codes, _)| codes)
    }

    fn scorer(self, points: &Points) -> Scorer {
        self.0.map_or_else(|| points.scorer(), |(layout, ..)| Scorer::Codes(CodeQuery::new(layout)))
    }

    /// Makes a vertex the query.
    fn ask(self, points: &Points, vertex: u32, scorer: &mut Scorer, vector: &mut Vec<f32>) {
        match (self.0, &mut *scorer) {
            (Some((.., unit)), Scorer::Codes(query)) => {
                points.decode(vertex, vector);
                vector.iter_mut().for_each(|value| *value *= unit);
                query.set(vector);
            }
            _ => {
                points.ask(vertex, scorer);
            }
        }
    }
}

/// How a graph is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linking {
    /// Neighbors of a vertex at most.
    pub degree: usize,
    /// Vertices kept by the walks of the refinement.
    pub beam: usize,
    /// Where walks begin.
    pub entries: [u32; super::ENTRIES],
}

impl Linking {
    /// Links the vertices. Advances `control` by 6 for each of them.
    pub(super) fn link(
        &self,
        points: &Points,
        walked: Walked<'_>,
        lists: Lists,
        control: &Control,
    ) -> Result<Adjacency, BuildError> {
        let degree = self.degree;
        let first = Adjacency::of_each(
            points.len(),
            degree,
            || Pruner::new(points),
            |vertex, pruner, chosen| {
                control.advance(1)?;
                lists.copy(vertex, &mut pruner.keys);
                pruner.prune(points, degree, chosen);
                Ok(())
            },
        )?;
        let both = self.with_reverse(points, &first, Crowded::LeaveOut, control)?;
        drop(first);
        let refined = self.refine(points, walked, &both, &lists, control)?;
        drop((both, lists));
        let mut graph = self.with_reverse(points, &refined, Crowded::Prune, control)?;
        super::reach::connect(&mut graph, &self.entries, points.len());
        Ok(graph)
    }

    /// Chooses neighbors anew among what a walk to the vertex meets.
    fn refine(
        &self,
        points: &Points,
        walked: Walked<'_>,
        graph: &Adjacency,
        lists: &Lists,
        control: &Control,
    ) -> Result<Adjacency, BuildError> {
        let view = Graph {
            codes: walked.codes(points),
            adjacency: bytemuck::cast_slice(&graph.neighbors),
            degree: self.degree,
            vertices: points.len(),
        };
        let entries: &[u8] = bytemuck::cast_slice(&self.entries);
        let reach = Reach { beam: self.beam, stop: f32::INFINITY, k: 1, shift: 0.0, results: 0 };
        Adjacency::of_each(
            points.len(),
            self.degree,
            || (Pruner::new(points), Scratch::default(), walked.scorer(points), Vec::new()),
            |vertex, (pruner, scratch, scorer, vector), chosen| {
                control.advance(2)?;
                walked.ask(points, vertex, scorer, vector);
                scratch.walk(&view, scorer, entries, &reach, None);
                lists.copy(vertex, &mut pruner.keys);
                let met = scratch.beam.iter().chain(scratch.path.iter().copied()).map(|(_, neighbor)| neighbor);
                pruner.extend_unless_known(points, vertex, met.chain(graph.of(vertex)));
                pruner.keys.retain(|key| self::vertex(*key) != vertex);
                pruner.prune(points, self.degree, chosen);
                Ok(())
            },
        )
    }

    /// Adds the reverse of every edge, and does with those that are too many what `crowded` says.
    fn with_reverse(
        &self,
        points: &Points,
        graph: &Adjacency,
        crowded: Crowded,
        control: &Control,
    ) -> Result<Adjacency, BuildError> {
        let reverse = Reverse::new(graph, points.len());
        Adjacency::of_each(
            points.len(),
            self.degree,
            || Pruner::new(points),
            |vertex, pruner, chosen| {
                control.advance(1)?;
                chosen.clear();
                chosen.extend(graph.of(vertex));
                let incoming = reverse.of(vertex);
                if crowded == Crowded::LeaveOut || chosen.len() + incoming.len() <= self.degree {
                    incoming.iter().for_each(|neighbor| {
                        if chosen.len() < self.degree && !chosen.contains(neighbor) {
                            chosen.push(*neighbor);
                        }
                    });
                    return Ok(());
                }
                pruner.keys.clear();
                pruner.extend_unless_known(points, vertex, chosen.iter().copied().chain(incoming.iter().copied()));
                pruner.prune(points, self.degree, chosen);
                Ok(())
            },
        )
    }
}

/// What is done with more reverse edges than a vertex has places for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crowded {
    /// They are left out, whichever they are: enough for a graph that is walked once, to find better neighbors.
    LeaveOut,
    /// All edges of the vertex are pruned.
    Prune,
}

/// From where edges come, for every vertex.
struct Reverse {
    starts: Vec<usize>,
    sources: Vec<u32>,
}

impl Reverse {
    fn new(graph: &Adjacency, vertices: usize) -> Self {
        let mut starts = vec![0_usize; vertices + 1];
        for source in 0..vertices as u32 {
            graph.of(source).for_each(|target| starts[target as usize + 1] += 1);
        }
        (0..vertices).for_each(|vertex| starts[vertex + 1] += starts[vertex]);
        let (mut next, mut sources) = (starts.clone(), vec![0; starts[vertices]]);
        for source in 0..vertices as u32 {
            for target in graph.of(source) {
                sources[next[target as usize]] = source;
                next[target as usize] += 1;
            }
        }
        Self { starts, sources }
    }

    fn of(&self, vertex: u32) -> &[u32] {
        let vertex = vertex as usize;
        &self.sources[self.starts[vertex]..self.starts[vertex + 1]]
    }
}

/// Chooses neighbors among candidates.
struct Pruner {
    asker: Scorer,
    /// The candidates.
    keys: Vec<u64>,
    distances: Vec<f32>,
    vertices: Vec<u32>,
    /// The records of the vertices taken, one after the other, and these in the order in which they are compared.
    taken: Vec<u8>,
    order: Vec<u32>,
}

impl Pruner {
    fn new(points: &Points) -> Self {
        Self {
            asker: points.scorer(),
            keys: Vec::new(),
            distances: Vec::new(),
            vertices: Vec::new(),
            taken: Vec::new(),
            order: Vec::new(),
        }
    }

    /// Makes keys of `neighbors` and adds them, those that are not among the keys.
    fn extend_unless_known(&mut self, points: &Points, asked: u32, neighbors: impl Iterator<Item = u32>) {
        self.vertices.clear();
        self.vertices.extend(neighbors);
        self.vertices.sort_unstable();
        self.vertices.dedup();
        let mut known: Vec<u32> = self.keys.iter().map(|key| vertex(*key)).collect();
        known.sort_unstable();
        self.vertices.retain(|neighbor| known.binary_search(neighbor).is_err());
        let norm = points.ask(asked, &mut self.asker);
        self.asker.scores(points.codes(), &self.vertices, &mut self.distances);
        let found = self.distances.iter().zip(&self.vertices);
        self.keys.extend(found.map(|(score, neighbor)| key(score + norm, *neighbor)));
    }

    /// RobustPrune of the candidates, as Vamana has it: nearest first, each is taken that none of those taken is much nearer to.
    ///
    /// Leaves the keys sorted, and at most `degree` vertices in `chosen`. Those taken are compared from one small block, in an order
    /// in which what removed a candidate comes sooner for the next: the outcome does not depend on it.
    fn prune(&mut self, points: &Points, degree: usize, chosen: &mut Vec<u32>) {
        self.keys.sort_unstable();
        self.keys.dedup();
        self.keys.truncate(degree * CANDIDATES_PER_NEIGHBOR);
        chosen.clear();
        self.taken.clear();
        self.order.clear();
        for at in 0..self.keys.len() {
            if chosen.len() >= degree {
                break;
            }
            let candidate = self.keys[at];
            if let Some(later) = self.keys.get(at + AHEAD) {
                prefetch(points.record(vertex(*later)));
            }
            if !self.is_removed(points, candidate) {
                chosen.push(vertex(candidate));
                self.order.push(self.order.len() as u32);
                self.taken.extend_from_slice(points.record(vertex(candidate)));
            }
        }
        self.fill(degree / FILLED, chosen);
    }

    /// Whether one of those taken is much nearer to the candidate than the vertex is that neighbors are chosen for.
    fn is_removed(&mut self, points: &Points, candidate: u64) -> bool {
        if self.order.is_empty() {
            return false;
        }
        let norm = points.ask(vertex(candidate), &mut self.asker);
        for start in (0..self.order.len()).step_by(COMPARED) {
            let some = &self.order[start..(start + COMPARED).min(self.order.len())];
            self.asker.scores(&self.taken, some, &mut self.distances);
            let removes = |score: &f32| ALPHA * (score + norm).max(0.0) <= distance(candidate);
            if let Some(place) = self.distances.iter().position(removes) {
                self.order.swap(start + place, (start + place) / 2);
                return true;
            }
        }
        false
    }

    /// Adds the nearest of those left out, up to `degree`: with many vertices alike there would be hardly an edge.
    fn fill(&self, degree: usize, chosen: &mut Vec<u32>) {
        for key in &self.keys {
            if chosen.len() >= degree {
                return;
            }
            if !chosen.contains(&vertex(*key)) {
                chosen.push(vertex(*key));
            }
        }
    }
}

/// One in so many places for neighbors is filled even if pruning left it free.
const FILLED: usize = 2;
