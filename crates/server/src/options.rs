//! What a server is told when it starts: addresses, safety, limits. Where the values come from is the caller's.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How a server listens, whom it trusts, and how much it gives to whom.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerOptions {
    /// Where Flight SQL clients connect.
    pub listen: SocketAddr,
    /// Where health and metrics are read over HTTP; nowhere if absent.
    pub http: Option<SocketAddr>,
    /// Encryption of the Flight SQL port; plain text if absent.
    pub tls: Option<TlsOptions>,
    /// Whether clients must prove who they are. Without it any name is accepted, and whoever connects may do anything.
    pub auth: bool,
    /// A file of static bearer tokens, one `token user` on each line; # starts a comment.
    pub token_file: Option<PathBuf>,
    /// Listen beyond loopback even without authentication.
    pub insecure: bool,
    /// Folders and URLs below which statements of clients may read and write files; none if empty.
    pub allowed_roots: Vec<String>,
    /// Bounds of everything that clients can make grow.
    pub limits: Limits,
    /// Statements that run longer are logged and listed in `system.slow_queries`.
    pub slow_query: Duration,
    /// How long running statements may go on once the server is told to stop.
    pub drain: Duration,
}

/// The certificate of the server, and whose clients it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM file: the server's certificate, then those between it and the root.
    pub certificate: PathBuf,
    /// PEM file: the key of the certificate.
    pub key: PathBuf,
    /// PEM file: the authority that signs clients' certificates. If given, a client without one is refused.
    pub client_ca: Option<PathBuf>,
    /// Whether the common name in a client's certificate is the name of its user, who must exist. Without it a certificate
    /// does not say who the user is: that takes `auth` too.
    pub client_user: bool,
}

impl ServerOptions {
    /// Whether clients must prove who they are, in whatever way.
    pub(crate) fn asks(&self) -> bool {
        self.auth || self.certificates_name_users()
    }

    /// Whether a client's certificate says who its user is.
    pub(crate) fn certificates_name_users(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some() && tls.client_user)
    }
}

/// Bounds of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Statements that run at once.
    pub statements_max: usize,
    /// Statements of one user that run at once.
    pub statements_per_user_max: usize,
    /// Statements that may wait for their turn; one more is refused.
    pub queue_max: usize,
    /// How long a statement may wait for its turn.
    pub queue_time_max: Duration,
    /// The longest that a statement may run; sessions can only set less. None: as long as the engine allows.
    pub statement_time_max: Option<Duration>,
    /// Bytes that the statements of one user, and what is kept for the user, may take together; none for as many as there are.
    pub memory_per_user_max: Option<usize>,
    /// Rows that one statement may return; none for as many as there are.
    pub rows_max: Option<u64>,
    /// The largest message that a client may send, in bytes. Where memory is scarce it is less, but 16 MiB always.
    pub message_bytes_max: usize,
    /// Sessions that may be open at once.
    pub sessions_max: usize,
    /// After how long without a call a session is closed.
    pub session_idle_max: Duration,
    /// Handles (prepared statements, results not yet fetched) of one session.
    pub handles_per_session_max: usize,
    /// How long a result waits for being fetched, unless its client renews it.
    pub handle_lifetime: Duration,
}

/// The port of Flight SQL, if nothing else is said.
pub const PORT: u16 = 32_100;
/// The port of HTTP, if nothing else is said.
pub const HTTP_PORT: u16 = 32_101;

impl Default for Limits {
    fn default() -> Self {
        Self {
            statements_max: 64,
            statements_per_user_max: 64,
            queue_max: 256,
            queue_time_max: Duration::from_secs(60),
            statement_time_max: None,
            memory_per_user_max: None,
            rows_max: None,
            message_bytes_max: 64 << 20,
            sessions_max: 4096,
            session_idle_max: Duration::from_secs(3600),
            handles_per_session_max: 1024,
            handle_lifetime: Duration::from_secs(300),
        }
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], PORT)),
            http: Some(SocketAddr::from(([127, 0, 0, 1], HTTP_PORT))),
            tls: None,
            auth: false,
            token_file: None,
            insecure: false,
            allowed_roots: vec![],
            limits: Limits::default(),
            slow_query: Duration::from_secs(1),
            drain: Duration::from_secs(30),
        }
    }
}
