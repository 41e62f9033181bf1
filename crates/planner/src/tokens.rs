//! Tokens of a SQL text: splitting into statements, the rewrites that make our spellings known to the parser,
//! and places in the text. No parsing here.

use std::ops::Range;

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, TokenizerError};

use crate::dialect::SagittaDialect;

/// The class of a token, for highlighting and completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenClass {
    /// A word of the SQL language.
    Keyword,
    /// A name.
    Identifier,
    /// A name in front of an opening parenthesis.
    Function,
    /// A number.
    Number,
    /// A quoted text.
    Text,
    /// An operator or a punctuation mark.
    Operator,
    /// A comment.
    Comment,
    /// A parameter such as `$1`.
    Placeholder,
    /// What the tokenizer does not know, an unclosed quote for example.
    Other,
}

/// The tokens of `sql`, white space and comments included.
///
/// # Errors
/// An unclosed quote or comment, with its line and column.
pub fn tokenize(sql: &str) -> Result<Vec<TokenWithSpan>, TokenizerError> {
    Tokenizer::new(&SagittaDialect, sql).tokenize_with_location()
}

/// Splits tokens at the semicolons into statements; empty statements are left out.
pub fn split(tokens: Vec<TokenWithSpan>) -> Vec<Vec<TokenWithSpan>> {
    tokens
        .split(|token| token.token == Token::SemiColon)
        .filter(|part| part.iter().any(|token| !is_blank(&token.token)))
        .map(<[TokenWithSpan]>::to_vec)
        .collect()
}

/// The byte range from the first to the last token that is not blank.
pub fn range_of(places: &Places<'_>, tokens: &[TokenWithSpan]) -> Range<usize> {
    let mut solid = tokens.iter().filter(|token| !is_blank(&token.token));
    let Some(first) = solid.next() else { return 0..0 };
    let last = solid.next_back().unwrap_or(first);
    places.byte_at(first.span.start)..places.byte_at(last.span.end)
}

/// Where the lines of a text begin, to turn many places into bytes.
pub struct Places<'a> {
    sql: &'a str,
    /// The byte at which each line begins.
    lines: Vec<usize>,
    /// The last place that was asked for: line, column, byte. Places mostly come in order.
    last: std::cell::Cell<(u64, u64, usize)>,
}

impl<'a> Places<'a> {
    /// Looks the lines up once, in one pass.
    pub fn new(sql: &'a str) -> Self {
        let lines = std::iter::once(0).chain(sql.match_indices('\n').map(|(byte, _)| byte + 1)).collect();
        Self { sql, lines, last: std::cell::Cell::new((1, 1, 0)) }
    }

    /// The byte offset of a line and column (both from 1, columns in characters); the text's end if it lies beyond.
    pub fn byte_at(&self, location: Location) -> usize {
        let Some(start) = usize::try_from(location.line).ok().and_then(|line| self.lines.get(line.saturating_sub(1)))
        else {
            return self.sql.len();
        };
        let (line, column, byte) = self.last.get();
        let (mut at_column, from) =
            if line == location.line && column <= location.column { (column, byte) } else { (1, *start) };
        let mut at = self.sql.len();
        for (offset, _) in self.sql[from..].char_indices() {
            if at_column == location.column {
                at = from + offset;
                break;
            }
            at_column += 1;
        }
        self.last.set((location.line, location.column, at));
        at
    }
}

/// The byte offset of one line and column.
pub fn byte_at(sql: &str, location: Location) -> usize {
    Places::new(sql).byte_at(location)
}

/// White space and comments.
pub fn is_blank(token: &Token) -> bool {
    matches!(token, Token::Whitespace(_))
}

/// Brings our spellings into forms that the parser knows. Spans stay those of the text, so that errors point there.
///
/// `<+>` becomes one operator; `AS OF TIMESTAMP x`, `AS OF VERSION n`, `FOR VERSION|TIMESTAMP AS OF x` become the
/// parser's `TIMESTAMP AS OF` and `VERSION AS OF`, and `VERSION AS OF 'tag'` becomes `AT(TAG => 'tag')`. The clauses
/// DO NOTHING of MERGE and RESET of ALTER TABLE become others that mean the same. The parameters that ODBC and JDBC
/// write as `?` are numbered in their order.
pub fn rewrite(tokens: &[TokenWithSpan]) -> Vec<TokenWithSpan> {
    let mut out = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        at = rewrite_one(tokens, at, &mut out);
    }
    number_parameters(&mut out);
    out
}

/// `?` to `$1`, `?` to `$2`, and so on.
fn number_parameters(tokens: &mut [TokenWithSpan]) {
    let mut number = 0;
    for token in tokens.iter_mut().filter(|token| is_unnumbered(&token.token)) {
        number += 1;
        token.token = Token::Placeholder(format!("${number}"));
    }
}

fn is_unnumbered(token: &Token) -> bool {
    *token == Token::Question || matches!(token, Token::Placeholder(name) if name == "?")
}

/// True if the text has both kinds of parameters, `?` and `$1`: which is which, nobody can tell.
pub fn mixes_parameters(tokens: &[TokenWithSpan]) -> bool {
    let is_numbered = |token: &TokenWithSpan| matches!(&token.token, Token::Placeholder(name) if name != "?");
    tokens.iter().any(|token| is_unnumbered(&token.token)) && tokens.iter().any(is_numbered)
}

/// Rewrites what starts at `at`, returns where to go on.
fn rewrite_one(tokens: &[TokenWithSpan], at: usize, out: &mut Vec<TokenWithSpan>) -> usize {
    let span = tokens[at].span;
    if let [a, b, c, ..] = &tokens[at..]
        && (&a.token, &b.token, &c.token) == (&Token::Lt, &Token::Plus, &Token::Gt)
    {
        let token = Token::CustomBinaryOperator("<+>".into());
        out.push(TokenWithSpan { token, span: Span::new(span.start, c.span.end) });
        return at + 3;
    }
    let ahead = solid_indexes(tokens, at);
    let says = |words: &[&str]| {
        ahead.len() >= words.len()
            && ahead.first() == Some(&at)
            && words.iter().zip(&ahead).all(|(word, index)| is_word(&tokens[*index].token, word))
    };
    if says(&["FOR", "SYSTEM_TIME", "AS", "OF"]) {
        // Already the parser's form: copied whole, so that its own AS OF is not taken for ours.
        out.extend_from_slice(&tokens[at..=ahead[3]]);
        return skip_timestamp(tokens, ahead[3] + 1, out);
    }
    if says(&["TIMESTAMP", "AS", "OF"]) {
        out.extend_from_slice(&tokens[at..=ahead[2]]);
        return skip_timestamp(tokens, ahead[2] + 1, out);
    }
    if says(&["AS", "OF", "TIMESTAMP"]) {
        push_words(out, span, &["TIMESTAMP", "AS", "OF"]);
        return ahead[2] + 1;
    }
    if says(&["VERSION", "AS", "OF"]) {
        return version_as_of(tokens, at, ahead[2] + 1, out);
    }
    if says(&["AS", "OF", "VERSION"]) {
        return version_as_of(tokens, at, ahead[2] + 1, out);
    }
    if says(&["FOR", "VERSION", "AS", "OF"]) || says(&["FOR", "TIMESTAMP", "AS", "OF"]) {
        return ahead[1];
    }
    if says(&["DO", "NOTHING"])
        && let Some(clause) = crate::do_nothing::stand_in(out, span)
    {
        out.extend(clause);
        return ahead[1] + 1;
    }
    if says(&["RESET"])
        && let Some((clause, length)) = crate::reset_options::stand_in(out, &tokens[at..])
    {
        out.extend(clause);
        return at + length;
    }
    out.push(tokens[at].clone());
    at + 1
}

/// The clause whose words stand at `at` and whose value begins at `from`: the parser knows it with a number only.
fn version_as_of(tokens: &[TokenWithSpan], at: usize, from: usize, out: &mut Vec<TokenWithSpan>) -> usize {
    let span = tokens[at].span;
    let value = solid_indexes(tokens, from).first().copied();
    let Some(tag) = value.filter(|index| matches!(tokens[*index].token, Token::SingleQuotedString(_))) else {
        push_words(out, span, &["VERSION", "AS", "OF"]);
        return from;
    };
    let place = |token: Token| TokenWithSpan { token, span };
    push_words(out, span, &["AT"]);
    out.extend([place(Token::LParen), place(Token::make_word("TAG", None)), place(Token::RArrow)]);
    out.extend([tokens[tag].clone(), place(Token::RParen)]);
    tag + 1
}

/// Leaves the word TIMESTAMP out that stands before something else than a text: `AS OF TIMESTAMP $1`.
fn skip_timestamp(tokens: &[TokenWithSpan], from: usize, out: &mut Vec<TokenWithSpan>) -> usize {
    let ahead = solid_indexes(tokens, from);
    let [first, second, ..] = ahead.as_slice() else { return from };
    let is_type = match &tokens[*second].token {
        Token::Placeholder(_) => false,
        // TIMESTAMP WITH TIME ZONE '…', and TIMESTAMP AS OF of a next clause.
        Token::Word(word) => ["WITH", "WITHOUT", "AS"].iter().any(|other| word.value.eq_ignore_ascii_case(other)),
        _ => true,
    };
    if is_type || !is_word(&tokens[*first].token, "TIMESTAMP") {
        return from;
    }
    out.extend_from_slice(&tokens[from..*first]);
    *first + 1
}

fn solid_indexes(tokens: &[TokenWithSpan], from: usize) -> Vec<usize> {
    (from..tokens.len()).filter(|index| !is_blank(&tokens[*index].token)).take(4).collect()
}

/// True if the token is this unquoted word, in any case.
pub fn is_word(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

fn push_words(out: &mut Vec<TokenWithSpan>, span: Span, words: &[&str]) {
    for word in words {
        let space = Token::Whitespace(datafusion::sql::sqlparser::tokenizer::Whitespace::Space);
        out.push(TokenWithSpan { token: Token::make_keyword(word), span });
        out.push(TokenWithSpan { token: space, span });
    }
}

/// The tokens of a text with their byte ranges, in order and without gaps but white space. Never fails: what
/// cannot be read from some place on is one [`TokenClass::Other`].
pub fn classify(sql: &str) -> Vec<(Range<usize>, TokenClass)> {
    let (tokens, rest) = match tokenize(sql) {
        Ok(tokens) => (tokens, None),
        Err(error) => {
            let start = byte_at(sql, error.location);
            (tokenize(&sql[..start]).unwrap_or_default(), Some(start..sql.len()))
        }
    };
    let places = Places::new(sql);
    let mut out = Vec::with_capacity(tokens.len());
    for (index, token) in tokens.iter().enumerate() {
        if matches!(&token.token, Token::Whitespace(w) if !is_comment(w)) || token.token == Token::EOF {
            continue;
        }
        let range = places.byte_at(token.span.start)..places.byte_at(token.span.end);
        let call = tokens[index + 1..].iter().find(|next| !is_blank(&next.token));
        out.push((range, class_of(&token.token, call.is_some_and(|next| next.token == Token::LParen))));
    }
    out.extend(rest.filter(|range| !range.is_empty()).map(|range| (range, TokenClass::Other)));
    out
}

fn is_comment(space: &datafusion::sql::sqlparser::tokenizer::Whitespace) -> bool {
    use datafusion::sql::sqlparser::tokenizer::Whitespace;
    matches!(space, Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_))
}

fn class_of(token: &Token, before_parenthesis: bool) -> TokenClass {
    match token {
        Token::Word(word) if word.quote_style.is_some() => TokenClass::Identifier,
        Token::Word(word) if word.keyword != Keyword::NoKeyword && is_highlighted(word.keyword) => TokenClass::Keyword,
        Token::Word(_) if before_parenthesis => TokenClass::Function,
        Token::Word(_) => TokenClass::Identifier,
        Token::Number(..) => TokenClass::Number,
        Token::SingleQuotedString(_)
        | Token::DollarQuotedString(_)
        | Token::NationalStringLiteral(_)
        | Token::EscapedStringLiteral(_)
        | Token::UnicodeStringLiteral(_)
        | Token::HexStringLiteral(_)
        | Token::SingleQuotedByteStringLiteral(_) => TokenClass::Text,
        Token::Placeholder(_) => TokenClass::Placeholder,
        Token::Whitespace(_) => TokenClass::Comment,
        _ => TokenClass::Operator,
    }
}

/// The words that people see as SQL. The parser's own list holds hundreds of words that are common names of
/// columns (`id`, `body`, `name`), which must not light up.
pub const KEYWORDS: &[&str] = &[
    "ALL",
    "ALTER",
    "ANALYZE",
    "AND",
    "ANY",
    "ARRAY",
    "AS",
    "ASC",
    "ASOF",
    "AT",
    "BETWEEN",
    "BIGINT",
    "BITVECTOR",
    "BOOLEAN",
    "BY",
    "CASE",
    "CAST",
    "CHECK",
    "COPY",
    "CREATE",
    "CROSS",
    "CURRENT_DATE",
    "CURRENT_TIMESTAMP",
    "DATE",
    "DEALLOCATE",
    "DEFAULT",
    "DELETE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "DOUBLE",
    "DROP",
    "ELSE",
    "END",
    "EXCEPT",
    "EXCLUDE",
    "EXECUTE",
    "EXISTS",
    "EXPLAIN",
    "EXTERNAL",
    "EXTRACT",
    "FALSE",
    "FILTER",
    "FIRST",
    "FLOAT",
    "FOR",
    "FROM",
    "FULL",
    "GRANT",
    "GROUP",
    "HALFVEC",
    "HAVING",
    "IF",
    "ILIKE",
    "IN",
    "INNER",
    "INSERT",
    "INT",
    "INTEGER",
    "INTERSECT",
    "INTERVAL",
    "INTO",
    "IS",
    "JOIN",
    "LAST",
    "LATERAL",
    "LEFT",
    "LIKE",
    "LIMIT",
    "LOCATION",
    "MATCH_CONDITION",
    "MERGE",
    "NATURAL",
    "NOT",
    "NULL",
    "NULLS",
    "OFFSET",
    "ON",
    "OPTIMIZE",
    "OPTIONS",
    "OR",
    "ORDER",
    "OUTER",
    "OVER",
    "PARTITION",
    "PASSWORD",
    "PRECISION",
    "PREPARE",
    "PRIMARY",
    "QUALIFY",
    "REAL",
    "REPLACE",
    "RESET",
    "RETURNING",
    "REVOKE",
    "RIGHT",
    "ROWS",
    "SCHEMA",
    "SELECT",
    "SET",
    "SHOW",
    "SMALLINT",
    "STORED",
    "SYSTEM_TIME",
    "TABLE",
    "TEXT",
    "THEN",
    "TIMESTAMP",
    "TO",
    "TRUE",
    "TRUNCATE",
    "UNION",
    "UNNEST",
    "UPDATE",
    "USER",
    "USING",
    "VACUUM",
    "VALUES",
    "VARCHAR",
    "VECTOR",
    "VIEW",
    "WHEN",
    "WHERE",
    "WINDOW",
    "WITH",
];

fn is_highlighted(keyword: Keyword) -> bool {
    let word = format!("{keyword:?}");
    KEYWORDS.binary_search(&word.as_str()).is_ok()
}

/// True if the text may say the password of a user: it should not be kept where others read it. Told by its words, so that
/// a text with mistakes in it is taken for one too.
pub fn may_hold_password(sql: &str) -> bool {
    let tokens = classify(sql);
    let says = |word: &str| tokens.iter().any(|(range, _)| sql[range.clone()].eq_ignore_ascii_case(word));
    says("password") && (says("user") || says("role"))
}

/// True if the text needs no further line: it is blank, or its last solid token is a semicolon that stands
/// outside of every quote and comment.
pub fn is_complete(sql: &str) -> bool {
    match tokenize(sql) {
        Ok(tokens) => tokens
            .iter()
            .rfind(|token| !is_blank(&token.token) && token.token != Token::EOF)
            .is_none_or(|last| last.token == Token::SemiColon),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(sql: &str) -> String {
        let tokens = tokenize(sql).unwrap_or_default();
        rewrite(&tokens).iter().map(|token| token.token.to_string()).collect::<String>()
    }

    #[test]
    fn our_spellings_become_the_parsers() {
        for (ours, theirs) in [
            ("a <+> b", "a <+> b"),
            ("FROM t AS OF TIMESTAMP '2026-01-01'", "FROM t TIMESTAMP AS OF  '2026-01-01'"),
            ("FROM t AS OF TIMESTAMP now() x", "FROM t TIMESTAMP AS OF  now() x"),
            ("FROM t AS OF VERSION 3 x", "FROM t VERSION AS OF  3 x"),
            ("FROM t AS OF VERSION 'a' x", "FROM t AT (TAG=>'a') x"),
            ("FROM t FOR VERSION AS OF 'a'", "FROM t AT (TAG=>'a')"),
            ("FROM t VERSION AS OF 'a'", "FROM t AT (TAG=>'a')"),
            ("FROM t FOR VERSION AS OF 42", "FROM t VERSION AS OF  42"),
            ("FROM t FOR VERSION AS OF $1", "FROM t VERSION AS OF  $1"),
            ("FROM t FOR TIMESTAMP AS OF '2026-01-01'", "FROM t TIMESTAMP AS OF '2026-01-01'"),
            ("FROM t FOR SYSTEM_TIME AS OF TIMESTAMP 'x'", "FROM t FOR SYSTEM_TIME AS OF TIMESTAMP 'x'"),
            ("FROM t FOR SYSTEM_TIME AS OF TIMESTAMP $1", "FROM t FOR SYSTEM_TIME AS OF  $1"),
            ("SELECT a AS of FROM t", "SELECT a AS of FROM t"),
            ("SELECT ?, '?' WHERE a = ?", "SELECT $1, '?' WHERE a = $2"),
            ("MERGE INTO t WHEN MATCHED THEN DO NOTHING", "MERGE INTO t WHEN MATCHED THEN UPDATESET\"do.nothing\"=0"),
            (
                "MERGE INTO t WHEN NOT MATCHED THEN DO NOTHING",
                "MERGE INTO t WHEN NOT MATCHED THEN INSERT(\"do.nothing\")VALUES(0)",
            ),
        ] {
            assert_eq!(rewritten(ours), theirs, "{ours}");
        }
    }

    #[test]
    fn statements_end_at_semicolons_outside_of_quotes() {
        let tokens = tokenize("select ';' ; -- a ; b\n ; select 2").unwrap_or_default();
        assert_eq!(split(tokens).len(), 2);
    }

    #[test]
    fn texts_that_may_hold_a_password_are_known() {
        for (sql, expected) in [
            ("CREATE USER a PASSWORD 'x'", true),
            ("select 1; alter user a with\n  password 'x", true),
            ("ALTER ROLE a PASSWORD x", true),
            ("SELECT password FROM accounts", false),
            ("DROP USER a", false),
            ("SELECT 'create user a password x'", false),
        ] {
            assert_eq!(may_hold_password(sql), expected, "{sql}");
        }
    }

    #[test]
    fn a_statement_is_complete_at_its_semicolon() {
        for (sql, complete) in [
            ("", true),
            ("select 1", false),
            ("select 1;", true),
            ("select ';", false),
            ("select 1; -- done", true),
            ("/* ;", false),
        ] {
            assert_eq!(is_complete(sql), complete, "{sql}");
        }
    }

    #[test]
    fn classes_cover_the_text_in_order() {
        let sql = "SELECT cosine_distance(emb, $1) AS d FROM döcs -- c\nWHERE a = 'x";
        let tokens = classify(sql);
        assert!(tokens.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start));
        let classes: Vec<_> = tokens.iter().map(|(range, class)| (&sql[range.clone()], *class)).collect();
        assert!(classes.contains(&("cosine_distance", TokenClass::Function)));
        assert!(classes.contains(&("$1", TokenClass::Placeholder)));
        assert!(classes.contains(&("döcs", TokenClass::Identifier)));
        assert!(classes.contains(&("'x", TokenClass::Other)));
    }

    #[test]
    fn keywords_are_sorted_for_binary_search() {
        assert!(KEYWORDS.is_sorted());
    }
}
