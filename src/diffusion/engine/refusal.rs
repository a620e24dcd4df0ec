//! Why a job cannot go on: what a network or a request did wrong, and panics.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::diffusion::pipelines;
use crate::domain::ErrorCode;

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
        // candle tells a full device by its message alone: CUDA's error name, or the allocator's words.
        let full = ["OUT_OF_MEMORY", "out of memory"].iter().any(|words| message.contains(words));
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
            Err(Refusal { code: ErrorCode::Internal, message: "the engine failed unexpectedly".to_owned() })
        }
    }
}
