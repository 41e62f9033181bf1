//! A query that is planned and not yet run: on one snapshot of each table, to be run any number of times.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream};
use futures::StreamExt;
use operators::buffers::Needs;
use operators::scan::TableScanExec;

use crate::deadline::Deadline;
use crate::pins::{PinnedRelation, Pins};
use crate::queries::Running;
use crate::run::{claim, context, external};
use crate::session::Statement;
use crate::{Answer, Progress, Result, Rows};

/// How many batches a query makes before the caller asks for them.
const BATCHES_AHEAD: usize = 2;

/// A planned query. What it reads is pinned: each run gives the same rows, as long as VACUUM keeps what it reads, which
/// it does for the time that statements may run.
pub struct Plan {
    physical: Arc<dyn ExecutionPlan>,
    state: Arc<SessionState>,
    statement: Statement,
    deadline: Option<Deadline>,
    running: Arc<Running>,
    /// What it reads, if that can be told.
    reads: Option<Vec<PinnedRelation>>,
}

impl Plan {
    pub(crate) async fn new(
        logical: &LogicalPlan,
        state: &Arc<SessionState>,
        statement: &Statement,
        deadline: Option<Deadline>,
        running: &Arc<Running>,
    ) -> Result<Self> {
        let physical = state.create_physical_plan(logical).await?;
        Ok(Self::of_physical(physical, state, statement, deadline, running))
    }

    pub(crate) fn of_physical(
        physical: Arc<dyn ExecutionPlan>,
        state: &Arc<SessionState>,
        statement: &Statement,
        deadline: Option<Deadline>,
        running: &Arc<Running>,
    ) -> Self {
        let (state, running) = (Arc::clone(state), Arc::clone(running));
        Self { physical, state, statement: statement.clone(), deadline, running, reads: None }
    }

    /// The same plan, and what it reads.
    pub(crate) fn reading(self, reads: Option<Vec<PinnedRelation>>) -> Self {
        Self { reads, ..self }
    }

    /// What another server needs to plan it again; `None` if that cannot be told.
    pub fn pins(&self) -> Option<Pins> {
        let relations = self.reads.clone().filter(|_| self.statement.is_replayable())?;
        Pins::of(&self.state, relations, self.part_count())
    }

    /// The statement's name in `system.queries` and `KILL QUERY`.
    pub fn query_id(&self) -> String {
        self.running.id()
    }

    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        self.physical.schema()
    }

    /// In how many parts the rows can be fetched, each on its own and in any order: more than one only where no part
    /// waits for another, as in a scan, a filter and a projection.
    pub fn part_count(&self) -> usize {
        if is_divisible(&self.physical) { self.physical.output_partitioning().partition_count() } else { 1 }
    }

    /// Whether the order of the rows means something.
    pub fn is_ordered(&self) -> bool {
        self.physical.output_ordering().is_some()
    }

    /// Rows that the scans hold together, where statistics know.
    pub fn rows_scanned(&self) -> Option<u64> {
        Progress::of_plan(Arc::clone(&self.physical)).rows_total()
    }

    /// Runs the query: it waits for its memory first, then for whoever takes its rows.
    ///
    /// # Errors
    /// A plan that cannot be run again.
    pub fn run(&self) -> Result<Rows> {
        self.rows(None)
    }

    /// Runs one of the parts that [`Plan::part_count`] counts.
    ///
    /// # Errors
    /// A part that does not exist, and those of [`Plan::run`].
    pub fn run_part(&self, part: usize) -> Result<Rows> {
        let count = self.part_count();
        if part >= count {
            return Err(crate::Error::invalid(format!("the answer has {count} parts, and part {part} was asked for")));
        }
        self.rows((count > 1).then_some(part))
    }

    fn rows(&self, part: Option<usize>) -> Result<Rows> {
        let physical = reset_plan_states(Arc::clone(&self.physical))?;
        let (plan, state) = (Arc::clone(&physical), Arc::clone(&self.state));
        // In a task of its own: however long one step of the plan takes, the caller can stop waiting for it.
        let mut receiver = RecordBatchReceiverStream::builder(physical.schema(), BATCHES_AHEAD);
        let sender = receiver.tx();
        receiver.spawn(async move {
            let needs = match part {
                Some(part) => Needs::of_part(&plan, part)?,
                None => Needs::of(&plan)?,
            };
            // The claim goes with the context, when the last batch is handed over.
            let context = context(&state, claim(&state, &needs).await.map_err(external)?);
            let mut stream = match part {
                Some(part) => plan.execute(part, Arc::clone(&context))?,
                None => execute_stream(plan, Arc::clone(&context))?,
            };
            while let Some(batch) = stream.next().await {
                if sender.send(batch).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
        let progress = Arc::new(Progress::of_plan(physical));
        self.running.follow(&progress);
        let rows = Rows::new(receiver.build(), progress, Some(self.statement.clone()), self.deadline);
        Ok(rows.of_running(Arc::clone(&self.running)))
    }
}

/// True for plans whose partitions do not exchange rows.
fn is_divisible(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let any: &dyn std::any::Any = plan.as_ref();
    match plan.children().as_slice() {
        [] => any.is::<TableScanExec>(),
        [input] => {
            (any.is::<FilterExec>() || any.is::<ProjectionExec>() || plan.name() == "CooperativeExec")
                && is_divisible(input)
        }
        _ => false,
    }
}

/// What became of a statement: a query waits to be run, everything else has been carried out.
pub enum Started {
    /// The plan of a query.
    Query(Plan),
    /// The answer of a statement that is no query, or that has no plan.
    Answered(Answer),
}

impl Started {
    /// Runs what waits.
    pub(crate) fn answer(self) -> Result<Answer> {
        match self {
            Self::Query(plan) => Ok(Answer::Rows(plan.run()?)),
            Self::Answered(answer) => Ok(answer),
        }
    }
}
