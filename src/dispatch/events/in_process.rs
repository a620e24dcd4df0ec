//! Events within one process.
//!
//! A job's topic keeps the latest event of each slot (a picture's progress, its preview, its image, the end ...), and a
//! subscription reads on from the id it saw last. So what is kept for replay and what a slow reader skips are one
//! thing, memory a job is bounded by its pictures, and a reader that goes leaves nothing behind.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{EventBus, Subscription};
use crate::domain::{Clock, EventId, JobEvent, JobEventKind, JobId, Timestamp};

/// How much an [`InProcessBus`] remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusOptions {
    /// How long an ended job's events stay for who comes late.
    pub ended_ms: u64,
    /// Most ended jobs kept, whatever their age.
    pub ended_jobs: usize,
    /// A job of which nothing was heard so long, and that nobody watches, is forgotten: its end was told elsewhere.
    pub idle_ms: u64,
}

impl Default for BusOptions {
    fn default() -> Self {
        Self { ended_ms: 60_000, ended_jobs: 1_000, idle_ms: 3_600_000 }
    }
}

/// [`EventBus`] for one process.
pub struct InProcessBus {
    shared: Arc<Shared>,
}

struct Shared {
    options: BusOptions,
    clock: Arc<dyn Clock>,
    last_id: AtomicU64,
    topics: Mutex<Topics>,
}

/// Locked before a topic's events, never after.
#[derive(Default)]
struct Topics {
    by_job: HashMap<JobId, Arc<Topic>>,
    /// In the order they ended.
    ended: VecDeque<(Timestamp, JobId)>,
    swept_at: Option<Timestamp>,
}

/// One job's events. Besides the bus, only its subscriptions hold one.
struct Topic {
    kept: Mutex<Kept>,
    changed: Notify,
}

struct Kept {
    events: BTreeMap<EventId, JobEvent>,
    latest: HashMap<Slot, EventId>,
    ended: bool,
    touched_at: Timestamp,
}

/// What a newer event takes the place of an older one in.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Slot {
    Queued,
    Started,
    Progress(u32),
    Preview(u32),
    Image(u32),
    End,
}

impl Slot {
    fn of(kind: &JobEventKind) -> Self {
        match kind {
            JobEventKind::Queued => Self::Queued,
            JobEventKind::Started { .. } => Self::Started,
            JobEventKind::Progress { image, .. } => Self::Progress(*image),
            JobEventKind::Preview { image, .. } => Self::Preview(*image),
            JobEventKind::Image(artifact) => Self::Image(artifact.index),
            JobEventKind::Succeeded | JobEventKind::Failed(_) | JobEventKind::Cancelled => Self::End,
        }
    }
}

impl InProcessBus {
    /// A bus that has heard nothing yet.
    pub fn new(options: BusOptions, clock: Arc<dyn Clock>) -> Self {
        let shared = Shared { options, clock, last_id: AtomicU64::new(0), topics: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Jobs whose events are in memory now.
    pub fn jobs_kept(&self) -> usize {
        self.shared.topics().by_job.len()
    }
}

#[async_trait]
impl EventBus for InProcessBus {
    async fn publish(&self, job: JobId, kind: JobEventKind) -> EventId {
        let now = self.shared.clock.now();
        let mut topics = self.shared.topics();
        topics.forget(&self.shared.options, now);
        let topic = topics.topic(job, now);
        let mut kept = topic.kept();
        // Drawn under the topic's lock, so that ids are kept in the order they were drawn.
        let id = self.shared.next_id(now);
        if kept.ended {
            // A worker that lost its job to another may speak late; the end has been told.
            return id;
        }
        let is_last = kind.is_terminal();
        kept.add(JobEvent { id, job_id: job, at: now, kind });
        drop(kept);
        if is_last {
            topics.ended.push_back((now, job));
        }
        topic.changed.notify_waiters();
        id
    }

    async fn subscribe(&self, job: JobId, after: Option<EventId>) -> Subscription {
        let now = self.shared.clock.now();
        let topic = self.shared.topics().topic(job, now);
        Subscription { reader: Reader { shared: self.shared.clone(), topic, job, after } }
    }
}

impl Shared {
    fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds since 1970, or one more than the last where the clock has not moved on.
    fn next_id(&self, now: Timestamp) -> EventId {
        let from_clock = u64::try_from(now.unix_ms()).unwrap_or(0).saturating_mul(1_000);
        let next = |last: u64| from_clock.max(last + 1);
        let last = self.last_id.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(next(last)));
        EventId(last.map_or(from_clock, next))
    }
}

impl Topics {
    fn topic(&mut self, job: JobId, now: Timestamp) -> Arc<Topic> {
        self.by_job.entry(job).or_insert_with(|| Arc::new(Topic::new(now))).clone()
    }

    /// Drops ended jobs that are too old or too many, and now and then those nothing is heard of. Who still reads an
    /// ended job holds its topic and reads on.
    fn forget(&mut self, options: &BusOptions, now: Timestamp) {
        while let Some((ended_at, job)) = self.ended.front().copied() {
            if now.ms_since(ended_at) < options.ended_ms && self.ended.len() <= options.ended_jobs {
                break;
            }
            self.ended.pop_front();
            self.by_job.remove(&job);
        }
        let swept_at = *self.swept_at.get_or_insert(now);
        if now.ms_since(swept_at) >= options.idle_ms {
            self.swept_at = Some(now);
            self.by_job.retain(|_, topic| {
                let kept = topic.kept();
                kept.ended || now.ms_since(kept.touched_at) < options.idle_ms || Arc::strong_count(topic) > 1
            });
        }
    }
}

impl Topic {
    fn new(now: Timestamp) -> Self {
        let kept = Kept { events: BTreeMap::new(), latest: HashMap::new(), ended: false, touched_at: now };
        Self { kept: Mutex::new(kept), changed: Notify::new() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, event: JobEvent) {
        if matches!(event.kind, JobEventKind::Started { .. }) {
            // Steps of an attempt that was lost are nobody's progress any more.
            self.drop_slots(|slot| matches!(slot, Slot::Progress(_) | Slot::Preview(_)));
        }
        self.ended = event.kind.is_terminal();
        self.touched_at = event.at;
        if let Some(superseded) = self.latest.insert(Slot::of(&event.kind), event.id) {
            self.events.remove(&superseded);
        }
        self.events.insert(event.id, event);
    }

    fn drop_slots(&mut self, is_dropped: impl Fn(&Slot) -> bool) {
        let events = &mut self.events;
        self.latest.retain(|slot, id| {
            let stays = !is_dropped(slot);
            if !stays {
                events.remove(id);
            }
            stays
        });
    }

    fn first_after(&self, after: Option<EventId>) -> Option<JobEvent> {
        let from = after.map_or(0, |EventId(id)| id.saturating_add(1));
        self.events.range(EventId(from)..).next().map(|(_, event)| event.clone())
    }
}

/// Reads one topic from an id on.
pub(super) struct Reader {
    shared: Arc<Shared>,
    topic: Arc<Topic>,
    job: JobId,
    after: Option<EventId>,
}

impl Reader {
    /// Nothing is lost when the returned future is dropped before it is done.
    pub(super) async fn next(&mut self) -> Option<JobEvent> {
        loop {
            // Made before the look, so that what is published in between wakes it.
            let changed = self.topic.changed.notified();
            {
                let kept = self.topic.kept();
                if let Some(event) = kept.first_after(self.after) {
                    self.after = Some(event.id);
                    return Some(event);
                }
                if kept.ended {
                    return None;
                }
            }
            changed.await;
        }
    }
}

impl Drop for Reader {
    /// A topic that nothing was ever published to exists for its readers only.
    fn drop(&mut self) {
        let mut topics = self.shared.topics();
        let is_empty = self.topic.kept().events.is_empty();
        // The map's and ours; more are made under the lock that is held.
        let is_alone = Arc::strong_count(&self.topic) == 2;
        let is_listed = topics.by_job.get(&self.job).is_some_and(|topic| Arc::ptr_eq(topic, &self.topic));
        if is_empty && is_alone && is_listed {
            topics.by_job.remove(&self.job);
        }
    }
}
