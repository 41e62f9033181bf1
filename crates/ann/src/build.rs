//! What a build reads, and how it is steered.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kernels::{ElementType, Vectors};

/// The vectors of a segment, row-major, numbered from 0: the local rows.
pub trait Rows: Sync {
    /// Number of rows, those without a vector included.
    fn len(&self) -> usize;

    /// Whether there is no row.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of a vector.
    fn dim(&self) -> usize;

    /// Type of the elements.
    fn element(&self) -> ElementType;

    /// Whether the row has a vector; one that has none is never a candidate.
    fn has(&self, row: usize) -> bool;

    /// Shows the vectors of `rows`, all of them, to `visit`, in one or several runs in order: the first row of a run, and its vectors.
    /// What stands in the place of a missing vector has no meaning.
    ///
    /// # Errors
    /// What the rows are read from failed.
    fn read(&self, rows: Range<usize>, visit: &mut dyn FnMut(usize, Vectors<'_>)) -> Result<(), BuildError>;
}

/// Vectors that are all in memory, and all there.
#[derive(Clone, Copy, Debug)]
pub struct InMemory<'a> {
    vectors: Vectors<'a>,
    dim: usize,
    rows: usize,
}

impl<'a> InMemory<'a> {
    /// `vectors`: whole rows of `dim` elements; what is left over at the end is not seen.
    pub fn new(vectors: Vectors<'a>, dim: usize) -> Self {
        let row = vectors.element_type().bytes_per_row(dim);
        let bytes = vectors.element_type().bytes_per_row(1).max(1) * vectors.len();
        Self { vectors, dim, rows: bytes / row.max(1) }
    }
}

impl Rows for InMemory<'_> {
    fn len(&self) -> usize {
        self.rows
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn element(&self) -> ElementType {
        self.vectors.element_type()
    }

    fn has(&self, row: usize) -> bool {
        row < self.rows
    }

    fn read(&self, rows: Range<usize>, visit: &mut dyn FnMut(usize, Vectors<'_>)) -> Result<(), BuildError> {
        let vectors = self.vectors.rows(self.dim, rows.start, rows.len());
        let vectors = vectors.ok_or_else(|| BuildError::Source(format!("rows {rows:?} of {}", self.rows)))?;
        visit(rows.start, vectors);
        Ok(())
    }
}

/// Steers a build: its seed, its progress, its end.
#[derive(Debug, Default)]
pub struct Control {
    /// The same seed and the same rows give the same bytes.
    pub seed: u64,
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
}

impl Control {
    /// A build that nobody has cancelled.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Asks the build to end; it fails with [`BuildError::Cancelled`] within milliseconds.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// How much is done, from 0 to 1.
    pub fn progress(&self) -> f64 {
        let total = self.total.load(Ordering::Relaxed).max(1);
        (self.done.load(Ordering::Relaxed) as f64 / total as f64).min(1.0)
    }

    /// The build announces its work, in a unit of its own.
    pub(crate) fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// The build has done so much more, and ends here if it was cancelled.
    pub(crate) fn advance(&self, done: u64) -> Result<(), BuildError> {
        self.done.fetch_add(done, Ordering::Relaxed);
        if self.cancelled.load(Ordering::Relaxed) { Err(BuildError::Cancelled) } else { Ok(()) }
    }
}

/// Why an index was not built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// It was cancelled.
    Cancelled,
    /// The rows could not be read: what failed.
    Source(String),
    /// This index does not exist for these vectors, or with these parameters: what does not go together, and what does.
    Unsupported(String),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("the build of the index was cancelled"),
            Self::Source(what) => write!(f, "the vectors could not be read: {what}"),
            Self::Unsupported(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for BuildError {}
