//! From the words of a change to its plan. Every statement becomes one SELECT whose expressions are then put together,
//! row by row: what happens to the row, where it is, what its columns become, and what RETURNING says of it.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, TableReference};
use datafusion::datasource::empty::EmptyTable;
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::Case;
use datafusion::logical_expr::{
    Expr, ExprSchemable, Extension, LogicalPlan, LogicalPlanBuilder, Projection, Subquery, cast, lit,
};
use datafusion::sql::sqlparser::ast::{self, SelectItem, TableWithJoins};
use operators::change::{Again, GatherOptions, Gathering};
use planner::change::{ACTION, Action, Change, ROW};
use planner::fetch_rows::FetchRows;
use planner::resolve::{ROW_ADDRESS, SearchableTable};
use planner::vector_type::VectorType;
use planner::{Planner, convert_to};
use storage::{Snapshot, TableEntry};

use super::names::{Target, Value, alone, own_factor, own_relation, select, tidy};
use crate::insert::refuse_open_parameters;
use crate::resolver::StatementTables;
use crate::{Error, Result, ScalarValue};

/// The target with its row addresses, among the names of a change.
pub(crate) const TARGET: &str = "target";
/// The rows that RETURNING speaks of.
const RETURNED: &str = "returned";
/// The column that says which branch a row takes.
const CLAUSE: &str = "change.clause";
/// The column that says that a row has a source, where a join leaves that open.
pub(crate) const SOURCE_FLAG: &str = "change.source";

/// What a statement says, in the parts that all of them share.
pub(crate) struct ChangeQuery {
    pub(crate) operation: &'static str,
    pub(crate) from: Vec<TableWithJoins>,
    pub(crate) selection: Option<ast::Expr>,
    /// Rows of the table are in FROM; only new ones if not.
    pub(crate) has_target: bool,
    /// The relation that carries [`SOURCE_FLAG`].
    pub(crate) flagged: Option<String>,
    /// What may happen to a row; the first that applies does.
    pub(crate) branches: Vec<Branch>,
    pub(crate) again: Again,
    pub(crate) returning: Option<Vec<SelectItem>>,
}

/// Which rows of a join a branch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// All.
    All,
    /// Those with a row of the target and one of the source.
    Matched,
    /// Those without a row of the target.
    WithoutTarget,
    /// Those without a row of the source.
    WithoutSource,
}

/// One thing that may happen to a row.
pub(crate) struct Branch {
    pub(crate) rows: Rows,
    pub(crate) when: Option<ast::Expr>,
    /// `None`: nothing happens.
    pub(crate) action: Option<Action>,
    /// For an insert or an update, what each column of the table gets.
    pub(crate) values: Vec<Value>,
}

/// The table of a statement, at one snapshot, and what it is planned with.
pub(crate) struct Scope<'a> {
    pub(crate) target: Target,
    pub(crate) entry: TableEntry,
    pub(crate) fields: Vec<FieldRef>,
    pub(crate) tables: &'a StatementTables,
    pub(crate) state: &'a SessionState,
    pub(crate) parameters: &'a [ScalarValue],
    table: Arc<dyn SearchableTable>,
    snapshot: Snapshot,
    key: Vec<String>,
}

/// A change that is ready to run.
pub(crate) struct Planned {
    pub(crate) operation: &'static str,
    pub(crate) plan: LogicalPlan,
    pub(crate) sink: Arc<Gathering>,
    /// The columns of vectors that every row that is updated keeps.
    pub(crate) kept: Vec<String>,
}

/// The columns of vectors that no update gives another value.
fn kept_vectors(fields: &[FieldRef], branches: &[Branch]) -> Vec<String> {
    let is_kept = |at: usize| {
        let mut updates = branches.iter().filter(|branch| branch.action == Some(Action::Update));
        updates.all(|branch| matches!(branch.values.get(at), Some(Value::Kept)))
    };
    let vectors = fields.iter().enumerate().filter(|(at, field)| VectorType::of_field(field).is_some() && is_kept(*at));
    vectors.map(|(_, field)| field.name().clone()).collect()
}

/// The expressions of a branch over the rows of FROM.
struct Branched {
    rows: Rows,
    when: Option<Expr>,
    action: Option<Action>,
    values: Vec<Expr>,
}

impl<'a> Scope<'a> {
    /// Pins the snapshot: wherever the statement names the table, it reads this one.
    pub(crate) async fn new(
        target: Target,
        entry: TableEntry,
        snapshot: Snapshot,
        tables: &'a StatementTables,
        state: &'a SessionState,
        parameters: &'a [ScalarValue],
    ) -> Result<Self> {
        let table = tables.table_of(&target.name, &entry, snapshot.clone(), true)?;
        tables.pin(target.name.clone(), table.clone().into_provider()).await;
        tables.pin(own_relation(TARGET), table.with_row_addresses()).await;
        let fields = snapshot.schema().fields().to_vec();
        Ok(Self {
            target,
            entry,
            fields,
            tables,
            state,
            parameters,
            table: Arc::new(table),
            key: snapshot.primary_key(),
            snapshot,
        })
    }

    /// The columns of the table's primary key in order.
    pub(crate) fn key(&self) -> &[String] {
        &self.key
    }

    pub(crate) fn planner(&self) -> Planner<'_> {
        Planner { state: self.state, resolver: self.tables }
    }

    fn alias(&self) -> TableReference {
        TableReference::bare(self.target.alias.clone())
    }

    fn own_column(&self, name: &str) -> Expr {
        Expr::Column(Column::new(Some(self.alias()), name))
    }

    /// The target in FROM.
    pub(crate) fn target_factor(&self) -> ast::TableFactor {
        own_factor(TARGET, &self.target.alias)
    }

    /// The plan of a change, down to the sink.
    pub(crate) async fn plan(&self, query: ChangeQuery) -> Result<Planned> {
        let ChangeQuery { operation, from, selection, has_target, flagged, branches, again, returning } = query;
        let returning = match returning {
            Some(items) => Some(self.returning(items).await?),
            None => None,
        };
        let shape = Shape { has_target, flagged, keeps_old: returning.is_some() };
        let kept = kept_vectors(&self.fields, &branches);
        let (rows, branches) = self.rows(from, selection, branches, &shape).await?;
        let writes = branches.iter().any(|branch| matches!(branch.action, Some(Action::Insert | Action::Update)));
        let values = self.values(rows, branches, &shape, writes || returning.is_some())?;
        let (exprs, names) = returning.map_or((vec![], None), |returning| (returning.exprs, Some(returning.names)));
        let input = self.outputs(values, writes, exprs)?;
        let new_rows = writes.then(|| self.snapshot.schema());
        let sink = Arc::new(Gathering::new(GatherOptions { new_rows, returning: names, again }));
        let change = Change::try_new(operation, self.target.name.to_string(), Arc::clone(&sink) as _, input)?;
        let plan = LogicalPlan::Extension(Extension { node: Arc::new(change) });
        Ok(Planned { operation, plan, sink, kept })
    }

    /// The rows of FROM and WHERE with all columns that are used, and the expressions of each branch over them.
    async fn rows(
        &self,
        from: Vec<TableWithJoins>,
        selection: Option<ast::Expr>,
        branches: Vec<Branch>,
        shape: &Shape,
    ) -> Result<(LogicalPlan, Vec<Branched>)> {
        // The first item stands for those that have none: a query selects something.
        let mut items = Items { list: vec![item(ast::Expr::Value(ast::Value::Null.into()), 0)] };
        let places: Vec<Places> = branches.iter().map(|branch| items.places(branch)).collect();
        let mut query = select(items.list, from, selection)?;
        tidy(&mut query, &self.target)?;
        let plan = self.planner().query(query, self.parameters).await?;
        refuse_open_parameters(&plan)?;
        let LogicalPlan::Projection(projection) = &plan else { return Err(misplaced()) };
        let input = projection.input.as_ref();
        if matches!(input, LogicalPlan::Aggregate(_) | LogicalPlan::Window(_) | LogicalPlan::Unnest(_)) {
            return Err(misplaced());
        }
        let exprs: Vec<Expr> = projection.expr.iter().cloned().map(Expr::unalias).collect();
        let mut branched = vec![];
        for (branch, places) in branches.into_iter().zip(places) {
            self.check_reach(&branch, &places, &exprs)?;
            branched.push(self.branched(branch, &places, &exprs, input.schema(), shape)?);
        }
        let late = self.late_columns(&plan, input, &branched, shape)?;
        let rows = self.fetched(input.clone(), late)?;
        Ok((rows, branched))
    }

    /// # Errors
    /// A branch for rows without a target that names the target, or one without a source that names the source.
    fn check_reach(&self, branch: &Branch, places: &Places, exprs: &[Expr]) -> Result<()> {
        let (clause, of_target) = match branch.rows {
            Rows::All | Rows::Matched => return Ok(()),
            Rows::WithoutTarget => ("NOT MATCHED", false),
            Rows::WithoutSource => ("NOT MATCHED BY SOURCE", true),
        };
        let alias = self.alias();
        let is_missing = |column: &Column| (column.relation.as_ref() == Some(&alias)) != of_target;
        for at in places.all() {
            if let Some(column) = columns_of(&exprs[at])?.into_iter().find(is_missing) {
                return Err(Error::invalid(format!(
                    "WHEN {clause} has no row that \"{}\" could be of; name columns of the other table",
                    column.flat_name()
                )));
            }
        }
        Ok(())
    }

    fn branched(
        &self,
        branch: Branch,
        places: &Places,
        exprs: &[Expr],
        schema: &DFSchema,
        shape: &Shape,
    ) -> Result<Branched> {
        let Branch { rows, action, values, .. } = branch;
        let when = places.when.map(|at| exprs[at].clone());
        let values = match action {
            Some(Action::Insert | Action::Update) => {
                let columns = values.iter().zip(&places.values).zip(&self.fields);
                let value = |((value, at), field): ((&Value, &Option<usize>), &FieldRef)| match (value, at) {
                    (Value::Kept, _) | (_, None) => Ok(self.own_column(field.name())),
                    (Value::Given(_), Some(at)) => converted(exprs[*at].clone(), field, schema),
                    (Value::Ready(_), Some(at)) => of_type(exprs[*at].clone(), field, schema),
                };
                columns.map(value).collect::<Result<Vec<Expr>>>()?
            }
            Some(Action::Delete) if shape.keeps_old => {
                self.fields.iter().map(|field| self.own_column(field.name())).collect()
            }
            _ => self.fields.iter().map(null_of).collect::<Result<Vec<Expr>>>()?,
        };
        Ok(Branched { rows, when, action, values })
    }

    /// The target's columns that are fetched after FROM and WHERE, for the rows that are left; none if the scan reads
    /// everything in one go.
    fn late_columns(
        &self,
        plan: &LogicalPlan,
        input: &LogicalPlan,
        branches: &[Branched],
        shape: &Shape,
    ) -> Result<Vec<FieldRef>> {
        if !shape.has_target || is_plain(input) {
            return Ok(vec![]);
        }
        let alias = self.alias();
        let early = names_in(input, &alias)?;
        let mut used = names_in(plan, &alias)?;
        for expr in branches.iter().flat_map(|branch| &branch.values) {
            let columns = columns_of(expr)?.into_iter().filter(|column| column.relation.as_ref() == Some(&alias));
            used.extend(columns.map(|column| column.name));
        }
        let is_late = |field: &&FieldRef| used.contains(field.name()) && !early.contains(field.name());
        let nullable = |field: &FieldRef| {
            let there = input.schema().qualified_field_with_name(Some(&alias), field.name());
            let is_nullable = there.is_ok_and(|(_, field)| field.is_nullable());
            Arc::new(field.as_ref().clone().with_nullable(is_nullable))
        };
        Ok(self.fields.iter().filter(is_late).map(nullable).collect())
    }

    /// The same rows, with `late` columns of the target read by address instead of by the scan.
    fn fetched(&self, rows: LogicalPlan, late: Vec<FieldRef>) -> Result<LogicalPlan> {
        if late.is_empty() {
            return Ok(rows);
        }
        let alias = self.alias();
        let is_late = |column: &Column| {
            column.relation.as_ref() == Some(&alias) && late.iter().any(|field| *field.name() == column.name)
        };
        let kept: Vec<Expr> =
            rows.schema().columns().into_iter().filter(|column| !is_late(column)).map(Expr::Column).collect();
        let input = LogicalPlan::Projection(Projection::try_new(kept, Arc::new(rows))?);
        let address = self.own_column(ROW_ADDRESS);
        let fetch = FetchRows::try_new(alias, Arc::clone(&self.table), address, late, input)?;
        Ok(LogicalPlan::Extension(Extension { node: Arc::new(fetch) }))
    }

    /// Action, address and, where they are wanted, the columns of each row that something happens to.
    fn values(
        &self,
        rows: LogicalPlan,
        branches: Vec<Branched>,
        shape: &Shape,
        with_columns: bool,
    ) -> Result<LogicalPlan> {
        let (rows, branches) = self.chosen(rows, branches, shape)?;
        let codes: Vec<Expr> =
            branches.iter().map(|branch| lit(branch.action.unwrap_or(Action::Repeat).code())).collect();
        let mut outputs = vec![by_clause(codes).unwrap_or_else(|| lit(ScalarValue::Int32(None))).alias(ACTION)];
        outputs.push(match shape.has_target {
            true => self.own_column(ROW_ADDRESS).alias(ROW),
            false => lit(ScalarValue::UInt64(None)).alias(ROW),
        });
        if with_columns {
            for (at, field) in self.fields.iter().enumerate() {
                let value = match by_clause(branches.iter().map(|branch| branch.values[at].clone()).collect()) {
                    Some(value) => value,
                    None => null_of(field)?,
                };
                outputs.push(value.alias_qualified(Some(self.alias()), field.name()));
            }
        }
        Ok(LogicalPlanBuilder::from(rows).project(outputs)?.build()?)
    }

    /// The rows that something happens to, with the number of their branch in [`CLAUSE`] where there are several.
    fn chosen(
        &self,
        rows: LogicalPlan,
        branches: Vec<Branched>,
        shape: &Shape,
    ) -> Result<(LogicalPlan, Vec<Branched>)> {
        if let [only] = branches.as_slice()
            && only.rows == Rows::All
            && only.when.is_none()
        {
            return Ok((rows, branches));
        }
        let mut cases = vec![];
        let mut acting = vec![];
        for branch in branches {
            let condition = self.condition(&branch, shape);
            let number = branch.action.map(|_| acting.len() as i32);
            cases.push((Box::new(condition), Box::new(lit(ScalarValue::Int32(number)))));
            if branch.action.is_some() {
                acting.push(branch);
            }
        }
        let clause = Expr::Case(Case { expr: None, when_then_expr: cases, else_expr: None });
        let mut outputs: Vec<Expr> = rows.schema().columns().into_iter().map(Expr::Column).collect();
        outputs.push(clause.alias(CLAUSE));
        let rows = LogicalPlanBuilder::from(rows).project(outputs)?.filter(clause_column().is_not_null())?.build()?;
        Ok((rows, acting))
    }

    fn condition(&self, branch: &Branched, shape: &Shape) -> Expr {
        let flag = shape
            .flagged
            .as_ref()
            .map(|alias| Expr::Column(Column::new(Some(TableReference::bare(alias.clone())), SOURCE_FLAG)));
        let address = || self.own_column(ROW_ADDRESS);
        let guard = match (branch.rows, flag) {
            (Rows::All, _) => None,
            (Rows::Matched, Some(flag)) => Some(address().is_not_null().and(flag.is_not_null())),
            (Rows::Matched, None) => Some(address().is_not_null()),
            (Rows::WithoutTarget, _) => Some(address().is_null()),
            (Rows::WithoutSource, Some(flag)) => Some(flag.is_null()),
            (Rows::WithoutSource, None) => Some(lit(false)),
        };
        match (guard, branch.when.clone()) {
            (Some(guard), Some(when)) => guard.and(when),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => lit(true),
        }
    }

    /// What the sink takes: action, address, the new rows if any come, what RETURNING says.
    fn outputs(&self, values: LogicalPlan, writes: bool, returning: Vec<Expr>) -> Result<LogicalPlan> {
        if returning.is_empty() {
            return Ok(values);
        }
        let mut outputs = vec![Expr::Column(Column::from_name(ACTION)), Expr::Column(Column::from_name(ROW))];
        if writes {
            outputs.extend(self.fields.iter().map(|field| self.own_column(field.name())));
        }
        outputs.extend(returning.into_iter().enumerate().map(|(at, expr)| expr.alias(format!("returning.{at}"))));
        Ok(LogicalPlanBuilder::from(values).project(outputs)?.build()?)
    }

    /// The expressions of RETURNING over the table's columns, and their names.
    async fn returning(&self, items: Vec<SelectItem>) -> Result<Returning> {
        let nullable = |field: &FieldRef| field.as_ref().clone().with_nullable(true);
        let schema = Arc::new(Schema::new(self.fields.iter().map(nullable).collect::<Vec<Field>>()));
        self.tables.pin(own_relation(RETURNED), Arc::new(EmptyTable::new(schema))).await;
        let mut query = select(items, vec![alone(own_factor(RETURNED, &self.target.alias))], None)?;
        tidy(&mut query, &self.target)?;
        let plan = self.planner().query(query, self.parameters).await?;
        refuse_open_parameters(&plan)?;
        let names = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
        match plan {
            LogicalPlan::Projection(projection)
                if matches!(projection.input.as_ref(), LogicalPlan::SubqueryAlias(_) | LogicalPlan::TableScan(_)) =>
            {
                Ok(Returning { exprs: projection.expr.into_iter().map(Expr::unalias).collect(), names })
            }
            _ => Err(Error::invalid(
                "RETURNING takes expressions of each row; aggregates, window functions and unnest are not among them",
            )),
        }
    }
}

/// What is known of a statement before its expressions are put together.
struct Shape {
    has_target: bool,
    flagged: Option<String>,
    /// The old values of rows that go are asked for.
    keeps_old: bool,
}

struct Returning {
    exprs: Vec<Expr>,
    names: Vec<String>,
}

/// The list of the SELECT under construction.
struct Items {
    list: Vec<SelectItem>,
}

/// Where the expressions of a branch stand in the list.
struct Places {
    when: Option<usize>,
    values: Vec<Option<usize>>,
}

impl Places {
    fn all(&self) -> impl Iterator<Item = usize> {
        self.when.into_iter().chain(self.values.iter().copied().flatten())
    }
}

impl Items {
    fn places(&mut self, branch: &Branch) -> Places {
        let when = branch.when.clone().map(|when| self.push(when));
        let values = branch.values.iter().map(|value| match value {
            Value::Kept => None,
            Value::Given(expr) | Value::Ready(expr) => Some(self.push(expr.clone())),
        });
        Places { when, values: values.collect() }
    }

    fn push(&mut self, expr: ast::Expr) -> usize {
        self.list.push(item(expr, self.list.len()));
        self.list.len() - 1
    }
}

/// Each item has a name of its own: two columns may get the same expression.
fn item(expr: ast::Expr, at: usize) -> SelectItem {
    SelectItem::ExprWithAlias { expr, alias: super::names::ident(&format!("item.{at}")) }
}

fn misplaced() -> Error {
    Error::invalid(
        "aggregates, window functions and unnest cannot stand in a change of rows; put them into a subquery: SET n = (SELECT max(n) FROM t)",
    )
}

fn clause_column() -> Expr {
    Expr::Column(Column::from_name(CLAUSE))
}

/// The expression of the branch that a row takes; the one expression if all are the same, `None` if there is none.
fn by_clause(mut exprs: Vec<Expr>) -> Option<Expr> {
    let last = exprs.pop()?;
    if exprs.iter().all(|expr| *expr == last) {
        return Some(last);
    }
    let cases = exprs.into_iter().zip(0_i32..).map(|(expr, at)| (Box::new(lit(at)), Box::new(expr)));
    let expr = Some(Box::new(clause_column()));
    Some(Expr::Case(Case { expr, when_then_expr: cases.collect(), else_expr: Some(Box::new(last)) }))
}

/// A value brought to the type of its column.
fn converted(value: Expr, field: &FieldRef, schema: &DFSchema) -> Result<Expr> {
    let data_type = value.get_type(schema)?;
    of_type(convert_to(value, &data_type, field)?, field, schema)
}

/// The value with exactly the type of its column: branches are put together only if they have one.
fn of_type(value: Expr, field: &FieldRef, schema: &DFSchema) -> Result<Expr> {
    match value.get_type(schema)? == *field.data_type() {
        true => Ok(value),
        false => Ok(cast(value, field.data_type().clone())),
    }
}

fn null_of(field: &FieldRef) -> Result<Expr> {
    Ok(lit(ScalarValue::try_new_null(field.data_type())?))
}

/// True if the rows are those of one scan whose predicates it can evaluate while it reads: fetching columns
/// afterwards would gain nothing.
fn is_plain(rows: &LogicalPlan) -> bool {
    match rows {
        LogicalPlan::TableScan(_) => true,
        LogicalPlan::SubqueryAlias(alias) => is_plain(&alias.input),
        LogicalPlan::Filter(filter) => {
            let costly = filter.predicate.exists(|expr| Ok(matches!(expr, Expr::ScalarFunction(_)) || has_query(expr)));
            !costly.unwrap_or(true) && is_plain(&filter.input)
        }
        _ => false,
    }
}

fn has_query(expr: &Expr) -> bool {
    subquery_of(expr).is_some()
}

fn subquery_of(expr: &Expr) -> Option<&Subquery> {
    match expr {
        Expr::ScalarSubquery(subquery) => Some(subquery),
        Expr::Exists(exists) => Some(&exists.subquery),
        Expr::InSubquery(list) => Some(&list.subquery),
        Expr::SetComparison(comparison) => Some(&comparison.subquery),
        _ => None,
    }
}

/// All columns that an expression names, those that its subqueries take from outside among them.
fn columns_of(expr: &Expr) -> datafusion::error::Result<Vec<Column>> {
    let mut columns = vec![];
    expr.apply(|expr| {
        match expr {
            Expr::Column(column) | Expr::OuterReferenceColumn(_, column) => columns.push(column.clone()),
            other => {
                let outer = subquery_of(other).map(|subquery| subquery.outer_ref_columns.as_slice());
                columns.extend(outer.unwrap_or_default().iter().filter_map(|expr| match expr {
                    Expr::OuterReferenceColumn(_, column) | Expr::Column(column) => Some(column.clone()),
                    _ => None,
                }));
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(columns)
}

/// The names of a relation's columns that a plan uses. Within subqueries and derived tables, the same name may stand for
/// another relation: only what they take from outside counts.
fn names_in(plan: &LogicalPlan, relation: &TableReference) -> Result<HashSet<String>> {
    let mut names = HashSet::new();
    walk(plan, true, &mut |column: &Column| {
        if column.relation.as_ref() == Some(relation) {
            names.insert(column.name.clone());
        }
    })?;
    Ok(names)
}

/// Hands on the columns that are used in a plan's own scope, and those that are taken from outside anywhere in it.
fn walk(plan: &LogicalPlan, in_scope: bool, used: &mut dyn FnMut(&Column)) -> datafusion::error::Result<()> {
    for expr in plan.expressions() {
        expr.apply(|expr| {
            match expr {
                Expr::Column(column) if in_scope => used(column),
                Expr::OuterReferenceColumn(_, column) => used(column),
                other => {
                    if let Some(subquery) = subquery_of(other) {
                        walk(&subquery.subquery, false, used)?;
                    }
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    let in_scope = in_scope && !matches!(plan, LogicalPlan::SubqueryAlias(_) | LogicalPlan::Subquery(_));
    plan.inputs().into_iter().try_for_each(|input| walk(input, in_scope, used))
}
