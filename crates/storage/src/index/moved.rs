//! Writes the row maps of changes that copy rows with their vectors: OPTIMIZE, and an UPDATE that leaves the vectors alone. It is
//! done before the change is committed. Where it fails the change goes on: its rows are not covered, and nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use lance::dataset::fragment::{FileFragment, FragReadConfig};
use lance_table::format::Fragment;
use object_store::{ObjectStoreExt, PutPayload};
use roaring::RoaringBitmap;
use uuid::Uuid;

use super::coverage::file_of;
use super::manifest::{IndexManifest, RowMapEntry};
use super::row_map::{MapRun, RowMap, Target};
use super::{TableIndexes, now_us};
use crate::error::{Result, StorageError};
use crate::numbered::Change;
use crate::snapshot::{Snapshot, guard};

/// Rows of each map whose vectors are compared before it is believed.
const SAMPLES: usize = 4;

/// Changes that copy fewer rows write no map: as many rows are compared exactly faster than a statement writes two files.
const ROWS_MIN: u64 = if cfg!(test) { 1 } else { 512 };

/// Rows that were copied from fragments of a version into new ones.
pub(crate) struct Copies<'a> {
    before: Vec<&'a Fragment>,
    after: &'a [Fragment],
    /// In the order of `after` and of offsets in it.
    runs: Vec<CopyRun>,
}

#[derive(Clone, Copy)]
struct CopyRun {
    before: usize,
    before_offset: u32,
    after: usize,
    after_offset: u32,
    rows: u32,
}

impl<'a> Copies<'a> {
    /// The live rows of `before`, in order, became the rows of `after`. `dead`: what is deleted in each of `before`. `None` if
    /// the numbers of rows do not agree.
    pub(crate) fn of_rewrite(before: &'a [Fragment], dead: &[RoaringBitmap], after: &'a [Fragment]) -> Option<Self> {
        let mut to = Cursor::new(after)?;
        let mut copies = Self { before: before.iter().collect(), after, runs: vec![] };
        for (number, (fragment, dead)) in before.iter().zip(dead).enumerate() {
            let end = u32::try_from(fragment.physical_rows?).ok()?;
            let mut start = 0;
            for gap in dead.iter().map(Some).chain([None]) {
                let stop = gap.unwrap_or(end);
                to.push(&mut copies.runs, number, start, stop.checked_sub(start)?)?;
                start = stop.saturating_add(1);
            }
        }
        to.is_at_end().then_some(copies)
    }

    /// The rows of `after`, in order, are copies of those at `origins` in the snapshot, but for those with `None`.
    pub(crate) fn of_rows(snapshot: &'a Snapshot, origins: &[Option<u64>], after: &'a [Fragment]) -> Option<Self> {
        let mut to = Cursor::new(after)?;
        let mut copies = Self { before: vec![], after, runs: vec![] };
        let mut numbers: HashMap<u64, usize> = HashMap::new();
        for origin in origins {
            let Some(address) = origin else {
                to.skip()?;
                continue;
            };
            let (fragment, offset) = (address >> 32, u32::try_from(address & u64::from(u32::MAX)).ok()?);
            let number = match numbers.get(&fragment) {
                Some(number) => *number,
                None => {
                    let all = snapshot.fragments();
                    let at = all.binary_search_by_key(&fragment, |shape| u64::from(shape.id)).ok()?;
                    copies.before.push(&all.get(at)?.metadata);
                    numbers.insert(fragment, copies.before.len() - 1);
                    copies.before.len() - 1
                }
            };
            to.push(&mut copies.runs, number, offset, 1)?;
        }
        to.is_at_end().then_some(copies)
    }

    fn rows(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.rows)).sum()
    }
}

/// The next row of some new fragments.
struct Cursor {
    rows: Vec<u32>,
    fragment: usize,
    offset: u32,
}

impl Cursor {
    fn new(after: &[Fragment]) -> Option<Self> {
        let rows = after.iter().map(|fragment| u32::try_from(fragment.physical_rows?).ok());
        let mut made = Self { rows: rows.collect::<Option<_>>()?, fragment: 0, offset: 0 };
        made.settle();
        Some(made)
    }

    fn settle(&mut self) {
        while self.rows.get(self.fragment).is_some_and(|rows| *rows == self.offset) {
            self.fragment += 1;
            self.offset = 0;
        }
    }

    fn is_at_end(&self) -> bool {
        self.fragment == self.rows.len()
    }

    fn skip(&mut self) -> Option<()> {
        self.rows.get(self.fragment)?;
        self.offset += 1;
        self.settle();
        Some(())
    }

    /// So many rows of an old fragment come next.
    fn push(&mut self, runs: &mut Vec<CopyRun>, before: usize, mut before_offset: u32, mut rows: u32) -> Option<()> {
        while rows > 0 {
            let taken = rows.min(self.rows.get(self.fragment)? - self.offset);
            match runs.last_mut() {
                Some(last)
                    if last.before == before
                        && last.after == self.fragment
                        && last.before_offset + last.rows == before_offset
                        && last.after_offset + last.rows == self.offset =>
                {
                    last.rows += taken;
                }
                _ => {
                    let (after, after_offset) = (self.fragment, self.offset);
                    runs.push(CopyRun { before, before_offset, after, after_offset, rows: taken });
                }
            }
            before_offset += taken;
            rows -= taken;
            self.offset += taken;
            self.settle();
        }
        Some(())
    }
}

impl TableIndexes {
    /// Writes what keeps indexes right when these rows have moved. `columns`: whose values were copied, `None` for all.
    /// Whatever fails is logged.
    pub(crate) async fn follow(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        copies: &[Copies<'_>],
        columns: Option<&[String]>,
    ) {
        if copies.iter().map(Copies::rows).sum::<u64>() < ROWS_MIN {
            return;
        }
        let manifest = self.known().await.manifest;
        let mut fields: Vec<(i32, String)> = vec![];
        for field_id in manifest.indexes.iter().map(|index| index.field_id) {
            let column = snapshot.column_of(field_id).filter(|name| columns.is_none_or(|all| all.contains(name)));
            if let Some(column) = column.filter(|_| fields.iter().all(|(known, _)| *known != field_id)) {
                fields.push((field_id, column));
            }
        }
        for (field_id, column) in fields {
            if let Err(error) = self.follow_field(snapshot, copies, &manifest, field_id, &column).await {
                let table = snapshot.location();
                tracing::warn!(table, column, %error, "no row map was written; moved rows are compared exactly until they are indexed");
            }
        }
    }

    async fn follow_field(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        copies: &[Copies<'_>],
        manifest: &IndexManifest,
        field_id: i32,
        column: &str,
    ) -> Result<()> {
        for copies in copies {
            compare(snapshot, copies, column).await?;
        }
        let mut earlier = Earlier { indexes: self, manifest, field_id, found: HashMap::new() };
        let mut map = RowMap { field_id, ..RowMap::default() };
        for copies in copies {
            earlier.load(copies).await?;
            add(&mut map, copies, &earlier);
        }
        if map.targets.iter().all(|target| target.runs.is_empty()) {
            return Ok(());
        }
        let bytes = map.encode();
        let entry = RowMapEntry {
            id: Uuid::new_v4().to_string(),
            field_id,
            targets: map.targets.iter().map(|target| target.file.clone()).collect(),
            sources: map.sources.clone(),
            bytes: bytes.len() as u64,
            written_at_us: now_us(),
        };
        let path = self.root.path(&self.relative(&entry.file()));
        let written = self.root.store().put(&path, PutPayload::from(bytes)).await;
        written.map_err(|error| StorageError::from_store("cannot write a row map", error))?;
        self.remember_map(&entry.id, Arc::new(map));
        let change = |current: &IndexManifest| {
            let mut next = current.clone();
            next.row_maps.push(entry.clone());
            Ok(Change::Write(next, ()))
        };
        self.log.commit(change).await?;
        self.changed();
        Ok(())
    }
}

/// Maps that lead to the rows that are copied now: the copy of a copy is one of the first.
struct Earlier<'a> {
    indexes: &'a Arc<TableIndexes>,
    manifest: &'a IndexManifest,
    field_id: i32,
    found: HashMap<String, Arc<RowMap>>,
}

impl Earlier<'_> {
    async fn load(&mut self, copies: &Copies<'_>) -> Result<()> {
        for file in copies.before.iter().filter_map(|fragment| file_of(fragment, self.field_id)) {
            let mut segments = self.manifest.segments.iter();
            if segments.any(|segment| segment.units.iter().any(|unit| unit.file == file)) {
                continue;
            }
            let mut maps = self.manifest.row_maps.iter().filter(|entry| entry.field_id == self.field_id);
            if let Some(entry) = maps.find(|entry| entry.targets.iter().any(|target| target == file)) {
                let map = match self.indexes.row_map(entry).await {
                    Ok(map) => map,
                    Err(StorageError::NotFound(_) | StorageError::Corrupt(_)) => continue,
                    Err(error) => return Err(error),
                };
                self.found.insert(file.to_owned(), map);
            }
        }
        Ok(())
    }

    fn target(&self, file: &str) -> Option<(&RowMap, &Target)> {
        let map = self.found.get(file)?;
        Some((map, map.targets.iter().find(|target| target.file == file)?))
    }
}

fn add(map: &mut RowMap, copies: &Copies<'_>, earlier: &Earlier<'_>) {
    let file = |fragment: &Fragment| file_of(fragment, map.field_id).map(str::to_owned);
    let sources: Vec<Option<String>> = copies.before.iter().map(|fragment| file(fragment)).collect();
    let targets: Vec<Option<String>> = copies.after.iter().map(file).collect();
    let mut made: Vec<Target> = targets
        .iter()
        .zip(copies.after)
        .map(|(file, fragment)| Target {
            file: file.clone().unwrap_or_default(),
            rows: fragment.physical_rows.and_then(|rows| u32::try_from(rows).ok()).unwrap_or(0),
            runs: vec![],
        })
        .collect();
    for run in &copies.runs {
        let (Some(Some(source)), Some(target)) = (sources.get(run.before), made.get_mut(run.after)) else { continue };
        match earlier.target(source) {
            Some((known, origin)) => push_origins(map, target, run, source, (known, origin)),
            None => {
                let source = map.source(source);
                let (offset, rows, source_offset) = (run.after_offset, run.rows, run.before_offset);
                target.push(MapRun { offset, rows, source, source_offset });
            }
        }
    }
    map.targets.extend(made.into_iter().filter(|target| !target.file.is_empty()));
}

/// Pushes where the rows of a run, which are copies themselves, came from; rows that came from nowhere come from `source`.
fn push_origins(map: &mut RowMap, target: &mut Target, run: &CopyRun, source: &str, known: (&RowMap, &Target)) {
    let (known, origin) = known;
    let (mut at, end) = (run.before_offset, run.before_offset + run.rows);
    let first = origin.runs.partition_point(|run| run.offset + run.rows <= at);
    let mut push = |map: &mut RowMap, file: &str, from: u32, rows: u32, source_offset: u32| {
        let source = map.source(file);
        let offset = run.after_offset + (from - run.before_offset);
        target.push(MapRun { offset, rows, source, source_offset });
    };
    for earlier in origin.runs[first..].iter().take_while(|earlier| earlier.offset < end) {
        let start = earlier.offset.max(at);
        push(map, source, at, start - at, at);
        let stop = (earlier.offset + earlier.rows).min(end);
        let file = known.sources.get(earlier.source as usize).map_or(source, String::as_str);
        push(map, file, start, stop - start, earlier.source_offset + (start - earlier.offset));
        at = stop;
    }
    push(map, source, at, end - at, at);
}

/// Compares some vectors with what they were copied from, bit by bit.
///
/// # Errors
/// [`StorageError::Internal`] if one differs.
async fn compare(snapshot: &Snapshot, copies: &Copies<'_>, column: &str) -> Result<()> {
    let step = copies.runs.len().div_ceil(SAMPLES).max(1);
    let sampled: Vec<CopyRun> = copies.runs.iter().step_by(step).copied().collect();
    let compared = futures::stream::iter(sampled).map(|run| async move {
        let (Some(before), Some(after)) = (copies.before.get(run.before), copies.after.get(run.after)) else {
            return Err(StorageError::internal("a copied row has no fragment"));
        };
        // The last row of a run: one that was counted wrongly shows at its end.
        let last = run.rows - 1;
        let (old, new) = futures::try_join!(
            row(snapshot, before, column, run.before_offset + last),
            row(snapshot, after, column, run.after_offset + last)
        )?;
        if old.columns() == new.columns() {
            return Ok(());
        }
        Err(StorageError::internal("a row was copied with another vector, or from another place than was thought"))
    });
    compared.buffer_unordered(SAMPLES).try_collect().await
}

async fn row(snapshot: &Snapshot, fragment: &Fragment, column: &str, offset: u32) -> Result<RecordBatch> {
    let what = format!("cannot compare copied vectors of {}", snapshot.location());
    let projection = snapshot.lance_projection(&[column])?;
    let fragment = FileFragment::new(Arc::clone(snapshot.dataset()), fragment.clone());
    let config = FragReadConfig::default().with_ignore_deletions(true);
    let reader = guard(&what, fragment.open(&projection, config)).await?;
    let batches = guard(&what, reader.take_range(offset..offset + 1, 1)).await?;
    let found: Vec<RecordBatch> = guard(&what, batches.buffered(1).try_collect()).await?;
    found.into_iter().next().ok_or_else(|| StorageError::internal(format!("{what}: there is no row {offset}")))
}
