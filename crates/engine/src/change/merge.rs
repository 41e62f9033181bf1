//! MERGE: the table and a source are joined, and the first WHEN that fits says what happens to a row.

use datafusion::sql::sqlparser::ast::{
    self, Join, JoinConstraint, JoinOperator, Merge, MergeAction, MergeClause, MergeClauseKind, MergeInsertExpr,
    MergeInsertKind, OutputClause, SelectItem, TableAlias, TableFactor, TableWithJoins,
};
use operators::change::Again;
use planner::change::Action;
use planner::do_nothing::DO_NOTHING;

use super::names::{Target, Value, alone, assigned, default_of, ident, known_as, select, value_or_default};
use super::plan::{Branch, ChangeQuery, Rows, SOURCE_FLAG, Scope};
use super::refuse;
use crate::insert::targets;
use crate::{Error, Result};

const USAGE: &str = "MERGE INTO t USING source ON condition WHEN [NOT] MATCHED [BY SOURCE] [AND condition] THEN …";
const MERGED_TWICE: &str = "MERGE command cannot affect row a second time: several rows of the source match one row of the table; make sure that at most one does, with GROUP BY or DISTINCT ON in a subquery";

/// # Errors
/// A clause that is not supported.
pub(super) fn merge_target(merge: &Merge) -> Result<Target> {
    refuse(
        USAGE,
        &[
            (!merge.into, "MERGE without INTO"),
            (matches!(merge.output, Some(OutputClause::Output { .. })), "OUTPUT"),
            (merge.clauses.is_empty(), "MERGE without WHEN"),
        ],
    )?;
    Target::of_factor(&merge.table, "MERGE")
}

/// What a MERGE says.
pub(super) fn merge_query(merge: &Merge, scope: &Scope<'_>) -> Result<ChangeQuery> {
    scope.target.refuse_twice(&[alone(merge.source.clone())])?;
    let branches: Vec<Branch> = merge.clauses.iter().map(|clause| branch(clause, scope)).collect::<Result<_>>()?;
    let has = |rows: Rows| branches.iter().any(|branch| branch.rows == rows);
    let on = JoinConstraint::On(merge.on.as_ref().clone());
    let (without_target, without_source) = (has(Rows::WithoutTarget), has(Rows::WithoutSource));
    let (source, flagged) = match without_source {
        true => flagged(&merge.source)?,
        false => (merge.source.clone(), None),
    };
    let join_operator = match (without_target, without_source) {
        (false, false) => JoinOperator::Inner(on),
        (true, false) => JoinOperator::Left(on),
        (false, true) => JoinOperator::Right(on),
        (true, true) => JoinOperator::FullOuter(on),
    };
    let join = Join { relation: scope.target_factor(), global: false, join_operator };
    let returning = match &merge.output {
        Some(OutputClause::Returning { select_items, .. }) => Some(select_items.clone()),
        _ => None,
    };
    Ok(ChangeQuery {
        operation: "MERGE",
        from: vec![TableWithJoins { relation: source, joins: vec![join] }],
        selection: None,
        has_target: true,
        flagged,
        branches,
        again: Again::Refuse(MERGED_TWICE),
        returning,
    })
}

/// The source with one more column that is true for each of its rows: in an outer join it tells them from no row.
fn flagged(source: &TableFactor) -> Result<(TableFactor, Option<String>)> {
    let Some(name) = known_as(source) else {
        return Err(Error::invalid(format!("the source {source} needs a name; write USING … AS source")));
    };
    let flag = SelectItem::ExprWithAlias {
        expr: ast::Expr::Value(ast::Value::Boolean(true).into()),
        alias: ident(SOURCE_FLAG),
    };
    let all = SelectItem::Wildcard(ast::WildcardAdditionalOptions::default());
    let subquery = select(vec![all, flag], vec![alone(source.clone())], None)?;
    let derived = TableFactor::Derived {
        lateral: false,
        subquery: Box::new(subquery),
        alias: Some(TableAlias { explicit: true, name: ident(&name), columns: vec![], at: None }),
        sample: None,
    };
    Ok((derived, Some(name)))
}

fn branch(clause: &MergeClause, scope: &Scope<'_>) -> Result<Branch> {
    let rows = match clause.clause_kind {
        MergeClauseKind::Matched => Rows::Matched,
        MergeClauseKind::NotMatched | MergeClauseKind::NotMatchedByTarget => Rows::WithoutTarget,
        MergeClauseKind::NotMatchedBySource => Rows::WithoutSource,
    };
    let (action, values) = match &clause.action {
        MergeAction::Update(update) => {
            refuse(
                "WHEN MATCHED AND condition THEN …",
                &[
                    (update.update_predicate.is_some(), "WHERE behind SET in MERGE"),
                    (update.delete_predicate.is_some(), "DELETE WHERE in MERGE"),
                ],
            )?;
            if update.assignments.iter().any(|assignment| says_nothing(&assignment.target.to_string())) {
                (None, vec![])
            } else {
                let set = assigned(&update.assignments, &scope.target, &scope.fields, &scope.entry)?;
                if !set.queries.is_empty() {
                    return Err(Error::unsupported(
                        "SET (…) = (SELECT …) in MERGE is not supported; join the subquery in USING and write SET (a, b) = (source.x, source.y)",
                    ));
                }
                (Some(Action::Update), set.values)
            }
        }
        MergeAction::Delete { .. } => (Some(Action::Delete), vec![]),
        MergeAction::Insert(insert) if insert.columns.iter().any(|column| says_nothing(&column.to_string())) => {
            (None, vec![])
        }
        MergeAction::Insert(insert) => (Some(Action::Insert), inserted(insert, scope)?),
    };
    Ok(Branch { rows, when: clause.predicate.clone(), action, values })
}

/// The column that stands for `DO NOTHING`, which the parser does not know.
fn says_nothing(column: &str) -> bool {
    column.trim_matches('"') == DO_NOTHING
}

/// What INSERT gives to each column of the table.
fn inserted(insert: &MergeInsertExpr, scope: &Scope<'_>) -> Result<Vec<Value>> {
    refuse(
        "WHEN NOT MATCHED AND condition THEN …",
        &[(insert.insert_predicate.is_some(), "WHERE behind VALUES in MERGE")],
    )?;
    let MergeInsertKind::Values(values) = &insert.kind else {
        return Err(Error::unsupported("INSERT ROW is not supported; write INSERT (a, b) VALUES (source.a, source.b)"));
    };
    let [row] = values.rows.as_slice() else {
        return Err(Error::invalid(format!("INSERT in MERGE takes one row of values, not {}", values.rows.len())));
    };
    let places = targets(&scope.target.name, &insert.columns, &scope.fields)?;
    if row.len() != places.len() {
        return Err(Error::invalid(format!("a row has {} values for {} columns", row.len(), places.len())));
    }
    let value = |(at, field): (usize, &arrow::datatypes::FieldRef)| {
        let given = places.iter().position(|place| *place == at);
        let expr = match given {
            Some(given) => value_or_default(&row[given], field, &scope.entry)?,
            None => default_of(field, &scope.entry)?,
        };
        Ok(Value::Given(expr))
    };
    scope.fields.iter().enumerate().map(value).collect()
}
