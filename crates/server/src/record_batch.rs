//! A record batch as a message of Arrow's IPC format, made in one copy: arrow-ipc appends the buffers to a vector that grows,
//! which copies a batch twice and takes its memory anew each time.
//!
//! The bytes are those of arrow-ipc, and what it alone writes is left to it.

use arrow::array::{Array, ArrayData, AsArray, GenericByteArray, GenericListArray, OffsetSizeTrait, RecordBatch};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{BinaryType, ByteArrayType, DataType, LargeBinaryType, LargeUtf8Type, Utf8Type};
use arrow::ipc::{self, FieldNode, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder};
use flatbuffers::FlatBufferBuilder;

/// Where each buffer of a body begins: at a multiple of this.
const ALIGNMENT: usize = 64;

/// The header and the body of the message of a batch; `None` for types that arrow-ipc writes: dictionaries, views, unions, maps,
/// runs.
///
/// Costs one copy of the batch.
pub(crate) fn encode(batch: &RecordBatch) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut parts = Parts::default();
    for column in batch.columns() {
        parts.add(column.as_ref())?;
    }
    let mut body = Vec::with_capacity(parts.bytes);
    for buffer in &parts.buffers {
        body.extend_from_slice(buffer);
        body.resize(body.len().next_multiple_of(ALIGNMENT), 0);
    }
    Some((parts.header(batch.num_rows()), body))
}

/// The buffers of a batch in the order of the format, depth first.
#[derive(Default)]
struct Parts {
    nodes: Vec<FieldNode>,
    places: Vec<ipc::Buffer>,
    buffers: Vec<Buffer>,
    /// Of the body so far.
    bytes: usize,
}

impl Parts {
    fn add(&mut self, array: &dyn Array) -> Option<()> {
        let data_type = array.data_type();
        if *data_type == DataType::Null {
            self.nodes.push(FieldNode::new(array.len() as i64, array.len() as i64));
            return Some(());
        }
        self.nodes.push(FieldNode::new(array.len() as i64, array.null_count() as i64));
        let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
        self.push(nulls.map_or_else(empty, |nulls| nulls.inner().sliced()));
        match data_type {
            DataType::Boolean => self.push(array.as_boolean().values().sliced()),
            DataType::Utf8 => self.add_bytes::<Utf8Type>(array.as_bytes()),
            DataType::Binary => self.add_bytes::<BinaryType>(array.as_bytes()),
            DataType::LargeUtf8 => self.add_bytes::<LargeUtf8Type>(array.as_bytes()),
            DataType::LargeBinary => self.add_bytes::<LargeBinaryType>(array.as_bytes()),
            DataType::List(_) => self.add_list::<i32>(array.as_list())?,
            DataType::LargeList(_) => self.add_list::<i64>(array.as_list())?,
            DataType::FixedSizeList(_, _) => self.add(array.as_fixed_size_list().values().as_ref())?,
            DataType::Struct(_) => {
                for column in array.as_struct().columns() {
                    self.add(column.as_ref())?;
                }
            }
            DataType::FixedSizeBinary(width) => self.add_values(&array.to_data(), usize::try_from(*width).ok()?),
            other => self.add_values(&array.to_data(), other.primitive_width()?),
        }
        Some(())
    }

    fn add_values(&mut self, data: &ArrayData, width: usize) {
        self.push(data.buffers()[0].slice_with_length(data.offset() * width, data.len() * width));
    }

    fn add_bytes<T: ByteArrayType>(&mut self, array: &GenericByteArray<T>) {
        let (offsets, first, last) = from_zero(array.offsets());
        self.push(offsets);
        self.push(array.values().slice_with_length(first, last - first));
    }

    fn add_list<O: OffsetSizeTrait>(&mut self, array: &GenericListArray<O>) -> Option<()> {
        let (offsets, first, last) = from_zero(array.offsets());
        self.push(offsets);
        self.add(array.values().slice(first, last - first).as_ref())
    }

    fn push(&mut self, buffer: Buffer) {
        self.places.push(ipc::Buffer::new(self.bytes as i64, buffer.len() as i64));
        self.bytes += buffer.len().next_multiple_of(ALIGNMENT);
        self.buffers.push(buffer);
    }

    fn header(&self, rows: usize) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let buffers = builder.create_vector(&self.places);
        let nodes = builder.create_vector(&self.nodes);
        let mut batch = RecordBatchBuilder::new(&mut builder);
        batch.add_length(rows as i64);
        batch.add_nodes(nodes);
        batch.add_buffers(buffers);
        let batch = batch.finish().as_union_value();
        let mut message = MessageBuilder::new(&mut builder);
        message.add_version(MetadataVersion::V5);
        message.add_header_type(MessageHeader::RecordBatch);
        message.add_bodyLength(self.bytes as i64);
        message.add_header(batch);
        let message = message.finish();
        builder.finish(message, None);
        builder.finished_data().to_vec()
    }
}

fn empty() -> Buffer {
    Buffer::from_vec(Vec::<u8>::new())
}

/// Offsets that begin with 0, and which values they meant.
fn from_zero<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>) -> (Buffer, usize, usize) {
    let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else { return (empty(), 0, 0) };
    let values: ScalarBuffer<O> = match first.as_usize() {
        0 => offsets.inner().clone(),
        _ => offsets.iter().map(|offset| *offset - first).collect(),
    };
    (values.into_inner(), first.as_usize(), last.as_usize())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, FixedSizeListArray, Float16Array,
        Float32Array, Int64Array, LargeStringArray, ListArray, NullArray, StringArray, StringViewArray, StructArray,
        TimestampMicrosecondArray,
    };
    use arrow::datatypes::{Field, Float32Type};
    use arrow::ipc::writer::{CompressionContext, DictionaryTracker, IpcDataGenerator, IpcWriteOptions};

    use super::*;

    const ROWS: usize = 133;

    fn columns() -> Vec<(&'static str, ArrayRef)> {
        let some = |at: usize| at % 7 > 0;
        let texts = || (0..ROWS).map(|at| some(at).then(|| "x".repeat(at % 19)));
        let vectors = Float32Array::from_iter_values((0..ROWS * 3).map(|at| at as f32));
        let item = Arc::new(Field::new_list_field(DataType::Float32, true));
        let lists = (0..ROWS).map(|at| some(at).then(|| (0..at % 5).map(|value| Some(value as f32))));
        let flags: ArrayRef = Arc::new(BooleanArray::from_iter((0..ROWS).map(|at| some(at).then_some(at % 3 == 0))));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter((0..ROWS).map(|at| some(at).then_some(at as i64))));
        let inner = StructArray::try_from(vec![("flag", Arc::clone(&flags)), ("number", Arc::clone(&numbers))]);
        vec![
            ("numbers", numbers),
            ("whole", Arc::new(TimestampMicrosecondArray::from_iter_values(0..ROWS as i64))),
            ("decimals", Arc::new(Decimal128Array::from_iter_values((0..ROWS).map(|at| at as i128)))),
            ("flags", flags),
            ("texts", Arc::new(StringArray::from_iter(texts()))),
            ("long", Arc::new(LargeStringArray::from_iter(texts()))),
            ("bytes", Arc::new(BinaryArray::from_iter(texts().map(|text| text.map(String::into_bytes))))),
            ("fixed", Arc::new(FixedSizeBinaryArray::try_from_iter((0..ROWS).map(|at| [at as u8; 5])).unwrap())),
            ("emb", Arc::new(FixedSizeListArray::try_new(item, 3, Arc::new(vectors), None).unwrap())),
            ("lists", Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(lists))),
            ("struct", Arc::new(inner.unwrap())),
            ("halves", Arc::new(Float16Array::from_iter_values((0..ROWS).map(|_| Default::default())))),
            ("nothing", Arc::new(NullArray::new(ROWS))),
        ]
    }

    fn of_arrow(batch: &RecordBatch) -> (Vec<u8>, Vec<u8>) {
        let (mut tracker, options) = (DictionaryTracker::new(false), IpcWriteOptions::default());
        let mut compression = CompressionContext::default();
        let encoded = IpcDataGenerator::default().encode(batch, &mut tracker, &options, &mut compression).unwrap();
        (encoded.1.ipc_message, encoded.1.arrow_data)
    }

    #[test]
    fn its_bytes_are_those_of_arrow_ipc_for_any_slice() {
        let batch = RecordBatch::try_from_iter(columns()).unwrap();
        for (start, length) in [(0, ROWS), (0, 0), (1, 64), (7, 1), (8, 100), (63, 70), (ROWS, 0)] {
            for (at, (name, _)) in columns().iter().enumerate() {
                let column = batch.slice(start, length).project(&[at]).unwrap();
                assert_eq!(encode(&column), Some(of_arrow(&column)), "{name} from {start}, {length} rows");
            }
        }
        assert_eq!(encode(&batch), Some(of_arrow(&batch)));
    }

    #[test]
    fn what_it_does_not_write_is_left_to_arrow_ipc() {
        let views: ArrayRef = Arc::new(StringViewArray::from(vec!["a"]));
        assert_eq!(encode(&RecordBatch::try_from_iter([("views", views)]).unwrap()), None);
    }
}
