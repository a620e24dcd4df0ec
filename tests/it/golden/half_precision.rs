//! Denoising networks in f16 and bf16 against the same in f32: how far their pictures are off, what they take, what they refuse.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom::diffusion::engine::{EngineOptions, draw};
use darkroom::diffusion::models::unets::{UNet2DConditionConfig, UNet2DConditionModel, UNetInputs};
use darkroom::diffusion::pipelines::{self, ControlNets, LoraLibrary, ModelSource, Pipeline};
use darkroom::diffusion::weights::Checkpoint;
use darkroom::domain::{ComputeDtype, DeviceSpec, DtypeSpec, Lora, RequestDraft};
use darkroom::images::RgbImage;
use half::f16;
use safetensors::tensor::Dtype;

use super::networks::goldens;
use super::parity::Kept;
use super::pipeline::request;
use crate::support::drafts::{control, controlled, copy_folder, fixtures};
use crate::support::single_files::{Stored, read, write};

const HALVES: [ComputeDtype; 2] = [ComputeDtype::F16, ComputeDtype::Bf16];

/// Of last latents after six guided steps, in f16 and bf16, as a share of the largest. Measured on x86-64 with AVX2: 1.7e-3 to
/// 2.7e-3 and 1.4e-2 to 3.8e-2; the bounds leave room for other roundings.
const LATENTS: [f32; 2] = [8e-3, 0.12];
/// Of one evaluation. Measured: 1.5e-3 and 1.1e-2; diffusers itself in these dtypes, on PyTorch's CPU build: 1.5e-3 and 1.3e-2.
const EVALUATION: [f32; 2] = [5e-3, 4e-2];

/// One of the tiny checkpoints with ControlNets and LoRAs, its network in this dtype.
fn source(style: &str, dtype: impl Into<DtypeSpec>) -> ModelSource {
    let controlnets = ControlNets::open(&fixtures().join("controlnets"), 4).unwrap();
    let loras = LoraLibrary::new(Some(fixtures().join("loras")), Vec::new());
    ModelSource { controlnets, loras, dtype: dtype.into(), ..ModelSource::at(style, fixtures().join(style)) }
}

fn load(style: &str, dtype: ComputeDtype) -> Arc<dyn Pipeline> {
    pipelines::load(&source(style, dtype), DeviceSpec::Cpu).unwrap()
}

fn lora(name: &str) -> Lora {
    Lora { name: name.to_owned(), scale: 1.0, text_encoder_scale: 1.0, hash: None }
}

/// How far numbers are off, as a share of the largest of `reference`.
fn off(ours: &Tensor, reference: &Tensor) -> f32 {
    let largest = |x: &Tensor| x.abs().and_then(|x| x.max_all()).and_then(|x| x.to_scalar::<f32>()).unwrap();
    largest(&(ours - reference).unwrap()) / largest(reference)
}

/// The last latents of a guided picture of six steps.
fn latents(pipeline: Arc<dyn Pipeline>, draft: RequestDraft, net: Option<&str>) -> Tensor {
    let picture = RgbImage::from_pixels(32, 16, (0..32 * 16 * 3).map(|k| (k * 7 % 256) as u8).collect()).unwrap();
    let controls = net.map(|net| (control(net, 1.0, 0.0, 1.0), picture)).into_iter().collect();
    let drawing = controlled(draft, (None, None), controls, pipeline.as_ref());
    let kept = Kept::by(pipeline);
    draw(kept.clone(), drawing, EngineOptions::default(), |_| {}).expect("draws");
    kept.latents()
}

/// Steps, guidance and all else are the same: only the network's arithmetic is not.
fn is_close(what: &str, drawn: impl Fn(ComputeDtype) -> Tensor) {
    let reference = drawn(ComputeDtype::F32);
    for (dtype, tolerance) in HALVES.into_iter().zip(LATENTS) {
        let off = off(&drawn(dtype), &reference);
        eprintln!("{what} in {dtype}: {off:e}");
        assert!(off > 0.0 && off <= tolerance, "{what} in {dtype}: {off}");
    }
}

#[test]
fn last_latents_are_close_to_those_in_f32() {
    is_close("tiny-sd", |dtype| latents(load("tiny-sd", dtype), request("tiny-sd", "euler", "guided"), None));
    is_close("tiny-sdxl", |dtype| {
        let draft = RequestDraft { width: Some(64), height: Some(64), ..request("tiny-sdxl", "euler", "guided") };
        latents(load("tiny-sdxl", dtype), draft, None)
    });
    is_close("tiny-sd with a ControlNet", |dtype| {
        latents(load("tiny-sd", dtype), request("tiny-sd", "euler", "guided"), Some("edges"))
    });
    for name in ["sd-kohya", "sd-locon", "sd-loha", "sd-lokr"] {
        is_close(&format!("tiny-sd with LoRA {name}"), |dtype| {
            let adapted = load("tiny-sd", dtype).adapted(&[lora(name)]).unwrap();
            latents(adapted.pipeline, request("tiny-sd", "euler", "guided"), None)
        });
    }
}

fn unet(folder: &Path, dtype: DType) -> Result<UNet2DConditionModel, String> {
    let checkpoint = Checkpoint::Folder(folder.to_owned());
    let config = UNet2DConditionConfig::parse(checkpoint.json("unet/config.json").unwrap()).unwrap();
    let weights = checkpoint.weights("unet", &Device::Cpu).unwrap().in_dtype(dtype);
    UNet2DConditionModel::load(config, &weights).map_err(|error| error.to_string())
}

/// Rows of the golden evaluation of tiny-sd, whose timesteps differ.
fn evaluated(unet: &UNet2DConditionModel, (from, count): (usize, usize)) -> Tensor {
    let golden = goldens("tiny-sd");
    let rows = |name: &str| golden[name].narrow(0, from, count).unwrap();
    let timesteps = rows("unet.timesteps").to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    let inputs = UNetInputs {
        latents: &rows("unet.latents"),
        timesteps: &timesteps,
        hidden_states: &rows("unet.words"),
        added: None,
        guidance_scales: None,
        residuals: None,
    };
    unet.forward(&inputs).unwrap()
}

#[test]
fn an_evaluation_is_close_to_the_reference_and_its_rows_to_themselves_alone() {
    let reference = goldens("tiny-sd")["unet.out"].clone();
    for (dtype, tolerance) in [DType::F16, DType::BF16].into_iter().zip(EVALUATION) {
        let unet = unet(&fixtures().join("tiny-sd"), dtype).unwrap();
        let together = evaluated(&unet, (0, 3));
        assert_eq!((together.dtype(), unet.dtype()), (DType::F32, dtype));
        let off_reference = off(&together, &reference);
        eprintln!("tiny-sd's U-Net in {dtype:?}: {off_reference:e}");
        assert!(off_reference <= tolerance, "{dtype:?}: {off_reference}");
        // No bits are promised in half precision. Measured: the same.
        for row in 0..3 {
            let off = off(&evaluated(&unet, (row, 1)), &together.narrow(0, row, 1).unwrap());
            eprintln!("row {row} alone in {dtype:?}: {off:e}");
            assert!(off <= tolerance, "row {row} alone in {dtype:?}: {off}");
        }
    }
}

#[test]
fn weights_of_the_networks_take_half() {
    for style in ["tiny-sd", "tiny-sdxl"] {
        let checkpoint = source(style, DtypeSpec::Auto).checkpoint().unwrap();
        let network = checkpoint.weights("unet", &Device::Cpu).unwrap();
        assert_eq!(network.in_dtype(DType::F16).bytes(), network.bytes() / 2);
        let whole = load(style, ComputeDtype::F32);
        for dtype in HALVES {
            let half = load(style, dtype);
            assert_eq!(whole.bytes() - half.bytes(), network.bytes() / 2, "{style} in {dtype}");
            let introduced = pipelines::introduce(&source(style, dtype)).unwrap();
            let (told, held) = (introduced.bytes(DeviceSpec::Cpu) as f64, half.bytes() as f64);
            assert!((1.0..1.01).contains(&(told / held)), "{style} in {dtype}: {told} bytes told, {held} held");
        }
        let introduced = pipelines::introduce(&source(style, DtypeSpec::Auto)).unwrap();
        let on = |device| introduced.bytes(device);
        assert_eq!(on(DeviceSpec::Cpu) - on(DeviceSpec::Cuda(0)), network.bytes() / 2);
    }
}

#[test]
fn controlnets_and_loras_take_half_beside_such_a_network() {
    let [whole, half] = [ComputeDtype::F32, ComputeDtype::F16].map(|dtype| load("tiny-sd", dtype));
    let held = |pipeline: &Arc<dyn Pipeline>| {
        pipeline.controlnet("edges").unwrap();
        // Of attention layers of the U-Net alone.
        pipeline.clone().adapted(&[lora("sd-attention")]).unwrap();
        let extras = pipeline.extras();
        (extras.controlnets.unused, extras.loras.unused)
    };
    let (whole, half) = (held(&whole), held(&half));
    assert!(whole.0 > 0 && whole.1 > 0);
    assert_eq!((whole.0 / 2, whole.1 / 2), half);
}

#[test]
fn numbers_of_one_dtype_are_not_taken_for_those_of_another() {
    let all = [ComputeDtype::F32, ComputeDtype::F16, ComputeDtype::Bf16].map(|dtype| load("tiny-sd", dtype));
    let nets = all.clone().map(|pipeline| pipeline.controlnet("edges").unwrap());
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        assert_ne!(all[one].fingerprint(), all[other].fingerprint());
        assert_ne!(nets[one].fingerprint(), nets[other].fingerprint());
        assert_ne!(all[one].info().files, all[other].info().files);
    }
    let auto = pipelines::load(&source("tiny-sd", DtypeSpec::Auto), DeviceSpec::Cpu).unwrap();
    assert_eq!(auto.fingerprint(), all[0].fingerprint());
}

/// A copy of tiny-sd in which the first number of a tensor is 1e5: more than f16 holds, and nothing to f32 and bf16.
fn spoilt(folder: &Path, file: &str, tensor: &str) {
    copy_folder(&fixtures().join("tiny-sd"), folder);
    spoil(&folder.join(file), tensor);
}

fn spoil(path: &Path, tensor: &str) {
    let mut tensors = read(path);
    let Stored { dtype, bytes, .. } = tensors.get_mut(tensor).unwrap();
    if *dtype == Dtype::F16 {
        let wide = bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32());
        *bytes = wide.flat_map(f32::to_le_bytes).collect();
        *dtype = Dtype::F32;
    }
    assert_eq!(*dtype, Dtype::F32);
    bytes[..4].copy_from_slice(&1e5f32.to_le_bytes());
    write(path, &tensors);
}

#[test]
fn a_number_beyond_f16_is_refused_with_its_tensor() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, tensor) = ("unet/diffusion_pytorch_model.safetensors", "conv_in.weight");
    let folder = scratch.path().join("unet");
    spoilt(&folder, file, tensor);
    let told = unet(&folder, DType::F16).unwrap_err();
    assert!(
        ["unet/diffusion_pytorch_model.safetensors", tensor, "100000", "f16"].iter().all(|part| told.contains(part)),
        "{told}"
    );
    unet(&folder, DType::BF16).unwrap();
    unet(&folder, DType::F32).unwrap();
}

/// Text encoders are f32 whatever the network is.
#[test]
fn such_a_number_of_a_text_encoder_is_none_too_large() {
    let scratch = tempfile::tempdir().unwrap();
    spoilt(scratch.path(), "text_encoder/model.safetensors", "final_layer_norm.weight");
    let source = ModelSource { dtype: ComputeDtype::F16.into(), ..ModelSource::at("tiny-sd", scratch.path()) };
    pipelines::load(&source, DeviceSpec::Cpu).unwrap();
}

#[test]
fn a_lora_beyond_f16_is_refused_with_its_layer() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("large.safetensors");
    std::fs::copy(fixtures().join("loras/sd-attention.safetensors"), &path).unwrap();
    let tensor = read(&path).keys().find(|name| name.ends_with("lora_up.weight")).unwrap().clone();
    spoil(&path, &tensor);
    let loras = LoraLibrary::new(Some(scratch.path().to_owned()), Vec::new());
    let load = |dtype: ComputeDtype| {
        let source = ModelSource { loras: loras.clone(), ..source("tiny-sd", dtype) };
        pipelines::load(&source, DeviceSpec::Cpu).unwrap()
    };
    let told = load(ComputeDtype::F16).adapted(&[lora("large")]).err().unwrap().to_string();
    assert!(["large", "layer", "100000", "f16"].iter().all(|part| told.contains(part)), "{told}");
    load(ComputeDtype::Bf16).adapted(&[lora("large")]).unwrap();
}
