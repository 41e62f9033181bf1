//! Reading with verification: a read is extended to whole blocks, these are compared with the file's sums, and only
//! then are the bytes handed out.
//!
//! Cost of a read of a file whose sums are known: the same one request, at most 128 KiB − 2 bytes more than asked for,
//! and one pass of CRC-32C over what was fetched. The first read of a file also costs one GET of its sidecar, at the
//! same time. A read that does not match is made once more before it fails.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, GetResult, GetResultPayload, ObjectStoreExt};

use super::Summed;
use super::format::{BLOCK_BYTES, Sums};
use super::layout::TableFile;
use super::sidecars::{Candidates, Found};

/// Bytes that are verified in one step of a long read.
pub(crate) const STEP_BYTES: u64 = 4 << 20;

/// The longest read that is held as a whole. Lance asks for pages and groups of them, and holds what it asked for: cut
/// into steps, they would be put together again at the cost of two copies.
const WHOLE_BYTES_MAX: u64 = 64 << 20;

/// How often a read that does not match its sums is made.
const READS_MAX: u32 = 2;

const _: () = assert!(STEP_BYTES.is_multiple_of(BLOCK_BYTES));

/// Bytes of a file that are not what was written.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    /// Schema, table and file.
    file: String,
    /// What exactly is wrong.
    detail: String,
}

impl Damage {
    fn new(file: &TableFile<'_>, detail: String) -> Self {
        let advice =
            if file.is_replaceable() { "; if another program replaced it, remove its files under _crc" } else { "" };
        Self { file: file.shown(), detail: format!("{detail}{advice}") }
    }

    fn into_store_error(self) -> Error {
        // `error.rs` takes `InvalidData` for corruption.
        let error = std::io::Error::new(std::io::ErrorKind::InvalidData, self);
        Error::Generic { store: super::STORE, source: Box::new(error) }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}: {}", super::DAMAGE, self.file, self.detail)
    }
}

impl std::error::Error for Damage {}

/// True if the bytes were read and are not what was written.
pub(crate) fn is_damage(error: &Error) -> bool {
    let Error::Generic { source, .. } = error else { return false };
    let inner = source.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| inner.downcast_ref::<Damage>().is_some())
}

/// What is wrong with a content of `size` bytes, as far as the sidecars tell.
pub(crate) fn describe(candidates: &Candidates, size: u64, bad: impl Fn(&Sums) -> Option<u64>) -> String {
    let same_size = candidates.sums.iter().find(|sums| sums.bytes == size);
    if let Some(block) = same_size.and_then(|sums| bad(sums)) {
        let start = block * BLOCK_BYTES;
        let end = (start + BLOCK_BYTES).min(size);
        return format!("block {block} (bytes {start} to {end}) is not what was written");
    }
    if let Some(sums) = candidates.sums.first() {
        return format!("it has {size} bytes, but {} were written", sums.bytes);
    }
    let reason = candidates.unusable.first().map_or("its checksum file is gone", String::as_str);
    format!("{reason}; if the file is known to be sound, remove the checksum file")
}

/// Reads what `options` ask for of the file at `location`.
pub(super) async fn get(
    store: &Summed,
    location: &Path,
    file: &TableFile<'_>,
    options: GetOptions,
) -> object_store::Result<GetResult> {
    let mut attempt = 1;
    loop {
        match get_once(store, location, file, options.clone()).await {
            Err(error) if is_damage(&error) && attempt < READS_MAX => {
                tracing::warn!(%location, %error, "a read does not match its checksums, reading again");
                attempt += 1;
            }
            other => return other,
        }
    }
}

async fn get_once(
    store: &Summed,
    location: &Path,
    file: &TableFile<'_>,
    mut options: GetOptions,
) -> object_store::Result<GetResult> {
    if let Some(GetRange::Suffix(bytes)) = options.range {
        // Where the blocks begin depends on the size. Lance never asks like this.
        let size = store.inner.head(location).await?.size;
        options.range = Some(GetRange::Bounded(size.saturating_sub(bytes)..size));
    }
    let wanted = options.range.clone();
    options.range = options.range.map(whole_blocks);
    let (found, fetched) = futures::join!(store.sidecars.find(location, file), store.inner.get_opts(location, options));
    let fetched = fetched?;
    found?;
    let size = fetched.meta.size;
    let range = match wanted {
        None => fetched.range.clone(),
        Some(wanted) => wanted
            .as_range(size)
            .map_err(|error| Error::Generic { store: super::STORE, source: format!("{location}: {error}").into() })?,
    };
    let covered = fetched.range.clone();
    let (meta, attributes, extensions) = (fetched.meta, fetched.attributes, fetched.extensions);
    let payload = match fetched.payload {
        // A short read is verified before the answer is given, a long one while it is handed out.
        payload if covered.end - covered.start <= WHOLE_BYTES_MAX => {
            let source = pieces(payload, covered.clone(), WHOLE_BYTES_MAX);
            let bytes = collect(source, &covered, location).await?;
            verify(store, location, file, size, covered.start, &bytes).await?;
            let bytes = cut(bytes, covered.start, &range);
            futures::stream::once(async move { Ok(bytes) }).boxed()
        }
        payload => {
            let source = pieces(payload, covered.clone(), STEP_BYTES);
            verified(store.clone(), location.clone(), size, source, covered, &range)
        }
    };
    Ok(GetResult { payload: GetResultPayload::Stream(payload), meta, range, attributes, extensions })
}

/// The range that covers `range` in whole blocks. The store cuts it off at the end of the file.
fn whole_blocks(range: GetRange) -> GetRange {
    let down = |at: u64| at - at % BLOCK_BYTES;
    match range {
        // What makes no sense stays as it is, for the store to say so.
        GetRange::Bounded(range) if range.start >= range.end => GetRange::Bounded(range),
        GetRange::Bounded(range) => {
            let end = range.end.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(range.end);
            GetRange::Bounded(down(range.start)..end)
        }
        GetRange::Offset(start) => GetRange::Offset(down(start)),
        GetRange::Suffix(bytes) => GetRange::Suffix(bytes),
    }
}

/// Compares bytes with the sums of a file: those known, and if they do not match, all there are.
async fn verify(
    store: &Summed,
    location: &Path,
    file: &TableFile<'_>,
    size: u64,
    start: u64,
    bytes: &[u8],
) -> object_store::Result<()> {
    let first = start / BLOCK_BYTES;
    let matches = |sums: &Sums| sums.bytes == size && sums.bad_block(first, bytes).is_none();
    match store.sidecars.confirm(location, file).await? {
        Found::Sums(sums) if matches(&sums) => {
            store.counters.bytes_verified.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return Ok(());
        }
        Found::Absent | Found::Foreign => {
            store.counters.bytes_unverified.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return Ok(());
        }
        Found::Sums(_) | Found::Unusable(_) => {}
    }
    let candidates = store.sidecars.all(file).await?;
    if let Some(sums) = candidates.sums.iter().find(|sums| matches(sums)) {
        store.sidecars.remember(location, Arc::clone(sums));
        store.counters.bytes_verified.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        return Ok(());
    }
    store.counters.damages.fetch_add(1, Ordering::Relaxed);
    let damage = Damage::new(file, describe(&candidates, size, |sums| sums.bad_block(first, bytes)));
    tracing::error!(%damage, "a file is damaged");
    Err(damage.into_store_error())
}

/// The bytes of `range`, verified piece by piece. `covered` begins and ends with whole blocks.
fn verified(
    store: Summed,
    location: Path,
    size: u64,
    source: BoxStream<'static, object_store::Result<Bytes>>,
    covered: Range<u64>,
    range: &Range<u64>,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    let (at, end) = (covered.start, covered.end);
    let range = range.clone();
    let state = (source, BytesMut::new(), at);
    let steps = futures::stream::try_unfold(state, move |(mut source, mut held, at)| {
        let (store, location, range) = (store.clone(), location.clone(), range.clone());
        async move {
            if at >= end {
                return Ok(None);
            }
            let length = (end - at).min(STEP_BYTES);
            while (held.len() as u64) < length {
                match source.try_next().await? {
                    Some(more) => held.extend_from_slice(&more),
                    None => return Err(cut_short(&location, at + held.len() as u64, end)),
                }
            }
            let step = held.split_to(usize::try_from(length).unwrap_or(usize::MAX)).freeze();
            let file = store.layout.file(&location).ok_or(Error::NotImplemented {
                operation: "a verified read of another file".to_owned(),
                implementer: super::STORE.to_owned(),
            })?;
            verify(&store, &location, &file, size, at, &step).await?;
            Ok(Some((cut(step, at, &range), (source, held, at + length))))
        }
    });
    steps.boxed()
}

/// The part of `bytes`, which begin at `start` of the file, that is in `range`.
fn cut(bytes: Bytes, start: u64, range: &Range<u64>) -> Bytes {
    let length = bytes.len() as u64;
    let place = |at: u64| usize::try_from(at.saturating_sub(start).min(length)).unwrap_or(bytes.len());
    bytes.slice(place(range.start)..place(range.end).max(place(range.start)))
}

async fn collect(
    mut source: BoxStream<'static, object_store::Result<Bytes>>,
    covered: &Range<u64>,
    location: &Path,
) -> object_store::Result<Bytes> {
    let expected = covered.end - covered.start;
    let first = source.try_next().await?.unwrap_or_default();
    let bytes = if first.len() as u64 == expected {
        first
    } else {
        let mut all = BytesMut::with_capacity(usize::try_from(expected).unwrap_or_default());
        all.extend_from_slice(&first);
        while let Some(more) = source.try_next().await? {
            all.extend_from_slice(&more);
        }
        all.freeze()
    };
    if bytes.len() as u64 == expected {
        Ok(bytes)
    } else {
        Err(cut_short(location, covered.start + bytes.len() as u64, covered.end))
    }
}

fn cut_short(location: &Path, at: u64, end: u64) -> Error {
    let text = format!("the answer of the store ended at byte {at} of {location}, before byte {end}; try again");
    Error::Generic { store: super::STORE, source: text.into() }
}

/// The bytes of an answer. A file of this machine is read in pieces of `longest` bytes, `object_store` itself reads short
/// ones.
pub(crate) fn pieces(
    payload: GetResultPayload,
    range: Range<u64>,
    longest: u64,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    match payload {
        GetResultPayload::Stream(stream) => stream,
        GetResultPayload::File(file, path) => {
            let steps = futures::stream::try_unfold((file, range), move |(mut file, range)| {
                let path = path.clone();
                async move {
                    if range.start >= range.end {
                        return Ok(None);
                    }
                    let length = (range.end - range.start).min(longest);
                    let rest = range.start + length..range.end;
                    let read = tokio::task::spawn_blocking(move || {
                        // Into memory that is not cleared first: a file that is too short shows by the length.
                        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
                        file.seek(SeekFrom::Start(range.start))?;
                        (&file).take(length).read_to_end(&mut bytes)?;
                        if (bytes.len() as u64) < length {
                            return Err(std::io::ErrorKind::UnexpectedEof.into());
                        }
                        Ok::<_, std::io::Error>((Bytes::from(bytes), file))
                    });
                    let (bytes, file) = read.await?.map_err(|error| unreadable(&path, error))?;
                    Ok(Some((bytes, (file, rest))))
                }
            });
            steps.boxed()
        }
    }
}

fn unreadable(path: &std::path::Path, error: std::io::Error) -> Error {
    let error = std::io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()));
    Error::Generic { store: super::STORE, source: Box::new(error) }
}
