//! Trait [`JobStore`]: the durable queue, by claims and leases. Implementations: `memory`, `sqlite`.
//!
//! Knows no worker, engine or event bus; transitions follow [`crate::domain::JobStatus::after`].

mod identity;
mod memory;
mod memory_claims;
mod memory_state;
mod record;
mod shares;
mod sqlite;
mod sqlite_claims;
mod sqlite_identical;
mod sqlite_rows;
mod sqlite_shares;

pub use identity::identity;
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::domain::{
    Artifact, GenerationRequest, Job, JobError, JobId, JobStatus, JobTimings, ModelId, OwnerId, QueuePlace, SizeKey,
    Timestamp, WorkerId,
};

/// A job to be accepted.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Chosen by the caller.
    pub id: JobId,
    /// Whose it is.
    pub owner: Option<OwnerId>,
    /// What to draw.
    pub request: GenerationRequest,
    /// Makes a retry safe.
    pub idempotency: Option<Idempotency>,
    /// [`identity()`] of the request, where another's pictures will do.
    pub identity: Option<String>,
    /// Its pictures, where they are stored already: it never waits, and never counts against the queue's limit.
    pub answer: Option<Answer>,
    /// Pixel-steps a second of this process's devices, as lately measured: where owners have shares, how far apart their turns are.
    pub speed: Option<f64>,
}

/// Pictures of another job, copied for this one.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Whose they are.
    pub from: JobId,
    /// By index.
    pub images: Vec<Artifact>,
    /// For the client.
    pub warnings: Vec<String>,
}

/// A client's `Idempotency-Key`, and what it stood for. The same key of another owner is another key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// As the client sent it.
    pub key: String,
    /// Hex SHA-256 of what the client asked, to tell a retry from a reuse.
    pub fingerprint: String,
}

/// What an insert found.
#[derive(Clone, Debug, PartialEq)]
pub enum Inserted {
    /// A new job.
    New(Job),
    /// The idempotency key was seen with the same request: this is the job it made.
    Existing(Job),
}

/// The right to work on one job until `expires_at`. `token` differs for every claim, so a worker that lost its lease
/// cannot finish what another has taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which job.
    pub job_id: JobId,
    /// Who holds it.
    pub worker: WorkerId,
    /// Unique to this claim.
    pub token: u64,
    /// Renewed by heartbeats.
    pub expires_at: Timestamp,
}

/// What a worker asks for: jobs in the order that `select` says, while rows and pixels stay within the caps. The first
/// job is always taken, even when it alone exceeds a cap.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// Who asks.
    pub worker: WorkerId,
    /// What it can draw.
    pub models: Vec<ModelId>,
    /// Which jobs.
    pub select: Select,
    /// Whether they are to be drawn, so that their owners' turns have come.
    pub is_to_draw: bool,
    /// Most rows ([`GenerationRequest::rows`]) in all.
    pub max_rows: u32,
    /// Most pixels in all: rows x width x height.
    pub max_row_pixels: u64,
    /// How long the lease lasts without a heartbeat.
    pub lease_ms: u64,
}

/// Which waiting jobs a claim takes, and in which order. "Oldest" is by [`QueuePlace`]: by acceptance, or, where owners have
/// weights ([`StoreOptions::weights`]), by their turns.
///
/// Of several jobs of one [`Job::identity`] only the oldest can be taken to be drawn, and none while one of them runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// For an idle device: the oldest job, then others of its [`crate::domain::GroupKey`].
    Group,
    /// For a running batch: the oldest job of this size; then, of those that came soon after it
    /// ([`crate::domain::ALIKE_WITHIN_MS`]), the ones with as many steps; then the others of this size by age.
    Fill {
        /// The batch's.
        size: SizeKey,
        /// Preferred.
        steps: u32,
        /// Only jobs that stand before this, where the batch has no room; `None`: any.
        before: Option<QueuePlace>,
    },
    /// For a device whose batch gives way: as `Group`, but of another size, and nothing unless the oldest such job stands
    /// before `before`.
    Other {
        /// The batch's.
        except: SizeKey,
        /// The place of the oldest job that the device could go on with; `None`: there is none.
        before: Option<QueuePlace>,
    },
    /// All jobs of this [`Job::identity`], to be given pictures that are there.
    Identical(String),
}

/// A job that now belongs to a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimedJob {
    /// Running, with this attempt counted.
    pub job: Job,
    /// The right to finish it.
    pub lease: Lease,
    /// Where it stands next to others that were claimed or wait.
    pub place: QueuePlace,
}

/// What a heartbeat learned of one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Renewed.
    Held,
    /// Renewed, and the job is to be left: somebody wants its end, or its deadline is over.
    CancelRequested,
    /// Somebody else's, or ended: stop working on it.
    Lost,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Every picture is stored.
    Succeeded {
        /// By index.
        images: Vec<Artifact>,
        /// Where the time went; `queued_ms` and `total_ms` are filled in by the store.
        timings: JobTimings,
        /// For the client.
        warnings: Vec<String>,
        /// Where they come from.
        origin: Origin,
    },
    /// It cannot be drawn.
    Failed(JobError),
    /// It was left as asked.
    Cancelled,
}

/// Where a job's pictures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// They were drawn, by what the job's identity names.
    Drawn,
    /// They were drawn by other files: no other request is answered with them.
    DrawnOtherwise,
    /// Copied from another job's, which has the same identity.
    Copied(JobId),
}

/// What a cancel did.
#[derive(Clone, Debug, PartialEq)]
pub enum Cancelled {
    /// It waited and is cancelled now.
    Now(Job),
    /// It runs; its worker has been asked.
    Requested(Job),
    /// It had ended already.
    AlreadyEnded(Job),
}

/// What became of a job whose attempt was lost.
#[derive(Clone, Debug, PartialEq)]
pub enum Rescued {
    /// Queued again.
    Requeued(Job),
    /// Out of attempts: failed with `worker_lost`.
    Failed(Job),
    /// A cancel had been requested: cancelled.
    Cancelled(Job),
}

/// A job whose deadline ([`Job::deadline`]) is over.
#[derive(Clone, Debug, PartialEq)]
pub enum Overdue {
    /// It waited: failed with `expired`.
    Ended(Box<Job>),
    /// It runs: its worker must leave it, and then finishes it as cancelled, which is recorded as `expired`.
    Running(JobId),
}

/// Which jobs to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Only this one's jobs.
    pub owner: Option<OwnerId>,
    /// Only this state.
    pub status: Option<JobStatus>,
    /// Only jobs older than this one (its id is the cursor).
    pub before: Option<JobId>,
    /// At most as many.
    pub limit: u32,
}

/// The queue at a glance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Jobs waiting.
    pub queued: u64,
    /// Jobs with a worker.
    pub running: u64,
    /// Pictures x steps x pixels of jobs waiting and running: the work ahead.
    pub pixel_steps: u64,
    /// Rows of a forward ([`GenerationRequest::rows`]) of jobs waiting.
    pub waiting_rows: u64,
}

/// Waiting jobs of one size, and the work that they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingWork {
    /// Model and resolution.
    pub size: SizeKey,
    /// How many jobs.
    pub jobs: u64,
    /// Their rows of a forward ([`GenerationRequest::rows`]).
    pub rows: u64,
    /// The same, each times its job's steps.
    pub row_steps: u64,
}

/// The way ahead of a waiting job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Where it stands.
    pub place: QueuePlace,
    /// The work that stands before it, by size, in any order.
    pub work: Vec<WaitingWork>,
}

/// What one owner has in the queue, and was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerWork {
    /// `None`: all jobs without an owner.
    pub owner: Option<OwnerId>,
    /// Its own of [`StoreOptions::weights`], or the usual one.
    pub weight: u32,
    /// Jobs waiting.
    pub queued: u64,
    /// Jobs with a worker.
    pub running: u64,
    /// Pictures x steps x pixels of all jobs that were drawn, since there were weights; not of those that were given
    /// another's pictures.
    pub pixel_steps: u64,
}

/// Models that waiting jobs need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingModels {
    /// Of one kind of job: all that it needs.
    pub models: Vec<ModelId>,
    /// The rank ([`QueuePlace::rank_ms`]) of the oldest of its kind.
    pub rank_ms: i64,
}

/// Settings every store needs.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Most jobs waiting; one more is refused with [`Error::QueueFull`].
    pub max_queued: u64,
    /// Attempts before a job that keeps losing its workers fails.
    pub max_attempts: u32,
    /// How long an ended job is kept.
    pub retention_ms: u64,
    /// Owners' shares of the devices; jobs of others, and of nobody, have 1. Empty: all jobs stand in one line.
    pub weights: BTreeMap<OwnerId, u32>,
}

/// The durable queue. Every method is atomic; time comes from the store's own [`crate::domain::Clock`].
#[async_trait]
pub trait JobStore: Send + Sync {
    /// Accepts a job, or finds the one its idempotency key made.
    async fn insert(&self, new: NewJob) -> Result<Inserted>;
    /// One job; `None` when there is none (any more).
    async fn get(&self, id: JobId) -> Result<Option<Job>>;
    /// Newest first.
    async fn list(&self, filter: JobFilter) -> Result<Vec<Job>>;
    /// Where a waiting job stands, and what stands before it; `None` when it does not wait.
    async fn ahead(&self, id: JobId) -> Result<Option<Ahead>>;
    /// All work that waits, by size, in any order.
    async fn waiting_work(&self) -> Result<Vec<WaitingWork>>;
    /// The latest job of this [`Job::identity`] that succeeded and is kept; whoever copies its pictures sees whether they are.
    async fn identical(&self, identity: &str) -> Result<Option<Job>>;
    /// What waits, by the models it needs; in any order.
    async fn waiting_models(&self) -> Result<Vec<WaitingModels>>;
    /// Takes what the request selects; empty when nothing does.
    async fn claim(&self, request: ClaimRequest) -> Result<Vec<ClaimedJob>>;
    /// Renews leases for `lease_ms` from now; answers in the order asked.
    async fn heartbeat(&self, leases: &[Lease], lease_ms: u64) -> Result<Vec<LeaseState>>;
    /// Ends an attempt. [`Error::LeaseLost`] when the lease is not held any more: the outcome is then not recorded.
    async fn finish(&self, lease: &Lease, outcome: Outcome) -> Result<Job>;
    /// Hands a job back, parked or not yet begun; the attempt is not counted. One whose end was asked for ends instead.
    async fn release(&self, lease: &Lease) -> Result<Job>;
    /// What [`JobStore::rescue_expired`] does, for a worker that knows at once that this attempt is lost; `reason` goes on from
    /// "the last one:".
    async fn lose(&self, lease: &Lease, reason: &str) -> Result<Rescued>;
    /// Cancels a waiting job, asks the worker of a running one.
    async fn cancel(&self, id: JobId) -> Result<Option<Cancelled>>;
    /// Ends or requeues jobs whose lease has expired.
    async fn rescue_expired(&self) -> Result<Vec<Rescued>>;
    /// Ends waiting jobs whose deadline is over, and tells which running ones are past theirs. No claim takes such a job.
    async fn expire_overdue(&self) -> Result<Vec<Overdue>>;
    /// Forgets one ended job; `None` when there is none, [`Error::NotEnded`] when it has not ended.
    async fn remove(&self, id: JobId) -> Result<Option<Job>>;
    /// Forgets ended jobs past their `expires_at`, at most `limit`, and returns them so that their artifacts can go too.
    async fn remove_expired(&self, limit: u32) -> Result<Vec<Job>>;
    /// The queue at a glance.
    async fn stats(&self) -> Result<QueueStats>;
    /// By owner; those who never had a job with [`StoreOptions::weights`] are left out.
    async fn owners(&self) -> Result<Vec<OwnerWork>>;
    /// Whether the store answers.
    async fn ping(&self) -> Result<()>;
}

/// What a store refuses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The queue is at its limit.
    #[error("the queue holds {limit} jobs, which is its limit")]
    QueueFull {
        /// `StoreOptions::max_queued`.
        limit: u64,
    },
    /// The key stands for another request.
    #[error("this idempotency key was used with a different request")]
    IdempotencyMismatch,
    /// Somebody else's, or ended.
    #[error("the lease of job {0} is not held any more")]
    LeaseLost(JobId),
    /// It still waits or runs.
    #[error("job {0} has not ended")]
    NotEnded(JobId),
    /// The database did not do its part.
    #[error("the job store failed: {0}")]
    Storage(String),
}

/// Of this room.
pub type Result<T> = std::result::Result<T, Error>;
