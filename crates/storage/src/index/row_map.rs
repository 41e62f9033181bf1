//! Row maps: where the rows of a data file came from, when they were copied together with their vectors. A segment that
//! covers the old file then covers the new one. Written before the change is committed, under the names of files that only
//! this change can commit: if it fails, nothing ever asks for the map. Who writes them is `moved.rs`.
//!
//! A file `_ann/<uuid>.map`, all numbers little-endian:
//!
//! ```text
//! at   bytes  what
//! 0    8      magic "SAGITMAP"
//! 8    4      version of the format, 1
//! 12   4      field (i32)
//! 16   …      sources (u32), and for each: bytes (u16), UTF-8
//!             targets (u32), and for each: bytes (u16), UTF-8; rows (u32); runs (u32), and for each, in LEB128:
//!               rows of the target before it that came from nowhere, its rows, number of its source,
//!               its offset in the source less the end of the run before, in zigzag
//! end  4      CRC-32C of everything before
//! ```

use crate::checksums::format::crc32c;

/// The version that this program writes, and the newest that it reads.
pub(crate) const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"SAGITMAP";
const HEAD_BYTES: usize = 16;
const SUM_BYTES: usize = 4;

/// Where the rows of some data files came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowMap {
    pub(crate) field_id: i32,
    /// Names of data files.
    pub(crate) sources: Vec<String>,
    pub(crate) targets: Vec<Target>,
}

/// A data file that holds copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) file: String,
    pub(crate) rows: u32,
    /// By offset; they do not overlap.
    pub(crate) runs: Vec<MapRun>,
}

/// Rows that stood side by side and still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapRun {
    /// Of the first row in the target.
    pub(crate) offset: u32,
    pub(crate) rows: u32,
    /// Which source.
    pub(crate) source: u32,
    /// Of the first row in the source.
    pub(crate) source_offset: u32,
}

impl Target {
    /// Adds rows behind those that are there.
    pub(crate) fn push(&mut self, run: MapRun) {
        if run.rows == 0 {
            return;
        }
        if let Some(last) = self.runs.last_mut()
            && last.source == run.source
            && last.offset + last.rows == run.offset
            && last.source_offset + last.rows == run.source_offset
        {
            last.rows += run.rows;
            return;
        }
        self.runs.push(run);
    }
}

impl RowMap {
    /// The number of a source, which is added if it is new.
    pub(crate) fn source(&mut self, file: &str) -> u32 {
        let found = self.sources.iter().rposition(|known| known == file);
        let at = found.unwrap_or_else(|| {
            self.sources.push(file.to_owned());
            self.sources.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.field_id.to_le_bytes());
        put_count(&mut out, self.sources.len());
        self.sources.iter().for_each(|source| put_text(&mut out, source));
        put_count(&mut out, self.targets.len());
        for target in &self.targets {
            put_text(&mut out, &target.file);
            out.extend_from_slice(&target.rows.to_le_bytes());
            put_count(&mut out, target.runs.len());
            let (mut end, mut source_end) = (0_u32, 0_i64);
            for run in &target.runs {
                put_number(&mut out, u64::from(run.offset - end));
                put_number(&mut out, u64::from(run.rows));
                put_number(&mut out, u64::from(run.source));
                let step = i64::from(run.source_offset) - source_end;
                put_number(&mut out, ((step << 1) ^ (step >> 63)).cast_unsigned());
                end = run.offset + run.rows;
                source_end = i64::from(run.source_offset) + i64::from(run.rows);
            }
        }
        let sum = crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a map.
    ///
    /// # Errors
    /// What is the matter with the bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let damaged = || "it is not what was written".to_owned();
        let (body, sum) = bytes.split_last_chunk::<SUM_BYTES>().ok_or_else(damaged)?;
        if body.len() < HEAD_BYTES || !body.starts_with(MAGIC) {
            return Err(damaged());
        }
        let mut rest = Rest(&body[MAGIC.len()..]);
        let version = rest.number().map(u32::from_le_bytes).ok_or_else(damaged)?;
        if version > VERSION {
            return Err(format!("it has format {version} and this program reads up to {VERSION}"));
        }
        if crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(damaged());
        }
        let map = rest.map().filter(|_| rest.0.is_empty());
        map.ok_or_else(|| "it does not add up".to_owned())
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

/// Names are Lance's, and short.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.get(..text.len().min(usize::from(u16::MAX))).unwrap_or_default().as_bytes();
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Bytes that are read from the front. `None` where they end too early or make no sense.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn leb(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.number()?;
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self) -> Option<String> {
        let bytes = usize::from(u16::from_le_bytes(self.number()?));
        String::from_utf8(self.take(bytes)?.to_vec()).ok()
    }

    fn map(&mut self) -> Option<RowMap> {
        let mut map = RowMap { field_id: i32::from_le_bytes(self.number()?), ..RowMap::default() };
        // A count is believed one by one: it may be anything.
        for _ in 0..u32::from_le_bytes(self.number()?) {
            map.sources.push(self.text()?);
        }
        for _ in 0..u32::from_le_bytes(self.number()?) {
            let target = self.target(map.sources.len())?;
            map.targets.push(target);
        }
        Some(map)
    }

    fn target(&mut self, sources: usize) -> Option<Target> {
        let mut target = Target { file: self.text()?, rows: u32::from_le_bytes(self.number()?), runs: vec![] };
        let (mut end, mut source_end) = (0_u32, 0_i64);
        for _ in 0..u32::from_le_bytes(self.number()?) {
            let offset = end.checked_add(u32::try_from(self.leb()?).ok()?)?;
            let rows = u32::try_from(self.leb()?).ok()?;
            let source = u32::try_from(self.leb()?).ok().filter(|source| (*source as usize) < sources)?;
            let zigzag = self.leb()?;
            let step = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
            let source_offset = u32::try_from(source_end.checked_add(step)?).ok()?;
            end = offset.checked_add(rows).filter(|end| *end <= target.rows)?;
            source_end = i64::from(source_offset.checked_add(rows)?);
            target.runs.push(MapRun { offset, rows, source, source_offset });
        }
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::golden;

    fn sample() -> RowMap {
        let mut map = RowMap { field_id: 4, ..RowMap::default() };
        let mut target = Target { file: "c.lance".to_owned(), rows: 1_000, runs: vec![] };
        let runs =
            [(0, 300, "a.lance", 5), (300, 100, "a.lance", 305), (450, 50, "b.lance", 0), (500, 1, "a.lance", 1)];
        for (offset, rows, file, source_offset) in runs {
            let source = map.source(file);
            target.push(MapRun { offset, rows, source, source_offset });
        }
        map.targets = vec![target, Target { file: "d.lance".to_owned(), rows: 3, runs: vec![] }];
        map
    }

    #[test]
    fn a_map_reads_as_it_was_written_and_any_flipped_bit_or_cut_is_seen() {
        let map = sample();
        assert_eq!((map.targets[0].runs.len(), map.targets[0].runs[0].rows), (3, 400));
        let bytes = map.encode();
        assert_eq!(RowMap::decode(&bytes), Ok(map));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(RowMap::decode(&flipped).is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(RowMap::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let golden = golden("row-map-1.map", &sample().encode());
        assert_eq!(RowMap::decode(&golden), Ok(sample()));
        assert_eq!(sample().encode(), golden);
    }

    #[test]
    fn whatever_a_map_says_with_a_right_sum_it_is_read_or_refused() {
        let bytes = sample().encode();
        let end = bytes.len() - SUM_BYTES;
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut forged = bytes.clone();
            for _ in 0..3 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = HEAD_BYTES + usize::try_from(random >> 33).unwrap() % (end - HEAD_BYTES);
                forged[at] = (random >> 20) as u8;
            }
            let sum = crc32c(&forged[..end]);
            forged[end..].copy_from_slice(&sum.to_le_bytes());
            if let Ok(map) = RowMap::decode(&forged) {
                for target in &map.targets {
                    let ends = target.runs.iter().map(|run| run.offset + run.rows);
                    assert!(ends.max().is_none_or(|end| end <= target.rows));
                }
            }
        }
    }
}
