//! Appends: the files of several small statements are written side by side and committed together, in order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datafusion::execution::SendableRecordBatchStream;
use lance::dataset::transaction::Operation;
use tokio::sync::OwnedMutexGuard;

use crate::catalog::{TableEntry, TableName};
use crate::change::Committed;
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::keys::check_keys;
use crate::turn::{Sequencer, Turn};
use crate::write::{Pending, Progress, Rows, write_files};

/// Statements that share a commit, at most.
const GROUP_MAX: usize = 256;

/// How often a commit is tried while writers of other processes are faster.
const ATTEMPTS_MAX: u32 = 100;

/// The wait before the second attempt; it grows with each further one, up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(2);

/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// An append whose files are written.
pub(crate) struct Waiting {
    pending: Pending,
    state: Mutex<State>,
}

enum State {
    Queued,
    /// Somebody commits it.
    Taken,
    Done(Result<Committed>),
    /// The result was handed out, or nobody wants it any more.
    Over,
}

impl Waiting {
    fn set(&self, next: State) -> State {
        std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), next)
    }

    fn is_queued(&self) -> bool {
        matches!(*self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Queued)
    }

    fn is_done(&self) -> bool {
        matches!(*self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Done(_))
    }
}

/// Takes an append out of the queue when its statement is cancelled before its commit began.
struct Place {
    sequencer: Arc<Sequencer>,
    waiting: Arc<Waiting>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.sequencer.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.waiting.is_queued() {
            queue.retain(|other| !Arc::ptr_eq(other, &self.waiting));
        }
    }
}

impl Database {
    /// Adds rows to a table: all of them or none, in one version, which small statements at the same time share.
    /// Returns their number; no rows, no version.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the table was dropped or altered meanwhile, [`StorageError::Duplicate`] if a
    /// primary key would be there twice, [`StorageError::Invalid`] for rows that do not fit, [`StorageError::Full`],
    /// [`StorageError::Input`] if `rows` fails.
    pub async fn append(
        &self,
        name: &TableName,
        entry: &TableEntry,
        rows: SendableRecordBatchStream,
        progress: Option<Progress>,
    ) -> Result<u64> {
        self.check_holds(name, entry).await?;
        let snapshot = self.snapshot(entry).await?;
        let rows = Rows::new(rows, snapshot.schema())?.with_keys(&snapshot)?;
        let pending = write_files(self.root(), &entry.location, snapshot.dataset().clone(), rows, progress).await?;
        if pending.rows == 0 {
            return Ok(0);
        }
        let sequencer = self.sequencers().of(&entry.location);
        let waiting = Arc::new(Waiting { pending, state: Mutex::new(State::Queued) });
        sequencer.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(Arc::clone(&waiting));
        let place = Place { sequencer: Arc::clone(&sequencer), waiting: Arc::clone(&waiting) };
        let permit = sequencer.wait().await;
        if !waiting.is_done() {
            let group = Group { members: take_group(&sequencer), permit: Arc::new(permit) };
            let (database, name, entry) = (self.clone(), name.clone(), entry.clone());
            // In a task of its own: members of other statements must hear how it ended, whoever stops waiting.
            let committed = tokio::spawn(async move { group.commit(&database, &name, &entry).await }).await;
            committed.map_err(|error| StorageError::internal("a commit was broken off").with_source(error))?;
        }
        drop(place);
        match waiting.set(State::Over) {
            State::Done(result) => result.map(|committed| committed.inserted),
            _ => Err(StorageError::internal("a commit ended without a result; look whether the rows are there")),
        }
    }
}

fn take_group(sequencer: &Sequencer) -> Vec<Arc<Waiting>> {
    let mut queue = sequencer.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let count = queue.len().min(GROUP_MAX);
    let members: Vec<Arc<Waiting>> = queue.drain(..count).collect();
    for member in &members {
        member.set(State::Taken);
    }
    members
}

/// Appends that are committed together.
struct Group {
    members: Vec<Arc<Waiting>>,
    /// Kept until every member has its result: who gets the turn next and has none was not committed.
    permit: Arc<OwnedMutexGuard<()>>,
}

impl Group {
    async fn commit(mut self, database: &Database, name: &TableName, entry: &TableEntry) {
        for attempt in 1..=ATTEMPTS_MAX {
            let turn = database.turn_with(name, entry, Arc::clone(&self.permit)).await;
            match self.attempt(turn).await {
                Ok(version) => return self.succeed(version),
                Err(StorageError::Stale(_)) if attempt < ATTEMPTS_MAX => {
                    tokio::time::sleep((BACKOFF * attempt).min(BACKOFF_MAX)).await;
                }
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Checks the members in order, drops those whose keys are taken, and commits the rest.
    async fn attempt(&mut self, turn: Result<Turn>) -> Result<u64> {
        let turn = turn?;
        let snapshot = turn.snapshot();
        let mut earlier = HashMap::new();
        let mut accepted: Vec<Arc<Waiting>> = Vec::with_capacity(self.members.len());
        let several = self.members.len() > 1;
        for member in std::mem::take(&mut self.members) {
            let outcome = async {
                member.pending.check_fits(snapshot)?;
                let Some(keys) = &member.pending.keys else { return Ok(()) };
                keys.check_against(&earlier)?;
                check_keys(turn.database.key_cache(), snapshot, keys, &Default::default()).await?;
                if several {
                    keys.add_to(&mut earlier);
                }
                Ok(())
            };
            match outcome.await {
                Ok(()) => accepted.push(member),
                Err(error) => drop(member.set(State::Done(Err(error)))),
            }
        }
        self.members = accepted;
        let fragments = self.members.iter().flat_map(|member| member.pending.fragments.iter().cloned()).collect();
        if self.members.is_empty() {
            return Ok(snapshot.version());
        }
        // From here on a version may name the files, whatever becomes of us.
        self.members.iter().for_each(|member| member.pending.keep());
        Ok(turn.finish(Operation::Append { fragments }, "INSERT", None).await?.version())
    }

    fn succeed(mut self, version: u64) {
        for member in std::mem::take(&mut self.members) {
            let inserted = member.pending.rows;
            member.set(State::Done(Ok(Committed { version, inserted, deleted: 0 })));
        }
    }

    fn fail(mut self, error: &StorageError) {
        for member in std::mem::take(&mut self.members) {
            member.set(State::Done(Err(error.again())));
        }
    }
}

impl Drop for Group {
    /// A panic must not leave members without a result.
    fn drop(&mut self) {
        for member in &self.members {
            member.set(State::Done(Err(StorageError::internal(
                "the commit of this statement was broken off; look whether its rows are there",
            ))));
        }
    }
}

#[cfg(test)]
mod tests;
