//! Memory for decoded vectors and for segments of indexes, in large pages where the system has them.
//!
//! A scan of many megabytes walks through thousands of small pages, and each of them costs a look at the page table and
//! stops the core's fetching ahead. In pages of 2 MiB, the same scan of 150 MB of f32 takes three quarters of the time
//! (Zen 4: 24.5 instead of 17.3 GB/s on one thread).

use arrow::buffer::{Buffer, MutableBuffer};
use memmap2::{Advice, MmapMut};

/// A large page of the processors that this runs on.
const PAGE_BYTES: usize = 2 << 20;

/// Vectors of fewer bytes come from the heap: what large pages would save is not worth the rest of the last one.
const LARGE_BYTES_MIN: usize = 4 * PAGE_BYTES;

/// Bytes being filled from the front, as many as were asked for at the start.
pub(crate) struct Pages {
    memory: Memory,
    /// Bytes filled.
    filled: usize,
}

enum Memory {
    Heap(MutableBuffer),
    Large(LargePages),
}

/// A mapping of zeros, and the part of it that begins on a large page.
struct LargePages {
    mapping: MmapMut,
    start: usize,
    bytes: usize,
}

impl LargePages {
    /// `None` where the system gives no such memory.
    fn new(bytes: usize) -> Option<Self> {
        let mapping = MmapMut::map_anon(bytes.checked_add(PAGE_BYTES)?).ok()?;
        // A wish: without large pages the memory is as good as any.
        if let Err(error) = mapping.advise(Advice::HugePage) {
            tracing::debug!(%error, "no large pages");
        }
        let start = mapping.as_ptr().align_offset(PAGE_BYTES);
        (start <= PAGE_BYTES).then_some(Self { mapping, start, bytes })
    }
}

impl AsRef<[u8]> for LargePages {
    fn as_ref(&self) -> &[u8] {
        &self.mapping[self.start..self.start + self.bytes]
    }
}

impl Pages {
    /// Room for so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let large = (bytes >= LARGE_BYTES_MIN).then(|| LargePages::new(bytes)).flatten();
        let memory = large.map_or_else(|| Memory::Heap(MutableBuffer::new(bytes)), Memory::Large);
        Self { memory, filled: 0 }
    }

    /// Bytes filled so far; more than there is room for if too many came.
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    /// Adds bytes. Those beyond the room are counted and not kept: the caller compares and refuses.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        match &mut self.memory {
            Memory::Heap(buffer) => buffer.extend_from_slice(bytes),
            Memory::Large(pages) => {
                let from = pages.start + self.filled;
                if self.filled + bytes.len() <= pages.bytes {
                    pages.mapping[from..from + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        self.filled += bytes.len();
    }

    /// Adds zeros.
    pub(crate) fn extend_zeros(&mut self, bytes: usize) {
        self.filled += bytes;
        // A mapping is zeros to begin with.
        if let Memory::Heap(buffer) = &mut self.memory {
            buffer.resize(self.filled, 0);
        }
    }

    /// What was filled, without a copy.
    pub(crate) fn into_buffer(self) -> Buffer {
        match self.memory {
            Memory::Heap(buffer) => Buffer::from(buffer),
            Memory::Large(pages) => Buffer::from(bytes::Bytes::from_owner(pages)).slice_with_length(0, self.filled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_comes_back_whichever_memory_holds_it() {
        for bytes in [0, 1, 1000, LARGE_BYTES_MIN - 1, LARGE_BYTES_MIN, LARGE_BYTES_MIN + PAGE_BYTES + 7] {
            let values: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            let mut pages = Pages::new(bytes + 3);
            let is_large = matches!(pages.memory, Memory::Large(_));
            assert_eq!(is_large, bytes + 3 >= LARGE_BYTES_MIN, "{bytes} bytes");
            let (front, back) = values.split_at(bytes / 3);
            pages.extend(front);
            pages.extend(back);
            pages.extend_zeros(3);
            assert_eq!(pages.filled(), bytes + 3);
            let buffer = pages.into_buffer();
            assert_eq!(buffer.as_slice(), [values.as_slice(), &[0; 3]].concat(), "{bytes} bytes");
            assert!(!is_large || buffer.as_ptr().addr().is_multiple_of(PAGE_BYTES), "a scan begins on a large page");
        }
    }

    #[test]
    fn too_many_bytes_are_counted() {
        let mut pages = Pages::new(LARGE_BYTES_MIN);
        pages.extend(&vec![1; LARGE_BYTES_MIN + 1]);
        assert_eq!(pages.filled(), LARGE_BYTES_MIN + 1);
    }
}
