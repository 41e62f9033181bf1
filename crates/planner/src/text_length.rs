//! `VARCHAR(n)`: texts of at most n characters. The length is kept in the metadata of the column's field. What is written to
//! the column is checked against it; a cast cuts, as the standard says.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::sql::sqlparser::ast::{self, CharLengthUnits, CharacterLength};

const LENGTH_KEY: &str = "sagitta:length_max";

/// The most characters of a `VARCHAR(n)`, as in PostgreSQL.
const LENGTH_MAX: u64 = 10_485_760;

/// Whether it is a type of texts, and how many characters they have at most. `None` for every other type.
///
/// # Errors
/// A length that is none, or that counts bytes; `CHAR`, which would pad.
pub fn of_sql(sql: &ast::DataType) -> Result<Option<Option<usize>>> {
    let length = match sql {
        ast::DataType::Varchar(length)
        | ast::DataType::CharacterVarying(length)
        | ast::DataType::CharVarying(length)
        | ast::DataType::Nvarchar(length) => length,
        ast::DataType::String(Some(length)) => return checked(*length, sql).map(|length| Some(Some(length))),
        ast::DataType::Char(_) | ast::DataType::Character(_) => {
            return plan_err!("{sql} is not supported: it pads texts with blanks; write VARCHAR(n) or TEXT");
        }
        _ => return Ok(None),
    };
    match length {
        None | Some(CharacterLength::Max) => Ok(Some(None)),
        Some(CharacterLength::IntegerLength { unit: Some(CharLengthUnits::Octets), .. }) => {
            plan_err!("{sql} is not supported: a length counts characters; write VARCHAR(n)")
        }
        Some(CharacterLength::IntegerLength { length, .. }) => checked(*length, sql).map(|length| Some(Some(length))),
    }
}

fn checked(length: u64, sql: &ast::DataType) -> Result<usize> {
    match usize::try_from(length) {
        Ok(characters) if (1..=LENGTH_MAX).contains(&length) => Ok(characters),
        _ => plan_err!("the length of {sql} is not from 1 to {LENGTH_MAX}; write TEXT for texts of any length"),
    }
}

/// The field of a column of texts.
pub fn field(name: &str, length: Option<usize>, nullable: bool) -> Field {
    let field = Field::new(name, DataType::Utf8, nullable);
    match length {
        Some(length) => field.with_metadata(HashMap::from([(LENGTH_KEY.to_owned(), length.to_string())])),
        None => field,
    }
}

/// How many characters the texts of a column may have; `None` if that is not limited.
pub fn of_field(field: &Field) -> Option<usize> {
    let is_text = matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    field.metadata().get(LENGTH_KEY).filter(|_| is_text)?.parse().ok()
}

/// The first text with more characters than `length`: its row, and how many it has. Cost: a pass over those with more bytes.
pub fn first_longer(texts: &ArrayRef, length: usize) -> Option<(usize, usize)> {
    fn first<'a>(texts: impl Iterator<Item = Option<&'a str>>, length: usize) -> Option<(usize, usize)> {
        texts.enumerate().find_map(|(row, text)| {
            // No text has more characters than bytes.
            let text = text.filter(|text| text.len() > length)?;
            Some((row, text.chars().count())).filter(|(_, count)| *count > length)
        })
    }
    match texts.data_type() {
        DataType::Utf8 => first(texts.as_string::<i32>().iter(), length),
        DataType::LargeUtf8 => first(texts.as_string::<i64>().iter(), length),
        DataType::Utf8View => first(texts.as_string_view().iter(), length),
        _ => None,
    }
}
