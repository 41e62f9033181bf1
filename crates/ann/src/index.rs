//! What every family does: answers a query with candidates.

use std::fmt::Debug;
use std::ops::Range;

use kernels::{ElementType, Metric, Vectors};

use crate::bitmap::RowSet;
use crate::payload::{FormatError, Sections};

/// An opened index over the rows of one segment: its head. The rest of its bytes come with each search.
pub trait Index: Debug + Send + Sync {
    /// The metric that it was built for.
    fn metric(&self) -> Metric;

    /// Elements of a vector.
    fn dim(&self) -> usize;

    /// The type of the indexed elements.
    fn element(&self) -> ElementType;

    /// Rows of the segment, those without a vector included.
    fn rows(&self) -> usize;

    /// The cheapest effort that was measured at the build to reach `recall` (0 to 1) for the `k` nearest, with a margin for queries
    /// that are harder than those it was measured with.
    fn effort(&self, recall: f64, k: usize) -> Effort;

    /// What a search would do, by estimate: the operators weigh it against an exact scan.
    fn estimate(&self, request: &Request<'_>) -> Work;

    /// The candidates for the `k` nearest of `request`, or the bytes that are missing for them.
    ///
    /// Never more than are useful, and fewer than `min(k, matching rows)` only if the effort was too small to see as many: the caller
    /// then spends more, or compares all.
    ///
    /// # Errors
    /// The bytes contradict the head or each other. Nothing is read outside of them, whatever they hold.
    fn search(&self, request: &Request<'_>, sections: &dyn Sections) -> Result<Step, FormatError>;

    /// The distances of `rows`, one each, with the bits that [`kernels::Query`] gives for the vectors themselves, where the index holds
    /// these without loss: then no caller has to read them. `None` where it does not, for queries of which it cannot tell, for rows
    /// that are no candidates, and where its bytes are not at hand.
    fn exact_distances(&self, query: Vectors<'_>, rows: &[u32], sections: &dyn Sections) -> Option<Vec<f64>> {
        let _ = (query, rows, sections);
        None
    }

    /// As [`search`](Self::search), for many queries at once; one step per query. Families that gain from it share their reading.
    ///
    /// # Errors
    /// As [`search`](Self::search).
    fn search_batch(&self, requests: &[Request<'_>], sections: &dyn Sections) -> Result<Vec<Step>, FormatError> {
        requests.iter().map(|request| self.search(request, sections)).collect()
    }
}

/// One query.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// One vector of the index's dimension. Floats may be compared with any index but one of bits.
    pub query: Vectors<'a>,
    /// How many neighbors are wanted in the end.
    pub k: usize,
    /// The rows that may be candidates; all that have a vector if absent.
    pub matching: Option<RowSet<'a>>,
    /// How hard to look.
    pub effort: Effort,
}

/// How hard a search looks. Each family reads its own kind, and takes the nearest thing to another's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effort {
    /// Of `flat`: how many candidates are given out for exact comparison.
    Flat {
        /// Candidates.
        rerank: usize,
    },
    /// Of `ivf`.
    Ivf {
        /// Lists that are read. Under a filter more are, until the rows seen in them suffice.
        probes: usize,
        /// Candidates at most.
        rerank: usize,
    },
    /// Of `graph`.
    Graph {
        /// Vertices kept while walking (`ef_search`).
        beam: usize,
        /// The walk ends at a vertex farther away than this times the k-th nearest one seen; infinity: it never does.
        stop: f32,
        /// Candidates given out.
        rerank: usize,
    },
}

/// A row that may be near.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The local row.
    pub row: u32,
    /// Its distance, by the codes. Smaller is closer.
    pub estimate: f32,
    /// What its distance is not below, with the certainty of the codes; minus infinity where they promise nothing.
    pub bound: f32,
}

/// The outcome of a search over the bytes at hand.
#[derive(Clone, Debug)]
pub enum Step {
    /// It is done.
    Found(Found),
    /// These bytes are missing: (section, range). With them at hand, search again.
    Wants(Vec<(usize, Range<usize>)>),
}

/// Candidates and what they took.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// By estimate, nearest first; each row once.
    pub candidates: Vec<Candidate>,
    /// What was done.
    pub work: Work,
}

/// What a search does, in counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Lists read.
    pub lists: u64,
    /// Vertices whose neighbors were read.
    pub hops: u64,
    /// Codes compared with the query.
    pub codes: u64,
    /// Candidates to compare exactly.
    pub reranked: u64,
    /// Bytes of the index read.
    pub bytes: u64,
}

impl Work {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            lists: self.lists + other.lists,
            hops: self.hops + other.hops,
            codes: self.codes + other.codes,
            reranked: self.reranked + other.reranked,
            bytes: self.bytes + other.bytes,
        }
    }
}
