//! Reading: jobs, models, readiness.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Caller, GenerationService, JobView, Result};
use crate::dispatch::hub::{WorkerState, WorkerStatus};
use crate::dispatch::jobs::{JobFilter, OwnerWork};
use crate::domain::{JobId, JobStatus, ModelId, ModelState, ModelStatus};

/// Some jobs, and where the next ones begin.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Newest first.
    pub jobs: Vec<JobView>,
    /// Ask for jobs before this one; `None` at the end.
    pub next: Option<JobId>,
}

/// What one owner has in the queue, and was given of the devices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OwnerShare {
    /// Of the devices, next to the others' weights.
    pub weight: u32,
    /// Jobs waiting.
    pub queued: u64,
    /// Jobs with a worker.
    pub running: u64,
    /// Pictures x steps x pixels of all jobs that were drawn, since there were keys; not of those given another's pictures.
    pub pixel_steps: u64,
    /// The same as a part of everybody's, 0 to 1.
    pub share: f64,
}

/// How a served model stands on the devices of this process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelStanding {
    /// The best of what the devices say: loaded, loading, available, or failed.
    pub state: ModelState,
    /// Memory that its weights take on a device, in bytes, or would take.
    pub bytes: Option<u64>,
    /// Why the last try to load it failed, where `state` is `failed`.
    pub reason: Option<String>,
    /// By device.
    pub devices: BTreeMap<String, ModelStatus>,
}

/// Whether a load balancer should send requests here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Yes or no.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// Devices that were taken out and why, whether or not others work.
    pub devices_out: Vec<String>,
}

impl GenerationService {
    /// One job.
    ///
    /// # Errors
    /// No such job; a store that failed.
    pub async fn get(&self, caller: &Caller, id: JobId) -> Result<JobView> {
        let job = self.job(caller, id).await?;
        self.view(job).await
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// A store that failed.
    pub async fn list(
        &self,
        caller: &Caller,
        status: Option<JobStatus>,
        before: Option<JobId>,
        limit: u32,
    ) -> Result<Page> {
        // One more than asked tells whether there are more.
        let owner = caller.confined_to().cloned();
        let filter = JobFilter { owner, status, before, limit: limit.saturating_add(1) };
        let mut jobs = self.parts.jobs.list(filter).await?;
        let more = jobs.len() > limit as usize;
        jobs.truncate(limit as usize);
        let next = if more { jobs.last().map(|job| job.id) } else { None };
        let forecast = self.forecast().await?;
        let mut views = Vec::with_capacity(jobs.len());
        for job in jobs {
            views.push(self.view_by(job, &forecast).await?);
        }
        Ok(Page { jobs: views, next })
    }

    /// By owner's name, for callers who see everybody's jobs, on a server with keys; empty otherwise. Jobs without an owner
    /// stand under the empty name.
    ///
    /// # Errors
    /// A store that failed.
    pub async fn owners(&self, caller: &Caller) -> Result<BTreeMap<String, OwnerShare>> {
        if caller.confined_to().is_some() {
            return Ok(BTreeMap::new());
        }
        let known = self.parts.jobs.owners().await?;
        let all: u64 = known.iter().map(|work| work.pixel_steps).sum();
        let told = |OwnerWork { owner, weight, queued, running, pixel_steps }: OwnerWork| {
            let share = pixel_steps as f64 / all.max(1) as f64;
            let name = owner.map_or_else(String::new, |owner| owner.to_string());
            (name, OwnerShare { weight, queued, running, pixel_steps, share })
        };
        Ok(known.into_iter().map(told).collect())
    }

    /// How a served model stands here.
    pub fn model_standing(&self, model: &ModelId) -> ModelStanding {
        let devices = self.parts.hub.model(model);
        let order = [ModelState::Loaded, ModelState::Loading, ModelState::Available, ModelState::Failed];
        let with = |state: ModelState| devices.values().find(|status| status.state == state);
        let best = order.into_iter().find_map(with);
        ModelStanding {
            state: best.map_or(ModelState::Available, |status| status.state),
            bytes: best.map(|status| status.bytes),
            reason: best.and_then(|status| status.reason.clone()),
            devices,
        }
    }

    /// Whether a load balancer should send requests here.
    pub async fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.parts.hub.is_draining() {
            reasons.push("draining: shutting down".to_owned());
        }
        if let Err(error) = self.parts.jobs.ping().await {
            tracing::warn!(%error, "the job store does not answer");
            reasons.push("the job store does not answer".to_owned());
        }
        let workers = self.parts.hub.workers();
        let out = |worker: &WorkerStatus| Some(format!("{}: {}", worker.device, worker.reason.as_ref()?));
        let devices_out: Vec<String> = workers.values().filter_map(out).collect();
        if workers.values().all(|worker| worker.state == WorkerState::Failed) {
            reasons.push(format!("no device works: {}", devices_out.join("; ")));
        }
        Readiness { ready: reasons.is_empty(), reasons, devices_out }
    }
}
