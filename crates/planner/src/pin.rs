//! The pass over a parsed statement that takes the moments out of it: every table with a version of its own, every
//! search at a moment and every table function about versions becomes a *pin*, a numbered entry to be resolved
//! before planning, and a mark in its place by which the relation planner finds it.

use std::fmt;
use std::ops::ControlFlow;

use datafusion::common::{ScalarValue, TableReference, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::sql::sqlparser::ast::{
    self, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, ObjectName, Query,
    TableFactor, TableVersion, Value, VisitMut, VisitorMut,
};

use crate::Planner;
use crate::as_of::{AsOf, Moment, no_value, of_value};
use crate::cte_scope::CteScope;
use crate::relation::{SEARCHES, parse_name};
use crate::resolve::RelationName;
use crate::rewrite::unsupported;

/// The table function that lists a table's versions.
pub const TABLE_HISTORY: &str = "table_history";
/// The table function that lists what changed between two versions.
pub const TABLE_CHANGES: &str = "table_changes";

/// What marks a pin. No name that a parser reads begins with it.
const MARK: &str = "\0pin";
const HISTORY_USAGE: &str = "write table_history('table')";
const CHANGES_USAGE: &str =
    "write table_changes('table', from, to) with versions (41), tags ('prod') or timestamps (TIMESTAMP '…')";

/// What is resolved for one mark. A moment is absent only while a statement with parameters is checked without them:
/// the newest version stands in for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// A table or view at a moment.
    Relation {
        /// Its name.
        name: RelationName,
        /// The moment.
        at: Option<AsOf>,
    },
    /// The versions of a table.
    History {
        /// The table.
        name: RelationName,
    },
    /// What changed between two moments of a table.
    Changes {
        /// The table.
        name: RelationName,
        /// The older moment.
        from: Option<AsOf>,
        /// The newer moment.
        to: Option<AsOf>,
    },
}

impl fmt::Display for Pin {
    /// What plans call it. Two scans of one name are one table to the optimizer, so each moment has a name of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |moment: &Option<AsOf>| moment.as_ref().map_or("$".to_owned(), ToString::to_string);
        match self {
            Self::Relation { name, at: moment } => write!(f, "{name} AS OF {}", at(moment)),
            Self::History { name } => write!(f, "{TABLE_HISTORY}('{name}')"),
            Self::Changes { name, from, to } => {
                write!(f, "{TABLE_CHANGES}('{name}', {}, {})", at(from), at(to))
            }
        }
    }
}

/// How a statement is planned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    /// The values of `$1`, `$2`, ….
    pub(crate) parameters: Vec<ScalarValue>,
    /// The moment of the tables that have none of their own: inside a view that is read at a moment.
    pub(crate) as_of: Option<AsOf>,
    /// Names are checked, and parameters may have no values yet.
    pub(crate) is_check: bool,
    /// How many views are around the statement.
    pub(crate) depth: usize,
}

impl Planner<'_> {
    /// Replaces each moment in the statement by a mark; the pins in the order of the marks' numbers.
    ///
    /// # Errors
    /// A moment that is no constant, or on what has no versions.
    pub(crate) fn pin<T: VisitMut>(&self, statement: &mut T, scope: &Scope) -> Result<Vec<Pin>> {
        let mut pinner = Pinner { planner: self, scope, ctes: CteScope::default(), pins: vec![] };
        match statement.visit(&mut pinner) {
            ControlFlow::Continue(()) => Ok(pinner.pins),
            ControlFlow::Break(error) => Err(error),
        }
    }
}

struct Pinner<'a, 'p> {
    planner: &'a Planner<'p>,
    scope: &'a Scope,
    ctes: CteScope,
    pins: Vec<Pin>,
}

impl VisitorMut for Pinner<'_, '_> {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<DataFusionError> {
        self.ctes.enter(query);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<DataFusionError> {
        self.ctes.leave();
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<DataFusionError> {
        match self.factor(factor) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

impl Pinner<'_, '_> {
    fn factor(&mut self, factor: &mut TableFactor) -> Result<()> {
        if let TableFactor::Table { name, .. } = factor
            && name.0.first().and_then(ast::ObjectNamePart::as_ident).is_some_and(|part| part.value == MARK)
        {
            return plan_err!("there is no table {name}");
        }
        let call = match factor {
            TableFactor::Table { name, args: Some(args), version, .. } => {
                if let Some(version) = version {
                    return plan_err!("{name}(…) is a function and has no versions; leave {version} out");
                }
                if is_search(name) {
                    return self.search(&mut args.args);
                }
                (name.clone(), args.args.clone())
            }
            TableFactor::Function { name, args, .. } if is_search(name) => return self.search(args),
            TableFactor::Function { name, args, .. } => (name.clone(), args.clone()),
            TableFactor::Table { name, version, .. } => return self.table(name, version),
            _ => return Ok(()),
        };
        let (name, args) = call;
        let pin = if is_named(&name, TABLE_HISTORY) {
            self.history(&args)?
        } else if is_named(&name, TABLE_CHANGES) {
            self.changes(&args)?
        } else {
            return Ok(());
        };
        let version = Some(TableVersion::Function(self.mark(pin)));
        match factor {
            TableFactor::Table { args, version: place, .. } => {
                *args = None;
                *place = version;
            }
            TableFactor::Function { with_ordinality: true, .. } => {
                return unsupported("WITH ORDINALITY is not supported; write row_number() OVER ()");
            }
            TableFactor::Function { alias, .. } => {
                let alias = alias.clone();
                *factor = plain_table(name, alias, version);
            }
            _ => {}
        }
        Ok(())
    }

    /// A table's own version, or that of the view around it.
    fn table(&mut self, name: &ObjectName, version: &mut Option<TableVersion>) -> Result<()> {
        let at = match version {
            Some(version) if self.ctes.hides(name) => {
                return plan_err!(
                    "{name} is the name of a WITH query and has no versions; write {version} behind the tables in it"
                );
            }
            Some(version) => self.moment(&Moment::of_clause(version)?)?,
            None if self.ctes.hides(name) => return Ok(()),
            None => match &self.scope.as_of {
                Some(at) => Some(at.clone()),
                None => return Ok(()),
            },
        };
        let name = RelationName::of_sql(name)?;
        *version = Some(TableVersion::Function(self.mark(Pin::Relation { name, at })));
        Ok(())
    }

    /// The named arguments `version`, `tag` and `as_of` of a search become one mark.
    fn search(&mut self, args: &mut Vec<FunctionArg>) -> Result<()> {
        let mut moments = vec![];
        let mut rest = Vec::with_capacity(args.len());
        for arg in args.drain(..) {
            let name = match &arg {
                FunctionArg::Named { name, .. } => name.value.to_lowercase(),
                FunctionArg::ExprNamed { name, .. } => name.to_string().to_lowercase(),
                FunctionArg::Unnamed(_) => String::new(),
            };
            if name.starts_with(MARK) {
                return plan_err!("a search has no argument {name}");
            }
            let kind = if name == "as_of" { "timestamp" } else { name.as_str() };
            let moment = match &arg {
                FunctionArg::Named { arg: FunctionArgExpr::Expr(value), .. }
                | FunctionArg::ExprNamed { arg: FunctionArgExpr::Expr(value), .. }
                    if name != "timestamp" =>
                {
                    Moment::of_named(kind, value)
                }
                _ => None,
            };
            match moment {
                Some(moment) => moments.push(moment),
                None => rest.push(arg),
            }
        }
        *args = rest;
        let at = match moments.as_slice() {
            [] => match &self.scope.as_of {
                Some(at) => Some(at.clone()),
                None => return Ok(()),
            },
            [moment] => self.moment(moment)?,
            _ => return plan_err!("a search takes one of version, tag and as_of, not several"),
        };
        // What is no name of a table is the relation planner's to refuse.
        let table = args.iter().find(|arg| matches!(arg, FunctionArg::Unnamed(_)));
        let Some(name) = table.and_then(text_argument).and_then(|text| parse_name(&text).ok()) else {
            return Ok(());
        };
        if self.ctes.hides(&name) {
            return plan_err!("{name} is the name of a WITH query and has no versions; search a table at a moment");
        }
        let pin = Pin::Relation { name: RelationName::of_sql(&name)?, at };
        let arg = FunctionArgExpr::Expr(self.mark(pin));
        let name = Ident::with_quote('"', MARK);
        args.push(FunctionArg::Named { name, arg, operator: ast::FunctionArgOperator::RightArrow });
        Ok(())
    }

    fn history(&mut self, args: &[FunctionArg]) -> Result<Pin> {
        match args {
            [table] => Ok(Pin::History { name: self.table_argument(table, TABLE_HISTORY, HISTORY_USAGE)? }),
            _ => plan_err!("{TABLE_HISTORY} takes one argument, not {}; {HISTORY_USAGE}", args.len()),
        }
    }

    fn changes(&mut self, args: &[FunctionArg]) -> Result<Pin> {
        let [table, from, to] = args else {
            return plan_err!("{TABLE_CHANGES} takes three arguments, not {}; {CHANGES_USAGE}", args.len());
        };
        let name = self.table_argument(table, TABLE_CHANGES, CHANGES_USAGE)?;
        Ok(Pin::Changes { name, from: self.bound(from)?, to: self.bound(to)? })
    }

    fn table_argument(&self, arg: &FunctionArg, function: &str, usage: &str) -> Result<RelationName> {
        match text_argument(arg) {
            Some(text) => RelationName::of_sql(&parse_name(&text)?),
            None => plan_err!("{function} names the table by a text in single quotes, not {arg}; {usage}"),
        }
    }

    /// One end of `table_changes`.
    fn bound(&self, arg: &FunctionArg) -> Result<Option<AsOf>> {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = arg else {
            return plan_err!("{TABLE_CHANGES} does not take {arg}; {CHANGES_USAGE}");
        };
        match self.planner.constant(expr, &self.scope.parameters)? {
            Some(value) => of_value(&value, &expr.to_string()).map(Some),
            None if self.scope.is_check => Ok(None),
            None => no_value(expr),
        }
    }

    fn moment(&self, moment: &Moment) -> Result<Option<AsOf>> {
        if self.scope.is_check {
            self.planner.moment_if_bound(moment, &self.scope.parameters)
        } else {
            self.planner.moment(moment, &self.scope.parameters).map(Some)
        }
    }

    fn mark(&mut self, pin: Pin) -> ast::Expr {
        let expr = mark_expr(number(self.pins.len()), &pin.to_string());
        self.pins.push(pin);
        expr
    }
}

fn is_search(name: &ObjectName) -> bool {
    SEARCHES.into_iter().any(|search| is_named(name, search))
}

fn is_named(name: &ObjectName, function: &str) -> bool {
    name.to_string().eq_ignore_ascii_case(function)
}

/// The text in quotes that an argument is.
pub(crate) fn text_argument(arg: &FunctionArg) -> Option<String> {
    match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(ast::Expr::Value(value))) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// A table of this name without any further clause.
pub(crate) fn plain_table(
    name: ObjectName,
    alias: Option<ast::TableAlias>,
    version: Option<TableVersion>,
) -> TableFactor {
    TableFactor::Table {
        name,
        alias,
        args: None,
        with_hints: vec![],
        version,
        with_ordinality: false,
        partitions: vec![],
        json_path: None,
        sample: None,
        index_hints: vec![],
    }
}

fn number(value: usize) -> ast::Expr {
    ast::Expr::Value(Value::Number(value.to_string(), false).into())
}

fn mark_expr(index: ast::Expr, label: &str) -> ast::Expr {
    let argument = |expr: ast::Expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr));
    let label = ast::Expr::Value(Value::SingleQuotedString(label.to_owned()).into());
    ast::Expr::Function(Function {
        name: ObjectName::from(vec![Ident::with_quote('"', MARK)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: vec![argument(index), argument(label)],
            clauses: vec![],
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
}

/// A mark that was read back: the pin's number and what plans call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    index: usize,
    /// What plans call the table.
    pub(crate) label: String,
}

impl Mark {
    /// The mark in the place of a version; `None` if the version is as the user wrote it.
    pub(crate) fn of_version(version: &TableVersion) -> Option<Self> {
        match version {
            TableVersion::Function(expr) => Self::of_expr(expr),
            _ => None,
        }
    }

    /// The mark among the arguments of a search.
    pub(crate) fn of_argument(name: &str, value: &ast::Expr) -> Option<Self> {
        if name == MARK { Self::of_expr(value) } else { None }
    }

    fn of_expr(expr: &ast::Expr) -> Option<Self> {
        let ast::Expr::Function(call) = expr else { return None };
        let [part] = call.name.0.as_slice() else { return None };
        let FunctionArguments::List(list) = &call.args else { return None };
        let [FunctionArg::Unnamed(FunctionArgExpr::Expr(index)), label] = list.args.as_slice() else { return None };
        if part.as_ident()?.value != MARK {
            return None;
        }
        Some(Self { index: index.to_string().parse().ok()?, label: text_argument(label)? })
    }

    /// The version clause that carries the mark.
    pub(crate) fn as_version(&self) -> TableVersion {
        TableVersion::Function(mark_expr(number(self.index), &self.label))
    }

    /// The name under which the context keeps the table.
    pub(crate) fn reference(&self) -> TableReference {
        TableReference::full(MARK, self.index.to_string(), "")
    }
}

/// The number of the pin that a reference names.
pub(crate) fn index_of(reference: &TableReference) -> Option<usize> {
    match reference {
        TableReference::Full { catalog, schema, .. } if catalog.as_ref() == MARK => schema.parse().ok(),
        _ => None,
    }
}

/// For the target of UPDATE, DELETE and MERGE, whose rows are those of the newest version.
///
/// # Errors
/// A version behind the table's name.
pub fn refuse_version(target: &TableFactor) -> Result<()> {
    match target {
        TableFactor::Table { name, version: Some(version), .. } => plan_err!(
            "{name} {version} cannot be changed: what is written is the newest version; leave {version} out, or write RESTORE TABLE"
        ),
        _ => Ok(()),
    }
}

/// The text of a query that parses back to it. The parser's own form writes a table's version behind its alias,
/// where no grammar has it.
pub fn text_of(query: &Query) -> String {
    struct Speller;
    impl VisitorMut for Speller {
        type Break = ();

        fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
            if let TableFactor::Table { name, version, .. } = factor
                && let Some(version) = version.take()
            {
                // An identifier without quotes is written as it is.
                *name = ObjectName::from(vec![Ident::new(format!("{name} {version}"))]);
            }
            ControlFlow::Continue(())
        }
    }
    let mut query = query.clone();
    let _: ControlFlow<()> = query.visit(&mut Speller);
    crate::sql_text::sql_text(&query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back() {
        let mark = Mark { index: 3, label: "docs AS OF TAG 'x'".into() };
        assert_eq!(Mark::of_version(&mark.as_version()).as_ref(), Some(&mark));
        assert_eq!(index_of(&mark.reference()), Some(3));
        assert_eq!(index_of(&TableReference::full("sagitta", "3", "docs")), None);
    }

    #[test]
    fn the_text_of_a_query_parses_back() {
        for sql in [
            "SELECT d.id FROM docs FOR VERSION AS OF 3 AS d",
            "SELECT d.id FROM docs VERSION AS OF 'prod' d JOIN s.\"T\" AT(VERSION => 2) t ON d.id = t.id",
            "SELECT * FROM docs AS OF TIMESTAMP now() - INTERVAL '1 hour' x WHERE id IN (SELECT id FROM y AS OF VERSION 1 z)",
        ] {
            let parse = |sql: &str| crate::statement::parse(sql).ok().and_then(|mut parsed| parsed.pop());
            let query = |sql: &str| match parse(sql).map(|statement| statement.kind) {
                Some(crate::statement::StatementKind::Sql(statement)) => match *statement {
                    ast::Statement::Query(query) => Some(query),
                    _ => None,
                },
                _ => None,
            };
            let first = query(sql).map(|query| text_of(&query)).unwrap_or_default();
            let second = query(&first).map(|query| text_of(&query)).unwrap_or_default();
            assert!((first.contains("AS OF") || first.contains("AT(")) && first == second, "{sql}\n{first}\n{second}");
        }
    }
}
