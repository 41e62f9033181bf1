//! EXPLAIN: the plan of a query or of a change of rows, and with ANALYZE what was measured while it ran.

use datafusion::common::format::ExplainFormat;
use datafusion::logical_expr::{ExplainOption, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast;
use planner::statement::{Explain, StatementKind};

use crate::change::Changing;
use crate::session::Dispatched;
use crate::{Error, Result, ScalarValue, Session};

impl Session {
    pub(crate) async fn explain(&self, explain: &Explain, parameters: &[ScalarValue]) -> Result<Dispatched> {
        let (plan, state) = match &explain.statement {
            StatementKind::Sql(sql) => match sql.as_ref() {
                ast::Statement::Query(query) => self.plan_query(query, parameters).await?,
                other if explain.analyze && changed(other).is_some() => {
                    return Err(Error::unsupported(format!(
                        "EXPLAIN ANALYZE would carry out the {}; EXPLAIN it, or EXPLAIN ANALYZE its query",
                        changed(other).unwrap_or_default()
                    )));
                }
                ast::Statement::Insert(insert) if insert.on.is_some() || insert.returning.is_some() => {
                    self.plan_change(Changing::Upsert(insert), parameters).await?
                }
                ast::Statement::Insert(insert) => self.plan_insert(insert, parameters).await?,
                ast::Statement::Update(update) => self.plan_change(Changing::Update(update), parameters).await?,
                ast::Statement::Delete(delete) => self.plan_change(Changing::Delete(delete), parameters).await?,
                ast::Statement::Merge(merge) => self.plan_change(Changing::Merge(merge), parameters).await?,
                ast::Statement::CreateTable(create) => match &create.query {
                    Some(query) if !explain.analyze => self.plan_query(query, parameters).await?,
                    _ => return Err(nothing_to_explain()),
                },
                _ => return Err(nothing_to_explain()),
            },
            _ => return Err(nothing_to_explain()),
        };
        let format = match explain.format.as_deref() {
            None | Some("indent") => ExplainFormat::Indent,
            Some("tree") if !explain.analyze => ExplainFormat::Tree,
            Some(other) => {
                return Err(Error::invalid(format!("EXPLAIN has no format {other}; there are indent and tree")));
            }
        };
        let option =
            ExplainOption::default().with_analyze(explain.analyze).with_verbose(explain.verbose).with_format(format);
        let plan = LogicalPlanBuilder::from(plan).explain_option_format(option)?.build()?;
        Ok(Dispatched::Planned(plan, state, None))
    }
}

/// The word of a statement that changes rows.
fn changed(sql: &ast::Statement) -> Option<&'static str> {
    match sql {
        ast::Statement::Insert(_) => Some("INSERT"),
        ast::Statement::Update(_) => Some("UPDATE"),
        ast::Statement::Delete(_) => Some("DELETE"),
        ast::Statement::Merge(_) => Some("MERGE"),
        _ => None,
    }
}

fn nothing_to_explain() -> Error {
    Error::invalid(
        "EXPLAIN shows the plan of a query, of a change of rows or of CREATE TABLE … AS SELECT; the statement has no plan",
    )
}
