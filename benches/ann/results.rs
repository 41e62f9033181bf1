//! Rows of results, in the form that all systems share: lines of JSON; and what a piece of work took of the machine.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use benches::Failure;

use crate::dataset::root;

/// What a row is of.
pub struct Title<'a> {
    pub kind: &'a str,
    pub config: &'a str,
}

/// The rows that were measured.
pub struct Subject<'a> {
    /// As the data set is called, with a number behind if only so many of its rows are.
    pub dataset: &'a str,
    pub rows: usize,
    pub dim: usize,
}

/// The file of our rows, and what is the same in each of them.
pub struct Results {
    file: File,
    head: String,
}

impl Results {
    /// Appends to `results/sagitta.jsonl` in the folder of all data.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn open(subject: &Subject) -> Result<Self, Failure> {
        let folder = root().join("results");
        std::fs::create_dir_all(&folder)?;
        let file = OpenOptions::new().create(true).append(true).open(folder.join("sagitta.jsonl"))?;
        let (version, Subject { dataset, rows, dim }) = (env!("CARGO_PKG_VERSION"), subject);
        let head =
            format!(r#""peer": "sagitta", "version": "{version}", "dataset": "{dataset}", "n": {rows}, "dim": {dim}"#);
        Ok(Self { file, head })
    }

    /// Prints and appends a row. The values of `fields` are JSON.
    ///
    /// # Errors
    /// A disk that takes no more.
    pub fn emit(&mut self, title: &Title, fields: &[(&str, String)]) -> Result<(), Failure> {
        let Title { kind, config } = title;
        let ts = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let fields: String = fields.iter().map(|(name, value)| format!(r#", "{name}": {value}"#)).collect();
        let row = format!(r#"{{{}, "ts": {ts}, "kind": "{kind}", "config": "{config}"{fields}}}"#, self.head);
        println!("{row}");
        Ok(writeln!(self.file, "{row}")?)
    }
}

/// A text of ours as JSON: none holds what must be escaped.
pub fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// A number of so many places.
pub fn decimal(value: f64, places: usize) -> String {
    format!("{value:.places$}")
}

/// A time in milliseconds.
pub fn milliseconds(time: Duration) -> String {
    decimal(time.as_secs_f64() * 1e3, 4)
}

/// The median; not a number for none.
pub fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Processor time from now on.
pub struct Meter {
    start: Instant,
    own_seconds: f64,
    busy_seconds: f64,
}

/// What a piece of work took.
#[derive(Clone, Copy)]
pub struct Usage {
    pub seconds: f64,
    /// Processor time of this process.
    pub own_seconds: f64,
    /// Processor time of all others.
    pub other_seconds: f64,
}

impl Meter {
    /// Begins to count.
    pub fn start() -> Self {
        Self { own_seconds: own_seconds(), busy_seconds: busy_seconds(), start: Instant::now() }
    }

    /// What was taken since.
    pub fn usage(&self) -> Usage {
        let seconds = self.start.elapsed().as_secs_f64();
        let own_seconds = own_seconds() - self.own_seconds;
        let other_seconds = (busy_seconds() - self.busy_seconds - own_seconds).max(0.0);
        Usage { seconds, own_seconds, other_seconds }
    }
}

impl Usage {
    /// Cores that this process kept busy.
    pub fn own_cores(&self) -> f64 {
        self.own_seconds / self.seconds
    }

    /// Cores that all others kept busy.
    pub fn other_cores(&self) -> f64 {
        self.other_seconds / self.seconds
    }
}

/// Processor time of this process, where Linux tells it.
fn own_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ticks(stat.rsplit(')').next().unwrap_or_default(), 11..13) / TICKS_PER_SECOND
}

/// Processor time of all processes: user, nice and system, interrupts, and what the host took.
fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    (ticks(line, 1..4) + ticks(line, 6..9)) / TICKS_PER_SECOND
}

/// What Linux calls USER_HZ, the same on all machines that we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// The sum of some of the words of a line.
fn ticks(line: &str, words: Range<usize>) -> f64 {
    line.split_whitespace().skip(words.start).take(words.len()).filter_map(|word| word.parse::<f64>().ok()).sum()
}

/// Memory of this process that is in RAM, where Linux tells it.
pub fn resident_mb() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    ticks(&statm, 1..2) * 4_096.0 / f64::from(1 << 20)
}
