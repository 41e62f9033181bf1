//! Statements that change rows, each with what the model says it must answer and leave behind: INSERT, UPDATE, DELETE.
//! MERGE and ON CONFLICT are in `merge.rs`, what changes a table as a whole in `upkeep.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::ErrorKind;

use crate::expression::{Expr, Predicate, Scope};
use crate::model::{Model, Row, State, Which};
use crate::random::Random;
use crate::value::{Kind, Value};

/// Keys are below this when rows are inserted; updates may shift them beyond.
pub const KEY_MAX: i64 = 1000;

/// What a statement must answer.
pub enum Expected {
    /// So many rows written.
    Count(u64),
    /// No error.
    Any,
    /// These rows, in any order.
    Rows(Vec<Vec<Value>>),
    /// An error, of this kind if one is named, with this in its text.
    Refused(Option<ErrorKind>, String),
}

/// What a statement must leave behind.
pub enum Effect {
    /// No new version.
    Nothing,
    /// One new version.
    Change(State),
    /// No version, one or several; the newest holds this.
    Unsure(State),
}

/// A statement and what the model says of it.
pub struct Statement {
    pub which: Which,
    pub sql: String,
    pub expected: Expected,
    pub effect: Effect,
}

impl Statement {
    pub fn refused(which: Which, sql: String, kind: Option<ErrorKind>, part: &str) -> Self {
        let expected = Expected::Refused(kind, part.to_owned());
        Self { which, sql, expected, effect: Effect::Nothing }
    }

    /// A change that a violated key makes impossible; `keys`: those in question, one alone must be named.
    pub fn twice(which: Which, sql: String, keys: &[i64]) -> Self {
        let part = if let [key] = keys { key.to_string() } else { String::new() };
        Self::refused(which, sql, Some(ErrorKind::AlreadyExists), &part)
    }

    /// A change of `touched` rows, as they are after it, or before it if it deletes them; at times with RETURNING.
    pub fn changing(random: &mut Random, which: Which, sql: String, touched: &[Vec<Value>], after: State) -> Self {
        let (sql, expected) = if random.chance(25) {
            let (list, rows) = returning(random, &after, touched);
            (format!("{sql} RETURNING {list}"), Expected::Rows(rows))
        } else {
            (sql, Expected::Count(touched.len() as u64))
        };
        let effect = if touched.is_empty() { Effect::Nothing } else { Effect::Change(after) };
        Self { which, sql, expected, effect }
    }
}

fn returning(random: &mut Random, state: &State, touched: &[Vec<Value>]) -> (String, Vec<Vec<Value>>) {
    let key = &state.columns[0].name;
    let at = 1 + random.below(state.columns.len() - 1);
    match random.below(3) {
        0 => ("*".to_owned(), touched.to_vec()),
        1 => {
            let rows = touched.iter().map(|row| vec![row[at].clone(), row[0].clone()]).collect();
            (format!("{} AS found, {key}", state.columns[at].name), rows)
        }
        _ => {
            let more = Expr::Plus(Box::new(Expr::Target(state.first(Kind::Int))), 1);
            let rows = touched.iter().map(|row| vec![row[0].clone(), more.eval(row, &[])]).collect();
            (format!("{key}, {} AS more", more.sql(&Scope::bare(&state.columns))), rows)
        }
    }
}

/// Rows that an UPDATE, a DELETE or a MERGE takes its values from: one per key.
pub struct Source {
    /// The relation with its alias, `s`.
    pub sql: String,
    /// Its columns as the statement names them; the first is the key.
    pub names: Vec<String>,
    pub kinds: Vec<Kind>,
    pub rows: Vec<Vec<Value>>,
}

impl Source {
    /// Listed rows, or those of `log` grouped by key.
    pub fn random(random: &mut Random, model: &Model) -> Self {
        if random.chance(30) { Self::of_log(model) } else { Self::listed(random, model) }
    }

    fn of_log(model: &Model) -> Self {
        let state = &model.log.head;
        let (n, note) = (state.first(Kind::Int), state.first(Kind::Text));
        let (key, number, text) = (&state.columns[0].name, &state.columns[n].name, &state.columns[note].name);
        let sql = format!(
            "(SELECT {key} AS k, max({number}) AS t, min({text}) AS b FROM log WHERE {key} IS NOT NULL GROUP BY {key}) AS s"
        );
        let mut rows = vec![];
        for key in state.keys() {
            let of_key: Vec<&Row> = state.rows.iter().filter(|row| row[0] == Value::Int(key)).collect();
            let known = |at: usize| of_key.iter().map(move |row| row[at].clone()).filter(|value| !value.is_null());
            let most = known(n).max().unwrap_or(Value::Null);
            rows.push(vec![Value::Int(key), most, known(note).min().unwrap_or(Value::Null)]);
        }
        let names = ["s.k", "s.t", "s.b"].map(str::to_owned).to_vec();
        Self { sql, names, kinds: vec![Kind::BigInt, Kind::Int, Kind::Text], rows }
    }

    fn listed(random: &mut Random, model: &Model) -> Self {
        let count = random.between(1, 9) as usize;
        let keys = some_keys(random, &model.docs.head, count);
        let kinds = vec![Kind::BigInt, Kind::Int, Kind::Text, Kind::Double, Kind::Vector];
        let mut rows = vec![];
        for (at, key) in keys.into_iter().enumerate() {
            let mut row = vec![Value::Int(key)];
            for kind in &kinds[1..] {
                // The first row says of which type each column is.
                let is_some = at == 0 || *kind == Kind::Vector;
                row.push(if is_some { Value::some(random, *kind) } else { Value::any(random, *kind) });
            }
            rows.push(row);
        }
        let texts: Vec<String> = rows.iter().map(|row| format!("({})", typed(row))).collect();
        let sql = format!("(VALUES {}) AS s(k, t, b, x, e)", texts.join(", "));
        let names = ["s.k", "s.t", "s.b", "s.x", "s.e"].map(str::to_owned).to_vec();
        Self { sql, names, kinds, rows }
    }

    /// The column that has values of a type.
    pub fn column(&self, kind: Kind) -> Option<usize> {
        (1..self.kinds.len()).find(|at| self.kinds[*at] == kind)
    }

    pub fn row(&self, key: &Value) -> Option<&Vec<Value>> {
        self.rows.iter().find(|row| row[0] == *key)
    }
}

/// Values with the casts that they need where nothing says their type.
fn typed(row: &[Value]) -> String {
    let texts: Vec<String> = row
        .iter()
        .map(|value| match value {
            Value::Vector(_) => format!("{value}::VECTOR(4)"),
            value => value.to_string(),
        })
        .collect();
    texts.join(", ")
}

/// Different keys, about half of them of rows that are there.
pub fn some_keys(random: &mut Random, state: &State, count: usize) -> Vec<i64> {
    let there: Vec<i64> = state.keys().into_iter().collect();
    let mut keys = BTreeSet::new();
    while keys.len() < count {
        let is_there = !there.is_empty() && random.chance(50);
        keys.insert(if is_there { *random.pick(&there) } else { random.between(0, KEY_MAX) });
    }
    let mut keys: Vec<i64> = keys.into_iter().collect();
    for at in (1..keys.len()).rev() {
        keys.swap(at, random.below(at + 1));
    }
    keys
}

/// Different keys that are not there.
fn free_keys(random: &mut Random, state: &State, count: usize) -> Vec<i64> {
    let there = state.keys();
    let mut keys = BTreeSet::new();
    while keys.len() < count {
        // Twice the range: there are always enough.
        let key = random.between(0, 2 * KEY_MAX);
        if !there.contains(&key) {
            keys.insert(key);
        }
    }
    keys.into_iter().collect()
}

/// A key of a row that is there, or any if there is none.
pub fn key_there(random: &mut Random, state: &State) -> i64 {
    let there: Vec<i64> = state.keys().into_iter().collect();
    if there.is_empty() { random.between(0, KEY_MAX) } else { *random.pick(&there) }
}

/// New rows with these keys: the words behind `INSERT INTO table`, and the rows that they make.
pub fn values(random: &mut Random, state: &State, keys: &[Value]) -> (String, Vec<Vec<Value>>) {
    let mut named: Vec<usize> = (0..state.columns.len()).collect();
    let names_columns = random.chance(50);
    if names_columns {
        named.retain(|at| *at == 0 || state.columns[*at].default.is_none() || random.chance(70));
        for at in (1..named.len()).rev() {
            named.swap(at, random.below(at + 1));
        }
    }
    let (mut rows, mut texts) = (vec![], vec![]);
    for key in keys {
        let defaults = state.columns.iter().map(|column| column.default.clone().unwrap_or(Value::Null));
        let mut row: Vec<Value> = defaults.collect();
        let mut words = vec![];
        for at in &named {
            let column = &state.columns[*at];
            if *at != 0 && column.default.is_some() && random.chance(5) {
                words.push("DEFAULT".to_owned());
                continue;
            }
            row[*at] = if *at == 0 { key.clone() } else { Value::any(random, column.kind) };
            words.push(row[*at].to_string());
        }
        texts.push(format!("({})", words.join(", ")));
        rows.push(row);
    }
    let names: Vec<&str> = named.iter().map(|at| state.columns[*at].name.as_str()).collect();
    let list = if names_columns { format!(" ({})", names.join(", ")) } else { String::new() };
    (format!("{list} VALUES {}", texts.join(", ")), rows)
}

fn row_count(random: &mut Random) -> usize {
    let (low, high) = random.weighted(&[(5, (1, 2)), (4, (2, 9)), (1, (20, 61))]);
    random.between(low, high) as usize
}

/// INSERT of one row or several.
pub fn insert(random: &mut Random, model: &Model, which: Which) -> Statement {
    let state = &model.table(which).head;
    let count = row_count(random);
    let keys: Vec<Value> = match which {
        Which::Docs => free_keys(random, state, count).into_iter().map(Value::Int).collect(),
        Which::Log => (0..count)
            .map(|_| match random.chance(8) {
                true => Value::Null,
                false => Value::Int(key_there(random, &model.docs.head)),
            })
            .collect(),
    };
    let (words, rows) = values(random, state, &keys);
    let sql = format!("INSERT INTO {}{words}", model.table(which).name);
    let after = state.with(|_| false, rows.clone());
    Statement::changing(random, which, sql, &rows, after)
}

/// INSERT of rows of which one has a key that is there, or that another of them has.
pub fn insert_twice(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let count = random.between(1, 5) as usize;
    let mut keys = free_keys(random, state, count);
    let double = if state.rows.is_empty() || random.chance(30) { keys[0] } else { key_there(random, state) };
    keys.insert(random.below(keys.len() + 1), double);
    let keys: Vec<Value> = keys.into_iter().map(Value::Int).collect();
    let (words, _) = values(random, state, &keys);
    Statement::twice(Which::Docs, format!("INSERT INTO docs{words}"), &[double])
}

/// INSERT … SELECT: from a series, from the other table, from the table itself, from an older version of it.
pub fn insert_select(random: &mut Random, model: &Model) -> Statement {
    match random.below(4) {
        0 => insert_series(random, model),
        1 => insert_into_log(random, model),
        2 => insert_shifted(random, model),
        _ => insert_again(random, model),
    }
}

fn insert_series(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let first = state.keys().last().map_or(0, |key| key + 1);
    if first > 4 * KEY_MAX || state.columns.iter().any(|column| column.default.is_none()) {
        return insert(random, model, Which::Docs);
    }
    let last = first + random.between(1, 40);
    let [t, b, x, e] = [Kind::Int, Kind::Text, Kind::Double, Kind::Vector].map(|kind| state.first(kind));
    let name = |at: usize| state.columns[at].name.as_str();
    let sql = format!(
        "INSERT INTO docs (id, {}, {}, {}, {}) SELECT value, value % 10, concat('g', value), value * 0.25, \
         ARRAY[value % 5, 1, 0, 0.5] FROM generate_series({first}, {last})",
        name(t),
        name(b),
        name(x),
        name(e)
    );
    let rows: Vec<Vec<Value>> = (first..=last)
        .map(|key| {
            let mut row: Vec<Value> =
                state.columns.iter().map(|column| column.default.clone().unwrap_or(Value::Null)).collect();
            row[0] = Value::Int(key);
            row[t] = Value::Int(key % 10);
            row[b] = Value::Text(format!("g{key}"));
            row[x] = Value::Double(key as f64 * 0.25);
            row[e] = Value::Vector([(key % 5) as f32, 1.0, 0.0, 0.5]);
            row
        })
        .collect();
    let after = state.with(|_| false, rows.clone());
    Statement::changing(random, Which::Docs, sql, &rows, after)
}

fn insert_into_log(random: &mut Random, model: &Model) -> Statement {
    let (docs, log) = (&model.docs.head, &model.log.head);
    if log.columns.iter().any(|column| column.default.is_none()) {
        return insert(random, model, Which::Log);
    }
    let predicate = Predicate::random(random, &docs.columns, 1);
    let pairs =
        [(0, 0), (log.first(Kind::Int), docs.first(Kind::Int)), (log.first(Kind::Text), docs.first(Kind::Text))];
    let into: Vec<&str> = pairs.iter().map(|(to, _)| log.columns[*to].name.as_str()).collect();
    let from: Vec<&str> = pairs.iter().map(|(_, from)| docs.columns[*from].name.as_str()).collect();
    let sql = format!(
        "INSERT INTO log ({}) SELECT {} FROM docs WHERE {}",
        into.join(", "),
        from.join(", "),
        predicate.sql(&Scope::bare(&docs.columns))
    );
    let rows: Vec<Vec<Value>> = docs
        .rows
        .iter()
        .filter(|row| predicate.holds(row, &[]))
        .map(|found| {
            let mut row: Vec<Value> =
                log.columns.iter().map(|column| column.default.clone().unwrap_or(Value::Null)).collect();
            pairs.iter().for_each(|(to, from)| row[*to] = found[*from].clone());
            row
        })
        .collect();
    let after = log.with(|_| false, rows.clone());
    Statement::changing(random, Which::Log, sql, &rows, after)
}

fn insert_shifted(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let predicate = Predicate::random(random, &state.columns, 1);
    let by = random.between(1, 300);
    let names: Vec<&str> = state.columns[1..].iter().map(|column| column.name.as_str()).collect();
    let sql = format!(
        "INSERT INTO docs SELECT id + {by}, {} FROM docs WHERE {}",
        names.join(", "),
        predicate.sql(&Scope::bare(&state.columns))
    );
    let shifted = |row: &Row| {
        let mut row = row.as_ref().clone();
        row[0] = Value::Int(row[0].int().unwrap_or_default() + by);
        row
    };
    let rows: Vec<Vec<Value>> = state.rows.iter().filter(|row| predicate.holds(row, &[])).map(shifted).collect();
    let there = state.keys();
    let double: Vec<i64> = rows.iter().filter_map(|row| row[0].int()).filter(|key| there.contains(key)).collect();
    if !double.is_empty() {
        return Statement::twice(Which::Docs, sql, &double);
    }
    let after = state.with(|_| false, rows.clone());
    Statement::changing(random, Which::Docs, sql, &rows, after)
}

/// Brings rows back that an older version has.
fn insert_again(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let (version, old) = model.docs.known(random);
    if !state.is_like(&old) {
        return insert(random, model, Which::Docs);
    }
    let there = state.keys();
    let is_gone = |row: &&Row| row[0].int().is_some_and(|key| !there.contains(&key));
    let rows: Vec<Vec<Value>> = old.rows.iter().filter(is_gone).map(|row| row.as_ref().clone()).collect();
    let sql = format!(
        "INSERT INTO docs SELECT * FROM docs FOR VERSION AS OF {version} WHERE id NOT IN (SELECT id FROM docs)"
    );
    let after = state.with(|_| false, rows.clone());
    Statement::changing(random, Which::Docs, sql, &rows, after)
}

/// Assignments to one to three columns.
pub fn assignments(
    random: &mut Random,
    state: &State,
    source: impl Fn(usize, Kind) -> Option<usize>,
) -> Vec<(usize, Expr)> {
    let mut targets = BTreeSet::new();
    for _ in 0..random.between(1, 4) {
        targets.insert(1 + random.below(state.columns.len() - 1));
    }
    let assign = |at: usize| {
        let kind = state.columns[at].kind;
        if let Some(default) = &state.columns[at].default
            && random.chance(6)
        {
            return (at, Expr::Default(default.clone()));
        }
        (at, Expr::assigned(random, kind, &state.of_kind(kind), source(at, kind)))
    };
    targets.into_iter().map(assign).collect()
}

pub fn assignments_sql(state: &State, assignments: &[(usize, Expr)], scope: &Scope) -> String {
    let texts: Vec<String> =
        assignments.iter().map(|(at, expr)| format!("{} = {}", state.columns[*at].name, expr.sql(scope))).collect();
    texts.join(", ")
}

pub fn assigned(row: &[Value], source: &[Value], assignments: &[(usize, Expr)]) -> Vec<Value> {
    let mut changed = row.to_vec();
    for (at, expr) in assignments {
        changed[*at] = expr.eval(row, source);
    }
    changed
}

/// A condition that chooses rows of a table: one key, anything, or a subquery on the other table.
fn chosen(random: &mut Random, model: &Model, which: Which) -> Predicate {
    let state = &model.table(which).head;
    match random.below(10) {
        0..4 => {
            let key = if random.chance(85) { key_there(random, state) } else { random.between(0, KEY_MAX) };
            Predicate::Compare(Expr::Target(0), "=", Expr::Constant(Value::Int(key)))
        }
        4..8 => Predicate::random(random, &state.columns, 2),
        _ => among_other(random, model, which),
    }
}

fn among_other(random: &mut Random, model: &Model, which: Which) -> Predicate {
    let (other, name) = match which {
        Which::Docs => (&model.log.head, "log"),
        Which::Log => (&model.docs.head, "docs"),
    };
    let inner = Predicate::random(random, &other.columns, 1);
    let is_negated = random.chance(25);
    let key = &other.columns[0].name;
    // What NOT IN means with NULL among the values is not what anybody wants to say.
    let nulls = if is_negated { format!("{key} IS NOT NULL AND ") } else { String::new() };
    let query = format!("SELECT {key} FROM {name} WHERE {nulls}{}", inner.sql(&Scope::bare(&other.columns)));
    let found = other.rows.iter().filter(|row| inner.holds(row, &[])).map(|row| row[0].clone());
    let values = found.filter(|value| !is_negated || !value.is_null()).collect();
    let among = Predicate::Among { expr: Expr::Target(0), query, values, is_negated };
    // Most rows are not among the few: the opposite is cut down.
    if is_negated { Predicate::And(Box::new(among), Box::new(Predicate::Modulo(Expr::Target(0), 5, 2))) } else { among }
}

/// UPDATE by key, by predicate, by a subquery, FROM another relation, or of the key itself.
pub fn update(random: &mut Random, model: &Model, which: Which) -> Statement {
    match which {
        Which::Docs if random.chance(30) => update_from(random, model),
        Which::Docs if random.chance(15) => update_keys(random, model),
        _ => {
            let state = &model.table(which).head;
            let predicate = chosen(random, model, which);
            let changes = assignments(random, state, |_, _| None);
            let scope = Scope::bare(&state.columns);
            let sql = format!(
                "UPDATE {} SET {} WHERE {}",
                model.table(which).name,
                assignments_sql(state, &changes, &scope),
                predicate.sql(&scope)
            );
            replaced(random, which, sql, state, |row| predicate.holds(row, &[]).then(|| assigned(row, &[], &changes)))
        }
    }
}

/// The statement that puts other rows in the place of some.
fn replaced(
    random: &mut Random,
    which: Which,
    sql: String,
    state: &Arc<State>,
    change: impl Fn(&Row) -> Option<Vec<Value>>,
) -> Statement {
    let changed: Vec<Vec<Value>> = state.rows.iter().filter_map(&change).collect();
    let after = state.with(|row| change(row).is_some(), changed.clone());
    if which == Which::Docs && !after.has_good_keys() {
        return Statement::twice(which, sql, &[]);
    }
    Statement::changing(random, which, sql, &changed, after)
}

fn update_from(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let source = Source::random(random, model);
    let changes = assignments(random, state, |_, kind| source.column(kind));
    let scope = Scope::new(&state.columns, "docs", &source.names);
    let also = Predicate::random(random, &state.columns, 1);
    let sql = format!(
        "UPDATE docs SET {} FROM {} WHERE docs.id = s.k AND {}",
        assignments_sql(state, &changes, &scope),
        source.sql,
        also.sql(&scope)
    );
    replaced(random, Which::Docs, sql, state, |row| {
        let found = source.row(&row[0])?;
        also.holds(row, &[]).then(|| assigned(row, found, &changes))
    })
}

fn update_keys(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let from = key_there(random, state);
    let to = from + random.between(0, 12);
    // Upwards by one hits the neighbour, which moves too; downwards is bounded by zero.
    let by = if from > 20 && random.chance(50) { -random.between(1, 20) } else { random.between(1, 20) };
    let sql = format!("UPDATE docs SET id = id + {by} WHERE id BETWEEN {from} AND {to}");
    replaced(random, Which::Docs, sql, state, |row| {
        let key = row[0].int().filter(|key| (from..=to).contains(key))?;
        let mut changed = row.as_ref().clone();
        changed[0] = Value::Int(key + by);
        Some(changed)
    })
}

/// DELETE by key, by predicate, by a subquery, or USING the other table.
pub fn delete(random: &mut Random, model: &Model, which: Which) -> Statement {
    let state = &model.table(which).head;
    if which == Which::Docs && random.chance(20) {
        return delete_using(random, model);
    }
    let predicate = chosen(random, model, which);
    let sql = format!("DELETE FROM {} WHERE {}", model.table(which).name, predicate.sql(&Scope::bare(&state.columns)));
    let goes = |row: &Row| predicate.holds(row, &[]);
    let gone: Vec<Vec<Value>> = state.rows.iter().filter(|row| goes(row)).map(|row| row.as_ref().clone()).collect();
    let after = state.with(goes, []);
    Statement::changing(random, which, sql, &gone, after)
}

/// A row goes once, however many rows of the other table it meets.
fn delete_using(random: &mut Random, model: &Model) -> Statement {
    let (docs, log) = (&model.docs.head, &model.log.head);
    let inner = Predicate::random(random, &log.columns, 1);
    let sql = format!(
        "DELETE FROM docs USING log WHERE docs.id = log.{} AND {}",
        log.columns[0].name,
        inner.sql(&Scope::new(&log.columns, "log", &[]))
    );
    let met: BTreeSet<i64> =
        log.rows.iter().filter(|row| inner.holds(row, &[])).filter_map(|row| row[0].int()).collect();
    let goes = |row: &Row| row[0].int().is_some_and(|key| met.contains(&key));
    let gone: Vec<Vec<Value>> = docs.rows.iter().filter(|row| goes(row)).map(|row| row.as_ref().clone()).collect();
    let after = docs.with(goes, []);
    Statement::changing(random, Which::Docs, sql, &gone, after)
}

/// DELETE of most rows.
pub fn thin_out(random: &mut Random, model: &Model, which: Which) -> Statement {
    let table = model.table(which);
    let predicate = Predicate::Not(Box::new(Predicate::Modulo(Expr::Target(0), 5, random.between(0, 5))));
    let sql = format!("DELETE FROM {} WHERE {}", table.name, predicate.sql(&Scope::bare(&table.head.columns)));
    let goes = |row: &Row| predicate.holds(row, &[]);
    let gone: Vec<Vec<Value>> =
        table.head.rows.iter().filter(|row| goes(row)).map(|row| row.as_ref().clone()).collect();
    let after = table.head.with(goes, []);
    Statement::changing(random, which, sql, &gone, after)
}
