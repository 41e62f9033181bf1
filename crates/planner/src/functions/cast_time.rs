//! What a cast to a timestamp becomes where Arrow's own says something else than PostgreSQL, or where DataFusion would
//! take it away: it compares `CAST(ts AS TIMESTAMP(0)) = x` as `ts = x`, as if no two timestamps became the same.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::compute::kernels::cast::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, TimeUnit};
use arrow::util::display::array_value_to_string;
use datafusion::common::{exec_datafusion_err, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

use crate::sql_type::{ZONE, name_of};

/// What becomes of a value that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Misfit {
    /// An error, as of CAST.
    Error,
    /// NULL, as of TRY_CAST.
    Null,
}

/// `value` of the type `from` cast to the timestamp type `to`; `None` if a plain cast says the same.
///
/// Text with an offset is an instant: a timestamp without a zone does not take it, unless the offset is that of UTC.
/// Digits that the type does not keep are cut off, before 1970 too.
pub fn cast_time(value: &Expr, from: &DataType, to: &DataType, misfit: Misfit) -> Option<Expr> {
    let DataType::Timestamp(unit, zone) = to else { return None };
    let is_ours = match from {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        // The clock of another zone than UTC is another instant.
        DataType::Timestamp(own, None) => own != unit || zone.as_deref().is_some_and(|zone| !is_utc(zone)),
        DataType::Timestamp(own, Some(_)) => own != unit,
        _ => false,
    };
    is_ours.then(|| {
        let signature = Signature::any(1, Volatility::Immutable);
        let function = ScalarUDF::from(CastTime { signature, to: to.clone(), misfit });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(function), vec![value.clone()]))
    })
}

/// Whether a zone is UTC by another name.
pub(crate) fn is_utc(zone: &str) -> bool {
    zone == ZONE || zone == "+00:00" || zone == "Z"
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CastTime {
    signature: Signature,
    to: DataType,
    misfit: Misfit,
}

impl ScalarUDFImpl for CastTime {
    fn name(&self) -> &'static str {
        "cast_time"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.to.clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let is_nullable = args.arg_fields[0].is_nullable() || self.misfit == Misfit::Null;
        Ok(Arc::new(Field::new(self.name(), self.to.clone(), is_nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = args.args.as_slice() else { return plan_err!("cast_time takes one value") };
        let cast = |array: &ArrayRef| match array.data_type() {
            DataType::Timestamp(..) => self.of_timestamps(array),
            _ => self.of_text(array),
        };
        match value {
            ColumnarValue::Array(array) => Ok(ColumnarValue::Array(cast(array)?)),
            ColumnarValue::Scalar(value) => {
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&cast(&value.to_array()?)?, 0)?))
            }
        }
    }
}

impl CastTime {
    fn of_text(&self, array: &ArrayRef) -> Result<ArrayRef> {
        let DataType::Timestamp(_, zone) = &self.to else { return plan_err!("cast_time makes timestamps") };
        let array = arrow::compute::cast(array, &DataType::Utf8)?;
        let texts: &StringArray = array.as_string();
        let times = cast_with_options(&array, &self.to, &CastOptions { safe: true, ..CastOptions::default() })?;
        let has_offset = |at: usize| zone.is_none() && offset(texts.value(at)).is_some();
        let is_misfit = |at: usize| !texts.is_null(at) && (times.is_null(at) || has_offset(at));
        if self.misfit == Misfit::Null {
            let fits = (0..texts.len()).map(|at| Some(is_misfit(at))).collect();
            return Ok(arrow::compute::nullif(&times, &fits)?);
        }
        match (0..texts.len()).find(|at| is_misfit(*at)) {
            None => Ok(times),
            Some(at) if times.is_null(at) => Err(self.unreadable(texts.value(at))),
            Some(at) => exec_err!(
                "'{}' names another zone than UTC, and a TIMESTAMP has none; use TIMESTAMP WITH TIME ZONE, or leave the zone out",
                texts.value(at)
            ),
        }
    }

    /// Why a text is no timestamp of this type.
    fn unreadable(&self, text: &str) -> datafusion::error::DataFusionError {
        let micros = DataType::Timestamp(TimeUnit::Microsecond, Some(ZONE.into()));
        match ScalarValue::Utf8(Some(text.to_owned())).cast_to(&micros) {
            Ok(_) => self.out_of_range(text),
            Err(_) => exec_datafusion_err!(
                "'{text}' is no timestamp; write it as 2026-11-30, 2026-11-30 12:00:00 or 2026-11-30T12:00:00.5Z"
            ),
        }
    }

    fn out_of_range(&self, shown: &str) -> datafusion::error::DataFusionError {
        exec_datafusion_err!(
            "{shown} is outside of what {} holds{}",
            name_of(&self.to),
            match self.to {
                DataType::Timestamp(TimeUnit::Nanosecond, _) => ": the years 1677 to 2262; TIMESTAMP holds all others",
                _ => "",
            }
        )
    }

    fn of_timestamps(&self, array: &ArrayRef) -> Result<ArrayRef> {
        let (DataType::Timestamp(from, own), DataType::Timestamp(to, zone)) = (array.data_type(), &self.to) else {
            return plan_err!("cast_time casts timestamps to timestamps");
        };
        // Where the zone is a new one, this shifts from its clock to the instant; in all other cases it changes a name.
        let placed = match (own, zone) {
            (None, Some(_)) => arrow::compute::cast(array, &DataType::Timestamp(*from, zone.clone()))?,
            _ => Arc::clone(array),
        };
        let counts = arrow::compute::cast(&placed, &DataType::Int64)?;
        let counts: &Int64Array = counts.as_primitive();
        let (from, to) = (per_second(*from), per_second(*to));
        let scaled: Int64Array = if from >= to {
            counts.unary(|count| count.div_euclid(from / to))
        } else {
            let finer = counts.unary_opt::<_, Int64Type>(|count| count.checked_mul(to / from));
            let lost = (0..counts.len()).find(|at| finer.is_null(*at) && !counts.is_null(*at));
            match lost {
                Some(at) if self.misfit == Misfit::Error => {
                    return Err(self.out_of_range(&array_value_to_string(array, at)?));
                }
                _ => finer,
            }
        };
        Ok(arrow::compute::cast(&scaled, &self.to)?)
    }
}

/// How many units there are in a second.
pub(crate) fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// The zone that a timestamp is written with, unless it is UTC.
fn offset(text: &str) -> Option<&str> {
    // What stands before is the date, with its hyphens.
    let time = text.trim().get(10..)?;
    let time = time.strip_prefix(['T', 't']).unwrap_or(time);
    let name = time.trim_start_matches(|start: char| !start.is_ascii_alphabetic());
    if !name.is_empty() {
        return (!["z", "utc", "gmt"].contains(&name.to_lowercase().as_str())).then_some(name);
    }
    let offset = &time[time.find(['+', '-'])?..];
    offset.contains(|digit: char| ('1'..='9').contains(&digit)).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_found_behind_the_time() {
        for (text, expected) in [
            ("2026-11-30", None),
            ("2026-11-30 12:00:00", None),
            ("2026-11-30T12:00:00.5", None),
            ("2026-11-30T12:00:00Z", None),
            ("2026-11-30t12:00:00z", None),
            ("2026-11-30 12:00:00+00", None),
            ("2026-11-30 12:00:00 -00:00", None),
            ("2026-11-30 12:00:00 UTC", None),
            ("2026-11-30T12:00:00+02:00", Some("+02:00")),
            ("2026-11-30 12:00:00-08", Some("-08")),
            ("2026-11-30 12:00:00+00:30", Some("+00:30")),
            ("2026-11-30 12:00:00 Europe/Berlin", Some("Europe/Berlin")),
            ("2026-11-30T12:00:00 America/Port-au-Prince", Some("America/Port-au-Prince")),
        ] {
            assert_eq!(offset(text), expected, "{text}");
        }
    }
}
