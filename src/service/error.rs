//! What the service refuses, and the code each refusal has.

use crate::dispatch::{artifacts, jobs};
use crate::domain::{ErrorCode, FieldError, InputName, JobId};

/// A refusal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Faults of the request's fields.
    #[error("{}", summary(.0))]
    Invalid(Vec<FieldError>),
    /// No such job, or it has expired.
    #[error("there is no job {0}; it may have expired")]
    JobNotFound(JobId),
    /// The job has no such picture (yet).
    #[error("job {job} has no image {index}{}", if *.ended { "" } else { " yet" })]
    ImageNotFound {
        /// Which job.
        job: JobId,
        /// Which picture.
        index: u32,
        /// Whether none will come.
        ended: bool,
    },
    /// The job's request came without such a picture.
    #[error("job {job} has no `{input}`")]
    InputNotFound {
        /// Which job.
        job: JobId,
        /// What it would be for.
        input: InputName,
    },
    /// The key stands for another request.
    #[error("this Idempotency-Key was used with a different request")]
    IdempotencyMismatch,
    /// The queue is at its limit.
    #[error("the queue is full: {limit} jobs wait")]
    QueueFull {
        /// The limit.
        limit: u64,
        /// When it is worth another try.
        retry_after_s: u64,
    },
    /// Out of service for now.
    #[error("{reason}")]
    Unavailable {
        /// Why.
        reason: &'static str,
        /// When it is worth another try.
        retry_after_s: u64,
    },
    /// A store failed; the reason is logged, not told.
    #[error("the server failed")]
    Internal,
}

fn summary(faults: &[FieldError]) -> String {
    let each: Vec<String> = faults.iter().map(|fault| format!("`{}` {}", fault.field, fault.message)).collect();
    each.join("; ")
}

impl Error {
    /// In a word.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) => ErrorCode::InvalidRequest,
            Self::JobNotFound(_) => ErrorCode::JobNotFound,
            Self::ImageNotFound { .. } | Self::InputNotFound { .. } => ErrorCode::ImageNotFound,
            Self::IdempotencyMismatch => ErrorCode::IdempotencyMismatch,
            Self::QueueFull { .. } => ErrorCode::QueueFull,
            Self::Unavailable { .. } => ErrorCode::Unavailable,
            Self::Internal => ErrorCode::Internal,
        }
    }

    /// When it is worth another try, in seconds.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after_s, .. } | Self::Unavailable { retry_after_s, .. } => Some(*retry_after_s),
            _ => None,
        }
    }
}

impl From<jobs::Error> for Error {
    fn from(error: jobs::Error) -> Self {
        match error {
            jobs::Error::IdempotencyMismatch => Self::IdempotencyMismatch,
            jobs::Error::QueueFull { limit } => Self::QueueFull { limit, retry_after_s: 10 },
            other => {
                tracing::error!(error = %other, "the job store failed");
                Self::Internal
            }
        }
    }
}

impl From<artifacts::Error> for Error {
    fn from(error: artifacts::Error) -> Self {
        tracing::error!(%error, "the artifact store failed");
        Self::Internal
    }
}

/// Of this room.
pub type Result<T> = std::result::Result<T, Error>;
