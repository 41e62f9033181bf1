//! The bytes of a segment file. Nothing is read or written here, and what is in a section nobody knows here.
//!
//! All numbers are little-endian:
//!
//! ```text
//! at   bytes  what
//! 0    8      magic "SAGITSEG"
//! 8    4      version of the format, 1
//! 12   4      bytes of the head, h: all before the first section but the padding
//! 16   8      bytes of the file
//! 24   4      CRC-32C of the 24 bytes before
//! 28   …      family: bytes (u16), UTF-8
//!             index: bytes (u16), UTF-8
//!             field (i32), local rows (u64)
//!             sections (u32), and for each:
//!               tier (u8), place in the file (u64), bytes b (u64), CRC-32C of each block of 64 KiB (u32 · ⌈b / 65536⌉)
//!             units (u32), and for each:
//!               data file: bytes (u16), UTF-8
//!               first local row (u64), rows (u64)
//!               absent rows: bytes (u32), a roaring bitmap in its portable form; no bytes for none
//! h-4  4      CRC-32C of everything before
//! ```
//!
//! Behind the head follow the sections in order, each at the next multiple of 64, or of 4096 if it has 64 KiB or more; zeros
//! between them. The file ends with the last section. A reader refuses a newer version, another length, and whatever overlaps
//! or does not add up.

use std::fmt;

use bytes::Bytes;
use roaring::RoaringBitmap;

use crate::checksums::format::{BLOCK_BYTES, crc32c};

/// Version this program writes and the newest it reads.
pub(crate) const VERSION: u32 = 1;

/// Bytes that tell how long the head is.
pub(crate) const PREFIX_BYTES: usize = 28;

const MAGIC: &[u8; 8] = b"SAGITSEG";
const SUM_BYTES: usize = 4;

/// Where sections begin: a cache line.
const ALIGNMENT: u64 = 64;

/// Where sections of at least [`LARGE_BYTES_MIN`] begin: a page.
const ALIGNMENT_LARGE: u64 = 4096;

const LARGE_BYTES_MIN: u64 = 64 << 10;

/// How much a search needs of a section at once, and so what is kept first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Whole and always.
    Pinned,
    /// In ranges, by nearly every search.
    Hot,
    /// In ranges, for few rows of a search.
    Warm,
}

impl Tier {
    fn code(self) -> u8 {
        match self {
            Self::Pinned => 0,
            Self::Hot => 1,
            Self::Warm => 2,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        [Self::Pinned, Self::Hot, Self::Warm].into_iter().find(|tier| tier.code() == code)
    }
}

/// One part of an index, opaque to all but its family.
#[derive(Clone, Debug)]
pub struct Section {
    /// What is kept first.
    pub tier: Tier,
    /// Its bytes. Wherever they are read, they begin at a multiple of 64.
    pub bytes: Bytes,
}

/// All of a file but the sections' bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    pub(crate) family: String,
    /// The `id` of the index.
    pub(crate) index: String,
    pub(crate) field_id: i32,
    pub(crate) rows: u64,
    pub(crate) sections: Vec<SectionHead>,
    pub(crate) units: Vec<UnitHead>,
    pub(crate) file_bytes: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SectionHead {
    pub(crate) tier: Tier,
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// One for each block.
    pub(crate) sums: Box<[u32]>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UnitHead {
    pub(crate) file: String,
    pub(crate) start: u64,
    pub(crate) rows: u64,
    /// Offsets in the data file of rows that have a vector and are not in the segment.
    pub(crate) absent: RoaringBitmap,
}

/// Why bytes are no segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// Of a newer version.
    Newer(u32),
    /// Other bytes than were written: what is the matter.
    Damaged(&'static str),
}

impl fmt::Display for FormatError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer(version) => {
                write!(formatter, "it has format {version} and this program reads up to {VERSION}; use a newer sagitta")
            }
            Self::Damaged(what) => write!(formatter, "it is damaged: {what}"),
        }
    }
}

impl Head {
    /// The head of a file of these sections, whose places and sums are worked out here. Cost: a pass over their bytes.
    pub(crate) fn of(sections: &[Section], units: Vec<UnitHead>) -> Self {
        let mut head = Self {
            family: String::new(),
            index: String::new(),
            field_id: 0,
            rows: units.iter().map(|unit| unit.rows).sum(),
            sections: Vec::with_capacity(sections.len()),
            units,
            file_bytes: 0,
        };
        for section in sections {
            let block = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
            let sums = section.bytes.chunks(block).map(crc32c).collect();
            head.sections.push(SectionHead { tier: section.tier, start: 0, bytes: section.bytes.len() as u64, sums });
        }
        head
    }

    /// Gives the sections their places behind the head, once all else is known.
    pub(crate) fn laid_out(mut self) -> Self {
        let mut end = self.encode().len() as u64;
        for section in &mut self.sections {
            let alignment = if section.bytes >= LARGE_BYTES_MIN { ALIGNMENT_LARGE } else { ALIGNMENT };
            section.start = end.next_multiple_of(alignment);
            end = section.start + section.bytes;
        }
        self.file_bytes = end;
        self
    }

    /// The bytes of the head. Their number does not depend on the places of the sections.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; PREFIX_BYTES];
        put_text(&mut out, &self.family);
        put_text(&mut out, &self.index);
        out.extend_from_slice(&self.field_id.to_le_bytes());
        out.extend_from_slice(&self.rows.to_le_bytes());
        put_count(&mut out, self.sections.len());
        for section in &self.sections {
            out.push(section.tier.code());
            out.extend_from_slice(&section.start.to_le_bytes());
            out.extend_from_slice(&section.bytes.to_le_bytes());
            section.sums.iter().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
        }
        put_count(&mut out, self.units.len());
        for unit in &self.units {
            put_text(&mut out, &unit.file);
            out.extend_from_slice(&unit.start.to_le_bytes());
            out.extend_from_slice(&unit.rows.to_le_bytes());
            let mut absent = Vec::new();
            if !unit.absent.is_empty() {
                // Writing to memory cannot fail.
                let _ = unit.absent.serialize_into(&mut absent);
            }
            put_count(&mut out, absent.len());
            out.extend_from_slice(&absent);
        }
        let bytes = u32::try_from(out.len() + SUM_BYTES).unwrap_or(u32::MAX);
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.file_bytes.to_le_bytes());
        let sum = crc32c(&out[..24]);
        out[24..PREFIX_BYTES].copy_from_slice(&sum.to_le_bytes());
        let sum = crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a head. `bytes`: the file from its beginning, at least as far as the head goes. `file_bytes`: all of it.
    ///
    /// # Errors
    /// [`FormatError`].
    pub(crate) fn decode(bytes: &[u8], file_bytes: u64) -> Result<Self, FormatError> {
        let length = head_bytes(bytes)?;
        let head = bytes.get(..length).ok_or(FormatError::Damaged("it ends in its head"))?;
        let (body, sum) = head.split_last_chunk::<SUM_BYTES>().ok_or(FormatError::Damaged("its head is too short"))?;
        if crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(FormatError::Damaged("its head is not what was written"));
        }
        let mut rest = Rest(body.get(PREFIX_BYTES..).ok_or(FormatError::Damaged("its head is too short"))?);
        let said = u64::from_le_bytes(field(bytes, 16)?);
        let read = rest.head(said).ok_or(FormatError::Damaged("its head does not add up"))?;
        if !rest.0.is_empty() {
            return Err(FormatError::Damaged("its head does not add up"));
        }
        if said != file_bytes {
            return Err(FormatError::Damaged("it was cut off or added to"));
        }
        read.check(length as u64)?;
        Ok(read)
    }

    fn check(&self, head_bytes: u64) -> Result<(), FormatError> {
        let mut end = head_bytes;
        for section in &self.sections {
            if section.start < end || !section.start.is_multiple_of(ALIGNMENT) {
                return Err(FormatError::Damaged("its sections overlap"));
            }
            end = section.start.checked_add(section.bytes).ok_or(FormatError::Damaged("a section is too long"))?;
        }
        if end.max(head_bytes) != self.file_bytes {
            return Err(FormatError::Damaged("its sections do not fill it"));
        }
        let mut row = 0_u64;
        for unit in &self.units {
            let is_inside = unit.absent.max().is_none_or(|last| u64::from(last) < unit.rows);
            if unit.start != row || !is_inside {
                return Err(FormatError::Damaged("its rows are not counted on"));
            }
            row = row.checked_add(unit.rows).ok_or(FormatError::Damaged("it has too many rows"))?;
        }
        if row == self.rows { Ok(()) } else { Err(FormatError::Damaged("its rows do not add up")) }
    }
}

/// Bytes of the head of a file, from its first [`PREFIX_BYTES`].
///
/// # Errors
/// [`FormatError`].
pub(crate) fn head_bytes(bytes: &[u8]) -> Result<usize, FormatError> {
    let prefix = bytes.get(..PREFIX_BYTES).ok_or(FormatError::Damaged("it is too short"))?;
    if !prefix.starts_with(MAGIC) {
        return Err(FormatError::Damaged("it does not begin as a segment does"));
    }
    let version = u32::from_le_bytes(field(prefix, 8)?);
    if version > VERSION {
        return Err(FormatError::Newer(version));
    }
    if crc32c(&prefix[..24]) != u32::from_le_bytes(field(prefix, 24)?) || version == 0 {
        return Err(FormatError::Damaged("its beginning is not what was written"));
    }
    usize::try_from(u32::from_le_bytes(field(prefix, 12)?)).map_err(|_| FormatError::Damaged("its head is too long"))
}

impl SectionHead {
    /// The first block of `bytes`, which are all of the section's, that is not what was written.
    pub(crate) fn bad_block(&self, bytes: &[u8]) -> Option<usize> {
        let block = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
        let found = bytes.chunks(block).zip(&self.sums).position(|(block, sum)| crc32c(block) != *sum);
        found.or_else(|| (bytes.len() as u64 != self.bytes).then_some(0))
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

/// Names are ours, and short.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.get(..text.len().min(usize::from(u16::MAX))).unwrap_or_default().as_bytes();
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], FormatError> {
    let found = bytes.get(at..at + N).and_then(|found| found.try_into().ok());
    found.ok_or(FormatError::Damaged("it is too short"))
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

    fn count(&mut self) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.number()?)).ok()
    }

    fn text(&mut self) -> Option<String> {
        let bytes = usize::from(u16::from_le_bytes(self.number()?));
        String::from_utf8(self.take(bytes)?.to_vec()).ok()
    }

    fn head(&mut self, file_bytes: u64) -> Option<Head> {
        let (family, index) = (self.text()?, self.text()?);
        let field_id = i32::from_le_bytes(self.number()?);
        let rows = u64::from_le_bytes(self.number()?);
        // A count is believed one by one: it may be anything.
        let mut sections = Vec::new();
        for _ in 0..self.count()? {
            sections.push(self.section()?);
        }
        let mut units = Vec::new();
        for _ in 0..self.count()? {
            units.push(self.unit()?);
        }
        Some(Head { family, index, field_id, rows, sections, units, file_bytes })
    }

    fn section(&mut self) -> Option<SectionHead> {
        let [code] = self.number()?;
        let start = u64::from_le_bytes(self.number()?);
        let bytes = u64::from_le_bytes(self.number()?);
        let blocks = usize::try_from(bytes.div_ceil(BLOCK_BYTES)).ok()?;
        let sums = self.take(blocks.checked_mul(SUM_BYTES)?)?;
        let sums = sums.as_chunks::<SUM_BYTES>().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect();
        Some(SectionHead { tier: Tier::of_code(code)?, start, bytes, sums })
    }

    fn unit(&mut self) -> Option<UnitHead> {
        let file = self.text()?;
        let start = u64::from_le_bytes(self.number()?);
        let rows = u64::from_le_bytes(self.number()?);
        let bytes = self.count()?;
        let stored = self.take(bytes)?;
        let absent =
            if stored.is_empty() { RoaringBitmap::new() } else { RoaringBitmap::deserialize_from(stored).ok()? };
        Some(UnitHead { file, start, rows, absent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::golden;

    /// A whole file.
    fn file(head: &Head, sections: &[Section]) -> Vec<u8> {
        let mut out = head.encode();
        for (section, place) in sections.iter().zip(&head.sections) {
            out.resize(usize::try_from(place.start).unwrap(), 0);
            out.extend_from_slice(&section.bytes);
        }
        out
    }

    fn sample() -> (Head, Vec<Section>) {
        let bytes = |length: usize| Bytes::from((0..length).map(|at| (at * 31 + at / 251) as u8).collect::<Vec<u8>>());
        let section = |tier, length| Section { tier, bytes: bytes(length) };
        let sections = vec![section(Tier::Pinned, 10), section(Tier::Hot, 70_000), section(Tier::Warm, 0)];
        let unit = |file: &str, start, absent: &[u32]| UnitHead {
            file: file.to_owned(),
            start,
            rows: 50,
            absent: absent.iter().copied().collect(),
        };
        let head = Head {
            family: "ivf".to_owned(),
            index: "5b6f".to_owned(),
            field_id: 4,
            ..Head::of(&sections, vec![unit("a.lance", 0, &[]), unit("b.lance", 50, &[3, 49])])
        };
        (head.laid_out(), sections)
    }

    #[test]
    fn a_file_reads_as_it_was_written() {
        let (head, sections) = sample();
        let bytes = file(&head, &sections);
        let read = Head::decode(&bytes, bytes.len() as u64).unwrap();
        assert_eq!(read, head);
        for (section, place) in sections.iter().zip(&read.sections) {
            let start = usize::try_from(place.start).unwrap();
            let alignment = if section.bytes.len() >= 65536 { 4096 } else { 64 };
            assert_eq!(start % alignment, 0);
            assert_eq!(&bytes[start..start + section.bytes.len()], section.bytes);
            assert_eq!(place.bad_block(&section.bytes), None);
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_seen() {
        let (head, sections) = sample();
        let bytes = file(&head, &sections);
        let length = head.encode().len();
        for bit in 0..length * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Head::decode(&flipped, bytes.len() as u64).is_err(), "bit {bit}");
        }
        for end in (0..bytes.len()).filter(|end| *end < length + 64 || end % 997 == 0) {
            assert!(Head::decode(&bytes[..end], end as u64).is_err(), "cut at {end}");
        }
        assert!(Head::decode(&bytes, bytes.len() as u64 + 1).is_err());
        for (section, place) in sections.iter().zip(&head.sections) {
            for at in (0..section.bytes.len()).step_by(1009) {
                let mut flipped = section.bytes.to_vec();
                flipped[at] ^= 0x40;
                assert_eq!(place.bad_block(&flipped), Some(at / 65536), "byte {at}");
            }
        }
    }

    #[test]
    fn whatever_a_head_says_with_a_right_sum_it_is_read_or_refused() {
        let (head, sections) = sample();
        let bytes = file(&head, &sections);
        let end = head.encode().len() - 4;
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut forged = bytes.clone();
            for _ in 0..3 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = PREFIX_BYTES + usize::try_from(random >> 33).unwrap() % (end - PREFIX_BYTES);
                forged[at] = (random >> 20) as u8;
            }
            let sum = crc32c(&forged[..end]);
            forged[end..end + 4].copy_from_slice(&sum.to_le_bytes());
            if let Ok(read) = Head::decode(&forged, forged.len() as u64) {
                let last = read.sections.iter().map(|section| section.start + section.bytes).max();
                assert!(last.is_none_or(|last| last <= forged.len() as u64));
            }
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let (head, sections) = sample();
        let sections = &sections[..1];
        let units = head.units;
        let head =
            Head { family: "ivf".to_owned(), index: "5b6f".to_owned(), field_id: 4, ..Head::of(sections, units) };
        let written = file(&head.laid_out(), sections);
        let golden = golden("segment-1.seg", &written);
        assert_eq!(written, golden);
        let read = Head::decode(&golden, golden.len() as u64).unwrap();
        assert_eq!((read.rows, read.sections.len(), read.units[1].absent.len()), (100, 1, 2));
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let (head, sections) = sample();
        let mut bytes = file(&head, &sections);
        bytes[8] = 2;
        assert_eq!(Head::decode(&bytes, bytes.len() as u64), Err(FormatError::Newer(2)));
    }
}
