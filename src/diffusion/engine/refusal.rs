//! Why a job cannot go on: what a network or a request did wrong, and panics.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::diffusion::pipelines;
use crate::domain::ErrorCode;

/// What errors and panics of candle 0.11 say where a device has no memory left: each wraps the library's own error, of which
/// the message is all that can be read here. CUDA's `CUDA_ERROR_OUT_OF_MEMORY`; `CUBLAS_STATUS_ALLOC_FAILED`, `CUDNN_STATUS_ALLOC_FAILED`
/// and cuDNN 9's `..._DEVICE_ALLOCATION_FAILED`, `CURAND_STATUS_ALLOCATION_FAILED` (cudarc 0.19, the names of its status enums).
const NO_MEMORY: [&str; 4] = ["OUT_OF_MEMORY", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED"];

/// The same of a device that does not work any more: errors after which, as CUDA's documentation has it, every further call of
/// the process returns the same, and those of a device that is gone; a library's failed execution is a kernel's that failed.
const NO_DEVICE: [&str; 17] = [
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_NO_DEVICE",
    "CUDA_ERROR_UNKNOWN",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
];

/// Why a job cannot go on.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// In a word.
    pub code: ErrorCode,
    /// As a sentence.
    pub message: String,
}

impl Refusal {
    pub(super) fn failed(message: impl ToString) -> Self {
        let message = message.to_string();
        let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
        let code = match () {
            () if says(&NO_MEMORY) => ErrorCode::OutOfMemory,
            () if says(&NO_DEVICE) => ErrorCode::DeviceFailed,
            () => ErrorCode::GenerationFailed,
        };
        Self { code, message }
    }

    /// A LoRA that cannot be used is the request's affair.
    pub(super) fn of_lora(error: pipelines::Error) -> Self {
        let is_lora = matches!(error, pipelines::Error::Lora { .. });
        let Self { code, message } = Self::failed(error);
        let is_other = code == ErrorCode::GenerationFailed;
        Self { code: if is_lora && is_other { ErrorCode::InvalidRequest } else { code }, message }
    }
}

/// Runs `work`; a panic in it becomes a refusal, so that a fault in one job's arithmetic does not end the process.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
            let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            tracing::error!(panic = %words, "the engine caught a panic");
            Err(match Refusal::failed(words) {
                device if device.code != ErrorCode::GenerationFailed => device,
                // What went wrong within is no client's affair.
                _ => Refusal { code: ErrorCode::Internal, message: "the engine failed unexpectedly".to_owned() },
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_known_by_the_words_of_cuda_and_its_libraries() {
        let full = [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
            "CudnnError(CUDNN_STATUS_ALLOC_FAILED)",
            "CudnnError(CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)",
            "CurandError(CURAND_STATUS_ALLOCATION_FAILED)",
        ];
        for words in full {
            // As candle wraps them, and as a panic says them.
            let wrapped = candle_core::Error::Cuda(words.into()).context("conv2d");
            assert_eq!(Refusal::failed(pipelines::Error::from(wrapped)).code, ErrorCode::OutOfMemory, "{words}");
            let panicked = caught::<()>(|| panic!("called `Result::unwrap()` on an `Err` value: {words}"));
            assert_eq!(panicked.err().map(|refusal| refusal.code), Some(ErrorCode::OutOfMemory), "{words}");
        }
        let other = candle_core::Error::Cuda("DriverError(CUDA_ERROR_INVALID_VALUE, \"...\")".into());
        assert_eq!(Refusal::failed(other).code, ErrorCode::GenerationFailed);
        for gone in ["DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"...\")", "CublasError(CUBLAS_STATUS_EXECUTION_FAILED)"]
        {
            let wrapped = candle_core::Error::Cuda(gone.into()).context("conv2d");
            assert_eq!(Refusal::failed(pipelines::Error::from(wrapped)).code, ErrorCode::DeviceFailed, "{gone}");
        }
        assert_eq!(caught::<()>(|| panic!("index out of range")).err().map(|it| it.code), Some(ErrorCode::Internal));
    }
}
