//! Asking for memory before it is read.
//!
//! The scans of `scan.rs` prefetch by themselves; this is for walks, whose next address only the caller knows.

/// Lines that one call asks for at most: a longer object would push out what was asked for before it.
const LINES_MAX: usize = 16;

/// Asks for the cache lines of `bytes`, 1 KiB of them at most. Reads nothing, changes nothing but the time of what follows.
#[inline]
pub fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(64).take(LINES_MAX) {
        prefetch_line(line.as_ptr());
    }
}

/// Asks for one line, wherever the pointer points.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch_line(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch reads nothing and never faults, wherever the pointer points.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

/// Asks for one line, wherever the pointer points.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn prefetch_line(line: *const u8) {
    // SAFETY: PRFM is a hint: it never faults and changes no register and no memory, wherever the pointer points.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{line}]", line = in(reg) line, options(nostack, preserves_flags, readonly));
    }
}

/// Stable Rust has no prefetch for other architectures.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline(always)]
pub(crate) fn prefetch_line(_line: *const u8) {}
