//! How batches are made up, by name; what the policies do lives in `diffusion::batching`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ModelId;
use super::sampling::wire_names;

wire_names! {
    /// How batches are made up.
    BatchingPolicy {
        /// Same model, resolution and step count, together from start to end; the oldest group first.
        Grouped => "grouped",
        /// Same model and resolution; pictures join at any step, leave when done, and their place is taken at once.
        Continuous => "continuous",
    }
}

/// Under the policy `continuous`, jobs with as many steps as a batch has are taken in before others of their size, but
/// pass only those that rank less than this before them: a preference without this bound makes the others wait for ever
/// on a busy device (`benches/simulate`: the 99th percentile grows by a third).
pub const ALIKE_WITHIN_MS: i64 = 1_000;

/// What jobs must share to be drawn in one batch under the policy `continuous`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SizeKey {
    /// The model.
    pub model: ModelId,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}
