//! The bytes of an index of lists.
//!
//! | section | tier | holds |
//! |---|---|---|
//! | 0 head | pinned | see below |
//! | 1 centroids | pinned | one byte per projected element (or the bits), of the lists, then of the upper level |
//! | 2 coarse | hot | the coarse parts of the lists, one after the other (`codes/mod.rs`) |
//! | 3 rows | warm | the local row of every position, u32 |
//! | 4 extra | warm | the extra rows of the lists, one after the other |
//!
//! Little endian throughout. What has neither product codes nor second lists is written as version 1. The head:
//!
//! | bytes | holds |
//! |---|---|
//! | 4, 4 | `SIVF`, version |
//! | 1, 1, 4 | metric, element type, dimension |
//! | 4, 4 d, 2 d' | scale, origin, signs of the rotation of d' = d rounded up to 16 (absent for bits) |
//! | 4, 4, 4 u | lists, upper centroids u, for each of them the list after its last |
//! | 4 (l + u), twice | scale and squared length of each centroid (absent for bits) |
//! | 1, 1 | code, bits |
//! | 1, 4, 4 c | dimensions of a code, lean, codewords (of product codes alone; `kernels::Codewords`) |
//! | 1 | whether rows stand in a second list (since version 2) |
//! | 8 | rows of the segment |
//! | 4 l, 4 l, 4 l | rows, coarse spread, whole spread of each list |
//! | 4, 4 o | rows without a code: always candidates |
//! | 4, 4, 16 p | growth of probes with k, measured points: k, probes, rerank, recall |

use std::sync::Arc;

use kernels::ElementType;

use super::calibration::{Calibration, Point};
use super::routing::{Ground, RoutingHead};
use crate::codes::{Code, CodeLayout, Codebook, Spreads};
use crate::head::{HeadReader, HeadWriter, check_version, damaged};
use crate::payload::{FormatError, Sections};
use crate::space::Geometry;

/// The latest version, and the latest that is read.
pub(crate) const VERSION: u32 = 2;

/// The version that is written: 1, which older programs read, unless there is something that it lacks.
pub(crate) fn version_of(lacks: bool) -> u32 {
    if lacks { VERSION } else { 1 }
}

const MAGIC: [u8; 4] = *b"SIVF";
/// Begins a routing by itself.
pub(crate) const ROUTING_MAGIC: &[u8; 4] = b"SIVR";

pub(crate) const CENTROIDS: usize = 1;
pub(crate) const COARSE: usize = 2;
pub(crate) const ROWS: usize = 3;
pub(crate) const EXTRA: usize = 4;

/// An opened index of lists: its head.
#[derive(Debug)]
pub(crate) struct Ivf {
    pub(crate) routing: RoutingHead,
    pub(crate) layout: CodeLayout,
    /// Whether rows stand in a second list.
    pub(crate) spill: bool,
    /// Rows of the segment.
    pub(crate) rows: usize,
    pub(crate) spreads: Vec<Spreads>,
    /// The first position of each list, and the end.
    pub(crate) row_starts: Vec<usize>,
    /// The first coarse byte of each list, and the end.
    pub(crate) coarse_starts: Vec<usize>,
    pub(crate) outliers: Vec<u32>,
    pub(crate) calibration: Calibration,
}

impl Ivf {
    /// From its parts: `list_rows` and `spreads` of each list.
    pub(crate) fn new(
        routing: RoutingHead,
        (layout, spill): (CodeLayout, bool),
        rows: usize,
        list_rows: &[u32],
        spreads: Vec<Spreads>,
        outliers: Vec<u32>,
    ) -> Ivf {
        let (mut row_starts, mut coarse_starts) = (vec![0], vec![0]);
        let (mut position, mut byte) = (0, 0);
        for rows in list_rows {
            position += *rows as usize;
            byte += layout.coarse_bytes(*rows as usize);
            row_starts.push(position);
            coarse_starts.push(byte);
        }
        let calibration = Calibration::default();
        Ivf { routing, layout, spill, rows, spreads, row_starts, coarse_starts, outliers, calibration }
    }

    /// The head.
    pub(crate) fn to_head(&self) -> Vec<u8> {
        let mut head = HeadWriter::default();
        head.bytes(&MAGIC);
        let version = version_of(self.spill || self.layout.codebook.is_some());
        head.u32(version);
        self.routing.write(&mut head);
        self.layout.code.write(&mut head);
        if let Some(codebook) = &self.layout.codebook {
            codebook.write(&mut head);
        }
        if version > 1 {
            head.u8(u8::from(self.spill));
        }
        head.u64(self.rows as u64);
        self.row_starts.windows(2).for_each(|pair| head.u32((pair[1] - pair[0]) as u32));
        self.spreads.iter().for_each(|spreads| head.f32(spreads[0]));
        self.spreads.iter().for_each(|spreads| head.f32(spreads[1]));
        head.u32(self.outliers.len() as u32);
        head.u32s(&self.outliers);
        head.f32(self.calibration.growth);
        head.u32(self.calibration.points.len() as u32);
        for point in &self.calibration.points {
            head.u32s(&[point.k, point.probes, point.rerank]);
            head.f32(point.recall);
        }
        head.0
    }

    /// Reads a head; nothing that it says is believed beyond what can be checked.
    pub(crate) fn read(head: &[u8]) -> Result<Ivf, FormatError> {
        let mut reader = HeadReader(head);
        let version = check_version(&mut reader, MAGIC, VERSION)?;
        let routing = RoutingHead::read(&mut reader)?;
        let element = element_of(&routing);
        let code = Code::read(&mut reader, element)?;
        let layout = layout_of(&routing, code, read_codebook(&mut reader, code, &routing)?);
        let spill = match if version > 1 { reader.u8()? } else { 0 } {
            0 => false,
            1 if element != ElementType::Bits => true,
            _ => return Err(damaged("rows in more lists than two, or bits in more than one")),
        };
        let rows = reader.u64()?;
        let lists = routing.lists;
        let list_rows = reader.u32s(lists)?;
        let (coarse, whole) = (reader.f32s(lists)?, reader.f32s(lists)?);
        let spreads = coarse.into_iter().zip(whole).map(|(coarse, whole)| [coarse, whole]).collect();
        let outlier_count = reader.count()?;
        let outliers = reader.u32s(outlier_count)?;
        let growth = reader.f32()?;
        let points = reader.count()?;
        let points = (0..points)
            .map(|_| {
                let [k, probes, rerank] = [reader.u32()?, reader.u32()?, reader.u32()?];
                Ok(Point { k, probes, rerank, recall: reader.f32()? })
            })
            .collect::<Result<Vec<_>, FormatError>>()?;
        reader.end()?;
        let stored: u64 = list_rows.iter().map(|rows| u64::from(*rows)).sum();
        let stored = stored.div_ceil(1 + u64::from(spill));
        if rows > u64::from(u32::MAX) || stored + outliers.len() as u64 > rows {
            return Err(damaged("more rows in the lists than in the segment"));
        }
        if outliers.iter().any(|row| u64::from(*row) >= rows) {
            return Err(damaged("a row beyond the segment"));
        }
        if !(0.0..=1.0).contains(&growth) || points.iter().any(|point| point.k == 0 || point.probes == 0) {
            return Err(damaged("a measured effort that is none"));
        }
        let mut ivf = Ivf::new(routing, (layout, spill), rows as usize, &list_rows, spreads, outliers);
        ivf.calibration = Calibration { growth, points };
        Ok(ivf)
    }

    pub(crate) fn lists(&self) -> usize {
        self.routing.lists
    }

    pub(crate) fn list_rows(&self, list: usize) -> usize {
        self.row_starts[list + 1] - self.row_starts[list]
    }

    /// Lists that a row stands in, at most.
    pub(crate) fn copies(&self) -> usize {
        1 + usize::from(self.spill)
    }

    /// Rows in the lists, those in two of them twice.
    pub(crate) fn stored(&self) -> usize {
        self.row_starts.last().copied().unwrap_or(0)
    }

    /// Bytes of a section, as the head has it.
    fn section_bytes(&self, section: usize) -> usize {
        match section {
            CENTROIDS => self.routing.code_bytes(),
            COARSE => self.coarse_starts.last().copied().unwrap_or(0),
            ROWS => 4 * self.stored(),
            _ => self.layout.extra_row_bytes() * self.stored(),
        }
    }

    /// The sections are as long as the head says.
    pub(crate) fn check(&self, sections: &dyn Sections) -> Result<(), FormatError> {
        for section in [CENTROIDS, COARSE, ROWS, EXTRA] {
            let (found, expected) = (sections.len(section), self.section_bytes(section));
            if found != expected {
                let what = format!("section {section} has {found} bytes, the head says {expected}");
                return Err(FormatError::Damaged(what));
            }
        }
        Ok(())
    }
}

pub(crate) fn element_of(routing: &RoutingHead) -> ElementType {
    match &routing.ground {
        Ground::Projected(space) => space.element,
        Ground::Bits { .. } => ElementType::Bits,
    }
}

pub(crate) fn layout_of(routing: &RoutingHead, code: Code, codebook: Option<Arc<Codebook>>) -> CodeLayout {
    let (geometry, padded, raw_bytes) = match &routing.ground {
        Ground::Projected(space) => (space.geometry(), space.padded(), space.element.bytes_per_row(space.dim)),
        Ground::Bits { dim, .. } => (Geometry::Euclidean, 0, dim / 8),
    };
    CodeLayout { code, codebook, geometry, padded, raw_bytes }
}

/// Reads the codebook that a code needs, if it needs one.
pub(crate) fn read_codebook(
    reader: &mut HeadReader<'_>,
    code: Code,
    routing: &RoutingHead,
) -> Result<Option<Arc<Codebook>>, FormatError> {
    match code {
        Code::Pq { bits, dims } => {
            Codebook::read(reader, (bits, dims), routing.centroid_bytes()).map(|book| Some(Arc::new(book)))
        }
        _ => Ok(None),
    }
}
