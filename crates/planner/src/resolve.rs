//! Names to tables: what the planner asks of whoever holds the tables, and the context that hands the answers,
//! collected before planning, to DataFusion's SQL planner. Nothing is opened here.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableProvider};
use datafusion::common::{Constraints, DFSchema, Statistics, TableReference, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::provider_as_source;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, ScalarUDF, TableProviderFilterPushDown, TableSource, TableType, WindowUDF,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::sqlparser::ast::{FunctionArg, FunctionArgExpr, ObjectName, Query, TableFactor, Visit, Visitor};

use crate::as_of::AsOf;
use crate::cte_scope::CteScope;
use crate::pin::{self, Mark, text_argument};

/// The catalog of every database.
pub const CATALOG: &str = "sagitta";
/// The schema of names that name none.
pub const SCHEMA: &str = "public";

/// A table's full name: schema and table, folded to lower case unless quoted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelationName {
    /// The schema.
    pub schema: String,
    /// The table or view.
    pub table: String,
}

impl RelationName {
    /// A name as written in SQL.
    ///
    /// # Errors
    /// More than three parts, or another catalog than [`CATALOG`].
    pub fn of_sql(name: &ObjectName) -> Result<Self> {
        let mut parts: Vec<String> = vec![];
        for part in &name.0 {
            let Some(ident) = part.as_ident() else { return plan_err!("{name} is no name of a table") };
            parts.push(if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() });
        }
        match parts.as_slice() {
            [table] => Ok(Self { schema: SCHEMA.into(), table: table.clone() }),
            [schema, table] => Ok(Self { schema: schema.clone(), table: table.clone() }),
            [catalog, schema, table] if catalog == CATALOG => Ok(Self { schema: schema.clone(), table: table.clone() }),
            [catalog, _, _] => plan_err!("there is no catalog {catalog}; every table is in the catalog {CATALOG}"),
            _ => plan_err!("{name} is no name of a table; write [[{CATALOG}.]schema.]table"),
        }
    }

    /// A name as DataFusion hands it over.
    ///
    /// # Errors
    /// Another catalog than [`CATALOG`].
    pub fn of_reference(name: &TableReference) -> Result<Self> {
        if let Some(catalog) = name.catalog().filter(|catalog| *catalog != CATALOG) {
            return plan_err!("there is no catalog {catalog}; every table is in the catalog {CATALOG}");
        }
        Ok(Self { schema: name.schema().unwrap_or(SCHEMA).to_owned(), table: name.table().to_owned() })
    }
}

impl std::fmt::Display for RelationName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.schema == SCHEMA { write!(f, "{}", self.table) } else { write!(f, "{}.{}", self.schema, self.table) }
    }
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Resolved {
    /// A table, pinned to one snapshot for the whole statement.
    Table(Arc<dyn TableProvider>),
    /// A view: the SQL of its query.
    View(String),
}

/// Finds tables by name. One resolver serves one statement and returns the same snapshot each time.
#[async_trait]
pub trait TableResolver: Debug + Send + Sync {
    /// The table or view of this name, `None` if there is none. `at`: the moment that the statement names; without
    /// one it is that of the session, and without that the newest. Of a view the query comes back as it is: the
    /// moment is that of its tables, which are resolved in their turn.
    ///
    /// # Errors
    /// A table that exists and cannot be opened, or not at the moment.
    async fn resolve(&self, name: &RelationName, at: Option<&AsOf>) -> Result<Option<Resolved>>;

    /// The versions of a table, one per row; `None` if there is no table of this name.
    ///
    /// # Errors
    /// What has no versions.
    async fn history(&self, name: &RelationName) -> Result<Option<Arc<dyn TableProvider>>>;

    /// The rows that differ between two moments of a table; an absent moment is the newest. `None` if there is no
    /// table of this name.
    ///
    /// # Errors
    /// What has no versions, a moment that does not exist, the newer moment first.
    async fn changes(
        &self,
        name: &RelationName,
        from: Option<&AsOf>,
        to: Option<&AsOf>,
    ) -> Result<Option<Arc<dyn TableProvider>>>;

    /// All names, to suggest one that was meant.
    async fn names(&self) -> Result<Vec<RelationName>>;

    /// What is told of an error in the text of a view, which the one who reads the view did not write.
    fn error_in_view(&self, view: &RelationName, error: DataFusionError) -> DataFusionError {
        let _ = view;
        error
    }
}

/// A table that a search can run in: its rows have addresses, and its vectors and columns can be read by them.
pub trait SearchableTable: TableProvider {
    /// The same table and snapshot with a further, last column [`ROW_ADDRESS`] that names each row.
    fn with_row_addresses(&self) -> Arc<dyn TableProvider>;

    /// What EXPLAIN calls the snapshot, such as `version 3`.
    fn snapshot_name(&self) -> String;

    /// The same table and snapshot, whose searches are to find such a share of the nearest.
    fn with_recall(&self, recall: f64) -> Arc<dyn TableProvider>;

    /// The share of the nearest that searches are to find, if this table has its own.
    fn recall(&self) -> Option<f64>;
}

/// The column that names a row within a snapshot (UInt64, not null).
pub const ROW_ADDRESS: &str = "_rowaddr";

/// Carries a [`SearchableTable`] through DataFusion's plans, where rules find it again by its type.
#[derive(Debug, Clone)]
pub struct Searchable(pub Arc<dyn SearchableTable>);

#[async_trait]
impl TableProvider for Searchable {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn constraints(&self) -> Option<&Constraints> {
        self.0.constraints()
    }

    fn table_type(&self) -> TableType {
        self.0.table_type()
    }

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        self.0.get_column_default(column)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.0.scan(state, projection, filters, limit).await
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.0.supports_filters_pushdown(filters)
    }

    fn statistics(&self) -> Option<Statistics> {
        self.0.statistics()
    }

    async fn insert_into(
        &self,
        state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        op: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.0.insert_into(state, input, op).await
    }
}

/// The table of a source if searches can run in it.
pub fn searchable(source: &Arc<dyn TableSource>) -> Option<Arc<dyn SearchableTable>> {
    let provider = datafusion::datasource::source_as_provider(source).ok()?;
    let provider: &dyn Any = provider.as_ref();
    provider.downcast_ref::<Searchable>().map(|searchable| Arc::clone(&searchable.0))
}

/// The columns that a search fetches, by index, under the name that the table has in the query.
///
/// # Errors
/// A column index that the table does not have.
pub(crate) fn fetched_fields(
    name: &TableReference,
    table: &dyn SearchableTable,
    columns: &[usize],
) -> Result<Vec<(Option<TableReference>, FieldRef)>> {
    let schema = table.schema();
    let field = |at: &usize| match schema.fields().get(*at) {
        Some(field) => Ok((Some(name.clone()), Arc::clone(field))),
        None => plan_err!("table {name} has no column {at}"),
    };
    columns.iter().map(field).collect()
}

/// The names of these columns, which the table has.
pub(crate) fn fetched_names(table: &dyn SearchableTable, columns: &[usize]) -> Vec<String> {
    let schema = table.schema();
    columns.iter().map(|at| schema.field(*at).name().clone()).collect()
}

/// An error about SQL text that names what the user wrote, so that the shell can point at it.
#[derive(Debug)]
pub struct NameError {
    /// What is wrong.
    pub message: String,
    /// The name as written.
    pub name: String,
    /// The name that was probably meant.
    pub meant: Option<String>,
}

impl std::fmt::Display for NameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NameError {}

/// The known name that is nearest to a mistaken one, if it is near enough.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&candidate.to_lowercase(), &name), candidate))
        .filter(|(edits, candidate)| *edits <= (candidate.chars().count().max(name.chars().count()) / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// The names of tables that a query reads, those inside `vector_search('t', …)` among them. Names of WITH queries
/// are left out where they hide a table, and so are tables that are pinned to a moment.
pub fn referenced<T: Visit>(node: &T) -> Vec<ObjectName> {
    let mut collector = Collector::default();
    let _: ControlFlow<()> = node.visit(&mut collector);
    collector.names.into_values().collect()
}

#[derive(Default)]
struct Collector {
    names: HashMap<String, ObjectName>,
    ctes: CteScope,
    /// The next name is that of a function or of a pinned table.
    skips_next: bool,
}

impl Visitor for Collector {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.ctes.enter(query);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.ctes.leave();
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if !std::mem::take(&mut self.skips_next) && !self.ctes.hides(relation) {
            self.names.insert(relation.to_string(), relation.clone());
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let args = match factor {
            TableFactor::Table { args: Some(args), .. } => {
                self.skips_next = true;
                &args.args
            }
            TableFactor::Table { version: Some(version), .. } => {
                self.skips_next = Mark::of_version(version).is_some();
                return ControlFlow::Continue(());
            }
            TableFactor::Function { args, .. } => args,
            _ => return ControlFlow::Continue(()),
        };
        let is_pinned = args.iter().any(|arg| match arg {
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => {
                Mark::of_argument(&name.value, value).is_some()
            }
            _ => false,
        });
        let first = args.iter().find_map(text_argument);
        if let Some(name) = first.and_then(|text| crate::relation::parse_name(&text).ok())
            && !is_pinned
        {
            self.names.insert(name.to_string(), name);
        }
        ControlFlow::Continue(())
    }
}

/// The tables of one statement and the functions of its session, as DataFusion's planner wants them.
pub struct Context<'a> {
    /// The session's functions, planners and options.
    pub state: &'a SessionState,
    /// The tables that were resolved.
    pub tables: HashMap<RelationName, Arc<dyn TableSource>>,
    /// The tables at moments of their own, by the numbers of their marks.
    pub pins: Vec<Arc<dyn TableSource>>,
    /// All names there are, for suggestions.
    pub known: BTreeSet<RelationName>,
}

/// The error for a name that stands for nothing, with the known name that was probably meant.
pub(crate) fn unknown(name: RelationName, known: &BTreeSet<RelationName>) -> DataFusionError {
    let names: Vec<String> = known.iter().map(ToString::to_string).collect();
    let meant = nearest(&name.to_string(), names.iter().map(String::as_str)).map(str::to_owned);
    let error = NameError { message: format!("there is no table \"{name}\""), name: name.table, meant };
    DataFusionError::External(Box::new(error))
}

impl ContextProvider for Context<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        if let Some(index) = pin::index_of(&name) {
            return match self.pins.get(index) {
                Some(source) => Ok(Arc::clone(source)),
                None => plan_err!("a moment of a table was not resolved"),
            };
        }
        let resolved = RelationName::of_reference(&name)?;
        match self.tables.get(&resolved) {
            Some(source) => Ok(Arc::clone(source)),
            None => Err(unknown(resolved, &self.known)),
        }
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        self.state.relation_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(crate::sql_type::SqlTypes))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.state.scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }

    fn get_file_type(&self, extension: &str) -> Result<Arc<dyn datafusion::common::file_options::file_type::FileType>> {
        match self.state.get_file_format_factory(extension) {
            Some(factory) => Ok(datafusion::datasource::file_format::format_as_file_type(factory)),
            None => plan_err!("there is no file format {extension}; there are parquet, csv, json and arrow"),
        }
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> Result<Arc<dyn TableSource>> {
        let functions = self.state.table_functions();
        let Some(function) = functions.get(name) else {
            let known = functions.keys().map(String::as_str).chain(crate::relation::SEARCHES);
            let meant = nearest(name, known).map(str::to_owned);
            let error =
                NameError { message: format!("there is no table function {name}"), name: name.to_owned(), meant };
            return Err(DataFusionError::External(Box::new(error)));
        };
        let simplifier = ExprSimplifier::new(
            SimplifyContext::builder().with_config_options(Arc::clone(self.state.config_options())).build(),
        );
        let empty = DFSchema::empty();
        let args: Vec<Expr> =
            args.into_iter().map(|arg| simplifier.simplify(simplifier.coerce(arg, &empty)?)).collect::<Result<_>>()?;
        Ok(provider_as_source(function.create_table_provider_with_args(TableFunctionArgs::new(&args, self.state))?))
    }
}
