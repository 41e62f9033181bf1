//! Rows that clients send: values of parameters, and rows for a table in one version.

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::sql::{CommandStatementIngest, TableExistsOption, TableNotExistOption};
use engine::{CATALOG, DEFAULT_SCHEMA, Error, ErrorKind, ImportMode, IngestTarget};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use std::sync::Arc;
use tonic::Status;

use crate::core::Call;
use crate::metrics::StatementKind;
use crate::status::{malformed, status_of};

/// Bytes of values that are bound at once.
const BOUND_BYTES_MAX: usize = 256 << 20;

/// The batches that a client sends.
pub(crate) struct Sent {
    pub(crate) schema: SchemaRef,
    pub(crate) rows: BoxStream<'static, Result<RecordBatch, FlightError>>,
}

impl Sent {
    /// Reads the columns; the rows are read when somebody has memory for them.
    ///
    /// # Errors
    /// Messages that are no Arrow data.
    pub(crate) async fn read(messages: BoxStream<'static, Result<FlightData, Status>>) -> Result<Self, Status> {
        let messages = messages.map_err(|status| FlightError::Tonic(Box::new(status)));
        let mut decoder = FlightDataDecoder::new(messages);
        let mut schema = None;
        while schema.is_none() {
            match decoder.try_next().await.map_err(|error| unreadable(&error))?.map(|message| message.payload) {
                Some(DecodedPayload::Schema(read)) => schema = Some(read),
                Some(DecodedPayload::None) => {}
                Some(DecodedPayload::RecordBatch(_)) => return Err(malformed("the rows", "their columns are missing")),
                None => schema = Some(Arc::new(Schema::empty())),
            }
        }
        let rows = decoder.try_filter_map(|message| {
            std::future::ready(match message.payload {
                DecodedPayload::RecordBatch(batch) => Ok(Some(batch)),
                DecodedPayload::None => Ok(None),
                DecodedPayload::Schema(_) => Err(FlightError::DecodeError("the columns were sent twice".to_owned())),
            })
        });
        Ok(Self { schema: schema.unwrap_or_else(|| Arc::new(Schema::empty())), rows: rows.boxed() })
    }

    /// All batches, of values for parameters.
    ///
    /// # Errors
    /// Messages that are no Arrow data, and more of them than one run takes.
    pub(crate) async fn collect(mut self) -> Result<Vec<RecordBatch>, Status> {
        let (mut batches, mut bytes) = (vec![], 0);
        while let Some(batch) = self.rows.try_next().await.map_err(|error| unreadable(&error))? {
            bytes += batch.get_array_memory_size();
            if bytes > BOUND_BYTES_MAX {
                return Err(Status::invalid_argument(format!(
                    "more than {BOUND_BYTES_MAX} bytes of values were sent for one run; send fewer at once, or ingest them into a table"
                )));
            }
            batches.push(batch);
        }
        Ok(batches)
    }
}

fn unreadable(error: &FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => status.as_ref().clone(),
        other => malformed("the rows", other),
    }
}

impl Call {
    /// Writes what a client sends into a table. Returns the number of rows.
    pub(crate) async fn ingest(&self, command: &CommandStatementIngest, sent: Sent) -> Result<u64, Status> {
        let target = target(command)?;
        let _place = self.admitted(StatementKind::Ingest).await?;
        let rows = sent.rows.map_err(|error| match error {
            FlightError::Tonic(status) => {
                Error::new(ErrorKind::Cancelled, format!("the client stopped: {}", status.message()))
            }
            other => Error::new(ErrorKind::Invalid, format!("the rows cannot be read: {other}")),
        });
        let ingest = self.session.engine.ingest(&target, sent.schema, rows.boxed());
        let ingest = async { ingest.await.map_err(|error| status_of(&error)) };
        let written = self.counted(StatementKind::Ingest, ingest).await?;
        self.core.metrics.ingested(written);
        Ok(written)
    }
}

/// The table and what is done with its name.
fn target(command: &CommandStatementIngest) -> Result<IngestTarget, Status> {
    if command.temporary {
        return Err(Status::unimplemented(
            "temporary tables are not supported; ingest into a table and drop it afterwards",
        ));
    }
    if command.transaction_id.as_ref().is_some_and(|id| !id.is_empty()) {
        return Err(Status::unimplemented("there are no transactions: each ingest is one of its own"));
    }
    if let Some(catalog) = command.catalog.as_deref().filter(|catalog| !catalog.is_empty() && *catalog != CATALOG) {
        return Err(Status::not_found(format!(
            "there is no catalog {catalog}; every table is in the catalog {CATALOG}"
        )));
    }
    if let Some(option) = command.options.keys().min() {
        return Err(Status::invalid_argument(format!("the option {option} of ingest is unknown; there are none")));
    }
    if command.table.is_empty() {
        return Err(Status::invalid_argument("ingest needs the name of a table"));
    }
    let options = command.table_definition_options.unwrap_or_default();
    let (if_not_exist, if_exists) = (options.if_not_exist(), options.if_exists());
    let mode = match (if_not_exist, if_exists) {
        (TableNotExistOption::Fail, TableExistsOption::Append) => ImportMode::Append,
        (TableNotExistOption::Create, TableExistsOption::Append) => ImportMode::CreateOrAppend,
        (TableNotExistOption::Create, TableExistsOption::Replace) => ImportMode::Replace,
        (TableNotExistOption::Create, TableExistsOption::Fail | TableExistsOption::Unspecified) => ImportMode::Create,
        _ => {
            return Err(Status::invalid_argument(
                "ingest creates a table, appends to one, replaces it, or creates and appends; the options say none of these",
            ));
        }
    };
    let schema =
        command.schema.clone().filter(|schema| !schema.is_empty()).unwrap_or_else(|| DEFAULT_SCHEMA.to_owned());
    Ok(IngestTarget { schema, table: command.table.clone(), mode })
}
