//! Layer normalisation: the tensor library's on CPUs.

use candle_core::{Result, Tensor};

/// x: (..., width), weight and bias: (width,) -> the shape of x. Each row is brought to mean 0 and variance 1 (biased, plus `eps`),
/// then scaled and moved.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if super::cuda::takes_layer_norm(x) {
        return super::cuda::layer_norm(x, weight, bias, eps);
    }
    candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps as f32)
}
