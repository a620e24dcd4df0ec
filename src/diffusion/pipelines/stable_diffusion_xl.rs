//! Stable Diffusion XL, base and refiner (Podell et al. 2023; diffusers `StableDiffusionXLPipeline` and
//! `StableDiffusionXLImg2ImgPipeline`): two text encoders, or the second alone; a U-Net that reads the prompt as a whole
//! and sizes too; autoencoder.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use serde_json::Value;

use super::adapted::{Adapted, Adapters};
use super::components::{Components, TextReader, room};
use super::controlnets::residuals;
use super::introduction::Introduction;
use super::latents::{LatentFormat, Shown, shown};
use super::{
    Conditioning, ControlNet, ControlNets, EncodedPicture, Extras, Introduced, Pipeline, Prompt, PromptEmbeds,
    PromptSide, Released, Result, StepInputs, WeightBytes,
};
use crate::diffusion::models::text_encoders::{
    ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, ClipTextOutput,
};
use crate::diffusion::models::unets::{UNet2DConditionConfig, UNet2DConditionModel, UNetInputs};
use crate::diffusion::samplers::{PlanRequest, SamplingPlan, TrainingSchedule};
use crate::diffusion::weights::{Checkpoint, LoraTarget};
use crate::domain::{GenerationRequest, LatentSpace, Lora, ModelId, ModelInfo};
use crate::images::RgbImage;

/// Layers left out at the end of each text encoder.
const LAYERS_LEFT_OUT: usize = 1;

/// What the refiner takes for the aesthetic score of the prompt and of the negative prompt (diffusers' defaults).
const AESTHETIC_SCORES: [f64; 2] = [6.0, 2.5];

/// A loaded checkpoint.
pub struct StableDiffusionXl {
    info: ModelInfo,
    /// The refiner has none.
    text: Option<TextReader<ClipTextModel>>,
    text_2: TextReader<ClipTextModelWithProjection>,
    unet: UNet2DConditionModel,
    latents: Arc<LatentFormat>,
    controlnets: ControlNets,
    schedule: TrainingSchedule,
    /// No negative prompt is a row of zeros instead of an empty text.
    zeros_for_empty_negative: bool,
    takes_aesthetic_score: bool,
    bytes: u64,
    fingerprint: Arc<str>,
    device: Device,
    adapters: Arc<Adapters>,
}

impl std::fmt::Debug for StableDiffusionXl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StableDiffusionXl({})", self.info.id)
    }
}

impl StableDiffusionXl {
    /// Loads every component of the folder, whose `model_index.json` is `index`, the U-Net in this dtype and the others in f32.
    ///
    /// # Errors
    /// The first fault: a missing or malformed file, a missing or misshapen tensor, a configuration value that is not
    /// supported, or components that do not fit together.
    pub(super) fn load(
        id: ModelId,
        index: &Value,
        checkpoint: &Checkpoint,
        (device, dtype, adapters): (Device, DType, Arc<Adapters>),
    ) -> Result<Self> {
        let hashing = checkpoint.hashing();
        let components = Components::of(checkpoint, &device, dtype);
        let text = has_first(index).then(|| components.text("text_encoder", "tokenizer")).transpose()?;
        let text_2 = components.text_with_projection("text_encoder_2", "tokenizer_2")?;
        let unet = components.unet()?;
        let latents = LatentFormat::load(&components, &components.card()?)?;
        let texts = (text.as_ref().map(|text| text.encoder.config()), text_2.encoder.model().config());
        let (info, schedule) = Self::outline(id, index, &components, (texts, unet.config(), latents.space()))?;
        let info = ModelInfo { sha256: hashing.finish(), ..info };
        let (bytes, fingerprint) = (components.bytes_read(), components.fingerprint());
        Ok(Self {
            info,
            text,
            text_2,
            unet,
            latents: Arc::new(latents),
            controlnets: ControlNets::default(),
            schedule,
            // diffusers' default, for bases and refiners that do not say.
            zeros_for_empty_negative: index["force_zeros_for_empty_prompt"] != false,
            takes_aesthetic_score: takes_aesthetic_score(index),
            bytes,
            fingerprint,
            device,
            adapters,
        })
    }

    /// What it would tell of itself, loaded; reads configurations and the headers of weights.
    ///
    /// # Errors
    /// The first fault of them.
    pub fn introduce(
        id: ModelId,
        index: &Value,
        checkpoint: &Checkpoint,
        controlnets: &ControlNets,
    ) -> Result<Introduced> {
        let components = Components::of(checkpoint, &Device::Cpu, DType::F32);
        let text = has_first(index).then(|| components.text_config("text_encoder")).transpose()?;
        let text_2 = components.text_config("text_encoder_2")?;
        let (unet, vae) = (components.unet_config()?, components.vae_configs()?);
        let (mut info, _) = Self::outline(id, index, &components, ((text.as_ref(), &text_2), &unet, vae.space()))?;
        let first: &[&str] = if has_first(index) { &["text_encoder"] } else { &[] };
        let weights = WeightBytes::of(&components, "unet", &[first, &["text_encoder_2"], vae.parts()].concat())?;
        info.controlnets = controlnets.for_model(&unet, &vae.space());
        Ok(Introduced { info, weights })
    }

    /// Whether the components fit each other, what they make together, and how it was trained.
    fn outline(
        id: ModelId,
        index: &Value,
        components: &Components<'_>,
        (texts, unet, latents): (TextConfigs<'_>, &UNet2DConditionConfig, LatentSpace),
    ) -> Result<(ModelInfo, TrainingSchedule)> {
        let schedule = components.schedule()?;
        let takes_aesthetic_score = takes_aesthetic_score(index);
        check(components, texts, unet, takes_aesthetic_score)?;
        let shown = shown(components, &latents, unet)?;
        let (text, text_2) = texts;
        let layers = text.map_or(usize::MAX, ClipTextConfig::num_hidden_layers).min(text_2.num_hidden_layers());
        let about = if takes_aesthetic_score { "XL refiner" } else { "XL" };
        let info = Introduction {
            id,
            family: if takes_aesthetic_score { "stable-diffusion-xl-refiner" } else { "stable-diffusion-xl" },
            description: format!("A Stable Diffusion {about} checkpoint."),
            sample_size: unet.sample_size().unwrap_or(128),
            prompt_tokens: room(text_2),
            max_clip_skip: layers.saturating_sub(LAYERS_LEFT_OUT + 1),
            guidance_embedded: unet.is_told_guidance(),
            inpainting: shown == Shown::Masked,
            size_conditioning: true,
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

    /// What the network is told of sizes, in the order it was trained with.
    fn time_ids(&self, request: &GenerationRequest, side: PromptSide) -> Vec<f64> {
        let sizes = request.size_conditioning().expect("checked for this model. This is a bug in domain.");
        let mut ids = vec![sizes.original_height, sizes.original_width, sizes.crop_top, sizes.crop_left];
        if !self.takes_aesthetic_score {
            ids.extend([sizes.target_height, sizes.target_width]);
        }
        let mut ids: Vec<f64> = ids.into_iter().map(f64::from).collect();
        if self.takes_aesthetic_score {
            let [positive, negative] = AESTHETIC_SCORES;
            ids.push(if side == PromptSide::Negative { negative } else { positive });
        }
        ids
    }
}

/// Of the first text encoder, where there is one, and of the second.
type TextConfigs<'a> = (Option<&'a ClipTextConfig>, &'a ClipTextConfig);

/// Whether it has the first text encoder.
fn has_first(index: &Value) -> bool {
    index["text_encoder"].get(1).is_some_and(|class| !class.is_null())
}

fn takes_aesthetic_score(index: &Value) -> bool {
    index["requires_aesthetics_score"] == true
}

/// Whether the components fit each other.
fn check(
    components: &Components<'_>,
    (text, text_2): TextConfigs<'_>,
    unet: &UNet2DConditionConfig,
    takes_aesthetic_score: bool,
) -> Result<()> {
    let file = "unet/config.json";
    let given = text_2.hidden_size() + text.map_or(0, ClipTextConfig::hidden_size);
    let asked = unet.context_width();
    if given != asked {
        return components
            .fault(file, format!("cross_attention_dim is {asked}, the text encoders' vectors have {given} together"));
    }
    if let Some(text) = text
        && room(text) != room(text_2)
    {
        let (first, second) = (room(text), room(text_2));
        return components
            .fault("text_encoder/config.json", format!("it reads {first} tokens, text_encoder_2 reads {second}"));
    }
    let expected = if takes_aesthetic_score { 5 } else { 6 };
    let pooled = text_2.projection_dim();
    match unet.added() {
        Some(added) if added.time_ids(pooled) == Some(expected) => Ok(()),
        Some(_) => components.fault(
            file,
            format!(
                "projection_class_embeddings_input_dim is not the pooled prompt's width ({pooled}) and {expected} times addition_time_embed_dim"
            ),
        ),
        None => components.fault(file, "addition_embed_type is null; a Stable Diffusion XL checkpoint has `text_time`".to_owned()),
    }
}

impl Pipeline for StableDiffusionXl {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn adapted(self: Arc<Self>, loras: &[Lora]) -> Result<Adapted> {
        if loras.is_empty() {
            return Ok(Adapted::plain(self));
        }
        self.adapters.adapted(loras, (&self.info.id, &self.device), |adapting| {
            let first = self.text.as_ref().map(|text| text.adapted(adapting, LoraTarget::TextEncoder));
            Ok(Arc::new(Self {
                info: self.info.clone(),
                text: first.transpose()?,
                text_2: self.text_2.adapted(adapting, LoraTarget::TextEncoder2)?,
                unet: adapting.network(&self.unet, LoraTarget::UNet)?,
                latents: self.latents.clone(),
                controlnets: self.controlnets.clone(),
                schedule: self.schedule.clone(),
                zeros_for_empty_negative: self.zeros_for_empty_negative,
                takes_aesthetic_score: self.takes_aesthetic_score,
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
        let id = self.info.id.as_str();
        let second = self.text_2.read(prompt, id, &self.device)?;
        // A prompt of several windows is the first of them as a whole.
        let whole = &second.windows[0];
        let pooled = self.text_2.encoder.project(&whole.ids, &whole.output.last_hidden_state)?;
        let first = self.text.as_ref().map(|text| text.read(prompt, id, &self.device)).transpose()?;
        let left_out = LAYERS_LEFT_OUT + prompt.clip_skip as usize;
        let layer = |output: &ClipTextOutput| {
            let layer = output.before_last(left_out);
            Ok(layer.expect("checked for this model. This is a bug in domain.").clone())
        };
        let mut warnings: Vec<String> = Vec::new();
        let mut hidden_states = Vec::new();
        for read in first.into_iter().chain([second]) {
            hidden_states.push(read.hidden_states(layer)?);
            warnings.extend(read.warning.filter(|warning| !warnings.contains(warning)));
        }
        let hidden_states = Tensor::cat(&hidden_states, D::Minus1)?;
        if prompt.side == PromptSide::Negative && prompt.text.is_empty() && self.zeros_for_empty_negative {
            let (hidden_states, pooled) = (hidden_states.zeros_like()?, Some(pooled.zeros_like()?));
            return Ok(PromptEmbeds { hidden_states, pooled, warnings });
        }
        Ok(PromptEmbeds { hidden_states, pooled: Some(pooled), warnings })
    }

    fn embeddings(&self, prompt: &Prompt<'_>) -> Result<Vec<(String, String)>> {
        self.text_2.embeddings(prompt)
    }

    fn condition(&self, request: &GenerationRequest, side: PromptSide, prompt: PromptEmbeds) -> Result<Conditioning> {
        let guidance_scale = self.info.guidance_embedded.then(|| request.guidance_scale());
        Ok(Conditioning { prompt, time_ids: self.time_ids(request, side), guidance_scale })
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
        let pooled = inputs.pooled()?.expect("every prompt has one. This is a bug in pipelines.");
        let (latents, timesteps, hidden_states) = (inputs.shown()?, inputs.timesteps(), inputs.hidden_states()?);
        let guidance_scales = inputs.guidance_scales();
        let time_ids = inputs.time_ids();
        let told = UNetInputs {
            latents: &latents,
            timesteps: &timesteps,
            hidden_states: &hidden_states,
            added: Some((&pooled, &time_ids)),
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
