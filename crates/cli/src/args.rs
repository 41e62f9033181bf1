//! The command line: options, their meaning and their checks. Nothing is run here.

use std::path::PathBuf;

use clap::{ArgMatches, Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::print::Format;

const EXAMPLES: &str = "\
Examples:
  sagitta                                                open a shell on ./sagitta-data
  sagitta --data s3://bucket/prefix                      open a shell on a database in an S3 bucket
  sagitta import packages.parquet --table packages       load a file into a new table
  sagitta -c \"SELECT name FROM packages LIMIT 3\"         run a statement and exit
  sagitta -f report.sql --format csv > report.csv        run a file, write CSV
  sagitta -c \"SELECT * FROM 'new.parquet' LIMIT 5\"       look into a file without loading it
  echo 'SELECT count(*) FROM packages;' | sagitta        read the SQL from standard input

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

Lists of floats whose length is the same in every row become VECTOR columns.";

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
}

/// Options that every command takes.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Database and terminal")]
pub struct Global {
    /// Where the database is: a directory, s3://bucket/prefix, or memory: for one that is gone at the end
    #[arg(long, value_name = "DIR|URL", default_value = "./sagitta-data", env = "SAGITTA_DATA", global = true)]
    pub data: String,
    /// Setting of the object store, such as aws_region=eu-west-1; repeatable
    #[arg(long = "storage-option", value_name = "KEY=VALUE", value_parser = parse_storage_option, global = true)]
    pub storage_options: Vec<(String, String)>,
    /// Memory that statements may use together: bytes, or 500M, 2G, 1.5GiB (K, M, G, T are powers of 1024; KB, MB, GB, TB of 1000)
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, global = true)]
    pub memory_limit: Option<usize>,
    /// Threads that run statements [default: one per core]
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
        Args::from_words(std::env::args_os())
    }

    fn from_words<W: Into<std::ffi::OsString> + Clone>(
        words: impl IntoIterator<Item = W>,
    ) -> Result<Args, clap::Error> {
        let matches = Args::command().try_get_matches_from(words)?;
        let mut args = Args::from_arg_matches(&matches).map_err(|error| error.format(&mut Args::command()))?;
        args.scripts = scripts_in_order(&args.statements, &matches);
        if args.command.is_some() && !args.scripts.is_empty() {
            return Err(Args::command().error(
                clap::error::ErrorKind::ArgumentConflict,
                "import takes no -c or -f; run it first, then the statements in a second call",
            ));
        }
        Ok(args)
    }
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
    const THREADS_MAX: usize = 1024;
    match text.parse() {
        Ok(threads) if (1..=THREADS_MAX).contains(&threads) => Ok(threads),
        _ => Err(format!("expected a number of threads from 1 to {THREADS_MAX}")),
    }
}

/// Reads a size such as `2G`, `1.5GiB`, `500 MB` or `1048576` into bytes.
fn parse_bytes(text: &str) -> Result<usize, String> {
    const EXPECTED: &str = "expected a size such as 500M, 2G or 1.5GiB";
    /// Below this, not even a scan has its buffers; the engine refuses it too.
    const BYTES_MIN: f64 = 67_108_864.0;
    let text = text.trim();
    let unit_start = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_start);
    let number: f64 = number.parse().map_err(|_| EXPECTED.to_owned())?;
    let unit = unit.trim().to_ascii_lowercase();
    let power = match unit.chars().next() {
        None | Some('b') => 0,
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some(_) => return Err(EXPECTED.to_owned()),
    };
    let base: f64 = match unit.get(1..).unwrap_or_default() {
        "" | "i" | "ib" => 1024.0,
        "b" => 1000.0,
        _ => return Err(EXPECTED.to_owned()),
    };
    let bytes = number * base.powi(power);
    if bytes < BYTES_MIN {
        return Err(format!("{text} is too little to run anything, the least is 64M"));
    }
    if bytes > 2f64.powi(62) {
        return Err(format!("{text} is more than any machine has"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 2^26 and 2^62, checked above")]
    Ok(bytes as usize)
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
    fn sizes_are_read_with_both_kinds_of_unit() {
        for (text, bytes) in [
            ("134217728", 128 << 20),
            ("2G", 2 << 30),
            ("2g", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("500 MB", 500_000_000),
            ("64m", 64 << 20),
            ("204800K", 200 << 20),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_mean_nothing_are_refused() {
        for text in ["", "G", "-1G", "2X", "2GiBs", "1,5G", "0", "12", "63M", "1e3", "9999999T", "2 bytes"] {
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
            (&["-c", "SELECT 1", "import", "x", "--table", "t"], &["-c"]),
        ] {
            let message = refused(words);
            for part in parts {
                assert!(message.contains(part), "{words:?} should mention {part}: {message}");
            }
        }
    }
}
