//! Tests of `CHECK TABLE`: what it reports. That it finds every flipped bit is tested with the checksums.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use object_store::memory::InMemory;

use super::*;
use crate::fixtures::faulty::Faulty;
use crate::fixtures::{Instead, entry, ids, keyed, memory, name, newest, rows, stream, table};
use crate::{AsOf, Change, IdempotencyKey, Once, OpenOptions};

#[tokio::test]
async fn a_sound_table_has_nothing_to_report() {
    let database = memory().await;
    let snapshot = table(&database, &[0..10, 10..20]).await;
    let report = database.check(&entry(&database, &name("t")).await).await.unwrap();
    assert_eq!(report.findings, Vec::new());
    assert_eq!(report.versions, snapshot.version());
    assert!(report.files_verified > snapshot.version() && report.bytes > 0, "{report:?}");
}

#[tokio::test]
async fn missing_damaged_and_foreign_files_are_named_worst_first() {
    let store = Faulty::new(Arc::new(InMemory::new()), 1);
    let wrapper = Arc::new(Instead(store.clone()));
    let database = Database::open_wrapped("memory:", OpenOptions::default(), Some(wrapper)).await.unwrap();
    table(&database, &[0..10, 10..20]).await;
    let t = entry(&database, &name("t")).await;
    let raw = store.inner();
    let data = Path::parse(format!("{}/data", t.location)).unwrap();
    let files: Vec<ObjectMeta> = raw.list(Some(&data)).try_collect().await.unwrap();
    raw.delete(&files[0].location).await.unwrap();
    raw.put(&files[1].location, "shorter".into()).await.unwrap();
    raw.put(&data.clone().join("foreign.lance"), "foreign".into()).await.unwrap();
    let report = database.check(&t).await.unwrap();
    assert_eq!((report.files_missing, report.files_damaged, report.files_unverified), (1, 1, 1), "{report:?}");
    let found: Vec<(&str, &str)> =
        report.findings.iter().map(|finding| (finding.status.name(), finding.detail.as_str())).collect();
    assert_eq!(found[0].0, "missing");
    assert!(found[0].1.starts_with("version ") && files[0].location.as_ref().ends_with(&report.findings[0].file));
    assert!(found[1].0 == "damaged" && found[1].1.starts_with("it has 7 bytes, but"), "{found:?}");
    assert_eq!(found[2].0, "unverified");
}

#[tokio::test]
async fn a_table_that_cannot_be_opened_can_be_checked() {
    let store = Faulty::new(Arc::new(InMemory::new()), 1);
    let wrapper = || Some(Arc::new(Instead(store.clone())) as Arc<dyn lance_io::object_store::WrappingObjectStore>);
    let database = Database::open_wrapped("memory:", OpenOptions::default(), wrapper()).await.unwrap();
    table(&database, &[0..10]).await;
    let t = entry(&database, &name("t")).await;
    let versions = Path::parse(format!("{}/_versions", t.location)).unwrap();
    let files: Vec<ObjectMeta> = store.inner().list(Some(&versions)).try_collect().await.unwrap();
    for meta in &files {
        store.inner().put(&meta.location, "nonsense".into()).await.unwrap();
    }
    let again = Database::open_wrapped("memory:", OpenOptions::default(), wrapper()).await.unwrap();
    assert!(matches!(again.snapshot(&t).await, Err(StorageError::Corrupt(_))));
    let report = again.check(&t).await.unwrap();
    assert_eq!((report.files_damaged, report.versions), (files.len() as u64, 0), "{report:?}");
}

/// A change of the table `t` under an idempotency key: the row `gone` goes, the row `comes` comes. Gives the newest
/// version then.
async fn exchange(database: &Database, t: &TableEntry, gone: i32, comes: i32) -> u64 {
    let turn = database.turn(&name("t"), t).await.unwrap();
    let key = IdempotencyKey { key: format!("key {comes}"), statement: "UPDATE".to_owned() };
    if turn.applied(&key).await.unwrap().is_some() {
        return turn.snapshot().version();
    }
    let deleted = ids(turn.snapshot()).await.into_iter().filter(|(id, _)| *id == gone).map(|(_, at)| at).collect();
    let inserted = Some(stream(vec![rows(comes..comes + 1)]));
    let once = Some(Once { key, count: 1 });
    let change = Change { operation: "UPDATE", deleted, inserted, copied: None, progress: None, once };
    turn.commit(change).await.unwrap().version
}

#[tokio::test]
async fn changes_keys_tags_and_maintenance_leave_every_file_with_its_sidecar_and_no_sidecar_alone() {
    let store = Faulty::new(Arc::new(InMemory::new()), 1);
    let open = async || {
        let wrapper = Arc::new(Instead(store.clone()));
        Database::open_wrapped("memory:", OpenOptions::default(), Some(wrapper)).await.unwrap()
    };
    let database = open().await;
    let first = keyed(&database, 0..10).await.version();
    let t = entry(&database, &name("t")).await;
    let done = exchange(&database, &t, 3, 20).await;
    assert_eq!(exchange(&open().await, &t, 3, 20).await, done, "applied once");
    for version in [first, done] {
        database.create_tag(&t, "kept", Some(&AsOf::Version(version)), i64::MAX).await.unwrap();
        if version == first {
            assert!(database.drop_tag(&t, "kept", false).await.unwrap());
        }
    }
    let more = Field::new("more", DataType::Int64, true);
    exchange(&database, &t, 4, 21).await;
    database.add_column(&name("t"), &t, &more, None).await.unwrap();
    database.restore(&name("t"), &t, &AsOf::Version(done), i64::MAX).await.unwrap();
    for id in 30..36 {
        database.append(&name("t"), &t, stream(vec![rows(id..id + 1)]), None).await.unwrap();
    }
    assert!(database.optimize(&name("t"), &t, false).await.unwrap().version.is_some());
    let newest_one = newest(&database, &name("t")).await;
    assert!(database.vacuum(&t, newest_one.committed_at_us(), false).await.unwrap().versions_removed > 0);
    let again = open().await;
    let report = again.check(&t).await.unwrap();
    assert_eq!(report.findings, Vec::new());
    assert_eq!(report.versions, 2, "the tagged one and the newest");
    let kept = again.snapshot_at(&t, &AsOf::Tag("kept".to_owned()), i64::MAX).await.unwrap();
    assert_eq!((kept.version(), kept.row_count()), (done, 10));
    assert_eq!(newest(&again, &name("t")).await.row_count(), 16);
    assert_eq!(again.checksums().bytes_unverified, 0);
    let folder = Path::parse(&t.location).unwrap();
    let all: Vec<ObjectMeta> = store.inner().list(Some(&folder)).try_collect().await.unwrap();
    let all = all.iter().map(|meta| relative(&folder, &meta.location));
    let (sidecars, files): (BTreeSet<String>, BTreeSet<String>) = all.partition(|file| file.starts_with("_crc/"));
    let files = files.into_iter().filter(|file| !file.ends_with("latest_version_hint.json"));
    let expected: BTreeSet<String> = files.map(|file| format!("_crc/{file}.crc")).collect();
    assert!(["_keys", "_refs"].iter().all(|part| expected.iter().any(|file| file.contains(part))), "{expected:?}");
    let (lone, bare): (Vec<_>, Vec<_>) =
        (sidecars.difference(&expected).collect(), expected.difference(&sidecars).collect());
    assert!(lone.iter().all(|file| file.contains("/_other/") && file.contains("/_refs/")), "{lone:?}");
    assert!(bare.is_empty(), "{bare:?}");
}

#[tokio::test]
async fn a_damaged_tag_is_an_error_and_no_other_version() {
    let store = Faulty::new(Arc::new(InMemory::new()), 1);
    let wrapper = Arc::new(Instead(store.clone()));
    let database = Database::open_wrapped("memory:", OpenOptions::default(), Some(wrapper)).await.unwrap();
    table(&database, &[0..3, 3..6]).await;
    let t = entry(&database, &name("t")).await;
    database.create_tag(&t, "kept", Some(&AsOf::Version(2)), i64::MAX).await.unwrap();
    let tag = Path::parse(format!("{}/_refs/tags/kept.json", t.location)).unwrap();
    let bytes = store.inner().get(&tag).await.unwrap().bytes().await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.contains("\"version\": 2"), "{text}");
    store.inner().put(&tag, text.replace("\"version\": 2", "\"version\": 3").into()).await.unwrap();
    let error = database.snapshot_at(&t, &AsOf::Tag("kept".to_owned()), i64::MAX).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt(_)), "{error:?}");
    assert!(error.to_string().contains("_refs/tags/kept.json"), "{error}");
}
