//! Requests whose pictures are there already: answered with copies, without a device.

use super::GenerationService;
use crate::dispatch::jobs::{Answer, identity};
use crate::domain::{GenerationRequest, Job, JobEventKind, JobId, ModelId, OwnerId};

/// Which files models are loaded from. Its method looks at folders; it is called where that holds nobody up.
pub trait ModelFiles: Send + Sync {
    /// Tells the files that a model would be loaded from now from others; `None` where that cannot be told.
    fn files(&self, model: &ModelId) -> Option<String>;
}

/// Nothing is known of any model's files, so that nothing is reused.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnknownFiles;

impl ModelFiles for UnknownFiles {
    fn files(&self, _model: &ModelId) -> Option<String> {
        None
    }
}

impl GenerationService {
    /// [`identity()`] of a request, where the operator lets pictures be reused and the client chose the seed: one that was drawn
    /// asks for a picture that nobody has.
    pub(super) async fn identity_of(
        &self,
        request: &GenerationRequest,
        owner: Option<&OwnerId>,
        is_seed_given: bool,
    ) -> Option<String> {
        if !self.options.reuse || !is_seed_given || !request.reuse() {
            return None;
        }
        let (files, request, owner) = (self.parts.files.clone(), request.clone(), owner.cloned());
        let name = move || identity(&request, owner.as_ref(), |model| files.files(model));
        let named = tokio::task::spawn_blocking(name).await;
        named.unwrap_or_else(|error| {
            tracing::error!(%error, "looking at a model's files failed");
            None
        })
    }

    /// Copies of the pictures that a stored job of this identity has, as those of job `id`; none where there is no such job, or
    /// its pictures are gone. A store that fails is no reason not to take the job.
    pub(super) async fn answer_for(&self, id: JobId, identity: Option<&str>) -> Option<Answer> {
        let found = self.parts.jobs.identical(identity?).await.unwrap_or_else(|error| {
            self.parts.metrics.store_errors.inc();
            tracing::warn!(job.id = %id, %error, "cannot look for the pictures of an identical request");
            None
        });
        let Job { id: from, images, warnings, .. } = found?;
        let copied = self.parts.artifacts.copy(from, id, &images).await.unwrap_or_else(|error| {
            tracing::warn!(job.id = %id, %error, "cannot copy the pictures of an identical request");
            false
        });
        copied.then_some(Answer { from, images, warnings })
    }

    /// Tells of a job that was answered when it came.
    pub(super) async fn announce_answered(&self, job: &Job) {
        self.parts.metrics.jobs_ended.with_label_values(&[job.status.name()]).inc();
        self.parts.metrics.reused.with_label_values(&["stored"]).inc();
        for image in &job.images {
            self.parts.events.publish(job.id, JobEventKind::Image(image.clone())).await;
        }
        self.parts.events.publish(job.id, JobEventKind::Succeeded).await;
        tracing::info!(job.id = %job.id, "job answered with the pictures of an identical one");
    }
}
