//! A picture's story in the text format that A1111 writes and other tools read.

use super::PictureInfo;
use crate::domain::{GenerationRequest, SamplerKind, SigmaSchedule};

/// What A1111 calls the sampler.
const fn sampler_label(kind: SamplerKind) -> &'static str {
    match kind {
        SamplerKind::Ddpm => "DDPM",
        SamplerKind::Ddim => "DDIM",
        SamplerKind::Euler => "Euler",
        SamplerKind::EulerAncestral => "Euler a",
        SamplerKind::DpmPp2m => "DPM++ 2M",
    }
}

/// The words for picture `index` of a request.
pub fn describe(request: &GenerationRequest, index: u32) -> PictureInfo {
    let seed = request.image_seed(index);
    let negative = match request.negative_prompt() {
        "" => String::new(),
        text => format!("\nNegative prompt: {text}"),
    };
    let schedule = match request.sigma_schedule() {
        SigmaSchedule::Default => "Automatic",
        SigmaSchedule::Karras => "Karras",
    };
    let parameters = format!(
        "{}{negative}\nSteps: {}, Sampler: {}, Schedule type: {schedule}, CFG scale: {}, Seed: {seed}, Size: {}x{}, Model: {}, Version: Darkroom {}",
        request.prompt(),
        request.steps(),
        sampler_label(request.sampler()),
        request.guidance_scale(),
        request.width(),
        request.height(),
        request.model(),
        env!("CARGO_PKG_VERSION"),
    );
    // The seed that draws this picture alone, and one picture: the request again, ready to be sent.
    let mut json = serde_json::to_value(request).expect("plain data. This is a bug in domain.");
    json["seed"] = seed.into();
    json["num_images"] = 1.into();
    PictureInfo { parameters, json: json.to_string() }
}
