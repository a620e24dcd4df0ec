//! diffusers' `AutoencoderKL`: pictures in [-1, 1] to a Gaussian over latents, and back.

use candle_core::Tensor;
use serde::Deserialize;

use super::coder::{Decoder, Encoder};
use super::numbers_at_once;
use crate::diffusion::kernels::among_workers;
use crate::diffusion::models::layers::Conv2d;
use crate::diffusion::models::{Result, require};
use crate::diffusion::weights::Weights;

/// `vae/config.json`; absent keys take the defaults of diffusers 0.42's `AutoencoderKL.__init__`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) latent_channels: usize,
    pub(super) block_out_channels: Vec<usize>,
    pub(super) layers_per_block: usize,
    pub(super) norm_num_groups: usize,
    pub(super) mid_block_add_attention: bool,
    act_fn: String,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    scaling_factor: f64,
    shift_factor: Option<f64>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            act_fn: "silu".to_owned(),
            down_block_types: vec!["DownEncoderBlock2D".to_owned()],
            up_block_types: vec!["UpDecoderBlock2D".to_owned()],
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
        }
    }
}

impl AutoencoderKlConfig {
    /// Picture pixels a latent pixel, each way: 2 to the number of downsamplings.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// What the encoder's latents are multiplied with.
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }

    /// Latents of about unit variance as samplers take them, of what the encoder gives: (N, latent_channels, h, w).
    pub fn scaled(&self, latents: &Tensor) -> Result<Tensor> {
        if let Some((mean, std)) = self.normalisation(latents)? {
            return Ok((latents.broadcast_sub(&mean)? * self.scaling_factor)?.broadcast_div(&std)?);
        }
        Ok(((latents - self.shift_factor.unwrap_or(0.0))? * self.scaling_factor)?)
    }

    /// What the decoder takes, of latents (N, latent_channels, h, w) of about unit variance as samplers take them.
    pub fn unscaled(&self, latents: &Tensor) -> Result<Tensor> {
        if let Some((mean, std)) = self.normalisation(latents)? {
            return Ok((latents.broadcast_mul(&std)? / self.scaling_factor)?.broadcast_add(&mean)?);
        }
        Ok(((latents / self.scaling_factor)? + self.shift_factor.unwrap_or(0.0))?)
    }

    /// Mean and standard deviation of each channel, (1, latent_channels, 1, 1), where the configuration has them.
    fn normalisation(&self, latents: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let (Some(mean), Some(std)) = (&self.latents_mean, &self.latents_std) else { return Ok(None) };
        let of_channels = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            Tensor::from_vec(values, (1, self.latent_channels, 1, 1), latents.device())
        };
        Ok(Some((of_channels(mean)?, of_channels(std)?)))
    }

    /// Whether this network can honour it.
    ///
    /// # Errors
    /// The first key whose value it cannot, with what it supports.
    pub fn check(&self) -> Result<()> {
        let blocks = self.block_out_channels.len();
        require((1..=8).contains(&blocks), "block_out_channels", &self.block_out_channels, "1 to 8 blocks")?;
        let divides = self.block_out_channels.iter().all(|channels| channels % self.norm_num_groups.max(1) == 0);
        require(divides, "block_out_channels", &self.block_out_channels, "multiples of norm_num_groups")?;
        require(matches!(self.act_fn.as_str(), "silu" | "swish"), "act_fn", &self.act_fn, "silu")?;
        for (key, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let one_each = values.as_ref().is_none_or(|values| values.len() == self.latent_channels);
            require(one_each, key, values, "null, or one number for each latent channel")?;
        }
        let plain = |types: &[String], name: &str| types.len() == blocks && types.iter().all(|each| each == name);
        let (down, up) = (&self.down_block_types, &self.up_block_types);
        require(plain(down, "DownEncoderBlock2D"), "down_block_types", down, "DownEncoderBlock2D for each block")?;
        require(plain(up, "UpDecoderBlock2D"), "up_block_types", up, "UpDecoderBlock2D for each block")
    }
}

/// A diagonal Gaussian over latents.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// (N, latent_channels, h, w).
    pub mean: Tensor,
    /// (N, latent_channels, h, w).
    pub std: Tensor,
}

/// Encoder and decoder. Large maps are worked on in bands, so that a decode holds maps of about 1 KiB a pixel of the
/// picture (256 numbers, with the widths of Stable Diffusion), and so does an encode.
#[derive(Debug)]
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    at_once: usize,
}

impl Posterior {
    /// A draw of it, given standard normal noise of its shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok((&self.mean + (&self.std * noise)?)?)
    }
}

impl AutoencoderKl {
    /// Reads every tensor the configuration names.
    pub fn load(config: AutoencoderKlConfig, w: &Weights) -> Result<Self> {
        config.check()?;
        let latents = config.latent_channels;
        let conv =
            |on: bool, channels, name: &str| on.then(|| Conv2d::load(channels, channels, 1, &w.pp(name))).transpose();
        Ok(Self {
            encoder: Encoder::load(&config, &w.pp("encoder"))?,
            quant_conv: conv(config.use_quant_conv, 2 * latents, "quant_conv")?,
            post_quant_conv: conv(config.use_post_quant_conv, latents, "post_quant_conv")?,
            decoder: Decoder::load(&config, &w.pp("decoder"))?,
            config,
            at_once: numbers_at_once(w.device()),
        })
    }

    /// The same, working on bands of about so many numbers of a map at a time; `usize::MAX`: on whole maps. On a CPU the results
    /// have the same bits.
    #[must_use]
    pub fn with_numbers_at_once(self, numbers: usize) -> Self {
        Self { at_once: numbers, ..self }
    }

    /// What it was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// picture: (N, 3, H, W) f32 in [-1, 1], H and W multiples of the factor -> unscaled latents.
    pub fn encode(&self, picture: &Tensor) -> Result<Posterior> {
        let moments = self.encoder.forward(picture, self.at_once)?;
        let moments = match &self.quant_conv {
            Some(conv) => conv.forward(&moments)?,
            None => moments,
        };
        let channels = self.config.latent_channels;
        // The reference clamps the log-variance to [-30, 20] (`DiagonalGaussianDistribution`).
        let log_variance = moments.narrow(1, channels, channels)?.clamp(-30f32, 20f32)?;
        Ok(Posterior { mean: moments.narrow(1, 0, channels)?.contiguous()?, std: (log_variance * 0.5)?.exp()? })
    }

    /// latents: (N, latent_channels, h, w) f32, unscaled -> (N, 3, h * factor, w * factor) f32, about [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        among_workers(latents.device(), || {
            let latents = match &self.post_quant_conv {
                Some(conv) => conv.forward(latents)?,
                None => latents.clone(),
            };
            Ok(self.decoder.forward(&latents, self.at_once)?)
        })
    }
}
