//! What follows a step: it is told, and whoever is done goes on to the next pass or is decoded.

use std::collections::HashSet;
use std::time::Duration;

use super::StepLoop;
use crate::diffusion::batching::{SampleId, StepBatch};
use crate::diffusion::engine::events::{BatchReport, EngineEvent};
use crate::diffusion::engine::finisher::Look;
use crate::diffusion::engine::refusal::{Refusal, caught};
use crate::diffusion::engine::sample::{NextPass, SampleState};
use crate::domain::JobId;

impl StepLoop {
    pub(super) fn report(
        &mut self,
        batch: &StepBatch,
        control_rows: u32,
        (took, gap, bytes): (Duration, Option<Duration>, Option<u64>),
    ) {
        let ids: Vec<SampleId> = batch.samples().collect();
        let aboard = || ids.iter().filter_map(|id| self.samples.get(id));
        let jobs: HashSet<JobId> = aboard().map(|sample| sample.job).collect();
        let steps: HashSet<u32> = aboard().map(|sample| sample.meta.steps).collect();
        let report = BatchReport {
            model: batch.key.model.clone(),
            rows: batch.rows.len() as u32,
            control_rows,
            samples: ids.len() as u32,
            jobs: jobs.len() as u32,
            width: batch.key.width,
            height: batch.key.height,
            steps: if steps.len() == 1 { steps.into_iter().next() } else { None },
            micros: took.as_micros() as u64,
            bytes,
            gap_micros: gap.map(|gap| gap.as_micros() as u64),
        };
        self.tell(EngineEvent::Batch(report));
    }

    /// Rows that ControlNets will evaluate for this batch.
    pub(super) fn control_rows(&self, batch: &StepBatch) -> u32 {
        batch.rows.iter().map(|row| self.samples[&row.sample].row(row.branch).controls.len() as u32).sum()
    }

    pub(super) fn settle(&mut self, outcomes: Vec<(SampleId, Result<(), Refusal>)>) {
        for (id, outcome) in outcomes {
            let Some(sample) = self.samples.get(&id) else { continue };
            let (job, image, done) = (sample.job, sample.image, sample.is_done());
            if let Err(refusal) = outcome {
                self.fail(job, refusal);
                continue;
            }
            // Some samplers evaluate the network several times a step.
            if !sample.is_between_steps() {
                continue;
            }
            let (step, total) = (sample.steps_taken(), sample.total_steps());
            self.tell(EngineEvent::Progress { job, image, step, total });
            if done && self.samples[&id].told.next.is_some() {
                self.take_over(id);
            } else if done {
                self.finish(id);
            } else if self.options().preview_every > 0 && step.is_multiple_of(self.options().preview_every) {
                self.preview(id);
            }
        }
    }

    /// To the batches of the next pass the sample is a new one.
    fn take_over(&mut self, id: SampleId) {
        let Some(sample) = self.samples.remove(&id) else { return };
        self.batcher.remove(id);
        let Some(next) = sample.told.next.clone() else { return };
        if next.hand_over.takes_long() {
            return self.finisher.enlarge(sample, next);
        }
        let job = sample.job;
        match sample.between(&next) {
            Ok(sample) => self.join(sample),
            Err(refusal) => self.fail(job, refusal),
        }
    }

    fn preview(&self, id: SampleId) {
        let sample = &self.samples[&id];
        let (told, latents) = (sample.told.clone(), sample.denoised().clone());
        self.finisher.preview(Look { job: sample.job, image: sample.image, step: sample.steps_taken(), told, latents });
    }

    fn finish(&mut self, id: SampleId) {
        let Some(sample) = self.samples.remove(&id) else { return };
        self.batcher.remove(id);
        self.finisher.picture(sample);
    }
}

impl SampleState {
    /// The sample as the next pass begins it.
    pub(in crate::diffusion::engine) fn between(&self, next: &NextPass) -> Result<Self, Refusal> {
        caught(|| {
            let pipeline = next.told.pipeline.clone();
            // A picture of what is no number would hide it.
            self.checked()?;
            self.taken_over(next.clone(), pipeline.as_ref()).map_err(Refusal::failed)
        })
    }

    /// Refuses latents that are not finite.
    pub(in crate::diffusion::engine) fn checked(&self) -> Result<(), Refusal> {
        if self.is_finite().map_err(Refusal::failed)? {
            return Ok(());
        }
        Err(Refusal::failed("the network gave numbers that are none (NaN or infinite)"))
    }
}
