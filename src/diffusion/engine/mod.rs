//! The step loop on one device: admit, batch, evaluate, advance, decode. Two plain threads; no tokio, no store.
//!
//! The loop's thread takes nothing but steps: what a job needs before its first is made by [`prepare()`], on a thread of the
//! caller's, and what follows its last by the finisher, on a thread beside the loop. Commands come in by a bounded channel,
//! events go out through an [`EventSink`]. A sample owns its latents, history, noise generator and position; a batch is a
//! throw-away view of samples. A batch whose forward fails is evaluated again by halves, so that only the guilty job fails;
//! where memory ran out, the next batches of its kind are smaller; but what ran out beside other work on the device is tried
//! without it first ([`MemoryGate`]). A job can be taken off between two steps, and goes on in another engine to the same bytes
//! (`parking`).

mod busy;
mod controls;
mod events;
mod fault;
mod finisher;
mod forward;
mod guidance;
mod hand_over;
mod ledger;
mod memory_gate;
mod parking;
mod prepare;
mod refusal;
mod sample;
mod stages;
mod start;
mod step_loop;
mod thread;

pub use events::{BatchReport, EngineDemand, EngineEvent, EngineJob, EngineTimings, EventSink};
pub use fault::{Fault, FaultHook, FaultPoint};
pub use memory_gate::MemoryGate;
pub use parking::{MAX_PARKED_BYTES, ParkedJob, Unreadable};
pub use prepare::{Prepared, prepare};
pub use refusal::Refusal;
pub use stages::Stages;
pub use step_loop::StepLoop;
pub use thread::{Drawing, EngineHandle, EngineStopped, draw, draw_with, start};

use std::sync::Arc;

use crate::diffusion::batching::BatchCaps;
use crate::diffusion::pipelines::PromptCache;
use crate::domain::{BatchingPolicy, Cost, JobId};

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
    /// Where prompts lately encoded are found; `None`: each is encoded.
    pub prompts: Option<Arc<PromptCache>>,
    /// Where those who work on its device pass, so that one that runs out of memory may be tried without the others.
    pub gate: Arc<MemoryGate>,
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
            prompts: None,
            gate: Arc::default(),
            cost: None,
            device_bytes: None,
            fault: None,
        }
    }
}

impl EngineOptions {
    /// Has a test's fault happen.
    fn provoke(&self, job: JobId, point: FaultPoint) -> Result<(), Refusal> {
        match self.fault.as_ref().map_or(Fault::None, |hook| hook(job, point)) {
            Fault::None | Fault::NotANumber => Ok(()),
            Fault::Error => Err(Refusal::failed("a fault was asked for")),
            Fault::OutOfMemory => Err(Refusal::failed("out of memory was asked for")),
            Fault::Device => Err(Refusal::failed("CUDA_ERROR_LAUNCH_FAILED was asked for")),
            Fault::Panic => panic!("a panic was asked for"),
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
