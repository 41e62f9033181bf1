//! An index under changes: the newest version and the first one beside a table that nobody changed, with the same index.
//!
//! A fifth of the rows is deleted, of another fifth a column without vectors is updated, the table is brought together (OPTIMIZE), and
//! nobody asks for a new index. Then a fifth of the vectors is updated: rates before, while a build in the background
//! catches up, and after. All searches of a round run in turn, so that `time_ratio`, the time of a question beside the same one in the
//! table `twin`, is of pairs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::rates::{self, K, Queries, SearchRates, found, recall_of};
use benches::{Failure, written};
use engine::{Engine, EngineOptions, Session};

use crate::dataset::{COSINE, Dataset};
use crate::embedded::{Search, WINDOW, build, exact, in_turn, load, numbers, searchers};
use crate::results::{Meter, Results, Title, Usage, decimal, median_of, milliseconds, quoted};
use crate::{Method, TARGET};

/// Rows are dealt by `id % PARTS`: one part is deleted, one gets another column, one gets other vectors.
const PARTS: i64 = 5;
const DELETED: i64 = 0;
/// Fewer rows than these are compared exactly for good: no segment is built for them.
const UNCOVERED_ROWS_MIN: i64 = 4_096;
/// After so long the build in the background counts as stuck.
const CATCH_UP_MAX: Duration = Duration::from_secs(600);
const HEAD: &str = "docs";
const FIRST: &str = "docs FOR VERSION AS OF 'first'";
const TWIN: &str = "twin";

/// One of the things that are searched in turn.
struct Place<'a> {
    from: &'a str,
    /// As it is called in results.
    moment: &'a str,
    truth: Arc<Queries>,
    /// Whether rows of the part that was deleted may be found.
    has_deleted: bool,
}

/// All of it, in an engine of its own.
///
/// # Errors
/// What the engine says; a row that was deleted and is found, an answer that is short; a build that does not catch up.
pub async fn run(method: &Method, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    if dataset.metric.operator != COSINE.operator {
        return Err(format!(
            "versions adds vectors up, which cosine alone takes; {} is by another distance",
            dataset.name
        )
        .into());
    }
    let engine = Engine::open("memory:", EngineOptions::default()).await?;
    for table in [HEAD, TWIN] {
        load(&engine, table, dataset.rows(dataset.rows)?).await?;
        build(&engine, table, method, &dataset.metric, &dataset.subject()).await?;
    }
    let session = engine.session();
    session.execute("CREATE TAG first ON docs").await?;
    let bench = Bench { engine, session, method, dataset };
    let first = || Arc::clone(&dataset.queries);
    let twin = || Place { from: TWIN, moment: "unchanged table", truth: first(), has_deleted: true };
    let past = |moment| Place { from: FIRST, moment, truth: first(), has_deleted: true };
    let head = |moment, truth, has_deleted| Place { from: HEAD, moment, truth, has_deleted };

    bench.measure(&[twin(), head("before changes", first(), true)], results).await?;
    let deleted = bench.change(&format!("DELETE FROM docs WHERE id % {PARTS} = {DELETED}")).await?;
    let updated = bench.change(&format!("UPDATE docs SET released = released + 1 WHERE id % {PARTS} = 1")).await?;
    let optimized = bench.change("OPTIMIZE docs").await?;
    println!("{}: deleted in {deleted:.2} s, updated in {updated:.2} s, optimized in {optimized:.2} s", method.sql);
    let truth = bench.truth().await?;
    let places = [
        twin(),
        head("after deletes, updates of a column, OPTIMIZE", truth, false),
        past("AS OF the first version, after these"),
    ];
    bench.measure(&places, results).await?;

    let updated = bench
        .change(&format!(
            "UPDATE docs SET emb = normalize(docs.emb + other.emb) FROM twin AS other \
             WHERE other.id = docs.id + 1 AND docs.id % {PARTS} = 2"
        ))
        .await?;
    let truth = bench.during(results).await?;
    println!("{}: vectors updated in {updated:.2} s", method.sql);
    let places = [
        twin(),
        head("after updates of vectors, caught up", truth, false),
        past("AS OF the first version, after updates of vectors"),
    ];
    bench.measure(&places, results).await
}

struct Bench<'a> {
    engine: Engine,
    session: Session,
    method: &'a Method,
    dataset: &'a Dataset,
}

impl Bench<'_> {
    fn sql(&self, from: &str) -> String {
        self.dataset.metric.search(from)
    }

    /// Runs a statement. Returns the seconds that it took.
    async fn change(&self, sql: &str) -> Result<f64, Failure> {
        let start = Instant::now();
        if sql.starts_with("OPTIMIZE") {
            self.session.execute(sql).await?.collect().await?;
        } else if written(&self.session, sql).await? == 0 {
            return Err(format!("no row was changed by {sql}").into());
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// The nearest rows of the newest version.
    async fn truth(&self) -> Result<Arc<Queries>, Failure> {
        exact(&self.engine, &self.sql(HEAD), None, self.dataset.queries.vectors.clone()).await
    }

    /// How many rows the index of `docs` does not cover, and whether a build runs.
    async fn behind(&self) -> Result<(i64, bool), Failure> {
        let sql = "SELECT rows_uncovered, CASE WHEN state = 'building' THEN 1 ELSE 0 END FROM system.indexes \
            WHERE table_name = 'docs'";
        match numbers(&self.session, sql).await?.as_slice() {
            [uncovered, building] => Ok((*uncovered, *building == 1)),
            other => Err(format!("there is not one index on docs, but {}", other.len() / 2).into()),
        }
    }

    /// Recall of each, then rates in turn; the first one is what the others are compared with.
    async fn measure(&self, places: &[Place<'_>], results: &mut Results) -> Result<(), Failure> {
        let sqls: Vec<String> = places.iter().map(|place| self.sql(place.from)).collect();
        let (mut recalls, mut searches) = (vec![], vec![]);
        let (uncovered_before, _) = self.behind().await?;
        for (place, sql) in places.iter().zip(&sqls) {
            let mut one = searchers(&self.engine, 1, &Search { sql, setting: TARGET, bound: None }).await?;
            let found = found(&mut one[0], &place.truth.vectors).await?;
            check(place, &found)?;
            recalls.push(recall_of(&found, &place.truth.nearest));
            searches.push((Search { sql, setting: TARGET, bound: None }, Arc::clone(&place.truth)));
        }
        let (rounds, usage) = in_turn(&self.engine, &searches).await?;
        let (uncovered, _) = self.behind().await?;
        for ((place, recall), reached) in places.iter().zip(recalls).zip(&rounds) {
            let ratios = rounds[0].iter().zip(reached).map(|(twin, reached)| twin.qps / reached.qps);
            let ratio = median_of(ratios.collect());
            let mut fields = fields(place.moment, recall, reached, usage);
            fields.extend([
                ("time_ratio", decimal(ratio, 3)),
                ("rows_uncovered_before", uncovered_before.to_string()),
                ("rows_uncovered", uncovered.to_string()),
            ]);
            results.emit(&Title { kind: "versions", config: self.method.sql }, &fields)?;
            println!(
                "{}, {}: recall {recall:.4}, time {ratio:.2} of the unchanged table's",
                self.method.sql, place.moment
            );
        }
        Ok(())
    }

    /// Rates while the index catches up. Returns the true answers.
    async fn during(&self, results: &mut Results) -> Result<Arc<Queries>, Failure> {
        let (start, sql) = (Instant::now(), self.sql(HEAD));
        let search = Search { sql: &sql, setting: TARGET, bound: None };
        let vectors = &self.dataset.queries.vectors;
        let uncovered_at_first = self.behind().await?.0;
        // What is right is found out later: that takes long, and the build goes on.
        let unknown = Arc::new(Queries { vectors: vectors.clone(), nearest: vec![vec![]; vectors.len()] });
        let meter = Meter::start();
        let mut one = searchers(&self.engine, 1, &search).await?;
        let found = found(&mut one[0], vectors).await?;
        let mut reached = vec![];
        loop {
            let (uncovered, is_building) = self.behind().await?;
            if uncovered < UNCOVERED_ROWS_MIN && !is_building {
                break;
            }
            if start.elapsed() > CATCH_UP_MAX {
                return Err(format!("{uncovered} rows are not in the index after {} s", CATCH_UP_MAX.as_secs()).into());
            }
            let one = searchers(&self.engine, 1, &search).await?;
            reached.push(rates::search(one, &unknown, WINDOW, 1).await?);
        }
        let caught_up = start.elapsed().as_secs_f64();
        let usage = meter.usage();
        let truth = self.truth().await?;
        let place =
            Place { from: HEAD, moment: "during the build after updates of vectors", truth, has_deleted: false };
        check(&place, &found)?;
        let recall = recall_of(&found, &place.truth.nearest);
        if reached.is_empty() {
            println!("{}: the index never fell behind", self.method.sql);
            return Ok(place.truth);
        }
        let mut fields = fields(place.moment, recall, &reached, usage);
        fields.extend([
            ("caught_up_s", decimal(caught_up, 2)),
            ("rows_uncovered_before", uncovered_at_first.to_string()),
        ]);
        results.emit(&Title { kind: "versions", config: self.method.sql }, &fields)?;
        println!("{}, {}: recall {recall:.4}, caught up after {caught_up:.1} s", self.method.sql, place.moment);
        Ok(place.truth)
    }
}

/// The fields that all rows have: medians of rounds, the worst p99.
fn fields(moment: &str, recall: f64, rounds: &[SearchRates], usage: Usage) -> Vec<(&'static str, String)> {
    let qps = median_of(rounds.iter().map(|round| round.qps).collect());
    let p50 = benches::median(rounds.iter().map(|round| round.p50).collect());
    let p99 = rounds.iter().map(|round| round.p99).max().unwrap_or_default();
    vec![
        ("setting", quoted(TARGET)),
        ("moment", quoted(moment)),
        ("recall10", decimal(recall, 4)),
        ("qps_1t", decimal(qps, 1)),
        ("qps_one", decimal(qps, 1)),
        ("p50", milliseconds(p50)),
        ("p99", milliseconds(p99)),
        ("other_1t", decimal(usage.other_cores(), 2)),
    ]
}

/// # Errors
/// A row that is dead, an answer that is too short.
fn check(place: &Place<'_>, found: &[Vec<i64>]) -> Result<(), Failure> {
    for ids in found {
        if let Some(ghost) = ids.iter().find(|id| !place.has_deleted && **id % PARTS == DELETED) {
            return Err(format!("{}: the row {ghost} was deleted, and is found", place.moment).into());
        }
        if ids.len() != K {
            return Err(format!("{}: an answer has {} rows, not {K}", place.moment, ids.len()).into());
        }
    }
    Ok(())
}
