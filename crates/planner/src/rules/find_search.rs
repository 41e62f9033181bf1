//! `ORDER BY distance LIMIT k` becomes a [`VectorSearch`], whatever stands between the clauses and the table.
//!
//! The rule runs once, after types are known and before DataFusion's own rules, which take the pattern apart.
//! What it cannot turn into a search (a join or an aggregate below the sort, several vectors in one key) stays an
//! exact sort of everything; only NULL distances are filtered out there, so that a search never returns a row
//! without a distance, on whichever way it runs.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue, TableReference};
use datafusion::config::ConfigOptions;
use datafusion::datasource::provider_as_source;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    BinaryExpr, Cast, Expr, Extension, FetchType, Filter, Limit, LogicalPlan, LogicalPlanBuilder, Operator, Projection,
    SkipType, Sort, TableScan, lit,
};
use datafusion::optimizer::AnalyzerRule;
use kernels::Metric;

use crate::functions::distance::distance_call;
use crate::resolve::{ROW_ADDRESS, SearchableTable, searchable};
use crate::vector_search::{DISTANCE, Reach, VectorSearch, distance_qualifier};
use crate::vector_type::VectorType;

/// The largest LIMIT + OFFSET that is a search. Beyond it everything is sorted, which can spill to disk. It also
/// is below the batch length from which DataFusion would deal a node's rows to several partitions, and so lose
/// their order.
pub const SEARCH_ROWS_MAX: usize = 8_192;

/// Finds searches in a plan.
#[derive(Debug)]
pub struct FindSearch;

impl AnalyzerRule for FindSearch {
    fn name(&self) -> &'static str {
        "find_search"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_down_with_subqueries(|plan| match &plan {
            LogicalPlan::Limit(limit) => Ok(match rewrite_limit(limit)? {
                Some(rewritten) => Transformed::yes(rewritten),
                None => Transformed::no(plan),
            }),
            LogicalPlan::Filter(filter) => Ok(match rewrite_range(filter)? {
                Some(rewritten) => Transformed::yes(rewritten),
                None => Transformed::no(plan),
            }),
            _ => Ok(Transformed::no(plan)),
        })
        .data()
    }
}

/// Rewrites the sort below a LIMIT; `None` if there is none or nothing is to be done.
fn rewrite_limit(limit: &Limit) -> Result<Option<LogicalPlan>> {
    let (FetchType::Literal(Some(fetch)), SkipType::Literal(skip)) = (limit.get_fetch_type()?, limit.get_skip_type()?)
    else {
        return Ok(None);
    };
    if fetch == 0 {
        return Ok(None);
    }
    let Some(input) = rewrite_sort_below(&limit.input, fetch.saturating_add(skip))? else { return Ok(None) };
    Ok(Some(LogicalPlan::Limit(Limit { input: Arc::new(input), ..limit.clone() })))
}

/// Walks through projections and aliases down to the sort, and puts them back on top of what it becomes.
fn rewrite_sort_below(plan: &LogicalPlan, k: usize) -> Result<Option<LogicalPlan>> {
    match plan {
        LogicalPlan::Sort(sort) => rewrite_sort(sort, k),
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => {
            let Some(input) = rewrite_sort_below(plan.inputs()[0], k)? else { return Ok(None) };
            Ok(Some(plan.with_new_exprs(plan.expressions(), vec![input])?))
        }
        _ => Ok(None),
    }
}

fn rewrite_sort(sort: &Sort, k: usize) -> Result<Option<LogicalPlan>> {
    let Some(first) = sort.expr.first() else { return Ok(None) };
    // NULLS FIRST is the default of DESC, and a wish of its own after ASC.
    if first.asc && first.nulls_first {
        return Ok(None);
    }
    let source = Source::below(&sort.input, vec![first.expr.clone()])?;
    if source.exprs[0].contains_outer() && source.exprs[0].exists(|expr| Ok(distance_call(expr).is_some()))? {
        return Err(DataFusionError::NotImplemented(
            "a correlated subquery with ORDER BY distance LIMIT k (KNN join) is not built yet; search for one query vector at a time".into(),
        ));
    }
    if source.exprs[0].contains_outer() || source.predicates.iter().any(Expr::contains_outer) {
        return Ok(None);
    }
    if sort.expr.len() == 1
        && k <= SEARCH_ROWS_MAX
        && sort.fetch.is_none_or(|fetch| fetch >= k)
        && let Some(search) = search(sort, &source, k)?
    {
        return Ok(Some(search));
    }
    drop_null_distances(sort, &source)
}

/// An exact sort that means *distance IS NOT NULL*: the nearest first, not the farthest.
fn drop_null_distances(sort: &Sort, source: &Source<'_>) -> Result<Option<LogicalPlan>> {
    let key = &source.exprs[0];
    let first = &sort.expr[0];
    if !key.exists(|expr| Ok(distance_call(expr).is_some()))? || (!first.asc && first.nulls_first && !is_nearness(key))
    {
        return Ok(None);
    }
    let key = sort.expr[0].expr.clone();
    let filter = Filter::try_new(key.is_not_null(), Arc::clone(&sort.input))?;
    Ok(Some(LogicalPlan::Sort(Sort { input: Arc::new(LogicalPlan::Filter(filter)), ..sort.clone() })))
}

/// Whether an expression is the larger, the nearer two vectors are: a similarity, or a distance with its sign reversed.
fn is_nearness(expr: &Expr) -> bool {
    if let Some(call) = distance_call(expr) {
        return call.is_similarity;
    }
    match expr {
        Expr::Alias(alias) => is_nearness(&alias.expr),
        Expr::Cast(cast) => is_nearness(&cast.expr),
        Expr::Negative(inner) => !is_nearness(inner),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (op, number(left), number(right)) {
            (Operator::Minus, Some(_), None) => !is_nearness(right),
            (Operator::Multiply, Some(factor), None) => (factor < 0.0) != is_nearness(right),
            (Operator::Multiply | Operator::Divide, None, Some(factor)) => (factor < 0.0) != is_nearness(left),
            (_, Some(_), None) => is_nearness(right),
            (_, None, _) => is_nearness(left),
            _ => false,
        },
        _ => false,
    }
}

/// What stands below a sort or a filter: projections, aliases and predicates over one relation, with every
/// expression rewritten to that relation's own columns.
struct Source<'a> {
    exprs: Vec<Expr>,
    predicates: Vec<Expr>,
    relation: &'a LogicalPlan,
    /// A volatile expression was found: it must not be written twice.
    is_volatile: bool,
}

impl<'a> Source<'a> {
    fn below(plan: &'a LogicalPlan, exprs: Vec<Expr>) -> Result<Self> {
        let mut source = Self { exprs, predicates: vec![], relation: plan, is_volatile: false };
        loop {
            match source.relation {
                LogicalPlan::Projection(projection) => {
                    source.is_volatile |= projection.expr.iter().any(Expr::is_volatile);
                    source.substitute(&projection.schema, &projection.expr)?;
                    source.relation = &projection.input;
                }
                LogicalPlan::SubqueryAlias(alias) => {
                    let columns: Vec<Expr> = alias.input.schema().columns().into_iter().map(Expr::Column).collect();
                    source.substitute(&alias.schema, &columns)?;
                    source.relation = &alias.input;
                }
                LogicalPlan::Filter(filter) => {
                    source.predicates.push(filter.predicate.clone());
                    source.relation = &filter.input;
                }
                _ => return Ok(source),
            }
        }
    }

    /// Replaces the columns of `schema` by the expressions that make them.
    fn substitute(&mut self, schema: &DFSchema, by: &[Expr]) -> Result<()> {
        for expr in self.exprs.iter_mut().chain(&mut self.predicates) {
            *expr = std::mem::take(expr)
                .transform_up(|expr| match &expr {
                    Expr::Column(column) => Ok(match schema.maybe_index_of_column(column) {
                        Some(at) => Transformed::yes(by[at].clone().unalias()),
                        None => Transformed::no(expr),
                    }),
                    _ => Ok(Transformed::no(expr)),
                })
                .data()?;
        }
        Ok(())
    }

    fn table(&self) -> Option<(&'a TableScan, Arc<dyn SearchableTable>)> {
        let LogicalPlan::TableScan(scan) = self.relation else { return None };
        if self.is_volatile
            || self.predicates.iter().chain(&self.exprs).any(is_correlated)
            || scan.fetch.is_some()
            || !scan.filters.is_empty()
        {
            return None;
        }
        searchable(&scan.source).map(|table| (scan, table))
    }
}

/// True if a subquery in the expression refers to the query around it: its references name that query's relations
/// as they are called there, and are not rewritten to the table's own columns.
fn is_correlated(expr: &Expr) -> bool {
    let found = expr.exists(|expr| {
        Ok(match expr {
            Expr::Exists(exists) => !exists.subquery.outer_ref_columns.is_empty(),
            Expr::InSubquery(list) => !list.subquery.outer_ref_columns.is_empty(),
            Expr::ScalarSubquery(subquery) => !subquery.outer_ref_columns.is_empty(),
            _ => false,
        })
    });
    found.unwrap_or(true)
}

/// A distance between a vector column of a table and a query that does not depend on the table.
struct Comparison {
    column: String,
    query: Expr,
    metric: Metric,
    /// Larger values of the expression are closer.
    is_descending: bool,
    /// The call itself, to be replaced by the search's distance.
    call: Expr,
    /// The call returns the negative of the distance.
    is_similarity: bool,
}

impl Comparison {
    /// Looks through the wrappers that keep or reverse an order: `1 - d`, `-d`, `d * 2`, casts to DOUBLE.
    fn of(expr: &Expr, table: &dyn SearchableTable) -> Option<Self> {
        if let Some(call) = distance_call(expr) {
            let (a, b) = call.vectors;
            let (column, query) = match (vector_column(a, table), vector_column(b, table)) {
                (Some(column), _) if is_independent(b) => (column, b),
                (_, Some(column)) if is_independent(a) => (column, a),
                _ => return None,
            };
            return Some(Self {
                column,
                query: query.clone(),
                metric: call.metric,
                is_descending: call.is_similarity,
                is_similarity: call.is_similarity,
                call: expr.clone(),
            });
        }
        match expr {
            Expr::Alias(alias) => Self::of(&alias.expr, table),
            Expr::Negative(inner) => Self::of(inner, table).map(Self::reversed),
            Expr::Cast(Cast { expr, field }) if field.data_type() == &arrow::datatypes::DataType::Float64 => {
                Self::of(expr, table)
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => Self::of_binary(left, *op, right, table),
            _ => None,
        }
    }

    fn of_binary(left: &Expr, op: Operator, right: &Expr, table: &dyn SearchableTable) -> Option<Self> {
        match (op, number(left), number(right)) {
            (Operator::Plus, Some(_), None) => Self::of(right, table),
            (Operator::Plus | Operator::Minus, None, Some(_)) => Self::of(left, table),
            (Operator::Minus, Some(_), None) => Self::of(right, table).map(Self::reversed),
            (Operator::Multiply, Some(factor), None) => Self::of(right, table)?.scaled(factor),
            (Operator::Multiply | Operator::Divide, None, Some(factor)) => Self::of(left, table)?.scaled(factor),
            _ => None,
        }
    }

    fn reversed(self) -> Self {
        Self { is_descending: !self.is_descending, ..self }
    }

    fn scaled(self, factor: f64) -> Option<Self> {
        if factor > 0.0 {
            Some(self)
        } else if factor < 0.0 {
            Some(self.reversed())
        } else {
            None
        }
    }

    /// The call's value in terms of the search's distance.
    fn replacement(&self) -> Expr {
        let distance = Expr::Column(Column::new(Some(distance_qualifier()), DISTANCE));
        // Not a negation: 0 - 0 is 0, and -(0) would be shown as -0.
        if self.is_similarity { lit(0.0) - distance } else { distance }
    }

    /// Replaces the call in an expression by the search's distance.
    fn replace_in(&self, expr: Expr) -> Result<Expr> {
        expr.transform_down(|expr| {
            Ok(if expr == self.call {
                Transformed::new(self.replacement(), true, TreeNodeRecursion::Jump)
            } else {
                Transformed::no(expr)
            })
        })
        .data()
    }
}

/// A finite constant; type coercion may have left it in a cast.
fn number(expr: &Expr) -> Option<f64> {
    let value = match expr {
        Expr::Literal(value, _) => value,
        Expr::Cast(Cast { expr, field }) if field.data_type() == &arrow::datatypes::DataType::Float64 => {
            return number(expr);
        }
        Expr::Negative(inner) => return number(inner).map(|number| -number),
        _ => return None,
    };
    match value.cast_to(&arrow::datatypes::DataType::Float64) {
        Ok(ScalarValue::Float64(Some(number))) if number.is_finite() => Some(number),
        _ => None,
    }
}

/// The column's name if the expression is a vector column of the table.
fn vector_column(expr: &Expr, table: &dyn SearchableTable) -> Option<String> {
    let Expr::Column(column) = expr else { return None };
    let schema = table.schema();
    let (_, field) = schema.column_with_name(&column.name)?;
    VectorType::of_field(field).map(|_| column.name.clone())
}

fn is_independent(expr: &Expr) -> bool {
    expr.column_refs().is_empty() && !expr.contains_outer() && !expr.is_volatile()
}

/// The search that answers a sort over one table; `None` if the sort is none.
fn search(sort: &Sort, source: &Source<'_>, k: usize) -> Result<Option<LogicalPlan>> {
    let Some((scan, table)) = source.table() else { return Ok(None) };
    let Some(comparison) = Comparison::of(&source.exprs[0], table.as_ref()) else { return Ok(None) };
    if comparison.is_descending == sort.expr[0].asc {
        return Ok(None);
    }
    let outputs: Vec<Expr> = sort.input.schema().columns().into_iter().map(Expr::Column).collect();
    let outputs = Source::below(&sort.input, outputs)?.exprs;
    let candidates = candidates(scan, table.as_ref(), source.predicates.clone())?;
    let plan = over_search(scan, &table, candidates, &comparison, Reach::Nearest { k }, outputs, sort.input.schema())?;
    Ok(Some(plan))
}

/// A projection with the fields of `schema` over the search.
fn over_search(
    scan: &TableScan,
    table: &Arc<dyn SearchableTable>,
    candidates: Option<LogicalPlan>,
    comparison: &Comparison,
    reach: Reach,
    outputs: Vec<Expr>,
    schema: &DFSchema,
) -> Result<LogicalPlan> {
    let outputs: Vec<Expr> = outputs.into_iter().map(|expr| comparison.replace_in(expr)).collect::<Result<_>>()?;
    let search = VectorSearch::try_new(
        scan.table_name.clone(),
        Arc::clone(table),
        candidates.map(Arc::new),
        comparison.column.clone(),
        comparison.query.clone(),
        comparison.metric,
        reach,
        used_columns(&outputs, &scan.table_name, table.as_ref()),
    )?;
    let named =
        outputs.into_iter().zip(schema.iter()).map(|(expr, (qualifier, field))| named(expr, qualifier, field.name()));
    let input = LogicalPlan::Extension(Extension { node: Arc::new(search) });
    Ok(LogicalPlan::Projection(Projection::try_new(named.collect(), Arc::new(input))?))
}

/// The expression under the name that the plan above knows it by.
fn named(expr: Expr, qualifier: Option<&TableReference>, name: &str) -> Expr {
    match &expr {
        Expr::Column(column) if column.relation.as_ref() == qualifier && column.name == name => expr,
        _ => expr.alias_qualified(qualifier.cloned(), name),
    }
}

fn used_columns(exprs: &[Expr], name: &TableReference, table: &dyn SearchableTable) -> Vec<usize> {
    let schema = table.schema();
    let used = |field: &str| {
        exprs.iter().any(|expr| {
            expr.column_refs().iter().any(|column| column.relation.as_ref() == Some(name) && column.name == field)
        })
    };
    (0..schema.fields().len()).filter(|at| used(schema.field(*at).name())).collect()
}

/// The plan that emits the addresses of the rows that match all predicates.
fn candidates(scan: &TableScan, table: &dyn SearchableTable, predicates: Vec<Expr>) -> Result<Option<LogicalPlan>> {
    let Some(predicate) = conjunction(predicates) else { return Ok(None) };
    let source = provider_as_source(table.with_row_addresses());
    let address = Expr::Column(Column::new(Some(scan.table_name.clone()), ROW_ADDRESS));
    let plan = LogicalPlanBuilder::scan(scan.table_name.clone(), source, None)?
        .filter(predicate)?
        .project(vec![address])?
        .build()?;
    Ok(Some(plan))
}

/// `WHERE distance < r` over one table becomes a search within a radius; its other predicates choose the candidates.
fn rewrite_range(filter: &Filter) -> Result<Option<LogicalPlan>> {
    let source = Source::below(&filter.input, vec![filter.predicate.clone()])?;
    let Some((scan, table)) = source.table() else { return Ok(None) };
    let all = source.exprs.iter().chain(&source.predicates).cloned().collect::<Vec<_>>();
    if all.iter().any(|expr| expr.contains_outer() || expr.is_volatile()) {
        return Ok(None);
    }
    let mut rest: Vec<Expr> = all.into_iter().flat_map(split_conjunction_owned).collect();
    let found = rest.iter().enumerate().find_map(|(at, expr)| bound(expr, table.as_ref()).map(|found| (at, found)));
    let Some((at, (comparison, reach))) = found else { return Ok(None) };
    rest.remove(at);
    let outputs: Vec<Expr> = filter.input.schema().columns().into_iter().map(Expr::Column).collect();
    let outputs = Source::below(&filter.input, outputs)?.exprs;
    let candidates = candidates(scan, table.as_ref(), rest)?;
    let plan = over_search(scan, &table, candidates, &comparison, reach, outputs, filter.input.schema())?;
    Ok(Some(plan))
}

/// `distance < r`, `r > distance`, `similarity > s` and their like.
fn bound(expr: &Expr, table: &dyn SearchableTable) -> Option<(Comparison, Reach)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = expr else { return None };
    let (call, op, value) = match (number(left), number(right)) {
        (None, Some(value)) => (left, *op, value),
        (Some(value), None) => (right, op.swap()?, value),
        _ => return None,
    };
    // Only the bare call: a wrapped one could round its bound to another row.
    distance_call(call)?;
    let comparison = Comparison::of(call, table)?;
    let (distance, op) = if comparison.is_similarity { (-value, op.swap()?) } else { (value, op) };
    let inclusive = match op {
        Operator::Lt => false,
        Operator::LtEq => true,
        _ => return None,
    };
    Some((comparison, Reach::Within { distance, inclusive }))
}
