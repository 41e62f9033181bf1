//! Moments of a table: how they are written in SQL, and what they come to. Which version a moment is, storage knows.

use std::fmt;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DFSchema, ScalarValue, plan_datafusion_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast::{self, FunctionArg, FunctionArgExpr, FunctionArguments, TableVersion};

use crate::Planner;
use crate::rewrite::unsupported;

/// How a version in FROM is said, for errors.
pub const SPELLINGS: &str =
    "write FOR SYSTEM_TIME AS OF TIMESTAMP '2026-11-01 00:00:00', FOR VERSION AS OF 42 or FOR VERSION AS OF 'tag'";

/// A moment of a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AsOf {
    /// The version of this number.
    Version(u64),
    /// The version that a tag names.
    Tag(String),
    /// The last version at or before a time: microseconds since the epoch, UTC.
    Timestamp(i64),
}

impl fmt::Display for AsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "VERSION {version}"),
            Self::Tag(tag) => write!(f, "TAG '{}'", tag.replace('\'', "''")),
            Self::Timestamp(micros) => {
                match ScalarValue::TimestampMicrosecond(Some(*micros), None).cast_to(&DataType::Utf8) {
                    Ok(ScalarValue::Utf8(Some(text))) => write!(f, "TIMESTAMP '{text}Z'"),
                    _ => write!(f, "TIMESTAMP {micros} µs after 1970"),
                }
            }
        }
    }
}

/// A moment as written: what it is counted in, and the expression.
#[derive(Debug, Clone)]
pub enum Moment {
    /// A point in time.
    Timestamp(ast::Expr),
    /// A number of a version, or a tag as a text.
    Version(ast::Expr),
    /// A tag.
    Tag(ast::Expr),
}

impl Moment {
    /// Reads the clause behind a table's name.
    ///
    /// # Errors
    /// `BEFORE`, `CHANGES`, and what `AT(…)` does not know.
    pub fn of_clause(version: &TableVersion) -> Result<Self> {
        match version {
            TableVersion::ForSystemTimeAsOf(expr) | TableVersion::TimestampAsOf(expr) => {
                Ok(Self::Timestamp(expr.clone()))
            }
            TableVersion::VersionAsOf(expr) => Ok(Self::Version(expr.clone())),
            TableVersion::Function(expr) => Self::of_call(expr),
            TableVersion::Changes { .. } => {
                unsupported("CHANGES behind a table is not supported; write FROM table_changes('table', from, to)")
            }
        }
    }

    /// Reads `AT(TAG => 'prod')` and its like.
    fn of_call(expr: &ast::Expr) -> Result<Self> {
        let ast::Expr::Function(call) = expr else {
            return plan_err!("{expr} is no version of a table; {SPELLINGS}");
        };
        if !call.name.to_string().eq_ignore_ascii_case("at") {
            return unsupported(&format!("{} behind a table is not supported; {SPELLINGS}", call.name));
        }
        let FunctionArguments::List(list) = &call.args else { return Self::misread_call(expr) };
        let [arg] = list.args.as_slice() else { return Self::misread_call(expr) };
        let (name, value) = match arg {
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => (name.value.clone(), value),
            FunctionArg::ExprNamed { name, arg: FunctionArgExpr::Expr(value), .. } => (name.to_string(), value),
            _ => return Self::misread_call(expr),
        };
        match Self::of_named(&name.to_lowercase(), value) {
            Some(moment) => Ok(moment),
            None => Self::misread_call(expr),
        }
    }

    fn misread_call(expr: &ast::Expr) -> Result<Self> {
        plan_err!("{expr} is no version of a table; write AT(VERSION => 42), AT(TAG => 'prod') or AT(TIMESTAMP => '…')")
    }

    /// A moment by the name of what it is counted in: `version`, `tag`, `timestamp`.
    pub fn of_named(name: &str, value: &ast::Expr) -> Option<Self> {
        match name {
            "version" => Some(Self::Version(value.clone())),
            "tag" => Some(Self::Tag(value.clone())),
            "timestamp" => Some(Self::Timestamp(value.clone())),
            _ => None,
        }
    }

    fn expr(&self) -> &ast::Expr {
        match self {
            Self::Timestamp(expr) | Self::Version(expr) | Self::Tag(expr) => expr,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timestamp(expr) => write!(f, "TIMESTAMP {expr}"),
            Self::Version(expr) => write!(f, "VERSION {expr}"),
            Self::Tag(expr) => write!(f, "TAG {expr}"),
        }
    }
}

impl Planner<'_> {
    /// What a moment comes to now. `parameters`: the values of `$1`, `$2`, ….
    ///
    /// # Errors
    /// An expression that is no constant, a value of another type, a parameter without a value.
    pub fn moment(&self, moment: &Moment, parameters: &[ScalarValue]) -> Result<AsOf> {
        match self.moment_if_bound(moment, parameters)? {
            Some(at) => Ok(at),
            None => no_value(moment.expr()),
        }
    }

    /// What a moment comes to; `None` if it waits for the value of a parameter.
    pub(crate) fn moment_if_bound(&self, moment: &Moment, parameters: &[ScalarValue]) -> Result<Option<AsOf>> {
        let Some(value) = self.constant(moment.expr(), parameters)? else { return Ok(None) };
        let at = match moment {
            Moment::Timestamp(expr) => AsOf::Timestamp(micros_of(&value, &expr.to_string())?),
            Moment::Version(expr) => of_number_or_tag(&value, &expr.to_string())?,
            Moment::Tag(expr) => match text_of(&value) {
                Some(tag) => AsOf::Tag(tag.to_owned()),
                None => return plan_err!("a tag is a text such as 'prod', not {expr}"),
            },
        };
        Ok(Some(at))
    }

    /// The value of an expression without columns; `None` if it waits for the value of a parameter.
    pub(crate) fn constant(&self, expr: &ast::Expr, parameters: &[ScalarValue]) -> Result<Option<ScalarValue>> {
        let text = expr.to_string();
        let not_constant = || {
            plan_datafusion_err!(
                "{text} is no constant; a moment is a literal, a parameter or an expression of them such as now() - INTERVAL '1 hour'"
            )
        };
        if has_query(expr) {
            return Err(not_constant());
        }
        let planned = self.expression(expr.clone()).map_err(|error| error.context(format!("in {text}")))?;
        let Some(bound) = bind(planned, parameters)? else { return Ok(None) };
        match simplified(bound, self.state)? {
            Expr::Literal(value, _) => Ok(Some(value)),
            _ => Err(not_constant()),
        }
    }
}

/// # Errors
/// Always: a parameter has no value.
pub(crate) fn no_value<T>(expr: &ast::Expr) -> Result<T> {
    plan_err!("the parameter in {expr} has no value; run the statement with PREPARE and EXECUTE, or through prepare")
}

fn has_query(expr: &ast::Expr) -> bool {
    struct Finder;
    impl ast::Visitor for Finder {
        type Break = ();

        fn pre_visit_query(&mut self, _: &ast::Query) -> std::ops::ControlFlow<()> {
            std::ops::ControlFlow::Break(())
        }
    }
    ast::Visit::visit(expr, &mut Finder).is_break()
}

/// The expression with the values of its parameters; `None` if one has no value.
fn bind(expr: Expr, parameters: &[ScalarValue]) -> Result<Option<Expr>> {
    let mut is_bound = true;
    let bound = expr
        .transform_up(|expr| {
            let Expr::Placeholder(Placeholder { id, .. }) = &expr else { return Ok(Transformed::no(expr)) };
            let at = id.trim_start_matches('$').parse::<usize>().ok().and_then(|number| number.checked_sub(1));
            match at.and_then(|at| parameters.get(at)) {
                Some(value) => Ok(Transformed::yes(Expr::Literal(value.clone(), None))),
                None => {
                    is_bound = false;
                    Ok(Transformed::no(expr))
                }
            }
        })
        .data()?;
    Ok(is_bound.then_some(bound))
}

/// Folded as far as it goes; `now()` is the statement's moment.
fn simplified(expr: Expr, state: &SessionState) -> Result<Expr> {
    let context = SimplifyContext::builder()
        .with_config_options(std::sync::Arc::clone(state.config_options()))
        .with_query_execution_start_time(state.execution_props().query_execution_start_time)
        .build();
    let simplifier = ExprSimplifier::new(context);
    simplifier.simplify(simplifier.coerce(expr, &DFSchema::empty())?)
}

fn text_of(value: &ScalarValue) -> Option<&str> {
    match value {
        ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => {
            Some(text)
        }
        _ => None,
    }
}

fn of_number_or_tag(value: &ScalarValue, written: &str) -> Result<AsOf> {
    if let Some(tag) = text_of(value) {
        return Ok(AsOf::Tag(tag.to_owned()));
    }
    let version =
        if value.data_type().is_integer() && !value.is_null() { value.cast_to(&DataType::UInt64).ok() } else { None };
    match version {
        Some(ScalarValue::UInt64(Some(version))) => Ok(AsOf::Version(version)),
        _ => plan_err!("a version is a whole number such as 42, or a tag such as 'prod', not {written}"),
    }
}

/// The value of an argument that may be a version, a tag or a timestamp, by its type.
///
/// # Errors
/// A value that is none of these.
pub(crate) fn of_value(value: &ScalarValue, written: &str) -> Result<AsOf> {
    match value.data_type() {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => {
            Ok(AsOf::Timestamp(micros_of(value, written)?))
        }
        _ => of_number_or_tag(value, written),
    }
}

/// Microseconds since the epoch; times without a zone are UTC.
fn micros_of(value: &ScalarValue, written: &str) -> Result<i64> {
    let refused = || {
        plan_datafusion_err!(
            "{written} is no point in time; write TIMESTAMP '2026-11-01 00:00:00' or '2026-11-01T00:00:00Z'; times without a zone are UTC"
        )
    };
    if let Some(text) = text_of(value) {
        return parse_timestamp(text).ok_or_else(refused);
    }
    match value.data_type() {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => cast_micros(value).ok_or_else(refused),
        _ => Err(refused()),
    }
}

/// The microseconds since the epoch that a text such as `2026-11-01`, `2026-11-01 12:00:00.5` or
/// `2026-11-01T12:00:00+02:00` says; without a zone it is UTC.
pub fn parse_timestamp(text: &str) -> Option<i64> {
    cast_micros(&ScalarValue::Utf8(Some(text.trim().to_owned())))
}

fn cast_micros(value: &ScalarValue) -> Option<i64> {
    match value.cast_to(&DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))) {
        Ok(ScalarValue::TimestampMicrosecond(micros, _)) => micros,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_read_with_and_without_zone() {
        for (text, micros) in [
            ("1970-01-01T00:00:01Z", Some(1_000_000)),
            ("1970-01-01 00:00:01", Some(1_000_000)),
            ("1970-01-01T02:00:01.5+02:00", Some(1_500_000)),
            ("1970-01-02", Some(86_400_000_000)),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(parse_timestamp(text), micros, "{text}");
        }
    }

    #[test]
    fn moments_say_what_they_are() {
        for (at, text) in [
            (AsOf::Version(3), "VERSION 3"),
            (AsOf::Tag("it's".into()), "TAG 'it''s'"),
            (AsOf::Timestamp(1_000_000), "TIMESTAMP '1970-01-01T00:00:01Z'"),
        ] {
            assert_eq!(at.to_string(), text);
        }
    }
}
