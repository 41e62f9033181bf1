//! What `datafusion-substrait` takes for granted in a plan: parts that must be there, positions that must exist, elements of one
//! type. Without these checks a plan that somebody made badly would be a panic.

use std::fmt::Write;
use std::mem::discriminant;

use datafusion::common::{not_impl_err, plan_datafusion_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion_substrait::substrait::proto::expression::literal::LiteralType;
use datafusion_substrait::substrait::proto::expression::{IfThen, Literal};
use datafusion_substrait::substrait::proto::extensions::AdvancedExtension;
use datafusion_substrait::substrait::proto::sort_field::{SortDirection, SortKind};
use datafusion_substrait::substrait::proto::{AggregateRel, AggregationPhase, FunctionOption, SortField};

/// The error for a part that is not there.
pub(super) fn lacks(what: &str, part: &str) -> DataFusionError {
    plan_datafusion_err!("the Substrait plan is not complete: {what} has no {part}")
}

/// # Errors
/// It is not there.
pub(super) fn needs<T>(part: Option<&T>, what: &str, name: &str) -> Result<()> {
    part.map(|_| ()).ok_or_else(|| lacks(what, name))
}

/// A position in a list of so many.
///
/// # Errors
/// It is beyond the list.
pub(super) fn position(index: i32, count: usize, what: &str) -> Result<usize> {
    match usize::try_from(index).ok().filter(|index| *index < count) {
        Some(index) => Ok(index),
        None => plan_err!("the Substrait plan names {what} {index}, and there are {count}, counted from 0"),
    }
}

/// An optimization may be overlooked, an enhancement changes what is meant.
///
/// # Errors
/// There is one.
pub(super) fn refuse_enhancement(extension: Option<&AdvancedExtension>) -> Result<()> {
    match extension.and_then(|extension| extension.enhancement.as_ref()) {
        Some(enhancement) => {
            let name: String = enhancement.type_url.chars().take(100).collect();
            not_impl_err!("the enhancement {name} of a Substrait relation is not supported; send the plan without it")
        }
        None => Ok(()),
    }
}

pub(super) fn sorts(sorts: &[SortField]) -> Result<()> {
    for sort in sorts {
        needs(sort.expr.as_ref(), "a sort", "expression")?;
        let is_known = match &sort.sort_kind {
            Some(SortKind::Direction(direction)) => matches!(
                SortDirection::try_from(*direction),
                Ok(SortDirection::AscNullsFirst
                    | SortDirection::AscNullsLast
                    | SortDirection::DescNullsFirst
                    | SortDirection::DescNullsLast)
            ),
            Some(SortKind::ComparisonFunctionReference(_)) => {
                return not_impl_err!("sorting by a function of comparison is not supported");
            }
            None => return Err(lacks("a sort", "direction")),
        };
        if !is_known {
            return not_impl_err!(
                "a sort is ascending or descending, with NULLs first or last; others are not supported"
            );
        }
    }
    Ok(())
}

/// What functions do where a plan may choose: each option, and the only preference that is met.
const OPTIONS: &[(&str, &str)] =
    &[("overflow", "SILENT"), ("rounding", "TIE_TO_EVEN"), ("case_sensitivity", "CASE_SENSITIVE")];

/// An option names what would do, best first: one that is met must be among them.
///
/// # Errors
/// None is.
pub(super) fn options(options: &[FunctionOption]) -> Result<()> {
    for FunctionOption { name, preference } in options {
        let met = OPTIONS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, met)| *met);
        let is_met = |wish: &String| met.is_some_and(|met| met.eq_ignore_ascii_case(wish));
        if !preference.iter().any(is_met) {
            let (name, wished): (String, String) =
                (name.chars().take(50).collect(), preference.join(", ").chars().take(100).collect());
            let instead = met.map_or_else(|| "leave it out".to_owned(), |met| format!("there is {met}"));
            return not_impl_err!("the option {name} = {wished} of a Substrait function is not supported; {instead}");
        }
    }
    Ok(())
}

pub(super) fn aggregate(aggregate: &AggregateRel) -> Result<()> {
    for measure in &aggregate.measures {
        if let Some(function) = &measure.measure {
            sorts(&function.sorts)?;
            options(&function.options)?;
            if !matches!(function.phase(), AggregationPhase::Unspecified | AggregationPhase::InitialToResult) {
                return not_impl_err!(
                    "aggregates that take or give what lies between are not supported; send whole ones"
                );
            }
        }
    }
    let count = aggregate.grouping_expressions.len();
    for reference in aggregate.groupings.iter().flat_map(|grouping| &grouping.expression_references) {
        position(i32::try_from(*reference).unwrap_or(i32::MAX), count, "the grouping expression")?;
    }
    Ok(())
}

pub(super) fn if_then(choice: &IfThen) -> Result<()> {
    for (clause, at) in choice.ifs.iter().zip(0..) {
        needs(clause.r#if.as_ref(), "a case", "condition")?;
        // The first may be the value that the others are compared with.
        if at > 0 {
            needs(clause.then.as_ref(), "a case", "result")?;
        }
    }
    Ok(())
}

/// # Errors
/// Elements of a list or a map that are not of one type.
pub(super) fn literal(literal: &Literal) -> Result<()> {
    shape(literal).map(|_| ())
}

/// What tells the type of a literal from others, as far as elements of a list may differ.
fn shape(literal: &Literal) -> Result<String> {
    let Some(value) = &literal.literal_type else { return Err(lacks("a literal", "value")) };
    let mut shape = format!("{:?} {}", discriminant(value), literal.type_variation_reference);
    match value {
        LiteralType::List(list) => shape.push_str(&one_shape(&list.values)?),
        LiteralType::EmptyList(list) => needs(list.r#type.as_ref(), "an empty list", "type")?,
        LiteralType::Map(map) => {
            for (part, name) in [(0, "key"), (1, "value")] {
                let side =
                    |entry: &datafusion_substrait::substrait::proto::expression::literal::map::KeyValue| match part {
                        0 => entry.key.clone(),
                        _ => entry.value.clone(),
                    };
                let all: Option<Vec<Literal>> = map.key_values.iter().map(side).collect();
                shape.push_str(&one_shape(&all.ok_or_else(|| lacks("an entry of a map", name))?)?);
            }
        }
        LiteralType::EmptyMap(map) => {
            needs(map.key.as_ref(), "an empty map", "key")?;
            needs(map.value.as_ref(), "an empty map", "value")?;
        }
        LiteralType::Struct(fields) => {
            for field in &fields.fields {
                shape.push_str(&self::shape(field)?);
            }
        }
        LiteralType::Decimal(decimal) => {
            if !(1..=38).contains(&decimal.precision) || !(0..=decimal.precision).contains(&decimal.scale) {
                return plan_err!(
                    "a decimal of precision {} and scale {} does not exist; a precision is 1 to 38",
                    decimal.precision,
                    decimal.scale
                );
            }
            let _ = write!(shape, "{} {}", decimal.precision, decimal.scale);
        }
        LiteralType::FixedBinary(bytes) => {
            let _ = write!(shape, "{}", bytes.len());
        }
        LiteralType::PrecisionTimestamp(time) | LiteralType::PrecisionTimestampTz(time) => {
            let _ = write!(shape, "{}", time.precision);
        }
        LiteralType::PrecisionTime(time) => {
            let _ = write!(shape, "{}", time.precision);
        }
        _ => {}
    }
    Ok(shape)
}

/// The shape that all of the elements have.
fn one_shape(elements: &[Literal]) -> Result<String> {
    let mut first: Option<String> = None;
    for element in elements {
        if let Some(LiteralType::Null(_) | LiteralType::EmptyList(_) | LiteralType::EmptyMap(_)) = element.literal_type
        {
            return not_impl_err!("NULLs and empty lists inside of a literal list or map are not supported");
        }
        let shape = shape(element)?;
        if first.get_or_insert_with(|| shape.clone()) != &shape {
            return plan_err!("the elements of a literal list or map are of several types; they must be of one");
        }
    }
    Ok(first.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_a_function_is_met_or_refused() {
        let option = |name: &str, preference: &[&str]| FunctionOption {
            name: name.to_owned(),
            preference: preference.iter().map(|wish| (*wish).to_owned()).collect(),
        };
        for (given, is_met) in [
            (option("overflow", &["SILENT"]), true),
            (option("Overflow", &["ERROR", "silent"]), true),
            (option("overflow", &["ERROR", "SATURATE"]), false),
            (option("overflow", &[]), false),
            (option("rounding", &["TIE_TO_EVEN"]), true),
            (option("rounding", &["TRUNCATE"]), false),
            (option("made_up", &["SILENT"]), false),
        ] {
            assert_eq!(options(std::slice::from_ref(&given)).is_ok(), is_met, "{given:?}");
        }
    }
}
