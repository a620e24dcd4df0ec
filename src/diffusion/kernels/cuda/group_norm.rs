//! Group normalisation.

use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::{Result, Shape, Tensor, bail};

use super::program::{Source, function};
use super::{Held, Number, OfThree, at_once, by_type, is_aligned, numbers};
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
    let op = OfThree("group-norm", |x: Held<'_>, weight: Held<'_>, bias: Held<'_>| {
        by_type!(x.0, run(x, weight, bias, (groups, eps, after)))
    });
    x.contiguous()?.apply_op3_no_bwd(weight, bias, &op)
}

fn run<T: Number>(
    x: Held<'_>,
    weight: Held<'_>,
    bias: Held<'_>,
    (groups, eps, after): (usize, f64, After),
) -> Result<(CudaStorage, Shape)> {
    let (storage, layout) = x;
    let (device, shape) = (storage.device.clone(), layout.shape().clone());
    let (samples, channels) = (shape.dims()[0], shape.dims()[1]);
    let pixels = shape.elem_count() / (samples * channels).max(1);
    let is_packed = pixels.is_multiple_of(at_once::<T>()) && is_aligned::<T>(layout);
    let threads = if pixels * (channels / groups) >= LARGE { 1024 } else { 512 };
    let kernel = function::<T>(&device, Source::GroupNorm, "group_norm", threads)?;
    let (x, weight, bias) =
        (numbers::<T>(storage, layout)?, numbers::<T>(weight.0, weight.1)?, numbers::<T>(bias.0, bias.1)?);
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    // SAFETY: the kernel writes every number.
    let mut out = unsafe { device.alloc::<T>(shape.elem_count())? };
    let grid_dim = ((samples * groups) as u32, 1, 1);
    let (groups, channels, pixels) = (groups as i32, channels as i32, pixels as i32);
    let (eps, silu, is_packed) = (eps as f32, i32::from(after == After::Silu), i32::from(is_packed));
    let mut call = kernel.builder();
    call.arg(&x).arg(&weight).arg(&bias).arg(&mut out);
    call.arg(&groups).arg(&channels).arg(&pixels).arg(&eps).arg(&silu).arg(&is_packed);
    let config = LaunchConfig { grid_dim, block_dim: (threads as u32, 1, 1), shared_mem_bytes: 0 };
    #[expect(unsafe_code, reason = "a kernel is called")]
    // SAFETY: each block reads and writes the numbers of its group, and reads its channels' weights.
    unsafe { call.launch(config) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device), shape))
}
