//! `max_sim(document, query)`: the late-interaction similarity of two sets of vectors.
//!
//! The sum, over the query's vectors, of the largest inner product with any vector of the document.
//! Source: Khattab & Zaharia, "ColBERT", SIGIR 2020, arXiv:2004.12832.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Builder};
use arrow::datatypes::DataType;
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use kernels::Metric;

use crate::vectors::VectorArray;

/// The function `max_sim`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct MaxSim {
    signature: Signature,
}

impl MaxSim {
    /// The function.
    pub fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl Default for MaxSim {
    fn default() -> Self {
        Self::new()
    }
}

impl ScalarUDFImpl for MaxSim {
    fn name(&self) -> &'static str {
        "max_sim"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        if types.len() != 2 {
            return plan_err!("max_sim takes 2 arguments, not {}", types.len());
        }
        match types.iter().find(|data_type| !is_vector_list(data_type)) {
            Some(wrong) => plan_err!(
                "max_sim takes lists of vectors such as VECTOR(128)[] or [[0.1, 0.2], [0.3, 0.4]], but got {}",
                crate::sql_type::name_of(wrong)
            ),
            None => Ok(types.to_vec()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let (documents, queries) = (args.args[0].to_array(rows)?, args.args[1].to_array(rows)?);
        let mut out = Float64Builder::with_capacity(rows);
        for row in 0..rows {
            out.append_option(similarity(&documents, &queries, row)?);
        }
        let array: ArrayRef = Arc::new(out.finish());
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?));
        }
        Ok(ColumnarValue::Array(array))
    }
}

fn is_vector_list(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            matches!(item.data_type(), DataType::FixedSizeList(..) | DataType::List(_) | DataType::LargeList(_))
        }
        _ => false,
    }
}

/// NULL for a missing side and for a side without vectors.
fn similarity(documents: &ArrayRef, queries: &ArrayRef, row: usize) -> Result<Option<f64>> {
    let (Some(document), Some(query)) = (vectors_of(documents, row)?, vectors_of(queries, row)?) else {
        return Ok(None);
    };
    if document.rows == 0 || query.rows == 0 {
        return Ok(None);
    }
    if document.dim != query.dim {
        return exec_err!(
            "max_sim compares vectors of one dimension, but one has {} and the other {}",
            document.dim,
            query.dim
        );
    }
    let mut distances = vec![0.0; document.rows * query.rows];
    kernels::distance_matrix(Metric::InnerProduct, query.dim, query.vectors(), document.vectors(), &mut distances)
        .map_err(|error| DataFusionError::Execution(error.to_string()))?;
    let best = |distances: &[f64]| -distances.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(Some(distances.chunks(document.rows).map(best).sum()))
}

fn vectors_of(lists: &ArrayRef, row: usize) -> Result<Option<VectorArray>> {
    if lists.is_null(row) || lists.data_type().is_null() {
        return Ok(None);
    }
    let (values, field) = match lists.data_type() {
        DataType::List(field) => (lists.as_list::<i32>().value(row), field),
        DataType::LargeList(field) => (lists.as_list::<i64>().value(row), field),
        DataType::FixedSizeList(field, _) => (lists.as_fixed_size_list().value(row), field),
        other => return exec_err!("max_sim takes lists of vectors, not {other}"),
    };
    let vectors = VectorArray::read(&values, field, None)?;
    if vectors.nulls.is_some() {
        return exec_err!("a list of vectors holds a NULL; max_sim needs every vector");
    }
    Ok(Some(vectors))
}
