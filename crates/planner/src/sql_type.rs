//! The types of columns: what SQL calls them, and how Arrow holds them. Vectors are described in `vector_type.rs`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::sql::sqlparser::ast::{self, ExactNumberInfo, TimezoneInfo};

use crate::text_length;
use crate::vector_type::VectorType;

/// The zone of every `TIMESTAMP WITH TIME ZONE`: an instant is kept and shown in UTC, whatever offset it was written
/// with.
pub const ZONE: &str = "UTC";

/// Gives DataFusion's type conversion the types that it does not have, `VECTOR(d)[]` among them, and those that mean
/// something else in PostgreSQL: times count microseconds unless their precision says otherwise.
#[derive(Debug)]
pub struct SqlTypes;

impl datafusion::logical_expr::planner::TypePlanner for SqlTypes {
    fn plan_type_field(&self, sql: &ast::DataType) -> Result<Option<FieldRef>> {
        if let Some(vector) = VectorType::of_sql(sql)? {
            return Ok(Some(Arc::new(vector.field("", true))));
        }
        if let ast::DataType::Array(ast::ArrayElemTypeDef::SquareBracket(item, None)) = sql
            && let Some(vector) = VectorType::of_sql(item)?
        {
            let list = DataType::List(Arc::new(vector.field("item", true)));
            return Ok(Some(Arc::new(Field::new("", list, true))));
        }
        if let Some(length) = text_length::of_sql(sql)? {
            return Ok(Some(Arc::new(text_length::field("", length, true))));
        }
        refuse_width(sql)?;
        let data_type = if let Some(data_type) = time_type(sql)? { Some(data_type) } else { float_type(sql)? };
        Ok(data_type.map(|data_type| Arc::new(Field::new("", data_type, true))))
    }
}

/// `FLOAT(p)`: as many bits as its p binary digits need; `None` for every other type.
///
/// # Errors
/// More than 53 digits, or digits of another kind.
fn float_type(sql: &ast::DataType) -> Result<Option<DataType>> {
    Ok(match sql {
        ast::DataType::Float(ExactNumberInfo::Precision(1..=24)) => Some(DataType::Float32),
        ast::DataType::Float(ExactNumberInfo::Precision(25..=53)) => Some(DataType::Float64),
        ast::DataType::Float(ExactNumberInfo::None) => None,
        ast::DataType::Float(_) => {
            return plan_err!(
                "{sql} is not supported: FLOAT(p) has 1 to 53 binary digits; for decimal ones write DECIMAL"
            );
        }
        _ => None,
    })
}

/// # Errors
/// An integer with a width of display, as MySQL has it.
fn refuse_width(sql: &ast::DataType) -> Result<()> {
    use ast::DataType as Sql;
    match sql {
        Sql::TinyInt(Some(_))
        | Sql::SmallInt(Some(_))
        | Sql::Int(Some(_))
        | Sql::Integer(Some(_))
        | Sql::BigInt(Some(_))
        | Sql::TinyIntUnsigned(Some(_))
        | Sql::SmallIntUnsigned(Some(_))
        | Sql::IntUnsigned(Some(_))
        | Sql::IntegerUnsigned(Some(_))
        | Sql::BigIntUnsigned(Some(_)) => {
            plan_err!("{sql} is not supported: a width of display changes nothing here; leave it out")
        }
        _ => Ok(()),
    }
}

/// `TIMESTAMP`, `TIMESTAMPTZ` and `TIME`, with or without digits; `None` for every other type.
///
/// # Errors
/// More than nine digits, and `TIME WITH TIME ZONE`.
fn time_type(sql: &ast::DataType) -> Result<Option<DataType>> {
    let has_zone = |zone: &TimezoneInfo| matches!(zone, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone);
    Ok(match sql {
        ast::DataType::Timestamp(digits, zone) => {
            Some(DataType::Timestamp(unit_of(*digits, sql)?, has_zone(zone).then(|| ZONE.into())))
        }
        ast::DataType::Time(_, zone) if has_zone(zone) => {
            return plan_err!(
                "{sql} is not supported: an offset without a day says nothing; use TIMESTAMP WITH TIME ZONE, or TIME"
            );
        }
        ast::DataType::Time(digits, _) => Some(match unit_of(*digits, sql)? {
            unit @ (TimeUnit::Second | TimeUnit::Millisecond) => DataType::Time32(unit),
            unit => DataType::Time64(unit),
        }),
        _ => None,
    })
}

/// The coarsest unit that holds as many digits of a second.
fn unit_of(digits: Option<u64>, sql: &ast::DataType) -> Result<TimeUnit> {
    match digits {
        Some(0) => Ok(TimeUnit::Second),
        Some(1..=3) => Ok(TimeUnit::Millisecond),
        None | Some(4..=6) => Ok(TimeUnit::Microsecond),
        Some(7..=9) => Ok(TimeUnit::Nanosecond),
        Some(digits) => plan_err!("{sql} counts {digits} digits of a second; there are at most 9: nanoseconds"),
    }
}

/// The precision that a literal such as `TIMESTAMP '2026-11-01 00:00:00.123456789'` has by itself where its type names
/// none: it keeps all of its digits.
pub(crate) fn with_digits_of(sql: &ast::DataType, text: &str) -> Option<ast::DataType> {
    let digits = text.rsplit_once('.').map_or(0, |(_, rest)| rest.chars().take_while(char::is_ascii_digit).count());
    let is_finer = digits > usize::from(digits_of(TimeUnit::Microsecond));
    let digits = Some(u64::from(digits_of(TimeUnit::Nanosecond)));
    match sql {
        ast::DataType::Timestamp(None, zone) if is_finer => Some(ast::DataType::Timestamp(digits, *zone)),
        ast::DataType::Time(None, zone) if is_finer => Some(ast::DataType::Time(digits, *zone)),
        _ => None,
    }
}

/// The type of SQL for a type of times, to cast to; `None` for every other type.
pub fn sql_time_type(data_type: &DataType) -> Option<ast::DataType> {
    match data_type {
        DataType::Timestamp(unit, zone) => {
            let zone = if zone.is_some() { TimezoneInfo::Tz } else { TimezoneInfo::None };
            Some(ast::DataType::Timestamp(Some(u64::from(digits_of(*unit))), zone))
        }
        DataType::Time32(unit) | DataType::Time64(unit) => {
            Some(ast::DataType::Time(Some(u64::from(digits_of(*unit))), TimezoneInfo::None))
        }
        _ => None,
    }
}

/// The SQL name of a column's type, as DESCRIBE and `information_schema.columns` show it.
pub fn sql_type_name(field: &Field) -> String {
    if let Some(vector) = VectorType::of_field(field) {
        return vector.to_string();
    }
    if let Some(length) = text_length::of_field(field) {
        return format!("VARCHAR({length})");
    }
    match field.data_type() {
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INTEGER".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::UInt8 => "TINYINT UNSIGNED".into(),
        DataType::UInt16 => "SMALLINT UNSIGNED".into(),
        DataType::UInt32 => "INTEGER UNSIGNED".into(),
        DataType::UInt64 => "BIGINT UNSIGNED".into(),
        DataType::Float16 => "FLOAT16".into(),
        DataType::Float32 => "REAL".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "TEXT".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "BYTEA".into()
        }
        DataType::Date32 | DataType::Date64 => "DATE".into(),
        DataType::Time32(unit) | DataType::Time64(unit) => with_digits("TIME", *unit),
        DataType::Timestamp(unit, None) => with_digits("TIMESTAMP", *unit),
        DataType::Timestamp(unit, Some(_)) => format!("{} WITH TIME ZONE", with_digits("TIMESTAMP", *unit)),
        DataType::Interval(_) | DataType::Duration(_) => "INTERVAL".into(),
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            format!("DECIMAL({precision}, {scale})")
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            format!("{}[]", sql_type_name(item))
        }
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("{} {}", field.name(), sql_type_name(field))).collect();
            format!("STRUCT({})", fields.join(", "))
        }
        DataType::Dictionary(_, value) => sql_type_name(&Field::new("", value.as_ref().clone(), true)),
        other => other.to_string().to_uppercase(),
    }
}

/// The SQL name of a type that is no column's.
pub(crate) fn name_of(data_type: &DataType) -> String {
    sql_type_name(&Field::new("", data_type.clone(), true))
}

/// `TIMESTAMP` alone counts microseconds.
fn with_digits(name: &str, unit: TimeUnit) -> String {
    match unit {
        TimeUnit::Microsecond => name.to_owned(),
        other => format!("{name}({})", digits_of(other)),
    }
}

fn digits_of(unit: TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}
