//! Watching a job: its present state first, then what happens, to its last event.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::{Caller, Error, GenerationService, JobView, Result};
use crate::dispatch::events::Subscription;
use crate::domain::{EventId, Job, JobEvent, JobEventKind, JobId, JobStatus, Timestamp};

/// How often a silent stream asks the store whether the job has ended: the bus may have lost its last event.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// The events of one job, ended by exactly one last event.
pub struct JobStream {
    service: std::sync::Arc<GenerationService>,
    job: JobId,
    first: VecDeque<JobEvent>,
    events: Subscription,
    /// States that began before this, in no later attempt, are told already.
    told_until: Timestamp,
    told_attempts: u32,
    last: EventId,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for JobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JobStream({})", self.job)
    }
}

impl GenerationService {
    /// Watches a job. Without `after`, the present state comes first; with it, what has happened since that event. An
    /// ended job's last event comes at once.
    ///
    /// # Errors
    /// No such job; too many watchers; a store that failed.
    pub async fn subscribe(
        self: &std::sync::Arc<Self>,
        caller: &Caller,
        id: JobId,
        after: Option<EventId>,
    ) -> Result<JobStream> {
        let busy = |_| Error::Unavailable { reason: "too many event streams are open", retry_after_s: 5 };
        let permit = self.watchers.clone().try_acquire_owned().map_err(busy)?;
        // Subscribed before the row is read: what happens in between is in one of the two.
        let events = self.parts.events.subscribe(id, after).await;
        let job = self.job(caller, id).await?;
        // Whoever has seen the present state's event, or is told it now, need not hear of it again from the bus, which
        // may have published it a moment after the row's time.
        let knows_state = after.is_none_or(|seen| state_of(&job).is_some_and(|state| state.id <= seen));
        let told_until = if knows_state { self.parts.clock.now() } else { Timestamp::from_unix_ms(0) };
        let ended = job.status.is_terminal();
        let first = if ended || after.is_none() { state_of(&job).into_iter().collect() } else { VecDeque::new() };
        Ok(JobStream {
            service: self.clone(),
            job: id,
            first,
            events,
            told_until,
            told_attempts: job.attempts,
            last: after.unwrap_or(EventId(0)),
            ended: false,
            _permit: permit,
        })
    }

    /// Waits until a job has ended, at most so long; the job as it then stands.
    ///
    /// # Errors
    /// As [`GenerationService::subscribe`].
    pub async fn wait(self: &std::sync::Arc<Self>, caller: &Caller, id: JobId, at_most: Duration) -> Result<JobView> {
        let mut events = self.subscribe(caller, id, None).await?;
        let ended = async { while events.next().await.is_some() {} };
        // Whether in time or not, the row says how it stands.
        let _ = tokio::time::timeout(at_most, ended).await;
        self.get(caller, id).await
    }
}

impl JobStream {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<JobEvent> {
        loop {
            if self.ended {
                return None;
            }
            let event = match self.first.pop_front() {
                Some(event) => event,
                None => self.next_told().await?,
            };
            // Events told by the row carry the row's times: an id seen already is told again only for a job's end.
            // A worker may have begun in the very millisecond in which the row still said `queued`.
            let is_told = match event.kind {
                JobEventKind::Queued => true,
                JobEventKind::Started { attempt } => attempt <= self.told_attempts,
                _ => false,
            };
            let is_old = is_told && event.at <= self.told_until && self.last > EventId(0);
            if is_old {
                continue;
            }
            self.last = self.last.max(event.id);
            self.ended = event.kind.is_terminal();
            return Some(JobEvent { id: self.last, ..event });
        }
    }

    async fn next_told(&mut self) -> Option<JobEvent> {
        loop {
            if let Ok(event) = tokio::time::timeout(ASK_EVERY, self.events.next()).await {
                match event {
                    Some(event) => return Some(event),
                    // The bus has nothing more to tell: the row decides.
                    None => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
            match self.service.parts.jobs.get(self.job).await {
                Ok(Some(job)) if job.status.is_terminal() => return state_of(&job),
                // Removed while being watched: there is no last event to tell.
                Ok(None) => return None,
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }
}

/// The event that stands for a job's present state.
fn state_of(job: &Job) -> Option<JobEvent> {
    let (kind, at) = match job.status {
        JobStatus::Queued => (JobEventKind::Queued, Some(job.created_at)),
        JobStatus::Running => (JobEventKind::Started { attempt: job.attempts }, job.started_at),
        JobStatus::Succeeded => (JobEventKind::Succeeded, job.ended_at),
        JobStatus::Failed => (JobEventKind::Failed(job.error.clone()?), job.ended_at),
        JobStatus::Cancelled => (JobEventKind::Cancelled, job.ended_at),
    };
    let at = at.unwrap_or(job.created_at);
    Some(JobEvent { id: EventId(at.unix_ms().max(0) as u64 * 1000), job_id: job.id, at, kind })
}
