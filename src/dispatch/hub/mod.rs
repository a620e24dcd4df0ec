//! What workers of this process tell of themselves, of what their forwards cost and of when jobs were promised to end, and how
//! they are woken and told to leave a job.
//!
//! Holds no job's truth: that is its row in the job store. Knows no engine, so that `service` may hold it.

mod aboard;
mod asks;
mod beliefs;
mod outlook;
mod promises;

pub use aboard::Aboard;
pub use asks::Ask;
pub use beliefs::Belief;
pub use outlook::Outlook;
pub use promises::PromisesKept;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aboard::Held;
use beliefs::Beliefs;
use promises::Promises;
use serde::Serialize;
use tokio::sync::{Notify, broadcast};

use crate::domain::{ImageProgress, JobId, ModelId, ModelState, ModelStatus, WorkerId};

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Waits for jobs.
    Idle,
    /// Has jobs aboard.
    Busy,
    /// Takes no more jobs.
    Draining,
    /// Its device is taken out: it takes no more jobs.
    Failed,
}

impl WorkerState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Idle, Self::Busy, Self::Draining, Self::Failed];

    /// As answers and metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// One worker, as told to operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerStatus {
    /// Its device, such as `cpu`.
    pub device: String,
    /// What it is doing.
    pub state: WorkerState,
    /// Jobs aboard.
    pub jobs: u32,
    /// Forwards run since it started.
    pub batches: u64,
    /// Engines of it that hung, ended, or lost their device, since it started.
    pub failures: u64,
    /// Why its device was taken out, where `state` is `failed`.
    pub reason: Option<String>,
}

/// How much one forward did, for the estimate of speed.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Pictures times their pixels: what one step of them all is worth.
    pub pixel_steps: u64,
    /// How long it took.
    pub micros: u64,
}

/// Shared by the service and the workers of one process.
#[derive(Debug)]
pub struct WorkerHub {
    wake: Notify,
    cancels: broadcast::Sender<JobId>,
    asks: broadcast::Sender<Ask>,
    workers: Mutex<BTreeMap<WorkerId, WorkerStatus>>,
    models: Mutex<BTreeMap<String, BTreeMap<ModelId, ModelStatus>>>,
    progress: Mutex<HashMap<JobId, Vec<ImageProgress>>>,
    /// Jobs that workers of this process have. Locked before `progress` and `beliefs`.
    held: Mutex<HashMap<JobId, Held>>,
    beliefs: Mutex<Beliefs>,
    promises: Mutex<Promises>,
    speed: Mutex<Option<f64>>,
    draining: AtomicBool,
}

impl Default for WorkerHub {
    fn default() -> Self {
        Self {
            wake: Notify::new(),
            // A worker that misses a cancel here learns of it at its next heartbeat.
            cancels: broadcast::channel(256).0,
            // One that is missed is asked again.
            asks: broadcast::channel(16).0,
            workers: Mutex::default(),
            models: Mutex::default(),
            progress: Mutex::default(),
            held: Mutex::default(),
            beliefs: Mutex::default(),
            promises: Mutex::default(),
            speed: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }
}

/// Plain data behind every lock here: a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkerHub {
    /// A job has come: whoever is idle looks.
    pub fn wake(&self) {
        self.wake.notify_waiters();
    }

    /// Resolves at the next [`WorkerHub::wake`].
    pub fn woken(&self) -> tokio::sync::futures::Notified<'_> {
        self.wake.notified()
    }

    /// Tells the worker that holds the job, if it is one of this process, to leave it now.
    pub fn cancel(&self, job: JobId) {
        // Nobody listening means no worker here holds it.
        let _ = self.cancels.send(job);
    }

    /// Every cancel from now on.
    pub fn cancels(&self) -> broadcast::Receiver<JobId> {
        self.cancels.subscribe()
    }

    /// A worker has nothing to do: whoever has jobs that wait gives one away.
    pub fn ask(&self, ask: Ask) {
        // Nobody listens when all workers have ended.
        let _ = self.asks.send(ask);
    }

    /// Every ask from now on.
    pub fn asks(&self) -> broadcast::Receiver<Ask> {
        self.asks.subscribe()
    }

    /// Replaces what is told of one worker.
    pub fn report(&self, worker: &WorkerId, status: WorkerStatus) {
        lock(&self.workers).insert(worker.clone(), status);
    }

    /// Every worker of this process, by name.
    pub fn workers(&self) -> BTreeMap<WorkerId, WorkerStatus> {
        lock(&self.workers).clone()
    }

    /// Workers of this process whose device is not taken out.
    pub fn working(&self) -> usize {
        lock(&self.workers).values().filter(|worker| worker.state != WorkerState::Failed).count()
    }

    /// Replaces what is told of the models of one device.
    pub fn report_models(&self, device: &str, models: BTreeMap<ModelId, ModelStatus>) {
        lock(&self.models).insert(device.to_owned(), models);
    }

    /// How a model stands on each device of this process.
    pub fn model(&self, model: &ModelId) -> BTreeMap<String, ModelStatus> {
        let devices = lock(&self.models);
        let here = |(device, models): (&String, &BTreeMap<ModelId, ModelStatus>)| {
            Some((device.clone(), models.get(model)?.clone()))
        };
        devices.iter().filter_map(here).collect()
    }

    /// Whether a worker of this process that has this model waits for jobs.
    pub fn is_anyone_idle_with(&self, model: &ModelId) -> bool {
        let has = |(_, status): &(String, ModelStatus)| status.state == ModelState::Loaded;
        let devices: Vec<String> = self.model(model).into_iter().filter(has).map(|(device, _)| device).collect();
        let is_idle = |worker: &WorkerStatus| worker.state == WorkerState::Idle && devices.contains(&worker.device);
        lock(&self.workers).values().any(is_idle)
    }

    /// One picture of a job has come so far.
    pub fn advanced(&self, job: JobId, image: ImageProgress) {
        if let Some(held) = lock(&self.held).get_mut(&job) {
            held.stepped();
        }
        let mut progress = lock(&self.progress);
        let images = progress.entry(job).or_default();
        match images.iter_mut().find(|known| known.image == image.image) {
            Some(known) => *known = image,
            None => images.push(image),
        }
    }

    /// How far a job drawn here is, by picture; empty when it is not drawn here.
    pub fn progress(&self, job: JobId) -> Vec<ImageProgress> {
        let mut images = lock(&self.progress).get(&job).cloned().unwrap_or_default();
        images.sort_by_key(|image| image.image);
        images
    }

    /// The job is no longer drawn here.
    pub fn left(&self, job: JobId) {
        lock(&self.progress).remove(&job);
        lock(&self.held).remove(&job);
    }

    /// Corrects the estimate of one worker's speed by what a forward did.
    pub fn worked(&self, work: Work) {
        let measured = work.pixel_steps as f64 / (work.micros.max(1) as f64 / 1e6);
        let mut speed = lock(&self.speed);
        // About the last twenty forwards.
        *speed = Some(speed.map_or(measured, |known| known + 0.05 * (measured - known)));
    }

    /// Pixel-steps a second of all workers here together; `None` before the first forward.
    pub fn speed(&self) -> Option<f64> {
        let workers = self.working().max(1);
        lock(&self.speed).map(|speed| speed * workers as f64)
    }

    /// Whether a worker of this process draws.
    pub fn is_anyone_busy(&self) -> bool {
        lock(&self.workers).values().any(|worker| worker.state == WorkerState::Busy)
    }

    /// From now on nothing new is taken.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether nothing new is taken.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}
