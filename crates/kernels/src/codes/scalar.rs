//! Scalar-quantized codes of 2, 4 or 8 bits per element, against a query of i8.
//!
//! Record of `64·lines` bytes, little-endian. In line `l`, plane `p` (the bits from `p·bits` of each byte) of byte `b`
//! is element `l·64·planes + p·width + b`, where `planes = 8/bits` and `width` is 64, in the last line 56. Its last 8
//! bytes are the step (f32) and the norm (f32). Element `c` stands for `step·(c - zero)`.

use super::CodeError;
use crate::isa::{Isa, Present};
use crate::rounding;

/// Bytes of a line.
const LINE: usize = 64;
/// Bytes of step and norm.
const FACTORS: usize = 8;
/// Longest record: sums of its products stay in i32, and nearly in the 24 bits of f32.
const LINES_MAX: usize = 64;
/// Steps that are tried for a vector, from the one that spans its largest element down to a quarter of it.
const STEPS: usize = 16;

/// How a vector is written as a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeLayout {
    bits: u32,
    lines: usize,
    zero: f32,
    whole: bool,
}

impl CodeLayout {
    /// The shortest record for `dim` elements of `bits` bits (2, 4 or 8); `None` for other bits, no elements, or too many.
    pub fn new(bits: u32, dim: usize) -> Option<Self> {
        let bytes = matches!(bits, 2 | 4 | 8).then(|| dim.div_ceil(8 / bits as usize))? + FACTORS;
        let lines = bytes.div_ceil(LINE);
        let zero = ((1_u32 << bits) - 1) as f32 / 2.0;
        (dim > 0 && lines <= LINES_MAX).then_some(Self { bits, lines, zero, whole: false })
    }

    /// Records of 8 bits that hold whole numbers from -128 to 127 without loss.
    pub fn whole(dim: usize) -> Option<Self> {
        Some(Self { zero: 128.0, whole: true, ..Self::new(8, dim)? })
    }

    /// Bits of an element.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Whether it is of [`whole`](Self::whole) numbers.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Bytes of a record, a multiple of 64.
    pub fn bytes(&self) -> usize {
        self.lines * LINE
    }

    /// Elements that a record has room for.
    pub fn capacity(&self) -> usize {
        (self.bytes() - FACTORS) * self.planes()
    }

    fn planes(&self) -> usize {
        8 / self.bits as usize
    }

    /// Where the elements of a vector of `dim` are, by runs: the first byte, the plane, the elements of one byte each.
    fn segments(&self, dim: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> + use<> {
        let (planes, lines) = (self.planes(), self.lines);
        (0..lines * planes).map_while(move |segment| {
            let (line, plane) = (segment / planes, segment % planes);
            let width = if line + 1 == lines { LINE - FACTORS } else { LINE };
            let start = line * LINE * planes + plane * width;
            (start < dim).then(|| (line * LINE, plane, start..dim.min(start + width)))
        })
    }

    /// Writes a vector as a record: `vector`, at most [`capacity`](Self::capacity) elements (what is beyond is left out); `record`:
    /// [`bytes`](Self::bytes) (a shorter one is left as it is). Its norm becomes that of the codes plus `beside`, the
    /// squared length of what the codes leave out.
    ///
    /// The step is the best of 16 by squared error, refined by least squares. Cost: about `20·d` flops per step tried.
    pub fn encode(&self, vector: &[f32], beside: f32, record: &mut [u8]) {
        let Some(record) = record.get_mut(..self.bytes()) else { return };
        let vector = &vector[..vector.len().min(self.capacity())];
        let step = if self.whole { 1.0 } else { self.best_step(vector) };
        let (inverse, top) = (if step > 0.0 { 1.0 / step } else { 0.0 }, ((1_u32 << self.bits) - 1) as f32);
        // What has no element stands for 0 in records of whole numbers, which are queries too.
        record.fill(if self.whole { self.zero as u8 } else { 0 });
        let (mut product, mut square) = (0.0_f32, 0.0_f32);
        for (bytes, plane, elements) in self.segments(vector.len()) {
            for (byte, value) in record[bytes..].iter_mut().zip(&vector[elements]) {
                let code = round((value * inverse + self.zero).max(0.0).min(top));
                *byte = if self.whole { code as u8 } else { *byte | (code as u8) << (plane as u32 * self.bits) };
                product += value * (code - self.zero);
                square += (code - self.zero) * (code - self.zero);
            }
        }
        let step = if self.whole || square == 0.0 { step } else { product / square };
        let norm = step * step * square + beside;
        let factors = self.bytes() - FACTORS;
        record[factors..factors + 4].copy_from_slice(&step.to_le_bytes());
        record[factors + 4..].copy_from_slice(&norm.to_le_bytes());
    }

    /// The step of the least squared error among those tried.
    fn best_step(&self, vector: &[f32]) -> f32 {
        let largest = rounding::largest_on(Present::chosen(), vector);
        let full = largest / self.zero;
        if self.bits == 8 || full <= 0.0 || !full.is_finite() {
            return if full.is_finite() { full } else { 0.0 };
        }
        let step = |index: usize| full * (1.0 - 0.75 * index as f32 / STEPS as f32);
        let isa = Present::chosen();
        let best = (0..STEPS).map(|index| (squared_error(isa, vector, step(index), self.zero), index));
        best.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(full, |(_, index)| step(index))
    }

    /// Reads a record back: one value per place of `vector`, as the codes have it.
    pub fn decode(&self, record: &[u8], vector: &mut [f32]) {
        let Some(record) = record.get(..self.bytes()) else { return };
        let (step, _) = factors(record);
        let mask = ((1_u32 << self.bits) - 1) as u8;
        for (bytes, plane, elements) in self.segments(vector.len().min(self.capacity())) {
            for (byte, value) in record[bytes..].iter().zip(&mut vector[elements]) {
                *value = step * (f32::from(byte >> (plane as u32 * self.bits) & mask) - self.zero);
            }
        }
    }
}

crate::compiled::compiled_for_each! {
    fn signed(lines: &[[u8; LINE]], query: &mut [QueryLine]) -> i32 = signed_plain
}

/// Writes the codes of a record about 128, zeros in the place of its factors, and returns their sum.
#[inline(always)]
fn signed_plain(lines: &[[u8; LINE]], query: &mut [QueryLine]) -> i32 {
    // Sums of at most 64 lines fit i16.
    let mut sums = [0_i16; LINE];
    let last = query.len().saturating_sub(1);
    for (at, (query, codes)) in query.iter_mut().zip(lines).enumerate() {
        query.0 = codes.map(|code| (code ^ 0x80) as i8);
        if at == last {
            query.0[LINE - FACTORS..].fill(0);
        }
        sums.iter_mut().zip(query.0).for_each(|(sum, value)| *sum = sum.wrapping_add(i16::from(value)));
    }
    sums.iter().fold(0_i32, |sum, lane| sum.wrapping_add(i32::from(*lane)))
}

crate::compiled::compiled_for_each! {
    /// Of all elements, if they are written as codes with this step and zero.
    fn squared_error(vector: &[f32], step: f32, zero: f32) -> f32 = squared_error_plain
}

/// In sixteen lanes, so that the compiler makes vector instructions of it.
#[inline(always)]
fn squared_error_plain(vector: &[f32], step: f32, zero: f32) -> f32 {
    const LANES: usize = 16;
    let (inverse, top) = (1.0 / step, 2.0 * zero);
    let error = |value: f32| {
        let code = value * inverse + zero;
        let code = if code > 0.0 { code } else { 0.0 };
        let error = value - step * (round(if code < top { code } else { top }) - zero);
        error * error
    };
    let (blocks, rest) = vector.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for block in blocks {
        for (sum, value) in sums.iter_mut().zip(block) {
            *sum += error(*value);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| error(*value)).sum::<f32>()
}

/// To the nearest whole number, for values from 0 up to 2^22: the sum leaves no bits for a fraction.
#[inline(always)]
fn round(value: f32) -> f32 {
    const SHIFT: f32 = (1 << 23) as f32;
    (value + SHIFT) - SHIFT
}

/// Step and norm of a record.
#[inline(always)]
fn factors(record: &[u8]) -> (f32, f32) {
    let float = |at: usize| f32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let at = record.len() - FACTORS;
    (float(at), float(at + 4))
}

/// A line of the query.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct QueryLine([i8; LINE]);

/// A query of i8, in the order of the codes' planes; zero where a record has its factors.
#[derive(Clone, Debug)]
pub struct CodeQuery {
    layout: CodeLayout,
    /// `planes` for every line of a record.
    lines: Vec<QueryLine>,
    /// `-2 · scale` of the query.
    factor: f32,
    /// What a sum of products lacks for the codes' zero not being 0.
    offset: f32,
    is_exact: bool,
    isa: Present,
}

impl CodeQuery {
    /// A query of zeros, on the instruction set that [`crate::isa()`] chose.
    pub fn new(layout: CodeLayout) -> Self {
        let lines = vec![QueryLine([0; LINE]); layout.lines * layout.planes()];
        Self { layout, lines, factor: 0.0, offset: 0.0, is_exact: false, isa: Present::chosen() }
    }

    /// Whether it is a vector of whole numbers that was rounded nowhere, so that its scores with such records are exact (but for what
    /// f32 rounds of sums beyond 2^24).
    pub fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// How the records are made that it goes with.
    pub fn layout(&self) -> &CodeLayout {
        &self.layout
    }

    /// Replaces the vector, rounded to 8 bits by its largest element. Whole numbers from -128 to 127 are kept as they are, if the
    /// layout is one of whole numbers. Elements beyond the record's capacity are left out.
    pub fn set(&mut self, vector: &[f32]) {
        let vector = &vector[..vector.len().min(self.layout.capacity())];
        self.is_exact = self.layout.whole && rounding::are_bytes_on(self.isa, vector);
        let scale = if self.is_exact { 1.0 } else { rounding::largest_on(self.isa, vector) / 127.0 };
        let inverse = if scale > 0.0 && scale.is_finite() { 1.0 / scale } else { 0.0 };
        self.lines.fill(QueryLine([0; LINE]));
        let mut sum = 0_i32;
        for (bytes, plane, elements) in self.layout.segments(vector.len()) {
            let line = &mut self.lines[bytes / LINE * self.layout.planes() + plane];
            sum += rounding::round_on(self.isa, &vector[elements], inverse, &mut line.0);
        }
        self.factor = if scale.is_finite() { -2.0 * scale } else { 0.0 };
        self.offset = -self.layout.zero * sum as f32;
    }

    /// Replaces the vector by that of a record of [`CodeLayout::whole`] numbers, without loss; for other layouts, by zeros.
    pub fn set_record(&mut self, record: &[u8]) {
        let mut sum = 0_i32;
        let (lines, _) = record.as_chunks::<LINE>();
        if !self.layout.whole || lines.len() < self.layout.lines {
            self.lines.fill(QueryLine([0; LINE]));
        } else {
            sum = signed(self.isa, lines, &mut self.lines);
        }
        self.is_exact = self.layout.whole;
        self.factor = -2.0;
        self.offset = -self.layout.zero * sum as f32;
    }

    /// Writes `norm - 2·(query · vector)` for each of `records`, numbers of records of `codes`, into `out`, one place
    /// each: with the squared norm of the query added, the squared Euclidean distance.
    ///
    /// The same bits on every instruction set: products are summed as whole numbers.
    /// Cost: `64·lines·planes` products per record, 64 a cycle with VNNI; no allocation.
    ///
    /// # Errors
    /// [`CodeError`] if a record is not in `codes`, or `out` has another number of places. Nothing was written.
    pub fn scores(&self, codes: &[u8], records: &[u32], out: &mut [f32]) -> Result<(), CodeError> {
        super::check(codes, self.layout.bytes(), records, out.len())?;
        match self.isa.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine; the records were checked.
            Isa::Avx512 => unsafe { x86::scores_avx512(self, codes, records, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { x86::scores_avx2(self, codes, records, out) },
            _ => self.scores_portable(codes, records, out),
        }
        Ok(())
    }

    /// The twin of the vector kernels. On AArch64 the compiler makes NEON instructions of its inner loop.
    fn scores_portable(&self, codes: &[u8], records: &[u32], out: &mut [f32]) {
        let (bytes, planes, bits) = (self.layout.bytes(), self.layout.planes(), self.layout.bits);
        let mask = ((1_u32 << bits) - 1) as u8;
        for (record, out) in records.iter().zip(out) {
            let record = &codes[*record as usize * bytes..][..bytes];
            let mut dot = 0_i32;
            for (line, query) in record.as_chunks::<LINE>().0.iter().zip(self.lines.chunks_exact(planes)) {
                for (plane, query) in (0_u32..).zip(query) {
                    let product =
                        |(code, query): (&u8, &i8)| i32::from(code >> (plane * bits) & mask) * i32::from(*query);
                    dot = line.iter().zip(&query.0).map(product).fold(dot, i32::wrapping_add);
                }
            }
            *out = self.score(dot, factors(record));
        }
    }

    /// The one place where sums become scores for all but AVX-512, which does the same operations in the same order.
    #[inline(always)]
    fn score(&self, dot: i32, (step, norm): (f32, f32)) -> f32 {
        norm + (step * self.factor) * (dot as f32 + self.offset)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{CodeQuery, FACTORS, LINE, QueryLine, factors};

    /// Four records at a time, so that one waits for memory while another is multiplied, and four sums are one register.
    ///
    /// # Safety
    /// Every record is in `codes`.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) unsafe fn scores_avx512(query: &CodeQuery, codes: &[u8], records: &[u32], out: &mut [f32]) {
        // SAFETY: the caller's.
        unsafe {
            match (query.layout.bits, query.layout.lines) {
                (4, 2) => scores_of::<4>(query, 2, codes, records, out),
                (4, 3) => scores_of::<4>(query, 3, codes, records, out),
                (4, lines) => scores_of::<4>(query, lines, codes, records, out),
                (2, lines) => scores_of::<2>(query, lines, codes, records, out),
                (_, 4) => scores_of::<8>(query, 4, codes, records, out),
                (_, lines) => scores_of::<8>(query, lines, codes, records, out),
            }
        }
    }

    /// Inlined with the number of lines that the caller knows, so that the loops over them are unrolled.
    ///
    /// # Safety
    /// Every record is in `codes`.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn scores_of<const BITS: u32>(
        query: &CodeQuery,
        lines: usize,
        codes: &[u8],
        records: &[u32],
        out: &mut [f32],
    ) {
        let (bytes, lines_of_query) = (lines * LINE, query.lines.as_slice());
        assert!(lines_of_query.len() * BITS as usize == lines * 8);
        let (factor, offset) = (_mm_set1_ps(query.factor), _mm_set1_ps(query.offset));
        for (records, out) in records.chunks(4).zip(out.chunks_mut(4)) {
            let last = records.len() - 1;
            let record: [*const u8; 4] =
                std::array::from_fn(|i| codes.as_ptr().wrapping_add(records[i.min(last)] as usize * bytes));
            // SAFETY: each record has `bytes` bytes, and the query `lines · planes` lines (the assertion).
            let (dots, [steps, norms]) =
                unsafe { (dots_of_four::<BITS>(lines_of_query, lines, record), factors_of_four(record, bytes)) };
            let dots = _mm_add_ps(_mm_cvtepi32_ps(dots), offset);
            let scores = _mm_add_ps(norms, _mm_mul_ps(_mm_mul_ps(steps, factor), dots));
            let mut four = [0.0_f32; 4];
            // SAFETY: four places.
            unsafe { _mm_storeu_ps(four.as_mut_ptr(), scores) };
            out.copy_from_slice(&four[..out.len()]);
        }
    }

    /// # Safety
    /// Each record has `lines` lines, the query `lines · 8/BITS`.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn dots_of_four<const BITS: u32>(query: &[QueryLine], lines: usize, records: [*const u8; 4]) -> __m128i {
        let planes = 8 / BITS as usize;
        let mask = _mm512_set1_epi8(((1_u32 << BITS) - 1) as u8 as i8);
        let mut sums = [_mm512_setzero_si512(); 4];
        for line in 0..lines {
            for (sum, record) in sums.iter_mut().zip(records) {
                // SAFETY: the caller's.
                let mut codes = unsafe { _mm512_loadu_si512(record.add(line * LINE).cast()) };
                for plane in 0..planes {
                    // SAFETY: the caller's; a line has 64 bytes and is aligned to them.
                    let query = unsafe { _mm512_load_si512(query.as_ptr().add(line * planes + plane).cast()) };
                    let values = if BITS == 8 { codes } else { _mm512_and_si512(codes, mask) };
                    *sum = _mm512_dpbusd_epi32(*sum, values, query);
                    codes = match BITS {
                        4 => _mm512_srli_epi16::<4>(codes),
                        _ => _mm512_srli_epi16::<2>(codes),
                    };
                }
            }
        }
        let pair = |a: __m512i, b: __m512i| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low, high) = (pair(sums[0], sums[1]), pair(sums[2], sums[3]));
        let four = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
        let four = _mm256_add_epi32(_mm512_castsi512_si256(four), _mm512_extracti64x4_epi64::<1>(four));
        _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four))
    }

    /// The steps and the norms.
    ///
    /// # Safety
    /// Each record has `bytes` bytes.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    #[inline]
    unsafe fn factors_of_four(records: [*const u8; 4], bytes: usize) -> [__m128; 2] {
        // SAFETY: the last eight bytes of a record.
        let load = |i: usize| unsafe { _mm_castsi128_ps(_mm_loadl_epi64(records[i].add(bytes - FACTORS).cast())) };
        let (low, high) = (_mm_unpacklo_ps(load(0), load(1)), _mm_unpacklo_ps(load(2), load(3)));
        [_mm_movelh_ps(low, high), _mm_movehl_ps(high, low)]
    }

    /// One record at a time.
    ///
    /// # Safety
    /// Every record is in `codes`.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn scores_avx2(query: &CodeQuery, codes: &[u8], records: &[u32], out: &mut [f32]) {
        let bytes = query.layout.bytes();
        for (record, out) in records.iter().zip(out) {
            let record = &codes[*record as usize * bytes..][..bytes];
            let dot = match query.layout.bits {
                2 => dot_avx2::<2>(&query.lines, record),
                4 => dot_avx2::<4>(&query.lines, record),
                _ => dot_avx2::<8>(&query.lines, record),
            };
            *out = query.score(dot, factors(record));
        }
    }

    /// `vpmaddubsw` for codes of up to four bits, whose pairs of products stay far from the limits of i16 in all planes
    /// together (2 · 2 · 15 · 128); codes of eight bits are widened.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn dot_avx2<const BITS: u32>(query: &[QueryLine], record: &[u8]) -> i32 {
        let planes = 8 / BITS as usize;
        let mask = _mm256_set1_epi8(((1_u32 << BITS) - 1) as u8 as i8);
        let mut sum = _mm256_setzero_si256();
        for (half, codes) in record.as_chunks::<32>().0.iter().enumerate() {
            // SAFETY: a chunk has 32 bytes.
            let codes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
            let lines = &query[half / 2 * planes..][..planes];
            // SAFETY: half a line of 64 bytes.
            let load = |line: &QueryLine| unsafe { _mm256_load_si256(line.0.as_ptr().add(half % 2 * 32).cast()) };
            if BITS == 8 {
                let query = load(&lines[0]);
                let (even, odd) =
                    (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(query)), _mm256_srai_epi16::<8>(query));
                let evens = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), even);
                sum = _mm256_add_epi32(
                    sum,
                    _mm256_add_epi32(evens, _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes), odd)),
                );
                continue;
            }
            let (mut pairs, mut rest) = (_mm256_setzero_si256(), codes);
            for line in lines {
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_and_si256(rest, mask), load(line)));
                rest = if BITS == 4 { _mm256_srli_epi16::<4>(rest) } else { _mm256_srli_epi16::<2>(rest) };
            }
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b1110>(sum));
        _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<1>(sum)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const RECORDS: usize = 9;

    fn floats(random: &mut Random, count: usize) -> Vec<f32> {
        (0..count).map(|_| random.float()).collect()
    }

    /// All instruction sets against the decoded vectors and against each other.
    fn check(layout: CodeLayout, dim: usize) {
        let mut random = Random::new(dim as u64);
        let mut codes = vec![0_u8; RECORDS * layout.bytes()];
        for record in codes.chunks_exact_mut(layout.bytes()) {
            layout.encode(&floats(&mut random, dim), 0.5, record);
        }
        let vector = floats(&mut random, dim);
        let records: Vec<u32> = (0..RECORDS as u32).rev().collect();
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available().into_iter().filter_map(Isa::present) {
            let mut query = CodeQuery { isa, ..CodeQuery::new(layout) };
            query.set(&vector);
            let mut out = vec![0.0; RECORDS];
            query.scores(&codes, &records, &mut out).unwrap();
            assert_eq!(&out, first.get_or_insert(out.clone()), "{isa:?} {layout:?} dim {dim}");
        }
        for (record, score) in records.iter().zip(first.unwrap_or_default()) {
            let mut decoded = vec![0.0; dim];
            layout.decode(&codes[*record as usize * layout.bytes()..], &mut decoded);
            let (dot, norm) =
                decoded.iter().zip(&vector).fold((0.0, 0.0), |(dot, norm), (a, b)| (dot + a * b, norm + a * a));
            let tolerance = 0.01 * (1.0 + (dim as f32).sqrt());
            assert!((score - (norm + 0.5 - 2.0 * dot)).abs() < tolerance, "{layout:?} dim {dim}: {score}");
        }
    }

    #[test]
    fn every_instruction_set_scores_every_dimension_of_every_width() {
        for dim in (1..=257).chain([1000]) {
            for bits in [2, 4, 8] {
                check(CodeLayout::new(bits, dim).unwrap(), dim);
            }
        }
    }

    #[test]
    fn extreme_codes_do_not_overflow() {
        for bits in [2, 4, 8] {
            let layout = CodeLayout::new(bits, 1000).unwrap();
            let codes = vec![255_u8; layout.bytes()];
            for value in [1.0_f32, -1.0] {
                let mut scores = Isa::available().into_iter().filter_map(Isa::present).map(|isa| {
                    let mut query = CodeQuery { isa, ..CodeQuery::new(layout) };
                    query.set(&vec![value; 1000]);
                    let mut out = [0.0];
                    query.scores(&codes, &[0], &mut out).unwrap();
                    out[0].to_bits()
                });
                let first = scores.next();
                assert!(scores.all(|score| Some(score) == first));
            }
        }
    }

    #[test]
    fn whole_numbers_have_exact_distances() {
        let layout = CodeLayout::whole(128).unwrap();
        let mut random = Random::new(1);
        let mut whole = || (0..128).map(|_| random.below(256) as f32 - 128.0).collect::<Vec<f32>>();
        let (vector, asked) = (whole(), whole());
        let mut record = vec![0; layout.bytes()];
        layout.encode(&vector, 0.0, &mut record);
        let mut query = CodeQuery::new(layout);
        query.set(&asked);
        let mut out = [0.0];
        query.scores(&record, &[0], &mut out).unwrap();
        let expected: f32 = vector.iter().zip(&asked).map(|(a, b)| a * a - 2.0 * a * b).sum();
        assert_eq!(out, [expected]);
        let mut other = vec![0; layout.bytes()];
        layout.encode(&asked, 0.0, &mut other);
        query.set_record(&other);
        query.scores(&record, &[0], &mut out).unwrap();
        assert_eq!(out, [expected]);
    }

    #[test]
    fn four_bits_keep_most_of_a_vector() {
        let layout = CodeLayout::new(4, 240).unwrap();
        assert_eq!((layout.bytes(), layout.capacity()), (128, 240));
        let vector = floats(&mut Random::new(3), 240);
        let (mut record, mut decoded) = (vec![0; 128], vec![0.0; 240]);
        layout.encode(&vector, 0.0, &mut record);
        layout.decode(&record, &mut decoded);
        let error: f32 = vector.iter().zip(&decoded).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!(error < 0.01 * vector.iter().map(|a| a * a).sum::<f32>(), "{error}");
    }

    #[test]
    fn what_is_no_number_is_encoded_as_nothing_worse_than_a_wrong_distance() {
        for value in [f32::NAN, f32::INFINITY, 0.0] {
            let layout = CodeLayout::new(4, 8).unwrap();
            let mut record = [0; 64];
            layout.encode(&[value; 8], 0.0, &mut record);
            let mut query = CodeQuery::new(layout);
            query.set(&[value; 8]);
            query.scores(&record, &[0], &mut [0.0]).unwrap();
        }
    }
}
