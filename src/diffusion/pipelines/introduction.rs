//! What a model tells of itself: its card first, then what its configs say, then what its family is used to. No weights are
//! needed for it.

use super::Result;
use super::card::ModelCard;
use super::components::Components;
use crate::diffusion::samplers::{SamplingPlan, TrainingSchedule};
use crate::domain::{
    ComputeDtype, DeviceSpec, DtypeSpec, LatentSpace, ModelDefaults, ModelId, ModelInfo, SamplerKind, SigmaSchedule,
};

/// What is known of a model that is not loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Introduced {
    /// What it will tell of itself.
    pub info: ModelInfo,
    pub(super) weights: WeightBytes,
}

impl Introduced {
    /// About what [`Pipeline::bytes`] will be on a device: tensors that it does not use are counted too.
    ///
    /// [`Pipeline::bytes`]: super::Pipeline::bytes
    pub fn bytes(&self, device: DeviceSpec) -> u64 {
        let WeightBytes { network, others, dtype } = self.weights;
        network / ComputeDtype::F32.size_bytes() * dtype.on(device).size_bytes() + others
    }

    pub(super) fn in_dtype(mut self, dtype: DtypeSpec) -> Self {
        self.weights.dtype = dtype;
        self
    }
}

/// What weights take, told from their headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WeightBytes {
    /// Of the denoising network, were it f32.
    network: u64,
    /// Of the parts that are f32.
    others: u64,
    /// Of the network.
    dtype: DtypeSpec,
}

impl WeightBytes {
    pub(super) fn of(components: &Components<'_>, network: &str, others: &[&str]) -> Result<Self> {
        let (network, others) = (components.bytes(&[network])?, components.bytes(others)?);
        Ok(Self { network, others, dtype: DtypeSpec::default() })
    }
}

/// What a family knows of its checkpoint.
pub(super) struct Introduction<'a> {
    pub id: ModelId,
    pub family: &'static str,
    pub description: String,
    /// The side it was trained at, in latent pixels.
    pub sample_size: usize,
    /// Tokens of a prompt that it reads.
    pub prompt_tokens: usize,
    pub max_clip_skip: usize,
    pub guidance_embedded: bool,
    pub inpainting: bool,
    pub size_conditioning: bool,
    pub schedule: &'a TrainingSchedule,
    pub latents: LatentSpace,
}

/// Steps and guidance where neither request nor card says: those of diffusers' pipelines or of the papers.
struct Habits {
    steps: u32,
    guidance_scale: f64,
    sampler: SamplerKind,
}

impl Introduction<'_> {
    pub(super) fn info(self, card: &ModelCard) -> ModelInfo {
        let factor = self.latents.factor;
        let native = self.sample_size as u32 * factor;
        let supported = |kind, schedule| SamplingPlan::supports(self.schedule, kind, schedule);
        let samplers: Vec<SamplerKind> =
            SamplerKind::ALL.iter().copied().filter(|kind| supported(*kind, SigmaSchedule::Default)).collect();
        let schedules = SigmaSchedule::ALL.iter().copied();
        let sigma_schedules =
            schedules.filter(|schedule| samplers.iter().all(|kind| supported(*kind, *schedule))).collect();
        let (habits, usual) = (self.habits(&samplers), ModelDefaults::default());
        let defaults = ModelDefaults {
            width: card.defaults.width.unwrap_or(native),
            height: card.defaults.height.unwrap_or(native),
            steps: card.defaults.steps.unwrap_or(habits.steps),
            guidance_scale: card.defaults.guidance_scale.unwrap_or(habits.guidance_scale),
            guidance_rescale: card.defaults.guidance_rescale.unwrap_or(usual.guidance_rescale),
            sampler: card.defaults.sampler.unwrap_or(habits.sampler),
            sigma_schedule: card.defaults.sigma_schedule.unwrap_or(usual.sigma_schedule),
            noise: card.defaults.noise.unwrap_or(usual.noise),
            prompt_syntax: card.defaults.prompt_syntax.unwrap_or(usual.prompt_syntax),
            clip_skip: card.defaults.clip_skip.unwrap_or(usual.clip_skip),
        };
        ModelInfo {
            id: self.id,
            description: card.description.clone().unwrap_or(self.description),
            family: self.family.to_owned(),
            size_multiple: card.size_multiple.unwrap_or(factor).next_multiple_of(factor),
            min_side: card.min_side.unwrap_or(8 * factor),
            max_side: card.max_side.unwrap_or(4096),
            prompt_tokens: self.prompt_tokens as u32,
            max_clip_skip: self.max_clip_skip as u32,
            guidance_embedded: self.guidance_embedded,
            size_conditioning: self.size_conditioning,
            inpainting: self.inpainting,
            controlnets: Vec::new(),
            latents: self.latents,
            sha256: None,
            files: None,
            samplers,
            sigma_schedules,
            defaults,
        }
    }

    fn habits(&self, samplers: &[SamplerKind]) -> Habits {
        let has = |kind: &SamplerKind| samplers.contains(kind);
        let ModelDefaults { steps, guidance_scale, sampler, .. } = ModelDefaults::default();
        let sampler = if has(&sampler) { sampler } else { samplers.first().copied().unwrap_or(sampler) };
        let own = self.schedule.own_sampler().filter(has).unwrap_or(sampler);
        if self.guidance_embedded {
            // diffusers' `LatentConsistencyModelPipeline`.
            let sampler = if has(&SamplerKind::Lcm) { SamplerKind::Lcm } else { own };
            return Habits { steps: 4, guidance_scale: 8.5, sampler };
        }
        if self.schedule.is_for_few_steps() {
            // Distilled with guidance in them (Sauer et al. 2023): a second row would only spoil the picture.
            return Habits { steps: 4, guidance_scale: 0.0, sampler: own };
        }
        // diffusers' `StableDiffusionXLPipeline`.
        Habits { steps, guidance_scale: if self.size_conditioning { 5.0 } else { guidance_scale }, sampler }
    }
}
