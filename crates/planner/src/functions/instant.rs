//! `instant(ts)`: what two timestamps of different precision are compared by. It holds every value of every unit, so that
//! nothing overflows and no digit is lost: seconds since 1970 with nine decimals.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, AsArray, Decimal128Array, Int64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, TimeUnit};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

use super::cast_time::per_second;

const PRECISION: u8 = 38;
const SCALE: i8 = 9;

/// Not registered: no text of SQL names it.
static INSTANT: LazyLock<Arc<ScalarUDF>> =
    LazyLock::new(|| Arc::new(ScalarUDF::from(Instant { signature: Signature::any(1, Volatility::Immutable) })));

/// The instant of a timestamp; one without a zone is UTC.
pub fn instant(timestamp: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&INSTANT), vec![timestamp]))
}

/// The timestamp of `instant(timestamp)`.
pub fn timestamp_of(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::ScalarFunction(call) if call.func == *INSTANT => call.args.first(),
        _ => None,
    }
}

/// Nanoseconds since 1970 of a constant instant.
pub fn nanoseconds(value: &ScalarValue) -> Option<i128> {
    match value {
        ScalarValue::Decimal128(Some(nanoseconds), PRECISION, SCALE) => Some(*nanoseconds),
        _ => None,
    }
}

/// Nanoseconds in one unit.
pub fn nanoseconds_in(unit: TimeUnit) -> i128 {
    i128::from(per_second(TimeUnit::Nanosecond) / per_second(unit))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Instant {
    signature: Signature,
}

impl ScalarUDFImpl for Instant {
    fn name(&self) -> &'static str {
        "instant"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Timestamp(..)] => Ok(DataType::Decimal128(PRECISION, SCALE)),
            _ => plan_err!("instant takes a timestamp"),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let timestamp = &args.arg_fields[0];
        let data_type = self.return_type(&[timestamp.data_type().clone()])?;
        Ok(Arc::new(Field::new(self.name(), data_type, timestamp.is_nullable())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.as_slice() {
            [ColumnarValue::Array(array)] => Ok(ColumnarValue::Array(instants(array)?)),
            [ColumnarValue::Scalar(value)] => {
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&instants(&value.to_array()?)?, 0)?))
            }
            _ => plan_err!("instant takes one timestamp"),
        }
    }
}

fn instants(timestamps: &ArrayRef) -> Result<ArrayRef> {
    let DataType::Timestamp(unit, _) = timestamps.data_type() else { return plan_err!("instant takes a timestamp") };
    let scale = nanoseconds_in(*unit);
    let counts = arrow::compute::cast(timestamps, &DataType::Int64)?;
    let counts: &Int64Array = counts.as_primitive::<Int64Type>();
    let instants: Decimal128Array = counts.unary(|count| i128::from(count) * scale);
    Ok(Arc::new(instants.with_precision_and_scale(PRECISION, SCALE)?))
}
