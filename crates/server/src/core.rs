//! What all calls of a server share, and the one call that is being answered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use engine::{Engine, Secret, Session, UserIdentity};
use sha2::{Digest, Sha256};
use tonic::Status;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::admission::{Admission, Admitted};
use crate::handles::{Handles, Owner};
use crate::metrics::{Metrics, StatementKind};
use crate::options::{Limits, ServerOptions};
use crate::seal::Seal;
use crate::sessions::{ClientSession, Sessions, locked};
use crate::status::status_of;
use crate::wire::Types;

/// A server's state.
pub(crate) struct Core {
    pub(crate) engine: Engine,
    pub(crate) sessions: Sessions,
    pub(crate) handles: Handles,
    pub(crate) seal: Seal,
    pub(crate) admission: Arc<Admission>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    /// Whether clients must prove who they are.
    asks: bool,
    /// Whether a client's certificate says who its user is.
    pub(crate) certificates_name_users: bool,
    /// Begins the ids of sessions that clients have by their certificates; nobody can guess it.
    pub(crate) certified: Uuid,
    /// Users by the SHA-256 of their static tokens: looking a token up tells nothing of the others by its time.
    tokens: HashMap<[u8; 32], String>,
    /// The ids of the users of static tokens, by name, once they were seen: a token is not that of a later user.
    token_users: Mutex<HashMap<String, UserIdentity>>,
}

impl Core {
    /// # Errors
    /// A file of tokens that cannot be read.
    pub(crate) async fn new(engine: Engine, options: &ServerOptions, metrics: Metrics) -> Result<Arc<Self>, String> {
        let limits = options.limits.clone();
        engine.set_slow_query(options.slow_query);
        engine.set_memory_per_user_max(limits.memory_per_user_max);
        engine.set_memory_wait(limits.queue_time_max);
        let tokens = match &options.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("the file of tokens {} cannot be read: {error}", path.display()))?;
                tokens(&text).map_err(|line| {
                    format!("line {line} of {} is not a token and a user with a blank between", path.display())
                })?
            }
            None => HashMap::new(),
        };
        let token_users = Mutex::default();
        for name in tokens.values() {
            // Who is not there yet may be made later.
            if let Ok(session) = engine.session_as(name).await {
                remember(&token_users, &session);
            }
        }
        let secret = engine.shared_secret().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "handles of this server are good here alone: the servers' secret cannot be had");
            Secret::random()
        });
        Ok(Arc::new(Self {
            asks: options.asks(),
            certificates_name_users: options.certificates_name_users(),
            certified: Uuid::new_v4(),
            tokens,
            token_users,
            seal: Seal::new(&secret)?,
            sessions: Sessions::new(&engine, &limits, metrics.clone()),
            handles: Handles::new(&limits, metrics.clone()),
            admission: Admission::new(&limits, metrics.clone()),
            metrics,
            engine,
            limits,
        }))
    }

    /// Whether clients must prove who they are.
    pub(crate) fn asks(&self) -> bool {
        self.asks
    }

    /// The user of a static token.
    pub(crate) fn user_of_token(&self, token: &str) -> Option<String> {
        self.tokens.get(&digest(token)).cloned()
    }

    /// Takes memory for something that is kept for a client.
    ///
    /// # Errors
    /// There is none left, or the user has as much as one may.
    pub(crate) fn hold(&self, call: &Call, bytes: usize, what: &str) -> Result<engine::Held, Status> {
        self.engine.hold(call.session.user(), bytes, what).map_err(|error| status_of(&error))
    }

    /// A session of the user of a static token.
    ///
    /// # Errors
    /// There is no such user, or another one than when the server first saw the user.
    pub(crate) async fn session_of_token(&self, user: &str) -> Result<Session, Status> {
        let session = self.engine.session_as(user).await.map_err(|error| status_of(&error))?;
        if remember(&self.token_users, &session) {
            return Ok(session);
        }
        Err(Status::unauthenticated(format!(
            "the token was that of a user {user} who was dropped; start the server anew to let it be that of the present one"
        )))
    }

    /// Forgets what is too old, and the sessions of users who were dropped.
    pub(crate) async fn sweep(&self) {
        // It looks whether the catalog has changed; if it cannot be read now, it is at the next statement.
        let _ = self.engine.has_users().await;
        self.sessions.close_dropped(&self.engine);
        self.sessions.close_idle();
        let open = self.sessions.numbers();
        self.handles.sweep(|session| open.contains(&session));
        if self.engine.figures().memory_waiting > 0 {
            self.handles.let_go_of_begun();
        }
    }
}

/// Whether the session's user is the one who had the name when it was first seen.
fn remember(seen: &Mutex<HashMap<String, UserIdentity>>, session: &Session) -> bool {
    let Some(user) = session.identity() else { return false };
    locked(seen).entry(user.name.to_string()).or_insert_with(|| user.clone()) == user
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The users of a file of tokens: `token user` on each line, comments behind #.
///
/// # Errors
/// The number of the first line that is something else.
fn tokens(text: &str) -> Result<HashMap<[u8; 32], String>, usize> {
    let mut tokens = HashMap::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.split('#').next().unwrap_or_default();
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [] => {}
            [token, user] => {
                tokens.insert(digest(token), (*user).to_owned());
            }
            _ => return Err(number),
        }
    }
    Ok(tokens)
}

/// One call of a client.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) core: Arc<Core>,
    pub(crate) session: Arc<ClientSession>,
    /// What the client reads.
    pub(crate) types: Types,
    /// In how many parts it can fetch an answer.
    pub(crate) endpoints: usize,
}

impl Call {
    pub(crate) fn new(core: &Arc<Core>, session: Arc<ClientSession>, metadata: &MetadataMap) -> Result<Self, Status> {
        let (types, endpoints) = (session.types(metadata), session.endpoints(metadata)?);
        Ok(Self { core: Arc::clone(core), session, types, endpoints })
    }

    pub(crate) fn owner(&self) -> Owner<'_> {
        self.session.owner()
    }

    /// A place among the statements that run.
    pub(crate) async fn admitted(&self, kind: StatementKind) -> Result<Admitted, Status> {
        let admitted = self.core.admission.enter(self.session.user()).await;
        if admitted.is_err() {
            self.core.metrics.statement_refused(kind);
        }
        admitted
    }
}
