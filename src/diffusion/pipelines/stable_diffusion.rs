//! Stable Diffusion 1.x and 2.x (diffusers `StableDiffusionPipeline`): CLIP text encoder, U-Net, autoencoder.

use candle_core::{Device, Tensor};

use super::card::ModelCard;
use super::{Conditioning, Error, Pipeline, Result, StepInputs};
use crate::diffusion::models::autoencoders::{AutoencoderKl, AutoencoderKlConfig};
use crate::diffusion::models::text_encoders::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use crate::diffusion::models::unets::{UNet2DConditionConfig, UNet2DConditionModel};
use crate::diffusion::models::{self};
use crate::diffusion::samplers::{PlanRequest, SamplingPlan, TrainingSchedule};
use crate::diffusion::weights::Checkpoint;
use crate::domain::{GenerationRequest, LatentRgb, ModelDefaults, ModelId, ModelInfo, SamplerKind, SigmaSchedule};
use crate::images::RgbImage;

/// A loaded checkpoint.
pub struct StableDiffusion {
    info: ModelInfo,
    tokenizer: ClipTokenizer,
    text_encoder: ClipTextModel,
    unet: UNet2DConditionModel,
    vae: AutoencoderKl,
    schedule: TrainingSchedule,
    latent_rgb: Option<LatentRgb>,
    device: Device,
}

impl std::fmt::Debug for StableDiffusion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StableDiffusion({})", self.info.id)
    }
}

impl StableDiffusion {
    /// Loads every component of the folder.
    ///
    /// # Errors
    /// The first fault: a missing or malformed file, a missing or misshapen tensor, a configuration value that is not
    /// supported, or components that do not fit together.
    pub fn load(id: ModelId, checkpoint: &Checkpoint, device: Device) -> Result<Self> {
        let within = |component: &str| {
            let file = checkpoint.describe(component);
            move |source: models::Error| Error::Network { file, source: Box::new(source) }
        };
        let config: ClipTextConfig = checkpoint.json("text_encoder/config.json")?;
        let text_encoder = ClipTextModel::load(config, &checkpoint.weights("text_encoder", &device)?)
            .map_err(within("text_encoder"))?;
        let tokenizer = ClipTokenizer::load(checkpoint, "tokenizer", text_encoder.config().max_tokens())?;
        let config = UNet2DConditionConfig::parse(checkpoint.json("unet/config.json")?).map_err(within("unet"))?;
        let unet = UNet2DConditionModel::load(config, &checkpoint.weights("unet", &device)?).map_err(within("unet"))?;
        let config: AutoencoderKlConfig = checkpoint.json("vae/config.json")?;
        let vae = AutoencoderKl::load(config, &checkpoint.weights("vae", &device)?).map_err(within("vae"))?;
        let schedule = checkpoint.text("scheduler/scheduler_config.json")?;
        let schedule = TrainingSchedule::from_json(&schedule)
            .map_err(|error| checkpoint.malformed("scheduler/scheduler_config.json", error.to_string()))?
            .mended_for_stable_diffusion();
        let card: ModelCard =
            if checkpoint.has("darkroom.json") { checkpoint.json("darkroom.json")? } else { ModelCard::default() };
        let mut model =
            Self { info: placeholder(id), tokenizer, text_encoder, unet, vae, schedule, latent_rgb: None, device };
        model.check(checkpoint)?;
        model.introduce(card);
        Ok(model)
    }

    /// Whether the components fit each other.
    fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let fault =
            |component: &str, reason: String| Err(Error::Unsupported { file: checkpoint.describe(component), reason });
        let (known, given) = (self.text_encoder.config().vocab_size(), self.tokenizer.vocab_size());
        if given > known {
            return fault("tokenizer", format!("it has {given} tokens, the text encoder knows {known}"));
        }
        let (told, asked) = (self.text_encoder.config().hidden_size(), self.unet.config().context_width());
        if told != asked {
            return fault(
                "unet/config.json",
                format!("cross_attention_dim is {asked}, the text encoder's vectors have {told}"),
            );
        }
        let (made, taken) = (self.vae.config().latent_channels(), self.unet.config().in_channels());
        if made != taken {
            return fault("unet/config.json", format!("in_channels is {taken}, the autoencoder's latents have {made}"));
        }
        Ok(())
    }

    /// What it tells of itself, from its card and its configs.
    fn introduce(&mut self, card: ModelCard) {
        let factor = self.vae.config().factor() as u32;
        let native = self.unet.config().sample_size().unwrap_or(64) as u32 * factor;
        let supported = |kind, schedule| SamplingPlan::supports(&self.schedule, kind, schedule);
        let samplers: Vec<SamplerKind> =
            SamplerKind::ALL.iter().copied().filter(|kind| supported(*kind, SigmaSchedule::Default)).collect();
        let schedules = SigmaSchedule::ALL.iter().copied();
        let sigma_schedules =
            schedules.filter(|schedule| samplers.iter().all(|kind| supported(*kind, *schedule))).collect();
        let fallback = samplers.first().copied().unwrap_or(SamplerKind::Ddim);
        let usual = ModelDefaults::default();
        let sampler = if samplers.contains(&usual.sampler) { usual.sampler } else { fallback };
        let defaults = ModelDefaults {
            width: card.defaults.width.unwrap_or(native),
            height: card.defaults.height.unwrap_or(native),
            steps: card.defaults.steps.unwrap_or(usual.steps),
            guidance_scale: card.defaults.guidance_scale.unwrap_or(usual.guidance_scale),
            sampler: card.defaults.sampler.unwrap_or(sampler),
            sigma_schedule: card.defaults.sigma_schedule.unwrap_or(usual.sigma_schedule),
            noise: card.defaults.noise.unwrap_or(usual.noise),
        };
        self.latent_rgb = match (card.latent_rgb_factors, card.latent_rgb_bias) {
            (Some(factors), Some(bias)) if factors.len() == self.vae.config().latent_channels() => {
                Some(LatentRgb { factors, bias })
            }
            _ => None,
        };
        self.info = ModelInfo {
            id: self.info.id.clone(),
            description: card
                .description
                .unwrap_or_else(|| "A Stable Diffusion checkpoint in the diffusers layout.".to_owned()),
            family: "stable-diffusion".to_owned(),
            size_multiple: card.size_multiple.unwrap_or(factor).next_multiple_of(factor),
            min_side: card.min_side.unwrap_or(8 * factor),
            max_side: card.max_side.unwrap_or(4096),
            prompt_tokens: self.text_encoder.config().max_tokens() as u32 - 2,
            samplers,
            sigma_schedules,
            defaults,
        };
    }
}

fn placeholder(id: ModelId) -> ModelInfo {
    ModelInfo {
        id,
        description: String::new(),
        family: String::new(),
        size_multiple: 1,
        min_side: 1,
        max_side: 1,
        prompt_tokens: 0,
        samplers: Vec::new(),
        sigma_schedules: Vec::new(),
        defaults: ModelDefaults::default(),
    }
}

impl Pipeline for StableDiffusion {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn encode_prompt(&self, prompt: &str) -> Result<Conditioning> {
        let tokens = self.tokenizer.encode(prompt)?;
        let length = tokens.ids.len();
        let ids = Tensor::from_vec(tokens.ids, (1, length), &self.device)?;
        let mut warnings = Vec::new();
        if tokens.cut > 0 {
            let (room, cut) = (length - 2, tokens.cut);
            warnings.push(format!(
                "the text encoder of `{}` reads {room} tokens; the last {cut} of a prompt were cut",
                self.info.id
            ));
        }
        Ok(Conditioning { hidden_states: self.text_encoder.forward(&ids)?, warnings })
    }

    fn plan(&self, request: &GenerationRequest) -> Result<SamplingPlan> {
        let (kind, sigma_schedule) = (request.sampler(), request.sigma_schedule());
        let request = PlanRequest { kind, sigma_schedule, steps: request.steps(), eta: request.eta(), skip: 0 };
        Ok(SamplingPlan::build(&self.schedule, &request)?)
    }

    fn latent_shape(&self, width: u32, height: u32) -> (usize, usize, usize) {
        let factor = self.vae.config().factor();
        (self.vae.config().latent_channels(), height as usize / factor, width as usize / factor)
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn denoise(&self, inputs: &StepInputs<'_>) -> Result<Tensor> {
        Ok(self.unet.forward(inputs.latents, inputs.timesteps, inputs.hidden_states)?)
    }

    fn decode(&self, latents: &Tensor) -> Result<RgbImage> {
        let config = self.vae.config();
        let unscaled = ((latents / config.scaling_factor())? + config.shift_factor())?;
        // [-1, 1] to [0, 1] as diffusers' `VaeImageProcessor` does.
        let picture = ((self.vae.decode(&unscaled)? * 0.5)? + 0.5)?;
        to_rgb(&picture)
    }

    fn preview(&self, latents: &Tensor) -> Result<Option<RgbImage>> {
        let Some(LatentRgb { factors, bias }) = &self.latent_rgb else { return Ok(None) };
        let (_, channels, h, w) = latents.dims4()?;
        let factors: Vec<f32> = factors.iter().flatten().copied().collect();
        let factors = Tensor::from_vec(factors, (channels, 3), &self.device)?.t()?.contiguous()?;
        let bias = Tensor::from_slice(bias, (3, 1), &self.device)?;
        let picture = factors.matmul(&latents.reshape((channels, h * w))?)?.broadcast_add(&bias)?;
        Ok(Some(to_rgb(&picture.reshape((1, 3, h, w))?)?))
    }
}

/// (1, 3, H, W) f32 in [0, 1], clamped, to 8 bits, rounding half to even as numpy does.
fn to_rgb(picture: &Tensor) -> Result<RgbImage> {
    let (_, _, h, w) = picture.dims4()?;
    let values: Vec<f32> = picture.squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1()?;
    let pixels = values.into_iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
    Ok(RgbImage::from_pixels(w as u32, h as u32, pixels).expect("three bytes a pixel. This is a bug in pipelines."))
}
