//! Rates of a server as one client program sees them: searches of several connections at once; and how much of the truth is found.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Failure, median};

/// How many neighbours a search wants.
pub const K: usize = 10;

/// Query vectors, and the nearest rows of each.
pub struct Queries {
    /// One vector for each query.
    pub vectors: Vec<Vec<f32>>,
    /// The ids of the [`K`] nearest rows of each query, in any order.
    pub nearest: Vec<Vec<i64>>,
}

/// One connection, with its search prepared as far as the server can.
pub trait Searcher: Send + 'static {
    /// The ids of the [`K`] nearest rows; their distances have been fetched too.
    ///
    /// # Errors
    /// What the server says, as text: it passes between tasks.
    fn nearest(&mut self, query: &[f32]) -> impl Future<Output = Result<Vec<i64>, String>> + Send;
}

/// What is found for each vector.
///
/// # Errors
/// What the server says.
pub async fn found<S: Searcher>(searcher: &mut S, vectors: &[Vec<f32>]) -> Result<Vec<Vec<i64>>, Failure> {
    let mut found = Vec::with_capacity(vectors.len());
    for vector in vectors {
        found.push(searcher.nearest(vector).await?);
    }
    Ok(found)
}

/// The share of the true neighbors that were found; both are in the order of the queries.
pub fn recall_of(found: &[Vec<i64>], nearest: &[Vec<i64>]) -> f64 {
    let hits = |(nearest, found): (&Vec<i64>, &Vec<i64>)| nearest.iter().filter(|id| found.contains(id)).count();
    let wanted: usize = nearest.iter().map(Vec::len).sum();
    nearest.iter().zip(found).map(hits).sum::<usize>() as f64 / wanted as f64
}

/// The share of the true neighbors that are found, over all queries once.
///
/// # Errors
/// What the server says.
pub async fn recall<S: Searcher>(searcher: &mut S, queries: &Queries) -> Result<f64, Failure> {
    Ok(recall_of(&found(searcher, &queries.vectors).await?, &queries.nearest))
}

/// What several connections reached together.
pub struct SearchRates {
    /// Queries per second, the median of the rounds.
    pub qps: f64,
    /// Median latency of all rounds.
    pub p50: Duration,
    /// The latency that one query of a hundred exceeds.
    pub p99: Duration,
    /// The share of the true neighbours that were found.
    pub recall: f64,
}

/// Searches from all connections at once for a while, in rounds; each connection goes through the queries from a place of its
/// own, and ends the search it is in.
///
/// # Errors
/// The first of any search.
pub async fn search<S: Searcher>(
    connections: Vec<S>,
    queries: &Arc<Queries>,
    round: Duration,
    rounds: usize,
) -> Result<SearchRates, Failure> {
    let mut connections = connections;
    let (mut rates, mut latencies, mut hits, mut wanted) = (vec![], vec![], 0, 0);
    // The first round warms up.
    for number in 0..=rounds {
        let start = Instant::now();
        let workers: Vec<_> = connections
            .drain(..)
            .enumerate()
            .map(|(place, connection)| tokio::spawn(searches(connection, Arc::clone(queries), place, start + round)))
            .collect();
        let mut count = 0;
        for worker in workers {
            let (connection, done) = worker.await??;
            connections.push(connection);
            count += done.latencies.len();
            if number > 0 {
                latencies.extend(done.latencies);
                hits += done.hits;
                wanted += done.wanted;
            }
        }
        if number > 0 {
            rates.push(count as f64 / start.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(f64::total_cmp);
    latencies.sort_unstable();
    let p99 = latencies[latencies.len() * 99 / 100];
    Ok(SearchRates { qps: rates[rates.len() / 2], p50: median(latencies), p99, recall: hits as f64 / wanted as f64 })
}

#[derive(Default)]
struct Done {
    latencies: Vec<Duration>,
    hits: usize,
    wanted: usize,
}

async fn searches<S: Searcher>(
    mut connection: S,
    queries: Arc<Queries>,
    place: usize,
    until: Instant,
) -> Result<(S, Done), String> {
    let mut done = Done::default();
    let count = queries.vectors.len();
    let mut at = place * 61 % count;
    while Instant::now() < until {
        let start = Instant::now();
        let found = connection.nearest(&queries.vectors[at]).await?;
        done.latencies.push(start.elapsed());
        done.hits += queries.nearest[at].iter().filter(|id| found.contains(id)).count();
        done.wanted += K;
        at = (at + 1) % count;
    }
    Ok((connection, done))
}
