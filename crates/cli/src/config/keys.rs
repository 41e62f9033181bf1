//! Every setting, declared once: its name, the field that holds it, what may stand there, and what it is for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use server::LogFormat;

use super::units::{MEMORY_BYTES_MIN, parse_size, parse_span, show_size, show_span};
use super::{Raw, Settings};

/// What stands for the absence of a value.
const NONE: &str = "none";
/// Messages of gRPC have a length of 32 bits, and are held in memory.
const MESSAGE_BYTES_MAX: usize = 2 << 30;
/// Below it hardly any statement of a user would run.
const MEMORY_PER_USER_BYTES_MIN: usize = 8 << 20;
/// More threads than any machine has cores.
pub const THREADS_MAX: usize = 1024;

/// A setting.
#[derive(Debug)]
pub struct Key {
    /// Its path in the file: `server.listen` is `listen` under `[server]`.
    pub name: &'static str,
    access: Access,
    /// What it is for, in one line.
    pub help: &'static str,
    /// What happens if there is no value; empty where there always is one.
    pub absent: &'static str,
}

/// The field of a setting, and what may stand in it.
#[derive(Debug)]
enum Access {
    Text(fn(&mut Settings) -> &mut String),
    OptionalText(fn(&mut Settings) -> &mut Option<String>),
    OptionalPath(fn(&mut Settings) -> &mut Option<PathBuf>),
    Texts(fn(&mut Settings) -> &mut Vec<String>),
    /// With the port if none is given.
    Address(fn(&mut Settings) -> &mut SocketAddr, u16),
    OptionalAddress(fn(&mut Settings) -> &mut Option<SocketAddr>, u16),
    Switch(fn(&mut Settings) -> &mut bool),
    /// With the least.
    Count(fn(&mut Settings) -> &mut usize, usize),
    OptionalThreads(fn(&mut Settings) -> &mut Option<usize>),
    OptionalRows(fn(&mut Settings) -> &mut Option<u64>),
    /// With the least and the most.
    Bytes(fn(&mut Settings) -> &mut usize, usize, usize),
    OptionalBytes(fn(&mut Settings) -> &mut Option<usize>, usize),
    /// With the shortest.
    Span(fn(&mut Settings) -> &mut Duration, Duration),
    OptionalSpan(fn(&mut Settings) -> &mut Option<Duration>, Duration),
    LogFormat(fn(&mut Settings) -> &mut LogFormat),
}

const MOMENT: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const fn key(name: &'static str, access: Access, help: &'static str) -> Key {
    Key { name, access, help, absent: "" }
}

impl Key {
    const fn or(self, absent: &'static str) -> Key {
        Key { name: self.name, access: self.access, help: self.help, absent }
    }
}

/// All settings but the options of the object store, in the order in which they are shown: those without a section first.
pub const KEYS: &[Key] = &[
    key("data", Access::Text(|s| &mut s.data), "where the database is: a folder, s3://bucket/prefix or memory:"),
    key(
        "memory_limit",
        Access::OptionalBytes(|s| &mut s.memory_limit, MEMORY_BYTES_MIN),
        "what statements and caches may hold together",
    )
    .or("seven tenths of the machine's memory"),
    key("threads", Access::OptionalThreads(|s| &mut s.threads), "threads that run statements").or("one per core"),
    key(
        "server.listen",
        Access::Address(|s| &mut s.server.listen, server::PORT),
        "where Flight SQL clients connect; 0.0.0.0:32100 for all interfaces",
    ),
    key(
        "server.http",
        Access::OptionalAddress(|s| &mut s.server.http, server::HTTP_PORT),
        "where health and metrics are read over HTTP",
    )
    .or("no HTTP"),
    key("server.tls_certificate", Access::OptionalPath(|s| &mut s.tls_certificate), "PEM file: the certificate chain")
        .or("connections are not encrypted"),
    key("server.tls_key", Access::OptionalPath(|s| &mut s.tls_key), "PEM file: the key of the certificate")
        .or("connections are not encrypted"),
    key(
        "server.tls_client_ca",
        Access::OptionalPath(|s| &mut s.tls_client_ca),
        "PEM file: who signs clients' certificates; a client without one is refused",
    )
    .or("clients need no certificate"),
    key(
        "server.tls_client_user",
        Access::Switch(|s| &mut s.tls_client_user),
        "whether the common name in a client's certificate is the name of its user",
    ),
    key("server.auth", Access::Switch(|s| &mut s.server.auth), "whether clients must prove who they are"),
    key(
        "server.token_file",
        Access::OptionalPath(|s| &mut s.server.token_file),
        "file of bearer tokens, one `token user` on each line",
    )
    .or("no tokens"),
    key(
        "server.insecure",
        Access::Switch(|s| &mut s.server.insecure),
        "listen beyond loopback even without authentication",
    ),
    key(
        "server.allowed_roots",
        Access::Texts(|s| &mut s.server.allowed_roots),
        "folders and URLs below which statements may read and write files",
    ),
    key(
        "server.slow_query",
        Access::Span(|s| &mut s.server.slow_query, Duration::ZERO),
        "statements that run longer are logged and listed in system.slow_queries",
    ),
    key(
        "server.drain",
        Access::Span(|s| &mut s.server.drain, Duration::ZERO),
        "how long running statements may go on once the server is told to stop",
    ),
    key(
        "limits.statements_max",
        Access::Count(|s| &mut s.server.limits.statements_max, 1),
        "statements that run at once",
    ),
    key(
        "limits.statements_per_user_max",
        Access::Count(|s| &mut s.server.limits.statements_per_user_max, 1),
        "statements of one user that run at once",
    ),
    key(
        "limits.queue_max",
        Access::Count(|s| &mut s.server.limits.queue_max, 0),
        "statements that may wait for their turn",
    ),
    key(
        "limits.queue_time_max",
        Access::Span(|s| &mut s.server.limits.queue_time_max, Duration::ZERO),
        "how long a statement may wait for its turn",
    ),
    key(
        "limits.statement_time_max",
        Access::OptionalSpan(|s| &mut s.server.limits.statement_time_max, MOMENT),
        "the longest that a statement may run",
    )
    .or("as long as the engine allows"),
    key(
        "limits.memory_per_user_max",
        Access::OptionalBytes(|s| &mut s.server.limits.memory_per_user_max, MEMORY_PER_USER_BYTES_MIN),
        "what the statements of one user, and what is kept for the user, may take together of the memory",
    )
    .or("as much as there is"),
    key(
        "limits.rows_max",
        Access::OptionalRows(|s| &mut s.server.limits.rows_max),
        "rows that one statement may return",
    )
    .or("as many as there are"),
    key(
        "limits.message_bytes_max",
        Access::Bytes(|s| &mut s.server.limits.message_bytes_max, 1 << 20, MESSAGE_BYTES_MAX),
        "the largest message that a client may send; where memory is scarce less, but 16 MiB always",
    ),
    key(
        "limits.sessions_max",
        Access::Count(|s| &mut s.server.limits.sessions_max, 1),
        "sessions that may be open at once",
    ),
    key(
        "limits.session_idle_max",
        Access::Span(|s| &mut s.server.limits.session_idle_max, SECOND),
        "after how long without a call a session is closed",
    ),
    key(
        "limits.handles_per_session_max",
        Access::Count(|s| &mut s.server.limits.handles_per_session_max, 1),
        "prepared statements and unfetched results of one session",
    ),
    key(
        "limits.handle_lifetime",
        Access::Span(|s| &mut s.server.limits.handle_lifetime, SECOND),
        "how long a result waits for being fetched",
    ),
    key("log.filter", Access::Text(|s| &mut s.log.filter), "levels by module, such as info,storage=debug"),
    key("log.format", Access::LogFormat(|s| &mut s.log.format), "text or json"),
    key(
        "log.otlp_endpoint",
        Access::OptionalText(|s| &mut s.log.otlp_endpoint),
        "where an OpenTelemetry collector takes traces over gRPC, such as http://localhost:4317",
    )
    .or("no traces"),
];

impl Key {
    /// The variable that sets it.
    pub fn variable(&self) -> String {
        format!("SAGITTA_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }

    /// Puts a value into its field.
    ///
    /// # Errors
    /// One that does not fit: what was expected.
    pub fn set(&self, settings: &mut Settings, raw: &Raw) -> Result<(), String> {
        match self.access {
            Access::Text(field) => *field(settings) = filled(raw.text()?)?.to_owned(),
            Access::OptionalText(field) => *field(settings) = optional(raw, |text| Ok(filled(text)?.to_owned()))?,
            Access::OptionalPath(field) => *field(settings) = optional(raw, |text| Ok(PathBuf::from(filled(text)?)))?,
            Access::Texts(field) => *field(settings) = texts(raw),
            Access::Address(field, port) => *field(settings) = address(raw.text()?, port)?,
            Access::OptionalAddress(field, port) => *field(settings) = optional(raw, |text| address(text, port))?,
            Access::Switch(field) => *field(settings) = switch(raw.text()?)?,
            Access::Count(field, least) => *field(settings) = count(raw.text()?, least, usize::MAX)?,
            Access::OptionalThreads(field) => {
                *field(settings) = optional(raw, |text| count(text, 1, THREADS_MAX))?;
            }
            Access::OptionalRows(field) => {
                let rows = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number of rows"));
                *field(settings) = optional(raw, rows)?;
            }
            Access::Bytes(field, least, most) => *field(settings) = bytes(raw.text()?, least, most)?,
            Access::OptionalBytes(field, least) => {
                *field(settings) = optional(raw, |text| bytes(text, least, usize::MAX))?;
            }
            Access::Span(field, least) => *field(settings) = span(raw.text()?, least)?,
            Access::OptionalSpan(field, least) => *field(settings) = optional(raw, |text| span(text, least))?,
            Access::LogFormat(field) => {
                *field(settings) = match raw.text()? {
                    "text" => LogFormat::Text,
                    "json" => LogFormat::Json,
                    other => return Err(format!("{other:?} is no format; write text or json")),
                }
            }
        }
        Ok(())
    }

    /// Its value as TOML, which [`Key::set`] reads back.
    pub fn show(&self, settings: &mut Settings) -> toml::Value {
        let number =
            |count: usize| i64::try_from(count).map_or_else(|_| count.to_string().into(), toml::Value::Integer);
        let or_none = |value: Option<String>| toml::Value::String(value.unwrap_or_else(|| NONE.to_owned()));
        match self.access {
            Access::Text(field) => field(settings).as_str().into(),
            Access::OptionalText(field) => or_none(field(settings).clone()),
            Access::OptionalPath(field) => or_none(field(settings).as_ref().map(|path| path.display().to_string())),
            Access::Texts(field) => field(settings).clone().into(),
            Access::Address(field, _) => field(settings).to_string().into(),
            Access::OptionalAddress(field, _) => or_none(field(settings).map(|address| address.to_string())),
            Access::Switch(field) => (*field(settings)).into(),
            Access::Count(field, _) => number(*field(settings)),
            Access::OptionalThreads(field) => field(settings).map_or_else(|| NONE.into(), number),
            Access::OptionalRows(field) => {
                field(settings).map_or_else(|| NONE.into(), |rows| number(usize::try_from(rows).unwrap_or(usize::MAX)))
            }
            Access::Bytes(field, ..) => show_size(*field(settings)).into(),
            Access::OptionalBytes(field, _) => or_none(field(settings).map(show_size)),
            Access::Span(field, _) => show_span(*field(settings)).into(),
            Access::OptionalSpan(field, _) => or_none(field(settings).map(show_span)),
            Access::LogFormat(field) => match field(settings) {
                LogFormat::Text => "text".into(),
                LogFormat::Json => "json".into(),
            },
        }
    }
}

fn optional<T>(raw: &Raw, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    match raw.text()? {
        NONE => Ok(None),
        text => read(text).map(Some),
    }
}

fn filled(text: &str) -> Result<&str, String> {
    if text.trim().is_empty() { Err("the value is empty".to_owned()) } else { Ok(text) }
}

/// A list, or its members in one text with commas between them.
fn texts(raw: &Raw) -> Vec<String> {
    match raw {
        Raw::List(members) => members.clone(),
        Raw::Text(text) if text == NONE => vec![],
        Raw::Text(text) => {
            text.split(',').map(str::trim).filter(|member| !member.is_empty()).map(str::to_owned).collect()
        }
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn count(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count) if count < least => Err(format!("{count} is too few, the least is {least}")),
        Ok(count) if count > most => Err(format!("{count} is too many, the most is {most}")),
        Ok(count) => Ok(count),
        Err(_) => Err(format!("{text:?} is no count; write a number")),
    }
}

fn bytes(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match parse_size(text) {
        Ok(bytes) if bytes < least => Err(format!("{text} is too little, the least is {}", show_size(least))),
        Ok(bytes) if bytes > most => Err(format!("{text} is too much, the most is {}", show_size(most))),
        Ok(bytes) => Ok(bytes),
        Err(expected) => Err(format!("{text:?} is no size; {expected}")),
    }
}

fn span(text: &str, least: Duration) -> Result<Duration, String> {
    match parse_span(text) {
        Ok(span) if span < least => Err(format!("{text} is too short, the least is {}", show_span(least))),
        Ok(span) => Ok(span),
        Err(expected) => Err(format!("{text:?} is no span; {expected}")),
    }
}

/// An address with its port, or with `port`; `localhost` is the only name, for a server listens on addresses.
fn address(text: &str, port: u16) -> Result<SocketAddr, String> {
    let text = text.trim();
    let of_host = |host: &str| match host {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        "" | "*" => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        host => host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok(),
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let (false, Some(host)) = (text.is_empty(), of_host(text)) {
        return Ok(SocketAddr::new(host, port));
    }
    text.rsplit_once(':')
        .filter(|(host, _)| !host.contains(':'))
        .and_then(|(host, port)| Some(SocketAddr::new(of_host(host)?, port.parse().ok()?)))
        .ok_or_else(|| {
            format!("{text:?} is no address; write one such as 127.0.0.1:{port}, 0.0.0.0:{port} or [::1]:{port}")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_port() {
        for (text, expected) in [
            ("127.0.0.1:8000", "127.0.0.1:8000"),
            ("0.0.0.0", "0.0.0.0:9"),
            ("localhost", "127.0.0.1:9"),
            ("localhost:8000", "127.0.0.1:8000"),
            (":8000", "0.0.0.0:8000"),
            ("*:8000", "0.0.0.0:8000"),
            ("[::1]:8000", "[::1]:8000"),
            ("::1", "[::1]:9"),
            ("[::]", "[::]:9"),
            ("10.0.0.1:0", "10.0.0.1:0"),
        ] {
            assert_eq!(address(text, 9).map(|address| address.to_string()), Ok(expected.to_owned()), "{text}");
        }
        for text in ["", "8000", "example.com:80", "127.0.0.1:99999", "1.2.3", "http://localhost:1", "::1:x"] {
            assert!(address(text, 9).is_err(), "{text}: {:?}", address(text, 9));
        }
    }

    #[test]
    fn no_two_settings_share_a_name_or_a_variable() {
        let mut names: Vec<String> = KEYS.iter().flat_map(|key| [key.name.to_owned(), key.variable()]).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(KEYS.iter().all(|key| !key.help.is_empty() && !key.variable().starts_with("SAGITTA_STORAGE_")));
    }

    #[test]
    fn what_a_setting_shows_it_reads_back() {
        for key in KEYS {
            let mut settings = Settings::default();
            let shown = key.show(&mut settings);
            let raw = match &shown {
                toml::Value::Array(members) => {
                    Raw::List(members.iter().filter_map(|member| member.as_str().map(str::to_owned)).collect())
                }
                toml::Value::String(text) => Raw::Text(text.clone()),
                other => Raw::Text(other.to_string()),
            };
            assert_eq!(key.set(&mut settings, &raw), Ok(()), "{} = {shown}", key.name);
            assert_eq!(settings, Settings::default(), "{}", key.name);
        }
    }
}
