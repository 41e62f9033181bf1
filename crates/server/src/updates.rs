//! Statements that change something and give no rows.

use std::sync::Arc;

use engine::{Answer, ScalarValue, Started};
use futures::stream::StreamExt;
use tonic::Status;

use crate::core::Call;
use crate::handles::{Bound, Prepared};
use crate::metrics::{StatementKind, StatementOutcome};
use crate::statements::{Asked, Runnable};
use crate::status::status_of;

impl Call {
    /// Carries a statement out for each row of parameters; how many rows were written together.
    pub(crate) async fn update(&self, asked: &Asked) -> Result<u64, Status> {
        let _place = self.admitted(StatementKind::Update).await?;
        self.counted(StatementKind::Update, self.update_each(&asked.runnable, &asked.rows)).await
    }

    /// The outcome of a statement, counted.
    pub(crate) async fn counted(
        &self,
        kind: StatementKind,
        work: impl Future<Output = Result<u64, Status>>,
    ) -> Result<u64, Status> {
        let counted = self.core.metrics.statement(kind);
        let outcome = self.in_time(work).await;
        counted.end(StatementOutcome::of_code(outcome.as_ref().err().map_or(tonic::Code::Ok, Status::code)));
        outcome
    }

    async fn update_each(&self, runnable: &Runnable, rows: &[Vec<ScalarValue>]) -> Result<u64, Status> {
        let mut written = 0;
        for (parameters, number) in rows.iter().zip(1..) {
            let told = |error: engine::Error| match rows.len() {
                1 => status_of(&error),
                count => {
                    let message =
                        format!("{}; this is row {number} of {count}, those before it are written", error.message);
                    status_of(&engine::Error { message, ..error })
                }
            };
            written += match self.start(runnable, parameters).await.map_err(told)? {
                Started::Answered(Answer::Done(done)) => done.rows.unwrap_or(0),
                Started::Answered(Answer::Rows(rows)) => drained(rows).await.map_err(told)?,
                Started::Query(plan) => drained(plan.run().map_err(told)?).await.map_err(told)?,
            };
        }
        Ok(written)
    }

    /// Carries a prepared statement out with these values.
    pub(crate) async fn update_prepared(
        &self,
        prepared: Arc<Prepared>,
        bound: Option<Arc<Bound>>,
    ) -> Result<u64, Status> {
        let statement = prepared.prepared.statement();
        match &bound {
            // Many rows of an INSERT are one version, all of them or none.
            Some(bound) if bound.values.num_rows() > 1 && statement.is_insert_of_values() => {
                let _place = self.admitted(StatementKind::Update).await?;
                let written = self.session.engine.insert_each(statement, bound.values.clone());
                let written = async { written.await.map_err(|error| status_of(&error)) };
                self.counted(StatementKind::Update, written).await
            }
            _ => self.update(&Asked::of_prepared(prepared, bound)?).await,
        }
    }
}

/// Fetches rows that nobody wants, so that the statement runs to its end; how many there were.
async fn drained(mut rows: engine::Rows) -> engine::Result<u64> {
    let mut count = 0;
    while let Some(batch) = rows.next().await {
        count += batch?.num_rows() as u64;
    }
    Ok(count)
}
