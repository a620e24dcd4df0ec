//! Which models a worker's jobs want: told to its device, and waited for.

use tokio::time::Instant;

use super::Worker;
use crate::dispatch::jobs::{ClaimedJob, Outcome, Select};
use crate::dispatch::workers::job_run::{end_without, release};
use crate::dispatch::workers::models::Held;
use crate::domain::{ErrorCode, JobError, ModelId};

/// The models that a job needs, held for it; `None` where one is not among these.
pub(super) fn needed(claimed: &ClaimedJob, models: &[Held]) -> Option<Vec<Held>> {
    let here = |needed: &ModelId| models.iter().find(|model| model.id() == needed).map(Held::for_job);
    claimed.job.request.models().into_iter().map(here).collect()
}

impl Worker {
    /// Tells the models what waits, has them act on it, and ends the jobs whose models cannot be loaded.
    pub(super) async fn consult_models(&mut self) {
        self.again = None;
        if self.models.is_complete() {
            return;
        }
        if std::mem::take(&mut self.asks) {
            match self.parts.jobs.waiting_models().await {
                Ok(waiting) => self.models.want(waiting),
                Err(error) => {
                    self.parts.metrics.store_errors.inc();
                    tracing::warn!(worker = %self.id, %error, "cannot ask what waits");
                }
            }
        }
        self.again = self.models.settle().map(Instant::from_std);
        for (model, reason) in self.models.failing() {
            self.refuse(&model, &reason).await;
        }
    }

    /// Ends all jobs that wait for this model.
    async fn refuse(&mut self, model: &ModelId, reason: &str) {
        self.asks = true;
        loop {
            let claimed = self.claimed(vec![model.clone()], (Select::Group, false), u32::MAX).await;
            if claimed.is_empty() {
                return;
            }
            for claimed in claimed {
                self.fail_unavailable(claimed, model, reason).await;
            }
        }
    }

    /// One of its models is not here: the job waits for it in the queue, or fails where it cannot be loaded.
    pub(super) async fn lack(&mut self, claimed: ClaimedJob) {
        self.asks = true;
        let models: Vec<ModelId> = claimed.job.request.models().into_iter().cloned().collect();
        match self.models.failure(&models) {
            Some((model, reason)) => self.fail_unavailable(claimed, &model, &reason).await,
            None => {
                self.models.lack(models, claimed.place.rank_ms);
                tracing::info!(job.id = %claimed.job.id, worker = %self.id, "a job waits for another of its models");
                // Nothing was tried. The next look finds it again.
                release(&self.parts, &claimed.lease).await;
            }
        }
    }

    async fn fail_unavailable(&self, claimed: ClaimedJob, model: &ModelId, reason: &str) {
        let message = format!("model `{model}` cannot be loaded: {reason}");
        let error = JobError { code: ErrorCode::ModelUnavailable, message };
        end_without(&self.parts, &claimed.lease, Outcome::Failed(error)).await;
    }
}
