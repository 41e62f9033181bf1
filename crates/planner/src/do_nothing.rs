//! `THEN DO NOTHING` of MERGE, which the parser does not know: it is brought into the form of a clause that it knows,
//! with a column that no table can have, since names of columns hold no dot.

use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use crate::tokens::{is_blank, is_word};

/// The column that is set where nothing is to be done.
pub const DO_NOTHING: &str = "do.nothing";

/// The tokens that stand for DO NOTHING behind `before`; `None` if it does not end in a THEN of MERGE.
pub(crate) fn stand_in(before: &[TokenWithSpan], span: Span) -> Option<Vec<TokenWithSpan>> {
    let solid: Vec<&Token> = before.iter().map(|token| &token.token).filter(|token| !is_blank(token)).collect();
    if !is_word(solid.last()?, "THEN") || !is_merge(&solid) {
        return None;
    }
    let begins = |at: &usize| match &solid[..=*at] {
        [.., when, matched] if is_word(when, "WHEN") => is_word(matched, "MATCHED"),
        [.., when, not, matched] if is_word(when, "WHEN") && is_word(not, "NOT") => is_word(matched, "MATCHED"),
        _ => false,
    };
    let matched = (0..solid.len()).rev().find(begins)?;
    let is_not = is_word(solid[matched - 1], "NOT");
    let by_source = matches!(&solid[matched + 1..], [by, source, ..] if is_word(by, "BY") && is_word(source, "SOURCE"));
    let column = Token::make_word(DO_NOTHING, Some('"'));
    let zero = Token::Number("0".into(), false);
    let tokens = if is_not && !by_source {
        vec![
            Token::make_keyword("INSERT"),
            Token::LParen,
            column,
            Token::RParen,
            Token::make_keyword("VALUES"),
            Token::LParen,
            zero,
            Token::RParen,
        ]
    } else {
        vec![Token::make_keyword("UPDATE"), Token::make_keyword("SET"), column, Token::Eq, zero]
    };
    Some(tokens.into_iter().map(|token| TokenWithSpan { token, span }).collect())
}

/// True within MERGE INTO, behind EXPLAIN or PREPARE too.
fn is_merge(solid: &[&Token]) -> bool {
    solid.windows(2).any(|pair| is_word(pair[0], "MERGE") && is_word(pair[1], "INTO"))
}
