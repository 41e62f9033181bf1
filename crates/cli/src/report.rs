//! How an error is shown: what failed, the place in the SQL, and what was meant.

use std::ops::Range;

use crate::print::escape_line;

/// Lines of SQL longer than this are shown around the place alone: a line may hold a vector.
const LINE_WIDTH_MAX: usize = 100;
/// How a tab is shown, so that the mark below it stays in place.
const TAB: &str = "    ";

const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[36m";
const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";

/// An error, ready to be shown.
#[derive(Debug, Clone, Default)]
pub struct Report<'a> {
    pub message: String,
    pub hint: Option<String>,
    /// The whole text that was run, and the bytes of it that the error is about.
    pub place: Option<(&'a str, Range<usize>)>,
    /// The file that holds the text.
    pub file: Option<&'a str>,
}

impl<'a> Report<'a> {
    /// The report of an engine error about `sql`, the text in whose bytes the error names its place.
    pub fn of(error: &engine::Error, sql: Option<&'a str>) -> Report<'a> {
        Report { message: error.to_string(), hint: error.hint.clone(), place: sql.zip(error.place.clone()), file: None }
    }

    /// The lines to show, the last with its line end.
    pub fn render(&self, color: bool) -> String {
        let paint = |code: &str, text: &str| if color { format!("{code}{text}{RESET}") } else { text.to_owned() };
        let mut text = String::new();
        let mut lines = self.message.trim_end().lines();
        let message = lines.next().unwrap_or("unknown");
        text.push_str(&format!("{} {}\n", paint(RED, "error:"), paint(BOLD, &escape_line(message))));
        for line in lines {
            text.push_str(&format!("  {}\n", escape_line(line)));
        }
        if let Some((sql, place)) = &self.place {
            self.write_place(sql, place, &paint, &mut text);
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("{} {}\n", paint(CYAN, "hint:"), escape_line(hint)));
        }
        text
    }

    fn write_place(&self, sql: &str, place: &Range<usize>, paint: &dyn Fn(&str, &str) -> String, text: &mut String) {
        let start = floor_char(sql, place.start);
        let end = floor_char(sql, place.end).max(start);
        let line_start = sql[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = sql[start..].find('\n').map_or(sql.len(), |at| start + at);
        let line_number = sql[..line_start].matches('\n').count() + 1;
        let shown = Shown::of(sql, line_start..line_end, start..end.min(line_end));
        let label = match self.file {
            Some(file) => format!("{}, line {line_number}: ", escape_line(file)),
            None if sql.trim_end().contains('\n') => format!("line {line_number}: "),
            None => "  ".to_owned(),
        };
        let indent = " ".repeat(console_width(&label) + console_width(&shown.before));
        text.push_str(&format!("{}{}{}{}\n", paint(CYAN, &label), shown.before, shown.marked, shown.after));
        let carets = "^".repeat(console_width(&shown.marked).max(1));
        text.push_str(&format!("{indent}{}\n", paint(RED, &carets)));
    }
}

/// The part of a line that is shown, ready for the terminal.
struct Shown {
    before: String,
    marked: String,
    after: String,
}

impl Shown {
    fn of(sql: &str, line: Range<usize>, marked: Range<usize>) -> Shown {
        let visible = |text: &str| escape_line(&text.trim_end_matches('\r').replace('\t', TAB)).into_owned();
        let mut before = visible(&sql[line.start..marked.start]);
        let mut middle = visible(&sql[marked.clone()]);
        let mut after = visible(&sql[marked.end..line.end]);
        let width = |text: &str| text.chars().count();
        if width(&before) + width(&middle) + width(&after) > LINE_WIDTH_MAX {
            // Half of the room for what is marked, the rest is shared by its surroundings.
            middle = keep_start(&middle, LINE_WIDTH_MAX / 2);
            let room = LINE_WIDTH_MAX - width(&middle);
            let before_room = (room / 2).max(room.saturating_sub(width(&after)));
            before = keep_end(&before, before_room);
            after = keep_start(&after, LINE_WIDTH_MAX.saturating_sub(width(&before) + width(&middle)));
        }
        Shown { before, marked: middle, after }
    }
}

fn keep_start(text: &str, count: usize) -> String {
    match text.char_indices().nth(count) {
        None => text.to_owned(),
        Some(_) => text.chars().take(count.saturating_sub(1)).chain(['…']).collect(),
    }
}

fn keep_end(text: &str, count: usize) -> String {
    let total = text.chars().count();
    if total <= count {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(total + 1 - count)).collect()
}

fn console_width(text: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(text)
}

/// The last character boundary at or before `at`.
fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `marks` is the text that the error is about: its first occurrence.
    fn check(sql: &str, marks: &str, expected: &str) {
        let start = sql.find(marks).unwrap();
        let report = Report {
            message: "wrong".into(),
            hint: Some("did you mean \"emb\"?".into()),
            place: Some((sql, start..start + marks.len())),
            file: None,
        };
        let expected = format!("error: wrong\n{expected}\nhint: did you mean \"emb\"?\n");
        assert_eq!(report.render(false), expected, "{sql:?}");
    }

    #[test]
    fn the_caret_stands_under_the_place() {
        check("SELECT embb FROM t", "embb", "  SELECT embb FROM t\n         ^^^^");
        check("SELECT 1\nFROM tt\nWHERE x", "tt", "line 2: FROM tt\n             ^^");
        check("SELECT 1\r\nFROM tt\r\nWHERE x", "tt", "line 2: FROM tt\n             ^^");
    }

    #[test]
    fn tabs_and_wide_characters_do_not_move_the_caret() {
        check("\tSELECT\tx", "x", "      SELECT    x\n                ^");
        check("SELECT '日本', é, x", "x", "  SELECT '日本', é, x\n                    ^");
        check("SELECT '日本'", "'日本'", "  SELECT '日本'\n         ^^^^^^");
    }

    #[test]
    fn a_place_of_several_lines_is_marked_to_the_end_of_its_first() {
        check("SELECT (1 +\n2) FROM t", "(1 +\n2)", "line 1: SELECT (1 +\n               ^^^^");
    }

    #[test]
    fn a_place_at_the_end_or_beyond_has_one_caret() {
        for place in [8..8, 8..12, 99..120] {
            let report = Report { place: Some(("SELECT (", place)), ..Report::default() };
            assert!(report.render(false).ends_with("  SELECT (\n          ^\n"), "{}", report.render(false));
        }
    }

    #[test]
    fn a_long_line_is_shown_around_the_place() {
        let vector = vec!["0.123"; 384].join(", ");
        let sql = format!("SELECT id FROM t ORDER BY embb <=> '[{vector}]' LIMIT 3");
        let start = sql.find("embb").unwrap();
        let report = Report { place: Some((&sql, start..start + 4)), ..Report::default() };
        let text = report.render(false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].chars().count() <= LINE_WIDTH_MAX + 2, "{text}");
        assert!(lines[1].contains("ORDER BY embb <=>") && lines[1].ends_with('…'));
        let column = lines[1].chars().take_while(|c| *c != 'e' || !lines[1].contains("embb")).count();
        assert!(column > 0);
        let caret = lines[2].find('^').unwrap();
        assert_eq!(lines[1].chars().skip(caret).take(4).collect::<String>(), "embb");

        let limit = sql.rfind("LIMIT").unwrap();
        let report = Report { place: Some((&sql, limit..limit + 5)), ..Report::default() };
        let text = report.render(false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].trim_start().starts_with('…') && lines[1].ends_with("LIMIT 3"), "{text}");
        let caret = lines[2].find('^').unwrap();
        assert_eq!(lines[1].chars().skip(caret).take(5).collect::<String>(), "LIMIT");
    }

    #[test]
    fn colour_and_control_characters_are_under_control() {
        let report = Report { message: "no file a\x1b[2Jb".into(), ..Report::default() };
        assert_eq!(report.render(false), "error: no file a\\u{1b}[2Jb\n");
        assert!(report.render(true).starts_with("\x1b[1;31merror:\x1b[0m"));
    }
}
