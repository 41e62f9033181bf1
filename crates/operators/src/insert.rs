//! The sink of INSERT: rows are checked, then appended to the table in one version, all or nothing.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::common::exec_err;
use datafusion::datasource::sink::DataSink;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, SendableRecordBatchStream};
use futures::StreamExt;
use planner::text_length;
use planner::vector_type::VectorType;
use planner::vectors::VectorArray;

use crate::external;
use crate::table::WriteTarget;

/// Appends the rows of its input to a table.
pub struct AppendSink {
    target: WriteTarget,
    schema: SchemaRef,
    taken: SchemaRef,
}

impl AppendSink {
    /// A sink for rows of the table's schema.
    pub fn new(target: WriteTarget, schema: SchemaRef) -> Self {
        let nullable = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let taken = Arc::new(Schema::new_with_metadata(nullable.collect::<Vec<_>>(), schema.metadata().clone()));
        Self { target, schema, taken }
    }
}

impl fmt::Debug for AppendSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppendSink({})", self.target.name)
    }
}

impl DisplayAs for AppendSink {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "append to {}, one version", self.target.name)
    }
}

#[async_trait]
impl DataSink for AppendSink {
    /// Every column may be NULL here: the sink looks itself, and knows the names.
    fn schema(&self) -> &SchemaRef {
        &self.taken
    }

    async fn write_all(&self, rows: SendableRecordBatchStream, context: &Arc<TaskContext>) -> Result<u64> {
        // Several partitions give their rows in any order.
        let is_in_order = context.session_config().target_partitions() == 1;
        let source = Source { table: self.target.name.to_string(), rows_before: is_in_order.then_some(0) };
        let rows = checked(rows, Arc::clone(&self.schema), source);
        self.target.database.append(&self.target.name, &self.target.entry, rows, None).await.map_err(external)
    }
}

/// What errors say about rows that are checked.
#[derive(Debug, Clone)]
pub struct Source {
    /// The table that they go to.
    pub table: String,
    /// How many rows came before; `None` if they come in no order.
    pub rows_before: Option<usize>,
}

impl Source {
    /// The row at this place of a batch, counted from 0.
    fn row(&self, at: usize) -> String {
        self.rows_before.map_or("a row".to_owned(), |before| format!("row {}", before + at + 1))
    }
}

/// The same rows under the table's schema; the stream ends with an error at a NULL in a NOT NULL column, at a text that is too
/// long for its column, and at a vector that holds NaN, infinity or a NULL element. Nothing is committed then.
pub fn checked(rows: SendableRecordBatchStream, schema: SchemaRef, mut source: Source) -> SendableRecordBatchStream {
    let table = Arc::clone(&schema);
    let rows = rows.map(move |batch| {
        let batch = check(&batch?, &table, &source)?;
        source.rows_before = source.rows_before.map(|rows| rows + batch.num_rows());
        Ok(batch)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

/// One batch as [`checked`] passes it on.
pub(crate) fn check(batch: &RecordBatch, schema: &SchemaRef, source: &Source) -> Result<RecordBatch> {
    for (column, field) in batch.columns().iter().zip(schema.fields()) {
        if !field.is_nullable()
            && let Some(nulls) = column.logical_nulls()
            && let Some(at) = (0..nulls.len()).find(|at| nulls.is_null(*at))
        {
            return exec_err!(
                "column {} of table {} is NOT NULL, but {} has no value for it; nothing was written",
                field.name(),
                source.table,
                source.row(at)
            );
        }
        if let Some(length) = text_length::of_field(field)
            && let Some((at, characters)) = text_length::first_longer(column, length)
        {
            return exec_err!(
                "column {} of table {} is VARCHAR({length}), but {} has a text of {characters} characters; nothing was written",
                field.name(),
                source.table,
                source.row(at)
            );
        }
        let Some(vector) = VectorType::of_field(field) else { continue };
        let vectors = VectorArray::read(column, field, None)?;
        if let Some(at) = kernels::first_non_finite(vectors.vectors()) {
            return exec_err!(
                "column {} holds finite numbers only, but element {} of a vector is NaN or infinite; nothing was written",
                field.name(),
                at % vector.dim + 1
            );
        }
        if vectors.nulls.as_ref().map_or(0, |nulls| nulls.null_count()) > column.null_count() {
            return exec_err!("a vector in column {} has a NULL element; nothing was written", field.name());
        }
    }
    // Nullability was checked on the data, the types may differ in the nullability of their items only.
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => arrow::compute::cast(column, field.data_type()),
        })
        .collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}
