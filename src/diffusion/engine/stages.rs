//! A picture's stages one by one, on inputs like those of a real picture; for measuring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::start::Start;
use super::{EngineOptions, draw};
use crate::diffusion::noise::NoiseGenerator;
use crate::diffusion::pipelines::{Conditioning, Pipeline, Prompt, PromptSide, Result, StepInputs, StepRow};
use crate::domain::{ErrorCode, GenerationRequest};

/// One request's stages; each method runs one of them and says how long it took, inputs made before the clock starts.
pub struct Stages {
    pipeline: Arc<dyn Pipeline>,
    request: GenerationRequest,
    /// (1, C, h, w) f32.
    latents: Tensor,
    /// Of the request's own steps.
    timesteps: Vec<f64>,
    conditioning: Conditioning,
    /// (1, C', h, w) f32.
    extra_channels: Option<Tensor>,
}

impl Stages {
    /// Encodes the prompt, draws noise from the seed and plans the steps.
    ///
    /// # Errors
    /// What the pipeline cannot do.
    pub fn prepare(pipeline: Arc<dyn Pipeline>, request: GenerationRequest) -> Result<Self> {
        let (c, h, w) = pipeline.latent_shape(request.width(), request.height());
        let mut noise = NoiseGenerator::new(request.noise(), request.seed());
        let mut normal = || {
            let mut values = vec![0f32; c * h * w];
            noise.standard_normal(&mut values);
            Ok(Tensor::from_vec(values, (1, c, h, w), pipeline.device())?)
        };
        let plan = pipeline.plan(&request)?;
        let extra_channels = match Start::of(pipeline.as_ref(), &request, None)? {
            Some(start) => start.begin(&plan, &mut normal)?.extra_channels,
            None => None,
        };
        let latents = normal()?;
        let timesteps = plan.steps.iter().map(|step| step.timestep).collect();
        let embeds = pipeline.encode_prompt(&Prompt::of(&request, PromptSide::Positive))?;
        let conditioning = pipeline.condition(&request, PromptSide::Positive, embeds)?;
        Ok(Self { pipeline, request, latents, timesteps, conditioning, extra_channels })
    }

    /// One prompt.
    pub fn text_encoder(&self) -> Result<Duration> {
        self.timed(|| self.pipeline.encode_prompt(&Prompt::of(&self.request, PromptSide::Positive)).map(drop))
    }

    /// One network evaluation of so many rows, at timesteps of the request's steps in turn.
    pub fn denoise(&self, rows: usize) -> Result<Duration> {
        let latents = Tensor::cat(&vec![&self.latents; rows], 0)?;
        let timesteps = self.timesteps.iter().copied().cycle().take(rows);
        let (conditioning, extra_channels) = (&self.conditioning, self.extra_channels.as_ref());
        let rows: Vec<StepRow<'_>> =
            timesteps.map(|timestep| StepRow { timestep, conditioning, extra_channels, controls: &[] }).collect();
        let inputs = StepInputs { latents: &latents, rows: &rows };
        self.timed(|| self.pipeline.denoise(&inputs).map(drop))
    }

    /// Latents to pixels: as many pictures as the request asks for, one after the other, as the engine decodes them.
    pub fn decode(&self) -> Result<Duration> {
        self.timed(|| (0..self.request.num_images()).try_for_each(|_| self.pipeline.decode(&self.latents).map(drop)))
    }

    /// The whole request, from its prompt to the pixels of all its pictures.
    ///
    /// # Errors
    /// Why it could not be drawn: in a word, and as a sentence.
    pub fn picture(&self, options: &EngineOptions) -> std::result::Result<Duration, (ErrorCode, String)> {
        let began = Instant::now();
        draw(self.pipeline.clone(), self.request.clone(), options.clone(), |_| {})?;
        Ok(began.elapsed())
    }

    /// A GPU works on after a call has returned: both ends wait for it.
    fn timed(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        self.pipeline.device().synchronize()?;
        let began = Instant::now();
        work()?;
        self.pipeline.device().synchronize()?;
        Ok(began.elapsed())
    }
}

impl std::fmt::Debug for Stages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stages({})", self.pipeline.info().id)
    }
}
