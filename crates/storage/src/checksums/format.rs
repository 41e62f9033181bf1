//! The bytes of one sidecar, and the sums in it. Nothing is read or written here; when and where sidecars are written
//! is in `sidecars.rs`.
//!
//! All numbers are little-endian:
//!
//! ```text
//! at      bytes  what
//! 0       8      magic "SAGITCRC"
//! 8       2      version of the format, 1
//! 10      1      power of two of the bytes in a block, 16
//! 11      1      flags; bit 0: the sums were taken from a file that somebody else had written
//! 12      4      zero
//! 16      8      bytes of the file, b
//! 24      4·n    CRC-32C of each block of 64 KiB, n = ⌈b / 65536⌉; the last block may be shorter
//! 24+4·n  4      CRC-32C of everything before
//! ```
//!
//! CRC-32C is CRC-32/ISCSI (Castagnoli). A reader refuses a newer version, another length and unknown flags.

use std::fmt;

use bytes::Bytes;
use object_store::PutPayload;

/// Bytes that one sum covers: also the least that a verified read fetches.
pub(crate) const BLOCK_BYTES: u64 = 64 << 10;

/// Version this program writes and the newest it reads.
pub(crate) const VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"SAGITCRC";
const BLOCK_POWER: u8 = 16;
const HEAD_BYTES: usize = 24;
const SUM_BYTES: usize = 4;
const FLAG_ADOPTED: u8 = 1;

const _: () = assert!(BLOCK_BYTES == 1 << BLOCK_POWER);

/// CRC-32C of some bytes. Cost: 5 to 30 GB/s with carry-less multiplication, which is looked for at run time.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The sums of one file's content.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    /// Bytes of the file.
    pub(crate) bytes: u64,
    /// One for each block.
    pub(crate) blocks: Box<[u32]>,
    /// The file was written by another program; the sums are of what was found.
    pub(crate) is_adopted: bool,
}

/// Why bytes are no sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// Of a newer version.
    Newer(u16),
    /// Cut short, or other bytes than were written.
    Damaged,
}

impl fmt::Display for FormatError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer(version) => {
                write!(formatter, "it has version {version}, this program reads up to {VERSION}; use a newer sagitta")
            }
            Self::Damaged => formatter.write_str("it is damaged itself"),
        }
    }
}

impl Sums {
    /// The sums of a whole content.
    pub(crate) fn of(payload: &PutPayload) -> Self {
        let mut summer = Summer::default();
        payload.iter().for_each(|bytes| summer.update(bytes));
        summer.finish()
    }

    /// True if both are of the same content, as far as sums can tell.
    pub(crate) fn is_same_content(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.blocks == other.blocks
    }

    /// What tells two contents apart in a name: the size and the CRC-32C of the sums. For contents of one block, no
    /// two with different sums share a name.
    pub(crate) fn name(&self) -> String {
        let all: Vec<u8> = self.blocks.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        format!("{:x}-{:08x}", self.bytes, crc32c(&all))
    }

    /// The first block in `bytes` that is not what was summed; `bytes` starts at block `first` and ends at the end of
    /// a block or of the file.
    pub(crate) fn bad_block(&self, first: u64, bytes: &[u8]) -> Option<u64> {
        let blocks = bytes.chunks(block_bytes());
        (first..).zip(blocks).find_map(|(number, block)| {
            let sum = usize::try_from(number).ok().and_then(|number| self.blocks.get(number));
            (sum != Some(&crc32c(block))).then_some(number)
        })
    }

    /// Bytes that this holds in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.blocks.len() * SUM_BYTES
    }

    /// The bytes of the sidecar.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(HEAD_BYTES + (self.blocks.len() + 1) * SUM_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.push(BLOCK_POWER);
        out.push(if self.is_adopted { FLAG_ADOPTED } else { 0 });
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.bytes.to_le_bytes());
        for sum in &self.blocks {
            out.extend_from_slice(&sum.to_le_bytes());
        }
        let own = crc32c(&out);
        out.extend_from_slice(&own.to_le_bytes());
        out.into()
    }

    /// Reads a sidecar.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (body, own) = bytes.split_last_chunk::<SUM_BYTES>().ok_or(FormatError::Damaged)?;
        if crc32c(body) != u32::from_le_bytes(*own) || !body.starts_with(MAGIC) {
            return Err(FormatError::Damaged);
        }
        let version = field::<2>(body, 8).map(u16::from_le_bytes).ok_or(FormatError::Damaged)?;
        if version > VERSION {
            return Err(FormatError::Newer(version));
        }
        let [power, flags] = field::<2>(body, 10).ok_or(FormatError::Damaged)?;
        let size = field::<8>(body, 16).map(u64::from_le_bytes).ok_or(FormatError::Damaged)?;
        let sums = body.get(HEAD_BYTES..).ok_or(FormatError::Damaged)?;
        let expected = usize::try_from(size.div_ceil(BLOCK_BYTES)).ok().and_then(|n| n.checked_mul(SUM_BYTES));
        if power != BLOCK_POWER || flags & !FLAG_ADOPTED != 0 || expected != Some(sums.len()) {
            return Err(FormatError::Damaged);
        }
        let blocks = sums.as_chunks::<SUM_BYTES>().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect();
        Ok(Self { bytes: size, blocks, is_adopted: flags & FLAG_ADOPTED != 0 })
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N).and_then(|found| found.try_into().ok())
}

/// Bytes of a block as a length in memory.
const fn block_bytes() -> usize {
    1 << BLOCK_POWER
}

/// Sums a content that comes in pieces. Holds back at most one block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summer {
    blocks: Vec<u32>,
    begun: Vec<u8>,
    bytes: u64,
}

impl Summer {
    /// Takes the next bytes.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if !self.begun.is_empty() {
            let missing = (block_bytes() - self.begun.len()).min(bytes.len());
            let (now, later) = bytes.split_at(missing);
            self.begun.extend_from_slice(now);
            bytes = later;
            if self.begun.len() < block_bytes() {
                return;
            }
            self.blocks.push(crc32c(&self.begun));
            self.begun.clear();
        }
        let whole = bytes.chunks_exact(block_bytes());
        self.begun.extend_from_slice(whole.remainder());
        self.blocks.extend(whole.map(crc32c));
    }

    /// The sums of all that was taken.
    pub(crate) fn finish(mut self) -> Sums {
        if !self.begun.is_empty() {
            self.blocks.push(crc32c(&self.begun));
        }
        Sums { bytes: self.bytes, blocks: self.blocks.into_boxed_slice(), is_adopted: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
    }

    fn sums(length: usize) -> Sums {
        Sums::of(&PutPayload::from(content(length)))
    }

    #[test]
    fn known_vectors_give_known_sums() {
        // RFC 3720, appendix B.4, and the catalogue's check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn a_sidecar_reads_as_it_was_written_and_any_flipped_bit_or_cut_is_seen() {
        for length in [0, 1, 65535, 65536, 65537, 200_000] {
            let written = Sums { is_adopted: length == 1, ..sums(length) };
            let bytes = written.encode();
            let read = Sums::decode(&bytes).unwrap();
            assert!(read.is_same_content(&written) && read.is_adopted == written.is_adopted, "{length}");
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Sums::decode(&flipped).err(), Some(FormatError::Damaged), "{length} {bit}");
            }
            for end in 0..bytes.len() {
                assert!(Sums::decode(&bytes[..end]).is_err(), "{length} {end}");
            }
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let bytes = Sums::of(&PutPayload::from_static(b"123456789")).encode();
        let golden = "534147495443524301001000000000000900000000000000839206e3";
        let hex: String = bytes[..28].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((hex.as_str(), bytes.len()), (golden, 32));
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = sums(10).encode().to_vec();
        bytes[8] = 2;
        let body = bytes.len() - 4;
        let own = crc32c(&bytes[..body]).to_le_bytes();
        bytes[body..].copy_from_slice(&own);
        assert_eq!(Sums::decode(&bytes).err(), Some(FormatError::Newer(2)));
    }

    #[test]
    fn pieces_of_any_length_give_the_sums_of_the_whole() {
        let whole = content(300_000);
        for piece in [1000, 65535, 65536, 65537, 131_072, 299_999] {
            let mut summer = Summer::default();
            whole.chunks(piece).for_each(|bytes| summer.update(bytes));
            assert!(summer.finish().is_same_content(&sums(300_000)), "{piece}");
        }
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_block() {
        let sums = sums(200_000);
        let whole = content(200_000);
        assert_eq!(sums.bad_block(0, &whole), None);
        assert_eq!(sums.bad_block(2, &whole[131_072..]), None);
        for (at, block) in [(0, 0), (65535, 0), (65536, 1), (199_999, 3)] {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert_eq!(sums.bad_block(0, &flipped), Some(block));
        }
        assert_eq!(sums.bad_block(0, &whole[..199_999]), Some(3), "cut short");
        assert_eq!(sums.bad_block(4, b"more"), Some(4), "too long");
    }
}
