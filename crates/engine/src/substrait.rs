//! Substrait plans: queries that are no text. They run as any other: with the rights of the session, on one snapshot of each
//! table, listed, cancelled and timed.

use std::sync::Arc;

use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use planner::Planner;
use planner::statement::StatementKind;
use planner::substrait::SubstraitPlan;

pub use planner::substrait::{VERSION_MAX, VERSION_MIN};

use crate::pins::PinnedRelation;
use crate::resolver::StatementTables;
use crate::session::Dispatched;
use crate::{Error, Result, ScalarValue, Session, Statement};

impl Session {
    /// A Substrait plan as a statement. `bytes`: a `substrait.Plan`.
    ///
    /// # Errors
    /// Bytes that are none, too many of them, a version of Substrait that is not read.
    pub fn substrait(&self, bytes: &[u8]) -> Result<Statement> {
        let plan = SubstraitPlan::decode(bytes)?;
        let shown: Arc<str> = plan.shown().into();
        Ok(Statement { kind: StatementKind::Substrait(plan), shown: Some(shown), source: "".into(), range: 0..0 })
    }

    pub(crate) async fn plan_substrait(&self, plan: &SubstraitPlan, parameters: &[ScalarValue]) -> Result<Dispatched> {
        let (logical, state, reads) = self.logical_substrait(plan).await?;
        let logical = match parameters {
            [] => logical,
            values => logical.with_param_values(values.to_vec())?,
        };
        if let Some(name) = logical.get_parameter_names()?.into_iter().min() {
            return Err(Error::invalid(format!(
                "parameter {name} of the Substrait plan has no value; prepare it and bind one"
            )));
        }
        Ok(Dispatched::Planned(logical, state, reads))
    }

    /// The plan with its parameters in it, the state it was planned in, and what it reads.
    pub(crate) async fn logical_substrait(
        &self,
        plan: &SubstraitPlan,
    ) -> Result<(LogicalPlan, Arc<SessionState>, Option<Vec<PinnedRelation>>)> {
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let logical = Planner { state: &state, resolver: &tables }.substrait(plan).await?;
        Ok((logical, state, tables.reads()))
    }
}

impl Statement {
    /// The bytes of a Substrait plan; `None` for a statement of SQL.
    pub fn substrait_bytes(&self) -> Option<&[u8]> {
        match &self.kind {
            StatementKind::Substrait(plan) => Some(plan.bytes()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
