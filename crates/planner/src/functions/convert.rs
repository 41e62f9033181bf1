//! `to_vector(value, 'VECTOR(384)')`: what a cast to a vector type becomes.

use std::sync::Arc;

use arrow::array::Array;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};

use super::read_argument;
use crate::vector_type::{Element, VectorType};
use crate::vectors::may_be_vector;

/// The name of the function that casts to vectors.
pub const TO_VECTOR: &str = "to_vector";

/// All functions of this file.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![to_vector_function()]
}

/// `value` cast to a vector type.
pub fn to_vector(value: Expr, target: VectorType) -> Expr {
    let args = vec![value, lit(target.element.name()), lit(target.dim as i64)];
    Expr::ScalarFunction(ScalarFunction::new_udf(to_vector_function(), args))
}

fn to_vector_function() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(ToVector { signature: Signature::user_defined(Volatility::Immutable) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ToVector {
    signature: Signature,
}

/// The target type from the constants `'FLOAT32'` and `384`.
fn target(element: Option<&ScalarValue>, dim: Option<&ScalarValue>) -> Result<VectorType> {
    let name = element.and_then(|value| value.try_as_str().flatten());
    match (name, dim.map(|value| value.cast_to(&DataType::Int64))) {
        (Some(name), Some(Ok(ScalarValue::Int64(Some(dim))))) => {
            VectorType::checked(Element::of_name(name)?, usize::try_from(dim).unwrap_or(0))
        }
        _ => plan_err!(
            "to_vector(value, element, dimension) takes a constant element such as 'FLOAT32' and a constant dimension"
        ),
    }
}

impl ScalarUDFImpl for ToVector {
    fn name(&self) -> &str {
        TO_VECTOR
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        plan_err!("the type of to_vector depends on its arguments")
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [value, _, _] if !may_be_vector(value) => {
                plan_err!("a value of type {} cannot be cast to a vector", crate::sql_type::name_of(value))
            }
            [value, _, _] => Ok(vec![value.clone(), DataType::Utf8, DataType::Int64]),
            _ => plan_err!("to_vector takes 3 arguments, not {}", types.len()),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let constant = |at: usize| args.scalar_arguments.get(at).copied().flatten();
        let target = target(constant(1), constant(2))?;
        let nullable = args.arg_fields[0].is_nullable();
        Ok(Arc::new(target.field(args.arg_fields[0].name(), nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = |at: usize| match &args.args[at] {
            ColumnarValue::Scalar(value) => Some(value),
            ColumnarValue::Array(_) => None,
        };
        let target = target(constant(1), constant(2))?;
        let read = read_argument(&args.args[0], &args.arg_fields[0], Some(target))?;
        let missing = match &args.args[0] {
            ColumnarValue::Scalar(value) => usize::from(value.is_null()),
            ColumnarValue::Array(array) => array.logical_null_count(),
        };
        if read.nulls.as_ref().map_or(0, |nulls| nulls.null_count()) > missing {
            return exec_err!(
                "a vector has a NULL element; write a number for every dimension, or NULL for the whole vector"
            );
        }
        let vectors = read.cast(target)?;
        match &args.args[0] {
            ColumnarValue::Scalar(_) => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&vectors, 0)?)),
            ColumnarValue::Array(_) => Ok(ColumnarValue::Array(Arc::new(vectors))),
        }
    }
}
