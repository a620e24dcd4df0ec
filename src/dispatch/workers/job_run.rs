//! One job while a worker holds it, and what happens to its pictures.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::models::Held;
use super::parked;
use super::pool::PoolParts;
use crate::diffusion::engine::{EngineTimings, ParkedJob};
use crate::dispatch::jobs::{self, ClaimedJob, Lease, Origin, Outcome};
use crate::domain::{Artifact, DrawnBy, ErrorCode, Job, JobError, JobEventKind, JobId, JobStatus, JobTimings, ModelId};
use crate::images::{self, PictureInfo, RgbImage};

/// A job aboard.
pub(super) struct JobRun {
    pub claimed: ClaimedJob,
    /// It has not come to the engine yet.
    pub is_preparing: bool,
    began: Instant,
    warnings: Vec<String>,
    drawn_by: DrawnBy,
    /// What it is drawn with, kept loaded.
    models: Vec<Held>,
    /// Whether that is what its identity names, should it have one.
    is_as_named: bool,
    pictures: Vec<JoinHandle<Result<Artifact, String>>>,
    /// Stored before it was parked, where it goes on from there.
    stored: Vec<Artifact>,
    /// Something may lie in the store of where it stood.
    was_parked: bool,
}

impl JobRun {
    pub(super) fn new(claimed: ClaimedJob, models: Vec<Held>) -> Self {
        let files = |id: &ModelId| {
            let model = models.iter().find(|model| model.id() == id)?;
            model.pipeline().info().files.clone()
        };
        let job = &claimed.job;
        let named = |identity| jobs::identity(&job.request, job.owner.as_ref(), files).as_ref() == Some(identity);
        let is_as_named = job.identity.as_ref().is_none_or(named);
        Self {
            claimed,
            is_preparing: true,
            began: Instant::now(),
            warnings: Vec::new(),
            drawn_by: DrawnBy::default(),
            models,
            is_as_named,
            pictures: Vec::new(),
            stored: Vec::new(),
            was_parked: false,
        }
    }

    /// For how long it has been on its way to the engine; none where it is there.
    pub(super) fn preparing_for(&self) -> Option<Duration> {
        self.is_preparing.then(|| self.began.elapsed())
    }

    /// It comes to the engine; where it was parked, with its pictures that were stored before.
    pub(super) fn is_ready(&mut self, parked: Option<Vec<Artifact>>) {
        self.is_preparing = false;
        self.was_parked = parked.is_some();
        self.stored = parked.unwrap_or_default();
    }

    /// The engine draws it no longer.
    pub(super) fn let_models_go(&mut self) {
        self.models.clear();
    }

    pub(super) fn id(&self) -> JobId {
        self.claimed.job.id
    }

    /// The engine took it, where it was parked or anew.
    pub(super) fn started(&mut self, warnings: Vec<String>, drawn_by: DrawnBy, is_resumed: bool) {
        (self.warnings, self.drawn_by) = (warnings, drawn_by);
        if !is_resumed {
            self.stored.clear();
        }
    }

    /// Its pictures that were stored before it was parked.
    pub(super) fn stored(&self) -> &[Artifact] {
        &self.stored
    }

    /// Encodes, stores and announces one picture beside the engine's next step.
    pub(super) fn store_picture(&mut self, parts: &PoolParts, index: u32, picture: RgbImage) {
        let (parts, job) = (parts.clone(), self.claimed.job.clone());
        let info = images::describe(&job.request, index, &self.drawn_by);
        self.pictures.push(tokio::spawn(async move { store_picture(&parts, &job, (index, info), picture).await }));
    }

    /// Waits for its pictures; by index.
    async fn pictures(&mut self) -> Result<Vec<Artifact>, String> {
        let (mut stored, mut failure) = (std::mem::take(&mut self.stored), None);
        for picture in self.pictures.drain(..) {
            match picture.await {
                Ok(Ok(artifact)) => stored.push(artifact),
                Ok(Err(reason)) => failure = Some(reason),
                Err(error) => failure = Some(error.to_string()),
            }
        }
        stored.sort_by_key(|artifact| artifact.index);
        failure.map_or(Ok(stored), Err)
    }

    /// Waits for its pictures, then ends the job: stored first, then the row, then the event. The job as it ended, where that
    /// could be recorded.
    pub(super) async fn succeed(mut self, parts: PoolParts, engine: EngineTimings) -> Option<Job> {
        let began = Instant::now();
        let stored = self.pictures().await;
        parts.metrics.decode_seconds.observe(engine.decode_ms as f64 / 1e3);
        let timings = JobTimings {
            encode_ms: engine.encode_ms,
            denoise_ms: engine.denoise_ms,
            decode_ms: engine.decode_ms,
            store_ms: began.elapsed().as_millis() as u64,
            ..JobTimings::default()
        };
        let origin = if self.is_as_named { Origin::Drawn } else { Origin::DrawnOtherwise };
        let outcome = match stored {
            Ok(images) => Outcome::Succeeded { images, timings, warnings: self.warnings, origin },
            Err(reason) => {
                tracing::error!(job.id = %self.claimed.job.id, %reason, "a picture could not be stored");
                let message = "a finished picture could not be stored".to_owned();
                Outcome::Failed(JobError { code: ErrorCode::Internal, message })
            }
        };
        let ended = end(&parts, &self.claimed.lease, outcome).await;
        let Some(job) = &ended else { return None };
        if job.status != JobStatus::Succeeded {
            remove_drawn(&parts, job.id).await;
        }
        if self.was_parked {
            parked::remove(&parts, job.id).await;
        }
        ended
    }

    /// Waits for its pictures, stores where the others stand, and hands the job back: whoever takes it goes on there.
    pub(super) async fn park(mut self, parts: PoolParts, state: Option<Box<ParkedJob>>) {
        match (state, self.pictures().await) {
            (Some(state), Ok(stored)) => parked::keep(&parts, state.with_stored(stored)).await,
            (_, Err(reason)) => {
                tracing::warn!(job.id = %self.id(), %reason, "a picture could not be stored; the job will start anew");
            }
            // The engine has said why.
            (None, Ok(_)) => {}
        }
        self.hand_back(&parts).await;
    }

    /// Uncounted, to the queue.
    pub(super) async fn hand_back(&self, parts: &PoolParts) {
        // Before another worker here can take it.
        parts.hub.left(self.id());
        if release(parts, &self.claimed.lease).await {
            parts.events.publish(self.id(), JobEventKind::Queued).await;
            tracing::info!(job.id = %self.id(), "handed back to the queue");
            parts.hub.wake();
        }
    }
}

/// Gives a job back, uncounted: whether it waits again. One whose end was asked for ends instead, and that is told.
pub(super) async fn release(parts: &PoolParts, lease: &Lease) -> bool {
    match parts.jobs.release(lease).await {
        Ok(job) if job.status.is_terminal() => {
            announce(parts, job).await;
            remove_drawn(parts, lease.job_id).await;
            false
        }
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(job.id = %lease.job_id, %error, "cannot hand a job back; it will be rescued");
            false
        }
    }
}

/// What was drawn of a job that did not succeed, and where it stood: nobody will ask for them.
pub(super) async fn remove_drawn(parts: &PoolParts, job: JobId) {
    if let Err(error) = parts.artifacts.remove_drawn(job).await {
        tracing::warn!(job.id = %job, %error, "cannot remove the pictures of a job that did not succeed");
    }
}

/// Ends an attempt without success. What a lost lease was for is another's now, with its pictures.
pub(super) async fn end_without(parts: &PoolParts, lease: &Lease, outcome: Outcome) {
    if end(parts, lease, outcome).await.is_some() {
        remove_drawn(parts, lease.job_id).await;
    }
}

async fn store_picture(
    parts: &PoolParts,
    job: &Job,
    (index, info): (u32, PictureInfo),
    picture: RgbImage,
) -> Result<Artifact, String> {
    let output = job.request.output();
    let (width, height) = (picture.width(), picture.height());
    let encode = move || images::encode(&picture, output, Some(&info));
    let bytes = tokio::task::spawn_blocking(encode)
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let stored = parts
        .artifacts
        .put(job.id, index, output.format, Bytes::from(bytes))
        .await
        .map_err(|error| error.to_string())?;
    let artifact = Artifact {
        index,
        seed: job.request.image_seed(index),
        width,
        height,
        format: output.format,
        size_bytes: stored.size_bytes,
        sha256: stored.sha256,
    };
    parts.events.publish(job.id, JobEventKind::Image(artifact.clone())).await;
    Ok(artifact)
}

/// Records how an attempt ended and tells whoever watches. A store that fails is tried again for as long as the lease
/// may last; after that, the rescue finds the job. The job as it ended, where that was recorded.
pub(super) async fn end(parts: &PoolParts, lease: &Lease, outcome: Outcome) -> Option<Job> {
    for pause_ms in [50, 250, 1000, 4000] {
        match parts.jobs.finish(lease, outcome.clone()).await {
            Ok(job) => {
                announce(parts, job.clone()).await;
                return Some(job);
            }
            Err(jobs::Error::LeaseLost(id)) => {
                tracing::warn!(job.id = %id, "the lease was lost before the job ended; nothing is recorded");
                parts.hub.left(id);
                return None;
            }
            Err(error) => {
                parts.metrics.store_errors.inc();
                tracing::warn!(job.id = %lease.job_id, %error, "cannot record a job's end; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(pause_ms)).await;
            }
        }
    }
    tracing::error!(job.id = %lease.job_id, "gave up recording a job's end; it will be rescued");
    parts.hub.left(lease.job_id);
    None
}

async fn announce(parts: &PoolParts, job: Job) {
    let metrics = &parts.metrics;
    metrics.jobs_ended.with_label_values(&[job.status.name()]).inc();
    if let Some(timings) = job.timings {
        metrics.job_seconds.observe(timings.total_ms as f64 / 1e3);
        if job.status == JobStatus::Succeeded {
            let ratio = parts.hub.succeeded(job.id, timings.total_ms);
            ratio.into_iter().for_each(|ratio| metrics.eta_ratio.observe(ratio));
        }
    }
    parts.hub.left(job.id);
    if job.status != JobStatus::Succeeded && job.identity.is_some() {
        // The next that waited for its pictures may be drawn now.
        parts.hub.wake();
    }
    let kind = match (job.status, job.error) {
        (JobStatus::Succeeded, _) => JobEventKind::Succeeded,
        (JobStatus::Failed, Some(error)) => JobEventKind::Failed(error),
        _ => JobEventKind::Cancelled,
    };
    tracing::info!(job.id = %job.id, status = job.status.name(), "job ended");
    parts.events.publish(job.id, kind).await;
}
