//! Between latents and pictures: the autoencoder with its scaling, and what makes previews.

use candle_core::Tensor;
use serde_json::Value;

use super::Result;
use super::card::ModelCard;
use super::components::Components;
use crate::diffusion::models::Result as ModelResult;
use crate::diffusion::models::autoencoders::{
    AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig, Posterior, TinyDecoder,
};
use crate::diffusion::models::unets::UNet2DConditionConfig;
use crate::domain::{LatentRgb, LatentSpace};
use crate::images::{Filter, RgbImage};

/// What a network is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The latents alone.
    Latents,
    /// Below them the mask and the latents of the masked picture (inpainting checkpoints).
    Masked,
}

/// What one checkpoint's latents are and how they become pictures.
#[derive(Debug)]
pub(super) struct LatentFormat {
    vae: Vae,
    /// For previews, where the checkpoint has one besides.
    tiny: Option<TinyDecoder>,
    rgb: Option<LatentRgb>,
    space: LatentSpace,
}

/// The autoencoder, by its configuration's class.
#[derive(Debug)]
enum Vae {
    Kl(Box<AutoencoderKl>),
    Tiny(Box<AutoencoderTiny>),
}

/// What the autoencoder is built from.
#[derive(Debug)]
pub(super) enum VaeConfig {
    Kl(Box<AutoencoderKlConfig>),
    Tiny(AutoencoderTinyConfig),
}

/// Of all autoencoders that a checkpoint has.
#[derive(Debug)]
pub(super) struct VaeConfigs {
    pub vae: VaeConfig,
    /// For previews.
    pub tiny: Option<AutoencoderTinyConfig>,
}

impl VaeConfigs {
    /// The latents that its networks share.
    pub(super) fn space(&self) -> LatentSpace {
        self.vae.space()
    }

    /// The folders that they stand in.
    pub(super) fn parts(&self) -> &'static [&'static str] {
        if self.tiny.is_some() { &["vae", "vae_tiny"] } else { &["vae"] }
    }
}

/// Previews are at most so large, in pixels.
const PREVIEW_SIDE: u32 = 512;

impl LatentFormat {
    /// Reads `vae` of the checkpoint, and `vae_tiny` where there is one.
    pub(super) fn load(components: &Components<'_>, card: &ModelCard) -> Result<Self> {
        let configs = components.vae_configs()?;
        let (space, weights) = (configs.space(), components.autoencoder_weights("vae")?);
        let vae = match configs.vae {
            VaeConfig::Kl(config) => AutoencoderKl::load(*config, &weights).map(|vae| Vae::Kl(Box::new(vae))),
            VaeConfig::Tiny(config) => AutoencoderTiny::load(config, &weights).map(|vae| Vae::Tiny(Box::new(vae))),
        };
        let vae = vae.map_err(components.within("vae"))?;
        let tiny = match configs.tiny {
            Some(config) => {
                let tiny = TinyDecoder::load(config, &components.autoencoder_weights("vae_tiny")?);
                Some(tiny.map_err(components.within("vae_tiny"))?)
            }
            None => None,
        };
        let rgb = match (&card.latent_rgb_factors, card.latent_rgb_bias) {
            (Some(factors), Some(bias)) if factors.len() == space.channels as usize => {
                Some(LatentRgb { factors: factors.clone(), bias })
            }
            _ => None,
        };
        Ok(Self { vae, tiny, rgb, space })
    }

    /// What they are, for people and for models that go on with them.
    pub(super) fn space(&self) -> LatentSpace {
        self.space
    }

    /// (C, h, w) for pictures of this size in pixels.
    pub(super) fn shape(&self, width: u32, height: u32) -> (usize, usize, usize) {
        let LatentSpace { channels, factor, .. } = self.space;
        (channels as usize, (height / factor) as usize, (width / factor) as usize)
    }

    /// A picture (1, 3, H, W) f32 in [-1, 1] to its latents, or to their distribution.
    pub(super) fn encode(&self, picture: &Tensor) -> Result<EncodedPicture> {
        Ok(match &self.vae {
            Vae::Kl(vae) => EncodedPicture::Distribution(vae.encode(picture)?, Box::new(vae.config().clone())),
            Vae::Tiny(vae) => EncodedPicture::Latents(vae.config().scaled(&vae.encode(picture)?)?),
        })
    }

    /// Latents (1, C, h, w) to their picture.
    pub(super) fn decode(&self, latents: &Tensor) -> Result<RgbImage> {
        let picture = match &self.vae {
            Vae::Kl(vae) => vae.decode(&vae.config().unscaled(latents)?)?,
            Vae::Tiny(vae) => vae.decode(&vae.config().unscaled(latents)?)?,
        };
        to_rgb(&zero_to_one(&picture)?)
    }

    /// A small picture of how latents (1, C, h, w) look: by a tiny autoencoder, or by a linear map, where the model has one.
    pub(super) fn preview(&self, latents: &Tensor) -> Result<Option<RgbImage>> {
        let picture = match (&self.tiny, &self.vae) {
            (Some(tiny), _) => tiny.decode(&tiny.config().unscaled(latents)?)?,
            (None, Vae::Tiny(vae)) => vae.decode(&vae.config().unscaled(latents)?)?,
            (None, Vae::Kl(_)) => return self.rgb.as_ref().map(|map| linear(map, latents)).transpose(),
        };
        let picture = to_rgb(&zero_to_one(&picture)?)?;
        let (width, height) = (picture.width(), picture.height());
        let longer = width.max(height);
        if longer <= PREVIEW_SIDE {
            return Ok(Some(picture));
        }
        let side = |pixels: u32| (pixels * PREVIEW_SIDE / longer).max(1);
        Ok(Some(picture.resized(side(width), side(height), Filter::Lanczos)))
    }
}

impl VaeConfig {
    /// By its class: an autoencoder that says none is diffusers' usual one.
    pub(super) fn parse(json: Value) -> serde_json::Result<Self> {
        Ok(if json["_class_name"] == "AutoencoderTiny" {
            Self::Tiny(serde_json::from_value(json)?)
        } else {
            Self::Kl(Box::new(serde_json::from_value(json)?))
        })
    }

    /// Whether its network can honour it.
    pub(super) fn check(&self) -> ModelResult<()> {
        match self {
            Self::Kl(config) => config.check(),
            Self::Tiny(config) => config.check(),
        }
    }

    /// What latents it makes; it has been checked.
    pub(super) fn space(&self) -> LatentSpace {
        let (channels, factor, scaling_factor) = match self {
            Self::Kl(config) => (config.latent_channels(), config.factor(), config.scaling_factor()),
            Self::Tiny(config) => (config.latent_channels(), config.factor(), config.scaling_factor()),
        };
        LatentSpace { channels: channels as u32, factor: factor as u32, scaling_factor }
    }
}

/// Whether the network takes and gives such latents, and whether it is shown a mask and the masked picture besides.
pub(super) fn shown(components: &Components<'_>, latents: &LatentSpace, unet: &UNet2DConditionConfig) -> Result<Shown> {
    let made = latents.channels as usize;
    match (unet.in_channels(), unet.out_channels()) {
        (_, given) if given != made => {
            let reason = format!("out_channels is {given}, the autoencoder's latents have {made}");
            components.fault("unet/config.json", reason)
        }
        (taken, _) if taken == made => Ok(Shown::Latents),
        (taken, _) if taken == 2 * made + 1 => Ok(Shown::Masked),
        (taken, _) => {
            let reason = format!(
                "in_channels is {taken}; the autoencoder's latents have {made}, with a mask and a masked picture {}",
                2 * made + 1
            );
            components.fault("unet/config.json", reason)
        }
    }
}

/// A picture as the autoencoder sees it.
#[derive(Clone, Debug)]
pub enum EncodedPicture {
    /// From which each picture made of it has its own draw.
    Distribution(Posterior, Box<AutoencoderKlConfig>),
    /// Of an autoencoder without a distribution: (1, C, h, w), as samplers take them.
    Latents(Tensor),
}

impl EncodedPicture {
    /// Latents (1, C, h, w) as samplers take them; `draw` gives standard normal noise of that shape, and is not asked where
    /// nothing is drawn.
    pub fn sample(&self, draw: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        match self {
            Self::Distribution(posterior, config) => Ok(config.scaled(&posterior.sample(&draw()?)?)?),
            Self::Latents(latents) => Ok(latents.clone()),
        }
    }
}

/// One pixel a latent pixel.
fn linear(LatentRgb { factors, bias }: &LatentRgb, latents: &Tensor) -> Result<RgbImage> {
    let (_, channels, h, w) = latents.dims4()?;
    let factors: Vec<f32> = factors.iter().flatten().copied().collect();
    let factors = Tensor::from_vec(factors, (channels, 3), latents.device())?.t()?.contiguous()?;
    let bias = Tensor::from_slice(bias, (3, 1), latents.device())?;
    let picture = factors.matmul(&latents.reshape((channels, h * w))?)?.broadcast_add(&bias)?;
    to_rgb(&picture.reshape((1, 3, h, w))?)
}

/// [-1, 1] to [0, 1] as diffusers' `VaeImageProcessor` does.
fn zero_to_one(picture: &Tensor) -> Result<Tensor> {
    Ok(((picture * 0.5)? + 0.5)?)
}

/// (1, 3, H, W) f32 in [0, 1], clamped, to 8 bits, rounding half to even as numpy does.
fn to_rgb(picture: &Tensor) -> Result<RgbImage> {
    let (_, _, h, w) = picture.dims4()?;
    let values: Vec<f32> = picture.squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1()?;
    let pixels = values.into_iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
    Ok(RgbImage::from_pixels(w as u32, h as u32, pixels).expect("three bytes a pixel. This is a bug in pipelines."))
}
