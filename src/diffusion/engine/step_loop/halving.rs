//! What becomes of a batch whose forward fails: its halves are evaluated, and theirs, until the guilty sample is alone.

use std::sync::Arc;

use candle_core::Tensor;

use super::StepLoop;
use crate::diffusion::batching::{BatchKey, SampleId, StepBatch};
use crate::diffusion::engine::memory_gate::Worked;
use crate::diffusion::engine::refusal::{Refusal, caught};
use crate::diffusion::kernels::with_memory_taken;
use crate::domain::ErrorCode;

/// The network's outputs by sample, and what the forward took above what was there, in bytes, where that is measured: on the CPU.
type Measured = (Vec<Vec<Tensor>>, Option<u64>);

/// What became of one sample.
pub(super) type Outcome = (SampleId, Result<(), Refusal>);

/// What became of a batch.
pub(super) struct Evaluated {
    pub outcomes: Vec<Outcome>,
    /// Whether one forward did it for all of them, at once.
    pub is_one_forward: bool,
    /// What that one took above what was there, in bytes; `None` where it is not measured.
    pub bytes: Option<u64>,
}

/// What was tried for one batch.
#[derive(Default)]
struct Tried {
    /// Rows of the forwards that failed and held the sample at hand, the largest first.
    failed: Vec<u32>,
    /// Rows of the largest forward that did not fail.
    fitted: u32,
    /// What that took, in bytes, where it is measured.
    bytes: Option<u64>,
    ran_out: bool,
    /// For other work on the device.
    had_to_wait: bool,
}

impl StepLoop {
    /// Evaluates and advances the samples of a batch.
    ///
    /// With one guilty sample among n that takes about `2 log2(n)` forwards. Where memory ran out, batches of this key have
    /// from now on no more rows than the largest forward that did not.
    pub(super) fn evaluate_and_advance(&mut self, batch: &StepBatch) -> Evaluated {
        let ids: Vec<SampleId> = batch.samples().collect();
        self.ledger.step(ids.iter().map(|id| self.samples[id].job));
        let mut tried = Tried::default();
        let outcomes = self.evaluate_or_halve(&batch.key, &ids, &mut tried);
        // One alone tells nothing of how many fit.
        if tried.ran_out && ids.len() > 1 {
            self.batcher.ran_out(&batch.key, tried.fitted);
        }
        let is_one_forward = tried.fitted == batch.rows.len() as u32 && !tried.had_to_wait;
        Evaluated { outcomes, is_one_forward, bytes: tried.bytes }
    }

    /// Advancing is done last and sample by sample, so a failed evaluation leaves every sample as it was.
    fn evaluate_or_halve(&mut self, key: &Arc<BatchKey>, ids: &[SampleId], tried: &mut Tried) -> Vec<Outcome> {
        let rows: u32 = ids.iter().map(|id| self.samples[id].meta.rows_now).sum();
        let Worked { result, is_plain } = self.options().gate.work(|| self.evaluate_measured(ids));
        tried.had_to_wait |= !is_plain;
        let refusal = match result {
            Ok((outputs, bytes)) => {
                if let Some(bytes) = bytes {
                    // Those of ControlNets too: what it takes is bounded, whoever takes it.
                    self.batcher.observe_bytes(key, rows, bytes);
                }
                if rows > tried.fitted {
                    (tried.fitted, tried.bytes) = (rows, bytes);
                }
                return self.advance(ids, outputs);
            }
            Err(refusal) => refusal,
        };
        tried.ran_out |= refusal.code == ErrorCode::OutOfMemory;
        if let [id] = ids {
            let believed = self.batcher.memory(key).map(|memory| memory.of(rows));
            return vec![(*id, Err(alone(refusal, (key, rows, believed), &tried.failed)))];
        }
        tracing::warn!(rows, samples = ids.len(), reason = %refusal.message, "a forward failed; trying its halves");
        tried.failed.push(rows);
        let (first, second) = ids.split_at(ids.len().div_ceil(2));
        let mut outcomes = self.evaluate_or_halve(key, first, tried);
        outcomes.extend(self.evaluate_or_halve(key, second, tried));
        tried.failed.pop();
        outcomes
    }

    fn evaluate_measured(&self, ids: &[SampleId]) -> Result<Measured, Refusal> {
        let (outputs, bytes) = with_memory_taken(|| caught(|| self.evaluate(ids)));
        let is_on_cpu = |id: &SampleId| self.samples[id].told.pipeline.device().is_cpu();
        let is_measured = ids.first().is_some_and(is_on_cpu);
        match self.options().device_bytes {
            Some(most) if outputs.is_ok() && bytes > most => {
                Err(Refusal::failed(format!("out of memory: {bytes} bytes wanted of {most}")))
            }
            _ => Ok((outputs?, is_measured.then_some(bytes))),
        }
    }
}

/// Why a sample fails that was evaluated alone, in so many rows of which so many bytes were expected, after larger forwards had
/// failed.
fn alone(refusal: Refusal, (key, rows, believed): (&BatchKey, u32, Option<f64>), failed: &[u32]) -> Refusal {
    let Refusal { code, message } = refusal;
    if code != ErrorCode::OutOfMemory {
        return Refusal { code, message };
    }
    let (width, height) = (key.width, key.height);
    let expected = believed.map(|bytes| format!(" (about {:.1} MiB)", bytes / f64::from(1 << 20))).unwrap_or_default();
    let larger: Vec<String> = failed.iter().map(u32::to_string).collect();
    let after = if larger.is_empty() { String::new() } else { format!(", as forwards of {} had", larger.join(", ")) };
    let message = format!(
        "a forward of this picture alone, {rows} row(s) of {width}x{height} pixels{expected}, ran out of memory{after}: {message}"
    );
    Refusal { code, message }
}
