//! How relations of a Substrait plan become DataFusion's: ours are the tables, the columns that are read of them, and the order
//! of columns; the rest is `datafusion-substrait`'s.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::{DataType, Field};
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, DFSchema, TableReference, not_impl_err, plan_err};
use datafusion::datasource::source_as_provider;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion_substrait::extensions::Extensions;
use datafusion_substrait::logical_plan::consumer as theirs;
use datafusion_substrait::logical_plan::consumer::SubstraitConsumer;
use datafusion_substrait::substrait::proto::expression::field_reference::{ReferenceType, RootType};
use datafusion_substrait::substrait::proto::expression::{
    Cast, FieldReference, IfThen, Literal, MaskExpression, ScalarFunction, SingularOrList, WindowFunction,
    reference_segment,
};
use datafusion_substrait::substrait::proto::extensions::AdvancedExtension;
use datafusion_substrait::substrait::proto::read_rel::{NamedTable, ReadType, VirtualTable};
use datafusion_substrait::substrait::proto::rel::RelType;
use datafusion_substrait::substrait::proto::rel_common::EmitKind;
use datafusion_substrait::substrait::proto::{ReadRel, Rel, RelCommon};

use super::complete;
use crate::Planner;
use crate::resolve::{self, RelationName, SCHEMA};
use crate::sql_type::sql_type_name;

/// Relations in one plan.
const RELATIONS_MAX: usize = 1_000;

/// Columns that the relations of one plan make together: each gets a name that is told from all others of its relation.
const COLUMNS_MAX: usize = 10_000;

/// Gives `datafusion-substrait` what it asks for.
pub(super) struct Consumer<'a> {
    planner: &'a Planner<'a>,
    extensions: Extensions,
    known: BTreeSet<RelationName>,
    /// The columns of the queries around the subquery that is being read, the innermost last.
    outer: Mutex<Vec<Arc<DFSchema>>>,
    made: Mutex<Made>,
}

/// What was made so far of one plan.
#[derive(Default)]
struct Made {
    relations: usize,
    columns: usize,
}

/// What all relations have, and what not all may have.
type Common<'r> = (Option<&'r RelCommon>, Option<&'r AdvancedExtension>);

impl<'a> Consumer<'a> {
    pub(super) fn new(planner: &'a Planner<'a>, extensions: Extensions, known: BTreeSet<RelationName>) -> Self {
        Self { planner, extensions, known, outer: Mutex::default(), made: Mutex::default() }
    }

    fn outer(&self) -> std::sync::MutexGuard<'_, Vec<Arc<DFSchema>>> {
        self.outer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// The plan has more than it may have.
    fn count(&self, relations: usize, columns: usize) -> Result<()> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.relations += relations;
        made.columns += columns;
        if made.relations > RELATIONS_MAX || made.columns > COLUMNS_MAX {
            return plan_err!(
                "the Substrait plan has more than {RELATIONS_MAX} relations, or makes more than {COLUMNS_MAX} columns; divide it"
            );
        }
        Ok(())
    }

    /// A table: the columns that the plan declares, in its order.
    async fn table(&self, table: &NamedTable, declared: &DFSchema) -> Result<LogicalPlan> {
        let name = match table.names.as_slice() {
            [table] => TableReference::bare(table.as_str()),
            [schema, table] => TableReference::partial(schema.as_str(), table.as_str()),
            [catalog, schema, table] => TableReference::full(catalog.as_str(), schema.as_str(), table.as_str()),
            names => {
                return plan_err!("a table of a Substrait plan has a name of one to three parts, not {}", names.len());
            }
        };
        complete::refuse_enhancement(table.advanced_extension.as_ref())?;
        let name = RelationName::of_reference(&name)?;
        let Some(source) = self.planner.source(&name, None, 0).await? else {
            return Err(resolve::unknown(name, &self.known));
        };
        let qualifier = match name.schema.as_str() {
            SCHEMA => TableReference::bare(name.table.as_str()),
            schema => TableReference::partial(schema, name.table.as_str()),
        };
        let scan = LogicalPlanBuilder::scan(qualifier, source, None)?.build()?;
        let mut columns = Vec::with_capacity(declared.fields().len());
        for field in declared.fields() {
            columns.push(position_of(field, scan.schema(), &name)?);
        }
        self.chosen(scan, &columns)
    }

    /// Some columns of a plan, by position; those that are there twice get names of their own.
    fn chosen(&self, plan: LogicalPlan, positions: &[usize]) -> Result<LogicalPlan> {
        if positions.iter().copied().eq(0..plan.schema().fields().len()) {
            return Ok(plan);
        }
        self.count(0, positions.len())?;
        let schema = Arc::clone(plan.schema());
        let mut names: HashSet<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let mut times: HashMap<usize, usize> = HashMap::new();
        let mut column = |position: &usize| {
            let column = Column::from(schema.qualified_field(*position));
            let time = times.entry(*position).or_default();
            *time += 1;
            if *time == 1 {
                return Expr::Column(column);
            }
            let mut alias = format!("{}_{time}", column.name);
            while !names.insert(alias.clone()) {
                alias.push('_');
            }
            Expr::Column(column).alias(alias)
        };
        let columns: Vec<Expr> = positions.iter().map(&mut column).collect();
        LogicalPlanBuilder::from(plan).project(columns)?.build()
    }

    /// The columns of a relation in the order that its consumer wants.
    fn emitted(&self, plan: LogicalPlan, common: Option<&RelCommon>) -> Result<LogicalPlan> {
        let Some(EmitKind::Emit(emit)) = common.and_then(|common| common.emit_kind.as_ref()) else { return Ok(plan) };
        let count = plan.schema().fields().len();
        let position = |index: &i32| complete::position(*index, count, "the column");
        let positions = emit.output_mapping.iter().map(position).collect::<Result<Vec<_>>>()?;
        self.chosen(plan, &positions)
    }

    /// The columns that a read keeps.
    fn masked(&self, plan: LogicalPlan, mask: Option<&MaskExpression>) -> Result<LogicalPlan> {
        let Some(select) = mask.and_then(|mask| mask.select.as_ref()) else { return Ok(plan) };
        if select.struct_items.iter().any(|item| item.child.is_some()) {
            return not_impl_err!("reading parts of a column is not supported; read the column and take it apart");
        }
        let count = plan.schema().fields().len();
        let position = |field: i32| complete::position(field, count, "the column");
        let positions = select.struct_items.iter().map(|item| position(item.field)).collect::<Result<Vec<_>>>()?;
        self.chosen(plan, &positions)
    }
}

/// Where the column that a plan declares stands in a table.
///
/// # Errors
/// There is none of this name, or it is of another type.
fn position_of(declared: &Field, schema: &DFSchema, table: &RelationName) -> Result<usize> {
    let Some(position) = schema.index_of_column_by_name(None, declared.name()) else {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        return Err(DataFusionError::External(Box::new(resolve::NameError {
            message: format!("there is no column \"{}\" in {table}", declared.name()),
            name: declared.name().clone(),
            meant: resolve::nearest(declared.name(), names).map(str::to_owned),
        })));
    };
    let field = schema.field(position);
    if !fits(declared.data_type(), field.data_type()) {
        return plan_err!(
            "column {} of {table} is a {}, and the Substrait plan declares {}",
            field.name(),
            sql_type_name(field),
            declared.data_type()
        );
    }
    if field.is_nullable() && !declared.is_nullable() {
        return plan_err!(
            "column {} of {table} may be NULL, and the Substrait plan relies on it not being so",
            field.name()
        );
    }
    Ok(position)
}

/// Whether a column may be declared so: Substrait has no vectors, so a vector is declared as the list of its elements.
fn fits(declared: &DataType, actual: &DataType) -> bool {
    match (declared, actual) {
        (
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _),
            DataType::List(own) | DataType::LargeList(own) | DataType::FixedSizeList(own, _),
        ) => fits(item.data_type(), own.data_type()),
        _ => DFSchema::datatype_is_logically_equal(actual, declared),
    }
}

#[async_trait]
impl SubstraitConsumer for Consumer<'_> {
    async fn resolve_table_ref(&self, table: &TableReference) -> Result<Option<Arc<dyn TableProvider>>> {
        let source = self.planner.source(&RelationName::of_reference(table)?, None, 0).await?;
        source.map(|source| source_as_provider(&source)).transpose()
    }

    fn get_extensions(&self) -> &Extensions {
        &self.extensions
    }

    fn get_function_registry(&self) -> &impl FunctionRegistry {
        self.planner.state
    }

    async fn consume_rel(&self, rel: &Rel) -> Result<LogicalPlan> {
        self.count(1, 0)?;
        let Some(rel) = &rel.rel_type else { return Err(complete::lacks("a relation", "kind")) };
        let (common, extension) = supported(rel)?;
        complete::refuse_enhancement(extension)?;
        complete::refuse_enhancement(common.and_then(|common| common.advanced_extension.as_ref()))?;
        let plan = match rel {
            RelType::Read(read) => self.consume_read(read).await?,
            RelType::Filter(filter) => self.consume_filter(filter).await?,
            RelType::Fetch(fetch) => self.consume_fetch(fetch).await?,
            RelType::Aggregate(aggregate) => {
                complete::aggregate(aggregate)?;
                self.count(0, aggregate.groupings.iter().map(|grouping| grouping.expression_references.len()).sum())?;
                self.consume_aggregate(aggregate).await?
            }
            RelType::Sort(sort) => {
                complete::sorts(&sort.sorts)?;
                self.consume_sort(sort).await?
            }
            RelType::Join(join) => {
                complete::needs(join.left.as_ref(), "a join", "left side")?;
                complete::needs(join.right.as_ref(), "a join", "right side")?;
                self.consume_join(join).await?
            }
            RelType::Project(project) => {
                self.count(0, project.expressions.len())?;
                self.consume_project(project).await?
            }
            RelType::Set(set) => self.consume_set(set).await?,
            RelType::Cross(cross) => {
                complete::needs(cross.left.as_ref(), "a cross join", "left side")?;
                complete::needs(cross.right.as_ref(), "a cross join", "right side")?;
                self.consume_cross(cross).await?
            }
            _ => return not_impl_err!("a relation of the Substrait plan is not supported"),
        };
        self.emitted(plan, common)
    }

    async fn consume_read(&self, read: &ReadRel) -> Result<LogicalPlan> {
        let plan = match &read.read_type {
            Some(ReadType::NamedTable(table)) => {
                let Some(declared) = &read.base_schema else { return Err(complete::lacks("a read", "schema")) };
                let declared = theirs::from_substrait_named_struct(self, declared)?;
                self.table(table, &declared).await?
            }
            Some(ReadType::VirtualTable(table)) => {
                check_rows(table)?;
                let bare = ReadRel { filter: None, projection: None, ..read.clone() };
                theirs::from_read_rel(self, &bare).await?
            }
            Some(ReadType::LocalFiles(_)) => {
                return not_impl_err!(
                    "reading files by a Substrait plan is not supported; make them a table with CREATE EXTERNAL TABLE and read that"
                );
            }
            Some(_) => {
                return not_impl_err!("a read of the Substrait plan is of a kind that is not supported; read a table");
            }
            None => return Err(complete::lacks("a read", "table")),
        };
        let plan = match &read.filter {
            Some(filter) => {
                let filter = self.consume_expression(filter, plan.schema()).await?;
                LogicalPlanBuilder::from(plan).filter(filter)?.build()?
            }
            None => plan,
        };
        self.masked(plan, read.projection.as_ref())
    }

    async fn consume_field_reference(&self, reference: &FieldReference, input: &DFSchema) -> Result<Expr> {
        if let Some(ReferenceType::DirectReference(direct)) = &reference.reference_type
            && let Some(reference_segment::ReferenceType::StructField(field)) = &direct.reference_type
        {
            let count = match &reference.root_type {
                Some(RootType::OuterReference(outer)) => {
                    let steps = usize::try_from(outer.steps_out).unwrap_or(usize::MAX);
                    self.get_outer_schema(steps).map_or(0, |schema| schema.fields().len())
                }
                _ => input.fields().len(),
            };
            complete::position(field.field, count, "the column")?;
        }
        theirs::from_field_reference(self, reference, input).await
    }

    async fn consume_literal(&self, literal: &Literal) -> Result<Expr> {
        complete::literal(literal)?;
        theirs::from_literal(self, literal).await
    }

    async fn consume_if_then(&self, choice: &IfThen, input: &DFSchema) -> Result<Expr> {
        complete::if_then(choice)?;
        theirs::from_if_then(self, choice, input).await
    }

    async fn consume_singular_or_list(&self, list: &SingularOrList, input: &DFSchema) -> Result<Expr> {
        complete::needs(list.value.as_ref(), "a list of alternatives", "value")?;
        theirs::from_singular_or_list(self, list, input).await
    }

    async fn consume_cast(&self, cast: &Cast, input: &DFSchema) -> Result<Expr> {
        complete::needs(cast.input.as_ref(), "a cast", "input")?;
        theirs::from_cast(self, cast, input).await
    }

    async fn consume_scalar_function(&self, function: &ScalarFunction, input: &DFSchema) -> Result<Expr> {
        complete::options(&function.options)?;
        theirs::from_scalar_function(self, function, input).await
    }

    async fn consume_window_function(&self, window: &WindowFunction, input: &DFSchema) -> Result<Expr> {
        complete::sorts(&window.sorts)?;
        complete::options(&window.options)?;
        theirs::from_window_function(self, window, input).await
    }

    fn push_outer_schema(&self, schema: Arc<DFSchema>) {
        self.outer().push(schema);
    }

    fn pop_outer_schema(&self) {
        self.outer().pop();
    }

    fn get_outer_schema(&self, steps_out: usize) -> Option<Arc<DFSchema>> {
        let outer = self.outer();
        let at = outer.len().checked_sub(steps_out).filter(|_| steps_out > 0)?;
        outer.get(at).cloned()
    }
}

/// # Errors
/// A row whose literals cannot be read, or is not as long as the others.
fn check_rows(table: &VirtualTable) -> Result<()> {
    #[expect(deprecated, reason = "older producers still write it")]
    let rows = &table.values;
    rows.iter().flat_map(|row| &row.fields).try_for_each(complete::literal)
}

/// What the relation has in common with others.
///
/// # Errors
/// It is of a kind that is not supported.
fn supported(rel: &RelType) -> Result<Common<'_>> {
    let name = match rel {
        RelType::Read(rel) => return Ok((rel.common.as_ref(), rel.advanced_extension.as_ref())),
        RelType::Filter(rel) => return Ok((rel.common.as_ref(), rel.advanced_extension.as_ref())),
        RelType::Fetch(rel) => return Ok((rel.common.as_ref(), rel.advanced_extension.as_ref())),
        RelType::Aggregate(rel) => return Ok((rel.common.as_ref(), rel.advanced_extension.as_ref())),
        RelType::Sort(rel) => return Ok((rel.common.as_ref(), rel.advanced_extension.as_ref())),
        RelType::Join(rel) => return Ok((rel.common.as_ref(), rel.advanced_extension.as_ref())),
        RelType::Project(rel) => return Ok((rel.common.as_ref(), rel.advanced_extension.as_ref())),
        RelType::Set(rel) => return Ok((rel.common.as_ref(), rel.advanced_extension.as_ref())),
        RelType::Cross(rel) => return Ok((rel.common.as_ref(), rel.advanced_extension.as_ref())),
        RelType::Write(_) | RelType::Update(_) | RelType::Ddl(_) => {
            return not_impl_err!(
                "a Substrait plan that writes is not supported; send INSERT, UPDATE, DELETE or DDL as SQL"
            );
        }
        RelType::ExtensionLeaf(_) | RelType::ExtensionSingle(_) | RelType::ExtensionMulti(_) => "extension",
        RelType::HashJoin(_) => "hash join",
        RelType::MergeJoin(_) => "merge join",
        RelType::NestedLoopJoin(_) => "nested loop join",
        RelType::Window(_) => "consistent partition window",
        RelType::Exchange(_) => "exchange",
        RelType::Expand(_) => "expand",
        RelType::Reference(_) => "reference",
    };
    not_impl_err!(
        "a Substrait plan with a relation of the kind \"{name}\" is not supported; send a logical plan without it"
    )
}
