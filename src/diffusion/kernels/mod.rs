//! Fast primitives behind safe functions, each beside its plain twin and tested against it: on CPUs, and on NVIDIA GPUs (`cuda`).
//!
//! Knows no networks. What no kernel takes, the plain twin does. On a CPU every number is a sum whose terms are added in an order of
//! its own, so its bits depend neither on the other samples of a batch nor on the number of threads; on a GPU that holds of our own
//! kernels, not of the libraries' products. Devices are opened here (`devices`), and how much memory computations take is counted
//! (`memory`).

mod attention;
mod bands;
mod conv2d;
#[cfg(feature = "cuda")]
mod cuda;
mod devices;
mod exp;
mod geglu;
mod group_norm;
mod group_statistics;
mod layer_norm;
mod linear;
mod memory;
mod sums;
mod transposed;

pub use attention::{scaled_dot_product, scaled_dot_product_plain};
pub use conv2d::{PackedConv2d, conv2d_plain};
pub use devices::{computes_in, open};
pub use geglu::{geglu, geglu_plain};
pub use group_norm::{After, group_norm, group_norm_plain};
pub use group_statistics::{GroupStatistics, group_normalised, group_statistics};
pub use layer_norm::layer_norm;
pub use linear::{PackedLinear, linear_plain};
pub use memory::with_memory_taken;
pub use transposed::{transposed, transposed_plain};

use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor, bail};

/// Products up to which a kernel works on the calling thread: handing work to others costs some microseconds.
const ALONE: usize = 1 << 19;

/// Runs a computation of many kernels among the threads that share their work, instead of waking them for each one and
/// waiting outside. On other devices it runs where it is.
pub fn among_workers<T: Send>(device: &Device, run: impl FnOnce() -> T + Send) -> T {
    match device {
        Device::Cpu => {
            let (value, taken) = rayon::scope(|_| memory::apart(run));
            memory::add(taken);
            value
        }
        _ => run(),
    }
}

/// A layer's bias, or zeros for each output of its weight (outputs, ...).
fn bias_or_zeros(bias: Option<Tensor>, weight: &Tensor) -> Result<Tensor> {
    bias.map_or_else(|| Tensor::zeros(weight.dim(0)?, weight.dtype(), weight.device()), Ok)
}

/// x: (N, C, H, W) with `offsets` (N, C) added to each pixel. x is used up: on a GPU the sum takes its place.
///
/// # Errors
/// Other shapes.
pub fn with_offsets(x: Tensor, offsets: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(&x) && x.is_contiguous() && x.dims()[..2] == *offsets.dims() {
        cuda::add_bias(&x, &offsets.contiguous()?, x.dim(2)? * x.dim(3)?)?;
        return Ok(x);
    }
    x.broadcast_add(&offsets.unsqueeze(2)?.unsqueeze(3)?)
}

/// The numbers of a contiguous f32 tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) => Ok(&values[from..to]),
        _ => bail!("this kernel takes contiguous f32"),
    }
}

/// On a CPU as f32, else as it is: the tensor library's CPU side has no convolution in bf16, and sums in half precision what GPUs
/// sum in f32.
fn widened(x: &Tensor) -> Result<Tensor> {
    match (x.device(), x.dtype()) {
        (Device::Cpu, DType::F16 | DType::BF16) => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// What this machine's processor has, the narrowest first.
#[cfg(test)]
fn levels() -> Vec<pulp::Arch> {
    let mut levels = vec![pulp::Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        levels.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
        levels.extend(pulp::x86::V4::try_new().map(pulp::Arch::V4));
    }
    #[cfg(target_arch = "aarch64")]
    levels.extend(pulp::aarch64::Neon::try_new().map(pulp::Arch::Neon));
    levels
}

#[cfg(test)]
fn assert_close(what: &str, fast: &Tensor, plain: &Tensor, tolerance: f32) {
    let number = |x: Result<Tensor>| x.and_then(|x| x.to_scalar::<f32>()).expect("a number");
    let worst = number((fast - plain).and_then(|d| d.abs()?.max_all()));
    let range = number(plain.abs().and_then(|x| x.max_all()));
    assert!(worst <= tolerance * range, "{what}: {worst} of {range}");
}
