//! How answers become text or bytes: one file per family of formats behind [`Printer`].
//! Where the bytes go, and when, is `console`'s business.

mod cell;
mod ipc;
mod json;
mod table;
mod text;
mod vertical;
mod width;

use clap::ValueEnum;
use engine::arrow::array::RecordBatch;
use engine::arrow::datatypes::SchemaRef;
use engine::arrow::error::ArrowError;

/// A format of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Boxes drawn with lines, vectors shortened
    Table,
    /// Comma-separated with a header, as in RFC 4180; NULL is empty, an empty text is ""
    Csv,
    /// Tab-separated with a header, quoted like CSV
    Tsv,
    /// One JSON array of objects
    Json,
    /// One JSON object per line
    Jsonl,
    /// A Markdown table, vectors shortened
    Markdown,
    /// One line per column, vectors shortened
    Vertical,
    /// An Arrow IPC stream
    Arrow,
}

impl Format {
    /// Whether a program reads this format, so that nothing but rows may appear in it.
    pub fn is_for_machines(self) -> bool {
        matches!(self, Format::Csv | Format::Tsv | Format::Json | Format::Jsonl | Format::Arrow)
    }

    /// Whether a row count follows the rows.
    pub fn has_footer(self) -> bool {
        matches!(self, Format::Table | Format::Vertical)
    }

    /// Finds a format by the name that the command line uses.
    pub fn by_name(name: &str) -> Option<Format> {
        Format::from_str(name, true).ok()
    }

    /// The name that the command line uses.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// What a printer may decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrintOptions {
    pub format: Format,
    /// Cells of tables are cut at this many terminal columns.
    pub column_width_max: Option<usize>,
    pub color: bool,
}

/// Turns the batches of one answer into bytes, in order.
///
/// Bytes are appended to `out`; what cannot be printed yet is kept, bounded, until later calls.
pub trait Printer: Send {
    /// Takes the next rows.
    ///
    /// # Errors
    /// A value that the format cannot hold.
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError>;

    /// Ends the answer; called once, after the last batch.
    ///
    /// # Errors
    /// As for [`Printer::batch`].
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), ArrowError>;
}

/// The printer for answers of this schema.
pub fn printer(schema: &SchemaRef, options: PrintOptions) -> Result<Box<dyn Printer>, ArrowError> {
    Ok(match options.format {
        Format::Table | Format::Markdown => Box::new(table::TablePrinter::new(schema, options)),
        Format::Csv => Box::new(text::TextPrinter::new(schema, ',')),
        Format::Tsv => Box::new(text::TextPrinter::new(schema, '\t')),
        Format::Json => Box::new(json::ArrayPrinter::new(schema)),
        Format::Jsonl => Box::new(json::LinesPrinter::new(schema)),
        Format::Vertical => Box::new(vertical::VerticalPrinter::new(schema, options.color)),
        Format::Arrow => Box::new(ipc::IpcPrinter::new(schema)?),
    })
}

pub use width::escape_line;

#[cfg(test)]
mod tests;
