//! What happens to a job, as told to whoever watches it.

use serde::{Deserialize, Serialize};

use super::{Artifact, JobError, JobId, Timestamp};

/// Orders the events of one job. Grows across restarts too (it is drawn from the clock), so a client may return with
/// the last one it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub u64);

/// One event of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent {
    /// Orders the events of this job.
    pub id: EventId,
    /// Whose event.
    pub job_id: JobId,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub kind: JobEventKind,
}

/// What can happen. Exactly one of `Succeeded`, `Failed`, `Cancelled` ends a job's events.
#[derive(Clone, Debug, PartialEq)]
pub enum JobEventKind {
    /// Accepted, or put back in the queue after its worker was lost.
    Queued,
    /// A worker began; `attempt` counts from 1.
    Started {
        /// Which attempt this is.
        attempt: u32,
    },
    /// One picture took a step.
    Progress {
        /// Which picture, from 0.
        image: u32,
        /// Steps taken.
        step: u32,
        /// Steps in all.
        total: u32,
    },
    /// A small JPEG of how one picture looks now.
    Preview {
        /// Which picture, from 0.
        image: u32,
        /// Steps taken.
        step: u32,
        /// JPEG file bytes.
        jpeg: bytes::Bytes,
    },
    /// One picture is stored and can be fetched.
    Image(Artifact),
    /// All pictures are stored.
    Succeeded,
    /// The job ended without its pictures.
    Failed(JobError),
    /// The job was cancelled.
    Cancelled,
}

impl JobEventKind {
    /// The event's name on the wire.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Started { .. } => "started",
            Self::Progress { .. } => "progress",
            Self::Preview { .. } => "preview",
            Self::Image(_) => "image",
            Self::Succeeded => "succeeded",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether this is a job's last event.
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed(_) | Self::Cancelled)
    }
}
