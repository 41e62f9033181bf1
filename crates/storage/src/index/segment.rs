//! Opened segments: their bytes at hand, mapped from local disk or read into memory, verified, and shared by all who search.
//!
//! A mapped segment is open in the time that its head and its pinned sections take; the rest is verified in the background,
//! and whoever finds it damaged says so to all. One that is read is verified on the way. Where segments are to be in memory, a
//! mapped one is read in the background too, into large pages, and takes the place of the map.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arrow::buffer::Buffer;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use tokio::sync::OnceCell;

use super::FOLDER;
use super::disk_cache::DiskCache;
use super::format::{FormatError, Head, Tier, UnitHead};
use super::manifest::SegmentEntry;
use super::publish::NewUnit;
use crate::error::{Result, StorageError};
use crate::map::MappedFile;
use crate::snapshot::shown;
use crate::store::Root;
use crate::vectors::pages::Pages;

/// Bytes of segments in memory that are kept if nothing else is said. Mapped ones do not count: the system drops their pages.
const CACHE_BYTES: u64 = 1 << 30;

/// Mapped segments that are kept open, at most.
const MAPPED_MAX: usize = 4096;

/// An opened segment. Its bytes never change.
pub struct Segment {
    id: String,
    shown: String,
    head: Head,
    ranges: Vec<Range<usize>>,
    memory: Memory,
    /// Whether every byte is what was written.
    verified: OnceCell<()>,
    /// What its reader has made of it.
    parsed: OnceLock<Arc<dyn Any + Send + Sync>>,
}

enum Memory {
    Mapped(MappedFile),
    Read(Buffer),
}

impl fmt::Debug for Segment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sections: Vec<usize> = self.ranges.iter().map(Range::len).collect();
        formatter.debug_struct("Segment").field("id", &self.id).field("sections", &sections).finish_non_exhaustive()
    }
}

impl Segment {
    /// Its identity, a UUID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Which family of indexes reads it.
    pub fn family(&self) -> &str {
        &self.head.family
    }

    /// Local rows.
    pub fn rows(&self) -> u64 {
        self.head.rows
    }

    /// What it covers, in the order of its local rows.
    pub fn units(&self) -> Vec<NewUnit> {
        let unit = |unit: &UnitHead| NewUnit { file: unit.file.clone(), rows: unit.rows, absent: unit.absent.clone() };
        self.head.units.iter().map(unit).collect()
    }

    /// Number of sections.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether it has no section.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// A section, from a multiple of 64 on; empty if there is none of this number.
    pub fn section(&self, section: usize) -> &[u8] {
        self.ranges.get(section).and_then(|range| self.bytes().get(range.clone())).unwrap_or_default()
    }

    /// What is kept first of a section.
    pub fn tier(&self, section: usize) -> Option<Tier> {
        self.head.sections.get(section).map(|section| section.tier)
    }

    /// Whether its bytes are in memory of this process, and not pages of a file.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.memory, Memory::Read(_))
    }

    /// What `parse` makes of the segment, kept with it: made once, and gone with it.
    ///
    /// # Errors
    /// Those of `parse`.
    pub fn parsed<T, E>(&self, parse: impl FnOnce(&Self) -> Result<T, E>) -> Result<Arc<T>, E>
    where
        T: Send + Sync + 'static,
    {
        if let Some(Ok(known)) = self.parsed.get().map(|known| Arc::clone(known).downcast()) {
            return Ok(known);
        }
        let made = Arc::new(parse(self)?);
        let _ = self.parsed.set(Arc::clone(&made) as Arc<dyn Any + Send + Sync>);
        Ok(made)
    }

    /// Compares all bytes with their sums, once; also what warms a mapped segment up. Cost: the first time a read of the file.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`].
    pub async fn verify(self: &Arc<Self>) -> Result<()> {
        let verified = self.verified.get_or_try_init(|| async {
            let segment = Arc::clone(self);
            let verified = tokio::task::spawn_blocking(move || segment.check_sections(|_| true)).await;
            verified.map_err(|error| StorageError::internal("a check was broken off").with_source(error))?
        });
        verified.await.map(|_| ())
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Mapped(file) => file.bytes(),
            Memory::Read(buffer) => buffer.as_slice(),
        }
    }

    fn bytes_in_memory(&self) -> u64 {
        if self.is_in_memory() { self.head.file_bytes } else { 0 }
    }

    fn of(entry: &SegmentEntry, shown: String, memory: Memory) -> Result<Self> {
        let bytes = match &memory {
            Memory::Mapped(file) => file.bytes(),
            Memory::Read(buffer) => buffer.as_slice(),
        };
        let head = Head::decode(bytes, bytes.len() as u64).map_err(|error| refused(&shown, &error))?;
        check_entry(&head, entry, &shown)?;
        let place = |start: u64, bytes: u64| Some(usize::try_from(start).ok()?..usize::try_from(start + bytes).ok()?);
        let ranges = head.sections.iter().map(|section| place(section.start, section.bytes)).collect::<Option<_>>();
        let ranges = ranges.ok_or_else(|| StorageError::unsupported(format!("segment {shown} is too large")))?;
        let (verified, parsed) = (OnceCell::new(), OnceLock::new());
        Ok(Self { id: entry.id.clone(), shown, head, ranges, memory, verified, parsed })
    }

    fn check_sections(&self, is_checked: impl Fn(Tier) -> bool) -> Result<()> {
        for (at, section) in self.head.sections.iter().enumerate().filter(|(_, section)| is_checked(section.tier)) {
            if let Some(block) = section.bad_block(self.section(at)) {
                let what = format!("block {block} of section {at} is not what was written");
                return Err(damaged(&self.shown, &what));
            }
        }
        Ok(())
    }
}

fn refused(shown: &str, error: &FormatError) -> StorageError {
    match error {
        FormatError::Newer(_) => StorageError::unsupported(format!("segment {shown} cannot be used: {error}")),
        FormatError::Damaged(what) => damaged(shown, what),
    }
}

fn damaged(shown: &str, what: &str) -> StorageError {
    StorageError::corrupt(format!(
        "segment {shown} is damaged ({what}); its rows are compared exactly meanwhile, REINDEX makes it anew"
    ))
}

/// A file that was put in the place of another one is no better than a damaged one.
fn check_entry(head: &Head, entry: &SegmentEntry, shown: &str) -> Result<()> {
    let units = head.units.len() == entry.units.len()
        && head.units.iter().zip(&entry.units).all(|(one, other)| {
            one.file == other.file
                && one.start == other.start
                && one.rows == other.rows
                && one.absent.len() == other.absent
        });
    let is_same = head.index == entry.index && head.family == entry.family && head.rows == entry.rows && units;
    if is_same { Ok(()) } else { Err(damaged(shown, "it is another one than the list of indexes says")) }
}

/// Opens the segment of `entry`, of the table in `location`.
///
/// # Errors
/// [`StorageError::NotFound`], [`StorageError::Corrupt`], [`StorageError::Unsupported`] for a newer version.
async fn open(root: &Root, location: &str, entry: &SegmentEntry, disk: Option<DiskCache>) -> Result<Segment> {
    let relative = relative_of(location, entry);
    let shown = shown(root, &relative);
    let mapped = match (root.folder(), disk) {
        (Some(folder), _) => mapped(folder.join(&relative), entry, shown.clone()).await?,
        (None, Some(disk)) => from_disk(&disk, root, &relative, entry, &shown).await?,
        (None, None) => None,
    };
    match mapped {
        Some(segment) => Ok(segment),
        None => read(root, &relative, entry, shown).await,
    }
}

fn relative_of(location: &str, entry: &SegmentEntry) -> String {
    format!("{location}/{FOLDER}/{}", entry.file())
}

/// A mapped segment; `None` if the system does not map it.
async fn mapped(path: PathBuf, entry: &SegmentEntry, shown: String) -> Result<Option<Segment>> {
    let entry = entry.clone();
    let mapped = tokio::task::spawn_blocking(move || {
        let file = match MappedFile::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StorageError::from_io(format!("cannot open segment {shown}"), error));
            }
            // An empty file, or a file system without maps.
            Err(error) => {
                tracing::debug!(segment = shown, %error, "a segment cannot be mapped and is read");
                return Ok(None);
            }
        };
        let segment = Segment::of(&entry, shown, Memory::Mapped(file))?;
        segment.check_sections(|tier| tier == Tier::Pinned)?;
        Ok(Some(segment))
    });
    mapped.await.map_err(|error| StorageError::internal("opening was broken off").with_source(error))?
}

/// A segment of an object store, mapped from local disk; `None` if it cannot be kept there.
async fn from_disk(
    disk: &DiskCache,
    root: &Root,
    relative: &str,
    entry: &SegmentEntry,
    shown: &str,
) -> Result<Option<Segment>> {
    if let Some(path) = disk.find(&entry.id) {
        match mapped(path, entry, shown.to_owned()).await {
            Ok(Some(segment)) => return Ok(Some(segment)),
            // A copy proves nothing against the segment itself.
            Ok(None) | Err(_) => disk.forget(&entry.id),
        }
    }
    match disk.fetch(root, relative, &entry.id, entry.bytes).await? {
        Some(path) => match mapped(path, entry, shown.to_owned()).await {
            // Another process needed the room.
            Err(StorageError::NotFound(_)) => Ok(None),
            Err(error) => {
                disk.forget(&entry.id);
                Err(error)
            }
            segment => segment,
        },
        None => Ok(None),
    }
}

/// Reads all of a segment into memory, in large pages.
async fn read(root: &Root, relative: &str, entry: &SegmentEntry, shown: String) -> Result<Segment> {
    let failed = |error| StorageError::from_store(format!("cannot read segment {shown}"), error);
    let found = root.store().get(&root.path(relative)).await.map_err(failed)?;
    let too_large = || StorageError::unsupported(format!("segment {shown} is too large"));
    let mut pages = Pages::new(usize::try_from(found.meta.size).map_err(|_| too_large())?);
    let expected = found.meta.size;
    let mut bytes = found.into_stream();
    while let Some(piece) = bytes.try_next().await.map_err(failed)? {
        pages.extend(&piece);
    }
    if pages.filled() as u64 != expected {
        return Err(damaged(&shown, "it ended while it was read"));
    }
    let buffer = pages.into_buffer();
    let entry = entry.clone();
    let checked = tokio::task::spawn_blocking(move || {
        let segment = Segment::of(&entry, shown, Memory::Read(buffer))?;
        segment.check_sections(|_| true)?;
        Ok::<_, StorageError>(segment)
    });
    let segment =
        checked.await.map_err(|error| StorageError::internal("a check was broken off").with_source(error))??;
    let _ = segment.verified.set(());
    Ok(segment)
}

/// What the cache of segments did and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentCacheFigures {
    /// Open segments.
    pub segments: u64,
    /// Bytes of segments in memory.
    pub bytes: u64,
    /// Bytes that may be in memory.
    pub bytes_max: u64,
    /// Bytes of files that are mapped.
    pub mapped_bytes: u64,
    /// Segments that were open.
    pub hits: u64,
    /// Segments that had to be opened.
    pub misses: u64,
}

/// Open segments of all tables of a database. The least recently used one makes room.
pub(crate) struct SegmentCache {
    state: Mutex<State>,
}

/// Where segments are kept.
#[derive(Clone, Debug, Default)]
struct Policy {
    /// Those of object stores.
    disk: Option<DiskCache>,
    /// Whether mapped ones are to be in memory, as far as there is room.
    in_memory: bool,
}

type Opening = Arc<OnceCell<Arc<Segment>>>;

struct State {
    /// By the table's location and the segment's id.
    entries: HashMap<(String, String), Entry>,
    under_way: HashMap<(String, String), Opening>,
    clock: u64,
    figures: SegmentCacheFigures,
    policy: Policy,
}

struct Entry {
    segment: Arc<Segment>,
    used: u64,
}

impl fmt::Debug for SegmentCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("SegmentCache").field(&self.figures()).finish()
    }
}

impl Default for SegmentCache {
    fn default() -> Self {
        let figures = SegmentCacheFigures { bytes_max: CACHE_BYTES, ..SegmentCacheFigures::default() };
        let (entries, under_way, policy) = (HashMap::new(), HashMap::new(), Policy::default());
        let state = State { entries, under_way, clock: 0, figures, policy };
        Self { state: Mutex::new(state) }
    }
}

impl SegmentCache {
    pub(crate) fn figures(&self) -> SegmentCacheFigures {
        self.lock().figures
    }

    pub(crate) fn set_bytes_max(&self, bytes_max: u64) {
        let mut state = self.lock();
        state.figures.bytes_max = bytes_max;
        state.make_room(None);
    }

    pub(crate) fn set_disk(&self, disk: Option<DiskCache>) {
        self.lock().policy.disk = disk;
    }

    pub(crate) fn set_in_memory(&self, in_memory: bool) {
        self.lock().policy.in_memory = in_memory;
    }

    /// Reads a mapped segment into memory, if it is to be there and there is room: from then on it is the one that is found.
    /// False if it stays where it is.
    ///
    /// # Errors
    /// Those of reading; [`StorageError::Corrupt`].
    pub(crate) async fn promote(&self, root: &Root, location: &str, entry: &SegmentEntry) -> Result<bool> {
        let is_wanted =
            |state: &State| state.policy.in_memory && state.figures.bytes + entry.bytes <= state.figures.bytes_max;
        if !is_wanted(&self.lock()) {
            return Ok(false);
        }
        let relative = relative_of(location, entry);
        let segment = Arc::new(read(root, &relative, entry, shown(root, &relative)).await?);
        let mut state = self.lock();
        let is_room = is_wanted(&state);
        if is_room && let Some(there) = state.entries.get_mut(&(location.to_owned(), entry.id.clone())) {
            there.segment = segment;
            state.count();
        }
        Ok(is_room)
    }

    /// Forgets segments of a table: all of them, or one.
    pub(crate) fn forget(&self, location: &str, id: Option<&str>) {
        let mut state = self.lock();
        state.entries.retain(|(table, segment), _| table != location || id.is_some_and(|id| id != segment));
        state.count();
    }

    /// The segment of `entry`, and whether it was opened just now. Calls for the same one at once open it once.
    ///
    /// # Errors
    /// Those of [`open`].
    pub(crate) async fn get_or_open(
        &self,
        root: &Root,
        location: &str,
        entry: &SegmentEntry,
    ) -> Result<(Arc<Segment>, bool)> {
        let key = (location.to_owned(), entry.id.clone());
        let opening = {
            let mut state = self.lock();
            if let Some(found) = state.find(&key) {
                return Ok((found, false));
            }
            state.figures.misses += 1;
            let disk = state.policy.disk.clone();
            (Arc::clone(state.under_way.entry(key.clone()).or_default()), disk)
        };
        let (opening, disk) = opening;
        let opened = opening.get_or_try_init(|| async { open(root, location, entry, disk).await.map(Arc::new) }).await;
        let mut state = self.lock();
        if state.under_way.get(&key).is_some_and(|there| Arc::ptr_eq(there, &opening)) {
            state.under_way.remove(&key);
        }
        let opened = opened?;
        let is_first = state.keep(key, opened);
        Ok((Arc::clone(opened), is_first))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&mut self, key: &(String, String)) -> Option<Arc<Segment>> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        self.figures.hits += 1;
        Some(Arc::clone(&entry.segment))
    }

    /// False if somebody else's is here already. One that is larger than the cache is used and not kept.
    fn keep(&mut self, key: (String, String), segment: &Arc<Segment>) -> bool {
        if self.entries.contains_key(&key) {
            return false;
        }
        if segment.bytes_in_memory() <= self.figures.bytes_max {
            self.clock += 1;
            self.entries.insert(key.clone(), Entry { segment: Arc::clone(segment), used: self.clock });
            self.count();
            self.make_room(Some(&key));
        }
        true
    }

    fn make_room(&mut self, except: Option<&(String, String)>) {
        while self.figures.bytes > self.figures.bytes_max || self.entries.len() > MAPPED_MAX {
            let is_too_many = self.entries.len() > MAPPED_MAX;
            let others = self
                .entries
                .iter()
                .filter(|(key, entry)| Some(*key) != except && (is_too_many || entry.segment.is_in_memory()));
            let oldest = others.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.entries.remove(&oldest);
            self.count();
        }
    }

    fn count(&mut self) {
        let entries = || self.entries.values().map(|entry| &entry.segment);
        let mapped = entries().filter(|segment| !segment.is_in_memory()).map(|segment| segment.head.file_bytes).sum();
        let in_memory = entries().map(|segment| segment.bytes_in_memory()).sum();
        self.figures.segments = self.entries.len() as u64;
        self.figures.bytes = in_memory;
        self.figures.mapped_bytes = mapped;
    }
}
