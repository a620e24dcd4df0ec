//! Which evaluations share the next forward. Pure and synchronous: sees small projections of samples, never a tensor.
//!
//! Main type: [`Batcher`], one of two policies ([`grouped`], [`continuous`]). It is told who comes, advances and leaves, so
//! that choosing a batch costs as much as the batch is long, however many wait. A [`StepBatch`] is a throw-away view;
//! samples stay where they are. What a forward costs, and so how many rows are worth waiting for, is learnt in [`cost`].

mod continuous;
mod cost;
mod grouped;
mod waiting;

use std::sync::Arc;

pub use continuous::Continuous;
pub use cost::CostModel;
pub use grouped::Grouped;

use crate::domain::{BatchingPolicy, Cost, MemoryCost, ModelId, QueuePlace};

/// One picture in progress, within one engine; grows with arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SampleId(pub u64);

/// What evaluations must share to stand in one forward. The fields stand in the order in which two keys of one engine
/// are told apart soonest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey {
    /// (C, h, w) of the latents.
    pub latent_shape: (usize, usize, usize),
    /// Tokens of the prompt and of the negative prompt, as the network is told them; twice the prompt's where there is none.
    pub tokens: [usize; 2],
    /// Of the picture, in pixels.
    pub width: u32,
    /// Of the picture, in pixels.
    pub height: u32,
    /// Whose network.
    pub model: ModelId,
    /// What was added to it, LoRAs by name, hash and scale; empty where nothing was.
    pub adapters: Arc<str>,
}

impl BatchKey {
    /// Of one picture.
    pub fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// What the batcher needs to know of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleMeta {
    /// Which.
    pub id: SampleId,
    /// What it may share a forward with.
    pub key: Arc<BatchKey>,
    /// Steps its request asked for.
    pub steps: u32,
    /// Evaluations until it is done: at least 1, but for one that is about to be removed.
    pub left: u32,
    /// The most rows that one of its evaluations before it takes, which is what must have room: 2 while guided steps are
    /// left, else 1.
    pub rows: u32,
    /// Rows of its next evaluation.
    pub rows_now: u32,
    /// Its job's place in the queue: the smallest is the oldest.
    pub place: QueuePlace,
}

impl SampleMeta {
    fn is_of(&self, key: &Arc<BatchKey>) -> bool {
        Arc::ptr_eq(&self.key, key) || self.key == *key
    }
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
    /// The device was found to have no memory for more, or is believed to have none.
    Memory,
    /// More rows would make those aboard wait for longer than they save the others ([`Cost::rows`]).
    Cost,
}

/// The rows of the next forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepBatch {
    /// What they share.
    pub key: Arc<BatchKey>,
    /// A sample's rows stand together, the conditional first.
    pub rows: Vec<Row>,
    /// Why there are no more.
    pub stop: StopReason,
}

impl StepBatch {
    /// Of these samples, in their order.
    fn of<'a>(key: Arc<BatchKey>, samples: impl Iterator<Item = &'a SampleMeta>, stop: StopReason) -> Self {
        let rows = samples.flat_map(|sample| {
            let branches: &[Branch] =
                if sample.rows_now > 1 { &[Branch::Cond, Branch::Uncond] } else { &[Branch::Cond] };
            branches.iter().map(|branch| Row { sample: sample.id, branch: *branch })
        });
        Self { key, rows: rows.collect(), stop }
    }

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

impl BatchCaps {
    /// Most rows of a forward of this key.
    fn rows_of(self, key: &BatchKey) -> u32 {
        let by_pixels = self.max_row_pixels / key.pixels().max(1);
        self.max_rows.min(u32::try_from(by_pixels).unwrap_or(u32::MAX))
    }
}

/// What the batch that was just made up could use next, for whoever fetches more samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Whose turn it is.
    pub key: Arc<BatchKey>,
    /// Steps of the oldest sample aboard: the likes of it are preferred.
    pub steps: u32,
    /// Rows for which there will be room at the next step.
    pub rows: u32,
    /// Where there is no room: a sample of this key that stands before this would get the place of another.
    pub displaces: Option<QueuePlace>,
    /// Rows that a batch of this key should have at present.
    pub target: u32,
    /// Samples of another key that stand before this would have the next turn; `None`: any would.
    pub before: Option<QueuePlace>,
}

/// Chooses the next forward, by one of the policies.
#[derive(Debug)]
pub enum Batcher {
    /// [`BatchingPolicy::Grouped`]
    Grouped(Grouped),
    /// [`BatchingPolicy::Continuous`]
    Continuous(Continuous),
}

impl Batcher {
    /// A batcher without samples.
    pub fn new(policy: BatchingPolicy, caps: BatchCaps) -> Self {
        match policy {
            BatchingPolicy::Grouped => Self::Grouped(Grouped::new(caps)),
            BatchingPolicy::Continuous => Self::Continuous(Continuous::new(caps)),
        }
    }

    fn costs(&self) -> &CostModel {
        match self {
            Self::Grouped(policy) => &policy.cost,
            Self::Continuous(policy) => &policy.cost,
        }
    }

    fn costs_mut(&mut self) -> &mut CostModel {
        match self {
            Self::Grouped(policy) => &mut policy.cost,
            Self::Continuous(policy) => &mut policy.cost,
        }
    }

    /// A forward of this key ran out of memory, and of those tried after it the largest that did not had so many rows: no
    /// forward of this key has more until many have gone well. The present batch is made up anew under that bound.
    pub fn ran_out(&mut self, key: &Arc<BatchKey>, fitted: u32) {
        self.costs_mut().ran_out(key, fitted);
        match self {
            Self::Grouped(policy) => policy.dissolve(),
            Self::Continuous(policy) => policy.dissolve(),
        }
    }

    /// A sample has come. Ids grow.
    pub fn add(&mut self, sample: SampleMeta) {
        match self {
            Self::Grouped(policy) => policy.add(sample),
            Self::Continuous(policy) => policy.add(sample),
        }
    }

    /// A sample is done, or leaves before.
    pub fn remove(&mut self, id: SampleId) {
        match self {
            Self::Grouped(policy) => policy.remove(id),
            Self::Continuous(policy) => policy.remove(id),
        }
    }

    /// A sample was evaluated once, and this is where it stands now. Whoever is done is to be removed next.
    pub fn advanced(&mut self, sample: &SampleMeta) {
        match self {
            Self::Grouped(policy) => policy.advanced(sample),
            Self::Continuous(policy) => policy.advanced(sample),
        }
    }

    /// The rows of the next forward; `None` when there are no samples.
    ///
    /// A batch has a sample at least, even when that alone exceeds a bound: otherwise it would wait for ever.
    pub fn next_batch(&mut self) -> Option<StepBatch> {
        match self {
            Self::Grouped(policy) => policy.next_batch(),
            Self::Continuous(policy) => policy.next_batch(),
        }
    }

    /// What the batch that [`Batcher::next_batch`] just gave could use at the next step; `None` under `grouped`, whose groups
    /// take nobody in on their way.
    pub fn demand(&self) -> Option<Demand> {
        match self {
            Self::Grouped(_) => None,
            Self::Continuous(policy) => policy.demand(),
        }
    }

    /// A forward of so many rows took so long.
    pub fn observe(&mut self, key: &Arc<BatchKey>, rows: u32, seconds: f64) {
        self.costs_mut().observe(key, rows, seconds);
    }

    /// A forward of so many rows took so many bytes above what was there.
    pub fn observe_bytes(&mut self, key: &Arc<BatchKey>, rows: u32, bytes: u64) {
        self.costs_mut().observe_bytes(key, rows, bytes);
    }

    /// Bounds what a forward may take above what is there, in bytes; `None`: no bound. A sample is evaluated even when it
    /// alone is believed to take more.
    pub fn bound_memory(&mut self, bytes: Option<u64>) {
        self.costs_mut().bound_memory(bytes);
    }

    /// What forwards of this key take, in bytes; `None` where none was measured.
    pub fn memory(&self, key: &BatchKey) -> Option<MemoryCost> {
        self.costs().memory(key)
    }

    /// Most rows of a forward of this key.
    pub fn most_rows(&self, key: &BatchKey) -> u32 {
        self.costs().bound(key).0
    }

    /// So many rows wait elsewhere for this batcher's device.
    pub fn set_waiting(&mut self, rows: u32) {
        if let Self::Continuous(policy) = self {
            policy.waiting_rows = rows;
        }
    }

    /// What a forward of this key is believed to cost; `None` where none of its model was measured.
    pub fn cost(&self, key: &BatchKey) -> Option<Cost> {
        self.costs().believed(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample of model `m`, `side` latent pixels wide and high, 4 pixels each, just begun.
    pub(super) fn sample(id: u64, side: usize, steps: u32, rows: u32) -> SampleMeta {
        let pixels = side as u32 * 4;
        let key = BatchKey {
            latent_shape: (4, side, side),
            tokens: [7, 7],
            width: pixels,
            height: pixels,
            model: ModelId::new("m"),
            adapters: "".into(),
        };
        SampleMeta {
            id: SampleId(id),
            key: Arc::new(key),
            steps,
            left: steps,
            rows,
            rows_now: rows,
            place: queue_place(id as i64, id),
        }
    }

    pub(super) fn queue_place(rank_ms: i64, id: u64) -> QueuePlace {
        QueuePlace { rank_ms, id: uuid::Uuid::from_u128(u128::from(id)).into() }
    }

    pub(super) fn aboard(batch: &StepBatch) -> Vec<u64> {
        batch.samples().map(|id| id.0).collect()
    }
}
