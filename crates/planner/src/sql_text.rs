//! The text of parsed SQL that is stored and parsed again: views and defaults.

use std::fmt::Display;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Value, ValueWithSpan, VisitMut, VisitorMut};

/// SQL that means what `node` means. The parser's own text does not where a string holds two quotes in a row, or one
/// behind a backslash: it takes them for escaped already.
pub fn sql_text<T: VisitMut + Clone + Display>(node: &T) -> String {
    let mut node = node.clone();
    let _: ControlFlow<()> = node.visit(&mut Escaper);
    node.to_string()
}

/// Doubles each quote in a string; pairs are then written as they are.
struct Escaper;

impl VisitorMut for Escaper {
    type Break = ();

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<()> {
        if let Value::SingleQuotedString(text) = &mut value.value
            && text.contains('\'')
        {
            *text = text.replace('\'', "''");
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::sql_text;
    use crate::statement::{StatementKind, parse};

    #[test]
    fn strings_come_back_as_they_were() {
        for text in ["it''s", "''", "''''", "a''''b", "''''''", r"\''", r"a\''''b", r"\", r"\\''", "''x''''y''"] {
            let sql = format!("SELECT '{text}' AS a, f('{text}') FROM t WHERE b = '{text}'");
            let mut parsed = parse(&sql).unwrap();
            let Some(StatementKind::Sql(statement)) = parsed.pop().map(|statement| statement.kind) else {
                panic!("{sql} is no statement")
            };
            assert_eq!(sql_text(statement.as_ref()), sql);
        }
    }
}
