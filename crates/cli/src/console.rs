//! Runs statements and prints their answers: what the shell and the batch mode share.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::arrow::array::RecordBatch;
use engine::arrow::datatypes::SchemaRef;
use engine::{Answer, Done, Progress, Statement};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::connection::Connection;
use crate::print::{self, PrintOptions, Printer};
use crate::progress::{DRAW_INTERVAL, ProgressLine};
use crate::report::Report;

/// Batches that may wait for the printer.
const BATCHES_WAITING_MAX: usize = 4;
/// Statements whose answers describe something: their texts are never cut.
const DESCRIBING: [&str; 4] = ["EXPLAIN", "SHOW", "DESCRIBE", "DESC"];

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It failed, and the error has been shown.
    Failed,
    /// It cannot be done as it was asked for, and that has been shown.
    Misused,
    /// The user interrupted it.
    Interrupted,
    /// Nobody reads the output any more.
    PipeClosed,
}

impl Outcome {
    /// The status that a shell sees: 141 is what a program has that SIGPIPE ends.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            Outcome::Misused => 2,
            Outcome::Interrupted => 130,
            Outcome::PipeClosed => 141,
        })
    }
}

/// Where answers go.
pub enum Output {
    Stdout(BufWriter<io::Stdout>),
    File { path: PathBuf, file: BufWriter<File> },
}

impl Output {
    /// Standard output.
    pub fn stdout() -> Output {
        Output::Stdout(BufWriter::new(io::stdout()))
    }

    /// A new file, in place of one that exists.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn file(path: PathBuf) -> io::Result<Output> {
        let file = BufWriter::new(File::create(&path)?);
        Ok(Output::File { path, file })
    }

    /// Whether a person sees what is written.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Output::Stdout(stdout) if stdout.get_ref().is_terminal())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let writer: &mut dyn Write = match self {
            Output::Stdout(stdout) => stdout,
            Output::File { file, .. } => file,
        };
        writer.write_all(bytes)?;
        writer.flush()
    }
}

/// What went wrong with a statement, before it is shown.
enum Failure {
    Engine(engine::Error),
    Message(String),
    Interrupted,
    Output(io::Error),
    /// The task ended without an answer: it panicked.
    Vanished,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

impl From<engine::arrow::error::ArrowError> for Failure {
    fn from(error: engine::arrow::error::ArrowError) -> Failure {
        Failure::Message(format!("cannot print the answer: {error}; choose another --format or cast the column"))
    }
}

/// What a running statement tells its printer.
enum Event {
    Start(SchemaRef, Arc<Progress>),
    Rows(RecordBatch),
    Done(Done),
    End,
    Failed(engine::Error),
}

/// A session and the way its answers are shown.
pub struct Console {
    pub session: Connection,
    /// Where statements run; this thread only prints and listens.
    pub workers: Handle,
    pub print: PrintOptions,
    pub output: Output,
    /// Colour for errors, which go to standard error.
    pub error_color: bool,
    pub progress: bool,
    pub quiet: bool,
    pub timing: bool,
    pub echo: bool,
    /// Whether a statement has been echoed: the next one stands apart from its answer.
    pub has_echoed: bool,
    /// Set by a statement that changed what the catalog holds.
    pub catalog_changed: bool,
}

impl Console {
    /// Runs the statements of `sql` in order and stops at the first that fails.
    ///
    /// The whole text is parsed first: a text with a mistake in its syntax changes nothing.
    pub async fn run_sql(&mut self, sql: &str, file: Option<&str>) -> Outcome {
        let statements = match self.session.parse(sql) {
            Ok(statements) => statements,
            Err(error) => {
                self.show(Report { file, ..Report::of(&error, Some(sql)) });
                return Outcome::Failed;
            }
        };
        let mut end_before = 0;
        for statement in &statements {
            let started = Instant::now();
            let notes = notes_between(sql, end_before..statement.range().start);
            end_before = statement.range().end;
            let result = self.run_statement(statement, notes).await;
            let outcome = self.conclude(result, sql, file);
            if outcome != Outcome::Done {
                return outcome;
            }
            if self.timing && self.tell(&format!("time: {}", in_words(started.elapsed()))).is_err() {
                return Outcome::PipeClosed;
            }
        }
        Outcome::Done
    }

    /// Asks the session for something that is no statement.
    ///
    /// # Errors
    /// What the session says, or that it stopped.
    pub async fn ask<T, A>(&self, question: impl FnOnce(Connection) -> A) -> Result<T, engine::Error>
    where
        T: Send + 'static,
        A: Future<Output = Result<T, engine::Error>> + Send + 'static,
    {
        self.workers.spawn(question(self.session.clone())).await.unwrap_or_else(|error| Err(stopped(&error)))
    }

    /// Shows an error.
    pub fn show(&self, report: Report<'_>) {
        eprint!("{}", report.render(self.error_color));
    }

    /// Prints a line for the user: beside the answers where people read them, apart from them where programs do.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn tell(&mut self, line: &str) -> io::Result<()> {
        if self.print.format.is_for_machines() {
            eprintln!("{line}");
            return Ok(());
        }
        self.output.write(format!("{line}\n").as_bytes())
    }

    fn conclude(&mut self, result: Result<(), Failure>, sql: &str, file: Option<&str>) -> Outcome {
        match result {
            Ok(()) => Outcome::Done,
            Err(Failure::Interrupted) => {
                eprintln!("cancelled");
                Outcome::Interrupted
            }
            Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Outcome::PipeClosed,
            Err(Failure::Output(error)) => {
                let place = match &self.output {
                    Output::Stdout(_) => "standard output".to_owned(),
                    Output::File { path, .. } => path.display().to_string(),
                };
                self.show(Report { message: format!("cannot write to {place}: {error}"), ..Report::default() });
                Outcome::Failed
            }
            Err(Failure::Message(message)) => {
                self.show(Report { message, ..Report::default() });
                Outcome::Failed
            }
            Err(Failure::Vanished) => Outcome::Failed,
            Err(Failure::Engine(error)) => {
                self.show(Report { file, ..Report::of(&error, Some(sql)) });
                Outcome::Failed
            }
        }
    }

    async fn run_statement(&mut self, statement: &Statement, notes: String) -> Result<(), Failure> {
        if self.echo {
            let gap = if std::mem::replace(&mut self.has_echoed, true) { "\n" } else { "" };
            self.tell(&format!("{gap}{notes}{}", with_prompts(statement.text())))?;
        }
        let (sender, mut events) = mpsc::channel(BATCHES_WAITING_MAX);
        let session = self.session.clone();
        let owned = statement.clone();
        let task = self.workers.spawn(async move {
            if let Err(error) = drive(session, owned, &sender).await {
                // If the printer has gone, so has the interest in the error.
                let _ = sender.send(Event::Failed(error)).await;
            }
        });
        let result = self.follow(&mut events, statement.text()).await;
        if matches!(result, Err(Failure::Vanished)) {
            return match task.await {
                Ok(()) => Ok(()),
                Err(error) => Err(Failure::Engine(stopped(&error))),
            };
        }
        task.abort();
        result
    }

    /// Prints what a statement sends until it ends.
    async fn follow(&mut self, events: &mut mpsc::Receiver<Event>, sql: &str) -> Result<(), Failure> {
        let mut line = ProgressLine::new(self.progress);
        let mut ticks = tokio::time::interval(DRAW_INTERVAL);
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let mut answer: Option<PrintedAnswer> = None;
        loop {
            let event = tokio::select! {
                biased;
                _ = &mut interrupt => return Err(Failure::Interrupted),
                event = events.recv() => event,
                _ = ticks.tick() => {
                    line.draw();
                    continue;
                }
            };
            match event {
                Some(Event::Start(schema, progress)) => {
                    line.watch(progress);
                    answer = Some(PrintedAnswer::new(&schema, self.print_options(sql))?);
                }
                Some(Event::Rows(batch)) => {
                    if let Some(answer) = &mut answer {
                        let bytes = answer.rows(&batch)?;
                        self.put(&mut line, &bytes)?;
                    }
                }
                Some(Event::Done(done)) => {
                    line.end();
                    self.catalog_changed |= changes_catalog(&done.tag);
                    if !self.quiet && !self.print.format.is_for_machines() {
                        self.tell(&confirmation(&done))?;
                    }
                    return Ok(());
                }
                Some(Event::End) => {
                    line.end();
                    let Some(answer) = answer else { return Ok(()) };
                    let footer = self.print.format.has_footer() && !self.quiet;
                    let bytes = answer.finish(footer)?;
                    return Ok(self.output.write(&bytes)?);
                }
                Some(Event::Failed(error)) => return Err(Failure::Engine(error)),
                None => return Err(Failure::Vanished),
            }
        }
    }

    fn put(&mut self, line: &mut ProgressLine, bytes: &[u8]) -> Result<(), Failure> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.output.is_terminal() {
            // Rows on the screen are progress enough, and a line among them would be in their way.
            line.end();
        }
        Ok(self.output.write(bytes)?)
    }

    fn print_options(&self, sql: &str) -> PrintOptions {
        let first = sql.split(|c: char| !c.is_ascii_alphabetic()).find(|word| !word.is_empty()).unwrap_or_default();
        let is_describing = DESCRIBING.iter().any(|word| word.eq_ignore_ascii_case(first));
        let column_width_max = self.print.column_width_max.filter(|_| !is_describing);
        PrintOptions { column_width_max, ..self.print }
    }
}

/// The error of work that ended without an answer.
pub fn stopped(error: &tokio::task::JoinError) -> engine::Error {
    engine::Error::new(engine::ErrorKind::Internal, format!("the engine stopped: {error}; please report it"))
}

async fn drive(session: Connection, statement: Statement, events: &mpsc::Sender<Event>) -> Result<(), engine::Error> {
    let mut rows = match session.run(&statement).await? {
        Answer::Done(done) => {
            let _ = events.send(Event::Done(done)).await;
            return Ok(());
        }
        Answer::Rows(rows) => rows,
    };
    let mut is_heard = events.send(Event::Start(rows.schema(), rows.progress())).await.is_ok();
    while is_heard {
        let Some(batch) = rows.next().await else { break };
        is_heard = events.send(Event::Rows(batch?)).await.is_ok();
    }
    let _ = events.send(Event::End).await;
    Ok(())
}

/// One answer on its way to the output.
struct PrintedAnswer {
    printer: Box<dyn Printer>,
    row_count: u64,
}

impl PrintedAnswer {
    fn new(schema: &SchemaRef, options: PrintOptions) -> Result<PrintedAnswer, Failure> {
        Ok(PrintedAnswer { printer: print::printer(schema, options)?, row_count: 0 })
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        self.printer.batch(batch, &mut bytes)?;
        self.row_count += batch.num_rows() as u64;
        Ok(bytes)
    }

    fn finish(mut self, footer: bool) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        self.printer.finish(&mut bytes)?;
        if footer {
            bytes.extend_from_slice(row_count_in_words(self.row_count).as_bytes());
        }
        Ok(bytes)
    }
}

fn row_count_in_words(row_count: u64) -> String {
    format!("({row_count} {})\n", if row_count == 1 { "row" } else { "rows" })
}

/// `CREATE TABLE`, or `INSERT 3` when rows were written.
fn confirmation(done: &Done) -> String {
    match done.rows {
        Some(rows) => format!("{} {rows}", done.tag),
        None => done.tag.clone(),
    }
}

fn changes_catalog(tag: &str) -> bool {
    ["CREATE", "DROP", "ALTER", "ATTACH", "DETACH", "RENAME"].iter().any(|word| tag.starts_with(word))
}

/// The comments in front of a statement, a line each.
///
/// `gap` is what lies between the statement before and this one.
fn notes_between(sql: &str, gap: std::ops::Range<usize>) -> String {
    let gap = sql.get(gap).unwrap_or_default().trim_start().trim_start_matches(';');
    let lines = gap.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.fold(String::new(), |notes, line| notes + line + "\n")
}

/// The statement as it would look when typed into the shell.
fn with_prompts(sql: &str) -> String {
    let sql = sql.trim().trim_end_matches(';');
    format!("{}{};", crate::shell::PROMPT, sql.replace('\n', &format!("\n{}", crate::shell::CONTINUATION)))
}

/// A duration as people say it: `0.42 ms`, `12.3 ms`, `1.23 s`, `2 min 3 s`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match duration.as_millis() {
        0..10 => format!("{:.2} ms", seconds * 1e3),
        10..1000 => format!("{:.1} ms", seconds * 1e3),
        1000..60_000 => format!("{seconds:.2} s"),
        _ => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_people_say_them() {
        for (micros, expected) in
            [(423, "0.42 ms"), (12_345, "12.3 ms"), (1_234_000, "1.23 s"), (123_000_000, "2 min 3 s")]
        {
            assert_eq!(in_words(Duration::from_micros(micros)), expected);
        }
    }

    #[test]
    fn an_echoed_statement_looks_typed() {
        assert_eq!(with_prompts("SELECT 1\nFROM t"), "sagitta> SELECT 1\n      -> FROM t;");
        assert_eq!(with_prompts("SELECT 1;"), "sagitta> SELECT 1;");
    }

    #[test]
    fn comments_are_echoed_and_nothing_else_between_statements() {
        let sql = "-- first\nSELECT 1 ;\n\n-- second,\n-- longer\nSELECT 2";
        let (one, two) = (sql.find("SELECT 1").unwrap(), sql.find("SELECT 2").unwrap());
        assert_eq!(notes_between(sql, 0..one), "-- first\n");
        assert_eq!(notes_between(sql, one + "SELECT 1".len()..two), "-- second,\n-- longer\n");
        assert_eq!(notes_between(sql, std::ops::Range { start: 5, end: 3 }), "");
    }

    #[test]
    fn one_row_is_not_rows() {
        assert_eq!(row_count_in_words(1), "(1 row)\n");
        assert_eq!(row_count_in_words(0), "(0 rows)\n");
    }
}
