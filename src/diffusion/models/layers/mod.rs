//! The primitives networks are made of: the only place that calls the tensor library's convolution, product, attention,
//! norm and activation.

mod attention;
mod conv;
mod linear;
mod norm;
mod time;

pub use attention::{Attention, CrossAttention};
pub use conv::{Conv2d, upsample_nearest};
pub use linear::{Embedding, Linear};
pub use norm::{GroupNorm, LayerNorm};
pub use time::{guidance_embedding, timestep_embedding};

use candle_core::{Result, Tensor};

pub use crate::diffusion::kernels::{geglu, scaled_dot_product, transposed};

/// An activation function by its name in config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x * sigmoid(x).
    #[serde(alias = "swish")]
    Silu,
    /// x * Phi(x), exact (by erf), as PyTorch's default.
    Gelu,
    /// x * sigmoid(1.702 x), as OpenAI's CLIP.
    QuickGelu,
}

impl Activation {
    /// Element-wise.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            // candle's `gelu` is the tanh approximation.
            Self::Gelu => x.gelu_erf(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
        }
    }
}
