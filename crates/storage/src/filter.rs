//! Which filters Lance evaluates exactly as DataFusion would, so that a scan may take them over. Conservative: what is
//! not proven here stays a filter above the scan. Nothing is evaluated here.

use arrow::array::Array;
use arrow::datatypes::{DataType, Schema};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::{InList, Placeholder, ScalarFunction};
use datafusion::logical_expr::{Between, BinaryExpr, Cast, Expr, Like, Operator};

use crate::snapshot::Snapshot;

/// Values in an IN list up to which the list is handed down.
const IN_LIST_MAX: usize = 10_000;

/// Depth of an expression up to which it is looked into.
const DEPTH_MAX: usize = 200;

impl Snapshot {
    /// True if [`Snapshot::scan`] evaluates `expr` exactly: AND, OR and NOT over comparisons, IS [NOT] NULL, IN,
    /// BETWEEN and LIKE of plain columns of scalar types with literals of the same type, `contains` of a text,
    /// `array_has`, `array_has_any` and `array_has_all` of a list, and constants.
    pub fn can_filter(&self, expr: &Expr) -> bool {
        is_predicate(expr, &self.schema(), DEPTH_MAX)
    }
}

fn is_predicate(expr: &Expr, schema: &Schema, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And | Operator::Or, right }) => {
            is_predicate(left, schema, depth) && is_predicate(right, schema, depth)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            is_comparison(*op) && same_type(&[left, right], schema) && names_column(left, right)
        }
        Expr::Not(inner) => is_predicate(inner, schema, depth),
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => {
            matches!(inner.as_ref(), Expr::Column(_)) && value_type(inner, schema).is_some()
        }
        Expr::InList(InList { expr, list, .. }) => {
            let all: Vec<&Expr> = std::iter::once(expr.as_ref()).chain(list).collect();
            is_column_like(expr)
                && !list.is_empty()
                && list.len() <= IN_LIST_MAX
                && list.iter().all(|value| matches!(value, Expr::Literal(..)))
                && same_type(&all, schema)
        }
        Expr::Between(Between { expr, low, high, .. }) => {
            is_column_like(expr)
                && matches!((low.as_ref(), high.as_ref()), (Expr::Literal(..), Expr::Literal(..)))
                && same_type(&[expr, low, high], schema)
        }
        Expr::Like(Like { expr, pattern, escape_char: None, case_insensitive: false, .. }) => {
            matches!(expr.as_ref(), Expr::Column(_))
                && matches!(pattern.as_ref(), Expr::Literal(value, _) if !has_escape(value))
                && same_type(&[expr, pattern], schema)
                && matches!(value_type(expr, schema), Some(DataType::Utf8 | DataType::LargeUtf8))
        }
        Expr::ScalarFunction(call) => is_lookup(call, schema),
        Expr::Column(_) => value_type(expr, schema) == Some(DataType::Boolean),
        // What the optimizer makes of a predicate that was handed down already: `id IS NULL` where there is no NULL.
        Expr::Literal(ScalarValue::Boolean(_), _) => true,
        _ => false,
    }
}

/// Functions that an index may answer, of a column and a constant of the type that belongs to it.
fn is_lookup(call: &ScalarFunction, schema: &Schema) -> bool {
    let [Expr::Column(column), Expr::Literal(value, _)] = call.args.as_slice() else { return false };
    let Some(data_type) = field_type(column, schema) else { return false };
    match (call.name(), &data_type) {
        ("contains", DataType::Utf8 | DataType::LargeUtf8) => !value.is_null() && value.data_type() == data_type,
        ("array_has", DataType::List(item)) => {
            is_scalar(item.data_type()) && !value.is_null() && value.data_type() == *item.data_type()
        }
        ("array_has_any" | "array_has_all", DataType::List(item)) => {
            is_scalar(item.data_type()) && values_of(value, item.data_type())
        }
        _ => false,
    }
}

/// True for a list of values of this type, none of them NULL.
fn values_of(list: &ScalarValue, item: &DataType) -> bool {
    match list {
        ScalarValue::List(list) => {
            let values = list.values();
            list.is_valid(0) && !values.is_empty() && values.null_count() == 0 && values.data_type() == item
        }
        _ => false,
    }
}

/// A backslash in a pattern takes the meaning from the sign behind it; what an index of Lance makes of it is not proven.
fn has_escape(pattern: &ScalarValue) -> bool {
    pattern.try_as_str().flatten().is_none_or(|pattern| pattern.contains('\\'))
}

fn is_comparison(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq)
}

/// Comparisons of two literals are for the optimizer, not for a scan.
fn names_column(left: &Expr, right: &Expr) -> bool {
    is_column_like(left) || is_column_like(right)
}

fn is_column_like(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) => true,
        Expr::Cast(Cast { expr, .. }) => matches!(expr.as_ref(), Expr::Column(_)),
        _ => false,
    }
}

fn same_type(values: &[&Expr], schema: &Schema) -> bool {
    let mut types = values.iter().map(|value| value_type(value, schema));
    match types.next().flatten() {
        Some(first) => types.all(|other| other.as_ref() == Some(&first)),
        None => false,
    }
}

/// The type of a plain column, of a literal, of a parameter, or of a column widened without loss; `None` for everything else.
fn value_type(expr: &Expr, schema: &Schema) -> Option<DataType> {
    match expr {
        Expr::Column(column) => column_type(column, schema),
        Expr::Literal(value, _) => literal_type(value),
        // It becomes a literal of this type before the scan runs.
        Expr::Placeholder(Placeholder { field: Some(field), .. }) => {
            is_scalar(field.data_type()).then(|| field.data_type().clone())
        }
        Expr::Cast(Cast { expr, field }) => {
            let Expr::Column(column) = expr.as_ref() else { return None };
            let from = column_type(column, schema)?;
            let to = field.data_type().clone();
            widens(&from, &to).then_some(to)
        }
        _ => None,
    }
}

fn column_type(column: &Column, schema: &Schema) -> Option<DataType> {
    field_type(column, schema).filter(is_scalar)
}

/// The type of a column that can be handed to Lance by its name.
fn field_type(column: &Column, schema: &Schema) -> Option<DataType> {
    let name = &column.name;
    let field = schema.fields().iter().find(|field| field.name() == name)?;
    is_unambiguous(name, schema).then(|| field.data_type().clone())
}

/// True if Lance finds this very column by its name, and holds what it says in it.
pub(crate) fn is_unambiguous(name: &str, schema: &Schema) -> bool {
    // Lance looks names up without regard to case when it finds no exact match; two such names are a trap.
    let mut alike = schema.fields().iter().filter(|other| other.name().eq_ignore_ascii_case(name));
    match (alike.next(), alike.next()) {
        // Extension types (JSON, blobs) are turned into something else on the way out.
        (Some(field), None) => is_plain_name(name) && !field.metadata().contains_key("ARROW:extension:name"),
        _ => false,
    }
}

/// Lance reads dots and quotes in a name as a path.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

fn literal_type(value: &ScalarValue) -> Option<DataType> {
    let data_type = value.data_type();
    (!value.is_null() && is_scalar(&data_type)).then_some(data_type)
}

pub(crate) fn is_scalar(data_type: &DataType) -> bool {
    use DataType::{
        Boolean, Date32, Date64, Decimal128, Float32, Float64, Int8, Int16, Int32, Int64, LargeUtf8, Time32, Time64,
        Timestamp, UInt8, UInt16, UInt32, UInt64, Utf8,
    };
    matches!(
        data_type,
        Boolean
            | Int8
            | Int16
            | Int32
            | Int64
            | UInt8
            | UInt16
            | UInt32
            | UInt64
            | Float32
            | Float64
            | Decimal128(..)
            | Date32
            | Date64
            | Time32(_)
            | Time64(_)
            | Timestamp(..)
            | Utf8
            | LargeUtf8
    )
}

/// Casts that keep every value and so cannot fail.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::{Float32, Float64, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
    matches!(
        (from, to),
        (Int8, Int16 | Int32 | Int64 | Float32 | Float64)
            | (Int16, Int32 | Int64 | Float32 | Float64)
            | (Int32, Int64 | Float64)
            | (UInt8, UInt16 | UInt32 | UInt64 | Int16 | Int32 | Int64 | Float32 | Float64)
            | (UInt16, UInt32 | UInt64 | Int32 | Int64 | Float32 | Float64)
            | (UInt32, UInt64 | Int64 | Float64)
            | (Float32, Float64)
    )
}
