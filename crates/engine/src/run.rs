//! How plans run: each in a context with the memory of its own, which is claimed first.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, collect, execute_stream};
use futures::{StreamExt, TryStreamExt};
use operators::buffers::Needs;

use crate::memory::{Claim, Memory};
use crate::{Error, ErrorKind, Result};

/// Whose memory the statements of a session use; part of the session's configuration.
#[derive(Debug, Clone)]
pub(crate) struct MemoryOf {
    pub(crate) memory: Arc<Memory>,
    pub(crate) user: Option<Arc<str>>,
}

impl MemoryOf {
    pub(crate) fn of(state: &SessionState) -> Result<Arc<Self>> {
        let found = state.config().get_extension::<Self>();
        found.ok_or_else(|| Error::new(ErrorKind::Internal, "the session has no memory"))
    }
}

/// Waits for what a statement needs.
///
/// # Errors
/// As [`Memory::claim`].
pub(crate) async fn claim(state: &SessionState, needs: &Needs) -> Result<Claim> {
    let of = MemoryOf::of(state)?;
    of.memory.claim(of.user.clone(), needs).await
}

/// Takes what a statement needs if it is there; `None` if it has to be waited for.
///
/// # Errors
/// Needs that cannot be met, however long it waits.
pub(crate) fn claim_at_once(state: &SessionState, needs: &Needs) -> Result<Option<Claim>> {
    let of = MemoryOf::of(state)?;
    of.memory.claim_at_once(of.user.clone(), needs)
}

/// What a plan runs in. It holds the claim: keep it for as long as the plan's buffers may be in use. Functions are found
/// while planning; a copy of their hundreds of names for each statement would cost more than many a plan.
pub(crate) fn context(state: &SessionState, claim: Claim) -> Arc<TaskContext> {
    let mut config = state.config().clone();
    config.set_extension(Arc::new(claim.buffers()));
    let runtime = RuntimeEnv { memory_pool: claim.into_pool(), ..state.runtime_env().as_ref().clone() };
    let (scalar, higher_order, aggregate, window) = Default::default();
    let id = state.session_id().to_owned();
    Arc::new(TaskContext::new(None, id, config, scalar, higher_order, aggregate, window, Arc::new(runtime)))
}

/// All rows of a plan, and what it ran in.
///
/// # Errors
/// As [`claim`], and those of the plan.
pub(crate) async fn collected(
    state: &SessionState,
    plan: Arc<dyn ExecutionPlan>,
) -> Result<(Vec<RecordBatch>, Arc<TaskContext>)> {
    let context = context(state, claim(state, &Needs::of(&plan)?).await?);
    Ok((collect(plan, Arc::clone(&context)).await?, context))
}

/// The rows of a plan on their way into a table: nothing is claimed before they are asked for, and the claim covers the
/// table's writer.
///
/// # Errors
/// A plan that cannot be run again.
pub(crate) fn written(
    state: &Arc<SessionState>,
    plan: &Arc<dyn ExecutionPlan>,
) -> DataFusionResult<SendableRecordBatchStream> {
    let (state, plan) = (Arc::clone(state), reset_plan_states(Arc::clone(plan))?);
    let schema = plan.schema();
    let rows = futures::stream::once(async move {
        let claimed = claim(&state, &Needs::of_written(&plan)?).await.map_err(external)?;
        let context = context(&state, claimed);
        let rows = execute_stream(plan, Arc::clone(&context))?;
        Ok::<_, DataFusionError>(rows.inspect(move |_| {
            let _held = &context;
        }))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows.try_flatten())))
}

/// An error of ours on its way through DataFusion.
pub(crate) fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
