//! DataFusion's rules, run only over plans that hold what they look for.
//!
//! A rule that finds nothing still takes a plan apart and puts it together again, node by node. A search of a few rows is
//! planned in the time that it runs, and half of the rules look for joins, unions, aggregates and subqueries, which it has
//! not. What a plan holds is told by one walk over it, without changing it.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::{ApplyOrder, Optimizer, OptimizerConfig, OptimizerRule};

/// What a plan holds, at any depth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Holds {
    join: bool,
    union: bool,
    aggregate: bool,
    filter: bool,
    limit: bool,
    sort: bool,
    empty: bool,
    subquery: bool,
}

impl Holds {
    fn of(plan: &LogicalPlan) -> Self {
        let mut holds = Self::default();
        // The closure returns no error.
        let _ = plan.apply(|node| {
            match node {
                LogicalPlan::Join(_) => holds.join = true,
                LogicalPlan::Union(_) => holds.union = true,
                LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) => holds.aggregate = true,
                LogicalPlan::Filter(_) => holds.filter = true,
                LogicalPlan::Limit(_) => holds.limit = true,
                LogicalPlan::Sort(_) => holds.sort = true,
                LogicalPlan::EmptyRelation(_) => holds.empty = true,
                LogicalPlan::Subquery(_) => holds.subquery = true,
                _ => {}
            }
            if !holds.subquery {
                node.apply_expressions(|expr| {
                    holds.subquery |= expr.exists(|expr| Ok(is_subquery(expr)))?;
                    Ok(TreeNodeRecursion::Continue)
                })?;
            }
            Ok(TreeNodeRecursion::Continue)
        });
        holds
    }
}

fn is_subquery(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_))
}

/// What the rules of these names look for; all others always run. A plan with a subquery may hold anything in it.
const LOOKS_FOR: &[(&str, fn(Holds) -> bool)] = &[
    ("rewrite_set_comparison", |_| false),
    ("optimize_unions", |holds| holds.union),
    ("unions_to_filter", |holds| holds.union),
    ("replace_distinct_aggregate", |holds| holds.aggregate),
    ("eliminate_join", |holds| holds.join),
    ("decorrelate_predicate_subquery", |_| false),
    ("scalar_subquery_to_join", |_| false),
    ("decorrelate_lateral_join", |holds| holds.join),
    ("extract_equijoin_predicate", |holds| holds.join),
    ("eliminate_duplicated_expr", |holds| holds.sort || holds.aggregate),
    ("eliminate_filter", |holds| holds.filter),
    ("eliminate_cross_join", |holds| holds.join),
    ("eliminate_limit", |holds| holds.limit),
    ("propagate_empty_relation", |holds| holds.empty),
    ("filter_null_join_keys", |holds| holds.join),
    ("eliminate_outer_join", |holds| holds.join),
    ("push_down_limit", |holds| holds.limit),
    ("push_down_filter", |holds| holds.filter || holds.join),
    ("single_distinct_aggregation_to_group_by", |holds| holds.aggregate),
    ("eliminate_group_by_constant", |holds| holds.aggregate),
];

/// DataFusion's rules in their order.
pub fn rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let looks_for = |name: &str| LOOKS_FOR.iter().find(|(other, _)| *other == name).map(|(_, looks_for)| *looks_for);
    let guarded = |rule: Arc<dyn OptimizerRule + Send + Sync>| match looks_for(rule.name()) {
        Some(looks_for) => Arc::new(WhereItApplies { rule, looks_for }),
        None => rule,
    };
    Optimizer::new().rules.into_iter().map(guarded).collect()
}

#[derive(Debug)]
struct WhereItApplies {
    rule: Arc<dyn OptimizerRule + Send + Sync>,
    looks_for: fn(Holds) -> bool,
}

impl OptimizerRule for WhereItApplies {
    fn name(&self) -> &str {
        self.rule.name()
    }

    /// The walk over the plan is this rule's own, so that there is none where it does not apply.
    fn apply_order(&self) -> Option<ApplyOrder> {
        None
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let holds = Holds::of(&plan);
        if !holds.subquery && !(self.looks_for)(holds) {
            return Ok(Transformed::no(plan));
        }
        match self.rule.apply_order() {
            Some(ApplyOrder::TopDown) => plan.transform_down_with_subqueries(|node| self.rule.rewrite(node, config)),
            Some(ApplyOrder::BottomUp) => plan.transform_up_with_subqueries(|node| self.rule.rewrite(node, config)),
            None => self.rule.rewrite(plan, config),
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{LogicalPlanBuilder, col, lit, scalar_subquery};

    use super::*;

    #[test]
    fn every_name_is_that_of_a_rule() {
        let names: Vec<String> = Optimizer::new().rules.iter().map(|rule| rule.name().to_owned()).collect();
        for (name, _) in LOOKS_FOR {
            assert!(names.iter().any(|known| known == name), "{name} is none of {names:?}");
        }
        let ours: Vec<String> = rules().iter().map(|rule| rule.name().to_owned()).collect();
        assert_eq!(ours, names);
    }

    #[test]
    fn a_plan_holds_what_is_anywhere_in_it() {
        let values = || LogicalPlanBuilder::values(vec![vec![lit(1), lit(2)]]).unwrap();
        let plain = values().project(vec![col("column1")]).unwrap().build().unwrap();
        assert_eq!(Holds::of(&plain), Holds::default());
        let filtered = values().filter(col("column1").gt(lit(0))).unwrap().limit(0, Some(1)).unwrap().build().unwrap();
        assert_eq!(Holds::of(&filtered), Holds { filter: true, limit: true, ..Holds::default() });
        let one = values().project(vec![col("column2")]).unwrap().build().unwrap();
        let asking = values().project(vec![scalar_subquery(Arc::new(one)) + lit(1)]).unwrap().build().unwrap();
        assert!(Holds::of(&asking).subquery);
        let joined = values().cross_join(plain).map(LogicalPlanBuilder::build);
        // Columns of the same name cannot be joined without aliases; either way it is a join where it is a plan.
        if let Ok(Ok(joined)) = joined {
            assert!(Holds::of(&joined).join);
        }
    }
}
