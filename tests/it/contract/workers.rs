//! Worker pools and the promises of the queue: one result a job, whoever draws it and whatever happens to its lease.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use darkroom::diffusion::engine::EngineOptions;
use darkroom::dispatch::artifacts::ArtifactStore;
use darkroom::dispatch::events::{BusOptions, EventBus, InProcessBus};
use darkroom::dispatch::hub::WorkerHub;
use darkroom::dispatch::jobs::{ClaimRequest, JobStore, Select, SqliteStore};
use darkroom::dispatch::workers::{Loads, PoolParts, ServedModel, WorkerOptions, WorkerPool};
use darkroom::domain::{BatchingPolicy, Clock, DeviceSpec, GenerationRequest, JobId, JobStatus, SystemClock, WorkerId};
use darkroom::telemetry::Metrics;

use super::job_store_bed::{OPTIONS, clock, insert, succeeded};
use crate::support::drafts::{checked, draft, pipeline};
use crate::support::gate::Gate;

/// Against hanging for ever; nothing here takes as long.
pub(super) const DEADLINE: Duration = Duration::from_secs(120);
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn store(folder: &Path, clock: Arc<dyn Clock>) -> Arc<dyn JobStore> {
    Arc::new(SqliteStore::open(&folder.join("jobs.db"), OPTIONS, clock).await.unwrap())
}

pub(super) fn parts(folder: &Path, jobs: Arc<dyn JobStore>, events: Arc<dyn EventBus>) -> PoolParts {
    PoolParts {
        jobs,
        events,
        artifacts: ArtifactStore::filesystem(folder).unwrap(),
        hub: Arc::new(WorkerHub::default()),
        metrics: Arc::new(Metrics::new().unwrap()),
    }
}

/// One worker on the CPU that draws with tiny-sd.
pub(super) async fn pool(node: &str, parts: PoolParts, engine: EngineOptions) -> WorkerPool {
    pool_with(parts, options(node, engine)).await
}

pub(super) fn options(node: &str, engine: EngineOptions) -> WorkerOptions {
    WorkerOptions {
        node: node.to_owned(),
        devices: vec![DeviceSpec::Cpu],
        memory_budgets: HashMap::new(),
        forward_budget: None,
        warm_up: false,
        engine,
        lease: Duration::from_secs(600),
        step_timeout: None,
        poll: Duration::from_millis(20),
    }
}

pub(super) async fn pool_with(parts: PoolParts, options: WorkerOptions) -> WorkerPool {
    let tiny = pipeline("tiny-sd");
    let served = vec![ServedModel { id: tiny.info().id.clone(), loads: Loads::AtStart }];
    WorkerPool::start(parts, options, served, Arc::new(move |_, _| Ok(tiny.clone()))).await.unwrap()
}

pub(super) fn request(seed: u64, steps: i64) -> GenerationRequest {
    let mut draft = draft("a cat", seed);
    draft.steps = Some(steps);
    checked(draft, &*pipeline("tiny-sd"))
}

fn as_other() -> ClaimRequest {
    ClaimRequest {
        worker: WorkerId::new("other"),
        models: vec![pipeline("tiny-sd").info().id.clone()],
        select: Select::Group,
        is_to_draw: true,
        max_rows: 8,
        max_row_pixels: u64::MAX,
        lease_ms: 600_000,
    }
}

/// The kinds of a job's events up to its last one.
pub(super) async fn watched(events: &dyn EventBus, job: JobId) -> Vec<&'static str> {
    let mut subscription = events.subscribe(job, None).await;
    let mut kinds = Vec::new();
    loop {
        let event = tokio::time::timeout(DEADLINE, subscription.next()).await.expect("the job ends in time").unwrap();
        kinds.push(event.kind.name());
        if event.kind.is_terminal() {
            return kinds;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_on_one_database_draw_each_job_once() {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let events: Arc<dyn EventBus> = Arc::new(InProcessBus::new(BusOptions::default(), clock.clone()));
    let mine = store(folder.path(), clock.clone()).await;
    let mut jobs = Vec::new();
    for seed in 0..12 {
        // Groups of two: there is something left for the other node.
        jobs.push(insert(&*mine, request(seed, 3 + seed as i64 / 2)).await.id);
    }
    let mut pools = Vec::new();
    for node in ["east", "west"] {
        // Each node opens the database for itself.
        let parts = parts(folder.path(), store(folder.path(), clock.clone()).await, events.clone());
        pools.push(pool(node, parts, EngineOptions::default()).await);
    }
    for job in &jobs {
        let kinds = watched(&*events, *job).await;
        let starts = kinds.iter().filter(|kind| **kind == "started").count();
        assert_eq!((starts, kinds.last()), (1, Some(&"succeeded")), "{kinds:?}");
    }
    for pool in pools {
        pool.drain(PATIENCE).await;
    }
    for job in jobs {
        let job = mine.get(job).await.unwrap().unwrap();
        assert_eq!((job.status, job.attempts, job.images.len()), (JobStatus::Succeeded, 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_lease_was_taken_over_records_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let jobs = store(folder.path(), clock.clone()).await;
    let events: Arc<dyn EventBus> = Arc::new(InProcessBus::new(BusOptions::default(), clock.clone()));
    let job = insert(&*jobs, request(1, 3)).await.id;
    let gate = Arc::new(Gate::default());
    // `continuous` would have free places while the worker stands at the gate, and claim the job again itself.
    let policy = BatchingPolicy::Grouped;
    let engine = EngineOptions { policy, fault: Some(gate.hook()), ..EngineOptions::default() };
    let slow = pool("slow", parts(folder.path(), jobs.clone(), events.clone()), engine).await;
    let mut subscription = events.subscribe(job, None).await;
    while subscription.next().await.unwrap().kind.name() != "started" {}

    // Long after: the worker stands at the gate, its lease has run out, and another one takes the job. Again, should the
    // worker's first heartbeat or its own rescue come in between.
    let claimed = loop {
        clock.advance_ms(3_600_000);
        jobs.rescue_expired().await.unwrap();
        if let Some(claimed) = jobs.claim(as_other()).await.unwrap().pop() {
            break claimed;
        }
        tokio::task::yield_now().await;
    };
    gate.open();
    slow.drain(PATIENCE).await;

    let still = jobs.get(job).await.unwrap().unwrap();
    let expected = (JobStatus::Running, claimed.job.attempts);
    assert_eq!((still.status, still.attempts), expected, "what the slow one drew is not recorded");
    let ended = jobs.finish(&claimed.lease, succeeded()).await.unwrap();
    assert_eq!(ended.status, JobStatus::Succeeded, "the job is still the other worker's to end");
}
