//! Training: a sample of the rows, the space that fits it, and the centroids of its clusters.

use std::ops::Range;
use std::sync::Arc;

use kernels::{Metric, Vectors};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::assign::Assigner;
use super::cluster::{Shape, cluster, cluster_bits};
use super::codebook::{lean_of, train_codebook};
use super::routing::Routing;
use super::{Code, IvfOptions, LISTS_MAX};
use crate::build::{BuildError, Control, Rows};
use crate::space::{Moments, Space, Standing};

/// Rows of a list at least when nothing else is asked for: with fewer, more time goes into centroids than into codes.
const ROWS_PER_LIST: usize = 200;

/// Bytes per row that centroids, and the empty places of the last block of a list, may take together when nothing else is asked for.
const OVERHEAD_BYTES: usize = 7;

/// Rows of the sample for each list.
const SAMPLE_PER_LIST: usize = 96;

/// Rows of a sample at least, if there are as many.
const SAMPLE_MIN: usize = 4_096;

/// Rows of a sample that are read together.
const RUN: usize = 8;

/// Learns how to divide vectors like `rows` into lists, and for product codes their codebook.
///
/// Reads a sample, of at most half of the memory budget; costs `sample · lists · d` multiply-adds for a few rounds.
///
/// # Errors
/// [`BuildError`]: the metric or the options do not go with the vectors, the rows cannot be read, or it was cancelled.
pub fn train(rows: &dyn Rows, metric: Metric, options: &IvfOptions, control: &Control) -> Result<Routing, BuildError> {
    let (dim, element) = (rows.dim(), rows.element());
    Space::check(metric, element, dim)?;
    options.check(element)?;
    let lists = options.lists.unwrap_or(rows.len() / rows_per_list(dim)).clamp(1, LISTS_MAX).min(rows.len().max(1));
    let bytes_per_row = 2 * dim.next_multiple_of(16) * size_of::<f32>();
    let affordable = (options.memory_bytes / 2 / bytes_per_row.max(1)).max(lists);
    let wanted = (lists * SAMPLE_PER_LIST).max(SAMPLE_MIN).min(affordable).min(rows.len());
    let runs = runs(rows.len(), wanted, control.seed);
    if metric.is_for_bits() {
        let mut sample: Vec<u8> = vec![];
        read_sample(rows, &runs, control, &mut |vector| {
            if let Vectors::Bits(bytes) = vector {
                sample.extend_from_slice(bytes);
            }
        })?;
        let bytes = dim / 8;
        if sample.is_empty() {
            sample.resize(bytes, 0);
        }
        return Ok(Routing::bits(metric, dim, cluster_bits(&sample, bytes, lists, control.seed, control)?));
    }
    let mut moments = Moments::new(metric, dim);
    read_sample(rows, &runs, control, &mut |vector| moments.add(vector))?;
    let space = Space::new(metric, element, dim, moments, control.seed);
    let space = space.ok_or_else(|| BuildError::Unsupported("a vector of no dimension".into()))?;
    let (mut sample, mut projected, mut standings) = (vec![], vec![], vec![]);
    read_sample(rows, &runs, control, &mut |vector| {
        space.project(vector, &mut projected, &mut standings);
        if standings.first() == Some(&Standing::Projected) {
            sample.extend_from_slice(&projected);
        }
    })?;
    if sample.is_empty() {
        sample.resize(space.padded(), 0.0);
    }
    let middle = space.projected_zero();
    let shape = if metric == Metric::Cosine { Shape::Sphere(&middle) } else { Shape::Plain };
    let clusters = cluster(&sample, space.padded(), lists, shape, control.seed, control)?;
    let padded = space.padded();
    let mut routing = Routing::projected(space, &clusters.lists, &clusters.upper, clusters.upper_ends);
    if let Code::Pq { bits, dims: code_dims } = options.code {
        let lean = if metric == Metric::L2 { 0.0 } else { lean_of(options.score_threshold, dim) };
        let code = ((bits, code_dims), lean);
        let codebook = train_codebook((&sample, padded), &Assigner::new(&routing), metric, code, control)?;
        routing.codebook = Some(Arc::new(codebook));
    }
    Ok(routing)
}

/// Rows of a list: smaller lists are nearer to a query on the whole, and cost more bytes per row. A centroid takes a byte per element and
/// a few more; half a block of 1-bit codes with their factors stays empty.
fn rows_per_list(dim: usize) -> usize {
    let centroid = dim + 20;
    let empty = (kernels::BLOCK_ROWS / 2) * (dim / 8 + 8);
    ROWS_PER_LIST.max((centroid + empty).div_ceil(OVERHEAD_BYTES))
}

/// Runs of rows, spread evenly over all, each at a random place of its part; all rows if nearly all are wanted.
fn runs(rows: usize, wanted: usize, seed: u64) -> Vec<Range<usize>> {
    if wanted * 2 > rows {
        let step = rows.max(1);
        return (0..rows).step_by(step).map(|start| start..rows.min(start + step)).collect();
    }
    let count = wanted.div_ceil(RUN).max(1);
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x5a3b);
    let run = |index: usize| {
        let (start, end) = (rows * index / count, rows * (index + 1) / count);
        let last = end.saturating_sub(RUN).max(start);
        let at = random.random_range(start..=last);
        at..(at + RUN).min(end)
    };
    (0..count).map(run).collect()
}

/// Shows every vector of the runs that is there.
fn read_sample(
    rows: &dyn Rows,
    runs: &[Range<usize>],
    control: &Control,
    visit: &mut dyn FnMut(Vectors<'_>),
) -> Result<(), BuildError> {
    for run in runs {
        control.advance(0)?;
        rows.read(run.clone(), &mut |first, vectors| {
            let count = rows_in(vectors, rows.dim());
            for (index, row) in (first..first + count).enumerate() {
                if let (true, Some(vector)) = (rows.has(row), vectors.rows(rows.dim(), index, 1)) {
                    visit(vector);
                }
            }
        })?;
    }
    Ok(())
}

/// Whole vectors of `dim` elements.
pub(crate) fn rows_in(vectors: Vectors<'_>, dim: usize) -> usize {
    let values = if let Vectors::Bits(_) = vectors { dim / 8 } else { dim };
    vectors.len() / values.max(1)
}
