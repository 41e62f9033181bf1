//! Rows of a source on their way into a new table: float lists whose length is constant over the whole input
//! become vectors.
//!
//! The length is taken from the first rows and the input is streamed on that assumption. A row that breaks it ends
//! the attempt, nothing is kept, and the source is read again with that column left a list: one pass in the usual
//! case, bounded memory always.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::exec_datafusion_err;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use operators::insert::{Source, checked};
use planner::vector_type::{DIM_MAX, Element, VectorType};
use planner::vectors::VectorArray;
use storage::{CreateMode, Progress, Retention, TableDefinition, TableName};

use crate::{Result, Session};

/// How many rows are looked at for the length of lists that are all NULL so far.
const HEAD_ROWS_MAX: usize = 65_536;

/// What becomes of float lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatLists {
    /// Those whose length is constant become vectors. The source may be read several times.
    ToVectors,
    /// They stay what they are, and the source is read once.
    Keep,
}

impl Session {
    /// Creates a table from the rows of a source. `None`: it was there, nothing was read.
    pub(crate) async fn create_from(
        &self,
        name: &TableName,
        mode: CreateMode,
        retention: Option<Retention>,
        float_lists: FloatLists,
        source: impl Fn() -> datafusion::error::Result<SendableRecordBatchStream>,
        progress: Option<Progress>,
    ) -> Result<Option<u64>> {
        let write = |schema: SchemaRef, rows| {
            let progress = progress.clone();
            async move {
                let definition = TableDefinition {
                    schema: storage::storable_schema(&schema)?,
                    defaults: Default::default(),
                    primary_key: vec![],
                    retention,
                    now_us: crate::definition::now_us(),
                };
                let source = Source { table: name.to_string(), rows_before: None };
                let rows = checked(rows, Arc::new(Schema::clone(&schema)), source);
                Ok(self.engine().database().create_table_from(name, definition, mode, rows, progress).await?)
            }
            .boxed()
        };
        with_vectors(float_lists, source, write).await
    }
}

/// What writing the rows of a source came to. `write` is called again, and the source read again, each time a row breaks
/// the assumption about a column; it must have kept nothing of rows that ended in an error.
pub(crate) async fn with_vectors<'a, T>(
    float_lists: FloatLists,
    source: impl Fn() -> datafusion::error::Result<SendableRecordBatchStream>,
    write: impl Fn(SchemaRef, SendableRecordBatchStream) -> BoxFuture<'a, Result<T>>,
) -> Result<T> {
    let mut lists = BTreeSet::new();
    loop {
        let broken = Arc::new(Mutex::new(None));
        let rows = source()?;
        if float_lists == FloatLists::Keep {
            lists.extend(0..rows.schema().fields().len());
        }
        let (schema, rows) = vectorized(rows, &lists, Arc::clone(&broken)).await?;
        let written = write(schema, rows).await;
        let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (written, broken) {
            (Err(_), Some(column)) if lists.insert(column) => {}
            (written, _) => return written,
        }
    }
}

/// The rows with their lists turned to vectors; `broken` gets the column whose lists differ in length.
async fn vectorized(
    mut rows: SendableRecordBatchStream,
    lists: &BTreeSet<usize>,
    broken: Arc<Mutex<Option<usize>>>,
) -> Result<(SchemaRef, SendableRecordBatchStream)> {
    let schema = rows.schema();
    let open: Vec<usize> =
        (0..schema.fields().len()).filter(|at| !lists.contains(at) && is_float_list(schema.field(*at))).collect();
    let (mut head, mut seen) = (vec![], 0);
    let mut dims: Vec<Option<usize>> = vec![None; schema.fields().len()];
    while open.iter().any(|at| dims[*at].is_none()) && seen < HEAD_ROWS_MAX {
        let Some(batch) = rows.try_next().await? else { break };
        for at in &open {
            dims[*at] = dims[*at].or_else(|| first_length(batch.column(*at)));
        }
        seen += batch.num_rows();
        head.push(batch);
    }
    let vectors: Vec<Option<VectorType>> =
        schema.fields().iter().zip(&dims).map(|(field, dim)| vector_of(field, *dim)).collect();
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .zip(&vectors)
        .map(|(field, vector)| match vector {
            Some(vector) => vector.field(field.name(), field.is_nullable()),
            None => field.as_ref().clone(),
        })
        .collect();
    let target = Arc::new(Schema::new(fields));
    let tagged = Arc::clone(&target);
    let all = futures::stream::iter(head.into_iter().map(Ok)).chain(rows);
    let converted = all.map(move |batch| convert(&batch?, &vectors, &tagged, &broken));
    Ok((Arc::clone(&target), Box::pin(RecordBatchStreamAdapter::new(target, converted))))
}

/// Lists of floats, and fixed-size lists of doubles, which no vector column holds as they are.
fn is_float_list(field: &Field) -> bool {
    match field.data_type() {
        DataType::List(item) | DataType::LargeList(item) => item.data_type().is_floating(),
        DataType::FixedSizeList(item, _) => item.data_type() == &DataType::Float64,
        _ => false,
    }
}

fn vector_of(field: &Field, dim: Option<usize>) -> Option<VectorType> {
    let dim = dim.filter(|dim| (1..=DIM_MAX).contains(dim))?;
    let half = match field.data_type() {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            item.data_type() == &DataType::Float16
        }
        _ => false,
    };
    VectorType::checked(if half { Element::Float16 } else { Element::Float32 }, dim).ok()
}

fn lengths(array: &ArrayRef) -> Box<dyn Iterator<Item = Option<usize>> + '_> {
    let valid = move |row: usize| array.is_valid(row);
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            Box::new((0..array.len()).map(move |row| valid(row).then(|| list.value_length(row) as usize)))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            Box::new((0..array.len()).map(move |row| valid(row).then(|| list.value_length(row) as usize)))
        }
        DataType::FixedSizeList(_, length) => {
            let length = *length as usize;
            Box::new((0..array.len()).map(move |row| valid(row).then_some(length)))
        }
        _ => Box::new(std::iter::empty()),
    }
}

fn first_length(array: &ArrayRef) -> Option<usize> {
    lengths(array).flatten().next()
}

fn convert(
    batch: &RecordBatch,
    vectors: &[Option<VectorType>],
    schema: &SchemaRef,
    broken: &Mutex<Option<usize>>,
) -> datafusion::error::Result<RecordBatch> {
    let mut columns = batch.columns().to_vec();
    for (at, vector) in vectors.iter().enumerate() {
        let Some(vector) = vector else { continue };
        if let Some(other) = lengths(&columns[at]).flatten().find(|length| *length != vector.dim) {
            *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
            return Err(exec_datafusion_err!("lists of {} and of {other} elements", vector.dim));
        }
        let read = VectorArray::read(&columns[at], batch.schema().field(at), Some(*vector))?;
        if read.nulls.as_ref().map_or(0, |nulls| nulls.null_count()) > columns[at].null_count() {
            // A NULL among the elements: it stays a list.
            *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
            return Err(exec_datafusion_err!("a list with a NULL element"));
        }
        columns[at] = Arc::new(read.cast(*vector).map_err(|error| named(error, schema.field(at)))?);
    }
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

fn named(error: DataFusionError, field: &Field) -> DataFusionError {
    DataFusionError::Execution(format!("column {}: {}; nothing was written", field.name(), error.message()))
}
