//! `sagitta serve` and `sagitta config`: from the configuration to a running server, and its end. How it serves is in
//! `server`.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use engine::{Engine, EngineOptions};
use server::{Addresses, LogOptions, Metrics, Readiness, ServerOptions, TlsOptions};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::args::{Args, Command, ServerFlags, ShowConfig};
use crate::config::{Config, Settings};
use crate::console::{Outcome, stopped};
use crate::report::Report;
use crate::run::show;

/// How often the allocator hears whether memory is scarce.
const MEMORY_WATCH: Duration = Duration::from_millis(50);

/// All that a server needs to start.
#[derive(Debug)]
pub struct Setup {
    /// Where the database is.
    location: String,
    engine: EngineOptions,
    options: ServerOptions,
    log: LogOptions,
    /// Say nothing but errors.
    quiet: bool,
    error_color: bool,
}

impl Setup {
    /// Threads that run statements; one per core if absent.
    pub fn threads(&self) -> Option<usize> {
        self.engine.threads
    }

    /// Checks what the settings mean together.
    fn of(settings: &Settings) -> Result<Setup, String> {
        let mut options = settings.server.clone();
        options.tls = tls(settings)?;
        check_authentication(&options)?;
        check_exposure(&options)?;
        if options.http.is_some_and(|http| http == options.listen && http.port() != 0) {
            return Err(format!(
                "server.listen and server.http are both {}; give each a port of its own",
                options.listen
            ));
        }
        let engine = EngineOptions {
            storage_options: settings.storage.clone().into_iter().collect(),
            memory_limit_bytes: settings.memory_limit,
            threads: settings.threads,
            allowed_roots: Some(options.allowed_roots.clone()),
            ..EngineOptions::default()
        };
        let (location, log) = (settings.data.clone(), settings.log.clone());
        Ok(Setup { location, engine, options, log, quiet: false, error_color: false })
    }
}

/// Reads the configuration if the command is one that has it; `sagitta config` is over with that. Errors are shown here.
///
/// # Errors
/// There is nothing more to do, and this is how it ended.
pub fn setup(args: &Args) -> Result<Option<Setup>, Outcome> {
    let error_color = args.global.color.colors(std::io::stderr().is_terminal());
    let misused = |message: String| {
        show(message, None, error_color);
        Outcome::Misused
    };
    let load = |flags: &ServerFlags| Config::load(args, flags).map_err(misused);
    match &args.command {
        Some(Command::Serve(flags)) => {
            let setup = Setup::of(&load(flags)?.settings).map_err(misused)?;
            Ok(Some(Setup { quiet: args.global.quiet, error_color, ..setup }))
        }
        Some(Command::Config(show_config)) => {
            Err(config(args, show_config, &mut std::io::stdout()).unwrap_or_else(misused))
        }
        Some(Command::Import(_)) | None => Ok(None),
    }
}

/// Shows the configuration, and says whether a server would start with it.
///
/// # Errors
/// Why it would not.
fn config(args: &Args, options: &ShowConfig, output: &mut dyn Write) -> Result<Outcome, String> {
    let config = Config::load(args, &options.flags)?;
    if output.write_all(config.to_toml(options.explain).as_bytes()).is_err() {
        return Ok(Outcome::PipeClosed);
    }
    Setup::of(&config.settings)?;
    Ok(Outcome::Done)
}

fn tls(settings: &Settings) -> Result<Option<TlsOptions>, String> {
    if settings.tls_client_user && settings.tls_client_ca.is_none() {
        return Err(
            "server.tls_client_user is set, but clients show no certificates; set server.tls_client_ca too".to_owned()
        );
    }
    match (&settings.tls_certificate, &settings.tls_key, &settings.tls_client_ca) {
        (Some(certificate), Some(key), client_ca) => Ok(Some(TlsOptions {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
            client_user: settings.tls_client_user,
        })),
        (Some(_), None, _) => Err("server.tls_certificate is given without its key; set server.tls_key too".to_owned()),
        (None, Some(_), _) => {
            Err("server.tls_key is given without its certificate; set server.tls_certificate too".to_owned())
        }
        (None, None, Some(_)) => Err(
            "server.tls_client_ca is given, but connections are not encrypted; set server.tls_certificate and server.tls_key too"
                .to_owned(),
        ),
        (None, None, None) => Ok(None),
    }
}

fn check_authentication(options: &ServerOptions) -> Result<(), String> {
    if options.token_file.is_some() && !options.auth {
        return Err("server.token_file is given, but nobody has to show a token; set server.auth = true (--auth) too"
            .to_owned());
    }
    Ok(())
}

/// Refuses to let whoever can reach this machine do anything, unless that was asked for.
///
/// # Errors
/// The next steps.
pub fn check_exposure(options: &ServerOptions) -> Result<(), String> {
    let proves = options.auth || options.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if is_local(options.listen) || proves || options.insecure {
        return Ok(());
    }
    Err(format!(
        "{} can be reached from other machines, and without authentication whoever connects may do anything; \
         require it (--auth, or --tls-client-ca), listen on 127.0.0.1, or accept that with --insecure",
        options.listen
    ))
}

fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Serves until a signal; errors are shown here.
pub fn run(setup: Setup, terminal: &Runtime, workers: &Handle) -> Outcome {
    let error_color = setup.error_color;
    let telemetry = {
        let _inside = workers.enter();
        server::telemetry::start(&setup.log)
    };
    let telemetry = match telemetry {
        Ok(telemetry) => telemetry,
        Err(message) => {
            show(message, None, error_color);
            return Outcome::Misused;
        }
    };
    let outcome = terminal.block_on(async {
        match Signals::listen() {
            Ok(signals) => serve(setup, signals, workers).await,
            Err(error) => {
                show(format!("cannot listen to signals: {error}"), None, error_color);
                Outcome::Failed
            }
        }
    });
    if outcome == Outcome::Interrupted {
        telemetry.abandon();
    }
    outcome
}

/// What tells a server to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Signals> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn serve(setup: Setup, mut signals: Signals, workers: &Handle) -> Outcome {
    let (location, engine_options) = (setup.location.clone(), setup.engine.clone());
    let opening = workers.spawn(async move { Engine::open(&location, engine_options).await });
    let opened = tokio::select! {
        opened = opening => opened.unwrap_or_else(|error| Err(stopped(&error))),
        () = signals.next() => return Outcome::Interrupted,
    };
    let engine = match opened {
        Ok(engine) => engine,
        Err(error) => return failed(&setup, &error),
    };
    let watched = engine.clone();
    workers.spawn(async move {
        loop {
            crate::return_freed_memory(watched.memory_is_scarce());
            tokio::time::sleep(MEMORY_WATCH).await;
        }
    });
    let readiness = Readiness::new();
    let (stop, told_to_stop) = oneshot::channel::<()>();
    let shutdown = async {
        // Without a sender it shall stop as well.
        let _ = told_to_stop.await;
    };
    let serving = server::serve(engine, setup.options.clone(), Metrics::new(), readiness.clone(), shutdown);
    let mut serving = workers.spawn(serving);
    let (mut stop, mut is_announced) = (Some(stop), setup.quiet);
    loop {
        tokio::select! {
            ended = &mut serving => return match ended.unwrap_or_else(|error| Err(stopped(&error))) {
                Ok(()) => Outcome::Done,
                Err(error) => failed(&setup, &error),
            },
            () = readiness.until_ready(), if !is_announced => {
                is_announced = true;
                eprint!("{}", announcement(&setup, readiness.addresses()));
            }
            () = signals.next() => match stop.take() {
                Some(stop) => {
                    readiness.set_draining();
                    if !setup.quiet {
                        let drain = crate::config::units::show_span(setup.options.drain);
                        eprintln!("stopping: running statements may end within {drain}; once more, and they are cancelled");
                    }
                    // If nobody listens any more, it has stopped already.
                    let _ = stop.send(());
                }
                None => {
                    serving.abort();
                    eprintln!("stopped at once");
                    return Outcome::Interrupted;
                }
            },
        }
    }
}

fn failed(setup: &Setup, error: &engine::Error) -> Outcome {
    eprint!("{}", Report::of(error, None).render(setup.error_color));
    Outcome::Failed
}

/// What is served, where, how safely, and how each kind of client connects.
fn announcement(setup: &Setup, addresses: Option<Addresses>) -> String {
    let options = &setup.options;
    let addresses = addresses.unwrap_or(Addresses { flight: options.listen, http: options.http });
    let encryption = match &options.tls {
        Some(tls) if tls.client_ca.is_some() => "TLS with clients' certificates",
        Some(_) => "TLS",
        None if options.auth && !is_local(addresses.flight) => "no TLS: passwords and rows can be read on the way",
        None => "no TLS",
    };
    let names_users = options.tls.as_ref().is_some_and(|tls| tls.client_user);
    let authentication = match options.auth {
        _ if names_users => "clients are the users whom their certificates name",
        true => "clients must authenticate",
        false if options.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) => {
            "whoever has a certificate may do anything"
        }
        false => "no authentication: whoever connects may do anything",
    };
    let http = match addresses.http {
        Some(http) => format!("http://{} (/healthz, /readyz, /metrics)", place(http)),
        None => "off".to_owned(),
    };
    let place = place(addresses.flight);
    let (scheme, transport, encrypted) =
        if options.tls.is_some() { ("grpc+tls", "tls", true) } else { ("grpc", "tcp", false) };
    format!(
        "sagitta {version} serves {location}\n\
         \x20 Flight SQL  {flight}; {encryption}; {authentication}\n\
         \x20 HTTP        {http}\n\
         connect with\n\
         \x20 shell       sagitta --connect {scheme}://{place}\n\
         \x20 ADBC        flightsql://{place}?transport={transport}, or as driver option uri: {scheme}://{place}\n\
         \x20 Polars      pl.read_database_uri(query, \"flightsql://{place}?transport={transport}\", engine=\"adbc\")\n\
         \x20 JDBC        jdbc:arrow-flight-sql://{place}?useEncryption={encrypted}\n\
         Ctrl-C or SIGTERM stops it: running statements may end; the second time at once\n",
        version = env!("CARGO_PKG_VERSION"),
        location = setup.location,
        flight = addresses.flight,
    )
}

/// How a client on this machine names an address.
fn place(address: SocketAddr) -> String {
    let ip = address.ip().to_canonical();
    if ip.is_unspecified() || ip.is_loopback() { format!("localhost:{}", address.port()) } else { address.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `sagitta config` prints with a file of this text, and how it ends.
    fn shown(file: &str, words: &[&str]) -> (String, Result<Outcome, String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my.toml");
        std::fs::write(&path, file).unwrap();
        let start = ["sagitta", "config", "--config", path.to_str().unwrap()];
        let args = Args::from_words(start.iter().chain(words)).unwrap();
        let Some(Command::Config(options)) = &args.command else { panic!("{words:?} is no config") };
        let mut output = vec![];
        let outcome = config(&args, options, &mut output);
        (String::from_utf8(output).unwrap(), outcome)
    }

    #[test]
    fn config_shows_the_tree_and_judges_it() {
        let (text, outcome) = shown("[server]\ndrain = \"5s\"", &["--set", "limits.queue_max=0"]);
        assert_eq!(outcome, Ok(Outcome::Done));
        assert!(text.contains("drain = \"5s\"") && text.contains("my.toml:2"), "{text}");
        assert!(text.contains("queue_max = 0") && text.contains("# flag --set"), "{text}");
        let (text, outcome) = shown("", &["--listen", "0.0.0.0"]);
        assert!(text.contains("listen = \"0.0.0.0:32100\""), "it is shown also if it is refused: {text}");
        assert!(outcome.unwrap_err().contains("--insecure"));
        let (text, outcome) = shown("data = 'a'\nlisten = 1", &[]);
        assert_eq!(text, "");
        assert!(outcome.unwrap_err().contains("my.toml:2: there is no setting listen; did you mean server.listen?"));
    }

    fn options(listen: &str) -> ServerOptions {
        ServerOptions { listen: listen.parse().unwrap(), ..ServerOptions::default() }
    }

    fn with_tls(client_ca: Option<&str>) -> Option<TlsOptions> {
        Some(TlsOptions {
            certificate: "c".into(),
            key: "k".into(),
            client_ca: client_ca.map(Into::into),
            client_user: false,
        })
    }

    #[test]
    fn a_server_that_others_reach_wants_authentication() {
        for local in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(check_exposure(&options(local)), Ok(()), "{local}");
        }
        for open in ["0.0.0.0:1", "[::]:1", "192.168.1.5:1", "[::ffff:10.0.0.1]:1"] {
            let message = check_exposure(&options(open)).unwrap_err();
            for part in ["--auth", "127.0.0.1", "--insecure"] {
                assert!(message.contains(part), "{message}");
            }
            for safe in [
                ServerOptions { auth: true, ..options(open) },
                ServerOptions { insecure: true, ..options(open) },
                ServerOptions { tls: with_tls(Some("ca")), ..options(open) },
            ] {
                assert_eq!(check_exposure(&safe), Ok(()), "{safe:?}");
            }
            let encrypted = ServerOptions { tls: with_tls(None), ..options(open) };
            assert!(check_exposure(&encrypted).is_err(), "encryption alone proves nothing");
        }
    }

    #[test]
    fn settings_that_need_each_other_are_missed() {
        let path = || Some("file.pem".into());
        let tokens = ServerOptions { token_file: path(), ..ServerOptions::default() };
        let same = ServerOptions { http: Some(ServerOptions::default().listen), ..ServerOptions::default() };
        for (settings, part) in [
            (Settings { tls_certificate: path(), ..Settings::default() }, "server.tls_key"),
            (Settings { tls_key: path(), ..Settings::default() }, "server.tls_certificate"),
            (Settings { tls_client_ca: path(), ..Settings::default() }, "server.tls_certificate"),
            (Settings { tls_client_user: true, ..Settings::default() }, "server.tls_client_ca"),
            (Settings { server: tokens, ..Settings::default() }, "--auth"),
            (Settings { server: same, ..Settings::default() }, "a port of its own"),
            (Settings { server: options("0.0.0.0:1"), ..Settings::default() }, "--insecure"),
        ] {
            let message = Setup::of(&settings).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        let whole = Settings { tls_certificate: path(), tls_key: path(), ..Settings::default() };
        assert!(Setup::of(&whole).unwrap().options.tls.is_some());
    }

    #[test]
    fn the_announcement_says_how_to_connect_and_how_safe_it_is() {
        let announced = |options: ServerOptions| {
            let setup = Setup { options, ..Setup::of(&Settings::default()).unwrap() };
            announcement(&setup, None)
        };
        let plain = announced(ServerOptions::default());
        for part in [
            "serves ./sagitta-data",
            "127.0.0.1:32100; no TLS; no authentication",
            "http://localhost:32101",
            "sagitta --connect grpc://localhost:32100",
            "flightsql://localhost:32100?transport=tcp",
            "jdbc:arrow-flight-sql://localhost:32100?useEncryption=false",
        ] {
            assert!(plain.contains(part), "{part} in {plain}");
        }
        let safe = announced(ServerOptions { auth: true, tls: with_tls(None), http: None, ..options("10.0.0.7:5") });
        for part in [
            "10.0.0.7:5; TLS; clients must authenticate",
            "HTTP        off",
            "grpc+tls://10.0.0.7:5",
            "transport=tls",
            "useEncryption=true",
        ] {
            assert!(safe.contains(part), "{part} in {safe}");
        }
        let open = announced(ServerOptions { auth: true, ..options("0.0.0.0:5") });
        assert!(open.contains("passwords and rows can be read on the way"), "{open}");
    }

    #[test]
    fn ports_that_the_system_chose_are_announced() {
        let setup = Setup::of(&Settings { server: options("127.0.0.1:0"), ..Settings::default() }).unwrap();
        let addresses = Addresses { flight: "127.0.0.1:4000".parse().unwrap(), http: "127.0.0.1:4001".parse().ok() };
        let text = announcement(&setup, Some(addresses));
        assert!(text.contains("grpc://localhost:4000") && text.contains("http://localhost:4001"), "{text}");
    }
}
