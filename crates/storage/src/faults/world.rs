//! What a table must hold: its rows and tags as a model knows them, and how the real ones are read to be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef, UInt64Type};
use datafusion::logical_expr::{col, lit};
use futures::TryStreamExt;

use crate::error::Result;
use crate::fixtures::{name, request};
use crate::snapshot::guard;
use crate::{Database, ROW_ADDRESS, Relation, ScanRequest, Snapshot, StorageError, TableEntry};

/// The key of each row, `INT NOT NULL`. All other columns are `BIGINT`.
pub(super) const KEY: &str = "id";

/// A row without its key.
pub(super) type Values = Vec<Option<i64>>;

/// The rows of a table, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Names of the columns but for the key.
    pub(super) columns: Vec<String>,
    pub(super) rows: BTreeMap<i32, Values>,
}

/// A table at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct World {
    pub(super) content: Content,
    /// The version of each tag.
    pub(super) tags: BTreeMap<String, u64>,
}

impl Content {
    /// These rows in the columns of this content.
    pub(super) fn batch(&self, rows: &BTreeMap<i32, Values>) -> RecordBatch {
        let keys: ArrayRef = Arc::new(Int32Array::from_iter_values(rows.keys().copied()));
        let values = (0..self.columns.len()).map(|column| {
            let values: Int64Array = rows.values().map(|values| values[column]).collect();
            Arc::new(values) as ArrayRef
        });
        RecordBatch::try_new(self.schema(), std::iter::once(keys).chain(values).collect()).unwrap()
    }

    pub(super) fn schema(&self) -> SchemaRef {
        let others = self.columns.iter().map(|column| Field::new(column, DataType::Int64, true));
        let fields: Vec<Field> = std::iter::once(Field::new(KEY, DataType::Int32, false)).chain(others).collect();
        Arc::new(Schema::new(fields))
    }
}

/// The content of a version, and the address of each row.
pub(super) async fn read(snapshot: &Snapshot) -> Result<(Content, BTreeMap<i32, u64>)> {
    let schema = snapshot.schema();
    let columns: Vec<String> =
        schema.fields().iter().map(|field| field.name().clone()).filter(|column| column != KEY).collect();
    let mut wanted = vec![KEY];
    wanted.extend(columns.iter().map(String::as_str));
    wanted.push(ROW_ADDRESS);
    let batches: Vec<RecordBatch> =
        snapshot.scan(request(&wanted))?.try_collect().await.map_err(StorageError::from_scan)?;
    let mut content = Content { columns, rows: BTreeMap::new() };
    let mut addresses = BTreeMap::new();
    for batch in &batches {
        let keys = batch.column(0).as_primitive::<Int32Type>();
        let at = batch.column(batch.num_columns() - 1).as_primitive::<UInt64Type>();
        for row in 0..batch.num_rows() {
            let key = keys.value(row);
            let value = |column: &ArrayRef| {
                let column = column.as_primitive::<Int64Type>();
                column.is_valid(row).then(|| column.value(row))
            };
            let values: Values = batch.columns()[1..batch.num_columns() - 1].iter().map(value).collect();
            assert!(content.rows.insert(key, values).is_none(), "row {key} is there twice");
            addresses.insert(key, at.value(row));
        }
    }
    assert_eq!(content.rows.len() as u64, snapshot.row_count(), "the count of version {}", snapshot.version());
    check_predicate(snapshot, &content).await?;
    Ok((content, addresses))
}

/// What a predicate on the first column keeps, asked of its index if it has one, is what it keeps of the rows.
async fn check_predicate(snapshot: &Snapshot, content: &Content) -> Result<()> {
    let values: Vec<i64> = content.rows.values().filter_map(|values| *values.first()?).collect();
    let Some(bound) = values.get(values.len() / 2).copied() else { return Ok(()) };
    let filter = col(&content.columns[0]).gt_eq(lit(bound));
    let rows = snapshot.scan(ScanRequest { filter: Some(filter), ..request(&[KEY]) })?;
    let batches: Vec<RecordBatch> = rows.try_collect().await.map_err(StorageError::from_scan)?;
    let keys = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int32Type>().values().to_vec());
    let keys: BTreeSet<i32> = keys.collect();
    let expected = content.rows.iter().filter(|(_, values)| values[0] >= Some(bound)).map(|(key, _)| *key);
    assert_eq!(keys, expected.collect(), "a predicate at version {}", snapshot.version());
    Ok(())
}

/// The tags of a table.
pub(super) async fn tags(snapshot: &Snapshot) -> Result<BTreeMap<String, u64>> {
    let tags = guard("cannot read the tags", snapshot.dataset().tags().list()).await?;
    Ok(tags.into_iter().map(|(tag, contents)| (tag, contents.version)).collect())
}

/// The entry of the table, if the catalog has one.
pub(super) async fn find(database: &Database) -> Result<Option<TableEntry>> {
    let catalog = database.catalog().await?;
    Ok(match catalog.relation(&name("t")) {
        Some(Relation::Table(entry)) => Some(entry.clone()),
        _ => None,
    })
}

/// The entry of the table, which is there.
pub(super) async fn there(database: &Database) -> Result<TableEntry> {
    Ok(find(database).await?.expect("the catalog has the table"))
}

/// True for an error that says that nothing was changed. All others leave it open.
pub(super) fn is_definite(error: &StorageError) -> bool {
    !matches!(
        error,
        StorageError::Unavailable(_) | StorageError::Corrupt(_) | StorageError::Internal(_) | StorageError::Input(_)
    )
}
