//! The bytes of a graph index.
//!
//! Section 0, the head (little-endian, no padding):
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `SGTAGRPH` |
//! | 4 | version, 3; files of versions 1 and 2 are read |
//! | 4 | CRC-32C of all that follows |
//! | 1, 1, 1, 1 | metric, element, code (0 bits, 1 affine, 2 shifted), bits of a code |
//! | 4, 4, 4 | `dim`, rows, vertices |
//! | 4, 4 | neighbors of a vertex, elements of a code |
//! | 4 | flags: 1, vertices are not simply the rows; 2, there are whole vectors (since version 2) |
//! | 4·32 | entry points |
//! | 4 | mean `beside` of the vertices (f32) |
//! | 4 | length of the rows (f32): inner product only, else 0 |
//! | *whole vectors*: 4 | what is subtracted from their elements (f32) |
//! | *shifted*: 4 | what is subtracted (f32) |
//! | *affine*: 4·`l`, 4·`l`, 4·`c`, `c·l` | mean, inverse scales, row scales (f32), rows (u8): `l` = `dim` (+ 1 for inner product), `c` = elements of a code |
//! | 3 × (4 + 20·steps) | calibration for k = 1, 10, 100: number of steps; of each recall, stop (f32), beam, rerank, codes (u32) |
//! | 4, 4·`o` | since version 3: rows that are candidates of every search (u32, ascending) |
//! | 4 + `n` × (8 + 20·steps) | since version 3: number of kinds of far queries; of each its mean `beside` (f32) and calibration for k = 10 |
//!
//! Section 1, the codes: a record per vertex (`kernels::CodeLayout`; bits: whole words of 64). Section 2, the
//! adjacency: `neighbors` u32 per
//! vertex. Section 3: the row of each vertex (u32, ascending), or nothing where they are the same. Section 4, since version 2: where
//! vectors of floats hold whole numbers of one byte, these, a record of `kernels::CodeLayout::whole` per vertex; or nothing.

use kernels::{CodeLayout, ElementType, Metric};

use super::space::{Affine, Map, Space};
use super::{ENTRIES, MAX_DIM};
use crate::FormatError;

const MAGIC: &[u8; 8] = b"SGTAGRPH";
const VERSION: u32 = 3;
/// Flags of the head.
const HAS_ROW_MAP: u32 = 1;
const HAS_WHOLE: u32 = 2;
/// Values of k that efforts are measured for.
pub(super) const CALIBRATED: [usize; 3] = [1, 10, 100];
/// Most steps of a calibration, and the widest beam.
const STEPS_MAX: u32 = 64;
/// Most kinds of far queries.
const FAR_MAX: u32 = 16;
const BEAM_MAX: u32 = 1 << 20;

/// The sections.
pub(super) const CODES: usize = 1;
pub(super) const ADJACENCY: usize = 2;
pub(super) const ROWS: usize = 3;
pub(super) const WHOLE: usize = 4;

/// How vectors are written.
#[derive(Clone, Debug)]
pub(super) enum Coding {
    /// Bits as they are, compared by this metric.
    Bits(Metric),
    /// Scalar codes, of vectors in this space.
    Scalar(CodeLayout, Space),
}

/// Vectors that are kept without loss beside shorter codes: of whole numbers, in a byte each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Whole {
    pub layout: CodeLayout,
    /// What is subtracted from an element, so that it is from -128 to 127.
    pub shift: f32,
}

/// One measured effort.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct EffortStep {
    pub recall: f32,
    pub stop: f32,
    pub beam: u32,
    pub rerank: u32,
    /// Mean number of codes compared.
    pub codes: u32,
}

/// What queries take that are unlike the rows: more of them lies outside of the codes, which tell less of their distances.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Far {
    /// Mean `beside` of those that were asked.
    pub beside: f32,
    /// For k = 10, cheapest first.
    pub efforts: Vec<EffortStep>,
}

/// All of the head.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub metric: Metric,
    pub element: ElementType,
    pub dim: usize,
    pub rows: usize,
    pub vertices: usize,
    pub degree: usize,
    /// Elements of a code.
    pub code_dim: usize,
    pub has_row_map: bool,
    pub entries: [u32; ENTRIES],
    pub beside: f32,
    pub coding: Coding,
    pub whole: Option<Whole>,
    /// For each of [`CALIBRATED`], cheapest first.
    pub efforts: [Vec<EffortStep>; 3],
    /// Rows that are no vertices and candidates of every search, ascending.
    pub outliers: Vec<u32>,
    /// By `beside`, ascending.
    pub far: Vec<Far>,
}

impl Head {
    /// Bytes of a record.
    pub(super) fn record_bytes(&self) -> usize {
        match &self.coding {
            Coding::Bits(_) => self.dim.div_ceil(64) * 8,
            Coding::Scalar(layout, _) => layout.bytes(),
        }
    }

    /// As bytes.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let (kind, bits) = match &self.coding {
            Coding::Bits(_) => (0, 1),
            Coding::Scalar(layout, space) => (1 + u8::from(matches!(space.map, Map::Shift(_))), layout.bits() as u8),
        };
        body.extend([metric_number(self.metric), element_number(self.element), kind, bits]);
        for count in [self.dim, self.rows, self.vertices, self.degree, self.code_dim] {
            body.extend((count as u32).to_le_bytes());
        }
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let flags = flag(self.has_row_map, HAS_ROW_MAP) | flag(self.whole.is_some(), HAS_WHOLE);
        body.extend(flags.to_le_bytes());
        self.entries.iter().for_each(|entry| body.extend(entry.to_le_bytes()));
        let mut floats = vec![self.beside];
        if let Coding::Scalar(_, space) = &self.coding {
            floats.push(space.length);
            floats.extend(self.whole.map(|whole| whole.shift));
            match &space.map {
                Map::Shift(shift) => floats.push(*shift),
                Map::Affine(affine) => [&affine.mean, &affine.inverse_scale, &affine.row_scale]
                    .into_iter()
                    .for_each(|values| floats.extend_from_slice(values)),
            }
        } else {
            floats.push(0.0);
        }
        floats.iter().for_each(|float| body.extend(float.to_le_bytes()));
        if let Coding::Scalar(_, Space { map: Map::Affine(affine), .. }) = &self.coding {
            body.extend(&affine.rows);
        }
        self.efforts.iter().for_each(|steps| write_efforts(steps, &mut body));
        body.extend((self.outliers.len() as u32).to_le_bytes());
        self.outliers.iter().for_each(|row| body.extend(row.to_le_bytes()));
        body.extend((self.far.len() as u32).to_le_bytes());
        for far in &self.far {
            body.extend(far.beside.to_le_bytes());
            write_efforts(&far.efforts, &mut body);
        }
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend(crc32c(&body).to_le_bytes());
        head.extend(body);
        head
    }

    /// Reads and checks every count. What it holds may be trusted, but the other sections not.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        if reader.take(8)? != MAGIC {
            return Err(damaged("it does not begin as a graph does"));
        }
        let version = reader.u32()?;
        if version == 0 {
            return Err(damaged("there is no version 0"));
        }
        if version > VERSION {
            return Err(FormatError::Version { found: version, latest: VERSION });
        }
        if reader.u32()? != crc32c(reader.0) {
            return Err(damaged("the checksum of its head does not fit"));
        }
        let head = Self::read_body(&mut reader, version)?;
        if reader.0.is_empty() { Ok(head) } else { Err(damaged("its head is longer than its counts say")) }
    }

    fn read_body(reader: &mut Reader<'_>, version: u32) -> Result<Self, FormatError> {
        let metric = Metric::ALL.into_iter().find(|metric| Ok(metric_number(*metric)) == reader.peek(0));
        let element = ElementType::ALL.into_iter().find(|element| Ok(element_number(*element)) == reader.peek(1));
        let (Some(metric), Some(element)) = (metric, element) else { return Err(damaged("unknown metric or element")) };
        let (kind, bits) = (reader.peek(2)?, u32::from(reader.peek(3)?));
        reader.take(4)?;
        let mut count = || reader.u32().map(|count| count as usize);
        let (dim, rows, vertices, degree) = (count()?, count()?, count()?, count()?);
        let (code_dim, flags) = (count()?, reader.u32()?);
        let (has_row_map, has_whole) = (flags & HAS_ROW_MAP != 0, flags & HAS_WHOLE != 0);
        let is_bits = element == ElementType::Bits;
        if !(1..=MAX_DIM).contains(&dim) || vertices > rows || rows > i32::MAX as usize {
            return Err(damaged("its counts of dimensions and rows do not fit"));
        }
        if !degree.is_multiple_of(16) || !(16..=super::MAX_DEGREE).contains(&degree) {
            return Err(damaged("it has an impossible number of neighbors"));
        }
        if metric.is_for_bits() != is_bits
            || metric == Metric::L1
            || (kind == 0) != is_bits
            || has_whole && metric != Metric::L2
        {
            return Err(damaged("metric, element and codes do not go together"));
        }
        if flags > if version == 1 { HAS_ROW_MAP } else { HAS_ROW_MAP | HAS_WHOLE } || has_whole && is_bits {
            return Err(damaged("it has flags that do not exist"));
        }
        if !has_row_map && vertices != rows {
            return Err(damaged("rows without a vector are not told apart"));
        }
        let mut entries = [0; ENTRIES];
        for entry in &mut entries {
            *entry = reader.u32()?;
            if *entry as usize >= vertices.max(1) {
                return Err(damaged("an entry point is no vertex"));
            }
        }
        let (beside, length) = (reader.f32()?, reader.f32()?);
        let whole = if has_whole { Some(reader.whole(dim)?) } else { None };
        let coding = reader.coding(metric, dim, kind, bits, code_dim, length)?;
        let efforts = [reader.efforts()?, reader.efforts()?, reader.efforts()?];
        let (outliers, far) = if version < 3 { Default::default() } else { (reader.outliers(rows)?, reader.far()?) };
        if vertices + outliers.len() > rows {
            return Err(damaged("its counts of rows do not fit"));
        }
        Ok(Self {
            metric,
            element,
            dim,
            rows,
            vertices,
            degree,
            code_dim,
            has_row_map,
            entries,
            beside,
            coding,
            whole,
            efforts,
            outliers,
            far,
        })
    }
}

fn write_efforts(steps: &[EffortStep], body: &mut Vec<u8>) {
    body.extend((steps.len() as u32).to_le_bytes());
    for step in steps {
        body.extend(step.recall.to_le_bytes());
        body.extend(step.stop.to_le_bytes());
        [step.beam, step.rerank, step.codes].iter().for_each(|count| body.extend(count.to_le_bytes()));
    }
}

/// A contradiction in the bytes.
pub(super) fn damaged(what: &str) -> FormatError {
    FormatError::Damaged(format!("of a graph: {what}"))
}

/// What is not yet read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| damaged("its head is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn peek(&self, at: usize) -> Result<u8, FormatError> {
        self.0.get(at).copied().ok_or_else(|| damaged("its head is cut off"))
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        let mut four = [0; 4];
        four.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(four))
    }

    /// A finite float.
    fn f32(&mut self) -> Result<f32, FormatError> {
        let value = f32::from_bits(self.u32()?);
        if value.is_finite() { Ok(value) } else { Err(damaged("a factor is not finite")) }
    }

    fn floats(&mut self, count: usize) -> Result<Vec<f32>, FormatError> {
        if self.0.len() / 4 < count {
            return Err(damaged("its head is cut off"));
        }
        (0..count).map(|_| self.f32()).collect()
    }

    fn whole(&mut self, dim: usize) -> Result<Whole, FormatError> {
        let layout = CodeLayout::whole(dim).ok_or_else(|| damaged("its whole vectors are too long"))?;
        Ok(Whole { layout, shift: self.f32()? })
    }

    fn coding(
        &mut self,
        metric: Metric,
        dim: usize,
        kind: u8,
        bits: u32,
        code_dim: usize,
        length: f32,
    ) -> Result<Coding, FormatError> {
        let space = |map| Space { metric, dim, length, map };
        let no_layout = || damaged("its codes have an impossible width");
        match kind {
            0 => Ok(Coding::Bits(metric)),
            1 => {
                let lifted = dim + usize::from(metric == Metric::InnerProduct);
                let layout = CodeLayout::new(bits, code_dim).ok_or_else(no_layout)?;
                let (mean, inverse_scale) = (self.floats(lifted)?, self.floats(lifted)?);
                let row_scale = self.floats(code_dim)?;
                let rows = self.take(code_dim.checked_mul(lifted).ok_or_else(no_layout)?)?.to_vec();
                let affine = Affine { mean, inverse_scale, row_scale, rows, ..Affine::default() }.packed();
                Ok(Coding::Scalar(layout, space(Map::Affine(Box::new(affine)))))
            }
            2 if metric == Metric::L2 && bits == 8 && code_dim == dim => {
                let layout = CodeLayout::whole(code_dim).ok_or_else(no_layout)?;
                Ok(Coding::Scalar(layout, space(Map::Shift(self.f32()?))))
            }
            _ => Err(damaged("it has codes of an unknown kind")),
        }
    }

    fn efforts(&mut self) -> Result<Vec<EffortStep>, FormatError> {
        let count = self.u32()?;
        if count > STEPS_MAX {
            return Err(damaged("its calibration has too many steps"));
        }
        let steps: Vec<EffortStep> = (0..count)
            .map(|_| {
                let (recall, stop) = (self.f32()?, f32::from_bits(self.u32()?));
                Ok(EffortStep { recall, stop, beam: self.u32()?, rerank: self.u32()?, codes: self.u32()? })
            })
            .collect::<Result<_, FormatError>>()?;
        if steps.iter().any(|step| step.beam > BEAM_MAX || step.rerank > BEAM_MAX || step.stop.is_nan()) {
            return Err(damaged("its calibration has an impossible effort"));
        }
        Ok(steps)
    }

    fn outliers(&mut self, rows: usize) -> Result<Vec<u32>, FormatError> {
        let count = self.u32()? as usize;
        if self.0.len() / 4 < count {
            return Err(damaged("its head is cut off"));
        }
        let outliers = (0..count).map(|_| self.u32()).collect::<Result<Vec<u32>, FormatError>>()?;
        let is_ascending = outliers.is_sorted_by(|one, other| one < other);
        if !is_ascending || outliers.last().is_some_and(|last| *last as usize >= rows) {
            return Err(damaged("its rows without a code do not fit"));
        }
        Ok(outliers)
    }

    fn far(&mut self) -> Result<Vec<Far>, FormatError> {
        let count = self.u32()?;
        if count > FAR_MAX {
            return Err(damaged("its calibration has too many kinds of queries"));
        }
        (0..count).map(|_| Ok(Far { beside: self.f32()?, efforts: self.efforts()? })).collect()
    }
}

fn metric_number(metric: Metric) -> u8 {
    match metric {
        Metric::L2 => 0,
        Metric::Cosine => 1,
        Metric::InnerProduct => 2,
        Metric::L1 => 3,
        Metric::Hamming => 4,
        Metric::Jaccard => 5,
    }
}

fn element_number(element: ElementType) -> u8 {
    match element {
        ElementType::F32 => 0,
        ElementType::F16 => 1,
        ElementType::I8 => 2,
        ElementType::U8 => 3,
        ElementType::Bits => 4,
    }
}

/// CRC-32C by a table of 16: the head is small, and read once.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let (mut table, mut index) = ([0_u32; 16], 0);
        while index < 16 {
            let (mut value, mut bit) = (index as u32, 0);
            while bit < 4 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        let crc = crc ^ u32::from(*byte);
        let crc = crc >> 4 ^ TABLE[(crc & 15) as usize];
        crc >> 4 ^ TABLE[(crc & 15) as usize]
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
