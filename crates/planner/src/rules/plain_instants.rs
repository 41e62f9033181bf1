//! A comparison of `instant(ts)` with a constant becomes one of `ts` itself, which a scan can evaluate. The constant need
//! not be a value of the type of `ts`: it may lie between two of them, or beyond all.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::Transformed;
use datafusion::error::Result;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator, lit};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use datafusion::scalar::ScalarValue;
use std::sync::Arc;

use super::rewrite_exprs::rewrite_exprs;
use crate::functions::instant::{nanoseconds, nanoseconds_in, timestamp_of};

/// Runs once constants have been evaluated, before predicates are handed down.
#[derive(Debug)]
pub struct PlainInstants;

impl OptimizerRule for PlainInstants {
    fn name(&self) -> &'static str {
        "plain_instants"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        None
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        rewrite_exprs(plan, plain, |_| Ok(None))
    }
}

fn plain(expr: &Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (timestamp, op, value) = match (timestamp_of(left), timestamp_of(right), op.swap()) {
                (Some(timestamp), _, _) => (timestamp, *op, right),
                (_, Some(timestamp), Some(swapped)) => (timestamp, swapped, left),
                _ => return Ok(None),
            };
            let Some(nanoseconds) = constant(value) else { return Ok(None) };
            let DataType::Timestamp(unit, zone) = timestamp.get_type(schema)? else { return Ok(None) };
            Ok(compared(timestamp, op, nanoseconds, &Kind { unit, zone }))
        }
        Expr::InList(InList { expr, list, negated }) => {
            let Some(timestamp) = timestamp_of(expr) else { return Ok(None) };
            let DataType::Timestamp(unit, zone) = timestamp.get_type(schema)? else { return Ok(None) };
            Ok(listed(timestamp, list, *negated, &Kind { unit, zone }))
        }
        _ => Ok(None),
    }
}

fn constant(expr: &Expr) -> Option<i128> {
    match expr {
        Expr::Literal(value, _) => nanoseconds(value),
        _ => None,
    }
}

/// The type of a timestamp.
struct Kind {
    unit: TimeUnit,
    zone: Option<Arc<str>>,
}

impl Kind {
    fn literal(&self, count: Option<i64>) -> Expr {
        let zone = self.zone.clone();
        let value = match self.unit {
            TimeUnit::Second => ScalarValue::TimestampSecond(count, zone),
            TimeUnit::Millisecond => ScalarValue::TimestampMillisecond(count, zone),
            TimeUnit::Microsecond => ScalarValue::TimestampMicrosecond(count, zone),
            TimeUnit::Nanosecond => ScalarValue::TimestampNanosecond(count, zone),
        };
        Expr::Literal(value, None)
    }

    /// The last count that is not after the instant, and whether it is the instant.
    fn count(&self, nanoseconds: i128) -> (Option<i64>, bool) {
        let scale = nanoseconds_in(self.unit);
        (i64::try_from(nanoseconds.div_euclid(scale)).ok(), nanoseconds.rem_euclid(scale) == 0)
    }
}

fn compared(timestamp: &Expr, op: Operator, nanoseconds: i128, kind: &Kind) -> Option<Expr> {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    let with = |op: Operator, count: i64| {
        Expr::BinaryExpr(BinaryExpr::new(Box::new(timestamp.clone()), op, Box::new(kind.literal(Some(count)))))
    };
    let is_above = nanoseconds > 0;
    Some(match (kind.count(nanoseconds), op) {
        ((Some(count), true), Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom) => {
            with(op, count)
        }
        ((Some(count), false), Lt | LtEq) => with(LtEq, count),
        ((Some(count), false), Gt | GtEq) => with(Gt, count),
        ((None, _), Lt | LtEq) if is_above => always(timestamp),
        ((None, _), Gt | GtEq) if !is_above => always(timestamp),
        ((None, _), Lt | LtEq | Gt | GtEq) | (_, Eq) => never(timestamp),
        (_, NotEq) => always(timestamp),
        (_, IsDistinctFrom) => lit(true),
        (_, IsNotDistinctFrom) => lit(false),
        _ => return None,
    })
}

/// `None` if a value is no constant.
fn listed(timestamp: &Expr, list: &[Expr], negated: bool, kind: &Kind) -> Option<Expr> {
    let mut values = Vec::with_capacity(list.len());
    for value in list {
        match value {
            Expr::Literal(value, _) if value.is_null() => values.push(kind.literal(None)),
            // What the type does not hold is equal to no value of it.
            _ => match kind.count(constant(value)?) {
                (Some(count), true) => values.push(kind.literal(Some(count))),
                _ => {}
            },
        }
    }
    Some(match (values.is_empty(), negated) {
        (true, false) => never(timestamp),
        (true, true) => always(timestamp),
        (false, _) => Expr::InList(InList::new(Box::new(timestamp.clone()), values, negated)),
    })
}

/// False, and NULL for NULL.
fn never(timestamp: &Expr) -> Expr {
    timestamp.clone().is_null().and(lit(ScalarValue::Boolean(None)))
}

/// True, and NULL for NULL.
fn always(timestamp: &Expr) -> Expr {
    timestamp.clone().is_not_null().or(lit(ScalarValue::Boolean(None)))
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::col;

    use super::*;

    #[test]
    fn a_constant_between_two_values_or_beyond_all_of_them_is_compared_exactly() {
        let second = Kind { unit: TimeUnit::Second, zone: None };
        let half = 500_000_000;
        for (op, nanoseconds, expected) in [
            (Operator::Eq, 2_000_000_000, "t = TimestampSecond(2, None)"),
            (Operator::Lt, 2_000_000_000, "t < TimestampSecond(2, None)"),
            (Operator::Lt, half, "t <= TimestampSecond(0, None)"),
            (Operator::GtEq, half, "t > TimestampSecond(0, None)"),
            (Operator::Gt, -half, "t > TimestampSecond(-1, None)"),
            (Operator::LtEq, -half, "t <= TimestampSecond(-1, None)"),
            (Operator::Eq, half, "t IS NULL AND Boolean(NULL)"),
            (Operator::NotEq, half, "t IS NOT NULL OR Boolean(NULL)"),
            (Operator::IsDistinctFrom, half, "Boolean(true)"),
            (Operator::IsNotDistinctFrom, half, "Boolean(false)"),
        ] {
            let found = compared(&col("t"), op, nanoseconds, &second).unwrap();
            assert_eq!(found.to_string(), expected, "{op} {nanoseconds}");
        }
        let nanosecond = Kind { unit: TimeUnit::Nanosecond, zone: None };
        let (far, early) = (i128::from(i64::MAX) + 1, i128::from(i64::MIN) - 1);
        for (op, nanoseconds, expected) in [
            (Operator::Lt, far, "t IS NOT NULL OR Boolean(NULL)"),
            (Operator::GtEq, far, "t IS NULL AND Boolean(NULL)"),
            (Operator::Gt, early, "t IS NOT NULL OR Boolean(NULL)"),
            (Operator::LtEq, early, "t IS NULL AND Boolean(NULL)"),
            (Operator::Eq, far, "t IS NULL AND Boolean(NULL)"),
        ] {
            let found = compared(&col("t"), op, nanoseconds, &nanosecond).unwrap();
            assert_eq!(found.to_string(), expected, "{op} {nanoseconds}");
        }
    }
}
