//! Random SQL against a plain model of the tables, on a folder of its own, through the engine crate.
//!
//! After each operation the newest version is compared in full; after each 100 the history, and 10 random older versions
//! by number and by time. A difference is shown with the seed, the number of the operation, the last statements and
//! the rows that only one side has; the same seed gives the same run.
//!
//! `ORACLE_SEED` (a number), `ORACLE_OPERATIONS` (2,000 if absent) and `ORACLE_FOLDER` (a folder that is kept, for
//! looking at what is left) choose the run. Tables are made anew after each 2,000 operations, so that a run of any
//! length needs bounded memory and disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "oracle/driver.rs"]
mod driver;
#[path = "oracle/expression.rs"]
mod expression;
#[path = "oracle/merge.rs"]
mod merge;
#[path = "oracle/model.rs"]
mod model;
#[path = "oracle/random.rs"]
mod random;
#[path = "oracle/reads.rs"]
mod reads;
#[path = "oracle/statement.rs"]
mod statement;
#[path = "oracle/time.rs"]
mod time;
#[path = "oracle/upkeep.rs"]
mod upkeep;
#[path = "oracle/value.rs"]
mod value;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use driver::{Check, Driver};
use model::Which;
use random::Random;

const SEED: u64 = 20_261_122;
const OPERATIONS: u64 = 2_000;
/// Operations between two comparisons of older versions.
const CHECKPOINT: u64 = 100;
/// Operations on one generation of tables.
const GENERATION: u64 = 2_000;
/// Rows beyond which a table is thinned out.
const ROWS_MAX: usize = 400;

fn main() -> ExitCode {
    // `cargo test name` hands the name to every binary.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if !wanted.is_empty() && !wanted.iter().any(|word| "oracle".contains(word.as_str())) {
        return ExitCode::SUCCESS;
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seed = number("ORACLE_SEED").unwrap_or(SEED);
    let operations = number("ORACLE_OPERATIONS").unwrap_or(OPERATIONS);
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let path = std::env::var_os("ORACLE_FOLDER").map_or_else(|| scratch.path().join("database"), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(16 << 20)
        .enable_all()
        .build()
        .expect("a runtime");
    // A task, not the main thread: plans are deep, and only the workers have the stack for them.
    runtime.block_on(async { tokio::spawn(run(path, seed, operations)).await.expect("the run ends by itself") })
}

async fn run(path: PathBuf, seed: u64, operations: u64) -> ExitCode {
    let began = Instant::now();
    let mut driver = match Driver::open(path, Random::new(seed)).await {
        Ok(driver) => driver,
        Err(problem) => {
            println!("oracle result: FAILED. seed {seed}: the tables cannot be made: {problem}");
            return ExitCode::FAILURE;
        }
    };
    for operation in 1..=operations {
        if let Err(problem) = step(&mut driver, operation).await {
            println!("the last statements:\n{}", driver.trace());
            println!("{problem}\n");
            println!("oracle result: FAILED. seed {seed}, operation {operation}");
            return ExitCode::FAILURE;
        }
    }
    let figures = &driver.figures;
    println!(
        "oracle result: ok. seed {seed}, {operations} operations, {} statements ({} refused), heads compared {}, older versions compared {}, searches {}, reopened {}, {:.1} s",
        figures.statements,
        figures.refused,
        figures.heads,
        figures.versions,
        figures.searches,
        figures.reopened,
        began.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

async fn step(driver: &mut Driver, operation: u64) -> Check {
    if operation.is_multiple_of(GENERATION) {
        driver.checkpoint().await?;
        driver.renew().await?;
    }
    let which = if driver.random.chance(75) { Which::Docs } else { Which::Log };
    let chosen = driver.random.weighted(&OPERATIONS_BY_WEIGHT);
    act(driver, chosen, which).await?;
    thin_out(driver).await?;
    driver.compare_head(Which::Docs).await?;
    if which == Which::Log {
        driver.compare_head(Which::Log).await?;
    }
    if operation.is_multiple_of(CHECKPOINT) { driver.checkpoint().await } else { Ok(()) }
}

#[derive(Clone, Copy)]
enum Operation {
    Insert,
    InsertTwice,
    InsertSelect,
    Upsert,
    Update,
    Delete,
    Merge,
    Truncate,
    Alter,
    Optimize,
    Vacuum,
    Tag,
    Restore,
    Search,
    Aggregate,
    AcrossMoments,
    Point,
    SessionInThePast,
    Changes,
    Reopen,
    Refusal,
    StealKey,
}

const OPERATIONS_BY_WEIGHT: [(usize, Operation); 22] = [
    (14, Operation::Insert),
    (3, Operation::InsertTwice),
    (4, Operation::InsertSelect),
    (12, Operation::Upsert),
    (13, Operation::Update),
    (9, Operation::Delete),
    (9, Operation::Merge),
    (1, Operation::Truncate),
    (4, Operation::Alter),
    (5, Operation::Optimize),
    (1, Operation::Vacuum),
    (3, Operation::Tag),
    (2, Operation::Restore),
    (8, Operation::Search),
    (4, Operation::Aggregate),
    (3, Operation::AcrossMoments),
    (3, Operation::Point),
    (1, Operation::SessionInThePast),
    (3, Operation::Changes),
    (1, Operation::Reopen),
    (4, Operation::Refusal),
    (1, Operation::StealKey),
];

/// One operation. Those that only `docs` has change nothing of `log`.
async fn act(driver: &mut Driver, operation: Operation, which: Which) -> Check {
    let (random, model) = (&mut driver.random, &mut driver.model);
    let statement = match operation {
        Operation::Insert => statement::insert(random, model, which),
        Operation::InsertTwice => statement::insert_twice(random, model),
        Operation::InsertSelect => statement::insert_select(random, model),
        Operation::Upsert => merge::upsert(random, model),
        Operation::Update => statement::update(random, model, which),
        Operation::Delete => statement::delete(random, model, which),
        Operation::Merge => merge::merge(random, model),
        Operation::Truncate => upkeep::truncate(model, which),
        Operation::Alter => upkeep::alter(random, model, which),
        Operation::Optimize => upkeep::maintain(random, model, which, "OPTIMIZE"),
        Operation::Vacuum => upkeep::maintain(random, model, which, "VACUUM"),
        Operation::Refusal => upkeep::refusal(random, model),
        Operation::StealKey => match upkeep::steal_key(random, model) {
            Some(statement) => statement,
            None => return Ok(()),
        },
        Operation::Tag => return driver.tag(which).await,
        Operation::Restore => return driver.restore(which).await,
        Operation::Search => return driver.search().await,
        Operation::Aggregate => return driver.aggregate(which).await,
        Operation::AcrossMoments => return driver.across_moments().await,
        Operation::Point => return driver.point().await,
        Operation::SessionInThePast => return driver.session_in_the_past().await,
        Operation::Changes => return driver.changes(which).await,
        Operation::Reopen => return driver.reopen().await,
    };
    driver.carry_out(statement).await
}

/// Tables stay small: what is compared in full after each operation must be.
async fn thin_out(driver: &mut Driver) -> Check {
    for which in [Which::Docs, Which::Log] {
        if driver.model.table(which).head.rows.len() > ROWS_MAX {
            let statement = statement::thin_out(&mut driver.random, &driver.model, which);
            driver.carry_out(statement).await?;
        }
    }
    Ok(())
}
