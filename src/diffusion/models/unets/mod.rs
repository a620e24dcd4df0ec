//! Denoising U-Nets (Ronneberger et al. 2015; Ho et al. 2020; Rombach et al. 2022), and the ControlNets that are made of
//! their parts (Zhang et al. 2023).

mod blocks;
mod config;
mod controlnet;
mod controlnet_config;
mod embedding;
mod resnet;
mod transformer;
mod unet_2d_condition;

pub use config::{AddedConditioning, UNet2DConditionConfig};
pub use controlnet::{ControlNetModel, ControlNetOutput};
pub use controlnet_config::ControlNetConfig;
pub(in crate::diffusion::models) use resnet::{ResnetBlock, ResnetOptions};
pub use unet_2d_condition::{UNet2DConditionModel, UNetInputs, UNetResiduals};
