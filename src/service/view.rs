//! A job as told to clients: its row, and what is known of its way ahead.

use super::GenerationService;
use super::eta::Forecast;
use crate::domain::{ImageProgress, Job, JobStatus};

/// A job and what is known beyond its row.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    /// Its row.
    pub job: Job,
    /// Jobs before it, while it waits.
    pub queue_position: Option<u64>,
    /// When it will likely have ended, from now, in milliseconds; unknown until a forward of its model was measured.
    pub eta_ms: Option<u64>,
    /// How far each picture is.
    pub progress: Vec<ImageProgress>,
}

impl GenerationService {
    pub(super) async fn view(&self, job: Job) -> super::Result<JobView> {
        let forecast = if job.status.is_terminal() { Forecast::default() } else { self.forecast().await? };
        self.view_by(job, &forecast).await
    }

    /// The same of one of several jobs.
    pub(super) async fn view_by(&self, job: Job, forecast: &Forecast) -> super::Result<JobView> {
        let ahead = match job.status {
            JobStatus::Queued => self.parts.jobs.ahead(job.id).await?,
            _ => None,
        };
        let queue_position = ahead.as_ref().map(|ahead| ahead.work.iter().map(|work| work.jobs).sum());
        let progress = self.progress(&job);
        let seconds = match (job.status, &ahead) {
            (JobStatus::Queued, Some(ahead)) => forecast.waiting(&job, ahead),
            (JobStatus::Running, _) => forecast.running(&job),
            _ => None,
        };
        let eta_ms = seconds.map(|seconds| (seconds * 1e3).ceil() as u64);
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

    /// What is known of the way ahead now.
    pub(super) async fn forecast(&self) -> super::Result<Forecast> {
        let waiting_rows = self.parts.jobs.stats().await?.waiting_rows;
        Ok(Forecast { outlook: self.parts.hub.outlook(), waiting_rows })
    }

    /// When the queue will likely have room again, in seconds: from 1 to 120, beyond which clients give up.
    pub(super) async fn retry_after_s(&self) -> u64 {
        let free = async {
            let waiting = self.parts.jobs.waiting_work().await?;
            super::Result::Ok(self.forecast().await?.place_free(&waiting))
        };
        // Unmeasured: ten seconds, a guess.
        let seconds = free.await.ok().flatten().unwrap_or(10.0);
        seconds.ceil().clamp(1.0, 120.0) as u64
    }
}
