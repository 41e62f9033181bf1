//! The table provider: one snapshot of one table, with what the optimizer may know about it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Statistics, not_impl_err, stats::Precision};
use datafusion::datasource::sink::DataSinkExec;
use datafusion::error::Result;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use planner::resolve::{ROW_ADDRESS, Searchable, SearchableTable};
use storage::{Database, Snapshot, TableEntry, TableName};

use crate::bind::{has_parameters, with_any_values};
use crate::external;
use crate::insert::AppendSink;
use crate::scan::TableScanExec;

/// Where new rows of a table go. Absent for attached datasets, which are read only.
#[derive(Clone)]
pub struct WriteTarget {
    /// The database that holds the table.
    pub database: Database,
    /// The table's name in it.
    pub name: TableName,
    /// Its entry in the catalog that the statement saw.
    pub entry: TableEntry,
}

/// A snapshot of a table as DataFusion sees it.
#[derive(Clone)]
pub struct SnapshotTable {
    /// The pinned version.
    pub snapshot: Snapshot,
    name: String,
    schema: SchemaRef,
    defaults: Arc<HashMap<String, Expr>>,
    write: Option<WriteTarget>,
    recall: Option<f64>,
}

impl SnapshotTable {
    /// A table under the name that EXPLAIN shows. `defaults`: the expression of each column's DEFAULT.
    pub fn new(name: String, snapshot: Snapshot, defaults: HashMap<String, Expr>, write: Option<WriteTarget>) -> Self {
        let schema = snapshot.schema();
        Self { snapshot, name, schema, defaults: Arc::new(defaults), write, recall: None }
    }

    /// Where new rows go: the table's newest version if there is such a place.
    pub fn target(&self) -> Option<&WriteTarget> {
        self.write.as_ref()
    }

    /// The provider that rules recognise as searchable.
    pub fn into_provider(self) -> Arc<dyn TableProvider> {
        Arc::new(Searchable(Arc::new(self)))
    }
}

impl fmt::Debug for SnapshotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} version {}", self.name, self.snapshot.version())
    }
}

impl SearchableTable for SnapshotTable {
    fn with_row_addresses(&self) -> Arc<dyn TableProvider> {
        let mut fields = self.snapshot.schema().fields().to_vec();
        fields.push(Arc::new(Field::new(ROW_ADDRESS, DataType::UInt64, false)));
        Arc::new(Self { schema: Arc::new(Schema::new(fields)), ..self.clone() })
    }

    fn snapshot_name(&self) -> String {
        format!("{} version {}", self.snapshot.location(), self.snapshot.version())
    }

    fn with_recall(&self, recall: f64) -> Arc<dyn TableProvider> {
        Self { recall: Some(recall), ..self.clone() }.into_provider()
    }

    fn recall(&self) -> Option<f64> {
        self.recall
    }
}

impl SnapshotTable {
    /// The indexes that are asked which rows match: none if they are not few. Which ones does not depend on the values of
    /// parameters; how many rows match does, so where there are parameters a filter is taken to select few.
    async fn indexes_for(&self, filters: &[Expr]) -> Result<Vec<String>> {
        let Some(filter) = conjunction(filters.to_vec()) else { return Ok(vec![]) };
        let indexes = self.snapshot.indexes_for(&with_any_values(filter.clone())?).await.map_err(external)?;
        let is_worth = indexes.is_empty() || has_parameters(&filter) || self.snapshot.is_selective(&filter).await;
        Ok(if is_worth { indexes } else { vec![] })
    }
}

#[async_trait]
impl TableProvider for SnapshotTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        self.defaults.get(column)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(projection) => projection.iter().map(|at| self.schema.field(*at).name().clone()).collect(),
            None => self.schema.fields().iter().map(|field| field.name().clone()).collect(),
        };
        let config = state.config_options();
        let indexes = self.indexes_for(filters).await?;
        let plan = TableScanExec::try_new(
            self.name.clone(),
            self.snapshot.clone(),
            columns,
            filters.to_vec(),
            limit,
            indexes,
            config.execution.target_partitions,
        )?;
        Ok(Arc::new(plan))
    }

    /// Exact for what Lance evaluates as DataFusion does, and not pushed down otherwise.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let can = |filter: &&Expr| match self.snapshot.can_filter(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(can).collect())
    }

    fn statistics(&self) -> Option<Statistics> {
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Exact(usize::try_from(self.snapshot.row_count()).unwrap_or(usize::MAX));
        if let Some(bytes) = self.snapshot.bytes() {
            statistics.total_byte_size = Precision::Inexact(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        Some(statistics)
    }

    async fn insert_into(
        &self,
        _: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        op: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(target) = &self.write else {
            return not_impl_err!(
                "{} is attached read only; load it with CREATE TABLE … AS SELECT to change it",
                self.name
            );
        };
        if op != InsertOp::Append {
            return not_impl_err!("INSERT OVERWRITE and REPLACE INTO are not supported; write INSERT INTO");
        }
        Ok(Arc::new(DataSinkExec::new(input, Arc::new(AppendSink::new(target.clone(), self.snapshot.schema())), None)))
    }
}
