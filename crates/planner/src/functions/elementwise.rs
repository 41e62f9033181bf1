//! Functions of vectors to vectors and numbers: dimensions, norm, `normalize`, `subvector`, `binary_quantize`
//! and element-wise `+`, `-`, `*`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, FixedSizeListArray, Float32Array, Float64Array, Int64Array, UInt8Array};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::{check_vector_arguments, known_type, pair_types, read_argument};
use crate::vector_type::{Element, VectorType};
use crate::vectors::VectorArray;

/// The operation of an element-wise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `vector_dims(v)`: the number of dimensions.
    Dims,
    /// `vector_norm(v)`: the Euclidean length.
    Norm,
    /// `normalize(v)`: the vector at length 1; NULL for a zero vector.
    Normalize,
    /// `subvector(v, start, count)`: `count` dimensions from `start`, counted from 1.
    Subvector,
    /// `binary_quantize(v)`: one bit per dimension, set where the element is above 0.
    BinaryQuantize,
    /// `a + b`.
    Add,
    /// `a - b`.
    Subtract,
    /// `a * b`, element by element.
    Multiply,
}

/// All functions of this file.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    use Operation::*;
    [Dims, Norm, Normalize, Subvector, BinaryQuantize, Add, Subtract, Multiply].into_iter().map(function).collect()
}

/// The function of one operation; the operators `+`, `-` and `*` on vectors need three of them.
pub fn function(operation: Operation) -> Arc<ScalarUDF> {
    let signature = Signature::user_defined(Volatility::Immutable);
    Arc::new(ScalarUDF::from(Elementwise { operation, aliases: operation.aliases(), signature }))
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Dims => "vector_dims",
            Self::Norm => "vector_norm",
            Self::Normalize => "normalize",
            Self::Subvector => "subvector",
            Self::BinaryQuantize => "binary_quantize",
            Self::Add => "vector_add",
            Self::Subtract => "vector_subtract",
            Self::Multiply => "vector_multiply",
        }
    }

    fn aliases(self) -> Vec<String> {
        match self {
            Self::Normalize => vec!["l2_normalize".into(), "array_normalize".into()],
            _ => vec![],
        }
    }

    fn vector_count(self) -> usize {
        match self {
            Self::Add | Self::Subtract | Self::Multiply => 2,
            _ => 1,
        }
    }

    fn argument_count(self) -> usize {
        match self {
            Self::Subvector => 3,
            _ => self.vector_count(),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Elementwise {
    operation: Operation,
    aliases: Vec<String>,
    signature: Signature,
}

impl ScalarUDFImpl for Elementwise {
    fn name(&self) -> &str {
        self.operation.name()
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        plan_err!("the type of {} depends on its arguments", self.name())
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        if types.len() != self.operation.argument_count() {
            return plan_err!(
                "{} takes {} arguments, not {}",
                self.name(),
                self.operation.argument_count(),
                types.len()
            );
        }
        let vectors = self.operation.vector_count();
        check_vector_arguments(self.name(), &types[..vectors])?;
        let numbers = types[vectors..].iter().map(|_| DataType::Int64);
        Ok(types[..vectors].iter().cloned().chain(numbers).collect())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        use arrow::datatypes::Field;
        let name = self.name();
        let vector = match self.operation {
            Operation::Dims => return Ok(Arc::new(Field::new(name, DataType::Int64, true))),
            Operation::Norm => return Ok(Arc::new(Field::new(name, DataType::Float64, true))),
            Operation::Add | Operation::Subtract | Operation::Multiply => {
                let (left, right) = pair_types(name, &args)?;
                left.or(right)
            }
            _ => known_type(&args.arg_fields[0], args.scalar_arguments[0], None)?,
        };
        let Some(vector) = vector else {
            return plan_err!(
                "{name} needs a vector whose dimension is known; cast its argument, as in {name}(x::vector(384))"
            );
        };
        Ok(Arc::new(self.result_type(vector, args.scalar_arguments)?.field(name, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let types: Vec<_> = args.arg_fields.iter().map(|field| VectorType::of_field(field)).collect();
        let other = |at: usize| if self.operation.vector_count() == 2 { types[1 - at] } else { None };
        let vectors: Vec<VectorArray> = (0..self.operation.vector_count())
            .map(|at| {
                let array = args.args[at].to_array(rows)?;
                read_argument(&ColumnarValue::Array(array), &args.arg_fields[at], other(at))
            })
            .collect::<Result<_>>()?;
        let array = self.evaluate(&vectors, VectorType::of_field(&args.return_field), &args.args)?;
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?));
        }
        Ok(ColumnarValue::Array(array))
    }
}

impl Elementwise {
    fn result_type(&self, vector: VectorType, constants: &[Option<&ScalarValue>]) -> Result<VectorType> {
        if vector.element == Element::Bit {
            return plan_err!("{} works on vectors of numbers, not on {vector}", self.name());
        }
        match self.operation {
            Operation::Subvector => {
                let (_, count) = subvector_range(vector, constants)?;
                VectorType::checked(vector.element, count)
            }
            Operation::BinaryQuantize => VectorType::checked(Element::Bit, vector.dim),
            // Sums and products of bytes leave their range, lengths of halves their precision.
            _ => VectorType::checked(Element::Float32, vector.dim),
        }
    }

    fn evaluate(
        &self,
        vectors: &[VectorArray],
        result: Option<VectorType>,
        args: &[ColumnarValue],
    ) -> Result<ArrayRef> {
        let first = &vectors[0];
        match (self.operation, result) {
            (Operation::Dims, _) => {
                let dims = vec![first.dim as i64; first.rows];
                Ok(Arc::new(Int64Array::new(dims.into(), first.nulls.clone())))
            }
            (Operation::Norm, _) => {
                let norms: Vec<f64> = (0..first.rows).map(|row| kernels::norm(first.vector(row))).collect();
                Ok(Arc::new(Float64Array::new(norms.into(), first.nulls.clone())))
            }
            (Operation::Normalize, Some(result)) => normalize(first, result),
            (Operation::Subvector, Some(result)) => {
                let constants: Vec<_> = args.iter().map(constant_of).collect();
                let (start, _) = subvector_range(first.vector_type(), &constants)?;
                subvector(first, start, result)
            }
            (Operation::BinaryQuantize, Some(result)) => {
                let bytes = UInt8Array::from(kernels::binary_quantize(first.vectors()));
                list(Arc::new(bytes), result, first)
            }
            (operation, Some(result)) => pairwise(operation, first, &vectors[1], result),
            (_, None) => exec_err!("{} has no result type", self.name()),
        }
    }
}

fn constant_of(value: &ColumnarValue) -> Option<&ScalarValue> {
    match value {
        ColumnarValue::Scalar(value) => Some(value),
        ColumnarValue::Array(_) => None,
    }
}

/// The first dimension (from 0) and the number of dimensions that `subvector` takes.
fn subvector_range(vector: VectorType, constants: &[Option<&ScalarValue>]) -> Result<(usize, usize)> {
    let number = |at: usize| match constants.get(at).copied().flatten().map(|value| value.cast_to(&DataType::Int64)) {
        Some(Ok(ScalarValue::Int64(Some(number)))) => usize::try_from(number).ok(),
        _ => None,
    };
    let (Some(start), Some(count)) = (number(1), number(2)) else {
        return plan_err!("subvector(v, start, count) takes constant whole numbers for start (from 1) and count");
    };
    if start < 1 || count < 1 || start - 1 + count > vector.dim {
        return plan_err!(
            "subvector takes dimensions {start} to {} of a vector that has {}",
            start + count - 1,
            vector.dim
        );
    }
    Ok((start - 1, count))
}

fn subvector(vectors: &VectorArray, start: usize, result: VectorType) -> Result<ArrayRef> {
    let list_array = vectors.cast(vectors.vector_type())?;
    let indices: Vec<u64> = (0..vectors.rows)
        .flat_map(|row| (0..result.dim).map(move |at| (row * vectors.dim + start + at) as u64))
        .collect();
    let values = arrow::compute::take(list_array.values(), &arrow::array::UInt64Array::from(indices), None)?;
    list(values, result, vectors)
}

fn normalize(vectors: &VectorArray, result: VectorType) -> Result<ArrayRef> {
    let mut values = vectors.to_f32();
    let mut valid = Vec::with_capacity(vectors.rows);
    for (row, vector) in values.chunks_mut(vectors.dim).enumerate() {
        let norm = kernels::norm(vectors.vector(row));
        valid.push(vectors.is_valid(row) && norm > 0.0);
        if norm > 0.0 {
            vector.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
        }
    }
    let DataType::FixedSizeList(item, length) = result.data_type() else {
        return exec_err!("{result} is not held as a list");
    };
    let values: ArrayRef = Arc::new(Float32Array::from(values));
    Ok(Arc::new(FixedSizeListArray::try_new(item, length, values, Some(valid.into()))?))
}

fn pairwise(operation: Operation, left: &VectorArray, right: &VectorArray, result: VectorType) -> Result<ArrayRef> {
    if left.dim != right.dim {
        return exec_err!(
            "{} takes vectors of one dimension, but one has {} and the other {}",
            operation.name(),
            left.dim,
            right.dim
        );
    }
    let apply = |(a, b): (f32, f32)| match operation {
        Operation::Add => a + b,
        Operation::Subtract => a - b,
        _ => a * b,
    };
    let values: Vec<f32> = left.to_f32().into_iter().zip(right.to_f32()).map(apply).collect();
    let DataType::FixedSizeList(item, length) = result.data_type() else {
        return exec_err!("{result} is not held as a list");
    };
    let nulls = arrow::buffer::NullBuffer::union(left.nulls.as_ref(), right.nulls.as_ref());
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return exec_err!(
            "element {} of the result of {} is beyond the range of FLOAT32",
            at % left.dim + 1,
            operation.name()
        );
    }
    Ok(Arc::new(FixedSizeListArray::try_new(item, length, Arc::new(Float32Array::from(values)), nulls)?))
}

fn list(values: ArrayRef, result: VectorType, like: &VectorArray) -> Result<ArrayRef> {
    let DataType::FixedSizeList(item, length) = result.data_type() else {
        return exec_err!("{result} is not held as a list");
    };
    debug_assert_eq!(values.len(), like.rows * length as usize);
    Ok(Arc::new(FixedSizeListArray::try_new(item, length, values, like.nulls.clone())?))
}
