//! The two halves of the autoencoder (diffusers `Encoder` and `Decoder`).

use candle_core::{Result, Tensor};

use super::AutoencoderKlConfig;
use crate::diffusion::models::layers::{Attention, Bands, Conv2d, GroupNorm};
use crate::diffusion::models::unets::{ResnetBlock, ResnetOptions};
use crate::diffusion::weights::{self, Weights};

/// diffusers fixes it for the autoencoder.
const EPS: f64 = 1e-6;

#[derive(Debug)]
struct Mid {
    first: ResnetBlock,
    attention: Option<Attention>,
    second: ResnetBlock,
}

impl Mid {
    fn load(channels: usize, config: &AutoencoderKlConfig, w: &Weights) -> weights::Result<Self> {
        let resnet = |k: usize| ResnetBlock::load(channels, channels, options(config), &w.pp("resnets").pp(k));
        let attention = || Attention::load(channels, config.norm_num_groups, EPS, &w.pp("attentions.0"));
        Ok(Self {
            first: resnet(0)?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
            second: resnet(1)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.first.forward(x, None)?;
        let x = match &self.attention {
            Some(attention) => attention.forward(&x)?,
            None => x,
        };
        self.second.forward(&x, None)
    }
}

fn options(config: &AutoencoderKlConfig) -> ResnetOptions {
    ResnetOptions { groups: config.norm_num_groups, eps: EPS, time_width: None }
}

fn resnets(
    count: usize,
    inputs: usize,
    outputs: usize,
    config: &AutoencoderKlConfig,
    w: &Weights,
) -> weights::Result<Vec<ResnetBlock>> {
    let from = |k: usize| if k == 0 { inputs } else { outputs };
    (0..count).map(|k| ResnetBlock::load(from(k), outputs, options(config), &w.pp("resnets").pp(k))).collect()
}

/// Blocks of residual blocks, each but the last followed by a convolution that changes the size.
#[derive(Debug)]
struct Path(Vec<(Vec<ResnetBlock>, Option<Conv2d>)>);

#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    down: Path,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn load(config: &AutoencoderKlConfig, w: &Weights) -> weights::Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let (mut down, mut inputs) = (Vec::new(), first);
        for (k, outputs) in channels.iter().copied().enumerate() {
            let w = w.pp("down_blocks").pp(k);
            let block = resnets(config.layers_per_block, inputs, outputs, config, &w)?;
            let conv = || Conv2d::load_strided(outputs, outputs, 3, (2, 0), &w.pp("downsamplers.0.conv"));
            down.push((block, (k + 1 < channels.len()).then(conv).transpose()?));
            inputs = outputs;
        }
        Ok(Self {
            conv_in: Conv2d::load(config.in_channels, first, 3, &w.pp("conv_in"))?,
            down: Path(down),
            mid: Mid::load(last, config, &w.pp("mid_block"))?,
            norm_out: GroupNorm::load(config.norm_num_groups, last, EPS, &w.pp("conv_norm_out"))?,
            conv_out: Conv2d::load(last, 2 * config.latent_channels, 3, &w.pp("conv_out"))?,
        })
    }

    /// (N, 3, H, W) -> (N, 2 * latent_channels, h, w): means, then log-variances. Bands of about `at_once` numbers at a time.
    pub(super) fn forward(&self, x: &Tensor, at_once: usize) -> Result<Tensor> {
        let mut x = Bands::whole(x.clone())?.convolved(&self.conv_in, at_once, |x| Ok(x.clone()))?;
        for (block, downsample) in &self.down.0 {
            for resnet in block {
                x = resnet.forward_bands(x, at_once)?;
            }
            if let Some(conv) = downsample {
                x = x.downsampled(conv, at_once)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&self.mid.forward(&x.into_whole()?)?)?)
    }
}

#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid: Mid,
    up: Path,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn load(config: &AutoencoderKlConfig, w: &Weights) -> weights::Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let (mut up, mut inputs) = (Vec::new(), last);
        for (k, outputs) in channels.iter().rev().copied().enumerate() {
            let w = w.pp("up_blocks").pp(k);
            let block = resnets(config.layers_per_block + 1, inputs, outputs, config, &w)?;
            let conv = || Conv2d::load(outputs, outputs, 3, &w.pp("upsamplers.0.conv"));
            up.push((block, (k + 1 < channels.len()).then(conv).transpose()?));
            inputs = outputs;
        }
        Ok(Self {
            conv_in: Conv2d::load(config.latent_channels, last, 3, &w.pp("conv_in"))?,
            mid: Mid::load(last, config, &w.pp("mid_block"))?,
            up: Path(up),
            norm_out: GroupNorm::load(config.norm_num_groups, first, EPS, &w.pp("conv_norm_out"))?,
            conv_out: Conv2d::load(first, config.out_channels, 3, &w.pp("conv_out"))?,
        })
    }

    /// (N, latent_channels, h, w) -> (N, 3, H, W). Bands of about `at_once` numbers at a time.
    pub(super) fn forward(&self, x: &Tensor, at_once: usize) -> Result<Tensor> {
        let mut x = Bands::whole(self.mid.forward(&self.conv_in.forward(x)?)?)?;
        for (block, upsample) in &self.up.0 {
            for resnet in block {
                x = resnet.forward_bands(x, at_once)?;
            }
            if let Some(conv) = upsample {
                x = x.upsampled(conv, 2, at_once)?;
            }
        }
        let statistics = self.norm_out.statistics(&x, at_once)?;
        let normed = |rows: &Tensor| self.norm_out.forward_silu_rows(rows, &statistics);
        x.convolved(&self.conv_out, at_once, normed)?.into_whole()
    }
}
