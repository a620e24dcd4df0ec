//! A job taken off the loop between two steps.

use std::collections::HashSet;

use super::StepLoop;
use crate::diffusion::engine::ledger::{End, with};
use crate::diffusion::engine::parking::ParkedJob;
use crate::diffusion::engine::sample::SampleState;
use crate::domain::{JobId, ModelId};

impl StepLoop {
    /// Takes a job off as it stands; `Parked` follows, unless it has ended, or has no steps to take any more and ends by itself.
    pub fn park(&mut self, job: JobId) {
        // What came back from between two passes is taken off where it is.
        let own: Vec<&SampleState> = self.samples.values().filter(|sample| sample.job == job).collect();
        let Some(basis) = self.ledger.basis(job).filter(|_| !own.is_empty() || self.ledger.is_between(job)) else {
            return;
        };
        let parked = own.into_iter().try_fold(ParkedJob::new(basis, Vec::new()), with).map(Box::new);
        self.leave(job, End::Parked(parked));
    }

    /// Takes off the oldest job of which nothing was in the last batch, and which needs no other models than these; `Parked`
    /// follows where there is one. An engine that has just begun, or is between two batches, gives nothing away.
    pub fn give_away(&mut self, models: &[ModelId]) {
        let drawn: HashSet<JobId> =
            self.in_batch.iter().filter_map(|id| self.samples.get(id)).map(|sample| sample.job).collect();
        if drawn.is_empty() {
            return;
        }
        let fits = |job: JobId| self.ledger.basis(job).is_some_and(|basis| basis.rests_on(models));
        let waiting = self.samples.values().filter(|sample| !drawn.contains(&sample.job) && fits(sample.job));
        if let Some(job) = waiting.min_by_key(|sample| sample.meta.place).map(|sample| sample.job) {
            tracing::info!(job.id = %job, "a job that waits here is given away");
            self.park(job);
        }
    }
}
