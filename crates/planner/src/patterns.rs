//! The patterns of LIKE, ILIKE and SIMILAR TO as operators below know them: a backslash is the one escape character of
//! LIKE, and SIMILAR TO is a match of a regular expression.

use datafusion::error::Result;
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Value, ValueWithSpan};

use crate::rewrite::unsupported;

/// Rewrites a LIKE with ESCAPE to one whose escape character is the backslash, and SIMILAR TO to `~`.
///
/// # Errors
/// An escape character that is no character, a pattern that ends with it, or one that is known only when rows are read.
pub(crate) fn rewrite_pattern(expr: &mut Expr) -> Result<()> {
    match expr {
        Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } => {
            let Some(escape) = escape_char.take() else { return Ok(()) };
            let escape = Escape::read(&escape)?;
            if escape == Escape(Some('\\')) {
                return Ok(());
            }
            let Some(text) = text_mut(pattern) else {
                return unsupported(
                    "LIKE with ESCAPE and a pattern that is no text in quotes is not supported; a backslash escapes in every pattern: leave ESCAPE out",
                );
            };
            *text = like_pattern(text, escape)?;
            Ok(())
        }
        Expr::SimilarTo { negated, expr: value, pattern, escape_char } => {
            let escape = escape_char.as_ref().map_or(Ok(Escape(Some('\\'))), Escape::read)?;
            let Some(text) = text_mut(pattern) else {
                return unsupported(
                    "SIMILAR TO with a pattern that is no text in quotes is not supported; write ~ with a regular expression",
                );
            };
            *text = regular_expression(text, escape)?;
            let op = if *negated { BinaryOperator::PGRegexNotMatch } else { BinaryOperator::PGRegexMatch };
            let take = |expr: &mut Box<Expr>| std::mem::replace(expr, Box::new(Expr::Value(Value::Null.into())));
            *expr = Expr::BinaryOp { left: take(value), op, right: take(pattern) };
            Ok(())
        }
        _ => Ok(()),
    }
}

fn text_mut(pattern: &mut Expr) -> Option<&mut String> {
    match pattern {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => Some(text),
        Expr::Nested(inner) => text_mut(inner),
        _ => None,
    }
}

/// The character that takes the meaning from the one behind it, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Escape(Option<char>);

impl Escape {
    fn read(value: &ValueWithSpan) -> Result<Self> {
        let Value::SingleQuotedString(text) = &value.value else { return Self::misread(value) };
        let mut characters = text.chars();
        match (characters.next(), characters.next()) {
            (first, None) => Ok(Self(first)),
            _ => Self::misread(value),
        }
    }

    fn misread<T>(value: &ValueWithSpan) -> Result<T> {
        datafusion::common::plan_err!("ESCAPE names one character, or '' for none, not {value}; write ESCAPE '!'")
    }
}

/// A character of a pattern.
enum Sign {
    /// It stands for itself.
    Literal(char),
    /// It means what the language of the pattern says.
    Meaning(char),
}

fn signs(pattern: &str, escape: Escape) -> Result<Vec<Sign>> {
    let (mut signs, mut characters) = (Vec::with_capacity(pattern.len()), pattern.chars());
    while let Some(character) = characters.next() {
        signs.push(match (Some(character) == escape.0, character) {
            (false, character) => Sign::Meaning(character),
            (true, _) => match characters.next() {
                Some(escaped) => Sign::Literal(escaped),
                None => {
                    return datafusion::common::plan_err!(
                        "the pattern '{pattern}' ends with its escape character, which takes the meaning from the one behind it; write it twice"
                    );
                }
            },
        });
    }
    Ok(signs)
}

fn like_pattern(pattern: &str, escape: Escape) -> Result<String> {
    let mut out = String::with_capacity(pattern.len());
    for sign in signs(pattern, escape)? {
        match sign {
            Sign::Literal(character @ ('%' | '_' | '\\')) | Sign::Meaning(character @ '\\') => {
                out.extend(['\\', character]);
            }
            Sign::Literal(character) | Sign::Meaning(character) => out.push(character),
        }
    }
    Ok(out)
}

/// `%` and `_` are those of LIKE, `| * + ? { } ( ) [ ]` those of regular expressions; the whole text has to match.
fn regular_expression(pattern: &str, escape: Escape) -> Result<String> {
    let mut out = String::from("(?s)^(?:");
    let mut is_in_brackets = false;
    for sign in signs(pattern, escape)? {
        match sign {
            Sign::Meaning(character) if is_in_brackets => {
                is_in_brackets = character != ']';
                match character {
                    '\\' | '&' | '~' => out.extend(['\\', character]),
                    _ => out.push(character),
                }
            }
            Sign::Meaning('%') => out.push_str(".*"),
            Sign::Meaning('_') => out.push('.'),
            Sign::Meaning(character @ ('|' | '*' | '+' | '?' | '{' | '}' | '(' | ')' | '[' | ']')) => {
                is_in_brackets = character == '[';
                out.push(character);
            }
            Sign::Meaning(character) | Sign::Literal(character) => {
                if !character.is_alphanumeric() && !character.is_whitespace() && character.is_ascii() {
                    out.push('\\');
                }
                out.push(character);
            }
        }
    }
    out.push_str(")$");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_like_become_backslashes() {
        for (pattern, escape, expected) in [
            ("50!%", Some('!'), "50\\%"),
            ("a!_b%", Some('!'), "a\\_b%"),
            ("!!x", Some('!'), "!x"),
            ("!x", Some('!'), "x"),
            ("c:\\dir", Some('!'), "c:\\\\dir"),
            ("%%", Some('%'), "\\%"),
            ("a\\%", None, "a\\\\%"),
            ("!\\", Some('!'), "\\\\"),
        ] {
            assert_eq!(like_pattern(pattern, Escape(escape)).unwrap(), expected, "{pattern}");
        }
        assert!(like_pattern("50!", Escape(Some('!'))).is_err());
    }

    #[test]
    fn similar_to_matches_whole_texts() {
        for (pattern, expected) in [
            ("abc", "(?s)^(?:abc)$"),
            ("a%|_b", "(?s)^(?:a.*|.b)$"),
            ("a.c$", "(?s)^(?:a\\.c\\$)$"),
            ("[a-c%]+", "(?s)^(?:[a-c%]+)$"),
            ("50\\%", "(?s)^(?:50\\%)$"),
        ] {
            assert_eq!(regular_expression(pattern, Escape(Some('\\'))).unwrap(), expected, "{pattern}");
        }
    }
}
