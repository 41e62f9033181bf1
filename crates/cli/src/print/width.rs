//! Text as a terminal shows it: width in columns, cutting, and control characters made visible.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Marks text that was cut.
const CUT: char = '…';

/// The number of terminal columns that `text` takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Cuts `text` to at most `columns` columns, the last of which then says that it was cut.
pub fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    if text.len() <= columns || width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let mut kept = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used >= columns {
            break;
        }
        kept.push(c);
    }
    kept.push(CUT);
    Cow::Owned(kept)
}

/// Makes control characters visible, so that no stored text can move the cursor or recolour the terminal.
/// Line ends stay.
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_with(text, |c| c != '\n')
}

/// Like [`escape`], line ends included: the result is one line.
pub fn escape_line(text: &str) -> Cow<'_, str> {
    escape_with(text, |_| true)
}

fn escape_with(text: &str, also: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Direction overrides can make a terminal show one text and mean another.
    let is_hostile =
        |c: char| (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')) && also(c);
    if !text.contains(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_hostile(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_counts_columns_and_not_characters() {
        for (text, columns, expected) in [
            ("short", 5, "short"),
            ("longer", 5, "long…"),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("e\u{301}e\u{301}e\u{301}", 3, "e\u{301}e\u{301}e\u{301}"),
        ] {
            assert_eq!(cut(text, columns), expected);
            assert!(width(&cut(text, columns)) <= columns);
        }
    }

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(escape("a\x1b[31mb\tc\nd\r"), "a\\u{1b}[31mb\\tc\nd\\r");
        assert_eq!(escape_line("a\nb"), "a\\nb");
        assert_eq!(escape("\u{202e}x"), "\\u{202e}x");
        assert!(matches!(escape("plain ü"), Cow::Borrowed(_)));
    }
}
