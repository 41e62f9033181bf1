//! The Flight service: every call, who makes it, and where it is answered.
//!
//! arrow-flight's own `FlightSqlService` answers schemas, polls and session actions with "unimplemented" and loses the
//! results of one action, so the calls are taken apart here.

use std::pin::Pin;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{Any, Command, DoPutPreparedStatementResult, DoPutUpdateResult};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use futures::stream::{BoxStream, Stream, StreamExt};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use crate::core::{Call, Core};
use crate::handles::{RowsOf, Waiting};
use crate::ingest::Sent;
use crate::statements::information_of_command;
use crate::status::{malformed, status_of};
use crate::{actions, catalog, sql_info, type_info};

/// Answers calls.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) core: Arc<Core>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

/// The command inside a descriptor or a ticket.
fn command(bytes: &[u8], what: &str) -> Result<Command, Status> {
    if bytes.is_empty() {
        return Err(malformed(what, "it is empty; send a command of Flight SQL"));
    }
    let any: Any = Message::decode(bytes).map_err(|error| malformed(what, error))?;
    Command::try_from(any).map_err(|error| malformed(what, error))
}

fn unknown(command: &Command) -> Status {
    let name = command.type_url().rsplit(['/', '.']).next().unwrap_or_default();
    Status::unimplemented(format!("the command {name} is not supported here"))
}

impl Call {
    /// The answer of a command that is metadata; `None` if it is none.
    async fn metadata(&self, command: &Command) -> Result<Option<RecordBatch>, Status> {
        let objects = self.session.engine.objects();
        Ok(Some(match command {
            Command::CommandGetCatalogs(_) => catalog::catalogs()?,
            Command::CommandGetDbSchemas(command) => catalog::schemas(&objects, command.clone()).await?,
            Command::CommandGetTables(command) => catalog::tables(&objects, command.clone(), self.types).await?,
            Command::CommandGetTableTypes(_) => catalog::table_types()?,
            Command::CommandGetSqlInfo(command) => sql_info::sql_info(&command.info)?,
            Command::CommandGetXdbcTypeInfo(command) => type_info::type_info(command.data_type)?,
            Command::CommandGetPrimaryKeys(command) => catalog::primary_keys(&objects, command).await?,
            Command::CommandGetExportedKeys(_)
            | Command::CommandGetImportedKeys(_)
            | Command::CommandGetCrossReference(_) => catalog::foreign_keys()?,
            _ => return Ok(None),
        }))
    }

    async fn flight_info(&self, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let command = command(&descriptor.cmd, "the descriptor")?;
        match &command {
            Command::CommandStatementQuery(query) => {
                let begun = self.begin(&self.parsed(&query.query)?).await?;
                self.information(begun, descriptor)
            }
            Command::CommandStatementSubstraitPlan(query) => {
                let begun = self.begin(&self.planned(query)?).await?;
                self.information(begun, descriptor)
            }
            Command::CommandPreparedStatementQuery(query) => {
                let begun = self.begin(&self.prepared(&query.prepared_statement_handle).await?).await?;
                self.information(begun, descriptor)
            }
            _ => match self.metadata(&command).await? {
                Some(batch) => information_of_command(&batch.schema(), descriptor.cmd.to_vec(), descriptor),
                None => Err(unknown(&command)),
            },
        }
    }

    /// The columns of a statement's answer, without running anything.
    async fn schema(&self, descriptor: FlightDescriptor) -> Result<SchemaResult, Status> {
        let command = command(&descriptor.cmd, "the descriptor")?;
        let columns = match &command {
            Command::CommandStatementQuery(query) => {
                let statement = self.parse(&query.query)?;
                self.session.engine.describe(&statement).await.map_err(|error| status_of(&error))?.columns
            }
            Command::CommandStatementSubstraitPlan(query) => {
                let statement = self.of_substrait(query)?;
                self.session.engine.describe(&statement).await.map_err(|error| status_of(&error))?.columns
            }
            Command::CommandPreparedStatementQuery(query) => {
                let found = self.prepared_of(&query.prepared_statement_handle).await?;
                found.prepared.prepared.description().columns.clone()
            }
            _ => match self.metadata(&command).await? {
                Some(batch) => Some(batch.schema()),
                None => return Err(unknown(&command)),
            },
        };
        let schema =
            columns.map_or_else(|| Arc::new(arrow::datatypes::Schema::empty()), |columns| self.types.schema(&columns));
        SchemaAsIpc::new(&schema, &IpcWriteOptions::default())
            .try_into()
            .map_err(|error| Status::internal(format!("the columns cannot be sent: {error}")))
    }

    async fn get(&self, ticket: &Ticket) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
        let command = command(&ticket.ticket, "the ticket")?;
        match &command {
            Command::TicketStatementQuery(ticket) => self.fetch(&ticket.statement_handle).await,
            // Some clients redeem the command itself.
            Command::CommandStatementQuery(query) => {
                let begun = self.begin(&self.parsed(&query.query)?).await?;
                self.stream(Arc::new(begun.waiting), None).await
            }
            Command::CommandStatementSubstraitPlan(query) => {
                let begun = self.begin(&self.planned(query)?).await?;
                self.stream(Arc::new(begun.waiting), None).await
            }
            Command::CommandPreparedStatementQuery(query) => {
                let begun = self.begin(&self.prepared(&query.prepared_statement_handle).await?).await?;
                self.stream(Arc::new(begun.waiting), None).await
            }
            _ => match self.metadata(&command).await? {
                Some(batch) => {
                    let waiting = Waiting::new(batch.schema(), RowsOf::Batches(vec![batch]));
                    self.stream(Arc::new(waiting), None).await
                }
                None => Err(unknown(&command)),
            },
        }
    }

    async fn put(&self, mut messages: BoxStream<'static, Result<FlightData, Status>>) -> Result<PutResult, Status> {
        let first = match messages.next().await {
            Some(first) => first?,
            None => return Err(malformed("the upload", "it holds no message")),
        };
        let descriptor = first.flight_descriptor.clone().unwrap_or_default();
        let command = command(&descriptor.cmd, "the descriptor")?;
        let has_rows = !first.data_header.is_empty();
        let messages = futures::stream::iter([Ok(first)]).chain(messages).boxed();
        let written = match &command {
            Command::CommandStatementUpdate(update) => self.update(&self.parsed(&update.query)?).await?,
            Command::CommandStatementSubstraitPlan(update) => self.update(&self.planned(update)?).await?,
            Command::CommandPreparedStatementQuery(query) => {
                let batches = if has_rows { Sent::read(messages).await?.collect().await? } else { vec![] };
                let handle = self.bind(&query.prepared_statement_handle, &batches).await?;
                let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) };
                return Ok(PutResult { app_metadata: result.encode_to_vec().into() });
            }
            Command::CommandPreparedStatementUpdate(update) => {
                let found = self.prepared_of(&update.prepared_statement_handle).await?;
                let batches = if has_rows { Sent::read(messages).await?.collect().await? } else { vec![] };
                let bound = match batches.iter().any(|batch| batch.num_columns() > 0) {
                    true => found.prepared.bind(self, &batches)?,
                    false => found.bound_by_handle(self)?,
                };
                self.update_prepared(found.prepared, bound).await?
            }
            Command::CommandStatementIngest(ingest) => self.ingest(ingest, Sent::read(messages).await?).await?,
            _ => return Err(unknown(&command)),
        };
        let result = DoPutUpdateResult { record_count: i64::try_from(written).unwrap_or(i64::MAX) };
        Ok(PutResult { app_metadata: result.encode_to_vec().into() })
    }
}

impl Service {
    /// The answer of a call; errors are counted.
    async fn told<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let answer = work.await;
        if let Err(status) = &answer {
            self.core.metrics.error(status.code());
        }
        answer
    }
}

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        self.told(async { self.log_in(request).await }).await
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        self.told(async {
            let (call, headers, _) = self.called(request).await?;
            let objects = call.session.engine.objects();
            let relations = objects.relations().await.map_err(|error| status_of(&error))?;
            let flight = |relation: engine::RelationInfo| {
                Ok(FlightInfo::new().with_descriptor(FlightDescriptor::new_path(vec![relation.schema, relation.name])))
            };
            Ok(headers.on(futures::stream::iter(relations.into_iter().map(flight)).boxed()))
        })
        .await
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        self.told(async {
            let (call, headers, descriptor) = self.called(request).await?;
            Ok(headers.on(Box::pin(call.flight_info(descriptor)).await?))
        })
        .await
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        self.told(async {
            let (call, headers, descriptor) = self.called(request).await?;
            Ok(headers.on(Box::pin(call.poll(descriptor)).await?))
        })
        .await
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        self.told(async {
            let (call, headers, descriptor) = self.called(request).await?;
            Ok(headers.on(Box::pin(call.schema(descriptor)).await?))
        })
        .await
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        self.told(async {
            let (call, headers, ticket) = self.called(request).await?;
            Ok(headers.on(Box::pin(call.get(&ticket)).await?))
        })
        .await
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        self.told(async {
            let (call, headers, messages) = self.called(request).await?;
            let result = Box::pin(call.put(messages.boxed())).await?;
            Ok(headers.on(futures::stream::iter([Ok(result)]).boxed()))
        })
        .await
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("exchange is not supported; send rows with an ingest, and fetch them with a query"))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        self.told(async { Box::pin(self.act(request)).await }).await
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        self.told(async {
            let (_, headers, _) = self.called(request).await?;
            Ok(headers.on(futures::stream::iter(actions::all().into_iter().map(Ok)).boxed()))
        })
        .await
    }
}
