//! The tables and what must be in them: documents that nobody changes, with their exact neighbours, and rows that the
//! clients add.

use std::collections::BTreeMap;
use std::sync::Arc;

use benches::Failure;
use engine::arrow::array::{ArrayRef, AsArray, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use engine::arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use crate::flight::{Client, failure};

const BATCH_ROWS: usize = 8_192;
/// Query vectors whose neighbours are known.
const QUERIES: usize = 16;
/// Neighbours that a search asks for.
pub const K: usize = 10;
/// Values of the column that searches filter by.
pub const BUCKETS: i64 = 100;
/// Rows whose bucket is smaller match; all rows for the last.
pub const FILTERS: [i64; 3] = [2, 30, BUCKETS];

/// A small generator of numbers that look random: splitmix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5
    }
}

/// The documents as the clients know them.
pub struct Documents {
    pub rows: usize,
    pub dim: usize,
    vectors: Vec<f32>,
    queries: Vec<Vec<f32>>,
    /// For each query and each filter: the ids of the nearest, in order.
    nearest: Vec<Vec<Vec<i64>>>,
}

/// The bucket of a document.
fn bucket(id: usize) -> i64 {
    (id as i64).wrapping_mul(7919).rem_euclid(BUCKETS)
}

/// A number by which documents are in no order.
pub fn noise(id: i64) -> i64 {
    id.wrapping_mul(1_000_003).rem_euclid(999_983)
}

impl Documents {
    pub fn new(rows: usize, dim: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let vectors: Vec<f32> = (0..rows * dim).map(|_| random.unit()).collect();
        let queries: Vec<Vec<f32>> = (0..QUERIES).map(|_| (0..dim).map(|_| random.unit()).collect()).collect();
        let nearest = queries.iter().map(|query| nearest(&vectors, dim, query)).collect();
        Self { rows, dim, vectors, queries, nearest }
    }

    /// A query vector, and the ids that a search with a filter must find.
    pub fn query(&self, number: usize, filter: usize) -> (&[f32], &[i64]) {
        let number = number % QUERIES;
        (&self.queries[number], &self.nearest[number][filter])
    }

    /// The sum of all ids.
    pub fn sum_of_ids(&self) -> i64 {
        (self.rows as i64 - 1) * self.rows as i64 / 2
    }

    fn batch(&self, start: usize, count: usize) -> Result<RecordBatch, Failure> {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values((start..start + count).map(|id| id as i64)));
        let buckets: ArrayRef = Arc::new(Int64Array::from_iter_values((start..start + count).map(bucket)));
        let numbers: ArrayRef =
            Arc::new(Int64Array::from_iter_values((start..start + count).map(|id| noise(id as i64))));
        let values = self.vectors[start * self.dim..(start + count) * self.dim].to_vec();
        let vectors = vectors(values, self.dim);
        Ok(RecordBatch::try_from_iter([("id", ids), ("bucket", buckets), ("noise", numbers), ("emb", vectors)])?)
    }
}

/// Vectors as a column.
pub fn vectors(values: Vec<f32>, dim: usize) -> ArrayRef {
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    Arc::new(FixedSizeListArray::new(item, dim as i32, Arc::new(Float32Array::from(values)), None))
}

/// The nearest of all documents by Euclidean distance under each filter, exactly: the sums are in double precision, so that
/// two documents would have to be equally far to one part in 10^9 to be taken for each other.
fn nearest(vectors: &[f32], dim: usize, query: &[f32]) -> Vec<Vec<i64>> {
    let mut distances: Vec<(f64, usize)> = vectors
        .chunks_exact(dim)
        .map(|vector| vector.iter().zip(query).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>())
        .zip(0..)
        .collect();
    distances.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let of_filter = |filter: &i64| {
        let matching = distances.iter().filter(|(_, id)| bucket(*id) < *filter);
        matching.take(K).map(|(_, id)| *id as i64).collect()
    };
    FILTERS.iter().map(of_filter).collect()
}

/// The columns of the rows that clients add.
pub fn event_schema(dim: usize) -> SchemaRef {
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    Arc::new(Schema::new(vec![
        Field::new("client", DataType::Int64, true),
        Field::new("number", DataType::Int64, true),
        Field::new("emb", DataType::FixedSizeList(item, dim as i32), true),
    ]))
}

/// So many rows of a client, from `first` on.
pub fn events(client: usize, first: i64, count: usize, dim: usize) -> RecordBatch {
    let clients: ArrayRef = Arc::new(Int64Array::from(vec![client as i64; count]));
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + count as i64));
    let values = (0..count * dim).map(|at| ((at * 31 + client) % 1_009) as f32 / 1_009.0).collect();
    RecordBatch::try_new(event_schema(dim), vec![clients, numbers, vectors(values, dim)]).unwrap_or_else(|error| {
        // The columns are made to fit the schema two lines above.
        unreachable!("{error}")
    })
}

/// Makes the tables.
///
/// # Errors
/// What the server says.
pub async fn fill(owner: &Client, documents: &Documents) -> Result<(), Failure> {
    let starts = (0..documents.rows).step_by(BATCH_ROWS);
    let batches: Vec<RecordBatch> =
        starts.map(|start| documents.batch(start, BATCH_ROWS.min(documents.rows - start))).collect::<Result<_, _>>()?;
    let schema = batches.first().ok_or("at least one document")?.schema();
    let written = owner.ingest("docs", true, schema, batches).await.map_err(failure)?;
    if written != documents.rows as i64 {
        return Err(format!("{written} documents were stored").into());
    }
    let dim = documents.dim;
    for sql in [
        format!("CREATE TABLE events (client BIGINT, number BIGINT, emb VECTOR({dim}))"),
        "CREATE TABLE counters (client BIGINT PRIMARY KEY, count BIGINT)".to_owned(),
    ] {
        owner.update(&sql).await.map_err(failure)?;
    }
    owner.rows("SELECT count(*) FROM docs").await.map_err(failure)?;
    Ok(())
}

/// The first column of some batches as numbers.
pub fn integers(batches: &[RecordBatch], column: usize) -> Vec<i64> {
    let of = |batch: &RecordBatch| batch.column(column).as_primitive::<Int64Type>().values().to_vec();
    batches.iter().flat_map(of).collect()
}

/// Rows that are not there as they were acknowledged. `acknowledged`: rows and changes of a counter, by client.
///
/// # Errors
/// What the server says.
pub async fn complaints(owner: &Client, acknowledged: &BTreeMap<i64, (i64, i64)>) -> Result<Vec<String>, Failure> {
    let sql = "SELECT client, count(*), count(DISTINCT number), max(number) FROM events GROUP BY client";
    let batches = owner.rows(sql).await.map_err(failure)?;
    let [clients, counts, distinct, last] = [0, 1, 2, 3].map(|column| integers(&batches, column));
    let mut found: BTreeMap<i64, [i64; 3]> = BTreeMap::new();
    for (at, client) in clients.iter().enumerate() {
        found.insert(*client, [counts[at], distinct[at], last[at] + 1]);
    }
    let mut wrong = vec![];
    for (client, (rows, _)) in acknowledged {
        let there = found.remove(client).unwrap_or_default();
        if there != [*rows; 3] {
            wrong.push(format!("client {client} had {rows} rows acknowledged; count, distinct and last say {there:?}"));
        }
    }
    wrong.extend(found.iter().map(|(client, there)| format!("client {client} has rows that nobody sent: {there:?}")));
    let batches = owner.rows("SELECT client, count FROM counters ORDER BY client").await.map_err(failure)?;
    let counters: BTreeMap<i64, i64> = integers(&batches, 0).into_iter().zip(integers(&batches, 1)).collect();
    for (client, (_, changes)) in acknowledged {
        let there = counters.get(client).copied().unwrap_or(0);
        if there != *changes {
            wrong.push(format!("client {client} changed its counter {changes} times, and it stands at {there}"));
        }
    }
    Ok(wrong)
}
