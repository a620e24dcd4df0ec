//! `darkroom.json`: what a model folder may say of itself beyond diffusers' configs.

use serde::Deserialize;

use crate::domain::{NoiseSource, PromptSyntax, SamplerKind, SigmaSchedule};

/// All keys are optional; what is absent is derived from the configs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ModelCard {
    /// One sentence for people.
    pub description: Option<String>,
    pub size_multiple: Option<u32>,
    pub min_side: Option<u32>,
    pub max_side: Option<u32>,
    pub defaults: CardDefaults,
    /// One `[r, g, b]` row a latent channel, for scaled latents and RGB in [0, 1].
    pub latent_rgb_factors: Option<Vec<[f32; 3]>>,
    pub latent_rgb_bias: Option<[f32; 3]>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CardDefaults {
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub steps: Option<u32>,
    pub guidance_scale: Option<f64>,
    pub guidance_rescale: Option<f64>,
    pub sampler: Option<SamplerKind>,
    pub sigma_schedule: Option<SigmaSchedule>,
    pub noise: Option<NoiseSource>,
    pub prompt_syntax: Option<PromptSyntax>,
    pub clip_skip: Option<u32>,
}
