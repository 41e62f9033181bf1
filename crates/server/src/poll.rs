//! Long statements that are polled: begun at the first poll, told of at each, their answer fetched once it is there.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow_flight::sql::{Any, Command};
use arrow_flight::{FlightDescriptor, FlightInfo, PollInfo};
use futures::stream::StreamExt;
use tokio::sync::Notify;
use tonic::Status;
use uuid::Uuid;

use crate::core::Call;
use crate::handles::{FirstRows, Held, RowsOf, Waiting};
use crate::metrics::StatementKind;
use crate::sessions::locked;
use crate::statements::Asked;
use crate::status::{malformed, status_of};
use crate::wire;

/// Stands before the handle in the descriptor of the next poll.
const MAGIC: &[u8] = b"sagitta-poll:";
/// How long one poll waits for the answer.
const WAIT: Duration = Duration::from_millis(250);

/// A statement that was begun by a poll.
pub(crate) struct Polled {
    state: Mutex<State>,
    changed: Notify,
    task: Mutex<Option<tokio::task::AbortHandle>>,
}

enum State {
    Running { progress: Option<Arc<engine::Progress>>, query_id: Option<String> },
    Ready(Box<FlightInfo>),
    Failed(Status),
}

impl Drop for Polled {
    /// Nobody can ask for it any more.
    fn drop(&mut self) {
        if let Some(task) = locked(&self.task).take() {
            task.abort();
        }
    }
}

impl Polled {
    /// The statement's name in `system.queries`, while it runs.
    pub(crate) fn query_id(&self) -> Option<String> {
        match &*locked(&self.state) {
            State::Running { query_id, .. } => query_id.clone(),
            State::Ready(_) | State::Failed(_) => None,
        }
    }

    fn set(&self, state: State) {
        *locked(&self.state) = state;
        self.changed.notify_waiters();
    }
}

impl Call {
    /// One poll: the first begins the statement of the descriptor, the others ask for what became of it.
    pub(crate) async fn poll(&self, descriptor: FlightDescriptor) -> Result<PollInfo, Status> {
        if descriptor.cmd.starts_with(MAGIC) {
            let id =
                Self::id_of_poll(&descriptor).ok_or_else(|| malformed("the descriptor", "it is not one of a poll"))?;
            return match self.core.handles.find(self.owner(), id)? {
                Some(Held::Polled(polled)) => self.told(&polled, id).await,
                Some(_) => Err(malformed("the descriptor", "its handle is not that of a polled statement")),
                None => Err(Status::not_found(
                    "the handle is unknown: the statement that is polled is too old, or runs on another server; poll it there, or run it again",
                )),
            };
        }
        let asked = self.of_descriptor(&descriptor).await?;
        let state = State::Running { progress: None, query_id: None };
        let polled = Arc::new(Polled { state: Mutex::new(state), changed: Notify::new(), task: Mutex::default() });
        let id = self.core.handles.add(self.owner(), Held::Polled(Arc::clone(&polled)))?;
        let (call, weak) = (self.clone(), Arc::downgrade(&polled));
        let task = tokio::spawn(async move {
            let outcome = call.run_polled(&asked, descriptor, &weak).await;
            if let Some(polled) = weak.upgrade() {
                polled.set(match outcome {
                    Ok(information) => State::Ready(Box::new(information)),
                    Err(status) => State::Failed(status),
                });
            }
        });
        *locked(&polled.task) = Some(task.abort_handle());
        self.told(&polled, id).await
    }

    /// The statement that a descriptor names, and its values.
    async fn of_descriptor(&self, descriptor: &FlightDescriptor) -> Result<Asked, Status> {
        let any: Any = prost::Message::decode(&*descriptor.cmd).map_err(|error| malformed("the descriptor", error))?;
        match Command::try_from(any).map_err(|error| malformed("the command", error))? {
            Command::CommandStatementQuery(command) => self.parsed(&command.query),
            Command::CommandStatementSubstraitPlan(command) => self.planned(&command),
            Command::CommandPreparedStatementQuery(command) => self.prepared(&command.prepared_statement_handle).await,
            other => Err(Status::unimplemented(format!(
                "{} is not polled; ask for its information at once",
                other.type_url().rsplit('.').next().unwrap_or_default()
            ))),
        }
    }

    /// Runs a statement to its first rows: what comes before them is what takes long.
    async fn run_polled(
        &self,
        asked: &Asked,
        descriptor: FlightDescriptor,
        polled: &std::sync::Weak<Polled>,
    ) -> Result<FlightInfo, Status> {
        let begun = self.begin(asked).await?;
        self.make_first_rows(&begun.waiting, begun.query_id.as_ref(), polled).await?;
        self.information(begun, descriptor)
    }

    async fn make_first_rows(
        &self,
        waiting: &Waiting,
        query_id: Option<&String>,
        polled: &std::sync::Weak<Polled>,
    ) -> Result<(), Status> {
        let RowsOf::Plans(plans) = &waiting.rows else { return Ok(()) };
        let [plan] = plans.as_slice() else { return Ok(()) };
        let _place = self.admitted(StatementKind::Query).await?;
        let answer = plan.run().map_err(|error| status_of(&error))?;
        if let Some(polled) = polled.upgrade() {
            polled.set(State::Running { progress: Some(answer.progress()), query_id: query_id.cloned() });
        }
        let mut rows = wire::of_engine(answer);
        let first = rows.next().await.transpose()?;
        let first = futures::stream::iter(first.map(Ok));
        *locked(&waiting.begun) = Some(FirstRows { rows: first.chain(rows).boxed(), since: Instant::now() });
        Ok(())
    }

    /// What became of a polled statement: its answer, or how far it is.
    async fn told(&self, polled: &Polled, id: Uuid) -> Result<PollInfo, Status> {
        let mut changed = std::pin::pin!(polled.changed.notified());
        changed.as_mut().enable();
        if matches!(*locked(&polled.state), State::Running { .. }) {
            // The progress may change first; then the next poll waits on.
            let _ = tokio::time::timeout(WAIT, changed).await;
        }
        let (information, progress) = match &*locked(&polled.state) {
            State::Ready(information) => {
                let information = information.as_ref().clone();
                return PollInfo::new()
                    .with_info(information)
                    .try_with_progress(1.0)
                    .map_err(|error| Status::internal(error.to_string()));
            }
            State::Failed(status) => return Err(status.clone()),
            State::Running { progress, query_id } => {
                let information = FlightInfo::new().with_app_metadata(query_id.clone().unwrap_or_default());
                (information, progress.clone())
            }
        };
        let mut cmd = MAGIC.to_vec();
        cmd.extend_from_slice(id.as_bytes());
        let expiry = self.core.handles.renew(self.owner(), id)?;
        let told = PollInfo::new()
            .with_info(information)
            .with_descriptor(FlightDescriptor::new_cmd(cmd))
            .with_expiration_time(expiry.into());
        let share = progress.and_then(|progress| Some(progress.rows_done() as f64 / progress.rows_total()? as f64));
        told.try_with_progress(share.unwrap_or(0.0).clamp(0.0, 0.99))
            .map_err(|error| Status::internal(error.to_string()))
    }

    /// The id that a descriptor of a poll holds: random, and of no use elsewhere, so it needs no seal.
    pub(crate) fn id_of_poll(descriptor: &FlightDescriptor) -> Option<Uuid> {
        descriptor.cmd.strip_prefix(MAGIC).and_then(|handle| Uuid::from_slice(handle).ok())
    }
}
