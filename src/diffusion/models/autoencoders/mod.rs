//! Autoencoders between pictures and latents (Kingma & Welling 2014; Rombach et al. 2022).
//!
//! All is computed in f32, whatever the weights are stored as: what a configuration's `force_upcast` asks for.

mod autoencoder_kl;
mod autoencoder_tiny;
mod coder;

use candle_core::Device;

pub use autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig, Posterior};
pub use autoencoder_tiny::{AutoencoderTiny, AutoencoderTinyConfig, TinyDecoder};

/// Numbers of a map that are worked on at a time (64 MiB): pictures of 256x256 and less are worked on whole. Less memory than
/// that is hardly saved, and each band convolves two rows twice.
const NUMBERS_AT_ONCE: usize = 1 << 24;
/// The same on a GPU (1 GiB), where cuDNN convolves without patches: whole maps take fewer calls. Pictures of 1024x1024 are
/// worked on whole.
const NUMBERS_AT_ONCE_ON_A_GPU: usize = if cfg!(feature = "cudnn") { 1 << 28 } else { NUMBERS_AT_ONCE };

fn numbers_at_once(device: &Device) -> usize {
    if device.is_cpu() { NUMBERS_AT_ONCE } else { NUMBERS_AT_ONCE_ON_A_GPU }
}
