//! A client of Flight SQL that shows every status as it comes.

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    Any, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTables, CommandPreparedStatementQuery,
    CommandStatementIngest, CommandStatementQuery, CommandStatementUpdate, DoPutUpdateResult, ProstMessageExt,
    TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, PollInfo, Ticket,
};
use benches::Failure;
use engine::arrow::array::RecordBatch;
use engine::arrow::datatypes::SchemaRef;
use futures::stream::{StreamExt, TryStreamExt};
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// A connection with a session of its own.
pub struct Client {
    flight: FlightServiceClient<Channel>,
    authorization: MetadataValue<Ascii>,
}

/// The rows of an answer.
pub type Rows = FlightRecordBatchStream;

/// The status of an error on the way.
pub fn status_of(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => Status::internal(format!("the client cannot read what came: {other}")),
    }
}

fn broken(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("the client cannot read what came: {error}"))
}

impl Client {
    pub async fn connect(uri: &str) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(uri.to_owned()).map_err(broken)?.tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|error| Status::unknown(format!("no connection: {error:?}")))?;
        let mut flight = FlightServiceClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        let request = Request::new(futures::stream::iter([HandshakeRequest::default()]));
        let response = flight.handshake(request).await?;
        let authorization = response.metadata().get("authorization").cloned();
        let authorization = authorization.ok_or_else(|| broken("the handshake gave no token"))?;
        Ok(Self { flight, authorization })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }

    async fn info(&self, command: Any) -> Result<FlightInfo, Status> {
        let descriptor = FlightDescriptor::new_cmd(command.encode_to_vec());
        Ok(self.flight.clone().get_flight_info(self.request(descriptor)).await?.into_inner())
    }

    /// Asks for a statement to be planned.
    pub async fn plan(&self, sql: &str) -> Result<FlightInfo, Status> {
        self.info(CommandStatementQuery { query: sql.to_owned(), transaction_id: None }.as_any()).await
    }

    /// The rows behind an information.
    pub async fn fetch(&self, info: &FlightInfo) -> Result<Rows, Status> {
        let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone());
        self.get(ticket.ok_or_else(|| broken("no ticket"))?).await
    }

    async fn get(&self, ticket: Ticket) -> Result<Rows, Status> {
        let messages = self.flight.clone().do_get(self.request(ticket)).await?.into_inner();
        Ok(Rows::new_from_flight_data(messages.map_err(|status| FlightError::Tonic(Box::new(status)))))
    }

    /// Runs a query.
    pub async fn query(&self, sql: &str) -> Result<Rows, Status> {
        let info = self.plan(sql).await?;
        self.fetch(&info).await
    }

    /// All rows of a query.
    pub async fn rows(&self, sql: &str) -> Result<Vec<RecordBatch>, Status> {
        self.query(sql).await?.try_collect().await.map_err(status_of)
    }

    async fn put(&self, messages: impl futures::Stream<Item = FlightData> + Send + 'static) -> Result<Vec<u8>, Status> {
        let mut answer = self.flight.clone().do_put(self.request(messages)).await?.into_inner();
        Ok(answer.message().await?.unwrap_or_default().app_metadata.to_vec())
    }

    /// Runs a statement that changes something; the number of rows.
    pub async fn update(&self, sql: &str) -> Result<i64, Status> {
        let command = CommandStatementUpdate { query: sql.to_owned(), transaction_id: None };
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let message = FlightData::new().with_descriptor(descriptor);
        let answer = self.put(futures::stream::iter([message])).await?;
        Ok(DoPutUpdateResult::decode(&*answer).map_err(broken)?.record_count)
    }

    /// Prepares a statement; its handle.
    pub async fn prepare(&self, sql: &str) -> Result<Vec<u8>, Status> {
        let request = ActionCreatePreparedStatementRequest { query: sql.to_owned(), transaction_id: None };
        let answer = self.act("CreatePreparedStatement", request.as_any().encode_to_vec()).await?;
        let any = Any::decode(&*answer).map_err(broken)?;
        let result = ActionCreatePreparedStatementResult::decode(&*any.value).map_err(broken)?;
        Ok(result.prepared_statement_handle.to_vec())
    }

    pub async fn close_prepared(&self, handle: &[u8]) -> Result<(), Status> {
        let request = ActionClosePreparedStatementRequest { prepared_statement_handle: handle.to_vec().into() };
        self.act("ClosePreparedStatement", request.as_any().encode_to_vec()).await.map(drop)
    }

    /// Binds values and runs a prepared query.
    pub async fn run(&self, handle: &[u8], values: RecordBatch) -> Result<Vec<RecordBatch>, Status> {
        let command = CommandPreparedStatementQuery { prepared_statement_handle: handle.to_vec().into() }.as_any();
        let descriptor = FlightDescriptor::new_cmd(command.encode_to_vec());
        let (schema, batches) = (values.schema(), vec![values]);
        self.put(encoded(schema, batches, descriptor)?).await?;
        let info = self.info(command).await?;
        self.fetch(&info).await?.try_collect().await.map_err(status_of)
    }

    /// Sends rows into a table; the number that was acknowledged.
    pub async fn ingest(
        &self,
        table: &str,
        is_new: bool,
        schema: SchemaRef,
        rows: Vec<RecordBatch>,
    ) -> Result<i64, Status> {
        let (if_not_exist, if_exists) = match is_new {
            true => (TableNotExistOption::Create, TableExistsOption::Fail),
            false => (TableNotExistOption::Fail, TableExistsOption::Append),
        };
        let options = TableDefinitionOptions { if_not_exist: if_not_exist as i32, if_exists: if_exists as i32 };
        let command = CommandStatementIngest {
            table_definition_options: Some(options),
            table: table.to_owned(),
            ..CommandStatementIngest::default()
        };
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let answer = self.put(encoded(schema, rows, descriptor)?).await?;
        Ok(DoPutUpdateResult::decode(&*answer).map_err(broken)?.record_count)
    }

    /// Begins or goes on with a polled statement.
    pub async fn poll(&self, descriptor: FlightDescriptor) -> Result<PollInfo, Status> {
        Ok(self.flight.clone().poll_flight_info(self.request(descriptor)).await?.into_inner())
    }

    /// What is polled first.
    pub fn polled(sql: &str) -> FlightDescriptor {
        let command = CommandStatementQuery { query: sql.to_owned(), transaction_id: None };
        FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
    }

    pub async fn cancel(&self, info: FlightInfo) -> Result<(), Status> {
        let request = CancelFlightInfoRequest { info: Some(info) };
        self.act("CancelFlightInfo", request.encode_to_vec()).await.map(drop)
    }

    /// What clients ask for when they connect.
    pub async fn metadata(&self) -> Result<usize, Status> {
        let commands = [
            CommandGetSqlInfo { info: vec![] }.as_any(),
            CommandGetDbSchemas::default().as_any(),
            CommandGetTables { include_schema: true, ..CommandGetTables::default() }.as_any(),
        ];
        let mut rows = 0;
        for command in commands {
            let info = self.info(command).await?;
            let mut batches = self.fetch(&info).await?;
            while let Some(batch) = batches.next().await {
                rows += batch.map_err(status_of)?.num_rows();
            }
        }
        Ok(rows)
    }

    /// Closes the session.
    pub async fn close(&self) -> Result<(), Status> {
        self.act("CloseSession", vec![]).await.map(drop)
    }

    async fn act(&self, name: &str, body: Vec<u8>) -> Result<Vec<u8>, Status> {
        let action = Action { r#type: name.to_owned(), body: body.into() };
        let mut answer = self.flight.clone().do_action(self.request(action)).await?.into_inner();
        Ok(answer.message().await?.map(|result| result.body.to_vec()).unwrap_or_default())
    }
}

/// The messages of some batches. They are there already: nothing can fail on the way.
fn encoded(
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    descriptor: FlightDescriptor,
) -> Result<impl futures::Stream<Item = FlightData> + Send + 'static, Status> {
    let messages = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_flight_descriptor(Some(descriptor))
        .build(futures::stream::iter(batches.into_iter().map(Ok)));
    Ok(messages.filter_map(|message| std::future::ready(message.ok())))
}

/// All of a text that went wrong, for the program's own mistakes.
pub fn failure(status: Status) -> Failure {
    format!("{:?}: {}", status.code(), status.message()).into()
}
