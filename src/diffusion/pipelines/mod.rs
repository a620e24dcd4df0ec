//! One file per model family behind trait [`Pipeline`]: text to conditioning, one batched network evaluation, latents to
//! pictures. Guidance and the sampler's arithmetic belong to the engine, the networks themselves to `models`.

mod adapted;
mod builtin;
mod card;
mod components;
mod conditioning;
mod controlnets;
mod introduction;
mod latents;
mod prompt_cache;
mod registry;
mod scan;
mod source_files;
mod stable_diffusion;
mod stable_diffusion_xl;

pub use crate::diffusion::weights::{Changes, LoraLibrary};
pub use adapted::Adapted;
pub use conditioning::{Conditioning, Prompt, PromptEmbeds, PromptSide, StepInputs, StepRow};
pub use controlnets::{Control, ControlNet, ControlNets};
pub use introduction::Introduced;
use introduction::WeightBytes;
pub use latents::EncodedPicture;
pub use prompt_cache::{PromptCache, PromptLookups};
pub use registry::{ModelPlace, ModelSource, introduce, load, supported_classes};
pub use scan::{Found, scan};
pub use stable_diffusion::StableDiffusion;
pub use stable_diffusion_xl::StableDiffusionXl;

use std::any::Any;
use std::sync::Arc;

use candle_core::Tensor;

use crate::diffusion::samplers::{self, SamplingPlan};
use crate::diffusion::{models, weights};
use crate::domain::{GenerationRequest, Lora, ModelInfo};
use crate::images::RgbImage;

/// What stays in memory beside a model's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// LoRAs lately used with the model.
    pub loras: Extra,
    /// ControlNets lately used on the device, by whichever model.
    pub controlnets: Extra,
}

/// A part of it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// By jobs.
    pub used: u64,
    /// For jobs to come.
    pub unused: u64,
}

impl Extra {
    /// So many more.
    fn count(&mut self, bytes: u64, is_used: bool) {
        *(if is_used { &mut self.used } else { &mut self.unused }) += bytes;
    }
}

impl std::ops::Add for Extra {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { used: self.used + other.used, unused: self.unused + other.unused }
    }
}

/// What was let go of; its memory is free once this is dropped, which may take a while.
pub type Released = Vec<Arc<dyn Any + Send + Sync>>;

/// A model family on one device. Rows never influence each other: row i of an output depends on row i of the inputs alone.
pub trait Pipeline: Send + Sync {
    /// What requests may ask of it.
    fn info(&self) -> &ModelInfo;

    /// This pipeline with LoRAs, in their order: another one, whose prompts are encoded differently too. It shares the weights
    /// of this one, which stays as it is. The sets lately used are kept.
    ///
    /// # Errors
    /// [`Error::Lora`]: a LoRA that there is none of, that is damaged, or that does not fit the model.
    fn adapted(self: Arc<Self>, loras: &[Lora]) -> Result<Adapted>;

    /// Tells its networks' numbers from those of other files under the same name and of another dtype, LoRAs left out: the same
    /// wherever the same files are loaded in the same dtype.
    fn fingerprint(&self) -> &str;

    /// Memory that it holds on its device: all weights in the dtype they were loaded in. What drawing takes besides is not counted.
    fn bytes(&self) -> u64;

    /// Memory that is held on its device besides.
    fn extras(&self) -> Extras;

    /// Lets go of what of that no job uses now.
    fn release_extras(&self) -> Released;

    /// Encodes one prompt. The result depends on `prompt` alone, so it may be kept and shared between requests.
    fn encode_prompt(&self, prompt: &Prompt<'_>) -> Result<PromptEmbeds>;

    /// The textual inversion embeddings that a prompt names, each once, with the first 12 digits of the
    /// SHA-256 of its file.
    ///
    /// # Errors
    /// As `encode_prompt`.
    fn embeddings(&self, prompt: &Prompt<'_>) -> Result<Vec<(String, String)>>;

    /// What this request's rows on one side of guidance are told, given that side's prompt. Cheap: no network runs.
    fn condition(&self, request: &GenerationRequest, side: PromptSide, prompt: PromptEmbeds) -> Result<Conditioning>;

    /// The sampler's numbers for this request.
    fn plan(&self, request: &GenerationRequest) -> Result<SamplingPlan>;

    /// (C, h, w) of the latents for pictures of this size in pixels.
    fn latent_shape(&self, width: u32, height: u32) -> (usize, usize, usize);

    /// The device its tensors live on.
    fn device(&self) -> &candle_core::Device;

    /// The ControlNet of this name on the same device. Loads it if it is not there: some seconds for a large one.
    ///
    /// # Errors
    /// There is none, its files are faulty, or it does not fit this network.
    fn controlnet(&self, name: &str) -> Result<Arc<ControlNet>>;

    /// The one batched call: the network's output (N, C, h, w) f32.
    fn denoise(&self, inputs: &StepInputs<'_>) -> Result<Tensor>;

    /// A picture (1, 3, H, W) f32 in [-1, 1] to its latents, or to their distribution.
    fn encode(&self, picture: &Tensor) -> Result<EncodedPicture>;

    /// Latents (1, C, h, w) of a finished sample to its picture.
    fn decode(&self, latents: &Tensor) -> Result<RgbImage>;

    /// A small picture of how latents (1, C, h, w) look, by a tiny autoencoder or a linear map; `None` where the model has
    /// neither.
    fn preview(&self, latents: &Tensor) -> Result<Option<RgbImage>>;
}

/// What can go wrong while loading or drawing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint's files.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// A network's configuration or files.
    #[error("{file}: {source}")]
    Network {
        /// Which component of which checkpoint.
        file: String,
        /// What is wrong.
        source: Box<models::Error>,
    },
    /// The scheduler's configuration, or what a request asks of it.
    #[error(transparent)]
    Sampling(#[from] samplers::Error),
    /// A checkpoint of a kind that is not supported, or whose parts do not fit together.
    #[error("{file}: {reason}")]
    Unsupported {
        /// Which file.
        file: String,
        /// What is wrong and what is supported.
        reason: String,
    },
    /// A prompt that cannot be read.
    #[error("a prompt {0}")]
    Prompt(String),
    /// A LoRA cannot be used.
    #[error("LoRA `{name}`: {reason}")]
    Lora {
        /// As the request calls it.
        name: String,
        /// What is wrong, with file and tensor.
        reason: String,
    },
    /// The device cannot be used.
    #[error("device `{device}` cannot be used: {reason}")]
    Device {
        /// As configured.
        device: String,
        /// The tensor library's word.
        reason: String,
    },
    /// A network failed.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// The tensor library refused or ran out of something.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Of this room.
pub type Result<T> = std::result::Result<T, Error>;
