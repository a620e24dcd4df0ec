//! A picture's story in the text format that A1111 writes and other tools read.

use serde_json::Value;

use super::PictureInfo;
use crate::domain::{ControlInput, GenerationRequest, NoiseSource, Refiner, Upscaler};

/// The words for picture `index` of a request.
pub fn describe(request: &GenerationRequest, index: u32) -> PictureInfo {
    let seed = request.image_seed(index);
    let negative = match request.negative_prompt() {
        "" => String::new(),
        text => format!("\nNegative prompt: {text}"),
    };
    let started = image_inputs(request) + &refiner(request);
    let controls: String = request.controls().iter().enumerate().map(control).collect();
    let schedule = request.sigma_schedule().label();
    let parameters = format!(
        "{}{negative}\nSteps: {}, Sampler: {}, Schedule type: {schedule}, CFG scale: {}, Seed: {seed}, Size: {}x{}, Model: {}{started}{controls}, RNG: {}, Version: Darkroom {}",
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
    // Pictures it started from are told by their hash: the same request gives the same file, whichever job drew it.
    let forget =
        |picture: Option<&mut Value>| picture.and_then(Value::as_object_mut).map(|picture| picture.remove("job"));
    for name in ["init_image", "mask_image"] {
        forget(json.get_mut(name));
    }
    for control in json.get_mut("controls").and_then(Value::as_array_mut).into_iter().flatten() {
        forget(control.get_mut("image"));
    }
    PictureInfo { parameters, json: json.to_string() }
}

/// What a control means, in the words of A1111's extension.
fn control((at, control): (usize, &ControlInput)) -> String {
    let (start, end) = control.shares();
    format!(
        ", ControlNet {at}: \"Module: none, Model: {}, Weight: {}, Resize Mode: Just Resize, Guidance Start: {start}, Guidance End: {end}, Control Mode: Balanced\"",
        control.model(),
        control.scale(),
    )
}

fn refiner(request: &GenerationRequest) -> String {
    let told = |refiner: &Refiner| format!(", Refiner: {}, Refiner switch at: {}", refiner.model, refiner.switch_at);
    request.refiner().map(told).unwrap_or_default()
}

/// What a picture that was started from means, in A1111's words.
fn image_inputs(request: &GenerationRequest) -> String {
    let inputs = request.image_inputs();
    if let Some(hires) = request.hires() {
        let upscaler = match hires.upscaler {
            Upscaler::Latent => "Latent",
            Upscaler::Lanczos => "Lanczos",
        };
        return format!(
            ", Denoising strength: {}, Hires upscale: {}, Hires steps: {}, Hires upscaler: {upscaler}",
            hires.strength, hires.scale, hires.steps
        );
    }
    if inputs.init_image().is_none() {
        return String::new();
    }
    let mut text = format!(", Denoising strength: {}", inputs.strength());
    if inputs.mask_image().is_some() {
        text += &format!(", Mask blur: {}", inputs.mask_blur());
        if inputs.invert_mask() {
            text += ", Mask mode: Inpaint not masked";
        }
        if let Some(padding) = inputs.only_masked_padding() {
            text += &format!(", Inpaint area: Only masked, Masked area padding: {padding}");
        }
    }
    text
}
