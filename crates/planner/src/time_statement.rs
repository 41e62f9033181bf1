//! Statements about the versions of one table, none of which the SQL parser knows as we write them: tags, RESTORE,
//! OPTIMIZE and VACUUM.

use datafusion::sql::sqlparser::ast::{self, ObjectName};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::as_of::Moment;
use crate::tokens::is_word;
use crate::words::{Parsed, accepts, end, expect, name, object as table, refuse};

/// A statement about the versions of one table.
#[derive(Debug, Clone)]
pub enum TimeStatement {
    /// `CREATE TAG tag ON table [AS OF VERSION 42 | AS OF TIMESTAMP '…']`.
    CreateTag {
        /// The tag.
        tag: String,
        /// The table.
        table: ObjectName,
        /// What is tagged; the newest version if absent.
        at: Option<Moment>,
    },
    /// `DROP TAG [IF EXISTS] tag ON table`.
    DropTag {
        /// The tag.
        tag: String,
        /// The table.
        table: ObjectName,
        /// It is no error if there is none.
        if_exists: bool,
    },
    /// `RESTORE TABLE table TO VERSION 41 | TO TIMESTAMP '…' | TO TAG 'x'`.
    Restore {
        /// The table.
        table: ObjectName,
        /// What it becomes again.
        to: Moment,
    },
    /// `OPTIMIZE table [DRY RUN]`.
    Optimize(Upkeep),
    /// `VACUUM table [DRY RUN]`.
    Vacuum(Upkeep),
}

/// The work on one table's files.
#[derive(Debug, Clone)]
pub struct Upkeep {
    /// The table.
    pub table: ObjectName,
    /// Only say what would be done.
    pub is_dry_run: bool,
}

/// True if the words begin a statement of this file.
pub(crate) fn starts(says: impl Fn(&[&str]) -> bool) -> bool {
    [&["CREATE", "TAG"][..], &["DROP", "TAG"], &["RESTORE"], &["OPTIMIZE"], &["VACUUM"]].iter().any(|words| says(words))
}

/// Reads one statement to its end.
///
/// # Errors
/// A mistake of syntax, with its place.
pub(crate) fn parse(parser: &mut Parser) -> Parsed<TimeStatement> {
    let statement = match parser.next_token().token {
        token if is_word(&token, "CREATE") => create_tag(parser)?,
        token if is_word(&token, "DROP") => drop_tag(parser)?,
        token if is_word(&token, "RESTORE") => restore(parser)?,
        token if is_word(&token, "OPTIMIZE") => TimeStatement::Optimize(upkeep(parser, "OPTIMIZE")?),
        _ => TimeStatement::Vacuum(upkeep(parser, "VACUUM")?),
    };
    end(parser)?;
    Ok(statement)
}

fn create_tag(parser: &mut Parser) -> Parsed<TimeStatement> {
    const USAGE: &str = "write CREATE TAG tag ON table [AS OF VERSION 42 | AS OF TIMESTAMP '…']";
    parser.next_token();
    let tag = tag(parser, USAGE)?;
    expect(parser, "ON", USAGE)?;
    let table = table(parser, USAGE)?;
    let at = match parser.maybe_parse_table_version()? {
        Some(version) => Some(Moment::of_clause(&version).map_err(of_planning)?),
        None if matches!(parser.peek_token_ref().token, Token::EOF) => None,
        None => return refuse(parser, USAGE),
    };
    Ok(TimeStatement::CreateTag { tag, table, at })
}

fn drop_tag(parser: &mut Parser) -> Parsed<TimeStatement> {
    const USAGE: &str = "write DROP TAG [IF EXISTS] tag ON table";
    parser.next_token();
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let tag = tag(parser, USAGE)?;
    expect(parser, "ON", USAGE)?;
    Ok(TimeStatement::DropTag { tag, table: table(parser, USAGE)?, if_exists })
}

fn restore(parser: &mut Parser) -> Parsed<TimeStatement> {
    const USAGE: &str = "write RESTORE TABLE table TO VERSION 41, TO TIMESTAMP '…' or TO TAG 'tag'";
    let _ = accepts(parser, "TABLE");
    let table = table(parser, USAGE)?;
    expect(parser, "TO", USAGE)?;
    let moment: fn(ast::Expr) -> Moment = if accepts(parser, "VERSION") {
        Moment::Version
    } else if accepts(parser, "TAG") {
        Moment::Tag
    } else if accepts(parser, "TIMESTAMP") {
        Moment::Timestamp
    } else {
        return refuse(parser, USAGE);
    };
    Ok(TimeStatement::Restore { table, to: moment(parser.parse_expr()?) })
}

fn upkeep(parser: &mut Parser, verb: &str) -> Parsed<Upkeep> {
    let usage = format!("write {verb} table [DRY RUN]");
    let _ = accepts(parser, "TABLE");
    let table = table(parser, &usage)?;
    let is_dry_run = accepts(parser, "DRY");
    if is_dry_run {
        expect(parser, "RUN", &usage)?;
    }
    match parser.peek_token_ref().token {
        Token::EOF => Ok(Upkeep { table, is_dry_run }),
        _ => refuse(parser, &usage),
    }
}

/// A tag as a name, folded to lower case unless quoted, or as a text.
fn tag(parser: &mut Parser, usage: &str) -> Parsed<String> {
    match parser.peek_token_ref().token.clone() {
        Token::SingleQuotedString(text) => {
            parser.next_token();
            Ok(text)
        }
        _ => name(parser, usage),
    }
}

fn of_planning(error: datafusion::error::DataFusionError) -> ParserError {
    ParserError::ParserError(error.strip_backtrace())
}

#[cfg(test)]
mod tests {
    use crate::statement::{StatementKind, parse};
    use crate::time_statement::TimeStatement;

    #[test]
    fn statements_are_read_to_their_end() {
        for (sql, good) in [
            ("CREATE TAG prod ON docs", true),
            ("create tag \"v1.0\" on s.docs as of version 42", true),
            ("CREATE TAG 'v1.0' ON docs FOR VERSION AS OF 'other'", true),
            ("CREATE TAG prod ON docs AS OF TIMESTAMP now() - INTERVAL '1 hour'", true),
            ("CREATE TAG prod ON docs AS OF TIMESTAMP '2026-11-01'", true),
            ("CREATE TAG prod", false),
            ("CREATE TAG ON docs", false),
            ("CREATE TAG prod ON docs AS OF", false),
            ("CREATE TAG prod ON docs twice", false),
            ("CREATE TAG prod ON docs AS OF VERSION 1 twice", false),
            ("DROP TAG prod ON docs", true),
            ("DROP TAG IF EXISTS prod ON docs", true),
            ("DROP TAG prod", false),
            ("DROP TAG prod ON docs CASCADE", false),
            ("RESTORE TABLE docs TO VERSION 41", true),
            ("RESTORE TABLE docs TO TAG 'prod'", true),
            ("RESTORE docs TO TIMESTAMP '2026-11-01 00:00:00'", true),
            ("RESTORE TABLE docs", false),
            ("RESTORE TABLE docs TO 41", false),
            ("RESTORE TABLE docs TO VERSION 41 now", false),
            ("OPTIMIZE docs", true),
            ("OPTIMIZE TABLE docs DRY RUN", true),
            ("OPTIMIZE docs DRY", false),
            ("OPTIMIZE docs WHERE id = 1", false),
            ("OPTIMIZE", false),
            ("VACUUM docs DRY RUN", true),
            ("VACUUM FULL docs", false),
            ("VACUUM docs RETAIN 24 HOURS", false),
            ("VACUUM", false),
        ] {
            let is_read = matches!(parse(sql).as_deref(), Ok([one]) if matches!(one.kind, StatementKind::Time(_)));
            assert_eq!(is_read, good, "{sql}");
        }
    }

    #[test]
    fn tags_fold_as_names_do() {
        for (sql, expected) in [("CREATE TAG Prod ON docs", "prod"), ("CREATE TAG \"Prod\" ON docs", "Prod")] {
            let found = match parse(sql).ok().and_then(|mut parsed| parsed.pop()).map(|statement| statement.kind) {
                Some(StatementKind::Time(time)) => match *time {
                    TimeStatement::CreateTag { tag, .. } => tag,
                    _ => String::new(),
                },
                _ => String::new(),
            };
            assert_eq!(found, expected, "{sql}");
        }
    }
}
