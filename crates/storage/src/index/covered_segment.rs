//! A segment at one version of a table: which of its local rows are live, and where they stand.

use std::fmt;
use std::ops::Range;

use super::manifest::SegmentEntry;

/// Bits of a word.
pub(super) const WORD: usize = 64;

/// Where there is one address for more runs than this, each is searched for.
const FEW: usize = 16;

/// A set of local rows, one bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalRows {
    /// Row `r` is in the set if bit `r % 64` of word `r / 64` is set.
    pub words: Vec<u64>,
    /// How many rows are in it.
    pub count: usize,
}

/// A segment at a version.
pub struct CoveredSegment {
    /// Which segment.
    pub entry: SegmentEntry,
    pub(super) live: LocalRows,
    /// Rows of units, in the order of local rows.
    pub(super) direct: Vec<Run>,
    /// Rows that were copied elsewhere, in the order of local rows. They count before `direct`.
    pub(super) moved: Vec<Run>,
    /// Each of them in the order of addresses.
    pub(super) by_address: [Vec<Run>; 2],
}

/// Rows that stand side by side in a segment and in a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) local: u32,
    pub(super) rows: u32,
    pub(super) address: u64,
}

/// The local row at an address.
fn local_at(by_address: &[Run], address: u64) -> Option<u32> {
    let run = by_address.get(by_address.partition_point(|run| run.address <= address).checked_sub(1)?)?;
    let within = u32::try_from(address - run.address).ok()?;
    (within < run.rows).then(|| run.local + within)
}

/// Sets the local rows at these addresses.
fn set_at(words: &mut [u64], by_address: &[Run], addresses: &[u64]) {
    if addresses.len() < by_address.len() / FEW {
        for local in addresses.iter().filter_map(|address| local_at(by_address, *address)) {
            set(words, local as usize);
        }
        return;
    }
    let mut rest = addresses.iter().copied().peekable();
    for run in by_address {
        let end = run.address + u64::from(run.rows);
        while let Some(address) = rest.next_if(|address| *address < end) {
            if let Some(within) = address.checked_sub(run.address) {
                set(words, run.local as usize + usize::try_from(within).unwrap_or(usize::MAX));
            }
        }
        if rest.peek().is_none() {
            break;
        }
    }
}

impl fmt::Debug for CoveredSegment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("CoveredSegment");
        shown.field("id", &self.entry.id).field("rows", &self.entry.rows).field("live", &self.live.count);
        shown.field("runs", &(self.direct.len() + self.moved.len())).finish_non_exhaustive()
    }
}

impl CoveredSegment {
    /// The local rows that are live at this version; those without a vector may be among them. `None` if that is all of them.
    pub fn live(&self) -> Option<&LocalRows> {
        (self.live.count as u64 != self.entry.rows).then_some(&self.live)
    }

    /// How many local rows are live.
    pub fn live_rows(&self) -> usize {
        self.live.count
    }

    /// Where a live local row stands at this version. Cost: a binary search among the runs.
    pub fn address(&self, local: u32) -> Option<u64> {
        if !self.is_live(local) {
            return None;
        }
        find(&self.moved, local).or_else(|| find(&self.direct, local))
    }

    /// The live local rows at these addresses, which ascend. Cost: a pass over both the addresses and the runs, or for few
    /// addresses a binary search for each.
    pub fn matching(&self, addresses: &[u64]) -> LocalRows {
        let mut words = vec![0; self.live.words.len()];
        let [direct, moved] = &self.by_address;
        set_at(&mut words, direct, addresses);
        // A row that was copied is found where it stands now.
        if addresses.len() < self.moved.len() / FEW {
            for address in addresses {
                if let Some(local) = local_at(direct, *address).filter(|local| find(&self.moved, *local).is_some()) {
                    clear(&mut words, local as usize);
                }
            }
        } else {
            self.clear_moved(&mut words);
        }
        set_at(&mut words, moved, addresses);
        self.among_live(words)
    }

    /// The live local rows among those that `rows_of` gives for each fragment: bit `o % 64` of word `o / 64` for the row at
    /// offset `o`; those that are dead at this version may be among them. Cost: a pass over the words, and over the runs of rows
    /// that were copied.
    pub fn matching_words<'a>(&self, rows_of: impl Fn(u32) -> Option<&'a [u64]>) -> LocalRows {
        let mut words = vec![0; self.live.words.len()];
        let mut last: Option<(u64, Option<&'a [u64]>)> = None;
        let mut copy = |words: &mut [u64], run: &Run| {
            // Runs that follow each other are mostly of one fragment.
            let fragment = run.address >> 32;
            let rows = match last {
                Some((known, rows)) if known == fragment => rows,
                _ => u32::try_from(fragment).ok().and_then(&rows_of),
            };
            last = Some((fragment, rows));
            let offset = usize::try_from(run.address & u64::from(u32::MAX)).unwrap_or(usize::MAX);
            let Some(rows) = rows else { return };
            if run.rows == 1 {
                if rows.get(offset / WORD).is_some_and(|word| word >> (offset % WORD) & 1 == 1) {
                    set(words, run.local as usize);
                }
                return;
            }
            or_bits(words, run.local as usize, rows, offset..offset + run.rows as usize);
        };
        self.direct.iter().for_each(|run| copy(&mut words, run));
        self.clear_moved(&mut words);
        self.moved.iter().for_each(|run| copy(&mut words, run));
        self.among_live(words)
    }

    /// Rows that were copied are dead where they stood before.
    fn clear_moved(&self, words: &mut [u64]) {
        for run in &self.moved {
            (run.local..run.local + run.rows).for_each(|local| clear(words, local as usize));
        }
    }

    fn among_live(&self, mut words: Vec<u64>) -> LocalRows {
        words.iter_mut().zip(&self.live.words).for_each(|(word, live)| *word &= live);
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        LocalRows { words, count }
    }

    fn is_live(&self, local: u32) -> bool {
        let word = self.live.words.get(local as usize / WORD);
        word.is_some_and(|word| word >> (local as usize % WORD) & 1 == 1)
    }
}

fn find(runs: &[Run], local: u32) -> Option<u64> {
    let run = runs.get(runs.partition_point(|run| run.local <= local).checked_sub(1)?)?;
    let within = local - run.local;
    (within < run.rows).then(|| run.address + u64::from(within))
}

/// False if it was set.
pub(super) fn set(words: &mut [u64], bit: usize) -> bool {
    let Some(word) = words.get_mut(bit / WORD) else { return false };
    let mask = 1 << (bit % WORD);
    let is_new = *word & mask == 0;
    *word |= mask;
    is_new
}

pub(super) fn clear(words: &mut [u64], bit: usize) {
    if let Some(word) = words.get_mut(bit / WORD) {
        *word &= !(1 << (bit % WORD));
    }
}

/// Sets the bits from `to` on to which those of `range` in `from` are set. Bits beyond the end of `from` are not.
fn or_bits(words: &mut [u64], to: usize, from: &[u64], range: Range<usize>) {
    let word = |at: usize| from.get(at).copied().unwrap_or(0);
    let (mut at, mut to) = (range.start, to);
    while at < range.end {
        // Up to the end of a word of the target, from at most two words of the source.
        let taken = (WORD - to % WORD).min(range.end - at);
        let shift = at % WORD;
        let low = word(at / WORD) >> shift;
        let high = if shift == 0 { 0 } else { word(at / WORD + 1) << (WORD - shift) };
        let mask = u64::MAX >> (WORD - taken);
        if let Some(target) = words.get_mut(to / WORD) {
            *target |= ((low | high) & mask) << (to % WORD);
        }
        at += taken;
        to += taken;
    }
}

pub(super) fn set_range(words: &mut [u64], bits: Range<usize>) {
    if bits.is_empty() {
        return;
    }
    let (first, last) = (bits.start / WORD, (bits.end - 1) / WORD);
    let head = u64::MAX << (bits.start % WORD);
    let tail = u64::MAX >> (WORD - 1 - (bits.end - 1) % WORD);
    let Some(within) = words.get_mut(first..=last) else { return };
    match within {
        [only] => *only |= head & tail,
        [start, middle @ .., end] => {
            *start |= head;
            middle.fill(u64::MAX);
            *end |= tail;
        }
        [] => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_copied_from_any_place_to_any_other() {
        let from = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        let bit = |at: usize| at < 128 && from[at / 64] >> (at % 64) & 1 == 1;
        for start in (0..140).step_by(7) {
            for end in (start..150).step_by(3) {
                for to in [0, 1, 31, 63, 64, 65, 100] {
                    let mut words = vec![0_u64; 4];
                    or_bits(&mut words, to, &from, start..end);
                    let expected = |at: usize| at >= to && at - to < end - start && bit(start + at - to);
                    let is_right = (0..256).all(|at| (words[at / 64] >> (at % 64) & 1 == 1) == expected(at));
                    assert!(is_right, "{start}..{end} to {to}");
                }
            }
        }
    }

    #[test]
    fn a_range_of_bits_is_set_and_nothing_beside_it() {
        for start in 0..140 {
            for end in start..140 {
                let mut words = vec![0_u64; 3];
                set_range(&mut words, start..end);
                let found: Vec<usize> = (0..192).filter(|bit| words[bit / 64] >> (bit % 64) & 1 == 1).collect();
                assert_eq!(found, (start..end).collect::<Vec<_>>(), "{start}..{end}");
            }
        }
    }
}
