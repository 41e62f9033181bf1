//! One bit of a file is another, in every kind of file that a database has: whatever is asked then, the answer is right
//! or an error that names the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::logical_expr::{ident, lit};
use futures::TryStreamExt;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::number;
use super::world::{find, there};
use crate::error::Result;
use crate::fixtures::faulty::{Faulty, next};
use crate::fixtures::{entry, foreign, ids, keyed, name, newest, open, request, rows, stream, table};
use crate::{
    AsOf, Change, Database, FindingStatus, IdempotencyKey, Once, OpenOptions, ScanRequest, Snapshot, StorageError,
    VersionInfo,
};

/// Bits that are flipped, one at a time.
const FLIPS: u64 = 3000;

/// Copies of the database on which flips are tried at the same time.
const COPIES: u64 = 4;

/// After one flip of so many, `CHECK TABLE` must find it too. No kind of file is left out: this has no divisor in common
/// with their number.
const CHECKED_EACH: u64 = 7;

const COLUMNS: [&str; 5] = ["id", "name", "price", "Big", "emb"];

/// Kinds of files: folders of a table, then what a database has beside its tables.
const CLASSES: [&str; 10] = [
    "_crc",
    "_deletions",
    "_indices",
    "_keys",
    "_refs",
    "_transactions",
    "_versions",
    "data",
    "_catalog",
    "sagitta.json",
];

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Newest,
    /// By the index.
    Indexed,
    Version(u64),
    Tag,
    History,
    Changes(u64),
    /// Whether the statement of an idempotency key was applied.
    Applied,
}

/// What is answered.
#[derive(Debug, PartialEq)]
enum Answer {
    Rows(u64, RecordBatch),
    History(Vec<VersionInfo>),
    Changes(Vec<u64>, Vec<u64>),
    Applied(Option<u64>),
}

/// A database as bytes, and what it answers.
struct Sample {
    files: Vec<(Path, bytes::Bytes)>,
    answers: Vec<(Question, Answer)>,
}

fn once() -> Once {
    Once { key: IdempotencyKey { key: "k".to_owned(), statement: "s".to_owned() }, count: 50 }
}

/// A table of several blocks with older versions, a tag, deleted rows, an index and a statement with a key.
async fn sample() -> Sample {
    let store = Faulty::new(Arc::new(InMemory::new()), 1);
    let database = open(&store).await.unwrap();
    database.create_schema("s", false).await.unwrap();
    let t = name("t");
    let first = keyed(&database, 0..1200).await.version();
    let entry = entry(&database, &t).await;
    database.append(&t, &entry, stream(vec![rows(1200..2400)]), None).await.unwrap();
    database.create_tag(&entry, "first", Some(&AsOf::Version(first)), i64::MAX).await.unwrap();
    let second = delete(&database, |id| id % 5 == 3, Some(stream(vec![rows(5000..5050)])), Some(once())).await;
    database.optimize(&t, &entry, false).await.unwrap();
    let mut dataset = foreign(&database).await;
    dataset.create_index(&["id"], IndexType::BTree, None, &ScalarIndexParams::default(), false).await.unwrap();
    delete(&database, |id| id % 50 == 7, None, None).await;
    let questions = [
        Question::Newest,
        Question::Indexed,
        Question::Version(second),
        Question::Tag,
        Question::History,
        Question::Changes(first),
        Question::Applied,
    ];
    let database = open(&store).await.unwrap();
    let mut answers = Vec::new();
    for question in questions {
        answers.push((question, ask(&database, question).await.unwrap()));
    }
    let inner = store.inner();
    let mut files = Vec::new();
    let listed: Vec<ObjectMeta> = inner.list(None).try_collect().await.unwrap();
    for meta in listed {
        let bytes = inner.get(&meta.location).await.unwrap().bytes().await.unwrap();
        files.push((meta.location, bytes));
    }
    Sample { files, answers }
}

/// Takes rows away and puts others in. Returns the version.
async fn delete(
    database: &Database,
    goes: impl Fn(i32) -> bool,
    inserted: Option<datafusion::execution::SendableRecordBatchStream>,
    once: Option<Once>,
) -> u64 {
    let turn = database.turn(&name("t"), &entry(database, &name("t")).await).await.unwrap();
    let rows = ids(turn.snapshot()).await;
    let deleted = rows.into_iter().filter(|(id, _)| goes(*id)).map(|(_, address)| address).collect();
    let change = Change { operation: "DELETE", deleted, inserted, copied: None, progress: None, once };
    turn.commit(change).await.unwrap().version
}

async fn ask(database: &Database, question: Question) -> Result<Answer> {
    let entry = there(database).await?;
    let at = async |at: AsOf| database.snapshot_at(&entry, &at, i64::MAX).await;
    Ok(match question {
        Question::Newest => all(&database.snapshot(&entry).await?, None).await?,
        Question::Indexed => {
            let some = ident("id").gt(lit(1190)).and(ident("id").lt(lit(1230)));
            all(&database.snapshot(&entry).await?, Some(some)).await?
        }
        Question::Version(version) => all(&at(AsOf::Version(version)).await?, None).await?,
        Question::Tag => all(&at(AsOf::Tag("first".to_owned())).await?, None).await?,
        Question::History => Answer::History(database.history(&entry).await?),
        Question::Changes(from) => {
            let newest = database.snapshot(&entry).await?.version();
            let changes = database.changes(&entry, from, newest).await?;
            Answer::Changes(changes.removed, changes.added)
        }
        Question::Applied => {
            let newest = database.snapshot(&entry).await?;
            Answer::Applied(database.applied(&entry, &newest, &once().key).await?)
        }
    })
}

/// The count and the rows.
async fn all(snapshot: &Snapshot, filter: Option<datafusion::logical_expr::Expr>) -> Result<Answer> {
    let batches = snapshot.scan(ScanRequest { filter, ..request(&COLUMNS) })?;
    let batches: Vec<RecordBatch> = batches.try_collect().await.map_err(StorageError::from_scan)?;
    let rows = arrow::compute::concat_batches(&snapshot.schema(), &batches).unwrap();
    Ok(Answer::Rows(snapshot.row_count(), rows))
}

/// The kind of a file.
fn class_of(path: &Path) -> &'static str {
    let path = path.as_ref();
    let below = path.split_once(".lance/").map_or(path, |(_, below)| below);
    let first = below.split('/').next().unwrap();
    CLASSES.into_iter().find(|class| *class == first).unwrap_or_else(|| panic!("{path} is of no known kind"))
}

/// What every error about a file says: for a sidecar the file that it belongs to.
fn name_of(path: &Path) -> &str {
    let path = path.as_ref();
    let below = path.split_once(".lance/").map_or(path, |(_, below)| below);
    let below = below.trim_start_matches("_crc/").trim_start_matches("_other/");
    below.split(".crc").next().unwrap_or(below)
}

fn flipped(bytes: &bytes::Bytes, bit: u64) -> bytes::Bytes {
    let mut bytes = bytes.to_vec();
    let bit = usize::try_from(bit % (bytes.len() as u64 * 8)).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes.into()
}

/// Trials on one copy of the sample.
struct Trials {
    sample: Arc<Sample>,
    store: Arc<Faulty>,
    /// Places of the files of each kind.
    classes: Vec<Vec<usize>>,
    /// Errors for each kind.
    refused: BTreeMap<&'static str, u64>,
}

impl Trials {
    async fn of(sample: Arc<Sample>) -> Self {
        let memory = InMemory::new();
        let mut classes = vec![Vec::new(); CLASSES.len()];
        for (at, (path, bytes)) in sample.files.iter().enumerate() {
            memory.put(path, bytes.clone().into()).await.unwrap();
            classes[CLASSES.iter().position(|class| *class == class_of(path)).unwrap()].push(at);
        }
        let missing: Vec<&str> =
            CLASSES.into_iter().zip(&classes).filter(|(_, files)| files.is_empty()).map(|(class, _)| class).collect();
        assert!(missing.is_empty(), "the sample has no file of the kinds {missing:?}");
        Self { sample, store: Faulty::new(Arc::new(memory), 1), classes, refused: BTreeMap::new() }
    }

    /// Flips a bit, asks, and flips it back.
    async fn try_flip(&mut self, trial: u64, seed: u64) {
        let class = usize::try_from(trial).unwrap() % CLASSES.len();
        let random = next(seed.wrapping_add(trial));
        let files = &self.classes[class];
        let (path, bytes) = &self.sample.files[files[(random % files.len() as u64) as usize]];
        let bit = next(random);
        let shown = format!("FAULT_FLIP_SEED={seed} trial {trial}: bit {bit} of {path}");
        let inner = self.store.inner();
        inner.put(path, flipped(bytes, bit).into()).await.unwrap();
        let mut refused = 0;
        match open(&self.store).await {
            Ok(database) => {
                for (number, (question, expected)) in self.sample.answers.iter().enumerate() {
                    // The first two always, of the others about half.
                    if number >= 2 && (trial / CLASSES.len() as u64 + number as u64).is_multiple_of(2) {
                        continue;
                    }
                    match ask(&database, *question).await {
                        Ok(answer) => assert!(answer == *expected, "{shown}: {question:?} is answered wrongly"),
                        Err(error) => {
                            refused += 1;
                            check_error(&error, path, &format!("{shown}: {question:?}"));
                        }
                    }
                }
                if trial.is_multiple_of(CHECKED_EACH) {
                    check_report(&database, path, &shown).await;
                }
            }
            Err(error) => {
                refused += 1;
                check_error(&error, path, &shown);
            }
        }
        inner.put(path, bytes.clone().into()).await.unwrap();
        *self.refused.entry(CLASSES[class]).or_default() += refused;
    }
}

fn check_error(error: &StorageError, path: &Path, shown: &str) {
    let is_damage = match error {
        StorageError::Corrupt(_) => true,
        // A flipped number can say that a newer program wrote the file, a flipped name that another one did.
        StorageError::Unsupported(_) | StorageError::NotADatabase(_) => !path.as_ref().contains(".lance/"),
        _ => false,
    };
    assert!(is_damage && error.to_string().contains(name_of(path)), "{shown}: {error:?}");
}

/// `CHECK TABLE` finds a flip in a file of the table.
async fn check_report(database: &Database, path: &Path, shown: &str) {
    let is_of_table = path.as_ref().contains(".lance/");
    let Some(entry) = (if is_of_table { find(database).await.unwrap() } else { None }) else { return };
    let report = database.check(&entry).await.unwrap();
    assert_eq!(report.files_damaged, 1, "{shown}: {report:?}");
    let finding = &report.findings[0];
    assert_eq!(finding.status, FindingStatus::Damaged, "{shown}");
    assert!(finding.file == name_of(path), "{shown}: {finding:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_flipped_bit_in_any_kind_of_file_gives_a_wrong_answer() {
    let (seed, count) = (number("FAULT_FLIP_SEED", 42), number("FAULT_FLIPS", FLIPS));
    println!("FAULT_FLIP_SEED={seed} FAULT_FLIPS={count}");
    let sample = Arc::new(sample().await);
    let copies: Vec<_> = (0..COPIES)
        .map(|number| {
            let sample = sample.clone();
            tokio::spawn(async move {
                let mut trials = Box::pin(Trials::of(sample)).await;
                let mut trial = number;
                while trial < count {
                    Box::pin(trials.try_flip(trial, seed)).await;
                    trial += COPIES;
                }
                for (question, expected) in &trials.sample.answers {
                    let answer = ask(&open(&trials.store).await.unwrap(), *question).await.unwrap();
                    assert!(answer == *expected, "{question:?} after all flips are undone");
                }
                trials.refused
            })
        })
        .collect();
    let mut refused: BTreeMap<&str, u64> = BTreeMap::new();
    for copy in copies {
        for (class, errors) in copy.await.unwrap() {
            *refused.entry(class).or_default() += errors;
        }
    }
    println!("errors for each kind of file: {refused:?}");
    if count >= FLIPS {
        for class in ["_crc", "_deletions", "_refs", "_versions", "data", "_catalog", "sagitta.json"] {
            assert!(refused[class] > 0, "no flip in {class} was noticed by an answer: {refused:?}");
        }
        assert_eq!(refused["_indices"], 0, "rows are read without an index that is damaged: {refused:?}");
    }
}

#[tokio::test]
async fn a_flipped_bit_in_the_hint_of_the_newest_version_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().display().to_string();
    let database = Database::open(&location, OpenOptions::default()).await.unwrap();
    let version = table(&database, &[0..5, 5..9]).await.version();
    let location_of_table = entry(&database, &name("t")).await.location;
    let hint = folder.path().join(location_of_table).join("_versions/latest_version_hint.json");
    let sound = bytes::Bytes::from(std::fs::read(&hint).unwrap());
    for bit in 0..sound.len() as u64 * 8 {
        std::fs::write(&hint, flipped(&sound, bit)).unwrap();
        let database = Database::open(&location, OpenOptions::default()).await.unwrap();
        let snapshot = newest(&database, &name("t")).await;
        assert_eq!((snapshot.version(), snapshot.row_count()), (version, 9), "bit {bit}");
    }
}
