//! A secret that all servers of a database share: what one of them signs, the others recognise.
//!
//! It is a file of its own, `_keys/handles.json`, made by put-if-absent by whoever needs it first, and never changed: not in
//! the catalog, because every change of that writes all of it again, and not in a configuration, because two servers that are
//! started with different ones would refuse each other's handles. Whoever can read the database's files could read everything
//! in it as well. Deleting the file while no server runs makes a new secret.
//!
//! One line of JSON: `{"sagitta_key":1,"key":"<96 hexadecimal digits>","crc32":"<of the key's digits>"}`.

use std::fmt;

use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::database::Database;
use crate::error::{Result, StorageError};

/// The file, in the root of the database.
const FILE: &str = "_keys/handles.json";

/// The version of the format.
const VERSION: u32 = 1;

/// Random UUIDs in a key: 122 random bits in each.
const UUIDS: usize = 3;

/// How often making the file is tried when the store's answers are lost.
const ATTEMPTS_MAX: u32 = 4;

/// The secret's bytes. They are shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret that nobody else has.
    pub fn random() -> Self {
        Self((0..UUIDS).flat_map(|_| Uuid::new_v4().into_bytes()).collect())
    }

    /// The bytes.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    sagitta_key: u32,
    key: String,
    crc32: String,
}

impl Database {
    /// The secret that the servers of this database share; it is made if there is none.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] for a damaged file, [`StorageError::Unsupported`] for one of a newer version, and whatever
    /// the store says where it can neither be read nor made.
    pub async fn shared_secret(&self) -> Result<Secret> {
        let root = self.root();
        let path = root.path(FILE);
        let shown = format!("{}/{FILE}", self.location());
        let mut unclear = None;
        for _ in 0..ATTEMPTS_MAX {
            match async { root.store().get(&path).await?.bytes().await }.await {
                Ok(bytes) => return decode(&bytes, &shown),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(StorageError::from_store(format!("cannot read {shown}"), error)),
            }
            let payload = PutPayload::from(encode(&Secret::random())?);
            let options = PutOptions { mode: PutMode::Create, ..Default::default() };
            // Whoever was first, what is there now is the secret.
            if let Err(error) = root.store().put_opts(&path, payload, options).await {
                unclear = Some(StorageError::from_store(format!("cannot write {shown}"), error));
            }
        }
        Err(unclear.unwrap_or_else(|| StorageError::unavailable(format!("{shown} was written and is not there"))))
    }
}

fn encode(secret: &Secret) -> Result<Vec<u8>> {
    let key: String = secret.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let crc32 = format!("{:08x}", crc32fast::hash(key.as_bytes()));
    let stored = Stored { sagitta_key: VERSION, key, crc32 };
    let line = serde_json::to_string(&stored);
    let line = line.map_err(|error| StorageError::internal("a key cannot be written as JSON").with_source(error))?;
    Ok(format!("{line}\n").into_bytes())
}

/// No part of the file goes into a message.
fn decode(bytes: &[u8], shown: &str) -> Result<Secret> {
    let corrupt =
        || StorageError::corrupt(format!("{shown} is damaged; stop all servers and delete it, a new one will be made"));
    let stored: Stored = serde_json::from_slice(bytes).map_err(|_| corrupt())?;
    if stored.sagitta_key > VERSION {
        return Err(StorageError::unsupported(format!(
            "{shown} has format {} and this program reads up to {VERSION}; use a newer sagitta",
            stored.sagitta_key
        )));
    }
    if stored.crc32 != format!("{:08x}", crc32fast::hash(stored.key.as_bytes())) || !stored.key.is_ascii() {
        return Err(corrupt());
    }
    let digits = stored.key.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let key: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    match key.filter(|key| key.len() == UUIDS * 16) {
        Some(key) => Ok(Secret(key)),
        None => Err(corrupt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;

    #[tokio::test]
    async fn all_who_open_a_database_share_one_secret() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = async |folder: &tempfile::TempDir| {
            Database::open(&folder.path().display().to_string(), OpenOptions::default()).await.unwrap()
        };
        let (one, two, third) = (open(&folder).await, open(&folder).await, open(&other).await);
        let (first, second) = tokio::join!(one.shared_secret(), two.shared_secret());
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(first == second && first == one.shared_secret().await.unwrap());
        assert!(first != third.shared_secret().await.unwrap());
        assert!(!format!("{first:?}").contains(char::is_numeric));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let secret = Secret::random();
        let good = encode(&secret).unwrap();
        assert!(decode(&good, "f").unwrap() == secret);
        for at in 0..good.len() - 1 {
            assert!(decode(&good[..at], "f").is_err(), "truncated at {at}");
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // A version of the past is no damage.
                assert!(decode(&bad, "f").map_or(true, |read| read == secret), "bit {bit} of byte {at}");
            }
        }
    }
}
