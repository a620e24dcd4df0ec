//! Loops that tidy up after lost workers and time.

use std::time::Duration;

use super::job_run::remove_drawn;
use super::pool::PoolParts;
use crate::dispatch::jobs::{Overdue, Rescued};
use crate::domain::{Job, JobError, JobEventKind, JobId};

/// Jobs removed in one transaction.
const REMOVED_AT_ONCE: u32 = 200;
const REMOVAL_PERIOD: Duration = Duration::from_secs(60);
/// Deadlines are whole seconds.
const EXPIRY_PERIOD: Duration = Duration::from_secs(1);

/// Requeues or ends jobs whose lease has expired. Every replica does it: the store lets one win.
pub(super) async fn rescue(parts: PoolParts, period: Duration) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match parts.jobs.rescue_expired().await {
            Ok(rescued) => {
                for job in rescued {
                    announce(&parts, job).await;
                }
            }
            Err(error) => {
                parts.metrics.store_errors.inc();
                tracing::warn!(%error, "cannot look for lost jobs");
            }
        }
    }
}

/// Tells whoever watches what became of a job whose attempt was lost.
pub(super) async fn announce(parts: &PoolParts, rescued: Rescued) {
    parts.metrics.rescued.inc();
    let (id, kind): (JobId, JobEventKind) = match rescued {
        Rescued::Requeued(job) => (job.id, JobEventKind::Queued),
        Rescued::Cancelled(job) => (job.id, JobEventKind::Cancelled),
        Rescued::Failed(job) => {
            let lost =
                || JobError { code: crate::domain::ErrorCode::WorkerLost, message: "its worker was lost".to_owned() };
            (job.id, JobEventKind::Failed(job.error.unwrap_or_else(lost)))
        }
    };
    tracing::warn!(job.id = %id, event = kind.name(), "a job's worker was lost");
    if kind.is_terminal() {
        let status = if matches!(kind, JobEventKind::Cancelled) { "cancelled" } else { "failed" };
        parts.metrics.jobs_ended.with_label_values(&[status]).inc();
        // A lost attempt may have left pictures.
        remove_drawn(parts, id).await;
    }
    parts.events.publish(id, kind).await;
    parts.hub.wake();
}

/// Ends jobs whose deadline is over. Every replica does it; those that run hear of it here, or from their next heartbeat.
pub(super) async fn expire(parts: PoolParts) {
    let mut ticks = tokio::time::interval(EXPIRY_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match parts.jobs.expire_overdue().await {
            Ok(overdue) => {
                for job in overdue {
                    match job {
                        Overdue::Ended(job) => expired(&parts, *job).await,
                        Overdue::Running(job) => parts.hub.cancel(job),
                    }
                }
            }
            Err(error) => {
                parts.metrics.store_errors.inc();
                tracing::warn!(%error, "cannot look for jobs past their deadline");
            }
        }
    }
}

async fn expired(parts: &PoolParts, job: Job) {
    tracing::info!(job.id = %job.id, "a waiting job's deadline is over");
    parts.metrics.jobs_ended.with_label_values(&[job.status.name()]).inc();
    // An attempt that was lost or handed back may have left pictures.
    remove_drawn(parts, job.id).await;
    if job.identity.is_some() {
        // The next that waited for its pictures may be drawn now.
        parts.hub.wake();
    }
    let error = job.error.expect("an expired job says why. This is a bug in jobs.");
    parts.events.publish(job.id, JobEventKind::Failed(error)).await;
}

/// Forgets ended jobs past their time, and their pictures.
pub(super) async fn remove_expired(parts: PoolParts) {
    let mut ticks = tokio::time::interval(REMOVAL_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A busy server ends more in a period than are removed at once.
        while removed(&parts).await == REMOVED_AT_ONCE as usize {}
    }
}

/// One round: how many were removed.
async fn removed(parts: &PoolParts) -> usize {
    let jobs = parts.jobs.remove_expired(REMOVED_AT_ONCE).await.unwrap_or_else(|error| {
        parts.metrics.store_errors.inc();
        tracing::warn!(%error, "cannot remove expired jobs");
        Vec::new()
    });
    for job in &jobs {
        if let Err(error) = parts.artifacts.remove(job.id).await {
            tracing::warn!(job.id = %job.id, %error, "cannot remove the pictures of an expired job");
        }
    }
    jobs.len()
}
