//! Users and rights where SQL does not reach: logging in, several engines, completion, what `Debug` shows. The rest is in
//! `sql/users.slt`.

use engine::{Engine, ErrorKind, ImportMode, ImportOptions, Session};

use super::{folder, integers, memory, query, run};

async fn kind(session: &Session, sql: &str) -> Option<ErrorKind> {
    match session.execute(sql).await {
        Ok(engine::Answer::Rows(rows)) => rows.collect().await.err().map(|error| error.kind),
        Ok(engine::Answer::Done(_)) => None,
        Err(error) => Some(error.kind),
    }
}

async fn with_users() -> Engine {
    let engine = Engine::open("memory:", engine::EngineOptions::default()).await.unwrap();
    let owner = engine.session();
    run(&owner, "CREATE SCHEMA secret").await;
    run(&owner, "CREATE TABLE secret.plans (id BIGINT, hidden_column TEXT)").await;
    run(&owner, "CREATE TABLE open (id BIGINT, emb VECTOR(2))").await;
    run(&owner, "CREATE USER anna PASSWORD 'correct horse'").await;
    run(&owner, "GRANT READ ON SCHEMA public TO anna").await;
    engine
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_known_by_their_passwords() {
    let engine = Engine::open("memory:", engine::EngineOptions::default()).await.unwrap();
    assert!(!engine.has_users().await.unwrap());
    let owner = engine.session();
    run(&owner, "CREATE USER anna PASSWORD 'correct horse'").await;
    assert!(engine.has_users().await.unwrap());
    let good = |user: &'static str, password: &'static str| {
        let engine = engine.clone();
        async move { engine.verify_password(user, password).await.unwrap() }
    };
    assert!(good("anna", "correct horse").await);
    for (user, password) in
        [("anna", "Correct horse"), ("anna", ""), ("Anna", "correct horse"), ("bert", "x"), ("", "")]
    {
        assert!(!good(user, password).await, "{user} {password}");
    }
    let anna = engine.session_as("anna").await.unwrap();
    assert_eq!((anna.user(), owner.user()), (Some("anna"), None));
    run(&anna, "ALTER USER anna PASSWORD 'battery staple'").await;
    assert!(!good("anna", "correct horse").await && good("anna", "battery staple").await);
    let missing = engine.session_as("bert").await.err();
    assert_eq!(missing.map(|error| error.kind), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn a_right_that_is_missing_is_told_from_a_name_that_is() {
    let engine = with_users().await;
    let anna = engine.session_as("anna").await.unwrap();
    for (sql, expected) in [
        ("SELECT * FROM open", None),
        ("INSERT INTO open (id) VALUES (1)", Some(ErrorKind::Forbidden)),
        ("DROP TABLE open", Some(ErrorKind::Forbidden)),
        ("CREATE SCHEMA mine", Some(ErrorKind::Forbidden)),
        ("CREATE USER bert PASSWORD 'x'", Some(ErrorKind::Forbidden)),
        ("SELECT * FROM secret.plans", Some(ErrorKind::NotFound)),
        ("INSERT INTO secret.plans (id) VALUES (1)", Some(ErrorKind::NotFound)),
        ("DROP TABLE secret.plans", Some(ErrorKind::NotFound)),
        ("GRANT READ ON SCHEMA secret TO anna", Some(ErrorKind::NotFound)),
        ("SELECT * FROM vector_search('secret.plans', 'emb', [1, 0], k => 1)", Some(ErrorKind::NotFound)),
        ("SELECT * FROM table_changes('secret.plans', 1, 2)", Some(ErrorKind::NotFound)),
        ("CHECK TABLE secret.plans", Some(ErrorKind::NotFound)),
        ("VACUUM secret.plans", Some(ErrorKind::NotFound)),
        ("CHECK TABLE open", None),
    ] {
        assert_eq!(kind(&anna, sql).await, expected, "{sql}");
    }
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/fruits.csv");
    for (table, mode, expected) in [
        ("new", ImportMode::Create, ErrorKind::Forbidden),
        ("open", ImportMode::Append, ErrorKind::Forbidden),
        ("secret.plans", ImportMode::Append, ErrorKind::NotFound),
        ("secret.plans", ImportMode::Replace, ErrorKind::NotFound),
        ("secret.plans", ImportMode::CreateOrAppend, ErrorKind::NotFound),
    ] {
        let options = ImportOptions { sources: vec![fixture.into()], table: table.into(), format: None, mode };
        let error = anna.import(options, Default::default()).await.unwrap_err();
        assert_eq!(error.kind, expected, "{table} {mode:?}: {error}");
    }
}

#[tokio::test]
async fn completion_knows_no_more_than_its_user() {
    let engine = with_users().await;
    let words = format!("{:?}", engine.session_as("anna").await.unwrap().vocabulary().await.unwrap());
    assert!(words.contains("\"open\"") && words.contains("\"emb\""), "{words}");
    assert!(!words.contains("secret") && !words.contains("plans") && !words.contains("hidden_column"), "{words}");
    let words = format!("{:?}", engine.session().vocabulary().await.unwrap());
    assert!(words.contains("hidden_column") && words.contains("GRANT"), "{words}");
}

#[tokio::test]
async fn rights_that_another_engine_changes_hold_from_the_next_statement_on() {
    let place = tempfile::tempdir().unwrap();
    let (one, two) = (folder(place.path()).await, folder(place.path()).await);
    let owner = one.session();
    run(&owner, "CREATE TABLE t AS SELECT 1 AS id").await;
    run(&owner, "CREATE USER anna PASSWORD 'x'").await;
    let anna = two.session_as("anna").await.unwrap();
    let read = anna.prepare("SELECT id FROM t").await;
    assert!(read.is_err_and(|error| error.kind == ErrorKind::NotFound));
    run(&owner, "GRANT READ ON SCHEMA public TO anna").await;
    let read = anna.prepare("SELECT id FROM t").await.unwrap();
    assert_eq!(integers(&super::rows(read.run(&[]).await.unwrap()).await), [1]);
    run(&owner, "REVOKE READ ON SCHEMA public FROM anna").await;
    assert!(read.run(&[]).await.is_err_and(|error| error.kind == ErrorKind::NotFound));
    run(&owner, "ALTER USER anna ADMIN").await;
    assert_eq!(integers(&query(&anna, "SELECT id FROM t").await), [1]);
    run(&owner, "CREATE USER root PASSWORD 'x' ADMIN").await;
    run(&owner, "DROP USER anna").await;
    assert_eq!(kind(&anna, "SELECT id FROM t").await, Some(ErrorKind::Forbidden));
}

#[tokio::test]
async fn a_statement_shows_no_password() {
    let session = memory().await;
    let statements = session.parse("CREATE USER anna PASSWORD 'hunter2'; SELECT 1").unwrap();
    assert!(!format!("{statements:?}").contains("hunter2"), "{statements:?}");
    assert_eq!(statements[0].text(), "CREATE USER anna PASSWORD '***'");
    assert_eq!(statements[1].text(), "SELECT 1");
    assert_eq!(statements[1].range(), 37..45);
}
