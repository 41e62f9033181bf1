//! Times of different types are compared as they are, and brought together without loss.
//!
//! DataFusion brings two timestamps to the coarser of their units, so that half a second more is the same, and a text or a
//! date to nanoseconds, which end in 2262. Here the finer unit wins where a type has to be found, and comparisons go
//! through [`instant`], which holds every value of every unit.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::DFSchema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TransformedResult;
use datafusion::error::Result;
use datafusion::logical_expr::expr::{InList, InSubquery, ScalarFunction, SetComparison};
use datafusion::logical_expr::{
    Between, BinaryExpr, Case, Cast, Expr, ExprSchemable, Join, LogicalPlan, LogicalPlanBuilder, Operator, Subquery,
    Union, cast, not,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::scalar::ScalarValue;
use std::sync::Arc;

use super::rewrite_exprs::rewrite_exprs;
use crate::functions::cast_time::per_second;
use crate::functions::instant::instant;
use crate::sql_type::{ZONE, with_digits_of};

/// Runs before the types of operands are brought together.
#[derive(Debug)]
pub struct ExactTimes;

impl AnalyzerRule for ExactTimes {
    fn name(&self) -> &'static str {
        "exact_times"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        rewrite_exprs(plan, exact, exact_node).data()
    }
}

/// How two values of times are compared.
#[derive(Debug, Clone, PartialEq)]
enum Common {
    /// As values of this type, which keeps both.
    Type(DataType),
    /// As instants. The zone is that of a side without one, which is a text or a date.
    Instants(Option<Arc<str>>),
}

impl Common {
    fn of(left: (&Expr, &DataType), right: (&Expr, &DataType)) -> Option<Self> {
        use DataType::Timestamp;
        match (left.1, right.1) {
            (a, b) if a == b => None,
            (Timestamp(a, x), Timestamp(b, y)) => {
                let zone = common_zone(x.as_ref(), y.as_ref());
                Some(if a == b { Self::Type(Timestamp(*a, zone)) } else { Self::Instants(zone) })
            }
            (Timestamp(unit, zone), other) => Self::with_other(*unit, zone.as_ref(), right.0, other),
            (other, Timestamp(unit, zone)) => Self::with_other(*unit, zone.as_ref(), left.0, other),
            (a, b) => finer_time(a, b).map(Self::Type),
        }
    }

    /// A timestamp with a date or a text. A column keeps its type where that holds the other side too.
    fn with_other(unit: TimeUnit, zone: Option<&Arc<str>>, other: &Expr, other_type: &DataType) -> Option<Self> {
        let zone = zone.map(|_| ZONE.into());
        let holds = match other_type {
            DataType::Date32 | DataType::Date64 => unit != TimeUnit::Nanosecond,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => match text_of(other) {
                Some(_) => unit == TimeUnit::Microsecond && text_unit(other) == unit,
                None => matches!(unit, TimeUnit::Microsecond | TimeUnit::Nanosecond),
            },
            _ => return None,
        };
        Some(if holds { Self::Type(DataType::Timestamp(unit, zone)) } else { Self::Instants(zone) })
    }

    /// What holds for both.
    fn with(self, other: Self) -> Self {
        match (&self, &other) {
            (a, b) if a == b => return self,
            (Self::Type(a), Self::Type(b)) => finer_time(a, b).map(Self::Type),
            _ => None,
        }
        .unwrap_or_else(|| Self::Instants((self.has_zone() || other.has_zone()).then(|| ZONE.into())))
    }

    fn has_zone(&self) -> bool {
        matches!(self, Self::Type(DataType::Timestamp(_, Some(_))) | Self::Instants(Some(_)))
    }

    fn bring(&self, expr: Expr, from: &DataType) -> Expr {
        match self {
            Self::Type(to) if to == from => expr,
            Self::Type(to) => cast(expr, to.clone()),
            Self::Instants(zone) => instant(match from {
                DataType::Timestamp(..) => expr,
                DataType::Date32 | DataType::Date64 => cast(expr, DataType::Timestamp(TimeUnit::Second, zone.clone())),
                _ => {
                    let unit = text_unit(&expr);
                    cast(expr, DataType::Timestamp(unit, zone.clone()))
                }
            }),
        }
    }
}

/// Two zones are one instant each: they are compared in UTC. What has no zone is UTC.
fn common_zone(a: Option<&Arc<str>>, b: Option<&Arc<str>>) -> Option<Arc<str>> {
    match (a, b) {
        (None, None) => None,
        (Some(a), Some(b)) if a == b => Some(Arc::clone(a)),
        _ => Some(ZONE.into()),
    }
}

fn finer_time(a: &DataType, b: &DataType) -> Option<DataType> {
    let unit = |data_type: &DataType| match data_type {
        DataType::Time32(unit) | DataType::Time64(unit) => Some(per_second(*unit)),
        _ => None,
    };
    Some(if unit(a)? < unit(b)? { b.clone() } else { a.clone() })
}

fn text_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    }
}

/// The unit that keeps the digits of a text.
fn text_unit(expr: &Expr) -> TimeUnit {
    use datafusion::sql::sqlparser::ast::{DataType::Timestamp, TimezoneInfo};
    match text_of(expr).and_then(|text| with_digits_of(&Timestamp(None, TimezoneInfo::None), text)) {
        Some(_) => TimeUnit::Nanosecond,
        None => TimeUnit::Microsecond,
    }
}

/// The type that holds all of these; `None` if they are of one type, or not all times.
fn unified(types: &[DataType]) -> Option<DataType> {
    let (mut found, mut is_mixed): (Option<(TimeUnit, Option<Arc<str>>)>, bool) = (None, false);
    let finer = |a: TimeUnit, b: TimeUnit| if per_second(a) < per_second(b) { b } else { a };
    for data_type in types {
        match (data_type, &mut found) {
            (DataType::Timestamp(unit, zone), None) => found = Some((*unit, zone.clone())),
            (DataType::Timestamp(unit, zone), Some(found)) => {
                is_mixed |= (*unit, zone) != (found.0, &found.1);
                *found = (finer(found.0, *unit), common_zone(found.1.as_ref(), zone.as_ref()));
            }
            _ => {}
        }
    }
    let (mut unit, mut zone) = found?;
    for data_type in types {
        match data_type {
            DataType::Timestamp(..) | DataType::Null => {}
            DataType::Date32 | DataType::Date64 => is_mixed = true,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                is_mixed = true;
                unit = finer(unit, TimeUnit::Microsecond);
                zone = zone.map(|_| ZONE.into());
            }
            _ => return None,
        }
    }
    is_mixed.then_some(DataType::Timestamp(unit, zone))
}

/// The expression with the times in it brought together; `None` if DataFusion does that right.
fn exact(expr: &Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(*op) => compared(left, *op, right, schema),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Minus, right }) => {
            let (Some(a), Some(b)) = (type_of(left, schema), type_of(right, schema)) else { return Ok(None) };
            // A text may be an interval.
            let common = if a.is_string() || b.is_string() { None } else { unified(&[a, b]) };
            Ok(common.map(|common| {
                let (left, right) = (cast(left.as_ref().clone(), common.clone()), cast(right.as_ref().clone(), common));
                binary(left, Operator::Minus, right)
            }))
        }
        Expr::Between(between) => between_exactly(between, schema),
        Expr::InList(list) => in_list(list, schema),
        Expr::InSubquery(InSubquery { expr, subquery, negated }) => Ok(of_subquery(expr, subquery, schema)?
            .map(|(expr, subquery)| Expr::InSubquery(InSubquery::new(Box::new(expr), subquery, *negated)))),
        Expr::SetComparison(SetComparison { expr, subquery, op, quantifier }) => {
            Ok(of_subquery(expr, subquery, schema)?.map(|(expr, subquery)| {
                Expr::SetComparison(SetComparison::new(Box::new(expr), subquery, *op, quantifier.clone()))
            }))
        }
        Expr::Case(case) => of_case(case, schema),
        // AT TIME ZONE.
        Expr::Cast(Cast { expr, field }) => Ok(match (field.data_type(), type_of(expr, schema)) {
            (DataType::Timestamp(TimeUnit::Nanosecond, Some(zone)), Some(DataType::Timestamp(unit, _)))
                if zone.as_ref() != ZONE && unit != TimeUnit::Nanosecond =>
            {
                Some(cast(expr.as_ref().clone(), DataType::Timestamp(unit, Some(Arc::clone(zone)))))
            }
            _ => None,
        }),
        Expr::ScalarFunction(ScalarFunction { func, args }) if UNIFYING.contains(&func.name()) => {
            let Some(common) = unified_of(args, schema) else { return Ok(None) };
            let args = args.iter().map(|arg| cast(arg.clone(), common.clone())).collect();
            Ok(Some(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(func), args))))
        }
        _ => Ok(None),
    }
}

/// Functions whose arguments are all of one type.
const UNIFYING: &[&str] = &["coalesce", "nvl", "ifnull", "nullif", "greatest", "least", "make_array"];

fn is_comparison(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// `None` for what has no type yet, such as a parameter.
fn type_of(expr: &Expr, schema: &DFSchema) -> Option<DataType> {
    expr.get_type(schema).ok()
}

fn unified_of(exprs: &[Expr], schema: &DFSchema) -> Option<DataType> {
    unified(&exprs.iter().map(|expr| type_of(expr, schema)).collect::<Option<Vec<_>>>()?)
}

fn binary(left: Expr, op: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)))
}

/// Two values of times as they can be compared; `None` if they can be already, or by DataFusion's own rules.
pub(crate) fn comparable(left: (&Expr, &DataType), right: (&Expr, &DataType)) -> Option<(Expr, Expr)> {
    let common = Common::of(left, right)?;
    Some((common.bring(left.0.clone(), left.1), common.bring(right.0.clone(), right.1)))
}

fn common_of(left: &Expr, right: &Expr, schema: &DFSchema) -> Option<Common> {
    Common::of((left, &type_of(left, schema)?), (right, &type_of(right, schema)?))
}

fn compared(left: &Expr, op: Operator, right: &Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    let (Some(a), Some(b)) = (type_of(left, schema), type_of(right, schema)) else { return Ok(None) };
    Ok(comparable((left, &a), (right, &b)).map(|(left, right)| binary(left, op, right)))
}

/// A comparison, exact or as it was.
fn compare(left: &Expr, op: Operator, right: &Expr, schema: &DFSchema) -> Result<Expr> {
    Ok(compared(left, op, right, schema)?.unwrap_or_else(|| binary(left.clone(), op, right.clone())))
}

fn between_exactly(between: &Between, schema: &DFSchema) -> Result<Option<Expr>> {
    let Between { expr, negated, low, high } = between;
    if common_of(expr, low, schema).is_none() && common_of(expr, high, schema).is_none() {
        return Ok(None);
    }
    let is_within = compare(expr, Operator::GtEq, low, schema)?.and(compare(expr, Operator::LtEq, high, schema)?);
    Ok(Some(if *negated { not(is_within) } else { is_within }))
}

fn in_list(list: &InList, schema: &DFSchema) -> Result<Option<Expr>> {
    let InList { expr, list, negated } = list;
    let Some(own) = type_of(expr, schema) else { return Ok(None) };
    let (mut types, mut common): (Vec<DataType>, Option<Common>) = (Vec::with_capacity(list.len()), None);
    for value in list {
        let Some(data_type) = type_of(value, schema) else { return Ok(None) };
        common = match (Common::of((expr, &own), (value, &data_type)), common) {
            (Some(found), Some(common)) => Some(common.with(found)),
            (Some(found), None) => Some(found),
            (None, common) if data_type == own || data_type.is_null() => common,
            (None, _) => return Ok(None),
        };
        types.push(data_type);
    }
    let Some(common) = common else { return Ok(None) };
    let values = list.iter().zip(&types).map(|(value, data_type)| match data_type {
        DataType::Null => common.bring(cast(value.clone(), own.clone()), &own),
        data_type => common.bring(value.clone(), data_type),
    });
    let values = values.collect();
    Ok(Some(Expr::InList(InList::new(Box::new(common.bring(expr.as_ref().clone(), &own)), values, *negated))))
}

/// A value and the one column of a subquery that it is compared with.
fn of_subquery(expr: &Expr, subquery: &Subquery, schema: &DFSchema) -> Result<Option<(Expr, Subquery)>> {
    let plan = &subquery.subquery;
    let (Some(own), Some(column)) = (type_of(expr, schema), plan.schema().columns().into_iter().next()) else {
        return Ok(None);
    };
    let (column, data_type) = (Expr::Column(column), plan.schema().field(0).data_type().clone());
    let Some((expr, column)) = comparable((expr, &own), (&column, &data_type)) else { return Ok(None) };
    let plan = LogicalPlanBuilder::from(Arc::clone(plan)).project(vec![column])?.build()?;
    let subquery = Subquery { subquery: Arc::new(plan), ..subquery.clone() };
    Ok(Some((expr, subquery)))
}

/// `CASE x WHEN …` becomes `CASE WHEN x = … `, where that is a comparison of ours; the results come to one type.
fn of_case(case: &Case, schema: &DFSchema) -> Result<Option<Expr>> {
    let mut case = case.clone();
    let is_ours =
        |operand: &Expr| case.when_then_expr.iter().any(|(when, _)| common_of(operand, when, schema).is_some());
    let mut is_changed = false;
    if let Some(operand) = case.expr.take_if(|operand| is_ours(operand)) {
        for (when, _) in &mut case.when_then_expr {
            **when = compare(&operand, Operator::Eq, when, schema)?;
        }
        is_changed = true;
    }
    let results = case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr);
    let results: Vec<Expr> = results.map(|result| result.as_ref().clone()).collect();
    if let Some(common) = unified_of(&results, schema) {
        for result in case.when_then_expr.iter_mut().map(|(_, then)| then).chain(&mut case.else_expr) {
            let value = std::mem::replace(result.as_mut(), Expr::Literal(ScalarValue::Null, None));
            **result = cast(value, common.clone());
        }
        is_changed = true;
    }
    Ok(is_changed.then_some(Expr::Case(case)))
}

/// The keys of a join, and the columns of a UNION.
fn exact_node(node: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    match node {
        LogicalPlan::Join(join) => exact_keys(join),
        LogicalPlan::Union(union) => exact_union(union),
        _ => Ok(None),
    }
}

fn exact_keys(join: &Join) -> Result<Option<LogicalPlan>> {
    let (mut on, mut is_changed) = (Vec::with_capacity(join.on.len()), false);
    for (left, right) in &join.on {
        let types = (type_of(left, join.left.schema()), type_of(right, join.right.schema()));
        let brought = match &types {
            (Some(a), Some(b)) => comparable((left, a), (right, b)),
            _ => None,
        };
        is_changed |= brought.is_some();
        on.push(brought.unwrap_or_else(|| (left.clone(), right.clone())));
    }
    Ok(is_changed.then(|| LogicalPlan::Join(Join { on, ..join.clone() })))
}

fn exact_union(union: &Union) -> Result<Option<LogicalPlan>> {
    let width = union.schema.fields().len();
    let of_column = |at: usize| {
        let types =
            union.inputs.iter().map(|input| input.schema().fields().get(at).map(|field| field.data_type().clone()));
        types.collect::<Option<Vec<_>>>().and_then(|types| unified(&types))
    };
    let commons: Vec<Option<DataType>> = (0..width).map(of_column).collect();
    if commons.iter().all(Option::is_none) {
        return Ok(None);
    }
    let brought = |input: &Arc<LogicalPlan>| {
        let columns = input.schema().columns().into_iter().zip(&commons).map(|(column, common)| match common {
            Some(common) => {
                let (relation, name) = (column.relation.clone(), column.name.clone());
                cast(Expr::Column(column), common.clone()).alias_qualified(relation, name)
            }
            None => Expr::Column(column),
        });
        let columns: Vec<Expr> = columns.collect();
        LogicalPlanBuilder::from(Arc::clone(input)).project(columns)?.build().map(Arc::new)
    };
    let inputs = union.inputs.iter().map(brought).collect::<Result<Vec<_>>>()?;
    Ok(Some(LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?)))
}
