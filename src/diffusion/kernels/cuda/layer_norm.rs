//! Layer normalisation.

use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::{Result, Shape, Tensor, bail};

use super::program::{Source, function};
use super::{Held, Number, OfThree, at_once, by_type, is_aligned, numbers, takes};

/// Rows of a block, as the kernel has them.
const ROWS: usize = 4;

/// Whether there is a kernel for rows like these.
pub(in crate::diffusion::kernels) fn takes_layer_norm(x: &Tensor) -> bool {
    let begins_well = !x.is_contiguous() || (x.layout().start_offset() * x.dtype().size_in_bytes()).is_multiple_of(16);
    takes(x)
        && begins_well
        && x.dims().last().is_some_and(|width| (width * x.dtype().size_in_bytes()).is_multiple_of(16))
}

/// x: (..., width), weight and bias: (width,) -> the shape of x.
pub(in crate::diffusion::kernels) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let op =
        OfThree("layer-norm", |x: Held<'_>, weight: Held<'_>, bias: Held<'_>| by_type!(x.0, run(x, weight, bias, eps)));
    x.contiguous()?.apply_op3_no_bwd(weight, bias, &op)
}

fn run<T: Number>(x: Held<'_>, weight: Held<'_>, bias: Held<'_>, eps: f64) -> Result<(CudaStorage, Shape)> {
    let (device, shape) = (x.0.device.clone(), x.1.shape().clone());
    let width = *shape.dims().last().unwrap_or(&0);
    let is_whole = [x.1, weight.1, bias.1].into_iter().all(is_aligned::<T>);
    if !is_whole || width == 0 || width % at_once::<T>() != 0 || [weight.1, bias.1].iter().any(|l| l.dims() != [width])
    {
        bail!("layer norm of {shape:?} by weights {:?} and {:?}", weight.1.dims(), bias.1.dims());
    }
    let rows = shape.elem_count() / width;
    let kernel = function::<T>(&device, Source::LayerNorm, "layer_norm", 0)?;
    let (x, weight, bias) = (numbers::<T>(x.0, x.1)?, numbers::<T>(weight.0, weight.1)?, numbers::<T>(bias.0, bias.1)?);
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    // SAFETY: the kernel writes every number.
    let mut out = unsafe { device.alloc::<T>(shape.elem_count())? };
    let (row_count, width, eps) = (rows as i32, width as i32, eps as f32);
    let mut call = kernel.builder();
    call.arg(&x).arg(&weight).arg(&bias).arg(&mut out).arg(&row_count).arg(&width).arg(&eps);
    let grid_dim = (rows.div_ceil(ROWS) as u32, 1, 1);
    let config = LaunchConfig { grid_dim, block_dim: (32 * ROWS as u32, 1, 1), shared_mem_bytes: 0 };
    #[expect(unsafe_code, reason = "a kernel is called")]
    // SAFETY: each warp reads and writes its row, and reads the weights.
    unsafe { call.launch(config) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device), shape))
}
