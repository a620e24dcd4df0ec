//! The server at a glance, and what it believes of its own speed against what came of it.

use std::collections::BTreeMap;

use super::{GenerationService, Result};
use crate::dispatch::hub::{Belief, PromisesKept, WorkerState, WorkerStatus};
use crate::domain::SizeKey;
use crate::telemetry::Distribution;

/// The server at a glance.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Jobs waiting.
    pub queued: u64,
    /// Jobs with a worker.
    pub running: u64,
    /// Most jobs that may wait.
    pub max_queued: u64,
    /// Pictures x steps x pixels of all jobs waiting and running.
    pub pixel_steps_ahead: u64,
    /// Pixel-steps a second, as lately measured.
    pub pixel_steps_per_second: Option<f64>,
    /// From the end of a forward to the begin of the next while pictures are aboard, since this process started.
    pub step_gap: Distribution,
    /// Workers of this process, by name.
    pub workers: BTreeMap<String, WorkerStatus>,
    /// Whether this process takes nothing new.
    pub draining: bool,
    /// What forwards are believed to cost, and how far that was off, by model and size.
    pub forwards: BTreeMap<SizeKey, Belief>,
    /// When jobs were promised to end, against when they did.
    pub promises: PromisesKept,
}

impl GenerationService {
    /// The server at a glance.
    ///
    /// # Errors
    /// A store that failed.
    pub async fn stats(&self) -> Result<Stats> {
        let queue = self.parts.jobs.stats().await?;
        let workers = self.parts.hub.workers();
        self.parts.metrics.queue_depth.set(queue.queued as i64);
        self.parts.metrics.jobs_running.set(queue.running as i64);
        for state in WorkerState::ALL {
            let count = workers.values().filter(|worker| worker.state == state).count();
            self.parts.metrics.workers.with_label_values(&[state.name()]).set(count as i64);
        }
        Ok(Stats {
            queued: queue.queued,
            running: queue.running,
            max_queued: self.options.max_queued,
            pixel_steps_ahead: queue.pixel_steps,
            pixel_steps_per_second: self.parts.hub.speed(),
            step_gap: Distribution::of(&self.parts.metrics.step_gap),
            workers: workers.into_iter().map(|(id, status)| (id.to_string(), status)).collect(),
            draining: self.parts.hub.is_draining(),
            forwards: self.parts.hub.outlook().beliefs.into_iter().collect(),
            promises: self.parts.hub.promises_kept(),
        })
    }
}
