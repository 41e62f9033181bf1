//! Exact distances out of the index itself, where it holds vectors without loss: bits, and whole numbers of one byte.

use kernels::{ElementType, Metric, Query, Vectors};

use super::format::{CODES, Coding, Head, ROWS, WHOLE};
use super::source::widen;
use super::space::Map;
use crate::Sections;

/// Above, an f32 may not hold the difference of two whole numbers.
const WHOLE_MAX: f32 = (1 << 22) as f32;

/// Distances of `rows` with the bits of a comparison of the vectors: sums of whole numbers are exact in whatever order and type.
///
/// `None` if the vectors are not held without loss, the query is none of such numbers, a row has no vector, or bytes are missing.
/// Cost: that of comparing vectors of bytes.
pub(super) fn distances(head: &Head, query: Vectors<'_>, rows: &[u32], sections: &dyn Sections) -> Option<Vec<f64>> {
    let held = Held::of(head)?;
    let bits = head.element == ElementType::Bits;
    let length = if bits { head.dim.div_ceil(8) } else { head.dim };
    if query.len() != length || (query.element_type() == ElementType::Bits) != bits {
        return None;
    }
    let bytes = match (query, held.shift) {
        (Vectors::Bits(values), _) => values.to_vec(),
        (_, Some(shift)) => to_bytes(query, shift)?,
        _ => return None,
    };
    let of_bytes = |values| if bits { Vectors::Bits(values) } else { Vectors::U8(values) };
    let asked = Query::new(held.metric, head.dim, of_bytes(&bytes)).ok()?;
    let records = sections.get(held.section, 0..head.vertices * held.record_bytes)?;
    let row_map =
        if head.has_row_map { Some(sections.get(ROWS, 0..head.vertices * 4)?.as_chunks::<4>().0) } else { None };
    let mut distances = vec![0.0; rows.len()];
    for (row, distance) in rows.iter().zip(&mut distances) {
        let vertex = match row_map {
            Some(map) => map.binary_search_by_key(row, |row| u32::from_le_bytes(*row)).ok()?,
            None => *row as usize,
        };
        let record = records.get(vertex.checked_mul(held.record_bytes)?..)?.get(..length)?;
        asked.distances(of_bytes(record), std::slice::from_mut(distance)).ok()?;
    }
    Some(distances)
}

/// Where vectors are held without loss.
struct Held {
    section: usize,
    record_bytes: usize,
    metric: Metric,
    /// What stands for a byte of 128; absent for bits.
    shift: Option<f32>,
}

impl Held {
    fn of(head: &Head) -> Option<Self> {
        let record_bytes = head.record_bytes();
        let (section, record_bytes, shift) = match (&head.coding, head.whole) {
            (Coding::Bits(metric), _) => {
                return Some(Self { section: CODES, record_bytes, metric: *metric, shift: None });
            }
            (_, Some(whole)) => (WHOLE, whole.layout.bytes(), whole.shift),
            (Coding::Scalar(_, space), None) => match space.map {
                Map::Shift(shift) => (CODES, record_bytes, shift),
                Map::Affine(_) => return None,
            },
        };
        (shift.abs() <= WHOLE_MAX).then_some(Self { section, record_bytes, metric: Metric::L2, shift: Some(shift) })
    }
}

/// The bytes that a vector would be held as, if it can be.
fn to_bytes(vector: Vectors<'_>, shift: f32) -> Option<Vec<u8>> {
    let mut floats = vec![0.0_f32; vector.len()];
    widen(vector, &mut floats);
    let mut bytes = vec![0_i8; floats.len()];
    floats.iter_mut().for_each(|value| *value -= shift);
    kernels::round_to_bytes(&floats, 1.0, &mut bytes);
    let is_held = floats.iter().zip(&bytes).fold(true, |all, (value, byte)| all & (f32::from(*byte) == *value));
    is_held.then(|| bytes.into_iter().map(|byte| byte as u8 ^ 0x80).collect())
}
