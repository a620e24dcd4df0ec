//! The step loop on one device: admit, batch, evaluate, advance, decode. One plain thread; no tokio, no store.
//!
//! Commands come in by a bounded channel, events go out through an [`EventSink`]. A sample owns its latents, history,
//! noise generator and position; a batch is a throw-away view of samples. A batch whose forward fails is evaluated again
//! by halves, so that only the guilty job fails; where memory ran out, the next batches of its kind are smaller.
//! A job can be taken off between two steps, and goes on in another engine to the same bytes (`parking`).

mod busy;
mod controls;
mod events;
mod fault;
mod forward;
mod guidance;
mod hand_over;
mod parking;
mod refusal;
mod sample;
mod stages;
mod start;
mod step_loop;
mod thread;

pub use events::{BatchReport, EngineDemand, EngineEvent, EngineJob, EngineTimings, EventSink};
pub use fault::{Fault, FaultHook, FaultPoint};
pub use parking::{MAX_PARKED_BYTES, ParkedJob, Unreadable};
pub use stages::Stages;
pub use step_loop::StepLoop;
pub use thread::{Drawing, EngineHandle, EngineStopped, draw, draw_with, start};

use crate::diffusion::batching::BatchCaps;
use crate::domain::{BatchingPolicy, Cost};

/// How an engine works.
#[derive(Clone)]
pub struct EngineOptions {
    /// How batches are made up.
    pub policy: BatchingPolicy,
    /// Bounds of one forward.
    pub caps: BatchCaps,
    /// Most bytes that a forward may take above what is there, as far as forwards are measured; `None`: no bound.
    pub memory: Option<u64>,
    /// A preview every so many steps; 0: none.
    pub preview_every: u32,
    /// For tests: what forwards are taken to cost, so that batches are the same on every run; `None`: what they took.
    pub cost: Option<Cost>,
    /// For tests: a device on which forwards that take more bytes run out of memory.
    pub device_bytes: Option<u64>,
    /// For tests: makes named points fail.
    pub fault: Option<FaultHook>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            policy: BatchingPolicy::Continuous,
            caps: BatchCaps { max_rows: 32, max_row_pixels: 1 << 23 },
            memory: None,
            preview_every: 4,
            cost: None,
            device_bytes: None,
            fault: None,
        }
    }
}

impl std::fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineOptions")
            .field("policy", &self.policy)
            .field("caps", &self.caps)
            .field("memory", &self.memory)
            .field("preview_every", &self.preview_every)
            .finish_non_exhaustive()
    }
}
