//! How indexes and their segments come and go: each change is one more list of indexes, made by compare-and-retry, so that
//! processes may build side by side. A segment's file is written before the list names it.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use roaring::RoaringBitmap;
use uuid::Uuid;

use super::format::{Head, Section, UnitHead};
use super::manifest::{IndexDefinition, IndexManifest, RemovedFile, SegmentEntry, Unit};
use super::{TableIndexes, now_us};
use crate::catalog::{TableEntry, TableName};
use crate::database::{Database, check_name};
use crate::error::{Result, StorageError};
use crate::numbered::{Change, CommitError, Numbered};
use crate::snapshot::shown;

/// Bytes of a part of an upload. Smaller files are put at once.
const PART_BYTES: usize = 16 << 20;

/// Parts under way at once.
const PARTS_AT_ONCE: usize = 4;

/// How long files stay that a list of indexes named until lately: others may be about to open them.
const REMOVED_KEPT_US: i64 = 10 * 60 * 1_000_000;

/// Lists before the newest that are looked through for one that can be read.
const LISTS_BACK_MAX: u64 = 64;

/// An index that is to be.
#[derive(Clone, Debug)]
pub struct NewIndex {
    /// Unique in its table.
    pub name: String,
    /// A column of vectors.
    pub column: String,
    /// Method, metric and parameters, in the words of whoever builds and searches.
    pub options: String,
    /// The time of the statement.
    pub now_us: i64,
}

/// A segment that was built.
#[derive(Clone, Debug)]
pub struct NewSegment {
    /// Which family of indexes reads it.
    pub family: String,
    /// Its bytes.
    pub sections: Vec<Section>,
    /// What it covers, in the order of its local rows: the rows of a unit follow those of the one before.
    pub units: Vec<NewUnit>,
    /// What was measured at the build.
    pub calibration: String,
    /// Microseconds since the epoch.
    pub built_at_us: i64,
}

/// A data file of which a segment was built.
#[derive(Clone, Debug)]
pub struct NewUnit {
    /// Its name.
    pub file: String,
    /// Its rows, all of them.
    pub rows: u64,
    /// Offsets of rows that were left out though they may have a vector.
    pub absent: RoaringBitmap,
}

impl Database {
    /// The indexes of a table as they are now. Cost: a LIST and a small read.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if the list of indexes is damaged, [`StorageError::Unsupported`] if a newer program wrote it.
    pub async fn indexes(&self, entry: &TableEntry) -> Result<Arc<IndexManifest>> {
        self.table_indexes(&entry.location).newest().await
    }

    /// Makes an index without segments: every row is uncovered until one is published.
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`]; [`StorageError::NotFound`] for an unknown column, [`StorageError::Invalid`] for one that
    /// holds no vectors; [`StorageError::Conflict`] if the table was dropped meanwhile.
    pub async fn create_index(&self, name: &TableName, entry: &TableEntry, new: NewIndex) -> Result<IndexDefinition> {
        check_name("index", &new.name)?;
        self.check_holds(name, entry).await?;
        let snapshot = self.snapshot(entry).await?;
        snapshot.vector_chunks(&new.column)?;
        // Its columns may have indexes of another kind (`scalar_index.rs`), whose names count too.
        if snapshot.lance_indexes().await?.iter().any(|other| other.name == new.name) {
            let text = format!("index {} is on table {name} already; DROP INDEX it first", new.name);
            return Err(StorageError::already_exists(text));
        }
        let definition = IndexDefinition {
            id: Uuid::new_v4().to_string(),
            name: new.name,
            field_id: snapshot.field_id(&new.column)?,
            options: new.options,
            created_at_us: new.now_us,
        };
        let indexes = self.table_indexes(&entry.location);
        let change = |current: &IndexManifest| {
            if current.index(&definition.name).is_some() {
                let text = format!("index {} is on table {name} already; DROP INDEX it first", definition.name);
                return Err(StorageError::already_exists(text));
            }
            let mut next = current.clone();
            next.indexes.push(definition.clone());
            Ok(Change::Write(next, ()))
        };
        indexes.change(change).await?;
        Ok(definition)
    }

    /// Gives an index other options; its segments stay.
    ///
    /// # Errors
    /// [`StorageError::NotFound`].
    pub async fn set_index_options(&self, entry: &TableEntry, index: &str, options: &str) -> Result<()> {
        let indexes = self.table_indexes(&entry.location);
        let table = self.shown_table(entry);
        let change = |current: &IndexManifest| {
            let id = current.require(index, &table)?.id.clone();
            let mut next = current.clone();
            next.indexes.iter_mut().filter(|other| other.id == id).for_each(|other| other.options = options.to_owned());
            Ok(Change::Write(next, ()))
        };
        Ok(indexes.change(change).await?)
    }

    /// Takes an index away, and its files. `false`: it was not there and `if_exists`.
    ///
    /// # Errors
    /// [`StorageError::NotFound`].
    pub async fn drop_index(&self, entry: &TableEntry, index: &str, if_exists: bool) -> Result<bool> {
        let table = self.shown_table(entry);
        let find = |current: &IndexManifest| match current.index(index) {
            None if if_exists => Ok(None),
            _ => current.require(index, &table).cloned().map(Some),
        };
        self.drop_found(entry, find).await
    }

    /// Takes back an index that was made, unless it is gone; another one that has its name now stays.
    ///
    /// # Errors
    /// As [`Database::drop_index`].
    pub async fn take_back_index(&self, entry: &TableEntry, index: &IndexDefinition) -> Result<bool> {
        let find = |current: &IndexManifest| Ok(current.indexes.iter().find(|other| other.id == index.id).cloned());
        self.drop_found(entry, find).await
    }

    async fn drop_found(
        &self,
        entry: &TableEntry,
        find: impl Fn(&IndexManifest) -> Result<Option<IndexDefinition>>,
    ) -> Result<bool> {
        let indexes = self.table_indexes(&entry.location);
        let change = |current: &IndexManifest| {
            let Some(dropped) = find(current)? else { return Ok(Change::Nothing(None)) };
            let mut next = current.clone();
            next.indexes.retain(|other| other.id != dropped.id);
            next.segments.retain(|segment| segment.index != dropped.id);
            next.row_maps.retain(|map| next.indexes.iter().any(|other| other.field_id == map.field_id));
            let kept: HashSet<String> = next.files().collect();
            let gone: Vec<String> = current.files().filter(|file| !kept.contains(file)).collect();
            Ok(Change::Write(next, Some(gone)))
        };
        let Some(gone) = indexes.change(change).await? else { return Ok(false) };
        // Whoever is about to open one of them compares its rows exactly.
        indexes.delete(&gone).await;
        Ok(true)
    }

    /// Adds a segment to an index. Until it returns, nobody uses it.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the index was dropped meanwhile or somebody else has covered a unit of it: nothing was added.
    /// [`StorageError::Full`], [`StorageError::Unavailable`].
    pub async fn publish_segment(
        &self,
        entry: &TableEntry,
        index: &IndexDefinition,
        segment: NewSegment,
    ) -> Result<SegmentEntry> {
        self.replace_segments(entry, index, &[], segment).await
    }

    /// Puts one segment in the place of others of an index, at once. Their files stay for some minutes.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if one of the others is gone, and as [`Database::publish_segment`].
    pub async fn replace_segments(
        &self,
        entry: &TableEntry,
        index: &IndexDefinition,
        replaced: &[String],
        by: NewSegment,
    ) -> Result<SegmentEntry> {
        let indexes = self.table_indexes(&entry.location);
        let (head, sections) = laid_out(index, by.family.clone(), by.sections, by.units)?;
        let made = entry_of(index, &head, &by.calibration, by.built_at_us);
        indexes.write_segment(&made, &head, &sections).await?;
        let change = |current: &IndexManifest| indexes.with_segment(current, replaced, &made);
        match indexes.change(change).await {
            Ok(()) => {
                indexes.sweep().await;
                Ok(made)
            }
            Err(CommitError { error, outcome_unknown }) => {
                if !outcome_unknown {
                    indexes.delete(&[made.file()]).await;
                }
                Err(error)
            }
        }
    }

    /// Takes all segments from an index, which covers nothing then: what REINDEX begins with.
    ///
    /// # Errors
    /// [`StorageError::NotFound`].
    pub async fn clear_index(&self, entry: &TableEntry, index: &str) -> Result<IndexDefinition> {
        let indexes = self.table_indexes(&entry.location);
        let table = self.shown_table(entry);
        let change = |current: &IndexManifest| {
            let definition = current.require(index, &table)?.clone();
            let mut next = current.clone();
            let removed_at_us = now_us();
            let gone = current.segments_of(&definition).map(|entry| RemovedFile { file: entry.file(), removed_at_us });
            next.removed.extend(gone);
            next.segments.retain(|segment| segment.index != definition.id);
            Ok(Change::Write(next, definition))
        };
        let cleared = indexes.change(change).await?;
        indexes.sweep().await;
        Ok(cleared)
    }

    /// Where the newest list of indexes is damaged: goes on from the newest one that can be read, or from none. Returns how many
    /// indexes there are then. Cost: a few small reads.
    ///
    /// # Errors
    /// [`StorageError::Unsupported`] if a newer program wrote the list, [`StorageError::Unavailable`].
    pub async fn repair_indexes(&self, entry: &TableEntry) -> Result<usize> {
        let indexes = self.table_indexes(&entry.location);
        match indexes.newest().await {
            Ok(manifest) => return Ok(manifest.indexes.len()),
            Err(StorageError::Corrupt(_)) => {}
            Err(error) => return Err(error),
        }
        let last = indexes.log.last_listed().await?;
        let mut next = IndexManifest::default();
        for number in (last.saturating_sub(LISTS_BACK_MAX).max(1)..last).rev() {
            match indexes.log.read(number).await {
                Ok(Some((readable, _))) => {
                    next = readable;
                    break;
                }
                Ok(None) | Err(StorageError::Corrupt(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let count = next.indexes.len();
        next.set_number(last + 1);
        indexes.log.add(next).await?;
        indexes.changed();
        tracing::warn!(
            table = entry.location,
            damaged = last,
            indexes = count,
            "a damaged list of indexes was followed by a sound one"
        );
        Ok(count)
    }

    fn shown_table(&self, entry: &TableEntry) -> String {
        shown(self.root(), &entry.location)
    }
}

/// Places and sums of the sections.
fn laid_out(
    index: &IndexDefinition,
    family: String,
    sections: Vec<Section>,
    units: Vec<NewUnit>,
) -> Result<(Head, Vec<Section>)> {
    let mut start = 0;
    let mut heads = Vec::with_capacity(units.len());
    for NewUnit { file, rows, absent } in units {
        let is_inside = absent.max().is_none_or(|last| u64::from(last) < rows);
        if !is_inside || heads.iter().any(|other: &UnitHead| other.file == file) {
            return Err(StorageError::internal(format!("unit {file} of a segment makes no sense")));
        }
        heads.push(UnitHead { file, start, rows, absent });
        start += rows;
    }
    if start > u64::from(u32::MAX) {
        return Err(StorageError::unsupported(format!("a segment of {start} rows is too large; build several")));
    }
    let head = Head { family, index: index.id.clone(), field_id: index.field_id, ..Head::of(&sections, heads) };
    Ok((head.laid_out(), sections))
}

fn entry_of(index: &IndexDefinition, head: &Head, calibration: &str, built_at_us: i64) -> SegmentEntry {
    let unit = |unit: &UnitHead| Unit {
        file: unit.file.clone(),
        start: unit.start,
        rows: unit.rows,
        absent: unit.absent.len(),
    };
    SegmentEntry {
        id: Uuid::new_v4().to_string(),
        index: index.id.clone(),
        family: head.family.clone(),
        units: head.units.iter().map(unit).collect(),
        rows: head.rows,
        bytes: head.file_bytes,
        built_at_us,
        calibration: calibration.to_owned(),
    }
}

impl TableIndexes {
    /// Changes the list of indexes.
    pub(crate) async fn change<T>(
        &self,
        change: impl FnMut(&IndexManifest) -> Result<Change<IndexManifest, T>>,
    ) -> Result<T, CommitError> {
        let changed = self.log.commit(change).await?;
        self.changed();
        Ok(changed)
    }

    /// The list with a segment more, without those that it replaces and those that nobody can use.
    fn with_segment(
        &self,
        current: &IndexManifest,
        replaced: &[String],
        made: &SegmentEntry,
    ) -> Result<Change<IndexManifest, ()>> {
        let conflict = |why: String| Err(StorageError::conflict(format!("the segment was not added: {why}")));
        if !current.indexes.iter().any(|index| index.id == made.index) {
            return conflict("its index was dropped meanwhile".to_owned());
        }
        let is_there = |id: &String| current.segments.iter().any(|segment| segment.id == *id);
        if let Some(gone) = replaced.iter().find(|id| !is_there(id)) {
            return conflict(format!("segment {gone}, which it would replace, is gone"));
        }
        let mut next = current.clone();
        let goes = |segment: &SegmentEntry| replaced.contains(&segment.id) || self.refusal(&segment.id).is_some();
        let removed_at_us = now_us();
        let gone = current.segments.iter().filter(|segment| goes(segment));
        next.removed.extend(gone.map(|segment| RemovedFile { file: segment.file(), removed_at_us }));
        next.segments.retain(|segment| !goes(segment));
        let others = next.segments.iter().filter(|segment| segment.index == made.index);
        let covered: HashSet<&str> = others.flat_map(|other| &other.units).map(|unit| unit.file.as_str()).collect();
        // A unit of which only some rows are there may complete another one.
        let twice = made.units.iter().find(|unit| unit.absent == 0 && covered.contains(unit.file.as_str()));
        if let Some(unit) = twice {
            return conflict(format!("{} is covered already", unit.file));
        }
        next.segments.push(made.clone());
        Ok(Change::Write(next, ()))
    }

    /// Writes the file of a segment.
    async fn write_segment(&self, entry: &SegmentEntry, head: &Head, sections: &[Section]) -> Result<()> {
        let relative = self.relative(&entry.file());
        let path = self.root.path(&relative);
        let failed =
            |error| StorageError::from_store(format!("cannot write segment {}", shown(&self.root, &relative)), error);
        let written = match usize::try_from(head.file_bytes) {
            Ok(bytes) if bytes <= PART_BYTES => {
                let mut payload = Vec::with_capacity(bytes);
                pieces(head, sections).iter().for_each(|piece| payload.extend_from_slice(piece));
                self.root.store().put(&path, PutPayload::from(payload)).await.map(|_| ())
            }
            _ => self.upload(&path, pieces(head, sections)).await,
        };
        written.map_err(failed)
    }

    async fn upload(&self, path: &Path, pieces: Vec<Bytes>) -> object_store::Result<()> {
        let mut upload = self.root.store().put_multipart(path).await?;
        match put_parts(upload.as_mut(), pieces).await {
            Ok(()) => upload.complete().await.map(|_| ()),
            Err(error) => {
                // What is left of it wastes space until the store drops it.
                if let Err(error) = upload.abort().await {
                    tracing::debug!(%path, %error, "an upload could not be taken back");
                }
                Err(error)
            }
        }
    }

    /// Deletes files of the folder. Those that cannot be deleted only waste space until the next VACUUM.
    pub(crate) async fn delete(&self, files: &[String]) -> bool {
        let mut is_done = true;
        for file in files {
            if let Some(id) = file.strip_suffix(".seg") {
                self.segments.forget(&self.location, Some(id));
            }
            match self.root.store().delete(&self.root.path(&self.relative(file))).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => {
                    is_done = false;
                    tracing::warn!(file, %error, "an index file could not be deleted and wastes space");
                }
            }
        }
        is_done
    }

    /// Deletes the files that were removed long enough ago, and forgets them. What fails is tried again the next time.
    pub(crate) async fn sweep(&self) {
        let Ok(current) = self.newest().await else { return };
        let before = now_us() - REMOVED_KEPT_US;
        let old = current.removed.iter().filter(|removed| removed.removed_at_us < before);
        let old: Vec<String> = old.map(|removed| removed.file.clone()).collect();
        if old.is_empty() || !self.delete(&old).await {
            return;
        }
        let change = |current: &IndexManifest| {
            let mut next = current.clone();
            next.removed.retain(|removed| !old.contains(&removed.file));
            Ok(if next.removed.len() == current.removed.len() { Change::Nothing(()) } else { Change::Write(next, ()) })
        };
        if let Err(CommitError { error, .. }) = self.change(change).await {
            tracing::debug!(%error, "files that were deleted are still listed as removed");
        }
    }
}

/// The file, in pieces that are not copied.
fn pieces(head: &Head, sections: &[Section]) -> Vec<Bytes> {
    let mut end = head.encode().len() as u64;
    let mut pieces = vec![Bytes::from(head.encode())];
    for (section, place) in sections.iter().zip(&head.sections) {
        let padding = usize::try_from(place.start - end).unwrap_or(0);
        pieces.push(Bytes::from(vec![0; padding]));
        pieces.push(section.bytes.clone());
        end = place.start + place.bytes;
    }
    pieces
}

/// Parts are all of one size but for the last one, as some stores want it.
async fn put_parts(upload: &mut dyn MultipartUpload, pieces: Vec<Bytes>) -> object_store::Result<()> {
    let mut parts = vec![];
    let (mut part, mut room) = (vec![], PART_BYTES);
    for mut piece in pieces {
        while piece.len() >= room {
            part.push(piece.split_to(room));
            parts.push(std::mem::take(&mut part));
            room = PART_BYTES;
        }
        room -= piece.len();
        if !piece.is_empty() {
            part.push(piece);
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    // The order of the calls is that of the parts.
    let under_way = parts.into_iter().map(|part| upload.put_part(part.into_iter().collect::<PutPayload>()));
    futures::stream::iter(under_way).buffered(PARTS_AT_ONCE).try_collect().await
}
