//! How a job comes aboard.

use std::sync::Arc;

use super::StepLoop;
use crate::diffusion::batching::{BatchKey, SampleId};
use crate::diffusion::engine::events::{EngineEvent, EngineJob};
use crate::diffusion::engine::ledger::End;
use crate::diffusion::engine::prepare::{Prepared, prepare};
use crate::diffusion::engine::sample::SampleState;

impl StepLoop {
    /// Makes a job ready on this thread and takes it; its events follow, `Failed` at once if it cannot be drawn.
    pub fn admit(&mut self, job: &EngineJob) {
        match prepare(job, &self.finisher.desk().options) {
            Ok(prepared) => self.take(prepared),
            Err(refusal) => {
                self.admitted += 1;
                self.ledger.enter(job.id, 0, (0, None));
                self.leave(job.id, End::Failed(refusal));
            }
        }
    }

    /// Takes a job that is ready; its events follow.
    pub fn take(&mut self, prepared: Prepared) {
        let Prepared { id, samples, basis, is_resumed, warnings, drawn_by, encode_ms, .. } = prepared;
        self.admitted += 1;
        self.ledger.enter(id, samples.len() as u32, (encode_ms, Some(basis)));
        self.tell(EngineEvent::Started { job: id, warnings, drawn_by, is_resumed });
        for sample in samples {
            if is_resumed {
                let (image, step, total) = (sample.image, sample.steps_taken(), sample.total_steps());
                self.tell(EngineEvent::Progress { job: id, image, step, total });
            }
            self.join(sample);
        }
    }

    /// A sample comes into the batches, under an id of its own.
    pub(super) fn join(&mut self, mut sample: SampleState) {
        sample.meta.id = SampleId(self.next_sample);
        self.next_sample += 1;
        sample.meta.key = self.shared(sample.meta.key);
        self.batcher.add(sample.meta.clone());
        self.samples.insert(sample.meta.id, sample);
    }

    /// The one `Arc` of this key, so that comparing two samples' keys is comparing pointers.
    fn shared(&self, key: Arc<BatchKey>) -> Arc<BatchKey> {
        let known = self.samples.values().map(|sample| &sample.meta.key).find(|known| ***known == *key);
        known.cloned().unwrap_or(key)
    }
}
