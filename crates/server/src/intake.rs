//! What clients send is counted before it is there: the length of a gRPC message stands in front of it, and the rest of a
//! large one is not read before there is memory for it. The client waits meanwhile, as HTTP/2 lets it.
//!
//! A message that finds no memory waits for its turn; one at a time is read all the same, for what was sent before it may
//! hold the memory that it waits for. So the memory is exceeded by one message at most, and no two wait for each other.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use engine::{Engine, Held};
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tonic::Status;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// Smaller messages are not counted: a connection's own buffers hold as much.
const COUNTED_BYTES_MIN: usize = 64 << 10;
/// The flag and the length in front of a message.
const PREFIX_BYTES: usize = 5;
/// Messages of one call that are in memory: the rows of one are being stored while the next is read.
const MESSAGES_HELD: usize = 2;
/// How long a message that is the next to be read waits for memory, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What all calls share.
#[derive(Clone)]
struct Gate {
    engine: Engine,
    /// Whoever has it is the next to be read.
    turn: Arc<Mutex<()>>,
    wait: Duration,
    patience: Duration,
}

/// Memory of a message; the turn, if it is read without there being any.
struct Passed {
    held: Held,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Gate {
    /// Memory for a message.
    ///
    /// # Errors
    /// Others waited too, for too long.
    async fn pass(self, bytes: usize) -> Result<Passed, Status> {
        let hold = || self.engine.hold(None, bytes, "a message");
        if let Ok(held) = hold() {
            return Ok(Passed { held, turn: None });
        }
        let turn = tokio::time::timeout(self.wait, Arc::clone(&self.turn).lock_owned()).await.map_err(|_| {
            Status::resource_exhausted(format!(
                "a message of {bytes} bytes waited {} s for memory and was refused; send smaller ones, or try again in a moment",
                self.wait.as_secs_f64()
            ))
        })?;
        let looked = async {
            loop {
                if let Ok(held) = hold() {
                    return held;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        Ok(match tokio::time::timeout(self.patience, looked).await {
            Ok(held) => Passed { held, turn: None },
            Err(_) => Passed { held: self.engine.hold_anyway(None, bytes), turn: Some(turn) },
        })
    }
}

/// A service whose clients' messages are counted.
#[derive(Clone)]
pub(crate) struct Intake<S> {
    inner: S,
    gate: Gate,
}

impl<S> Intake<S> {
    /// `wait`: how long a message may wait for others that wait for memory.
    pub(crate) fn new(inner: S, engine: Engine, wait: Duration) -> Self {
        Self { inner, gate: Gate { engine, turn: Arc::default(), wait, patience: PATIENCE } }
    }
}

impl<S: NamedService> NamedService for Intake<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Intake<S>
where
    S: Service<http::Request<Counted<B>>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let gate = self.gate.clone();
        self.inner.call(request.map(|body| Counted {
            body: Box::pin(body),
            gate,
            prefix: Prefix::default(),
            passing: None,
            held: VecDeque::new(),
            turn: None,
        }))
    }
}

/// Where messages begin in the bytes of a call.
#[derive(Debug, Default)]
struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    filled: usize,
    /// Bytes of the message that are still to come.
    rest: usize,
}

impl Prefix {
    /// Goes over what has come; the length of a message that has begun in it and is not complete.
    fn read(&mut self, mut data: &[u8]) -> Option<usize> {
        let mut begun = None;
        while !data.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(data.len());
                self.rest -= skipped;
                data = &data[skipped..];
                if self.rest == 0 {
                    begun = None;
                }
                continue;
            }
            let taken = (PREFIX_BYTES - self.filled).min(data.len());
            self.bytes[self.filled..self.filled + taken].copy_from_slice(&data[..taken]);
            self.filled += taken;
            data = &data[taken..];
            if self.filled == PREFIX_BYTES {
                let [_, a, b, c, d] = self.bytes;
                let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                (self.filled, self.rest) = (0, length);
                begun = (length > 0).then_some(length);
            }
        }
        begun
    }
}

/// The bytes of a call, whose messages are counted.
pub(crate) struct Counted<B> {
    body: Pin<Box<B>>,
    gate: Gate,
    prefix: Prefix,
    passing: Option<BoxFuture<'static, Result<Passed, Status>>>,
    held: VecDeque<Held>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl<B> Body for Counted<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(passing) = &mut self.passing {
            let passed = ready!(passing.poll_unpin(context));
            self.passing = None;
            match passed {
                Ok(Passed { held, turn }) => {
                    self.held.push_back(held);
                    self.turn = turn;
                }
                Err(status) => return Poll::Ready(Some(Err(status.into()))),
            }
        }
        let frame = match ready!(self.body.as_mut().poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref() {
            let begun = self.prefix.read(data);
            if begun.is_some() || self.prefix.rest == 0 {
                self.turn = None;
            }
            if let Some(bytes) = begun {
                while self.held.len() >= MESSAGES_HELD {
                    self.held.pop_front();
                }
                if bytes >= COUNTED_BYTES_MIN {
                    self.passing = Some(self.gate.clone().pass(bytes).boxed());
                }
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_their_bytes_come() {
        let message = |length: usize| {
            let mut bytes = vec![0];
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
            bytes.extend(std::iter::repeat_n(7, length));
            bytes
        };
        let all: Vec<u8> = [3, 0, 1000, 70_000, 5].into_iter().flat_map(message).collect();
        for step in [1, 2, 5, 7, 1000, 16_384, all.len()] {
            let mut prefix = Prefix::default();
            let found: Vec<usize> = all.chunks(step).filter_map(|data| prefix.read(data)).collect();
            assert_eq!((prefix.rest, prefix.filled), (0, 0), "in steps of {step}");
            assert_eq!(found.contains(&70_000), step < 70_000, "in steps of {step}: {found:?}");
        }
    }

    #[tokio::test]
    async fn one_message_alone_is_read_without_memory_and_the_next_waits() {
        let options = engine::EngineOptions { memory_limit_bytes: Some(64 << 20), ..Default::default() };
        let engine = Engine::open("memory:", options).await.unwrap();
        let (wait, patience) = (Duration::from_millis(50), Duration::from_millis(1));
        let gate = Gate { engine: engine.clone(), turn: Arc::default(), wait, patience };
        let limit = usize::try_from(engine.figures().memory_limit_bytes).unwrap();
        let all = gate.clone().pass(limit).await.unwrap();
        assert!(all.turn.is_none());
        let first = gate.clone().pass(1 << 20).await.unwrap();
        assert!(first.turn.is_some());
        let refused = gate.clone().pass(1 << 20).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(first);
        drop(all);
        assert!(gate.pass(1 << 20).await.unwrap().turn.is_none());
        assert_eq!(engine.figures().memory_reserved_bytes, 0);
    }
}
