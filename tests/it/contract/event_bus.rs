//! What every `EventBus` promises, and how much the one in this process remembers.

use std::sync::Arc;

use bytes::Bytes;
use darkroom::dispatch::events::{BusOptions, EventBus, InProcessBus, Subscription};
use darkroom::domain::{
    Artifact, ErrorCode, EventId, ImageFormat, JobError, JobEvent, JobEventKind, JobId, ManualClock,
};
use futures::FutureExt;

use super::job_store_bed::clock;

const OPTIONS: BusOptions = BusOptions { ended_ms: 1_000, ended_jobs: 3, idle_ms: 60_000 };

fn bus() -> (InProcessBus, Arc<ManualClock>) {
    let clock = clock();
    (InProcessBus::new(OPTIONS, clock.clone()), clock)
}

fn progress(image: u32, step: u32) -> JobEventKind {
    JobEventKind::Progress { image, step, total: 9 }
}

fn preview(image: u32, step: u32) -> JobEventKind {
    JobEventKind::Preview { image, step, jpeg: Bytes::from_static(b"jpeg") }
}

fn image(index: u32) -> JobEventKind {
    JobEventKind::Image(Artifact {
        index,
        seed: 7,
        width: 64,
        height: 64,
        format: ImageFormat::Png,
        size_bytes: 10,
        sha256: String::new(),
    })
}

/// Everything that can be read without waiting.
fn ready(subscription: &mut Subscription) -> Vec<JobEventKind> {
    let mut kinds = Vec::new();
    while let Some(Some(event)) = subscription.next().now_or_never() {
        kinds.push(event.kind);
    }
    kinds
}

async fn publish(bus: &InProcessBus, job: JobId, kinds: impl IntoIterator<Item = JobEventKind>) -> Vec<EventId> {
    let mut ids = Vec::new();
    for kind in kinds {
        ids.push(bus.publish(job, kind).await);
    }
    ids
}

#[tokio::test]
async fn a_watcher_hears_a_whole_life_in_order() {
    let (bus, clock) = bus();
    let job = JobId::generate();
    let mut subscription = bus.subscribe(job, None).await;
    let life = [
        JobEventKind::Queued,
        JobEventKind::Started { attempt: 1 },
        progress(0, 1),
        preview(0, 1),
        progress(0, 2),
        image(0),
        JobEventKind::Succeeded,
    ];
    let mut last = EventId(0);
    for kind in life {
        clock.advance_ms(1);
        let id = bus.publish(job, kind.clone()).await;
        let event = subscription.next().await.unwrap();
        assert_eq!((event.id, event.job_id, &event.kind), (id, job, &kind));
        assert!(event.id > last);
        last = event.id;
    }
    assert_eq!(subscription.next().await, None);
    assert_eq!(subscription.next().await, None);
}

#[tokio::test]
async fn ids_are_microseconds_and_grow_while_the_clock_stands() {
    let (bus, clock) = bus();
    let (one, two) = (JobId::generate(), JobId::generate());
    let first = bus.publish(one, progress(0, 1)).await;
    assert_eq!(first, EventId(1_700_000_000_000_000));
    assert_eq!(bus.publish(two, progress(0, 1)).await, EventId(first.0 + 1));
    assert_eq!(bus.publish(one, progress(0, 2)).await, EventId(first.0 + 2));
    clock.advance_ms(-5);
    assert_eq!(bus.publish(one, progress(0, 3)).await, EventId(first.0 + 3));
    clock.advance_ms(6);
    assert_eq!(bus.publish(one, progress(0, 4)).await, EventId(first.0 + 1_000));
}

#[tokio::test]
async fn who_returns_hears_what_came_since() {
    let (bus, _) = bus();
    let job = JobId::generate();
    let ids = publish(&bus, job, [JobEventKind::Queued, progress(0, 1), image(0), progress(1, 1)]).await;
    assert_eq!(ready(&mut bus.subscribe(job, None).await).len(), 4);
    assert_eq!(ready(&mut bus.subscribe(job, Some(ids[1])).await), [image(0), progress(1, 1)]);
    assert_eq!(ready(&mut bus.subscribe(job, Some(ids[3])).await), []);
    // An id nobody kept, older than all.
    assert_eq!(ready(&mut bus.subscribe(job, Some(EventId(3))).await).len(), 4);
    bus.publish(job, JobEventKind::Cancelled).await;
    let mut returned = bus.subscribe(job, Some(ids[3])).await;
    assert_eq!(returned.next().await.map(|event| event.kind), Some(JobEventKind::Cancelled));
    assert_eq!(returned.next().await, None);
}

#[tokio::test]
async fn who_saw_the_end_hears_nothing_more() {
    let (bus, _) = bus();
    let job = JobId::generate();
    let end = bus.publish(job, JobEventKind::Succeeded).await;
    assert_eq!(bus.subscribe(job, Some(end)).await.next().await, None);
}

#[tokio::test]
async fn a_slow_reader_skips_progress_but_no_image_and_not_the_end() {
    let (bus, _) = bus();
    let job = JobId::generate();
    let mut slow = bus.subscribe(job, None).await;
    publish(&bus, job, [JobEventKind::Queued, JobEventKind::Started { attempt: 1 }]).await;
    for picture in 0..16 {
        for step in 0..500 {
            publish(&bus, job, [progress(picture, step), preview(picture, step)]).await;
        }
        bus.publish(job, image(picture)).await;
    }
    bus.publish(job, JobEventKind::Succeeded).await;
    let heard = ready(&mut slow);
    let mut expected = vec![JobEventKind::Queued, JobEventKind::Started { attempt: 1 }];
    for picture in 0..16 {
        expected.extend([progress(picture, 499), preview(picture, 499), image(picture)]);
    }
    expected.push(JobEventKind::Succeeded);
    assert_eq!(heard, expected);
}

#[tokio::test]
async fn a_new_attempt_takes_back_the_old_ones_progress() {
    let (bus, _) = bus();
    let job = JobId::generate();
    let started = |attempt| JobEventKind::Started { attempt };
    publish(&bus, job, [JobEventKind::Queued, started(1), progress(0, 5), preview(0, 5), image(1)]).await;
    publish(&bus, job, [JobEventKind::Queued, started(2)]).await;
    assert_eq!(ready(&mut bus.subscribe(job, None).await), [image(1), JobEventKind::Queued, started(2)]);
}

#[tokio::test]
async fn nothing_follows_the_end() {
    let (bus, _) = bus();
    let job = JobId::generate();
    let failed = JobEventKind::Failed(JobError { code: ErrorCode::WorkerLost, message: "lost".to_owned() });
    publish(&bus, job, [failed.clone(), progress(0, 1), image(0), JobEventKind::Succeeded]).await;
    let mut subscription = bus.subscribe(job, None).await;
    assert_eq!(ready(&mut subscription), [failed]);
    assert_eq!(subscription.next().await, None);
}

#[tokio::test]
async fn jobs_do_not_hear_each_other() {
    let (bus, _) = bus();
    let (one, two) = (JobId::generate(), JobId::generate());
    let mut subscription = bus.subscribe(one, None).await;
    publish(&bus, two, [JobEventKind::Queued, JobEventKind::Succeeded]).await;
    assert_eq!(ready(&mut subscription), []);
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing() {
    let (bus, _) = bus();
    let job = JobId::generate();
    let mut subscription = bus.subscribe(job, None).await;
    assert!(subscription.next().now_or_never().is_none());
    bus.publish(job, JobEventKind::Queued).await;
    assert_eq!(subscription.next().await.map(|event| event.kind), Some(JobEventKind::Queued));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_watchers_hear_every_image_while_it_is_drawn() {
    let (bus, _) = bus();
    let (bus, job) = (Arc::new(bus), JobId::generate());
    let mut watchers = Vec::new();
    for _ in 0..16 {
        watchers.push(tokio::spawn(listen(bus.subscribe(job, None).await)));
    }
    for picture in 0..8 {
        for step in 0..50 {
            bus.publish(job, progress(picture, step)).await;
            tokio::task::yield_now().await;
        }
        bus.publish(job, image(picture)).await;
    }
    bus.publish(job, JobEventKind::Succeeded).await;
    for watcher in watchers {
        let events = watcher.await.unwrap();
        assert!(events.windows(2).all(|pair| pair[0].id < pair[1].id));
        let images = events.iter().filter(|event| matches!(event.kind, JobEventKind::Image(_))).count();
        assert_eq!((images, events.last().map(|event| event.kind.name())), (8, Some("succeeded")));
    }
}

async fn listen(mut subscription: Subscription) -> Vec<JobEvent> {
    let mut events = Vec::new();
    while let Some(event) = subscription.next().await {
        events.push(event);
    }
    events
}

#[tokio::test]
async fn ended_jobs_are_forgotten_by_age_and_number() {
    let (bus, clock) = bus();
    let reader_of_the_first = JobId::generate();
    let mut subscription = bus.subscribe(reader_of_the_first, None).await;
    bus.publish(reader_of_the_first, JobEventKind::Succeeded).await;
    for _ in 0..10 {
        bus.publish(JobId::generate(), JobEventKind::Succeeded).await;
    }
    // Forgetting comes before adding: one more than the limit at most.
    assert_eq!(bus.jobs_kept(), OPTIONS.ended_jobs + 1);
    clock.advance_ms(OPTIONS.ended_ms as i64);
    bus.publish(JobId::generate(), JobEventKind::Queued).await;
    assert_eq!(bus.jobs_kept(), 1);
    // Who watched a job that is forgotten still hears its end.
    assert_eq!(ready(&mut subscription), [JobEventKind::Succeeded]);
    assert_eq!(subscription.next().await, None);
}

#[tokio::test]
async fn silent_jobs_are_forgotten_unless_watched() {
    let (bus, clock) = bus();
    let (silent, watched) = (JobId::generate(), JobId::generate());
    publish(&bus, silent, [JobEventKind::Queued]).await;
    publish(&bus, watched, [JobEventKind::Queued]).await;
    let mut subscription = bus.subscribe(watched, None).await;
    clock.advance_ms(OPTIONS.idle_ms as i64);
    bus.publish(JobId::generate(), JobEventKind::Queued).await;
    assert_eq!(bus.jobs_kept(), 2);
    bus.publish(watched, JobEventKind::Cancelled).await;
    assert_eq!(ready(&mut subscription), [JobEventKind::Queued, JobEventKind::Cancelled]);
}

#[tokio::test]
async fn a_dropped_subscription_leaves_nothing_behind() {
    let (bus, _) = bus();
    let job = JobId::generate();
    let (one, two) = (bus.subscribe(job, None).await, bus.subscribe(job, None).await);
    assert_eq!(bus.jobs_kept(), 1);
    drop(one);
    assert_eq!(bus.jobs_kept(), 1);
    drop(two);
    assert_eq!(bus.jobs_kept(), 0);
}
