//! Who is connected: one session for each login, found again by its bearer token or its cookie.
//!
//! A client that shows neither has the anonymous session, which all such clients share: it reads and writes, and it has no
//! settings of its own, so that none can be lost or be somebody else's.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::{Engine, UserIdentity};
use tonic::Status;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::handles::Owner;
use crate::metrics::{Held, Metrics};
use crate::options::Limits;
use crate::status::status_of;
use crate::wire::Types;

/// The cookie that Flight clients keep a session by.
pub(crate) const COOKIE: &str = "arrow_flight_session_id";
/// Begins every id that is given out here.
const OWN: &str = "sagitta-";

/// Whether a token looks like one that a server of ours gave out: unknown, it is that of a session that has ended.
pub(crate) fn is_own(token: &str) -> bool {
    token.starts_with(OWN)
}

/// A header that asks for so many parts of an answer.
const ENDPOINTS_HEADER: &str = "x-sagitta-endpoints";
/// What a session takes with its connection: its settings, its functions, buffers of the network.
const SESSION_BYTES: usize = 160 << 10;
/// Parts that an answer is cut into at most.
pub(crate) const ENDPOINTS_MAX: usize = 256;

/// A client's session.
pub(crate) struct ClientSession {
    /// The bearer token or the cookie's value; nothing for the anonymous session.
    id: Option<String>,
    /// Told apart from every other session of the server; 0 is the anonymous one.
    number: u64,
    /// Who it is, where the server knows.
    user: Option<UserIdentity>,
    /// The engine's side: settings, prepared statements.
    pub(crate) engine: engine::Session,
    types: Mutex<Option<Types>>,
    endpoints: Mutex<Option<usize>>,
    /// Seconds since the start of the registry.
    used: AtomicU64,
    /// Counts it among the sessions that are open.
    _counted: Option<Held>,
    /// What it takes.
    _memory: Option<engine::Held>,
}

impl ClientSession {
    pub(crate) fn user(&self) -> Option<&str> {
        self.user.as_ref().map(|user| user.name.as_ref())
    }

    /// Whether its user was dropped: one of the same name who was made later is another.
    pub(crate) fn is_of_dropped(&self, engine: &Engine) -> bool {
        self.user.as_ref().is_some_and(|user| engine.was_dropped(user))
    }

    /// Whose its handles are.
    pub(crate) fn owner(&self) -> Owner<'_> {
        Owner { user: self.user.as_ref(), session: self.number }
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.id.is_none()
    }

    pub(crate) fn set_types(&self, types: Option<Types>) {
        *locked(&self.types) = types;
    }

    /// The types that were asked for, or those that such a client reads.
    pub(crate) fn types(&self, metadata: &MetadataMap) -> Types {
        locked(&self.types).unwrap_or_else(|| Types::of_client(user_agent(metadata)))
    }

    pub(crate) fn chosen_types(&self) -> Option<Types> {
        *locked(&self.types)
    }

    pub(crate) fn set_endpoints(&self, endpoints: Option<usize>) {
        *locked(&self.endpoints) = endpoints;
    }

    pub(crate) fn chosen_endpoints(&self) -> Option<usize> {
        *locked(&self.endpoints)
    }

    /// In how many parts a client can fetch an answer. Some clients fetch the first part alone and would take it for the
    /// whole answer: only those get several that are known to fetch all, or that ask for them.
    pub(crate) fn endpoints(&self, metadata: &MetadataMap) -> Result<usize, Status> {
        if let Some(header) = metadata.get(ENDPOINTS_HEADER) {
            let number = header.to_str().ok().and_then(|text| text.trim().parse().ok());
            return match number.filter(|number| (1..=ENDPOINTS_MAX).contains(number)) {
                Some(number) => Ok(number),
                None => Err(Status::invalid_argument(format!(
                    "the header {ENDPOINTS_HEADER} is a number from 1 to {ENDPOINTS_MAX}"
                ))),
            };
        }
        let reads_all = user_agent(metadata).contains("ADBC Flight SQL Driver");
        Ok(self.chosen_endpoints().unwrap_or(if reads_all { ENDPOINTS_MAX } else { 1 }))
    }
}

pub(crate) fn user_agent(metadata: &MetadataMap) -> &str {
    metadata.get("user-agent").and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// What a client shows to be recognised.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// A user's name and password.
    Basic(String, String),
    /// A token.
    Bearer(String),
    /// A session's cookie.
    Cookie(String),
    /// Nothing.
    Nothing,
}

impl Shown {
    /// Reads a call's headers.
    ///
    /// # Errors
    /// An authorization that is neither Basic nor Bearer, or that cannot be read.
    pub(crate) fn of(metadata: &MetadataMap) -> Result<Self, Status> {
        use base64::Engine as _;
        let Some(header) = metadata.get("authorization") else {
            return Ok(cookie_of(metadata).map_or(Self::Nothing, Self::Cookie));
        };
        let unreadable = || {
            Status::unauthenticated(
                "the authorization header cannot be read; send Basic with a name and a password, or Bearer with a token",
            )
        };
        let text = header.to_str().map_err(|_| unreadable())?.trim();
        let (scheme, rest) = text.split_once(' ').ok_or_else(unreadable)?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Self::Bearer(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(unreadable());
        }
        let decoded = base64::prelude::BASE64_STANDARD
            .decode(rest)
            .or_else(|_| base64::prelude::BASE64_STANDARD_NO_PAD.decode(rest))
            .map_err(|_| unreadable())?;
        let decoded = String::from_utf8(decoded).map_err(|_| unreadable())?;
        let (user, password) = decoded.split_once(':').ok_or_else(unreadable)?;
        Ok(Self::Basic(user.to_owned(), password.to_owned()))
    }
}

fn cookie_of(metadata: &MetadataMap) -> Option<String> {
    metadata
        .get_all("cookie")
        .iter()
        .filter_map(|header| header.to_str().ok())
        .flat_map(|header| header.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value.trim_matches('"').to_owned())
}

/// The sessions of a server.
pub(crate) struct Sessions {
    database: Engine,
    began: Instant,
    sessions_max: usize,
    idle_max: Duration,
    open: Mutex<HashMap<String, Arc<ClientSession>>>,
    anonymous: Arc<ClientSession>,
    next: AtomicU64,
    metrics: Metrics,
}

impl Sessions {
    pub(crate) fn new(engine: &Engine, limits: &Limits, metrics: Metrics) -> Self {
        let (sessions_max, idle_max) = (limits.sessions_max, limits.session_idle_max);
        let anonymous = Arc::new(ClientSession {
            id: None,
            number: 0,
            user: None,
            engine: engine.session(),
            types: Mutex::default(),
            endpoints: Mutex::default(),
            used: AtomicU64::new(0),
            _counted: None,
            _memory: None,
        });
        Self {
            database: engine.clone(),
            began: Instant::now(),
            sessions_max,
            idle_max,
            open: Mutex::default(),
            anonymous,
            next: AtomicU64::new(1),
            metrics,
        }
    }

    pub(crate) fn anonymous(&self) -> Arc<ClientSession> {
        Arc::clone(&self.anonymous)
    }

    /// Opens a session of the engine's session's user; its id, which nobody can guess, is the bearer token or the cookie.
    ///
    /// # Errors
    /// More sessions than there may be.
    pub(crate) fn open(&self, engine: engine::Session) -> Result<(String, Arc<ClientSession>), Status> {
        // Two random UUIDs: 244 bits of the system's randomness.
        let id = format!("{OWN}{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let session = self.open_as(&id, engine)?;
        Ok((id, session))
    }

    /// Opens a session under an id that the client brings.
    ///
    /// # Errors
    /// More sessions than there may be.
    pub(crate) fn open_as(&self, id: &str, engine: engine::Session) -> Result<Arc<ClientSession>, Status> {
        self.close_idle();
        let mut open = locked(&self.open);
        // Two calls with the same token may come at once.
        if let Some(session) = open.get(id) {
            return Ok(Arc::clone(session));
        }
        if open.len() >= self.sessions_max {
            return Err(Status::resource_exhausted(format!(
                "{} sessions are open, and no more may be; close some, or raise limits.sessions_max",
                open.len()
            )));
        }
        let memory = self.database.hold(engine.user(), SESSION_BYTES, "a session");
        let session = Arc::new(ClientSession {
            id: Some(id.to_owned()),
            number: self.next.fetch_add(1, Ordering::Relaxed),
            user: engine.identity().cloned(),
            engine,
            types: Mutex::default(),
            endpoints: Mutex::default(),
            used: AtomicU64::new(self.now()),
            _counted: Some(self.metrics.session()),
            _memory: Some(memory.map_err(|error| status_of(&error))?),
        });
        open.insert(id.to_owned(), Arc::clone(&session));
        Ok(session)
    }

    /// The open session of an id.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<ClientSession>> {
        let session = locked(&self.open).get(id).cloned()?;
        if self.is_idle(&session) {
            self.close(id);
            return None;
        }
        session.used.store(self.now(), Ordering::Relaxed);
        Some(session)
    }

    /// The numbers of the open sessions.
    pub(crate) fn numbers(&self) -> HashSet<u64> {
        std::iter::once(0).chain(locked(&self.open).values().map(|session| session.number)).collect()
    }

    /// Closes a session, if it is open.
    pub(crate) fn close(&self, id: &str) {
        locked(&self.open).remove(id);
    }

    /// Closes this session.
    pub(crate) fn close_own(&self, session: &ClientSession) {
        if let Some(id) = &session.id {
            self.close(id);
        }
    }

    /// Closes the sessions whose users were dropped.
    pub(crate) fn close_dropped(&self, engine: &Engine) {
        locked(&self.open).retain(|_, session| !session.is_of_dropped(engine));
    }

    /// Closes the sessions that have not been used for long.
    pub(crate) fn close_idle(&self) {
        locked(&self.open).retain(|_, session| !self.is_idle(session));
    }

    fn is_idle(&self, session: &ClientSession) -> bool {
        self.now().saturating_sub(session.used.load(Ordering::Relaxed)) > self.idle_max.as_secs()
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_secs()
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(headers: &[(&'static str, &str)]) -> Result<Shown, Status> {
        let mut metadata = MetadataMap::new();
        for (name, value) in headers {
            metadata.append(*name, value.parse().unwrap());
        }
        Shown::of(&metadata)
    }

    #[test]
    fn clients_are_recognised_by_what_they_show() {
        assert_eq!(
            shown(&[("authorization", "Basic YWRhOng6eQ==")]).unwrap(),
            Shown::Basic("ada".into(), "x:y".into())
        );
        assert_eq!(shown(&[("authorization", "basic YWRhOng6eQ")]).unwrap(), Shown::Basic("ada".into(), "x:y".into()));
        assert_eq!(shown(&[("authorization", "Bearer abc")]).unwrap(), Shown::Bearer("abc".into()));
        let cookies = [("cookie", "a=b; arrow_flight_session_id=\"s1\"; c=d")];
        assert_eq!(shown(&cookies).unwrap(), Shown::Cookie("s1".into()));
        assert_eq!(shown(&[]).unwrap(), Shown::Nothing);
        for bad in ["Basic", "Basic ***", "Digest abc", "Basic YWRh"] {
            assert_eq!(shown(&[("authorization", bad)]).unwrap_err().code(), tonic::Code::Unauthenticated, "{bad}");
        }
    }

    async fn engine() -> Engine {
        Engine::open("memory:", engine::EngineOptions::default()).await.unwrap()
    }

    #[tokio::test]
    async fn sessions_are_bounded_and_found_by_their_ids_alone() {
        let engine = engine().await;
        let limits = Limits { sessions_max: 2, ..Limits::default() };
        let sessions = Sessions::new(&engine, &limits, Metrics::new());
        engine.session().execute("CREATE USER ada PASSWORD 'p' ADMIN").await.unwrap();
        engine.session().execute("CREATE USER bob PASSWORD 'p'").await.unwrap();
        let (first, _) = sessions.open(engine.session_as("bob").await.unwrap()).unwrap();
        let (second, _) = sessions.open(engine.session()).unwrap();
        assert_ne!(first, second);
        assert!(sessions.open(engine.session()).is_err());
        assert_eq!(sessions.find(&first).and_then(|found| found.user().map(str::to_owned)), Some("bob".into()));
        assert!(sessions.find("guess").is_none());
        sessions.close(&first);
        assert!(sessions.find(&first).is_none());
        assert!(sessions.open(engine.session()).is_ok());
    }

    #[tokio::test]
    async fn a_session_ends_with_its_user() {
        let engine = engine().await;
        let owner = engine.session();
        for sql in ["CREATE USER ada PASSWORD 'p' ADMIN", "CREATE USER bob PASSWORD 'p'"] {
            owner.execute(sql).await.unwrap();
        }
        let sessions = Sessions::new(&engine, &Limits::default(), Metrics::new());
        let (ada, _) = sessions.open(engine.session_as("ada").await.unwrap()).unwrap();
        let (bob, session) = sessions.open(engine.session_as("bob").await.unwrap()).unwrap();
        assert!(!session.is_of_dropped(&engine));
        owner.execute("DROP USER bob").await.unwrap();
        owner.execute("CREATE USER bob PASSWORD 'p'").await.unwrap();
        assert!(session.is_of_dropped(&engine), "the new one is another");
        let refused = session.engine.execute("SELECT * FROM information_schema.tables").await.unwrap_err();
        assert_eq!(refused.kind, engine::ErrorKind::Forbidden, "{refused}");
        sessions.close_dropped(&engine);
        assert!(sessions.find(&bob).is_none() && sessions.find(&ada).is_some());
    }
}
