//! The table function `text_search` and its logical node: the k rows whose text fits some words best, by BM25.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::{Column, DFSchema, DFSchemaRef, TableReference, plan_err};
use datafusion::datasource::provider_as_source;
use datafusion::error::Result;
use datafusion::logical_expr::{
    Cast, Expr, Extension, LogicalPlan, LogicalPlanBuilder, TableScan, UserDefinedLogicalNodeCore,
};

use crate::resolve::{ROW_ADDRESS, SearchableTable, fetched_fields, fetched_names, searchable};

/// The name of the column that holds how well a row fits: the larger, the better.
pub const SCORE: &str = "_score";

/// Rows that a search returns at most.
pub const TEXT_SEARCH_ROWS_MAX: usize = 8_192;

/// The k rows of one table, among its candidates, whose text fits a query best.
///
/// The output is the fetched columns, qualified by the table's name, then [`SCORE`]; ordered by it, descending. Which
/// ones of rows that fit alike are among the k is the index's choice. Rows without any of the words are not there.
#[derive(Debug, Clone)]
pub struct TextSearch {
    /// The qualifier of the table's columns.
    pub table_name: TableReference,
    /// The table, pinned to a snapshot.
    pub table: Arc<dyn SearchableTable>,
    /// What emits the addresses of the rows that match the filter; absent if all rows are candidates.
    pub candidates: Option<Arc<LogicalPlan>>,
    /// The column of texts.
    pub column: String,
    /// The words: a text, no column in it.
    pub query: Expr,
    /// How many rows at most.
    pub k: usize,
    /// The table's columns that are fetched for the rows found, by index, ascending.
    pub columns: Vec<usize>,
    schema: DFSchemaRef,
}

impl TextSearch {
    /// The search over `relation`, the plan of a table's name. `filter`: a predicate on its columns.
    ///
    /// # Errors
    /// A relation that is no table of a database, a column that is none of its texts.
    pub(crate) fn plan(
        relation: &LogicalPlan,
        column: String,
        query: Expr,
        k: usize,
        filter: Option<Expr>,
    ) -> Result<LogicalPlan> {
        let Some((scan, table)) = scanned(relation) else {
            return plan_err!("text_search searches tables of a database, not views or files");
        };
        let schema = table.schema();
        match schema.field_with_name(&column) {
            Ok(field) if matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8) => {}
            Ok(field) => return plan_err!("{}.{column} is {}, not text", scan.table_name, field.data_type()),
            Err(_) => {
                let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                return plan_err!("table {} has no column {column}; it has {}", scan.table_name, names.join(", "));
            }
        }
        let table_name = relation.schema().iter().find_map(|(qualifier, _)| qualifier.cloned());
        let table_name = table_name.unwrap_or_else(|| scan.table_name.clone());
        let candidates = match filter {
            Some(predicate) => {
                let source = provider_as_source(table.with_row_addresses());
                let address = Expr::Column(Column::new(Some(table_name.clone()), ROW_ADDRESS));
                let rows = LogicalPlanBuilder::scan(table_name.clone(), source, None)?;
                Some(Arc::new(rows.filter(predicate)?.project(vec![address])?.build()?))
            }
            None => None,
        };
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        let schema = output_schema(&table_name, table.as_ref(), &columns)?;
        let query = Expr::Cast(Cast::new(Box::new(query), DataType::Utf8));
        let search = Self { table_name, table, candidates, column, query, k, columns, schema };
        Ok(LogicalPlan::Extension(Extension { node: Arc::new(search) }))
    }

    /// The same search that fetches other columns.
    ///
    /// # Errors
    /// A column index that the table does not have.
    pub fn with_columns(&self, columns: Vec<usize>) -> Result<Self> {
        let schema = output_schema(&self.table_name, self.table.as_ref(), &columns)?;
        Ok(Self { columns, schema, ..self.clone() })
    }

    /// The names of the columns that are fetched.
    pub fn column_names(&self) -> Vec<String> {
        fetched_names(self.table.as_ref(), &self.columns)
    }

    fn identity(&self) -> (String, String, &Option<Arc<LogicalPlan>>, &str, &Expr, usize, &[usize]) {
        let (table, snapshot) = (self.table_name.to_string(), self.table.snapshot_name());
        (table, snapshot, &self.candidates, &self.column, &self.query, self.k, &self.columns)
    }
}

/// The scan of a table under its name or another one.
fn scanned(relation: &LogicalPlan) -> Option<(&TableScan, Arc<dyn SearchableTable>)> {
    match relation {
        LogicalPlan::TableScan(scan) => searchable(&scan.source).map(|table| (scan, table)),
        LogicalPlan::SubqueryAlias(alias) => scanned(&alias.input),
        _ => None,
    }
}

fn output_schema(name: &TableReference, table: &dyn SearchableTable, columns: &[usize]) -> Result<DFSchemaRef> {
    let mut fields = fetched_fields(name, table, columns)?;
    fields.push((None, Arc::new(Field::new(SCORE, DataType::Float64, false))));
    Ok(Arc::new(DFSchema::new_with_metadata(fields, Default::default())?))
}

impl UserDefinedLogicalNodeCore for TextSearch {
    fn name(&self) -> &'static str {
        "TextSearch"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        self.candidates.iter().map(AsRef::as_ref).collect()
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![self.query.clone()]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let candidates = if self.candidates.is_some() { "rows that match the filter below" } else { "all rows" };
        write!(
            f,
            "TextSearch: {}.{} for {}, k={}, candidates=[{candidates}], fetch after=[{}]",
            self.table_name,
            self.column,
            self.query,
            self.k,
            self.column_names().join(", ")
        )
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        if exprs.len() != 1 || inputs.len() != usize::from(self.candidates.is_some()) {
            return plan_err!("a search has one query and at most one input, not {} and {}", exprs.len(), inputs.len());
        }
        Ok(Self { query: exprs.remove(0), candidates: inputs.pop().map(Arc::new), ..self.clone() })
    }

    fn necessary_children_exprs(&self, _: &[usize]) -> Option<Vec<Vec<usize>>> {
        // The one column of the candidates is the row address.
        Some(self.candidates.iter().map(|_| vec![0]).collect())
    }
}

impl PartialEq for TextSearch {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for TextSearch {}

impl Hash for TextSearch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialOrd for TextSearch {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}
