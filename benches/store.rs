//! The queue with 10,000 jobs waiting: accepting one, taking a batch, ending one.
//!
//! `cargo bench --bench store`. SQLite commits wait for the disk, so its numbers are the disk's as much as ours.

#[path = "support/jobs.rs"]
mod jobs;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use darkroom::dispatch::jobs::{
    ClaimRequest, ClaimedJob, JobStore, MemoryStore, Outcome, Select, SqliteStore, StoreOptions,
};
use darkroom::domain::{GenerationRequest, ModelId, SystemClock, WorkerId};
use jobs::{MODEL, new_job, request};
use tokio::runtime::Runtime;

const WAITING: usize = 10_000;
const BATCH: u32 = 8;
const OPTIONS: StoreOptions =
    StoreOptions { max_queued: u64::MAX, max_attempts: 3, retention_ms: 60_000, weights: BTreeMap::new() };

/// Of one of eight groups, as a server with several sizes and step counts would see.
fn of_a_group(index: usize) -> GenerationRequest {
    request(|draft| draft.steps = Some(20 + (index % 8) as i64))
}

async fn insert(store: &dyn JobStore, count: usize) {
    for index in 0..count {
        let new = new_job(of_a_group(index));
        black_box(store.insert(new).await.expect("there is room"));
    }
}

async fn claim(store: &dyn JobStore) -> Vec<ClaimedJob> {
    let request = ClaimRequest {
        worker: WorkerId::new("bench"),
        models: vec![ModelId::new(MODEL)],
        select: Select::Group,
        is_to_draw: true,
        max_rows: BATCH,
        max_row_pixels: u64::MAX,
        lease_ms: 3_600_000,
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
                    let new = new_job(of_a_group(0));
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
