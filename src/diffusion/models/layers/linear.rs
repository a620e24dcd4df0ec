//! Products with a weight matrix.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use crate::diffusion::kernels;
use crate::diffusion::weights::{self, Weights};

/// `y = x W^T + b`, and what adapters add to it. Cloning shares the weights.
#[derive(Clone, Debug)]
pub struct Linear {
    base: Arc<kernels::PackedLinear>,
    sides: Sides,
    /// Of its weights.
    dtype: DType,
    /// As its network calls it.
    name: Arc<str>,
    added: Vec<AddedLinear>,
}

/// Numbers that go in and come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides {
    /// Features or channels of the input.
    pub inputs: usize,
    /// Of the output.
    pub outputs: usize,
}

/// What an adapter adds to a product.
#[derive(Clone, Debug)]
enum AddedLinear {
    /// `scale * up(down(x))`.
    LowRank { down: Arc<kernels::PackedLinear>, up: Arc<kernels::PackedLinear>, scale: f64 },
    /// A product with a matrix of the layer's own size.
    Whole(Arc<kernels::PackedLinear>),
}

impl AddedLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::LowRank { down, up, scale } => up.forward(&down.forward(x)?)? * *scale,
            Self::Whole(linear) => linear.forward(x),
        }
    }
}

impl Linear {
    /// Reads `weight` (outputs, inputs) and `bias` (outputs).
    pub fn load(inputs: usize, outputs: usize, w: &Weights) -> weights::Result<Self> {
        let (weight, bias) = (w.get("weight", (outputs, inputs))?, w.get("bias", outputs)?);
        Ok(Self::of(weight, Some(bias), Sides { inputs, outputs }, w))
    }

    /// Reads `weight` alone.
    pub fn load_no_bias(inputs: usize, outputs: usize, w: &Weights) -> weights::Result<Self> {
        let weight = w.get("weight", (outputs, inputs))?;
        Ok(Self::of(weight, None, Sides { inputs, outputs }, w))
    }

    fn of(weight: Tensor, bias: Option<Tensor>, sides: Sides, w: &Weights) -> Self {
        let base = packed(weight, bias).expect("shapes were checked. This is a bug in layers.");
        Self { base, sides, dtype: w.dtype(), name: w.prefix().into(), added: Vec::new() }
    }

    /// x: (N, ..., inputs) -> (N, ..., outputs), N samples.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut out = self.base.forward(x)?;
        for added in &self.added {
            out = (out + added.forward(x)?)?;
        }
        Ok(out)
    }

    /// [`Self::forward`] plus `other`, which has its shape.
    pub fn forward_added(&self, x: &Tensor, other: &Tensor) -> Result<Tensor> {
        if self.added.is_empty() { self.base.forward_added(x, other) } else { self.forward(x)? + other }
    }

    /// As its network calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(in crate::diffusion::models) fn sides(&self) -> Sides {
        self.sides
    }

    pub(in crate::diffusion::models) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Adds `scale * up(down(x))`. down: (rank, inputs), up: (outputs, rank), bias: (outputs,), all in the layer's dtype.
    pub(in crate::diffusion::models) fn add_low_rank(
        &mut self,
        down: Tensor,
        (up, bias): (Tensor, Tensor),
        scale: f64,
    ) -> Result<()> {
        let (down, up) = (packed(down, None)?, packed(up, Some(bias))?);
        self.added.push(AddedLinear::LowRank { down, up, scale });
        Ok(())
    }

    /// Adds a product with a matrix (outputs, inputs) in the layer's dtype.
    pub(in crate::diffusion::models) fn add_whole(&mut self, weight: Tensor) -> Result<()> {
        self.added.push(AddedLinear::Whole(packed(weight, None)?));
        Ok(())
    }
}

fn packed(weight: Tensor, bias: Option<Tensor>) -> Result<Arc<kernels::PackedLinear>> {
    Ok(Arc::new(kernels::PackedLinear::new(weight, bias)?))
}

/// Rows of a table by index.
#[derive(Clone, Debug)]
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_row_with_adapters_is_the_same_alone() -> Result<()> {
        let draw = |shape: (usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
        let zeros = |count: usize| Tensor::zeros(count, DType::F32, &Device::Cpu);
        let mut layer = Linear {
            base: packed(draw((50, 70))?, None)?,
            sides: Sides { inputs: 70, outputs: 50 },
            dtype: DType::F32,
            name: "".into(),
            added: Vec::new(),
        };
        let (base, x) = (layer.clone(), draw((93, 70))?);
        let (down, up, whole) = (draw((3, 70))?, draw((50, 3))?, draw((50, 70))?);
        layer.add_low_rank(down.clone(), (up.clone(), zeros(50)?), 0.3)?;
        layer.add_whole(whole.clone())?;
        let together = layer.forward(&x)?;
        for row in [0, 7, 63, 64, 92] {
            let alone = layer.forward(&x.narrow(0, row, 1)?)?;
            assert_eq!(alone.to_vec2::<f32>()?[0], together.get(row)?.to_vec1::<f32>()?);
        }
        let added = (x.matmul(&down.t()?)?.matmul(&up.t()?)? * 0.3)? + x.matmul(&whole.t()?)?;
        let off = (together - base.forward(&x)?)?.sub(&added?)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off < 1e-4, "{off}");
        Ok(())
    }
}
