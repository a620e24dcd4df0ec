//! Jobs whose pictures are there: beside the worker's loop they are stored, the job ends, and whoever waits for the same
//! pictures is given them too.

use std::future::Future;

use super::{JobRun, Worker};
use crate::dispatch::jobs::{Answer, ClaimRequest, Select};
use crate::dispatch::workers::{parked, reusing};
use crate::domain::{Job, JobId, JobStatus};

/// Rows of jobs that are given copies under one lease, which nobody renews: each takes milliseconds.
const ANSWERED_AT_ONCE: u32 = 64;

impl Worker {
    /// Has `finish` end a job that is aboard, and says how it ended to those that wait for its pictures.
    pub(super) fn succeed_beside<F>(&mut self, job: JobId, finish: impl FnOnce(JobRun) -> F)
    where
        F: Future<Output = Option<Job>> + Send + 'static,
    {
        let (parts, worker, lease_ms) = (self.parts.clone(), self.id.clone(), self.options.lease.as_millis() as u64);
        self.end_beside(job, |run| {
            let asked = &run.claimed.job;
            let request = asked.identity.clone().map(|identity| ClaimRequest {
                worker,
                models: vec![asked.request.model().clone()],
                select: Select::Identical(identity),
                is_to_draw: false,
                max_rows: ANSWERED_AT_ONCE,
                max_row_pixels: u64::MAX,
                lease_ms,
            });
            let finished = finish(run);
            async move {
                // One that was drawn by other files than its identity names has none any more.
                let is_named = |ended: &Job| ended.identity.is_some() && ended.status == JobStatus::Succeeded;
                match (finished.await.filter(is_named), request) {
                    (Some(ended), Some(request)) => reusing::answer_waiting(&parts, &ended, request).await,
                    // The next of them may be drawn now.
                    (None, Some(_)) => parts.hub.wake(),
                    _ => {}
                }
            }
        });
    }

    /// Ends a job that is aboard with pictures that were copied for it.
    pub(super) fn answer(&mut self, job: JobId, answer: Answer) {
        let parts = self.parts.clone();
        self.succeed_beside(job, |run| async move {
            let ended = reusing::answer(&parts, &run.claimed, answer, "stored").await;
            if ended.is_some() {
                parked::remove(&parts, job).await;
            }
            ended
        });
    }
}
