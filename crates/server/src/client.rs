//! A client of Flight SQL servers, with the answers and errors of the engine: the shell uses it as it uses a session.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{
    CommandGetTables, CommandStatementIngest, CommandStatementQuery, DoPutUpdateResult, ProstMessageExt,
    TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::{Action, CancelFlightInfoRequest, FlightDescriptor, FlightInfo, HandshakeRequest, Ticket};
use engine::{Answer, Done, Error, ErrorKind, ImportMode, IngestTarget, Progress, Rows, TableWords};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use prost::Message;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::messages::Outcome;
use crate::status::error_of;

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// Where a server is, and who connects.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// `grpc://host:port`, or `grpc+tls://host:port`.
    pub uri: String,
    /// A user's name and password.
    pub login: Option<(String, String)>,
    /// A token in place of them.
    pub token: Option<String>,
    /// PEM: the authority that signed the server's certificate, if the system does not know it.
    pub server_ca: Option<Vec<u8>>,
    /// PEM: the client's certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// A connection with its session. Cheap to clone; clones share the session.
#[derive(Clone)]
pub struct Client {
    flight: FlightServiceClient<Channel>,
    authorization: MetadataValue<Ascii>,
    location: String,
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

impl Client {
    /// Connects and opens a session.
    ///
    /// # Errors
    /// An address that is none, a server that does not answer, a name or a password that is wrong.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, Error> {
        let channel = endpoint(options)?.connect().await.map_err(|error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::new(
                ErrorKind::Unavailable,
                format!("cannot connect to {}: {why}; is a server running there?", options.uri),
            )
        })?;
        let mut flight = FlightServiceClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        let shown = match (&options.token, &options.login) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some((user, password))) => {
                use base64::Engine as _;
                Some(format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"))))
            }
            (None, None) => None,
        };
        let mut request = Request::new(futures::stream::iter([HandshakeRequest::default()]));
        if let Some(shown) = shown {
            let value = MetadataValue::try_from(shown)
                .map_err(|_| invalid("the user name, password or token has letters that cannot be sent".to_owned()))?;
            request.metadata_mut().insert("authorization", value);
        }
        let response = flight.handshake(request).await.map_err(|status| error_of(&status))?;
        let authorization = response.metadata().get("authorization").cloned();
        let authorization = authorization.ok_or_else(|| {
            invalid(format!("{} answered the handshake without a token; is it a Sagitta server?", options.uri))
        })?;
        Ok(Self { flight, authorization, location: options.uri.clone() })
    }

    /// Where the server is.
    pub fn location(&self) -> &str {
        &self.location
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// What the server says.
    pub async fn execute(&self, sql: &str) -> Result<Answer, Error> {
        let command = CommandStatementQuery { query: sql.to_owned(), transaction_id: None };
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let progress = Progress::new();
        let info = self.poll(descriptor).await?;
        let schema = info
            .clone()
            .try_decode_schema()
            .map_err(|error| invalid(format!("the columns cannot be read: {error}")))?;
        if let Some(done) = done_of(&info, &schema) {
            return Ok(Answer::Done(done));
        }
        let mut streams = vec![];
        for endpoint in &info.endpoint {
            let ticket = endpoint.ticket.clone().unwrap_or_default();
            streams.push(self.fetch(ticket).await?);
        }
        let rows = futures::stream::iter(streams).flatten().boxed();
        Ok(Answer::Rows(Rows::of_stream(Arc::new(schema), rows, progress)))
    }

    /// Polls until the answer is there; if nobody waits any more, the statement is cancelled.
    async fn poll(&self, mut descriptor: FlightDescriptor) -> Result<FlightInfo, Error> {
        let mut cancel = CancelOnDrop { client: self.clone(), info: None };
        loop {
            let polled = self.flight.clone().poll_flight_info(self.request(descriptor)).await;
            let polled = polled.map_err(|status| error_of(&status))?.into_inner();
            let info = polled.info.unwrap_or_default();
            match polled.flight_descriptor {
                None => {
                    cancel.info = None;
                    return Ok(info);
                }
                Some(next) => {
                    cancel.info = Some(info.with_descriptor(next.clone()));
                    descriptor = next;
                }
            }
        }
    }

    async fn fetch(&self, ticket: Ticket) -> Result<BoxStream<'static, Result<RecordBatch, Error>>, Error> {
        let response = self.flight.clone().do_get(self.request(ticket)).await.map_err(|status| error_of(&status))?;
        let messages = response.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
        let rows = FlightRecordBatchStream::new_from_flight_data(messages);
        Ok(rows.map_err(|error| flight_error(&error)).boxed())
    }

    /// Writes rows into a table of the server, in one version. Returns the number of rows.
    ///
    /// # Errors
    /// What the server says; nothing is written then.
    pub async fn ingest(
        &self,
        target: &IngestTarget,
        schema: SchemaRef,
        rows: BoxStream<'static, Result<RecordBatch, Error>>,
    ) -> Result<u64, Error> {
        let (if_not_exist, if_exists) = match target.mode {
            ImportMode::Create => (TableNotExistOption::Create, TableExistsOption::Fail),
            ImportMode::Append => (TableNotExistOption::Fail, TableExistsOption::Append),
            ImportMode::CreateOrAppend => (TableNotExistOption::Create, TableExistsOption::Append),
            ImportMode::Replace => (TableNotExistOption::Create, TableExistsOption::Replace),
        };
        let command = CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: if_not_exist as i32,
                if_exists: if_exists as i32,
            }),
            table: target.table.clone(),
            schema: Some(target.schema.clone()),
            ..CommandStatementIngest::default()
        };
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let failed = Arc::new(std::sync::Mutex::new(None));
        let noted = Arc::clone(&failed);
        let messages = FlightDataEncoderBuilder::new()
            .with_schema(schema)
            .with_flight_descriptor(Some(descriptor))
            .build(rows.map_err(|error| FlightError::ExternalError(Box::new(error))))
            .map(move |message| match message {
                Ok(message) => Some(message),
                Err(error) => {
                    *crate::sessions::locked(&noted) = Some(flight_error(&error));
                    None
                }
            });
        // A stream that fails must not look like one that has ended: the call is dropped, and the server keeps nothing.
        let stop = Arc::clone(&failed);
        let messages = messages.take_while(move |message| {
            let goes_on = message.is_some();
            let stop = Arc::clone(&stop);
            async move {
                if !goes_on {
                    let _ = stop;
                    std::future::pending::<()>().await;
                }
                goes_on
            }
        });
        let messages = messages.filter_map(std::future::ready);
        let mut flight = self.flight.clone();
        let put = flight.do_put(self.request(messages));
        let watched = async {
            loop {
                if let Some(error) = crate::sessions::locked(&failed).take() {
                    return error;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let response = tokio::select! {
            response = put => response.map_err(|status| error_of(&status))?,
            error = watched => return Err(error),
        };
        let result = response.into_inner().message().await.map_err(|status| error_of(&status))?.unwrap_or_default();
        let result = DoPutUpdateResult::decode(result.app_metadata)
            .map_err(|error| invalid(format!("the server's answer cannot be read: {error}")))?;
        Ok(u64::try_from(result.record_count).unwrap_or(0))
    }

    /// The tables and views of the server with their columns.
    ///
    /// # Errors
    /// What the server says.
    pub async fn tables(&self) -> Result<Vec<TableWords>, Error> {
        let command = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
        let mut batches = self.fetch(Ticket::new(command.as_any().encode_to_vec())).await?;
        let mut words = vec![];
        while let Some(batch) = batches.try_next().await? {
            let (schemas, tables, columns) = (
                batch.column(1).as_string::<i32>(),
                batch.column(2).as_string::<i32>(),
                batch.column(4).as_binary::<i32>(),
            );
            for row in 0..batch.num_rows() {
                let schema =
                    Schema::try_from(arrow_flight::IpcMessage(bytes::Bytes::copy_from_slice(columns.value(row))));
                let columns = schema.map(|schema| schema.fields().iter().map(|field| field.name().clone()).collect());
                words.push(TableWords {
                    schema: schemas.value(row).to_owned(),
                    table: tables.value(row).to_owned(),
                    columns: columns.unwrap_or_default(),
                });
            }
        }
        Ok(words)
    }
}

/// Tells the server that nobody waits for a statement any more.
struct CancelOnDrop {
    client: Client,
    info: Option<FlightInfo>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let (Some(info), Ok(runtime)) = (self.info.take(), tokio::runtime::Handle::try_current()) else { return };
        let client = self.client.clone();
        runtime.spawn(async move {
            let body = CancelFlightInfoRequest { info: Some(info) }.encode_to_vec();
            let action = Action { r#type: "CancelFlightInfo".to_owned(), body: body.into() };
            // Whether it was in time, nobody asks.
            let _ = client.flight.clone().do_action(client.request(action)).await;
        });
    }
}

/// What a statement without rows did; nothing for one with rows.
fn done_of(info: &FlightInfo, schema: &Schema) -> Option<Done> {
    let outcome = info.endpoint.first().and_then(|endpoint| Outcome::decode(endpoint.app_metadata.clone()).ok());
    match outcome {
        Some(outcome) if !outcome.tag.is_empty() => Some(Done { tag: outcome.tag, rows: outcome.rows }),
        _ => schema.fields().is_empty().then(|| Done { tag: "DONE".to_owned(), rows: None }),
    }
}

fn flight_error(error: &FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => error_of(status),
        FlightError::ExternalError(inner) => match inner.downcast_ref::<Error>() {
            Some(inner) => Error {
                place: inner.place.clone(),
                hint: inner.hint.clone(),
                ..Error::new(inner.kind, inner.message.clone())
            },
            None => invalid(inner.to_string()),
        },
        other => Error::new(ErrorKind::Unavailable, format!("the connection broke: {other}")),
    }
}

fn endpoint(options: &ConnectOptions) -> Result<Endpoint, Error> {
    let expected = || {
        invalid(format!("{} is no address of a server; write grpc://host:port or grpc+tls://host:port", options.uri))
    };
    let (scheme, rest) = options.uri.split_once("://").ok_or_else(expected)?;
    let is_encrypted = match scheme {
        "grpc" | "grpc+tcp" | "sagitta" => false,
        "grpc+tls" | "grpcs" | "sagitta+tls" => true,
        _ => return Err(expected()),
    };
    let uri = format!("{}://{}", if is_encrypted { "https" } else { "http" }, rest.trim_end_matches('/'));
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|_| expected())?
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .user_agent(concat!("sagitta/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| invalid(error.to_string()))?;
    if !is_encrypted {
        return Ok(endpoint);
    }
    crate::serve::choose_cryptography();
    let mut tls = ClientTlsConfig::new();
    if let Some(authority) = &options.server_ca {
        tls = tls.ca_certificate(Certificate::from_pem(authority));
    }
    if let Some((certificate, key)) = &options.identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    endpoint.tls_config(tls).map_err(|error| invalid(format!("the certificates cannot be used: {error}")))
}
