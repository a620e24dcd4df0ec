//! The checks of a request's fields, each of which tells its fault and goes on.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::request::{GenerationRequest, MAX_SEED};
use super::size_conditioning::{MAX_SIZE, SizeConditioning, SizeConditioningDraft};
use super::{FieldError, Limits, ModelInfo, NamedSampler, PromptSyntax, SamplerKind, SigmaSchedule, parse_a1111};

/// Collects faults; each check returns a value to go on with, so that one fault does not hide the next.
#[derive(Default)]
pub(super) struct Faults(pub(super) Vec<FieldError>);

impl Faults {
    pub(super) fn add(&mut self, field: &str, value: impl Into<Value>, message: impl Into<String>) {
        self.0.push(FieldError::new(field, value, message));
    }

    pub(super) fn prompt(&mut self, field: &str, text: Option<String>, limits: &Limits, required: bool) -> String {
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

    pub(super) fn integer(&mut self, field: &str, given: Option<i64>, default: u32, min: u32, max: u32) -> u32 {
        let Some(value) = given else { return default };
        match u32::try_from(value) {
            Ok(value) if (min..=max).contains(&value) => value,
            _ => {
                self.add(field, value, format!("must be an integer from {min} to {max}"));
                default
            }
        }
    }

    /// A start that may come later than the end says nothing, and hardly what was meant.
    pub(super) fn deadlines(
        &mut self,
        start_within: Option<i64>,
        expires_in: Option<i64>,
        longest: u32,
    ) -> (Option<u32>, Option<u32>) {
        let mut seconds = |field, given: Option<i64>| given.map(|_| self.integer(field, given, longest, 1, longest));
        let (start, end) = (seconds("start_within", start_within), seconds("expires_in", expires_in));
        if let (Some(start), Some(end)) = (start, end)
            && start > end
        {
            self.add("start_within", start, format!("must not be above `expires_in`, which is {end}"));
        }
        (start, end)
    }

    pub(super) fn side(&mut self, field: &str, given: Option<i64>, default: u32, model: &ModelInfo) -> u32 {
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

    pub(super) fn size_conditioning(
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

    pub(super) fn real(&mut self, field: &str, given: Option<f64>, default: f64, min: f64, max: f64) -> f64 {
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
    pub(super) fn sampling(
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

    pub(super) fn unsupported<T: fmt::Display>(&mut self, field: &str, text: &str, allowed: &[T]) {
        let names: Vec<String> = allowed.iter().map(|value| format!("`{value}`")).collect();
        self.add(field, text, format!("is not supported; use one of {}", names.join(", ")));
    }

    pub(super) fn named<T>(&mut self, field: &str, given: Option<String>, default: T, allowed: &[T]) -> T
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

    pub(super) fn seed(&mut self, given: Option<i128>, drawn: u64) -> u64 {
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

    pub(super) fn metadata(&mut self, given: Option<Map<String, Value>>, limits: &Limits) -> Map<String, Value> {
        let metadata = given.unwrap_or_default();
        let size = Value::Object(metadata.clone()).to_string().len();
        if size > limits.max_metadata_bytes {
            let message = format!("takes {size} bytes as JSON; at most {} are allowed", limits.max_metadata_bytes);
            self.add("metadata", Value::Null, message);
        }
        metadata
    }

    pub(super) fn syntax(&mut self, request: &GenerationRequest) {
        if request.prompt_syntax() != PromptSyntax::A1111 {
            return;
        }
        for (field, text) in [("prompt", request.prompt()), ("negative_prompt", request.negative_prompt())] {
            if let Err(error) = parse_a1111(text) {
                self.add(field, text, error.to_string());
            }
        }
    }

    pub(super) fn guidance_interval(&mut self, (start, end): (f64, f64)) {
        if end < start {
            let message = format!("must not be below `guidance_start`, which is {start}");
            self.add("guidance_end", end, message);
        }
    }

    pub(super) fn pixels(&mut self, request: &GenerationRequest, limits: &Limits) {
        let pixels = u64::from(request.width()) * u64::from(request.height());
        if let Some(hires) = request.hires().filter(|_| request.most_pixels() > limits.max_pixels.max(pixels)) {
            let message = format!("makes {} pixels; at most {} are allowed", request.most_pixels(), limits.max_pixels);
            self.add("hires.scale", hires.scale, message);
        }
        if pixels > limits.max_pixels {
            let shown = format!("{}x{}", request.width(), request.height());
            self.add(
                "width",
                shown,
                format!("times `height` is {pixels} pixels; at most {} are allowed", limits.max_pixels),
            );
        }
    }
}
