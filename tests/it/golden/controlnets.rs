//! ControlNets against diffusers: what one says of rows at timesteps of their own, and whole pictures by the ControlNet
//! pipelines from text, from a picture, and around a mask. tests/fixtures/make_controlnets.py made the reference.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use darkroom::diffusion::models::unets::{ControlNetConfig, ControlNetModel, ControlNetOutput, UNetInputs};
use darkroom::diffusion::pipelines::{self, ControlNets, Extra, ModelSource};
use darkroom::diffusion::weights::Checkpoint;
use darkroom::domain::{DeviceSpec, ImageInputsDraft, RequestDraft};
use darkroom::images::{Pixels, RgbImage};
use serde_json::{Value, json};

use super::networks::{assert_close, bits, fixtures, goldens};
use super::pipeline::{assert_drawn, request};
use crate::support::drafts::{control, controlled};
use crate::support::single_files;

/// The ControlNets of tests/fixtures, and `shuffle`: the weights of `depth`, of whose maps the means alone are added.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut names = vec!["shuffle".to_owned()];
    for entry in std::fs::read_dir(fixtures().join("controlnets")).unwrap() {
        names.push(entry.unwrap().file_name().into_string().unwrap());
    }
    for name in names {
        let from = fixtures().join("controlnets").join(if name == "shuffle" { "depth" } else { &name });
        let to = folder.path().join(&name);
        std::fs::create_dir(&to).unwrap();
        let file = "diffusion_pytorch_model.safetensors";
        std::fs::copy(from.join(file), to.join(file)).unwrap();
        let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
        if name == "shuffle" {
            config["global_pool_conditions"] = json!(true);
        }
        std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    }
    folder
}

fn load(folder: &Path, name: &str) -> ControlNetModel {
    let checkpoint = Checkpoint::Folder(folder.to_owned());
    let config = ControlNetConfig::parse(&checkpoint.json(&format!("{name}/config.json")).unwrap()).unwrap();
    ControlNetModel::load(config, &checkpoint.weights(name, &Device::Cpu).unwrap()).unwrap()
}

/// A golden evaluation's rows from `from` on, at the scale 1 or other ones.
fn evaluate(
    net: &ControlNetModel,
    named: &dyn Fn(&str) -> Option<Tensor>,
    from: usize,
    count: usize,
) -> ControlNetOutput {
    let rows = |key: &str| named(key).map(|x| x.narrow(0, from, count).unwrap());
    let numbers =
        |x: &Tensor| -> Vec<f64> { x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap() };
    let pooled = rows("pooled");
    let time_ids = rows("time_ids").map(|x| numbers(&x)).unwrap_or_default();
    let time_ids: Vec<&[f64]> = time_ids.chunks(6).collect();
    let inputs = UNetInputs {
        latents: &rows("latents").unwrap(),
        timesteps: &numbers(&rows("timesteps").unwrap()),
        hidden_states: &rows("words").unwrap(),
        added: pooled.as_ref().map(|pooled| (pooled, time_ids.as_slice())),
        guidance_scales: None,
        residuals: None,
    };
    let embedded = net.embed(&rows("pictures").unwrap()).unwrap();
    net.forward(&inputs, &embedded, &vec![1.0; count]).unwrap()
}

/// Rows differ in timestep, words, pictures, pooled prompt and sizes; alone each has the same bits.
#[test]
fn a_controlnet_says_what_the_reference_says_for_every_row() {
    let (folder, golden) = (folder(), goldens("controlnets"));
    let nets = [
        ("tiny-sd", "edges"),
        ("tiny-sd", "depth"),
        ("tiny-sd", "shuffle"),
        ("tiny-sd2", "edges-sd2"),
        ("tiny-sdxl", "edges-sdxl"),
        ("tiny-sdxl", "depth-sdxl"),
        ("tiny-inpainting", "edges-inpainting"),
    ];
    for (style, name) in nets {
        let net = load(folder.path(), name);
        let named = |key: &str| golden.get(&format!("{style}.{name}.{key}")).cloned();
        let together = evaluate(&net, &named, 0, 3);
        let alone: Vec<ControlNetOutput> = (0..3).map(|row| evaluate(&net, &named, row, 1)).collect();
        assert!(named(&format!("down.{}", together.down.len())).is_none(), "{name} has as many maps");
        let map = |output: &ControlNetOutput, k: Option<usize>| k.map_or(&output.mid, |k| &output.down[k]).clone();
        for k in (0..together.down.len()).map(Some).chain([None]) {
            let what = k.map_or_else(|| "mid".to_owned(), |k| format!("down.{k}"));
            let ours = map(&together, k);
            // Means alone stand for their whole map.
            let reference = named(&what).unwrap().broadcast_as(ours.shape()).unwrap();
            assert_close(&format!("{name} {what}"), &ours, &reference);
            for (row, alone) in alone.iter().enumerate() {
                let same = bits(&map(alone, k)) == bits(&ours.narrow(0, row, 1).unwrap());
                assert!(same, "{name} {what}: row {row} alone");
            }
        }
    }
}

#[test]
fn a_configuration_that_cannot_be_honoured_is_refused_by_its_key() {
    let whole: Value = Checkpoint::Folder(fixtures().join("controlnets")).json("edges/config.json").unwrap();
    let cases = [
        ("layers_per_block", json!(u64::MAX)),
        ("layers_per_block", json!([1, 300])),
        ("block_out_channels", json!([])),
        ("conditioning_channels", json!(4)),
        ("conditioning_embedding_out_channels", json!([])),
        ("conditioning_embedding_out_channels", json!([4, 0])),
        ("controlnet_conditioning_channel_order", json!("hsv")),
        ("mid_block_type", json!(null)),
        ("class_embed_type", json!("timestep")),
        ("encoder_hid_dim", json!(4)),
    ];
    for (key, value) in cases {
        let mut json = whole.clone();
        json[key] = value.clone();
        let told = ControlNetConfig::parse(&json).unwrap_err().to_string();
        assert!(told.contains(key), "{key} {value}: {told}");
    }
    // What a U-Net's configuration must not have says here how many heads there are.
    let mut json = whole;
    json["num_attention_heads"] = json!(5);
    let told = ControlNetConfig::parse(&json).unwrap_err().to_string();
    assert!(told.contains("attention_head_dim") && told.contains('5'), "{told}");
}

/// A file in the names of the original code needs no configuration beside it, and says the same.
#[test]
fn a_file_in_the_original_names_is_the_same_network() {
    for style in ["narrow-controlnet", "narrow-controlnet-xl"] {
        let (table, folder) = (single_files::table(style), tempfile::tempdir().unwrap());
        let tensors = table.numbers();
        single_files::write(&folder.path().join("folder/diffusion_pytorch_model.safetensors"), &tensors["controlnet"]);
        let config = &table.configs["controlnet"];
        std::fs::write(folder.path().join("folder/config.json"), config.to_string()).unwrap();
        let mut file = table.apply(&tensors);
        single_files::write(&folder.path().join("file.safetensors"), &file);
        let net = |checkpoint: Checkpoint, component: &str| {
            let config =
                ControlNetConfig::parse(&checkpoint.json(&format!("{component}config.json")).unwrap()).unwrap();
            let weights = checkpoint.weights(component.trim_end_matches('/'), &Device::Cpu).unwrap();
            ControlNetModel::load(config, &weights).unwrap()
        };
        let whole = net(Checkpoint::Folder(folder.path().to_owned()), "folder/");
        let single = net(Checkpoint::controlnet_file(&folder.path().join("file.safetensors")).unwrap(), "");
        let width = config["cross_attention_dim"].as_u64().unwrap() as usize;
        let values = |count: usize| (0..count).map(|k| (k as f32 * 0.7).sin()).collect::<Vec<f32>>();
        let tensor = |shape: &[usize]| Tensor::from_vec(values(shape.iter().product()), shape, &Device::Cpu).unwrap();
        let (latents, words) = (tensor(&[1, 4, 6, 5]), tensor(&[1, 7, width]));
        let (pictures, pooled) = (tensor(&[1, 3, 48, 40]), tensor(&[1, 64]));
        let sizes: [&[f64]; 1] = [&[1024.0, 512.0, 0.0, 7.0, 64.0, 64.0]];
        let inputs = UNetInputs {
            latents: &latents,
            timesteps: &[321.0],
            hidden_states: &words,
            added: Some((&pooled, &sizes)),
            guidance_scales: None,
            residuals: None,
        };
        let [ours, reference] =
            [&single, &whole].map(|net| net.forward(&inputs, &net.embed(&pictures).unwrap(), &[1.0]).unwrap());
        assert!(ours.down.iter().zip(&reference.down).all(|(a, b)| bits(a) == bits(b)), "{style}");
        assert!(bits(&ours.mid) == bits(&reference.mid) && ours.down.len() == reference.down.len(), "{style}");
        // Found beside folders, by its name; without the prefix as well; a file that is none is told so.
        let names =
            |folder: &Path| ControlNets::open(folder, 1).unwrap().names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(folder.path()), ["file", "folder"]);
        file = file.into_iter().map(|(name, stored)| (name.replace("control_model.", ""), stored)).collect();
        single_files::write(&folder.path().join("file.safetensors"), &file);
        assert_eq!(names(folder.path()), ["file", "folder"]);
        std::fs::copy(
            fixtures().join("controlnets/edges/diffusion_pytorch_model.safetensors"),
            folder.path().join("other.safetensors"),
        )
        .unwrap();
        assert_eq!(names(folder.path()), ["file", "folder"]);
        let told = Checkpoint::controlnet_file(&folder.path().join("other.safetensors")).unwrap_err().to_string();
        assert!(told.contains("input_hint_block") && told.contains("a ControlNet in diffusers' names"), "{told}");
    }
}

fn pixels<const N: usize>(tensor: &Tensor) -> Pixels<N> {
    let bytes = tensor.flatten_all().unwrap().to_vec1().unwrap();
    Pixels::from_pixels(tensor.dims()[1] as u32, tensor.dims()[0] as u32, bytes).unwrap()
}

fn draws_the_references(style: &str, expected: usize) {
    let (folder, golden) = (folder(), goldens("controlnets"));
    let controlnets = ControlNets::open(folder.path(), 4).unwrap();
    let mut source = ModelSource { controlnets, ..ModelSource::at(style, fixtures().join(style)) };
    source.changes.patches.insert("scheduler/scheduler_config.json".to_owned(), json!({"skip_prk_steps": true}));
    let pipeline = pipelines::load(&source, DeviceSpec::Cpu).unwrap();
    let mut drawn = 0;
    for (name, reference) in &golden {
        let Some(rest) = name.strip_prefix(&format!("picture.{style}.")) else { continue };
        let (what, rest) = rest.split_once('.').unwrap();
        let (sampler, rest) = rest.split_once('.').unwrap();
        let (controls, tag) = rest.rsplit_once('.').unwrap();
        let controls = controls.split('+').map(|written| {
            let [net, map, scale, start, end] = written.split('@').collect::<Vec<_>>().try_into().unwrap();
            let number = |text: &str| text.parse::<f64>().unwrap();
            let picture: RgbImage = pixels(&golden[map]);
            (control(net, number(scale), number(start), number(end)), picture)
        });
        let side = if style == "tiny-sdxl" { 64 } else { request(style, sampler, tag).height.unwrap() };
        let is_part = what == "part";
        let draft = RequestDraft {
            width: Some(if tag == "guided" { 2 * side } else { side }),
            height: Some(side),
            image_inputs: ImageInputsDraft {
                strength: match what {
                    "text" => None,
                    "img2img" => Some(0.7),
                    _ => Some(0.8),
                },
                inpaint_area: is_part.then(|| "only_masked".to_owned()),
                only_masked_padding: is_part.then_some(3),
                ..ImageInputsDraft::default()
            },
            ..request(style, sampler, tag)
        };
        let picture = (what != "text").then(|| pixels::<3>(&golden["init"]));
        let mask = (is_part || what == "inpaint").then(|| pixels::<1>(&golden["mask"]));
        let drawing = controlled(draft, (picture, mask), controls.collect(), pipeline.as_ref());
        eprintln!("{}", assert_drawn(name, &pipeline, drawing, reference));
        drawn += 1;
    }
    assert_eq!(drawn, expected, "pictures of {style}");
}

/// One and two ControlNets, with scales and shares of the steps, by samplers of one and of several evaluations a step; from a
/// picture, around a mask, and of the masked part alone.
#[test]
fn controlled_pictures_are_the_references() {
    draws_the_references("tiny-sd", 38);
    draws_the_references("tiny-sd2", 6);
    draws_the_references("tiny-sdxl", 6);
}

#[test]
fn networks_are_counted_and_those_that_no_job_uses_are_let_go_of() {
    let folder = folder();
    let controlnets = ControlNets::open(folder.path(), 4).unwrap();
    let load = |style: &str| {
        let controlnets = controlnets.clone();
        let source = ModelSource { controlnets, ..ModelSource::at(style, fixtures().join(style)) };
        pipelines::load(&source, DeviceSpec::Cpu).unwrap()
    };
    let (pipeline, other) = (load("tiny-sd"), load("tiny-sd2"));
    let fit: Vec<&str> =
        pipeline.info().controlnets.iter().filter(|net| net.misfit.is_none()).map(|net| net.name.as_str()).collect();
    let held = || pipeline.extras().controlnets;
    assert_eq!(held(), Extra::default());
    let used = pipeline.controlnet(fit[0]).unwrap();
    let one = held();
    assert!(one.used > 0 && one.unused == 0);
    pipeline.controlnet(fit[1]).unwrap();
    assert!(held().used == one.used && held().unused > 0 && held() == other.extras().controlnets);
    drop(other.release_extras());
    assert_eq!(held(), one);
    drop(used);
    drop(other.release_extras());
    assert_eq!(held(), Extra::default());
}

/// The ControlNet is shown the latents, not the mask below them.
#[test]
fn an_inpainting_checkpoint_is_controlled_too() {
    draws_the_references("tiny-inpainting", 2);
}
