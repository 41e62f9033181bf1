//! What a statement needs and gives, told before it is run: the types of its parameters, the columns of its answer.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};
use datafusion::sql::sqlparser::ast::{self, Visit, Visitor};
use planner::Planner;
use planner::functions::distance::distance_call;
use planner::resolve::RelationName;
use planner::statement::StatementKind;
use storage::Role;

use crate::change::folded;
use crate::resolver::StatementTables;
use crate::session::Statement;
use crate::{Error, Result, Session, session_settings};

/// Parameters that a statement may have.
const PARAMETERS_MAX: usize = 65_535;

/// What a statement needs and gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// The columns of its answer: `None` if it gives no rows, or if they are known only once it has run.
    pub columns: Option<SchemaRef>,
    /// The types of `$1`, `$2`, …: `None` where any type may do.
    pub parameters: Vec<Option<DataType>>,
    /// Whether it changes something, and gives no rows.
    pub is_update: bool,
}

impl Session {
    /// Describes a statement without running it. Types of parameters are told by what they stand beside.
    ///
    /// # Errors
    /// A name that does not exist, types that do not fit.
    pub async fn describe(&self, statement: &Statement) -> Result<Description> {
        self.description(&statement.kind).await.map_err(|error| statement.place(error))
    }

    async fn description(&self, kind: &StatementKind) -> Result<Description> {
        use ast::Statement as Sql;
        let sql = match kind {
            StatementKind::Sql(sql) => sql,
            StatementKind::Explain(_) => {
                let field = |name: &str| Field::new(name, DataType::Utf8, false);
                let columns = Arc::new(Schema::new(vec![field("plan_type"), field("plan")]));
                return Ok(Description { columns: Some(columns), parameters: vec![], is_update: false });
            }
            StatementKind::CopyTo(_) => return Ok(update(vec![])),
            StatementKind::Substrait(plan) => return described(&self.logical_substrait(plan).await?.0),
            _ => return Ok(Description { is_update: !crate::time::is_reading(kind), ..nothing() }),
        };
        match sql.as_ref() {
            Sql::Query(query) => self.describe_query(query).await,
            Sql::Insert(insert) => {
                let is_update = insert.returning.is_none();
                Ok(Description { is_update, ..update(self.describe_change(sql).await?) })
            }
            Sql::Update(change) => {
                let is_update = change.returning.is_none();
                Ok(Description { is_update, ..update(self.describe_change(sql).await?) })
            }
            Sql::Delete(change) => {
                let is_update = change.returning.is_none();
                Ok(Description { is_update, ..update(self.describe_change(sql).await?) })
            }
            Sql::ShowTables { .. } | Sql::ShowColumns { .. } | Sql::ShowSchemas { .. } | Sql::ExplainTable { .. } => {
                let text = session_settings::shown_as_query(sql)?;
                match self.parse(&text)?.pop().map(|statement| statement.kind) {
                    Some(kind) => Box::pin(self.description(&kind)).await,
                    None => Ok(nothing()),
                }
            }
            Sql::ShowVariable { .. } | Sql::Execute { .. } => Ok(nothing()),
            other => Ok(update(vec![None; parameters_of(other)?.len()])),
        }
    }

    async fn describe_query(&self, query: &ast::Query) -> Result<Description> {
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let plan = Planner { state: &state, resolver: &tables }.check(query.clone()).await?;
        described(&plan)
    }

    /// The types of the parameters of a change: those of the columns that they fill or are compared with.
    async fn describe_change(&self, sql: &ast::Statement) -> Result<Vec<Option<DataType>>> {
        let parameters = parameters_of(sql)?;
        let Some(target) = target_of(sql) else { return Ok(vec![None; parameters.len()]) };
        let name = RelationName::of_sql(target)?;
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        tables.entry(&name, Role::Write).await?;
        let fields = tables.fields(&name).await?.unwrap_or_default();
        let mut types: HashMap<String, Option<DataType>> = parameters.into_iter().map(|name| (name, None)).collect();
        let mut beside = BesideColumns { fields: &fields, types: &mut types };
        let _: ControlFlow<()> = sql.visit(&mut beside);
        if let ast::Statement::Insert(insert) = sql {
            beside.in_values(insert);
        }
        in_order(types)
    }
}

/// What a query needs and gives.
fn described(plan: &LogicalPlan) -> Result<Description> {
    let mut types: HashMap<String, Option<DataType>> = plan.get_parameter_types()?;
    beside_vectors(plan, &mut types)?;
    let columns = Some(Arc::new(plan.schema().as_arrow().clone()));
    Ok(Description { columns, parameters: in_order(types)?, is_update: false })
}

fn nothing() -> Description {
    Description { columns: None, parameters: vec![], is_update: false }
}

fn update(parameters: Vec<Option<DataType>>) -> Description {
    Description { columns: None, parameters, is_update: true }
}

/// The types by number; parameters that are left out in between may have any type.
fn in_order(types: HashMap<String, Option<DataType>>) -> Result<Vec<Option<DataType>>> {
    let mut numbered = BTreeMap::new();
    for (name, data_type) in types {
        let number = name.trim_start_matches('$').parse().ok().filter(|number| (1..=PARAMETERS_MAX).contains(number));
        let Some(number) = number else {
            return Err(Error::invalid(format!(
                "parameters are numbered, $1 to ${PARAMETERS_MAX}, and this is {name}"
            )));
        };
        numbered.insert(number, data_type);
    }
    let count = numbered.keys().next_back().copied().unwrap_or(0);
    Ok((1..=count).map(|number| numbered.remove(&number).flatten()).collect())
}

/// A parameter that a distance compares with a column is a vector like it.
fn beside_vectors(plan: &LogicalPlan, types: &mut HashMap<String, Option<DataType>>) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        let inputs: Vec<_> = node.inputs().iter().map(|input| Arc::clone(input.schema())).collect();
        for expr in node.expressions() {
            expr.apply(|expr| {
                let Some(call) = distance_call(expr) else { return Ok(TreeNodeRecursion::Continue) };
                for (one, other) in [call.vectors, (call.vectors.1, call.vectors.0)] {
                    let Expr::Placeholder(Placeholder { id, field: None }) = one else { continue };
                    let found = inputs.iter().find_map(|schema| other.get_type(schema.as_ref()).ok());
                    if let Some(data_type) = found.filter(|data_type| !data_type.is_null()) {
                        types.insert(id.clone(), Some(data_type));
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// The names of all parameters of a statement.
fn parameters_of(sql: &ast::Statement) -> Result<Vec<String>> {
    struct Parameters(Vec<String>);
    impl Visitor for Parameters {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
            if let Some(name) = parameter(expr)
                && !self.0.iter().any(|other| other == name)
            {
                self.0.push(name.to_owned());
            }
            ControlFlow::Continue(())
        }
    }
    let mut found = Parameters(vec![]);
    let _: ControlFlow<()> = sql.visit(&mut found);
    match found.0.len() > PARAMETERS_MAX {
        true => Err(Error::invalid(format!("the statement has more than {PARAMETERS_MAX} parameters"))),
        false => Ok(found.0),
    }
}

fn parameter(expr: &ast::Expr) -> Option<&str> {
    match expr {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::Placeholder(name) => Some(name),
            _ => None,
        },
        ast::Expr::Nested(inner) => parameter(inner),
        _ => None,
    }
}

/// The table that a statement changes.
fn target_of(sql: &ast::Statement) -> Option<&ast::ObjectName> {
    match sql {
        ast::Statement::Insert(insert) => match &insert.table {
            ast::TableObject::TableName(name) => Some(name),
            _ => None,
        },
        ast::Statement::Update(update) => table_name(&update.table.relation),
        ast::Statement::Delete(delete) => {
            let (ast::FromTable::WithFromKeyword(tables) | ast::FromTable::WithoutKeyword(tables)) = &delete.from;
            table_name(&tables.first()?.relation)
        }
        _ => None,
    }
}

fn table_name(factor: &ast::TableFactor) -> Option<&ast::ObjectName> {
    match factor {
        ast::TableFactor::Table { name, .. } => Some(name),
        _ => None,
    }
}

/// Finds the types of parameters by the columns of one table.
struct BesideColumns<'a> {
    fields: &'a [FieldRef],
    types: &'a mut HashMap<String, Option<DataType>>,
}

impl BesideColumns<'_> {
    fn column(&self, expr: &ast::Expr) -> Option<DataType> {
        let ident = match expr {
            ast::Expr::Identifier(ident) => ident,
            ast::Expr::CompoundIdentifier(parts) => parts.last()?,
            _ => return None,
        };
        self.named(&folded(ident))
    }

    fn named(&self, column: &str) -> Option<DataType> {
        Some(self.fields.iter().find(|field| field.name() == column)?.data_type().clone())
    }

    fn note(&mut self, value: &ast::Expr, data_type: Option<DataType>) {
        if let (Some(name), Some(data_type)) = (parameter(value), data_type) {
            self.types.insert(name.to_owned(), Some(data_type));
        }
    }

    /// VALUES fill the columns that are named, or all in order.
    fn in_values(&mut self, insert: &ast::Insert) {
        let columns: Vec<Option<DataType>> = match insert.columns.is_empty() {
            true => self.fields.iter().map(|field| Some(field.data_type().clone())).collect(),
            false => insert
                .columns
                .iter()
                .map(|name| RelationName::of_sql(name).ok().and_then(|name| self.named(&name.table)))
                .collect(),
        };
        let Some(ast::SetExpr::Values(values)) = insert.source.as_ref().map(|source| source.body.as_ref()) else {
            return;
        };
        for row in &values.rows {
            for (value, data_type) in row.iter().zip(&columns) {
                self.note(value, data_type.clone());
            }
        }
    }
}

impl Visitor for BesideColumns<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        match expr {
            ast::Expr::BinaryOp { left, right, .. } => {
                self.note(left, self.column(right));
                self.note(right, self.column(left));
            }
            ast::Expr::InList { expr, list, .. } => {
                let data_type = self.column(expr);
                list.iter().for_each(|value| self.note(value, data_type.clone()));
            }
            ast::Expr::Between { expr, low, high, .. } => {
                let data_type = self.column(expr);
                self.note(low, data_type.clone());
                self.note(high, data_type);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, statement: &ast::Statement) -> ControlFlow<()> {
        if let ast::Statement::Update(update) = statement {
            for assignment in &update.assignments {
                if let ast::AssignmentTarget::ColumnName(name) = &assignment.target {
                    let column = RelationName::of_sql(name).ok().and_then(|name| self.named(&name.table));
                    self.note(&assignment.value, column);
                }
            }
        }
        ControlFlow::Continue(())
    }
}
