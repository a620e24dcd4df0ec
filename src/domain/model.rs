//! What is known of a served model before it draws, and whether it is there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::sampling::wire_names;
use super::{ControlNetInfo, ModelId, NoiseSource, PromptSyntax, SamplerKind, SigmaSchedule};

/// What requests to this model may ask for, and what they get when they don't say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The name clients write.
    pub id: ModelId,
    /// One sentence for people.
    pub description: String,
    /// The pipeline family, such as `stable-diffusion`.
    pub family: String,
    /// Widths and heights are multiples of this, in pixels.
    pub size_multiple: u32,
    /// The smallest width and height, in pixels.
    pub min_side: u32,
    /// The largest width and height, in pixels.
    pub max_side: u32,
    /// Tokens of a prompt the text encoder sees, its start and end marks not counted.
    pub prompt_tokens: u32,
    /// The largest `clip_skip`: one layer of the text encoder stays.
    pub max_clip_skip: u32,
    /// Whether the network is told the guidance scale, so that no unconditional row is evaluated and a negative prompt says
    /// nothing (latent consistency models).
    pub guidance_embedded: bool,
    /// Whether the network is told sizes (`size_conditioning`; Stable Diffusion XL).
    pub size_conditioning: bool,
    /// Whether the network is shown a mask and the masked picture. Without a mask it draws everything.
    pub inpainting: bool,
    /// The ControlNets that are here, each with why it does not fit this model where it does not.
    #[serde(default)]
    pub controlnets: Vec<ControlNetInfo>,
    /// What its latents are. A model can go on with another's (`refiner`) where both have the same.
    pub latents: LatentSpace,
    /// By which file it draws: lower-case hex SHA-256 of a checkpoint in one file, of a folder's U-Net weights. None until it
    /// has been loaded.
    pub sha256: Option<String>,
    /// Tells all files that it was loaded from, and what its operator says of it, from others: hex SHA-256, of their names, sizes
    /// and times of change. None until it has been loaded. Of this server's disk, so nothing for clients.
    #[serde(skip)]
    pub files: Option<String>,
    /// Samplers this model can be sampled with.
    pub samplers: Vec<SamplerKind>,
    /// Sigma schedules it can be sampled with.
    pub sigma_schedules: Vec<SigmaSchedule>,
    /// What a request gets when it does not say.
    pub defaults: ModelDefaults,
}

/// A model's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelDefaults {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Sampler steps.
    pub steps: u32,
    /// Classifier-free guidance.
    pub guidance_scale: f64,
    /// How far guidance's widening of the output is taken back, 0 to 1.
    pub guidance_rescale: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// The noise levels it visits.
    pub sigma_schedule: SigmaSchedule,
    /// What a seed means.
    pub noise: NoiseSource,
    /// What brackets in a prompt mean.
    pub prompt_syntax: PromptSyntax,
    /// Last layers of the text encoder to leave out.
    pub clip_skip: u32,
}

/// Of a checkpoint that says nothing.
impl Default for ModelDefaults {
    fn default() -> Self {
        Self {
            width: 512,
            height: 512,
            steps: 30,
            guidance_scale: 7.5,
            guidance_rescale: 0.0,
            sampler: SamplerKind::DpmPp2m,
            sigma_schedule: SigmaSchedule::Default,
            noise: NoiseSource::default(),
            prompt_syntax: PromptSyntax::default(),
            clip_skip: 0,
        }
    }
}

/// What drew a picture, by the hashes of its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrawnBy {
    /// The request's models, those that were loaded.
    pub models: Vec<DrawnByModel>,
    /// Textual inversion embeddings that the prompts name, and the first 12 digits of the SHA-256 of their files.
    pub embeddings: Vec<(String, String)>,
}

/// A model that drew a picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawnByModel {
    /// The name clients use.
    pub id: ModelId,
    /// [`ModelInfo::sha256`].
    pub sha256: Option<String>,
}

impl DrawnBy {
    /// These models.
    pub fn models<'a>(models: impl IntoIterator<Item = &'a ModelInfo>) -> Self {
        let model = |info: &ModelInfo| DrawnByModel { id: info.id.clone(), sha256: info.sha256.clone() };
        Self { models: models.into_iter().map(model).collect(), ..Self::default() }
    }

    /// What other programs call a model's hash: the first ten digits ("AutoV2").
    pub fn model_hash(&self, id: &ModelId) -> Option<&str> {
        let model = self.models.iter().find(|model| model.id == *id)?;
        model.sha256.as_deref()?.get(..10)
    }
}

/// What a model's latents are: those of two models with the same numbers here stand for about the same pictures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatentSpace {
    /// Of the latents.
    pub channels: u32,
    /// Picture pixels a latent pixel, each way.
    pub factor: u32,
    /// What the autoencoder's latents are multiplied with (`scaling_factor` of its config).
    pub scaling_factor: f64,
}

wire_names! {
    /// When a served model is loaded.
    ModelLoad {
        /// Before the server answers.
        Start => "start",
        /// When a job wants it.
        FirstUse => "first_use",
    }
}

wire_names! {
    /// Whether a device has a model.
    ModelState {
        /// Not loaded; a job that wants it has it loaded.
        Available => "available",
        /// Being loaded.
        Loading => "loading",
        /// Ready to draw.
        Loaded => "loaded",
        /// The last try to load it failed; a later job has it tried again.
        Failed => "failed",
    }
}

/// How a model stands on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelStatus {
    /// Whether it is there.
    pub state: ModelState,
    /// Memory that its weights take, in bytes, or would take.
    pub bytes: u64,
    /// Why it could not be loaded.
    pub reason: Option<String>,
}

/// A linear map from scaled latents to RGB in [0, 1], for previews: `rgb[j] = bias[j] + sum_c factors[c][j] * latent[c]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatentRgb {
    /// One `[r, g, b]` row a latent channel.
    pub factors: Vec<[f32; 3]>,
    /// Added to every pixel.
    pub bias: [f32; 3],
}
