//! Jobs on their way to the engine: what they came with is fetched, and what they need before their first step is made, beside
//! the worker's loop and its engine's. They count as aboard meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinSet;

use super::Worker;
use super::watchdog::Failure;
use crate::diffusion::engine::{self, EngineJob, EngineOptions, Prepared};
use crate::dispatch::jobs::{Answer, Outcome};
use crate::dispatch::workers::PATIENCE;
use crate::dispatch::workers::inputs::{self, Given, NotGiven};
use crate::dispatch::workers::models::Held;
use crate::dispatch::workers::parked::{self, Found};
use crate::dispatch::workers::pool::PoolParts;
use crate::dispatch::workers::reusing;
use crate::domain::{
    Artifact, BatchingPolicy, ErrorCode, GenerationRequest, GroupKey, Job, JobError, JobId, QueuePlace, SizeKey,
};

/// How long a job is kept whose files cannot be fetched, before it goes back to the queue.
const PAUSE: Duration = Duration::from_secs(1);

/// What comes aboard together, job by job.
pub(super) type Preparing = JoinSet<Vec<Ready>>;

/// A job that was claimed, with what it is drawn with.
pub(super) struct Claimed {
    pub job: Job,
    /// Where it stands in the engine.
    pub place: QueuePlace,
    /// Of its lease: tells this attempt from another.
    pub token: u64,
    /// Kept loaded until it is ready; its run keeps them after that.
    pub models: Vec<Held>,
}

/// What became of it.
pub(super) struct Ready {
    attempt: Attempt,
    result: Result<Prepared, NotReady>,
}

struct Attempt {
    id: JobId,
    token: u64,
    /// Where it was parked: its pictures that were stored before.
    parked: Option<Vec<Artifact>>,
}

enum NotReady {
    /// Its pictures are there: those of an identical request.
    Answered(Answer),
    /// It cannot be drawn.
    Refused(JobError),
    /// The store did not answer; it may another time.
    NotNow(String),
}

/// Whether making it ready may take longer than a step: pictures are decoded and encoded for it, or networks changed.
pub(super) fn takes_long(request: &GenerationRequest) -> bool {
    request.input_pictures().next().is_some() || !request.loras().is_empty()
}

/// Under the policy `grouped`, all that were claimed come aboard together, as they travel. Else those that take long come
/// each when it is ready, and hold up none of the others.
fn parties(claimed: Vec<Claimed>, policy: BatchingPolicy) -> Vec<Vec<Claimed>> {
    if policy == BatchingPolicy::Grouped {
        return vec![claimed];
    }
    let (late, soon): (Vec<_>, Vec<_>) = claimed.into_iter().partition(|claimed| takes_long(&claimed.job.request));
    let mut parties: Vec<Vec<Claimed>> = late.into_iter().map(|claimed| vec![claimed]).collect();
    parties.push(soon);
    parties.into_iter().filter(|party| !party.is_empty()).collect()
}

async fn ready(parts: PoolParts, options: EngineOptions, party: Vec<Claimed>) -> Vec<Ready> {
    let given = join_all(party.iter().map(|claimed| given(&parts, &claimed.job))).await;
    let parked = join_all(party.iter().map(|claimed| parked::fetch(&parts, &claimed.job))).await;
    let attempt = |(claimed, found): (&Claimed, &Found)| Attempt {
        id: claimed.job.id,
        token: claimed.token,
        parked: match found {
            Found::Nothing => None,
            Found::Unusable => Some(Vec::new()),
            Found::Parked(parked) => Some(parked.stored().to_vec()),
        },
    };
    let attempts: Vec<Attempt> = party.iter().zip(&parked).map(attempt).collect();
    let made = move || {
        let each = party.into_iter().zip(given).zip(parked);
        each.map(|((claimed, given), parked)| made(&claimed, given, parked, &options)).collect::<Vec<_>>()
    };
    let results = tokio::task::spawn_blocking(made).await.unwrap_or_else(|error| {
        let told = || NotReady::Refused(JobError { code: ErrorCode::Internal, message: error.to_string() });
        attempts.iter().map(|_| Err(told())).collect()
    });
    attempts.into_iter().zip(results).map(|(attempt, result)| Ready { attempt, result }).collect()
}

/// What a job is drawn on, where it is to be drawn at all.
async fn given(parts: &PoolParts, job: &Job) -> Result<Given, NotReady> {
    // A store that takes too long is no reason not to draw.
    let answer = tokio::time::timeout(PATIENCE, reusing::stored(parts, job)).await;
    if let Some(answer) = answer.ok().flatten() {
        return Err(NotReady::Answered(answer));
    }
    match inputs::given(parts, job).await {
        Ok(given) => Ok(given),
        Err(NotGiven::Missing(message)) => Err(NotReady::Refused(JobError { code: ErrorCode::Internal, message })),
        Err(NotGiven::NotNow(reason)) => {
            // Back in the queue it is claimed again at once.
            tokio::time::sleep(PAUSE).await;
            Err(NotReady::NotNow(reason))
        }
    }
}

/// Runs on a thread that may block.
fn made(
    claimed: &Claimed,
    given: Result<Given, NotReady>,
    found: Found,
    options: &EngineOptions,
) -> Result<Prepared, NotReady> {
    let parked = if let Found::Parked(parked) = found { Some(parked) } else { None };
    let Given { canvas, controls } = given?;
    let Claimed { job, place, models, .. } = claimed;
    let job = EngineJob {
        id: job.id,
        request: Arc::new(job.request.clone()),
        canvas,
        controls,
        place: *place,
        pipelines: models.iter().map(|model| model.pipeline().clone()).collect(),
        parked,
    };
    engine::prepare(&job, options).map_err(|refusal| {
        let engine::Refusal { code, message } = refusal;
        NotReady::Refused(JobError { code, message })
    })
}

impl Worker {
    /// Has jobs made ready that are aboard already.
    pub(super) fn prepare(&mut self, claimed: Vec<Claimed>) {
        for party in parties(claimed, self.options.engine.policy) {
            self.preparing.spawn(ready(self.parts.clone(), self.options.engine.clone(), party));
        }
    }

    /// Hands those that are ready to the engine, and ends or hands back the others.
    pub(super) async fn heed_ready(&mut self, party: Vec<Ready>) {
        let mut prepared = Vec::new();
        for Ready { attempt: Attempt { id, token, parked }, result } in party {
            // It may have been cancelled, or lost to another worker, meanwhile.
            let is_here = |run: &super::JobRun| run.claimed.lease.token == token;
            let Some(run) = self.aboard.get_mut(&id).filter(|run| is_here(run)) else { continue };
            let result = match result {
                Err(NotReady::NotNow(reason)) => {
                    tracing::warn!(job.id = %id, worker = %self.id, %reason, "cannot fetch what came with a job; it waits");
                    if let Some(run) = self.aboard.remove(&id) {
                        run.hand_back(&self.parts).await;
                    }
                    continue;
                }
                Err(NotReady::Answered(answer)) => {
                    self.answer(id, answer);
                    continue;
                }
                Err(NotReady::Refused(error)) => Err(error),
                Ok(ready) => Ok(ready),
            };
            let took = run.preparing_for().unwrap_or_default();
            run.is_ready(parked);
            match result {
                Ok(ready) => {
                    let found = ready.lookups();
                    self.parts.metrics.prompts.with_label_values(&["hit"]).inc_by(found.hits);
                    self.parts.metrics.prompts.with_label_values(&["miss"]).inc_by(found.misses);
                    self.parts.metrics.prepare_seconds.observe(took.as_secs_f64());
                    prepared.push(ready);
                }
                Err(error) if error.code == ErrorCode::DeviceFailed => {
                    // Those that are ready go the way of all that is aboard.
                    return self.engine_failed(Failure::Device(error.message)).await;
                }
                Err(error) => self.end(id, Outcome::Failed(error)).await,
            }
        }
        if prepared.is_empty() {
            return;
        }
        self.filling.sent(prepared.len());
        if self.engine.take(prepared).is_err() {
            self.engine_failed(Failure::Ended).await;
        }
    }

    /// Rows on their way to the engine: of this size, and of others.
    pub(super) fn coming(&self, size: &SizeKey) -> (u32, u32) {
        let coming = self.aboard.values().filter(|run| run.is_preparing).map(|run| &run.claimed.job.request);
        coming.fold((0, 0), |(own, others), request| {
            let is_own = GroupKey::of(request).size() == *size;
            if is_own { (own + request.rows(), others) } else { (own, others + request.rows()) }
        })
    }

    /// Rows that an engine with nothing to do could be given besides what is on its way; 0 where that is there at once, or
    /// something is with the engine.
    pub(super) fn rows_to_begin_with(&self) -> u32 {
        let (mut coming, policy) = (0, self.options.engine.policy);
        for run in self.aboard.values() {
            let request = &run.claimed.job.request;
            if policy == BatchingPolicy::Grouped || !run.is_preparing || !takes_long(request) {
                return 0;
            }
            coming += request.rows();
        }
        self.filling.first_rows(self.options.engine.caps.max_rows).saturating_sub(coming)
    }
}
