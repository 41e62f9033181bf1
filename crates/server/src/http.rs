//! What a server says over HTTP: whether it lives, whether it takes work, and its metrics. No rows and no SQL.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, Sleep};

use crate::metrics::{self, Metrics};

/// Connections that are open at once; one more waits to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// Bytes that a client may send before it gets an answer, headers and body together.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// A connection on which nothing is answered for so long is closed: an idle one, a slow sender, a slow reader.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long open connections may take to end once the server stops.
const END_MAX: Duration = Duration::from_secs(2);

const PAGE: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Sagitta</title>\
<h1>Sagitta</h1><p>SQL is spoken over Arrow Flight SQL, on another port. Here are:</p><ul>\
<li><a href=\"/healthz\">/healthz</a>: 200 while the process lives</li>\
<li><a href=\"/readyz\">/readyz</a>: 200 while it takes statements, 503 while it starts or drains</li>\
<li><a href=\"/metrics\">/metrics</a>: its figures, for Prometheus (OpenMetrics)</li></ul></html>\n";

/// What is told over HTTP.
#[derive(Debug, Clone)]
pub struct HttpState {
    pub metrics: Metrics,
    pub readiness: Readiness,
}

/// Where a server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It does not listen yet.
    Starting,
    /// It takes statements.
    Ready,
    /// It was told to stop: running statements may end, new ones are refused.
    Draining,
}

/// Where a server really listens: the port is known here also if any port was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Flight SQL.
    pub flight: SocketAddr,
    /// HTTP, if it is served.
    pub http: Option<SocketAddr>,
}

/// Whether a server takes work. Shared: every clone is the same state.
#[derive(Debug, Clone)]
pub struct Readiness {
    stage: Arc<watch::Sender<Stage>>,
    addresses: Arc<OnceLock<Addresses>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// A server that starts.
    pub fn new() -> Self {
        Self { stage: Arc::new(watch::Sender::new(Stage::Starting)), addresses: Arc::default() }
    }

    /// Says where it listens, before [`Readiness::set_ready`]. Said once: sockets do not move.
    pub fn set_addresses(&self, addresses: Addresses) {
        // A second one could only repeat the first.
        let _ = self.addresses.set(addresses);
    }

    /// Where it listens, if that has been said.
    pub fn addresses(&self) -> Option<Addresses> {
        self.addresses.get().copied()
    }

    /// It takes statements from now on, unless it drains already.
    pub fn set_ready(&self) {
        self.stage.send_if_modified(|stage| {
            let starts = *stage == Stage::Starting;
            if starts {
                *stage = Stage::Ready;
            }
            starts
        });
    }

    /// It takes no more statements. There is no way back.
    pub fn set_draining(&self) {
        self.stage.send_replace(Stage::Draining);
    }

    /// Where it is now.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Returns once it is ready; never if it drains before that.
    pub async fn until_ready(&self) {
        self.until(Stage::Ready).await;
    }

    /// Returns once it drains.
    pub async fn until_draining(&self) {
        self.until(Stage::Draining).await;
    }

    async fn until(&self, wanted: Stage) {
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = self.stage.subscribe().wait_for(|stage| *stage == wanted).await;
    }
}

/// Answers on `listener` until `shutdown`, then for [`END_MAX`] at most what was asked before.
///
/// # Errors
/// None today: a connection that fails is closed, and a listener that fails is tried again.
pub async fn serve(listener: TcpListener, state: HttpState, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let listener = BoundedListener { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(listener, router(state)).with_graceful_shutdown(async {
        // A dropped sender stops it too.
        let _ = stopped.await;
    });
    let mut serving = std::pin::pin!(serving.into_future());
    tokio::select! {
        ended = &mut serving => return ended,
        () = shutdown => {}
    }
    let _ = stop.send(());
    tokio::time::timeout(END_MAX, serving).await.unwrap_or(Ok(()))
}

/// The pages, for a server of one's own.
pub fn router(state: HttpState) -> Router {
    Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/healthz", get(async || plain(StatusCode::OK, "alive\n")))
        .route("/readyz", get(ready_page))
        .route("/metrics", get(metrics_page))
        .fallback(async || plain(StatusCode::NOT_FOUND, "no such page; / lists what there is\n"))
        .method_not_allowed_fallback(async || {
            plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered; SQL goes over Arrow Flight SQL\n")
        })
        .with_state(state)
}

async fn ready_page(State(state): State<HttpState>) -> impl IntoResponse {
    match state.readiness.stage() {
        Stage::Ready => plain(StatusCode::OK, "ready\n"),
        Stage::Starting => plain(StatusCode::SERVICE_UNAVAILABLE, "starting: the database is being opened\n"),
        Stage::Draining => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "draining: running statements may end, new ones are refused\n")
        }
    }
}

async fn metrics_page(State(state): State<HttpState>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE), NO_STORE], state.metrics.encode())
}

/// Every answer is about this moment.
const NO_STORE: (HeaderName, &str) = (header::CACHE_CONTROL, "no-store");

fn plain(status: StatusCode, text: &'static str) -> impl IntoResponse {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), NO_STORE], text)
}

/// A listener that accepts no more than [`CONNECTIONS_MAX`] at once.
struct BoundedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Listener for BoundedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // It fails only when the semaphore is closed, which nobody does.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection::new(stream, permit, SILENCE_MAX), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that is cut when its client sends too much or nothing is answered for too long.
struct Connection {
    stream: TcpStream,
    /// Bytes received since the last answer.
    unanswered_bytes: usize,
    silence_max: Duration,
    deadline: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn new(stream: TcpStream, permit: Option<OwnedSemaphorePermit>, silence_max: Duration) -> Self {
        let deadline = Box::pin(tokio::time::sleep(silence_max));
        Self { stream, unanswered_bytes: 0, silence_max, deadline, _permit: permit }
    }

    /// Ready, with an error, once the connection has been silent for too long.
    fn poll_silence<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if Pin::new(&mut this.stream).poll_read(context, buffer)?.is_pending() {
            return this.poll_silence(context);
        }
        this.unanswered_bytes += buffer.filled().len() - before;
        if this.unanswered_bytes > REQUEST_BYTES_MAX {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the request is too large")));
        }
        if this.deadline.is_elapsed() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Poll::Ready(written) = Pin::new(&mut this.stream).poll_write(context, bytes)? else {
            return this.poll_silence(context);
        };
        this.unanswered_bytes = 0;
        this.deadline.as_mut().reset(Instant::now() + this.silence_max);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Served {
        address: SocketAddr,
        state: HttpState,
        stop: oneshot::Sender<()>,
        serving: tokio::task::JoinHandle<io::Result<()>>,
    }

    async fn served() -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = HttpState { metrics: Metrics::new(), readiness: Readiness::new() };
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(serve(listener, state.clone(), async {
            let _ = stopped.await;
        }));
        Served { address, state, stop, serving }
    }

    impl Served {
        /// The whole answer to one request, after which the connection is closed.
        async fn ask(&self, method: &str, path: &str) -> String {
            self.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await
        }

        async fn send(&self, request: &[u8]) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            // A server that has refused may have closed its side by now.
            let _ = stream.write_all(request).await;
            let mut answer = vec![];
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        }
    }

    #[tokio::test]
    async fn each_page_answers_with_its_status_and_words() {
        let served = served().await;
        for (method, path, status, words) in [
            ("GET", "/healthz", "200", "alive"),
            ("GET", "/", "200", "/readyz"),
            ("GET", "/metrics", "200", "# EOF"),
            ("GET", "/metrics", "200", "content-type: application/openmetrics-text; version=1.0.0"),
            ("HEAD", "/healthz", "200", "content-length: 6"),
            ("GET", "/health", "404", "/ lists what there is"),
            ("POST", "/metrics", "405", "only GET"),
        ] {
            let answer = served.ask(method, path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {answer}");
            assert!(answer.contains(words), "{method} {path}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_server_is_ready_between_its_start_and_its_drain() {
        let served = served().await;
        let readiness = served.state.readiness.clone();
        let ready = async || served.ask("GET", "/readyz").await;
        let answer = ready().await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("starting"), "{answer}");
        readiness.set_ready();
        let answer = ready().await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("ready"), "{answer}");
        readiness.set_draining();
        let answer = ready().await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("draining"), "{answer}");
        assert!(served.ask("GET", "/healthz").await.starts_with("HTTP/1.1 200 "), "it lives while it drains");
    }

    #[tokio::test]
    async fn stages_are_waited_for_and_do_not_go_back() {
        let readiness = Readiness::new();
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move {
                readiness.until_ready().await;
                readiness.until_draining().await;
            }
        });
        assert_eq!(readiness.stage(), Stage::Starting);
        tokio::task::yield_now().await;
        readiness.set_ready();
        tokio::task::yield_now().await;
        readiness.set_draining();
        waiting.await.unwrap();
        readiness.set_ready();
        assert_eq!(readiness.stage(), Stage::Draining);
        assert_eq!(readiness.addresses(), None);
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_is_cut_off() {
        let served = served().await;
        let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(2 * REQUEST_BYTES_MAX));
        assert_eq!(served.send(long.as_bytes()).await, "");
        assert!(served.ask("GET", "/").await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn what_stops_it_ends_it_also_while_a_client_stays_connected() {
        let served = served().await;
        let _idle = TcpStream::connect(served.address).await.unwrap();
        served.stop.send(()).unwrap();
        tokio::time::timeout(END_MAX * 5, served.serving).await.expect("it ends").unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = Connection::new(stream, None, Duration::from_millis(50));
        let mut buffer = [0; 16];
        client.write_all(b"GET").await.unwrap();
        assert_eq!(connection.read(&mut buffer).await.unwrap(), 3);
        let error = connection.read(&mut buffer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
