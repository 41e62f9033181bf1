//! `avg` and `sum` of vectors. For everything else they are DataFusion's own functions, under the same names.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, ListArray, UInt64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, UInt64Type};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::{average, sum};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs};
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Expr, GroupsAccumulator, ReversedUDAF, SetMonotonicity, Signature,
    StatisticsArgs, Volatility,
};

use crate::vector_type::{Element, VectorType};
use crate::vectors::VectorArray;

/// Both aggregates.
pub fn functions() -> Vec<Arc<AggregateUDF>> {
    [(average::avg_udaf(), Kind::Average), (sum::sum_udaf(), Kind::Sum)]
        .into_iter()
        .map(|(numbers, kind)| {
            let signature = Signature::user_defined(Volatility::Immutable);
            Arc::new(AggregateUDF::from(VectorAggregate { kind, numbers, signature }))
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Average,
    Sum,
}

/// The aggregate of vectors, and of numbers through `numbers`.
#[derive(Debug)]
struct VectorAggregate {
    kind: Kind,
    numbers: Arc<AggregateUDF>,
    signature: Signature,
}

impl PartialEq for VectorAggregate {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

impl Eq for VectorAggregate {}

impl Hash for VectorAggregate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

/// The type of the result for vectors: floats, as sums of bytes leave their range.
fn vector_of(fields: &[FieldRef]) -> Option<VectorType> {
    let vector = VectorType::of_field(fields.first()?)?;
    (vector.element != Element::Bit).then_some(VectorType { element: Element::Float32, dim: vector.dim })
}

fn is_vector(args: &AccumulatorArgs<'_>) -> bool {
    vector_of(args.expr_fields).is_some()
}

impl AggregateUDFImpl for VectorAggregate {
    fn name(&self) -> &str {
        self.numbers.name()
    }

    fn aliases(&self) -> &[String] {
        self.numbers.aliases()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let fields: Vec<FieldRef> =
            types.iter().map(|data_type| Arc::new(Field::new("", data_type.clone(), true))).collect();
        match vector_of(&fields) {
            Some(vector) => Ok(vector.data_type()),
            None => self.numbers.return_type(types),
        }
    }

    fn return_field(&self, fields: &[FieldRef]) -> Result<FieldRef> {
        match vector_of(fields) {
            Some(vector) => Ok(Arc::new(vector.field(self.name(), true))),
            None => self.numbers.return_field(fields),
        }
    }

    fn is_nullable(&self) -> bool {
        true
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let fields: Vec<FieldRef> =
            types.iter().map(|data_type| Arc::new(Field::new("", data_type.clone(), true))).collect();
        if types.len() == 1 && vector_of(&fields).is_some() {
            return Ok(types.to_vec());
        }
        if types.iter().any(|data_type| {
            matches!(data_type, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..))
        }) {
            return plan_err!(
                "{} takes numbers or vectors of one dimension; cast a list first, as in {}(x::vector(384))",
                self.name(),
                self.name()
            );
        }
        let coerced = fields_with_udf(&fields, self.numbers.as_ref())?;
        Ok(coerced.iter().map(|field| field.data_type().clone()).collect())
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let Some(vector) = vector_of(args.expr_fields) else { return self.numbers.accumulator(args) };
        if args.is_distinct {
            return plan_err!("{}(DISTINCT vector) is not supported; aggregate over a SELECT DISTINCT", self.name());
        }
        Ok(Box::new(VectorAccumulator {
            kind: self.kind,
            vector,
            input: Arc::clone(&args.expr_fields[0]),
            sums: vec![0.0; vector.dim],
            rows: 0,
        }))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        if vector_of(args.input_fields).is_none() {
            return self.numbers.state_fields(args);
        }
        let sums = DataType::new_list(DataType::Float64, true);
        Ok(vec![
            Arc::new(Field::new(format!("{}[sums]", args.name), sums, true)),
            Arc::new(Field::new(format!("{}[rows]", args.name), DataType::UInt64, true)),
        ])
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !is_vector(&args) && self.numbers.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        self.numbers.create_groups_accumulator(args)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if is_vector(&args) { self.accumulator(args) } else { self.numbers.create_sliding_accumulator(args) }
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.numbers.order_sensitivity()
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        self.numbers.simplify()
    }

    fn simplify_expr_op_literal(
        &self,
        aggregate: &AggregateFunction,
        argument: &Expr,
        operator: datafusion::logical_expr::Operator,
        literal: &Expr,
        literal_is_left: bool,
    ) -> Result<Option<Expr>> {
        self.numbers.inner().simplify_expr_op_literal(aggregate, argument, operator, literal, literal_is_left)
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn value_from_stats(&self, statistics: &StatisticsArgs<'_>) -> Option<ScalarValue> {
        self.numbers.value_from_stats(statistics)
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        ScalarValue::try_from(data_type)
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.numbers.inner().set_monotonicity(data_type)
    }
}

/// Sums of each dimension in `f64`, and the number of vectors.
#[derive(Debug)]
struct VectorAccumulator {
    kind: Kind,
    vector: VectorType,
    input: FieldRef,
    sums: Vec<f64>,
    rows: u64,
}

impl VectorAccumulator {
    /// Adds (`sign` 1) or takes away (`sign` -1) each vector.
    fn accumulate(&mut self, values: &[ArrayRef], sign: f64) -> Result<()> {
        let vectors = VectorArray::read(&values[0], &self.input, None)?;
        let floats = vectors.to_f32();
        for (row, vector) in floats.chunks(vectors.dim).enumerate().filter(|(row, _)| vectors.is_valid(*row)) {
            debug_assert!(row < vectors.rows);
            self.sums.iter_mut().zip(vector).for_each(|(sum, value)| *sum += sign * f64::from(*value));
            self.rows = if sign > 0.0 { self.rows + 1 } else { self.rows - 1 };
        }
        Ok(())
    }
}

impl Accumulator for VectorAccumulator {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.accumulate(values, 1.0)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.accumulate(values, -1.0)
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.rows == 0 {
            return ScalarValue::try_from(self.vector.data_type());
        }
        let divisor = if self.kind == Kind::Average { self.rows as f64 } else { 1.0 };
        let values: Vec<f32> = self.sums.iter().map(|sum| (sum / divisor) as f32).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return exec_err!("the result of {:?} of vectors is beyond the range of FLOAT32", self.kind);
        }
        let DataType::FixedSizeList(item, length) = self.vector.data_type() else {
            return exec_err!("{} is not held as a list", self.vector);
        };
        let values: ArrayRef = Arc::new(arrow::array::Float32Array::from(values));
        let list = arrow::array::FixedSizeListArray::try_new(item, length, values, None)?;
        Ok(ScalarValue::FixedSizeList(Arc::new(list)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.sums.capacity() * size_of::<f64>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let sums = Float64Array::from(self.sums.clone());
        let list = ListArray::from_iter_primitive::<Float64Type, _, _>([Some(sums.values().iter().copied().map(Some))]);
        Ok(vec![ScalarValue::List(Arc::new(list)), ScalarValue::UInt64(Some(self.rows))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (sums, rows): (&ListArray, &UInt64Array) = (states[0].as_list(), states[1].as_primitive::<UInt64Type>());
        for row in 0..sums.len() {
            let values = sums.value(row);
            let values = values.as_primitive::<Float64Type>();
            self.sums.iter_mut().zip(values.values()).for_each(|(sum, value)| *sum += value);
            self.rows += rows.value(row);
        }
        Ok(())
    }
}
