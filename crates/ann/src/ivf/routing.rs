//! Which lists are near a query? Centroids in two levels, as bytes.

use std::sync::Arc;

use kernels::{ByteQuery, DistanceError, Metric, Query, Vectors, byte_products};

use super::format::{ROUTING_MAGIC, VERSION, element_of, read_codebook, version_of};
use crate::codes::{Code, Codebook};
use crate::head::{HeadReader, HeadWriter, check_version, damaged};
use crate::payload::FormatError;
use crate::space::{Geometry, Space, read_shape, write_shape};

/// Lists from which on a search goes through the upper level.
const TWO_LEVELS_FROM: usize = 2_048;

/// Lists whose centroids are compared for each one that is read, at least.
const COMPARED_PER_PROBE: usize = 8;

/// What centroids are compared in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ground {
    /// Projected vectors.
    Projected(Space),
    /// Bits as they are.
    Bits { metric: Metric, dim: usize },
}

/// A trained division of a column into lists, without the bytes of its centroids.
///
/// The centroids of the lists come first, those of one upper centroid side by side; then the upper ones.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RoutingHead {
    pub(crate) ground: Ground,
    pub(crate) lists: usize,
    /// For each upper centroid the first list that is not below it any more.
    pub(crate) upper_ends: Vec<u32>,
    /// What a step of each centroid counts for, and its squared length; none of bits.
    scales: Vec<f32>,
    squares: Vec<f32>,
}

/// A trained division of a column into lists: centroids, rotation, origin, and the codebook if product codes were asked for. Segments
/// built with the same one are merged without encoding anything anew.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    pub(crate) head: RoutingHead,
    pub(crate) codes: Vec<u8>,
    pub(crate) codebook: Option<Arc<Codebook>>,
}

/// A centroid's elements as bytes: `value = scale · (byte - 128)`.
const ZERO: f32 = 128.0;

impl Routing {
    /// From centroids of lists and upper centroids, projected and row-major.
    pub(crate) fn projected(space: Space, lists: &[f32], upper: &[f32], upper_ends: Vec<u32>) -> Routing {
        let padded = space.padded();
        let (mut scales, mut squares, mut codes) = (vec![], vec![], vec![]);
        for centroid in lists.chunks_exact(padded).chain(upper.chunks_exact(padded)) {
            let largest = centroid.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            let bytes = centroid.iter().map(|value| ((value / scale).round() + ZERO).clamp(1.0, 255.0) as u8);
            let start = codes.len();
            codes.extend(bytes);
            let square: f32 = codes[start..].iter().map(|byte| value_of(scale, *byte) * value_of(scale, *byte)).sum();
            scales.push(scale);
            squares.push(square);
        }
        let head =
            RoutingHead { ground: Ground::Projected(space), lists: lists.len() / padded, upper_ends, scales, squares };
        Routing { head, codes, codebook: None }
    }

    /// From centroids of bits.
    pub(crate) fn bits(metric: Metric, dim: usize, codes: Vec<u8>) -> Routing {
        let lists = codes.len() / (dim / 8);
        let ground = Ground::Bits { metric, dim };
        let head = RoutingHead { ground, lists, upper_ends: vec![], scales: vec![], squares: vec![] };
        Routing { head, codes, codebook: None }
    }

    /// From what a segment keeps of it.
    pub(crate) fn of_segment(
        head: RoutingHead,
        codes: &[u8],
        codebook: Option<Arc<Codebook>>,
    ) -> Result<Routing, FormatError> {
        match codes.len() == head.code_bytes() {
            true => Ok(Routing { head, codes: codes.to_vec(), codebook }),
            false => Err(damaged("centroids of another number")),
        }
    }

    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.head.lists
    }

    /// As bytes, for [`Routing::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = HeadWriter::default();
        head.bytes(ROUTING_MAGIC);
        head.u32(version_of(self.codebook.is_some()));
        self.head.write(&mut head);
        head.bytes(&self.codes);
        if let Some(codebook) = &self.codebook {
            codebook.code().write(&mut head);
            codebook.write(&mut head);
        }
        head.0
    }

    /// Reads what [`Routing::to_bytes`] wrote.
    ///
    /// # Errors
    /// The bytes are no routing, or one of a later version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Routing, FormatError> {
        let mut reader = HeadReader(bytes);
        let version = check_version(&mut reader, *ROUTING_MAGIC, VERSION)?;
        let head = RoutingHead::read(&mut reader)?;
        let codes = reader.bytes(head.code_bytes())?.to_vec();
        let mut codebook = None;
        if version > 1 {
            let code = Code::read(&mut reader, element_of(&head))?;
            codebook = read_codebook(&mut reader, code, &head)?;
        }
        reader.end()?;
        Ok(Routing { head, codes, codebook })
    }
}

fn value_of(scale: f32, byte: u8) -> f32 {
    scale * (f32::from(byte) - ZERO)
}

/// Lists in the order in which they are worth reading.
#[derive(Debug)]
pub(crate) struct Route {
    /// What is ranked by, between the query and a centroid, and the list; sorted as far as `sorted`.
    order: Vec<(f32, u32)>,
    sorted: usize,
    /// Whether every list is in it.
    complete: bool,
}

impl Route {
    fn new(order: Vec<(f32, u32)>, complete: bool) -> Route {
        Route { order, sorted: 0, complete }
    }

    /// The list at a place of the order, if it has been compared.
    pub(crate) fn at(&mut self, place: usize) -> Option<(f32, u32)> {
        if place >= self.sorted {
            self.sort_to((2 * place).max(32));
        }
        self.order.get(place).copied()
    }

    /// Sorts the first `len`.
    fn sort_to(&mut self, len: usize) {
        let len = len.min(self.order.len());
        let by = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        let rest = &mut self.order[self.sorted..];
        if len > self.sorted && len - self.sorted < rest.len() {
            rest.select_nth_unstable_by(len - self.sorted, by);
        }
        if let Some(part) = self.order.get_mut(self.sorted..len) {
            part.sort_unstable_by(by);
        }
        self.sorted = self.sorted.max(len);
    }
}

impl RoutingHead {
    pub(crate) fn metric(&self) -> Metric {
        match &self.ground {
            Ground::Projected(space) => space.metric,
            Ground::Bits { metric, .. } => *metric,
        }
    }

    /// Bytes of a centroid.
    pub(crate) fn centroid_bytes(&self) -> usize {
        match &self.ground {
            Ground::Projected(space) => space.padded(),
            Ground::Bits { dim, .. } => dim / 8,
        }
    }

    /// Bytes of all centroids.
    pub(crate) fn code_bytes(&self) -> usize {
        (self.lists + self.upper_ends.len()) * self.centroid_bytes()
    }

    /// Centroid `index` as floats.
    pub(crate) fn centroid(&self, codes: &[u8], index: usize, out: &mut Vec<f32>) {
        out.clear();
        let bytes = self.centroid_bytes();
        if let (Some(codes), Some(scale)) = (codes.get(index * bytes..(index + 1) * bytes), self.scales.get(index)) {
            out.extend(codes.iter().map(|byte| value_of(*scale, *byte)));
        }
    }

    /// The nearest lists to a projected query: at least `want` of them compared, or all.
    pub(crate) fn route(&self, codes: &[u8], query: &ByteQuery, query_square: f32, want: usize) -> Route {
        let wanted = want.saturating_mul(COMPARED_PER_PROBE);
        if self.lists < TWO_LEVELS_FROM || wanted >= self.lists || self.upper_ends.is_empty() {
            return self.route_to_all(codes, query, query_square);
        }
        let mut upper = vec![];
        self.compare(codes, query, query_square, self.lists..self.lists + self.upper_ends.len(), &mut upper);
        let mut upper = Route::new(upper, true);
        let (mut order, mut place) = (Vec::with_capacity(2 * wanted), 0);
        while let (true, Some((_, index))) = (order.len() < wanted, upper.at(place)) {
            let above = index as usize - self.lists;
            let start = if above == 0 { 0 } else { self.upper_ends[above - 1] as usize };
            self.compare(codes, query, query_square, start..self.upper_ends[above] as usize, &mut order);
            place += 1;
        }
        let complete = order.len() == self.lists;
        Route::new(order, complete)
    }

    /// All lists.
    pub(crate) fn route_to_all(&self, codes: &[u8], query: &ByteQuery, query_square: f32) -> Route {
        let mut order = Vec::with_capacity(self.lists);
        self.compare(codes, query, query_square, 0..self.lists, &mut order);
        Route::new(order, true)
    }

    /// All lists of bits.
    pub(crate) fn route_bits(&self, codes: &[u8], query: Vectors<'_>) -> Result<Route, DistanceError> {
        let Ground::Bits { metric, dim } = self.ground else { return Ok(Route::new(vec![], true)) };
        let mut distances = vec![0.0; self.lists];
        Query::new(metric, dim, query)?.distances(Vectors::Bits(codes), &mut distances)?;
        let order = distances.into_iter().zip(0_u32..).map(|(distance, list)| (distance as f32, list)).collect();
        Ok(Route::new(order, true))
    }

    /// Appends what is ranked by for a range of centroids.
    fn compare(
        &self,
        codes: &[u8],
        query: &ByteQuery,
        query_square: f32,
        centroids: std::ops::Range<usize>,
        out: &mut Vec<(f32, u32)>,
    ) {
        let Ground::Projected(space) = &self.ground else { return };
        let padded = space.padded();
        let mut products = vec![0.0; centroids.len()];
        byte_products(&codes[centroids.start * padded..centroids.end * padded], padded, query, &mut products);
        for (index, product) in centroids.zip(products) {
            let product = self.scales[index] * query.step * (product - ZERO * query.sum as f32);
            let ranked = match space.geometry() {
                Geometry::Euclidean => (query_square + self.squares[index] - 2.0 * product).max(0.0),
                Geometry::InnerProduct => -product,
            };
            out.push((ranked, index as u32));
        }
    }

    pub(crate) fn write(&self, head: &mut HeadWriter) {
        match &self.ground {
            Ground::Projected(space) => space.write(head),
            Ground::Bits { metric, dim } => write_shape(*metric, kernels::ElementType::Bits, *dim, head),
        }
        head.u32(self.lists as u32);
        head.u32(self.upper_ends.len() as u32);
        head.u32s(&self.upper_ends);
        head.f32s(&self.scales);
        head.f32s(&self.squares);
    }

    pub(crate) fn read(head: &mut HeadReader<'_>) -> Result<RoutingHead, FormatError> {
        let (metric, element, dim) = read_shape(head)?;
        let ground = if metric.is_for_bits() {
            Ground::Bits { metric, dim }
        } else {
            Ground::Projected(Space::read((metric, element, dim), head)?)
        };
        let (lists, upper) = (head.count()?, head.count()?);
        let upper_ends = head.u32s(upper)?;
        if lists == 0 || upper > lists || metric.is_for_bits() && upper > 0 {
            return Err(damaged("no list, or more upper centroids than lists"));
        }
        let ordered = upper_ends.windows(2).all(|pair| pair[0] <= pair[1]);
        if !ordered || upper_ends.last().is_some_and(|end| *end as usize != lists) {
            return Err(damaged("the upper centroids do not divide the lists"));
        }
        let floats = if metric.is_for_bits() { 0 } else { lists + upper };
        let (scales, squares) = (head.f32s(floats)?, head.f32s(floats)?);
        Ok(RoutingHead { ground, lists, upper_ends, scales, squares })
    }
}

impl Route {
    /// Whether every list has been compared.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }
}
