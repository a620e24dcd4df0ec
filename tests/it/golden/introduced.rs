//! What is told of a model without loading it is what it tells once it is loaded.

use darkroom::diffusion::pipelines::{self, ModelSource};
use darkroom::domain::{DeviceSpec, ModelInfo};

use crate::support::drafts::{copy_folder, fixtures};
use crate::support::single_files::{read_folder, table, write};

const FOLDERS: [&str; 8] = [
    "tiny-sd",
    "tiny-sd2",
    "tiny-sd-turbo",
    "tiny-lcm",
    "tiny-inpainting",
    "tiny-sdxl",
    "tiny-sdxl-turbo",
    "tiny-sdxl-refiner",
];

fn is_told_alike(source: &ModelSource) {
    let introduced = pipelines::introduce(source).unwrap_or_else(|error| panic!("{error}"));
    let pipeline = pipelines::load(source, DeviceSpec::Cpu).unwrap_or_else(|error| panic!("{error}"));
    // The hash takes all bytes of the weights: it comes with them.
    let loaded = ModelInfo { sha256: None, files: None, ..pipeline.info().clone() };
    assert_eq!(introduced.info, loaded);
    let (told, held) = (introduced.bytes(DeviceSpec::Cpu) as f64, pipeline.bytes() as f64);
    // Files may have tensors that nobody asks for, such as a text encoder's `position_ids`.
    assert!((1.0..1.01).contains(&(told / held)), "{}: {told} bytes told, {held} held", source.id);
}

#[test]
fn of_folders() {
    for name in FOLDERS {
        is_told_alike(&ModelSource::at(name, fixtures().join(name)));
    }
}

#[test]
fn of_the_built_in_model() {
    is_told_alike(&ModelSource::parse("pinhole").unwrap());
}

#[test]
fn of_single_files() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["tiny-sd", "tiny-sd2", "tiny-sdxl", "tiny-sdxl-refiner"] {
        let path = scratch.path().join(format!("{name}.safetensors"));
        write(&path, &table(name).apply(&read_folder(&fixtures().join(name))));
        let mut source = ModelSource::at(name, path);
        // Their vocabulary is not CLIP's.
        source.config = Some(fixtures().join(name));
        is_told_alike(&source);
    }
}

#[test]
fn of_another_autoencoder() {
    let mut source = ModelSource::at("changed", fixtures().join("tiny-sd"));
    for vae in ["tiny-sd2/vae", "taesd"] {
        source.changes.vae = Some(fixtures().join(vae));
        is_told_alike(&source);
    }
}

#[test]
fn faults_of_configurations_and_headers_are_told_without_loading() {
    let scratch = tempfile::tempdir().unwrap();
    for (file, damage, part) in [
        ("unet/config.json", "{\"block_out_channels\": []}", "block_out_channels"),
        ("vae/config.json", "{\"block_out_channels\": []}", "block_out_channels"),
        ("text_encoder/config.json", "{\"hidden_size\": 7}", "cross_attention_dim"),
        ("model_index.json", "{\"_class_name\": \"FluxPipeline\"}", "FluxPipeline"),
        ("unet/diffusion_pytorch_model.safetensors", "cut", "unet/diffusion_pytorch_model.safetensors"),
    ] {
        let folder = scratch.path().join(part.replace('/', "-")).join(file.replace('/', "-"));
        copy_folder(&fixtures().join("tiny-sd"), &folder);
        std::fs::write(folder.join(file), damage).unwrap();
        let told = pipelines::introduce(&ModelSource::at("spoilt", &folder)).unwrap_err().to_string();
        assert!(told.contains(part), "{file}: {told}");
    }
}
