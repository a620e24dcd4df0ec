//! Why a job cannot go on: what a network or a request did wrong, and panics.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::diffusion::pipelines;
use crate::domain::ErrorCode;

/// What errors and panics of candle 0.11 say where a device has no memory left: each wraps the library's own error, of which
/// the message is all that can be read here. CUDA's `CUDA_ERROR_OUT_OF_MEMORY`; `CUBLAS_STATUS_ALLOC_FAILED`, `CUDNN_STATUS_ALLOC_FAILED`
/// and cuDNN 9's `..._DEVICE_ALLOCATION_FAILED`, `CURAND_STATUS_ALLOCATION_FAILED` (cudarc 0.19, the names of its status enums).
const NO_MEMORY: [&str; 4] = ["OUT_OF_MEMORY", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED"];

/// Why a job cannot go on.
pub(super) struct Refusal {
    /// In a word.
    pub code: ErrorCode,
    /// As a sentence.
    pub message: String,
}

impl Refusal {
    pub(super) fn failed(message: impl ToString) -> Self {
        let message = message.to_string();
        let full = NO_MEMORY.iter().any(|words| message.contains(words));
        Self { code: if full { ErrorCode::OutOfMemory } else { ErrorCode::GenerationFailed }, message }
    }

    /// A LoRA that cannot be used is the request's affair.
    pub(super) fn of_lora(error: pipelines::Error) -> Self {
        let is_lora = matches!(error, pipelines::Error::Lora { .. });
        let Self { code, message } = Self::failed(error);
        let is_full = code == ErrorCode::OutOfMemory;
        Self { code: if is_lora && !is_full { ErrorCode::InvalidRequest } else { code }, message }
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
                full if full.code == ErrorCode::OutOfMemory => full,
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
        let other = candle_core::Error::Cuda("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"...\")".into());
        assert_eq!(Refusal::failed(other).code, ErrorCode::GenerationFailed);
        assert_eq!(caught::<()>(|| panic!("index out of range")).err().map(|it| it.code), Some(ErrorCode::Internal));
    }
}
