//! DPM-Solver-2 in k-diffusion's form (Karras et al. 2022, algorithm 2, with the midpoint in log sigma), and with ancestral
//! noise; diffusers `KDPM2DiscreteScheduler` and `KDPM2AncestralDiscreteScheduler`. Two evaluations a step, but one in
//! the last. They know epsilon and v-prediction there; sample prediction is the same formula here.

use super::euler::{init_noise_sigma, step};
use super::levels::{Levels, log_table, timestep_of};
use super::{Mix, Noised, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};
use crate::domain::{SamplerKind, SigmaSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let mut levels = Levels::fractional(training, request).ending_at(0.0);
    let schedule = training.sigma_schedule(request.sigma_schedule);
    if !matches!(schedule, SigmaSchedule::Default | SigmaSchedule::Exponential | SigmaSchedule::Beta) {
        // As the reference does with Karras' levels, and only with those of its own.
        levels.timesteps.iter_mut().for_each(|timestep| *timestep = timestep.round_ties_even());
    }
    let log_sigmas = log_table(&training.sigmas());
    let mut steps = Vec::new();
    for (timestep, from, to) in levels.steps() {
        let (down, up) = match request.kind {
            SamplerKind::Dpm2Ancestral => ancestral(from, to),
            _ => (to, 0.0),
        };
        let middle = (from * down).sqrt();
        let kept = middle / from;
        let first = PlanStep {
            next: Mix { sample: kept, denoised: 1.0 - kept, ..Mix::default() },
            ..step(training, timestep, from)
        };
        if to == 0.0 {
            steps.push(first);
            continue;
        }
        steps.push(PlanStep { hold: Some(Mix::sample()), ends_step: false, ..first });
        // From the held sample, along the slope at the middle.
        let slope = (down - from) / middle;
        steps.push(PlanStep {
            next: Mix { held: 1.0, sample: slope, denoised: -slope, noise: up, ..Mix::default() },
            // As the reference's `add_noise` has it, though the sample is at the middle.
            noised: Noised::ve(to),
            ..step(training, timestep_of(middle, &log_sigmas), middle)
        });
    }
    Ok(SamplingPlan::new(init_noise_sigma(training, &levels), steps))
}

/// How far down a step goes, and how much noise brings it up again (k-diffusion `get_ancestral_step`, eta 1).
pub(super) fn ancestral(from: f64, to: f64) -> (f64, f64) {
    let down = to * to / from;
    // Not a number where the levels rise: the plan is refused then.
    (down, (to * to - down * down).sqrt())
}
