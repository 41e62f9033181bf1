//! The text of one value, of any type: what a person reads, or what a CSV field holds.
//! Quoting a field and aligning a cell are the formats' own.

use engine::arrow::array::{Array, AsArray, RecordBatch};
use engine::arrow::buffer::NullBuffer;
use engine::arrow::datatypes::{DataType, Field, UInt8Type};
use engine::arrow::error::ArrowError;
use engine::arrow::util::display::{ArrayFormatter, DurationFormat, FormatOptions};

/// Lists of numbers with more elements than this are shortened for people.
const VECTOR_LEN_SHOWN_WHOLE: usize = 6;
/// What a shortened list shows of its elements.
const ELEMENTS_SHOWN: usize = 3;
/// Bit vectors with more bytes than this are shortened for people.
const BIT_BYTES_SHOWN_WHOLE: usize = 8;
/// What a shortened bit vector shows.
const BIT_BYTES_SHOWN: usize = 4;
/// How a column of bytes says that it is a BITVECTOR, in the metadata of its field; part of what tables store.
const BIT_VECTOR_MARK: (&str, &str) = ("sagitta:type", "bit");

const FORMAT: FormatOptions<'static> = FormatOptions::new()
    .with_display_error(true)
    .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
    .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"))
    .with_datetime_format(Some("%Y-%m-%d %H:%M:%S%.f"))
    .with_duration_format(DurationFormat::Pretty);

/// Who reads the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Long lists of numbers are shortened, texts within lists are bare.
    Person,
    /// Everything is there; lists and structs are JSON.
    Program,
}

/// The columns of a batch, in order, ready to be written as text.
///
/// # Errors
/// A type that has no text form.
pub fn cells_of(batch: &RecordBatch, reader: Reader) -> Result<Vec<Cells<'_>>, ArrowError> {
    let columns = batch.columns().iter().zip(batch.schema_ref().fields());
    columns.map(|(column, field)| Cells::new(column.as_ref(), field, reader)).collect()
}

/// The values of one column of one batch, ready to be written as text.
pub struct Cells<'a> {
    nulls: Option<NullBuffer>,
    shape: Shape<'a>,
}

enum Shape<'a> {
    Scalar { values: ArrayFormatter<'a>, quoted: bool },
    Bits { bytes: &'a [u8], bytes_per_row: usize, quoted: bool, is_shortened: bool },
    List { bounds: Bounds<'a>, elements: Box<Cells<'a>>, shorten: Shorten },
    Struct { names: Vec<&'a str>, fields: Vec<Cells<'a>>, reader: Reader },
}

/// Where the elements of row `i` lie among all elements.
enum Bounds<'a> {
    Fixed(usize),
    Small(&'a [i32]),
    Large(&'a [i64]),
}

/// How a list is shortened when it is long.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shorten {
    Never,
    /// Numbers: a few, rounded.
    Numbers,
    /// Lists: a few, as they are.
    Lists,
}

impl<'a> Cells<'a> {
    /// Prepares the values of `array`, a column of `field`.
    ///
    /// # Errors
    /// A type that has no text form.
    pub fn new(array: &'a dyn Array, field: &'a Field, reader: Reader) -> Result<Cells<'a>, ArrowError> {
        Cells::nested(array, field, reader, false)
    }

    fn nested(array: &'a dyn Array, field: &'a Field, reader: Reader, within: bool) -> Result<Cells<'a>, ArrowError> {
        let list = |bounds, elements: &'a dyn Array, field: &'a Field| {
            let shorten = match (reader, elements.data_type()) {
                (Reader::Person, kind) if kind.is_numeric() => Shorten::Numbers,
                (Reader::Person, kind) if is_list(kind) => Shorten::Lists,
                _ => Shorten::Never,
            };
            let elements = Box::new(Cells::nested(elements, field, reader, true)?);
            Ok::<_, ArrowError>(Shape::List { bounds, elements, shorten })
        };
        let shape = match array.data_type() {
            DataType::FixedSizeList(_, bytes_per_row) if is_bit_vector(field) => Shape::Bits {
                bytes: array.as_fixed_size_list().values().as_primitive::<UInt8Type>().values(),
                bytes_per_row: usize::try_from(*bytes_per_row).unwrap_or_default(),
                quoted: within && reader == Reader::Program,
                is_shortened: reader == Reader::Person,
            },
            DataType::List(field) => {
                let lists = array.as_list::<i32>();
                list(Bounds::Small(lists.value_offsets()), lists.values().as_ref(), field)?
            }
            DataType::LargeList(field) => {
                let lists = array.as_list::<i64>();
                list(Bounds::Large(lists.value_offsets()), lists.values().as_ref(), field)?
            }
            DataType::FixedSizeList(field, length) => {
                let length = usize::try_from(*length).unwrap_or_default();
                list(Bounds::Fixed(length), array.as_fixed_size_list().values().as_ref(), field)?
            }
            DataType::Struct(kinds) => {
                let columns = array.as_struct().columns().iter().zip(kinds);
                let fields = columns.map(|(column, field)| Cells::nested(column.as_ref(), field, reader, true));
                Shape::Struct {
                    names: kinds.iter().map(|kind| kind.name().as_str()).collect(),
                    fields: fields.collect::<Result<_, _>>()?,
                    reader,
                }
            }
            kind => Shape::Scalar {
                values: ArrayFormatter::try_new(array, &FORMAT)?,
                quoted: within && reader == Reader::Program && !(kind.is_numeric() || *kind == DataType::Boolean),
            },
        };
        Ok(Cells { nulls: array.logical_nulls(), shape })
    }

    /// Whether row `row` is NULL.
    pub fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// Appends the text of row `row`, which is not NULL.
    ///
    /// # Errors
    /// A value that has no text form, such as a date beyond the calendar.
    pub fn write(&self, row: usize, out: &mut String) -> Result<(), ArrowError> {
        match &self.shape {
            Shape::Scalar { values, quoted: false } => values.value(row).write(out),
            Shape::Scalar { values, quoted: true } => {
                write_json_text(&values.value(row).try_to_string()?, out);
                Ok(())
            }
            Shape::Bits { bytes, bytes_per_row, quoted, is_shortened } => {
                let quote = if *quoted { "\"" } else { "" };
                out.push_str(quote);
                write_bits(&bytes[row * bytes_per_row..(row + 1) * bytes_per_row], *is_shortened, out);
                out.push_str(quote);
                Ok(())
            }
            Shape::List { bounds, elements, shorten } => write_list(bounds.of(row), elements, *shorten, out),
            Shape::Struct { names, fields, reader } => {
                out.push('{');
                for (place, (name, field)) in names.iter().zip(fields).enumerate() {
                    if place > 0 {
                        out.push_str(", ");
                    }
                    match reader {
                        Reader::Person => out.push_str(name),
                        Reader::Program => write_json_text(name, out),
                    }
                    out.push_str(": ");
                    field.write_or_null(row, out)?;
                }
                out.push('}');
                Ok(())
            }
        }
    }

    fn write_or_null(&self, row: usize, out: &mut String) -> Result<(), ArrowError> {
        if self.is_null(row) {
            out.push_str("null");
            return Ok(());
        }
        self.write(row, out)
    }
}

impl Bounds<'_> {
    fn of(&self, row: usize) -> std::ops::Range<usize> {
        let place = |offset: i64| usize::try_from(offset).unwrap_or_default();
        match self {
            Bounds::Fixed(length) => row * length..(row + 1) * length,
            Bounds::Small(offsets) => place(offsets[row].into())..place(offsets[row + 1].into()),
            Bounds::Large(offsets) => place(offsets[row])..place(offsets[row + 1]),
        }
    }
}

/// Whether a field holds bit vectors: lists of bytes that mean their bits.
pub fn is_bit_vector(field: &Field) -> bool {
    let (key, value) = BIT_VECTOR_MARK;
    let is_marked = field.metadata().get(key).is_some_and(|kind| kind == value);
    is_marked && matches!(field.data_type(), DataType::FixedSizeList(byte, _) if *byte.data_type() == DataType::UInt8)
}

/// Appends bits as SQL reads them back: `10110001`, the highest bit of each byte first.
fn write_bits(bytes: &[u8], is_shortened: bool, out: &mut String) {
    let is_long = is_shortened && bytes.len() > BIT_BYTES_SHOWN_WHOLE;
    let shown = if is_long { &bytes[..BIT_BYTES_SHOWN] } else { bytes };
    for byte in shown {
        out.push_str(&format!("{byte:08b}"));
    }
    if is_long {
        out.push_str(&format!("… {}", bytes.len() * 8));
    }
}

fn is_list(kind: &DataType) -> bool {
    matches!(kind, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..))
}

fn write_list(
    range: std::ops::Range<usize>,
    elements: &Cells<'_>,
    shorten: Shorten,
    out: &mut String,
) -> Result<(), ArrowError> {
    let count = range.len();
    let is_long = shorten != Shorten::Never && count > VECTOR_LEN_SHOWN_WHOLE;
    let shown = if is_long { ELEMENTS_SHOWN } else { count };
    out.push('[');
    for (place, row) in range.take(shown).enumerate() {
        if place > 0 {
            out.push_str(", ");
        }
        let start = out.len();
        elements.write_or_null(row, out)?;
        if is_long && shorten == Shorten::Numbers {
            round_from(out, start);
        }
    }
    if is_long {
        // The count is what a person looks for in a vector that is not all there.
        out.push_str(&format!(", … {count}"));
    }
    out.push(']');
    Ok(())
}

/// Rounds the number that starts at `start` to four decimals, if it has more.
fn round_from(out: &mut String, start: usize) {
    let written = &out[start..];
    if written.len() <= "-0.1234".len() || !written.contains(['.', 'e']) {
        return;
    }
    let Ok(number) = written.parse::<f64>() else { return };
    let rounded = if number != 0.0 && (number.abs() < 1e-3 || number.abs() >= 1e6) {
        format!("{number:.2e}")
    } else {
        let text = format!("{number:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    out.truncate(start);
    out.push_str(&rounded);
}

/// Appends `text` as a JSON string, quotes included.
fn write_json_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}
