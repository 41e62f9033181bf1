//! What does this SQL mean? Dialect, statements, relations, logical nodes, functions and rules.
//!
//! A text goes through `tokens` (our spellings), `statement` (parsing), `rewrite` (casts, refused clauses), `pin`
//! (moments of tables) and [`Planner`] (names, types) to a logical plan; `rules` then find the searches in it. Nothing here opens a table:
//! names are resolved by a [`TableResolver`] that the caller brings.

pub mod as_of;
mod asof_join;
pub mod change;
mod cte_scope;
pub mod dialect;
pub mod do_nothing;
pub mod duration;
pub mod fetch_rows;
pub mod functions;
pub mod index_spec;
pub mod index_statement;
mod patterns;
pub mod pin;
pub mod relation;
mod reset_options;
pub mod resolve;
pub mod rewrite;
pub mod rules;
mod same_names;
pub mod scalar_index;
pub mod settings;
pub mod sql_text;
pub mod sql_type;
pub mod statement;
pub mod substrait;
pub mod text_length;
pub mod text_search;
mod time_operators;
pub mod time_statement;
pub mod tokens;
pub mod user_statement;
pub mod vector_operators;
pub mod vector_search;
pub mod vector_type;
pub mod vectors;
mod words;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan, TableSource};
use datafusion::optimizer::analyzer::resolve_grouping_function::ResolveGroupingFunction;
use datafusion::optimizer::analyzer::type_coercion::TypeCoercion;
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::{self, ObjectName};
use futures::FutureExt;
use futures::future::BoxFuture;

use as_of::AsOf;
use functions::cast_time::{Misfit, cast_time};
use pin::{Pin, Scope};
use resolve::{Context, RelationName, Resolved, TableResolver};
use statement::StatementKind;

/// How deep views may name views.
const VIEW_DEPTH_MAX: usize = 16;

/// Adds our functions, operators, relations and rules to a session state under construction.
pub fn install(builder: SessionStateBuilder) -> SessionStateBuilder {
    let mut state = builder.with_default_features();
    for function in functions::scalar_functions() {
        state.scalar_functions().get_or_insert_default().push(function);
    }
    for function in functions::aggregate_functions() {
        state.aggregate_functions().get_or_insert_default().push(function);
    }
    // Ours go first: the first planner that knows an operator wins.
    let mut planners: Vec<Arc<dyn datafusion::logical_expr::planner::ExprPlanner>> =
        vec![Arc::new(vector_operators::VectorOperators), Arc::new(time_operators::TimeOperators)];
    planners.extend(state.expr_planners().take().unwrap_or_default());
    let mut rules = rules::where_it_applies::rules();
    let constants = rules.iter().position(|rule| rule.name() == "simplify_expressions").map_or(0, |at| at + 1);
    rules.insert(constants, Arc::new(rules::plain_instants::PlainInstants));
    rules.push(Arc::new(rules::fetch_less::FetchLess));
    state
        .with_expr_planners(planners)
        .with_relation_planners(vec![Arc::new(relation::Relations)])
        .with_analyzer_rules(vec![
            Arc::new(ResolveGroupingFunction::new()),
            Arc::new(rules::exact_times::ExactTimes),
            Arc::new(TypeCoercion::new()),
            Arc::new(rules::time_casts::TimeCasts),
            Arc::new(rules::find_search::FindSearch),
        ])
        .with_optimizer_rules(rules)
}

/// How SQL text becomes expressions: names fold to lower case, texts stay texts, numbers with a point are DOUBLE.
pub fn parser_options() -> ParserOptions {
    ParserOptions::new()
        .with_enable_ident_normalization(true)
        .with_map_string_types_to_utf8view(false)
        .with_collect_spans(true)
}

/// Plans statements of one session. One planner serves one statement, so that each table is one snapshot in it.
#[derive(Debug)]
pub struct Planner<'a> {
    /// The session's functions and options.
    pub state: &'a SessionState,
    /// Finds tables.
    pub resolver: &'a dyn TableResolver,
}

impl Planner<'_> {
    /// Plans a query. `parameters`: the values of `$1`, `$2`, …; none to leave the parameters in the plan.
    ///
    /// # Errors
    /// Unknown names, types that do not fit, clauses that are not supported, a parameter without a value; also the
    /// parameter of a moment, which cannot stay in the plan.
    pub async fn query(&self, query: ast::Query, parameters: &[ScalarValue]) -> Result<LogicalPlan> {
        let scope = Scope { parameters: parameters.to_vec(), ..Scope::default() };
        let plan = self.answer(query, scope).await?;
        if parameters.is_empty() {
            return Ok(plan);
        }
        plan.with_param_values(parameters.to_vec())
    }

    /// Plans a query and leaves its parameters in the plan, of the types of these values: what [`Planner::query`] plans, for
    /// other values too.
    ///
    /// # Errors
    /// As [`Planner::query`].
    pub async fn query_with_open_parameters(
        &self,
        query: ast::Query,
        parameters: &[ScalarValue],
    ) -> Result<LogicalPlan> {
        let scope = Scope { parameters: parameters.to_vec(), ..Scope::default() };
        self.answer(query, scope).await
    }

    /// Plans a query whose parameters have no values yet, to see whether its names exist. Tables whose moment is a
    /// parameter are taken as they are now.
    ///
    /// # Errors
    /// As [`Planner::query`], parameters aside.
    pub async fn check(&self, query: ast::Query) -> Result<LogicalPlan> {
        let scope = Scope { is_check: true, ..Scope::default() };
        self.answer(query, scope).await
    }

    /// The columns of a CREATE TABLE: types, vector types among them, and NOT NULL.
    ///
    /// # Errors
    /// A type that does not exist, a name that is there twice.
    pub fn columns(&self, columns: &[ast::ColumnDef]) -> Result<Schema> {
        let context = Context { state: self.state, tables: HashMap::new(), pins: vec![], known: BTreeSet::new() };
        let planner = SqlToRel::new_with_options(&context, parser_options());
        // Constraints and defaults are the caller's: only types and NOT NULL are read here.
        let plain = |column: &ast::ColumnDef| {
            let options = column
                .options
                .iter()
                .filter(|option| matches!(option.option, ast::ColumnOption::Null | ast::ColumnOption::NotNull));
            ast::ColumnDef { options: options.cloned().collect(), ..column.clone() }
        };
        let schema = planner.build_schema(columns.iter().map(plain).collect())?;
        let mut fields: Vec<Field> = Vec::with_capacity(columns.len());
        for (column, field) in columns.iter().zip(schema.fields()) {
            if fields.iter().any(|other| other.name() == field.name()) {
                return plan_err!("column \"{}\" is there twice", field.name());
            }
            let (name, is_nullable) = (field.name(), field.is_nullable());
            let vector = vector_type::VectorType::of_sql(&column.data_type)?;
            fields.push(match (vector, text_length::of_sql(&column.data_type)?) {
                (Some(vector), _) => vector.field(name, is_nullable),
                (None, Some(length)) => text_length::field(name, length, is_nullable),
                (None, None) => field.as_ref().clone(),
            });
        }
        Ok(Schema::new(fields))
    }

    /// Plans one expression that stands alone, such as the default of a column: no table is in scope.
    ///
    /// # Errors
    /// Columns, unknown functions, types that do not fit.
    pub fn expression(&self, mut expr: ast::Expr) -> Result<Expr> {
        rewrite::rewrite(&mut expr)?;
        let context = Context { state: self.state, tables: HashMap::new(), pins: vec![], known: BTreeSet::new() };
        let planner = SqlToRel::new_with_options(&context, parser_options());
        let empty = datafusion::common::DFSchema::empty();
        planner.sql_to_expr(expr, &empty, &mut PlannerContext::new())
    }

    /// The plan of a query whose columns are an answer: several may have one name.
    async fn answer(&self, mut query: ast::Query, scope: Scope) -> Result<LogicalPlan> {
        let error = match self.plan(ast::Statement::Query(Box::new(query.clone())), scope.clone()).await {
            Err(error) if same_names::is_cause(&error) => error,
            plan => return plan,
        };
        if !same_names::set_apart(&mut query)? {
            return Err(error);
        }
        same_names::restored(self.plan(ast::Statement::Query(Box::new(query)), scope).await?)
    }

    fn plan(&self, mut statement: ast::Statement, scope: Scope) -> BoxFuture<'_, Result<LogicalPlan>> {
        async move {
            rewrite::rewrite(&mut statement)?;
            let pins = self.pin(&mut statement, &scope)?;
            let names = resolve::referenced(&statement);
            let known = self.resolver.names().await?.into_iter().collect();
            let pins = self.resolve_pins(pins, &known, scope.depth).await?;
            let tables = self.resolve(names, scope.depth).await?;
            let context = Context { state: self.state, tables, pins, known };
            let types = scope.parameters.iter().map(|value| Some(Arc::new(Field::new("", value.data_type(), true))));
            let mut planning = PlannerContext::new().with_prepare_param_data_types(types.collect());
            SqlToRel::new_with_options(&context, parser_options())
                .sql_statement_to_plan_with_context(statement, &mut planning)
        }
        .boxed()
    }

    /// The sources of all names that stand for a table; the others are left to the planner, which knows whether
    /// they are names of CTEs.
    async fn resolve(
        &self,
        names: Vec<ObjectName>,
        depth: usize,
    ) -> Result<HashMap<RelationName, Arc<dyn TableSource>>> {
        let mut tables = HashMap::new();
        for name in names {
            let Ok(name) = RelationName::of_sql(&name) else { continue };
            let Some(source) = self.source(&name, None, depth).await? else { continue };
            tables.insert(name, source);
        }
        Ok(tables)
    }

    /// The sources of all marks, in their order.
    async fn resolve_pins(
        &self,
        pins: Vec<Pin>,
        known: &BTreeSet<RelationName>,
        depth: usize,
    ) -> Result<Vec<Arc<dyn TableSource>>> {
        let mut sources = Vec::with_capacity(pins.len());
        for pin in pins {
            let (name, source) = match pin {
                Pin::Relation { name, at } => {
                    let source = self.source(&name, at.as_ref(), depth).await?;
                    (name, source)
                }
                Pin::History { name } => {
                    let table = self.resolver.history(&name).await?;
                    (name, table.map(provider_as_source))
                }
                Pin::Changes { name, from, to } => {
                    let table = self.resolver.changes(&name, from.as_ref(), to.as_ref()).await?;
                    (name, table.map(provider_as_source))
                }
            };
            match source {
                Some(source) => sources.push(source),
                None => return Err(resolve::unknown(name, known)),
            }
        }
        Ok(sources)
    }

    async fn source(
        &self,
        name: &RelationName,
        at: Option<&AsOf>,
        depth: usize,
    ) -> Result<Option<Arc<dyn TableSource>>> {
        Ok(match self.resolver.resolve(name, at).await? {
            Some(Resolved::Table(table)) => Some(provider_as_source(table)),
            Some(Resolved::View(sql)) => {
                let scope = Scope { as_of: at.cloned(), depth, ..Scope::default() };
                Some(provider_as_source(Arc::new(self.view(name, &sql, scope).await?)))
            }
            None => None,
        })
    }

    async fn view(&self, name: &RelationName, sql: &str, scope: Scope) -> Result<ViewTable> {
        if scope.depth >= VIEW_DEPTH_MAX {
            return plan_err!("view {name} names views more than {VIEW_DEPTH_MAX} deep; does it name itself?");
        }
        let mut statements = statement::parse(sql)?;
        let query = match (statements.pop().map(|statement| statement.kind), statements.is_empty()) {
            (Some(StatementKind::Sql(statement)), true) => *statement,
            _ => return plan_err!("the text of view {name} is not one query: {sql}"),
        };
        let plan = self.plan(query, Scope { depth: scope.depth + 1, ..scope }).await;
        let plan = plan.map_err(|error| self.resolver.error_in_view(name, error))?;
        Ok(ViewTable::new(plan, Some(sql.to_owned())))
    }
}

/// A value of one type brought to a column's type: vectors through [`functions::convert::to_vector`], timestamps through
/// [`functions::cast_time::cast_time`], the rest by CAST.
///
/// # Errors
/// A type that no cast brings to the column's.
pub fn convert_to(value: Expr, data_type: &DataType, field: &Field) -> Result<Expr> {
    if let Some(vector) = vector_type::VectorType::of_field(field) {
        if !vectors::may_be_vector(data_type) {
            let own = sql_type::name_of(data_type);
            return plan_err!("column {} is a {vector}, which a value of type {own} does not fit", field.name());
        }
        return Ok(functions::convert::to_vector(value, vector));
    }
    if data_type == field.data_type() {
        return Ok(value);
    }
    if !arrow::compute::can_cast_types(data_type, field.data_type()) {
        let own = sql_type::name_of(data_type);
        return plan_err!(
            "column {} is a {}, which a value of type {own} does not fit",
            field.name(),
            sql_type::sql_type_name(field)
        );
    }
    match cast_time(&value, data_type, field.data_type(), Misfit::Error) {
        Some(value) => Ok(value),
        None => Ok(datafusion::logical_expr::cast(value, field.data_type().clone())),
    }
}
