//! Rows that wait for the commit: in memory as long as there is room, in files of the statement's own after that.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::RefCountedTempFile;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SpillMetrics};
use datafusion::physical_plan::spill::{SpillManager, get_record_batch_memory_size};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt};

/// Batches of one schema, kept in order.
pub(crate) struct RowBuffer {
    schema: SchemaRef,
    in_memory: Vec<RecordBatch>,
    in_files: Vec<RefCountedTempFile>,
    reservation: MemoryReservation,
    spill: SpillManager,
}

impl RowBuffer {
    pub(crate) fn new(
        name: &'static str,
        schema: SchemaRef,
        context: &TaskContext,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Self {
        let reservation = MemoryConsumer::new(name).with_can_spill(true).register(context.memory_pool());
        let spill = SpillManager::new(context.runtime_env(), SpillMetrics::new(metrics, 0), Arc::clone(&schema));
        Self { schema, in_memory: vec![], in_files: vec![], reservation, spill }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.in_memory.is_empty() && self.in_files.is_empty()
    }

    /// Adds a batch of the buffer's schema.
    ///
    /// # Errors
    /// A disk that is full, or that may not be used.
    pub(crate) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let bytes = get_record_batch_memory_size(&batch);
        let has_room = self.reservation.try_grow(bytes).is_ok();
        self.in_memory.push(batch);
        if has_room {
            return Ok(());
        }
        let file = self.spill.spill_record_batch_and_finish(&self.in_memory, "new rows of a change")?;
        self.in_files.extend(file);
        self.in_memory.clear();
        self.reservation.free();
        Ok(())
    }

    /// All batches in the order they came in. Memory and files are given back when the stream is dropped.
    ///
    /// # Errors
    /// A file that cannot be read again.
    pub(crate) fn into_stream(self) -> Result<SendableRecordBatchStream> {
        let Self { schema, in_memory, in_files, reservation, spill } = self;
        let files =
            futures::stream::iter(in_files).map(move |file| spill.read_spill_as_stream(file, None)).try_flatten();
        let rest = futures::stream::iter(in_memory).map(move |batch| {
            // Held until the last batch is gone.
            let _held = &reservation;
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, files.chain(rest))))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    #[tokio::test]
    async fn rows_come_back_in_order_whether_they_fit_or_not() {
        for limit_bytes in [1, 20_000, 1 << 20] {
            let runtime = RuntimeEnvBuilder::new()
                .with_memory_pool(Arc::new(GreedyMemoryPool::new(limit_bytes)))
                .build_arc()
                .unwrap();
            let context = SessionContext::new_with_config_rt(SessionConfig::new(), runtime).task_ctx();
            let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
            let mut buffer = RowBuffer::new("test", Arc::clone(&schema), &context, &ExecutionPlanMetricsSet::new());
            for start in 0..10 {
                let values = Int64Array::from_iter_values(start * 1_000..(start + 1) * 1_000);
                buffer.push(RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(values)]).unwrap()).unwrap();
            }
            let batches: Vec<RecordBatch> = buffer.into_stream().unwrap().try_collect().await.unwrap();
            let values: Vec<i64> = batches
                .iter()
                .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
                .collect();
            assert_eq!(values, (0..10_000).collect::<Vec<i64>>(), "with {limit_bytes} bytes");
        }
    }
}
