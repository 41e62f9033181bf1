//! How cost grows with the rows: builds, bytes, rates at a recall of 0.95, the first search of a new process.
//!
//! The rows are the first so many of the data set. More rows than it has are made of it: each is a projection to 96 dimensions (by a
//! matrix of normally distributed numbers, which keeps angles nearly as they are) of a real row, mixed with another real one from the
//! second round on, so that none is a copy. The table is on local disk.

use std::path::Path;
use std::sync::Arc;

use benches::Failure;
use benches::rates::{Queries, recall};
use engine::{Engine, EngineOptions};

use crate::dataset::{Dataset, Rows};
use crate::embedded::{Built, Search, build, exact, load, searchers, timed};
use crate::random::Random;
use crate::results::{Results, Subject, Title, decimal, milliseconds, quoted};
use crate::{METHODS, Method, Options, cold};

const SIZES: [usize; 2] = [10_000, 100_000];
const MADE_DIM: usize = 96;
/// How much of the other row a made one has.
const MIXED: std::ops::Range<f64> = 0.2..0.6;
const SEED: u64 = 20_261_102;
/// The cheapest of these that has the recall is the last that is measured.
const TARGETS: [&str; 4] =
    ["recall_target = 0.9", "recall_target = 0.95", "recall_target = 0.98", "recall_target = 0.99"];
const RECALL: f64 = 0.95;
/// All rows are compared for each query: rows times queries are at most so many.
const COMPARED_MAX: usize = 2_000_000_000;

/// Each size, in a folder of its own.
///
/// # Errors
/// What the engine says; a disk that is full.
pub async fn run(options: &Options, dataset: &Dataset) -> Result<(), Failure> {
    let mut sizes = match options.rows {
        Some(rows) => vec![rows],
        None => SIZES.into_iter().filter(|size| *size < dataset.rows).chain([dataset.rows]).collect(),
    };
    sizes.dedup();
    for size in sizes {
        let folder = std::env::temp_dir().join(format!("sagitta-bench-growth-{}", std::process::id()));
        let result = of_size(options, dataset, size, &folder).await;
        let removed = std::fs::remove_dir_all(&folder);
        result?;
        removed?;
    }
    Ok(())
}

async fn of_size(options: &Options, dataset: &Dataset, size: usize, folder: &Path) -> Result<(), Failure> {
    let location = folder.to_string_lossy().into_owned();
    let engine = Engine::open(&location, EngineOptions::default()).await?;
    let (rows, vectors) = rows_of(dataset, size)?;
    let (dim, name) = (rows.dim, format!("{}-{size}", dataset.name));
    load(&engine, "docs", rows).await?;
    let count = (COMPARED_MAX / size).clamp(1, vectors.len());
    let queries = exact(&engine, &dataset.sql(""), None, vectors[..count].to_vec()).await?;
    let subject = Subject { dataset: &name, rows: size, dim };
    let mut results = Results::open(&subject)?;
    for method in METHODS.iter().filter(|method| options.wants(method.sql)) {
        let built = build(&engine, "docs", method, &dataset.metric, &subject).await?;
        results.emit(&Title { kind: "build", config: method.sql }, &built.fields()?)?;
        rates(&engine, method, dataset, (&queries, &built), &mut results).await?;
        let opening = cold::Opening { location: &location, sql: &dataset.sql(""), vectors: &queries.vectors, options };
        opening.measure(method, &mut results)?;
        engine.session().execute("DROP INDEX docs_emb").await?;
    }
    Ok(())
}

/// Rates up to the first setting that has the recall.
async fn rates(
    engine: &Engine,
    method: &Method,
    dataset: &Dataset,
    (queries, built): (&Arc<Queries>, &Built),
    results: &mut Results,
) -> Result<(), Failure> {
    let sql = dataset.sql("");
    for setting in TARGETS {
        let mut one = searchers(engine, 1, &Search { sql: &sql, setting, bound: None }).await?;
        let recall = recall(&mut one[0], queries).await?;
        let (reached, usage) = timed(one, queries).await?;
        results.emit(
            &Title { kind: "search", config: method.sql },
            &[
                ("setting", quoted(setting)),
                ("recall10", decimal(recall, 4)),
                ("qps_1t", decimal(reached.qps, 1)),
                ("other_1t", decimal(usage.other_cores(), 2)),
                ("cpu_1t", decimal(usage.own_cores(), 2)),
                ("p50", milliseconds(reached.p50)),
                ("p99", milliseconds(reached.p99)),
                ("qps_one", decimal(reached.qps, 1)),
            ],
        )?;
        if recall >= RECALL || setting == TARGETS[TARGETS.len() - 1] {
            println!(
                "{}: built in {:.1} s, {} bytes of index, recall {recall:.4} at {:.0} queries/s ({setting})",
                method.sql,
                built.seconds(),
                built.segment_bytes,
                reached.qps
            );
            return Ok(());
        }
    }
    Ok(())
}

/// So many rows, real ones if there are as many, and the queries for them.
///
/// # Errors
/// Files that do not fit each other.
pub fn rows_of(dataset: &Dataset, size: usize) -> Result<(Rows, Vec<Vec<f32>>), Failure> {
    let queries = &dataset.queries.vectors;
    if size <= dataset.rows {
        return Ok((dataset.rows(size)?, queries.clone()));
    }
    let projection = Projection::new(dataset.dim);
    let (mut real, mut row, mut base) = (Vec::with_capacity(dataset.rows * MADE_DIM), vec![], dataset.base()?);
    for _ in 0..dataset.rows {
        row.clear();
        base.next_row(&mut row, f32::from_le_bytes)?;
        projection.project(&row, &mut real);
    }
    let queries: Vec<Vec<f32>> = queries
        .iter()
        .map(|query| {
            let mut projected = vec![];
            projection.project(query, &mut projected);
            projected
        })
        .collect();
    let (count, mut at, mut random) = (dataset.rows, 0, Random::new(SEED));
    let next = Box::new(move |values: &mut Vec<f32>| {
        let of = |row: usize| &real[row * MADE_DIM..(row + 1) * MADE_DIM];
        let one = of(at % count);
        if at < count {
            values.extend_from_slice(one);
        } else {
            let share = (MIXED.start + (MIXED.end - MIXED.start) * random.unit()) as f32;
            let other = of(random.below(count));
            values.extend(one.iter().zip(other).map(|(one, other)| one + share * (other - one)));
        }
        at += 1;
        Ok(())
    });
    let rows = Rows { count: size, dim: MADE_DIM, direction: queries[0].clone(), u: dataset.u()?, next, at: 0 };
    Ok((rows, queries))
}

/// A random linear map to [`MADE_DIM`] dimensions, which keeps lengths on average.
struct Projection {
    dim: usize,
    /// `MADE_DIM × dim`.
    matrix: Vec<f32>,
}

impl Projection {
    fn new(dim: usize) -> Self {
        let mut random = Random::new(SEED);
        let scale = 1.0 / (MADE_DIM as f32).sqrt();
        Self { dim, matrix: (0..MADE_DIM * dim).map(|_| scale * random.normal()).collect() }
    }

    fn project(&self, vector: &[f32], out: &mut Vec<f32>) {
        let sum = |weights: &[f32]| -> f32 {
            // Eight sums at once, as many as fit a vector register.
            let mut sums = [0.0_f32; 8];
            let (weights, values) = (weights.as_chunks::<8>(), vector.as_chunks::<8>());
            for (weights, values) in weights.0.iter().zip(values.0) {
                for (sum, (weight, value)) in sums.iter_mut().zip(weights.iter().zip(values)) {
                    *sum += weight * value;
                }
            }
            let rest = weights.1.iter().zip(values.1).map(|(weight, value)| weight * value);
            sums.iter().sum::<f32>() + rest.sum::<f32>()
        };
        out.extend(self.matrix.chunks(self.dim).map(sum));
    }
}
