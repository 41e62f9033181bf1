//! Tables for people: boxes of lines on a terminal, or Markdown.
//!
//! Rows are held back until a block of them decides the widths of the columns. Later blocks keep these widths and
//! widen a column only when they must, so that an endless answer is printed in bounded memory.

use engine::arrow::array::RecordBatch;
use engine::arrow::datatypes::SchemaRef;
use engine::arrow::error::ArrowError;

use super::cell::{Cells, Reader, cells_of};
use super::width::{cut, escape, escape_line, width};
use super::{Format, PrintOptions, Printer};

/// Rows that are held back to choose the widths.
const BLOCK_ROWS: usize = 1000;
/// How many columns Markdown needs for its `---`.
const MARKDOWN_WIDTH_MIN: usize = 3;

/// Prints boxes or Markdown.
pub struct TablePrinter {
    columns: Vec<Column>,
    block: Vec<Vec<Cell>>,
    options: PrintOptions,
    is_started: bool,
}

struct Column {
    name: String,
    is_number: bool,
    width: usize,
}

/// One cell, as one or more lines.
enum Cell {
    Null,
    Text(String),
}

/// The horizontal rules of a box.
enum Rule {
    Top,
    Middle,
    Bottom,
}

impl TablePrinter {
    /// A table with these columns; `options.format` says which kind.
    pub fn new(schema: &SchemaRef, options: PrintOptions) -> TablePrinter {
        let columns = schema.fields().iter().map(|field| {
            let name = match options.format {
                Format::Markdown => markdown_text(field.name()),
                _ => escape_line(field.name()).into_owned(),
            };
            let least = if options.format == Format::Markdown { MARKDOWN_WIDTH_MIN } else { 0 };
            Column { width: width(&name).max(least), name, is_number: field.data_type().is_numeric() }
        });
        TablePrinter { columns: columns.collect(), block: Vec::new(), options, is_started: false }
    }

    fn is_markdown(&self) -> bool {
        self.options.format == Format::Markdown
    }

    fn cell(&self, cells: &Cells<'_>, row: usize) -> Result<Cell, ArrowError> {
        if cells.is_null(row) {
            return Ok(Cell::Null);
        }
        let mut text = String::new();
        cells.write(row, &mut text)?;
        // A line end at the very end, which plans have, would be shown as an empty line.
        let text = text.trim_end_matches('\n');
        let text = if self.is_markdown() { markdown_text(text) } else { escape(text).into_owned() };
        // Text of several lines was laid out by whoever made it: a plan, a document. It is not cut.
        let text = match self.options.column_width_max {
            Some(columns) if !text.contains('\n') => cut(&text, columns).into_owned(),
            _ => text,
        };
        Ok(Cell::Text(text))
    }

    /// Prints the rows held back.
    fn flush(&mut self, out: &mut Vec<u8>) {
        let mut has_grown = false;
        for row in &self.block {
            for (column, cell) in self.columns.iter_mut().zip(row) {
                let needed = cell.width();
                has_grown |= needed > column.width;
                column.width = column.width.max(needed);
            }
        }
        let mut text = String::new();
        if !self.is_started {
            self.write_header(&mut text);
            self.is_started = true;
        } else if has_grown && !self.is_markdown() {
            self.write_rule(&Rule::Middle, &mut text);
        }
        for row in std::mem::take(&mut self.block) {
            self.write_row(&row, &mut text);
        }
        out.extend_from_slice(text.as_bytes());
    }

    fn write_header(&self, text: &mut String) {
        if !self.is_markdown() {
            self.write_rule(&Rule::Top, text);
        }
        let names: Vec<Cell> = self.columns.iter().map(|column| Cell::Text(column.name.clone())).collect();
        self.write_row(&names, text);
        if self.is_markdown() {
            for column in &self.columns {
                let (dashes, end) = if column.is_number { (column.width - 1, ":") } else { (column.width, "") };
                text.push_str("| ");
                text.push_str(&"-".repeat(dashes));
                text.push_str(end);
                text.push(' ');
            }
            text.push_str("|\n");
        } else {
            self.write_rule(&Rule::Middle, text);
        }
    }

    fn write_rule(&self, rule: &Rule, text: &mut String) {
        let (left, cross, right) = match rule {
            Rule::Top => ('┌', '┬', '┐'),
            Rule::Middle => ('├', '┼', '┤'),
            Rule::Bottom => ('└', '┴', '┘'),
        };
        for (place, column) in self.columns.iter().enumerate() {
            text.push(if place == 0 { left } else { cross });
            text.push_str(&"─".repeat(column.width + 2));
        }
        text.push(right);
        text.push('\n');
    }

    fn write_row(&self, row: &[Cell], text: &mut String) {
        let bar = if self.is_markdown() { '|' } else { '│' };
        let height = row.iter().map(Cell::height).max().unwrap_or(1);
        for line in 0..height {
            for (column, cell) in self.columns.iter().zip(row) {
                text.push(bar);
                text.push(' ');
                self.write_cell_line(column, cell, line, text);
                text.push(' ');
            }
            text.push(bar);
            text.push('\n');
        }
    }

    fn write_cell_line(&self, column: &Column, cell: &Cell, line: usize, text: &mut String) {
        let (content, is_null) = match cell {
            Cell::Null => (if line == 0 { NULL } else { "" }, true),
            Cell::Text(content) => (content.split('\n').nth(line).unwrap_or_default(), false),
        };
        let padding = " ".repeat(column.width.saturating_sub(width(content)));
        if column.is_number {
            text.push_str(&padding);
        }
        if is_null && self.options.color {
            text.push_str("\x1b[2m");
            text.push_str(content);
            text.push_str("\x1b[0m");
        } else {
            text.push_str(content);
        }
        if !column.is_number {
            text.push_str(&padding);
        }
    }
}

const NULL: &str = "NULL";

impl Cell {
    fn width(&self) -> usize {
        match self {
            Cell::Null => NULL.len(),
            Cell::Text(text) => text.split('\n').map(width).max().unwrap_or(0),
        }
    }

    fn height(&self) -> usize {
        match self {
            Cell::Null => 1,
            Cell::Text(text) => text.split('\n').count(),
        }
    }
}

impl Printer for TablePrinter {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let cells = cells_of(batch, Reader::Person)?;
        for row in 0..batch.num_rows() {
            let line = cells.iter().map(|cells| self.cell(cells, row)).collect::<Result<Vec<_>, _>>()?;
            self.block.push(line);
            if self.block.len() == BLOCK_ROWS {
                self.flush(out);
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        if self.columns.is_empty() {
            return Ok(());
        }
        self.flush(out);
        if !self.is_markdown() {
            let mut text = String::new();
            self.write_rule(&Rule::Bottom, &mut text);
            out.extend_from_slice(text.as_bytes());
        }
        Ok(())
    }
}

/// One line that means the same inside a Markdown table.
fn markdown_text(text: &str) -> String {
    escape(text).replace('\\', "\\\\").replace('|', "\\|").replace('\n', "<br>")
}
