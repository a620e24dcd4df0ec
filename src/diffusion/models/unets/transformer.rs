//! Spatial transformer: every pixel looks at every other and at the text (diffusers `Transformer2DModel`).

use candle_core::{Result, Tensor};

use super::config::Level;
use crate::diffusion::models;
use crate::diffusion::models::adapters::{LayerMut, Visit};
use crate::diffusion::models::layers::{Conv2d, CrossAttention, GroupNorm, LayerNorm, Linear, geglu, transposed};
use crate::diffusion::weights::{self, Weights};

/// `BasicTransformerBlock` and `Transformer2DModel` fix these two, whatever the network's `norm_eps` is.
const LAYER_NORM_EPS: f64 = 1e-5;
const GROUP_NORM_EPS: f64 = 1e-6;

#[derive(Clone, Debug)]
enum Projection {
    Conv(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn layer(&mut self) -> LayerMut<'_> {
        match self {
            Self::Conv(conv) => LayerMut::Conv2d(conv),
            Self::Linear(linear) => LayerMut::Linear(linear),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Transformer2D {
    norm: GroupNorm,
    proj_in: Projection,
    blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

impl Transformer2D {
    /// Of so many layers, at this level.
    pub(super) fn load(
        (level, layers): (&Level, usize),
        groups: usize,
        linear: bool,
        w: &Weights,
    ) -> weights::Result<Self> {
        let c = level.channels;
        let project = |name: &str| -> weights::Result<Projection> {
            let w = w.pp(name);
            Ok(if linear {
                Projection::Linear(Linear::load(c, c, &w)?)
            } else {
                Projection::Conv(Conv2d::load(c, c, 1, &w)?)
            })
        };
        Ok(Self {
            norm: GroupNorm::load(groups, c, GROUP_NORM_EPS, &w.pp("norm"))?,
            proj_in: project("proj_in")?,
            blocks: (0..layers)
                .map(|k| TransformerBlock::load(level, &w.pp("transformer_blocks").pp(k)))
                .collect::<weights::Result<_>>()?,
            proj_out: project("proj_out")?,
        })
    }

    /// Shows each layer that adapters may change.
    pub(super) fn each_layer(&mut self, visit: Visit<'_>) -> models::Result<()> {
        visit(self.proj_in.layer())?;
        self.blocks.iter_mut().try_for_each(|block| block.each_layer(visit))?;
        visit(self.proj_out.layer())
    }

    /// x: (N, C, H, W), context: (N, T, width) -> (N, C, H, W).
    pub(super) fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let to_tokens = |x: &Tensor| transposed(&x.reshape((n, c, h * w))?);
        let to_map = |x: &Tensor| transposed(x)?.reshape((n, c, h, w));
        let normed = self.norm.forward(x)?;
        let mut tokens = match &self.proj_in {
            Projection::Conv(conv) => to_tokens(&conv.forward(&normed)?)?,
            Projection::Linear(linear) => linear.forward(&to_tokens(&normed)?)?,
        };
        for block in &self.blocks {
            tokens = block.forward(&tokens, context)?;
        }
        match &self.proj_out {
            Projection::Conv(conv) => conv.forward_added(&to_map(&tokens)?, x),
            Projection::Linear(linear) => to_map(&linear.forward(&tokens)?)? + x,
        }
    }
}

#[derive(Clone, Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: CrossAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    /// GEGLU (Shazeer 2020): value and gate in one product.
    ff_in: Linear,
    ff_out: Linear,
}

impl TransformerBlock {
    fn load(level: &Level, w: &Weights) -> weights::Result<Self> {
        let (c, heads) = (level.channels, level.heads);
        let norm = |name: &str| LayerNorm::load(c, LAYER_NORM_EPS, &w.pp(name));
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: CrossAttention::load(c, c, heads, &w.pp("attn1"))?,
            norm2: norm("norm2")?,
            attn2: CrossAttention::load(c, level.context, heads, &w.pp("attn2"))?,
            norm3: norm("norm3")?,
            ff_in: Linear::load(c, 8 * c, &w.pp("ff.net.0.proj"))?,
            ff_out: Linear::load(4 * c, c, &w.pp("ff.net.2"))?,
        })
    }

    fn each_layer(&mut self, visit: Visit<'_>) -> models::Result<()> {
        self.attn1.each_layer(visit)?;
        self.attn2.each_layer(visit)?;
        visit(LayerMut::Linear(&mut self.ff_in))?;
        visit(LayerMut::Linear(&mut self.ff_out))
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let x = self.attn1.forward_added(&normed, &normed, x)?;
        let x = self.attn2.forward_added(&self.norm2.forward(&x)?, context, &x)?;
        let both = self.ff_in.forward(&self.norm3.forward(&x)?)?;
        self.ff_out.forward_added(&geglu(&both)?, &x)
    }
}
