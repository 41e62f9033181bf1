//! Queries far from the data: whether they are found at the recall that is asked for, and how much longer they take.
//!
//! Each is made of a real query and has its length: a random direction; the same numbers at other places; noise of normal distribution
//! added, half as long as the query and as long. `far.npy` in the data set's folder, if it is there, holds others: of texts in another
//! language, of another model. Real and far queries run in turn, so that `speed_ratio` is of pairs.

use std::sync::Arc;

use benches::Failure;
use benches::rates::{Queries, recall};
use engine::{Engine, EngineOptions};

use crate::dataset::{Dataset, dot};
use crate::embedded::{Search, build, exact, in_turn, load, searchers};
use crate::random::Random;
use crate::results::{Results, Title, decimal, median_of, milliseconds, quoted};
use crate::{Method, TARGET};

/// All candidates are compared for each, at some hundred in a second.
const QUERIES: usize = 300;
const SEED: u64 = 20_261_101;

/// Makes a far query of a real one.
type Remake = fn(&mut Random, &[f32]) -> Vec<f32>;

const KINDS: [(&str, Remake); 4] = [
    ("random direction", |random, query| of_length(query.iter().map(|_| random.normal()).collect(), length(query))),
    ("coordinates permuted", permuted),
    ("noise half as long", |random, query| noisy(random, query, 0.5)),
    ("noise as long", |random, query| noisy(random, query, 1.0)),
];

fn length(vector: &[f32]) -> f64 {
    dot(vector, vector).sqrt()
}

fn of_length(mut vector: Vec<f32>, wanted: f64) -> Vec<f32> {
    let factor = (wanted / length(&vector)) as f32;
    vector.iter_mut().for_each(|value| *value *= factor);
    vector
}

/// Fisher and Yates's shuffle.
fn permuted(random: &mut Random, query: &[f32]) -> Vec<f32> {
    let mut vector = query.to_vec();
    for last in (1..vector.len()).rev() {
        vector.swap(last, random.below(last + 1));
    }
    vector
}

fn noisy(random: &mut Random, query: &[f32], share: f64) -> Vec<f32> {
    let deviation = (share * length(query) / (query.len() as f64).sqrt()) as f32;
    let vector = query.iter().map(|value| value + deviation * random.normal()).collect();
    of_length(vector, length(query))
}

/// All of it, in an engine of its own.
///
/// # Errors
/// What the engine says.
pub async fn run(method: &Method, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    let engine = Engine::open("memory:", EngineOptions::default()).await?;
    load(&engine, "docs", dataset.rows(dataset.rows)?).await?;
    build(&engine, "docs", method, &dataset.metric, &dataset.subject()).await?;
    let near: Vec<Vec<f32>> = dataset.queries.vectors.iter().take(QUERIES).cloned().collect();
    for (name, remake) in KINDS {
        let mut random = Random::new(SEED);
        let far = near.iter().map(|query| remake(&mut random, query)).collect();
        compare(&engine, method, dataset, (name, far), results).await?;
    }
    if let Some(mut given) = dataset.far()? {
        given.truncate(QUERIES);
        compare(&engine, method, dataset, ("far.npy", given), results).await?;
    }
    Ok(())
}

async fn compare(
    engine: &Engine,
    method: &Method,
    dataset: &Dataset,
    (name, far): (&str, Vec<Vec<f32>>),
    results: &mut Results,
) -> Result<(), Failure> {
    let sql = dataset.sql("");
    let search = || Search { sql: &sql, setting: TARGET, bound: None };
    let far: Arc<Queries> = exact(engine, &sql, None, far).await?;
    let mut one = searchers(engine, 1, &search()).await?;
    let recall = recall(&mut one[0], &far).await?;
    let in_turn = in_turn(engine, &[(search(), Arc::clone(&dataset.queries)), (search(), far)]).await?;
    let (rounds, usage) = in_turn;
    let qps = |at: usize| median_of(rounds[at].iter().map(|round| round.qps).collect());
    let ratio = median_of(rounds[0].iter().zip(&rounds[1]).map(|(near, far)| far.qps / near.qps).collect());
    let p99 = rounds[1].iter().map(|round| round.p99).max().unwrap_or_default();
    results.emit(
        &Title { kind: "far", config: method.sql },
        &[
            ("setting", quoted(TARGET)),
            ("queries", quoted(name)),
            ("recall10", decimal(recall, 4)),
            ("qps_1t", decimal(qps(1), 1)),
            ("qps_one", decimal(qps(1), 1)),
            ("p50", milliseconds(benches::median(rounds[1].iter().map(|round| round.p50).collect()))),
            ("p99", milliseconds(p99)),
            ("near_qps_1t", decimal(qps(0), 1)),
            ("speed_ratio", decimal(ratio, 3)),
            ("other_1t", decimal(usage.other_cores(), 2)),
        ],
    )?;
    println!("{}, {name}: recall {recall:.4}, speed {ratio:.2} of that of real queries", method.sql);
    Ok(())
}
