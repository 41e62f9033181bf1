//! Searches over all rows, chunk by chunk.

use kernels::{ByteQuery, ElementType, Metric};

use super::format::{CHUNK, COARSE, EXTRA, Flat};
use crate::bitmap::RowSet;
use crate::codes::{Nearest, QueryCodes, Scan};
use crate::index::{Candidate, Effort, Found, Index, Request, Step, Work};
use crate::payload::{FormatError, Sections, Wants};
use crate::space::{Geometry, Standing};

/// Recall that a measured effort must have above what is asked, as a part of what is missing to 1.
const MARGIN: f64 = 0.1;

impl Index for Flat {
    fn metric(&self) -> Metric {
        self.space.metric
    }

    fn dim(&self) -> usize {
        self.space.dim
    }

    fn element(&self) -> ElementType {
        self.space.element
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn effort(&self, recall: f64, k: usize) -> Effort {
        let wanted = recall + (1.0 - recall) * MARGIN;
        let measured = [1, 10, 100].into_iter().find(|measured| *measured >= k).unwrap_or(100);
        let mut points = self.points.iter().filter(|point| point.k as usize == measured);
        let found = points.find(|point| f64::from(point.recall) >= wanted);
        let rerank = found.map_or(16 * measured, |point| point.rerank as usize);
        Effort::Flat { rerank: (rerank * k).div_ceil(measured).max(rerank.min(k + rerank)).max(k) }
    }

    fn estimate(&self, request: &Request<'_>) -> Work {
        Work {
            codes: self.rows as u64,
            reranked: self.rerank(request).min(self.rows) as u64,
            bytes: self.layout.coarse_bytes(self.rows) as u64,
            ..Work::default()
        }
    }

    fn search(&self, request: &Request<'_>, sections: &dyn Sections) -> Result<Step, FormatError> {
        let mut steps = self.search_batch(std::slice::from_ref(request), sections)?;
        Ok(steps.pop().unwrap_or_else(|| Step::Found(Found::default())))
    }

    /// A chunk is read once for all queries.
    fn search_batch(&self, requests: &[Request<'_>], sections: &dyn Sections) -> Result<Vec<Step>, FormatError> {
        self.check(sections)?;
        let mut walks: Vec<Option<Walk<'_>>> = requests.iter().map(|request| self.begin(request)).collect();
        let mut masks = vec![];
        for chunk in 0..self.chunks() {
            for walk in walks.iter_mut().flatten() {
                self.visit(walk, chunk, &mut masks, sections);
            }
        }
        let finish =
            |walk: Option<Walk<'_>>| walk.map_or_else(|| Step::Found(Found::default()), |walk| self.finish(walk));
        Ok(walks.into_iter().map(finish).collect())
    }
}

/// One query on its way.
struct Walk<'a> {
    codes: QueryCodes,
    nearest: Nearest,
    matching: Option<RowSet<'a>>,
    wants: Wants,
    work: Work,
}

impl Flat {
    fn rerank(&self, request: &Request<'_>) -> usize {
        let (Effort::Flat { rerank } | Effort::Ivf { rerank, .. } | Effort::Graph { rerank, .. }) = request.effort;
        rerank.max(request.k)
    }

    /// The query, prepared; `None` if nothing can be near to it.
    fn begin<'a>(&self, request: &Request<'a>) -> Option<Walk<'a>> {
        let fits = request.query.len() == self.space.dim && request.query.element_type() != ElementType::Bits;
        if !fits || request.k == 0 {
            return None;
        }
        let (mut projected, mut standings) = (vec![], vec![]);
        self.space.project(request.query, &mut projected, &mut standings);
        if standings.first() != Some(&Standing::Projected) {
            return None;
        }
        Some(Walk {
            codes: QueryCodes::projected(self.layout.clone(), &projected, ByteQuery::new(&projected)),
            nearest: Nearest::new(request.k, self.rerank(request)),
            matching: request.matching,
            wants: Wants::default(),
            work: Work::default(),
        })
    }

    fn visit(&self, walk: &mut Walk<'_>, chunk: usize, masks: &mut Vec<u32>, sections: &dyn Sections) {
        let rows = self.chunk_rows(chunk);
        if !fill_masks(chunk * CHUNK, rows, walk.matching, masks) {
            return;
        }
        let start = self.layout.coarse_bytes(chunk * CHUNK);
        let range = start..start + self.layout.coarse_bytes(rows);
        let Some(coarse) = sections.get(COARSE, range.clone()) else {
            walk.wants.add(COARSE, range);
            return;
        };
        let query_add = match self.space.geometry() {
            Geometry::Euclidean => walk.codes.square,
            Geometry::InnerProduct => 0.0,
        };
        let first = (chunk * CHUNK) as u64;
        let scan = Scan { first, rows, masks, coarse, query_add, spreads: self.spreads[chunk] };
        let row_bytes = self.layout.extra_row_bytes();
        let mut refined = 0;
        let mut extra = |row: usize| {
            let start = (chunk * CHUNK + row) * row_bytes;
            let bytes = sections.get(EXTRA, start..start + row_bytes);
            refined += row_bytes as u64;
            if bytes.is_none() {
                walk.wants.add(EXTRA, start..start + row_bytes);
            }
            bytes
        };
        walk.work.codes += walk.codes.scan(&scan, &mut extra, &mut walk.nearest);
        walk.work.bytes += coarse.len() as u64 + refined;
    }

    fn finish(&self, walk: Walk<'_>) -> Step {
        if let Some(wants) = walk.wants.merged() {
            return Step::Wants(wants);
        }
        let hits = walk.nearest.into_hits();
        let mut candidates: Vec<Candidate> = hits
            .iter()
            .map(|hit| Candidate {
                row: hit.position as u32,
                estimate: self.space.distance(hit.estimate),
                bound: self.space.distance(hit.bound),
            })
            .collect();
        let outliers = self.outliers.iter().filter(|row| walk.matching.is_none_or(|set| set.contains(**row)));
        let unknown = |row: &u32| Candidate { row: *row, estimate: f32::INFINITY, bound: f32::NEG_INFINITY };
        candidates.extend(outliers.map(unknown));
        let work = Work { reranked: candidates.len() as u64, ..walk.work };
        Step::Found(Found { candidates, work })
    }
}

/// The masks of the rows from `first` on that match; whether there is any.
fn fill_masks(first: usize, rows: usize, matching: Option<RowSet<'_>>, masks: &mut Vec<u32>) -> bool {
    masks.clear();
    match matching {
        None => masks.resize(rows.div_ceil(32), u32::MAX),
        Some(set) => {
            // Chunks begin at a multiple of 64.
            let words = set.words().get(first / 64..).unwrap_or(&[]);
            masks.extend(words.iter().flat_map(|word| [*word as u32, (word >> 32) as u32]).take(rows.div_ceil(32)));
            masks.resize(rows.div_ceil(32), 0);
        }
    }
    if let (Some(last), false) = (masks.last_mut(), rows.is_multiple_of(32)) {
        *last &= (1 << (rows % 32)) - 1;
    }
    masks.iter().any(|mask| *mask != 0)
}
