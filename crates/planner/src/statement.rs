//! From SQL text to parsed statements, each with its place in the text.

use std::ops::Range;

use datafusion::common::{plan_datafusion_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::sql::parser::{CopyToStatement, DFParserBuilder, ResetStatement, Statement as Parsed};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::dialect::SagittaDialect;
use crate::index_statement::{self, IndexStatement};
use crate::time_statement::{self, TimeStatement};
use crate::tokens;
use crate::user_statement::{self, UserStatement};

/// How deep expressions and queries may nest, so that no text can overflow the stack of the parser.
pub const NESTING_MAX: usize = 128;
/// The longest SQL text that is accepted, in bytes.
pub const TEXT_BYTES_MAX: usize = 64 << 20;

/// One statement of a text.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The statement without its semicolon, and without the password of one about users.
    pub text: String,
    /// Where it stands in the text that was parsed, in bytes.
    pub range: Range<usize>,
    /// What it says.
    pub kind: StatementKind,
}

/// What a statement says.
#[derive(Debug, Clone)]
pub enum StatementKind {
    /// A statement of the SQL parser's own grammar.
    Sql(Box<ast::Statement>),
    /// `CREATE EXTERNAL TABLE`.
    CreateExternal(Box<datafusion::sql::parser::CreateExternalTable>),
    /// `COPY … TO 'file'`.
    CopyTo(Box<CopyToStatement>),
    /// `COPY table FROM 'file'`.
    CopyFrom(Box<CopyFrom>),
    /// `EXPLAIN [ANALYZE] [VERBOSE] statement`.
    Explain(Box<Explain>),
    /// `RESET setting` or `RESET ALL`.
    Reset(String),
    /// Tags, RESTORE, OPTIMIZE, VACUUM.
    Time(Box<TimeStatement>),
    /// `CREATE INDEX`, `DROP INDEX`, `REINDEX`, `PREWARM`.
    Index(Box<IndexStatement>),
    /// `CHECK TABLE table`.
    Check(ast::ObjectName),
    /// `KILL [QUERY] 'id'`.
    Kill(String),
    /// Users, GRANT, REVOKE.
    User(Box<UserStatement>),
    /// A query that is no text: a Substrait plan.
    Substrait(crate::substrait::SubstraitPlan),
}

/// `COPY table [(columns)] FROM 'file' [STORED AS format] [OPTIONS (key value, …)]`.
#[derive(Debug, Clone)]
pub struct CopyFrom {
    /// The table that takes the rows.
    pub table: ast::ObjectName,
    /// The columns that the file's columns go to; all of the table's if empty.
    pub columns: Vec<ast::Ident>,
    /// File, glob, folder or URL.
    pub source: String,
    /// The file's format; told from the file's name if absent.
    pub format: Option<String>,
    /// Further options, keys in lower case.
    pub options: Vec<(String, String)>,
}

/// `EXPLAIN` of a statement.
#[derive(Debug, Clone)]
pub struct Explain {
    /// Run the statement and show what was measured.
    pub analyze: bool,
    /// Show every step of the optimizer.
    pub verbose: bool,
    /// `indent` or `tree`.
    pub format: Option<String>,
    /// The statement to explain.
    pub statement: StatementKind,
}

/// Parses a text into its statements.
///
/// # Errors
/// The first mistake of syntax, with line and column of the text.
pub fn parse(sql: &str) -> Result<Vec<Statement>> {
    if sql.len() > TEXT_BYTES_MAX {
        return Err(syntax(format!(
            "the SQL text has {} bytes, more than the {TEXT_BYTES_MAX} that are accepted; load data with COPY or import",
            sql.len()
        )));
    }
    let all = tokens::tokenize(sql).map_err(|error| DataFusionError::from(ParserError::from(error)))?;
    let places = tokens::Places::new(sql);
    tokens::split(all).into_iter().map(|part| parse_one(sql, &places, part)).collect()
}

/// Parses a condition that is written as a text of its own.
///
/// # Errors
/// A mistake of syntax, or more than one condition.
pub(crate) fn parse_condition(text: &str) -> Result<ast::Expr> {
    // Places in it are not places in the statement.
    let unread = |error: ParserError| {
        let said = error.to_string();
        let said = said.split(" at Line").next().unwrap_or_default().trim_start_matches("sql parser error: ");
        plan_datafusion_err!("the filter '{text}' cannot be read: {said}")
    };
    let tokens = tokens::tokenize(text).map_err(|error| unread(error.into()))?;
    let mut parser = Parser::new(&SagittaDialect)
        .with_tokens_with_locations(with_end(&tokens::rewrite(&tokens)))
        .with_recursion_limit(NESTING_MAX);
    let condition = parser.parse_expr().map_err(unread)?;
    match &parser.peek_token_ref().token {
        Token::EOF => Ok(condition),
        other => plan_err!("filter is one condition, but {other} follows in '{text}'"),
    }
}

fn parse_one(sql: &str, places: &tokens::Places<'_>, part: Vec<TokenWithSpan>) -> Result<Statement> {
    let range = tokens::range_of(places, &part);
    if tokens::mixes_parameters(&part) {
        return Err(syntax(
            "the statement has parameters of both kinds, ? and $1; write all of them in one way".into(),
        ));
    }
    let kind = parse_kind(&tokens::rewrite(&part))?;
    let text = match kind {
        StatementKind::User(_) => user_statement::shown(sql, places, &part),
        _ => sql[range.clone()].to_owned(),
    };
    Ok(Statement { text, range, kind })
}

fn parse_kind(part: &[TokenWithSpan]) -> Result<StatementKind> {
    let solid: Vec<&Token> = part.iter().map(|t| &t.token).filter(|t| !tokens::is_blank(t)).collect();
    let starts = |words: &[&str]| {
        solid.len() >= words.len() && words.iter().zip(&solid).all(|(word, token)| tokens::is_word(token, word))
    };
    if starts(&["EXPLAIN"]) || starts(&["DESCRIBE", "SELECT"]) {
        return parse_explain(part);
    }
    if starts(&["COPY"]) && is_copy_from(&solid) {
        return parse_copy_from(part);
    }
    if time_statement::starts(starts) {
        let mut parser =
            Parser::new(&SagittaDialect).with_tokens_with_locations(with_end(part)).with_recursion_limit(NESTING_MAX);
        let time = time_statement::parse(&mut parser).map_err(DataFusionError::from)?;
        return Ok(StatementKind::Time(Box::new(time)));
    }
    if index_statement::starts(starts) {
        let mut parser =
            Parser::new(&SagittaDialect).with_tokens_with_locations(with_end(part)).with_recursion_limit(NESTING_MAX);
        let index = index_statement::parse(&mut parser).map_err(DataFusionError::from)?;
        return Ok(StatementKind::Index(Box::new(index)));
    }
    if user_statement::starts(starts) {
        let mut parser =
            Parser::new(&SagittaDialect).with_tokens_with_locations(with_end(part)).with_recursion_limit(NESTING_MAX);
        return Ok(StatementKind::User(Box::new(user_statement::parse(&mut parser)?)));
    }
    if starts(&["CHECK", "TABLE"]) {
        return parse_check(part);
    }
    if starts(&["KILL"]) {
        return parse_kill(&solid);
    }
    refuse_unbuilt(&solid)?;
    if starts(&["PREPARE"]) {
        refuse_prepared_user(&solid)?;
    }
    refuse_foreign_words(&solid)?;
    let mut parser =
        DFParserBuilder::new(with_end(part)).with_dialect(&SagittaDialect).with_recursion_limit(NESTING_MAX).build()?;
    let mut statements = parser.parse_statements()?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => kind_of(statement),
        _ => Err(syntax("expected one statement".into())),
    }
}

/// The tokens with an end marker at the place of the last one: an error at the end then points there.
fn with_end(part: &[TokenWithSpan]) -> Vec<TokenWithSpan> {
    let mut tokens = part.to_vec();
    if let Some(last) = part.last() {
        let end = last.span.end;
        let span = datafusion::sql::sqlparser::tokenizer::Span::new(end, end);
        tokens.push(TokenWithSpan { token: Token::EOF, span });
    }
    tokens
}

fn kind_of(statement: Parsed) -> Result<StatementKind> {
    Ok(match statement {
        Parsed::Statement(statement) => StatementKind::Sql(statement),
        Parsed::CreateExternalTable(create) => StatementKind::CreateExternal(Box::new(create)),
        Parsed::CopyTo(copy) => StatementKind::CopyTo(Box::new(copy)),
        Parsed::Reset(ResetStatement::Variable(name)) => StatementKind::Reset(name.to_string()),
        Parsed::Explain(_) => {
            return Err(syntax("EXPLAIN of EXPLAIN says nothing; explain the statement itself".into()));
        }
    })
}

/// Statements that the SQL surface promises and that are not built: some of them the parser does not even know.
const UNBUILT: &[(&[&str], &str)] = &[
    (&["CREATE", "UNIQUE", "INDEX"], "a primary key is unique"),
    (&["CREATE", "VECTOR", "INDEX"], "write CREATE INDEX name ON table USING method (column)"),
    (&["ANALYZE"], "statistics are those that the files have"),
    (&["CHECK"], "write CHECK TABLE t"),
    (&["CREATE", "ROLE"], NO_ROLES),
    (&["ALTER", "ROLE"], NO_ROLES),
    (&["DROP", "ROLE"], NO_ROLES),
    (&["BEGIN"], ONE_TRANSACTION),
    (&["START", "TRANSACTION"], ONE_TRANSACTION),
    (&["COMMIT"], ONE_TRANSACTION),
    (&["ROLLBACK"], ONE_TRANSACTION),
    (&["ATTACH"], "read a foreign dataset with CREATE EXTERNAL TABLE t STORED AS LANCE LOCATION '…'"),
    (&["DETACH"], "forget a foreign dataset with DROP TABLE"),
];

const NO_ROLES: &str =
    "rights are given to users: write CREATE USER name PASSWORD '…' and GRANT READ ON SCHEMA s TO name";
const ONE_TRANSACTION: &str = "each statement is its own transaction";

fn refuse_unbuilt(solid: &[&Token]) -> Result<()> {
    let starts = |words: &[&str]| {
        solid.len() >= words.len() && words.iter().zip(solid).all(|(word, token)| tokens::is_word(token, word))
    };
    match UNBUILT.iter().find(|(words, _)| starts(words)) {
        Some((words, instead)) => {
            Err(DataFusionError::NotImplemented(format!("{} is not built yet; {instead}", words.join(" "))))
        }
        None => Ok(()),
    }
}

/// # Errors
/// A statement about users behind PREPARE, which would keep the password.
fn refuse_prepared_user(solid: &[&Token]) -> Result<()> {
    let is_one_of = |token: &Token, words: &[&str]| words.iter().any(|word| tokens::is_word(token, word));
    let is_user = |three: &[&Token]| {
        tokens::is_word(three[0], "AS")
            && is_one_of(three[1], &["CREATE", "ALTER"])
            && is_one_of(three[2], &["USER", "ROLE"])
    };
    match solid.windows(3).any(is_user) {
        true => Err(syntax("a statement about users is not prepared; run it by itself".into())),
        false => Ok(()),
    }
}

/// Words that other systems' grammars have in a FROM clause and that this parser would take for an alias.
fn refuse_foreign_words(solid: &[&Token]) -> Result<()> {
    for pair in solid.windows(2) {
        if tokens::is_word(pair[0], "KNN") && tokens::is_word(pair[1], "JOIN") {
            return Err(DataFusionError::NotImplemented(
                "KNN JOIN is not a join of this dialect; write CROSS JOIN LATERAL (SELECT … ORDER BY distance LIMIT k)"
                    .into(),
            ));
        }
        if tokens::is_word(pair[0], "NEAREST")
            && (tokens::is_word(pair[1], "BY") || matches!(pair[1], Token::Number(..)))
        {
            return Err(DataFusionError::NotImplemented("NEAREST … BY (KNN join) is not built yet".into()));
        }
    }
    Ok(())
}

fn parse_kill(solid: &[&Token]) -> Result<StatementKind> {
    let rest = match solid {
        [_, query, rest @ ..] if tokens::is_word(query, "QUERY") => rest,
        [_, rest @ ..] => rest,
        [] => &[],
    };
    match rest {
        [Token::SingleQuotedString(id)] => Ok(StatementKind::Kill(id.clone())),
        [Token::Number(id, _)] => Ok(StatementKind::Kill(id.clone())),
        _ => Err(syntax("write KILL QUERY 'id'; SELECT query_id FROM system.queries lists the statements".into())),
    }
}

fn parse_explain(part: &[TokenWithSpan]) -> Result<StatementKind> {
    let mut explain =
        Explain { analyze: false, verbose: false, format: None, statement: StatementKind::Reset(String::new()) };
    let solid: Vec<usize> = (0..part.len()).filter(|i| !tokens::is_blank(&part[*i].token)).collect();
    let mut at = 1;
    let word = |at: usize| solid.get(at).map(|i| &part[*i].token);
    if word(at) == Some(&Token::LParen) {
        at = parse_explain_options(&|at| word(at).cloned(), at + 1, &mut explain)?;
    }
    loop {
        match word(at) {
            Some(token) if tokens::is_word(token, "ANALYZE") || tokens::is_word(token, "ANALYSE") => {
                explain.analyze = true
            }
            Some(token) if tokens::is_word(token, "VERBOSE") => explain.verbose = true,
            Some(token) if tokens::is_word(token, "FORMAT") => {
                at += 1;
                explain.format = word(at).map(|format| format.to_string().to_lowercase());
            }
            _ => break,
        }
        at += 1;
    }
    let Some(start) = solid.get(at) else {
        return Err(syntax("EXPLAIN needs a statement to explain".into()));
    };
    explain.statement = parse_kind(&part[*start..])?;
    if matches!(explain.statement, StatementKind::User(_)) {
        return Err(syntax("EXPLAIN shows plans; a statement about users has no plan".into()));
    }
    if matches!(explain.statement, StatementKind::Explain(_)) {
        return Err(syntax("EXPLAIN of EXPLAIN says nothing; explain the statement itself".into()));
    }
    Ok(StatementKind::Explain(Box::new(explain)))
}

/// Reads `ANALYZE, VERBOSE, FORMAT x)`; returns the place behind the closing parenthesis.
fn parse_explain_options(word: &dyn Fn(usize) -> Option<Token>, mut at: usize, explain: &mut Explain) -> Result<usize> {
    loop {
        let Some(token) = word(at) else { return Err(syntax("the options of EXPLAIN end with )".into())) };
        at += 1;
        match token {
            Token::RParen => return Ok(at),
            Token::Comma => {}
            token if tokens::is_word(&token, "ANALYZE") => explain.analyze = true,
            token if tokens::is_word(&token, "VERBOSE") => explain.verbose = true,
            token if tokens::is_word(&token, "FORMAT") => {
                explain.format = word(at).map(|format| format.to_string().to_lowercase());
                at += 1;
            }
            token if tokens::is_word(&token, "RECALL") => {
                return Err(DataFusionError::NotImplemented(
                    "EXPLAIN (RECALL) is not built yet; compare with SET exact = on".into(),
                ));
            }
            token => {
                return Err(syntax(format!(
                    "unknown option {token} of EXPLAIN; there are ANALYZE, VERBOSE and FORMAT"
                )));
            }
        }
    }
}

fn parse_check(part: &[TokenWithSpan]) -> Result<StatementKind> {
    let mut parser =
        Parser::new(&SagittaDialect).with_tokens_with_locations(with_end(part)).with_recursion_limit(NESTING_MAX);
    parser.expect_keyword(Keyword::CHECK)?;
    parser.expect_keyword(Keyword::TABLE)?;
    let table = parser.parse_object_name(false)?;
    parser.expect_token(&Token::EOF)?;
    Ok(StatementKind::Check(table))
}

/// `COPY` that has FROM before TO at the outer level.
fn is_copy_from(solid: &[&Token]) -> bool {
    let mut depth = 0;
    for token in solid {
        match token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            token if depth == 0 && tokens::is_word(token, "FROM") => return true,
            token if depth == 0 && tokens::is_word(token, "TO") => return false,
            _ => {}
        }
    }
    false
}

fn parse_copy_from(part: &[TokenWithSpan]) -> Result<StatementKind> {
    let mut parser =
        Parser::new(&SagittaDialect).with_tokens_with_locations(with_end(part)).with_recursion_limit(NESTING_MAX);
    let copy = copy_from(&mut parser).map_err(DataFusionError::from)?;
    Ok(StatementKind::CopyFrom(Box::new(copy)))
}

fn copy_from(parser: &mut Parser) -> std::result::Result<CopyFrom, ParserError> {
    parser.expect_keyword(Keyword::COPY)?;
    let table = parser.parse_object_name(false)?;
    let columns = if parser.consume_token(&Token::LParen) {
        let columns = parser.parse_comma_separated(Parser::parse_identifier)?;
        parser.expect_token(&Token::RParen)?;
        columns
    } else {
        vec![]
    };
    parser.expect_keyword(Keyword::FROM)?;
    let source = parser.parse_literal_string()?;
    let mut format = None;
    if parser.parse_keywords(&[Keyword::STORED, Keyword::AS]) {
        format = Some(parser.parse_identifier()?.value.to_lowercase());
    }
    let mut options = vec![];
    let worded = parser.parse_keyword(Keyword::OPTIONS) || parser.parse_keyword(Keyword::WITH);
    if parser.consume_token(&Token::LParen) {
        options = parser.parse_comma_separated(copy_option)?;
        parser.expect_token(&Token::RParen)?;
    } else if worded {
        parser.expect_token(&Token::LParen)?;
    }
    if let Some(at) = options.iter().position(|(key, _)| key == "format") {
        format = Some(options.remove(at).1.to_lowercase());
    }
    parser.expect_token(&Token::EOF)?;
    Ok(CopyFrom { table, columns, source, format, options })
}

/// `key value`, `key = value` or `'key' 'value'`.
fn copy_option(parser: &mut Parser) -> std::result::Result<(String, String), ParserError> {
    let mut read = || {
        let token = parser.next_token();
        match token.token {
            Token::Word(word) => Ok(word.value),
            Token::SingleQuotedString(text) => Ok(text),
            Token::Number(number, _) => Ok(number),
            other => {
                Err(ParserError::ParserError(format!("expected an option of COPY, found: {other}{}", token.span.start)))
            }
        }
    };
    let key = read()?.to_lowercase();
    let _ = parser.consume_token(&Token::Eq);
    let token = parser.peek_token_ref();
    if matches!(token.token, Token::Comma | Token::RParen) {
        return Ok((key, "true".into()));
    }
    let token = parser.next_token();
    let value = match token.token {
        Token::Word(word) => word.value,
        Token::SingleQuotedString(text) => text,
        Token::Number(number, _) => number,
        other => {
            let message = format!("expected a value for the option {key} of COPY, found: {other}{}", token.span.start);
            return Err(ParserError::ParserError(message));
        }
    };
    Ok((key, value))
}

fn syntax(message: String) -> DataFusionError {
    DataFusionError::from(ParserError::ParserError(message))
}
