//! Narrows what a search fetches to the columns that the plan above it uses.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, TableReference};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, Projection, UserDefinedLogicalNode};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

use crate::resolve::SearchableTable;
use crate::text_search::TextSearch;
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
        let Some(input) = narrowed(&projection.input, projection.expr.clone())? else {
            return Ok(Transformed::no(plan));
        };
        let schema = Arc::clone(&projection.schema);
        let projection = Projection::try_new_with_schema(projection.expr.clone(), Arc::new(input), schema)?;
        Ok(Transformed::yes(LogicalPlan::Projection(projection)))
    }
}

/// The same plan over a search that fetches only what `exprs`, and the nodes on the way down, use; `None` if there
/// is no search or nothing to leave out.
fn narrowed(plan: &LogicalPlan, mut exprs: Vec<Expr>) -> Result<Option<LogicalPlan>> {
    match plan {
        LogicalPlan::Limit(_) | LogicalPlan::Sort(_) | LogicalPlan::Filter(_) => {
            exprs.extend(plan.expressions());
            let Some(input) = narrowed(plan.inputs()[0], exprs)? else { return Ok(None) };
            Ok(Some(plan.with_new_exprs(plan.expressions(), vec![input])?))
        }
        LogicalPlan::Extension(extension) => {
            let node = extension.node.as_any();
            if let Some(search) = node.downcast_ref::<VectorSearch>() {
                let columns = used(&search.table_name, search.table.as_ref(), &search.columns, &exprs);
                let is_less = columns.len() < search.columns.len();
                return is_less.then(|| Ok(extended(search.with_columns(columns)?))).transpose();
            }
            if let Some(search) = node.downcast_ref::<TextSearch>() {
                let columns = used(&search.table_name, search.table.as_ref(), &search.columns, &exprs);
                let is_less = columns.len() < search.columns.len();
                return is_less.then(|| Ok(extended(search.with_columns(columns)?))).transpose();
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn extended(node: impl UserDefinedLogicalNode + 'static) -> LogicalPlan {
    LogicalPlan::Extension(Extension { node: Arc::new(node) })
}

/// Which of the fetched columns the expressions use.
fn used(name: &TableReference, table: &dyn SearchableTable, columns: &[usize], exprs: &[Expr]) -> Vec<usize> {
    let of_table = |column: &&Column| column.relation.as_ref() == Some(name);
    let names: BTreeSet<&str> =
        exprs.iter().flat_map(Expr::column_refs).filter(of_table).map(|column| column.name.as_str()).collect();
    let schema = table.schema();
    columns.iter().copied().filter(|at| names.contains(schema.field(*at).name().as_str())).collect()
}
