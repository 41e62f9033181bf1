//! Random changes of a table and of its indexes, by two handles as two processes would make them; after each, versions are
//! compared with the model. `INDEX_SEEDS` and `INDEX_SEED` say how many runs there are and which is the first.

use super::*;
use crate::fixtures::faulty::next;

/// Runs, unless the environment says otherwise.
const SEEDS: u64 = 12;

/// Changes in a run.
const STEPS: u32 = 40;

struct Run {
    random: u64,
    next_id: i32,
    databases: [Database; 2],
}

impl Run {
    fn below(&mut self, end: u64) -> u64 {
        self.random = next(self.random);
        (self.random >> 33) % end
    }

    fn database(&mut self) -> Database {
        let which = usize::try_from(self.below(2)).unwrap();
        self.databases[which].clone()
    }

    async fn step(&mut self) -> &'static str {
        let database = self.database();
        let t = entry(&database, &name("t")).await;
        let (divisor, rest) = (i32::try_from(2 + self.below(9)).unwrap(), i32::try_from(self.below(2)).unwrap());
        let some = move |id: i32| id % divisor == rest;
        match self.below(15) {
            0..3 => {
                let ids = self.next_id..self.next_id + 1 + i32::try_from(self.below(30)).unwrap();
                self.next_id = ids.end;
                append(&database, ids).await;
                "append"
            }
            3 => {
                change(&database, &some, false).await;
                "delete"
            }
            4..6 => {
                change(&database, &some, true).await;
                "update"
            }
            6..8 => {
                optimize(&database).await;
                "optimize"
            }
            8..11 => {
                // Perhaps of a version that is no more the newest.
                let snapshot = self.version(&database, &t).await;
                if let Some(snapshot) = snapshot {
                    build_on(&database, &snapshot).await;
                }
                "build"
            }
            11 => {
                self.merge(&database, &t).await;
                "merge"
            }
            12 => {
                if let Some(older) = self.version(&database, &t).await {
                    let at = AsOf::Version(older.version());
                    database.restore(&name("t"), &t, &at, i64::MAX).await.unwrap();
                }
                "restore"
            }
            13 => {
                let newest = newest(&database, &name("t")).await;
                database.vacuum(&t, newest.committed_at_us(), false).await.unwrap();
                self.databases.iter().for_each(|database| database.past().clear());
                "vacuum"
            }
            _ => match self.below(3) {
                0 => {
                    database.drop_index(&t, "i", false).await.unwrap();
                    create(&database).await;
                    "drop"
                }
                1 => {
                    let mut theirs = foreign(&database).await;
                    theirs.delete(&format!("id % {divisor} = {rest}")).await.unwrap();
                    "delete of others"
                }
                _ => {
                    let tag = format!("t{}", self.below(1000));
                    let _ = database.create_tag(&t, &tag, None, i64::MAX).await;
                    "tag"
                }
            },
        }
    }

    /// One of the versions that are kept, the newer the likelier.
    async fn version(&mut self, database: &Database, t: &TableEntry) -> Option<Snapshot> {
        let versions = database.history(t).await.unwrap();
        let back = usize::try_from(self.below(4)).unwrap() * usize::try_from(self.below(3)).unwrap();
        let version = versions.get(versions.len().checked_sub(1 + back)?)?.version;
        database.snapshot_at(t, &AsOf::Version(version), i64::MAX).await.ok()
    }

    /// Builds one segment in the place of those that cover a version.
    async fn merge(&mut self, database: &Database, t: &TableEntry) {
        let snapshot = newest(database, &name("t")).await;
        let manifest = database.indexes(t).await.unwrap();
        let index = manifest.index("i").unwrap().clone();
        let old: Vec<String> = manifest.segments_of(&index).map(|segment| segment.id.clone()).collect();
        let mut units = vec![];
        for fragment in snapshot.fragments() {
            let chunks = snapshot.vector_chunks("emb").unwrap().into_iter();
            units.push(super::super::UncoveredUnit {
                file: file_of(&fragment.metadata, index.field_id).unwrap().to_owned(),
                rows: fragment.rows,
                chunks: chunks.filter(|chunk| chunk.first_address >> 32 == u64::from(fragment.id)).collect(),
                uncovered: None,
                deleted: snapshot.deleted_rows(fragment.id).await.unwrap(),
            });
        }
        if !units.is_empty() {
            let merged = built(&snapshot, &units).await;
            match database.replace_segments(t, &index, &old, merged).await {
                Ok(_) | Err(StorageError::Conflict(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn run(seed: u64) {
    let (folder, one) = on_disk().await;
    let path = folder.path().canonicalize().unwrap().display().to_string();
    let two = Database::open(&path, OpenOptions::default()).await.unwrap();
    table(&one, &[0..30]).await;
    create(&one).await;
    let mut run = Run { random: next(seed), next_id: 30, databases: [one, two] };
    let mut steps = vec![];
    for _ in 0..STEPS {
        steps.push(run.step().await);
        let shown = format!("INDEX_SEED={seed}: {steps:?}");
        let checked = std::panic::AssertUnwindSafe(async {
            let database = run.database();
            let t = entry(&database, &name("t")).await;
            check_newest(&database).await;
            if let Some(older) = run.version(&database, &t).await {
                check(&older).await;
            }
        });
        let checked = futures::FutureExt::catch_unwind(checked).await;
        assert!(checked.is_ok(), "{shown}");
    }
    let database = run.database();
    check_all(&database).await;
    // Whatever was seen before, this is the newest list.
    let t = entry(&database, &name("t")).await;
    database.indexes(&t).await.unwrap();
    while build(&database).await.is_some() {}
    assert_eq!(check_newest(&database).await.1, 0, "INDEX_SEED={seed}: {steps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_version_has_a_ghost_a_twin_or_a_lost_row() {
    let number =
        |name: &str, otherwise| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (first, count) = (number("INDEX_SEED", 1_u64), number("INDEX_SEEDS", SEEDS));
    for seed in first..first + count {
        run(seed).await;
    }
}
