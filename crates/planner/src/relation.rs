//! Relations in FROM: the table function `vector_search`, tables that are pinned to a moment, ASOF joins, and the
//! guard that refuses every clause on a table that the planner would otherwise parse and drop (samples, hints,
//! partitions).

use datafusion::common::{Column, DFSchema, TableReference, plan_datafusion_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, SortExpr, lit};
use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, FunctionArg, FunctionArgExpr, Ident, ObjectName, TableFactor, Value,
};
use datafusion::sql::sqlparser::parser::Parser;
use kernels::Metric;

use crate::asof_join;
use crate::dialect::SagittaDialect;
use crate::functions::distance;
use crate::pin::{Mark, plain_table};
use crate::rewrite::{rewrite, unsupported};
use crate::vector_search::DISTANCE;
use crate::vector_type::{Element, VectorType};

/// The table function that searches.
pub const VECTOR_SEARCH: &str = "vector_search";
const USAGE: &str =
    "write vector_search('table', 'column', query, k => 10, metric => 'cosine', filter => 'tenant = 7', version => 42)";

/// Plans `vector_search(…)` and guards all other relations.
#[derive(Debug)]
pub struct Relations;

impl RelationPlanner for Relations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let (call, alias) = match relation {
            TableFactor::Table { ref name, args: Some(ref args), ref alias, .. } if is_search(name) => {
                (args.args.clone(), alias.clone())
            }
            TableFactor::Function { ref name, ref args, ref alias, .. } if is_search(name) => {
                (args.clone(), alias.clone())
            }
            mut other => {
                guard(&mut other)?;
                return plan_other(other, context);
            }
        };
        let arguments = Arguments::read(call, context)?;
        let plan = arguments.plan(context)?;
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

fn is_search(name: &ObjectName) -> bool {
    name.to_string().eq_ignore_ascii_case(VECTOR_SEARCH)
}

/// # Errors
/// A clause that is parsed but not planned.
fn guard(relation: &mut TableFactor) -> Result<()> {
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
            check_hints(with_hints)?;
            with_hints.clear();
            if *with_ordinality || !partitions.is_empty() || json_path.is_some() || !index_hints.is_empty() {
                return unsupported(&format!(
                    "WITH ORDINALITY, PARTITION, JSON paths and index hints on {name} are not supported; name the table alone"
                ));
            }
            Ok(())
        }
        TableFactor::Derived { sample: Some(_), .. } => unsupported(sampled),
        TableFactor::Function { name, with_ordinality, .. } => {
            refuse_unbuilt(name, true)?;
            if *with_ordinality {
                unsupported("WITH ORDINALITY is not supported; write row_number() OVER ()")
            } else {
                Ok(())
            }
        }
        TableFactor::UNNEST { with_ordinality: true, .. } | TableFactor::UNNEST { with_offset: true, .. } => {
            unsupported("UNNEST … WITH ORDINALITY and WITH OFFSET are not supported")
        }
        _ => Ok(()),
    }
}

/// Functions that the SQL surface promises and that are not built.
fn refuse_unbuilt(name: &ObjectName, is_call: bool) -> Result<()> {
    let name = name.to_string().to_lowercase();
    let unbuilt = ["text_search", "hybrid_search"];
    if is_call && unbuilt.contains(&name.as_str()) {
        return unsupported(&format!("{name}(…) is not built yet"));
    }
    Ok(())
}

/// `WITH (recall = 0.99)` is the one hint of a table. A search is exact so far: its recall is 1, whatever was asked.
fn check_hints(hints: &[ast::Expr]) -> Result<()> {
    for hint in hints {
        match hint {
            ast::Expr::BinaryOp { left, op: BinaryOperator::Eq, right }
                if left.to_string().eq_ignore_ascii_case("recall") =>
            {
                check_recall(&right.to_string())?;
            }
            other => {
                return unsupported(&format!(
                    "the table option {other} is not supported; there is WITH (recall = 0.99)"
                ));
            }
        }
    }
    Ok(())
}

fn check_recall(text: &str) -> Result<()> {
    let recall: f64 =
        text.parse().map_err(|_| plan_datafusion_err!("recall is a number above 0 and at most 1, not {text}"))?;
    if recall > 0.0 && recall <= 1.0 { Ok(()) } else { plan_err!("recall is above 0 and at most 1, not {text}") }
}

/// The arguments of one call.
struct Arguments {
    table: ObjectName,
    column: String,
    query: Expr,
    k: usize,
    metric: Option<Metric>,
    filter: Option<String>,
    /// The moment of the table, where it has one of its own.
    mark: Option<Mark>,
}

impl Arguments {
    fn read(args: Vec<FunctionArg>, context: &mut dyn RelationPlannerContext) -> Result<Self> {
        let (mut positional, mut named) = (vec![], vec![]);
        for arg in args {
            match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => positional.push(expr),
                FunctionArg::Named { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                    named.push((name.value.to_lowercase(), expr))
                }
                FunctionArg::ExprNamed { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                    named.push((name.to_string().to_lowercase(), expr))
                }
                other => return plan_err!("{VECTOR_SEARCH} does not take {other}; {USAGE}"),
            }
        }
        if positional.len() != 3 {
            return plan_err!(
                "{VECTOR_SEARCH} takes a table, a column and a query vector, not {} arguments; {USAGE}",
                positional.len()
            );
        }
        let (table, column) = (text(&positional[0], "the table")?, text(&positional[1], "the column")?);
        let query = context.sql_to_expr(positional.swap_remove(2), &DFSchema::empty())?;
        if query.contains_outer() {
            return unsupported(
                "a search for each row of another table (KNN join) is not built yet; pass one query vector",
            );
        }
        let table = parse_name(&table)?;
        let mut arguments = Self { table, column, query, k: 10, metric: None, filter: None, mark: None };
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
            "k" => {
                let text = value.to_string();
                self.k = text
                    .parse()
                    .ok()
                    .filter(|k| *k > 0)
                    .ok_or_else(|| plan_datafusion_err!("k is a whole number above 0, not {text}"))?;
            }
            "metric" => {
                let name = text(value, "metric")?;
                let metric = Metric::parse(&name).ok_or_else(|| {
                    plan_datafusion_err!(
                        "there is no metric {name}; there are l2, cosine, inner_product, l1, hamming and jaccard"
                    )
                })?;
                self.metric = Some(metric);
            }
            "filter" => self.filter = Some(text(value, "filter")?),
            "recall" => check_recall(&value.to_string())?,
            _ => return plan_err!("{VECTOR_SEARCH} has no argument {name}; {USAGE}"),
        }
        Ok(())
    }

    /// The same plan that `SELECT *, distance … WHERE filter ORDER BY distance LIMIT k` has.
    fn plan(self, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
        let factor = plain_table(self.table.clone(), None, self.mark.as_ref().map(Mark::as_version));
        let mut builder = LogicalPlanBuilder::from(context.plan(factor)?);
        if let Some(filter) = &self.filter {
            let mut parser = Parser::new(&SagittaDialect).try_with_sql(filter)?;
            let mut predicate = parser.parse_expr()?;
            if parser.peek_token_ref().token != datafusion::sql::sqlparser::tokenizer::Token::EOF {
                return plan_err!("filter is one condition, but {} follows in '{filter}'", parser.peek_token_ref());
            }
            rewrite(&mut predicate)?;
            let predicate = context.sql_to_expr(predicate, builder.schema())?;
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

fn text(expr: &ast::Expr, what: &str) -> Result<String> {
    match expr {
        ast::Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Ok(text.clone()),
            other => plan_err!("{VECTOR_SEARCH} names {what} by a text in single quotes, not {other}; {USAGE}"),
        },
        other => plan_err!("{VECTOR_SEARCH} names {what} by a text in single quotes, not {other}; {USAGE}"),
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
