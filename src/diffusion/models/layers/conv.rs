//! Convolutions and resampling of (N, C, H, W) maps.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::Sides;
use crate::diffusion::kernels;
use crate::diffusion::weights::{self, Weights};

/// A square 2-D convolution, and what adapters add to it. Cloning shares the weights.
#[derive(Clone, Debug)]
pub struct Conv2d {
    base: Arc<kernels::PackedConv2d>,
    sides: Sides,
    window: Window,
    /// Of its weights.
    dtype: DType,
    /// As its network calls it.
    name: Arc<str>,
    added: Vec<AddedConv2d>,
}

/// What a convolution looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::diffusion::models) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Window {
    /// One pixel.
    pub(in crate::diffusion::models) const PIXEL: Self = Self { kernel: 1, stride: 1, padding: 0 };
}

/// What an adapter adds to a convolution.
#[derive(Clone, Debug)]
enum AddedConv2d {
    /// `scale * up(mid(down(x)))`; of them the one before `up` has the layer's window.
    LowRank {
        down: Arc<kernels::PackedConv2d>,
        mid: Option<Arc<kernels::PackedConv2d>>,
        up: Arc<kernels::PackedConv2d>,
        scale: f64,
    },
    /// A convolution of the layer's own size.
    Whole(Arc<kernels::PackedConv2d>),
}

impl AddedConv2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::LowRank { down, mid, up, scale } => {
                let inner = down.forward(x)?;
                let inner = mid.as_ref().map_or(Ok(inner.clone()), |mid| mid.forward(&inner))?;
                up.forward(&inner)? * *scale
            }
            Self::Whole(conv) => conv.forward(x),
        }
    }
}

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
        let bias = Some(w.get("bias", outputs)?);
        Ok(Self::of((weight, bias), Sides { inputs, outputs }, Window { kernel, stride, padding }, w))
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
        Ok(Self::of((weight, None), Sides { inputs, outputs }, Window { kernel, stride, padding }, w))
    }

    fn of((weight, bias): (Tensor, Option<Tensor>), sides: Sides, window: Window, w: &Weights) -> Self {
        let base = kernels::PackedConv2d::new(weight, bias, window.stride, window.padding);
        let base = base.expect("shapes were checked. This is a bug in layers.").allowing_tf32(w.allows_tf32());
        Self { base: Arc::new(base), sides, window, dtype: w.dtype(), name: w.prefix().into(), added: Vec::new() }
    }

    /// x: (N, inputs, H, W) -> (N, outputs, H', W').
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

    pub(in crate::diffusion::models) fn window(&self) -> Window {
        self.window
    }

    /// Adds `scale * up(mid(down(x)))`, where the last before `up` has this layer's window, and the others look at one pixel.
    /// down: (rank, inputs, k, k), mid: (inner, rank, k, k), up: (outputs, inner, 1, 1), bias: (outputs,), all in the layer's dtype.
    pub(in crate::diffusion::models) fn add_low_rank(
        &mut self,
        (down, mid): (Tensor, Option<Tensor>),
        (up, bias): (Tensor, Tensor),
        scale: f64,
    ) -> Result<()> {
        let down = packed(down, None, if mid.is_some() { Window::PIXEL } else { self.window })?;
        let mid = mid.map(|mid| packed(mid, None, self.window)).transpose()?;
        let up = packed(up, Some(bias), Window::PIXEL)?;
        self.added.push(AddedConv2d::LowRank { down, mid, up, scale });
        Ok(())
    }

    /// Adds a convolution (outputs, inputs, k, k) with this layer's window, in its dtype.
    pub(in crate::diffusion::models) fn add_whole(&mut self, weight: Tensor) -> Result<()> {
        self.added.push(AddedConv2d::Whole(packed(weight, None, self.window)?));
        Ok(())
    }
}

fn packed(weight: Tensor, bias: Option<Tensor>, window: Window) -> Result<Arc<kernels::PackedConv2d>> {
    Ok(Arc::new(kernels::PackedConv2d::new(weight, bias, window.stride, window.padding)?))
}

/// Nearest-neighbour upsampling to (height, width).
pub fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    x.upsample_nearest2d(height, width)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_sample_with_adapters_is_the_same_alone() -> Result<()> {
        let draw = |shape: [usize; 4]| Tensor::randn(0f32, 1.0, &shape[..], &Device::Cpu);
        for stride in [1, 2] {
            let window = Window { kernel: 3, stride, padding: 1 };
            let mut layer = Conv2d {
                base: packed(draw([20, 12, 3, 3])?, None, window)?,
                sides: Sides { inputs: 12, outputs: 20 },
                window,
                dtype: DType::F32,
                name: "".into(),
                added: Vec::new(),
            };
            let none = Tensor::zeros(20, DType::F32, &Device::Cpu)?;
            let (up, mid) = (draw([20, 3, 1, 1])?, draw([3, 4, 3, 3])?);
            layer.add_low_rank((draw([3, 12, 3, 3])?, None), (up.clone(), none.clone()), 0.3)?;
            layer.add_low_rank((draw([4, 12, 1, 1])?, Some(mid)), (up, none), -0.5)?;
            layer.add_whole(draw([20, 12, 3, 3])?)?;
            let x = draw([37, 12, 11, 9])?;
            let together = layer.forward(&x)?;
            let numbers = |x: Tensor| x.flatten_all()?.to_vec1::<f32>();
            for sample in [0, 1, 17, 36] {
                let alone = layer.forward(&x.narrow(0, sample, 1)?)?;
                assert_eq!(numbers(alone)?, numbers(together.narrow(0, sample, 1)?)?);
            }
        }
        Ok(())
    }
}
