//! Statements with parameters: through the API, and by PREPARE and EXECUTE.

use std::sync::Arc;

use arrow::array::{FixedSizeListArray, Float32Array};
use arrow::datatypes::{DataType, Field};
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast;
use planner::Planner;
use planner::statement::StatementKind;

use crate::deadline::Deadline;
use crate::resolver::StatementTables;
use crate::session::{Dispatched, Statement};
use crate::template::TemplateCell;
use crate::{Answer, Description, Error, ErrorKind, Result, ScalarValue, Session, Started};

/// A statement that is run with values for its parameters.
#[derive(Clone)]
pub struct Prepared {
    session: Session,
    statement: Statement,
    description: Arc<Description>,
    template: Arc<TemplateCell>,
}

/// A statement stored by PREPARE.
#[derive(Clone)]
pub(crate) struct Named {
    statement: Statement,
    types: Vec<ast::DataType>,
}

/// A vector as the value of a parameter.
pub fn vector(elements: impl IntoIterator<Item = f32>) -> ScalarValue {
    let values = Float32Array::from_iter_values(elements);
    let length = i32::try_from(arrow::array::Array::len(&values)).unwrap_or(i32::MAX);
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    match FixedSizeListArray::try_new(item, length, Arc::new(values), None) {
        Ok(list) => ScalarValue::FixedSizeList(Arc::new(list)),
        // A vector without elements has no row at all: it is no vector.
        Err(_) => ScalarValue::Null,
    }
}

impl Prepared {
    pub(crate) async fn new(session: Session, statement: Statement) -> Result<Self> {
        // Names are checked now; types are when the values are there.
        let description = session.describe(&statement).await?;
        Ok(Self { session, statement, description: Arc::new(description), template: Arc::default() })
    }

    /// What the statement needs and gives, as far as it was known when it was prepared.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The statement.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Plans a query on the newest snapshot, or carries another statement out. `parameters`: the values of `$1`, `$2`, ….
    ///
    /// # Errors
    /// As [`Prepared::run`].
    pub async fn start(&self, parameters: &[ScalarValue]) -> Result<Started> {
        let prepared = Some((self.template.as_ref(), self.description.parameters.as_slice()));
        self.session.start_as(&self.statement, parameters, prepared).await
    }

    /// Runs the statement on the newest snapshot. `parameters`: the values of `$1`, `$2`, ….
    ///
    /// # Errors
    /// A parameter without a value or of a type that does not fit, and whatever the statement itself meets.
    pub async fn run(&self, parameters: &[ScalarValue]) -> Result<Answer> {
        self.start(parameters).await?.answer().map_err(|error| self.statement.place(error))
    }
}

impl Session {
    /// PREPARE, EXECUTE and DEALLOCATE.
    pub(crate) async fn named_statement(
        &self,
        sql: &ast::Statement,
        statement: &Statement,
        deadline: Option<Deadline>,
    ) -> Result<Dispatched> {
        match sql {
            ast::Statement::Prepare { name, data_types, statement: inner } => {
                let kind = StatementKind::Sql(inner.clone());
                let stored = Named { statement: Statement { kind, ..statement.clone() }, types: data_types.clone() };
                let name = name.value.to_lowercase();
                let known = self.with_prepared(|prepared| prepared.contains_key(&name));
                if known {
                    return Err(Error::new(
                        ErrorKind::AlreadyExists,
                        format!("the statement \"{name}\" is prepared already; DEALLOCATE it first"),
                    ));
                }
                Prepared::new(self.clone(), stored.statement.clone()).await?;
                self.with_prepared(|prepared| prepared.insert(name, stored));
                Ok(Dispatched::Answered(Answer::done("PREPARE")))
            }
            ast::Statement::Execute {
                name: Some(name),
                parameters,
                immediate: false,
                into,
                using,
                output: false,
                ..
            } if into.is_empty() && using.is_empty() => {
                let key = name.to_string().to_lowercase();
                let stored = self.with_prepared(|prepared| prepared.get(&key).cloned()).ok_or_else(|| unknown(&key))?;
                let values = self.values(parameters, &stored.types)?;
                self.run_stored(&stored.statement, &values, deadline).await
            }
            ast::Statement::Deallocate { name, .. } => {
                let key = name.value.to_lowercase();
                if key == "all" {
                    self.with_prepared(std::collections::HashMap::clear);
                } else {
                    self.with_prepared(|prepared| prepared.remove(&key)).ok_or_else(|| unknown(&key))?;
                }
                Ok(Dispatched::Answered(Answer::done("DEALLOCATE")))
            }
            other => Err(Error::unsupported(format!("{other} is not supported; write EXECUTE name(value, …)"))),
        }
    }

    /// The constants that EXECUTE passes, cast to the types that PREPARE names.
    fn values(&self, parameters: &[ast::Expr], types: &[ast::DataType]) -> Result<Vec<ScalarValue>> {
        if !types.is_empty() && types.len() != parameters.len() {
            return Err(Error::invalid(format!(
                "the statement was prepared with {} parameters, not {}",
                types.len(),
                parameters.len()
            )));
        }
        let cast = |(at, expr): (usize, &ast::Expr)| match types.get(at) {
            Some(data_type) => ast::Expr::Cast {
                kind: ast::CastKind::Cast,
                expr: Box::new(expr.clone()),
                data_type: data_type.clone(),
                array: false,
                format: None,
            },
            None => expr.clone(),
        };
        parameters.iter().enumerate().map(cast).map(|expr| self.constant(expr)).collect()
    }

    /// The value of an expression without columns.
    pub(crate) fn constant(&self, expr: ast::Expr) -> Result<ScalarValue> {
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let text = expr.to_string();
        let planned = Planner { state: &state, resolver: &tables }.expression(expr)?;
        match simplified(planned, &state)? {
            Expr::Literal(value, _) => Ok(value),
            _ => Err(Error::invalid(format!("{text} is no constant"))),
        }
    }
}

/// An expression without columns, folded as far as it goes; `now()` is the statement's moment.
pub(crate) fn simplified(expr: Expr, state: &SessionState) -> datafusion::error::Result<Expr> {
    let context = SimplifyContext::builder()
        .with_config_options(Arc::clone(state.config_options()))
        .with_query_execution_start_time(state.execution_props().query_execution_start_time)
        .build();
    let simplifier = ExprSimplifier::new(context);
    simplifier.simplify(simplifier.coerce(expr, &datafusion::common::DFSchema::empty())?)
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no prepared statement \"{name}\"; PREPARE it first"))
}
