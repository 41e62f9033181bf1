//! The engine under test: runs statements, keeps the trace of the last ones, and compares what is there with the model.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use engine::{Answer, Done, Engine, EngineOptions, Error, ErrorKind, Session};

use crate::model::{Column, Model, State, Table, Which, difference};
use crate::random::Random;
use crate::statement::{Effect, Expected, Statement};
use crate::value::{Kind, Value, rows_of};

/// The outcome of a check: what differs, in words.
pub type Check<T = ()> = Result<T, String>;

/// Statements that a failure shows.
const TRACE_MAX: usize = 20;
/// Rows of a difference that a failure shows, for each side.
const ROWS_SHOWN: usize = 20;
/// Bytes of a statement that a failure shows.
const SQL_SHOWN: usize = 2000;

/// What a run did.
#[derive(Default)]
pub struct Figures {
    pub statements: u64,
    pub refused: u64,
    pub heads: u64,
    /// Comparisons of older versions, in full.
    pub versions: u64,
    pub searches: u64,
    pub reopened: u64,
}

/// What a statement answered.
pub enum Outcome {
    Rows { names: Vec<String>, rows: Vec<Vec<Value>> },
    Done(Done),
    Failed(Error),
}

pub struct Driver {
    path: PathBuf,
    session: Session,
    trace: VecDeque<String>,
    pub random: Random,
    pub model: Model,
    pub figures: Figures,
}

impl Driver {
    /// Opens a new database in the folder and makes the tables.
    pub async fn open(path: PathBuf, random: Random) -> Check<Self> {
        let session = open(&path).await?;
        let [docs, log] = ["docs", "log"].map(|name| Table::new(name, name == "docs", vec![], 0));
        let model = Model { docs, log };
        let mut driver = Self { path, session, trace: VecDeque::new(), random, model, figures: Figures::default() };
        driver.renew().await?;
        Ok(driver)
    }

    /// The database as another process would find it.
    pub async fn reopen(&mut self) -> Check {
        self.note("-- the engine is dropped and the folder opened again".to_owned());
        // The old engine goes before the new one comes.
        let nowhere = Engine::open("memory:", EngineOptions::default()).await.map_err(|error| error.to_string())?;
        self.session = nowhere.session();
        self.session = open(&self.path).await?;
        self.figures.reopened += 1;
        Ok(())
    }

    /// New tables in place of the old ones: a run of any length needs a bounded number of versions.
    pub async fn renew(&mut self) -> Check {
        for sql in [
            "DROP VIEW IF EXISTS docs_ids",
            "DROP TABLE IF EXISTS docs",
            "DROP TABLE IF EXISTS log",
            "CREATE TABLE docs (id BIGINT PRIMARY KEY, tenant INT, body TEXT, score DOUBLE, emb VECTOR(4))",
            "CREATE TABLE log (ref BIGINT, n INT, note TEXT, weight DOUBLE, place VECTOR(4))",
            "CREATE VIEW docs_ids AS SELECT id FROM docs",
        ] {
            if let Outcome::Failed(error) = self.ask(sql).await {
                return Err(format!("{sql}: {error}"));
            }
        }
        let kinds = [Kind::BigInt, Kind::Int, Kind::Text, Kind::Double, Kind::Vector];
        for (name, columns) in
            [("docs", ["id", "tenant", "body", "score", "emb"]), ("log", ["ref", "n", "note", "weight", "place"])]
        {
            let newest = self.query(&format!("SELECT max(version) FROM table_history('{name}')")).await?;
            let version = newest[0][0].int().ok_or("a new table has no version")? as u64;
            let columns = columns.iter().zip(kinds).map(|(name, kind)| Column::new(name, kind)).collect();
            match name {
                "docs" => self.model.docs = Table::new("docs", true, columns, version),
                _ => self.model.log = Table::new("log", false, columns, version),
            }
        }
        Ok(())
    }

    fn note(&mut self, line: String) {
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    /// The last statements and how they ended.
    pub fn trace(&self) -> String {
        self.trace.iter().map(|line| format!("  {line}\n")).collect()
    }

    /// Runs one statement to its end.
    pub async fn ask(&mut self, sql: &str) -> Outcome {
        let outcome = match self.session.execute(sql).await {
            Ok(Answer::Done(done)) => Outcome::Done(done),
            Ok(Answer::Rows(rows)) => {
                let names = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
                match rows.collect().await.map(|batches| rows_of(&batches)) {
                    Ok(Ok(rows)) => Outcome::Rows { names, rows },
                    Ok(Err(problem)) => Outcome::Failed(Error::new(ErrorKind::Internal, problem)),
                    Err(error) => Outcome::Failed(error),
                }
            }
            Err(error) => Outcome::Failed(error),
        };
        self.figures.statements += 1;
        let said = match &outcome {
            Outcome::Rows { rows, .. } => format!("{} rows", rows.len()),
            Outcome::Done(done) => format!("{} {:?}", done.tag, done.rows),
            Outcome::Failed(error) => format!("{:?}: {error}", error.kind),
        };
        self.note(format!("{}; -- {said}", shortened(sql)));
        outcome
    }

    /// The rows of a query.
    pub async fn query(&mut self, sql: &str) -> Check<Vec<Vec<Value>>> {
        match self.ask(sql).await {
            Outcome::Rows { rows, .. } => Ok(rows),
            Outcome::Done(done) => Err(format!("{sql} answered {}, not rows", done.tag)),
            Outcome::Failed(error) => Err(format!("{sql} failed: {error}")),
        }
    }

    /// The statement must fail.
    pub async fn must_fail(&mut self, sql: &str) -> Check {
        match self.ask(sql).await {
            Outcome::Failed(error) if error.kind == ErrorKind::Internal => Err(format!("{sql} hit a mistake: {error}")),
            Outcome::Failed(_) => {
                self.figures.refused += 1;
                Ok(())
            }
            _ => Err(format!("{sql} must fail, and did not")),
        }
    }

    /// Runs a statement, checks its answer and brings the model along.
    pub async fn carry_out(&mut self, statement: Statement) -> Check {
        let Statement { which, sql, expected, effect } = statement;
        match (self.ask(&sql).await, expected) {
            (outcome, Expected::Refused(kind, part)) => {
                check_refused(&sql, &outcome, kind, &part)?;
                self.figures.refused += 1;
            }
            (Outcome::Failed(error), _) => {
                return Err(format!("the statement failed: {:?}: {error}\n{sql}", error.kind));
            }
            (Outcome::Done(done), Expected::Count(rows)) => {
                if done.rows != Some(rows) {
                    return Err(format!("the statement says {:?} rows, the model {rows}\n{sql}", done.rows));
                }
            }
            (Outcome::Rows { rows, .. }, Expected::Rows(expected)) => same_rows(&sql, &expected, &rows)?,
            (_, Expected::Any) => {}
            (Outcome::Done(done), Expected::Rows(_)) => return Err(format!("{} gave no rows\n{sql}", done.tag)),
            (Outcome::Rows { rows, .. }, Expected::Count(_)) => {
                return Err(format!("{} rows in place of a count\n{sql}", rows.len()));
            }
        }
        match effect {
            Effect::Nothing => Ok(()),
            Effect::Change(state) => {
                let table = self.model.table_mut(which);
                let version = table.version + 1;
                table.commit(Arc::new(state), version, &mut self.random);
                Ok(())
            }
            Effect::Unsure(state) => self.settle(which, Arc::new(state)).await,
        }
    }

    /// Finds out which versions a statement made, of which the newest holds `state`.
    pub async fn settle(&mut self, which: Which, state: Arc<State>) -> Check {
        let table = self.model.table(which);
        let (name, before) = (table.name, table.version);
        let mut version = before;
        loop {
            let sql = format!("SELECT count(*) FROM {name} FOR VERSION AS OF {}", version + 1);
            match self.ask(&sql).await {
                Outcome::Rows { .. } => version += 1,
                Outcome::Failed(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Invalid) => break,
                Outcome::Failed(error) => return Err(format!("{sql} failed: {:?}: {error}", error.kind)),
                Outcome::Done(done) => return Err(format!("{sql} answered {}", done.tag)),
            }
        }
        let is_changed = {
            let head = &self.model.table(which).head;
            !head.is_like(&state) || !same(&values(head), &values(&state))
        };
        if version == before && is_changed {
            return Err(format!("a change of {name} made no version after {before}"));
        }
        if version > before {
            self.model.table_mut(which).commit(state, version, &mut self.random);
        }
        Ok(())
    }

    /// Compares a table in full with what the model says it holds; `moment`: the clause behind its name.
    pub async fn compare(&mut self, which: Which, moment: &str, state: &State) -> Check {
        let name = self.model.table(which).name;
        let sql = format!("SELECT * FROM {name} {moment}");
        let Outcome::Rows { names, rows } = self.ask(sql.trim()).await else {
            return Err(format!("{sql} gave no rows"));
        };
        if names != state.names() {
            return Err(format!("{sql}\ncolumns: found {names:?}\nexpected {:?}", state.names()));
        }
        same_rows(&sql, &values(state), &rows)
    }

    /// Compares the newest version of a table in full.
    pub async fn compare_head(&mut self, which: Which) -> Check {
        let state = Arc::clone(&self.model.table(which).head);
        self.figures.heads += 1;
        self.compare(which, "", &state).await
    }
}

async fn open(path: &std::path::Path) -> Check<Session> {
    let location = path.to_str().ok_or("a folder whose name is no text")?;
    let engine = Engine::open(location, EngineOptions::default()).await;
    Ok(engine.map_err(|error| format!("{location} does not open: {error}"))?.session())
}

fn shortened(sql: &str) -> String {
    match sql.char_indices().nth(SQL_SHOWN) {
        Some((end, _)) => format!("{} … ({} bytes)", &sql[..end], sql.len()),
        None => sql.to_owned(),
    }
}

fn check_refused(sql: &str, outcome: &Outcome, kind: Option<ErrorKind>, part: &str) -> Check {
    let Outcome::Failed(error) = outcome else { return Err(format!("the statement must fail, and did not\n{sql}")) };
    let is_good_kind = kind.map_or(error.kind != ErrorKind::Internal, |kind| kind == error.kind);
    if !is_good_kind {
        return Err(format!("the error is {:?}, expected {kind:?}: {error}\n{sql}", error.kind));
    }
    if !error.message.contains(part) {
        return Err(format!("the error does not name {part}: {error}\n{sql}"));
    }
    Ok(())
}

/// The rows of a version, as a query gives them.
pub fn values(state: &State) -> Vec<Vec<Value>> {
    state.rows.iter().map(|row| row.as_ref().clone()).collect()
}

fn same(one: &[Vec<Value>], two: &[Vec<Value>]) -> bool {
    let (missing, extra) = difference(one, two);
    missing.is_empty() && extra.is_empty()
}

/// The same rows, in any order.
///
/// # Errors
/// The rows that only one side has.
pub fn same_rows(sql: &str, expected: &[Vec<Value>], found: &[Vec<Value>]) -> Check {
    let (missing, extra) = difference(expected, found);
    if missing.is_empty() && extra.is_empty() {
        return Ok(());
    }
    let shown = |rows: &[Vec<Value>]| -> String {
        let lines = rows.iter().take(ROWS_SHOWN).map(|row| format!("    ({})\n", crate::expression::listed(row)));
        lines.collect()
    };
    Err(format!(
        "{} rows expected, {} found\n  {} that the model has and the engine has not:\n{}  {} that the engine has and \
         the model has not:\n{}{sql}",
        expected.len(),
        found.len(),
        missing.len(),
        shown(&missing),
        extra.len(),
        shown(&extra),
    ))
}
