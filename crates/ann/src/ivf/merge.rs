//! Segments that share a routing become one: their lists are joined, nothing is encoded anew.

use std::fmt;

use super::build::payload;
use super::format::{CENTROIDS, COARSE, EXTRA, Ivf, ROWS};
use crate::build::{BuildError, Control};
use crate::payload::{FormatError, Payload, Sections};

/// One of the segments that are merged, all of its bytes at hand.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Its sections.
    pub sections: &'a dyn Sections,
    /// The row that each of its rows becomes; `None`: it is left out.
    pub rows: &'a [Option<u32>],
}

/// Why segments were not merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeError {
    /// They do not have the same routing, code and number of lists per row: which part differs from the first. They can only be built anew.
    Different(usize),
    /// The rows of a part, by its place, are not as many as it has, or lie beyond the end of the merged segment.
    Rows(usize),
    /// Bytes of a part, by its place, are not at hand.
    Missing(usize),
    /// The bytes of a part contradict themselves.
    Format(FormatError),
    /// It was cancelled.
    Build(BuildError),
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Different(part) => {
                write!(
                    f,
                    "segment {part} was built with another routing or code than segment 0, or one of them alone with second lists; \
                     build the segment anew"
                )
            }
            Self::Rows(part) => {
                write!(f, "the new rows of segment {part} do not fit it; give one per row, below the total")
            }
            Self::Missing(part) => write!(f, "not all bytes of segment {part} are at hand; read them whole"),
            Self::Format(error) => error.fmt(f),
            Self::Build(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for MergeError {}

impl From<FormatError> for MergeError {
    fn from(error: FormatError) -> Self {
        MergeError::Format(error)
    }
}

/// Joins segments into one of `rows` rows. A list holds the rows of the first part, then those of the second, and so on.
///
/// Efforts are those of the worst part: nothing is measured anew.
///
/// # Errors
/// [`MergeError`].
pub fn merge(parts: &[Part<'_>], rows: usize, control: &Control) -> Result<Payload, MergeError> {
    let Some(first) = parts.first() else { return Err(MergeError::Missing(0)) };
    let opened = parts.iter().enumerate().map(|(at, part)| open_part(at, part)).collect::<Result<Vec<_>, _>>()?;
    let centroids = first.sections.whole(CENTROIDS).ok_or(MergeError::Missing(0))?;
    for (at, (part, ivf)) in parts.iter().zip(&opened).enumerate() {
        let same = ivf.routing == opened[0].routing
            && ivf.layout.code == opened[0].layout.code
            && ivf.layout.codebook == opened[0].layout.codebook
            && ivf.spill == opened[0].spill
            && part.sections.whole(CENTROIDS) == Some(centroids);
        if !same {
            return Err(MergeError::Different(at));
        }
        if part.rows.len() != ivf.rows || part.rows.iter().flatten().any(|row| *row as usize >= rows) {
            return Err(MergeError::Rows(at));
        }
    }
    join(parts, &opened, rows, centroids, control)
}

fn open_part(at: usize, part: &Part<'_>) -> Result<Ivf, MergeError> {
    let ivf = Ivf::read(part.sections.whole(0).ok_or(MergeError::Missing(at))?)?;
    ivf.check(part.sections)?;
    Ok(ivf)
}

fn join(
    parts: &[Part<'_>],
    opened: &[Ivf],
    rows: usize,
    centroids: &[u8],
    control: &Control,
) -> Result<Payload, MergeError> {
    let layout = &opened[0].layout;
    control.expect(opened[0].lists() as u64);
    let (mut coarse, mut row_bytes, mut extra) = (vec![], vec![], vec![]);
    let (mut list_rows, mut spreads) = (vec![], vec![]);
    for list in 0..opened[0].lists() {
        control.advance(1).map_err(MergeError::Build)?;
        let (mut records, mut count) = (vec![], 0_u32);
        let mut widest = [0.0_f32; 2];
        for (at, (part, ivf)) in parts.iter().zip(opened).enumerate() {
            let joined = read_list(part, ivf, list, &mut records, &mut row_bytes).map_err(|missing| match missing {
                None => MergeError::Missing(at),
                Some(error) => MergeError::Format(error),
            })?;
            if joined > 0 {
                widest = [widest[0].max(ivf.spreads[list][0]), widest[1].max(ivf.spreads[list][1])];
            }
            count += joined;
        }
        let records = records.chunks_exact(layout.record_bytes().max(1));
        layout.append_list(records, &mut coarse, &mut extra);
        list_rows.push(count);
        spreads.push(widest);
    }
    let outliers = parts
        .iter()
        .zip(opened)
        .flat_map(|(part, ivf)| ivf.outliers.iter().filter_map(|row| part.rows.get(*row as usize).copied().flatten()));
    let mut outliers: Vec<u32> = outliers.collect();
    outliers.sort_unstable();
    let mut ivf =
        Ivf::new(opened[0].routing.clone(), (layout.clone(), opened[0].spill), rows, &list_rows, spreads, outliers);
    ivf.calibration =
        opened[1..].iter().fold(opened[0].calibration.clone(), |worst, part| worst.worse(&part.calibration));
    Ok(payload(&ivf, centroids.to_vec(), coarse, row_bytes, extra))
}

/// Appends the records and new rows of one list of a part; returns how many. The error is what contradicts itself, or `None` if bytes
/// are missing.
fn read_list(
    part: &Part<'_>,
    ivf: &Ivf,
    list: usize,
    records: &mut Vec<u8>,
    row_bytes: &mut Vec<u8>,
) -> Result<u32, Option<FormatError>> {
    let (start, end) = (ivf.row_starts[list], ivf.row_starts[list + 1]);
    let extra_bytes = ivf.layout.extra_row_bytes();
    let coarse = part.sections.get(COARSE, ivf.coarse_starts[list]..ivf.coarse_starts[list + 1]).ok_or(None)?;
    let extra = part.sections.get(EXTRA, start * extra_bytes..end * extra_bytes).ok_or(None)?;
    let rows = part.sections.get(ROWS, 4 * start..4 * end).ok_or(None)?;
    let mut record = vec![0; ivf.layout.record_bytes()];
    let mut joined = 0;
    for (at, row) in rows.as_chunks::<4>().0.iter().enumerate() {
        let row = u32::from_le_bytes(*row) as usize;
        let new = part.rows.get(row).ok_or_else(|| crate::head::damaged("a row beyond the segment"))?;
        if let Some(new) = new {
            ivf.layout.read_record(coarse, extra, at, &mut record);
            records.extend_from_slice(&record);
            row_bytes.extend(new.to_le_bytes());
            joined += 1;
        }
    }
    Ok(joined)
}
