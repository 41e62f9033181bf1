//! The distance functions: `l2_distance`, `cosine_distance`, `inner_product`, `l1_distance`,
//! `hamming_distance`, `jaccard_distance` and `vector_distance`, which takes the metric's name.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use kernels::{Metric, Query};

use super::{check_vector_arguments, pair_types, read_argument};
use crate::vector_type::{Element, VectorType};
use crate::vectors::VectorArray;

/// All distance functions, under every name that they have.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    let fixed = [
        ("l2_distance", &["array_distance", "list_distance"][..], Metric::L2, Sign::Distance),
        ("cosine_distance", &[], Metric::Cosine, Sign::Distance),
        ("l1_distance", &[], Metric::L1, Sign::Distance),
        ("hamming_distance", &[], Metric::Hamming, Sign::Distance),
        ("jaccard_distance", &[], Metric::Jaccard, Sign::Distance),
        ("inner_product", &["list_inner_product"], Metric::InnerProduct, Sign::Similarity),
        ("negative_inner_product", &[], Metric::InnerProduct, Sign::Distance),
    ];
    let mut functions: Vec<Arc<ScalarUDF>> = fixed
        .into_iter()
        .map(|(name, aliases, metric, sign)| {
            let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
            let kind = Kind::Fixed(metric, sign);
            Arc::new(ScalarUDF::from(Distance {
                name,
                aliases,
                kind,
                signature: Signature::user_defined(Volatility::Immutable),
            }))
        })
        .collect();
    functions.push(Arc::new(ScalarUDF::from(Distance {
        name: "vector_distance",
        aliases: vec![],
        kind: Kind::ByName,
        signature: Signature::user_defined(Volatility::Immutable),
    })));
    functions
}

/// The function of a metric, as the operators `<->`, `<=>`, `<#>`, `<+>`, `<~>` and `<%>` need it.
pub fn of_metric(metric: Metric) -> Arc<ScalarUDF> {
    let kind = Kind::Fixed(metric, Sign::Distance);
    let name = match metric {
        Metric::L2 => "l2_distance",
        Metric::Cosine => "cosine_distance",
        Metric::InnerProduct => "negative_inner_product",
        Metric::L1 => "l1_distance",
        Metric::Hamming => "hamming_distance",
        Metric::Jaccard => "jaccard_distance",
    };
    Arc::new(ScalarUDF::from(Distance {
        name,
        aliases: vec![],
        kind,
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

/// A call of a distance function, taken apart.
#[derive(Debug, Clone, Copy)]
pub struct DistanceCall<'a> {
    /// How vectors are compared.
    pub metric: Metric,
    /// The function returns the distance with its sign changed: larger is closer.
    pub is_similarity: bool,
    /// The two vectors, in the order of the call.
    pub vectors: (&'a Expr, &'a Expr),
}

/// Takes a call of a distance function apart; `None` if the expression is something else, or names its metric
/// by an expression that is no constant.
pub fn distance_call(expr: &Expr) -> Option<DistanceCall<'_>> {
    let Expr::ScalarFunction(ScalarFunction { func, args }) = expr else { return None };
    let distance = func.inner().downcast_ref::<Distance>()?;
    match (&distance.kind, args.as_slice()) {
        (Kind::Fixed(metric, sign), [a, b]) => {
            Some(DistanceCall { metric: *metric, is_similarity: *sign == Sign::Similarity, vectors: (a, b) })
        }
        (Kind::ByName, [a, b, c]) => {
            let metric = |expr: &Expr| match expr {
                Expr::Literal(value, _) => metric_of(value),
                _ => None,
            };
            let (metric, vectors) = match (metric(c), metric(a)) {
                (Some(metric), _) => (metric, (a, b)),
                (None, Some(metric)) => (metric, (b, c)),
                _ => return None,
            };
            Some(DistanceCall { metric, is_similarity: false, vectors })
        }
        _ => None,
    }
}

fn metric_of(value: &ScalarValue) -> Option<Metric> {
    value.try_as_str().flatten().and_then(Metric::parse)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sign {
    Distance,
    Similarity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Fixed(Metric, Sign),
    ByName,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Distance {
    name: &'static str,
    aliases: Vec<String>,
    kind: Kind,
    signature: Signature,
}

impl Distance {
    /// The metric, its sign and the positions of the two vectors among the arguments.
    fn resolve(&self, constants: &[Option<&ScalarValue>]) -> Result<(Metric, Sign, [usize; 2])> {
        match self.kind {
            Kind::Fixed(metric, sign) => Ok((metric, sign, [0, 1])),
            Kind::ByName => {
                let metric = |at: usize| constants.get(at).copied().flatten().and_then(metric_of);
                match (metric(2), metric(0)) {
                    (Some(metric), _) => Ok((metric, Sign::Distance, [0, 1])),
                    (None, Some(metric)) => Ok((metric, Sign::Distance, [1, 2])),
                    (None, None) => {
                        let given = constants.get(2).copied().flatten().map(ToString::to_string);
                        plan_err!(
                            "vector_distance names its metric by a constant: 'l2', 'cosine', 'inner_product', 'l1', 'hamming' or 'jaccard'{}",
                            given.map(|given| format!(", not {given}")).unwrap_or_default()
                        )
                    }
                }
            }
        }
    }

    fn argument_count(&self) -> usize {
        match self.kind {
            Kind::Fixed(..) => 2,
            Kind::ByName => 3,
        }
    }
}

impl ScalarUDFImpl for Distance {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        if types.len() != self.argument_count() {
            return plan_err!("{} takes {} arguments, not {}", self.name, self.argument_count(), types.len());
        }
        check_vector_arguments(self.name, types)?;
        Ok(types.to_vec())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<arrow::datatypes::FieldRef> {
        let field = Arc::new(arrow::datatypes::Field::new(self.name, DataType::Float64, true));
        if args.arg_fields.len() != self.argument_count() {
            return plan_err!("{} takes {} arguments, not {}", self.name, self.argument_count(), args.arg_fields.len());
        }
        // Parameters that are not bound yet have no type to check.
        if args.arg_fields.iter().any(|field| field.data_type().is_null()) {
            return Ok(field);
        }
        let (metric, _, at) = self.resolve(args.scalar_arguments)?;
        let fields = [Arc::clone(&args.arg_fields[at[0]]), Arc::clone(&args.arg_fields[at[1]])];
        let constants = [args.scalar_arguments[at[0]], args.scalar_arguments[at[1]]];
        let pair = ReturnFieldArgs { arg_fields: &fields, scalar_arguments: &constants };
        let (left, right) = pair_types(self.name, &pair)?;
        check_metric(self.name, metric, left, right)?;
        Ok(field)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constants: Vec<Option<&ScalarValue>> = args
            .args
            .iter()
            .map(|value| match value {
                ColumnarValue::Scalar(value) => Some(value),
                ColumnarValue::Array(_) => None,
            })
            .collect();
        let (metric, sign, at) = self.resolve(&constants)?;
        let types = at.map(|at| VectorType::of_field(&args.arg_fields[at]));
        let left = read_argument(&args.args[at[0]], &args.arg_fields[at[0]], types[1])?;
        let right = read_argument(&args.args[at[1]], &args.arg_fields[at[1]], types[0])?;
        let sides = [is_constant(&args.args[at[0]]), is_constant(&args.args[at[1]])];
        let (mut distances, nulls) = match sides {
            [true, _] => from_one(metric, &left, &right)?,
            [false, true] => from_one(metric, &right, &left)?,
            [false, false] => between(metric, &left, &right)?,
        };
        if sign == Sign::Similarity {
            // Not a negation: 0 - 0 is 0, and -(0) would be shown as -0.
            distances.iter_mut().for_each(|distance| *distance = 0.0 - *distance);
        }
        let array = with_nulls(distances, nulls);
        if sides == [true, true] {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?));
        }
        Ok(ColumnarValue::Array(array))
    }
}

fn is_constant(value: &ColumnarValue) -> bool {
    matches!(value, ColumnarValue::Scalar(_))
}

/// Distances from one query to each row.
fn from_one(metric: Metric, query: &VectorArray, rows: &VectorArray) -> Result<(Vec<f64>, Option<NullBuffer>)> {
    if !query.is_valid(0) {
        return Ok((vec![0.0; rows.rows], Some(NullBuffer::new_null(rows.rows))));
    }
    check_metric(metric.name(), metric, Some(query.vector_type()), Some(rows.vector_type()))?;
    if query.dim != rows.dim && rows.nulls.as_ref().is_none_or(|nulls| nulls.null_count() < rows.rows) {
        return exec_err!(
            "vectors of one dimension are compared, but one has {} and the other {}",
            query.dim,
            rows.dim
        );
    }
    let mut out = vec![0.0; rows.rows];
    if query.dim == rows.dim {
        let query = Query::new(metric, query.dim, query.vector(0)).map_err(external)?;
        query.distances(rows.vectors(), &mut out).map_err(external)?;
    }
    Ok((out, rows.nulls.clone()))
}

/// Distances between the rows of two columns.
fn between(metric: Metric, left: &VectorArray, right: &VectorArray) -> Result<(Vec<f64>, Option<NullBuffer>)> {
    let nulls = NullBuffer::union(left.nulls.as_ref(), right.nulls.as_ref());
    let mut out = vec![0.0; left.rows];
    if nulls.as_ref().is_some_and(|nulls| nulls.null_count() == left.rows) {
        return Ok((out, nulls));
    }
    check_metric(metric.name(), metric, Some(left.vector_type()), Some(right.vector_type()))?;
    if left.dim != right.dim {
        return exec_err!(
            "vectors of one dimension are compared, but one has {} and the other {}",
            left.dim,
            right.dim
        );
    }
    kernels::pair_distances(metric, left.dim, left.vectors(), right.vectors(), &mut out).map_err(external)?;
    Ok((out, nulls))
}

/// NaN, the cosine of a zero vector, becomes NULL.
fn with_nulls(distances: Vec<f64>, nulls: Option<NullBuffer>) -> ArrayRef {
    let undefined = distances.iter().any(|distance| distance.is_nan());
    let nulls = if undefined {
        let defined = NullBuffer::from_iter(distances.iter().map(|distance| !distance.is_nan()));
        NullBuffer::union(nulls.as_ref(), Some(&defined))
    } else {
        nulls
    };
    Arc::new(Float64Array::new(distances.into(), nulls))
}

/// Bits are compared by Hamming and Jaccard, numbers by the others.
///
/// # Errors
/// A metric that does not fit, with the next step.
pub fn check_metric(function: &str, metric: Metric, left: Option<VectorType>, right: Option<VectorType>) -> Result<()> {
    let wrong =
        [left, right].into_iter().flatten().find(|vector| (vector.element == Element::Bit) != metric.is_for_bits());
    match wrong {
        Some(vector) if metric.is_for_bits() => {
            plan_err!(
                "{function} compares bit vectors, not {vector}; use binary_quantize(…) or a metric for numbers such as cosine"
            )
        }
        Some(vector) => {
            plan_err!("{function} compares vectors of numbers, not {vector}; use hamming_distance or jaccard_distance")
        }
        None => Ok(()),
    }
}

fn external(error: kernels::DistanceError) -> DataFusionError {
    DataFusionError::Execution(error.to_string())
}
