//! DPM-Solver++ (2S) with ancestral noise (Lu et al. 2022, algorithm 1); k-diffusion `sample_dpmpp_2s_ancestral`, eta 1.
//! Two evaluations a step, but one in the last.
//!
//! diffusers has no such class: the levels are those of its `EulerAncestralDiscreteScheduler`, like the noise, one draw a
//! step.

use super::dpm2::ancestral;
use super::euler::{init_noise_sigma, step};
use super::levels::{Levels, log_table, timestep_of};
use super::{Mix, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let levels = Levels::fractional(training, request).ending_at(0.0);
    let log_sigmas = log_table(&training.sigmas());
    let mut steps = Vec::new();
    for (timestep, from, to) in levels.steps() {
        let at = step(training, timestep, from);
        if to == 0.0 {
            steps.push(PlanStep { next: Mix::denoised(), ..at });
            continue;
        }
        let (down, up) = ancestral(from, to);
        // Half way in log sigma.
        let middle = (from * down).sqrt();
        let (half, kept) = (middle / from, down / from);
        steps.push(PlanStep {
            next: Mix { sample: half, denoised: 1.0 - half, ..Mix::default() },
            hold: Some(Mix::sample()),
            ends_step: false,
            ..at
        });
        steps.push(PlanStep {
            next: Mix { held: kept, denoised: 1.0 - kept, noise: up, ..Mix::default() },
            ..step(training, timestep_of(middle, &log_sigmas), middle)
        });
    }
    Ok(SamplingPlan::new(init_noise_sigma(training, &levels), steps))
}
