//! Which value wins, what is refused, and what is shown.

use super::*;

/// A configuration of a file, variables and a command line.
fn configured(file: &str, environment: &[(&str, &str)], words: &[&str]) -> Result<Config, String> {
    let args = Args::from_words(["sagitta", "serve"].iter().chain(words)).map_err(|error| error.to_string())?;
    let Some(crate::args::Command::Serve(flags)) = &args.command else { panic!("{words:?} is no serve") };
    Config::of(Sources {
        file: (!file.is_empty()).then(|| (PathBuf::from("my.toml"), file.to_owned())),
        environment: environment.iter().map(|(name, value)| (String::from(*name), String::from(*value))).collect(),
        flags: layers::of_flags(&args, flags)?,
    })
}

/// The same from texts: variables with `; ` between them, words with blanks.
fn configured_by(file: &str, environment: &str, words: &str) -> Result<Config, String> {
    let variables: Vec<_> = environment.split("; ").filter_map(|variable| variable.split_once('=')).collect();
    configured(file, &variables, &words.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_the_default() {
    const LISTEN: &str = "[server]\nlisten = '[::1]:1'";
    const VARIABLE: &str = "SAGITTA_SERVER_LISTEN=[::1]:2";
    const ROOTS: &str = "SAGITTA_SERVER_ALLOWED_ROOTS=/a, s3://b";
    // The file, the environment, the command line; the setting, its value, its origin.
    let cases = [
        ["", "", "", "server.listen", "'127.0.0.1:32100'", "default"],
        [LISTEN, "", "", "server.listen", "'[::1]:1'", "my.toml:2"],
        [LISTEN, VARIABLE, "", "server.listen", "'[::1]:2'", "environment SAGITTA_SERVER_LISTEN"],
        [LISTEN, VARIABLE, "--listen [::1]:3", "server.listen", "'[::1]:3'", "flag --listen"],
        [LISTEN, "", "--listen [::1]:3", "server.listen", "'[::1]:3'", "flag --listen"],
        ["", VARIABLE, "--listen [::1]:3", "server.listen", "'[::1]:3'", "flag --listen"],
        ["", "", "--set server.listen=localhost:4", "server.listen", "'127.0.0.1:4'", "flag --set"],
        ["data = 'there'", "", "", "data", "'there'", "my.toml:1"],
        ["data = 'there'", "SAGITTA_DATA=memory:", "", "data", "'memory:'", "environment SAGITTA_DATA"],
        ["", "SAGITTA_DATA=memory:", "--data d", "data", "'d'", "flag --data"],
        ["memory_limit = '2G'", "", "", "memory_limit", "'2G'", "my.toml:1"],
        ["", "", "--memory-limit 1.5G", "memory_limit", "'1536M'", "flag --memory-limit"],
        ["threads = 3", "SAGITTA_THREADS=none", "", "threads", "'none'", "environment SAGITTA_THREADS"],
        ["threads = 3", "SAGITTA_THREADS=", "", "threads", "3", "my.toml:1"],
        ["[limits]\n\n# many\nstatements_max = 8", "", "", "limits.statements_max", "8", "my.toml:4"],
        ["limits = { queue_time_max = '1h30m' }", "", "", "limits.queue_time_max", "'90m'", "my.toml:1"],
        ["limits.rows_max = 1_000", "", "", "limits.rows_max", "1000", "my.toml:1"],
        ["server.http = 'none'", "", "", "server.http", "'none'", "my.toml:1"],
        [
            "server.auth = true",
            "SAGITTA_SERVER_AUTH=off",
            "",
            "server.auth",
            "false",
            "environment SAGITTA_SERVER_AUTH",
        ],
        ["server.auth = false", "SAGITTA_SERVER_AUTH=off", "--auth", "server.auth", "true", "flag --auth"],
        [
            "[server]\nallowed_roots = ['/a',\n 's3://b']",
            "",
            "",
            "server.allowed_roots",
            "['/a', 's3://b']",
            "my.toml:2",
        ],
        ["", ROOTS, "", "server.allowed_roots", "['/a', 's3://b']", "environment SAGITTA_SERVER_ALLOWED_ROOTS"],
        [
            "",
            ROOTS,
            "--allowed-root /c --allowed-root /d",
            "server.allowed_roots",
            "['/c', '/d']",
            "flag --allowed-root",
        ],
        ["", "SAGITTA_LOG=debug", "", "log.filter", "'debug'", "environment SAGITTA_LOG"],
        [
            "",
            "SAGITTA_LOG=debug; SAGITTA_LOG_FILTER=warn",
            "",
            "log.filter",
            "'warn'",
            "environment SAGITTA_LOG_FILTER",
        ],
    ];
    for [file, environment, words, name, value, origin] in cases {
        let given = format!("{file:?} {environment:?} {words:?}");
        let config = configured_by(file, environment, words).unwrap_or_else(|error| panic!("{given}: {error}"));
        let key = KEYS.iter().find(|key| key.name == name).unwrap();
        assert_eq!(key.show(&mut config.settings.clone()).to_string().replace('"', "'"), value, "{given}");
        assert_eq!(config.origin(name).to_string(), origin, "{given}");
    }
}

#[test]
fn options_of_the_object_store_come_from_everywhere() {
    let config = configured(
        "[storage]\naws_region = \"a\"\naws_endpoint = \"b\"\nallow_http = true",
        &[("SAGITTA_STORAGE_AWS_ENDPOINT", "c"), ("SAGITTA_STORAGE_AWS_SECRET_ACCESS_KEY", "hush")],
        &["--storage-option", "aws_region=d"],
    )
    .unwrap();
    let expected =
        [("allow_http", "true"), ("aws_endpoint", "c"), ("aws_region", "d"), ("aws_secret_access_key", "hush")];
    let storage: Vec<_> = config.settings.storage.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(storage, expected);
    assert_eq!(config.origin("storage.aws_region"), &Origin::Flag("--storage-option".to_owned()));
}

#[test]
fn what_means_nothing_is_refused_with_its_place_and_the_next_step() {
    // The file, the environment, the command line; the parts of the message, with | between them.
    let cases = [
        ["[server]\nlisten = '::1'\nlisen = ''", "", "", "my.toml:3|server.lisen|did you mean server.listen?"],
        ["[sever]\nlisten = '::1'", "", "", "my.toml:1|section sever|did you mean server?"],
        ["listen = '::1'", "", "", "my.toml:1|did you mean server.listen?"],
        ["statements_max = 1", "", "", "did you mean limits.statements_max?"],
        ["server = 5", "", "", "my.toml:1|below [server]"],
        ["[server]\nfrobnicate = 1", "", "", "server.frobnicate|sagitta config"],
        ["data = ", "", "", "my.toml:1|no TOML"],
        ["data = 'a'\ndata = 'b'", "", "", "my.toml:2|duplicate"],
        ["data = ['a']", "", "", "my.toml:1|data|found a list"],
        ["data = ''", "", "", "my.toml:1|data|empty"],
        ["server.slow_query = 30", "", "", "server.slow_query|\"30\" is no span|30s"],
        ["limits.message_bytes_max = '12K'", "", "", "12K is too little|1M"],
        ["limits.statements_max = 0", "", "", "the least is 1"],
        ["memory_limit = '63M'", "", "", "the least is 64M"],
        ["log.format = 'xml'", "", "", "xml|text or json"],
        ["server.auth = 'maybe'", "", "", "neither true nor false"],
        ["server.allowed_roots = [1]", "", "", "list of texts"],
        ["data = {}", "", "", "my.toml:1|found a table"],
        ["", "SAGITTA_SERVER_LISTN=x", "", "SAGITTA_SERVER_LISTN|did you mean SAGITTA_SERVER_LISTEN?"],
        ["", "SAGITTA_PORT=8000", "", "SAGITTA_PORT|sets nothing|unset it"],
        ["", "SAGITTA_SERVER_DRAIN=soon", "", "SAGITTA_SERVER_DRAIN|\"soon\" is no span"],
        ["", "", "--set limits.statement_max=1", "flag --set|did you mean limits.statements_max?"],
        ["", "", "--set limits.statements_max", "NAME=VALUE"],
        ["", "", "--http 8000", "flag --http|\"8000\" is no address|127.0.0.1:32101"],
        ["server.drain = 'x'\nserver.slow_query = 'y'", "", "", "my.toml:1|my.toml:2"],
    ];
    for [file, environment, words, parts] in cases {
        let message = configured_by(file, environment, words).expect_err(file);
        for part in parts.split('|') {
            assert!(message.contains(part), "{file:?} {environment:?} {words:?}: {part} is not in: {message}");
        }
    }
}

#[test]
fn variables_of_others_that_begin_like_ours_are_let_be() {
    let variables = [
        ("SAGITTA_CONFIG", "x.toml"),
        ("SAGITTA_BIN", "target/release/sagitta"),
        ("SAGITTA_SERVICE_HOST", "10.0.0.1"),
        ("SAGITTA_SERVICE_PORT_FLIGHT", "32100"),
        ("SAGITTA_PORT", "tcp://10.0.0.1:32100"),
        ("SAGITTA_PORT_32100_TCP", "tcp://10.0.0.1:32100"),
        ("SAGITTA_SERVER_PORT_32100_TCP_ADDR", "10.0.0.1"),
        ("HOME", "/home/ada"),
    ];
    assert_eq!(configured("", &variables, &[]).map(|config| config.settings), Ok(Settings::default()));
}

#[test]
fn the_shown_configuration_reads_back_and_hides_secrets() {
    let config = configured(
        "memory_limit = \"1G\"\n[server]\nallowed_roots = [\"/a \\\"b\\\"\"]\ntoken_file = \"t\"\nauth = true",
        &[("SAGITTA_LOG_FORMAT", "json"), ("SAGITTA_STORAGE_AWS_SECRET_ACCESS_KEY", "hush")],
        &[
            "--set",
            "limits.statement_time_max=90s",
            "--storage-option",
            "odd name=x",
            "--storage-option",
            "sas_token=hush",
        ],
    )
    .unwrap();
    for explain in [false, true] {
        let text = config.to_toml(explain);
        assert!(!text.contains("hush"), "{text}");
        for part in [
            "with my.toml",
            "# my.toml:4",
            "# environment SAGITTA_LOG_FORMAT",
            "# flag --set",
            "# default",
            "aws_secret_access_key = \"********\"",
            "\"odd name\" = \"x\"",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert_eq!(text.contains("SAGITTA_SERVER_LISTEN"), explain, "{text}");
        let mut again = configured(&text, &[], &[]).unwrap_or_else(|error| panic!("{error}\n{text}"));
        for option in ["aws_secret_access_key", "sas_token"] {
            again.settings.storage.insert(option.to_owned(), "hush".to_owned());
        }
        assert_eq!(again.settings, config.settings);
    }
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let flags = ServerFlags { config: Some("no/such.toml".into()), ..ServerFlags::default() };
    let message = find_file(&flags, &[]).unwrap_err();
    assert!(message.contains("no/such.toml") && message.contains("--config"), "{message}");
    let variable = [("SAGITTA_CONFIG".to_owned(), "nor/this.toml".to_owned())];
    let message = find_file(&ServerFlags::default(), &variable).unwrap_err();
    assert!(message.contains("nor/this.toml") && message.contains("SAGITTA_CONFIG"), "{message}");
}

#[test]
fn the_file_of_the_readme_is_read() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let block = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of TOML");
    let config = configured(block, &[], &[]).unwrap();
    assert!(config.settings.server.auth && config.settings.log.otlp_endpoint.is_some());
}
