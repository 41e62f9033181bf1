//! What became of the calls: how many of each kind, how long they took, which were refused and why.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::{Code, Status};

/// A clear refusal: its code, a part of its text, and a name for the report.
const REFUSALS: [(Code, &str, &str); 6] = [
    (Code::Unavailable, "which is all it takes; try again", "the queue is full"),
    (Code::Unavailable, "for its turn and gave up; try again", "waited too long for its turn"),
    (Code::ResourceExhausted, "of memory and gave up", "waited too long for memory"),
    (Code::ResourceExhausted, "more of memory", "an operator found no memory"),
    (Code::ResourceExhausted, "of memory:", "no memory for what is kept"),
    (Code::ResourceExhausted, "waited", "a message found no memory"),
];
/// What a statement answers that somebody has cancelled.
const CANCELLED: [(Code, &str); 3] = [
    (Code::Cancelled, "the statement was cancelled"),
    (Code::NotFound, "the handle is unknown"),
    (Code::NotFound, "there is no running statement"),
];

/// What a call was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Connect,
    Search,
    FilteredSearch,
    Scan,
    SlowScan,
    HalfScan,
    Sort,
    Aggregate,
    Ingest,
    NewTable,
    Change,
    Definition,
    Metadata,
    Poll,
    Cancel,
}

/// How a piece of work ended, apart from being done.
#[derive(Debug)]
pub enum Trouble {
    /// The server said something.
    Told(Status),
    /// It answered something that is not so.
    Wrong(String),
}

impl From<Status> for Trouble {
    fn from(status: Status) -> Self {
        Self::Told(status)
    }
}

/// The calls of one client, or of all.
#[derive(Debug, Default)]
pub struct Tally {
    done: BTreeMap<Work, Vec<Duration>>,
    refused: BTreeMap<(Work, &'static str), u64>,
    cancelled: u64,
    wrong: Vec<String>,
    acknowledged: BTreeMap<i64, (i64, i64)>,
}

/// Why a status is a clear refusal; `None` if it is none.
pub fn refusal(status: &Status) -> Option<&'static str> {
    let is = |(code, part, _): &&(Code, &str, &str)| status.code() == *code && status.message().contains(part);
    REFUSALS.iter().find(is).map(|(.., name)| *name)
}

/// Whether a status is that of a statement that was cancelled.
pub fn is_cancelled(status: &Status) -> bool {
    CANCELLED.iter().any(|(code, part)| status.code() == *code && status.message().contains(part))
}

impl Tally {
    /// Counts a piece of work. True if it was refused: the client should wait a little.
    pub fn count(&mut self, work: Work, time: Duration, outcome: Result<(), Trouble>) -> bool {
        match outcome {
            Ok(()) => self.done.entry(work).or_default().push(time),
            Err(Trouble::Told(status)) => match refusal(&status) {
                Some(name) => {
                    *self.refused.entry((work, name)).or_default() += 1;
                    return true;
                }
                None if work == Work::Cancel && is_cancelled(&status) => self.cancelled += 1,
                None => self.wrong.push(format!("{work:?}: {:?}: {}", status.code(), status.message())),
            },
            Err(Trouble::Wrong(what)) => self.wrong.push(format!("{work:?}: {what}")),
        }
        false
    }

    /// Rows and changes that the server acknowledged to a client.
    pub fn acknowledge(&mut self, client: usize, rows: i64, changes: i64) {
        self.acknowledged.insert(client as i64, (rows, changes));
    }

    pub fn add(&mut self, other: Tally) {
        for (work, times) in other.done {
            self.done.entry(work).or_default().extend(times);
        }
        for (key, count) in other.refused {
            *self.refused.entry(key).or_default() += count;
        }
        self.cancelled += other.cancelled;
        self.wrong.extend(other.wrong);
        self.acknowledged.extend(other.acknowledged);
    }

    pub fn acknowledged(&self) -> &BTreeMap<i64, (i64, i64)> {
        &self.acknowledged
    }

    /// What must not have happened, each kind once with its number.
    pub fn wrong(&self) -> Vec<String> {
        let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
        for wrong in &self.wrong {
            *counted.entry(wrong).or_default() += 1;
        }
        counted.into_iter().map(|(wrong, count)| format!("{count} × {wrong}")).collect()
    }

    pub fn print(&self, seconds: u64) {
        let (done, refused) = (self.done.values().map(Vec::len).sum::<usize>(), self.refused.values().sum::<u64>());
        let rows: i64 = self.acknowledged.values().map(|(rows, _)| rows).sum();
        println!(
            "{done} pieces of work done in {seconds} s, {refused} refused, {} ended by a cancel; {rows} rows added",
            self.cancelled
        );
        println!("{:<16} {:>8} {:>12} {:>12}", "work", "done", "p50", "p99");
        for (work, times) in &self.done {
            let mut times = times.clone();
            times.sort_unstable();
            let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
            println!("{:<16} {:>8} {:>9.1} ms {:>9.1} ms", format!("{work:?}"), times.len(), at(50), at(99));
        }
        for ((work, why), count) in &self.refused {
            println!("refused {count:>6} {work:?}: {why}");
        }
    }
}
