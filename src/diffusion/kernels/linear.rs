//! `y = x W^T + b`, with the weights laid out for the inner loop once.

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::sums::{PANEL, add_product, side_by_side};
use super::{ALONE, bias_or_zeros, values, widened};

/// Rows of one task: what they and some panels hold stays in a second-level cache.
const TASK_ROWS: usize = 64;

/// A layer `y = x W^T + b`.
#[derive(Debug)]
pub struct PackedLinear {
    /// On a CPU (outputs / 16 rounded up, inputs, 16), else (outputs, inputs).
    weight: Tensor,
    /// Zeros where the layer has none.
    bias: Tensor,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "zeros are added where that is as fast"))]
    has_bias: bool,
    packed: bool,
}

impl PackedLinear {
    /// weight: (outputs, inputs), bias: (outputs,) or none. In f32 on a CPU the weights are copied into their packed order; other
    /// devices and types take the tensor library's product.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (has_bias, bias) = (bias.is_some(), bias_or_zeros(bias, &weight)?);
        let packed = matches!(weight.device(), Device::Cpu) && weight.dtype() == DType::F32;
        let weight = if packed { pack(&weight)? } else { weight };
        Ok(Self { weight, bias, has_bias, packed })
    }

    /// x: (..., inputs) -> (..., outputs).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.packed {
            return x.contiguous()?.apply_op3_no_bwd(&self.weight, &self.bias, &LinearOp { arch: Arch::new() });
        }
        #[cfg(feature = "cuda")]
        if super::cuda::takes(x) {
            let out = product(x, &self.weight)?;
            if self.has_bias {
                super::cuda::add_bias(&out, &self.bias, 1)?;
            }
            return Ok(out);
        }
        linear_plain(x, &self.weight, &self.bias)
    }

    /// [`Self::forward`] plus `other`, which has its shape.
    pub fn forward_added(&self, x: &Tensor, other: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if super::cuda::takes(x) && self.has_bias {
            let out = product(x, &self.weight)?;
            super::cuda::add_bias_and(&out, &self.bias, other, 1)?;
            return Ok(out);
        }
        self.forward(x)? + other
    }
}

/// The same by the tensor library's own operations; weight: (outputs, inputs).
pub fn linear_plain(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    product(&widened(x)?, &widened(weight)?)?.broadcast_add(&widened(bias)?)?.to_dtype(x.dtype())
}

/// `x W^T`.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let inputs = shape.pop().unwrap_or(1);
    let rows: usize = shape.iter().product();
    shape.push(weight.dim(0)?);
    x.reshape((rows, inputs))?.matmul(&weight.t()?)?.reshape(shape)
}

/// (outputs, inputs) -> (panels, inputs, 16): sixteen outputs' weights for one input side by side, zeros after the last.
fn pack(weight: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let panels = outputs.div_ceil(PANEL);
    let packed = side_by_side::<PANEL>(&weight.flatten_all()?.to_vec1::<f32>()?, inputs);
    Tensor::from_vec(packed, (panels, inputs, PANEL), weight.device())
}

struct LinearOp {
    arch: Arch,
}

impl CustomOp3 for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (values(x, x_layout)?, values(weight, weight_layout)?, values(bias, bias_layout)?);
        let mut dims = x_layout.dims().to_vec();
        let (panels, inputs, _) = weight_layout.shape().dims3()?;
        let last = dims.len() - 1;
        if dims[last] != inputs || inputs == 0 {
            bail!("a linear layer of {inputs} inputs with {dims:?}");
        }
        let mut out = vec![0f32; x.len() / inputs * bias.len()];
        if !out.is_empty() {
            let weight: Vec<&[[f32; PANEL]]> = weight.chunks_exact(inputs * PANEL).map(|w| w.as_chunks().0).collect();
            let group = panels_a_task(x.len() / inputs, panels);
            let alone = inputs * out.len() <= ALONE;
            let tasks = tasks(x, (inputs, bias.len()), &mut out, group);
            let run = |mut task: Task<'_>| {
                let panels = &weight[task.panel..(task.panel + group).min(panels)];
                for out in &mut task.out {
                    out.copy_from_slice(&bias[task.panel * PANEL..][..out.len()]);
                }
                self.arch.dispatch(Product { x: &task.x, panels, out: &mut task.out });
            };
            if alone {
                tasks.into_iter().for_each(run);
            } else {
                tasks.into_par_iter().for_each(run);
            }
        }
        dims[last] = bias.len();
        Ok((CpuStorage::F32(out), Shape::from(dims)))
    }
}

/// Some rows, and some of their outputs from one panel on.
struct Task<'a> {
    x: Vec<&'a [f32]>,
    panel: usize,
    out: Vec<&'a mut [f32]>,
}

/// How many panels one task takes, so that all threads have work.
fn panels_a_task(rows: usize, panels: usize) -> usize {
    let wanted = 4 * rayon::current_num_threads();
    panels.div_ceil(wanted.div_ceil(rows.div_ceil(TASK_ROWS))).next_multiple_of(3).min(panels)
}

fn tasks<'a>(
    x: &'a [f32],
    (inputs, outputs): (usize, usize),
    out: &'a mut [f32],
    panels_a_task: usize,
) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    for (x, out) in x.chunks(TASK_ROWS * inputs).zip(out.chunks_mut(TASK_ROWS * outputs)) {
        let x: Vec<&[f32]> = x.chunks_exact(inputs).collect();
        let first = tasks.len();
        let panels = (0..outputs.div_ceil(PANEL)).step_by(panels_a_task);
        tasks.extend(panels.map(|panel| Task { x: x.clone(), panel, out: Vec::with_capacity(TASK_ROWS) }));
        for row in out.chunks_exact_mut(outputs) {
            for (task, part) in tasks[first..].iter_mut().zip(row.chunks_mut(panels_a_task * PANEL)) {
                task.out.push(part);
            }
        }
    }
    tasks
}

struct Product<'a, 'b, 'c> {
    x: &'c [&'a [f32]],
    panels: &'c [&'b [[f32; PANEL]]],
    out: &'c mut [&'a mut [f32]],
}

impl WithSimd for Product<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        add_product(simd, self.x, self.panels, self.out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_its_plain_twin() -> Result<()> {
        for (shape, outputs) in [
            (vec![1, 7], 11),
            (vec![5, 7], 16),
            (vec![2, 33, 7], 1),
            (vec![3, 4, 5, 7], 50),
            (vec![1, 300, 7], 112),
            (vec![2, 9, 1300], 100),
        ] {
            let inputs = shape[shape.len() - 1];
            let x = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?;
            let weight = Tensor::randn(0f32, 1.0, (outputs, inputs), &Device::Cpu)?;
            let bias = Tensor::randn(0f32, 1.0, outputs, &Device::Cpu)?;
            let plain = linear_plain(&x, &weight, &bias)?;
            for arch in super::super::levels() {
                let fast = x.apply_op3_no_bwd(&pack(&weight)?, &bias, &LinearOp { arch })?;
                assert_eq!(fast.dims(), plain.dims());
                super::super::assert_close(&format!("linear, {arch:?}"), &fast, &plain, 2e-6);
            }
        }
        Ok(())
    }

    #[test]
    fn a_row_is_the_same_alone() -> Result<()> {
        let layer = PackedLinear::new(
            Tensor::randn(0f32, 1.0, (100, 700), &Device::Cpu)?,
            Some(Tensor::randn(0f32, 1.0, 100, &Device::Cpu)?),
        )?;
        let x = Tensor::randn(0f32, 1.0, (203, 700), &Device::Cpu)?;
        let together = layer.forward(&x)?;
        for row in [0, 1, 7, 8, 63, 64, 200, 202] {
            let alone = layer.forward(&x.narrow(0, row, 1)?)?;
            assert_eq!(alone.to_vec2::<f32>()?[0], together.get(row)?.to_vec1::<f32>()?);
        }
        Ok(())
    }
}
