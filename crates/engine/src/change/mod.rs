//! UPDATE, DELETE, MERGE, and INSERT with ON CONFLICT or RETURNING: planned on the snapshot of a turn, gathered, and
//! committed as one version. Where another process was faster, the whole statement runs again.

mod merge;
mod names;
mod plan;
mod update;
mod upsert;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datafusion::execution::SessionState;
use datafusion::physical_plan::collect;
use datafusion::sql::sqlparser::ast::{self, Delete, Insert, Merge, Update};
use futures::FutureExt;
use operators::buffers::Needs;
use operators::change::Gathered;
use planner::statement::StatementKind;
use storage::{Change, Copied, Failure, IdempotencyKey, Once, Role, Snapshot, StorageError, TableEntry, Turn};

use crate::answer::Progress;
use crate::deadline::Deadline;
use crate::insert::target_name;
use crate::memory::Claim;
use crate::resolver::StatementTables;
use crate::run::{claim, claim_at_once, context};
use crate::session::Statement;
use crate::time::is_reading;
use crate::{Answer, Error, ErrorKind, Result, Rows, ScalarValue, Session};

use names::Target;
pub(crate) use names::folded;
use plan::{Planned, Scope};

/// How often a statement is run while other processes are faster.
const ATTEMPTS_MAX: u32 = 100;
/// How long it waits before the second attempt; each further wait is longer by this much, up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(5);
/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// What an attempt came to.
enum Attempt {
    Done(Answer),
    /// It gave the turn back, for want of memory.
    Needs(Needs),
}

/// A statement that changes rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Changing<'a> {
    Update(&'a Update),
    Delete(&'a Delete),
    Merge(&'a Merge),
    Upsert(&'a Insert),
}

impl Changing<'_> {
    /// The table that is changed.
    ///
    /// # Errors
    /// A clause that is not supported.
    fn target(self) -> Result<Target> {
        match self {
            Self::Update(update) => update::update_target(update),
            Self::Delete(delete) => update::delete_target(delete),
            Self::Merge(merge) => merge::merge_target(merge),
            Self::Upsert(insert) => Ok(Target::plain(target_name(insert)?)),
        }
    }

    /// The statement's name in its answer.
    fn verb(self) -> &'static str {
        match self {
            Self::Update(_) => "UPDATE",
            Self::Delete(_) => "DELETE",
            Self::Merge(_) => "MERGE",
            Self::Upsert(_) => "INSERT",
        }
    }

    async fn plan(self, scope: &Scope<'_>) -> Result<Planned> {
        let query = match self {
            Self::Update(update) => update::update_query(update, scope)?,
            Self::Delete(delete) => update::delete_query(delete, scope)?,
            Self::Merge(merge) => merge::merge_query(merge, scope)?,
            Self::Upsert(insert) => upsert::upsert_query(insert, scope).await?,
        };
        scope.plan(query).await
    }
}

impl Session {
    /// Carries a change out.
    pub(crate) async fn change(
        &self,
        changing: &Changing<'_>,
        parameters: &[ScalarValue],
        statement: &Statement,
        deadline: Option<Deadline>,
    ) -> Result<Answer> {
        let target = changing.target()?;
        let claimed = Mutex::default();
        retried(&target.name.to_string(), || async {
            loop {
                let attempt = self.change_once(*changing, &target, parameters, statement, deadline, &claimed);
                match attempt.await? {
                    Attempt::Done(answer) => return Ok(answer),
                    // Others may wait for the turn that it gave back, with memory that it needs.
                    Attempt::Needs(needs) => {
                        let claim = claim(&self.state(), &needs).await?;
                        *claimed.lock().unwrap_or_else(PoisonError::into_inner) = Some(claim);
                    }
                }
            }
        })
        .await
    }

    /// `claimed`: memory that was waited for, for one attempt.
    async fn change_once(
        &self,
        changing: Changing<'_>,
        target: &Target,
        parameters: &[ScalarValue],
        statement: &Statement,
        deadline: Option<Deadline>,
        claimed: &Mutex<Option<Claim>>,
    ) -> Result<Attempt> {
        let state = self.state();
        let before = StatementTables::new(self.clone(), state.clone());
        let (name, seen) = before.entry(&target.name, Role::Write).await?;
        let turn = self.engine().database().turn(&name, &seen).await?;
        // The catalog anew: while the turn was waited for, somebody else may have altered the table.
        let tables = StatementTables::new(self.clone(), state.clone());
        let (_, entry) = tables.entry(&target.name, Role::Write).await?;
        if entry.id != seen.id {
            let message = format!("table {name} was replaced while the statement waited");
            return Err(StorageError::Stale(Failure { message, source: None }).into());
        }
        let snapshot = turn.snapshot().clone();
        let key = self.settings().idempotency_key().map(|key| IdempotencyKey {
            key: key.to_owned(),
            statement: format!("{} {parameters:?}", statement.text()),
        });
        if let Some(key) = &key
            && let Some(count) = turn.applied(key).await?
        {
            self.change_settings(|settings| settings.reset("idempotency_key"))?;
            return Ok(Attempt::Done(Answer::wrote(changing.verb(), count)));
        }
        let scope = Scope::new(target.clone(), entry, snapshot, &tables, &state, parameters).await?;
        let planned = changing.plan(&scope).await?;
        let physical = state.create_physical_plan(&planned.plan).await?;
        let needs = Needs::of(&physical)?;
        let claimed = claimed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let claim = match claimed.filter(|claim| claim.covers(&needs)) {
            Some(claim) => claim,
            None => match claim_at_once(&state, &needs)? {
                Some(claim) => claim,
                None => return Ok(Attempt::Needs(needs)),
            },
        };
        // It holds the claim until the commit.
        let context = context(&state, claim);
        collect(physical, Arc::clone(&context)).await?;
        let Some(gathered) = planned.sink.take() else {
            return Err(Error::new(ErrorKind::Internal, "the rows of a change were not gathered"));
        };
        let Gathered { count, returned, .. } = commit(turn, planned.operation, gathered, planned.kept, key).await?;
        if self.settings().idempotency_key().is_some() {
            self.change_settings(|settings| settings.reset("idempotency_key"))?;
        }
        drop(context);
        Ok(Attempt::Done(match returned {
            Some(rows) => Answer::Rows(Rows::new(rows, Progress::new(), Some(statement.clone()), deadline)),
            None => Answer::wrote(planned.operation, count),
        }))
    }

    /// # Errors
    /// A statement that writes and cannot be told from another one of the same idempotency key.
    pub(crate) fn refuse_to_ignore_key(&self, kind: &StatementKind) -> Result<()> {
        use ast::Statement as Sql;
        let settings = self.settings();
        let Some(key) = settings.idempotency_key() else { return Ok(()) };
        let takes_key = match kind {
            StatementKind::Sql(sql) => {
                matches!(sql.as_ref(), Sql::Insert(_) | Sql::Update(_) | Sql::Delete(_) | Sql::Merge(_))
            }
            _ => false,
        };
        if takes_key || is_reading(kind) {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "idempotency_key is {key:?}, and only INSERT, UPDATE, DELETE and MERGE are applied once under a key; RESET idempotency_key first"
        )))
    }

    /// The plan of a change, for EXPLAIN: on the newest snapshot, without a turn.
    pub(crate) async fn plan_change(
        &self,
        changing: Changing<'_>,
        parameters: &[ScalarValue],
    ) -> Result<(datafusion::logical_expr::LogicalPlan, Arc<SessionState>)> {
        let target = changing.target()?;
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let (_, entry): (_, TableEntry) = tables.entry(&target.name, Role::Write).await?;
        let snapshot: Snapshot = self.engine().database().snapshot(&entry).await?;
        let scope = Scope::new(target, entry, snapshot, &tables, &state, parameters).await?;
        let planned = changing.plan(&scope).await?;
        Ok((planned.plan, state))
    }
}

/// Commits what was gathered; the rest of it is given back. `kept`: columns of vectors that updates leave as they are.
async fn commit(
    turn: Turn,
    operation: &'static str,
    mut gathered: Gathered,
    kept: Vec<String>,
    key: Option<IdempotencyKey>,
) -> Result<Gathered> {
    let deleted = std::mem::take(&mut gathered.deleted);
    let inserted = gathered.inserted.take();
    let once = key.map(|key| Once { key, count: gathered.count });
    let copied = Copied { origins: std::mem::take(&mut gathered.origins), columns: kept };
    turn.commit(Change { operation, deleted, inserted, copied: Some(copied), progress: None, once }).await?;
    Ok(gathered)
}

/// Runs a statement on `table` until no other process is faster.
///
/// # Errors
/// Those of the statement; [`ErrorKind::Conflict`] if others were faster [`ATTEMPTS_MAX`] times.
pub(crate) async fn retried<T, F: Future<Output = Result<T>> + Send>(
    table: &str,
    attempt: impl Fn() -> F,
) -> Result<T> {
    for number in 1..=ATTEMPTS_MAX {
        match attempt().boxed().await {
            Err(error) if is_stale(&error) => {
                tracing::debug!(table, number, "another process was faster; the statement runs again");
                tokio::time::sleep((BACKOFF * number).min(BACKOFF_MAX)).await;
            }
            other => return other,
        }
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "table \"{table}\" was changed by other processes each of the {ATTEMPTS_MAX} times that the statement ran; nothing was changed, run it again"
        ),
    ))
}

fn is_stale(error: &Error) -> bool {
    let source = error.source.as_ref().and_then(|source| source.downcast_ref::<StorageError>());
    matches!(source, Some(StorageError::Stale(_)))
}

/// # Errors
/// The first clause that is given, with the way to say it.
fn refuse(usage: &str, clauses: &[(bool, &str)]) -> Result<()> {
    match clauses.iter().find(|(given, _)| *given) {
        Some((_, clause)) => Err(Error::unsupported(format!("{clause} is not supported; write {usage}"))),
        None => Ok(()),
    }
}
