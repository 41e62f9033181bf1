//! The words of a statement that changes rows: which table it names, which columns it sets, and the parts of the query
//! that it becomes.

use std::ops::ControlFlow;

use arrow::datatypes::FieldRef;
use datafusion::execution::SessionState;
use datafusion::sql::sqlparser::ast::{
    self, Assignment, AssignmentTarget, Ident, Join, JoinConstraint, JoinOperator, ObjectName, SelectItem, SetExpr,
    TableAlias, TableAliasColumnDef, TableFactor, TableWithJoins, VisitMut, VisitorMut,
};
use planner::resolve::{ROW_ADDRESS, RelationName};
use planner::statement::StatementKind;
use storage::TableEntry;

use crate::insert::{is_default, no_column};
use crate::resolver::default_ast;
use crate::{Error, ErrorKind, Result};

/// The schema of the names that only stand for something within one change. No user can make a schema of this name.
const OWN_SCHEMA: &str = "";

/// A name of our own, for the resolver.
pub(crate) fn own_relation(table: &str) -> RelationName {
    RelationName { schema: OWN_SCHEMA.to_owned(), table: table.to_owned() }
}

/// A name of our own, in FROM and under an alias.
pub(crate) fn own_factor(table: &str, alias: &str) -> TableFactor {
    let alias = TableAlias { explicit: true, name: ident(alias), columns: vec![], at: None };
    bare_factor(ObjectName::from(vec![ident(OWN_SCHEMA), ident(table)]), Some(alias))
}

/// `table AS alias` and no more.
fn bare_factor(name: ObjectName, alias: Option<TableAlias>) -> TableFactor {
    TableFactor::Table {
        name,
        alias,
        args: None,
        with_hints: vec![],
        version: None,
        with_ordinality: false,
        partitions: vec![],
        json_path: None,
        sample: None,
        index_hints: vec![],
    }
}

/// One relation of FROM, without joins.
pub(crate) fn alone(relation: TableFactor) -> TableWithJoins {
    TableWithJoins { relation, joins: vec![] }
}

/// A name as it is, not folded.
pub(crate) fn ident(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

/// `relation.column`.
pub(crate) fn column(relation: &str, name: &str) -> ast::Expr {
    ast::Expr::CompoundIdentifier(vec![ident(relation), ident(name)])
}

/// The literal NULL.
pub(crate) fn null() -> ast::Expr {
    ast::Expr::Value(ast::Value::Null.into())
}

/// The literal TRUE or FALSE.
pub(crate) fn literal(value: bool) -> ast::Expr {
    ast::Expr::Value(ast::Value::Boolean(value).into())
}

/// A name as SQL folds it.
pub(crate) fn folded(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() }
}

/// The table that a statement changes, as the statement names it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: RelationName,
    /// What its columns are qualified by.
    pub(crate) alias: String,
    is_renamed: bool,
}

impl Target {
    /// A table without an alias.
    pub(crate) fn plain(name: RelationName) -> Self {
        Self { alias: name.table.clone(), name, is_renamed: false }
    }

    /// Reads `table [AS alias]`. `statement`: UPDATE, DELETE or MERGE, for messages.
    ///
    /// # Errors
    /// Anything else in the place of the table.
    pub(crate) fn of_factor(factor: &TableFactor, statement: &str) -> Result<Self> {
        let TableFactor::Table { name, alias, .. } = factor else {
            return Err(Error::unsupported(format!("{statement} changes a table, not {factor}; name the table")));
        };
        if let ([part], Some(alias)) = (name.0.as_slice(), alias)
            && part.as_ident().is_some_and(|word| word.quote_style.is_none() && word.value.eq_ignore_ascii_case("only"))
            && !alias.explicit
        {
            return Err(Error::unsupported(format!(
                "ONLY is not supported: tables have no descendants; write {statement} … {}",
                alias.name
            )));
        }
        let is_bare = factor == &bare_factor(name.clone(), alias.clone());
        if !is_bare || alias.as_ref().is_some_and(|alias| !alias.columns.is_empty() || alias.at.is_some()) {
            return Err(Error::unsupported(format!(
                "{factor} is more than {statement} takes: the newest version of a table is changed; write {name} [AS alias]"
            )));
        }
        let name = RelationName::of_sql(name)?;
        Ok(match alias {
            Some(alias) => Self { alias: folded(&alias.name), name, is_renamed: true },
            None => Self::plain(name),
        })
    }

    /// # Errors
    /// A relation in FROM or USING that goes by the name of the table itself.
    pub(crate) fn refuse_twice(&self, others: &[TableWithJoins]) -> Result<()> {
        let factors = others
            .iter()
            .flat_map(|other| std::iter::once(&other.relation).chain(other.joins.iter().map(|join| &join.relation)));
        for factor in factors {
            if known_as(factor).is_some_and(|name| name == self.alias) {
                return Err(Error::invalid(format!(
                    "the name \"{}\" is there twice; give one of the two an alias: … AS other",
                    self.alias
                )));
            }
        }
        Ok(())
    }
}

/// What the columns of a relation are qualified by; `None` if it has no name.
pub(crate) fn known_as(factor: &TableFactor) -> Option<String> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. }
        | TableFactor::Derived { alias: Some(alias), .. }
        | TableFactor::Function { alias: Some(alias), .. }
        | TableFactor::NestedJoin { alias: Some(alias), .. } => Some(folded(&alias.name)),
        TableFactor::Table { name, .. } => name.0.last().and_then(|part| part.as_ident()).map(folded),
        _ => None,
    }
}

/// What a column gets.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// What the row has already.
    Kept,
    /// The value of an expression, converted to the column's type.
    Given(ast::Expr),
    /// The value of an expression of the column's type.
    Ready(ast::Expr),
}

/// What SET says.
#[derive(Debug)]
pub(crate) struct Assigned {
    /// What each column of the table gets.
    pub(crate) values: Vec<Value>,
    /// Subqueries that `values` take columns of; see [`with_queries`].
    pub(crate) queries: Vec<TableFactor>,
}

/// The assignments with `a = (SELECT x FROM …)` as `(a) = (SELECT x FROM …)` if it is the only subquery that does not
/// aggregate: as a value, such a one must not name the row, and DataFusion joins no more than one that does.
pub(crate) fn joined(assignments: &[Assignment], state: &SessionState) -> Vec<Assignment> {
    let aggregates = |query: &ast::Query| match query.body.as_ref() {
        SetExpr::Select(select) => ast::visit_expressions(&select.projection, |expr| match expr {
            ast::Expr::Function(function)
                if state.aggregate_functions().contains_key(&function.name.to_string().to_lowercase()) =>
            {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })
        .is_break(),
        _ => true,
    };
    let is_joined = |assignment: &Assignment| match (&assignment.target, &assignment.value) {
        (AssignmentTarget::ColumnName(_), ast::Expr::Subquery(query)) => !aggregates(query),
        (AssignmentTarget::Tuple(_), value) => matches!(value, ast::Expr::Subquery(_)),
        _ => false,
    };
    let is_only = assignments.iter().filter(|assignment| is_joined(assignment)).count() == 1;
    let join = |assignment: &Assignment| match &assignment.target {
        AssignmentTarget::ColumnName(name) if is_only && is_joined(assignment) => {
            Assignment { target: AssignmentTarget::Tuple(vec![name.clone()]), value: assignment.value.clone() }
        }
        _ => assignment.clone(),
    };
    assignments.iter().map(join).collect()
}

/// What SET gives to each column of the table.
///
/// # Errors
/// A column that does not exist or is set twice, lists of different lengths, several lists from subqueries.
pub(crate) fn assigned(
    assignments: &[Assignment],
    target: &Target,
    fields: &[FieldRef],
    entry: &TableEntry,
) -> Result<Assigned> {
    let (mut values, mut queries) = (vec![Value::Kept; fields.len()], vec![]);
    for assignment in assignments {
        for (name, value) in pairs(assignment, &mut queries)? {
            let at = position(name, target, fields)?;
            if !matches!(values[at], Value::Kept) {
                return Err(Error::invalid(format!("column \"{}\" is set twice", fields[at].name())));
            }
            values[at] = Value::Given(value_or_default(&value, &fields[at], entry)?);
        }
    }
    if queries.len() > 1 {
        return Err(Error::unsupported(
            "SET with several lists of columns from subqueries is not supported; write one SET (a, b, c) = (SELECT x, y, z FROM …)",
        ));
    }
    Ok(Assigned { values, queries })
}

/// The columns of one assignment with their values: `a = 1`, `(a, b) = (1, 2)`, or `(a, b) = (SELECT x, y FROM …)`.
fn pairs<'a>(assignment: &'a Assignment, queries: &mut Vec<TableFactor>) -> Result<Vec<(&'a ObjectName, ast::Expr)>> {
    let names = match &assignment.target {
        AssignmentTarget::ColumnName(name) => return Ok(vec![(name, assignment.value.clone())]),
        AssignmentTarget::Tuple(names) => names,
    };
    let values = match &assignment.value {
        ast::Expr::Tuple(values) => values.clone(),
        ast::Expr::Nested(value) => vec![value.as_ref().clone()],
        ast::Expr::Subquery(query) => columns_of_query(query, names.len(), queries)?,
        other => row_of(other).ok_or_else(|| {
            Error::unsupported(format!(
                "SET (…) = {other} is not supported; write SET (a, b) = (1, 2) or SET (a, b) = (SELECT x, y FROM …)"
            ))
        })?,
    };
    if names.len() != values.len() {
        return Err(Error::invalid(format!("{} columns are set, but there are {} values", names.len(), values.len())));
    }
    Ok(names.iter().zip(values).collect())
}

/// The values of `ROW(1, 2)`.
fn row_of(value: &ast::Expr) -> Option<Vec<ast::Expr>> {
    let ast::Expr::Function(function) = value else { return None };
    let ast::FunctionArguments::List(list) = &function.args else { return None };
    let is_row = function.name.to_string().eq_ignore_ascii_case("row");
    if !is_row || function.filter.is_some() || function.over.is_some() {
        return None;
    }
    let value = |argument: &ast::FunctionArg| match argument {
        ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    };
    list.args.iter().map(value).collect()
}

/// Puts a subquery among `queries`, under names that nobody else has; its `count` columns.
fn columns_of_query(query: &ast::Query, count: usize, queries: &mut Vec<TableFactor>) -> Result<Vec<ast::Expr>> {
    if let SetExpr::Select(select) = query.body.as_ref() {
        let items = &select.projection;
        let is_one = |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
        if items.iter().all(is_one) && items.len() != count {
            return Err(Error::invalid(format!(
                "{count} columns are set, but the subquery has {} columns",
                items.len()
            )));
        }
    }
    let relation = format!("set query {}", queries.len());
    let names: Vec<String> = (0..count).map(|at| format!("set column {at}")).collect();
    let columns = names.iter().map(|name| TableAliasColumnDef { name: ident(name), data_type: None }).collect();
    queries.push(TableFactor::Derived {
        // So that it may name the row that is changed.
        lateral: true,
        subquery: Box::new(query.clone()),
        alias: Some(TableAlias { explicit: true, name: ident(&relation), columns, at: None }),
        sample: None,
    });
    Ok(names.iter().map(|name| column(&relation, name)).collect())
}

/// FROM with the subqueries of SET joined to each row for which `on` is true. A row for which a subquery finds nothing
/// gets NULLs; one for which it finds several rows is met again, and that is an error of the change.
pub(crate) fn with_queries(
    mut from: Vec<TableWithJoins>,
    queries: Vec<TableFactor>,
    on: &ast::Expr,
) -> Vec<TableWithJoins> {
    if queries.is_empty() || from.is_empty() {
        return from;
    }
    let mut joined = from.remove(0);
    let others = from.into_iter().map(|other| match other.joins.is_empty() {
        true => other.relation,
        false => TableFactor::NestedJoin { table_with_joins: Box::new(other), alias: None },
    });
    let cross = others.map(|relation| (relation, JoinOperator::CrossJoin(JoinConstraint::None)));
    let left = queries.into_iter().map(|query| (query, JoinOperator::Left(JoinConstraint::On(on.clone()))));
    let joins = cross.chain(left).map(|(relation, join_operator)| Join { relation, global: false, join_operator });
    joined.joins.extend(joins);
    vec![joined]
}

/// The index of a column that SET names, alone or behind the table's name.
fn position(name: &ObjectName, target: &Target, fields: &[FieldRef]) -> Result<usize> {
    let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
    let column = match parts.as_slice() {
        [column] => column,
        [relation, column] if *relation == target.alias => column,
        _ => return Err(Error::invalid(format!("SET names columns of {}, not {name}", target.name))),
    };
    fields.iter().position(|field| field.name() == column).ok_or_else(|| no_column(&target.name, column, fields))
}

/// The value, or the default of its column where it is the word DEFAULT.
pub(crate) fn value_or_default(value: &ast::Expr, field: &FieldRef, entry: &TableEntry) -> Result<ast::Expr> {
    if is_default(value) { default_of(field, entry) } else { Ok(value.clone()) }
}

/// What a column gets where nothing is said.
pub(crate) fn default_of(field: &FieldRef, entry: &TableEntry) -> Result<ast::Expr> {
    match entry.defaults.get(field.name()) {
        Some(text) => default_ast(text),
        None => Ok(null()),
    }
}

/// `SELECT items FROM from [WHERE selection]`.
pub(crate) fn select(
    items: Vec<SelectItem>,
    from: Vec<TableWithJoins>,
    selection: Option<ast::Expr>,
) -> Result<ast::Query> {
    let odd = || Error::new(ErrorKind::Internal, "the query of a change was not understood");
    let Some(StatementKind::Sql(sql)) = planner::statement::parse("SELECT 1")?.pop().map(|statement| statement.kind)
    else {
        return Err(odd());
    };
    let ast::Statement::Query(mut query) = *sql else { return Err(odd()) };
    let SetExpr::Select(select) = query.body.as_mut() else { return Err(odd()) };
    (select.projection, select.from, select.selection) = (items, from, selection);
    Ok(*query)
}

/// Checks and rewrites what the user wrote: no column is called [`ROW_ADDRESS`] for them, and `schema.table.column` of
/// the target becomes `table.column`, as the target goes by its bare name in the query.
///
/// # Errors
/// The name of the reserved column.
pub(crate) fn tidy<T: VisitMut>(node: &mut T, target: &Target) -> Result<()> {
    match node.visit(&mut Tidy { target }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Tidy<'a> {
    target: &'a Target,
}

impl VisitorMut for Tidy<'_> {
    type Break = Error;

    fn pre_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<Error> {
        let last = match expr {
            ast::Expr::Identifier(name) => Some(&*name),
            ast::Expr::CompoundIdentifier(parts) => {
                if let [above @ .., _, _] = parts.as_slice()
                    && !above.is_empty()
                    && !self.target.is_renamed
                {
                    let relation: Vec<Ident> = parts[..parts.len() - 1].to_vec();
                    if RelationName::of_sql(&ObjectName::from(relation)).is_ok_and(|name| name == self.target.name) {
                        parts.drain(..parts.len() - 2);
                    }
                }
                parts.last()
            }
            _ => None,
        };
        if last.is_some_and(|name| folded(name) == ROW_ADDRESS) {
            return ControlFlow::Break(Error::new(
                ErrorKind::NotFound,
                format!("there is no column \"{ROW_ADDRESS}\": the name is reserved"),
            ));
        }
        ControlFlow::Continue(())
    }
}

/// Qualifies the bare names of the table's columns with the table's name, outside of subqueries: in ON CONFLICT, a
/// bare name means the row that is there.
pub(crate) fn qualify(expr: &mut ast::Expr, target: &Target, fields: &[FieldRef]) {
    let mut visitor = Qualify { target, fields, depth: 0 };
    let _: ControlFlow<()> = expr.visit(&mut visitor);
}

struct Qualify<'a> {
    target: &'a Target,
    fields: &'a [FieldRef],
    depth: usize,
}

impl VisitorMut for Qualify<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut ast::Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut ast::Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    // After the children: the new name has parts of its own.
    fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
        if let ast::Expr::Identifier(name) = expr
            && self.depth == 0
            && self.fields.iter().any(|field| *field.name() == folded(name))
        {
            *expr = column(&self.target.alias, &folded(name));
        }
        ControlFlow::Continue(())
    }
}
