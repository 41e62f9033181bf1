//! Borrowed vectors of any element type, and the element types themselves.
//!
//! No arithmetic here; it starts in `scan.rs`.

use half::f16;

use crate::error::DistanceError;

/// Vectors in row-major order: the elements of row 0, then those of row 1, and so on, without gaps.
///
/// How long a row is, the caller says beside it (`dim`). Values need no alignment beyond that of their type.
#[derive(Clone, Copy, Debug)]
pub enum Vectors<'a> {
    /// 4 bytes per element.
    F32(&'a [f32]),
    /// 2 bytes per element.
    F16(&'a [f16]),
    /// 1 byte per element, signed.
    I8(&'a [i8]),
    /// 1 byte per element, unsigned.
    U8(&'a [u8]),
    /// 8 elements per byte; which bit of a byte is which element makes no difference to a distance.
    Bits(&'a [u8]),
}

impl<'a> Vectors<'a> {
    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        match self {
            Vectors::F32(_) => ElementType::F32,
            Vectors::F16(_) => ElementType::F16,
            Vectors::I8(_) => ElementType::I8,
            Vectors::U8(_) => ElementType::U8,
            Vectors::Bits(_) => ElementType::Bits,
        }
    }

    /// Number of stored values: elements, or bytes for bits.
    pub fn len(&self) -> usize {
        match self {
            Vectors::F32(values) => values.len(),
            Vectors::F16(values) => values.len(),
            Vectors::I8(values) => values.len(),
            Vectors::U8(values) | Vectors::Bits(values) => values.len(),
        }
    }

    /// Whether there is no value at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `count` rows from row `start` on, of `dim` elements each; `None` if they are not all there.
    pub fn rows(&self, dim: usize, start: usize, count: usize) -> Option<Vectors<'a>> {
        let width = self.element_type().values_per_row(dim);
        let from = start.checked_mul(width)?;
        let range = from..from.checked_add(count.checked_mul(width)?)?;
        Some(match self {
            Vectors::F32(values) => Vectors::F32(values.get(range)?),
            Vectors::F16(values) => Vectors::F16(values.get(range)?),
            Vectors::I8(values) => Vectors::I8(values.get(range)?),
            Vectors::U8(values) => Vectors::U8(values.get(range)?),
            Vectors::Bits(values) => Vectors::Bits(values.get(range)?),
        })
    }

    /// Number of rows of `dim` elements.
    ///
    /// # Errors
    /// [`DistanceError::RowsLength`] if the values do not divide into whole rows.
    pub(crate) fn row_count(&self, dim: usize) -> Result<usize, DistanceError> {
        let values_per_row = self.element_type().values_per_row(dim);
        if values_per_row == 0 || !self.len().is_multiple_of(values_per_row) {
            return Err(DistanceError::RowsLength { values: self.len(), values_per_row });
        }
        Ok(self.len() / values_per_row)
    }
}

/// The type of an element of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 16-bit float (IEEE binary16).
    F16,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
    /// One bit.
    Bits,
}

impl ElementType {
    /// Every element type, widest first.
    pub const ALL: [ElementType; 5] =
        [ElementType::F32, ElementType::F16, ElementType::I8, ElementType::U8, ElementType::Bits];

    /// A name for messages and benches.
    pub fn name(self) -> &'static str {
        match self {
            ElementType::F32 => "f32",
            ElementType::F16 => "f16",
            ElementType::I8 => "i8",
            ElementType::U8 => "u8",
            ElementType::Bits => "bits",
        }
    }

    /// Bytes that a vector of `dim` elements takes (a part of a byte counts as a byte).
    pub fn bytes_per_row(self, dim: usize) -> usize {
        match self {
            ElementType::F32 => dim.saturating_mul(4),
            ElementType::F16 => dim.saturating_mul(2),
            ElementType::I8 | ElementType::U8 => dim,
            ElementType::Bits => dim.div_ceil(8),
        }
    }

    /// Stored values (see [`Vectors::len`]) of a vector of `dim` elements.
    pub(crate) fn values_per_row(self, dim: usize) -> usize {
        match self {
            ElementType::Bits => dim.div_ceil(8),
            _ => dim,
        }
    }
}

/// A stored value of a vector that is not made of bits; each converts to f64 without loss.
pub(crate) trait Element: Copy + Default {
    /// The value as f64, exactly.
    fn widen(self) -> f64;
}

impl Element for f32 {
    fn widen(self) -> f64 {
        f64::from(self)
    }
}

impl Element for f16 {
    fn widen(self) -> f64 {
        f64::from(self.to_f32_const())
    }
}

impl Element for i8 {
    fn widen(self) -> f64 {
        f64::from(self)
    }
}

impl Element for u8 {
    fn widen(self) -> f64 {
        f64::from(self)
    }
}

/// An element of one byte, for which sums are whole numbers.
pub(crate) trait ByteElement: Element {
    /// The value as i16, exactly.
    fn widen_to_i16(self) -> i16;
}

impl ByteElement for i8 {
    fn widen_to_i16(self) -> i16 {
        i16::from(self)
    }
}

impl ByteElement for u8 {
    fn widen_to_i16(self) -> i16 {
        i16::from(self)
    }
}
