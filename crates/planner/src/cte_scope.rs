//! Which names are those of common table expressions, at each place of a statement that is being visited.

use datafusion::sql::sqlparser::ast::{Ident, ObjectName, Query};

/// Follows a visitor through nested queries: a name in WITH hides the table of that name in the queries that come
/// after it, and in its own query if the WITH is RECURSIVE.
#[derive(Debug, Default)]
pub(crate) struct CteScope {
    frames: Vec<Frame>,
}

#[derive(Debug)]
struct Frame {
    names: Vec<String>,
    /// How many of the names have had their queries visited: a visitor comes to them first, in order.
    done: usize,
    is_recursive: bool,
}

impl CteScope {
    /// Before the children of a query are visited.
    pub(crate) fn enter(&mut self, query: &Query) {
        let names = query.with.iter().flat_map(|with| &with.cte_tables).map(|cte| folded(&cte.alias.name)).collect();
        let is_recursive = query.with.as_ref().is_some_and(|with| with.recursive);
        self.frames.push(Frame { names, done: 0, is_recursive });
    }

    /// After the children of a query were visited.
    pub(crate) fn leave(&mut self) {
        self.frames.pop();
        if let Some(parent) = self.frames.last_mut()
            && parent.done < parent.names.len()
        {
            parent.done += 1;
        }
    }

    /// True if the name stands for a common table expression here.
    pub(crate) fn hides(&self, name: &ObjectName) -> bool {
        let [part] = name.0.as_slice() else { return false };
        let Some(name) = part.as_ident().map(folded) else { return false };
        self.frames.iter().any(|frame| {
            let visible = if frame.is_recursive { frame.done + 1 } else { frame.done };
            frame.names.iter().take(visible).any(|cte| *cte == name)
        })
    }
}

fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::ast::{Visit, Visitor};
    use datafusion::sql::sqlparser::parser::Parser;
    use std::ops::ControlFlow;

    #[derive(Default)]
    struct Tables {
        scope: CteScope,
        found: Vec<String>,
    }

    impl Visitor for Tables {
        type Break = ();

        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
            self.scope.enter(query);
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.scope.leave();
            ControlFlow::Continue(())
        }

        fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<()> {
            if !self.scope.hides(name) {
                self.found.push(name.to_string());
            }
            ControlFlow::Continue(())
        }
    }

    #[test]
    fn a_name_in_with_hides_the_table_after_it() {
        for (sql, tables) in [
            ("WITH a AS (SELECT * FROM a) SELECT * FROM a", "a"),
            ("WITH a AS (SELECT * FROM x), b AS (SELECT * FROM a, b) SELECT * FROM a, b, c", "x b c"),
            ("WITH RECURSIVE a AS (SELECT 1 UNION ALL SELECT * FROM a) SELECT * FROM a", ""),
            ("SELECT * FROM (WITH a AS (SELECT 1) SELECT * FROM a) q, a", "a"),
            ("WITH a AS (SELECT 1) SELECT * FROM t WHERE x IN (SELECT y FROM \"A\", A, s.a)", "t \"A\" s.a"),
        ] {
            let mut visitor = Tables::default();
            let parsed = Parser::parse_sql(&crate::dialect::SagittaDialect, sql).unwrap_or_default();
            let _: ControlFlow<()> = parsed.visit(&mut visitor);
            assert_eq!(visitor.found.join(" "), tables, "{sql}");
        }
    }
}
