//! What no name or shape tells: as the published checkpoints of each family have it, whose folders diffusers reads beside a
//! single file (`DIFFUSERS_DEFAULT_PIPELINE_PATHS` in diffusers 0.42, loaders/single_file_utils.py).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::text::Place;
use super::{Family, Keys, Prediction};
use crate::diffusion::weights::clip_vocabulary::{END, START};
use crate::diffusion::weights::header::Header;

/// What the UNet's output means: as the file says, or as its family is taken.
///
/// `modelspec.prediction_type` is what kohya's trainer writes (Stability AI's ModelSpec); `v_pred` an empty tensor that marks
/// SDXL files of that kind, as ComfyUI reads it; 2.x files are v-predicting unless their marks say otherwise, as diffusers
/// takes them. Those in SGM's names are SD-Turbo, which predicts the noise.
pub(super) fn prediction(keys: &Keys<'_>, header: &Header, family: Family, first: Option<&Place>) -> Prediction {
    let said = header.metadata.get("modelspec.prediction_type").map(|said| said.to_ascii_lowercase());
    let (kind, because) = match said.as_deref() {
        Some("v" | "v_prediction" | "v-prediction") => ("v_prediction", "the file's modelspec says so"),
        Some("epsilon" | "eps") => ("epsilon", "the file's modelspec says so"),
        _ if keys.has("v_pred") => ("v_prediction", "the file has the mark `v_pred`"),
        _ if family != Family::StableDiffusion2 => ("epsilon", "the family's published checkpoints do"),
        _ if is_inpainting(keys) => ("epsilon", "the published 2.x inpainting checkpoint does"),
        _ if first.is_some_and(Place::is_sgm) => ("epsilon", "2.x in SGM's names is SD-Turbo"),
        _ => ("v_prediction", "2.x files that do not say are taken so; `prediction_type` says otherwise"),
    };
    Prediction { kind, because }
}

fn is_inpainting(keys: &Keys<'_>) -> bool {
    keys.shape("model.diffusion_model.input_blocks.0.0.weight").is_some_and(|shape| shape.get(1) == Some(&9))
}

/// The side of the pictures it was trained with.
pub(super) fn image_size(family: Family, prediction: &Prediction) -> usize {
    match family {
        Family::StableDiffusionXl | Family::StableDiffusionXlRefiner => 1024,
        Family::StableDiffusion2 if prediction.kind == "v_prediction" => 768,
        _ => 512,
    }
}

/// Picture pixels a latent pixel.
pub(super) fn factor(vae: &Result<Value, String>) -> usize {
    let levels = vae.as_ref().ok().and_then(|config| config["block_out_channels"].as_array()).map_or(4, Vec::len);
    1 << levels.saturating_sub(1).min(16)
}

/// The autoencoder's configuration with what depends on the family.
pub(super) fn scaled(mut config: Value, family: Family, size: usize) -> Value {
    config["scaling_factor"] = if family.is_xl() { 0.13025 } else { 0.18215 }.into();
    config["sample_size"] = size.into();
    if family.is_xl() {
        config["force_upcast"] = true.into();
    }
    config
}

/// The JSON files of a folder that are no network's.
pub(super) fn texts(
    keys: &Keys<'_>,
    family: Family,
    in_channels: usize,
    prediction: &Prediction,
    encoders: &[Place],
) -> BTreeMap<&'static str, Value> {
    let class = match (family, in_channels) {
        (Family::StableDiffusionXl, 9) => "StableDiffusionXLInpaintPipeline",
        (Family::StableDiffusionXl, _) => "StableDiffusionXLPipeline",
        (Family::StableDiffusionXlRefiner, _) => "StableDiffusionXLImg2ImgPipeline",
        (_, 9) => "StableDiffusionInpaintPipeline",
        _ => "StableDiffusionPipeline",
    };
    let mut index = json!({
        "_class_name": class,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    for place in encoders {
        let (component, tokenizer) = place.components(family);
        let class = if component == "text_encoder" { "CLIPTextModel" } else { "CLIPTextModelWithProjection" };
        index[component] = json!(["transformers", class]);
        index[tokenizer] = json!(["transformers", "CLIPTokenizer"]);
    }
    if family.is_xl() {
        let refiner = family == Family::StableDiffusionXlRefiner;
        index["force_zeros_for_empty_prompt"] = (!refiner).into();
        index["requires_aesthetics_score"] = refiner.into();
    }
    let mut schedule = json!({
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": false,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
        "prediction_type": prediction.kind,
    });
    schedule["_class_name"] = match family {
        Family::StableDiffusion1 => "PNDMScheduler",
        Family::StableDiffusion2 => "DDIMScheduler",
        Family::StableDiffusionXl | Family::StableDiffusionXlRefiner => "EulerDiscreteScheduler",
    }
    .into();
    if family.is_xl() {
        schedule["timestep_spacing"] = "leading".into();
        schedule["interpolation_type"] = "linear".into();
        schedule["use_karras_sigmas"] = false.into();
        schedule["sample_max_value"] = 1.0.into();
    } else if family == Family::StableDiffusion2 && encoders.iter().any(Place::is_sgm) {
        schedule["timestep_spacing"] = "trailing".into();
    }
    // An empty tensor beside `v_pred` that says: betas rescaled to zero terminal signal-to-noise ratio, as ComfyUI reads it.
    if keys.has("ztsnr") {
        schedule["rescale_betas_zero_snr"] = true.into();
        schedule["timestep_spacing"] = "trailing".into();
    }
    BTreeMap::from([("model_index.json", index), ("scheduler/scheduler_config.json", schedule)])
}

/// A tokenizer's `special_tokens_map.json`.
pub(super) fn special_tokens(pad: &str) -> Value {
    json!({"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad})
}

/// Names that only one kind of file has, and what it is; the first that is there.
const OTHERS: [(&str, &str); 14] = [
    ("double_blocks.0.img_attn.norm.key_norm.scale", "a FLUX transformer"),
    ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "a FLUX checkpoint"),
    ("joint_blocks.0.context_block.adaLN_modulation.1.bias", "a Stable Diffusion 3 transformer"),
    ("model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias", "a Stable Diffusion 3 checkpoint"),
    ("control_model.time_embed.0.weight", "a ControlNet"),
    ("controlnet_cond_embedding.conv_in.weight", "a ControlNet in diffusers' names"),
    ("down_blocks.0.resnets.0.conv1.weight", "a UNet in diffusers' names"),
    ("input_blocks.0.0.weight", "a UNet without its checkpoint"),
    ("decoder.conv_in.weight", "an autoencoder"),
    ("first_stage_model.decoder.conv_in.weight", "an autoencoder"),
    ("text_model.embeddings.token_embedding.weight", "a text encoder"),
    ("emb_params", "a textual inversion embedding"),
    ("string_to_param", "a textual inversion embedding"),
    ("clip_g", "a textual inversion embedding for SDXL"),
];

/// Why a file without a UNet where checkpoints have one is none.
pub(super) fn what_else(keys: &Keys<'_>) -> String {
    let seems = what_it_seems(keys).map(|what| format!(": it seems to be {what}"));
    format!("it is no checkpoint, it has no `model.diffusion_model` tensors{}", seems.unwrap_or_default())
}

pub(super) fn what_it_seems(keys: &Keys<'_>) -> Option<&'static str> {
    let lora =
        ["lora_unet_", "lora_te_", "lora_te1_", "unet.down_blocks", "lycoris_"].iter().any(|name| keys.any(name));
    let known = OTHERS.iter().find(|(name, _)| keys.has(name)).map(|(_, what)| *what);
    known.or(lora.then_some("a LoRA"))
}
