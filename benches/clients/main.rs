//! Many clients at once against a server with little memory: searches, scans read fast, slowly or half, sorts that spill,
//! ingest, definitions, metadata, polls and cancels. It fails unless
//!
//! - every error is one of the clear refusals that it lists, and every answer that it can check is right,
//! - the server's memory stays within its limit and a tenth,
//! - after the clients have left, the server holds no session, handle, statement, memory or temporary file for them, and
//!   as many files as before,
//! - every row that was acknowledged is there once, and no other.
//!
//! `cargo run --release --bin clients -- [--seconds 20] [--clients 32] [--memory 256M] [--rows 100000] [--dim 64] [--seed 1]`
//!
//! It runs the `sagitta` beside it (or SAGITTA_BIN) on a temporary folder.

mod flight;
mod load;
mod process;
mod tally;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::Failure;

use crate::flight::Client;
use crate::load::Documents;
use crate::process::{Serving, Watched};
use crate::tally::Tally;
use crate::work::Worker;

/// After so long without a call the server closes a session, and forgets a result.
const IDLE: Duration = Duration::from_secs(20);
/// How long the server may take to be as it was before.
const SETTLE: Duration = Duration::from_secs(60);
/// Files that the server may have open more than before: what it keeps open for its own use.
const FILES_KEPT: usize = 8;

/// What is run.
struct Options {
    seconds: u64,
    clients: usize,
    memory: String,
    rows: usize,
    dim: usize,
    seed: u64,
    settings: Vec<String>,
}

impl Options {
    fn read() -> Result<Self, Failure> {
        let mut options = Self {
            seconds: 20,
            clients: 32,
            memory: "256M".to_owned(),
            rows: 100_000,
            dim: 64,
            seed: 1,
            settings: vec![],
        };
        let mut words = benches::arguments().into_iter();
        while let Some(name) = words.next() {
            let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--seconds" => options.seconds = value.parse()?,
                "--clients" => options.clients = value.parse()?,
                "--memory" => options.memory = value,
                "--rows" => options.rows = value.parse()?,
                "--dim" => options.dim = value.parse()?,
                "--seed" => options.seed = value.parse()?,
                "--set" => options.settings.push(value),
                _ => {
                    return Err(
                        format!("there is no option {name}; the head of benches/clients/main.rs lists them").into()
                    );
                }
            }
        }
        Ok(options)
    }
}

fn main() -> Result<(), Failure> {
    let options = Options::read()?;
    println!("machine: {}", benches::machine());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let place = std::env::temp_dir().join(format!("sagitta-clients-{}", std::process::id()));
    let outcome = runtime.block_on(run(&options, place.clone()));
    match outcome {
        Ok(()) => {
            std::fs::remove_dir_all(&place)?;
            println!("all as it should be");
            Ok(())
        }
        Err(error) => {
            println!("the server's files and its log are left in {}", place.display());
            Err(error)
        }
    }
}

async fn run(options: &Options, place: PathBuf) -> Result<(), Failure> {
    let serving = Serving::start(&place, &options.memory, IDLE, &options.settings).await?;
    let documents = Arc::new(Documents::new(options.rows, options.dim, options.seed));
    let owner = Client::connect(&serving.uri).await?;
    load::fill(&owner, &documents).await?;
    owner.close().await?;
    let before = serving.settled(SETTLE).await;
    println!(
        "{} rows of {} dimensions are served with {} of memory; at rest the server has {} and {} files",
        options.rows,
        options.dim,
        options.memory,
        mebibytes(before.resident_bytes),
        before.files
    );
    let watching = serving.watch();
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let workers: Vec<_> = (0..options.clients)
        .map(|number| {
            let (uri, documents, seed) = (serving.uri.clone(), Arc::clone(&documents), options.seed);
            tokio::spawn(async move { Worker::new(number, uri, documents, seed).run(until).await })
        })
        .collect();
    let mut tally = Tally::default();
    for worker in workers {
        tally.add(worker.await?);
    }
    let watched = watching.stop().await;
    tally.print(options.seconds);
    print_memory(&watched, serving.limit_bytes);
    let after = serving.settled(SETTLE).await;
    let mut wrong = tally.wrong();
    wrong.extend(process::complaints(&serving, &watched, &before, &after, FILES_KEPT));
    let owner = Client::connect(&serving.uri).await?;
    wrong.extend(load::complaints(&owner, tally.acknowledged()).await?);
    owner.close().await?;
    serving.stop().await?;
    match wrong.as_slice() {
        [] => Ok(()),
        _ => Err(format!("{} things are wrong:\n{}", wrong.len(), wrong.join("\n")).into()),
    }
}

fn print_memory(watched: &Watched, limit_bytes: u64) {
    println!(
        "memory: {} at most ({:.0} % of the limit), {} at the end; reserved at most {}; {} statements waited for it at most; {} files at most",
        mebibytes(watched.resident_bytes_max),
        watched.resident_bytes_max as f64 / limit_bytes as f64 * 100.0,
        mebibytes(watched.resident_bytes_last),
        mebibytes(watched.reserved_bytes_max),
        watched.waiting_max,
        watched.files_max,
    );
}

/// Bytes for people.
fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}
