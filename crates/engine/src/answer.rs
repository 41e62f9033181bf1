//! What a statement answers: rows as they come, or a tag and a count.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::deadline::Deadline;
use crate::queries::Running;
use crate::session::Statement;
use crate::{Error, ErrorKind, Result};

/// The answer of one statement.
pub enum Answer {
    /// Rows of a query, in batches.
    Rows(Rows),
    /// The statement is carried out.
    Done(Done),
}

/// What a statement without rows did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The statement's kind, such as `CREATE TABLE`.
    pub tag: String,
    /// How many rows it wrote, where it wrote rows.
    pub rows: Option<u64>,
}

impl Answer {
    pub(crate) fn done(tag: &str) -> Self {
        Self::Done(Done { tag: tag.to_owned(), rows: None })
    }

    pub(crate) fn wrote(tag: &str, rows: u64) -> Self {
        Self::Done(Done { tag: tag.to_owned(), rows: Some(rows) })
    }

    /// All batches of the answer; none for a statement without rows.
    ///
    /// # Errors
    /// The first error while rows are made.
    pub async fn collect(self) -> Result<Vec<RecordBatch>> {
        match self {
            Self::Rows(rows) => rows.collect().await,
            Self::Done(_) => Ok(vec![]),
        }
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rows(rows) => write!(f, "Rows({:?})", rows.schema),
            Self::Done(done) => write!(f, "{done:?}"),
        }
    }
}

/// A stream of batches. Dropping it cancels the statement.
pub struct Rows {
    schema: SchemaRef,
    stream: SendableRecordBatchStream,
    progress: Arc<Progress>,
    deadline: Option<(Pin<Box<tokio::time::Sleep>>, Deadline)>,
    statement: Option<Statement>,
    running: Option<OfRunning>,
    is_over: bool,
}

/// The statement that the rows belong to: it counts as running until they are all fetched or dropped.
struct OfRunning {
    running: Arc<Running>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Drop for OfRunning {
    fn drop(&mut self) {
        self.running.leave_run();
    }
}

impl Rows {
    pub(crate) fn new(
        stream: SendableRecordBatchStream,
        progress: Arc<Progress>,
        statement: Option<Statement>,
        deadline: Option<Deadline>,
    ) -> Self {
        Self {
            schema: stream.schema(),
            stream,
            progress,
            deadline: deadline.map(|deadline| (Box::pin(tokio::time::sleep_until(deadline.at)), deadline)),
            statement,
            running: None,
            is_over: false,
        }
    }

    /// Rows that come from elsewhere, such as a server.
    pub fn of_stream(
        schema: SchemaRef,
        rows: BoxStream<'static, Result<RecordBatch>>,
        progress: Arc<Progress>,
    ) -> Self {
        let rows = rows.map_err(|error| DataFusionError::External(Box::new(error)));
        let stream = RecordBatchStreamAdapter::new(schema, rows);
        Self::new(Box::pin(stream), progress, None, None)
    }

    /// The rows of a statement that can be cancelled from elsewhere.
    pub(crate) fn of_running(mut self, running: Arc<Running>) -> Self {
        running.enter_run();
        let cancelled = Box::pin(running.cancellation().clone().cancelled_owned());
        self.running = Some(OfRunning { running, cancelled });
        self
    }

    /// The name of the statement in `system.queries` and `KILL QUERY`.
    pub fn query_id(&self) -> Option<String> {
        self.running.as_ref().map(|running| running.running.id())
    }

    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// How far the statement is, to be read while it runs.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    fn placed(&self, error: DataFusionError) -> Error {
        let error = Error::from(error);
        match &self.statement {
            Some(statement) => statement.place(error),
            None => error,
        }
    }

    /// The rest of the batches.
    ///
    /// # Errors
    /// The first error.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>> {
        let mut batches = vec![];
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok(batches)
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch>;

    /// A panic inside a library ends the statement, not the process.
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if let Some((sleep, deadline)) = &mut self.deadline
            && sleep.as_mut().poll(context).is_ready()
        {
            let error = deadline.error();
            self.is_over = true;
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(running) = &mut self.running
            && running.cancelled.as_mut().poll(context).is_ready()
        {
            let error = running.running.cancelled_error();
            self.is_over = true;
            return Poll::Ready(Some(Err(error)));
        }
        let stream = &mut self.stream;
        let poll = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stream.poll_next_unpin(context)));
        let item = match poll {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(item)) => item.map(|batch| batch.map_err(|error| self.placed(error))),
            Err(panic) => Some(Err(panicked(panic.as_ref()))),
        };
        self.is_over = !matches!(item, Some(Ok(_)));
        if self.is_over {
            self.running = None;
        }
        Poll::Ready(item)
    }
}

/// The error of a panic that was caught.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text =
        panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "no message".to_owned());
    Error::new(
        ErrorKind::Internal,
        format!("the statement hit a mistake of the engine ({text}); nothing of it was committed"),
    )
}

/// How far a statement or an import is.
#[derive(Debug, Default)]
pub struct Progress {
    plan: Option<Arc<dyn ExecutionPlan>>,
    rows_done: AtomicU64,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
}

impl Progress {
    /// Progress that is reported by hand.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn of_plan(plan: Arc<dyn ExecutionPlan>) -> Self {
        Self { plan: Some(plan), ..Self::default() }
    }

    /// Says how many rows and bytes are done by now.
    pub fn report(&self, rows: u64, bytes: u64) {
        self.rows_done.store(rows, Ordering::Relaxed);
        self.bytes_done.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn expect_bytes(&self, bytes: u64) {
        self.bytes_total.store(bytes, Ordering::Relaxed);
    }

    /// Rows read so far, by a query's scans or by an import.
    pub fn rows_done(&self) -> u64 {
        let scanned = self
            .plan
            .as_ref()
            .map_or(0, |plan| sum_of_leaves(plan, |leaf| leaf.metrics().and_then(|metrics| metrics.output_rows())));
        scanned as u64 + self.rows_done.load(Ordering::Relaxed)
    }

    /// Rows that the scans hold, where statistics know.
    pub fn rows_total(&self) -> Option<u64> {
        let plan = self.plan.as_ref()?;
        let total = sum_of_leaves(plan, |leaf| {
            leaf.partition_statistics(None).ok().and_then(|statistics| statistics.num_rows.get_value().copied())
        });
        (total > 0).then_some(total as u64)
    }

    /// Bytes read so far.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }

    /// Bytes there are to read, where known.
    pub fn bytes_total(&self) -> Option<u64> {
        let total = self.bytes_total.load(Ordering::Relaxed);
        (total > 0).then_some(total)
    }
}

fn sum_of_leaves(plan: &Arc<dyn ExecutionPlan>, of: impl Fn(&Arc<dyn ExecutionPlan>) -> Option<usize>) -> usize {
    let mut sum: usize = 0;
    let walked = plan.apply(|node| {
        if node.children().is_empty() {
            sum = sum.saturating_add(of(node).unwrap_or(0));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok());
    sum
}
