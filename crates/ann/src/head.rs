//! Heads as bytes: little endian, one value after the other, nothing read that is not there.

use crate::payload::FormatError;

/// Writes a head.
#[derive(Debug, Default)]
pub(crate) struct HeadWriter(pub(crate) Vec<u8>);

impl HeadWriter {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, value: f32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn f32s(&mut self, values: &[f32]) {
        values.iter().for_each(|value| self.f32(*value));
    }

    pub(crate) fn u32s(&mut self, values: &[u32]) {
        values.iter().for_each(|value| self.u32(*value));
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// Reads a head. Counts are believed only as far as there are bytes for them.
#[derive(Debug)]
pub(crate) struct HeadReader<'a>(pub(crate) &'a [u8]);

impl<'a> HeadReader<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (bytes, rest) =
            self.0.split_at_checked(len).ok_or_else(|| damaged("the head ends before what it announces"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| damaged("the head ends before what it announces"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    /// A `u32` that counts.
    pub(crate) fn count(&mut self) -> Result<usize, FormatError> {
        self.u32().map(|count| count as usize)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A float that is finite.
    pub(crate) fn f32(&mut self) -> Result<f32, FormatError> {
        let value = self.array().map(f32::from_le_bytes)?;
        if value.is_finite() { Ok(value) } else { Err(damaged("a float of the head is not finite")) }
    }

    pub(crate) fn f32s(&mut self, count: usize) -> Result<Vec<f32>, FormatError> {
        let mut part = HeadReader(self.bytes(count.saturating_mul(4))?);
        (0..count).map(|_| part.f32()).collect()
    }

    pub(crate) fn u32s(&mut self, count: usize) -> Result<Vec<u32>, FormatError> {
        let bytes = self.bytes(count.saturating_mul(4))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// Nothing is left.
    pub(crate) fn end(&self) -> Result<(), FormatError> {
        if self.0.is_empty() { Ok(()) } else { Err(damaged("the head goes on after its end")) }
    }
}

/// The error for bytes that contradict themselves.
pub(crate) fn damaged(what: &str) -> FormatError {
    FormatError::Damaged(what.to_owned())
}

/// The magic and the version at the start of a head; which version it is.
pub(crate) fn check_version(reader: &mut HeadReader<'_>, magic: [u8; 4], latest: u32) -> Result<u32, FormatError> {
    if reader.bytes(4)? != magic {
        return Err(damaged("the head begins with other bytes than those of its family"));
    }
    match reader.u32()? {
        0 => Err(damaged("version 0")),
        found if found > latest => Err(FormatError::Version { found, latest }),
        found => Ok(found),
    }
}
