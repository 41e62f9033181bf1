//! The call that carries rows, `DoGet`. As tonic generates it, each message is copied into a buffer that is made anew for it;
//! here the body of a message goes to the connection as it was encoded. All other calls are tonic's.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{FlightData, Ticket};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::TryStreamExt;
use http_body::{Body, Frame};
use prost::Message;
use tonic::codec::{DecodeBuf, Decoder};
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{self, HeaderMap};
use tonic::codegen::{BoxFuture, Service as Call, StdError};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};

use crate::service::Service;

const DO_GET: &str = "/arrow.flight.protocol.FlightService/DoGet";
/// A smaller body is copied behind its head: one frame costs less than two.
const APART_BYTES_MIN: usize = 16 << 10;
/// The flag of a message that is not compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// How the field `data_body` of a message begins, before its length. It is the last one.
const DATA_BODY_KEY: [u8; 2] = [0xc2, 0x3e];

/// The Flight service on a connection.
#[derive(Clone)]
pub(crate) struct Calls {
    service: Service,
    generated: FlightServiceServer<Service>,
    message_bytes_max: usize,
}

impl Calls {
    /// `message_bytes_max`: of a message of a client.
    pub(crate) fn new(service: Service, message_bytes_max: usize) -> Self {
        let generated = FlightServiceServer::new(service.clone())
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(usize::MAX);
        Self { service, generated, message_bytes_max }
    }
}

impl NamedService for Calls {
    const NAME: &'static str = <FlightServiceServer<Service> as NamedService>::NAME;
}

impl<B> Call<http::Request<B>> for Calls
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Call::<http::Request<B>>::poll_ready(&mut self.generated, context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let encoding = request.headers().get("grpc-encoding");
        let is_compressed = encoding.is_some_and(|encoding| encoding != "identity");
        if request.uri().path() != DO_GET || is_compressed {
            return self.generated.call(request);
        }
        let calls = self.clone();
        Box::pin(async move { Ok(calls.do_get(request).await.unwrap_or_else(Status::into_http)) })
    }
}

impl Calls {
    async fn do_get<B>(&self, request: http::Request<B>) -> Result<http::Response<tonic::body::Body>, Status>
    where
        B: Body + Send + 'static,
        B::Error: Into<StdError>,
    {
        let (parts, body) = request.into_parts();
        let mut tickets = Streaming::new_request(Tickets, body, None, Some(self.message_bytes_max));
        let ticket = tickets.try_next().await?.ok_or_else(|| Status::internal("the call has no ticket"))?;
        let request = Request::from_http(http::Request::from_parts(parts, ticket));
        let (metadata, messages, extensions) = self.service.do_get(request).await?.into_parts();
        let mut response =
            http::Response::new(tonic::body::Body::new(Messages { messages, body: None, is_over: false }));
        *response.headers_mut() = metadata.into_headers();
        response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
        *response.extensions_mut() = extensions;
        Ok(response)
    }
}

/// Reads the one message of a call.
struct Tickets;

impl Decoder for Tickets {
    type Item = Ticket;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Ticket>, Status> {
        Ticket::decode(bytes).map(Some).map_err(|error| crate::status::malformed("the ticket", error))
    }
}

/// The body of an answer: each message is its head and, where it is worth it, its body apart.
struct Messages {
    messages: <Service as FlightService>::DoGetStream,
    /// The body that belongs to the head that was given out last.
    body: Option<Bytes>,
    is_over: bool,
}

impl Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(body) = self.body.take() {
            return Poll::Ready(Some(Ok(Frame::data(body))));
        }
        if self.is_over {
            return Poll::Ready(None);
        }
        let outcome = match ready!(self.messages.as_mut().poll_next(context)) {
            Some(Ok(message)) => match framed(message) {
                Ok((head, body)) => {
                    self.body = body;
                    return Poll::Ready(Some(Ok(Frame::data(head))));
                }
                Err(status) => status,
            },
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.is_over = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(outcome.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

/// A message as gRPC sends it: what comes before its body, and the body, unless it is small and follows at once.
fn framed(mut message: FlightData) -> Result<(Bytes, Option<Bytes>), Status> {
    let body = std::mem::take(&mut message.data_body);
    let is_apart = body.len() >= APART_BYTES_MIN;
    let head_bytes =
        PREFIX_BYTES + message.encoded_len() + DATA_BODY_KEY.len() + prost::length_delimiter_len(body.len());
    let mut head = BytesMut::with_capacity(head_bytes + if is_apart { 0 } else { body.len() });
    head.put_bytes(0, PREFIX_BYTES);
    let failed = |error: prost::EncodeError| Status::internal(format!("a message cannot be framed: {error}"));
    message.encode(&mut head).map_err(failed)?;
    if !body.is_empty() {
        head.put_slice(&DATA_BODY_KEY);
        prost::encode_length_delimiter(body.len(), &mut head).map_err(failed)?;
    }
    let length = u32::try_from(head.len() - PREFIX_BYTES + body.len())
        .map_err(|_| Status::resource_exhausted("one row has more than 4 GB; fetch its columns one by one"))?;
    head[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    if is_apart {
        return Ok((head.freeze(), Some(body)));
    }
    head.put_slice(&body);
    Ok((head.freeze(), None))
}

#[cfg(test)]
mod tests {
    use arrow_flight::FlightDescriptor;

    use super::*;

    #[test]
    fn a_framed_message_is_what_tonic_would_send() {
        for length in [0, 1, 127, 128, APART_BYTES_MIN - 1, APART_BYTES_MIN, 3 << 20] {
            let message = FlightData {
                flight_descriptor: (length == 1).then(|| FlightDescriptor::new_cmd("x")),
                data_header: vec![1_u8; 300].into(),
                app_metadata: if length == 127 { "metadata".into() } else { Bytes::new() },
                data_body: (0..length).map(|at| at as u8).collect::<Vec<_>>().into(),
            };
            let whole = message.encode_to_vec();
            let mut expected = vec![0];
            expected.extend_from_slice(&(whole.len() as u32).to_be_bytes());
            expected.extend_from_slice(&whole);
            let body_at = message.data_body.as_ptr();
            let (head, body) = framed(message).unwrap();
            assert_eq!(body.as_ref().map(|body| body.as_ptr()), (length >= APART_BYTES_MIN).then_some(body_at));
            assert!([head, body.unwrap_or_default()].concat() == expected, "{length} bytes");
        }
    }
}
