//! CSV and TSV as in RFC 4180: a header, one line per row, quotes where they are needed.
//!
//! NULL is an empty field and an empty text is `""`, so that reading the file back gives the same rows.

use engine::arrow::array::RecordBatch;
use engine::arrow::datatypes::SchemaRef;
use engine::arrow::error::ArrowError;

use super::Printer;
use super::cell::{Reader, cells_of};

/// Prints fields separated by one character.
pub struct TextPrinter {
    separator: char,
    header: Option<String>,
}

impl TextPrinter {
    /// A file with these columns.
    pub fn new(schema: &SchemaRef, separator: char) -> TextPrinter {
        let mut header = String::new();
        for (place, field) in schema.fields().iter().enumerate() {
            if place > 0 {
                header.push(separator);
            }
            write_field(field.name(), separator, &mut header);
        }
        header.push('\n');
        TextPrinter { separator, header: Some(header) }
    }

    fn write_header(&mut self, out: &mut Vec<u8>) {
        if let Some(header) = self.header.take() {
            out.extend_from_slice(header.as_bytes());
        }
    }
}

impl Printer for TextPrinter {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        self.write_header(out);
        let cells = cells_of(batch, Reader::Program)?;
        let (mut line, mut field) = (String::new(), String::new());
        for row in 0..batch.num_rows() {
            line.clear();
            for (place, cells) in cells.iter().enumerate() {
                if place > 0 {
                    line.push(self.separator);
                }
                if !cells.is_null(row) {
                    field.clear();
                    cells.write(row, &mut field)?;
                    write_field(&field, self.separator, &mut line);
                }
            }
            line.push('\n');
            out.extend_from_slice(line.as_bytes());
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        self.write_header(out);
        Ok(())
    }
}

fn write_field(text: &str, separator: char, line: &mut String) {
    let is_plain = !text.is_empty() && !text.contains([separator, '"', '\n', '\r']);
    if is_plain {
        line.push_str(text);
        return;
    }
    line.push('"');
    for c in text.chars() {
        if c == '"' {
            line.push('"');
        }
        line.push(c);
    }
    line.push('"');
}
