//! What a watcher of a job is told, when everything happens within one millisecond of the clock.

use std::sync::Arc;
use std::time::Duration;

use darkroom::dispatch::artifacts::ArtifactStore;
use darkroom::dispatch::events::{BusOptions, EventBus, InProcessBus};
use darkroom::dispatch::hub::WorkerHub;
use darkroom::domain::{JobEventKind, Limits};
use darkroom::service::{Caller, EmptyShelf, GenerationService, JobStream, ServiceOptions, ServiceParts, UnknownFiles};
use darkroom::telemetry::Metrics;

use super::job_store_bed::{Bed, OPTIONS, claim};
use super::request;

struct Watched {
    bed: Bed,
    events: Arc<dyn EventBus>,
    service: Arc<GenerationService>,
    _folder: tempfile::TempDir,
}

impl Watched {
    async fn new() -> Self {
        let bed = Bed::memory(OPTIONS).await;
        let folder = tempfile::tempdir().unwrap();
        let events: Arc<dyn EventBus> = Arc::new(InProcessBus::new(BusOptions::default(), bed.clock.clone()));
        let parts = ServiceParts {
            jobs: bed.store.clone(),
            events: events.clone(),
            artifacts: ArtifactStore::filesystem(folder.path()).unwrap(),
            hub: Arc::new(WorkerHub::default()),
            metrics: Arc::new(Metrics::new().unwrap()),
            clock: bed.clock.clone(),
            models: vec![super::model("tiny")],
            loras: Arc::new(EmptyShelf),
            files: Arc::new(UnknownFiles),
        };
        let options = ServiceOptions { limits: Limits::default(), max_queued: 10, max_watchers: 10, reuse: false };
        Self { bed, events, service: Arc::new(GenerationService::new(parts, options)), _folder: folder }
    }
}

async fn told(stream: &mut JobStream) -> &'static str {
    let event = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.expect("an event in time");
    event.expect("the job has not ended").kind.name()
}

#[tokio::test]
async fn a_job_that_starts_in_the_millisecond_it_was_seen_waiting_is_told_to_have_started() {
    let watched = Watched::new().await;
    let job = watched.bed.insert(request(|_| ())).await.id;
    watched.events.publish(job, JobEventKind::Queued).await;
    let mut stream = watched.service.subscribe(&Caller::Anybody, job, None).await.unwrap();
    assert_eq!(watched.bed.one().await.job.id, job);
    watched.events.publish(job, JobEventKind::Started { attempt: 1 }).await;
    assert_eq!([told(&mut stream).await, told(&mut stream).await], ["queued", "started"]);
}

#[tokio::test]
async fn a_state_told_by_the_row_is_not_told_again_by_the_bus() {
    let watched = Watched::new().await;
    let job = watched.bed.insert(request(|_| ())).await.id;
    watched.events.publish(job, JobEventKind::Queued).await;
    assert_eq!(watched.bed.store.claim(claim(1)).await.unwrap().len(), 1);
    let mut stream = watched.service.subscribe(&Caller::Anybody, job, None).await.unwrap();
    watched.events.publish(job, JobEventKind::Started { attempt: 1 }).await;
    watched.events.publish(job, JobEventKind::Progress { image: 0, step: 1, total: 10 }).await;
    assert_eq!([told(&mut stream).await, told(&mut stream).await], ["started", "progress"]);
    // Its worker is lost, another begins.
    watched.events.publish(job, JobEventKind::Started { attempt: 2 }).await;
    assert_eq!(told(&mut stream).await, "started");
}
