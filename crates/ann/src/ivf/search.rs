//! Searches over lists: a query's route, the lists that it reads, the bytes that it lacks.

use std::collections::BTreeSet;
use std::ops::Range;

use kernels::{BLOCK_ROWS, ByteQuery, ElementType, Metric, Vectors, prefetch};

use super::format::{CENTROIDS, COARSE, EXTRA, Ivf, ROWS, element_of};
use super::routing::{Ground, Route};
use crate::bitmap::RowSet;
use crate::codes::{Code, Hit, Nearest, QueryCodes, Scan};
use crate::head::damaged;
use crate::index::{Candidate, Effort, Found, Index, Request, Step, Work};
use crate::payload::{FormatError, Sections, Wants};
use crate::space::Standing;

/// Lists that a query of a batch reads by itself, so that it knows how near is near before lists are shared.
const LISTS_ALONE: usize = 2;

/// Under a filter lists are read on until so many of them, and this part of those read, brought nothing nearer.
const PATIENCE: usize = 8;
const PATIENCE_SHARE: usize = 2;

/// Bytes of the next list that are asked for while a list is read.
const BYTES_AHEAD: usize = 3_072;

impl Index for Ivf {
    fn metric(&self) -> Metric {
        self.routing.metric()
    }

    fn dim(&self) -> usize {
        match &self.routing.ground {
            Ground::Projected(space) => space.dim,
            Ground::Bits { dim, .. } => *dim,
        }
    }

    fn element(&self) -> ElementType {
        element_of(&self.routing)
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn effort(&self, recall: f64, k: usize) -> Effort {
        let (probes, rerank) = self.calibration.effort(recall, k, self.lists());
        Effort::Ivf { probes, rerank }
    }

    fn estimate(&self, request: &Request<'_>) -> Work {
        let (probes, rerank) = self.probes_and_rerank(request.effort, request.k);
        let stored = self.stored().max(1);
        let part = request
            .matching
            .map_or(1.0, |set| (self.copies() * set.len()) as f64 / stored as f64)
            .clamp(1.0 / stored as f64, 1.0);
        let lists = (probes as f64 * part.powf(-f64::from(self.calibration.growth))).min(self.lists() as f64);
        let share = lists / self.lists() as f64;
        let coarse = self.coarse_starts.last().copied().unwrap_or(0);
        Work {
            lists: lists as u64,
            hops: 0,
            codes: (share * stored as f64) as u64,
            reranked: rerank.max(request.k) as u64,
            bytes: (share * coarse as f64) as u64 + self.routing.code_bytes() as u64,
        }
    }

    fn search(&self, request: &Request<'_>, sections: &dyn Sections) -> Result<Step, FormatError> {
        match self.begin(request, sections)? {
            Begun::Walk(mut walk) => {
                for index in 0..walk.plan.len() {
                    self.visit(&mut walk, index, sections)?;
                }
                self.read_on(&mut walk, sections)?;
                self.finish(*walk, sections)
            }
            Begun::Step(step) => Ok(step),
        }
    }

    fn search_batch(&self, requests: &[Request<'_>], sections: &dyn Sections) -> Result<Vec<Step>, FormatError> {
        let mut begun = vec![];
        for request in requests {
            begun.push(self.begin(request, sections)?);
        }
        // What is left after a query's own first lists, by list: its bytes stay in the caches for every query that reads it.
        let mut shared: Vec<(usize, usize, usize)> = vec![];
        for (query, begun) in begun.iter_mut().enumerate() {
            let Begun::Walk(walk) = begun else { continue };
            for index in 0..walk.plan.len().min(LISTS_ALONE) {
                self.visit(walk, index, sections)?;
            }
            shared.extend((LISTS_ALONE..walk.plan.len()).map(|index| (walk.plan[index].list, query, index)));
        }
        shared.sort_unstable();
        for (_, query, index) in shared {
            if let Some(Begun::Walk(walk)) = begun.get_mut(query) {
                self.visit(walk, index, sections)?;
            }
        }
        let finish = |begun| match begun {
            Begun::Walk(mut walk) => {
                self.read_on(&mut walk, sections)?;
                self.finish(*walk, sections)
            }
            Begun::Step(step) => Ok(step),
        };
        begun.into_iter().map(finish).collect()
    }
}

/// A search that has begun, or is over already.
enum Begun<'a> {
    Walk(Box<Walk<'a>>),
    Step(Step),
}

/// One query on its way.
struct Walk<'a> {
    codes: QueryCodes,
    nearest: Nearest,
    rerank: usize,
    matching: Option<RowSet<'a>>,
    course: Course<'a>,
    plan: Vec<Planned>,
    masks: Vec<u32>,
    wants: Wants,
    work: Work,
}

/// The order in which a query passes lists, and how far it is.
struct Course<'a> {
    routed: Routed<'a>,
    route: Route,
    /// In the route.
    place: usize,
    /// Lists that were passed.
    is_passed: Vec<bool>,
    passed: Passed,
    /// Matching rows that there are at most, those in two lists twice.
    most: usize,
}

/// A list that will be read.
struct Planned {
    list: usize,
    /// What is ranked by, between the query and its centroid.
    ranked: f32,
    /// Its masks among those of the walk.
    masks: Range<usize>,
}

/// The lists of a route so far, those without a matching row included.
#[derive(Default)]
struct Passed {
    lists: usize,
    rows: usize,
    matching: usize,
}

impl Passed {
    /// Whether they are enough. Where one row in `s` matches, the `k` nearest of those are about the `k · s` nearest of all, and lists
    /// grow with `k` as measured. The rows passed say what `s` is near the query, which may be far from what it is on the whole.
    fn suffice(&self, probes: usize, k: usize, growth: f32) -> bool {
        if self.matching == self.rows {
            return self.matching >= k && self.lists >= probes;
        }
        let rows_per_match = self.rows as f64 / self.matching.max(1) as f64;
        self.matching >= k && self.lists as f64 >= probes as f64 * rows_per_match.powf(f64::from(growth))
    }
}

/// A query as it is routed.
enum Routed<'a> {
    Projected { bytes: ByteQuery, square: f32 },
    Bits(Vectors<'a>),
}

impl Ivf {
    fn probes_and_rerank(&self, effort: Effort, k: usize) -> (usize, usize) {
        let (probes, rerank) = match effort {
            Effort::Ivf { probes, rerank } => (probes, rerank),
            Effort::Flat { rerank } => (self.lists(), rerank),
            // A beam of vertices sees about as many rows as a few lists.
            Effort::Graph { beam, rerank, .. } => (beam.div_ceil(4), rerank),
        };
        (probes.clamp(1, self.lists()), rerank.max(k))
    }

    /// Routes the query and chooses the lists.
    fn begin<'a>(&self, request: &Request<'a>, sections: &dyn Sections) -> Result<Begun<'a>, FormatError> {
        self.check(sections)?;
        if request.k == 0 || request.matching.is_some_and(RowSet::is_empty) {
            return Ok(Begun::Step(Step::Found(Found::default())));
        }
        match &self.routing.ground {
            Ground::Projected(space) => {
                if request.query.len() != space.dim || request.query.element_type() == ElementType::Bits {
                    return Ok(Begun::Step(Step::Found(Found::default())));
                }
                let (mut projected, mut standing) = (vec![], vec![]);
                space.project(request.query, &mut projected, &mut standing);
                if standing.first() != Some(&Standing::Projected) {
                    return Ok(Begun::Step(Step::Found(Found::default())));
                }
                let bytes = ByteQuery::new(&projected);
                let square = kernels::dot_f32(&projected, &projected);
                let codes = if self.layout.code == Code::Raw {
                    QueryCodes::raw(self.layout.clone(), space.metric, space.element, space.dim, request.query)
                } else {
                    Ok(QueryCodes::projected(self.layout.clone(), &projected, bytes.clone()))
                };
                let Ok(codes) = codes else { return Ok(Begun::Step(Step::Found(Found::default()))) };
                self.plan(codes, Routed::Projected { bytes, square }, request, sections)
            }
            Ground::Bits { metric, dim } => {
                let codes = QueryCodes::raw(self.layout.clone(), *metric, ElementType::Bits, *dim, request.query);
                let Ok(codes) = codes else { return Ok(Begun::Step(Step::Found(Found::default()))) };
                self.plan(codes, Routed::Bits(request.query), request, sections)
            }
        }
    }

    fn route(&self, centroids: &[u8], routed: &Routed<'_>, want: Option<usize>) -> Result<Route, FormatError> {
        match (routed, want) {
            (Routed::Projected { bytes, square }, Some(want)) => {
                Ok(self.routing.route(centroids, bytes, *square, want))
            }
            (Routed::Projected { bytes, square }, None) => Ok(self.routing.route_to_all(centroids, bytes, *square)),
            (Routed::Bits(query), _) => {
                self.routing.route_bits(centroids, *query).map_err(|error| damaged(&error.to_string()))
            }
        }
    }

    /// Chooses the lists in the order of the route: as many as asked for, and until enough matching rows are in them.
    fn plan<'a>(
        &self,
        codes: QueryCodes,
        routed: Routed<'a>,
        request: &Request<'a>,
        sections: &dyn Sections,
    ) -> Result<Begun<'a>, FormatError> {
        let Some(centroids) = sections.whole(CENTROIDS) else {
            return Ok(Begun::Step(Step::Wants(vec![(CENTROIDS, 0..sections.len(CENTROIDS))])));
        };
        let (probes, rerank) = self.probes_and_rerank(request.effort, request.k);
        // A row that stands in two lists is seen twice: among so many of what is seen are `k` different rows.
        let seen = self.copies().saturating_mul(request.k);
        let course = Course {
            route: self.route(centroids, &routed, Some(probes))?,
            routed,
            place: 0,
            is_passed: vec![false; self.lists()],
            passed: Passed::default(),
            most: request.matching.map_or(usize::MAX, |set| self.copies() * set.len()).min(self.stored()),
        };
        // What matches may be farther than what efforts were measured with, and codes tell far rows apart less well.
        let rerank = if request.matching.is_some() { 2 * rerank } else { rerank };
        let mut walk = Box::new(Walk {
            codes,
            nearest: Nearest::new(seen, self.copies().saturating_mul(rerank)),
            rerank,
            matching: request.matching,
            course,
            plan: vec![],
            masks: vec![],
            wants: Wants::default(),
            work: Work { bytes: centroids.len() as u64, ..Work::default() },
        });
        while walk.course.passed.matching < walk.course.most
            && !walk.course.passed.suffice(probes, seen, self.calibration.growth)
            && walk.wants.len() <= probes
            && self.pass(&mut walk, centroids, sections)?.is_some()
        {}
        self.want_codes(&mut walk, sections);
        match std::mem::take(&mut walk.wants).merged() {
            Some(wants) => Ok(Begun::Step(Step::Wants(wants))),
            None => Ok(Begun::Walk(walk)),
        }
    }

    /// Passes the next list of the route, and plans to read it if a row of it matches; how many do, or `None` at the end.
    fn pass(
        &self,
        walk: &mut Walk<'_>,
        centroids: &[u8],
        sections: &dyn Sections,
    ) -> Result<Option<usize>, FormatError> {
        loop {
            let course = &mut walk.course;
            let Some((ranked, list)) = course.route.at(course.place) else {
                if course.route.is_complete() {
                    return Ok(None);
                }
                course.route = self.route(centroids, &course.routed, None)?;
                course.place = 0;
                continue;
            };
            course.place += 1;
            let list = list as usize;
            if std::mem::replace(&mut course.is_passed[list], true) || self.list_rows(list) == 0 {
                continue;
            }
            let matching = self.add_to_plan(walk, list, ranked, sections)?;
            let passed = &mut walk.course.passed;
            passed.lists += 1;
            passed.rows += self.list_rows(list);
            passed.matching += matching;
            return Ok(Some(matching));
        }
    }

    /// Reads on under a filter while that brings the k-th nearest nearer: the rows that match may lie elsewhere than the lists near
    /// the query let expect, and then no count of them says when it is enough.
    fn read_on(&self, walk: &mut Walk<'_>, sections: &dyn Sections) -> Result<(), FormatError> {
        let Some(centroids) = sections.whole(CENTROIDS).filter(|_| walk.matching.is_some()) else { return Ok(()) };
        let mut idle = 0;
        while walk.course.passed.matching < walk.course.most && idle < PATIENCE.max(walk.plan.len() / PATIENCE_SHARE) {
            let (missing, farthest) = (walk.wants.len(), walk.nearest.farthest());
            let Some(matching) = self.pass(walk, centroids, sections)? else { break };
            if matching > 0 {
                self.visit(walk, walk.plan.len() - 1, sections)?;
            }
            // Of lists that are not at hand, as many as may be needed are asked for at once.
            let is_missing = walk.wants.len() > missing;
            if walk.nearest.farthest() < farthest {
                idle = 0;
            } else if matching > 0 || is_missing {
                idle += 1;
            }
        }
        Ok(())
    }

    /// Adds a list with its masks, if a row of it matches; returns how many do. Its rows may be missing: then they are wanted.
    fn add_to_plan(
        &self,
        walk: &mut Walk<'_>,
        list: usize,
        ranked: f32,
        sections: &dyn Sections,
    ) -> Result<usize, FormatError> {
        let rows = self.list_rows(list);
        let start = walk.masks.len();
        let mut matching = rows;
        if let Some(set) = walk.matching {
            let range = 4 * self.row_starts[list]..4 * self.row_starts[list + 1];
            let Some(bytes) = sections.get(ROWS, range.clone()) else {
                walk.wants.add(ROWS, range);
                return Ok(0);
            };
            matching = push_masks(bytes, set, &mut walk.masks);
            walk.work.bytes += bytes.len() as u64;
            if matching == 0 {
                walk.masks.truncate(start);
                return Ok(0);
            }
        } else {
            walk.masks.resize(start + rows / BLOCK_ROWS, u32::MAX);
            if !rows.is_multiple_of(BLOCK_ROWS) {
                walk.masks.push((1 << (rows % BLOCK_ROWS)) - 1);
            }
        }
        if walk.plan.is_empty() {
            // Read first, while the rest of the plan is made.
            sections.get(COARSE, self.coarse_range(list)).into_iter().for_each(prefetch);
        }
        walk.plan.push(Planned { list, ranked, masks: start..walk.masks.len() });
        Ok(matching)
    }

    fn coarse_range(&self, list: usize) -> Range<usize> {
        self.coarse_starts[list]..self.coarse_starts[list + 1]
    }

    fn want_codes(&self, walk: &mut Walk<'_>, sections: &dyn Sections) {
        for planned in &walk.plan {
            let range = self.coarse_range(planned.list);
            if sections.get(COARSE, range.clone()).is_none() {
                walk.wants.add(COARSE, range);
            }
        }
    }

    /// Reads one list of the plan.
    fn visit(&self, walk: &mut Walk<'_>, index: usize, sections: &dyn Sections) -> Result<(), FormatError> {
        let Planned { list, ranked, masks } = &walk.plan[index];
        let range = self.coarse_range(*list);
        let Some(coarse) = sections.get(COARSE, range.clone()) else {
            walk.wants.add(COARSE, range);
            return Ok(());
        };
        let scan = Scan {
            first: self.row_starts[*list] as u64,
            rows: self.list_rows(*list),
            masks: &walk.masks[masks.clone()],
            coarse,
            query_add: *ranked,
            spreads: self.spreads[*list],
        };
        if let Some(next) = walk.plan.get(index + 1) {
            let start = self.coarse_starts[next.list];
            let end = (start + BYTES_AHEAD).min(self.coarse_starts[next.list + 1]);
            sections.get(COARSE, start..end).into_iter().for_each(prefetch);
        }
        let row_bytes = self.layout.extra_row_bytes();
        let start = self.row_starts[*list] * row_bytes;
        let whole = sections.get(EXTRA, start..start + scan.rows * row_bytes);
        let (mut refined, wants) = (0, &mut walk.wants);
        let mut extra = |row: usize| {
            refined += row_bytes as u64;
            if let Some(whole) = whole {
                return whole.get(row * row_bytes..(row + 1) * row_bytes);
            }
            let range = start + row * row_bytes..start + (row + 1) * row_bytes;
            let bytes = sections.get(EXTRA, range.clone());
            if bytes.is_none() {
                wants.add(EXTRA, range);
            }
            bytes
        };
        walk.work.codes += walk.codes.scan(&scan, &mut extra, &mut walk.nearest);
        walk.work.lists += 1;
        walk.work.bytes += coarse.len() as u64 + refined;
        Ok(())
    }

    /// The candidates, or what is missing for them.
    fn finish(&self, walk: Walk<'_>, sections: &dyn Sections) -> Result<Step, FormatError> {
        let Walk { nearest, rerank, matching, mut wants, mut work, .. } = walk;
        let (mut candidates, mut seen) = (vec![], BTreeSet::new());
        for hit in nearest.into_hits() {
            match self.row_of(&hit, sections)? {
                // The nearer of a row's two estimates.
                Ok(row) if self.spill && !seen.insert(row) => {}
                Ok(row) => candidates.push(self.candidate(row, &hit)),
                Err(want) => wants.add(ROWS, want),
            }
        }
        candidates.truncate(rerank);
        if let Some(wants) = wants.merged() {
            return Ok(Step::Wants(wants));
        }
        let outliers = self.outliers.iter().filter(|row| matching.is_none_or(|set| set.contains(**row)));
        candidates.extend(outliers.map(|row| Candidate {
            row: *row,
            estimate: f32::INFINITY,
            bound: f32::NEG_INFINITY,
        }));
        work.reranked = candidates.len() as u64;
        Ok(Step::Found(Found { candidates, work }))
    }

    /// The row at a position, or the range of rows that is missing for it.
    fn row_of(&self, hit: &Hit, sections: &dyn Sections) -> Result<Result<u32, Range<usize>>, FormatError> {
        let position = hit.position as usize;
        let Some(bytes) = sections.get(ROWS, 4 * position..4 * position + 4) else {
            let list = self.row_starts.partition_point(|start| *start <= position).saturating_sub(1);
            let end = self.row_starts.get(list + 1).copied().unwrap_or(position + 1);
            return Ok(Err(4 * self.row_starts[list]..4 * end));
        };
        let row = bytes.try_into().map_or(u32::MAX, u32::from_le_bytes);
        if row as usize >= self.rows {
            return Err(damaged("a row beyond the segment"));
        }
        Ok(Ok(row))
    }

    fn candidate(&self, row: u32, hit: &Hit) -> Candidate {
        let distance = |ranked: f32| match (&self.routing.ground, self.layout.code) {
            (Ground::Bits { .. }, _) | (_, Code::Raw) => ranked,
            (Ground::Projected(space), _) => space.distance(ranked),
        };
        Candidate { row, estimate: distance(hit.estimate), bound: distance(hit.bound) }
    }
}

/// Appends masks of 32 rows each for rows as bytes; returns how many are in the set.
fn push_masks(rows: &[u8], set: RowSet<'_>, masks: &mut Vec<u32>) -> usize {
    let mut count = 0;
    for rows in rows.as_chunks::<4>().0.chunks(BLOCK_ROWS) {
        let mut mask = 0_u32;
        for (bit, row) in rows.iter().enumerate() {
            mask |= u32::from(set.contains(u32::from_le_bytes(*row))) << bit;
        }
        count += mask.count_ones() as usize;
        masks.push(mask);
    }
    count
}
