//! A job taken off the loop between two steps, and going on where it was taken off.

use std::collections::HashSet;
use std::sync::Arc;

use super::StepLoop;
use crate::diffusion::batching::BatchKey;
use crate::diffusion::engine::events::{EngineEvent, EngineJob};
use crate::diffusion::engine::parking::{Basis, ParkedJob, ParkedSample};
use crate::diffusion::engine::refusal::{Refusal, caught};
use crate::diffusion::engine::sample::{SampleState, Told};
use crate::domain::{JobId, ModelId};

impl StepLoop {
    /// Takes a job off as it stands; `Parked` follows, unless it has ended.
    pub fn park(&mut self, job: JobId) {
        if !self.jobs.contains_key(&job) {
            return;
        }
        let parked = caught(|| self.parked(job));
        self.forget(job);
        let parked = match parked {
            Ok(parked) => Some(Box::new(parked)),
            Err(Refusal { message, .. }) => {
                tracing::warn!(job.id = %job, reason = %message, "a job's state cannot be kept; it will start anew");
                None
            }
        };
        (self.sink)(EngineEvent::Parked { job, parked });
    }

    /// Takes off the oldest job of which nothing was in the last batch, and which needs no other models than these; `Parked`
    /// follows where there is one. An engine that has just begun, or is between two batches, gives nothing away.
    pub fn give_away(&mut self, models: &[ModelId]) {
        let drawn: HashSet<JobId> =
            self.in_batch.iter().filter_map(|id| self.samples.get(id)).map(|sample| sample.job).collect();
        if drawn.is_empty() {
            return;
        }
        let fits = |job: &JobId| self.jobs[job].request.models().into_iter().all(|model| models.contains(model));
        let waiting = self.samples.values().filter(|sample| !drawn.contains(&sample.job) && fits(&sample.job));
        if let Some(job) = waiting.min_by_key(|sample| sample.meta.place).map(|sample| sample.job) {
            tracing::info!(job.id = %job, "a job that waits here is given away");
            self.park(job);
        }
    }

    fn parked(&self, job: JobId) -> Result<ParkedJob, Refusal> {
        let state = &self.jobs[&job];
        let own = self.samples.values().filter(|sample| sample.job == job);
        let samples = own.map(SampleState::parked).collect::<Result<_, _>>().map_err(Refusal::failed)?;
        let models = state.request.models().into_iter().filter_map(|model| self.pipelines.get(model));
        let models = models.map(|pipeline| pipeline.info());
        let basis = Basis::of(job, &state.request, (&state.key, &state.told), models).map_err(Refusal::failed)?;
        Ok(ParkedJob::new(basis, samples))
    }

    /// The samples of a job that was parked, as they stood; `None` where it was not, or where its state is none of what is to
    /// be drawn now: the job starts anew.
    pub(super) fn resumed(
        &mut self,
        job: &EngineJob,
        key: &Arc<BatchKey>,
        told: &Arc<Told>,
    ) -> Option<Vec<SampleState>> {
        let parked = job.parked.as_ref()?;
        match self.try_resume(parked, job, (key, told)) {
            Ok(samples) => {
                tracing::info!(job.id = %job.id, samples = samples.len(), "a parked job goes on where it stood");
                Some(samples)
            }
            Err(reason) => {
                tracing::warn!(job.id = %job.id, %reason, "a parked state is not used; the job starts anew");
                None
            }
        }
    }

    fn try_resume(
        &mut self,
        parked: &ParkedJob,
        job: &EngineJob,
        (key, told): (&Arc<BatchKey>, &Arc<Told>),
    ) -> Result<Vec<SampleState>, String> {
        let models = job.request.models().into_iter().filter_map(|model| self.pipelines.get(model));
        let models = models.map(|pipeline| pipeline.info());
        let now = Basis::of(job.id, &job.request, (key, told), models).map_err(|error| error.to_string())?;
        if let Some(difference) = parked.basis.differs_from(&now) {
            return Err(difference);
        }
        if !parked.is_whole(job.request.num_images()) {
            return Err("it has not each picture once".to_owned());
        }
        let resumed = |state: &ParkedSample| {
            let meta = self.first_meta(job, key, told);
            SampleState::resumed(job.id, meta, told, &job.request, state)
        };
        parked.samples.iter().map(resumed).collect()
    }
}
