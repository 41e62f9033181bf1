//! Columns of one name in the answer of a query, as in `SELECT a.id, b.id FROM …` or `SELECT 1 AS x, 2 AS x`.
//!
//! DataFusion refuses most of them. An answer may have them, for nothing reads it by name: only the outermost SELECT is
//! looked at here. It is planned under other names, and gets its own back at the top, each under a qualifier of its own.

use std::collections::HashMap;

use datafusion::common::{SchemaError, TableReference, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::{self, Ident, OrderByKind, Query, Select, SelectItem, SetExpr};

/// Stands between a name and what sets it apart; no name of a user holds it.
const MARK: char = '\u{1}';

/// Whether planning failed because two columns have one name.
pub(crate) fn is_cause(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::SchemaError(inner, _) => matches!(
            inner.as_ref(),
            SchemaError::DuplicateQualifiedField { .. }
                | SchemaError::DuplicateUnqualifiedField { .. }
                | SchemaError::AmbiguousReference { .. }
        ),
        DataFusionError::Plan(message) => message.contains("require unique expression names"),
        _ => false,
    }
}

/// Gives the columns of the outermost SELECT names of their own; false if there is nothing to do.
///
/// # Errors
/// ORDER BY names several columns.
pub(crate) fn set_apart(query: &mut Query) -> Result<bool> {
    let ordered: Vec<String> = match query.order_by.as_ref().map(|order| &order.kind) {
        Some(OrderByKind::Expressions(keys)) => keys
            .iter()
            .filter_map(|key| match &key.expr {
                ast::Expr::Identifier(name) => Some(folded(name)),
                // With a table in front it is a column of that table, not one of the answer.
                _ => None,
            })
            .collect(),
        _ => vec![],
    };
    set_apart_in(&mut query.body, &ordered)
}

fn set_apart_in(body: &mut SetExpr, ordered: &[String]) -> Result<bool> {
    match body {
        SetExpr::Select(select) => set_apart_select(select, ordered),
        SetExpr::SetOperation { left, right, .. } => {
            let (left, right) = (set_apart_in(left, ordered)?, set_apart_in(right, ordered)?);
            Ok(left || right)
        }
        SetExpr::Query(query) => set_apart(query),
        _ => Ok(false),
    }
}

fn set_apart_select(select: &mut Select, ordered: &[String]) -> Result<bool> {
    let has_wildcard = select
        .projection
        .iter()
        .any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    let (mut seen, mut is_changed): (HashMap<String, String>, bool) = (HashMap::new(), false);
    for (at, item) in select.projection.iter_mut().enumerate() {
        let (expr, name) = match item {
            SelectItem::UnnamedExpr(expr) => (expr.clone(), simple_name(expr)),
            SelectItem::ExprWithAlias { expr, alias } => (expr.clone(), Some(folded(alias))),
            _ => continue,
        };
        let (text, is_named) = (expr.to_string(), name.is_some());
        // DataFusion's names leave casts out; the text of an expression does not.
        let name = name.unwrap_or_else(|| text.clone());
        let first = seen.get(&name);
        if first.is_some_and(|first| *first != text) && ordered.contains(&name) {
            return plan_err!(
                "ORDER BY {name} names several columns of the answer; give one of them another name with AS"
            );
        }
        // Which columns a wildcard stands for is not known here: whatever is not needed by its name is set apart.
        let is_apart = first.is_some() || !is_named || (has_wildcard && !ordered.contains(&name));
        seen.entry(name.clone()).or_insert(text);
        if is_apart {
            let alias = Ident::with_quote('"', format!("{name}{MARK}{at}"));
            *item = SelectItem::ExprWithAlias { expr, alias };
            is_changed = true;
        }
    }
    Ok(is_changed)
}

/// The name of a column, cast or not.
fn simple_name(expr: &ast::Expr) -> Option<String> {
    match expr {
        ast::Expr::Identifier(name) => Some(folded(name)),
        ast::Expr::CompoundIdentifier(parts) => parts.last().map(folded),
        ast::Expr::Cast { expr, .. } | ast::Expr::Nested(expr) => simple_name(expr),
        _ => None,
    }
}

fn folded(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() }
}

/// The plan of a query that was set apart, its columns under their own names.
pub(crate) fn restored(plan: LogicalPlan) -> Result<LogicalPlan> {
    let columns = plan.schema().columns();
    let own = |name: &str| name.split_once(MARK).map_or(name, |(own, _)| own).to_owned();
    let names: Vec<String> = columns.iter().map(|column| own(&column.name)).collect();
    let outputs: Vec<Expr> = columns
        .iter()
        .zip(&names)
        .enumerate()
        .map(|(at, (column, name))| {
            let is_alone = names.iter().filter(|other| *other == name).count() == 1;
            let expr = Expr::Column(column.clone());
            match (is_alone, &column.name == name) {
                (true, true) => expr,
                (true, false) => expr.alias(name),
                (false, _) => expr.alias_qualified(Some(TableReference::bare(format!("column {}", at + 1))), name),
            }
        })
        .collect();
    LogicalPlanBuilder::from(plan).project(outputs)?.build()
}
