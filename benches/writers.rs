//! Commits per second of one table with 1, 2, 4 and 8 writers of one process, and how long each waits for its commit.
//!
//! `cargo bench -p benches --bench writers -- [FOLDER] [COMMITS]`
//!
//! Each statement is one row: an insert of a new key, or an upsert of a key that the writer has written before. Each
//! count of writers has a table of its own with 10,000 rows; the rounds of all counts take turns, so that a slow minute
//! of the machine meets them all. The folder should be on the disk in question: an acknowledged commit is on it.
//! The rival is plain Lance, whose writers start over when another was faster: `benches/writers_lance.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::{Failure, in_folder, median};
use engine::{Answer, Engine, EngineOptions};
use tokio::sync::Barrier;

const WRITERS: [usize; 4] = [1, 2, 4, 8];
const ROUNDS: usize = 3;
const COMMITS: usize = 400;
const ROWS: usize = 10_000;

fn main() -> Result<(), Failure> {
    let arguments = benches::arguments();
    let commits = arguments.get(1).map_or(Ok(COMMITS), |text| text.parse())?;
    in_folder(arguments.first(), "writers", |folder| run(folder, commits))
}

/// What one round of one count of writers took.
struct Round {
    time: Duration,
    commits: Vec<Duration>,
}

async fn run(folder: PathBuf, commits: usize) -> Result<(), Failure> {
    println!("{ROUNDS} rounds of {commits} commits of one row each, tables of {ROWS} rows, in {}", folder.display());
    for (title, is_upsert) in [("inserts of new keys", false), ("upserts of a writer's own 10 keys", true)] {
        let mut engines = vec![];
        for writers in WRITERS {
            engines.push((writers, load(&folder.join(format!("{writers}-{is_upsert}"))).await?));
        }
        let mut rounds: Vec<Vec<Round>> = WRITERS.iter().map(|_| vec![]).collect();
        for round in 0..ROUNDS {
            for (at, (writers, engine)) in engines.iter().enumerate() {
                rounds[at].push(race(engine, *writers, commits / writers, round, is_upsert).await?);
            }
        }
        print(title, &rounds);
    }
    Ok(())
}

async fn load(folder: &Path) -> Result<Engine, Failure> {
    let engine = Engine::open(&folder.to_string_lossy(), EngineOptions::default()).await?;
    let session = engine.session();
    session.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, note TEXT, emb VECTOR(4))").await?;
    session
        .execute(&format!(
            "INSERT INTO t SELECT value, 0, 'row', ARRAY[value, 1, 0, 0] FROM generate_series(1, {ROWS})"
        ))
        .await?;
    Ok(engine)
}

/// All writers from one moment on, until each has made its commits.
async fn race(
    engine: &Engine,
    writers: usize,
    commits: usize,
    round: usize,
    is_upsert: bool,
) -> Result<Round, Failure> {
    let barrier = Arc::new(Barrier::new(writers + 1));
    let mut tasks = vec![];
    for writer in 0..writers {
        let (session, barrier) = (engine.session(), Arc::clone(&barrier));
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::with_capacity(commits);
            barrier.wait().await;
            for commit in 0..commits {
                let sql = statement(writer, round * commits + commit, is_upsert);
                let start = Instant::now();
                let answer = session.execute(&sql).await.map_err(|error| format!("{sql}: {error}"))?;
                times.push(start.elapsed());
                if !matches!(&answer, Answer::Done(done) if done.rows == Some(1)) {
                    return Err(format!("{sql} answered {answer:?}"));
                }
            }
            Ok(times)
        }));
    }
    barrier.wait().await;
    let start = Instant::now();
    let mut commits = vec![];
    for task in tasks {
        commits.extend(task.await??);
    }
    Ok(Round { time: start.elapsed(), commits })
}

fn statement(writer: usize, number: usize, is_upsert: bool) -> String {
    let first = 1_000_000 * (writer + 1);
    if is_upsert {
        let key = first + number % 10;
        return format!(
            "INSERT INTO t VALUES ({key}, {number}, 'upsert', '[1, 2, 3, 4]') ON CONFLICT (id) DO UPDATE SET n = excluded.n"
        );
    }
    format!("INSERT INTO t VALUES ({}, {number}, 'insert', '[1, 2, 3, 4]')", first + number)
}

fn print(title: &str, rounds: &[Vec<Round>]) {
    println!("\n{title}\n| writers | commits/s | of one writer | p50 ms | p99 ms |\n|--:|--:|--:|--:|--:|");
    let mut of_one = None;
    for (writers, rounds) in WRITERS.iter().zip(rounds) {
        let commits = rounds.first().map_or(0, |round| round.commits.len());
        let time = median(rounds.iter().map(|round| round.time).collect());
        let rate = commits as f64 / time.as_secs_f64();
        let one = *of_one.get_or_insert(rate);
        let mut times: Vec<Duration> = rounds.iter().flat_map(|round| round.commits.clone()).collect();
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!("| {writers} | {rate:.0} | {:.2} × | {:.2} | {:.2} |", rate / one, at(0.5), at(0.99));
    }
}
