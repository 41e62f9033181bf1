//! What clients refer to by a handle: prepared statements, and answers that wait to be fetched.
//!
//! Each is found by the random id in its handle (`seal.rs`). It is its owner's alone: anybody else's is as good as one that
//! was never given out. An answer goes after a time, a prepared statement when its client closes it; both are counted for
//! each session. What is not here may be another server's, or have been here before a restart: `prepared.rs` and `redeem.rs` make
//! it anew from the handle.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use engine::{Plan, UserIdentity};
use futures::stream::BoxStream;
use tonic::Status;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::options::Limits;
use crate::seal::unknown;
use crate::sessions::locked;

/// Handles that were closed and are remembered, so that they are not made anew.
const CLOSED_MAX: usize = 4_096;
/// How long rows that were begun for a client that polled are kept where others wait for memory.
const BEGUN_KEPT: Duration = Duration::from_secs(5);

/// A prepared statement of a client.
pub(crate) struct Prepared {
    pub(crate) prepared: engine::Prepared,
    /// The values that were bound last.
    pub(crate) bound: Mutex<Option<Arc<Bound>>>,
    /// What the plan and the text take.
    pub(crate) _memory: engine::Held,
}

/// Values of a prepared statement: one row for each run.
pub(crate) struct Bound {
    pub(crate) values: RecordBatch,
    /// Tells these values from others that were bound to the statement.
    pub(crate) binding: u64,
    /// The values as they are sent about, if they are not too large for that.
    pub(crate) travelling: Option<bytes::Bytes>,
    pub(crate) _memory: engine::Held,
}

/// The answer of a statement that was planned or carried out.
pub(crate) struct Waiting {
    /// The columns on the wire.
    pub(crate) schema: SchemaRef,
    pub(crate) rows: RowsOf,
    /// Rows that were begun to be made while the client polled, for the first fetch.
    pub(crate) begun: Mutex<Option<FirstRows>>,
    /// What plans and rows take.
    _memory: Option<engine::Held>,
    /// Whether somebody has fetched it to its end.
    pub(crate) is_fetched: AtomicBool,
}

/// Rows that are being made, and since when they wait to be fetched.
pub(crate) struct FirstRows {
    pub(crate) rows: BoxStream<'static, Result<RecordBatch, Status>>,
    pub(crate) since: Instant,
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
        Self { schema, rows, begun: Mutex::default(), _memory: None, is_fetched: AtomicBool::new(false) }
    }

    /// The same, counted as so much memory for as long as it is kept.
    pub(crate) fn counted(self, memory: engine::Held) -> Self {
        Self { _memory: Some(memory), ..self }
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
    owner: Option<UserIdentity>,
    session: u64,
    held: Held,
    /// When it goes by itself.
    expires: Option<Instant>,
    /// Counts it among the handles that are held.
    _counted: crate::metrics::Held,
}

/// What is kept, by id, and the ids of each session in the order in which they came.
#[derive(Default)]
struct Entries {
    by_id: HashMap<Uuid, Entry>,
    of_session: HashMap<u64, VecDeque<Uuid>>,
}

impl Entries {
    fn count(&self, session: u64) -> usize {
        self.of_session.get(&session).map_or(0, VecDeque::len)
    }

    fn insert(&mut self, id: Uuid, entry: Entry) {
        self.remove(id);
        self.of_session.entry(entry.session).or_default().push_back(id);
        self.by_id.insert(id, entry);
    }

    fn remove(&mut self, id: Uuid) -> bool {
        let Some(entry) = self.by_id.remove(&id) else { return false };
        if let Some(ids) = self.of_session.get_mut(&entry.session) {
            // Mostly the oldest one goes.
            ids.iter().position(|other| *other == id).map(|at| ids.remove(at));
            if ids.is_empty() {
                self.of_session.remove(&entry.session);
            }
        }
        true
    }

    fn retain(&mut self, stays: impl Fn(&Entry) -> bool) {
        let goes = |(id, entry): (&Uuid, &Entry)| (!stays(entry)).then_some(*id);
        let gone: Vec<Uuid> = self.by_id.iter().filter_map(goes).collect();
        for id in gone {
            self.remove(id);
        }
    }

    /// Forgets the oldest answer of a session that somebody has fetched; whether there was one.
    fn make_room(&mut self, session: u64) -> bool {
        let is_fetched = |id: &&Uuid| match self.by_id.get(id).map(|entry| &entry.held) {
            Some(Held::Waiting(waiting)) => waiting.is_fetched.load(Ordering::Relaxed),
            _ => false,
        };
        let oldest = self.of_session.get(&session).and_then(|ids| ids.iter().find(is_fetched)).copied();
        oldest.is_some_and(|id| self.remove(id))
    }
}

/// The handles of a server.
pub(crate) struct Handles {
    lifetime: Duration,
    per_session_max: usize,
    entries: Mutex<Entries>,
    /// The last that were closed, the newest last.
    closed: Mutex<VecDeque<Uuid>>,
    metrics: Metrics,
}

/// Whose a handle is.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// The user; nobody where the server does not ask.
    pub(crate) user: Option<&'a UserIdentity>,
    /// The session's number.
    pub(crate) session: u64,
}

impl Handles {
    pub(crate) fn new(limits: &Limits, metrics: Metrics) -> Self {
        let (lifetime, per_session_max) = (limits.handle_lifetime, limits.handles_per_session_max);
        Self { lifetime, per_session_max, entries: Mutex::default(), closed: Mutex::default(), metrics }
    }

    /// Keeps something under a new id.
    ///
    /// # Errors
    /// More handles of one session than there may be.
    pub(crate) fn add(&self, owner: Owner<'_>, held: Held) -> Result<Uuid, Status> {
        let id = Uuid::new_v4();
        self.adopt(owner, id, held, self.lifetime)?;
        Ok(id)
    }

    /// Keeps something under the id that a handle has; what is kept under it already stays. Answers go after `lifetime`.
    ///
    /// # Errors
    /// As [`Handles::add`].
    pub(crate) fn adopt(&self, owner: Owner<'_>, id: Uuid, held: Held, lifetime: Duration) -> Result<Held, Status> {
        let expires = match held {
            Held::Prepared(_) => None,
            Held::Waiting(_) | Held::Polled(_) => Some(Instant::now() + lifetime),
        };
        let mut entries = locked(&self.entries);
        if let Some(there) = entries.by_id.get(&id).filter(|entry| entry.owner.as_ref() == owner.user) {
            return Ok(there.held.clone());
        }
        let of_session = entries.count(owner.session);
        if of_session >= self.per_session_max && !entries.make_room(owner.session) {
            return Err(Status::resource_exhausted(format!(
                "the session holds {of_session} prepared statements and answers, and no more may be; close some, or raise limits.handles_per_session_max"
            )));
        }
        let _counted = self.metrics.handle();
        let (user, session) = (owner.user.cloned(), owner.session);
        entries.insert(id, Entry { owner: user, session, held: held.clone(), expires, _counted });
        Ok(held)
    }

    /// What an id stands for; `None` if it is not here, and was not closed here.
    ///
    /// # Errors
    /// It is not this user's, was closed, or is too old.
    pub(crate) fn find(&self, owner: Owner<'_>, id: Uuid) -> Result<Option<Held>, Status> {
        let entries = locked(&self.entries);
        let Some(entry) = entries.by_id.get(&id) else {
            let is_closed = locked(&self.closed).contains(&id);
            return if is_closed { Err(unknown()) } else { Ok(None) };
        };
        let is_old = entry.expires.is_some_and(|expires| expires < Instant::now());
        if is_old || entry.owner.as_ref() != owner.user { Err(unknown()) } else { Ok(Some(entry.held.clone())) }
    }

    /// Lets an answer wait as long again, if it is here; when it goes.
    ///
    /// # Errors
    /// As [`Handles::find`].
    pub(crate) fn renew(&self, owner: Owner<'_>, id: Uuid) -> Result<SystemTime, Status> {
        self.find(owner, id)?;
        if let Some(entry) = locked(&self.entries).by_id.get_mut(&id) {
            entry.expires = Some(Instant::now() + self.lifetime);
        }
        Ok(self.expiry())
    }

    /// When an answer goes that is given out now.
    pub(crate) fn expiry(&self) -> SystemTime {
        SystemTime::now() + self.lifetime
    }

    /// Forgets what an id of this owner stands for; whether it was here.
    pub(crate) fn close(&self, owner: Owner<'_>, id: Uuid) -> bool {
        let mut entries = locked(&self.entries);
        if entries.by_id.get(&id).is_some_and(|entry| entry.owner.as_ref() != owner.user) {
            return false;
        }
        let mut closed = locked(&self.closed);
        if closed.len() == CLOSED_MAX {
            closed.pop_front();
        }
        closed.push_back(id);
        entries.remove(id)
    }

    /// Forgets what is too old, and what sessions that are gone have left.
    pub(crate) fn sweep(&self, is_open: impl Fn(u64) -> bool) {
        let now = Instant::now();
        locked(&self.entries)
            .retain(|entry| entry.expires.is_none_or(|expires| expires >= now) && is_open(entry.session));
    }

    /// Stops making rows that nobody has fetched for a while: they hold memory that others wait for. Who fetches them later
    /// runs the plan anew.
    pub(crate) fn let_go_of_begun(&self) {
        let held: Vec<Held> = locked(&self.entries).by_id.values().map(|entry| entry.held.clone()).collect();
        for held in held {
            let Held::Waiting(waiting) = held else { continue };
            let mut begun = locked(&waiting.begun);
            if begun.as_ref().is_some_and(|begun| begun.since.elapsed() > BEGUN_KEPT) {
                *begun = None;
            }
        }
    }

    /// Forgets everything of a session.
    pub(crate) fn close_session(&self, session: u64) {
        locked(&self.entries).retain(|entry| entry.session != session);
    }
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
        let user = |name: &str, id: &str| UserIdentity { name: name.into(), id: id.into() };
        let (ada, bob, later) = (user("ada", "1"), user("bob", "2"), user("ada", "3"));
        let owner = |user, session| Owner { user, session };
        let id = handles.add(owner(Some(&ada), 1), Held::Waiting(waiting())).unwrap();
        assert!(handles.find(owner(Some(&ada), 1), id).unwrap().is_some());
        assert!(handles.find(owner(Some(&ada), 9), id).unwrap().is_some(), "another connection of the same user");
        for stranger in [Some(&bob), Some(&later), None] {
            let stranger = owner(stranger, 1);
            assert_eq!(handles.find(stranger, id).err().unwrap().code(), tonic::Code::NotFound);
            assert!(!handles.close(stranger, id));
        }
        assert!(handles.find(owner(Some(&ada), 1), Uuid::new_v4()).unwrap().is_none());
        assert!(handles.close(owner(Some(&ada), 1), id));
        assert!(handles.find(owner(Some(&ada), 1), id).is_err(), "it is remembered as closed");
    }

    #[test]
    fn what_is_kept_under_an_id_stays() {
        let handles = handles(Duration::from_secs(60), 2);
        let (owner, id) = (Owner { user: None, session: 1 }, Uuid::new_v4());
        let (first, second) = (waiting(), waiting());
        for one in [&first, &second] {
            let lifetime = Duration::from_secs(60);
            let Held::Waiting(kept) = handles.adopt(owner, id, Held::Waiting(Arc::clone(one)), lifetime).unwrap()
            else {
                panic!("another kind")
            };
            assert!(Arc::ptr_eq(&kept, &first));
        }
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
        assert!(handles.find(owner, id).unwrap().is_none());
    }

    #[test]
    fn answers_go_when_they_are_old_or_their_session_is_gone() {
        let owner = Owner { user: None, session: 1 };
        let old = handles(Duration::ZERO, 8);
        let id = old.add(owner, Held::Waiting(waiting())).unwrap();
        std::thread::yield_now();
        assert!(old.find(owner, id).is_err() || Instant::now().elapsed() < Duration::from_millis(1));
        let handles = handles(Duration::from_secs(60), 8);
        handles.add(owner, Held::Waiting(waiting())).unwrap();
        handles.sweep(|_| true);
        assert_eq!(locked(&handles.entries).by_id.len(), 1);
        handles.sweep(|_| false);
        let entries = locked(&handles.entries);
        assert!(entries.by_id.is_empty() && entries.of_session.is_empty());
    }
}
