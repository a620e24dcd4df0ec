//! Products with a weight matrix.

use candle_core::{Result, Tensor};

use crate::diffusion::kernels;
use crate::diffusion::weights::{self, Weights};

/// `y = x W^T + b`.
#[derive(Debug)]
pub struct Linear(kernels::PackedLinear);

impl Linear {
    /// Reads `weight` (outputs, inputs) and `bias` (outputs).
    pub fn load(inputs: usize, outputs: usize, w: &Weights) -> weights::Result<Self> {
        Ok(Self::packed(w.get("weight", (outputs, inputs))?, w.get("bias", outputs)?))
    }

    /// Reads `weight` alone.
    pub fn load_no_bias(inputs: usize, outputs: usize, w: &Weights) -> weights::Result<Self> {
        let weight = w.get("weight", (outputs, inputs))?;
        let bias = Tensor::zeros(outputs, weight.dtype(), weight.device()).expect("zeros. This is a bug in layers.");
        Ok(Self::packed(weight, bias))
    }

    fn packed(weight: Tensor, bias: Tensor) -> Self {
        Self(kernels::PackedLinear::new(weight, bias).expect("shapes were checked. This is a bug in layers."))
    }

    /// x: (N, ..., inputs) -> (N, ..., outputs), N samples.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

/// Rows of a table by index.
#[derive(Debug)]
pub struct Embedding(Tensor);

impl Embedding {
    /// Reads `weight` (count, width).
    pub fn load(count: usize, width: usize, w: &Weights) -> weights::Result<Self> {
        Ok(Self(w.get("weight", (count, width))?))
    }

    /// ids: (N, L) u32 -> (N, L, width).
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (n, l) = ids.dims2()?;
        self.0.index_select(&ids.flatten_all()?, 0)?.reshape((n, l, self.0.dim(1)?))
    }

    /// The same with `rows` (n, width) in the places from `at` on, which is at most the number of rows there are.
    pub fn with_rows(&self, at: usize, rows: &Tensor) -> Result<Self> {
        let (count, added) = (self.0.dim(0)?, rows.dim(0)?);
        let mut parts = vec![self.0.narrow(0, 0, at)?, rows.clone()];
        if at + added < count {
            parts.push(self.0.narrow(0, at + added, count - at - added)?);
        }
        Ok(Self(Tensor::cat(&parts, 0)?))
    }

    /// The first `count` rows: (count, width).
    pub fn first(&self, count: usize) -> Result<Tensor> {
        self.0.narrow(0, 0, count)
    }
}
