//! Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 2 without churn); diffusers
//! `EulerDiscreteScheduler`.

use super::levels::Levels;
use super::{Mix, Noised, PlanRequest, PlanStep, Result, SamplingPlan, TimestepSpacing, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let levels = Levels::fractional(training, request).ending_at(training.last_sigma());
    let rule = |(timestep, from, to)| {
        // x + (x - denoised) / from * (to - from)
        let kept: f64 = to / from;
        PlanStep {
            next: Mix { sample: kept, denoised: 1.0 - kept, ..Mix::default() },
            ..step(training, timestep, from)
        }
    };
    let steps = levels.steps().map(rule).collect();
    Ok(SamplingPlan::new(init_noise_sigma(training, &levels), steps))
}

/// A step of such latents that does nothing yet.
pub(super) fn step(training: &TrainingSchedule, timestep: f64, sigma: f64) -> PlanStep {
    PlanStep {
        input_scale: 1.0 / (sigma * sigma + 1.0).sqrt(),
        ..PlanStep::at(timestep, sigma, Noised::ve(sigma), training.prediction_type.denoised_ve(sigma))
    }
}

/// With `leading` the first level is not the noisiest the network knows, so the picture's own variance counts too.
pub(super) fn init_noise_sigma(training: &TrainingSchedule, levels: &Levels) -> f64 {
    let largest = levels.sigmas.iter().copied().fold(0.0, f64::max);
    match training.sigma_spacing() {
        TimestepSpacing::Linspace | TimestepSpacing::Trailing => largest,
        TimestepSpacing::Leading => (largest * largest + 1.0).sqrt(),
    }
}
