//! Spans of time as settings and options of tables write them: `30s`, `24 hours`, `1 week 2 days`.

use std::time::Duration;

/// The spellings of each unit, and its milliseconds. Months and years are no spans: they differ in length.
const UNITS: &[(&[&str], u64)] = &[
    (&["ms", "millisecond", "milliseconds"], 1),
    (&["s", "sec", "secs", "second", "seconds"], 1_000),
    (&["m", "min", "mins", "minute", "minutes"], 60_000),
    (&["h", "hr", "hrs", "hour", "hours"], 3_600_000),
    (&["d", "day", "days"], 86_400_000),
    (&["w", "week", "weeks"], 604_800_000),
];

/// Numbers with their units, one or several, in any case; only 0 needs no unit. `None` if it is no span, or one that is
/// too long to count in milliseconds.
pub fn parse(text: &str) -> Option<Duration> {
    let text = text.trim().to_lowercase();
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.as_str();
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (number, behind) = split_where(rest, |letter| !letter.is_ascii_digit());
        let (unit, behind) = split_where(behind.trim_start(), |letter| !letter.is_ascii_alphabetic());
        let (_, unit_ms) = UNITS.iter().find(|(spellings, _)| spellings.contains(&unit))?;
        let part_ms = number.parse::<u64>().ok()?.checked_mul(*unit_ms)?;
        total_ms = total_ms.checked_add(part_ms)?;
        rest = behind.trim_start();
    }
    (!text.is_empty()).then_some(Duration::from_millis(total_ms))
}

fn split_where(text: &str, ends: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_numbers_with_units() {
        for (text, seconds) in [
            ("0", Some(0.0)),
            ("0 days", Some(0.0)),
            ("500ms", Some(0.5)),
            ("30s", Some(30.0)),
            (" 5 min ", Some(300.0)),
            ("24 Hours", Some(86_400.0)),
            ("7days", Some(604_800.0)),
            ("1 week 2 days", Some(777_600.0)),
            ("1h30m", Some(5_400.0)),
            ("", None),
            ("7", None),
            ("days", None),
            ("-1 day", None),
            ("1.5 h", None),
            ("1 month", None),
            ("1 day,", None),
            ("1 day 3", None),
            ("99999999999999999999 ms", None),
            ("18446744073709551615 weeks", None),
        ] {
            assert_eq!(parse(text).map(|span| span.as_secs_f64()), seconds, "{text:?}");
        }
    }
}
