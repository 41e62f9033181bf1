//! One run of random statements by two handles on a store that fails. After each statement the table is read as another
//! process would over the same store without faults, all of it, and compared with what the answer allows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field};
use datafusion::common::ScalarValue;
use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::world::{Content, KEY, Values, World, find, is_definite, read, tags, there};
use crate::error::Result;
use crate::fixtures::faulty::{Faulty, next};
use crate::fixtures::{definition, name, open, stream};
use crate::{AsOf, Change, CreateMode, Database, IdempotencyKey, NewDefault, NewScalarIndex, Once, TableDefinition};

/// Statements of a run.
const STEPS: u32 = 40;

/// Handles on the database, as so many processes would have.
const HANDLES: usize = 2;

/// Of a thousand requests, how many fail; runs take turns.
const FAILING_PER_MILLE: [u64; 3] = [10, 30, 80];

/// How often something is tried that must succeed in the end.
const TRIES_MAX: u32 = 200;

/// How often a statement with an idempotency key is sent.
const SENT_MAX: usize = 5;

const COLUMNS_MAX: usize = 4;

const NOW: i64 = i64::MAX;

/// A statement with its answer in words, and what may be there afterwards.
type Done = (String, Vec<World>);

/// A table's id, and a version of it.
type At = (String, u64);

struct Run {
    seed: u64,
    random: u64,
    is_keyed: bool,
    faulty: Arc<Faulty>,
    /// The same files, without faults.
    clean: Arc<Faulty>,
    handles: Vec<Database>,
    /// What is there.
    world: World,
    now: At,
    /// What each version held that was ever seen.
    past: BTreeMap<At, Content>,
    /// Versions that nothing may have taken away.
    kept: BTreeSet<At>,
    /// A VACUUM met faults, perhaps: versions that are not kept may be there in part.
    has_remains: bool,
    key: i32,
    /// Grows with each value that is written, so that a row that rises again is known.
    stamp: i64,
}

/// Runs the statements of a seed. Returns the faults that happened.
pub(super) async fn run(seed: u64) -> u64 {
    let mut run = Box::pin(Run::begin(seed)).await;
    for step in 0..STEPS {
        Box::pin(run.step(step)).await;
    }
    Box::pin(run.end()).await;
    run.faulty.chances()
}

/// What the answer of a statement allows that leads from one world to another.
fn done<T: Debug>(what: &str, outcome: Result<T>, before: &World, after: World) -> Done {
    let allowed = match &outcome {
        Ok(_) => vec![after],
        Err(error) if is_definite(error) => vec![before.clone()],
        Err(_) => vec![before.clone(), after],
    };
    (format!("{what}: {outcome:?}"), allowed)
}

async fn append(database: &Database, batch: RecordBatch) -> Result<u64> {
    let entry = there(database).await?;
    database.append(&name("t"), &entry, stream(vec![batch]), None).await
}

async fn open_in_the_end(store: &Arc<Faulty>) -> Database {
    for _ in 0..TRIES_MAX {
        if let Ok(database) = open(store).await {
            return database;
        }
    }
    panic!("the database cannot be opened, tried {TRIES_MAX} times");
}

impl Run {
    async fn begin(seed: u64) -> Self {
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let (faulty, clean) = (Faulty::new(memory.clone(), seed), Faulty::new(memory, 0));
        faulty.fail_by_chance(FAILING_PER_MILLE[seed as usize % FAILING_PER_MILLE.len()]);
        let mut handles = Vec::new();
        for _ in 0..HANDLES {
            handles.push(open_in_the_end(&faulty).await);
        }
        let content = Content { columns: vec!["a".to_owned()], rows: BTreeMap::new() };
        let world = World { content, tags: BTreeMap::new() };
        let mut run = Self {
            seed,
            random: seed,
            is_keyed: seed.is_multiple_of(2),
            faulty,
            clean,
            handles,
            world: world.clone(),
            now: At::default(),
            past: BTreeMap::new(),
            kept: BTreeSet::new(),
            has_remains: false,
            key: 0,
            stamp: 0,
        };
        run.create().await;
        run.settle(&format!("seed {seed}: create"), vec![world]).await;
        run
    }

    /// Creates the table, however often that takes.
    async fn create(&self) {
        for _ in 0..TRIES_MAX {
            let definition = self.definition(&self.world.content);
            let made = self.handles[0].create_table(&name("t"), definition, CreateMode::ErrorIfExists).await;
            let is_there = find(&open(&self.clean).await.unwrap()).await.unwrap().is_some();
            match &made {
                Ok(_) => assert!(is_there, "seed {}: {made:?}", self.seed),
                Err(error) => assert!(!is_there || !is_definite(error), "seed {}: {made:?}", self.seed),
            }
            if is_there {
                return;
            }
        }
        panic!("seed {}: the table cannot be created, tried {TRIES_MAX} times", self.seed);
    }

    fn definition(&self, content: &Content) -> TableDefinition {
        let primary_key = if self.is_keyed { vec![KEY.to_owned()] } else { vec![] };
        TableDefinition { primary_key, ..definition(content.schema()) }
    }

    /// One statement by one of the handles.
    async fn step(&mut self, step: u32) {
        let writer = self.random(HANDLES);
        let database = self.handles[writer].clone();
        let (what, allowed) = match self.random(100) {
            0..18 => self.append(&database).await,
            18..23 => self.append_taken_key(&database).await,
            23..32 => self.append_at_once().await,
            32..44 => self.change(&database, true).await,
            44..53 => self.change(&database, false).await,
            53..59 => self.send_once().await,
            59..65 => self.create_tag(&database).await,
            65..68 => self.drop_tag(&database).await,
            68..75 => self.restore(&database).await,
            75..83 => self.optimize(&database).await,
            83..88 => self.vacuum(&database).await,
            88..94 => self.add_column(&database).await,
            94..95 => self.truncate(&database).await,
            95..98 => self.index(&database).await,
            _ => self.replace(&database).await,
        };
        self.settle(&format!("seed {} step {step}: {what}", self.seed), allowed).await;
        self.look(&database).await;
        if self.random(8) == 0 {
            self.handles[writer] = open_in_the_end(&self.faulty).await;
        }
    }

    /// Reads the table as another process would, without faults.
    async fn settle(&mut self, shown: &str, allowed: Vec<World>) {
        let database = open(&self.clean).await.unwrap();
        let entry = there(&database).await.unwrap();
        let snapshot = database.snapshot(&entry).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
        let (content, _) = read(&snapshot).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
        let world = World { content, tags: tags(&snapshot).await.unwrap() };
        assert!(allowed.contains(&world), "{shown}\nthere is {world:?}\nthere may be {allowed:?}");
        if self.now.0 != entry.id {
            self.kept.clear();
        }
        self.now = (entry.id, snapshot.version());
        let before = self.past.insert(self.now.clone(), world.content.clone());
        assert!(before.is_none_or(|before| before == world.content), "{shown}: a version has changed");
        self.kept.insert(self.now.clone());
        self.world = world;
    }

    /// Reads through the faults: what is answered is right.
    async fn look(&mut self, database: &Database) {
        let kept: Vec<At> = self.kept.iter().cloned().collect();
        let at = kept[self.random(kept.len())].clone();
        let newest = async { read(&database.snapshot(&there(database).await?).await?).await };
        if let Ok((content, _)) = newest.await {
            assert_eq!(content, self.world.content, "seed {}: the newest version", self.seed);
        }
        let older = async {
            let entry = there(database).await?;
            read(&database.snapshot_at(&entry, &AsOf::Version(at.1), NOW).await?).await
        };
        if let Ok((content, _)) = older.await {
            assert_eq!(content, self.past[&at], "seed {}: {at:?}", self.seed);
        }
    }

    /// The faults are over: everything can be read and written, by the handles that lived through them and by new ones.
    async fn end(&mut self) {
        self.faulty.clear();
        self.handles.push(open(&self.faulty).await.unwrap());
        for database in self.handles.clone() {
            let (what, allowed) = self.append(&database).await;
            let shown = format!("seed {} after the faults: {what}", self.seed);
            assert!(allowed.len() == 1 && allowed[0] != self.world, "{shown}");
            self.settle(&shown, allowed).await;
        }
        let database = open(&self.clean).await.unwrap();
        let entry = there(&database).await.unwrap();
        for at in &self.kept {
            let snapshot = database.snapshot_at(&entry, &AsOf::Version(at.1), NOW).await;
            let (content, _) = read(&snapshot.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed)))
                .await
                .unwrap_or_else(|error| panic!("seed {}: {at:?}: {error}", self.seed));
            assert_eq!(content, self.past[at], "seed {}: {at:?}", self.seed);
        }
        for (tag, version) in &self.world.tags {
            let snapshot = database.snapshot_at(&entry, &AsOf::Tag(tag.clone()), NOW).await.unwrap();
            assert_eq!(snapshot.version(), *version, "seed {}: tag {tag}", self.seed);
        }
        let report = database.check(&entry).await.unwrap();
        let is_whole = report.files_missing == 0 || self.has_remains;
        assert!(is_whole && report.files_damaged == 0, "seed {}: {report:?}", self.seed);
    }

    fn random(&mut self, below: usize) -> usize {
        self.random = next(self.random);
        (self.random % below.max(1) as u64) as usize
    }

    fn row(&mut self, columns: usize) -> Values {
        let value = |_| {
            self.stamp += 1;
            (self.stamp % 7 != 0).then_some(self.stamp)
        };
        (0..columns).map(value).collect()
    }

    /// Rows with keys that were never used.
    fn rows(&mut self, columns: usize) -> BTreeMap<i32, Values> {
        let mut rows = BTreeMap::new();
        for _ in 0..=self.random(5) {
            self.key += 1;
            rows.insert(self.key, self.row(columns));
        }
        rows
    }

    /// Rows to append to what is there.
    fn more(&mut self) -> BTreeMap<i32, Values> {
        self.rows(self.world.content.columns.len())
    }

    fn batch(&self, rows: &BTreeMap<i32, Values>) -> RecordBatch {
        self.world.content.batch(rows)
    }

    /// What is there, with more rows.
    fn with(&self, rows: BTreeMap<i32, Values>) -> World {
        let mut after = self.world.clone();
        after.content.rows.extend(rows);
        after
    }

    async fn append(&mut self, database: &Database) -> Done {
        let rows = self.more();
        let outcome = append(database, self.batch(&rows)).await;
        done("append", outcome, &self.world, self.with(rows))
    }

    async fn append_taken_key(&mut self, database: &Database) -> Done {
        let keys: Vec<i32> = self.world.content.rows.keys().copied().collect();
        if !self.is_keyed || keys.is_empty() {
            return self.append(database).await;
        }
        let mut rows = self.more();
        let key = keys[self.random(keys.len())];
        let row = self.row(self.world.content.columns.len());
        rows.insert(key, row);
        let outcome = append(database, self.batch(&rows)).await;
        assert!(outcome.is_err(), "seed {}: key {key} was taken", self.seed);
        done("append of a taken key", outcome, &self.world, self.world.clone())
    }

    /// Appends at the same time, two of them by one handle.
    async fn append_at_once(&mut self) -> Done {
        let all = [self.more(), self.more(), self.more()];
        let write = |at: usize| Box::pin(append(&self.handles[at % HANDLES], self.batch(&all[at])));
        let (first, second, third) = futures::join!(write(0), write(1), write(2));
        let mut worlds = vec![self.world.clone()];
        let mut shown = String::from("appends at once:");
        for (rows, outcome) in all.iter().zip([first, second, third]) {
            shown = format!("{shown} {outcome:?}");
            let with = worlds.iter().cloned().map(|mut world| {
                world.content.rows.extend(rows.clone());
                world
            });
            let with: Vec<World> = with.collect();
            match outcome {
                Ok(_) => worlds = with,
                Err(error) if is_definite(&error) => {}
                Err(_) => worlds.extend(with),
            }
        }
        (shown, worlds)
    }

    /// Takes some rows away; an upsert puts new ones in their place and beside them.
    async fn change(&mut self, database: &Database, is_upsert: bool) -> Done {
        let all: Vec<i32> = self.world.content.rows.keys().copied().collect();
        let gone: Vec<i32> = all.into_iter().filter(|_| self.random(3) == 0).collect();
        let mut after = self.world.clone();
        after.content.rows.retain(|key, _| !gone.contains(key));
        let inserted = is_upsert.then(|| {
            let mut rows = self.more();
            for key in &gone {
                rows.insert(*key, self.row(self.world.content.columns.len()));
            }
            rows
        });
        after.content.rows.extend(inserted.clone().unwrap_or_default());
        let batch = inserted.map(|rows| self.batch(&rows));
        let expected = &self.world.content;
        let outcome = async {
            let turn = database.turn(&name("t"), &there(database).await?).await?;
            let (found, addresses) = read(turn.snapshot()).await?;
            assert_eq!(found, *expected, "seed {}: a turn begins with the newest version", self.seed);
            let deleted = gone.iter().map(|key| addresses[key]).collect();
            let inserted = batch.map(|batch| stream(vec![batch]));
            turn.commit(Change { operation: "UPDATE", deleted, inserted, copied: None, progress: None, once: None })
                .await
        };
        let outcome = outcome.await;
        done(if is_upsert { "upsert" } else { "delete" }, outcome, &self.world, after)
    }

    /// A statement with an idempotency key, sent until it is answered.
    async fn send_once(&mut self) -> Done {
        let rows = self.more();
        let key = IdempotencyKey { key: format!("key {}", self.stamp), statement: "INSERT".to_owned() };
        let mut is_certain = true;
        let mut shown = String::from("once:");
        for attempt in 0..SENT_MAX {
            let outcome = send(&self.handles[attempt % HANDLES], self.batch(&rows), &key).await;
            shown = format!("{shown} {outcome:?}");
            match outcome {
                Ok(()) => return (shown, vec![self.with(rows)]),
                Err(error) => is_certain &= is_definite(&error),
            }
        }
        let after = self.with(rows);
        let allowed = if is_certain { vec![self.world.clone()] } else { vec![self.world.clone(), after] };
        (shown, allowed)
    }

    async fn create_tag(&mut self, database: &Database) -> Done {
        self.stamp += 1;
        let tag = format!("tag-{}", self.stamp);
        let mut after = self.world.clone();
        after.tags.insert(tag.clone(), self.now.1);
        let outcome = async { database.create_tag(&there(database).await?, &tag, None, NOW).await };
        done("create tag", outcome.await, &self.world, after)
    }

    async fn drop_tag(&mut self, database: &Database) -> Done {
        let all: Vec<String> = self.world.tags.keys().cloned().collect();
        if all.is_empty() {
            return self.create_tag(database).await;
        }
        let tag = all[self.random(all.len())].clone();
        let mut after = self.world.clone();
        after.tags.remove(&tag);
        let outcome = async { database.drop_tag(&there(database).await?, &tag, false).await };
        done("drop tag", outcome.await, &self.world, after)
    }

    /// Goes back to any version that ever was: what a VACUUM took, wholly or in part, is refused.
    async fn restore(&mut self, database: &Database) -> Done {
        let all: Vec<At> = self.past.keys().filter(|at| at.0 == self.now.0).cloned().collect();
        let at = all[self.random(all.len())].clone();
        let after = World { content: self.past[&at].clone(), ..self.world.clone() };
        let outcome = async {
            let entry = there(database).await?;
            database.restore(&name("t"), &entry, &AsOf::Version(at.1), NOW).await
        };
        done(&format!("restore {}", at.1), outcome.await, &self.world, after)
    }

    async fn optimize(&mut self, database: &Database) -> Done {
        let outcome = async { database.optimize(&name("t"), &there(database).await?, false).await };
        done("optimize", outcome.await, &self.world, self.world.clone())
    }

    /// Removes all versions but the newest and those with tags.
    async fn vacuum(&mut self, database: &Database) -> Done {
        let outcome = async {
            let entry = there(database).await?;
            let since = database.snapshot(&entry).await?.committed_at_us();
            database.vacuum(&entry, since, false).await
        };
        let outcome = outcome.await;
        self.has_remains = true;
        let tagged: Vec<u64> = self.world.tags.values().copied().collect();
        let now = self.now.1;
        self.kept.retain(|at| at.1 >= now || tagged.contains(&at.1));
        done("vacuum", outcome, &self.world, self.world.clone())
    }

    async fn add_column(&mut self, database: &Database) -> Done {
        if self.world.content.columns.len() >= COLUMNS_MAX {
            return self.truncate(database).await;
        }
        self.stamp += 1;
        let column = format!("c{}", self.stamp);
        let value = (self.random(2) == 0).then_some(self.stamp);
        let default = value.map(|value| NewDefault { sql: value.to_string(), value: ScalarValue::Int64(Some(value)) });
        let mut after = self.world.clone();
        after.content.columns.push(column.clone());
        after.content.rows.values_mut().for_each(|values| values.push(value));
        let field = Field::new(column, DataType::Int64, true);
        let outcome = async { database.add_column(&name("t"), &there(database).await?, &field, default).await };
        done("add column", outcome.await, &self.world, after)
    }

    /// Makes, updates, rebuilds or drops an index, which changes no row.
    async fn index(&mut self, database: &Database) -> Done {
        let t = name("t");
        let way = self.random(5);
        let outcome = async {
            let entry = there(database).await?;
            match way {
                0 | 1 => {
                    let (index, column) = ("i".to_owned(), "a".to_owned());
                    let method = if way == 0 { "btree" } else { "zonemap" }.to_owned();
                    let new = NewScalarIndex { name: index, column, method, parameters: None };
                    database.create_scalar_index(&t, &entry, new).await.map(|()| true)
                }
                2 => database.update_scalar_indexes(&t, &entry, 1).await.map(|_| true),
                3 => database.rebuild_scalar_index(&t, &entry, "i").await.map(|()| true),
                _ => database.drop_scalar_index(&t, &entry, "i").await,
            }
        };
        done("index", outcome.await, &self.world, self.world.clone())
    }

    async fn truncate(&mut self, database: &Database) -> Done {
        let mut after = self.world.clone();
        after.content.rows.clear();
        let outcome = async { database.truncate(&name("t"), &there(database).await?).await };
        done("truncate", outcome.await, &self.world, after)
    }

    /// `CREATE OR REPLACE TABLE … AS`.
    async fn replace(&mut self, database: &Database) -> Done {
        let mut content = Content { columns: vec!["a".to_owned()], rows: BTreeMap::new() };
        content.rows = self.rows(content.columns.len());
        let (definition, rows) = (self.definition(&content), stream(vec![content.batch(&content.rows)]));
        let mode = CreateMode::OrReplace;
        let outcome = database.create_table_from(&name("t"), definition, mode, rows, None).await;
        done("replace", outcome, &self.world, World { content, tags: BTreeMap::new() })
    }
}

/// Applies a statement unless it was applied before.
async fn send(database: &Database, batch: RecordBatch, key: &IdempotencyKey) -> Result<()> {
    let count = batch.num_rows() as u64;
    let turn = database.turn(&name("t"), &there(database).await?).await?;
    if let Some(before) = turn.applied(key).await? {
        assert_eq!(before, count, "the answer of the first time");
        return Ok(());
    }
    let once = Some(Once { key: key.clone(), count });
    let inserted = Some(stream(vec![batch]));
    turn.commit(Change { operation: "INSERT", deleted: vec![], inserted, copied: None, progress: None, once })
        .await
        .map(|_| ())
}
