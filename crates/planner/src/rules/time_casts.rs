//! Casts to timestamps become `cast_time` where a plain cast says something else.

use datafusion::common::DFSchema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TransformedResult;
use datafusion::error::Result;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, TryCast};
use datafusion::optimizer::AnalyzerRule;

use super::rewrite_exprs::rewrite_exprs;
use crate::functions::cast_time::{Misfit, cast_time};

/// Runs when the types of operands have been brought together.
#[derive(Debug)]
pub struct TimeCasts;

impl AnalyzerRule for TimeCasts {
    fn name(&self) -> &'static str {
        "time_casts"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        rewrite_exprs(plan, ours, |_| Ok(None)).data()
    }
}

fn ours(expr: &Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    let (value, to, misfit) = match expr {
        Expr::Cast(Cast { expr, field }) => (expr, field.data_type(), Misfit::Error),
        Expr::TryCast(TryCast { expr, field }) => (expr, field.data_type(), Misfit::Null),
        _ => return Ok(None),
    };
    let Ok(from) = value.get_type(schema) else { return Ok(None) };
    Ok(cast_time(value, &from, to, misfit))
}
