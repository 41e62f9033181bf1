//! Sizes and spans of time as people write them: `2G`, `30s`; and back.

use std::time::Duration;

/// Below this, not even a scan has its buffers; the engine refuses it too.
pub const MEMORY_BYTES_MIN: usize = 64 << 20;

/// The spellings of each unit of time, and its milliseconds. The first is how it is written.
const SPANS: [(&[&str], u64); 6] = [
    (&["w", "week", "weeks"], 604_800_000),
    (&["d", "day", "days"], 86_400_000),
    (&["h", "hr", "hrs", "hour", "hours"], 3_600_000),
    (&["m", "min", "mins", "minute", "minutes"], 60_000),
    (&["s", "sec", "secs", "second", "seconds"], 1_000),
    (&["ms", "millisecond", "milliseconds"], 1),
];
/// The units in which sizes are written, and their bytes.
const SIZES: [(&str, usize); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

/// Reads a size such as `2G`, `1.5GiB`, `500 MB` or `1048576` into bytes: K, M, G, T are powers of 1024, KB, MB, GB, TB
/// of 1000.
///
/// # Errors
/// No size, or more than any machine has.
pub fn parse_size(text: &str) -> Result<usize, String> {
    const EXPECTED: &str = "expected a size such as 500M, 2G or 1.5GiB";
    let text = text.trim();
    let unit_start = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_start);
    let number: f64 = number.parse().map_err(|_| EXPECTED.to_owned())?;
    let unit = unit.trim().to_ascii_lowercase();
    let power = match unit.chars().next() {
        None | Some('b') => 0,
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some(_) => return Err(EXPECTED.to_owned()),
    };
    let base: f64 = match unit.get(1..).unwrap_or_default() {
        "" | "i" | "ib" => 1024.0,
        "b" => 1000.0,
        _ => return Err(EXPECTED.to_owned()),
    };
    let bytes = number * base.powi(power);
    if bytes > 2f64.powi(62) {
        return Err(format!("{text} is more than any machine has"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 2^62, checked above")]
    Ok(bytes as usize)
}

/// Writes a size so that [`parse_size`] reads it back exactly.
pub fn show_size(bytes: usize) -> String {
    match SIZES.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Reads a span such as `30s`, `500 ms` or `1h30m`; only 0 needs no unit.
///
/// # Errors
/// No span, or one that is too long to count in milliseconds.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a span of time such as 500ms, 30s, 5min or 1h30m";
    let text = text.trim().to_ascii_lowercase();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(EXPECTED.to_owned());
    }
    let mut rest = text.as_str();
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (number, behind) = split_where(rest, |letter| !letter.is_ascii_digit());
        let (unit, behind) = split_where(behind.trim_start(), |letter| !letter.is_ascii_alphabetic());
        let unit_ms = SPANS.iter().find(|(spellings, _)| spellings.contains(&unit)).map(|(_, ms)| *ms);
        let part_ms = number.parse::<u64>().ok().zip(unit_ms).and_then(|(count, ms)| count.checked_mul(ms));
        total_ms = part_ms.and_then(|ms| total_ms.checked_add(ms)).ok_or(EXPECTED)?;
        rest = behind.trim_start();
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes a span in the largest unit that it is a multiple of; what is below a millisecond is lost.
pub fn show_span(span: Duration) -> String {
    let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let unit = SPANS.iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit));
    match unit {
        Some((spellings, unit)) => format!("{}{}", ms / unit, spellings[0]),
        None => "0s".to_owned(),
    }
}

fn split_where(text: &str, ends: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_both_kinds_of_unit() {
        for (text, bytes) in [
            ("134217728", 128 << 20),
            ("2G", 2 << 30),
            ("2g", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("500 MB", 500_000_000),
            ("64m", 64 << 20),
            ("204800K", 200 << 20),
            ("1T", 1 << 40),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_mean_nothing_are_refused() {
        for text in ["", "G", "-1G", "2X", "2GiBs", "1,5G", "1e3", "9999999T", "2 bytes", "none"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spans_are_read_and_written_in_their_largest_unit() {
        for (text, ms, shown) in [
            ("30s", 30_000, "30s"),
            ("90 seconds", 90_000, "90s"),
            ("500ms", 500, "500ms"),
            ("1h30m", 5_400_000, "90m"),
            ("5 Min", 300_000, "5m"),
            ("7 days", 604_800_000, "1w"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
        ] {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(show_span(Duration::from_millis(ms)), shown, "{text}");
        }
        for text in ["", "30", "s", "-1s", "1.5h", "1 month", "30s,", "99999999999999999999ms"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
    }
}
