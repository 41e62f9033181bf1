//! Vectors as values: whatever SQL hands over where a vector is expected (vectors, lists, texts) as one
//! contiguous block for the kernels. Types are in `vector_type.rs`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float16Array, Float32Array, Int8Array, UInt8Array};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Int8Type, UInt8Type};
use datafusion::common::{exec_datafusion_err, exec_err};
use datafusion::error::Result;
use half::f16;
use kernels::Vectors;

use crate::vector_type::{DIM_MAX, Element, VectorType};

/// A column of vectors of one type, row-major and without gaps; rows without a vector hold zeros.
#[derive(Debug, Clone)]
pub struct VectorArray {
    values: Values,
    /// Dimensions of each vector; bits for bit vectors.
    pub dim: usize,
    /// Rows.
    pub rows: usize,
    /// Which rows have a vector; all of them if absent.
    pub nulls: Option<NullBuffer>,
}

#[derive(Debug, Clone)]
enum Values {
    Float32(ScalarBuffer<f32>),
    Float16(ScalarBuffer<f16>),
    Int8(ScalarBuffer<i8>),
    UInt8(ScalarBuffer<u8>),
    Bit(ScalarBuffer<u8>),
}

/// True if values of this type can stand for a vector: vectors, lists of numbers, text, and NULL.
pub fn may_be_vector(data_type: &DataType) -> bool {
    match data_type {
        DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => {
            item.data_type().is_numeric() || item.data_type().is_null()
        }
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        _ => false,
    }
}

impl VectorArray {
    /// Reads an array as vectors. `expected` is the type on the other side, if known: texts and lists are
    /// read as bits where bits are expected, and their dimension is checked against it.
    ///
    /// No copy for an array of a vector type whose rows are all valid.
    ///
    /// # Errors
    /// A text that is no vector, a list of another length, elements that are no finite numbers.
    pub fn read(array: &ArrayRef, field: &Field, expected: Option<VectorType>) -> Result<Self> {
        if let Some(own) = VectorType::of_field(&field.clone().with_data_type(array.data_type().clone())) {
            // A parameter of packed bytes stands for bits where bits are expected.
            let packed = expected
                .is_some_and(|e| e.element == Element::Bit && own.element == Element::UInt8 && e.dim == own.dim * 8);
            let own = if packed { expected.unwrap_or(own) } else { own };
            return Ok(Self::of_vectors(array.as_fixed_size_list(), own));
        }
        match array.data_type() {
            DataType::Null => Ok(Self::all_null(array.len(), expected)),
            DataType::Utf8 => Self::of_rows(
                array.as_string::<i32>().iter().map(|t| t.map(|t| parse(t, expected)).transpose()),
                expected,
            ),
            DataType::LargeUtf8 => Self::of_rows(
                array.as_string::<i64>().iter().map(|t| t.map(|t| parse(t, expected)).transpose()),
                expected,
            ),
            DataType::Utf8View => Self::of_rows(
                array.as_string_view().iter().map(|t| t.map(|t| parse(t, expected)).transpose()),
                expected,
            ),
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
                Self::of_rows((0..array.len()).map(|row| list_row(array, row)), expected)
            }
            other => exec_err!("a vector was expected, not a value of type {other}"),
        }
    }

    fn of_vectors(list: &FixedSizeListArray, vector: VectorType) -> Self {
        let length = list.value_length() as usize;
        let values = list.values().slice(list.offset() * length, list.len() * length);
        let nulls = NullBuffer::union(list.nulls(), element_nulls(&values, length, list.len()).as_ref());
        let values = match vector.element {
            Element::Float32 => Values::Float32(values.as_primitive::<Float32Type>().values().clone()),
            Element::Float16 => Values::Float16(values.as_primitive::<Float16Type>().values().clone()),
            Element::Int8 => Values::Int8(values.as_primitive::<Int8Type>().values().clone()),
            Element::UInt8 => Values::UInt8(values.as_primitive::<UInt8Type>().values().clone()),
            Element::Bit => Values::Bit(values.as_primitive::<UInt8Type>().values().clone()),
        };
        Self { values, dim: vector.dim, rows: list.len(), nulls }
    }

    fn all_null(rows: usize, expected: Option<VectorType>) -> Self {
        let vector = expected.unwrap_or(VectorType { element: Element::Float32, dim: 1 });
        let values = match vector.element {
            Element::Bit => Values::Bit(vec![0; rows * vector.dim / 8].into()),
            _ => Values::Float32(vec![0.0; rows * vector.dim].into()),
        };
        Self { values, dim: vector.dim, rows, nulls: Some(NullBuffer::new_null(rows)) }
    }

    /// Collects rows of numbers; the first row sets the dimension where none is expected.
    fn of_rows(rows: impl Iterator<Item = Result<Option<Vec<f32>>>>, expected: Option<VectorType>) -> Result<Self> {
        let rows: Vec<Option<Vec<f32>>> = rows.collect::<Result<_>>()?;
        let bits = expected.is_some_and(|vector| vector.element == Element::Bit);
        let dim = match expected {
            Some(vector) => vector.dim,
            None => rows.iter().flatten().next().map_or(1, Vec::len),
        };
        let mut values = Vec::with_capacity(rows.len() * dim);
        let mut valid = Vec::with_capacity(rows.len());
        for row in &rows {
            valid.push(row.is_some());
            match row {
                Some(row) if row.len() != dim => {
                    return exec_err!("a vector of {dim} dimensions was expected, but one has {}", row.len());
                }
                Some(row) => values.extend_from_slice(row),
                None => values.resize(values.len() + dim, 0.0),
            }
        }
        let values = if bits { Values::Bit(pack_bits(&values)?.into()) } else { Values::Float32(values.into()) };
        let nulls = NullBuffer::from(valid);
        Ok(Self { values, dim, rows: rows.len(), nulls: (nulls.null_count() > 0).then_some(nulls) })
    }

    /// The vector type of what was read.
    pub fn vector_type(&self) -> VectorType {
        let element = match self.values {
            Values::Float32(_) => Element::Float32,
            Values::Float16(_) => Element::Float16,
            Values::Int8(_) => Element::Int8,
            Values::UInt8(_) => Element::UInt8,
            Values::Bit(_) => Element::Bit,
        };
        VectorType { element, dim: self.dim }
    }

    /// All rows as the kernels take them: row-major, `rows × dim` elements.
    pub fn vectors(&self) -> Vectors<'_> {
        match &self.values {
            Values::Float32(values) => Vectors::F32(values),
            Values::Float16(values) => Vectors::F16(values),
            Values::Int8(values) => Vectors::I8(values),
            Values::UInt8(values) => Vectors::U8(values),
            Values::Bit(values) => Vectors::Bits(values),
        }
    }

    /// One row, `dim` elements.
    pub fn vector(&self, row: usize) -> Vectors<'_> {
        let width = if matches!(self.values, Values::Bit(_)) { self.dim / 8 } else { self.dim };
        let range = row * width..(row + 1) * width;
        match &self.values {
            Values::Float32(values) => Vectors::F32(&values[range]),
            Values::Float16(values) => Vectors::F16(&values[range]),
            Values::Int8(values) => Vectors::I8(&values[range]),
            Values::UInt8(values) => Vectors::U8(&values[range]),
            Values::Bit(values) => Vectors::Bits(&values[range]),
        }
    }

    /// True if the row has a vector.
    pub fn is_valid(&self, row: usize) -> bool {
        self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row))
    }

    /// The elements as `f32`, exact but for nothing: every element type but bits fits; bits become 0 and 1.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.values {
            Values::Float32(values) => values.to_vec(),
            Values::Float16(values) => values.iter().map(|value| value.to_f32()).collect(),
            Values::Int8(values) => values.iter().map(|value| f32::from(*value)).collect(),
            Values::UInt8(values) => values.iter().map(|value| f32::from(*value)).collect(),
            Values::Bit(values) => {
                values.iter().flat_map(|byte| (0..8).map(move |bit| f32::from((byte >> (7 - bit)) & 1))).collect()
            }
        }
    }

    /// The vectors as an Arrow array of `target`'s type.
    ///
    /// # Errors
    /// Another dimension; an element that the target cannot hold: a fraction or a number out of range for bytes,
    /// one beyond ±65,504 for 16-bit floats, anything but 0 and 1 for bits, NaN or infinity. Floats are rounded
    /// to 16-bit floats.
    pub fn cast(&self, target: VectorType) -> Result<FixedSizeListArray> {
        if self.dim != target.dim {
            return exec_err!("a vector of {} dimensions was expected, but one has {}", target.dim, self.dim);
        }
        let values: ArrayRef = match (&self.values, target.element) {
            (Values::Float32(values), Element::Float32) => Arc::new(Float32Array::new(values.clone(), None)),
            (Values::Float16(values), Element::Float16) => Arc::new(Float16Array::new(values.clone(), None)),
            (Values::Int8(values), Element::Int8) => Arc::new(Int8Array::new(values.clone(), None)),
            (Values::UInt8(values), Element::UInt8) | (Values::Bit(values), Element::Bit) => {
                Arc::new(UInt8Array::new(values.clone(), None))
            }
            _ => cast_elements(&self.to_f32(), target.element)?,
        };
        if let Some(element) = kernels::first_non_finite(self.vectors()) {
            return exec_err!(
                "element {} of a vector is NaN or infinite; vectors hold finite numbers only",
                element % self.dim.max(1) + 1
            );
        }
        let DataType::FixedSizeList(item, length) = target.data_type() else {
            return exec_err!("{target} is not held as a list");
        };
        Ok(FixedSizeListArray::try_new(item, length, values, self.nulls.clone())?)
    }
}

fn cast_elements(values: &[f32], element: Element) -> Result<ArrayRef> {
    let whole = |low: f32, high: f32| {
        let wrong = values.iter().find(|value| value.fract() != 0.0 || !(low..=high).contains(*value));
        wrong.map_or(Ok(()), |value| {
            exec_err!("element {value} is no whole number from {low} to {high}, which {} needs", element.name())
        })
    };
    Ok(match element {
        Element::Float32 => Arc::new(Float32Array::from(values.to_vec())),
        Element::Float16 => {
            let max = f16::MAX.to_f32();
            if let Some(value) = values.iter().find(|value| value.abs() > max) {
                return exec_err!("element {value} lies beyond ±{max}, the range of FLOAT16");
            }
            Arc::new(Float16Array::from_iter_values(values.iter().map(|value| f16::from_f32(*value))))
        }
        Element::Int8 => {
            whole(-128.0, 127.0)?;
            Arc::new(Int8Array::from_iter_values(values.iter().map(|value| *value as i8)))
        }
        Element::UInt8 => {
            whole(0.0, 255.0)?;
            Arc::new(UInt8Array::from_iter_values(values.iter().map(|value| *value as u8)))
        }
        Element::Bit => Arc::new(UInt8Array::from(pack_bits(values)?)),
    })
}

/// Packs zeros and ones, eight to a byte, the first in the highest bit.
fn pack_bits(values: &[f32]) -> Result<Vec<u8>> {
    if let Some(value) = values.iter().find(|value| **value != 0.0 && **value != 1.0) {
        return exec_err!("element {value} is no bit; a bit vector holds 0 and 1");
    }
    Ok(values
        .chunks(8)
        .map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | ((*bit as u8) << (7 - at))))
        .collect())
}

/// A vector with a NULL element is no vector.
fn element_nulls(values: &ArrayRef, length: usize, rows: usize) -> Option<NullBuffer> {
    let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0)?;
    Some(NullBuffer::from_iter((0..rows).map(|row| nulls.slice(row * length, length).null_count() == 0)))
}

fn list_row(array: &ArrayRef, row: usize) -> Result<Option<Vec<f32>>> {
    if array.is_null(row) {
        return Ok(None);
    }
    let values = match array.data_type() {
        DataType::List(_) => array.as_list::<i32>().value(row),
        DataType::LargeList(_) => array.as_list::<i64>().value(row),
        _ => array.as_fixed_size_list().value(row),
    };
    if values.null_count() > 0 {
        return Ok(None);
    }
    let floats = arrow::compute::cast(&values, &DataType::Float32)?;
    Ok(Some(floats.as_primitive::<Float32Type>().values().to_vec()))
}

/// Reads `[0.1, 0.2]`, or `0110` where bits are expected.
///
/// # Errors
/// Anything else, with what is wrong; a dimension other than the expected one, with both.
pub fn parse(text: &str, expected: Option<VectorType>) -> Result<Vec<f32>> {
    let trimmed = text.trim();
    let bits = expected.is_some_and(|vector| vector.element == Element::Bit);
    let elements = if bits && !trimmed.is_empty() && trimmed.bytes().all(|byte| matches!(byte, b'0' | b'1')) {
        trimmed.bytes().map(|byte| f32::from(byte - b'0')).collect()
    } else if bits && !trimmed.starts_with('[') {
        return exec_err!("{} is no bit vector; one is written '0110…' or '[0, 1, 1, 0, …]'", shown(trimmed));
    } else {
        parse_list(trimmed)?
    };
    match expected {
        Some(vector) if vector.dim != elements.len() => {
            exec_err!("a vector of {} dimensions was expected, but the text has {}", vector.dim, elements.len())
        }
        _ => Ok(elements),
    }
}

fn parse_list(text: &str) -> Result<Vec<f32>> {
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .ok_or_else(|| exec_datafusion_err!("{} is no vector; a vector is written '[0.1, 0.2]'", shown(text)))?;
    let elements: Vec<f32> = inner.split(',').map(|element| parse_element(element, text)).collect::<Result<_>>()?;
    if elements.len() > DIM_MAX {
        return exec_err!("a vector has at most {DIM_MAX} dimensions, but the text has {}", elements.len());
    }
    Ok(elements)
}

fn parse_element(element: &str, text: &str) -> Result<f32> {
    let value: f32 = element.trim().parse().map_err(|_| {
        exec_datafusion_err!(
            "{} is no number in the vector {}; a vector is written '[0.1, 0.2]'",
            shown(element.trim()),
            shown(text)
        )
    })?;
    if value.is_finite() {
        Ok(value)
    } else {
        exec_err!("element {} of the vector {} is no finite number", element.trim(), shown(text))
    }
}

/// At most the first characters of a text, quoted.
fn shown(text: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("'{}…'", &text[..end]),
        None => format!("'{text}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_vectors_or_clear_errors() {
        for (text, expected) in [
            ("[1, 2.5,-3e-1]", Ok(vec![1.0, 2.5, -0.3])),
            (" [1] ", Ok(vec![1.0])),
            ("[]", Err("no number")),
            ("[1,,2]", Err("no number")),
            ("1,2", Err("no vector")),
            ("[1,NaN]", Err("no finite number")),
            ("[1e99]", Err("no finite number")),
            ("[1,x]", Err("'x' is no number")),
        ] {
            match (parse(text, None), expected) {
                (Ok(got), Ok(wanted)) => assert_eq!(got, wanted, "{text}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{text}: {error}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn bits_are_read_from_digits_and_lists() {
        let bits = Some(VectorType { element: Element::Bit, dim: 8 });
        for text in ["10110000", "[1,0,1,1,0,0,0,0]"] {
            let array: ArrayRef = Arc::new(arrow::array::StringArray::from(vec![text]));
            let read = VectorArray::read(&array, &Field::new("q", DataType::Utf8, true), bits);
            assert!(matches!(read.as_ref().map(VectorArray::vectors), Ok(Vectors::Bits([0b1011_0000]))), "{read:?}");
        }
    }

    #[test]
    fn casts_refuse_what_the_element_cannot_hold() {
        let read = |text: &str| {
            let array: ArrayRef = Arc::new(arrow::array::StringArray::from(vec![text]));
            VectorArray::read(&array, &Field::new("q", DataType::Utf8, true), None)
        };
        for (text, element) in [
            ("[0.5]", Element::Int8),
            ("[300]", Element::UInt8),
            ("[-129]", Element::Int8),
            ("[70000]", Element::Float16),
        ] {
            let cast = read(text).and_then(|vector| vector.cast(VectorType { element, dim: 1 }));
            assert!(cast.is_err(), "{text} as {element:?}");
        }
    }
}
