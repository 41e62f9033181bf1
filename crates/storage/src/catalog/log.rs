//! The series of numbered catalog files of a database. How such a series is read and added to is in `../numbered.rs`, what is
//! in a file in `format.rs`, what older ones lose in `history.rs`. None is ever deleted.

use super::{Catalog, format};
use crate::error::Result;
use crate::numbered::{self, Numbered, NumberedFiles};

pub(crate) use crate::numbered::CommitError;

/// Folder of the catalog files in a database.
pub(crate) const FOLDER: &str = "_catalog";

/// The catalog files of one database.
pub(crate) type CatalogLog = NumberedFiles<Catalog>;

/// What a change wants.
pub(crate) type Change<T> = numbered::Change<Catalog, T>;

impl Numbered for Catalog {
    const NAME: &'static str = "catalog";
    const IS_PRUNED: bool = false;

    fn number(&self) -> u64 {
        self.number
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    fn file_name(number: u64) -> String {
        format!("{number:020}.json")
    }

    fn number_in(file_name: &str) -> Option<u64> {
        let stem = file_name.strip_suffix(".json")?;
        (stem.len() == 20).then(|| stem.parse().ok()).flatten()
    }

    fn encode(&self, nonce: &str) -> Result<Vec<u8>> {
        format::encode(self, nonce)
    }

    fn decode(bytes: &[u8], number: u64, file: &str) -> Result<(Self, String)> {
        let format::Decoded { catalog, nonce } = format::decode(bytes, number, file)?;
        Ok((catalog, nonce))
    }
}
