//! A client of Flight SQL that keeps the time: arrow-flight's own, one connection each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::Ticket;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::{FlightSqlServiceClient, PreparedStatement};
use engine::arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, RecordBatch};
use engine::arrow::datatypes::{DataType, Field, Int64Type};
use futures::stream::TryStreamExt;
use tonic::transport::Channel;

use crate::Failure;
use crate::rates::Searcher;

/// What a stream of batches brought, and in which time.
pub struct Received {
    /// Rows of all batches.
    pub rows: usize,
    /// Bytes of their values.
    pub bytes: usize,
    /// From the request for the stream to its end.
    pub time: Duration,
}

/// Connects; `has_sessions` tells whether the server gives them out to whoever asks, and whether it must be asked.
///
/// # Errors
/// No server there.
pub async fn connect(uri: &str, has_sessions: bool) -> Result<FlightSqlServiceClient<Channel>, Failure> {
    let channel = Channel::from_shared(uri.to_owned())?.tcp_nodelay(true).connect().await?;
    let flight = FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut client = FlightSqlServiceClient::new_from_inner(flight);
    if has_sessions {
        client.handshake("bench", "").await?;
    }
    Ok(client)
}

/// Runs a query up to where its rows can be fetched.
///
/// # Errors
/// What the server says.
pub async fn ticket(client: &mut FlightSqlServiceClient<Channel>, sql: &str) -> Result<Ticket, Failure> {
    let info = client.execute(sql.to_owned(), None).await?;
    Ok(info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone()).ok_or("an endpoint has no ticket")?)
}

/// Fetches all batches and lets go of each.
///
/// # Errors
/// What the server says.
pub async fn receive(client: &mut FlightSqlServiceClient<Channel>, ticket: Ticket) -> Result<Received, Failure> {
    let start = Instant::now();
    let mut batches = client.do_get(ticket).await?;
    let (mut rows, mut bytes) = (0, 0);
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows();
        bytes += value_bytes(&batch)?;
    }
    Ok(Received { rows, bytes, time: start.elapsed() })
}

/// Bytes of the values of a batch, whatever it is a slice of.
fn value_bytes(batch: &RecordBatch) -> Result<usize, Failure> {
    let columns = batch.columns().iter();
    Ok(columns.map(|column| column.to_data().get_slice_memory_size()).sum::<Result<usize, _>>()?)
}

/// Vectors of `dim` values each.
///
/// # Errors
/// Values that are no whole number of vectors.
pub fn vectors_of(values: Float32Array, dim: usize) -> Result<FixedSizeListArray, Failure> {
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    Ok(FixedSizeListArray::try_new(item, i32::try_from(dim)?, Arc::new(values), None)?)
}

/// The ids in the first column of an answer.
async fn ids(client: &mut FlightSqlServiceClient<Channel>, ticket: Ticket) -> Result<Vec<i64>, Failure> {
    let batches: Vec<RecordBatch> = client.do_get(ticket).await?.try_collect().await?;
    Ok(batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().iter().copied()).collect())
}

/// A search that is prepared, its vector a parameter.
pub struct Prepared {
    client: FlightSqlServiceClient<Channel>,
    search: PreparedStatement<Channel>,
}

impl Prepared {
    /// A connection of its own. The answer of `sql` has ids in its first column; `$1` is the vector.
    ///
    /// # Errors
    /// What the server says.
    pub async fn new(uri: &str, sql: &str) -> Result<Self, Failure> {
        let mut client = connect(uri, true).await?;
        let search = client.prepare(sql.to_owned(), None).await?;
        Ok(Self { client, search })
    }

    async fn found(&mut self, query: &[f32]) -> Result<Vec<i64>, Failure> {
        let vector = vectors_of(Float32Array::from(query.to_vec()), query.len())?;
        self.search.set_parameters(RecordBatch::try_from_iter([("query", Arc::new(vector) as ArrayRef)])?)?;
        let info = self.search.execute().await?;
        let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone());
        ids(&mut self.client, ticket.ok_or("an endpoint has no ticket")?).await
    }
}

impl Searcher for Prepared {
    async fn nearest(&mut self, query: &[f32]) -> Result<Vec<i64>, String> {
        self.found(query).await.map_err(|error| error.to_string())
    }
}

/// A search of a server that takes no parameters: its vector is part of the text.
pub struct Text {
    client: FlightSqlServiceClient<Channel>,
    sql: String,
}

impl Text {
    /// As [`Prepared::new`].
    ///
    /// # Errors
    /// No server there.
    pub async fn new(uri: &str, sql: &str) -> Result<Self, Failure> {
        Ok(Self { client: connect(uri, false).await?, sql: sql.to_owned() })
    }

    async fn found(&mut self, query: &[f32]) -> Result<Vec<i64>, Failure> {
        let values: Vec<String> = query.iter().map(f32::to_string).collect();
        let ticket = ticket(&mut self.client, &self.sql.replace("$1", &format!("[{}]", values.join(", ")))).await?;
        ids(&mut self.client, ticket).await
    }
}

impl Searcher for Text {
    async fn nearest(&mut self, query: &[f32]) -> Result<Vec<i64>, String> {
        self.found(query).await.map_err(|error| error.to_string())
    }
}
