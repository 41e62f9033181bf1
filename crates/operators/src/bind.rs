//! Templates: plans of searches whose parameters have no values yet, and what makes them plans that run.
//!
//! A search is planned once, with its parameters left open where an operator takes them as they are: the query vector of
//! [`VectorSearchExec`], the predicates of [`TableScanExec`]. Binding copies the few nodes of the plan, puts the values in
//! their places and a newer snapshot of each table in that of the old one. Nothing is parsed, resolved or optimized.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::Placeholder;
use datafusion::physical_plan::ExecutionPlan;
use storage::Snapshot;

use crate::fetch_rows::FetchRowsExec;
use crate::scan::TableScanExec;
use crate::vector_search::VectorSearchExec;

/// Operators of DataFusion that a template may have: what they do depends on neither values nor statistics.
const PLAIN: [&str; 8] = [
    "CoalesceBatchesExec",
    "CoalescePartitionsExec",
    "CooperativeExec",
    "FilterExec",
    "GlobalLimitExec",
    "LocalLimitExec",
    "ProjectionExec",
    "SortPreservingMergeExec",
];

/// Whether an expression has parameters.
pub fn has_parameters(expr: &Expr) -> bool {
    // The closure returns no error.
    expr.exists(|expr| Ok(matches!(expr, Expr::Placeholder(_)))).unwrap_or(true)
}

/// The expression with each parameter `$n` replaced by value `n`, from 1.
///
/// # Errors
/// A parameter without a value.
pub fn with_values(expr: Expr, values: &[ScalarValue]) -> Result<Expr> {
    expr.transform(|expr| match &expr {
        Expr::Placeholder(Placeholder { id, .. }) => match value_of(id, values) {
            Some(value) => Ok(Transformed::yes(Expr::Literal(value.clone(), None))),
            None => plan_err!("parameter {id} has no value"),
        },
        _ => Ok(Transformed::no(expr)),
    })
    .data()
}

/// The expression with some value of its type for each parameter.
///
/// # Errors
/// A parameter without a type.
pub(crate) fn with_any_values(expr: Expr) -> Result<Expr> {
    expr.transform(|expr| match &expr {
        Expr::Placeholder(Placeholder { id, field }) => match field {
            Some(field) => Ok(Transformed::yes(Expr::Literal(ScalarValue::new_default(field.data_type())?, None))),
            None => plan_err!("parameter {id} has no type"),
        },
        _ => Ok(Transformed::no(expr)),
    })
    .data()
}

/// The value of the parameter of this name, `$1` and so on.
pub fn value_of<'a>(id: &str, values: &'a [ScalarValue]) -> Option<&'a ScalarValue> {
    let number: usize = id.strip_prefix('$')?.parse().ok()?;
    values.get(number.checked_sub(1)?)
}

/// Whether a plan stays right when values and snapshots in it are replaced: a search, and operators around it that
/// look at neither. An aggregate, for one, may have become a constant by the statistics of one snapshot.
pub fn is_template(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let (mut has_search, mut is_plain) = (false, true);
    let walked = plan.apply(|node| {
        let any: &dyn Any = node.as_ref();
        has_search |= any.is::<VectorSearchExec>();
        let ours = any.is::<VectorSearchExec>() || any.is::<TableScanExec>() || any.is::<FetchRowsExec>();
        is_plain &= ours || PLAIN.contains(&node.name());
        Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
    });
    walked.is_ok() && has_search && is_plain
}

/// The plan of a template with these values, each table at the newer of its snapshots, by location. `None` where the
/// template does not fit a snapshot.
///
/// # Errors
/// A parameter without a value.
pub fn bind(
    template: &Arc<dyn ExecutionPlan>,
    values: &[ScalarValue],
    snapshots: &HashMap<String, Snapshot>,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let mut fits = true;
    let bound = Arc::clone(template).transform_up(|node| {
        let any: &dyn Any = node.as_ref();
        let newer = |snapshot: &Snapshot| snapshots.get(snapshot.location()).cloned();
        let bound: Option<Arc<dyn ExecutionPlan>> = if let Some(search) = any.downcast_ref::<VectorSearchExec>() {
            match newer(search.snapshot()) {
                Some(snapshot) => Some(Arc::new(search.bound(snapshot, values)?)),
                None => None,
            }
        } else if let Some(scan) = any.downcast_ref::<TableScanExec>() {
            match newer(scan.snapshot()) {
                Some(snapshot) => scan.bound(snapshot, values)?.map(|scan| Arc::new(scan) as _),
                None => None,
            }
        } else if let Some(fetch) = any.downcast_ref::<FetchRowsExec>() {
            newer(fetch.snapshot()).map(|snapshot| Arc::new(fetch.bound(snapshot)) as _)
        } else {
            return Ok(Transformed::no(node));
        };
        Ok(match bound {
            Some(bound) => Transformed::yes(bound),
            None => {
                fits = false;
                Transformed::no(node)
            }
        })
    });
    let bound = bound.data()?;
    Ok(fits.then_some(bound))
}
