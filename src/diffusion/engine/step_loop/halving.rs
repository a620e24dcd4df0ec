//! What becomes of a batch whose forward fails: its halves are evaluated, and theirs, until the guilty sample is alone.

use std::time::Instant;

use super::StepLoop;
use crate::diffusion::batching::{BatchKey, SampleId, StepBatch};
use crate::diffusion::engine::refusal::{Refusal, caught};
use crate::domain::ErrorCode;

/// What became of one sample.
pub(super) type Outcome = (SampleId, Result<(), Refusal>);

/// What was tried for one batch.
#[derive(Default)]
struct Tried {
    /// Rows of the forwards that failed and held the sample at hand, the largest first.
    failed: Vec<u32>,
    /// Rows of the largest forward that did not fail.
    fitted: u32,
    ran_out: bool,
}

impl StepLoop {
    /// Evaluates and advances the samples of a batch, and tells whether one forward did it for all of them.
    ///
    /// With one guilty sample among n that takes about `2 log2(n)` forwards. Where memory ran out, batches of this key have
    /// from now on no more rows than the largest forward that did not.
    pub(super) fn evaluate_and_advance(&mut self, batch: &StepBatch) -> (Vec<Outcome>, bool) {
        let ids: Vec<SampleId> = batch.samples().collect();
        let now = Instant::now();
        for id in &ids {
            let job = self.samples[id].job;
            if let Some(state) = self.jobs.get_mut(&job) {
                state.first_step.get_or_insert(now);
            }
        }
        let mut tried = Tried::default();
        let outcomes = self.evaluate_or_halve(&batch.key, &ids, &mut tried);
        // One alone tells nothing of how many fit.
        if tried.ran_out && ids.len() > 1 {
            self.batcher.ran_out(&batch.key, tried.fitted);
        }
        (outcomes, tried.fitted == batch.rows.len() as u32)
    }

    /// Advancing is done last and sample by sample, so a failed evaluation leaves every sample as it was.
    fn evaluate_or_halve(&mut self, key: &BatchKey, ids: &[SampleId], tried: &mut Tried) -> Vec<Outcome> {
        let rows: u32 = ids.iter().map(|id| self.samples[id].meta.rows_now).sum();
        let refusal = match caught(|| self.evaluate(ids)) {
            Ok(outputs) => {
                tried.fitted = tried.fitted.max(rows);
                return self.advance(ids, outputs);
            }
            Err(refusal) => refusal,
        };
        tried.ran_out |= refusal.code == ErrorCode::OutOfMemory;
        if let [id] = ids {
            return vec![(*id, Err(alone(refusal, key, rows, &tried.failed)))];
        }
        tracing::warn!(rows, samples = ids.len(), reason = %refusal.message, "a forward failed; trying its halves");
        tried.failed.push(rows);
        let (first, second) = ids.split_at(ids.len().div_ceil(2));
        let mut outcomes = self.evaluate_or_halve(key, first, tried);
        outcomes.extend(self.evaluate_or_halve(key, second, tried));
        tried.failed.pop();
        outcomes
    }
}

/// Why a sample fails that was evaluated alone, after larger forwards had failed.
fn alone(refusal: Refusal, key: &BatchKey, rows: u32, failed: &[u32]) -> Refusal {
    let Refusal { code, message } = refusal;
    if code != ErrorCode::OutOfMemory {
        return Refusal { code, message };
    }
    let (width, height) = (key.width, key.height);
    let larger: Vec<String> = failed.iter().map(u32::to_string).collect();
    let after = if larger.is_empty() { String::new() } else { format!(", as forwards of {} had", larger.join(", ")) };
    let message = format!(
        "a forward of this picture alone, {rows} row(s) of {width}x{height} pixels, ran out of memory{after}: {message}"
    );
    Refusal { code, message }
}
