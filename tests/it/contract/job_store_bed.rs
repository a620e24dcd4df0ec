//! Stores and what is asked of them, for the suites of `JobStore`.

use std::collections::BTreeMap;
use std::sync::Arc;

use darkroom::dispatch::jobs::{
    ClaimRequest, ClaimedJob, Inserted, JobStore, MemoryStore, Origin, Outcome, Select, SqliteStore, StoreOptions,
};
use darkroom::domain::{
    Artifact, GenerationRequest, ImageFormat, Job, JobId, JobTimings, ManualClock, ModelId, RequestDraft, Timestamp,
    WorkerId,
};

pub(super) use super::jobs::new_job;
use super::request;

pub(super) const OPTIONS: StoreOptions =
    StoreOptions { max_queued: 1_000, max_attempts: 3, retention_ms: 60_000, weights: BTreeMap::new() };
pub(super) const LEASE_MS: u64 = 10_000;

/// A store with what a test needs around it.
pub(super) struct Bed {
    pub(super) store: Arc<dyn JobStore>,
    pub(super) clock: Arc<ManualClock>,
    _folder: Option<tempfile::TempDir>,
}

impl Bed {
    pub(super) async fn memory(options: StoreOptions) -> Self {
        let clock = clock();
        Self { store: Arc::new(MemoryStore::new(options, clock.clone())), clock, _folder: None }
    }

    pub(super) async fn sqlite(options: StoreOptions) -> Self {
        let (clock, folder) = (clock(), tempfile::tempdir().unwrap());
        let store = SqliteStore::open(&folder.path().join("jobs.db"), options, clock.clone()).await.unwrap();
        Self { store: Arc::new(store), clock, _folder: Some(folder) }
    }

    /// How many jobs stand before this one.
    pub(super) async fn position(&self, id: JobId) -> Option<u64> {
        let ahead = self.store.ahead(id).await.unwrap();
        ahead.map(|ahead| ahead.work.iter().map(|work| work.jobs).sum())
    }

    /// Around a store that was opened elsewhere.
    pub(super) fn of(store: SqliteStore) -> Self {
        Self { store: Arc::new(store), clock: clock(), _folder: None }
    }

    pub(super) async fn insert(&self, request: GenerationRequest) -> Job {
        insert(&*self.store, request).await
    }

    pub(super) async fn one(&self) -> ClaimedJob {
        let mut claimed = self.store.claim(claim(1)).await.unwrap();
        assert_eq!(claimed.len(), 1);
        claimed.remove(0)
    }
}

pub(super) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp::from_unix_ms(1_700_000_000_000)))
}

pub(super) async fn insert(store: &dyn JobStore, request: GenerationRequest) -> Job {
    match store.insert(new_job(request)).await.unwrap() {
        Inserted::New(job) => job,
        Inserted::Existing(job) => panic!("{} is not new", job.id),
    }
}

pub(super) fn claim(max_rows: u32) -> ClaimRequest {
    ClaimRequest {
        worker: WorkerId::new("worker-1"),
        models: vec![ModelId::new("tiny")],
        select: Select::Group,
        is_to_draw: true,
        max_rows,
        max_row_pixels: u64::MAX,
        lease_ms: LEASE_MS,
    }
}

pub(super) fn succeeded() -> Outcome {
    let image = Artifact {
        index: 0,
        seed: 7,
        width: 64,
        height: 64,
        format: ImageFormat::Png,
        size_bytes: 10,
        sha256: "00".repeat(32),
    };
    let timings = JobTimings { denoise_ms: 5, decode_ms: 2, ..JobTimings::default() };
    Outcome::Succeeded {
        images: vec![image],
        timings,
        warnings: vec!["the prompt was cut".to_owned()],
        origin: Origin::Drawn,
    }
}

pub(super) fn plain() -> GenerationRequest {
    request(|_| ())
}

pub(super) fn with(change: impl FnOnce(&mut RequestDraft)) -> GenerationRequest {
    request(change)
}

pub(super) fn claimed_ids(claimed: &[ClaimedJob]) -> Vec<JobId> {
    claimed.iter().map(|claimed| claimed.job.id).collect()
}
