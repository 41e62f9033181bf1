//! What benches share: arguments, a folder and a runtime, times and what they say, the machine's name.

pub mod flight_client;
pub mod plain;
pub mod postgres;
pub mod rates;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::{Answer, Engine, EngineOptions, Session};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whatever stops a bench.
pub type Failure = Box<dyn std::error::Error>;

/// The arguments of a bench, without what cargo adds.
pub fn arguments() -> Vec<String> {
    std::env::args().skip(1).filter(|argument| argument != "--bench").collect()
}

/// Runs a bench in a folder of its own below `parent`, the system's for temporary files if there is none.
///
/// # Errors
/// What the bench returns, and a folder that cannot be removed.
pub fn in_folder<F>(parent: Option<&String>, name: &str, bench: impl FnOnce(PathBuf) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let parent = parent.map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = parent.join(format!("sagitta-bench-{name}-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build()?;
    println!("machine: {}", machine());
    let result = runtime.block_on(bench(folder.clone()));
    let removed = std::fs::remove_dir_all(&folder);
    // A bench that failed may not have come to its folder.
    result?;
    Ok(removed?)
}

/// A session of a new engine: nothing is cached.
///
/// # Errors
/// A folder that is no database.
pub async fn open(folder: &Path) -> Result<Session, Failure> {
    Ok(Engine::open(&folder.to_string_lossy(), EngineOptions::default()).await?.session())
}

/// Runs a statement that writes, and says how many rows it wrote.
///
/// # Errors
/// Those of the statement; one that gives rows.
pub async fn written(session: &Session, sql: &str) -> Result<u64, Failure> {
    match session.execute(sql).await? {
        Answer::Done(done) => Ok(done.rows.unwrap_or(0)),
        Answer::Rows(_) => Err(format!("a statement that writes gave rows: {sql}").into()),
    }
}

/// Prints the first, the median and the slowest of some durations.
pub fn report(title: &str, times: Vec<Duration>) {
    let first = times.first().copied().unwrap_or_default();
    let slowest = times.iter().max().copied().unwrap_or_default();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{title}: first {:.1} ms, median of {} {:.1} ms, slowest {:.1} ms",
        ms(first),
        times.len(),
        ms(median(times)),
        ms(slowest)
    );
}

/// The median of some durations; zero for none.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Runs a piece of work once and says how long it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// Gigabytes per second.
pub fn gigabytes_per_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// The processor as the system names it, its cores and the instruction set that the kernels chose.
pub fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {cores} cores, kernels on {:?}", kernels::isa())
}
