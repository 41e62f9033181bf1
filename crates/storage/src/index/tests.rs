//! Index files against a plain model: which address holds which vector. The bytes of a test's segment are the vectors themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field, Float32Type};
use bytes::Bytes;
use lance::dataset::transaction::{Operation, Transaction};
use lance::dataset::{CommitBuilder, UpdateBuilder};
use lance_table::format::Fragment;
use roaring::RoaringBitmap;

use super::coverage::file_of;
use super::{FOLDER, NewIndex, NewSegment, NewUnit, Section, Tier};
use crate::fixtures::faulty::{Fault, Faulty, Operation as Request, Rule};
use crate::fixtures::{
    DIMENSIONS, entry, foreign, ids, memory, name, newest, open, rows, schema, stream, table, vector,
};
use crate::{
    AsOf, Change, Copied, CoveredSegment, Database, FindingStatus, IndexDefinition, OpenOptions, SegmentEntry,
    Snapshot, StorageError, TableEntry,
};

mod damage;
mod random;

const ROW_BYTES: usize = DIMENSIONS as usize * 4;

async fn create(database: &Database) -> IndexDefinition {
    let t = entry(database, &name("t")).await;
    let new = NewIndex { name: "i".to_owned(), column: "emb".to_owned(), options: "{}".to_owned(), now_us: 1 };
    database.create_index(&name("t"), &t, new).await.unwrap()
}

/// What a build makes of some units; deleted rows are left out. Of units that a segment has already, it takes what is uncovered.
async fn built(snapshot: &Snapshot, units: &[super::UncoveredUnit]) -> NewSegment {
    let manifest = snapshot.indexes().await;
    let known = manifest.segments.iter().flat_map(|segment| &segment.units);
    let known: BTreeSet<&str> = known.map(|unit| unit.file.as_str()).collect();
    let (mut bytes, mut made) = (vec![], vec![]);
    for unit in units {
        let mut absent = unit.deleted.clone();
        if let Some(uncovered) = unit.uncovered.as_ref().filter(|_| known.contains(unit.file.as_str())) {
            absent.insert_range(0..u32::try_from(unit.rows).unwrap());
            absent -= uncovered;
        }
        let mut offset = 0;
        for chunk in &unit.chunks {
            let chunk = snapshot.load_vectors(chunk).await.unwrap();
            let values = chunk.vectors.values().as_primitive::<Float32Type>().values();
            for value in values.chunks(DIMENSIONS as usize) {
                // Nobody may look at a row that is absent.
                let is_absent = absent.contains(offset);
                bytes.extend(value.iter().flat_map(|value| if is_absent { [0xff; 4] } else { value.to_le_bytes() }));
                offset += 1;
            }
        }
        made.push(NewUnit { file: unit.file.clone(), rows: unit.rows, absent });
    }
    let sections = vec![
        Section { tier: Tier::Pinned, bytes: Bytes::from_static(b"head") },
        Section { tier: Tier::Hot, bytes: bytes.into() },
        Section { tier: Tier::Warm, bytes: Bytes::from(vec![7; 100_000]) },
    ];
    NewSegment { family: "plain".to_owned(), sections, units: made, calibration: "{}".to_owned(), built_at_us: 2 }
}

/// Publishes one segment of all that is uncovered in a snapshot.
async fn build_on(database: &Database, snapshot: &Snapshot) -> Option<SegmentEntry> {
    let t = entry(database, &name("t")).await;
    let units = snapshot.uncovered_units("i").await.unwrap();
    if units.is_empty() {
        return None;
    }
    let index = snapshot.indexes().await.index("i").unwrap().clone();
    let made = built(snapshot, &units).await;
    match database.publish_segment(&t, &index, made).await {
        Ok(segment) => Some(segment),
        // What is known of the list may be a second old.
        Err(StorageError::Conflict(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

async fn build(database: &Database) -> Option<SegmentEntry> {
    build_on(database, &newest(database, &name("t")).await).await
}

/// Compares what the index says of a version with its rows; returns how many are covered, and how many are not.
async fn check(snapshot: &Snapshot) -> (usize, u64) {
    let there: HashMap<u64, i32> = ids(snapshot).await.into_iter().map(|(id, address)| (address, id)).collect();
    let opened = snapshot.open_index("i").await.unwrap();
    let shown = snapshot.version();
    let mut found: BTreeSet<u64> = BTreeSet::new();
    let mut covered_rows = 0;
    for (covered, segment) in opened.coverage.segments.iter().zip(&opened.segments) {
        let values = segment.section(1);
        assert_eq!(values.len() as u64, covered.entry.rows * ROW_BYTES as u64);
        assert!(values.as_ptr().addr().is_multiple_of(64) && segment.tier(1) == Some(Tier::Hot));
        assert_eq!((segment.section(0), segment.section(9)), (b"head".as_slice(), b"".as_slice()));
        let mut live = 0;
        let mut by_address = BTreeMap::new();
        for local in 0..u32::try_from(covered.entry.rows).unwrap() {
            let is_live = covered.live().is_none_or(|rows| rows.words[local as usize / 64] >> (local % 64) & 1 == 1);
            let address = covered.address(local);
            assert_eq!(address.is_some(), is_live, "version {shown}: local row {local}");
            let Some(address) = address else { continue };
            live += 1;
            let id = there.get(&address).unwrap_or_else(|| panic!("version {shown}: {address:x} is a ghost"));
            assert!(found.insert(address), "version {shown}: {address:x} twice");
            by_address.insert(address, local);
            if id % 11 != 0 {
                let bytes = &values[local as usize * ROW_BYTES..][..ROW_BYTES];
                let value: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                assert_eq!(value, vector(*id), "version {shown}: vector of {id} at {address:x}");
            }
        }
        assert_eq!(live, covered.live_rows());
        covered_rows += live;
        check_matching(snapshot, covered, &there, &by_address);
    }
    for uncovered in &opened.coverage.uncovered {
        let chunk = snapshot.load_vectors(&uncovered.chunk).await.unwrap();
        for at in 0..u32::try_from(chunk.vectors.len()).unwrap() {
            let is_live = chunk.live.as_ref().is_none_or(|live| live.contains(at));
            if is_live && uncovered.rows.as_ref().is_none_or(|rows| rows.contains(at)) {
                let address = chunk.first_address + u64::from(at);
                assert!(found.insert(address), "version {shown}: {address:x} twice");
                let value = chunk.vectors.value(at as usize);
                assert_eq!(value.as_primitive::<Float32Type>().values().to_vec(), vector(there[&address]));
            }
        }
    }
    let lost: Vec<i32> =
        there.iter().filter(|(at, id)| *id % 11 != 0 && !found.contains(at)).map(|(_, id)| *id).collect();
    assert!(lost.is_empty(), "version {shown}: {lost:?} are neither covered nor uncovered");
    (covered_rows, opened.coverage.uncovered_rows)
}

/// Compares what a filter leaves of a segment.
fn check_matching(
    snapshot: &Snapshot,
    covered: &CoveredSegment,
    there: &HashMap<u64, i32>,
    by_address: &BTreeMap<u64, u32>,
) {
    let shown = snapshot.version();
    // Every third row of the table, in this segment or not.
    let mut some: Vec<u64> = there.iter().filter(|(_, id)| **id % 3 == 0).map(|(address, _)| *address).collect();
    some.sort_unstable();
    let matching = covered.matching(&some);
    let expected: Vec<u32> = some.iter().filter_map(|address| by_address.get(address).copied()).collect();
    assert_eq!(matching.count, expected.len(), "version {shown}");
    for address in some.iter().take(3) {
        let alone = covered.matching(&[*address]);
        assert_eq!(alone.count, usize::from(by_address.contains_key(address)), "version {shown}");
    }
    // The same of bits by fragment, and whatever they say of dead rows.
    let mut bits: HashMap<u32, Vec<u64>> = HashMap::new();
    for fragment in snapshot.fragments() {
        let words = bits.entry(fragment.id).or_insert(vec![0; usize::try_from(fragment.rows).unwrap() / 64 + 1]);
        for offset in 0..fragment.rows {
            let address = u64::from(fragment.id) << 32 | offset;
            if there.get(&address).is_none_or(|id| id % 3 == 0) {
                words[usize::try_from(offset).unwrap() / 64] |= 1 << (offset % 64);
            }
        }
    }
    assert_eq!(covered.matching_words(|fragment| bits.get(&fragment).map(Vec::as_slice)), matching);
    for local in expected {
        assert_eq!(matching.words[local as usize / 64] >> (local % 64) & 1, 1, "version {shown}: {local}");
    }
}

async fn check_newest(database: &Database) -> (usize, u64) {
    check(&newest(database, &name("t")).await).await
}

async fn append(database: &Database, ids: std::ops::Range<i32>) {
    let t = entry(database, &name("t")).await;
    database.append(&name("t"), &t, stream(vec![rows(ids)]), None).await.unwrap();
}

/// Deletes rows, or writes them anew as an UPDATE of other columns does.
async fn change(database: &Database, gone: &dyn Fn(i32) -> bool, updates: bool) {
    let t = entry(database, &name("t")).await;
    let turn = database.turn(&name("t"), &t).await.unwrap();
    let there: Vec<(i32, u64)> = ids(turn.snapshot()).await.into_iter().filter(|(id, _)| gone(*id)).collect();
    let deleted = there.iter().map(|(_, address)| *address).collect();
    let (mut inserted, mut copied) = (None, None);
    if updates && !there.is_empty() {
        inserted = Some(stream(there.iter().map(|(id, _)| rows(*id..*id + 1)).collect()));
        let origins = there.iter().map(|(_, address)| Some(*address)).collect();
        copied = Some(Copied { origins, columns: vec!["emb".to_owned()] });
    }
    let operation = if updates { "UPDATE" } else { "DELETE" };
    turn.commit(Change { operation, deleted, inserted, copied, progress: None, once: None }).await.unwrap();
}

async fn optimize(database: &Database) {
    let t = entry(database, &name("t")).await;
    database.optimize(&name("t"), &t, false).await.unwrap();
}

/// Every version that is kept.
async fn check_all(database: &Database) {
    let t = entry(database, &name("t")).await;
    for info in database.history(&t).await.unwrap() {
        check(&database.snapshot_at(&t, &AsOf::Version(info.version), i64::MAX).await.unwrap()).await;
    }
}

async fn on_disk() -> (tempfile::TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap().display().to_string();
    let database = Database::open(&path, OpenOptions::default()).await.unwrap();
    (folder, database)
}

/// The names of the index files of `t`.
fn files(folder: &tempfile::TempDir, location: &str, ending: &str) -> Vec<PathBuf> {
    let Ok(listed) = std::fs::read_dir(folder.path().join(location).join(FOLDER)) else { return vec![] };
    let mut found: Vec<PathBuf> = listed.map(|file| file.unwrap().path()).collect();
    found.retain(|path| path.to_string_lossy().ends_with(ending) || (ending.is_empty() && path.is_file()));
    found.sort();
    found
}

#[tokio::test]
async fn a_segment_serves_every_version_that_names_its_files() {
    for database in [memory().await, on_disk().await.1] {
        table(&database, &[0..50, 50..80]).await;
        create(&database).await;
        assert_eq!(check_newest(&database).await, (0, 80));
        build(&database).await.unwrap();
        assert_eq!(check_newest(&database).await, (80, 0));
        append(&database, 80..100).await;
        assert_eq!(check_newest(&database).await, (80, 20));
        change(&database, &|id| id % 5 == 0, false).await;
        assert_eq!(check_newest(&database).await, (64, 16));
        build(&database).await.unwrap();
        // What was deleted when a segment was built is absent from it, and alive in older versions.
        assert_eq!(check_newest(&database).await, (80, 0));
        check_all(&database).await;
        let t = entry(&database, &name("t")).await;
        database.restore(&name("t"), &t, &AsOf::Version(4), i64::MAX).await.unwrap();
        check_newest(&database).await;
        database.truncate(&name("t"), &t).await.unwrap();
        assert_eq!(check_newest(&database).await, (0, 0));
        check_all(&database).await;
    }
}

#[tokio::test]
async fn rows_that_optimize_moved_stay_covered() {
    let database = memory().await;
    table(&database, &[0..40, 40..70]).await;
    create(&database).await;
    build(&database).await.unwrap();
    append(&database, 70..75).await;
    change(&database, &|id| id % 4 == 1, false).await;
    optimize(&database).await;
    let snapshot = newest(&database, &name("t")).await;
    assert_eq!(snapshot.fragments().len(), 1);
    // Rows 70 to 74 were not covered; 73 is deleted.
    assert_eq!(check(&snapshot).await, (52, 4));
    // A copy of a copy.
    append(&database, 75..80).await;
    change(&database, &|id| id % 4 == 2, false).await;
    optimize(&database).await;
    assert_eq!(check_newest(&database).await, (35, 2 + 5 - 1));
    // What is built on the new file goes before the map.
    build(&database).await.unwrap();
    assert_eq!(check_newest(&database).await.1, 0);
    check_all(&database).await;
    let manifest = newest(&database, &name("t")).await.indexes().await;
    let last = manifest.row_maps.last().unwrap();
    let first: BTreeSet<&str> = manifest.segments[0].units.iter().map(|unit| unit.file.as_str()).collect();
    assert!(
        first.iter().all(|file| last.sources.iter().any(|source| source == file)),
        "a copy of a copy leads to the first"
    );
}

#[tokio::test]
async fn an_update_that_leaves_the_vectors_alone_leaves_them_covered() {
    let database = memory().await;
    table(&database, &[0..60]).await;
    create(&database).await;
    build(&database).await.unwrap();
    change(&database, &|id| id % 3 == 0, true).await;
    assert_eq!(check_newest(&database).await, (60, 0));
    change(&database, &|id| id % 6 == 0, true).await;
    change(&database, &|id| id % 10 == 0, false).await;
    assert_eq!(check_newest(&database).await, (54, 0));
    optimize(&database).await;
    assert_eq!(check_newest(&database).await, (54, 0));
    check_all(&database).await;
}

#[tokio::test]
async fn copies_that_are_none_are_not_covered() {
    let database = memory().await;
    table(&database, &[0..60]).await;
    create(&database).await;
    build(&database).await.unwrap();
    let t = entry(&database, &name("t")).await;
    let turn = database.turn(&name("t"), &t).await.unwrap();
    let there = ids(turn.snapshot()).await;
    // An UPDATE that says that it leaves the vectors alone, and does not.
    let inserted = Some(stream(vec![rows(101..110)]));
    let origins = there[1..10].iter().map(|(_, address)| Some(*address)).collect();
    let copied = Some(Copied { origins, columns: vec!["emb".to_owned()] });
    let deleted = there[1..10].iter().map(|(_, address)| *address).collect();
    let change = Change { operation: "UPDATE", deleted, inserted, copied, progress: None, once: None };
    turn.commit(change).await.unwrap();
    assert_eq!(check_newest(&database).await, (51, 9));
}

#[tokio::test]
async fn columns_that_come_and_go_leave_an_index_to_its_own() {
    let database = memory().await;
    table(&database, &[0..30]).await;
    create(&database).await;
    build(&database).await.unwrap();
    let t = entry(&database, &name("t")).await;
    let column = Field::new("more", DataType::Int64, true);
    database.add_column(&name("t"), &t, &column, None).await.unwrap();
    assert_eq!(check_newest(&database).await, (30, 0));
    database.drop_column(&name("t"), &t, "more").await.unwrap();
    database.rename_column(&name("t"), &t, "emb", "vector").await.unwrap();
    let snapshot = newest(&database, &name("t")).await;
    assert_eq!(snapshot.indexes_of("vector").await.unwrap().len(), 1);
    assert_eq!(snapshot.index_coverage("i").await.unwrap().column, "vector");
    assert_eq!(check(&snapshot).await, (30, 0));
    database.drop_column(&name("t"), &t, "vector").await.unwrap();
    database.add_column(&name("t"), &t, schema().field(4), None).await.unwrap();
    let snapshot = newest(&database, &name("t")).await;
    assert!(snapshot.indexes_of("emb").await.unwrap().is_empty(), "another column of the same name");
    assert!(matches!(snapshot.index_coverage("i").await, Err(StorageError::NotFound(_))));
}

#[tokio::test]
async fn what_other_programs_write_is_uncovered() {
    let database = memory().await;
    table(&database, &[0..30, 30..40]).await;
    create(&database).await;
    build(&database).await.unwrap();
    // An update of theirs copies rows, and no map says so.
    let theirs = UpdateBuilder::new(Arc::new(foreign(&database).await));
    let theirs = theirs.update_where("id % 2 = 0").unwrap().set("price", "1.5").unwrap().build().unwrap();
    theirs.execute().await.unwrap();
    assert_eq!(check_newest(&database).await, (20, 20));
    let mut theirs = foreign(&database).await;
    lance::dataset::optimize::compact_files(&mut theirs, Default::default(), None).await.unwrap();
    assert_eq!(check_newest(&database).await, (0, 40));
    build(&database).await.unwrap();
    assert_eq!(check_newest(&database).await, (40, 0));
    check_all(&database).await;
}

#[tokio::test]
async fn two_fragments_of_one_file_are_both_uncovered() {
    let database = memory().await;
    table(&database, &[0..30]).await;
    create(&database).await;
    build(&database).await.unwrap();
    let theirs = Arc::new(foreign(&database).await);
    let twin = Fragment { id: 0, ..newest(&database, &name("t")).await.fragments()[0].metadata.clone() };
    let operation = Operation::Append { fragments: vec![twin] };
    let transaction = Transaction::new(theirs.version_id(), operation, None);
    CommitBuilder::new(theirs).execute(transaction).await.unwrap();
    let coverage = newest(&database, &name("t")).await.index_coverage("i").await.unwrap();
    assert_eq!((coverage.segments.len(), coverage.uncovered_rows, coverage.units.len()), (0, 60, 0));
}

#[tokio::test]
async fn an_overlay_over_the_column_uncovers_its_fragment() {
    use lance_table::format::overlay::{DataOverlayFile, OverlayCoverage};
    let database = memory().await;
    let snapshot = table(&database, &[0..30]).await;
    let field_id = snapshot.field_id("emb").unwrap();
    let mut fragment = snapshot.fragments()[0].metadata.clone();
    assert!(file_of(&fragment, field_id).is_some());
    let overlay = |fields: Vec<i32>| DataOverlayFile {
        data_file: lance_table::format::DataFile { fields: fields.into(), ..fragment.files[0].clone() },
        coverage: OverlayCoverage::Shared(Arc::new(RoaringBitmap::from_iter([3_u32]))),
        committed_version: 2,
    };
    let (over_other, over_vectors) = (overlay(vec![field_id - 1]), overlay(vec![0, field_id]));
    fragment.overlays = vec![over_other];
    assert!(file_of(&fragment, field_id).is_some());
    fragment.overlays.push(over_vectors);
    assert_eq!(file_of(&fragment, field_id), None);
}

#[tokio::test]
async fn branches_and_clones_are_covered_like_the_table() {
    let (folder, database) = on_disk().await;
    table(&database, &[0..30]).await;
    create(&database).await;
    build(&database).await.unwrap();
    let t = entry(&database, &name("t")).await;
    let mut theirs = foreign(&database).await;
    let version = theirs.version_id();
    let mut branch = theirs.create_branch("b", version, None).await.unwrap();
    branch.delete("id < 10").await.unwrap();
    let branch = database.wrap(branch, &t.location).await.unwrap();
    assert_eq!(check(&branch).await, (20, 0));
    assert_eq!(check_newest(&database).await, (30, 0));
    let place = database.root().lance_uri("public/clone.lance").unwrap();
    let params = Some(database.root().params());
    let clone = theirs.shallow_clone(&place, version, params).await.unwrap();
    assert!(!clone.manifest().base_paths.is_empty());
    let clone = database.wrap(clone, &t.location).await.unwrap();
    assert_eq!(check(&clone).await, (30, 0));
    drop(folder);
}

#[tokio::test]
async fn builds_of_two_processes_do_not_overwrite_each_other() {
    let (folder, one) = on_disk().await;
    let path = folder.path().canonicalize().unwrap().display().to_string();
    let two = Database::open(&path, OpenOptions::default()).await.unwrap();
    table(&one, &[0..30, 30..50]).await;
    let index = create(&one).await;
    let t = entry(&one, &name("t")).await;
    let (seen, theirs) = (newest(&one, &name("t")).await, newest(&two, &name("t")).await);
    let units = seen.uncovered_units("i").await.unwrap();
    assert_eq!(theirs.uncovered_units("i").await.unwrap().len(), 2);
    let (first, second) = (built(&seen, &units[..1]).await, built(&seen, &units).await);
    one.publish_segment(&t, &index, first).await.unwrap();
    let beaten = two.publish_segment(&t, &index, second).await;
    assert!(matches!(&beaten, Err(StorageError::Conflict(_))), "{beaten:?}");
    assert_eq!(files(&folder, &t.location, ".seg").len(), 1, "the file of the loser is gone");
    let rest = built(&seen, &units[1..]).await;
    two.publish_segment(&t, &index, rest).await.unwrap();
    assert_eq!(two.indexes(&t).await.unwrap().segments.len(), 2);
    assert_eq!(check_newest(&two).await, (50, 0));
    // A merge replaces both at once, and only if they are there.
    let old: Vec<String> = one.indexes(&t).await.unwrap().segments.iter().map(|segment| segment.id.clone()).collect();
    let merged = built(&seen, &units).await;
    one.replace_segments(&t, &index, &old, merged.clone()).await.unwrap();
    assert!(matches!(two.replace_segments(&t, &index, &old, merged.clone()).await, Err(StorageError::Conflict(_))));
    assert_eq!(check_newest(&one).await, (50, 0));
    // Files that were replaced stay for a while: somebody may hold the list that names them.
    assert_eq!(files(&folder, &t.location, ".seg").len(), 3);
    assert_eq!(check(&theirs).await, (50, 0));
    one.drop_index(&t, "i", false).await.unwrap();
    assert!(matches!(two.publish_segment(&t, &index, merged).await, Err(StorageError::Conflict(_))));
    assert!(matches!(one.drop_index(&t, "i", false).await, Err(StorageError::NotFound(_))));
    assert!(!one.drop_index(&t, "i", true).await.unwrap());
    // Who takes back what was made leaves alone what somebody else has made under the name since.
    let other = create(&two).await;
    assert!(!one.take_back_index(&t, &index).await.unwrap());
    assert!(one.take_back_index(&t, &other).await.unwrap());
    assert!(one.indexes(&t).await.unwrap().indexes.is_empty());
}

#[tokio::test]
async fn what_is_known_costs_nothing() {
    let store = Faulty::new(Arc::new(object_store::memory::InMemory::new()), 1);
    let database = open(&store).await.unwrap();
    table(&database, &[0..30, 30..60]).await;
    create(&database).await;
    build(&database).await.unwrap();
    change(&database, &|id| id % 3 == 0, false).await;
    let snapshot = newest(&database, &name("t")).await;
    let first = snapshot.open_index("i").await.unwrap();
    store.take_requests();
    let start = std::time::Instant::now();
    for _ in 0..1000 {
        let again = snapshot.open_index("i").await.unwrap();
        assert!(Arc::ptr_eq(&first.coverage, &again.coverage) && Arc::ptr_eq(&first.segments[0], &again.segments[0]));
    }
    println!("{:?} for each", start.elapsed() / 1000);
    let requests = store.take_requests();
    assert!(requests.len() <= 4, "a look for a newer list in a second: {requests:?}");
    let figures = database.segment_cache();
    assert_eq!((figures.segments, figures.misses, figures.mapped_bytes), (1, 1, 0));
    assert!(figures.hits >= 1000 && figures.bytes > 100_000);
    database.set_segment_cache_bytes(1000);
    assert_eq!(database.segment_cache().bytes, 0);
    assert_eq!(check(&snapshot).await, (40, 0));
}

#[tokio::test]
async fn garbage_goes_and_what_a_version_needs_stays() {
    let (folder, database) = on_disk().await;
    table(&database, &[0..30]).await;
    create(&database).await;
    build(&database).await.unwrap();
    append(&database, 30..50).await;
    build(&database).await.unwrap();
    let t = entry(&database, &name("t")).await;
    change(&database, &|id| id >= 30 || id % 4 == 1, false).await;
    optimize(&database).await;
    // Now only older versions name the files of both segments, and a map leads to the first one.
    database.vacuum(&t, 0, false).await.unwrap();
    assert_eq!((files(&folder, &t.location, ".seg").len(), check_newest(&database).await), (2, (22, 0)));
    let since = newest(&database, &name("t")).await.committed_at_us();
    database.create_tag(&t, "a", Some(&AsOf::Version(3)), i64::MAX).await.unwrap();
    database.vacuum(&t, since, false).await.unwrap();
    assert_eq!(files(&folder, &t.location, ".seg").len(), 2, "a tag keeps a version");
    check_all(&database).await;
    database.drop_tag(&t, "a", false).await.unwrap();
    let dry = database.vacuum(&t, since, true).await.unwrap();
    let done = database.vacuum(&t, since, false).await.unwrap();
    assert!(dry.files_removed > 0 && done.files_removed > dry.files_removed, "{dry:?} {done:?}");
    assert_eq!((files(&folder, &t.location, ".seg").len(), check_newest(&database).await), (1, (22, 0)));
    assert_eq!(files(&folder, &t.location, ".map").len(), 1);
    append(&database, 50..60).await;
    build(&database).await.unwrap();
    database.drop_index(&t, "i", false).await.unwrap();
    assert_eq!(files(&folder, &t.location, ".seg").len() + files(&folder, &t.location, ".map").len(), 0);
    assert!(!files(&folder, &t.location, "").is_empty());
    create(&database).await;
    database.drop_table(&name("t"), false).await.unwrap();
    assert!(!folder.path().join(&t.location).exists());
}

#[tokio::test]
async fn segments_that_no_version_needs_go() {
    let (folder, database) = on_disk().await;
    table(&database, &[0..30]).await;
    create(&database).await;
    build(&database).await.unwrap();
    let t = entry(&database, &name("t")).await;
    database.truncate(&name("t"), &t).await.unwrap();
    append(&database, 0..20).await;
    build(&database).await.unwrap();
    let since = newest(&database, &name("t")).await.committed_at_us();
    database.vacuum(&t, since, false).await.unwrap();
    assert_eq!(files(&folder, &t.location, ".seg").len(), 1);
    assert_eq!((database.indexes(&t).await.unwrap().segments.len(), check_newest(&database).await), (1, (20, 0)));
}

/// Changes the list of indexes behind everybody's back.
async fn forge(database: &Database, t: &TableEntry, change: impl Fn(&mut super::IndexManifest)) {
    let forged = |current: &super::IndexManifest| {
        let mut next = current.clone();
        change(&mut next);
        Ok(crate::numbered::Change::Write(next, ()))
    };
    database.table_indexes(&t.location).change(forged).await.unwrap();
}

#[tokio::test]
async fn maps_and_files_of_changes_that_failed_go_when_they_are_old() {
    let (folder, database) = on_disk().await;
    table(&database, &[0..30, 30..60]).await;
    create(&database).await;
    build(&database).await.unwrap();
    let t = entry(&database, &name("t")).await;
    change(&database, &|id| id % 2 == 0, true).await;
    let first = files(&folder, &t.location, ".map");
    let stray = folder.path().join(&t.location).join(FOLDER).join("0f.seg");
    std::fs::write(&stray, "half a segment").unwrap();
    let vacuum = async |since: i64| database.vacuum(&t, since, false).await.unwrap();
    vacuum(0).await;
    assert!(stray.exists(), "a build may be under way");
    // A map of files that no version names, older than any change.
    let map = folder.path().join(&t.location).join(FOLDER).join("1f.map");
    std::fs::copy(&first[0], &map).unwrap();
    forge(&database, &t, |list| {
        list.row_maps.iter_mut().for_each(|map| map.written_at_us = 1);
        let targets = vec!["never.lance".to_owned()];
        list.row_maps.push(super::RowMapEntry { id: "1f".to_owned(), targets, ..list.row_maps[0].clone() });
    })
    .await;
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 24 * 3600);
    for path in files(&folder, &t.location, "") {
        std::fs::File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    vacuum(0).await;
    assert!(!stray.exists() && !map.exists() && files(&folder, &t.location, ".map") == first);
    assert_eq!(check_newest(&database).await, (60, 0));
    check_all(&database).await;
}

#[tokio::test]
async fn lists_of_long_ago_go_and_nobody_forks_the_series() {
    let (folder, one) = on_disk().await;
    let path = folder.path().canonicalize().unwrap().display().to_string();
    let two = Database::open(&path, OpenOptions::default()).await.unwrap();
    table(&one, &[0..30]).await;
    create(&one).await;
    let t = entry(&one, &name("t")).await;
    let theirs = newest(&two, &name("t")).await;
    assert_eq!(theirs.indexes().await.number, 1);
    for _ in 0..30 {
        one.set_index_options(&t, "i", "{\"lists\":1}").await.unwrap();
    }
    build(&one).await.unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 24 * 3600);
    for path in files(&folder, &t.location, "") {
        std::fs::File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    one.vacuum(&t, 0, false).await.unwrap();
    let lists = |folder| files(folder, &t.location, "").len() - files(folder, &t.location, ".seg").len();
    assert_eq!(lists(&folder), 17);
    // It has seen number 1, and number 2 is free.
    two.set_index_options(&t, "i", "{}").await.unwrap();
    assert_eq!((two.indexes(&t).await.unwrap().number, check(&theirs).await), (33, (30, 0)));
    assert_eq!(one.indexes(&t).await.unwrap().number, 33);
}

#[tokio::test]
async fn a_list_of_another_process_is_noticed_when_it_is_looked_for() {
    let (folder, one) = on_disk().await;
    let path = folder.path().canonicalize().unwrap().display().to_string();
    let two = Database::open(&path, OpenOptions::default()).await.unwrap();
    table(&one, &[0..30]).await;
    create(&one).await;
    let (t, theirs) = (entry(&one, &name("t")).await, newest(&two, &name("t")).await);
    assert_eq!(check(&theirs).await, (0, 30));
    build(&one).await.unwrap();
    let known = two.table_indexes(&t.location);
    {
        let mut state = known.lock();
        state.looked_at = state.looked_at.map(|at| at - super::BELIEVED);
    }
    assert_eq!(check(&theirs).await, (30, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn optimize_beside_changes_leaves_no_ghost() {
    let (folder, one) = on_disk().await;
    let path = folder.path().canonicalize().unwrap().display().to_string();
    let two = Database::open(&path, OpenOptions::default()).await.unwrap();
    table(&one, &[0..100, 100..150, 150..200]).await;
    create(&one).await;
    build(&one).await.unwrap();
    let changes = async {
        for round in 0..8 {
            append(&two, 200 + round * 10..210 + round * 10).await;
            loop {
                let t = entry(&two, &name("t")).await;
                let turn = two.turn(&name("t"), &t).await.unwrap();
                let there = ids(turn.snapshot()).await;
                let deleted = there.iter().filter(|(id, _)| id % 9 == round).map(|(_, address)| *address).collect();
                let (inserted, copied, progress, once) = (None, None, None, None);
                let change = Change { operation: "DELETE", deleted, inserted, copied, progress, once };
                match turn.commit(change).await {
                    Ok(_) => break,
                    Err(StorageError::Stale(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    let rewrites = async {
        for _ in 0..6 {
            optimize(&one).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(changes, rewrites);
    optimize(&one).await;
    let (covered, _) = check_newest(&two).await;
    assert!(covered > 0);
    check_all(&one).await;
}

#[tokio::test]
async fn large_segments_are_uploaded_in_parts_and_kept_on_local_disk() {
    let store = Faulty::new(Arc::new(object_store::memory::InMemory::new()), 1);
    let database = open(&store).await.unwrap();
    table(&database, &[0..30]).await;
    let index = create(&database).await;
    let t = entry(&database, &name("t")).await;
    let seen = newest(&database, &name("t")).await;
    let mut segment = built(&seen, &seen.uncovered_units("i").await.unwrap()).await;
    let large: Vec<u8> = (0..40_000_001_u32).map(|at| (at ^ (at >> 9)) as u8).collect();
    segment.sections.push(Section { tier: Tier::Hot, bytes: large.clone().into() });
    store.add(Rule::once(Request::Complete, ".seg", Fault::ErrorBefore));
    let broken = database.publish_segment(&t, &index, segment.clone()).await;
    assert!(matches!(broken, Err(StorageError::Unavailable(_))), "{broken:?}");
    store.clear();
    let made = database.publish_segment(&t, &index, segment).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join(format!("{}.seg", made.id));
    for (round, is_mapped) in [false, true, true, true, false].into_iter().enumerate() {
        let database = open(&store).await.unwrap();
        let bytes_max = if round == 4 { 1 << 20 } else { 50 << 20 };
        database.set_segment_folder((round > 0).then(|| folder.path().to_owned()), bytes_max);
        let snapshot = newest(&database, &name("t")).await;
        if round == 3 {
            // A copy that a crash left half written.
            std::fs::write(&copy, &std::fs::read(&copy).unwrap()[..1000]).unwrap();
        }
        if round == 4 {
            std::fs::remove_file(&copy).unwrap();
        }
        store.take_requests();
        let opened = snapshot.open_index("i").await.unwrap();
        let requests = store.take_requests();
        let is_read = |(request, path): &&(Request, String)| *request == Request::Get && path.ends_with(&made.file());
        let reads = requests.iter().filter(is_read).filter(|(_, path)| !path.contains("_crc")).count();
        assert_eq!(reads, usize::from(round != 2), "round {round}");
        assert_eq!(opened.segments[0].is_in_memory(), !is_mapped, "round {round}");
        assert!(opened.segments[0].section(3) == large && copy.exists() == is_mapped, "round {round}");
        opened.segments[0].verify().await.unwrap();
        assert_eq!(check(&snapshot).await, (30, 0));
    }
    // Another one needs the room.
    let database = open(&store).await.unwrap();
    database.set_segment_folder(Some(folder.path().to_owned()), made.bytes);
    append(&database, 30..40).await;
    build(&database).await.unwrap();
    check_newest(&database).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn segments_on_disk_can_be_had_in_memory() {
    let (_folder, database) = on_disk().await;
    table(&database, &[0..30]).await;
    create(&database).await;
    let made = build(&database).await.unwrap();
    database.set_segments_in_memory(true);
    let t = entry(&database, &name("t")).await;
    let indexes = database.table_indexes(&t.location);
    let snapshot = newest(&database, &name("t")).await;
    assert_eq!(check(&snapshot).await, (30, 0));
    assert!(indexes.segments.promote(&indexes.root, &t.location, &made).await.unwrap());
    assert!(snapshot.open_index("i").await.unwrap().segments[0].is_in_memory());
    assert_eq!(check(&snapshot).await, (30, 0));
    let figures = database.segment_cache();
    assert_eq!((figures.segments, figures.bytes, figures.mapped_bytes), (1, made.bytes, 0));
}

#[tokio::test]
async fn a_list_that_fails_to_be_written_is_none_or_whole() {
    for fault in [Fault::ErrorBefore, Fault::ErrorAfter, Fault::SaysExists, Fault::Conflict, Fault::Full] {
        for path in ["manifest-", ".seg"] {
            let store = Faulty::new(Arc::new(object_store::memory::InMemory::new()), 1);
            let database = open(&store).await.unwrap();
            table(&database, &[0..30]).await;
            let index = create(&database).await;
            let t = entry(&database, &name("t")).await;
            let seen = newest(&database, &name("t")).await;
            let segment = built(&seen, &seen.uncovered_units("i").await.unwrap()).await;
            store.add(Rule { times: 2, ..Rule::once(Request::Put, path, fault) });
            let published = database.publish_segment(&t, &index, segment).await;
            store.clear();
            let again = open(&store).await.unwrap();
            let manifest = again.indexes(&t).await.unwrap();
            let shown = format!("{fault:?} of {path}: {published:?}");
            assert!(manifest.segments.len() <= 1, "{shown}");
            if published.is_ok() {
                assert_eq!(manifest.segments.len(), 1, "{shown}");
            } else if !matches!(published, Err(StorageError::Unavailable(_))) {
                assert_eq!(manifest.segments.len(), 0, "{shown}");
            }
            let expected = if manifest.segments.is_empty() { (0, 30) } else { (30, 0) };
            assert_eq!(check_newest(&again).await, expected, "{shown}");
        }
    }
}

#[tokio::test]
async fn a_change_goes_on_where_its_map_cannot_be_written() {
    for path in [".map", "_ann/manifest-"] {
        let store = Faulty::new(Arc::new(object_store::memory::InMemory::new()), 1);
        let database = open(&store).await.unwrap();
        table(&database, &[0..30, 30..40]).await;
        create(&database).await;
        build(&database).await.unwrap();
        store.add(Rule { fault: Fault::Full, ..Rule::always(Request::Put, path) });
        change(&database, &|id| id % 2 == 0, true).await;
        optimize(&database).await;
        store.clear();
        assert_eq!(check_newest(&database).await.0, 0, "{path}");
        build(&database).await.unwrap();
        assert_eq!(check_newest(&database).await, (40, 0), "{path}");
        check_all(&database).await;
    }
}

#[tokio::test]
async fn checking_a_table_reports_index_files() {
    let (folder, database) = on_disk().await;
    table(&database, &[0..30]).await;
    create(&database).await;
    build(&database).await.unwrap();
    let t = entry(&database, &name("t")).await;
    assert!(database.check(&t).await.unwrap().findings.is_empty());
    let segment = files(&folder, &t.location, ".seg").remove(0);
    let bytes = std::fs::read(&segment).unwrap();
    std::fs::remove_file(&segment).unwrap();
    let report = database.check(&t).await.unwrap();
    assert_eq!((report.files_missing, report.findings[0].status), (1, FindingStatus::Missing), "{report:?}");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    std::fs::write(&segment, flipped).unwrap();
    let report = database.check(&t).await.unwrap();
    assert_eq!((report.files_damaged, report.findings[0].status), (1, FindingStatus::Damaged), "{report:?}");
}
