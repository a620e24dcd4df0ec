//! The models of one device, shared by its workers: loaded on a thread of their own, which none of the workers waits for.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::shelf::{Next, Shelf, Want};
use super::{LoadFailure, Loader};
use crate::diffusion::pipelines::{Extra, Pipeline, Released};
use crate::dispatch::hub::WorkerHub;
use crate::dispatch::jobs::WaitingModels;
use crate::dispatch::workers::Error;
use crate::domain::{DeviceSpec, ModelId, ModelState};
use crate::telemetry::Metrics;

/// A job of several models that are all here has so long to be taken; a model of them may be dropped then.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// Of a loader that panicked.
const PANICKED: &str = "loading it failed unexpectedly";

/// What one device holds. Dropping the last reference ends the loading thread, after the load it is at.
pub(in crate::dispatch::workers) struct Collection {
    device: DeviceSpec,
    loader: Loader,
    hub: Arc<WorkerHub>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    orders: SyncSender<Order>,
}

struct State {
    shelf: Shelf,
    /// Of jobs that were taken from the queue and handed back, for want of a model beside their first.
    lacked: Vec<Lacked>,
    /// What waits in the queue, by its last word.
    waiting: Vec<Want>,
    pipelines: HashMap<ModelId, Arc<dyn Pipeline>>,
}

/// What a job of several models wants. No job of its first model is begun meanwhile: it would be this one again.
struct Lacked {
    want: Want,
    /// Since all its models are here.
    here_since: Option<Instant>,
}

impl State {
    /// Tells the shelf what is wanted; forgets what is here for long enough, or fails.
    fn tell_wants(&mut self, now: Instant) {
        let State { shelf, lacked, waiting, .. } = self;
        lacked.retain_mut(|lacked| {
            let models = &lacked.want.models;
            if !shelf.has_all(models) {
                lacked.here_since = None;
                return !shelf.is_failing(models, now);
            }
            now < *lacked.here_since.get_or_insert(now) + TAKEN_WITHIN
        });
        shelf.want(waiting.iter().chain(lacked.iter().map(|lacked| &lacked.want)).cloned().collect());
    }

    /// Models that jobs may be begun with.
    fn present(&self) -> HashSet<ModelId> {
        let is_held_up = |model: &ModelId| {
            self.lacked.iter().any(|lacked| lacked.here_since.is_none() && lacked.want.models.first() == Some(model))
        };
        self.shelf.present().into_iter().filter(|model| !is_held_up(model)).collect()
    }
}

/// For the loading thread.
struct Order {
    /// Freed before the load. It may take a while, and is nothing for threads that others wait for.
    dropped: Vec<Arc<dyn Pipeline>>,
    released: Released,
    load: Option<ModelId>,
}

/// A model that stays loaded for as long as this lives.
pub(in crate::dispatch::workers) struct Held {
    collection: Arc<Collection>,
    pipeline: Arc<dyn Pipeline>,
    has_drawn: bool,
}

impl Held {
    pub(in crate::dispatch::workers) fn pipeline(&self) -> &Arc<dyn Pipeline> {
        &self.pipeline
    }

    pub(in crate::dispatch::workers) fn id(&self) -> &ModelId {
        &self.pipeline.info().id
    }

    /// The same for a job: its end is the model's last use.
    pub(in crate::dispatch::workers) fn for_job(&self) -> Self {
        self.collection.state().shelf.hold(self.id());
        Self { collection: self.collection.clone(), pipeline: self.pipeline.clone(), has_drawn: true }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.collection.state().shelf.let_go(self.id(), self.has_drawn);
    }
}

impl Collection {
    /// Nothing is loaded yet. `models` come with what each would take in bytes.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(in crate::dispatch::workers) fn new(
        (device, budget): (DeviceSpec, u64),
        models: Vec<(ModelId, u64)>,
        loader: Loader,
        (hub, metrics): (Arc<WorkerHub>, Arc<Metrics>),
    ) -> std::io::Result<Arc<Self>> {
        // One load at a time; drops come with loads.
        let (orders, receiver) = sync_channel(4);
        let state = Mutex::new(State {
            shelf: Shelf::new(budget, models),
            lacked: Vec::new(),
            waiting: Vec::new(),
            pipelines: HashMap::new(),
        });
        let collection = Arc::new(Self { device, loader, hub, metrics, state, orders });
        let weak = Arc::downgrade(&collection);
        std::thread::Builder::new().name("darkroom-loader".to_owned()).spawn(move || work(&receiver, &weak))?;
        collection.tell(&collection.state());
        Ok(collection)
    }

    /// The shelf and the pipelines are changed together, by code that does not panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads a model on this thread, before anybody wants it.
    ///
    /// # Errors
    /// It cannot be loaded, or there is no room for it.
    pub(in crate::dispatch::workers) fn load_at_start(&self, model: &ModelId) -> Result<Arc<dyn Pipeline>, Error> {
        let fault = |reason: String| Error::Load { device: self.device, reason };
        let began = Instant::now();
        let pipeline = (self.loader)(model, self.device).map_err(|failure| fault(failure.told))?;
        if let Some(reason) = self.state().shelf.refusal_at_start(model, pipeline.bytes()) {
            return Err(fault(reason));
        }
        self.ended(model, Ok(pipeline.clone()), began.elapsed());
        Ok(pipeline)
    }

    /// A load has ended.
    fn ended(&self, model: &ModelId, result: Result<Arc<dyn Pipeline>, LoadFailure>, took: Duration) {
        let now = Instant::now();
        let (outcome, seconds) = (if result.is_ok() { "loaded" } else { "failed" }, took.as_secs_f64());
        self.metrics.model_loads.with_label_values(&[model.as_str(), outcome]).inc();
        let mut state = self.state();
        match result {
            Ok(pipeline) => {
                let (device, bytes) = (self.device, pipeline.bytes());
                tracing::info!(model.id = %model, %device, bytes, seconds, family = pipeline.info().family, "model loaded");
                self.metrics.model_load_seconds.observe(seconds);
                state.shelf.loaded(model, bytes, took, now);
                state.pipelines.insert(model.clone(), pipeline);
            }
            Err(failure) => {
                tracing::error!(model.id = %model, device = %self.device, reason = failure.told, "a model cannot be loaded");
                state.shelf.failed(model, failure.public, now);
            }
        }
        self.tell(&state);
        drop(state);
        self.hub.wake();
    }

    pub(in crate::dispatch::workers) fn device(&self) -> DeviceSpec {
        self.device
    }

    // For workers ------------------------------------------------------------------------------------------------

    /// Whether every model is here, so that nobody need ask what waits.
    pub(in crate::dispatch::workers) fn is_complete(&self) -> bool {
        let state = self.state();
        state.lacked.is_empty() && state.shelf.is_complete()
    }

    /// What waits in the queue now.
    pub(in crate::dispatch::workers) fn want(&self, waiting: Vec<WaitingModels>) {
        let wants = waiting.into_iter().map(|WaitingModels { models, rank_ms }| Want { models, rank_ms });
        self.state().waiting = wants.collect();
    }

    /// A job was handed back, for want of one of these models.
    pub(in crate::dispatch::workers) fn lack(&self, models: Vec<ModelId>, rank_ms: i64) {
        let mut state = self.state();
        let known = state.lacked.iter_mut().find(|lacked| lacked.want.models == models);
        match known {
            Some(known) => known.want.rank_ms = known.want.rank_ms.min(rank_ms),
            None => state.lacked.push(Lacked { want: Want { models, rank_ms }, here_since: None }),
        }
    }

    /// Why the first of these models that failed of late did.
    pub(in crate::dispatch::workers) fn failure(&self, models: &[ModelId]) -> Option<(ModelId, String)> {
        let (state, now) = (self.state(), Instant::now());
        models.iter().find_map(|model| Some((model.clone(), state.shelf.failure(model, now)?.to_owned())))
    }

    /// Has done what is to be done now; the moment to ask again, should nothing happen before.
    pub(in crate::dispatch::workers) fn settle(&self) -> Option<Instant> {
        let mut state = self.state();
        state.tell_wants(Instant::now());
        let (mut dropped, mut released, mut load) = (Vec::new(), Vec::new(), None);
        let State { shelf, pipelines, .. } = &mut *state;
        for (model, pipeline) in pipelines.iter() {
            shelf.weigh(model, pipeline.bytes());
        }
        shelf.extras(extras(pipelines));
        let before = shelf.statuses();
        let again = loop {
            match shelf.next(Instant::now()) {
                Next::Load(model) => load = Some(model),
                Next::Drop(model) => {
                    tracing::info!(model.id = %model, device = %self.device, "model dropped, to make room for another");
                    self.metrics.model_evictions.with_label_values(&[model.as_str()]).inc();
                    dropped.extend(pipelines.remove(&model));
                }
                Next::Release => {
                    tracing::info!(device = %self.device, "LoRAs and ControlNets that no job uses dropped, to make room for a model");
                    released.extend(pipelines.values().flat_map(|pipeline| pipeline.release_extras()));
                }
                Next::Wait(until) => break Some(until),
                Next::Rest => break None,
            }
        };
        let is_order = load.is_some() || !dropped.is_empty() || !released.is_empty();
        if is_order && let Err(error) = self.orders.try_send(Order { dropped, released, load: load.clone() }) {
            // The thread has one load at a time and few drops: it must have ended.
            tracing::error!(device = %self.device, %error, "the thread that loads models takes no orders");
            load.iter().for_each(|model| shelf.failed(model, PANICKED.to_owned(), Instant::now()));
        }
        if before != shelf.statuses() {
            self.tell(&state);
        }
        again
    }

    /// Every model that a job may be begun with, held.
    pub(in crate::dispatch::workers) fn hold(self: &Arc<Self>) -> Vec<Held> {
        let mut state = self.state();
        let present = state.present();
        let State { shelf, pipelines, .. } = &mut *state;
        let here = pipelines.iter().filter(|(model, _)| present.contains(model));
        here.map(|(model, pipeline)| {
            shelf.hold(model);
            Held { collection: self.clone(), pipeline: pipeline.clone(), has_drawn: false }
        })
        .collect()
    }

    /// Wanted models whose jobs fail now, and why.
    pub(in crate::dispatch::workers) fn failing(&self) -> Vec<(ModelId, String)> {
        self.state().shelf.failing(Instant::now())
    }

    fn tell(&self, state: &State) {
        let (device, statuses) = (self.device.to_string(), state.shelf.statuses());
        for (model, status) in &statuses {
            let held = if status.state == ModelState::Loaded { status.bytes } else { 0 };
            let gauge = self.metrics.model_bytes.with_label_values(&[model.as_str(), &device]);
            gauge.set(i64::try_from(held).unwrap_or(i64::MAX));
        }
        self.hub.report_models(&device, statuses);
    }
}

/// LoRAs and ControlNets on the device, whose models share the latter.
fn extras(pipelines: &HashMap<ModelId, Arc<dyn Pipeline>>) -> Extra {
    let (mut sum, mut controlnets) = (Extra::default(), Extra::default());
    for extras in pipelines.values().map(|pipeline| pipeline.extras()) {
        sum = sum + extras.loras;
        controlnets = extras.controlnets;
    }
    sum + controlnets
}

/// The loading thread, until nobody is left to order something.
fn work(orders: &Receiver<Order>, collection: &Weak<Collection>) {
    for Order { dropped, released, load } in orders {
        drop((dropped, released));
        let Some((model, collection)) = load.zip(collection.upgrade()) else { continue };
        let (loader, device) = (collection.loader.clone(), collection.device);
        // Whoever ends the process need not wait for a load.
        let weak = Arc::downgrade(&collection);
        drop(collection);
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| loader(&model, device))).unwrap_or_else(|_| {
            let (told, public) = (PANICKED.to_owned(), PANICKED.to_owned());
            Err(LoadFailure { told, public })
        });
        if let Some(collection) = weak.upgrade() {
            collection.ended(&model, result, began.elapsed());
        }
    }
}
