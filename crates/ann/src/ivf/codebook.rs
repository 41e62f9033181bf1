//! Training of the codebook of product codes: k-means in every subspace, then rounds of the score-aware loss.

use kernels::{Codewords, Metric, dot_f32};
use rayon::prelude::*;

use super::assign::Assigner;
use super::cluster::means;
use crate::build::{BuildError, Control};
use crate::codes::{Codebook, Costs, scale_to};

/// Rows that a codebook is learned from at most.
const ROWS: usize = 16_384;

/// Rounds of k-means in a subspace.
const ROUNDS: usize = 12;

/// Rounds in which codes are chosen anew by the score-aware loss, and codewords by the codes.
const LEANING_ROUNDS: usize = 4;

/// Rows that are assigned or encoded at a time.
const ROWS_AT_ONCE: usize = 256;

/// What a squared error along the direction that matters costs, beyond what one across it does, if a query's similarity counts from
/// `threshold` (a cosine) on. Source: Guo et al. (ICML 2020), theorem 3.4 in the limit of many dimensions.
pub(super) fn lean_of(threshold: f32, dim: usize) -> f32 {
    let square = threshold * threshold;
    (square * (dim as f32 - 1.0) / (1.0 - square) - 1.0).max(0.0)
}

/// What is coded: residuals of squared length `padded`, row-major, and the directions of length 1 along which errors count more, if
/// they are not those of the residuals.
struct Sample {
    padded: usize,
    residuals: Vec<f32>,
    toward: Option<Vec<f32>>,
}

impl Sample {
    /// Of `rows`, projected and row-major. What takes memory beside them: as much again, twice that under the inner product.
    fn new(rows: &[f32], padded: usize, assigner: &Assigner, metric: Metric) -> Sample {
        let count = rows.len() / padded;
        let taken = count.min(ROWS);
        let of_part = |part: usize| {
            let numbers = part * ROWS_AT_ONCE..taken.min((part + 1) * ROWS_AT_ONCE);
            let chosen: Vec<f32> =
                numbers.flat_map(|number| &rows[number * count / taken * padded..][..padded]).copied().collect();
            let (mut assigned, mut residuals, mut toward, mut scaled) = (vec![], vec![], vec![], vec![]);
            assigner.assign(&chosen, &mut assigned);
            for (row, (list, _)) in chosen.chunks_exact(padded).zip(assigned) {
                let centroid = assigner.centroid(list);
                let residual: Vec<f32> = row.iter().zip(centroid).map(|(value, centroid)| value - centroid).collect();
                scale_to(&residual, padded as f32, dot_f32(&residual, &residual), &mut scaled);
                residuals.extend_from_slice(&scaled);
                if metric == Metric::InnerProduct {
                    scale_to(row, 1.0, dot_f32(row, row), &mut scaled);
                    toward.extend_from_slice(&scaled);
                }
            }
            (residuals, toward)
        };
        let parts: Vec<_> = (0..taken.div_ceil(ROWS_AT_ONCE)).into_par_iter().map(of_part).collect();
        let (residuals, toward): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let toward = (metric == Metric::InnerProduct).then(|| toward.concat());
        Sample { padded, residuals: residuals.concat(), toward }
    }

    fn len(&self) -> usize {
        self.residuals.len() / self.padded
    }

    fn residual(&self, row: usize) -> &[f32] {
        &self.residuals[row * self.padded..][..self.padded]
    }

    fn toward(&self, row: usize) -> Option<&[f32]> {
        self.toward.as_ref().map(|toward| &toward[row * self.padded..][..self.padded])
    }
}

/// Learns codewords of `bits` bits for every `dims` elements from a sample of projected rows (row-major, `padded` elements each).
///
/// `lean`: see [`lean_of`]. Cost: 12 rounds of `2^bits · padded` multiply-adds for each of 16,384 rows at most, and with a lean 4 rounds
/// of about three times as much.
pub(super) fn train_codebook(
    (rows, padded): (&[f32], usize),
    assigner: &Assigner,
    metric: Metric,
    ((bits, dims), lean): ((u8, u8), f32),
    control: &Control,
) -> Result<Codebook, BuildError> {
    let sample = Sample::new(rows, padded, assigner, metric);
    let (entries, dims) = (1 << bits, usize::from(dims));
    let subspaces = (0..padded / dims)
        .into_par_iter()
        .map(|subspace| subspace_words(&sample, subspace, (entries, dims), control))
        .collect::<Result<Vec<_>, _>>()?;
    let words = Codewords::new(entries, dims, subspaces.concat());
    let words =
        words.ok_or_else(|| BuildError::Unsupported(format!("no codewords of {bits} bits over {dims} elements")))?;
    let mut codebook = Codebook::new(words, lean);
    let rounds = if lean > 0.0 { LEANING_ROUNDS } else { 0 };
    for _ in 0..rounds {
        control.advance(0)?;
        codebook = leaning_round(&sample, codebook);
    }
    Ok(codebook)
}

/// Codewords of one subspace by k-means, in the order of [`Codewords`].
fn subspace_words(
    sample: &Sample,
    subspace: usize,
    (entries, dims): (usize, usize),
    control: &Control,
) -> Result<Vec<f32>, BuildError> {
    let parts: Vec<f32> =
        (0..sample.len()).flat_map(|row| &sample.residual(row)[subspace * dims..][..dims]).copied().collect();
    let seed = control.seed.wrapping_add(subspace as u64) ^ 0xc0de;
    let found = means(&parts, dims, entries, seed, ROUNDS, control)?;
    // With fewer rows than codewords the rest stays at zero.
    let mut words = vec![0.0; entries * dims];
    for (code, word) in found.chunks_exact(dims).enumerate() {
        word.iter().enumerate().for_each(|(element, value)| words[element * entries + code] = *value);
    }
    Ok(words)
}

/// Chooses the codes of all rows, then moves one codeword after the other to where its rows' loss is least, all others fixed.
///
/// The paper solves for all codewords at once, a system of `entries · padded` unknowns; this takes the loss down as well, in steps.
fn leaning_round(sample: &Sample, codebook: Codebook) -> Codebook {
    let subspaces = codebook.words().subspaces();
    let length = (sample.padded as f32).sqrt();
    let encode = |part: usize| {
        let (mut place, mut one, mut codes) = (Costs::default(), vec![], vec![]);
        for row in part * ROWS_AT_ONCE..sample.len().min((part + 1) * ROWS_AT_ONCE) {
            codebook.choose(sample.residual(row), sample.toward(row), &mut place, &mut one);
            codes.extend_from_slice(&one);
        }
        codes
    };
    let parts: Vec<_> = (0..sample.len().div_ceil(ROWS_AT_ONCE)).into_par_iter().map(encode).collect();
    let codes = parts.concat();
    let mut decoded = vec![0.0; sample.padded];
    // How far each row's code falls short along the row's direction.
    let mut missing: Vec<f64> = vec![];
    for (row, codes) in codes.chunks_exact(subspaces.max(1)).enumerate() {
        codebook.words().decode(codes, &mut decoded);
        let residual = sample.residual(row);
        let (toward, unit) = sample.toward(row).map_or((residual, length), |toward| (toward, 1.0));
        missing.push(f64::from((dot_f32(residual, toward) - dot_f32(&decoded, toward)) / unit));
    }
    let lean = codebook.lean();
    let mut words = codebook.into_words();
    for subspace in 0..subspaces {
        move_words(sample, (&codes, subspace), lean, &mut missing, &mut words);
    }
    Codebook::new(words, lean)
}

/// The normal equations of one codeword: `matrix · word = right`.
#[derive(Clone)]
struct Normal {
    matrix: Vec<f64>,
    right: Vec<f64>,
    rows: usize,
}

/// Moves the codewords of one subspace, and what the rows are missing with them.
fn move_words(
    sample: &Sample,
    (codes, subspace): (&[u8], usize),
    lean: f32,
    missing: &mut [f64],
    words: &mut Codewords,
) {
    let (dims, entries, subspaces) = (words.dims(), words.entries(), words.subspaces());
    let (lean, length) = (f64::from(lean), f64::from(sample.padded as u32).sqrt());
    let part = |row: usize| &sample.residual(row)[subspace * dims..][..dims];
    let toward = |row: usize, place: &mut [f64]| {
        let own = sample.toward(row).map_or((part(row), length), |toward| (&toward[subspace * dims..][..dims], 1.0));
        place.iter_mut().zip(own.0).for_each(|(place, value)| *place = f64::from(*value) / own.1);
    };
    let share = |word: &[f64], along: &[f64]| word.iter().zip(along).map(|(word, along)| word * along).sum::<f64>();
    let old: Vec<Vec<f64>> =
        (0..entries).map(|code| words.word(subspace, code as u8).map(f64::from).collect()).collect();
    let mut equations = vec![Normal { matrix: vec![0.0; dims * dims], right: vec![0.0; dims], rows: 0 }; entries];
    let mut along = vec![0.0; dims];
    let code = |row: usize| usize::from(codes[row * subspaces + subspace]);
    for row in 0..sample.len() {
        toward(row, &mut along);
        let normal = &mut equations[code(row)];
        let without = missing[row] + share(&old[code(row)], &along);
        for (i, value) in part(row).iter().enumerate() {
            normal.right[i] += f64::from(*value) + lean * without * along[i];
            normal.matrix[i * dims + i] += 1.0;
            along.iter().enumerate().for_each(|(j, other)| normal.matrix[i * dims + j] += lean * along[i] * other);
        }
        normal.rows += 1;
    }
    let new: Vec<Vec<f64>> = equations
        .into_iter()
        .zip(&old)
        .map(|(normal, old)| if normal.rows == 0 { old.clone() } else { solve(normal) })
        .collect();
    for (code, word) in new.iter().enumerate() {
        let word: Vec<f32> = word.iter().map(|value| *value as f32).collect();
        words.set_word(subspace, code as u8, &word);
    }
    for (row, missing) in missing.iter_mut().enumerate() {
        toward(row, &mut along);
        *missing += share(&old[code(row)], &along) - share(&new[code(row)], &along);
    }
}

/// The codeword, by elimination: the matrix is symmetric, and no eigenvalue of it is below the number of rows.
fn solve(Normal { mut matrix, mut right, .. }: Normal) -> Vec<f64> {
    let dims = right.len();
    for pivot in 0..dims {
        for row in pivot + 1..dims {
            let factor = matrix[row * dims + pivot] / matrix[pivot * dims + pivot];
            for column in pivot..dims {
                matrix[row * dims + column] -= factor * matrix[pivot * dims + column];
            }
            right[row] -= factor * right[pivot];
        }
    }
    for row in (0..dims).rev() {
        let known: f64 = (row + 1..dims).map(|column| matrix[row * dims + column] * right[column]).sum();
        right[row] = (right[row] - known) / matrix[row * dims + row];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lean_is_that_of_the_paper() {
        // 0.04 · 99 / 0.96 - 1.
        assert!((lean_of(0.2, 100) - 3.125).abs() < 1e-5);
        assert_eq!(lean_of(0.0, 100), 0.0);
        assert_eq!(lean_of(0.2, 8), 0.0);
    }

    #[test]
    fn a_solved_system_holds() {
        let matrix = vec![4.0, 1.0, 0.5, 1.0, 5.0, 2.0, 0.5, 2.0, 6.0];
        let right = vec![1.0, -2.0, 3.0];
        let found = solve(Normal { matrix: matrix.clone(), right: right.clone(), rows: 1 });
        for (row, right) in matrix.chunks(3).zip(right) {
            let product: f64 = row.iter().zip(&found).map(|(a, b)| a * b).sum();
            assert!((product - right).abs() < 1e-12);
        }
    }

    #[test]
    fn a_round_takes_the_loss_down() {
        let (padded, count) = (32, 600);
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let rows: Vec<f32> = (0..padded * count).map(|_| next()).collect();
        let (mut residuals, mut toward, mut scaled) = (vec![], vec![], vec![]);
        for row in rows.chunks(padded) {
            scale_to(row, padded as f32, dot_f32(row, row), &mut scaled);
            residuals.extend_from_slice(&scaled);
            let other: Vec<f32> = row.iter().map(|value| value + 0.5 * next()).collect();
            scale_to(&other, 1.0, dot_f32(&other, &other), &mut scaled);
            toward.extend_from_slice(&scaled);
        }
        for toward in [None, Some(toward)] {
            let sample = Sample { padded, residuals: residuals.clone(), toward };
            let control = Control::new(1);
            let words: Vec<_> =
                (0..padded / 2).map(|at| subspace_words(&sample, at, (16, 2), &control).unwrap()).collect();
            let mut codebook = Codebook::new(Codewords::new(16, 2, words.concat()).unwrap(), 10.0);
            let loss = |codebook: &Codebook| {
                let (mut place, mut codes, mut decoded) = (Costs::default(), vec![], vec![0.0; padded]);
                let of = |row: usize| {
                    codebook.choose(sample.residual(row), sample.toward(row), &mut place, &mut codes);
                    codebook.words().decode(&codes, &mut decoded);
                    let residual = sample.residual(row);
                    let error: Vec<f32> = residual.iter().zip(&decoded).map(|(a, b)| a - b).collect();
                    let along = match sample.toward(row) {
                        Some(toward) => dot_f32(&error, toward),
                        None => dot_f32(&error, residual) / (padded as f32).sqrt(),
                    };
                    dot_f32(&error, &error) + 10.0 * along * along
                };
                (0..count).map(of).sum::<f32>()
            };
            let mut last = loss(&codebook);
            for _ in 0..3 {
                codebook = leaning_round(&sample, codebook);
                let now = loss(&codebook);
                assert!(now < last, "{now} after {last}");
                last = now;
            }
        }
    }
}
