//! Where parked jobs stand: stored when they leave an engine, fetched when they are claimed again.
//!
//! None of it must be there: a job whose state is gone, damaged or another's starts anew, and the log says why.

use futures::future::join_all;

use super::PATIENCE;
use super::job_run::JobRun;
use super::pool::PoolParts;
use crate::diffusion::engine::{MAX_PARKED_BYTES, ParkedJob};
use crate::dispatch::artifacts::{ArtifactStore, Stored};
use crate::domain::{Artifact, ImageProgress, Job, JobEventKind, JobId};

/// What lies in the store of where a job stood.
pub(super) enum Found {
    Nothing,
    /// Something that cannot be used, or could not be read in time.
    Unusable,
    Parked(Box<ParkedJob>),
}

/// Where a claimed job stood when it was parked.
pub(super) async fn fetch(parts: &PoolParts, job: &Job) -> Found {
    let read = tokio::time::timeout(PATIENCE, read(&parts.artifacts, job.id)).await;
    match read.unwrap_or_else(|_| Err("it took too long".to_owned())) {
        Ok(None) => Found::Nothing,
        Ok(Some(parked)) => Found::Parked(Box::new(parked)),
        Err(reason) => {
            tracing::warn!(job.id = %job.id, %reason, "a parked state is not used; the job starts anew");
            Found::Unusable
        }
    }
}

async fn read(artifacts: &ArtifactStore, job: JobId) -> Result<Option<ParkedJob>, String> {
    let bytes = artifacts.get_parked(job, MAX_PARKED_BYTES as u64).await.map_err(|error| error.to_string())?;
    let Some(bytes) = bytes else { return Ok(None) };
    let parked = tokio::task::spawn_blocking(move || ParkedJob::from_bytes(&bytes));
    let parked = parked.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let checked = parked.stored().iter().map(|picture| is_there(artifacts, job, picture));
    join_all(checked).await.into_iter().collect::<Result<(), String>>()?;
    Ok(Some(parked))
}

async fn is_there(artifacts: &ArtifactStore, job: JobId, picture: &Artifact) -> Result<(), String> {
    let Artifact { index, format, size_bytes, sha256, .. } = picture;
    let found = artifacts.get(job, *index, *format).await.map_err(|error| error.to_string())?;
    let expected = Stored { size_bytes: *size_bytes, sha256: sha256.clone() };
    match found {
        Some(bytes) if Stored::of(&bytes) == expected => Ok(()),
        Some(_) => Err(format!("picture {index} is not what it was")),
        None => Err(format!("picture {index} is gone")),
    }
}

/// Stores where a job stands.
pub(super) async fn keep(parts: &PoolParts, parked: ParkedJob) {
    let job = parked.job();
    let bytes = tokio::task::spawn_blocking(move || parked.to_bytes());
    let stored = async {
        let bytes = bytes.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        parts.artifacts.put_parked(job, bytes.into()).await.map_err(|error| error.to_string())
    };
    match stored.await {
        Ok(()) => parts.metrics.parked.inc(),
        Err(reason) => tracing::warn!(job.id = %job, %reason, "cannot store where a job stands; it will start anew"),
    }
}

/// Its job goes on where it stood: the pictures that are stored are told again, since this process may not have drawn them.
pub(super) async fn tell(parts: &PoolParts, run: &JobRun) {
    let job = &run.claimed.job;
    parts.metrics.resumed.inc();
    let steps = job.request.steps_taken();
    for artifact in run.stored() {
        parts.hub.advanced(job.id, ImageProgress { image: artifact.index, step: steps, steps });
        parts.events.publish(job.id, JobEventKind::Image(artifact.clone())).await;
    }
}

/// Its job has ended.
pub(super) async fn remove(parts: &PoolParts, job: JobId) {
    if let Err(error) = parts.artifacts.remove_parked(job).await {
        tracing::warn!(job.id = %job, %error, "cannot remove where a job stood that has ended");
    }
}
