//! The same primitives on NVIDIA GPUs, in f32, f16 and bf16; sums are taken in f32 whatever the type.
//!
//! The kernels (`*.cu`) are compiled when the first of them is called, for the GPU that is there, by NVRTC, a library of CUDA's
//! toolkit that the binary is linked to. Products of matrices are cuBLAS's, and larger convolutions cuDNN's, with the
//! feature `cudnn`. Every function has its plain twin in the parent module.

mod attention;
mod conv2d;
#[cfg(feature = "cudnn")]
mod cudnn;
mod group_norm;
mod layer_norm;
mod maps;
mod program;
#[cfg(test)]
mod tests;

pub(super) use attention::{attention, takes_attention};
pub(super) use conv2d::conv2d;
pub(super) use group_norm::group_norm;
pub(super) use layer_norm::{layer_norm, takes_layer_norm};
pub(super) use maps::{add_bias, add_bias_and, geglu, transposed};

use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaStorage};
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, WithDType, bail};
use half::{bf16, f16};

/// A type that kernels are written for.
pub(super) trait Number: CudaDType + DeviceRepr + WithDType {
    /// As the kernels call it.
    const NUMBER: &'static str;
}

impl Number for f32 {
    const NUMBER: &'static str = "32";
}

impl Number for f16 {
    const NUMBER: &'static str = "16";
}

impl Number for bf16 {
    const NUMBER: &'static str = "17";
}

/// Runs a generic function for the type that a storage has.
macro_rules! by_type {
    ($storage:expr, $run:ident ( $($argument:expr),* )) => {
        match candle_core::backend::BackendStorage::dtype($storage) {
            candle_core::DType::F32 => $run::<f32>($($argument),*),
            candle_core::DType::F16 => $run::<half::f16>($($argument),*),
            candle_core::DType::BF16 => $run::<half::bf16>($($argument),*),
            dtype => candle_core::bail!("no kernel for {dtype:?} on a GPU"),
        }
    };
}
use by_type;

/// Whether a tensor is where, and of a type that, these kernels take.
pub(super) fn takes(x: &Tensor) -> bool {
    // Nothing to do has no kernel: a grid of no blocks is an error.
    matches!(x.device(), Device::Cuda(_))
        && x.elem_count() > 0
        && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// A tensor as an operation is given it.
type Held<'a> = (&'a CudaStorage, &'a Layout);

/// An operation on three tensors that GPUs alone have.
struct OfThree<F>(&'static str, F);

impl<F: Fn(Held<'_>, Held<'_>, Held<'_>) -> Result<(CudaStorage, Shape)>> CustomOp3 for OfThree<F> {
    fn name(&self) -> &'static str {
        self.0
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
        only_on_a_gpu(self.0)
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
        c: &CudaStorage,
        c_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.1((a, a_layout), (b, b_layout), (c, c_layout))
    }
}

/// The numbers of a contiguous tensor.
fn numbers<'a, T: Number>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<T>()?.slice(from..to)),
        None => bail!("a kernel takes contiguous tensors"),
    }
}

/// Whether 16 bytes can be read at once from each multiple of that on.
fn is_aligned<T>(layout: &Layout) -> bool {
    (layout.start_offset() * size_of::<T>()).is_multiple_of(16)
}

/// Numbers in 16 bytes.
const fn at_once<T>() -> usize {
    16 / size_of::<T>()
}

/// What the operations here answer on a CPU.
fn only_on_a_gpu(name: &str) -> Result<(CpuStorage, Shape)> {
    bail!("{name} is for GPUs alone. This is a bug in kernels.")
}
