//! Starting and draining the workers of one process.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::models::{Collection, Loader, Loads, ServedModel};
use super::worker::Worker;
use super::{Error, upkeep};
use crate::diffusion::engine::EngineOptions;
use crate::dispatch::artifacts::ArtifactStore;
use crate::dispatch::events::EventBus;
use crate::dispatch::hub::WorkerHub;
use crate::dispatch::jobs::JobStore;
use crate::domain::{DeviceSpec, ModelId, ModelInfo, WorkerId};
use crate::telemetry::Metrics;

/// Longest time that models are evaluated at the start, but for a forward that is under way.
const WARM_UP: Duration = Duration::from_secs(3);

/// How workers work.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// This process's name among all replicas; workers are named after it.
    pub node: String,
    /// One worker each.
    pub devices: Vec<DeviceSpec>,
    /// Most bytes of weights on a device; no bound for those that are not named.
    pub memory_budgets: HashMap<DeviceSpec, u64>,
    /// Most bytes that a forward on the CPU may take above what is there; `None`: no bound.
    pub forward_budget: Option<u64>,
    /// Whether models that are loaded at the start are evaluated before any job is taken.
    pub warm_up: bool,
    /// How each engine works, but for that.
    pub engine: EngineOptions,
    /// A lease lasts so long without a heartbeat; heartbeats come three times as often.
    pub lease: Duration,
    /// An engine that gives no sign for longer is given up; `None`: none is.
    pub step_timeout: Option<Duration>,
    /// Idle workers look for jobs of other processes this often; a submit here wakes them at once.
    pub poll: Duration,
}

impl WorkerOptions {
    /// Of a worker on this device.
    fn on(&self, device: DeviceSpec) -> Self {
        let memory = self.forward_budget.filter(|_| device == DeviceSpec::Cpu);
        Self { engine: EngineOptions { memory, gate: Arc::default(), ..self.engine.clone() }, ..self.clone() }
    }
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

/// The models of one device, none of them loaded.
fn collection(
    device: DeviceSpec,
    parts: &PoolParts,
    options: &WorkerOptions,
    models: &[ServedModel],
    loader: &Loader,
) -> std::io::Result<Arc<Collection>> {
    let budget = options.memory_budgets.get(&device).copied().unwrap_or(u64::MAX);
    let bytes = |model: &ServedModel| match &model.loads {
        // Known once it is loaded, which comes first.
        Loads::AtStart => 0,
        Loads::AtFirstUse(introduced) => introduced.bytes(device),
    };
    let models = models.iter().map(|model| (model.id.clone(), bytes(model))).collect();
    Collection::new((device, budget), models, loader.clone(), (parts.hub.clone(), parts.metrics.clone()))
}

/// What the models that are loaded now tell of themselves.
async fn load_at_start(
    collection: &Arc<Collection>,
    models: &[ServedModel],
) -> Result<HashMap<ModelId, ModelInfo>, Error> {
    let mut infos = HashMap::new();
    for model in models.iter().filter(|model| matches!(model.loads, Loads::AtStart)) {
        let (collection, id) = (collection.clone(), model.id.clone());
        let load = tokio::task::spawn_blocking(move || collection.load_at_start(&id));
        let pipeline = load.await.map_err(|_| Error::Panicked)??;
        infos.insert(model.id.clone(), pipeline.info().clone());
    }
    Ok(infos)
}

/// Until every engine has evaluated the models that are loaded, all at the same time as they will later.
async fn warm_up(workers: &[Worker]) {
    let ended: Vec<_> = workers.iter().map(|worker| worker.warm_up(WARM_UP)).collect();
    let ended = tokio::task::spawn_blocking(move || {
        for ended in ended {
            // Nothing comes but the end.
            let _ = ended.recv();
        }
    });
    if let Err(error) = ended.await {
        tracing::warn!(%error, "warming up failed");
    }
}

impl WorkerPool {
    /// Loads onto every device what is to be loaded at the start, then starts the workers.
    ///
    /// # Errors
    /// The first model that cannot be loaded.
    pub async fn start(
        parts: PoolParts,
        options: WorkerOptions,
        models: Vec<ServedModel>,
        loader: Loader,
    ) -> Result<Self, Error> {
        let mut collections: HashMap<DeviceSpec, Arc<Collection>> = HashMap::new();
        let mut infos: HashMap<ModelId, ModelInfo> = HashMap::new();
        for device in options.devices.iter().copied() {
            if let Entry::Vacant(place) = collections.entry(device) {
                let collection = place.insert(collection(device, &parts, &options, &models, &loader)?);
                infos.extend(load_at_start(collection, &models).await?);
            }
        }
        let (stop, stopped) = watch::channel(None);
        let mut started = Vec::new();
        for (number, device) in options.devices.iter().enumerate() {
            let id = WorkerId::new(format!("{}/{number}-{device}", options.node));
            let collection = collections[device].clone();
            let options = options.on(*device);
            let worker = Worker::start(id, collection, (parts.clone(), options), stopped.clone())?;
            started.push(worker);
        }
        if options.warm_up {
            warm_up(&started).await;
        }
        let workers = started.into_iter().map(|worker| tokio::spawn(worker.run())).collect();
        let models = models.into_iter().filter_map(|model| match model.loads {
            Loads::AtStart => infos.remove(&model.id),
            Loads::AtFirstUse(introduced) => Some(introduced.info),
        });
        let models = models.collect();
        let upkeep = vec![
            tokio::spawn(upkeep::rescue(parts.clone(), options.lease / 3)),
            tokio::spawn(upkeep::expire(parts.clone())),
            tokio::spawn(upkeep::remove_expired(parts.clone())),
        ];
        Ok(Self { models, stop, workers, upkeep, hub: parts.hub })
    }

    /// What every worker here can draw with, loaded or not, in the order configured.
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
