//! Biases, gates, transposes.

use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp1, D, InplaceOp2, InplaceOp3, Layout, Result, Shape, Tensor, bail};

use super::program::{Source, function, in_line};
use super::{Number, at_once, by_type, is_aligned, numbers, only_on_a_gpu};

/// Adds number `(i / inner) % count` of `bias` to number i of x, in place: both are contiguous, and nobody else has x.
pub(in crate::diffusion::kernels) fn add_bias(x: &Tensor, bias: &Tensor, inner: usize) -> Result<()> {
    x.inplace_op2(bias, &AddBias { inner })
}

/// The same, and adds `other`, of the shape of x.
pub(in crate::diffusion::kernels) fn add_bias_and(
    x: &Tensor,
    bias: &Tensor,
    other: &Tensor,
    inner: usize,
) -> Result<()> {
    if x.dims() != other.dims() {
        bail!("{:?} is added to {:?}", other.dims(), x.dims());
    }
    x.inplace_op3(bias, &other.contiguous()?, &AddBias { inner })
}

/// x: (..., 2 * inner) -> (..., inner).
pub(in crate::diffusion::kernels) fn geglu(x: &Tensor) -> Result<Tensor> {
    if !x.dim(D::Minus1)?.is_multiple_of(2) {
        bail!("geglu of {:?}", x.dims());
    }
    x.contiguous()?.apply_op1_no_bwd(&Geglu)
}

/// x: (N, A, B) -> (N, B, A), contiguous.
pub(in crate::diffusion::kernels) fn transposed(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Transposed)
}

struct AddBias {
    inner: usize,
}

impl InplaceOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        only_on_a_gpu("add-bias").map(drop)
    }

    fn cuda_fwd(&self, x: &mut CudaStorage, x_layout: &Layout, bias: &CudaStorage, bias_layout: &Layout) -> Result<()> {
        by_type!(bias, add_bias_of((x, x_layout), (bias, bias_layout), None, self.inner))
    }
}

impl InplaceOp3 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias-and"
    }

    fn cpu_fwd(
        &self,
        _: &mut CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        only_on_a_gpu("add-bias-and").map(drop)
    }

    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        x_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
        other: &CudaStorage,
        other_layout: &Layout,
    ) -> Result<()> {
        let other = Some((other, other_layout));
        by_type!(bias, add_bias_of((x, x_layout), (bias, bias_layout), other, self.inner))
    }
}

fn add_bias_of<T: Number>(
    (x, x_layout): (&mut CudaStorage, &Layout),
    (bias, bias_layout): (&CudaStorage, &Layout),
    other: Option<(&CudaStorage, &Layout)>,
    inner: usize,
) -> Result<()> {
    let device = x.device.clone();
    let channels = bias_layout.shape().elem_count();
    let bias = numbers::<T>(bias, bias_layout)?;
    let Some((from, to)) = x_layout.contiguous_offsets() else { bail!("a bias is added to contiguous tensors") };
    let count = to - from;
    let wide = at_once::<T>();
    let is_even = if inner == 1 { channels.is_multiple_of(wide) } else { inner.is_multiple_of(wide) };
    let layouts = [Some(x_layout), Some(bias_layout), other.map(|(_, layout)| layout)];
    let packed = is_even && count.is_multiple_of(wide) && layouts.into_iter().flatten().all(is_aligned::<T>);
    let name = match (&other, packed) {
        (None, true) => "add_bias_packed",
        (None, false) => "add_bias",
        (Some(_), true) => "add_bias_and_packed",
        (Some(_), false) => "add_bias_and",
    };
    let kernel = function::<T>(&device, Source::Maps, name, 0)?;
    let other = other.map(|(storage, layout)| numbers::<T>(storage, layout)).transpose()?;
    let mut x = x.as_cuda_slice_mut::<T>()?.slice_mut(from..to);
    let (length, inner, channels) = (count as i64, inner as i32, channels as i32);
    let mut call = kernel.builder();
    call.arg(&mut x).arg(&bias);
    if let Some(other) = &other {
        call.arg(other);
    }
    call.arg(&length).arg(&inner).arg(&channels);
    let threads = if packed { count / wide } else { count };
    #[expect(unsafe_code, reason = "a kernel is called")]
    // SAFETY: the kernel writes `count` numbers of x, reads as many of it and of the other, and `channels` of the bias.
    unsafe { call.launch(in_line(threads)) }.w()?;
    Ok(())
}

struct Geglu;

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_type!(x, geglu_of(x, layout))
    }
}

fn geglu_of<T: Number>(x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let mut dims = layout.dims().to_vec();
    let last = dims.len() - 1;
    dims[last] /= 2;
    let (shape, inner) = (Shape::from(dims.clone()), dims[last]);
    let count = shape.elem_count();
    let packed = inner.is_multiple_of(at_once::<T>()) && is_aligned::<T>(layout);
    let kernel = function::<T>(&x.device, Source::Maps, if packed { "geglu_packed" } else { "geglu" }, 0)?;
    let from = numbers::<T>(x, layout)?;
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    // SAFETY: the kernel writes every number.
    let mut out = unsafe { x.device.alloc::<T>(count)? };
    let (length, inner) = (count as i64, inner as i32);
    let mut call = kernel.builder();
    call.arg(&from).arg(&mut out).arg(&length).arg(&inner);
    let threads = if packed { count / at_once::<T>() } else { count };
    #[expect(unsafe_code, reason = "a kernel is called")]
    // SAFETY: the kernel reads 2 `count` numbers of x and writes `count`.
    unsafe { call.launch(in_line(threads)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, x.device.clone()), shape))
}

struct Transposed;

impl CustomOp1 for Transposed {
    fn name(&self) -> &'static str {
        "transposed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_type!(x, transposed_of(x, layout))
    }
}

fn transposed_of<T: Number>(x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let (n, a, b) = layout.shape().dims3()?;
    let kernel = function::<T>(&x.device, Source::Maps, "transposed", 0)?;
    let from = numbers::<T>(x, layout)?;
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    // SAFETY: the kernel writes every number.
    let mut out = unsafe { x.device.alloc::<T>(n * a * b)? };
    let grid_dim = (b.div_ceil(32) as u32, a.div_ceil(32) as u32, n as u32);
    let (a_side, b_side) = (a as i32, b as i32);
    let mut call = kernel.builder();
    call.arg(&from).arg(&mut out).arg(&a_side).arg(&b_side);
    let config = LaunchConfig { grid_dim, block_dim: (32, 8, 1), shared_mem_bytes: 0 };
    #[expect(unsafe_code, reason = "a kernel is called")]
    // SAFETY: the kernel reads and writes n a b numbers.
    unsafe { call.launch(config) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, x.device.clone()), Shape::from((n, b, a))))
}
