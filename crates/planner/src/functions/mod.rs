//! The SQL functions over vectors, one file per kind, which hand their work to `kernels`; and those over times.

pub mod aggregate;
pub mod cast_time;
pub mod convert;
pub mod distance;
pub mod elementwise;
pub mod instant;
pub mod max_sim;
mod now;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{AggregateUDF, ColumnarValue, ReturnFieldArgs, ScalarUDF};

use crate::vector_type::{Element, VectorType};
use crate::vectors::{VectorArray, may_be_vector};

/// Every scalar function of ours. They replace DataFusion's functions of the same names, which cast each row
/// to a list of doubles.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    let mut functions: Vec<Arc<ScalarUDF>> = distance::functions();
    functions.extend(elementwise::functions());
    functions.extend(convert::functions());
    functions.push(Arc::new(ScalarUDF::from(max_sim::MaxSim::new())));
    functions.push(now::function());
    functions
}

/// `avg` and `sum`, for numbers as before and for vectors.
pub fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    aggregate::functions()
}

/// Refuses arguments that can never be vectors.
fn check_vector_arguments(function: &str, types: &[DataType]) -> Result<()> {
    match types.iter().find(|data_type| !may_be_vector(data_type)) {
        Some(wrong) => {
            plan_err!("{function} takes vectors, but got a value of type {}", crate::sql_type::name_of(wrong))
        }
        None => Ok(()),
    }
}

/// The vector type that an argument has by itself: of its field, or of a constant that can be read as a vector.
///
/// # Errors
/// A constant text that is no vector.
fn known_type(
    field: &FieldRef,
    constant: Option<&ScalarValue>,
    expected: Option<VectorType>,
) -> Result<Option<VectorType>> {
    if let Some(vector) = VectorType::of_field(field) {
        return Ok(Some(vector));
    }
    match constant {
        Some(value) if !value.is_null() => {
            let array = value.to_array()?;
            Ok(Some(VectorArray::read(&array, field, expected)?.vector_type()))
        }
        _ => Ok(None),
    }
}

/// The types of two vector arguments, each told from itself or, for constants, checked against the other one.
///
/// # Errors
/// Dimensions that differ, with both numbers.
fn pair_types(function: &str, args: &ReturnFieldArgs<'_>) -> Result<(Option<VectorType>, Option<VectorType>)> {
    let of_fields: Vec<_> = args.arg_fields.iter().map(|field| VectorType::of_field(field)).collect();
    let constant = |at: usize| args.scalar_arguments.get(at).copied().flatten();
    let left = known_type(&args.arg_fields[0], constant(0), of_fields[1])?;
    let right = known_type(&args.arg_fields[1], constant(1), of_fields[0])?;
    let (left, right) = (as_bits_beside(left, right), as_bits_beside(right, left));
    if let (Some(a), Some(b)) = (left, right)
        && a.dim != b.dim
    {
        let names = (args.arg_fields[0].name(), args.arg_fields[1].name());
        return plan_err!(
            "{function} compares vectors of one dimension, but {} has {} dimensions and {} has {}",
            argument_name(names.0, "the first"),
            a.dim,
            argument_name(names.1, "the second"),
            b.dim
        );
    }
    Ok((left, right))
}

/// Bytes beside bits are packed bits: a subquery does not pass on that a column holds bits.
fn as_bits_beside(own: Option<VectorType>, other: Option<VectorType>) -> Option<VectorType> {
    let is_packed = |own: &VectorType, other: &VectorType| {
        own.element == Element::UInt8 && other.element == Element::Bit && own.dim * 8 == other.dim
    };
    match (own, other) {
        (Some(own), Some(other)) if is_packed(&own, &other) => Some(other),
        (own, _) => own,
    }
}

/// A column is named; a constant, whose field is named after its value, is called by its position.
fn argument_name(name: &str, position: &str) -> String {
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.');
    if is_name && name != "lit" { name.to_owned() } else { format!("{position} argument") }
}

/// An argument as vectors: one row for a constant, all rows for a column.
fn read_argument(value: &ColumnarValue, field: &Field, expected: Option<VectorType>) -> Result<VectorArray> {
    match value {
        ColumnarValue::Array(array) => VectorArray::read(array, field, expected),
        ColumnarValue::Scalar(scalar) => VectorArray::read(&scalar.to_array()?, field, expected),
    }
}
