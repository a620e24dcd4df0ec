//! What follows a step: it is told, and whoever is done goes on to the next pass or is decoded.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::StepLoop;
use crate::diffusion::batching::{SampleId, StepBatch};
use crate::diffusion::engine::events::{BatchReport, EngineEvent};
use crate::diffusion::engine::fault::FaultPoint;
use crate::diffusion::engine::refusal::{Refusal, caught};
use crate::diffusion::engine::sample::SampleState;
use crate::domain::JobId;

impl StepLoop {
    pub(super) fn report(&mut self, batch: &StepBatch, control_rows: u32, (took, bytes): (Duration, Option<u64>)) {
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
        };
        (self.sink)(EngineEvent::Batch(report));
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
            (self.sink)(EngineEvent::Progress { job, image, step, total });
            if done && self.samples[&id].told.next.is_some() {
                self.take_over(id);
            } else if done {
                self.finish(id);
            } else if self.options.preview_every > 0 && step.is_multiple_of(self.options.preview_every) {
                self.preview(id);
            }
        }
    }

    /// To the batches of the next pass the sample is a new one.
    fn take_over(&mut self, id: SampleId) {
        let Some(sample) = self.samples.remove(&id) else { return };
        self.batcher.remove(id);
        let (job, new) = (sample.job, SampleId(self.next_sample));
        let Some(next) = sample.told.next.clone() else { return };
        self.next_sample += 1;
        let taken_over = caught(|| {
            let pipeline = next.told.pipeline.clone();
            // A picture of what is no number would hide it.
            sample.checked()?;
            sample.taken_over(new, next, pipeline.as_ref()).map_err(Refusal::failed)
        });
        match taken_over {
            Ok(sample) => {
                self.batcher.add(sample.meta.clone());
                self.samples.insert(new, sample);
            }
            Err(refusal) => self.fail(job, refusal),
        }
    }

    fn preview(&mut self, id: SampleId) {
        let sample = &self.samples[&id];
        let (job, image, step) = (sample.job, sample.image, sample.steps_taken());
        let pipeline = &sample.told.pipeline;
        // A preview that cannot be made is no reason to fail the picture.
        if let Ok(Some(picture)) = pipeline.preview(sample.denoised()) {
            (self.sink)(EngineEvent::Preview { job, image, step, picture });
        }
    }

    fn finish(&mut self, id: SampleId) {
        let Some(sample) = self.samples.remove(&id) else { return };
        self.batcher.remove(id);
        let (job, image) = (sample.job, sample.image);
        let began = Instant::now();
        let decoded = caught(|| {
            self.provoke(job, FaultPoint::Decode)?;
            sample.checked()?;
            let drawn = sample.told.pipeline.decode(sample.latents()).map_err(Refusal::failed)?;
            Ok(match &sample.told.canvas {
                Some(canvas) => canvas.finish(drawn),
                None => drawn,
            })
        });
        // It holds a pipeline, which is let go of before the job's end is told.
        drop(sample);
        let picture = match decoded {
            Ok(picture) => picture,
            Err(refusal) => return self.fail(job, refusal),
        };
        let Some(state) = self.jobs.get_mut(&job) else { return };
        state.timings.decode_ms += began.elapsed().as_millis() as u64;
        if let Some(first) = state.first_step {
            state.timings.denoise_ms = state.timings.denoise_ms.max(began.duration_since(first).as_millis() as u64);
        }
        state.pending -= 1;
        let (pending, timings) = (state.pending, state.timings);
        (self.sink)(EngineEvent::Image { job, image, picture });
        if pending == 0 {
            self.end(job);
            (self.sink)(EngineEvent::Finished { job, timings });
        }
    }
}

impl SampleState {
    /// Refuses latents that are not finite.
    fn checked(&self) -> Result<(), Refusal> {
        if self.is_finite().map_err(Refusal::failed)? {
            return Ok(());
        }
        Err(Refusal::failed("the network gave numbers that are none (NaN or infinite)"))
    }
}
