//! Values of the model: how they compare, how SQL writes them, and how they are read from an answer.

use std::cmp::Ordering;
use std::fmt;

use engine::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use engine::arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    TimestampNanosecondType, UInt64Type,
};

use crate::random::Random;

/// How many elements the vectors have.
pub const DIM: usize = 4;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    BigInt,
    Int,
    Text,
    Double,
    Vector,
}

impl Kind {
    pub fn sql(self) -> &'static str {
        match self {
            Self::BigInt => "BIGINT",
            Self::Int => "INT",
            Self::Text => "TEXT",
            Self::Double => "DOUBLE",
            Self::Vector => "VECTOR(4)",
        }
    }
}

/// One value. Equality and order are total, so that rows can be sorted and compared.
#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Int(i64),
    Double(f64),
    Text(String),
    Vector([f32; DIM]),
}

impl Value {
    /// A random value of a type that is not NULL.
    pub fn some(random: &mut Random, kind: Kind) -> Self {
        match kind {
            Kind::BigInt => Self::Int(random.between(0, 1000)),
            Kind::Int => Self::Int(random.between(0, 10)),
            Kind::Double => Self::Double(random.between(-40, 40) as f64 * 0.25),
            Kind::Text => {
                let letters = ["a", "b", "c", "Q", "ü", "'", "%", " ", "ß", "0"];
                let length = random.below(6);
                Self::Text((0..length).map(|_| *random.pick(&letters)).collect())
            }
            Kind::Vector if random.chance(3) => Self::Vector([0.0; DIM]),
            Kind::Vector => Self::Vector(std::array::from_fn(|_| random.between(-6, 7) as f32 * 0.5)),
        }
    }

    /// A random value of a type, one in eight NULL.
    pub fn any(random: &mut Random, kind: Kind) -> Self {
        if random.chance(12) { Self::Null } else { Self::some(random, kind) }
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The number of a key or a count.
    pub fn int(&self) -> Option<i64> {
        if let Self::Int(value) = self { Some(*value) } else { None }
    }

    pub fn double(&self) -> Option<f64> {
        match self {
            Self::Double(value) => Some(*value),
            Self::Int(value) => Some(*value as f64),
            _ => None,
        }
    }

    pub fn vector(&self) -> Option<&[f32; DIM]> {
        if let Self::Vector(value) = self { Some(value) } else { None }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Int(_) => 1,
            Self::Double(_) => 2,
            Self::Text(_) => 3,
            Self::Vector(_) => 4,
        }
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Int(one), Self::Int(two)) => one.cmp(two),
            (Self::Double(one), Self::Double(two)) => one.total_cmp(two),
            (Self::Text(one), Self::Text(two)) => one.cmp(two),
            (Self::Vector(one), Self::Vector(two)) => {
                let pairs = one.iter().zip(two);
                pairs.map(|(one, two)| one.total_cmp(two)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Value {}

impl fmt::Display for Value {
    /// As SQL writes it where a value of its type is expected.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Double(value) => write!(f, "{value:?}"),
            Self::Text(value) => write!(f, "'{}'", value.replace('\'', "''")),
            Self::Vector(value) => write!(f, "'{value:?}'"),
        }
    }
}

/// The rows of an answer, in its order.
///
/// # Errors
/// A column of a type that the model does not know.
pub fn rows_of(batches: &[RecordBatch]) -> Result<Vec<Vec<Value>>, String> {
    let mut rows = vec![];
    for batch in batches {
        for row in 0..batch.num_rows() {
            let values: Result<Vec<Value>, String> =
                batch.columns().iter().map(|column| value_at(column, row)).collect();
            rows.push(values?);
        }
    }
    Ok(rows)
}

fn value_at(array: &ArrayRef, row: usize) -> Result<Value, String> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    Ok(match array.data_type() {
        DataType::Int32 => Value::Int(i64::from(array.as_primitive::<Int32Type>().value(row))),
        DataType::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt64 => Value::Int(array.as_primitive::<UInt64Type>().value(row) as i64),
        DataType::Float64 => Value::Double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::LargeUtf8 => Value::Text(array.as_string::<i64>().value(row).to_owned()),
        DataType::Utf8View => Value::Text(array.as_string_view().value(row).to_owned()),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Value::Int(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            Value::Int(array.as_primitive::<TimestampNanosecondType>().value(row) / 1000)
        }
        DataType::FixedSizeList(_, length) if *length == DIM as i32 => {
            let values = array.as_fixed_size_list().value(row);
            match values.data_type() {
                DataType::Float32 if values.null_count() == 0 => {
                    let values = values.as_primitive::<Float32Type>();
                    Value::Vector(std::array::from_fn(|at| values.value(at)))
                }
                other => return Err(format!("a vector of {other}, or with NULL in it")),
            }
        }
        other => return Err(format!("a column of type {other}")),
    })
}

/// Microseconds since the epoch as SQL writes a timestamp in UTC.
pub fn timestamp(micros: i64) -> String {
    let (days, rest) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    let (year, month, day) = civil(days);
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}")
}

/// Year, month and day of a day since 1970-01-01, by the rule of the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}
