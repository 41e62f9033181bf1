//! The command line: options, their meaning and their checks. Nothing is run here.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::keys::THREADS_MAX;
use crate::config::units::{MEMORY_BYTES_MIN, parse_size};
use crate::print::Format;

/// Where the database is if nothing is said.
pub const DATA_DEFAULT: &str = "./sagitta-data";

const EXAMPLES: &str = "\
Examples:
  sagitta                                                open a shell on ./sagitta-data
  sagitta --data s3://bucket/prefix                      open a shell on a database in an S3 bucket
  sagitta import packages.parquet --table packages       load a file into a new table
  sagitta -c \"SELECT name FROM packages LIMIT 3\"         run a statement and exit
  sagitta -f report.sql --format csv > report.csv        run a file, write CSV
  sagitta -c \"SELECT * FROM 'new.parquet' LIMIT 5\"       look into a file without loading it
  echo 'SELECT count(*) FROM packages;' | sagitta        read the SQL from standard input
  sagitta serve                                          serve the database over Arrow Flight SQL

S3: credentials and endpoint come from the usual variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_REGION, AWS_ENDPOINT, AWS_ALLOW_HTTP) or from --storage-option, for example
  --storage-option aws_endpoint=http://localhost:9000 --storage-option allow_http=true

Exit status: 0 all went well, 1 a statement failed (the rest is not run), 2 wrong usage, 130 interrupted.";

const IMPORT_EXAMPLES: &str = "\
Examples:
  sagitta import packages.parquet --table packages
  sagitta import 'parts/*.csv' more.csv --table parts --append
  sagitta import dump/ --table docs --replace            every data file below the directory
  sagitta import s3://bucket/dump/ --table docs
  sagitta import vectors.npy --table vectors             one row per vector
  sagitta import dump/ --table docs --connect grpc://host:32100   read here, written by a server

Lists of floats whose length is the same in every row become VECTOR columns.";

const SERVE_EXAMPLES: &str = "\
Examples:
  sagitta serve                                          serve ./sagitta-data on 127.0.0.1:32100
  sagitta serve --data s3://bucket/prefix --auth --listen 0.0.0.0 --tls-certificate c.pem --tls-key k.pem
  sagitta serve --config prod.toml --set limits.statements_max=8
  SAGITTA_LIMITS_STATEMENTS_MAX=8 sagitta serve          every setting has a variable

A flag wins over a variable SAGITTA_<SECTION>_<NAME>, a variable over the file, the file over the default.
The file is the one of --config, else of SAGITTA_CONFIG, else ./sagitta.toml if it is there.
Ctrl-C or SIGTERM: the first lets running statements end, the second ends at once.";

const CONFIG_EXAMPLES: &str = "\
Examples:
  sagitta config                                         what `sagitta serve` would run with, and why
  sagitta config --explain > sagitta.toml                a file to start from
  sagitta config --config prod.toml --listen 0.0.0.0     check a file and flags

Exit status: 0 if a server would start with it, 2 if not.";

/// A SQL engine for embeddings over open Lance tables.
#[derive(Debug, Parser)]
#[command(
    name = "sagitta",
    version,
    about = "SQL with vector search over open Lance tables: a shell, or statements from -c, -f or standard input",
    after_help = EXAMPLES,
    disable_help_subcommand = true,
    max_term_width = 110
)]
pub struct Args {
    #[command(flatten)]
    pub statements: Statements,
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Statements and files in the order given, which clap keeps apart by option.
    #[arg(skip)]
    pub scripts: Vec<Script>,
    /// Whether the command line itself says where the database is: the environment and the default do, too.
    #[arg(skip)]
    pub is_data_given: bool,
}

/// Options that every command takes.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Database and terminal")]
pub struct Global {
    /// Where the database is: a directory, s3://bucket/prefix, or memory: for one that is gone at the end
    #[arg(long, value_name = "DIR|URL", default_value = DATA_DEFAULT, env = "SAGITTA_DATA", global = true)]
    pub data: String,
    /// Run statements on a server instead: grpc://host:port, or grpc+tls://host:port
    #[arg(long, value_name = "URL", env = "SAGITTA_CONNECT", global = true)]
    pub connect: Option<String>,
    /// Who connects to the server; the password comes from SAGITTA_PASSWORD, or a token from SAGITTA_TOKEN
    #[arg(long, value_name = "NAME", env = "SAGITTA_USER", global = true)]
    pub user: Option<String>,
    /// PEM file of the authority that signed the server's certificate
    #[arg(long, value_name = "FILE", global = true)]
    pub tls_ca: Option<PathBuf>,
    /// PEM file of the client's own certificate, where the server asks for one
    #[arg(long, value_name = "FILE", requires = "client_key", global = true)]
    pub client_certificate: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, value_name = "FILE", requires = "client_certificate", global = true)]
    pub client_key: Option<PathBuf>,
    /// Setting of the object store, such as aws_region=eu-west-1; repeatable
    #[arg(long = "storage-option", value_name = "KEY=VALUE", value_parser = parse_storage_option, global = true)]
    pub storage_options: Vec<(String, String)>,
    /// Memory that statements may use together: bytes, or 500M, 2G, 1.5GiB (K, M, G, T are powers of 1024; KB, MB, GB, TB of 1000) [env: SAGITTA_MEMORY_LIMIT]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, global = true)]
    pub memory_limit: Option<usize>,
    /// Threads that run statements [default: one per core] [env: SAGITTA_THREADS]
    #[arg(long, value_name = "N", value_parser = parse_threads, global = true)]
    pub threads: Option<usize>,
    /// Print answers only: no row counts, no confirmations, no banner
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Never draw a progress line
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// Colour: auto means on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorWhen::Auto, global = true)]
    pub color: ColorWhen,
}

/// Options of the shell and of statements.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Statements")]
pub struct Statements {
    /// Run these statements (or one meta-command such as \dt) and exit; repeatable
    #[arg(short, long = "command", value_name = "SQL")]
    pub commands: Vec<String>,
    /// Run the statements of this file and exit, - is standard input; repeatable
    #[arg(short, long = "file", value_name = "FILE")]
    pub files: Vec<String>,
    /// How answers are printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub format: Format,
    /// Print each statement before its answer
    #[arg(long)]
    pub echo: bool,
    /// Cut the cells of tables at this many characters, 0 never cuts
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_column_width: usize,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load Parquet, CSV, JSON lines, Arrow, .npy or Lance into a table
    Import(Import),
    /// Serve the database over Arrow Flight SQL, with health and metrics over HTTP
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServerFlags),
    /// Show every setting of `sagitta serve` and where its value comes from
    #[command(after_help = CONFIG_EXAMPLES)]
    Config(ShowConfig),
}

/// Options of `sagitta config`.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Configuration")]
pub struct ShowConfig {
    /// Say above each setting what it is for
    #[arg(long)]
    pub explain: bool,
    #[command(flatten)]
    pub flags: ServerFlags,
}

/// Options of `sagitta serve`, each a setting of the configuration; their values are read with it.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "Server")]
pub struct ServerFlags {
    /// Read settings from this file [default: $SAGITTA_CONFIG, or ./sagitta.toml if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where Flight SQL clients connect [default: 127.0.0.1:32100]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Where health and metrics are read over HTTP, or none [default: 127.0.0.1:32101]
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<String>,
    /// PEM file of the certificate chain: connections are encrypted
    #[arg(long, value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// PEM file of the certificate's key
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// PEM file of who signs clients' certificates: clients without one are refused
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// The common name in a client's certificate is the name of its user
    #[arg(long)]
    pub tls_client_user: bool,
    /// Clients must prove who they are
    #[arg(long)]
    pub auth: bool,
    /// File of bearer tokens, one `token user` on each line
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Listen beyond loopback even without authentication
    #[arg(long)]
    pub insecure: bool,
    /// Folder or URL below which statements may read and write files; repeatable
    #[arg(long = "allowed-root", value_name = "DIR|URL")]
    pub allowed_roots: Vec<String>,
    /// Log statements that run longer [default: 1s]
    #[arg(long, value_name = "SPAN")]
    pub slow_query: Option<String>,
    /// How long running statements may go on once the server is told to stop [default: 30s]
    #[arg(long, value_name = "SPAN")]
    pub drain: Option<String>,
    /// What is logged, such as info,storage=debug
    #[arg(long, value_name = "FILTER")]
    pub log_filter: Option<String>,
    /// How the log is written: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Where an OpenTelemetry collector takes traces over gRPC, such as http://localhost:4317
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Any setting by its name, such as limits.statements_max=8; repeatable
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
}

/// Options of `sagitta import`.
#[derive(Debug, ClapArgs)]
#[command(after_help = IMPORT_EXAMPLES, next_help_heading = "Import")]
pub struct Import {
    /// Files, globs, directories or s3:// URLs
    #[arg(required = true, value_name = "FILE|GLOB|DIR|URL")]
    pub sources: Vec<String>,
    /// The table to load into, created unless --append or --replace says otherwise
    #[arg(short, long, value_name = "NAME")]
    pub table: String,
    /// What the files are [default: by their names]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format_in: Option<InputFormat>,
    /// Create the table, fail if it exists: the default; with --append, create it only if it is missing
    #[arg(long)]
    pub create: bool,
    /// Add to the table, fail if it is missing
    #[arg(long)]
    pub append: bool,
    /// Replace the table if it exists
    #[arg(long, conflicts_with_all = ["create", "append"])]
    pub replace: bool,
}

/// Formats that `import` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    Parquet,
    Csv,
    #[value(alias = "json", alias = "ndjson")]
    Jsonl,
    #[value(alias = "ipc", alias = "feather")]
    Arrow,
    Npy,
    Lance,
}

/// When output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    Auto,
    Always,
    Never,
}

impl ColorWhen {
    /// Whether to colour a stream that is, or is not, a terminal.
    pub fn colors(self, is_terminal: bool) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match self {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => {
                is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

/// One thing to run, in the order of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// The text of a `-c`.
    Command(String),
    /// The file of a `-f`.
    File(PathBuf),
    /// `-f -`, or no statements given and standard input is no terminal.
    StandardInput,
}

impl Args {
    /// Reads the process's arguments.
    ///
    /// # Errors
    /// Wrong usage, and also `--help` and `--version`: the error prints itself and knows its exit status.
    pub fn from_command_line() -> Result<Args, clap::Error> {
        let mut args = Args::from_words(std::env::args_os())?;
        args.fill(|variable| std::env::var(variable).ok())?;
        Ok(args)
    }

    /// Takes from the environment what the command line leaves open. Configurations do so themselves, with the file
    /// behind it.
    fn fill(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<(), clap::Error> {
        if matches!(self.command, Some(Command::Serve(_) | Command::Config(_))) {
            return Ok(());
        }
        let value = |name: &str, parse: fn(&str) -> Result<usize, String>| {
            let text = variable(name).filter(|text| !text.is_empty() && text != "none");
            text.map(|text| parse(&text).map_err(|error| wrong_variable(name, &error))).transpose()
        };
        if self.global.memory_limit.is_none() {
            self.global.memory_limit = value("SAGITTA_MEMORY_LIMIT", parse_bytes)?;
        }
        if self.global.threads.is_none() {
            self.global.threads = value("SAGITTA_THREADS", parse_threads)?;
        }
        Ok(())
    }

    /// Reads a command line, the name of the program first.
    ///
    /// # Errors
    /// As [`Args::from_command_line`].
    pub fn from_words<W: Into<std::ffi::OsString> + Clone>(
        words: impl IntoIterator<Item = W>,
    ) -> Result<Args, clap::Error> {
        let matches = Args::command().try_get_matches_from(words)?;
        let mut args = Args::from_arg_matches(&matches).map_err(|error| error.format(&mut Args::command()))?;
        args.scripts = scripts_in_order(&args.statements, &matches);
        args.is_data_given = matches.value_source("data") == Some(ValueSource::CommandLine);
        let is_server_given = matches.value_source("connect") == Some(ValueSource::CommandLine);
        if args.is_data_given && is_server_given {
            let message = "--connect and --data name two databases; give the one that is meant";
            return Err(Args::command().error(clap::error::ErrorKind::ArgumentConflict, message));
        }
        if let (Some(command), false) = (&args.command, args.scripts.is_empty()) {
            let message = match command {
                Command::Import(_) => "import takes no -c or -f; run it first, then the statements in a second call",
                Command::Serve(_) => "serve takes no -c or -f; start it, then run the statements in a second call",
                Command::Config(_) => "config takes no -c or -f; it only shows settings",
            };
            return Err(Args::command().error(clap::error::ErrorKind::ArgumentConflict, message));
        }
        Ok(args)
    }
}

fn wrong_variable(name: &str, error: &str) -> clap::Error {
    Args::command().error(clap::error::ErrorKind::ValueValidation, format!("environment {name}: {error}"))
}

fn scripts_in_order(statements: &Statements, matches: &ArgMatches) -> Vec<Script> {
    let places = |id: &str| matches.indices_of(id).into_iter().flatten().collect::<Vec<_>>();
    let commands = statements.commands.iter().map(|text| Script::Command(text.clone()));
    let files = statements.files.iter().map(|file| match file.as_str() {
        "-" => Script::StandardInput,
        path => Script::File(PathBuf::from(path)),
    });
    let mut placed: Vec<(usize, Script)> = places("commands").into_iter().zip(commands).collect();
    placed.extend(places("files").into_iter().zip(files));
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, script)| script).collect()
}

fn parse_storage_option(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("expected key=value, such as aws_region=eu-west-1".to_owned()),
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=THREADS_MAX).contains(&threads) => Ok(threads),
        _ => Err(format!("expected a number of threads from 1 to {THREADS_MAX}")),
    }
}

/// Reads a size into bytes; one that is enough to run statements.
fn parse_bytes(text: &str) -> Result<usize, String> {
    match parse_size(text)? {
        bytes if bytes < MEMORY_BYTES_MIN => Err(format!("{text} is too little to run anything, the least is 64M")),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Args {
        Args::from_words(std::iter::once(&"sagitta").chain(words)).unwrap()
    }

    fn refused(words: &[&str]) -> String {
        let error = Args::from_words(std::iter::once(&"sagitta").chain(words)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn memory_that_is_too_little_is_refused() {
        assert_eq!(parse_bytes("64M"), Ok(64 << 20));
        for text in ["0", "12", "63M", "some"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn scripts_keep_the_order_of_the_command_line() {
        let args = parsed(&["-c", "one", "-f", "two.sql", "-c", "three", "-f", "-"]);
        let expected = [
            Script::Command("one".into()),
            Script::File("two.sql".into()),
            Script::Command("three".into()),
            Script::StandardInput,
        ];
        assert_eq!(args.scripts, expected);
    }

    #[test]
    fn global_options_stand_before_and_after_the_subcommand() {
        let args = parsed(&["--storage-option", "a=b=c", "import", "x.csv", "--table", "t", "--data", "there"]);
        assert_eq!(args.global.data, "there");
        assert_eq!(args.global.storage_options, [("a".to_owned(), "b=c".to_owned())]);
        assert!(matches!(args.command, Some(Command::Import(_))));
        assert!(args.is_data_given && !parsed(&["import", "x.csv", "--table", "t"]).is_data_given);
    }

    #[test]
    fn two_databases_at_once_are_refused() {
        let error = refused(&["--data", "here", "--connect", "grpc://there:1"]);
        assert!(error.contains("two databases"), "{error}");
        assert_eq!(parsed(&["--connect", "grpc://there:1"]).global.connect.as_deref(), Some("grpc://there:1"));
    }

    #[test]
    fn the_environment_fills_what_the_command_line_leaves_open() {
        let environment = |name: &str| match name {
            "SAGITTA_MEMORY_LIMIT" => Some("1G".to_owned()),
            "SAGITTA_THREADS" => Some("none".to_owned()),
            _ => None,
        };
        for (words, memory_limit) in
            [(&[][..], Some(1 << 30)), (&["--memory-limit", "64M"], Some(64 << 20)), (&["serve"], None)]
        {
            let mut args = parsed(words);
            args.fill(environment).unwrap();
            assert_eq!((args.global.memory_limit, args.global.threads), (memory_limit, None), "{words:?}");
        }
        let error = parsed(&[]).fill(|_| Some("lots".to_owned())).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("SAGITTA_MEMORY_LIMIT"), "{error}");
    }

    #[test]
    fn wrong_usage_names_the_value_and_the_next_step() {
        for (words, parts) in [
            (&["--memory-limit", "lots"][..], &["lots", "500M"][..]),
            (&["--storage-option", "novalue"], &["novalue", "key=value"]),
            (&["--threads", "0"], &["'0'", "1 to 1024"]),
            (&["--format", "xml"], &["xml", "jsonl"]),
            (&["import", "x.csv"], &["--table"]),
            (&["import", "x", "--table", "t", "--append", "--replace"], &["--append", "--replace"]),
            (&["-c", "SELECT 1", "import", "x", "--table", "t"], &["-c", "import"]),
            (&["-c", "SELECT 1", "serve"], &["-c", "serve takes no"]),
            (&["serve", "--lisen", "::1"], &["--listen"]),
        ] {
            let message = refused(words);
            for part in parts {
                assert!(message.contains(part), "{words:?} should mention {part}: {message}");
            }
        }
    }
}
