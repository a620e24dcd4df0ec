//! Starting and draining the workers of one process.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::worker::Worker;
use super::{Error, upkeep};
use crate::diffusion::engine::EngineOptions;
use crate::diffusion::pipelines::{self, Pipeline};
use crate::dispatch::artifacts::ArtifactStore;
use crate::dispatch::events::EventBus;
use crate::dispatch::hub::WorkerHub;
use crate::dispatch::jobs::JobStore;
use crate::domain::{DeviceSpec, ModelInfo, WorkerId};
use crate::telemetry::Metrics;

/// Loads every served model onto a device; runs on a thread that may block.
pub type Loader = Arc<dyn Fn(DeviceSpec) -> pipelines::Result<Vec<Arc<dyn Pipeline>>> + Send + Sync>;

/// How workers work.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// This process's name among all replicas; workers are named after it.
    pub node: String,
    /// One worker each.
    pub devices: Vec<DeviceSpec>,
    /// How each engine works.
    pub engine: EngineOptions,
    /// A lease lasts so long without a heartbeat; heartbeats come three times as often.
    pub lease: Duration,
    /// Idle workers look for jobs of other processes this often; a submit here wakes them at once.
    pub poll: Duration,
}

/// What workers work with.
#[derive(Clone)]
pub struct PoolParts {
    /// The queue.
    pub jobs: Arc<dyn JobStore>,
    /// Who watches.
    pub events: Arc<dyn EventBus>,
    /// The pictures.
    pub artifacts: ArtifactStore,
    /// Shared with the service.
    pub hub: Arc<WorkerHub>,
    /// Shared with everyone.
    pub metrics: Arc<Metrics>,
}

/// The workers of one process.
#[derive(Debug)]
pub struct WorkerPool {
    models: Vec<ModelInfo>,
    stop: watch::Sender<Option<tokio::time::Instant>>,
    workers: Vec<JoinHandle<()>>,
    upkeep: Vec<JoinHandle<()>>,
    hub: Arc<WorkerHub>,
}

impl WorkerPool {
    /// Loads the models onto every device, then starts the workers.
    ///
    /// # Errors
    /// The first model that cannot be loaded.
    pub async fn start(parts: PoolParts, options: WorkerOptions, loader: Loader) -> Result<Self, Error> {
        let mut loaded = Vec::new();
        for device in options.devices.iter().copied() {
            let loader = loader.clone();
            let load = tokio::task::spawn_blocking(move || loader(device)).await.map_err(|_| Error::Panicked)?;
            loaded.push((device, load.map_err(|source| Error::Load { device, source: Box::new(source) })?));
        }
        let models = loaded
            .first()
            .map(|(_, pipelines)| pipelines.iter().map(|p| p.info().clone()).collect())
            .unwrap_or_default();
        let (stop, stopped) = watch::channel(None);
        let mut workers = Vec::new();
        for (number, (device, pipelines)) in loaded.into_iter().enumerate() {
            let id = WorkerId::new(format!("{}/{number}-{device}", options.node));
            let worker = Worker::start(id, device, pipelines, (parts.clone(), options.clone()), stopped.clone())?;
            workers.push(tokio::spawn(worker.run()));
        }
        let upkeep = vec![
            tokio::spawn(upkeep::rescue(parts.clone(), options.lease / 3)),
            tokio::spawn(upkeep::expire(parts.clone())),
            tokio::spawn(upkeep::remove_expired(parts.clone())),
        ];
        Ok(Self { models, stop, workers, upkeep, hub: parts.hub })
    }

    /// What every worker here can draw, in the order configured.
    pub fn models(&self) -> &[ModelInfo] {
        &self.models
    }

    /// Takes nothing new, lets what is aboard finish for `patience`, then hands the rest back to the queue. Returns when
    /// everything is stored.
    pub async fn drain(self, patience: Duration) {
        self.hub.start_draining();
        for task in &self.upkeep {
            task.abort();
        }
        self.stop.send_replace(Some(tokio::time::Instant::now() + patience));
        for worker in self.workers {
            if let Err(error) = worker.await {
                tracing::error!(%error, "a worker ended unexpectedly");
            }
        }
    }
}
