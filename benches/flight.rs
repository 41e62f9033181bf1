//! Rates over loopback: streaming beside a plain arrow-flight server that sends the same batches, prepared searches of
//! several clients at once, ingest.
//!
//! `cargo bench -p benches --bench flight -- [ROWS] [DIM]`
//!
//! Clients and servers share this process and its cores. A stream is `ROWS × (8 + 4·DIM)` bytes, copied once into messages
//! and twice by the sockets. The plain server has the batches in memory: what it reaches bounds what any server can.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket,
};
use benches::{Failure, median};
use engine::arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use engine::arrow::datatypes::{DataType, Field};
use engine::{Engine, EngineOptions, ImportMode, IngestTarget};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use server::{Client, ConnectOptions, ServerOptions};
use tokio::net::TcpListener;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

const ROWS: usize = 500_000;
const DIM: usize = 64;
const BATCH_ROWS: usize = 8_192;
const ROUNDS: usize = 7;
const SEARCHES: usize = 2_000;

fn main() -> Result<(), Failure> {
    let arguments = benches::arguments();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (rows, dim) = (number(0, ROWS)?, number(1, DIM)?);
    println!("machine: {}", benches::machine());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build()?;
    runtime.block_on(measure(rows, dim))
}

async fn measure(rows: usize, dim: usize) -> Result<(), Failure> {
    let engine = Engine::open("memory:", EngineOptions::default()).await?;
    let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), http: None, ..ServerOptions::default() };
    let listener = server::bind(&options).await?;
    let uri = format!("http://{}", listener.local_addr()?);
    tokio::spawn(server::serve_on(listener, engine.clone(), options, std::future::pending()));
    let client =
        Client::connect(&ConnectOptions { uri: uri.replace("http", "grpc"), ..ConnectOptions::default() }).await?;
    let batches = batches(rows, dim)?;
    ingest(&client, &batches).await?;
    stream(&engine, &uri).await?;
    for clients in [1, 8, 64] {
        searches(&uri, dim, clients).await?;
    }
    Ok(())
}

fn batches(rows: usize, dim: usize) -> Result<Vec<RecordBatch>, Failure> {
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    (0..rows)
        .step_by(BATCH_ROWS)
        .map(|start| {
            let count = BATCH_ROWS.min(rows - start);
            let ids: ArrayRef = Arc::new(Int64Array::from_iter_values((start..start + count).map(|id| id as i64)));
            let values = (start * dim..(start + count) * dim).map(|at| ((at * 7919) % 10_007) as f32 / 10_007.0 - 0.5);
            let vectors = Float32Array::from_iter_values(values);
            let vectors = FixedSizeListArray::try_new(Arc::clone(&item), dim as i32, Arc::new(vectors), None)?;
            Ok(RecordBatch::try_from_iter([("id", ids), ("emb", Arc::new(vectors) as ArrayRef)])?)
        })
        .collect()
}

async fn ingest(client: &Client, batches: &[RecordBatch]) -> Result<(), Failure> {
    let target = |table: &str| IngestTarget { schema: "public".into(), table: table.into(), mode: ImportMode::Replace };
    let mut times = vec![];
    let mut written = 0;
    for _ in 0..3 {
        let rows = futures::stream::iter(batches.to_vec().into_iter().map(Ok)).boxed();
        let start = Instant::now();
        written = client.ingest(&target("docs"), batches[0].schema(), rows).await?;
        times.push(start.elapsed());
    }
    let time = median(times).as_secs_f64();
    println!(
        "ingest into a database in memory: {:.2} million rows/s ({written} rows, median of 3)",
        written as f64 / time / 1e6
    );
    Ok(())
}

/// What a stream of batches brought, and in which time.
async fn received(channel: &Channel, ticket: Ticket, token: Option<&str>) -> Result<(usize, Duration), Failure> {
    let mut client = FlightServiceClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let mut request = Request::new(ticket);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.parse()?);
    }
    let start = Instant::now();
    let messages = client.do_get(request).await?.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut rows = FlightRecordBatchStream::new_from_flight_data(messages);
    let mut bytes = 0;
    while let Some(batch) = rows.try_next().await? {
        for column in batch.columns() {
            bytes += engine::arrow::array::Array::to_data(column).get_slice_memory_size()?;
        }
    }
    Ok((bytes, start.elapsed()))
}

async fn stream(engine: &Engine, uri: &str) -> Result<(), Failure> {
    let sql = "SELECT id, emb FROM docs";
    let same = engine.session().execute(sql).await?.collect().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let plain_uri = format!("http://{}", listener.local_addr()?);
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let plain =
        Server::builder().add_service(FlightServiceServer::new(Plain(same)).max_encoding_message_size(usize::MAX));
    tokio::spawn(plain.serve_with_incoming(incoming));
    let (ours, plain) = (channel(uri).await?, channel(&plain_uri).await?);
    let mut sql_client = FlightSqlServiceClient::new(ours.clone());
    sql_client.handshake("bench", "").await?;
    let token = format!("Bearer {}", sql_client.token().cloned().unwrap_or_default());
    let (mut our_times, mut plain_times, mut ratios, mut bytes) = (vec![], vec![], vec![], 0);
    for _ in 0..ROUNDS {
        let info = sql_client.execute(sql.to_owned(), None).await?;
        let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone()).ok_or("an endpoint")?;
        let (received_bytes, time) = received(&ours, ticket, Some(&token)).await?;
        let (plain_bytes, plain_time) = received(&plain, Ticket::new("all"), None).await?;
        assert_eq!(received_bytes, plain_bytes, "both send the same");
        bytes = received_bytes;
        ratios.push(plain_time.as_secs_f64() / time.as_secs_f64());
        our_times.push(time);
        plain_times.push(plain_time);
    }
    ratios.sort_by(f64::total_cmp);
    let rate = |times| bytes as f64 / median(times).as_secs_f64() / 1e6;
    println!(
        "stream of {} MB, scanned anew each time: {:.0} MB/s; a plain server with the batches in memory: {:.0} MB/s; {:.0}% (median of {ROUNDS} pairs)",
        bytes / 1_000_000,
        rate(our_times),
        rate(plain_times),
        ratios[ratios.len() / 2] * 100.0
    );
    Ok(())
}

async fn channel(uri: &str) -> Result<Channel, Failure> {
    Ok(Channel::from_shared(uri.to_owned())?.tcp_nodelay(true).connect().await?)
}

/// Exact searches over the whole table, each with a vector of its own: bind, information, rows.
async fn searches(uri: &str, dim: usize, clients: usize) -> Result<(), Failure> {
    let per_client = (SEARCHES / clients / if clients == 1 { 4 } else { 2 }).max(8);
    let start = Instant::now();
    let workers: Vec<_> = (0..clients)
        .map(|worker| {
            let uri = uri.to_owned();
            tokio::spawn(
                async move { worker_times(&uri, dim, worker, per_client).await.map_err(|error| error.to_string()) },
            )
        })
        .collect();
    let mut times = vec![];
    for worker in workers {
        times.extend(worker.await??);
    }
    let elapsed = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e3;
    println!(
        "prepared search, k = 10, exact, {clients} clients: {:.0} queries/s, p50 {:.2} ms, p99 {:.2} ms",
        times.len() as f64 / elapsed,
        at(50),
        at(99)
    );
    Ok(())
}

async fn worker_times(uri: &str, dim: usize, worker: usize, count: usize) -> Result<Vec<Duration>, Failure> {
    let mut client = FlightSqlServiceClient::new(channel(uri).await?);
    client.handshake("bench", "").await?;
    let sql = "SELECT id FROM docs WHERE id < 10000 ORDER BY emb <-> $1 LIMIT 10";
    let mut prepared = client.prepare(sql.to_owned(), None).await?;
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    let mut times = vec![];
    for number in 0..count {
        let values = Float32Array::from_iter_values((0..dim).map(|at| ((worker * 31 + number * 7 + at) as f32).sin()));
        let vector = FixedSizeListArray::try_new(Arc::clone(&item), dim as i32, Arc::new(values), None)?;
        let batch = RecordBatch::try_from_iter([("q", Arc::new(vector) as ArrayRef)])?;
        let start = Instant::now();
        prepared.set_parameters(batch)?;
        let info = prepared.execute().await?;
        let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone()).ok_or("an endpoint")?;
        let found: Vec<RecordBatch> = client.do_get(ticket).await?.try_collect().await?;
        times.push(start.elapsed());
        assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 10);
    }
    Ok(times)
}

/// A server that sends its batches, whatever is asked.
struct Plain(Vec<RecordBatch>);

type Answers<T> = BoxStream<'static, Result<T, Status>>;

fn nothing<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the plain server streams, and no more"))
}

#[tonic::async_trait]
impl FlightService for Plain {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let batches = futures::stream::iter(self.0.clone().into_iter().map(Ok));
        let messages =
            FlightDataEncoderBuilder::new().build(batches).map_err(|error| Status::internal(error.to_string()));
        Ok(Response::new(messages.boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        nothing()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        nothing()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        nothing()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        nothing()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        nothing()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        nothing()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        nothing()
    }

    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        nothing()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        nothing()
    }
}
