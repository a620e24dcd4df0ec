//! Denoising U-Nets (Ronneberger et al. 2015; Ho et al. 2020; Rombach et al. 2022).

mod blocks;
mod config;
mod embedding;
mod resnet;
mod transformer;
mod unet_2d_condition;

pub use config::{AddedConditioning, UNet2DConditionConfig};
pub(in crate::diffusion::models) use resnet::{ResnetBlock, ResnetOptions};
pub use unet_2d_condition::{UNet2DConditionModel, UNetInputs};
