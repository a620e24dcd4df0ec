//! Bad files and bad settings: told at the start, by name, with an exit code, and without a panic.

use std::fs;
use std::path::Path;

use super::server::{darkroom, tiny_sd};
use crate::support::drafts::copy_folder;

/// Serves a copy of tiny-sd that `spoil` has been at; what was said on standard error.
fn refused(spoil: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(&tiny_sd(), &model);
    spoil(&model);
    let mut command = darkroom();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path().join("data"));
    let output = command.arg("--model").arg(&model).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(!told.contains("panicked"), "{told}");
    told
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

#[test]
fn a_missing_weight_file_is_named() {
    let told = refused(|model| fs::remove_file(model.join("vae/diffusion_pytorch_model.safetensors")).unwrap());
    assert!(told.contains("vae"), "{told}");
    assert!(told.contains("diffusion_pytorch_model"), "{told}");
}

#[test]
fn a_truncated_weight_file_is_named() {
    for keep in [0, 6, 100, 20_000] {
        let told = refused(|model| {
            let bytes = fs::read(model.join(UNET)).unwrap();
            fs::write(model.join(UNET), &bytes[..keep]).unwrap();
        });
        assert!(told.contains(UNET), "{keep} bytes: {told}");
    }
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named_with_its_file() {
    let told = refused(|model| {
        let path = model.join("unet/config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let width = config["cross_attention_dim"].as_u64().unwrap();
        config["cross_attention_dim"] = (width * 2).into();
        fs::write(path, config.to_string()).unwrap();
    });
    assert!(told.contains("unet"), "{told}");
    assert!(told.contains("attn2"), "the tensor: {told}");
}

#[test]
fn a_configuration_that_is_no_json_is_named() {
    let told = refused(|model| fs::write(model.join("text_encoder/config.json"), "{\"hidden_size\": ").unwrap());
    assert!(told.contains("text_encoder/config.json"), "{told}");
}

#[test]
fn a_folder_that_is_no_checkpoint_is_refused() {
    let told = refused(|model| fs::remove_file(model.join("model_index.json")).unwrap());
    assert!(told.contains("model_index.json"), "{told}");
}

#[test]
fn all_faults_of_the_settings_are_told_with_their_sources() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("darkroom.toml");
    fs::write(&file, "[workers]\ndevices = [\"tpu\"]\n").unwrap();
    let mut command = darkroom();
    command.arg("serve").arg("--config").arg(&file).env("DARKROOM_QUEUE__MAX_QUEUED", "0");
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in ["workers.devices", "tpu", "darkroom.toml", "queue.max_queued", "DARKROOM_QUEUE__MAX_QUEUED"] {
        assert!(told.contains(part), "{part} in {told}");
    }
}

#[test]
fn a_port_in_use_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let mut command = darkroom();
    command.args(["serve", "--listen", &address, "--data-dir"]).arg(folder.path()).arg("--model").arg(tiny_sd());
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(&address), "{told}");
}
