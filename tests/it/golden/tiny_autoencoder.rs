//! Tiny autoencoders (diffusers' `AutoencoderTiny`): in the autoencoder's place, and beside it for previews.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use darkroom::diffusion::engine::{EngineEvent, EngineOptions, draw};
use darkroom::diffusion::models::autoencoders::{AutoencoderTiny, AutoencoderTinyConfig, TinyDecoder};
use darkroom::diffusion::pipelines::{self, ModelSource};
use darkroom::diffusion::weights::Checkpoint;
use darkroom::domain::{DeviceSpec, ImageInputsDraft};
use darkroom::images::{Pixels, RgbImage};

use super::image_to_image::pixels;
use super::networks::{assert_close, bits, fixtures, goldens};
use super::pipeline::{assert_drawn, request};
use crate::support::drafts::{checked, drawing};

fn folder() -> Checkpoint {
    Checkpoint::Component("vae", fixtures().join("taesd"))
}

fn config(act_fn: &str) -> AutoencoderTinyConfig {
    let mut json: serde_json::Value = folder().json("vae/config.json").unwrap();
    json["act_fn"] = act_fn.into();
    serde_json::from_value(json).unwrap()
}

fn network(act_fn: &str) -> AutoencoderTiny {
    AutoencoderTiny::load(config(act_fn), &folder().weights("vae", &Device::Cpu).unwrap()).unwrap()
}

#[test]
fn a_tiny_autoencoder_agrees_both_ways_by_every_activation() {
    let golden = goldens("taesd");
    assert_close("latents", &network("relu").encode(&golden["picture"]).unwrap(), &golden["latents"]);
    for (act_fn, name) in [("relu", "out"), ("silu", "out_silu"), ("mish", "out_mish"), ("gelu", "out_gelu")] {
        assert_close(name, &network(act_fn).decode(&golden["codes"]).unwrap(), &golden[name]);
    }
}

#[test]
fn bands_have_the_bits_of_whole_maps() {
    let (whole, bands) = (network("relu").with_numbers_at_once(usize::MAX), network("relu").with_numbers_at_once(1));
    for (n, height, width) in [(1, 96, 64), (2, 116, 20)] {
        let picture = Tensor::rand(-1f32, 1.0, (n, 3, height, width), &Device::Cpu).unwrap();
        let latents = whole.encode(&picture).unwrap();
        assert!(bits(&bands.encode(&picture).unwrap()) == bits(&latents), "encode {height}x{width}");
        assert!(bits(&bands.decode(&latents).unwrap()) == bits(&whole.decode(&latents).unwrap()), "{height}x{width}");
    }
}

/// tiny-sd2 with changes.
fn source(vae: Option<PathBuf>, vae_tiny: Option<PathBuf>) -> ModelSource {
    let mut source = ModelSource::at("tiny-sd2", fixtures().join("tiny-sd2"));
    (source.changes.vae, source.changes.vae_tiny) = (vae, vae_tiny);
    source
}

/// From words, from a picture, and around a mask: no noise is drawn for a picture's latents.
#[test]
fn in_the_autoencoders_place_it_draws_the_references() {
    let (golden, inputs) = (goldens("taesd"), goldens("tiny-sd2-image-to-image"));
    let pipeline = pipelines::load(&source(Some(fixtures().join("taesd")), None), DeviceSpec::Cpu).unwrap();
    let (picture, mask): (RgbImage, Pixels<1>) = (pixels(&inputs["init"]), pixels(&inputs["mask"]));
    for what in ["words", "picture", "mask"] {
        for tag in ["guided", "plain"] {
            let reference = &golden[&format!("{what}.{tag}")];
            let mut draft = request("tiny-sd2", "euler", tag);
            if what == "words" {
                let request = checked(draft, pipeline.as_ref());
                eprintln!("{}", assert_drawn(&format!("{what} {tag}"), &pipeline, request, reference));
                continue;
            }
            draft.image_inputs = ImageInputsDraft { strength: Some(0.6), ..ImageInputsDraft::default() };
            let mask = (what == "mask").then(|| mask.clone());
            let drawing = drawing(draft, Some(picture.clone()), mask, &pipeline);
            eprintln!("{}", assert_drawn(&format!("{what} {tag}"), &pipeline, drawing, reference));
        }
    }
}

/// The previews of a run of six steps by `source`, and its picture.
fn previews(source: &ModelSource) -> (Vec<RgbImage>, RgbImage) {
    let pipeline = pipelines::load(source, DeviceSpec::Cpu).unwrap();
    let asked = checked(request("tiny-sd2", "euler", "guided"), pipeline.as_ref());
    let (seen, options) =
        (Arc::new(Mutex::new(Vec::new())), EngineOptions { preview_every: 2, ..EngineOptions::default() });
    let into = seen.clone();
    let watch = move |event: &EngineEvent| {
        if let EngineEvent::Preview { picture, .. } = event {
            into.lock().unwrap().push(picture.clone());
        }
    };
    let picture = draw(pipeline, asked, options, watch).unwrap().remove(0);
    (Arc::into_inner(seen).unwrap().into_inner().unwrap(), picture)
}

/// Folder, file in diffusers' names, file in the original's numbers: they say the same; the picture is the autoencoder's own.
#[test]
fn beside_the_autoencoder_it_makes_the_previews_and_nothing_else() {
    let (none, plain) = previews(&source(None, None));
    assert!(none.is_empty(), "a model without a map and without a tiny autoencoder has no previews");
    let (by_folder, picture) = previews(&source(None, Some(fixtures().join("taesd"))));
    assert!(picture == plain, "the picture does not depend on its previews");
    assert_eq!(by_folder.len(), 2);
    assert!(by_folder.iter().all(|preview| (preview.width(), preview.height()) == (64, 32)), "as large as the picture");
    let file = fixtures().join("taesd/diffusion_pytorch_model.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("taesd_decoder.safetensors");
    candle_core::safetensors::save(&in_the_originals_numbers(&file), &original).unwrap();
    let decoder = |path: PathBuf| {
        let checkpoint = source(None, Some(path)).checkpoint().unwrap();
        let config: AutoencoderTinyConfig = checkpoint.json("vae_tiny/config.json").unwrap();
        TinyDecoder::load(config, &checkpoint.weights("vae_tiny", &Device::Cpu).unwrap()).unwrap()
    };
    let codes = Tensor::randn(0f32, 1.0, (1, 4, 8, 8), &Device::Cpu).unwrap();
    let reference = network("relu").decode(&codes).unwrap();
    for path in [file, original] {
        let ours = decoder(path.clone());
        assert!(bits(&ours.decode(&codes).unwrap()) == bits(&reference), "{}", path.display());
        // The file does not tell the scaling factor, which published ones have as 1.
        assert!(bits(&ours.config().unscaled(&codes).unwrap()) == bits(&codes));
        assert_eq!(previews(&source(None, Some(path))).0.len(), 2);
    }
}

/// The decoder alone, its layers numbered from the clamp on, which has no weights.
fn in_the_originals_numbers(file: &PathBuf) -> HashMap<String, Tensor> {
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let renamed = |(name, tensor): (String, Tensor)| {
        let (layer, rest) = name.strip_prefix("decoder.layers.")?.split_once('.')?;
        Some((format!("{}.{rest}", layer.parse::<usize>().unwrap() + 1), tensor))
    };
    tensors.into_iter().filter_map(renamed).collect()
}

#[test]
fn what_is_no_tiny_autoencoder_or_does_not_fit_is_told() {
    let told = |source: ModelSource| pipelines::load(&source, DeviceSpec::Cpu).err().unwrap().to_string();
    let vae = fixtures().join("tiny-sd2/vae");
    let error = told(source(None, Some(vae.join("diffusion_pytorch_model.safetensors"))));
    assert!(error.contains("diffusion_pytorch_model.safetensors") && error.contains("no tiny autoencoder"), "{error}");
    let error = told(source(None, Some(vae)));
    assert!(error.contains("decoder.layers.0.weight"), "{error}");
    let error = told(source(None, Some(fixtures().join("noise"))));
    assert!(error.contains("no config.json"), "{error}");
    for (patch, part) in [
        // The shapes of the file are not those of its config.
        (serde_json::json!({"decoder_block_out_channels": [16, 16, 16]}), "[16, 4, 3, 3]"),
        // And a config alone may not fit the other autoencoder's.
        (serde_json::json!({"latent_channels": 16}), "its latents have 16 channels, those of `vae` 4"),
    ] {
        let mut wide = source(None, Some(fixtures().join("taesd")));
        wide.changes.patches.insert("vae_tiny/config.json".to_owned(), patch);
        let error = told(wide);
        assert!(error.contains(part), "{part} in: {error}");
    }
    for (key, value, part) in [
        ("upsample_fn", serde_json::json!("bilinear"), "nearest"),
        ("act_fn", serde_json::json!("elu"), "relu"),
        ("decoder_block_out_channels", serde_json::json!([8, 8, 16]), "one width"),
        ("num_encoder_blocks", serde_json::json!([1, 2]), "halvings"),
    ] {
        let mut source = source(Some(fixtures().join("taesd")), None);
        let mut patch = serde_json::json!({ key: value });
        if key == "num_encoder_blocks" {
            patch["encoder_block_out_channels"] = serde_json::json!([8, 8]);
        }
        source.changes.patches.insert("vae/config.json".to_owned(), patch);
        let error = told(source);
        assert!(error.contains(key) && error.contains(part), "{error}");
    }
}
