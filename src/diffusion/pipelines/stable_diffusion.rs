//! Stable Diffusion 1.x and 2.x, their latent consistency models and inpainting checkpoints (diffusers
//! `StableDiffusionPipeline` and its kin): CLIP text encoder, U-Net, autoencoder.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::adapted::{Adapted, Adapters};
use super::components::{Components, TextReader, room};
use super::controlnets::residuals;
use super::introduction::Introduction;
use super::latents::{LatentFormat, Shown, shown};
use super::{
    Conditioning, ControlNet, ControlNets, EncodedPicture, Extras, Introduced, Pipeline, Prompt, PromptEmbeds,
    PromptSide, Released, Result, StepInputs, WeightBytes,
};
use crate::diffusion::models::text_encoders::{ClipTextConfig, ClipTextModel};
use crate::diffusion::models::unets::{UNet2DConditionConfig, UNet2DConditionModel, UNetInputs};
use crate::diffusion::samplers::{PlanRequest, SamplingPlan, TrainingSchedule};
use crate::diffusion::weights::{Checkpoint, LoraTarget};
use crate::domain::{GenerationRequest, LatentSpace, Lora, ModelId, ModelInfo};
use crate::images::RgbImage;

/// A loaded checkpoint.
pub struct StableDiffusion {
    info: ModelInfo,
    text: TextReader<ClipTextModel>,
    unet: UNet2DConditionModel,
    latents: Arc<LatentFormat>,
    controlnets: ControlNets,
    schedule: TrainingSchedule,
    bytes: u64,
    fingerprint: Arc<str>,
    device: Device,
    adapters: Arc<Adapters>,
}

impl std::fmt::Debug for StableDiffusion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StableDiffusion({})", self.info.id)
    }
}

impl StableDiffusion {
    /// Loads every component of the folder, the U-Net in this dtype and the others in f32.
    ///
    /// # Errors
    /// The first fault: a missing or malformed file, a missing or misshapen tensor, a configuration value that is not
    /// supported, or components that do not fit together.
    pub(super) fn load(
        id: ModelId,
        class: &str,
        checkpoint: &Checkpoint,
        (device, dtype, adapters): (Device, DType, Arc<Adapters>),
    ) -> Result<Self> {
        let hashing = checkpoint.hashing();
        let components = Components::of(checkpoint, &device, dtype);
        let text = components.text("text_encoder", "tokenizer")?;
        let unet = components.unet()?;
        let latents = LatentFormat::load(&components, &components.card()?)?;
        let (info, schedule) =
            Self::outline(id, class, &components, (text.encoder.config(), unet.config(), latents.space()))?;
        let info = ModelInfo { sha256: hashing.finish(), ..info };
        let (latents, controlnets) = (Arc::new(latents), ControlNets::default());
        let (bytes, fingerprint) = (components.bytes_read(), components.fingerprint());
        Ok(Self { info, text, unet, latents, controlnets, schedule, bytes, fingerprint, device, adapters })
    }

    /// What it would tell of itself, loaded; reads configurations and the headers of weights.
    ///
    /// # Errors
    /// The first fault of them.
    pub fn introduce(
        id: ModelId,
        class: &str,
        checkpoint: &Checkpoint,
        controlnets: &ControlNets,
    ) -> Result<Introduced> {
        let components = Components::of(checkpoint, &Device::Cpu, DType::F32);
        let (text, unet, vae) =
            (components.text_config("text_encoder")?, components.unet_config()?, components.vae_configs()?);
        let (mut info, _) = Self::outline(id, class, &components, (&text, &unet, vae.space()))?;
        info.controlnets = controlnets.for_model(&unet, &vae.space());
        let others = [&["text_encoder"], vae.parts()].concat();
        let weights = WeightBytes::of(&components, "unet", &others)?;
        Ok(Introduced { info, weights })
    }

    /// Whether the components fit each other, what they make together, and how it was trained.
    fn outline(
        id: ModelId,
        class: &str,
        components: &Components<'_>,
        (text, unet, latents): (&ClipTextConfig, &UNet2DConditionConfig, LatentSpace),
    ) -> Result<(ModelInfo, TrainingSchedule)> {
        let mut schedule = components.schedule()?;
        if class == "StableDiffusionInpaintPipeline" {
            schedule = schedule.mended_for_inpainting();
        } else if !class.starts_with("LatentConsistencyModel") {
            schedule = schedule.mended_for_stable_diffusion();
        }
        let shown = check(components, text, unet, &latents)?;
        // OpenCLIP's encoder and linear projections came together.
        let is_second = unet.uses_linear_projection();
        let told = unet.is_told_guidance();
        let about = match (told, shown) {
            (true, _) => "latent consistency model of the family Stable Diffusion",
            (_, Shown::Masked) => "inpainting checkpoint of Stable Diffusion",
            (_, Shown::Latents) => "checkpoint of Stable Diffusion",
        };
        let info = Introduction {
            id,
            family: if is_second { "stable-diffusion-2" } else { "stable-diffusion-1" },
            description: format!("A {about} {}.x.", if is_second { 2 } else { 1 }),
            sample_size: unet.sample_size().unwrap_or(64),
            prompt_tokens: room(text),
            max_clip_skip: text.num_hidden_layers().saturating_sub(1),
            guidance_embedded: told,
            inpainting: shown == Shown::Masked,
            size_conditioning: false,
            schedule: &schedule,
            latents,
        };
        Ok((info.info(&components.card()?), schedule))
    }

    /// Tells by which files it draws.
    pub(super) fn loaded_from(&mut self, files: Option<String>) {
        self.info.files = files;
    }

    /// Lets requests name these ControlNets.
    pub(super) fn control_by(&mut self, controlnets: ControlNets) {
        self.info.controlnets = controlnets.for_model(self.unet.config(), &self.latents.space());
        self.controlnets = controlnets;
    }
}

/// Whether the components fit each other.
fn check(
    components: &Components<'_>,
    text: &ClipTextConfig,
    unet: &UNet2DConditionConfig,
    latents: &LatentSpace,
) -> Result<Shown> {
    let file = "unet/config.json";
    let (given, asked) = (text.hidden_size(), unet.context_width());
    if given != asked {
        return components
            .fault(file, format!("cross_attention_dim is {asked}, the text encoder's vectors have {given}"));
    }
    if unet.added().is_some() {
        return components.fault(file, "addition_embed_type asks for a Stable Diffusion XL checkpoint".to_owned());
    }
    shown(components, latents, unet)
}

impl Pipeline for StableDiffusion {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn adapted(self: Arc<Self>, loras: &[Lora]) -> Result<Adapted> {
        if loras.is_empty() {
            return Ok(Adapted::plain(self));
        }
        self.adapters.adapted(loras, (&self.info.id, &self.device), |adapting| {
            Ok(Arc::new(Self {
                info: self.info.clone(),
                text: self.text.adapted(adapting, LoraTarget::TextEncoder)?,
                unet: adapting.network(&self.unet, LoraTarget::UNet)?,
                latents: self.latents.clone(),
                controlnets: self.controlnets.clone(),
                schedule: self.schedule.clone(),
                bytes: self.bytes,
                fingerprint: self.fingerprint.clone(),
                device: self.device.clone(),
                adapters: self.adapters.afresh(),
            }))
        })
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn extras(&self) -> Extras {
        Extras { loras: self.adapters.bytes(), controlnets: self.controlnets.bytes(&self.device) }
    }

    fn release_extras(&self) -> Released {
        self.adapters.release().into_iter().chain(self.controlnets.release(&self.device)).collect()
    }

    fn encode_prompt(&self, prompt: &Prompt<'_>) -> Result<PromptEmbeds> {
        let read = self.text.read(prompt, self.info.id.as_str(), &self.device)?;
        let hidden_states = read.hidden_states(|output| match prompt.clip_skip {
            0 => Ok(output.last_hidden_state.clone()),
            skip => {
                let layer = output.before_last(skip as usize);
                Ok(self.text.encoder.normed(layer.expect("checked for this model. This is a bug in domain."))?)
            }
        })?;
        Ok(PromptEmbeds { hidden_states, pooled: None, warnings: read.warning.into_iter().collect() })
    }

    fn embeddings(&self, prompt: &Prompt<'_>) -> Result<Vec<(String, String)>> {
        self.text.embeddings(prompt)
    }

    fn condition(&self, request: &GenerationRequest, _side: PromptSide, prompt: PromptEmbeds) -> Result<Conditioning> {
        let guidance_scale = self.info.guidance_embedded.then(|| request.guidance_scale());
        Ok(Conditioning { guidance_scale, ..prompt.into() })
    }

    fn plan(&self, request: &GenerationRequest) -> Result<SamplingPlan> {
        Ok(SamplingPlan::build(&self.schedule, &PlanRequest::of(request))?)
    }

    fn latent_shape(&self, width: u32, height: u32) -> (usize, usize, usize) {
        self.latents.shape(width, height)
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn controlnet(&self, name: &str) -> Result<Arc<ControlNet>> {
        self.controlnets.get_for(name, &self.info, (&self.device, self.unet.dtype()))
    }

    fn denoise(&self, inputs: &StepInputs<'_>) -> Result<Tensor> {
        let (latents, timesteps, hidden_states) = (inputs.shown()?, inputs.timesteps(), inputs.hidden_states()?);
        let guidance_scales = inputs.guidance_scales();
        let told = UNetInputs {
            latents: &latents,
            timesteps: &timesteps,
            hidden_states: &hidden_states,
            added: None,
            guidance_scales: guidance_scales.as_deref(),
            residuals: None,
        };
        let residuals = residuals(inputs, &told)?;
        Ok(self.unet.forward(&UNetInputs { residuals: residuals.as_ref(), ..told })?)
    }

    fn encode(&self, picture: &Tensor) -> Result<EncodedPicture> {
        self.latents.encode(picture)
    }

    fn decode(&self, latents: &Tensor) -> Result<RgbImage> {
        self.latents.decode(latents)
    }

    fn preview(&self, latents: &Tensor) -> Result<Option<RgbImage>> {
        self.latents.preview(latents)
    }
}
