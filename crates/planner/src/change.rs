//! The logical node on top of a statement that changes rows: what is below it says, row by row, what becomes of the
//! table. Nothing is committed here: the rows are gathered, and the engine commits them.

use std::any::Any;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::{DFSchema, DFSchemaRef, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

/// The first column below the node: an [`Action`] as its code. No column of a table has a dot in its name.
pub const ACTION: &str = "change.action";
/// The second column: the address of the row that goes, NULL for a row that only comes.
pub const ROW: &str = "change.row";
/// The column of the node itself: how many rows were changed.
pub const COUNT: &str = "count";

/// What one row below the node means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A new row.
    Insert,
    /// The row at the address goes, a new one comes.
    Update,
    /// The row at the address goes.
    Delete,
    /// The same key as another new row of the statement: an error.
    Repeat,
}

impl Action {
    /// The number that stands for it in the column [`ACTION`].
    pub fn code(self) -> i32 {
        match self {
            Self::Insert => 0,
            Self::Update => 1,
            Self::Delete => 2,
            Self::Repeat => 3,
        }
    }

    /// The action of a number, `None` for a number that stands for none.
    pub fn of_code(code: i32) -> Option<Self> {
        [Self::Insert, Self::Update, Self::Delete, Self::Repeat].into_iter().find(|action| action.code() == code)
    }
}

/// What takes the rows of a change; `operators` implements it.
pub trait ChangeSink: Any + fmt::Debug + Send + Sync {}

/// Hands the rows of its input to a sink and returns their number.
///
/// The input's columns: [`ACTION`] (Int32), [`ROW`] (UInt64), then all columns of the table where new rows come, then
/// what RETURNING asks for.
#[derive(Debug, Clone)]
pub struct Change {
    /// UPDATE, DELETE, MERGE or INSERT.
    pub operation: &'static str,
    /// The table as EXPLAIN shows it.
    pub table: String,
    /// Where the rows go.
    pub sink: Arc<dyn ChangeSink>,
    /// What says the changes.
    pub input: Arc<LogicalPlan>,
    schema: DFSchemaRef,
}

impl Change {
    /// # Errors
    /// None but a mistake of ours in the node's own schema.
    pub fn try_new(
        operation: &'static str,
        table: String,
        sink: Arc<dyn ChangeSink>,
        input: LogicalPlan,
    ) -> Result<Self> {
        let fields = vec![(None, Arc::new(Field::new(COUNT, DataType::UInt64, false)))];
        let schema = Arc::new(DFSchema::new_with_metadata(fields, Default::default())?);
        Ok(Self { operation, table, sink, input: Arc::new(input), schema })
    }

    fn identity(&self) -> (&str, &str, &LogicalPlan) {
        (self.operation, &self.table, &self.input)
    }
}

impl UserDefinedLogicalNodeCore for Change {
    fn name(&self) -> &'static str {
        "Change"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Change: {} {}, one version", self.operation, self.table)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match (inputs.pop(), inputs.is_empty(), exprs.is_empty()) {
            (Some(input), true, true) => Ok(Self { input: Arc::new(input), ..self.clone() }),
            _ => plan_err!("a change has one input and no expressions"),
        }
    }
}

impl PartialEq for Change {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Change {}

impl Hash for Change {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialOrd for Change {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}
