//! Group normalisation.

use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::program::{Source, function};
use super::{Number, at_once, by_type, is_aligned, numbers, only_on_a_gpu};
use crate::diffusion::kernels::After;

/// Numbers of a group from which on a block has twice the threads.
const LARGE: usize = 1 << 16;

/// As [`crate::diffusion::kernels::group_norm()`].
pub(in crate::diffusion::kernels) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    after: After,
) -> Result<Tensor> {
    let channels = x.dim(1)?;
    if groups == 0 || channels % groups != 0 || weight.dims() != [channels] || bias.dims() != [channels] {
        bail!("group norm of {channels} channels in {groups} groups, weights {:?}", weight.dims());
    }
    x.contiguous()?.apply_op3_no_bwd(weight, bias, &GroupNorm { groups, eps, after })
}

struct GroupNorm {
    groups: usize,
    eps: f64,
    after: After,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu(self.name())
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_type!(x, run((x, x_layout), (weight, weight_layout), (bias, bias_layout), self))
    }
}

type Held<'a> = (&'a CudaStorage, &'a Layout);

fn run<T: Number>(x: Held<'_>, weight: Held<'_>, bias: Held<'_>, op: &GroupNorm) -> Result<(CudaStorage, Shape)> {
    let (storage, layout) = x;
    let (device, shape) = (storage.device.clone(), layout.shape().clone());
    let (samples, channels) = (shape.dims()[0], shape.dims()[1]);
    let pixels = shape.elem_count() / (samples * channels).max(1);
    let is_packed = pixels.is_multiple_of(at_once::<T>()) && is_aligned::<T>(layout);
    let threads = if pixels * (channels / op.groups) >= LARGE { 1024 } else { 512 };
    let kernel = function::<T>(&device, Source::GroupNorm, "group_norm", threads)?;
    let (x, weight, bias) =
        (numbers::<T>(storage, layout)?, numbers::<T>(weight.0, weight.1)?, numbers::<T>(bias.0, bias.1)?);
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    // SAFETY: the kernel writes every number.
    let mut out = unsafe { device.alloc::<T>(shape.elem_count())? };
    let (groups, channels, pixels) = (op.groups as i32, channels as i32, pixels as i32);
    let (eps, silu, is_packed) = (op.eps as f32, i32::from(op.after == After::Silu), i32::from(is_packed));
    let mut call = kernel.builder();
    call.arg(&x).arg(&weight).arg(&bias).arg(&mut out);
    call.arg(&groups).arg(&channels).arg(&pixels).arg(&eps).arg(&silu).arg(&is_packed);
    let grid_dim = ((samples * op.groups) as u32, 1, 1);
    let config = LaunchConfig { grid_dim, block_dim: (threads as u32, 1, 1), shared_mem_bytes: 0 };
    #[expect(unsafe_code, reason = "a kernel is called")]
    // SAFETY: each block reads and writes the numbers of its group, and reads its channels' weights.
    unsafe { call.launch(config) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device), shape))
}
