//! Relations in FROM: the table functions `vector_search` and `text_search`, tables that are pinned to a moment, ASOF joins, and the
//! guard that refuses every clause on a table that the planner would otherwise parse and drop (samples, hints,
//! partitions).

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, TableReference, plan_datafusion_err, plan_err};
use datafusion::datasource::provider_as_source;
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, SortExpr, TableScan, lit};
use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, FunctionArg, FunctionArgExpr, Ident, ObjectName, TableFactor, Value,
};
use datafusion::sql::sqlparser::parser::Parser;
use kernels::Metric;

use crate::asof_join;
use crate::dialect::SagittaDialect;
use crate::functions::distance;
use crate::pin::{Mark, plain_table};
use crate::resolve::searchable;
use crate::rewrite::unsupported;
use crate::statement::parse_condition;
use crate::text_search::{TEXT_SEARCH_ROWS_MAX, TextSearch};
use crate::vector_search::DISTANCE;
use crate::vector_type::{Element, VectorType};

/// The table function that searches by a vector.
pub const VECTOR_SEARCH: &str = "vector_search";
const VECTOR_USAGE: &str =
    "write vector_search('table', 'column', query, k => 10, metric => 'cosine', filter => 'tenant = 7', version => 42)";

/// The table function that searches by words.
pub const TEXT_SEARCH: &str = "text_search";
const TEXT_USAGE: &str =
    "write text_search('table', 'column', 'some words', k => 10, filter => 'tenant = 7', version => 42)";

/// The table functions of this file.
pub const SEARCHES: [&str; 2] = [VECTOR_SEARCH, TEXT_SEARCH];

/// Rows that a search returns if nothing is said.
const K_DEFAULT: usize = 10;

/// Plans `vector_search(…)` and `text_search(…)`, and guards them and all other relations.
#[derive(Debug)]
pub struct Relations;

impl RelationPlanner for Relations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let call = match &relation {
            TableFactor::Table { name, args: Some(args), alias, .. } => Some((name, &args.args, alias)),
            TableFactor::Function { name, args, alias, .. } => Some((name, args, alias)),
            _ => None,
        };
        let found = call.and_then(|(name, args, alias)| Some((search_named(name)?, args.clone(), alias.clone())));
        let mut relation = relation;
        let recall = guard(&mut relation)?;
        let Some((function, args, alias)) = found else {
            return match recall {
                Some(recall) => plan_with_recall(relation, recall, context),
                None => plan_other(relation, context),
            };
        };
        if recall.is_some() {
            return plan_err!("{function}(…) takes recall as an argument, not behind it; write recall => 0.99");
        }
        let call = Call::read(function, args)?;
        let plan = match function {
            TEXT_SEARCH => plan_text_search(call, context)?,
            _ => Arguments::read(call, context)?.plan(context)?,
        };
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation { plan, alias })))
    }
}

/// A table at a moment of its own, an ASOF join; everything else is the default planner's.
fn plan_other(relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
    match relation {
        TableFactor::Table { name, alias, version: Some(version), .. } => {
            let Some(mark) = Mark::of_version(&version) else {
                // Only the text of a filter comes here unread: the pass over the statement has seen all the rest.
                return unsupported(&format!("{version} is not supported here; name the moment of the table in FROM"));
            };
            let source = context.context_provider().get_table_source(mark.reference())?;
            let name = context.object_name_to_table_reference(name)?;
            let scanned = TableReference::bare(mark.label);
            let plan = LogicalPlanBuilder::scan(scanned, source, None)?.alias(name)?.build()?;
            Ok(RelationPlanning::Planned(Box::new(PlannedRelation { plan, alias })))
        }
        TableFactor::NestedJoin { table_with_joins, alias } if asof_join::is_asof(&table_with_joins) => {
            let plan = asof_join::plan(*table_with_joins, context)?;
            Ok(RelationPlanning::Planned(Box::new(PlannedRelation { plan, alias })))
        }
        other => Ok(RelationPlanning::Original(Box::new(other))),
    }
}

fn search_named(name: &ObjectName) -> Option<&'static str> {
    let name = name.to_string();
    SEARCHES.into_iter().find(|search| name.eq_ignore_ascii_case(search))
}

/// A relation whose searches are to find such a share of the nearest.
fn plan_with_recall(
    mut relation: TableFactor,
    recall: f64,
    context: &mut dyn RelationPlannerContext,
) -> Result<RelationPlanning> {
    let TableFactor::Table { name, alias, .. } = &mut relation else { return plan_other(relation, context) };
    let (name, alias) = (name.clone(), alias.take());
    let plan = with_recall(context.plan(relation)?, recall, &name)?;
    Ok(RelationPlanning::Planned(Box::new(PlannedRelation { plan, alias })))
}

/// The plan of a relation, its tables replaced by such that are searched with this recall.
///
/// # Errors
/// There is no table in it that searches run in.
fn with_recall(relation: LogicalPlan, recall: f64, name: &ObjectName) -> Result<LogicalPlan> {
    let with_recall = relation.transform_down_with_subqueries(|plan| {
        let LogicalPlan::TableScan(scan) = &plan else { return Ok(Transformed::no(plan)) };
        let Some(table) = searchable(&scan.source) else { return Ok(Transformed::no(plan)) };
        let source = provider_as_source(table.with_recall(recall));
        Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source, ..scan.clone() })))
    })?;
    match with_recall.transformed {
        true => Ok(with_recall.data),
        false => plan_err!("recall is of searches in tables of a database, which {name} is not; leave it out"),
    }
}

/// The recall that a hint behind the name asks for.
///
/// # Errors
/// A clause that is parsed but not planned.
fn guard(relation: &mut TableFactor) -> Result<Option<f64>> {
    let sampled = "TABLESAMPLE is not supported; write WHERE random() < 0.1";
    match relation {
        TableFactor::Table {
            name,
            args,
            with_hints,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
            ..
        } => {
            refuse_unbuilt(name, args.is_some())?;
            if sample.is_some() {
                return unsupported(sampled);
            }
            let recall = recall_of_hints(with_hints)?;
            with_hints.clear();
            if *with_ordinality || !partitions.is_empty() || json_path.is_some() || !index_hints.is_empty() {
                return unsupported(&format!(
                    "WITH ORDINALITY, PARTITION, JSON paths and index hints on {name} are not supported; name the table alone"
                ));
            }
            Ok(recall)
        }
        TableFactor::Derived { sample: Some(_), .. } => unsupported(sampled),
        TableFactor::Function { name, with_ordinality, .. } => {
            refuse_unbuilt(name, true)?;
            if *with_ordinality {
                unsupported("WITH ORDINALITY is not supported; write row_number() OVER ()")
            } else {
                Ok(None)
            }
        }
        TableFactor::UNNEST { with_ordinality: true, .. } | TableFactor::UNNEST { with_offset: true, .. } => {
            unsupported("UNNEST … WITH ORDINALITY and WITH OFFSET are not supported")
        }
        _ => Ok(None),
    }
}

/// Functions that the SQL surface promises and that are not built.
fn refuse_unbuilt(name: &ObjectName, is_call: bool) -> Result<()> {
    let name = name.to_string().to_lowercase();
    if is_call && name == "hybrid_search" {
        return unsupported(&format!("{name}(…) is not built yet; there are vector_search and text_search"));
    }
    Ok(())
}

/// `WITH (recall = 0.99)` is the one hint of a table.
fn recall_of_hints(hints: &[ast::Expr]) -> Result<Option<f64>> {
    let mut recall = None;
    for hint in hints {
        match hint {
            ast::Expr::BinaryOp { left, op: BinaryOperator::Eq, right }
                if left.to_string().eq_ignore_ascii_case("recall") =>
            {
                if recall.replace(recall_of(&right.to_string())?).is_some() {
                    return plan_err!("recall is there twice; leave one out");
                }
            }
            other => {
                return unsupported(&format!(
                    "the table option {other} is not supported; there is WITH (recall = 0.99)"
                ));
            }
        }
    }
    Ok(recall)
}

fn recall_of(text: &str) -> Result<f64> {
    let recall: f64 =
        text.parse().map_err(|_| plan_datafusion_err!("recall is a number above 0 and at most 1, not {text}"))?;
    if recall > 0.0 && recall <= 1.0 { Ok(recall) } else { plan_err!("recall is above 0 and at most 1, not {text}") }
}

/// A call of a search, its arguments apart.
struct Call {
    function: &'static str,
    positional: Vec<ast::Expr>,
    /// Names in lower case.
    named: Vec<(String, ast::Expr)>,
}

impl Call {
    fn read(function: &'static str, args: Vec<FunctionArg>) -> Result<Self> {
        let mut call = Self { function, positional: vec![], named: vec![] };
        for arg in args {
            match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => call.positional.push(expr),
                FunctionArg::Named { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                    call.named.push((name.value.to_lowercase(), expr))
                }
                FunctionArg::ExprNamed { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                    call.named.push((name.to_string().to_lowercase(), expr))
                }
                other => return plan_err!("{function} does not take {other}; {}", call.usage()),
            }
        }
        for (at, (name, _)) in call.named.iter().enumerate() {
            if call.named[..at].iter().any(|(other, _)| other == name) {
                return plan_err!("{function} has its argument {name} twice; leave one out");
            }
        }
        if call.positional.len() != 3 {
            return plan_err!(
                "{function} takes a table, a column and {}, not {} arguments; {}",
                if function == TEXT_SEARCH { "the words" } else { "a query vector" },
                call.positional.len(),
                call.usage()
            );
        }
        Ok(call)
    }

    fn usage(&self) -> &'static str {
        if self.function == TEXT_SEARCH { TEXT_USAGE } else { VECTOR_USAGE }
    }

    fn text(&self, expr: &ast::Expr, what: &str) -> Result<String> {
        match expr {
            ast::Expr::Value(value) if matches!(value.value, Value::SingleQuotedString(_)) => {
                Ok(value.value.clone().into_string().unwrap_or_default())
            }
            other => {
                plan_err!("{} names {what} by a text in single quotes, not {other}; {}", self.function, self.usage())
            }
        }
    }

    /// The table and the column.
    fn place(&self) -> Result<(ObjectName, String)> {
        let (table, column) = (&self.positional[0], &self.positional[1]);
        Ok((parse_name(&self.text(table, "the table")?)?, self.text(column, "the column")?))
    }

    /// What is looked for.
    fn query(&self, context: &mut dyn RelationPlannerContext) -> Result<Expr> {
        let query = context.sql_to_expr(self.positional[2].clone(), &DFSchema::empty())?;
        if query.contains_outer() {
            return unsupported(
                "a search for each row of another table (KNN join) is not built yet; search for one query at a time",
            );
        }
        Ok(query)
    }
}

/// How many rows are wanted.
fn k_of(value: &ast::Expr) -> Result<usize> {
    let text = value.to_string();
    let k = text.parse().ok().filter(|k| *k > 0);
    k.ok_or_else(|| plan_datafusion_err!("k is a whole number above 0, not {text}"))
}

/// Puts the condition that the text of a search's `filter` says in its place, before the names in the statement are looked up.
///
/// # Errors
/// A text that is no condition.
pub(crate) fn parse_filter(relation: &mut TableFactor) -> Result<()> {
    let args = match relation {
        TableFactor::Table { name, args: Some(args), .. } if search_named(name).is_some() => &mut args.args,
        TableFactor::Function { name, args, .. } if search_named(name).is_some() => args,
        _ => return Ok(()),
    };
    for arg in args {
        let (name, arg) = match arg {
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(arg), .. } => (name.value.clone(), arg),
            FunctionArg::ExprNamed { name, arg: FunctionArgExpr::Expr(arg), .. } => (name.to_string(), arg),
            _ => continue,
        };
        let ast::Expr::Value(value) = &*arg else { continue };
        if let (true, Value::SingleQuotedString(filter)) = (name.eq_ignore_ascii_case("filter"), &value.value) {
            *arg = ast::Expr::Nested(Box::new(parse_condition(filter)?));
        }
    }
    Ok(())
}

/// The condition of a filter.
fn predicate_of(filter: ast::Expr, schema: &DFSchema, context: &mut dyn RelationPlannerContext) -> Result<Expr> {
    let shown = filter.to_string();
    let predicate = context.sql_to_expr(filter, schema)?;
    let is_of_rows = |expr: &Expr| Ok(matches!(expr, Expr::AggregateFunction(_) | Expr::WindowFunction(_)));
    if predicate.exists(is_of_rows)? {
        return plan_err!("filter is a condition on one row, and {shown} has a function of many; write a subquery");
    }
    Ok(predicate)
}

fn plan_text_search(call: Call, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    let (table, column) = call.place()?;
    let query = call.query(context)?;
    let (mut k, mut filter, mut mark) = (K_DEFAULT, None, None);
    for (name, value) in &call.named {
        if let Some(found) = Mark::of_argument(name, value) {
            mark = Some(found);
            continue;
        }
        match name.as_str() {
            "k" => k = k_of(value)?,
            "filter" => filter = Some(value.clone()),
            _ => return plan_err!("{TEXT_SEARCH} has no argument {name}; {TEXT_USAGE}"),
        }
    }
    if k > TEXT_SEARCH_ROWS_MAX {
        return plan_err!("k is at most {TEXT_SEARCH_ROWS_MAX} in {TEXT_SEARCH}, not {k}");
    }
    let factor = plain_table(table, None, mark.as_ref().map(Mark::as_version));
    let relation = context.plan(factor)?;
    let predicate = match filter {
        Some(filter) => Some(predicate_of(filter, relation.schema(), context)?),
        None => None,
    };
    TextSearch::plan(&relation, column, query, k, predicate)
}

/// The arguments of one call of `vector_search`.
struct Arguments {
    call: Call,
    table: ObjectName,
    column: String,
    query: Expr,
    k: usize,
    metric: Option<Metric>,
    filter: Option<ast::Expr>,
    recall: Option<f64>,
    /// The moment of the table, where it has one of its own.
    mark: Option<Mark>,
}

impl Arguments {
    fn read(mut call: Call, context: &mut dyn RelationPlannerContext) -> Result<Self> {
        let (table, column) = call.place()?;
        let query = call.query(context)?;
        let named = std::mem::take(&mut call.named);
        let mut arguments =
            Self { call, table, column, query, k: K_DEFAULT, metric: None, filter: None, recall: None, mark: None };
        for (name, value) in named {
            arguments.set(&name, &value)?;
        }
        Ok(arguments)
    }

    fn set(&mut self, name: &str, value: &ast::Expr) -> Result<()> {
        if let Some(mark) = Mark::of_argument(name, value) {
            self.mark = Some(mark);
            return Ok(());
        }
        match name {
            "k" => self.k = k_of(value)?,
            "metric" => {
                let name = self.call.text(value, "metric")?;
                let metric = Metric::parse(&name).ok_or_else(|| {
                    plan_datafusion_err!(
                        "there is no metric {name}; there are l2, cosine, inner_product, l1, hamming and jaccard"
                    )
                })?;
                self.metric = Some(metric);
            }
            "filter" => self.filter = Some(value.clone()),
            "recall" => self.recall = Some(recall_of(&value.to_string())?),
            _ => return plan_err!("{VECTOR_SEARCH} has no argument {name}; {VECTOR_USAGE}"),
        }
        Ok(())
    }

    /// The same plan that `SELECT *, distance … WHERE filter ORDER BY distance LIMIT k` has.
    fn plan(self, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
        let factor = plain_table(self.table.clone(), None, self.mark.as_ref().map(Mark::as_version));
        let mut relation = context.plan(factor)?;
        if let Some(recall) = self.recall {
            relation = with_recall(relation, recall, &self.table)?;
        }
        let mut builder = LogicalPlanBuilder::from(relation);
        if let Some(filter) = self.filter.clone() {
            let predicate = predicate_of(filter, builder.schema(), context)?;
            builder = builder.filter(predicate)?;
        }
        let metric = self.metric_for(builder.schema())?;
        let column = Expr::Column(Column::from_name(self.column.clone()));
        let call = Expr::ScalarFunction(ScalarFunction::new_udf(distance::of_metric(metric), vec![column, self.query]));
        let mut outputs: Vec<Expr> = builder.schema().columns().into_iter().map(Expr::Column).collect();
        outputs.push(call.alias(DISTANCE));
        let key = SortExpr::new(Expr::Column(Column::from_name(DISTANCE)), true, false);
        builder.project(outputs)?.sort(vec![key])?.limit_by_expr(None, Some(lit(self.k as i64)))?.build()
    }

    fn metric_for(&self, schema: &DFSchema) -> Result<Metric> {
        let field = schema.fields().iter().find(|field| field.name() == &self.column);
        let Some(field) = field else {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            let meant = crate::resolve::nearest(&self.column, names.iter().copied()).map(str::to_owned);
            let message = format!("table {} has no column {}; it has {}", self.table, self.column, names.join(", "));
            let error = crate::resolve::NameError { message, name: self.column.clone(), meant };
            return Err(datafusion::error::DataFusionError::External(Box::new(error)));
        };
        let bits = VectorType::of_field(field).is_some_and(|vector| vector.element == Element::Bit);
        Ok(self.metric.unwrap_or(if bits { Metric::Hamming } else { Metric::Cosine }))
    }
}

/// Reads `schema.table` or `"Quoted"` from the text of an argument.
///
/// # Errors
/// A text that is no name.
pub fn parse_name(text: &str) -> Result<ObjectName> {
    let mut parser = Parser::new(&SagittaDialect).try_with_sql(text)?;
    let name = parser.parse_object_name(false)?;
    if parser.peek_token_ref().token == datafusion::sql::sqlparser::tokenizer::Token::EOF {
        Ok(name)
    } else {
        // Not a name by the grammar: taken whole, as if quoted.
        Ok(ObjectName::from(vec![Ident::with_quote('"', text)]))
    }
}
