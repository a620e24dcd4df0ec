//! Workers of one process: what waits with a busy one is drawn by an idle one, to the same bytes.

use std::collections::HashMap;
use std::sync::Arc;

use darkroom::diffusion::batching::BatchCaps;
use darkroom::diffusion::engine::{EngineOptions, Fault, FaultHook};
use darkroom::dispatch::events::{BusOptions, EventBus, InProcessBus};
use darkroom::dispatch::jobs::{JobStore, NewJob};
use darkroom::dispatch::workers::WorkerOptions;
use darkroom::domain::{DeviceSpec, GenerationRequest, Job, JobId, JobStatus, Priority, SystemClock};

use super::job_store_bed::new_job;
use super::workers::{DEADLINE, PATIENCE, options, parts, pool_with, store, watched};
use crate::support::drafts::{checked, draft, pipeline};
use crate::support::gate::Gate;

/// Guided: a forward of two rows has room for one.
fn request(seed: u64, steps: i64, priority: Priority) -> GenerationRequest {
    let mut draft = draft("a cat", seed);
    (draft.steps, draft.guidance_scale, draft.sampler) = (Some(steps), Some(3.0), Some("euler_a".to_owned()));
    draft.priority = Some(priority.name().to_owned());
    checked(draft, &*pipeline("tiny-sd"))
}

async fn accept(jobs: &dyn JobStore, id: JobId, request: GenerationRequest) {
    jobs.insert(NewJob { id, ..new_job(request) }).await.unwrap();
}

/// Until the job's first event of this kind.
async fn heard(events: &dyn EventBus, job: JobId, kind: &str) {
    let mut subscription = events.subscribe(job, None).await;
    let comes = async { while subscription.next().await.unwrap().kind.name() != kind {} };
    tokio::time::timeout(DEADLINE, comes).await.expect("the event comes in time");
}

async fn succeeded(jobs: &dyn JobStore, events: &dyn EventBus, id: JobId) -> Job {
    watched(events, id).await;
    let job = jobs.get(id).await.unwrap().unwrap();
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1), "{:?}", job.error);
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_goes_on_with_what_waits_with_a_busy_one() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(SystemClock);
    let events: Arc<dyn EventBus> = Arc::new(InProcessBus::new(BusOptions::default(), clock.clone()));
    let jobs = store(folder.path(), clock).await;
    let parts = parts(folder.path(), jobs.clone(), events.clone());
    let [first, bulk, last, again] = std::array::from_fn(|_| JobId::generate());
    let gate = |steps| Arc::new(Gate::after_steps(steps));
    let (first_begins, bulk_goes_on, last_goes_on, last_ends) = (gate(0), gate(10), gate(1), gate(140));
    let gates: HashMap<JobId, Vec<FaultHook>> = HashMap::from([
        (first, vec![first_begins.hook()]),
        (bulk, vec![bulk_goes_on.hook()]),
        (last, vec![last_goes_on.hook(), last_ends.hook()]),
    ]);
    let fault: FaultHook = Arc::new(move |job, point| {
        for hook in gates.get(&job).into_iter().flatten() {
            hook(job, point);
        }
        Fault::None
    });
    let caps = BatchCaps { max_rows: 2, max_row_pixels: u64::MAX };
    let engine = EngineOptions { caps, fault: Some(fault), ..EngineOptions::default() };
    let two = WorkerOptions { devices: vec![DeviceSpec::Cpu; 2], ..options("here", engine) };
    let pool = pool_with(parts.clone(), two).await;

    // Each worker has a job; then the bulk job gives way to another, and waits.
    accept(&*jobs, first, request(1, 3, Priority::Interactive)).await;
    heard(&*events, first, "started").await;
    accept(&*jobs, bulk, request(2, 150, Priority::Bulk)).await;
    heard(&*events, bulk, "started").await;
    accept(&*jobs, last, request(3, 150, Priority::Interactive)).await;
    heard(&*events, last, "started").await;
    bulk_goes_on.open();
    heard(&*events, last, "progress").await;
    // The other worker is done with its own, and asks until it is given something.
    let mut asks = parts.hub.asks();
    first_begins.open();
    succeeded(&*jobs, &*events, first).await;
    for _ in 0..3 {
        tokio::time::timeout(DEADLINE, asks.recv()).await.expect("it asks in time").unwrap();
    }
    last_goes_on.open();
    // It would wait for ever where it was: the last job does not end before.
    let moved = succeeded(&*jobs, &*events, bulk).await;
    last_ends.open();
    succeeded(&*jobs, &*events, last).await;
    assert_eq!((parts.metrics.parked.get(), parts.metrics.resumed.get()), (1, 1));

    accept(&*jobs, again, request(2, 150, Priority::Bulk)).await;
    let undisturbed = succeeded(&*jobs, &*events, again).await;
    assert_eq!(moved.images, undisturbed.images);
    pool.drain(PATIENCE).await;
    assert_eq!(parts.artifacts.get_parked(bulk, u64::MAX).await.unwrap(), None);
}
