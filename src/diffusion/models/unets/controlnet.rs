//! ControlNets (Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models"; diffusers
//! `ControlNetModel`): a U-Net's down path and middle that are shown a picture besides, and say what is to be added to the maps
//! that the U-Net hands from its down path to its up path.

use candle_core::{D, DType, Tensor};

use super::blocks::{DownBlock, MidBlock, Told};
use super::controlnet_config::ControlNetConfig;
use super::embedding::TimeEmbedding;
use super::resnet::ResnetOptions;
use super::unet_2d_condition::UNetInputs;
use crate::diffusion::models::Result;
use crate::diffusion::models::layers::{Activation, Conv2d};
use crate::diffusion::weights::{self, Weights};

/// Latents, timesteps, text and a picture to what a U-Net's maps have added. It computes in the dtype of its weights; what it is
/// told and what it says is f32 all the same.
#[derive(Debug)]
pub struct ControlNetModel {
    config: ControlNetConfig,
    time: TimeEmbedding,
    conv_in: Conv2d,
    embedding: ConditioningEmbedding,
    down: Vec<DownBlock>,
    /// One for each map of the down path.
    down_out: Vec<Conv2d>,
    mid: MidBlock,
    mid_out: Conv2d,
    dtype: DType,
}

/// What is added to the maps of a U-Net, for N rows.
#[derive(Clone, Debug)]
pub struct ControlNetOutput {
    /// (N, C, h', w') f32, one for each map of the down path, in its order.
    pub down: Vec<Tensor>,
    /// The same for the middle.
    pub mid: Tensor,
}

impl ControlNetModel {
    /// Reads every tensor the configuration names.
    pub fn load(config: ControlNetConfig, w: &Weights) -> Result<Self> {
        let unet = &config.unet;
        let first = unet.levels[0].channels;
        let options = ResnetOptions { groups: unet.norm_groups, eps: unet.norm_eps, time_width: Some(unet.time_width) };
        let (mut down, mut inputs) = (Vec::new(), first);
        for (k, level) in unet.levels.iter().enumerate() {
            down.push(DownBlock::load(k, inputs, unet, options, &w.pp("down_blocks").pp(k))?);
            inputs = level.channels;
        }
        let out = |(k, c): (usize, &usize)| Conv2d::load(*c, *c, 1, &w.pp("controlnet_down_blocks").pp(k));
        let mid = MidBlock::load(unet, options, &w.pp("mid_block"))?;
        Ok(Self {
            time: TimeEmbedding::load(unet, w)?,
            conv_in: Conv2d::load(unet.in_channels, first, 3, &w.pp("conv_in"))?,
            embedding: ConditioningEmbedding::load(&config, &w.pp("controlnet_cond_embedding"))?,
            down_out: unet.skip_channels().iter().enumerate().map(out).collect::<weights::Result<_>>()?,
            mid: mid.expect("its configuration has one. This is a bug in unets."),
            mid_out: Conv2d::load(inputs, inputs, 1, &w.pp("controlnet_mid_block"))?,
            config,
            down,
            dtype: w.dtype(),
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// What it makes of a picture, whatever the latents: pictures (N, 3, H, W) f32 in [0, 1], RGB, to (N, C, h, w) f32.
    pub fn embed(&self, pictures: &Tensor) -> Result<Tensor> {
        let turned = match self.config.is_bgr {
            true => pictures.index_select(&Tensor::new(&[2u32, 1, 0], pictures.device())?, 1)?,
            false => pictures.clone(),
        };
        Ok(self.embedding.forward(&turned.to_dtype(self.dtype)?)?.to_dtype(DType::F32)?)
    }

    /// What is added to a U-Net's maps. `embedded`: (N, C, h, w) f32 by [`ControlNetModel::embed`]; `scales`: N, how much of it
    /// each row has added.
    ///
    /// # Errors
    /// Inputs that the configuration asks for and that are not there; a picture of another size than the latents.
    pub fn forward(&self, inputs: &UNetInputs<'_>, embedded: &Tensor, scales: &[f64]) -> Result<ControlNetOutput> {
        let time = self.time.forward(&self.config.unet, inputs)?;
        let told = Told { time: &time, context: &inputs.hidden_states.to_dtype(self.dtype)? };
        let mut x = (self.conv_in.forward(&inputs.latents.to_dtype(self.dtype)?)? + embedded.to_dtype(self.dtype)?)?;
        let mut maps = vec![x.clone()];
        for block in &self.down {
            x = block.forward(x, &told, &mut maps)?;
        }
        let mid = self.mid.forward(&x, &told)?;
        let scales: Vec<f32> = scales.iter().map(|scale| *scale as f32).collect();
        let scales = Tensor::from_vec(scales, (inputs.timesteps.len(), 1, 1, 1), x.device())?;
        let out = |(conv, map): (&Conv2d, &Tensor)| {
            self.pooled(conv.forward(map)?.to_dtype(DType::F32)?.broadcast_mul(&scales)?)
        };
        Ok(ControlNetOutput {
            down: self.down_out.iter().zip(&maps).map(out).collect::<Result<_>>()?,
            mid: out((&self.mid_out, &mid))?,
        })
    }

    /// Everywhere its mean, where the configuration [`ControlNetConfig::pools`].
    fn pooled(&self, map: Tensor) -> Result<Tensor> {
        if !self.config.pools {
            return Ok(map);
        }
        let means = map.flatten_from(2)?.mean(D::Minus1)?.unsqueeze(2)?.unsqueeze(3)?;
        Ok(means.broadcast_as(map.shape())?.contiguous()?)
    }
}

/// Convolutions from the picture's pixels to the latents' (diffusers `ControlNetConditioningEmbedding`).
#[derive(Debug)]
struct ConditioningEmbedding {
    conv_in: Conv2d,
    /// In turn one that keeps the size and one that halves it.
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl ConditioningEmbedding {
    fn load(config: &ControlNetConfig, w: &Weights) -> weights::Result<Self> {
        let channels = &config.embedding_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut blocks = Vec::new();
        for pair in channels.windows(2) {
            let at = w.pp("blocks");
            blocks.push(Conv2d::load(pair[0], pair[0], 3, &at.pp(blocks.len()))?);
            blocks.push(Conv2d::load_strided(pair[0], pair[1], 3, (2, 1), &at.pp(blocks.len()))?);
        }
        Ok(Self {
            conv_in: Conv2d::load(config.conditioning_channels, first, 3, &w.pp("conv_in"))?,
            blocks,
            conv_out: Conv2d::load(last, config.unet.levels[0].channels, 3, &w.pp("conv_out"))?,
        })
    }

    fn forward(&self, pictures: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = Activation::Silu.forward(&self.conv_in.forward(pictures)?)?;
        for conv in &self.blocks {
            x = Activation::Silu.forward(&conv.forward(&x)?)?;
        }
        self.conv_out.forward(&x)
    }
}
