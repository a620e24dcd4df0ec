//! Between latents and pictures: the autoencoder with its scaling, and the linear map for previews.

use candle_core::Tensor;

use super::card::ModelCard;
use super::components::Components;
use super::{Error, Result};
use crate::diffusion::models::autoencoders::{AutoencoderKl, AutoencoderKlConfig, Posterior};
use crate::diffusion::models::unets::UNet2DConditionModel;
use crate::diffusion::weights::Checkpoint;
use crate::domain::{LatentRgb, LatentSpace};
use crate::images::RgbImage;

/// What a network is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The latents alone.
    Latents,
    /// Below them the mask and the latents of the masked picture (inpainting checkpoints).
    Masked,
}

/// What one checkpoint's latents are and how they become pictures. The autoencoder computes in f32, whatever its weights
/// are stored as: what `force_upcast` asks for.
#[derive(Debug)]
pub(super) struct LatentFormat {
    vae: AutoencoderKl,
    rgb: Option<LatentRgb>,
}

impl LatentFormat {
    /// Reads `vae` of the checkpoint.
    pub(super) fn load(checkpoint: &Checkpoint, card: &ModelCard, device: &candle_core::Device) -> Result<Self> {
        let config: AutoencoderKlConfig = checkpoint.json("vae/config.json")?;
        let weights = checkpoint.weights("vae", device)?;
        let vae = AutoencoderKl::load(config, &weights)
            .map_err(|source| Error::Network { file: checkpoint.describe("vae"), source: Box::new(source) })?;
        let rgb = match (&card.latent_rgb_factors, card.latent_rgb_bias) {
            (Some(factors), Some(bias)) if factors.len() == vae.config().latent_channels() => {
                Some(LatentRgb { factors: factors.clone(), bias })
            }
            _ => None,
        };
        Ok(Self { vae, rgb })
    }

    /// Whether the network takes and gives such latents, and whether it is shown a mask and the masked picture besides.
    pub(super) fn fits(&self, components: &Components<'_>, unet: &UNet2DConditionModel) -> Result<Shown> {
        let made = self.channels();
        let (taken, given) = (unet.config().in_channels(), unet.config().out_channels());
        match taken {
            _ if given != made => {
                let reason = format!("out_channels is {given}, the autoencoder's latents have {made}");
                components.fault("unet/config.json", reason)
            }
            taken if taken == made => Ok(Shown::Latents),
            taken if taken == 2 * made + 1 => Ok(Shown::Masked),
            _ => {
                let reason = format!(
                    "in_channels is {taken}; the autoencoder's latents have {made}, with a mask and a masked picture {}",
                    2 * made + 1
                );
                components.fault("unet/config.json", reason)
            }
        }
    }

    /// Channels of the latents.
    pub(super) fn channels(&self) -> usize {
        self.vae.config().latent_channels()
    }

    /// Picture pixels a latent pixel, each way.
    pub(super) fn factor(&self) -> u32 {
        self.vae.config().factor() as u32
    }

    /// What they are, for people and for models that go on with them.
    pub(super) fn space(&self) -> LatentSpace {
        let scaling_factor = self.vae.config().scaling_factor();
        LatentSpace { channels: self.channels() as u32, factor: self.factor(), scaling_factor }
    }

    /// (C, h, w) for pictures of this size in pixels.
    pub(super) fn shape(&self, width: u32, height: u32) -> (usize, usize, usize) {
        let factor = self.vae.config().factor();
        (self.channels(), height as usize / factor, width as usize / factor)
    }

    /// A picture (1, 3, H, W) f32 in [-1, 1] to the distribution of its latents.
    pub(super) fn encode(&self, picture: &Tensor) -> Result<EncodedPicture> {
        Ok(EncodedPicture { posterior: self.vae.encode(picture)?, config: self.vae.config().clone() })
    }

    /// Latents (1, C, h, w) to their picture.
    pub(super) fn decode(&self, latents: &Tensor) -> Result<RgbImage> {
        let unscaled = self.vae.config().unscaled(latents)?;
        // [-1, 1] to [0, 1] as diffusers' `VaeImageProcessor` does.
        let picture = ((self.vae.decode(&unscaled)? * 0.5)? + 0.5)?;
        to_rgb(&picture)
    }

    /// A small picture by a linear map, where the model's card has one.
    pub(super) fn preview(&self, latents: &Tensor) -> Result<Option<RgbImage>> {
        let Some(LatentRgb { factors, bias }) = &self.rgb else { return Ok(None) };
        let (_, channels, h, w) = latents.dims4()?;
        let factors: Vec<f32> = factors.iter().flatten().copied().collect();
        let factors = Tensor::from_vec(factors, (channels, 3), latents.device())?.t()?.contiguous()?;
        let bias = Tensor::from_slice(bias, (3, 1), latents.device())?;
        let picture = factors.matmul(&latents.reshape((channels, h * w))?)?.broadcast_add(&bias)?;
        Ok(Some(to_rgb(&picture.reshape((1, 3, h, w))?)?))
    }
}

/// A picture as the autoencoder sees it: a distribution of latents, from which each picture made of it has its own draw.
#[derive(Clone, Debug)]
pub struct EncodedPicture {
    posterior: Posterior,
    config: AutoencoderKlConfig,
}

impl EncodedPicture {
    /// Latents (1, C, h, w) as samplers take them, by standard normal noise of that shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok(self.config.scaled(&self.posterior.sample(noise)?)?)
    }
}

/// (1, 3, H, W) f32 in [0, 1], clamped, to 8 bits, rounding half to even as numpy does.
fn to_rgb(picture: &Tensor) -> Result<RgbImage> {
    let (_, _, h, w) = picture.dims4()?;
    let values: Vec<f32> = picture.squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1()?;
    let pixels = values.into_iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
    Ok(RgbImage::from_pixels(w as u32, h as u32, pixels).expect("three bytes a pixel. This is a bug in pipelines."))
}
