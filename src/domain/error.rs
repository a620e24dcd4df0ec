//! One table of error codes. `http/errors.rs` alone turns a kind into a status.

use serde::{Deserialize, Serialize};

use super::sampling::wire_names;
use std::fmt;
use std::str::FromStr;

wire_names! {
    /// What went wrong, in a word that clients can switch on.
    ErrorCode {
        /// A field of the request is missing, misspelt or out of range.
        InvalidRequest => "invalid_request",
        /// No such model is served.
        ModelNotFound => "model_not_found",
        /// No such job (any more, or ever).
        JobNotFound => "job_not_found",
        /// The job exists, the picture does not (yet).
        ImageNotFound => "image_not_found",
        /// The request does not fit the job's present state.
        Conflict => "conflict",
        /// The idempotency key was used with another request.
        IdempotencyMismatch => "idempotency_mismatch",
        /// The queue is at its limit.
        QueueFull => "queue_full",
        /// The server drains, or a part it needs is out of reach.
        Unavailable => "unavailable",
        /// Each of the job's attempts lost its worker.
        WorkerLost => "worker_lost",
        /// It was not started, or had not ended, in the time that its request gave it.
        Expired => "expired",
        /// The device had no memory for the job, even alone.
        OutOfMemory => "out_of_memory",
        /// The device does not work any more.
        DeviceFailed => "device_failed",
        /// The model cannot be loaded: its files are damaged, or it needs more memory than there is for models.
        ModelUnavailable => "model_unavailable",
        /// The drawing produced no usable picture (a NaN, a failing network).
        GenerationFailed => "generation_failed",
        /// A fault of ours.
        Internal => "internal",
    }
}

/// Whose fault an error is and what a client can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The client must change the request.
    BadRequest,
    /// The thing asked for is not there.
    NotFound,
    /// The request does not fit the present state.
    Conflict,
    /// Try again later.
    Busy,
    /// Out of service for now.
    Unavailable,
    /// Its time was over.
    Late,
    /// Ours.
    Internal,
}

impl ErrorCode {
    /// The kind each code belongs to.
    pub const fn kind(self) -> ErrorKind {
        match self {
            Self::InvalidRequest => ErrorKind::BadRequest,
            Self::ModelNotFound => ErrorKind::BadRequest,
            Self::JobNotFound | Self::ImageNotFound => ErrorKind::NotFound,
            Self::Conflict | Self::IdempotencyMismatch => ErrorKind::Conflict,
            Self::QueueFull => ErrorKind::Busy,
            Self::Unavailable | Self::ModelUnavailable => ErrorKind::Unavailable,
            Self::Expired => ErrorKind::Late,
            Self::WorkerLost | Self::OutOfMemory | Self::DeviceFailed | Self::GenerationFailed | Self::Internal => {
                ErrorKind::Internal
            }
        }
    }
}

/// One fault of one field: which, what stood there, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// The field's name on the wire, nested with dots (`output.quality`).
    pub field: String,
    /// What stood there, cut to 64 characters; `null` when nothing did.
    pub value: serde_json::Value,
    /// What is wrong and what is allowed, as a sentence.
    pub message: String,
}

impl FieldError {
    /// A fault; a long text value is cut to 64 characters, since it is echoed.
    pub fn new(field: impl Into<String>, value: impl Into<serde_json::Value>, message: impl Into<String>) -> Self {
        let value = match value.into() {
            serde_json::Value::String(text) if text.chars().count() > 64 => {
                serde_json::Value::String(text.chars().take(63).chain(['…']).collect())
            }
            other => other,
        };
        Self { field: field.into(), value, message: message.into() }
    }
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// In a word.
    pub code: ErrorCode,
    /// As a sentence, without secrets or paths.
    pub message: String,
}
