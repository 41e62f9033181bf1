//! The file that tells which version of a table is probably the newest. It is replaced with each commit, so no sidecar
//! could ever be in step with it: it carries its own checksum instead. Lance reads `version` and skips the rest.
//!
//! ```text
//! {"version":12,"sagitta_crc32c":"89abcdef"}
//! ```
//!
//! The sum is the CRC-32C of the decimal digits of the version. `{"version":12}` was written by another program and is
//! taken as it is; Lance makes sure in any case that the version exists and looks for later ones. Anything else is
//! damage: a reader who finds it gets an error, and Lance then lists the versions.

use bytes::Bytes;
use object_store::PutPayload;
use serde::{Deserialize, Serialize};

use super::format::crc32c;

/// The name of the file, in the folder of versions.
pub(super) const NAME: &str = "latest_version_hint.json";

// Unknown names are refused: a flipped bit in the name of the sum must not pass for a file without one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hint {
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sagitta_crc32c: Option<String>,
}

/// The content with its checksum in it; unchanged if it is not what Lance writes today.
pub(super) fn sign(payload: PutPayload) -> PutPayload {
    let bytes = Bytes::from(payload);
    match serde_json::from_slice::<Hint>(&bytes).ok().and_then(|hint| signed(hint.version)) {
        Some(signed) => signed.into(),
        None => bytes.into(),
    }
}

/// True for the bytes that this program writes, and for a version without a checksum.
pub(super) fn is_sound(bytes: &[u8]) -> bool {
    match serde_json::from_slice::<Hint>(bytes) {
        Ok(Hint { version, sagitta_crc32c: Some(_) }) => signed(version).is_some_and(|expected| expected == bytes),
        Ok(Hint { sagitta_crc32c: None, .. }) => true,
        Err(_) => false,
    }
}

fn signed(version: u64) -> Option<Vec<u8>> {
    serde_json::to_vec(&Hint { version, sagitta_crc32c: Some(sum(version)) }).ok()
}

fn sum(version: u64) -> String {
    format!("{:08x}", crc32c(version.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_and_any_cut_is_seen() {
        let signed = Bytes::from(sign(PutPayload::from_static(b"{\"version\":1234}")));
        assert!(is_sound(&signed));
        for bit in 0..signed.len() * 8 {
            let mut flipped = signed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_sound(&flipped), "bit {bit}");
        }
        assert!((0..signed.len()).all(|end| !is_sound(&signed[..end])));
    }

    #[test]
    fn what_another_program_wrote_is_taken_as_it_is() {
        assert!(is_sound(b"{\"version\":7}"));
        assert_eq!(Bytes::from(sign(PutPayload::from_static(b"[]"))), Bytes::from_static(b"[]"));
    }
}
