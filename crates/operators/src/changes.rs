//! The rows that differ between two versions of a table, as a table: what is behind `table_changes`.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{OwnedRow, RowConverter, SortField};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt};
use storage::{Snapshot, TableChanges};

use crate::external;

/// The column that says what happened to a row.
pub const CHANGE: &str = "_change";

/// What differs between two versions of one table: [`CHANGE`], then the columns of the newer version. A row that was
/// there and is not any more has NULL in columns that the older version does not have.
///
/// With a primary key, a key on both sides is an update and its rows are its two halves; without one, an update is
/// seen as a delete and an insert.
pub struct ChangesTable {
    changes: Arc<TableChanges>,
    name: String,
    key: Vec<String>,
    schema: SchemaRef,
}

impl ChangesTable {
    /// `name`: what plans call it. `key`: the columns of the primary key, none if there is none.
    ///
    /// # Errors
    /// A table that has a column [`CHANGE`] of its own.
    pub fn try_new(name: String, changes: TableChanges, key: Vec<String>) -> Result<Self> {
        let (old, new) = (changes.old.schema(), changes.new.schema());
        if new.column_with_name(CHANGE).is_some() {
            return plan_err!(
                "{name} cannot be shown: the table has a column {CHANGE} of its own; rename it with ALTER TABLE … RENAME COLUMN"
            );
        }
        let mut fields = vec![Arc::new(Field::new(CHANGE, DataType::Utf8, false))];
        // Rows of the older version may lack what the newer one demands.
        fields.extend(new.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true))));
        let is_keyed = |schema: &SchemaRef| key.iter().all(|column| schema.column_with_name(column).is_some());
        let key = if is_keyed(&old) && is_keyed(&new) { key } else { vec![] };
        Ok(Self { changes: Arc::new(changes), name, key, schema: Arc::new(Schema::new(fields)) })
    }
}

/// The name of a column if the older version has it too: a column that was dropped and made anew with another type
/// is another one.
fn same_column<'a>(old: &Schema, field: &'a Field) -> Option<&'a str> {
    let (_, before) = old.column_with_name(field.name())?;
    (before.data_type() == field.data_type()).then_some(field.name().as_str())
}

impl fmt::Debug for ChangesTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[async_trait]
impl TableProvider for ChangesTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => Arc::clone(&self.schema),
        };
        Ok(Arc::new(ChangesExec::new(self.name.clone(), Arc::clone(&self.changes), self.key.clone(), schema)))
    }
}

/// Reads the rows that are gone, then the rows that are new, each in row order.
pub(crate) struct ChangesExec {
    name: String,
    changes: Arc<TableChanges>,
    key: Vec<String>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ChangesExec {
    fn new(name: String, changes: Arc<TableChanges>, key: Vec<String>, schema: SchemaRef) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Self { name, changes, key, properties, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl fmt::Debug for ChangesExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChangesExec({})", self.name)
    }
}

impl DisplayAs for ChangesExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TableChangesExec: {}, rows gone={}, rows new={}",
            self.name,
            self.changes.removed.len(),
            self.changes.added.len()
        )?;
        match self.key.as_slice() {
            [] => write!(f, ", no key: an update is a delete and an insert"),
            key => write!(f, ", updates matched by key=[{}]", key.join(", ")),
        }
    }
}

impl ExecutionPlan for ChangesExec {
    fn name(&self) -> &'static str {
        "TableChangesExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("the changes of a table have no inputs") }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let reservation = MemoryConsumer::new("TableChangesExec").register(context.memory_pool());
        let reader = Reader {
            changes: Arc::clone(&self.changes),
            key: self.key.clone(),
            schema: Arc::clone(&schema),
            batch_rows: context.session_config().batch_size().max(1),
        };
        let rows = futures::stream::once(reader.rows(reservation)).try_flatten();
        let rows = rows.map(move |batch: Result<RecordBatch>| {
            let batch = batch?;
            metrics.record_output(batch.num_rows());
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// One side of the changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Removed,
    Added,
}

/// The keys of both sides.
struct Keys {
    converter: RowConverter,
    removed: HashSet<OwnedRow>,
    added: HashSet<OwnedRow>,
}

#[derive(Clone)]
struct Reader {
    changes: Arc<TableChanges>,
    key: Vec<String>,
    schema: SchemaRef,
    batch_rows: usize,
}

impl Reader {
    /// All rows. `reservation` holds the keys for as long as rows are read.
    async fn rows(
        self,
        reservation: MemoryReservation,
    ) -> Result<impl futures::Stream<Item = Result<RecordBatch>> + Send> {
        let wants_kind = self.schema.column_with_name(CHANGE).is_some();
        let keys = match wants_kind && !self.key.is_empty() {
            true => Some(Arc::new(self.keys(&reservation).await?)),
            false => None,
        };
        let mut chunks = vec![];
        for side in [Side::Removed, Side::Added] {
            let rows = self.addresses(side).len();
            chunks.extend((0..rows).step_by(self.batch_rows).map(|from| (side, from)));
        }
        let held = Arc::new(reservation);
        Ok(futures::stream::iter(chunks).then(move |(side, from)| {
            let (reader, keys, held) = (self.clone(), keys.clone(), Arc::clone(&held));
            async move {
                let batch = reader.batch(side, from, keys.as_deref()).await;
                drop(held);
                batch
            }
        }))
    }

    fn addresses(&self, side: Side) -> &[u64] {
        match side {
            Side::Removed => &self.changes.removed,
            Side::Added => &self.changes.added,
        }
    }

    fn snapshot(&self, side: Side) -> &Snapshot {
        match side {
            Side::Removed => &self.changes.old,
            Side::Added => &self.changes.new,
        }
    }

    fn chunk(&self, side: Side, from: usize) -> &[u64] {
        let all = self.addresses(side);
        &all[from.min(all.len())..(from + self.batch_rows).min(all.len())]
    }

    /// The keys of both sides. Keys of one type on both sides compare by their bytes.
    async fn keys(&self, reservation: &MemoryReservation) -> Result<Keys> {
        let schema = self.changes.new.schema();
        let mut fields = Vec::with_capacity(self.key.len());
        for column in &self.key {
            fields.push(SortField::new(schema.field_with_name(column)?.data_type().clone()));
        }
        let mut keys = Keys { converter: RowConverter::new(fields)?, removed: HashSet::new(), added: HashSet::new() };
        for side in [Side::Removed, Side::Added] {
            for from in (0..self.addresses(side).len()).step_by(self.batch_rows) {
                let batch = self.key_columns(side, from).await?;
                let rows = keys.converter.convert_columns(&batch)?;
                let bytes = rows.size() + rows.num_rows() * size_of::<OwnedRow>();
                reservation.try_grow(bytes)?;
                let set = if side == Side::Removed { &mut keys.removed } else { &mut keys.added };
                set.extend(rows.iter().map(|row| row.owned()));
            }
        }
        Ok(keys)
    }

    /// The key's columns of one chunk, in the types of the newer version.
    async fn key_columns(&self, side: Side, from: usize) -> Result<Vec<ArrayRef>> {
        let batch = self.snapshot(side).take(self.chunk(side, from), &self.key).await.map_err(external)?;
        let schema = self.changes.new.schema();
        let mut columns = Vec::with_capacity(self.key.len());
        for (column, array) in self.key.iter().zip(batch.columns()) {
            columns.push(arrow::compute::cast(array, schema.field_with_name(column)?.data_type())?);
        }
        Ok(columns)
    }

    /// One batch of one side under the plan's schema.
    async fn batch(&self, side: Side, from: usize, keys: Option<&Keys>) -> Result<RecordBatch> {
        let addresses = self.chunk(side, from);
        let snapshot = self.snapshot(side);
        let held = snapshot.schema();
        let wanted: Vec<String> = self
            .schema
            .fields()
            .iter()
            .filter(|field| field.name() != CHANGE)
            .filter_map(|field| same_column(&held, field).map(str::to_owned))
            .collect();
        let found = match wanted.is_empty() {
            true => None,
            false => Some(snapshot.take(addresses, &wanted).await.map_err(external)?),
        };
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for field in self.schema.fields() {
            if field.name() == CHANGE {
                columns.push(self.kinds(side, from, keys).await?);
                continue;
            }
            match found.as_ref().and_then(|batch| batch.column_by_name(field.name())) {
                Some(array) => columns.push(Arc::clone(array)),
                None => columns.push(new_null_array(field.data_type(), addresses.len())),
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(addresses.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(DataFusionError::from)
    }

    /// What happened to each row of a chunk.
    async fn kinds(&self, side: Side, from: usize, keys: Option<&Keys>) -> Result<ArrayRef> {
        let (alone, half) = match side {
            Side::Removed => ("delete", "update_before"),
            Side::Added => ("insert", "update_after"),
        };
        let Some(keys) = keys else {
            let rows = self.chunk(side, from).len();
            return Ok(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(alone, rows))));
        };
        let other = if side == Side::Removed { &keys.added } else { &keys.removed };
        let rows = keys.converter.convert_columns(&self.key_columns(side, from).await?)?;
        let kinds = rows.iter().map(|row| if other.contains(&row.owned()) { half } else { alone });
        Ok(Arc::new(StringArray::from_iter_values(kinds)))
    }
}
