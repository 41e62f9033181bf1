//! The statements of an engine: which are running, how far they are, and which took long.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use planner::statement::StatementKind;
use planner::tokens;
use tokio_util::sync::CancellationToken;

use crate::{Answer, Error, ErrorKind, Progress, Result, Session};

/// Statements that `system.slow_queries` remembers.
const SLOW_MAX: usize = 1_000;
/// Statements run longer than this are slow, until the engine is told otherwise.
const SLOW_DEFAULT: Duration = Duration::from_secs(1);
/// Characters of a statement that are kept.
const TEXT_CHARS_MAX: usize = 4_096;

/// The statements of one engine.
#[derive(Debug)]
pub(crate) struct Queries {
    next: AtomicU64,
    slow_from: Mutex<Duration>,
    running: Mutex<BTreeMap<u64, Weak<Running>>>,
    slow: Mutex<VecDeque<QueryReport>>,
}

/// One statement, as long as somebody holds it: it runs, or its rows are still to be fetched.
#[derive(Debug)]
pub(crate) struct Running {
    id: u64,
    user: Option<String>,
    text: String,
    started_us: i64,
    clock: Instant,
    /// Microseconds from the start to the end of the last run; 0 before it.
    ended_after_us: AtomicU64,
    runs: AtomicUsize,
    progress: OnceLock<Arc<Progress>>,
    cancel: CancellationToken,
    queries: Weak<Queries>,
}

/// What is told about one statement.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryReport {
    /// Its name in `KILL QUERY`.
    pub id: String,
    /// Who runs it; nobody in an embedded engine.
    pub user: Option<String>,
    /// Its text, shortened, passwords and keys left out.
    pub text: String,
    /// `running`, `waiting` (its rows are not being fetched), or `cancelled`.
    pub state: &'static str,
    /// When it began, microseconds since the epoch.
    pub started_us: i64,
    /// How long it has been running, or did.
    pub elapsed: Duration,
    /// Rows that its scans have read.
    pub rows_done: u64,
    /// Rows that its scans hold, where statistics know.
    pub rows_total: Option<u64>,
}

impl Default for Queries {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            slow_from: Mutex::new(SLOW_DEFAULT),
            running: Mutex::default(),
            slow: Mutex::default(),
        }
    }
}

impl Queries {
    /// Enters a statement.
    pub(crate) fn begin(self: &Arc<Self>, kind: &StatementKind, text: &str, user: Option<&str>) -> Arc<Running> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let running = Arc::new(Running {
            id,
            user: user.map(str::to_owned),
            text: shown(kind, text),
            started_us: crate::definition::now_us(),
            clock: Instant::now(),
            ended_after_us: AtomicU64::new(0),
            runs: AtomicUsize::new(0),
            progress: OnceLock::new(),
            cancel: CancellationToken::new(),
            queries: Arc::downgrade(self),
        });
        locked(&self.running).insert(id, Arc::downgrade(&running));
        running
    }

    /// Every statement that somebody holds, in the order in which they began.
    pub(crate) fn running(&self) -> Vec<QueryReport> {
        // Not under the lock: the last holder of a statement takes it when it drops the statement.
        let held: Vec<Arc<Running>> = locked(&self.running).values().filter_map(Weak::upgrade).collect();
        held.iter().map(|running| running.report()).collect()
    }

    /// The last statements that took long, the newest first.
    pub(crate) fn slow(&self) -> Vec<QueryReport> {
        locked(&self.slow).iter().rev().cloned().collect()
    }

    pub(crate) fn set_slow_from(&self, duration: Duration) {
        *locked(&self.slow_from) = duration;
    }

    /// Cancels a statement. `by`: whose statements may be cancelled; anybody's if absent.
    ///
    /// # Errors
    /// A statement that is not running, or that is somebody else's.
    pub(crate) fn kill(&self, id: &str, by: Option<&str>) -> Result<()> {
        let number: Option<u64> = id.parse().ok();
        let found = number.and_then(|number| locked(&self.running).get(&number).and_then(Weak::upgrade));
        match found.filter(|running| by.is_none() || running.user.as_deref() == by) {
            Some(running) => {
                running.cancel.cancel();
                Ok(())
            }
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no running statement {id}; SELECT query_id FROM system.queries lists them"),
            )),
        }
    }
}

impl Session {
    /// Cancels a statement by its name in `system.queries`.
    ///
    /// # Errors
    /// A statement that is not running, or that is another user's: an admin cancels anybody's.
    pub async fn cancel(&self, query_id: &str) -> Result<()> {
        let whose = if self.sees_all(self.catalog().await?.as_ref()) { None } else { self.user() };
        self.engine().queries().kill(query_id, whose)
    }

    /// KILL QUERY.
    pub(crate) async fn kill_query(&self, id: &str) -> Result<Answer> {
        self.cancel(id).await?;
        Ok(Answer::done("KILL"))
    }
}

impl Running {
    /// Its name in `KILL QUERY`.
    pub(crate) fn id(&self) -> String {
        self.id.to_string()
    }

    /// What cancels it.
    pub(crate) fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }

    pub(crate) fn cancelled_error(&self) -> Error {
        Error::new(ErrorKind::Cancelled, "the statement was cancelled")
    }

    /// Shows the progress of its first run.
    pub(crate) fn follow(&self, progress: &Arc<Progress>) {
        let _ = self.progress.set(Arc::clone(progress));
    }

    pub(crate) fn enter_run(&self) {
        self.runs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leave_run(&self) {
        self.runs.fetch_sub(1, Ordering::Relaxed);
        self.ended_after_us.fetch_max(micros(self.clock.elapsed()), Ordering::Relaxed);
    }

    fn report(&self) -> QueryReport {
        let runs = self.runs.load(Ordering::Relaxed);
        let ended = self.ended_after_us.load(Ordering::Relaxed);
        let elapsed = if runs > 0 || ended == 0 { self.clock.elapsed() } else { Duration::from_micros(ended) };
        let state = match (self.cancel.is_cancelled(), runs) {
            (true, _) => "cancelled",
            (false, 0) => "waiting",
            (false, _) => "running",
        };
        let progress = self.progress.get();
        QueryReport {
            id: self.id(),
            user: self.user.clone(),
            text: self.text.clone(),
            state,
            started_us: self.started_us,
            elapsed,
            rows_done: progress.map_or(0, |progress| progress.rows_done()),
            rows_total: progress.and_then(|progress| progress.rows_total()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(queries) = self.queries.upgrade() else { return };
        locked(&queries.running).remove(&self.id);
        let ended = Duration::from_micros(self.ended_after_us.load(Ordering::Relaxed));
        if ended < *locked(&queries.slow_from) {
            return;
        }
        let report = self.report();
        tracing::warn!(
            query_id = report.id,
            user = report.user,
            elapsed_us = micros(ended),
            rows = report.rows_done,
            text = report.text,
            "slow statement"
        );
        let mut slow = locked(&queries.slow);
        if slow.len() == SLOW_MAX {
            slow.pop_front();
        }
        slow.push_back(report);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The text as others may see it: texts behind words such as PASSWORD or a key's name are left out, and the end of a
/// long one.
fn shown(kind: &StatementKind, text: &str) -> String {
    let mut out = match kind {
        // Nothing secret can stand in these, and most statements are such.
        StatementKind::Sql(_) if text.len() <= TEXT_CHARS_MAX => return text.to_owned(),
        StatementKind::Sql(_) => text.to_owned(),
        _ => masked(text),
    };
    if let Some((end, _)) = out.char_indices().nth(TEXT_CHARS_MAX) {
        out.truncate(end);
        out.push('…');
    }
    out
}

/// The text with every quoted text behind a secret word replaced.
fn masked(text: &str) -> String {
    const SECRET: [&str; 5] = ["password", "secret", "token", "key", "credential"];
    let (mut out, mut from, mut is_secret) = (String::with_capacity(text.len()), 0, false);
    for (range, class) in tokens::classify(text) {
        let token = &text[range.clone()];
        match class {
            tokens::TokenClass::Text | tokens::TokenClass::Other if is_secret => {
                out.push_str(&text[from..range.start]);
                out.push_str("'…'");
                (from, is_secret) = (range.end, false);
            }
            tokens::TokenClass::Operator | tokens::TokenClass::Comment => {}
            _ => is_secret = SECRET.iter().any(|word| token.to_lowercase().contains(word)),
        }
    }
    out.push_str(&text[from..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(queries: &Arc<Queries>, sql: &str, user: Option<&str>) -> Arc<Running> {
        let kind = planner::statement::parse(sql).unwrap().pop().unwrap().kind;
        queries.begin(&kind, sql, user)
    }

    #[test]
    fn a_statement_is_listed_as_long_as_it_is_held() {
        let queries = Arc::new(Queries::default());
        let running = begin(&queries, "SELECT 1", Some("ada"));
        running.enter_run();
        let listed = queries.running();
        assert_eq!((listed.len(), listed[0].state, listed[0].text.as_str()), (1, "running", "SELECT 1"));
        assert!(queries.kill("99", None).is_err());
        assert!(queries.kill(&running.id(), Some("bob")).is_err(), "another user's statement");
        assert!(!running.cancellation().is_cancelled());
        queries.kill(&running.id(), Some("ada")).unwrap();
        assert!(running.cancellation().is_cancelled());
        drop(running);
        assert!(queries.running().is_empty());
        assert!(queries.slow().is_empty(), "it was fast");
    }

    #[test]
    fn what_took_long_is_remembered() {
        let queries = Arc::new(Queries::default());
        queries.set_slow_from(Duration::ZERO);
        for number in 0..SLOW_MAX + 2 {
            begin(&queries, &format!("SELECT {number}"), None);
        }
        let slow = queries.slow();
        assert_eq!(slow.len(), SLOW_MAX);
        assert_eq!(slow[0].text, format!("SELECT {}", SLOW_MAX + 1));
    }

    #[test]
    fn secrets_are_not_shown() {
        for (text, expected) in [
            ("CREATE USER ada PASSWORD 'x y'", "CREATE USER ada PASSWORD '…'"),
            (
                "OPTIONS ('aws_secret_access_key' 'abc', 'region' 'eu')",
                "OPTIONS ('aws_secret_access_key' '…', 'region' 'eu')",
            ),
            ("OPTIONS (token = 'abc')", "OPTIONS (token = '…')"),
            ("PASSWORD 'unclosed", "PASSWORD '…'"),
        ] {
            assert_eq!(masked(text), expected);
        }
    }
}
