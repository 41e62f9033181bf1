//! Versions: tags, RESTORE, the history, and the comparison of random older versions.

use std::sync::Arc;

use crate::driver::{Check, Driver, Outcome};
use crate::model::{State, Which};
use crate::value::{Value, timestamp};

/// Tags that a table has at most.
const TAGS_MAX: usize = 6;
/// Older versions that a checkpoint compares, of both tables.
const VERSIONS_COMPARED: usize = 10;

impl Driver {
    /// CREATE TAG, of the newest version or an older one; DROP TAG; both refused where they must be.
    pub async fn tag(&mut self, which: Which) -> Check {
        let table = self.model.table(which);
        let name = table.name;
        let tags: Vec<String> = table.tags.keys().cloned().collect();
        if !tags.is_empty() && self.random.chance(10) {
            let tag = self.random.pick(&tags).clone();
            return self.must_fail(&format!("CREATE TAG {tag} ON {name}")).await;
        }
        if self.random.chance(5) {
            return self.must_fail(&format!("DROP TAG never_tagged ON {name}")).await;
        }
        if tags.len() >= TAGS_MAX || (!tags.is_empty() && self.random.chance(40)) {
            let tag = self.random.pick(&tags).clone();
            self.done(&format!("DROP TAG {tag} ON {name}")).await?;
            self.model.table_mut(which).tags.remove(&tag);
            return self.must_fail(&format!("SELECT * FROM {name} FOR VERSION AS OF '{tag}'")).await;
        }
        let tag = loop {
            let tag = format!("tag_{}", self.random.below(100));
            if !tags.contains(&tag) {
                break tag;
            }
        };
        let table = self.model.table(which);
        let (version, state) = table.known(&mut self.random);
        let (clause, version, state) = match self.random.chance(50) {
            true => (String::new(), table.version, Arc::clone(&table.head)),
            false => (format!(" AS OF VERSION {version}"), version, state),
        };
        self.done(&format!("CREATE TAG {tag} ON {name}{clause}")).await?;
        self.compare(which, &format!("FOR VERSION AS OF '{tag}'"), &state).await?;
        self.model.table_mut(which).tags.insert(tag.clone(), (version, state));
        let sql = format!("SELECT version FROM table_history('{name}') WHERE array_has(tags, '{tag}')");
        let found = self.query(&sql).await?;
        crate::driver::same_rows(&sql, &[vec![Value::Int(version as i64)]], &found)
    }

    async fn done(&mut self, sql: &str) -> Check {
        match self.ask(sql).await {
            Outcome::Failed(error) => Err(format!("{sql} failed: {:?}: {error}", error.kind)),
            _ => Ok(()),
        }
    }

    /// RESTORE to a version, a tag or a time.
    pub async fn restore(&mut self, which: Which) -> Check {
        let table = self.model.table(which);
        let name = table.name;
        let tags: Vec<&String> = table.tags.keys().collect();
        let (to, state): (String, Arc<State>) = match self.random.below(3) {
            0 if !tags.is_empty() => {
                let tag = (*self.random.pick(&tags)).clone();
                (format!("TAG '{tag}'"), Arc::clone(&table.tags[&tag].1))
            }
            1 => match table.dated(&mut self.random) {
                Some((at, _, state)) => (format!("TIMESTAMP '{}'", timestamp(at)), state),
                None => return Ok(()),
            },
            _ => {
                let (version, state) = table.known(&mut self.random);
                (format!("VERSION {version}"), state)
            }
        };
        self.done(&format!("RESTORE TABLE {name} TO {to}")).await?;
        let mut state = State::clone(&state);
        // Whether a default comes back with its column is not said anywhere: statements name such columns.
        let unknown = |value: &Option<Value>| !matches!(value, Some(Value::Null));
        let is_unknown = |column: &str, state: &State| {
            state.columns.iter().any(|other| other.name == column && unknown(&other.default))
        };
        let head = Arc::clone(&self.model.table(which).head);
        let names: Vec<String> = state.names();
        for (at, column) in names.iter().enumerate() {
            let is_same = head.columns.iter().any(|other| {
                other.name == *column && other.kind == state.columns[at].kind && other.default == Some(Value::Null)
            });
            if !is_same || is_unknown(column, &head) || unknown(&state.columns[at].default) {
                state.columns[at].default = None;
            }
        }
        if let Some(key) = state.columns.first_mut() {
            key.default = Some(Value::Null);
        }
        self.settle(which, Arc::new(state)).await
    }

    /// Reads the history of both tables and compares random older versions, by number and by time.
    pub async fn checkpoint(&mut self) -> Check {
        for which in [Which::Docs, Which::Log] {
            self.check_history(which).await?;
            self.compare_head(which).await?;
        }
        for at in 0..VERSIONS_COMPARED {
            let which = if self.random.chance(70) { Which::Docs } else { Which::Log };
            let table = self.model.table(which);
            let (clause, state) = match table.dated(&mut self.random) {
                Some((micros, _, state)) if at % 2 == 0 => {
                    (format!("FOR SYSTEM_TIME AS OF TIMESTAMP '{}'", timestamp(micros)), state)
                }
                _ => {
                    let (version, state) = table.known(&mut self.random);
                    (format!("FOR VERSION AS OF {version}"), state)
                }
            };
            self.compare(which, &clause, &state).await?;
            self.figures.versions += 1;
        }
        self.changes(Which::Docs).await?;
        self.changes(Which::Log).await
    }

    /// Every version since the table was made is listed once, in order, later than the one before, with its rows.
    async fn check_history(&mut self, which: Which) -> Check {
        let name = self.model.table(which).name;
        let sql = format!("SELECT version, committed_at, rows FROM table_history('{name}') ORDER BY version");
        let found = self.query(&sql).await?;
        let table = self.model.table_mut(which);
        let expected = table.first..=table.version;
        let numbers: Vec<u64> = found.iter().filter_map(|row| row[0].int()).map(|version| version as u64).collect();
        if !numbers.iter().copied().eq(expected.clone()) {
            return Err(format!(
                "{name} has {} versions {:?} to {:?}, the model says {expected:?}\n{sql}",
                numbers.len(),
                numbers.first(),
                numbers.last()
            ));
        }
        table.times.clear();
        let mut last = i64::MIN;
        for row in &found {
            let [Value::Int(version), Value::Int(at), Value::Int(rows)] = row.as_slice() else {
                return Err(format!(
                    "a version without number, time or rows: {}\n{sql}",
                    crate::expression::listed(row)
                ));
            };
            if *at <= last {
                return Err(format!("version {version} of {name} is not later than the one before\n{sql}"));
            }
            last = *at;
            table.times.insert(*version as u64, *at);
            if let Some(state) = table.versions.get(&(*version as u64))
                && state.rows.len() as i64 != *rows
            {
                return Err(format!(
                    "version {version} of {name} is said to have {rows} rows, the model has {}\n{sql}",
                    state.rows.len()
                ));
            }
        }
        Ok(())
    }
}
