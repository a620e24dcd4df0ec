//! The loop itself: schedule, evaluate, advance.

mod admission;
mod evaluation;
mod halving;
mod measuring;
mod parking;
mod settling;
mod warming;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use halving::Evaluated;

use candle_core::Device;

use super::EngineOptions;
use super::busy::Busy;
use super::controls::without_controls;
use super::events::{EngineDemand, EngineEvent, EventSink};
use super::finisher::{Desk, Finisher};
use super::ledger::{End, Ledger};
use super::refusal::Refusal;
use super::sample::SampleState;
use crate::diffusion::batching::{Batcher, Demand, SampleId, StepBatch};
use crate::domain::{BatchingPolicy, JobId, SizeKey};

/// Everything one engine knows, and its steps one by one. [`super::start()`] runs it on a thread; tests and [`super::draw`]
/// say themselves when a step is taken.
pub struct StepLoop {
    batcher: Batcher,
    samples: BTreeMap<SampleId, SampleState>,
    /// Those of the last batch.
    in_batch: Vec<SampleId>,
    ledger: Arc<Ledger>,
    finisher: Finisher,
    sink: EventSink,
    next_sample: u64,
    /// Jobs taken since the start, those that failed at once too.
    admitted: u64,
    /// When the last forward ended, where samples have been aboard ever since.
    forward_ended: Option<Instant>,
}

impl std::fmt::Debug for StepLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepLoop")
            .field("batcher", &self.batcher)
            .field("admitted", &self.admitted)
            .finish_non_exhaustive()
    }
}

impl StepLoop {
    /// An idle loop. What follows a sample's last step is done at once, within the tick that takes it.
    pub fn new(options: EngineOptions, sink: EventSink) -> Self {
        Self::with(Finisher::AtOnce(Desk { ledger: Arc::default(), sink: sink.clone(), options }), sink)
    }

    /// An idle loop. What follows a sample's last step is done on a thread beside it, which has a sink of its own and says when
    /// it works.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn beside_finisher(
        options: EngineOptions,
        sink: EventSink,
        (busy, finishers): (&Arc<Busy>, EventSink),
    ) -> std::io::Result<Self> {
        let desk = Desk { ledger: Arc::default(), sink: finishers, options };
        Ok(Self::with(Finisher::beside(desk, busy.clone())?, sink))
    }

    fn with(finisher: Finisher, sink: EventSink) -> Self {
        let Desk { ledger, options, .. } = finisher.desk();
        let mut batcher = Batcher::new(options.policy, options.caps);
        batcher.bound_memory(options.memory);
        Self {
            batcher,
            samples: BTreeMap::new(),
            in_batch: Vec::new(),
            ledger: ledger.clone(),
            finisher,
            sink,
            next_sample: 0,
            admitted: 0,
            forward_ended: None,
        }
    }

    fn options(&self) -> &EngineOptions {
        &self.finisher.desk().options
    }

    fn tell(&self, event: EngineEvent) {
        (self.sink)(event);
    }

    /// Whether no sample has steps to take, nor will have.
    pub fn is_idle(&self) -> bool {
        self.samples.is_empty() && !self.is_waiting()
    }

    /// Whether there is no step to take until a sample is back from between two passes.
    pub(super) fn is_waiting(&self) -> bool {
        self.samples.is_empty() && self.ledger.is_any_to_come()
    }

    /// One tick: one model evaluation for the samples whose turn it is.
    pub fn tick(&mut self) {
        for job in self.ledger.doomed() {
            // How it ended is known there already.
            self.leave(job, End::Cancelled);
        }
        // Who travels together comes back together.
        if self.options().policy == BatchingPolicy::Continuous || !self.ledger.is_any_between() {
            for sample in self.ledger.back() {
                self.join(sample);
            }
        }
        let Some(batch) = self.schedule() else { return };
        self.in_batch = batch.samples().collect();
        let control_rows = self.control_rows(&batch);
        let began = Instant::now();
        let gap = self.forward_ended.take().map(|ended| began.duration_since(ended));
        let device = self.device_of(&batch);
        let Evaluated { outcomes, is_one_forward, bytes } = self.evaluate_and_advance(&batch);
        // A GPU works on after the calls have returned; what it cannot do, the next call tells.
        let _ = device.map(|device| device.synchronize());
        let ended = Instant::now();
        let took = ended.duration_since(began);
        // Several smaller ones say nothing of a forward.
        if is_one_forward {
            let rows = batch.rows.len() as u32;
            let seconds = self.seconds(rows, without_controls(took.as_secs_f64(), rows, control_rows));
            self.learn(&batch.key, rows, (seconds, gap.unwrap_or_default().as_secs_f64()));
        }
        self.report(&batch, control_rows, (took, gap, bytes.filter(|_| is_one_forward)));
        self.settle(outcomes);
        self.forward_ended = Some(ended).filter(|_| !self.samples.is_empty());
    }

    /// Where a batch is evaluated.
    fn device_of(&self, batch: &StepBatch) -> Option<Device> {
        batch.samples().find_map(|id| Some(self.samples.get(&id)?.told.pipeline.device().clone()))
    }

    fn schedule(&mut self) -> Option<StepBatch> {
        let batch = self.batcher.next_batch()?;
        if let Some(demand) = self.batcher.demand() {
            let Demand { key, steps, rows, displaces, target, before } = demand;
            let size = SizeKey { model: key.model.clone(), width: key.width, height: key.height };
            let demand = EngineDemand { size, steps, rows, displaces, target, before, admitted: self.admitted };
            self.tell(EngineEvent::Demand(demand));
        }
        Some(batch)
    }

    /// So many rows wait for this device in the queue.
    pub fn set_waiting(&mut self, rows: u32) {
        self.batcher.set_waiting(rows);
    }

    /// Leaves a job; `Cancelled` follows, unless it has ended or is about to end otherwise.
    pub fn cancel(&mut self, job: JobId) {
        self.leave(job, End::Cancelled);
    }

    fn fail(&mut self, job: JobId, refusal: Refusal) {
        self.leave(job, End::Failed(refusal));
    }

    /// Lets go of a job's samples, and tells of its end once the finisher has nothing of it either.
    fn leave(&mut self, job: JobId, end: End) {
        self.samples.retain(|id, sample| {
            let stays = sample.job != job;
            if !stays {
                self.batcher.remove(*id);
            }
            stays
        });
        if self.samples.is_empty() {
            self.forward_ended = None;
        }
        if let Some(end) = self.ledger.leave(job, end) {
            self.tell(end);
        }
    }
}
