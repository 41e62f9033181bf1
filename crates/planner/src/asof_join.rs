//! `a ASOF JOIN b MATCH_CONDITION (a.ts >= b.ts) ON a.key = b.key`: each row of `a` with the one row of `b` that is
//! nearest in time among those that match, or with NULLs if none does.
//!
//! No operator of its own: the rows of both sides are laid into one order, keys first, then time, and each left row
//! looks up to the last right row before it. In the words of the plan: UNION ALL of both sides, a running count of the right
//! rows within the key, and the first row of each count. Cost: two sorts of both sides together, never their product.
//! Of right rows that are equally near, the one with the greatest columns (in their order) wins.
//!
//! Where one partition takes all rows (no key, or one thread) they are numbered first, which keeps DataFusion from sorting
//! each side below the union. It would forget there what it knew of a side's columns: a right row's time is also one of
//! its columns, so a sort of the right side leaves that column out as sorted already; the union knows nothing of the two
//! being equal, and the plan fails its own check of the order that the window asks for.

use datafusion::common::metadata::FieldMetadata;
use datafusion::common::{Column, DFSchema, DFSchemaRef, ScalarValue, TableReference, plan_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::functions_window::nth_value::first_value_udwf;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::planner::RelationPlannerContext;
use datafusion::logical_expr::type_coercion::binary::comparison_coercion;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprFunctionExt, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, SortExpr, WindowFrame,
    WindowFrameBound, WindowFrameUnits, WindowFunctionDefinition, cast, lit,
};
use datafusion::sql::sqlparser::ast::{Join, JoinConstraint, JoinOperator, ObjectName, TableFactor, TableWithJoins};

use crate::rewrite::unsupported;
use crate::rules::exact_times::comparable;

const USAGE: &str = "write FROM a ASOF JOIN b MATCH_CONDITION (a.ts >= b.ts) [ON a.key = b.key]";

/// Puts each ASOF join of a FROM clause, with all that is joined before it, into parentheses: only as a relation
/// of its own does the planner hand it to us. `is_nested`: the joins stand in parentheses already.
pub(crate) fn nest(joined: &mut TableWithJoins, is_nested: bool) {
    while let Some(at) = joined.joins.iter().position(is_asof_join) {
        if is_nested && joined.joins.len() == 1 {
            return;
        }
        let rest = joined.joins.split_off(at + 1);
        let asof = joined.joins.split_off(at);
        let before = std::mem::take(&mut joined.joins);
        let first = joined.relation.clone();
        let left = if before.is_empty() { first } else { parenthesized(first, before) };
        joined.relation = parenthesized(left, asof);
        joined.joins = rest;
    }
}

fn parenthesized(relation: TableFactor, joins: Vec<Join>) -> TableFactor {
    TableFactor::NestedJoin { table_with_joins: Box::new(TableWithJoins { relation, joins }), alias: None }
}

fn is_asof_join(join: &Join) -> bool {
    matches!(join.join_operator, JoinOperator::AsOf { .. })
}

/// True for one ASOF join in parentheses.
pub(crate) fn is_asof(joined: &TableWithJoins) -> bool {
    matches!(joined.joins.as_slice(), [join] if is_asof_join(join))
}

/// Plans one ASOF join.
///
/// # Errors
/// A condition that is not one comparison of both sides, an ON that is not equalities, NATURAL.
pub(crate) fn plan(joined: TableWithJoins, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    let TableWithJoins { relation, mut joins } = joined;
    let Some(Join { relation: other, join_operator: JoinOperator::AsOf { match_condition, constraint }, .. }) =
        joins.pop()
    else {
        return plan_err!("an ASOF join joins two tables; {USAGE}");
    };
    if matches!(other, TableFactor::Derived { lateral: true, .. } | TableFactor::Function { lateral: true, .. }) {
        return unsupported("LATERAL behind ASOF JOIN is not supported; join a table or a query of its own");
    }
    let (left, right) = (context.plan(relation)?, context.plan(other)?);
    let both = left.schema().join(right.schema())?;
    let condition = context.sql_to_expr(match_condition, &both)?;
    let sides = Sides { left: left.schema(), right: right.schema() };
    let time = sides.comparison(&condition)?;
    let Some(order) = Order::of(time.op) else {
        return plan_err!("MATCH_CONDITION compares with >=, >, <= or <, not with {}; {USAGE}", time.op);
    };
    if !is_ordered(&time.left.get_type(sides.left)?) {
        return plan_err!("MATCH_CONDITION compares times or numbers, not {}; {USAGE}", time.left);
    }
    let (keys, hidden) = match constraint {
        JoinConstraint::None => (vec![], vec![]),
        JoinConstraint::On(on) => (sides.keys(context.sql_to_expr(on, &both)?)?, vec![]),
        JoinConstraint::Using(columns) => sides.using(&columns, &*context)?,
        JoinConstraint::Natural => {
            return unsupported(&format!("NATURAL of ASOF JOIN is not supported; {USAGE}"));
        }
    };
    let options = context.context_provider().options();
    let is_dealt = options.execution.target_partitions > 1 && options.optimizer.repartition_windows;
    let rows = Rows { is_one_partition: keys.is_empty() || !is_dealt, keys, time, order };
    let matched = rows.matched(&left, &right)?;
    rows.outputs(matched, left.schema(), right.schema(), &hidden)
}

/// How the columns of one side are called, by their place.
type Naming = fn(usize) -> String;

/// The columns of both sides.
struct Sides<'a> {
    left: &'a DFSchemaRef,
    right: &'a DFSchemaRef,
}

/// A comparison with the left side's expression first, both of one type.
struct Comparison {
    left: Expr,
    op: Operator,
    right: Expr,
}

impl Sides<'_> {
    /// What ON says: equalities of both sides.
    fn keys(&self, on: Expr) -> Result<Vec<Comparison>> {
        let mut keys = vec![];
        for condition in split_conjunction_owned(on) {
            let key = self.comparison(&condition)?;
            if key.op != Operator::Eq {
                return unsupported(&format!(
                    "ON of ASOF JOIN holds equalities of both sides, not {condition}; filter the sides in queries of their own"
                ));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    /// What USING says, and the places of the right side's columns in it: the join has these columns once, those of the
    /// left side, which no row is without.
    fn using(
        &self,
        columns: &[ObjectName],
        context: &dyn RelationPlannerContext,
    ) -> Result<(Vec<Comparison>, Vec<usize>)> {
        let (mut keys, mut hidden) = (vec![], vec![]);
        for name in columns {
            let [part] = name.0.as_slice() else {
                return plan_err!("USING names columns of both sides of an ASOF JOIN, not {name}");
            };
            let Some(ident) = part.as_ident() else {
                return plan_err!("USING names columns of both sides of an ASOF JOIN, not {name}");
            };
            let name = context.normalize_ident(ident.clone());
            let (left, right) = (only(self.left, &name, "left")?, only(self.right, &name, "right")?);
            hidden.push(self.right.index_of_column(&right)?);
            keys.push(self.comparison(&Expr::Column(left).eq(Expr::Column(right)))?);
        }
        Ok((keys, hidden))
    }

    fn comparison(&self, condition: &Expr) -> Result<Comparison> {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else {
            return plan_err!("{condition} is no comparison of the two sides of an ASOF JOIN; {USAGE}");
        };
        let (left, op, right) = match (self.is_left(left)?, self.is_left(right)?) {
            (Some(true), Some(false)) => (left, *op, right),
            (Some(false), Some(true)) => match op.swap() {
                Some(op) => (right, op, left),
                None => return plan_err!("{condition} is no comparison; {USAGE}"),
            },
            _ => {
                return plan_err!(
                    "{condition} does not compare a column of the one side of an ASOF JOIN with one of the other; {USAGE}"
                );
            }
        };
        let (left, right) = (left.as_ref().clone(), right.as_ref().clone());
        let types = (left.get_type(self.left)?, right.get_type(self.right)?);
        if let Some((left, right)) = comparable((&left, &types.0), (&right, &types.1)) {
            return Ok(Comparison { left, op, right });
        }
        let Some(common) = comparison_coercion(&types.0, &types.1) else {
            return plan_err!("{left} and {right} cannot be compared; cast one of them");
        };
        let brought = |expr: Expr, is: bool| if is { expr } else { cast(expr, common.clone()) };
        Ok(Comparison { left: brought(left, types.0 == common), op, right: brought(right, types.1 == common) })
    }

    /// The side whose columns alone the expression reads; `None` if there is no such side.
    fn is_left(&self, expr: &Expr) -> Result<Option<bool>> {
        if expr.contains_outer() || expr.is_volatile() {
            return unsupported(&format!("{expr} cannot stand in an ASOF JOIN; {USAGE}"));
        }
        let columns = expr.column_refs();
        let all_in = |schema: &DFSchema| {
            !columns.is_empty() && columns.iter().all(|column| schema.maybe_index_of_column(column).is_some())
        };
        Ok(match (all_in(self.left), all_in(self.right)) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        })
    }
}

/// The one column of this name.
fn only(schema: &DFSchema, name: &str, side: &str) -> Result<Column> {
    let mut found = schema.columns_with_unqualified_name(name);
    match (found.pop(), found.is_empty()) {
        (Some(column), true) => Ok(column),
        (None, _) => plan_err!("there is no column \"{name}\" on the {side} side of an ASOF JOIN with USING ({name})"),
        (Some(_), false) => plan_err!(
            "column \"{name}\" is ambiguous on the {side} side of an ASOF JOIN with USING ({name}); write ON and name the tables"
        ),
    }
}

fn is_ordered(data_type: &arrow::datatypes::DataType) -> bool {
    use arrow::datatypes::DataType::{Binary, Boolean, LargeUtf8, Utf8, Utf8View};
    data_type.is_primitive() || matches!(data_type, Utf8 | LargeUtf8 | Utf8View | Boolean | Binary)
}

/// How the rows of both sides are laid into one order, so that the nearest match of a left row is the last right row
/// before it.
#[derive(Clone, Copy)]
struct Order {
    /// Earlier times come first.
    is_ascending: bool,
    /// At one time, right rows come first: they match.
    is_inclusive: bool,
}

impl Order {
    fn of(op: Operator) -> Option<Self> {
        let (is_ascending, is_inclusive) = match op {
            Operator::GtEq => (true, true),
            Operator::Gt => (true, false),
            Operator::LtEq => (false, true),
            Operator::Lt => (false, false),
            _ => return None,
        };
        Some(Self { is_ascending, is_inclusive })
    }
}

/// The column that is 1 in a right row and 0 in a left one.
const IS_RIGHT: &str = "_is_right";
const TIME: &str = "_time";
/// The number of a row, where one partition takes all rows.
const POSITION: &str = "_position";
/// How many right rows of the key there are up to a row, itself included.
const COUNT: &str = "_count";

fn key_name(at: usize) -> String {
    format!("_key{at}")
}

fn left_name(at: usize) -> String {
    format!("_left{at}")
}

fn right_name(at: usize) -> String {
    format!("_right{at}")
}

fn column(name: impl Into<String>) -> Expr {
    Expr::Column(Column::from_name(name))
}

/// What the rows of both sides are brought together by.
struct Rows {
    keys: Vec<Comparison>,
    time: Comparison,
    order: Order,
    /// One partition takes all rows, instead of the rows of its keys.
    is_one_partition: bool,
}

impl Rows {
    /// Left rows under [`left_name`] with the columns of their match under the names of windows over [`right_name`].
    fn matched(&self, left: &LogicalPlan, right: &LogicalPlan) -> Result<LogicalPlan> {
        let left_rows = LogicalPlanBuilder::from(left.clone()).project(self.rows(left, right, false)?)?;
        // A NULL matches nothing. On the left it sorts before all right rows of its key, or its key has none.
        let known = self.keys.iter().chain([&self.time]).map(|comparison| comparison.right.clone().is_not_null());
        let mut right_rows = LogicalPlanBuilder::from(right.clone());
        if let Some(known) = conjunction(known) {
            right_rows = right_rows.filter(known)?;
        }
        let right_rows = right_rows.project(self.rows(left, right, true)?)?.build()?;
        let mut all = left_rows.union(right_rows)?.build()?;
        if self.is_one_partition {
            all = numbered(all)?;
        }

        let count = self.count(right.schema())?;
        let counted = LogicalPlanBuilder::window_plan(all, vec![count.clone()])?;
        let mut outputs: Vec<Expr> = vec![column(count.schema_name().to_string()).alias(COUNT)];
        let own = counted.schema().columns().into_iter().map(Expr::Column);
        let name_of_count = count.schema_name().to_string();
        outputs.extend(own.filter(|expr| !matches!(expr, Expr::Column(column) if column.name == name_of_count)));
        let counted = LogicalPlanBuilder::from(counted).project(outputs)?.build()?;

        let firsts = (0..right.schema().fields().len()).map(|at| self.first(at)).collect::<Result<Vec<_>>>()?;
        let matched = LogicalPlanBuilder::window_plan(counted, firsts)?;
        LogicalPlanBuilder::from(matched).filter(column(IS_RIGHT).eq(lit(0_i64)))?.build()
    }

    /// The rows of one side in the form that both have: keys, time, side, the columns of the left side, those of the
    /// right side; the other side's are NULL.
    fn rows(&self, left: &LogicalPlan, right: &LogicalPlan, is_right: bool) -> Result<Vec<Expr>> {
        let own = |comparison: &Comparison| match is_right {
            true => comparison.right.clone(),
            false => comparison.left.clone(),
        };
        let mut outputs: Vec<Expr> =
            self.keys.iter().enumerate().map(|(at, key)| own(key).alias(key_name(at))).collect();
        outputs.push(own(&self.time).alias(TIME));
        outputs.push(lit(i64::from(is_right)).alias(IS_RIGHT));
        let sides: [(&LogicalPlan, Naming, bool); 2] = [(left, left_name, !is_right), (right, right_name, is_right)];
        for (plan, name, is_own) in sides {
            for (at, (qualifier, field)) in plan.schema().iter().enumerate() {
                let value = match is_own {
                    true => Expr::Column(Column::new(qualifier.cloned(), field.name())),
                    false => lit(ScalarValue::try_from(field.data_type())?),
                };
                outputs.push(value.alias(name(at)));
            }
        }
        Ok(outputs)
    }

    fn key_columns(&self) -> Vec<Expr> {
        (0..self.keys.len()).map(|at| column(key_name(at))).collect()
    }

    /// The running count of right rows within a key.
    fn count(&self, right: &DFSchema) -> Result<Expr> {
        let mut order = vec![
            SortExpr::new(column(TIME), self.order.is_ascending, true),
            SortExpr::new(column(IS_RIGHT), !self.order.is_inclusive, true),
        ];
        let fields = right.fields().iter().enumerate().filter(|(_, field)| is_ordered(field.data_type()));
        order.extend(fields.map(|(at, _)| SortExpr::new(column(right_name(at)), true, true)));
        if self.is_one_partition {
            // Last, where it decides among equal rows alone: a number that nobody asks for is not made.
            order.push(SortExpr::new(column(POSITION), true, true));
        }
        let sum = WindowFunction::new(WindowFunctionDefinition::AggregateUDF(sum_udaf()), vec![column(IS_RIGHT)]);
        windowed(sum, self.key_columns(), order)
    }

    /// A column of the right row that begins the rows of one count.
    fn first(&self, at: usize) -> Result<Expr> {
        let mut parts = self.key_columns();
        parts.push(column(COUNT));
        let order = vec![SortExpr::new(column(IS_RIGHT), false, false)];
        let definition = WindowFunctionDefinition::WindowUDF(first_value_udwf());
        windowed(WindowFunction::new(definition, vec![column(right_name(at))]), parts, order)
    }

    /// The columns of both sides under their own names, without those of the right side at the `hidden` places.
    fn outputs(
        &self,
        matched: LogicalPlan,
        left: &DFSchema,
        right: &DFSchema,
        hidden: &[usize],
    ) -> Result<LogicalPlan> {
        let mut outputs = Vec::with_capacity(left.fields().len() + right.fields().len());
        for (at, (qualifier, field)) in left.iter().enumerate() {
            outputs.push(named(column(left_name(at)), qualifier, field));
        }
        for (at, (qualifier, field)) in right.iter().enumerate().filter(|(at, _)| !hidden.contains(at)) {
            outputs.push(named(column(self.first(at)?.schema_name().to_string()), qualifier, field));
        }
        LogicalPlanBuilder::from(matched).project(outputs)?.build()
    }
}

/// The same rows, each with its number in [`POSITION`]: one stream of them, in whatever order they come.
fn numbered(rows: LogicalPlan) -> Result<LogicalPlan> {
    let rows = LogicalPlanBuilder::window_plan(rows, vec![row_number()])?;
    let mut outputs: Vec<Expr> = rows.schema().columns().into_iter().map(Expr::Column).collect();
    if let Some(number) = outputs.pop() {
        outputs.push(number.alias(POSITION));
    }
    LogicalPlanBuilder::from(rows).project(outputs)?.build()
}

fn windowed(function: WindowFunction, parts: Vec<Expr>, order: Vec<SortExpr>) -> Result<Expr> {
    let frame = WindowFrame::new_bounds(
        WindowFrameUnits::Rows,
        WindowFrameBound::Preceding(ScalarValue::UInt64(None)),
        WindowFrameBound::CurrentRow,
    );
    Expr::from(function).partition_by(parts).order_by(order).window_frame(frame).build()
}

/// The expression as the column that it was: what its metadata says (a vector of bits) is lost in a union.
fn named(expr: Expr, qualifier: Option<&TableReference>, field: &arrow::datatypes::Field) -> Expr {
    let metadata = (!field.metadata().is_empty()).then(|| FieldMetadata::new_from_field(field));
    expr.alias_qualified_with_metadata(qualifier.cloned(), field.name(), metadata)
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::parser::Parser;

    use crate::rewrite::rewrite;

    #[test]
    fn an_asof_join_is_a_relation_of_its_own() {
        for (sql, nested) in [
            (
                "SELECT * FROM a ASOF JOIN b MATCH_CONDITION (a.t >= b.t)",
                "SELECT * FROM (a ASOF JOIN b MATCH_CONDITION (a.t >= b.t))",
            ),
            (
                "SELECT * FROM (a ASOF JOIN b MATCH_CONDITION (a.t >= b.t)) JOIN c ON true",
                "SELECT * FROM (a ASOF JOIN b MATCH_CONDITION (a.t >= b.t)) JOIN c ON true",
            ),
            (
                "SELECT * FROM a JOIN c ON true ASOF JOIN b MATCH_CONDITION (a.t >= b.t) JOIN d ON true",
                "SELECT * FROM ((a JOIN c ON true) ASOF JOIN b MATCH_CONDITION (a.t >= b.t)) JOIN d ON true",
            ),
        ] {
            let mut parsed = Parser::parse_sql(&crate::dialect::SagittaDialect, sql).unwrap_or_default();
            assert!(rewrite(&mut parsed).is_ok(), "{sql}");
            assert_eq!(parsed.first().map(ToString::to_string).as_deref(), Some(nested));
        }
    }
}
