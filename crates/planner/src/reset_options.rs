//! `ALTER TABLE t RESET (option, …)`, which the parser does not know: it becomes `SET (option = DEFAULT, …)`.

use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use crate::tokens::{is_blank, is_word};

/// The tokens that stand for the clause at the head of `clause`, and how many tokens it has; `None` if it does not
/// follow upon ALTER TABLE (`before`) or is no list of names.
pub(crate) fn stand_in(before: &[TokenWithSpan], clause: &[TokenWithSpan]) -> Option<(Vec<TokenWithSpan>, usize)> {
    let mut first = before.iter().filter(|token| !is_blank(&token.token));
    if !is_word(&first.next()?.token, "ALTER") || !is_word(&first.next()?.token, "TABLE") {
        return None;
    }
    let end = clause.iter().position(|token| token.token == Token::RParen)?;
    let solid: Vec<&TokenWithSpan> = clause[..=end].iter().filter(|token| !is_blank(&token.token)).collect();
    let [reset, open, names @ ..] = solid.as_slice() else { return None };
    if open.token != Token::LParen || names.is_empty() {
        return None;
    }
    let place = |token: Token, span: Span| TokenWithSpan { token, span };
    let mut out = vec![place(Token::make_keyword("SET"), reset.span), place(Token::LParen, open.span)];
    for pair in names.chunks(2) {
        let [name, mark] = pair else { return None };
        if !matches!(name.token, Token::Word(_)) || !matches!(mark.token, Token::Comma | Token::RParen) {
            return None;
        }
        out.extend([place(name.token.clone(), name.span), place(Token::Eq, name.span)]);
        out.extend([place(Token::make_keyword("DEFAULT"), name.span), place(mark.token.clone(), mark.span)]);
    }
    Some((out, end + 1))
}

#[cfg(test)]
mod tests {
    use crate::statement::{StatementKind, parse};

    #[test]
    fn reset_is_read_as_set_to_the_default() {
        for (sql, expected) in [
            ("ALTER TABLE t RESET (retention)", Some("ALTER TABLE t SET (retention = DEFAULT)")),
            ("alter table s.t reset ( \"A\" , b )", Some("ALTER TABLE s.t SET (\"A\" = DEFAULT, b = DEFAULT)")),
            ("ALTER TABLE t RESET ()", None),
            ("ALTER TABLE t RESET (retention,)", None),
            ("ALTER TABLE t RESET (retention = 1)", None),
            ("ALTER TABLE t RESET retention", None),
            ("ALTER TABLE t RESET (retention) now", None),
            ("SELECT reset(a, b)", Some("SELECT reset(a, b)")),
        ] {
            let read = match parse(sql).ok().and_then(|mut parsed| parsed.pop()).map(|statement| statement.kind) {
                Some(StatementKind::Sql(statement)) => Some(statement.to_string()),
                _ => None,
            };
            assert_eq!(read.as_deref(), expected, "{sql}");
        }
    }
}
