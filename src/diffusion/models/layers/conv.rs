//! Convolutions and resampling of (N, C, H, W) maps.

use candle_core::{Result, Tensor};

use crate::diffusion::kernels;
use crate::diffusion::weights::{self, Weights};

/// A square 2-D convolution.
#[derive(Debug)]
pub struct Conv2d(kernels::PackedConv2d);

impl Conv2d {
    /// Reads `weight` (outputs, inputs, kernel, kernel) and `bias` (outputs); stride 1, padding that keeps the size.
    pub fn load(inputs: usize, outputs: usize, kernel: usize, w: &Weights) -> weights::Result<Self> {
        Self::load_strided(inputs, outputs, kernel, (1, kernel / 2), w)
    }

    /// The same with (stride, padding).
    pub fn load_strided(
        inputs: usize,
        outputs: usize,
        kernel: usize,
        (stride, padding): (usize, usize),
        w: &Weights,
    ) -> weights::Result<Self> {
        let weight = w.get("weight", (outputs, inputs, kernel, kernel))?;
        let bias = w.get("bias", outputs)?;
        Ok(Self::packed(weight, bias, (stride, padding)))
    }

    /// Reads `weight` alone, with (stride, padding).
    pub fn load_no_bias(
        inputs: usize,
        outputs: usize,
        kernel: usize,
        (stride, padding): (usize, usize),
        w: &Weights,
    ) -> weights::Result<Self> {
        let weight = w.get("weight", (outputs, inputs, kernel, kernel))?;
        let bias = Tensor::zeros(outputs, weight.dtype(), weight.device()).expect("zeros. This is a bug in layers.");
        Ok(Self::packed(weight, bias, (stride, padding)))
    }

    fn packed(weight: Tensor, bias: Tensor, (stride, padding): (usize, usize)) -> Self {
        let conv = kernels::PackedConv2d::new(weight, bias, stride, padding);
        Self(conv.expect("shapes were checked. This is a bug in layers."))
    }

    /// x: (N, inputs, H, W) -> (N, outputs, H', W').
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

/// Nearest-neighbour upsampling to (height, width).
pub fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    x.upsample_nearest2d(height, width)
}
