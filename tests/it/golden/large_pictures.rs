//! Large pictures through the autoencoder: in bands of rows, with the bits of whole maps.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::{Device, Tensor};
use darkroom::diffusion::models::autoencoders::{AutoencoderKl, AutoencoderKlConfig};
use darkroom::diffusion::weights::Checkpoint;

use super::full_size::peak_gb;
use super::networks::{bits, fixtures};

fn vae(checkpoint: &Checkpoint) -> AutoencoderKl {
    let config: AutoencoderKlConfig = checkpoint.json("vae/config.json").unwrap();
    AutoencoderKl::load(config, &checkpoint.weights("vae", &Device::Cpu).unwrap()).unwrap()
}

/// Sizes whose rows are whole vectors or not, one picture or two, bands of the fewest rows and of more.
#[test]
fn bands_have_the_bits_of_whole_maps() {
    for style in ["tiny-sd", "tiny-sd2"] {
        let checkpoint = Checkpoint::Folder(fixtures().join(style));
        let whole = vae(&checkpoint).with_numbers_at_once(usize::MAX);
        for (n, height, width) in [(1, 96, 64), (2, 80, 24), (1, 200, 8)] {
            let picture = Tensor::rand(-1f32, 1.0, (n, 3, height, width), &Device::Cpu).unwrap();
            let encoded = whole.encode(&picture).unwrap();
            let codes = Tensor::randn(0f32, 1.0, encoded.mean.shape(), &Device::Cpu).unwrap();
            let decoded = whole.decode(&codes).unwrap();
            for at_once in [1, 16 * width * 16] {
                let bands = vae(&checkpoint).with_numbers_at_once(at_once);
                let told = format!("{style}, {n} of {height}x{width}, {at_once} numbers at once");
                assert!(bits(&bands.encode(&picture).unwrap().mean) == bits(&encoded.mean), "{told}");
                assert!(bits(&bands.decode(&codes).unwrap()) == bits(&decoded), "{told}");
            }
        }
    }
}

/// Lets the system count the peak of this process's memory anew, where it can.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// One run measures one way, so that nothing of the other is in its memory: DARKROOM_WAY is `bands` or `whole`, DARKROOM_SIDE the picture's side
/// in pixels. The picture's bits are kept in DIR, so that two runs can be compared.
#[test]
#[ignore = "needs the files of tests/parity/large_pictures.py, and memory"]
fn a_large_decode_and_encode_are_measured() {
    let told = |name: &str| {
        let value = std::env::var_os(name).and_then(|value| value.into_string().ok());
        value.unwrap_or_else(|| panic!("{name}: see tests/parity/large_pictures.py"))
    };
    let (folder, way) = (PathBuf::from(told("DARKROOM_LARGE")), told("DARKROOM_WAY"));
    let side: usize = told("DARKROOM_SIDE").parse().unwrap();
    let vae = vae(&Checkpoint::Folder(folder.clone()));
    let vae = if way == "whole" { vae.with_numbers_at_once(usize::MAX) } else { vae };
    eprintln!("loaded: peak {:?} GB", peak_gb());
    let latents: Vec<f32> = (0..4 * (side / 8) * (side / 8)).map(|at| (at as f32 * 0.37).sin() * 2.0).collect();
    let latents = Tensor::from_vec(latents, (1, 4, side / 8, side / 8), &Device::Cpu).unwrap();
    forget_peak();
    let began = Instant::now();
    let picture = vae.decode(&latents).unwrap();
    eprintln!("{way}, {side} pixels: decoded in {:.1?}, peak {:?} GB", began.elapsed(), peak_gb());
    forget_peak();
    let began = Instant::now();
    let mean = vae.encode(&picture.clamp(-1f32, 1f32).unwrap()).unwrap().mean;
    eprintln!("{way}, {side} pixels: encoded in {:.1?}, peak {:?} GB", began.elapsed(), peak_gb());
    let other = folder.join(format!("{}-{side}.safetensors", if way == "whole" { "bands" } else { "whole" }));
    if let Ok(other) = candle_core::safetensors::load(&other, &Device::Cpu) {
        for (name, ours) in [("picture", &picture), ("mean", &mean)] {
            let worst = (ours - &other[name]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            eprintln!("{name}: largest difference between bands and whole maps {worst}");
            assert!(bits(ours) == bits(&other[name]), "{name}");
        }
    }
    let both = [("picture", picture), ("mean", mean)].into_iter().map(|(name, x)| (name.to_owned(), x)).collect();
    candle_core::safetensors::save(&both, folder.join(format!("{way}-{side}.safetensors"))).unwrap();
}
