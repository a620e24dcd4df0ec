//! Multistep consistency sampling of a latent consistency model (Luo et al. 2023, algorithm 3); diffusers `LCMScheduler`.
//!
//! The levels are those of the teacher's `original_inference_steps` (50 when the file is silent), of which the request's
//! steps visit some.

use super::levels::{VpStep, finite_sigma_of};
use super::{Error, Mix, Noised, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let mut steps = match VpStep::scheduled(training, request) {
        Some(steps) => steps,
        None => distilled(training, request)?,
    };
    if training.zero_snr_is_blind(&steps) {
        return Err(Error::ZeroSnr { kind: request.kind });
    }
    // What the last evaluation says is the picture: no noise follows it.
    if let Some(last) = steps.last_mut() {
        last.to = 1.0;
    }
    let steps = steps.iter().map(|step| rule(training, step)).collect();
    Ok(SamplingPlan::new(1.0, steps))
}

/// Each of the request's timesteps leads to the next one, the last one to itself.
fn distilled(training: &TrainingSchedule, request: &PlanRequest) -> Result<Vec<VpStep>> {
    let timesteps = distilled_timesteps(training, request)?;
    let share = |timestep: usize| f64::from(training.alphas_cumprod[timestep]);
    let pair = |index: usize| {
        let (timestep, next) = (timesteps[index], timesteps[(index + 1).min(timesteps.len() - 1)]);
        VpStep { timestep: timestep as f64, from: share(timestep), to: share(next) }
    };
    Ok((0..timesteps.len()).map(pair).collect())
}

/// Timesteps out of the teacher's, evenly from its last one.
pub(super) fn distilled_timesteps(training: &TrainingSchedule, request: &PlanRequest) -> Result<Vec<usize>> {
    let (teacher, count) = (training.original_inference_steps, request.steps as usize);
    if count > teacher {
        return Err(Error::StepsOfTeacher { kind: request.kind, steps: request.steps, most: teacher });
    }
    let stride = training.num_train_timesteps() / teacher;
    let share = teacher as f64 / count as f64;
    Ok((0..count).map(|index| (teacher - (index as f64 * share) as usize) * stride - 1).collect())
}

fn rule(training: &TrainingSchedule, step: &VpStep) -> PlanStep {
    /// Of the consistency function's boundary condition.
    const SIGMA_DATA: f64 = 0.5;

    let &VpStep { timestep, from, to } = step;
    let scaled = timestep * training.timestep_scaling;
    let variance = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
    let (skip, out) = (SIGMA_DATA * SIGMA_DATA / variance, scaled / variance.sqrt());
    let denoised_from = training.prediction_type.denoised_vp(from.sqrt(), (1.0 - from).sqrt());
    PlanStep {
        clip_denoised: training.clip_denoised(),
        next: Mix { sample: to.sqrt() * skip, denoised: to.sqrt() * out, noise: (1.0 - to).sqrt(), ..Mix::default() },
        ..PlanStep::at(timestep, finite_sigma_of(from), Noised::vp(from), denoised_from)
    }
}
