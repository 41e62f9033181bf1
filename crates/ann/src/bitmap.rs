//! A set of rows of a segment: what a filter leaves.

/// A set of local row numbers, one bit each; borrowed, so that what a filter made is never copied.
#[derive(Clone, Copy, Debug)]
pub struct RowSet<'a> {
    words: &'a [u64],
    count: usize,
}

impl<'a> RowSet<'a> {
    /// Row `r` is in the set if bit `r % 64` of `words[r / 64]` is set. `count`: how many are.
    pub fn new(words: &'a [u64], count: usize) -> Self {
        debug_assert_eq!(count, words.iter().map(|word| word.count_ones() as usize).sum::<usize>());
        Self { words, count }
    }

    /// Whether the row is in it; a row beyond the end is not.
    #[inline]
    pub fn contains(self, row: u32) -> bool {
        self.words.get(row as usize / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// Number of rows in it.
    pub fn len(self) -> usize {
        self.count
    }

    /// Whether no row is in it.
    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    /// The words, for kernels that take many rows at once.
    pub fn words(self) -> &'a [u64] {
        self.words
    }

    /// The rows, ascending.
    pub fn rows(self) -> impl Iterator<Item = u32> + 'a {
        self.words.iter().zip(0_u32..).flat_map(|(word, at)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(at * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_rows_are_the_bits_that_are_set() {
        let words = [1 << 63 | 1, 0, 1 << 5];
        let set = RowSet::new(&words, 3);
        assert_eq!(set.rows().collect::<Vec<_>>(), [0, 63, 133]);
        assert!(set.contains(63) && !set.contains(62) && !set.contains(1_000));
    }
}
