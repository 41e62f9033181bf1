//! Meta-commands: lines that start with a backslash and are about the shell, not about data.
//!
//! What they list comes from SQL over `information_schema` and `system`, which anyone can query too.

use std::path::PathBuf;

use engine::arrow::array::AsArray;

use super::complete::quoted;
use crate::console::{Console, Outcome, Output};
use crate::print::Format;
use crate::report::Report;

/// A meta-command: its name, its argument, what it does.
struct Meta {
    name: &'static str,
    argument: &'static str,
    effect: &'static str,
}

const COMMANDS: [Meta; 15] = [
    Meta { name: "\\?", argument: "", effect: "show this help" },
    Meta { name: "\\q", argument: "", effect: "leave (also: quit, exit, Ctrl-D)" },
    Meta { name: "\\d", argument: "[NAME]", effect: "list tables and views, or describe one" },
    Meta { name: "\\dt", argument: "[PATTERN]", effect: "list tables; in patterns * stands for anything" },
    Meta { name: "\\dv", argument: "[PATTERN]", effect: "list views" },
    Meta { name: "\\dn", argument: "", effect: "list schemas" },
    Meta { name: "\\df", argument: "[PATTERN]", effect: "list functions" },
    Meta { name: "\\set", argument: "", effect: "list settings" },
    Meta { name: "\\timing", argument: "[on|off]", effect: "show how long statements take" },
    Meta { name: "\\x", argument: "[on|off]", effect: "show answers vertically, one line per column" },
    Meta { name: "\\format", argument: "[NAME]", effect: "show or choose how answers are printed" },
    Meta { name: "\\o", argument: "[FILE]", effect: "send answers to a file, without FILE back to the screen" },
    Meta { name: "\\i", argument: "FILE", effect: "run the statements of a file" },
    Meta { name: "\\echo", argument: "[TEXT]", effect: "print a text" },
    Meta { name: "\\conninfo", argument: "", effect: "show which database this is" },
];

/// The names of all meta-commands.
pub fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|command| command.name)
}

/// What the shell does after a meta-command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Go(Outcome),
    Quit,
}

/// Runs one line that starts with a backslash; errors are shown here.
pub async fn run(line: &str, console: &mut Console, location: &str) -> Next {
    let line = line.trim().trim_end_matches(';').trim_end();
    let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let argument = argument.trim();
    let outcome = match name {
        "\\q" | "\\quit" => return Next::Quit,
        "\\?" | "\\h" | "\\help" => tell(console, &help()),
        "\\d" if argument.is_empty() => console.run_sql(&list_tables("", "*"), None).await,
        "\\d" => describe(argument, console).await,
        "\\dt" => console.run_sql(&list_tables("t.table_type <> 'VIEW' AND ", argument), None).await,
        "\\dv" => console.run_sql(&list_tables("t.table_type = 'VIEW' AND ", argument), None).await,
        "\\dn" => console.run_sql(LIST_SCHEMAS, None).await,
        "\\df" => list_functions(argument, console).await,
        "\\set" => console.run_sql("SHOW ALL", None).await,
        "\\timing" => switch(argument, console, "timing", |console| &mut console.timing),
        "\\x" => toggle_vertical(argument, console),
        "\\format" => choose_format(argument, console),
        "\\o" => redirect(argument, console),
        "\\i" if !argument.is_empty() => {
            Box::pin(crate::run::run_file(&PathBuf::from(unquoted(argument)), console)).await
        }
        "\\i" => fail(console, "\\i needs a file", Some("write \\i report.sql")),
        "\\echo" => tell(console, argument),
        "\\conninfo" => tell(console, &format!("database {location}, sagitta {}", env!("CARGO_PKG_VERSION"))),
        unknown => {
            let hint = nearest(unknown).map(|name| format!("did you mean {name}?"));
            let hint = hint.unwrap_or_else(|| "\\? lists the meta-commands".to_owned());
            fail(console, &format!("there is no meta-command {unknown}"), Some(&hint))
        }
    };
    Next::Go(outcome)
}

/// The meta-command that was probably meant.
fn nearest(unknown: &str) -> Option<&'static str> {
    const SIMILARITY_MIN: f64 = 0.85;
    let ranked = names().map(|name| (strsim::jaro_winkler(name, unknown), name));
    let best = ranked.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN).map(|(_, name)| name)
}

/// The text that `\?` prints.
pub fn help() -> String {
    let mut text = "Statements end with a semicolon and may take several lines.\n\n".to_owned();
    for Meta { name, argument, effect } in &COMMANDS {
        text.push_str(&format!("  {:<20} {effect}\n", format!("{name} {argument}")));
    }
    text.push_str(
        "\n  Tab completes, arrow keys recall, Ctrl-R searches what was typed before.\n  \
         Ctrl-C drops the line or cancels the running statement, Ctrl-D leaves.\n",
    );
    text
}

fn tell(console: &mut Console, text: &str) -> Outcome {
    match console.tell(text) {
        Ok(()) => Outcome::Done,
        Err(_) => Outcome::PipeClosed,
    }
}

fn fail(console: &Console, message: &str, hint: Option<&str>) -> Outcome {
    console.show(Report { message: message.to_owned(), hint: hint.map(str::to_owned), ..Report::default() });
    Outcome::Failed
}

const LIST_SCHEMAS: &str = "SELECT DISTINCT schema_name AS schema FROM information_schema.schemata ORDER BY 1";

/// Tables or views; system schemas only if the pattern names them.
fn list_tables(condition: &str, pattern: &str) -> String {
    let pattern = if pattern.is_empty() { "*" } else { pattern };
    let (schema, name) = pattern.split_once('.').unwrap_or(("", pattern));
    let schema = match schema {
        "" => "t.table_schema NOT IN ('information_schema', 'system')".to_owned(),
        schema => format!("t.table_schema LIKE {}", like(schema)),
    };
    format!(
        "SELECT t.table_schema AS schema, t.table_name AS name, \
         CASE t.table_type WHEN 'VIEW' THEN 'view' WHEN 'FOREIGN' THEN 'external table' \
         WHEN 'SYSTEM VIEW' THEN 'system table' ELSE 'table' END AS kind \
         FROM information_schema.tables AS t \
         WHERE {condition}{schema} AND t.table_name LIKE {} ORDER BY 1, 2",
        like(name)
    )
}

async fn list_functions(pattern: &str, console: &mut Console) -> Outcome {
    let functions = match console.ask(|session| async move { session.vocabulary().await }).await {
        Ok(vocabulary) => vocabulary.functions,
        Err(error) => {
            console.show(Report::of(&error, None));
            return Outcome::Failed;
        }
    };
    let pattern = pattern.to_lowercase();
    let mut matching: Vec<&String> = functions.iter().filter(|name| matches(&pattern, name)).collect();
    matching.sort();
    if matching.is_empty() {
        return fail(console, &format!("no function matches {pattern}"), Some("\\df lists all"));
    }
    let widest = matching.iter().map(|name| name.len()).max().unwrap_or(0) + 2;
    let per_line = (100 / widest).max(1);
    let lines = matching.chunks(per_line).map(|line| {
        let cells: String = line.iter().map(|name| format!("{name:<widest$}")).collect();
        cells.trim_end().to_owned()
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    tell(console, &text)
}

/// Whether `name` fits a pattern of letters and `*`; without any `*`, whether it begins with the pattern.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return name.starts_with(pattern) };
    let Some(mut left) = name.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let Some(tail) = parts.pop() else { return true };
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(tail)
}

async fn describe(name: &str, console: &mut Console) -> Outcome {
    let (schema, table) = match split_name(name) {
        (Some(schema), table) => (schema, table),
        (None, table) => ("public".to_owned(), table),
    };
    let vocabulary = match console.ask(|session| async move { session.vocabulary().await }).await {
        Ok(vocabulary) => vocabulary,
        Err(error) => {
            console.show(Report::of(&error, None));
            return Outcome::Failed;
        }
    };
    if !vocabulary.tables.iter().any(|words| words.schema == schema && words.table == table) {
        let names = vocabulary.tables.iter().map(|words| match words.schema.as_str() {
            "public" => quoted(&words.table),
            schema => format!("{}.{}", quoted(schema), quoted(&words.table)),
        });
        let wanted = if schema == "public" { table.clone() } else { format!("{schema}.{table}") };
        let nearest = names.map(|name| (strsim::damerau_levenshtein(&name, &wanted), name)).min();
        let hint = match nearest {
            Some((distance, name)) if distance <= 2.max(wanted.len() / 3) => format!("did you mean {name}?"),
            _ => "\\d lists the tables and views".to_owned(),
        };
        return fail(console, &format!("there is no table or view {wanted}"), Some(&hint));
    }
    let sql = format!(
        "SELECT c.column_name AS \"column\", c.data_type AS type, c.is_nullable AS nullable, c.column_default AS \"default\" \
         FROM information_schema.columns AS c \
         WHERE c.table_schema = {} AND c.table_name = {} ORDER BY c.ordinal_position",
        literal(&schema),
        literal(&table)
    );
    let outcome = console.run_sql(&sql, None).await;
    if outcome != Outcome::Done || console.print.format.is_for_machines() {
        return outcome;
    }
    describe_view(&schema, &table, console).await
}

/// Prints the query behind a view; nothing if it is a table.
async fn describe_view(schema: &str, table: &str, console: &mut Console) -> Outcome {
    let sql = format!(
        "SELECT view_definition FROM information_schema.views WHERE table_schema = {} AND table_name = {}",
        literal(schema),
        literal(table)
    );
    let answer = console.ask(|session| async move { session.execute(&sql).await?.collect().await }).await;
    let definition = answer.map(|batches| {
        let batch = batches.into_iter().find(|batch| batch.num_rows() > 0)?;
        batch.column(0).as_string_opt::<i32>().map(|texts| texts.value(0).to_owned())
    });
    match definition {
        Ok(Some(query)) => tell(console, &format!("view: {}", query.trim())),
        Ok(None) => Outcome::Done,
        Err(error) => {
            console.show(Report::of(&error, None));
            Outcome::Failed
        }
    }
}

/// Splits `schema.table` as SQL would: lower case unless quoted.
fn split_name(name: &str) -> (Option<String>, String) {
    let mut parts = vec![String::new()];
    let mut is_quoted = false;
    for c in name.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            '.' if !is_quoted => parts.push(String::new()),
            c => {
                if let Some(part) = parts.last_mut() {
                    if is_quoted { part.push(c) } else { part.extend(c.to_lowercase()) }
                }
            }
        }
    }
    let table = parts.pop().unwrap_or_default();
    (parts.pop(), table)
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A pattern with `*` as the text of a LIKE pattern.
fn like(pattern: &str) -> String {
    let pattern = pattern.to_lowercase().replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    literal(&pattern.replace('*', "%"))
}

fn switch(argument: &str, console: &mut Console, what: &str, of: fn(&mut Console) -> &mut bool) -> Outcome {
    let value = match argument {
        "" => !*of(console),
        "on" => true,
        "off" => false,
        other => return fail(console, &format!("{what} is on or off, not {other}"), None),
    };
    *of(console) = value;
    tell(console, &format!("{what} is {}", if value { "on" } else { "off" }))
}

fn toggle_vertical(argument: &str, console: &mut Console) -> Outcome {
    let is_vertical = match argument {
        "" => console.print.format != Format::Vertical,
        "on" => true,
        "off" => false,
        other => return fail(console, &format!("\\x takes on or off, not {other}"), None),
    };
    console.print.format = if is_vertical { Format::Vertical } else { Format::Table };
    tell(console, &format!("format is {}", console.print.format.name()))
}

fn choose_format(argument: &str, console: &mut Console) -> Outcome {
    if argument.is_empty() {
        return tell(console, &format!("format is {}", console.print.format.name()));
    }
    let Some(format) = Format::by_name(argument) else {
        let names: Vec<String> = <Format as clap::ValueEnum>::value_variants().iter().map(|f| f.name()).collect();
        return fail(console, &format!("there is no format {argument}"), Some(&format!("choose {}", names.join(", "))));
    };
    if format == Format::Arrow && console.output.is_terminal() {
        return fail(console, "an Arrow stream is not for the eye", Some("send it to a file first: \\o answer.arrows"));
    }
    console.print.format = format;
    tell(console, &format!("format is {}", format.name()))
}

fn redirect(argument: &str, console: &mut Console) -> Outcome {
    if argument.is_empty() {
        console.output = Output::stdout();
        if console.print.format == Format::Arrow && console.output.is_terminal() {
            console.print.format = Format::Table;
        }
        return Outcome::Done;
    }
    let path = PathBuf::from(unquoted(argument));
    match Output::file(path) {
        Ok(output) => {
            console.output = output;
            Outcome::Done
        }
        Err(error) => fail(console, &format!("cannot write to {argument}: {error}"), None),
    }
}

/// A file name, without the quotes that it may stand in and with `~` as the home directory.
fn unquoted(name: &str) -> String {
    let quotes = ['\'', '"'];
    let bare = quotes.iter().find_map(|&q| name.strip_prefix(q).and_then(|name| name.strip_suffix(q))).unwrap_or(name);
    match (bare.strip_prefix("~/"), std::env::var("HOME")) {
        (Some(rest), Ok(home)) => format!("{home}/{rest}"),
        _ => bare.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fold_to_lower_case_unless_quoted() {
        assert_eq!(split_name("Docs"), (None, "docs".into()));
        assert_eq!(split_name("S.\"My.Docs\""), (Some("s".into()), "My.Docs".into()));
    }

    #[test]
    fn patterns_know_the_star() {
        for (pattern, name, expected) in [
            ("", "anything", true),
            ("co", "cosine_distance", true),
            ("*distance", "cosine_distance", true),
            ("co*dis*ce", "cosine_distance", true),
            ("*sine*", "cosine_distance", true),
            ("sine*", "cosine_distance", false),
            ("*distances", "cosine_distance", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        assert_eq!(like("a_b*"), "'a\\_b%'");
        assert_eq!(literal("it's"), "'it''s'");
    }

    #[test]
    fn the_command_that_was_meant_is_found() {
        for (typed, meant) in [
            ("\\time", Some("\\timing")),
            ("\\conifno", Some("\\conninfo")),
            ("\\formt", Some("\\format")),
            ("\\zzz", None),
        ] {
            assert_eq!(nearest(typed), meant, "{typed}");
        }
    }

    #[test]
    fn help_names_every_command() {
        let help = help();
        assert!(names().all(|name| help.contains(name)));
    }
}
