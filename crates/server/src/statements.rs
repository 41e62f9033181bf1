//! Statements: planned or carried out where their information is asked for, fetched by tickets.
//!
//! Whatever changes something runs exactly once, when its information is asked for; its ticket replays the answer. A query
//! is planned then, on one snapshot of each table, and run when its ticket is redeemed, as often as that happens (`redeem.rs`:
//! also on other servers).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::sql::{CommandStatementSubstraitPlan, ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use engine::{Answer, Done, Plan, ScalarValue, Started, Statement};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use prost::Message;
use tokio::time::Instant;
use tonic::Status;

use crate::admission::Admitted;
use crate::core::Call;
use crate::handles::{Bound, Held, Prepared, RowsOf, Waiting};
use crate::messages::Outcome;
use crate::metrics::{Metrics, RunningStatement, StatementKind, StatementOutcome};
use crate::status::{malformed, status_of};
use crate::travel::{self, Body, Content};
use crate::wire;

/// Below this, several parts cost more than they bring.
const ROWS_IN_PARTS_MIN: u64 = 100_000;
/// What a plan takes that waits to be run.
pub(crate) const PLAN_BYTES: usize = 64 << 10;
/// Texts longer than this are counted while they are planned: below it they take no more than the call itself.
const TEXT_BYTES_COUNTED: usize = 64 << 10;
/// Bytes of parsed and planned SQL for one of its text, such as of a long list of numbers.
const PLANNED_BYTES_PER_TEXT: usize = 64;

/// What a statement came to.
pub(crate) struct Begun {
    pub(crate) waiting: Waiting,
    /// What its tickets hold, their parts apart.
    pub(crate) ticket: travel::Ticket,
    /// What a statement without rows did.
    pub(crate) done: Option<Done>,
    /// The statement's name in `system.queries`, as long as it is there.
    pub(crate) query_id: Option<String>,
}

/// What is run: a statement that was just parsed, or one that was prepared.
pub(crate) enum Runnable {
    Parsed(Box<Statement>),
    Prepared(Arc<Prepared>),
}

/// A statement with the values it is run with.
pub(crate) struct Asked {
    pub(crate) runnable: Runnable,
    /// The values of each run.
    pub(crate) rows: Vec<Vec<ScalarValue>>,
    /// The same as they were bound, if any were.
    pub(crate) bound: Option<Arc<Bound>>,
    /// What the text takes until it is planned.
    pub(crate) _text: Option<engine::Held>,
}

impl Asked {
    fn of(statement: Statement) -> Self {
        Self { runnable: Runnable::Parsed(Box::new(statement)), rows: vec![vec![]], bound: None, _text: None }
    }

    pub(crate) fn statement(&self) -> &Statement {
        match &self.runnable {
            Runnable::Parsed(statement) => statement,
            Runnable::Prepared(prepared) => prepared.prepared.statement(),
        }
    }
}

impl Call {
    /// Plans a query, and carries any other statement out.
    pub(crate) async fn start(&self, runnable: &Runnable, parameters: &[ScalarValue]) -> engine::Result<Started> {
        match runnable {
            Runnable::Parsed(statement) => self.session.engine.start(statement, parameters).await,
            Runnable::Prepared(prepared) => prepared.prepared.start(parameters).await,
        }
    }

    /// The one statement of a text, to be run.
    pub(crate) fn parsed(&self, sql: &str) -> Result<Asked, Status> {
        let _text = self.text(sql)?;
        Ok(Asked { _text, ..Asked::of(self.parse(sql)?) })
    }

    /// What a text takes while it is parsed and planned.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn text(&self, sql: &str) -> Result<Option<engine::Held>, Status> {
        match sql.len() {
            ..=TEXT_BYTES_COUNTED => Ok(None),
            bytes => {
                self.core.hold(self, bytes.saturating_mul(PLANNED_BYTES_PER_TEXT), "a text of such a length").map(Some)
            }
        }
    }

    /// A Substrait plan, to be run.
    pub(crate) fn planned(&self, command: &CommandStatementSubstraitPlan) -> Result<Asked, Status> {
        self.of_substrait(command).map(Asked::of)
    }

    /// The statement of a command that holds a Substrait plan.
    pub(crate) fn of_substrait(&self, command: &CommandStatementSubstraitPlan) -> Result<Statement, Status> {
        if command.transaction_id.as_ref().is_some_and(|id| !id.is_empty()) {
            return Err(crate::actions::no_transactions());
        }
        match &command.plan {
            Some(plan) => self.substrait(&plan.plan),
            None => Err(malformed("the command", "it holds no Substrait plan")),
        }
    }

    /// The statement of a Substrait plan. Its version stands in it: what is said beside it is not needed.
    pub(crate) fn substrait(&self, plan: &[u8]) -> Result<Statement, Status> {
        self.session.engine.substrait(plan).map_err(|error| status_of(&error))
    }

    /// The one statement of a text.
    pub(crate) fn parse(&self, sql: &str) -> Result<Statement, Status> {
        let mut statements = self.session.engine.parse(sql).map_err(|error| status_of(&error))?;
        let statement = match (statements.pop(), statements.len()) {
            (Some(statement), 0) => statement,
            (None, _) => return Err(Status::invalid_argument("the text holds no statement")),
            (Some(_), more) => {
                return Err(Status::invalid_argument(format!(
                    "the text holds {} statements, and one is run at a time; send each on its own",
                    more + 1
                )));
            }
        };
        if self.session.is_anonymous() && statement.is_of_session() {
            return Err(Status::invalid_argument(
                "this connection has no session that could keep settings or prepared statements; connect with a user name (any will do where the server asks for none), or with cookies",
            ));
        }
        Ok(statement)
    }

    /// Plans a query for each row of parameters, and carries out any other statement.
    pub(crate) async fn begin(&self, asked: &Asked) -> Result<Begun, Status> {
        let _place = self.admitted(StatementKind::Query).await?;
        let mut counted = self.core.metrics.statement(StatementKind::Query);
        let begun = self.in_time(self.begin_admitted(asked)).await;
        match &begun {
            Ok(begun) if matches!(begun.waiting.rows, RowsOf::Plans(_)) => counted.is_yet_to_run(),
            Ok(_) => {
                counted.turned_out(StatementKind::Update);
                counted.end(StatementOutcome::Ok);
            }
            Err(status) => counted.end(StatementOutcome::of_code(status.code())),
        }
        begun
    }

    async fn begin_admitted(&self, asked: &Asked) -> Result<Begun, Status> {
        let (mut plans, mut batches, mut schema, mut done): (_, _, _, Option<Done>) = (vec![], vec![], None, None);
        // Many rows of values are as many plans.
        let memory =
            self.core.hold(self, asked.rows.len().saturating_mul(PLAN_BYTES), "a plan for each row of values")?;
        for parameters in &asked.rows {
            match self.start(&asked.runnable, parameters).await.map_err(|error| status_of(&error))? {
                Started::Query(plan) => plans.push(plan),
                Started::Answered(Answer::Rows(answer)) => {
                    schema = Some(answer.schema());
                    batches.extend(answer.collect().await.map_err(|error| status_of(&error))?);
                }
                Started::Answered(Answer::Done(one)) => {
                    let before = done.and_then(|done| done.rows);
                    done = Some(Done { rows: one.rows.map(|rows| rows + before.unwrap_or(0)), ..one });
                }
            }
        }
        let schema = plans.first().map(Plan::schema).or(schema).unwrap_or_else(|| Arc::new(Schema::empty()));
        let query_id = plans.first().map(Plan::query_id);
        let ticket = travel::Ticket::of(asked, &plans, self.types.name());
        let (rows, memory) = match plans.is_empty() {
            // They are there, and the statement is carried out: it is too late to refuse them.
            true => {
                let bytes = batches.iter().map(RecordBatch::get_array_memory_size).sum();
                (RowsOf::Batches(batches), self.core.engine.hold_anyway(self.session.user(), bytes))
            }
            false => (RowsOf::Plans(plans), memory),
        };
        let waiting = Waiting::new(self.types.schema(&schema), rows).counted(memory);
        Ok(Begun { waiting, ticket, done, query_id })
    }

    /// The outcome of work that must end within the time that the server gives a statement.
    pub(crate) async fn in_time<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        match self.core.limits.statement_time_max {
            Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(too_long(limit))),
            None => work.await,
        }
    }

    /// What a client is told about an answer: its columns and the tickets of its parts.
    pub(crate) fn information(&self, begun: Begun, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let Begun { waiting, ticket, done, query_id } = begun;
        let outcome = done.map(|done| Outcome { tag: done.tag, rows: done.rows }.encode_to_vec()).unwrap_or_default();
        let (parts, is_ordered, records) = self.parts(&waiting);
        let schema = Arc::clone(&waiting.schema);
        let id = self.core.handles.add(self.owner(), Held::Waiting(Arc::new(waiting)))?;
        let expiry = self.core.handles.expiry();
        let endpoint = |part: usize| {
            let part = if parts == 1 { None } else { u32::try_from(part).ok() };
            let ticket = travel::Ticket { part, expires_us: travel::micros(expiry), ..ticket.clone() };
            FlightEndpoint::new()
                .with_ticket(self.sealed(id, ticket))
                .with_expiration_time(expiry.into())
                .with_app_metadata(outcome.clone())
        };
        let information = FlightInfo::new()
            .try_with_schema(&schema)
            .map_err(|error| Status::internal(format!("the columns cannot be sent: {error}")))?
            .with_descriptor(descriptor)
            .with_endpoints((0..parts).map(endpoint).collect())
            .with_ordered(is_ordered)
            .with_total_records(records)
            .with_total_bytes(-1);
        Ok(information.with_app_metadata(query_id.unwrap_or_default()))
    }

    /// The ticket that a client gets.
    pub(crate) fn sealed(&self, id: uuid::Uuid, ticket: travel::Ticket) -> Ticket {
        let body = Body { content: Some(Content::Ticket(ticket)) };
        let handle = self.core.seal.seal(self.owner().user, id, &body.encode_to_vec());
        Ticket::new(TicketStatementQuery { statement_handle: handle }.as_any().encode_to_vec())
    }

    /// Number of parts, whether their order means something, and the number of rows where it is known (else -1).
    fn parts(&self, waiting: &Waiting) -> (usize, bool, i64) {
        match &waiting.rows {
            RowsOf::Batches(batches) => {
                let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
                (1, false, i64::try_from(rows).unwrap_or(-1))
            }
            RowsOf::Plans(plans) => match plans.as_slice() {
                [plan] => {
                    let parts = plan.part_count();
                    let is_large = plan.rows_scanned().is_some_and(|rows| rows >= ROWS_IN_PARTS_MIN);
                    let parts = if is_large && parts <= self.endpoints { parts } else { 1 };
                    (parts, plan.is_ordered(), -1)
                }
                _ => (1, false, -1),
            },
        }
    }

    /// The messages behind a ticket's handle.
    pub(crate) async fn fetch(
        &self,
        handle: &bytes::Bytes,
    ) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
        let (id, ticket) = self.ticket(handle)?;
        let waiting = self.answer_of(id, &ticket).await?;
        self.stream(waiting, ticket.part.map(|part| part as usize)).await
    }

    /// The messages of an answer, or of one part of it.
    pub(crate) async fn stream(
        &self,
        waiting: Arc<Waiting>,
        part: Option<usize>,
    ) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
        let place = self.admitted(StatementKind::Query).await?;
        let metrics = self.core.metrics.clone();
        let rows = waiting.rows(part)?;
        let counted = metrics.clone();
        let rows = self.limited(rows).inspect_ok(move |batch| counted.sent(batch.num_rows() as u64, 0));
        let messages = wire::messages(Arc::clone(&waiting.schema), rows.boxed());
        let limit = self.core.limits.statement_time_max;
        let sending = Sending {
            messages,
            waiting,
            running: Some(metrics.statement(StatementKind::Query)),
            metrics,
            until: limit.map(|limit| (Instant::now() + limit, limit)),
            _place: place,
        };
        Ok(futures::stream::unfold(sending, Sending::next).boxed())
    }

    /// The rows, as long as they are not more than the server gives.
    fn limited(
        &self,
        rows: BoxStream<'static, Result<RecordBatch, Status>>,
    ) -> BoxStream<'static, Result<RecordBatch, Status>> {
        let Some(rows_max) = self.core.limits.rows_max else { return rows };
        let seen = AtomicU64::new(0);
        rows.and_then(move |batch| {
            let count = batch.num_rows() as u64;
            let seen = seen.fetch_add(count, Ordering::Relaxed) + count;
            std::future::ready(match seen > rows_max {
                true => Err(Status::resource_exhausted(format!(
                    "the answer has more than {rows_max} rows, which is all the server gives; add a LIMIT or a filter"
                ))),
                false => Ok(batch),
            })
        })
        .boxed()
    }
}

impl Waiting {
    /// The rows of a part or of the whole, from the start.
    fn rows(self: &Arc<Self>, part: Option<usize>) -> Result<BoxStream<'static, Result<RecordBatch, Status>>, Status> {
        let run = |rows: engine::Result<engine::Rows>| rows.map(wire::of_engine).map_err(|error| status_of(&error));
        match (&self.rows, part) {
            (RowsOf::Plans(plans), Some(part)) if plans.len() == 1 => run(plans[0].run_part(part)),
            (_, Some(_)) => Err(malformed("the ticket", "the answer has no parts")),
            (_, None) => match crate::sessions::locked(&self.begun).take() {
                Some(begun) => Ok(begun.rows),
                None => Ok(match &self.rows {
                    RowsOf::Batches(batches) => futures::stream::iter(batches.clone()).map(Ok).boxed(),
                    RowsOf::Plans(plans) if plans.len() == 1 => run(plans[0].run())?,
                    RowsOf::Plans(_) => Arc::clone(self).all_plans(),
                }),
            },
        }
    }

    /// The rows of one plan after the other.
    fn all_plans(self: Arc<Self>) -> BoxStream<'static, Result<RecordBatch, Status>> {
        let count = match &self.rows {
            RowsOf::Plans(plans) => plans.len(),
            RowsOf::Batches(_) => 0,
        };
        futures::stream::iter(0..count)
            .map(move |at| match &self.rows {
                RowsOf::Plans(plans) => plans[at].run().map(wire::of_engine).map_err(|error| status_of(&error)),
                RowsOf::Batches(_) => Ok(futures::stream::empty().boxed()),
            })
            .try_flatten()
            .boxed()
    }
}

fn too_long(limit: Duration) -> Status {
    Status::deadline_exceeded(format!(
        "the statement ran longer than {} s, which is all that the server gives one (limits.statement_time_max); let it do less",
        limit.as_secs_f64()
    ))
}

/// An answer on its way: as long as it is, the statement has its place, and counts as running.
struct Sending {
    messages: BoxStream<'static, Result<FlightData, Status>>,
    waiting: Arc<Waiting>,
    running: Option<RunningStatement>,
    metrics: Metrics,
    /// When the server's patience ends, and how long it was.
    until: Option<(Instant, Duration)>,
    _place: Admitted,
}

impl Sending {
    async fn next(mut self) -> Option<(Result<FlightData, Status>, Self)> {
        let message = match self.until {
            Some((until, limit)) => match tokio::time::timeout_at(until, self.messages.next()).await {
                Ok(message) => message,
                Err(_) => {
                    self.messages = futures::stream::empty().boxed();
                    Some(Err(too_long(limit)))
                }
            },
            None => self.messages.next().await,
        };
        let outcome = match &message {
            Some(Ok(message)) => {
                self.metrics.sent(0, message.data_body.len() as u64);
                None
            }
            Some(Err(status)) => Some(StatementOutcome::of_code(status.code())),
            None => {
                self.waiting.is_fetched.store(true, Ordering::Relaxed);
                Some(StatementOutcome::Ok)
            }
        };
        if let (Some(outcome), Some(running)) = (outcome, outcome.and_then(|_| self.running.take())) {
            running.end(outcome);
        }
        message.map(|message| (message, self))
    }
}

/// The information of an answer that the server makes by itself, such as metadata: the ticket is the command.
pub(crate) fn information_of_command(
    schema: &SchemaRef,
    command: Vec<u8>,
    descriptor: FlightDescriptor,
) -> Result<FlightInfo, Status> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(command));
    Ok(FlightInfo::new()
        .try_with_schema(schema)
        .map_err(|error| Status::internal(format!("the columns cannot be sent: {error}")))?
        .with_descriptor(descriptor)
        .with_endpoint(endpoint)
        .with_total_records(-1)
        .with_total_bytes(-1))
}
