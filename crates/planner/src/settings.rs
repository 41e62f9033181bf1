//! The settings that `SET`, `SHOW` and `RESET` know, as an extension of DataFusion's configuration.

use std::time::Duration;

use datafusion::common::config::{ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::common::{extensions_options, plan_datafusion_err, plan_err};
use datafusion::error::Result;

extensions_options! {
    /// Settings of one session.
    pub struct Settings {
        /// the share of the true k nearest that an approximate search must find, above 0 and at most 1
        pub recall_target: f64, default = 0.95
        /// on: every search compares all candidates
        pub exact: bool, default = false
        /// on: a search that no index serves is an error
        pub require_index: bool, default = false
        /// how many vertices a search of a graph keeps: more find more and take longer; 0: as many as recall_target takes
        pub ef_search: usize, default = 0
        /// how many lists a search of an IVF index reads: more find more and take longer; 0: as many as recall_target takes
        pub nprobe: usize, default = 0
        /// how many candidates of an index are compared exactly: more find more and take longer; 0: as many as recall_target takes
        pub rerank: usize, default = 0
        /// where searches run: auto, cpu or gpu
        pub device: String, default = "auto".to_owned()
        /// statements that run longer are cancelled: a number of milliseconds or a text such as '30s'; 0 for never
        pub statement_timeout: String, default = "0".to_owned()
        /// statements that read tables and run longer are cancelled, whatever statement_timeout says, since VACUUM removes what none of them can still read: above 0 and at most '1h'
        pub max_query_time: String, default = "1h".to_owned()
        /// the moment at which tables are read that name none, a timestamp such as '2026-11-01T00:00:00Z', nothing is written meanwhile; now: the newest versions
        pub as_of: String, default = NOW.to_owned()
        /// a name for the next INSERT, UPDATE, DELETE or MERGE: sent again under the same name, it is not applied again; it is taken back once the statement is done
        pub idempotency_key: String, default = String::new()
    }
}

/// The value of `as_of` under which tables are read as they are, and can be written.
const NOW: &str = "now";

/// How long a statement that reads tables may run in any session of any process. VACUUM relies on it: it cannot know
/// what other processes have set, so a session can only stay below.
pub const QUERY_TIME_MAX: Duration = Duration::from_secs(3600);

/// How hard a search may be told to look: as many vertices or lists.
const EFFORT_MAX: usize = 65_536;

/// The longest name of a statement, in bytes.
const NAME_BYTES_MAX: usize = 255;

impl ConfigExtension for Settings {
    const PREFIX: &'static str = "sagitta";
}

impl Settings {
    /// The settings of a session's configuration; the defaults where none were set.
    pub fn of(options: &ConfigOptions) -> Self {
        options.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Sets one setting from its text.
    ///
    /// # Errors
    /// A name that does not exist, a value that the setting cannot take.
    pub fn assign(&mut self, name: &str, value: &str) -> Result<()> {
        let value = match self.kind(name)? {
            Kind::Switch => switch(name, value)?.to_string(),
            Kind::Share => share(name, value)?.to_string(),
            Kind::Device => device(value)?,
            Kind::Effort => effort(name, value)?.to_string(),
            Kind::Duration => {
                duration(name, value)?;
                value.to_owned()
            }
            Kind::QueryTime => {
                query_time(name, value)?;
                value.to_owned()
            }
            Kind::Name => {
                if value.len() > NAME_BYTES_MAX {
                    return plan_err!(
                        "{name} has {} bytes, more than the {NAME_BYTES_MAX} that it may have",
                        value.len()
                    );
                }
                value.to_owned()
            }
            Kind::Moment => {
                moment(name, value)?;
                value.trim().to_owned()
            }
        };
        ExtensionOptions::set(self, name, &value)
    }

    /// Puts one setting back to its default.
    ///
    /// # Errors
    /// A name that does not exist.
    pub fn reset(&mut self, name: &str) -> Result<()> {
        let default = Self::default().value(name)?;
        self.assign(name, &default)
    }

    /// The text of one setting.
    ///
    /// # Errors
    /// A name that does not exist.
    pub fn value(&self, name: &str) -> Result<String> {
        self.kind(name)?;
        let entry = self.entries().into_iter().find(|entry| entry.key == name);
        let value = entry.and_then(|entry| entry.value).unwrap_or_default();
        Ok(match self.kind(name)? {
            Kind::Switch => if value == "true" { "on" } else { "off" }.to_owned(),
            _ => value,
        })
    }

    /// After which time statements are cancelled.
    pub fn timeout(&self) -> Option<Duration> {
        duration("statement_timeout", &self.statement_timeout).ok().flatten()
    }

    /// After which time statements that read tables are cancelled.
    pub fn query_time(&self) -> Duration {
        query_time("max_query_time", &self.max_query_time).unwrap_or(QUERY_TIME_MAX)
    }

    /// The moment at which tables are read that name none, in microseconds since the epoch; `None` for the newest
    /// versions.
    pub fn moment(&self) -> Option<i64> {
        moment("as_of", &self.as_of).ok().flatten()
    }

    /// The name of the next statement that changes rows.
    pub fn idempotency_key(&self) -> Option<&str> {
        (!self.idempotency_key.is_empty()).then_some(self.idempotency_key.as_str())
    }

    fn kind(&self, name: &str) -> Result<Kind> {
        Ok(match name {
            "exact" | "require_index" => Kind::Switch,
            "recall_target" => Kind::Share,
            "device" => Kind::Device,
            "ef_search" | "nprobe" | "rerank" => Kind::Effort,
            "statement_timeout" => Kind::Duration,
            "max_query_time" => Kind::QueryTime,
            "as_of" => Kind::Moment,
            "idempotency_key" => Kind::Name,
            _ => {
                let names: Vec<String> = self.entries().into_iter().map(|entry| entry.key).collect();
                let near = names.iter().find(|known| strsim::damerau_levenshtein(known, name) <= 3);
                let hint = near
                    .map_or_else(|| format!("there are {}", names.join(", ")), |near| format!("did you mean {near}"));
                return plan_err!("there is no setting {name}; {hint}");
            }
        })
    }
}

enum Kind {
    Switch,
    Share,
    Device,
    Effort,
    Duration,
    QueryTime,
    Moment,
    Name,
}

fn switch(name: &str, value: &str) -> Result<bool> {
    match value.to_lowercase().as_str() {
        "on" | "true" | "1" | "yes" => Ok(true),
        "off" | "false" | "0" | "no" => Ok(false),
        _ => plan_err!("{name} is on or off, not {value}"),
    }
}

fn share(name: &str, value: &str) -> Result<f64> {
    let share: f64 =
        value.parse().map_err(|_| plan_datafusion_err!("{name} is a number above 0 and at most 1, not {value}"))?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { plan_err!("{name} is above 0 and at most 1, not {value}") }
}

fn device(value: &str) -> Result<String> {
    match value.to_lowercase().as_str() {
        device @ ("auto" | "cpu") => Ok(device.to_owned()),
        "gpu" => Err(datafusion::error::DataFusionError::NotImplemented(
            "device = 'gpu' is not built yet; use 'auto' or 'cpu'".into(),
        )),
        _ => plan_err!("device is 'auto', 'cpu' or 'gpu', not {value}"),
    }
}

fn effort(name: &str, value: &str) -> Result<usize> {
    match value.trim().parse() {
        Ok(effort) if effort <= EFFORT_MAX => Ok(effort),
        _ => plan_err!(
            "{name} is a whole number from 0 to {EFFORT_MAX}, 0 for as many as recall_target takes, not {value}"
        ),
    }
}

/// A timestamp as text; `None` for the word `now`.
fn moment(name: &str, value: &str) -> Result<Option<i64>> {
    if value.trim().eq_ignore_ascii_case(NOW) {
        return Ok(None);
    }
    match crate::as_of::parse_timestamp(value) {
        Some(micros) => Ok(Some(micros)),
        None => plan_err!(
            "{name} is a timestamp such as '2026-11-01T00:00:00Z', not '{value}'; RESET {name} reads the newest versions again"
        ),
    }
}

/// `500`, `'500ms'`, `'30s'`, `'5min'`, `'1h'`; `None` for 0.
fn duration(name: &str, value: &str) -> Result<Option<Duration>> {
    let span = match value.trim().parse() {
        Ok(milliseconds) => Some(Duration::from_millis(milliseconds)),
        Err(_) => crate::duration::parse(value),
    };
    match span {
        Some(span) => Ok((!span.is_zero()).then_some(span)),
        None => plan_err!("{name} is a number of milliseconds or a text such as '30s', not {value}"),
    }
}

/// As [`duration`], above 0 and at most [`QUERY_TIME_MAX`].
fn query_time(name: &str, value: &str) -> Result<Duration> {
    match duration(name, value)? {
        Some(time) if time <= QUERY_TIME_MAX => Ok(time),
        _ => plan_err!(
            "{name} is above 0 and at most {} min, not {value}: VACUUM in any process relies on it; what takes longer is split into several statements, or loaded from files with COPY or import, which have no such bound",
            QUERY_TIME_MAX.as_secs() / 60
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_take_what_they_can_hold() {
        let mut settings = Settings::default();
        for (name, value, good) in [
            ("recall_target", "0.99", true),
            ("recall_target", "0", false),
            ("recall_target", "1.5", false),
            ("recall_target", "NaN", false),
            ("ef_search", "100", true),
            ("nprobe", "-1", false),
            ("ef_search", "65537", false),
            ("rerank", "200", true),
            ("exact", "on", true),
            ("exact", "maybe", false),
            ("device", "cpu", true),
            ("device", "gpu", false),
            ("statement_timeout", "30s", true),
            ("statement_timeout", "-1", false),
            ("statement_timeout", "2 days", true),
            ("statement_timeout", "30s", true),
            ("max_query_time", "5min", true),
            ("max_query_time", "60 min", true),
            ("max_query_time", "3600001", false),
            ("max_query_time", "2h", false),
            ("max_query_time", "0", false),
            ("max_query_time", "ever", false),
            ("as_of", "2026-11-01T00:00:00Z", true),
            ("as_of", "2026-11-01", true),
            ("as_of", "42", false),
            ("as_of", "prod", false),
            ("nothing", "1", false),
        ] {
            assert_eq!(settings.assign(name, value).is_ok(), good, "{name} = {value}");
        }
        assert_eq!(settings.timeout(), Some(Duration::from_secs(30)));
        assert!(settings.assign("max_query_time", "5min").is_ok());
        assert_eq!(settings.query_time(), Duration::from_secs(300));
        assert!(settings.reset("max_query_time").is_ok());
        assert_eq!(settings.query_time(), QUERY_TIME_MAX);
        assert!(settings.reset("statement_timeout").is_ok());
        assert_eq!(settings.timeout(), None);
        assert_eq!(settings.moment(), Some(1_793_491_200_000_000));
        assert!(settings.reset("as_of").is_ok());
        assert_eq!(settings.moment(), None);
    }
}
