//! From logical to physical plans: DataFusion's planner plus our operators.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::{DFSchema, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use planner::change::Change;
use planner::fetch_rows::FetchRows;
use planner::resolve::SearchableTable;
use planner::settings::Settings;
use planner::text_search::TextSearch;
use planner::vector_search::{Reach, VectorSearch};
use storage::Snapshot;

use crate::bind::has_parameters;
use crate::change::{ChangeExec, Gathering};
use crate::fetch_rows::FetchRowsExec;
use crate::index_search::{not_served, serving};
use crate::table::SnapshotTable;
use crate::text_search::TextSearchExec;
use crate::vector_search::{QueryVector, VectorSearchExec};

/// Plans queries with our operators among DataFusion's.
#[derive(Debug)]
pub struct SagittaPlanner;

#[async_trait]
impl QueryPlanner for SagittaPlanner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(Operators)]);
        planner.create_physical_plan(plan, state).await
    }
}

struct Operators;

#[async_trait]
impl ExtensionPlanner for Operators {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        state: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let (Some(change), [input]) = (node.as_any().downcast_ref::<Change>(), inputs) {
            return Ok(Some(plan_change(change, input)?));
        }
        if let (Some(fetch), [below], [input]) = (node.as_any().downcast_ref::<FetchRows>(), logical, inputs) {
            let address = planner.create_physical_expr(&fetch.address, below.schema(), state)?;
            return Ok(Some(plan_fetch(fetch, address, input)?));
        }
        if let Some(search) = node.as_any().downcast_ref::<TextSearch>() {
            let query = planner.create_physical_expr(&search.query, &DFSchema::empty(), state)?;
            let schema = Arc::clone(node.schema().inner());
            let snapshot = snapshot_of(&search.table)?.clone();
            let plan = TextSearchExec::try_new(search, snapshot, query, inputs.first().cloned(), schema).await?;
            return Ok(Some(Arc::new(plan)));
        }
        let Some(search) = node.as_any().downcast_ref::<VectorSearch>() else { return Ok(None) };
        let snapshot = snapshot_of(&search.table)?;
        let mut settings = Settings::of(state.config_options());
        settings.recall_target = search.table.recall().unwrap_or(settings.recall_target);
        let index = index_of(search, snapshot, &settings).await?;
        let query = match has_parameters(&search.query) {
            true => QueryVector::Open(search.query.clone()),
            false => QueryVector::Ready(planner.create_physical_expr(&search.query, &DFSchema::empty(), state)?),
        };
        let schema = Arc::clone(search_schema(search));
        let plan = VectorSearchExec::try_new(search, snapshot.clone(), query, inputs.first().cloned(), index, schema)?;
        Ok(Some(Arc::new(plan)))
    }
}

/// The snapshot that a search runs in.
fn snapshot_of(table: &Arc<dyn SearchableTable>) -> Result<&Snapshot> {
    let any: &dyn Any = table.as_ref();
    match any.downcast_ref::<SnapshotTable>() {
        Some(table) => Ok(&table.snapshot),
        None => internal_err!("a search runs in a snapshot, not in {table:?}"),
    }
}

/// The index that serves a search now, for EXPLAIN: which one does is looked up again when the search runs.
///
/// # Errors
/// None does, and one is required.
async fn index_of(search: &VectorSearch, snapshot: &Snapshot, settings: &Settings) -> Result<Option<String>> {
    let exact = match search.reach {
        Reach::Within { .. } => Some("searches within a distance compare all rows"),
        Reach::Nearest { .. } if settings.exact => Some("exact is on"),
        Reach::Nearest { .. } if settings.recall_target >= 1.0 => Some("recall_target is 1, which takes all rows"),
        Reach::Nearest { .. } => None,
    };
    let serving = match exact {
        None => serving(snapshot, &search.vector, search.metric).await?,
        Some(_) => None,
    };
    if serving.is_none() && settings.require_index {
        let column = format!("{}.{}", search.table_name, search.vector);
        return plan_err!("{}", not_served(&column, search.metric, exact));
    }
    Ok(serving.map(|(index, spec)| format!("{} ({})", index.name, spec.method)))
}

fn plan_change(change: &Change, input: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let sink: Arc<dyn Any + Send + Sync> = change.sink.clone();
    let Ok(sink) = sink.downcast::<Gathering>() else {
        return internal_err!("a change is gathered, not taken by {:?}", change.sink);
    };
    Ok(Arc::new(ChangeExec::new(change.operation, change.table.clone(), sink, Arc::clone(input))))
}

fn plan_fetch(
    fetch: &FetchRows,
    address: Arc<dyn PhysicalExpr>,
    input: &Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let table: &dyn Any = fetch.table.as_ref();
    let Some(table) = table.downcast_ref::<SnapshotTable>() else {
        return internal_err!("rows are fetched from a snapshot, not from {:?}", fetch.table);
    };
    let name = fetch.table_name.to_string();
    Ok(Arc::new(FetchRowsExec::new(table.snapshot.clone(), name, address, fetch.fields.clone(), Arc::clone(input))))
}

fn search_schema(search: &VectorSearch) -> &arrow::datatypes::SchemaRef {
    use datafusion::logical_expr::UserDefinedLogicalNodeCore;
    UserDefinedLogicalNodeCore::schema(search).inner()
}
