//! Several sessions of one process, and several processes with several sessions each, on one table with a primary key:
//! they take turns, and no statement is lost or done twice. What single statements do is in `sql/*.slt`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use engine::arrow::array::AsArray;
use engine::arrow::datatypes::Int64Type;
use engine::{Answer, Engine, ErrorKind, Session};
use tokio::sync::Barrier;

use crate::{folder, integers, query, run};

const SESSIONS: usize = 8;
const STATEMENTS: usize = 15;

/// Processes and their sessions where several processes write.
const PROCESSES: usize = 3;
const SESSIONS_OF_PROCESS: usize = 4;

/// Names the database to a process that a test has started, and what it is to do there.
const FOLDER: &str = "SAGITTA_WRITERS_FOLDER";
const WORK: &str = "SAGITTA_WRITERS_WORK";

/// What each writer of a table does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    UpsertOne,
    Count,
    InsertOwn,
    InsertSame,
}

const ALL_WORK: [Work; 4] = [Work::UpsertOne, Work::Count, Work::InsertOwn, Work::InsertSame];

impl Work {
    fn sql(self, writer: usize, statement: usize) -> String {
        match self {
            Self::UpsertOne => format!(
                "INSERT INTO t VALUES (1, {statement}, 'writer {writer}') \
                 ON CONFLICT (id) DO UPDATE SET n = excluded.n, note = excluded.note"
            ),
            Self::Count => "UPDATE t SET n = n + 1 WHERE id = 1".to_owned(),
            Self::InsertOwn => {
                format!(
                    "INSERT INTO t VALUES ({}, {statement}, 'writer {writer}')",
                    100 + writer * STATEMENTS + statement
                )
            }
            Self::InsertSame => format!("INSERT INTO t VALUES ({}, {writer}, 'one of all')", 100 + statement),
        }
    }

    /// Runs one writer's statements; how many were done. Keys that others took are no failure where all want them.
    async fn run(self, session: Session, writer: usize) -> usize {
        let mut done = 0;
        for statement in 0..STATEMENTS {
            let sql = self.sql(writer, statement);
            match session.execute(&sql).await {
                Ok(Answer::Done(answer)) => {
                    assert_eq!(answer.rows, Some(1), "{sql}");
                    done += 1;
                }
                Ok(Answer::Rows(_)) => panic!("{sql} gives no rows"),
                Err(error) if self == Self::InsertSame => {
                    assert_eq!(error.kind, ErrorKind::AlreadyExists, "{sql}: {error}");
                    assert!(error.message.contains(&(100 + statement).to_string()), "the key is not named: {error}");
                }
                Err(error) => panic!("{sql}: {error}"),
            }
        }
        done
    }

    /// Checks what `writers` writers leave, of whom all together did `done` statements.
    async fn check(self, session: &Session, writers: usize, done: usize) {
        let all = writers * STATEMENTS;
        let one = |sql: &'static str| async move { integers(&query(session, sql).await) };
        match self {
            Self::UpsertOne => {
                assert_eq!(done, all);
                assert_eq!(
                    one("SELECT n FROM t").await,
                    [STATEMENTS as i64 - 1],
                    "one row, of some writer's last statement"
                );
            }
            Self::Count => {
                assert_eq!(done, all);
                assert_eq!(one("SELECT n FROM t").await, [all as i64]);
            }
            Self::InsertOwn => {
                assert_eq!(done, all);
                let expected: Vec<i64> = std::iter::once(1).chain(100..100 + all as i64).collect();
                assert_eq!(one("SELECT id FROM t ORDER BY id").await, expected);
            }
            Self::InsertSame => {
                assert_eq!(done, STATEMENTS, "each key has one winner");
                let expected: Vec<i64> = std::iter::once(1).chain(100..100 + STATEMENTS as i64).collect();
                assert_eq!(one("SELECT id FROM t ORDER BY id").await, expected);
            }
        }
        check_history(session).await;
    }
}

/// No version is missing, and each is later than the one before.
async fn check_history(session: &Session) {
    let sql = "SELECT version, CAST(committed_at AS BIGINT) FROM table_history('t') ORDER BY version";
    let history = query(session, sql).await;
    let versions = integers(&history);
    let times: Vec<i64> =
        history.iter().flat_map(|batch| batch.column(1).as_primitive::<Int64Type>().values().to_vec()).collect();
    assert!(versions.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{versions:?}");
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
}

async fn table(session: &Session) {
    run(session, "CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, note TEXT)").await;
    run(session, "INSERT INTO t VALUES (1, 0, 'start')").await;
}

/// Runs the writers of one process, all from one moment on; how many statements they did.
async fn write_at_once(engine: &Engine, work: Work, writers: std::ops::Range<usize>) -> usize {
    let start = Arc::new(Barrier::new(writers.len()));
    let tasks: Vec<_> = writers
        .map(|writer| {
            let (session, start) = (engine.session(), Arc::clone(&start));
            tokio::spawn(async move {
                start.wait().await;
                work.run(session, writer).await
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_one_process_take_turns() {
    for work in ALL_WORK {
        let scratch = tempfile::tempdir().unwrap();
        let engine = folder(&scratch.path().join("data")).await;
        table(&engine.session()).await;
        let done = write_at_once(&engine, work, 0..SESSIONS).await;
        work.check(&engine.session(), SESSIONS, done).await;
        drop(engine);
        // What another process would find.
        let again = folder(&scratch.path().join("data")).await;
        work.check(&again.session(), SESSIONS, done).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_several_processes_take_turns() {
    for work in ALL_WORK {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("data");
        table(&folder(&path).await.session()).await;
        let children: Vec<_> = (0..PROCESSES)
            .map(|process| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "writers::one_of_several_processes", "--nocapture"])
                    .env(FOLDER, &path)
                    .env(WORK, format!("{work:?} {process}"))
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let mut done = 0;
        for child in children {
            let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}");
            done += did(&said);
        }
        work.check(&folder(&path).await.session(), PROCESSES * SESSIONS_OF_PROCESS, done).await;
    }
}

/// How many statements a process said that it did.
fn did(said: &str) -> usize {
    let words: Vec<&str> = said.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "writers-did").expect("the process says what it did");
    words[at + 1].parse().unwrap()
}

/// The work of a process that the test above starts; alone it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_processes() {
    let (Ok(path), Ok(what)) = (std::env::var(FOLDER), std::env::var(WORK)) else { return };
    let (name, process) = what.split_once(' ').unwrap();
    let work = ALL_WORK.into_iter().find(|work| format!("{work:?}") == name).unwrap();
    let process: usize = process.parse().unwrap();
    let engine = folder(Path::new(&path)).await;
    let writers = process * SESSIONS_OF_PROCESS..(process + 1) * SESSIONS_OF_PROCESS;
    let done = write_at_once(&engine, work, writers).await;
    println!("\nwriters-did {done}\n");
}
