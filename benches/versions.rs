//! Time travel: opening, listing and resolving a table of many versions, and a search in the past beside one at head.
//!
//! `cargo bench -p benches --bench versions -- [FOLDER] [VERSIONS] [ROWS]`
//!
//! The first table has 1,000 rows of which one is updated by each commit, with OPTIMIZE after every 100: its manifests
//! stay as small as they are kept in practice. A timestamp is found by bisection, in about 2·log₂(versions) small reads
//! when nothing is cached. The second table has [ROWS] × 128 f32; its head differs from the version that is searched by
//! 100 updated rows, so that both read the same bytes but for those.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use benches::{Failure, in_folder, median, open, report, written};
use engine::Session;
use engine::arrow::array::AsArray;
use engine::arrow::datatypes::TimestampMicrosecondType;

const VERSIONS: usize = 10_000;
const ROWS: usize = 100_000;
const DIM: usize = 128;
/// Commits between two runs of OPTIMIZE.
const OPTIMIZED_AFTER: usize = 100;
const ROUNDS: usize = 15;
const SEARCHES: usize = 200;

fn main() -> Result<(), Failure> {
    let arguments = benches::arguments();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (versions, rows) = (number(1, VERSIONS)?, number(2, ROWS)?);
    in_folder(arguments.first(), "versions", |folder| run(folder, versions, rows))
}

async fn run(folder: PathBuf, versions: usize, rows: usize) -> Result<(), Failure> {
    many_versions(&folder, versions).await?;
    search_in_the_past(&folder, rows).await
}

async fn many_versions(folder: &Path, versions: usize) -> Result<(), Failure> {
    let session = open(folder).await?;
    session.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT)").await?;
    written(&session, "INSERT INTO t SELECT value, 0 FROM generate_series(1, 1000)").await?;
    let start = Instant::now();
    for version in 0..versions {
        written(&session, &format!("UPDATE t SET n = {version} WHERE id = {}", version % 1000 + 1)).await?;
        if version % OPTIMIZED_AFTER == OPTIMIZED_AFTER - 1 {
            collected(&session, "OPTIMIZE t").await?;
        }
    }
    println!(
        "{versions} updates of one row by its key: {:.0} per second",
        versions as f64 / start.elapsed().as_secs_f64()
    );
    let times = times(&session).await?;
    println!("versions: {}", times.len());

    let (mut opened, mut listed, mut resolved, mut again) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        // The middle between two commits, so that no commit's own time helps.
        let at = times[(round * 7919 + 4801) % (times.len() - 1)] + 1;
        let old = format!("SELECT count(*) FROM t AS OF TIMESTAMP '{}'", text(at));
        let session = timed(&mut opened, async || {
            let session = open(folder).await?;
            collected(&session, "SELECT count(*) FROM t").await?;
            Ok(session)
        })
        .await?;
        timed(&mut resolved, async || collected(&session, &old).await).await?;
        timed(&mut again, async || collected(&session, &old).await).await?;
        timed(&mut listed, async || collected(&session, "SELECT count(*) FROM table_history('t')").await).await?;
    }
    report("opened and counted at head", opened);
    report("counted at a timestamp, nothing cached", resolved);
    report("the same once more", again);
    report("listed by table_history", listed);
    Ok(())
}

async fn search_in_the_past(folder: &Path, rows: usize) -> Result<(), Failure> {
    let session = open(folder).await?;
    session.execute(&format!("CREATE TABLE docs (id BIGINT PRIMARY KEY, emb VECTOR({DIM}))")).await?;
    let elements: Vec<String> = (1..=DIM).map(|at| format!("(value * {at} % 101) / 101.0")).collect();
    let rows_of = format!("SELECT value AS id, ARRAY[{}]::VECTOR({DIM}) AS emb", elements.join(", "));
    written(&session, &format!("INSERT INTO docs {rows_of} FROM generate_series(1, {rows})")).await?;
    session.execute("CREATE TAG before ON docs").await?;
    written(&session, "UPDATE docs SET emb = emb + emb WHERE id <= 100").await?;
    let query: Vec<f32> = (0..DIM).map(|at| (at as f32 * 0.37).sin()).collect();
    let search = |moment: &str| format!("SELECT id, emb <=> $1 AS d FROM docs {moment} ORDER BY d LIMIT 10");
    let head = session.prepare(&search("")).await?;
    let past = session.prepare(&search("FOR VERSION AS OF 'before'")).await?;
    let (mut at_head, mut at_past, mut ratios) = (vec![], vec![], vec![]);
    for _ in 0..SEARCHES {
        for (prepared, times) in [(&head, &mut at_head), (&past, &mut at_past)] {
            let query = engine::vector(query.iter().copied());
            timed(times, async || Ok(prepared.run(&[query]).await?.collect().await?)).await?;
        }
        if let (Some(head), Some(past)) = (at_head.last(), at_past.last()) {
            ratios.push(past.as_secs_f64() / head.as_secs_f64());
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "search of {rows} × {DIM}: head p50 {:.2} ms, AS OF p50 {:.2} ms, AS OF / head {:.2} (median of {SEARCHES} pairs)",
        median(at_head).as_secs_f64() * 1e3,
        median(at_past).as_secs_f64() * 1e3,
        ratios[ratios.len() / 2]
    );
    Ok(())
}

/// Does something and notes how long it took.
async fn timed<T>(times: &mut Vec<Duration>, work: impl AsyncFnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let start = Instant::now();
    let result = work().await?;
    times.push(start.elapsed());
    Ok(result)
}

/// Runs a statement and forgets its rows.
async fn collected(session: &Session, sql: &str) -> Result<(), Failure> {
    session.execute(sql).await?.collect().await?;
    Ok(())
}

/// When the versions of `t` were committed, in microseconds, oldest first.
async fn times(session: &Session) -> Result<Vec<i64>, Failure> {
    let batches = session.execute("SELECT committed_at FROM table_history('t')").await?.collect().await?;
    let times = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<TimestampMicrosecondType>().values());
    Ok(times.copied().collect())
}

/// A time as SQL writes it.
fn text(at_us: i64) -> String {
    let time = engine::arrow::temporal_conversions::timestamp_us_to_datetime(at_us);
    time.map(|time| time.to_string()).unwrap_or_default()
}
