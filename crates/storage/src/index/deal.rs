//! Deals the rows of a version out to the segments of an index: each row to the first segment that has it, and to one place.

use std::collections::HashMap;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::coverage::Input;
use super::covered_segment::{CoveredSegment, LocalRows, Run, WORD, clear, set, set_range};
use super::manifest::SegmentEntry;
use super::row_map::{RowMap, Target};
use crate::snapshot::FragmentShape;

/// Row maps of row maps that are followed.
const DEPTH_MAX: u32 = 64;

/// By segment: `None` if it is to be worked out, else what it is, and `None` in that if it has no live row.
pub(super) type Reused = Vec<Option<Option<Arc<CoveredSegment>>>>;

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
pub(super) struct Layers {
    /// First come those of which the file itself is a unit, then the others. In each, pieces are in the order of offsets and do
    /// not overlap. A row belongs to the first one that has it.
    all: Vec<Vec<Piece>>,
    /// How many are of the first kind.
    direct: usize,
    /// All segments in them, each once.
    segments: Vec<usize>,
}

/// A fragment, while it is dealt out to segments.
pub(super) struct Part<'a> {
    pub(super) fragment: &'a FragmentShape,
    pub(super) file: Option<&'a str>,
    pub(super) layers: Arc<Layers>,
    pub(super) dead: RoaringBitmap,
    /// Live rows that no segment has; `None` for all of them.
    pub(super) left: Option<RoaringBitmap>,
    /// Whether `left` is known already.
    pub(super) is_known: bool,
}

impl Layers {
    /// The segments that may have a row of the file.
    pub(super) fn segments(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().copied()
    }
}

impl Part<'_> {
    fn first_address(&self) -> u64 {
        u64::from(self.fragment.id) << 32
    }

    pub(super) fn input(&self) -> Input {
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
pub(super) struct Claim {
    pub(super) entry: SegmentEntry,
    absent: RoaringBitmap,
    words: Vec<u64>,
    direct: Vec<Run>,
    moved: Vec<Run>,
}

impl Claim {
    fn push_moved(&mut self, local: u32, address: u64) {
        match self.moved.last_mut() {
            Some(last) if last.local + last.rows == local && last.address + u64::from(last.rows) == address => {
                last.rows += 1;
            }
            _ => self.moved.push(Run { local, rows: 1, address }),
        }
    }
}

/// The segments and what leads to them.
#[derive(Default)]
pub(super) struct Work {
    pub(super) claims: Vec<Claim>,
    /// By data file: the segment, the first local row, and the rows.
    units: HashMap<String, Vec<(usize, u32, u32)>>,
    /// By data file: the map, and which of its targets.
    pub(super) maps: HashMap<String, (Arc<RowMap>, usize)>,
    /// What was worked out, by data file.
    pub(super) layers: HashMap<String, Arc<Layers>>,
}

impl Work {
    pub(super) fn add(&mut self, entry: SegmentEntry, absent: RoaringBitmap) {
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
    pub(super) fn layers_of(&mut self, file: &str, depth: u32) -> Arc<Layers> {
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
    pub(super) fn claim(&mut self, parts: &mut [Part<'_>]) {
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
        if piece.rows == 1 {
            // What an UPDATE of scattered rows leaves are many of these.
            if left.contains(piece.offset)
                && !claim.absent.contains(piece.local)
                && set(&mut claim.words, piece.local as usize)
            {
                left.remove(piece.offset);
                claim.push_moved(piece.local, first_address + u64::from(piece.offset));
            }
            part.left = Some(left);
            return;
        }
        let mut claimed = RoaringBitmap::new();
        for offset in left.range(piece.offset..piece.offset.saturating_add(piece.rows)) {
            let local = piece.local + (offset - piece.offset);
            // A row that stands in two places is found in the first one, and compared exactly in the other.
            if claim.absent.contains(local) || !set(&mut claim.words, local as usize) {
                continue;
            }
            claimed.insert(offset);
            claim.push_moved(local, first_address + u64::from(offset));
        }
        left -= claimed;
        part.left = Some(left);
    }

    pub(super) fn into_segments(self, reused: &Reused) -> Vec<Arc<CoveredSegment>> {
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
