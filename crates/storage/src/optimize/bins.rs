//! Which fragments are rewritten together. Lance's own planner keeps fragments apart that different segments of its indexes
//! cover, because it would rewrite those indexes along. Ours read what was rewritten until they are brought up to date, so
//! fragments are merged whatever indexes there are.

use lance_table::format::Fragment;

use crate::snapshot::FragmentShape;

/// When fragments are worth rewriting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Worth {
    /// Live rows of a fragment that is large enough.
    pub(super) rows: u64,
    /// The share of deleted rows above which a fragment is rewritten for itself.
    pub(super) deleted: f32,
}

/// Fragments that stand side by side.
#[derive(Default)]
struct Bin {
    fragments: Vec<Fragment>,
    /// Live rows of each.
    rows: Vec<u64>,
    /// One of them is worth it for itself.
    is_worth_it: bool,
}

impl Bin {
    /// Parts of at least `rows` each.
    fn cut(self, rows: u64) -> Vec<Vec<Fragment>> {
        let mut rest: u64 = self.rows.iter().sum();
        let (mut parts, mut part, mut held) = (vec![], vec![], 0);
        for (fragment, own) in self.fragments.into_iter().zip(self.rows) {
            part.push(fragment);
            held += own;
            rest -= own;
            if held >= rows && rest > 0 && rest >= rows {
                parts.push(std::mem::take(&mut part));
                held = 0;
            }
        }
        parts.push(part);
        parts
    }
}

/// Runs of neighbours that are small, or of which too much is deleted; those that `is_excluded` names part them.
pub(super) fn bins(
    fragments: &[FragmentShape],
    worth: Worth,
    is_excluded: impl Fn(&FragmentShape) -> bool,
) -> Vec<Vec<Fragment>> {
    let mut bins = vec![Bin::default()];
    for fragment in fragments {
        let live = fragment.metadata.num_rows().map_or(fragment.rows, |rows| rows as u64);
        let deleted = (fragment.rows - live) as f32 / fragment.rows.max(1) as f32;
        let is_worth_it = deleted > worth.deleted;
        match (bins.last_mut(), is_excluded(fragment) || (!is_worth_it && fragment.rows >= worth.rows)) {
            (Some(bin), false) => {
                bin.fragments
                    .push(Fragment { physical_rows: usize::try_from(fragment.rows).ok(), ..fragment.metadata.clone() });
                bin.rows.push(live);
                bin.is_worth_it |= is_worth_it;
            }
            _ => bins.push(Bin::default()),
        }
    }
    let is_worth_it = |bin: &Bin| bin.fragments.len() > 1 || bin.is_worth_it;
    bins.into_iter().filter(is_worth_it).flat_map(|bin| bin.cut(worth.rows)).collect()
}

#[cfg(test)]
mod tests {
    use lance_table::format::{DeletionFile, DeletionFileType};

    use super::*;

    /// Fragments of so many rows, and so many of them deleted; `None` for one that is excluded.
    fn check(fragments: &[(u64, u64)], excluded: &[u32], expected: &[&[u64]]) {
        let shape = |(id, (rows, deleted)): (u32, &(u64, u64))| {
            let mut metadata = Fragment::new(u64::from(id));
            metadata.physical_rows = usize::try_from(*rows).ok();
            metadata.deletion_file = (*deleted > 0).then(|| DeletionFile {
                read_version: 1,
                id: 1,
                num_deleted_rows: usize::try_from(*deleted).ok(),
                file_type: DeletionFileType::Bitmap,
                base_id: None,
            });
            FragmentShape { id, rows: *rows, metadata }
        };
        let shapes: Vec<FragmentShape> = (0..).zip(fragments).map(shape).collect();
        let found = bins(&shapes, Worth { rows: 100, deleted: 0.1 }, |fragment| excluded.contains(&fragment.id));
        let found: Vec<Vec<u64>> = found.iter().map(|bin| bin.iter().map(|fragment| fragment.id).collect()).collect();
        assert_eq!(found, expected, "{fragments:?}");
    }

    #[test]
    fn neighbours_that_are_small_or_full_of_dead_rows_are_rewritten_together() {
        check(&[], &[], &[]);
        check(&[(10, 0)], &[], &[]);
        check(&[(10, 0), (10, 0)], &[], &[&[0, 1]]);
        check(&[(200, 0), (10, 0), (200, 0)], &[], &[]);
        check(&[(200, 30)], &[], &[&[0]]);
        check(&[(200, 20)], &[], &[]);
        check(&[(10, 0), (200, 30), (10, 0)], &[], &[&[0, 1, 2]]);
        check(&[(60, 0), (60, 0), (60, 0), (60, 0)], &[], &[&[0, 1], &[2, 3]]);
        check(&[(60, 0), (60, 0), (60, 0)], &[], &[&[0, 1, 2]]);
        check(&[(10, 0), (10, 0), (10, 0), (10, 0)], &[2], &[&[0, 1]]);
        check(&[(10, 10), (10, 0)], &[], &[&[0, 1]]);
    }
}
