//! What a job needs before its first step: prompts encoded, pictures encoded, its plan made, its samples begun.
//!
//! No part of the loop: whoever has a thread to spare does it there, and the loop takes what is ready between two steps.

use std::sync::Arc;
use std::time::Instant;

use super::EngineOptions;
use super::controls::Controls;
use super::events::EngineJob;
use super::fault::FaultPoint;
use super::guidance::Guidance;
use super::hand_over::HandOver;
use super::parking::{Basis, ParkedJob, ParkedSample};
use super::refusal::{Refusal, caught};
use super::sample::{NextPass, SampleState, Told};
use super::start::Start;
use crate::diffusion::batching::{BatchKey, SampleId, SampleMeta};
use crate::diffusion::pipelines::{
    self, Adapted, Conditioning, Pipeline, Prompt, PromptCache, PromptLookups, PromptSide,
};
use crate::domain::{DrawnBy, ErrorCode, GenerationRequest, JobId, ModelId};
use crate::images::ControlPicture;

/// A job that is ready for its first step.
pub struct Prepared {
    pub(super) id: JobId,
    /// As the loop will have them, but for their ids.
    pub(super) samples: Vec<SampleState>,
    /// What it rests on, should it be parked.
    pub(super) basis: Basis,
    /// Whether it goes on where it was parked.
    pub(super) is_resumed: bool,
    pub(super) warnings: Vec<String>,
    pub(super) drawn_by: DrawnBy,
    pub(super) lookups: PromptLookups,
    pub(super) encode_ms: u64,
}

impl Prepared {
    /// How often its prompts were found where those lately encoded are; none where they are not kept.
    pub fn lookups(&self) -> PromptLookups {
        self.lookups
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({})", self.id)
    }
}

/// Makes a job ready, on this thread: text encoders run, the autoencoder where it brings pictures, ControlNets and LoRAs are
/// loaded where they are not there yet. What it gives depends on the job alone. A panic in it is a refusal.
///
/// # Errors
/// Why the job cannot be drawn.
pub fn prepare(job: &EngineJob, options: &EngineOptions) -> Result<Prepared, Refusal> {
    let make = || {
        options.provoke(job.id, FaultPoint::Encode)?;
        let began = Instant::now();
        let request = &job.request;
        let mut reader = Reader { prompts: options.prompts.as_deref(), lookups: PromptLookups::default() };
        let adapted = job.pipeline(request.model())?.clone().adapted(request.loras()).map_err(Refusal::of_lora)?;
        let (key, mut told) = pass(&adapted, request, (&job.controls, 0), &mut reader)?;
        told.next = next_pass(job, &adapted, &mut reader)?;
        let warnings = adapted.warnings.into_iter().chain(told.warnings()).collect();
        told.canvas = job.canvas.clone();
        let told = Arc::new(told);
        let basis = job.basis((&key, &told)).map_err(Refusal::failed)?;
        let resumed = job.resumed(&basis, (&key, &told));
        let is_resumed = resumed.is_some();
        let samples = match resumed {
            Some(samples) => samples,
            None => begun(job, (&key, &told)).map_err(Refusal::failed)?,
        };
        let models = request.models().into_iter().filter_map(|model| job.pipeline(model).ok());
        let drawn_by = DrawnBy {
            embeddings: embeddings(told.pipeline.as_ref(), request)?,
            ..DrawnBy::models(models.map(|pipeline| pipeline.info()))
        };
        let (lookups, encode_ms) = (reader.lookups, began.elapsed().as_millis() as u64);
        Ok(Prepared { id: job.id, samples, basis, is_resumed, warnings, drawn_by, lookups, encode_ms })
    };
    options.gate.work(|| caught(make)).result
}

/// Those that either prompt names, each once.
fn embeddings(pipeline: &dyn Pipeline, request: &GenerationRequest) -> Result<Vec<(String, String)>, Refusal> {
    let mut named: Vec<(String, String)> = Vec::new();
    for side in [PromptSide::Positive, PromptSide::Negative] {
        let of_side = pipeline.embeddings(&Prompt::of(request, side)).map_err(Refusal::failed)?;
        named.extend(of_side.into_iter().filter(|one| !named.contains(one)).collect::<Vec<_>>());
    }
    Ok(named)
}

/// A job's samples at their beginning.
fn begun(job: &EngineJob, (key, told): (&Arc<BatchKey>, &Arc<Told>)) -> pipelines::Result<Vec<SampleState>> {
    let (request, pipeline) = (&job.request, told.pipeline.as_ref());
    let start = Start::of(pipeline, request, job.canvas.as_deref())?;
    let begin = |image| {
        let told = (told.clone(), start.as_ref());
        SampleState::begin((job.id, image), job.first_meta(key, &told.0), told, request, pipeline)
    };
    (0..request.num_images()).map(begin).collect()
}

impl EngineJob {
    /// What the batcher is told of one of its samples; the id is the loop's to give.
    fn first_meta(&self, key: &Arc<BatchKey>, told: &Told) -> SampleMeta {
        SampleMeta {
            id: SampleId(0),
            key: key.clone(),
            steps: self.request.steps_taken(),
            left: told.evaluations() as u32,
            rows: told.guidance.most_rows_from(0),
            rows_now: told.guidance.rows(0),
            place: self.place,
        }
    }

    fn basis(&self, (key, told): (&BatchKey, &Told)) -> pipelines::Result<Basis> {
        let models = self.request.models().into_iter().filter_map(|model| self.pipeline(model).ok());
        Basis::of(self.id, &self.request, (key, told), models)
    }

    /// Its samples as they stood when it was parked; `None` where it was not, or where its state is none of what is to be drawn
    /// now: the job starts anew.
    fn resumed(&self, now: &Basis, told: (&Arc<BatchKey>, &Arc<Told>)) -> Option<Vec<SampleState>> {
        match self.try_resume(self.parked.as_ref()?, now, told) {
            Ok(samples) => {
                tracing::info!(job.id = %self.id, samples = samples.len(), "a parked job goes on where it stood");
                Some(samples)
            }
            Err(reason) => {
                tracing::warn!(job.id = %self.id, %reason, "a parked state is not used; the job starts anew");
                None
            }
        }
    }

    fn try_resume(
        &self,
        parked: &ParkedJob,
        now: &Basis,
        (key, told): (&Arc<BatchKey>, &Arc<Told>),
    ) -> Result<Vec<SampleState>, String> {
        if let Some(difference) = parked.basis.differs_from(now) {
            return Err(difference);
        }
        if !parked.is_whole(self.request.num_images()) {
            return Err("it has not each picture once".to_owned());
        }
        let resumed = |state: &ParkedSample| {
            SampleState::resumed(self.id, self.first_meta(key, told), told, &self.request, state)
        };
        parked.samples.iter().map(resumed).collect()
    }

    fn pipeline(&self, model: &ModelId) -> Result<&Arc<dyn Pipeline>, Refusal> {
        self.pipelines.iter().find(|pipeline| pipeline.info().id == *model).ok_or_else(|| Refusal {
            code: ErrorCode::ModelNotFound,
            message: format!("model `{model}` is not loaded here"),
        })
    }
}

/// The pass after the first: over the enlarged latents with the same LoRAs, or by a refiner, which has none.
fn next_pass(job: &EngineJob, adapted: &Adapted, reader: &mut Reader<'_>) -> Result<Option<NextPass>, Refusal> {
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
        HandOver::AsTheyAre => Adapted::plain(job.pipeline(request.model())?.clone()),
    };
    let (key, mut told) = pass(&adapted, &request, (&job.controls, 1), reader)?;
    told.canvas = job.canvas.clone();
    Ok(Some(NextPass { key, told: Arc::new(told), hand_over, request: Arc::new(request) }))
}

/// What a job's samples share in one pass.
pub(super) fn pass(
    adapted: &Adapted,
    request: &GenerationRequest,
    controls: (&[ControlPicture], usize),
    reader: &mut Reader<'_>,
) -> Result<(Arc<BatchKey>, Told), Refusal> {
    let pipeline = &adapted.pipeline;
    let cond = reader.told(pipeline, request, PromptSide::Positive)?;
    let uncond = request.is_guided().then(|| reader.told(pipeline, request, PromptSide::Negative)).transpose()?;
    let plan = pipeline
        .plan(request)
        .map_err(|error| Refusal { code: ErrorCode::InvalidRequest, message: error.to_string() })?;
    let length = |side: &Conditioning| side.prompt.tokens().map_err(Refusal::failed);
    let tokens = [length(&cond)?, length(uncond.as_ref().unwrap_or(&cond))?];
    let key = Arc::new(BatchKey {
        latent_shape: pipeline.latent_shape(request.width(), request.height()),
        tokens,
        width: request.width(),
        height: request.height(),
        model: request.model().clone(),
        adapters: adapted.key.clone(),
    });
    let guidance = Guidance::of(request, plan.left_out);
    let controls = Controls::of(pipeline.as_ref(), request, controls, plan.steps.len()).map_err(Refusal::failed)?;
    let pipeline = adapted.pipeline.clone();
    Ok((key, Told { pipeline, plan, guidance, cond, uncond, controls, canvas: None, next: None }))
}

/// Reads a job's prompts.
#[derive(Default)]
pub(super) struct Reader<'a> {
    prompts: Option<&'a PromptCache>,
    lookups: PromptLookups,
}

impl Reader<'_> {
    /// What the request's rows on one side of guidance are told.
    fn told(
        &mut self,
        pipeline: &Arc<dyn Pipeline>,
        request: &GenerationRequest,
        side: PromptSide,
    ) -> Result<Conditioning, Refusal> {
        let prompt = Prompt::of(request, side);
        let embeds = match self.prompts {
            Some(prompts) => prompts.encode(pipeline, &prompt, &mut self.lookups),
            None => pipeline.encode_prompt(&prompt),
        };
        pipeline.condition(request, side, embeds.map_err(Refusal::failed)?).map_err(Refusal::failed)
    }
}
