//! What clients refer to by a handle: prepared statements, and answers that wait to be fetched.
//!
//! A handle is 16 random bytes. It is its owner's alone: anybody else's is as good as one that was never given out. An
//! answer goes after a time, a prepared statement when its client closes it; both are counted for each session.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use engine::Plan;
use futures::stream::BoxStream;
use tonic::Status;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::options::Limits;
use crate::sessions::locked;

/// A prepared statement of a client.
pub(crate) struct Prepared {
    pub(crate) prepared: engine::Prepared,
    /// The values that were bound last: one row for each run.
    pub(crate) bound: Mutex<Option<RecordBatch>>,
}

/// The answer of a statement that was planned or carried out.
pub(crate) struct Waiting {
    /// The columns on the wire.
    pub(crate) schema: SchemaRef,
    pub(crate) rows: RowsOf,
    /// Rows that were begun to be made while the client polled, for the first fetch.
    pub(crate) begun: Mutex<Option<BoxStream<'static, Result<RecordBatch, Status>>>>,
    /// Whether somebody has fetched it to its end.
    pub(crate) is_fetched: AtomicBool,
}

/// Where the rows of an answer come from.
pub(crate) enum RowsOf {
    /// Plans, which can be run again: one for each row of parameters.
    Plans(Vec<Plan>),
    /// Rows that are there: the answer of a statement that was carried out.
    Batches(Vec<RecordBatch>),
}

impl Waiting {
    pub(crate) fn new(schema: SchemaRef, rows: RowsOf) -> Self {
        Self { schema, rows, begun: Mutex::default(), is_fetched: AtomicBool::new(false) }
    }
}

/// What a handle stands for.
#[derive(Clone)]
pub(crate) enum Held {
    Prepared(Arc<Prepared>),
    Waiting(Arc<Waiting>),
    Polled(Arc<crate::poll::Polled>),
}

impl Held {
    /// The names in `system.queries` of the statements behind it.
    pub(crate) fn query_ids(&self) -> Vec<String> {
        match self {
            Self::Prepared(_) => vec![],
            Self::Waiting(waiting) => match &waiting.rows {
                RowsOf::Plans(plans) => plans.iter().map(Plan::query_id).collect(),
                RowsOf::Batches(_) => vec![],
            },
            Self::Polled(polled) => polled.query_id().into_iter().collect(),
        }
    }
}

struct Entry {
    owner: Option<String>,
    session: u64,
    held: Held,
    /// When it goes by itself.
    expires: Option<Instant>,
    /// Counts it among the handles that are held.
    _counted: crate::metrics::Held,
}

/// The handles of a server.
pub(crate) struct Handles {
    lifetime: Duration,
    per_session_max: usize,
    entries: Mutex<HashMap<Uuid, Entry>>,
    metrics: Metrics,
}

/// Whose a handle is.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// The user; nobody where the server does not ask.
    pub(crate) user: Option<&'a str>,
    /// The session's number.
    pub(crate) session: u64,
}

impl Handles {
    pub(crate) fn new(limits: &Limits, metrics: Metrics) -> Self {
        let (lifetime, per_session_max) = (limits.handle_lifetime, limits.handles_per_session_max);
        Self { lifetime, per_session_max, entries: Mutex::default(), metrics }
    }

    /// Gives a handle out.
    ///
    /// # Errors
    /// More handles of one session than there may be.
    pub(crate) fn add(&self, owner: Owner<'_>, held: Held) -> Result<Uuid, Status> {
        let id = Uuid::new_v4();
        let expires = match held {
            Held::Prepared(_) => None,
            Held::Waiting(_) | Held::Polled(_) => Some(Instant::now() + self.lifetime),
        };
        let mut entries = locked(&self.entries);
        let of_session = entries.values().filter(|entry| entry.session == owner.session).count();
        if of_session >= self.per_session_max && !make_room(&mut entries, owner.session) {
            return Err(Status::resource_exhausted(format!(
                "the session holds {of_session} prepared statements and answers, and no more may be; close some, or raise limits.handles_per_session_max"
            )));
        }
        let _counted = self.metrics.handle();
        let entry = Entry { owner: owner.user.map(str::to_owned), session: owner.session, held, expires, _counted };
        entries.insert(id, entry);
        Ok(id)
    }

    /// What a handle stands for.
    ///
    /// # Errors
    /// A handle that is not this user's, was closed, or is too old.
    pub(crate) fn find(&self, owner: Owner<'_>, handle: &[u8]) -> Result<Held, Status> {
        let gone = || {
            Status::not_found(
                "the handle is unknown: it was closed, is too old, or is another session's; run the statement again",
            )
        };
        let id = Uuid::from_slice(handle).map_err(|_| gone())?;
        let entries = locked(&self.entries);
        let entry = entries.get(&id).filter(|entry| entry.owner.as_deref() == owner.user).ok_or_else(gone)?;
        match entry.expires {
            Some(expires) if expires < Instant::now() => Err(gone()),
            _ => Ok(entry.held.clone()),
        }
    }

    pub(crate) fn prepared(&self, owner: Owner<'_>, handle: &[u8]) -> Result<Arc<Prepared>, Status> {
        match self.find(owner, handle)? {
            Held::Prepared(prepared) => Ok(prepared),
            _ => Err(Status::invalid_argument("the handle is that of an answer, not of a prepared statement")),
        }
    }

    /// Lets an answer wait as long again; when it goes.
    ///
    /// # Errors
    /// As [`Handles::find`].
    pub(crate) fn renew(&self, owner: Owner<'_>, handle: &[u8]) -> Result<SystemTime, Status> {
        self.find(owner, handle)?;
        let id = Uuid::from_slice(handle).unwrap_or_default();
        if let Some(entry) = locked(&self.entries).get_mut(&id) {
            entry.expires = Some(Instant::now() + self.lifetime);
        }
        Ok(self.expiry())
    }

    /// When an answer goes that is given out now.
    pub(crate) fn expiry(&self) -> SystemTime {
        SystemTime::now() + self.lifetime
    }

    /// Forgets a handle; whether it was there and this owner's.
    pub(crate) fn close(&self, owner: Owner<'_>, handle: &[u8]) -> bool {
        let Ok(id) = Uuid::from_slice(handle) else { return false };
        let mut entries = locked(&self.entries);
        let is_own = entries.get(&id).is_some_and(|entry| entry.owner.as_deref() == owner.user);
        is_own && entries.remove(&id).is_some()
    }

    /// Forgets what is too old, and what sessions that are gone have left.
    pub(crate) fn sweep(&self, is_open: impl Fn(u64) -> bool) {
        let now = Instant::now();
        locked(&self.entries)
            .retain(|_, entry| entry.expires.is_none_or(|expires| expires >= now) && is_open(entry.session));
    }

    /// Forgets everything of a session.
    pub(crate) fn close_session(&self, session: u64) {
        locked(&self.entries).retain(|_, entry| entry.session != session);
    }
}

/// Forgets the oldest answer of a session that somebody has fetched; whether there was one.
fn make_room(entries: &mut HashMap<Uuid, Entry>, session: u64) -> bool {
    let is_fetched = |entry: &Entry| match &entry.held {
        Held::Waiting(waiting) => waiting.is_fetched.load(Ordering::Relaxed),
        _ => false,
    };
    let oldest = entries
        .iter()
        .filter(|(_, entry)| entry.session == session && is_fetched(entry))
        .min_by_key(|(_, entry)| entry.expires)
        .map(|(id, _)| *id);
    oldest.is_some_and(|id| entries.remove(&id).is_some())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;

    use super::*;

    fn handles(lifetime: Duration, per_session_max: usize) -> Handles {
        let limits =
            Limits { handle_lifetime: lifetime, handles_per_session_max: per_session_max, ..Limits::default() };
        Handles::new(&limits, Metrics::new())
    }

    fn waiting() -> Arc<Waiting> {
        Arc::new(Waiting::new(Arc::new(Schema::empty()), RowsOf::Batches(vec![])))
    }

    #[test]
    fn a_handle_is_its_owners_alone() {
        let handles = handles(Duration::from_secs(60), 2);
        let (ada, bob) = (Owner { user: Some("ada"), session: 1 }, Owner { user: Some("bob"), session: 2 });
        let id = handles.add(ada, Held::Waiting(waiting())).unwrap();
        assert!(handles.find(ada, id.as_bytes()).is_ok());
        let another = Owner { user: Some("ada"), session: 9 };
        assert!(handles.find(another, id.as_bytes()).is_ok(), "another connection of the same user");
        for stranger in [bob, Owner { user: None, session: 1 }] {
            assert_eq!(handles.find(stranger, id.as_bytes()).err().unwrap().code(), tonic::Code::NotFound);
            assert!(!handles.close(stranger, id.as_bytes()));
        }
        for bad in [&b""[..], b"short", &[0; 16], &[0; 17]] {
            assert!(handles.find(ada, bad).is_err());
        }
        assert!(handles.close(ada, id.as_bytes()));
        assert!(handles.find(ada, id.as_bytes()).is_err());
    }

    #[test]
    fn handles_are_bounded_and_fetched_answers_make_room() {
        let handles = handles(Duration::from_secs(60), 2);
        let owner = Owner { user: None, session: 1 };
        let first = waiting();
        let id = handles.add(owner, Held::Waiting(Arc::clone(&first))).unwrap();
        handles.add(owner, Held::Waiting(waiting())).unwrap();
        assert!(handles.add(owner, Held::Waiting(waiting())).is_err());
        first.is_fetched.store(true, Ordering::Relaxed);
        assert!(handles.add(owner, Held::Waiting(waiting())).is_ok());
        assert!(handles.find(owner, id.as_bytes()).is_err());
    }

    #[test]
    fn answers_go_when_they_are_old_or_their_session_is_gone() {
        let owner = Owner { user: None, session: 1 };
        let old = handles(Duration::ZERO, 8);
        let id = old.add(owner, Held::Waiting(waiting())).unwrap();
        std::thread::yield_now();
        assert!(old.find(owner, id.as_bytes()).is_err() || Instant::now().elapsed() < Duration::from_millis(1));
        let handles = handles(Duration::from_secs(60), 8);
        handles.add(owner, Held::Waiting(waiting())).unwrap();
        handles.sweep(|_| true);
        assert_eq!(locked(&handles.entries).len(), 1);
        handles.sweep(|_| false);
        assert!(locked(&handles.entries).is_empty());
    }
}
