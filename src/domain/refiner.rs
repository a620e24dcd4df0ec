//! Two models that share a picture's noise levels: a base draws the noisier ones, a refiner goes on with its latents
//! (diffusers' `denoising_end` and `denoising_start`; A1111's "Refiner").

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request_faults::Faults;
use super::{GenerationRequest, ImageInputsDraft, ModelId, ModelInfo, SamplerKind, SigmaSchedule};

/// What a client asked of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RefinerDraft {
    /// Which model goes on.
    pub model: Option<String>,
    /// Share of the training schedule at which it takes over, within 0 and 1.
    pub switch_at: Option<f64>,
    /// Sampler steps that its noise levels are made of.
    pub steps: Option<i64>,
}

impl RefinerDraft {
    /// Their names.
    pub const FIELDS: [&str; 3] = ["model", "switch_at", "steps"];
}

/// The refiner, defaults resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refiner {
    /// Which model goes on.
    pub model: ModelId,
    /// Share of the training schedule at which it takes over, within 0 and 1: it takes the steps whose timesteps lie below
    /// `(1 - switch_at)` times those trained with.
    pub switch_at: f64,
    /// Sampler steps that its noise levels are made of, of which it takes those after `switch_at`.
    pub steps: u32,
    /// The model's [`ModelInfo::guidance_embedded`] and [`ModelInfo::size_conditioning`]; not a client's to say.
    #[serde(default)]
    pub(super) guidance_embedded: bool,
    #[serde(default)]
    pub(super) size_conditioning: bool,
}

/// What a refiner must fit.
pub(super) struct Base<'a> {
    pub model: &'a ModelInfo,
    pub size: (u32, u32),
    pub steps: u32,
    pub max_steps: u32,
    pub clip_skip: u32,
    pub sampling: (SamplerKind, SigmaSchedule),
    /// A second, larger pass is asked for too.
    pub is_enlarged: bool,
}

/// What Stability AI's report and diffusers' documentation use.
const SWITCH_AT: f64 = 0.8;

impl Faults {
    pub(super) fn refiner(
        &mut self,
        given: Option<RefinerDraft>,
        served: &[ModelInfo],
        base: &Base<'_>,
    ) -> Option<Refiner> {
        let given = given?;
        let switch_at = self.share("refiner.switch_at", given.switch_at).unwrap_or(SWITCH_AT);
        let steps = self.integer("refiner.steps", given.steps, base.steps, 1, base.max_steps);
        if base.is_enlarged {
            self.add("refiner", Value::Null, "does not go with `hires`; leave one of them out");
        }
        if base.model.inpainting {
            let message = format!("does not go with the inpainting model `{}`; leave it out", base.model.id);
            self.add("refiner", Value::Null, message);
        }
        let Some(name) = given.model else {
            self.add(
                "refiner.model",
                Value::Null,
                format!("is required: the model that goes on; {}", fitting(served, base)),
            );
            return None;
        };
        let Some(model) = served.iter().find(|model| model.id.as_str() == name) else {
            self.add("refiner.model", name, format!("is not served here; {}", fitting(served, base)));
            return None;
        };
        if let Some(reason) = misfit(model, base) {
            self.add("refiner.model", name, format!("{reason}; {}", fitting(served, base)));
        } else if base.clip_skip > model.max_clip_skip {
            let message = format!("must be at most {} with the refiner `{name}`", model.max_clip_skip);
            self.add("clip_skip", base.clip_skip, message);
        }
        Some(Refiner {
            model: model.id.clone(),
            switch_at,
            steps,
            guidance_embedded: model.guidance_embedded,
            size_conditioning: model.size_conditioning,
        })
    }

    /// A share of the training schedule at which something happens, neither its beginning nor its end.
    pub(super) fn share(&mut self, field: &str, given: Option<f64>) -> Option<f64> {
        let share = given?;
        if share > 0.0 && share < 1.0 {
            return Some(share);
        }
        let shown = if share.is_finite() { Value::from(share) } else { Value::from(share.to_string()) };
        self.add(field, shown, "must be a number above 0 and below 1");
        None
    }
}

impl Faults {
    /// A run that begins within the schedule begins with a picture, and says itself how much of it is drawn anew.
    pub(super) fn denoising_start(&mut self, given: Option<f64>, inputs: &ImageInputsDraft) -> Option<f64> {
        let field = "denoising_start";
        let share = self.share(field, given)?;
        if inputs.init_image.is_none() && !inputs.is_faulty {
            self.add(field, share, "applies to a picture to start from; send `init_image` too");
        }
        if inputs.strength.is_some() {
            self.add(
                field,
                share,
                "says how much of the picture is drawn anew, as `strength` does; leave one of them out",
            );
        }
        Some(share)
    }

    /// Whether every model has a part of the schedule.
    pub(super) fn denoising_interval(&mut self, request: &GenerationRequest) {
        let (start, end) = (request.denoising_start(), request.asked_denoising_end());
        if request.hires().is_some() {
            for (field, share) in [("denoising_start", start), ("denoising_end", end)] {
                if let Some(share) = share {
                    self.add(field, share, "does not go with `hires`; leave one of them out");
                }
            }
        }
        // Without a picture the strength is 1.
        let begun = start.unwrap_or(((1.0 - request.image_inputs().strength()) * 1e4).round() / 1e4);
        let switch = request.refiner().map(|refiner| refiner.switch_at);
        if let Some(switch) = switch.filter(|switch| *switch <= begun) {
            let message = format!("must be above {begun}, where the picture to start from begins");
            self.add("refiner.switch_at", switch, message);
        }
        let (what, from) = switch.map_or(("the run begins", begun), |switch| ("the refiner takes over", switch));
        if let Some(end) = end.filter(|end| *end <= from) {
            self.add("denoising_end", end, format!("must be above {from}, where {what}"));
        }
    }
}

/// Why a model cannot go on with the base's latents.
fn misfit(model: &ModelInfo, base: &Base<'_>) -> Option<String> {
    let (sampler, schedule) = base.sampling;
    let (width, height) = base.size;
    let takes =
        |side: u32| (model.min_side..=model.max_side).contains(&side) && side.is_multiple_of(model.size_multiple);
    if model.latents != base.model.latents {
        return Some(format!("has latents of another kind than `{}`", base.model.id));
    }
    if model.inpainting {
        return Some("is an inpainting model".to_owned());
    }
    if !model.samplers.contains(&sampler) || !model.sigma_schedules.contains(&schedule) {
        return Some(format!("cannot be sampled by `{sampler}` with the sigma schedule `{schedule}`"));
    }
    if !(takes(width) && takes(height)) {
        let (min, max, step) = (model.min_side, model.max_side, model.size_multiple);
        return Some(format!("takes sides that are multiples of {step} from {min} to {max}, not {width}x{height}"));
    }
    None
}

/// The models that can.
fn fitting(served: &[ModelInfo], base: &Base<'_>) -> String {
    let others = served.iter().filter(|model| model.id != base.model.id && misfit(model, base).is_none());
    let names: Vec<String> = others.map(|model| format!("`{}`", model.id)).collect();
    match &names[..] {
        [] => "no model served here can go on with this one's latents".to_owned(),
        names => format!("use one of {}", names.join(", ")),
    }
}
