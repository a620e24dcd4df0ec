//! From what a client typed (`RequestDraft`) to what will be drawn (`GenerationRequest`).
//!
//! Every front door fills the same draft; [`RequestDraft::validate`] is the only way from one to the other, so inner
//! rooms trust a `GenerationRequest` and check nothing again.

mod body;
mod passes;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::hires::{Hires, HiresDraft};
use super::image_inputs::{ImageInputs, ImageInputsDraft, InputImage};
use super::loras::{Lora, LoraDraft};
use super::refiner::{Base, Refiner, RefinerDraft};
use super::request_faults::Faults;
use super::sampling::wire_names;
use super::size_conditioning::{SizeConditioning, SizeConditioningDraft};
use super::{
    ControlDraft, ControlInput, FieldError, ImageFormat, Limits, ModelId, ModelInfo, NoiseSource, PromptSyntax,
    SamplerKind, SigmaSchedule,
};

/// The largest seed a request may carry: 2^63 - 1, what every JSON reader with 64-bit integers can hold.
pub const MAX_SEED: u64 = i64::MAX as u64;

wire_names! {
    /// How urgent a job is.
    Priority {
        /// Someone is watching.
        Interactive => "interactive",
        /// The usual.
        Normal => "normal",
        /// Whenever there is room.
        Bulk => "bulk",
    }
}

/// What a client asked, before anything was checked: all optional, in our own names. Numbers are wide, so that a value
/// out of range reaches the check that can name it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestDraft {
    /// Which model; the server's default when absent.
    pub model: Option<String>,
    /// What to draw.
    pub prompt: Option<String>,
    /// What to keep away from.
    pub negative_prompt: Option<String>,
    /// A [`PromptSyntax`] by name.
    pub prompt_syntax: Option<String>,
    /// Last layers of the text encoder to leave out.
    pub clip_skip: Option<i64>,
    /// LoRAs that change the networks.
    pub loras: Vec<LoraDraft>,
    /// In pixels.
    pub width: Option<i64>,
    /// In pixels.
    pub height: Option<i64>,
    /// What the network is told of sizes.
    pub size_conditioning: Option<SizeConditioningDraft>,
    /// Pictures to start from, and what is made of them.
    pub image_inputs: ImageInputsDraft,
    /// Pictures that control what is drawn.
    pub controls: Vec<ControlDraft>,
    /// A second, larger pass.
    pub hires: Option<HiresDraft>,
    /// A model that goes on with the latents.
    pub refiner: Option<RefinerDraft>,
    /// Share of the training schedule at which the run begins.
    pub denoising_start: Option<f64>,
    /// Share at which it ends.
    pub denoising_end: Option<f64>,
    /// Sampler steps.
    pub steps: Option<i64>,
    /// Classifier-free guidance; 1 or less: none.
    pub guidance_scale: Option<f64>,
    /// How far guidance's widening of the output is taken back, 0 to 1.
    pub guidance_rescale: Option<f64>,
    /// Share of the steps before the first guided one, 0 to 1.
    pub guidance_start: Option<f64>,
    /// Share of the steps up to the last guided one, 0 to 1.
    pub guidance_end: Option<f64>,
    /// A sampler by any of the names that [`super::NamedSampler::parse`] knows.
    pub sampler: Option<String>,
    /// A [`SigmaSchedule`] by its name or label.
    pub sigma_schedule: Option<String>,
    /// DDIM's and TCD's eta, 0 to 1.
    pub eta: Option<f64>,
    /// 0 to 2^63 - 1; drawn when absent.
    pub seed: Option<i128>,
    /// A [`NoiseSource`] by name.
    pub noise: Option<String>,
    /// Pictures to draw; picture i uses seed + i.
    pub num_images: Option<i64>,
    /// An [`ImageFormat`] by name.
    pub output_format: Option<String>,
    /// 1 to 100, JPEG and WebP only.
    pub output_quality: Option<i64>,
    /// A [`Priority`] by name.
    pub priority: Option<String>,
    /// Seconds until it must have been started.
    pub start_within: Option<i64>,
    /// Seconds until it must have ended.
    pub expires_in: Option<i64>,
    /// Whether an identical request's pictures will do.
    pub reuse: Option<bool>,
    /// The client's own words, handed back as they came.
    pub metadata: Option<Map<String, Value>>,
}

/// How the pictures are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputOptions {
    /// The stored encoding.
    pub format: ImageFormat,
    /// 1 to 100; JPEG and WebP only.
    pub quality: u8,
}

/// A checked request with every default resolved and the seed drawn. Only [`RequestDraft::validate`] makes one; reading
/// one back from the store trusts what was checked before it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationRequest {
    model: ModelId,
    prompt: String,
    negative_prompt: String,
    /// These and others that are missing from requests stored before they were fields have what such requests meant.
    #[serde(default)]
    prompt_syntax: PromptSyntax,
    #[serde(default)]
    clip_skip: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    loras: Vec<Lora>,
    width: u32,
    height: u32,
    /// Of models that take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size_conditioning: Option<SizeConditioning>,
    #[serde(flatten)]
    image_inputs: ImageInputs,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    controls: Vec<ControlInput>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hires: Option<Hires>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refiner: Option<Refiner>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    denoising_start: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    denoising_end: Option<f64>,
    steps: u32,
    guidance_scale: f64,
    /// The model's [`ModelInfo::guidance_embedded`]; not a client's to say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    guidance_embedded: bool,
    #[serde(default)]
    guidance_rescale: f64,
    #[serde(default)]
    guidance_start: f64,
    #[serde(default = "to_the_end")]
    guidance_end: f64,
    sampler: SamplerKind,
    sigma_schedule: SigmaSchedule,
    eta: f64,
    seed: u64,
    #[serde(default)]
    noise: NoiseSource,
    num_images: u32,
    output: OutputOptions,
    priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_within: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_in: Option<u32>,
    #[serde(default = "yes")]
    reuse: bool,
    metadata: Map<String, Value>,
}

impl GenerationRequest {
    /// Which model draws.
    pub fn model(&self) -> &ModelId {
        &self.model
    }
    /// What to draw.
    pub fn prompt(&self) -> &str {
        &self.prompt
    }
    /// What to keep away from; empty when nothing was said.
    pub fn negative_prompt(&self) -> &str {
        &self.negative_prompt
    }
    /// What brackets in both prompts mean.
    pub fn prompt_syntax(&self) -> PromptSyntax {
        self.prompt_syntax
    }
    /// How many of the text encoder's last layers are left out, as diffusers counts: 0 is all of them used, 1 is what A1111
    /// calls "Clip skip: 2".
    pub fn clip_skip(&self) -> u32 {
        self.clip_skip
    }
    /// LoRAs that change the networks, in the order in which they are added.
    pub fn loras(&self) -> &[Lora] {
        &self.loras
    }
    /// Where they can be changed: their hashes are known once their files were looked at.
    pub fn loras_mut(&mut self) -> &mut [Lora] {
        &mut self.loras
    }
    /// In pixels, a multiple of the model's `size_multiple`.
    pub fn width(&self) -> u32 {
        self.width
    }
    /// In pixels, a multiple of the model's `size_multiple`.
    pub fn height(&self) -> u32 {
        self.height
    }
    /// What the network is told of sizes, where it takes any.
    pub fn size_conditioning(&self) -> Option<SizeConditioning> {
        self.size_conditioning
    }
    /// Pictures to start from.
    pub fn image_inputs(&self) -> &ImageInputs {
        &self.image_inputs
    }
    /// Pictures that control what is drawn, in every pass.
    pub fn controls(&self) -> &[ControlInput] {
        &self.controls
    }
    /// Every picture that came with it.
    pub fn input_pictures(&self) -> impl Iterator<Item = &InputImage> {
        self.image_inputs.pictures().chain(self.controls.iter().map(ControlInput::image))
    }
    /// (width, height) of the pictures that are made, in pixels: those of the first picture where only its masked region is
    /// drawn, else those that are drawn.
    pub fn output_size(&self) -> (u32, u32) {
        let region = self.image_inputs.only_masked_padding().and(self.image_inputs.init_image());
        let drawn = self.hires.map_or((self.width, self.height), |hires| hires.size());
        region.map_or(drawn, |picture| (picture.width, picture.height))
    }
    /// A second pass over the picture, enlarged.
    pub fn hires(&self) -> Option<Hires> {
        self.hires
    }
    /// A model that goes on with the latents.
    pub fn refiner(&self) -> Option<&Refiner> {
        self.refiner.as_ref()
    }
    /// Every model that draws.
    pub fn models(&self) -> Vec<&ModelId> {
        let mut models = vec![&self.model];
        models.extend(self.refiner.as_ref().map(|refiner| &refiner.model).filter(|refiner| **refiner != self.model));
        models
    }
    /// Share of the training schedule, within 0 and 1, at which the run begins, with latents that have their noise already.
    pub fn denoising_start(&self) -> Option<f64> {
        self.denoising_start
    }
    /// Share at which this model's run ends, its latents left with noise in them.
    pub fn denoising_end(&self) -> Option<f64> {
        self.refiner.as_ref().map(|refiner| refiner.switch_at).or(self.denoising_end)
    }
    /// What a client asked of it, whichever model draws there.
    pub(super) fn asked_denoising_end(&self) -> Option<f64> {
        self.denoising_end
    }
    /// Sampler steps that the noise levels are made of, at least 1.
    pub fn steps(&self) -> u32 {
        self.steps
    }
    /// Steps left out at the beginning: those above the noise that is put into a picture to start from.
    pub fn skipped_steps(&self) -> u32 {
        self.image_inputs.skipped_steps(self.steps)
    }
    /// Width times height of the largest evaluation.
    pub fn most_pixels(&self) -> u64 {
        let (width, height) = self.hires.map_or((self.width, self.height), |hires| hires.size());
        u64::from(width) * u64::from(height)
    }
    /// Classifier-free guidance, finite and not negative.
    pub fn guidance_scale(&self) -> f64 {
        self.guidance_scale
    }
    /// Whether evaluations of [`guided_steps`](Self::guided_steps) take a second, unconditional row.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0 && !self.guidance_embedded && !self.guided_steps().is_empty()
    }
    /// How far guidance's widening of the output is taken back, 0 to 1 (diffusers `guidance_rescale`).
    pub fn guidance_rescale(&self) -> f64 {
        self.guidance_rescale
    }
    /// Which steps are guided, counted from the first that `strength` leaves: the whole ones within the shares asked for, as
    /// diffusers' guiders count them. They are shares of all steps, wherever the run begins or ends besides.
    pub fn guided_steps(&self) -> Range<u32> {
        let at = |share: f64| (share * f64::from(self.steps - self.skipped_steps())) as u32;
        at(self.guidance_start)..at(self.guidance_end)
    }
    /// The step rule.
    pub fn sampler(&self) -> SamplerKind {
        self.sampler
    }
    /// The noise levels.
    pub fn sigma_schedule(&self) -> SigmaSchedule {
        self.sigma_schedule
    }
    /// DDIM's and TCD's eta, 0 to 1; other samplers ignore it.
    pub fn eta(&self) -> f64 {
        self.eta
    }
    /// The first picture's seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }
    /// The seed of picture `index`: seed + index, wrapping at 2^63.
    pub fn image_seed(&self, index: u32) -> u64 {
        (self.seed + u64::from(index)) & MAX_SEED
    }
    /// What the seed means.
    pub fn noise(&self) -> NoiseSource {
        self.noise
    }
    /// Pictures to draw, at least 1.
    pub fn num_images(&self) -> u32 {
        self.num_images
    }
    /// The stored encoding.
    pub fn output(&self) -> OutputOptions {
        self.output
    }
    /// How urgent.
    pub fn priority(&self) -> Priority {
        self.priority
    }
    /// Seconds from its acceptance until it must have been started.
    pub fn start_within(&self) -> Option<u32> {
        self.start_within
    }
    /// Seconds from its acceptance until it must have ended.
    pub fn expires_in(&self) -> Option<u32> {
        self.expires_in
    }
    /// Whether pictures that an identical request has, or is having drawn, will do.
    pub fn reuse(&self) -> bool {
        self.reuse
    }
    /// The client's own words.
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }
    /// The most rows this request adds to a forward: pictures, twice when guided.
    pub fn rows(&self) -> u32 {
        let guided = self.is_guided() || self.refiner_pass().is_some_and(|pass| pass.is_guided());
        self.num_images * if guided { 2 } else { 1 }
    }
}

impl RequestDraft {
    /// Resolves every default and checks every field, or tells all faults at once.
    ///
    /// `drawn_seed` is used when the client gave none; the caller draws it, so this function stays pure. The model has
    /// been looked up already: `model` names one of the served ones.
    ///
    /// # Errors
    /// One [`FieldError`] a fault: field, value, and what is allowed.
    pub fn validate(
        self,
        model: &ModelInfo,
        limits: &Limits,
        drawn_seed: u64,
    ) -> Result<GenerationRequest, Vec<FieldError>> {
        self.validate_among(model, std::slice::from_ref(model), limits, drawn_seed)
    }

    /// The same where other models are `served` too, one of which may go on with the latents.
    ///
    /// # Errors
    /// As above.
    pub fn validate_among(
        self,
        model: &ModelInfo,
        served: &[ModelInfo],
        limits: &Limits,
        drawn_seed: u64,
    ) -> Result<GenerationRequest, Vec<FieldError>> {
        let mut faults = Faults::default();
        let defaults = &model.defaults;
        let quality_given = self.output_quality.is_some();
        let format = faults.named("output.format", self.output_format, ImageFormat::Png, ImageFormat::ALL);
        if quality_given && format == ImageFormat::Png {
            faults.add("output.quality", self.output_quality, "applies to `jpeg` and `webp` only; a PNG is lossless");
        }
        let (sampler, sigma_schedule) = faults.sampling(self.sampler, self.sigma_schedule, model);
        let denoising_start = faults.denoising_start(self.denoising_start, &self.image_inputs);
        let denoising_end = faults.share("denoising_end", self.denoising_end);
        let image_inputs = faults.image_inputs(self.image_inputs).drawn_from(denoising_start);
        let steps = faults.integer("steps", self.steps, defaults.steps, 1, limits.max_steps);
        faults.strength(&image_inputs, steps);
        let (width, height) = faults.sides((self.width, self.height), &image_inputs, model);
        let first = (width, height, steps);
        let (start_within, expires_in) = faults.deadlines(self.start_within, self.expires_in, limits.max_deadline_s);
        let hires = faults.hires(self.hires, first, &image_inputs, (model, limits.max_steps));
        let clip_skip = faults.integer("clip_skip", self.clip_skip, defaults.clip_skip, 0, model.max_clip_skip);
        let base = Base {
            model,
            size: (width, height),
            steps,
            max_steps: limits.max_steps,
            clip_skip,
            sampling: (sampler, sigma_schedule),
            is_enlarged: hires.is_some(),
        };
        let refiner = faults.refiner(self.refiner, served, &base);
        let prompt = faults.prompt("prompt", self.prompt, limits, true);
        let syntax = faults.named("prompt_syntax", self.prompt_syntax, defaults.prompt_syntax, PromptSyntax::ALL);
        let (loras, prompt) = faults.loras(self.loras, (prompt, syntax), limits);
        let request = GenerationRequest {
            model: model.id.clone(),
            prompt,
            negative_prompt: faults.prompt("negative_prompt", self.negative_prompt, limits, false),
            prompt_syntax: syntax,
            clip_skip,
            loras,
            width,
            height,
            size_conditioning: faults.size_conditioning(self.size_conditioning, (width, height), model),
            image_inputs,
            controls: faults.controls(self.controls, model, limits),
            hires,
            refiner,
            denoising_start,
            denoising_end,
            steps,
            guidance_scale: faults.real("guidance_scale", self.guidance_scale, defaults.guidance_scale, 0.0, 100.0),
            guidance_embedded: model.guidance_embedded,
            guidance_rescale: faults.real(
                "guidance_rescale",
                self.guidance_rescale,
                defaults.guidance_rescale,
                0.0,
                1.0,
            ),
            guidance_start: faults.real("guidance_start", self.guidance_start, 0.0, 0.0, 1.0),
            guidance_end: faults.real("guidance_end", self.guidance_end, 1.0, 0.0, 1.0),
            sampler,
            sigma_schedule,
            eta: faults.real("eta", self.eta, 0.0, 0.0, 1.0),
            seed: faults.seed(self.seed, drawn_seed),
            noise: faults.named("noise", self.noise, defaults.noise, NoiseSource::ALL),
            num_images: faults.integer("num_images", self.num_images, 1, 1, limits.max_num_images),
            output: OutputOptions {
                format,
                quality: faults.integer("output.quality", self.output_quality, 90, 1, 100) as u8,
            },
            priority: faults.named("priority", self.priority, Priority::Normal, Priority::ALL),
            start_within,
            expires_in,
            reuse: self.reuse.unwrap_or(true),
            metadata: faults.metadata(self.metadata, limits),
        };
        faults.pixels(&request, limits);
        faults.denoising_interval(&request);
        faults.guidance_interval((request.guidance_start, request.guidance_end));
        faults.syntax(&request);
        if faults.0.is_empty() { Ok(request) } else { Err(faults.0) }
    }
}

fn yes() -> bool {
    true
}

fn to_the_end() -> f64 {
    1.0
}
