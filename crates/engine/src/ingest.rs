//! Rows from a program into a table: all of them in one version, or none.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::exec_datafusion_err;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::sql::sqlparser::ast::{Ident, ObjectName};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use storage::TableName;

use crate::definition::own_name;
use crate::vectorize::FloatLists;
use crate::{Error, ImportMode, Progress, Result, Session};

/// Where rows from a program go.
#[derive(Debug, Clone)]
pub struct IngestTarget {
    /// The schema as it is, not as in SQL: nothing is folded.
    pub schema: String,
    /// The table as it is.
    pub table: String,
    /// What is done with the table's name.
    pub mode: ImportMode,
}

impl IngestTarget {
    /// The table of a name as in SQL.
    ///
    /// # Errors
    /// A name that is none, or one of the engine's own schemas.
    pub fn of_sql(name: &str, mode: ImportMode) -> Result<Self> {
        let TableName { schema, table } = own_name(&planner::relation::parse_name(name)?)?;
        Ok(Self { schema, table, mode })
    }
}

impl Session {
    /// Writes the rows of a stream into a table, in one version: all of them once the stream has ended, or none if it
    /// fails. A new table has the stream's columns as they are (fixed-size lists are vectors, lists stay lists); in an old
    /// one, columns are matched by name. Returns the number of
    /// rows. Memory is bounded whatever the number of rows.
    ///
    /// # Errors
    /// An error of the stream, a table that is there or is not, rows that do not fit. Nothing is changed then.
    pub async fn ingest(
        &self,
        target: &IngestTarget,
        schema: SchemaRef,
        rows: BoxStream<'static, Result<RecordBatch>>,
    ) -> Result<u64> {
        let name = ObjectName::from(vec![
            Ident::with_quote('"', target.schema.as_str()),
            Ident::with_quote('"', target.table.as_str()),
        ]);
        let rows = rows.map(|batch| batch.map_err(|error| DataFusionError::External(Box::new(error))));
        let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), rows));
        let source = Once { schema: Arc::clone(&schema), rows: Mutex::new(Some(rows)) };
        let source = StreamingTable::try_new(schema, vec![Arc::new(source)]).map_err(Error::from)?;
        // Boxed: a caller's own futures would else hold the types of the whole load.
        self.load_from(&name, target.mode, FloatLists::Keep, Arc::new(source), Progress::new()).boxed().await
    }
}

/// Rows that can be read one time.
struct Once {
    schema: SchemaRef,
    rows: Mutex<Option<SendableRecordBatchStream>>,
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rows of a program")
    }
}

impl PartitionStream for Once {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner).take();
        rows.unwrap_or_else(|| {
            let gone = exec_datafusion_err!("the rows of a program can be read once; send them again");
            Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), futures::stream::iter([Err(gone)])))
        })
    }
}
