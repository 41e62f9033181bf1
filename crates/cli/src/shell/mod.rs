//! The shell: a line editor that knows SQL, around `console`.
//!
//! A statement may take several lines, all of which can be edited until it ends. Each continued line starts, in the
//! edited text, with as many blanks as the prompt is wide; the highlighter shows them as the continuation prompt.
//! Before the statement is run they are taken out again.

mod complete;
mod highlight;
pub mod meta;

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use engine::Vocabulary;
use engine::text::{TokenClass, is_complete, tokens};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Cmd, ColorMode, CompletionType, ConditionalEventHandler, Config, Editor, Event, EventContext, EventHandler, Helper,
    Hinter, KeyCode, KeyEvent, Modifiers, Movement, RepeatCount,
};
use tokio::runtime::Runtime;

use crate::args::ColorWhen;
use crate::console::{Console, Outcome};
use crate::report::Report;

/// Stands before the first line of a statement.
pub const PROMPT: &str = "sagitta> ";
/// Stands before the lines that continue it; as wide as [`PROMPT`].
pub const CONTINUATION: &str = "      -> ";

/// Statements that the history keeps.
const HISTORY_ENTRIES_MAX: usize = 10_000;
/// More candidates than this are listed only if the user insists.
const CANDIDATES_UNASKED_MAX: usize = 120;

type SharedVocabulary = Arc<RwLock<Vocabulary>>;

/// A shell before its database is open.
pub struct Shell {
    editor: Editor<SqlHelper, DefaultHistory>,
    vocabulary: SharedVocabulary,
}

impl Shell {
    /// Takes hold of the terminal.
    ///
    /// To be called before anything waits for Ctrl-C: the editor puts a handler of its own in the place of any that
    /// is there for interrupts, while the runtime's, when it comes second, calls the one before.
    ///
    /// # Errors
    /// A terminal that cannot be read.
    pub fn new(color: ColorWhen) -> rustyline::Result<Shell> {
        let vocabulary = SharedVocabulary::default();
        let has_color = color.colors(std::io::stdout().is_terminal());
        Ok(Shell { editor: editor(vocabulary.clone(), has_color)?, vocabulary })
    }

    /// Reads and runs until the user leaves.
    pub fn run(self, location: &str, mut console: Console, terminal: &Runtime) -> Outcome {
        let Shell { mut editor, vocabulary } = self;
        let history = History::open(&mut editor, &console);
        if !console.quiet {
            println!("sagitta {}, database {location}", env!("CARGO_PKG_VERSION"));
            println!("Statements end with a semicolon. \\? shows help, \\q leaves.");
        }
        refresh(&console, &vocabulary);
        loop {
            let typed = match editor.readline(PROMPT) {
                Ok(typed) => typed,
                // The line that was typed is dropped. A signal is one that the statement before has taken already.
                Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => continue,
                Err(ReadlineError::Eof) => return Outcome::Done,
                Err(error) => return give_up(&error, console.error_color),
            };
            let text = without_indents(&typed);
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            if !engine::text::may_hold_password(text) {
                history.add(&mut editor, typed.trim_end());
            }
            match terminal.block_on(run_text(text, &mut console, location)) {
                meta::Next::Quit => return Outcome::Done,
                meta::Next::Go(Outcome::PipeClosed) => return Outcome::PipeClosed,
                meta::Next::Go(_) => {}
            }
            if std::mem::take(&mut console.catalog_changed) {
                refresh(&console, &vocabulary);
            }
        }
    }
}

/// Shows why the terminal cannot be used.
pub fn give_up(error: &ReadlineError, color: bool) -> Outcome {
    let message = format!("cannot read from the terminal: {error}; pass statements with -c or -f");
    eprint!("{}", Report { message, ..Report::default() }.render(color));
    Outcome::Failed
}

async fn run_text(text: &str, console: &mut Console, location: &str) -> meta::Next {
    match bare_word(text) {
        Some(Word::Leave) => meta::Next::Quit,
        Some(Word::Help) => meta::run("\\?", console, location).await,
        None if text.starts_with('\\') => meta::run(text, console, location).await,
        None => meta::Next::Go(console.run_sql(text, None).await),
    }
}

/// Learns again which tables, columns and functions there are, without keeping the user waiting.
fn refresh(console: &Console, vocabulary: &SharedVocabulary) {
    let session = console.session.clone();
    let vocabulary = vocabulary.clone();
    console.workers.spawn(async move {
        // Without a vocabulary nothing is completed; whatever is wrong, the next statement will say.
        if let Ok(learned) = session.vocabulary().await {
            *vocabulary.write().unwrap_or_else(PoisonError::into_inner) = learned;
        }
    });
}

fn editor(vocabulary: SharedVocabulary, color: bool) -> rustyline::Result<Editor<SqlHelper, DefaultHistory>> {
    let config = Config::builder()
        .max_history_size(HISTORY_ENTRIES_MAX)?
        .history_ignore_dups(true)?
        .history_ignore_space(true)
        .completion_type(CompletionType::List)
        .completion_prompt_limit(CANDIDATES_UNASKED_MAX)
        // The highlighter also draws the continuation prompt, so it is asked even if there is no colour.
        .color_mode(ColorMode::Forced)
        .tab_stop(4)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(SqlHelper { vocabulary, color }));
    let keys = [KeyEvent(KeyCode::Enter, Modifiers::NONE), KeyEvent::ctrl('J'), KeyEvent::ctrl('M')];
    for key in keys {
        editor.bind_sequence(key, EventHandler::Conditional(Box::new(EnterKey)));
    }
    editor.bind_sequence(
        KeyEvent(KeyCode::Backspace, Modifiers::NONE),
        EventHandler::Conditional(Box::new(BackspaceKey)),
    );
    Ok(editor)
}

/// What a text without a semicolon can still mean.
enum Word {
    Leave,
    Help,
}

fn bare_word(text: &str) -> Option<Word> {
    match text.trim().trim_end_matches(';').to_ascii_lowercase().as_str() {
        "quit" | "exit" => Some(Word::Leave),
        "help" | "?" => Some(Word::Help),
        _ => None,
    }
}

/// Whether Enter runs the text.
fn is_whole(text: &str) -> bool {
    text.trim_start().starts_with('\\') || bare_word(text).is_some() || is_complete(text)
}

fn indent() -> String {
    format!("\n{}", " ".repeat(CONTINUATION.len()))
}

/// Whether the end of `text` lies within quotes, where blanks would become part of a value.
fn ends_within_quotes(text: &str) -> bool {
    let probe = format!("{text}\n");
    tokens(&probe).last().is_some_and(|(range, class)| range.end == probe.len() && *class != TokenClass::Comment)
}

/// Takes the indentation out that [`EnterKey`] put in.
fn without_indents(typed: &str) -> String {
    let indent = indent();
    let classes = tokens(typed);
    let is_within_token = |at: usize| {
        classes.iter().any(|(range, class)| range.start < at && at < range.end && *class != TokenClass::Comment)
    };
    let mut text = String::with_capacity(typed.len());
    let mut place = 0;
    for (at, _) in typed.match_indices(&indent) {
        if at >= place && !is_within_token(at) {
            text.push_str(&typed[place..=at]);
            place = at + indent.len();
        }
    }
    text.push_str(&typed[place..]);
    text
}

/// Enter ends a statement that is whole, and continues any other on an indented line.
struct EnterKey;

impl ConditionalEventHandler for EnterKey {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        if is_whole(context.line()) || context.line().trim().is_empty() {
            return None;
        }
        let before = &context.line()[..context.pos()];
        let text = if ends_within_quotes(before) { "\n".to_owned() } else { indent() };
        Some(Cmd::Insert(1, text))
    }
}

/// Backspace at the start of a continued line joins it to the line above.
struct BackspaceKey;

impl ConditionalEventHandler for BackspaceKey {
    fn handle(&self, _: &Event, count: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        let indent = indent();
        let is_at_start = count == 1 && context.line()[..context.pos()].ends_with(&indent);
        let characters = RepeatCount::try_from(indent.len()).ok()?;
        is_at_start.then_some(Cmd::Kill(Movement::BackwardChar(characters)))
    }
}

/// The editor's knowledge of SQL.
#[derive(Helper, Hinter)]
struct SqlHelper {
    vocabulary: SharedVocabulary,
    color: bool,
}

impl Completer for SqlHelper {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &rustyline::Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let vocabulary = self.vocabulary.read().unwrap_or_else(PoisonError::into_inner);
        Ok(complete::complete(&vocabulary, line, pos))
    }
}

impl Highlighter for SqlHelper {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        Cow::Owned(highlight::highlight(line, self.color))
    }

    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        if self.color { Cow::Owned(format!("\x1b[1m{prompt}\x1b[0m")) } else { Cow::Borrowed(prompt) }
    }

    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        kind != CmdKind::MoveCursor
    }
}

impl Validator for SqlHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input();
        let is_ready = text.trim().is_empty() || is_whole(text);
        Ok(if is_ready { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

/// The file that keeps what was typed, if there is a place for it.
struct History {
    path: Option<PathBuf>,
}

impl History {
    /// Reads the history of earlier shells. A file that cannot be read is reported once and left alone.
    fn open(editor: &mut Editor<SqlHelper, DefaultHistory>, console: &Console) -> History {
        let Some(path) = history_path() else { return History { path: None } };
        let read = match path.parent().map(std::fs::create_dir_all) {
            Some(Err(error)) => Err(error.to_string()),
            _ if !path.exists() => Ok(()),
            _ => editor.load_history(&path).map_err(|error| error.to_string()),
        };
        match read {
            Ok(()) => History { path: Some(path) },
            Err(error) => {
                let message =
                    format!("cannot use the history in {}: {error}; it is not kept this time", path.display());
                console.show(Report { message, ..Report::default() });
                History { path: None }
            }
        }
    }

    /// Keeps a text, at once: a shell may be killed, and several may be open.
    fn add(&self, editor: &mut Editor<SqlHelper, DefaultHistory>, text: &str) {
        let added = editor.add_history_entry(text).unwrap_or(false);
        if let (true, Some(path)) = (added, &self.path) {
            // The history is a convenience: a full disk must not come between the user and their statement.
            let _ = editor.append_history(path);
        }
    }
}

/// `$XDG_STATE_HOME/sagitta/history`, by default below `~/.local/state`.
fn history_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("sagitta").join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_of_one_width() {
        assert_eq!(PROMPT.len(), CONTINUATION.len());
    }

    #[test]
    fn enter_runs_statements_and_meta_commands_only_when_whole() {
        for (text, expected) in [
            ("SELECT 1", false),
            ("SELECT 1;", true),
            ("SELECT ';", false),
            ("\\d", true),
            ("  \\timing", true),
            ("quit", true),
            ("EXIT;", true),
            ("help", true),
            ("helper", false),
        ] {
            assert_eq!(is_whole(text), expected, "{text}");
        }
    }

    #[test]
    fn indents_are_taken_out_except_from_texts() {
        let indent = indent();
        assert_eq!(without_indents(&format!("SELECT 1{indent}FROM t;")), "SELECT 1\nFROM t;");
        assert_eq!(without_indents(&format!("SELECT 1{indent}{indent}  FROM t;")), "SELECT 1\n\n  FROM t;");
        let text = format!("SELECT 'a{indent}b';");
        assert_eq!(without_indents(&text), text);
    }

    #[test]
    fn lines_within_quotes_are_not_indented() {
        for (text, expected) in [
            ("SELECT 'a", true),
            ("SELECT 'a'", false),
            ("SELECT 1 -- it's", false),
            ("SELECT \"a", true),
            ("SELECT (", false),
        ] {
            assert_eq!(ends_within_quotes(text), expected, "{text}");
        }
    }
}
