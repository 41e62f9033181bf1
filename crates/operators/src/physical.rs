//! From logical to physical plans: DataFusion's planner plus our operators.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::{DFSchema, internal_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use planner::settings::Settings;
use planner::vector_search::VectorSearch;

use crate::table::SnapshotTable;
use crate::vector_search::VectorSearchExec;

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
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        state: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(search) = node.as_any().downcast_ref::<VectorSearch>() else { return Ok(None) };
        let table: &dyn Any = search.table.as_ref();
        let Some(table) = table.downcast_ref::<SnapshotTable>() else {
            return internal_err!("a search runs in a snapshot, not in {:?}", search.table);
        };
        if Settings::of(state.config_options()).require_index {
            return Err(DataFusionError::Plan(format!(
                "require_index is on, and no index serves a search in {}.{}; indexes are not built yet: SET require_index = off",
                search.table_name, search.vector
            )));
        }
        let query = planner.create_physical_expr(&search.query, &DFSchema::empty(), state)?;
        let schema = Arc::clone(search_schema(search));
        let plan = VectorSearchExec::try_new(search, table.snapshot.clone(), query, inputs.first().cloned(), schema)?;
        Ok(Some(Arc::new(plan)))
    }
}

fn search_schema(search: &VectorSearch) -> &arrow::datatypes::SchemaRef {
    use datafusion::logical_expr::UserDefinedLogicalNodeCore;
    UserDefinedLogicalNodeCore::schema(search).inner()
}
