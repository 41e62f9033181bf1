//! INSERT with ON CONFLICT or RETURNING. The new rows meet the table's rows of the same key in a join; of several new
//! rows with one key, the first is the one.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::datasource::ViewTable;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::{
    self, Assignment, BinaryOperator, ConflictTarget, DoUpdate, Insert, Join, JoinConstraint, JoinOperator, OnConflict,
    OnConflictAction, OnInsert, TableFactor, TableWithJoins,
};
use operators::change::Again;
use planner::change::Action;
use planner::resolve::RelationName;

use super::names::{
    Assigned, Value, alone, assigned, column, folded, joined, literal, own_factor, own_relation, qualify, with_queries,
};
use super::plan::{Branch, ChangeQuery, Rows, Scope};
use crate::insert::{source_plan, table_columns, targets};
use crate::keys::key_name;
use crate::{Error, Result};

/// What the new rows are called, by PostgreSQL's word and among the names of a change.
const EXCLUDED: &str = "excluded";
/// The column that numbers the new rows in their order.
const POSITION: &str = "change.position";
/// The column that numbers the new rows of one key.
const NTH: &str = "change.nth";
const GIVEN_TWICE: &str = "ON CONFLICT DO UPDATE command cannot affect row a second time: a subquery in SET gives more than one row for it, or several new rows have one key; make sure that at most one does, with max(…), GROUP BY or DISTINCT ON";
const UPSERTED_TWICE: &str = "ON CONFLICT DO UPDATE command cannot affect row a second time: several new rows have one key; make sure that each key is there once, with DISTINCT ON or GROUP BY";

/// What an INSERT with clauses says.
pub(super) async fn upsert_query(insert: &Insert, scope: &Scope<'_>) -> Result<ChangeQuery> {
    let places = targets(&scope.target.name, &insert.columns, &scope.fields)?;
    let conflict = match &insert.on {
        None => None,
        Some(OnInsert::OnConflict(conflict)) => {
            check_key(conflict, scope)?;
            Some(conflict)
        }
        Some(_) => {
            return Err(Error::unsupported(
                "ON DUPLICATE KEY UPDATE is not supported; write ON CONFLICT (key) DO UPDATE SET c = excluded.c",
            ));
        }
    };
    let planner = scope.planner();
    let source = source_plan(insert, &places, &scope.fields, &scope.entry, &planner, scope.parameters).await?;
    let rows = new_rows(source, &places, scope, conflict.is_some())?;
    scope.tables.pin(own_relation(EXCLUDED), Arc::new(ViewTable::new(rows, None))).await;
    let Some(conflict) = conflict else {
        return Ok(ChangeQuery {
            operation: "INSERT",
            from: vec![alone(own_factor(EXCLUDED, EXCLUDED))],
            selection: None,
            has_target: false,
            flagged: None,
            branches: vec![insertion(Rows::All, None, scope)],
            again: Again::Ignore,
            returning: insert.returning.clone(),
        });
    };
    let (branches, queries, again) = match &conflict.action {
        OnConflictAction::DoNothing => {
            let first = nth(BinaryOperator::Eq);
            (vec![insertion(Rows::WithoutTarget, Some(first), scope)], vec![], Again::Ignore)
        }
        OnConflictAction::DoUpdate(update) => {
            let (branches, queries) = do_update(update, scope)?;
            let again = if queries.is_empty() { UPSERTED_TWICE } else { GIVEN_TWICE };
            (branches, queries, Again::Refuse(again))
        }
    };
    let join_operator = JoinOperator::Left(JoinConstraint::On(same_key(scope)));
    let join = Join { relation: scope.target_factor(), global: false, join_operator };
    let from = vec![TableWithJoins { relation: own_factor(EXCLUDED, EXCLUDED), joins: vec![join] }];
    // The subqueries of SET are for rows that are there: a new row must not meet several rows of theirs.
    let is_there = scope
        .key()
        .first()
        .map_or_else(|| literal(false), |key| ast::Expr::IsNotNull(Box::new(column(&scope.target.alias, key))));
    Ok(ChangeQuery {
        operation: "INSERT",
        from: with_queries(from, queries, &is_there),
        selection: None,
        has_target: true,
        flagged: None,
        branches,
        again,
        returning: insert.returning.clone(),
    })
}

/// # Errors
/// Another target of ON CONFLICT than the table's primary key.
fn check_key(conflict: &OnConflict, scope: &Scope<'_>) -> Result<()> {
    let (name, key) = (&scope.target.name, scope.key());
    if key.is_empty() {
        return Err(Error::invalid(format!(
            "ON CONFLICT needs a primary key, and table \"{name}\" has none; make it with CREATE TABLE {name} (id BIGINT PRIMARY KEY, …)"
        )));
    }
    if scope.target.alias == EXCLUDED {
        return Err(Error::unsupported(
            "ON CONFLICT on a table that is called excluded is not supported: the new rows have that name",
        ));
    }
    match (&conflict.conflict_target, &conflict.action) {
        (Some(ConflictTarget::OnConstraint(constraint)), _) => {
            let called = key_name(&name.table);
            match RelationName::of_sql(constraint)?.table == called {
                true => Ok(()),
                false => Err(Error::invalid(format!(
                    "{constraint} is no key of table \"{name}\"; write ON CONFLICT ON CONSTRAINT {called}, or ON CONFLICT ({})",
                    key.join(", ")
                ))),
            }
        }
        (None, OnConflictAction::DoUpdate(_)) => {
            Err(Error::invalid(format!("DO UPDATE names the key: ON CONFLICT ({}) DO UPDATE …", key.join(", "))))
        }
        (None, OnConflictAction::DoNothing) => Ok(()),
        (Some(ConflictTarget::Columns(columns)), _) => {
            let mut given: Vec<String> = columns.iter().map(folded).collect();
            let mut wanted = key.to_vec();
            given.sort();
            wanted.sort();
            match given == wanted {
                true => Ok(()),
                false => Err(Error::invalid(format!(
                    "ON CONFLICT ({}) is not the primary key of table \"{name}\"; write ON CONFLICT ({})",
                    given.join(", "),
                    key.join(", ")
                ))),
            }
        }
    }
}

/// The new rows with the table's columns; `numbered`: with the number of each among those of its key, in the order
/// in which the query gives them.
fn new_rows(source: LogicalPlan, places: &[usize], scope: &Scope<'_>, numbered: bool) -> Result<LogicalPlan> {
    let filled = source.schema().fields().len();
    if filled != places.len() {
        return Err(Error::invalid(format!(
            "the rows have {filled} columns, but {} are to be filled; name them: INSERT INTO t (a, b) …",
            places.len()
        )));
    }
    if !numbered {
        let columns = table_columns(&source, places, &scope.fields, &scope.entry, scope.tables)?;
        return Ok(LogicalPlanBuilder::from(source).project(columns)?.build()?);
    }
    // Before anything else is done to the rows: later on they may be dealt to several partitions.
    let source = numbered_by(source, row_number(), POSITION)?;
    let mut columns = table_columns(&source, places, &scope.fields, &scope.entry, scope.tables)?;
    let plain = |name: &str| Expr::Column(Column::from_name(name));
    columns.push(plain(POSITION));
    let rows = LogicalPlanBuilder::from(source).project(columns)?.build()?;
    let key = scope.key().iter().map(|name| plain(name)).collect();
    let in_key = row_number().partition_by(key).order_by(vec![plain(POSITION).sort(true, false)]).build()?;
    numbered_by(rows, in_key, NTH)
}

/// The same rows with what a window function says of each in one more column.
fn numbered_by(rows: LogicalPlan, function: Expr, name: &str) -> Result<LogicalPlan> {
    let rows = LogicalPlanBuilder::from(rows).window([function])?.build()?;
    let mut columns: Vec<Expr> = rows.schema().columns().into_iter().map(Expr::Column).collect();
    if let Some(last) = columns.pop() {
        columns.push(last.alias(name));
    }
    Ok(LogicalPlanBuilder::from(rows).project(columns)?.build()?)
}

/// `table.key = excluded.key` for each column of the key.
fn same_key(scope: &Scope<'_>) -> ast::Expr {
    let equal = |name: &String| ast::Expr::BinaryOp {
        left: Box::new(column(&scope.target.alias, name)),
        op: BinaryOperator::Eq,
        right: Box::new(column(EXCLUDED, name)),
    };
    let both = |left: ast::Expr, right: ast::Expr| ast::Expr::BinaryOp {
        left: Box::new(left),
        op: BinaryOperator::And,
        right: Box::new(right),
    };
    let all = scope.key().iter().map(equal).reduce(both);
    all.unwrap_or_else(|| literal(false))
}

/// A condition on the number of a new row among those of its key.
fn nth(op: BinaryOperator) -> ast::Expr {
    ast::Expr::BinaryOp {
        left: Box::new(column(EXCLUDED, NTH)),
        op,
        right: Box::new(ast::Expr::Value(ast::Value::Number("1".into(), false).into())),
    }
}

fn insertion(rows: Rows, when: Option<ast::Expr>, scope: &Scope<'_>) -> Branch {
    let values = scope.fields.iter().map(|field| Value::Ready(column(EXCLUDED, field.name()))).collect();
    Branch { rows, when, action: Some(Action::Insert), values }
}

/// A second new row of a key is an error, a first one is inserted, and a row that is there is updated if WHERE says so.
/// Also the subqueries of SET.
fn do_update(update: &DoUpdate, scope: &Scope<'_>) -> Result<(Vec<Branch>, Vec<TableFactor>)> {
    let with_table = |expr: &ast::Expr| {
        let mut expr = expr.clone();
        qualify(&mut expr, &scope.target, &scope.fields);
        expr
    };
    let mut assignments: Vec<Assignment> = joined(&update.assignments, scope.state);
    for assignment in &mut assignments {
        if !crate::insert::is_default(&assignment.value) {
            assignment.value = with_table(&assignment.value);
        }
    }
    let Assigned { values, queries } = assigned(&assignments, &scope.target, &scope.fields, &scope.entry)?;
    let when = update.selection.as_ref().map(with_table);
    let repeated = Some(nth(BinaryOperator::Gt));
    let branches = vec![
        Branch { rows: Rows::WithoutTarget, when: repeated, action: Some(Action::Repeat), values: vec![] },
        insertion(Rows::WithoutTarget, None, scope),
        Branch { rows: Rows::Matched, when, action: Some(Action::Update), values },
    ];
    Ok((branches, queries))
}
