//! Narrows what a search fetches to the columns that the plan above it uses.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, Projection};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

use crate::vector_search::VectorSearch;

/// Runs last in the optimizer, when projections above a search have been merged.
#[derive(Debug)]
pub struct FetchLess;

impl OptimizerRule for FetchLess {
    fn name(&self) -> &'static str {
        "fetch_less"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Projection(projection) = &plan else { return Ok(Transformed::no(plan)) };
        let LogicalPlan::Extension(extension) = projection.input.as_ref() else { return Ok(Transformed::no(plan)) };
        let Some(search) = extension.node.as_any().downcast_ref::<VectorSearch>() else { return Ok(Transformed::no(plan)) };
        let used: BTreeSet<String> =
            projection.expr.iter().flat_map(Expr::column_refs).filter(|column| column.relation.as_ref() == Some(&search.table_name)).map(|column| column.name.clone()).collect();
        let schema = search.table.schema();
        let columns: Vec<usize> = search.columns.iter().copied().filter(|at| used.contains(schema.field(*at).name())).collect();
        if columns.len() == search.columns.len() {
            return Ok(Transformed::no(plan));
        }
        let input = LogicalPlan::Extension(Extension { node: Arc::new(search.with_columns(columns)?) });
        let narrowed = Projection::try_new_with_schema(projection.expr.clone(), Arc::new(input), Arc::clone(&projection.schema))?;
        Ok(Transformed::yes(LogicalPlan::Projection(narrowed)))
    }
}
