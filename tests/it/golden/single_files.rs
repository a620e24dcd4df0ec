//! Checkpoints in one file: the same weights draw the same bytes as from the folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use darkroom::diffusion::engine::{EngineOptions, draw};
use darkroom::diffusion::models::text_encoders::ClipTokenizer;
use darkroom::diffusion::pipelines::{self, Changes, ModelSource, Pipeline};
use darkroom::diffusion::weights::{Checkpoint, Family};
use darkroom::domain::{DeviceSpec, ModelInfo, RequestDraft};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::drafts::{checked, copy_folder, fixtures};
use crate::support::single_files::{Stored, Table, Tensors, read_folder, table, write};

/// A picture of every kind of row: guided, and not.
fn pictures(pipeline: &Arc<dyn Pipeline>, side: i64) -> Vec<Vec<u8>> {
    let request = |guidance, width| RequestDraft {
        prompt: Some("a red house in the snow at night".to_owned()),
        negative_prompt: Some("red".to_owned()),
        width: Some(width),
        height: Some(side),
        steps: Some(3),
        guidance_scale: Some(guidance),
        seed: Some(11),
        ..RequestDraft::default()
    };
    let draw = |draft| draw(pipeline.clone(), checked(draft, pipeline.as_ref()), EngineOptions::default(), |_| {});
    [request(5.0, 2 * side), request(1.0, side)].map(|draft| draw(draft).unwrap()[0].pixels().to_vec()).to_vec()
}

fn load(source: &ModelSource) -> Arc<dyn Pipeline> {
    pipelines::load(source, DeviceSpec::Cpu).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(source: &ModelSource) -> String {
    pipelines::load(source, DeviceSpec::Cpu).err().unwrap().to_string()
}

/// The tiny checkpoint as one file.
fn single(folder: &Path, style: &str) -> PathBuf {
    let path = folder.join(format!("{style}.safetensors"));
    write(&path, &table(style).apply(&read_folder(&fixtures().join(style))));
    path
}

/// All that a model tells of itself but the hash of its files.
fn told(model: &Arc<dyn Pipeline>) -> ModelInfo {
    ModelInfo { sha256: None, files: None, ..model.info().clone() }
}

/// Networks of unusual proportions need their configurations beside the file.
fn with_configs(path: &Path, style: &str) -> ModelSource {
    ModelSource { config: Some(fixtures().join(style)), ..ModelSource::at(style, path) }
}

#[test]
fn a_file_with_its_configurations_draws_the_folders_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    for (style, side) in [("tiny-sd", 16), ("tiny-sd2", 32), ("tiny-sdxl", 64), ("tiny-sdxl-refiner", 64)] {
        let file = load(&with_configs(&single(scratch.path(), style), style));
        let folder = load(&ModelSource::at(style, fixtures().join(style)));
        assert_eq!(told(&file), told(&folder));
        let bytes = std::fs::read(scratch.path().join(format!("{style}.safetensors"))).unwrap();
        let sha256: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(file.info().sha256, Some(sha256), "{style}");
        assert_eq!(pictures(&file, side), pictures(&folder, side), "{style}");
    }
}

/// A family as its published checkpoints are configured.
struct Published {
    style: &'static str,
    family: Family,
    /// `model_index.json`, but for the components.
    index: Value,
    /// Over what all families' `scheduler_config.json` say.
    schedule: Value,
    /// Tokenizer folders, and what they pad with.
    tokenizers: &'static [(&'static str, &'static str)],
}

/// As in the repositories stable-diffusion-v1-5, stable-diffusion-2-1, stable-diffusion-xl-base-1.0 and -refiner-1.0.
fn published() -> [Published; 4] {
    const END: &str = "<|endoftext|>";
    let euler = || json!({"interpolation_type": "linear", "timestep_spacing": "leading", "use_karras_sigmas": false});
    [
        Published {
            style: "narrow-sd1",
            family: Family::StableDiffusion1,
            index: json!({"_class_name": "StableDiffusionPipeline"}),
            schedule: json!({}),
            tokenizers: &[("tokenizer", END)],
        },
        Published {
            style: "narrow-sd2",
            family: Family::StableDiffusion2,
            index: json!({"_class_name": "StableDiffusionPipeline"}),
            schedule: json!({"prediction_type": "v_prediction"}),
            tokenizers: &[("tokenizer", "!")],
        },
        Published {
            style: "narrow-xl",
            family: Family::StableDiffusionXl,
            index: json!({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": true}),
            schedule: euler(),
            tokenizers: &[("tokenizer", END), ("tokenizer_2", "!")],
        },
        Published {
            style: "narrow-refiner",
            family: Family::StableDiffusionXlRefiner,
            index: json!({"_class_name": "StableDiffusionXLImg2ImgPipeline", "force_zeros_for_empty_prompt": false,
                "requires_aesthetics_score": true, "text_encoder": [null, null], "tokenizer": [null, null]}),
            schedule: euler(),
            tokenizers: &[("tokenizer_2", "!")],
        },
    ]
}

impl Published {
    /// A folder with these numbers, with the vocabulary that `built_in` has.
    fn write(&self, root: &Path, table: &Table, tensors: &Tensors, built_in: &Checkpoint) {
        let put = |relative: &str, text: String| {
            let path = root.join(relative);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let mut index = self.index.clone();
        let mut schedule = json!({"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "clip_sample": false, "set_alpha_to_one": false, "skip_prk_steps": true,
            "steps_offset": 1, "trained_betas": null});
        schedule.as_object_mut().unwrap().extend(self.schedule.as_object().unwrap().clone());
        put("scheduler/scheduler_config.json", schedule.to_string());
        for (component, config) in &table.configs {
            put(&format!("{component}/config.json"), config.to_string());
            let stem = if component.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
            write(&root.join(format!("{component}/{stem}.safetensors")), &tensors[component]);
            index[component] = json!(["library", "Class"]);
        }
        for (tokenizer, pad) in self.tokenizers {
            let marks = json!({"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad});
            put(&format!("{tokenizer}/special_tokens_map.json"), marks.to_string());
            for file in ["vocab.json", "merges.txt"] {
                let relative = format!("{tokenizer}/{file}");
                put(&relative, built_in.text(&relative).unwrap());
            }
        }
        put("model_index.json", index.to_string());
    }
}

#[test]
fn a_file_of_published_proportions_needs_nothing_beside_it() {
    let scratch = tempfile::tempdir().unwrap();
    for published in published() {
        let style = published.style;
        let (table, path) = (table(style), scratch.path().join(format!("{style}.safetensors")));
        let numbers = table.numbers();
        write(&path, &table.apply(&numbers));
        let source = ModelSource::parse(path.to_str().unwrap()).unwrap();
        assert_eq!(source.id.as_str(), style);
        let checkpoint = source.checkpoint().unwrap();
        assert_eq!(checkpoint.layout().unwrap().family, published.family);

        let folder = scratch.path().join(style);
        published.write(&folder, &table, &numbers, &checkpoint);
        let (file, folder) = (load(&source), load(&ModelSource::at(style, folder)));
        assert_eq!(told(&file), told(&folder));
        assert_eq!(pictures(&file, 32), pictures(&folder, 32), "{style}");
    }
}

/// SD 2.x encoders as they come back from a folder: without the block that is not used, and without its projection.
#[test]
fn the_last_block_of_an_open_clip_tower_is_left_out_only_where_it_is_there() {
    let scratch = tempfile::tempdir().unwrap();
    let table = table("narrow-sd2");
    let mut tensors = table.apply(&table.numbers());
    let layers = |tensors: &std::collections::BTreeMap<String, Stored>| {
        let path = scratch.path().join("sd2.safetensors");
        write(&path, tensors);
        let config: Value = Checkpoint::file(&path, None).unwrap().json("text_encoder/config.json").unwrap();
        config["num_hidden_layers"].as_u64().unwrap()
    };
    assert_eq!(layers(&tensors), 2);
    tensors.retain(|name, _| !name.contains("resblocks.2.") && !name.ends_with("text_projection"));
    assert_eq!(layers(&tensors), 2);
}

#[test]
fn what_a_file_lacks_is_told_by_the_names_it_should_have() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = table("narrow-sd1");
    let whole = whole.apply(&whole.numbers());
    let path = scratch.path().join("broken.safetensors");
    let without = |gone: &dyn Fn(&str) -> bool| {
        let mut tensors = whole.clone();
        tensors.retain(|name, _| !gone(name));
        write(&path, &tensors);
        refusal(&ModelSource::at("broken", &path))
    };
    let cases: [(&str, &[&str]); 5] = [
        ("model.diffusion_model.input_blocks.1.1.proj_in.bias", &["no tensor", "input_blocks.1.1.proj_in.bias"]),
        ("model.diffusion_model.input_blocks.1.", &["input_blocks.1`", "higher numbers"]),
        ("first_stage_model.", &["no autoencoder", "`vae`"]),
        ("cond_stage_model.", &["no text encoder", "whole checkpoint"]),
        ("model.diffusion_model.", &["no checkpoint", "seems to be an autoencoder"]),
    ];
    for (gone, parts) in cases {
        let told = without(&|name: &str| name.starts_with(gone));
        for part in parts.iter().chain(&["broken.safetensors"]) {
            assert!(told.contains(part), "{gone}: `{part}` in: {told}");
        }
    }
}

#[test]
fn a_network_of_unusual_proportions_asks_for_its_configurations() {
    let scratch = tempfile::tempdir().unwrap();
    let told = refusal(&ModelSource::at("tiny", single(scratch.path(), "tiny-sd2")));
    for part in ["tiny-sd2.safetensors", "`config`"] {
        assert!(told.contains(part), "`{part}` in: {told}");
    }
}

#[test]
fn pickles_and_what_is_no_checkpoint_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let pickle = scratch.path().join("model.ckpt");
    std::fs::write(&pickle, b"PK\x03\x04").unwrap();
    let told = refusal(&ModelSource::parse(pickle.to_str().unwrap()).unwrap());
    assert!(told.contains("model.ckpt") && told.contains("pickle") && told.contains("save_file"), "{told}");
    let lora = scratch.path().join("lora.safetensors");
    let name = "lora_unet_down_blocks_0_attentions_0_proj_in.alpha".to_owned();
    let number = Stored { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] };
    write(&lora, &[(name, number)].into());
    let told = refusal(&ModelSource::at("lora", &lora));
    assert!(told.contains("lora.safetensors") && told.contains("seems to be a LoRA"), "{told}");
    assert!(ModelSource::parse("/nowhere/at/all").unwrap_err().contains("safetensors file"));
}

/// Its marks, else its family, say what the UNet predicts; the operator goes before both.
#[test]
fn what_the_network_predicts_is_read_from_marks() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("marked.safetensors");
    let kind = |style: &str, change: &dyn Fn(&mut std::collections::BTreeMap<String, Stored>)| {
        let table = table(style);
        let mut tensors = table.apply(&table.numbers());
        change(&mut tensors);
        write(&path, &tensors);
        let checkpoint = Checkpoint::file(&path, None).unwrap();
        let schedule: Value = checkpoint.json("scheduler/scheduler_config.json").unwrap();
        assert_eq!(schedule["prediction_type"], checkpoint.layout().unwrap().prediction.kind);
        checkpoint.layout().unwrap().prediction.kind
    };
    let mark = || Stored { dtype: Dtype::F32, shape: vec![0], bytes: Vec::new() };
    assert_eq!(kind("narrow-sd1", &|_| {}), "epsilon");
    assert_eq!(kind("narrow-sd2", &|_| {}), "v_prediction");
    assert_eq!(kind("narrow-xl", &|_| {}), "epsilon");
    assert_eq!(kind("narrow-refiner", &|_| {}), "epsilon");
    assert_eq!(kind("narrow-xl", &|tensors| drop(tensors.insert("v_pred".to_owned(), mark()))), "v_prediction");
    let sgm = |tensors: &mut std::collections::BTreeMap<String, Stored>| {
        let rename = |name: String| name.replace("cond_stage_model.model", "conditioner.embedders.0.model");
        *tensors = std::mem::take(tensors).into_iter().map(|(name, stored)| (rename(name), stored)).collect();
    };
    assert_eq!(kind("narrow-sd2", &sgm), "epsilon", "SD-Turbo");

    kind("narrow-sd2", &|_| {});
    let patch = json!({"prediction_type": "epsilon"});
    let patches = [("scheduler/scheduler_config.json".to_owned(), patch)].into();
    let changed = Checkpoint::file(&path, None).unwrap().changed(Changes { patches, ..Changes::default() }).unwrap();
    let schedule: Value = changed.json("scheduler/scheduler_config.json").unwrap();
    assert_eq!((&schedule["prediction_type"], &schedule["steps_offset"]), (&json!("epsilon"), &json!(1)));
}

/// SDXL's parts and configurations, beside the published ones.
#[test]
fn the_parts_of_sdxl_files_are_found() {
    let scratch = tempfile::tempdir().unwrap();
    for (style, family, class) in [
        ("narrow-xl", Family::StableDiffusionXl, "StableDiffusionXLPipeline"),
        ("narrow-refiner", Family::StableDiffusionXlRefiner, "StableDiffusionXLImg2ImgPipeline"),
    ] {
        let (table, path) = (table(style), scratch.path().join(style));
        write(&path, &table.apply(&table.numbers()));
        let checkpoint = Checkpoint::file(&path, None).unwrap();
        assert_eq!(checkpoint.layout().unwrap().family, family);
        assert_eq!(checkpoint.json::<Value>("model_index.json").unwrap()["_class_name"], class);
        for (component, published) in &table.configs {
            let ours: Value = checkpoint.json(&format!("{component}/config.json")).unwrap();
            for (key, value) in published.as_object().unwrap() {
                // One number stands for all blocks.
                let same =
                    ours[key] == *value || ours[key].as_array().is_some_and(|all| all.iter().all(|one| one == value));
                assert!(same, "{style} {component} {key}: {} and {value}", ours[key]);
            }
        }
        assert_eq!(checkpoint.has("tokenizer/vocab.json"), style == "narrow-xl");
        let marks: Value = checkpoint.json("tokenizer_2/special_tokens_map.json").unwrap();
        assert_eq!(marks["pad_token"], "!");
    }
}

#[test]
fn the_built_in_vocabulary_gives_the_references_ids() {
    let scratch = tempfile::tempdir().unwrap();
    let (table, path) = (table("narrow-sd1"), scratch.path().join("sd1.safetensors"));
    write(&path, &table.apply(&table.numbers()));
    let tokenizer = ClipTokenizer::load(&Checkpoint::file(&path, None).unwrap(), "tokenizer", 402).unwrap();
    let cases: Vec<(String, Vec<u32>)> =
        serde_json::from_slice(&std::fs::read(fixtures().join("clip/ids.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 300);
    for (text, ids) in cases {
        let ours = tokenizer.encode(&text).unwrap();
        assert_eq!((&ours.ids[1..=ids.len()], ours.ids[ids.len() + 1]), (&ids[..], 49_407), "{text:?}");
    }
}

/// Another autoencoder: a folder of its own, one inside a checkpoint's folder, its own file, or the one in a checkpoint.
#[test]
fn a_separate_autoencoder_takes_the_place_of_the_checkpoints_own() {
    let scratch = tempfile::tempdir().unwrap();
    let table = table("tiny-sd");
    let mut tensors = read_folder(&fixtures().join("tiny-sd"));
    // Another one: its colours the other way round.
    let last = tensors.get_mut("vae").unwrap().get_mut("decoder.conv_out.bias").unwrap();
    last.bytes.reverse();
    last.bytes = last.bytes.chunks(4).flat_map(|number| number.iter().rev().copied()).collect();
    let folder = scratch.path().join("other");
    write(&folder.join("vae/diffusion_pytorch_model.safetensors"), &tensors["vae"]);
    std::fs::copy(fixtures().join("tiny-sd/vae/config.json"), folder.join("vae/config.json")).unwrap();
    let whole = table.apply(&tensors);
    let (alone, prefixed, everything) = (
        scratch.path().join("vae.safetensors"),
        scratch.path().join("first.safetensors"),
        scratch.path().join("all.safetensors"),
    );
    let own = |name: &str| name.strip_prefix("first_stage_model.").map(ToOwned::to_owned);
    let only = |keep: bool| {
        let named = whole.iter().filter_map(|(name, stored)| Some((own(name)?, name.clone(), stored.clone())));
        named.map(|(bare, name, stored)| (if keep { name } else { bare }, stored)).collect()
    };
    write(&alone, &only(false));
    write(&prefixed, &only(true));
    write(&everything, &whole);
    let diffusers = folder.join("vae/diffusion_pytorch_model.safetensors");

    let with = |vae: Option<&Path>| {
        let changes = Changes { vae: vae.map(Path::to_owned), ..Changes::default() };
        load(&ModelSource { changes, ..ModelSource::at("tiny-sd", fixtures().join("tiny-sd")) })
    };
    let (plain, reference) = (pictures(&with(None), 16), pictures(&with(Some(&folder)), 16));
    assert_ne!(plain, reference);
    for path in [&folder.join("vae"), &alone, &prefixed, &everything, &diffusers] {
        assert_eq!(pictures(&with(Some(path)), 16), reference, "{}", path.display());
    }
    let changes = Changes {
        vae: Some(fixtures().join("tiny-sd/unet/diffusion_pytorch_model.safetensors")),
        ..Changes::default()
    };
    let told = refusal(&ModelSource { changes, ..ModelSource::at("tiny-sd", fixtures().join("tiny-sd")) });
    assert!(told.contains("unet/diffusion_pytorch_model.safetensors") && told.contains("no autoencoder"), "{told}");
}

/// Weights in shards with an index, and in variants, draw what the plain files draw.
#[test]
fn shards_and_variants_are_read_as_the_plain_files() {
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy");
    copy_folder(&fixtures().join("tiny-sd"), &copy);
    let plain = copy.join("unet/diffusion_pytorch_model.safetensors");
    let all = crate::support::single_files::read(&plain);
    std::fs::remove_file(&plain).unwrap();
    let mut map = serde_json::Map::new();
    for (number, part) in all.iter().collect::<Vec<_>>().chunks(all.len() / 3 + 1).enumerate() {
        let file = format!("diffusion_pytorch_model.fp16-0000{}-of-00003.safetensors", number + 1);
        map.extend(part.iter().map(|(name, _)| ((*name).clone(), Value::from(file.clone()))));
        let part = part.iter().map(|(name, stored)| ((*name).clone(), (*stored).clone())).collect();
        write(&copy.join("unet").join(file), &part);
    }
    let index = copy.join("unet/diffusion_pytorch_model.safetensors.index.fp16.json");
    std::fs::write(&index, json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()).unwrap();
    std::fs::rename(copy.join("text_encoder/model.safetensors"), copy.join("text_encoder/model.fp16.safetensors"))
        .unwrap();
    let reference = pictures(&load(&ModelSource::at("a", fixtures().join("tiny-sd"))), 16);
    let at = |variant: Option<&str>| {
        let changes = Changes { variant: variant.map(ToOwned::to_owned), ..Changes::default() };
        ModelSource { changes, ..ModelSource::at("a", &copy) }
    };
    assert_eq!(pictures(&load(&at(None)), 16), reference);
    assert_eq!(pictures(&load(&at(Some("fp16"))), 16), reference);
    assert!(refusal(&at(Some("bf16"))).contains("`bf16`"));

    let (name, file) = map.iter().next().unwrap();
    for (broken, part) in [
        (json!({"weight_map": {name: "../vae/diffusion_pytorch_model.safetensors"}}), "no file beside it"),
        (json!({"weight_map": {name: "absent.safetensors"}}), "absent.safetensors"),
        (json!({"weight_map": {"conv_in.more": file}}), "conv_in.more"),
        (json!({"weight_map": {}}), "empty"),
        (json!([]), "weight_map"),
    ] {
        std::fs::write(&index, broken.to_string()).unwrap();
        let told = refusal(&at(None));
        assert!(told.contains("unet") && told.contains(part), "`{part}` in: {told}");
    }
}
