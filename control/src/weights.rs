//! The weights of the routing decision on their way between callers and data planes: checked once, at the
//! control port and where they were stored.

use dataplane::wire::{ScoreWeights, WeightsError};

use crate::api;
use crate::error::ControlError;

/// Weights a caller sent.
///
/// # Errors
/// [`ControlError::BadRequest`] where they are not each 0 or more and 1.0 together.
pub fn checked(weights: api::ScoreWeights) -> Result<ScoreWeights, ControlError> {
    of_api(&weights).ok_or_else(|| ControlError::BadRequest(WeightsError.to_string()))
}

/// The same; `None` where they are no weights.
pub fn of_api(weights: &api::ScoreWeights) -> Option<ScoreWeights> {
    let api::ScoreWeights { kv, load, power, capacity } = *weights;
    Some(ScoreWeights { kv, load, power, capacity }).filter(ScoreWeights::is_valid)
}

/// As callers and the store write them.
pub fn to_api(weights: ScoreWeights) -> api::ScoreWeights {
    let ScoreWeights { kv, load, power, capacity } = weights;
    api::ScoreWeights { kv, load, power, capacity }
}
