//! Accepting, cancelling and removing jobs.

use sha2::{Digest, Sha256};

use super::{Caller, Error, GenerationService, GivenPicture, JobView, Result};
use crate::dispatch::jobs::{self, Cancelled, Idempotency, Inserted, NewJob};
use crate::domain::{FieldError, GenerationRequest, JobEventKind, JobId, Limits, ModelInfo, RequestDraft, hex};

/// A job that was accepted, now or before.
#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    /// The job.
    pub view: JobView,
    /// The idempotency key had made it already.
    pub is_repeat: bool,
}

/// A request as a front door read it.
#[derive(Clone, Debug, Default)]
pub struct Submission {
    /// What was asked.
    pub draft: RequestDraft,
    /// The pictures that it gives, each at most once.
    pub pictures: Vec<GivenPicture>,
    /// What the front door could not read.
    pub faults: Vec<FieldError>,
    /// A repeat with the same key is the same job.
    pub idempotency_key: Option<String>,
}

impl GenerationService {
    /// Checks a request and puts it into the queue, as a job of the caller.
    ///
    /// # Errors
    /// Every fault of its fields; a full queue; draining; a store that failed.
    pub async fn submit(&self, caller: &Caller, submission: Submission) -> Result<Submitted> {
        let Submission { mut draft, pictures, mut faults, idempotency_key } = submission;
        if self.parts.hub.is_draining() {
            self.parts.metrics.rejected.with_label_values(&["draining"]).inc();
            return Err(Error::Unavailable {
                reason: "the server is shutting down; another replica may answer",
                retry_after_s: 5,
            });
        }
        let fingerprint = hex(Sha256::digest(format!("{draft:?}{pictures:?}")));
        let (id, is_seed_given) = (JobId::generate(), draft.seed.is_some());
        let inputs = self.look_at(caller, id, pictures, &mut draft, &mut faults).await?;
        let limits = self.limits_for(&draft).await;
        let request = match self.check(draft, faults, &limits) {
            Ok(request) => self.with_hashes(request).await,
            Err(faults) => Err(faults),
        };
        let request = request.map_err(|faults| {
            self.parts.metrics.rejected.with_label_values(&["invalid"]).inc();
            Error::Invalid(faults)
        })?;
        let idempotency = idempotency_key.map(|key| Idempotency { key, fingerprint });
        let owner = caller.owner().cloned();
        let identity = self.identity_of(&request, owner.as_ref(), is_seed_given).await;
        let answer = self.answer_for(id, identity.as_deref()).await;
        // Before the job is: whoever claims it finds them. Of an answer that could not be copied whole some may be there.
        let has_files = !inputs.is_empty() || identity.is_some();
        let new = NewJob { id, owner, request, idempotency, identity, answer, speed: self.parts.hub.speed() };
        self.store_inputs(id, inputs).await?;
        let inserted = self.parts.jobs.insert(new).await;
        // A store that failed may have the job all the same.
        let is_refused = matches!(
            inserted,
            Ok(Inserted::Existing(_)) | Err(jobs::Error::QueueFull { .. } | jobs::Error::IdempotencyMismatch)
        );
        if has_files && is_refused {
            self.drop_inputs(id).await;
        }
        match inserted {
            Ok(Inserted::New(job)) => {
                self.parts.metrics.jobs_submitted.inc();
                self.parts.events.publish(job.id, JobEventKind::Queued).await;
                let owner = job.owner.as_ref().map(tracing::field::display);
                tracing::info!(job.id = %job.id, job.owner = owner, model.id = %job.request.model(), "job accepted");
                if job.status.is_terminal() {
                    self.announce_answered(&job).await;
                }
                let view = self.view(job).await;
                // Before a worker here takes it: it may be done with it at once.
                if let Ok(JobView { job, eta_ms: Some(eta_ms), .. }) = &view {
                    self.parts.hub.promise(job.id, *eta_ms);
                }
                self.parts.hub.wake();
                Ok(Submitted { view: view?, is_repeat: false })
            }
            Ok(Inserted::Existing(job)) => Ok(Submitted { view: self.view(job).await?, is_repeat: true }),
            Err(jobs::Error::QueueFull { limit }) => {
                self.parts.metrics.rejected.with_label_values(&["queue_full"]).inc();
                Err(Error::QueueFull { limit, retry_after_s: self.retry_after_s().await })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The request, or the faults of reading and of values together.
    fn check(
        &self,
        draft: RequestDraft,
        mut faults: Vec<FieldError>,
        limits: &Limits,
    ) -> std::result::Result<GenerationRequest, Vec<FieldError>> {
        // An unknown model hides no other fault: the rest is checked against the default one.
        let model = self.model_for(&draft).or_else(|fault| {
            faults.push(fault);
            self.parts.models.first().ok_or(())
        });
        let Ok(model) = model else { return Err(faults) };
        match draft.validate_among(model, &self.parts.models, limits, drawn_seed()) {
            Ok(request) if faults.is_empty() => Ok(request),
            Ok(_) => Err(faults),
            Err(found) => {
                // A field that could not be read is not missing as well.
                let known: Vec<String> = faults.iter().map(|fault| fault.field.clone()).collect();
                faults.extend(found.into_iter().filter(|fault| !known.contains(&fault.field)));
                Err(faults)
            }
        }
    }

    fn model_for(&self, draft: &RequestDraft) -> std::result::Result<&ModelInfo, FieldError> {
        let models = &self.parts.models;
        let found = match &draft.model {
            None => models.first(),
            Some(name) => models.iter().find(|model| model.id.as_str() == name),
        };
        found.ok_or_else(|| {
            let names: Vec<String> = models.iter().map(|model| format!("`{}`", model.id)).collect();
            FieldError::new(
                "model",
                draft.model.clone(),
                format!("is not served here; use one of {}", names.join(", ")),
            )
        })
    }

    /// Cancels a job that waits or runs; forgets one that has ended, with its pictures.
    ///
    /// # Errors
    /// No such job; a store that failed.
    pub async fn delete(&self, caller: &Caller, id: JobId) -> Result<Option<JobView>> {
        self.job(caller, id).await?;
        match self.parts.jobs.cancel(id).await?.ok_or(Error::JobNotFound(id))? {
            Cancelled::Now(job) => {
                self.parts.metrics.jobs_ended.with_label_values(&["cancelled"]).inc();
                // An attempt that was lost or handed back may have left pictures and where it stood.
                if let Err(error) = self.parts.artifacts.remove_drawn(id).await {
                    tracing::warn!(job.id = %id, %error, "cannot remove what was drawn of a cancelled job");
                }
                self.parts.events.publish(id, JobEventKind::Cancelled).await;
                if job.identity.is_some() {
                    // The next of its kind may be drawn in its place.
                    self.parts.hub.wake();
                }
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

/// A seed nobody chose. A version 4 UUID has 122 random bits; folded, every one of the 64 is random.
fn drawn_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    let (other_high, other_low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32) ^ other_high.rotate_left(16) ^ other_low
}
