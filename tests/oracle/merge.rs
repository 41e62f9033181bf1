//! ON CONFLICT and MERGE: statements that insert and change rows at once.

use engine::ErrorKind;

use crate::expression::{Expr, Predicate, Scope};
use crate::model::{Model, State, Which};
use crate::random::Random;
use crate::statement::{Source, Statement, assigned, assignments, assignments_sql, key_there, some_keys, values};
use crate::value::{Kind, Value};

/// INSERT … ON CONFLICT DO NOTHING, or DO UPDATE with values of both sides and at times a condition.
pub fn upsert(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let count = random.between(1, 12) as usize;
    let mut keys: Vec<Value> = some_keys(random, state, count).into_iter().map(Value::Int).collect();
    let (is_update, is_twice) = (random.chance(65), random.chance(10));
    if is_twice {
        keys.push(random.pick(&keys).clone());
    }
    let (words, rows) = values(random, state, &keys);
    if !is_update {
        let sql = format!("INSERT INTO docs{words} ON CONFLICT (id) DO NOTHING");
        // Of new rows with one key the first comes.
        let mut there = state.keys();
        let is_new = |row: &Vec<Value>| row[0].int().is_some_and(|key| there.insert(key));
        let come: Vec<Vec<Value>> = rows.into_iter().filter(is_new).collect();
        let after = state.with(|_| false, come.clone());
        return Statement::changing(random, Which::Docs, sql, &come, after);
    }
    let names: Vec<String> = state.columns.iter().map(|column| format!("excluded.{}", column.name)).collect();
    let scope = Scope::new(&state.columns, "docs", &names);
    let changes = assignments(random, state, |at, _| Some(at));
    let condition = match random.below(8) {
        _ if is_twice => None,
        0 => Some(compare_sides(random, state, |at, _| Some(at))),
        1 => Some(Predicate::random(random, &state.columns, 1)),
        _ => None,
    };
    let condition_sql =
        condition.as_ref().map_or(String::new(), |condition| format!(" WHERE {}", condition.sql(&scope)));
    let sql = format!(
        "INSERT INTO docs{words} ON CONFLICT (id) DO UPDATE SET {}{condition_sql}",
        assignments_sql(state, &changes, &scope)
    );
    if is_twice {
        return Statement::refused(Which::Docs, sql, None, "");
    }
    let (mut touched, mut gone) = (vec![], vec![]);
    for row in rows {
        match state.rows.iter().find(|old| old[0] == row[0]) {
            None => touched.push(row),
            Some(old) if condition.as_ref().is_none_or(|condition| condition.holds(old, &row)) => {
                touched.push(assigned(old, &row, &changes));
                gone.push(old[0].clone());
            }
            Some(_) => {}
        }
    }
    let after = state.with(|row| gone.contains(&row[0]), touched.clone());
    Statement::changing(random, Which::Docs, sql, &touched, after)
}

const COMPARISONS: [&str; 3] = ["<", ">=", "<>"];

/// A comparison of a column of the target with one of the source.
fn compare_sides(random: &mut Random, state: &State, source: impl Fn(usize, Kind) -> Option<usize>) -> Predicate {
    let kind = *random.pick(&[Kind::Int, Kind::Text]);
    let at = state.first(kind);
    let comparison = *random.pick(&COMPARISONS);
    match source(at, kind) {
        Some(from) => Predicate::Compare(Expr::Target(at), comparison, Expr::Source(from)),
        None => Predicate::Always,
    }
}

/// One branch of a MERGE.
struct Branch {
    on: On,
    condition: Option<Predicate>,
    action: Action,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    Matched,
    NotMatched,
    NotMatchedBySource,
}

enum Action {
    Update(Vec<(usize, Expr)>),
    Delete,
    Nothing,
    /// The columns that are filled, the key first, and with what.
    Insert(Vec<(usize, Expr)>),
}

impl Branch {
    fn sql(&self, state: &State, scope: &Scope) -> String {
        let when = match self.on {
            On::Matched => "MATCHED",
            On::NotMatched => "NOT MATCHED",
            On::NotMatchedBySource => "NOT MATCHED BY SOURCE",
        };
        let condition =
            self.condition.as_ref().map_or(String::new(), |condition| format!(" AND {}", condition.sql(scope)));
        let action = match &self.action {
            Action::Update(changes) => format!("UPDATE SET {}", assignments_sql(state, changes, scope)),
            Action::Delete => "DELETE".to_owned(),
            Action::Nothing => "DO NOTHING".to_owned(),
            Action::Insert(filled) => {
                let names: Vec<&str> = filled.iter().map(|(at, _)| state.columns[*at].name.as_str()).collect();
                let texts: Vec<String> = filled.iter().map(|(_, expr)| expr.sql(scope)).collect();
                format!("INSERT ({}) VALUES ({})", names.join(", "), texts.join(", "))
            }
        };
        format!(" WHEN {when}{condition} THEN {action}")
    }

    fn takes(&self, on: On, target: &[Value], source: &[Value]) -> bool {
        self.on == on && self.condition.as_ref().is_none_or(|condition| condition.holds(target, source))
    }
}

/// MERGE with one to four branches, from listed rows or from the other table.
pub fn merge(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let source = Source::random(random, model);
    if random.chance(6) && !state.rows.is_empty() {
        return merge_twice(random, model);
    }
    let branches = branches(random, state, &source);
    let scope = Scope::new(&state.columns, "docs", &source.names);
    let texts: String = branches.iter().map(|branch| branch.sql(state, &scope)).collect();
    let sql = format!("MERGE INTO docs USING {} ON docs.id = s.k{texts}", source.sql);
    let (mut come, mut gone, mut deleted) = (vec![], vec![], vec![]);
    let mut act = |branch: &Branch, target: &[Value], from: &[Value]| match &branch.action {
        Action::Update(changes) => {
            come.push(assigned(target, from, changes));
            gone.push(target[0].clone());
        }
        Action::Delete => {
            deleted.push(target.to_vec());
            gone.push(target[0].clone());
        }
        Action::Nothing => {}
        Action::Insert(filled) => {
            let mut row: Vec<Value> =
                state.columns.iter().map(|column| column.default.clone().unwrap_or(Value::Null)).collect();
            filled.iter().for_each(|(at, expr)| row[*at] = expr.eval(&[], from));
            come.push(row);
        }
    };
    for from in &source.rows {
        let target = state.rows.iter().find(|row| row[0] == from[0]);
        let (on, row) = target.map_or((On::NotMatched, &[][..]), |row| (On::Matched, row.as_slice()));
        if let Some(branch) = branches.iter().find(|branch| branch.takes(on, row, from)) {
            act(branch, row, from);
        }
    }
    for row in state.rows.iter().filter(|row| source.row(&row[0]).is_none()) {
        if let Some(branch) = branches.iter().find(|branch| branch.takes(On::NotMatchedBySource, row, &[])) {
            act(branch, row, &[]);
        }
    }
    let after = state.with(|row| gone.contains(&row[0]), come.clone());
    // RETURNING gives the new values of what came, the old ones of what went.
    let touched: Vec<Vec<Value>> = come.into_iter().chain(deleted).collect();
    Statement::changing(random, Which::Docs, sql, &touched, after)
}

/// Branches in random order; a branch without a condition is the last of its kind.
fn branches(random: &mut Random, state: &State, source: &Source) -> Vec<Branch> {
    let mut branches = vec![];
    if random.chance(80) {
        if random.chance(50) {
            branches.push(matched(random, state, source, true));
        }
        let is_bound = random.chance(30);
        branches.push(matched(random, state, source, is_bound));
    }
    if random.chance(70) || branches.is_empty() {
        let condition = random.chance(40).then(|| of_source(random, source));
        let action = match random.chance(10) {
            true => Action::Nothing,
            false => Action::Insert(filled(random, state, source)),
        };
        branches.push(Branch { on: On::NotMatched, condition, action });
    }
    if random.chance(15) {
        let condition = Some(Predicate::Modulo(Expr::Target(0), 7, random.between(0, 7)));
        let action = match random.chance(50) {
            true => Action::Delete,
            false => Action::Update(assignments(random, state, |_, _| None)),
        };
        branches.push(Branch { on: On::NotMatchedBySource, condition, action });
    }
    branches
}

fn matched(random: &mut Random, state: &State, source: &Source, is_bound: bool) -> Branch {
    let condition = is_bound.then(|| match random.below(3) {
        0 => compare_sides(random, state, |_, kind| source.column(kind)),
        1 => of_source(random, source),
        _ => Predicate::random(random, &state.columns, 1),
    });
    let action = match random.below(10) {
        0..3 => Action::Delete,
        3 => Action::Nothing,
        _ => Action::Update(assignments(random, state, |_, kind| source.column(kind))),
    };
    Branch { on: On::Matched, condition, action }
}

fn of_source(random: &mut Random, source: &Source) -> Predicate {
    match source.column(Kind::Int) {
        Some(at) => {
            let limit = Expr::Constant(Value::Int(random.between(0, 10)));
            let comparison = *random.pick(&COMPARISONS);
            Predicate::Compare(Expr::Source(at), comparison, limit)
        }
        None => Predicate::Always,
    }
}

/// What an inserted row holds: the key, and some columns for which the source has a value.
fn filled(random: &mut Random, state: &State, source: &Source) -> Vec<(usize, Expr)> {
    let mut filled = vec![(0, Expr::Source(0))];
    for (at, column) in state.columns.iter().enumerate().skip(1) {
        let is_needed = column.default.is_none();
        match source.column(column.kind) {
            Some(from) if is_needed || random.chance(70) => filled.push((at, Expr::Source(from))),
            None if is_needed => filled.push((at, Expr::Constant(Value::any(random, column.kind)))),
            _ => {}
        }
    }
    filled
}

/// Two rows of the source for one row of the target: which of them counts is not defined, so it is refused.
fn merge_twice(random: &mut Random, model: &Model) -> Statement {
    let state = &model.docs.head;
    let (key, tenant) = (key_there(random, state), &state.columns[state.first(Kind::Int)].name);
    let sql = format!(
        "MERGE INTO docs USING (VALUES ({key}, 1), ({key}, 2)) AS s(k, t) ON docs.id = s.k \
         WHEN MATCHED THEN UPDATE SET {tenant} = s.t"
    );
    let kind: Option<ErrorKind> = None;
    Statement::refused(Which::Docs, sql, kind, "")
}
