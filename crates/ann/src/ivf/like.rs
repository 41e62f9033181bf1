//! Builds segments that can be merged with one that is there, unless their rows have moved away from it.

use kernels::dot_f32;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::IvfOptions;
use super::assign::Assigner;
use super::build::build_with;
use super::routing::{Ground, Routing};
use super::train::train;
use crate::build::{BuildError, Control, Rows};
use crate::payload::Payload;
use crate::sample::spread_sample;
use crate::space::Standing;

/// Rows that two routings are compared on.
const COMPARED_ROWS: usize = 1_024;

/// How much farther, as a squared distance, rows may lie from the centroids of an older routing than from those that were trained on
/// them. An older one has mostly more lists, from which like rows lie less far.
const FARTHER_MAX: f64 = 1.2;

/// Builds with `routing`, or, where it suits the rows worse than one of their own does, with that one.
///
/// Codes hold what is left of a vector beside its centroid: of rows that are far from all of them, codes say next to nothing.
/// Costs a training more than [`build_with`].
///
/// # Errors
/// As [`build_with`].
pub fn build_like(
    rows: &dyn Rows,
    routing: &Routing,
    options: &IvfOptions,
    control: &Control,
) -> Result<Payload, BuildError> {
    let own = train(rows, routing.head.metric(), options, control)?;
    let suits = match (residual(rows, routing, control)?, residual(rows, &own, control)?) {
        (Some(theirs), Some(own)) => theirs <= own * FARTHER_MAX,
        // Lists of bits hold the vectors as they are.
        _ => true,
    };
    build_with(rows, if suits { routing } else { &own }, options, control)
}

/// The mean squared distance of sampled rows from their centroids; `None` where there is none.
fn residual(rows: &dyn Rows, routing: &Routing, control: &Control) -> Result<Option<f64>, BuildError> {
    let Ground::Projected(space) = &routing.head.ground else { return Ok(None) };
    if space.dim != rows.dim() {
        return Ok(None);
    }
    let assigner = Assigner::new(routing);
    let mut random = ChaCha8Rng::seed_from_u64(control.seed ^ 0x11ce);
    let mut chosen = spread_sample(rows.len(), COMPARED_ROWS, &mut random);
    chosen.retain(|row| rows.has(*row));
    let (mut sum, mut count) = (0.0, 0_u32);
    let (mut projected, mut standings, mut assigned) = (vec![], vec![], vec![]);
    for row in chosen {
        control.advance(0)?;
        rows.read(row..row + 1, &mut |_, vectors| {
            space.project(vectors, &mut projected, &mut standings);
            if standings.first() != Some(&Standing::Projected) {
                return;
            }
            assigner.assign(&projected, &mut assigned);
            let nearest = assigned.first().map_or(0.0, |(_, half)| 2.0 * half);
            let length = (dot_f32(&projected, &projected) + nearest).max(0.0).sqrt();
            sum += f64::from(space.distance_of_length(length)).powi(2);
            count += 1;
        })?;
    }
    Ok((count > 0).then(|| sum / f64::from(count)))
}
