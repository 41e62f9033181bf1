//! Batches on the wire: types that every client reads, and messages that none refuses.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::{CompressionContext, DictionaryTracker, EncodedData, IpcDataGenerator, IpcWriteOptions};
use arrow_flight::FlightData;
use futures::stream::{BoxStream, StreamExt};
use tonic::Status;

use crate::record_batch;
use crate::status::status_of;

/// What a message is meant to hold.
const MESSAGE_BYTES: usize = 2 << 20;
/// What a message holds at most, unless one row alone is larger: gRPC's own default, which no client goes below.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Which types a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Types {
    /// What the engine computes with, views and dictionaries included.
    Native,
    /// The types that Arrow had from the start, and 16-bit floats.
    #[default]
    Compatible,
    /// The same without 16-bit floats, which JDBC and ODBC drivers do not know.
    Plain,
}

impl Types {
    /// What a client that names itself so reads.
    pub(crate) fn of_client(user_agent: &str) -> Self {
        let is_plain = ["JDBC", "ODBC", "grafana"].iter().any(|name| user_agent.contains(name));
        if is_plain { Self::Plain } else { Self::Compatible }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "native" => Self::Native,
            "compatible" => Self::Compatible,
            "plain" => Self::Plain,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Compatible => "compatible",
            Self::Plain => "plain",
        }
    }

    /// The schema on the wire.
    pub(crate) fn schema(self, schema: &Schema) -> SchemaRef {
        let fields: Vec<FieldRef> = schema.fields().iter().map(|field| self.field(field)).collect();
        Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
    }

    fn field(self, field: &Field) -> FieldRef {
        Arc::new(field.clone().with_data_type(self.data_type(field.data_type())))
    }

    fn data_type(self, data_type: &DataType) -> DataType {
        if self == Self::Native {
            return data_type.clone();
        }
        match data_type {
            DataType::Utf8View => DataType::Utf8,
            DataType::BinaryView => DataType::Binary,
            DataType::Dictionary(_, values) => self.data_type(values),
            DataType::RunEndEncoded(_, values) => self.data_type(values.data_type()),
            DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
                DataType::Decimal128(*precision, *scale)
            }
            DataType::Float16 if self == Self::Plain => DataType::Float32,
            DataType::List(item) | DataType::ListView(item) => DataType::List(self.field(item)),
            DataType::LargeList(item) | DataType::LargeListView(item) => DataType::LargeList(self.field(item)),
            DataType::FixedSizeList(item, length) => DataType::FixedSizeList(self.field(item), *length),
            DataType::Struct(fields) => {
                DataType::Struct(fields.iter().map(|field| self.field(field)).collect::<Fields>())
            }
            DataType::Map(entries, sorted) => DataType::Map(self.field(entries), *sorted),
            other => other.clone(),
        }
    }
}

/// A batch under the schema that was announced: columns of other types are cast, names and nullability are its own.
pub(crate) fn under(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => cast(column, field.data_type()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// The messages of an answer: its schema, then its rows in messages of some [`MESSAGE_BYTES`].
pub(crate) fn messages(
    schema: SchemaRef,
    rows: BoxStream<'static, Result<RecordBatch, Status>>,
) -> BoxStream<'static, Result<FlightData, Status>> {
    let options = IpcWriteOptions::default();
    let mut tracker = DictionaryTracker::new(false);
    let head = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(&schema, &mut tracker, &options);
    let head = FlightData::from(head);
    let mut encoder = Encoder { options, tracker, compression: CompressionContext::default() };
    let rows = rows.flat_map(move |batch| {
        let encoded = batch.and_then(|batch| {
            let batch = under(&schema, &batch).map_err(|error| encoding_failed(&error))?;
            encoder.batch(&batch).map_err(|error| encoding_failed(&error))
        });
        futures::stream::iter(match encoded {
            Ok(messages) => messages.into_iter().map(Ok).collect(),
            Err(status) => vec![Err(status)],
        })
    });
    futures::stream::once(async move { Ok(head) }).chain(rows).boxed()
}

fn encoding_failed(error: &ArrowError) -> Status {
    Status::internal(format!("the answer cannot be sent: {error}"))
}

struct Encoder {
    options: IpcWriteOptions,
    tracker: DictionaryTracker,
    compression: CompressionContext,
}

impl Encoder {
    fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<FlightData>, ArrowError> {
        let mut messages = vec![];
        let mut bytes = 0;
        for column in batch.columns() {
            bytes += column.to_data().get_slice_memory_size()?;
        }
        let pieces = bytes.div_ceil(MESSAGE_BYTES).clamp(1, batch.num_rows().max(1));
        let rows = batch.num_rows().div_ceil(pieces).max(1);
        let mut start = 0;
        while start < batch.num_rows() {
            let length = rows.min(batch.num_rows() - start);
            self.piece(&batch.slice(start, length), &mut messages)?;
            start += length;
        }
        Ok(messages)
    }

    /// One message, or several where the estimate was too low.
    fn piece(&mut self, batch: &RecordBatch, messages: &mut Vec<FlightData>) -> Result<(), ArrowError> {
        let (dictionaries, encoded) = match record_batch::encode(batch) {
            Some((ipc_message, arrow_data)) => (vec![], EncodedData { ipc_message, arrow_data }),
            None => {
                IpcDataGenerator::default().encode(batch, &mut self.tracker, &self.options, &mut self.compression)?
            }
        };
        if encoded.arrow_data.len() > MESSAGE_BYTES_MAX && batch.num_rows() > 1 {
            let half = batch.num_rows() / 2;
            self.piece(&batch.slice(0, half), messages)?;
            return self.piece(&batch.slice(half, batch.num_rows() - half), messages);
        }
        messages.extend(dictionaries.into_iter().map(FlightData::from));
        messages.push(FlightData::from(encoded));
        Ok(())
    }
}

/// The rows of the engine as a stream of this crate.
pub(crate) fn of_engine(rows: engine::Rows) -> BoxStream<'static, Result<RecordBatch, Status>> {
    rows.map(|batch| batch.map_err(|error| status_of(&error))).boxed()
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, DictionaryArray, FixedSizeListArray, Float32Array, Int64Array, StringArray, StringViewArray,
    };
    use arrow::datatypes::Int32Type;
    use arrow_flight::decode::FlightRecordBatchStream;
    use futures::TryStreamExt;

    use super::*;

    async fn round_trip(types: Types, batches: Vec<RecordBatch>) -> (Vec<usize>, Vec<RecordBatch>) {
        let schema = types.schema(&batches[0].schema());
        let rows = futures::stream::iter(batches.into_iter().map(Ok)).boxed();
        let sent: Vec<FlightData> = messages(schema, rows).try_collect().await.unwrap();
        let bytes = sent.iter().map(|message| message.data_body.len()).collect();
        let stream = futures::stream::iter(sent.into_iter().map(Ok));
        (bytes, FlightRecordBatchStream::new_from_flight_data(stream).try_collect().await.unwrap())
    }

    #[tokio::test]
    async fn clients_get_types_that_they_read() {
        let dictionary: DictionaryArray<Int32Type> = ["a", "b", "a"].into_iter().collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("view", Arc::new(StringViewArray::from(vec!["x", "y", "a text that is longer than twelve bytes"]))),
            ("dictionary", Arc::new(dictionary)),
            ("number", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let (_, native) = round_trip(Types::Native, vec![batch.clone()]).await;
        assert_eq!(native[0].schema().field(0).data_type(), &DataType::Utf8View);
        let (_, sent) = round_trip(Types::Compatible, vec![batch]).await;
        let schema = sent[0].schema();
        assert_eq!(schema.field(0).data_type(), &DataType::Utf8);
        assert_eq!(schema.field(1).data_type(), &DataType::Utf8);
        let texts = sent[0].column(1).as_any().downcast_ref::<StringArray>().unwrap();
        assert_eq!(texts.iter().flatten().collect::<Vec<_>>(), ["a", "b", "a"]);
    }

    #[tokio::test]
    async fn no_message_is_larger_than_clients_take() {
        let rows: usize = 20_000;
        let values = Float32Array::from_iter_values((0..rows * 384).map(|at| at as f32));
        let item = Arc::new(Field::new_list_field(DataType::Float32, true));
        let vectors = FixedSizeListArray::try_new(item, 384, Arc::new(values), None).unwrap();
        // One text is as large as a thousand others.
        let texts =
            StringArray::from_iter_values((0..rows).map(|at| "x".repeat(if at == 7 { 3 << 20 } else { at % 40 })));
        let columns: Vec<(&str, ArrayRef)> = vec![("emb", Arc::new(vectors)), ("text", Arc::new(texts))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let (bytes, sent) = round_trip(Types::Compatible, vec![batch.clone()]).await;
        assert!(bytes.iter().all(|bytes| *bytes <= MESSAGE_BYTES_MAX), "{bytes:?}");
        assert!(bytes.len() < 40, "{} messages", bytes.len());
        let back = arrow::compute::concat_batches(&batch.schema(), &sent).unwrap();
        assert_eq!(back, batch);
    }

    #[tokio::test]
    async fn an_answer_without_rows_or_columns_has_its_schema() {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
        let (bytes, sent) = round_trip(Types::Compatible, vec![RecordBatch::new_empty(schema)]).await;
        assert_eq!((bytes.len(), sent.len()), (1, 0));
    }
}
