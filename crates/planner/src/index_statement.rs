//! Statements about indexes: `CREATE INDEX`, `DROP INDEX`, `REINDEX`, `PREWARM`. Read here to their end, so that no clause is passed over.

use datafusion::sql::sqlparser::ast::ObjectName;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::tokens::is_word;
use crate::words::{Parsed, accepts, end, expect, name as identifier, object, refuse};

/// A statement about indexes.
#[derive(Debug, Clone, PartialEq)]
pub enum IndexStatement {
    /// `CREATE INDEX [IF NOT EXISTS] [name] ON table [USING method] (column [operator_class]) [WITH (option = value, …)]`.
    Create(CreateIndex),
    /// `DROP INDEX [IF EXISTS] name [ON table]`.
    Drop {
        /// The index, with its schema if it was named.
        name: ObjectName,
        /// Its table; looked for if absent.
        table: Option<ObjectName>,
        /// It is no error if there is none.
        if_exists: bool,
    },
    /// `REINDEX INDEX name [ON table]`, `REINDEX TABLE table`.
    Reindex(Named),
    /// `PREWARM INDEX name [ON table]`, `PREWARM TABLE table`.
    Prewarm(Named),
}

/// One index, or all of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The index; all of the table's if absent.
    pub name: Option<ObjectName>,
    /// The table; looked for if absent.
    pub table: Option<ObjectName>,
}

/// `CREATE INDEX`.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateIndex {
    /// Its name; made of the names of table and column if absent.
    pub name: Option<String>,
    /// The table.
    pub table: ObjectName,
    /// The method after USING.
    pub method: Option<String>,
    /// The column.
    pub column: String,
    /// What is written behind the column.
    pub operator_class: Option<String>,
    /// Names in lower case, and values.
    pub options: Vec<(String, String)>,
    /// It is no error if there is an index of this name.
    pub if_not_exists: bool,
}

/// True if the words begin a statement of this file.
pub(crate) fn starts(says: impl Fn(&[&str]) -> bool) -> bool {
    [&["CREATE", "INDEX"][..], &["DROP", "INDEX"], &["REINDEX"], &["PREWARM"]].iter().any(|words| says(words))
}

/// Reads one statement to its end.
///
/// # Errors
/// A mistake of syntax, with its place.
pub(crate) fn parse(parser: &mut Parser) -> Parsed<IndexStatement> {
    let statement = match parser.next_token().token {
        token if is_word(&token, "CREATE") => IndexStatement::Create(create(parser)?),
        token if is_word(&token, "DROP") => drop_index(parser)?,
        token if is_word(&token, "PREWARM") => {
            IndexStatement::Prewarm(named(parser, "write PREWARM INDEX name [ON table] or PREWARM TABLE table")?)
        }
        _ => IndexStatement::Reindex(named(parser, "write REINDEX INDEX name [ON table] or REINDEX TABLE table")?),
    };
    end(parser)?;
    Ok(statement)
}

const CREATE: &str =
    "write CREATE INDEX [IF NOT EXISTS] name ON table USING method (column operator_class) WITH (option = value)";

fn create(parser: &mut Parser) -> Parsed<CreateIndex> {
    parser.next_token();
    // An index is always built beside other statements.
    let _ = accepts(parser, "CONCURRENTLY");
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = match accepts(parser, "ON") {
        true => None,
        false => {
            let name = identifier(parser, CREATE)?;
            expect(parser, "ON", CREATE)?;
            Some(name)
        }
    };
    let table = object(parser, CREATE)?;
    let method = match accepts(parser, "USING") {
        true => Some(identifier(parser, CREATE)?.to_lowercase()),
        false => None,
    };
    if !parser.consume_token(&Token::LParen) {
        return refuse(parser, CREATE);
    }
    let column = identifier(parser, CREATE)?;
    let operator_class = match parser.peek_token_ref().token {
        Token::Word(_) => Some(identifier(parser, CREATE)?),
        _ => None,
    };
    if parser.peek_token_ref().token == Token::Comma {
        return refuse(parser, "an index has one column; make one for each");
    }
    if !parser.consume_token(&Token::RParen) {
        return refuse(parser, CREATE);
    }
    let mut options = vec![];
    if accepts(parser, "WITH") {
        if !parser.consume_token(&Token::LParen) {
            return refuse(parser, CREATE);
        }
        options = parser.parse_comma_separated(option)?;
        if !parser.consume_token(&Token::RParen) {
            return refuse(parser, CREATE);
        }
    }
    if let Some(twice) =
        options.iter().enumerate().find(|(at, one)| options[..*at].iter().any(|other| other.0 == one.0))
    {
        return refuse(parser, &format!("the option {} is given twice", twice.1.0));
    }
    Ok(CreateIndex { name, table, method, column, operator_class, options, if_not_exists })
}

/// `name = value`.
fn option(parser: &mut Parser) -> Parsed<(String, String)> {
    let name = identifier(parser, CREATE)?.to_lowercase();
    if !parser.consume_token(&Token::Eq) {
        return refuse(parser, CREATE);
    }
    let value = match parser.peek_token_ref().token.clone() {
        Token::Word(word) => word.value,
        Token::SingleQuotedString(text) => text,
        Token::Number(number, _) => number,
        _ => return refuse(parser, &format!("expected a value of the option {name}")),
    };
    parser.next_token();
    Ok((name, value))
}

fn drop_index(parser: &mut Parser) -> Parsed<IndexStatement> {
    const USAGE: &str = "write DROP INDEX [IF EXISTS] name [ON table]";
    parser.next_token();
    let _ = accepts(parser, "CONCURRENTLY");
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let name = object(parser, USAGE)?;
    let table = if accepts(parser, "ON") { Some(object(parser, USAGE)?) } else { None };
    Ok(IndexStatement::Drop { name, table, if_exists })
}

fn named(parser: &mut Parser, usage: &str) -> Parsed<Named> {
    if accepts(parser, "TABLE") {
        return Ok(Named { name: None, table: Some(object(parser, usage)?) });
    }
    expect(parser, "INDEX", usage)?;
    let name = object(parser, usage)?;
    let table = if accepts(parser, "ON") { Some(object(parser, usage)?) } else { None };
    Ok(Named { name: Some(name), table })
}

#[cfg(test)]
mod tests {
    use crate::statement::{StatementKind, parse};

    #[test]
    fn statements_are_read_to_their_end() {
        for (sql, good) in [
            (
                "CREATE INDEX docs_emb ON docs USING hnsw (emb vector_cosine_ops) WITH (m = 16, ef_construction = 200)",
                true,
            ),
            ("create index concurrently if not exists i on s.docs using ivf (emb)", true),
            ("CREATE INDEX ON docs (emb vector_l2_ops)", true),
            ("CREATE INDEX i ON docs USING graph (\"Emb\") WITH (metric = 'cosine')", true),
            ("CREATE INDEX i ON docs", false),
            ("CREATE INDEX i ON docs (a, b)", false),
            ("CREATE INDEX i ON docs (emb) WITH (m 16)", false),
            ("CREATE INDEX i ON docs (emb) WITH (m = 16, m = 17)", false),
            ("CREATE INDEX i ON docs (emb) WHERE a = 1", false),
            ("CREATE INDEX i ON docs (emb) INCLUDE (a)", false),
            ("CREATE INDEX i ON docs (emb DESC NULLS LAST)", false),
            ("CREATE UNIQUE INDEX i ON docs (emb)", false),
            ("DROP INDEX i", true),
            ("DROP INDEX IF EXISTS s.i ON docs", true),
            ("DROP INDEX i CASCADE", false),
            ("REINDEX INDEX i", true),
            ("REINDEX TABLE docs", true),
            ("REINDEX docs", false),
            ("REINDEX DATABASE d", false),
            ("PREWARM INDEX i ON docs", true),
            ("prewarm table s.docs", true),
            ("PREWARM docs", false),
        ] {
            let is_read = matches!(parse(sql).as_deref(), Ok([one]) if matches!(one.kind, StatementKind::Index(_)));
            assert_eq!(is_read, good, "{sql}");
        }
    }
}
