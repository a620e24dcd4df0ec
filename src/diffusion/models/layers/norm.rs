//! Normalisations.

use candle_core::{Result, Tensor};

use super::Bands;
use crate::diffusion::kernels;
use crate::diffusion::weights::{self, Weights};

/// Group normalisation (Wu & He 2018) over (N, C, ...), with SiLU fused where a network asks for both.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias` (channels).
    pub fn load(groups: usize, channels: usize, eps: f64, w: &Weights) -> weights::Result<Self> {
        Ok(Self { weight: w.get("weight", channels)?, bias: w.get("bias", channels)?, groups, eps })
    }

    /// x: (N, C, ...) -> the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, kernels::After::Nothing)
    }

    /// SiLU of the normalised.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        kernels::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, kernels::After::Silu)
    }

    /// What the normalisation of a band must know of its map, which is normalised in [`Bands::ranges`] of `at_once`.
    pub fn statistics(&self, x: &Bands, at_once: usize) -> Result<kernels::GroupStatistics> {
        let in_one = x.ranges(at_once).len() == 1;
        kernels::group_statistics(&x.iter().collect::<Vec<_>>(), self.groups, self.eps, in_one)
    }

    /// SiLU of the normalised, of rows (N, C, rows, W) of a map with these statistics.
    pub fn forward_silu_rows(&self, rows: &Tensor, statistics: &kernels::GroupStatistics) -> Result<Tensor> {
        kernels::group_normalised(rows, statistics, &self.weight, &self.bias, kernels::After::Silu)
    }
}

/// Layer normalisation over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias` (width).
    pub fn load(width: usize, eps: f64, w: &Weights) -> weights::Result<Self> {
        Ok(Self { weight: w.get("weight", width)?, bias: w.get("bias", width)?, eps })
    }

    /// x: (..., width) -> the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
