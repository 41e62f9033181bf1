//! Retention: how long the versions of a table stay readable after they were replaced. Removing them is work of
//! `maintain.rs`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::log::Change;
use crate::catalog::{Catalog, TableEntry, TableName};
use crate::database::Database;
use crate::error::Result;
use crate::turn::gone;

/// How far the clocks of two machines that share a database may lie apart.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// Milliseconds of the units in which a retention is shown, the longest first.
const UNITS: &[(u64, &str)] =
    &[(86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1_000, "second"), (1, "millisecond")];

/// How long a version stays readable, for sure, after another one took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// This many milliseconds; with 0 only what running statements need is kept.
    ForMs(u64),
    /// As long as the table.
    Forever,
}

impl Retention {
    /// The retention of a table that has none of its own.
    pub const DEFAULT: Self = Self::ForMs(24 * 3_600_000);

    /// The moment (µs since the epoch) such that a version that was replaced before it may be removed at `now_us`.
    /// `query_time_max`: how long a statement may run. A statement that read a version at the end of its retention
    /// still has that long to finish, and clocks may differ a little.
    pub fn keep_since_us(self, now_us: i64, query_time_max: Duration) -> i64 {
        let Self::ForMs(kept_ms) = self else { return i64::MIN };
        let spared = Duration::from_millis(kept_ms).saturating_add(query_time_max).saturating_add(CLOCK_SKEW_MAX);
        now_us.saturating_sub(i64::try_from(spared.as_micros()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Retention {
    /// In the largest unit that says it exactly; the text can be given as a retention again.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::ForMs(kept_ms) = *self else { return formatter.write_str("forever") };
        let exact = UNITS.iter().find(|(unit_ms, _)| kept_ms > 0 && kept_ms.is_multiple_of(*unit_ms));
        match exact {
            Some((unit_ms, unit)) if kept_ms == *unit_ms => write!(formatter, "1 {unit}"),
            Some((unit_ms, unit)) => write!(formatter, "{} {unit}s", kept_ms / unit_ms),
            None => formatter.write_str("0"),
        }
    }
}

impl Database {
    /// Gives a table another retention; `None`: the default. Holds from the next VACUUM on, in all processes. Makes no
    /// version. Cost: one catalog file.
    ///
    /// # Errors
    /// [`StorageError::Conflict`](crate::StorageError::Conflict) if the table was dropped or replaced meanwhile.
    pub async fn set_retention(
        &self,
        name: &TableName,
        entry: &TableEntry,
        retention: Option<Retention>,
    ) -> Result<()> {
        let change = |catalog: &Catalog| match catalog.with_retention(name, &entry.id, retention) {
            Some(next) => Ok(Change::Write(next, ())),
            None => Err(gone(name)),
        };
        Ok(self.catalog_log().commit(change).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StorageError;
    use crate::fixtures::{entry, keyed, memory, name};

    #[test]
    fn what_is_spared_grows_with_retention_query_time_and_skew() {
        let hour_us = 3_600_000_000;
        let skew_us = i64::try_from(CLOCK_SKEW_MAX.as_micros()).unwrap();
        let query_time = Duration::from_secs(3600);
        for (retention, expected) in [
            (Retention::ForMs(0), 100 * hour_us - hour_us - skew_us),
            (Retention::DEFAULT, 100 * hour_us - 25 * hour_us - skew_us),
            (Retention::Forever, i64::MIN),
        ] {
            assert_eq!(retention.keep_since_us(100 * hour_us, query_time), expected, "{retention}");
        }
        assert!(Retention::ForMs(u64::MAX).keep_since_us(1, query_time) <= 1 - i64::MAX);
    }

    #[test]
    fn a_retention_is_shown_in_the_largest_unit_that_is_exact() {
        for (retention, expected) in [
            (Retention::ForMs(0), "0"),
            (Retention::ForMs(1), "1 millisecond"),
            (Retention::ForMs(90_000), "90 seconds"),
            (Retention::ForMs(36 * 3_600_000), "36 hours"),
            (Retention::DEFAULT, "1 day"),
            (Retention::ForMs(14 * 86_400_000), "14 days"),
            (Retention::Forever, "forever"),
        ] {
            assert_eq!(retention.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn a_retention_is_seen_at_once_and_taken_back() {
        let database = memory().await;
        let version = keyed(&database, 0..3).await.version();
        let before = entry(&database, &name("t")).await;
        assert_eq!(before.retention, None);
        database.set_retention(&name("t"), &before, Some(Retention::Forever)).await.unwrap();
        assert_eq!(entry(&database, &name("t")).await.retention, Some(Retention::Forever));
        database.set_retention(&name("t"), &before, None).await.unwrap();
        assert_eq!(entry(&database, &name("t")).await, before);
        assert_eq!(database.snapshot(&before).await.unwrap().version(), version, "no version is made");
        assert!(database.drop_table(&name("t"), false).await.unwrap());
        let late = database.set_retention(&name("t"), &before, None).await;
        assert!(matches!(late, Err(StorageError::Conflict(_))), "{late:?}");
    }
}
