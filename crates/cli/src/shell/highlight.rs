//! Colours for SQL as it is typed, and the arrow in front of continued lines.

use engine::text::{TokenClass, tokens};

use super::CONTINUATION;

const RESET: &str = "\x1b[0m";
const DIM: &str = "\x1b[2m";

/// Longer texts stay plain: they were pasted, and each key press would classify them anew.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// The text as the terminal shows it: of the same width, in colour if `color`.
///
/// Continued lines start with blanks (see `shell`), which are shown as the continuation prompt.
pub fn highlight(text: &str, color: bool) -> String {
    let mut shown = String::with_capacity(text.len() * 2);
    let mut place = 0;
    let is_plain = !color || text.len() > TEXT_BYTES_MAX || text.trim_start().starts_with('\\');
    for (mut range, class) in if is_plain { Vec::new() } else { tokens(text) } {
        if range.start < place || range.end > text.len() {
            continue;
        }
        if class == TokenClass::Comment && text[range.clone()].ends_with('\n') {
            // The line end of a comment begins a continued line, as any other does.
            range.end -= 1;
        }
        write_plain(&text[place..range.start], color, &mut shown);
        write_token(&text[range.clone()], code_of(class), &mut shown);
        place = range.end;
    }
    write_plain(&text[place..], color, &mut shown);
    shown
}

fn code_of(class: TokenClass) -> &'static str {
    match class {
        TokenClass::Keyword => "\x1b[1;34m",
        TokenClass::Function => "\x1b[33m",
        TokenClass::Number => "\x1b[36m",
        TokenClass::Text => "\x1b[32m",
        TokenClass::Comment => "\x1b[90m",
        TokenClass::Placeholder => "\x1b[35m",
        TokenClass::Identifier | TokenClass::Operator | TokenClass::Other => "",
    }
}

fn write_token(token: &str, code: &str, shown: &mut String) {
    if code.is_empty() {
        shown.push_str(token);
        return;
    }
    shown.push_str(code);
    shown.push_str(token);
    shown.push_str(RESET);
}

/// Writes the blanks between tokens, with prompts in place of the indentation of continued lines.
fn write_plain(blank: &str, color: bool, shown: &mut String) {
    let indent = format!("\n{}", " ".repeat(CONTINUATION.len()));
    let prompt = if color { format!("\n{DIM}{CONTINUATION}{RESET}") } else { format!("\n{CONTINUATION}") };
    shown.push_str(&blank.replace(&indent, &prompt));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_codes(text: &str) -> String {
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('\x1b') {
            plain.push_str(&rest[..at]);
            rest = rest[at..].split_once('m').unwrap().1;
        }
        plain + rest
    }

    #[test]
    fn highlighted_text_is_the_same_text() {
        for text in ["SELECT 'ä' AS x, 1.5 -- note", "select (", "'open", "", "\\d docs", "SELECT $1;"] {
            assert_eq!(without_codes(&highlight(text, true)), text);
            assert_eq!(highlight(text, false), text);
        }
    }

    #[test]
    fn keywords_and_texts_have_colours() {
        let shown = highlight("SELECT 'a'", true);
        assert!(shown.contains("\x1b[1;34mSELECT\x1b[0m") && shown.contains("\x1b[32m'a'\x1b[0m"), "{shown:?}");
    }

    #[test]
    fn continued_lines_start_with_an_arrow() {
        let typed = format!("SELECT 1\n{}FROM t", " ".repeat(CONTINUATION.len()));
        assert_eq!(without_codes(&highlight(&typed, true)), "SELECT 1\n      -> FROM t");
        assert_eq!(highlight(&typed, false), "SELECT 1\n      -> FROM t");
        assert_eq!(highlight("SELECT 1\n  FROM t", false), "SELECT 1\n  FROM t");
        let commented = format!("SELECT 1 -- one\n{};", " ".repeat(CONTINUATION.len()));
        assert_eq!(without_codes(&highlight(&commented, true)), "SELECT 1 -- one\n      -> ;");
    }
}
