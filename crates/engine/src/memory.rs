//! Who holds how much: one pool for the statements of all users, a bound on each user's share, and a claim on what a
//! statement needs before it runs.
//!
//! A claim is what [`Needs`] says: buffers that nothing else accounts for, and what operators that spill can count on. It is
//! had at once or waited for, in order, and a statement that waits holds nothing else. What operators ask for as they go
//! comes from the statement's own claim first and then from what nobody has claimed; if there is nothing left, they spill
//! or the statement fails, it never waits: statements that wait for each other would wait for good.
//!
//! The pool is a hard bound. Operators that spill share it evenly, one share being kept for the next to come.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use datafusion::common::resources_datafusion_err;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use operators::buffers::{Buffers, Needs};
use tokio::sync::oneshot;

use crate::{Error, ErrorKind, Result};

/// The part of the pool that one statement may claim: the rest is for what its operators ask for as they go.
const CLAIM_SHARE: (usize, usize) = (3, 4);
/// The part of the pool that is not given out at most, whatever the process holds.
const UNFORESEEN_SHARE: (usize, usize) = (3, 4);
/// The most that a statement holds that rewrites the files of a table.
const REWRITE_BYTES_MAX: usize = 768 << 20;
/// How long a statement waits for its claim, until the engine is told otherwise.
const WAIT_DEFAULT: Duration = Duration::from_secs(60);

/// The memory of an engine's statements.
pub(crate) struct Memory {
    buffers: Buffers,
    state: Mutex<State>,
}

struct State {
    bytes_max: usize,
    /// What others than statements hold beyond what was foreseen, by the last look at the process.
    unforeseen: usize,
    per_user_max: Option<usize>,
    wait: Duration,
    /// Claims, and what was granted beyond them.
    taken: usize,
    /// What of it operators hold that can spill, beyond claims.
    spillable: usize,
    /// Operators that can spill.
    spillers: usize,
    users: HashMap<Arc<str>, Share>,
    waiting: VecDeque<Waiter>,
    next: u64,
}

/// What a user has.
#[derive(Default)]
struct Share {
    /// Claims, and what was granted beyond them.
    bytes: usize,
    /// As in [`State`], of this user's statements.
    spillable: usize,
    spillers: usize,
}

/// A claim before it is granted.
struct Wished {
    user: Option<Arc<str>>,
    bytes: usize,
    promised: usize,
    buffers: Buffers,
}

impl Wished {
    /// The claim, whose bytes are taken.
    fn granted(self, memory: &Arc<Memory>) -> Claim {
        let held = Held { memory: Arc::clone(memory), user: self.user, bytes: self.bytes };
        Claim { held, promised: self.promised, buffers: self.buffers }
    }
}

struct Waiter {
    number: u64,
    user: Option<Arc<str>>,
    bytes: usize,
    served: oneshot::Sender<()>,
}

/// Why memory is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// The statements that run have it.
    Pool { free: usize, bytes_max: usize },
    /// Its user has as much as one may.
    User { free: usize, bytes_max: usize },
}

impl Lack {
    fn next_step(self) -> String {
        match self {
            Self::Pool { free, bytes_max } => format!(
                "{} of the {} for all statements are free; try again when fewer run, raise --memory-limit, or let the statement touch fewer rows",
                shown(free),
                shown(bytes_max)
            ),
            Self::User { free, bytes_max } => format!(
                "the user has {} left of limits.memory_per_user_max = {}; try again when fewer of the user's statements run, raise that limit, or let the statement touch fewer rows",
                shown(free),
                shown(bytes_max)
            ),
        }
    }
}

/// Bytes for people.
fn shown(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

impl State {
    fn limit(&self) -> usize {
        self.bytes_max.saturating_sub(self.unforeseen)
    }

    fn check(&self, user: Option<&Arc<str>>, bytes: usize) -> std::result::Result<(), Lack> {
        self.check_within(self.limit(), user, bytes)
    }

    fn check_within(&self, limit: usize, user: Option<&Arc<str>>, bytes: usize) -> std::result::Result<(), Lack> {
        if let (Some(user), Some(bytes_max)) = (user, self.per_user_max) {
            let free = bytes_max.saturating_sub(self.users.get(user).map_or(0, |share| share.bytes));
            if bytes > free {
                return Err(Lack::User { free, bytes_max });
            }
        }
        let free = limit.saturating_sub(self.taken);
        if bytes > free {
            return Err(Lack::Pool { free, bytes_max: self.bytes_max });
        }
        Ok(())
    }

    fn take(&mut self, user: Option<&Arc<str>>, bytes: usize) {
        self.taken += bytes;
        if let Some(user) = user {
            self.users.entry(Arc::clone(user)).or_default().bytes += bytes;
        }
    }

    fn give(&mut self, user: Option<&Arc<str>>, bytes: usize) {
        self.taken = self.taken.saturating_sub(bytes);
        if let Some(user) = user
            && let Some(share) = self.users.get_mut(user)
        {
            share.bytes = share.bytes.saturating_sub(bytes);
            if share.bytes == 0 && share.spillers == 0 {
                self.users.remove(user);
            }
        }
        self.serve_waiting();
    }

    /// An operator that can spill has come.
    fn spiller_comes(&mut self, user: Option<&Arc<str>>) {
        self.spillers += 1;
        if let Some(user) = user {
            self.users.entry(Arc::clone(user)).or_default().spillers += 1;
        }
    }

    fn spiller_goes(&mut self, user: Option<&Arc<str>>) {
        self.spillers = self.spillers.saturating_sub(1);
        if let Some(user) = user
            && let Some(share) = self.users.get_mut(user)
        {
            share.spillers = share.spillers.saturating_sub(1);
            if share.bytes == 0 && share.spillers == 0 {
                self.users.remove(user);
            }
        }
    }

    /// Counts what is granted to an operator that can spill.
    fn spillable_grows(&mut self, user: Option<&Arc<str>>, bytes: usize) {
        self.spillable += bytes;
        if let Some(share) = user.and_then(|user| self.users.get_mut(user)) {
            share.spillable += bytes;
        }
    }

    fn spillable_shrinks(&mut self, user: Option<&Arc<str>>, bytes: usize) {
        self.spillable = self.spillable.saturating_sub(bytes);
        if let Some(share) = user.and_then(|user| self.users.get_mut(user)) {
            share.spillable = share.spillable.saturating_sub(bytes);
        }
    }

    /// Whether an operator that can spill may hold so many bytes: those of all share evenly what others leave, and those of
    /// one user what the user's others leave. Whatever cannot spill would find nothing else.
    fn check_spiller(&self, user: Option<&Arc<str>>, held: usize, additional: usize) -> std::result::Result<(), Lack> {
        let fair = |limit: usize, taken: usize, spillable: usize, spillers: usize| {
            limit.saturating_sub(taken - spillable.min(taken)) / (spillers + 1)
        };
        let wished = held.saturating_add(additional);
        if let (Some(user), Some(bytes_max)) = (user, self.per_user_max) {
            let (bytes, spillable, spillers) =
                self.users.get(user).map_or((0, 0, 0), |share| (share.bytes, share.spillable, share.spillers));
            let share = fair(bytes_max, bytes, spillable, spillers);
            if wished > share {
                return Err(Lack::User { free: share.saturating_sub(held), bytes_max });
            }
        }
        let share = fair(self.limit(), self.taken, self.spillable, self.spillers);
        if wished > share {
            return Err(Lack::Pool { free: share.saturating_sub(held), bytes_max: self.bytes_max });
        }
        Ok(())
    }

    /// Whether a claim can be had now: who came first comes first.
    fn has_room(&self, wished: &Wished) -> bool {
        self.waiting.is_empty() && self.check(wished.user.as_ref(), wished.bytes).is_ok()
    }

    /// A place in the queue.
    fn queue<'a>(&mut self, memory: &'a Memory, wished: &Wished) -> Place<'a> {
        let (sender, served) = oneshot::channel();
        let (number, bytes, user) = (self.next, wished.bytes, wished.user.clone());
        self.next += 1;
        self.waiting.push_back(Waiter { number, user: user.clone(), bytes, served: sender });
        // Those before it may wait for memory of their own users.
        self.serve_waiting();
        Place { memory, user, bytes, number, served, is_taken: false }
    }

    /// The error of a statement that could not have its claim.
    fn given_up(&self, wished: &Wished, waited: Duration) -> Error {
        let next = match self.check(wished.user.as_ref(), wished.bytes) {
            Err(lack) => lack.next_step(),
            Ok(()) => "others were before it; try again in a moment".to_owned(),
        };
        let (waited, bytes) = (waited.as_secs_f64(), shown(wished.bytes));
        let message = format!("the statement waited {waited} s for {bytes} of memory and gave up: {next}");
        Error::new(ErrorKind::Exhausted, message)
    }

    /// Gives those who wait what they wait for, in order. Who waits for its own user's memory lets others pass.
    fn serve_waiting(&mut self) {
        let mut at = 0;
        while let Some(waiter) = self.waiting.get(at) {
            let (user, bytes) = (waiter.user.clone(), waiter.bytes);
            match self.check(user.as_ref(), bytes) {
                Err(Lack::User { .. }) => at += 1,
                Err(Lack::Pool { .. }) => return,
                Ok(()) => {
                    let Some(waiter) = self.waiting.remove(at) else { return };
                    // Whoever does not wait any more takes nothing.
                    if waiter.served.send(()).is_ok() {
                        self.take(user.as_ref(), bytes);
                    }
                }
            }
        }
    }
}

impl Memory {
    /// Memory of so many bytes, all that is not foreseen for caches and for the process itself.
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        let state = State {
            bytes_max,
            unforeseen: 0,
            per_user_max: None,
            wait: WAIT_DEFAULT,
            taken: 0,
            spillable: 0,
            spillers: 0,
            users: HashMap::new(),
            waiting: VecDeque::new(),
            next: 0,
        };
        Arc::new(Self { buffers: Buffers::of_pool(bytes_max), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The buffers of a statement that has few parts.
    pub(crate) fn buffers(&self) -> Buffers {
        self.buffers
    }

    /// What a statement may hold that rewrites the files of a table.
    pub(crate) fn rewrite_bytes(&self) -> usize {
        (self.lock().bytes_max / 4).min(REWRITE_BYTES_MAX)
    }

    /// The pool of what belongs to no statement.
    pub(crate) fn pool(self: &Arc<Self>) -> Arc<dyn MemoryPool> {
        let claim = Held { memory: Arc::clone(self), user: None, bytes: 0 };
        Arc::new(StatementPool { claim, promised: 0, used: Mutex::default() })
    }

    pub(crate) fn set_per_user_max(&self, bytes: Option<usize>) {
        self.lock().per_user_max = bytes;
    }

    pub(crate) fn set_wait(&self, wait: Duration) {
        self.lock().wait = wait;
    }

    /// Notes what the process holds beyond what was foreseen: so much less is given out, but a part always. What was freed
    /// may not have gone back to the system, and is there for the next statement.
    pub(crate) fn set_unforeseen(&self, bytes: usize) {
        let mut state = self.lock();
        let bytes = bytes.min(state.bytes_max / UNFORESEEN_SHARE.1 * UNFORESEEN_SHARE.0);
        let before = std::mem::replace(&mut state.unforeseen, bytes);
        if bytes < before {
            state.serve_waiting();
        }
    }

    /// Bytes taken, bytes that may be, and how many statements wait for theirs.
    pub(crate) fn figures(&self) -> (usize, usize, usize) {
        let state = self.lock();
        (state.taken, state.bytes_max, state.waiting.len())
    }

    /// Takes what a statement needs, as soon as it is there.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] for needs that cannot be met however small the buffers are, and where others held the
    /// memory for too long.
    pub(crate) async fn claim(self: &Arc<Self>, user: Option<Arc<str>>, needs: &Needs) -> Result<Claim> {
        let wished = self.wish(user, needs)?;
        let (place, wait) = {
            let mut state = self.lock();
            if state.has_room(&wished) {
                state.take(wished.user.as_ref(), wished.bytes);
                return Ok(wished.granted(self));
            }
            (state.queue(self, &wished), state.wait)
        };
        let served = place.served(wait).await;
        if served { Ok(wished.granted(self)) } else { Err(self.lock().given_up(&wished, wait)) }
    }

    /// As [`Memory::claim`], without waiting: for a statement that holds what others may wait for. `None`: not now.
    ///
    /// # Errors
    /// Needs that cannot be met however small the buffers are.
    pub(crate) fn claim_at_once(self: &Arc<Self>, user: Option<Arc<str>>, needs: &Needs) -> Result<Option<Claim>> {
        let wished = self.wish(user, needs)?;
        let mut state = self.lock();
        if !state.has_room(&wished) {
            return Ok(None);
        }
        state.take(wished.user.as_ref(), wished.bytes);
        Ok(Some(wished.granted(self)))
    }

    /// What is claimed for needs: buffers of a size with which they fit into a part of what there may be.
    fn wish(&self, user: Option<Arc<str>>, needs: &Needs) -> Result<Wished> {
        let most = {
            let state = self.lock();
            let of_user = state.per_user_max.filter(|_| user.is_some()).unwrap_or(usize::MAX);
            state.bytes_max.min(of_user) / CLAIM_SHARE.1 * CLAIM_SHARE.0
        };
        let Some(buffers) = needs.fitted(&self.buffers, most) else {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "the statement reads and writes {} parts at once, and {} of memory are too little for their buffers; raise --memory-limit (or limits.memory_per_user_max), lower --threads, or split the statement",
                    needs.parts(),
                    shown(most)
                ),
            ));
        };
        Ok(Wished { user, bytes: needs.bytes(&buffers), promised: needs.promised(&buffers), buffers })
    }

    /// Takes memory for something that is kept for a user.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] if there is none. `what` is told: "a bound value" and so on.
    pub(crate) fn hold(self: &Arc<Self>, user: Option<&str>, bytes: usize, what: &str) -> Result<Held> {
        let user: Option<Arc<str>> = user.map(Into::into);
        let mut state = self.lock();
        // It cannot wait, and mostly is little: only what is taken counts.
        if let Err(lack) = state.check_within(state.bytes_max, user.as_ref(), bytes) {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!("{what} takes {} of memory: {}", shown(bytes), lack.next_step()),
            ));
        }
        state.take(user.as_ref(), bytes);
        Ok(Held { memory: Arc::clone(self), user, bytes })
    }

    /// Counts memory that is there already, whether there is room or not: others get so much less.
    pub(crate) fn hold_anyway(self: &Arc<Self>, user: Option<&str>, bytes: usize) -> Held {
        let user: Option<Arc<str>> = user.map(Into::into);
        self.lock().take(user.as_ref(), bytes);
        Held { memory: Arc::clone(self), user, bytes }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (taken, bytes_max, waiting) = self.figures();
        write!(f, "Memory({taken} of {bytes_max} taken, {waiting} wait)")
    }
}

/// One that waits; dropped, it is taken out of the queue.
struct Place<'a> {
    memory: &'a Memory,
    user: Option<Arc<str>>,
    bytes: usize,
    number: u64,
    served: oneshot::Receiver<()>,
    /// What it waited for is somebody else's to give back now.
    is_taken: bool,
}

impl Place<'_> {
    /// Whether it was served in time.
    async fn served(mut self, wait: Duration) -> bool {
        self.is_taken = matches!(tokio::time::timeout(wait, &mut self.served).await, Ok(Ok(())));
        self.is_taken
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.is_taken {
            return;
        }
        let mut state = self.memory.lock();
        state.waiting.retain(|waiter| waiter.number != self.number);
        // It may have been served in the moment in which it gave up.
        if self.served.try_recv().is_ok() {
            state.give(self.user.as_ref(), self.bytes);
        } else {
            state.serve_waiting();
        }
    }
}

/// Memory that is kept for something; it is given back when this is dropped.
#[derive(Debug)]
pub struct Held {
    memory: Arc<Memory>,
    user: Option<Arc<str>>,
    bytes: usize,
}

impl Held {
    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.lock().give(self.user.as_ref(), self.bytes);
        }
    }
}

/// What a statement may hold.
#[derive(Debug)]
pub(crate) struct Claim {
    held: Held,
    /// What of it the statement's operators can count on.
    promised: usize,
    buffers: Buffers,
}

impl Claim {
    /// How large the statement's buffers may be.
    pub(crate) fn buffers(&self) -> Buffers {
        self.buffers
    }

    /// Whether it is enough for these needs.
    pub(crate) fn covers(&self, needs: &Needs) -> bool {
        needs.bytes(&self.buffers) <= self.held.bytes && needs.promised(&self.buffers) <= self.promised
    }

    /// The pool of the statement's operators. The claim goes with the pool.
    pub(crate) fn into_pool(self) -> Arc<dyn MemoryPool> {
        Arc::new(StatementPool { claim: self.held, promised: self.promised, used: Mutex::default() })
    }
}

/// The memory of one statement's operators: its claim first, then what nobody has claimed.
struct StatementPool {
    claim: Held,
    promised: usize,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    bytes: usize,
    /// What of that is beyond the claim and can be spilled.
    spillable: usize,
}

impl StatementPool {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes beyond the claim of a statement that holds so many.
    fn beyond(&self, bytes: usize) -> usize {
        bytes.saturating_sub(self.promised)
    }
}

impl MemoryPool for StatementPool {
    fn name(&self) -> &'static str {
        "statement"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        if consumer.can_spill() {
            self.claim.memory.lock().spiller_comes(self.claim.user.as_ref());
        }
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        if consumer.can_spill() {
            self.claim.memory.lock().spiller_goes(self.claim.user.as_ref());
        }
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        let mut used = self.used();
        let bytes = used.bytes.saturating_add(additional);
        let needed = self.beyond(bytes) - self.beyond(used.bytes);
        let mut state = self.claim.memory.lock();
        state.take(self.claim.user.as_ref(), needed);
        used.bytes = bytes;
        if reservation.consumer().can_spill() {
            used.spillable += needed;
            state.spillable_grows(self.claim.user.as_ref(), needed);
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let mut used = self.used();
        let left = used.bytes.saturating_sub(shrink);
        let given = self.beyond(used.bytes) - self.beyond(left);
        used.bytes = left;
        let was_spillable = match reservation.consumer().can_spill() {
            true => used.spillable.min(given),
            // What is left beyond the claim may be less than what was counted as spillable.
            false => used.spillable.saturating_sub(self.beyond(left)),
        };
        used.spillable -= was_spillable;
        let mut state = self.claim.memory.lock();
        state.spillable_shrinks(self.claim.user.as_ref(), was_spillable);
        state.give(self.claim.user.as_ref(), given);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> DataFusionResult<()> {
        let consumer = reservation.consumer();
        let mut used = self.used();
        let bytes = used.bytes.saturating_add(additional);
        let needed = self.beyond(bytes) - self.beyond(used.bytes);
        let mut state = self.claim.memory.lock();
        if needed > 0 {
            let mut outcome = state.check(self.claim.user.as_ref(), needed);
            if outcome.is_ok() && consumer.can_spill() {
                outcome = state.check_spiller(self.claim.user.as_ref(), reservation.size(), additional);
            }
            outcome.map_err(|lack| {
                resources_datafusion_err!(
                    "{} holds {} and needs {} more of memory: {}",
                    consumer.name(),
                    shown(reservation.size()),
                    shown(additional),
                    lack.next_step()
                )
            })?;
            state.take(self.claim.user.as_ref(), needed);
            if consumer.can_spill() {
                used.spillable += needed;
                state.spillable_grows(self.claim.user.as_ref(), needed);
            }
        }
        used.bytes = bytes;
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.used().bytes
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.claim.memory.lock().bytes_max)
    }
}

impl fmt::Debug for StatementPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatementPool({} of {} promised)", self.reserved(), self.promised)
    }
}

impl fmt::Display for StatementPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Needs of so many bytes, none of them promised to operators.
    fn needs(bytes: usize) -> Needs {
        Needs::of_bytes(bytes)
    }

    fn user(name: &str) -> Option<Arc<str>> {
        Some(name.into())
    }

    async fn until_waiting(memory: &Memory, count: usize) {
        while memory.figures().2 != count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn claims_are_had_in_order_and_given_back() {
        let memory = Memory::new(100 * MIB);
        let first = memory.claim(None, &needs(60 * MIB)).await.unwrap();
        let waits = |bytes: usize| {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move { memory.claim(None, &needs(bytes)).await })
        };
        let large = waits(70 * MIB);
        until_waiting(&memory, 1).await;
        let small = waits(MIB);
        until_waiting(&memory, 2).await;
        assert!(memory.claim_at_once(None, &needs(MIB)).unwrap().is_none(), "nobody passes those who wait");
        drop(first);
        let (large, small) = (large.await.unwrap().unwrap(), small.await.unwrap().unwrap());
        assert_eq!(memory.figures(), (71 * MIB, 100 * MIB, 0));
        drop((large, small));
        assert_eq!(memory.figures().0, 0);
    }

    #[tokio::test]
    async fn who_waits_too_long_or_is_cancelled_holds_nothing_and_lets_others_pass() {
        let memory = Memory::new(100 * MIB);
        memory.set_wait(Duration::from_millis(1));
        let _first = memory.claim(None, &needs(60 * MIB)).await.unwrap();
        let error = memory.claim(None, &needs(50 * MIB)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exhausted);
        assert!(error.message.contains("40.0 MiB of the 100.0 MiB") && error.message.contains("try again"), "{error}");
        memory.set_wait(WAIT_DEFAULT);
        let large = {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move { memory.claim(None, &needs(50 * MIB)).await.map(drop) })
        };
        until_waiting(&memory, 1).await;
        let small = {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move { memory.claim(None, &needs(MIB)).await.map(drop) })
        };
        until_waiting(&memory, 2).await;
        large.abort();
        small.await.unwrap().unwrap();
        assert_eq!(memory.figures(), (60 * MIB, 100 * MIB, 0));
    }

    #[tokio::test]
    async fn a_user_has_no_more_than_one_may_and_keeps_nobody_else_waiting() {
        let memory = Memory::new(100 * MIB);
        memory.set_per_user_max(Some(40 * MIB));
        let first = memory.claim(user("ada"), &needs(20 * MIB)).await.unwrap();
        let second = {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move { memory.claim(user("ada"), &needs(30 * MIB)).await })
        };
        until_waiting(&memory, 1).await;
        let error = memory.hold(Some("ada"), 21 * MIB, "a value").unwrap_err();
        assert!(error.message.contains("limits.memory_per_user_max = 40.0 MiB"), "{error}");
        let other = {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move { memory.claim(user("bob"), &needs(30 * MIB)).await })
        };
        let other = other.await.unwrap().unwrap();
        drop(first);
        let second = second.await.unwrap().unwrap();
        assert_eq!(memory.figures().0, 60 * MIB);
        drop((second, other));
        assert!(memory.lock().users.is_empty());
    }

    #[tokio::test]
    async fn operators_use_the_claim_first_then_what_is_free_and_never_more() {
        let memory = Memory::new(100 * MIB);
        let claim = memory.claim(None, &Needs::of_promise(4 * MIB)).await.unwrap();
        let pool = claim.into_pool();
        let join = MemoryConsumer::new("join").register(&pool);
        join.try_grow(4 * MIB).unwrap();
        assert_eq!(memory.figures().0, 4 * MIB, "the claim covers it");
        join.try_grow(86 * MIB).unwrap();
        assert_eq!(memory.figures().0, 90 * MIB);
        let error = join.try_grow(11 * MIB).unwrap_err().to_string();
        assert!(error.contains("join holds 90.0 MiB and needs 11.0 MiB more"), "{error}");
        join.shrink(88 * MIB);
        assert_eq!(memory.figures().0, 4 * MIB);
        drop((join, pool));
        assert_eq!(memory.figures().0, 0);
    }

    #[tokio::test]
    async fn operators_that_spill_leave_a_share_to_the_next() {
        let memory = Memory::new(96 * MIB);
        let pool = memory.pool();
        let sort = |name: &str| MemoryConsumer::new(name).with_can_spill(true).register(&pool);
        let first = sort("first");
        first.try_grow(48 * MIB).unwrap();
        assert!(first.try_grow(MIB).is_err());
        let second = sort("second");
        second.try_grow(32 * MIB).unwrap();
        assert!(second.try_grow(MIB).is_err());
        let third = sort("third");
        third.try_grow(16 * MIB).unwrap();
        assert!(third.try_grow(MIB).is_err(), "together they never hold more than there is");
        drop((first, second, third));
        let state = memory.lock();
        assert_eq!((state.taken, state.spillable, state.spillers), (0, 0, 0));
    }

    #[tokio::test]
    async fn what_nobody_foresaw_is_not_given_out() {
        let memory = Memory::new(100 * MIB);
        memory.set_unforeseen(50 * MIB);
        assert!(memory.claim_at_once(None, &needs(60 * MIB)).unwrap().is_none());
        memory.set_unforeseen(0);
        assert!(memory.claim_at_once(None, &needs(60 * MIB)).unwrap().is_some());
    }
}
