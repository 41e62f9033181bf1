//! The server itself: its ports, its certificates, its end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use engine::{Engine, Error, ErrorKind};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::core::Core;
use crate::do_get::Calls;
use crate::http::{Addresses, HttpState, Readiness};
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::options::{ServerOptions, TlsOptions};
use crate::service::Service;

/// How often what is too old is forgotten.
const SWEEP: Duration = Duration::from_secs(5);
/// How often the memory of the process is looked at.
const WATCH: Duration = Duration::from_millis(50);
/// Messages of this size are taken however little memory there is: drivers send such.
const MESSAGE_BYTES_ALWAYS: usize = 16 << 20;
/// What one call may have sent ahead: the least, and at most two messages of the usual 2 MiB, so that one is on its way while
/// the rows of the other are written; in between one part in this many of the memory.
const WINDOW: (u32, u32) = (64 << 10, 4 << 20);
const WINDOW_SHARE: usize = 4_096;
/// Headers of one call: JDBC sends unknown parts of its URL as headers.
const HEADERS_BYTES_MAX: u32 = 64 << 10;

fn failed(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

/// Serves a database, and its health and figures over HTTP if the options say so, until `shutdown` ends: then nothing new is
/// taken, and what runs may go on for the time that the options give.
///
/// # Errors
/// An address that cannot be listened on, a certificate that cannot be read, an address beyond this machine where nobody
/// is asked who they are.
pub async fn serve(
    engine: Engine,
    options: ServerOptions,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let unavailable = |error: std::io::Error| Error::new(ErrorKind::Unavailable, format!("cannot listen: {error}"));
    if options.asks() && !engine.has_users().await? {
        return Err(failed(format!(
            "clients must authenticate, and the database has no users yet; make the first one on the machine that has its files: sagitta --data {} -c \"CREATE USER name PASSWORD '…' ADMIN\"",
            engine.location()
        )));
    }
    let listener = bind(&options).await?;
    let flight = listener.local_addr().map_err(unavailable)?;
    let http = match options.http {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let http_address = http.as_ref().map(TcpListener::local_addr).transpose().map_err(unavailable)?;
    let observed = engine.clone();
    metrics.observe_engine(move || observed.figures());
    let core = Core::new(engine, &options, metrics.clone()).await.map_err(failed)?;
    readiness.set_addresses(Addresses { flight, http: http_address });
    readiness.set_ready();
    let told = async {
        shutdown.await;
        readiness.set_draining();
    };
    let state = HttpState { metrics, readiness: readiness.clone() };
    let serving = serve_core(listener, core, &options, told);
    match http {
        Some(http) => {
            tokio::select! {
                served = serving => served,
                stopped = crate::http::serve(http, state, std::future::pending()) => stopped.map_err(unavailable),
            }
        }
        None => serving.await,
    }
}

/// Takes hold of the server's port.
///
/// # Errors
/// As [`serve`].
pub async fn bind(options: &ServerOptions) -> Result<TcpListener, Error> {
    let proves = options.auth || options.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if !options.listen.ip().to_canonical().is_loopback() && !proves && !options.insecure {
        return Err(failed(format!(
            "{} can be reached from other machines, and nobody would be asked who they are; turn authentication on, listen on 127.0.0.1, or say that it is meant so (insecure)",
            options.listen
        )));
    }
    listen(options.listen).await
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| failed(format!("cannot listen on {address}: {error}; choose another address")))
}

/// Serves on a port that is held already, without HTTP.
///
/// # Errors
/// As [`serve`].
pub async fn serve_on(
    listener: TcpListener,
    engine: Engine,
    options: ServerOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let core = Core::new(engine, &options, Metrics::new()).await.map_err(failed)?;
    serve_core(listener, core, &options, shutdown).await
}

async fn serve_core(
    listener: TcpListener,
    core: Arc<Core>,
    options: &ServerOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let memory_bytes = usize::try_from(core.engine.figures().memory_limit_bytes).unwrap_or(usize::MAX);
    let message_bytes_max = options.limits.message_bytes_max.min((memory_bytes / 4).max(MESSAGE_BYTES_ALWAYS));
    let flight = Calls::new(Service { core: Arc::clone(&core) }, message_bytes_max);
    let flight = Intake::new(flight, core.engine.clone(), options.limits.queue_time_max);
    // What a client sends ahead is in memory before anybody looks at it.
    let window = u32::try_from(memory_bytes / WINDOW_SHARE).unwrap_or(u32::MAX).clamp(WINDOW.0, WINDOW.1);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<FlightServiceServer<Service>>().await;
    let mut server = Server::builder()
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .initial_stream_window_size(window)
        .initial_connection_window_size(4 * window)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .tcp_nodelay(true);
    if let Some(tls) = &options.tls {
        server = server
            .tls_config(tls_config(tls)?)
            .map_err(|error| failed(format!("the certificate cannot be used: {error}")))?;
    }
    let stopping = CancellationToken::new();
    let sweeper = tokio::spawn(sweep(Arc::clone(&core), stopping.clone()));
    let engine = core.engine.clone();
    let watcher = tokio::spawn(async move {
        loop {
            engine.watch_memory();
            tokio::time::sleep(WATCH).await;
        }
    });
    let told = {
        let stopping = stopping.clone();
        async move {
            shutdown.await;
            health.set_not_serving::<FlightServiceServer<Service>>().await;
            stopping.cancel();
        }
    };
    let serving = server
        .add_service(health_service)
        .add_service(flight)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), told);
    let drained = async {
        stopping.cancelled().await;
        tokio::time::sleep(options.drain).await;
    };
    let outcome = tokio::select! {
        served = serving => served.map_err(|error| Error::new(ErrorKind::Unavailable, format!("the server stopped: {error}"))),
        () = drained => Ok(()),
    };
    sweeper.abort();
    watcher.abort();
    outcome
}

/// Chooses one of the two cryptography libraries that the dependencies bring: left alone, rustls cannot decide.
pub(crate) fn choose_cryptography() {
    // It fails if a library was chosen before, and any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn tls_config(tls: &TlsOptions) -> Result<ServerTlsConfig, Error> {
    choose_cryptography();
    let read = |path: &std::path::Path, what: &str| {
        std::fs::read(path).map_err(|error| failed(format!("the {what} {} cannot be read: {error}", path.display())))
    };
    let identity = Identity::from_pem(read(&tls.certificate, "certificate")?, read(&tls.key, "key")?);
    let config = ServerTlsConfig::new().identity(identity);
    Ok(match &tls.client_ca {
        Some(authority) => config.client_ca_root(Certificate::from_pem(read(authority, "clients' authority")?)),
        None => config,
    })
}

async fn sweep(core: Arc<Core>, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => core.sweep().await,
        }
    }
}
