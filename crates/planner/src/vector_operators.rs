//! Operators on vectors: the distances `<->`, `<=>`, `<#>`, `<+>`, `<~>`, `<%>`, and element-wise `+`, `-`, `*`.

use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Expr, ExprSchemable, ScalarUDF};
use datafusion::sql::sqlparser::ast::BinaryOperator;
use kernels::Metric;

use crate::functions::distance;
use crate::functions::elementwise::{self, Operation};
use crate::vector_type::VectorType;

/// Plans the operators. `<=>` is always the cosine distance: DataFusion's own meaning, null-safe equality, would
/// run on vectors and return wrong rows; SQL spells that one `IS NOT DISTINCT FROM`.
#[derive(Debug)]
pub struct VectorOperators;

impl ExprPlanner for VectorOperators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let function = match metric_of(&expr.op) {
            Some(metric) => Some(distance::of_metric(metric)),
            None => elementwise_of(&expr, schema),
        };
        Ok(match function {
            Some(function) => {
                let call = ScalarFunction::new_udf(function, vec![expr.left, expr.right]);
                PlannerResult::Planned(Expr::ScalarFunction(call))
            }
            None => PlannerResult::Original(expr),
        })
    }
}

fn metric_of(operator: &BinaryOperator) -> Option<Metric> {
    let symbol = match operator {
        BinaryOperator::LtDashGt => "<->",
        BinaryOperator::Spaceship => "<=>",
        BinaryOperator::Custom(symbol) => symbol,
        BinaryOperator::PGCustomBinaryOperator(path) => path.last()?,
        _ => return None,
    };
    Some(match symbol {
        "<->" => Metric::L2,
        "<=>" => Metric::Cosine,
        "<#>" => Metric::InnerProduct,
        "<+>" => Metric::L1,
        "<~>" => Metric::Hamming,
        "<%>" => Metric::Jaccard,
        _ => return None,
    })
}

fn elementwise_of(expr: &RawBinaryExpr, schema: &DFSchema) -> Option<Arc<ScalarUDF>> {
    let operation = match expr.op {
        BinaryOperator::Plus => Operation::Add,
        BinaryOperator::Minus => Operation::Subtract,
        BinaryOperator::Multiply => Operation::Multiply,
        _ => return None,
    };
    let is_vector = |expr: &Expr| expr.to_field(schema).is_ok_and(|(_, field)| VectorType::of_field(&field).is_some());
    (is_vector(&expr.left) || is_vector(&expr.right)).then(|| elementwise::function(operation))
}
