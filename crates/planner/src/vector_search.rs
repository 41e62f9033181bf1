//! The logical node of a search: the k nearest rows of one table to one query vector, or all rows within a radius.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::{DFSchema, DFSchemaRef, TableReference, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};
use kernels::Metric;

use crate::resolve::{SearchableTable, fetched_fields, fetched_names};

/// The name of the column that holds the distance.
pub const DISTANCE: &str = "_distance";

/// The distance column's qualifier, so that it cannot be taken for a column of the table.
pub fn distance_qualifier() -> TableReference {
    TableReference::bare("search")
}

/// Which rows a search returns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reach {
    /// The k nearest, ascending, ties in row order.
    Nearest {
        /// How many, at least 1.
        k: usize,
    },
    /// All rows below a distance, in row order.
    Within {
        /// The bound.
        distance: f64,
        /// A row at the bound counts.
        inclusive: bool,
    },
}

/// The k nearest rows, or the rows within a radius, among the candidates of one table.
///
/// It means *distance IS NOT NULL*; a [`Reach::Nearest`] is ordered ascending, ties in row order. The output is the
/// fetched columns, qualified by the table's name, then [`DISTANCE`].
#[derive(Debug, Clone)]
pub struct VectorSearch {
    /// The qualifier of the table's columns.
    pub table_name: TableReference,
    /// The table, pinned to a snapshot.
    pub table: Arc<dyn SearchableTable>,
    /// What emits the addresses of the rows that match every predicate; absent if all rows are candidates.
    pub candidates: Option<Arc<LogicalPlan>>,
    /// The column that holds the vectors.
    pub vector: String,
    /// The query vector: no column of the table in it.
    pub query: Expr,
    /// How vectors are compared.
    pub metric: Metric,
    /// Which rows are returned.
    pub reach: Reach,
    /// The table's columns that are fetched for the rows found, by index, ascending.
    pub columns: Vec<usize>,
    schema: DFSchemaRef,
}

impl VectorSearch {
    /// # Errors
    /// A column index that the table does not have.
    #[expect(clippy::too_many_arguments, reason = "the parts of the node, each of its own type")]
    pub fn try_new(
        table_name: TableReference,
        table: Arc<dyn SearchableTable>,
        candidates: Option<Arc<LogicalPlan>>,
        vector: String,
        query: Expr,
        metric: Metric,
        reach: Reach,
        columns: Vec<usize>,
    ) -> Result<Self> {
        let schema = output_schema(&table_name, table.as_ref(), &columns)?;
        Ok(Self { table_name, table, candidates, vector, query, metric, reach, columns, schema })
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
}

fn output_schema(name: &TableReference, table: &dyn SearchableTable, columns: &[usize]) -> Result<DFSchemaRef> {
    let mut fields = fetched_fields(name, table, columns)?;
    fields.push((Some(distance_qualifier()), Arc::new(Field::new(DISTANCE, DataType::Float64, true))));
    Ok(Arc::new(DFSchema::new_with_metadata(fields, Default::default())?))
}

impl UserDefinedLogicalNodeCore for VectorSearch {
    fn name(&self) -> &'static str {
        "VectorSearch"
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
        write!(f, "VectorSearch: {}.{} by {}", self.table_name, self.vector, self.metric.name())?;
        match self.reach {
            Reach::Nearest { k } => write!(f, ", k={k}, ties in row order")?,
            Reach::Within { distance, inclusive } => {
                write!(f, ", distance {} {distance}", if inclusive { "<=" } else { "<" })?
            }
        }
        if let Some(recall) = self.table.recall() {
            write!(f, ", recall={recall}")?;
        }
        let candidates = if self.candidates.is_some() { "rows that match the predicates below" } else { "all rows" };
        write!(f, ", candidates=[{candidates}], fetch after=[{}], distance IS NOT NULL", self.column_names().join(", "))
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

impl VectorSearch {
    /// What tells two searches apart; the snapshot is told by its name.
    #[expect(clippy::type_complexity, reason = "a tuple is compared and hashed field by field")]
    fn identity(&self) -> (String, String, &Option<Arc<LogicalPlan>>, &str, &Expr, Metric, &[usize], String) {
        let reach = match self.reach {
            Reach::Nearest { k } => format!("nearest {k}"),
            Reach::Within { distance, inclusive } => format!("within {:x} {inclusive}", distance.to_bits()),
        };
        (
            self.table_name.to_string(),
            format!("{} {:?}", self.table.snapshot_name(), self.table.recall()),
            &self.candidates,
            &self.vector,
            &self.query,
            self.metric,
            &self.columns,
            reach,
        )
    }
}

impl PartialEq for VectorSearch {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for VectorSearch {}

impl Hash for VectorSearch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialOrd for VectorSearch {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}
