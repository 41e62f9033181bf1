//! A pass over all expressions of a plan, subqueries included, that leaves a plan alone in which nothing is to be done:
//! taking a plan apart and putting it together costs more than looking at it.

use std::cell::OnceCell;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan};

/// What becomes of an expression over columns of a schema; `None`: nothing.
pub(crate) type Change = fn(&Expr, &DFSchema) -> Result<Option<Expr>>;

/// What becomes of a node whose expressions are done; `None`: nothing.
pub(crate) type NodeChange = fn(&LogicalPlan) -> Result<Option<LogicalPlan>>;

/// The plan with `change` made everywhere in it, innermost expressions first. Columns keep their names.
pub(crate) fn rewrite_exprs(
    plan: LogicalPlan,
    change: Change,
    node_change: NodeChange,
) -> Result<Transformed<LogicalPlan>> {
    let mut is_touched = false;
    plan.apply_with_subqueries(|node| {
        is_touched = touches(node, change)? || node_change(node)?.is_some();
        Ok(if is_touched { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if !is_touched {
        return Ok(Transformed::no(plan));
    }
    plan.transform_up_with_subqueries(|node| {
        let node = if touches(&node, change)? {
            Transformed::yes(rewritten(node, change)?)
        } else {
            Transformed::yes(node.recompute_schema()?)
        };
        Ok(match node_change(&node.data)? {
            Some(changed) => Transformed::yes(changed),
            None => node,
        })
    })
}

fn touches(node: &LogicalPlan, change: Change) -> Result<bool> {
    let (schema, mut found) = (OnceCell::new(), false);
    node.apply_expressions(|expr| {
        expr.apply(|expr| {
            found = found || change(expr, schema.get_or_init(|| columns(node)))?.is_some();
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    Ok(found)
}

/// What the expressions of a node can name.
fn columns(node: &LogicalPlan) -> DFSchemaRef {
    match node.inputs().as_slice() {
        [input] => Arc::clone(input.schema()),
        inputs => Arc::new(merge_schema(inputs)),
    }
}

fn rewritten(node: LogicalPlan, change: Change) -> Result<LogicalPlan> {
    let schema = columns(&node);
    let names = NamePreserver::new(&node);
    node.map_expressions(|expr| {
        let name = names.save(&expr);
        let expr = expr.transform_up(|expr| {
            Ok(match change(&expr, &schema)? {
                Some(changed) => Transformed::yes(changed),
                None => Transformed::no(expr),
            })
        })?;
        Ok(expr.update_data(|expr| name.restore(expr)))
    })
    .data()?
    .recompute_schema()
}
