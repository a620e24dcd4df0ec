//! The loop itself: schedule, evaluate, advance.

mod admission;
mod evaluation;
mod halving;
mod measuring;
mod parking;
mod settling;
mod warming;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use halving::Evaluated;

use super::EngineOptions;
use super::controls::without_controls;
use super::events::{EngineDemand, EngineEvent, EngineTimings, EventSink};
use super::fault::{Fault, FaultPoint};
use super::refusal::Refusal;
use super::sample::{SampleState, Told};
use crate::diffusion::batching::{BatchKey, Batcher, Demand, SampleId, StepBatch};
use crate::diffusion::pipelines::Pipeline;
use crate::domain::{GenerationRequest, JobId, ModelId, SizeKey};

struct JobState {
    /// What it brought.
    pipelines: Vec<Arc<dyn Pipeline>>,
    request: Arc<GenerationRequest>,
    /// Of its first pass.
    key: Arc<BatchKey>,
    told: Arc<Told>,
    pending: u32,
    timings: EngineTimings,
    first_step: Option<Instant>,
}

/// Everything one engine knows, and its steps one by one. [`super::start()`] runs it on a thread; tests and [`super::draw`]
/// say themselves when a step is taken.
pub struct StepLoop {
    /// Those it has throughout, and those that jobs brought.
    pipelines: HashMap<ModelId, Arc<dyn Pipeline>>,
    own: HashSet<ModelId>,
    options: EngineOptions,
    sink: EventSink,
    batcher: Batcher,
    samples: BTreeMap<SampleId, SampleState>,
    /// Those of the last batch.
    in_batch: Vec<SampleId>,
    jobs: HashMap<JobId, JobState>,
    next_sample: u64,
    /// Jobs taken since the start, those that failed at once too.
    admitted: u64,
    /// When the last forward ended, while there was something to do since.
    last_ended: Option<Instant>,
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
    /// An idle loop with models that it has throughout; jobs may bring others.
    pub fn new(pipelines: Vec<Arc<dyn Pipeline>>, options: EngineOptions, sink: EventSink) -> Self {
        let pipelines: HashMap<ModelId, Arc<dyn Pipeline>> = pipelines.into_iter().map(named).collect();
        let mut batcher = Batcher::new(options.policy, options.caps);
        batcher.bound_memory(options.memory);
        Self {
            batcher,
            own: pipelines.keys().cloned().collect(),
            pipelines,
            options,
            sink,
            samples: BTreeMap::new(),
            in_batch: Vec::new(),
            jobs: HashMap::new(),
            next_sample: 0,
            admitted: 0,
            last_ended: None,
        }
    }

    /// Whether nothing is left to draw.
    pub fn is_idle(&self) -> bool {
        self.samples.is_empty()
    }

    /// One tick: one model evaluation for the samples whose turn it is.
    pub fn tick(&mut self) {
        let Some(batch) = self.schedule() else { return };
        self.in_batch = batch.samples().collect();
        let control_rows = self.control_rows(&batch);
        let began = Instant::now();
        let between = self.last_ended.map_or(Duration::ZERO, |ended| began - ended);
        let Evaluated { outcomes, is_one_forward, bytes } = self.evaluate_and_advance(&batch);
        // A GPU works on after the calls have returned; what it cannot do, the next call tells.
        let _ = self.pipelines[&batch.key.model].device().synchronize();
        let took = began.elapsed();
        // Several smaller ones say nothing of a forward.
        if is_one_forward {
            let rows = batch.rows.len() as u32;
            let measured = || without_controls(took.as_secs_f64(), rows, control_rows);
            let seconds = self.options.cost.map_or_else(measured, |cost| cost.seconds(rows));
            self.learn(&batch.key, rows, (seconds, between.as_secs_f64()));
        }
        self.report(&batch, control_rows, (took, bytes.filter(|_| is_one_forward)));
        self.settle(outcomes);
        self.last_ended = Some(began + took).filter(|_| !self.is_idle());
    }

    fn schedule(&mut self) -> Option<StepBatch> {
        let batch = self.batcher.next_batch()?;
        if let Some(demand) = self.batcher.demand() {
            let Demand { key, steps, rows, displaces, target, before } = demand;
            let size = SizeKey { model: key.model.clone(), width: key.width, height: key.height };
            let demand = EngineDemand { size, steps, rows, displaces, target, before, admitted: self.admitted };
            (self.sink)(EngineEvent::Demand(demand));
        }
        Some(batch)
    }

    /// So many rows wait for this device in the queue.
    pub fn set_waiting(&mut self, rows: u32) {
        self.batcher.set_waiting(rows);
    }

    /// Leaves a job; `Cancelled` follows unless it has ended.
    pub fn cancel(&mut self, job: JobId) {
        if self.forget(job) {
            (self.sink)(EngineEvent::Cancelled { job });
        }
    }

    fn forget(&mut self, job: JobId) -> bool {
        self.samples.retain(|id, sample| {
            let stays = sample.job != job;
            if !stays {
                self.batcher.remove(*id);
            }
            stays
        });
        self.end(job)
    }

    /// The job has no samples any more, and what it alone brought is let go of.
    fn end(&mut self, job: JobId) -> bool {
        let was_here = self.jobs.remove(&job).is_some();
        let (own, jobs) = (&self.own, &self.jobs);
        let brought =
            |model: &ModelId| jobs.values().flat_map(|job| &job.pipelines).any(|pipeline| pipeline.info().id == *model);
        self.pipelines.retain(|model, _| own.contains(model) || brought(model));
        was_here
    }

    fn fail(&mut self, job: JobId, Refusal { code, message }: Refusal) {
        self.forget(job);
        (self.sink)(EngineEvent::Failed { job, code, message });
    }

    fn provoke(&self, job: JobId, point: FaultPoint) -> Result<(), Refusal> {
        match self.options.fault.as_ref().map_or(Fault::None, |hook| hook(job, point)) {
            Fault::None | Fault::NotANumber => Ok(()),
            Fault::Error => Err(Refusal::failed("a fault was asked for")),
            Fault::OutOfMemory => Err(Refusal::failed("out of memory was asked for")),
            Fault::Device => Err(Refusal::failed("CUDA_ERROR_LAUNCH_FAILED was asked for")),
            Fault::Panic => panic!("a panic was asked for"),
        }
    }
}

fn named(pipeline: Arc<dyn Pipeline>) -> (ModelId, Arc<dyn Pipeline>) {
    (pipeline.info().id.clone(), pipeline)
}
