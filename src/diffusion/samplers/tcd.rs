//! Trajectory consistency distillation, strategic stochastic sampling (Zheng et al. 2024, algorithm 4); diffusers
//! `TCDScheduler`. `eta` is the paper's gamma: 0 takes no noise, 1 goes to timestep 0 and back.

use super::lcm::distilled_timesteps;
use super::levels::{Levels, finite_sigma_of, interpolated};
use super::{Error, Mix, Noised, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};
use crate::domain::SigmaSchedule;

/// From a level down to a lower one than the next, and up to the next with fresh noise; shares of signal.
struct TcdStep {
    timestep: f64,
    from: f64,
    down: f64,
    to: f64,
}

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let steps = match training.sigma_schedule(request.sigma_schedule) {
        SigmaSchedule::Default => distilled(training, request)?,
        _ => scheduled(training, request),
    };
    let is_blind = training.prediction_type == super::PredictionType::Epsilon;
    if is_blind && steps.iter().any(|step| step.from <= 0.0) {
        return Err(Error::ZeroSnr { kind: request.kind });
    }
    let steps = steps.iter().map(|step| rule(training, step)).collect();
    Ok(SamplingPlan::new(1.0, steps))
}

fn distilled(training: &TrainingSchedule, request: &PlanRequest) -> Result<Vec<TcdStep>> {
    let timesteps = distilled_timesteps(training, request)?;
    let share = |timestep: usize| f64::from(training.alphas_cumprod[timestep]);
    // In single precision, as the reference multiplies its whole-number tensor.
    let below = |timestep: usize| (((1.0 - request.eta) as f32) * timestep as f32).floor() as usize;
    let step = |(index, &timestep): (usize, &usize)| {
        let next = timesteps.get(index + 1).copied();
        let down = share(next.map_or(0, below));
        // The last step adds no noise.
        TcdStep { timestep: timestep as f64, from: share(timestep), down, to: next.map_or(down, share) }
    };
    Ok(timesteps.iter().enumerate().map(step).collect())
}

/// The same between levels of a sigma schedule, where timesteps may be fractional.
fn scheduled(training: &TrainingSchedule, request: &PlanRequest) -> Vec<TcdStep> {
    let share = |sigma: f64| 1.0 / (sigma * sigma + 1.0);
    let table = training.sigmas();
    let levels = Levels::fractional(training, request);
    let step = |(index, &timestep): (usize, &f64)| {
        let next = levels.timesteps.get(index + 1).copied();
        let down = share(interpolated(&table, next.map_or(0.0, |next| (1.0 - request.eta) * next)));
        let to = levels.sigmas.get(index + 1).map_or(down, |&sigma| share(sigma));
        // Never above the next level, whose timestep may be that of a somewhat lower one.
        let down = if request.eta == 0.0 { to } else { down.max(to) };
        TcdStep { timestep, from: share(levels.sigmas[index]), down, to }
    };
    levels.timesteps.iter().enumerate().map(step).collect()
}

fn rule(training: &TrainingSchedule, step: &TcdStep) -> PlanStep {
    let &TcdStep { timestep, from, down, to } = step;
    let (alpha, sigma) = (from.sqrt(), (1.0 - from).sqrt());
    let kept = (to / down).sqrt();
    let noise = training.prediction_type.noise_vp(alpha, sigma);
    let direction = kept * (1.0 - down).sqrt();
    PlanStep {
        next: Mix {
            sample: direction * noise.sample,
            denoised: kept * down.sqrt(),
            output: direction * noise.output,
            // A rounding error below zero would be no number.
            noise: (1.0 - to / down).max(0.0).sqrt(),
            ..Mix::default()
        },
        ..PlanStep::at(
            timestep,
            finite_sigma_of(from),
            Noised::vp(from),
            training.prediction_type.denoised_vp(alpha, sigma),
        )
    }
}
