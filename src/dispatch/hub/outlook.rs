//! What is needed to say when jobs will have ended, and what became of what was said.

use std::collections::HashMap;

use super::aboard::Held;
use super::{Aboard, Belief, PromisesKept, WorkerHub, lock};
use crate::domain::{ForwardReport, Job, JobId, QueuePlace, SizeKey};

/// What the workers of this process have to do, and how fast they are believed to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// What forwards cost, by size.
    pub beliefs: HashMap<SizeKey, Belief>,
    /// Seconds that pass between forwards, for each second of a forward: encoding of prompts, decoding, previews.
    pub overhead: f64,
    /// What is left of the jobs that are held here.
    pub aboard: Vec<Aboard>,
    /// How many work.
    pub workers: u32,
}

impl WorkerHub {
    /// Learns of one forward; how far it was off what was expected, as a share of what it took.
    pub fn learn(&self, report: ForwardReport) -> Option<f64> {
        lock(&self.beliefs).learn(report)
    }

    /// A worker of this process has taken the job.
    pub fn boarded(&self, job: &Job, place: QueuePlace) {
        lock(&self.held).insert(job.id, Held::of(job, place));
    }

    /// The present outlook.
    pub fn outlook(&self) -> Outlook {
        let workers = self.working() as u32;
        let (beliefs, overhead) = {
            let beliefs = lock(&self.beliefs);
            (beliefs.all(), beliefs.overhead())
        };
        let (held, progress) = (lock(&self.held), lock(&self.progress));
        let aboard = held.values().map(|job| job.left(&progress)).collect();
        Outlook { beliefs, overhead, aboard, workers }
    }

    /// A client was told that its job will have ended so many milliseconds after its acceptance.
    pub fn promise(&self, job: JobId, eta_ms: u64) {
        lock(&self.promises).promise(job, eta_ms);
    }

    /// A job succeeded, so long after its acceptance; how many times as long that was as promised, if it was.
    pub fn succeeded(&self, job: JobId, total_ms: u64) -> Option<f64> {
        if let Some(held) = lock(&self.held).get(&job)
            && let Some(after_steps) = held.since_step()
        {
            lock(&self.beliefs).ended(held.size(), after_steps);
        }
        lock(&self.promises).kept(job, total_ms)
    }

    /// How promises were kept.
    pub fn promises_kept(&self) -> PromisesKept {
        lock(&self.promises).record()
    }
}
