//! Which evaluations share the next forward. Pure and synchronous: sees small projections of samples, never a tensor.
//!
//! Main type: [`Batcher`]. A [`StepBatch`] is a throw-away view; samples stay where they are.

mod grouped;

pub use grouped::Batcher;

use crate::domain::ModelId;

/// One picture in progress, within one engine; grows with arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SampleId(pub u64);

/// What evaluations must share to stand in one forward.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchKey {
    /// Whose network.
    pub model: ModelId,
    /// (C, h, w) of the latents.
    pub latent_shape: (usize, usize, usize),
    /// Tokens of the conditioning.
    pub tokens: usize,
}

/// What the batcher needs to know of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleMeta {
    /// Which.
    pub id: SampleId,
    /// What it may share a forward with.
    pub key: BatchKey,
    /// Steps from start to end.
    pub steps: u32,
    /// Rows an evaluation takes: 2 when guided, else 1.
    pub rows: u32,
    /// Pixels of its picture.
    pub pixels: u64,
}

/// Which prompt a row is evaluated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// The prompt.
    Cond,
    /// The negative prompt.
    Uncond,
}

/// One row of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose latents.
    pub sample: SampleId,
    /// Which prompt.
    pub branch: Branch,
}

/// Why a batch has no more rows than it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Nobody else was compatible.
    NoMoreCompatible,
    /// The next one would have exceeded `max_rows`.
    MaxRows,
    /// The next one would have exceeded `max_row_pixels`.
    MaxRowPixels,
}

/// The rows of the next forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepBatch {
    /// What they share.
    pub key: BatchKey,
    /// A sample's rows stand together, the conditional first.
    pub rows: Vec<Row>,
    /// Why there are no more.
    pub stop: StopReason,
}

impl StepBatch {
    /// The samples aboard, in the order of their rows.
    pub fn samples(&self) -> impl Iterator<Item = SampleId> + '_ {
        self.rows.iter().filter(|row| row.branch == Branch::Cond).map(|row| row.sample)
    }
}

/// Bounds of one forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchCaps {
    /// Most rows.
    pub max_rows: u32,
    /// Most rows times pixels of a picture.
    pub max_row_pixels: u64,
}

/// How batches are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchingPolicy {
    /// Same model, resolution and step count, together from start to end; the oldest group first.
    Grouped,
}
