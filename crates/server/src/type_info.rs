//! The types of the dialect in the words of ODBC and JDBC, which BI tools ask for before they show a table.

use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{Nullable, Searchable, XdbcDataType, XdbcDatetimeSubcode};
use tonic::Status;

use crate::status::malformed;

static TYPES: LazyLock<Result<XdbcTypeInfoData, String>> = LazyLock::new(|| {
    let mut builder = XdbcTypeInfoDataBuilder::new();
    all().into_iter().for_each(|info| builder.append(info));
    builder.build().map_err(|error| error.to_string())
});

/// The types of one code, or all of them.
pub(crate) fn type_info(code: Option<i32>) -> Result<RecordBatch, Status> {
    let types = TYPES.as_ref().map_err(|error| Status::internal(format!("the type info cannot be built: {error}")))?;
    types.record_batch(code).map_err(|error| malformed("the code of a type", error))
}

fn all() -> Vec<XdbcTypeInfo> {
    let mut all = vec![
        number("TINYINT", XdbcDataType::XdbcTinyint, 3),
        number("SMALLINT", XdbcDataType::XdbcSmallint, 5),
        number("INT", XdbcDataType::XdbcInteger, 10),
        number("BIGINT", XdbcDataType::XdbcBigint, 19),
        XdbcTypeInfo {
            create_params: Some(vec!["precision".into(), "scale".into()]),
            minimum_scale: Some(0),
            maximum_scale: Some(38),
            fixed_prec_scale: true,
            ..number("DECIMAL", XdbcDataType::XdbcDecimal, 38)
        },
        float("REAL", XdbcDataType::XdbcReal, 24),
        float("DOUBLE", XdbcDataType::XdbcDouble, 53),
        text("VARCHAR", XdbcDataType::XdbcVarchar),
        text("TEXT", XdbcDataType::XdbcLongvarchar),
        XdbcTypeInfo {
            literal_prefix: Some("X'".into()),
            searchable: Searchable::Basic,
            case_sensitive: true,
            ..plain("BYTEA", XdbcDataType::XdbcVarbinary)
        },
        XdbcTypeInfo {
            column_size: Some(1),
            literal_prefix: None,
            literal_suffix: None,
            ..plain("BOOLEAN", XdbcDataType::XdbcBit)
        },
        moment("DATE", XdbcDataType::XdbcDate, 10, XdbcDatetimeSubcode::XdbcSubcodeYear),
        moment("TIME", XdbcDataType::XdbcTime, 15, XdbcDatetimeSubcode::XdbcSubcodeTime),
        moment("TIMESTAMP", XdbcDataType::XdbcTimestamp, 26, XdbcDatetimeSubcode::XdbcSubcodeTimestamp),
        moment(
            "TIMESTAMP WITH TIME ZONE",
            XdbcDataType::XdbcTimestamp,
            32,
            XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone,
        ),
    ];
    // No client of ODBC has vectors: they come as lists, and are written as text.
    for name in ["VECTOR", "HALFVEC", "BITVECTOR"] {
        all.push(XdbcTypeInfo {
            create_params: Some(vec!["dimensions".into()]),
            searchable: Searchable::Basic,
            ..plain(name, XdbcDataType::XdbcUnknownType)
        });
    }
    all
}

fn plain(name: &str, data_type: XdbcDataType) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.to_owned(),
        local_type_name: Some(name.to_owned()),
        data_type,
        sql_data_type: data_type,
        literal_prefix: Some("'".into()),
        literal_suffix: Some("'".into()),
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        auto_increment: Some(false),
        ..XdbcTypeInfo::default()
    }
}

fn number(name: &str, data_type: XdbcDataType, digits: i32) -> XdbcTypeInfo {
    XdbcTypeInfo {
        column_size: Some(digits),
        literal_prefix: None,
        literal_suffix: None,
        unsigned_attribute: Some(false),
        minimum_scale: Some(0),
        maximum_scale: Some(0),
        num_prec_radix: Some(10),
        ..plain(name, data_type)
    }
}

fn float(name: &str, data_type: XdbcDataType, bits: i32) -> XdbcTypeInfo {
    XdbcTypeInfo { minimum_scale: None, maximum_scale: None, num_prec_radix: Some(2), ..number(name, data_type, bits) }
}

fn text(name: &str, data_type: XdbcDataType) -> XdbcTypeInfo {
    XdbcTypeInfo { case_sensitive: true, column_size: Some(i32::MAX), ..plain(name, data_type) }
}

fn moment(name: &str, data_type: XdbcDataType, characters: i32, subcode: XdbcDatetimeSubcode) -> XdbcTypeInfo {
    XdbcTypeInfo {
        column_size: Some(characters),
        literal_prefix: Some(format!("{name} '")),
        sql_data_type: XdbcDataType::XdbcDatetime,
        datetime_subcode: Some(subcode),
        ..plain(name, data_type)
    }
}

/// Digits and scale of a column, where its type has them.
pub(crate) fn precision(data_type: &DataType) -> Option<(i32, i32)> {
    Some(match data_type {
        DataType::Int8 | DataType::UInt8 => (3, 0),
        DataType::Int16 | DataType::UInt16 => (5, 0),
        DataType::Int32 | DataType::UInt32 => (10, 0),
        DataType::Int64 => (19, 0),
        DataType::UInt64 => (20, 0),
        DataType::Float32 => (24, 0),
        DataType::Float64 => (53, 0),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => (i32::from(*precision), i32::from(*scale)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_by_their_codes() {
        assert_eq!(type_info(None).unwrap().num_rows(), all().len());
        assert_eq!(type_info(Some(XdbcDataType::XdbcBigint as i32)).unwrap().num_rows(), 1);
        assert_eq!(type_info(Some(4711)).unwrap().num_rows(), 0);
    }
}
