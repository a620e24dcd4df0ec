//! A job as told to clients: its row, and what is known of its way ahead.

use super::GenerationService;
use crate::domain::{ImageProgress, Job, JobStatus};

/// A job and what is known beyond its row.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    /// Its row.
    pub job: Job,
    /// Jobs before it, while it waits.
    pub queue_position: Option<u64>,
    /// When it will likely have ended, from now, in milliseconds; unknown until the first forward has been measured.
    pub eta_ms: Option<u64>,
    /// How far each picture is.
    pub progress: Vec<ImageProgress>,
}

impl GenerationService {
    pub(super) async fn view(&self, job: Job) -> super::Result<JobView> {
        let queue_position = match job.status {
            JobStatus::Queued => self.parts.jobs.position(job.id).await?,
            _ => None,
        };
        let progress = self.progress(&job);
        let eta_ms = self.eta_ms(&job, queue_position, &progress).await?;
        Ok(JobView { job, queue_position, eta_ms, progress })
    }

    fn progress(&self, job: &Job) -> Vec<ImageProgress> {
        let steps = job.request.steps_taken();
        let all =
            |step| (0..job.request.num_images()).map(|image| ImageProgress { image, step, steps }).collect::<Vec<_>>();
        match job.status {
            JobStatus::Succeeded => all(steps),
            JobStatus::Running => {
                let mut known = all(0);
                for live in self.parts.hub.progress(job.id) {
                    if let Some(image) = known.get_mut(live.image as usize) {
                        *image = live;
                    }
                }
                known
            }
            _ => Vec::new(),
        }
    }

    /// The work before it and its own, at the speed lately measured. A rough guess: batches make it better, priorities
    /// of later jobs worse.
    async fn eta_ms(&self, job: &Job, position: Option<u64>, progress: &[ImageProgress]) -> super::Result<Option<u64>> {
        let Some(speed) = self.parts.hub.speed() else { return Ok(None) };
        let request = &job.request;
        let picture = u64::from(request.width()) * u64::from(request.height());
        let stats = self.parts.jobs.stats().await?;
        let average = stats.pixel_steps as f64 / (stats.queued + stats.running).max(1) as f64;
        let own = match job.status {
            JobStatus::Queued => f64::from(request.steps_taken() * request.num_images()) * picture as f64,
            JobStatus::Running => {
                progress.iter().map(|image| f64::from(image.steps - image.step)).sum::<f64>() * picture as f64
            }
            _ => return Ok(None),
        };
        // Those that run share the devices with it; those that wait come before it.
        let ahead = match position {
            Some(position) => average * (position + stats.running) as f64,
            None => average * stats.running.saturating_sub(1) as f64 / 2.0,
        };
        Ok(Some(((own + ahead) / speed.max(1.0) * 1e3) as u64))
    }

    /// When the queue will likely have room again, in seconds: from 1 to 120, beyond which clients give up.
    pub(super) async fn retry_after_s(&self) -> u64 {
        let stats = self.parts.jobs.stats().await.unwrap_or_default();
        let average = stats.pixel_steps as f64 / (stats.queued + stats.running).max(1) as f64;
        // Unmeasured: ten seconds, a guess.
        self.parts.hub.speed().map_or(10, |speed| (average / speed.max(1.0)).ceil().clamp(1.0, 120.0) as u64)
    }
}
