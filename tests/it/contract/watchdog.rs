//! Engines that hang, end or lose their device: their jobs are tried again, every one of them ends, and a device that keeps
//! failing is taken out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use darkroom::diffusion::engine::{EngineOptions, Fault, FaultHook, FaultPoint};
use darkroom::dispatch::events::{BusOptions, EventBus, InProcessBus};
use darkroom::dispatch::hub::{WorkerState, WorkerStatus};
use darkroom::dispatch::workers::{PoolParts, WorkerOptions, WorkerPool};
use darkroom::domain::{ErrorCode, Job, JobId, JobStatus, SystemClock};

use super::job_store_bed::insert;
use super::workers::{DEADLINE, PATIENCE, options, parts, pool, pool_with, request, store, watched};
use crate::support::gate::Gate;

/// Far more than a step of tiny-sd takes on a busy machine.
const HANG: Duration = Duration::from_secs(5);

/// Fails the first `times` that a first step is asked of.
fn failing(times: u32, fault: impl Fn() -> Fault + Send + Sync + 'static) -> FaultHook {
    let seen = AtomicU32::new(0);
    Arc::new(move |_, point| match point {
        FaultPoint::Evaluate { step: 0, .. } if seen.fetch_add(1, Ordering::SeqCst) < times => fault(),
        _ => Fault::None,
    })
}

struct Bed {
    folder: tempfile::TempDir,
    parts: PoolParts,
    jobs: Vec<JobId>,
}

impl Bed {
    async fn new(jobs: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(SystemClock);
        let events: Arc<dyn EventBus> = Arc::new(InProcessBus::new(BusOptions::default(), clock.clone()));
        let store = store(folder.path(), clock).await;
        let mut ids = Vec::new();
        for seed in 0..jobs {
            // Of different step counts: under `grouped`, each in a batch of its own.
            ids.push(insert(&*store, request(seed, 3 + seed as i64)).await.id);
        }
        let parts = parts(folder.path(), store, events);
        Self { folder, parts, jobs: ids }
    }

    async fn ended(&self, job: JobId) -> Job {
        watched(&*self.parts.events, job).await;
        self.parts.jobs.get(job).await.unwrap().unwrap()
    }

    fn worker(&self) -> WorkerStatus {
        self.parts.hub.workers().into_values().next().unwrap()
    }

    fn failures(&self, kind: &str) -> u64 {
        self.parts.metrics.engine_failures.with_label_values(&[kind]).get()
    }
}

fn engine(fault: FaultHook) -> EngineOptions {
    let policy = darkroom::domain::BatchingPolicy::Grouped;
    EngineOptions { policy, fault: Some(fault), ..EngineOptions::default() }
}

/// Gives up an engine that hangs.
async fn watched_pool(node: &str, bed: &Bed, engine: EngineOptions) -> WorkerPool {
    pool_with(bed.parts.clone(), WorkerOptions { step_timeout: Some(HANG), ..options(node, engine) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_is_ended_and_its_job_drawn_by_the_next_engine() {
    let bed = Bed::new(2).await;
    let gate = Arc::new(Gate::default());
    let hook = gate.hook();
    let hang = failing(1, move || hook(JobId::generate(), FaultPoint::Evaluate { step: 0, samples: 1 }));
    let pool = watched_pool("here", &bed, engine(hang)).await;
    let attempts = [bed.ended(bed.jobs[0]).await, bed.ended(bed.jobs[1]).await].map(|job| {
        assert_eq!((job.status, job.images.len()), (JobStatus::Succeeded, 1), "{:?}", job.error);
        job.attempts
    });
    assert_eq!(attempts, [2, 1], "only what was aboard is tried again");
    assert_eq!((bed.failures("hung"), bed.worker().failures), (1, 1));
    assert_eq!(bed.worker().reason, None);
    // The engine that hung comes to itself: nobody hears it.
    gate.open();
    pool.drain(PATIENCE).await;
    let job = bed.parts.jobs.get(bed.jobs[0]).await.unwrap().unwrap();
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_three_times_is_taken_out_and_its_jobs_are_drawn_elsewhere() {
    let bed = Bed::new(4).await;
    let sick = watched_pool("sick", &bed, engine(failing(u32::MAX, || Fault::Device))).await;
    // The first job's attempts are used up by this device alone.
    let first = bed.ended(bed.jobs[0]).await;
    let error = first.error.unwrap();
    assert_eq!((first.status, error.code, first.attempts), (JobStatus::Failed, ErrorCode::WorkerLost, 3));
    assert!(error.message.contains("the device failed"), "{}", error.message);
    let worker = bed.worker();
    assert_eq!((worker.state, worker.failures, worker.jobs), (WorkerState::Failed, 3, 0));
    assert!(worker.reason.unwrap().contains("CUDA_ERROR_LAUNCH_FAILED"));
    assert_eq!((bed.failures("device"), bed.parts.hub.working()), (3, 0));
    let stats = bed.parts.jobs.stats().await.unwrap();
    assert_eq!((stats.queued, stats.running), (3, 0), "it claims nothing more");

    let elsewhere = parts(bed.folder.path(), bed.parts.jobs.clone(), bed.parts.events.clone());
    let well = pool("well", elsewhere, EngineOptions::default()).await;
    for job in &bed.jobs[1..] {
        let job = bed.ended(*job).await;
        assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1));
    }
    for pool in [sick, well] {
        pool.drain(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_with_a_picture_in_between_take_no_device_out() {
    let bed = Bed::new(5).await;
    // Every engine loses its device once, with the second job that it begins.
    let seen = AtomicU32::new(0);
    let fault: FaultHook = Arc::new(move |_, point| match point {
        FaultPoint::Decode if seen.fetch_add(1, Ordering::SeqCst) % 2 == 1 => Fault::Device,
        _ => Fault::None,
    });
    let pool = pool("here", bed.parts.clone(), engine(fault)).await;
    for job in &bed.jobs {
        let job = bed.ended(*job).await;
        assert_eq!(job.status, JobStatus::Succeeded, "{:?}", job.error);
    }
    let worker = bed.worker();
    assert_eq!((worker.failures, worker.reason), (4, None));
    pool.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_whose_thread_ends_is_replaced_and_its_job_tried_again() {
    let bed = Bed::new(1).await;
    // Asked a second time for one step, after its forward, where no panic is caught.
    let seen = AtomicU32::new(0);
    let fault: FaultHook = Arc::new(move |_, point| match point {
        FaultPoint::Evaluate { .. } if seen.fetch_add(1, Ordering::SeqCst) == 1 => panic!("the thread is to end"),
        _ => Fault::None,
    });
    let pool = pool("here", bed.parts.clone(), engine(fault)).await;
    let job = bed.ended(bed.jobs[0]).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 2), "{:?}", job.error);
    assert_eq!((bed.failures("ended"), bed.worker().failures), (1, 1));
    pool.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_an_engine_that_hangs() {
    let bed = Bed::new(1).await;
    let (gate, reached) = (Arc::new(Gate::default()), Arc::new(tokio::sync::Notify::new()));
    let (hook, at_gate) = (gate.hook(), reached.clone());
    let hang: FaultHook = Arc::new(move |job, point| {
        if matches!(point, FaultPoint::Evaluate { .. }) {
            at_gate.notify_one();
        }
        hook(job, point)
    });
    let pool = watched_pool("here", &bed, engine(hang)).await;
    tokio::time::timeout(DEADLINE, reached.notified()).await.expect("it is drawn in time");
    pool.drain(Duration::ZERO).await;
    let job = bed.parts.jobs.get(bed.jobs[0]).await.unwrap().unwrap();
    assert_eq!((job.status, job.attempts), (JobStatus::Queued, 1), "a lost attempt counts");
    gate.open();
}
