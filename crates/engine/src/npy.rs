//! NumPy's `.npy` files as tables: a matrix is one column of vectors, an array of one dimension a column of numbers.
//!
//! Source of the format: NumPy Enhancement Proposal 1, "A Simple File Format for NumPy Arrays".

use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, PrimitiveArray, RecordBatch};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Schema, SchemaRef, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::exec_datafusion_err;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;

use futures::StreamExt;

use crate::{Error, Result};

/// The name of the one column.
const COLUMN: &str = "vector";
/// The largest header that is believed.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// How many bytes one batch holds at most.
const BATCH_BYTES: usize = 4 << 20;

/// What the header of a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    element: DataType,
    element_bytes: usize,
    rows: usize,
    /// Elements of each row; `None` for an array of one dimension.
    dim: Option<usize>,
    /// Where the values begin.
    offset: usize,
}

/// A table over files of one shape.
///
/// # Errors
/// A file that is no `.npy`, holds other than numbers, is of Fortran order or of more than two dimensions, is
/// shorter than its shape, or differs from the first.
pub(crate) fn table(files: &[String]) -> Result<Arc<dyn TableProvider>> {
    let mut parts: Vec<(String, Header)> = vec![];
    for path in files {
        let header = read_header(path)?;
        let own = (&header.element, header.dim);
        let first = parts.first().map(|(_, first)| (&first.element, first.dim));
        if let Some(first) = first.filter(|first| *first != own) {
            return Err(Error::invalid(format!("{path} holds {own:?}, but the files before it hold {first:?}")));
        }
        parts.push((path.clone(), header));
    }
    let Some((_, first)) = parts.first() else { return Err(Error::invalid("no file is named")) };
    let schema = schema_of(first);
    let files = Files { parts, schema: Arc::clone(&schema) };
    Ok(Arc::new(StreamingTable::try_new(schema, vec![Arc::new(files)])?))
}

fn schema_of(header: &Header) -> SchemaRef {
    let data_type = match header.dim {
        Some(dim) => {
            DataType::new_fixed_size_list(header.element.clone(), i32::try_from(dim).unwrap_or(i32::MAX), true)
        }
        None => header.element.clone(),
    };
    Arc::new(Schema::new(vec![Field::new(COLUMN, data_type, true)]))
}

fn read_header(path: &str) -> Result<Header> {
    let failed = |what: &str| Error::invalid(format!("{path} cannot be read as .npy: {what}"));
    let file = File::open(path).map_err(|error| failed(&error.to_string()))?;
    let bytes = file.metadata().map_err(|error| failed(&error.to_string()))?.len();
    let mut reader = BufReader::new(file);
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(|_| failed("it is too short"))?;
    if &start[..6] != b"\x93NUMPY" {
        return Err(failed("it does not begin with the mark of the format"));
    }
    let mut length = [0; 4];
    let width = if start[6] == 1 { 2 } else { 4 };
    reader.read_exact(&mut length[..width]).map_err(|_| failed("it is too short"))?;
    let length = u32::from_le_bytes(length) as usize;
    if length > HEADER_BYTES_MAX {
        return Err(failed("its header is too long"));
    }
    let mut text = vec![0; length];
    reader.read_exact(&mut text).map_err(|_| failed("it is too short"))?;
    let header = parse_header(&String::from_utf8_lossy(&text), 8 + width + length).map_err(|what| failed(&what))?;
    let needed = header
        .rows
        .checked_mul(header.dim.unwrap_or(1))
        .and_then(|n| n.checked_mul(header.element_bytes))
        .and_then(|n| n.checked_add(header.offset));
    if needed.is_none_or(|needed| bytes < needed as u64) {
        return Err(failed("it is shorter than its shape says"));
    }
    Ok(header)
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (10, 384), }`.
fn parse_header(text: &str, offset: usize) -> std::result::Result<Header, String> {
    let value = |key: &str| {
        let (_, rest) = text.split_once(&format!("'{key}':")).ok_or(format!("its header has no {key}"))?;
        Ok::<_, String>(rest.trim_start())
    };
    let descr = value("descr")?
        .strip_prefix('\'')
        .and_then(|rest| rest.split('\'').next())
        .ok_or("its elements are records")?;
    let (element, element_bytes) = match descr {
        "<f2" => (DataType::Float16, 2),
        "<f4" => (DataType::Float32, 4),
        "<f8" => (DataType::Float64, 8),
        "|i1" => (DataType::Int8, 1),
        "|u1" => (DataType::UInt8, 1),
        "<i2" => (DataType::Int16, 2),
        "<u2" => (DataType::UInt16, 2),
        "<i4" => (DataType::Int32, 4),
        "<u4" => (DataType::UInt32, 4),
        "<i8" => (DataType::Int64, 8),
        "<u8" => (DataType::UInt64, 8),
        other => return Err(format!("elements of type {other} are not supported; save little-endian numbers")),
    };
    if !value("fortran_order")?.starts_with("False") {
        return Err("it is in Fortran order; save it with numpy.ascontiguousarray".into());
    }
    let shape =
        value("shape")?.strip_prefix('(').and_then(|rest| rest.split(')').next()).ok_or("its header has no shape")?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty()).map(str::parse::<usize>);
    let sizes: Vec<usize> = sizes
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| format!("its shape ({shape}) is no list of numbers"))?;
    let (rows, dim) = match sizes.as_slice() {
        [rows] => (*rows, None),
        [_, 0] => return Err("its rows have no elements".into()),
        [rows, dim] => (*rows, Some(*dim)),
        _ => return Err(format!("it has {} dimensions; a table has rows of vectors or of numbers", sizes.len())),
    };
    Ok(Header { element, element_bytes, rows, dim, offset })
}

/// The files one after the other, as one partition: rows keep their order.
#[derive(Debug)]
struct Files {
    parts: Vec<(String, Header)>,
    schema: SchemaRef,
}

impl PartitionStream for Files {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (parts, schema) = (self.parts.clone(), Arc::clone(&self.schema));
        let read = move |(path, header): (String, Header)| match open_at(&path, header.offset) {
            Ok(reader) => futures::stream::iter(batches(reader, header, Arc::clone(&schema))).left_stream(),
            Err(error) => futures::stream::iter([Err(error)]).right_stream(),
        };
        let rows = futures::stream::iter(parts).flat_map(read);
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

fn open_at(path: &str, offset: usize) -> datafusion::error::Result<BufReader<File>> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset as u64))?;
    Ok(BufReader::new(file))
}

fn batches(
    mut reader: BufReader<File>,
    header: Header,
    schema: SchemaRef,
) -> impl Iterator<Item = datafusion::error::Result<RecordBatch>> {
    let width = header.dim.unwrap_or(1);
    let batch_rows = (BATCH_BYTES / (width * header.element_bytes)).max(1);
    (0..header.rows).step_by(batch_rows).map(move |start| {
        let rows = batch_rows.min(header.rows - start);
        let mut bytes = vec![0; rows * width * header.element_bytes];
        reader.read_exact(&mut bytes)?;
        let values = values(&header.element, bytes)?;
        let column: ArrayRef = match header.dim {
            Some(dim) => {
                let item = Arc::new(Field::new_list_field(header.element.clone(), true));
                Arc::new(FixedSizeListArray::try_new(item, i32::try_from(dim).unwrap_or(i32::MAX), values, None)?)
            }
            None => values,
        };
        Ok(RecordBatch::try_new(Arc::clone(&schema), vec![column])?)
    })
}

fn values(element: &DataType, bytes: Vec<u8>) -> datafusion::error::Result<ArrayRef> {
    fn of<T: ArrowPrimitiveType>(bytes: Vec<u8>) -> ArrayRef {
        let length = bytes.len() / size_of::<T::Native>();
        // The buffer is aligned by Arrow's own allocation.
        let buffer = arrow::buffer::Buffer::from_slice_ref(&bytes);
        Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::new(buffer, 0, length), None))
    }
    Ok(match element {
        DataType::Float16 => of::<Float16Type>(bytes),
        DataType::Float32 => of::<Float32Type>(bytes),
        DataType::Float64 => of::<Float64Type>(bytes),
        DataType::Int8 => of::<Int8Type>(bytes),
        DataType::UInt8 => of::<UInt8Type>(bytes),
        DataType::Int16 => of::<Int16Type>(bytes),
        DataType::UInt16 => of::<UInt16Type>(bytes),
        DataType::Int32 => of::<Int32Type>(bytes),
        DataType::UInt32 => of::<UInt32Type>(bytes),
        DataType::Int64 => of::<Int64Type>(bytes),
        DataType::UInt64 => of::<UInt64Type>(bytes),
        other => return Err(exec_datafusion_err!("elements of type {other} are not read from .npy")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_or_refused() {
        let good = parse_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10, 384), }", 128);
        assert_eq!(
            good,
            Ok(Header { element: DataType::Float32, element_bytes: 4, rows: 10, dim: Some(384), offset: 128 })
        );
        for bad in [
            "{'descr': '>f4', 'fortran_order': False, 'shape': (10, 384), }",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (10, 384), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (10, 0), }",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (10,), }",
            "{}",
        ] {
            assert!(parse_header(bad, 128).is_err(), "{bad}");
        }
    }
}
