//! Prepared statements: made once, bound to values, run for each row of them.

use std::sync::{Arc, Mutex};

use arrow::array::{Array, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::{IpcMessage, SchemaAsIpc};
use engine::ScalarValue;
use tonic::Status;

use crate::catalog::prepared_schema;
use crate::core::Call;
use crate::handles::{Held, Prepared};
use crate::messages::CreatePreparedStatementResult;
use crate::sessions::locked;
use crate::status::{malformed, status_of};

/// Rows of values for one run.
const BOUND_ROWS_MAX: usize = 100_000;

impl Call {
    /// Prepares a statement: its handle, the columns of its answer and its parameters.
    pub(crate) async fn prepare(&self, sql: &str) -> Result<CreatePreparedStatementResult, Status> {
        self.parse(sql)?;
        let prepared = self.session.engine.prepare(sql).await.map_err(|error| status_of(&error))?;
        let description = prepared.description();
        let columns = match &description.columns {
            Some(columns) => ipc(&prepared_schema(columns, self.types))?,
            None => bytes::Bytes::new(),
        };
        let parameters: Vec<Field> = description
            .parameters
            .iter()
            .zip(1..)
            .map(|(data_type, number)| {
                Field::new(format!("${number}"), data_type.clone().unwrap_or(DataType::Null), true)
            })
            .collect();
        let parameters = ipc(&self.types.schema(&Schema::new(parameters)))?;
        let is_update = description.is_update;
        let prepared = Arc::new(Prepared { prepared, bound: Mutex::default() });
        let handle = self.core.handles.add(self.owner(), Held::Prepared(prepared))?;
        Ok(CreatePreparedStatementResult {
            prepared_statement_handle: handle.as_bytes().to_vec().into(),
            dataset_schema: columns,
            parameter_schema: parameters,
            is_update: Some(is_update),
        })
    }
}

/// A schema as an IPC message of its own.
fn ipc(schema: &Schema) -> Result<bytes::Bytes, Status> {
    let options = IpcWriteOptions::default();
    let message: Result<IpcMessage, _> = SchemaAsIpc::new(schema, &options).try_into();
    message.map(|message| message.0).map_err(|error| Status::internal(format!("a schema cannot be sent: {error}")))
}

impl Prepared {
    /// Keeps values for the next run.
    ///
    /// # Errors
    /// More rows than are taken at once, columns that are not one for each parameter.
    pub(crate) fn bind(&self, batches: &[RecordBatch]) -> Result<(), Status> {
        let Some(first) = batches.first() else {
            *locked(&self.bound) = None;
            return Ok(());
        };
        let batch = concat_batches(&first.schema(), batches).map_err(|error| malformed("the values", error))?;
        if batch.num_rows() > BOUND_ROWS_MAX {
            return Err(Status::invalid_argument(format!(
                "{} rows of values were bound, more than the {BOUND_ROWS_MAX} that one run takes; send fewer at once, or ingest them into a table",
                batch.num_rows()
            )));
        }
        let wanted = self.prepared.description().parameters.len();
        if batch.num_columns() != wanted {
            return Err(Status::invalid_argument(format!(
                "the statement has {wanted} parameters, and {} were bound",
                batch.num_columns()
            )));
        }
        *locked(&self.bound) = Some(batch);
        Ok(())
    }

    /// The values of each run: one run without values if none were bound.
    pub(crate) fn rows(&self) -> Result<Vec<Vec<ScalarValue>>, Status> {
        match locked(&self.bound).as_ref() {
            Some(batch) => rows_of(batch),
            None => Ok(vec![vec![]]),
        }
    }
}

/// Each row of a batch as values.
pub(crate) fn rows_of(batch: &RecordBatch) -> Result<Vec<Vec<ScalarValue>>, Status> {
    let value = |column: &dyn Array, row: usize| -> Result<ScalarValue, Status> {
        let value = ScalarValue::try_from_array(column, row).map_err(|error| malformed("a value", error))?;
        Ok(match value {
            ScalarValue::Dictionary(_, value) | ScalarValue::RunEndEncoded(_, _, value) => *value,
            value => value,
        })
    };
    (0..batch.num_rows()).map(|row| batch.columns().iter().map(|column| value(column, row)).collect()).collect()
}
