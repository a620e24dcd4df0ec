//! Group normalisation in two passes over the data, with SiLU in the second.

use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::exp::exp;
use super::values;

/// What follows the normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Nothing,
    /// x * sigmoid(x).
    Silu,
}

/// x: (N, C, ...), weight and bias: (C,) -> the shape of x. Each group of C / `groups` channels of each row is brought
/// to mean 0 and variance 1 (biased, plus `eps`), then scaled and moved per channel.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, after: After) -> Result<Tensor> {
    match (x.device(), x.dtype()) {
        (Device::Cpu, DType::F32) => {
            x.contiguous()?.apply_op3_no_bwd(weight, bias, &GroupNormOp { groups, eps, after, arch: Arch::new() })
        }
        #[cfg(feature = "cuda")]
        _ if super::cuda::takes(x) => super::cuda::group_norm(x, weight, bias, groups, eps, after),
        _ => group_norm_plain(x, weight, bias, groups, eps, after),
    }
}

/// The same by the tensor library's own operations. Computed in f32 whatever the dtype of x, as PyTorch does: sums over a group
/// are beyond half precision.
pub fn group_norm_plain(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    after: After,
) -> Result<Tensor> {
    let (n, c) = (x.dim(0)?, x.dim(1)?);
    let (weight, bias) = (weight.to_dtype(DType::F32)?, bias.to_dtype(DType::F32)?);
    let flat = x.to_dtype(DType::F32)?.reshape((n, groups, x.elem_count() / (n * groups)))?;
    let centred = flat.broadcast_sub(&flat.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape((n, c, x.elem_count() / (n * c)))?;
    let out = normed.broadcast_mul(&weight.reshape((1, c, 1))?)?.broadcast_add(&bias.reshape((1, c, 1))?)?;
    let out = out.reshape(x.shape())?;
    if after == After::Silu { out.silu()? } else { out }.to_dtype(x.dtype())
}

struct GroupNormOp {
    groups: usize,
    eps: f64,
    after: After,
    arch: Arch,
}

impl CustomOp3 for GroupNormOp {
    fn name(&self) -> &'static str {
        "group-norm"
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
        let (x, shape) = (values(x, x_layout)?, x_layout.shape());
        let (weight, bias) = (values(weight, weight_layout)?, values(bias, bias_layout)?);
        let channels = shape.dims()[1];
        if channels % self.groups != 0 {
            bail!("group norm of {channels} channels in {} groups", self.groups);
        }
        let pixels = x.len() / (shape.dims()[0] * channels);
        let per_group = channels / self.groups;
        let mut out = vec![0f32; x.len()];
        let spans = out.par_chunks_mut(per_group * pixels).zip(x.par_chunks(per_group * pixels)).enumerate();
        spans.for_each(|(span, (out, x))| {
            let first = (span % self.groups) * per_group;
            let (weight, bias) = (&weight[first..][..per_group], &bias[first..][..per_group]);
            self.arch.dispatch(Group { x, weight, bias, eps: self.eps, after: self.after, out });
        });
        Ok((CpuStorage::F32(out), shape.clone()))
    }
}

/// One group of one sample, channel by channel.
struct Group<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f64,
    after: After,
    out: &'a mut [f32],
}

impl WithSimd for Group<'_> {
    type Output = ();

    /// Plain loops: the compiler makes them as wide as the processor's vectors.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mean_and_scale = mean_and_scale(self.x, self.eps);
        normalise(self.x, mean_and_scale, (self.weight, self.bias), self.after, self.out);
    }
}

/// A group's numbers, channel by channel, by its mean and scale.
#[inline(always)]
pub(super) fn normalise(
    x: &[f32],
    (mean, scale): (f32, f32),
    (weight, bias): (&[f32], &[f32]),
    after: After,
    out: &mut [f32],
) {
    let pixels = x.len() / weight.len();
    let channels = out.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels));
    for ((out, x), (weight, bias)) in channels.zip(weight.iter().zip(bias)) {
        let factor = scale * weight;
        let offset = bias - mean * factor;
        match after {
            After::Nothing => out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor + offset),
            After::Silu => out.iter_mut().zip(x).for_each(|(out, x)| {
                let value = x * factor + offset;
                *out = value / (1.0 + exp(-value));
            }),
        }
    }
}

/// Mean and 1/sqrt(variance + eps).
#[inline(always)]
fn mean_and_scale(x: &[f32], eps: f64) -> (f32, f32) {
    let count = x.len() as f64;
    let mean = (sum(x, |value| value) / count) as f32;
    let variance = sum(x, |value| (value - mean) * (value - mean)) / count;
    (mean, (1.0 / (variance + eps).sqrt()) as f32)
}

/// Running sums of a block.
pub(super) const LANES: usize = 16;
/// Numbers that are added in f32 before they join the total.
pub(super) const BLOCK: usize = 256;

/// Sixteen running sums, so that they fit vector registers and the order of additions is fixed by the data's length alone.
#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0f64; LANES];
    for block in x.chunks(BLOCK) {
        let mut partial = [0f32; LANES];
        let (whole, rest) = block.as_chunks::<LANES>();
        for values in whole {
            for (lane, value) in partial.iter_mut().zip(values) {
                *lane += term(*value);
            }
        }
        for (lane, value) in partial.iter_mut().zip(rest) {
            *lane += term(*value);
        }
        for (lane, value) in lanes.iter_mut().zip(partial) {
            *lane += f64::from(value);
        }
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured 4.8e-7 relative to the largest value; the twin's own rounding against f64 is as large.
    const TOLERANCE: f32 = 2e-6;

    #[test]
    fn agrees_with_its_plain_twin() -> Result<()> {
        for (shape, groups) in [((2, 32, 17, 15), 8), ((1, 16, 8, 8), 4), ((3, 48, 5, 1), 16)] {
            let x = (Tensor::randn(0f32, 3.0, shape, &Device::Cpu)? + 1.5)?;
            let weight = Tensor::randn(1f32, 0.3, shape.1, &Device::Cpu)?;
            let bias = Tensor::randn(0f32, 0.3, shape.1, &Device::Cpu)?;
            for after in [After::Nothing, After::Silu] {
                let plain = group_norm_plain(&x, &weight, &bias, groups, 1e-5, after)?;
                for arch in super::super::levels() {
                    let op = GroupNormOp { groups, eps: 1e-5, after, arch };
                    let fast = x.apply_op3_no_bwd(&weight, &bias, &op)?;
                    super::super::assert_close(&format!("group norm, {arch:?}"), &fast, &plain, TOLERANCE);
                }
            }
        }
        Ok(())
    }
}
