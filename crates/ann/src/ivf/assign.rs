//! Which list a row goes to, and which second one.

use kernels::{Panels, dot_f32};

use super::routing::{Ground, Routing};
use crate::sample::half_squares;

/// A list of an upper level is searched for a row's list if it is among the nearest, one in this many of them.
const UPPER_PART: usize = 8;

/// Lists from which on a row's list is looked for through the upper level.
const TWO_LEVELS_FROM: usize = 2_048;

/// What an error of the second residual along the first one costs, beyond what one across it does. As published.
const SPILL_LEAN: f32 = 1.0;

/// Rows whose products with centroids are held at a time.
const ROWS_AT_ONCE: usize = 48;

/// Finds the lists of projected rows.
pub(super) struct Assigner {
    /// Of all lists, row-major.
    centroids: Vec<f32>,
    /// Half of their squared lengths.
    bias: Vec<f32>,
    panels: Panels,
    upper: Option<Upper>,
}

struct Upper {
    panels: Panels,
    bias: Vec<f32>,
    /// For each upper centroid the first list below it, and the centroids of all that are.
    below: Vec<(usize, Panels)>,
}

impl Assigner {
    pub(super) fn new(routing: &Routing) -> Assigner {
        let head = &routing.head;
        let (mut centroids, mut upper, mut one) = (vec![], vec![], vec![]);
        let Ground::Projected(space) = &head.ground else {
            return Assigner { centroids, panels: Panels::new(1, &[]), bias: vec![], upper: None };
        };
        for index in 0..head.lists + head.upper_ends.len() {
            head.centroid(&routing.codes, index, &mut one);
            if index < head.lists { centroids.extend_from_slice(&one) } else { upper.extend_from_slice(&one) }
        }
        let padded = space.padded();
        let bias = half_squares(&centroids, padded);
        if head.lists < TWO_LEVELS_FROM || upper.is_empty() {
            return Assigner { panels: Panels::new(padded, &centroids), centroids, bias, upper: None };
        }
        let starts = std::iter::once(0).chain(head.upper_ends.iter().copied());
        let below = starts.zip(&head.upper_ends).map(|(start, end)| {
            (start as usize, Panels::new(padded, &centroids[start as usize * padded..*end as usize * padded]))
        });
        let below = below.collect();
        let upper = Upper { panels: Panels::new(padded, &upper), bias: half_squares(&upper, padded), below };
        Assigner { centroids, panels: Panels::new(padded, &[]), bias, upper: Some(upper) }
    }

    /// Elements of a projected row.
    fn padded(&self) -> usize {
        self.panels.dim()
    }

    pub(super) fn centroid(&self, list: u32) -> &[f32] {
        &self.centroids[list as usize * self.padded()..][..self.padded()]
    }

    /// The list of each row, and half of (its squared distance minus the row's squared length).
    pub(super) fn assign(&self, rows: &[f32], out: &mut Vec<(u32, f32)>) {
        out.clear();
        out.resize(rows.len() / self.padded(), (0, f32::INFINITY));
        let Some(upper) = &self.upper else {
            return self.panels.nearest(&self.bias, rows, out);
        };
        for ((start, below), lookers) in upper.below.iter().zip(upper.lookers(rows)) {
            if lookers.is_empty() || below.is_empty() {
                continue;
            }
            let bias = &self.bias[*start..start + below.len()];
            let mut nearest = vec![(0, f32::INFINITY); lookers.len()];
            below.nearest(bias, &gathered(rows, self.padded(), &lookers), &mut nearest);
            for (row, (list, value)) in lookers.iter().zip(nearest) {
                let best = &mut out[*row as usize];
                let list = *start as u32 + list;
                if value < best.1 || value == best.1 && list < best.0 {
                    *best = (list, value);
                }
            }
        }
    }

    /// The second list of each row, whose first is known; `None` where there is no other.
    ///
    /// The one with the least `‖r'‖² + λ⟨r', r⟩² / ‖r‖²`, `r` and `r'` the residuals to the first and the second centroid: a query for
    /// which the first list seems far then does not see the second one as far for the same reason.
    /// Source: Sun et al., "SOAR: Improved Indexing for Approximate Nearest Neighbor Search" (NeurIPS 2023).
    pub(super) fn second(&self, rows: &[f32], first: &[(u32, f32)]) -> Vec<Option<u32>> {
        let padded = self.padded();
        let mut directions = vec![];
        for (row, (list, _)) in rows.chunks_exact(padded).zip(first) {
            let start = directions.len();
            directions.extend(row.iter().zip(self.centroid(*list)).map(|(value, centroid)| value - centroid));
            let length = dot_f32(&directions[start..], &directions[start..]).sqrt();
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            directions[start..].iter_mut().for_each(|value| *value *= scale);
        }
        let mut best = vec![(None, f32::INFINITY); first.len()];
        let all: Vec<u32> = (0..first.len() as u32).collect();
        let look = Look { bias: &self.bias, rows, directions: &directions, first };
        match &self.upper {
            None => look.below(0, &self.panels, &all, &mut best),
            Some(upper) => {
                for ((start, below), lookers) in upper.below.iter().zip(upper.lookers(rows)) {
                    look.below(*start, below, &lookers, &mut best);
                }
            }
        }
        best.into_iter().map(|(list, _)| list).collect()
    }
}

impl Upper {
    /// For each upper centroid the rows to which it is among the nearest: those that look below it are multiplied together.
    fn lookers(&self, rows: &[f32]) -> Vec<Vec<u32>> {
        let looks = (self.below.len() / UPPER_PART).clamp(4.min(self.below.len()), self.below.len());
        let stride = self.panels.stride();
        let mut products = vec![0.0; rows.len() / self.panels.dim() * stride];
        self.panels.products(rows, &mut products);
        let mut lookers: Vec<Vec<u32>> = vec![vec![]; self.below.len()];
        let mut order: Vec<(f32, u32)> = vec![];
        for (row, products) in (0_u32..).zip(products.chunks_exact(stride)) {
            order.clear();
            let biased = self.bias.iter().zip(products).map(|(bias, product)| bias - product);
            order.extend(biased.zip(0_u32..));
            let by = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
            if looks < order.len() {
                order.select_nth_unstable_by(looks, by);
            }
            order[..looks].iter().for_each(|(_, index)| lookers[*index as usize].push(row));
        }
        lookers
    }
}

/// A search for second lists.
struct Look<'a> {
    bias: &'a [f32],
    rows: &'a [f32],
    /// Of the rows' first residuals, of length 1.
    directions: &'a [f32],
    first: &'a [(u32, f32)],
}

impl Look<'_> {
    /// Looks at the lists from `start` on for the rows `lookers`.
    fn below(&self, start: usize, lists: &Panels, lookers: &[u32], best: &mut [(Option<u32>, f32)]) {
        if lists.is_empty() {
            return;
        }
        let (padded, stride) = (lists.dim(), lists.stride());
        let bias = &self.bias[start..start + lists.len()];
        let (mut products, mut along) = (vec![], vec![]);
        for lookers in lookers.chunks(ROWS_AT_ONCE) {
            products.resize(lookers.len() * stride, 0.0);
            along.resize(lookers.len() * stride, 0.0);
            lists.products(&gathered(self.rows, padded, lookers), &mut products);
            lists.products(&gathered(self.directions, padded, lookers), &mut along);
            for ((row, products), along) in lookers.iter().zip(products.chunks(stride)).zip(along.chunks(stride)) {
                let row = *row as usize;
                let own = dot_f32(&self.rows[row * padded..][..padded], &self.directions[row * padded..][..padded]);
                for (index, bias) in bias.iter().enumerate() {
                    let list = (start + index) as u32;
                    let lean = own - along[index];
                    let cost = 2.0 * (bias - products[index]) + SPILL_LEAN * lean * lean;
                    if list != self.first[row].0 && cost < best[row].1 {
                        best[row] = (Some(list), cost);
                    }
                }
            }
        }
    }
}

/// The rows of these numbers, side by side.
fn gathered(rows: &[f32], padded: usize, numbers: &[u32]) -> Vec<f32> {
    numbers.iter().flat_map(|row| &rows[*row as usize * padded..][..padded]).copied().collect()
}
