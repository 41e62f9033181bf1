//! The pass over the parsed statement before planning: casts to vectors become function calls, literals of times get the
//! digits that they have, patterns one escape character, FETCH FIRST becomes LIMIT, ASOF joins get their parentheses, and clauses that the planner would silently drop are refused.

use std::ops::ControlFlow;

use datafusion::error::{DataFusionError, Result};
use datafusion::sql::sqlparser::ast::{
    self, CteAsMaterialized, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    Ident, LimitClause, ObjectName, Query, Select, SetExpr, TableFactor, Value, VisitMut, VisitorMut,
};

use crate::asof_join;
use crate::functions::convert::TO_VECTOR;
use crate::patterns::rewrite_pattern;
use crate::relation;
use crate::sql_type::with_digits_of;
use crate::text_length;
use crate::vector_type::VectorType;

/// Rewrites a query, statement or expression in place.
///
/// # Errors
/// A clause that is not supported, with its name and the way to say it.
pub fn rewrite<T: VisitMut>(node: &mut T) -> Result<()> {
    match node.visit(&mut Rewriter) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Rewriter;

impl VisitorMut for Rewriter {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<DataFusionError> {
        flow(check_query(query).and_then(|()| fetch_to_limit(query)))
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<DataFusionError> {
        select.from.iter_mut().for_each(|joined| asof_join::nest(joined, false));
        flow(check_select(select))
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<DataFusionError> {
        if let TableFactor::NestedJoin { table_with_joins, .. } = factor {
            asof_join::nest(table_with_joins, true);
        }
        flow(relation::parse_filter(factor))
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<DataFusionError> {
        flow(rewrite_expr(expr))
    }
}

fn flow(result: Result<()>) -> ControlFlow<DataFusionError> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(error),
    }
}

/// An error for SQL that is known but not built.
pub fn unsupported<T>(what: &str) -> Result<T> {
    Err(DataFusionError::NotImplemented(what.to_owned()))
}

fn check_query(query: &Query) -> Result<()> {
    if !query.locks.is_empty() {
        return unsupported(
            "FOR UPDATE and FOR SHARE are not supported: a statement reads one snapshot and takes no locks",
        );
    }
    if query.for_clause.is_some() {
        return unsupported("FOR XML, FOR JSON and FOR BROWSE are not supported; choose the output with --format");
    }
    let ctes = query.with.iter().flat_map(|with| &with.cte_tables);
    if ctes.into_iter().any(|cte| matches!(cte.materialized, Some(CteAsMaterialized::Materialized))) {
        return unsupported(
            "AS MATERIALIZED is not supported: a query behind WITH is planned, and run, wherever its name is read; leave the word out, or keep its rows with CREATE TABLE … AS SELECT",
        );
    }
    if let SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) | SetExpr::Insert(_) = query.body.as_ref() {
        return unsupported(
            "UPDATE, DELETE, MERGE and INSERT behind WITH or inside a query are not supported; each is a statement of its own, with its subqueries in FROM, USING or WHERE",
        );
    }
    if query.settings.is_some() || query.format_clause.is_some() {
        return unsupported("SETTINGS and FORMAT at the end of a query are not supported; use SET and --format");
    }
    Ok(())
}

/// `FETCH FIRST n ROWS ONLY` says what LIMIT says.
fn fetch_to_limit(query: &mut Query) -> Result<()> {
    let Some(fetch) = query.fetch.take() else { return Ok(()) };
    if fetch.with_ties || fetch.percent {
        return unsupported(
            "FETCH … WITH TIES and FETCH … PERCENT are not supported; write FETCH FIRST n ROWS ONLY or LIMIT n",
        );
    }
    let one = || Expr::Value(Value::Number("1".into(), false).into());
    let quantity = Some(fetch.quantity.unwrap_or_else(one));
    match &mut query.limit_clause {
        None => query.limit_clause = Some(LimitClause::LimitOffset { limit: quantity, offset: None, limit_by: vec![] }),
        Some(LimitClause::LimitOffset { limit: limit @ None, .. }) => *limit = quantity,
        Some(_) => return unsupported("a query has LIMIT or FETCH, not both"),
    }
    Ok(())
}

fn check_select(select: &Select) -> Result<()> {
    if select.into.is_some() {
        return unsupported("SELECT … INTO is not supported; write CREATE TABLE t AS SELECT …");
    }
    if select.top.is_some() {
        return unsupported("TOP is not supported; write LIMIT n at the end of the query");
    }
    if select.prewhere.is_some() {
        return unsupported(
            "PREWHERE is not supported; write WHERE: predicates are applied before the search by themselves",
        );
    }
    if !select.connect_by.is_empty() {
        return unsupported("CONNECT BY is not supported; write WITH RECURSIVE");
    }
    if select.value_table_mode.is_some() {
        return unsupported("SELECT AS STRUCT and SELECT AS VALUE are not supported");
    }
    if select.select_modifiers.as_ref().is_some_and(|modifiers| modifiers.is_any_set()) {
        return unsupported("MySQL's SELECT modifiers are not supported");
    }
    Ok(())
}

fn rewrite_expr(expr: &mut Expr) -> Result<()> {
    let (value, data_type, kind) = match expr {
        Expr::Like { .. } | Expr::ILike { .. } | Expr::SimilarTo { .. } => return rewrite_pattern(expr),
        Expr::TypedString(literal) => {
            if let Value::SingleQuotedString(text) = &literal.value.value
                && let Some(finer) = with_digits_of(&literal.data_type, text)
            {
                literal.data_type = finer;
            }
            return Ok(());
        }
        Expr::Cast { expr, data_type, kind, format: None, .. } => (expr, data_type, kind.clone()),
        _ => return Ok(()),
    };
    if let Some(Some(length)) = text_length::of_sql(data_type)? {
        *data_type = ast::DataType::Text;
        let text = std::mem::replace(expr, Expr::Value(Value::Null.into()));
        *expr = call("left", [text, Expr::Value(Value::Number(length.to_string(), false).into())].map(argument).into());
        return Ok(());
    }
    let Some(vector) = VectorType::of_sql(data_type)? else { return Ok(()) };
    if !matches!(kind, ast::CastKind::Cast | ast::CastKind::DoubleColon) {
        return unsupported("TRY_CAST to a vector is not supported; CAST reports what is wrong with the value");
    }
    let value = std::mem::replace(value.as_mut(), Expr::Value(Value::Null.into()));
    let args = vec![
        argument(value),
        argument(Expr::Value(Value::SingleQuotedString(vector.element.name().into()).into())),
        argument(Expr::Value(Value::Number(vector.dim.to_string(), false).into())),
    ];
    *expr = call(TO_VECTOR, args);
    Ok(())
}

fn argument(expr: Expr) -> FunctionArg {
    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))
}

fn call(name: &str, args: Vec<FunctionArg>) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: vec![] }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
}
