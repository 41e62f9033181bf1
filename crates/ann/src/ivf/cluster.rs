//! Centroids of a sample: k-means in two levels, then over all of them, with clusters kept to about one size.
//!
//! Deterministic for a seed, whatever the number of threads: rows go to clusters one by one, sums are added in the order of rows.

use kernels::{Panels, dot_f32};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use crate::build::{BuildError, Control};
use crate::sample::{half_squares, spread_sample};

/// Rounds of Lloyd's algorithm at a level.
const ROUNDS: usize = 8;

/// Rounds over all clusters at the end.
const ROUNDS_OVER_ALL: usize = 8;

/// Clusters up to which rounds go over all of them: beyond, what the two levels found is kept.
const OVER_ALL_MAX: usize = 4_096;

/// Rows that are assigned at a time.
const ROWS_AT_ONCE: usize = 1_024;

/// A cluster with more rows than this times the mean is split.
const LARGE: usize = 3;

/// A cluster with fewer rows than the mean by this is given up for one that is split.
const SMALL: usize = 8;

/// Centroids of lists, row-major, those below one upper centroid side by side; the upper ones; where each ends.
pub(crate) struct Clusters {
    pub(crate) lists: Vec<f32>,
    pub(crate) upper: Vec<f32>,
    pub(crate) upper_ends: Vec<u32>,
}

/// Where the rows lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape<'a> {
    /// Anywhere: a centroid is the mean of its rows.
    Plain,
    /// On the sphere of radius 1 around a point: a centroid is moved onto it. A mean is nearer to that point the wider its cluster is,
    /// and so nearer to every query: fewer of the rows in the lists read are neighbors.
    Sphere(&'a [f32]),
}

/// Divides `rows` (row-major, `dim` elements each, at least one row) into `count` clusters, or as many as there are rows.
pub(crate) fn cluster(
    rows: &[f32],
    dim: usize,
    count: usize,
    shape: Shape<'_>,
    seed: u64,
    control: &Control,
) -> Result<Clusters, BuildError> {
    let row_count = rows.len() / dim;
    let count = count.clamp(1, row_count.max(1));
    let upper_count = (count as f64).sqrt().round().max(1.0) as usize;
    let all: Vec<u32> = (0..row_count as u32).collect();
    let upper = Level { rows, dim, shape }.means(&all, upper_count, seed, ROUNDS, control)?;
    let members = members_of(&upper.assigned, upper.count(dim));
    let shares = shares(&members, count);
    let parts = members
        .par_iter()
        .zip(shares)
        .enumerate()
        .map(|(index, (members, share))| {
            let seed = seed.wrapping_add(index as u64 + 1);
            Level { rows, dim, shape }.means(members, share, seed, ROUNDS, control)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut ends: Vec<u32> = vec![];
    let mut lists = vec![];
    for part in parts {
        lists.extend(part.centroids);
        ends.push((lists.len() / dim) as u32);
    }
    if ends.len() > 1 && lists.len() / dim <= OVER_ALL_MAX {
        let level = Level { rows, dim, shape };
        lists = level.refine(&all, lists, seed, ROUNDS_OVER_ALL, control)?.centroids;
    }
    Ok(under(lists, dim, shape, upper.centroids, ends))
}

/// The means of at most `count` clusters of `rows` (row-major, `dim` elements each), one level alone.
pub(super) fn means(
    rows: &[f32],
    dim: usize,
    count: usize,
    seed: u64,
    rounds: usize,
    control: &Control,
) -> Result<Vec<f32>, BuildError> {
    let all: Vec<u32> = (0..(rows.len() / dim) as u32).collect();
    Ok(Level { rows, dim, shape: Shape::Plain }.means(&all, count, seed, rounds, control)?.centroids)
}

/// Orders lists by the upper centroid that is nearest now, and moves those to the means of what is below them.
fn under(lists: Vec<f32>, dim: usize, shape: Shape<'_>, upper: Vec<f32>, ends: Vec<u32>) -> Clusters {
    let panels = Panels::new(dim, &upper);
    let mut nearest = vec![(0, 0.0); lists.len() / dim];
    panels.nearest(&half_squares(&upper, dim), &lists, &mut nearest);
    let assigned: Vec<u32> = nearest.into_iter().map(|(index, _)| index).collect();
    let members = members_of(&assigned, ends.len());
    let mut clusters = Clusters { lists: vec![], upper: vec![], upper_ends: vec![] };
    for members in members.iter().filter(|members| !members.is_empty()) {
        clusters.upper.extend(shape.centre(&lists, dim, members));
        for list in members {
            clusters.lists.extend_from_slice(&lists[*list as usize * dim..][..dim]);
        }
        clusters.upper_ends.push((clusters.lists.len() / dim) as u32);
    }
    clusters
}

/// How many of `count` clusters each group gets: by its rows, at least one where there are any, at most its rows.
fn shares(members: &[Vec<u32>], count: usize) -> Vec<usize> {
    let total: usize = members.iter().map(Vec::len).sum();
    let share = |rows: usize| (rows * count).div_ceil(total.max(1)).min(rows);
    let mut shares: Vec<usize> = members.iter().map(|members| share(members.len())).collect();
    // Rounding up gave too many: the largest shares give back.
    let mut excess = shares.iter().sum::<usize>().saturating_sub(count);
    while excess > 0 {
        let Some(largest) = shares.iter_mut().filter(|share| **share > 1).max() else { break };
        *largest -= 1;
        excess -= 1;
    }
    shares
}

struct Level<'a> {
    rows: &'a [f32],
    dim: usize,
    shape: Shape<'a>,
}

struct Means {
    centroids: Vec<f32>,
    /// The cluster of each member, in their order.
    assigned: Vec<u32>,
}

impl Means {
    fn count(&self, dim: usize) -> usize {
        self.centroids.len() / dim
    }
}

impl Level<'_> {
    fn row(&self, row: u32) -> &[f32] {
        &self.rows[row as usize * self.dim..][..self.dim]
    }

    /// k-means over `members`, started at random ones.
    fn means(
        &self,
        members: &[u32],
        count: usize,
        seed: u64,
        rounds: usize,
        control: &Control,
    ) -> Result<Means, BuildError> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let count = count.min(members.len());
        let chosen = spread_sample(members.len(), count, &mut random);
        let centroids: Vec<f32> = chosen.iter().flat_map(|index| self.row(members[*index])).copied().collect();
        self.refine(members, centroids, seed, rounds, control)
    }

    /// Lloyd's algorithm from given centroids.
    fn refine(
        &self,
        members: &[u32],
        mut centroids: Vec<f32>,
        seed: u64,
        rounds: usize,
        control: &Control,
    ) -> Result<Means, BuildError> {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        let count = centroids.len() / self.dim;
        let mut assigned = vec![0; members.len()];
        if count == 0 {
            return Ok(Means { centroids, assigned });
        }
        for round in 0..rounds {
            control.advance(0)?;
            assigned = self.assign(members, &centroids);
            let clusters = members_of(&assigned, count);
            centroids = clusters
                .par_iter()
                .zip(centroids.par_chunks_exact(self.dim))
                .flat_map_iter(|(cluster, old)| {
                    if cluster.is_empty() {
                        return old.to_vec();
                    }
                    let rows: Vec<u32> = cluster.iter().map(|index| members[*index as usize]).collect();
                    self.shape.centre(self.rows, self.dim, &rows)
                })
                .collect();
            if round + 1 < rounds {
                self.balance(members, &clusters, &mut centroids, &mut random);
            }
        }
        Ok(Means { centroids, assigned })
    }

    /// Moves the centroids of the smallest clusters to random rows of the largest.
    fn balance(&self, members: &[u32], clusters: &[Vec<u32>], centroids: &mut [f32], random: &mut ChaCha8Rng) {
        let mean = members.len().div_ceil(clusters.len());
        let mut by_rows: Vec<usize> = (0..clusters.len()).collect();
        by_rows.sort_unstable_by_key(|cluster| (clusters[*cluster].len(), *cluster));
        let small = by_rows.iter().filter(|cluster| clusters[**cluster].len() <= mean / SMALL);
        let large = by_rows.iter().rev().filter(|cluster| clusters[**cluster].len() > 1);
        for (small, large) in small.zip(large) {
            let rows = &clusters[*large];
            let needed = clusters[*small].is_empty() || rows.len() > LARGE * mean;
            if needed {
                let row = members[rows[random.random_range(0..rows.len())] as usize];
                let place = &mut centroids[small * self.dim..][..self.dim];
                place.copy_from_slice(self.row(row));
            }
        }
    }

    fn assign(&self, members: &[u32], centroids: &[f32]) -> Vec<u32> {
        let (panels, bias) = (Panels::new(self.dim, centroids), half_squares(centroids, self.dim));
        let parts = members.par_chunks(ROWS_AT_ONCE).flat_map_iter(|members| {
            let rows: Vec<f32> = members.iter().flat_map(|row| self.row(*row)).copied().collect();
            let mut nearest = vec![(0, 0.0); members.len()];
            panels.nearest(&bias, &rows, &mut nearest);
            nearest.into_iter().map(|(index, _)| index)
        });
        parts.collect()
    }
}

/// The members of each of `count` clusters, ascending.
pub(crate) fn members_of(assigned: &[u32], count: usize) -> Vec<Vec<u32>> {
    let mut members = vec![vec![]; count];
    for (index, cluster) in (0_u32..).zip(assigned) {
        members[*cluster as usize].push(index);
    }
    members
}

impl Shape<'_> {
    /// The centroid of the members.
    fn centre(self, rows: &[f32], dim: usize, members: &[u32]) -> Vec<f32> {
        let mut centre = mean(rows, dim, members);
        if let Shape::Sphere(middle) = self {
            centre.iter_mut().zip(middle).for_each(|(value, middle)| *value -= middle);
            let length = dot_f32(&centre, &centre).sqrt();
            let scale = if length > 0.0 { 1.0 / length } else { 1.0 };
            centre.iter_mut().zip(middle).for_each(|(value, middle)| *value = *value * scale + middle);
        }
        centre
    }
}

fn mean(rows: &[f32], dim: usize, members: &[u32]) -> Vec<f32> {
    let mut sum = vec![0.0_f32; dim];
    for row in members {
        let row = &rows[*row as usize * dim..][..dim];
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    let scale = 1.0 / members.len().max(1) as f32;
    sum.iter_mut().for_each(|sum| *sum *= scale);
    sum
}

/// k-majority over bit vectors of `bytes` bytes: each bit of a centroid is what most of its rows have.
///
/// Assigned by Hamming distance. `rows`: at least one.
pub(crate) fn cluster_bits(
    rows: &[u8],
    bytes: usize,
    count: usize,
    seed: u64,
    control: &Control,
) -> Result<Vec<u8>, BuildError> {
    let row_count = rows.len() / bytes;
    let count = count.clamp(1, row_count.max(1));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let chosen = spread_sample(row_count, count, &mut random);
    let mut centroids: Vec<u8> = chosen.iter().flat_map(|row| &rows[row * bytes..][..bytes]).copied().collect();
    for _ in 0..ROUNDS {
        control.advance(0)?;
        let assigned = assign_bits(rows, bytes, &centroids);
        let members = members_of(&assigned, count);
        centroids = members
            .par_iter()
            .zip(centroids.par_chunks_exact(bytes))
            .flat_map_iter(
                |(members, old)| if members.is_empty() { old.to_vec() } else { majority(rows, bytes, members) },
            )
            .collect();
    }
    Ok(centroids)
}

/// The centroid of each row with the fewest different bits, the first of equals.
pub(crate) fn assign_bits(rows: &[u8], bytes: usize, centroids: &[u8]) -> Vec<u32> {
    use kernels::{Metric, Query, Vectors};
    let nearest = |row: &[u8]| {
        let mut distances = vec![0.0; centroids.len() / bytes];
        let query = Query::new(Metric::Hamming, 8 * bytes, Vectors::Bits(row));
        let measured = query.and_then(|query| query.distances(Vectors::Bits(centroids), &mut distances));
        let order = distances.iter().zip(0_u32..).min_by(|a, b| a.0.total_cmp(b.0).then(a.1.cmp(&b.1)));
        measured.ok().and(order).map_or(0, |(_, index)| index)
    };
    rows.par_chunks_exact(bytes).map(nearest).collect()
}

fn majority(rows: &[u8], bytes: usize, members: &[u32]) -> Vec<u8> {
    let mut ones = vec![0_usize; 8 * bytes];
    for row in members {
        for (byte, ones) in rows[*row as usize * bytes..][..bytes].iter().zip(ones.chunks_exact_mut(8)) {
            ones.iter_mut().enumerate().for_each(|(bit, ones)| *ones += usize::from(byte >> bit & 1));
        }
    }
    let byte = |ones: &[usize]| {
        ones.iter().enumerate().fold(0_u8, |byte, (bit, ones)| byte | u8::from(2 * ones > members.len()) << bit)
    };
    ones.chunks_exact(8).map(byte).collect()
}
