//! What is left to do of the jobs that workers of this process hold.

use std::collections::HashMap;
use std::time::Instant;

use crate::domain::{GroupKey, ImageProgress, Job, JobId, QueuePlace, SizeKey};

/// A job that a worker holds, and what is left of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Aboard {
    /// Which.
    pub job: JobId,
    /// Its model and resolution.
    pub size: SizeKey,
    /// Its place in the queue.
    pub place: QueuePlace,
    /// Rows of a forward ([`crate::domain::GenerationRequest::rows`]).
    pub rows: u32,
    /// Steps of each picture.
    pub steps: u32,
    /// Steps that are left of the picture that is furthest behind.
    pub steps_left: u32,
    /// Steps that are left, times the rows that each takes.
    pub row_steps_left: f64,
}

/// A job that a worker holds, and how far it is.
#[derive(Debug)]
pub(super) struct Held {
    job: JobId,
    size: SizeKey,
    place: QueuePlace,
    rows: u32,
    steps: u32,
    images: u32,
    /// When its last step was told.
    stepped: Option<Instant>,
}

impl Held {
    pub(super) fn of(job: &Job, place: QueuePlace) -> Self {
        let request = &job.request;
        Self {
            job: job.id,
            size: GroupKey::of(request).size(),
            place,
            rows: request.rows(),
            steps: request.steps_taken(),
            images: request.num_images(),
            stepped: None,
        }
    }

    pub(super) fn size(&self) -> &SizeKey {
        &self.size
    }

    pub(super) fn stepped(&mut self) {
        self.stepped = Some(Instant::now());
    }

    /// Seconds since its last step, where there was one.
    pub(super) fn since_step(&self) -> Option<f64> {
        self.stepped.map(|moment| moment.elapsed().as_secs_f64())
    }

    pub(super) fn left(&self, progress: &HashMap<JobId, Vec<ImageProgress>>) -> Aboard {
        let known = progress.get(&self.job).map_or(&[][..], Vec::as_slice);
        let left = |image: &ImageProgress| image.steps.saturating_sub(image.step);
        let unknown = self.images.saturating_sub(known.len() as u32);
        let picture_steps = known.iter().map(left).sum::<u32>() + unknown * self.steps;
        let most = known.iter().map(left).max().unwrap_or(0);
        Aboard {
            job: self.job,
            size: self.size.clone(),
            place: self.place,
            rows: self.rows,
            steps: self.steps,
            steps_left: if unknown > 0 { self.steps } else { most },
            row_steps_left: f64::from(picture_steps) * f64::from(self.rows) / f64::from(self.images.max(1)),
        }
    }
}
