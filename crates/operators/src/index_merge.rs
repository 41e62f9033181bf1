//! Makes one segment of several without looking at vectors: lists of the same routing are joined as they are, so that rows of older
//! versions, whose vectors nobody may have any more, stay covered.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use ann::ivf::{MergeError, Part};
use ann::{Control, Sections};
use datafusion::common::{exec_datafusion_err, internal_datafusion_err};
use datafusion::error::Result;
use roaring::RoaringBitmap;
use storage::{NewSegment, NewUnit, Segment};

use crate::index_build::{IVF, stored};

/// Rows per list from which on a merged segment is trained anew: five times as many as a list has at the build.
const LIST_ROWS_MAX: u64 = 1_000;

/// Segments of one index that may become one.
#[derive(Debug)]
pub struct SegmentMerge {
    /// The segments.
    pub segments: Vec<Arc<Segment>>,
    /// Microseconds since the epoch.
    pub now_us: i64,
}

/// Where the rows of the segments stand in the merged one.
struct Layout {
    units: Vec<NewUnit>,
    /// For each segment what each of its rows becomes; `None` for those that an earlier segment has, and those without a vector.
    rows: Vec<Vec<Option<u32>>>,
    total: usize,
}

impl SegmentMerge {
    /// Bytes that the merge holds at once: the segments may have to be read, and the new one is made of them.
    pub fn bytes(&self) -> usize {
        let bytes = |segment: &Arc<Segment>| (0..segment.len()).map(|at| segment.section(at).len()).sum::<usize>();
        let rows: u64 = self.segments.iter().map(|segment| segment.rows()).sum();
        let rows = usize::try_from(rows).unwrap_or(usize::MAX).saturating_mul(size_of::<Option<u32>>());
        self.segments.iter().map(|segment| 2 * bytes(segment)).sum::<usize>().saturating_add(rows)
    }

    /// Joins them; `None` if they can only be built anew: they are of another family, of different routings, or too large for theirs.
    ///
    /// # Errors
    /// Damaged segments; a cancelled merge.
    pub async fn run(self, control: Arc<Control>) -> Result<Option<NewSegment>> {
        if self.segments.iter().any(|segment| segment.family() != IVF) {
            return Ok(None);
        }
        let merged = tokio::task::spawn_blocking(move || self.merged(&control)).await;
        merged.map_err(|error| internal_datafusion_err!("the merge ended early: {error}"))?
    }

    fn merged(&self, control: &Control) -> Result<Option<NewSegment>> {
        let failed = |error: &dyn std::fmt::Display| exec_datafusion_err!("segments were not merged: {error}");
        let bytes: Vec<SegmentBytes<'_>> = self.segments.iter().map(|segment| SegmentBytes(segment)).collect();
        let Some(first) = bytes.first() else { return Ok(None) };
        let lists = ann::ivf::routing_of(first).map_err(|error| failed(&error))?.lists() as u64;
        let layout = Layout::of(&self.segments);
        if layout.total as u64 > lists * LIST_ROWS_MAX {
            return Ok(None);
        }
        let parts: Vec<Part<'_>> =
            bytes.iter().zip(&layout.rows).map(|(sections, rows)| Part { sections, rows }).collect();
        let payload = match ann::ivf::merge(&parts, layout.total, control) {
            Ok(payload) => payload,
            Err(MergeError::Different(_)) => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        Ok(Some(NewSegment {
            family: IVF.into(),
            sections: payload.sections.into_iter().map(stored).collect(),
            units: layout.units,
            calibration: String::new(),
            built_at_us: self.now_us,
        }))
    }
}

impl Layout {
    /// The units one after the other, each once: of a data file that several segments have parts of, a row is taken from the first
    /// that has it.
    fn of(segments: &[Arc<Segment>]) -> Self {
        let (mut units, mut starts): (Vec<NewUnit>, Vec<u64>) = (vec![], vec![]);
        let mut places: HashMap<String, usize> = HashMap::new();
        let (mut all, mut total) = (vec![], 0_u64);
        for segment in segments {
            let mut rows = vec![];
            for unit in segment.units() {
                let is_new = !places.contains_key(&unit.file);
                let place = *places.entry(unit.file.clone()).or_insert(units.len());
                if is_new {
                    let mut absent = RoaringBitmap::new();
                    absent.insert_range(0..u32::try_from(unit.rows).unwrap_or(u32::MAX));
                    units.push(NewUnit { file: unit.file.clone(), rows: unit.rows, absent });
                    starts.push(total);
                    total += unit.rows;
                }
                let missing = &mut units[place].absent;
                let became = |offset: u32| {
                    let is_taken = !unit.absent.contains(offset) && missing.remove(offset);
                    is_taken.then(|| u32::try_from(starts[place] + u64::from(offset)).ok()).flatten()
                };
                rows.extend((0..u32::try_from(unit.rows).unwrap_or(u32::MAX)).map(became));
            }
            all.push(rows);
        }
        Self { units, rows: all, total: usize::try_from(total).unwrap_or(usize::MAX) }
    }
}

/// The sections of a segment, all at hand.
pub(crate) struct SegmentBytes<'a>(pub(crate) &'a Segment);

impl Sections for SegmentBytes<'_> {
    fn len(&self, section: usize) -> usize {
        self.0.section(section).len()
    }

    fn get(&self, section: usize, range: Range<usize>) -> Option<&[u8]> {
        self.0.section(section).get(range)
    }
}
