//! The U-Net of Stable Diffusion (diffusers `UNet2DConditionModel`), with one timestep a row.

use candle_core::Tensor;

use super::blocks::{DownBlock, MidBlock, Told, UpBlock};
use super::config::UNet2DConditionConfig;
use super::resnet::ResnetOptions;
use crate::diffusion::models::Result;
use crate::diffusion::models::layers::{Activation, Conv2d, GroupNorm, Linear, timestep_embedding};
use crate::diffusion::weights::Weights;

/// Latents, timesteps and text to the network's prediction.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    config: UNet2DConditionConfig,
    time_linear_1: Linear,
    time_linear_2: Linear,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: Option<MidBlock>,
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet2DConditionModel {
    /// Reads every tensor the configuration names.
    pub fn load(config: UNet2DConditionConfig, w: &Weights) -> Result<Self> {
        let first = config.levels[0].channels;
        let time_width = 4 * first;
        let options = ResnetOptions { groups: config.norm_groups, eps: config.norm_eps, time_width: Some(time_width) };
        let mut skips = vec![first];
        let (mut down, mut inputs) = (Vec::new(), first);
        for (k, level) in config.levels.iter().enumerate() {
            down.push(DownBlock::load(k, inputs, &config, options, &w.pp("down_blocks").pp(k))?);
            inputs = level.channels;
            let outputs = level.layers + usize::from(k + 1 < config.levels.len());
            skips.extend(std::iter::repeat_n(inputs, outputs));
        }
        let mid = config.has_mid.then(|| MidBlock::load(&config, options, &w.pp("mid_block"))).transpose()?;
        let mut up = Vec::new();
        for (number, k) in (0..config.levels.len()).rev().enumerate() {
            let w = w.pp("up_blocks").pp(number);
            up.push(UpBlock::load(k, inputs, (&config, options), &mut skips, &w)?);
            inputs = config.levels[k].channels;
        }
        Ok(Self {
            time_linear_1: Linear::load(first, time_width, &w.pp("time_embedding.linear_1"))?,
            time_linear_2: Linear::load(time_width, time_width, &w.pp("time_embedding.linear_2"))?,
            conv_in: Conv2d::load(config.in_channels, first, 3, &w.pp("conv_in"))?,
            norm_out: GroupNorm::load(config.norm_groups, first, config.norm_eps, &w.pp("conv_norm_out"))?,
            conv_out: Conv2d::load(first, config.out_channels, 3, &w.pp("conv_out"))?,
            config,
            down,
            mid,
            up,
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// latents: (N, in_channels, h, w) f32; timesteps: N values in the units of the training schedule; context: (N, T,
    /// width) f32 -> (N, out_channels, h, w) f32.
    pub fn forward(&self, latents: &Tensor, timesteps: &[f64], context: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let width = config.levels[0].channels;
        let time = timestep_embedding(timesteps, width, config.flip_sin_to_cos, config.freq_shift, latents.device())?;
        let time = Activation::Silu.forward(&self.time_linear_1.forward(&time)?)?;
        // Every block starts from the activated embedding, so it is activated once.
        let time = Activation::Silu.forward(&self.time_linear_2.forward(&time)?)?;
        let told = Told { time: &time, context };
        let latents = if config.center_input_sample { ((latents * 2.0)? - 1.0)? } else { latents.clone() };
        let mut x = self.conv_in.forward(&latents)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            x = block.forward(x, &told, &mut skips)?;
        }
        if let Some(mid) = &self.mid {
            x = mid.forward(&x, &told)?;
        }
        for block in &self.up {
            x = block.forward(x, &told, &mut skips)?;
        }
        Ok(self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?)
    }
}
