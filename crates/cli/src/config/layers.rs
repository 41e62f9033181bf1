//! Where values are given: the file, the environment, the command line. Each gives entries; which of them wins, and
//! whether they fit, is decided by the caller.

use toml::de::{DeTable, DeValue};

use super::keys::KEYS;
use super::{Entry, FILE_VARIABLE, Origin, Raw};
use crate::args::{Args, ServerFlags};

/// Where the options of the object store stand: `[storage]` in the file.
pub const STORAGE_PREFIX: &str = "storage.";
/// How variables begin that set an option of the object store: `SAGITTA_STORAGE_AWS_REGION`.
const STORAGE_VARIABLE: &str = "SAGITTA_STORAGE_";
/// How all our variables begin.
const VARIABLE_PREFIX: &str = "SAGITTA_";
/// The filter of the log, for the shell too.
const LOG_VARIABLE: &str = "SAGITTA_LOG";
/// The sections of the file.
const SECTIONS: [&str; 4] = ["storage", "server", "limits", "log"];

/// Variables that are read elsewhere: the file's own, the kernels' instruction set, and those of our scripts and tests,
/// which run this program with their own environment.
const VARIABLES_ELSEWHERE: [&str; 11] = [
    FILE_VARIABLE,
    "SAGITTA_ISA",
    "SAGITTA_BIN",
    "SAGITTA_CACHE",
    "SAGITTA_CLIPPY",
    "SAGITTA_CONNECT",
    "SAGITTA_USER",
    "SAGITTA_PASSWORD",
    "SAGITTA_TOKEN",
    "SAGITTA_TEST_URI",
    "SAGITTA_TEST_REQUIRED",
];

/// What a file says. Places that mean nothing are added to `problems`.
pub fn of_file(name: &str, text: &str, problems: &mut Vec<String>) -> Vec<Entry> {
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            problems.push(format!("{name}:{line}: this is no TOML: {}", error.message()));
            return vec![];
        }
    };
    let mut file = File { name, text, entries: vec![], problems };
    file.read_table("", document.get_ref());
    file.entries
}

struct File<'f> {
    name: &'f str,
    text: &'f str,
    entries: Vec<Entry>,
    problems: &'f mut Vec<String>,
}

impl File<'_> {
    /// Reads the settings of a table; `prefix` is empty or ends with a dot.
    fn read_table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = format!("{prefix}{}", key.get_ref());
            let line = line_of(self.text, key.span().start);
            let value = value.get_ref();
            if let (true, DeValue::Table(section)) = (SECTIONS.contains(&path.as_str()), value) {
                self.read_table(&format!("{path}."), section);
                continue;
            }
            let is_known = prefix == STORAGE_PREFIX || KEYS.iter().any(|known| known.name == path);
            let problem = match raw(value) {
                _ if !is_known => unknown_in_file(&path, matches!(value, DeValue::Table(_))),
                Ok(raw) => {
                    let origin = Origin::File { name: self.name.to_owned(), line };
                    self.entries.push(Entry { name: path, raw, origin });
                    continue;
                }
                Err(problem) => format!("{path}: {problem}"),
            };
            self.problems.push(format!("{}:{line}: {problem}", self.name));
        }
    }
}

fn unknown_in_file(path: &str, is_table: bool) -> String {
    if SECTIONS.contains(&path) {
        return format!("{path} is a section: write its settings below [{path}]");
    }
    let kind = if is_table { "section" } else { "setting" };
    let meant = nearest(path, KEYS.iter().map(|key| key.name).chain(SECTIONS));
    let hint = meant.map_or_else(|| "sagitta config lists all".to_owned(), |meant| format!("did you mean {meant}?"));
    format!("there is no {kind} {path}; {hint}")
}

fn raw(value: &DeValue<'_>) -> Result<Raw, String> {
    let text = match value {
        DeValue::String(text) => text.clone().into_owned(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(moment) => moment.to_string(),
        DeValue::Array(members) => {
            let texts = members.iter().map(|member| member.get_ref().as_str().map(str::to_owned));
            let texts: Option<Vec<String>> = texts.collect();
            return texts.map(Raw::List).ok_or_else(|| "expected a list of texts, such as [\"a\", \"b\"]".to_owned());
        }
        DeValue::Table(_) => return Err("expected a value, found a table".to_owned()),
    };
    Ok(Raw::Text(text))
}

fn line_of(text: &str, place: usize) -> usize {
    text.bytes().take(place).filter(|byte| *byte == b'\n').count() + 1
}

/// The variables of this process that may be ours.
///
/// # Errors
/// One whose value is no text.
pub fn environment() -> Result<Vec<(String, String)>, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(format!("environment {name}: the value is no text in UTF-8")),
        })
        .collect()
}

/// What variables say; an empty one says nothing. Those that begin like ours and mean nothing are added to `problems`.
pub fn of_environment(variables: &[(String, String)], problems: &mut Vec<String>) -> Vec<Entry> {
    let mut variables: Vec<&(String, String)> =
        variables.iter().filter(|(name, _)| name.starts_with(VARIABLE_PREFIX)).collect();
    // The general one comes before the particular one: SAGITTA_LOG before SAGITTA_LOG_FILTER.
    variables.sort();
    let mut entries = vec![];
    for (variable, value) in variables {
        if VARIABLES_ELSEWHERE.contains(&variable.as_str()) || is_service_link(variable, value) {
            continue;
        }
        let name = if variable == LOG_VARIABLE {
            "log.filter".to_owned()
        } else if let Some(option) = variable.strip_prefix(STORAGE_VARIABLE) {
            format!("{STORAGE_PREFIX}{}", option.to_ascii_lowercase())
        } else if let Some(key) = KEYS.iter().find(|key| key.variable() == *variable) {
            key.name.to_owned()
        } else {
            problems.push(unknown_variable(variable));
            continue;
        };
        if !value.is_empty() {
            let origin = Origin::Environment(variable.clone());
            entries.push(Entry { name, raw: Raw::Text(value.clone()), origin });
        }
    }
    entries
}

fn unknown_variable(variable: &str) -> String {
    let known: Vec<String> = KEYS.iter().map(super::keys::Key::variable).collect();
    let all = known.iter().map(String::as_str).chain([LOG_VARIABLE, FILE_VARIABLE]);
    // What all have in common says nothing about likeness.
    let hint = nearest(own_part(variable), all.map(own_part)).map_or_else(
        || "unset it; sagitta config lists all settings".to_owned(),
        |meant| format!("did you mean {VARIABLE_PREFIX}{meant}?"),
    );
    format!("environment {variable}: this variable sets nothing; {hint}")
}

fn own_part(variable: &str) -> &str {
    variable.strip_prefix(VARIABLE_PREFIX).unwrap_or(variable)
}

/// Whether Kubernetes or Docker has made the variable, for a service or a linked container whose name begins with ours:
/// `SAGITTA_SERVICE_HOST`, `SAGITTA_PORT=tcp://10.0.0.1:32100`, `SAGITTA_PORT_32100_TCP_ADDR`.
fn is_service_link(variable: &str, value: &str) -> bool {
    if variable.ends_with("_SERVICE_HOST") || variable.contains("_SERVICE_PORT") {
        return true;
    }
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    match variable.split_once("_PORT") {
        Some((_, "")) => is_url,
        Some((_, rest)) => {
            let mut parts = rest.trim_start_matches('_').split('_');
            parts.next().is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
                && parts.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
        }
        None => false,
    }
}

/// What the command line says, the stronger last: `--set` is the weakest.
///
/// # Errors
/// A `--set` that sets nothing.
pub fn of_flags(args: &Args, flags: &ServerFlags) -> Result<Vec<Entry>, String> {
    let mut entries = vec![];
    for setting in &flags.settings {
        entries.push(of_set(setting)?);
    }
    let mut put = |flag: &str, name: &str, raw: Option<Raw>| {
        if let Some(raw) = raw {
            entries.push(Entry { name: name.to_owned(), raw, origin: Origin::Flag(flag.to_owned()) });
        }
    };
    let text = |text: &String| Raw::Text(text.clone());
    let path = |path: &std::path::PathBuf| Raw::Text(path.display().to_string());
    let switch = |on: bool| on.then(|| Raw::Text(true.to_string()));
    let global = &args.global;
    put("--data", "data", args.is_data_given.then(|| text(&global.data)));
    let count = |count: usize| Raw::Text(count.to_string());
    put("--memory-limit", "memory_limit", global.memory_limit.map(count));
    put("--threads", "threads", global.threads.map(count));
    for (option, value) in &global.storage_options {
        put("--storage-option", &format!("{STORAGE_PREFIX}{option}"), Some(text(value)));
    }
    put("--listen", "server.listen", flags.listen.as_ref().map(text));
    put("--http", "server.http", flags.http.as_ref().map(text));
    put("--tls-certificate", "server.tls_certificate", flags.tls_certificate.as_ref().map(path));
    put("--tls-key", "server.tls_key", flags.tls_key.as_ref().map(path));
    put("--tls-client-ca", "server.tls_client_ca", flags.tls_client_ca.as_ref().map(path));
    put("--tls-client-user", "server.tls_client_user", switch(flags.tls_client_user));
    put("--auth", "server.auth", switch(flags.auth));
    put("--token-file", "server.token_file", flags.token_file.as_ref().map(path));
    put("--insecure", "server.insecure", switch(flags.insecure));
    let roots = Some(&flags.allowed_roots).filter(|roots| !roots.is_empty());
    put("--allowed-root", "server.allowed_roots", roots.map(|roots| Raw::List(roots.clone())));
    put("--slow-query", "server.slow_query", flags.slow_query.as_ref().map(text));
    put("--drain", "server.drain", flags.drain.as_ref().map(text));
    put("--log-filter", "log.filter", flags.log_filter.as_ref().map(text));
    put("--log-format", "log.format", flags.log_format.as_ref().map(text));
    put("--otlp-endpoint", "log.otlp_endpoint", flags.otlp_endpoint.as_ref().map(text));
    Ok(entries)
}

fn of_set(setting: &str) -> Result<Entry, String> {
    let Some((name, value)) = setting.split_once('=') else {
        return Err(format!("flag --set {setting}: expected NAME=VALUE, such as limits.statements_max=8"));
    };
    let name = name.trim();
    Ok(Entry { name: name.to_owned(), raw: Raw::Text(value.to_owned()), origin: Origin::Flag("--set".to_owned()) })
}

/// The candidate that `name` is most like, if it is like one.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    /// At most one letter in so many may differ.
    const LETTERS_PER_MISTAKE: usize = 3;
    let name = name.to_ascii_lowercase();
    let distance = |candidate: &str| {
        let candidate = candidate.to_ascii_lowercase();
        let whole = strsim::damerau_levenshtein(&name, &candidate);
        // A name without its section is that name.
        let last = candidate.rsplit_once('.').map_or(whole, |(_, last)| 1 + strsim::damerau_levenshtein(&name, last));
        whole.min(last)
    };
    let measured = candidates.into_iter().map(|candidate| (distance(candidate), candidate));
    let (distance, nearest) = measured.min_by_key(|(distance, _)| *distance)?;
    (distance <= name.len().div_ceil(LETTERS_PER_MISTAKE)).then_some(nearest)
}
