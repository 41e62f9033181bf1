//! Indexes on columns that hold no vectors: Lance's own, which its scans ask for the rows of a predicate. They belong to the
//! version as its rows do: the manifest names them, so that the past is read with the indexes it had, and RESTORE brings
//! them back with the rows. Their files are in `<table>.lance/_indices/<uuid>/`, one folder for each segment.
//!
//! A segment covers fragments. Rows of others are read, deleted rows are left out by whoever reads, so an index that is
//! behind is never wrong. How indexes are built, brought up to date and dropped is in `scalar_index/build.rs`.

use std::any::Any;
use std::sync::Arc;

use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use lance::io::exec::scalar_index::ScalarIndexExec;
use lance_index::IndexType;
use lance_index::registry::plugin_name_from_details_url;
use lance_index::scalar::expression::ScalarIndexExpr;
use lance_table::format::{Fragment, IndexMetadata};
use lance_table::io::manifest::read_manifest_indexes;
use lance_table::system_index::is_system_index;
use roaring::RoaringBitmap;

use crate::error::{Result, StorageError};
use crate::scan::ScanRequest;
use crate::snapshot::{Snapshot, guard};

mod build;

pub use build::NewScalarIndex;

/// The kinds of indexes on columns without vectors: the name in SQL, Lance's name, and its type.
const METHODS: [(&str, &str, IndexType); 7] = [
    ("btree", "btree", IndexType::BTree),
    ("bitmap", "bitmap", IndexType::Bitmap),
    ("label_list", "labellist", IndexType::LabelList),
    ("ngram", "ngram", IndexType::NGram),
    ("zonemap", "zonemap", IndexType::ZoneMap),
    ("bloom_filter", "bloomfilter", IndexType::BloomFilter),
    ("inverted", "inverted", IndexType::Inverted),
];

/// An index of a version on a column that holds no vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalarIndex {
    /// Unique among these indexes of the table.
    pub name: String,
    /// Its column, by the name in this version.
    pub column: String,
    /// `btree`, `bitmap`, `label_list`, `ngram`, `zonemap`, `bloom_filter` or `inverted`; another name for what another
    /// program made.
    pub method: String,
    /// How many parts it has: each was built of the rows of some fragments.
    pub segments: usize,
    /// Live rows that it has.
    pub rows_covered: u64,
    /// Live rows that are read instead.
    pub rows_uncovered: u64,
    /// Of its files.
    pub bytes: u64,
    /// When its oldest segment was built, in microseconds since the epoch, if the writer noted it.
    pub created_at_us: Option<i64>,
}

impl Snapshot {
    /// All that the manifest lists, also what no scan can use. Cost: a small read, once per version.
    pub(crate) async fn lance_indexes(&self) -> Result<&Arc<Vec<IndexMetadata>>> {
        let read = async || {
            let dataset = self.dataset();
            if dataset.manifest().index_section.is_none() {
                return Ok(Arc::default());
            }
            let what = format!("cannot read the list of indexes of {}", self.location());
            let store = guard(&what, dataset.object_store(None)).await?;
            let listed = read_manifest_indexes(&store, dataset.manifest_location(), dataset.manifest());
            Ok(Arc::new(guard(&what, listed).await.map_err(StorageError::while_pinned)?))
        };
        self.lance_index_cell().get_or_try_init(read).await
    }

    /// The indexes on columns that hold no vectors, in the order of their making. Cost: a small read, once per version;
    /// nothing where there is none.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`], [`StorageError::Corrupt`].
    pub async fn scalar_indexes(&self) -> Result<Vec<ScalarIndex>> {
        let mut indexes: Vec<ScalarIndex> = vec![];
        let listed = self.lance_indexes().await?;
        for entry in listed.iter().filter(|entry| is_scalar(entry)) {
            if indexes.iter().any(|index| index.name == entry.name) {
                continue;
            }
            let segments: Vec<&IndexMetadata> = listed.iter().filter(|other| other.name == entry.name).collect();
            indexes.extend(self.described(&segments));
        }
        Ok(indexes)
    }

    /// The index of this name.
    pub(crate) async fn scalar_index(&self, name: &str) -> Result<Option<ScalarIndex>> {
        Ok(self.scalar_indexes().await?.into_iter().find(|index| index.name == name))
    }

    /// `None` if the column is gone.
    fn described(&self, segments: &[&IndexMetadata]) -> Option<ScalarIndex> {
        let first = segments.first()?;
        let column = self.column_of(first.keyed_field()?)?;
        let covered = self.covered_by(segments.iter().copied());
        let rows_covered = self.live_rows_in(&covered);
        let files = segments.iter().flat_map(|segment| segment.files.iter().flatten());
        Some(ScalarIndex {
            name: first.name.clone(),
            column,
            method: method_of(first),
            segments: segments.len(),
            rows_covered,
            rows_uncovered: self.row_count() - rows_covered,
            bytes: files.map(|file| file.size_bytes).sum(),
            created_at_us: segments.iter().filter_map(|one| one.created_at.map(|at| at.timestamp_micros())).min(),
        })
    }

    /// The fragments of this version that the segments have.
    fn covered_by<'a>(&self, segments: impl Iterator<Item = &'a IndexMetadata>) -> RoaringBitmap {
        let there: RoaringBitmap = self.fragments().iter().map(|fragment| fragment.id).collect();
        let covered = segments.filter_map(|segment| segment.effective_fragment_bitmap(&there));
        covered.fold(RoaringBitmap::new(), |all, some| all | some)
    }

    fn live_rows_in(&self, fragments: &RoaringBitmap) -> u64 {
        let covered = self.fragments().iter().filter(|fragment| fragments.contains(fragment.id));
        covered.map(|fragment| fragment.metadata.num_rows().map_or(fragment.rows, |rows| rows as u64)).sum()
    }

    /// The indexes that a scan with this filter asks, as `name (method)`. Cost: nothing on a table without any, else the
    /// planning of a scan.
    ///
    /// # Errors
    /// [`StorageError::Invalid`] if [`Snapshot::can_filter`] says no.
    pub async fn indexes_for(&self, filter: &Expr) -> Result<Vec<String>> {
        if self.dataset().manifest().index_section.is_none() {
            return Ok(vec![]);
        }
        if !self.can_filter(filter) {
            return Err(StorageError::invalid(format!("the filter {filter} cannot be evaluated while reading")));
        }
        let scanner = self.scanner(&ScanRequest::of_addresses(filter)).await?;
        let what = format!("cannot plan a scan of {}", self.location());
        let plan = guard(&what, Box::pin(scanner.create_plan())).await?;
        let mut names = vec![];
        collect_names(plan.as_ref(), &mut names);
        Ok(names)
    }
}

/// Looks through a plan of Lance for what asks indexes.
fn collect_names(plan: &dyn ExecutionPlan, names: &mut Vec<String>) {
    let any: &dyn Any = plan;
    if let Some(asks) = any.downcast_ref::<ScalarIndexExec>() {
        names_in(asks.expr(), names);
    }
    plan.children().into_iter().for_each(|child| collect_names(child.as_ref(), names));
}

fn names_in(query: &ScalarIndexExpr, names: &mut Vec<String>) {
    match query {
        ScalarIndexExpr::Not(inner) => names_in(inner, names),
        ScalarIndexExpr::And(left, right) | ScalarIndexExpr::Or(left, right) => {
            names_in(left, names);
            names_in(right, names);
        }
        ScalarIndexExpr::Query(search) => {
            let name = format!("{} ({})", search.index_name, sql_name(&search.index_type.to_lowercase()));
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
}

/// True for what is not Lance's bookkeeping, nor an index of vectors that another program made.
pub(crate) fn is_scalar(entry: &IndexMetadata) -> bool {
    !is_system_index(entry) && plugin_name(entry) != "vector"
}

/// True for an index that goes on being right if fragments are rewritten without it: the new ones are read until it is
/// brought up to date, which this program can do.
pub(crate) fn can_fall_behind(entry: &IndexMetadata) -> bool {
    is_scalar(entry)
        && entry.fragment_bitmap.is_some()
        && METHODS.iter().any(|(_, lance, _)| *lance == plugin_name(entry))
}

/// Lance's name of the kind of index.
fn plugin_name(entry: &IndexMetadata) -> String {
    entry.index_details.as_ref().map(|details| plugin_name_from_details_url(&details.type_url)).unwrap_or_default()
}

fn method_of(entry: &IndexMetadata) -> String {
    sql_name(&plugin_name(entry)).to_owned()
}

fn sql_name(lance: &str) -> &str {
    METHODS.iter().find(|(_, other, _)| *other == lance).map_or(lance, |(name, ..)| *name)
}

/// True if the fragments have the same values in a column. Data files never change and have unique names.
pub(crate) fn have_same_values(one: &Fragment, other: &Fragment, field: i32) -> bool {
    let file = |fragment: &Fragment| {
        let holds = fragment.files.iter().find(|file| file.fields.contains(&field));
        holds.map(|file| (file.path.clone(), file.base_id))
    };
    one.id == other.id && one.overlays.is_empty() && other.overlays.is_empty() && file(one) == file(other)
}

#[cfg(test)]
mod tests;
