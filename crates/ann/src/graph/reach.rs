//! A path from the entry points to every vertex.

use std::collections::VecDeque;

use super::link::Adjacency;

/// Links every vertex that no path from `entries` leads to, at the cost of edges that no path needs.
///
/// The edges by which vertices were first reached form a forest; only others are replaced, so what was reachable stays so.
/// Cost: that of a breadth-first search.
pub(super) fn connect(graph: &mut Adjacency, entries: &[u32], vertices: usize) {
    let mut forest =
        Forest { reached: vec![false; vertices], needed: vec![false; graph.neighbors.len()], queue: VecDeque::new() };
    for entry in entries.iter().filter(|entry| (**entry as usize) < vertices) {
        forest.root(*entry);
    }
    forest.grow(graph);
    // Where an edge may go out from: advances only, since places fill up and are never freed.
    let mut anywhere = 0_u32;
    for vertex in 0..vertices as u32 {
        if forest.reached[vertex as usize] {
            continue;
        }
        let near: Vec<u32> = graph.of(vertex).collect();
        let from =
            near.into_iter().find_map(|from| forest.free_place(graph, from).filter(|_| forest.reached[from as usize]));
        let place = from.or_else(|| {
            while (anywhere as usize) < vertices {
                let place = forest.free_place(graph, anywhere).filter(|_| forest.reached[anywhere as usize]);
                if place.is_some() {
                    return place;
                }
                // One that is reached only later is passed over: of those reached before it, one has a place.
                anywhere += 1;
            }
            None
        });
        if let Some(place) = place {
            graph.neighbors[place] = vertex;
            forest.needed[place] = true;
            forest.root(vertex);
            forest.grow(graph);
        }
    }
}

struct Forest {
    reached: Vec<bool>,
    /// Places of edges by which a vertex was first reached.
    needed: Vec<bool>,
    queue: VecDeque<u32>,
}

impl Forest {
    fn root(&mut self, vertex: u32) {
        if !self.reached[vertex as usize] {
            self.reached[vertex as usize] = true;
            self.queue.push_back(vertex);
        }
    }

    fn grow(&mut self, graph: &Adjacency) {
        while let Some(vertex) = self.queue.pop_front() {
            let start = vertex as usize * graph.degree;
            for place in start..start + graph.degree {
                let neighbor = graph.neighbors[place];
                if !self.reached[neighbor as usize] {
                    self.needed[place] = true;
                    self.root(neighbor);
                }
            }
        }
    }

    /// The last place of a vertex that holds no needed edge: the farthest neighbor, or none at all.
    fn free_place(&self, graph: &Adjacency, vertex: u32) -> Option<usize> {
        let start = vertex as usize * graph.degree;
        (start..start + graph.degree).rev().find(|place| !self.needed[*place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vertex_is_reached_even_from_a_graph_without_edges() {
        for degree in [16, 48] {
            let vertices = 1000_usize;
            let neighbors = (0..vertices * degree).map(|place| (place / degree) as u32).collect();
            let mut graph = Adjacency { degree, neighbors };
            connect(&mut graph, &[7, 7], vertices);
            let mut forest = Forest {
                reached: vec![false; vertices],
                needed: vec![false; graph.neighbors.len()],
                queue: VecDeque::new(),
            };
            forest.root(7);
            forest.grow(&graph);
            assert!(forest.reached.iter().all(|reached| *reached), "degree {degree}");
        }
    }
}
