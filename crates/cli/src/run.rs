//! From the command line to the work: opens the database and runs the shell, the given statements, or an import.

use std::io::{IsTerminal, Read};
use std::path::Path;

use engine::{Engine, EngineOptions};
use server::ConnectOptions;
use tokio::runtime::{Handle, Runtime};

use crate::args::{Args, Command, Global, Script};
use crate::connection::Connection;
use crate::console::{Console, Outcome, Output, stopped};
use crate::print::{Format, PrintOptions};
use crate::report::Report;
use crate::shell::{self, Shell};
use crate::{import, progress};

/// Does what the command line asks for; errors are shown here.
///
/// Statements run on `workers`; `terminal` is the runtime of this thread, which prints and listens.
pub fn run(mut args: Args, terminal: &Runtime, workers: &Handle) -> Outcome {
    let error_color = args.global.color.colors(std::io::stderr().is_terminal());
    if args.command.is_none() && args.scripts.is_empty() && !std::io::stdin().is_terminal() {
        args.scripts.push(Script::StandardInput);
    }
    let output = Output::stdout();
    if args.statements.format == Format::Arrow && output.is_terminal() {
        let message = "an Arrow stream is not for the eye: send it to a file or a program (sagitta … > answer.arrows)";
        show(message.to_owned(), None, error_color);
        return Outcome::Failed;
    }
    let is_shell = args.command.is_none() && args.scripts.is_empty();
    let shell = match is_shell.then(|| Shell::new(args.global.color)).transpose() {
        Ok(shell) => shell,
        Err(error) => return shell::give_up(&error, error_color),
    };
    let opened = terminal.block_on(open(&args.global, workers));
    let (session, location) = match opened {
        Some(Ok(opened)) => opened,
        Some(Err(error)) => {
            eprint!("{}", Report::of(&error, None).render(error_color));
            return Outcome::Failed;
        }
        None => return Outcome::Interrupted,
    };
    let console = Console {
        session,
        workers: workers.clone(),
        print: PrintOptions {
            format: args.statements.format,
            column_width_max: Some(args.statements.max_column_width).filter(|columns| *columns > 0),
            color: args.global.color.colors(output.is_terminal()),
        },
        output,
        error_color,
        progress: !args.global.no_progress && progress::is_possible(),
        quiet: args.global.quiet,
        timing: false,
        echo: args.statements.echo,
        has_echoed: false,
        catalog_changed: false,
    };
    match (args.command, shell) {
        (Some(Command::Import(import)), _) => terminal.block_on(import::run(import, console)),
        // They are done before a database is opened.
        (Some(Command::Serve(_) | Command::Config(_)), _) => Outcome::Done,
        (None, Some(shell)) => shell.run(&location, console, terminal),
        (None, None) => terminal.block_on(run_scripts(args.scripts, console, &location)),
    }
}

/// Opens the database, or connects to the server; nothing if the user interrupts it. The session, and where it is.
async fn open(global: &Global, workers: &Handle) -> Option<Result<(Connection, String), engine::Error>> {
    let options = EngineOptions {
        storage_options: global.storage_options.clone(),
        memory_limit_bytes: global.memory_limit,
        threads: global.threads,
        ..EngineOptions::default()
    };
    let opening = match global.connect.clone() {
        Some(uri) => {
            let connecting = connect_options(global, uri.clone());
            workers.spawn(async move { Ok((Connection::connect(&connecting?, options).await?, uri)) })
        }
        None => {
            let location = global.data.clone();
            workers.spawn(async move {
                let engine = Engine::open(&location, options).await?;
                Ok((Connection::Local(engine.session()), engine.location().to_owned()))
            })
        }
    };
    tokio::select! {
        opened = opening => Some(opened.unwrap_or_else(|error| Err(stopped(&error)))),
        _ = tokio::signal::ctrl_c() => None,
    }
}

/// Who connects, and what is trusted.
fn connect_options(global: &Global, uri: String) -> Result<ConnectOptions, engine::Error> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| {
            engine::Error::new(engine::ErrorKind::Invalid, format!("cannot read {}: {error}", path.display()))
        })
    };
    let identity = match (&global.client_certificate, &global.client_key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    Ok(ConnectOptions {
        uri,
        // From the environment alone, so that no list of processes shows them.
        login: global.user.clone().map(|user| (user, std::env::var("SAGITTA_PASSWORD").unwrap_or_default())),
        token: std::env::var("SAGITTA_TOKEN").ok().filter(|token| !token.is_empty()),
        server_ca: global.tls_ca.as_deref().map(read).transpose()?,
        identity,
    })
}

async fn run_scripts(scripts: Vec<Script>, mut console: Console, location: &str) -> Outcome {
    for script in scripts {
        let outcome = match script {
            Script::Command(text) => run_command(&text, &mut console, location).await,
            Script::File(path) => run_file(&path, &mut console).await,
            Script::StandardInput => match read_standard_input().await {
                Some(Ok(text)) => console.run_sql(&text, None).await,
                Some(Err(error)) => {
                    show(format!("cannot read standard input: {error}"), None, console.error_color);
                    Outcome::Failed
                }
                None => Outcome::Interrupted,
            },
        };
        if outcome != Outcome::Done {
            return outcome;
        }
    }
    Outcome::Done
}

async fn run_command(text: &str, console: &mut Console, location: &str) -> Outcome {
    if text.trim_start().starts_with('\\') {
        return match shell::meta::run(text, console, location).await {
            shell::meta::Next::Go(outcome) => outcome,
            shell::meta::Next::Quit => Outcome::Done,
        };
    }
    console.run_sql(text, None).await
}

/// Runs the statements of a file.
pub async fn run_file(path: &Path, console: &mut Console) -> Outcome {
    let name = path.display().to_string();
    let message = match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => return console.run_sql(text.trim_start_matches('\u{feff}'), Some(&name)).await,
            Err(error) => {
                let place = error.utf8_error().valid_up_to();
                format!("{name} is no text in UTF-8: byte {place} fits nothing; save it as UTF-8")
            }
        },
        Err(error) => format!("cannot read {name}: {error}"),
    };
    show(message, None, console.error_color);
    Outcome::Failed
}

/// Reads all of standard input; nothing if the user interrupts it.
async fn read_standard_input() -> Option<std::io::Result<String>> {
    let reading = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    });
    tokio::select! {
        read = reading => Some(read.unwrap_or_else(|error| Err(std::io::Error::other(error)))),
        _ = tokio::signal::ctrl_c() => None,
    }
}

/// Shows an error that is about no statement.
pub fn show(message: String, hint: Option<String>, color: bool) {
    eprint!("{}", Report { message, hint, ..Report::default() }.render(color));
}
