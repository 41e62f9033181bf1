//! Reads that are checked against the model: searches, aggregates, joins over moments, changes between versions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::driver::{Check, Driver, same_rows};
use crate::expression::{Predicate, Scope};
use crate::model::{Row, State, Which, difference};
use crate::value::{DIM, Kind, Value, timestamp};

/// The column of `table_changes` that says what happened.
const CHANGE: &str = "_change";
/// How far distances may lie from those in double precision, relative to one plus their size.
const DISTANCE_ERROR_MAX: f64 = 1e-4;

/// The metrics of a search.
const METRICS: [&str; 4] = ["<->", "<=>", "<#>", "<+>"];

impl Driver {
    /// A moment of a table: the clause behind its name, and what the table holds then.
    pub fn moment(&mut self, which: Which) -> (String, Arc<State>) {
        let random = &mut self.random;
        let table = match which {
            Which::Docs => &self.model.docs,
            Which::Log => &self.model.log,
        };
        match random.below(10) {
            0..3 => (String::new(), Arc::clone(&table.head)),
            3..5 if !table.tags.is_empty() => {
                let tags: Vec<&String> = table.tags.keys().collect();
                let tag = (*random.pick(&tags)).clone();
                let clause = match random.below(4) {
                    0 => format!("FOR VERSION AS OF '{tag}'"),
                    1 => format!("AS OF VERSION '{tag}'"),
                    2 => format!("VERSION AS OF '{tag}'"),
                    _ => format!("AT(TAG => '{tag}')"),
                };
                let state = Arc::clone(&table.tags[&tag].1);
                (clause, state)
            }
            5..8 => match table.dated(random) {
                Some((at, _, state)) => {
                    let at = timestamp(at);
                    let clause = match random.below(3) {
                        0 => format!("FOR SYSTEM_TIME AS OF TIMESTAMP '{at}'"),
                        1 => format!("AS OF TIMESTAMP '{at}'"),
                        _ => format!("TIMESTAMP AS OF '{at}'"),
                    };
                    (clause, state)
                }
                None => (String::new(), Arc::clone(&table.head)),
            },
            _ => {
                let (version, state) = table.known(random);
                let clause = match random.below(4) {
                    0 => format!("FOR VERSION AS OF {version}"),
                    1 => format!("AS OF VERSION {version}"),
                    2 => format!("AT(VERSION => {version})"),
                    _ => format!("VERSION AS OF {version}"),
                };
                (clause, state)
            }
        }
    }

    /// The nearest rows, with and without a filter, at any moment.
    pub async fn search(&mut self) -> Check {
        let (moment, state) = self.moment(Which::Docs);
        let at = state.first(Kind::Vector);
        let mut query = Value::some(&mut self.random, Kind::Vector);
        while query == Value::Vector([0.0; DIM]) {
            query = Value::some(&mut self.random, Kind::Vector);
        }
        let Some(vector) = query.vector().copied() else { return Ok(()) };
        let metric = *self.random.pick(&METRICS);
        let k = *self.random.pick(&[1, 3, 10, 1000]);
        let filter = match self.random.chance(60) {
            true => Predicate::random(&mut self.random, &state.columns, 2),
            false => Predicate::Always,
        };
        let name = &state.columns[at].name;
        let sql = format!(
            "SELECT id, {name} {metric} {query} AS d FROM docs {moment} WHERE {} ORDER BY d LIMIT {k}",
            filter.sql(&Scope::bare(&state.columns))
        );
        let found = self.query(&sql).await?;
        self.figures.searches += 1;
        let distance = |row: &Row| row[at].vector().and_then(|stored| distance(metric, stored, &vector));
        let matching: BTreeMap<i64, f64> = state
            .rows
            .iter()
            .filter(|row| filter.holds(row, &[]))
            .filter_map(|row| Some((row[0].int()?, distance(row)?)))
            .collect();
        check_nearest(&found, &matching, k).map_err(|problem| format!("{problem}\n{sql}"))
    }

    /// Counts, sums and extremes, of all rows or of groups, at any moment.
    pub async fn aggregate(&mut self, which: Which) -> Check {
        let (moment, state) = self.moment(which);
        let filter = Predicate::random(&mut self.random, &state.columns, 2);
        let [t, b, x] = [Kind::Int, Kind::Text, Kind::Double].map(|kind| state.first(kind));
        let [tn, bn, xn] = [t, b, x].map(|at| state.columns[at].name.as_str());
        let table = self.model.table(which).name;
        let rest = format!("FROM {table} {moment} WHERE {}", filter.sql(&Scope::bare(&state.columns)));
        let rows: Vec<&Row> = state.rows.iter().filter(|row| filter.holds(row, &[])).collect();
        let (sql, expected) = if self.random.chance(50) {
            let of = |at: usize| rows.iter().map(move |row| row[at].clone()).filter(|value| !value.is_null());
            let sum = of(t).filter_map(|value| value.int()).reduce(|sum, value| sum + value);
            let row = vec![
                Value::Int(rows.len() as i64),
                Value::Int(of(b).count() as i64),
                sum.map_or(Value::Null, Value::Int),
                of(x).min().unwrap_or(Value::Null),
                of(b).max().unwrap_or(Value::Null),
            ];
            (format!("SELECT count(*), count({bn}), sum({tn}), min({xn}), max({bn}) {rest}"), vec![row])
        } else {
            let mut groups: BTreeMap<Value, i64> = BTreeMap::new();
            rows.iter().for_each(|row| *groups.entry(row[t].clone()).or_default() += 1);
            let groups = groups.into_iter().map(|(group, count)| vec![group, Value::Int(count)]).collect();
            (format!("SELECT {tn}, count(*) {rest} GROUP BY {tn}"), groups)
        };
        let found = self.query(&sql).await?;
        same_rows(&sql, &expected, &found)
    }

    /// One table at two moments in one statement, and a view at a moment.
    pub async fn across_moments(&mut self) -> Check {
        let ((one_at, one), (two_at, two)) = (self.moment(Which::Docs), self.moment(Which::Docs));
        let keys = |state: &State| state.keys();
        let (sql, expected): (String, Vec<i64>) = match self.random.below(3) {
            0 => (
                format!("SELECT x.id FROM docs {one_at} AS x JOIN docs {two_at} AS y ON x.id = y.id"),
                keys(&one).intersection(&keys(&two)).copied().collect(),
            ),
            1 => (
                format!("SELECT id FROM docs {one_at} WHERE id NOT IN (SELECT id FROM docs {two_at})"),
                keys(&one).difference(&keys(&two)).copied().collect(),
            ),
            _ => (format!("SELECT id FROM docs_ids {one_at}"), keys(&one).into_iter().collect()),
        };
        let expected: Vec<Vec<Value>> = expected.into_iter().map(|key| vec![Value::Int(key)]).collect();
        let found = self.query(&sql).await?;
        same_rows(&sql, &expected, &found)
    }

    /// A row by its key, at any moment.
    pub async fn point(&mut self) -> Check {
        let (moment, state) = self.moment(Which::Docs);
        let key = crate::statement::key_there(&mut self.random, &state);
        let sql = format!("SELECT * FROM docs {moment} WHERE id = {key}");
        let expected: Vec<Vec<Value>> =
            state.rows.iter().filter(|row| row[0] == Value::Int(key)).map(|row| row.as_ref().clone()).collect();
        let found = self.query(&sql).await?;
        same_rows(&sql, &expected, &found)
    }

    /// The whole session in the past: reads see it, writes are refused.
    pub async fn session_in_the_past(&mut self) -> Check {
        let Some((at, _, state)) = self.model.docs.dated(&mut self.random) else { return Ok(()) };
        let at = timestamp(at).replace(' ', "T");
        let set = format!("SET as_of = '{at}Z'");
        if let crate::driver::Outcome::Failed(error) = self.ask(&set).await {
            return Err(format!("{set} failed: {error}"));
        }
        self.compare(Which::Docs, "", &state).await?;
        self.figures.versions += 1;
        for sql in ["INSERT INTO docs (id) VALUES (100000)", "DELETE FROM docs", "TRUNCATE TABLE docs"] {
            self.must_fail(sql).await?;
        }
        match self.ask("RESET as_of").await {
            crate::driver::Outcome::Failed(error) => Err(format!("RESET as_of failed: {error}")),
            _ => Ok(()),
        }
    }

    /// What `table_changes` says between two versions with the same columns. Rows that were written anew as they
    /// were may be listed or not.
    pub async fn changes(&mut self, which: Which) -> Check {
        let table = self.model.table(which);
        let (one, two) = (table.known(&mut self.random), table.known(&mut self.random));
        let ((from, old), (to, new)) = if one.0 <= two.0 { (one, two) } else { (two, one) };
        if !old.is_like(&new) {
            return Ok(());
        }
        let names = new.names().join(", ");
        let sql = format!("SELECT {CHANGE}, {names} FROM table_changes('{}', {from}, {to})", table.name);
        let has_key = table.has_key;
        let found = self.query(&sql).await?;
        self.figures.versions += 1;
        let (mut removed, mut added) = (vec![], vec![]);
        for mut row in found {
            let kind = row.remove(0);
            match &kind {
                Value::Text(kind) if kind == "delete" || kind == "update_before" => removed.push((row, kind.clone())),
                Value::Text(kind) if kind == "insert" || kind == "update_after" => added.push((row, kind.clone())),
                other => return Err(format!("{CHANGE} is {other}\n{sql}")),
            }
        }
        let rows = |side: &[(Vec<Value>, String)]| side.iter().map(|(row, _)| row.clone()).collect::<Vec<_>>();
        // What is on both sides was written anew as it was.
        let (removed_alone, added_alone) = difference(&rows(&removed), &rows(&added));
        let (gone, come) = difference(&crate::driver::values(&old), &crate::driver::values(&new));
        same_rows(&format!("{sql} -- rows that are gone"), &gone, &removed_alone)?;
        same_rows(&format!("{sql} -- rows that came"), &come, &added_alone)?;
        if has_key { check_kinds(&removed, &added).map_err(|problem| format!("{problem}\n{sql}")) } else { Ok(()) }
    }
}

/// With a key, what is on both sides is an update.
fn check_kinds(removed: &[(Vec<Value>, String)], added: &[(Vec<Value>, String)]) -> Check {
    let keys = |side: &[(Vec<Value>, String)]| side.iter().map(|(row, _)| row[0].clone()).collect::<BTreeSet<_>>();
    let (before, after) = (keys(removed), keys(added));
    for (side, other, alone, half) in
        [(removed, &after, "delete", "update_before"), (added, &before, "insert", "update_after")]
    {
        for (row, kind) in side {
            let expected = if other.contains(&row[0]) { half } else { alone };
            if kind != expected {
                return Err(format!("the change of key {} is {kind}, expected {expected}", row[0]));
            }
        }
    }
    Ok(())
}

/// The distance in double precision; none where there is no direction.
fn distance(metric: &str, one: &[f32; DIM], two: &[f32; DIM]) -> Option<f64> {
    let pairs = || one.iter().zip(two).map(|(one, two)| (f64::from(*one), f64::from(*two)));
    let dot: f64 = pairs().map(|(one, two)| one * two).sum();
    match metric {
        "<->" => Some(pairs().map(|(one, two)| (one - two).powi(2)).sum::<f64>().sqrt()),
        "<+>" => Some(pairs().map(|(one, two)| (one - two).abs()).sum()),
        "<#>" => Some(-dot),
        _ => {
            let lengths: f64 =
                pairs().map(|(one, _)| one * one).sum::<f64>() * pairs().map(|(_, two)| two * two).sum::<f64>();
            (lengths > 0.0).then(|| 1.0 - dot / lengths.sqrt())
        }
    }
}

/// The `k` nearest of `matching`, in order; among rows of one distance any may be there.
fn check_nearest(found: &[Vec<Value>], matching: &BTreeMap<i64, f64>, k: usize) -> Check {
    let mut expected: Vec<f64> = matching.values().copied().collect();
    expected.sort_by(f64::total_cmp);
    expected.truncate(k);
    if found.len() != expected.len() {
        return Err(format!("{} rows found, {} expected", found.len(), expected.len()));
    }
    let close = |one: f64, two: f64| (one - two).abs() <= DISTANCE_ERROR_MAX * (1.0 + two.abs());
    let mut seen = BTreeSet::new();
    for (row, expected) in found.iter().zip(&expected) {
        let (Some(key), Some(distance)) = (row[0].int(), row[1].double()) else {
            return Err(format!("a row without key or distance: {}", crate::expression::listed(row)));
        };
        let Some(own) = matching.get(&key) else { return Err(format!("row {key} does not match the filter")) };
        if !seen.insert(key) {
            return Err(format!("row {key} is there twice"));
        }
        if !close(distance, *own) {
            return Err(format!("row {key} is at {own}, the search says {distance}"));
        }
        if !close(distance, *expected) {
            return Err(format!("row {key} is at {distance}, the neighbor in its place at {expected}"));
        }
    }
    Ok(())
}
