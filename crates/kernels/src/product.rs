//! Product quantization: inner products of a vector with all codewords, codes chosen by them, sums of them looked up.
//!
//! A vector is cut into *subspaces* of a few dimensions, each with its own 16 or 256 *codewords*; its code names one of each. The
//! inner product of a query with what a code stands for is a sum of one table entry per subspace. Tables of 16 entries are scanned by
//! FastScan (`fastscan.rs`, [`Lut::from_tables`](crate::Lut::from_tables)), those of 256 here.
//! Source: Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search" (TPAMI 2011).
//!
//! Every sum has a fixed order, so tables and codes have the same bits on every instruction set.

use crate::compiled::compiled_for_each;
use crate::isa::Present;

/// Codewords come in multiples of this.
const LANES: usize = 16;

/// Times that every code of a vector is chosen anew at most, given the others.
const SWEEPS: usize = 4;

/// The codewords of all subspaces.
///
/// For each subspace, for each of its dimensions, that element of every codeword: what the loops over codewords read in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Codewords {
    entries: usize,
    dims: usize,
    values: Vec<f32>,
}

impl Codewords {
    /// `entries`: codewords of a subspace, 16 or 256. `dims`: dimensions of a subspace. `values`: `entries · dims` for each subspace.
    /// `None` if these do not go together.
    pub fn new(entries: usize, dims: usize, values: Vec<f32>) -> Option<Codewords> {
        let fits = matches!(entries, 16 | 256) && dims > 0 && values.len().is_multiple_of(entries * dims);
        fits.then_some(Codewords { entries, dims, values })
    }

    /// Codewords of a subspace.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Dimensions of a subspace.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Number of subspaces.
    pub fn subspaces(&self) -> usize {
        self.values.len() / (self.entries * self.dims)
    }

    /// All elements, in the order of [`Codewords::new`].
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// One codeword's elements.
    pub fn word(&self, subspace: usize, code: u8) -> impl Iterator<Item = f32> + '_ {
        let words = &self.values[subspace * self.entries * self.dims..][..self.entries * self.dims];
        words.chunks_exact(self.entries).map(move |elements| elements[usize::from(code)])
    }

    /// Replaces one codeword.
    ///
    /// # Panics
    /// If there is no such subspace or codeword.
    pub fn set_word(&mut self, subspace: usize, code: u8, word: &[f32]) {
        let words = &mut self.values[subspace * self.entries * self.dims..][..self.entries * self.dims];
        for (elements, value) in words.chunks_exact_mut(self.entries).zip(word) {
            elements[usize::from(code)] = *value;
        }
    }

    /// The inner product of every codeword with the part of `vector` in its subspace: `entries` for each subspace.
    ///
    /// `vector`: `dims` elements for each subspace. Each product is one chain of fused multiply-adds. Cost: `entries` of them per
    /// element.
    ///
    /// # Panics
    /// If `vector` has another length.
    pub fn products(&self, vector: &[f32], out: &mut Vec<f32>) {
        self.products_on(Present::chosen(), vector, out);
    }

    fn products_on(&self, isa: Present, vector: &[f32], out: &mut Vec<f32>) {
        assert_eq!(vector.len(), self.subspaces() * self.dims, "dims elements for each subspace");
        out.clear();
        out.resize(self.subspaces() * self.entries, 0.0);
        products(isa, &self.values, self.dims, self.entries, vector, out);
    }

    /// The squared length of every codeword: `entries` for each subspace.
    pub fn squares(&self) -> Vec<f32> {
        let subspaces = self.values.chunks_exact(self.entries * self.dims);
        let square = |words: &[f32], code: usize| {
            words[code..].iter().step_by(self.entries).fold(0.0, |sum, v| v.mul_add(*v, sum))
        };
        subspaces.flat_map(|words| (0..self.entries).map(move |code| square(words, code))).collect()
    }

    /// What a code stands for. `codes`: one per subspace; `out`: `dims` elements for each.
    ///
    /// # Panics
    /// If a code is not below [`Codewords::entries`].
    pub fn decode(&self, codes: &[u8], out: &mut [f32]) {
        let subspaces = self.values.chunks_exact(self.entries * self.dims);
        for ((words, code), out) in subspaces.zip(codes).zip(out.chunks_exact_mut(self.dims)) {
            for (elements, out) in words.chunks_exact(self.entries).zip(out) {
                *out = elements[usize::from(*code)];
            }
        }
    }
}

compiled_for_each! {
    fn products(values: &[f32], dims: usize, entries: usize, vector: &[f32], out: &mut [f32]) = products_plain
}

#[inline(always)]
fn products_plain(values: &[f32], dims: usize, entries: usize, vector: &[f32], out: &mut [f32]) {
    let subspaces = values.chunks_exact(entries * dims).zip(vector.chunks_exact(dims));
    for ((words, vector), out) in subspaces.zip(out.chunks_exact_mut(entries)) {
        for (block, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut sums = [0.0_f32; LANES];
            for (elements, value) in words.chunks_exact(entries).zip(vector) {
                let elements = &elements.as_chunks::<LANES>().0[block];
                for lane in 0..LANES {
                    sums[lane] = value.mul_add(elements[lane], sums[lane]);
                }
            }
            *out = sums;
        }
    }
}

/// How far a code may lean to one side; see [`choose_codes`].
#[derive(Clone, Copy, Debug)]
pub struct Lean<'a> {
    /// How far each codeword goes along the direction, `entries` for each subspace.
    pub shares: &'a [f32],
    /// How far the whole code should go.
    pub goal: f32,
    /// What the squared difference costs.
    pub weight: f32,
}

/// Chooses a codeword in each subspace such that `Σ cost + weight · (goal - Σ share)²` is small; without a lean, the cheapest.
///
/// `costs`: `entries` (16 or 256) for each place of `codes`. Exact without a lean. With one, the codes are chosen one by one given the
/// others, in a few sweeps over all of them (coordinate descent): no single code can be changed for a better sum, or the sweeps ran
/// out. Cost: a few operations per entry and sweep.
///
/// # Panics
/// If `costs` or the lean's shares are not `entries` for each code.
pub fn choose_codes(entries: usize, costs: &[f32], lean: Option<Lean<'_>>, codes: &mut [u8]) {
    choose_codes_on(Present::chosen(), entries, costs, lean, codes);
}

fn choose_codes_on(isa: Present, entries: usize, costs: &[f32], lean: Option<Lean<'_>>, codes: &mut [u8]) {
    assert!(matches!(entries, 16 | 256) && costs.len() == entries * codes.len(), "a cost per codeword");
    assert!(lean.is_none_or(|lean| lean.shares.len() == costs.len()), "a share per codeword");
    choose(isa, entries, costs, lean, codes);
}

compiled_for_each! {
    fn choose(entries: usize, costs: &[f32], lean: Option<Lean<'_>>, codes: &mut [u8]) = choose_plain
}

#[inline(always)]
fn choose_plain(entries: usize, costs: &[f32], lean: Option<Lean<'_>>, codes: &mut [u8]) {
    for (costs, code) in costs.chunks_exact(entries).zip(codes.iter_mut()) {
        *code = cheapest(costs, costs, 0.0, 0.0);
    }
    let Some(Lean { shares, goal, weight }) = lean else { return };
    let chosen = shares.chunks_exact(entries).zip(codes.iter());
    let mut missing = goal - chosen.map(|(shares, code)| shares[usize::from(*code)]).sum::<f32>();
    for _ in 0..SWEEPS {
        let mut changed = false;
        let subspaces = costs.chunks_exact(entries).zip(shares.chunks_exact(entries));
        for ((costs, shares), code) in subspaces.zip(codes.iter_mut()) {
            let without = missing + shares[usize::from(*code)];
            let best = cheapest(costs, shares, without, weight);
            changed |= best != *code;
            *code = best;
            missing = without - shares[usize::from(best)];
        }
        if !changed {
            return;
        }
    }
}

/// The first codeword with the least `cost + weight · (without - share)²`.
#[inline(always)]
fn cheapest(costs: &[f32], shares: &[f32], without: f32, weight: f32) -> u8 {
    let (mut best, mut best_block) = ([f32::INFINITY; LANES], [0_u32; LANES]);
    let blocks = costs.as_chunks::<LANES>().0.iter().zip(shares.as_chunks::<LANES>().0);
    for (block, (costs, shares)) in (0_u32..).zip(blocks) {
        for lane in 0..LANES {
            let off = without - shares[lane];
            let cost = (weight * off).mul_add(off, costs[lane]);
            let cheaper = cost < best[lane];
            best[lane] = if cheaper { cost } else { best[lane] };
            best_block[lane] = if cheaper { block } else { best_block[lane] };
        }
    }
    let (mut code, mut least) = (0_u32, f32::INFINITY);
    for (lane, (cost, block)) in (0_u32..).zip(best.into_iter().zip(best_block)) {
        let index = block * LANES as u32 + lane;
        if cost < least || cost == least && cost.is_finite() && index < code {
            (code, least) = (index, cost);
        }
    }
    code as u8
}

/// `Σ tables[256 · i + codes[i]]`: the inner product of a query with what 8-bit codes stand for.
///
/// `tables`: [`Codewords::products`] of the query. Cost: two loads and an addition per code.
///
/// # Panics
/// If there is not a table of 256 for each code.
pub fn table_sum(tables: &[f32], codes: &[u8]) -> f32 {
    assert_eq!(tables.len(), 256 * codes.len(), "a table per code");
    sum(Present::chosen(), tables, codes)
}

compiled_for_each! {
    fn sum(tables: &[f32], codes: &[u8]) -> f32 = sum_plain
}

/// Code `i` is added to sum `i mod 8`, so that additions do not wait for each other; then halves are added.
#[inline(always)]
fn sum_plain(tables: &[f32], codes: &[u8]) -> f32 {
    const SUMS: usize = 8;
    let mut sums = [0.0_f32; SUMS];
    let ((tables, tables_tail), (codes, codes_tail)) =
        (tables.as_chunks::<256>().0.as_chunks::<SUMS>(), codes.as_chunks::<SUMS>());
    for (tables, codes) in tables.iter().zip(codes) {
        for at in 0..SUMS {
            sums[at] += tables[at][usize::from(codes[at])];
        }
    }
    for ((sum, table), code) in sums.iter_mut().zip(tables_tail).zip(codes_tail) {
        *sum += table[usize::from(*code)];
    }
    for half in [4, 2, 1] {
        for at in 0..half {
            sums[at] += sums[at + half];
        }
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::testing::Random;

    fn floats(count: usize, random: &mut Random) -> Vec<f32> {
        (0..count).map(|_| random.float()).collect()
    }

    fn codewords(entries: usize, dims: usize, subspaces: usize, random: &mut Random) -> Codewords {
        Codewords::new(entries, dims, floats(entries * dims * subspaces, random)).unwrap()
    }

    #[test]
    fn products_are_those_of_the_codewords_everywhere() {
        let mut random = Random::new(20);
        for (entries, subspaces) in
            [16, 256].into_iter().flat_map(|entries| (0..=33).map(move |count| (entries, count)))
        {
            let dims = 1 + subspaces % 5;
            let words = codewords(entries, dims, subspaces, &mut random);
            let vector = floats(dims * subspaces, &mut random);
            let squares = words.squares();
            for isa in Isa::available() {
                let mut found = vec![9.0; 3];
                words.products_on(isa.present().unwrap(), &vector, &mut found);
                assert_eq!(found.len(), entries * subspaces);
                for (subspace, (found, vector)) in found.chunks(entries).zip(vector.chunks(dims)).enumerate() {
                    for (code, found) in found.iter().enumerate() {
                        let word: Vec<f32> = words.word(subspace, code as u8).collect();
                        let product = word.iter().zip(vector).fold(0.0_f32, |sum, (w, v)| v.mul_add(*w, sum));
                        assert_eq!(found.to_bits(), product.to_bits(), "{isa} {entries} {subspaces}");
                        let square: f32 = word.iter().map(|w| w * w).sum();
                        assert!((squares[subspace * entries + code] - square).abs() < 1e-5);
                    }
                }
            }
        }
    }

    #[test]
    fn sums_of_tables_are_the_products_of_what_codes_stand_for() {
        let mut random = Random::new(21);
        for subspaces in 0..=257 {
            let words = codewords(256, 2, subspaces, &mut random);
            let query = floats(2 * subspaces, &mut random);
            let codes: Vec<u8> = (0..subspaces).map(|_| random.next() as u8).collect();
            let (mut tables, mut decoded) = (vec![], vec![0.0; 2 * subspaces]);
            words.products(&query, &mut tables);
            words.decode(&codes, &mut decoded);
            let exact: f64 = decoded.iter().zip(&query).map(|(a, b)| f64::from(a * b)).sum();
            let scalar = sum_plain(&tables, &codes);
            assert!((f64::from(scalar) - exact).abs() < 1e-4, "{subspaces}: {scalar} for {exact}");
            for isa in Isa::available() {
                assert_eq!(
                    sum(isa.present().unwrap(), &tables, &codes).to_bits(),
                    scalar.to_bits(),
                    "{isa} {subspaces}"
                );
            }
        }
    }

    #[test]
    fn codes_are_the_cheapest_and_lean_to_their_goal() {
        let mut random = Random::new(22);
        for (entries, count) in [(16, 1), (16, 7), (16, 40), (256, 5)] {
            let (costs, shares) = (floats(entries * count, &mut random), floats(entries * count, &mut random));
            let (mut plain, mut leaning) = (vec![0; count], vec![0; count]);
            choose_codes(entries, &costs, None, &mut plain);
            for (costs, code) in costs.chunks(entries).zip(&plain) {
                let least = costs.iter().copied().fold(f32::INFINITY, f32::min);
                assert_eq!(costs.iter().position(|cost| *cost == least), Some(usize::from(*code)));
            }
            let lean = Lean { shares: &shares, goal: 0.3, weight: 20.0 };
            choose_codes(entries, &costs, Some(lean), &mut leaning);
            let total = |codes: &[u8]| {
                let at = |i: usize| i * entries + usize::from(codes[i]);
                let (cost, share) =
                    (0..count).fold((0.0, 0.0), |(cost, share), i| (cost + costs[at(i)], share + shares[at(i)]));
                cost + lean.weight * (lean.goal - share) * (lean.goal - share)
            };
            assert!(total(&leaning) <= total(&plain), "{entries} {count}");
            for isa in Isa::available() {
                let mut codes = vec![0; count];
                choose_codes_on(isa.present().unwrap(), entries, &costs, Some(lean), &mut codes);
                assert_eq!(codes, leaning, "{isa}");
            }
        }
    }

    #[test]
    fn codewords_that_do_not_fit_are_refused() {
        assert!(Codewords::new(16, 2, vec![0.0; 33]).is_none());
        assert!(Codewords::new(17, 2, vec![0.0; 34]).is_none());
        assert!(Codewords::new(256, 0, vec![]).is_none());
        let mut words = Codewords::new(16, 2, vec![0.0; 64]).unwrap();
        words.set_word(1, 3, &[4.0, 5.0]);
        let mut decoded = [9.0; 4];
        words.decode(&[3, 3], &mut decoded);
        assert_eq!(decoded, [0.0, 0.0, 4.0, 5.0]);
    }
}
