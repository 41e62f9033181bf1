//! The first search of a process: a database on local disk or in a store, opened by a process that knows nothing of it yet.
//!
//! The process is this program called once more. With `--drop-caches yes` the system forgets the files too before each of them, which
//! takes root and slows down whatever else runs on the machine; without, files that were read lately are in memory. A store is reached
//! by the AWS variables of the environment; with `--slow-endpoint` the process that is measured is told that address instead
//! (`cold_s3.py`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use benches::Failure;
use benches::rates::{K, Searcher};
use engine::{Engine, EngineOptions};

use crate::dataset::Dataset;
use crate::embedded::{Search, build, load, searchers};
use crate::growth::rows_of;
use crate::npy::{FLOATS, Npy};
use crate::results::{Results, Subject, Title, decimal, median_of, quoted};
use crate::{METHODS, Method, Options, TARGET};

/// The first word of a call of the program that is measured.
pub const ONCE: &str = "once";
/// Processes; medians are told, and the worst.
const REPEATS: usize = 5;
/// Searches of each process: the first two apart, of the others the median.
const SEARCHES: usize = 40;
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// Both indexes, one after the other, over a database of its own.
///
/// # Errors
/// What the engine says, here or in the process that is measured.
pub async fn run(options: &Options, dataset: &Dataset) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("sagitta-bench-cold-{}", std::process::id()));
    let location = options.location.clone().unwrap_or_else(|| folder.to_string_lossy().into_owned());
    let size = options.rows.unwrap_or(dataset.rows);
    let result = at(&location, size, options, dataset).await;
    if options.location.is_none() {
        let removed = std::fs::remove_dir_all(&folder);
        result?;
        return Ok(removed?);
    }
    result
}

async fn at(location: &str, size: usize, options: &Options, dataset: &Dataset) -> Result<(), Failure> {
    let (rows, vectors) = rows_of(dataset, size)?;
    let name = if size == dataset.rows { dataset.name.clone() } else { format!("{}-{size}", dataset.name) };
    let subject = Subject { dataset: &name, rows: size, dim: rows.dim };
    let mut results = Results::open(&subject)?;
    // The engine is closed before another process opens the database.
    load(&Engine::open(location, EngineOptions::default()).await?, "docs", rows).await?;
    for method in METHODS.iter().filter(|method| options.wants(method.sql)) {
        {
            let engine = Engine::open(location, EngineOptions::default()).await?;
            build(&engine, "docs", method, &dataset.metric, &subject).await?;
        }
        let opening = Opening { location, sql: &dataset.sql(""), vectors: &vectors, options };
        opening.measure(method, &mut results)?;
        let engine = Engine::open(location, EngineOptions::default()).await?;
        engine.session().execute("DROP INDEX docs_emb").await?;
    }
    Ok(())
}

/// A database that processes open, and what they ask.
pub struct Opening<'a> {
    pub location: &'a str,
    pub sql: &'a str,
    pub vectors: &'a [Vec<f32>],
    pub options: &'a Options,
}

/// What a process told, in milliseconds.
struct Told {
    open: f64,
    /// From the question to the answer, preparing included.
    first: f64,
    second: f64,
    /// The median of the others.
    settled: f64,
}

impl Opening<'_> {
    /// Opens the database in processes of their own.
    ///
    /// # Errors
    /// A process that fails; caches that cannot be dropped.
    pub fn measure(&self, method: &Method, results: &mut Results) -> Result<(), Failure> {
        let queries = std::env::temp_dir().join(format!("sagitta-bench-queries-{}.npy", std::process::id()));
        store(&queries, &self.vectors[..self.vectors.len().min(SEARCHES)])?;
        let told: Result<Vec<Told>, Failure> = (0..REPEATS).map(|_| self.process(&queries)).collect();
        std::fs::remove_file(&queries)?;
        let told = told?;
        let median = |of: fn(&Told) -> f64| median_of(told.iter().map(of).collect());
        let worst = told.iter().map(|told| told.open + told.first).fold(0.0, f64::max);
        let place = if self.location.contains("://") { "store" } else { "local disk" };
        let caches = if self.options.drops_caches { "files not in memory" } else { "files in memory" };
        let slow_ms = if self.options.slow_endpoint.is_some() { self.options.slow_ms } else { 0.0 };
        let (open, first) = (median(|told| told.open), median(|told| told.first));
        let (second, settled) = (median(|told| told.second), median(|told| told.settled));
        results.emit(
            &Title { kind: "cold", config: method.sql },
            &[
                ("setting", quoted(TARGET)),
                ("place", quoted(place)),
                ("caches", quoted(caches)),
                ("added_ms_per_request", decimal(slow_ms, 1)),
                ("open_ms", decimal(open, 2)),
                ("first_ms", decimal(first, 2)),
                ("second_ms", decimal(second, 2)),
                ("settled_ms", decimal(settled, 3)),
                ("open_and_first_ms_max", decimal(worst, 2)),
            ],
        )?;
        println!(
            "{}, {place}, {caches}, {slow_ms} ms added: opened in {open:.1} ms, first search {first:.1} ms, second {second:.2} ms, \
             then {settled:.2} ms",
            method.sql
        );
        Ok(())
    }

    fn process(&self, queries: &Path) -> Result<Told, Failure> {
        if self.options.drops_caches {
            drop_caches()?;
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ONCE, self.location, self.sql]).arg(queries);
        if let Some(endpoint) = &self.options.slow_endpoint {
            command.env("AWS_ENDPOINT", endpoint);
        }
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!(
                "a process that opened the database failed: {}",
                String::from_utf8_lossy(&output.stderr)
            )
            .into());
        }
        let text = String::from_utf8(output.stdout)?;
        let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        match numbers.as_slice() {
            [open, first, second, settled] => {
                Ok(Told { open: *open, first: *first, second: *second, settled: *settled })
            }
            _ => Err(format!("a process that opened the database told {text:?}, not four numbers").into()),
        }
    }
}

/// Makes the system forget the files that it has in memory.
fn drop_caches() -> Result<(), Failure> {
    // What is not on disk yet is kept.
    Command::new("sync").status()?;
    std::fs::write(DROP_CACHES, "3").map_err(|error| {
        format!("{DROP_CACHES} cannot be written ({error}); run as root, or leave --drop-caches out")
    })?;
    Ok(())
}

/// Writes vectors as NumPy does.
fn store(path: &Path, vectors: &[Vec<f32>]) -> Result<(), Failure> {
    let (count, dim) = (vectors.len(), vectors.first().map_or(0, Vec::len));
    let mut head = format!("{{'descr': '{FLOATS}', 'fortran_order': False, 'shape': ({count}, {dim}), }}");
    // With the ten bytes before it, the head is a multiple of 64.
    head.extend(std::iter::repeat_n(' ', 63 - (head.len() + 10) % 64));
    head.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(head.len())?.to_le_bytes());
    bytes.extend(head.as_bytes());
    bytes.extend(vectors.iter().flatten().flat_map(|value| value.to_le_bytes()));
    Ok(std::fs::write(path, bytes)?)
}

/// The process that is measured: `once LOCATION SQL QUERIES` prints the milliseconds of opening, of the first search, of the second
/// one, and the median of the others.
///
/// # Errors
/// What the engine says.
pub async fn once(words: &[String]) -> Result<(), Failure> {
    let [location, sql, queries] = words else {
        return Err(format!("{ONCE} is for the bench itself, which gives it a place, a search and queries").into());
    };
    let file = Npy::open(&PathBuf::from(queries), FLOATS)?;
    let dim = file.width;
    let vectors = file.values(f32::from_le_bytes)?;
    let start = Instant::now();
    let engine = Engine::open(location, EngineOptions { create: false, ..EngineOptions::default() }).await?;
    let opened = start.elapsed();
    let start = Instant::now();
    let mut one = searchers(&engine, 1, &Search { sql, setting: TARGET, bound: None }).await?;
    let mut times = vec![];
    for vector in vectors.chunks(dim) {
        // Preparing counts for the first one.
        let start = if times.is_empty() { start } else { Instant::now() };
        let found = one[0].nearest(vector).await?;
        times.push(start.elapsed());
        if found.len() != K {
            return Err(format!("a search found {} rows, not {K}", found.len()).into());
        }
    }
    let [first, second, others @ ..] = times.as_slice() else {
        return Err("there are too few queries".into());
    };
    let ms = |time: Duration| decimal(time.as_secs_f64() * 1e3, 4);
    println!("{} {} {} {}", ms(opened), ms(*first), ms(*second), ms(benches::median(others.to_vec())));
    Ok(())
}
