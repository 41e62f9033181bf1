//! Taking turns: the writers of one process queue per table, so that a change is planned and committed on one version.
//! Writers of other processes are found out at the commit (`commit.rs`). What a turn commits is in `change.rs`, how
//! small appends share a commit in `append.rs`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as TurnMutex, OwnedMutexGuard};

use crate::append::Waiting;
use crate::catalog::{TableEntry, TableName};
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::snapshot::Snapshot;

/// Tables whose queues are remembered while nobody writes.
const IDLE_MAX: usize = 1024;

/// Where the writers of one table queue.
#[derive(Default)]
pub(crate) struct Sequencer {
    turn: Arc<TurnMutex<()>>,
    /// Appends whose files are written, in the order of their commits.
    pub(crate) waiting: Mutex<VecDeque<Arc<Waiting>>>,
}

impl Sequencer {
    pub(crate) async fn wait(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }
}

/// The sequencers of a database, by location of the table.
#[derive(Default)]
pub(crate) struct Sequencers {
    tables: Mutex<HashMap<String, Arc<Sequencer>>>,
}

impl Sequencers {
    pub(crate) fn of(&self, location: &str) -> Arc<Sequencer> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if tables.len() >= IDLE_MAX {
            // Whoever holds or waits for a turn holds the sequencer too.
            tables.retain(|_, sequencer| Arc::strong_count(sequencer) > 1 || Arc::strong_count(&sequencer.turn) > 1);
        }
        Arc::clone(tables.entry(location.to_owned()).or_default())
    }
}

/// The right to change a table: other writers of this process wait until it is dropped.
pub struct Turn {
    pub(crate) database: Database,
    pub(crate) name: TableName,
    pub(crate) entry: TableEntry,
    pub(crate) snapshot: Snapshot,
    /// Held by the turn alone, or by a group of appends too.
    _permit: Arc<OwnedMutexGuard<()>>,
}

impl Turn {
    /// What the change must be planned on: the newest version.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl Database {
    /// Waits for the other writers of this process, then pins the newest version.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the table was dropped meanwhile.
    pub async fn turn(&self, name: &TableName, entry: &TableEntry) -> Result<Turn> {
        let permit = self.sequencers().of(&entry.location).wait().await;
        self.turn_with(name, entry, Arc::new(permit)).await
    }

    pub(crate) async fn turn_with(
        &self,
        name: &TableName,
        entry: &TableEntry,
        permit: Arc<OwnedMutexGuard<()>>,
    ) -> Result<Turn> {
        self.check_holds(name, entry).await?;
        let snapshot = self.snapshot(entry).await?;
        Ok(Turn { database: self.clone(), name: name.clone(), entry: entry.clone(), snapshot, _permit: permit })
    }

    /// # Errors
    /// [`StorageError::Conflict`] if the catalog no longer holds this very table under this name.
    pub(crate) async fn check_holds(&self, name: &TableName, entry: &TableEntry) -> Result<()> {
        if self.catalog().await?.holds(name, &entry.id) { Ok(()) } else { Err(gone(name)) }
    }
}

pub(crate) fn gone(name: &TableName) -> StorageError {
    StorageError::conflict(format!("table {name} was dropped or replaced meanwhile; run the statement again"))
}
