//! The loop itself: schedule, evaluate, advance.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::EngineOptions;
use super::controls::{Controls, without_controls};
use super::events::{BatchReport, EngineDemand, EngineEvent, EngineJob, EngineTimings, EventSink};
use super::fault::{Fault, FaultPoint};
use super::forward::forward;
use super::guidance::Guidance;
use super::hand_over::HandOver;
use super::refusal::{Refusal, caught};
use super::sample::{NextPass, SampleState, Told};
use super::start::Start;
use crate::diffusion::batching::{BatchKey, Batcher, Demand, SampleId, SampleMeta, StepBatch};
use crate::diffusion::pipelines::{Adapted, Conditioning, Pipeline, Prompt, PromptSide};
use crate::domain::{DrawnBy, ErrorCode, GenerationRequest, JobId, ModelId, SizeKey};
use crate::images::ControlPicture;

struct JobState {
    /// What it brought.
    pipelines: Vec<Arc<dyn Pipeline>>,
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
    jobs: HashMap<JobId, JobState>,
    next_sample: u64,
    /// Jobs taken since the start, those that failed at once too.
    admitted: u64,
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
        Self {
            batcher: Batcher::new(options.policy, options.caps),
            own: pipelines.keys().cloned().collect(),
            pipelines,
            options,
            sink,
            samples: BTreeMap::new(),
            jobs: HashMap::new(),
            next_sample: 0,
            admitted: 0,
        }
    }

    /// Whether nothing is left to draw.
    pub fn is_idle(&self) -> bool {
        self.samples.is_empty()
    }

    /// One tick: one model evaluation for the samples whose turn it is.
    pub fn tick(&mut self) {
        let Some(batch) = self.schedule() else { return };
        let control_rows = self.control_rows(&batch);
        let began = Instant::now();
        let outcomes = self.evaluate_and_advance(&batch);
        // A GPU works on after the calls have returned; what it cannot do, the next call tells.
        let _ = self.pipelines[&batch.key.model].device().synchronize();
        let took = began.elapsed();
        // A forward whose samples were evaluated one by one says nothing of forwards.
        if outcomes.iter().all(|(_, outcome)| outcome.is_ok()) {
            let rows = batch.rows.len() as u32;
            let measured = || without_controls(took.as_secs_f64(), rows, control_rows);
            let seconds = self.options.cost.map_or_else(measured, |cost| cost.seconds(rows));
            self.batcher.observe(&batch.key, rows, seconds);
        }
        self.report(&batch, control_rows, took);
        self.settle(outcomes);
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

    // Admission --------------------------------------------------------------------------------------------------

    /// Takes a job; its events follow, `Failed` at once if it cannot be drawn.
    pub fn admit(&mut self, job: &EngineJob) {
        self.admitted += 1;
        for (model, pipeline) in job.pipelines.iter().cloned().map(named) {
            self.pipelines.entry(model).or_insert(pipeline);
        }
        let result = caught(|| self.try_admit(job));
        if let Err(refusal) = result {
            self.fail(job.id, refusal);
        }
    }

    fn try_admit(&mut self, job: &EngineJob) -> Result<(), Refusal> {
        let request = &job.request;
        let pipeline = self.pipeline(request.model())?;
        self.provoke(job.id, FaultPoint::Encode)?;
        let began = Instant::now();
        let adapted = pipeline.adapted(request.loras()).map_err(Refusal::of_lora)?;
        let (key, mut told) = self.pass(&adapted, request, (&job.controls, 0))?;
        told.next = self.next_pass(job, &adapted)?;
        let warnings = adapted.warnings.into_iter().chain(told.warnings()).collect();
        let pipeline = adapted.pipeline;
        told.start = Start::of(pipeline.as_ref(), request, job.canvas.as_deref()).map_err(Refusal::failed)?;
        told.canvas = job.canvas.clone();
        let told = Arc::new(told);
        let encode_ms = began.elapsed().as_millis() as u64;
        for image in 0..request.num_images() {
            let meta = SampleMeta {
                id: SampleId(self.next_sample),
                key: key.clone(),
                steps: request.steps_taken(),
                left: told.evaluations() as u32,
                rows: told.guidance.most_rows_from(0),
                rows_now: told.guidance.rows(0),
                place: job.place,
            };
            self.next_sample += 1;
            let sample = SampleState::begin((job.id, image), meta.clone(), told.clone(), request, pipeline.as_ref())
                .map_err(Refusal::failed)?;
            self.samples.insert(meta.id, sample);
            self.batcher.add(meta);
        }
        let timings = EngineTimings { encode_ms, ..EngineTimings::default() };
        let (pipelines, pending) = (job.pipelines.clone(), request.num_images());
        self.jobs.insert(job.id, JobState { pipelines, pending, timings, first_step: None });
        let models = request.models().into_iter().filter_map(|model| self.pipelines.get(model));
        let drawn_by = DrawnBy::models(models.map(|pipeline| pipeline.info()));
        (self.sink)(EngineEvent::Started { job: job.id, warnings, drawn_by });
        Ok(())
    }

    fn pipeline(&self, model: &ModelId) -> Result<Arc<dyn Pipeline>, Refusal> {
        self.pipelines.get(model).cloned().ok_or_else(|| Refusal {
            code: ErrorCode::ModelNotFound,
            message: format!("model `{model}` is not loaded here"),
        })
    }

    /// The pass after the first: over the enlarged latents with the same LoRAs, or by a refiner, which has none.
    fn next_pass(&self, job: &EngineJob, adapted: &Adapted) -> Result<Option<NextPass>, Refusal> {
        let first = &job.request;
        let (request, hand_over) = match (first.hires(), first.hires_pass(), first.refiner_pass()) {
            (Some(hires), Some(second), _) => {
                let (width, height) = (second.width(), second.height());
                (second, HandOver::Enlarged { upscaler: hires.upscaler, width, height })
            }
            (_, _, Some(second)) => (second, HandOver::AsTheyAre),
            _ => return Ok(None),
        };
        let adapted = match hand_over {
            HandOver::Enlarged { .. } => adapted.clone(),
            HandOver::AsTheyAre => Adapted::plain(self.pipeline(request.model())?),
        };
        let (key, mut told) = self.pass(&adapted, &request, (&job.controls, 1))?;
        told.canvas = job.canvas.clone();
        Ok(Some(NextPass { key, told: Arc::new(told), hand_over, request: Arc::new(request) }))
    }

    /// What a job's samples share in one pass, but for what they start from.
    fn pass(
        &self,
        adapted: &Adapted,
        request: &GenerationRequest,
        controls: (&[ControlPicture], usize),
    ) -> Result<(Arc<BatchKey>, Told), Refusal> {
        let pipeline = adapted.pipeline.as_ref();
        let cond = told(pipeline, request, PromptSide::Positive)?;
        let uncond = request.is_guided().then(|| told(pipeline, request, PromptSide::Negative)).transpose()?;
        let plan = pipeline
            .plan(request)
            .map_err(|error| Refusal { code: ErrorCode::InvalidRequest, message: error.to_string() })?;
        let length = |side: &Conditioning| side.prompt.tokens().map_err(Refusal::failed);
        let tokens = [length(&cond)?, length(uncond.as_ref().unwrap_or(&cond))?];
        let key = self.shared(BatchKey {
            latent_shape: pipeline.latent_shape(request.width(), request.height()),
            tokens,
            width: request.width(),
            height: request.height(),
            model: request.model().clone(),
            adapters: adapted.key.clone(),
        });
        let guidance = Guidance::of(request, plan.left_out);
        let controls = Controls::of(pipeline, request, controls, plan.steps.len()).map_err(Refusal::failed)?;
        let pipeline = adapted.pipeline.clone();
        Ok((key, Told { pipeline, plan, guidance, cond, uncond, controls, start: None, canvas: None, next: None }))
    }

    /// The one `Arc` of this key, so that comparing two samples' keys is comparing pointers.
    fn shared(&self, key: BatchKey) -> Arc<BatchKey> {
        let known = self.samples.values().map(|sample| &sample.meta.key).find(|known| ***known == key);
        known.cloned().unwrap_or_else(|| Arc::new(key))
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

    // One evaluation ---------------------------------------------------------------------------------------------

    /// Evaluates and advances the whole batch; when that fails, each of its samples alone, so that the guilty one is
    /// found. Advancing is done last and sample by sample, so a failed evaluation leaves every sample as it was.
    fn evaluate_and_advance(&mut self, batch: &StepBatch) -> Vec<(SampleId, Result<(), Refusal>)> {
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

    // What follows a step ----------------------------------------------------------------------------------------

    fn report(&mut self, batch: &StepBatch, control_rows: u32, took: Duration) {
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
        };
        (self.sink)(EngineEvent::Batch(report));
    }

    /// Rows that ControlNets will evaluate for this batch.
    fn control_rows(&self, batch: &StepBatch) -> u32 {
        batch.rows.iter().map(|row| self.samples[&row.sample].row(row.branch).controls.len() as u32).sum()
    }

    fn settle(&mut self, outcomes: Vec<(SampleId, Result<(), Refusal>)>) {
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

    fn provoke(&self, job: JobId, point: FaultPoint) -> Result<(), Refusal> {
        match self.options.fault.as_ref().map_or(Fault::None, |hook| hook(job, point)) {
            Fault::None | Fault::NotANumber => Ok(()),
            Fault::Error => Err(Refusal::failed("a fault was asked for")),
            Fault::OutOfMemory => Err(Refusal::failed("out of memory was asked for")),
            Fault::Panic => panic!("a panic was asked for"),
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

fn named(pipeline: Arc<dyn Pipeline>) -> (ModelId, Arc<dyn Pipeline>) {
    (pipeline.info().id.clone(), pipeline)
}

fn branches(meta: &SampleMeta) -> &'static [crate::diffusion::batching::Branch] {
    use crate::diffusion::batching::Branch::{Cond, Uncond};
    if meta.rows_now > 1 { &[Cond, Uncond] } else { &[Cond] }
}

/// What the request's rows on one side of guidance are told.
fn told(pipeline: &dyn Pipeline, request: &GenerationRequest, side: PromptSide) -> Result<Conditioning, Refusal> {
    let embeds = pipeline.encode_prompt(&Prompt::of(request, side)).map_err(Refusal::failed)?;
    pipeline.condition(request, side, embeds).map_err(Refusal::failed)
}
