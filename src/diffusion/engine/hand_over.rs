//! How a pass takes over the latents of the one before: enlarged and noised anew (A1111's "hires fix"; diffusers'
//! image-to-image given latents, or given the enlarged picture), or as they are (a refiner).

use candle_core::{DType, Tensor};

use super::start::{Begun, Kept, noised, pixels};
use crate::diffusion::pipelines::{Pipeline, Result};
use crate::diffusion::samplers::Noised;
use crate::domain::Upscaler;
use crate::images::{Filter, RgbImage};

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum HandOver {
    /// The first pass was finished; the second begins with a larger picture.
    Enlarged {
        upscaler: Upscaler,
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
    },
    /// The first pass ended where the second begins.
    AsTheyAre,
}

impl HandOver {
    /// Whether the autoencoder runs for it.
    pub(super) fn takes_long(self) -> bool {
        matches!(self, Self::Enlarged { upscaler: Upscaler::Lanczos, .. })
    }

    /// How the next pass begins, of latents (1, C, h, w) f32 and what was kept of a picture. `level` is that of its first
    /// evaluation; `draw` gives normals of its shape.
    pub(super) fn begin(
        self,
        (latents, kept): (Tensor, Option<Kept>),
        level: Noised,
        pipeline: &dyn Pipeline,
        mut draw: impl FnMut() -> Result<Tensor>,
    ) -> Result<Begun> {
        match self {
            Self::Enlarged { upscaler, width, height } => {
                let clean = enlarged(&latents, upscaler, (width, height), pipeline, &mut draw)?;
                Ok(Begun { latents: noised(level, &clean, &draw()?)?, kept: None, extra_channels: None })
            }
            Self::AsTheyAre => {
                let go_on = |kept: Kept| -> Result<Kept> { Ok(kept.within(&latents, draw()?)) };
                let kept = kept.map(go_on).transpose()?;
                Ok(Begun { latents, kept, extra_channels: None })
            }
        }
    }
}

/// latents: (1, C, h, w) f32 of a finished pass; (1, C, h', w') f32 without noise. `draw` gives normals of the larger shape.
fn enlarged(
    latents: &Tensor,
    upscaler: Upscaler,
    (width, height): (u32, u32),
    pipeline: &dyn Pipeline,
    draw: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    match upscaler {
        Upscaler::Latent => {
            let (_, h, w) = pipeline.latent_shape(width, height);
            bilinear(latents, h, w)
        }
        Upscaler::Lanczos => {
            let picture: RgbImage = pipeline.decode(latents)?;
            let picture = picture.resized(width, height, Filter::Lanczos);
            pipeline.encode(&pixels(&picture, latents.device())?)?.sample(draw)
        }
    }
}

/// torch's `interpolate(mode="bilinear", align_corners=False)`, in f32 on the host: some thousand numbers, once a picture.
fn bilinear(latents: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (_, channels, own_h, own_w) = latents.dims4()?;
    let values: Vec<f32> = latents.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let (rows, columns) = (weights(own_h, h), weights(own_w, w));
    let mut out = Vec::with_capacity(channels * h * w);
    for plane in values.chunks_exact(own_h * own_w) {
        for (top, bottom, down) in &rows {
            for (left, right, across) in &columns {
                let at = |row: usize, column: usize| plane[row * own_w + column];
                let upper = at(*top, *left) * (1.0 - across) + at(*top, *right) * across;
                let lower = at(*bottom, *left) * (1.0 - across) + at(*bottom, *right) * across;
                out.push(upper * (1.0 - down) + lower * down);
            }
        }
    }
    Ok(Tensor::from_vec(out, (1, channels, h, w), latents.device())?)
}

/// For each new place its two neighbours and the share of the second.
fn weights(own: usize, new: usize) -> Vec<(usize, usize, f32)> {
    let scale = own as f32 / new as f32;
    let weight = |at: usize| {
        let exact = ((at as f32 + 0.5) * scale - 0.5).max(0.0);
        let first = (exact as usize).min(own - 1);
        (first, (first + 1).min(own - 1), exact - first as f32)
    };
    (0..new).map(weight).collect()
}
