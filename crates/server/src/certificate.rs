//! Who a client's certificate is for: the common name of its subject.
//!
//! That the certificate is good, and signed by an authority that is trusted, rustls has verified before any of this. What is read
//! here is the little of X.509 that leads to the name, and DER is refused wherever it is not what it must be.

/// The tags of DER that are met.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const VERSION: u8 = 0xa0;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;

/// 2.5.4.3, id-at-commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// A value of DER: its tag and its content.
type Value<'a> = (u8, &'a [u8]);

/// The common name of a certificate's subject; `None` if it has none, several, or one in letters that are not read (UTF-8 and
/// ASCII are), or if the bytes are no certificate.
pub(crate) fn common_name(certificate: &[u8]) -> Option<String> {
    let (certificate, []) = only(certificate, SEQUENCE)? else { return None };
    let (mut fields, _) = only(certificate, SEQUENCE)?;
    if let Some(((VERSION, _), rest)) = next(fields) {
        fields = rest;
    }
    // The serial number, the algorithm, the issuer and the validity stand before the subject.
    for tag in [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE] {
        (_, fields) = only(fields, tag)?;
    }
    let (mut subject, _) = only(fields, SEQUENCE)?;
    let mut found = None;
    while !subject.is_empty() {
        let (mut attributes, rest) = only(subject, SET)?;
        subject = rest;
        while !attributes.is_empty() {
            let (attribute, rest) = only(attributes, SEQUENCE)?;
            attributes = rest;
            let (kind, value) = only(attribute, OBJECT_IDENTIFIER)?;
            if kind == COMMON_NAME {
                let (value, []) = next(value)? else { return None };
                // Which of two would be meant, nobody can say.
                if found.replace(text(value)?).is_some() {
                    return None;
                }
            }
        }
    }
    found
}

fn text((tag, content): Value<'_>) -> Option<String> {
    let is_read = matches!(tag, UTF8_STRING) || (matches!(tag, PRINTABLE_STRING | IA5_STRING) && content.is_ascii());
    let text = std::str::from_utf8(content).ok().filter(|_| is_read)?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

/// The content of the value in front, if it has this tag, and what follows.
fn only(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let ((found, content), rest) = next(bytes)?;
    (found == tag).then_some((content, rest))
}

/// The value in front, and what follows. Lengths are those of DER: definite, as short as can be, four bytes at most.
fn next(bytes: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
            if digits.first() == Some(&0) || length < 0x80 {
                return None;
            }
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some(((*tag, content), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let head = match length {
            0..=0x7f => vec![tag, length as u8],
            0x80..=0xff => vec![tag, 0x81, length as u8],
            _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
        };
        [head, content.to_vec()].concat()
    }

    fn attribute(kind: &[u8], tag: u8, name: &str) -> Vec<u8> {
        value(SET, &value(SEQUENCE, &[value(OBJECT_IDENTIFIER, kind), value(tag, name.as_bytes())].concat()))
    }

    fn certificate(subject: &[Vec<u8>], has_version: bool) -> Vec<u8> {
        let version = if has_version { value(VERSION, &value(INTEGER, &[2])) } else { vec![] };
        let issuer = value(SEQUENCE, &attribute(COMMON_NAME, UTF8_STRING, "the authority"));
        let fields = [
            version,
            value(INTEGER, &[1, 2, 3]),
            value(SEQUENCE, &[]),
            issuer,
            value(SEQUENCE, &[0; 200]),
            value(SEQUENCE, &subject.concat()),
            value(SEQUENCE, &[0; 300]),
        ];
        value(SEQUENCE, &[value(SEQUENCE, &fields.concat()), value(SEQUENCE, &[]), value(0x03, &[0])].concat())
    }

    #[test]
    fn the_common_name_of_the_subject_is_the_one() {
        let organization: &[u8] = &[0x55, 0x04, 0x0a];
        let cn = |tag, name| attribute(COMMON_NAME, tag, name);
        for (subject, expected) in [
            (vec![cn(UTF8_STRING, "änna")], Some("änna")),
            (vec![attribute(organization, PRINTABLE_STRING, "root"), cn(PRINTABLE_STRING, "bob b")], Some("bob b")),
            (vec![cn(IA5_STRING, "x")], Some("x")),
            (vec![], None),
            (vec![attribute(organization, UTF8_STRING, "root")], None),
            (vec![cn(UTF8_STRING, "a"), cn(UTF8_STRING, "b")], None),
            (vec![cn(UTF8_STRING, "a\0b")], None),
            (vec![cn(UTF8_STRING, "")], None),
            (vec![cn(PRINTABLE_STRING, "änna")], None),
            (vec![cn(0x1e, "a")], None),
        ] {
            for has_version in [true, false] {
                assert_eq!(common_name(&certificate(&subject, has_version)).as_deref(), expected);
            }
        }
    }

    #[test]
    fn no_bytes_are_a_panic() {
        let good = certificate(&[attribute(COMMON_NAME, UTF8_STRING, "anna")], true);
        for length in 0..good.len() {
            assert_eq!(common_name(&good[..length]), None, "cut to {length}");
        }
        assert_eq!(common_name(&[good.as_slice(), b"x"].concat()), None);
        for at in 0..good.len() {
            for flip in 1..=255u8 {
                let mut bad = good.clone();
                bad[at] ^= flip;
                let _ = common_name(&bad);
            }
        }
    }
}
