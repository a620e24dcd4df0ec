//! A picture's story in the text format that A1111 writes and other tools read.

use super::PictureInfo;
use crate::domain::{GenerationRequest, NoiseSource};

/// The words for picture `index` of a request.
pub fn describe(request: &GenerationRequest, index: u32) -> PictureInfo {
    let seed = request.image_seed(index);
    let negative = match request.negative_prompt() {
        "" => String::new(),
        text => format!("\nNegative prompt: {text}"),
    };
    let schedule = request.sigma_schedule().label();
    let parameters = format!(
        "{}{negative}\nSteps: {}, Sampler: {}, Schedule type: {schedule}, CFG scale: {}, Seed: {seed}, Size: {}x{}, Model: {}, RNG: {}, Version: Darkroom {}",
        request.prompt(),
        request.steps(),
        request.sampler().label(),
        request.guidance_scale(),
        request.width(),
        request.height(),
        request.model(),
        // A1111's names of the same numbers.
        match request.noise() {
            NoiseSource::TorchCpu => "CPU",
            NoiseSource::TorchCuda => "NV",
        },
        env!("CARGO_PKG_VERSION"),
    );
    // The seed that draws this picture alone, and one picture: the request again, ready to be sent.
    let mut json = request.to_body();
    json["seed"] = seed.into();
    json["num_images"] = 1.into();
    PictureInfo { parameters, json: json.to_string() }
}
