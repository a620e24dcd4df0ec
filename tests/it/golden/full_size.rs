//! One evaluation of a network of full size against diffusers: files by tests/parity/full_size.py, which says how.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::{Device, Tensor};
use darkroom::diffusion::models::unets::{UNet2DConditionConfig, UNet2DConditionModel};
use darkroom::diffusion::weights::Checkpoint;

use super::families::Rows;

/// Length of the difference relative to the reference's length, both in f32: the sums of a network of this depth in another
/// order. Measured on x86-64 with AVX-512: 2.7402498e-6 for sd15 at 512x512, 4.2431243e-6 for sdxl at 1024x1024.
const RELATIVE_ERROR: f32 = 1e-5;

fn length(x: &Tensor) -> f32 {
    x.sqr().and_then(|x| x.sum_all()).and_then(|x| x.to_scalar::<f32>()).unwrap().sqrt()
}

/// The most memory this process held, in GB, where the system tells.
pub(super) fn peak_gb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1e6)
}

#[test]
#[ignore = "needs the files of tests/parity/full_size.py and, for SDXL, 16 GB of memory"]
fn a_full_size_network_agrees() {
    let folder = std::env::var_os("DARKROOM_FULL_SIZE").map(PathBuf::from);
    let folder = folder.expect("DARKROOM_FULL_SIZE names the folder that tests/parity/full_size.py made");
    let golden = candle_core::safetensors::load(folder.join("reference.safetensors"), &Device::Cpu).unwrap();
    // As if it were one of several evaluations in the file.
    let golden = golden.into_iter().map(|(key, value)| (format!("unet.{key}"), value)).collect();
    let checkpoint = Checkpoint::Folder(folder);
    let began = Instant::now();
    let config = UNet2DConditionConfig::parse(checkpoint.json("unet/config.json").unwrap()).unwrap();
    let unet = UNet2DConditionModel::load(config, &checkpoint.weights("unet", &Device::Cpu).unwrap()).unwrap();
    let loaded = began.elapsed();
    let rows = Rows { golden: &golden, tag: "unet".to_owned() };
    let began = Instant::now();
    let ours = rows.run(&unet, 0, 1);
    let evaluated = began.elapsed();
    let reference = rows.tensor("out").unwrap();
    let error = length(&(&ours - reference).unwrap()) / length(reference);
    eprintln!(
        "loaded in {loaded:.1?}, evaluated in {evaluated:.1?}; relative error {error:e}; peak {:?} GB",
        peak_gb()
    );
    assert!(error <= RELATIVE_ERROR, "relative error {error:e}");
}
