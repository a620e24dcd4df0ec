//! Autoencoders between pictures and latents (Kingma & Welling 2014; Rombach et al. 2022).

mod autoencoder_kl;
mod coder;

pub use autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig, Posterior};
