//! Who still works on a job: the loop, which has its samples, and the finisher, which has pieces of it. Whoever brings back
//! the last tells of the job's end, so that each job has one, and nothing of it is told afterwards.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::events::{EngineEvent, EngineTimings};
use super::parking::{Basis, ParkedJob};
use super::refusal::{Refusal, caught};
use super::sample::SampleState;
use crate::domain::JobId;

/// The jobs of one engine. Shared by its loop and its finisher; nobody works or waits while holding the lock, but for the copy
/// of a sample that comes back from between two passes as its job is taken off.
#[derive(Default)]
pub(super) struct Ledger {
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    jobs: HashMap<JobId, Standing>,
    /// Samples that are back from between two passes.
    back: Vec<SampleState>,
}

struct Standing {
    /// Samples with steps to take.
    in_loop: u32,
    /// Pieces at the finisher.
    at_finisher: u32,
    /// Those of them that come back to the loop.
    between: u32,
    timings: EngineTimings,
    first_step: Option<Instant>,
    /// What it rests on, should it be parked.
    basis: Option<Basis>,
    /// How it ends, where it does not end with all of its pictures.
    end: Option<End>,
}

impl Standing {
    fn is_ending(&self) -> bool {
        matches!(self.end, Some(End::Failed(_) | End::Cancelled))
    }
}

/// How a job leaves before its last picture.
pub(super) enum End {
    Failed(Refusal),
    Cancelled,
    /// With its pictures in progress. Those that have taken all their steps are told before.
    Parked(Option<Box<ParkedJob>>),
}

impl Books {
    fn is_any_between(&self) -> bool {
        self.jobs.values().any(|standing| standing.between > 0)
    }
}

impl Ledger {
    /// Plain data: each change is made in one go.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job comes into the loop.
    pub(super) fn enter(&self, job: JobId, samples: u32, (encode_ms, basis): (u64, Option<Basis>)) {
        let timings = EngineTimings { encode_ms, ..EngineTimings::default() };
        let standing =
            Standing { in_loop: samples, at_finisher: 0, between: 0, timings, first_step: None, basis, end: None };
        self.books().jobs.insert(job, standing);
    }

    /// An evaluation of these jobs' samples begins.
    pub(super) fn step(&self, of: impl IntoIterator<Item = JobId>) {
        let (mut books, now) = (self.books(), Instant::now());
        for job in of {
            if let Some(standing) = books.jobs.get_mut(&job) {
                standing.first_step.get_or_insert(now);
            }
        }
    }

    /// One of its samples has taken all steps and goes to the finisher.
    pub(super) fn hand_over(&self, job: JobId) {
        if let Some(standing) = self.books().jobs.get_mut(&job) {
            standing.in_loop -= 1;
            standing.at_finisher += 1;
            let took = standing.first_step.map_or(Duration::ZERO, |first| first.elapsed());
            standing.timings.denoise_ms = standing.timings.denoise_ms.max(took.as_millis() as u64);
        }
    }

    /// One of its samples goes to the finisher between two passes.
    pub(super) fn hand_over_between(&self, job: JobId) {
        if let Some(standing) = self.books().jobs.get_mut(&job) {
            standing.in_loop -= 1;
            standing.at_finisher += 1;
            standing.between += 1;
        }
    }

    /// It comes back, unless its job has no further use for it; the end of the job, where this was the last of it.
    pub(super) fn bring_back_between(&self, job: JobId, sample: Result<SampleState, Refusal>) -> Option<EngineEvent> {
        let mut books = self.books();
        let standing = books.jobs.get_mut(&job)?;
        (standing.at_finisher, standing.between) = (standing.at_finisher - 1, standing.between - 1);
        match (sample, &mut standing.end) {
            (Ok(sample), None) => {
                standing.in_loop += 1;
                books.back.push(sample);
            }
            // It belongs to what is taken off.
            (Ok(sample), Some(End::Parked(parked))) => {
                *parked = parked.take().and_then(|parked| with(*parked, &sample).map(Box::new));
            }
            (Err(refusal), None | Some(End::Parked(_))) => standing.end = Some(End::Failed(refusal)),
            (_, Some(End::Failed(_) | End::Cancelled)) => {}
        }
        ended(&mut books.jobs, job)
    }

    /// Samples that are back from there.
    pub(super) fn back(&self) -> Vec<SampleState> {
        std::mem::take(&mut self.books().back)
    }

    /// Whether the loop has samples to come.
    pub(super) fn is_any_to_come(&self) -> bool {
        // One look at both: a sample moves from the one to the other.
        let books = self.books();
        !books.back.is_empty() || books.is_any_between()
    }

    /// Whether the finisher has samples that will come back to the loop.
    pub(super) fn is_any_between(&self) -> bool {
        self.books().is_any_between()
    }

    /// A look at one of its samples goes to the finisher.
    pub(super) fn lend(&self, job: JobId) {
        if let Some(standing) = self.books().jobs.get_mut(&job) {
            standing.at_finisher += 1;
        }
    }

    /// Whether nothing more is to be told of it than its end.
    pub(super) fn is_ending(&self, job: JobId) -> bool {
        self.books().jobs.get(&job).is_none_or(|standing| standing.is_ending())
    }

    /// Whether one of its samples will come back to the loop, or has and was not taken yet.
    pub(super) fn is_between(&self, job: JobId) -> bool {
        let books = self.books();
        let is_to_come = books.jobs.get(&job).is_some_and(|standing| standing.between > 0);
        is_to_come || books.back.iter().any(|sample| sample.job == job)
    }

    /// What it rests on; `None` where it is not aboard, or leaves already.
    pub(super) fn basis(&self, job: JobId) -> Option<Basis> {
        self.books().jobs.get(&job).filter(|standing| standing.end.is_none())?.basis.clone()
    }

    /// The finisher is done with a piece, on which it worked for so long; the end of the job, where that was the last.
    pub(super) fn bring_back(&self, job: JobId, outcome: Result<Duration, Refusal>) -> Option<EngineEvent> {
        let mut books = self.books();
        let standing = books.jobs.get_mut(&job)?;
        standing.at_finisher -= 1;
        match outcome {
            Ok(took) => standing.timings.decode_ms += took.as_millis() as u64,
            // What is left of a job without this picture need not be kept.
            Err(refusal) if !standing.is_ending() => standing.end = Some(End::Failed(refusal)),
            Err(_) => {}
        }
        ended(&mut books.jobs, job)
    }

    /// The loop has none of its samples any more; the end of the job, where the finisher has nothing either.
    pub(super) fn leave(&self, job: JobId, end: End) -> Option<EngineEvent> {
        let mut books = self.books();
        let own: Vec<SampleState> = books.back.extract_if(.., |sample| sample.job == job).collect();
        let standing = books.jobs.get_mut(&job)?;
        standing.in_loop = 0;
        // Those that came back after the loop looked belong to what is taken off.
        let end = match end {
            End::Parked(Some(parked)) => End::Parked(own.iter().try_fold(*parked, with).map(Box::new)),
            end => end,
        };
        standing.end.get_or_insert(end);
        ended(&mut books.jobs, job)
    }

    /// Jobs with samples in the loop that failed at the finisher.
    pub(super) fn doomed(&self) -> Vec<JobId> {
        let books = self.books();
        let is_doomed = |(_, standing): &(&JobId, &Standing)| standing.end.is_some() && standing.in_loop > 0;
        books.jobs.iter().filter(is_doomed).map(|(job, _)| *job).collect()
    }
}

/// The same with one more picture in progress; `None`, with a word in the log, where that cannot be copied.
pub(super) fn with(parked: ParkedJob, sample: &SampleState) -> Option<ParkedJob> {
    match caught(|| sample.parked().map_err(Refusal::failed)) {
        Ok(sample) => Some(parked.with(sample)),
        Err(Refusal { message, .. }) => {
            tracing::warn!(job.id = %sample.job, reason = %message, "a job's state cannot be kept; it will start anew");
            None
        }
    }
}

fn ended(jobs: &mut HashMap<JobId, Standing>, job: JobId) -> Option<EngineEvent> {
    let standing = jobs.get(&job)?;
    if standing.in_loop + standing.at_finisher > 0 {
        return None;
    }
    let Standing { end, timings, .. } = jobs.remove(&job)?;
    Some(match end {
        None => EngineEvent::Finished { job, timings },
        Some(End::Failed(Refusal { code, message })) => EngineEvent::Failed { job, code, message },
        Some(End::Cancelled) => EngineEvent::Cancelled { job },
        Some(End::Parked(parked)) => EngineEvent::Parked { job, parked },
    })
}
