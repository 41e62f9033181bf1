//! The bytes of a flat index.
//!
//! | section | tier | holds |
//! |---|---|---|
//! | 0 head | pinned | see below |
//! | 1 coarse | hot | the coarse parts of chunks of 4,096 rows (`codes/mod.rs`) |
//! | 2 extra | warm | the extra rows |
//!
//! Rows that are no candidates have a code whose factors are no numbers. Little endian throughout. The head:
//!
//! | bytes | holds |
//! |---|---|
//! | 4, 4 | `SFLT`, version |
//! | 1, 1, 4, 4, 4 d, 2 d' | metric, element type, dimension, scale, origin, signs of the rotation of d' = d rounded up to 16 |
//! | 1, 1, 8 | code, bits, rows |
//! | 4 c, 4 c | coarse spread and whole spread of each chunk |
//! | 4, 4 o | rows without a code that are always candidates |
//! | 4, 12 p | measured points: k, rerank, recall |

use crate::codes::{Code, CodeLayout, Spreads};
use crate::head::{HeadReader, HeadWriter, check_version, damaged};
use crate::payload::{FormatError, Sections};
use crate::space::{Space, read_shape};

/// The version that is written, and the latest that is read.
const VERSION: u32 = 1;
const MAGIC: [u8; 4] = *b"SFLT";

pub(crate) const COARSE: usize = 1;
pub(crate) const EXTRA: usize = 2;

/// Rows of a chunk: what is read at a time, and what has one spread. A multiple of 64.
pub(crate) const CHUNK: usize = 4_096;

/// One measured effort.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) k: u32,
    pub(crate) rerank: u32,
    pub(crate) recall: f32,
}

/// An opened flat index: its head.
#[derive(Debug)]
pub(crate) struct Flat {
    pub(crate) space: Space,
    pub(crate) layout: CodeLayout,
    pub(crate) rows: usize,
    pub(crate) spreads: Vec<Spreads>,
    pub(crate) outliers: Vec<u32>,
    pub(crate) points: Vec<Point>,
}

impl Flat {
    pub(crate) fn new(space: Space, code: Code, rows: usize, spreads: Vec<Spreads>, outliers: Vec<u32>) -> Flat {
        let layout = layout_of(&space, code);
        Flat { space, layout, rows, spreads, outliers, points: vec![] }
    }

    pub(crate) fn to_head(&self) -> Vec<u8> {
        let mut head = HeadWriter::default();
        head.bytes(&MAGIC);
        head.u32(VERSION);
        self.space.write(&mut head);
        self.layout.code.write(&mut head);
        head.u64(self.rows as u64);
        self.spreads.iter().for_each(|spreads| head.f32(spreads[0]));
        self.spreads.iter().for_each(|spreads| head.f32(spreads[1]));
        head.u32(self.outliers.len() as u32);
        head.u32s(&self.outliers);
        head.u32(self.points.len() as u32);
        for point in &self.points {
            head.u32s(&[point.k, point.rerank]);
            head.f32(point.recall);
        }
        head.0
    }

    pub(crate) fn read(head: &[u8]) -> Result<Flat, FormatError> {
        let mut reader = HeadReader(head);
        check_version(&mut reader, MAGIC, VERSION)?;
        let shape = read_shape(&mut reader)?;
        if shape.0.is_for_bits() {
            return Err(damaged("a flat index of bits"));
        }
        let space = Space::read(shape, &mut reader)?;
        let code = Code::read(&mut reader, space.element)?;
        let rows = reader.u64()?;
        if matches!(code, Code::Raw | Code::Pq { .. }) || rows > u64::from(u32::MAX) {
            return Err(damaged("raw or product codes, or more rows than a segment may have"));
        }
        let rows = rows as usize;
        let chunks = rows.div_ceil(CHUNK);
        let (coarse, whole) = (reader.f32s(chunks)?, reader.f32s(chunks)?);
        let spreads = coarse.into_iter().zip(whole).map(|(coarse, whole)| [coarse, whole]).collect();
        let outlier_count = reader.count()?;
        let outliers = reader.u32s(outlier_count)?;
        let points = reader.count()?;
        let points = (0..points)
            .map(|_| Ok(Point { k: reader.u32()?, rerank: reader.u32()?, recall: reader.f32()? }))
            .collect::<Result<Vec<_>, FormatError>>()?;
        reader.end()?;
        if outliers.iter().any(|row| *row as usize >= rows) {
            return Err(damaged("a row beyond the segment"));
        }
        let mut flat = Flat::new(space, code, rows, spreads, outliers);
        flat.points = points;
        Ok(flat)
    }

    /// Chunks of rows.
    pub(crate) fn chunks(&self) -> usize {
        self.rows.div_ceil(CHUNK)
    }

    /// Rows of a chunk.
    pub(crate) fn chunk_rows(&self, chunk: usize) -> usize {
        CHUNK.min(self.rows - chunk * CHUNK)
    }

    /// The sections are as long as the head says.
    pub(crate) fn check(&self, sections: &dyn Sections) -> Result<(), FormatError> {
        let lengths =
            [(COARSE, self.layout.coarse_bytes(self.rows)), (EXTRA, self.rows * self.layout.extra_row_bytes())];
        for (section, expected) in lengths {
            let found = sections.len(section);
            if found != expected {
                let what = format!("section {section} has {found} bytes, the head says {expected}");
                return Err(FormatError::Damaged(what));
            }
        }
        Ok(())
    }
}

pub(crate) fn layout_of(space: &Space, code: Code) -> CodeLayout {
    let raw_bytes = space.element.bytes_per_row(space.dim);
    CodeLayout { code, codebook: None, geometry: space.geometry(), padded: space.padded(), raw_bytes }
}
