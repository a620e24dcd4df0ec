//! diffusers' `AutoencoderTiny` (TAESD, Bohan 2023): a small autoencoder distilled from a large one, without norms and without a
//! distribution; about a hundredth of the work.

use std::ops::Range;

use candle_core::{Result as TensorResult, Tensor};
use serde::Deserialize;

use crate::diffusion::models::layers::{Activation, Bands, Conv2d, convolved_rows};
use crate::diffusion::models::{Result, require};
use crate::diffusion::weights::{self, Weights};

/// Latents are softly held within this (the decoder's `tanh(x / 3) * 3`), which no configuration changes.
const LARGEST_LATENT: f64 = 3.0;

/// `config.json`; absent keys take the defaults of diffusers 0.42's `AutoencoderTiny.__init__`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderTinyConfig {
    in_channels: usize,
    out_channels: usize,
    encoder_block_out_channels: Vec<usize>,
    decoder_block_out_channels: Vec<usize>,
    act_fn: String,
    upsample_fn: String,
    latent_channels: usize,
    upsampling_scaling_factor: usize,
    num_encoder_blocks: Vec<usize>,
    num_decoder_blocks: Vec<usize>,
    scaling_factor: f64,
    shift_factor: Option<f64>,
}

impl Default for AutoencoderTinyConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            act_fn: "relu".to_owned(),
            upsample_fn: "nearest".to_owned(),
            latent_channels: 4,
            upsampling_scaling_factor: 2,
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            scaling_factor: 1.0,
            shift_factor: None,
        }
    }
}

impl AutoencoderTinyConfig {
    /// Picture pixels a latent pixel, each way.
    pub fn factor(&self) -> usize {
        self.upsampling_scaling_factor.pow(self.num_decoder_blocks.len() as u32 - 1)
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// What the encoder's latents are multiplied with.
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }

    /// Latents as samplers take them, of what the encoder gives.
    pub fn scaled(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(((latents - self.shift_factor.unwrap_or(0.0))? * self.scaling_factor)?)
    }

    /// What the decoder takes, of latents as samplers take them.
    pub fn unscaled(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(((latents / self.scaling_factor)? + self.shift_factor.unwrap_or(0.0))?)
    }

    /// Whether both halves can honour it.
    ///
    /// # Errors
    /// The first key whose value they cannot, with what they support.
    pub fn check(&self) -> Result<()> {
        self.check_decoder()?;
        self.check_encoder()
    }

    /// The same of the decoder alone; the activation.
    ///
    /// # Errors
    /// As [`AutoencoderTinyConfig::check`]'s.
    pub fn check_decoder(&self) -> Result<Activation> {
        let (stages, channels) = (&self.num_decoder_blocks, &self.decoder_block_out_channels);
        require((1..=8).contains(&stages.len()), "num_decoder_blocks", stages, "1 to 8 stages")?;
        alike("decoder_block_out_channels", channels, stages)?;
        let factor = self.upsampling_scaling_factor;
        require((1..=8).contains(&factor), "upsampling_scaling_factor", factor, "1 to 8")?;
        require(self.upsample_fn == "nearest", "upsample_fn", &self.upsample_fn, "nearest")?;
        require(self.out_channels == 3, "out_channels", self.out_channels, "3")?;
        let activation = Activation::named(&self.act_fn);
        require(activation.is_some(), "act_fn", &self.act_fn, "relu, silu, swish, mish, gelu")?;
        Ok(activation.expect("just asked. This is a bug in autoencoders."))
    }

    /// What the encoder says besides.
    fn check_encoder(&self) -> Result<()> {
        let stages = &self.num_encoder_blocks;
        require((1..=8).contains(&stages.len()), "num_encoder_blocks", stages, "1 to 8 stages")?;
        alike("encoder_block_out_channels", &self.encoder_block_out_channels, stages)?;
        let is_inverse = 1 << (stages.len() - 1) == self.factor();
        require(is_inverse, "num_encoder_blocks", stages, "as many halvings as the decoder has enlargements")
    }
}

/// The network's convolutions between stages keep the width: others do not exist.
fn alike(key: &'static str, channels: &[usize], stages: &[usize]) -> Result<()> {
    let same = channels.windows(2).all(|pair| pair[0] == pair[1]);
    require(channels.len() == stages.len() && same, key, channels, "one width, as many times as there are stages")
}

/// Three convolutions and what goes round them.
#[derive(Debug)]
struct Block {
    convs: [Conv2d; 3],
    activation: Activation,
}

impl Block {
    fn load(channels: usize, activation: Activation, w: &Weights) -> weights::Result<Self> {
        let conv = |at: usize| Conv2d::load(channels, channels, 3, &w.pp("conv").pp(at));
        Ok(Self { convs: [conv(0)?, conv(2)?, conv(4)?], activation })
    }

    fn forward(&self, mut x: Bands, at_once: usize) -> TensorResult<Bands> {
        let mut out = Bands::default();
        for rows in x.ranges(at_once) {
            let changed = self.rows(&x, rows.clone())?;
            out.push((changed + x.rows(rows.clone())?)?.relu()?)?;
            x.let_go(rows.end.saturating_sub(self.convs.len()));
        }
        Ok(out)
    }

    /// Each convolution sees one row more on either side.
    fn rows(&self, x: &Bands, rows: Range<usize>) -> TensorResult<Tensor> {
        let ([first, second, third], height) = (&self.convs, x.height());
        convolved_rows(third, rows, height, |rows| {
            self.activation.forward(&convolved_rows(second, rows, height, |rows| {
                self.activation.forward(&convolved_rows(first, rows, height, |rows| x.rows(rows))?)
            })?)
        })
    }
}

/// One after the other, numbered as in the file.
#[derive(Debug)]
enum Layer {
    /// A convolution; then an activation where there is one.
    Conv(Conv2d, Option<Activation>),
    Block(Block),
    /// Each pixel repeated so many times both ways, then a convolution.
    Enlarge(usize, Conv2d),
    /// A convolution with stride 2.
    Halve(Conv2d),
}

impl Layer {
    fn forward(&self, x: Bands, at_once: usize) -> TensorResult<Bands> {
        match self {
            Self::Conv(conv, None) => x.convolved(conv, at_once, |x| Ok(x.clone())),
            Self::Conv(conv, Some(activation)) => {
                x.convolved(conv, at_once, |x| Ok(x.clone()))?.mapped(|x| activation.forward(x))
            }
            Self::Block(block) => block.forward(x, at_once),
            Self::Enlarge(factor, conv) => x.upsampled(conv, *factor, at_once),
            Self::Halve(conv) => x.halved(conv, at_once),
        }
    }
}

/// The half that gives pictures.
#[derive(Debug)]
pub struct TinyDecoder {
    config: AutoencoderTinyConfig,
    layers: Vec<Layer>,
    at_once: usize,
}

impl TinyDecoder {
    /// Reads `decoder` alone.
    pub fn load(config: AutoencoderTinyConfig, w: &Weights) -> Result<Self> {
        let activation = config.check_decoder()?;
        let (w, channels) = (w.pp("decoder.layers"), config.decoder_block_out_channels[0]);
        let first = Conv2d::load(config.latent_channels, channels, 3, &w.pp(0))?;
        let mut layers = vec![Layer::Conv(first, Some(activation))];
        // The activation after the first convolution has a number too.
        let mut at = 2;
        for (stage, blocks) in config.num_decoder_blocks.iter().enumerate() {
            for _ in 0..*blocks {
                layers.push(Layer::Block(Block::load(channels, activation, &w.pp(at))?));
                at += 1;
            }
            if stage + 1 == config.num_decoder_blocks.len() {
                layers.push(Layer::Conv(Conv2d::load(channels, config.out_channels, 3, &w.pp(at))?, None));
            } else {
                let conv = Conv2d::load_no_bias(channels, channels, 3, (1, 1), &w.pp(at + 1))?;
                layers.push(Layer::Enlarge(config.upsampling_scaling_factor, conv));
                at += 2;
            }
        }
        Ok(Self { config, layers, at_once: super::numbers_at_once(w.device()) })
    }

    /// What it was built from.
    pub fn config(&self) -> &AutoencoderTinyConfig {
        &self.config
    }

    /// latents: (N, latent_channels, h, w) f32, unscaled -> (N, 3, h * factor, w * factor) f32, about [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let held = ((latents / LARGEST_LATENT)?.tanh()? * LARGEST_LATENT)?;
        // It was trained on pictures in [0, 1].
        Ok(((through(&self.layers, &held, self.at_once)? * 2.0)? - 1.0)?)
    }
}

/// Both halves.
#[derive(Debug)]
pub struct AutoencoderTiny {
    encoder: Vec<Layer>,
    decoder: TinyDecoder,
}

impl AutoencoderTiny {
    /// Reads every tensor the configuration names.
    pub fn load(config: AutoencoderTinyConfig, w: &Weights) -> Result<Self> {
        let activation = config.check_decoder()?;
        config.check_encoder()?;
        let (layers, channels) = (w.pp("encoder.layers"), config.encoder_block_out_channels[0]);
        let mut encoder = vec![Layer::Conv(Conv2d::load(config.in_channels, channels, 3, &layers.pp(0))?, None)];
        for (stage, blocks) in config.num_encoder_blocks.iter().enumerate() {
            if stage > 0 {
                let conv = Conv2d::load_no_bias(channels, channels, 3, (2, 1), &layers.pp(encoder.len()))?;
                encoder.push(Layer::Halve(conv));
            }
            for _ in 0..*blocks {
                encoder.push(Layer::Block(Block::load(channels, activation, &layers.pp(encoder.len()))?));
            }
        }
        let last = Conv2d::load(channels, config.latent_channels, 3, &layers.pp(encoder.len()))?;
        encoder.push(Layer::Conv(last, None));
        Ok(Self { encoder, decoder: TinyDecoder::load(config, w)? })
    }

    /// The same, working on bands of about so many numbers of a map at a time; `usize::MAX`: on whole maps. On a CPU the results
    /// have the same bits.
    #[must_use]
    pub fn with_numbers_at_once(mut self, numbers: usize) -> Self {
        self.decoder.at_once = numbers;
        self
    }

    /// What it was built from.
    pub fn config(&self) -> &AutoencoderTinyConfig {
        self.decoder.config()
    }

    /// picture: (N, 3, H, W) f32 in [-1, 1], H and W multiples of the factor -> unscaled latents (N, latent_channels, h, w).
    pub fn encode(&self, picture: &Tensor) -> Result<Tensor> {
        // It was trained on pictures in [0, 1].
        Ok(through(&self.encoder, &((picture + 1.0)? / 2.0)?, self.decoder.at_once)?)
    }

    /// latents: (N, latent_channels, h, w) f32, unscaled -> (N, 3, h * factor, w * factor) f32, about [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.decode(latents)
    }
}

fn through(layers: &[Layer], x: &Tensor, at_once: usize) -> TensorResult<Tensor> {
    layers.iter().try_fold(Bands::whole(x.clone())?, |x, layer| layer.forward(x, at_once))?.into_whole()
}
