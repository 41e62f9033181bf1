//! The records of an `.slt` file: what they look like, and whether an answer is the expected one. No engine here.
//!
//! ```text
//! # comment                         statement ok | statement count N | statement error REGEX
//! include other.slt                 query TYPES [rowsort] | query error REGEX
//! connection name                   … SQL, then for a query `----` and its rows, one per line; a blank line ends the record
//! ```
//! `connection` gives the next record a session of that name, `connection user:anna` one of the user anna.
//! `<slt:ignore>` in a row stands for any text, over lines too.

use std::path::Path;

use regex::Regex;

/// What stands for any text in expected rows.
pub const IGNORE: &str = "<slt:ignore>";

/// One statement of a file, and what it must give.
pub struct Record {
    /// `file:line`, for messages.
    pub place: String,
    /// The session that runs it.
    pub connection: String,
    pub sql: String,
    pub expected: Expected,
    /// The lines of the file, from 0, that hold the expected rows; none for a record of an included file.
    pub rows_at: Option<std::ops::Range<usize>>,
}

/// What a record must give.
pub enum Expected {
    /// No error.
    Ok,
    /// This many rows written.
    Count(u64),
    /// An error whose text the expression finds.
    Error(Regex),
    /// Rows with columns of these types.
    Rows { types: String, is_sorted: bool, rows: Vec<String> },
}

/// Reads the records of a file, those of its includes among them.
///
/// # Errors
/// A line that is no part of a record, with its place.
pub fn read(file: &Path) -> Result<Vec<Record>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let lines: Vec<&str> = text.lines().collect();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let (mut records, mut connection, mut at) = (vec![], String::new(), 0);
    while at < lines.len() {
        let line = lines[at].trim_end();
        let place = format!("{name}:{}", at + 1);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => at += 1,
            [first, ..] if first.starts_with('#') => at += 1,
            ["include", other] => {
                let included = read(&file.with_file_name(other))?;
                records.extend(included.into_iter().map(|record| Record { rows_at: None, ..record }));
                at += 1;
            }
            ["connection", session] => {
                connection = (*session).to_owned();
                at += 1;
            }
            ["statement" | "query", ..] => {
                let end = (at..lines.len()).find(|at| lines[*at].trim().is_empty()).unwrap_or(lines.len());
                let session = std::mem::take(&mut connection);
                records.push(record(&lines[..end], at, &words, session, place)?);
                at = end;
            }
            _ => return Err(format!("{place}: {line:?} begins no record")),
        }
    }
    Ok(records)
}

/// The record whose head is line `at`; `lines` end with its last line.
fn record(lines: &[&str], at: usize, words: &[&str], connection: String, place: String) -> Result<Record, String> {
    let divider = (at..lines.len()).find(|at| lines[*at].trim_end() == "----");
    let sql = lines[at + 1..divider.unwrap_or(lines.len())].join("\n");
    if sql.trim().is_empty() {
        return Err(format!("{place}: a record without SQL"));
    }
    let pattern = |words: &[&str]| {
        if words.is_empty() {
            return Err(format!("{place}: which error? write statement error REGEX"));
        }
        Regex::new(&words.join(" ")).map_err(|error| format!("{place}: {error}"))
    };
    let mut rows_at = None;
    let expected = match (words, divider) {
        (["statement", "ok"], None) => Expected::Ok,
        (["statement", "count", count], None) => {
            Expected::Count(count.parse().map_err(|_| format!("{place}: {count} is no count"))?)
        }
        (["statement" | "query", "error"], None) => Expected::Error(pattern(&["."])?),
        (["statement" | "query", "error", rest @ ..], None) => Expected::Error(pattern(rest)?),
        (["query", types, sort @ ..], Some(divider)) if matches!(sort, [] | ["rowsort"]) => {
            rows_at = Some(divider + 1..lines.len());
            let rows = lines[divider + 1..].iter().map(|line| (*line).to_owned()).collect();
            Expected::Rows { types: (*types).to_owned(), is_sorted: !sort.is_empty(), rows }
        }
        _ => return Err(format!("{place}: {:?} is no head of a record, or its rows are missing", words.join(" "))),
    };
    Ok(Record { place, connection, sql, expected, rows_at })
}

/// Whether these are the expected rows: the same words in the same lines, `<slt:ignore>` for any text.
pub fn matches(expected: &[String], found: &[String]) -> bool {
    if expected.iter().any(|line| line.contains(IGNORE)) {
        return fragments_follow(&expected.join("\n"), &found.join("\n"));
    }
    let words = |line: &String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    expected.iter().map(words).eq(found.iter().map(words))
}

fn fragments_follow(expected: &str, found: &str) -> bool {
    let mut rest = found;
    for fragment in expected.split(IGNORE).filter(|fragment| !fragment.is_empty()) {
        match rest.find(fragment) {
            Some(at) => rest = &rest[at + fragment.len()..],
            None => return false,
        }
    }
    true
}
