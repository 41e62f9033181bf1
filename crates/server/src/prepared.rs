//! Prepared statements: made once, bound to values, run for each row of them.
//!
//! A handle holds the statement, and the one that binding values gives back holds these too: whoever goes on with the newest handle
//! runs what it says, on any server of the database. Clients that stay with the first handle run it with the values that were bound
//! last on the server that they are connected to.

use std::sync::{Arc, Mutex};

use arrow::array::{Array, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::{IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use engine::{ScalarValue, Statement};
use prost::Message;
use tonic::Status;
use uuid::Uuid;

use crate::catalog::prepared_schema;
use crate::core::Call;
use crate::handles::{Bound, Held, Prepared};
use crate::messages::CreatePreparedStatementResult;
use crate::seal::unknown;
use crate::sessions::locked;
use crate::statements::{Asked, Runnable};
use crate::status::{malformed, status_of};
use crate::travel::{self, Body, Content, Source, VALUES_BYTES_MAX, arrived, travelling};

/// Rows of values for one run.
const BOUND_ROWS_MAX: usize = 100_000;
/// What a prepared statement is taken to hold with its template, beside its text.
const PREPARED_BYTES: usize = 32 << 10;

impl Call {
    /// Prepares a statement: its handle, the columns of its answer and its parameters.
    pub(crate) async fn prepare(&self, statement: Statement) -> Result<CreatePreparedStatementResult, Status> {
        let bytes = statement.written().len();
        let prepared = self.session.engine.prepare_parsed(statement).await.map_err(|error| status_of(&error))?;
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
        let prepared = Arc::new(self.held(prepared, bytes)?);
        let id = self.core.handles.add(self.owner(), Held::Prepared(Arc::clone(&prepared)))?;
        Ok(CreatePreparedStatementResult {
            prepared_statement_handle: self.handle_of(id, &prepared, None),
            dataset_schema: columns,
            parameter_schema: parameters,
            is_update: Some(is_update),
        })
    }

    /// A prepared statement to be kept. `bytes`: those of its text.
    fn held(&self, prepared: engine::Prepared, bytes: usize) -> Result<Prepared, Status> {
        let _memory = self.core.hold(self, PREPARED_BYTES + bytes, "the prepared statement")?;
        Ok(Prepared { prepared, bound: Mutex::default(), _memory })
    }

    /// The handle of a prepared statement with these values.
    fn handle_of(&self, id: Uuid, prepared: &Prepared, bound: Option<&Bound>) -> Bytes {
        let prepared = travel::Prepared {
            source: Source::of(prepared.prepared.statement()),
            binding: bound.map_or(0, |bound| bound.binding),
            values: bound.and_then(|bound| bound.travelling.clone()),
        };
        let body = Body { content: Some(Content::Prepared(prepared)) };
        self.core.seal.seal(self.owner().user, id, &body.encode_to_vec())
    }

    /// The prepared statement of a handle, prepared here if another server has done it first.
    pub(crate) async fn prepared_of(&self, handle: &Bytes) -> Result<Found, Status> {
        let (id, body) = self.core.seal.open(self.owner().user, handle)?;
        let Some(Content::Prepared(said)) = Body::read(body)?.content else {
            return Err(Status::invalid_argument("the handle is that of an answer, not of a prepared statement"));
        };
        let held = match self.core.handles.find(self.owner(), id)? {
            Some(held) => held,
            None => Box::pin(self.prepare_again(id, &said)).await?,
        };
        match held {
            Held::Prepared(prepared) => Ok(Found { id, prepared, said }),
            _ => Err(unknown()),
        }
    }

    async fn prepare_again(&self, id: Uuid, said: &travel::Prepared) -> Result<Held, Status> {
        let source = said.source.as_ref().ok_or_else(|| {
            Status::not_found(
                "the prepared statement is with the server that prepared it, or is gone with it: it is too long to be carried about in its handle, or may hold a secret; prepare it here",
            )
        })?;
        let statement = self.arrived(source)?;
        let bytes = statement.written().len();
        let prepared = self.session.engine.prepare_parsed(statement).await.map_err(|error| status_of(&error))?;
        let held = Held::Prepared(Arc::new(self.held(prepared, bytes)?));
        self.core.handles.adopt(self.owner(), id, held, std::time::Duration::ZERO)
    }

    /// The prepared statement of a handle, to be run.
    pub(crate) async fn prepared(&self, handle: &Bytes) -> Result<Asked, Status> {
        let found = self.prepared_of(handle).await?;
        let bound = found.bound(self)?;
        Asked::of_prepared(found.prepared, bound)
    }

    /// Binds values to a prepared statement; the handle that holds them.
    pub(crate) async fn bind(&self, handle: &Bytes, batches: &[RecordBatch]) -> Result<Bytes, Status> {
        let Found { id, prepared, .. } = self.prepared_of(handle).await?;
        let bound = prepared.bind(self, batches)?;
        Ok(self.handle_of(id, &prepared, bound.as_deref()))
    }
}

/// The prepared statement of a handle, and what the handle says.
pub(crate) struct Found {
    id: Uuid,
    pub(crate) prepared: Arc<Prepared>,
    said: travel::Prepared,
}

impl Found {
    /// The values to run with: those that the handle says, or those that were bound last if it says none.
    ///
    /// # Errors
    /// The handle says values that are elsewhere, or were replaced.
    fn bound(&self, call: &Call) -> Result<Option<Arc<Bound>>, Status> {
        let last = locked(&self.prepared.bound).clone();
        match (&self.said.values, last) {
            (_, last) if self.said.binding == 0 => Ok(last),
            (_, Some(last)) if last.binding == self.said.binding => Ok(Some(last)),
            (Some(values), _) => {
                let (values, travelling) = (arrived(values)?, Some(values.clone()));
                let _memory = call.core.hold(call, values.get_array_memory_size(), "a set of bound values")?;
                Ok(Some(Arc::new(Bound { values, binding: self.said.binding, travelling, _memory })))
            }
            (None, _) => Err(Status::not_found(format!(
                "the values of the prepared statement are not here: they are kept where they were bound, until others are, as they have more than the {VALUES_BYTES_MAX} bytes that a handle holds; bind them again"
            ))),
        }
    }

    /// The same for a change that is sent without values: what was bound last is not taken, as it may have been applied.
    pub(crate) fn bound_by_handle(&self, call: &Call) -> Result<Option<Arc<Bound>>, Status> {
        if self.said.binding == 0 { Ok(None) } else { self.bound(call) }
    }
}

impl Asked {
    pub(crate) fn of_prepared(prepared: Arc<Prepared>, bound: Option<Arc<Bound>>) -> Result<Self, Status> {
        let rows = match &bound {
            Some(bound) => rows_of(&bound.values)?,
            None => vec![vec![]],
        };
        Ok(Self { runnable: Runnable::Prepared(prepared), rows, bound, _text: None })
    }
}

/// A schema as an IPC message of its own.
fn ipc(schema: &Schema) -> Result<bytes::Bytes, Status> {
    let options = IpcWriteOptions::default();
    let message: Result<IpcMessage, _> = SchemaAsIpc::new(schema, &options).try_into();
    message.map(|message| message.0).map_err(|error| Status::internal(format!("a schema cannot be sent: {error}")))
}

impl Prepared {
    /// Keeps values for the next run, and gives them back.
    ///
    /// # Errors
    /// More rows than are taken at once, columns that are not one for each parameter, no memory for them.
    pub(crate) fn bind(&self, call: &Call, batches: &[RecordBatch]) -> Result<Option<Arc<Bound>>, Status> {
        let Some(first) = batches.first() else {
            *locked(&self.bound) = None;
            return Ok(None);
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
        // Random, so that no other server gives the same number; never 0.
        let (binding, _) = Uuid::new_v4().as_u64_pair();
        let _memory = call.core.hold(call, batch.get_array_memory_size(), "a set of bound values")?;
        let travelling = travelling(&batch);
        let bound = Arc::new(Bound { travelling, values: batch, binding: binding | 1, _memory });
        *locked(&self.bound) = Some(Arc::clone(&bound));
        Ok(Some(bound))
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
