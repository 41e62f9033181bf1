//! The seal on what clients are given and bring back: prepared statements' handles and tickets of answers.
//!
//! A sealed handle is a magic, a random id, a body, and the HMAC-SHA-256 of these and of the user they are for. The key is one
//! that all servers of the database share (`storage`: secret.rs), so that a handle is good at each of them, and for nobody but its
//! user: not for one who is made later under the same name. What is in the body is `travel.rs`; it is no secret from the user, who
//! has sent it.
//!
//! Where the key can be neither read nor made (a store that is read only), the server has one of its own, and its handles
//! are good there alone, until it ends.

use bytes::Bytes;
use engine::{Secret, UserIdentity};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tonic::Status;
use uuid::Uuid;

/// Begins every handle; its last letter is the version of what follows.
const MAGIC: &[u8; 4] = b"SgH1";
const ID_BYTES: usize = 16;
const TAG_BYTES: usize = 32;

/// The key, ready to be used.
#[derive(Clone)]
pub(crate) struct Seal {
    keyed: Hmac<Sha256>,
}

impl Seal {
    /// # Errors
    /// None that can happen: keys of all lengths are good.
    pub(crate) fn new(secret: &Secret) -> Result<Self, String> {
        let keyed = Hmac::new_from_slice(secret.reveal()).map_err(|error| error.to_string())?;
        Ok(Self { keyed })
    }

    /// A handle for a user; nobody where the server does not ask.
    pub(crate) fn seal(&self, user: Option<&UserIdentity>, id: Uuid, body: &[u8]) -> Bytes {
        let mut handle = Vec::with_capacity(MAGIC.len() + ID_BYTES + body.len() + TAG_BYTES);
        handle.extend_from_slice(MAGIC);
        handle.extend_from_slice(id.as_bytes());
        handle.extend_from_slice(body);
        let tag = self.of(user, &handle).finalize().into_bytes();
        handle.extend_from_slice(&tag);
        handle.into()
    }

    /// The id and the body of a handle.
    ///
    /// # Errors
    /// One that this user was not given, or not so: all are refused alike, in the same time.
    pub(crate) fn open(&self, user: Option<&UserIdentity>, handle: &Bytes) -> Result<(Uuid, Bytes), Status> {
        let content_bytes = handle.len().checked_sub(TAG_BYTES).filter(|bytes| *bytes >= MAGIC.len() + ID_BYTES);
        let content_bytes = content_bytes.filter(|_| handle.starts_with(MAGIC)).ok_or_else(unknown)?;
        let (content, tag) = handle.split_at(content_bytes);
        self.of(user, content).verify_slice(tag).map_err(|_| unknown())?;
        let id = Uuid::from_slice(&content[MAGIC.len()..MAGIC.len() + ID_BYTES]).map_err(|_| unknown())?;
        Ok((id, handle.slice(MAGIC.len() + ID_BYTES..content_bytes)))
    }

    /// The name and the id go first, each behind its length: no two users are written alike.
    fn of(&self, user: Option<&UserIdentity>, content: &[u8]) -> Hmac<Sha256> {
        let mut keyed = self.keyed.clone();
        match user {
            None => keyed.update(&[0]),
            Some(UserIdentity { name, id }) => {
                keyed.update(&[1]);
                for text in [name, id] {
                    keyed.update(&(text.len() as u64).to_le_bytes());
                    keyed.update(text.as_bytes());
                }
            }
        }
        keyed.update(content);
        keyed
    }
}

/// The error for a handle that is nobody's, or another's, or not what was given out.
pub(crate) fn unknown() -> Status {
    Status::not_found(
        "the handle is unknown: it was not given to this user, or not so, was closed, or is too old; run the statement again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, id: &str) -> UserIdentity {
        UserIdentity { name: name.into(), id: id.into() }
    }

    #[test]
    fn a_handle_is_good_for_its_user_alone_and_only_as_it_was() {
        let secret = Secret::random();
        let (seal, again) = (Seal::new(&secret).unwrap(), Seal::new(&secret).unwrap());
        let (ada, id) = (user("ada", "1"), Uuid::new_v4());
        let handle = seal.seal(Some(&ada), id, b"body");
        assert_eq!(again.open(Some(&ada), &handle).unwrap(), (id, Bytes::from_static(b"body")));
        for other in [Some(user("bob", "1")), Some(user("ada", "2")), Some(user("ad", "a1")), None] {
            assert_eq!(seal.open(other.as_ref(), &handle).unwrap_err().code(), tonic::Code::NotFound, "{other:?}");
        }
        assert!(Seal::new(&Secret::random()).unwrap().open(Some(&ada), &handle).is_err(), "another database's key");
        for bit in 0..handle.len() * 8 {
            let mut bad = handle.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(seal.open(Some(&ada), &bad.into()).is_err(), "bit {bit}");
        }
        for length in 0..handle.len() {
            assert!(seal.open(Some(&ada), &handle.slice(..length)).is_err(), "cut to {length}");
        }
        assert!(seal.open(Some(&ada), &[&handle[..], b"x"].concat().into()).is_err());
        let nobodys = seal.seal(None, id, b"");
        assert!(seal.open(None, &nobodys).is_ok() && seal.open(Some(&ada), &nobodys).is_err());
    }
}
