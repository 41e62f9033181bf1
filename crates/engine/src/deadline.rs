//! When a statement is cancelled: the sooner of what `statement_timeout` and `max_query_time` say.

use std::time::Duration;

use planner::settings::Settings;
use planner::statement::StatementKind;
use planner::time_statement::TimeStatement;
use tokio::time::Instant;

use crate::{Error, ErrorKind};

/// The moment at which a statement is cancelled, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    limit: Limit,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    StatementTimeout,
    MaxQueryTime,
}

impl Deadline {
    /// The deadline of a statement that begins now; `None` for one that may take as long as it needs.
    pub(crate) fn of(settings: &Settings, kind: &StatementKind) -> Option<Self> {
        let now = Instant::now();
        let timeout = settings.timeout().map(|time| Self { at: now + time, limit: Limit::StatementTimeout });
        let query_time =
            reads_versions(kind).then(|| Self { at: now + settings.query_time(), limit: Limit::MaxQueryTime });
        timeout.into_iter().chain(query_time).min_by_key(|deadline| deadline.at)
    }

    /// The deadline of a statement that began that much earlier.
    pub(crate) fn sooner_by(self, elapsed: Duration) -> Self {
        Self { at: self.at.checked_sub(elapsed).unwrap_or_else(Instant::now), ..self }
    }

    pub(crate) fn error(self) -> Error {
        let message = match self.limit {
            Limit::StatementTimeout => {
                "the statement ran longer than statement_timeout and was cancelled; raise it with SET statement_timeout = '5min'"
            }
            Limit::MaxQueryTime => {
                "the statement ran longer than max_query_time ('1h' at most: VACUUM may remove what it reads then) and was cancelled; split it into statements over fewer rows, or load files with COPY or import, which have no such bound"
            }
        };
        Error::new(ErrorKind::TimedOut, message)
    }
}

/// True if VACUUM must not remove what the statement reads. The others load files, which are no versions, or work on
/// the newest version, fail if it is replaced meanwhile, and may take long on a large table.
fn reads_versions(kind: &StatementKind) -> bool {
    match kind {
        StatementKind::CopyFrom(_) | StatementKind::Check(_) | StatementKind::Index(_) => false,
        StatementKind::Time(time) => !matches!(time.as_ref(), TimeStatement::Optimize(_) | TimeStatement::Vacuum(_)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sooner_limit_holds_and_names_itself() {
        for (sql, timeout, query_time, expected) in [
            ("SELECT 1", "0", "1h", Some("max_query_time")),
            ("SELECT 1", "30s", "1h", Some("statement_timeout")),
            ("SELECT 1", "30s", "20s", Some("max_query_time")),
            ("SELECT 1", "2 days", "1h", Some("max_query_time")),
            ("CREATE TABLE t AS SELECT 1 AS a", "0", "1h", Some("max_query_time")),
            ("COPY (SELECT 1) TO 'a.csv'", "0", "1h", Some("max_query_time")),
            ("RESTORE TABLE t TO VERSION 1", "0", "1h", Some("max_query_time")),
            ("COPY t FROM 'a.csv'", "0", "1h", None),
            ("COPY t FROM 'a.csv'", "5h", "1h", Some("statement_timeout")),
            ("OPTIMIZE t", "0", "1h", None),
            ("VACUUM t", "0", "1h", None),
            ("CHECK TABLE t", "0", "1h", None),
        ] {
            let mut settings = Settings::default();
            settings.assign("statement_timeout", timeout).unwrap();
            settings.assign("max_query_time", query_time).unwrap();
            let kind = planner::statement::parse(sql).unwrap().pop().unwrap().kind;
            let error = Deadline::of(&settings, &kind).map(|deadline| deadline.error().message);
            match (&error, expected) {
                (Some(message), Some(words)) => assert!(message.contains(words), "{sql}: {message}"),
                _ => assert_eq!(error.is_some(), expected.is_some(), "{sql}: {error:?}"),
            }
        }
    }
}
