//! One evaluation of the network for the samples of a batch, and their advance by it.

use candle_core::Tensor;

use super::StepLoop;
use super::halving::Outcome;
use crate::diffusion::batching::{Branch, SampleId, SampleMeta};
use crate::diffusion::engine::fault::{Fault, FaultPoint};
use crate::diffusion::engine::forward::forward;
use crate::diffusion::engine::refusal::{Refusal, caught};

impl StepLoop {
    /// The network's outputs for each sample's rows: one forward for all of them.
    pub(super) fn evaluate(&self, ids: &[SampleId]) -> Result<Vec<Vec<Tensor>>, Refusal> {
        for id in ids {
            let sample = &self.samples[id];
            self.options()
                .provoke(sample.job, FaultPoint::Evaluate { step: sample.steps_taken(), samples: ids.len() })?;
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

    /// Each sample by its outputs; one that fails leaves the others as they are.
    pub(super) fn advance(&mut self, ids: &[SampleId], outputs: Vec<Vec<Tensor>>) -> Vec<Outcome> {
        let fault = self.options().fault.clone();
        let mut outcomes = Vec::new();
        for (id, outputs) in ids.iter().zip(outputs) {
            let Some(sample) = self.samples.get_mut(id) else { continue };
            let pipeline = sample.told.pipeline.clone();
            let point = FaultPoint::Evaluate { step: sample.steps_taken(), samples: ids.len() };
            let spoiled = fault.as_ref().is_some_and(|hook| hook(sample.job, point) == Fault::NotANumber);
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
