//! Models described in files, found in a folder, and looked at, by the binary.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::server::{darkroom, tiny_sd};
use crate::support::drafts::fixtures;
use crate::support::single_files::{read_folder, table, write};

fn told(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(!told.contains("panicked"), "{told}");
    told
}

/// What `darkroom models` lists with these settings, by id.
fn listed(settings: &str, folder: &Path) -> Vec<Value> {
    let file = folder.join("darkroom.toml");
    std::fs::write(&file, settings).unwrap();
    let text = told(darkroom().args(["models", "--json", "--config"]).arg(&file));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// tiny-sd2 as one file, its configurations named in a description beside it.
fn single_file(path: &Path) {
    write(path, &table("tiny-sd2").apply(&read_folder(&fixtures().join("tiny-sd2"))));
    let configs = fixtures().join("tiny-sd2");
    put(
        &path.with_extension("toml"),
        &format!("config = {:?}\nprediction_type = \"epsilon\"\n", configs.display().to_string()),
    );
}

#[test]
fn described_and_found_models_are_served_under_their_names() {
    let scratch = tempfile::tempdir().unwrap();
    let (root, dir) = (scratch.path(), scratch.path().join("found"));
    let folder = tiny_sd().display().to_string();
    put(
        &root.join("descriptions/painter.toml"),
        &format!(
            "path = {folder:?}\ndescription = \"Paints.\"\nmax_side = 64\n[defaults]\nwidth = 48\nsteps = 9\nsampler = \"euler\"\n"
        ),
    );
    put(&root.join("descriptions/other.toml"), "id = \"built-in\"\npath = \"pinhole\"\n");
    single_file(&dir.join("checkpoints/photo.safetensors"));
    put(&dir.join("checkpoints/broken.safetensors"), "not a checkpoint");
    put(&dir.join("unfinished/model_index.json"), "{\"_class_name\": \"StableDiffusionPipeline\"}");
    put(&dir.join("old.ckpt"), "PK");
    let settings = |serve: &str| {
        format!("[models]\nserve = {serve}\ndescriptions = {:?}\ndir = {:?}\n", root.join("descriptions"), dir)
    };
    let models = listed(&settings(r#"["painter", "*"]"#), root);
    let ids: Vec<&str> = models.iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["painter", "built-in", "photo"]);
    let painter = &models[0];
    assert_eq!((&painter["description"], &painter["max_side"]), (&"Paints.".into(), &64.into()));
    let defaults = &painter["defaults"];
    assert_eq!(
        (&defaults["width"], &defaults["steps"], &defaults["sampler"]),
        (&48.into(), &9.into(), &"euler".into())
    );
    assert_eq!(defaults["height"], 32, "as the checkpoint has it");
    assert_eq!(listed(&settings(r#"["photo"]"#), root).len(), 1);

    let file = root.join("darkroom.toml");
    let draw = |model: &str, out: &str| {
        let mut command = darkroom();
        command
            .args(["generate", "--prompt", "a cat", "--width", "32", "--height", "32", "--steps", "2", "--seed", "1"]);
        told(command.arg("--config").arg(&file).args(["--model", model, "-o"]).arg(root.join(out)));
        std::fs::read(root.join(out)).unwrap()
    };
    let pixels = |bytes: Vec<u8>| {
        darkroom::images::decode(&bytes, darkroom::domain::ImageFormat::Png).unwrap().pixels().to_vec()
    };
    assert_eq!(
        pixels(draw("photo", "by-id.png")),
        pixels(draw(dir.join("checkpoints/photo.safetensors").to_str().unwrap(), "by-path.png"))
    );
    let plain = fixtures().join("tiny-sd2");
    assert_ne!(
        pixels(draw("photo", "by-id.png")),
        pixels(draw(plain.to_str().unwrap(), "folder.png")),
        "it predicts noise"
    );
}

#[test]
fn all_faults_of_all_descriptions_are_told_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let descriptions = scratch.path().join("descriptions");
    put(&descriptions.join("a.toml"), "path = \"pinhole\"\nprediction_type = \"eps\"\nvea = \"x\"\n");
    put(&descriptions.join("b.toml"), "path = \"pinhole\"\n[defaults]\nsteps = 0\n");
    let settings = scratch.path().join("darkroom.toml");
    put(&settings, &format!("[models]\ndescriptions = {descriptions:?}\n"));
    let told = refused(darkroom().args(["models", "--config"]).arg(&settings));
    for part in ["a.toml", "prediction_type", "\"eps\"", "v_prediction", "vea", "b.toml", "defaults.steps"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    std::fs::remove_file(descriptions.join("a.toml")).unwrap();
    for (text, parts) in [
        ("path = \"./nowhere\"\n", ["b", "`path`", "nowhere"]),
        ("vae = \"x\"\n", ["model `b`", "`path`", "missing"]),
        ("path = \"pinhole\"\nvae = \"./nowhere\"\n", ["model `b`", "`vae`", "nowhere"]),
        ("path = \"pinhole\"\n[defaults]\nwidth = 65\n", ["its defaults", "width", "65"]),
        ("path = \"pinhole\"\nid = \"pinhole\"\n[defaults]\nwidth = 65\n", ["its defaults", "width", "65"]),
    ] {
        put(&descriptions.join("b.toml"), text);
        let told = refused(darkroom().args(["models", "--config"]).arg(&settings));
        for part in parts {
            assert!(told.contains(part), "{part} in {told}");
        }
    }
}

#[test]
fn inspect_tells_what_a_folder_is() {
    let mut command = darkroom();
    let text = told(command.args(["models", "inspect", "--json"]).arg(tiny_sd()));
    let found: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(found["family"], "Stable Diffusion 1.x");
    assert_eq!((&found["prediction_type"], &found["in_channels"]), (&"epsilon".into(), &4.into()));
    let components: Vec<(&str, u64)> = found["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|component| (component["name"].as_str().unwrap(), component["tensors"].as_u64().unwrap()))
        .collect();
    assert_eq!(components.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["text_encoder", "unet", "vae"]);
    // As diffusers counts them when `make_single_files.py` reads the folder.
    assert_eq!(components.iter().map(|(_, tensors)| tensors).sum::<u64>(), 480);
    let unet =
        found["files"].as_array().unwrap().iter().find(|file| file["path"].as_str().unwrap().contains("unet")).unwrap();
    // By Python's hashlib, the short one by the function of A1111.
    let sha256 = "d070ae1a49f74a51fb338a406af848ec14e9d3ab5b68bd6c96f6fd506c649e97";
    assert_eq!((&unet["hashes"]["sha256"], &unet["size_bytes"]), (&sha256.into(), &1_166_736.into()));
    assert_eq!(unet["hashes"]["auto_v2"], "d070ae1a49");
    assert_eq!((&unet["hashes"]["auto_v3"], &unet["hashes"]["short"]), (&"d155fad73969".into(), &"4118891b".into()));
}

#[test]
fn inspect_tells_what_a_file_is() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("model.safetensors");
    let narrow = table("narrow-xl");
    write(&path, &narrow.apply(&narrow.numbers()));
    let text = told(darkroom().args(["models", "inspect"]).arg(&path));
    for part in ["Stable Diffusion XL", "predicts epsilon", "text_encoder_2", "(unused)", "F32", "AutoV2", "short hash"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = told(
        darkroom()
            .args(["models", "inspect", "--no-hashes"])
            .arg(tiny_sd().join("vae/diffusion_pytorch_model.safetensors")),
    );
    assert!(text.contains("an autoencoder") && !text.contains("AutoV2"), "{text}");
    let text = told(darkroom().args(["models", "inspect"]).arg(tiny_sd().join("vae")));
    assert!(text.contains("AutoencoderKL"), "{text}");
    std::fs::write(&path, b"PK\x03\x04").unwrap();
    let refusal = refused(darkroom().args(["models", "inspect"]).arg(&path));
    assert!(refusal.contains("pickle") && refusal.contains("model.safetensors"), "{refusal}");
    let refusal = refused(darkroom().args(["models", "inspect"]).arg(scratch.path()));
    assert!(refusal.contains("model_index.json"), "{refusal}");
    refused(darkroom().args(["models", "inspect", "/nowhere"]));
}
