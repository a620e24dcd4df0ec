//! From what a client typed (`RequestDraft`) to what will be drawn (`GenerationRequest`).
//!
//! Every front door fills the same draft; [`RequestDraft::validate`] is the only way from one to the other, so inner
//! rooms trust a `GenerationRequest` and check nothing again.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::sampling::wire_names;
use super::size_conditioning::{MAX_SIZE, SizeConditioning, SizeConditioningDraft};
use super::{
    FieldError, ImageFormat, ModelId, ModelInfo, NamedSampler, NoiseSource, PromptSyntax, SamplerKind, SigmaSchedule,
    parse_a1111,
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
    /// In pixels.
    pub width: Option<i64>,
    /// In pixels.
    pub height: Option<i64>,
    /// What the network is told of sizes.
    pub size_conditioning: Option<SizeConditioningDraft>,
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
    /// A sampler by any of the names that [`NamedSampler::parse`] knows.
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
    /// The client's own words, handed back as they came.
    pub metadata: Option<Map<String, Value>>,
}

/// What the operator allows, beyond what a model can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most sampler steps.
    pub max_steps: u32,
    /// Most pictures a job.
    pub max_num_images: u32,
    /// Most pixels of one picture.
    pub max_pixels: u64,
    /// Most characters of a prompt.
    pub max_prompt_chars: usize,
    /// Most bytes of `metadata`, as JSON.
    pub max_metadata_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_steps: 150,
            max_num_images: 16,
            max_pixels: 1 << 22,
            max_prompt_chars: 4_000,
            max_metadata_bytes: 4_096,
        }
    }
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
    width: u32,
    height: u32,
    /// Of models that take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size_conditioning: Option<SizeConditioning>,
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
    /// Sampler steps, at least 1.
    pub fn steps(&self) -> u32 {
        self.steps
    }
    /// Classifier-free guidance, finite and not negative.
    pub fn guidance_scale(&self) -> f64 {
        self.guidance_scale
    }
    /// Whether evaluations of [`guided_steps`](Self::guided_steps) take a second, unconditional row.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0 && !self.guidance_embedded && !self.guided_steps().is_empty()
    }
    /// As a client would send it: every field a client may say, every default resolved.
    pub fn to_body(&self) -> Value {
        let mut body = serde_json::to_value(self).expect("plain data. This is a bug in domain.");
        if let Some(fields) = body.as_object_mut() {
            fields.remove("guidance_embedded");
        }
        // Quality means nothing for a PNG and is refused there.
        if self.output.format == ImageFormat::Png
            && let Some(output) = body["output"].as_object_mut()
        {
            output.remove("quality");
        }
        body
    }
    /// How far guidance's widening of the output is taken back, 0 to 1 (diffusers `guidance_rescale`).
    pub fn guidance_rescale(&self) -> f64 {
        self.guidance_rescale
    }
    /// Which steps are guided, counted from 0: the whole ones within the shares asked for, as diffusers' guiders count them.
    pub fn guided_steps(&self) -> Range<u32> {
        let at = |share: f64| (share * f64::from(self.steps)) as u32;
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
    /// The client's own words.
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }
    /// The most rows this request adds to a forward: pictures, twice when guided.
    pub fn rows(&self) -> u32 {
        self.num_images * if self.is_guided() { 2 } else { 1 }
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
        let mut faults = Faults::default();
        let defaults = &model.defaults;
        let quality_given = self.output_quality.is_some();
        let format = faults.named("output.format", self.output_format, ImageFormat::Png, ImageFormat::ALL);
        if quality_given && format == ImageFormat::Png {
            faults.add("output.quality", self.output_quality, "applies to `jpeg` and `webp` only; a PNG is lossless");
        }
        let (sampler, sigma_schedule) = faults.sampling(self.sampler, self.sigma_schedule, model);
        let width = faults.side("width", self.width, defaults.width, model);
        let height = faults.side("height", self.height, defaults.height, model);
        let request = GenerationRequest {
            model: model.id.clone(),
            prompt: faults.prompt("prompt", self.prompt, limits, true),
            negative_prompt: faults.prompt("negative_prompt", self.negative_prompt, limits, false),
            prompt_syntax: faults.named("prompt_syntax", self.prompt_syntax, defaults.prompt_syntax, PromptSyntax::ALL),
            clip_skip: faults.integer("clip_skip", self.clip_skip, defaults.clip_skip, 0, model.max_clip_skip),
            width,
            height,
            size_conditioning: faults.size_conditioning(self.size_conditioning, (width, height), model),
            steps: faults.integer("steps", self.steps, defaults.steps, 1, limits.max_steps),
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
            metadata: faults.metadata(self.metadata, limits),
        };
        faults.pixels(&request, limits);
        faults.guidance_interval(&request);
        faults.syntax(&request);
        if faults.0.is_empty() { Ok(request) } else { Err(faults.0) }
    }
}

fn to_the_end() -> f64 {
    1.0
}

/// Collects faults; each check returns a value to go on with, so that one fault does not hide the next.
#[derive(Default)]
struct Faults(Vec<FieldError>);

impl Faults {
    fn add(&mut self, field: &str, value: impl Into<Value>, message: impl Into<String>) {
        self.0.push(FieldError::new(field, value, message));
    }

    fn prompt(&mut self, field: &str, text: Option<String>, limits: &Limits, required: bool) -> String {
        let Some(text) = text else {
            if required {
                self.add(field, Value::Null, "is required: say what to draw");
            }
            return String::new();
        };
        let chars = text.chars().count();
        if chars > limits.max_prompt_chars {
            let message = format!("has {chars} characters; at most {} are allowed", limits.max_prompt_chars);
            self.add(field, text.as_str(), message);
        }
        if text.contains('\0') {
            self.add(field, text.as_str(), "must not contain the character U+0000");
        }
        text
    }

    fn integer(&mut self, field: &str, given: Option<i64>, default: u32, min: u32, max: u32) -> u32 {
        let Some(value) = given else { return default };
        match u32::try_from(value) {
            Ok(value) if (min..=max).contains(&value) => value,
            _ => {
                self.add(field, value, format!("must be an integer from {min} to {max}"));
                default
            }
        }
    }

    fn side(&mut self, field: &str, given: Option<i64>, default: u32, model: &ModelInfo) -> u32 {
        let Some(value) = given else { return default };
        match u32::try_from(value) {
            Ok(side) if (model.min_side..=model.max_side).contains(&side) && side % model.size_multiple == 0 => side,
            _ => {
                let (min, max, step) = (model.min_side, model.max_side, model.size_multiple);
                self.add(
                    field,
                    value,
                    format!("must be a multiple of {step} from {min} to {max} for model `{}`", model.id),
                );
                default
            }
        }
    }

    fn size_conditioning(
        &mut self,
        given: Option<SizeConditioningDraft>,
        (width, height): (u32, u32),
        model: &ModelInfo,
    ) -> Option<SizeConditioning> {
        if !model.size_conditioning {
            if given.is_some() {
                let message = format!("model `{}` is not told sizes; leave it out", model.id);
                self.add("size_conditioning", Value::Null, message);
            }
            return None;
        }
        let given = given.unwrap_or_default();
        let mut pixels = |name: &str, value, default, min| {
            self.integer(&format!("size_conditioning.{name}"), value, default, min, MAX_SIZE)
        };
        Some(SizeConditioning {
            original_width: pixels("original_width", given.original_width, width, 1),
            original_height: pixels("original_height", given.original_height, height, 1),
            crop_left: pixels("crop_left", given.crop_left, 0, 0),
            crop_top: pixels("crop_top", given.crop_top, 0, 0),
            target_width: pixels("target_width", given.target_width, width, 1),
            target_height: pixels("target_height", given.target_height, height, 1),
        })
    }

    fn real(&mut self, field: &str, given: Option<f64>, default: f64, min: f64, max: f64) -> f64 {
        let Some(value) = given else { return default };
        // NaN is in no range, so it is refused here too.
        if (min..=max).contains(&value) {
            return value;
        }
        // JSON has no NaN or infinity; they are echoed as text.
        let shown = if value.is_finite() { Value::from(value) } else { Value::from(value.to_string()) };
        self.add(field, shown, format!("must be a number from {min} to {max}"));
        default
    }

    /// A sampler's name may say the sigma schedule too; then `sigma_schedule` is absent or says the same.
    fn sampling(
        &mut self,
        sampler: Option<String>,
        sigma_schedule: Option<String>,
        model: &ModelInfo,
    ) -> (SamplerKind, SigmaSchedule) {
        let defaults = &model.defaults;
        let named = sampler.as_deref().and_then(NamedSampler::parse);
        let named = named.filter(|named| model.samplers.contains(&named.kind));
        let said = named.and_then(|named| named.sigma_schedule);
        if let Some(text) = sampler.as_deref().filter(|_| named.is_none()) {
            self.unsupported("sampler", text, &model.samplers);
        } else if let (Some(text), Some(schedule)) = (sampler.as_deref(), said)
            && !model.sigma_schedules.contains(&schedule)
        {
            let names: Vec<String> = model.sigma_schedules.iter().map(|name| format!("`{name}`")).collect();
            let message = format!("names the sigma schedule `{schedule}`; this model's are {}", names.join(", "));
            self.add("sampler", text, message);
        }
        let asked = sigma_schedule.as_deref().map(|text| {
            let schedule = SigmaSchedule::named(text).filter(|schedule| model.sigma_schedules.contains(schedule));
            match (schedule, said) {
                (None, _) => self.unsupported("sigma_schedule", text, &model.sigma_schedules),
                (Some(schedule), Some(said)) if schedule != said => {
                    let message = format!("is not `{said}`, which the sampler's name says; leave one of them out");
                    self.add("sigma_schedule", text, message);
                }
                _ => {}
            }
            schedule.unwrap_or(defaults.sigma_schedule)
        });
        let kind = named.map_or(defaults.sampler, |named| named.kind);
        (kind, said.or(asked).unwrap_or(defaults.sigma_schedule))
    }

    fn unsupported<T: fmt::Display>(&mut self, field: &str, text: &str, allowed: &[T]) {
        let names: Vec<String> = allowed.iter().map(|value| format!("`{value}`")).collect();
        self.add(field, text, format!("is not supported; use one of {}", names.join(", ")));
    }

    fn named<T>(&mut self, field: &str, given: Option<String>, default: T, allowed: &[T]) -> T
    where
        T: FromStr + fmt::Display + Copy + PartialEq,
    {
        let Some(text) = given else { return default };
        match text.parse::<T>() {
            Ok(value) if allowed.contains(&value) => value,
            _ => {
                self.unsupported(field, &text, allowed);
                default
            }
        }
    }

    fn seed(&mut self, given: Option<i128>, drawn: u64) -> u64 {
        match given {
            None => drawn & MAX_SEED,
            Some(seed) if (0..=i128::from(MAX_SEED)).contains(&seed) => seed as u64,
            Some(seed) => {
                let shown = i64::try_from(seed).map_or_else(|_| Value::from(seed.to_string()), Value::from);
                self.add("seed", shown, format!("must be an integer from 0 to {MAX_SEED}"));
                0
            }
        }
    }

    fn metadata(&mut self, given: Option<Map<String, Value>>, limits: &Limits) -> Map<String, Value> {
        let metadata = given.unwrap_or_default();
        let size = Value::Object(metadata.clone()).to_string().len();
        if size > limits.max_metadata_bytes {
            let message = format!("takes {size} bytes as JSON; at most {} are allowed", limits.max_metadata_bytes);
            self.add("metadata", Value::Null, message);
        }
        metadata
    }

    fn syntax(&mut self, request: &GenerationRequest) {
        if request.prompt_syntax != PromptSyntax::A1111 {
            return;
        }
        for (field, text) in [("prompt", &request.prompt), ("negative_prompt", &request.negative_prompt)] {
            if let Err(error) = parse_a1111(text) {
                self.add(field, text.as_str(), error.to_string());
            }
        }
    }

    fn guidance_interval(&mut self, request: &GenerationRequest) {
        if request.guidance_end < request.guidance_start {
            let message = format!("must not be below `guidance_start`, which is {}", request.guidance_start);
            self.add("guidance_end", request.guidance_end, message);
        }
    }

    fn pixels(&mut self, request: &GenerationRequest, limits: &Limits) {
        let pixels = u64::from(request.width) * u64::from(request.height);
        if pixels > limits.max_pixels {
            let shown = format!("{}x{}", request.width, request.height);
            self.add(
                "width",
                shown,
                format!("times `height` is {pixels} pixels; at most {} are allowed", limits.max_pixels),
            );
        }
    }
}
