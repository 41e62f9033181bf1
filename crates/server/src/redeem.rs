//! Tickets that are brought to a server that did not give them out, or no longer knows: the answer is planned again on the versions
//! that it was planned on first, and kept for the other parts and the next fetch.

use std::sync::Arc;
use std::time::Duration;

use engine::{Pins, Plan, ScalarValue, Statement};
use tonic::Status;
use uuid::Uuid;

use crate::core::Call;
use crate::handles::{Held, RowsOf, Waiting};
use crate::metrics::{StatementKind, StatementOutcome};
use crate::prepared::rows_of;
use crate::seal::unknown;
use crate::statements::PLAN_BYTES;
use crate::status::status_of;
use crate::travel::{Body, Content, Replay, Source, Ticket, arrived};
use crate::wire::Types;

impl Call {
    /// The statement of a handle.
    pub(crate) fn arrived(&self, source: &Source) -> Result<Statement, Status> {
        match source {
            Source::Sql(sql) => self.parse(sql),
            Source::Substrait(bytes) => self.substrait(bytes),
        }
    }

    /// The ticket in a handle, and its id.
    ///
    /// # Errors
    /// A handle that is not this user's, or not that of an answer.
    pub(crate) fn ticket(&self, handle: &bytes::Bytes) -> Result<(Uuid, Ticket), Status> {
        let (id, body) = self.core.seal.open(self.owner().user, handle)?;
        match Body::read(body)?.content {
            Some(Content::Ticket(ticket)) => Ok((id, ticket)),
            _ => Err(Status::invalid_argument(
                "the handle is that of a prepared statement; ask for its information first",
            )),
        }
    }

    /// The answer of a ticket.
    ///
    /// # Errors
    /// One that is too old or was cancelled, one that only the server has that ran it, and whatever planning meets.
    pub(crate) async fn answer_of(&self, id: Uuid, ticket: &Ticket) -> Result<Arc<Waiting>, Status> {
        match self.core.handles.find(self.owner(), id)? {
            Some(Held::Waiting(waiting)) => Ok(waiting),
            Some(_) => Err(unknown()),
            None if ticket.is_expired() => Err(unknown()),
            None => match &ticket.replay {
                Some(replay) => Box::pin(self.redeem(id, ticket, replay)).await,
                None => Err(ticket.kept_elsewhere()),
            },
        }
    }

    async fn redeem(&self, id: Uuid, ticket: &Ticket, replay: &Replay) -> Result<Arc<Waiting>, Status> {
        let _place = self.admitted(StatementKind::Query).await?;
        let counted = self.core.metrics.statement(StatementKind::Query);
        let waiting = match self.in_time(self.planned_again(ticket, replay)).await {
            Ok(waiting) => {
                counted.is_yet_to_run();
                waiting
            }
            Err(status) => {
                counted.end(StatementOutcome::of_code(status.code()));
                return Err(status);
            }
        };
        let now = crate::travel::micros(std::time::SystemTime::now());
        let left = Duration::from_micros(u64::try_from(ticket.expires_us.saturating_sub(now)).unwrap_or(0));
        match self.core.handles.adopt(self.owner(), id, Held::Waiting(waiting), left)? {
            Held::Waiting(waiting) => Ok(waiting),
            _ => Err(unknown()),
        }
    }

    async fn planned_again(&self, ticket: &Ticket, replay: &Replay) -> Result<Arc<Waiting>, Status> {
        let types = Types::parse(&replay.types).ok_or_else(unknown)?;
        let statement = self.arrived(replay.source.as_ref().ok_or_else(unknown)?)?;
        let rows: Vec<Vec<ScalarValue>> = match &replay.values {
            Some(values) => rows_of(&arrived(values)?)?,
            None => vec![vec![]],
        };
        if rows.len() != replay.plans.len() {
            return Err(unknown());
        }
        let memory = self.core.hold(self, rows.len().saturating_mul(PLAN_BYTES), "a plan for each row of values")?;
        let mut plans: Vec<Plan> = Vec::with_capacity(rows.len());
        for (values, pins) in rows.iter().zip(&replay.plans) {
            let pins = Pins::from(pins.clone());
            let plan = self.session.engine.replay(&statement, values, pins, ticket.elapsed()).await;
            plans.push(plan.map_err(|error| status_of(&error))?);
        }
        let schema = plans.first().ok_or_else(unknown)?.schema();
        Ok(Arc::new(Waiting::new(types.schema(&schema), RowsOf::Plans(plans)).counted(memory)))
    }
}
