//! The model: tables as plain rows, and every version that is remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::random::Random;
use crate::value::{Kind, Value};

/// Versions of one table that are kept for comparison; of more, random ones are forgotten.
const VERSIONS_MAX: usize = 400;

/// A column of one version.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
    /// What a row gets that does not name the column; `None` after a RESTORE, when statements name it always.
    pub default: Option<Value>,
}

impl Column {
    pub fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind, default: Some(Value::Null) }
    }
}

pub type Row = Arc<Vec<Value>>;

/// What a table holds in one version. Rows have no order.
#[derive(Clone, Debug)]
pub struct State {
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

impl State {
    /// Columns of a type, by index; the first column, the key, is never among them.
    pub fn of_kind(&self, kind: Kind) -> Vec<usize> {
        (1..self.columns.len()).filter(|at| self.columns[*at].kind == kind).collect()
    }

    /// The first column of a type, which ALTER never drops.
    pub fn first(&self, kind: Kind) -> usize {
        self.columns.iter().skip(1).position(|column| column.kind == kind).map_or(0, |at| at + 1)
    }

    pub fn keys(&self) -> BTreeSet<i64> {
        self.rows.iter().filter_map(|row| row[0].int()).collect()
    }

    /// The rows with these instead of those for which `goes` is true.
    pub fn with(&self, goes: impl Fn(&Row) -> bool, come: impl IntoIterator<Item = Vec<Value>>) -> Self {
        let mut rows: Vec<Row> = self.rows.iter().filter(|row| !goes(row)).cloned().collect();
        rows.extend(come.into_iter().map(Arc::new));
        Self { columns: self.columns.clone(), rows }
    }

    /// Whether no key is NULL or there twice.
    pub fn has_good_keys(&self) -> bool {
        self.keys().len() == self.rows.len()
    }

    pub fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }

    /// True if rows of both can be compared: the same columns in the same order.
    pub fn is_like(&self, other: &Self) -> bool {
        self.columns.len() == other.columns.len()
            && self.columns.iter().zip(&other.columns).all(|(one, two)| one.name == two.name && one.kind == two.kind)
    }
}

/// A table of the model.
pub struct Table {
    pub name: &'static str,
    pub has_key: bool,
    pub head: Arc<State>,
    /// The number of the newest version.
    pub version: u64,
    /// The first version since the table was made.
    pub first: u64,
    /// A bounded sample of versions, the newest among them.
    pub versions: BTreeMap<u64, Arc<State>>,
    /// When versions were committed, as far as `table_history` was read, in microseconds.
    pub times: BTreeMap<u64, i64>,
    pub tags: BTreeMap<String, (u64, Arc<State>)>,
    /// Names of columns that were dropped or renamed.
    pub gone: Vec<String>,
    /// Names that were given, so that each new one is new.
    pub names_given: usize,
}

impl Table {
    pub fn new(name: &'static str, has_key: bool, columns: Vec<Column>, version: u64) -> Self {
        let head = Arc::new(State { columns, rows: vec![] });
        Self {
            name,
            has_key,
            head: Arc::clone(&head),
            version,
            first: version,
            versions: [(version, head)].into(),
            times: BTreeMap::new(),
            tags: BTreeMap::new(),
            gone: vec![],
            names_given: 0,
        }
    }

    /// Remembers a new version.
    pub fn commit(&mut self, state: Arc<State>, version: u64, random: &mut Random) {
        self.version = version;
        self.head = Arc::clone(&state);
        self.versions.insert(version, state);
        if self.versions.len() > VERSIONS_MAX {
            let old: Vec<u64> = self.versions.keys().copied().filter(|known| *known != version).collect();
            self.versions.remove(random.pick(&old));
        }
    }

    /// One of the versions that are remembered.
    pub fn known(&self, random: &mut Random) -> (u64, Arc<State>) {
        let versions: Vec<u64> = self.versions.keys().copied().collect();
        let version = *random.pick(&versions);
        (version, Arc::clone(&self.versions[&version]))
    }

    /// A remembered version whose time and whose successor's time are known, and a moment between both.
    pub fn dated(&self, random: &mut Random) -> Option<(i64, u64, Arc<State>)> {
        let spans: Vec<(u64, i64, i64)> = self
            .versions
            .keys()
            .filter_map(|version| Some((*version, *self.times.get(version)?, *self.times.get(&(version + 1))?)))
            .collect();
        if spans.is_empty() {
            return None;
        }
        let (version, from, to) = *random.pick(&spans);
        let at = if random.chance(20) { from } else { from + (to - from) / 2 };
        Some((at, version, Arc::clone(&self.versions[&version])))
    }
}

/// Both tables.
pub struct Model {
    /// `docs`, with a primary key.
    pub docs: Table,
    /// `log`, without one.
    pub log: Table,
}

/// The tables of a [`Model`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Docs,
    Log,
}

impl Model {
    pub fn table(&self, which: Which) -> &Table {
        match which {
            Which::Docs => &self.docs,
            Which::Log => &self.log,
        }
    }

    pub fn table_mut(&mut self, which: Which) -> &mut Table {
        match which {
            Which::Docs => &mut self.docs,
            Which::Log => &mut self.log,
        }
    }
}

/// Sorted rows that only one side has, as lines of text: expected and missing, found and not expected.
pub fn difference(expected: &[Vec<Value>], found: &[Vec<Value>]) -> (Vec<Vec<Value>>, Vec<Vec<Value>>) {
    let (mut expected, mut found) = (expected.to_vec(), found.to_vec());
    expected.sort();
    found.sort();
    let (mut missing, mut extra) = (vec![], vec![]);
    let (mut one, mut two) = (expected.into_iter().peekable(), found.into_iter().peekable());
    loop {
        let order = match (one.peek(), two.peek()) {
            (None, None) => return (missing, extra),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(one), Some(two)) => one.cmp(two),
        };
        if order.is_eq() {
            one.next();
            two.next();
        } else if order.is_lt() {
            missing.extend(one.next());
        } else {
            extra.extend(two.next());
        }
    }
}
