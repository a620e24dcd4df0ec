//! What becomes of one stored job, whoever stores it: every change of state, as arithmetic on a record.
//!
//! The stores find records and write them back; they change none by themselves.

use std::hash::{BuildHasher, RandomState};

use super::shares::{Turn, Weight};
use super::{
    ClaimRequest, Error, Idempotency, Lease, LeaseState, NewJob, Origin, Outcome, Overdue, Rescued, Result,
    StoreOptions,
};
use crate::domain::{
    ALIKE_WITHIN_MS, ErrorCode, GenerationRequest, Job, JobError, JobId, JobStatus, JobTimings, QueuePlace, Timestamp,
    Transition, WorkerId,
};

/// A job with what only the store needs to know.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) job: Job,
    pub(super) place: QueuePlace,
    /// Where owners had weights when it was accepted.
    pub(super) turn: Option<Turn>,
    pub(super) lease: Option<HeldLease>,
    pub(super) idempotency: Option<Idempotency>,
}

/// The lease of a running job.
#[derive(Clone, Debug)]
pub(super) struct HeldLease {
    pub(super) worker: WorkerId,
    pub(super) token: u64,
    pub(super) expires_at: Timestamp,
}

impl Record {
    pub(super) fn new(new: NewJob, options: &StoreOptions, now: Timestamp) -> Result<Self> {
        let job = Job {
            id: new.id,
            owner: new.owner,
            status: JobStatus::Queued,
            request: new.request,
            created_at: now,
            started_at: None,
            ended_at: None,
            expires_at: None,
            attempts: 0,
            cancel_requested: false,
            images: Vec::new(),
            timings: None,
            warnings: Vec::new(),
            error: None,
            identity: new.identity,
            reused_from: None,
        };
        let mut record = Self { place: job.place(), turn: None, job, lease: None, idempotency: new.idempotency };
        if let Some(answer) = new.answer {
            record.step(Transition::Answer)?;
            record.job.images = answer.images;
            record.job.warnings = answer.warnings;
            record.job.reused_from = Some(answer.from);
            record.end(JobTimings::default(), options, now);
        }
        Ok(record)
    }

    /// Its owner's turn is its place.
    pub(super) fn take(&mut self, turn: Turn, weight: Weight) {
        self.place.rank_ms = turn.rank_ms(self.job.request.priority(), weight);
        self.turn = Some(turn);
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest, now: Timestamp) -> Result<Lease> {
        self.step(Transition::Claim)?;
        self.job.attempts += 1;
        self.job.started_at = Some(now);
        let held = HeldLease {
            worker: request.worker.clone(),
            token: fresh_token(self.job.id),
            expires_at: now.plus_ms(clamp_ms(request.lease_ms)),
        };
        let lease =
            Lease { job_id: self.job.id, worker: held.worker.clone(), token: held.token, expires_at: held.expires_at };
        self.lease = Some(held);
        Ok(lease)
    }

    /// A lease whose time has run out is still held until the rescue has been: nobody else works on the job before.
    pub(super) fn renew(&mut self, lease: &Lease, lease_ms: u64, now: Timestamp) -> LeaseState {
        match &mut self.lease {
            Some(held) if held.token == lease.token => {
                held.expires_at = now.plus_ms(clamp_ms(lease_ms));
                let is_to_leave = self.job.cancel_requested || self.job.is_overdue(now);
                if is_to_leave { LeaseState::CancelRequested } else { LeaseState::Held }
            }
            _ => LeaseState::Lost,
        }
    }

    pub(super) fn finish(
        &mut self,
        lease: &Lease,
        outcome: Outcome,
        options: &StoreOptions,
        now: Timestamp,
    ) -> Result<()> {
        self.check(lease)?;
        let timings = match outcome {
            Outcome::Succeeded { images, timings, warnings, origin } => {
                self.step(Transition::Succeed)?;
                match origin {
                    Origin::Drawn => {}
                    Origin::DrawnOtherwise => self.job.identity = None,
                    Origin::Copied(from) => self.job.reused_from = Some(from),
                }
                self.job.images = images;
                self.job.warnings = warnings;
                timings
            }
            Outcome::Failed(error) => {
                self.step(Transition::Fail)?;
                self.job.error = Some(error);
                JobTimings::default()
            }
            Outcome::Cancelled if !self.job.cancel_requested && self.job.is_overdue(now) => {
                self.expire(now)?;
                JobTimings::default()
            }
            Outcome::Cancelled => {
                self.step(Transition::Cancel)?;
                JobTimings::default()
            }
        };
        self.end(timings, options, now);
        Ok(())
    }

    /// Back in the queue with its old rank, the attempt not counted; a job whose end was asked for ends instead.
    pub(super) fn release(&mut self, lease: &Lease, options: &StoreOptions, now: Timestamp) -> Result<()> {
        self.check(lease)?;
        self.job.attempts = self.job.attempts.saturating_sub(1);
        if self.job.cancel_requested {
            self.step(Transition::Cancel)?;
            self.end(JobTimings::default(), options, now);
        } else {
            self.step(Transition::Requeue)?;
            self.lease = None;
            self.job.started_at = None;
        }
        Ok(())
    }

    /// Ends a waiting job, marks a running one, leaves an ended one.
    pub(super) fn cancel(&mut self, options: &StoreOptions, now: Timestamp) -> Result<super::Cancelled> {
        match self.job.status {
            JobStatus::Queued => {
                self.job.cancel_requested = true;
                self.job.started_at = None;
                self.step(Transition::Cancel)?;
                self.end(JobTimings::default(), options, now);
                Ok(super::Cancelled::Now(self.job.clone()))
            }
            JobStatus::Running => {
                self.job.cancel_requested = true;
                Ok(super::Cancelled::Requested(self.job.clone()))
            }
            JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => {
                Ok(super::Cancelled::AlreadyEnded(self.job.clone()))
            }
        }
    }

    /// For a job whose deadline may be over; `None` when it is not.
    pub(super) fn overdue(&mut self, options: &StoreOptions, now: Timestamp) -> Result<Option<Overdue>> {
        if !self.job.is_overdue(now) {
            return Ok(None);
        }
        if self.job.status == JobStatus::Running {
            return Ok(Some(Overdue::Running(self.job.id)));
        }
        self.expire(now)?;
        self.end(JobTimings::default(), options, now);
        Ok(Some(Overdue::Ended(Box::new(self.job.clone()))))
    }

    fn expire(&mut self, now: Timestamp) -> Result<()> {
        let request = &self.job.request;
        let is_past_end = |seconds: &u32| self.job.created_at.plus_ms(i64::from(*seconds) * 1000) <= now;
        let message = match (request.expires_in().filter(is_past_end), request.start_within()) {
            (None, Some(seconds)) => format!("it was not started within {seconds} s (`start_within`)"),
            (seconds, _) => format!("it had not ended within {} s (`expires_in`)", seconds.unwrap_or_default()),
        };
        self.step(Transition::Expire)?;
        self.job.error = Some(JobError { code: ErrorCode::Expired, message });
        Ok(())
    }

    /// The holder of the lease says that its attempt is lost.
    pub(super) fn lose(
        &mut self,
        lease: &Lease,
        reason: &str,
        options: &StoreOptions,
        now: Timestamp,
    ) -> Result<Rescued> {
        self.check(lease)?;
        self.rescue(Some(reason), options, now)
    }

    /// For a running job whose lease has expired, which the caller has looked at, or whose attempt is lost for this reason.
    pub(super) fn rescue(&mut self, reason: Option<&str>, options: &StoreOptions, now: Timestamp) -> Result<Rescued> {
        if self.job.cancel_requested {
            self.step(Transition::Cancel)?;
            self.end(JobTimings::default(), options, now);
            return Ok(Rescued::Cancelled(self.job.clone()));
        }
        if self.job.attempts >= options.max_attempts {
            self.step(Transition::Fail)?;
            let last = reason.map(|reason| format!("; the last one: {reason}")).unwrap_or_default();
            let message = format!("each of the job's {} attempts lost its worker{last}", self.job.attempts);
            self.job.error = Some(JobError { code: ErrorCode::WorkerLost, message });
            self.end(JobTimings::default(), options, now);
            return Ok(Rescued::Failed(self.job.clone()));
        }
        self.step(Transition::Requeue)?;
        self.lease = None;
        Ok(Rescued::Requeued(self.job.clone()))
    }

    fn check(&self, lease: &Lease) -> Result<()> {
        match &self.lease {
            Some(held) if held.token == lease.token => Ok(()),
            _ => Err(Error::LeaseLost(self.job.id)),
        }
    }

    fn step(&mut self, transition: Transition) -> Result<()> {
        let (id, from) = (self.job.id, self.job.status);
        self.job.status =
            from.after(transition).ok_or_else(|| Error::Storage(format!("job {id} is {from}: no {transition:?}")))?;
        Ok(())
    }

    fn end(&mut self, worked: JobTimings, options: &StoreOptions, now: Timestamp) {
        self.lease = None;
        self.job.ended_at = Some(now);
        self.job.expires_at = Some(now.plus_ms(clamp_ms(options.retention_ms)));
        self.job.timings = Some(JobTimings {
            queued_ms: self.job.started_at.unwrap_or(now).ms_since(self.job.created_at),
            total_ms: now.ms_since(self.job.created_at),
            ..worked
        });
    }
}

/// The order of [`super::Select::Fill`], from the jobs of its size by age and those of its step count by age.
pub(super) fn fill_order(by_age: &[QueuePlace], alike: &[QueuePlace]) -> Vec<QueuePlace> {
    let oldest = by_age.first();
    let until = oldest.map_or(i64::MAX, |place| place.rank_ms.saturating_add(ALIKE_WITHIN_MS));
    let alike = alike.iter().filter(|job| Some(*job) != oldest && job.rank_ms <= until);
    let mut order: Vec<QueuePlace> = oldest.into_iter().chain(alike).copied().collect();
    let rest: Vec<QueuePlace> = by_age.iter().filter(|job| !order.contains(job)).copied().collect();
    order.extend(rest);
    order
}

/// What a claim may still take: counts rows and pixels as jobs are added.
pub(super) struct Room {
    rows: u64,
    row_pixels: u64,
    taken: bool,
}

impl Room {
    pub(super) fn of(request: &ClaimRequest) -> Self {
        Self { rows: u64::from(request.max_rows), row_pixels: request.max_row_pixels, taken: false }
    }

    /// Takes a job of so many rows and row pixels when there is room; the first is always taken.
    pub(super) fn take(&mut self, rows: u64, row_pixels: u64) -> bool {
        let fits = rows <= self.rows && row_pixels <= self.row_pixels;
        if !fits && self.taken {
            return false;
        }
        self.taken = true;
        self.rows = self.rows.saturating_sub(rows);
        self.row_pixels = self.row_pixels.saturating_sub(row_pixels);
        true
    }
}

/// Rows x width x height of the largest evaluation.
pub(super) fn row_pixels(request: &GenerationRequest) -> u64 {
    u64::from(request.rows()) * request.most_pixels()
}

/// Pictures x steps x width x height.
pub(super) fn pixel_steps(request: &GenerationRequest) -> u64 {
    u64::from(request.num_images()) * request.pixel_steps()
}

/// 64 bits nobody can have seen before: SipHash under keys the standard library draws from the system.
fn fresh_token(id: JobId) -> u64 {
    RandomState::new().hash_one((id, JobId::generate()))
}

fn clamp_ms(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
