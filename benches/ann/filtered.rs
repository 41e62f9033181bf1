//! Searches among the rows that a predicate keeps, no index on the predicate's columns.
//!
//! The engine keeps which rows a predicate keeps. `warm`: the same predicate was asked before. `cold`: each question has a bound that
//! none had before, and yet the same rows match, since it lies between two numbers of the column.

use std::sync::Arc;

use benches::Failure;
use benches::rates::{Queries, recall};
use engine::arrow::array::AsArray;
use engine::arrow::datatypes::Float64Type;
use engine::{Engine, EngineOptions, Session};

use crate::dataset::{Dataset, FILTERED_QUERIES_MAX, U_VALUES, dot};
use crate::embedded::{Bound, Search, build, exact, load, searchers, timed};
use crate::results::{Results, Title, decimal, milliseconds, quoted};
use crate::{Method, TARGET};

/// How many numbers of `u` a predicate keeps, beside those whose answers are stored: all, one in a thousand and in ten thousand.
const OTHER_BOUNDS: [u32; 3] = [10_000, 10, 1];
/// Shares of the rows that lie farthest in a direction.
const SIDE_SHARES: [f64; 4] = [0.5, 0.1, 0.01, 0.001];
/// Half of the gap between two numbers of `part` takes so many questions.
const STEPS: f64 = 1e6;

/// A predicate, with `$2` in it, and what is asked.
struct Predicate<'a> {
    text: &'a str,
    /// The smallest number that `$2` may be.
    value: f64,
    /// How far it may grow before other rows match; 0 if that is not known.
    room: f64,
    selectivity: f64,
    /// What kind of rows it keeps.
    note: &'a str,
    queries: Arc<Queries>,
}

/// All of it, in an engine of its own.
///
/// # Errors
/// What the engine says.
pub async fn run(method: &Method, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    let engine = Engine::open("memory:", EngineOptions::default()).await?;
    load(&engine, "docs", dataset.rows(dataset.rows)?).await?;
    build(&engine, "docs", method, &dataset.metric, &dataset.subject()).await?;
    stored(&engine, method, dataset, results).await?;
    for bound in OTHER_BOUNDS {
        let sql = dataset.sql(BY_PART);
        let at = Bound { value: f64::from(bound), step: 0.0 };
        let vectors = dataset.queries.vectors.iter().take(FILTERED_QUERIES_MAX).cloned().collect();
        let queries = exact(&engine, &sql, Some(at), vectors).await?;
        by_part(&engine, method, dataset, bound, queries, results).await?;
    }
    by_side(&engine, method, dataset, results).await
}

const BY_PART: &str = "WHERE part < $2";

/// The predicates whose answers are stored, which the rivals are asked too.
///
/// # Errors
/// What the engine says.
pub async fn stored(engine: &Engine, method: &Method, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    for (bound, queries) in &dataset.filtered {
        by_part(engine, method, dataset, *bound, Arc::clone(queries), results).await?;
    }
    Ok(())
}

async fn by_part(
    engine: &Engine,
    method: &Method,
    dataset: &Dataset,
    bound: u32,
    queries: Arc<Queries>,
    results: &mut Results,
) -> Result<(), Failure> {
    let predicate = Predicate {
        text: BY_PART,
        value: f64::from(bound),
        room: 0.5,
        selectivity: f64::from(bound) / U_VALUES,
        note: "",
        queries,
    };
    measured(engine, method, dataset, &predicate, results).await
}

/// Rows that lie far in a direction, asked for by the queries that do so too; and by those, the rows that lie least far in it.
async fn by_side(engine: &Engine, method: &Method, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    let session = engine.session();
    let mut vectors = dataset.queries.vectors.clone();
    vectors.sort_by(|one, other| dot(other, dataset.direction()).total_cmp(&dot(one, dataset.direction())));
    vectors.truncate(FILTERED_QUERIES_MAX);
    for share in SIDE_SHARES {
        let count = (dataset.rows as f64 * share) as usize;
        for (text, order, note) in [
            ("WHERE side > $2", "side DESC", ", rows near the queries"),
            ("WHERE side < $2", "side", ", rows far from the queries"),
        ] {
            let value = side_at(&session, order, count).await?;
            let sql = dataset.sql(text);
            let queries = exact(engine, &sql, Some(Bound { value, step: 0.0 }), vectors.clone()).await?;
            let predicate = Predicate { text, value, room: 0.0, selectivity: share, note, queries };
            measured(engine, method, dataset, &predicate, results).await?;
        }
    }
    Ok(())
}

/// The number in the column `side` that so many rows come before.
async fn side_at(session: &Session, order: &str, count: usize) -> Result<f64, Failure> {
    let sql = format!("SELECT side FROM docs ORDER BY {order} LIMIT 1 OFFSET {count}");
    let batches = session.execute(&sql).await?.collect().await?;
    let value =
        batches.iter().find(|batch| batch.num_rows() > 0).ok_or("there are too few rows for a share of them")?;
    Ok(value.column(0).as_primitive::<Float64Type>().value(0))
}

async fn measured(
    engine: &Engine,
    method: &Method,
    dataset: &Dataset,
    predicate: &Predicate<'_>,
    results: &mut Results,
) -> Result<(), Failure> {
    let Predicate { text, value, room, selectivity, note, queries } = predicate;
    let sql = dataset.sql(text);
    let mut rates = vec![];
    // What is asked first while nothing is known: each cold question, by a session of its own, has a bound of its own.
    for (state, first, step) in [("cold", 0.25, room / STEPS), ("warm", 0.0, 0.0)] {
        if state == "cold" && *room == 0.0 {
            continue;
        }
        let bound = Bound { value: value + first * room, step };
        let mut one = searchers(engine, 1, &Search { sql: &sql, setting: TARGET, bound: Some(bound) }).await?;
        let recall = recall(&mut one[0], queries).await?;
        let (reached, usage) = timed(one, queries).await?;
        results.emit(
            &Title { kind: "filter", config: method.sql },
            &[
                ("setting", quoted(TARGET)),
                ("selectivity", selectivity.to_string()),
                ("recall10", decimal(recall, 4)),
                ("qps", decimal(reached.qps, 1)),
                ("p50", milliseconds(reached.p50)),
                ("p99", milliseconds(reached.p99)),
                ("other_cpu", decimal(usage.other_cores(), 2)),
                ("bitmap", quoted(state)),
                ("note", quoted(&format!("no index on the column, bitmap {state}{note}"))),
            ],
        )?;
        rates.push(format!("{state} {:.0}/s at {recall:.4}", reached.qps));
    }
    println!("{}, {text}, {:.2} % of the rows{note}: {}", method.sql, selectivity * 100.0, rates.join(", "));
    Ok(())
}
