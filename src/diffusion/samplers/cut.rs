//! Runs that share the noise levels between two models: one ends where the other begins (diffusers' "ensemble of expert
//! denoisers": `denoising_end` and `denoising_start`).
//!
//! The place is a share of the training schedule, not of the steps: 0.8 is the timestep 200 of 1000, wherever a sigma schedule
//! puts its steps. Evaluations told of that timestep or a higher one belong to the first run.
//!
//! A sampler of two evaluations a step is cut as diffusers cuts it: the first run may end between the two, and the second
//! begins with the whole step.

use super::{Error, PlanRequest, Result, SamplingPlan, TrainingSchedule};
use crate::domain::SamplerKind;

impl SamplingPlan {
    /// The run from this share on.
    pub(super) fn beginning_at(training: &TrainingSchedule, request: &PlanRequest, share: f64) -> Result<Self> {
        let whole = PlanRequest { skip: 0, denoising_start: None, denoising_end: None, ..*request };
        let whole = Self::of_steps(training, &whole)?;
        let cutoff = cutoff(training, share);
        let mut rest = whole.steps.iter().filter(|step| step.timestep < cutoff).count();
        let evaluations = evaluations_per_step(request.kind);
        if evaluations == 2 && rest.is_multiple_of(2) {
            rest += 1;
        }
        let skip = whole.steps.len().saturating_sub(rest) / evaluations;
        // PLMS evaluates once more than it steps; the last evaluation alone is a run.
        let most = whole.steps.len().div_ceil(evaluations);
        if rest == 0 || skip >= most {
            return Err(Error::Cut { key: "denoising_start", share, steps: request.steps, kind: request.kind });
        }
        Self::of_steps(training, &PlanRequest { skip: skip as u32, denoising_start: None, ..*request })
    }

    /// Drops the rows below this share.
    pub(super) fn end_at(&mut self, training: &TrainingSchedule, request: &PlanRequest, share: f64) -> Result<()> {
        let cutoff = cutoff(training, share);
        let rows = self.steps.iter().filter(|step| step.timestep >= cutoff).count();
        if rows == 0 {
            return Err(Error::Cut { key: "denoising_end", share, steps: request.steps, kind: request.kind });
        }
        self.steps.truncate(rows);
        Ok(())
    }
}

/// The lowest timestep before it.
fn cutoff(training: &TrainingSchedule, share: f64) -> f64 {
    let trained = training.num_train_timesteps() as f64;
    (trained - share * trained).round_ties_even()
}

/// diffusers' `order`: how many entries of its list of timesteps a step has, but for the first.
fn evaluations_per_step(kind: SamplerKind) -> usize {
    use SamplerKind::{Dpm2, Dpm2Ancestral, DpmPp2sAncestral, DpmPpSde, Heun};
    match kind {
        Heun | Dpm2 | Dpm2Ancestral | DpmPpSde | DpmPp2sAncestral => 2,
        _ => 1,
    }
}
