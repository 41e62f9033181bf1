//! Searches by an index as a user meets them, through SQL and over Flight: builds, recall and speed.
//!
//! `cargo bench --workspace --bench ann -- [MODE] --dataset minilm|fashion|large [--only CONFIG] [OPTION VALUE]...`
//!
//! | `MODE` | what is measured |
//! |---|---|
//! | `curves`, if none is given | recall and rates at each setting, one session and two, over Flight; filtered |
//! | `filtered` | predicates that keep from all rows to one in 10,000, their bitmaps known and not; correlated ones |
//! | `versions` | the newest version and the first after many changes; before, during and after a build that catches up |
//! | `far` | queries far from the data |
//! | `growth` | 10,000 rows, 100,000 and all; `--rows N` with more rows than there are makes them, of 96 dimensions |
//! | `cold` | the first search of a process, `--location` local or in a store; `--slow-endpoint URL --slow-ms N`, `--drop-caches yes` |
//!
//! `CONFIG` is a part of `sql graph`, `flight graph` or `sql ivf`. `$ANNBENCH` (`annbench` in the workspace's folder if unset) holds
//! `data/NAME/{base,query,gt,u,gt_u100,gt_u1000,gt_u5000}.npy` (benches/README.md). A line of JSON for each figure is printed and
//! appended to `results/sagitta.jsonl` there.
//!
//! Everything is in one process but for `cold`: engine, server and clients share its cores. `qps_1t` is one session that asks one
//! question at a time, `qps_2t` are two such sessions; `cpu_1t` and `cpu_2t` are the cores that this process kept busy meanwhile,
//! `other_*` those that others did. Recall is over all queries once; rates are medians of windows after one that warms up.

mod cold;
mod curves;
mod dataset;
mod embedded;
mod far;
mod filtered;
mod growth;
mod npy;
mod random;
mod results;
mod versions;

use benches::Failure;

use crate::dataset::Dataset;
use crate::results::Results;

const USAGE: &str = "give --dataset minilm, fashion or large, before it curves, filtered, versions, far, growth or cold, \
    and --only with a part of a configuration's name if not all are to be measured";

/// The setting at which a search has the recall that is asked for everywhere.
pub const TARGET: &str = "recall_target = 0.95";

/// A kind of index and what is measured of it.
pub struct Method {
    pub name: &'static str,
    /// As its searches through SQL are called in results.
    pub sql: &'static str,
    /// As those over Flight are, if they are measured.
    pub flight: Option<&'static str>,
    pub settings: &'static [&'static str],
}

const METHODS: [Method; 2] = [
    Method {
        name: "graph",
        sql: "sql graph",
        flight: Some("flight graph"),
        settings: &[
            "recall_target = 0.9",
            TARGET,
            "recall_target = 0.99",
            "ef_search = 32",
            "ef_search = 64",
            "ef_search = 128",
            "ef_search = 256",
        ],
    },
    Method {
        name: "ivf",
        sql: "sql ivf",
        flight: None,
        settings: &[
            "recall_target = 0.9",
            TARGET,
            "recall_target = 0.99",
            "nprobe = 16",
            "nprobe = 32",
            "nprobe = 64",
            "nprobe = 128",
        ],
    },
];

/// What is run.
pub struct Options {
    mode: String,
    dataset: String,
    only: String,
    /// How many rows, where that can be chosen.
    pub rows: Option<usize>,
    /// Where the database is put; a temporary folder if absent.
    pub location: Option<String>,
    /// The address of a store that answers late, and by how many milliseconds.
    pub slow_endpoint: Option<String>,
    pub slow_ms: f64,
    pub drops_caches: bool,
}

impl Options {
    /// `None` if no data set is named.
    fn parse(words: Vec<String>) -> Result<Option<Self>, Failure> {
        let mut options = Self {
            mode: "curves".into(),
            dataset: String::new(),
            only: String::new(),
            rows: None,
            location: None,
            slow_endpoint: None,
            slow_ms: 0.0,
            drops_caches: false,
        };
        let mut words = words.into_iter().peekable();
        if let Some(mode) = words.next_if(|word| !word.starts_with("--")) {
            options.mode = mode;
        }
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| format!("{word} has no value; {USAGE}"))?;
            match word.as_str() {
                "--dataset" => options.dataset = value,
                "--only" => options.only = value,
                "--rows" => options.rows = Some(value.parse().map_err(|_| format!("--rows is a number, not {value}"))?),
                "--location" => options.location = Some(value),
                "--slow-endpoint" => options.slow_endpoint = Some(value),
                "--slow-ms" => {
                    options.slow_ms = value.parse().map_err(|_| format!("--slow-ms is a number, not {value}"))?;
                }
                "--drop-caches" if value == "yes" => options.drops_caches = true,
                _ => return Err(format!("there is no option {word} {value}; {USAGE}").into()),
            }
        }
        Ok((!options.dataset.is_empty()).then_some(options))
    }

    /// Whether a configuration is to be measured.
    pub fn wants(&self, config: &str) -> bool {
        config.contains(&self.only)
    }
}

fn main() -> Result<(), Failure> {
    let words = benches::arguments();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build()?;
    if let Some((cold::ONCE, words)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return runtime.block_on(cold::once(words));
    }
    let Some(options) = Options::parse(words)? else {
        println!("{USAGE}; nothing is measured without");
        return Ok(());
    };
    let dataset = Dataset::open(&options.dataset)?;
    println!("machine: {}", benches::machine());
    println!("data: {}, {} × {} float32, {}", dataset.name, dataset.rows, dataset.dim, dataset.metric.name);
    runtime.block_on(measure(&options, &dataset))
}

async fn measure(options: &Options, dataset: &Dataset) -> Result<(), Failure> {
    match options.mode.as_str() {
        "growth" => return growth::run(options, dataset).await,
        "cold" => return cold::run(options, dataset).await,
        _ => {}
    }
    let mut results = Results::open(&dataset.subject())?;
    for method in &METHODS {
        if options.mode == "curves" {
            curves::run(method, options, dataset, &mut results).await?;
            continue;
        }
        if !options.wants(method.sql) {
            continue;
        }
        match options.mode.as_str() {
            "filtered" => filtered::run(method, dataset, &mut results).await?,
            "versions" => versions::run(method, dataset, &mut results).await?,
            "far" => far::run(method, dataset, &mut results).await?,
            other => return Err(format!("there is nothing called {other}; {USAGE}").into()),
        }
    }
    Ok(())
}
