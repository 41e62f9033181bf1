//! What the segments of an index cover at one version of a table: for each of them the local rows that are live and where they
//! stand, and beside them the rows that no segment covers.
//!
//! It follows from names alone. A fragment is covered if the data file that holds its vectors is a unit of a segment, or if a
//! row map says that its rows were copied from one that is. A row belongs to the first segment that has it and to one place, so
//! that no search finds it twice. Everything else is uncovered: fragments of other writers, those with overlays over the column,
//! two that name the same file.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use lance_table::format::Fragment;
use roaring::RoaringBitmap;

use super::manifest::{IndexDefinition, IndexManifest, RowMapEntry, SegmentEntry};
use super::row_map::{RowMap, Target};
use super::segment::Segment;
use super::{Known, TableIndexes};
use crate::error::{Result, StorageError};
use crate::snapshot::{FragmentShape, Snapshot};
use crate::vectors::VectorChunkRef;

/// Row maps of row maps that are followed.
const DEPTH_MAX: u32 = 64;

/// Bits of a word.
const WORD: usize = 64;

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
struct Input {
    fragment: u32,
    rows: u64,
    file: Option<String>,
    deletions: Option<(u64, u64, Option<u32>)>,
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

/// A set of local rows, one bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalRows {
    /// Row `r` is in the set if bit `r % 64` of word `r / 64` is set.
    pub words: Vec<u64>,
    /// How many rows are in it.
    pub count: usize,
}

/// A segment at a version.
pub struct CoveredSegment {
    /// Which segment.
    pub entry: SegmentEntry,
    live: LocalRows,
    /// Rows of units, in the order of local rows.
    direct: Vec<Run>,
    /// Rows that were copied elsewhere, in the order of local rows. They count before `direct`.
    moved: Vec<Run>,
    /// Each of them in the order of addresses.
    by_address: [Vec<Run>; 2],
}

/// Rows that stand side by side in a segment and in a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    local: u32,
    rows: u32,
    address: u64,
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

impl fmt::Debug for CoveredSegment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("CoveredSegment");
        shown.field("id", &self.entry.id).field("rows", &self.entry.rows).field("live", &self.live.count);
        shown.field("runs", &(self.direct.len() + self.moved.len())).finish_non_exhaustive()
    }
}

impl CoveredSegment {
    /// The local rows that are live at this version; those without a vector may be among them. `None` if that is all of them.
    pub fn live(&self) -> Option<&LocalRows> {
        (self.live.count as u64 != self.entry.rows).then_some(&self.live)
    }

    /// How many local rows are live.
    pub fn live_rows(&self) -> usize {
        self.live.count
    }

    /// Where a live local row stands at this version. Cost: a binary search among the runs.
    pub fn address(&self, local: u32) -> Option<u64> {
        if !self.is_live(local) {
            return None;
        }
        find(&self.moved, local).or_else(|| find(&self.direct, local))
    }

    /// The live local rows at these addresses, which ascend. Cost: a pass over both the addresses and the runs.
    pub fn matching(&self, addresses: &[u64]) -> LocalRows {
        let mut matching = LocalRows { words: vec![0; self.live.words.len()], count: 0 };
        for runs in &self.by_address {
            let mut rest = addresses;
            for run in runs {
                let (first, end) = (run.address, run.address + u64::from(run.rows));
                rest = &rest[rest.partition_point(|address| *address < first)..];
                let within = rest.partition_point(|address| *address < end);
                for address in &rest[..within] {
                    let local = run.local + u32::try_from(address - first).unwrap_or(0);
                    // A row of a unit may be absent from it, or stand elsewhere.
                    let stands_here = self.moved.is_empty() || self.address(local) == Some(*address);
                    if stands_here && self.is_live(local) && set(&mut matching.words, local as usize) {
                        matching.count += 1;
                    }
                }
                rest = &rest[within..];
                if rest.is_empty() {
                    break;
                }
            }
        }
        matching
    }

    /// The live local rows among those that `rows_of` gives for each fragment: bit `o % 64` of word `o / 64` for the row at
    /// offset `o`; those that are dead at this version may be among them. Cost: a pass over the words, and over the runs of rows
    /// that were copied.
    pub fn matching_words<'a>(&self, rows_of: impl Fn(u32) -> Option<&'a [u64]>) -> LocalRows {
        let mut words = vec![0; self.live.words.len()];
        let place = |run: &Run| {
            let offset = usize::try_from(run.address & u64::from(u32::MAX)).unwrap_or(usize::MAX);
            Some((rows_of(u32::try_from(run.address >> 32).ok()?)?, offset))
        };
        for run in &self.direct {
            if let Some((rows, offset)) = place(run) {
                or_bits(&mut words, run.local as usize, rows, offset..offset + run.rows as usize);
            }
        }
        for run in &self.moved {
            // Where they stood before they are dead.
            (run.local..run.local + run.rows).for_each(|local| clear(&mut words, local as usize));
            if let Some((rows, offset)) = place(run) {
                or_bits(&mut words, run.local as usize, rows, offset..offset + run.rows as usize);
            }
        }
        words.iter_mut().zip(&self.live.words).for_each(|(word, live)| *word &= live);
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        LocalRows { words, count }
    }

    fn is_live(&self, local: u32) -> bool {
        let word = self.live.words.get(local as usize / WORD);
        word.is_some_and(|word| word >> (local as usize % WORD) & 1 == 1)
    }
}

fn find(runs: &[Run], local: u32) -> Option<u64> {
    let run = runs.get(runs.partition_point(|run| run.local <= local).checked_sub(1)?)?;
    let within = local - run.local;
    (within < run.rows).then(|| run.address + u64::from(within))
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

/// By segment: `None` if it is to be worked out, else what it is, and `None` in that if it has no live row.
type Reused = Vec<Option<Option<Arc<CoveredSegment>>>>;

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

/// Rows of a data file that are in a segment.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Of the first row in the data file.
    offset: u32,
    rows: u32,
    /// Which segment.
    segment: usize,
    /// The local row of the first one.
    local: u32,
}

/// Where the rows of a data file are.
#[derive(Debug, Default)]
struct Layers {
    /// First come those of which the file itself is a unit, then the others. In each, pieces are in the order of offsets and do
    /// not overlap. A row belongs to the first one that has it.
    all: Vec<Vec<Piece>>,
    /// How many are of the first kind.
    direct: usize,
    /// All segments in them, each once.
    segments: Vec<usize>,
}

/// A fragment, while it is dealt out to segments.
struct Part<'a> {
    fragment: &'a FragmentShape,
    file: Option<&'a str>,
    layers: Arc<Layers>,
    dead: RoaringBitmap,
    /// Live rows that no segment has; `None` for all of them.
    left: Option<RoaringBitmap>,
    /// Whether `left` is known already.
    is_known: bool,
}

impl Layers {
    /// The segments that may have a row of the file.
    fn segments(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().copied()
    }
}

impl Part<'_> {
    fn first_address(&self) -> u64 {
        u64::from(self.fragment.id) << 32
    }

    fn input(&self) -> Input {
        let metadata = &self.fragment.metadata;
        let deletions = metadata.deletion_file.as_ref().map(|file| (file.read_version, file.id, file.base_id));
        Input { fragment: self.fragment.id, rows: self.fragment.rows, file: self.file.map(str::to_owned), deletions }
    }

    fn live(&self) -> RoaringBitmap {
        let mut live = RoaringBitmap::new();
        live.insert_range(0..u32::try_from(self.fragment.rows).unwrap_or(u32::MAX));
        live - &self.dead
    }
}

/// A segment, while rows are dealt out to it.
struct Claim {
    entry: SegmentEntry,
    absent: RoaringBitmap,
    words: Vec<u64>,
    direct: Vec<Run>,
    moved: Vec<Run>,
}

/// The segments and what leads to them.
#[derive(Default)]
struct Work {
    claims: Vec<Claim>,
    /// By data file: the segment, the first local row, and the rows.
    units: HashMap<String, Vec<(usize, u32, u32)>>,
    /// By data file: the map, and which of its targets.
    maps: HashMap<String, (Arc<RowMap>, usize)>,
    /// What was worked out, by data file.
    layers: HashMap<String, Arc<Layers>>,
}

impl Work {
    fn add(&mut self, entry: SegmentEntry, absent: RoaringBitmap) {
        let Ok(rows) = u32::try_from(entry.rows) else { return };
        let segment = self.claims.len();
        for unit in &entry.units {
            if let (Ok(start), Ok(unit_rows)) = (u32::try_from(unit.start), u32::try_from(unit.rows))
                && start.checked_add(unit_rows).is_some_and(|end| end <= rows)
            {
                self.units.entry(unit.file.clone()).or_default().push((segment, start, unit_rows));
            }
        }
        let words = vec![0; (rows as usize).div_ceil(WORD)];
        self.claims.push(Claim { entry, absent, words, direct: vec![], moved: vec![] });
    }

    /// Where the rows of a file are.
    fn layers_of(&mut self, file: &str, depth: u32) -> Arc<Layers> {
        if let Some(known) = self.layers.get(file) {
            return Arc::clone(known);
        }
        let mut layers = Layers::default();
        for (segment, local, rows) in self.units.get(file).into_iter().flatten().copied() {
            layers.all.push(vec![Piece { offset: 0, rows, segment, local }]);
        }
        layers.direct = layers.all.len();
        if depth < DEPTH_MAX
            && let Some((map, at)) = self.maps.get(file).cloned()
            && let Some(target) = map.targets.get(at)
        {
            let mapped = self.mapped(&map, target, depth);
            layers.all.extend(mapped);
        }
        layers.segments = layers.all.iter().flatten().map(|piece| piece.segment).collect();
        layers.segments.sort_unstable();
        layers.segments.dedup();
        let layers = Arc::new(layers);
        self.layers.insert(file.to_owned(), Arc::clone(&layers));
        layers
    }

    fn mapped(&mut self, map: &RowMap, target: &Target, depth: u32) -> Vec<Vec<Piece>> {
        let sources: Vec<Arc<Layers>> = map.sources.iter().map(|source| self.layers_of(source, depth + 1)).collect();
        let mut mapped: Vec<Vec<Piece>> = vec![];
        for run in &target.runs {
            let Some(layers) = sources.get(run.source as usize) else { continue };
            let wanted = run.source_offset..run.source_offset.saturating_add(run.rows);
            for (number, layer) in layers.all.iter().enumerate() {
                if mapped.len() <= number {
                    mapped.push(vec![]);
                }
                let first = layer.partition_point(|piece| piece.offset.saturating_add(piece.rows) <= wanted.start);
                for piece in layer[first..].iter().take_while(|piece| piece.offset < wanted.end) {
                    let start = piece.offset.max(wanted.start);
                    let end = piece.offset.saturating_add(piece.rows).min(wanted.end);
                    mapped[number].push(Piece {
                        offset: run.offset + (start - wanted.start),
                        rows: end - start,
                        segment: piece.segment,
                        local: piece.local + (start - piece.offset),
                    });
                }
            }
        }
        mapped
    }

    /// Deals the live rows out: first to the segments that were built on the very files, then to those that maps lead to.
    fn claim(&mut self, parts: &mut [Part<'_>]) {
        for part in parts.iter_mut().filter(|part| !part.is_known) {
            let layers = Arc::clone(&part.layers);
            for layer in &layers.all[..layers.direct] {
                layer.iter().for_each(|piece| self.claim_direct(part, piece));
            }
        }
        for part in parts.iter_mut().filter(|part| !part.is_known) {
            let layers = Arc::clone(&part.layers);
            for layer in &layers.all[layers.direct..] {
                for piece in layer {
                    if part.left.as_ref().is_some_and(RoaringBitmap::is_empty) {
                        break;
                    }
                    self.claim_moved(part, piece);
                }
            }
        }
    }

    fn claim_direct(&mut self, part: &mut Part<'_>, piece: &Piece) {
        let Some(claim) = self.claims.get_mut(piece.segment) else { return };
        if u64::from(piece.rows) != part.fragment.rows {
            return;
        }
        let address = part.first_address() + u64::from(piece.offset);
        claim.direct.push(Run { local: piece.local, rows: piece.rows, address });
        if part.left.is_none() && claim.absent.is_empty() {
            // Nearly always: the whole fragment, but for what is deleted.
            set_range(&mut claim.words, piece.local as usize..(piece.local + piece.rows) as usize);
            for offset in &part.dead {
                clear(&mut claim.words, (piece.local + offset) as usize);
            }
            part.left = Some(RoaringBitmap::new());
            return;
        }
        let left = part.left.take().unwrap_or_else(|| part.live());
        let mut kept = RoaringBitmap::new();
        for offset in &left {
            let local = piece.local + offset;
            if claim.absent.contains(local) {
                kept.insert(offset);
            } else {
                set(&mut claim.words, local as usize);
            }
        }
        part.left = Some(kept);
    }

    fn claim_moved(&mut self, part: &mut Part<'_>, piece: &Piece) {
        let Some(claim) = self.claims.get_mut(piece.segment) else { return };
        let first_address = part.first_address();
        let mut left = part.left.take().unwrap_or_else(|| part.live());
        let mut claimed = RoaringBitmap::new();
        for offset in left.range(piece.offset..piece.offset.saturating_add(piece.rows)) {
            let local = piece.local + (offset - piece.offset);
            // A row that stands in two places is found in the first one, and compared exactly in the other.
            if claim.absent.contains(local) || !set(&mut claim.words, local as usize) {
                continue;
            }
            claimed.insert(offset);
            let address = first_address + u64::from(offset);
            match claim.moved.last_mut() {
                Some(last) if last.local + last.rows == local && last.address + u64::from(last.rows) == address => {
                    last.rows += 1;
                }
                _ => claim.moved.push(Run { local, rows: 1, address }),
            }
        }
        if piece.rows == 1 {
            for offset in &claimed {
                left.remove(offset);
            }
        } else {
            left -= claimed;
        }
        part.left = Some(left);
    }

    fn into_segments(self, reused: &Reused) -> Vec<Arc<CoveredSegment>> {
        let covered = self.claims.into_iter().enumerate().filter_map(|(number, claim)| {
            if let Some(Some(known)) = reused.get(number) {
                return known.clone();
            }
            let Claim { entry, words, mut direct, mut moved, .. } = claim;
            let count = words.iter().map(|word| word.count_ones() as usize).sum();
            if count == 0 {
                return None;
            }
            direct.sort_unstable_by_key(|run| run.local);
            moved.sort_unstable_by_key(|run| run.local);
            let mut by_address = [direct.clone(), moved.clone()];
            by_address.iter_mut().for_each(|runs| runs.sort_unstable_by_key(|run| run.address));
            let live = LocalRows { words, count };
            Some(Arc::new(CoveredSegment { entry, live, direct, moved, by_address }))
        });
        covered.collect()
    }
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

/// False if it was set.
fn set(words: &mut [u64], bit: usize) -> bool {
    let Some(word) = words.get_mut(bit / WORD) else { return false };
    let mask = 1 << (bit % WORD);
    let is_new = *word & mask == 0;
    *word |= mask;
    is_new
}

fn clear(words: &mut [u64], bit: usize) {
    if let Some(word) = words.get_mut(bit / WORD) {
        *word &= !(1 << (bit % WORD));
    }
}

/// Sets the bits from `to` on to which those of `range` in `from` are set. Bits beyond the end of `from` are not.
fn or_bits(words: &mut [u64], to: usize, from: &[u64], range: Range<usize>) {
    let word = |at: usize| from.get(at).copied().unwrap_or(0);
    let (mut at, mut to) = (range.start, to);
    while at < range.end {
        // Up to the end of a word of the target, from at most two words of the source.
        let taken = (WORD - to % WORD).min(range.end - at);
        let shift = at % WORD;
        let low = word(at / WORD) >> shift;
        let high = if shift == 0 { 0 } else { word(at / WORD + 1) << (WORD - shift) };
        let mask = u64::MAX >> (WORD - taken);
        if let Some(target) = words.get_mut(to / WORD) {
            *target |= ((low | high) & mask) << (to % WORD);
        }
        at += taken;
        to += taken;
    }
}

fn set_range(words: &mut [u64], bits: Range<usize>) {
    if bits.is_empty() {
        return;
    }
    let (first, last) = (bits.start / WORD, (bits.end - 1) / WORD);
    let head = u64::MAX << (bits.start % WORD);
    let tail = u64::MAX >> (WORD - 1 - (bits.end - 1) % WORD);
    let Some(within) = words.get_mut(first..=last) else { return };
    match within {
        [only] => *only |= head & tail,
        [start, middle @ .., end] => {
            *start |= head;
            middle.fill(u64::MAX);
            *end |= tail;
        }
        [] => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_copied_from_any_place_to_any_other() {
        let from = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        let bit = |at: usize| at < 128 && from[at / 64] >> (at % 64) & 1 == 1;
        for start in (0..140).step_by(7) {
            for end in (start..150).step_by(3) {
                for to in [0, 1, 31, 63, 64, 65, 100] {
                    let mut words = vec![0_u64; 4];
                    or_bits(&mut words, to, &from, start..end);
                    let expected = |at: usize| at >= to && at - to < end - start && bit(start + at - to);
                    let is_right = (0..256).all(|at| (words[at / 64] >> (at % 64) & 1 == 1) == expected(at));
                    assert!(is_right, "{start}..{end} to {to}");
                }
            }
        }
    }

    #[test]
    fn a_range_of_bits_is_set_and_nothing_beside_it() {
        for start in 0..140 {
            for end in start..140 {
                let mut words = vec![0_u64; 3];
                set_range(&mut words, start..end);
                let found: Vec<usize> = (0..192).filter(|bit| words[bit / 64] >> (bit % 64) & 1 == 1).collect();
                assert_eq!(found, (start..end).collect::<Vec<_>>(), "{start}..{end}");
            }
        }
    }
}
