//! What a job's samples start from: noise, or a picture with noise in it, of which a mask may keep a part (diffusers
//! `StableDiffusionImg2ImgPipeline` and `StableDiffusionInpaintPipeline`).
//!
//! The order of the draws is the reference's: for the picture's latents, for the noise, for the masked picture's latents.

use candle_core::{Device, Tensor};

use crate::diffusion::pipelines::{EncodedPicture, Pipeline, Result};
use crate::diffusion::samplers::{Noised, SamplingPlan};
use crate::domain::GenerationRequest;
use crate::images::{Canvas, GrayImage, RgbImage};

/// A job's start, encoded once for all its pictures.
pub(super) struct Start {
    /// Whose latents are noised; none where all is drawn anew.
    picture: Option<EncodedPicture>,
    masked: Option<Masked>,
    noise: InitialNoise,
}

/// What of noise a run begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InitialNoise {
    /// Nothing else. A picture at full strength leaves its traces in the noise, but not where it has a mask.
    Alone,
    /// As much as the latents have at the first level.
    Added,
    /// The picture has its own (`denoising_start`).
    Given,
}

/// How a mask works.
enum Masked {
    /// After every evaluation what is not masked is put back.
    PutBack { mask: Tensor },
    /// The network is shown the mask and the rest of the picture.
    Shown { mask: Tensor, rest: Box<EncodedPicture> },
}

/// How one sample begins.
pub(super) struct Begun {
    /// (1, C, h, w) f32.
    pub latents: Tensor,
    pub kept: Option<Kept>,
    /// (1, 1 + C, h, w) f32: what the network is shown below the latents.
    pub extra_channels: Option<Tensor>,
}

/// The part of a sample that is not drawn.
#[derive(Clone)]
pub(super) struct Kept {
    /// (1, 1, h, w) f32: 1 where it is drawn.
    mask: Tensor,
    /// (1, C, h, w) f32, without noise.
    latents: Tensor,
    /// (1, C, h, w) f32: the noise that the sample began with.
    noise: Tensor,
}

impl Start {
    /// Of a request with this canvas; none where it begins with noise and the network is shown nothing besides.
    pub(super) fn of(
        pipeline: &dyn Pipeline,
        request: &GenerationRequest,
        canvas: Option<&Canvas>,
    ) -> Result<Option<Self>> {
        let is_shown = pipeline.info().inpainting;
        let strength = request.image_inputs().strength();
        let device = pipeline.device();
        let (picture, mask) = match canvas {
            None if !is_shown => return Ok(None),
            // All is masked: the rest is grey.
            None => (None, None),
            Some(canvas) => (Some(pixels(&canvas.picture, device)?), canvas.mask.as_ref()),
        };
        let is_given = picture.is_some() && request.denoising_start().is_some();
        let is_pure_noise = picture.is_none() || ((mask.is_some() || is_shown) && strength == 1.0 && !is_given);
        let noise = match (is_given, is_pure_noise) {
            (true, _) => InitialNoise::Given,
            (_, true) => InitialNoise::Alone,
            _ => InitialNoise::Added,
        };
        let factor = |pixels: u32, latents: usize| pixels as usize / latents;
        let (_, h, w) = pipeline.latent_shape(request.width(), request.height());
        let white = || GrayImage::black(request.width(), request.height()).mapped(|_| 255);
        let masked = if is_shown {
            let mask = mask.cloned().unwrap_or_else(white);
            let rest = match &picture {
                Some(picture) => picture.broadcast_mul(&coverage(&mask, (1, 1), device)?.affine(-1.0, 1.0)?)?,
                None => Tensor::zeros(
                    (1, 3, request.height() as usize, request.width() as usize),
                    candle_core::DType::F32,
                    device,
                )?,
            };
            let mask = coverage(&mask, (factor(request.width(), w), factor(request.height(), h)), device)?;
            Some(Masked::Shown { mask, rest: Box::new(pipeline.encode(&rest)?) })
        } else {
            let put_back = |mask: &GrayImage| {
                coverage(mask, (factor(request.width(), w), factor(request.height(), h)), device)
                    .map(|mask| Masked::PutBack { mask })
            };
            mask.map(put_back).transpose()?
        };
        // A network that is shown the rest needs no latents of the picture when it begins with noise.
        let picture = picture.filter(|_| !(is_shown && is_pure_noise));
        let picture = picture.map(|picture| pipeline.encode(&picture)).transpose()?;
        Ok(Some(Self { picture, masked, noise }))
    }

    /// One sample's beginning, given its own noise: `draw` gives (1, C, h, w) f32.
    pub(super) fn begin(&self, plan: &SamplingPlan, mut draw: impl FnMut() -> Result<Tensor>) -> Result<Begun> {
        let clean = self.picture.as_ref().map(|picture| picture.sample(&mut draw)).transpose()?;
        let (mut kept, mut extra_channels) = (None, None);
        if let (Some(clean), InitialNoise::Given, None) = (&clean, self.noise, &self.masked) {
            return Ok(Begun { latents: clean.clone(), kept, extra_channels });
        }
        let noise = draw()?;
        let latents = match (&clean, self.noise) {
            (Some(clean), InitialNoise::Added) => noised(plan.steps[0].noised, clean, &noise)?,
            (Some(clean), InitialNoise::Given) => clean.clone(),
            _ => (&noise * plan.init_noise_sigma)?,
        };
        match (&self.masked, clean) {
            (Some(Masked::PutBack { mask }), Some(clean)) => {
                // The reference encodes the masked picture for such networks too, and leaves it.
                self.picture.as_ref().map(|picture| picture.sample(&mut draw)).transpose()?;
                kept = Some(Kept { mask: mask.clone(), latents: clean, noise });
            }
            (Some(Masked::Shown { mask, rest }), _) => {
                extra_channels = Some(Tensor::cat(&[mask, &rest.sample(&mut draw)?], 1)?)
            }
            _ => {}
        }
        Ok(Begun { latents, kept, extra_channels })
    }
}

impl Kept {
    /// Of what [`Kept::parts`] gave.
    pub(super) fn of(mask: Tensor, latents: Tensor, noise: Tensor) -> Self {
        Self { mask, latents, noise }
    }

    /// The mask, the latents and the noise.
    pub(super) fn parts(&self) -> [&Tensor; 3] {
        [&self.mask, &self.latents, &self.noise]
    }

    /// As a run keeps it that goes on with these latents, with noise of its own (diffusers' inpainting given latents).
    pub(super) fn within(self, latents: &Tensor, noise: Tensor) -> Self {
        Self { latents: latents.clone(), noise, ..self }
    }

    /// Puts it into the latents, with as much noise as they have; none after the last evaluation.
    pub(super) fn put_back(&self, latents: &Tensor, level: Option<Noised>) -> Result<Tensor> {
        let kept = match level {
            Some(level) => noised(level, &self.latents, &self.noise)?,
            None => self.latents.clone(),
        };
        let drawn = latents.broadcast_mul(&self.mask)?;
        Ok((kept.broadcast_mul(&self.mask.affine(-1.0, 1.0)?)? + drawn)?)
    }
}

pub(super) fn noised(level: Noised, clean: &Tensor, noise: &Tensor) -> Result<Tensor> {
    Ok(((clean * level.signal)? + (noise * level.noise)?)?)
}

/// A picture as (1, 3, H, W) f32 in [-1, 1].
pub(super) fn pixels(picture: &RgbImage, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = picture.pixels().iter().map(|byte| 2.0 * (f32::from(*byte) / 255.0) - 1.0).collect();
    let shape = (1, picture.height() as usize, picture.width() as usize, 3);
    Ok(Tensor::from_vec(values, shape, device)?.permute((0, 3, 1, 2))?.contiguous()?)
}

/// A mask as (1, 1, h, w) f32: 1 where its upper left pixel of each `step` is white (torch's nearest interpolation).
fn coverage(mask: &GrayImage, step: (usize, usize), device: &Device) -> Result<Tensor> {
    let rows = mask.pixels().chunks_exact(mask.width() as usize).step_by(step.1);
    let values: Vec<f32> =
        rows.flat_map(|row| row.iter().step_by(step.0)).map(|byte| f32::from(*byte) / 255.0).collect();
    let width = (mask.width() as usize).div_ceil(step.0);
    let height = values.len() / width;
    Ok(Tensor::from_vec(values, (1, 1, height, width), device)?)
}
