//! Jobs whose pictures another job has: they are given copies, and nothing is drawn.

use super::job_run::{end, release};
use super::pool::PoolParts;
use crate::dispatch::jobs::{Answer, ClaimRequest, ClaimedJob, Origin, Outcome};
use crate::domain::{Job, JobEventKind, JobTimings};

/// Copies of the pictures that a stored job of the same identity has; none where there is no such job, or its pictures are
/// gone. A store that fails is no reason not to draw.
pub(super) async fn stored(parts: &PoolParts, job: &Job) -> Option<Answer> {
    let identity = job.identity.as_ref()?;
    let found = parts.jobs.identical(identity).await.unwrap_or_else(|error| {
        parts.metrics.store_errors.inc();
        tracing::warn!(job.id = %job.id, %error, "cannot look for the pictures of an identical request");
        None
    });
    copied(parts, &found?, job).await
}

async fn copied(parts: &PoolParts, from: &Job, to: &Job) -> Option<Answer> {
    match parts.artifacts.copy(from.id, to.id, &from.images).await {
        Ok(true) => Some(Answer { from: from.id, images: from.images.clone(), warnings: from.warnings.clone() }),
        Ok(false) => None,
        Err(error) => {
            tracing::warn!(job.id = %to.id, %error, "cannot copy the pictures of an identical request");
            None
        }
    }
}

/// Ends a job that was claimed with pictures that were copied for it.
pub(super) async fn answer(parts: &PoolParts, claimed: &ClaimedJob, answer: Answer, how: &str) -> Option<Job> {
    let Answer { from, images, warnings } = answer;
    let id = claimed.job.id;
    tracing::info!(job.id = %id, %from, "a job is given the pictures of an identical one");
    for image in &images {
        parts.events.publish(id, JobEventKind::Image(image.clone())).await;
    }
    let (timings, origin) = (JobTimings::default(), Origin::Copied(from));
    let ended = end(parts, &claimed.lease, Outcome::Succeeded { images, timings, warnings, origin }).await;
    if ended.is_some() {
        parts.metrics.reused.with_label_values(&[how]).inc();
    }
    ended
}

/// Ends the jobs that wait for the pictures of one that has just succeeded; `request` takes some of them. When one cannot be
/// given copies it goes back to the queue, and the others stay there: the oldest is the next to be drawn.
pub(super) async fn answer_waiting(parts: &PoolParts, ended: &Job, request: ClaimRequest) {
    loop {
        let claimed = parts.jobs.claim(request.clone()).await.unwrap_or_else(|error| {
            parts.metrics.store_errors.inc();
            tracing::warn!(job.id = %ended.id, %error, "cannot take the jobs that wait for its pictures");
            Vec::new()
        });
        let mut is_done = claimed.is_empty();
        for claimed in claimed {
            match copied(parts, ended, &claimed.job).await {
                Some(copies) => {
                    let attempt = claimed.job.attempts;
                    parts.events.publish(claimed.job.id, JobEventKind::Started { attempt }).await;
                    answer(parts, &claimed, copies, "in_flight").await;
                }
                None => {
                    is_done = true;
                    release(parts, &claimed.lease).await;
                    parts.hub.wake();
                }
            }
        }
        if is_done {
            return;
        }
    }
}
