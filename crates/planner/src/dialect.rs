//! The SQL dialect: PostgreSQL's grammar plus table versions. What the grammar cannot say at all is
//! brought into its form before parsing, in `tokens.rs`.

use std::any::TypeId;

use datafusion::sql::sqlparser::ast::{ColumnOption, Expr};
use datafusion::sql::sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

const POSTGRES: PostgreSqlDialect = PostgreSqlDialect {};

const FOREIGN_COLUMN_OPTIONS: &[Keyword] = &[
    Keyword::AUTO_INCREMENT,
    Keyword::AUTOINCREMENT,
    Keyword::IDENTITY,
    Keyword::SRID,
    Keyword::ASC,
    Keyword::DESC,
    Keyword::ON,
    Keyword::AS,
];

/// PostgreSQL's dialect with the flags that Sagitta adds.
///
/// It reports PostgreSQL's type id, so that the parser's own branches on the dialect take PostgreSQL's side.
#[derive(Debug, Clone, Copy, Default)]
pub struct SagittaDialect;

impl Dialect for SagittaDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<PostgreSqlDialect>()
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        POSTGRES.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        POSTGRES.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        POSTGRES.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        POSTGRES.is_identifier_part(ch)
    }

    fn is_reserved_for_identifier(&self, keyword: Keyword) -> bool {
        POSTGRES.is_reserved_for_identifier(keyword)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        POSTGRES.is_custom_operator_part(ch)
    }

    // Precedence is not a flag: without these two, `a <-> b < c` would parse as `a <-> (b < c)`.
    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        match parser.peek_token_ref().token {
            // Distances bind tighter than comparisons: `0.5 > emb <=> q` compares a number with a distance.
            Token::Spaceship | Token::TwoWayArrow => Some(Ok(self.prec_value(Precedence::PgOther))),
            _ => POSTGRES.get_next_precedence(parser),
        }
    }

    /// The parser (0.62) takes all that follows `IS [NOT] DISTINCT FROM`, `AND` and `OR` too, for the value that is compared.
    fn parse_infix(&self, parser: &mut Parser, expr: &Expr, precedence: u8) -> Option<Result<Expr, ParserError>> {
        let is_distinct = [Keyword::IS, Keyword::DISTINCT, Keyword::FROM];
        let is_not_distinct = [Keyword::IS, Keyword::NOT, Keyword::DISTINCT, Keyword::FROM];
        let make = if parser.parse_keywords(&is_distinct) {
            Expr::IsDistinctFrom
        } else if parser.parse_keywords(&is_not_distinct) {
            Expr::IsNotDistinctFrom
        } else {
            return None;
        };
        Some(parser.parse_subexpr(precedence).map(|other| make(Box::new(expr.clone()), Box::new(other))))
    }

    fn prec_value(&self, precedence: Precedence) -> u8 {
        POSTGRES.prec_value(precedence)
    }

    /// Refuses the options of other systems that the parser (0.62) reads past and forgets where the dialect has none.
    fn parse_column_option(
        &self,
        parser: &mut Parser,
    ) -> Result<Option<Result<Option<ColumnOption>, ParserError>>, ParserError> {
        let next = parser.peek_token_ref();
        let foreign = match &next.token {
            Token::Word(word) => FOREIGN_COLUMN_OPTIONS.iter().find(|foreign| **foreign == word.keyword),
            _ => None,
        };
        match foreign {
            Some(keyword) => Err(ParserError::ParserError(format!(
                "{keyword:?} on a column is not supported; a column has NOT NULL, DEFAULT and PRIMARY KEY{}",
                next.span.start
            ))),
            None => Ok(None),
        }
    }

    fn supports_unicode_string_literal(&self) -> bool {
        true
    }

    fn supports_filter_during_aggregation(&self) -> bool {
        true
    }

    fn supports_group_by_expr(&self) -> bool {
        true
    }

    fn allow_extract_custom(&self) -> bool {
        true
    }

    fn allow_extract_single_quotes(&self) -> bool {
        true
    }

    fn supports_create_index_with_clause(&self) -> bool {
        true
    }

    fn supports_explain_with_utility_options(&self) -> bool {
        true
    }

    fn supports_factorial_operator(&self) -> bool {
        true
    }

    fn supports_bitwise_shift_operators(&self) -> bool {
        true
    }

    fn supports_named_fn_args_with_colon_operator(&self) -> bool {
        true
    }

    fn supports_nested_comments(&self) -> bool {
        true
    }

    fn supports_string_escape_constant(&self) -> bool {
        true
    }

    fn supports_numeric_literal_underscores(&self) -> bool {
        true
    }

    fn supports_array_typedef_with_brackets(&self) -> bool {
        true
    }

    fn supports_geometric_types(&self) -> bool {
        true
    }

    fn supports_notnull_operator(&self) -> bool {
        true
    }

    fn supports_interval_options(&self) -> bool {
        true
    }

    fn supports_table_versioning(&self) -> bool {
        true
    }

    fn supports_optimize_table(&self) -> bool {
        true
    }

    fn supports_select_wildcard_except(&self) -> bool {
        true
    }

    fn supports_select_wildcard_exclude(&self) -> bool {
        true
    }

    fn supports_from_first_select(&self) -> bool {
        true
    }

    fn supports_trailing_commas(&self) -> bool {
        false
    }
}
