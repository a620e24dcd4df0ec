//! Learning from what forwards took.

use std::sync::Arc;

use super::StepLoop;
use crate::diffusion::batching::BatchKey;
use crate::diffusion::engine::events::EngineEvent;
use crate::domain::{ForwardReport, SizeKey};

impl StepLoop {
    /// What a forward of so many rows is taken to have cost: what it took, but in tests.
    pub(super) fn seconds(&self, rows: u32, took: f64) -> f64 {
        self.options().cost.map_or(took, |cost| cost.seconds(rows))
    }

    /// A forward of so many rows took so many seconds, so many after the one before; this is told beside what was expected.
    pub(super) fn learn(&mut self, key: &Arc<BatchKey>, rows: u32, (took, between): (f64, f64)) {
        let expected = self.batcher.cost(key).map(|cost| cost.seconds(rows));
        self.batcher.observe(key, rows, took);
        let Some(cost) = self.batcher.cost(key) else { return };
        let report = ForwardReport {
            size: SizeKey { model: key.model.clone(), width: key.width, height: key.height },
            expected,
            took,
            between,
            cost,
            memory: self.batcher.memory(key),
            most_rows: self.batcher.most_rows(key),
            policy: self.options().policy,
        };
        self.tell(EngineEvent::Forward(report));
    }
}
