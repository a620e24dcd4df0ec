//! The queue with 10,000 jobs waiting: accepting one, taking a batch, ending one.
//!
//! `cargo bench --bench store`. SQLite commits wait for the disk, so its numbers are the disk's as much as ours.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use darkroom::dispatch::jobs::{
    ClaimRequest, ClaimedJob, JobStore, MemoryStore, NewJob, Outcome, Select, SqliteStore, StoreOptions,
};
use darkroom::domain::{
    GenerationRequest, JobId, LatentSpace, Limits, ModelDefaults, ModelId, ModelInfo, RequestDraft, SamplerKind,
    SigmaSchedule, SystemClock, WorkerId,
};
use tokio::runtime::Runtime;

const WAITING: usize = 10_000;
const BATCH: u32 = 8;
const OPTIONS: StoreOptions =
    StoreOptions { max_queued: u64::MAX, max_attempts: 3, retention_ms: 60_000, weights: BTreeMap::new() };

/// Nobody's in particular, drawn whatever was before.
fn new_job(request: GenerationRequest) -> NewJob {
    NewJob { id: JobId::generate(), owner: None, request, idempotency: None, identity: None, answer: None }
}

/// Of one of eight groups, as a server with several sizes and step counts would see.
fn request(group: usize) -> GenerationRequest {
    let model = ModelInfo {
        id: ModelId::new("bench"),
        description: String::new(),
        family: "stable-diffusion".to_owned(),
        size_multiple: 8,
        min_side: 8,
        max_side: 2048,
        prompt_tokens: 75,
        max_clip_skip: 11,
        guidance_embedded: false,
        size_conditioning: false,
        inpainting: false,
        controlnets: Vec::new(),
        latents: LatentSpace { channels: 4, factor: 8, scaling_factor: 0.18215 },
        sha256: None,
        files: None,
        samplers: vec![SamplerKind::Euler],
        sigma_schedules: vec![SigmaSchedule::Default],
        defaults: ModelDefaults {
            width: 512,
            height: 512,
            steps: 20,
            guidance_scale: 1.0,
            sampler: SamplerKind::Euler,
            ..ModelDefaults::default()
        },
    };
    let draft = RequestDraft {
        prompt: Some("a red circle above a blue square".to_owned()),
        steps: Some(20 + (group % 8) as i64),
        ..RequestDraft::default()
    };
    draft.validate(&model, &Limits::default(), 1).expect("the draft is valid")
}

async fn insert(store: &dyn JobStore, count: usize) {
    for index in 0..count {
        let new = new_job(request(index));
        black_box(store.insert(new).await.expect("there is room"));
    }
}

async fn claim(store: &dyn JobStore) -> Vec<ClaimedJob> {
    let request = ClaimRequest {
        worker: WorkerId::new("bench"),
        models: vec![ModelId::new("bench")],
        select: Select::Group,
        max_rows: BATCH,
        max_row_pixels: u64::MAX,
        lease_ms: 3_600_000,
        speed: None,
    };
    let claimed = store.claim(request).await.expect("the store answers");
    assert_eq!(claimed.len(), BATCH as usize);
    claimed
}

/// Ends what was claimed, and clears it away: the store stays as it was.
async fn finish(store: &dyn JobStore, claimed: &[ClaimedJob]) -> Duration {
    let mut took = Duration::ZERO;
    for ClaimedJob { job, lease, .. } in claimed {
        let started = Instant::now();
        black_box(store.finish(lease, Outcome::Cancelled).await.expect("the lease is held"));
        took += started.elapsed();
        store.remove(job.id).await.expect("the job has ended");
    }
    took
}

async fn restore(store: &dyn JobStore, claimed: &[ClaimedJob]) {
    for ClaimedJob { lease, .. } in claimed {
        store.release(lease).await.expect("the lease is held");
    }
}

fn measure(criterion: &mut Criterion, runtime: &Runtime, name: &str, store: &dyn JobStore) {
    let mut group = criterion.benchmark_group(format!("store/{name}"));
    group.sample_size(20);
    runtime.block_on(insert(store, WAITING));
    group.throughput(Throughput::Elements(1));
    group.bench_function("insert", |bencher| {
        bencher.iter_custom(|count| {
            runtime.block_on(async {
                let mut took = Duration::ZERO;
                for _ in 0..count {
                    let new = new_job(request(0));
                    let started = Instant::now();
                    let id = new.id;
                    black_box(store.insert(new).await.expect("there is room"));
                    took += started.elapsed();
                    store.cancel(id).await.expect("the job waits");
                    store.remove(id).await.expect("the job has ended");
                }
                took
            })
        });
    });
    group.throughput(Throughput::Elements(u64::from(BATCH)));
    group.bench_function("claim 8", |bencher| {
        bencher.iter_custom(|count| {
            runtime.block_on(async {
                let mut took = Duration::ZERO;
                for _ in 0..count {
                    let started = Instant::now();
                    let claimed = claim(store).await;
                    took += started.elapsed();
                    restore(store, &claimed).await;
                }
                took
            })
        });
    });
    group.bench_function("finish 8", |bencher| {
        bencher.iter_custom(|count| {
            runtime.block_on(async {
                let mut took = Duration::ZERO;
                for _ in 0..count {
                    let claimed = claim(store).await;
                    took += finish(store, &claimed).await;
                    insert(store, claimed.len()).await;
                }
                took
            })
        });
    });
    group.finish();
}

fn stores(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("the system has threads");
    let clock = Arc::new(SystemClock);
    measure(criterion, &runtime, "memory", &MemoryStore::new(OPTIONS, clock.clone()));
    let folder = tempfile::tempdir().expect("the system has a folder for temporary files");
    let opened = runtime.block_on(SqliteStore::open(&folder.path().join("jobs.db"), OPTIONS, clock));
    measure(criterion, &runtime, "sqlite", &opened.expect("the folder is there"));
}

criterion_group!(benches, stores);
criterion_main!(benches);
