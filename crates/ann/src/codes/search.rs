//! A query against the codes of a list: what is near enough to be compared exactly.

use kernels::{
    BLOCK_ROWS, ByteQuery, DistanceError, ElementType, Lut, Metric, Query, ScanBound, Survivors, TopK, Vectors,
    byte_products, dot_f32, plane_product, prefetch, scan_blocks, table_sum,
};

use super::{Code, CodeLayout, FACTOR_BYTES, Spreads, factors};
use crate::space::Geometry;

/// Standard deviations that a bound is below an estimate, as published: about 97 in 100 distances are above it.
pub(crate) const CERTAINTY: f32 = 1.9;

/// A row that may be near, by what is ranked by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit {
    /// The position: the list's first, plus the row's in it.
    pub(crate) position: u64,
    pub(crate) estimate: f32,
    pub(crate) bound: f32,
}

/// The rows found so far that may be among the `k` nearest, and are worth comparing exactly.
#[derive(Debug)]
pub(crate) struct Nearest {
    k: usize,
    /// Rows that are given out at most.
    most: usize,
    /// What distances are not above, with the certainty of the bounds.
    ceilings: TopK,
    /// The `k` least estimates.
    estimates: TopK,
    /// The `most` least estimates.
    kept: TopK,
    hits: Vec<Hit>,
    survivors: Survivors,
    ceilings_of_list: Vec<f32>,
}

impl Nearest {
    /// For the `k` nearest, of which `rerank` candidates are given out at most, and `k` at least.
    pub(crate) fn new(k: usize, rerank: usize) -> Nearest {
        let most = rerank.max(k);
        Nearest {
            k,
            most,
            ceilings: TopK::new(k),
            estimates: TopK::new(k),
            kept: TopK::new(most),
            hits: vec![],
            survivors: Survivors::default(),
            ceilings_of_list: vec![],
        }
    }

    /// The k-th least estimate so far; infinity while there are fewer.
    pub(crate) fn farthest(&self) -> f64 {
        self.estimates.threshold()
    }

    /// A bound above it cannot be among the `k` nearest, with the certainty of the bounds.
    fn threshold(&self) -> f32 {
        self.ceilings.threshold() as f32
    }

    /// An estimate above it, if nothing finer comes, is not among those that are given out.
    fn estimate_max(&self) -> f32 {
        self.kept.threshold() as f32
    }

    /// What coarse estimates of a list say about how far it is worth to look in it, while fewer than `k` rows are known.
    fn own_threshold(&mut self, survivors: &Survivors) -> f32 {
        if self.ceilings.len() >= self.k || survivors.len() <= self.k {
            return f32::INFINITY;
        }
        let ceilings = &mut self.ceilings_of_list;
        ceilings.clear();
        let measured = survivors.estimates.iter().zip(&survivors.bounds);
        ceilings.extend(measured.map(|(estimate, bound)| 2.0 * estimate - bound));
        *ceilings.select_nth_unstable_by(self.k - 1, f32::total_cmp).1
    }

    fn push(&mut self, position: u64, estimate: f32, error: f32) {
        let bound = estimate - error;
        if bound <= self.threshold() && estimate <= self.estimate_max() {
            self.kept.push(f64::from(estimate), position);
            self.ceilings.push(f64::from(estimate + error), position);
            self.estimates.push(f64::from(estimate), position);
            self.hits.push(Hit { position, estimate, bound });
        }
    }

    /// A distance that is exact, but for its rounding to f32.
    fn push_exact(&mut self, position: u64, distance: f64) {
        let rounded = distance as f32;
        self.push(position, rounded, rounded.abs() * f32::EPSILON);
    }

    /// The hits by estimate, as many as are given out, of those whose bound does not exclude them.
    pub(crate) fn into_hits(self) -> Vec<Hit> {
        let (threshold, most) = (self.threshold(), self.most);
        let mut hits = self.hits;
        hits.retain(|hit| hit.bound <= threshold);
        let order = |a: &Hit, b: &Hit| a.estimate.total_cmp(&b.estimate).then(a.position.cmp(&b.position));
        if hits.len() > most {
            hits.select_nth_unstable_by(most, order);
            hits.truncate(most);
        }
        hits.sort_unstable_by(order);
        hits
    }
}

/// A list, as far as a search goes through it.
pub(crate) struct Scan<'a> {
    /// Position of its first row.
    pub(crate) first: u64,
    /// Its rows.
    pub(crate) rows: usize,
    /// The rows that count, 32 to a mask; no bit beyond the last row.
    pub(crate) masks: &'a [u32],
    /// The coarse part.
    pub(crate) coarse: &'a [u8],
    /// What the query's place by the centroid adds to all rows.
    pub(crate) query_add: f32,
    pub(crate) spreads: Spreads,
}

/// A projected query, prepared for codes.
#[derive(Debug)]
pub(crate) struct QueryCodes {
    layout: CodeLayout,
    /// The projected query's squared length.
    pub(crate) square: f32,
    lut: Lut,
    /// The inner products with all codewords, for product codes of 8 bits.
    tables: Vec<f32>,
    bytes: ByteQuery,
    /// The query as it is, for raw codes.
    raw: Option<(Query, ElementType, usize)>,
}

impl QueryCodes {
    /// Of a query that is compared with projected codes.
    pub(crate) fn projected(layout: CodeLayout, query: &[f32], bytes: ByteQuery) -> QueryCodes {
        let (mut lut, mut tables) = (Lut::default(), vec![]);
        match (layout.code, &layout.codebook) {
            (Code::Rabitq { .. }, _) => lut = Lut::new(query),
            (Code::Pq { .. }, Some(codebook)) => codebook.words().products(query, &mut tables),
            _ => {}
        }
        if let Code::Pq { bits: 4, .. } = layout.code {
            lut = Lut::from_tables(&std::mem::take(&mut tables));
        }
        QueryCodes { layout, square: dot_f32(query, query), lut, tables, bytes, raw: None }
    }

    /// Of a query that is compared with the vectors themselves, of `element`s.
    pub(crate) fn raw(
        layout: CodeLayout,
        metric: Metric,
        element: ElementType,
        dim: usize,
        query: Vectors<'_>,
    ) -> Result<QueryCodes, DistanceError> {
        let raw = Some((Query::new(metric, dim, query)?, element, dim));
        let (lut, tables, bytes) = (Lut::default(), vec![], ByteQuery::default());
        Ok(QueryCodes { layout, square: 0.0, lut, tables, bytes, raw })
    }

    /// The length by which errors grow.
    fn reach(&self, scan: &Scan<'_>) -> f32 {
        match self.layout.geometry {
            Geometry::Euclidean => scan.query_add.max(0.0).sqrt(),
            Geometry::InnerProduct => self.square.sqrt(),
        }
    }

    /// Adds what is near in a list to `nearest`. `extra` gives the extra row of a row, or `None` if it is not at hand: such rows
    /// count with their coarse estimate. Returns how many codes were compared.
    pub(crate) fn scan<'b>(
        &self,
        scan: &Scan<'_>,
        extra: &mut dyn FnMut(usize) -> Option<&'b [u8]>,
        nearest: &mut Nearest,
    ) -> u64 {
        match self.layout.code {
            Code::Raw => self.scan_raw(scan, nearest),
            Code::Scalar8 => self.scan_bytes(scan, nearest),
            Code::Scalar4 => self.scan_planes(scan, nearest),
            Code::Pq { bits: 8, .. } => self.scan_rows(scan, 0.0, nearest, |codes| table_sum(&self.tables, codes)),
            Code::Rabitq { .. } | Code::Pq { .. } => return self.scan_blocks(scan, extra, nearest),
        }
        scan.masks.iter().map(|mask| u64::from(mask.count_ones())).sum()
    }

    fn scan_raw(&self, scan: &Scan<'_>, nearest: &mut Nearest) {
        let Some((query, element, dim)) = &self.raw else { return };
        let aligned;
        let rows = match element {
            ElementType::F32 => match bytemuck::try_cast_slice(scan.coarse) {
                Ok(values) => Vectors::F32(values),
                Err(_) => {
                    let values = scan.coarse.as_chunks::<4>().0.iter();
                    aligned = values.map(|bytes| f32::from_ne_bytes(*bytes)).collect::<Vec<_>>();
                    Vectors::F32(&aligned)
                }
            },
            ElementType::F16 => {
                let values = scan.coarse.as_chunks::<2>().0.iter();
                let values: Vec<half::f16> = values.map(|bytes| half::f16::from_ne_bytes(*bytes)).collect();
                return measure(query, Vectors::F16(&values), *dim, scan, nearest);
            }
            ElementType::I8 => Vectors::I8(bytemuck::cast_slice(scan.coarse)),
            ElementType::U8 => Vectors::U8(scan.coarse),
            ElementType::Bits => Vectors::Bits(scan.coarse),
        };
        measure(query, rows, *dim, scan, nearest);
    }

    /// Rows of a byte per element.
    fn scan_bytes(&self, scan: &Scan<'_>, nearest: &mut Nearest) {
        let (step, sum) = (self.bytes.step, self.bytes.sum as f32);
        let (padded, mut whole) = (self.layout.padded, [0.0]);
        self.scan_rows(scan, self.rounding_error(step, 127.5), nearest, |codes| {
            byte_products(codes, padded, &self.bytes, &mut whole);
            step * (whole[0] - 127.5 * sum)
        });
    }

    /// Rows of half a byte per element.
    fn scan_planes(&self, scan: &Scan<'_>, nearest: &mut Nearest) {
        let (step, sum) = (self.bytes.step * 128.0, self.bytes.high_sum as f32);
        self.scan_rows(scan, self.rounding_error(step, 7.5), nearest, |codes| {
            step * (plane_product(codes, 4, &self.bytes) as f32 - 7.5 * sum)
        });
    }

    /// Rows of codes whose `product` with the query is off by `rounding` at one standard deviation.
    fn scan_rows(&self, scan: &Scan<'_>, rounding: f32, nearest: &mut Nearest, mut product: impl FnMut(&[u8]) -> f32) {
        let row_bytes = self.layout.coarse_row_bytes();
        let error = CERTAINTY * (scan.spreads[0] * self.reach(scan) + rounding);
        for row in selected(scan.masks) {
            let Some(bytes) = scan.coarse.get(row * row_bytes..(row + 1) * row_bytes) else { return };
            let (add, rescale) = factors(bytes);
            let estimate = (add + scan.query_add) + rescale * product(&bytes[FACTOR_BYTES..]);
            nearest.push(scan.first + row as u64, estimate, (rescale * error).abs());
        }
    }

    /// One standard deviation of a product if every element of the query is rounded to multiples of `step`, and codes reach
    /// `middle`: rounding is uniform, and the codes of a rotated vector spread over about 0.4 of their reach.
    fn rounding_error(&self, step: f32, middle: f32) -> f32 {
        step * 0.289 * 0.4 * middle * (self.layout.padded as f32).sqrt()
    }

    fn scan_blocks<'b>(
        &self,
        scan: &Scan<'_>,
        extra: &mut dyn FnMut(usize) -> Option<&'b [u8]>,
        nearest: &mut Nearest,
    ) -> u64 {
        let reach = self.reach(scan);
        let table_error = self.lut.step * 0.289 * (self.lut.dim() as f32 / 4.0).sqrt();
        let error = CERTAINTY * (scan.spreads[0] * reach + table_error);
        let whole_error = CERTAINTY * (scan.spreads[1] * reach + self.whole_error(table_error));
        let mut survivors = std::mem::take(&mut nearest.survivors);
        survivors.clear();
        let is_refined = self.layout.extra_bits() > 0;
        let bound = ScanBound {
            step: self.lut.step,
            base: self.lut.base,
            error,
            query_add: scan.query_add,
            threshold: nearest.threshold(),
            estimate_max: if is_refined { f32::INFINITY } else { nearest.estimate_max() },
        };
        scan_blocks(scan.coarse, scan.masks, &self.lut, &bound, &mut survivors);
        if is_refined {
            self.take_whole(scan, &survivors, whole_error, extra, nearest);
        } else {
            self.take_coarse(scan, &survivors, nearest);
        }
        nearest.survivors = survivors;
        let blocks = scan.masks.iter().filter(|mask| **mask != 0).count();
        (blocks * BLOCK_ROWS).min(scan.rows) as u64
    }

    fn whole_error(&self, table_error: f32) -> f32 {
        let levels = (1_u32 << self.layout.extra_bits()) as f32;
        let middle = levels - 0.5;
        levels / 2.0 * table_error + self.rounding_error(128.0 * self.bytes.step, middle)
    }

    fn take_coarse(&self, scan: &Scan<'_>, survivors: &Survivors, nearest: &mut Nearest) {
        let measured = survivors.estimates.iter().zip(&survivors.bounds);
        for (row, (estimate, bound)) in survivors.rows.iter().zip(measured) {
            nearest.push(scan.first + u64::from(*row), *estimate, estimate - bound);
        }
    }

    /// Refines survivors by their extra bits, as long as their coarse bound is not above the threshold.
    fn take_whole<'b>(
        &self,
        scan: &Scan<'_>,
        survivors: &Survivors,
        error: f32,
        extra: &mut dyn FnMut(usize) -> Option<&'b [u8]>,
        nearest: &mut Nearest,
    ) {
        let own = nearest.own_threshold(survivors);
        let (bits, levels) = (self.layout.extra_bits(), (1_u32 << self.layout.extra_bits()) as f32);
        let centre = (levels - 1.0) / 2.0 * self.bytes.high_sum as f32;
        let near = |at: usize, threshold: f32| survivors.bounds[at] <= threshold;
        // The extra rows lie anywhere in memory: all are asked for before the first is read.
        let mut pending: Vec<(usize, Option<&[u8]>)> = vec![];
        let threshold = own.min(nearest.threshold());
        for at in (0..survivors.len()).filter(|at| near(*at, threshold)) {
            let bytes = extra(survivors.rows[at] as usize);
            bytes.into_iter().for_each(prefetch);
            pending.push((at, bytes));
        }
        for (at, bytes) in pending {
            if !near(at, nearest.threshold()) {
                continue;
            }
            let position = scan.first + u64::from(survivors.rows[at]);
            let Some(bytes) = bytes else {
                nearest.push(position, survivors.estimates[at], survivors.estimates[at] - survivors.bounds[at]);
                continue;
            };
            let (add, rescale) = factors(bytes);
            let whole = plane_product(&bytes[FACTOR_BYTES..], bits, &self.bytes) as f32;
            let signs = self.lut.step.mul_add(survivors.sums[at] as f32, self.lut.base);
            let product = levels / 2.0 * signs + self.bytes.step * 128.0 * (whole - centre);
            let estimate = (add + scan.query_add) + rescale * product;
            nearest.push(position, estimate, (rescale * error).abs());
        }
    }
}

/// The rows whose bits are set.
fn selected(masks: &[u32]) -> impl Iterator<Item = usize> {
    masks.iter().enumerate().flat_map(|(block, mask)| {
        let mut rest = *mask;
        std::iter::from_fn(move || {
            let row = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
            rest &= rest - 1;
            Some(block * BLOCK_ROWS + row)
        })
    })
}

/// Exact distances of the selected rows: they are their own estimates. They rank as they are, whatever the geometry.
fn measure(query: &Query, rows: Vectors<'_>, dim: usize, scan: &Scan<'_>, nearest: &mut Nearest) {
    let offsets: Vec<u32> = selected(scan.masks).map(|row| row as u32).collect();
    let mut distance = [0.0];
    if offsets.len() == scan.rows {
        let mut distances = vec![0.0; scan.rows];
        if query.distances(rows, &mut distances).is_ok() {
            for (row, distance) in (0_u64..).zip(distances) {
                nearest.push_exact(scan.first + row, distance);
            }
        }
        return;
    }
    for row in offsets {
        let Some(vector) = rows.rows(dim, row as usize, 1) else { return };
        if query.distances(vector, &mut distance).is_ok() {
            nearest.push_exact(scan.first + u64::from(row), distance[0]);
        }
    }
}
