//! Scaled dot-product attention in half precision, without scores in memory.

use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use super::program::{Source, function};
use super::{Held, Number, OfThree, by_type, is_aligned, numbers};

/// Threads of a block, as the kernel has them.
const THREADS: u32 = 128;
/// Numbers of a head at most: more do not fit the registers.
const MOST: usize = 160;
/// The first compute capability with the matrix instructions that the kernel is made of.
const CAPABILITY: i32 = 8;

/// Queries of a block, as the kernel has them (`QUERIES`).
fn queries_of_a_block(size: usize) -> usize {
    if size.next_multiple_of(16) <= 80 { 128 } else { 64 }
}

/// Whether there is a kernel for queries (N, L, heads * d) like these.
pub(in crate::diffusion::kernels) fn takes_attention(q: &Tensor, heads: usize) -> bool {
    let Device::Cuda(device) = q.device() else { return false };
    let is_half = matches!(q.dtype(), DType::F16 | DType::BF16);
    let size = q.dims().last().map_or(0, |width| width / heads.max(1));
    is_half
        && q.elem_count() > 0
        && (8..=MOST).contains(&size)
        && size.is_multiple_of(8)
        && device.cuda_stream().context().compute_capability().is_ok_and(|(major, _)| major >= CAPABILITY)
}

/// q: (N, Lq, heads*d), k and v: (N, Lk, heads*d) -> (N, Lq, heads*d).
pub(in crate::diffusion::kernels) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let whole = |x: &Tensor| {
        let x = x.contiguous()?;
        // A part of a larger tensor may begin where 16 bytes cannot be read at once.
        if (x.layout().start_offset() * x.dtype().size_in_bytes()).is_multiple_of(16) {
            Ok(x)
        } else {
            x.force_contiguous()
        }
    };
    let op = OfThree("attention", |q: Held<'_>, k: Held<'_>, v: Held<'_>| by_type!(q.0, run(q, k, v, heads)));
    whole(q)?.apply_op3_no_bwd(&whole(k)?, &whole(v)?, &op)
}

fn run<T: Number>(q: Held<'_>, k: Held<'_>, v: Held<'_>, heads: usize) -> Result<(CudaStorage, Shape)> {
    let (samples, queries, width) = q.1.shape().dims3()?;
    let (_, keys, _) = k.1.shape().dims3()?;
    let is_whole = [q.1, k.1, v.1].into_iter().all(is_aligned::<T>);
    if size_of::<T>() != 2 || !is_whole || keys == 0 || [k.1, v.1].iter().any(|l| l.dims() != [samples, keys, width]) {
        bail!("attention of {heads} heads, queries {:?}, keys {:?}, values {:?}", q.1.dims(), k.1.dims(), v.1.dims());
    }
    let (device, shape, size) = (q.0.device.clone(), q.1.shape().clone(), width / heads);
    let kernel = function::<T>(&device, Source::Attention, "attention", size)?;
    let (q, k, v) = (numbers::<T>(q.0, q.1)?, numbers::<T>(k.0, k.1)?, numbers::<T>(v.0, v.1)?);
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    // SAFETY: the kernel writes every number.
    let mut out = unsafe { device.alloc::<T>(shape.elem_count())? };
    let scale = std::f32::consts::LOG2_E / (size as f32).sqrt();
    let grid_dim = (queries.div_ceil(queries_of_a_block(size)) as u32, heads as u32, samples as u32);
    let (queries, keys, heads) = (queries as i32, keys as i32, heads as i32);
    let mut call = kernel.builder();
    call.arg(&q).arg(&k).arg(&v).arg(&mut out).arg(&queries).arg(&keys).arg(&heads).arg(&scale);
    let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    #[expect(unsafe_code, reason = "a kernel is called")]
    // SAFETY: shapes were checked; the kernel reads q, k and v within them and writes what is of the shape of q.
    unsafe { call.launch(config) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device), shape))
}
