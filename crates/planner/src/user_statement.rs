//! Statements about users and their rights: CREATE, ALTER and DROP USER, GRANT and REVOKE. A password is shown nowhere:
//! not in errors, not by `Debug`, not in the text of the statement.

use std::fmt;

use datafusion::error::{DataFusionError, Result};
use datafusion::sql::sqlparser::ast::Ident;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::tokens::{Places, is_blank, is_word, range_of};

/// A statement about users. Names are folded to lower case unless quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserStatement {
    /// `CREATE USER [IF NOT EXISTS] user [WITH] PASSWORD '…' [ADMIN]`.
    Create {
        /// The name.
        user: String,
        /// The password.
        password: Password,
        /// May do everything in the database.
        is_admin: bool,
        /// It is no error if there is one.
        if_not_exists: bool,
    },
    /// `ALTER USER user [WITH] PASSWORD '…'`.
    SetPassword {
        /// The name.
        user: String,
        /// The new password.
        password: Password,
    },
    /// `ALTER USER user ADMIN | NOADMIN`.
    SetAdmin {
        /// The name.
        user: String,
        /// May do everything in the database.
        is_admin: bool,
    },
    /// `DROP USER [IF EXISTS] user`.
    Drop {
        /// The name.
        user: String,
        /// It is no error if there is none.
        if_exists: bool,
    },
    /// `GRANT role ON SCHEMA schema TO user`.
    Grant(Right),
    /// `REVOKE role ON SCHEMA schema FROM user`: the role and those above it. `ALL`, or none at all, is [`SchemaRole::Read`]:
    /// nothing is left.
    Revoke(Right),
}

/// A user's role in a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// The role.
    pub role: SchemaRole,
    /// The schema.
    pub schema: String,
    /// The user.
    pub user: String,
}

/// What a user may do in a schema. Each role holds those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SchemaRole {
    /// Read.
    Read,
    /// Change rows.
    Write,
    /// Define, and grant.
    Admin,
}

/// A password, which is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The text, for nothing but hashing.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(HIDDEN)
    }
}

/// What stands in place of a password.
const HIDDEN: &str = "'***'";

const CREATE: &str = "write CREATE USER [IF NOT EXISTS] name PASSWORD '…' [ADMIN]";
const ALTER: &str = "write ALTER USER name PASSWORD '…', ALTER USER name ADMIN or ALTER USER name NOADMIN";
const DROP: &str = "write DROP USER [IF EXISTS] name";
const GRANT: &str = "write GRANT READ|WRITE|ADMIN ON SCHEMA name TO user";
const REVOKE: &str = "write REVOKE READ|WRITE|ADMIN|ALL ON SCHEMA name FROM user";

/// Our words and PostgreSQL's. ALL is looked at by each statement: it gives the strongest role and takes the weakest.
const ROLES: &[(&str, SchemaRole)] = &[
    ("READ", SchemaRole::Read),
    ("SELECT", SchemaRole::Read),
    ("WRITE", SchemaRole::Write),
    ("INSERT", SchemaRole::Write),
    ("UPDATE", SchemaRole::Write),
    ("DELETE", SchemaRole::Write),
    ("TRUNCATE", SchemaRole::Write),
    ("ADMIN", SchemaRole::Admin),
];

/// True if the words begin a statement of this file.
pub(crate) fn starts(says: impl Fn(&[&str]) -> bool) -> bool {
    [&["CREATE", "USER"][..], &["ALTER", "USER"], &["DROP", "USER"], &["GRANT"], &["REVOKE"]]
        .iter()
        .any(|words| says(words))
}

/// Reads one statement to its end.
///
/// # Errors
/// A mistake of syntax, with its place; rights on anything but a schema.
pub(crate) fn parse(parser: &mut Parser) -> Result<UserStatement> {
    let (statement, usage) = match parser.next_token().token {
        token if is_word(&token, "CREATE") => (create(parser)?, CREATE),
        token if is_word(&token, "ALTER") => (alter(parser)?, ALTER),
        token if is_word(&token, "DROP") => (drop_user(parser)?, DROP),
        token if is_word(&token, "GRANT") => (UserStatement::Grant(grant(parser)?), GRANT),
        _ => (UserStatement::Revoke(revoke(parser)?), REVOKE),
    };
    match parser.peek_token_ref().token {
        Token::EOF => Ok(statement),
        _ => refuse(parser, usage),
    }
}

/// The text of a statement of this file without the password: names are no strings, so every string is one.
pub(crate) fn shown(sql: &str, places: &Places<'_>, part: &[TokenWithSpan]) -> String {
    let whole = range_of(places, part);
    let (mut text, mut at) = (String::new(), whole.start);
    for token in part.iter().filter(|token| !is_blank(&token.token) && is_string(&token.token)) {
        let range = range_of(places, std::slice::from_ref(token));
        text.push_str(&sql[at..range.start]);
        text.push_str(HIDDEN);
        at = range.end;
    }
    text.push_str(&sql[at..whole.end]);
    text
}

fn is_string(token: &Token) -> bool {
    !matches!(token, Token::Word(_)) && string_of(token).is_some()
}

fn string_of(token: &Token) -> Option<&str> {
    match token {
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) | Token::UnicodeStringLiteral(text) => {
            Some(text)
        }
        Token::DollarQuotedString(text) => Some(&text.value),
        _ => None,
    }
}

fn create(parser: &mut Parser) -> Result<UserStatement> {
    parser.next_token();
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let user = name(parser, CREATE)?;
    let _ = accepts(parser, "WITH");
    let is_admin_before = accepts(parser, "ADMIN");
    if !accepts(parser, "PASSWORD") {
        return refuse(parser, CREATE);
    }
    let password = password(parser)?;
    let is_admin = is_admin_before || accepts(parser, "ADMIN");
    Ok(UserStatement::Create { user, password, is_admin, if_not_exists })
}

fn alter(parser: &mut Parser) -> Result<UserStatement> {
    parser.next_token();
    let user = name(parser, ALTER)?;
    let _ = accepts(parser, "WITH");
    if accepts(parser, "PASSWORD") {
        return Ok(UserStatement::SetPassword { user, password: password(parser)? });
    }
    if accepts(parser, "ADMIN") {
        return Ok(UserStatement::SetAdmin { user, is_admin: true });
    }
    if accepts(parser, "NOADMIN") {
        return Ok(UserStatement::SetAdmin { user, is_admin: false });
    }
    refuse(parser, ALTER)
}

fn drop_user(parser: &mut Parser) -> Result<UserStatement> {
    parser.next_token();
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    Ok(UserStatement::Drop { user: name(parser, DROP)?, if_exists })
}

fn grant(parser: &mut Parser) -> Result<Right> {
    let Some(roles) = roles(parser, SchemaRole::Admin, GRANT)? else { return refuse(parser, GRANT) };
    let role = roles.into_iter().max().unwrap_or(SchemaRole::Read);
    let (schema, user) = target(parser, "TO", GRANT)?;
    Ok(Right { role, schema, user })
}

fn revoke(parser: &mut Parser) -> Result<Right> {
    let roles = roles(parser, SchemaRole::Read, REVOKE)?.unwrap_or_default();
    let role = roles.into_iter().min().unwrap_or(SchemaRole::Read);
    let (schema, user) = target(parser, "FROM", REVOKE)?;
    Ok(Right { role, schema, user })
}

/// The roles in front of ON; `None` if there is none. `all`: what ALL stands for.
fn roles(parser: &mut Parser, all: SchemaRole, usage: &str) -> Result<Option<Vec<SchemaRole>>> {
    if is_word(&parser.peek_token_ref().token, "ON") {
        return Ok(None);
    }
    let mut roles = vec![];
    loop {
        if accepts(parser, "ALL") {
            let _ = accepts(parser, "PRIVILEGES");
            roles.push(all);
        } else {
            match ROLES.iter().find(|(word, _)| accepts(parser, word)) {
                Some((_, role)) => roles.push(*role),
                None => return refuse(parser, usage),
            }
        }
        if !parser.consume_token(&Token::Comma) {
            return Ok(Some(roles));
        }
    }
}

/// `ON SCHEMA schema TO|FROM user`.
fn target(parser: &mut Parser, preposition: &str, usage: &str) -> Result<(String, String)> {
    if !accepts(parser, "ON") {
        return refuse(parser, usage);
    }
    if !accepts(parser, "SCHEMA") {
        return Err(DataFusionError::NotImplemented(format!(
            "rights on single tables are not supported: they are per schema; {usage}"
        )));
    }
    let schema = name(parser, usage)?;
    if !accepts(parser, preposition) {
        return refuse(parser, usage);
    }
    Ok((schema, name(parser, usage)?))
}

fn name(parser: &mut Parser, usage: &str) -> Result<String> {
    let Token::Word(_) = parser.peek_token_ref().token else { return refuse(parser, usage) };
    let Ident { value, quote_style, .. } = parser.parse_identifier()?;
    Ok(if quote_style.is_some() { value } else { value.to_lowercase() })
}

fn password(parser: &mut Parser) -> Result<Password> {
    let text = string_of(&parser.peek_token_ref().token).map(str::to_owned);
    match text {
        Some(text) if !text.is_empty() => {
            parser.next_token();
            Ok(Password(text))
        }
        Some(_) => refuse(parser, "the password is empty; give one"),
        None => refuse(parser, "PASSWORD is followed by a text in single quotes"),
    }
}

/// Takes the word if it is next.
fn accepts(parser: &mut Parser, word: &str) -> bool {
    let is_next = is_word(&parser.peek_token_ref().token, word);
    if is_next {
        parser.next_token();
    }
    is_next
}

/// The error at the next token, in the form that carries its place. What stands there is not told: it may be a password.
fn refuse<T>(parser: &Parser, message: &str) -> Result<T> {
    let next = parser.peek_token_ref();
    let at = if next.token == Token::EOF { "; the statement ends too early" } else { "" };
    Err(DataFusionError::from(ParserError::ParserError(format!("{message}{at}{}", next.span.start))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{Statement, StatementKind};

    fn parsed(sql: &str) -> Result<UserStatement, String> {
        let statements: Vec<Statement> = crate::statement::parse(sql).map_err(|error| error.to_string())?;
        match statements.into_iter().next().map(|statement| statement.kind) {
            Some(StatementKind::User(user)) => Ok(*user),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn users_are_made_changed_and_dropped() {
        let create = |user: &str, is_admin, if_not_exists| {
            let (user, password) = (user.to_owned(), Password("pw".into()));
            UserStatement::Create { user, password, is_admin, if_not_exists }
        };
        let set = |password: &str| UserStatement::SetPassword { user: "a".into(), password: Password(password.into()) };
        let admin = |is_admin| UserStatement::SetAdmin { user: "a".into(), is_admin };
        let gone = |if_exists| UserStatement::Drop { user: "a".into(), if_exists };
        for (sql, expected) in [
            ("CREATE USER a PASSWORD 'pw'", create("a", false, false)),
            ("create user IF NOT EXISTS Ab with password 'pw' admin", create("ab", true, true)),
            ("CREATE USER \"Ab c\" ADMIN PASSWORD 'pw'", create("Ab c", true, false)),
            ("ALTER USER a PASSWORD 'it''s'", set("it's")),
            ("ALTER USER a WITH PASSWORD E'a\\'b'", set("a'b")),
            ("ALTER USER a PASSWORD $$x'y$$", set("x'y")),
            ("ALTER USER a ADMIN", admin(true)),
            ("ALTER USER a NOADMIN", admin(false)),
            ("DROP USER a", gone(false)),
            ("DROP USER IF EXISTS a", gone(true)),
        ] {
            assert_eq!(parsed(sql), Ok(expected), "{sql}");
        }
    }

    #[test]
    fn roles_have_our_words_and_those_of_postgresql() {
        use SchemaRole::{Admin, Read, Write};
        let right = |role| Right { role, schema: "s".into(), user: "a".into() };
        for (words, granted, revoked) in [
            ("READ", Read, Read),
            ("select", Read, Read),
            ("WRITE", Write, Write),
            ("INSERT, UPDATE, DELETE", Write, Write),
            ("SELECT, INSERT", Write, Read),
            ("ADMIN", Admin, Admin),
            ("ALL", Admin, Read),
            ("ALL PRIVILEGES", Admin, Read),
        ] {
            let grant = parsed(&format!("GRANT {words} ON SCHEMA S TO a"));
            assert_eq!(grant, Ok(UserStatement::Grant(right(granted))), "{words}");
            let revoke = parsed(&format!("REVOKE {words} ON SCHEMA s FROM A"));
            assert_eq!(revoke, Ok(UserStatement::Revoke(right(revoked))), "{words}");
        }
        assert_eq!(parsed("REVOKE ON SCHEMA s FROM a"), Ok(UserStatement::Revoke(right(Read))));
    }

    #[test]
    fn what_is_no_statement_is_refused_with_the_way_to_write_it() {
        for (sql, expected) in [
            ("CREATE USER", "CREATE USER [IF"),
            ("CREATE USER a", "CREATE USER [IF"),
            ("CREATE USER a PASSWORD", "single quotes"),
            ("CREATE USER a PASSWORD ''", "empty"),
            ("CREATE USER a PASSWORD 'pw' SUPERUSER", "CREATE USER [IF"),
            ("CREATE USER a, b PASSWORD 'pw'", "CREATE USER [IF"),
            ("ALTER USER a", "ALTER USER name"),
            ("ALTER USER a RENAME TO b", "ALTER USER name"),
            ("DROP USER a CASCADE", "DROP USER [IF"),
            ("GRANT ON SCHEMA s TO a", "GRANT READ"),
            ("GRANT USAGE ON SCHEMA s TO a", "GRANT READ"),
            ("GRANT b TO a", "GRANT READ"),
            ("GRANT READ ON SCHEMA s TO a, b", "GRANT READ"),
            ("GRANT READ ON SCHEMA s TO a WITH GRANT OPTION", "GRANT READ"),
            ("GRANT READ ON SCHEMA s FROM a", "GRANT READ"),
            ("REVOKE READ ON SCHEMA s TO a", "REVOKE READ"),
            ("GRANT SELECT ON t TO a", "per schema"),
            ("GRANT SELECT ON TABLE t TO a", "per schema"),
            ("GRANT SELECT ON ALL TABLES IN SCHEMA s TO a", "per schema"),
            ("REVOKE ALL ON t FROM a", "per schema"),
            ("CREATE ROLE a", "CREATE USER"),
            ("PREPARE p AS CREATE USER a PASSWORD 'pw'", "by itself"),
            ("EXPLAIN CREATE USER a PASSWORD 'pw'", "no plan"),
        ] {
            let error = parsed(sql).unwrap_err();
            assert!(error.contains(expected), "{sql}: {error}");
        }
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        for sql in [
            "CREATE USER a PASSWORD 'hunter2'",
            "CREATE USER a PASSWORD 'hunter2' ADMIN",
            "ALTER USER a WITH PASSWORD E'hunter2'",
            "ALTER USER a PASSWORD $$hunter2$$",
            "SELECT 1; CREATE USER a PASSWORD /* 1 */ 'hunter2' ; SELECT 2",
            // Mistakes.
            "CREATE USER a 'hunter2'",
            "CREATE USER a PASSWORD hunter2",
            "CREATE USER a PASSWORD = 'hunter2'",
            "CREATE USER a PASSWORD \"hunter2\"",
            "CREATE USER a PASSWORD 'x' 'hunter2'",
            "CREATE USER a IDENTIFIED BY 'hunter2'",
            "CREATE USER a PASSWORD 'x' hunter2",
            "ALTER USER a PASSWORD 12 'hunter2'",
            "ALTER USER PASSWORD 'hunter2'",
            "ALTER ROLE a PASSWORD 'hunter2'",
            "CREATE ROLE a PASSWORD 'hunter2'",
            "EXPLAIN ALTER USER a PASSWORD 'hunter2'",
            "EXPLAIN (ANALYZE) CREATE USER a PASSWORD 'hunter2'",
            "PREPARE p AS ALTER USER a PASSWORD 'hunter2'",
            "PREPARE p (INT) AS CREATE USER a PASSWORD 'hunter2'",
        ] {
            let shown = match crate::statement::parse(sql) {
                Ok(statements) => format!("{statements:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!shown.contains("hunter2"), "{sql}: {shown}");
        }
        let statements = crate::statement::parse("SELECT 'x'; ALTER USER a\nPASSWORD 'hunter2' ;").unwrap();
        let texts: Vec<&str> = statements.iter().map(|statement| statement.text.as_str()).collect();
        assert_eq!(texts, ["SELECT 'x'", "ALTER USER a\nPASSWORD '***'"]);
    }
}
