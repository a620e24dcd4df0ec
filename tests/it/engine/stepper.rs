//! The real step loop, a step at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use darkroom::diffusion::batching::BatchCaps;
use darkroom::diffusion::engine::{
    BatchReport, Drawing, EngineEvent, EngineJob, EngineOptions, FaultHook, ParkedJob, StepLoop,
};
use darkroom::diffusion::pipelines::Pipeline;
use darkroom::domain::{BatchingPolicy, Cost, ErrorCode, GenerationRequest, JobId, ModelId, QueuePlace};
use darkroom::images::RgbImage;

/// Forwards that cost the same whatever their rows: as many rows are aboard as the caps allow.
pub(super) const FREE_ROWS: Cost = Cost { fixed: 1.0, per_row: 1e-6 };

/// Options of the policy `continuous` with room for so many rows.
pub(super) fn continuous(max_rows: u32) -> EngineOptions {
    EngineOptions {
        policy: BatchingPolicy::Continuous,
        caps: BatchCaps { max_rows, max_row_pixels: u64::MAX },
        cost: Some(FREE_ROWS),
        ..EngineOptions::default()
    }
}

pub(super) struct Stepper {
    engine: StepLoop,
    pipelines: Vec<Arc<dyn Pipeline>>,
    events: Arc<Mutex<Vec<EngineEvent>>>,
    admitted: i64,
    pub(super) pictures: HashMap<(JobId, u32), RgbImage>,
    pub(super) batches: Vec<BatchReport>,
    pub(super) finished: Vec<JobId>,
    pub(super) cancelled: Vec<JobId>,
    /// With the sentence that says why.
    pub(super) failed: Vec<(JobId, ErrorCode, String)>,
    pub(super) parked: HashMap<JobId, ParkedJob>,
    /// Those that went on where they were parked.
    pub(super) resumed: Vec<JobId>,
}

impl Stepper {
    pub(super) fn new(pipelines: Vec<Arc<dyn Pipeline>>, options: EngineOptions, fault: Option<FaultHook>) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = events.clone();
        let sink = Arc::new(move |event| told.lock().unwrap().push(event));
        let engine = StepLoop::new(EngineOptions { fault, ..options }, sink);
        Self {
            engine,
            pipelines,
            events,
            admitted: 0,
            pictures: HashMap::new(),
            batches: Vec::new(),
            finished: Vec::new(),
            cancelled: Vec::new(),
            failed: Vec::new(),
            parked: HashMap::new(),
            resumed: Vec::new(),
        }
    }

    /// Admits a job that was accepted ten seconds after the one before.
    pub(super) fn admit(&mut self, request: &GenerationRequest) -> JobId {
        self.admit_at(request, 10_000 * self.admitted)
    }

    /// Admits a job with this rank in the queue.
    pub(super) fn admit_at(&mut self, request: &GenerationRequest, rank_ms: i64) -> JobId {
        self.admit_drawing(&request.clone().into(), rank_ms)
    }

    /// The same of a job that may start from a picture.
    pub(super) fn admit_drawing(&mut self, drawing: &Drawing, rank_ms: i64) -> JobId {
        let id = JobId::generate();
        self.admit_as(id, drawing, rank_ms, None);
        id
    }

    /// Admits a job that was parked, with where it stood.
    pub(super) fn resume(&mut self, drawing: &Drawing, parked: ParkedJob, rank_ms: i64) {
        self.admit_as(parked.job(), drawing, rank_ms, Some(Box::new(parked)));
    }

    fn admit_as(&mut self, id: JobId, drawing: &Drawing, rank_ms: i64, parked: Option<Box<ParkedJob>>) {
        let Drawing { request, canvas, controls } = drawing.clone();
        let (request, place) = (Arc::new(request), QueuePlace { rank_ms, id });
        let pipelines = self.pipelines.clone();
        self.engine.admit(&EngineJob { id, request, canvas, controls, place, pipelines, parked });
        self.admitted += 1;
        self.hear();
    }

    pub(super) fn park(&mut self, job: JobId) {
        self.engine.park(job);
        self.hear();
    }

    pub(super) fn cancel(&mut self, job: JobId) {
        self.engine.cancel(job);
        self.hear();
    }

    pub(super) fn give_away(&mut self, models: &[ModelId]) {
        self.engine.give_away(models);
        self.hear();
    }

    /// One step; false when there is nothing to do.
    pub(super) fn step(&mut self) -> bool {
        if self.engine.is_idle() {
            return false;
        }
        self.engine.tick();
        self.hear();
        true
    }

    pub(super) fn run(&mut self) {
        while self.step() {}
    }

    fn hear(&mut self) {
        for event in self.events.lock().unwrap().drain(..) {
            match event {
                EngineEvent::Image { job, image, picture } => {
                    assert!(self.pictures.insert((job, image), picture).is_none(), "a picture is told once");
                }
                EngineEvent::Batch(report) => self.batches.push(report),
                EngineEvent::Finished { job, .. } => self.finished.push(job),
                EngineEvent::Cancelled { job } => self.cancelled.push(job),
                EngineEvent::Failed { job, code, message } => self.failed.push((job, code, message)),
                EngineEvent::Started { job, is_resumed: true, .. } => self.resumed.push(job),
                EngineEvent::Parked { job, parked } => {
                    self.parked.insert(job, *parked.expect("its state can be kept"));
                }
                _ => {}
            }
        }
    }
}
