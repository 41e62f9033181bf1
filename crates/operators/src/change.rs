//! The sink of UPDATE, DELETE, MERGE and of INSERT with clauses: it gathers what the statement changes, checks the new
//! rows, and leaves the commit to the engine. A statement that fails here has written nothing.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Field, Int32Type, Schema, SchemaRef, UInt64Type};
use datafusion::common::{exec_err, internal_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::spill::get_record_batch_memory_size;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::StreamExt;
use planner::change::{Action, COUNT, ChangeSink};

use crate::insert::{Source, check};
use crate::row_buffer::RowBuffer;

/// The columns in front of the table's own: the action and the row's address.
const LEADING_COLUMNS: usize = 2;
/// Bytes that an address takes while it is remembered: in the list, in the set, and as the origin of a new row.
const ADDRESS_BYTES: usize = 48;

/// What happens when a statement meets a row of the table again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Nothing: a row goes once.
    Ignore,
    /// An error with this text.
    Refuse(&'static str),
}

/// What the sink is told about the statement.
#[derive(Debug, Clone)]
pub struct GatherOptions {
    /// The table's columns if new rows come; `None` if rows only go.
    pub new_rows: Option<SchemaRef>,
    /// The names of RETURNING's columns; `None` without the clause.
    pub returning: Option<Vec<String>>,
    /// What a row that is met again means.
    pub again: Again,
}

/// Takes the rows of one statement. One plan runs once: the next attempt has a sink of its own.
#[derive(Debug)]
pub struct Gathering {
    options: GatherOptions,
    gathered: Mutex<Option<Gathered>>,
}

/// What a statement changes.
pub struct Gathered {
    /// Addresses of the rows that go, each once.
    pub deleted: Vec<u64>,
    /// The rows that come, checked; `None` if none does.
    pub inserted: Option<SendableRecordBatchStream>,
    /// For each row that comes, in order, the address of the row that it was updated from; `None` for one that is new.
    pub origins: Vec<Option<u64>>,
    /// What RETURNING answers.
    pub returned: Option<SendableRecordBatchStream>,
    /// How many rows were inserted, updated or deleted.
    pub count: u64,
    /// Given back when the change is committed.
    _addresses: MemoryReservation,
}

impl fmt::Debug for Gathered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gathered({} changes, {} rows go)", self.count, self.deleted.len())
    }
}

impl Gathering {
    /// An empty sink.
    pub fn new(options: GatherOptions) -> Self {
        Self { options, gathered: Mutex::new(None) }
    }

    /// What was gathered, once; `None` before the plan was run.
    pub fn take(&self) -> Option<Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ChangeSink for Gathering {}

/// Hands the rows of its input to a [`Gathering`] and returns how many rows are changed.
#[derive(Debug)]
pub struct ChangeExec {
    operation: &'static str,
    table: String,
    sink: Arc<Gathering>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ChangeExec {
    /// The operator over `input`, whose columns are those that [`planner::change::Change`] names.
    pub fn new(operation: &'static str, table: String, sink: Arc<Gathering>, input: Arc<dyn ExecutionPlan>) -> Self {
        let schema = Arc::new(Schema::new(vec![Field::new(COUNT, arrow::datatypes::DataType::UInt64, false)]));
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        Self { operation, table, sink, input, properties, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl DisplayAs for ChangeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChangeExec: {} {}, one version", self.operation, self.table)
    }
}

impl ExecutionPlan for ChangeExec {
    fn name(&self) -> &'static str {
        "ChangeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => {
                Ok(Arc::new(Self::new(self.operation, self.table.clone(), Arc::clone(&self.sink), input)))
            }
            _ => internal_err!("a change has one input"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("a change has one partition, not {partition}");
        }
        let mut input = self.input.execute(0, Arc::clone(&context))?;
        let source = Source { table: self.table.clone(), rows_before: None };
        let mut gather = Gather::new(&self.sink.options, source, &input.schema(), &context, &self.metrics)?;
        let (sink, schema) = (Arc::clone(&self.sink), self.schema());
        let answer = Arc::clone(&schema);
        let batches = futures::stream::once(async move {
            while let Some(batch) = input.next().await {
                gather.add(&batch?)?;
            }
            let gathered = gather.finish()?;
            let count = UInt64Array::from(vec![gathered.count]);
            *sink.gathered.lock().unwrap_or_else(PoisonError::into_inner) = Some(gathered);
            Ok::<_, DataFusionError>(RecordBatch::try_new(answer, vec![Arc::new(count)])?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// A change that is being gathered.
struct Gather {
    options: GatherOptions,
    source: Source,
    deleted: Vec<u64>,
    origins: Vec<Option<u64>>,
    seen: HashSet<u64>,
    addresses: MemoryReservation,
    inserted: Option<RowBuffer>,
    returned: Option<Returned>,
    count: u64,
}

/// The rows of RETURNING; they have to fit into memory, as any answer that is held.
struct Returned {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    reservation: MemoryReservation,
}

impl Gather {
    fn new(
        options: &GatherOptions,
        source: Source,
        input: &SchemaRef,
        context: &TaskContext,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Self> {
        let columns = options.new_rows.as_ref().map_or(0, |schema| schema.fields().len());
        let first = LEADING_COLUMNS + columns;
        if input.fields().len() != first + options.returning.as_ref().map_or(0, Vec::len) {
            return internal_err!("a change has {} columns, not those that it was planned with", input.fields().len());
        }
        let register = |name: &str| MemoryConsumer::new(name.to_owned()).register(context.memory_pool());
        let returned = options.returning.as_ref().map(|names| {
            let fields = input.fields()[first..].iter().zip(names);
            let fields: Vec<Field> = fields.map(|(field, name)| field.as_ref().clone().with_name(name)).collect();
            Returned { schema: Arc::new(Schema::new(fields)), batches: vec![], reservation: register("RETURNING") }
        });
        let buffer = |schema: &SchemaRef| RowBuffer::new("ChangeExec", Arc::clone(schema), context, metrics);
        Ok(Self {
            options: options.clone(),
            source,
            deleted: vec![],
            origins: vec![],
            seen: HashSet::new(),
            addresses: register("rows that go"),
            inserted: options.new_rows.as_ref().map(buffer),
            returned,
            count: 0,
        })
    }

    /// # Errors
    /// A row that is met again, a new row that the table does not take, no memory for what is returned.
    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let rows = batch.num_rows();
        let (actions, addresses) = (batch.column(0), batch.column(1));
        let (Some(actions), Some(addresses)) =
            (actions.as_primitive_opt::<Int32Type>(), addresses.as_primitive_opt::<UInt64Type>())
        else {
            return internal_err!("a change begins with an action and an address");
        };
        let origins = if self.inserted.is_some() { addresses.null_count() * size_of::<Option<u64>>() } else { 0 };
        self.addresses.try_grow((rows - addresses.null_count()) * ADDRESS_BYTES + origins)?;
        let (mut comes, mut counts) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for row in 0..rows {
            let Some(action) = Action::of_code(actions.value(row)) else {
                return internal_err!("there is no action {}", actions.value(row));
            };
            let address = addresses.is_valid(row).then(|| addresses.value(row));
            let counted = self.meets(action, address)?;
            if counted && action != Action::Delete && self.inserted.is_some() {
                self.origins.push(address.filter(|_| action == Action::Update));
            }
            comes.push(counted && action != Action::Delete);
            counts.push(counted);
        }
        self.count += counts.iter().filter(|counted| **counted).count() as u64;
        self.keep_new_rows(batch, comes)?;
        self.keep_returned(batch, counts)
    }

    /// Notes the row that goes; false if the action is nothing, as the row went before.
    fn meets(&mut self, action: Action, address: Option<u64>) -> Result<bool> {
        match (action, address) {
            (Action::Insert, _) => Ok(true),
            (Action::Update | Action::Delete, Some(address)) => {
                if self.seen.insert(address) {
                    self.deleted.push(address);
                    return Ok(true);
                }
                self.again().map(|()| false)
            }
            (Action::Repeat, _) => self.again().map(|()| false),
            (Action::Update | Action::Delete, None) => internal_err!("a row goes, but has no address"),
        }
    }

    fn again(&self) -> Result<()> {
        match self.options.again {
            Again::Ignore => Ok(()),
            Again::Refuse(why) => exec_err!("{why}"),
        }
    }

    fn keep_new_rows(&mut self, batch: &RecordBatch, comes: Vec<bool>) -> Result<()> {
        let (Some(inserted), Some(schema)) = (&mut self.inserted, &self.options.new_rows) else { return Ok(()) };
        let columns: Vec<usize> = (LEADING_COLUMNS..LEADING_COLUMNS + schema.fields().len()).collect();
        let new = filter_record_batch(&batch.project(&columns)?, &BooleanArray::from(comes))?;
        inserted.push(check(&new, schema, &self.source)?)
    }

    fn keep_returned(&mut self, batch: &RecordBatch, counts: Vec<bool>) -> Result<()> {
        let Some(returned) = &mut self.returned else { return Ok(()) };
        let first = batch.num_columns() - returned.schema.fields().len();
        let columns: Vec<usize> = (first..batch.num_columns()).collect();
        let kept = filter_record_batch(&batch.project(&columns)?, &BooleanArray::from(counts))?;
        let kept = RecordBatch::try_new(Arc::clone(&returned.schema), kept.columns().to_vec())?;
        returned.reservation.try_grow(get_record_batch_memory_size(&kept))?;
        returned.batches.push(kept);
        Ok(())
    }

    fn finish(self) -> Result<Gathered> {
        let inserted = match self.inserted {
            Some(inserted) if !inserted.is_empty() => Some(inserted.into_stream()?),
            _ => None,
        };
        let returned = self.returned.map(|returned| {
            let Returned { schema, batches, reservation } = returned;
            let batches = futures::stream::iter(batches).map(move |batch| {
                // Held until the last batch is gone.
                let _held = &reservation;
                Ok(batch)
            });
            let stream: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, batches));
            stream
        });
        Ok(Gathered {
            deleted: self.deleted,
            inserted,
            origins: self.origins,
            returned,
            count: self.count,
            _addresses: self.addresses,
        })
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int32Array, Int64Array};
    use arrow::datatypes::DataType;
    use datafusion::prelude::SessionContext;

    use super::*;

    /// Gathers rows of (action, address, n); returns the addresses that go and the number of changes.
    fn gathered(again: Again, rows: &[(Action, Option<u64>, Option<i64>)]) -> Result<(Vec<u64>, u64)> {
        let table = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let options = GatherOptions { new_rows: Some(table), returning: None, again };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.0.code()))),
            Arc::new(UInt64Array::from_iter(rows.iter().map(|row| row.1))),
            Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.2))),
        ];
        let named = ["action", "row", "n"].into_iter().zip(&columns);
        let fields: Vec<Field> =
            named.map(|(name, column)| Field::new(name, column.data_type().clone(), true)).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        let context = SessionContext::new().task_ctx();
        let source = Source { table: "t".to_owned(), rows_before: None };
        let mut gather = Gather::new(&options, source, &batch.schema(), &context, &ExecutionPlanMetricsSet::new())?;
        gather.add(&batch)?;
        let gathered = gather.finish()?;
        Ok((gathered.deleted, gathered.count))
    }

    #[test]
    fn a_row_is_changed_once_or_the_statement_fails() {
        use Action::{Delete, Insert, Repeat, Update};
        let refuse = Again::Refuse("cannot affect row a second time");
        let check = |again, rows: &[(Action, Option<u64>, Option<i64>)], expected: Option<(Vec<u64>, u64)>| {
            assert_eq!(gathered(again, rows).ok(), expected, "{again:?} {rows:?}");
        };
        check(refuse, &[(Insert, None, Some(1)), (Update, Some(7), Some(2))], Some((vec![7], 2)));
        check(refuse, &[(Update, Some(7), Some(1)), (Update, Some(7), Some(2))], None);
        check(refuse, &[(Update, Some(7), Some(1)), (Delete, Some(7), None)], None);
        check(refuse, &[(Repeat, None, None)], None);
        check(Again::Ignore, &[(Delete, Some(7), None), (Delete, Some(7), None)], Some((vec![7], 1)));
        // A new row that the table does not take.
        check(refuse, &[(Insert, None, None)], None);
        // What goes has no values to check.
        check(refuse, &[(Delete, Some(3), None)], Some((vec![3], 1)));
    }
}
