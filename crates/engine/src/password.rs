//! Passwords: argon2id hashes as PHC strings, made and compared off the threads that run statements. No password is kept.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{Error as HashError, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

use crate::{Error, ErrorKind, Result};

/// How many passwords are hashed at once at most: each takes 19 MiB and a core.
const AT_ONCE_MAX: usize = 4;

/// The longest password, in bytes.
const PASSWORD_BYTES_MAX: usize = 1024;

/// The hash of no password, of the parameters that new hashes have: what a name that does not exist is compared with.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Hashes passwords, a few at a time.
pub(crate) struct Passwords {
    turns: Arc<Semaphore>,
}

impl Passwords {
    /// As many at once as there are threads, and no more than [`AT_ONCE_MAX`].
    pub(crate) fn new(threads: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(threads.clamp(1, AT_ONCE_MAX))) }
    }

    /// The hash to store. Cost: some tens of milliseconds of one core.
    ///
    /// # Errors
    /// A password that is empty or too long.
    pub(crate) async fn hash(&self, password: &str) -> Result<String> {
        if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
            return Err(Error::invalid(format!("a password has 1 to {PASSWORD_BYTES_MAX} bytes")));
        }
        let password = password.to_owned();
        self.apart(move || {
            let hashed: std::result::Result<PasswordHash, HashError> =
                Argon2::default().hash_password(password.as_bytes());
            match hashed {
                Ok(hash) => Ok(hash.to_string()),
                Err(error) => Err(Error::new(ErrorKind::Internal, format!("a password cannot be hashed: {error}"))),
            }
        })
        .await
    }

    /// Whether the password is the one of the hash. Without a hash the answer is no, after the same time.
    ///
    /// # Errors
    /// A hash that is none.
    pub(crate) async fn verify(&self, hash: Option<String>, password: &str) -> Result<bool> {
        // What is too long is nobody's; compared it is all the same, as far as it may be.
        let is_known = hash.is_some() && password.len() <= PASSWORD_BYTES_MAX;
        let password = password.as_bytes()[..password.len().min(PASSWORD_BYTES_MAX)].to_vec();
        let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
        let is_right = self.apart(move || {
            let damaged =
                || Error::new(ErrorKind::Corrupt, "the stored hash of a password cannot be read; set it anew");
            let hash = PasswordHash::new(&hash).map_err(|_| damaged())?;
            match Argon2::default().verify_password(&password, &hash) {
                Ok(()) => Ok(true),
                Err(HashError::PasswordInvalid) => Ok(false),
                Err(error @ HashError::OutOfMemory) => Err(Error::new(ErrorKind::Exhausted, error.to_string())),
                Err(_) => Err(damaged()),
            }
        });
        Ok(is_right.await? && is_known)
    }

    /// Runs work on a thread of its own, when it is its turn. The turn ends with the work, also if nobody waits for it.
    async fn apart<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let stopped = |what: String| Error::new(ErrorKind::Internal, format!("a password could not be hashed: {what}"));
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|error| stopped(error.to_string()))?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        });
        done.await.map_err(|error| stopped(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_knows_its_password_and_no_other() {
        let passwords = Passwords::new(2);
        let hash = passwords.hash("hunter2").await.unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert_ne!(hash, passwords.hash("hunter2").await.unwrap(), "each has a salt of its own");
        for (password, expected) in [("hunter2", true), ("Hunter2", false), ("", false)] {
            assert_eq!(passwords.verify(Some(hash.clone()), password).await.unwrap(), expected, "{password}");
        }
        assert!(!passwords.verify(None, "hunter2").await.unwrap());
        let damaged = passwords.verify(Some("hash".into()), "hunter2").await;
        assert!(damaged.is_err_and(|error| error.kind == ErrorKind::Corrupt));
    }

    #[tokio::test]
    async fn passwords_have_bounds() {
        let passwords = Passwords::new(1);
        let long = "x".repeat(PASSWORD_BYTES_MAX + 1);
        assert!(passwords.hash("").await.is_err() && passwords.hash(&long).await.is_err());
        let hash = passwords.hash(&long[1..]).await.unwrap();
        assert!(passwords.verify(Some(hash.clone()), &long[1..]).await.unwrap());
        assert!(!passwords.verify(Some(hash), &long).await.unwrap());
    }

    #[tokio::test]
    async fn an_unknown_name_costs_what_a_wrong_password_costs() {
        let made = Passwords::new(1).hash("x").await.unwrap();
        let (made, nobody) = (PasswordHash::new(&made).unwrap(), PasswordHash::new(NOBODY).unwrap());
        assert_eq!((made.algorithm, made.version, &made.params), (nobody.algorithm, nobody.version, &nobody.params));
        let lengths = |hash: &PasswordHash| (hash.salt.map(|salt| salt.len()), hash.hash.map(|hash| hash.len()));
        assert_eq!(lengths(&made), lengths(&nobody));
    }
}
