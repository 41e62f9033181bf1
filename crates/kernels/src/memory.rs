//! Large arrays in large pages: a walk over a graph touches a page per step, and translating its address is a good part of the step.

/// Asks the system to back this memory with large pages where it is not yet in use: call it before the first write.
///
/// A hint: contents stay as they are, and systems that do not know it pass it over. Parts of less than 4 MiB are left alone.
pub fn advise_large_pages(bytes: &mut [u8]) {
    const LARGE: usize = 2 << 20;
    if bytes.len() < 2 * LARGE {
        return;
    }
    let start = bytes.as_mut_ptr().align_offset(LARGE);
    if let Some(inner) = bytes.get_mut(start..) {
        let whole = inner.len() / LARGE * LARGE;
        advise(&mut inner[..whole]);
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn advise(bytes: &mut [u8]) {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    // SAFETY: the range lies in a slice that we hold alone, and this advice changes no contents. What it returns does not matter:
    // without large pages all is the same but slower.
    let _ = unsafe { madvise(bytes.as_mut_ptr().cast(), bytes.len(), MADV_HUGEPAGE) };
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn advise(_bytes: &mut [u8]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_changes_no_contents() {
        for length in [0, 1, 4096, (4 << 20) + 123] {
            let mut bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            advise_large_pages(&mut bytes);
            assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == i as u8));
        }
    }
}
