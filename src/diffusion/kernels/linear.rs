//! `y = x W^T + b`, sample by sample.

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::product::{Matrix, add_product};
use super::values;

/// x: (N, ..., inputs), weight: (outputs, inputs), bias: (outputs,) -> (N, ..., outputs). The first dimension counts
/// samples: each is a product of its own.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => x.contiguous()?.apply_op3_no_bwd(weight, bias, &LinearOp),
        _ => linear_plain(x, weight, bias),
    }
}

/// The same by the tensor library's own operations.
pub fn linear_plain(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let inputs = shape.pop().unwrap_or(1);
    let rows: usize = shape.iter().product();
    shape.push(weight.dim(0)?);
    x.reshape((rows, inputs))?.matmul(&weight.t()?)?.broadcast_add(bias)?.reshape(shape)
}

struct LinearOp;

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
        let (samples, inputs) = (dims[0], dims[dims.len() - 1]);
        let outputs = bias.len();
        let rows = x.len() / (samples * inputs);
        let mut out = vec![0f32; samples * rows * outputs];
        // Rows of one sample in fixed blocks, so that one sample alone still keeps several threads busy.
        let block = rows_a_block(rows, inputs * outputs);
        let tasks = out
            .par_chunks_mut(rows * outputs)
            .zip(x.par_chunks(rows * inputs))
            .flat_map(|(out, x)| out.par_chunks_mut(block * outputs).zip(x.par_chunks(block * inputs)));
        tasks.for_each(|(out, x)| {
            for row in out.chunks_exact_mut(outputs) {
                row.copy_from_slice(bias);
            }
            let lhs = Matrix { values: x, row_stride: inputs, col_stride: 1 };
            let rhs = Matrix { values: weight, row_stride: 1, col_stride: inputs };
            add_product((out, outputs), (x.len() / inputs, inputs, outputs), lhs, rhs);
        });
        let last = dims.len() - 1;
        dims[last] = outputs;
        Ok((CpuStorage::F32(out), Shape::from(dims)))
    }
}

/// A block is worth a thread from about two million multiplications on.
fn rows_a_block(rows: usize, work_a_row: usize) -> usize {
    (2_000_000 / work_a_row.max(1)).clamp(32, rows.max(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_its_plain_twin() -> Result<()> {
        for shape in [vec![1, 7], vec![5, 7], vec![2, 33, 7], vec![3, 4, 5, 7], vec![1, 300, 7]] {
            let x = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?;
            let (weight, bias) =
                (Tensor::randn(0f32, 1.0, (11, 7), &Device::Cpu)?, Tensor::randn(0f32, 1.0, 11, &Device::Cpu)?);
            let (fast, plain) = (linear(&x, &weight, &bias)?, linear_plain(&x, &weight, &bias)?);
            assert_eq!(fast.dims(), plain.dims());
            super::super::assert_close("linear", &fast, &plain, 1e-6);
        }
        Ok(())
    }
}
