//! Accepting, cancelling and removing jobs.

use sha2::{Digest, Sha256};

use super::{Error, GenerationService, JobView, Result};
use crate::dispatch::jobs::{self, Cancelled, Idempotency, Inserted, NewJob};
use crate::domain::{FieldError, JobEventKind, JobId, ModelInfo, RequestDraft};

/// A job that was accepted, now or before.
#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    /// The job.
    pub view: JobView,
    /// The idempotency key had made it already.
    pub is_repeat: bool,
}

impl GenerationService {
    /// Checks a draft and puts it into the queue.
    ///
    /// # Errors
    /// Every fault of its fields; a full queue; draining; a store that failed.
    pub async fn submit(&self, draft: RequestDraft, idempotency_key: Option<String>) -> Result<Submitted> {
        if self.parts.hub.is_draining() {
            self.parts.metrics.rejected.with_label_values(&["draining"]).inc();
            return Err(Error::Unavailable { reason: "the server is shutting down; another replica may answer", retry_after_s: 5 });
        }
        let fingerprint = format!("{:x}", Sha256::digest(format!("{draft:?}")));
        let model = self.model_for(&draft).map_err(|fault| self.invalid(vec![fault]))?;
        let request = draft.validate(model, &self.options.limits, drawn_seed()).map_err(|faults| self.invalid(faults))?;
        let idempotency = idempotency_key.map(|key| Idempotency { key, fingerprint });
        let new = NewJob { id: JobId::generate(), request, idempotency };
        match self.parts.jobs.insert(new).await {
            Ok(Inserted::New(job)) => {
                self.parts.metrics.jobs_submitted.inc();
                self.parts.events.publish(job.id, JobEventKind::Queued).await;
                self.parts.hub.wake();
                tracing::info!(job.id = %job.id, model.id = %job.request.model(), "job accepted");
                Ok(Submitted { view: self.view(job).await?, is_repeat: false })
            }
            Ok(Inserted::Existing(job)) => Ok(Submitted { view: self.view(job).await?, is_repeat: true }),
            Err(jobs::Error::QueueFull { limit }) => {
                self.parts.metrics.rejected.with_label_values(&["queue_full"]).inc();
                Err(Error::QueueFull { limit, retry_after_s: self.retry_after_s().await })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn invalid(&self, faults: Vec<FieldError>) -> Error {
        self.parts.metrics.rejected.with_label_values(&["invalid"]).inc();
        Error::Invalid(faults)
    }

    fn model_for(&self, draft: &RequestDraft) -> std::result::Result<&ModelInfo, FieldError> {
        let models = &self.parts.models;
        let found = match &draft.model {
            None => models.first(),
            Some(name) => models.iter().find(|model| model.id.as_str() == name),
        };
        found.ok_or_else(|| {
            let names: Vec<String> = models.iter().map(|model| format!("`{}`", model.id)).collect();
            FieldError::new("model", draft.model.clone(), format!("is not served here; use one of {}", names.join(", ")))
        })
    }

    /// Cancels a job that waits or runs; forgets one that has ended, with its pictures.
    ///
    /// # Errors
    /// No such job; a store that failed.
    pub async fn delete(&self, id: JobId) -> Result<Option<JobView>> {
        match self.parts.jobs.cancel(id).await?.ok_or(Error::JobNotFound(id))? {
            Cancelled::Now(job) => {
                self.parts.metrics.jobs_ended.with_label_values(&["cancelled"]).inc();
                self.parts.events.publish(id, JobEventKind::Cancelled).await;
                Ok(Some(self.view(job).await?))
            }
            Cancelled::Requested(job) => {
                self.parts.hub.cancel(id);
                Ok(Some(self.view(job).await?))
            }
            Cancelled::AlreadyEnded(_) => {
                self.parts.jobs.remove(id).await?;
                self.parts.artifacts.remove(id).await?;
                Ok(None)
            }
        }
    }
}

/// A seed nobody chose: 63 random bits. Small enough to be read aloud would be nice, but two people must not share one.
fn drawn_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0 ^ uuid::Uuid::new_v4().as_u64_pair().1
}
