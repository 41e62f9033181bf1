//! Text search: the rows whose text fits some words best, by the inverted index of Lance and its BM25.

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, UInt64Type};
use futures::{FutureExt, TryStreamExt};
use lance::dataset::scanner::{RowAddrMask, RowAddrTreeMap, Scanner};
use lance_core::ROW_ID;
use lance_index::scalar::FullTextSearchQuery;

use crate::error::{Result, StorageError};
use crate::snapshot::{Snapshot, guard};

/// The column in which Lance hands out how well a row fits.
const SCORE: &str = "_score";

/// A row and how well its text fits: the larger, the better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// The row's address.
    pub address: u64,
    /// BM25.
    pub score: f32,
}

impl Snapshot {
    /// The name of the inverted index on a column.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown column, [`StorageError::Invalid`] if it has no such index.
    pub async fn text_index(&self, column: &str) -> Result<String> {
        self.field(column)?;
        let indexes = self.scalar_indexes().await?;
        let found = indexes.into_iter().find(|index| index.column == column && index.method == "inverted");
        found.map(|index| index.name).ok_or_else(|| {
            StorageError::invalid(format!(
                "column {column} has no index for text search in version {} of {}; CREATE INDEX ON … USING inverted \
                 ({column}) makes one",
                self.version(),
                self.location()
            ))
        })
    }

    /// The `k` rows, `among` some or all, whose text fits `words` best: best first, those that fit alike in row order; where more of
    /// them are than there is room for, which ones are left out is the index's choice. Rows without any of
    /// the words are not there. Rows that the index lacks are read.
    ///
    /// # Errors
    /// As [`Snapshot::text_index`].
    pub async fn text_search(
        &self,
        column: &str,
        words: String,
        k: usize,
        among: Option<Vec<u64>>,
    ) -> Result<Vec<Fit>> {
        let index = self.text_index(column).await?;
        if k == 0 || among.as_ref().is_some_and(Vec::is_empty) {
            return Ok(vec![]);
        }
        // A row's number is its address where numbers are not stable, as in our own tables.
        if self.dataset().manifest().uses_stable_row_ids() {
            return Err(StorageError::unsupported(format!(
                "text search of {}, whose rows have stable numbers, is not built; CREATE TABLE … AS SELECT copies them",
                self.location()
            )));
        }
        let what = format!("cannot search column {column} of {}", self.location());
        let failed = |error| StorageError::from_lance(&what, error);
        let limit = i64::try_from(k).unwrap_or(i64::MAX);
        let query = FullTextSearchQuery::new(words).with_column(column.to_owned()).map_err(failed)?.limit(Some(limit));
        let mut scanner = Scanner::new(self.dataset().clone());
        scanner.project(&[SCORE]).map_err(failed)?;
        scanner.disable_scoring_autoprojection();
        scanner.with_row_id().prefilter(true).full_text_search(query).map_err(failed)?;
        scanner.limit(Some(limit), None).map_err(failed)?;
        if let Some(among) = among {
            scanner.with_row_id_prefilter(RowAddrMask::from_allowed(RowAddrTreeMap::from_iter(among)));
        }
        let found = async { scanner.try_into_stream().await?.try_collect::<Vec<_>>().await };
        let batches = guard(&what, found).boxed().await.map_err(|error| match error {
            StorageError::Corrupt(_) | StorageError::NotFound(_) => StorageError::corrupt(format!(
                "{what}: index {index} cannot be read; CHECK TABLE tells what is damaged, REINDEX INDEX {index} builds it anew"
            ))
            .with_source(error),
            error => error,
        })?;
        let mut fits = vec![];
        for batch in &batches {
            let (Some(addresses), Some(scores)) = (batch.column_by_name(ROW_ID), batch.column_by_name(SCORE)) else {
                return Err(StorageError::internal(format!("{what}: what was found has no address or no score")));
            };
            let addresses = addresses.as_primitive::<UInt64Type>().values();
            let scores = scores.as_primitive::<Float32Type>().values();
            fits.extend(addresses.iter().zip(scores).map(|(address, score)| Fit { address: *address, score: *score }));
        }
        fits.sort_by(|one, other| other.score.total_cmp(&one.score).then(one.address.cmp(&other.address)));
        fits.truncate(k);
        Ok(fits)
    }
}
