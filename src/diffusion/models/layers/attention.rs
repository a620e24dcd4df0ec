//! The two shapes in which scaled dot-product attention comes.

use candle_core::{Result, Tensor};

use super::Linear;
use crate::diffusion::kernels::{scaled_dot_product, transposed};
use crate::diffusion::models;
use crate::diffusion::models::adapters::{LayerMut, Visit};
use crate::diffusion::weights::{self, Weights};

/// Attention of a transformer block: of a sequence to itself or to the text.
#[derive(Clone, Debug)]
pub struct CrossAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl CrossAttention {
    /// Reads `to_q`, `to_k`, `to_v` (no biases) and `to_out.0`; keys and values come from `context` wide vectors.
    pub fn load(width: usize, context: usize, heads: usize, w: &Weights) -> weights::Result<Self> {
        Ok(Self {
            to_q: Linear::load_no_bias(width, width, &w.pp("to_q"))?,
            to_k: Linear::load_no_bias(context, width, &w.pp("to_k"))?,
            to_v: Linear::load_no_bias(context, width, &w.pp("to_v"))?,
            to_out: Linear::load(width, width, &w.pp("to_out.0"))?,
            heads,
        })
    }

    /// Shows each layer that adapters may change.
    pub(in crate::diffusion::models) fn each_layer(&mut self, visit: Visit<'_>) -> models::Result<()> {
        [&mut self.to_q, &mut self.to_k, &mut self.to_v, &mut self.to_out]
            .into_iter()
            .try_for_each(|linear| visit(LayerMut::Linear(linear)))
    }

    /// x and `other`: (N, L, width), context: (N, T, context) -> (N, L, width), to which `other` is added.
    pub fn forward_added(&self, x: &Tensor, context: &Tensor, other: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(context)?, self.to_v.forward(context)?);
        self.to_out.forward_added(&scaled_dot_product(&q, &k, &v, self.heads, None)?, other)
    }
}

/// The autoencoder's attention over all pixels of a (N, C, H, W) map: one head, with a norm before and the input added.
#[derive(Debug)]
pub struct Attention {
    norm: super::GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    /// Reads `group_norm`, `to_q`, `to_k`, `to_v`, `to_out.0`, or their names in older checkpoints (`query`, `key`,
    /// `value`, `proj_attn`).
    pub fn load(channels: usize, groups: usize, eps: f64, w: &Weights) -> weights::Result<Self> {
        let old = w.contains("query.weight");
        let linear = |new: &str, was: &str| Linear::load(channels, channels, &w.pp(if old { was } else { new }));
        Ok(Self {
            norm: super::GroupNorm::load(groups, channels, eps, &w.pp("group_norm"))?,
            to_q: linear("to_q", "query")?,
            to_k: linear("to_k", "key")?,
            to_v: linear("to_v", "value")?,
            to_out: linear("to_out.0", "proj_attn")?,
        })
    }

    /// x: (N, C, H, W) -> the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let tokens = transposed(&self.norm.forward(x)?.reshape((n, c, h * w))?)?;
        let (q, k, v) = (self.to_q.forward(&tokens)?, self.to_k.forward(&tokens)?, self.to_v.forward(&tokens)?);
        let out = self.to_out.forward(&scaled_dot_product(&q, &k, &v, 1, None)?)?;
        transposed(&out)?.reshape((n, c, h, w))? + x
    }
}
