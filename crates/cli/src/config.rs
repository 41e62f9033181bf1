//! The configuration of a server: one tree of settings, each from a flag, the environment, a file or its default, in
//! this order. What the settings mean is in `server` and `engine`; what is done with them is in `serve.rs`.

pub mod keys;
mod layers;
mod show;
pub mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use server::{LogOptions, ServerOptions};

use crate::args::{Args, ServerFlags};
use keys::KEYS;

/// The file that is read if it is there and no other is named.
const FILE_DEFAULT: &str = "sagitta.toml";
/// The variable that names another file.
pub const FILE_VARIABLE: &str = "SAGITTA_CONFIG";

/// Every setting, and where each comes from.
#[derive(Debug, Clone)]
pub struct Config {
    pub settings: Settings,
    /// By the name of the setting; those that are missing have their default.
    origins: BTreeMap<String, Origin>,
    /// The file that was read, if one was.
    file: Option<PathBuf>,
}

/// The values of all settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub data: String,
    pub memory_limit: Option<usize>,
    pub threads: Option<usize>,
    /// Options of the object store.
    pub storage: BTreeMap<String, String>,
    /// Its `tls` stays empty: the parts of it are below until they are known to belong together.
    pub server: ServerOptions,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_client_ca: Option<PathBuf>,
    pub tls_client_user: bool,
    pub log: LogOptions,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: crate::args::DATA_DEFAULT.to_owned(),
            memory_limit: None,
            threads: None,
            storage: BTreeMap::new(),
            server: ServerOptions::default(),
            tls_certificate: None,
            tls_key: None,
            tls_client_ca: None,
            tls_client_user: false,
            log: LogOptions::default(),
        }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { name: String, line: usize },
    Environment(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { name, line } => write!(f, "{name}:{line}"),
            Origin::Environment(variable) => write!(f, "environment {variable}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// A value as it was written, before it is known whether it fits its setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raw {
    Text(String),
    List(Vec<String>),
}

/// One value that somebody gave.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    raw: Raw,
    origin: Origin,
}

/// What a configuration is made of, apart from the defaults.
#[derive(Debug, Default)]
struct Sources {
    /// The file and its text.
    file: Option<(PathBuf, String)>,
    /// The variables of the process, names that are not ours included.
    environment: Vec<(String, String)>,
    /// What the command line says, the stronger last.
    flags: Vec<Entry>,
}

impl Config {
    /// The configuration of this process.
    ///
    /// # Errors
    /// Every mistake in it, one a line, each with its place and the next step.
    pub fn load(args: &Args, flags: &ServerFlags) -> Result<Config, String> {
        let environment = layers::environment()?;
        let flag_entries = layers::of_flags(args, flags)?;
        let file = find_file(flags, &environment)?;
        Config::of(Sources { file, environment, flags: flag_entries })
    }

    fn of(sources: Sources) -> Result<Config, String> {
        let mut problems = vec![];
        let mut entries = vec![];
        if let Some((path, text)) = &sources.file {
            entries.extend(layers::of_file(&path.display().to_string(), text, &mut problems));
        }
        entries.extend(layers::of_environment(&sources.environment, &mut problems));
        entries.extend(sources.flags);
        let file = sources.file.map(|(path, _)| path);
        let mut config = Config { settings: Settings::default(), origins: BTreeMap::new(), file };
        for entry in entries {
            if let Err(problem) = config.set(&entry) {
                problems.push(format!("{}: {}: {problem}", entry.origin, entry.name));
            }
        }
        if problems.is_empty() { Ok(config) } else { Err(problems.join("\n")) }
    }

    fn set(&mut self, entry: &Entry) -> Result<(), String> {
        if let Some(option) = entry.name.strip_prefix(layers::STORAGE_PREFIX) {
            self.settings.storage.insert(option.to_owned(), entry.raw.text()?.to_owned());
        } else {
            let key = KEYS.iter().find(|key| key.name == entry.name).ok_or_else(|| unknown(&entry.name))?;
            key.set(&mut self.settings, &entry.raw)?;
        }
        self.origins.insert(entry.name.clone(), entry.origin.clone());
        Ok(())
    }

    /// Where the value of a setting comes from.
    fn origin(&self, name: &str) -> &Origin {
        self.origins.get(name).unwrap_or(&Origin::Default)
    }
}

impl Raw {
    fn text(&self) -> Result<&str, String> {
        match self {
            Raw::Text(text) => Ok(text),
            Raw::List(_) => Err("expected one value, found a list".to_owned()),
        }
    }
}

/// The file to read, and its text: the one that is named, or the default one if it is there.
fn find_file(flags: &ServerFlags, environment: &[(String, String)]) -> Result<Option<(PathBuf, String)>, String> {
    let of_environment = environment.iter().find(|(name, value)| name == FILE_VARIABLE && !value.is_empty());
    let (path, named_by) = match (&flags.config, of_environment) {
        (Some(path), _) => (path.clone(), Some("--config")),
        (None, Some((_, path))) => (PathBuf::from(path), Some(FILE_VARIABLE)),
        (None, None) => (PathBuf::from(FILE_DEFAULT), None),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named_by.is_none() => Ok(None),
        Err(error) => {
            let named_by = named_by.map_or_else(String::new, |source| format!(", which {source} names"));
            Err(format!("cannot read the configuration file {}{named_by}: {error}", path.display()))
        }
    }
}

/// The message about a name that is no setting.
fn unknown(name: &str) -> String {
    let meant = layers::nearest(name, KEYS.iter().map(|key| key.name));
    let hint = meant.map_or_else(
        || "sagitta config lists all settings".to_owned(),
        |meant| format!("did you mean {meant}? sagitta config lists all settings"),
    );
    format!("there is no setting of this name; {hint}")
}

#[cfg(test)]
mod tests;
