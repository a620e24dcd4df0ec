//! A picture's story in the text format that A1111 writes and other tools read: the prompts, then one line of `Name: value`
//! pairs under A1111's names.
//!
//! A1111 reads the last line by one regular expression: a name has letters, digits, spaces, `-` and `/`; a value ends at a comma,
//! unless it stands in JSON's quotes. Civitai reads the line that begins with `Steps: `, quotes likewise.

use serde_json::{Value, json};

use super::PictureInfo;
use crate::domain::{
    ControlInput, DrawnBy, GenerationRequest, Lora, ModelId, NoiseSource, PromptSyntax, SamplerKind, Upscaler,
};

/// The words for picture `index` of a request.
pub fn describe(request: &GenerationRequest, index: u32, drawn_by: &DrawnBy) -> PictureInfo {
    let seed = request.image_seed(index);
    let mut parameters = request.prompt().to_owned();
    parameters.extend(request.loras().iter().map(tag));
    if !request.negative_prompt().is_empty() {
        parameters += &format!("\nNegative prompt: {}", request.negative_prompt());
    }
    parameters += &format!("\n{}", line(request, seed, drawn_by).0);
    // The seed that draws this picture alone, and one picture: the request again, ready to be sent.
    // The same request gives the same file, whichever job drew it, and whoever asked.
    let mut json = request.to_drawing();
    json["seed"] = seed.into();
    json["num_images"] = 1.into();
    let named =
        |of: &[(String, String)]| of.iter().map(|(name, hash)| json!({"name": name, "hash": hash})).collect::<Vec<_>>();
    let files = json!({
        "models": drawn_by.models, "loras": named(&lora_hashes(request)), "embeddings": named(&drawn_by.embeddings),
    });
    PictureInfo { parameters, json: json.to_string(), files: files.to_string() }
}

/// A LoRA as A1111 names it in prompts.
fn tag(lora: &Lora) -> String {
    match lora.text_encoder_scale == lora.scale {
        true => format!(" <lora:{}:{}>", lora.name, lora.scale),
        false => format!(" <lora:{}:{}:{}>", lora.name, lora.text_encoder_scale, lora.scale),
    }
}

/// The hashes by which Civitai finds LoRAs.
fn lora_hashes(request: &GenerationRequest) -> Vec<(String, String)> {
    let hash = |lora: &Lora| Some((lora.name.clone(), lora.hash.clone()?));
    request.loras().iter().filter_map(hash).collect()
}

/// What a control means, in the words of A1111's extension.
fn control(control: &ControlInput) -> String {
    let (start, end) = control.shares();
    format!(
        "Module: none, Model: {}, Weight: {}, Resize Mode: Just Resize, Guidance Start: {start}, Guidance End: {end}, Control Mode: Balanced",
        control.model(),
        control.scale(),
    )
}

/// A line of `Name: value` pairs.
struct Line(String);

impl Line {
    /// One more.
    fn add(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        let separator = if self.0.is_empty() { "" } else { ", " };
        // What would end the value or begin a name stands in quotes, and what begins with one, so that it is not taken for them.
        let is_bare = !value.contains([',', ':', '\n', '\r']) && !value.starts_with('"') && value.trim() == value;
        self.0 += &match is_bare {
            true => format!("{separator}{name}: {value}"),
            false => format!("{separator}{name}: {}", Value::from(value)),
        };
    }

    fn add_some(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// Names with a hash each.
    fn add_hashes(&mut self, name: &str, hashes: &[(String, String)]) {
        let each: Vec<String> = hashes.iter().map(|(name, hash)| format!("{name}: {hash}")).collect();
        self.add_some(name, (!each.is_empty()).then(|| each.join(", ")));
    }
}

/// In the order in which A1111 writes them.
fn line(request: &GenerationRequest, seed: u64, drawn_by: &DrawnBy) -> Line {
    let mut line = Line(String::new());
    let inputs = request.image_inputs();
    line.add("Steps", request.steps());
    line.add("Sampler", request.sampler().label());
    line.add("Schedule type", request.sigma_schedule().label());
    line.add("CFG scale", request.guidance_scale());
    line.add("Seed", seed);
    line.add("Size", format!("{}x{}", request.width(), request.height()));
    line.add_some("Model hash", drawn_by.model_hash(request.model()));
    line.add("Model", request.model());
    let started = (inputs.init_image().is_some() && request.denoising_start().is_none()).then(|| inputs.strength());
    line.add_some("Denoising strength", request.hires().map(|hires| hires.strength).or(started));
    // A1111 counts from 1, and is silent of 1.
    line.add_some("Clip skip", Some(request.clip_skip() + 1).filter(|skip| *skip > 1));
    line.add(
        "RNG",
        match request.noise() {
            NoiseSource::TorchCpu => "CPU",
            NoiseSource::TorchCuda => "NV",
        },
    );
    // Brackets that are no weights.
    let texts = [request.prompt(), request.negative_prompt()];
    if request.prompt_syntax() == PromptSyntax::Plain && texts.iter().any(|text| text.contains(['(', '[', '\\'])) {
        line.add("Emphasis", "None");
    }
    if request.sampler() == SamplerKind::Ddim && request.eta() != 0.0 {
        line.add("Eta DDIM", request.eta());
    }
    mask(&mut line, request);
    if let Some(hires) = request.hires() {
        line.add("Hires upscale", hires.scale);
        line.add("Hires steps", hires.steps);
        line.add(
            "Hires upscaler",
            match hires.upscaler {
                Upscaler::Latent => "Latent",
                Upscaler::Lanczos => "Lanczos",
            },
        );
    }
    if let Some(refiner) = request.refiner() {
        line.add("Refiner", titled(&refiner.model, drawn_by));
        line.add("Refiner switch at", refiner.switch_at);
    }
    for (at, input) in request.controls().iter().enumerate() {
        line.add(&format!("ControlNet {at}"), control(input));
    }
    line.add_hashes("Lora hashes", &lora_hashes(request));
    line.add_hashes("TI hashes", &drawn_by.embeddings);
    line.add("Version", format!("Darkroom {}", env!("CARGO_PKG_VERSION")));
    line
}

fn mask(line: &mut Line, request: &GenerationRequest) {
    let inputs = request.image_inputs();
    if inputs.mask_image().is_none() {
        return;
    }
    line.add("Mask blur", inputs.mask_blur());
    if inputs.invert_mask() {
        line.add("Mask mode", "Inpaint not masked");
    }
    if let Some(padding) = inputs.only_masked_padding() {
        line.add("Inpaint area", "Only masked");
        line.add("Masked area padding", padding);
    }
}

/// As A1111 lists checkpoints: `name [hash]`.
fn titled(model: &ModelId, drawn_by: &DrawnBy) -> String {
    match drawn_by.model_hash(model) {
        Some(hash) => format!("{model} [{hash}]"),
        None => model.to_string(),
    }
}
