//! Words and names of statements that are read here, token by token.

use datafusion::sql::sqlparser::ast::ObjectName;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::tokens::is_word;

pub(crate) type Parsed<T> = Result<T, ParserError>;

/// Takes the word if it is next.
pub(crate) fn accepts(parser: &mut Parser, word: &str) -> bool {
    let is_next = is_word(&parser.peek_token_ref().token, word);
    if is_next {
        parser.next_token();
    }
    is_next
}

/// # Errors
/// Another word is next: `usage`, and its place.
pub(crate) fn expect(parser: &mut Parser, word: &str, usage: &str) -> Parsed<()> {
    if accepts(parser, word) { Ok(()) } else { refuse(parser, usage) }
}

/// The error at the next token, in the form that carries its place.
pub(crate) fn refuse<T>(parser: &Parser, message: &str) -> Parsed<T> {
    let next = parser.peek_token_ref();
    let found = if next.token == Token::EOF { "the end".to_owned() } else { next.token.to_string() };
    Err(ParserError::ParserError(format!("{message}; found: {found}{}", next.span.start)))
}

/// A name, folded to lower case unless quoted.
pub(crate) fn name(parser: &mut Parser, usage: &str) -> Parsed<String> {
    match parser.peek_token_ref().token.clone() {
        Token::Word(word) => {
            parser.next_token();
            Ok(if word.quote_style.is_some() { word.value } else { word.value.to_lowercase() })
        }
        _ => refuse(parser, usage),
    }
}

/// The name of a table, or of something beside tables.
pub(crate) fn object(parser: &mut Parser, usage: &str) -> Parsed<ObjectName> {
    match parser.peek_token_ref().token {
        Token::Word(_) => parser.parse_object_name(false),
        _ => refuse(parser, usage),
    }
}

/// # Errors
/// The statement goes on.
pub(crate) fn end(parser: &Parser) -> Parsed<()> {
    match parser.peek_token_ref().token {
        Token::EOF => Ok(()),
        _ => refuse(parser, "expected the end of the statement"),
    }
}
