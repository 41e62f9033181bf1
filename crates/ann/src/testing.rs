//! What the tests of the families share: clustered vectors of every type, exact answers, sections that lack bytes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;

use half::f16;
use kernels::{ElementType, Metric, Query, TopK, Vectors};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::bitmap::RowSet;
use crate::build::{BuildError, InMemory, Rows};
use crate::index::{Candidate, Effort, Index, Request, Step};
use crate::payload::{Payload, Resident, Sections};

/// Vectors that own their elements.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    Bits(Vec<u8>),
}

impl Stored {
    pub(crate) fn vectors(&self) -> Vectors<'_> {
        match self {
            Stored::F32(values) => Vectors::F32(values),
            Stored::F16(values) => Vectors::F16(values),
            Stored::I8(values) => Vectors::I8(values),
            Stored::U8(values) => Vectors::U8(values),
            Stored::Bits(values) => Vectors::Bits(values),
        }
    }
}

/// `rows` vectors around `rows / 40` centres, the same for a seed.
pub(crate) fn clustered(element: ElementType, rows: usize, dim: usize, seed: u64) -> Stored {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let normal = |random: &mut ChaCha8Rng| (0..6).map(|_| random.random_range(-1.0_f32..1.0)).sum::<f32>() * 0.7;
    let centres: Vec<f32> = (0..(rows / 40 + 1) * dim).map(|_| normal(&mut random)).collect();
    let mut values = Vec::with_capacity(rows * dim);
    for _ in 0..rows {
        let centre = random.random_range(0..centres.len() / dim);
        values.extend(centres[centre * dim..][..dim].iter().map(|value| value + 0.5 * normal(&mut random)));
    }
    match element {
        ElementType::F32 => Stored::F32(values),
        ElementType::F16 => Stored::F16(values.into_iter().map(f16::from_f32).collect()),
        ElementType::I8 => Stored::I8(values.into_iter().map(|value| (value * 25.0) as i8).collect()),
        ElementType::U8 => Stored::U8(values.into_iter().map(|value| (value * 25.0 + 128.0) as u8).collect()),
        ElementType::Bits => Stored::Bits(
            values
                .chunks(8)
                .map(|bits| bits.iter().fold(0, |byte, value| byte << 1 | u8::from(*value > 0.0)))
                .collect(),
        ),
    }
}

/// A payload whose bytes are all at hand.
pub(crate) fn resident(payload: Payload) -> Resident<Vec<u8>> {
    Resident(payload.sections.into_iter().map(|section| section.bytes).collect())
}

/// The `k` nearest rows, exactly.
pub(crate) fn exact(
    metric: Metric,
    dim: usize,
    base: Vectors<'_>,
    query: Vectors<'_>,
    k: usize,
    keep: &dyn Fn(u32) -> bool,
) -> Vec<u64> {
    let rows: Vec<u32> = (0..InMemory::new(base, dim).len() as u32).filter(|row| keep(*row)).collect();
    let mut top = TopK::new(k);
    Query::new(metric, dim, query).unwrap().top_k_selected(base, 0, &rows, &mut top).unwrap();
    top.into_sorted().into_iter().map(|neighbor| neighbor.row).collect()
}

/// The candidates of a search over bytes that are all at hand.
pub(crate) fn candidates(index: &dyn Index, sections: &dyn Sections, request: &Request<'_>) -> Vec<Candidate> {
    match index.search(request, sections).unwrap() {
        Step::Found(found) => found.candidates,
        Step::Wants(wants) => panic!("{wants:?} are missing"),
    }
}

/// The rows that are nearest of the candidates.
pub(crate) fn reranked(
    metric: Metric,
    dim: usize,
    base: Vectors<'_>,
    candidates: &[Candidate],
    request: &Request<'_>,
) -> Vec<u64> {
    let mut rows: Vec<u32> = candidates.iter().map(|candidate| candidate.row).collect();
    rows.sort_unstable();
    assert!(rows.windows(2).all(|pair| pair[0] < pair[1]), "each row once");
    let mut top = TopK::new(request.k);
    Query::new(metric, dim, request.query).unwrap().top_k_selected(base, 0, &rows, &mut top).unwrap();
    top.into_sorted().into_iter().map(|neighbor| neighbor.row).collect()
}

/// Mean recall of `k` neighbors over queries, under a filter; checks that never fewer than `min(k, matching)` are found.
pub(crate) fn recall(
    index: &dyn Index,
    sections: &dyn Sections,
    base: Vectors<'_>,
    queries: Vectors<'_>,
    (k, effort): (usize, Effort),
    filter: Option<&dyn Fn(u32) -> bool>,
) -> f64 {
    let dim = index.dim();
    let words = words(index.rows(), filter.unwrap_or(&|_| true));
    let count = words.iter().map(|word| word.count_ones() as usize).sum();
    let set = RowSet::new(&words, count);
    let (mut right, mut wanted) = (0, 0);
    for query in (0..).map_while(|at| queries.rows(dim, at, 1)) {
        let request = Request { query, k, matching: filter.map(|_| set), effort };
        let candidates = candidates(index, sections, &request);
        assert!(candidates.iter().all(|candidate| set.contains(candidate.row)), "only matching rows");
        let found = reranked(index.metric(), dim, base, &candidates, &request);
        let truth = exact(index.metric(), dim, base, query, k, &|row| set.contains(row));
        assert!(found.len() >= truth.len().min(k), "{} of {}", found.len(), truth.len());
        right += truth.iter().filter(|row| found.contains(row)).count();
        wanted += truth.len();
    }
    right as f64 / f64::from(wanted.max(1) as u32)
}

/// The bits of the rows that are kept.
pub(crate) fn words(rows: usize, keep: &dyn Fn(u32) -> bool) -> Vec<u64> {
    let mut words = vec![0; rows.div_ceil(64)];
    for row in 0..rows {
        words[row / 64] |= u64::from(keep(row as u32)) << (row % 64);
    }
    words
}

/// Rows of which some have no vector, shown in runs of three.
pub(crate) struct Holey<'a> {
    pub(crate) all: InMemory<'a>,
    pub(crate) has: fn(usize) -> bool,
}

impl Rows for Holey<'_> {
    fn len(&self) -> usize {
        self.all.len()
    }

    fn dim(&self) -> usize {
        self.all.dim()
    }

    fn element(&self) -> ElementType {
        self.all.element()
    }

    fn has(&self, row: usize) -> bool {
        (self.has)(row)
    }

    fn read(&self, rows: Range<usize>, visit: &mut dyn FnMut(usize, Vectors<'_>)) -> Result<(), BuildError> {
        for start in rows.clone().step_by(3) {
            self.all.read(start..rows.end.min(start + 3), visit)?;
        }
        Ok(())
    }
}

/// Sections that have nothing but what was asked for before.
pub(crate) struct Lacking<'a> {
    all: &'a Resident<Vec<u8>>,
    at_hand: Mutex<BTreeSet<(usize, usize, usize)>>,
}

impl<'a> Lacking<'a> {
    pub(crate) fn new(all: &'a Resident<Vec<u8>>) -> Self {
        Lacking { all, at_hand: Mutex::default() }
    }

    /// Brings what a search wants.
    pub(crate) fn bring(&self, wants: &[(usize, Range<usize>)]) {
        let mut at_hand = self.at_hand.lock().unwrap();
        for (section, range) in wants {
            assert!(range.end <= self.all.len(*section) && !range.is_empty(), "{section} {range:?}");
            assert!(at_hand.insert((*section, range.start, range.end)), "wanted twice");
        }
    }

    /// Bytes brought of a section.
    pub(crate) fn bytes(&self, section: usize) -> usize {
        let at_hand = self.at_hand.lock().unwrap();
        at_hand.iter().filter(|(own, ..)| *own == section).map(|(_, start, end)| end - start).sum()
    }
}

impl Sections for Lacking<'_> {
    fn len(&self, section: usize) -> usize {
        self.all.len(section)
    }

    fn get(&self, section: usize, range: Range<usize>) -> Option<&[u8]> {
        let at_hand = self.at_hand.lock().unwrap();
        let covers =
            |(own, start, end): &(usize, usize, usize)| *own == section && *start <= range.start && range.end <= *end;
        if range.is_empty() || at_hand.iter().any(covers) { self.all.get(section, range) } else { None }
    }
}

/// Searches, bringing what is wanted, until it is done; also how often bytes were brought.
pub(crate) fn search_lacking(
    index: &dyn Index,
    sections: &Lacking<'_>,
    request: &Request<'_>,
) -> (Vec<Candidate>, usize) {
    for rounds in 0..50 {
        match index.search(request, sections).unwrap() {
            Step::Found(found) => return (found.candidates, rounds),
            Step::Wants(wants) => sections.bring(&wants),
        }
    }
    panic!("a search never had enough");
}

/// How a family opens a head.
type Open = fn(&[u8]) -> Result<Box<dyn Index>, crate::FormatError>;

/// Opens and searches bytes in which some are flipped, or the end is missing: any outcome but a panic will do.
pub(crate) fn survive_damage(sections: &Resident<Vec<u8>>, queries: Vectors<'_>, open: Open) {
    let mut random = ChaCha8Rng::seed_from_u64(77);
    for round in 0..1_500 {
        let mut damaged = sections.clone();
        let section = if round % 3 == 0 { 0 } else { random.random_range(0..damaged.0.len()) };
        let bytes = &mut damaged.0[section];
        if bytes.is_empty() {
            continue;
        }
        if round % 5 == 0 {
            bytes.truncate(random.random_range(0..bytes.len()));
        } else {
            for _ in 0..random.random_range(1..4) {
                // The counts and the kinds stand at the front.
                let end = if round % 2 == 0 { bytes.len() } else { bytes.len().min(64) };
                let at = random.random_range(0..end);
                bytes[at] ^= 1 << random.random_range(0..8);
            }
        }
        let Ok(index) = open(&damaged.0[0]) else { continue };
        let _ = index.effort(0.95, 10);
        let words = words(index.rows().min(10_000), &|row| row % 3 == 0);
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        for matching in [None, Some(RowSet::new(&words, count))] {
            let Some(query) = queries.rows(index.dim(), 0, 1) else { continue };
            let request = Request { query, k: 5, matching, effort: Effort::Ivf { probes: 3, rerank: 10 } };
            let _ = index.estimate(&request);
            if let Ok(Step::Found(found)) = index.search(&request, &damaged) {
                assert!(found.candidates.iter().all(|candidate| (candidate.row as usize) < index.rows()));
            }
        }
    }
}
