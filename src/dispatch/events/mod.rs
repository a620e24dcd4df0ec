//! Trait [`EventBus`]: who watches a job hears of it. Keeps the latest events of each live job for replay.
//!
//! Not the truth about a job's end: that is its row in the job store, which subscribers' callers read as well.

mod in_process;

pub use in_process::{BusOptions, InProcessBus};

use async_trait::async_trait;

use crate::domain::{EventId, JobEvent, JobEventKind, JobId};

/// Carries events from workers to watchers.
#[async_trait]
pub trait EventBus: Send + Sync {
    /// Tells everyone who watches `job`. Ids grow within a job, across restarts too (drawn from the clock).
    async fn publish(&self, job: JobId, kind: JobEventKind) -> EventId;

    /// Watches `job`: first what is kept after `after` (everything kept when `None`), then what comes.
    async fn subscribe(&self, job: JobId, after: Option<EventId>) -> Subscription;
}

/// Events of one job, in order. A slow reader of progress skips to the latest; it never misses `image` or the last event.
/// Dropping it ends the watch; nothing stays behind.
pub struct Subscription {
    reader: in_process::Reader,
}

impl Subscription {
    /// The next event; `None` when the bus has nothing more to tell of this job. The future may be dropped: the event it
    /// waited for is then the next one's.
    pub async fn next(&mut self) -> Option<JobEvent> {
        self.reader.next().await
    }
}
