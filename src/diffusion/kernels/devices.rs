//! Devices, opened once: all that a process does on a GPU goes through one stream, in the order in which it was asked for. Models are
//! loaded, prompts encoded, steps taken and pictures decoded by threads of their own, which hand tensors to each other; with a
//! stream for each thread (the tensor library's default) a tensor could be read before it is written, or its memory be given away
//! while it is still read.

use candle_core::{DType, Device};

use crate::domain::DeviceSpec;

/// A worker's device; the same one each time.
///
/// # Errors
/// No such GPU, or a binary without the feature `cuda`.
pub fn open(spec: DeviceSpec) -> Result<Device, String> {
    match spec {
        DeviceSpec::Cpu => Ok(Device::Cpu),
        DeviceSpec::Cuda(number) => gpu(number),
    }
}

/// Whether networks can compute in this type there: GPUs before compute capability 8.0 have no bf16.
pub fn computes_in(device: &Device, dtype: DType) -> bool {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) if dtype == DType::BF16 => {
            device.cuda_stream().context().compute_capability().is_ok_and(|(major, _)| major >= 8)
        }
        _ => matches!(dtype, DType::F32 | DType::F16 | DType::BF16),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Device, String> {
    Err("this binary was built without the feature `cuda`".to_owned())
}

#[cfg(feature = "cuda")]
fn gpu(number: usize) -> Result<Device, String> {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};

    static OPENED: LazyLock<Mutex<HashMap<usize, Device>>> = LazyLock::new(Mutex::default);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = opened.get(&number) {
        return Ok(device.clone());
    }
    let device = Device::new_cuda_with_stream(number).map_err(|error| error.to_string())?;
    let cuda = device.as_cuda_device().map_err(|error| error.to_string())?;
    #[expect(unsafe_code, reason = "the tensor library cannot know that there is one stream")]
    // SAFETY: events order the work of several streams; this process has one for each GPU, opened here alone.
    unsafe {
        cuda.disable_event_tracking();
    }
    keep_memory(cuda)?;
    opened.insert(number, device.clone());
    Ok(device)
}

/// Memory that was let go of stays with the process: given back to the driver whenever the host waits for the GPU, as is the
/// default, the next step would ask for it anew.
#[cfg(feature = "cuda")]
fn keep_memory(device: &candle_core::CudaDevice) -> Result<(), String> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    #[expect(unsafe_code, reason = "the driver is called")]
    // SAFETY: the pool is the device's own, and the attribute is an unsigned number of 64 bits.
    unsafe {
        result::device::get_default_mem_pool(stream.context().cu_device()).and_then(|pool| {
            let release_threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, release_threshold, (&raw mut all).cast())
        })
    }
    .map_err(|error| error.to_string())
}
