//! A job, its states, and the one function that says which state follows which.
//!
//! ```text
//!               claim                 finish
//!   queued ------------> running ---------------> succeeded
//!     |  ^                 |  |                +-> failed
//!     |  |  handed back,   |  |  cancel seen   +-> cancelled
//!     |  |  lost, expired  |  |                |
//!     |  +-----------------+  +--------------------^
//!     |        (or failed, when attempts are used up)
//!     +--------------------------------------------> cancelled
//!     |                 cancel
//!     +--------------------------------------------> failed
//!        its deadline is over (running too, once its worker has left it)
//! ```
//!
//! A job whose pictures are there already, drawn for an identical request, is `succeeded` from the start.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::sampling::wire_names;
use super::{Artifact, GenerationRequest, JobError, JobId, ModelId, OwnerId, Priority, SizeKey, Timestamp};

/// How much earlier an interactive job ranks than it was created.
pub const INTERACTIVE_LEAD_MS: i64 = 30_000;
/// How much later a bulk job ranks: a bulk job that has waited this long stands before every normal job accepted since,
/// so nothing starves.
pub const BULK_DELAY_MS: i64 = 300_000;

wire_names! {
    /// Where a job stands.
    JobStatus {
        /// Waits for a worker.
        Queued => "queued",
        /// A worker holds its lease.
        Running => "running",
        /// Every picture is stored.
        Succeeded => "succeeded",
        /// Ended with an error.
        Failed => "failed",
        /// Ended because somebody asked.
        Cancelled => "cancelled",
    }
}

/// What can happen to a job's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// A worker takes it.
    Claim,
    /// Its worker hands it back where it stands (a drain, or for an idle worker), or its attempt is lost with others left.
    Requeue,
    /// Every picture is stored.
    Succeed,
    /// It cannot be drawn, or its attempts are used up.
    Fail,
    /// Somebody asked, and nobody draws it any more.
    Cancel,
    /// Its deadline is over, and nobody draws it any more.
    Expire,
    /// Its pictures are there already, drawn for an identical request.
    Answer,
}

impl JobStatus {
    /// The state after `transition`, or `None` where that cannot happen.
    pub const fn after(self, transition: Transition) -> Option<Self> {
        match (self, transition) {
            (Self::Queued, Transition::Claim) => Some(Self::Running),
            (Self::Running, Transition::Requeue) => Some(Self::Queued),
            (Self::Running, Transition::Succeed) | (Self::Queued, Transition::Answer) => Some(Self::Succeeded),
            (Self::Running, Transition::Fail) | (Self::Queued | Self::Running, Transition::Expire) => {
                Some(Self::Failed)
            }
            (Self::Queued | Self::Running, Transition::Cancel) => Some(Self::Cancelled),
            _ => None,
        }
    }

    /// Whether nothing can follow.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What jobs must share to be drawn in one batch under the policy `grouped`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    /// The model.
    pub model: ModelId,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Sampler steps.
    pub steps: u32,
}

impl GroupKey {
    /// The group a request belongs to.
    pub fn of(request: &GenerationRequest) -> Self {
        Self {
            model: request.model().clone(),
            width: request.width(),
            height: request.height(),
            steps: request.steps_taken(),
        }
    }

    /// The group's model and resolution.
    pub fn size(&self) -> SizeKey {
        SizeKey { model: self.model.clone(), width: self.width, height: self.height }
    }
}

/// How far one picture of a running job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageProgress {
    /// Which picture, from 0.
    pub image: u32,
    /// Steps taken.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
}

/// Where a job's time went, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobTimings {
    /// From acceptance to the (last) start.
    pub queued_ms: u64,
    /// Prompt encoding.
    pub encode_ms: u64,
    /// The steps, from the first to the last, shared with whoever was aboard.
    pub denoise_ms: u64,
    /// VAE decoding of all pictures.
    pub decode_ms: u64,
    /// Encoding and storing all pictures.
    pub store_ms: u64,
    /// From acceptance to the end.
    pub total_ms: u64,
}

/// A job as the store knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its name on every replica.
    pub id: JobId,
    /// Whose it is; `None`: it was submitted without a key.
    pub owner: Option<OwnerId>,
    /// Where it stands.
    pub status: JobStatus,
    /// What is drawn.
    pub request: GenerationRequest,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the present or last attempt began.
    pub started_at: Option<Timestamp>,
    /// When it reached its last state.
    pub ended_at: Option<Timestamp>,
    /// When an ended job and its pictures are removed.
    pub expires_at: Option<Timestamp>,
    /// How often a worker took it.
    pub attempts: u32,
    /// Somebody asked for an end; the worker sees it at its next heartbeat or sooner.
    pub cancel_requested: bool,
    /// Stored pictures, by index; complete when succeeded.
    pub images: Vec<Artifact>,
    /// Set when it ended.
    pub timings: Option<JobTimings>,
    /// Things the client should know, such as a prompt that was cut.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// Names all that decides its pictures: those of another job with the same will do. `None`: it has its own drawn.
    pub identity: Option<String>,
    /// The job that they were drawn for, where that is another.
    pub reused_from: Option<JobId>,
}

/// A job's place in the queue: the smallest is the oldest, and next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueuePlace {
    /// When it was accepted, in milliseconds since the Unix epoch, moved by its priority. Where owners have shares of the
    /// devices, its owner's turn instead, so moved.
    pub rank_ms: i64,
    /// Of two accepted in the same millisecond, the first has the smaller id.
    pub id: JobId,
}

impl Job {
    /// When it gives up: in the queue, when it must have been started (unless it was once) or ended; running, when it must have
    /// ended. `None`: never.
    pub fn deadline(&self) -> Option<Timestamp> {
        let after = |seconds: u32| self.created_at.plus_ms(i64::from(seconds) * 1000);
        let start = self.request.start_within().filter(|_| self.started_at.is_none()).map(after);
        let end = self.request.expires_in().map(after);
        match self.status {
            JobStatus::Queued => start.into_iter().chain(end).min(),
            JobStatus::Running => end,
            JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => None,
        }
    }

    /// Whether its deadline is over.
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Its place in a queue without shares.
    pub fn place(&self) -> QueuePlace {
        let moved = match self.request.priority() {
            Priority::Interactive => -INTERACTIVE_LEAD_MS,
            Priority::Normal => 0,
            Priority::Bulk => BULK_DELAY_MS,
        };
        QueuePlace { rank_ms: self.created_at.plus_ms(moved).unix_ms(), id: self.id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_job_stays_ended() {
        let all = [
            Transition::Claim,
            Transition::Requeue,
            Transition::Succeed,
            Transition::Fail,
            Transition::Cancel,
            Transition::Expire,
            Transition::Answer,
        ];
        for status in JobStatus::ALL.iter().filter(|status| status.is_terminal()) {
            assert!(all.iter().all(|transition| status.after(*transition).is_none()), "{status}");
        }
    }
}
