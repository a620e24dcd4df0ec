//! One device's task: between the store and its engine.

mod leaving;
mod preparing;
mod sharing;
mod succeeding;
mod wanting;
mod watchdog;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::preparing::{Claimed, Preparing};
use self::watchdog::{Failure, Standing};
use super::Error;
use super::filling::Filling;
use super::job_run::{JobRun, end_without};
use super::models::{Collection, Held};
use super::parked;
use super::pool::{PoolParts, WorkerOptions};
use crate::diffusion::engine::{self, BatchReport, EngineDemand, EngineEvent, EngineHandle};
use crate::dispatch::hub::{Work, WorkerState, WorkerStatus};
use crate::dispatch::jobs::{ClaimRequest, ClaimedJob, Lease, LeaseState, Outcome, Select};
use crate::domain::{
    ErrorCode, ImageFormat, ImageProgress, JobError, JobEventKind, JobId, ModelId, OutputOptions, WorkerId,
};
use crate::images;
use crate::telemetry::BatchGroup;

/// Events an engine may be ahead of its worker; a full channel slows the engine down only for those that must arrive.
const EVENTS: usize = 1024;

pub(super) struct Worker {
    id: WorkerId,
    /// The models of its device.
    models: Arc<Collection>,
    /// Something may have come into the queue, or left it, since the models were last told what waits.
    asks: bool,
    /// When the models want to be asked again.
    again: Option<Instant>,
    parts: PoolParts,
    options: WorkerOptions,
    stop: watch::Receiver<Option<Instant>>,
    engine: EngineHandle,
    /// It failed, and no other took its place: the device is taken out, or nothing more is to be drawn.
    engine_is_gone: bool,
    events: mpsc::Receiver<EngineEvent>,
    /// In the engine's hands, or on their way there.
    aboard: HashMap<JobId, JobRun>,
    preparing: Preparing,
    /// Lost to another worker; the engine has been told to leave them, and has not said yet that it did. Nothing is
    /// claimed meanwhile: a job that came back at once would be taken for the one it was.
    leaving: HashMap<JobId, JobRun>,
    /// Drawn; their pictures are being stored.
    ending: JoinSet<()>,
    ending_leases: HashMap<task::Id, Lease>,
    batches: u64,
    /// Jobs of the last forward; 0 while none has run.
    batch_jobs: u32,
    /// It has not asked the others for work since it last looked anew.
    may_ask: bool,
    filling: Filling,
    standing: Standing,
}

/// An engine without models: jobs bring theirs.
fn start_engine(options: &WorkerOptions) -> Result<(EngineHandle, mpsc::Receiver<EngineEvent>), Error> {
    let (sender, events) = mpsc::channel(EVENTS);
    let sink = Arc::new(move |event: EngineEvent| match event {
        EngineEvent::Progress { .. }
        | EngineEvent::Preview { .. }
        | EngineEvent::Batch(_)
        | EngineEvent::Forward(_)
        | EngineEvent::Demand(_) => {
            // A watcher skips to the latest anyway, and each step has its demand.
            let _ = sender.try_send(event);
        }
        // A worker that is gone has handed its jobs back.
        _ => drop(sender.blocking_send(event)),
    });
    Ok((engine::start(options.engine.clone(), sink)?, events))
}

impl Worker {
    pub(super) fn start(
        id: WorkerId,
        models: Arc<Collection>,
        (parts, options): (PoolParts, WorkerOptions),
        stop: watch::Receiver<Option<Instant>>,
    ) -> Result<Self, Error> {
        let (engine, events) = start_engine(&options)?;
        let worker = Self {
            id,
            models,
            asks: true,
            again: None,
            parts,
            options,
            stop,
            engine,
            engine_is_gone: false,
            events,
            aboard: HashMap::new(),
            preparing: JoinSet::new(),
            leaving: HashMap::new(),
            ending: JoinSet::new(),
            ending_leases: HashMap::new(),
            batches: 0,
            batch_jobs: 0,
            may_ask: true,
            filling: Filling::default(),
            standing: Standing::default(),
        };
        worker.report();
        Ok(worker)
    }

    /// Has the engine evaluate the models that are loaded, for `patience` in all; the receiver's other end is dropped then.
    pub(super) fn warm_up(&self, patience: Duration) -> std::sync::mpsc::Receiver<()> {
        let pipelines = self.models.hold().iter().map(|model| model.pipeline().clone()).collect();
        self.engine.warm_up(pipelines, patience)
    }

    /// Until told to stop: an event of the engine, a heartbeat, a cancel, or a look at the queue, whichever comes first.
    pub(super) async fn run(mut self) {
        let mut heartbeats = interval(self.options.lease / 3);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = interval(watchdog::period(&self.options));
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut polls = interval(self.options.poll);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let hub = self.parts.hub.clone();
        let (mut cancels, mut asks) = (hub.cancels(), hub.asks());
        let mut stop = self.stop.clone();
        loop {
            // Asked for before looking at the queue, so that no job slips in between.
            let woken = hub.woken();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let has_engine = !self.engine_is_gone;
            if stop.borrow().is_none() && self.leaving.is_empty() && has_engine {
                self.consult_models().await;
                self.look().await;
            }
            self.report();
            let again = self.again;
            let deadline = *stop.borrow();
            if deadline.is_some() && self.aboard.is_empty() && self.ending.is_empty() {
                break;
            }
            tokio::select! {
                event = self.events.recv(), if has_engine => match event {
                    Some(event) => self.heed(event).await,
                    None => self.engine_failed(Failure::Ended).await,
                },
                _ = watch.tick() => self.watch().await,
                Some(ready) = self.preparing.join_next(), if !self.preparing.is_empty() => {
                    // A task that was ended, with the worker.
                    if let Ok(ready) = ready {
                        self.heed_ready(ready).await;
                    }
                }
                ended = self.ending.join_next_with_id(), if !self.ending.is_empty() => self.heed_ended(ended),
                _ = heartbeats.tick() => self.heartbeat().await,
                cancel = cancels.recv() => self.heed_cancel(cancel).await,
                ask = asks.recv() => self.heed_ask(ask),
                () = &mut woken => self.look_again(),
                _ = polls.tick() => self.look_again(),
                () = until(again), if again.is_some() => {}
                Ok(()) = stop.changed() => {}
                () = until(deadline), if deadline.is_some() => break,
            }
        }
        self.leave().await;
    }

    fn look_again(&mut self) {
        self.filling.look_again();
        (self.asks, self.may_ask) = (true, true);
    }

    /// An idle engine gets the oldest group; a running batch, what it has room for.
    async fn look(&mut self) {
        let rows = self.rows_to_begin_with();
        if rows > 0 {
            self.claim(Select::Group, rows).await;
            return;
        }
        // An idle worker would begin at once with what a busy one takes in beside others.
        if self.filling.wanted_for().is_some_and(|model| self.parts.hub.is_anyone_idle_with(model)) {
            return;
        }
        if let Some(demand) = self.filling.wanted() {
            self.fill(demand).await;
        }
    }

    async fn fill(&mut self, demand: EngineDemand) {
        if self.filling.asks_waiting()
            && let Ok(stats) = self.parts.jobs.stats().await
        {
            let workers = self.parts.hub.working().max(1) as u64;
            self.engine.set_waiting(u32::try_from(stats.waiting_rows / workers).unwrap_or(u32::MAX));
        }
        let EngineDemand { size, steps, rows, displaces, target, before, .. } = demand;
        // What is on its way has its place already.
        let (coming, others) = self.coming(&size);
        let (rows, displaces) = (rows.saturating_sub(coming), displaces.filter(|_| coming == 0));
        if others == 0 && self.filling.may_find_other(&size, before) {
            if self.claim(Select::Other { except: size.clone(), before }, target).await > 0 {
                return;
            }
            self.filling.found_no_other(&size, before);
        }
        // Where there is no room, somebody who stands before one aboard gets that one's place.
        let is_worth_it = rows > 0 || displaces.is_some();
        if is_worth_it && self.filling.may_find(&size, displaces) {
            let select = Select::Fill { size: size.clone(), steps, before: displaces };
            if self.claim(select, if rows > 0 { rows } else { target }).await == 0 {
                self.filling.found_none(&size, displaces);
            }
        }
    }

    /// Takes jobs and sends them on their way to the engine; returns how many.
    async fn claim(&mut self, select: Select, max_rows: u32) -> usize {
        // Held before the claim, so that none of them is dropped in between.
        let models = self.models.hold();
        if models.is_empty() {
            return 0;
        }
        let ids: Vec<ModelId> = models.iter().map(|model| model.id().clone()).collect();
        let claimed = self.claimed(ids.clone(), (select, true), max_rows).await;
        if claimed.is_empty() && self.aboard.is_empty() {
            self.ask(ids);
        }
        self.asks |= !claimed.is_empty();
        let mut taken = Vec::new();
        for claimed in claimed {
            let Some(models) = wanting::needed(&claimed, &models) else {
                self.lack(claimed).await;
                continue;
            };
            let (job, place, token) = (claimed.job.clone(), claimed.place, claimed.lease.token);
            let waited = job.started_at.map_or(0, |started| started.ms_since(job.created_at));
            self.parts.metrics.queue_wait.observe(waited as f64 / 1e3);
            self.parts.events.publish(job.id, JobEventKind::Started { attempt: job.attempts }).await;
            tracing::info!(job.id = %job.id, worker = %self.id, attempt = job.attempts, "job started");
            self.parts.hub.boarded(&job, place);
            let kept = models.iter().map(Held::for_job).collect();
            self.aboard.insert(job.id, JobRun::new(claimed, models));
            taken.push(Claimed { job, place, token, models: kept });
        }
        let count = taken.len();
        self.prepare(taken);
        count
    }

    /// Takes jobs of these models from the queue, to be drawn or not; none where the store fails.
    async fn claimed(
        &self,
        models: Vec<ModelId>,
        (select, is_to_draw): (Select, bool),
        max_rows: u32,
    ) -> Vec<ClaimedJob> {
        let request = ClaimRequest {
            worker: self.id.clone(),
            models,
            select,
            is_to_draw,
            max_rows,
            max_row_pixels: self.options.engine.caps.max_row_pixels,
            lease_ms: self.options.lease.as_millis() as u64,
        };
        self.parts.jobs.claim(request).await.unwrap_or_else(|error| {
            self.parts.metrics.store_errors.inc();
            tracing::warn!(worker = %self.id, %error, "cannot claim jobs");
            Vec::new()
        })
    }

    async fn heed(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Failed { code: ErrorCode::DeviceFailed, message, .. } => {
                self.engine_failed(Failure::Device(message)).await;
            }
            EngineEvent::Finished { job, .. }
            | EngineEvent::Failed { job, .. }
            | EngineEvent::Cancelled { job }
            | EngineEvent::Parked { job, .. }
                if self.leaving.remove(&job).is_some() => {}
            EngineEvent::Started { job, warnings, drawn_by, is_resumed } => {
                if let Some(run) = self.aboard.get_mut(&job) {
                    run.started(warnings, drawn_by, is_resumed);
                    if is_resumed {
                        parked::tell(&self.parts, run).await;
                    }
                }
            }
            EngineEvent::Progress { job, image, step, total } if self.aboard.contains_key(&job) => {
                self.parts.hub.advanced(job, ImageProgress { image, step, steps: total });
                self.parts.events.publish(job, JobEventKind::Progress { image, step, total }).await;
            }
            EngineEvent::Preview { job, image, step, picture } if self.aboard.contains_key(&job) => {
                // One pixel a latent pixel: encoding it takes well under a millisecond.
                let output = OutputOptions { format: ImageFormat::Jpeg, quality: 80 };
                if let Ok(jpeg) = images::encode(&picture, output, None) {
                    self.parts.events.publish(job, JobEventKind::Preview { image, step, jpeg: jpeg.into() }).await;
                }
            }
            EngineEvent::Image { job, image, picture } => {
                self.standing.drew();
                if let Some(run) = self.aboard.get_mut(&job) {
                    run.store_picture(&self.parts, image, picture);
                }
            }
            EngineEvent::Finished { job, timings } => {
                let parts = self.parts.clone();
                self.succeed_beside(job, |run| run.succeed(parts, timings));
            }
            EngineEvent::Failed { job, code, message } => {
                self.end(job, Outcome::Failed(JobError { code, message })).await
            }
            EngineEvent::Cancelled { job } => self.end(job, Outcome::Cancelled).await,
            EngineEvent::Parked { job, parked } => {
                let parts = self.parts.clone();
                self.end_beside(job, |run| run.park(parts, parked));
            }
            EngineEvent::Batch(report) => self.measure(report),
            EngineEvent::Forward(report) => {
                let off = self.parts.hub.learn(report);
                off.into_iter().for_each(|off| self.parts.metrics.forward_error.observe(off));
            }
            EngineEvent::Demand(demand) => self.filling.heed(demand),
            EngineEvent::Progress { .. } | EngineEvent::Preview { .. } => {}
        }
    }

    /// The engine is done with a job; what is left to do of it is done beside the others, its lease renewed meanwhile.
    fn end_beside<F: Future<Output = ()> + Send + 'static>(&mut self, job: JobId, rest: impl FnOnce(JobRun) -> F) {
        if let Some(mut run) = self.aboard.remove(&job) {
            run.let_models_go();
            let lease = run.claimed.lease.clone();
            let task = self.ending.spawn(rest(run));
            self.ending_leases.insert(task.id(), lease);
        }
    }

    /// What was left to do of a job is done, or panicked: then the rescue finds it.
    fn heed_ended(&mut self, ended: Option<Result<(task::Id, ()), task::JoinError>>) {
        let id = ended.map(|ended| ended.map_or_else(|error| error.id(), |(id, ())| id));
        id.map(|id| self.ending_leases.remove(&id));
    }

    async fn end(&mut self, job: JobId, outcome: Outcome) {
        if let Some(run) = self.aboard.remove(&job) {
            end_without(&self.parts, &run.claimed.lease, outcome).await;
        }
    }

    fn measure(&mut self, report: BatchReport) {
        self.batches += 1;
        self.batch_jobs = report.jobs;
        let metrics = &self.parts.metrics;
        metrics.batch_rows.observe(f64::from(report.rows));
        metrics.batch_samples.observe(f64::from(report.samples));
        metrics.batch_jobs.observe(f64::from(report.jobs));
        metrics.step_seconds.observe(report.micros as f64 / 1e6);
        if let Some(gap) = report.gap_micros {
            metrics.step_gap.observe(gap as f64 / 1e6);
        }
        match report.steps {
            Some(steps) => {
                let (model, width, height) = (report.model.to_string(), report.width, report.height);
                metrics.count_batch(BatchGroup { model, width, height, steps });
            }
            None => metrics.batches_mixed.inc(),
        }
        let pixels = u64::from(report.width) * u64::from(report.height);
        self.parts.hub.worked(Work { pixel_steps: u64::from(report.samples) * pixels, micros: report.micros });
    }

    async fn heartbeat(&mut self) {
        let held = self.aboard.values().map(|run| &run.claimed.lease).chain(self.ending_leases.values());
        let leases: Vec<_> = held.cloned().collect();
        if leases.is_empty() {
            return;
        }
        match self.parts.jobs.heartbeat(&leases, self.options.lease.as_millis() as u64).await {
            Ok(states) => {
                for (lease, state) in leases.iter().zip(states) {
                    match state {
                        LeaseState::Held => {}
                        LeaseState::CancelRequested => self.cancel(lease.job_id).await,
                        LeaseState::Lost => {
                            // Somebody else has it now: whatever the engine still says of it is not heeded.
                            // One that was parked may have come back under another lease.
                            let is_this = |run: &JobRun| run.claimed.lease.token == lease.token;
                            if self.aboard.get(&lease.job_id).is_some_and(is_this)
                                && let Some(run) = self.aboard.remove(&lease.job_id)
                            {
                                tracing::warn!(job.id = %lease.job_id, worker = %self.id, "lease lost");
                                self.parts.hub.left(lease.job_id);
                                if !run.is_preparing {
                                    self.leaving.insert(lease.job_id, run);
                                    self.engine.cancel(lease.job_id);
                                }
                            }
                        }
                    }
                }
            }
            Err(error) => {
                self.parts.metrics.store_errors.inc();
                tracing::warn!(worker = %self.id, %error, "cannot renew leases");
            }
        }
    }

    async fn heed_cancel(&mut self, cancel: Result<JobId, broadcast::error::RecvError>) {
        // Cancels missed by a slow receiver are learnt from the heartbeat.
        if let Ok(job) = cancel {
            self.cancel(job).await;
        }
    }

    /// Leaves a job at its next step, or at once where it has not come to the engine yet.
    async fn cancel(&mut self, job: JobId) {
        match self.aboard.get(&job) {
            Some(run) if run.is_preparing => self.end(job, Outcome::Cancelled).await,
            Some(_) => self.engine.cancel(job),
            None => {}
        }
    }

    fn report(&self) {
        let state = match (self.stop.borrow().is_some(), self.standing.out.is_none(), self.aboard.is_empty()) {
            (_, false, _) => WorkerState::Failed,
            (true, true, _) => WorkerState::Draining,
            (false, true, true) => WorkerState::Idle,
            (false, true, false) => WorkerState::Busy,
        };
        let status = WorkerStatus {
            device: self.models.device().to_string(),
            state,
            jobs: self.aboard.len() as u32,
            batches: self.batches,
            failures: self.standing.failures,
            reason: self.standing.out.clone(),
        };
        self.parts.hub.report(&self.id, status);
    }
}

/// Resolves at the deadline.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
