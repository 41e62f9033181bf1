//! Many small segments of an index become few large ones, in the background: each is searched by itself, so a search costs as much
//! as there are segments.

use std::sync::Arc;

use operators::buffers::Needs;
use operators::index_build::SegmentBuild;
use operators::index_merge::SegmentMerge;
use planner::index_spec::IndexSpec;
use storage::{IndexDefinition, NewSegment, Segment, StorageError, TableEntry, TableName};

use crate::definition::now_us;
use crate::{Engine, Result};

/// Segments that are worth becoming one.
const MERGED_MIN: usize = 4;

impl Engine {
    /// Merges segments of an index until none of them are worth it, or memory does not suffice now. Whoever searches meanwhile uses
    /// the old ones.
    ///
    /// # Errors
    /// Files that cannot be read or written; a cancelled build.
    pub(crate) async fn merge_segments(
        &self,
        table: &TableName,
        entry: &TableEntry,
        index: &IndexDefinition,
        spec: &IndexSpec,
    ) -> Result<()> {
        let _turn = self.builds().turn().await;
        while let Some(segments) = self.next_merge(entry, index).await? {
            let ids: Vec<String> = segments.iter().map(|segment| segment.id().to_owned()).collect();
            let Some(merged) = self.merged(entry, index, spec, segments).await? else { return Ok(()) };
            match self.database().replace_segments(entry, index, &ids, merged).await {
                Ok(_) => tracing::info!(%table, index = index.name, segments = ids.len(), "segments were merged"),
                // What changed meanwhile is looked at after the next change.
                Err(StorageError::Conflict(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The segments of an index that are worth becoming one.
    async fn next_merge(&self, entry: &TableEntry, index: &IndexDefinition) -> Result<Option<Vec<Arc<Segment>>>> {
        let open = self.database().snapshot(entry).await?.open_index(&index.name).await?;
        if open.coverage.index.id != index.id {
            return Ok(None);
        }
        let mut segments = open.segments;
        segments.sort_by_key(|segment| segment.rows());
        let rows: Vec<u64> = segments.iter().map(|segment| segment.rows()).collect();
        segments.truncate(mergeable(&rows));
        Ok((!segments.is_empty()).then_some(segments))
    }

    /// One segment of several: joined if they can be, else built anew; `None` if it takes more memory than there is now, or if the
    /// segments serve versions whose vectors this one lacks.
    async fn merged(
        &self,
        entry: &TableEntry,
        index: &IndexDefinition,
        spec: &IndexSpec,
        segments: Vec<Arc<Segment>>,
    ) -> Result<Option<NewSegment>> {
        let ids: Vec<String> = segments.iter().map(|segment| segment.id().to_owned()).collect();
        let merge = SegmentMerge { segments, now_us: now_us() };
        {
            let Some(_claim) = self.claim_in_background(merge.bytes())? else { return Ok(None) };
            let (control, _ended) = self.builds().begin(&index.id);
            if let Some(merged) = merge.run(control).await? {
                return Ok(Some(merged));
            }
        }
        let snapshot = self.database().snapshot(entry).await?;
        let without = snapshot.units_without(&index.name, &ids).await?;
        if without.serves_others {
            return Ok(None);
        }
        let column = snapshot.index_coverage(&index.name).await?.column.clone();
        let (spec, threads, now_us) = (spec.clone(), self.threads(), now_us());
        let build = SegmentBuild { snapshot, column, spec, units: without.units, like: None, threads, now_us };
        let Some(_claim) = self.claim_in_background(build.bytes())? else { return Ok(None) };
        let (control, _ended) = self.builds().begin(&index.id);
        Ok(Some(build.run(control).await?))
    }

    /// Memory for work that nobody waits for: at most half of all, and nobody is kept waiting by it. `None` if there is none now.
    pub(crate) fn claim_in_background(&self, bytes: usize) -> Result<Option<crate::memory::Claim>> {
        if bytes > self.memory_bytes() / 2 {
            return Ok(None);
        }
        crate::run::claim_at_once(&self.session().state(), &Needs::of_bytes(bytes))
    }
}

/// How many of the smallest segments become one; `rows` of all of them, ascending. Each but the first has at most as many rows as
/// those before it together, so a row is moved only when its segment at least doubles, and what is left grows at least twofold from
/// segment to segment.
fn mergeable(rows: &[u64]) -> usize {
    let (mut count, mut sum) = (0, 0);
    for (at, rows) in rows.iter().enumerate() {
        if at > 0 && *rows <= sum {
            count = at + 1;
        }
        sum += rows;
    }
    if count < MERGED_MIN { 0 } else { count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_like_size_are_merged_and_a_large_one_is_left_alone() {
        for (rows, expected) in [
            (&[][..], 0),
            (&[5, 5, 5], 0),
            (&[5, 5, 5, 5], 4),
            (&[5, 5, 5, 5, 100], 4),
            (&[5, 6, 7, 8, 20, 100], 5),
            (&[1, 10, 100, 1_000], 0),
            (&[1, 10, 10, 10, 31], 5),
        ] {
            assert_eq!(mergeable(rows), expected, "{rows:?}");
        }
    }

    #[test]
    fn a_row_is_moved_a_few_times_however_long_segments_are_added() {
        let (mut segments, mut moved): (Vec<u64>, u64) = (vec![], 0);
        for _ in 0..1_000 {
            segments.push(10);
            segments.sort_unstable();
            let count = mergeable(&segments);
            if count > 0 {
                let sum = segments.drain(..count).sum();
                moved += sum;
                segments.push(sum);
                segments.sort_unstable();
            }
        }
        assert_eq!(segments.iter().sum::<u64>(), 10_000);
        assert!(segments.len() <= 3 + 10, "{segments:?}");
        assert!(moved <= 10_000 * 10, "{moved}");
    }
}
