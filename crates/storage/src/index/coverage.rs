//! What the segments of an index cover at one version of a table: for each of them the local rows that are live and where they
//! stand, and beside them the rows that no segment covers.
//!
//! It follows from names alone. A fragment is covered if the data file that holds its vectors is a unit of a segment, or if a
//! row map says that its rows were copied from one that is. A row belongs to the first segment that has it and to one place, so
//! that no search finds it twice. Everything else is uncovered: fragments of other writers, those with overlays over the column,
//! two that name the same file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lance_table::format::Fragment;
use roaring::RoaringBitmap;

use super::covered_segment::CoveredSegment;
use super::deal::{Claim, Layers, Part, Reused, Work};
use super::manifest::{IndexDefinition, IndexManifest, RowMapEntry, SegmentEntry};
use super::row_map::RowMap;
use super::segment::Segment;
use super::{Known, TableIndexes};
use crate::error::{Result, StorageError};
use crate::snapshot::Snapshot;
use crate::vectors::VectorChunkRef;

/// What an index covers at a version.
#[derive(Debug)]
pub struct Coverage {
    /// The index.
    pub index: IndexDefinition,
    /// The column, as this version calls it.
    pub column: String,
    /// Those that have a live row.
    pub segments: Vec<Arc<CoveredSegment>>,
    /// Live rows that no segment covers, in the order of addresses.
    pub uncovered: Vec<UncoveredChunk>,
    /// How many they are; those without a vector count.
    pub uncovered_rows: u64,
    /// What a build could cover.
    pub units: Vec<UncoveredUnit>,
    /// Files that cannot be used, in words.
    pub problems: Vec<String>,
    kept: Kept,
}

/// What the next version may have in common with this one.
#[derive(Debug)]
struct Kept {
    version: u64,
    /// What it was worked out for: the number of the list of indexes, and how many segments had been refused.
    stamp: (u64, u64),
    layers: HashMap<String, Arc<Layers>>,
    /// The fragments, and which of their rows no segment has.
    parts: Vec<(Input, Option<RoaringBitmap>)>,
}

/// What decides which rows of a fragment a segment has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) fragment: u32,
    pub(super) rows: u64,
    pub(super) file: Option<String>,
    pub(super) deletions: Option<(u64, u64, Option<u32>)>,
}

/// Rows that are compared exactly.
#[derive(Clone, Debug)]
pub struct UncoveredChunk {
    /// Where their vectors are.
    pub chunk: VectorChunkRef,
    /// Their offsets in the chunk; `None` for all of its live rows.
    pub rows: Option<RoaringBitmap>,
}

/// A data file with rows that no segment covers.
#[derive(Clone, Debug)]
pub struct UncoveredUnit {
    /// Its name.
    pub file: String,
    /// Its rows, the deleted ones included.
    pub rows: u64,
    /// Where its vectors are, in order. [`Snapshot::load_vectors`] reads them.
    pub chunks: Vec<VectorChunkRef>,
    /// Offsets of the rows that are not covered; `None` for all live ones.
    pub uncovered: Option<RoaringBitmap>,
    /// Offsets of the rows that are deleted at this version. If a build leaves them out, it names them as absent: older
    /// versions may have them still.
    pub deleted: RoaringBitmap,
}

/// What some segments of an index are there for.
#[derive(Clone, Debug, Default)]
pub struct UnitsWithout {
    /// What a build would have to cover at this version if they were not there.
    pub units: Vec<UncoveredUnit>,
    /// Whether they cover a data file that is no part of this version: no build of this version could take their place in older ones.
    pub serves_others: bool,
}

/// An index at a version, with its segments open.
#[derive(Clone, Debug)]
pub struct OpenIndex {
    /// What it covers.
    pub coverage: Arc<Coverage>,
    /// The segments of the coverage, in its order.
    pub segments: Vec<Arc<Segment>>,
}

impl Coverage {
    /// Whether it is of a newer version, worked out from the same files.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.kept.stamp == other.kept.stamp && self.kept.version > other.kept.version
    }
}

impl Snapshot {
    /// The indexes of the table as they are known, perhaps a second old. Where the list cannot be read it is empty, and
    /// [`Snapshot::index_problem`] says why. Cost: nothing within a second of the last look.
    pub async fn indexes(&self) -> Arc<IndexManifest> {
        match self.table_indexes() {
            Some(indexes) => indexes.known().await.manifest,
            None => Arc::default(),
        }
    }

    /// Why indexes are not known, or not all of them, in words.
    pub async fn index_problem(&self) -> Option<String> {
        self.table_indexes()?.known().await.problem.map(|problem| problem.to_string())
    }

    /// The indexes on a column of this version.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column.
    pub async fn indexes_of(&self, column: &str) -> Result<Vec<IndexDefinition>> {
        let field_id = self.field_id(column)?;
        let manifest = self.indexes().await;
        Ok(manifest.indexes.iter().filter(|index| index.field_id == field_id).cloned().collect())
    }

    /// What an index covers at this version, whichever that is. Cost: nothing if it was asked before and the indexes are as
    /// they were, else the deletion files of covered fragments, and time in the rows of the segments divided by 64.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] if there is no such index, or this version lacks its column.
    pub async fn index_coverage(&self, index: &str) -> Result<Arc<Coverage>> {
        let indexes = self.table_indexes().ok_or_else(|| {
            StorageError::not_found(format!(
                "there is no index {index} on {}; it is a table of others",
                self.location()
            ))
        })?;
        let known = indexes.known().await;
        let index = known.manifest.require(index, self.location())?;
        let stamp = (known.manifest.number, known.refusals);
        let cell = self.coverage_cell(&index.id, stamp);
        let covered = cell.get_or_try_init(|| async {
            let covered = Arc::new(covered(self, indexes, &known, index).await?);
            indexes.note(&covered);
            Ok(covered)
        });
        covered.await.cloned()
    }

    /// What a build could cover now: the data files of this version with rows that no segment of the index covers.
    ///
    /// # Errors
    /// As [`Snapshot::index_coverage`].
    pub async fn uncovered_units(&self, index: &str) -> Result<Vec<UncoveredUnit>> {
        Ok(self.index_coverage(index).await?.units.clone())
    }

    /// What a build would have to cover if the index did not have these segments.
    ///
    /// # Errors
    /// As [`Snapshot::index_coverage`].
    pub async fn units_without(&self, index: &str, segments: &[String]) -> Result<UnitsWithout> {
        let Some(indexes) = self.table_indexes() else { return Ok(UnitsWithout::default()) };
        let known = indexes.known().await;
        let index = known.manifest.require(index, self.location())?;
        let files = files_of(self, index.field_id);
        let (without, rest): (Vec<SegmentEntry>, Vec<SegmentEntry>) =
            known.manifest.segments.iter().cloned().partition(|segment| segments.contains(&segment.id));
        let mut units = without.iter().flat_map(|segment| &segment.units);
        let serves_others = units.any(|unit| !files.contains_key(unit.file.as_str()));
        let manifest = IndexManifest { segments: rest, ..known.manifest.as_ref().clone() };
        // Nothing that was worked out for the real list holds for this one.
        let imagined = Known { manifest: Arc::new(manifest), refusals: u64::MAX, problem: None };
        Ok(UnitsWithout { units: covered(self, indexes, &imagined, index).await?.units, serves_others })
    }

    /// An index with all its segments open; rows of those that cannot be opened count as uncovered. Cost: as
    /// [`Snapshot::index_coverage`], and a look-up for each segment.
    ///
    /// # Errors
    /// As [`Snapshot::index_coverage`]; [`StorageError::Unavailable`].
    pub async fn open_index(&self, index: &str) -> Result<OpenIndex> {
        'again: loop {
            let coverage = self.index_coverage(index).await?;
            let Some(indexes) = self.table_indexes() else {
                return Ok(OpenIndex { coverage, segments: vec![] });
            };
            let mut segments = Vec::with_capacity(coverage.segments.len());
            for covered in &coverage.segments {
                match indexes.open(&covered.entry).await {
                    Ok(segment) => segments.push(segment),
                    // It was refused, and is not in the next coverage.
                    Err(_) if indexes.refusal(&covered.entry.id).is_some() => continue 'again,
                    Err(error) => return Err(error),
                }
            }
            return Ok(OpenIndex { coverage, segments });
        }
    }

    /// No search uses this segment any more: what it holds contradicts itself. Its rows are compared exactly, and count as
    /// uncovered for the next build.
    pub fn refuse_segment(&self, segment: &Segment, why: &str) {
        if let Some(indexes) = self.table_indexes() {
            indexes.refuse(segment.id(), &StorageError::corrupt(why));
        }
    }
}

/// The data file that holds the values of a field, all of them.
pub(crate) fn file_of(fragment: &Fragment, field_id: i32) -> Option<&str> {
    if fragment.overlays.iter().any(|overlay| overlay.data_file.fields.contains(&field_id)) {
        return None;
    }
    let mut files = fragment.files.iter().filter(|file| file.fields.contains(&field_id));
    let file = files.next()?;
    files.next().is_none().then_some(file.path.as_str())
}

/// Works out what `index` covers.
async fn covered(
    snapshot: &Snapshot,
    indexes: &Arc<TableIndexes>,
    known: &Known,
    index: &IndexDefinition,
) -> Result<Coverage> {
    let column = snapshot.column_of(index.field_id).ok_or_else(|| {
        StorageError::not_found(format!(
            "index {} is on a column that version {} of {} does not have",
            index.name,
            snapshot.version(),
            snapshot.location()
        ))
    })?;
    let mut problems = Vec::new();
    let mut work = Work::default();
    for entry in known.manifest.segments_of(index) {
        match absent_of(indexes, entry).await {
            Ok(absent) => work.add(entry.clone(), absent),
            Err(error) if indexes.refusal(&entry.id).is_some() => problems.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let stamp = (known.manifest.number, known.refusals);
    let previous = indexes.latest(&index.id).filter(|previous| previous.kept.stamp == stamp && problems.is_empty());
    if let Some(previous) = &previous {
        work.layers.clone_from(&previous.kept.layers);
    }
    let files = files_of(snapshot, index.field_id);
    let unknown = files.keys().copied().filter(|file| !work.layers.contains_key(*file)).collect();
    work.maps = maps(indexes, &known.manifest, index.field_id, unknown, &mut problems).await?;
    let mut parts = Vec::with_capacity(snapshot.fragments().len());
    for fragment in snapshot.fragments().iter().filter(|fragment| fragment.rows > 0) {
        let file = file_of(&fragment.metadata, index.field_id).filter(|file| files.get(file) == Some(&1));
        let layers = file.map(|file| work.layers_of(file, 0)).unwrap_or_default();
        parts.push(Part { fragment, file, layers, dead: RoaringBitmap::new(), left: None, is_known: false });
    }
    let reused = previous.as_ref().map(|previous| reuse(previous, &mut parts, &work)).unwrap_or_default();
    for part in &mut parts {
        let is_needed = !part.is_known || part.left.as_ref().is_none_or(|left| !left.is_empty());
        if is_needed && part.file.is_some() && part.fragment.metadata.deletion_file.is_some() {
            part.dead = snapshot.deleted_rows(part.fragment.id).await?;
        }
    }
    work.claim(&mut parts);
    let (uncovered, uncovered_rows, units) = rest(&parts, snapshot.vector_chunks(&column)?);
    let kept_parts = parts.iter().map(|part| (part.input(), part.left.clone())).collect();
    // What was left out for want of a file may be there the next time.
    let stamp = if problems.is_empty() { stamp } else { (u64::MAX, u64::MAX) };
    let kept = Kept { version: snapshot.version(), stamp, layers: std::mem::take(&mut work.layers), parts: kept_parts };
    let segments = work.into_segments(&reused);
    Ok(Coverage { index: index.clone(), column, segments, uncovered, uncovered_rows, units, problems, kept })
}

/// The data files with the values of a field, and how many fragments name each.
fn files_of(snapshot: &Snapshot, field_id: i32) -> HashMap<&str, u32> {
    let mut files = HashMap::new();
    for fragment in snapshot.fragments() {
        if let Some(file) = file_of(&fragment.metadata, field_id) {
            *files.entry(file).or_insert(0) += 1;
        }
    }
    files
}

/// Takes from another version what holds for this one too: segments all of whose fragments are as they were. Returns which are
/// not to be worked out, and what they are; marks the parts that are dealt out.
fn reuse(previous: &Coverage, parts: &mut [Part<'_>], work: &Work) -> Reused {
    let nothing = Arc::<Layers>::default();
    let before: HashMap<u32, &(Input, Option<RoaringBitmap>)> =
        previous.kept.parts.iter().map(|part| (part.0.fragment, part)).collect();
    let mut is_changed = vec![false; work.claims.len()];
    let mut change = |layers: &Layers| layers.segments().for_each(|segment| is_changed[segment] = true);
    let now: HashMap<u32, Input> = parts.iter().map(|part| (part.fragment.id, part.input())).collect();
    for (fragment, (input, _)) in &before {
        if now.get(fragment) != Some(input) {
            let file = input.file.as_ref();
            change(file.and_then(|file| previous.kept.layers.get(file)).unwrap_or(&nothing));
        }
    }
    for part in parts.iter() {
        if before.get(&part.fragment.id).map(|(input, _)| input) != now.get(&part.fragment.id) {
            change(&part.layers);
        }
    }
    // Segments that share a fragment are worked out together.
    loop {
        let mut is_more = false;
        for part in parts.iter() {
            if part.layers.segments().any(|segment| is_changed[segment]) {
                for segment in part.layers.segments() {
                    is_more |= !std::mem::replace(&mut is_changed[segment], true);
                }
            }
        }
        if !is_more {
            break;
        }
    }
    for part in parts.iter_mut() {
        let is_same = part.layers.segments().all(|segment| !is_changed[segment]);
        if let Some((input, left)) = before.get(&part.fragment.id).filter(|_| is_same)
            && *input == part.input()
        {
            part.left.clone_from(left);
            part.is_known = true;
        }
    }
    let known = |claim: &Claim| previous.segments.iter().find(|segment| segment.entry.id == claim.entry.id).cloned();
    let claims = work.claims.iter().zip(is_changed);
    claims.map(|(claim, is_changed)| if is_changed { None } else { Some(known(claim)) }).collect()
}

/// The local rows that have a vector and are not in the segment.
async fn absent_of(indexes: &Arc<TableIndexes>, entry: &SegmentEntry) -> Result<RoaringBitmap> {
    if let Some(why) = indexes.refusal(&entry.id) {
        return Err(StorageError::corrupt(why.to_string()));
    }
    let mut absent = RoaringBitmap::new();
    if entry.units.iter().any(|unit| unit.absent > 0) {
        let segment = indexes.open(entry).await?;
        for unit in &segment.head().units {
            let start = u32::try_from(unit.start).unwrap_or(u32::MAX);
            absent.extend(unit.absent.iter().map(|offset| start.saturating_add(offset)));
        }
    }
    Ok(absent)
}

/// The maps that lead from these files to others, and on.
async fn maps(
    indexes: &Arc<TableIndexes>,
    manifest: &IndexManifest,
    field_id: i32,
    files: HashSet<&str>,
    problems: &mut Vec<String>,
) -> Result<HashMap<String, (Arc<RowMap>, usize)>> {
    let mut by_target: HashMap<&str, &RowMapEntry> = HashMap::new();
    for entry in manifest.row_maps.iter().filter(|entry| entry.field_id == field_id) {
        by_target.extend(entry.targets.iter().map(|target| (target.as_str(), entry)));
    }
    let mut found = HashMap::new();
    if by_target.is_empty() {
        return Ok(found);
    }
    let mut wanted: Vec<&str> = files.into_iter().collect();
    let mut seen: HashSet<&str> = wanted.iter().copied().collect();
    while let Some(file) = wanted.pop() {
        let Some(entry) = by_target.get(file) else { continue };
        let map = match indexes.row_map(entry).await {
            Ok(map) => map,
            Err(error @ (StorageError::NotFound(_) | StorageError::Corrupt(_))) => {
                tracing::warn!(%error, "a row map cannot be used");
                problems.push(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(at) = map.targets.iter().position(|target| target.file == file) {
            found.insert(file.to_owned(), (map, at));
        }
        wanted.extend(entry.sources.iter().map(String::as_str).filter(|source| seen.insert(source)));
    }
    Ok(found)
}

/// What no segment has, cut into the chunks that an exact search reads.
fn rest(parts: &[Part<'_>], chunks: Vec<VectorChunkRef>) -> (Vec<UncoveredChunk>, u64, Vec<UncoveredUnit>) {
    let mut by_fragment: HashMap<u64, Vec<VectorChunkRef>> = HashMap::new();
    for chunk in chunks {
        by_fragment.entry(chunk.first_address >> 32).or_default().push(chunk);
    }
    let (mut uncovered, mut rows, mut units) = (vec![], 0, vec![]);
    for part in parts {
        let chunks = by_fragment.remove(&u64::from(part.fragment.id)).unwrap_or_default();
        match &part.left {
            Some(left) if left.is_empty() => continue,
            Some(left) => {
                rows += left.len();
                uncovered.extend(chunks.iter().filter_map(|chunk| within(chunk, left)));
            }
            None => {
                let known = part.fragment.metadata.num_rows().map(|rows| rows as u64);
                rows += known.unwrap_or(part.fragment.rows);
                uncovered.extend(chunks.iter().cloned().map(|chunk| UncoveredChunk { chunk, rows: None }));
            }
        }
        if let Some(file) = part.file {
            units.push(UncoveredUnit {
                file: file.to_owned(),
                rows: part.fragment.rows,
                chunks,
                uncovered: part.left.clone(),
                deleted: part.dead.clone(),
            });
        }
    }
    (uncovered, rows, units)
}

/// The rows of a chunk that are left.
fn within(chunk: &VectorChunkRef, left: &RoaringBitmap) -> Option<UncoveredChunk> {
    let start = u32::try_from(chunk.first_address & u64::from(u32::MAX)).ok()?;
    let end = start.saturating_add(u32::try_from(chunk.rows).ok()?);
    let rows: RoaringBitmap = left.range(start..end).map(|offset| offset - start).collect();
    (!rows.is_empty()).then(|| UncoveredChunk { chunk: chunk.clone(), rows: Some(rows) })
}
