//! What is asked, the true answers, and the rows that are searched.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use benches::Failure;
use benches::flight_client::vectors_of;
use benches::rates::{K, Queries};
use engine::arrow::array::{ArrayRef, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use engine::{Error, ErrorKind};

use crate::npy::{FLOATS, INTEGERS, Npy};
use crate::results::Subject;

/// As many queries as the rivals get.
const QUERIES_MAX: usize = 1_000;
/// As many as the rivals get with a predicate.
pub const FILTERED_QUERIES_MAX: usize = 200;
/// Bounds of `u` for which the nearest rows are stored; `u` is from 0 to 9,999.
const BOUNDS: [u32; 3] = [100, 1_000, 5_000];
/// How many values `u` has.
pub const U_VALUES: f64 = 10_000.0;
const BATCH_ROWS: usize = 8_192;
/// Where the numbers of the column `part` lie between those of `u`.
const PART_OF_U: f64 = 0.5;

/// How a data set's neighbors are told, in the words of SQL.
pub struct Metric {
    pub name: &'static str,
    pub operator: &'static str,
    pub operator_class: &'static str,
}

const L2: Metric = Metric { name: "l2", operator: "<->", operator_class: "vector_l2_ops" };
/// Cosine distance.
pub const COSINE: Metric = Metric { name: "cosine", operator: "<=>", operator_class: "vector_cosine_ops" };

impl Metric {
    /// A search for the nearest rows in what FROM and WHERE say, its vector `$1`, three columns fetched beside the id.
    pub fn search(&self, from: &str) -> String {
        format!("SELECT id, name, u, released FROM {from} ORDER BY emb {} $1 LIMIT {K}", self.operator)
    }
}

/// What is asked, the true answers, and where the rows are.
pub struct Dataset {
    pub name: String,
    folder: PathBuf,
    pub metric: Metric,
    pub rows: usize,
    pub dim: usize,
    pub queries: Arc<Queries>,
    /// By the bound of `u`: rows with `u` below are candidates.
    pub filtered: Vec<(u32, Arc<Queries>)>,
}

impl Dataset {
    /// Reads queries and answers.
    ///
    /// # Errors
    /// A name that is unknown, files that are not there or do not fit each other.
    pub fn open(name: &str) -> Result<Self, Failure> {
        let metric = match name {
            "minilm" | "large" => COSINE,
            "fashion" => L2,
            _ => return Err(format!("there is no data set {name}; there are minilm, large and fashion").into()),
        };
        let folder = root().join("data").join(name);
        let base = Npy::open(&folder.join("base.npy"), FLOATS)?;
        let (rows, dim) = (base.rows, base.width);
        let vectors = vectors(&folder.join("query.npy"), dim)?;
        let queries = |file: &str, count_max: usize| -> Result<Arc<Queries>, Failure> {
            let truth = Npy::open(&folder.join(file), INTEGERS)?;
            let (count, width) = (truth.rows.min(count_max).min(vectors.len()), truth.width);
            if width < K {
                return Err(format!("{file} names {width} neighbors of a query, fewer than {K}").into());
            }
            let truth = truth.values(i32::from_le_bytes)?;
            let nearest = truth.chunks(width).map(|ids| ids[..K].iter().copied().map(i64::from).collect::<Vec<_>>());
            Ok(Arc::new(Queries { vectors: vectors[..count].to_vec(), nearest: nearest.take(count).collect() }))
        };
        let mut filtered = vec![];
        for bound in BOUNDS {
            filtered.push((bound, queries(&format!("gt_u{bound}.npy"), FILTERED_QUERIES_MAX)?));
        }
        let queries = queries("gt.npy", QUERIES_MAX)?;
        Ok(Self { name: name.to_owned(), folder, metric, rows, dim, queries, filtered })
    }

    /// All of its rows.
    pub fn subject(&self) -> Subject<'_> {
        Subject { dataset: &self.name, rows: self.rows, dim: self.dim }
    }

    /// The search in `docs`, among the rows that the predicate keeps.
    pub fn sql(&self, predicate: &str) -> String {
        self.metric.search(&format!("docs {predicate}"))
    }

    /// Queries of another kind than the rows, if somebody has put some there: `far.npy`.
    ///
    /// # Errors
    /// Vectors of another dimension.
    pub fn far(&self) -> Result<Option<Vec<Vec<f32>>>, Failure> {
        let path = self.folder.join("far.npy");
        if path.exists() { vectors(&path, self.dim).map(Some) } else { Ok(None) }
    }

    /// Their vectors, one after the other.
    ///
    /// # Errors
    /// A file that is gone.
    pub fn base(&self) -> Result<Npy, Failure> {
        Npy::open(&self.folder.join("base.npy"), FLOATS)
    }

    /// The first so many rows.
    ///
    /// # Errors
    /// Files that do not fit each other.
    pub fn rows(&self, count: usize) -> Result<Rows, Failure> {
        let (u, mut base) = (self.u()?, self.base()?);
        let next = Box::new(move |values: &mut Vec<f32>| base.next_row(values, f32::from_le_bytes));
        Ok(Rows { count, dim: self.dim, direction: self.direction().to_vec(), u, next, at: 0 })
    }

    /// The numbers that predicates are about, one for each row.
    ///
    /// # Errors
    /// A file of another length.
    pub fn u(&self) -> Result<Vec<i32>, Failure> {
        let u = Npy::open(&self.folder.join("u.npy"), INTEGERS)?.values(i32::from_le_bytes)?;
        if u.len() == self.rows {
            Ok(u)
        } else {
            Err(format!("u.npy has {} rows and base.npy {}; make both anew", u.len(), self.rows).into())
        }
    }

    /// The column `side` says how far a row lies in this direction.
    pub fn direction(&self) -> &[f32] {
        &self.queries.vectors[0]
    }
}

/// The rows of a file of vectors.
fn vectors(path: &Path, dim: usize) -> Result<Vec<Vec<f32>>, Failure> {
    let file = Npy::open(path, FLOATS)?;
    if file.width != dim {
        let place = path.display();
        return Err(format!("{place} has {} dimensions and base.npy {dim}; make both anew", file.width).into());
    }
    Ok(file.values(f32::from_le_bytes)?.chunks(dim).map(<[f32]>::to_vec).collect())
}

/// The folder of data and results.
pub fn root() -> PathBuf {
    let root = std::env::var_os("ANNBENCH").unwrap_or_else(|| "annbench".into());
    // Cargo runs a bench in the folder of its package, wherever it was called itself.
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(root)
}

/// Appends the vector of the next row.
pub type NextVector = Box<dyn FnMut(&mut Vec<f32>) -> Result<(), Failure> + Send>;

/// The rows of a table, in batches, as they are asked for; a row's id is its place.
///
/// Beside what is fetched there are `part`, which is `u` and a half, so that a bound between two numbers of `u` can be said in many
/// ways, and `side`, the inner product with [`Rows::direction`].
pub struct Rows {
    pub count: usize,
    pub dim: usize,
    pub direction: Vec<f32>,
    /// Begun again where there are more rows.
    pub u: Vec<i32>,
    pub next: NextVector,
    /// How many were taken.
    pub at: usize,
}

impl Rows {
    /// The next rows; with none it says which columns there are.
    ///
    /// # Errors
    /// Vectors that cannot be had.
    pub fn batch(&mut self, count: usize) -> Result<RecordBatch, Failure> {
        let ids = i64::try_from(self.at)?..i64::try_from(self.at + count)?;
        let mut values = Vec::with_capacity(count * self.dim);
        for _ in 0..count {
            (self.next)(&mut values)?;
        }
        let u: Vec<i32> = (self.at..self.at + count).map(|at| self.u[at % self.u.len()]).collect();
        let side: Vec<f64> = values.chunks(self.dim).map(|vector| dot(vector, &self.direction)).collect();
        self.at += count;
        let columns: [(&str, ArrayRef); 7] = [
            ("id", Arc::new(Int64Array::from_iter_values(ids.clone()))),
            ("name", Arc::new(StringArray::from_iter_values(ids.clone().map(|id| format!("package {id}"))))),
            ("part", Arc::new(Float64Array::from_iter_values(u.iter().map(|u| f64::from(*u) + PART_OF_U)))),
            ("u", Arc::new(Int32Array::from(u))),
            ("side", Arc::new(Float64Array::from(side))),
            ("released", Arc::new(Int64Array::from_iter_values(ids.map(|id| 1_500_000_000 + id)))),
            ("emb", Arc::new(vectors_of(Float32Array::from(values), self.dim)?)),
        ];
        Ok(RecordBatch::try_from_iter(columns)?)
    }
}

impl Iterator for Rows {
    type Item = engine::Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let count = BATCH_ROWS.min(self.count - self.at);
        let batch = || self.batch(count).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()));
        (count > 0).then(batch)
    }
}

/// Inner product.
pub fn dot(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
}
