//! Statements: planned or carried out where their information is asked for, fetched by tickets.
//!
//! Whatever changes something runs exactly once, when its information is asked for; its ticket replays the answer. A query
//! is planned then, on one snapshot of each table, and run when its ticket is redeemed, as often as that happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use engine::{Answer, Done, Plan, ScalarValue, Started, Statement};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use prost::Message;
use tokio::time::Instant;
use tonic::Status;

use crate::admission::Admitted;
use crate::core::Call;
use crate::handles::{Held, Prepared, RowsOf, Waiting};
use crate::messages::Outcome;
use crate::metrics::{Metrics, RunningStatement, StatementKind, StatementOutcome};
use crate::status::{malformed, status_of};
use crate::wire;

/// Below this, several parts cost more than they bring.
const ROWS_IN_PARTS_MIN: u64 = 100_000;
/// Bytes of a handle in a ticket; the number of the part follows, or [`WHOLE`].
const HANDLE_BYTES: usize = 16;
/// The part of a ticket that stands for the whole answer.
const WHOLE: u32 = u32::MAX;

/// What a statement came to.
pub(crate) struct Begun {
    pub(crate) waiting: Waiting,
    /// What a statement without rows did.
    pub(crate) done: Option<Done>,
    /// The statement's name in `system.queries`, as long as it is there.
    pub(crate) query_id: Option<String>,
}

/// What is run: a statement that was just parsed, or one that was prepared.
pub(crate) enum Runnable {
    Parsed(Statement),
    Prepared(Arc<Prepared>),
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
    pub(crate) fn parsed(&self, sql: &str) -> Result<Runnable, Status> {
        self.parse(sql).map(Runnable::Parsed)
    }

    /// The prepared statement of a handle, to be run, and the values of each run.
    pub(crate) fn prepared(&self, handle: &[u8]) -> Result<(Runnable, Vec<Vec<ScalarValue>>), Status> {
        let prepared = self.core.handles.prepared(self.owner(), handle)?;
        let rows = prepared.rows()?;
        Ok((Runnable::Prepared(prepared), rows))
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
    pub(crate) async fn begin(&self, runnable: &Runnable, rows: &[Vec<ScalarValue>]) -> Result<Begun, Status> {
        let _place = self.admitted(StatementKind::Query).await?;
        let mut counted = self.core.metrics.statement(StatementKind::Query);
        let begun = self.in_time(self.begin_admitted(runnable, rows)).await;
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

    async fn begin_admitted(&self, runnable: &Runnable, rows: &[Vec<ScalarValue>]) -> Result<Begun, Status> {
        let (mut plans, mut batches, mut schema, mut done): (_, _, _, Option<Done>) = (vec![], vec![], None, None);
        for parameters in rows {
            match self.start(runnable, parameters).await.map_err(|error| status_of(&error))? {
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
        let rows = if plans.is_empty() { RowsOf::Batches(batches) } else { RowsOf::Plans(plans) };
        Ok(Begun { waiting: Waiting::new(self.types.schema(&schema), rows), done, query_id })
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
        let Begun { waiting, done, query_id } = begun;
        let outcome = done.map(|done| Outcome { tag: done.tag, rows: done.rows }.encode_to_vec()).unwrap_or_default();
        let (parts, is_ordered, records) = self.parts(&waiting);
        let schema = Arc::clone(&waiting.schema);
        let handle = self.core.handles.add(self.owner(), Held::Waiting(Arc::new(waiting)))?;
        let expiry = prost_types::Timestamp::from(self.core.handles.expiry());
        let endpoint = |part: usize| {
            let part = if parts == 1 { WHOLE } else { u32::try_from(part).unwrap_or(WHOLE) };
            let mut bytes = handle.as_bytes().to_vec();
            bytes.extend_from_slice(&part.to_le_bytes());
            let ticket = TicketStatementQuery { statement_handle: bytes.into() };
            FlightEndpoint::new()
                .with_ticket(Ticket::new(ticket.as_any().encode_to_vec()))
                .with_expiration_time(expiry)
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
    pub(crate) async fn fetch(&self, handle: &[u8]) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
        let (handle, part) = handle
            .split_at_checked(HANDLE_BYTES)
            .and_then(|(handle, part)| Some((handle, u32::from_le_bytes(part.try_into().ok()?))))
            .ok_or_else(|| malformed("the ticket", "its handle has a wrong length"))?;
        match self.core.handles.find(self.owner(), handle)? {
            Held::Waiting(waiting) => self.stream(waiting, (part != WHOLE).then_some(part as usize)).await,
            _ => Err(Status::invalid_argument(
                "the handle is that of a prepared statement; ask for its information first",
            )),
        }
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
                Some(begun) => Ok(begun),
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
