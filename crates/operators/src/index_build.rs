//! Builds a segment of an index from the vectors of data files: the way between `storage`, which has the files, and `ann`, which
//! has the families.

use std::ops::Range;
use std::sync::Arc;

use ann::flat::FlatOptions;
use ann::graph::GraphOptions;
use ann::ivf::{Code, IvfOptions};
use ann::{BuildError, Index, Payload, Rows};
use arrow::array::{Array, ArrayRef};
use datafusion::common::{exec_datafusion_err, internal_datafusion_err};
use datafusion::error::{DataFusionError, Result};
use kernels::{ElementType, Vectors};
use planner::index_spec::{Family, IndexSpec, ListCode};
use planner::vector_type::VectorType;
use planner::vectors::VectorArray;
use roaring::RoaringBitmap;
use storage::{NewSegment, NewUnit, Section, Segment, Snapshot, Tier, UncoveredUnit, VectorChunkRef};
use tokio::runtime::Handle;

use crate::external;
use crate::index_merge::SegmentBytes;

pub use ann::Control as BuildControl;

/// Rows up to which `auto` builds a graph: beyond, its codes and neighbors outgrow the memory of most machines.
const AUTO_GRAPH_ROWS_MAX: usize = 20_000_000;

/// Rows that a build learns from, about.
const SAMPLE_ROWS: usize = 65_536;

/// What a segment is built of.
#[derive(Debug)]
pub struct SegmentBuild {
    /// The version whose files these are.
    pub snapshot: Snapshot,
    /// The column of vectors.
    pub column: String,
    /// What the index is to be.
    pub spec: IndexSpec,
    /// Data files with rows that no segment covers; what is covered or deleted is left out.
    pub units: Vec<UncoveredUnit>,
    /// A segment of the index whose routing is used, if it has one, so that both can be merged.
    pub like: Option<Arc<Segment>>,
    /// Threads that build.
    pub threads: usize,
    /// Microseconds since the epoch.
    pub now_us: i64,
}

impl SegmentBuild {
    /// Bytes that the build holds at once, by estimate: of each row its codes twice, of a graph neighbors and their candidates too;
    /// a sample, and the chunk that each thread reads.
    pub fn bytes(&self) -> usize {
        let rows: u64 = self.units.iter().map(|unit| unit.rows).sum();
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        let field = self.snapshot.schema().field_with_name(&self.column).cloned();
        let vectors = field.ok().as_ref().and_then(VectorType::of_field);
        let (dim, raw) = vectors.map_or((0, 0), |vectors| {
            (vectors.dim, crate::index_search::element_type(vectors).bytes_per_row(vectors.dim))
        });
        let per_row = match self.spec.family {
            Family::Auto | Family::Graph { .. } => dim + 1_024,
            Family::Flat { code } => 64 + 2 * code_bytes(code, dim, raw),
            Family::Ivf { code, spill, .. } => (64 + 2 * code_bytes(code, dim, raw)) * (1 + usize::from(spill)),
        };
        let chunks = self.units.iter().flat_map(|unit| &unit.chunks).map(|chunk| chunk.rows).max().unwrap_or(0);
        let chunk = usize::try_from(chunks).unwrap_or(usize::MAX).saturating_mul(raw);
        let sample = rows.min(SAMPLE_ROWS).saturating_mul(4 * dim);
        rows.saturating_mul(per_row).saturating_add(self.threads.saturating_mul(2 * chunk)).saturating_add(2 * sample)
    }

    /// Builds it on threads of its own. Cancelled through `control`, which also tells the progress.
    ///
    /// # Errors
    /// Vectors that cannot be read; a cancelled build.
    pub async fn run(self, control: Arc<BuildControl>) -> Result<NewSegment> {
        let rows = SegmentRows::gather(&self).await?;
        let units = self.units.iter().zip(&rows.absent);
        let units = units
            .map(|(unit, absent)| NewUnit { file: unit.file.clone(), rows: unit.rows, absent: absent.clone() })
            .collect();
        let (spec, like, threads, now_us) = (self.spec, self.like, self.threads, self.now_us);
        let work = move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
            let pool = pool.map_err(|error| exec_datafusion_err!("the build has no threads: {error}"))?;
            pool.install(|| build(&rows, &spec, like.as_deref(), &control))
                .map_err(|error| exec_datafusion_err!("{error}"))
        };
        let built = tokio::task::spawn_blocking(work).await;
        let (family, payload) = built.map_err(|error| internal_datafusion_err!("the build ended early: {error}"))??;
        let sections = payload.sections.into_iter().map(stored).collect();
        Ok(NewSegment { family: family.into(), sections, units, calibration: String::new(), built_at_us: now_us })
    }
}

/// Bytes of the code of a vector.
fn code_bytes(code: ListCode, dim: usize, raw: usize) -> usize {
    match code {
        ListCode::Raw => raw,
        ListCode::Scalar8 => dim,
        ListCode::Scalar4 => dim / 2,
        ListCode::Rabitq(bits) => dim * usize::from(bits) / 8 + 16,
        ListCode::Product { bits, dims } => dim * usize::from(bits) / (8 * usize::from(dims.max(1))) + 8,
    }
}

pub(crate) fn stored(section: ann::Section) -> Section {
    let tier = match section.tier {
        ann::Tier::Pinned => Tier::Pinned,
        ann::Tier::Hot => Tier::Hot,
        ann::Tier::Warm => Tier::Warm,
    };
    Section { tier, bytes: section.bytes.into() }
}

fn build(
    rows: &SegmentRows,
    spec: &IndexSpec,
    like: Option<&Segment>,
    control: &BuildControl,
) -> std::result::Result<(&'static str, Payload), BuildError> {
    let family = match spec.family {
        Family::Auto if rows.rows <= AUTO_GRAPH_ROWS_MAX => {
            Family::Graph { degree: None, ef_construction: None, bits: None }
        }
        Family::Auto if rows.element() == ElementType::Bits => {
            Family::Ivf { lists: None, code: ListCode::Raw, spill: false, score_threshold: 0.0 }
        }
        Family::Auto => Family::Ivf { lists: None, code: ListCode::Rabitq(5), spill: false, score_threshold: 0.0 },
        family => family,
    };
    match family {
        Family::Ivf { lists, code, spill, score_threshold } => {
            let options = IvfOptions { lists, code: list_code(code), spill, score_threshold, ..IvfOptions::default() };
            let like = like.filter(|like| like.family() == IVF);
            // A damaged one is refused by whoever searches it.
            let payload = match like.and_then(|like| ann::ivf::routing_of(&SegmentBytes(like)).ok()) {
                Some(routing) => ann::ivf::build_like(rows, &routing, &options, control),
                None => ann::ivf::build(rows, spec.metric, &options, control),
            };
            payload.map(|payload| (IVF, payload))
        }
        Family::Flat { code } => {
            let options = FlatOptions { code: list_code(code) };
            ann::flat::build(rows, spec.metric, &options, control).map(|payload| (FLAT, payload))
        }
        Family::Auto | Family::Graph { .. } => {
            let mut options = GraphOptions::default();
            if let Family::Graph { degree, ef_construction, bits } = family {
                options.m = degree.unwrap_or(options.m);
                options.ef_construction = ef_construction.unwrap_or(options.ef_construction);
                options.bits = bits.map(u32::from);
            }
            ann::graph::build(rows, spec.metric, &options, control).map(|payload| (GRAPH, payload))
        }
    }
}

const GRAPH: &str = "graph";
pub(crate) const IVF: &str = "ivf";
const FLAT: &str = "flat";

fn list_code(code: ListCode) -> Code {
    match code {
        ListCode::Raw => Code::Raw,
        ListCode::Scalar8 => Code::Scalar8,
        ListCode::Scalar4 => Code::Scalar4,
        ListCode::Rabitq(bits) => Code::Rabitq { bits },
        ListCode::Product { bits, dims } => Code::Pq { bits, dims },
    }
}

/// The index in a segment, opened once and kept with it.
///
/// # Errors
/// A segment of a family that this program does not know, or whose head is damaged.
pub(crate) fn opened(segment: &Segment) -> std::result::Result<Arc<Box<dyn Index>>, String> {
    segment.parsed(|segment| {
        let head = segment.section(0);
        let index = match segment.family() {
            GRAPH => ann::graph::open(head),
            IVF => ann::ivf::open(head),
            FLAT => ann::flat::open(head),
            other => {
                return Err(format!("this program knows no index family {other}; REINDEX builds one that it knows"));
            }
        };
        index.map_err(|error| error.to_string())
    })
}

/// The vectors of the units of a segment, one unit after the other.
struct SegmentRows {
    snapshot: Snapshot,
    vector_type: VectorType,
    rows: usize,
    /// Where each chunk begins among the local rows.
    chunks: Vec<(usize, VectorChunkRef)>,
    /// Bit `r % 64` of word `r / 64`: whether the local row is in the segment.
    has: Vec<u64>,
    /// Offsets in each unit that are left out though they may have a vector.
    absent: Vec<RoaringBitmap>,
    handle: Handle,
}

impl SegmentRows {
    /// Looks through all vectors once, for those that are missing.
    async fn gather(build: &SegmentBuild) -> Result<Self> {
        let schema = build.snapshot.schema();
        let field = schema.field_with_name(&build.column).ok();
        let Some(vector_type) = field.and_then(VectorType::of_field) else {
            return Err(internal_datafusion_err!("column {} holds no vectors", build.column));
        };
        let count = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX);
        let rows = build.units.iter().map(|unit| count(unit.rows)).sum();
        let mut all = Self {
            snapshot: build.snapshot.clone(),
            vector_type,
            rows,
            chunks: vec![],
            has: vec![0; rows.div_ceil(64)],
            absent: vec![],
            handle: Handle::current(),
        };
        let mut start = 0;
        for unit in &build.units {
            let absent = match &unit.uncovered {
                None => unit.deleted.clone(),
                Some(uncovered) => {
                    let mut others = RoaringBitmap::new();
                    others.insert_range(0..u32::try_from(unit.rows).unwrap_or(u32::MAX));
                    others - uncovered
                }
            };
            for chunk in &unit.chunks {
                let offset = count(chunk.first_address & u64::from(u32::MAX));
                let loaded = build.snapshot.load_vectors(chunk).await.map_err(external)?;
                let mut note = |at: u32| {
                    let within = u32::try_from(offset).unwrap_or(u32::MAX).saturating_add(at);
                    if !absent.contains(within) {
                        let row = start + offset + at as usize;
                        all.has[row / 64] |= 1 << (row % 64);
                    }
                };
                match &loaded.live {
                    Some(live) => live.iter().for_each(&mut note),
                    None => (0..u32::try_from(loaded.vectors.len()).unwrap_or(u32::MAX)).for_each(&mut note),
                }
                all.chunks.push((start + offset, chunk.clone()));
            }
            all.absent.push(absent);
            start += count(unit.rows);
        }
        Ok(all)
    }
}

impl Rows for SegmentRows {
    fn len(&self) -> usize {
        self.rows
    }

    fn dim(&self) -> usize {
        self.vector_type.dim
    }

    fn element(&self) -> ElementType {
        crate::index_search::element_type(self.vector_type)
    }

    fn has(&self, row: usize) -> bool {
        self.has.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    fn read(
        &self,
        rows: Range<usize>,
        visit: &mut dyn FnMut(usize, Vectors<'_>),
    ) -> std::result::Result<(), BuildError> {
        let failed = |error: DataFusionError| BuildError::Source(error.to_string());
        let first = self.chunks.partition_point(|(start, _)| *start <= rows.start).saturating_sub(1);
        for (start, chunk) in &self.chunks[first..] {
            if *start >= rows.end {
                break;
            }
            let loaded = self.handle.block_on(self.snapshot.load_vectors(chunk));
            let loaded = loaded.map_err(|error| BuildError::Source(error.to_string()))?;
            let from = rows.start.max(*start);
            let to = rows.end.min(start + loaded.vectors.len());
            if from >= to {
                continue;
            }
            let array: ArrayRef = Arc::new(loaded.vectors.slice(from - start, to - from));
            let vectors = VectorArray::read(&array, &self.vector_type.field("", true), None).map_err(failed)?;
            visit(from, vectors.vectors());
        }
        Ok(())
    }
}
