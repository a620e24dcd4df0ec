//! How a job comes aboard: its prompts encoded, its plan made, its samples begun.

use std::sync::Arc;
use std::time::Instant;

use super::{JobState, StepLoop, named};
use crate::diffusion::batching::{BatchKey, SampleId, SampleMeta};
use crate::diffusion::engine::controls::Controls;
use crate::diffusion::engine::events::{EngineEvent, EngineJob, EngineTimings};
use crate::diffusion::engine::fault::FaultPoint;
use crate::diffusion::engine::guidance::Guidance;
use crate::diffusion::engine::hand_over::HandOver;
use crate::diffusion::engine::refusal::{Refusal, caught};
use crate::diffusion::engine::sample::{NextPass, SampleState, Told};
use crate::diffusion::engine::start::Start;
use crate::diffusion::pipelines::{self, Adapted, Conditioning, Pipeline, Prompt, PromptSide};
use crate::domain::{DrawnBy, ErrorCode, GenerationRequest, ModelId};
use crate::images::ControlPicture;

impl StepLoop {
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
        told.canvas = job.canvas.clone();
        let told = Arc::new(told);
        let resumed = self.resumed(job, &key, &told);
        let is_resumed = resumed.is_some();
        let samples = match resumed {
            Some(samples) => samples,
            None => self.begun(job, &key, &told).map_err(Refusal::failed)?,
        };
        let encode_ms = began.elapsed().as_millis() as u64;
        let timings = EngineTimings { encode_ms, ..EngineTimings::default() };
        let (pipelines, pending) = (job.pipelines.clone(), samples.len() as u32);
        let state = JobState { pipelines, request: request.clone(), key, told, pending, timings, first_step: None };
        self.jobs.insert(job.id, state);
        let models = request.models().into_iter().filter_map(|model| self.pipelines.get(model));
        let drawn_by = DrawnBy::models(models.map(|pipeline| pipeline.info()));
        (self.sink)(EngineEvent::Started { job: job.id, warnings, drawn_by, is_resumed });
        for sample in samples {
            if is_resumed {
                let (image, step, total) = (sample.image, sample.steps_taken(), sample.total_steps());
                (self.sink)(EngineEvent::Progress { job: job.id, image, step, total });
            }
            self.batcher.add(sample.meta.clone());
            self.samples.insert(sample.meta.id, sample);
        }
        Ok(())
    }

    /// A job's samples at their beginning.
    fn begun(&mut self, job: &EngineJob, key: &Arc<BatchKey>, told: &Arc<Told>) -> pipelines::Result<Vec<SampleState>> {
        let (request, pipeline) = (&job.request, told.pipeline.as_ref());
        let start = Start::of(pipeline, request, job.canvas.as_deref())?;
        let begin = |image| {
            let meta = self.first_meta(job, key, told);
            SampleState::begin((job.id, image), meta, (told.clone(), start.as_ref()), request, pipeline)
        };
        (0..request.num_images()).map(begin).collect()
    }

    /// What the batcher is told of one more sample of a job.
    pub(super) fn first_meta(&mut self, job: &EngineJob, key: &Arc<BatchKey>, told: &Told) -> SampleMeta {
        let id = SampleId(self.next_sample);
        self.next_sample += 1;
        SampleMeta {
            id,
            key: key.clone(),
            steps: job.request.steps_taken(),
            left: told.evaluations() as u32,
            rows: told.guidance.most_rows_from(0),
            rows_now: told.guidance.rows(0),
            place: job.place,
        }
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

    /// What a job's samples share in one pass.
    pub(super) fn pass(
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
        Ok((key, Told { pipeline, plan, guidance, cond, uncond, controls, canvas: None, next: None }))
    }

    /// The one `Arc` of this key, so that comparing two samples' keys is comparing pointers.
    fn shared(&self, key: BatchKey) -> Arc<BatchKey> {
        let known = self.samples.values().map(|sample| &sample.meta.key).find(|known| ***known == key);
        known.cloned().unwrap_or_else(|| Arc::new(key))
    }
}

/// What the request's rows on one side of guidance are told.
fn told(pipeline: &dyn Pipeline, request: &GenerationRequest, side: PromptSide) -> Result<Conditioning, Refusal> {
    let embeds = pipeline.encode_prompt(&Prompt::of(request, side)).map_err(Refusal::failed)?;
    pipeline.condition(request, side, embeds).map_err(Refusal::failed)
}
