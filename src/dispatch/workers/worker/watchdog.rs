//! Engines that fail: noticed, replaced a few times, their jobs tried again here or elsewhere. A device whose engines keep failing
//! is taken out: it claims nothing more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Filling, Worker, start_engine};
use crate::dispatch::jobs;
use crate::dispatch::workers::job_run::JobRun;
use crate::dispatch::workers::pool::WorkerOptions;
use crate::dispatch::workers::upkeep;

/// Failures of a device's engines, no picture drawn in between, after which the device is taken out.
const MOST_FAILURES: u32 = 3;

/// Why an engine is of no use any more.
#[derive(Debug)]
pub(super) enum Failure {
    /// It gives no sign.
    Hung(Duration),
    /// Its thread is gone, or takes no commands.
    Ended,
    /// As it says.
    Device(String),
}

impl Failure {
    fn kind(&self) -> &'static str {
        match self {
            Self::Hung(_) => "hung",
            Self::Ended => "ended",
            Self::Device(_) => "device",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hung(limit) => {
                write!(f, "the engine gave no sign for {} s (`workers.step_timeout_s`)", limit.as_secs_f64())
            }
            Self::Ended => f.write_str("the engine's thread ended, or takes no commands"),
            Self::Device(message) => write!(f, "the device failed: {message}"),
        }
    }
}

/// How a device's engines have done.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Failures since the last picture.
    in_a_row: u32,
    /// Failures since the worker started.
    pub failures: u64,
    /// Why the device is not used any more; `None` while it is.
    pub out: Option<String>,
}

impl Standing {
    fn failed(&mut self, reason: &str) {
        self.in_a_row += 1;
        self.failures += 1;
        if self.in_a_row >= MOST_FAILURES {
            self.out =
                Some(format!("{MOST_FAILURES} engines failed with no picture in between; the last one: {reason}"));
        }
    }

    /// A picture was drawn.
    pub(super) fn drew(&mut self) {
        self.in_a_row = 0;
    }
}

/// How often to look for a sign.
pub(super) fn period(options: &WorkerOptions) -> Duration {
    let often = |limit: Duration| (limit / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
    options.step_timeout.map_or(Duration::from_secs(1), often)
}

impl Worker {
    /// Looks for a sign of the engine, and of what makes jobs ready for it. One whose thread has ended is told by its events' end.
    pub(super) async fn watch(&mut self) {
        let preparing = self.aboard.values().filter_map(JobRun::preparing_for).max();
        let silence = self.engine.silence().max(preparing);
        let is_past = |limit: &Duration| silence.is_some_and(|silence| silence > *limit);
        if let Some(limit) = self.options.step_timeout.filter(is_past)
            && !self.engine_is_gone
        {
            self.engine_failed(Failure::Hung(limit)).await;
        }
    }

    /// Its jobs are tried again, by whoever is free; another engine takes its place, unless this was one too many.
    pub(super) async fn engine_failed(&mut self, failure: Failure) {
        let reason = failure.to_string();
        tracing::error!(worker = %self.id, %reason, "the engine failed; its jobs are tried again");
        self.parts.metrics.engine_failures.with_label_values(&[failure.kind()]).inc();
        self.standing.failed(&reason);
        // Should it come to itself, it stops; nobody hears what it says meanwhile.
        self.engine.give_up();
        self.events = mpsc::channel(1).1;
        self.engine_is_gone = true;
        self.leaving.clear();
        self.filling = Filling::default();
        // Whoever hangs within would be company for ever.
        self.options.engine.gate = Arc::default();
        if self.standing.out.is_none() && self.stop.borrow().is_none() {
            match start_engine(&self.options) {
                Ok((engine, events)) => {
                    (self.engine, self.events, self.engine_is_gone) = (engine, events, false);
                }
                Err(error) => self.standing.out = Some(format!("{reason}; another engine cannot be started: {error}")),
            }
        }
        if let Some(reason) = &self.standing.out {
            tracing::error!(worker = %self.id, device = %self.models.device(), %reason, "the device is taken out");
        }
        let lost: Vec<JobRun> = self.aboard.drain().map(|(_, run)| run).collect();
        // Before its jobs are free: whoever hears of them finds how the device stands.
        self.report();
        for run in lost {
            self.lose(&run, &reason).await;
        }
    }

    async fn lose(&self, run: &JobRun, reason: &str) {
        self.parts.hub.left(run.id());
        match self.parts.jobs.lose(&run.claimed.lease, reason).await {
            Ok(rescued) => upkeep::announce(&self.parts, rescued).await,
            Err(jobs::Error::LeaseLost(id)) => tracing::warn!(job.id = %id, "the lease was lost before the engine was"),
            Err(error) => tracing::warn!(job.id = %run.id(), %error, "cannot give a job up; it will be rescued"),
        }
    }
}
