//! One line per value, for rows that are too wide for a table.

use engine::arrow::array::RecordBatch;
use engine::arrow::datatypes::SchemaRef;
use engine::arrow::error::ArrowError;

use super::Printer;
use super::cell::{Reader, cells_of};
use super::width::{escape, escape_line, width};

/// The rule above each row is at least this wide.
const RULE_WIDTH: usize = 40;

/// Prints each row as a small list of names and values.
pub struct VerticalPrinter {
    names: Vec<String>,
    name_width: usize,
    color: bool,
    rows_printed: u64,
}

impl VerticalPrinter {
    /// Rows with these columns.
    pub fn new(schema: &SchemaRef, color: bool) -> VerticalPrinter {
        let names: Vec<String> = schema.fields().iter().map(|field| escape_line(field.name()).into_owned()).collect();
        let name_width = names.iter().map(|name| width(name)).max().unwrap_or(0);
        VerticalPrinter { names, name_width, color, rows_printed: 0 }
    }
}

impl Printer for VerticalPrinter {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        let cells = cells_of(batch, Reader::Person)?;
        let mut text = String::new();
        for row in 0..batch.num_rows() {
            self.rows_printed += 1;
            let title = format!("─[ row {} ]", self.rows_printed);
            text.push_str(&title);
            text.push_str(&"─".repeat(RULE_WIDTH.saturating_sub(width(&title))));
            text.push('\n');
            for (name, cells) in self.names.iter().zip(&cells) {
                let mut value = String::new();
                match cells.is_null(row) {
                    true if self.color => value.push_str("\x1b[2mNULL\x1b[0m"),
                    true => value.push_str("NULL"),
                    false => {
                        cells.write(row, &mut value)?;
                        value = escape(&value).into_owned();
                    }
                }
                for (place, line) in value.split('\n').enumerate() {
                    let name = if place == 0 { name.as_str() } else { "" };
                    text.push_str(name);
                    text.push_str(&" ".repeat(self.name_width - width(name)));
                    text.push_str(" │ ");
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), ArrowError> {
        Ok(())
    }
}
