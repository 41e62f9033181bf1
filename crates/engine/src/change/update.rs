//! UPDATE and DELETE: each row of the table that FROM and WHERE leave is changed once.

use datafusion::sql::sqlparser::ast::{Delete, FromTable, TableWithJoins, Update, UpdateTableFromKind};
use operators::change::Again;
use planner::change::Action;

use super::names::{Assigned, Target, alone, assigned, joined, literal, with_queries};
use super::plan::{Branch, ChangeQuery, Rows, Scope};
use super::refuse;
use crate::{Error, Result};

const GIVEN_TWICE: &str = "UPDATE cannot affect row a second time: a subquery in SET gives more than one row for it, or several rows of FROM match it; make sure that at most one does, with max(…), GROUP BY or DISTINCT ON";
const UPDATED_TWICE: &str = "UPDATE cannot affect row a second time: several rows of FROM match one row of the table; make sure that at most one does, with GROUP BY or DISTINCT ON in a subquery";

/// # Errors
/// A clause that is not supported.
pub(super) fn update_target(update: &Update) -> Result<Target> {
    refuse(
        "UPDATE t SET c = value [FROM …] [WHERE …] [RETURNING …]",
        &[
            (update.or.is_some(), "UPDATE OR …"),
            (update.output.is_some(), "OUTPUT"),
            (update.limit.is_some(), "LIMIT of UPDATE"),
            (!update.order_by.is_empty(), "ORDER BY of UPDATE"),
            (matches!(update.from, Some(UpdateTableFromKind::BeforeSet(_))), "FROM in front of SET"),
            (!update.table.joins.is_empty(), "UPDATE of a join"),
        ],
    )?;
    Target::of_factor(&update.table.relation, "UPDATE")
}

/// What an UPDATE says.
pub(super) fn update_query(update: &Update, scope: &Scope<'_>) -> Result<ChangeQuery> {
    let others: &[TableWithJoins] = match &update.from {
        Some(UpdateTableFromKind::AfterSet(from)) => from,
        _ => &[],
    };
    scope.target.refuse_twice(others)?;
    let Assigned { values, queries } =
        assigned(&joined(&update.assignments, scope.state), &scope.target, &scope.fields, &scope.entry)?;
    let again = Again::Refuse(if queries.is_empty() { UPDATED_TWICE } else { GIVEN_TWICE });
    Ok(ChangeQuery {
        operation: "UPDATE",
        from: with_queries(with_target(scope, others), queries, &literal(true)),
        selection: update.selection.clone(),
        has_target: true,
        flagged: None,
        branches: vec![Branch { rows: Rows::All, when: None, action: Some(Action::Update), values }],
        again,
        returning: update.returning.clone(),
    })
}

/// # Errors
/// A clause that is not supported.
pub(super) fn delete_target(delete: &Delete) -> Result<Target> {
    let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
    refuse(
        "DELETE FROM t [USING …] [WHERE …] [RETURNING …]",
        &[
            (!delete.tables.is_empty() || from.len() != 1, "DELETE of several tables"),
            (delete.output.is_some(), "OUTPUT"),
            (delete.limit.is_some(), "LIMIT of DELETE"),
            (!delete.order_by.is_empty(), "ORDER BY of DELETE"),
            (from.iter().any(|table| !table.joins.is_empty()), "DELETE from a join"),
        ],
    )?;
    match from.first() {
        Some(table) => Target::of_factor(&table.relation, "DELETE"),
        None => Err(Error::invalid("DELETE names a table: DELETE FROM t WHERE …")),
    }
}

/// What a DELETE says.
pub(super) fn delete_query(delete: &Delete, scope: &Scope<'_>) -> Result<ChangeQuery> {
    let others = delete.using.as_deref().unwrap_or_default();
    scope.target.refuse_twice(others)?;
    Ok(ChangeQuery {
        operation: "DELETE",
        from: with_target(scope, others),
        selection: delete.selection.clone(),
        has_target: true,
        flagged: None,
        branches: vec![Branch { rows: Rows::All, when: None, action: Some(Action::Delete), values: vec![] }],
        again: Again::Ignore,
        returning: delete.returning.clone(),
    })
}

fn with_target(scope: &Scope<'_>, others: &[TableWithJoins]) -> Vec<TableWithJoins> {
    std::iter::once(alone(scope.target_factor())).chain(others.iter().cloned()).collect()
}
