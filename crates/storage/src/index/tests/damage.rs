//! Index files that are not what was written: searches stay right, and say so; the next build heals.

use super::*;
use crate::index::manifest::PREFIX;

/// A table with an index of one segment of 50 rows, as another process finds it.
async fn written(folder: &tempfile::TempDir) -> TableEntry {
    let database = again(folder).await;
    table(&database, &[0..50]).await;
    create(&database).await;
    build(&database).await.unwrap();
    entry(&database, &name("t")).await
}

async fn again(folder: &tempfile::TempDir) -> Database {
    let path = folder.path().canonicalize().unwrap().display().to_string();
    Database::open(&path, OpenOptions::default()).await.unwrap()
}

/// Flips a bit and takes away the checksums beside the file, which would notice it first.
fn flip(path: &std::path::Path, at: usize, mask: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= mask;
    std::fs::write(path, bytes).unwrap();
    let folder = path.parent().unwrap();
    let file = path.file_name().unwrap().to_str().unwrap();
    let _ = std::fs::remove_file(folder.parent().unwrap().join("_crc").join(FOLDER).join(format!("{file}.crc")));
}

#[tokio::test]
async fn a_damaged_segment_is_left_out_and_built_anew() {
    let folder = tempfile::tempdir().unwrap();
    let t = written(&folder).await;
    let path = files(&folder, &t.location, ".seg").remove(0);
    let good = std::fs::read(&path).unwrap();
    // In the prefix, the version, the head, and the pinned section behind it: found when it is opened.
    let head = u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize;
    for at in [0, 8, 12, 20, 40, head - 1, head.next_multiple_of(64)] {
        std::fs::write(&path, &good).unwrap();
        flip(&path, at, 2);
        let database = again(&folder).await;
        assert_eq!(check_newest(&database).await, (0, 50), "byte {at}");
        let coverage = newest(&database, &name("t")).await.index_coverage("i").await.unwrap();
        assert_eq!(coverage.problems.len(), 1, "byte {at}: {coverage:?}");
    }
    for length in [0, 10, head - 3, head + 100, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        assert_eq!(check_newest(&again(&folder).await).await, (0, 50), "cut at {length}");
    }
    std::fs::remove_file(&path).unwrap();
    let database = again(&folder).await;
    assert_eq!(check_newest(&database).await, (0, 50), "gone");
    build(&database).await.unwrap();
    assert_eq!(check_newest(&database).await, (50, 0));
    let manifest = database.indexes(&t).await.unwrap();
    assert_eq!((manifest.segments.len(), manifest.removed.len()), (1, 1), "the damaged one is not listed any more");
    assert_eq!(check_newest(&again(&folder).await).await, (50, 0));
}

#[tokio::test]
async fn damage_that_is_found_later_takes_the_segment_out_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let t = written(&folder).await;
    let path = files(&folder, &t.location, ".seg").remove(0);
    let at = std::fs::read(&path).unwrap().len() - 5;
    flip(&path, at, 1);
    let database = again(&folder).await;
    let snapshot = newest(&database, &name("t")).await;
    let opened = snapshot.open_index("i").await.unwrap();
    if let Some(segment) = opened.segments.first() {
        let verified = segment.verify().await;
        assert!(matches!(verified, Err(StorageError::Corrupt(_))), "{verified:?}");
        // The check in the background, or a search that is refused what it reads.
        snapshot.refuse_segment(segment, "its lists overlap");
    }
    assert_eq!(check(&snapshot).await, (0, 50));
    build(&database).await.unwrap();
    assert_eq!(check(&snapshot).await, (50, 0));
}

#[tokio::test]
async fn a_segment_of_another_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let t = written(&folder).await;
    let database = again(&folder).await;
    append(&database, 50..100).await;
    build(&database).await.unwrap();
    let paths = files(&folder, &t.location, ".seg");
    std::fs::copy(&paths[0], &paths[1]).unwrap();
    assert_eq!(check_newest(&again(&folder).await).await, (50, 50));
}

#[tokio::test]
async fn a_damaged_list_is_an_error_for_changes_and_no_index_for_searches() {
    let folder = tempfile::tempdir().unwrap();
    let t = written(&folder).await;
    let lists = files(&folder, &t.location, "");
    let list = lists.iter().rfind(|path| path.to_string_lossy().contains(PREFIX)).unwrap();
    let good = std::fs::read(list).unwrap();
    flip(list, good.len() / 2, 1);
    let running = again(&folder).await;
    let snapshot = newest(&running, &name("t")).await;
    assert!(snapshot.indexes().await.indexes.is_empty());
    let problem = snapshot.index_problem().await.unwrap();
    assert!(problem.contains("damaged") && problem.contains("REINDEX"), "{problem}");
    let changed = running.set_index_options(&t, "i", "{}").await;
    assert!(matches!(changed, Err(StorageError::Corrupt(_))), "{changed:?}");
    // The one before has the index and no segment.
    assert_eq!(running.repair_indexes(&t).await.unwrap(), 1);
    assert_eq!(running.repair_indexes(&t).await.unwrap(), 1, "nothing is to be done");
    assert_eq!(check(&snapshot).await, (0, 50));
    build(&running).await.unwrap();
    assert_eq!(check(&snapshot).await, (50, 0));
    assert_eq!(check_newest(&again(&folder).await).await, (50, 0));
}

#[tokio::test]
async fn a_list_of_a_newer_program_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let t = written(&folder).await;
    let lists = files(&folder, &t.location, "");
    let list = lists.iter().rfind(|path| path.to_string_lossy().contains(PREFIX)).unwrap();
    let at = std::fs::read_to_string(list).unwrap().find(":1,").unwrap() + 1;
    flip(list, at, 2);
    let database = again(&folder).await;
    assert!(newest(&database, &name("t")).await.indexes().await.indexes.is_empty());
    let dropped = database.drop_index(&t, "i", false).await;
    assert!(matches!(&dropped, Err(StorageError::Unsupported(_))), "{dropped:?}");
    assert!(matches!(database.repair_indexes(&t).await, Err(StorageError::Unsupported(_))));
    let since = newest(&database, &name("t")).await.committed_at_us();
    database.vacuum(&t, since, false).await.unwrap();
    assert_eq!(files(&folder, &t.location, ".seg").len(), 1);
}

#[tokio::test]
async fn a_damaged_map_uncovers_what_it_led_to() {
    let folder = tempfile::tempdir().unwrap();
    let t = written(&folder).await;
    let database = again(&folder).await;
    change(&database, &|id| id < 20, true).await;
    assert_eq!(check_newest(&database).await, (50, 0));
    let map = files(&folder, &t.location, ".map").remove(0);
    flip(&map, 30, 1);
    let database = again(&folder).await;
    assert_eq!(check_newest(&database).await, (30, 20));
    std::fs::remove_file(&map).unwrap();
    let database = again(&folder).await;
    assert_eq!(check_newest(&database).await, (30, 20));
    build(&database).await.unwrap();
    assert_eq!(check_newest(&database).await, (50, 0));
}
