//! One evaluation of the network for the samples of a batch, and what becomes of a batch that fails.

use std::time::Instant;

use candle_core::Tensor;

use super::StepLoop;
use crate::diffusion::batching::{Branch, SampleId, SampleMeta, StepBatch};
use crate::diffusion::engine::fault::{Fault, FaultPoint};
use crate::diffusion::engine::forward::forward;
use crate::diffusion::engine::refusal::{Refusal, caught};
use crate::domain::ErrorCode;

impl StepLoop {
    /// Evaluates and advances the whole batch; when that fails, each of its samples alone, so that the guilty one is
    /// found. Advancing is done last and sample by sample, so a failed evaluation leaves every sample as it was.
    pub(super) fn evaluate_and_advance(&mut self, batch: &StepBatch) -> Vec<(SampleId, Result<(), Refusal>)> {
        let ids: Vec<SampleId> = batch.samples().collect();
        let now = Instant::now();
        for id in &ids {
            let job = self.samples[id].job;
            if let Some(state) = self.jobs.get_mut(&job) {
                state.first_step.get_or_insert(now);
            }
        }
        let together = caught(|| self.evaluate(&ids));
        match together {
            Ok(outputs) => self.advance(&ids, outputs),
            Err(refusal) if ids.len() > 1 => {
                if refusal.code == ErrorCode::OutOfMemory {
                    self.batcher.halve();
                }
                tracing::warn!(samples = ids.len(), reason = %refusal.message, "a batch failed; evaluating its samples one by one");
                ids.iter()
                    .flat_map(|id| match caught(|| self.evaluate(&[*id])) {
                        Ok(outputs) => self.advance(&[*id], outputs),
                        Err(refusal) => vec![(*id, Err(refusal))],
                    })
                    .collect()
            }
            Err(refusal) => vec![(ids[0], Err(refusal))],
        }
    }

    /// The network's outputs for each sample's rows: one forward for all of them.
    fn evaluate(&self, ids: &[SampleId]) -> Result<Vec<Vec<Tensor>>, Refusal> {
        for id in ids {
            let sample = &self.samples[id];
            self.provoke(sample.job, FaultPoint::Evaluate { step: sample.steps_taken(), samples: ids.len() })?;
        }
        // What the key says is what they share.
        let pipeline = ids.first().map(|id| self.samples[id].told.pipeline.clone());
        let pipeline = pipeline.ok_or_else(|| Refusal::failed("an empty batch"))?;
        let mut rows = Vec::new();
        for id in ids {
            let sample = &self.samples[id];
            let input = sample.network_input().map_err(Refusal::failed)?;
            rows.extend(branches(&sample.meta).iter().map(|branch| (input.clone(), sample.row(*branch))));
        }
        let mut outputs = forward(pipeline.as_ref(), &rows).map_err(Refusal::failed)?.into_iter();
        Ok(ids.iter().map(|id| outputs.by_ref().take(self.samples[id].meta.rows_now as usize).collect()).collect())
    }

    fn advance(&mut self, ids: &[SampleId], outputs: Vec<Vec<Tensor>>) -> Vec<(SampleId, Result<(), Refusal>)> {
        let mut outcomes = Vec::new();
        for (id, outputs) in ids.iter().zip(outputs) {
            let Some(sample) = self.samples.get_mut(id) else { continue };
            let pipeline = sample.told.pipeline.clone();
            let point = FaultPoint::Evaluate { step: sample.steps_taken(), samples: ids.len() };
            let spoiled = self.options.fault.as_ref().is_some_and(|hook| hook(sample.job, point) == Fault::NotANumber);
            let step = caught(|| {
                sample.advance(&outputs, pipeline.as_ref()).map_err(Refusal::failed)?;
                if spoiled { sample.spoil().map_err(Refusal::failed) } else { Ok(()) }
            });
            self.batcher.advanced(&sample.meta);
            outcomes.push((*id, step));
        }
        outcomes
    }
}

fn branches(meta: &SampleMeta) -> &'static [Branch] {
    if meta.rows_now > 1 { &[Branch::Cond, Branch::Uncond] } else { &[Branch::Cond] }
}
