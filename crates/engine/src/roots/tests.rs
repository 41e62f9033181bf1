//! Tests of the allowed roots: every way to write a path that leads out of them.

use std::os::unix::fs::symlink;

use super::*;
use crate::{Engine, EngineOptions, ImportMode, ImportOptions, Progress, Session};

/// `inner`, `inner-other`, `outside` and the database `inner/db` in a temporary folder, and the roots of it.
struct World {
    folder: tempfile::TempDir,
    roots: AllowedRoots,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["inner/sub", "inner/db/_catalog", "inner-other", "outside/deep"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        for name in
            ["inner/a.csv", "inner/sub/b.csv", "inner/a[1].csv", "inner/db/c.csv", "inner-other/d.csv", "outside/e.csv"]
        {
            std::fs::write(folder.path().join(name), "id\n1\n").unwrap();
        }
        symlink(folder.path().join("outside"), folder.path().join("inner/out")).unwrap();
        symlink(folder.path().join("outside/e.csv"), folder.path().join("inner/e.csv")).unwrap();
        symlink(folder.path().join("outside/not yet"), folder.path().join("inner/later")).unwrap();
        symlink(folder.path().join("inner/sub"), folder.path().join("inner/in")).unwrap();
        let inner = folder.path().join("inner").display().to_string();
        let database = folder.path().join("inner/db").display().to_string();
        let roots = AllowedRoots::new(&[inner, "s3://Bucket/data/".into(), "S3://plain".into()]).unwrap();
        let roots = roots.without(&database).unwrap();
        Self { folder, roots }
    }

    /// The text with `~` for the temporary folder.
    fn text(&self, text: &str) -> String {
        text.replace('~', &self.folder.path().display().to_string())
    }

    fn check(&self, text: &str, expected: Option<&str>) {
        let text = self.text(text);
        let found = self.roots.source(&text);
        assert_eq!(found.as_ref().ok(), expected.map(|expected| self.text(expected)).as_ref(), "{text}");
        if let Err(error) = found {
            assert_eq!(error.kind, ErrorKind::Forbidden);
            let shown = error.to_string().replace(&text, "");
            assert!(shown.contains("allowed_roots") && !shown.contains("outside"), "{error}");
        }
    }
}

#[test]
fn paths_are_compared_in_one_spelling() {
    let world = World::new();
    for (text, expected) in [
        ("~/inner/a.csv", Some("~/inner/a.csv")),
        ("~/inner//./sub/../a.csv", Some("~/inner/a.csv")),
        ("~/inner", Some("~/inner")),
        ("~/inner/sub/", Some("~/inner/sub/")),
        ("~/inner/in/b.csv", Some("~/inner/sub/b.csv")),
        ("~/inner/new/file.csv", Some("~/inner/new/file.csv")),
        ("file://~/inner/a.csv", Some("~/inner/a.csv")),
        ("FILE://~/inner/%61.csv", Some("~/inner/a.csv")),
        (" file://localhost~/inner/a.csv ", Some("~/inner/a.csv")),
        // A percent sign in a path is one.
        ("~/inner/%2e%2e/x.csv", Some("~/inner/%2e%2e/x.csv")),
        // `..` goes back by what is written, so that no answer tells whether `outside` exists.
        ("~/outside/../inner/a.csv", Some("~/inner/a.csv")),
        ("~/nowhere/../inner/a.csv", Some("~/inner/a.csv")),
        ("~/inner/out/../a.csv", Some("~/inner/a.csv")),
        ("/etc/passwd", None),
        ("/", None),
        ("", None),
        ("a.csv", None),
        ("~", None),
        ("~/outside/e.csv", None),
        ("~/outside/nothing.csv", None),
        ("~/inner/../outside/e.csv", None),
        ("~/inner/../../../../../../etc/passwd", None),
        ("~/inner-other/d.csv", None),
        ("~/inner/e.csv", None),
        ("~/inner/out/e.csv", None),
        ("~/inner/out/nothing.csv", None),
        ("~/inner/later", None),
        ("~/inner/later/x.csv", None),
        ("~/inner/a.csv/x.csv", None),
        ("~/inner/a\0.csv", None),
        ("file://~/inner/../outside/e.csv", None),
        ("file://~/inner/%2e%2e/outside/e.csv", None),
        ("file://~/inner/..%2foutside/e.csv", None),
        ("file://~/inner/a.csv?x", None),
        ("file://~/inner/a.csv#x", None),
        ("file://elsewhere~/inner/a.csv", None),
        ("fiLE://~/outside/e.csv", None),
        ("file-object-store://~/inner/a.csv", None),
        ("~/x://../../outside/e.csv", None),
        ("http://example.com~/inner/a.csv", None),
    ] {
        world.check(text, expected);
    }
}

#[test]
fn the_database_itself_is_never_under_a_root() {
    let world = World::new();
    for text in [
        "~/inner/db",
        "~/inner/db/",
        "~/inner/db/c.csv",
        "~/inner/sub/../db/_catalog/x.json",
        "file://~/inner/db/c.csv",
    ] {
        world.check(text, None);
        assert!(world.roots.target(&world.text(text)).is_err(), "{text}");
    }
    let remote = AllowedRoots::new(&["s3://b".into()]).unwrap().without("s3://b/data/db").unwrap();
    for (text, is_allowed) in [
        ("s3://b/data/db", false),
        ("s3://b/data/db/_catalog/1.json", false),
        ("s3://b/data/d%62/x.parquet", false),
        ("s3://b/data//db/x.parquet", false),
        // A prefix would be read with all that is below it.
        ("s3://b/data", false),
        ("s3://b/", false),
        ("s3://b/data/db2/x.parquet", true),
        ("s3://b/other/", true),
    ] {
        assert_eq!(remote.source(text).is_ok(), is_allowed, "{text}");
    }
}

#[test]
fn urls_are_compared_part_by_part() {
    let world = World::new();
    for (text, expected) in [
        ("s3://Bucket/data/a.parquet", Some("s3://Bucket/data/a.parquet")),
        ("S3://Bucket//data/./a%20b.parquet", Some("s3://Bucket/data/a%20b.parquet")),
        ("s3://Bucket/other/../data/x/", Some("s3://Bucket/data/x/")),
        ("s3://Bucket/d%61ta/x.csv", Some("s3://Bucket/d%61ta/x.csv")),
        ("s3://plain/anything.csv", Some("s3://plain/anything.csv")),
        ("s3://plain", Some("s3://plain/")),
        ("s3://Bucket/", None),
        ("s3://Bucket/database/x.csv", None),
        ("s3://Bucket/data/../x.csv", None),
        ("s3://Bucket/data/%2e%2e/x.csv", None),
        ("s3://Bucket/data/%2E./x.csv", None),
        ("s3://Bucket/data%2f..%2fx.csv", None),
        ("s3://Bucket/data/%ff/x.csv", None),
        ("s3://Bucket/data/x.csv?y", None),
        ("s3://Bucket:80/data/x.csv", None),
        ("s3://u:p@Bucket/data/x.csv", None),
        ("s3://bucket/data/x.csv", None),
        ("s3://%42ucket/data/x.csv", None),
        ("s3:///data/x.csv", None),
        ("gs://plain/x.csv", None),
        ("http://169.254.169.254/latest/meta-data", None),
    ] {
        world.check(text, expected);
    }
}

#[test]
fn patterns_begin_under_a_root() {
    let world = World::new();
    for (text, expected) in [
        ("~/inner/*.csv", Some("~/inner/*.csv")),
        ("~/inner/**/b?.csv", Some("~/inner/**/b?.csv")),
        ("~/inner/in/*.csv", Some("~/inner/sub/*.csv")),
        ("~/inner/a[1].csv", Some("~/inner/a[1].csv")),
        ("~/inner/*/../a.csv", Some("~/inner/a.csv")),
        ("~/*/e.csv", None),
        ("~/inner*/d.csv", None),
        ("~/inner/out/*.csv", None),
        ("~/inner/*/../../outside/*.csv", None),
        ("~/inner/db/*.csv", None),
    ] {
        world.check(text, expected);
    }
    assert!(world.roots.check_found(&world.folder.path().join("inner/a.csv")).is_ok());
    for found in ["inner/e.csv", "inner/out/e.csv", "inner/db/c.csv"] {
        assert!(world.roots.check_found(&world.folder.path().join(found)).is_err(), "{found}");
    }
}

#[test]
fn targets_need_not_exist_and_are_no_patterns() {
    let world = World::new();
    for (text, expected) in [
        ("~/inner/new.csv", Some("file://~/inner/new.csv")),
        ("~/inner/new/deeper/x.csv", Some("file://~/inner/new/deeper/x.csv")),
        ("~/inner/*.csv", Some("file://~/inner/*.csv")),
        ("~/inner/sub", Some("file://~/inner/sub/")),
        ("~/inner/new/", Some("file://~/inner/new/")),
        ("s3://Bucket/data/x.csv", Some("s3://Bucket/data/x.csv")),
        ("~/outside/new.csv", None),
        ("~/inner/out/new.csv", None),
        ("~/inner/later", None),
        ("~/inner/e.csv", None),
        ("~/inner-other/new.csv", None),
        ("~/inner/../new.csv", None),
        ("s3://Bucket/x.csv", None),
    ] {
        let found = world.roots.target(&world.text(text)).ok();
        assert_eq!(found, expected.map(|expected| world.text(expected)), "{text}");
    }
}

#[test]
fn options_of_stores_lead_to_no_other_server() {
    let roots = AllowedRoots::new(&[]).unwrap();
    for (key, value, is_allowed) in [
        ("access_key_id", "k", true),
        ("AWS_SECRET_ACCESS_KEY", "s/+=", true),
        ("region", "eu-central-1", true),
        ("region", "evil.example/", false),
        ("aws_region", "x@evil.example#", false),
        ("endpoint", "http://evil.example", false),
        ("aws_endpoint_url_s3", "http://evil.example", false),
        ("allow_http", "true", false),
        ("proxy_url", "http://evil.example", false),
        ("metadata_endpoint", "http://evil.example", false),
        ("aws_web_identity_token_file", "/etc/passwd", false),
        ("container_credentials_full_uri", "http://evil.example", false),
    ] {
        let options = [(key.to_owned(), value.to_owned())];
        assert_eq!(roots.check_options(&options).is_ok(), is_allowed, "{key} = {value}");
    }
}

#[test]
fn roots_are_folders_or_urls() {
    for bad in ["", "  ", "s3://", "file://host/x"] {
        assert!(AllowedRoots::new(&[bad.into()]).is_err(), "{bad:?}");
    }
    assert!(
        AllowedRoots::new(&["/no-such-folder/at all".into()]).unwrap().source("/no-such-folder/at all/x.csv").is_ok()
    );
}

/// What becomes of a statement where `inner` is allowed.
const STATEMENTS: &[(&str, Option<ErrorKind>)] = &[
    ("COPY t FROM '~/inner/a.csv'", None),
    ("COPY t FROM '~/inner/sub/'", None),
    ("COPY t FROM '~/inner/a*.csv'", None),
    ("SELECT * FROM '~/inner/a.csv'", None),
    ("COPY t TO '~/inner/new/x.parquet'", None),
    ("COPY t TO 'file://~/inner/y%20z.csv'", None),
    ("SELECT * FROM '~/inner/y z.csv'", None),
    ("CREATE EXTERNAL TABLE good STORED AS CSV LOCATION '~/inner/sub/b.csv'", None),
    ("SELECT * FROM good", None),
    ("SELECT * FROM '~/inner/nothing.csv'", Some(ErrorKind::NotFound)),
    ("SELECT * FROM '~/outside/e.csv'", Some(ErrorKind::Forbidden)),
    ("SELECT * FROM '~/outside/nothing.csv'", Some(ErrorKind::Forbidden)),
    ("SELECT * FROM '~/outside/nothing.lance'", Some(ErrorKind::Forbidden)),
    ("SELECT * FROM '~/inner/e.csv'", Some(ErrorKind::Forbidden)),
    ("SELECT * FROM '~/outside/*.csv'", Some(ErrorKind::Forbidden)),
    // The folder and the pattern hold a link that leads out.
    ("COPY t FROM '~/inner/' STORED AS CSV", Some(ErrorKind::Forbidden)),
    ("COPY t FROM '~/inner/*.csv'", Some(ErrorKind::Forbidden)),
    ("COPY t FROM '~/inner/*/e.csv'", Some(ErrorKind::Forbidden)),
    ("COPY t FROM '~/outside/e.csv'", Some(ErrorKind::Forbidden)),
    ("COPY t FROM 'FILE://~/outside/e.csv'", Some(ErrorKind::Forbidden)),
    ("COPY t TO '~/outside/x.csv'", Some(ErrorKind::Forbidden)),
    ("COPY t TO '~/inner/out/x.csv'", Some(ErrorKind::Forbidden)),
    ("COPY t TO '~/inner/data/_catalog/x.json'", Some(ErrorKind::Forbidden)),
    ("COPY t FROM '~/inner/data/_catalog/'", Some(ErrorKind::Forbidden)),
    ("CREATE EXTERNAL TABLE bad STORED AS CSV LOCATION '~/outside/e.csv'", Some(ErrorKind::Forbidden)),
    ("CREATE EXTERNAL TABLE bad STORED AS LANCE LOCATION '~/outside/x.lance'", Some(ErrorKind::Forbidden)),
    ("CREATE EXTERNAL TABLE bad STORED AS LANCE LOCATION 's3://bucket/x.lance'", Some(ErrorKind::Forbidden)),
    (
        "CREATE EXTERNAL TABLE bad STORED AS LANCE LOCATION '~/inner/x.lance' OPTIONS ('endpoint' 'http://localhost:1')",
        Some(ErrorKind::Forbidden),
    ),
];

async fn kind(session: &Session, sql: &str) -> Option<ErrorKind> {
    match session.execute(sql).await {
        Err(error) => Some(error.kind),
        Ok(crate::Answer::Rows(rows)) => rows.collect().await.err().map(|error| error.kind),
        Ok(crate::Answer::Done(_)) => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_reads_or_writes_outside_of_the_roots() {
    let world = World::new();
    let inner = world.text("~/inner");
    let database = world.text("~/inner/data");
    let options = EngineOptions { allowed_roots: Some(vec![inner]), ..EngineOptions::default() };
    let engine = Engine::open(&database, options).await.unwrap();
    let session = engine.session();
    session.execute("CREATE TABLE t (id BIGINT)").await.unwrap();
    for (sql, expected) in STATEMENTS {
        let sql = world.text(sql);
        assert_eq!(kind(&session, &sql).await, *expected, "{sql}");
    }
    let import = |source: &str| ImportOptions {
        sources: vec![world.text(source)],
        table: "u".into(),
        format: None,
        mode: ImportMode::CreateOrAppend,
    };
    let refused = session.import(import("~/outside/e.csv"), Default::default()).await;
    assert!(refused.is_err_and(|error| error.kind == ErrorKind::Forbidden));
    assert_eq!(session.import(import("~/inner/a.csv"), std::sync::Arc::<Progress>::default()).await.unwrap(), 1);
    assert!(!world.folder.path().join("outside/x.csv").exists());

    // What was stored when more was allowed is checked again.
    drop(session);
    let options =
        EngineOptions { allowed_roots: Some(vec![world.text("~/inner/sub/deeper")]), ..EngineOptions::default() };
    let session = Engine::open(&database, options).await.unwrap().session();
    assert_eq!(kind(&session, "SELECT * FROM good").await, Some(ErrorKind::Forbidden));
    let session = Engine::open(&database, EngineOptions::default()).await.unwrap().session();
    assert_eq!(kind(&session, "SELECT * FROM good").await, None);
    assert_eq!(kind(&session, &world.text("SELECT * FROM '~/outside/e.csv'")).await, None);
}
