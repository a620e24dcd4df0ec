//! Every network against diffusers and transformers, on the tiny checkpoints of tests/fixtures/make_checkpoints.py.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use darkroom::diffusion::models::autoencoders::{AutoencoderKl, AutoencoderKlConfig};
use darkroom::diffusion::models::text_encoders::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use darkroom::diffusion::models::unets::{UNet2DConditionConfig, UNet2DConditionModel, UNetInputs};
use darkroom::diffusion::weights::Checkpoint;

/// Largest difference relative to the reference's range (max - min). Measured on x86-64 with AVX-512: at most 6e-7 for
/// the text encoder, 1e-6 for the UNet, 1e-6 for the autoencoder; the bound leaves room for other instruction sets.
const TOLERANCE: f32 = 5e-6;

pub(super) const PROMPTS: [&str; 4] = ["a red house in the snow at night", "", "Zebra, naïve 東京 42!", LONG];
const LONG: &str = "a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a ";

pub(super) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub(super) fn goldens(style: &str) -> std::collections::HashMap<String, Tensor> {
    let file = fixtures().join(format!("goldens/{style}.safetensors"));
    candle_core::safetensors::load(file, &Device::Cpu).expect("goldens: see tests/fixtures/README.md")
}

fn checkpoint(style: &str) -> Checkpoint {
    Checkpoint::Folder(fixtures().join(style))
}

pub(super) fn assert_close(what: &str, ours: &Tensor, reference: &Tensor) {
    assert_eq!(ours.dims(), reference.dims(), "{what}");
    let numbers = |x: &Tensor| x.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("f32");
    let (ours, reference) = (numbers(ours), numbers(reference));
    let range = reference.iter().copied().fold(f32::MIN, f32::max) - reference.iter().copied().fold(f32::MAX, f32::min);
    let worst = ours.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / range;
    // Shown with --nocapture: how far below the tolerance.
    eprintln!("{what}: {worst:e}");
    assert!(worst <= TOLERANCE, "{what}: {worst} of the range");
}

fn text_encoder(checkpoint: &Checkpoint) -> ClipTextModel {
    let config: ClipTextConfig = checkpoint.json("text_encoder/config.json").unwrap();
    ClipTextModel::load(config, &checkpoint.weights("text_encoder", &Device::Cpu).unwrap()).unwrap()
}

fn unet(checkpoint: &Checkpoint) -> UNet2DConditionModel {
    let config = UNet2DConditionConfig::parse(checkpoint.json("unet/config.json").unwrap()).unwrap();
    UNet2DConditionModel::load(config, &checkpoint.weights("unet", &Device::Cpu).unwrap()).unwrap()
}

pub(super) fn vae(checkpoint: &Checkpoint) -> AutoencoderKl {
    let config: AutoencoderKlConfig = checkpoint.json("vae/config.json").unwrap();
    AutoencoderKl::load(config, &checkpoint.weights("vae", &Device::Cpu).unwrap()).unwrap()
}

/// An evaluation of a network that is told nothing but words.
fn evaluate(unet: &UNet2DConditionModel, latents: &Tensor, timesteps: &[f64], hidden_states: &Tensor) -> Tensor {
    let inputs = UNetInputs { latents, timesteps, hidden_states, added: None, guidance_scales: None, residuals: None };
    unet.forward(&inputs).unwrap()
}

fn timesteps(golden: &Tensor) -> Vec<f64> {
    golden.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn the_tokenizer_gives_the_reference_ids() {
    for style in ["tiny-sd", "tiny-sd2"] {
        let tokenizer = ClipTokenizer::load(&checkpoint(style), "tokenizer", 24).unwrap();
        let ids: Vec<Vec<i64>> = goldens(style)["text.ids"].to_vec2().unwrap();
        for (prompt, reference) in PROMPTS.iter().zip(ids) {
            let tokens = tokenizer.encode(prompt).unwrap();
            let ours: Vec<i64> = tokens.ids.iter().copied().map(i64::from).collect();
            assert_eq!(ours, reference, "{style}: {prompt}");
            assert_eq!(tokens.cut, if *prompt == LONG { 40 - 22 } else { 0 });
        }
    }
}

#[test]
fn the_text_encoder_agrees_for_a_batch_of_prompts() {
    for style in ["tiny-sd", "tiny-sd2"] {
        let golden = goldens(style);
        let ids = golden["text.ids"].to_dtype(DType::U32).unwrap();
        let ours = text_encoder(&checkpoint(style)).forward(&ids).unwrap();
        assert_close(&format!("{style} text"), &ours, &golden["text.out"]);
    }
}

#[test]
fn the_unet_agrees_with_a_different_timestep_in_each_row() {
    for style in ["tiny-sd", "tiny-sd2"] {
        let (golden, unet) = (goldens(style), unet(&checkpoint(style)));
        let steps = timesteps(&golden["unet.timesteps"]);
        let ours = evaluate(&unet, &golden["unet.latents"], &steps, &golden["unet.words"]);
        assert_close(&format!("{style} unet"), &ours, &golden["unet.out"]);
        let words = golden["unet.words"].narrow(0, 0, 2).unwrap();
        let ours = evaluate(&unet, &golden["unet_odd.latents"], &steps[..2], &words);
        assert_close(&format!("{style} unet at 17x15"), &ours, &golden["unet_odd.out"]);
    }
}

#[test]
fn the_autoencoder_agrees_both_ways() {
    for style in ["tiny-sd", "tiny-sd2"] {
        let (golden, vae) = (goldens(style), vae(&checkpoint(style)));
        let posterior = vae.encode(&golden["vae.picture"]).unwrap();
        assert_close(&format!("{style} vae mean"), &posterior.mean, &golden["vae.mean"]);
        assert_close(&format!("{style} vae std"), &posterior.std, &golden["vae.std"]);
        let ours = vae.decode(&golden["vae.codes"]).unwrap();
        assert_close(&format!("{style} vae decode"), &ours, &golden["vae.out"]);
    }
}

pub(super) fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Whatever shares a batch, a row's bits stay: alone, in every place of batches of several sizes.
#[test]
fn a_row_is_the_same_to_the_bit_in_any_batch() {
    let checkpoint = checkpoint("tiny-sd2");
    let (unet, vae, text) = (unet(&checkpoint), vae(&checkpoint), text_encoder(&checkpoint));
    let device = &Device::Cpu;
    for side in [4, 8, 12] {
        let latents = Tensor::randn(0f32, 1.0, (16, 4, side, side), device).unwrap();
        let words = Tensor::randn(0f32, 1.0, (16, 24, 32), device).unwrap();
        let steps: Vec<f64> = (0..16).map(|k| 61.5 * f64::from(k)).collect();
        let row = |x: &Tensor, from: usize, count: usize| x.narrow(0, from, count).unwrap();
        let run = |from, count| {
            evaluate(&unet, &row(&latents, from, count), &steps[from..from + count], &row(&words, from, count))
        };
        let alone: Vec<_> = (0..16).map(|k| bits(&run(k, 1))).collect();
        let decoded: Vec<_> = (0..16).map(|k| bits(&vae.decode(&row(&latents, k, 1)).unwrap())).collect();
        for (from, count) in [(0, 2), (3, 2), (1, 3), (4, 5), (2, 7), (8, 8), (0, 16)] {
            let (batch, pictures) = (run(from, count), vae.decode(&row(&latents, from, count)).unwrap());
            for k in 0..count {
                assert!(bits(&row(&batch, k, 1)) == alone[from + k], "unet row {k} of {count} at {side}");
                assert!(bits(&row(&pictures, k, 1)) == decoded[from + k], "vae row {k} of {count} at {side}");
            }
        }
    }
    let ids = goldens("tiny-sd2")["text.ids"].to_dtype(DType::U32).unwrap();
    let together = text.forward(&ids).unwrap();
    for k in 0..4 {
        let alone = text.forward(&ids.narrow(0, k, 1).unwrap()).unwrap();
        assert!(bits(&alone) == bits(&together.narrow(0, k, 1).unwrap()), "text row {k}");
    }
}

mod bad_files {
    use super::*;

    /// A copy of the text encoder's folder whose weights are `bytes`.
    fn with_weights(bytes: &[u8]) -> (tempfile::TempDir, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("text_encoder")).unwrap();
        std::fs::write(folder.path().join("text_encoder/model.safetensors"), bytes).unwrap();
        let checkpoint = Checkpoint::Folder(folder.path().to_owned());
        (folder, checkpoint)
    }

    fn good() -> Vec<u8> {
        std::fs::read(fixtures().join("tiny-sd/text_encoder/model.safetensors")).unwrap()
    }

    fn load(checkpoint: &Checkpoint, config: ClipTextConfig) -> Result<ClipTextModel, String> {
        let weights = checkpoint.weights("text_encoder", &Device::Cpu).map_err(|error| error.to_string())?;
        ClipTextModel::load(config, &weights).map_err(|error| error.to_string())
    }

    fn config(changes: &str) -> ClipTextConfig {
        let mut json: serde_json::Value = super::checkpoint("tiny-sd").json("text_encoder/config.json").unwrap();
        let changes: serde_json::Value = serde_json::from_str(changes).unwrap();
        json.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_file_that_is_no_whole_safetensors_is_named() {
        let whole = good();
        let mut huge = whole.clone();
        huge[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
        for bytes in [&whole[..whole.len() / 2], &whole[..100], &[][..], &b"not safetensors at all"[..], &huge] {
            let (_folder, checkpoint) = with_weights(bytes);
            let error = load(&checkpoint, config("{}")).unwrap_err();
            assert!(error.contains("text_encoder/model.safetensors") && error.contains("whole safetensors"), "{error}");
        }
    }

    #[test]
    fn what_is_no_safetensors_file_at_all_is_called_what_it_seems_to_be() {
        for (bytes, part) in [
            (&b"PK\x03\x04 and the rest of an archive"[..], "save_file"),
            (&b"\x80\x02}q\x00."[..], "pickle"),
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"[..], "git lfs pull"),
            (&b"\n<!DOCTYPE html><html>"[..], "web page"),
        ] {
            let (_folder, checkpoint) = with_weights(bytes);
            let error = load(&checkpoint, config("{}")).unwrap_err();
            assert!(error.contains("text_encoder/model.safetensors") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_weight_that_is_no_number_is_named_with_its_tensor() {
        let mut bytes = good();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        let (_folder, checkpoint) = with_weights(&bytes);
        let error = load(&checkpoint, config("{}")).unwrap_err();
        assert!(error.contains("tensor `") && error.contains("holds NaN at index"), "{error}");
    }

    #[test]
    fn a_pipe_or_a_folder_in_a_files_place_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("text_encoder/model.safetensors")).unwrap();
        let checkpoint = Checkpoint::Folder(folder.path().to_owned());
        let error = checkpoint.weights("text_encoder", &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }

    #[test]
    fn a_missing_and_a_misshapen_tensor_are_named_with_what_was_expected() {
        let (_folder, checkpoint) = with_weights(&good());
        let error = load(&checkpoint, config(r#"{"num_hidden_layers": 4}"#)).unwrap_err();
        assert!(error.contains("encoder.layers.3.") && error.contains("no tensor"), "{error}");
        let error = load(&checkpoint, config(r#"{"intermediate_size": 65}"#)).unwrap_err();
        assert!(
            error.contains("mlp.fc1.weight") && error.contains("[64, 32]") && error.contains("[65, 32]"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::Folder(folder.path().to_owned());
        let error = checkpoint.weights("unet", &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("unet/diffusion_pytorch_model.safetensors"), "{error}");
    }
}
