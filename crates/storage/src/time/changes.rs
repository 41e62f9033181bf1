//! Which rows differ between two versions, found from file names and deletion vectors: no row is read.

use std::collections::HashMap;

use lance::dataset::transaction::{Operation, RewriteGroup};
use lance_table::format::Fragment;
use roaring::RoaringBitmap;

use super::{AsOf, checkout};
use crate::catalog::TableEntry;
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::snapshot::{Snapshot, guard};

/// In a list of origins: the row does not come from the older version.
const NEW: u64 = u64::MAX;

/// What differs between two versions. The rows are read with [`Snapshot::take`].
#[derive(Clone, Debug)]
pub struct TableChanges {
    /// The older version.
    pub old: Snapshot,
    /// The newer version.
    pub new: Snapshot,
    /// Addresses in `old` of rows that `new` does not have, ascending.
    pub removed: Vec<u64>,
    /// Addresses in `new` of rows that `old` does not have, ascending. A row that was updated is in both lists.
    pub added: Vec<u64>,
}

impl Database {
    /// Compares two versions of a table row by row; `from` is the older one. What OPTIMIZE moved is no change. Cost:
    /// the deletion vectors of both, and one small read per version between them if files were rewritten.
    ///
    /// # Errors
    /// [`StorageError::Invalid`] if `from` is newer than `to`, [`StorageError::NotFound`] if one is not kept.
    pub async fn changes(&self, entry: &TableEntry, from: u64, to: u64) -> Result<TableChanges> {
        if from > to {
            return Err(StorageError::invalid(format!(
                "changes are listed from an older version to a newer one, not from {from} to {to}"
            )));
        }
        let newest = self.snapshot(entry).await?;
        let old = self.at(&newest, &AsOf::Version(from), i64::MAX).await?;
        let new = self.at(&newest, &AsOf::Version(to), i64::MAX).await?;
        let mut origins = Origins::of(&old);
        if new.fragments().iter().any(|fragment| !origins.knows(&fragment.metadata)) {
            for version in from + 1..=to {
                origins.follow(&newest, version).await?;
            }
        }
        let dead_before = deleted(&old).await?;
        let was_dead = |fragment, offset| dead_before.get(&fragment).is_some_and(|dead| dead.contains(offset));
        let mut kept: HashMap<u32, RoaringBitmap> = HashMap::new();
        let mut added = vec![];
        for fragment in new.fragments() {
            let dead = new.deleted_rows(fragment.id).await?;
            for offset in (0..offsets(fragment.rows)?).filter(|offset| !dead.contains(*offset)) {
                let address = (u64::from(fragment.id) << 32) | u64::from(offset);
                match origins.of_row(&fragment.metadata, offset) {
                    NEW => added.push(address),
                    origin => match split(origin) {
                        // A RESTORE brings back what was deleted.
                        (fragment, offset) if was_dead(fragment, offset) => added.push(address),
                        (fragment, offset) => {
                            kept.entry(fragment).or_default().insert(offset);
                        }
                    },
                }
            }
        }
        let removed = removed(&old, &dead_before, kept)?;
        Ok(TableChanges { old, new, removed, added })
    }
}

/// The rows of each fragment that are deleted in a version.
async fn deleted(snapshot: &Snapshot) -> Result<HashMap<u32, RoaringBitmap>> {
    let mut deleted = HashMap::new();
    for fragment in snapshot.fragments() {
        deleted.insert(fragment.id, snapshot.deleted_rows(fragment.id).await?);
    }
    Ok(deleted)
}

/// Rows of `old` that are not deleted there and not among `kept`.
fn removed(
    old: &Snapshot,
    dead: &HashMap<u32, RoaringBitmap>,
    mut kept: HashMap<u32, RoaringBitmap>,
) -> Result<Vec<u64>> {
    let mut removed = vec![];
    for fragment in old.fragments() {
        let was_dead = |offset| dead.get(&fragment.id).is_some_and(|dead| dead.contains(offset));
        let kept = kept.remove(&fragment.id).unwrap_or_default();
        let gone = (0..offsets(fragment.rows)?).filter(|offset| !was_dead(*offset) && !kept.contains(*offset));
        removed.extend(gone.map(|offset| (u64::from(fragment.id) << 32) | u64::from(offset)));
    }
    Ok(removed)
}

fn offsets(rows: u64) -> Result<u32> {
    u32::try_from(rows).map_err(|_| StorageError::unsupported(format!("a fragment of {rows} rows is too large")))
}

fn split(address: u64) -> (u32, u32) {
    let part = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    (part(address >> 32), part(address))
}

/// A fragment is known by the name of its first file: columns that are added come in further files.
fn identity(fragment: &Fragment) -> &str {
    fragment.files.first().map_or("", |file| file.path.as_str())
}

/// Where rows come from, in addresses of the older version.
struct Origins {
    /// Fragments of the older version.
    first: HashMap<String, u64>,
    /// Files that a compaction made: the origin of each row.
    rewritten: HashMap<String, Vec<u64>>,
}

impl Origins {
    fn of(old: &Snapshot) -> Self {
        let first =
            old.fragments().iter().map(|fragment| (identity(&fragment.metadata).to_owned(), fragment.id.into()));
        Self { first: first.collect(), rewritten: HashMap::new() }
    }

    fn knows(&self, fragment: &Fragment) -> bool {
        self.first.contains_key(identity(fragment))
    }

    fn of_row(&self, fragment: &Fragment, offset: u32) -> u64 {
        let name = identity(fragment);
        match self.first.get(name) {
            Some(number) => (number << 32) | u64::from(offset),
            None => self.rewritten.get(name).and_then(|rows| rows.get(offset as usize)).copied().unwrap_or(NEW),
        }
    }

    /// Takes in the compaction of `version`, if that is what it was.
    async fn follow(&mut self, newest: &Snapshot, version: u64) -> Result<()> {
        let what = format!("cannot read what made version {version} of {}", newest.location());
        let made = guard(&what, newest.dataset().read_version_transaction(version)).await?;
        let Some(transaction) = made.transaction else { return Ok(()) };
        let Operation::Rewrite { groups, .. } = transaction.operation else { return Ok(()) };
        let Some(before) = checkout(newest, version - 1).await? else {
            return Err(StorageError::not_found(format!("{what}: version {} is not kept", version - 1)));
        };
        let before = newest.sibling(before).await?;
        for group in &groups {
            self.follow_group(&before, group).await?;
        }
        Ok(())
    }

    /// Lance writes the live rows of the old fragments, in order, into the new ones.
    async fn follow_group(&mut self, before: &Snapshot, group: &RewriteGroup) -> Result<()> {
        let mut rows = vec![];
        for fragment in &group.old_fragments {
            let number = u32::try_from(fragment.id).unwrap_or(u32::MAX);
            let dead = before.deleted_rows(number).await?;
            let count = u32::try_from(fragment.physical_rows.unwrap_or(0)).unwrap_or(0);
            rows.extend((0..count).filter(|offset| !dead.contains(*offset)).map(|at| self.of_row(fragment, at)));
        }
        let moved: usize = group.new_fragments.iter().filter_map(|fragment| fragment.physical_rows).sum();
        if moved != rows.len() {
            return Err(StorageError::internal(format!(
                "a compaction of {} wrote {moved} rows for {}",
                before.location(),
                rows.len()
            )));
        }
        let mut rows = rows.into_iter();
        for fragment in &group.new_fragments {
            let part = rows.by_ref().take(fragment.physical_rows.unwrap_or(0)).collect();
            self.rewritten.insert(identity(fragment).to_owned(), part);
        }
        Ok(())
    }
}
