//! Convolutions. Products with patches where few numbers come out: cuDNN takes a tenth of a millisecond to be called, which a small
//! batch waits for, while a large one would wait for the patches. What looks at one pixel is a product anyway.

use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::program::{Source, function};
use super::{Number, at_once, by_type, numbers, only_on_a_gpu};

/// Numbers of patches that are written at most: 64 MiB in half precision. Two rows of Stable Diffusion 1.5 at 512x512 stay
/// below in nearly all layers, sixteen in the innermost alone.
const PATCHES: usize = 1 << 25;

/// x: (N, inputs, H, W), weight: (outputs, inputs, k, k) -> (N, outputs, H', W'), without a bias. `tf32`: f32 factors may be
/// rounded to TF32.
pub(in crate::diffusion::kernels) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    (stride, padding): (usize, usize),
    tf32: bool,
) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let (_, inputs, k, k_w) = weight.dims4()?;
    let side = |length: usize| (length + 2 * padding).checked_sub(k).map(|room| room / stride + 1);
    let (Some(out_h), Some(out_w)) = (side(h), side(w)) else { bail!("a convolution of {k} over {h}x{w}") };
    if c != inputs || k != k_w {
        bail!("a convolution of {:?} over {:?}", weight.dims(), x.dims());
    }
    let x = x.contiguous()?;
    if (k, stride, padding) == (1, 1, 0) {
        return product(&x.reshape((n, c, h * w))?, weight, (h, w));
    }
    let patches = Patches { kernel: k, stride, padding, out: (out_h, out_w) };
    let of_a_sample = c * k * k * out_h * out_w;
    if of_a_sample * n <= PATCHES {
        return product(&x.apply_op1_no_bwd(&patches)?, weight, patches.out);
    }
    larger(&x, weight, &patches, tf32)
}

#[cfg(feature = "cudnn")]
fn larger(x: &Tensor, weight: &Tensor, patches: &Patches, tf32: bool) -> Result<Tensor> {
    let Patches { stride, padding, out, .. } = *patches;
    super::cudnn::conv2d(x, weight, &super::cudnn::Conv2d { stride, padding, out, tf32 })
}

/// Some samples after the others.
#[cfg(not(feature = "cudnn"))]
fn larger(x: &Tensor, weight: &Tensor, patches: &Patches, _tf32: bool) -> Result<Tensor> {
    let (n, c, _, _) = x.dims4()?;
    let of_a_sample = c * patches.kernel * patches.kernel * patches.out.0 * patches.out.1;
    let samples = (PATCHES / of_a_sample).max(1);
    let parts = (0..n).step_by(samples).map(|from| {
        let part = x.narrow(0, from, samples.min(n - from))?.contiguous()?;
        product(&part.apply_op1_no_bwd(patches)?, weight, patches.out)
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

/// x: (N, terms, pixels), weight: (outputs, ...) of as many terms -> (N, outputs, out_h, out_w).
fn product(x: &Tensor, weight: &Tensor, (out_h, out_w): (usize, usize)) -> Result<Tensor> {
    let (n, terms, _) = x.dims3()?;
    let outputs = weight.dim(0)?;
    let weight = weight.reshape((1, outputs, terms))?.broadcast_as((n, outputs, terms))?;
    weight.matmul(x)?.reshape((n, outputs, out_h, out_w))
}

/// x: (N, C, H, W) -> (N, C k k, H' W').
struct Patches {
    kernel: usize,
    stride: usize,
    padding: usize,
    /// (H', W').
    out: (usize, usize),
}

impl CustomOp1 for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_type!(x, patches_of(x, layout, self))
    }
}

fn patches_of<T: Number>(x: &CudaStorage, layout: &Layout, op: &Patches) -> Result<(CudaStorage, Shape)> {
    let (n, c, h, w) = layout.shape().dims4()?;
    let (terms, pixels) = (c * op.kernel * op.kernel, op.out.0 * op.out.1);
    let call_by = function::<T>(&x.device, Source::Maps, "patches", 0)?;
    let from = numbers::<T>(x, layout)?;
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    // SAFETY: the kernel writes every number.
    let mut out = unsafe { x.device.alloc::<T>(n * terms * pixels)? };
    let sides = [c, h, w, op.out.1, pixels, op.kernel, op.stride, op.padding].map(|side| side as i32);
    let mut call = call_by.builder();
    call.arg(&from).arg(&mut out);
    for side in &sides {
        call.arg(side);
    }
    let grid_dim = (pixels.div_ceil(at_once::<T>()).div_ceil(128) as u32, terms as u32, n as u32);
    let config = LaunchConfig { grid_dim, block_dim: (128, 1, 1), shared_mem_bytes: 0 };
    #[expect(unsafe_code, reason = "a kernel is called")]
    // SAFETY: the kernel reads x within its sides, and writes n * terms * pixels numbers.
    unsafe { call.launch(config) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, x.device.clone()), Shape::from((n, terms, pixels))))
}
