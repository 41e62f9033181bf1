//! Prepared searches that are planned once: their parameters and a fresh snapshot of each table are put into the plan.
//!
//! A template is made where a prepared search is first run. It serves while the catalog and the session's settings are what
//! they were, for values of the same types; a statement that does not fit is planned as any other. What a template cannot
//! say (a moment of its own, `now()`, an aggregate, another table than the database's own) is never one.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::sqlparser::ast;
use operators::bind::{bind, is_template, value_of};
use operators::table::SnapshotTable;
use planner::Planner;
use planner::resolve::{RelationName, Resolved, TableResolver, searchable};
use planner::statement::StatementKind;
use planner::vector_search::VectorSearch;

use crate::pins::PinnedRelation;
use crate::resolver::StatementTables;
use crate::session::Statement;
use crate::{Result, ScalarValue, Session};

/// How often a template is made anew for a statement, because its values or the catalog change: then never again.
const MADE_MAX: u32 = 64;

/// The template of a prepared statement, if it has one by now.
#[derive(Default)]
pub(crate) struct TemplateCell {
    state: Mutex<State>,
    made: AtomicU32,
}

#[derive(Default)]
enum State {
    /// Nobody has tried yet.
    #[default]
    Unknown,
    /// The statement cannot have one.
    Never,
    Made(Arc<Template>),
}

/// A plan with values in it, the state it was planned in, and what it reads.
type Bound = (Arc<dyn ExecutionPlan>, Arc<SessionState>, Option<Vec<PinnedRelation>>);

struct Template {
    physical: Arc<dyn ExecutionPlan>,
    state: Arc<SessionState>,
    settings: String,
    /// The types that values must have.
    types: Vec<DataType>,
    /// Values that are part of the plan, such as a LIMIT: others do not fit.
    fixed: Vec<(usize, ScalarValue)>,
    catalog_number: u64,
    tables: Vec<(RelationName, SchemaRef)>,
    /// What it read when it was made, if that can be told.
    reads: Option<Vec<PinnedRelation>>,
}

impl TemplateCell {
    /// The plan of a prepared query with these values; `None` if it must be planned anew.
    pub(crate) async fn bound(&self, session: &Session, values: &[ScalarValue]) -> Result<Option<Bound>> {
        let template = match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Made(template) => Arc::clone(template),
            State::Unknown | State::Never => return Ok(None),
        };
        template.bound(session, values).await
    }

    /// Makes a template of a query that has just been planned with these values, unless it is known to have none.
    pub(crate) async fn learn(
        &self,
        session: &Session,
        statement: &Statement,
        values: &[ScalarValue],
        types: &[Option<DataType>],
    ) {
        let StatementKind::Sql(sql) = &statement.kind else { return };
        let ast::Statement::Query(query) = sql.as_ref() else { return };
        let is_hopeless = matches!(*self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Never);
        if is_hopeless || values.is_empty() || self.made.fetch_add(1, Ordering::Relaxed) >= MADE_MAX {
            return;
        }
        let made = Template::make(session, query, values, types).await;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = match made {
            Ok(Some(template)) => State::Made(Arc::new(template)),
            // A plan with open parameters may be impossible: then there is no template.
            Ok(None) | Err(_) => State::Never,
        };
    }
}

impl Template {
    async fn make(
        session: &Session,
        query: &ast::Query,
        values: &[ScalarValue],
        types: &[Option<DataType>],
    ) -> Result<Option<Self>> {
        let Some(values) = fitted(values, types) else { return Ok(None) };
        let state = session.state();
        let settings = session.settings();
        let tables = StatementTables::new(session.clone(), state.clone());
        let planner = Planner { state: &state, resolver: &tables };
        let plan = planner.query_with_open_parameters(query.clone(), &values).await?;
        let Some(names) = newest_tables(&plan)? else { return Ok(None) };
        let (plan, fixed) = with_fixed_limits(plan, &values)?;
        let physical = state.create_physical_plan(&plan).await?;
        if !is_template(&physical) || settings.moment().is_some() {
            return Ok(None);
        }
        Ok(Some(Self {
            physical,
            settings: format!("{settings:?}"),
            types: values.iter().map(ScalarValue::data_type).collect(),
            fixed,
            catalog_number: tables.catalog().await?.number,
            tables: names,
            reads: tables.reads(),
            state,
        }))
    }

    async fn bound(&self, session: &Session, values: &[ScalarValue]) -> Result<Option<Bound>> {
        let types: Vec<Option<DataType>> = self.types.iter().cloned().map(Some).collect();
        let Some(values) = fitted(values, &types) else { return Ok(None) };
        let is_same = |(at, fixed): &(usize, ScalarValue)| values.get(*at) == Some(fixed);
        if values.len() != self.types.len()
            || !self.fixed.iter().all(is_same)
            || format!("{:?}", session.settings()) != self.settings
        {
            return Ok(None);
        }
        let tables = StatementTables::new(session.clone(), Arc::clone(&self.state));
        if tables.catalog().await?.number != self.catalog_number {
            return Ok(None);
        }
        let mut snapshots = HashMap::with_capacity(self.tables.len());
        for (name, schema) in &self.tables {
            let Some(Resolved::Table(table)) = tables.resolve(name, None).await? else { return Ok(None) };
            let Some(table) = snapshot_table(&table) else { return Ok(None) };
            if table.snapshot.schema() != *schema {
                return Ok(None);
            }
            snapshots.insert(table.snapshot.location().to_owned(), table.snapshot.clone());
        }
        let bound = bind(&self.physical, &values, &snapshots)?;
        Ok(bound.map(|bound| (bound, Arc::clone(&self.state), self.reads_now(&tables))))
    }
}

impl Template {
    /// What a run reads: the tables at their versions of now, and the views between.
    fn reads_now(&self, tables: &StatementTables) -> Option<Vec<PinnedRelation>> {
        let views = self.reads.as_ref()?.iter().filter(|relation| relation.version.is_none()).cloned();
        Some(tables.reads()?.into_iter().chain(views).collect())
    }
}

/// The values as the types that stand beside the parameters, where nothing is lost; `None` for NULLs, whose comparisons
/// are planned, and for values that do not fit.
fn fitted(values: &[ScalarValue], types: &[Option<DataType>]) -> Option<Vec<ScalarValue>> {
    let fit = |(at, value): (usize, &ScalarValue)| {
        if value.is_null() {
            return None;
        }
        let Some(Some(data_type)) = types.get(at) else { return Some(value.clone()) };
        if value.data_type() == *data_type {
            return Some(value.clone());
        }
        let fitted = value.cast_to(data_type).ok().filter(|fitted| !fitted.is_null())?;
        (fitted.cast_to(&value.data_type()).ok()? == *value).then_some(fitted)
    };
    values.iter().enumerate().map(fit).collect()
}

fn snapshot_table(table: &Arc<dyn datafusion::catalog::TableProvider>) -> Option<SnapshotTable> {
    let any: &dyn std::any::Any = table.as_ref();
    let searchable = any.downcast_ref::<planner::resolve::Searchable>()?;
    let any: &dyn std::any::Any = searchable.0.as_ref();
    any.downcast_ref::<SnapshotTable>().cloned()
}

/// The tables that a plan reads, all of them at their newest versions; `None` if there are others, or if something in
/// the plan is more than a function of its inputs.
fn newest_tables(plan: &LogicalPlan) -> Result<Option<Vec<(RelationName, SchemaRef)>>> {
    let (mut tables, mut fits): (Vec<(RelationName, SchemaRef)>, bool) = (vec![], true);
    let mut note = |table: Option<&SnapshotTable>| match table.and_then(|table| Some((table.target()?, table))) {
        Some((target, table)) => {
            let name = RelationName { schema: target.name.schema.clone(), table: target.name.table.clone() };
            if !tables.iter().any(|(known, _)| *known == name) {
                tables.push((name, table.snapshot.schema()));
            }
        }
        None => fits = false,
    };
    let mut is_constant = true;
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(scan) => {
                let table = searchable(&scan.source);
                let any: Option<&dyn std::any::Any> = table.as_ref().map(|table| table.as_ref() as _);
                note(any.and_then(|any| any.downcast_ref::<SnapshotTable>()));
            }
            LogicalPlan::Extension(extension) => {
                if let Some(search) = extension.node.as_any().downcast_ref::<VectorSearch>() {
                    let any: &dyn std::any::Any = search.table.as_ref();
                    note(any.downcast_ref::<SnapshotTable>());
                }
            }
            _ => {}
        }
        node.apply_expressions(|expr| {
            is_constant &= !expr.exists(|expr| Ok(!is_immutable(expr)))?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok((fits && is_constant && !tables.is_empty()).then_some(tables))
}

fn is_immutable(expr: &Expr) -> bool {
    match expr {
        Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Immutable,
        Expr::ScalarVariable(..) => false,
        _ => true,
    }
}

/// The plan with the values of parameters that stand in a LIMIT or OFFSET put in, wherever they stand; and these values,
/// by index from 0.
fn with_fixed_limits(plan: LogicalPlan, values: &[ScalarValue]) -> Result<(LogicalPlan, Vec<(usize, ScalarValue)>)> {
    let mut names = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        if matches!(node, LogicalPlan::Limit(_)) {
            node.apply_expressions(|expr| {
                expr.apply(|expr| {
                    if let Expr::Placeholder(Placeholder { id, .. }) = expr {
                        names.insert(id.clone());
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if names.is_empty() {
        return Ok((plan, vec![]));
    }
    let put_in = |expr: Expr| {
        expr.transform(|expr| match &expr {
            Expr::Placeholder(Placeholder { id, .. }) if names.contains(id) => Ok(match value_of(id, values) {
                Some(value) => Transformed::yes(Expr::Literal(value.clone(), None)),
                None => Transformed::no(expr),
            }),
            _ => Ok(Transformed::no(expr)),
        })
    };
    let plan = plan.transform_up_with_subqueries(|node| node.map_expressions(put_in)).data()?;
    let index = |name: &String| name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()?.checked_sub(1));
    let fixed = names.iter().filter_map(index).filter_map(|at| Some((at, values.get(at)?.clone()))).collect();
    Ok((plan, fixed))
}
