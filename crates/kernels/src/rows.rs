//! A checked block of rows, the padded query beside it, and the place for their sums: what every kernel is called with.

use half::f16;

use crate::error::DistanceError;
use crate::vectors::{ByteElement, Vectors};

/// Virtual lanes of the float sums: element `i` of a vector is added to lane `i mod 16`, on every instruction set.
pub(crate) const LANES: usize = 16;

/// Elements that the integer and the bit kernels take at once.
pub(crate) const BYTES: usize = 64;

/// Sixteen elements as f64, aligned so that no load crosses a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct FloatBlock(pub(crate) [f64; LANES]);

/// Sixty-four byte elements as i16.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct IntegerBlock(pub(crate) [i16; BYTES]);

/// A vector of bytes as i16, padded with zeros to whole blocks.
pub(crate) fn integer_blocks<T: ByteElement>(vector: &[T], blocks: &mut Vec<IntegerBlock>) {
    blocks.clear();
    blocks.extend(vector.chunks(BYTES).map(|chunk| {
        let mut block = IntegerBlock([0; BYTES]);
        block.0.iter_mut().zip(chunk).for_each(|(lane, value)| *lane = value.widen_to_i16());
        block
    }));
}

/// Rows of one type, one after the other, or some of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowBlock<'a, T> {
    values: &'a [T],
    values_per_row: usize,
    rows: usize,
    /// Offsets of the rows meant, all below the number of rows that are there; `None` means all of them.
    selected: Option<&'a [u32]>,
}

impl<'a, T> RowBlock<'a, T> {
    /// Number of rows meant.
    pub(crate) fn len(&self) -> usize {
        self.selected.map_or(self.rows, <[u32]>::len)
    }

    /// The `index`-th of the rows meant.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &'a [T] {
        let row = self.selected.map_or(index, |selected| selected[index] as usize);
        &self.values[row * self.values_per_row..][..self.values_per_row]
    }

    /// The values of all rows that are there.
    pub(crate) fn values(&self) -> &'a [T] {
        self.values
    }

    /// Values of one row, at least 1.
    pub(crate) fn values_per_row(&self) -> usize {
        self.values_per_row
    }

    /// Whether some of the rows are meant and not all of them.
    pub(crate) fn is_selected(&self) -> bool {
        self.selected.is_some()
    }
}

/// A [`RowBlock`] of any element type: whole rows, and selected offsets that are inside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rows<'a> {
    F32(RowBlock<'a, f32>),
    F16(RowBlock<'a, f16>),
    I8(RowBlock<'a, i8>),
    U8(RowBlock<'a, u8>),
    Bits(RowBlock<'a, u8>),
}

/// Runs the same expression on the block of any element type.
macro_rules! each_block {
    ($rows:expr, $block:ident => $run:expr) => {
        match $rows {
            Rows::F32($block) => $run,
            Rows::F16($block) => $run,
            Rows::I8($block) => $run,
            Rows::U8($block) => $run,
            Rows::Bits($block) => $run,
        }
    };
}

impl<'a> Rows<'a> {
    /// All rows of `vectors`, `dim` elements each.
    ///
    /// # Errors
    /// [`DistanceError::RowsLength`] if they are not whole rows.
    pub(crate) fn all(vectors: Vectors<'a>, dim: usize) -> Result<Rows<'a>, DistanceError> {
        let rows = vectors.row_count(dim)?;
        let values_per_row = vectors.element_type().values_per_row(dim);
        Ok(match vectors {
            Vectors::F32(values) => Rows::F32(RowBlock { values, values_per_row, rows, selected: None }),
            Vectors::F16(values) => Rows::F16(RowBlock { values, values_per_row, rows, selected: None }),
            Vectors::I8(values) => Rows::I8(RowBlock { values, values_per_row, rows, selected: None }),
            Vectors::U8(values) => Rows::U8(RowBlock { values, values_per_row, rows, selected: None }),
            Vectors::Bits(values) => Rows::Bits(RowBlock { values, values_per_row, rows, selected: None }),
        })
    }

    /// Number of rows meant.
    pub(crate) fn len(&self) -> usize {
        each_block!(self, block => block.len())
    }

    /// The rows `start..start + count` of these, which must be all rows of their vectors.
    pub(crate) fn range(self, start: usize, count: usize) -> Rows<'a> {
        fn part<T>(block: RowBlock<'_, T>, start: usize, count: usize) -> RowBlock<'_, T> {
            debug_assert!(block.selected.is_none(), "a range of selected rows is taken by select()");
            let values = &block.values[start * block.values_per_row..][..count * block.values_per_row];
            RowBlock { values, rows: count, ..block }
        }
        match self {
            Rows::F32(block) => Rows::F32(part(block, start, count)),
            Rows::F16(block) => Rows::F16(part(block, start, count)),
            Rows::I8(block) => Rows::I8(part(block, start, count)),
            Rows::U8(block) => Rows::U8(part(block, start, count)),
            Rows::Bits(block) => Rows::Bits(part(block, start, count)),
        }
    }

    /// The rows at these offsets alone.
    ///
    /// # Errors
    /// [`DistanceError::RowOutOfBlock`] if an offset is not below the number of rows.
    pub(crate) fn select(self, selected: &'a [u32]) -> Result<Rows<'a>, DistanceError> {
        fn some<'a, T>(block: RowBlock<'a, T>, selected: &'a [u32]) -> RowBlock<'a, T> {
            RowBlock { selected: Some(selected), ..block }
        }
        let rows = self.len();
        if let Some(&selected) = selected.iter().find(|&&offset| offset as usize >= rows) {
            return Err(DistanceError::RowOutOfBlock { selected, rows });
        }
        Ok(match self {
            Rows::F32(block) => Rows::F32(some(block, selected)),
            Rows::F16(block) => Rows::F16(some(block, selected)),
            Rows::I8(block) => Rows::I8(some(block, selected)),
            Rows::U8(block) => Rows::U8(some(block, selected)),
            Rows::Bits(block) => Rows::Bits(some(block, selected)),
        })
    }
}

/// Where a kernel writes its sums, one place per row in each; what goes where, `SumKind` says.
#[derive(Debug)]
pub(crate) struct Sums<'a> {
    pub(crate) first: &'a mut [f64],
    pub(crate) second: &'a mut [f64],
}
