//! The primitives networks are made of: the only place that calls the tensor library's convolution, product, attention,
//! norm and activation.

mod attention;
mod bands;
mod conv;
mod linear;
mod norm;
mod time;

pub use attention::{Attention, CrossAttention};
pub use bands::{Bands, convolved_rows};
pub(super) use conv::Window;
pub use conv::{Conv2d, upsample_nearest};
pub use linear::{Embedding, Linear, Sides};
pub use norm::{GroupNorm, LayerNorm};
pub use time::{guidance_embedding, timestep_embedding};

use candle_core::{Result, Tensor};

pub use crate::diffusion::kernels::{geglu, scaled_dot_product, transposed, with_offsets};

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
    /// max(x, 0).
    Relu,
    /// x * tanh(ln(1 + e^x)).
    Mish,
}

impl Activation {
    /// By the names of diffusers' `get_activation`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" => Some(Self::Gelu),
            "relu" => Some(Self::Relu),
            "mish" => Some(Self::Mish),
            _ => None,
        }
    }

    /// Element-wise.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            // candle's `gelu` is the tanh approximation.
            Self::Gelu => x.gelu_erf(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
            Self::Relu => x.relu(),
            // ln(1 + e^x) without an overflow: max(x, 0) + ln(1 + e^-|x|).
            Self::Mish => x * (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?.tanh()?,
        }
    }
}
