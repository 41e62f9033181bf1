//! Statements about a table as a whole: ALTER, TRUNCATE, OPTIMIZE, VACUUM; and statements that must fail.

use std::sync::Arc;

use engine::ErrorKind;

use crate::model::{Column, Model, Row, State, Table, Which};
use crate::random::Random;
use crate::statement::{Effect, Expected, Statement, key_there};
use crate::value::{Kind, Value};

/// With more columns than this, one is dropped before another is added.
const COLUMNS_MAX: usize = 10;

/// ALTER TABLE ADD, DROP or RENAME COLUMN. Notes the names that it gives and takes away.
pub fn alter(random: &mut Random, model: &mut Model, which: Which) -> Statement {
    let table = model.table_mut(which);
    let state = Arc::clone(&table.head);
    let droppable: Vec<usize> =
        (1..state.columns.len()).filter(|at| state.first(state.columns[*at].kind) != *at).collect();
    match random.below(3) {
        0 => rename_column(random, table, which, &state),
        1 if !droppable.is_empty() => drop_column(table, which, &state, *random.pick(&droppable)),
        _ if state.columns.len() >= COLUMNS_MAX => drop_column(table, which, &state, *random.pick(&droppable)),
        _ => add_column(random, table, which, &state),
    }
}

fn done(which: Which, sql: String, after: State) -> Statement {
    Statement { which, sql, expected: Expected::Any, effect: Effect::Unsure(after) }
}

/// A new name, or at times one that another column had before.
fn name(random: &mut Random, table: &mut Table) -> String {
    // A RESTORE brings columns back: their names are taken again.
    let taken = table.head.names();
    let free: Vec<String> = table.gone.iter().filter(|name| !taken.contains(name)).cloned().collect();
    if !free.is_empty() && random.chance(30) {
        return random.pick(&free).clone();
    }
    table.names_given += 1;
    format!("c{}", table.names_given)
}

fn remember(table: &mut Table, name: String) {
    if !table.gone.contains(&name) {
        table.gone.push(name);
    }
}

fn add_column(random: &mut Random, table: &mut Table, which: Which, state: &State) -> Statement {
    let kind = *random.pick(&[Kind::Int, Kind::BigInt, Kind::Text, Kind::Double, Kind::Vector]);
    let name = name(random, table);
    let default = match kind {
        Kind::Vector => Value::Null,
        kind if random.chance(50) => Value::some(random, kind),
        _ => Value::Null,
    };
    let words = if default.is_null() { String::new() } else { format!(" DEFAULT {default}") };
    let sql = format!("ALTER TABLE {} ADD COLUMN {name} {}{words}", table.name, kind.sql());
    let longer = |row: &Row| Arc::new(row.iter().cloned().chain([default.clone()]).collect::<Vec<_>>());
    let rows = state.rows.iter().map(longer).collect();
    let mut columns = state.columns.clone();
    columns.push(Column { name, kind, default: Some(default) });
    done(which, sql, State { columns, rows })
}

fn drop_column(table: &mut Table, which: Which, state: &State, at: usize) -> Statement {
    let mut columns = state.columns.clone();
    let gone = columns.remove(at);
    let sql = format!("ALTER TABLE {} DROP COLUMN {}", table.name, gone.name);
    let shorter = |row: &Row| {
        let mut row = row.as_ref().clone();
        row.remove(at);
        Arc::new(row)
    };
    let rows = state.rows.iter().map(shorter).collect();
    remember(table, gone.name);
    done(which, sql, State { columns, rows })
}

fn rename_column(random: &mut Random, table: &mut Table, which: Which, state: &State) -> Statement {
    let at = 1 + random.below(state.columns.len() - 1);
    let name = name(random, table);
    let mut columns = state.columns.clone();
    let old = std::mem::replace(&mut columns[at].name, name.clone());
    let sql = format!("ALTER TABLE {} RENAME COLUMN {old} TO {name}", table.name);
    remember(table, old);
    done(which, sql, State { columns, rows: state.rows.clone() })
}

pub fn truncate(model: &Model, which: Which) -> Statement {
    let table = model.table(which);
    done(which, format!("TRUNCATE TABLE {}", table.name), table.head.with(|_| true, []))
}

/// OPTIMIZE or VACUUM, at times as a dry run, which makes no version.
pub fn maintain(random: &mut Random, model: &Model, which: Which, verb: &str) -> Statement {
    let table = model.table(which);
    let state = State::clone(&table.head);
    if random.chance(15) {
        let sql = format!("{verb} {} DRY RUN", table.name);
        return Statement { which, sql, expected: Expected::Any, effect: Effect::Nothing };
    }
    done(which, format!("{verb} {}", table.name), state)
}

/// A statement that must fail and change nothing.
pub fn refusal(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let column = |kind: Kind| state.columns[state.first(kind)].name.as_str();
    let (tenant, emb) = (column(Kind::Int), column(Kind::Vector));
    let newest = model.docs.version;
    let (sql, kind): (String, Option<ErrorKind>) = match random.below(18) {
        0 => (format!("INSERT INTO docs (id, {tenant}) VALUES (NULL, 1)"), None),
        1 => (format!("INSERT INTO docs ({tenant}) VALUES (1)"), None),
        2 => ("INSERT INTO docs (id, nowhere) VALUES (100000, 1)".to_owned(), None),
        3 => (format!("INSERT INTO docs (id, {emb}) VALUES (100000, '[1, 2, 3]')"), None),
        4 => (format!("INSERT INTO docs (id, {emb}) VALUES (100000, '[1, NaN, 3, 4]')"), None),
        5 => (format!("INSERT INTO docs (id, {tenant}) VALUES (100000, 'many')"), None),
        6 => (format!("INSERT INTO docs (id, {tenant}) VALUES (100000, 3000000000)"), None),
        7 => (format!("UPDATE docs SET nowhere = 1 WHERE {tenant} = 1"), None),
        8 => ("UPDATE nowhere SET id = 1".to_owned(), Some(ErrorKind::NotFound)),
        9 => ("DELETE FROM docs WHERE nowhere = 1".to_owned(), None),
        10 => ("ALTER TABLE docs DROP COLUMN id".to_owned(), None),
        11 => (format!("ALTER TABLE docs ADD COLUMN {tenant} INT"), None),
        12 => (format!("ALTER TABLE docs RENAME COLUMN {emb} TO {tenant}"), None),
        13 => (format!("SELECT * FROM docs FOR VERSION AS OF {}", newest + 1_000_000), None),
        14 => ("SELECT * FROM docs FOR SYSTEM_TIME AS OF TIMESTAMP '2001-01-01 00:00:00'".to_owned(), None),
        15 => ("SELECT * FROM docs FOR SYSTEM_TIME AS OF TIMESTAMP '2201-01-01 00:00:00'".to_owned(), None),
        16 => (format!("RESTORE TABLE docs TO VERSION {}", newest + 1_000_000), None),
        _ => ("SELECT * FROM docs FOR VERSION AS OF 'never_tagged'".to_owned(), None),
    };
    Statement::refused(Which::Docs, sql, kind, "")
}

/// An UPDATE that gives one row the key of another; none if there are not two rows.
pub fn steal_key(random: &mut Random, model: &Model) -> Option<Statement> {
    let state = &model.docs.head;
    let (one, two) = (key_there(random, state), key_there(random, state));
    (one != two && state.rows.len() > 1)
        .then(|| Statement::twice(Which::Docs, format!("UPDATE docs SET id = {two} WHERE id = {one}"), &[two]))
}
