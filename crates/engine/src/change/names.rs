//! The words of a statement that changes rows: which table it names, which columns it sets, and the parts of the query
//! that it becomes.

use std::ops::ControlFlow;

use arrow::datatypes::FieldRef;
use datafusion::sql::sqlparser::ast::{
    self, Assignment, AssignmentTarget, Ident, ObjectName, SelectItem, SetExpr, TableAlias, TableFactor,
    TableWithJoins, VisitMut, VisitorMut,
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
    TableFactor::Table {
        name: ObjectName::from(vec![ident(OWN_SCHEMA), ident(table)]),
        alias: Some(TableAlias { explicit: true, name: ident(alias), columns: vec![], at: None }),
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
        let bare = TableFactor::Table {
            name: name.clone(),
            alias: alias.clone(),
            args: None,
            with_hints: vec![],
            version: None,
            with_ordinality: false,
            partitions: vec![],
            json_path: None,
            sample: None,
            index_hints: vec![],
        };
        if factor != &bare || alias.as_ref().is_some_and(|alias| !alias.columns.is_empty() || alias.at.is_some()) {
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

/// What SET gives to each column of the table.
///
/// # Errors
/// A column that does not exist or is set twice, lists of different lengths.
pub(crate) fn assigned(
    assignments: &[Assignment],
    target: &Target,
    fields: &[FieldRef],
    entry: &TableEntry,
) -> Result<Vec<Value>> {
    let mut values = vec![Value::Kept; fields.len()];
    for assignment in assignments {
        for (name, value) in pairs(assignment)? {
            let at = position(name, target, fields)?;
            if !matches!(values[at], Value::Kept) {
                return Err(Error::invalid(format!("column \"{}\" is set twice", fields[at].name())));
            }
            values[at] = Value::Given(value_or_default(value, &fields[at], entry)?);
        }
    }
    Ok(values)
}

/// The columns of one assignment with their values: `a = 1`, or `(a, b) = (1, 2)`.
fn pairs(assignment: &Assignment) -> Result<Vec<(&ObjectName, &ast::Expr)>> {
    let names = match &assignment.target {
        AssignmentTarget::ColumnName(name) => return Ok(vec![(name, &assignment.value)]),
        AssignmentTarget::Tuple(names) => names,
    };
    let values: Vec<&ast::Expr> = match &assignment.value {
        ast::Expr::Tuple(values) => values.iter().collect(),
        ast::Expr::Nested(value) => vec![value.as_ref()],
        other => {
            return Err(Error::unsupported(format!(
                "SET (…) = {other} is not supported; write SET (a, b) = (1, 2), or FROM with a subquery"
            )));
        }
    };
    if names.len() != values.len() {
        return Err(Error::invalid(format!("{} columns are set, but there are {} values", names.len(), values.len())));
    }
    Ok(names.iter().zip(values).collect())
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
