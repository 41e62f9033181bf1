//! The options of a table: what `WITH (…)` of CREATE TABLE and `SET (…)` of ALTER TABLE say.

use datafusion::sql::sqlparser::ast::{CreateTableOptions, Expr, SqlOption};
use storage::Retention;

use crate::change::folded;
use crate::{Error, Result, ScalarValue, Session};

const RETENTION: &str = "retention";

impl Session {
    /// The retention that a CREATE TABLE asks for; `None` for the default.
    ///
    /// # Errors
    /// Options in another clause than WITH, and as [`Session::retention`].
    pub(crate) fn retention_of(&self, options: &CreateTableOptions) -> Result<Option<Retention>> {
        match options {
            CreateTableOptions::None => Ok(None),
            CreateTableOptions::With(options) => self.retention(options),
            other => Err(Error::unsupported(format!(
                "{other} of CREATE TABLE is not supported; write the options of a table as WITH (retention = '7 days')"
            ))),
        }
    }

    /// The retention that a list of options names; `None` for the default.
    ///
    /// # Errors
    /// Another option, one that is named twice, a value that is no retention.
    pub(crate) fn retention(&self, options: &[SqlOption]) -> Result<Option<Retention>> {
        let mut found = None;
        for option in options {
            let SqlOption::KeyValue { key, value } = option else { return Err(unknown(&option.to_string())) };
            if folded(key) != RETENTION {
                return Err(unknown(&key.to_string()));
            }
            if found.replace(self.retention_value(value)?).is_some() {
                return Err(Error::invalid("retention is named twice; name it once"));
            }
        }
        Ok(found.flatten())
    }

    fn retention_value(&self, value: &Expr) -> Result<Option<Retention>> {
        let text = match value {
            Expr::Identifier(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("default") => {
                return Ok(None);
            }
            Expr::Identifier(word) => word.value.clone(),
            other => match self.constant(other.clone())? {
                ScalarValue::Utf8(Some(text)) => text,
                value => value.to_string(),
            },
        };
        match parsed(&text) {
            Some(retention) => Ok(Some(retention)),
            None => Err(Error::invalid(format!(
                "retention is a span such as '7 days' or '36 hours', 'forever', or 0 for only what running statements need; it is not {text}"
            ))),
        }
    }
}

fn parsed(text: &str) -> Option<Retention> {
    if text.trim().eq_ignore_ascii_case("forever") {
        return Some(Retention::Forever);
    }
    let span = planner::duration::parse(text)?;
    Some(Retention::ForMs(u64::try_from(span.as_millis()).ok()?))
}

fn unknown(option: &str) -> Error {
    Error::unsupported(format!("a table has no option {option}; there is retention, as in WITH (retention = '7 days')"))
}
