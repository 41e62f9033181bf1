//! INSERT: the rows of a query, brought to the table's columns and types, into a sink that commits them in one version.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Field, FieldRef, Schema, UInt64Type};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::{Column, TableReference};
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionState;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
use datafusion::sql::sqlparser::ast::{self, Insert, Query, SetExpr, TableObject};
use futures::FutureExt;
use planner::resolve::{RelationName, Resolved, SCHEMA, TableResolver, nearest};
use planner::sql_type::{sql_time_type, sql_type_name};
use planner::statement::StatementKind;
use planner::vector_type::{Element, VectorType};
use planner::{Planner, convert_to};
use storage::{Role, TableEntry};

use crate::change::{Changing, retried};
use crate::deadline::Deadline;
use crate::resolver::{StatementTables, default_ast};
use crate::session::Statement;
use crate::{Answer, Error, ErrorKind, Result, ScalarValue, Session};

impl Session {
    pub(crate) async fn insert(
        &self,
        insert: &Insert,
        parameters: &[ScalarValue],
        statement: &Statement,
        deadline: Option<Deadline>,
    ) -> Result<Answer> {
        let has_key = self.settings().idempotency_key().is_some();
        if insert.on.is_some() || insert.returning.is_some() || has_key {
            return self.change(&Changing::Upsert(insert), parameters, statement, deadline).await;
        }
        let name = target_name(insert)?.to_string();
        let rows = retried(&name, || async {
            let (plan, state) = self.plan_insert(insert, parameters).await?;
            run_insert(&plan, &state).await
        });
        Ok(Answer::wrote("INSERT", rows.await?))
    }

    /// Carries an INSERT of VALUES out for each row of parameters, in one version: all of them or none. Column `n` of
    /// `rows` holds the values of parameter `n`, from 1. Returns the number of rows.
    ///
    /// # Errors
    /// A statement that is no such INSERT ([`Statement::is_insert_of_values`]), and whatever the INSERT itself meets.
    pub async fn insert_each(&self, statement: &Statement, rows: RecordBatch) -> Result<u64> {
        let Some((insert, values)) = statement.insert_of_values() else {
            return Err(Error::invalid("the statement is not an INSERT of one row of VALUES"));
        };
        let insert = Insert { source: Some(Box::new(each(values)?)), ..insert.clone() };
        self.refuse_in_past(&statement.kind)?;
        let name = target_name(&insert)?.to_string();
        let fields: Vec<Field> = rows
            .schema()
            .fields()
            .iter()
            .zip(1..)
            .map(|(field, number)| field.as_ref().clone().with_name(format!("${number}")).with_nullable(true))
            .collect();
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), rows.columns().to_vec())
            .map_err(datafusion::error::DataFusionError::from)?;
        let rows: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?);
        let written = retried(&name, || async {
            let state = self.in_order();
            let tables = StatementTables::new(self.clone(), state.clone());
            tables.pin(RelationName { schema: SCHEMA.into(), table: EACH.into() }, Arc::clone(&rows)).await;
            let plan = self.plan_insert_from(&insert, &[], &state, &tables).await?;
            run_insert(&plan, &state).await
        });
        written.boxed().await.map_err(|error| statement.place(error))
    }

    /// The plan of an INSERT, down to the sink.
    pub(crate) async fn plan_insert(
        &self,
        insert: &Insert,
        parameters: &[ScalarValue],
    ) -> Result<(LogicalPlan, Arc<SessionState>)> {
        let is_values = insert.source.as_ref().is_none_or(|source| matches!(*source.body, SetExpr::Values(_)));
        // In order, so that an error names a row.
        let state = if is_values { self.in_order() } else { self.state() };
        let tables = StatementTables::new(self.clone(), state.clone());
        let plan = self.plan_insert_from(insert, parameters, &state, &tables).await?;
        Ok((plan, state))
    }

    async fn plan_insert_from(
        &self,
        insert: &Insert,
        parameters: &[ScalarValue],
        state: &Arc<SessionState>,
        tables: &StatementTables,
    ) -> Result<LogicalPlan> {
        let name = target_name(insert)?;
        let (_, entry) = tables.entry(&name, Role::Write).await?;
        let Some(Resolved::Table(table)) = tables.resolve(&name, None).await? else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no table \"{name}\"")));
        };
        let fields = table.schema().fields().to_vec();
        let targets = targets(&name, &insert.columns, &fields)?;
        let planner = Planner { state, resolver: tables };
        let input = source_plan(insert, &targets, &fields, &entry, &planner, parameters).await?;
        let input = to_table(input, &targets, &fields, &entry, tables)?;
        let target = provider_as_source(table);
        let plan = LogicalPlanBuilder::insert_into(
            input,
            TableReference::partial(name.schema, name.table),
            target,
            InsertOp::Append,
        )?
        .build()?;
        Ok(plan)
    }
}

/// The name of the rows of parameters, which no table of a user can have.
const EACH: &str = "$values";

impl Statement {
    /// Whether it is a plain INSERT of one row of VALUES: with many rows of parameters, it is one INSERT of many rows.
    pub fn is_insert_of_values(&self) -> bool {
        self.insert_of_values().is_some()
    }

    fn insert_of_values(&self) -> Option<(&Insert, &[ast::Expr])> {
        let StatementKind::Sql(sql) = &self.kind else { return None };
        let ast::Statement::Insert(insert) = sql.as_ref() else { return None };
        let source = insert.source.as_ref()?;
        let SetExpr::Values(values) = source.body.as_ref() else { return None };
        let [row] = values.rows.as_slice() else { return None };
        let is_plain = insert.on.is_none()
            && insert.returning.is_none()
            && source.with.is_none()
            && source.order_by.is_none()
            && source.limit_clause.is_none()
            && !row.iter().any(is_default);
        is_plain.then_some((insert, row))
    }
}

/// `SELECT values FROM rows of parameters`, each parameter a column of them.
fn each(values: &[ast::Expr]) -> Result<Query> {
    let texts: Vec<String> = values
        .iter()
        .zip(1..)
        .map(|(value, number)| {
            let mut value = value.clone();
            let _: ControlFlow<()> = ast::visit_expressions_mut(&mut value, |expr| {
                if let ast::Expr::Value(inner) = expr
                    && let ast::Value::Placeholder(name) = &inner.value
                {
                    *expr = ast::Expr::Identifier(ast::Ident::with_quote('"', name.clone()));
                }
                ControlFlow::Continue(())
            });
            format!("{} AS \"column{number}\"", planner::sql_text::sql_text(&value))
        })
        .collect();
    parsed_query(&format!("SELECT {} FROM \"{EACH}\"", texts.join(", ")))
}

/// The table of an INSERT.
///
/// # Errors
/// A clause that is not supported.
pub(crate) fn target_name(insert: &Insert) -> Result<RelationName> {
    refuse_other_clauses(insert)?;
    match &insert.table {
        TableObject::TableName(name) => Ok(RelationName::of_sql(name)?),
        _ => Err(Error::unsupported("INSERT INTO a function or a query is not supported; name a table")),
    }
}

/// The query of an INSERT, its columns those that `targets` name.
pub(crate) async fn source_plan(
    insert: &Insert,
    targets: &[usize],
    fields: &[FieldRef],
    entry: &TableEntry,
    planner: &Planner<'_>,
    parameters: &[ScalarValue],
) -> Result<LogicalPlan> {
    let source = match &insert.source {
        Some(source) => with_defaults(source, targets, fields, entry)?,
        None => with_defaults(&default_values(targets.len())?, targets, fields, entry)?,
    };
    let input = planner.query(source, parameters).await?;
    refuse_open_parameters(&input)?;
    Ok(input)
}

/// # Errors
/// A parameter without a value.
pub(crate) fn refuse_open_parameters(plan: &LogicalPlan) -> Result<()> {
    match plan.get_parameter_names()?.into_iter().min() {
        Some(name) => Err(Error::invalid(format!(
            "parameter {name} has no value; run the statement with PREPARE and EXECUTE, or through prepare"
        ))),
        None => Ok(()),
    }
}

/// `DEFAULT VALUES`: one row of defaults.
fn default_values(columns: usize) -> Result<Query> {
    parsed_query(&format!("VALUES ({})", vec!["DEFAULT"; columns].join(", ")))
}

/// A query that is put together here.
fn parsed_query(sql: &str) -> Result<Query> {
    match planner::statement::parse(sql)?.pop().map(|statement| statement.kind) {
        Some(StatementKind::Sql(sql)) => match *sql {
            ast::Statement::Query(query) => Ok(*query),
            other => Err(Error::new(ErrorKind::Internal, format!("{other} is no query"))),
        },
        _ => Err(Error::new(ErrorKind::Internal, format!("{sql} was not understood"))),
    }
}

/// Carries an INSERT out; the number of rows.
pub(crate) async fn run_insert(plan: &LogicalPlan, state: &SessionState) -> Result<u64> {
    let physical = state.create_physical_plan(plan).await?;
    let (counts, _) = crate::run::collected(state, physical).await?;
    Ok(counts.iter().map(|batch| batch.column(0).as_primitive::<UInt64Type>().values().iter().sum::<u64>()).sum())
}

/// # Errors
/// Any clause beyond `INSERT INTO table [(columns)] query [ON CONFLICT …] [RETURNING …]`.
fn refuse_other_clauses(insert: &Insert) -> Result<()> {
    let refused = [
        (insert.overwrite, "INSERT OVERWRITE"),
        (insert.replace_into, "REPLACE INTO"),
        (insert.or.is_some(), "INSERT OR …"),
        (insert.ignore, "INSERT IGNORE"),
        (insert.table_alias.is_some(), "an alias of the table"),
        (!insert.assignments.is_empty(), "INSERT … SET"),
        (insert.partitioned.is_some() || !insert.after_columns.is_empty(), "INSERT … PARTITION"),
        (insert.output.is_some(), "OUTPUT"),
        (insert.insert_alias.is_some(), "an alias of the new rows"),
        (
            insert.settings.is_some() || insert.format_clause.is_some() || insert.priority.is_some(),
            "a modifier of INSERT",
        ),
        (insert.multi_table_insert_type.is_some(), "INSERT ALL"),
    ];
    match refused.iter().find(|(given, _)| *given) {
        Some((_, what)) => Err(Error::unsupported(format!(
            "{what} is not supported; write INSERT INTO table [(columns)] VALUES … or SELECT …"
        ))),
        None => Ok(()),
    }
}

/// The table's columns that the query's columns go to, by index.
pub(crate) fn targets(name: &RelationName, columns: &[ast::ObjectName], fields: &[FieldRef]) -> Result<Vec<usize>> {
    if columns.is_empty() {
        return Ok((0..fields.len()).collect());
    }
    let mut targets = Vec::with_capacity(columns.len());
    for column in columns {
        let text = RelationName::of_sql(column)?.table;
        let Some(at) = fields.iter().position(|field| field.name() == &text) else {
            return Err(no_column(name, &text, fields));
        };
        if targets.contains(&at) {
            return Err(Error::invalid(format!("column \"{text}\" is named twice")));
        }
        targets.push(at);
    }
    Ok(targets)
}

pub(crate) fn no_column(name: &RelationName, column: &str, fields: &[FieldRef]) -> Error {
    let meant = nearest(column, fields.iter().map(|field| field.name().as_str()));
    let hint = meant.map(|meant| format!("did you mean \"{meant}\"?"));
    Error { hint, ..Error::new(ErrorKind::NotFound, format!("there is no column \"{column}\" in table {name}")) }
}

/// The query with each DEFAULT in VALUES replaced by the default of its column, and each value of a column of vectors or
/// times cast by itself: one row may say `'[1, 0]'` and the next `ARRAY[0, 1]`, one `now()` and the next `'9999-12-31'`.
fn with_defaults(source: &Query, targets: &[usize], fields: &[FieldRef], entry: &TableEntry) -> Result<Query> {
    let mut query = source.clone();
    let values = match query.body.as_mut() {
        SetExpr::Values(values) => values,
        _ => return Ok(query),
    };
    for row in &mut values.rows {
        if row.len() != targets.len() {
            return Err(Error::invalid(format!("a row has {} values for {} columns", row.len(), targets.len())));
        }
        for (value, at) in row.iter_mut().zip(targets) {
            if is_default(value) {
                *value = match entry.defaults.get(fields[*at].name()) {
                    Some(text) => default_ast(text)?,
                    None => ast::Expr::Value(ast::Value::Null.into()),
                };
            }
            let field = &fields[*at];
            let data_type = match VectorType::of_field(field) {
                Some(vector) => Some(sql_vector_type(vector)),
                None => sql_time_type(field.data_type()),
            };
            if let Some(data_type) = data_type {
                let value_of = std::mem::replace(value, ast::Expr::Value(ast::Value::Null.into()));
                *value = cast_to(value_of, data_type);
            }
        }
    }
    Ok(query)
}

/// The word DEFAULT in place of a value.
pub(crate) fn is_default(value: &ast::Expr) -> bool {
    matches!(value, ast::Expr::Identifier(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("default"))
}

fn sql_vector_type(vector: VectorType) -> ast::DataType {
    let (name, arguments) = match vector.element {
        Element::Bit => ("BITVECTOR", vec![vector.dim.to_string()]),
        element => ("VECTOR", vec![vector.dim.to_string(), element.name().to_owned()]),
    };
    ast::DataType::Custom(ast::ObjectName::from(vec![ast::Ident::new(name)]), arguments)
}

fn cast_to(value: ast::Expr, data_type: ast::DataType) -> ast::Expr {
    ast::Expr::Cast { kind: ast::CastKind::Cast, expr: Box::new(value), data_type, array: false, format: None }
}

/// A projection of the query to all columns of the table, in order and of their types.
pub(crate) fn to_table(
    input: LogicalPlan,
    targets: &[usize],
    fields: &[FieldRef],
    entry: &TableEntry,
    tables: &StatementTables,
) -> Result<LogicalPlan> {
    let filled = input.schema().columns().len();
    if filled != targets.len() {
        return Err(Error::invalid(format!(
            "the rows have {filled} columns, but {} are to be filled; name them: INSERT INTO t (a, b) …",
            targets.len()
        )));
    }
    let outputs = table_columns(&input, targets, fields, entry, tables)?;
    Ok(LogicalPlanBuilder::from(input).project(outputs)?.build()?)
}

/// What fills each column of the table. `input` may have more columns than `targets`.
pub(crate) fn table_columns(
    input: &LogicalPlan,
    targets: &[usize],
    fields: &[FieldRef],
    entry: &TableEntry,
    tables: &StatementTables,
) -> Result<Vec<Expr>> {
    let columns = input.schema().columns();
    let types: Vec<_> = input.schema().fields().iter().cloned().collect();
    let mut outputs = Vec::with_capacity(fields.len());
    for (at, field) in fields.iter().enumerate() {
        let expr = match targets.iter().position(|target| *target == at) {
            Some(from) => convert_to(Expr::Column(columns[from].clone()), types[from].data_type(), field),
            None => match entry.defaults.get(field.name()) {
                Some(text) => default_value(tables.default(text)?, field),
                None => convert_to(lit(ScalarValue::Null), &arrow::datatypes::DataType::Null, field),
            },
        };
        outputs.push(expr?.alias(field.name()));
    }
    Ok(outputs)
}

fn default_value(default: Expr, field: &FieldRef) -> datafusion::error::Result<Expr> {
    use datafusion::logical_expr::ExprSchemable;
    let data_type = default.get_type(&datafusion::common::DFSchema::empty())?;
    convert_to(default, &data_type, field)
}

/// The columns of a plan by name: where each column of the table comes from.
///
/// # Errors
/// Columns that the table does not have.
pub(crate) fn by_name(names: &[String], name: &RelationName, fields: &[FieldRef]) -> Result<Vec<usize>> {
    let find = |column: &String| {
        let at = fields.iter().position(|field| field.name() == column);
        at.or_else(|| fields.iter().position(|field| field.name().eq_ignore_ascii_case(column)))
    };
    let found: Vec<Option<usize>> = names.iter().map(find).collect();
    let unknown: Vec<String> =
        names.iter().zip(&found).filter(|(_, at)| at.is_none()).map(|(column, _)| format!("\"{column}\"")).collect();
    if !unknown.is_empty() {
        let (noun, own) = (if unknown.len() == 1 { "column" } else { "columns" }, column_list(fields));
        let message = format!("table {name} has no {noun} {}; it has {own}", unknown.join(", "));
        let nearest = nearest(unknown[0].trim_matches('"'), fields.iter().map(|field| field.name().as_str()));
        let hint = nearest.map(|meant| format!("did you mean \"{meant}\"?"));
        return Err(Error { hint, ..Error::invalid(message) });
    }
    Ok(found.into_iter().flatten().collect())
}

/// # Errors
/// Columns that are NOT NULL, have no default, and are not among those that are filled: no row would fit.
pub(crate) fn refuse_unfilled(
    targets: &[usize],
    name: &RelationName,
    fields: &[FieldRef],
    entry: &TableEntry,
) -> Result<()> {
    let is_unfilled = |(at, field): &(usize, &FieldRef)| {
        !field.is_nullable() && !targets.contains(at) && !entry.defaults.contains_key(field.name())
    };
    let unfilled: Vec<String> =
        fields.iter().enumerate().filter(is_unfilled).map(|(_, field)| format!("\"{}\"", field.name())).collect();
    if unfilled.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the rows have no {}, which table {name} needs: NOT NULL, and without a default; it has {}",
        unfilled.join(", "),
        column_list(fields)
    )))
}

/// The columns of a table with their types.
fn column_list(fields: &[FieldRef]) -> String {
    let columns: Vec<String> = fields
        .iter()
        .map(|field| {
            let not_null = if field.is_nullable() { "" } else { " NOT NULL" };
            format!("{} {}{not_null}", field.name(), sql_type_name(field))
        })
        .collect();
    columns.join(", ")
}

/// A plan over rows that come from elsewhere than SQL.
pub(crate) fn scan_of(table: Arc<dyn TableProvider>) -> Result<LogicalPlan> {
    let plan = LogicalPlanBuilder::scan("source", provider_as_source(table), None)?.build()?;
    let columns: Vec<Expr> = plan.schema().columns().into_iter().map(|column: Column| Expr::Column(column)).collect();
    Ok(LogicalPlanBuilder::from(plan).project(columns)?.build()?)
}
