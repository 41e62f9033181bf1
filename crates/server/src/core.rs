//! What all calls of a server share, and the one call that is being answered.

use std::collections::HashMap;
use std::sync::Arc;

use engine::Engine;
use sha2::{Digest, Sha256};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::admission::{Admission, Admitted};
use crate::handles::{Handles, Owner};
use crate::metrics::{Metrics, StatementKind};
use crate::options::{Limits, ServerOptions};
use crate::sessions::{ClientSession, Sessions};
use crate::wire::Types;

/// A server's state.
pub(crate) struct Core {
    pub(crate) engine: Engine,
    pub(crate) sessions: Sessions,
    pub(crate) handles: Handles,
    pub(crate) admission: Arc<Admission>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    /// Whether clients must prove who they are.
    asks: bool,
    /// Users by the SHA-256 of their static tokens: looking a token up tells nothing of the others by its time.
    tokens: HashMap<[u8; 32], String>,
}

impl Core {
    /// # Errors
    /// A file of tokens that cannot be read.
    pub(crate) fn new(engine: Engine, options: &ServerOptions, metrics: Metrics) -> Result<Arc<Self>, String> {
        let limits = options.limits.clone();
        engine.set_slow_query(options.slow_query);
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
        Ok(Arc::new(Self {
            asks: options.auth,
            tokens,
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

    /// Forgets what is too old.
    pub(crate) fn sweep(&self) {
        self.sessions.close_idle();
        let open = self.sessions.numbers();
        self.handles.sweep(|session| open.contains(&session));
    }
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
