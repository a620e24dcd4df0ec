//! What every residual block is told: the timestep's embedding and what is added to it.

use candle_core::{D, DType, Tensor};

use super::config::UNet2DConditionConfig;
use super::unet_2d_condition::UNetInputs;
use crate::diffusion::models::adapters::{LayerMut, Visit};
use crate::diffusion::models::layers::{Activation, Linear, guidance_embedding, timestep_embedding};
use crate::diffusion::models::{Error, Result};
use crate::diffusion::weights::{self, Weights};

/// Two products with an activation between them (diffusers `TimestepEmbedding`).
#[derive(Clone, Debug)]
struct Projection {
    linear_1: Linear,
    linear_2: Linear,
}

impl Projection {
    fn load(inputs: usize, outputs: usize, w: &Weights) -> weights::Result<Self> {
        Ok(Self {
            linear_1: Linear::load(inputs, outputs, &w.pp("linear_1"))?,
            linear_2: Linear::load(outputs, outputs, &w.pp("linear_2"))?,
        })
    }

    fn each_layer(&mut self, visit: Visit<'_>) -> Result<()> {
        visit(LayerMut::Linear(&mut self.linear_1))?;
        visit(LayerMut::Linear(&mut self.linear_2))
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.linear_2.forward(&Activation::Silu.forward(&self.linear_1.forward(x)?)?)
    }
}

/// Of the timestep; of the guidance scale and of sizes and pooled prompt where the network takes them.
#[derive(Clone, Debug)]
pub(super) struct TimeEmbedding {
    time: Projection,
    guidance: Option<Linear>,
    added: Option<Projection>,
    dtype: DType,
}

impl TimeEmbedding {
    pub(super) fn load(config: &UNet2DConditionConfig, w: &Weights) -> weights::Result<Self> {
        let (first, width) = (config.levels[0].channels, config.time_width);
        let guidance = |inputs| Linear::load_no_bias(inputs, first, &w.pp("time_embedding.cond_proj"));
        let added = |inputs| Projection::load(inputs, width, &w.pp("add_embedding"));
        Ok(Self {
            time: Projection::load(first, width, &w.pp("time_embedding"))?,
            guidance: config.guidance_width.map(guidance).transpose()?,
            added: config.added.map(|added_to| added(added_to.inputs)).transpose()?,
            dtype: w.dtype(),
        })
    }

    /// Shows each layer that adapters may change.
    pub(super) fn each_layer(&mut self, visit: Visit<'_>) -> Result<()> {
        self.guidance.iter_mut().try_for_each(|linear| visit(LayerMut::Linear(linear)))?;
        self.time.each_layer(visit)?;
        self.added.iter_mut().try_for_each(|projection| projection.each_layer(visit))
    }

    /// (N, time_width) in the network's dtype, after the activation with which every block would begin. Sines and cosines are
    /// computed in f32: a timestep of 999 has no neighbours in half precision.
    pub(super) fn forward(&self, config: &UNet2DConditionConfig, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        let device = inputs.latents.device();
        let sinusoids = |values: &[f64], width| {
            timestep_embedding(values, width, config.flip_sin_to_cos, config.freq_shift, device)?.to_dtype(self.dtype)
        };
        let mut time = sinusoids(inputs.timesteps, config.levels[0].channels)?;
        if let (Some(linear), Some(width)) = (&self.guidance, config.guidance_width) {
            let scales = inputs.guidance_scales.ok_or_else(|| missing("guidance_scales"))?;
            time = (time + linear.forward(&guidance_embedding(scales, width, device)?.to_dtype(self.dtype)?)?)?;
        }
        let mut time = self.time.forward(&time)?;
        if let (Some(projection), Some(added)) = (&self.added, config.added) {
            let (pooled, time_ids) = inputs.added.ok_or_else(|| missing("added"))?;
            let rows = pooled.dim(0)?;
            let sizes = sinusoids(&time_ids.concat(), added.time_ids_width)?.reshape((rows, ()))?;
            time = (time + projection.forward(&Tensor::cat(&[&pooled.to_dtype(self.dtype)?, &sizes], D::Minus1)?)?)?;
        }
        Ok(Activation::Silu.forward(&time)?)
    }
}

fn missing(input: &str) -> Error {
    Error::Tensor(candle_core::Error::Msg(format!("the network's configuration asks for `{input}`")))
}
