//! LoRAs: what diffusers draws with them (PEFT, unmerged) and what LyCORIS' own modules add, in every style of file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use darkroom::diffusion::engine::{EngineOptions, draw};
use darkroom::diffusion::pipelines::{Extra, Pipeline};
use darkroom::domain::{GenerationRequest, LoraDraft, RequestDraft};
use safetensors::tensor::Dtype;

use super::networks::goldens;
use super::pipeline::assert_drawn;
use crate::support::drafts::{checked, fixtures, lora, pipeline, pipeline_with};
use crate::support::single_files::{Stored, read, write};

fn folder() -> PathBuf {
    fixtures().join("loras")
}

/// The request of make_loras.py.
fn request(pipeline: &dyn Pipeline, loras: Vec<LoraDraft>) -> GenerationRequest {
    let side = match pipeline.info().id.as_str() {
        "tiny-sd2" => 32,
        "tiny-sdxl" => 64,
        _ => 16,
    };
    changed(pipeline, loras, |draft| {
        draft.width = Some(2 * side);
        draft.height = Some(side);
    })
}

fn changed(
    pipeline: &dyn Pipeline,
    loras: Vec<LoraDraft>,
    change: impl FnOnce(&mut RequestDraft),
) -> GenerationRequest {
    let is_xl = pipeline.info().id.as_str() == "tiny-sdxl";
    let mut draft = RequestDraft {
        prompt: Some("a red house in the snow at night".to_owned()),
        negative_prompt: Some("red".to_owned()),
        width: Some(32),
        height: Some(16),
        steps: Some(4),
        guidance_scale: Some(5.0),
        sampler: Some(if is_xl { "euler" } else { "ddim" }.to_owned()),
        seed: Some(7),
        loras,
        ..RequestDraft::default()
    };
    change(&mut draft);
    checked(draft, pipeline)
}

fn drawn(pipeline: &Arc<dyn Pipeline>, request: GenerationRequest) -> Vec<u8> {
    draw(pipeline.clone(), request, EngineOptions::default(), |_| {}).unwrap().remove(0).pixels().to_vec()
}

fn refusal(pipeline: &Arc<dyn Pipeline>, name: &str) -> String {
    let request = request(pipeline.as_ref(), vec![lora(name, 1.0)]);
    draw(pipeline.clone(), request, EngineOptions::default(), |_| {}).unwrap_err().1
}

#[test]
fn every_style_and_kind_draws_the_references_picture() {
    let golden = goldens("loras");
    let parts = LoraDraft { text_encoder_scale: Some(0.9), ..lora("sd-kohya", 0.3) };
    let cases = [
        ("tiny-sd", vec![], "base"),
        ("tiny-sd", vec![lora("sd-kohya", 0.7)], "kohya"),
        ("tiny-sd", vec![lora("sd-peft", 0.7)], "peft"),
        ("tiny-sd", vec![lora("sd-processors", 1.0)], "processors"),
        ("tiny-sd", vec![lora("sd-attention", -0.5)], "attention"),
        ("tiny-sd", vec![lora("sd-kohya", 0.4), lora("sd-attention", 0.8)], "two"),
        ("tiny-sd", vec![parts], "parts"),
        ("tiny-sd2", vec![lora("sd2-kohya", 1.0)], "sd2"),
        ("tiny-sdxl", vec![], "base-xl"),
        ("tiny-sdxl", vec![lora("sdxl-kohya", 0.8)], "sdxl"),
        ("tiny-sd", vec![lora("sd-locon", 0.8)], "sd-locon"),
        ("tiny-sd", vec![lora("sd-loha", 0.8)], "sd-loha"),
        ("tiny-sd", vec![lora("sd-lokr", 0.8)], "sd-lokr"),
    ];
    // And the picture of a latent consistency LoRA, below.
    assert_eq!(golden.len(), cases.len() + 1);
    let loaded = ["tiny-sd", "tiny-sd2", "tiny-sdxl"].map(pipeline);
    for (style, loras, name) in cases {
        let pipeline = loaded.iter().find(|pipeline| pipeline.info().id.as_str() == style).unwrap();
        println!("{}", assert_drawn(name, pipeline, request(pipeline.as_ref(), loras), &golden[name]));
        let bytes = |name: &str| golden[name].flatten_all().unwrap().to_vec1::<u8>().unwrap();
        if !name.starts_with("base") && style == "tiny-sd" {
            let other = bytes(name).iter().zip(bytes("base")).filter(|(a, b)| a.abs_diff(*b) > 1).count();
            assert!(other > bytes(name).len() / 4, "{name} makes itself felt: {other}");
        }
    }
}

/// With the sampler for it and the guidance asked for, as a LoRA of latent consistency (LCM-LoRA) is used.
#[test]
fn a_lora_is_sampled_with_lcm_as_the_reference_does() {
    let pipeline = pipeline("tiny-sd");
    let request = changed(pipeline.as_ref(), vec![lora("sd-kohya", 1.0)], |draft| {
        draft.sampler = Some("lcm".to_owned());
        draft.guidance_scale = Some(1.5);
    });
    println!("{}", assert_drawn("lcm", &pipeline, request, &goldens("loras")["lcm"]));
}

#[test]
fn one_lora_in_two_styles_draws_the_same_bytes() {
    let pipeline = pipeline("tiny-sd");
    let with = |name: &str, scale| drawn(&pipeline, request(pipeline.as_ref(), vec![lora(name, scale)]));
    assert_eq!(with("sd-kohya", 0.7), with("sd-peft", 0.7));
    // Nothing is nothing, to the bit.
    assert_eq!(with("sd-kohya", 0.0), drawn(&pipeline, request(pipeline.as_ref(), Vec::new())));
}

/// The original code's names and diffusers' own, of the same layers.
#[test]
fn both_names_of_a_layer_find_it() {
    let scratch = tempfile::tempdir().unwrap();
    let own = |name: &str| name.replace("input_blocks_4_1_", "down_blocks_1_attentions_0_");
    let (one, mut other) = (BTreeMap::new(), BTreeMap::new());
    let mut one: BTreeMap<String, Stored> = one;
    for (name, stored) in read(&folder().join("sdxl-kohya.safetensors")) {
        if name.contains("input_blocks_4_1_") {
            other.insert(own(&name), stored.clone());
            one.insert(name, stored);
        }
    }
    assert!(one.len() > 10);
    write(&scratch.path().join("one.safetensors"), &one);
    write(&scratch.path().join("other.safetensors"), &other);
    let pipeline = pipeline_with("tiny-sdxl", scratch.path().to_owned());
    let with = |name: &str| drawn(&pipeline, request(pipeline.as_ref(), vec![lora(name, 1.0)]));
    assert_eq!(with("one"), with("other"));
}

#[test]
fn a_thousand_switches_later_the_base_draws_its_own_bytes() {
    let pipeline = pipeline("tiny-sd");
    let small = |loras| changed(pipeline.as_ref(), loras, |draft| (draft.width, draft.steps) = (Some(16), Some(1)));
    let base = drawn(&pipeline, small(Vec::new()));
    let names = ["sd-kohya", "sd-attention", "sd-locon", "sd-lokr"];
    let loras = |k: usize| vec![lora(names[k % 4], 0.1 * (k % 30 + 1) as f64)];
    let first = drawn(&pipeline, small(loras(3)));
    assert_ne!(first, base);
    // More sets than are kept: most are made anew.
    for k in 0..1000 {
        pipeline.clone().adapted(small(loras(k)).loras()).unwrap();
    }
    assert_eq!(drawn(&pipeline, small(Vec::new())), base);
    assert_eq!(drawn(&pipeline, small(loras(3))), first);
}

#[test]
fn a_set_is_kept_until_its_file_changes() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("x.safetensors");
    std::fs::copy(folder().join("sd-attention.safetensors"), &path).unwrap();
    let pipeline = pipeline_with("tiny-sd", scratch.path().to_owned());
    let request = request(pipeline.as_ref(), vec![lora("x", 1.0)]);
    let made = || pipeline.clone().adapted(request.loras()).unwrap();
    let (first, again) = (made(), made());
    assert!(Arc::ptr_eq(&first.pipeline, &again.pipeline) && first.key == again.key);
    std::fs::copy(folder().join("sd-processors.safetensors"), &path).unwrap();
    assert_ne!(made().key, first.key);
    // A request that was accepted with the other file is not drawn with this one.
    let mut asked = request.clone();
    asked.loras_mut()[0].hash = Some("0123456789ab".to_owned());
    let told = draw(pipeline.clone(), asked, EngineOptions::default(), |_| {}).unwrap_err().1;
    assert!(told.contains("x.safetensors") && told.contains("0123456789ab"), "{told}");
}

#[test]
fn sets_are_counted_and_those_that_no_job_uses_are_let_go_of() {
    let pipeline = pipeline_with("tiny-sd", folder());
    let made = |name| pipeline.clone().adapted(request(pipeline.as_ref(), vec![lora(name, 1.0)]).loras()).unwrap();
    let loras = || pipeline.extras().loras;
    assert_eq!(loras(), Extra::default());
    let used = made("sd-attention");
    let one = loras();
    assert!(one.used > 0 && one.unused == 0);
    drop(made("sd-kohya"));
    assert!(loras().used == one.used && loras().unused > 0);
    drop(pipeline.release_extras());
    assert_eq!(loras(), one);
    assert!(Arc::ptr_eq(&used.pipeline, &made("sd-attention").pipeline));
    drop(used);
    assert_eq!(loras(), Extra { used: 0, unused: one.used });
    drop(pipeline.release_extras());
    assert_eq!(loras(), Extra::default());
}

fn zeros(shape: &[usize]) -> Stored {
    Stored { dtype: Dtype::F32, shape: shape.to_vec(), bytes: vec![0; 4 * shape.iter().product::<usize>()] }
}

/// A file's tensors, all zeros, and what its refusal says.
type Case<'a> = (Vec<(String, &'a [usize])>, &'a [&'a str]);

#[test]
fn what_does_not_fit_is_refused_by_file_and_tensor() {
    let scratch = tempfile::tempdir().unwrap();
    let pipeline = pipeline_with("tiny-sd", scratch.path().to_owned());
    let to_q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let conv = "lora_unet_down_blocks_0_resnets_0_conv1";
    let file = |tensors: &[(String, &[usize])]| {
        let tensors = tensors.iter().map(|(name, shape)| (name.clone(), zeros(shape))).collect();
        write(&scratch.path().join("odd.safetensors"), &tensors);
    };
    let part = |layer: &str, part: &str| format!("{layer}.{part}");
    let cases: Vec<Case<'_>> = vec![
        (
            vec![(part(to_q, "lora_down.weight"), &[2, 17]), (part(to_q, "lora_up.weight"), &[16, 2])],
            &["lora_down.weight", "[2, 17]", "[2, 16"],
        ),
        (
            vec![(part(to_q, "lora_down.weight"), &[2, 16]), (part(to_q, "lora_up.weight"), &[16, 3])],
            &["lora_up.weight", "[16, 3]", "[16, 2"],
        ),
        (vec![(part(to_q, "lora_down.weight"), &[2, 16])], &["to_q", "lacks its part Up"]),
        (
            vec![(part(to_q, "lora_down.weight"), &[0, 16]), (part(to_q, "lora_up.weight"), &[16, 0])],
            &["empty tensor", "lora_down.weight"],
        ),
        (
            vec![(part(conv, "lora_down.weight"), &[2, 16, 1, 1]), (part(conv, "lora_up.weight"), &[16, 2, 1, 1])],
            &["conv1.lora_down.weight", "[2, 16, 3, 3]"],
        ),
        (vec![(part(to_q, "alpha"), &[1])], &["to_q", "an alpha and nothing else"]),
        (
            vec![(part(to_q, "lora_down.weight"), &[2, 16]), (part(to_q, "lokr_w1"), &[4, 4])],
            &["to_q", "mixes the parts"],
        ),
        (vec![(part(to_q, "lokr_w1"), &[3, 4]), (part(to_q, "lokr_w2"), &[4, 4])], &["to_q", "3 by 4", "16 by 16"]),
        (vec![(part(to_q, "dora_scale"), &[16, 1])], &["dora_scale", "DoRA"]),
        (vec![(part(to_q, "diff"), &[16, 16])], &["to_q.diff", "no known kind"]),
        (vec![("lora_unet_nowhere.lora_down.weight".to_owned(), &[2, 16])], &["none of its layers", "nowhere"]),
        (vec![("bundle_emb.a.string_to_param.*".to_owned(), &[2, 16])], &["no tensors of a LoRA"]),
        (
            vec![(part(to_q, "lora_down.weight"), &[2, 16]), (part(to_q, "lora_A.weight"), &[2, 16])],
            &["same part of the same layer"],
        ),
    ];
    for (tensors, parts) in cases {
        file(&tensors);
        let told = refusal(&pipeline, "odd");
        for part in [&["odd"], parts].concat() {
            assert!(told.contains(part), "`{part}` in: {told}");
        }
        assert!(!told.contains(&*scratch.path().to_string_lossy()), "clients see no paths: {told}");
    }
    let mut nan = zeros(&[2, 16]);
    nan.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let tensors = [(part(to_q, "lora_down.weight"), nan), (part(to_q, "lora_up.weight"), zeros(&[16, 2]))];
    write(&scratch.path().join("odd.safetensors"), &tensors.into_iter().collect());
    assert!(refusal(&pipeline, "odd").contains("NaN"));
    std::fs::write(scratch.path().join("odd.safetensors"), b"PK\x03\x04").unwrap();
    assert!(refusal(&pipeline, "odd").contains("pickle"));
    assert!(refusal(&pipeline, "absent").contains("no such file"));
}

#[test]
fn a_lora_for_another_family_is_refused() {
    for (style, name, part) in
        [("tiny-sd", "sdxl-kohya", "[2, "), ("tiny-sdxl", "sd-kohya", "[2, "), ("tiny-sd2", "sd-attention", "[3, ")]
    {
        let told = refusal(&pipeline(style), name);
        assert!(told.contains(&format!("{name}.safetensors: tensor `lora_")) && told.contains(part), "{told}");
    }
}

/// What a LoRA has beyond the model's layers is left out and told; a factor's trailing ones and several alphas are understood.
#[test]
fn layers_that_a_model_does_not_have_are_told() {
    let scratch = tempfile::tempdir().unwrap();
    let mut tensors = read(&folder().join("sd-attention.safetensors"));
    let plain: BTreeMap<String, Stored> = tensors.clone();
    for (k, stored) in tensors.values_mut().enumerate() {
        if k % 2 == 0 {
            stored.shape.extend([1, 1]);
        }
    }
    tensors.insert("lora_te2_text_projection.lora_down.weight".to_owned(), zeros(&[2, 16]));
    write(&scratch.path().join("more.safetensors"), &tensors);
    write(&scratch.path().join("plain.safetensors"), &plain);
    let pipeline = pipeline_with("tiny-sd", scratch.path().to_owned());
    let of = |name: &str| request(pipeline.as_ref(), vec![lora(name, 1.0)]);
    let adapted = pipeline.clone().adapted(of("more").loras()).unwrap();
    assert_eq!(adapted.warnings.len(), 1);
    assert!(
        adapted.warnings[0].contains("1 of its layers") && adapted.warnings[0].contains("lora_te2_text_projection")
    );
    assert_eq!(drawn(&pipeline, of("more")), drawn(&pipeline, of("plain")));
}
