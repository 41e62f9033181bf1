//! `now()`: the moment at which the statement began, in microseconds, as everything else that SQL calls a timestamp.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

use crate::sql_type::ZONE;

/// `now()` and `current_timestamp`. They replace DataFusion's, which count nanoseconds: a comparison with a column is
/// one of the same type then, and a column made of it is one that holds every year.
pub fn function() -> Arc<ScalarUDF> {
    let (signature, aliases) = (Signature::nullary(Volatility::Stable), vec!["current_timestamp".to_owned()]);
    Arc::new(ScalarUDF::from(Now { signature, aliases }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Now {
    signature: Signature,
    aliases: Vec<String>,
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &'static str {
        "now"
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Microsecond, Some(ZONE.into())))
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), self.return_type(&[])?, false)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("now() was not replaced by the moment at which the statement began")
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(match context.query_execution_start_time() {
            Some(start) => {
                let micros = ScalarValue::TimestampMicrosecond(Some(start.timestamp_micros()), Some(ZONE.into()));
                ExprSimplifyResult::Simplified(Expr::Literal(micros, None))
            }
            None => ExprSimplifyResult::Original(args),
        })
    }
}
