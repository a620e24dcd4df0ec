//! Composition root: Settings -> App; the only room that picks concrete stores and pipelines.

mod files;
mod loras;
mod memory;
mod models;

pub use files::Files;
pub use loras::{Shelf, lora_folder};
pub use models::{Offer, model_source, offers, served};

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::config::{KeySettings, Settings};
use crate::diffusion::batching::BatchCaps;
use crate::diffusion::engine::{EngineOptions, FaultHook};
use crate::diffusion::pipelines::{self, LoraLibrary, ModelSource, PromptCache};
use crate::dispatch::artifacts::ArtifactStore;
use crate::dispatch::events::{BusOptions, EventBus, InProcessBus};
use crate::dispatch::hub::WorkerHub;
use crate::dispatch::jobs::{JobStore, MemoryStore, SqliteStore, StoreOptions};
use crate::dispatch::workers::{LoadFailure, Loader, PoolParts, WorkerOptions, WorkerPool};
use crate::domain::{BatchingPolicy, Clock, Cost, DeviceSpec, ModelId, OwnerId, SystemClock};
use crate::http::{self, ApiKey, HttpOptions};
use crate::service::{GenerationService, ServiceOptions, ServiceParts};
use crate::telemetry::Metrics;

/// Idle workers look this often for jobs that another process accepted.
const POLL: Duration = Duration::from_secs(1);

/// Where jobs and pictures are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// SQLite and files under `data_dir`.
    Durable,
    /// In memory: gone with the process.
    Memory,
}

/// What tests may put in place of the usual.
#[derive(Clone, Default)]
pub struct Seams {
    /// Makes named points of the engine fail.
    pub fault: Option<FaultHook>,
    /// Called before a model is loaded, on the thread that loads it.
    pub load: Option<LoadHook>,
    /// What forwards are taken to cost, so that batches do not depend on how busy the machine is.
    pub cost: Option<Cost>,
}

/// See [`Seams::load`].
pub type LoadHook = Arc<dyn Fn(&ModelId) + Send + Sync>;

/// Everything one process runs.
pub struct App {
    router: axum::Router,
    service: Arc<GenerationService>,
    pool: WorkerPool,
    drain: Duration,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("drain", &self.drain).finish_non_exhaustive()
    }
}

impl App {
    /// Opens the stores, loads the models and starts the workers.
    ///
    /// # Errors
    /// The first thing that cannot be opened or loaded, as a sentence naming it.
    pub async fn build(settings: &Settings, storage: Storage, seams: Seams) -> Result<Self, String> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = Arc::new(Metrics::new().map_err(|error| error.to_string())?);
        let (jobs, artifacts) = open_stores(settings, storage, clock.clone()).await?;
        let events: Arc<dyn EventBus> = Arc::new(InProcessBus::new(BusOptions::default(), clock.clone()));
        let hub = Arc::new(WorkerHub::default());
        let parts = PoolParts {
            jobs: jobs.clone(),
            events: events.clone(),
            artifacts: artifacts.clone(),
            hub: hub.clone(),
            metrics: metrics.clone(),
        };
        let library = LoraLibrary::new(lora_folder(settings)?, Vec::new());
        let (mut sources, served): (Vec<ModelSource>, Vec<_>) = served(offers(settings)?)?.into_iter().unzip();
        sources.iter_mut().for_each(|source| source.loras = library.clone());
        let files = Arc::new(Files::of(&sources));
        let loader = loader(sources, seams.load.clone());
        let pool = WorkerPool::start(parts, worker_options(settings, seams), served, loader)
            .await
            .map_err(|e| e.to_string())?;
        let models = pool.models().to_vec();
        let options = ServiceOptions {
            limits: settings.limits.clone(),
            max_queued: settings.queue.max_queued,
            max_watchers: settings.server.max_watchers,
            reuse: settings.queue.reuse,
        };
        let loras = Arc::new(Shelf(library));
        let parts =
            ServiceParts { jobs, events, artifacts, hub, metrics: metrics.clone(), clock, models, loras, files };
        let service = Arc::new(GenerationService::new(parts, options));
        let options = HttpOptions {
            cors_origins: settings.server.cors_origins.clone(),
            max_body_bytes: settings.server.max_body_bytes,
            max_wait: Duration::from_secs(settings.server.max_wait_s),
            heartbeat: Duration::from_secs(settings.server.heartbeat_s),
            keys: api_keys(settings)?,
        };
        let router = http::router(service.clone(), metrics, options);
        Ok(Self { router, service, pool, drain: Duration::from_secs(settings.server.drain_s) })
    }

    /// The service behind every door.
    pub fn service(&self) -> &Arc<GenerationService> {
        &self.service
    }

    /// Serves until `shutdown` resolves, then drains: nothing new is taken, jobs aboard finish or go back to the queue,
    /// and requests still waiting are answered.
    ///
    /// # Errors
    /// The listener's own.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let Self { router, pool, drain, .. } = self;
        let (closing, closed) = tokio::sync::oneshot::channel::<()>();
        let server = axum::serve(listener, router).with_graceful_shutdown(async move {
            let _ = closed.await;
        });
        let server = tokio::spawn(server.into_future());
        shutdown.await;
        tracing::info!("draining");
        pool.drain(drain).await;
        // Watchers of jobs that went back to the queue would wait for ever: they get a moment, then the connection ends.
        let _ = closing.send(());
        match tokio::time::timeout(Duration::from_secs(3), server).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(std::io::Error::other(error)),
            Err(_) => Ok(()),
        }
    }
}

async fn open_stores(
    settings: &Settings,
    storage: Storage,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<dyn JobStore>, ArtifactStore), String> {
    let options = store_options(settings);
    match storage {
        Storage::Memory => Ok((Arc::new(MemoryStore::new(options, clock)), ArtifactStore::memory())),
        Storage::Durable => {
            let pictures = settings.data_dir.join("artifacts");
            std::fs::create_dir_all(&pictures)
                .map_err(|error| format!("cannot make {}: {error}", pictures.display()))?;
            let database = database(&settings.data_dir);
            let told = |error| format!("{}: {error}", database.display());
            let has_owners = !options.weights.is_empty();
            let jobs = SqliteStore::open(&database, options, clock).await.map_err(told)?;
            if !has_owners {
                jobs.forget_turns().await.map_err(told)?;
            }
            let artifacts =
                ArtifactStore::filesystem(&pictures).map_err(|error| format!("{}: {error}", pictures.display()))?;
            Ok((Arc::new(jobs), artifacts))
        }
    }
}

fn database(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("darkroom.db")
}

/// Who may ask. A key that is none is refused here too: left out, it would leave the server open.
fn api_keys(settings: &Settings) -> Result<Vec<ApiKey>, String> {
    let known = |key: &KeySettings| {
        let sha256 = key.digest().ok_or_else(|| key.faults().join("; "))?;
        Ok(ApiKey { owner: OwnerId::new(&key.name), is_admin: key.admin, sha256 })
    };
    settings.keys.iter().map(known).collect()
}

fn store_options(settings: &Settings) -> StoreOptions {
    StoreOptions {
        max_queued: settings.queue.max_queued,
        max_attempts: settings.queue.max_attempts,
        retention_ms: settings.queue.retention_s * 1000,
        weights: settings.keys.iter().map(|key| (OwnerId::new(&key.name), key.weight)).collect(),
    }
}

/// Brings the database up to date and closes it.
///
/// # Errors
/// A database that cannot be opened, or comes from a newer version.
pub async fn migrate(settings: &Settings) -> Result<(), String> {
    std::fs::create_dir_all(&settings.data_dir)
        .map_err(|error| format!("cannot make {}: {error}", settings.data_dir.display()))?;
    let database = database(&settings.data_dir);
    let store = SqliteStore::open(&database, store_options(settings), Arc::new(SystemClock)).await;
    store.map_err(|error| format!("{}: {error}", database.display()))?.close().await;
    Ok(())
}

/// Loads a served model onto a device.
fn loader(sources: Vec<ModelSource>, hook: Option<LoadHook>) -> Loader {
    let sources: HashMap<ModelId, ModelSource> =
        sources.into_iter().map(|source| (source.id.clone(), source)).collect();
    Arc::new(move |model, device| {
        if let Some(hook) = &hook {
            hook(model);
        }
        let source = sources.get(model).expect("workers load what is served. This is a bug in app.");
        pipelines::load(source, device).map_err(|error| {
            let told = error.to_string();
            LoadFailure { public: source.without_folders(&told), told }
        })
    })
}

fn worker_options(settings: &Settings, seams: Seams) -> WorkerOptions {
    let devices: Vec<DeviceSpec> = settings.workers.devices.iter().filter_map(|device| device.parse().ok()).collect();
    WorkerOptions {
        // Unique among replicas and restarts: a lease of the process before is not this one's.
        node: uuid::Uuid::now_v7().to_string(),
        memory_budgets: memory_budgets(settings, &devices),
        forward_budget: forward_budget(settings, &devices),
        warm_up: settings.workers.warm_up,
        devices,
        engine: engine_options(settings, seams),
        lease: Duration::from_secs(settings.queue.lease_s),
        step_timeout: Some(Duration::from_secs(settings.workers.step_timeout_s)).filter(|limit| !limit.is_zero()),
        poll: POLL,
    }
}

/// Most bytes of weights on each device; none where there is no bound.
fn memory_budgets(settings: &Settings, devices: &[DeviceSpec]) -> HashMap<DeviceSpec, u64> {
    let told = Some(settings.models.memory_budget_mb.saturating_mul(1 << 20)).filter(|bytes| *bytes > 0);
    let usual = |device: DeviceSpec| match device {
        // What is left is for drawing and for the rest of the process.
        DeviceSpec::Cpu => memory::bytes().map(|bytes| bytes / 5 * 4),
        DeviceSpec::Cuda(_) => None,
    };
    devices.iter().filter_map(|device| Some((*device, told.or_else(|| usual(*device))?))).collect()
}

/// Most bytes that a forward on the CPU may take; `None`: no bound.
fn forward_budget(settings: &Settings, devices: &[DeviceSpec]) -> Option<u64> {
    match settings.workers.memory_mb {
        Some(0) => None,
        Some(mib) => Some(mib.saturating_mul(1 << 20)),
        None => {
            let workers = devices.iter().filter(|device| **device == DeviceSpec::Cpu).count() as u64;
            // What the models' budget leaves where nobody set that.
            memory::bytes().map(|bytes| bytes / 5 / workers.max(1))
        }
    }
}

/// How engines of these settings work, on a device whose forwards are not measured.
pub fn engine_options(settings: &Settings, seams: Seams) -> EngineOptions {
    let workers = &settings.workers;
    EngineOptions {
        policy: workers.policy.parse().unwrap_or(BatchingPolicy::Continuous),
        caps: BatchCaps { max_rows: workers.max_rows, max_row_pixels: workers.max_row_pixels },
        memory: None,
        preview_every: workers.preview_every,
        prompts: prompts(workers.prompt_cache_mb),
        cost: seams.cost,
        fault: seams.fault,
        ..EngineOptions::default()
    }
}

/// Where prompts lately encoded are kept, of so many MiB.
fn prompts(mb: u64) -> Option<Arc<PromptCache>> {
    let bytes = usize::try_from(mb.saturating_mul(1 << 20)).unwrap_or(usize::MAX);
    (bytes > 0).then(|| Arc::new(PromptCache::new(bytes)))
}
