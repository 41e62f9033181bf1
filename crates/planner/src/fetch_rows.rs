//! The logical node that reads further columns of a table for the rows that are left: the row addresses of its input
//! say which. A join or a filter below it need not carry vectors that most rows do not need.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::FieldRef;
use datafusion::common::{DFSchema, DFSchemaRef, TableReference, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use crate::resolve::SearchableTable;

/// The rows of the input, each with columns of one table's row behind it; NULLs where the address is NULL.
#[derive(Debug, Clone)]
pub struct FetchRows {
    /// The qualifier of the fetched columns.
    pub table_name: TableReference,
    /// The table, pinned to a snapshot.
    pub table: Arc<dyn SearchableTable>,
    /// The address of the row to fetch (UInt64), NULL for none.
    pub address: Expr,
    /// The fetched columns, named as the table names them; nullable if an address may be NULL.
    pub fields: Vec<FieldRef>,
    /// The rows.
    pub input: Arc<LogicalPlan>,
    schema: DFSchemaRef,
}

impl FetchRows {
    /// # Errors
    /// A column that the input already has.
    pub fn try_new(
        table_name: TableReference,
        table: Arc<dyn SearchableTable>,
        address: Expr,
        fields: Vec<FieldRef>,
        input: LogicalPlan,
    ) -> Result<Self> {
        let schema = output_schema(&table_name, &fields, &input)?;
        Ok(Self { table_name, table, address, fields, input: Arc::new(input), schema })
    }

    /// The names of the columns that are fetched.
    pub fn column_names(&self) -> Vec<String> {
        self.fields.iter().map(|field| field.name().clone()).collect()
    }

    /// What tells two nodes apart; the snapshot is told by its name.
    fn identity(&self) -> (String, String, &Expr, Vec<String>, &LogicalPlan) {
        (
            self.table_name.to_string(),
            self.table.snapshot_name(),
            &self.address,
            self.column_names(),
            self.input.as_ref(),
        )
    }
}

/// The input's columns, then the fetched ones.
fn output_schema(name: &TableReference, fetched: &[FieldRef], input: &LogicalPlan) -> Result<DFSchemaRef> {
    let mut fields: Vec<(Option<TableReference>, FieldRef)> =
        input.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
    fields.extend(fetched.iter().map(|field| (Some(name.clone()), Arc::clone(field))));
    Ok(Arc::new(DFSchema::new_with_metadata(fields, Default::default())?))
}

impl UserDefinedLogicalNodeCore for FetchRows {
    fn name(&self) -> &'static str {
        "FetchRows"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![self.address.clone()]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FetchRows: {}, columns=[{}] of the rows below", self.table_name, self.column_names().join(", "))
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match (exprs.pop(), inputs.pop()) {
            (Some(address), Some(input)) if exprs.is_empty() && inputs.is_empty() => {
                Self::try_new(self.table_name.clone(), Arc::clone(&self.table), address, self.fields.clone(), input)
            }
            _ => plan_err!("rows are fetched by one address for one input"),
        }
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // The address is added by the optimizer: it is an expression of this node.
        let carried = self.input.schema().fields().len();
        Some(vec![output_columns.iter().copied().filter(|at| *at < carried).collect()])
    }
}

impl PartialEq for FetchRows {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for FetchRows {}

impl Hash for FetchRows {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialOrd for FetchRows {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}
