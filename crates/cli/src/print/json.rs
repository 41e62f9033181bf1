//! JSON: one array of objects, or one object per line. NULL is written out as `null`.

use std::collections::HashSet;
use std::sync::Arc;

use engine::arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringBuilder};
use engine::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use engine::arrow::error::ArrowError;
use engine::arrow::json::WriterBuilder;
use engine::arrow::json::writer::{LineDelimited, Writer};

use super::Printer;
use super::cell::{Cells, Reader, is_bit_vector};

fn writer() -> WriterBuilder {
    WriterBuilder::new().with_explicit_nulls(true)
}

/// Prints one array, one row per line.
pub struct ArrayPrinter {
    lines: LinesPrinter,
    is_started: bool,
}

impl ArrayPrinter {
    /// An array of objects with these names.
    pub fn new(schema: &SchemaRef) -> ArrayPrinter {
        ArrayPrinter { lines: LinesPrinter::new(schema), is_started: false }
    }
}

impl Printer for ArrayPrinter {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        let mut rows = Vec::new();
        self.lines.batch(batch, &mut rows)?;
        for row in rows.split(|&byte| byte == b'\n').filter(|row| !row.is_empty()) {
            out.extend_from_slice(if self.is_started { b",\n " } else { b"[" });
            out.extend_from_slice(row);
            self.is_started = true;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        out.extend_from_slice(if self.is_started { b"]\n" } else { b"[]\n" });
        Ok(())
    }
}

/// Prints one object per line.
pub struct LinesPrinter {
    schema: SchemaRef,
}

impl LinesPrinter {
    /// Objects with these names. Names that occur twice are numbered: an object cannot hold both.
    pub fn new(schema: &SchemaRef) -> LinesPrinter {
        LinesPrinter { schema: with_distinct_names(schema) }
    }
}

impl Printer for LinesPrinter {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        let columns = batch.columns().iter().zip(batch.schema_ref().fields());
        let columns = columns.map(|(column, field)| match is_bit_vector(field) {
            true => bits_as_texts(column.as_ref(), field),
            false => Ok(column.clone()),
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?;
        let mut lines: Writer<&mut Vec<u8>, LineDelimited> = writer().build(out);
        lines.write(&batch)?;
        lines.finish()
    }

    fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), ArrowError> {
        Ok(())
    }
}

/// Bit vectors as texts, which SQL reads back; as numbers, their bytes would look like a vector of bytes.
fn bits_as_texts(column: &dyn Array, field: &Field) -> Result<ArrayRef, ArrowError> {
    let cells = Cells::new(column, field, Reader::Program)?;
    let mut texts = StringBuilder::new();
    for row in 0..column.len() {
        if cells.is_null(row) {
            texts.append_null();
            continue;
        }
        let mut text = String::new();
        cells.write(row, &mut text)?;
        texts.append_value(text);
    }
    Ok(Arc::new(texts.finish()))
}

/// The columns as JSON shows them: bit vectors are texts, and no name occurs twice.
fn with_distinct_names(schema: &SchemaRef) -> SchemaRef {
    let mut taken = HashSet::new();
    let fields = schema.fields().iter().map(|field| {
        let mut name = field.name().clone();
        let mut number = 2;
        while !taken.insert(name.clone()) {
            name = format!("{}_{number}", field.name());
            number += 1;
        }
        let kind = if is_bit_vector(field) { DataType::Utf8 } else { field.data_type().clone() };
        Field::new(name, kind, field.is_nullable())
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
