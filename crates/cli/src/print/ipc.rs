//! An Arrow IPC stream: the answer as it is, for pandas, Polars, DuckDB and other programs.

use engine::arrow::array::RecordBatch;
use engine::arrow::datatypes::SchemaRef;
use engine::arrow::error::ArrowError;
use engine::arrow::ipc::writer::StreamWriter;

use super::Printer;

/// Prints one stream, its schema included even if it has no rows.
pub struct IpcPrinter {
    writer: StreamWriter<Vec<u8>>,
}

impl IpcPrinter {
    /// A stream of this schema.
    ///
    /// # Errors
    /// A type that Arrow IPC cannot hold.
    pub fn new(schema: &SchemaRef) -> Result<IpcPrinter, ArrowError> {
        Ok(IpcPrinter { writer: StreamWriter::try_new(Vec::new(), schema)? })
    }
}

impl Printer for IpcPrinter {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        self.writer.write(batch)?;
        out.append(self.writer.get_mut());
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        self.writer.finish()?;
        out.append(self.writer.get_mut());
        Ok(())
    }
}
