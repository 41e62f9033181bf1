//! What the ways of a search cost, in nanoseconds, so that they can be weighed against each other.
//!
//! The figures were taken on Zen 4 beside the families' benches. Two of them are measured again on the machine that this runs on, once,
//! in the background, when an index is first searched: a vector somewhere in memory, and a byte of vectors side by side. What waits
//! for memory is scaled with the first, what streams and computes with the second.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ann::Work;
use kernels::{DistanceError, Metric, Query, TopK, Vectors};

/// A search by an index, whatever it does.
const SEARCH: f64 = 4_000.0;
/// A hop in a graph: its neighbors are read from memory.
const HOP: f64 = 150.0;
/// A code.
const CODE: f64 = 6.0;
/// A list.
const LIST: f64 = 150.0;
/// A vector somewhere in memory, and each of its bytes.
const VECTOR: f64 = 60.0;
const VECTOR_BYTE: f64 = 0.1;
/// Each byte of vectors side by side.
const SCANNED_BYTE: f64 = 0.05;

/// A measurement beyond this is a machine that did something else meanwhile.
const FACTOR_MAX: f64 = 4.0;
/// Elements that are measured with, more than caches hold: 32 MiB.
const ELEMENTS: usize = 8 << 20;
const DIM: usize = 256;
const VECTORS_COMPARED: usize = 4_096;
const ROUNDS: usize = 3;

/// How this machine differs from the one that the figures are of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Costs {
    memory: f64,
    stream: f64,
}

static MEASURED: OnceLock<Costs> = OnceLock::new();
static IS_MEASURING: AtomicBool = AtomicBool::new(false);

impl Costs {
    /// As measured, or as elsewhere until that is done.
    pub(crate) fn of_machine() -> Self {
        if let Some(measured) = MEASURED.get() {
            return *measured;
        }
        if !IS_MEASURING.swap(true, Ordering::Relaxed) {
            std::thread::spawn(|| {
                let measured = Self::measured();
                tracing::debug!(?measured, "the costs of searches were measured");
                let _ = MEASURED.set(measured);
            });
        }
        Self { memory: 1.0, stream: 1.0 }
    }

    /// Compares vectors one after the other and here and there; the fastest of a few rounds each. Some 20 ms.
    fn measured() -> Self {
        let values: Vec<f32> = (0..ELEMENTS).map(|at| (at % 251) as f32).collect();
        let rows = u32::try_from(ELEMENTS / DIM).unwrap_or(u32::MAX);
        let step = 40_503 % rows;
        let mut scattered: Vec<u32> = (0..VECTORS_COMPARED as u32).map(|at| at.wrapping_mul(step) % rows).collect();
        scattered.sort_unstable();
        scattered.dedup();
        let Ok(query) = Query::new(Metric::L2, DIM, Vectors::F32(&values[..DIM])) else {
            return Self { memory: 1.0, stream: 1.0 };
        };
        let fastest = |run: &dyn Fn(&mut TopK) -> Result<(), DistanceError>| {
            let time = |_| {
                let began = Instant::now();
                let mut top = TopK::new(10);
                let is_done = run(&mut top).is_ok();
                black_box((is_done, top.into_sorted()));
                began.elapsed().as_nanos() as f64
            };
            (0..ROUNDS).map(time).fold(f64::INFINITY, f64::min)
        };
        let all = Vectors::F32(&values);
        let streamed = fastest(&|top| query.top_k(all, 0, top));
        let looked_up = fastest(&|top| query.top_k_selected(all, 0, &scattered, top));
        let row_bytes = (DIM * size_of::<f32>()) as f64;
        let factor = |measured: f64, expected: f64| (measured / expected).clamp(1.0 / FACTOR_MAX, FACTOR_MAX);
        Self {
            memory: factor(looked_up, scattered.len() as f64 * (VECTOR + row_bytes * VECTOR_BYTE)),
            stream: factor(streamed, f64::from(rows) * row_bytes * SCANNED_BYTE),
        }
    }

    /// Of a search by an index that does this, and compares candidates of so many bytes exactly.
    pub(crate) fn of_index(self, work: Work, row_bytes: usize) -> f64 {
        let waits = work.hops as f64 * HOP
            + work.lists as f64 * LIST
            + work.reranked as f64 * (VECTOR + row_bytes as f64 * VECTOR_BYTE);
        SEARCH + waits * self.memory + work.codes as f64 * CODE * self.stream
    }

    /// Of comparing so many rows, which lie more or less side by side.
    pub(crate) fn of_comparing(self, rows: usize, row_bytes: usize) -> f64 {
        rows as f64 * (VECTOR / 4.0 * self.memory + row_bytes as f64 * SCANNED_BYTE * self.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_of_this_world() {
        let costs = Costs::measured();
        for factor in [costs.memory, costs.stream] {
            assert!((1.0 / FACTOR_MAX..=FACTOR_MAX).contains(&factor), "{costs:?}");
        }
        let few = Work { lists: 10, codes: 1_000, reranked: 50, ..Work::default() };
        assert!(costs.of_index(few, 1_536) < costs.of_comparing(1_000_000, 1_536));
        assert!(costs.of_index(few, 1_536) > costs.of_comparing(1, 1_536));
    }
}
