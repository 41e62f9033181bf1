//! Tests of the checksums: what is written and found, at which cost; bits that flip on the way; races and lost answers.
//! The bytes of sidecars are tested in `format.rs`, bits that flip at rest in `../faults/flips.rs`.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use datafusion::logical_expr::{ident, lit};
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;
use object_store::memory::InMemory;
use object_store::{GetRange, PutMode};

use super::*;
use crate::fixtures::faulty::{Fault, Faulty, Operation, Rule, next};
use crate::fixtures::{Instead, entry, foreign, name, newest, open, request, rows, stream, table};
use crate::{Database, OpenOptions, StorageError};

/// A store in memory that can go wrong, the store with checksums around it, and a name for a file in a table.
fn stores() -> (Arc<Faulty>, Summed) {
    let faulty = Faulty::new(Arc::new(InMemory::new()), 7);
    let checksums = Checksums::new(&Path::default(), Some(Arc::new(Instead(faulty.clone()))));
    let _ = checksums.wrap("", Arc::new(InMemory::new()));
    let summed = checksums.store().unwrap().clone();
    (faulty, summed)
}

fn file(relative: &str) -> Path {
    Path::parse(format!("public/t.lance/{relative}")).unwrap()
}

fn content(length: usize, seed: u64) -> Vec<u8> {
    (0..length).map(|at| (at as u64 * 31 + at as u64 / 251 + seed) as u8).collect()
}

async fn create(store: &dyn ObjectStore, at: &Path, bytes: &[u8]) -> object_store::Result<PutResult> {
    let options = PutOptions { mode: PutMode::Create, ..Default::default() };
    store.put_opts(at, bytes.to_vec().into(), options).await
}

async fn read(store: &dyn ObjectStore, at: &Path) -> object_store::Result<Vec<u8>> {
    Ok(store.get(at).await?.bytes().await?.to_vec())
}

async fn flip(store: &dyn ObjectStore, at: &Path, bit: u64) {
    let mut bytes = read(store, at).await.unwrap();
    let bit = usize::try_from(bit).unwrap() % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    store.put(at, bytes.into()).await.unwrap();
}

async fn paths(store: &dyn ObjectStore) -> Vec<String> {
    let all: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    all.into_iter().map(|meta| meta.location.to_string()).collect()
}

#[tokio::test]
async fn any_range_is_read_as_it_was_written() {
    let (_, store) = stores();
    for length in [1, 1000, 65536, 65537, 300_000, 9_000_000] {
        let (at, bytes) = (file(&format!("data/{length}.lance")), content(length, 0));
        create(&store, &at, &bytes).await.unwrap();
        let mut seed = length as u64;
        let mut random = |below: usize| {
            seed = next(seed);
            seed as usize % below
        };
        assert_eq!(read(&store, &at).await.unwrap(), bytes);
        for _ in 0..20 {
            let start = random(length);
            let end = start + 1 + random(length - start);
            let found = store.get_range(&at, start as u64..end as u64).await.unwrap();
            assert_eq!(found, bytes[start..end], "{length} {start} {end}");
            let options = GetOptions::new().with_range(Some(GetRange::Suffix((end - start) as u64)));
            let found = store.get_opts(&at, options).await.unwrap();
            assert_eq!(found.range, (length - (end - start)) as u64..length as u64);
            assert_eq!(found.bytes().await.unwrap(), bytes[length - (end - start)..]);
        }
        let ranges = [0..1, (length - 1) as u64..length as u64];
        let both = store.get_ranges(&at, &ranges).await.unwrap();
        assert_eq!((both[0][0], both[1][0]), (bytes[0], bytes[length - 1]));
        let beyond = store.get_range(&at, length as u64 + 5..length as u64 + 9).await;
        assert!(beyond.is_err(), "{length}");
        assert_eq!(store.head(&at).await.unwrap().size, length as u64);
    }
}

#[tokio::test]
async fn a_flipped_bit_is_an_error_that_names_file_and_block() {
    let (faulty, store) = stores();
    for (length, block) in [(100, 0), (200_000, 2), (9_000_000, 130)] {
        let at = file(&format!("data/{length}.lance"));
        create(&store, &at, &content(length, 0)).await.unwrap();
        flip(faulty.inner().as_ref(), &at, block * 65536 * 8 + 77).await;
        let whole = async { store.get(&at).await?.bytes().await }.await.unwrap_err();
        let expected = format!("public/t.lance/data/{length}.lance: block {block} ");
        assert!(whole.to_string().contains(&expected), "{whole}");
        let error = StorageError::from_store("cannot read", whole);
        assert!(matches!(error, StorageError::Corrupt(_)), "{error:?}");
        assert!(error.to_string().starts_with(&format!("cannot read: {DAMAGE}")), "{error}");
        if length > 100 {
            assert_eq!(store.get_range(&at, 10..20).await.unwrap(), content(length, 0)[10..20], "another block");
        }
    }
    let at = file("data/100.lance");
    faulty.inner().put(&at, content(99, 0).into()).await.unwrap();
    let error = read(&store, &at).await.unwrap_err();
    assert!(error.to_string().contains("it has 99 bytes, but 100 were written"), "{error}");
}

#[tokio::test]
async fn requests_are_as_few_as_promised() {
    let (faulty, store) = stores();
    let (data, manifest) = (file("data/x.lance"), file("_versions/1.manifest"));
    let counts = || {
        let mut counts = BTreeMap::new();
        for (operation, _) in faulty.take_requests() {
            *counts.entry(format!("{operation:?}")).or_insert(0) += 1;
        }
        counts.into_iter().map(|(operation, count)| format!("{operation} {count}")).collect::<Vec<_>>().join(", ")
    };
    create(&store, &data, b"rows").await.unwrap();
    assert_eq!(counts(), "Put 2");
    create(&store, &manifest, b"names").await.unwrap();
    let order: Vec<String> = faulty.take_requests().into_iter().map(|(_, path)| path).collect();
    assert_eq!(order, ["public/t.lance/_crc/_versions/1.manifest.crc", manifest.as_ref()], "before the file");
    read(&store, &data).await.unwrap();
    assert_eq!(counts(), "Get 1", "what was written is known");
    for expected in ["Get 2", "Get 1"] {
        if expected == "Get 2" {
            store.sidecars.forget(&data);
        }
        read(&store, &data).await.unwrap();
        assert_eq!(counts(), expected);
    }
    faulty.inner().put(&file("data/y.lance"), "foreign".into()).await.unwrap();
    for expected in ["Get 3", "Get 1"] {
        read(&store, &file("data/y.lance")).await.unwrap();
        assert_eq!(counts(), expected, "of another program");
    }
    store.delete(&data).await.unwrap();
    assert_eq!(counts(), "Delete 2, List 1");
    assert!(matches!(store.delete(&data).await, Ok(()) | Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn lance_sees_no_sidecars_and_none_is_left_when_files_go() {
    let (faulty, store) = stores();
    let manifest = file("_versions/1.manifest");
    create(&store, &manifest, b"ours").await.unwrap();
    create(&store, &manifest, b"late").await.unwrap_err();
    create(&store, &file("data/x.lance"), b"rows").await.unwrap();
    assert_eq!(paths(faulty.inner().as_ref()).await.len(), 5, "two contents raced for the manifest");
    assert_eq!(paths(&store).await.len(), 2);
    let folders = store.list_with_delimiter(Some(&file(""))).await.unwrap().common_prefixes;
    assert!(folders.iter().all(|folder| !folder.as_ref().contains("_crc")), "{folders:?}");
    store.rename(&manifest, &file("_versions/2.manifest")).await.unwrap();
    assert_eq!(read(&store, &file("_versions/2.manifest")).await.unwrap(), b"ours");
    for path in paths(&store).await {
        store.delete(&Path::parse(path).unwrap()).await.unwrap();
    }
    assert_eq!(paths(faulty.inner().as_ref()).await, Vec::<String>::new());
}

#[tokio::test]
async fn the_loser_of_a_race_does_no_harm() {
    let (faulty, store) = stores();
    let at = file("_versions/1.manifest");
    // The loser's sidecar is there first, the winner's second.
    store
        .sidecars
        .write(&store.layout.file(&at).unwrap(), &Sums::of(&PutPayload::from_static(b"loser")))
        .await
        .unwrap();
    create(&store, &at, b"winner").await.unwrap();
    assert!(matches!(create(&store, &at, b"loser").await, Err(Error::AlreadyExists { .. })));
    assert_eq!(read(&store, &at).await.unwrap(), b"winner");
    assert_eq!(paths(faulty.inner().as_ref()).await.len(), 3, "nothing was adopted");
    flip(faulty.inner().as_ref(), &at, 9).await;
    assert!(is_damage(&read(&store, &at).await.unwrap_err()));
    // A damaged winner is not taken for a foreign one.
    create(&store, &at, b"third").await.unwrap_err();
    assert!(is_damage(&read(&store, &at).await.unwrap_err()));
}

fn is_damage(error: &Error) -> bool {
    read::is_damage(error)
}

#[tokio::test]
async fn a_file_of_another_program_is_read_unverified_and_summed_when_it_wins_a_race() {
    let (faulty, store) = stores();
    let at = file("_versions/1.manifest");
    faulty.inner().put(&at, "foreign".into()).await.unwrap();
    assert_eq!(read(&store, &at).await.unwrap(), b"foreign");
    assert_eq!(store.counters.bytes_unverified.load(Ordering::Relaxed), 7);
    create(&store, &at, b"ours").await.unwrap_err();
    assert_eq!(read(&store, &at).await.unwrap(), b"foreign");
    assert_eq!(store.counters.bytes_verified.load(Ordering::Relaxed), 7, "its sums were taken");
    flip(faulty.inner().as_ref(), &at, 9).await;
    assert!(is_damage(&read(&store, &at).await.unwrap_err()));
}

#[tokio::test]
async fn a_file_that_appears_between_two_looks_is_not_taken_for_foreign() {
    let (faulty, store) = stores();
    let at = file("data/x.lance");
    assert!(matches!(read(&store, &at).await, Err(Error::NotFound { .. })));
    let other = Sidecars::new(faulty.clone(), Arc::default());
    let sums = Sums::of(&PutPayload::from_static(b"rows"));
    other.write(&store.layout.file(&at).unwrap(), &sums).await.unwrap();
    faulty.inner().put(&at, "rowt".into()).await.unwrap();
    assert!(is_damage(&read(&store, &at).await.unwrap_err()));
}

#[tokio::test]
async fn uploads_in_parts_are_summed_before_they_are_visible() {
    let (faulty, store) = stores();
    let (at, bytes) = (file("_indices/u/index.idx"), content(1_000_000, 3));
    let mut upload = store.put_multipart(&at).await.unwrap();
    for part in bytes.chunks(70_001) {
        upload.put_part(part.to_vec().into()).await.unwrap();
    }
    faulty.add(Rule::once(Operation::Complete, "index", Fault::ErrorBefore));
    assert!(upload.complete().await.is_err());
    assert_eq!(paths(faulty.inner().as_ref()).await.len(), 1, "the sidecar alone, which does no harm");
    upload.complete().await.unwrap();
    assert_eq!(read(&store, &at).await.unwrap(), bytes);
    flip(faulty.inner().as_ref(), &at, 900_000 * 8).await;
    assert!(is_damage(&read(&store, &at).await.unwrap_err()));
}

#[tokio::test]
async fn copies_take_their_sums_along_or_are_refused() {
    let (faulty, store) = stores();
    let (one, two, foreign) = (file("data/1.lance"), file("data/2.lance"), file("data/3.lance"));
    create(&store, &one, b"rows").await.unwrap();
    store.copy(&one, &two).await.unwrap();
    flip(faulty.inner().as_ref(), &two, 3).await;
    assert!(is_damage(&read(&store, &two).await.unwrap_err()));
    faulty.inner().put(&foreign, "foreign".into()).await.unwrap();
    assert!(matches!(store.copy(&foreign, &one).await, Err(Error::NotSupported { .. })));
    store.copy(&foreign, &file("data/4.lance")).await.unwrap();
    assert_eq!(read(&store, &file("data/4.lance")).await.unwrap(), b"foreign");
}

#[tokio::test]
async fn a_lost_answer_to_a_sidecar_is_no_failure() {
    for fault in [Fault::ErrorBefore, Fault::ErrorAfter, Fault::SaysExists, Fault::Conflict, Fault::ServerError] {
        let (faulty, store) = stores();
        faulty.add(Rule::once(Operation::Put, "_crc", fault));
        let at = file("_versions/1.manifest");
        create(&store, &at, b"rows").await.unwrap();
        store.sidecars.forget(&at);
        assert_eq!(read(&store, &at).await.unwrap(), b"rows");
        assert_eq!(store.counters.bytes_verified.load(Ordering::Relaxed), 4, "{fault:?}");
        assert_eq!(paths(faulty.inner().as_ref()).await.len(), 2, "{fault:?}");
    }
    let (faulty, store) = stores();
    faulty.add(Rule { fault: Fault::Full, ..Rule::always(Operation::Put, "_crc") });
    let at = file("_versions/1.manifest");
    assert!(create(&store, &at, b"rows").await.is_err());
    assert!(paths(faulty.inner().as_ref()).await.is_empty(), "no file without its sidecar");
}

#[tokio::test]
async fn reads_that_fail_on_the_way_are_errors_or_right() {
    let stall = Fault::Stall(std::time::Duration::from_millis(1));
    for fault in [Fault::FlipBit, Fault::TornBody, Fault::TimeOut, Fault::ServerError, Fault::ErrorBefore, stall] {
        for path in ["_crc", "data"] {
            let (faulty, store) = stores();
            let (at, bytes) = (file("data/x.lance"), content(100_000, 1));
            create(&store, &at, &bytes).await.unwrap();
            store.sidecars.forget(&at);
            faulty.add(Rule::once(Operation::Get, path, fault));
            match read(&store, &at).await {
                Ok(found) => assert_eq!(found, bytes),
                Err(error) => assert!(!is_damage(&error), "{fault:?} {path}: {error}"),
            }
            assert_eq!(read(&store, &at).await.unwrap(), bytes, "{fault:?} {path}: it passes");
        }
    }
}

/// A table with two fragments of several blocks each, deleted rows and an index.
async fn rich_table(store: &Arc<Faulty>) -> RecordBatch {
    let database = open(store).await.unwrap();
    table(&database, &[0..4000, 4000..8000]).await;
    let mut dataset = foreign(&database).await;
    dataset.create_index(&["id"], IndexType::BTree, None, &ScalarIndexParams::default(), false).await.unwrap();
    dataset.delete("id % 10 = 3").await.unwrap();
    answer(&database).await.unwrap()
}

/// All live rows, and those that an index finds.
async fn answer(database: &Database) -> crate::Result<RecordBatch> {
    let catalog = database.catalog().await?;
    let Some(crate::Relation::Table(entry)) = catalog.relation(&name("t")) else { panic!("no table") };
    let snapshot = database.snapshot(entry).await?;
    let id = || ident("id");
    let filter = id().gt(lit(3990)).and(id().lt(lit(4020)));
    let all = request(&["id", "name", "price", "Big", "emb"]);
    let some = crate::ScanRequest { filter: Some(filter), ..all.clone() };
    let mut batches = Vec::new();
    for request in [all, some] {
        batches.extend(snapshot.scan(request)?.try_collect::<Vec<_>>().await.map_err(|error| match error {
            datafusion::error::DataFusionError::External(inner) => match inner.downcast::<StorageError>() {
                Ok(error) => *error,
                Err(other) => panic!("not an error of ours: {other}"),
            },
            other => panic!("not an error of ours: {other}"),
        })?);
    }
    Ok(arrow::compute::concat_batches(&snapshot.schema(), &batches).unwrap())
}

#[tokio::test]
async fn a_bit_that_flips_on_the_way_is_read_again() {
    let store = Faulty::new(Arc::new(InMemory::new()), 3);
    let expected = rich_table(&store).await;
    for class in ["/data/", "/_deletions/", "/_versions/", "/_indices/", "/_crc/"] {
        for after in 0..4 {
            store.add(Rule { after, ..Rule::once(Operation::Get, class, Fault::FlipBit) });
            assert_eq!(answer(&open(&store).await.unwrap()).await.unwrap(), expected, "{class} {after}");
            store.clear();
        }
    }
}

#[tokio::test]
async fn an_append_whose_answers_get_lost_is_made_once_or_not_at_all() {
    let faults = [Fault::ErrorBefore, Fault::ErrorAfter, Fault::SaysExists, Fault::TimeOut, Fault::Full];
    for fault in faults {
        for (operation, path) in [
            (Operation::Put, ".lance/data/"),
            (Operation::Put, ".lance/_transactions/"),
            (Operation::Put, ".lance/_versions/"),
            (Operation::Put, ".lance/_crc/_versions/"),
            (Operation::Put, ".lance/_crc/data/"),
        ] {
            let store = Faulty::new(Arc::new(InMemory::new()), 5);
            let database = open(&store).await.unwrap();
            table(&database, &[0..5]).await;
            let t = entry(&database, &name("t")).await;
            store.add(Rule::once(operation, path, fault));
            let appended = database.append(&name("t"), &t, stream(vec![rows(5..9)]), None).await;
            store.clear();
            let again = open(&store).await.unwrap();
            let count = newest(&again, &name("t")).await.row_count();
            match &appended {
                Ok(_) => assert_eq!(count, 9, "{fault:?} {path}"),
                Err(error) => assert!(count == 5 || count == 9, "{fault:?} {path}: {count} {error}"),
            }
            if fault == Fault::Full {
                assert!(count == 5 || appended.is_ok(), "{path}: a full disk changes nothing");
            }
            let report = again.check(&t).await.unwrap();
            assert_eq!((report.files_damaged, report.files_missing), (0, 0), "{fault:?} {path}: {report:?}");
        }
    }
}

#[tokio::test]
async fn on_local_disk_everything_but_sidecars_is_summed_and_dropped_tables_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().display().to_string();
    let database = Database::open(&location, OpenOptions::default()).await.unwrap();
    let snapshot = table(&database, &[0..50]).await;
    let t = entry(&database, &name("t")).await;
    let report = database.check(&t).await.unwrap();
    assert_eq!((report.files_unverified, report.findings.len()), (0, 0), "{report:?}");
    assert_eq!(report.versions, snapshot.version());
    let hint = folder.path().join(&t.location).join("_versions").join(hint::NAME);
    let text = std::fs::read_to_string(hint).unwrap();
    assert!(text.contains("sagitta_crc32c") && hint::is_sound(text.as_bytes()), "{text}");
    assert!(folder.path().join(&t.location).join("_crc/_versions").is_dir());
    let other = Database::open(&location, OpenOptions::default()).await.unwrap();
    assert_eq!(newest(&other, &name("t")).await.row_count(), 50);
    assert!(other.checksums().bytes_verified > 0 && other.checksums().bytes_unverified == 0);
    database.drop_table(&name("t"), false).await.unwrap();
    assert!(!folder.path().join(&t.location).exists());
}

#[tokio::test]
async fn a_dropped_table_leaves_nothing_in_an_object_store() {
    let store = Faulty::new(Arc::new(InMemory::new()), 5);
    rich_table(&store).await;
    let database = open(&store).await.unwrap();
    database.drop_table(&name("t"), false).await.unwrap();
    let left: Vec<String> =
        paths(store.inner().as_ref()).await.into_iter().filter(|path| path.contains(".lance")).collect();
    assert!(left.is_empty(), "{left:?}");
}
